/* api_fuzz.h - the whole api role under a fuzzer: it runs in a thread of the process; the fuzzed
 * thread is its client on a real socket pair's worth of connection, and its core.
 *
 * One guest "web" is in the read model. Core answers each request by success, with a descriptor where
 * one is wanted. An input is over when api closed the connection; a second without that is a hang and
 * aborts.
 */
#ifndef TESTS_API_FUZZ_H
#define TESTS_API_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/api.h"
#include "common/log.h"
#include "common/schema.h"
#include "common/units.h"
#include "vmd/proto.h"

#define HANG_NS	 (10 * NS_PER_S)
#define QUIET_MS 2 /* api has nothing more to say to what it was sent */

static int fuzz_priv = -1, fuzz_core = -1;
static struct sockaddr_un fuzz_addr = { .sun_family = AF_UNIX };
static socklen_t fuzz_addr_len;
static char fuzz_text[1 << 20];
static size_t fuzz_text_len;

static void *fuzz_api(void *arg)
{
	api_main((int)(intptr_t)arg);
	abort(); /* only when priv goes */
}

static void fuzz_to_core_socket(uint16_t type, const void *m, uint32_t id)
{
	struct wire_buf b = { 0 };

	if (proto_encode(type, m, id, &b) < 0 || wire_send(fuzz_core, &b) < 0)
		abort();
	wire_buf_clear(&b);
}

static void fuzz_put(const char *kind, const char *id, const char *name, const char *json)
{
	struct msg_a_put m = { .revision = 1, .json = { (const uint8_t *)json, strlen(json) } };

	snprintf(m.kind, sizeof(m.kind), "%s", kind);
	snprintf(m.id, sizeof(m.id), "%s", id);
	snprintf(m.name, sizeof(m.name), "%s", name);
	fuzz_to_core_socket(MSG_a_put, &m, 0);
}

/* an abstract socket: nothing to remove */
static int fuzz_listen(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(fuzz_addr.sun_path + 1, sizeof(fuzz_addr.sun_path) - 1, "vmd-fuzz-api-%d",
		 (int)getpid());
	fuzz_addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
				    strlen(fuzz_addr.sun_path + 1));
	if (fd < 0 || bind(fd, (struct sockaddr *)&fuzz_addr, fuzz_addr_len) < 0 ||
	    listen(fd, 64) < 0)
		abort();
	return fd;
}

static void fuzz_start(void)
{
	struct msg_s_setup *s = calloc(1, sizeof(*s));
	struct msg_a_synced synced;
	struct wire_buf b = { 0 };
	int priv[2], core[2];
	pthread_t t;

	log_open("api", NULL, open("/dev/null", O_WRONLY | O_CLOEXEC), LOG_ERR_);
	if (!s || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, priv) < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, core) < 0 ||
	    pthread_create(&t, NULL, fuzz_api, (void *)(intptr_t)priv[1]))
		abort();
	fuzz_priv = priv[0];
	fuzz_core = core[0];
	s->peer = core[1];
	s->listen = fuzz_listen();
	s->listen_tls = s->db_dir = -1;
	s->user_mode = 1;
	if (msg_s_setup_encode(s, 0, &b) < 0 || wire_send(fuzz_priv, &b) < 0)
		abort();
	wire_buf_clear(&b);
	free(s);
	fuzz_put("guest", "00000000-0000-4000-8000-000000000001", "web",
		 "{\"name\":\"web\",\"state\":\"running\",\"labels\":{\"a\":\"b\"}}");
	fuzz_put("disk", "00000000-0000-4000-8000-000000000002", "d", "{\"name\":\"d\"}");
	memset(&synced, 0, sizeof(synced));
	fuzz_to_core_socket(MSG_a_synced, &synced, 0);
}

/* ---- core's part ---- */

static void fuzz_answer(struct wire_buf *b)
{
	static const char body[] = "{\"name\":\"web\",\"items\":[]}";
	static struct msg_a_reply r;
	struct msg_a_request m;
	struct msg_result res;
	int pair[2] = { -1, -1 };

	memset(&r, 0, sizeof(r));
	r.status = 200;
	r.fd = -1;
	r.body = (struct proto_bytes){ (const uint8_t *)body, sizeof(body) - 1 };
	if (b->type == MSG_a_events_since || b->type == MSG_a_auth) {
		memset(&res, 0, sizeof(res));
		fuzz_to_core_socket(MSG_result, &res, b->id);
		return;
	}
	if (b->type != MSG_a_request || msg_a_request_decode(&m, b) < 0)
		return;
	if (m.more)
		return;
	if (m.route == ROUTE_GUEST_CONSOLE) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
			abort();
		/* the guest says something and hangs up its half */
		if (write(pair[1], "login: ", 7) != 7)
			abort();
		shutdown(pair[1], SHUT_WR);
		r.fd = pair[0];
	} else if (m.route == ROUTE_IMAGE_UPLOAD && !strcmp(m.sub, "begin")) {
		r.fd = memfd_create("upload", MFD_CLOEXEC);
	} else if (m.route == ROUTE_IMAGE_EXPORT || m.route == ROUTE_GUEST_LOGS) {
		r.fd = memfd_create("content", MFD_CLOEXEC);
		if (r.fd < 0 || write(r.fd, body, sizeof(body)) < 0 || lseek(r.fd, 0, SEEK_SET))
			abort();
	}
	fuzz_to_core_socket(MSG_a_reply, &r, b->id);
	if (r.fd >= 0)
		close(r.fd);
	if (pair[1] >= 0)
		close(pair[1]);
	msg_a_request_close(&m);
}

/* one look: answers core's requests, takes what api says. Return: something happened */
static bool fuzz_turn(int fd, int wait_ms, bool *gone)
{
	struct pollfd p[2] = { { .fd = fuzz_core, .events = POLLIN },
			       { .fd = *gone ? -1 : fd, .events = POLLIN } };
	struct wire_buf b = { 0 };
	ssize_t n;

	if (poll(p, 2, wait_ms) <= 0)
		return false;
	if (p[0].revents) {
		if (wire_recv(fuzz_core, &b, 4) != 1)
			abort();
		if (proto_permit(&b, PROTO_API, PROTO_CORE, PROTO_UP) < 0)
			abort(); /* api may not say that */
		fuzz_answer(&b);
		wire_buf_clear(&b);
	}
	if (p[1].revents) {
		if (fuzz_text_len > sizeof(fuzz_text) / 2)
			fuzz_text_len = 0;
		n = recv(fd, fuzz_text + fuzz_text_len, sizeof(fuzz_text) - 1 - fuzz_text_len, 0);
		if (n <= 0)
			*gone = true;
		else
			fuzz_text_len += (size_t)n;
		fuzz_text[fuzz_text_len] = '\0';
	}
	return true;
}

/* the first call starts api */
static inline int api_fuzz_open(void)
{
	int fd;

	if (fuzz_core < 0)
		fuzz_start();
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&fuzz_addr, fuzz_addr_len) < 0)
		abort();
	fuzz_text_len = 0;
	fuzz_text[0] = '\0';
	return fd;
}

/* send and let api and core talk until api waits; @gone is set when api ended the connection. Return:
 * the replies so far, in a static buffer */
static inline const char *api_fuzz_send(int fd, const void *data, size_t len, bool *gone)
{
	const char *p = data;
	uint64_t end = clock_mono_ns() + HANG_NS;

	while (len && !*gone) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0) {
			p += n;
			len -= (size_t)n;
		} else if (!fuzz_turn(fd, QUIET_MS, gone) && clock_mono_ns() > end) {
			abort(); /* api takes nothing and says nothing */
		}
	}
	while (fuzz_turn(fd, QUIET_MS, gone) && !*gone)
		;
	return fuzz_text;
}

/* send what must be answered, and wait until @until is in the replies */
static inline const char *api_fuzz_ask(int fd, const char *ask, const char *until)
{
	uint64_t end = clock_mono_ns() + HANG_NS;
	bool gone = false;
	char *hit;

	fuzz_text_len = 0;
	fuzz_text[0] = '\0';
	if (send(fd, ask, strlen(ask), MSG_NOSIGNAL) != (ssize_t)strlen(ask))
		abort();
	while (!(hit = strstr(fuzz_text, until))) {
		fuzz_turn(fd, 100, &gone);
		if (gone || clock_mono_ns() > end)
			abort();
	}
	return hit;
}

/* nothing more will come: until api ends the connection */
static inline void api_fuzz_end(int fd)
{
	uint64_t end = clock_mono_ns() + HANG_NS;
	bool gone = false;

	shutdown(fd, SHUT_WR);
	while (!gone) {
		fuzz_turn(fd, 100, &gone);
		if (clock_mono_ns() > end)
			abort(); /* a client that hung up is never let go */
	}
	close(fd);
}

#endif
