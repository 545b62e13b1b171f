/* wire.c - see wire.h: building, checking and exchanging messages.
 * A received message is checked once, whole (wire_check), so that iteration afterwards cannot run
 * out of it; -EPROTO from wire_next() is then an own bug, but is still checked for.
 */
#include "common/le.h"
#include "common/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <fcntl.h>

#include "common/overflow.h"
#include "common/text.h"

#define WIRE_FIELD_HDR 8u

/* ---- building ---- */

static void wire_close_fds(struct wire_buf *b)
{
	for (unsigned i = 0; i < b->nfds; i++)
		if (b->fds[i] >= 0)
			close(b->fds[i]);
	b->nfds = 0;
}

static uint8_t *wire_grow(struct wire_buf *b, size_t more)
{
	size_t need = b->len + more;
	uint8_t *p;

	if (b->error)
		return NULL;
	if (need > WIRE_MSG_MAX) {
		b->error = -EMSGSIZE;
		return NULL;
	}
	if (need > b->cap) {
		size_t cap = b->cap ? b->cap : 256;

		while (cap < need)
			cap *= 2;
		p = realloc(b->data, cap);
		if (!p) {
			b->error = -ENOMEM;
			return NULL;
		}
		b->data = p;
		b->cap = cap;
	}
	p = b->data + b->len;
	b->len = need;
	return p;
}

void wire_begin(struct wire_buf *b, uint16_t type, uint32_t id)
{
	wire_close_fds(b);
	b->type = type;
	b->id = id;
	b->len = 0;
	b->error = 0;
	wire_grow(b, WIRE_HDR_LEN);
}

static uint8_t *wire_put(struct wire_buf *b, uint16_t tag, enum wire_kind kind, size_t len)
{
	size_t padded = ALIGN_UP(len, 4);
	uint8_t *p;

	if (len > WIRE_MSG_MAX) {
		b->error = -EMSGSIZE;
		return NULL;
	}
	p = wire_grow(b, WIRE_FIELD_HDR + padded);
	if (!p)
		return NULL;
	le_put16(p, tag);
	le_put16(p + 2, (uint16_t)kind);
	le_put32(p + 4, (uint32_t)len);
	if (padded > len)
		memset(p + WIRE_FIELD_HDR + len, 0, padded - len);
	return p + WIRE_FIELD_HDR;
}

void wire_put_u64(struct wire_buf *b, uint16_t tag, uint64_t v)
{
	uint8_t *p = wire_put(b, tag, WIRE_U64, 8);

	if (p)
		le_put64(p, v);
}

void wire_put_i64(struct wire_buf *b, uint16_t tag, int64_t v)
{
	uint8_t *p = wire_put(b, tag, WIRE_I64, 8);

	if (p)
		le_put64(p, (uint64_t)v);
}

void wire_put_str(struct wire_buf *b, uint16_t tag, const char *s)
{
	size_t len = s ? strlen(s) : 0;
	uint8_t *p = s ? wire_put(b, tag, WIRE_STR, len) : NULL;

	if (p && len)
		memcpy(p, s, len);
}

void wire_put_bytes(struct wire_buf *b, uint16_t tag, const void *data, size_t len)
{
	uint8_t *p = wire_put(b, tag, WIRE_BYTES, len);

	if (p && len)
		memcpy(p, data, len);
}

size_t wire_nest_begin(struct wire_buf *b, uint16_t tag)
{
	size_t mark = b->len;

	wire_put(b, tag, WIRE_MSG, 0);
	return mark;
}

void wire_nest_end(struct wire_buf *b, size_t mark)
{
	if (!b->error)
		le_put32(b->data + mark + 4, (uint32_t)(b->len - mark - WIRE_FIELD_HDR));
}

int wire_put_fd(struct wire_buf *b, int fd, bool take)
{
	if (b->nfds >= WIRE_FDS_MAX) {
		b->error = -EMFILE;
		return -EMFILE;
	}
	if (!take) {
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (fd < 0) {
			b->error = -errno;
			return b->error;
		}
	}
	b->fds[b->nfds] = fd;
	return (int)b->nfds++;
}

void wire_buf_clear(struct wire_buf *b)
{
	wire_close_fds(b);
	free(b->data);
	*b = (struct wire_buf){ 0 };
}

/* ---- reading ---- */

/* Take one field at *p. Return 1, 0 at the end, -EPROTO. */
static int wire_parse_field(const uint8_t **p, const uint8_t *end, struct wire_field *f)
{
	size_t left = (size_t)(end - *p), padded;

	if (!left)
		return 0;
	if (left < WIRE_FIELD_HDR)
		return -EPROTO;
	f->tag = le_get16(*p);
	f->kind = le_get16(*p + 2);
	f->len = le_get32(*p + 4);
	f->p = *p + WIRE_FIELD_HDR;
	f->u64 = 0;
	left -= WIRE_FIELD_HDR;
	if (f->len > left)
		return -EPROTO;
	padded = ALIGN_UP((size_t)f->len, 4);
	if (padded > left)
		return -EPROTO;
	switch (f->kind) {
	case WIRE_U64:
	case WIRE_I64:
		if (f->len != 8)
			return -EPROTO;
		f->u64 = le_get64(f->p);
		break;
	case WIRE_STR:
		if (memchr(f->p, 0, f->len) || !utf8_valid((const char *)f->p, f->len))
			return -EPROTO;
		break;
	default: /* bytes, nested; an unknown kind is skipped by its length */
		break;
	}
	*p = f->p + padded;
	return 1;
}

static int wire_check(const uint8_t *p, const uint8_t *end, unsigned depth)
{
	struct wire_field f;
	int r;

	if (depth > WIRE_NEST_MAX)
		return -EPROTO;
	while ((r = wire_parse_field(&p, end, &f)) > 0)
		if (f.kind == WIRE_MSG && (r = wire_check(f.p, f.p + f.len, depth + 1)) < 0)
			return r;
	return r;
}

void wire_iter_init(struct wire_iter *it, const struct wire_buf *b)
{
	it->p = b->data + WIRE_HDR_LEN;
	it->end = b->data + b->len;
}

int wire_iter_nested(struct wire_iter *it, const struct wire_field *f)
{
	if (f->kind != WIRE_MSG)
		return -EPROTO;
	it->p = f->p;
	it->end = f->p + f->len;
	return 0;
}

int wire_next(struct wire_iter *it, struct wire_field *f)
{
	return wire_parse_field(&it->p, it->end, f);
}

int wire_take_fd(struct wire_buf *b, unsigned index)
{
	int fd;

	if (index >= b->nfds || b->fds[index] < 0)
		return -EPROTO;
	fd = b->fds[index];
	b->fds[index] = -1;
	return fd;
}

/* ---- exchange ---- */

/* One attempt; the fds stay @b's. 0 or -errno. */
static int wire_send_once(int sock, struct wire_buf *b, int flags)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * WIRE_FDS_MAX)];
		struct cmsghdr align;
	} ctl;
	struct iovec iov = { .iov_base = b->data, .iov_len = b->len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (b->error)
		return b->error;
	le_put32(b->data, WIRE_MAGIC);
	le_put16(b->data + 4, b->type);
	le_put16(b->data + 6, (uint16_t)b->nfds);
	le_put32(b->data + 8, b->id);
	le_put32(b->data + 12, (uint32_t)(b->len - WIRE_HDR_LEN));
	if (b->nfds) {
		struct cmsghdr *cm;

		memset(&ctl, 0, sizeof(ctl));
		mh.msg_control = ctl.buf;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * b->nfds);
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof(int) * b->nfds);
		memcpy(CMSG_DATA(cm), b->fds, sizeof(int) * b->nfds);
	}
	do
		n = sendmsg(sock, &mh, MSG_NOSIGNAL | flags);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

int wire_send(int sock, struct wire_buf *b)
{
	int r = wire_send_once(sock, b, 0);

	if (!r)
		wire_close_fds(b);
	return r;
}

static void wire_collect_fds(struct msghdr *mh, struct wire_buf *b)
{
	for (struct cmsghdr *cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
		size_t n;

		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
			continue;
		n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(int));
			if (b->nfds < WIRE_FDS_MAX)
				b->fds[b->nfds++] = fd;
			else
				close(fd);
		}
	}
}

int wire_recv(int sock, struct wire_buf *b, unsigned max_fds)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * WIRE_FDS_MAX)];
		struct cmsghdr align;
	} ctl;
	struct iovec iov;
	struct msghdr mh = { .msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = ctl.buf,
			     .msg_controllen = sizeof(ctl.buf) };
	ssize_t n;

	wire_close_fds(b);
	b->error = 0;
	b->len = 0;
	if (b->cap < WIRE_MSG_MAX) {
		uint8_t *p = realloc(b->data, WIRE_MSG_MAX);

		if (!p)
			return -ENOMEM;
		b->data = p;
		b->cap = WIRE_MSG_MAX;
	}
	iov = (struct iovec){ .iov_base = b->data, .iov_len = b->cap };
	do
		n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	wire_collect_fds(&mh, b);
	if (n == 0)
		return 0;
	b->len = (size_t)n;
	if ((mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || b->len < WIRE_HDR_LEN ||
	    le_get32(b->data) != WIRE_MAGIC || le_get32(b->data + 12) != b->len - WIRE_HDR_LEN ||
	    le_get16(b->data + 6) != b->nfds || b->nfds > max_fds ||
	    wire_check(b->data + WIRE_HDR_LEN, b->data + b->len, 0) < 0) {
		wire_close_fds(b);
		return -EPROTO;
	}
	b->type = le_get16(b->data + 4);
	b->id = le_get32(b->data + 8);
	return 1;
}

/* ---- connections on a loop ---- */

#define WIRE_QUEUE_LIMIT (8u << 20)
#define WIRE_BATCH	 64 /* messages handled before other watchers get their turn */

struct wire_queued {
	struct list node;
	struct wire_buf b;
};

struct wire_conn {
	struct loop *loop;
	struct loop_fd w;
	int sock;
	unsigned max_fds;
	wire_msg_fn *on_msg;
	wire_close_fn *on_close;
	void *arg;
	struct list queue;
	size_t queued, limit;
	struct wire_buf rx;
	bool paused, closed, in_callback, free_later;
};

static void wire_conn_events(struct wire_conn *c)
{
	uint32_t ev = (c->paused ? 0u : (uint32_t)EPOLLIN) |
		      (list_empty(&c->queue) ? 0u : (uint32_t)EPOLLOUT);

	if (!c->closed)
		loop_fd_mod(&c->w, ev);
}

static void wire_conn_drop_queue(struct wire_conn *c)
{
	list_for_each_safe (n, &c->queue) {
		struct wire_queued *q = container_of(n, struct wire_queued, node);

		list_del(n);
		wire_buf_clear(&q->b);
		free(q);
	}
	c->queued = 0;
}

static void wire_conn_destroy(struct wire_conn *c)
{
	loop_fd_del(&c->w);
	wire_conn_drop_queue(c);
	wire_buf_clear(&c->rx);
	close(c->sock);
	free(c);
}

static void wire_conn_closed(struct wire_conn *c, int why)
{
	if (c->closed)
		return;
	c->closed = true;
	loop_fd_del(&c->w);
	wire_conn_drop_queue(c);
	c->on_close(c->arg, c, why);
}

static void wire_conn_flush(struct wire_conn *c)
{
	while (!list_empty(&c->queue)) {
		struct wire_queued *q = list_first(&c->queue, struct wire_queued, node);
		int r = wire_send_once(c->sock, &q->b, MSG_DONTWAIT);

		if (r == -EAGAIN)
			break;
		/* other errors: reading finds the end and reports it, after what is still to be
		 * read */
		list_del(&q->node);
		c->queued -= q->b.len;
		wire_buf_clear(&q->b);
		free(q);
		if (r < 0) {
			wire_conn_drop_queue(c);
			break;
		}
	}
	wire_conn_events(c);
}

static void wire_conn_ready(void *arg, int fd, uint32_t events)
{
	struct wire_conn *c = arg;

	c->in_callback = true;
	if (events & EPOLLOUT)
		wire_conn_flush(c);
	for (unsigned i = 0; i < WIRE_BATCH && !c->paused && !c->closed && !c->free_later; i++) {
		int r = wire_recv(fd, &c->rx, c->max_fds);

		if (r == -EAGAIN)
			break;
		if (r <= 0) {
			wire_conn_closed(c, r);
			break;
		}
		c->on_msg(c->arg, c, &c->rx);
		wire_close_fds(&c->rx);
	}
	/* a paused reader still has to learn that its peer is gone */
	if (c->paused && !c->closed && !c->free_later && (events & (EPOLLHUP | EPOLLERR)))
		wire_conn_closed(c, 0);
	c->in_callback = false;
	if (c->free_later)
		wire_conn_destroy(c);
}

struct wire_conn *wire_conn_new(struct loop *l, int sock, unsigned max_fds, wire_msg_fn *on_msg,
				wire_close_fn *on_close, void *arg)
{
	struct wire_conn *c = calloc(1, sizeof(*c));
	int r;

	if (!c) {
		errno = ENOMEM;
		return NULL;
	}
	*c = (struct wire_conn){ .loop = l,
				 .sock = sock,
				 .max_fds = max_fds,
				 .on_msg = on_msg,
				 .on_close = on_close,
				 .arg = arg,
				 .limit = WIRE_QUEUE_LIMIT };
	list_init(&c->queue);
	r = fd_set_nonblock(sock);
	if (!r)
		r = loop_fd_add(l, &c->w, sock, EPOLLIN, wire_conn_ready, c);
	if (r < 0) {
		free(c);
		errno = -r;
		return NULL;
	}
	return c;
}

void wire_conn_free(struct wire_conn *c)
{
	if (!c)
		return;
	if (c->in_callback) {
		c->free_later = true;
		c->closed = true;
		loop_fd_del(&c->w);
		return;
	}
	wire_conn_destroy(c);
}

int wire_conn_send(struct wire_conn *c, struct wire_buf *b)
{
	struct wire_queued *q;
	int r;

	if (b->error || c->closed) {
		r = b->error ? b->error : -EPIPE;
		wire_buf_clear(b);
		return r;
	}
	if (list_empty(&c->queue)) {
		r = wire_send_once(c->sock, b, MSG_DONTWAIT);
		if (r != -EAGAIN) {
			wire_buf_clear(b);
			return r == -ECONNRESET ? -EPIPE : r;
		}
	}
	if (c->queued + b->len > c->limit) {
		wire_buf_clear(b);
		return -ENOBUFS;
	}
	q = malloc(sizeof(*q));
	if (!q) {
		wire_buf_clear(b);
		return -ENOMEM;
	}
	q->b = *b;
	*b = (struct wire_buf){ 0 };
	c->queued += q->b.len;
	list_add_tail(&c->queue, &q->node);
	wire_conn_events(c);
	return 0;
}

size_t wire_conn_queued(const struct wire_conn *c)
{
	return c->queued;
}

void wire_conn_set_limit(struct wire_conn *c, size_t bytes)
{
	c->limit = bytes;
}

int wire_conn_fd(const struct wire_conn *c)
{
	return c->sock;
}

void wire_conn_pause(struct wire_conn *c, bool paused)
{
	c->paused = paused;
	wire_conn_events(c);
}
