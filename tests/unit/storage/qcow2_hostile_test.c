/* qcow2_hostile_test.c - images made to harm: each is refused or read within its own bounds, with a
 * sentence that names the disk. Shapes from history: CVE-2014-0144 (header fields that overflow
 * table sizes), CVE-2024-32498 (a data file or backing name that opens a host file), CVE-2024-4467
 * (json: names in the header).
 */
#include "tests/unit/storage/disk_test.h"

#include "storage/qcow2.h"

#define SIZE (1 * MIB)

static void put(const char *name, uint64_t off, uint64_t v, unsigned bytes)
{
	uint8_t b[8];
	int fd = disk_fd(name, O_RDWR);

	for (unsigned i = 0; i < bytes; i++)
		b[i] = v >> (8 * (bytes - 1 - i));
	assert_int_equal(pwrite(fd, b, bytes, off), bytes);
	close(fd);
}

static uint64_t get64(const char *name, uint64_t off)
{
	uint64_t v;
	int fd = disk_fd(name, O_RDONLY);

	assert_int_equal(pread(fd, &v, 8, off), 8);
	close(fd);
	return be64toh(v);
}

static void fresh(const char *name, bool ext, bool data)
{
	struct qcow2_create cr = { .size_bytes = SIZE, .cluster_size = 65536, .compat = !ext };
	uint8_t *buf = malloc(SIZE);

	disk_create(name, &cr);
	if (data) {
		struct blockdev *bd = disk_open(name, "qcow2", NULL, false, BLK_CACHE_WRITEBACK);

		rng_fill(buf, SIZE);
		assert_int_equal(blk_pwrite(bd, buf, SIZE, 0), 0);
		assert_int_equal(blk_close(bd), 0);
	}
	free(buf);
}

static void refused(const char *name, bool ro, int num)
{
	struct err e = { 0 };
	struct blk_spec s = { .driver = "qcow2",
			      .label = "disk evil",
			      .fd = disk_fd(name, ro ? O_RDONLY : O_RDWR),
			      .read_only = ro,
			      .cache = BLK_CACHE_WRITEBACK };
	struct blockdev *bd = blk_open(&s, &e);

	if (bd)
		fail_msg("opened, and should not have been");
	assert_int_equal(e.num, num);
	assert_non_null(strstr(e.detail, "disk evil"));
	close(s.fd);
}

static void qcow2_refuses_header_fields_out_of_range(void **state)
{
	static const struct {
		uint64_t off, v;
		unsigned bytes;
		int num;
	} bad[] = {
		{ 0, 0x12345678, 4, EUCLEAN }, /* magic */
		{ 4, 4, 4, EUCLEAN },	       /* version */
		{ 4, 1, 4, EUCLEAN },
		{ 20, 8, 4, EUCLEAN }, /* cluster bits */
		{ 20, 22, 4, EUCLEAN },
		{ 20, 63, 4, EUCLEAN },
		{ 20, 0xffffffff, 4, EUCLEAN },
		{ 24, UINT64_MAX, 8, EUCLEAN }, /* size */
		{ 24, 1ULL << 62, 8, EUCLEAN }, /* L1 too small for it */
		{ 32, 1, 4, ENOTSUP },		/* encryption */
		{ 36, 0xffffffff, 4, EUCLEAN }, /* CVE-2014-0144: L1 entries */
		{ 36, 0x20000001, 4, EUCLEAN }, /* times 8 overflows 32 bits */
		{ 36, 0, 4, EUCLEAN },
		{ 40, 0xfffffffffffff000ULL, 8, EUCLEAN }, /* L1 offset */
		{ 40, 512, 8, EUCLEAN },
		{ 40, 1ULL << 40, 8, EUCLEAN },
		{ 48, UINT64_MAX - 65535, 8, EUCLEAN }, /* refcount table */
		{ 48, 1000, 8, EUCLEAN },
		{ 56, 0, 4, EUCLEAN },
		{ 56, 0xffffffff, 4, EUCLEAN },
		{ 56, 1 << 20, 4, EUCLEAN },
		{ 60, 0xffffffff, 4, EUCLEAN }, /* snapshots */
		{ 72, 1ULL << 60, 8, ENOTSUP }, /* unknown incompatible feature */
		{ 72, 1 << 2, 8, ENOTSUP },	/* CVE-2024-32498: external data file */
		{ 72, 1 << 3, 8, 0 },		/* zlib announced: harmless */
		{ 96, 7, 4, EUCLEAN },		/* refcount width */
		{ 96, 0xffffffff, 4, EUCLEAN },
		{ 100, 0, 4, EUCLEAN }, /* header length */
		{ 100, 103, 4, EUCLEAN },
		{ 100, 0xfffffff8, 4, EUCLEAN },
		{ 104, 2, 1, EUCLEAN },			    /* compression type */
		{ 112, 0xdeadbeefffffffffULL, 8, EUCLEAN }, /* extension past the cluster */
		{ 112, 0x0537be7700000010ULL, 8, ENOTSUP }, /* LUKS */
		{ 16, 0xffffffff, 4, 0 },		    /* backing length without an offset */
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		fresh("h", false, false);
		put("h", bad[i].off, bad[i].v, bad[i].bytes);
		if (!bad[i].num) {
			assert_int_equal(
			    blk_close(disk_open("h", "qcow2", NULL, true, BLK_CACHE_WRITEBACK)), 0);
			continue;
		}
		refused("h", true, bad[i].num);
		refused("h", false, bad[i].num);
	}
}

static void qcow2_refuses_a_backing_name_it_was_not_given(void **state)
{
	static const char *const names[] = {
		"/etc/shadow", "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
		"nbd://127.0.0.1/x", "../../x", "a\nb"
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct qcow2_create cr = { .size_bytes = SIZE, .backing_name = names[i] };

		disk_create("b", &cr);
		refused("b", true, EINVAL);
	}
	/* a name that claims to lie outside the first cluster */
	fresh("b", false, false);
	put("b", 8, 1 << 20, 8);
	put("b", 16, 100, 4);
	refused("b", true, EUCLEAN);
	put("b", 8, 200, 8);
	put("b", 16, 5000, 4);
	refused("b", true, EUCLEAN);
}

static void read_is_refused(const char *name)
{
	struct blockdev *bd = disk_open(name, "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
	uint8_t buf[4096];

	assert_int_equal(blk_pread(bd, buf, sizeof(buf), 0), -EUCLEAN);
	(void)blk_close(bd);
}

static void qcow2_refuses_tables_beyond_eof_and_unaligned(void **state)
{
	static const uint64_t wrong[] = { 1ULL << 40, 512, 65536 + 512, 0x00fffffffffffe00ULL };

	(void)state;
	for (int ext = 0; ext < 2; ext++) {
		for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
			uint64_t l1, l2;

			fresh("t", ext, true);
			l1 = get64("t", 40);
			l2 = get64("t", l1) & Q2_OFFSET_MASK;
			put("t", l2, wrong[i] | Q2_COPIED, 8);
			read_is_refused("t");
			fresh("t", ext, true);
			put("t", l1, wrong[i] | Q2_COPIED, 8);
			read_is_refused("t");
		}
	}
	/* both alloc and zero for one subcluster */
	fresh("t", true, true);
	put("t", (get64("t", get64("t", 40)) & Q2_OFFSET_MASK) + 8, UINT64_MAX, 8);
	read_is_refused("t");
}

static void qcow2_stops_at_data_that_lies_in_metadata(void **state)
{
	static const uint64_t target[] = { 0, 65536, 131072, 196608 };

	(void)state;
	for (size_t i = 1; i < ARRAY_SIZE(target); i++) {
		uint8_t before[65536], after[65536], buf[4096] = { 7 };
		uint64_t l2;
		int fd;

		fresh("m", false, true);
		l2 = get64("m", get64("m", 40)) & Q2_OFFSET_MASK;
		put("m", l2, target[i] | Q2_COPIED, 8);
		fd = disk_fd("m", O_RDONLY);
		assert_int_equal(pread(fd, before, sizeof(before), target[i]), sizeof(before));
		struct blockdev *bd = disk_open("m", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);

		assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), 0), -EUCLEAN);
		/* and from then on nothing is written, for good */
		assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), 512 * KIB), -EUCLEAN);
		(void)blk_close(bd);
		assert_int_equal(pread(fd, after, sizeof(after), target[i]), sizeof(after));
		assert_memory_equal(before, after, sizeof(before));
		close(fd);
		assert_true(get64("m", 72) & Q2_INCOMPAT_CORRUPT);
		refused("m", false, EUCLEAN);
	}
}

static void qcow2_never_allocates_over_metadata_that_claims_to_be_free(void **state)
{
	uint8_t buf[65536];
	uint64_t rb;

	(void)state;
	fresh("z", false, false);
	/* refcounts all zero: header, tables and all look free */
	rb = get64("z", get64("z", 48));
	put("z", rb, 0, 8);
	memset(buf, 1, sizeof(buf));
	struct blockdev *bd = disk_open("z", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);

	assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), 0), -EUCLEAN);
	(void)blk_close(bd);
	assert_int_equal(get64("z", 0) >> 32, Q2_MAGIC);
}

static void qcow2_refuses_two_tables_in_one_place(void **state)
{
	uint8_t buf[512] = { 1 };

	(void)state;
	fresh("o", false, true);
	put("o", 48, get64("o", 40), 8); /* refcount table = L1 */
	struct err e = { 0 };
	struct blk_spec s = { .driver = "qcow2", .label = "disk evil", .fd = disk_fd("o", O_RDWR) };
	struct blockdev *bd = blk_open(&s, &e);

	assert_non_null(bd);
	assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), 0), -EUCLEAN);
	(void)blk_close(bd);
}

static void qcow2_bounds_compressed_clusters(void **state)
{
	uint64_t l2;

	(void)state;
	/* points past the file; points to bytes that are no stream; the longest possible length */
	fresh("c", false, true);
	l2 = get64("c", get64("c", 40)) & Q2_OFFSET_MASK;
	put("c", l2, Q2_COMPRESSED | (1ULL << 40), 8);
	read_is_refused("c");
	put("c", l2, Q2_COMPRESSED | 327680 | (0xffULL << 54), 8);
	read_is_refused("c");
	put("c", l2, Q2_COMPRESSED | 327681, 8);
	read_is_refused("c");
}

static void qcow2_refuses_short_and_foreign_files(void **state)
{
	int fd;

	(void)state;
	fd = disk_fd("s", O_RDWR | O_CREAT);
	close(fd);
	refused("s", true, EUCLEAN);
	put("s", 0, 0x514649fb00000003ULL, 8);
	refused("s", true, EUCLEAN);
	assert_int_equal(truncate(disk_path("s"), 1 << 20), 0);
	refused("s", true, EUCLEAN);
	/* an image cut off in its tables */
	fresh("s", false, true);
	assert_int_equal(truncate(disk_path("s"), 65536), 0);
	refused("s", true, EUCLEAN);
}

static void chains_are_capped_and_unknown_drivers_refused(void **state)
{
	struct blk_spec specs[BLK_CHAIN_MAX + 2];
	struct err e = { 0 };
	int n = BLK_CHAIN_MAX + 1;

	(void)state;
	fresh("chain", false, false);
	for (int i = 0; i < n; i++)
		specs[i] = (struct blk_spec){ .driver = "qcow2",
					      .label = "deep",
					      .fd = disk_fd("chain", O_RDONLY),
					      .read_only = true,
					      .backing = i + 1 < n ? &specs[i + 1] : NULL };
	assert_null(blk_open(&specs[0], &e));
	assert_int_equal(e.num, ELOOP);
	for (int i = 0; i < n; i++) {
		assert_true(fcntl(specs[i].fd, F_GETFD) >= 0); /* the fds stayed ours */
		close(specs[i].fd);
	}
	specs[0] = (struct blk_spec){ .driver = "vmdk", .label = "x", .fd = -1 };
	assert_null(blk_open(&specs[0], &e));
	assert_int_equal(e.num, EINVAL);
}

static void a_dirty_image_is_repaired_before_it_is_written(void **state)
{
	uint64_t rb;
	uint8_t buf[65536];

	(void)state;
	fresh("d", false, true);
	rb = get64("d", get64("d", 48));
	for (uint64_t i = 4; i < 20; i += 4)
		put("d", rb + 2 * i, 0x0000000200000000ULL, 8); /* wrong both ways */
	put("d", 72, Q2_INCOMPAT_DIRTY, 8);
	put("d", 80, Q2_COMPAT_LAZY, 8);
	struct blockdev *bd = disk_open("d", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);

	memset(buf, 3, sizeof(buf));
	assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), 65536), 0);
	assert_int_equal(blk_close(bd), 0);
	assert_int_equal(get64("d", 72), 0);
	if (have_qemu())
		assert_int_equal(qemu_check("d"), 0);
}

static void repair_all_mends_what_a_scribbler_did(void **state)
{
	static const char *const opts[] = { "repair=no", NULL };

	(void)state;
	for (int seed = 0; seed < (test_long() ? 400 : 40); seed++) {
		uint64_t spots[] = { 65536, 131072, 196608, 262144 };
		struct err e = { 0 };
		struct q2_check c;

		fresh("w", seed & 1, true);
		rng_seed(seed);
		for (int k = 0; k < 3; k++)
			put("w", spots[rng_below(4)] + rng_below(24) * 8,
			    rng_below(2) ? rng() : rng_below(40) * 65536, 8);
		struct blk_spec s = {
			.driver = "qcow2", .label = "w", .fd = disk_fd("w", O_RDWR), .opts = opts
		};
		struct blockdev *bd = blk_open(&s, &e);

		if (!bd)
			fail_msg("%s", e.detail);
		int r = q2_check_run(bd->drv, Q2_REPAIR_ALL, &c, &e);

		if (r)
			fail_msg("seed %d: %s", seed, e.detail);
		(void)blk_close(bd);
		bd = disk_open("w", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
		assert_int_equal(q2_check_run(bd->drv, Q2_REPAIR_NONE, &c, &e), 0);
		if (c.errors || c.leaks)
			fail_msg("seed %d: after repair: %s", seed, c.first);
		assert_int_equal(blk_close(bd), 0);
		if (have_qemu() && seed % 4 == 0)
			assert_int_equal(qemu_check("w"), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(qcow2_refuses_header_fields_out_of_range),
		cmocka_unit_test(qcow2_refuses_a_backing_name_it_was_not_given),
		cmocka_unit_test(qcow2_refuses_tables_beyond_eof_and_unaligned),
		cmocka_unit_test(qcow2_stops_at_data_that_lies_in_metadata),
		cmocka_unit_test(qcow2_never_allocates_over_metadata_that_claims_to_be_free),
		cmocka_unit_test(qcow2_refuses_two_tables_in_one_place),
		cmocka_unit_test(qcow2_bounds_compressed_clusters),
		cmocka_unit_test(qcow2_refuses_short_and_foreign_files),
		cmocka_unit_test(chains_are_capped_and_unknown_drivers_refused),
		cmocka_unit_test(a_dirty_image_is_repaired_before_it_is_written),
		cmocka_unit_test(repair_all_mends_what_a_scribbler_did),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
