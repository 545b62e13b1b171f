/* nbd_client.c - driver "nbd": a disk that an NBD server holds, over an already connected socket.
 *
 * Our own client and not libnbd: libnbd brings TLS and XML libraries into the jail and system calls
 * (socket, connect, recvfrom, clone for its helpers) that the filters of the image and the guest
 * processes refuse; this one lives on sendmsg, recvmsg and poll. The connection comes from someone
 * allowed to make it; a lost one is not made again: the node fails every request from then on.
 * Protocol: doc/proto.md of the NBD project, fixed newstyle, structured replies and base:allocation
 * where the server has them; no TLS. Options: export=NAME (default ""), timeout-ms=N (30,000): how
 * long the server may stay silent while something waits for it.
 * Threading: any number of workers send; one of those that wait reads for all (nbdc_wait), straight
 * into the memory of whoever asked. A request leaves only when answered, or when the connection is
 * dead and nobody reads any more: no reader ever holds memory that has gone.
 * Trust: the server is hostile. Lengths are checked before anything is written; chunks that leave
 * gaps read as zeroes, never as old memory; sizes past 2^63 are refused; any breach of the protocol
 * ends the connection for good.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/overflow.h"
#include "common/units.h"
#include "storage/nbd_conn.h"

#define NBDC_TIMEOUT_MS	  30000u
#define NBDC_REPLIES_MAX  256u /* answers to one option */
#define NBDC_REPLY_MAX	  65536u
#define NBDC_STATUS_KEPT  1024u
#define NBDC_STATUS_MAX	  (1u << 20) /* bytes of one block status reply: 131,072 extents */
#define NBDC_META_ID_NONE UINT32_MAX

struct nbdc_call {
	struct list node;
	uint16_t type;
	uint64_t cookie, off;
	uint32_t len;
	struct blk_buf b; /* read */
	uint64_t got;	  /* read: bytes that chunks have covered */
	bool zeroed;	  /* read: came in pieces, so gaps were zeroed first */
	bool done;
	int result;
	/* block status */
	struct blk_extent *ext;
	unsigned max, n;
};

struct nbdc {
	int sock;
	uint16_t flags;
	bool structured;
	uint32_t meta_id, payload_max, timeout_ms;
	pthread_mutex_t lock, send_lock;
	pthread_cond_t cond;
	struct list calls;
	bool reading;
	_Atomic int dead; /* -errno, for good */
	uint64_t cookie;
	/* The last block status of an export that is read-only, so that it holds: who asks chunk by chunk does
	 * not have the server look at all that lies behind each time. */
	pthread_mutex_t status_lock;
	struct blk_extent *status;
	unsigned nstatus;
};

/* --- the socket
 * -------------------------------------------------------------------------------------- */

/* nbdc_ready() - wait in short turns: a connection that another thread gave up is noticed. */
static int nbdc_ready(struct nbdc *n, short events, uint64_t since)
{
	for (;;) {
		struct pollfd p = { .fd = n->sock, .events = events };
		int r = poll(&p, 1, 200), dead = atomic_load(&n->dead);

		if (dead)
			return dead;
		if (r > 0)
			return 0;
		if (r < 0 && errno != EINTR)
			return -errno;
		if (clock_mono_ns() - since > n->timeout_ms * NS_PER_MS)
			return -ETIMEDOUT;
	}
}

static int nbdc_transfer(struct nbdc *n, bool out, struct blk_buf b, uint64_t len)
{
	uint64_t since = clock_mono_ns();

	while (len) {
		struct iovec iov[64];
		uint64_t got = 0;
		struct msghdr h = { .msg_iov = iov };
		ssize_t k;

		h.msg_iovlen = (size_t)blk_buf_iov(b, len, iov, ARRAY_SIZE(iov), &got);
		k = out ? sendmsg(n->sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT)
			: recvmsg(n->sock, &h, MSG_DONTWAIT);
		if (k > 0) {
			b = blk_buf_advance(b, (uint64_t)k);
			len -= (uint64_t)k;
			since = clock_mono_ns();
			continue;
		}
		if (k == 0)
			return -ECONNRESET;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		int r = nbdc_ready(n, out ? POLLOUT : POLLIN, since);

		if (r)
			return r;
	}
	return 0;
}

static int nbdc_get(struct nbdc *n, void *p, size_t len)
{
	struct iovec v = { p, len };

	return nbdc_transfer(n, false, (struct blk_buf){ &v, 1, 0 }, len);
}

static int nbdc_put(struct nbdc *n, const void *p, size_t len)
{
	struct iovec v = { (void *)(uintptr_t)p, len };

	return nbdc_transfer(n, true, (struct blk_buf){ &v, 1, 0 }, len);
}

static int nbdc_skip(struct nbdc *n, uint32_t len)
{
	uint8_t sink[512];
	int r = 0;

	for (; len && !r; len -= MIN(len, (uint32_t)sizeof(sink)))
		r = nbdc_get(n, sink, MIN(len, (uint32_t)sizeof(sink)));
	return r;
}

/* --- handshake
 * --------------------------------------------------------------------------------------- */

struct nbdc_reply {
	uint32_t type, len;
	uint8_t data[512]; /* its front; the rest was skipped */
};

static int nbdc_option_send(struct nbdc *n, uint32_t opt, const void *data, uint32_t len)
{
	uint8_t h[16];
	int r;

	nbd_put64(h, NBD_OPT_MAGIC);
	nbd_put32(h + 8, opt);
	nbd_put32(h + 12, len);
	r = nbdc_put(n, h, sizeof(h));
	return !r && len ? nbdc_put(n, data, len) : r;
}

static int nbdc_option_reply(struct nbdc *n, uint32_t opt, struct nbdc_reply *y)
{
	uint8_t h[20];
	uint32_t front;
	int r = nbdc_get(n, h, sizeof(h));

	if (r)
		return r;
	y->type = nbd_get32(h + 12);
	y->len = nbd_get32(h + 16);
	if (nbd_get64(h) != NBD_REP_MAGIC || nbd_get32(h + 8) != opt || y->len > NBDC_REPLY_MAX)
		return -EPROTO;
	front = MIN(y->len, (uint32_t)sizeof(y->data));
	memset(y->data, 0, sizeof(y->data));
	r = front ? nbdc_get(n, y->data, front) : 0;
	return r ? r : nbdc_skip(n, y->len - front);
}

static int nbdc_structured(struct nbdc *n)
{
	struct nbdc_reply y = { 0 };
	int r = nbdc_option_send(n, NBD_OPT_STRUCTURED_REPLY, NULL, 0);

	if (!r)
		r = nbdc_option_reply(n, NBD_OPT_STRUCTURED_REPLY, &y);
	if (!r)
		n->structured = y.type == NBD_REP_ACK;
	return r;
}

/* nbdc_meta() - ask for base:allocation; a server without it is none the worse. */
static int nbdc_meta(struct nbdc *n, const char *name)
{
	static const char base[] = "base:allocation";
	uint8_t b[8 + NBD_NAME_MAX + 4 + sizeof(base)];
	uint32_t len = (uint32_t)strlen(name), at = 4;
	struct nbdc_reply y = { 0 };
	int r;

	nbd_put32(b, len);
	memcpy(b + at, name, len);
	at += len;
	nbd_put32(b + at, 1);
	nbd_put32(b + at + 4, sizeof(base) - 1);
	memcpy(b + at + 8, base, sizeof(base) - 1);
	at += 8 + sizeof(base) - 1;
	r = nbdc_option_send(n, NBD_OPT_SET_META, b, at);
	for (unsigned i = 0; !r && i < NBDC_REPLIES_MAX; i++) {
		r = nbdc_option_reply(n, NBD_OPT_SET_META, &y);
		if (r || y.type == NBD_REP_ACK || y.type & 0x80000000u)
			return r;
		if (y.type == NBD_REP_META && y.len == 4 + sizeof(base) - 1 &&
		    memcmp(y.data + 4, base, sizeof(base) - 1) == 0)
			n->meta_id = nbd_get32(y.data);
	}
	return r ? r : -EPROTO;
}

static int nbdc_go(struct nbdc *n, struct blockdev *bd, const char *name, struct err *e)
{
	uint8_t b[4 + NBD_NAME_MAX + 4];
	uint32_t len = (uint32_t)strlen(name), block = 0;
	uint64_t size = UINT64_MAX;
	struct nbdc_reply y = { 0 };
	int r;

	nbd_put32(b, len);
	memcpy(b + 4, name, len);
	nbd_put16(b + 4 + len, 1);
	nbd_put16(b + 6 + len, NBD_INFO_BLOCK_SIZE);
	r = nbdc_option_send(n, NBD_OPT_GO, b, 8 + len);
	for (unsigned i = 0; !r; i++) {
		r = i < NBDC_REPLIES_MAX ? nbdc_option_reply(n, NBD_OPT_GO, &y) : -EPROTO;
		if (r)
			return r;
		if (y.type & 0x80000000u)
			return err_set(e, ENOENT, "nbd-export",
				       "%s: the NBD server refuses export \"%.100s\" (reply %#x)",
				       bd->label, name, y.type);
		if (y.type == NBD_REP_ACK)
			break;
		if (y.type != NBD_REP_INFO || y.len < 2)
			return -EPROTO;
		if (nbd_get16(y.data) == NBD_INFO_EXPORT && y.len == 12) {
			size = nbd_get64(y.data + 2);
			n->flags = nbd_get16(y.data + 10);
		} else if (nbd_get16(y.data) == NBD_INFO_BLOCK_SIZE && y.len == 14) {
			block = nbd_get32(y.data + 2);
			n->payload_max = MIN(nbd_get32(y.data + 10), NBD_PAYLOAD_MAX);
		}
	}
	if (size == UINT64_MAX)
		return -EPROTO;
	if (size > INT64_MAX)
		return err_set(e, EFBIG, "nbd-size", "%s: the NBD server claims %llu bytes",
			       bd->label, (unsigned long long)size);
	if (block > 4096 || (block & (block - 1)) || n->payload_max < 4096)
		return err_set(e, EINVAL, "nbd-block-size",
			       "%s: the NBD server wants blocks of %u to %u bytes, not 512 or 4096",
			       bd->label, block, n->payload_max);
	bd->block_size = block > 512 ? 4096 : 512;
	/* the last partial block cannot be addressed */
	atomic_store(&bd->size_bytes, ALIGN_DOWN(size, (uint64_t)bd->block_size));
	return 0;
}

static int nbdc_handshake(struct nbdc *n, struct blockdev *bd, const char *name, struct err *e)
{
	uint8_t b[18];
	uint16_t offered;
	int r = nbdc_get(n, b, sizeof(b));

	if (r)
		return r;
	offered = nbd_get16(b + 16);
	if (nbd_get64(b) != NBD_MAGIC || nbd_get64(b + 8) != NBD_OPT_MAGIC ||
	    !(offered & NBD_FLAG_FIXED_NEWSTYLE))
		return -EPROTO;
	nbd_put32(b, NBD_FLAG_FIXED_NEWSTYLE | (offered & NBD_FLAG_NO_ZEROES));
	r = nbdc_put(n, b, 4);
	if (!r)
		r = nbdc_structured(n);
	if (!r && n->structured)
		r = nbdc_meta(n, name);
	return r ? r : nbdc_go(n, bd, name, e);
}

/* --- replies
 * ----------------------------------------------------------------------------------------- */

static int nbdc_error(uint32_t v)
{
	switch (v) {
	case 1:
		return -EPERM;
	case 12:
		return -ENOMEM;
	case 22:
		return -EINVAL;
	case 28:
		return -ENOSPC;
	case 75:
		return -EOVERFLOW;
	case 95:
		return -EOPNOTSUPP;
	default:
		return -EIO;
	}
}

static struct nbdc_call *nbdc_find(struct nbdc *n, uint64_t cookie)
{
	struct nbdc_call *found = NULL;

	pthread_mutex_lock(&n->lock);
	list_for_each (l, &n->calls) {
		struct nbdc_call *c = container_of(l, struct nbdc_call, node);

		if (c->cookie == cookie && !c->done)
			found = c;
	}
	pthread_mutex_unlock(&n->lock);
	return found;
}

/* nbdc_piece() - the place of one data or hole chunk in the reader's memory. */
static int nbdc_piece(struct nbdc_call *c, uint64_t off, uint64_t len, struct blk_buf *b)
{
	if (c->type != NBD_CMD_READ || !len || off < c->off ||
	    !range_within(off - c->off, len, c->len) || len > c->len - c->got)
		return -EPROTO;
	if (len < c->len && !c->zeroed) {
		blk_buf_zero(c->b, c->len);
		c->zeroed = true;
	}
	*b = blk_buf_advance(c->b, off - c->off);
	c->got += len;
	return 0;
}

static int nbdc_chunk_data(struct nbdc *n, struct nbdc_call *c, uint32_t len)
{
	struct blk_buf b;
	uint8_t h[8];
	int r = len > 8 ? nbdc_get(n, h, 8) : -EPROTO;

	if (!r)
		r = nbdc_piece(c, nbd_get64(h), len - 8, &b);
	return r ? r : nbdc_transfer(n, false, b, len - 8);
}

static int nbdc_chunk_hole(struct nbdc *n, struct nbdc_call *c, uint32_t len)
{
	struct blk_buf b;
	uint8_t h[12];
	int r = len == 12 ? nbdc_get(n, h, 12) : -EPROTO;

	if (!r)
		r = nbdc_piece(c, nbd_get64(h), nbd_get32(h + 8), &b);
	if (!r)
		blk_buf_zero(b, nbd_get32(h + 8));
	return r;
}

static int nbdc_chunk_status(struct nbdc *n, struct nbdc_call *c, uint32_t len)
{
	uint64_t off = c->off, end = c->off + c->len;
	uint8_t h[8];
	int r;

	if (c->type != NBD_CMD_BLOCK_STATUS || c->n || len < 12 || len > NBDC_STATUS_MAX ||
	    (len - 4) % 8)
		return -EPROTO;
	r = nbdc_get(n, h, 4);
	if (!r && nbd_get32(h) != n->meta_id)
		r = -EPROTO;
	for (uint32_t at = 4; at < len && !r; at += 8) {
		uint32_t part, state;

		r = nbdc_get(n, h, 8);
		if (r)
			break;
		part = nbd_get32(h);
		state = nbd_get32(h + 4);
		if (!part)
			return -EPROTO;
		if (off >= end || c->n >= c->max)
			continue;
		c->ext[c->n++] = (struct blk_extent){ off, MIN((uint64_t)part, end - off),
						      !(state & NBD_STATE_ZERO) ? BLK_EXT_DATA
						      : state & NBD_STATE_HOLE	? BLK_EXT_HOLE
										: BLK_EXT_ZERO,
						      0 };
		off += part;
	}
	return r;
}

static int nbdc_chunk_error(struct nbdc *n, struct nbdc_call *c, uint32_t len)
{
	uint8_t h[6];
	int r = len >= 6 && len <= NBDC_REPLY_MAX ? nbdc_get(n, h, 6) : -EPROTO;

	if (!r && !c->result)
		c->result = nbdc_error(nbd_get32(h));
	return r ? r : nbdc_skip(n, len - 6);
}

static int nbdc_chunk(struct nbdc *n, struct nbdc_call *c, uint16_t type, uint32_t len)
{
	switch (type) {
	case NBD_CHUNK_NONE:
		return len ? -EPROTO : 0;
	case NBD_CHUNK_DATA:
		return nbdc_chunk_data(n, c, len);
	case NBD_CHUNK_HOLE:
		return nbdc_chunk_hole(n, c, len);
	case NBD_CHUNK_STATUS:
		return nbdc_chunk_status(n, c, len);
	default:
		return type & 0x8000 ? nbdc_chunk_error(n, c, len) : -EPROTO;
	}
}

/* nbdc_read_one() - one reply or chunk. *done: the call it ended. Without the lock, as the one
 * reader. */
static int nbdc_read_one(struct nbdc *n, struct nbdc_call **done)
{
	struct nbdc_call *c;
	uint8_t h[20];
	int r = nbdc_get(n, h, 16);

	*done = NULL;
	if (r)
		return r;
	c = nbdc_find(n, nbd_get64(h + 8));
	if (!c)
		return -EPROTO;
	if (nbd_get32(h) == NBD_SIMPLE_MAGIC) {
		if (n->structured && (c->type == NBD_CMD_READ || c->type == NBD_CMD_BLOCK_STATUS))
			return -EPROTO;
		if (nbd_get32(h + 4))
			c->result = nbdc_error(nbd_get32(h + 4));
		else if (c->type == NBD_CMD_READ)
			r = nbdc_transfer(n, false, c->b, c->len);
		c->got = c->len;
		*done = c;
		return r;
	}
	if (!n->structured || nbd_get32(h) != NBD_CHUNK_MAGIC)
		return -EPROTO;
	r = nbdc_get(n, h + 16, 4);
	if (!r)
		r = nbdc_chunk(n, c, nbd_get16(h + 6), nbd_get32(h + 16));
	if (r || !(nbd_get16(h + 4) & NBD_CHUNK_DONE))
		return r;
	if (!c->result && ((c->type == NBD_CMD_READ && c->got != c->len) ||
			   (c->type == NBD_CMD_BLOCK_STATUS && !c->n)))
		return -EPROTO;
	*done = c;
	return 0;
}

/* --- requests
 * ---------------------------------------------------------------------------------------- */

static void nbdc_die(struct nbdc *n, int error)
{
	int none = 0;

	atomic_compare_exchange_strong(&n->dead, &none, error);
}

/* nbdc_wait() - until @c is answered, reading for everyone where nobody else does. With the lock. */
static int nbdc_wait(struct nbdc *n, struct nbdc_call *c)
{
	while (!c->done && (!atomic_load(&n->dead) || n->reading)) {
		struct nbdc_call *ended;
		int r;

		if (n->reading) {
			pthread_cond_wait(&n->cond, &n->lock);
			continue;
		}
		n->reading = true;
		pthread_mutex_unlock(&n->lock);
		r = nbdc_read_one(n, &ended);
		pthread_mutex_lock(&n->lock);
		n->reading = false;
		if (r)
			nbdc_die(n, r);
		else if (ended)
			ended->done = true;
		pthread_cond_broadcast(&n->cond);
	}
	return c->done ? c->result : -EIO;
}

static int nbdc_call(struct nbdc *n, struct nbdc_call *c, uint16_t flags, struct blk_buf out)
{
	uint64_t payload = c->type == NBD_CMD_WRITE ? c->len : 0;
	uint8_t h[NBD_REQUEST_LEN];
	int r;

	pthread_mutex_lock(&n->lock);
	if (atomic_load(&n->dead)) {
		pthread_mutex_unlock(&n->lock);
		return -EIO;
	}
	c->cookie = ++n->cookie;
	list_add_tail(&n->calls, &c->node);
	pthread_mutex_unlock(&n->lock);

	nbd_put32(h, NBD_REQUEST_MAGIC);
	nbd_put16(h + 4, flags);
	nbd_put16(h + 6, c->type);
	nbd_put64(h + 8, c->cookie);
	nbd_put64(h + 16, c->off);
	nbd_put32(h + 24, c->len);
	pthread_mutex_lock(&n->send_lock);
	r = atomic_load(&n->dead) ? -EIO : 0;
	if (!r && payload && out.niov == 1) {
		/* the common shape in one call */
		struct iovec v[2] = { { h, sizeof(h) },
				      { (char *)out.iov->iov_base + out.skip, payload } };

		r = nbdc_transfer(n, true, (struct blk_buf){ v, 2, 0 }, sizeof(h) + payload);
	} else if (!r) {
		r = nbdc_put(n, h, sizeof(h));
		if (!r && payload)
			r = nbdc_transfer(n, true, out, payload);
	}
	if (r)
		nbdc_die(n, r);
	pthread_mutex_unlock(&n->send_lock);

	pthread_mutex_lock(&n->lock);
	r = nbdc_wait(n, c);
	list_del(&c->node);
	pthread_mutex_unlock(&n->lock);
	return r;
}

static int nbdc_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	struct nbdc *n = bd->drv;
	int r = 0;

	while (len && !r) {
		uint32_t part = (uint32_t)MIN(len, ALIGN_DOWN((uint64_t)n->payload_max, 4096ULL));
		struct nbdc_call c = { .type = write ? NBD_CMD_WRITE : NBD_CMD_READ,
				       .off = off,
				       .len = part,
				       .b = b };

		r = nbdc_call(n, &c, 0, b);
		b = blk_buf_advance(b, part);
		off += part;
		len -= part;
	}
	return r;
}

static int nbdc_zero_by_writing(struct blockdev *bd, uint64_t off, uint64_t len)
{
	uint64_t chunk = MIN(len, MIB);
	void *p = calloc(1, chunk);
	int r = p ? 0 : -ENOMEM;

	for (; len && !r; off += chunk, len -= chunk) {
		chunk = MIN(len, chunk);
		r = node_pwrite(bd, p, chunk, off);
	}
	free(p);
	return r;
}

static int nbdc_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	struct nbdc *n = bd->drv;
	bool discard = flags & NODE_DISCARD;
	int r = 0;

	if (discard && !(n->flags & NBD_EXPORT_TRIM))
		return 0;
	if (!discard && !(n->flags & NBD_EXPORT_ZEROES))
		return nbdc_zero_by_writing(bd, off, len);
	while (len && !r) {
		uint32_t part = (uint32_t)MIN(len, GIB);
		struct nbdc_call c = { .type = discard ? NBD_CMD_TRIM : NBD_CMD_WRITE_ZEROES,
				       .off = off,
				       .len = part };

		r = nbdc_call(n, &c, discard || (flags & NODE_UNMAP) ? 0 : NBD_CMD_FLAG_NO_HOLE,
			      (struct blk_buf){ 0 });
		off += part;
		len -= part;
	}
	return r;
}

static int nbdc_flush(struct blockdev *bd)
{
	struct nbdc *n = bd->drv;
	struct nbdc_call c = { .type = NBD_CMD_FLUSH };
	int r = atomic_load(&n->dead) ? -EIO : 0;

	if (r || !(n->flags & NBD_EXPORT_FLUSH))
		return r;
	r = nbdc_call(n, &c, 0, (struct blk_buf){ 0 });
	if (r)
		nbdc_die(n, r); /* a sync that failed is not asked again */
	return r;
}

/* nbdc_status_known() - what the last reply tells from @off on; 0: nothing */
static unsigned nbdc_status_known(const struct nbdc *n, uint64_t off, struct blk_extent *ext,
				  unsigned max)
{
	unsigned found = 0;

	for (unsigned i = 0; i < n->nstatus && found < max; i++) {
		struct blk_extent x = n->status[i];
		uint64_t end = x.off_bytes + x.len_bytes;

		if (end <= off || (!found && x.off_bytes > off))
			continue;
		if (x.off_bytes < off) {
			x.len_bytes = end - off;
			x.off_bytes = off;
		}
		ext[found++] = x;
	}
	return found;
}

static int nbdc_extents_kept(struct nbdc *n, uint64_t off, uint64_t left, struct blk_extent *ext,
			     unsigned max)
{
	struct nbdc_call c = { .type = NBD_CMD_BLOCK_STATUS,
			       .off = off,
			       .len = (uint32_t)MIN(left, GIB),
			       .max = NBDC_STATUS_KEPT };
	int r;

	pthread_mutex_lock(&n->status_lock);
	r = (int)nbdc_status_known(n, off, ext, max);
	if (!n->status)
		n->status = calloc(NBDC_STATUS_KEPT, sizeof(*n->status));
	if (!r && !n->status)
		r = -ENOMEM;
	if (!r) {
		n->nstatus = 0;
		c.ext = n->status;
		r = nbdc_call(n, &c, 0, (struct blk_buf){ 0 });
		if (!r) {
			n->nstatus = c.n;
			r = (int)nbdc_status_known(n, off, ext, max);
		}
	}
	pthread_mutex_unlock(&n->status_lock);
	return r;
}

static int nbdc_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max)
{
	struct nbdc *n = bd->drv;
	uint64_t left = atomic_load(&bd->size_bytes) - off;
	struct nbdc_call c = { .type = NBD_CMD_BLOCK_STATUS,
			       .off = off,
			       .len = (uint32_t)MIN(left, GIB),
			       .ext = ext,
			       .max = max };
	int r;

	if (n->meta_id == NBDC_META_ID_NONE) {
		ext[0] = (struct blk_extent){ off, left, BLK_EXT_DATA, 0 };
		return 1;
	}
	if (n->flags & NBD_EXPORT_READ_ONLY)
		return nbdc_extents_kept(n, off, left, ext, max);
	r = nbdc_call(n, &c, max == 1 ? NBD_CMD_FLAG_REQ_ONE : 0, (struct blk_buf){ 0 });
	return r ? r : (int)c.n;
}

static void nbdc_info(struct blockdev *bd, struct blk_info *info)
{
	struct nbdc *n = bd->drv;

	info->has_discard = n->flags & NBD_EXPORT_TRIM;
	info->has_write_zeroes = n->flags & NBD_EXPORT_ZEROES;
}

static void nbdc_free(struct nbdc *n)
{
	pthread_mutex_destroy(&n->lock);
	pthread_mutex_destroy(&n->send_lock);
	pthread_mutex_destroy(&n->status_lock);
	free(n->status);
	pthread_cond_destroy(&n->cond);
	free(n);
}

static int nbdc_open(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	const char *name = spec_opt(spec, "export");
	struct nbdc *n = calloc(1, sizeof(*n));
	uint64_t timeout = 0;
	int r;

	if (!n)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	name = name ? name : "";
	n->sock = spec->fd;
	n->meta_id = NBDC_META_ID_NONE;
	n->payload_max = NBD_PAYLOAD_MAX;
	list_init(&n->calls);
	pthread_mutex_init(&n->lock, NULL);
	pthread_mutex_init(&n->send_lock, NULL);
	pthread_mutex_init(&n->status_lock, NULL);
	pthread_cond_init(&n->cond, NULL);
	r = spec_opt_u64(spec, "timeout-ms", NBDC_TIMEOUT_MS, 3600000, &timeout, e);
	if (!r && strlen(name) > NBD_NAME_MAX)
		r = err_set(e, ENAMETOOLONG, "nbd-export", "%s: the export's name is too long",
			    bd->label);
	n->timeout_ms = (uint32_t)timeout;
	if (!r) {
		r = nbdc_handshake(n, bd, name, e);
		if (r && !e->num)
			err_set(e, -r, "nbd-handshake",
				"%s: no NBD server answers as it should: %s", bd->label,
				strerror(-r));
	}
	if (!r && (n->flags & NBD_EXPORT_READ_ONLY) && !bd->read_only)
		r = err_set(e, EROFS, "nbd-read-only", "%s: the NBD export is read-only",
			    bd->label);
	if (r) {
		nbdc_free(n);
		return r;
	}
	bd->drv = n;
	return 0;
}

static int nbdc_close(struct blockdev *bd, bool keep_fds)
{
	struct nbdc *n = bd->drv;
	uint8_t h[NBD_REQUEST_LEN] = { 0 };
	int r = node_flush(bd);

	nbd_put32(h, NBD_REQUEST_MAGIC);
	nbd_put16(h + 6, NBD_CMD_DISC);
	if (!atomic_load(&n->dead))
		(void)nbdc_put(n, h, sizeof(h)); /* a courtesy */
	if (!keep_fds)
		close(n->sock);
	nbdc_free(n);
	return r;
}

const struct blockdev_ops nbd_ops = {
	.name = "nbd",
	.open = nbdc_open,
	.close = nbdc_close,
	.info = nbdc_info,
	.rw = nbdc_rw,
	.zero = nbdc_zero,
	.flush = nbdc_flush,
	.extents = nbdc_extents,
};
