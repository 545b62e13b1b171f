/* server_test.c - the api process as clients see it: reads, changes, waiting, bad input, attacks on
 * the framing. */
#include "tests/unit/api/fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/schema.h"
#include "common/units.h"

#define UUID1 "11111111-1111-4111-8111-111111111111"
#define UUID2 "22222222-2222-4222-8222-222222222222"
#define OP1   "99999999-9999-4999-8999-999999999999"
#define H     "Host: localhost\r\n"

static void two_guests(struct fixture *f)
{
	core_put(f, "guest", UUID1, "web", 7,
		 "{\"name\":\"web\",\"state\":\"running\",\"labels\":{\"tier\":\"front\"}}");
	core_put(f, "guest", UUID2, "db", 9,
		 "{\"name\":\"db\",\"state\":\"stopped\",\"labels\":{}}");
	core_synced(f);
}

#define assert_has(text, part) \
	do { \
		if (!strstr(text, part)) \
			fail_msg("\"%s\" is not in: %s", part, text); \
	} while (0)
#define assert_hasnt(text, part) assert_null(strstr(text, part))

static void reads_wait_for_the_first_sync(void **state)
{
	struct fixture *f = *state;

	assert_has(client_ask(f, "GET /v1/guests HTTP/1.1\r\n" H "\r\n"), "503 ");
	two_guests(f);
	assert_has(client_ask(f, "GET /v1/guests HTTP/1.1\r\n" H "\r\n"),
		   "{\"items\":[{\"name\":\"db\"");
}

static void object_by_name_and_uuid_with_etag(void **state)
{
	struct fixture *f = *state;

	two_guests(f);
	assert_has(client_ask(f, "GET /v1/guests/web HTTP/1.1\r\n" H "\r\n"), "ETag: \"7\"");
	assert_has(client_ask(f, "GET /v1/guests/" UUID2 " HTTP/1.1\r\n" H "\r\n"),
		   "\"name\":\"db\"");
	assert_has(
	    client_ask(f, "GET /v1/guests/web HTTP/1.1\r\n" H "If-None-Match: \"7\"\r\n\r\n"),
	    "304 Not Modified");
	assert_has(client_ask(f, "GET /v1/guests/nobody HTTP/1.1\r\n" H "\r\n"),
		   "\"code\":\"guest-not-found\"");
}

static void list_filters_pages_and_projects(void **state)
{
	struct fixture *f = *state;
	char *r;

	two_guests(f);
	r = client_ask(f, "GET /v1/guests?state=running HTTP/1.1\r\n" H "\r\n");
	assert_has(r, "\"web\"");
	assert_hasnt(r, "\"db\"");
	assert_hasnt(client_ask(f, "GET /v1/guests?label=tier=back HTTP/1.1\r\n" H "\r\n"),
		     "\"web\"");
	assert_has(
	    client_ask(f, "GET /v1/guests?label=tier=front&fields=name HTTP/1.1\r\n" H "\r\n"),
	    "{\"items\":[{\"name\":\"web\"}]}");
	r = client_ask(f, "GET /v1/guests?limit=1 HTTP/1.1\r\n" H "\r\n");
	assert_has(r, "\"next\":\"web!" UUID1 "\"");
	assert_has(client_ask(f, "GET /v1/guests?cursor=web!" UUID1 " HTTP/1.1\r\n" H "\r\n"),
		   "{\"items\":[{\"name\":\"web\"");
	assert_has(client_ask(f, "GET /v1/guests?limt=1 HTTP/1.1\r\n" H "\r\n"),
		   "did you mean \\\"limit\\\"?");
}

static char *post(struct fixture *f, const char *path, const char *body)
{
	static char req[4096];

	snprintf(req, sizeof(req),
		 "POST %s HTTP/1.1\r\n" H
		 "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
		 path, strlen(body), body);
	return client_ask(f, req);
}

static void bad_bodies_name_the_field(void **state)
{
	struct fixture *f = *state;
	static const struct {
		const char *body, *field, *code;
	} rows[] = {
		{ "{\"name\":\"a\",\"cpu\":2}", "cpu", "unknown-field" },
		{ "{\"name\":\"a\",\"memory\":\"lots\"}", "memory", "bad-value" },
		{ "{\"name\":\"a\",\"cpus\":\"2\"}", "cpus", "wrong-type" },
		{ "{\"name\":\"a\",\"cpus\":0}", "cpus", "out-of-range" },
		{ "{\"name\":\"../a\"}", "name", "bad-value" },
		{ "{\"cpus\":1}", "name", "missing-field" },
		{ "{\"name\":\"a\",\"state\":\"running\"}", "state", "read-only-field" },
		{ "{\"name\":\"a\",\"disks\":[{\"size\":\"1G\"},{\"siez\":1}]}", "disks[1].siez",
		  "unknown-field" },
		{ "{\"name\":\"a\",\"nics\":[{}]}", "nics[0].network", "missing-field" },
		{ "{\"name\":\"a\",\"accel\":\"kmv\"}", "accel", "bad-value" },
		{ "{\"name\":\"a\",\"serials\":[{\"spec\":\"file:../../etc/passwd\"}]}",
		  "serials[0].spec", "bad-value" },
		{ "{\"name\":\"a\",\"labels\":{\"k\":1}}", "labels.k", "wrong-type" },
	};

	two_guests(f);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		char *r = post(f, "/v1/guests", rows[i].body), want[160];

		assert_has(r, "400 Bad Request");
		assert_has(r, "application/problem+json");
		snprintf(want, sizeof(want), "\"field\":\"%s\"", rows[i].field);
		assert_has(r, want);
		snprintf(want, sizeof(want), "\"code\":\"%s\"", rows[i].code);
		assert_has(r, want);
	}
	assert_has(post(f, "/v1/guests", "{\"name\":\"a\",\"name\":\"b\"}"),
		   "\"code\":\"bad-json\"");
	assert_has(post(f, "/v1/guests", "[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]"),
		   "nests deeper");
	assert_has(post(f, "/v1/guests", "{\"name\":\"a\\u0000b\"}"), "\"code\":\"bad-json\"");
	assert_has(post(f, "/v1/guests", "[1]"), "\"code\":\"wrong-type\"");
	assert_has(post(f, "/v1/guets", "{}"), "did you mean \\\"guests\\\"?");
}

static void create_reaches_core_normalised_and_answers(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	struct msg_a_request m;
	static const char body[] = "{\"name\":\"new\",\"memory\":\"1G\",\"stop_timeout\":\"5s\"}";
	struct msg_a_reply a = {
		.status = 201, .revision = 3, .fd = -1, .location = "/v1/guests/new"
	};
	char req[512], text[512], *r;
	int fd;

	two_guests(f);
	fd = client_open(f);
	snprintf(req, sizeof(req),
		 "POST /v1/guests?dry_run=true HTTP/1.1\r\n" H
		 "Content-Type: application/json\r\nIdempotency-Key: k1\r\nIf-Match: "
		 "\"4\"\r\nPrefer: wait=3\r\nContent-Length: %zu\r\n\r\n%s",
		 strlen(body), body);
	client_send(fd, req);
	m = core_expect_request(f, &b);
	assert_int_equal(m.route, ROUTE_GUEST_CREATE);
	assert_int_equal(m.role, ROLE_ADMIN);
	assert_int_equal(m.uid, getuid());
	assert_int_equal(m.dry_run, 1);
	assert_int_equal(m.if_match, 4);
	assert_int_equal(m.wait_ms, 3000);
	assert_string_equal(m.idempotency_key, "k1");
	snprintf(text, sizeof(text), "%.*s", (int)m.body.len, (const char *)m.body.p);
	assert_string_equal(text, "{\"name\":\"new\",\"memory\":1073741824,\"stop_timeout\":5000}");
	a.body = (struct proto_bytes){ (const uint8_t *)"{\"name\":\"new\"}", 14 };
	core_reply(f, b.id, &a);
	r = client_reply(fd);
	assert_has(r, "201 Created");
	assert_has(r, "Location: /v1/guests/new");
	assert_has(r, "ETag: \"3\"");
	/* the connection goes on */
	client_send(fd, "GET /v1/version HTTP/1.1\r\n" H "\r\n");
	assert_has(client_reply(fd), "\"api\":\"v1\"");
	close(fd);
	wire_buf_clear(&b);
}

static void slow_verb_waits_for_its_operation(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	struct msg_a_request m;
	struct msg_a_reply a = { .status = 202, .op = OP1, .fd = -1 };
	int fd;

	two_guests(f);
	fd = client_open(f);
	client_send(fd, "POST /v1/guests/db/start HTTP/1.1\r\n" H "Prefer: wait=5\r\n\r\n");
	m = core_expect_request(f, &b);
	assert_string_equal(m.name, "db");
	core_put(f, "operation", OP1, "", 1, "{\"id\":\"" OP1 "\",\"state\":\"running\"}");
	core_reply(f, b.id, &a);
	core_put(f, "operation", OP1, "", 2,
		 "{\"id\":\"" OP1 "\",\"state\":\"failed\",\"error\":{\"status\":409,\"code\":\"no-"
		 "kernel\",\"detail\":\"guest db: no kernel\"}}");
	{
		char *r = client_reply(fd);

		assert_has(r, "409 Conflict");
		assert_has(r, "\"code\":\"no-kernel\"");
		assert_has(r, "\"op\":\"" OP1 "\"");
	}
	/* without Prefer: at once, with where to look */
	client_send(fd, "POST /v1/guests/db/start HTTP/1.1\r\n" H "\r\n");
	m = core_expect_request(f, &b);
	core_reply(f, b.id, &a);
	assert_has(client_reply(fd), "Location: /v1/operations/" OP1);
	close(fd);
	wire_buf_clear(&b);
}

static void wait_for_state_is_answered_by_the_change(void **state)
{
	struct fixture *f = *state;
	int fd;

	two_guests(f);
	fd = client_open(f);
	client_send(fd, "GET /v1/guests/db/wait?state=running&timeout=5s HTTP/1.1\r\n" H "\r\n");
	core_put(f, "guest", UUID2, "db", 10, "{\"name\":\"db\",\"state\":\"running\"}");
	assert_has(client_reply(fd), "\"state\":\"running\"");
	client_send(fd, "GET /v1/guests/db/wait?state=stopped&timeout=1ms HTTP/1.1\r\n" H "\r\n");
	assert_has(client_reply(fd), "\"code\":\"timed-out\"");
	close(fd);
}

/* each must be answered with its status and then the connection must end: nothing behind it is read
 * as a request */
static void framing_attacks_are_refused_and_closed(void **state)
{
	static const struct {
		const char *req, *status;
	} rows[] = {
		{ "POST /v1/guests HTTP/1.1\r\n" H
		  "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		  "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H
		  "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		  "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		  "411" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		  "411" },
		{ "POST /v1/guests HTTP/1.1\r\n" H
		  "Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}   ",
		  "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H
		  "Content-Length: 5\r\ncontent-length: 5\r\n\r\n{}   ",
		  "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Content-Length: 5, 5\r\n\r\n{}   ", "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Content-Length: +5\r\n\r\n{}   ", "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Content-Length: 0x5\r\n\r\n{}   ", "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Content-Length: 005\r\n\r\n{}   ", "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Content-Length: -1\r\n\r\n", "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Content-Length: 99999999999999999999\r\n\r\n",
		  "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H "Content-Length : 5\r\n\r\n{}   ", "400" },
		{ "GET /v1/version HTTP/1.1\n" H "\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\nHost: localhost\n\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\nHost: localhost\r\n\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\nHost: local\rhost\r\n\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\n" H H "\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\n\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\n" H " folded: 1\r\n\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\n" H "X: a\r\n\tb\r\n\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\n" H "no colon\r\n\r\n", "400" },
		{ "GET /v1/guests/we%00b HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET /v1/guests/%77eb HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET /v1/guests/web%2fx HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET /v1/../v1/version HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET /v1/%2e%2e/version HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET //v1/version HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET /v1/version/ HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET http://localhost/v1/version HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET /v1/version  HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET /v1/version HTTP/1.0\r\n" H "\r\n", "505" },
		{ "GET /v1/version HTTP/2.0\r\n" H "\r\n", "505" },
		{ "\r\nGET /v1/version HTTP/1.1\r\n" H "\r\n", "400" },
		{ "G@T /v1/version HTTP/1.1\r\n" H "\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421" },
		{ "GET /v1/version HTTP/1.1\r\n" H "Origin: http://evil.example\r\n\r\n", "403" },
		{ "GET /v1/version HTTP/1.1\r\n" H "X: \x80\r\n\r\n", "400" },
		{ "GET /v1/version HTTP/1.1\r\n" H "Expect: miracles\r\n\r\n", "417" },
		{ "GET /v1/version HTTP/1.1\r\n" H
		  "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		  "400" },
		{ "POST /v1/guests HTTP/1.1\r\n" H
		  "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
		  "415" },
	};
	struct fixture *f = *state;

	two_guests(f);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int fd = client_open(f);
		char *r, want[16];

		client_send(fd, rows[i].req);
		/* what a smuggler would put behind it; the server may be gone already */
		if (send(fd, "GET /v1/guests/web HTTP/1.1\r\n" H "\r\n", 46, MSG_NOSIGNAL) < 0)
			assert_true(true);
		shutdown(fd, SHUT_WR);
		r = client_read(fd, NULL);
		snprintf(want, sizeof(want), "HTTP/1.1 %s ", rows[i].status);
		if (strncmp(r, want, strlen(want)))
			fail_msg("row %zu: wanted %s, got: %.200s", i, rows[i].status, r);
		assert_hasnt(r, "\"tier\"");
		close(fd);
	}
}

static void nul_byte_in_the_head_is_refused(void **state)
{
	struct fixture *f = *state;
	static const char req[] = "GET /v1/version\0x HTTP/1.1\r\n" H "\r\n";
	int fd = client_open(f);

	assert_int_equal(send(fd, req, sizeof(req) - 1, 0), sizeof(req) - 1);
	assert_has(client_reply(fd), "400 Bad Request");
	assert_true(client_closed(fd));
	close(fd);
}

static void huge_head_and_huge_body_are_refused_at_once(void **state)
{
	struct fixture *f = *state;
	int fd = client_open(f);
	char line[1100];

	memset(line, 'a', sizeof(line) - 1);
	line[sizeof(line) - 1] = '\0';
	memcpy(line, "X: ", 3);
	memcpy(line + sizeof(line) - 3, "\r\n", 2);
	client_send(fd, "GET /v1/version HTTP/1.1\r\n" H);
	for (unsigned i = 0; i < 16; i++)
		if (send(fd, line, sizeof(line) - 1, MSG_NOSIGNAL) < 0)
			break;
	assert_has(client_reply(fd), "431 ");
	close(fd);
	/* 1 GiB announced, none sent */
	assert_has(
	    client_ask(f, "POST /v1/guests HTTP/1.1\r\n" H
			  "Content-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n"),
	    "413 ");
	assert_has(client_ask(f, "POST /v1/guests HTTP/1.1\r\n" H
				 "Content-Type: application/json\r\nExpect: "
				 "100-continue\r\nContent-Length: 1073741824\r\n\r\n"),
		   "413 ");
}

static void pipelined_requests_are_answered_in_order(void **state)
{
	struct fixture *f = *state;
	int fd;
	char *r, *a, *b, *c;

	two_guests(f);
	fd = client_open(f);
	client_send(fd,
		    "GET /v1/guests/web HTTP/1.1\r\n" H "\r\nGET /v1/guests/nobody HTTP/1.1\r\n" H
		    "\r\nGET /v1/version HTTP/1.1\r\n" H "Connection: close\r\n\r\n");
	r = client_read(fd, NULL);
	a = strstr(r, "\"front\"");
	b = strstr(r, "guest-not-found");
	c = strstr(r, "\"api\":\"v1\"");
	assert_true(a && b && c && a < b && b < c);
	close(fd);
}

/* many idle connections of one user cost that user its own oldest ones, nothing else */
static void idle_connections_are_bounded_and_newcomers_served(void **state)
{
	enum { MANY = 10000 };
	struct fixture *f = *state;
	struct rlimit rl = { 0 };
	unsigned n = 0, open = 0;
	int *fds = calloc(MANY, sizeof(int));

	two_guests(f);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &rl), 0);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	for (; n < MANY && n + 64 < rl.rlim_max; n++)
		fds[n] = client_open(f);
	assert_has(client_ask(f, "GET /v1/guests/web HTTP/1.1\r\n" H "\r\n"), "200 OK");
	for (unsigned i = 0; i < n; i++) {
		struct pollfd p = { .fd = fds[i], .events = POLLIN };

		open += poll(&p, 1, 0) == 0;
		close(fds[i]);
	}
	assert_in_range(open, 1, 1024);
	free(fds);
}

static void dripping_client_is_cut_off(void **state)
{
	struct fixture *f = *state;
	int fd = client_open(f);
	uint64_t start = clock_mono_ns();
	struct pollfd p = { .fd = fd, .events = POLLIN };
	static const char head[] =
	    "GET /v1/version HTTP/1.1\r\n" H "X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
	unsigned i = 0;

	/* a byte each 500 ms, steadily: an idle timeout would never fire */
	while (poll(&p, 1, 500) == 0 && i < sizeof(head) - 1)
		assert_int_equal(send(fd, head + i++, 1, MSG_NOSIGNAL), 1);
	assert_has(client_reply(fd), "408 ");
	assert_true(clock_mono_ns() - start < 14 * NS_PER_S);
	close(fd);
}

static void events_resume_where_the_client_left(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	struct msg_result res = { .value = 2, .fd = -1, .fd2 = -1 };
	struct msg_a_events_since since;
	char *r;
	int fd;

	two_guests(f);
	core_event(f, 40, "{\"seq\":40,\"kind\":\"guest.started\",\"name\":\"web\"}", 0);
	core_event(f, 41, "{\"seq\":41,\"kind\":\"guest.stopped\",\"name\":\"db\"}", 0);
	fd = client_open(f);
	/* in the ring */
	client_send(fd, "GET /v1/events HTTP/1.1\r\n" H "Last-Event-ID: 39\r\n\r\n");
	r = client_read(fd, "id: 41\n");
	assert_has(r, "text/event-stream");
	assert_has(r, "id: 40\ndata: {\"seq\":40");
	core_event(f, 42, "{\"seq\":42,\"kind\":\"guest.started\",\"name\":\"db\"}", 0);
	assert_has(client_read(fd, "id: 42\n"), "id: 42");
	close(fd);
	/* older than the ring: core replays, then live goes on without a gap */
	fd = client_open(f);
	client_send(fd, "GET /v1/events?since=37&name=db HTTP/1.1\r\n" H "\r\n");
	core_expect(f, MSG_a_events_since, &b);
	assert_int_equal(msg_a_events_since_decode(&since, &b), 0);
	assert_int_equal(since.seq, 37);
	core_event(f, 38, "{\"seq\":38,\"name\":\"db\"}", b.id);
	core_event(f, 39, "{\"seq\":39,\"name\":\"web\"}", b.id);
	{
		struct wire_buf o = { 0 };

		assert_int_equal(msg_result_encode(&res, b.id, &o), 0);
		assert_int_equal(wire_send(f->core, &o), 0);
		wire_buf_clear(&o);
	}
	r = client_read(fd, "id: 42\n");
	assert_has(r, "id: 38\n");
	assert_hasnt(r, "id: 39\n");
	assert_has(r, "id: 41\n");
	close(fd);
	wire_buf_clear(&b);
}

static void upload_is_hashed_and_handed_over(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	struct msg_a_request m;
	char path[128], text[256];
	struct msg_a_reply a = { .status = 200 };
	int fd, file;

	two_guests(f);
	snprintf(path, sizeof(path), "%s/up", f->dir);
	file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	unlink(path);
	fd = client_open(f);
	client_send(fd, "PUT /v1/images/k/content HTTP/1.1\r\n" H
			"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	m = core_expect_request(f, &b);
	assert_string_equal(m.sub, "begin");
	a.fd = file;
	core_reply(f, b.id, &a);
	assert_has(client_reply(fd), "100 Continue");
	client_send(fd, "abc");
	m = core_expect_request(f, &b);
	assert_string_equal(m.sub, "end");
	snprintf(text, sizeof(text), "%.*s", (int)m.body.len, (const char *)m.body.p);
	assert_has(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	a.fd = -1;
	a.status = 201;
	core_reply(f, b.id, &a);
	assert_has(client_reply(fd), "HTTP/1.1 20");
	assert_int_equal(pread(file, text, 3, 0), 3);
	assert_memory_equal(text, "abc", 3);
	/* gone in the middle: core is told */
	client_send(fd, "PUT /v1/images/k/content HTTP/1.1\r\n" H "Content-Length: 300\r\n\r\nabc");
	m = core_expect_request(f, &b);
	a.fd = file;
	core_reply(f, b.id, &a);
	close(fd);
	m = core_expect_request(f, &b);
	assert_string_equal(m.sub, "abort");
	close(file);
	wire_buf_clear(&b);
}

static void console_ticket_is_good_once(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	struct msg_a_request m;
	char ticket[33], req[512], *r;
	int fd, pair[2];
	/* masked frames of a client, mask zero: "hi", then close 1000 */
	static const char hi[] = "\x82\x82\0\0\0\0hi", bye[] = "\x88\x82\0\0\0\0\x03\xe8";

	two_guests(f);
	r = client_ask(f, "POST /v1/guests/web/console HTTP/1.1\r\n" H "\r\n");
	assert_has(r, "201 Created");
	snprintf(ticket, sizeof(ticket), "%.32s", strstr(r, "\"ticket\":\"") + 10);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	fd = client_open(f);
	snprintf(req, sizeof(req),
		 "GET /v1/guests/web/console?ticket=%s HTTP/1.1\r\n" H
		 "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: "
		 "13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		 ticket);
	client_send(fd, req);
	m = core_expect_request(f, &b);
	assert_int_equal(m.route, ROUTE_GUEST_CONSOLE);
	core_reply(f, b.id, &(struct msg_a_reply){ .status = 200, .fd = pair[1] });
	close(pair[1]);
	assert_has(client_reply(fd), "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
	assert_int_equal(send(fd, hi, sizeof(hi) - 1, 0), sizeof(hi) - 1);
	{
		char got[8] = "";
		struct pollfd p = { .fd = pair[0], .events = POLLIN };

		assert_int_equal(poll(&p, 1, 5000), 1);
		assert_int_equal(recv(pair[0], got, sizeof(got), 0), 2);
		assert_memory_equal(got, "hi", 2);
	}
	client_send(pair[0], "login:");
	r = client_read(fd, "login:");
	assert_memory_equal(r, "\x82\x06login:", 8);
	assert_int_equal(send(fd, bye, sizeof(bye) - 1, 0), sizeof(bye) - 1);
	assert_true(client_closed(fd));
	close(fd);
	/* again: refused */
	assert_has(client_ask(f, req), "403 ");
	close(pair[0]);
	wire_buf_clear(&b);
}

/* an unmasked frame, a reserved opcode, a message beyond the limit, a broken continuation: each
 * ends that connection only */
static void websocket_abuse_ends_the_connection(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
	} rows[] = {
		{ "\x82\x02hi", 4 },
		{ "\x83\x82\0\0\0\0hi", 8 },
		{ "\x82\xff\0\0\0\0\x7f\xff\xff\xff\0\0\0\0x", 15 },
		{ "\x80\x82\0\0\0\0hi", 8 },
		{ "\xf2\x82\0\0\0\0hi", 8 },
		{ "\x89\xfe\x01\0\0\0\0\0x", 9 },
	};
	struct fixture *f = *state;
	struct wire_buf b = { 0 };

	two_guests(f);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		char *r = client_ask(f, "POST /v1/guests/web/console HTTP/1.1\r\n" H "\r\n"),
		     req[512];
		int fd = client_open(f), pair[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		snprintf(req, sizeof(req),
			 "GET /v1/guests/web/console?ticket=%.32s HTTP/1.1\r\n" H
			 "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: "
			 "13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
			 strstr(r, "\"ticket\":\"") + 10);
		client_send(fd, req);
		core_expect_request(f, &b);
		core_reply(f, b.id, &(struct msg_a_reply){ .status = 200, .fd = pair[1] });
		close(pair[1]);
		assert_has(client_reply(fd), "101 ");
		assert_int_equal(send(fd, rows[i].bytes, rows[i].len, 0), (long)rows[i].len);
		assert_true(client_closed(fd));
		close(fd);
		close(pair[0]);
		assert_has(client_ask(f, "GET /v1/version HTTP/1.1\r\n" H "\r\n"), "200 OK");
	}
	wire_buf_clear(&b);
}

static void openapi_has_every_route_of_the_table(void **state)
{
	struct fixture *f = *state;
	char *r = client_ask(f, "GET /v1/openapi.json HTTP/1.1\r\n" H "\r\n");
	json_error_t je;
	json_t *doc = json_loads(strstr(r, "\r\n\r\n") + 4, JSON_REJECT_DUPLICATES, &je), *schemas;

	assert_non_null(doc);
	assert_string_equal(json_string_value(json_object_get(doc, "openapi")), "3.1.0");
	schemas = json_object_get(json_object_get(doc, "components"), "schemas");
	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		char method[8] = "";
		json_t *op;

		for (unsigned j = 0; schema_routes[i].method[j]; j++)
			method[j] = (char)(schema_routes[i].method[j] | 0x20);
		op = json_object_get(
		    json_object_get(json_object_get(doc, "paths"), schema_routes[i].path), method);
		assert_non_null(op);
		assert_string_equal(json_string_value(json_object_get(op, "operationId")),
				    route_name(schema_routes[i].id));
		assert_non_null(json_object_get(op, "responses"));
	}
	for (const struct schema_field *g = schema_guest.fields; g->name; g++)
		if (g->flags & SF_READ)
			assert_non_null(json_object_get(
			    json_object_get(json_object_get(schemas, "guest"), "properties"),
			    g->name));
	/* every reference leads somewhere */
	for (char *p = strstr(r, "#/components/schemas/"); p;
	     p = strstr(p + 1, "#/components/schemas/")) {
		char name[64];

		snprintf(name, sizeof(name), "%.*s", (int)strcspn(p + 21, "\""), p + 21);
		assert_non_null(json_object_get(schemas, name));
	}
	json_decref(doc);
}

static void core_death_is_answered_and_ends_the_process(void **state)
{
	struct fixture *f = *state;
	struct wire_buf b = { 0 };
	int fd;

	two_guests(f);
	fd = client_open(f);
	client_send(fd, "POST /v1/guests/db/start HTTP/1.1\r\n" H "\r\n");
	core_expect_request(f, &b);
	shutdown(f->core, SHUT_RDWR);
	assert_has(client_reply(fd), "\"code\":\"daemon-restarting\"");
	assert_true(client_closed(fd));
	close(fd);
	wire_buf_clear(&b);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fixture_start, fixture_stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(reads_wait_for_the_first_sync),
		T(object_by_name_and_uuid_with_etag),
		T(list_filters_pages_and_projects),
		T(bad_bodies_name_the_field),
		T(create_reaches_core_normalised_and_answers),
		T(slow_verb_waits_for_its_operation),
		T(wait_for_state_is_answered_by_the_change),
		T(framing_attacks_are_refused_and_closed),
		T(nul_byte_in_the_head_is_refused),
		T(huge_head_and_huge_body_are_refused_at_once),
		T(pipelined_requests_are_answered_in_order),
		T(idle_connections_are_bounded_and_newcomers_served),
		T(dripping_client_is_cut_off),
		T(events_resume_where_the_client_left),
		T(upload_is_hashed_and_handed_over),
		T(console_ticket_is_good_once),
		T(websocket_abuse_ends_the_connection),
		T(openapi_has_every_route_of_the_table),
		T(core_death_is_answered_and_ends_the_process),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
