/* qcow2_bitmap_test.c - dirty bitmaps are kept and stored, and QEMU understands them; a crash loses
 * trust.
 *
 * The oracle is qemu-img: what it adds we keep up to date, what we add it checks, lists and merges.
 * A flat shadow of dirty granules says what each bitmap must hold.
 */
#include "tests/unit/storage/disk_test.h"

#include "storage/bitmap.h"
#include "storage/blk_log.h"
#include "storage/qcow2_tools.h"

#define SIZE (16 * MIB)

static struct blockdev *image(const char *name, bool ro)
{
	return disk_open(name, "qcow2", NULL, ro, BLK_CACHE_WRITEBACK);
}

static void make(const char *name, uint32_t cluster, bool compat)
{
	struct qcow2_create c = { .size_bytes = SIZE, .cluster_size = cluster, .compat = compat };

	disk_create(name, &c);
}

static void expect(struct blockdev *bd, const char *name, const uint8_t *shadow, uint64_t gran)
{
	struct err e = { 0 };
	uint64_t n, g;
	uint8_t *bits;

	if (qcow2_bitmap_read(bd, name, &bits, &n, &g, &e) < 0)
		fail_msg("%s: %s", name, e.detail);
	assert_int_equal(g, gran);
	assert_int_equal(n, SIZE / gran);
	for (uint64_t i = 0; i < n; i++)
		if ((bits[i / 8] >> (i % 8) & 1) != shadow[i])
			fail_msg("bitmap %s: granule %llu is %d", name, (unsigned long long)i,
				 !shadow[i]);
	free(bits);
	/* the same by runs */
	for (uint64_t off = 0; off < SIZE;) {
		uint64_t len;
		bool dirty;

		assert_int_equal(blk_bitmap_next(bd, name, off, &len, &dirty), 0);
		for (uint64_t i = off / gran; i < (off + len) / gran; i++)
			assert_int_equal(shadow[i], dirty);
		off += len;
	}
}

static void touch(struct blockdev *bd, uint8_t *shadow, uint64_t gran)
{
	uint8_t buf[96 * KIB];
	uint64_t len = 512 * (1 + rng_below(192)), off = rng_below((SIZE - len) / 512) * 512;

	rng_fill(buf, len);
	switch (rng_below(4)) {
	case 0:
		assert_int_equal(blk_zero(bd, off, len, rng_below(2)), 0);
		break;
	case 1:
		assert_int_equal(blk_discard(bd, off, len), 0);
		break;
	default:
		assert_int_equal(blk_pwrite(bd, buf, len, off), 0);
	}
	if (!shadow)
		return;
	for (uint64_t i = off / gran; i <= (off + len - 1) / gran; i++)
		shadow[i] = 1;
}

static void what_is_written_is_marked_and_survives_closing(void **state)
{
	static const struct {
		uint32_t cluster;
		bool compat;
		uint64_t gran;
	} cases[] = { { 0, false, 64 * KIB },
		      { 64 * KIB, true, 4 * KIB },
		      { 512, true, 512 },
		      { 2 * MIB, false, 1 * MIB },
		      { 16 * KIB, false, 32 * KIB } };
	static uint8_t shadow[SIZE / 512], frozen[SIZE / 512];

	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(cases); k++) {
		struct err e = { 0 };
		struct blockdev *bd;

		memset(shadow, 0, sizeof(shadow));
		make("keep", cases[k].cluster, cases[k].compat);
		bd = image("keep", false);
		touch(bd, NULL, 0);
		assert_int_equal(blk_bitmap_create(bd, "daily", cases[k].gran, true, &e), 0);
		assert_int_equal(blk_bitmap_create(bd, "daily", cases[k].gran, true, &e), -EEXIST);
		e = (struct err){ 0 };
		assert_int_equal(blk_bitmap_create(bd, "frozen", cases[k].gran, false, &e), 0);
		for (unsigned round = 0; round < 4; round++) {
			for (unsigned i = 0; i < 30; i++)
				touch(bd, shadow, cases[k].gran);
			expect(bd, "daily", shadow, cases[k].gran);
			expect(bd, "frozen", frozen, cases[k].gran);
			assert_int_equal(blk_close(bd), 0);
			if (have_qemu())
				assert_int_equal(qemu_check("keep"), 0);
			bd = image("keep", true);
			expect(bd, "daily", shadow, cases[k].gran);
			assert_int_equal(blk_close(bd), 0);
			bd = image("keep", false);
		}
		assert_int_equal(blk_bitmap_remove(bd, "daily", &e), 0);
		assert_int_equal(blk_close(bd), 0);
		if (have_qemu())
			assert_int_equal(qemu_check("keep"), 0);
		bd = image("keep", false);
		assert_int_equal(blk_bitmap_remove(bd, "daily", &e), -ENOENT);
		assert_int_equal(blk_bitmap_remove(bd, "frozen", &e), 0);
		assert_int_equal(blk_close(bd), 0);
		if (have_qemu())
			assert_int_equal(qemu_check("keep"), 0);
	}
}

static void qemu_and_we_keep_each_others_bitmaps(void **state)
{
	static uint8_t shadow[SIZE / (64 * KIB)];
	struct err e = { 0 };
	struct blockdev *bd;

	(void)state;
	if (!have_qemu())
		skip();
	assert_int_equal(run("qemu-img create -q -f qcow2 -o extended_l2=on '%s' 16M && "
			     "qemu-img bitmap --add '%s' b0 && "
			     "qemu-io -c 'write 128k 64k' -c 'write 9M 1k' '%s' >/dev/null",
			     disk_path("both"), disk_path("both"), disk_path("both")),
			 0);
	shadow[2] = shadow[144] = 1;
	bd = image("both", false);
	for (unsigned i = 0; i < 20; i++)
		touch(bd, shadow, 64 * KIB);
	assert_int_equal(blk_bitmap_create(bd, "ours", 0, true, &e), 0);
	assert_int_equal(blk_close(bd), 0);
	assert_int_equal(qemu_check("both"), 0);
	assert_int_equal(run("qemu-img info '%s' | tr -d '\\n ' | "
			     "grep -q 'flags:\\[0\\]:autoname:b0granularity:65536.*\\[1\\]:"
			     "flags:\\[0\\]:autoname:oursgranularity:65536'",
			     disk_path("both")),
			 0);
	/* QEMU writes, merges, removes */
	assert_int_equal(
	    run("qemu-io -c 'write 15M 64k' '%s' >/dev/null && "
		"qemu-img bitmap --merge b0 '%s' ours && "
		"qemu-img bitmap --disable '%s' ours && qemu-img bitmap --remove '%s' b0",
		disk_path("both"), disk_path("both"), disk_path("both"), disk_path("both")),
	    0);
	shadow[240] = 1;
	bd = image("both", false);
	expect(bd, "ours", shadow, 64 * KIB);
	touch(bd, NULL, 0); /* disabled: it stands still */
	expect(bd, "ours", shadow, 64 * KIB);
	assert_int_equal(blk_close(bd), 0);
	assert_int_equal(qemu_check("both"), 0);
	/* what we wrote is what QEMU's server tells its clients */
	if (run("command -v qemu-nbd nbdinfo >/dev/null"))
		return;
	char map[4096] = "", want[4096] = "";
	size_t n = 0;
	FILE *f;

	for (unsigned i = 0, k; i < ARRAY_SIZE(shadow); i = k) {
		for (k = i + 1; k < ARRAY_SIZE(shadow) && shadow[k] == shadow[i]; k++)
			;
		n += snprintf(want + n, sizeof(want) - n, "%u %u %d\n", i * 65536, (k - i) * 65536,
			      shadow[i]);
	}
	assert_int_equal(run("nbdinfo --map=qemu:dirty-bitmap:ours -- [ qemu-nbd -r -f qcow2 "
			     "-B ours '%s' ] | awk '{print $1, $2, $3}' >'%s/map'",
			     disk_path("both"), disk_dir),
			 0);
	f = fopen(disk_path("map"), "r");
	assert_non_null(f);
	n = fread(map, 1, sizeof(map) - 1, f);
	fclose(f);
	assert_true(n > 0);
	assert_string_equal(map, want);
}

static void taking_empties_and_giving_back_restores(void **state)
{
	static uint8_t shadow[SIZE / (64 * KIB)];
	static const uint8_t none[SIZE / (64 * KIB)];
	struct blk_bits bits;
	struct err e = { 0 };
	struct blockdev *bd;

	(void)state;
	make("take", 0, false);
	bd = image("take", false);
	assert_int_equal(blk_bitmap_create(bd, "b", 0, true, &e), 0);
	for (unsigned i = 0; i < 5; i++)
		touch(bd, shadow, 64 * KIB);
	assert_int_equal(blk_bitmap_take(bd, "b", &bits, &e), 0);
	expect(bd, "b", none, 64 * KIB);
	for (unsigned i = 0; i < ARRAY_SIZE(shadow); i++)
		assert_int_equal(blk_bits_any(&bits, i * 64 * KIB, 64 * KIB), shadow[i]);
	for (unsigned i = 0; i < 5; i++)
		touch(bd, shadow, 64 * KIB);
	assert_int_equal(blk_bitmap_give_back(bd, "b", &bits, &e), 0);
	expect(bd, "b", shadow, 64 * KIB);
	blk_bits_fini(&bits);
	assert_int_equal(blk_bitmap_create(bd, "fine", 4096, false, &e), 0);
	assert_int_equal(blk_bitmap_merge(bd, "fine", "b", &e), 0);
	assert_int_equal(blk_bitmap_clear(bd, "b", &e), 0);
	assert_int_equal(blk_bitmap_merge(bd, "b", "fine", &e), 0);
	expect(bd, "b", shadow, 64 * KIB);
	assert_int_equal(blk_bitmap_enable(bd, "b", false, &e), 0);
	touch(bd, NULL, 0);
	expect(bd, "b", shadow, 64 * KIB);
	assert_int_equal(blk_close(bd), 0);
	if (have_qemu())
		assert_int_equal(qemu_check("take"), 0);
}

static void a_bitmap_follows_the_disk_size(void **state)
{
	struct err e = { 0 };
	uint64_t n, gran;
	uint8_t *bits, buf[512] = { 1 };
	struct blockdev *bd;

	(void)state;
	make("grow", 64 * KIB, true);
	bd = image("grow", false);
	assert_int_equal(blk_bitmap_create(bd, "b", 0, true, &e), 0);
	assert_int_equal(blk_pwrite(bd, buf, 512, SIZE - 512), 0);
	assert_int_equal(blk_resize(bd, 2 * SIZE + 512, &e), 0);
	assert_int_equal(blk_pwrite(bd, buf, 512, 2 * SIZE), 0);
	assert_int_equal(blk_close(bd), 0);
	if (have_qemu())
		assert_int_equal(qemu_check("grow"), 0);
	bd = image("grow", false);
	assert_int_equal(qcow2_bitmap_read(bd, "b", &bits, &n, &gran, &e), 0);
	assert_int_equal(n, 2 * SIZE / gran + 1);
	for (uint64_t i = 0; i < n; i++)
		assert_int_equal(bits[i / 8] >> (i % 8) & 1, i == SIZE / gran - 1 || i == n - 1);
	free(bits);
	assert_int_equal(blk_resize(bd, MIB, &e), 0);
	assert_int_equal(blk_close(bd), 0);
	bd = image("grow", true);
	assert_int_equal(qcow2_bitmap_read(bd, "b", &bits, &n, &gran, &e), 0);
	assert_int_equal(n, MIB / gran);
	assert_int_equal(bits[0] | bits[1], 0);
	free(bits);
	assert_int_equal(blk_close(bd), 0);
}

/* every prefix of what closing writes leaves the bitmap right or not trusted, and the image good */
static void a_crash_leaves_a_bitmap_right_or_untrusted(void **state)
{
	struct blk_log *log = blk_log_new();
	struct err e = { 0 };
	char opt[64];
	const char *opts[] = { opt, NULL };
	struct blk_spec file = { .driver = "file", .label = "file", .cache = BLK_CACHE_WRITEBACK };
	struct blk_spec lspec = { .driver = "log", .label = "log", .child = &file, .opts = opts };
	static const char *const qopts[] = { "backing=ignore", "prealloc=off", NULL };
	struct blk_spec qspec = {
		.driver = "qcow2", .label = "crash", .child = &lspec, .opts = qopts, .discard = true
	};
	struct blockdev *bd;
	unsigned trusted = 0, untrusted = 0;

	(void)state;
	make("crash", 4096, true);
	bd = image("crash", false);
	assert_int_equal(blk_bitmap_create(bd, "b", 4096, true, &e), 0);
	assert_int_equal(blk_close(bd), 0);
	assert_int_equal(run("cp '%s' '%s'", disk_path("crash"), disk_path("start")), 0);
	snprintf(opt, sizeof(opt), "log=%p", (void *)log);
	file.fd = disk_fd("crash", O_RDWR);
	bd = blk_open(&qspec, &e);
	assert_non_null(bd);
	for (unsigned i = 0; i < 8; i++)
		touch(bd, NULL, 0);
	assert_int_equal(blk_close(bd), 0);
	assert_true(log->n > 10 && !log->failed);
	for (size_t cut = 0; cut <= log->n; cut++) {
		int fd;
		uint64_t n, gran;
		uint8_t *bits;
		int r;

		assert_int_equal(run("cp '%s' '%s'", disk_path("start"), disk_path("cut")), 0);
		fd = disk_fd("cut", O_RDWR);
		for (size_t i = 0; i < cut; i++) {
			const struct blk_log_rec *rec = &log->rec[i];

			if (rec->kind == BLK_LOG_WRITE)
				assert_int_equal(pwrite(fd, rec->data, rec->len, rec->off),
						 (ssize_t)rec->len);
			else if (rec->kind == BLK_LOG_TRUNCATE)
				assert_int_equal(ftruncate(fd, rec->off), 0);
			else if (rec->kind == BLK_LOG_ZERO)
				assert_int_equal(fallocate(fd, 3, rec->off, rec->len), 0);
		}
		close(fd);
		bd = image("cut", true);
		e = (struct err){ 0 };
		r = qcow2_bitmap_read(bd, "b", &bits, &n, &gran, &e);
		if (r == 0) {
			/* trusted: nothing was written yet, or all was stored */
			bool any = false;

			for (uint64_t i = 0; i < n / 8; i++)
				any |= bits[i];
			if (any)
				assert_true(untrusted > 0);
			else
				assert_int_equal(untrusted, 0);
			trusted++;
			free(bits);
		} else {
			assert_int_equal(r, -ESTALE);
			untrusted++;
		}
		assert_int_equal(blk_close(bd), 0);
		if (have_qemu() && cut % 4 == 0) {
			int rc = run("qemu-img check -q -f qcow2 '%s' >/dev/null 2>&1",
				     disk_path("cut"));

			assert_true(rc == 0 || rc == 3); /* leaks are allowed */
		}
	}
	assert_true(trusted >= 2 && untrusted >= 2);
	blk_log_free(log);
}

static void bad_names_and_granularities_are_refused(void **state)
{
	char longname[1100];
	struct err e = { 0 };
	struct blockdev *bd;

	(void)state;
	memset(longname, 'a', sizeof(longname) - 1);
	longname[sizeof(longname) - 1] = 0;
	make("bad", 0, false);
	bd = image("bad", false);
	assert_int_equal(blk_bitmap_create(bd, "", 0, true, &e), -EINVAL);
	assert_int_equal(blk_bitmap_create(bd, "a\nb", 0, true, &e), -EINVAL);
	assert_int_equal(blk_bitmap_create(bd, longname, 0, true, &e), -EINVAL);
	assert_int_equal(blk_bitmap_create(bd, "b", 1000, true, &e), -EINVAL);
	assert_int_equal(blk_bitmap_create(bd, "b", 256, true, &e), -EINVAL);
	assert_int_equal(blk_bitmap_create(bd, "b", 4 * GIB, true, &e), -EINVAL);
	assert_int_equal(blk_bitmap_merge(bd, "x", "y", &e), -ENOENT);
	longname[BLK_BITMAP_NAME_MAX] = 0;
	assert_int_equal(blk_bitmap_create(bd, longname, 0, true, &e), 0);
	assert_int_equal(blk_close(bd), 0);
	if (have_qemu())
		assert_int_equal(qemu_check("bad"), 0);
	bd = image("bad", true);
	assert_int_equal(blk_bitmap_create(bd, "b", 0, true, &e), -EROFS);
	assert_int_equal(blk_close(bd), 0);
}

/* the header's sector carries all: a clone's backing name stays what it was */
static void the_backing_name_survives_a_bitmap(void **state)
{
	char name[600];
	struct qcow2_create c = { .size_bytes = SIZE,
				  .backing_name = name,
				  .backing_format = "raw" };

	(void)state;
	memset(name, 'n', sizeof(name));
	for (unsigned len = 5; len < sizeof(name); len += 85) {
		struct qcow2_header_info h;
		struct err e = { 0 };
		struct blockdev *bd;

		name[len] = 0;
		disk_create("named", &c);
		bd = image("named", false);
		assert_int_equal(blk_bitmap_create(bd, "b", 0, true, &e), 0);
		assert_int_equal(blk_close(bd), 0);
		bd = image("named", false);
		assert_int_equal(qcow2_header_info(bd, &h), 0);
		assert_string_equal(h.backing_name, name);
		assert_string_equal(h.backing_format, "raw");
		assert_int_equal(h.bitmaps, 1);
		assert_int_equal(qcow2_set_backing_name(bd, "other", "qcow2", &e), 0);
		assert_int_equal(blk_close(bd), 0);
		bd = image("named", true);
		assert_int_equal(qcow2_header_info(bd, &h), 0);
		assert_string_equal(h.backing_name, "other");
		assert_int_equal(h.bitmaps, 1);
		assert_int_equal(blk_close(bd), 0);
		name[len] = 'n';
		if (have_qemu())
			assert_int_equal(run("qemu-img info '%s' | grep -q 'backing file: other'",
					     disk_path("named")),
					 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_marked_and_survives_closing),
		cmocka_unit_test(qemu_and_we_keep_each_others_bitmaps),
		cmocka_unit_test(taking_empties_and_giving_back_restores),
		cmocka_unit_test(a_bitmap_follows_the_disk_size),
		cmocka_unit_test(a_crash_leaves_a_bitmap_right_or_untrusted),
		cmocka_unit_test(bad_names_and_granularities_are_refused),
		cmocka_unit_test(the_backing_name_survives_a_bitmap),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
