/* store_copy.c - copies of the database while it is in use: PATH.copy and, one older, PATH.copy.1.
 *
 * sqlite's own backup, a few pages a call; what the same connection writes meanwhile goes into the
 * copy too. It takes its name only once it is whole, synced and found sound: a damaged database
 * never replaces a good copy. A damaged one is not opened (store_sqlite.c); `vmd --restore` puts a
 * copy in its place.
 */
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "vmd/core/store.h"

struct store_copy {
	sqlite3 *to;
	sqlite3_backup *run;
	char path[540];
};

bool store_sound(struct sqlite3 *db, char *why, size_t len)
{
	sqlite3_stmt *st = NULL;
	/* structure only, pages in order: a few ms for 10,000 guests */
	int r = sqlite3_prepare_v2(db, "PRAGMA quick_check(1)", -1, &st, NULL);
	bool bad = false;

	if (r == SQLITE_OK && (r = sqlite3_step(st)) == SQLITE_ROW) {
		const char *text = (const char *)sqlite3_column_text(st, 0);

		bad = !text || strcmp(text, "ok");
		snprintf(why, len, "%.150s", text ? text : "no answer");
		for (char *nl = why; (nl = strchr(nl, '\n'));)
			*nl = ' ';
	} else {
		bad = (r & 0xff) == SQLITE_CORRUPT || (r & 0xff) == SQLITE_NOTADB;
		snprintf(why, len, "%.150s", sqlite3_errmsg(db));
	}
	sqlite3_finalize(st);
	return !bad;
}

void store_copy_free(struct store_copy *c)
{
	char path[560];

	if (!c)
		return;
	if (c->run)
		sqlite3_backup_finish(c->run);
	sqlite3_close(c->to);
	snprintf(path, sizeof(path), "%s.new", c->path);
	unlink(path);
	free(c);
}

static struct store_copy *store_copy_new(sqlite3 *from, const char *path, struct err *e)
{
	struct store_copy *c = calloc(1, sizeof(*c));
	char tmp[560];

	if (!c) {
		err_set(e, ENOMEM, "no-memory", "no memory for a copy of the database");
		return NULL;
	}
	snprintf(c->path, sizeof(c->path), "%.500s", path);
	snprintf(tmp, sizeof(tmp), "%s.new", c->path);
	if (unlink(tmp) == 0 || errno == ENOENT) {
		if (sqlite3_open_v2(tmp, &c->to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
				    NULL) == SQLITE_OK)
			c->run = sqlite3_backup_init(c->to, "main", from, "main");
	}
	if (c->run)
		return c;
	err_set(e, EIO, "store-copy-failed", "database: no copy %s can be made: %s", tmp,
		c->to ? sqlite3_errmsg(c->to) : strerror(errno));
	store_copy_free(c);
	return NULL;
}

static int store_copy_sync(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int store_copy_name(struct store_copy *c, struct err *e)
{
	char tmp[560], older[560], why[160] = "";
	bool sound;

	snprintf(tmp, sizeof(tmp), "%s.new", c->path);
	snprintf(older, sizeof(older), "%s.1", c->path);
	/* one file: no WAL beside it that could be lost or stay behind */
	sqlite3_exec(c->to, "PRAGMA journal_mode = DELETE", NULL, NULL, NULL);
	sound = store_sound(c->to, why, sizeof(why));
	sqlite3_close(c->to);
	c->to = NULL;
	if (!sound)
		return err_set(e, EUCLEAN, "database-damaged",
			       "database: a copy of it is damaged (%s): the database is, too; its "
			       "last good copy stays",
			       why);
	if (store_copy_sync(tmp) < 0 || (rename(c->path, older) < 0 && errno != ENOENT) ||
	    rename(tmp, c->path) < 0)
		return err_set(e, errno, "store-copy-failed", "database: copy %s: %s", c->path,
			       strerror(errno));
	return 0;
}

int store_copy_step(struct store_copy **at, struct sqlite3 *from, const char *path, int pages,
		    struct err *e)
{
	int r;

	if (!*at && !(*at = store_copy_new(from, path, e)))
		return -e->num;
	r = sqlite3_backup_step((*at)->run, pages);
	if (r == SQLITE_OK || r == SQLITE_BUSY || r == SQLITE_LOCKED)
		return 1;
	sqlite3_backup_finish((*at)->run);
	(*at)->run = NULL;
	if (r == SQLITE_DONE)
		r = store_copy_name(*at, e);
	else
		r = err_set(e, (r & 0xff) == SQLITE_FULL ? ENOSPC : EIO, "store-copy-failed",
			    "database: copy %s: %s", path, sqlite3_errmsg((*at)->to));
	store_copy_free(*at);
	*at = NULL;
	return r;
}
