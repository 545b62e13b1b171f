/* conn.c - connections: accepting with bounds, reading heads and bodies, deadlines, sending,
 * closing.
 *
 * Bounds: so many connections in all, a quarter of them for one uid (or one remote address). Where
 * a bound is met, the peer's own longest idle connection is closed for the new one; somebody else's
 * never, unless the total is met, and then the greediest peer gives one up. A head must be whole 10
 * s after its first byte and a JSON body 30 s after its head, however steadily bytes drip; a client
 * that takes no bytes for 30 s is dropped. What follows a refused request is never read as a
 * request: the connection ends.
 * One timer a second looks at all deadlines, so a request costs no timer calls.
 * Threading: api's loop. A closed connection is freed by conn_reap(), at the end of the callback
 * that closed it.
 */
#include "api/server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/log.h"
#include "common/units.h"

#define CONN_IDLE_NS   (60 * NS_PER_S)
#define CONN_HEAD_NS   (10 * NS_PER_S)
#define CONN_BODY_NS   (30 * NS_PER_S)
#define CONN_SEND_NS   (30 * NS_PER_S)
#define CONN_LINGER_NS (2 * NS_PER_S)
#define CONN_IN_START  4096
#define CONN_OUT_HIGH  (256u << 10) /* no further pipelined request above it */
#define CONN_READ      (EPOLLIN | EPOLLRDHUP)

static void conn_ready(void *arg, int fd, uint32_t events);
static void conn_process(struct conn *c);
static void conn_read(struct conn *c);

/* ---- peers and bounds ---- */

static struct peer *peer_get(struct api *a, uint64_t key)
{
	struct peer *p;

	list_for_each (n, &a->peers) {
		p = container_of(n, struct peer, node);
		if (p->key == key)
			return p;
	}
	p = calloc(1, sizeof(*p));
	if (!p)
		return NULL;
	p->key = key;
	list_init(&p->idle);
	list_add_head(&a->peers, &p->node);
	return p;
}

static void peer_put(struct peer *p)
{
	if (--p->count)
		return;
	list_del(&p->node);
	free(p);
}

/* close the longest idle connection of @p, or one that dawdles over its head */
static bool peer_evict(struct api *a, struct peer *p)
{
	struct conn *c = list_first(&p->idle, struct conn, idle_node);

	if (!c) {
		list_for_each (n, &a->conns) {
			struct conn *o = container_of(n, struct conn, node);

			if (o->peer == p && !o->dead &&
			    (o->state == CONN_HEAD || o->state == CONN_HANDSHAKE) && !o->in_event &&
			    a->now_ns > o->start_ns + NS_PER_S) {
				c = o;
				break;
			}
		}
	}
	if (!c)
		return false;
	a->n.evicted++;
	conn_close(c);
	return true;
}

static bool peer_make_room(struct api *a, struct peer *mine)
{
	struct peer *greedy = mine;

	if (mine->count >= a->peer_max)
		return peer_evict(a, mine);
	if (a->conn_count < a->conn_max)
		return true;
	list_for_each (n, &a->peers) {
		struct peer *p = container_of(n, struct peer, node);

		if (p->count > greedy->count)
			greedy = p;
	}
	return peer_evict(a, greedy);
}

/* ---- accepting ---- */

static uint64_t conn_address_key(int fd)
{
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} u = { 0 };
	socklen_t len = sizeof(u);
	uint64_t h = 0;

	if (getpeername(fd, &u.sa, &len) < 0)
		return UINT64_MAX;
	if (u.sa.sa_family == AF_INET)
		return 1ULL << 40 | ntohl(u.in.sin_addr.s_addr);
	memcpy(&h, u.in6.sin6_addr.s6_addr, 8); /* a /64 is one customer */
	return h | 1ULL << 63;
}

static void conn_turn_away(struct api *a, int fd, bool tls)
{
	static const char busy[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: "
				   "application/problem+json\r\nRetry-After: 1\r\n"
				   "Connection: close\r\nContent-Length: 96\r\n\r\n"
				   "{\"status\":503,\"code\":\"too-many-connections\",\"detail\":"
				   "\"you have too many connections open here\"}\n";

	/* it is small and the socket is empty: it fits or the client is gone */
	if (!tls && send(fd, busy, sizeof(busy) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_debug("a connection turned away was gone already");
	a->n.turned_away++;
	close(fd);
}

static struct conn *conn_new(struct api *a, int fd, bool tls)
{
	struct conn *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	*c = (struct conn){ .api = a,
			    .fd = fd,
			    .w = LOOP_FD_NONE,
			    .uid = (uid_t)-1,
			    .keep = true,
			    .name = "",
			    .start_ns = a->now_ns };
	list_init(&c->node);
	list_init(&c->idle_node);
	list_init(&c->waiter.node);
	if (!tls && identify_unix(a, c) < 0)
		goto fail;
	c->peer = peer_get(a, tls ? conn_address_key(fd) : c->uid);
	if (!c->peer)
		goto fail;
	if (!peer_make_room(a, c->peer)) {
		if (!c->peer->count) {
			c->peer->count = 1;
			peer_put(c->peer);
		}
		free(c);
		return NULL;
	}
	c->peer->count++;
	if (tls) {
		int one = 1;

		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		c->tls = tls_open(a->tls, fd, NULL);
		c->state = CONN_HANDSHAKE;
	} else {
		c->state = CONN_HEAD;
		list_add_tail(&c->peer->idle, &c->idle_node);
	}
	c->deadline_ns = a->now_ns + CONN_HEAD_NS;
	c->events = CONN_READ;
	if ((tls && !c->tls) || loop_fd_add(a->loop, &c->w, fd, CONN_READ, conn_ready, c) < 0) {
		list_del(&c->idle_node);
		tls_free(c->tls);
		peer_put(c->peer);
		goto fail;
	}
	list_add_tail(&a->conns, &c->node);
	a->conn_count++;
	a->n.accepted++;
	return c;
fail:
	free(c);
	return NULL;
}

void conn_accept(struct api *a, int listen_fd, bool tls)
{
	a->now_ns = clock_mono_ns();
	for (unsigned i = 0; i < 64; i++) {
		int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 &&
		    (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)) {
			/* wait for the next tick instead of spinning */
			loop_fd_mod(tls ? &a->listen_tls_w : &a->listen_w, 0);
			break;
		}
		if (fd < 0)
			break;
		if (!conn_new(a, fd, tls))
			conn_turn_away(a, fd, tls);
	}
	conn_reap(a);
}

/* ---- the socket ---- */

long conn_recv(struct conn *c, void *buf, size_t len)
{
	long n;

	if (c->tls) {
		n = tls_recv(c->tls, buf, len);
	} else {
		do
			n = recv(c->fd, buf, len, 0);
		while (n < 0 && errno == EINTR);
		if (n < 0)
			n = -errno;
	}
	if (n > 0)
		c->api->n.bytes_in += (uint64_t)n;
	return n;
}

long conn_send(struct conn *c, const void *buf, size_t len)
{
	long n;

	if (c->tls) {
		n = tls_send(c->tls, buf, len);
	} else {
		do
			n = send(c->fd, buf, len, MSG_NOSIGNAL);
		while (n < 0 && errno == EINTR);
		if (n < 0)
			n = -errno;
	}
	if (n > 0)
		c->api->n.bytes_out += (uint64_t)n;
	return n;
}

void conn_events(struct conn *c, uint32_t events)
{
	if (c->dead || c->events == events)
		return;
	c->events = events;
	loop_fd_mod(&c->w, events);
}

size_t conn_unsent(const struct conn *c)
{
	return c->out.len - c->out_off;
}

void conn_flush(struct conn *c)
{
	while (!c->dead && conn_unsent(c)) {
		long n = conn_send(c, c->out.s + c->out_off, conn_unsent(c));

		if (n == -EAGAIN) {
			conn_events(c, c->events | EPOLLOUT);
			return;
		}
		if (n <= 0) {
			conn_close(c);
			return;
		}
		c->out_off += (size_t)n;
		if (c->state != CONN_HEAD)
			c->deadline_ns = c->deadline_ns ? c->api->now_ns + CONN_SEND_NS : 0;
	}
	if (c->dead)
		return;
	c->out_off = 0;
	if (c->out.cap > CONN_OUT_HIGH)
		text_free(&c->out);
	else
		text_clear(&c->out);
	conn_events(c, c->state == CONN_HEAD || c->state == CONN_BODY
			   ? CONN_READ
			   : c->events & ~(uint32_t)EPOLLOUT);
	if (c->state == CONN_CLOSING && !(c->events & EPOLLIN)) {
		/* all is said; read what the client still sends for a moment, lest its kernel
		 * throws our answer away */
		if (c->tls)
			tls_bye(c->tls);
		shutdown(c->fd, SHUT_WR);
		c->deadline_ns = c->api->now_ns + CONN_LINGER_NS;
		conn_events(c, CONN_READ);
	}
}

/* ---- end ---- */

void conn_close(struct conn *c)
{
	if (c->dead)
		return;
	c->dead = true;
	list_del(&c->node);
	list_del(&c->idle_node);
	list_del(&c->waiter.node);
	loop_fd_del(&c->w);
	if (c->pending)
		core_abandon(c->pending);
	c->pending = NULL;
	list_add_tail(&c->api->dead, &c->node);
	c->api->conn_count--;
}

void conn_reap(struct api *a)
{
	while (!list_empty(&a->dead)) {
		struct conn *c = list_first(&a->dead, struct conn, node);

		list_del(&c->node);
		sse_free(c);
		console_free(c);
		upload_free(c);
		source_free(c);
		tls_free(c->tls);
		close(c->fd);
		peer_put(c->peer);
		text_free(&c->out);
		free(c->in);
		free(c->head);
		free(c->body);
		free(c);
	}
}

/* ---- requests ---- */

static void conn_idle(struct conn *c)
{
	c->deadline_ns = c->api->now_ns + CONN_IDLE_NS;
	c->start_ns = c->api->now_ns;
	list_del(&c->idle_node);
	list_add_tail(&c->peer->idle, &c->idle_node);
}

void conn_done(struct conn *c)
{
	if (c->dead)
		return;
	upload_free(c);
	sse_free(c);
	free(c->body);
	c->body = NULL;
	c->body_len = c->body_cap = 0;
	c->route = NULL;
	c->name = "";
	if (c->keep && !c->api->core_lost) {
		c->state = CONN_HEAD;
		conn_events(c, CONN_READ | (c->events & EPOLLOUT));
		if (!c->in_len)
			conn_idle(c);
		else
			c->deadline_ns = c->api->now_ns + CONN_HEAD_NS;
	} else {
		c->state = CONN_CLOSING;
		c->deadline_ns = c->api->now_ns + CONN_SEND_NS;
		conn_events(c, c->events & EPOLLOUT);
	}
	conn_resume(c);
}

void conn_resume(struct conn *c)
{
	if (c->in_event || c->dead)
		return;
	c->in_event = true;
	if (c->state == CONN_HEAD || c->state == CONN_BODY || c->state == CONN_UPLOAD)
		conn_events(c, CONN_READ | (c->events & EPOLLOUT));
	conn_process(c);
	if (!c->dead && c->tls && tls_pending(c->tls))
		conn_read(c);
	if (!c->dead)
		conn_flush(c);
	c->in_event = false;
}

void conn_continue(struct conn *c)
{
	if (!c->req.expect_continue)
		return;
	text_add(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
	c->req.expect_continue = false;
}

static void conn_take_body(struct conn *c)
{
	size_t want = (size_t)c->req.content_length - c->body_len,
	       n = c->in_len < want ? c->in_len : want;

	if (c->body_len + n > c->body_cap) {
		/* grows with what came, not with what was announced */
		size_t cap = c->body_cap ? c->body_cap * 2 : 4096;
		char *p;

		while (cap < c->body_len + n)
			cap *= 2;
		p = realloc(c->body, cap);
		if (!p) {
			c->keep = false;
			conn_refuse(c, 503, "no-memory", NULL, "the daemon is out of memory");
			return;
		}
		c->body = p;
		c->body_cap = cap;
	}
	memcpy(c->body + c->body_len, c->in, n);
	c->body_len += n;
	c->in_len -= n;
	memmove(c->in, c->in + n, c->in_len);
	if (c->body_len == (size_t)c->req.content_length) {
		c->state = CONN_WAIT;
		request_complete(c);
	}
}

static void conn_take_head(struct conn *c, size_t len)
{
	if (len + 1 > c->head_cap) {
		char *p = realloc(c->head, len + 1);

		if (!p) {
			conn_close(c);
			return;
		}
		c->head = p;
		c->head_cap = len + 1;
	}
	memcpy(c->head, c->in, len);
	c->head[len] = '\0';
	c->in_len -= len;
	memmove(c->in, c->in + len, c->in_len);
	c->scanned = 0;
	list_del(&c->idle_node);
	/* a token counts for its own request only */
	c->role = c->conn_role;
	memcpy(c->principal, c->conn_principal, sizeof(c->principal));
	c->token.id[0] = '\0';
	c->start_ns = c->api->now_ns;
	c->api->n.requests++;
	if (http_parse(c->head, len, &c->req) < 0) {
		c->keep = false;
		c->api->n.refused++;
		conn_refuse(c, c->req.status, "malformed-request", NULL, "%s", c->req.detail);
		return;
	}
	c->keep = !c->req.close;
	c->state = CONN_WAIT;
	c->deadline_ns = 0;
	request_head(c);
	if (!c->dead && c->state == CONN_BODY)
		c->deadline_ns = c->api->now_ns + CONN_BODY_NS;
}

static void conn_process(struct conn *c)
{
	while (!c->dead && c->in_len && (c->state == CONN_HEAD || c->state == CONN_BODY) &&
	       conn_unsent(c) < CONN_OUT_HIGH) {
		long n;

		if (c->state == CONN_BODY) {
			conn_take_body(c);
			continue;
		}
		n = http_head_len(c->in, c->in_len, &c->scanned);
		if (n == 0)
			break;
		if (n < 0) {
			c->keep = false;
			c->api->n.refused++;
			list_del(&c->idle_node);
			if (n == -E2BIG)
				conn_refuse(c, 431, "head-too-large", NULL,
					    "the request head is larger than %d bytes",
					    HTTP_HEAD_MAX);
			else
				conn_refuse(
				    c, 400, "malformed-request", NULL,
				    "bare line end, control or non-ASCII byte in the request head");
			break;
		}
		conn_take_head(c, (size_t)n);
	}
	if (!c->dead && c->state == CONN_UPLOAD && c->in_len)
		upload_readable(c);
}

static void conn_read(struct conn *c)
{
	/* a bounded number of rounds, so that one fast client does not hold up the rest */
	/* what TLS has decrypted is taken whole, at most a record: the socket will not tell of it again */
	for (unsigned i = 0; (i < 16 || (c->tls && tls_pending(c->tls))) && !c->dead &&
			     (c->state == CONN_HEAD || c->state == CONN_BODY);
	     i++) {
		size_t room;
		long n;

		if (c->in_len == c->in_cap) {
			size_t cap = c->in_cap ? c->in_cap * 2 : CONN_IN_START;
			char *p = cap <= 2 * HTTP_HEAD_MAX ? realloc(c->in, cap) : NULL;

			/* full of pipelined requests that wait for their replies to be taken */
			if (!p)
				break;
			c->in = p;
			c->in_cap = cap;
		}
		room = c->in_cap - c->in_len;
		n = conn_recv(c, c->in + c->in_len, room);
		if (n == -EAGAIN)
			break;
		if (n <= 0) {
			/* a client may end its side and still wait for the answer to what it asked
			 */
			if (n == 0 && conn_unsent(c) && c->state == CONN_HEAD) {
				c->state = CONN_CLOSING;
				conn_events(c, c->events & EPOLLOUT);
			} else {
				conn_close(c);
			}
			break;
		}
		if (!c->in_len && c->state == CONN_HEAD) {
			list_del(&c->idle_node);
			c->start_ns = c->api->now_ns;
			c->deadline_ns = c->api->now_ns + CONN_HEAD_NS;
		}
		c->in_len += (size_t)n;
		conn_process(c);
		if ((size_t)n < room && !(c->tls && tls_pending(c->tls)))
			break;
	}
	if (!c->dead && !c->in_len && c->in_cap > 4 * CONN_IN_START) {
		free(c->in);
		c->in = NULL;
		c->in_cap = 0;
	}
}

/* somebody who typed http:// is told in his own language: a TLS record never starts with a letter */
static bool conn_is_plain_http(struct conn *c)
{
	char first;

	if (recv(c->fd, &first, 1, MSG_PEEK) != 1 || first < 'A' || first > 'Z')
		return false;
	tls_free(c->tls);
	c->tls = NULL;
	c->keep = false;
	c->api->n.refused++;
	conn_refuse(c, 400, "not-tls", "use https://", "this port speaks TLS 1.3 only");
	return true;
}

static void conn_handshake(struct conn *c)
{
	struct err e = { 0 };
	int r;

	if (!c->handshake_seen && conn_is_plain_http(c))
		return;
	c->handshake_seen = true;
	r = tls_handshake(c->tls, &e);
	if (r == -EAGAIN) {
		conn_events(c, tls_wants_write(c->tls) ? CONN_READ | EPOLLOUT : CONN_READ);
		return;
	}
	if (r < 0) {
		conn_close(c);
		return;
	}
	identify_tls(c->api, c);
	c->state = CONN_HEAD;
	conn_events(c, CONN_READ);
	conn_idle(c);
	if (tls_pending(c->tls))
		conn_read(c);
}

static void conn_drain(struct conn *c)
{
	char waste[16384];
	long n = 1;

	for (unsigned i = 0; i < 16 && n > 0; i++)
		n = c->tls ? (long)recv(c->fd, waste, sizeof(waste), 0)
			   : conn_recv(c, waste, sizeof(waste));
	if (n == 0 || (n < 0 && n != -EAGAIN && !(c->tls && errno == EAGAIN)))
		conn_close(c);
}

static void conn_ready(void *arg, int fd, uint32_t events)
{
	struct conn *c = arg;
	struct api *a = c->api;

	a->now_ns = clock_mono_ns();
	c->in_event = true;
	if ((events & EPOLLOUT) && conn_unsent(c))
		conn_flush(c);
	if (!c->dead) {
		switch (c->state) {
		case CONN_HANDSHAKE:
			conn_handshake(c);
			break;
		case CONN_HEAD:
		case CONN_BODY:
			conn_process(c); /* what waited for the client to take its replies */
			conn_read(c);
			break;
		case CONN_WAIT:
			if (events & (EPOLLHUP | EPOLLERR))
				conn_close(c);
			else
				conn_events(c, c->events & EPOLLOUT);
			break;
		case CONN_UPLOAD:
			upload_readable(c);
			break;
		case CONN_SOURCE:
			if (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP))
				conn_close(c);
			else
				source_writable(c);
			break;
		case CONN_SSE:
			if (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP | EPOLLIN))
				conn_close(c); /* it has nothing more to say */
			break;
		case CONN_CONSOLE:
			console_event(c, events);
			break;
		case CONN_CLOSING:
			if (events & (EPOLLHUP | EPOLLERR))
				conn_close(c);
			else if (events & (EPOLLIN | EPOLLRDHUP))
				conn_drain(c);
			break;
		}
	}
	if (!c->dead)
		conn_flush(c);
	if (!c->dead && (c->state == CONN_HEAD) && c->in_len && !conn_unsent(c))
		conn_process(c);
	if (!c->dead)
		conn_flush(c);
	if (!c->dead && c->state == CONN_HEAD && conn_unsent(c) >= CONN_OUT_HIGH)
		conn_events(c, EPOLLOUT); /* it asks faster than it listens */
	c->in_event = false;
	conn_reap(a);
}

/* a stream, a console, a transfer: what goes on after it was allowed */
static bool conn_goes_on(const struct conn *c)
{
	return c->state == CONN_SSE || c->state == CONN_CONSOLE || c->state == CONN_SOURCE ||
	       c->state == CONN_UPLOAD;
}

void conn_token_gone(struct api *a, const char *id)
{
	list_for_each_safe (n, &a->conns) {
		struct conn *c = container_of(n, struct conn, node);

		if (*id && !strcmp(c->token.id, id) && conn_goes_on(c))
			conn_close(c);
	}
}

void conn_tick(struct api *a)
{
	int64_t now_ms = (int64_t)clock_real_ms();

	list_for_each_safe (n, &a->conns) {
		struct conn *c = container_of(n, struct conn, node);

		if (*c->token.id && now_ms >= c->token.expires_ms && conn_goes_on(c)) {
			conn_close(c);
			continue;
		}
		if (!c->deadline_ns || a->now_ns < c->deadline_ns)
			continue;
		if ((c->state == CONN_HEAD && c->in_len) || c->state == CONN_BODY) {
			c->keep = false;
			c->in_event = true;
			list_del(&c->idle_node);
			conn_refuse(c, 408, "too-slow", NULL, "the request did not arrive in time");
			conn_flush(c);
			c->in_event = false;
		} else {
			conn_close(c);
		}
	}
	conn_reap(a);
}
