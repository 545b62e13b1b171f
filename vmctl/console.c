/* console.c - a guest's console in this terminal, over the daemon's WebSocket (libwslay does the
 * frames).
 *
 * The terminal is raw while connected and put back whatever ends us: the way out, a signal, the
 * daemon. Ctrl-] leaves, pressed twice it is sent to the guest. Piped, input is sent as it is and
 * its end leaves output running until the guest or daemon closes; a serial line has no size, so a
 * resized window needs nothing from us.
 */
#include "vmctl/vmctl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <termios.h>
#include <unistd.h>
#include <wslay/wslay.h>

#include "common/hash.h"

#define ESCAPE 0x1d /* Ctrl-] */

struct session {
	struct vmctl *v;
	wslay_event_context_ptr ws;
	bool gone, escaped, left;
};

static struct termios console_saved;
static volatile sig_atomic_t console_raw, console_stop;

static void console_restore(void)
{
	if (console_raw)
		tcsetattr(0, TCSAFLUSH, &console_saved);
	console_raw = 0;
}

static void console_signal(int signo)
{
	console_stop = 1;
}

static void console_make_raw(void)
{
	struct termios t;
	struct sigaction sa = { .sa_handler = console_signal };

	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	if (!isatty(0) || tcgetattr(0, &console_saved) < 0)
		return;
	t = console_saved;
	cfmakeraw(&t);
	atexit(console_restore);
	console_raw = tcsetattr(0, TCSAFLUSH, &t) == 0;
}

static ssize_t console_recv(wslay_event_context_ptr ws, uint8_t *buf, size_t len, int flags,
			    void *arg)
{
	struct session *s = arg;
	struct pollfd p = { .fd = client_fd(s->v), .events = POLLIN };
	long n;

	/* the socket may block: only read what is there */
	n = client_pending(s->v) || poll(&p, 1, 0) == 1 ? client_read(s->v, buf, len) : -EAGAIN;
	if (n > 0)
		return n;
	s->gone = n != -EAGAIN;
	wslay_event_set_error(ws, n == -EAGAIN ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
	return -1;
}

static ssize_t console_send(wslay_event_context_ptr ws, const uint8_t *data, size_t len, int flags,
			    void *arg)
{
	struct session *s = arg;
	long n = client_write(s->v, data, len);

	if (n >= 0)
		return n;
	wslay_event_set_error(ws, n == -EAGAIN ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
	return -1;
}

static int console_mask(wslay_event_context_ptr ws, uint8_t *buf, size_t len, void *arg)
{
	return getrandom(buf, len, 0) == (ssize_t)len ? 0 : -1;
}

static void console_msg(wslay_event_context_ptr ws, const struct wslay_event_on_msg_recv_arg *m,
			void *arg)
{
	if (m->opcode == WSLAY_BINARY_FRAME || m->opcode == WSLAY_TEXT_FRAME)
		io_write_full(1, m->msg, m->msg_length);
}

/* typed bytes into the queue; Ctrl-] leaves, Ctrl-] Ctrl-] sends one */
static void console_type(struct session *s, const uint8_t *in, size_t len)
{
	uint8_t out[4096];
	size_t n = 0;

	for (size_t i = 0; i < len && !s->left; i++) {
		if (console_raw && in[i] == ESCAPE && !s->escaped) {
			s->escaped = true;
			continue;
		}
		if (s->escaped && in[i] != ESCAPE) {
			s->left = true;
			break;
		}
		s->escaped = false;
		out[n++] = in[i];
	}
	if (n)
		wslay_event_queue_msg(
		    s->ws, &(struct wslay_event_msg){
			       .opcode = WSLAY_BINARY_FRAME, .msg = out, .msg_length = n });
}

static void console_loop(struct session *s)
{
	struct pollfd p[2] = { { .fd = client_fd(s->v) }, { .fd = 0, .events = POLLIN } };

	while (!s->gone && !s->left && !console_stop && !wslay_event_get_close_received(s->ws)) {
		/* an escape is complete when nothing follows it at once */
		int timeout = s->escaped ? 300 : -1, r;

		p[0].events = (short)(POLLIN | (wslay_event_want_write(s->ws) ? POLLOUT : 0));
		r = client_pending(s->v) ? 1 : poll(p, 2, timeout);
		if (r < 0 && errno != EINTR)
			break;
		if (r == 0 && s->escaped)
			break;
		if (r < 0)
			continue;
		if (p[1].fd >= 0 && (p[1].revents & (POLLIN | POLLHUP))) {
			uint8_t in[4096];
			ssize_t n = read(0, in, sizeof(in));

			if (n <= 0)
				p[1].fd = -1; /* end of input: go on listening */
			else
				console_type(s, in, (size_t)n);
		}
		if (wslay_event_recv(s->ws) != 0 ||
		    (wslay_event_want_write(s->ws) && wslay_event_send(s->ws) != 0))
			break;
	}
	if (!s->gone) {
		wslay_event_queue_close(s->ws, WSLAY_CODE_NORMAL_CLOSURE, NULL, 0);
		wslay_event_send(s->ws);
	}
}

/* POST for a ticket, then the upgrade. The exit code where it fails, else 0 */
static int console_connect(struct vmctl *v, struct args *a)
{
	char path[160], key[32];
	uint8_t raw[16];
	struct reply r = { 0 };
	struct err e = { 0 };
	const char *where;
	json_t *body = json_object();
	char *text;
	int status = EX_DONE, n;

	if (a->rest_count)
		json_object_set_new(body, "port", json_string(a->rest[0]));
	if (a->read_only)
		json_object_set_new(body, "read_only", json_true());
	text = json_dumps(body, JSON_COMPACT);
	json_decref(body);
	snprintf(path, sizeof(path), "/v1/guests/%.100s/console", a->name);
	n = client_request(v, "POST", path, NULL, text, strlen(text), &r, &e);
	free(text);
	where = json_string_value(json_object_get(r.json, "path"));
	if (!n && (r.status >= 300 || !where)) {
		status = out_problem(v, &r);
		goto out;
	}
	if (!n) {
		char upgrade[200];

		snprintf(upgrade, sizeof(upgrade), "%s", where);
		reply_free(&r);
		if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
			abort();
		base64_encode(raw, sizeof(raw), key);
		n = client_upgrade(v, upgrade, key, &r, &e);
		if (!n && r.status != 101)
			status = out_problem(v, &r);
	}
	if (n < 0) {
		out_error(v, &e);
		status = EX_UNREACHABLE;
	}
out:
	reply_free(&r);
	return status;
}

int console_run(struct vmctl *v, struct args *a)
{
	static const struct wslay_event_callbacks cb = { .recv_callback = console_recv,
							 .send_callback = console_send,
							 .genmask_callback = console_mask,
							 .on_msg_recv_callback = console_msg };
	struct session s = { .v = v };
	int status = console_connect(v, a);

	if (status)
		return status;
	if (wslay_event_context_client_init(&s.ws, &cb, &s) != 0)
		return EX_FAILED_;
	if (isatty(0) && !v->quiet)
		fprintf(stderr, "connected to %s%s%s; Ctrl-] leaves\n", a->name,
			a->rest_count ? " " : "", a->rest_count ? a->rest[0] : "");
	console_make_raw();
	console_loop(&s);
	console_restore();
	if (isatty(0) && !v->quiet)
		fprintf(stderr, "\ndisconnected from %s\n", a->name);
	wslay_event_context_free(s.ws);
	return EX_DONE;
}
