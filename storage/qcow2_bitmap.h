/* qcow2_bitmap.h - inside storage/: dirty bitmaps of the qcow2 driver, on disk and in RAM. */
#ifndef STORAGE_QCOW2_BITMAP_H
#define STORAGE_QCOW2_BITMAP_H

#include "storage/bitmap.h"
#include "storage/qcow2.h"

#define Q2_BITMAP_DIR_MAX   (64u << 20)
#define Q2_BITMAP_BYTES_MAX (512u << 20)
#define Q2_BITMAP_IN_USE    1u
#define Q2_BITMAP_AUTO	    2u
#define Q2_BITMAP_EXTRA_OK  4u

/* an entry of the directory */
struct q2_bitmap {
	uint64_t table_off, flags_at; /* flags_at: file offset of the flags */
	uint32_t table_n, flags;
	unsigned granularity_bits;
	bool foreign; /* extra data that we do not know: left alone, not trusted */
	char name[BLK_BITMAP_NAME_MAX + 1];
};

/* one that is loaded */
struct q2_bitmap_ram {
	struct list node;
	struct q2_bitmap disk; /* as in the file; table_n 0: not there yet */
	bool enabled, stale;   /* stale: was not kept up to date; words NULL */
	_Atomic bool changed;  /* differs from what the file has */
	uint64_t nbits;
	_Atomic uint64_t *words;
};

static inline uint64_t q2_bitmap_words(uint64_t nbits)
{
	return MAX((nbits + 63) / 64, 1ULL);
}

/* qcow2_bitmap.c: reading the file */
int q2_bitmaps_parse(struct qcow2 *q, struct q2_bitmap **list, struct err *e);
bool q2_bitmap_consistent(const struct qcow2 *q, const struct q2_bitmap *b);
int q2_bitmap_bits(struct qcow2 *q, const struct q2_bitmap *b, uint8_t **bits, uint64_t *nbits,
		   struct err *e);
struct qcow2 *q2_bitmap_image(struct blockdev *bd, struct err *e); /* through filters */

/* qcow2_bitmap_ram.c */
int q2_bitmaps_load(struct qcow2 *q, struct err *e); /* once; later calls do nothing */
struct q2_bitmap_ram *q2_bitmap_find_locked(struct qcow2 *q, const char *name);
uint64_t q2_bitmap_count(const struct q2_bitmap_ram *b);
void q2_bitmap_ram_free(struct q2_bitmap_ram *b);

#endif
