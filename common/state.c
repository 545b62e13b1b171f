/* state.c - see state.h. Whole sections are checked (lengths, CRC) before a field is handed out. */
#include "common/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STATE_MAGIC	0x54534d56u /* "VMST" */
#define STATE_HDR	24u	    /* magic, name_len, version, instance, pad, len */
#define STATE_FIELD_HDR 8u
#define STATE_OPTIONAL	0x8000u
enum { STATE_U64 = 1, STATE_BYTES = 2 };

/* CRC-32C (Castagnoli), reflected polynomial 0x82f63b78, nibble table: 64 bytes instead of 8 KiB.
 */
uint32_t crc32c(uint32_t crc, const void *p, size_t len)
{
	static const uint32_t table[16] = { 0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
					    0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
					    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
					    0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75 };
	const uint8_t *b = p;

	crc = ~crc;
	while (len--) {
		crc ^= *b++;
		crc = crc >> 4 ^ table[crc & 15];
		crc = crc >> 4 ^ table[crc & 15];
	}
	return ~crc;
}

static void st_put(uint8_t *p, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t st_get(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

void state_writer_init(struct state_writer *w)
{
	*w = (struct state_writer){ .section = SIZE_MAX };
}

void state_writer_fini(struct state_writer *w)
{
	free(w->data);
	state_writer_init(w);
}

static uint8_t *state_grow(struct state_writer *w, size_t more)
{
	size_t need;
	uint8_t *p;

	if (w->error)
		return NULL;
	if (__builtin_add_overflow(w->len, more, &need)) {
		w->error = -ENOMEM;
		return NULL;
	}
	if (need > w->cap) {
		size_t cap = w->cap ? w->cap : 4096;

		while (cap < need)
			cap *= 2;
		p = realloc(w->data, cap);
		if (!p) {
			w->error = -ENOMEM;
			return NULL;
		}
		w->data = p;
		w->cap = cap;
	}
	p = w->data + w->len;
	w->len = need;
	return p;
}

void state_begin(struct state_writer *w, const char *name, uint32_t instance, uint16_t version)
{
	size_t n = strlen(name);
	uint8_t *p;

	w->section = w->len;
	p = state_grow(w, STATE_HDR + n);
	if (!p)
		return;
	st_put(p, STATE_MAGIC, 4);
	st_put(p + 4, n, 2);
	st_put(p + 6, version, 2);
	st_put(p + 8, instance, 4);
	st_put(p + 12, 0, 4);
	st_put(p + 16, 0, 8);
	memcpy(p + STATE_HDR, name, n);
}

static void state_put(struct state_writer *w, uint16_t tag, unsigned kind, const void *data,
		      size_t len)
{
	uint8_t *p;

	if (len > UINT32_MAX) {
		w->error = -E2BIG;
		return;
	}
	p = state_grow(w, STATE_FIELD_HDR + len);
	if (!p)
		return;
	st_put(p, tag, 2);
	st_put(p + 2, kind, 2);
	st_put(p + 4, len, 4);
	if (len)
		memcpy(p + STATE_FIELD_HDR, data, len);
}

void state_put_u64(struct state_writer *w, uint16_t tag, uint64_t v)
{
	uint8_t b[8];

	st_put(b, v, 8);
	state_put(w, tag, STATE_U64, b, 8);
}

void state_put_bytes(struct state_writer *w, uint16_t tag, const void *p, size_t len)
{
	state_put(w, tag, STATE_BYTES, p, len);
}

void state_end(struct state_writer *w)
{
	uint8_t *p = state_grow(w, 4);
	size_t start = w->section;
	uint64_t name_len;

	w->section = SIZE_MAX;
	if (!p || start == SIZE_MAX)
		return;
	name_len = st_get(w->data + start + 4, 2);
	st_put(w->data + start + 16, w->len - 4 - start - STATE_HDR - name_len, 8);
	st_put(w->data + w->len - 4, crc32c(0, w->data + start, w->len - 4 - start), 4);
}

void state_reader_init(struct state_reader *r, const void *data, size_t len)
{
	*r = (struct state_reader){ .data = data, .len = len };
}

static int state_bad(const struct state_reader *r, struct err *e, const char *what)
{
	return err_set(e, EBADMSG, "state-corrupt", "saved state: %s at byte %zu of %zu", what,
		       r->off, r->len);
}

/* Walk the fields once, so that the getters need no checks. */
static bool state_fields_ok(const uint8_t *p, size_t len)
{
	while (len) {
		uint64_t flen;

		if (len < STATE_FIELD_HDR)
			return false;
		flen = st_get(p + 4, 4);
		if (flen > len - STATE_FIELD_HDR || (st_get(p + 2, 2) == STATE_U64 && flen != 8))
			return false;
		p += STATE_FIELD_HDR + flen;
		len -= STATE_FIELD_HDR + flen;
	}
	return true;
}

int state_next(struct state_reader *r, struct err *e)
{
	const uint8_t *p = r->data + r->off;
	size_t left = r->len - r->off, name_len;
	uint64_t len;

	if (!left)
		return 0;
	if (left < STATE_HDR || st_get(p, 4) != STATE_MAGIC)
		return state_bad(r, e, "no section header");
	name_len = st_get(p + 4, 2);
	len = st_get(p + 16, 8);
	if (!name_len || name_len >= sizeof(r->name) || left < STATE_HDR + name_len + 4 ||
	    len > left - STATE_HDR - name_len - 4)
		return state_bad(r, e, "section runs past the end");
	if (crc32c(0, p, STATE_HDR + name_len + len) != st_get(p + STATE_HDR + name_len + len, 4))
		return state_bad(r, e, "checksum mismatch in a section");
	if (memchr(p + STATE_HDR, 0, name_len))
		return state_bad(r, e, "bad section name");
	memcpy(r->name, p + STATE_HDR, name_len);
	r->name[name_len] = '\0';
	r->version = (uint16_t)(st_get(p + 6, 2) & ~STATE_OPTIONAL);
	r->optional = st_get(p + 6, 2) & STATE_OPTIONAL;
	r->instance = (uint32_t)st_get(p + 8, 4);
	r->fields = p + STATE_HDR + name_len;
	r->fields_len = len;
	if (!state_fields_ok(r->fields, r->fields_len))
		return state_bad(r, e, "malformed fields");
	r->off += STATE_HDR + name_len + len + 4;
	return 1;
}

static const uint8_t *state_find(const struct state_reader *r, uint16_t tag)
{
	const uint8_t *p = r->fields, *end = p + r->fields_len;

	for (; p < end; p += STATE_FIELD_HDR + st_get(p + 4, 4))
		if (st_get(p, 2) == tag)
			return p;
	return NULL;
}

int state_get_u64(const struct state_reader *r, uint16_t tag, uint64_t *v)
{
	const uint8_t *p = state_find(r, tag);

	if (!p)
		return -ENOENT;
	if (st_get(p + 2, 2) != STATE_U64)
		return -EBADMSG;
	*v = st_get(p + STATE_FIELD_HDR, 8);
	return 0;
}

uint64_t state_get_u64_or(const struct state_reader *r, uint16_t tag, uint64_t dflt)
{
	uint64_t v;

	return state_get_u64(r, tag, &v) == 0 ? v : dflt;
}

int state_get_span(const struct state_reader *r, uint16_t tag, const void **span, size_t *len)
{
	const uint8_t *p = state_find(r, tag);

	if (!p)
		return -ENOENT;
	if (st_get(p + 2, 2) != STATE_BYTES)
		return -EBADMSG;
	*span = p + STATE_FIELD_HDR;
	*len = st_get(p + 4, 4);
	return 0;
}

int state_get_bytes(const struct state_reader *r, uint16_t tag, void *buf, size_t len)
{
	const void *p;
	size_t n;
	int ret = state_get_span(r, tag, &p, &n);

	if (ret < 0)
		return ret;
	if (n != len)
		return -EBADMSG;
	memcpy(buf, p, len);
	return 0;
}
