/* upload.c - PUT /v1/images/NAME/content: an octet stream into the file that core hands over.
 *
 * core is asked first, with the length: it knows quota, name and pool, and answers with a
 * descriptor; only then does the client send (where it waits for "100 Continue") and is its body
 * read. What arrives is hashed and written as it comes, in bounded pieces, so that several uploads
 * and all other requests share the loop. At the end core gets length and SHA-256; whatever goes
 * wrong before, core is told to forget it. A client slower than 1 MiB in 60 s is dropped.
 */
#include "api/server.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/units.h"

#define UPLOAD_PIECE	    (256u << 10)
#define UPLOAD_ROUNDS	    4
#define UPLOAD_WINDOW_NS    (60 * NS_PER_S)
#define UPLOAD_WINDOW_BYTES MIB
#define UPLOAD_END_NS	    (600 * NS_PER_S)

struct upload {
	int fd;
	uint64_t want, got, window_start;
	struct sha256 hash;
	bool told; /* core knows how it ended */
};

static void close_upload_fd(struct upload *u)
{
	if (u->fd >= 0)
		close(u->fd);
	u->fd = -1;
}

static void upload_abort(struct conn *c)
{
	struct upload *u = c->upload;

	if (u && !u->told && c->route)
		core_notify(c->api, c->route, c->name, "abort", c->principal, c->role, "{}");
	if (u)
		u->told = true;
}

static void upload_end_done(struct conn *c, struct pending *p)
{
	uint64_t wait = request_wait_ms(c);

	upload_free(c);
	if (p->status == 202 && *p->op && wait)
		handle_wait_op(c, p->op, p->location, wait);
	else
		core_reply_done(c, p);
}

static void upload_end(struct conn *c)
{
	struct upload *u = c->upload;
	const char *want = http_query(&c->req, "sha256");
	char hex[SHA256_HEX_LEN], body[160];

	sha256_hex(&u->hash, hex);
	if (want && strcasecmp(want, hex)) {
		upload_abort(c);
		conn_refuse(c, 400, "wrong-hash", NULL, "the upload hashes to %s, not to %.64s",
			    hex, want);
		return;
	}
	u->told = true;
	close_upload_fd(u);
	c->state = CONN_WAIT;
	c->deadline_ns = 0;
	snprintf(body, sizeof(body), "{\"length\":%" PRIu64 ",\"sha256\":\"%s\"}", u->got, hex);
	c->api->n.uploads++;
	if (core_request(c, c->route, "end", body, strlen(body), upload_end_done, UPLOAD_END_NS) <
	    0)
		conn_refuse(c, 503, "daemon-restarting", NULL,
			    "the daemon is restarting; try again");
}

static int upload_write(struct conn *c, const char *buf, size_t len)
{
	struct upload *u = c->upload;
	long n = io_write_full(u->fd, buf, len);

	if (n == (long)len) {
		sha256_add(&u->hash, buf, len);
		u->got += len;
		return 0;
	}
	upload_abort(c);
	c->keep = false;
	if (n == -ENOSPC || n == -EDQUOT)
		conn_refuse(c, 507, "pool-full", "vmctl pool ls",
			    "image \"%s\": no space left in its pool", c->name);
	else
		conn_refuse(c, 500, "write-failed", NULL,
			    "image \"%s\": the upload cannot be written: %s", c->name,
			    strerror((int)-n));
	return -1;
}

void upload_readable(struct conn *c)
{
	struct upload *u = c->upload;
	uint64_t now = c->api->now_ns;

	if (c->in_len) {
		size_t n = c->in_len < u->want - u->got ? c->in_len : (size_t)(u->want - u->got);

		if (n && upload_write(c, c->in, n) < 0)
			return;
		c->in_len -= n;
		memmove(c->in, c->in + n, c->in_len);
	}
	for (unsigned i = 0; i < UPLOAD_ROUNDS && u->got < u->want; i++) {
		/* scratch of the one loop; holds nothing between calls */
		static char piece[UPLOAD_PIECE];
		uint64_t left = u->want - u->got;
		long n = conn_recv(c, piece, left < sizeof(piece) ? (size_t)left : sizeof(piece));

		if (n == -EAGAIN)
			break;
		if (n <= 0) {
			upload_abort(c);
			conn_close(c);
			return;
		}
		if (upload_write(c, piece, (size_t)n) < 0)
			return;
	}
	if (u->got / UPLOAD_WINDOW_BYTES != u->window_start) {
		u->window_start = u->got / UPLOAD_WINDOW_BYTES;
		c->deadline_ns = now + UPLOAD_WINDOW_NS;
	}
	if (u->got == u->want)
		upload_end(c);
}

static void upload_begin_done(struct conn *c, struct pending *p)
{
	struct upload *u = c->upload;

	if (p->status >= 400 || p->fd < 0) {
		u->told = true;
		c->keep = false; /* the body is still to come, or not */
		if (p->status < 400)
			conn_refuse(c, 500, "failed", NULL, "core gave no file to write to");
		else
			core_reply_done(c, p);
		return;
	}
	u->fd = p->fd;
	p->fd = -1;
	conn_continue(c);
	c->state = CONN_UPLOAD;
	c->deadline_ns = clock_mono_ns() + UPLOAD_WINDOW_NS;
	if (u->want == 0)
		upload_end(c);
	else
		conn_resume(c);
}

void upload_start(struct conn *c)
{
	const char *type = c->req.header[HTTP_CONTENT_TYPE];
	char body[64];

	c->keep = !c->req.content_length && !c->req.close;
	if (!c->req.header[HTTP_CONTENT_LENGTH]) {
		conn_refuse(c, 411, "length-required", NULL, "an upload needs a Content-Length");
		return;
	}
	if (type && strncasecmp(type, "application/octet-stream", 24)) {
		conn_refuse(c, 415, "not-bytes", "set Content-Type: application/octet-stream",
			    "an upload is application/octet-stream");
		return;
	}
	if ((uint64_t)c->req.content_length > c->api->max_upload) {
		conn_refuse(c, 413, "body-too-large", NULL,
			    "the upload is larger than this server takes");
		return;
	}
	c->upload = calloc(1, sizeof(*c->upload));
	if (!c->upload) {
		conn_refuse(c, 503, "no-memory", NULL, "the daemon is out of memory");
		return;
	}
	*c->upload = (struct upload){ .fd = -1, .want = (uint64_t)c->req.content_length };
	sha256_init(&c->upload->hash);
	c->keep = !c->req.close;
	c->state = CONN_WAIT;
	snprintf(body, sizeof(body), "{\"length\":%" PRId64 "}", c->req.content_length);
	if (core_request(c, c->route, "begin", body, strlen(body), upload_begin_done,
			 30 * NS_PER_S) < 0) {
		c->upload->told = true;
		c->keep = false;
		conn_refuse(c, 503, "daemon-restarting", NULL,
			    "the daemon is restarting; try again");
	}
}

void upload_free(struct conn *c)
{
	if (!c->upload)
		return;
	upload_abort(c);
	close_upload_fd(c->upload);
	free(c->upload);
	c->upload = NULL;
}
