/* disk_fault_test.c - what fails, fails whole: every nth I/O, full disks, failed syncs, locks.
 *
 * After each injected failure the image must have no error (leaks are allowed), the failed request
 * must have been reported, and all that was flushed with success must be there.
 */
#include "tests/unit/storage/disk_test.h"

#include <sys/mman.h>

#include "storage/qcow2.h"

#define SIZE (512 * KIB)

struct faulty {
	char nth[32], on[64], error[32], sticky[16];
	const char *opts[5];
	struct blk_spec file, fail, top;
};

static struct blockdev *faulty_open(struct faulty *f, int memfd, unsigned nth, const char *on,
				    int error, bool sticky)
{
	static const char *const q_opts[] = { "prealloc=on", NULL };
	struct err e = { 0 };

	snprintf(f->nth, sizeof(f->nth), "nth=%u", nth);
	snprintf(f->on, sizeof(f->on), "on=%s", on);
	snprintf(f->error, sizeof(f->error), "errno=%d", error);
	snprintf(f->sticky, sizeof(f->sticky), "sticky=%d", sticky);
	f->opts[0] = f->nth;
	f->opts[1] = f->on;
	f->opts[2] = f->error;
	f->opts[3] = f->sticky;
	f->opts[4] = NULL;
	f->file = (struct blk_spec){ .driver = "file",
				     .label = "f",
				     .fd = dup(memfd),
				     .discard = true,
				     .cache = BLK_CACHE_WRITEBACK };
	f->fail = (struct blk_spec){ .driver = "fail",
				     .label = "f",
				     .fd = -1,
				     .discard = true,
				     .child = &f->file,
				     .opts = f->opts };
	f->top = (struct blk_spec){ .driver = "qcow2",
				    .label = "q",
				    .fd = -1,
				    .discard = true,
				    .child = &f->fail,
				    .opts = q_opts };
	struct blockdev *bd = blk_open(&f->top, &e);

	if (!bd) {
		assert_true(err_is_set(&e));
		assert_true(e.detail[0]);
		close(f->file.fd);
	}
	return bd;
}

/* one run of the same operations; returns the number of requests that failed */
static unsigned faulty_run(struct blockdev *bd, uint8_t *flushed, uint8_t *maybe, bool *unknown)
{
	static uint8_t buf[32 * KIB];
	unsigned failed = 0;
	bool dirty_unknown[SIZE / 512] = { false };

	for (int i = 0; i < 60; i++) {
		uint64_t off = rng_below(SIZE / 512 - 64) * 512, len = (1 + rng_below(40)) * 512;
		unsigned what = rng_below(10);
		int r;

		rng_fill(buf, len);
		if (what < 6) {
			r = blk_pwrite(bd, buf, len, off);
		} else if (what < 8) {
			memset(buf, 0, len);
			r = blk_zero(bd, off, len, true);
		} else {
			r = blk_flush(bd);
			if (r) {
				failed++;
				continue;
			}
			memcpy(flushed, maybe, SIZE);
			memcpy(unknown, dirty_unknown, sizeof(dirty_unknown));
			continue;
		}
		if (r) {
			failed++;
			/* whichever of it got there: either content may be found, now and later */
			for (uint64_t s = off / 512; s < (off + len) / 512; s++)
				dirty_unknown[s] = true;
		} else {
			memcpy(maybe + off, buf, len);
			for (uint64_t s = off / 512; s < (off + len) / 512; s++)
				dirty_unknown[s] = false;
		}
		/* after its flush each sector that was written since may be new */
		for (uint64_t s = off / 512; s < (off + len) / 512; s++)
			unknown[s] = true;
	}
	return failed;
}

static void nth_failure(const char *on, int error, bool sticky, const struct qcow2_create *cr)
{
	uint8_t *flushed = malloc(SIZE), *maybe = malloc(SIZE), *got = malloc(SIZE);
	bool unknown[SIZE / 512];
	unsigned hits = 0;

	for (unsigned nth = 1; nth<4000; nth += nth> 60 && !test_long() ? 7 : 1) {
		int fd = memfd_create("nth", MFD_CLOEXEC);
		struct err e = { 0 };
		struct faulty f = { 0 };
		struct q2_check c;
		unsigned failed;
		int close_result;

		assert_int_equal(qcow2_create(fd, cr, &e), 0);
		memset(flushed, 0, SIZE);
		memset(maybe, 0, SIZE);
		memset(unknown, 0, sizeof(unknown));
		rng_seed(5);
		struct blockdev *bd = faulty_open(&f, fd, nth, on, error, sticky);

		if (!bd) {
			close(fd);
			continue;
		}
		failed = faulty_run(bd, flushed, maybe, unknown);
		close_result = blk_close(bd);
		struct blk_spec s = { .driver = "qcow2",
				      .label = "after",
				      .fd = dup(fd),
				      .read_only = true,
				      .cache = BLK_CACHE_WRITEBACK };

		bd = blk_open(&s, &e);
		if (!bd)
			fail_msg("nth=%u on=%s: %s", nth, on, e.detail);
		assert_int_equal(q2_check_run(bd->drv, Q2_REPAIR_NONE, &c, &e), 0);
		if (c.errors)
			fail_msg("nth=%u on=%s errno=%d sticky=%d: %s", nth, on, error, sticky,
				 c.first);
		assert_int_equal(blk_pread(bd, got, SIZE, 0), 0);
		for (unsigned i = 0; i < SIZE / 512; i++)
			if (!unknown[i] && memcmp(got + i * 512, flushed + i * 512, 512))
				fail_msg("nth=%u on=%s: flushed sector %u is lost", nth, on, i);
		assert_int_equal(blk_close(bd), 0);
		close(fd);
		if (!failed && !close_result)
			break; /* past the last request: all of them have failed once */
		hits++;
	}
	/* a hole that cannot be punched is no failure; everything else must have been hit */
	assert_true(hits > 2 || strcmp(on, "zero") == 0);
	print_message("  %s errno=%d%s: %u points\n", on, error, sticky ? " sticky" : "", hits);
	free(flushed);
	free(maybe);
	free(got);
}

static const struct qcow2_create fault_images[] = {
	{ .size_bytes = SIZE, .cluster_size = 16384 },
	{ .size_bytes = SIZE, .cluster_size = 512, .compat = true, .refcount_bits = 64 },
};

static void any_failed_io_leaves_a_sound_image(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(fault_images); i++) {
		nth_failure("read", EIO, false, &fault_images[i]);
		nth_failure("write", EIO, false, &fault_images[i]);
		nth_failure("write", ENOSPC, true, &fault_images[i]);
		nth_failure("zero", EIO, false, &fault_images[i]);
		nth_failure("flush", EIO, true, &fault_images[i]);
		nth_failure("allocate", ENOSPC, false, &fault_images[i]);
	}
}

static void a_full_disk_fails_writes_and_recovers_when_there_is_room(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE, .cluster_size = 16384 };
	int fd = memfd_create("full", MFD_CLOEXEC);
	uint8_t buf[4096], got[4096];
	struct err e = { 0 };
	struct faulty f = { 0 };

	(void)state;
	assert_int_equal(qcow2_create(fd, &cr, &e), 0);
	struct blockdev *bd = faulty_open(&f, fd, 3, "allocate,write", ENOSPC, false);

	assert_non_null(bd);
	unsigned nospace = 0;

	for (int i = 0; i < 64; i++) {
		int r;

		memset(buf, i + 1, sizeof(buf));
		r = blk_pwrite(bd, buf, sizeof(buf), i * 8192ULL);
		if (r) {
			assert_int_equal(r, -ENOSPC);
			nospace++;
			assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), i * 8192ULL), 0);
		}
	}
	assert_true(nospace > 0);
	assert_int_equal(blk_flush(bd), 0);
	for (int i = 0; i < 64; i++) {
		memset(buf, i + 1, sizeof(buf));
		assert_int_equal(blk_pread(bd, got, sizeof(got), i * 8192ULL), 0);
		assert_memory_equal(got, buf, sizeof(buf));
	}
	assert_int_equal(blk_close(bd), 0);
	close(fd);
}

static void a_failed_sync_stays_failed(void **state)
{
	/* a file whose fdatasync fails once would, asked again, lie: /dev/full has no sync error,
	 * so the failing filter under the qcow2 stands for the device, and the driver must latch by
	 * itself */
	struct qcow2_create cr = { .size_bytes = SIZE };
	int fd = memfd_create("sync", MFD_CLOEXEC);
	uint8_t buf[4096] = { 1 };
	struct err e = { 0 };
	struct faulty f = { 0 };

	(void)state;
	assert_int_equal(qcow2_create(fd, &cr, &e), 0);
	struct blockdev *bd = faulty_open(&f, fd, 1, "flush", EIO, false);

	assert_non_null(bd);
	assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), 0), 0);
	assert_int_equal(blk_flush(bd), -EIO);
	assert_int_equal(blk_flush(bd), -EIO);
	assert_int_equal(blk_flush(bd), -EIO);
	assert_int_equal(blk_close(bd), -EIO);
	close(fd);
}

static void out_of_range_and_misaligned_requests_touch_nothing(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE };
	uint8_t buf[1024] = { 1 }, got[512];

	(void)state;
	disk_create("range", &cr);
	struct blockdev *bd = disk_open("range", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);

	assert_int_equal(blk_pwrite(bd, buf, 512, SIZE), -EINVAL);
	assert_int_equal(blk_pwrite(bd, buf, 1024, SIZE - 512), -EINVAL);
	assert_int_equal(blk_pwrite(bd, buf, 512, UINT64_MAX - 511), -EINVAL);
	assert_int_equal(blk_pwrite(bd, buf, 512, 100), -EINVAL);
	assert_int_equal(blk_pwrite(bd, buf, 100, 0), -EINVAL);
	assert_int_equal(blk_zero(bd, 512, UINT64_MAX - 511, false), -EINVAL);
	assert_int_equal(blk_discard(bd, SIZE - 512, 1024), -EINVAL);
	assert_int_equal(blk_pread(bd, got, 512, SIZE - 512), 0);
	assert_true(got[0] == 0);
	assert_int_equal(blk_close(bd), 0);
	bd = disk_open("range", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
	assert_int_equal(blk_pwrite(bd, buf, 512, 0), -EROFS);
	assert_int_equal(blk_zero(bd, 0, 512, true), -EROFS);
	assert_int_equal(blk_discard(bd, 0, 512), -EROFS);
	assert_int_equal(blk_close(bd), 0);
}

static void a_disk_is_not_opened_twice_for_writing(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE };
	struct err e = { 0 };

	(void)state;
	disk_create("lock", &cr);
	struct blockdev *bd = disk_open("lock", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
	struct blk_spec again = { .driver = "qcow2",
				  .label = "again",
				  .fd = disk_fd("lock", O_RDWR) };

	assert_null(blk_open(&again, &e));
	assert_int_equal(e.num, EBUSY);
	again.read_only = true;
	assert_null(blk_open(&again, &e));
	assert_int_equal(e.num, EBUSY);
	if (have_qemu()) {
		assert_int_not_equal(
		    run("qemu-img check -f qcow2 '%s' >/dev/null 2>&1", disk_path("lock")), 0);
		assert_int_not_equal(
		    run("qemu-io -f qcow2 -c 'write 0 4k' '%s' >/dev/null 2>&1", disk_path("lock")),
		    0);
	}
	assert_int_equal(blk_close(bd), 0);
	close(again.fd);
	/* two readers are welcome, here and in QEMU */
	bd = disk_open("lock", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
	struct blockdev *bd2 = disk_open("lock", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);

	if (have_qemu()) {
		assert_int_equal(
		    run("qemu-img info -f qcow2 '%s' >/dev/null 2>&1", disk_path("lock")), 0);
		assert_int_not_equal(
		    run("qemu-io -f qcow2 -c 'write 0 4k' '%s' >/dev/null 2>&1", disk_path("lock")),
		    0);
	}
	assert_int_equal(blk_close(bd), 0);
	assert_int_equal(blk_close(bd2), 0);
}

static void a_disk_held_by_qemu_is_refused(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE };
	struct err e = { 0 };
	int in[2], out[2], n;
	char c;

	(void)state;
	if (!have_qemu())
		skip();
	disk_create("held", &cr);
	assert_int_equal(pipe(in) | pipe(out), 0);
	pid_t pid = fork();

	if (!pid) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		close(in[1]);
		execlp("qemu-io", "qemu-io", "-f", "qcow2", disk_path("held"), (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	/* it answers once it holds the disk */
	assert_int_equal(write(in[1], "length\n", 7), 7);
	assert_int_equal(read(out[0], &c, 1), 1);
	struct blk_spec s = { .driver = "qcow2", .label = "held", .fd = disk_fd("held", O_RDWR) };

	/* the prompt precedes the open only in a pty; read on until the length is there */
	do
		n = read(out[0], &c, 1);
	while (n == 1 && c != 'i');
	assert_null(blk_open(&s, &e));
	assert_int_equal(e.num, EBUSY);
	assert_int_equal(write(in[1], "quit\n", 5), 5);
	close(in[1]);
	assert_int_equal(waitpid(pid, &n, 0), pid);
	struct blockdev *bd = blk_open(&s, &e);

	assert_non_null(bd);
	assert_int_equal(blk_close(bd), 0);
	close(out[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_failed_io_leaves_a_sound_image),
		cmocka_unit_test(a_full_disk_fails_writes_and_recovers_when_there_is_room),
		cmocka_unit_test(a_failed_sync_stays_failed),
		cmocka_unit_test(out_of_range_and_misaligned_requests_touch_nothing),
		cmocka_unit_test(a_disk_is_not_opened_twice_for_writing),
		cmocka_unit_test(a_disk_held_by_qemu_is_refused),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
