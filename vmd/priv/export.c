/* export.c - the sockets that disks are exported on over NBD: RUN/nbd/UUID.sock, mode 0600.
 *
 * Made here, because core has no names; served by a jailed vmd-image. The name is a UUID, so nothing
 * but a socket of ours is ever replaced or removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "vmd/priv/priv.h"

#define EXPORT_BACKLOG 16

static int export_dir(struct priv *p)
{
	if (mkdirat(p->run_fd, "nbd", 0711) < 0 && errno != EEXIST)
		return -errno;
	int fd = openat(p->run_fd, "nbd", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	return fd < 0 ? -errno : fd;
}

static int export_bad(struct err *e, const char *id, int num)
{
	return err_set(e, num, "export-failed", "socket nbd/%s.sock: %s", id, strerror(num));
}

int export_listen(struct priv *p, const struct msg_p_export_listen *m, struct err *e)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char leaf[64], text[400];

	if (!uuid_valid(m->id))
		return err_set(e, EINVAL, "bad-uuid", "\"%s\" is not a UUID", m->id);
	_cleanup_close_ int dir = export_dir(p);

	if (dir < 0)
		return export_bad(e, m->id, -dir);
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return export_bad(e, m->id, errno);
	snprintf(leaf, sizeof(leaf), "%s.sock", m->id);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "/proc/self/fd/%d/%s", dir, leaf);
	if (unlinkat(dir, leaf, 0) < 0 && errno != ENOENT)
		return export_bad(e, m->id, errno);
	/* nobody connects before the mode is right: it does not listen yet */
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || fchmodat(dir, leaf, 0600, 0) < 0 ||
	    listen(fd, EXPORT_BACKLOG) < 0)
		return export_bad(e, m->id, errno);
	snprintf(text, sizeof(text), "%.300s/nbd/%s", p->cfg->run_dir, leaf);
	priv_result(p, m->msg_id, 0, fd, -1, text);
	return 0;
}

int export_gone(struct priv *p, const struct msg_p_export_gone *m, struct err *e)
{
	char leaf[64];

	if (!uuid_valid(m->id))
		return err_set(e, EINVAL, "bad-uuid", "\"%s\" is not a UUID", m->id);
	_cleanup_close_ int dir = export_dir(p);

	snprintf(leaf, sizeof(leaf), "%s.sock", m->id);
	if (dir < 0 || (unlinkat(dir, leaf, 0) < 0 && errno != ENOENT))
		return export_bad(e, m->id, dir < 0 ? -dir : errno);
	priv_ok(p, m->msg_id);
	return 0;
}
