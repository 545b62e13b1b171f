/* qcow2_differential_test.c - random operations through our qcow2, judged by QEMU, and the reverse.
 *
 * A flat shadow in memory is the truth. After each round the image is read back by us, then
 * qemu-img check must find no error and no leak, and qemu-img's own flat conversion must equal the
 * shadow. VMD_TEST_LONG=1 runs more rounds.
 */
#include "tests/unit/storage/disk_test.h"

#define DISK_SIZE (24 * MIB + 512 * 37)

struct diff_case {
	const char *name;
	uint32_t cluster;
	bool compat, lazy;
	unsigned refcount_bits;
	unsigned depth;
	enum blk_cache cache;
};

static void diff_step(struct blockdev *bd, uint8_t *shadow, uint64_t size)
{
	static uint8_t buf[1 * MIB];
	uint64_t sectors = size / 512, off, len;
	unsigned what = rng_below(100);

	off = rng_below(sectors) * 512;
	len = (rng_below(10) ? 1 + rng_below(32) : 1 + rng_below(1024)) * 512;
	if (rng_below(3) == 0) {
		off = ALIGN_DOWN(off, 4096ULL);
		len = ALIGN_UP(len, 4096ULL);
	}
	len = MIN(MIN(len, size - off), sizeof(buf));
	if (what < 55) {
		rng_fill(buf, len);
		assert_int_equal(blk_pwrite(bd, buf, len, off), 0);
		memcpy(shadow + off, buf, len);
	} else if (what < 70) {
		assert_int_equal(blk_zero(bd, off, len, what & 1), 0);
		memset(shadow + off, 0, len);
	} else if (what < 80) {
		/* a discarded range reads as anything: make it known again */
		assert_int_equal(blk_discard(bd, off, len), 0);
		assert_int_equal(blk_zero(bd, off, len, true), 0);
		memset(shadow + off, 0, len);
	} else if (what < 85) {
		assert_int_equal(blk_flush(bd), 0);
	} else {
		assert_int_equal(blk_pread(bd, buf, len, off), 0);
		assert_memory_equal(buf, shadow + off, len);
	}
}

static void diff_read_all(struct blockdev *bd, const uint8_t *shadow, uint64_t size)
{
	uint8_t *got = malloc(size);

	assert_int_equal(blk_pread(bd, got, size, 0), 0);
	for (uint64_t i = 0; i < size; i += 512)
		if (memcmp(got + i, shadow + i, 512))
			fail_msg("sector at %llu differs", (unsigned long long)i);
	free(got);
}

static void diff_file_equals(const char *name, const uint8_t *shadow, uint64_t size)
{
	int fd = disk_fd(name, O_RDONLY);
	uint8_t *got = malloc(size);
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, size);
	assert_int_equal(pread(fd, got, size, 0), size);
	for (uint64_t i = 0; i < size; i += 512)
		if (memcmp(got + i, shadow + i, 512))
			fail_msg("%s: sector at %llu differs", name, (unsigned long long)i);
	free(got);
	close(fd);
}

static void layer_name(char *buf, unsigned layer)
{
	snprintf(buf, 32, "layer%u", layer);
}

/* chain_open() - all layers up to @top; @specs must hold top+1. */
static struct blockdev *chain_open(struct blk_spec *specs, unsigned top, enum blk_cache cache)
{
	static char names[BLK_CHAIN_MAX][32];
	struct err e = { 0 };
	struct blockdev *bd;

	for (unsigned i = 0; i <= top; i++) {
		layer_name(names[i], i);
		specs[i] = (struct blk_spec){ .driver = "qcow2",
					      .label = names[i],
					      .fd = disk_fd(names[i], i == top ? O_RDWR : O_RDONLY),
					      .read_only = i != top,
					      .discard = true,
					      .cache = cache,
					      .backing = i ? &specs[i - 1] : NULL };
	}
	bd = blk_open(&specs[top], &e);
	if (!bd)
		fail_msg("chain of %u: %s", top + 1, e.detail);
	return bd;
}

static void diff_run(const struct diff_case *c, unsigned steps)
{
	struct blk_spec specs[BLK_CHAIN_MAX];
	uint8_t *shadow = calloc(1, DISK_SIZE);

	print_message("  %s\n", c->name);
	for (unsigned layer = 0; layer < c->depth; layer++) {
		char name[32], below[32];
		struct qcow2_create cr = { .size_bytes = DISK_SIZE,
					   .cluster_size = c->cluster,
					   .compat = c->compat,
					   .lazy_refcounts = c->lazy,
					   .refcount_bits = c->refcount_bits };

		layer_name(name, layer);
		if (layer) {
			layer_name(below, layer - 1);
			cr.backing_name = below;
			cr.backing_format = "qcow2";
		}
		disk_create(name, &cr);
		for (int again = 0; again < 2; again++) {
			struct blockdev *bd = chain_open(specs, layer, c->cache);

			for (unsigned i = 0; i < steps; i++)
				diff_step(bd, shadow, DISK_SIZE);
			diff_read_all(bd, shadow, DISK_SIZE);
			assert_int_equal(blk_close(bd), 0);
			bd = chain_open(specs, layer, c->cache);
			diff_read_all(bd, shadow, DISK_SIZE);
			assert_int_equal(blk_close(bd), 0);
			assert_int_equal(qemu_check(name), 0);
		}
	}
	char top[32];

	layer_name(top, c->depth - 1);
	assert_int_equal(
	    run("qemu-img convert -f qcow2 -O raw '%s' '%s'", disk_path(top), disk_path("flat")),
	    0);
	diff_file_equals("flat", shadow, DISK_SIZE);
	free(shadow);
}

static const struct diff_case diff_cases[] = {
	{ "default: 128K, extended L2", 0, false, false, 0, 1, BLK_CACHE_NONE },
	{ "default, overlay", 0, false, false, 0, 2, BLK_CACHE_WRITEBACK },
	{ "compat 64K", 0, true, false, 0, 1, BLK_CACHE_NONE },
	{ "compat 64K, chain of 5", 0, true, false, 0, 5, BLK_CACHE_WRITEBACK },
	{ "cluster 512", 512, true, false, 0, 2, BLK_CACHE_WRITEBACK },
	{ "cluster 4096, refcount 1", 4096, true, false, 1, 2, BLK_CACHE_WRITEBACK },
	{ "cluster 16K, extended L2, refcount 64", 16384, false, false, 64, 2,
	  BLK_CACHE_WRITEBACK },
	{ "cluster 2M, extended L2, refcount 2", 2 * MIB, false, false, 2, 2, BLK_CACHE_NONE },
	{ "cluster 2M, refcount 8, lazy", 2 * MIB, true, true, 8, 2, BLK_CACHE_WRITEBACK },
	{ "cluster 32K, refcount 32", 32768, true, false, 32, 1, BLK_CACHE_WRITEBACK },
	{ "cluster 1K, refcount 4", 1024, true, false, 4, 1, BLK_CACHE_WRITEBACK },
};

static void our_random_writes_are_read_back_by_qemu(void **state)
{
	(void)state;
	if (!have_qemu())
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(diff_cases); i++) {
		rng_seed(i + 1);
		diff_run(&diff_cases[i], test_long() ? 3000 : 150);
	}
}

static void a_chain_of_thirty_reads_as_one(void **state)
{
	struct diff_case c = { "chain of 30", 65536, false, false, 0, 30, BLK_CACHE_WRITEBACK };

	(void)state;
	if (!have_qemu())
		skip();
	rng_seed(30);
	diff_run(&c, 12);
}

static void qemu_writes_are_read_back_by_us(void **state)
{
	static const char *const options[] = {
		"cluster_size=64k",
		"cluster_size=128k,extended_l2=on",
		"cluster_size=512,refcount_bits=1",
		"cluster_size=4k,refcount_bits=64",
		"cluster_size=64k,lazy_refcounts=on",
		"cluster_size=2M,extended_l2=on",
		"compat=0.10,cluster_size=64k",
		"compression_type=zstd",
	};
	uint8_t *shadow = malloc(DISK_SIZE);

	(void)state;
	if (!have_qemu())
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		bool v2 = strstr(options[i], "0.10") != NULL;
		struct blockdev *bd;

		rng_seed(100 + i);
		memset(shadow, 0, DISK_SIZE);
		assert_int_equal(run("rm -f '%s'; qemu-img create -q -f qcow2 -o %s '%s' %llu",
				     disk_path("q"), options[i], disk_path("q"),
				     (unsigned long long)DISK_SIZE),
				 0);
		FILE *script = fopen(disk_path("script"), "w");
		for (int k = 0; k < 120; k++) {
			uint64_t off = rng_below(DISK_SIZE / 512 - 300) * 512;
			uint64_t len = (1 + rng_below(300)) * 512;
			unsigned pat = 1 + rng_below(255);

			if (rng_below(5) == 0) {
				fprintf(script, "write -z -u %llu %llu\n", (unsigned long long)off,
					(unsigned long long)len);
				memset(shadow + off, 0, len);
			} else {
				fprintf(script, "write -P %u %llu %llu\n", pat,
					(unsigned long long)off, (unsigned long long)len);
				memset(shadow + off, pat, len);
			}
		}
		fclose(script);
		assert_int_equal(run("qemu-io -f qcow2 '%s' <'%s' >/dev/null", disk_path("q"),
				     disk_path("script")),
				 0);
		bd = disk_open("q", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
		diff_read_all(bd, shadow, DISK_SIZE);
		assert_int_equal(blk_close(bd), 0);
		if (v2)
			continue;
		/* and we go on where it stopped */
		bd = disk_open("q", "qcow2", NULL, false, BLK_CACHE_NONE);
		for (int k = 0; k < 200; k++)
			diff_step(bd, shadow, DISK_SIZE);
		assert_int_equal(blk_close(bd), 0);
		assert_int_equal(qemu_check("q"), 0);
		assert_int_equal(run("qemu-img convert -f qcow2 -O raw '%s' '%s'", disk_path("q"),
				     disk_path("flat")),
				 0);
		diff_file_equals("flat", shadow, DISK_SIZE);
		/* compressed by QEMU, read by us, then written over */
		assert_int_equal(run("qemu-img convert -c -f qcow2 -O qcow2 -o %s '%s' '%s'",
				     options[i], disk_path("q"), disk_path("c")),
				 0);
		bd = disk_open("c", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
		diff_read_all(bd, shadow, DISK_SIZE);
		for (int k = 0; k < 100; k++)
			diff_step(bd, shadow, DISK_SIZE);
		assert_int_equal(blk_close(bd), 0);
		assert_int_equal(qemu_check("c"), 0);
		assert_int_equal(run("qemu-img convert -f qcow2 -O raw '%s' '%s'", disk_path("c"),
				     disk_path("flat")),
				 0);
		diff_file_equals("flat", shadow, DISK_SIZE);
	}
	free(shadow);
}

/* --- every combination ---------------------------------------------------------------------------
 */

#define COMBO_SIZE (5 * MIB + 512 * 3)

struct combo {
	uint32_t cluster;
	unsigned refcount_bits;
	bool extended, lazy, zstd;
};

/* combo_qemu_writes() - some random writes and zeroes by qemu-io; the shadow follows. */
static void combo_qemu_writes(const char *name, uint8_t *shadow)
{
	FILE *script = fopen(disk_path("script"), "w");

	assert_non_null(script);
	for (int k = 0; k < 40; k++) {
		uint64_t off = rng_below(COMBO_SIZE / 512 - 200) * 512;
		uint64_t len = (1 + rng_below(200)) * 512;
		unsigned pat = 1 + rng_below(255);

		if (k % 5 == 0) {
			fprintf(script, "write -z %s %llu %llu\n", k % 2 ? "-u" : "",
				(unsigned long long)off, (unsigned long long)len);
			pat = 0;
		} else {
			fprintf(script, "write -P %u %llu %llu\n", pat, (unsigned long long)off,
				(unsigned long long)len);
		}
		memset(shadow + off, (int)pat, len);
	}
	assert_int_equal(fclose(script), 0);
	assert_int_equal(
	    run("qemu-io -f qcow2 '%s' <'%s' >/dev/null", disk_path(name), disk_path("script")), 0);
}

static void combo_we_write(const char *name, uint8_t *shadow)
{
	struct blockdev *bd = disk_open(name, "qcow2", NULL, false, BLK_CACHE_WRITEBACK);

	diff_read_all(bd, shadow, COMBO_SIZE);
	for (int k = 0; k < 60; k++)
		diff_step(bd, shadow, COMBO_SIZE);
	assert_int_equal(blk_close(bd), 0);
}

static void combo_judge(const char *name, const uint8_t *shadow)
{
	struct blockdev *bd;

	assert_int_equal(qemu_check(name), 0);
	assert_int_equal(
	    run("qemu-img convert -f qcow2 -O raw '%s' '%s'", disk_path(name), disk_path("flat")),
	    0);
	diff_file_equals("flat", shadow, COMBO_SIZE);
	bd = disk_open(name, "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
	diff_read_all(bd, shadow, COMBO_SIZE);
	assert_int_equal(blk_close(bd), 0);
}

static void combo_run(const struct combo *c, uint8_t *shadow)
{
	struct qcow2_create cr = { .size_bytes = COMBO_SIZE,
				   .cluster_size = c->cluster,
				   .compat = !c->extended,
				   .lazy_refcounts = c->lazy,
				   .refcount_bits = c->refcount_bits,
				   .zstd = c->zstd };

	/* made by us; written in turns */
	memset(shadow, 0, COMBO_SIZE);
	disk_create("mine", &cr);
	combo_we_write("mine", shadow);
	combo_judge("mine", shadow);
	combo_qemu_writes("mine", shadow);
	combo_judge("mine", shadow);
	/* made by QEMU, compressed, from what that holds; written in turns */
	assert_int_equal(
	    run("qemu-img convert -c -f qcow2 -O qcow2 -o cluster_size=%u,refcount_bits=%u,"
		"extended_l2=%s,lazy_refcounts=%s,compression_type=%s '%s' '%s'",
		c->cluster, c->refcount_bits, c->extended ? "on" : "off", c->lazy ? "on" : "off",
		c->zstd ? "zstd" : "zlib", disk_path("mine"), disk_path("theirs")),
	    0);
	combo_we_write("theirs", shadow);
	combo_judge("theirs", shadow);
}

static void every_combination_of_options_agrees_with_qemu(void **state)
{
	uint8_t *shadow = malloc(COMBO_SIZE);
	unsigned n = 0, done = 0;

	(void)state;
	if (!have_qemu())
		skip();
	for (uint32_t cluster = 512; cluster <= 2 * MIB; cluster *= 2)
		for (unsigned bits = 1; bits <= 64; bits *= 2)
			for (int extended = 0; extended <= (cluster >= 16384 ? 1 : 0);
			     extended++, n++) {
				/* the two that remain take turns, all four pairs come by */
				struct combo c = { cluster, bits, extended, n & 1, n & 2 };

				if (n % 3 && !test_long())
					continue; /* 147 take a minute */
				rng_seed(1000 + n);
				combo_run(&c, shadow);
				done++;
			}
	print_message("  %u of %u combinations\n", done, n);
	free(shadow);
}

static void a_qcow2_over_a_raw_parent_that_is_shorter_reads_zeroes_past_it(void **state)
{
	struct err e = { 0 };
	struct blk_spec back = {
		.driver = "file", .label = "base", .read_only = true, .cache = BLK_CACHE_WRITEBACK
	};
	uint8_t *shadow = calloc(1, DISK_SIZE);
	struct qcow2_create cr = { .size_bytes = DISK_SIZE,
				   .backing_name = "base",
				   .backing_format = "raw" };
	int fd = disk_fd("base", O_RDWR | O_CREAT | O_TRUNC);

	(void)state;
	if (!have_qemu())
		skip();
	rng_seed(7);
	rng_fill(shadow, 5 * MIB + 700);
	assert_int_equal(pwrite(fd, shadow, 5 * MIB + 700, 0), 5 * MIB + 700);
	close(fd);
	disk_create("over", &cr);
	back.fd = disk_fd("base", O_RDONLY);
	struct blk_spec top = { .driver = "qcow2",
				.label = "over",
				.fd = disk_fd("over", O_RDWR),
				.discard = true,
				.backing = &back };
	struct blockdev *bd = blk_open(&top, &e);

	assert_non_null(bd);
	diff_read_all(bd, shadow, DISK_SIZE);
	for (int i = 0; i < 500; i++)
		diff_step(bd, shadow, i % 3 ? 6 * MIB : DISK_SIZE);
	assert_int_equal(blk_close(bd), 0);
	assert_int_equal(qemu_check("over"), 0);
	assert_int_equal(
	    run("qemu-img convert -f qcow2 -O raw '%s' '%s'", disk_path("over"), disk_path("flat")),
	    0);
	diff_file_equals("flat", shadow, DISK_SIZE);
	free(shadow);
}

static void resize_keeps_content_and_new_space_reads_zero(void **state)
{
	static const uint32_t clusters[] = { 0, 512, 65536 };
	uint64_t max = 40 * MIB;
	uint8_t *shadow = malloc(max);

	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(clusters); k++) {
		uint64_t size = 3 * MIB;
		struct qcow2_create cr = { .size_bytes = size, .cluster_size = clusters[k] };
		struct err e = { 0 };
		struct blockdev *bd;

		rng_seed(50 + k);
		memset(shadow, 0, max);
		disk_create("r", &cr);
		bd = disk_open("r", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
		for (int i = 0; i < 12; i++) {
			uint64_t to = (1 + rng_below(max / 512 - 1)) * 512;

			for (int j = 0; j < 60; j++)
				diff_step(bd, shadow, size);
			if (blk_resize(bd, to, &e) < 0)
				fail_msg("%s", e.detail);
			if (to < size)
				memset(shadow + to, 0, max - to);
			size = to;
			diff_read_all(bd, shadow, size);
		}
		assert_int_equal(blk_close(bd), 0);
		if (have_qemu()) {
			assert_int_equal(qemu_check("r"), 0);
			assert_int_equal(run("qemu-img convert -f qcow2 -O raw '%s' '%s'",
					     disk_path("r"), disk_path("flat")),
					 0);
			diff_file_equals("flat", shadow, size);
		}
	}
	free(shadow);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(our_random_writes_are_read_back_by_qemu),
		cmocka_unit_test(a_chain_of_thirty_reads_as_one),
		cmocka_unit_test(qemu_writes_are_read_back_by_us),
		cmocka_unit_test(every_combination_of_options_agrees_with_qemu),
		cmocka_unit_test(a_qcow2_over_a_raw_parent_that_is_shorter_reads_zeroes_past_it),
		cmocka_unit_test(resize_keeps_content_and_new_space_reads_zero),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
