/* migrate.c - schema versions of the database (PRAGMA user_version), each step a row here.
 *
 * A database of any older version is brought up in one transaction: either all steps are done or
 * none. A newer one is refused: an older program must not guess. Rows are never edited once
 * released; new steps go below. tests/unit/vmd/core_migrate_test.c holds a fixture of each old
 * version.
 */
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>

#include "common/overflow.h"
#include "vmd/core/store.h"

static const char *const migrate_steps[STORE_VERSION] = {
	/* 1: objects and events */
	"CREATE TABLE objects(kind TEXT NOT NULL, id TEXT NOT NULL, name TEXT, revision INTEGER "
	"NOT NULL, doc TEXT NOT NULL,"
	" PRIMARY KEY(kind, id)) WITHOUT ROWID;"
	"CREATE TABLE events(seq INTEGER PRIMARY KEY, json TEXT NOT NULL);",
	/* 2: private facts of an object (pid, uid slot, taps), unique names, the audit trail */
	"ALTER TABLE objects ADD COLUMN rt TEXT;"
	"CREATE UNIQUE INDEX objects_name ON objects(kind, name) WHERE name IS NOT NULL;"
	"CREATE TABLE audit(seq INTEGER PRIMARY KEY AUTOINCREMENT, json TEXT NOT NULL);",
	/* 3: answers kept for a repeated Idempotency-Key */
	"CREATE TABLE idempotency(key TEXT PRIMARY KEY, answer TEXT NOT NULL, at INTEGER NOT NULL) "
	"WITHOUT ROWID;"
	"CREATE INDEX idempotency_at ON idempotency(at);",
};

static int migrate_version(sqlite3 *db, int *version, struct err *e)
{
	sqlite3_stmt *st;
	int r = sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &st, NULL);

	if (r == SQLITE_OK && (r = sqlite3_step(st)) == SQLITE_ROW)
		*version = sqlite3_column_int(st, 0);
	sqlite3_finalize(st);
	if (r != SQLITE_ROW)
		return err_set(e, r == SQLITE_NOTADB || r == SQLITE_CORRUPT ? EUCLEAN : EIO,
			       "database-damaged", "database: cannot read its version: %s",
			       sqlite3_errmsg(db));
	return 0;
}

int migrate(struct sqlite3 *db, struct err *e)
{
	char pragma[48];
	int version = 0, r;

	r = migrate_version(db, &version, e);
	if (r < 0)
		return r;
	if (version == STORE_VERSION)
		return 0;
	if (version > STORE_VERSION || version < 0) {
		err_set(e, EPROTO, "database-newer",
			"database: its version %d is newer than this program's %d", version,
			STORE_VERSION);
		err_hint(
		    e,
		    "install the newer vmd again, or restore the database from before the upgrade");
		return -EPROTO;
	}
	r = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
	for (int v = version; r == SQLITE_OK && v < STORE_VERSION; v++)
		r = sqlite3_exec(db, migrate_steps[v], NULL, NULL, NULL);
	snprintf(pragma, sizeof(pragma), "PRAGMA user_version = %d", STORE_VERSION);
	if (r == SQLITE_OK)
		r = sqlite3_exec(db, pragma, NULL, NULL, NULL);
	if (r == SQLITE_OK)
		r = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
	if (r != SQLITE_OK) {
		int num = r == SQLITE_FULL				 ? ENOSPC
			  : r == SQLITE_READONLY || r == SQLITE_CANTOPEN ? EROFS
			  : r == SQLITE_CORRUPT || r == SQLITE_NOTADB	 ? EUCLEAN
									 : EIO;

		err_set(e, num, "database-upgrade-failed",
			"database: upgrade from version %d to %d failed: %s", version,
			STORE_VERSION, sqlite3_errmsg(db));
		sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
		return -num;
	}
	return 0;
}
