/* fuzz_qcow2.c - open, read, map, check, write, resize and repair whatever the bytes claim to be.
 *
 * The first byte chooses what is done; the rest is the image. No crash, no hang, no memory beyond
 * what the file's size explains; a write to a hostile image may only change that image.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/log.h"
#include "common/overflow.h"
#include "storage/bitmap.h"
#include "storage/qcow2.h"
#include "storage/qcow2_tools.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_read(struct blockdev *bd)
{
	static uint8_t buf[64 * 1024];
	struct blk_extent x[32];
	uint64_t n = bd->size_bytes, off = 0;

	for (int i = 0; i < 8 && off < n; i++) {
		int k = blk_extents(bd, off, x, 32);

		if (k <= 0)
			break;
		off = x[k - 1].off_bytes + x[k - 1].len_bytes;
		(void)blk_pread(bd, buf, MIN(ALIGN_DOWN(n - x[0].off_bytes, 512ULL), sizeof(buf)),
				ALIGN_DOWN(x[0].off_bytes, 512ULL));
	}
	(void)blk_pread(bd, buf, MIN(n, sizeof(buf)), 0);
	if (n > sizeof(buf))
		(void)blk_pread(bd, buf, sizeof(buf), n - sizeof(buf));
}

static void fuzz_write(struct blockdev *bd, uint8_t what)
{
	static uint8_t buf[16 * 1024];
	uint64_t n = bd->size_bytes;
	struct err e = { 0 };

	memset(buf, what, sizeof(buf));
	if (n >= 2 * sizeof(buf)) {
		(void)blk_pwrite(bd, buf, sizeof(buf), 512);
		(void)blk_pwrite(bd, buf, 1024, n - 1024);
		(void)blk_zero(bd, n / 2 & ~511ULL, 8192, what & 8);
		(void)blk_flush(bd);
		(void)blk_discard(bd, 0, n > 1 << 24 ? 1 << 24 : n);
		(void)blk_pwrite(bd, buf, sizeof(buf), n / 3 & ~511ULL);
	}
	if (what & 32) {
		struct blk_bits bits;

		(void)blk_bitmap_create(bd, "fuzz", 512ULL << (what & 7), true, &e);
		(void)blk_pwrite(bd, buf, 512, 0);
		if (blk_bitmap_take(bd, "b", &bits, &e) == 0) {
			(void)blk_bitmap_give_back(bd, "fuzz", &bits, &e);
			blk_bits_fini(&bits);
		}
		(void)blk_bitmap_merge(bd, "fuzz", "b", &e);
		(void)blk_bitmap_remove(bd, what & 8 ? "b" : "fuzz", &e);
	}
	if (what & 16)
		(void)blk_resize(bd, (n / 2 & ~511ULL) + ((uint64_t)what << 16), &e);
	(void)blk_flush(bd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const opts[] = { "backing=ignore", "repair=no", "cache-bytes=65536",
					    "prealloc=off", NULL };
	struct blk_spec s = { .driver = "qcow2",
			      .label = "fuzz",
			      .discard = true,
			      .cache = BLK_CACHE_UNSAFE,
			      .opts = opts };
	struct qcow2_snapshot_info *snaps = NULL;
	struct qcow2_bitmap_info *maps = NULL;
	struct err e = { 0 };
	struct q2_check c;
	struct blockdev *bd;
	int fd;

	if (size < 2)
		return 0;
	log_set_level(LOG_ERR_ - 1);
	fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (fd < 0 || write(fd, data + 1, size - 1) != (ssize_t)(size - 1))
		abort();
	s.read_only = !(data[0] & 3);
	s.fd = fd;
	bd = blk_open(&s, &e);
	if (!bd) {
		if (!err_is_set(&e))
			abort(); /* a refusal says why */
		close(fd);
		return 0;
	}
	fuzz_read(bd);
	if (qcow2_snapshot_list(bd, &snaps, &e) > 0 && s.read_only)
		if (qcow2_snapshot_view(bd, snaps[0].id, &e) == 0)
			fuzz_read(bd);
	(void)qcow2_bitmap_list(bd, &maps, &e);
	if ((data[0] & 3) == 1)
		fuzz_write(bd, data[0]);
	else if ((data[0] & 3) == 2)
		(void)q2_check_run(bd->drv, Q2_REPAIR_ALL, &c, &e);
	else if ((data[0] & 3) == 3 && snaps)
		(void)qcow2_snapshot_delete(bd, snaps[0].id, &e);
	else
		(void)q2_check_run(bd->drv, Q2_REPAIR_NONE, &c, &e);
	(void)blk_close(bd);
	free(snaps);
	free(maps);
	return 0;
}
