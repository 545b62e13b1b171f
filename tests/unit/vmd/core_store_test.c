/* core_store_test.c - the store: migrations from each old version, damage, transactions; and the
 * table of guest states. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmd/core/internal.h"

static char dir[64], path[128];

static int setup(void **state)
{
	snprintf(dir, sizeof(dir), "/tmp/core-store-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/vmd.db", dir);
	return 0;
}

static int teardown(void **state)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd) != 0;
}

static int seen_row(void *arg, const struct store_row *row)
{
	unsigned *n = arg;

	assert_string_equal(row->id, "11111111-2222-4333-8444-555555555555");
	assert_string_equal(row->doc, "{\"name\":\"web\"}");
	(*n)++;
	return 0;
}

static void fixture(int version)
{
	static const char *const made[] = {
		"CREATE TABLE objects(kind TEXT NOT NULL, id TEXT NOT NULL, name TEXT, revision "
		"INTEGER NOT NULL, doc TEXT NOT NULL,"
		" PRIMARY KEY(kind, id)) WITHOUT ROWID; CREATE TABLE events(seq INTEGER PRIMARY "
		"KEY, json TEXT NOT NULL);",
		"ALTER TABLE objects ADD COLUMN rt TEXT; CREATE UNIQUE INDEX objects_name ON "
		"objects(kind, name) WHERE name IS NOT NULL;"
		"CREATE TABLE audit(seq INTEGER PRIMARY KEY AUTOINCREMENT, json TEXT NOT NULL);",
	};
	char sql[64];
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	for (int i = 0; i < version && i < 2; i++)
		assert_int_equal(sqlite3_exec(db, made[i], NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(
	    sqlite3_exec(db,
			 "INSERT INTO objects(kind, id, name, revision, doc) VALUES('guest',"
			 "'11111111-2222-4333-8444-555555555555', 'web', 7, '{\"name\":\"web\"}')",
			 NULL, NULL, NULL),
	    SQLITE_OK);
	snprintf(sql, sizeof(sql), "PRAGMA user_version = %d", version);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
}

static void store_upgrades_each_old_version(void **state)
{
	for (int v = 1; v < STORE_VERSION; v++) {
		struct err e = { 0 };
		unsigned n = 0;
		bool moved;
		struct store *s;
		char *answer = NULL;

		unlink(path);
		fixture(v);
		s = store_sqlite.open(path, &moved, &e);
		assert_non_null(s);
		assert_false(moved);
		assert_int_equal(store_sqlite.list(s, "guest", seen_row, &n, &e), 0);
		assert_int_equal(n, 1);
		assert_int_equal(store_sqlite.idem_put(s, "k", "a", 1000, &e), 0);
		assert_int_equal(store_sqlite.idem_get(s, "k", 1000 + 3600, &answer), 1);
		free(answer);
		assert_int_equal(store_sqlite.idem_get(s, "k", 1000 + 25 * 3600, &answer), 0);
		store_sqlite.close(s);
	}
}

static void store_refuses_a_newer_version(void **state)
{
	struct err e = { 0 };
	bool moved;
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "PRAGMA user_version = 99", NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	assert_null(store_sqlite.open(path, &moved, &e));
	assert_string_equal(e.code, "database-newer");
	assert_int_equal(access(path, F_OK), 0);
}

static void store_moves_a_damaged_file_aside(void **state)
{
	struct err e = { 0 };
	bool moved = false;
	char junk[8192], cmd[200];
	struct store *s;
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);

	memset(junk, 0x5a, sizeof(junk));
	assert_int_equal(write(fd, junk, sizeof(junk)), sizeof(junk));
	close(fd);
	s = store_sqlite.open(path, &moved, &e);
	assert_non_null(s);
	assert_true(moved);
	assert_true(store_sqlite.writable(s));
	store_sqlite.close(s);
	snprintf(cmd, sizeof(cmd), "ls %s/vmd.db.damaged-* >/dev/null", dir);
	assert_int_equal(system(cmd), 0);
}

static void store_rolls_back_as_a_whole(void **state)
{
	struct err e = { 0 };
	bool moved;
	unsigned n = 0;
	struct store *s = store_sqlite.open(path, &moved, &e);
	struct store_row a = { "guest", "1", "web", 1, "{}", NULL },
			 b = { "guest", "2", "web", 1, "{}", NULL };

	assert_non_null(s);
	assert_int_equal(store_sqlite.begin(s, &e), 0);
	assert_int_equal(store_sqlite.put(s, &a, &e), 0);
	assert_int_equal(store_sqlite.put(s, &b, &e), -EEXIST); /* the name is taken */
	store_sqlite.rollback(s);
	assert_int_equal(store_sqlite.list(s, "guest", seen_row, &n, &e), 0);
	assert_int_equal(n, 0);
	store_sqlite.close(s);
}

static void guest_state_names_the_verb_that_helps(void **state)
{
	struct err e = { 0 };

	assert_int_equal(gstate_check("web", G_RUNNING, GV_RESUME, &e), -EBUSY);
	assert_string_equal(e.code, "guest-state-conflict");
	assert_non_null(strstr(e.detail, "running"));
	assert_non_null(strstr(e.hint, "vmctl stop web"));
	assert_int_equal(gstate_check("web", G_PAUSED, GV_START, &e), -EBUSY);
	assert_string_equal(e.hint, "vmctl resume web");
	assert_int_equal(gstate_check("web", G_STOPPED, GV_START, &e), 0);
}

static void guest_state_without_process_never_takes_live_verbs(void **state)
{
	for (int s = 0; s < G_STATES; s++) {
		assert_int_equal(gstate_parse(gstate_name((enum gstate)s)), s);
		if (gstate_has_process((enum gstate)s)) {
			assert_false(gstate_allows((enum gstate)s, GV_START));
			assert_false(gstate_allows((enum gstate)s, GV_DELETE));
			/* a process can die at any moment */
			assert_true(gstate_may_become((enum gstate)s, G_CRASHED));
		} else {
			assert_false(gstate_allows((enum gstate)s, GV_CONSOLE));
			assert_false(gstate_allows((enum gstate)s, GV_PAUSE));
		}
	}
}

static void port_spec_knows_every_kind(void **state)
{
	struct port_spec p;
	struct err e = { 0 };

	assert_int_equal(port_spec_parse("tcp:127.0.0.1:4000,connect", &p, &e), 0);
	assert_string_equal(p.kind, "tcp-connect");
	assert_string_equal(p.target, "127.0.0.1:4000");
	assert_int_equal(port_spec_parse("unix:/run/x", &p, &e), 0);
	assert_string_equal(p.kind, "unix-listen");
	assert_true(port_spec_host_path(&p));
	assert_int_equal(port_spec_parse("guest:db:serial1", &p, &e), 0);
	assert_false(port_spec_host_path(&p));
	assert_int_equal(port_spec_parse("pipe:/x", &p, &e), -EINVAL);
	assert_int_equal(port_spec_parse("file:/x,connect", &p, &e), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(store_upgrades_each_old_version, setup, teardown),
		cmocka_unit_test_setup_teardown(store_refuses_a_newer_version, setup, teardown),
		cmocka_unit_test_setup_teardown(store_moves_a_damaged_file_aside, setup, teardown),
		cmocka_unit_test_setup_teardown(store_rolls_back_as_a_whole, setup, teardown),
		cmocka_unit_test(guest_state_names_the_verb_that_helps),
		cmocka_unit_test(guest_state_without_process_never_takes_live_verbs),
		cmocka_unit_test(port_spec_knows_every_kind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
