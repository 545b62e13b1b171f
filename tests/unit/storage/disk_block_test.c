/* disk_block_test.c - devices with blocks of 4096 bytes, and a kernel that transfers less than asked.
 *
 * A loop device with 4096-byte blocks (root only; without it those tests are skipped) is used as a
 * disk, and as what an ext4 with qcow2 files lies on; O_DIRECT then refuses what the guest may do
 * with its sectors of 512 bytes. Short transfers and EINTR come from this program's own preadv() and
 * pwritev(), which the storage library is linked to here.
 */
#include "tests/unit/storage/disk_test.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define SIZE	(4 * MIB)
#define SECTOR	512u
#define WRITERS 4u

/* --- a kernel that does less than it is asked ----------------------------------------------------
 */

static bool meddle;
static unsigned shortened, interrupted;

static ssize_t meddled(long nr, int fd, const struct iovec *iov, int n, off_t off)
{
	struct iovec v = *iov;

	if (!meddle)
		return syscall(nr, fd, iov, n, off, 0);
	if (rng_below(4) == 0) {
		interrupted++;
		errno = EINTR;
		return -1;
	}
	/* whole sectors, as O_DIRECT would, and of the first piece only */
	if (v.iov_len > SECTOR && rng_below(2)) {
		v.iov_len = SECTOR * (1 + rng_below((v.iov_len - 1) / SECTOR));
		shortened++;
	}
	return syscall(nr, fd, &v, 1, off, 0);
}

ssize_t preadv(int fd, const struct iovec *iov, int n, off_t off);
ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t off);

ssize_t preadv(int fd, const struct iovec *iov, int n, off_t off)
{
	return meddled(SYS_preadv, fd, iov, n, off);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
	return meddled(SYS_pwritev, fd, iov, n, off);
}

/* --- random requests against a shadow ------------------------------------------------------------
 */

static void requests(struct blockdev *bd, uint8_t *shadow, unsigned grain, unsigned n)
{
	uint8_t *buf = malloc(64 * KIB + SECTOR);

	assert_non_null(buf);
	for (unsigned i = 0; i < n; i++) {
		uint64_t len = grain * (1 + rng_below(16)), off = rng_below(SIZE / grain) * grain;
		/* a buffer that O_DIRECT would not take either */
		uint8_t *p = buf + rng_below(2) * 8;

		len = MIN(len, SIZE - off);
		if (rng_below(2)) {
			rng_fill(p, len);
			memcpy(shadow + off, p, len);
			assert_int_equal(blk_pwrite(bd, p, len, off), 0);
		} else {
			assert_int_equal(blk_pread(bd, p, len, off), 0);
			assert_memory_equal(p, shadow + off, len);
		}
	}
	free(buf);
}

static void same(struct blockdev *bd, const uint8_t *shadow)
{
	uint8_t *got = malloc(SIZE);

	assert_non_null(got);
	assert_int_equal(blk_pread(bd, got, SIZE, 0), 0);
	assert_memory_equal(got, shadow, SIZE);
	free(got);
}

static void short_and_interrupted_transfers_are_completed(void **state)
{
	static const struct {
		const char *driver;
		enum blk_cache cache;
	} kinds[] = {
		{ "file", BLK_CACHE_WRITEBACK },
		{ "file", BLK_CACHE_NONE },
		{ "qcow2", BLK_CACHE_WRITEBACK },
		{ "qcow2", BLK_CACHE_NONE },
	};
	struct qcow2_create c = { .size_bytes = SIZE, .cluster_size = 32 * KIB };

	(void)state;
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		uint8_t *shadow = calloc(1, SIZE);
		struct blockdev *bd;

		assert_non_null(shadow);
		rng_seed(k + 1);
		if (strcmp(kinds[k].driver, "file") == 0)
			assert_int_equal(run("truncate -s 0 '%s' && truncate -s %llu '%s'",
					     disk_path("s"), SIZE, disk_path("s")),
					 0);
		else
			disk_create("s", &c);
		shortened = interrupted = 0;
		meddle = true;
		bd = disk_open("s", kinds[k].driver, NULL, false, kinds[k].cache);
		requests(bd, shadow, SECTOR, 1500);
		same(bd, shadow);
		assert_int_equal(blk_close(bd), 0);
		meddle = false;
		assert_true(shortened > 100 && interrupted > 100);
		bd = disk_open("s", kinds[k].driver, NULL, true, kinds[k].cache);
		same(bd, shadow);
		assert_int_equal(blk_close(bd), 0);
		if (strcmp(kinds[k].driver, "qcow2") == 0 && have_qemu())
			assert_int_equal(qemu_check("s"), 0);
		free(shadow);
	}
}

/* --- blocks of 4096 ------------------------------------------------------------------------------
 */

static bool loop_make(char *dev, size_t cap)
{
	char cmd[400];
	FILE *f;

	dev[0] = '\0';
	if (geteuid() != 0)
		goto none;
	assert_int_equal(run("truncate -s 32M '%s'", disk_path("dev")), 0);
	snprintf(cmd, sizeof(cmd), "losetup -b 4096 -f --show '%s' 2>/dev/null", disk_path("dev"));
	f = popen(cmd, "r");
	assert_non_null(f);
	if (!fgets(dev, cap, f))
		dev[0] = '\0';
	pclose(f);
	dev[strcspn(dev, "\n")] = '\0';
	if (dev[0])
		return true;
none:
	print_message("skipped: needs root and loop devices with blocks of 4096 bytes\n");
	return false;
}

/* loop_gone() - with its last user, also where that is this test failing. */
static void loop_gone(const char *dev)
{
	assert_int_equal(run("losetup -d '%s'", dev), 0);
}

static void a_device_of_4096_byte_blocks_is_a_disk_of_such_blocks(void **state)
{
	struct blk_spec s = { .driver = "file", .label = "dev", .cache = BLK_CACHE_NONE };
	uint8_t *shadow = calloc(1, SIZE);
	struct err e = { 0 };
	struct blk_info info;
	struct blockdev *bd;
	char dev[64];

	(void)state;
	assert_non_null(shadow);
	if (!loop_make(dev, sizeof(dev)))
		goto out;
	s.fd = open(dev, O_RDWR | O_CLOEXEC);
	loop_gone(dev);
	assert_true(s.fd >= 0);
	bd = blk_open(&s, &e);
	if (!bd)
		fail_msg("%s", e.detail);
	blk_info(bd, &info);
	assert_int_equal(info.block_size, 4096);
	/* less than a block is refused, and touches nothing */
	assert_int_equal(blk_pwrite(bd, "x", SECTOR, SECTOR), -EINVAL);
	requests(bd, shadow, 4096, 300);
	same(bd, shadow);
	assert_int_equal(blk_close(bd), 0);
out:
	free(shadow);
}

struct writer {
	struct blockdev *bd;
	uint8_t *shadow;
	unsigned no;
};

/* each writes sectors of its own, which lie between those of the others in the same blocks */
static void *writer_run(void *arg)
{
	struct writer *w = arg;
	uint8_t buf[SECTOR];

	for (unsigned i = 0; i < 400; i++) {
		uint64_t sector = (i * 7919ULL % (SIZE / SECTOR / WRITERS)) * WRITERS + w->no;

		memset(buf, (int)(1 + i % 200 + w->no), sizeof(buf));
		if (blk_pwrite(w->bd, buf, SECTOR, sector * SECTOR))
			return w;
		memcpy(w->shadow + sector * SECTOR, buf, SECTOR);
	}
	return NULL;
}

static void writers(struct blockdev *bd, uint8_t *shadow)
{
	struct writer w[WRITERS];
	pthread_t t[WRITERS];
	void *failed;

	for (unsigned i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){ bd, shadow, i };
		assert_int_equal(pthread_create(&t[i], NULL, writer_run, &w[i]), 0);
	}
	for (unsigned i = 0; i < WRITERS; i++) {
		assert_int_equal(pthread_join(t[i], &failed), 0);
		assert_null(failed);
	}
}

static void sectors_are_written_where_the_host_has_only_blocks(void **state)
{
	static const struct {
		const char *driver;
		struct qcow2_create c;
	} kinds[] = {
		{ "file", { .size_bytes = SIZE } },
		{ "qcow2", { .size_bytes = SIZE } },
		{ "qcow2", { .size_bytes = SIZE, .cluster_size = 512, .compat = true } },
		{ "qcow2", { .size_bytes = SIZE, .cluster_size = 64 * KIB, .compat = true } },
	};
	uint8_t *shadow = malloc(SIZE);
	char dev[64];

	(void)state;
	assert_non_null(shadow);
	if (!loop_make(dev, sizeof(dev)))
		goto out;
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mkdir(disk_path("fs"), 0700) < 0 ||
	    run("mkfs.ext4 -q -b 4096 '%s' 2>/dev/null && mount '%s' '%s' 2>/dev/null", dev, dev,
		disk_path("fs"))) {
		print_message("skipped: no ext4 can be mounted here\n");
		loop_gone(dev);
		goto out;
	}
	loop_gone(dev);
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct blockdev *bd;

		memset(shadow, 0, SIZE);
		rng_seed(k + 7);
		if (strcmp(kinds[k].driver, "qcow2") == 0)
			disk_create("fs/d", &kinds[k].c);
		else
			assert_int_equal(run("truncate -s %llu '%s'", SIZE, disk_path("fs/d")), 0);
		bd = disk_open("fs/d", kinds[k].driver, NULL, false, BLK_CACHE_NONE);
		requests(bd, shadow, SECTOR, 600);
		writers(bd, shadow);
		same(bd, shadow);
		assert_int_equal(blk_close(bd), 0);
		bd = disk_open("fs/d", kinds[k].driver, NULL, true, BLK_CACHE_NONE);
		same(bd, shadow);
		assert_int_equal(blk_close(bd), 0);
		if (strcmp(kinds[k].driver, "qcow2") == 0 && have_qemu())
			assert_int_equal(qemu_check("fs/d"), 0);
		assert_int_equal(unlink(disk_path("fs/d")), 0);
	}
	assert_int_equal(umount(disk_path("fs")), 0);
out:
	free(shadow);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(short_and_interrupted_transfers_are_completed),
		cmocka_unit_test(a_device_of_4096_byte_blocks_is_a_disk_of_such_blocks),
		cmocka_unit_test(sectors_are_written_where_the_host_has_only_blocks),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
