/* chardev.c - the far side of a guest's serial or console port, opened here because a jail has no
 * names.
 *
 * Files, sockets and ttys lie beneath <run>/serial (a bare name) or a directory of serial_roots (an
 * absolute path). A unix socket is bound or connected through /proc/self/fd/DIR/name, so that the
 * directory is the one that was checked. tcp: "ADDRESS:PORT", numeric; listening is on that address
 * only.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/text.h"
#include "vmd/priv/priv.h"

static int chardev_bad(struct err *e, const struct msg_p_chardev_open *m, int num)
{
	err_set(e, num, num == EADDRINUSE ? "port-taken" : "port-failed", "port %s:%.200s: %s",
		m->kind, m->path, strerror(num));
	if (num == EADDRINUSE)
		err_hint(e, "ss -lnp tells who has it; or give the port another address");
	return -num;
}

/* chardev_dir() - the directory that @path lies in; @leaf: the name in it. fd or -errno with @e. */
static int chardev_dir(struct priv *p, const struct msg_p_chardev_open *m, char leaf[128],
		       struct err *e)
{
	const char *rest = m->path;
	int root, dir;

	if (m->path[0] != '/') {
		mkdirat(p->run_fd, "serial", 0711);
		root = openat(p->run_fd, "serial", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	} else {
		root = path_under_roots(p->cfg->serial_roots, m->path, &rest);
		if (root == -EACCES) {
			err_set(e, EACCES, "port-outside-roots",
				"port path \"%.200s\" lies beneath no directory of serial_roots",
				m->path);
			err_hint(e,
				 "use a bare name (it will lie in %.100s/serial), or add its "
				 "directory to serial_roots",
				 p->cfg->run_dir);
			return -EACCES;
		}
	}
	if (root < 0)
		return chardev_bad(e, m, root == -1 ? errno : -root);
	const char *slash = strrchr(rest, '/');

	if (!path_leaf_ok(slash ? slash + 1 : rest)) {
		close(root);
		return err_set(e, EINVAL, "bad-name", "\"%.200s\" is no name for a port", m->path);
	}
	snprintf(leaf, 128, "%.127s", slash ? slash + 1 : rest);
	if (!slash)
		return root;
	char sub[256];

	snprintf(sub, sizeof(sub), "%.*s", (int)(slash - rest), rest);
	dir = path_open_beneath(root, sub, O_RDONLY | O_DIRECTORY, 0);
	close(root);
	return dir < 0 ? chardev_bad(e, m, -dir) : dir;
}

static int chardev_pty(struct priv *p, const struct msg_p_chardev_open *m, struct err *e)
{
	_cleanup_close_ int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	int unlock = 0;
	unsigned n;

	if (fd < 0 || ioctl(fd, TIOCSPTLCK, &unlock) < 0 || ioctl(fd, TIOCGPTN, &n) < 0)
		return chardev_bad(e, m, errno);
	/* raw from the start: what a guest prints is not to be echoed back at it */
	struct termios t;
	char name[32];

	if (tcgetattr(fd, &t) == 0) {
		cfmakeraw(&t);
		tcsetattr(fd, TCSANOW, &t);
	}
	snprintf(name, sizeof(name), "/dev/pts/%u", n);
	priv_result(p, m->msg_id, 0, fd, -1, name);
	return 0;
}

static int chardev_file(struct priv *p, const struct msg_p_chardev_open *m, bool tty, struct err *e)
{
	char leaf[128];
	_cleanup_close_ int dir = chardev_dir(p, m, leaf, e);
	struct stat st;

	if (dir < 0)
		return dir;
	int flags = tty ? O_RDWR | O_NONBLOCK
			: O_WRONLY | O_CREAT | O_NONBLOCK | (m->append ? O_APPEND : O_TRUNC);
	_cleanup_close_ int fd = path_open_beneath(dir, leaf, flags, 0600);

	if (fd < 0)
		return chardev_bad(e, m, -fd);
	if (fstat(fd, &st) < 0 || (tty ? !isatty(fd) : !S_ISREG(st.st_mode)))
		return err_set(e, EINVAL, "port-failed", "port path \"%.200s\" is not a %s",
			       m->path, tty ? "terminal" : "regular file");
	if (tty) {
		struct termios t;

		if (tcgetattr(fd, &t) == 0) {
			cfmakeraw(&t);
			t.c_cflag |= CLOCAL | CREAD;
			tcsetattr(fd, TCSANOW, &t);
		}
	}
	priv_result(p, m->msg_id, 0, fd, -1, m->path);
	return 0;
}

static int chardev_unix(struct priv *p, const struct msg_p_chardev_open *m, bool listening,
			struct err *e)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char leaf[128], text[400];
	_cleanup_close_ int dir = chardev_dir(p, m, leaf, e);
	struct stat st;

	if (dir < 0)
		return dir;
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return chardev_bad(e, m, errno);
	if ((size_t)snprintf(sa.sun_path, sizeof(sa.sun_path), "/proc/self/fd/%d/%.90s", dir,
			     leaf) >= sizeof(sa.sun_path) ||
	    strlen(leaf) > 80)
		return chardev_bad(e, m, ENAMETOOLONG);
	if (listening) {
		/* of an earlier run: only a socket is ever removed */
		if (fstatat(dir, leaf, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISSOCK(st.st_mode))
			unlinkat(dir, leaf, 0);
		if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 4) < 0)
			return chardev_bad(e, m, errno);
		if (fchmodat(dir, leaf, 0600, 0) < 0)
			return chardev_bad(e, m, errno);
	} else if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		return chardev_bad(e, m, errno);
	}
	if (m->path[0] == '/')
		snprintf(text, sizeof(text), "%s", m->path);
	else
		snprintf(text, sizeof(text), "%.200s/serial/%.127s", p->cfg->run_dir, leaf);
	priv_result(p, m->msg_id, 0, fd, -1, text);
	return 0;
}

static int chardev_address(const char *text, struct sockaddr_storage *ss, socklen_t *len)
{
	const char *colon = strrchr(text, ':');
	char host[64], *end;

	if (!colon || colon == text || (size_t)(colon - text) >= sizeof(host))
		return -EINVAL;
	snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
	unsigned long port = strtoul(colon + 1, &end, 10);

	if (*end || end == colon + 1 || port > 65535)
		return -EINVAL;
	memset(ss, 0, sizeof(*ss));
	struct sockaddr_in *v4 = (struct sockaddr_in *)ss;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ss;
	size_t n = strlen(host);

	if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)port);
		*len = sizeof(*v4);
		return 0;
	}
	if (n > 2 && host[0] == '[' && host[n - 1] == ']') {
		host[n - 1] = '\0';
		if (inet_pton(AF_INET6, host + 1, &v6->sin6_addr) == 1) {
			v6->sin6_family = AF_INET6;
			v6->sin6_port = htons((uint16_t)port);
			*len = sizeof(*v6);
			return 0;
		}
	}
	return -EINVAL;
}

static int chardev_tcp(struct priv *p, const struct msg_p_chardev_open *m, bool listening,
		       struct err *e)
{
	struct sockaddr_storage ss;
	socklen_t len;
	int one = 1;

	if (chardev_address(m->path, &ss, &len) < 0)
		return err_set(e, EINVAL, "bad-address",
			       "port address \"%.200s\" is not ADDRESS:PORT, as 127.0.0.1:4555",
			       m->path);
	_cleanup_close_ int fd =
	    socket(ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return chardev_bad(e, m, errno);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (listening ? bind(fd, (struct sockaddr *)&ss, len) < 0 || listen(fd, 4) < 0
		      : connect(fd, (struct sockaddr *)&ss, len) < 0 && errno != EINPROGRESS)
		return chardev_bad(e, m, errno);
	priv_result(p, m->msg_id, 0, fd, -1, m->path);
	return 0;
}

/* "log" needs no name: it is the guest's own, and outlives its process */
static int chardev_log(struct priv *p, const struct msg_p_chardev_open *m, struct err *e)
{
	_cleanup_close_ int fd = guest_log_port_fd(p, m->uuid, m->port, true);

	if (fd < 0)
		return chardev_bad(e, m, -fd);
	priv_result(p, m->msg_id, 0, fd, -1, m->port);
	return 0;
}

int chardev_open(struct priv *p, const struct msg_p_chardev_open *m, struct err *e)
{
	static const char *const kinds[] = { "pty",	   "file",	  "log",
					     "tty",	   "unix-listen", "unix-connect",
					     "tcp-listen", "tcp-connect", NULL };

	if (!strcmp(m->kind, "pty"))
		return chardev_pty(p, m, e);
	if (!strcmp(m->kind, "log"))
		return chardev_log(p, m, e);
	if (!strcmp(m->kind, "file"))
		return chardev_file(p, m, false, e);
	if (!strcmp(m->kind, "tty"))
		return chardev_file(p, m, true, e);
	if (!strcmp(m->kind, "unix-listen") || !strcmp(m->kind, "unix-connect"))
		return chardev_unix(p, m, m->kind[5] == 'l', e);
	if (!strcmp(m->kind, "tcp-listen") || !strcmp(m->kind, "tcp-connect"))
		return chardev_tcp(p, m, m->kind[4] == 'l', e);
	err_set(e, EINVAL, "bad-port-kind", "port kind \"%s\" is unknown", m->kind);
	if (suggest(m->kind, kinds))
		err_hint(e, "did you mean %s?", suggest(m->kind, kinds));
	return -EINVAL;
}
