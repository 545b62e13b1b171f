/* volume.c - pools are directories, volumes are regular files right in them.
 * Opened here, parsed in jails: no byte of an image is looked at. A volume is opened by name
 * beneath the pool's descriptor and must be a regular file; its format is core's business.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "vmd/priv/priv.h"

static struct priv_pool *volume_pool(struct priv *p, const char *name, struct err *e)
{
	for (unsigned i = 0; i < p->npools; i++)
		if (!strcmp(p->pools[i].name, name))
			return &p->pools[i];
	err_set(e, ENOENT, "pool-not-found", "pool \"%s\" is not open", name);
	err_hint(e, "vmctl pool ls");
	return NULL;
}

static int volume_pool_add(struct priv *p, const char *name, int fd, struct err *e)
{
	for (unsigned i = 0; i < p->npools; i++)
		if (!strcmp(p->pools[i].name, name)) {
			close(p->pools[i].fd);
			p->pools[i].fd = fd;
			return 0;
		}
	if (p->npools == PRIV_POOLS_MAX)
		return err_set(e, EMFILE, "too-many-pools", "more than %u pools", PRIV_POOLS_MAX);
	snprintf(p->pools[p->npools].name, sizeof(p->pools[0].name), "%s", name);
	p->pools[p->npools++].fd = fd;
	return 0;
}

int volume_default_pool(struct priv *p, struct err *e)
{
	char path[300];
	int fd;

	snprintf(path, sizeof(path), "%s/pools", p->cfg->state_dir);
	fd = path_open_dir(path, true, 0711);
	if (fd >= 0) {
		close(fd);
		snprintf(path, sizeof(path), "%s/pools/default", p->cfg->state_dir);
		fd = path_open_dir(path, true, 0711);
	}
	if (fd < 0)
		return err_set(e, -fd, "no-state-dir", "%s: %s", path, strerror(-fd));
	int ret = volume_pool_add(p, "default", fd, e);

	if (ret < 0)
		close(fd);
	return ret;
}

static uint64_t volume_free_bytes(int fd)
{
	struct statvfs v;

	return fstatvfs(fd, &v) < 0 ? 0 : (uint64_t)v.f_bavail * v.f_frsize;
}

static void volume_pool_tell(struct priv *p, uint32_t id, int fd, const char *mark)
{
	struct statvfs v = { 0 };
	char text[128];

	if (fstatvfs(fd, &v) < 0)
		v = (struct statvfs){ 0 };
	snprintf(text, sizeof(text), "%llu %.40s%s", (unsigned long long)v.f_blocks * v.f_frsize,
		 *mark ? mark : "-", v.f_flag & ST_RDONLY ? " ro" : "");
	priv_result(p, id, (uint64_t)v.f_bavail * v.f_frsize, -1, -1, text);
}

/* A pool's directory says whose it is, so that one whose file system is not mounted, or that was
 * moved, is not taken for an empty pool: the pool's id, and in a second line "shared" where several
 * hosts use it. */
#define VOLUME_MARK   ".vmd-pool"
#define VOLUME_SHARED "shared\n"

/* volume_mark() - @id: of the mark, which is another's where a shared pool is joined. */
static int volume_mark(int dir, const struct msg_p_pool_open *m, char id[40], struct err *e)
{
	char has[64] = "";
	_cleanup_close_ int fd =
	    openat(dir, VOLUME_MARK, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, has, sizeof(has) - 1) : -1;

	const char *more = strchr(has, '\n');
	bool shared = more && !strcmp(more + 1, VOLUME_SHARED);

	if (n >= 0)
		has[strcspn(has, "\n")] = '\0';
	snprintf(id, 40, "%.39s", m->id);
	if (n > 0 && shared && m->shared && m->create == 1 && strlen(has) < 40) {
		memcpy(id, has, strlen(has) + 1);
		return 0;
	}
	if (!*m->id || (n > 0 && !strcmp(has, m->id)))
		return 0;
	if (n > 0 && m->create) {
		err_set(e, EEXIST, "pool-taken", "pool %s: %.200s is marked as another pool's",
			m->pool, m->path);
		err_hint(e,
			 shared
			     ? "several hosts use it: vmctl pool create %s --shared --path %.100s"
			     : "remove " VOLUME_MARK " in it if no other vmd uses it",
			 m->pool, m->path);
		return -EEXIST;
	}
	if (!m->create || n > 0) {
		err_set(
		    e, ENOENT, "pool-moved",
		    "pool %s: %.200s is there, but it is not the pool (a file system that is not "
		    "mounted, or another directory)",
		    m->pool, m->path);
		err_hint(e, "mount it, or move it back");
		return -ENOENT;
	}
	_cleanup_close_ int out =
	    openat(dir, VOLUME_MARK, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (out < 0 && errno == EROFS)
		return 0;
	if (out < 0 || dprintf(out, "%s\n%s", m->id, m->shared ? VOLUME_SHARED : "") < 0 ||
	    fsync(out) < 0)
		return err_set(e, errno, "pool-failed", "pool %s: %.200s cannot be marked: %s",
			       m->pool, m->path, strerror(errno));
	return 0;
}

int volume_pool_close(struct priv *p, const struct msg_p_pool_close *m, struct err *e)
{
	struct msg_p_pool_open is = { 0 };
	struct err other = { 0 };
	char id[40];

	memcpy(is.pool, m->pool, sizeof(is.pool));
	memcpy(is.id, m->id, sizeof(is.id));
	for (unsigned i = 0; i < p->npools; i++) {
		if (strcmp(p->pools[i].name, m->pool))
			continue;
		if (*is.id && volume_mark(p->pools[i].fd, &is, id, &other) == 0)
			unlinkat(p->pools[i].fd, VOLUME_MARK, 0);
		close(p->pools[i].fd);
		p->pools[i] = p->pools[--p->npools];
		break;
	}
	priv_ok(p, m->msg_id);
	return 0;
}

int volume_pool_open(struct priv *p, const struct msg_p_pool_open *m, struct err *e)
{
	const char *rest;
	char id[40];
	int root, fd;

	if (!name_valid(m->pool))
		return err_set(e, EINVAL, "bad-name", "\"%s\" is no name for a pool", m->pool);
	if (!strcmp(m->pool, "default")) {
		volume_pool_tell(p, m->msg_id, volume_pool(p, "default", NULL)->fd, "");
		return 0;
	}
	/* where no path is given a pool lies beside the default one */
	if (!*m->path) {
		char path[400];

		snprintf(path, sizeof(path), "%s/pools/%s", p->cfg->state_dir, m->pool);
		fd = path_open_dir(path, m->create == 1, 0711);
	} else {
		root = path_under_roots(p->cfg->pool_roots, m->path, &rest);
		if (root < 0) {
			err_set(e, EACCES, "pool-outside-roots",
				"pool %s: \"%.200s\" lies beneath no directory of pool_roots",
				m->pool, m->path);
			err_hint(e, "add its parent directory to pool_roots in vmd.conf");
			return -EACCES;
		}
		fd = path_open_beneath(root, rest, O_RDONLY | O_DIRECTORY, 0);
		if (fd == -ENOENT && m->create == 1 && path_leaf_ok(rest) &&
		    mkdirat(root, rest, 0711) == 0)
			fd = path_open_beneath(root, rest, O_RDONLY | O_DIRECTORY, 0);
		close(root);
	}
	if (fd < 0)
		return err_set(e, -fd, fd == -ENOENT ? "pool-not-found" : "pool-failed",
			       "pool %s: cannot open its directory %.200s: %s", m->pool, m->path,
			       strerror(-fd));
	int ret = volume_mark(fd, m, id, e);

	if (!ret)
		ret = volume_pool_add(p, m->pool, fd, e);
	if (ret < 0) {
		close(fd);
		return ret;
	}
	volume_pool_tell(p, m->msg_id, fd, id);
	return 0;
}

int volume_pool_stat(struct priv *p, const struct msg_p_pool_stat *m, struct err *e)
{
	struct priv_pool *pool = volume_pool(p, m->pool, e);

	if (!pool)
		return -ENOENT;
	priv_result(p, m->msg_id, volume_free_bytes(pool->fd), -1, -1, NULL);
	return 0;
}

static int volume_name_check(const char *pool, const char *name, struct err *e)
{
	return path_leaf_ok(name)
		   ? 0
		   : err_set(e, EINVAL, "bad-name", "pool %s: \"%.127s\" is no name for a volume",
			     pool, name);
}

static int volume_errno(struct err *e, int num, const char *pool, const char *name)
{
	if (num == ENOENT) {
		err_set(e, num, "volume-not-found", "pool %s has no volume \"%s\"", pool, name);
		err_hint(e, "vmctl disk ls");
		return -num;
	}
	if (num == EEXIST)
		return err_set(e, num, "volume-exists", "pool %s already has a volume \"%s\"", pool,
			       name);
	if (num == ELOOP || num == EXDEV)
		return err_set(e, EACCES, "volume-is-link",
			       "pool %s: \"%s\" is a symbolic link; volumes are plain files", pool,
			       name);
	if (num == ENOSPC)
		return err_set(e, num, "pool-full", "pool %s: no space left for \"%s\"", pool,
			       name);
	return err_set(e, num, "volume-failed", "pool %s: volume \"%s\": %s", pool, name,
		       strerror(num));
}

int volume_fd(struct priv *p, const struct msg_p_volume_open *m, struct err *e)
{
	static const int modes[] = { O_RDONLY, O_RDWR, O_RDWR | O_CREAT | O_EXCL };
	struct priv_pool *pool = volume_pool(p, m->pool, e);
	struct stat st;

	if (!pool)
		return -ENOENT;
	if (m->mode > 2)
		return err_set(e, EINVAL, "bad-mode", "volume %s: unknown mode", m->name);
	if (volume_name_check(m->pool, m->name, e) < 0)
		return -EINVAL;
	/* non-blocking: a fifo planted there must not hold us */
	_cleanup_close_ int fd = path_open_beneath(
	    pool->fd, m->name, modes[m->mode] | O_NONBLOCK | (m->direct ? O_DIRECT : 0), 0600);

	if (fd == -EINVAL && m->direct) /* a file system without O_DIRECT, as tmpfs before 6.5 */
		fd = path_open_beneath(pool->fd, m->name, modes[m->mode] | O_NONBLOCK, 0600);
	if (fd < 0)
		return volume_errno(e, -fd, m->pool, m->name);
	if (fstat(fd, &st) < 0)
		return volume_errno(e, errno, m->pool, m->name);
	if (!S_ISREG(st.st_mode))
		return err_set(e, EINVAL, "volume-not-file",
			       "pool %s: \"%s\" is not a regular file", m->pool, m->name);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return take_fd(&fd);
}

/* volume_lease() - the file of a disk's lease, made where there is none; see storage/lease.h. */
static int volume_lease(struct priv *p, const struct msg_p_volume_open *m, struct err *e)
{
	struct msg_p_volume_open l = { .mode = 1 };
	int fd;

	memcpy(l.pool, m->pool, sizeof(l.pool));
	memcpy(l.name, m->lease, sizeof(l.name));
	fd = volume_fd(p, &l, e);
	if (fd != -ENOENT)
		return fd;
	l.mode = 2;
	fd = volume_fd(p, &l, e);
	if (fd != -EEXIST) /* another host was faster */
		return fd;
	l.mode = 1;
	return volume_fd(p, &l, e);
}

int volume_open(struct priv *p, const struct msg_p_volume_open *m, struct err *e)
{
	_cleanup_close_ int fd = volume_fd(p, m, e), lease = -1;
	struct stat st;

	if (fd < 0)
		return fd;
	if (*m->lease) {
		lease = volume_lease(p, m, e);
		if (lease < 0)
			return lease;
	}
	if (fstat(fd, &st) < 0)
		return volume_errno(e, errno, m->pool, m->name);
	priv_result(p, m->msg_id, (uint64_t)st.st_size, fd, lease, NULL);
	return 0;
}

int volume_unlink(struct priv *p, const struct msg_p_volume_unlink *m, struct err *e)
{
	struct priv_pool *pool = volume_pool(p, m->pool, e);

	if (!pool || volume_name_check(m->pool, m->name, e) < 0)
		return -e->num;
	if (unlinkat(pool->fd, m->name, 0) < 0)
		return volume_errno(e, errno, m->pool, m->name);
	priv_ok(p, m->msg_id);
	return 0;
}

int volume_rename(struct priv *p, const struct msg_p_volume_rename *m, struct err *e)
{
	struct priv_pool *pool = volume_pool(p, m->pool, e);

	if (!pool || volume_name_check(m->pool, m->from, e) < 0 ||
	    volume_name_check(m->pool, m->to, e) < 0)
		return -e->num;
	if (renameat2(pool->fd, m->from, pool->fd, m->to, RENAME_NOREPLACE) < 0)
		return volume_errno(e, errno, m->pool, errno == EEXIST ? m->to : m->from);
	/* the new name must outlive a power cut before anyone is told of it */
	if (fsync(pool->fd) < 0)
		return volume_errno(e, errno, m->pool, m->to);
	priv_ok(p, m->msg_id);
	return 0;
}

int volume_list(struct priv *p, const struct msg_p_volume_list *m, struct err *e)
{
	struct priv_pool *pool = volume_pool(p, m->pool, e);
	uint64_t count = 0;
	int fd = pool ? openat(pool->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

	if (!d) {
		if (fd >= 0)
			close(fd);
		return pool ? volume_errno(e, errno, m->pool, ".") : -ENOENT;
	}
	for (struct dirent *de; (de = readdir(d));) {
		struct msg_p_volume v = { 0 };
		struct stat st;

		if (!path_leaf_ok(de->d_name) ||
		    fstatat(fd, de->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
			continue;
		snprintf(v.name, sizeof(v.name), "%.127s", de->d_name);
		v.size_bytes = (uint64_t)st.st_size;
		v.allocated_bytes = (uint64_t)st.st_blocks * 512;
		v.mtime_s = st.st_mtime;
		if (msg_p_volume_send(p->core.conn, &v, m->msg_id) < 0)
			break;
		count++;
	}
	closedir(d);
	priv_result(p, m->msg_id, count, -1, -1, NULL);
	return 0;
}
