/* filter_test.c - rate limit, copy-on-read, delay, detect-zeroes. */
#include "tests/unit/storage/disk_test.h"

#define SIZE (4 * MIB)

static void rate_limit_spaces_requests_and_bytes(void **state)
{
	static const char *const iops[] = { "iops=100", NULL }, *const bps[] = { "bps=1048576",
										 NULL };
	static const char *const *const limits[] = { iops, bps };
	static uint8_t buf[64 * KIB];

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct blk_spec file = { .driver = "file",
					 .label = "r",
					 .fd = disk_fd("r", O_RDWR | O_CREAT),
					 .cache = BLK_CACHE_WRITEBACK };
		struct blk_spec rate = {
			.driver = "rate", .label = "r", .fd = -1, .child = &file, .opts = limits[i]
		};
		struct err e = { 0 };
		uint64_t t0;

		assert_int_equal(ftruncate(file.fd, SIZE), 0);
		struct blockdev *bd = blk_open(&rate, &e);

		assert_non_null(bd);
		t0 = clock_mono_ns();
		/* 30 operations at 100/s, or 320 KiB at 1 MiB/s, less a tenth of a second of burst
		 */
		for (int k = 0; k < (i ? 5 : 30); k++)
			assert_int_equal(
			    blk_pwrite(bd, buf, i ? sizeof(buf) : 512, k * sizeof(buf)), 0);
		assert_true(clock_mono_ns() - t0 >= 140 * NS_PER_MS);
		assert_int_equal(blk_close(bd), 0);
	}
}

static void copy_on_read_brings_the_parent_into_the_top(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE,
				   .backing_name = "base",
				   .backing_format = "raw" };
	struct blk_spec back = {
		.driver = "file", .label = "base", .read_only = true, .cache = BLK_CACHE_WRITEBACK
	};
	struct blk_spec top = { .driver = "qcow2",
				.label = "top",
				.discard = true,
				.backing = &back,
				.cache = BLK_CACHE_WRITEBACK };
	struct blk_spec cor = { .driver = "copyread", .label = "cor", .fd = -1, .child = &top };
	uint8_t *want = malloc(SIZE), *got = malloc(SIZE);
	struct err e = { 0 };
	struct blk_extent x;
	int fd = disk_fd("base", O_RDWR | O_CREAT | O_TRUNC);

	(void)state;
	rng_fill(want, SIZE);
	assert_int_equal(write(fd, want, SIZE), SIZE);
	close(fd);
	disk_create("top", &cr);
	back.fd = disk_fd("base", O_RDONLY);
	top.fd = disk_fd("top", O_RDWR);
	struct blockdev *bd = blk_open(&cor, &e);

	assert_non_null(bd);
	memset(got, 7, 4096);
	assert_int_equal(blk_pwrite(bd, got, 4096, 8192), 0);
	memset(want + 8192, 7, 4096);
	assert_int_equal(blk_pread(bd, got, SIZE / 2, 0), 0);
	assert_memory_equal(got, want, SIZE / 2);
	for (uint64_t off = 0; off < SIZE / 2; off += x.len_bytes) {
		assert_int_equal(blk_extents(bd, off, &x, 1), 1);
		assert_int_equal(x.depth, 0);
	}
	assert_int_equal(blk_extents(bd, SIZE / 2, &x, 1), 1);
	assert_int_equal(x.depth, 1);
	assert_int_equal(blk_pread(bd, got, SIZE, 0), 0);
	assert_memory_equal(got, want, SIZE);
	assert_int_equal(blk_close(bd), 0);
	if (have_qemu())
		assert_int_equal(qemu_check("top"), 0);
	free(want);
	free(got);
}

static void detect_zeroes_stores_none(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE };
	struct blk_spec s = { .driver = "qcow2",
			      .label = "dz",
			      .discard = true,
			      .detect_zeroes = true,
			      .cache = BLK_CACHE_WRITEBACK };
	static uint8_t zero[256 * KIB], one[4096] = { 1 };
	struct err e = { 0 };
	struct blk_extent x;

	(void)state;
	disk_create("dz", &cr);
	s.fd = disk_fd("dz", O_RDWR);
	struct blockdev *bd = blk_open(&s, &e);

	assert_non_null(bd);
	assert_int_equal(blk_pwrite(bd, zero, sizeof(zero), 0), 0);
	assert_int_equal(blk_extents(bd, 0, &x, 1), 1);
	assert_int_not_equal(x.kind, BLK_EXT_DATA);
	assert_int_equal(blk_pwrite(bd, one, sizeof(one), 4096), 0);
	assert_int_equal(blk_extents(bd, 4096, &x, 1), 1);
	assert_int_equal(x.kind, BLK_EXT_DATA);
	assert_int_equal(blk_pwrite(bd, zero, 128 * KIB, 0), 0);
	assert_int_equal(blk_extents(bd, 4096, &x, 1), 1);
	assert_int_not_equal(x.kind, BLK_EXT_DATA);
	assert_int_equal(blk_close(bd), 0);
	if (have_qemu())
		assert_int_equal(qemu_check("dz"), 0);
}

static void delay_makes_each_request_slow(void **state)
{
	static const char *const opts[] = { "us=20000", NULL };
	struct blk_spec file = { .driver = "file",
				 .label = "d",
				 .fd = disk_fd("d", O_RDWR | O_CREAT),
				 .cache = BLK_CACHE_WRITEBACK };
	struct blk_spec slow = {
		.driver = "delay", .label = "d", .fd = -1, .child = &file, .opts = opts
	};
	struct err e = { 0 };
	uint8_t buf[512];
	uint64_t t0;

	(void)state;
	assert_int_equal(ftruncate(file.fd, SIZE), 0);
	struct blockdev *bd = blk_open(&slow, &e);

	assert_non_null(bd);
	t0 = clock_mono_ns();
	for (int i = 0; i < 3; i++)
		assert_int_equal(blk_pread(bd, buf, sizeof(buf), 0), 0);
	assert_true(clock_mono_ns() - t0 >= 60 * NS_PER_MS);
	assert_int_equal(blk_close(bd), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rate_limit_spaces_requests_and_bytes),
		cmocka_unit_test(copy_on_read_brings_the_parent_into_the_top),
		cmocka_unit_test(detect_zeroes_stores_none),
		cmocka_unit_test(delay_makes_each_request_slow),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
