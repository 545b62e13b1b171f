/* nbd_server.c - transmission: requests in, disk I/O, replies out (handshake: nbd_handshake.c).
 *
 * A connection reads into one buffer of its own; what is missing of a long write's payload goes
 * straight to the request's memory, in the same call. Requests are answered as they complete, in any order. When too many requests or bytes are
 * in flight, the socket is simply not read. A connection that ends waits for its requests.
 * Threading, trust: nbd_server.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/overflow.h"
#include "common/units.h"
#include "storage/bitmap.h"
#include "storage/nbd_conn.h"

#define NBD_STATUS_EXTENTS 128
#define NBD_PAGE	   4096u
#define NBD_OUT_MAX	   1024u /* answers waiting for the client to read */

void nbd_put16(uint8_t *p, uint16_t v)
{
	v = htobe16(v);
	memcpy(p, &v, 2);
}

void nbd_put32(uint8_t *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, 4);
}

void nbd_put64(uint8_t *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, 8);
}

uint16_t nbd_get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

uint32_t nbd_get32(const uint8_t *p)
{
	return (uint32_t)nbd_get16(p) << 16 | nbd_get16(p + 2);
}

uint64_t nbd_get64(const uint8_t *p)
{
	return (uint64_t)nbd_get32(p) << 32 | nbd_get32(p + 4);
}

/* --- sending -------------------------------------------------------------------------------------
 */

/* nbd_data_new() - memory for @len bytes. Pages are kept for the next request: to give them back to
 * the system and take them again costs more than the copy into them. NULL: out of memory. */
static void *nbd_data_new(struct nbd_conn *c, uint64_t len)
{
	void *p;

	if (len <= NBD_PAGE && c->nspares)
		return c->spare[--c->nspares];
	return posix_memalign(&p, NBD_PAGE, ALIGN_UP(MAX(len, 1ULL), (uint64_t)NBD_PAGE)) ? NULL
											  : p;
}

/* nbd_data_free() - @len: as it was asked for. */
static void nbd_data_free(struct nbd_conn *c, void *p, uint64_t len)
{
	if (p && len <= NBD_PAGE && c->nspares < NBD_SPARES)
		c->spare[c->nspares++] = p;
	else
		free(p);
}

static void nbd_msg_free(struct nbd_conn *c, struct nbd_msg *m)
{
	nbd_data_free(c, m->data, m->data_len);
	free(m);
}

/* nbd_full() - enough in flight, or enough answers that the client does not read. */
static bool nbd_full(const struct nbd_conn *c)
{
	return c->inflight >= c->server->limits.requests ||
	       c->inflight_bytes >= c->server->limits.bytes || c->out_count >= NBD_OUT_MAX;
}

static void nbd_watch(struct nbd_conn *c)
{
	bool full = nbd_full(c);
	uint32_t want =
	    (c->closing || full || c->eof ? 0 : EPOLLIN) | (list_empty(&c->out) ? 0 : EPOLLOUT);

	if (want != c->watched && !c->deaf) {
		c->watched = want;
		(void)loop_fd_mod(&c->watch, want);
	}
}

static bool nbd_send_some(struct nbd_conn *c)
{
	struct iovec iov[64];
	struct msghdr h = { .msg_iov = iov };
	int n = 0;
	ssize_t sent;

	list_for_each (l, &c->out) {
		struct nbd_msg *m = container_of(l, struct nbd_msg, node);
		size_t skip = m->sent;

		if (n + 2 > (int)ARRAY_SIZE(iov))
			break;
		if (skip < m->head_len) {
			iov[n].iov_base = m->head + skip;
			iov[n++].iov_len = m->head_len - skip;
			skip = 0;
		} else {
			skip -= m->head_len;
		}
		if (m->data_len > skip) {
			iov[n].iov_base = (char *)m->data + skip;
			iov[n++].iov_len = m->data_len - skip;
		}
	}
	h.msg_iovlen = n;
	sent = sendmsg(c->sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (sent < 0) {
		if (errno != EAGAIN && errno != EINTR)
			c->closing = c->broken = true;
		return false;
	}
	while (sent > 0) {
		struct nbd_msg *m = list_first(&c->out, struct nbd_msg, node);
		size_t left = m->head_len + m->data_len - m->sent;

		if ((size_t)sent < left) {
			m->sent += sent;
			return false;
		}
		sent -= left;
		list_del(&m->node);
		c->out_count--;
		c->inflight_bytes -= m->charged;
		nbd_msg_free(c, m);
	}
	return !list_empty(&c->out);
}

void nbd_flush_out(struct nbd_conn *c)
{
	while (!c->broken && !list_empty(&c->out) && nbd_send_some(c))
		;
}

/* nbd_reply() - queue head and data (taken, may be NULL). False: out of memory, connection ends. */
bool nbd_reply(struct nbd_conn *c, const void *head, size_t head_len, void *data, size_t data_len,
	       uint64_t charged)
{
	struct nbd_msg *m = malloc(sizeof(*m) + head_len);

	if (!m) {
		free(data);
		c->inflight_bytes -= charged;
		c->closing = c->broken = true;
		return false;
	}
	*m = (struct nbd_msg){
		.data = data, .data_len = data_len, .head_len = head_len, .charged = charged
	};
	if (head_len)
		memcpy(m->head, head, head_len);
	list_add_tail(&c->out, &m->node);
	c->out_count++;
	return true;
}

static uint32_t nbd_errno(int r)
{
	switch (-r) {
	case 0:
		return 0;
	case EPERM:
	case EROFS:
		return 1; /* EPERM */
	case ENOMEM:
		return 12;
	case EINVAL:
	case EFBIG:
		return 22;
	case ENOSPC:
	case EDQUOT:
		return 28;
	case EOVERFLOW:
		return 75;
	case EOPNOTSUPP:
		return 95;
	default:
		return 5; /* EIO */
	}
}

static size_t nbd_chunk(uint8_t *h, uint16_t flags, uint16_t type, uint64_t cookie, uint32_t len)
{
	nbd_put32(h, NBD_CHUNK_MAGIC);
	nbd_put16(h + 4, flags);
	nbd_put16(h + 6, type);
	nbd_put64(h + 8, cookie);
	nbd_put32(h + 16, len);
	return 20;
}

static void nbd_answer(struct nbd_conn *c, uint64_t cookie, int r, uint64_t charged)
{
	uint8_t h[32];
	size_t n;

	if (c->structured && r) {
		n = nbd_chunk(h, NBD_CHUNK_DONE, NBD_CHUNK_ERROR, cookie, 6);
		nbd_put32(h + n, nbd_errno(r));
		nbd_put16(h + n + 4, 0);
		n += 6;
	} else if (c->structured) {
		n = nbd_chunk(h, NBD_CHUNK_DONE, NBD_CHUNK_NONE, cookie, 0);
	} else {
		nbd_put32(h, NBD_SIMPLE_MAGIC);
		nbd_put32(h + 4, nbd_errno(r));
		nbd_put64(h + 8, cookie);
		n = 16;
	}
	nbd_reply(c, h, n, NULL, 0, charged);
}

static void nbd_answer_read(struct nbd_conn *c, struct nbd_request *q)
{
	uint64_t len = q->r.len_bytes;
	uint8_t h[32];
	size_t n;

	if (!c->structured) {
		nbd_put32(h, NBD_SIMPLE_MAGIC);
		nbd_put32(h + 4, 0);
		nbd_put64(h + 8, q->cookie);
		n = 16;
	} else if (len && mem_is_zero(q->data, len)) {
		n = nbd_chunk(h, NBD_CHUNK_DONE, NBD_CHUNK_HOLE, q->cookie, 12);
		nbd_put64(h + n, q->r.off_bytes);
		nbd_put32(h + n + 8, len);
		n += 12;
		nbd_data_free(c, q->data, len);
		q->data = NULL;
		len = 0;
	} else {
		n = nbd_chunk(h, NBD_CHUNK_DONE, NBD_CHUNK_DATA, q->cookie, 8 + len);
		nbd_put64(h + n, q->r.off_bytes);
		n += 8;
	}
	nbd_reply(c, h, n, q->data, len, q->charged);
	q->data = NULL;
}

/* --- requests
 * ------------------------------------------------------------------------------------- */

static void nbd_request_done(struct blk_req *r, int result)
{
	struct nbd_request *q = r->arg;
	struct nbd_conn *c = q->conn;

	c->inflight--;
	if (result == 0 && q->type == NBD_CMD_READ)
		nbd_answer_read(c, q);
	else
		nbd_answer(c, q->cookie, result, q->charged);
	nbd_data_free(c, q->data, q->charged);
	free(q);
	/* answers that complete together leave together */
	if (!blk_queue_more(c->queue))
		nbd_conn_turn(c);
}

/* nbd_status_allocation() - (length, state) pairs at @p; returns their number or -errno. */
static int nbd_status_allocation(struct nbd_conn *c, uint64_t off, uint64_t end, unsigned max,
				 uint8_t *p)
{
	struct blk_extent x[NBD_STATUS_EXTENTS];
	int n = blk_extents(c->export->bd, off, x, max), k = 0;

	if (n <= 0)
		return n ? n : -EIO;
	for (int i = 0; i < n && off < end; i++) {
		uint64_t part = MIN(x[i].off_bytes + x[i].len_bytes, end) - off;
		uint32_t state = x[i].kind == BLK_EXT_DATA   ? 0
				 : x[i].kind == BLK_EXT_ZERO ? NBD_STATE_ZERO
							     : NBD_STATE_ZERO | NBD_STATE_HOLE;

		nbd_put32(p + 8 * k, part);
		nbd_put32(p + 8 * k + 4, state);
		off += part;
		k++;
	}
	return k;
}

static int nbd_status_bitmap(struct nbd_conn *c, const char *name, uint64_t off, uint64_t end,
			     unsigned max, uint8_t *p)
{
	unsigned k = 0;

	for (; k < max && off < end; k++) {
		uint64_t len;
		bool dirty;
		int r = blk_bitmap_next(c->export->bd, name, off, &len, &dirty);

		if (r)
			return k ? (int)k : r;
		len = MIN(len, end - off);
		nbd_put32(p + 8 * k, len);
		nbd_put32(p + 8 * k + 4, dirty ? NBD_STATE_DIRTY : 0);
		off += len;
	}
	return k;
}

static void nbd_block_status(struct nbd_conn *c, uint64_t cookie, uint16_t flags, uint64_t off,
			     uint32_t len)
{
	uint8_t h[24 + 8 * NBD_STATUS_EXTENTS];
	unsigned max = flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_STATUS_EXTENTS;
	uint64_t left = c->meta;

	if (!left || !len || !range_within(off, len, c->size)) {
		nbd_answer(c, cookie, -EINVAL, 0);
		return;
	}
	/* one chunk for each chosen context, the last one marked */
	while (left) {
		unsigned i = __builtin_ctzll(left);
		int n =
		    i ? nbd_status_bitmap(c, c->export->bitmaps[i - 1], off, off + len, max, h + 24)
		      : nbd_status_allocation(c, off, off + len, max, h + 24);

		if (n < 0) {
			nbd_answer(c, cookie, n, 0);
			return;
		}
		left &= left - 1;
		nbd_chunk(h, left ? 0 : NBD_CHUNK_DONE, NBD_CHUNK_STATUS, cookie, 4 + 8 * n);
		nbd_put32(h + 20, NBD_META_ALLOCATION + i);
		nbd_reply(c, h, 24 + 8 * n, NULL, 0, 0);
	}
}

static int nbd_request_check(struct nbd_conn *c, struct nbd_request *q, uint32_t len)
{
	static const uint16_t allowed[] = {
		[NBD_CMD_READ] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
		[NBD_CMD_WRITE] = NBD_CMD_FLAG_FUA,
		[NBD_CMD_FLUSH] = NBD_CMD_FLAG_FUA,
		[NBD_CMD_TRIM] = NBD_CMD_FLAG_FUA,
		[NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE,
	};
	static const enum blk_op ops[] = {
		[NBD_CMD_READ] = BLK_READ,
		[NBD_CMD_WRITE] = BLK_WRITE,
		[NBD_CMD_FLUSH] = BLK_FLUSH,
		[NBD_CMD_TRIM] = BLK_DISCARD,
		[NBD_CMD_WRITE_ZEROES] = BLK_WRITE_ZEROES,
	};

	if (q->type >= ARRAY_SIZE(allowed) || q->type == NBD_CMD_DISC || q->type == NBD_CMD_CACHE)
		return -EINVAL;
	if (q->flags & ~allowed[q->type])
		return -EINVAL;
	if (q->type != NBD_CMD_READ && q->type != NBD_CMD_FLUSH && c->read_only)
		return -EPERM;
	if (q->type == NBD_CMD_FLUSH)
		q->r.off_bytes = len = 0;
	if (q->type == NBD_CMD_READ && len > NBD_PAYLOAD_MAX)
		return -EOVERFLOW;
	if (!range_within(q->r.off_bytes, len, c->size))
		return q->type == NBD_CMD_WRITE ? -ENOSPC : -EINVAL;
	q->r.op = ops[q->type];
	q->r.len_bytes = len;
	q->r.flags =
	    ((q->flags & NBD_CMD_FLAG_FUA) && q->type != NBD_CMD_READ ? BLK_FUA : 0) |
	    (q->type == NBD_CMD_WRITE_ZEROES && !(q->flags & NBD_CMD_FLAG_NO_HOLE) ? BLK_MAY_UNMAP
										   : 0);
	return 0;
}

static void nbd_request_submit(struct nbd_conn *c, struct nbd_request *q, int r)
{
	if (!r && q->type == NBD_CMD_READ && q->r.len_bytes) {
		q->data = nbd_data_new(c, q->r.len_bytes);
		r = q->data ? 0 : -ENOMEM;
	}
	if (r || (!q->r.len_bytes && q->r.op != BLK_FLUSH && q->type != NBD_CMD_READ)) {
		nbd_answer(c, q->cookie, r, q->charged);
		nbd_data_free(c, q->data, q->charged);
		free(q);
		return;
	}
	q->v = (struct iovec){ q->data, q->r.len_bytes };
	q->r.iov = &q->v;
	q->r.niov = q->r.len_bytes ? 1 : 0;
	q->r.done = nbd_request_done;
	q->r.arg = q;
	c->inflight++;
	blk_submit(c->queue, &q->r);
}

/* nbd_request_head() - one 28-byte request header. False: the connection is over. */
static bool nbd_request_head(struct nbd_conn *c, const uint8_t *p)
{
	uint16_t type = nbd_get16(p + 6), flags = nbd_get16(p + 4);
	uint64_t off = nbd_get64(p + 16);
	uint32_t len = nbd_get32(p + 24);
	struct nbd_request *q;

	if (nbd_get32(p) != NBD_REQUEST_MAGIC || type == NBD_CMD_DISC)
		return false;
	if (type == NBD_CMD_BLOCK_STATUS) {
		nbd_block_status(c, nbd_get64(p + 8), flags, off, len);
		return true;
	}
	if (type == NBD_CMD_WRITE && len > NBD_PAYLOAD_MAX)
		return false; /* it cannot be skipped within reason */
	q = calloc(1, sizeof(*q));
	if (!q)
		return false;
	q->conn = c;
	q->type = type;
	q->flags = flags;
	q->cookie = nbd_get64(p + 8);
	q->r.off_bytes = off;
	q->charged =
	    (type == NBD_CMD_WRITE || type == NBD_CMD_READ) ? MIN(len, NBD_PAYLOAD_MAX) : 0;
	c->inflight_bytes += q->charged;
	q->check = nbd_request_check(c, q, len);
	if (type != NBD_CMD_WRITE || !len) {
		nbd_request_submit(c, q, q->check);
		return true;
	}
	/* the payload comes next, refused or not */
	q->data = nbd_data_new(c, len);
	if (!q->data) {
		free(q);
		return false;
	}
	c->payload = q;
	c->payload_len = len;
	c->payload_got = 0;
	return true;
}

/* nbd_consume() - requests and payload out of the buffer; bytes used, or -1 to end. */
static ssize_t nbd_consume(struct nbd_conn *c, const uint8_t *p, size_t n)
{
	size_t used = 0;

	for (;;) {
		if (c->payload) {
			size_t take = MIN(n - used, c->payload_len - c->payload_got);

			memcpy((char *)c->payload->data + c->payload_got, p + used, take);
			c->payload_got += take;
			used += take;
			if (c->payload_got < c->payload_len)
				return used;
			struct nbd_request *q = c->payload;

			c->payload = NULL;
			nbd_request_submit(c, q, q->check);
			continue;
		}
		if (nbd_full(c) || n - used < NBD_REQUEST_LEN)
			return used;
		if (!nbd_request_head(c, p + used))
			return -1;
		used += NBD_REQUEST_LEN;
	}
}

static void nbd_process(struct nbd_conn *c)
{
	ssize_t used;

	if (nbd_full(c) && !c->payload)
		return;
	do {
		used = c->handshaking ? nbd_handshake(c, c->in, c->in_len)
				      : nbd_consume(c, c->in, c->in_len);
		if (used < 0) {
			c->closing = true;
			c->in_len = 0;
			break;
		}
		c->in_len -= used;
		if (c->in_len)
			memmove(c->in, c->in + used, c->in_len);
	} while (used && c->in_len && !c->closing && !nbd_full(c));
}

static void nbd_receive(struct nbd_conn *c)
{
	struct blk_queue *q = c->queue; /* NULL in the handshake, which submits nothing */

	/* what is received together reaches kernel and workers together */
	if (q)
		blk_queue_plug(q);
	for (int rounds = 0; rounds < 4 && !c->closing && !c->eof; rounds++) {
		struct iovec v[2];
		struct msghdr h = { .msg_iov = v };
		size_t direct = 0, room = sizeof(c->in) - c->in_len;
		ssize_t n;

		if (c->payload && !c->in_len) {
			direct = c->payload_len - c->payload_got;
			v[h.msg_iovlen++] =
			    (struct iovec){ (char *)c->payload->data + c->payload_got, direct };
		}
		if (!room)
			break;
		v[h.msg_iovlen++] = (struct iovec){ c->in + c->in_len, room };
		n = recvmsg(c->sock, &h, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n <= 0) {
			c->eof = true;
			break;
		}
		c->payload_got += MIN((size_t)n, direct);
		c->in_len += n - MIN((size_t)n, direct);
		if (!direct || c->payload_got == c->payload_len)
			nbd_process(c);
		if ((size_t)n < direct + room)
			break; /* that was all there is; more wakes the loop again */
	}
	if (q)
		blk_queue_unplug(q);
}

/* --- connections
 * ------------------------------------------------------------------------------------ */

static void nbd_conn_end(struct nbd_conn *c)
{
	struct nbd_server *s = c->server;

	c->deaf = true;
	loop_fd_del(&c->watch);
	loop_timer_stop(&c->deadline);
	close(c->sock);
	while (!list_empty(&c->out)) {
		struct nbd_msg *m = list_first(&c->out, struct nbd_msg, node);

		list_del(&m->node);
		nbd_msg_free(c, m);
	}
	while (c->nspares)
		free(c->spare[--c->nspares]);
	if (c->payload) {
		free(c->payload->data);
		free(c->payload);
	}
	blk_queue_free(c->queue);
	list_del(&c->node);
	free(c);
	s->nclients--;
	if (!s->nclients && s->idle && !s->stopping)
		s->idle(s->idle_arg);
}

/* nbd_conn_turn() - after anything happened: go on with what waits, send, and end when it is over.
 */
void nbd_conn_turn(struct nbd_conn *c)
{
	if (!c->closing && c->in_len)
		nbd_process(c);
	nbd_flush_out(c);
	if (c->eof)
		c->closing = true;
	if (c->closing && !c->inflight && (c->broken || c->eof || list_empty(&c->out))) {
		nbd_conn_end(c);
		return;
	}
	nbd_watch(c);
}

static void nbd_conn_ready(void *arg, int fd, uint32_t events)
{
	struct nbd_conn *c = arg;

	(void)fd;
	if (events & (EPOLLERR | EPOLLHUP))
		c->broken = c->eof = true;
	if (events & EPOLLIN)
		nbd_receive(c);
	if (c->broken && !c->deaf) {
		/* nothing more comes or goes; a hang-up must not wake the loop until requests
		 * finish */
		c->closing = c->deaf = true;
		loop_fd_del(&c->watch);
	}
	nbd_conn_turn(c);
}

static void nbd_conn_late(void *arg)
{
	struct nbd_conn *c = arg;

	c->closing = c->broken = true;
	nbd_conn_turn(c);
}

int nbd_server_serve(struct nbd_server *s, int sock)
{
	struct nbd_conn *c;
	uint8_t hello[18];
	int r;

	if (s->nclients >= s->limits.connections)
		return -EBUSY;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->server = s;
	c->watch = (struct loop_fd)LOOP_FD_NONE;
	list_init(&c->out);
	c->handshaking = true;
	r = loop_fd_add(s->loop, &c->watch, sock, EPOLLIN, nbd_conn_ready, c);
	if (r) {
		free(c);
		return r;
	}
	c->sock = sock;
	c->watched = EPOLLIN;
	loop_timer_init(s->loop, &c->deadline, nbd_conn_late, c);
	loop_timer_after(&c->deadline, s->limits.handshake_ms * NS_PER_MS);
	list_add_tail(&s->clients, &c->node);
	s->nclients++;
	nbd_put64(hello, NBD_MAGIC);
	nbd_put64(hello + 8, NBD_OPT_MAGIC);
	nbd_put16(hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	nbd_reply(c, hello, sizeof(hello), NULL, 0, 0);
	nbd_conn_turn(c);
	return 0;
}

static void nbd_accept(void *arg, int fd, uint32_t events)
{
	struct nbd_server *s = arg;
	int sock = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (sock >= 0 && nbd_server_serve(s, sock) < 0)
		close(sock);
}

static int nbd_export_copy(struct nbd_export *to, const struct nbd_export *from)
{
	const char **names;
	unsigned n = 0;

	*to = *from;
	to->bitmaps = NULL;
	to->name = strdup(from->name ? from->name : "");
	to->description = from->description ? strdup(from->description) : NULL;
	if (!to->name || (from->description && !to->description))
		return -ENOMEM;
	if (strlen(to->name) > NBD_NAME_MAX)
		return -ENAMETOOLONG;
	while (from->bitmaps && from->bitmaps[n])
		if (strlen(from->bitmaps[n++]) > BLK_BITMAP_NAME_MAX || n > NBD_BITMAPS_MAX)
			return -E2BIG;
	names = n ? calloc(n + 1, sizeof(*names)) : NULL;
	if (n && !names)
		return -ENOMEM;
	to->bitmaps = names;
	for (unsigned i = 0; i < n; i++) {
		names[i] = strdup(from->bitmaps[i]);
		if (!names[i])
			return -ENOMEM;
	}
	return 0;
}

static void nbd_export_free(struct nbd_export *x)
{
	for (unsigned i = 0; x->bitmaps && x->bitmaps[i]; i++)
		free((char *)(uintptr_t)x->bitmaps[i]);
	free((char **)(uintptr_t)x->bitmaps);
	free((char *)(uintptr_t)x->name);
	free((char *)(uintptr_t)x->description);
}

struct nbd_server *nbd_server_new(struct loop *l, int listen_fd, const struct nbd_export *exports,
				  unsigned n, const struct nbd_limits *limits, struct err *e)
{
	struct nbd_server *s = calloc(1, sizeof(*s));
	int r = -ENOMEM;

	if (!s)
		goto fail;
	s->loop = l;
	s->listen = (struct loop_fd)LOOP_FD_NONE;
	list_init(&s->clients);
	if (limits)
		s->limits = *limits;
	s->limits.connections = s->limits.connections ? s->limits.connections : 16;
	s->limits.handshake_ms = s->limits.handshake_ms ? s->limits.handshake_ms : 10000;
	s->limits.requests = s->limits.requests ? s->limits.requests : 128;
	s->limits.bytes = s->limits.bytes ? s->limits.bytes : 64 * MIB;
	s->exports = calloc(n ? n : 1, sizeof(*s->exports));
	if (!s->exports)
		goto fail;
	while (s->nexports < n) {
		r = nbd_export_copy(&s->exports[s->nexports], &exports[s->nexports]);
		s->nexports++; /* what was copied of it is freed with the server */
		if (r)
			goto fail;
	}
	r = listen_fd >= 0 ? loop_fd_add(l, &s->listen, listen_fd, EPOLLIN, nbd_accept, s) : 0;
	if (r == 0)
		return s;
fail:
	if (s)
		nbd_server_free(s);
	err_set(e, -r, "nbd-server", "cannot start the NBD server: %s", strerror(-r));
	return NULL;
}

void nbd_server_on_idle(struct nbd_server *s, nbd_idle_fn *fn, void *arg)
{
	s->idle = fn;
	s->idle_arg = arg;
}

unsigned nbd_server_clients(const struct nbd_server *s)
{
	return s->nclients;
}

void nbd_server_free(struct nbd_server *s)
{
	s->stopping = true;
	if (s->loop)
		loop_fd_del(&s->listen);
	while (s->exports && s->nclients) {
		list_for_each_safe (l, &s->clients) {
			struct nbd_conn *c = container_of(l, struct nbd_conn, node);

			c->closing = c->broken = true;
			nbd_conn_turn(c);
		}
		if (s->nclients && loop_run_once(s->loop, 100) < 0)
			break;
	}
	for (unsigned i = 0; s->exports && i < s->nexports; i++)
		nbd_export_free(&s->exports[i]);
	free(s->exports);
	free(s);
}
