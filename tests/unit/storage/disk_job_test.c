/* disk_job_test.c - the image jobs, each judged by QEMU's tools where they are there. */
#include "tests/unit/storage/disk_test.h"

#include "storage/job.h"
#include "storage/qcow2_tools.h"

#define SIZE (20 * MIB)

static struct blk_spec spec(const char *driver, const char *name, bool ro)
{
	return (struct blk_spec){ .driver = driver,
				  .label = name,
				  .fd = disk_fd(name, ro ? O_RDONLY : O_RDWR),
				  .read_only = ro,
				  .discard = true,
				  .cache = BLK_CACHE_WRITEBACK };
}

static uint8_t *raw_make(const char *name, uint64_t size, uint64_t seed)
{
	uint8_t *p = calloc(1, size);
	int fd = disk_fd(name, O_RDWR | O_CREAT | O_TRUNC);

	rng_seed(seed);
	for (int i = 0; i < 40; i++) {
		uint64_t off = rng_below(size / 512 - 400) * 512, len = (1 + rng_below(400)) * 512;

		if (i & 1)
			rng_fill(p + off, len);
		else
			memset(p + off, 'a' + i % 26, len);
	}
	assert_int_equal(pwrite(fd, p, size, 0), size);
	close(fd);
	return p;
}

static void equals(const char *driver, const char *name, const uint8_t *want, uint64_t size)
{
	struct err e = { 0 };
	struct blk_spec s = spec(driver, name, true);
	static const char *const ignore[] = { "backing=ignore", NULL };
	uint8_t *got = malloc(size);

	s.opts = ignore;
	struct blockdev *bd = blk_open(&s, &e);

	if (!bd)
		fail_msg("%s", e.detail);
	assert_int_equal(blk_pread(bd, got, size, 0), 0);
	for (uint64_t i = 0; i < size; i += 512)
		if (memcmp(got + i, want + i, 512))
			fail_msg("%s: sector at %llu differs", name, (unsigned long long)i);
	assert_int_equal(blk_close(bd), 0);
	free(got);
}

struct seen {
	uint64_t last, total, calls;
};

static void see(void *arg, uint64_t done, uint64_t total)
{
	struct seen *s = arg;

	assert_true(done >= s->last && done <= total);
	s->last = done;
	s->total = total;
	s->calls++;
}

static void convert_round_trips_in_every_format(void **state)
{
	static const struct {
		const char *driver;
		bool compress, zstd, compat;
		unsigned threads;
	} forms[] = {
		{ "qcow2", false, false, false, 2 }, { "qcow2", false, false, true, 1 },
		{ "qcow2", true, false, true, 4 },   { "qcow2", true, true, false, 4 },
		{ "qcow2", true, true, true, 1 },    { "file", false, false, false, 3 },
	};
	uint8_t *want = raw_make("src", SIZE + 512, 1);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(forms); i++) {
		struct err e = { 0 };
		struct seen seen = { 0 };
		struct blkjob job = { .progress = see, .arg = &seen, .threads = forms[i].threads };
		struct blk_spec src = spec("file", "src", true);
		struct blkjob_target t = { .fd = disk_fd("dst", O_RDWR | O_CREAT | O_TRUNC),
					   .driver = forms[i].driver,
					   .compress = forms[i].compress,
					   .create = { .compat = forms[i].compat,
						       .zstd = forms[i].zstd } };

		if (blkjob_convert(&job, &src, &t, &e) < 0)
			fail_msg("%s", e.detail);
		assert_int_equal(seen.last, SIZE + 512);
		equals(forms[i].driver, "dst", want, SIZE + 512);
		if (have_qemu()) {
			const char *f = forms[i].driver[0] == 'q' ? "qcow2" : "raw";

			if (*f == 'q')
				assert_int_equal(qemu_check("dst"), 0);
			assert_int_equal(run("qemu-img compare -q -f raw -F %s '%s' '%s'", f,
					     disk_path("src"), disk_path("dst")),
					 0);
		}
		/* and on, from this format to another, by compare of our own */
		src = spec(forms[i].driver, "dst", true);
		t = (struct blkjob_target){ .fd = disk_fd("back", O_RDWR | O_CREAT | O_TRUNC),
					    .driver = "file" };
		assert_int_equal(blkjob_convert(NULL, &src, &t, &e), 0);
		struct blk_spec a = spec("file", "back", true), b = spec("file", "src", true);
		uint64_t at;

		assert_int_equal(blkjob_compare(NULL, &a, &b, &at, &e), 0);
	}
	free(want);
}

static void compare_finds_the_first_difference(void **state)
{
	uint8_t *p = raw_make("a", SIZE, 2);
	struct err e = { 0 };
	uint64_t at = 0;
	int fd;

	(void)state;
	assert_int_equal(run("cp '%s' '%s'", disk_path("a"), disk_path("b")), 0);
	assert_int_equal(truncate(disk_path("b"), SIZE + 8192), 0);
	struct blk_spec a = spec("file", "a", true), b = spec("file", "b", true);

	assert_int_equal(blkjob_compare(NULL, &a, &b, &at, &e), 0);
	fd = disk_fd("b", O_RDWR);
	assert_int_equal(pwrite(fd, "x", 1, SIZE + 5000), 1);
	close(fd);
	a = spec("file", "a", true);
	b = spec("file", "b", true);
	assert_int_equal(blkjob_compare(NULL, &a, &b, &at, &e), 1);
	assert_int_equal(at, SIZE + 4608);
	free(p);
}

static void a_cancelled_or_over_quota_convert_says_so(void **state)
{
	uint8_t *p = raw_make("src", SIZE, 3);
	_Atomic bool cancel = true;
	struct blkjob job = { .cancel = &cancel };
	struct err e = { 0 };
	struct blk_spec src = spec("file", "src", true);
	struct blkjob_target t = { .fd = disk_fd("dst", O_RDWR | O_CREAT | O_TRUNC),
				   .driver = "qcow2" };

	(void)state;
	assert_int_equal(blkjob_convert(&job, &src, &t, &e), -ECANCELED);
	assert_string_equal(e.code, "cancelled");
	err_clear(&e);
	job = (struct blkjob){ .max_output_bytes = 100000 };
	src = spec("file", "src", true);
	t.fd = disk_fd("dst", O_RDWR | O_CREAT | O_TRUNC);
	assert_int_equal(blkjob_convert(&job, &src, &t, &e), -EDQUOT);
	free(p);
}

static void a_failed_job_closes_its_descriptors(void **state)
{
	struct err e = { 0 };
	struct blk_spec bad;
	uint64_t at;

	(void)state;
	free(raw_make("src", SIZE, 4));
	int probe = disk_fd("src", O_RDONLY);

	close(probe);
	bad = spec("qcow2", "src", true); /* raw bytes: refused */
	struct blkjob_target t = { .fd = disk_fd("dst", O_RDWR | O_CREAT | O_TRUNC),
				   .driver = "qcow2" };

	assert_true(blkjob_convert(NULL, &bad, &t, &e) < 0);
	err_clear(&e);
	bad = spec("qcow2", "src", true);
	struct blk_spec b = spec("file", "src", true);

	assert_true(blkjob_compare(NULL, &bad, &b, &at, &e) < 0);
	int again = disk_fd("src", O_RDONLY);

	assert_int_equal(again, probe); /* the lowest free descriptor is the same: none leaked */
	close(again);
}

static void shrinking_asks_for_proof_of_zeroes(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE };
	uint8_t buf[4096] = { 1 };
	struct err e = { 0 };

	(void)state;
	disk_create("r", &cr);
	struct blockdev *bd = disk_open("r", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);

	assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), 15 * MIB), 0);
	assert_int_equal(blk_close(bd), 0);
	struct blk_spec s = spec("qcow2", "r", false);

	assert_int_equal(blkjob_resize(NULL, &s, 10 * MIB, false, &e), -ENOTEMPTY);
	s = spec("qcow2", "r", false);
	assert_int_equal(blkjob_resize(NULL, &s, 16 * MIB, false, &e), 0);
	s = spec("qcow2", "r", false);
	assert_int_equal(blkjob_resize(NULL, &s, 10 * MIB, true, &e), 0);
	s = spec("qcow2", "r", false);
	assert_int_equal(blkjob_resize(NULL, &s, 30 * MIB, false, &e), 0);
	if (have_qemu())
		assert_int_equal(qemu_check("r"), 0);
}

/* base (raw) ← mid ← top, each with its own writes; returns what top shows */
static uint8_t *chain_make(bool ext)
{
	uint8_t *want = raw_make("base", SIZE, 5);
	const char *names[] = { "base", "mid", "top" };

	for (int l = 1; l <= 2; l++) {
		struct qcow2_create cr = { .size_bytes = SIZE,
					   .compat = !ext,
					   .backing_name = names[l - 1],
					   .backing_format = l == 1 ? "raw" : "qcow2" };
		struct blk_spec base = spec("file", "base", true), mid;
		uint8_t buf[70000];

		disk_create(names[l], &cr);
		if (l == 2) {
			mid = spec("qcow2", "mid", true);
			mid.backing = &base;
		}
		struct blockdev *bd =
		    disk_open(names[l], "qcow2", l == 2 ? &mid : &base, false, BLK_CACHE_WRITEBACK);

		for (int i = 0; i < 40; i++) {
			uint64_t len = (1 + rng_below(130)) * 512,
				 off = rng_below((SIZE - len) / 512) * 512;

			if (i % 4 == 0) {
				assert_int_equal(blk_zero(bd, off, len, i & 4), 0);
				memset(want + off, 0, len);
			} else {
				rng_fill(buf, len);
				assert_int_equal(blk_pwrite(bd, buf, len, off), 0);
				memcpy(want + off, buf, len);
			}
		}
		assert_int_equal(blk_close(bd), 0);
	}
	return want;
}

static void commit_puts_the_top_layer_into_its_parent(void **state)
{
	(void)state;
	for (int ext = 0; ext < 2; ext++) {
		uint8_t *want = chain_make(ext);
		struct err e = { 0 };
		struct blk_spec base = spec("file", "base", true),
				mid = spec("qcow2", "mid", false), top = spec("qcow2", "top", true);

		mid.backing = &base;
		top.backing = &mid;
		if (blkjob_commit(NULL, &top, &e) < 0)
			fail_msg("%s", e.detail);
		/* mid alone now shows what top did */
		base = spec("file", "base", true);
		mid = spec("qcow2", "mid", true);
		mid.backing = &base;
		struct blkjob_target t = { .fd = disk_fd("flat", O_RDWR | O_CREAT | O_TRUNC),
					   .driver = "file" };

		assert_int_equal(blkjob_convert(NULL, &mid, &t, &e), 0);
		equals("file", "flat", want, SIZE);
		if (have_qemu())
			assert_int_equal(qemu_check("mid"), 0);
		free(want);
	}
}

static void rebase_keeps_what_the_disk_shows(void **state)
{
	(void)state;
	for (int ext = 0; ext < 2; ext++) {
		uint8_t *want = chain_make(ext);
		struct err e = { 0 };
		struct blk_spec base = spec("file", "base", true), mid = spec("qcow2", "mid", true),
				top = spec("qcow2", "top", false);
		struct blk_spec parent = spec("file", "base", true);

		mid.backing = &base;
		top.backing = &mid;
		if (blkjob_rebase(NULL, &top, &parent, "base", "raw", false, &e) < 0)
			fail_msg("%s", e.detail);
		if (have_qemu()) {
			assert_int_equal(qemu_check("top"), 0);
			assert_int_equal(run("qemu-img convert -f qcow2 -O raw '%s' '%s'",
					     disk_path("top"), disk_path("flat")),
					 0);
			equals("file", "flat", want, SIZE);
		}
		/* and free of any parent, then over one that shows something else: still the same
		 */
		base = spec("file", "base", true);
		top = spec("qcow2", "top", false);
		top.backing = &base;
		assert_int_equal(blkjob_rebase(NULL, &top, NULL, NULL, NULL, false, &e), 0);
		equals("qcow2", "top", want, SIZE);
		free(raw_make("other", SIZE, 99));
		top = spec("qcow2", "top", false);
		parent = spec("file", "other", true);
		assert_int_equal(blkjob_rebase(NULL, &top, &parent, "other", "raw", false, &e), 0);
		base = spec("file", "other", true);
		top = spec("qcow2", "top", true);
		top.backing = &base;
		struct blkjob_target t = { .fd = disk_fd("flat", O_RDWR | O_CREAT | O_TRUNC),
					   .driver = "file" };

		assert_int_equal(blkjob_convert(NULL, &top, &t, &e), 0);
		equals("file", "flat", want, SIZE);
		free(want);
	}
}

static void map_and_info_mean_what_qemu_img_means(void **state)
{
	uint8_t *want = chain_make(true);
	struct text ours = { 0 }, info = { 0 };
	struct err e = { 0 };
	FILE *f;

	(void)state;
	if (!have_qemu() || run("command -v jq >/dev/null"))
		skip();
	struct blk_spec base = spec("file", "base", true), mid = spec("qcow2", "mid", true),
			top = spec("qcow2", "top", true);

	mid.backing = &base;
	top.backing = &mid;
	assert_int_equal(blkjob_map(NULL, &top, &ours, &e), 0);
	f = fopen(disk_path("ours.json"), "w");
	fputs(ours.s, f);
	fclose(f);
	/* data ranges, merged, are the same */
	const char *norm =
	    "jq -c '[.[] | select(.data) | [.start, .start + .length]] | reduce .[] as $r ([]; if "
	    "length > 0 and .[-1][1] == $r[0] then .[-1][1] = $r[1] else . + [$r] end)'";

	assert_int_equal(run("qemu-img map --output=json -f qcow2 '%s' | %s >'%s'",
			     disk_path("top"), norm, disk_path("q")),
			 0);
	assert_int_equal(run("%s <'%s' | cmp - '%s'", norm, disk_path("ours.json"), disk_path("q")),
			 0);
	base = spec("file", "base", true);
	mid = spec("qcow2", "mid", true);
	mid.backing = &base;
	assert_int_equal(blkjob_info(&mid, &info, &e), 0);
	f = fopen(disk_path("ours.json"), "w");
	fputs(info.s, f);
	fclose(f);
	norm = "jq -cS "
	       "'[.[\"virtual-size\",\"cluster-size\",\"format\",\"backing-filename\",\"backing-"
	       "filename-format\",\"dirty-flag\",\"format-specific\"]]'";
	assert_int_equal(run("qemu-img info --output=json -f qcow2 '%s' | %s >'%s'",
			     disk_path("mid"), norm, disk_path("q")),
			 0);
	assert_int_equal(
	    run("%s <'%s' | diff - '%s'", norm, disk_path("ours.json"), disk_path("q")), 0);
	text_free(&ours);
	text_free(&info);
	free(want);
}

static void internal_snapshots_are_listed_read_and_deleted(void **state)
{
	static const char *const opts[] = { "cluster_size=64k", "cluster_size=128k,extended_l2=on",
					    "cluster_size=512" };

	(void)state;
	if (!have_qemu())
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(opts); i++) {
		struct qcow2_snapshot_info *s = NULL;
		struct err e = { 0 };
		uint8_t buf[65536];

		assert_int_equal(run("rm -f '%s'; qemu-img create -q -f qcow2 -o %s '%s' 2M && "
				     "qemu-io -c 'write -P 1 0 1M' '%s' >/dev/null &&"
				     "qemu-img snapshot -c one '%s' && qemu-io -c 'write -P 2 64k "
				     "256k' '%s' >/dev/null && qemu-img snapshot -c two '%s'",
				     disk_path("s"), opts[i], disk_path("s"), disk_path("s"),
				     disk_path("s"), disk_path("s"), disk_path("s")),
				 0);
		/* overwritten by us: shared clusters move */
		struct blockdev *bd = disk_open("s", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);

		memset(buf, 3, sizeof(buf));
		assert_int_equal(blk_pwrite(bd, buf, 4096 + 512, 100 * KIB), 0);
		assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), 1536 * KIB), 0);
		assert_int_equal(qcow2_snapshot_list(bd, &s, &e), 2);
		assert_string_equal(s[1].name, "two");
		free(s);
		assert_int_equal(blk_close(bd), 0);
		assert_int_equal(qemu_check("s"), 0);
		bd = disk_open("s", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
		assert_int_equal(qcow2_snapshot_view(bd, "one", &e), 0);
		assert_int_equal(blk_pread(bd, buf, sizeof(buf), 64 * KIB), 0);
		for (size_t k = 0; k < sizeof(buf); k++)
			assert_int_equal(buf[k], 1);
		assert_int_equal(blk_close(bd), 0);
		struct blk_spec sp = spec("qcow2", "s", false);

		if (blkjob_snapshot_delete(&sp, "one", &e) < 0)
			fail_msg("%s", e.detail);
		assert_int_equal(qemu_check("s"), 0);
		bd = disk_open("s", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
		assert_int_equal(qcow2_snapshot_view(bd, "two", &e), 0);
		assert_int_equal(blk_pread(bd, buf, sizeof(buf), 100 * KIB), 0);
		assert_int_equal(buf[0], 2);
		assert_int_equal(blk_close(bd), 0);
		sp = spec("qcow2", "s", false);
		assert_int_equal(blkjob_snapshot_delete(&sp, "two", &e), 0);
		assert_int_equal(qemu_check("s"), 0);
		bd = disk_open("s", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
		assert_int_equal(blk_pread(bd, buf, 512, 100 * KIB), 0);
		assert_int_equal(buf[0], 3);
		assert_int_equal(blk_pwrite(bd, buf, 512, 0), 0);
		assert_int_equal(blk_close(bd), 0);
		assert_int_equal(qemu_check("s"), 0);
	}
}

static void bitmaps_are_read_and_lost_by_who_does_not_keep_them(void **state)
{
	uint8_t *bits, buf[512] = { 1 };
	uint64_t n, gran;
	struct err e = { 0 };

	(void)state;
	if (!have_qemu())
		skip();
	assert_int_equal(
	    run("qemu-img create -q -f qcow2 '%s' 4M && qemu-img bitmap --add -g 64k '%s' b0 && "
		"qemu-io -c 'write 128k 64k' -c 'write 1M 1k' '%s' >/dev/null",
		disk_path("bm"), disk_path("bm"), disk_path("bm")),
	    0);
	struct blockdev *bd = disk_open("bm", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);

	assert_int_equal(qcow2_bitmap_read(bd, "b0", &bits, &n, &gran, &e), 0);
	assert_int_equal(n, 64);
	assert_int_equal(gran, 65536);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(bits[i / 8] >> (i % 8) & 1, i == 2 || i == 16);
	free(bits);
	assert_int_equal(blk_close(bd), 0);
	/* a writer that knows no bitmaps clears the autoclear bit */
	int fd = disk_fd("bm", O_RDWR);

	assert_int_equal(pwrite(fd, "\0\0\0\0\0\0\0\0", 8, 88), 8);
	close(fd);
	bd = disk_open("bm", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
	assert_int_equal(qcow2_bitmap_read(bd, "b0", &bits, &n, &gran, &e), -ESTALE);
	assert_int_equal(blk_close(bd), 0);
	/* and our next write forgets them for good: what they point to may be anybody's */
	bd = disk_open("bm", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
	assert_int_equal(blk_pwrite(bd, buf, 512, 3 * MIB), 0);
	assert_int_equal(blk_close(bd), 0);
	e = (struct err){ 0 };
	bd = disk_open("bm", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
	assert_int_equal(qcow2_bitmap_read(bd, "b0", &bits, &n, &gran, &e), -ESTALE);
	assert_int_equal(blk_close(bd), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(convert_round_trips_in_every_format),
		cmocka_unit_test(compare_finds_the_first_difference),
		cmocka_unit_test(a_cancelled_or_over_quota_convert_says_so),
		cmocka_unit_test(a_failed_job_closes_its_descriptors),
		cmocka_unit_test(shrinking_asks_for_proof_of_zeroes),
		cmocka_unit_test(commit_puts_the_top_layer_into_its_parent),
		cmocka_unit_test(rebase_keeps_what_the_disk_shows),
		cmocka_unit_test(map_and_info_mean_what_qemu_img_means),
		cmocka_unit_test(internal_snapshots_are_listed_read_and_deleted),
		cmocka_unit_test(bitmaps_are_read_and_lost_by_who_does_not_keep_them),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
