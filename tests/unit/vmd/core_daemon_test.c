/* core_daemon_test.c - core as a whole over real socket pairs: the test plays priv, api and the
 * guest's process.
 * What the test answers is what those peers answer by proto.def; nothing of core is replaced. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/units.h"
#include "vmd/core/internal.h"
#include "vmd/roles.h"

struct world {
	struct loop *l;
	struct core *c;
	struct wire_conn *priv, *api, *guest;
	int guest_core_end; /* what spawn hands to core */
	int life[2];	    /* pipe in a pidfd's place: its end is the process's end */
	unsigned replies, status, killed, cleaned;
	char code[48], body[8192], hint[200];
	uint32_t reply_id;
	char dir[64], path[128];
	bool refuse_build;
	unsigned limits, loads, starts, starts_while_saved;
	uint64_t iops, bps;
	bool build_starts, refuse_save;
};

static void on_close(void *arg, struct wire_conn *c, int why)
{
}

static void on_guest(void *arg, struct wire_conn *c, struct wire_buf *b)
{
	struct world *w = arg;
	struct msg_result ok = { .fd = -1, .fd2 = -1 };
	struct msg_g_ready ready = { .accel = "soft", .reason = "test" };

	if (b->type == MSG_g_disk_limit) {
		struct msg_g_disk_limit m;

		assert_int_equal(msg_g_disk_limit_decode(&m, b), 0);
		w->limits++;
		w->iops = m.iops;
		w->bps = m.bps;
	}
	if (b->type == MSG_g_build) {
		struct msg_g_build m;

		assert_int_equal(msg_g_build_decode(&m, b), 0);
		w->build_starts = m.start != 0;
	}
	w->loads += b->type == MSG_g_load;
	if (b->type == MSG_g_start) {
		struct obj *o = obj_by_name(w->c, K_GUEST, "web");

		w->starts++;
		w->starts_while_saved += guest_saved(o->mem);
	}
	if (b->type == MSG_g_save && w->refuse_save) {
		ok.num = ENOSPC;
		snprintf(ok.code, sizeof(ok.code), "save-failed");
		snprintf(ok.detail, sizeof(ok.detail), "no space left");
		msg_result_send(c, &ok, b->id);
	} else if (b->type == MSG_g_build && w->refuse_build) {
		ok.num = EINVAL;
		snprintf(ok.code, sizeof(ok.code), "not-a-kernel");
		snprintf(ok.detail, sizeof(ok.detail), "kernel: not a kernel");
		msg_result_send(c, &ok, b->id);
	} else if (b->type == MSG_g_build) {
		msg_g_ready_send(c, &ready, b->id);
	} else if (b->type == MSG_g_quit || b->type == MSG_g_power_button) {
		if (w->life[1] >= 0)
			close(w->life[1]); /* the process ends */
		w->life[1] = -1;
	} else if (b->id) {
		msg_result_send(c, &ok, b->id);
	}
}

static void on_priv(void *arg, struct wire_conn *c, struct wire_buf *b)
{
	struct world *w = arg;
	struct msg_result ok = { .fd = -1, .fd2 = -1 };
	int pair[2];

	switch (b->type) {
	case MSG_p_volume_open:
		ok.fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		break;
	case MSG_p_guest_kill:
		w->killed++;
		if (w->life[1] >= 0)
			close(w->life[1]);
		w->life[1] = -1;
		break;
	case MSG_p_guest_clean:
		w->cleaned++;
		break;
	case MSG_p_guest_spawn:
		assert_int_equal(
		    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
		assert_int_equal(pipe2(w->life, O_CLOEXEC), 0);
		if (w->guest)
			wire_conn_free(w->guest);
		w->guest = wire_conn_new(w->l, pair[0], 16, on_guest, on_close, w);
		ok.value = 4242;
		ok.fd = w->life[0];
		ok.fd2 = pair[1];
		break;
	default:
		break;
	}
	msg_result_send(c, &ok, b->id);
	if (ok.fd >= 0)
		close(ok.fd);
	if (ok.fd2 >= 0)
		close(ok.fd2);
}

static void on_api(void *arg, struct wire_conn *c, struct wire_buf *b)
{
	struct world *w = arg;
	struct msg_a_reply m;

	if (b->type != MSG_a_reply || msg_a_reply_decode(&m, b) < 0)
		return;
	w->replies++;
	w->status = (unsigned)m.status;
	w->reply_id = b->id;
	memcpy(w->code, m.code, sizeof(w->code));
	memcpy(w->hint, m.hint, sizeof(w->hint));
	snprintf(w->body, sizeof(w->body), "%.*s", (int)m.body.len, (const char *)m.body.p);
	msg_a_reply_close(&m);
}

static void turn_until(struct world *w, unsigned *what, unsigned want)
{
	uint64_t end = clock_mono_ns() + 20 * NS_PER_S;

	while (*what < want && clock_mono_ns() < end)
		loop_run_once(w->l, 100);
	assert_true(*what >= want);
}

static void world_up(struct world *w)
{
	int p[2], a[2];
	struct err e = { 0 };

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, p),
			 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, a),
			 0);
	w->priv = wire_conn_new(w->l, p[0], 16, on_priv, on_close, w);
	w->api = wire_conn_new(w->l, a[0], 16, on_api, on_close, w);
	w->c = core_new(w->l, p[1], a[1], w->path, "", &e);
	assert_non_null(w->c);
	core_begin(w->c);
}

static void world_down(struct world *w)
{
	core_free(w->c);
	wire_conn_free(w->priv);
	wire_conn_free(w->api);
	if (w->guest)
		wire_conn_free(w->guest);
	w->guest = NULL;
}

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	snprintf(w->dir, sizeof(w->dir), "/tmp/core-daemon-XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	snprintf(w->path, sizeof(w->path), "%s/vmd.db", w->dir);
	w->l = loop_new();
	w->life[0] = w->life[1] = -1;
	world_up(w);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;
	char cmd[128];

	world_down(w);
	loop_free(w->l);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", w->dir);
	free(w);
	return system(cmd) != 0;
}

static uint32_t next_id = 100;

static void send_req(struct world *w, enum route_id route, const char *name, const char *body,
		     const char *idem)
{
	struct msg_a_request m = { .route = route, .role = ROLE_ADMIN, .wait_ms = 15000, .fd = -1 };

	snprintf(m.principal, sizeof(m.principal), "tester");
	snprintf(m.name, sizeof(m.name), "%s", name);
	snprintf(m.idempotency_key, sizeof(m.idempotency_key), "%s", idem ? idem : "");
	m.body = (struct proto_bytes){ (const uint8_t *)body, strlen(body) };
	assert_int_equal(msg_a_request_send(w->api, &m, next_id++), 0);
}

static void ask(struct world *w, enum route_id route, const char *name, const char *body)
{
	unsigned want = w->replies + 1;

	send_req(w, route, name, body, NULL);
	turn_until(w, &w->replies, want);
}

static void ask_query(struct world *w, enum route_id route, const char *name, const char *query)
{
	struct msg_a_request m = { .route = route, .role = ROLE_ADMIN, .wait_ms = 15000, .fd = -1 };
	unsigned want = w->replies + 1;

	snprintf(m.principal, sizeof(m.principal), "tester");
	snprintf(m.name, sizeof(m.name), "%s", name);
	m.query = (struct proto_bytes){ (const uint8_t *)query, strlen(query) };
	assert_int_equal(msg_a_request_send(w->api, &m, next_id++), 0);
	turn_until(w, &w->replies, want);
}

static void with_kernel(struct world *w)
{
	struct obj *o = obj_new(
	    w->c, K_IMAGE, "0a0a0a0a-0000-4000-8000-000000000001", "linux",
	    json_pack("{s:s, s:s, s:s}", "name", "linux", "state", "ready", "format", "raw"));

	obj_put(w->c, o, PUT_FACT);
}

static void core_starts_and_stops_a_guest(void **state)
{
	struct world *w = *state;

	with_kernel(w);
	ask(w, ROUTE_GUEST_CREATE, "", "{\"name\":\"web\",\"kernel\":\"linux\"}");
	assert_int_equal(w->status, 201);
	ask(w, ROUTE_GUEST_START, "web", "{}");
	assert_int_equal(w->status, 200);
	assert_non_null(strstr(w->body, "succeeded"));
	ask(w, ROUTE_GUEST_GET, "web", "{}");
	assert_non_null(strstr(w->body, "\"running\""));
	ask(w, ROUTE_GUEST_START, "web", "{}");
	assert_int_equal(w->status, 409);
	assert_string_equal(w->code, "guest-state-conflict");
	ask(w, ROUTE_GUEST_PAUSE, "web", "{}");
	assert_int_equal(w->status, 200);
	ask(w, ROUTE_GUEST_RESUME, "web", "{}");
	assert_int_equal(w->status, 200);
	ask(w, ROUTE_GUEST_STOP, "web", "{}");
	assert_int_equal(w->status, 200);
	ask(w, ROUTE_GUEST_GET, "web", "{}");
	assert_non_null(strstr(w->body, "\"stopped\""));
}

static void core_unwinds_a_start_whose_build_fails(void **state)
{
	struct world *w = *state;

	with_kernel(w);
	w->refuse_build = true;
	ask(w, ROUTE_GUEST_CREATE, "", "{\"name\":\"web\",\"kernel\":\"linux\"}");
	ask(w, ROUTE_GUEST_START, "web", "{}");
	assert_int_equal(w->status, 400);
	assert_string_equal(w->code, "not-a-kernel");
	turn_until(w, &w->killed, 1);
	turn_until(w, &w->cleaned, 1);
	ask(w, ROUTE_GUEST_GET, "web", "{}");
	assert_non_null(strstr(w->body, "\"failed\""));
	assert_non_null(strstr(w->body, "not a kernel"));
	for (unsigned i = 0; i < w->c->uid_slots; i++)
		assert_int_equal(w->c->uid_used[i], 0);
}

static void core_records_a_guest_that_dies(void **state)
{
	struct world *w = *state;
	uint64_t end = clock_mono_ns() + 10 * NS_PER_S;
	struct guest *g;

	with_kernel(w);
	ask(w, ROUTE_GUEST_CREATE, "", "{\"name\":\"web\",\"kernel\":\"linux\"}");
	ask(w, ROUTE_GUEST_START, "web", "{}");
	g = obj_by_name(w->c, K_GUEST, "web")->mem;
	close(w->life[1]);
	w->life[1] = -1;
	while (g->state == G_RUNNING && clock_mono_ns() < end)
		loop_run_once(w->l, 100);
	assert_int_equal(g->state, G_CRASHED);
	turn_until(w, &w->cleaned, 1);
}

static void core_keeps_a_thousand_guests_over_a_restart(void **state)
{
	struct world *w = *state;
	uint64_t t = clock_mono_ns();
	unsigned want = w->replies + 1000;

	for (int i = 0; i < 1000; i++) {
		char body[64];

		snprintf(body, sizeof(body), "{\"name\":\"g%d\"}", i);
		send_req(w, ROUTE_GUEST_CREATE, "", body, NULL);
	}
	turn_until(w, &w->replies, want);
	print_message("1,000 creates: %llu ms\n",
		      (unsigned long long)((clock_mono_ns() - t) / NS_PER_MS));
	world_down(w);
	world_up(w);
	assert_int_equal(obj_count(w->c, K_GUEST), 1000);
	ask(w, ROUTE_GUEST_GET, "g999", "{}");
	assert_int_equal(w->status, 200);
	ask(w, ROUTE_GUEST_GET, "g99x", "{}");
	assert_int_equal(w->status, 404);
	assert_non_null(strstr(w->hint, "did you mean"));
}

static void core_answers_a_repeated_key_once(void **state)
{
	struct world *w = *state;
	unsigned want = w->replies + 1;

	send_req(w, ROUTE_GUEST_CREATE, "", "{\"name\":\"one\"}", "key-1");
	turn_until(w, &w->replies, want);
	assert_int_equal(w->status, 201);
	send_req(w, ROUTE_GUEST_CREATE, "", "{\"name\":\"one\"}", "key-1");
	turn_until(w, &w->replies, want + 1);
	assert_int_equal(w->status, 201);
	assert_int_equal(obj_count(w->c, K_GUEST), 1);
	ask(w, ROUTE_GUEST_CREATE, "", "{\"name\":\"one\"}");
	assert_int_equal(w->status, 409);
}

static void with_disk(struct world *w, const char *state)
{
	struct obj *o =
	    obj_new(w->c, K_DISK, "0a0a0a0a-0000-4000-8000-000000000002", "default/d",
		    json_pack("{s:s, s:s, s:s, s:s, s:i}", "name", "d", "pool", "default", "format",
			      "raw", "state", state, "size", 1 << 20));

	obj_put(w->c, o, PUT_FACT);
}

static void core_tells_a_guest_its_limits(void **state)
{
	struct world *w = *state;

	with_kernel(w);
	with_disk(w, "ready");
	ask(w, ROUTE_GUEST_CREATE, "",
	    "{\"name\":\"web\",\"kernel\":\"linux\",\"disks\":[{\"disk\":\"d\",\"iops\":100}]}");
	assert_int_equal(w->status, 201);
	ask(w, ROUTE_GUEST_START, "web", "{}");
	assert_int_equal(w->status, 200);
	turn_until(w, &w->limits, 1);
	assert_int_equal(w->iops, 100);
	assert_int_equal(w->bps, 0);
	ask(w, ROUTE_GUEST_LIMIT, "web", "{\"bps\":4096}");
	assert_int_equal(w->status, 200);
	assert_int_equal(w->limits, 2);
	assert_int_equal(w->iops, 100);
	assert_int_equal(w->bps, 4096);
	ask(w, ROUTE_GUEST_LIMIT, "web", "{\"disk\":\"disk9\",\"bps\":1}");
	assert_int_equal(w->status, 404);
	assert_int_equal(w->limits, 2);
}

/* what was saved is used up, on record, before the guest runs on; what is not loaded stays */
static void core_uses_a_saved_state_once(void **state)
{
	struct world *w = *state;
	unsigned starts;

	with_kernel(w);
	ask(w, ROUTE_GUEST_CREATE, "", "{\"name\":\"web\",\"kernel\":\"linux\"}");
	ask(w, ROUTE_GUEST_SAVE, "web", "{}");
	assert_int_equal(w->status, 409);
	ask(w, ROUTE_GUEST_START, "web", "{}");
	assert_true(w->build_starts);
	w->refuse_save = true;
	ask(w, ROUTE_GUEST_SAVE, "web", "{}");
	assert_int_equal(w->status, 507);
	turn_until(w, &w->starts, 1); /* it runs on */
	ask(w, ROUTE_GUEST_GET, "web", "{}");
	assert_non_null(strstr(w->body, "\"running\""));
	w->refuse_save = false;
	ask(w, ROUTE_GUEST_SAVE, "web", "{}");
	assert_int_equal(w->status, 200);
	ask(w, ROUTE_GUEST_GET, "web", "{}");
	assert_non_null(strstr(w->body, "\"saved\""));
	ask(w, ROUTE_GUEST_PATCH, "web", "{\"cpus\":2}");
	assert_int_equal(w->status, 409);

	w->refuse_build = true;
	ask(w, ROUTE_GUEST_START, "web", "{}");
	assert_int_equal(w->status, 400);
	assert_true(guest_saved(obj_by_name(w->c, K_GUEST, "web")->mem));
	w->refuse_build = false;

	world_down(w);
	world_up(w);
	starts = w->starts;
	ask(w, ROUTE_GUEST_START, "web", "{}");
	assert_int_equal(w->status, 200);
	assert_int_equal(w->loads, 2);
	assert_false(w->build_starts);
	turn_until(w, &w->starts, starts + 1);
	assert_int_equal(w->starts_while_saved, 0);
	assert_false(guest_saved(obj_by_name(w->c, K_GUEST, "web")->mem));
}

static void core_deletes_no_guest_whose_disk_is_worked_on(void **state)
{
	struct world *w = *state;
	struct obj *d;

	with_disk(w, "ready");
	ask(w, ROUTE_GUEST_CREATE, "", "{\"name\":\"web\",\"disks\":[{\"disk\":\"d\"}]}");
	d = obj_by_name(w->c, K_DISK, "default/d");
	json_object_set_new(d->doc, "state", json_string("busy"));
	obj_put(w->c, d, PUT_FACT);
	send_req(w, ROUTE_GUEST_DELETE, "web", "{}", NULL);
	turn_until(w, &w->replies, w->replies + 1);
	assert_int_equal(w->status, 200); /* into the trash it may */
	ask_query(w, ROUTE_GUEST_DELETE, "web", "{\"now\":true}");
	assert_int_equal(w->status, 409);
	assert_string_equal(w->code, "disk-busy");
	json_object_set_new(d->doc, "state", json_string("ready"));
	obj_put(w->c, d, PUT_FACT);
	ask_query(w, ROUTE_GUEST_DELETE, "web", "{\"now\":true}");
	assert_int_equal(w->status, 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(core_starts_and_stops_a_guest, setup, teardown),
		cmocka_unit_test_setup_teardown(core_unwinds_a_start_whose_build_fails, setup,
						teardown),
		cmocka_unit_test_setup_teardown(core_records_a_guest_that_dies, setup, teardown),
		cmocka_unit_test_setup_teardown(core_keeps_a_thousand_guests_over_a_restart, setup,
						teardown),
		cmocka_unit_test_setup_teardown(core_answers_a_repeated_key_once, setup, teardown),
		cmocka_unit_test_setup_teardown(core_tells_a_guest_its_limits, setup, teardown),
		cmocka_unit_test_setup_teardown(core_uses_a_saved_state_once, setup, teardown),
		cmocka_unit_test_setup_teardown(core_deletes_no_guest_whose_disk_is_worked_on,
						setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
