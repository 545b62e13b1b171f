/* store_sqlite.c - the sqlite row of store_ops.
 *
 * WAL, synchronous=FULL: what was committed survives a power cut. One connection writes and
 * checkpoints. A file that sqlite finds damaged (at open, by the quick check of its structure) is
 * refused and left as it is: to go on with an empty one would lose every guest's definition from
 * sight, quietly. Copies are made beside it, daily and before an upgrade (store_copy.c). A place
 * that cannot be written opens read-only. Statements are prepared once.
 */
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/overflow.h"
#include "common/units.h"
#include "vmd/core/store.h"

#define IDEM_KEEP_S (24 * 3600)
#define COPY_PAGES  64

enum {
	Q_PUT,
	Q_DEL,
	Q_GET,
	Q_LIST,
	Q_EVENT,
	Q_EVENT_PRUNE,
	Q_EVENT_LAST,
	Q_EVENTS,
	Q_AUDIT,
	Q_IDEM_PUT,
	Q_IDEM_GET,
	Q_IDEM_PRUNE,
	Q_COUNT
};

static const char *const store_sql[Q_COUNT] = {
	[Q_PUT] =
	    "INSERT INTO objects(kind, id, name, revision, doc, rt) VALUES(?1, ?2, ?3, ?4, ?5, ?6)"
	    " ON CONFLICT(kind, id) DO UPDATE SET name = ?3, revision = ?4, doc = ?5, rt = ?6",
	[Q_DEL] = "DELETE FROM objects WHERE kind = ?1 AND id = ?2",
	[Q_GET] =
	    "SELECT kind, id, name, revision, doc, rt FROM objects WHERE kind = ?1 AND id = ?2",
	[Q_LIST] =
	    "SELECT kind, id, name, revision, doc, rt FROM objects WHERE kind = ?1 ORDER BY id",
	[Q_EVENT] = "INSERT OR REPLACE INTO events(seq, json) VALUES(?1, ?2)",
	[Q_EVENT_PRUNE] = "DELETE FROM events WHERE seq <= ?1",
	[Q_EVENT_LAST] = "SELECT coalesce(max(seq), 0) FROM events",
	[Q_EVENTS] = "SELECT seq, json FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2",
	[Q_AUDIT] = "INSERT INTO audit(json) VALUES(?1)",
	[Q_IDEM_PUT] = "INSERT OR REPLACE INTO idempotency(key, answer, at) VALUES(?1, ?2, ?3)",
	[Q_IDEM_GET] = "SELECT answer FROM idempotency WHERE key = ?1 AND at > ?2",
	[Q_IDEM_PRUNE] = "DELETE FROM idempotency WHERE at <= ?1",
};

struct store_change {
	char kind[32], id[40];
	bool deleted;
};

struct store {
	sqlite3 *db;
	sqlite3_stmt *q[Q_COUNT];
	char path[512];
	struct store_copy *copy;
	bool writable, in_txn;
	store_watch_fn *watch;
	void *watch_arg;
	struct store_change *changes;
	size_t nchanges, cap;
};

static int store_errno(int rc)
{
	switch (rc & 0xff) {
	case SQLITE_FULL:
		return ENOSPC;
	case SQLITE_READONLY:
	case SQLITE_CANTOPEN:
	case SQLITE_PERM:
	case SQLITE_AUTH:
		return EROFS;
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return EUCLEAN;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return EBUSY;
	case SQLITE_NOMEM:
		return ENOMEM;
	case SQLITE_CONSTRAINT:
		return EEXIST;
	default:
		return EIO;
	}
}

static int store_fail(struct store *s, int rc, const char *what, struct err *e)
{
	int num = store_errno(rc);

	err_set(e, num, "store-failed", "database: cannot %s: %s", what, sqlite3_errmsg(s->db));
	err_hint(e, num == ENOSPC ? "free space on the file system of the state directory"
		    : num == EROFS
			? "make the state directory writable for the user that vmd's core runs as"
			: "vmctl doctor");
	return -num;
}

static int store_exec(struct store *s, const char *sql)
{
	return sqlite3_exec(s->db, sql, NULL, NULL, NULL);
}

static void sqlite_store_close(struct store *s)
{
	if (!s)
		return;
	store_copy_free(s->copy);
	for (int i = 0; i < Q_COUNT; i++)
		sqlite3_finalize(s->q[i]);
	sqlite3_close(s->db);
	free(s->changes);
	free(s);
}

/* store_probe() - the first look: sqlite opens lazily. 0, or an error of sqlite's. */
static int store_probe(struct store *s, char *why, size_t len)
{
	sqlite3_stmt *st = NULL;
	int r = sqlite3_prepare_v2(s->db, "SELECT count(*) FROM sqlite_master", -1, &st, NULL);

	if (r == SQLITE_OK)
		r = sqlite3_step(st);
	snprintf(why, len, "%.150s", sqlite3_errmsg(s->db));
	sqlite3_finalize(st);
	if (r != SQLITE_ROW)
		return r;
	return store_sound(s->db, why, len) ? SQLITE_OK : SQLITE_CORRUPT;
}

/* @vfs: NULL the usual one; @exclusive: nobody else opens it, no shared memory file is needed */
static struct store *store_try_open(const char *path, const char *name, int flags, const char *vfs,
				    bool exclusive, int *rc, char *why, size_t len)
{
	struct store *s = calloc(1, sizeof(*s));

	*rc = SQLITE_NOMEM;
	if (!s)
		return NULL;
	snprintf(s->path, sizeof(s->path), "%s", path);
	*rc = sqlite3_open_v2(name, &s->db, flags, vfs);
	if (*rc == SQLITE_OK) {
		sqlite3_busy_timeout(s->db, 2000);
		s->writable =
		    (flags & SQLITE_OPEN_READWRITE) && !sqlite3_db_readonly(s->db, "main");
		if (exclusive)
			store_exec(s, "PRAGMA locking_mode = EXCLUSIVE");
		*rc = store_probe(s, why, len);
	} else {
		snprintf(why, len, "%.150s", sqlite3_errstr(*rc));
	}
	if (*rc == SQLITE_OK)
		return s;
	sqlite_store_close(s);
	return NULL;
}

/* A WAL database where nothing can be written: sqlite wants its shared memory file, unless it is
 * told that there is nobody else (priv's lock sees to that); and where there is no WAL either,
 * that nothing changes. */
static struct store *store_try_read_only(const char *path, int *rc, char *why, size_t len)
{
	char uri[540];
	struct store *s =
	    store_try_open(path, path, SQLITE_OPEN_READONLY, "unix-none", true, rc, why, len);

	if (s || store_errno(*rc) == EUCLEAN)
		return s;
	snprintf(uri, sizeof(uri), "file:%s?immutable=1", path);
	return store_try_open(path, uri, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, NULL, false, rc,
			      why, len);
}

/* store_upgrade_copy() - what an older program left is kept as PATH.vN before it is changed. */
static int store_upgrade_copy(struct store *s, struct err *e)
{
	struct store_copy *at = NULL;
	sqlite3_stmt *st = NULL;
	int version = 0, r;
	char path[560];

	if (sqlite3_prepare_v2(s->db, "PRAGMA user_version", -1, &st, NULL) == SQLITE_OK &&
	    sqlite3_step(st) == SQLITE_ROW)
		version = sqlite3_column_int(st, 0);
	sqlite3_finalize(st);
	if (version <= 0 || version >= STORE_VERSION)
		return 0;
	snprintf(path, sizeof(path), "%s.v%d", s->path, version);
	r = store_copy_step(&at, s->db, path, -1, e);
	store_copy_free(at);
	if (r < 0)
		err_prefix(e, "before the upgrade from version %d", version);
	return r < 0 ? r : 0;
}

static int store_setup(struct store *s, struct err *e)
{
	int r;

	if (s->writable) {
		if (store_exec(s, "PRAGMA journal_mode = WAL") != SQLITE_OK ||
		    store_exec(s, "PRAGMA synchronous = FULL") != SQLITE_OK)
			s->writable = false;
	}
	/* sqlite opens lazily: a write that is undone shows whether writing works at all */
	if (s->writable) {
		r = store_exec(s, "BEGIN IMMEDIATE");
		if (r == SQLITE_OK)
			store_exec(s, "ROLLBACK");
		else if (store_errno(r) == EUCLEAN)
			return store_fail(s, r, "begin", e);
		else
			s->writable = false;
	}
	if (s->writable) {
		r = store_upgrade_copy(s, e);
		if (!r)
			r = migrate(s->db, e);
		if (r == -ENOSPC || r == -EROFS)
			s->writable = false;
		else if (r < 0)
			return r;
	}
	for (int i = 0; i < Q_COUNT; i++) {
		r = sqlite3_prepare_v3(s->db, store_sql[i], -1, SQLITE_PREPARE_PERSISTENT, &s->q[i],
				       NULL);
		if (r != SQLITE_OK)
			return store_fail(s, r, "prepare a statement", e);
	}
	return 0;
}

static struct store *sqlite_store_open(const char *path, struct err *e)
{
	struct store *s;
	char why[160] = "";
	int rc;

	s = store_try_open(path, path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL, false, &rc,
			   why, sizeof(why));
	if (!s && store_errno(rc) != EUCLEAN)
		s = store_try_read_only(path, &rc, why, sizeof(why));
	if (!s && store_errno(rc) == EUCLEAN)
		err_set(e, EUCLEAN, "database-damaged", "database %s is damaged: %s", path, why);
	else if (!s)
		err_set(e, store_errno(rc), "store-failed", "database %s: cannot be opened: %s",
			path, why);
	else if (store_setup(s, e) == 0)
		return s;
	sqlite_store_close(s);
	return NULL;
}

static bool sqlite_store_writable(struct store *s)
{
	return s->writable;
}

static int sqlite_store_copy(struct store *s, struct err *e)
{
	char path[560];

	snprintf(path, sizeof(path), "%s.copy", s->path);
	return store_copy_step(&s->copy, s->db, path, COPY_PAGES, e);
}

static int sqlite_store_begin(struct store *s, struct err *e)
{
	int r;

	if (!s->writable)
		return err_set(e, EROFS, "store-failed", "database: it is read-only");
	r = store_exec(s, "BEGIN IMMEDIATE");
	if (r != SQLITE_OK)
		return store_fail(s, r, "begin", e);
	s->in_txn = true;
	s->nchanges = 0;
	return 0;
}

static void sqlite_store_rollback(struct store *s)
{
	/* after SQLITE_FULL and the like sqlite has rolled back by itself */
	if (s->in_txn && !sqlite3_get_autocommit(s->db))
		store_exec(s, "ROLLBACK");
	s->in_txn = false;
	s->nchanges = 0;
}

static int sqlite_store_commit(struct store *s, struct err *e)
{
	int r = store_exec(s, "COMMIT");

	if (r != SQLITE_OK) {
		r = store_fail(s, r, "commit", e);
		sqlite_store_rollback(s);
		return r;
	}
	s->in_txn = false;
	for (size_t i = 0; s->watch && i < s->nchanges; i++)
		s->watch(s->watch_arg, s->changes[i].kind, s->changes[i].id, s->changes[i].deleted);
	s->nchanges = 0;
	return 0;
}

static void store_changed(struct store *s, const char *kind, const char *id, bool deleted)
{
	if (!s->watch)
		return;
	if (s->nchanges == s->cap) {
		size_t cap = s->cap ? s->cap * 2 : 64;
		struct store_change *p = realloc(s->changes, cap * sizeof(*p));

		if (!p)
			return;
		s->changes = p;
		s->cap = cap;
	}
	snprintf(s->changes[s->nchanges].kind, sizeof(s->changes->kind), "%s", kind);
	snprintf(s->changes[s->nchanges].id, sizeof(s->changes->id), "%s", id);
	s->changes[s->nchanges++].deleted = deleted;
}

static void store_bind(sqlite3_stmt *st, int i, const char *text)
{
	if (text)
		sqlite3_bind_text(st, i, text, -1, SQLITE_STATIC);
	else
		sqlite3_bind_null(st, i);
}

static int store_run(struct store *s, sqlite3_stmt *st, const char *what, struct err *e)
{
	int r = sqlite3_step(st), out = 0;

	if (r != SQLITE_DONE && r != SQLITE_ROW)
		out = store_fail(s, r, what, e);
	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	return out;
}

static int sqlite_store_put(struct store *s, const struct store_row *row, struct err *e)
{
	sqlite3_stmt *st = s->q[Q_PUT];
	int r;

	store_bind(st, 1, row->kind);
	store_bind(st, 2, row->id);
	store_bind(st, 3, row->name && *row->name ? row->name : NULL);
	sqlite3_bind_int64(st, 4, row->revision);
	store_bind(st, 5, row->doc);
	store_bind(st, 6, row->rt);
	r = store_run(s, st, "write an object", e);
	if (!r)
		store_changed(s, row->kind, row->id, false);
	return r;
}

static int sqlite_store_del(struct store *s, const char *kind, const char *id, struct err *e)
{
	int r;

	store_bind(s->q[Q_DEL], 1, kind);
	store_bind(s->q[Q_DEL], 2, id);
	r = store_run(s, s->q[Q_DEL], "delete an object", e);
	if (!r)
		store_changed(s, kind, id, true);
	return r;
}

static int store_walk(sqlite3_stmt *st, store_row_fn *fn, void *arg)
{
	int r, stop = 0;

	while (!stop && (r = sqlite3_step(st)) == SQLITE_ROW) {
		struct store_row row = {
			.kind = (const char *)sqlite3_column_text(st, 0),
			.id = (const char *)sqlite3_column_text(st, 1),
			.name = (const char *)sqlite3_column_text(st, 2),
			.revision = sqlite3_column_int64(st, 3),
			.doc = (const char *)sqlite3_column_text(st, 4),
			.rt = (const char *)sqlite3_column_text(st, 5),
		};

		stop = fn(arg, &row);
	}
	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	return stop ? 0 : r;
}

static int sqlite_store_get(struct store *s, const char *kind, const char *id, store_row_fn *fn,
			    void *arg)
{
	int r;

	store_bind(s->q[Q_GET], 1, kind);
	store_bind(s->q[Q_GET], 2, id);
	r = store_walk(s->q[Q_GET], fn, arg);
	return r == SQLITE_DONE || r == 0 ? 0 : -store_errno(r);
}

static int sqlite_store_list(struct store *s, const char *kind, store_row_fn *fn, void *arg,
			     struct err *e)
{
	int r;

	store_bind(s->q[Q_LIST], 1, kind);
	r = store_walk(s->q[Q_LIST], fn, arg);
	return r == SQLITE_DONE || r == 0 ? 0 : store_fail(s, r, "read objects", e);
}

static void sqlite_store_watch(struct store *s, store_watch_fn *fn, void *arg)
{
	s->watch = fn;
	s->watch_arg = arg;
}

static int sqlite_event_put(struct store *s, int64_t seq, const char *json, unsigned keep,
			    struct err *e)
{
	sqlite3_stmt *st = s->q[Q_EVENT];
	int r;

	sqlite3_bind_int64(st, 1, seq);
	store_bind(st, 2, json);
	r = store_run(s, st, "write an event", e);
	if (!r && seq % 256 == 0 && seq > (int64_t)keep) {
		sqlite3_bind_int64(s->q[Q_EVENT_PRUNE], 1, seq - (int64_t)keep);
		r = store_run(s, s->q[Q_EVENT_PRUNE], "drop old events", e);
	}
	return r;
}

static int64_t sqlite_event_last(struct store *s)
{
	sqlite3_stmt *st = s->q[Q_EVENT_LAST];
	int64_t seq = sqlite3_step(st) == SQLITE_ROW ? sqlite3_column_int64(st, 0) : 0;

	sqlite3_reset(st);
	return seq;
}

static int sqlite_events_since(struct store *s, int64_t seq, unsigned max, store_event_fn *fn,
			       void *arg)
{
	sqlite3_stmt *st = s->q[Q_EVENTS];
	int n = 0;

	sqlite3_bind_int64(st, 1, seq);
	sqlite3_bind_int64(st, 2, max);
	while (sqlite3_step(st) == SQLITE_ROW) {
		n++;
		if (fn(arg, sqlite3_column_int64(st, 0), (const char *)sqlite3_column_text(st, 1)))
			break;
	}
	sqlite3_reset(st);
	return n;
}

static int sqlite_audit_put(struct store *s, const char *json, struct err *e)
{
	store_bind(s->q[Q_AUDIT], 1, json);
	return store_run(s, s->q[Q_AUDIT], "write the audit trail", e);
}

static int sqlite_idem_put(struct store *s, const char *key, const char *answer, int64_t now_s,
			   struct err *e)
{
	sqlite3_stmt *st = s->q[Q_IDEM_PUT];
	int r;

	store_bind(st, 1, key);
	store_bind(st, 2, answer);
	sqlite3_bind_int64(st, 3, now_s);
	r = store_run(s, st, "keep an answer", e);
	if (!r) {
		sqlite3_bind_int64(s->q[Q_IDEM_PRUNE], 1, now_s - IDEM_KEEP_S);
		r = store_run(s, s->q[Q_IDEM_PRUNE], "drop old answers", e);
	}
	return r;
}

static int sqlite_idem_get(struct store *s, const char *key, int64_t now_s, char **answer)
{
	sqlite3_stmt *st = s->q[Q_IDEM_GET];
	int found = 0;

	store_bind(st, 1, key);
	sqlite3_bind_int64(st, 2, now_s - IDEM_KEEP_S);
	if (sqlite3_step(st) == SQLITE_ROW) {
		const char *text = (const char *)sqlite3_column_text(st, 0);

		*answer = text ? strdup(text) : NULL;
		found = *answer != NULL;
	}
	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	return found;
}

const struct store_ops store_sqlite = {
	.name = "sqlite",
	.open = sqlite_store_open,
	.close = sqlite_store_close,
	.writable = sqlite_store_writable,
	.copy = sqlite_store_copy,
	.begin = sqlite_store_begin,
	.commit = sqlite_store_commit,
	.rollback = sqlite_store_rollback,
	.put = sqlite_store_put,
	.del = sqlite_store_del,
	.get = sqlite_store_get,
	.list = sqlite_store_list,
	.watch = sqlite_store_watch,
	.event_put = sqlite_event_put,
	.event_last = sqlite_event_last,
	.events_since = sqlite_events_since,
	.audit_put = sqlite_audit_put,
	.idem_put = sqlite_idem_put,
	.idem_get = sqlite_idem_get,
};
