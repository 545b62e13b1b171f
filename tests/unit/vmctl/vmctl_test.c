/* vmctl_test.c - the vmctl program against a real api process whose core is played by the test:
 * output, exit codes, waiting, and that help, manual and completion agree with the table.
 */
#include "tests/unit/api/fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/schema.h"
#include "common/units.h"

#define UUID1 "11111111-1111-4111-8111-111111111111"
#define UUID2 "22222222-2222-4222-8222-222222222222"
#define OP1   "99999999-9999-4999-8999-999999999999"

#define assert_has(text, part) \
	do { \
		if (!strstr(text, part)) \
			fail_msg("\"%s\" is not in: %s", part, text); \
	} while (0)

struct run {
	pid_t pid;
	int out;
	char text[1 << 18];
};

static struct run run;

static const char *program(void)
{
	static char path[1024];
	char self[900] = "";

	/* BUILD/tests/unit/vmctl/vmctl_test → BUILD/vmctl */
	if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
		return "vmctl";
	snprintf(path, sizeof(path), "%s/../../../vmctl", dirname(self));
	return path;
}

/* start vmctl with @words (split at spaces), both outputs in one pipe */
static void vmctl_start(struct fixture *f, const char *words)
{
	char *argv[32], copy[1024], *save = NULL;
	int p[2], n = 0;

	assert_int_equal(pipe(p), 0);
	snprintf(copy, sizeof(copy), "%s", words);
	argv[n++] = (char *)"vmctl";
	if (f) {
		argv[n++] = (char *)"--socket";
		argv[n++] = f->sock;
	}
	for (char *w = strtok_r(copy, " ", &save); w && n < 31; w = strtok_r(NULL, " ", &save))
		argv[n++] = w;
	argv[n] = NULL;
	run.pid = fork();
	if (!run.pid) {
		dup2(p[1], 1);
		dup2(p[1], 2);
		close(p[0]);
		execv(program(), argv);
		_exit(127);
	}
	close(p[1]);
	run.out = p[0];
}

static int vmctl_end(void)
{
	size_t len = 0;
	ssize_t n;
	int status;

	while ((n = read(run.out, run.text + len, sizeof(run.text) - 1 - len)) > 0)
		len += (size_t)n;
	run.text[len] = '\0';
	close(run.out);
	assert_int_equal(waitpid(run.pid, &status, 0), run.pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int vmctl(struct fixture *f, const char *words)
{
	vmctl_start(f, words);
	return vmctl_end();
}

static void two_guests(struct fixture *f)
{
	core_put(f, "guest", UUID1, "web", 7,
		 "{\"name\":\"web\",\"state\":\"running\",\"cpus\":2,\"memory\":1073741824,"
		 "\"labels\":{\"tier\":\"front\"}}");
	core_put(f, "guest", UUID2, "db", 9,
		 "{\"name\":\"db\",\"state\":\"stopped\",\"cpus\":1,\"memory\":536870912,"
		 "\"labels\":{}}");
	core_synced(f);
}

static void ls_shows_a_table_json_csv_yaml_and_names(void **state)
{
	struct fixture *f = *state;

	two_guests(f);
	assert_int_equal(vmctl(f, "ls"), 0);
	assert_has(run.text, "NAME  STATE    CPUS   MEMORY  ACCEL  STARTED");
	assert_has(run.text, "web   running     2    1 GiB");
	assert_int_equal(vmctl(f, "-o json ls --state running"), 0);
	assert_has(run.text, "\"memory\": 1073741824");
	assert_null(strstr(run.text, "\"db\""));
	assert_int_equal(vmctl(f, "-o csv ls"), 0);
	assert_has(run.text, "web,,running,,2,1073741824");
	assert_int_equal(vmctl(f, "-o yaml ls"), 0);
	assert_has(run.text, "- name: \"db\"");
	assert_int_equal(vmctl(f, "ls -q --label tier=front"), 0);
	assert_string_equal(run.text, "web\n");
}

static void exit_codes_follow_the_contract(void **state)
{
	struct fixture *f = *state;

	two_guests(f);
	assert_int_equal(vmctl(f, "disk info nothing"), 3);
	assert_has(run.text, "does not exist");
	assert_int_equal(vmctl(f, "strat web"), 2);
	assert_has(run.text, "did you mean \"start\"?");
	assert_int_equal(vmctl(f, "destroy web"), 2);
	assert_has(run.text, "vmctl stop --force NAME");
	assert_int_equal(vmctl(f, "create x --cpsu 2"), 2);
	assert_has(run.text, "did you mean --cpus?");
	assert_int_equal(vmctl(f, "create x --memory lots"), 2);
	assert_int_equal(vmctl(f, "create ../x"), 2);
	assert_has(run.text, "name:");
	assert_int_equal(vmctl(f, "start"), 2);
	assert_int_equal(vmctl(f, "wait db --state running --timeout 1ms"), 7);
	assert_int_equal(vmctl(NULL, "--socket /nonexistent/sock ls"), 6);
	assert_has(run.text, "cannot reach the daemon");
	assert_int_equal(vmctl(f, "-o tabel ls"), 2);
	assert_int_equal(vmctl(f, "create x --kernel /nonexistent/vmlinuz"), 3);
}

static void create_sends_what_the_flags_say(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	struct msg_a_request m;
	char body[1024];

	two_guests(f);
	vmctl_start(f, "create new --cpus 2 --memory 1G --image deb --disk data,cache=none --disk "
		       "size=2G,read_only --net lan,mac=52:54:00:00:00:01 "
		       "--serial tcp:127.0.0.1:4000,connect --label a=b --no-autostart");
	m = core_expect_request(f, &b);
	snprintf(body, sizeof(body), "%.*s", (int)m.body.len, (const char *)m.body.p);
	assert_has(body, "\"cpus\":2");
	assert_has(body, "\"memory\":1073741824");
	assert_has(body, "\"disks\":[{\"image\":\"deb\"},{\"disk\":\"data\",\"cache\":\"none\"},{"
			 "\"size\":2147483648,\"read_only\":true}]");
	assert_has(body, "\"nics\":[{\"network\":\"lan\",\"mac\":\"52:54:00:00:00:01\"}]");
	assert_has(body, "\"serials\":[{\"spec\":\"tcp:127.0.0.1:4000,connect\"}]");
	assert_has(body, "\"labels\":{\"a\":\"b\"}");
	assert_has(body, "\"autostart\":false");
	core_reply(f, b.id,
		   &(struct msg_a_reply){ .status = 201,
					  .fd = -1,
					  .body = { (const uint8_t *)"{\"name\":\"new\"}", 14 } });
	assert_int_equal(vmctl_end(), 0);
	assert_string_equal(run.text, "create new: done\n");
	wire_buf_clear(&b);
}

static void slow_verb_waits_and_tells_the_failure(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };

	two_guests(f);
	vmctl_start(f, "start db");
	core_expect_request(f, &b);
	core_put(f, "operation", OP1, "", 1,
		 "{\"id\":\"" OP1 "\",\"state\":\"running\",\"progress\":10}");
	core_reply(f, b.id, &(struct msg_a_reply){ .status = 202, .op = OP1, .fd = -1 });
	core_put(
	    f, "operation", OP1, "", 2,
	    "{\"id\":\"" OP1
	    "\",\"state\":\"failed\",\"error\":{\"status\":409,\"code\":\"no-kernel\",\"detail\":"
	    "\"guest db: it has no kernel\",\"hint\":\"vmctl set db --kernel NAME\"}}");
	assert_int_equal(vmctl_end(), 4);
	assert_has(run.text, "vmctl: guest db: it has no kernel");
	assert_has(run.text, "hint: vmctl set db --kernel NAME");
	vmctl_start(f, "--no-wait start db");
	core_expect_request(f, &b);
	core_reply(f, b.id, &(struct msg_a_reply){ .status = 202, .op = OP1, .fd = -1 });
	assert_int_equal(vmctl_end(), 0);
	assert_has(run.text, "under way (vmctl ops info " OP1 ")");
	wire_buf_clear(&b);
}

static void import_uploads_the_file(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	struct msg_a_request m;
	char path[160], words[256], body[512];
	int file, got;

	two_guests(f);
	snprintf(path, sizeof(path), "%s/disk.qcow2", f->dir);
	file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(write(file, "hello", 5), 5);
	snprintf(words, sizeof(words), "image import %s deb", path);
	vmctl_start(f, words);
	m = core_expect_request(f, &b);
	snprintf(body, sizeof(body), "%.*s", (int)m.body.len, (const char *)m.body.p);
	assert_has(body, "\"name\":\"deb\"");
	assert_has(body, "\"format\":\"qcow2\"");
	assert_has(body, "\"size\":5");
	core_reply(
	    f, b.id,
	    &(struct msg_a_reply){ .status = 201, .fd = -1, .body = { (const uint8_t *)"{}", 2 } });
	m = core_expect_request(f, &b);
	assert_string_equal(m.sub, "begin");
	got = open(f->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(got >= 0);
	core_reply(f, b.id, &(struct msg_a_reply){ .status = 200, .fd = got });
	m = core_expect_request(f, &b);
	assert_string_equal(m.sub, "end");
	core_reply(
	    f, b.id,
	    &(struct msg_a_reply){ .status = 200, .fd = -1, .body = { (const uint8_t *)"{}", 2 } });
	assert_int_equal(vmctl_end(), 0);
	assert_has(run.text, "image deb: imported");
	assert_int_equal(pread(got, body, 5, 0), 5);
	assert_memory_equal(body, "hello", 5);
	close(got);
	close(file);
	unlink(path);
	wire_buf_clear(&b);
}

static void console_works_piped(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	int pair[2];

	two_guests(f);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	vmctl_start(f, "console web serial1");
	assert_string_equal(core_expect_request(f, &b).sub, "serial1");
	core_reply(f, b.id, &(struct msg_a_reply){ .status = 200, .fd = pair[1] });
	close(pair[1]);
	client_send(pair[0], "login: ");
	close(pair[0]);
	assert_int_equal(vmctl_end(), 0);
	assert_has(run.text, "login: ");
	wire_buf_clear(&b);
}

static void events_of_the_past_end(void **state)
{
	struct fixture *f = *state;

	two_guests(f);
	core_event(f, 1,
		   "{\"seq\":1,\"time\":\"2026-01-01T00:00:00Z\",\"kind\":\"guest.started\","
		   "\"object\":\"guest\",\"name\":\"web\",\"text\":\"up\"}",
		   0);
	client_ask(f, "GET /v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n");
	assert_int_equal(vmctl(f, "-o json events --since 0 --follow=false"), 0);
	assert_has(run.text, "\"kind\":\"guest.started\"");
}

static void help_names_every_verb_and_flag_of_the_table(void **state)
{
	static char all[sizeof(run.text)];

	assert_int_equal(vmctl(NULL, "help"), 0);
	memcpy(all, run.text, sizeof(all));
	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		char words[128];

		if (!schema_routes[i].cli)
			continue;
		assert_has(all, schema_routes[i].cli);
		snprintf(words, sizeof(words), "help %s", schema_routes[i].cli);
		assert_int_equal(vmctl(NULL, words), 0);
		for (const struct schema_field *g =
			 schema_routes[i].query ? schema_routes[i].query->fields : NULL;
		     g && g->name; g++)
			if (g->cli)
				assert_has(run.text, g->help);
	}
}

/* nothing that was typed is passed over in silence */
static void words_that_a_verb_has_no_use_for_are_refused(void **state)
{
	static const char *const words[] = { "ls x",	      "create a b",	   "rename a b c",
					     "console a b c", "disk ls x",	   "logs a b",
					     "doctor x",      "disk resize d 1G e" };

	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		assert_int_equal(vmctl(NULL, words[i]), 2);
		assert_has(run.text, "has no use for \"");
	}
}

static void a_verb_takes_several_names_and_tells_of_each(void **state)
{
	struct fixture *f = *state;

	two_guests(f);
	/* the one that is not there keeps nobody from the others, and decides the exit status */
	assert_int_equal(vmctl(f, "wait web gone web"), 3);
	assert_has(run.text, "\"gone\"");
	assert_int_equal(vmctl(f, "-o json wait web web"), 0);
	assert_has(run.text, "\"web\"");
	assert_has(strstr(run.text, "\"web\"") + 1, "\"web\"");
}

/* the committed manual is what the table says now; after a change: see its first line */
static void manual_agrees_with_the_table(void **state)
{
	const char *top = getenv("VMD_TOP");
	static char man[1 << 18];
	char path[1024];
	FILE *m;
	size_t n;

	snprintf(path, sizeof(path), "%s/vmctl/man/vmctl.1", top ? top : ".");
	m = fopen(path, "re");
	assert_non_null(m);
	n = fread(man, 1, sizeof(man) - 1, m);
	man[n] = '\0';
	fclose(m);
	assert_int_equal(vmctl(NULL, "help --man"), 0);
	assert_non_null(strstr(man, run.text));
}

static void completion_is_bash(void **state)
{
	int status;
	pid_t pid;
	char path[] = "/tmp/vmctl-completion.XXXXXX";
	int fd = mkstemp(path);

	assert_int_equal(vmctl(NULL, "completion bash"), 0);
	assert_has(run.text, "complete -F _vmctl vmctl");
	assert_int_equal(write(fd, run.text, strlen(run.text)), (long)strlen(run.text));
	close(fd);
	pid = fork();
	if (!pid) {
		execlp("bash", "bash", "-n", path, (char *)NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	unlink(path);
	assert_int_equal(status, 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fixture_start, fixture_stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(ls_shows_a_table_json_csv_yaml_and_names),
		T(exit_codes_follow_the_contract),
		T(create_sends_what_the_flags_say),
		T(slow_verb_waits_and_tells_the_failure),
		T(import_uploads_the_file),
		T(console_works_piped),
		T(events_of_the_past_end),
		T(a_verb_takes_several_names_and_tells_of_each),
		cmocka_unit_test(words_that_a_verb_has_no_use_for_are_refused),
		cmocka_unit_test(help_names_every_verb_and_flag_of_the_table),
		cmocka_unit_test(manual_agrees_with_the_table),
		cmocka_unit_test(completion_is_bash),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
