/* console.c - a guest's console over WebSocket (RFC 6455), framed by libwslay.
 *
 * POST .../console with the caller's credentials makes a ticket: random, for one guest and port,
 * good once and for 30 s. GET with it upgrades, so that a browser, which can set no header on a
 * WebSocket, needs no credential in its URL that is worth stealing. core hands over a stream socket
 * to the port. Bytes go both ways in binary frames; each direction stops reading while the other
 * side does not take what is there, so neither a flooding guest nor a stuck client costs more than
 * some pieces of memory.
 * Trust: frames are hostile; a message is at most 64 KiB; wslay checks masking, opcodes, lengths,
 * UTF-8 and fragmentation.
 */
#include "api/server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>
#include <wslay/wslay.h>

#include "common/units.h"

#define CONSOLE_TICKET_NS   (30 * NS_PER_S)
#define CONSOLE_TICKETS_MAX 256
#define CONSOLE_MESSAGE_MAX 65536
#define CONSOLE_QUEUE_MAX   (256u << 10)
#define CONSOLE_PIECE	    16384
#define CONSOLE_PING_NS	    (30 * NS_PER_S)
#define WS_GUID		    "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

struct ticket {
	struct list node;
	char id[33], guest[37], port[32], principal[API_PRINCIPAL_LEN];
	bool read_only;
	enum role role;
	struct token_ref token; /* that its maker came with */
	uint64_t deadline_ns;
};

struct console {
	struct conn *c;
	int fd; /* the guest's port */
	struct loop_fd w;
	uint32_t events;
	wslay_event_context_ptr ws;
	bool read_only, ending, close_queued;
	uint16_t end_code;
	const char *end_reason;
	struct text to_guest; /* what the port does not take yet */
	size_t to_guest_off;
	uint64_t ping_ns, heard_ns;
};

/* ---- tickets ---- */

static void ticket_free(struct api *a, struct ticket *t)
{
	list_del(&t->node);
	a->ticket_count--;
	explicit_bzero(t->id, sizeof(t->id));
	free(t);
}

void console_token_gone(struct api *a, const char *id)
{
	list_for_each_safe (n, &a->tickets) {
		struct ticket *t = container_of(n, struct ticket, node);

		if (*id && !strcmp(t->token.id, id))
			ticket_free(a, t);
	}
}

void console_tick(struct api *a)
{
	list_for_each_safe (n, &a->tickets) {
		struct ticket *t = container_of(n, struct ticket, node);

		if (a->now_ns >= t->deadline_ns)
			ticket_free(a, t);
	}
	list_for_each (n, &a->conns) {
		struct conn *c = container_of(n, struct conn, node);
		struct console *k = c->state == CONN_CONSOLE ? c->console : NULL;

		if (!k || a->now_ns < k->ping_ns)
			continue;
		k->ping_ns = a->now_ns + CONSOLE_PING_NS;
		wslay_event_queue_msg(k->ws, &(struct wslay_event_msg){ .opcode = WSLAY_PING });
		conn_events(c, c->events | EPOLLOUT);
	}
}

void console_ticket(struct conn *c)
{
	struct api *a = c->api;
	const struct model_obj *o = model_find(a->model, &schema_guest, c->name);
	json_t *j = json_loadb(c->body ? c->body : "{}", c->body ? c->body_len : 2, 0, NULL);
	const char *port = json_string_value(json_object_get(j, "port"));
	struct ticket *oldest, *t;
	uint8_t raw[16];
	char body[200];

	if (!o) {
		conn_refuse(c, 404, "guest-not-found", "vmctl ls", "guest \"%s\" does not exist",
			    c->name);
		goto out;
	}
	oldest = list_first(&a->tickets, struct ticket, node);
	if (a->ticket_count >= CONSOLE_TICKETS_MAX && oldest)
		ticket_free(a, oldest);
	t = calloc(1, sizeof(*t));
	if (!t || getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw)) {
		free(t);
		conn_refuse(c, 503, "no-memory", NULL, "the daemon is out of memory");
		goto out;
	}
	for (unsigned i = 0; i < sizeof(raw); i++)
		snprintf(t->id + 2 * i, 3, "%02x", raw[i]);
	snprintf(t->guest, sizeof(t->guest), "%s", o->id);
	snprintf(t->port, sizeof(t->port), "%s", port ? port : "");
	snprintf(t->principal, sizeof(t->principal), "%s", c->principal);
	t->read_only = json_is_true(json_object_get(j, "read_only"));
	t->role = c->role;
	t->token = c->token;
	t->deadline_ns = a->now_ns + CONSOLE_TICKET_NS;
	list_add_tail(&a->tickets, &t->node);
	a->ticket_count++;
	snprintf(body, sizeof(body),
		 "{\"ticket\":\"%s\",\"path\":\"/v1/guests/%s/"
		 "console?ticket=%s\",\"expires_in\":30000}\n",
		 t->id, o->id, t->id);
	conn_reply_json(c, 201, NULL, body, strlen(body));
out:
	json_decref(j);
}

/* one use: taken out whether it fits or not; compared in constant time */
static struct ticket *ticket_take(struct api *a, const char *id)
{
	struct ticket *hit = NULL;

	if (strlen(id) != 32)
		return NULL;
	list_for_each (n, &a->tickets) {
		struct ticket *t = container_of(n, struct ticket, node);
		unsigned diff = 0;

		for (unsigned i = 0; i < 32; i++)
			diff |= (unsigned)(t->id[i] ^ id[i]);
		if (!diff)
			hit = t;
	}
	return hit && a->now_ns < hit->deadline_ns ? hit : NULL;
}

/* ---- frames ---- */

static ssize_t console_ws_recv(wslay_event_context_ptr ws, uint8_t *buf, size_t len, int flags,
			       void *arg)
{
	struct console *k = arg;
	struct conn *c = k->c;
	long n;

	if (c->in_len) { /* came behind the request */
		n = (long)(len < c->in_len ? len : c->in_len);
		memcpy(buf, c->in, (size_t)n);
		c->in_len -= (size_t)n;
		memmove(c->in, c->in + n, c->in_len);
		return n;
	}
	n = conn_recv(c, buf, len);
	if (n > 0)
		return n;
	wslay_event_set_error(ws, n == -EAGAIN ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
	return -1;
}

static ssize_t console_ws_send(wslay_event_context_ptr ws, const uint8_t *data, size_t len,
			       int flags, void *arg)
{
	struct console *k = arg;
	long n;

	if (conn_unsent(k->c)) { /* the reply to the handshake goes first */
		wslay_event_set_error(ws, WSLAY_ERR_WOULDBLOCK);
		return -1;
	}
	n = conn_send(k->c, data, len);
	if (n >= 0)
		return n;
	wslay_event_set_error(ws, n == -EAGAIN ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
	return -1;
}

static void console_ws_msg(wslay_event_context_ptr ws, const struct wslay_event_on_msg_recv_arg *m,
			   void *arg)
{
	struct console *k = arg;

	k->heard_ns = k->c->api->now_ns;
	if (k->read_only || (m->opcode != WSLAY_BINARY_FRAME && m->opcode != WSLAY_TEXT_FRAME))
		return;
	text_addn(&k->to_guest, (const char *)m->msg, m->msg_length);
}

/* ---- both ways ---- */

static void console_end(struct console *k, uint16_t code, const char *reason)
{
	if (k->ending)
		return;
	k->ending = true;
	k->end_code = code;
	k->end_reason = reason;
	loop_fd_del(&k->w);
	k->c->deadline_ns = k->c->api->now_ns + 5 * NS_PER_S;
}

static void console_to_guest(struct console *k)
{
	while (!k->ending && k->to_guest.len > k->to_guest_off) {
		ssize_t n = send(k->fd, k->to_guest.s + k->to_guest_off,
				 k->to_guest.len - k->to_guest_off, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			console_end(k, WSLAY_CODE_GOING_AWAY, "the guest's port was closed");
			return;
		}
		k->to_guest_off += (size_t)n;
	}
	text_clear(&k->to_guest);
	k->to_guest_off = 0;
}

static void console_from_guest(struct console *k)
{
	for (unsigned i = 0;
	     i < 8 && !k->ending && wslay_event_get_queued_msg_length(k->ws) < CONSOLE_QUEUE_MAX;
	     i++) {
		uint8_t buf[CONSOLE_PIECE];
		ssize_t n = recv(k->fd, buf, sizeof(buf), MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			console_end(k, WSLAY_CODE_GOING_AWAY, "the guest's port was closed");
			return;
		}
		wslay_event_queue_msg(
		    k->ws, &(struct wslay_event_msg){
			       .opcode = WSLAY_BINARY_FRAME, .msg = buf, .msg_length = (size_t)n });
	}
}

/* send what can be sent, then say what we wait for */
static void console_settle(struct console *k)
{
	struct conn *c = k->c;
	uint32_t ev = EPOLLRDHUP, guest_ev = 0;

	if (c->dead)
		return;
	console_to_guest(k);
	if (wslay_event_want_write(k->ws) && wslay_event_send(k->ws) != 0) {
		conn_close(c);
		return;
	}
	/* control frames overtake data in wslay: the guest's last words first */
	if (k->ending && !k->close_queued && !wslay_event_get_queued_msg_count(k->ws)) {
		k->close_queued = true;
		wslay_event_queue_close(k->ws, k->end_code, (const uint8_t *)k->end_reason,
					strlen(k->end_reason));
		wslay_event_shutdown_read(k->ws);
		if (wslay_event_send(k->ws) != 0) {
			conn_close(c);
			return;
		}
	}
	if (!wslay_event_want_write(k->ws) && (k->close_queued || !wslay_event_want_read(k->ws))) {
		c->state = CONN_CLOSING; /* the close frame is out */
		c->deadline_ns = c->api->now_ns + 2 * NS_PER_S;
		shutdown(c->fd, SHUT_WR);
		conn_events(c, EPOLLIN | EPOLLRDHUP);
		return;
	}
	if (k->to_guest.len == 0 && !k->ending)
		ev |= EPOLLIN;
	if (wslay_event_want_write(k->ws) || conn_unsent(c))
		ev |= EPOLLOUT;
	conn_events(c, ev);
	if (wslay_event_get_queued_msg_length(k->ws) < CONSOLE_QUEUE_MAX)
		guest_ev |= EPOLLIN;
	if (k->to_guest.len)
		guest_ev |= EPOLLOUT;
	if (!k->ending && guest_ev != k->events) {
		k->events = guest_ev;
		loop_fd_mod(&k->w, guest_ev);
	}
}

static void console_guest_ready(void *arg, int fd, uint32_t events)
{
	struct console *k = arg;
	struct api *a = k->c->api;

	a->now_ns = clock_mono_ns();
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		console_from_guest(k);
	console_settle(k);
	/* the port takes again: what the client sent meanwhile may be here already, and no socket tells */
	if (!k->c->dead && k->c->state == CONN_CONSOLE && !k->to_guest.len &&
	    (k->c->in_len || (k->c->tls && tls_pending(k->c->tls))))
		console_event(k->c, EPOLLIN);
	conn_reap(a);
}

void console_event(struct conn *c, uint32_t events)
{
	struct console *k = c->console;

	if (events & (EPOLLHUP | EPOLLERR)) {
		conn_close(c);
		return;
	}
	if ((events & (EPOLLIN | EPOLLRDHUP)) || c->in_len) {
		if (!k->to_guest.len && wslay_event_want_read(k->ws) &&
		    wslay_event_recv(k->ws) != 0) {
			conn_close(c);
			return;
		}
		if (k->to_guest.error) {
			conn_close(c);
			return;
		}
		if (wslay_event_get_close_received(k->ws))
			loop_fd_del(&k->w);
	}
	console_settle(k);
}

/* ---- the upgrade ---- */

static int console_frames(struct console *k)
{
	static const struct wslay_event_callbacks cb = { .recv_callback = console_ws_recv,
							 .send_callback = console_ws_send,
							 .on_msg_recv_callback = console_ws_msg };

	if (wslay_event_context_server_init(&k->ws, &cb, k) != 0)
		return -ENOMEM;
	wslay_event_config_set_max_recv_msg_length(k->ws, CONSOLE_MESSAGE_MAX);
	return 0;
}

static void console_upgrade(struct conn *c, int fd, bool read_only)
{
	struct console *k = calloc(1, sizeof(*k));
	char key[128], accept[32];
	uint8_t digest[20];

	if (!k) {
		close(fd);
		conn_refuse(c, 503, "no-memory", NULL, "the daemon is out of memory");
		return;
	}
	*k = (struct console){
		.c = c, .fd = fd, .w = LOOP_FD_NONE, .read_only = read_only, .events = EPOLLIN
	};
	k->ping_ns = c->api->now_ns + CONSOLE_PING_NS;
	c->console = k;
	if (fd_set_nonblock(fd) < 0 || console_frames(k) < 0 ||
	    loop_fd_add(c->api->loop, &k->w, fd, EPOLLIN, console_guest_ready, k) < 0) {
		conn_refuse(c, 503, "no-memory", NULL, "the console cannot be opened");
		return;
	}
	snprintf(key, sizeof(key), "%.64s" WS_GUID, c->req.header[HTTP_WS_KEY]);
	sha1_digest(key, strlen(key), digest);
	base64_encode(digest, sizeof(digest), accept);
	c->api->n.ws++;
	c->api->n.by_class[1]++;
	text_printf(&c->out,
		    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: "
		    "Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		    accept);
	c->state = CONN_CONSOLE;
	c->keep = false;
	c->deadline_ns = 0;
	conn_flush(c);
	if (c->dead)
		return;
	conn_events(c, EPOLLIN | EPOLLRDHUP);
	console_event(c, 0);
}

static void console_done(struct conn *c, struct pending *p)
{
	int fd = p->fd;

	if (p->status >= 400 || fd < 0) {
		if (p->status < 400)
			conn_refuse(c, 500, "no-console", NULL, "guest \"%s\" gave no console",
				    c->name);
		else
			core_reply_done(c, p);
		return;
	}
	p->fd = -1;
	console_upgrade(c, fd, c->waiter.on_guest);
}

void console_start(struct conn *c)
{
	struct api *a = c->api;
	const char *key = c->req.header[HTTP_WS_KEY], *version = c->req.header[HTTP_WS_VERSION];
	const struct model_obj *o = model_find(a->model, &schema_guest, c->name);
	struct ticket *t;
	char body[32], port[32];
	bool fits;

	if (!c->req.upgrade || !version || strcmp(version, "13") || !key || strlen(key) != 24) {
		conn_refuse(c, 426, "not-websocket", "vmctl console NAME",
			    "a console is a WebSocket (version 13)");
		return;
	}
	t = ticket_take(a, http_query(&c->req, "ticket"));
	fits = t && o && !strcmp(t->guest, o->id);
	if (t && !fits)
		ticket_free(a, t);
	if (!fits) {
		conn_refuse(c, 403, "bad-ticket", "POST to the same path for a new one",
			    "the ticket is unknown, used or too old");
		return;
	}
	/* what the maker of the ticket may, the bearer may */
	snprintf(c->principal, sizeof(c->principal), "%s", t->principal);
	c->role = t->role;
	c->token = t->token;
	c->waiter.on_guest = t->read_only;
	snprintf(port, sizeof(port), "%s", t->port);
	snprintf(body, sizeof(body), "{\"read_only\":%s}", t->read_only ? "true" : "false");
	ticket_free(a, t);
	c->state = CONN_WAIT;
	if (core_request(c, c->route, port, body, strlen(body), console_done, 30 * NS_PER_S) < 0)
		conn_refuse(c, 503, "daemon-restarting", NULL,
			    "the daemon is restarting; try again");
}

void console_free(struct conn *c)
{
	struct console *k = c->console;

	if (!k)
		return;
	loop_fd_del(&k->w);
	close(k->fd);
	if (k->ws)
		wslay_event_context_free(k->ws);
	text_free(&k->to_guest);
	free(k);
	c->console = NULL;
}
