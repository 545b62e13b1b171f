/* compact_test.c - compacting changes the file and never what the disk shows, at any crash. */
#include "tests/unit/storage/disk_test.h"

#include "storage/blk_log.h"
#include "storage/job.h"

#define SIZE (16 * MIB)

static uint8_t *shadow;

static struct blk_spec base_spec(void)
{
	return (struct blk_spec){ .driver = "file",
				  .label = "base",
				  .fd = disk_fd("base", O_RDONLY),
				  .read_only = true,
				  .cache = BLK_CACHE_WRITEBACK };
}

/* wasteful_make() - content, then zeroes over some of it and over some what the parent says. */
static void wasteful_make(uint32_t cluster, bool compat, bool backing)
{
	static const char *const ignore[] = { "backing=ignore", NULL };
	struct qcow2_create c = { .size_bytes = SIZE,
				  .cluster_size = cluster,
				  .compat = compat,
				  .backing_name = backing ? "base" : NULL,
				  .backing_format = backing ? "raw" : NULL };
	struct blk_spec back, s = { .driver = "qcow2", .label = "w", .cache = BLK_CACHE_WRITEBACK };
	uint8_t *base = malloc(SIZE), *buf = malloc(MIB);
	struct err e = { 0 };
	struct blockdev *bd;
	int fd = disk_fd("base", O_RDWR | O_CREAT | O_TRUNC);

	rng_fill(base, SIZE);
	assert_int_equal(pwrite(fd, base, SIZE, 0), SIZE);
	close(fd);
	memset(shadow, 0, SIZE);
	if (backing)
		memcpy(shadow, base, SIZE);
	disk_create("w", &c);
	back = base_spec();
	if (!backing)
		close(back.fd);
	s.backing = backing ? &back : NULL;
	s.opts = backing ? NULL : ignore;
	s.fd = disk_fd("w", O_RDWR);
	bd = blk_open(&s, &e);
	assert_non_null(bd);
	for (unsigned k = 0; k < 60; k++) {
		uint64_t len = 4096 * (1 + rng_below(64)),
			 off = rng_below((SIZE - len) / 4096) * 4096;

		if (k % 3 == 1)
			memset(buf, 0, len);
		else if (k % 3 == 2)
			memcpy(buf, base + off, len);
		else
			rng_fill(buf, len);
		assert_int_equal(blk_pwrite(bd, buf, len, off), 0);
		memcpy(shadow + off, buf, len);
	}
	assert_int_equal(blk_close(bd), 0);
	free(base);
	free(buf);
}

static void shows(const char *name, bool backing)
{
	struct blk_spec back = base_spec();
	struct blockdev *bd;
	uint8_t *got = malloc(MIB);

	if (!backing)
		close(back.fd);
	bd = disk_open(name, "qcow2", backing ? &back : NULL, true, BLK_CACHE_WRITEBACK);
	for (uint64_t off = 0; off < SIZE; off += MIB) {
		assert_int_equal(blk_pread(bd, got, MIB, off), 0);
		assert_memory_equal(got, shadow + off, MIB);
	}
	assert_int_equal(blk_close(bd), 0);
	free(got);
}

static void a_compacted_disk_shows_the_same_and_takes_less(void **state)
{
	static const struct {
		uint32_t cluster;
		bool compat, backing;
	} cases[] = { { 0, false, false },   { 0, false, true },	{ 64 * KIB, true, true },
		      { 4096, true, false }, { 16 * KIB, false, true }, { 2 * MIB, true, false } };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct blk_spec back,
		    s = { .driver = "qcow2", .label = "w", .cache = BLK_CACHE_WRITEBACK };
		struct stat was, is;
		struct err e = { 0 };
		uint64_t freed, again;

		wasteful_make(cases[i].cluster, cases[i].compat, cases[i].backing);
		assert_int_equal(stat(disk_path("w"), &was), 0);
		for (int round = 0; round < 2; round++) {
			back = base_spec();
			if (!cases[i].backing)
				close(back.fd);
			s.backing = cases[i].backing ? &back : NULL;
			s.fd = disk_fd("w", O_RDWR);
			if (blkjob_compact(NULL, &s, round ? &again : &freed, &e) < 0)
				fail_msg("%s", e.detail);
			shows("w", cases[i].backing);
			if (have_qemu())
				assert_int_equal(qemu_check("w"), 0);
		}
		assert_int_equal(stat(disk_path("w"), &is), 0);
		assert_true(is.st_blocks <= was.st_blocks && is.st_size <= was.st_size);
		if (cases[i].cluster != 2 * MIB)
			assert_true(freed > 0 && is.st_blocks < was.st_blocks);
	}
}

static void a_crash_while_compacting_loses_nothing(void **state)
{
	struct blk_log *log = blk_log_new();
	char opt[64];
	const char *opts[] = { opt, NULL };
	static const char *const qopts[] = { "prealloc=off", NULL };
	struct blk_spec back,
	    file = { .driver = "file", .label = "f", .cache = BLK_CACHE_WRITEBACK };
	struct blk_spec lspec = {
		.driver = "log", .label = "l", .fd = -1, .child = &file, .opts = opts
	};
	struct blk_spec s = { .driver = "qcow2",
			      .label = "w",
			      .fd = -1,
			      .child = &lspec,
			      .backing = &back,
			      .opts = qopts,
			      .cache = BLK_CACHE_WRITEBACK };
	struct err e = { 0 };
	uint64_t freed;
	unsigned states = 0;

	(void)state;
	wasteful_make(16 * KIB, true, true);
	assert_int_equal(run("cp '%s' '%s'", disk_path("w"), disk_path("start")), 0);
	snprintf(opt, sizeof(opt), "log=%p", (void *)log);
	back = base_spec();
	file.fd = disk_fd("w", O_RDWR);
	if (blkjob_compact(NULL, &s, &freed, &e) < 0)
		fail_msg("%s", e.detail);
	assert_true(log->n > 20 && !log->failed);
	/* a crash after each record, and with a random half of what was not synced */
	for (size_t cut = 0; cut <= log->n; cut += 1 + log->n / 60) {
		size_t synced = 0;
		int fd, rc;

		for (size_t i = 0; i < cut; i++)
			if (log->rec[i].kind == BLK_LOG_SYNC)
				synced = log->rec[i].off;
		assert_int_equal(run("cp '%s' '%s'", disk_path("start"), disk_path("cut")), 0);
		fd = disk_fd("cut", O_RDWR);
		for (size_t i = 0; i < cut; i++) {
			const struct blk_log_rec *rec = &log->rec[i];

			if (i >= synced && states % 2 && rng_below(2))
				continue;
			if (rec->kind == BLK_LOG_WRITE)
				assert_int_equal(pwrite(fd, rec->data, rec->len, rec->off),
						 (ssize_t)rec->len);
			else if (rec->kind == BLK_LOG_TRUNCATE)
				assert_int_equal(ftruncate(fd, rec->off), 0);
			else if (rec->kind == BLK_LOG_ZERO)
				assert_int_equal(fallocate(fd, 3, rec->off, rec->len), 0);
		}
		close(fd);
		shows("cut", true);
		if (have_qemu() && states % 4 == 0) {
			rc = run("qemu-img check -q -f qcow2 '%s' >/dev/null 2>&1",
				 disk_path("cut"));
			assert_true(rc == 0 || rc == 3); /* leaks are allowed */
		}
		states++;
	}
	assert_true(states >= 40);
	blk_log_free(log);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_compacted_disk_shows_the_same_and_takes_less),
		cmocka_unit_test(a_crash_while_compacting_loses_nothing),
	};
	int r;

	shadow = malloc(SIZE);
	r = shadow ? cmocka_run_group_tests(tests, disk_setup, disk_teardown) : 1;
	free(shadow);
	return r;
}
