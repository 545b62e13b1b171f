/* bitmap.h - dirty bitmaps of a disk: what was written since when, for incremental backup.
 *
 * They live in the qcow2 file (format: QEMU docs/interop/qcow2, "Bitmaps extension") and in RAM
 * while the disk is open: the first write marks them "in use" in the file, closing stores them. A
 * bitmap whose disk was not closed is not trusted (the next backup is a full one). An enabled
 * bitmap grows with every write, zeroing and discard; a disabled one stands still.
 * The calls take any node whose chain of filters ends at a qcow2. Threading: any thread, requests
 * may be in flight; a consistent "take" needs them drained (live.h does that).
 * Trust: names come from users and are checked here; what the file says is hostile.
 */
#ifndef STORAGE_BITMAP_H
#define STORAGE_BITMAP_H

#include "storage/blockdev.h"

#define BLK_BITMAP_NAME_MAX 1023u

/* blk_bitmap_create() - @granularity: a power of two from 512 to 2 GiB, 0 = 64 KiB. -EEXIST. */
int blk_bitmap_create(struct blockdev *bd, const char *name, uint64_t granularity, bool enabled,
		      struct err *e);
int blk_bitmap_remove(struct blockdev *bd, const char *name, struct err *e);
int blk_bitmap_enable(struct blockdev *bd, const char *name, bool on, struct err *e);
int blk_bitmap_clear(struct blockdev *bd, const char *name, struct err *e);
/* blk_bitmap_merge() - @dst also has what @src has; granularities may differ. */
int blk_bitmap_merge(struct blockdev *bd, const char *dst, const char *src, struct err *e);
/* blk_bitmap_next() - the run of equal bits from @off on, at least one granule, clipped to the
 * disk. 0; -ENOENT; -ESTALE where the bitmap cannot be trusted. */
int blk_bitmap_next(struct blockdev *bd, const char *name, uint64_t off, uint64_t *len_bytes,
		    bool *dirty);

/* A bitmap's bits, owned by the caller. */
struct blk_bits {
	uint64_t granularity, n;
	uint64_t *words; /* least significant bit first */
};
/* blk_bitmap_take() - its bits, and it is empty from now on; _give_back() adds them again, for a
 * backup that failed. */
int blk_bitmap_take(struct blockdev *bd, const char *name, struct blk_bits *b, struct err *e);
int blk_bitmap_give_back(struct blockdev *bd, const char *name, const struct blk_bits *b,
			 struct err *e);
void blk_bits_fini(struct blk_bits *b);
bool blk_bits_any(const struct blk_bits *b, uint64_t off_bytes, uint64_t len_bytes);

#endif
