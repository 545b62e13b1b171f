/* proto.h - typed messages and the permit table, both generated from proto.def.
 *
 * For each MSG(name, ...) there is: MSG_name (the type number), struct msg_name, msg_name_send(),
 * msg_name_encode(), msg_name_decode(), msg_name_close(). In a struct, F_STR is a NUL-terminated
 * array, F_BYTES a pointer into the message it was decoded from (valid while that lives) with
 * name_len, F_FD a descriptor (-1 or 0 = absent when sending; decoded ones are owned by the struct:
 * msg_name_close()).
 * Trust: decode refuses over-long strings and bytes; absent fields read as 0, "" and -1.
 */
#ifndef VMD_PROTO_H
#define VMD_PROTO_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/wire.h"

#define PROTO_VERSION 1

enum proto_role {
	PROTO_PRIV = 1,
	PROTO_CORE = 2,
	PROTO_API = 4,
	PROTO_GUEST = 8,
	PROTO_IMAGE = 16,
	PROTO_ALL = 31,
};

/* State of the receiving end's connection, in which a message is accepted. */
enum proto_state { PROTO_NEW = 1, PROTO_UP = 2, PROTO_CONF = 4, PROTO_LIVE = 8, PROTO_ANY = 15 };

enum proto_kind { PROTO_F_U64, PROTO_F_I64, PROTO_F_STR, PROTO_F_BYTES, PROTO_F_FD };

struct proto_field {
	enum proto_kind kind;
	uint16_t tag;
	uint16_t off; /* in the struct; BYTES: of the pointer, the length follows it */
	uint32_t max; /* bytes, without the NUL */
	const char *name;
};

struct proto_desc {
	uint16_t type;
	const char *name;
	uint8_t from, to, states;
	uint8_t max_fds;
	uint16_t size;
	const struct proto_field *(*fields)(void); /* ends with name == NULL */
};

struct proto_bytes {
	const uint8_t *p;
	size_t len;
};

/* proto_find() - row of a type, or NULL. */
const struct proto_desc *proto_find(uint16_t type);
/* proto_permit() - may @from send @b to us (@to, connection in @state)? 0; -EPROTO unknown type;
 * -EPERM not allowed from there or in this state; -EMFILE too many descriptors. */
int proto_permit(const struct wire_buf *b, enum proto_role from, enum proto_role to,
		 enum proto_state state);

/* The generic codec behind the typed ones; @msg is the struct of @type. */
int proto_encode(uint16_t type, const void *msg, uint32_t id, struct wire_buf *b);
int proto_decode(uint16_t type, void *msg, struct wire_buf *b);
void proto_close(uint16_t type, void *msg);
int proto_send(struct wire_conn *c, uint16_t type, const void *msg, uint32_t id);

/* ---- generated ---- */

#define F_U64(n, t)	   uint64_t n;
#define F_I64(n, t)	   int64_t n;
#define F_STR(n, t, max)   char n[(max) + 1];
#define F_BYTES(n, t, max) struct proto_bytes n;
#define F_FD(n, t)	   int n;
#define MSG(name, num, from, to, states, max_fds, fields) \
	enum { MSG_##name = num }; \
	struct msg_##name { \
		uint32_t msg_id; /* header id: filled by decode */ \
		fields \
	}; \
	static inline int msg_##name##_encode(const struct msg_##name *m, uint32_t id, \
					      struct wire_buf *b) \
	{ \
		return proto_encode(num, m, id, b); \
	} \
	static inline int msg_##name##_decode(struct msg_##name *m, struct wire_buf *b) \
	{ \
		return proto_decode(num, m, b); \
	} \
	static inline void msg_##name##_close(struct msg_##name *m) \
	{ \
		proto_close(num, m); \
	} \
	static inline int msg_##name##_send(struct wire_conn *c, const struct msg_##name *m, \
					    uint32_t id) \
	{ \
		return proto_send(c, num, m, id); \
	}
#include "vmd/proto.def"
#undef F_U64
#undef F_I64
#undef F_STR
#undef F_BYTES
#undef F_FD
#undef MSG

#endif
