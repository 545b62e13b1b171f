/* path.c - names to descriptors, never leaving a directory that the administrator allowed.
 * openat2(2): RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, so that neither "..",
 * nor a link planted by whoever may write there, leads elsewhere; there is no check-then-open to
 * race with.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "vmd/priv/priv.h"

int path_open_beneath(int dir_fd, const char *name, int flags, mode_t mode)
{
	struct open_how how = {
		.flags = (uint64_t)(flags | O_CLOEXEC | O_NOCTTY),
		.mode = flags & O_CREAT ? mode : 0,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	long fd;

	do
		fd = syscall(SYS_openat2, dir_fd, name, &how, sizeof(how));
	while (fd < 0 && (errno == EINTR || errno == EAGAIN));
	return fd < 0 ? -errno : (int)fd;
}

int path_open_dir(const char *path, bool create, mode_t mode)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT && create) {
		if (mkdir(path, mode) < 0 && errno != EEXIST)
			return -errno;
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	return fd < 0 ? -errno : fd;
}

int path_under_roots(const char *roots, const char *path, const char **rest)
{
	for (const char *r = roots; *r;) {
		size_t n = strcspn(r, ":");
		char root[512];

		if (n && n < sizeof(root)) {
			size_t bare = n;

			memcpy(root, r, n);
			while (bare > 1 && root[bare - 1] == '/')
				bare--;
			root[bare] = '\0';
			if (!strncmp(path, root, bare) &&
			    (path[bare] == '/' || path[bare] == '\0' || bare == 1)) {
				int fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

				if (fd < 0)
					return -errno;
				*rest = path + bare + strspn(path + bare, "/");
				if (!**rest)
					*rest = ".";
				return fd;
			}
		}
		r += n + (r[n] == ':');
	}
	return -EACCES;
}

bool path_leaf_ok(const char *name)
{
	size_t n = strlen(name);

	if (!n || n > 127 || name[0] == '.' || name[0] == '-' || strstr(name, ".."))
		return false;
	return strspn(name,
		      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@+:") == n;
}
