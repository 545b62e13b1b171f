/* disk_full_test.c - a file system without room: tmpfs, and ext4 on a loop device.
 *
 * A small one is made in a mount namespace of the test's own (root only; without it the tests are
 * skipped). Random writes go on until the file system is full and for long after; what was
 * acknowledged must be there, the image must have no error, and with room again the
 * disk goes on, the same open disk and after opening it anew.
 */
#include "tests/unit/storage/disk_test.h"

#include <sched.h>
#include <sys/mount.h>

#include "storage/job.h"
#include "storage/qcow2.h"

#define SIZE  (24 * MIB)
#define GRAIN 4096u
#define SLOTS (SIZE / GRAIN)

static bool full_mount(const char *type)
{
	if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mkdir(disk_path("fs"), 0700)) {
		print_message("skipped: needs root and a mount namespace\n");
		return false;
	}
	if (strcmp(type, "tmpfs") == 0 &&
	    mount("none", disk_path("fs"), "tmpfs", 0, "size=12m") == 0)
		return true;
	if (strcmp(type, "ext4") == 0 &&
	    run("truncate -s 16M '%s' && mkfs.ext4 -q -m 0 '%s' 2>/dev/null && "
		"mount -o loop '%s' '%s' 2>/dev/null",
		disk_path("ext4"), disk_path("ext4"), disk_path("ext4"), disk_path("fs")) == 0)
		return true;
	print_message("skipped: %s cannot be mounted here\n", type);
	rmdir(disk_path("fs"));
	return false;
}

static void full_unmount(void)
{
	assert_int_equal(umount2(disk_path("fs"), MNT_DETACH), 0);
	assert_int_equal(rmdir(disk_path("fs")), 0);
}

struct full {
	uint32_t seen[SLOTS]; /* the version of each slot that was acknowledged */
	bool unsure[SLOTS];   /* a write failed: old or new */
	uint32_t version;
};

static void slot_make(uint8_t *buf, uint64_t slot, uint32_t version)
{
	for (unsigned i = 0; i < GRAIN; i += 8) {
		uint64_t v = version ? (slot << 32 | version) ^ i * 0x9e3779b97f4a7c15ULL : 0;

		memcpy(buf + i, &v, 8);
	}
}

/* full_write() - @n random writes; the number that failed, each for want of room. */
static unsigned full_write(struct full *f, struct blockdev *bd, unsigned n)
{
	uint8_t buf[GRAIN];
	unsigned failed = 0;

	for (unsigned i = 0; i < n; i++) {
		uint64_t slot = rng_below(SLOTS);
		int r;

		slot_make(buf, slot, ++f->version);
		r = blk_pwrite(bd, buf, GRAIN, slot * GRAIN);
		if (r && r != -ENOSPC)
			fail_msg("a write fails with %s", strerror(-r));
		failed += r != 0;
		f->unsure[slot] = r != 0;
		if (!r)
			f->seen[slot] = f->version;
		if (i % 64 == 63) {
			r = blk_flush(bd);
			if (r && r != -ENOSPC)
				fail_msg("a flush fails with %s", strerror(-r));
		}
	}
	return failed;
}

static void full_verify(const struct full *f, struct blockdev *bd)
{
	uint8_t buf[GRAIN], good[GRAIN];

	for (uint64_t slot = 0; slot < SLOTS; slot++) {
		if (f->unsure[slot])
			continue;
		slot_make(good, slot, f->seen[slot]);
		assert_int_equal(blk_pread(bd, buf, GRAIN, slot * GRAIN), 0);
		if (memcmp(buf, good, GRAIN))
			fail_msg("slot %llu does not hold version %u", (unsigned long long)slot,
				 f->seen[slot]);
	}
}

static void full_sound(const char *name)
{
	struct blk_spec s = { .driver = "qcow2",
			      .label = name,
			      .fd = disk_fd(name, O_RDONLY),
			      .read_only = true,
			      .cache = BLK_CACHE_WRITEBACK };
	struct blkjob_check c;
	struct err e = { 0 };

	if (blkjob_check(&s, BLKJOB_CHECK, &c, &e))
		fail_msg("%s", e.detail);
	if (c.errors)
		fail_msg("%s", c.first);
}

static void full_run(const char *type, const struct qcow2_create *cr, enum blk_cache cache)
{
	struct full *f = calloc(1, sizeof(*f));
	struct blockdev *bd;
	unsigned failed;
	int fd;

	/* a third of the room is another's, who will leave */
	fd = disk_fd("fs/ballast", O_RDWR | O_CREAT | O_TRUNC);
	assert_int_equal(posix_fallocate(fd, 0, 6 * MIB), 0);
	close(fd);
	disk_create("fs/disk", cr);
	bd = disk_open("fs/disk", "qcow2", NULL, false, cache);
	failed = full_write(f, bd, 3000);
	assert_true(failed > 100);
	full_verify(f, bd);
	assert_int_equal(unlink(disk_path("fs/ballast")), 0);
	/* the same open disk goes on: overwriting, and new clusters */
	failed = full_write(f, bd, 64);
	print_message("  %s, %u-byte clusters: %u of 64 fail with room again\n", type,
		      cr->cluster_size, failed);
	assert_int_equal(failed, 0);
	assert_int_equal(blk_flush(bd), 0);
	(void)full_write(f, bd, 3000);
	(void)blk_close(bd);
	full_sound("fs/disk");
	bd = disk_open("fs/disk", "qcow2", NULL, true, cache);
	full_verify(f, bd);
	assert_int_equal(blk_close(bd), 0);
	if (have_qemu())
		assert_true(run("qemu-img check -q -f qcow2 '%s' >/dev/null 2>&1; test $? = 0 -o "
				"$? = 3",
				disk_path("fs/disk")) == 0);
	assert_int_equal(unlink(disk_path("fs/disk")), 0);
	free(f);
}

static void full_all(const char *type, enum blk_cache cache)
{
	static const struct qcow2_create images[] = {
		{ .size_bytes = SIZE, .cluster_size = 131072 },
		{ .size_bytes = SIZE, .cluster_size = 65536, .compat = true },
		{ .size_bytes = SIZE, .cluster_size = 4096, .compat = true, .refcount_bits = 64 },
	};

	if (!full_mount(type))
		skip();
	rng_seed(77);
	for (size_t i = 0; i < ARRAY_SIZE(images); i++)
		full_run(type, &images[i], cache);
	full_unmount();
}

static void a_full_tmpfs_loses_nothing_and_goes_on_with_room(void **state)
{
	(void)state;
	full_all("tmpfs", BLK_CACHE_WRITEBACK);
}

static void a_full_ext4_loses_nothing_and_goes_on_with_room(void **state)
{
	(void)state;
	full_all("ext4", BLK_CACHE_NONE);
}

static void a_convert_that_finds_no_room_says_so(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE };
	static uint8_t buf[MIB];
	struct err e = { 0 };
	struct blockdev *bd;

	(void)state;
	if (!full_mount("tmpfs"))
		skip();
	disk_create("source", &cr);
	bd = disk_open("source", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
	for (uint64_t at = 0; at < SIZE; at += MIB) {
		rng_fill(buf, MIB);
		assert_int_equal(blk_pwrite(bd, buf, MIB, at), 0);
	}
	assert_int_equal(blk_close(bd), 0);
	for (int packed = 0; packed < 2; packed++) {
		struct blk_spec s = { .driver = "qcow2",
				      .label = "source",
				      .fd = disk_fd("source", O_RDONLY),
				      .read_only = true,
				      .cache = BLK_CACHE_WRITEBACK };
		struct blkjob_target t = { .fd = disk_fd("fs/target", O_RDWR | O_CREAT | O_TRUNC),
					   .driver = "qcow2",
					   .compress = packed };

		assert_int_equal(blkjob_convert(NULL, &s, &t, &e), -ENOSPC);
		assert_non_null(strstr(e.detail, "No space left"));
		e = (struct err){ 0 };
	}
	full_unmount();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_full_tmpfs_loses_nothing_and_goes_on_with_room),
		cmocka_unit_test(a_full_ext4_loses_nothing_and_goes_on_with_room),
		cmocka_unit_test(a_convert_that_finds_no_room_says_so),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
