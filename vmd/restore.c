/* restore.c - see restore.h. Nothing is thrown away: what was there is kept as vmd.db.damaged-TIME.
 *
 * Order: the copy is whole and synced under another name; the old WAL goes aside (sqlite would play
 * it into the copy); the old file gets its second name; the copy takes the first in one rename. A
 * crash in between leaves a data base that is refused again, or the restored one, never an empty
 * one.
 * Trust: runs as root in a directory that core's user owns: every step by descriptor, no link is
 * followed, and the daemon's own lock is held.
 */
#include "vmd/restore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/err.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"

static int restore_lock(const struct vmd_config *c, struct err *e)
{
	char path[300];

	/* a daemon that never ran here has no run directory: nobody to shut out */
	snprintf(path, sizeof(path), "%s/vmd.lock", c->run_dir);
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0 && errno != ENOENT)
		return err_set(e, errno, "restore-failed", "%s: %s", path, strerror(errno));
	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
		close(fd);
		err_set(e, EBUSY, "already-running", "a vmd runs in %s", c->run_dir);
		err_hint(e, "stop it first: systemctl stop vmd; guests run on");
		return -EBUSY;
	}
	return fd; /* held until exit */
}

static int restore_source(int db, const char *from, char name[64], struct err *e)
{
	static const char *const copies[] = { "vmd.db.copy", "vmd.db.copy.1" };
	int fd = -1;

	if (*from) {
		fd = strchr(from, '/') ? open(from, O_RDONLY | O_CLOEXEC)
				       : openat(db, from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		snprintf(name, 64, "%.63s", from);
		if (fd < 0)
			return err_set(e, errno, "restore-failed", "%s: %s", from, strerror(errno));
		return fd;
	}
	for (size_t i = 0; i < ARRAY_SIZE(copies) && fd < 0; i++) {
		fd = openat(db, copies[i], O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		snprintf(name, 64, "%s", copies[i]);
	}
	if (fd < 0) {
		err_set(e, ENOENT, "no-copy", "there is no copy of the data base");
		err_hint(e, "vmd --restore=FILE takes one of your own, --restore=empty begins a "
			    "new data base");
		return -ENOENT;
	}
	return fd;
}

static int restore_fill(int in, int out)
{
	static char buf[65536];
	long n;

	while ((n = io_read_full(in, buf, sizeof(buf))) > 0)
		if (io_write_full(out, buf, (size_t)n) < 0)
			return -errno;
	return n < 0 ? (int)n : fsync(out) < 0 ? -errno : 0;
}

static int restore_aside(int db, const char *end, const char *aside, bool keep_first)
{
	char from[32], to[96];

	snprintf(from, sizeof(from), "vmd.db%s", end);
	snprintf(to, sizeof(to), "%s%s", aside, end);
	if ((keep_first ? linkat(db, from, db, to, 0) : renameat(db, from, db, to)) < 0 &&
	    errno != ENOENT)
		return -errno;
	return 0;
}

static int restore_do(int db, const char *from, const char *aside, char name[64], struct err *e)
{
	bool empty = !strcmp(from, "empty");
	_cleanup_close_ int in = empty ? -1 : restore_source(db, from, name, e);
	char magic[16] = "";
	struct stat st;
	int ret = 0;

	if (!empty && in < 0)
		return in;
	if (!empty && (fstat(in, &st) < 0 || !S_ISREG(st.st_mode) ||
		       pread(in, magic, sizeof(magic), 0) != sizeof(magic) ||
		       memcmp(magic, "SQLite format 3", 16)))
		return err_set(e, EINVAL, "restore-failed", "%s is not an sqlite data base", name);
	unlinkat(db, "vmd.db.restored", 0);
	if (!empty) {
		_cleanup_close_ int out =
		    openat(db, "vmd.db.restored",
			   O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

		ret = out < 0 ? -errno : restore_fill(in, out);
	}
	if (!ret)
		ret = restore_aside(db, "-wal", aside, false);
	if (!ret)
		ret = restore_aside(db, "-shm", aside, false);
	if (!ret)
		ret = restore_aside(db, "", aside, !empty);
	if (!ret && !empty && renameat(db, "vmd.db.restored", db, "vmd.db") < 0)
		ret = -errno;
	if (!ret && fsync(db) < 0)
		ret = -errno;
	return ret < 0 ? err_set(e, -ret, "restore-failed", "the data base was not replaced: %s",
				 strerror(-ret))
		       : 0;
}

int restore_db(const struct vmd_config *c, const char *from)
{
	char dir[300], aside[64], name[64] = "nothing";
	struct err e = { 0 };
	int ret, db;

	snprintf(dir, sizeof(dir), "%s/db", c->state_dir);
	snprintf(aside, sizeof(aside), "vmd.db.damaged-%llu", (unsigned long long)clock_real_ms());
	ret = restore_lock(c, &e);
	db = ret < 0 && e.num ? -1 : open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (!e.num && db < 0)
		err_set(&e, errno, "restore-failed", "%s: %s", dir, strerror(errno));
	if (!e.num)
		restore_do(db, from, aside, name, &e);
	if (e.num) {
		fprintf(stderr, "vmd: %s%s%s\n", e.detail, *e.hint ? "; " : "", e.hint);
		return 1;
	}
	printf(
	    "%s/vmd.db is now %s; what was there is kept as %s\n"
	    "What changed since is not in it: vmctl ls, and vmctl events for processes that belong "
	    "to no guest on record.\n",
	    dir, !strcmp(from, "empty") ? "gone: the next start begins an empty one" : name, aside);
	return 0;
}
