/* fixture.c - see fixture.h. The api process is forked from the test; the test speaks the wire as
 * priv and core over socket pairs and is itself the HTTP client. Every wait has a deadline of 5 s.
 */
#include "tests/unit/api/fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/api.h"
#include "common/log.h"
#include "common/units.h"

#define WAIT_MS 5000

static int fixture_listen(struct fixture *f)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(f->dir, sizeof(f->dir), "/tmp/vmd-api-test.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->sock, sizeof(f->sock), "%s/sock", f->dir);
	snprintf(un.sun_path, sizeof(un.sun_path), "%s", f->sock);
	assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	assert_int_equal(listen(fd, 4096), 0);
	return fd;
}

int fixture_start(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct msg_s_setup *s = calloc(1, sizeof(*s));
	struct wire_buf b = { 0 };
	int priv[2], core[2], lfd;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, priv), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, core), 0);
	lfd = fixture_listen(f);
	f->pid = fork();
	if (!f->pid) {
		close(priv[0]);
		close(core[0]);
		log_open("api", NULL, 2, LOG_ERR_);
		_exit(api_main(priv[1]));
	}
	close(priv[1]);
	f->priv = priv[0];
	f->core = core[0];
	s->peer = core[1];
	s->listen = lfd;
	s->listen_tls = s->db_dir = -1;
	s->user_mode = 1;
	snprintf(s->settings, sizeof(s->settings), "host_allow=vm.example.org\n");
	assert_int_equal(msg_s_setup_encode(s, 0, &b), 0);
	assert_int_equal(wire_send(f->priv, &b), 0);
	close(core[1]);
	close(lfd);
	free(s);
	core_expect(f, MSG_hello, &b);
	wire_buf_clear(&b);
	*state = f;
	return 0;
}

int fixture_stop(void **state)
{
	struct fixture *f = *state;
	int status;

	close(f->priv);
	close(f->core);
	assert_int_equal(waitpid(f->pid, &status, 0), f->pid);
	assert_true(WIFEXITED(status)); /* a sanitizer or a crash would show here */
	unlink(f->sock);
	rmdir(f->dir);
	free(f);
	return 0;
}

static void core_send(struct fixture *f, uint16_t type, const void *m, uint32_t id)
{
	struct wire_buf b = { 0 };

	assert_int_equal(proto_encode(type, m, id, &b), 0);
	assert_int_equal(wire_send(f->core, &b), 0);
	wire_buf_clear(&b);
}

void core_put(struct fixture *f, const char *kind, const char *id, const char *name,
	      int64_t revision, const char *json)
{
	struct msg_a_put m = { .revision = revision,
			       .json = { (const uint8_t *)json, strlen(json) } };

	snprintf(m.kind, sizeof(m.kind), "%s", kind);
	snprintf(m.id, sizeof(m.id), "%s", id);
	snprintf(m.name, sizeof(m.name), "%s", name);
	core_send(f, MSG_a_put, &m, 0);
}

void core_synced(struct fixture *f)
{
	struct msg_a_synced m;
	int fd;
	bool ok = false;

	memset(&m, 0, sizeof(m));
	core_send(f, MSG_a_synced, &m, 0);
	for (unsigned i = 0; i < 1000 && !ok; i++) { /* until it shows */
		fd = client_open(f);
		client_send(fd, "GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
		ok = strstr(client_reply(fd), "200 OK") != NULL;
		close(fd);
	}
	assert_true(ok);
}

void core_event(struct fixture *f, uint64_t seq, const char *json, uint32_t id)
{
	struct msg_a_event m = { .seq = seq, .json = { (const uint8_t *)json, strlen(json) } };

	core_send(f, MSG_a_event, &m, id);
}

void core_expect(struct fixture *f, uint16_t type, struct wire_buf *b)
{
	struct pollfd p = { .fd = f->core, .events = POLLIN };

	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
	assert_int_equal(wire_recv(f->core, b, 4), 1);
	assert_int_equal(b->type, type);
	assert_int_equal(proto_permit(b, PROTO_API, PROTO_CORE, PROTO_UP), 0);
}

struct msg_a_request core_expect_request(struct fixture *f, struct wire_buf *b)
{
	struct msg_a_request m;
	struct pollfd p = { .fd = f->core, .events = POLLIN };

	do { /* a client that went away may have been told of first */
		assert_int_equal(poll(&p, 1, WAIT_MS), 1);
		assert_int_equal(wire_recv(f->core, b, 4), 1);
	} while (b->type == MSG_a_abandon);
	assert_int_equal(b->type, MSG_a_request);
	assert_int_equal(msg_a_request_decode(&m, b), 0);
	return m;
}

void core_reply(struct fixture *f, uint32_t id, struct msg_a_reply *m)
{
	core_send(f, MSG_a_reply, m, id);
}

int client_open(struct fixture *f)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(un.sun_path, sizeof(un.sun_path), "%s", f->sock);
	assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	return fd;
}

void client_send(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (long)strlen(text));
}

static char client_buf[4 << 20];
static size_t client_len;

/* more bytes: 1; end: 0 */
static int client_more(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	ssize_t n;

	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
	n = recv(fd, client_buf + client_len, sizeof(client_buf) - client_len - 1, 0);
	if (n <= 0)
		return 0;
	client_len += (size_t)n;
	client_buf[client_len] = '\0';
	return 1;
}

char *client_read(int fd, const char *until)
{
	client_len = 0;
	client_buf[0] = '\0';
	while ((!until || !strstr(client_buf, until)) && client_more(fd))
		;
	return client_buf;
}

char *client_reply(int fd)
{
	char *body, *cl;
	size_t want;

	client_len = 0;
	client_buf[0] = '\0';
	while (!(body = strstr(client_buf, "\r\n\r\n")))
		if (!client_more(fd))
			return client_buf;
	body += 4;
	cl = strstr(client_buf, "Content-Length: ");
	want = cl && cl < body ? strtoul(cl + 16, NULL, 10) : 0;
	while (client_len - (size_t)(body - client_buf) < want && client_more(fd))
		;
	return client_buf;
}

char *client_ask(struct fixture *f, const char *request)
{
	int fd = client_open(f);
	char *r;

	client_send(fd, request);
	r = client_reply(fd);
	close(fd);
	return r;
}

bool client_closed(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char waste[4096];
	ssize_t n;

	do {
		if (poll(&p, 1, WAIT_MS) != 1)
			return false;
		n = recv(fd, waste, sizeof(waste), 0);
	} while (n > 0);
	return true;
}
