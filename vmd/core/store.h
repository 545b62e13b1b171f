/* store.h - where objects are kept: one row of operations, sqlite now, a cluster's engine later.
 *
 * Rows are opaque here: kind, id, name (unique in its kind unless NULL), revision, the document and
 * private facts as JSON text.
 * Writes go between begin() and commit(); a failed commit leaves nothing of them. Watchers run
 * after a commit, once a changed row. Events, the audit trail and idempotency keys are logs beside
 * the objects.
 * Threading: one thread, one connection (it writes and checkpoints: sqlite's WAL-reset bug needs
 * two).
 * Errors: -EUCLEAN damaged, -ENOSPC full, -EROFS not writable, -EIO.
 */
#ifndef VMD_CORE_STORE_H
#define VMD_CORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct store;
struct store_row {
	const char *kind, *id, *name;
	int64_t revision;
	const char *doc, *rt; /* rt may be NULL */
};
typedef int store_row_fn(void *arg, const struct store_row *row); /* non-zero ends the walk */
typedef void store_watch_fn(void *arg, const char *kind, const char *id, bool deleted);
typedef int store_event_fn(void *arg, int64_t seq, const char *json);

struct store_ops {
	const char *name;
	/* @path: of the database file. A damaged one is left as it is and not opened: -EUCLEAN, with
	 * what is wrong. Fails with -EROFS where nothing can be written and no readable file is
	 * there. */
	struct store *(*open)(const char *path, struct err *e);
	void (*close)(struct store *s);
	bool (*writable)(struct store *s);
	/* A copy beside the database, a few pages a call, between transactions. 1: call again; 0: it
	 * is there; -EUCLEAN: the database is damaged. */
	int (*copy)(struct store *s, struct err *e);
	int (*begin)(struct store *s, struct err *e);
	int (*commit)(struct store *s, struct err *e);
	void (*rollback)(struct store *s);
	int (*put)(struct store *s, const struct store_row *row, struct err *e);
	int (*del)(struct store *s, const char *kind, const char *id, struct err *e);
	int (*get)(struct store *s, const char *kind, const char *id, store_row_fn *fn, void *arg);
	int (*list)(struct store *s, const char *kind, store_row_fn *fn, void *arg, struct err *e);
	void (*watch)(struct store *s, store_watch_fn *fn, void *arg);
	int (*event_put)(struct store *s, int64_t seq, const char *json, unsigned keep,
			 struct err *e);
	int64_t (*event_last)(struct store *s);
	int (*events_since)(struct store *s, int64_t seq, unsigned max, store_event_fn *fn,
			    void *arg);
	int (*audit_put)(struct store *s, const char *json, struct err *e);
	/* Idempotency keys: put at the answer, looked up before the act, gone after a day. */
	int (*idem_put)(struct store *s, const char *key, const char *answer, int64_t now_s,
			struct err *e);
	int (*idem_get)(struct store *s, const char *key, int64_t now_s,
			char **answer); /* 1 found, 0 not */
};

extern const struct store_ops store_sqlite;

#define STORE_VERSION 3
struct sqlite3;

/* ---- store_copy.c ---- */
struct store_copy;
/* store_copy_step() - @pages more (-1: all) of @from into @path, *@at NULL to begin. As copy(). */
int store_copy_step(struct store_copy **at, struct sqlite3 *from, const char *path, int pages,
		    struct err *e);
void store_copy_free(struct store_copy *c); /* given up: nothing of it stays */
/* store_sound() - does the structure hold? If not, @why. */
bool store_sound(struct sqlite3 *db, char *why, size_t len);

/* migrate() - bring @db from whatever version it has to STORE_VERSION, in one transaction. -EPROTO:
 * newer than this program. */
int migrate(struct sqlite3 *db, struct err *e);

#endif
