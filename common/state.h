/* state.h - the one state format: save, snapshot, clone and migration use it alike.
 *
 * A stream of sections {u32 magic 'VMST', u16 name_len, u16 version, u32 instance, u64 len, name,
 * fields, u32 crc32c}; fields are {u16 tag, u16 kind, u32 len, bytes}, little-endian. Unknown tags
 * are skipped, unknown sections refused unless marked optional (version bit 15). No paths, no host
 * pointers, no host-bound ids inside. A truncated or corrupt stream is refused before any device
 * sees its section (-EBADMSG).
 * Ownership: writer and reader borrow the memory or fd they are given.
 */
#ifndef COMMON_STATE_H
#define COMMON_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

struct state_writer {
	uint8_t *data; /* grown by realloc; free() by the owner */
	size_t len, cap;
	size_t section; /* offset of the open section, or SIZE_MAX */
	int error;	/* sticky -errno */
};

void state_writer_init(struct state_writer *w);
void state_writer_fini(struct state_writer *w);
void state_begin(struct state_writer *w, const char *name, uint32_t instance, uint16_t version);
void state_put_u64(struct state_writer *w, uint16_t tag, uint64_t v);
void state_put_bytes(struct state_writer *w, uint16_t tag, const void *p, size_t len);
void state_end(struct state_writer *w);

struct state_reader {
	const uint8_t *data;
	size_t len, off;
	/* current section */
	char name[64];
	uint32_t instance;
	uint16_t version;
	bool optional;
	const uint8_t *fields;
	size_t fields_len;
};

void state_reader_init(struct state_reader *r, const void *data, size_t len);
int state_next(struct state_reader *r, struct err *e); /* 1 section, 0 end, -EBADMSG */
/* state_get_*(): value of the tag's first occurrence; -ENOENT where absent, -EBADMSG wrong kind.
 * state_get_u64_or(): default where absent. */
int state_get_u64(const struct state_reader *r, uint16_t tag, uint64_t *v);
uint64_t state_get_u64_or(const struct state_reader *r, uint16_t tag, uint64_t dflt);
int state_get_bytes(const struct state_reader *r, uint16_t tag, void *buf, size_t len); /* exact */
int state_get_span(const struct state_reader *r, uint16_t tag, const void **p, size_t *len);

uint32_t crc32c(uint32_t crc, const void *p, size_t len);

#endif
