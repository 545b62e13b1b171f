/* client.c - a small HTTP/1.1 client over the unix socket or TLS. Small on purpose: a command of
 * vmctl should cost milliseconds, and the unix socket needs no library at all; TLS is loaded only
 * for --url (common/tls.h).
 * Trust: the daemon's replies are parsed with bounds; a reply that is not understood ends the
 * command.
 */
#include "vmctl/vmctl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/tls.h"

#define CLIENT_BUF	65536
#define CLIENT_BODY_MAX (256u << 20)
#define CLIENT_TLS_MS	10000 /* a handshake takes no longer than this between two messages */

/* what a bearer token may consist of (RFC 6750, 2.1) */
#define CLIENT_TOKEN "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="

struct client {
	int fd;
	struct tls_ctx *ctx;
	struct tls *tls;
	char host[256];
	char buf[CLIENT_BUF];
	size_t len, off;
	bool used;
};

/* ---- connecting ---- */

static int client_connect_unix(struct vmctl *v, struct client *c, struct err *e)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };

	if (strlen(v->socket) >= sizeof(un.sun_path))
		return err_set(e, ENAMETOOLONG, "unreachable", "socket path %s is too long",
			       v->socket);
	memcpy(un.sun_path, v->socket, strlen(v->socket) + 1);
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&un, sizeof(un)) < 0) {
		err_set(e, errno, "unreachable", "cannot reach the daemon at %s: %s", v->socket,
			strerror(errno));
		err_hint(e,
			 e->num == EACCES
			     ? "you need to be in the group vmd-viewer, vmd-operator or vmd-admin"
			     : "is it running? systemctl status vmd; another socket: --socket PATH "
			       "or VMD_SOCKET");
		return -e->num;
	}
	snprintf(c->host, sizeof(c->host), "localhost");
	return 0;
}

static char *client_read_pem(const char *path, struct err *e)
{
	FILE *f = path ? fopen(path, "re") : NULL;
	char *s = NULL;
	size_t n;

	if (!path)
		return NULL;
	if (f && (s = calloc(1, 1 << 20)))
		n = fread(s, 1, (1 << 20) - 1, f);
	else
		n = 0;
	if (!n)
		err_set(e, errno ? errno : EINVAL, "unreadable", "cannot read %s", path);
	if (f)
		fclose(f);
	return s;
}

static int client_wait_ms(struct client *c, short events, int timeout_ms)
{
	struct pollfd p = { .fd = c->fd, .events = events };
	int r;

	do
		r = poll(&p, 1, timeout_ms);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r ? 0 : -ETIMEDOUT;
}

static int client_wait(struct client *c, short events)
{
	return client_wait_ms(c, events, -1);
}

/* the host's name or address, without the brackets that an IPv6 address has in a URL */
static void client_host(const struct client *c, char *out, size_t len)
{
	size_t n = strlen(c->host);
	bool bracket = n > 2 && c->host[0] == '[' && c->host[n - 1] == ']';

	snprintf(out, len, "%.*s", (int)(n - 2 * bracket), c->host + bracket);
}

static int client_tls(struct vmctl *v, struct client *c, struct err *e)
{
	char *ca = client_read_pem(v->ca, e), *cert = client_read_pem(v->cert, e),
	     *key = client_read_pem(v->key, e);
	char name[256];
	int r;

	if (!err_is_set(e) && !cert != !key)
		err_set(e, EINVAL, "usage",
			"a client certificate needs its key, and a key its certificate");
	if (!err_is_set(e))
		c->ctx = tls_client_new(ca, cert, key, e);
	free(ca);
	free(cert);
	if (key)
		explicit_bzero(key, strlen(key));
	free(key);
	if (!c->ctx)
		return -EINVAL;
	client_host(c, name, sizeof(name));
	c->tls = tls_open(c->ctx, c->fd, name);
	if (!c->tls)
		return err_set(e, ENOMEM, "tls", "TLS cannot be started");
	while ((r = tls_handshake(c->tls, e)) == -EAGAIN) {
		r = client_wait_ms(c, tls_wants_write(c->tls) ? POLLOUT : POLLIN, CLIENT_TLS_MS);
		if (r < 0)
			return err_set(e, -r, "unreachable", "%s does not answer in TLS: %s",
				       v->url, strerror(-r));
	}
	if (r < 0) {
		err_prefix(e, "%s", v->url);
		err_hint(e,
			 v->ca ? "is the daemon's certificate signed by %s, and for this name?"
			       : "name its authority: VMD_CA=FILE%s",
			 v->ca ? v->ca : "");
	}
	return r;
}

static int client_connect_url(struct vmctl *v, struct client *c, struct err *e)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list = NULL;
	char port[16] = "8443", name[256], *colon;
	const char *h = v->url + 8;
	int r, fl;

	if (strncmp(v->url, "https://", 8))
		return err_set(e, EINVAL, "bad-url",
			       "\"%s\" is not of the form https://HOST[:PORT]", v->url);
	snprintf(c->host, sizeof(c->host), "%.*s", (int)strcspn(h, "/"), h);
	colon = strrchr(c->host, ':');
	if (colon && !strchr(colon, ']')) {
		snprintf(port, sizeof(port), "%s", colon + 1);
		*colon = '\0';
	}
	client_host(c, name, sizeof(name));
	r = getaddrinfo(name, port, &hints, &list);
	if (r)
		return err_set(e, EHOSTUNREACH, "unreachable", "host %s: %s", c->host,
			       gai_strerror(r));
	for (struct addrinfo *a = list; a; a = a->ai_next) {
		c->fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
		if (c->fd >= 0 && connect(c->fd, a->ai_addr, a->ai_addrlen) == 0)
			break;
		r = errno;
		if (c->fd >= 0)
			close(c->fd);
		c->fd = -1;
	}
	freeaddrinfo(list);
	if (c->fd < 0)
		return err_set(e, r, "unreachable", "cannot reach %s: %s", v->url, strerror(r));
	fl = fcntl(c->fd, F_GETFL);
	fcntl(c->fd, F_SETFL, fl | O_NONBLOCK);
	return client_tls(v, c, e);
}

int client_open(struct vmctl *v, struct err *e)
{
	struct client *c;
	int r;

	if (v->client)
		return 0;
	c = calloc(1, sizeof(*c));
	if (!c)
		return err_set(e, ENOMEM, "no-memory", "out of memory");
	c->fd = -1;
	r = v->url ? client_connect_url(v, c, e) : client_connect_unix(v, c, e);
	v->client = c;
	if (r < 0)
		client_close(v);
	return r;
}

void client_close(struct vmctl *v)
{
	struct client *c = v->client;

	if (!c)
		return;
	tls_free(c->tls);
	tls_ctx_free(c->ctx);
	if (c->fd >= 0)
		close(c->fd);
	free(c);
	v->client = NULL;
}

/* ---- bytes ---- */

int client_fd(struct vmctl *v)
{
	return v->client->fd;
}

bool client_pending(struct vmctl *v)
{
	return v->client->len > v->client->off || (v->client->tls && tls_pending(v->client->tls));
}

static long client_raw_read(struct client *c, void *buf, size_t len)
{
	long n;

	if (c->tls)
		return tls_recv(c->tls, buf, len);
	do
		n = recv(c->fd, buf, len, 0);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

long client_read(struct vmctl *v, void *buf, size_t len)
{
	struct client *c = v->client;

	if (c->len > c->off) {
		size_t n = c->len - c->off < len ? c->len - c->off : len;

		memcpy(buf, c->buf + c->off, n);
		c->off += n;
		return (long)n;
	}
	return client_raw_read(c, buf, len);
}

long client_write(struct vmctl *v, const void *buf, size_t len)
{
	struct client *c = v->client;
	long n;

	if (c->tls)
		return tls_send(c->tls, buf, len);
	do
		n = send(c->fd, buf, len, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static int client_send(struct vmctl *v, const char *p, size_t len)
{
	while (len) {
		long n = client_write(v, p, len);

		if (n == -EAGAIN) {
			client_wait(v->client, POLLOUT);
			continue;
		}
		if (n <= 0)
			return n < 0 ? (int)n : -EPIPE;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

/* more into the buffer: 1, 0 end, -errno */
static int client_fill(struct client *c)
{
	long n;

	if (c->off) {
		memmove(c->buf, c->buf + c->off, c->len - c->off);
		c->len -= c->off;
		c->off = 0;
	}
	if (c->len == sizeof(c->buf))
		return -EPROTO;
	while ((n = client_raw_read(c, c->buf + c->len, sizeof(c->buf) - c->len)) == -EAGAIN)
		client_wait(c, POLLIN);
	if (n <= 0)
		return (int)n;
	c->len += (size_t)n;
	return 1;
}

/* ---- replies ---- */

static int client_lost(struct err *e, int r)
{
	err_set(e, ECONNRESET, "unreachable", "the daemon closed the connection%s%s",
		r < 0 ? ": " : "", r < 0 ? strerror(-r) : "");
	err_hint(e, "it may be restarting; try again");
	return -ECONNRESET;
}

static void client_header(const char *line, const char *name, char *out, size_t len)
{
	size_t n = strlen(name);

	if (!strncasecmp(line, name, n) && line[n] == ':') {
		const char *s = line + n + 1 + strspn(line + n + 1, " ");

		snprintf(out, len, "%.*s", (int)strcspn(s, "\r\n"), s);
	}
}

struct framing {
	bool chunked, none;
	int64_t length; /* -1: until the end */
};

static int client_read_head(struct client *c, struct reply *r, struct framing *f, struct err *e)
{
	char *end, cl[32], te[32];
	int n;

again:
	*cl = *te = '\0';
	while (!(end = memmem(c->buf + c->off, c->len - c->off, "\r\n\r\n", 4))) {
		n = client_fill(c);
		if (n <= 0)
			return client_lost(e, n);
	}
	*end = '\0';
	if (sscanf(c->buf + c->off, "HTTP/1.1 %3u", &r->status) != 1)
		return err_set(e, EPROTO, "bad-reply", "the other end does not speak HTTP/1.1");
	for (char *l = strstr(c->buf + c->off, "\r\n"); l; l = strstr(l, "\r\n")) {
		l += 2;
		client_header(l, "Content-Length", cl, sizeof(cl));
		client_header(l, "Transfer-Encoding", te, sizeof(te));
		client_header(l, "Location", r->location, sizeof(r->location));
		client_header(l, "Content-Type", r->type, sizeof(r->type));
	}
	c->off = (size_t)(end + 4 - c->buf);
	if (r->status == 100)
		goto again;
	f->chunked = !strcasecmp(te, "chunked");
	f->none = r->status == 204 || r->status == 304 || r->status == 101;
	f->length = *cl ? (int64_t)strtoll(cl, NULL, 10) : -1;
	return 0;
}

static int client_to_text(void *arg, const char *data, size_t len)
{
	struct text *t = arg;

	text_addn(t, data, len);
	return t->len > CLIENT_BODY_MAX || t->error;
}

static int client_pass(struct client *c, uint64_t left, sink_fn *sink, void *arg, struct err *e)
{
	while (left) {
		size_t n = c->len - c->off;
		int r;

		if (!n) {
			r = client_fill(c);
			if (r == 0 && left == UINT64_MAX)
				return 0;
			if (r <= 0)
				return client_lost(e, r);
			continue;
		}
		if (n > left)
			n = (size_t)left;
		if (sink(arg, c->buf + c->off, n))
			return 1;
		c->off += n;
		if (left != UINT64_MAX)
			left -= n;
	}
	return 0;
}

static int client_chunks(struct client *c, sink_fn *sink, void *arg, struct err *e)
{
	for (;;) {
		char *eol;
		uint64_t n;
		int r;

		while (!(eol = memmem(c->buf + c->off, c->len - c->off, "\r\n", 2))) {
			r = client_fill(c);
			if (r <= 0)
				return client_lost(e, r);
		}
		n = strtoull(c->buf + c->off, NULL, 16);
		c->off = (size_t)(eol + 2 - c->buf);
		r = n ? client_pass(c, n, sink, arg, e) : 0;
		if (r)
			return r;
		while (c->len - c->off < 2) {
			r = client_fill(c);
			if (r <= 0)
				return client_lost(e, r);
		}
		c->off += 2;
		if (!n)
			return 0;
	}
}

/* the reply's head, then its body: to @sink where it is good and there is one, else into r->body */
static int client_receive(struct vmctl *v, struct reply *r, sink_fn *sink, void *arg, struct err *e)
{
	struct framing f = { 0 };
	int n = client_read_head(v->client, r, &f, e);

	if (n < 0 || f.none)
		return n;
	if (!sink || r->status >= 300) {
		sink = client_to_text;
		arg = &r->body;
	}
	n = f.chunked ? client_chunks(v->client, sink, arg, e)
		      : client_pass(v->client, f.length < 0 ? UINT64_MAX : (uint64_t)f.length, sink,
				    arg, e);
	if (n >= 0 && r->body.len && strstr(r->type, "json"))
		r->json = json_loadb(r->body.s, r->body.len, 0, NULL);
	return n < 0 ? n : 0;
}

static int client_send_head(struct vmctl *v, const char *method, const char *path,
			    const char *headers, uint64_t len, const char *type, struct err *e)
{
	struct text t = { 0 };
	int r;

	if (v->token && strspn(v->token, CLIENT_TOKEN) != strlen(v->token)) {
		err_set(
		    e, EINVAL, "usage",
		    "the token given (VMD_TOKEN) is not one: it has blanks, line ends or the like");
		err_hint(e, "vmctl -q token create NAME prints a token and nothing else");
		return -EINVAL;
	}
	r = client_open(v, e);
	if (r < 0)
		return r;
	text_printf(&t, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, v->client->host);
	if (v->token)
		text_printf(&t, "Authorization: Bearer %s\r\n", v->token);
	if (type)
		text_printf(&t, "Content-Type: %s\r\nContent-Length: %" PRIu64 "\r\n", type, len);
	text_printf(&t, "%s\r\n", headers ? headers : "");
	r = client_send(v, t.s, t.len);
	text_free(&t);
	return r < 0 ? client_lost(e, r) : 0;
}

int client_request(struct vmctl *v, const char *method, const char *path, const char *headers,
		   const char *body, size_t len, struct reply *r, struct err *e)
{
	int n;

	*r = (struct reply){ 0 };
	n = client_send_head(v, method, path, headers, len,
			     len ? strcmp(method, "PATCH") ? "application/json"
							   : "application/merge-patch+json"
				 : NULL,
			     e);
	if (!n && len && client_send(v, body, len) < 0)
		n = 0; /* refused before it was all sent: the reply says why */
	return n < 0 ? n : client_receive(v, r, NULL, NULL, e);
}

int client_stream(struct vmctl *v, const char *path, const char *headers, sink_fn *sink, void *arg,
		  struct reply *r, struct err *e)
{
	int n;

	*r = (struct reply){ 0 };
	n = client_send_head(v, "GET", path, headers, 0, NULL, e);
	return n < 0 ? n : client_receive(v, r, sink, arg, e);
}

int client_upload(struct vmctl *v, const char *path, int fd, uint64_t size, progress_fn *progress,
		  void *arg, struct reply *r, struct err *e)
{
	static char buf[256 << 10];
	uint64_t done = 0;
	int n;

	*r = (struct reply){ 0 };
	n = client_send_head(v, "PUT", path, "Prefer: wait=300\r\n", size,
			     "application/octet-stream", e);
	while (!n && done < size) {
		long got = io_read_full(
		    fd, buf, size - done < sizeof(buf) ? (size_t)(size - done) : sizeof(buf));

		if (got <= 0) {
			client_close(v);
			return err_set(
			    e, EIO, "read-failed",
			    "the file became shorter, or cannot be read, while it was sent");
		}
		if (client_send(v, buf, (size_t)got) < 0)
			break; /* the daemon refused: its reply waits */
		done += (uint64_t)got;
		if (progress)
			progress(arg, done, size);
	}
	return n < 0 ? n : client_receive(v, r, NULL, NULL, e);
}

int client_upgrade(struct vmctl *v, const char *path, const char *ws_key, struct reply *r,
		   struct err *e)
{
	char headers[200];
	int n;

	*r = (struct reply){ 0 };
	snprintf(headers, sizeof(headers),
		 "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: "
		 "13\r\nSec-WebSocket-Key: %s\r\n",
		 ws_key);
	n = client_send_head(v, "GET", path, headers, 0, NULL, e);
	return n < 0 ? n : client_receive(v, r, NULL, NULL, e);
}

void reply_free(struct reply *r)
{
	json_decref(r->json);
	text_free(&r->body);
	*r = (struct reply){ 0 };
}
