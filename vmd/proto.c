/* proto.c - see proto.h: descriptor tables from proto.def and the one codec that walks them.
 * Sending duplicates descriptors; the sender's struct keeps its own.
 */
#include "vmd/proto.h"

#include <unistd.h>

#include "common/overflow.h"

enum {
	PRIV = PROTO_PRIV,
	CORE = PROTO_CORE,
	API = PROTO_API,
	GUEST = PROTO_GUEST,
	IMAGE = PROTO_IMAGE,
	ALL = PROTO_ALL,
	ANY = PROTO_ANY,
	NEW = PROTO_NEW,
	UP = PROTO_UP,
	CONF = PROTO_CONF,
	LIVE = PROTO_LIVE,
};

/* One function a message returns its fields: inside it, `msg_t` names that message's struct, which
 * lets the field macros say offsetof() without knowing whose field they are. */
#define F_U64(n, t)	   { PROTO_F_U64, t, offsetof(msg_t, n), 8, #n },
#define F_I64(n, t)	   { PROTO_F_I64, t, offsetof(msg_t, n), 8, #n },
#define F_STR(n, t, max)   { PROTO_F_STR, t, offsetof(msg_t, n), max, #n },
#define F_BYTES(n, t, max) { PROTO_F_BYTES, t, offsetof(msg_t, n), max, #n },
#define F_FD(n, t)	   { PROTO_F_FD, t, offsetof(msg_t, n), 0, #n },
#define MSG(name, num, from, to, states, max_fds, fields) \
	static const struct proto_field *proto_fields_##name(void) \
	{ \
		typedef struct msg_##name msg_t; \
		static const struct proto_field table[] = { \
			fields{ 0, 0, offsetof(msg_t, msg_id), 0, NULL }, \
		}; \
		return table; \
	}
#include "vmd/proto.def"
#undef MSG

#define MSG(name, num, from, to, states, max_fds, fields) \
	{ num, #name, from, to, states, max_fds, sizeof(struct msg_##name), proto_fields_##name },
static const struct proto_desc proto_descs[] = {
#include "vmd/proto.def"
};
#undef MSG

const struct proto_desc *proto_find(uint16_t type)
{
	for (size_t i = 0; i < ARRAY_SIZE(proto_descs); i++)
		if (proto_descs[i].type == type)
			return &proto_descs[i];
	return NULL;
}

int proto_permit(const struct wire_buf *b, enum proto_role from, enum proto_role to,
		 enum proto_state state)
{
	const struct proto_desc *d = proto_find(b->type);

	if (!d)
		return -EPROTO;
	if (!(d->from & from) || !(d->to & to) || !(d->states & state))
		return -EPERM;
	if (b->nfds > d->max_fds)
		return -EMFILE;
	return 0;
}

int proto_encode(uint16_t type, const void *msg, uint32_t id, struct wire_buf *b)
{
	const struct proto_desc *d = proto_find(type);

	if (!d)
		return -EPROTO;
	wire_begin(b, type, id);
	for (const struct proto_field *f = d->fields(); f->name; f++) {
		const uint8_t *p = (const uint8_t *)msg + f->off;
		struct proto_bytes bytes;
		uint64_t u;
		int fd, idx;

		switch (f->kind) {
		case PROTO_F_U64:
			memcpy(&u, p, sizeof(u));
			if (u)
				wire_put_u64(b, f->tag, u);
			break;
		case PROTO_F_I64:
			memcpy(&u, p, sizeof(u));
			if (u)
				wire_put_i64(b, f->tag, (int64_t)u);
			break;
		case PROTO_F_STR:
			if (*p)
				wire_put_str(b, f->tag, (const char *)p);
			break;
		case PROTO_F_BYTES:
			memcpy(&bytes, p, sizeof(bytes));
			if (bytes.len > f->max)
				b->error = -EMSGSIZE;
			else if (bytes.len)
				wire_put_bytes(b, f->tag, bytes.p, bytes.len);
			break;
		case PROTO_F_FD:
			memcpy(&fd, p, sizeof(fd));
			if (fd <= 0)
				break;
			idx = wire_put_fd(b, fd, false);
			if (idx >= 0)
				wire_put_u64(b, f->tag, (uint64_t)idx);
			break;
		}
	}
	return b->error;
}

static const struct proto_field *proto_field_find(const struct proto_field *f, uint16_t tag)
{
	for (; f->name; f++)
		if (f->tag == tag)
			return f;
	return NULL;
}

static int proto_decode_field(const struct proto_field *f, const struct wire_field *w, uint8_t *p,
			      struct wire_buf *b)
{
	struct proto_bytes bytes;
	int fd;

	switch (f->kind) {
	case PROTO_F_U64:
	case PROTO_F_I64:
		if (w->kind != (f->kind == PROTO_F_U64 ? WIRE_U64 : WIRE_I64))
			return -EPROTO;
		memcpy(p, &w->u64, sizeof(w->u64));
		return 0;
	case PROTO_F_STR:
		if (w->kind != WIRE_STR || w->len > f->max)
			return -EPROTO;
		memcpy(p, w->p, w->len);
		p[w->len] = '\0';
		return 0;
	case PROTO_F_BYTES:
		if (w->kind != WIRE_BYTES || w->len > f->max)
			return -EPROTO;
		bytes = (struct proto_bytes){ .p = w->p, .len = w->len };
		memcpy(p, &bytes, sizeof(bytes));
		return 0;
	case PROTO_F_FD:
		memcpy(&fd, p, sizeof(fd));
		if (w->kind != WIRE_U64 || w->u64 >= WIRE_FDS_MAX || fd >= 0)
			return -EPROTO;
		fd = wire_take_fd(b, (unsigned)w->u64);
		if (fd < 0)
			return fd;
		memcpy(p, &fd, sizeof(fd));
		return 0;
	}
	return -EPROTO;
}

int proto_decode(uint16_t type, void *msg, struct wire_buf *b)
{
	const struct proto_desc *d = proto_find(type);
	const struct proto_field *fields;
	struct wire_iter it;
	struct wire_field w;
	int r, none = -1;

	if (!d || b->type != type)
		return -EPROTO;
	fields = d->fields();
	memset(msg, 0, d->size);
	memcpy(msg, &b->id, sizeof(b->id));
	for (const struct proto_field *f = fields; f->name; f++)
		if (f->kind == PROTO_F_FD)
			memcpy((uint8_t *)msg + f->off, &none, sizeof(none));
	wire_iter_init(&it, b);
	while ((r = wire_next(&it, &w)) > 0) {
		const struct proto_field *f = proto_field_find(fields, w.tag);

		if (!f)
			continue; /* a newer peer's field */
		r = proto_decode_field(f, &w, (uint8_t *)msg + f->off, b);
		if (r < 0)
			break;
	}
	if (r < 0)
		proto_close(type, msg);
	return r;
}

void proto_close(uint16_t type, void *msg)
{
	const struct proto_desc *d = proto_find(type);

	if (!d)
		return;
	for (const struct proto_field *f = d->fields(); f->name; f++) {
		int fd, none = -1;

		if (f->kind != PROTO_F_FD)
			continue;
		memcpy(&fd, (uint8_t *)msg + f->off, sizeof(fd));
		if (fd > 0)
			close(fd);
		memcpy((uint8_t *)msg + f->off, &none, sizeof(none));
	}
}

int proto_send(struct wire_conn *c, uint16_t type, const void *msg, uint32_t id)
{
	struct wire_buf b = { 0 };
	int r = proto_encode(type, msg, id, &b);

	if (r < 0) {
		wire_buf_clear(&b);
		return r;
	}
	return wire_conn_send(c, &b);
}
