/* guest_log.c - what a guest process logs, bounded in rate and size.
 *
 * The guest writes to a fifo, non-blocking, and never sees a file: a mad guest fills a pipe, not a
 * disk. The fifo has a name, so that a daemon after this one reads on where this one stopped. The
 * file is turned over at guest_log_bytes.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/priv/priv.h"

struct guest_log {
	struct priv *p;
	char uuid[37];
	int fd; /* the fifo's reading end */
	struct loop_fd w;
	struct loop_timer resume;
	int file_fd;
	uint64_t size;
	uint64_t tokens, filled_ns; /* bytes that may be written now */
};

static int guest_log_dir(struct priv *p)
{
	mkdirat(p->state_fd, "logs", 0700);
	return openat(p->state_fd, "logs", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

static int guest_log_file(struct guest_log *g)
{
	_cleanup_close_ int dir = guest_log_dir(g->p);
	char name[64], old[64];
	struct stat st;

	if (dir < 0)
		return -errno;
	snprintf(name, sizeof(name), "%s.log", g->uuid);
	snprintf(old, sizeof(old), "%s.log.1", g->uuid);
	if (g->file_fd >= 0) {
		close_fd(&g->file_fd);
		renameat(dir, name, dir, old);
	}
	g->file_fd =
	    openat(dir, name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (g->file_fd < 0)
		return -errno;
	g->size = fstat(g->file_fd, &st) == 0 ? (uint64_t)st.st_size : 0;
	return 0;
}

static void guest_log_resume(void *arg)
{
	struct guest_log *g = arg;

	loop_fd_mod(&g->w, EPOLLIN);
}

static void guest_log_ready(void *arg, int fd, uint32_t events)
{
	struct guest_log *g = arg;
	const struct vmd_config *cfg = g->p->cfg;
	uint64_t now = clock_mono_ns();
	char buf[4096];

	g->tokens = MIN(g->tokens + (now - g->filled_ns) * cfg->guest_log_rate_bytes / NS_PER_S,
			4 * cfg->guest_log_rate_bytes);
	g->filled_ns = now;
	if (g->tokens < sizeof(buf)) {
		/* over its rate: the pipe fills up, and what the guest logs beyond that is lost to
		 * it */
		loop_fd_mod(&g->w, 0);
		loop_timer_after(&g->resume, NS_PER_S / 4);
		return;
	}
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n > 0) {
		g->tokens -= (uint64_t)n;
		if (g->size + (uint64_t)n > cfg->guest_log_bytes)
			guest_log_file(g);
		if (g->file_fd >= 0 && io_write_full(g->file_fd, buf, (size_t)n) < 0)
			log_debug("log of guest %s: %s", g->uuid, strerror(errno));
		g->size += (uint64_t)n;
	} else if (n == 0 || errno != EAGAIN) {
		loop_fd_del(&g->w); /* nobody writes any more */
	}
}

struct guest_log *guest_log_new(struct priv *p, int dir_fd, const char *uuid, int *write_fd,
				struct err *e)
{
	struct guest_log *g = calloc(1, sizeof(*g));
	char name[64];
	int ret = 0;

	if (!g) {
		err_set(e, ENOMEM, "no-memory", "guest %s: out of memory", uuid);
		return NULL;
	}
	*g = (struct guest_log){ .p = p,
				 .fd = -1,
				 .w = LOOP_FD_NONE,
				 .file_fd = -1,
				 .filled_ns = clock_mono_ns(),
				 .tokens = 4 * p->cfg->guest_log_rate_bytes };
	snprintf(g->uuid, sizeof(g->uuid), "%s", uuid);
	loop_timer_init(p->loop, &g->resume, guest_log_resume, g);
	snprintf(name, sizeof(name), "%s.log", uuid);
	if (mkfifoat(dir_fd, name, 0600) < 0 && errno != EEXIST)
		goto fail;
	g->fd = openat(dir_fd, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
	if (g->fd < 0)
		goto fail;
	if (write_fd) {
		*write_fd = openat(dir_fd, name, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
		if (*write_fd < 0)
			goto fail;
	}
	ret = guest_log_file(g);
	if (ret < 0 || loop_fd_add(p->loop, &g->w, g->fd, EPOLLIN, guest_log_ready, g) < 0) {
		errno = ret ? -ret : ENOMEM;
		goto fail;
	}
	return g;
fail:
	err_set(e, errno, "no-log", "guest %s: cannot make its log: %s", uuid, strerror(errno));
	guest_log_free(g);
	return NULL;
}

void guest_log_free(struct guest_log *g)
{
	if (!g)
		return;
	loop_timer_stop(&g->resume);
	/* its last words */
	if (g->fd >= 0 && g->file_fd >= 0) {
		char buf[4096];
		ssize_t n;

		for (int i = 0; i < 16 && (n = read(g->fd, buf, sizeof(buf))) > 0; i++)
			if (io_write_full(g->file_fd, buf, (size_t)n) < 0)
				break;
	}
	loop_fd_del(&g->w);
	close_fd(&g->fd);
	close_fd(&g->file_fd);
	free(g);
}

int guest_log_port_fd(struct priv *p, const char *uuid, const char *port, bool write)
{
	_cleanup_close_ int dir = guest_log_dir(p);
	char name[80];
	int fd;

	if (dir < 0)
		return -errno;
	if (!uuid_valid(uuid) || (*port && !path_leaf_ok(port)))
		return -EINVAL;
	snprintf(name, sizeof(name), "%s%s%s.log", uuid, *port ? "." : "", port);
	fd = openat(dir, name,
		    (write ? O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK : O_RDONLY) | O_CLOEXEC |
			O_NOFOLLOW,
		    0600);
	return fd < 0 ? -errno : fd;
}

int guest_log_forget(struct priv *p, const char *uuid)
{
	int dir = guest_log_dir(p);
	DIR *d = dir < 0 ? NULL : fdopendir(dir);
	size_t n = strlen(uuid);
	struct dirent *de;

	if (!d) {
		close_fd(&dir);
		return -errno;
	}
	while ((de = readdir(d)))
		if (!strncmp(de->d_name, uuid, n) && de->d_name[n] == '.')
			unlinkat(dirfd(d), de->d_name, 0);
	closedir(d);
	return 0;
}
