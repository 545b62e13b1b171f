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
#include <sys/stat.h>
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

/* guests in the copy that was made before the upgrade from @version */
static int kept_version(int version)
{
	char copy[200];
	sqlite3_stmt *st;
	sqlite3 *db;
	int n;

	snprintf(copy, sizeof(copy), "%s.v%d", path, version);
	assert_int_equal(sqlite3_open_v2(copy, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, "SELECT count(*) FROM objects", -1, &st, NULL),
			 SQLITE_OK);
	assert_int_equal(sqlite3_step(st), SQLITE_ROW);
	n = sqlite3_column_int(st, 0);
	sqlite3_finalize(st);
	sqlite3_close(db);
	return n;
}

static void store_upgrades_each_old_version(void **state)
{
	for (int v = 1; v < STORE_VERSION; v++) {
		struct err e = { 0 };
		unsigned n = 0;
		struct store *s;
		char *answer = NULL;

		unlink(path);
		fixture(v);
		s = store_sqlite.open(path, &e);
		assert_non_null(s);
		assert_int_equal(kept_version(v), 1);
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
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "PRAGMA user_version = 99", NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	assert_null(store_sqlite.open(path, &e));
	assert_string_equal(e.code, "database-newer");
	assert_int_equal(access(path, F_OK), 0);
}

static void store_refuses_a_damaged_file_and_leaves_it(void **state)
{
	struct err e = { 0 };
	char junk[8192], again[8192];
	int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);

	memset(junk, 0x5a, sizeof(junk));
	assert_int_equal(write(fd, junk, sizeof(junk)), sizeof(junk));
	assert_null(store_sqlite.open(path, &e));
	assert_int_equal(e.num, EUCLEAN);
	assert_string_equal(e.code, "database-damaged");
	assert_int_equal(pread(fd, again, sizeof(again), 0), sizeof(again));
	assert_memory_equal(junk, again, sizeof(junk));
	close(fd);
}

static void put_one(struct store *s, const char *id)
{
	static char doc[4000];
	struct store_row row = { "guest", id, id, 1, doc, NULL };
	struct err e = { 0 };

	memset(doc, ' ', sizeof(doc) - 1);
	memcpy(doc, "{}", 2);
	assert_int_equal(store_sqlite.begin(s, &e), 0);
	assert_int_equal(store_sqlite.put(s, &row, &e), 0);
	assert_int_equal(store_sqlite.commit(s, &e), 0);
}

/* all but the first page overwritten: more than sqlite has in memory */
static void damage(void)
{
	char junk[4096];
	struct stat st;
	int fd = open(path, O_WRONLY);

	memset(junk, 0xa5, sizeof(junk));
	assert_int_equal(fstat(fd, &st), 0);
	for (off_t at = 4096; at < st.st_size; at += 4096)
		assert_int_equal(pwrite(fd, junk, sizeof(junk), at), sizeof(junk));
	close(fd);
}

static int count_row(void *arg, const struct store_row *row)
{
	++*(unsigned *)arg;
	return 0;
}

static void store_copy_takes_what_is_written_meanwhile(void **state)
{
	char copy[200], id[16];
	struct err e = { 0 };
	struct store *s = store_sqlite.open(path, &e);
	unsigned n = 0, calls = 0;
	int r;

	assert_non_null(s);
	for (int i = 0; i < 300; i++) {
		snprintf(id, sizeof(id), "g%d", i);
		put_one(s, id);
	}
	while ((r = store_sqlite.copy(s, &e)) > 0) {
		calls++;
		snprintf(id, sizeof(id), "late%u", calls);
		put_one(s, id);
	}
	assert_int_equal(r, 0);
	assert_true(calls > 1);
	store_sqlite.close(s);
	snprintf(copy, sizeof(copy), "%s.copy", path);
	s = store_sqlite.open(copy, &e);
	assert_non_null(s);
	assert_int_equal(store_sqlite.list(s, "guest", count_row, &n, &e), 0);
	assert_int_equal(n, 300 + calls);
	store_sqlite.close(s);
}

static void store_copy_of_a_damaged_file_replaces_no_good_one(void **state)
{
	char copy[200], id[16];
	struct err e = { 0 };
	struct store *s = store_sqlite.open(path, &e);
	struct stat before, after;
	int r;

	assert_non_null(s);
	for (int i = 0; i < 1500; i++) {
		snprintf(id, sizeof(id), "g%d", i);
		put_one(s, id);
	}
	while ((r = store_sqlite.copy(s, &e)) > 0)
		;
	assert_int_equal(r, 0);
	snprintf(copy, sizeof(copy), "%s.copy", path);
	assert_int_equal(stat(copy, &before), 0);
	store_sqlite.close(s); /* checkpoints: the pages are in the file */
	s = store_sqlite.open(path, &e);
	assert_non_null(s);
	damage();
	while ((r = store_sqlite.copy(s, &e)) > 0)
		;
	assert_int_equal(r, -EUCLEAN);
	assert_int_equal(stat(copy, &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	store_sqlite.close(s);
	assert_null(store_sqlite.open(path, &e));
	assert_string_equal(e.code, "database-damaged");
}

static void store_rolls_back_as_a_whole(void **state)
{
	struct err e = { 0 };
	unsigned n = 0;
	struct store *s = store_sqlite.open(path, &e);
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
		cmocka_unit_test_setup_teardown(store_refuses_a_damaged_file_and_leaves_it, setup,
						teardown),
		cmocka_unit_test_setup_teardown(store_copy_takes_what_is_written_meanwhile, setup,
						teardown),
		cmocka_unit_test_setup_teardown(store_copy_of_a_damaged_file_replaces_no_good_one,
						setup, teardown),
		cmocka_unit_test_setup_teardown(store_rolls_back_as_a_whole, setup, teardown),
		cmocka_unit_test(guest_state_names_the_verb_that_helps),
		cmocka_unit_test(guest_state_without_process_never_takes_live_verbs),
		cmocka_unit_test(port_spec_knows_every_kind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
