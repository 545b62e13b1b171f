/* wire.h - messages between our processes: SOCK_SEQPACKET, fixed header, tagged fields.
 *
 * A message is a 16-byte little-endian header {u32 magic 'VMD1', u16 type, u16 nfds, u32 id,
 * u32 body_len} and a body of fields {u16 tag, u16 kind, u32 len, len bytes, pad to 4}. Unknown
 * tags are skipped, so that an old guest and a new daemon agree; a nested message is a field of
 * kind WIRE_MSG. At most WIRE_MSG_MAX bytes and WIRE_FDS_MAX descriptors a message. No struct is
 * ever sent by sizeof. Typed codecs for each message are generated from vmd/proto.def.
 * Trust: a received message is hostile until decoded; every length is checked, strings hold no
 * NUL and are valid UTF-8, descriptors beyond the permitted number are closed and the message
 * refused.
 */
#ifndef COMMON_WIRE_H
#define COMMON_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "list.h"
#include "loop.h"

#define WIRE_MAGIC    0x31444d56u /* "VMD1" */
#define WIRE_MSG_MAX  65536u
#define WIRE_FDS_MAX  16u
#define WIRE_HDR_LEN  16u
#define WIRE_NEST_MAX 8u

enum wire_kind { WIRE_U64 = 1, WIRE_I64 = 2, WIRE_STR = 3, WIRE_BYTES = 4, WIRE_MSG = 5 };

/* A message being built or just received. @body holds header + fields. Owned fds are closed by
 * wire_buf_clear() unless taken. */
struct wire_buf {
	uint16_t type;
	uint32_t id; /* request/reply correlation; 0 = event */
	unsigned nfds;
	int fds[WIRE_FDS_MAX];
	size_t len, cap;
	uint8_t *data;
	int error; /* sticky: first -errno of any put */
};

void wire_begin(struct wire_buf *b, uint16_t type, uint32_t id); /* reuses memory of @b */
void wire_put_u64(struct wire_buf *b, uint16_t tag, uint64_t v);
void wire_put_i64(struct wire_buf *b, uint16_t tag, int64_t v);
void wire_put_str(struct wire_buf *b, uint16_t tag, const char *s); /* NULL: field left out */
void wire_put_bytes(struct wire_buf *b, uint16_t tag, const void *p, size_t len);
size_t wire_nest_begin(struct wire_buf *b, uint16_t tag);
void wire_nest_end(struct wire_buf *b, size_t mark);
/* wire_put_fd() - attach @fd (dup'ed by the kernel on send; @take: closed after send or clear).
 * Return: its index in the message, or -EMFILE. */
int wire_put_fd(struct wire_buf *b, int fd, bool take);
void wire_buf_clear(struct wire_buf *b); /* frees memory, closes owned fds */

/* A field as found; @p points into the message. */
struct wire_field {
	uint16_t tag;
	enum wire_kind kind;
	uint32_t len;
	const uint8_t *p;
	uint64_t u64; /* for WIRE_U64 and WIRE_I64 */
};

struct wire_iter {
	const uint8_t *p, *end;
};

void wire_iter_init(struct wire_iter *it, const struct wire_buf *b);
int wire_iter_nested(struct wire_iter *it, const struct wire_field *f); /* 0 or -EPROTO */
/* wire_next() - Return: 1 field taken, 0 end, -EPROTO malformed. */
int wire_next(struct wire_iter *it, struct wire_field *f);
int wire_take_fd(struct wire_buf *b, unsigned index); /* fd, now the caller's; or -EPROTO */

/* Blocking exchange, for set-up paths and tests. wire_recv(): 1 message, 0 EOF, -errno
 * (-EPROTO malformed, -EAGAIN on a non-blocking socket). */
int wire_send(int sock, struct wire_buf *b);
int wire_recv(int sock, struct wire_buf *b, unsigned max_fds);

/* A connection on a loop: queued sends with back pressure, one callback a message. */
struct wire_conn;
typedef void wire_msg_fn(void *arg, struct wire_conn *c, struct wire_buf *b);
/* @why: 0 = EOF, else -errno. Called once; the callback or owner then calls wire_conn_free(). */
typedef void wire_close_fn(void *arg, struct wire_conn *c, int why);

struct wire_conn *wire_conn_new(struct loop *l, int sock, unsigned max_fds, wire_msg_fn *on_msg,
				wire_close_fn *on_close, void *arg); /* owns @sock on success */
void wire_conn_free(struct wire_conn *c); /* safe inside its own callbacks */
/* wire_conn_send() - queue; @b is emptied (fds duplicated or taken). -EPIPE once closed,
 * -ENOBUFS above the queue's limit (the peer is then not reading: close it). */
int wire_conn_send(struct wire_conn *c, struct wire_buf *b);
size_t wire_conn_queued(const struct wire_conn *c); /* bytes waiting */
void wire_conn_set_limit(struct wire_conn *c, size_t bytes);
int wire_conn_fd(const struct wire_conn *c);
void wire_conn_pause(struct wire_conn *c, bool paused); /* stop/start reading */

#endif
