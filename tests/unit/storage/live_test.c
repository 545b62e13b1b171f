/* live_test.c - a disk's graph is changed under its writers, and each byte is where it belongs.
 *
 * Writers hammer their own sectors and check what they read; meanwhile the verb runs. Afterwards
 * the disk equals the shadow, opened anew from its files too, and qemu-img finds the images good
 * and the chain what it should be. For moments in time (snapshot, backup) the writers stand still
 * while the verb starts, so that the shadow can be copied, and then go on under it.
 */
#include "tests/unit/storage/disk_test.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#include "common/loop.h"
#include "storage/live.h"
#include "storage/qcow2_tools.h"

#define SIZE	(24 * MIB)
#define WRITERS 2
#define BLOCK	4096u

struct world {
	struct blockdev *bd;
	uint8_t *shadow;
	pthread_rwlock_t still; /* read: a write and its shadow */
	_Atomic bool stop;
	_Atomic unsigned wrong, writes;
	pthread_t thread[WRITERS];
	struct writer {
		struct world *w;
		unsigned id;
		uint64_t seed;
	} writer[WRITERS];
};

/* still_init() - who wants the writers to stand still comes before the next write */
static void still_init(pthread_rwlock_t *l)
{
	pthread_rwlockattr_t a;

	pthread_rwlockattr_init(&a);
	pthread_rwlockattr_setkind_np(&a, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(l, &a);
	pthread_rwlockattr_destroy(&a);
}

static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return (*s * 0x2545f4914f6cdd1dULL) >> 11;
}

static void *writer_main(void *arg)
{
	struct writer *me = arg;
	struct world *w = me->w;
	uint8_t *buf, *got;

	if (posix_memalign((void **)&buf, 4096, 2 * BLOCK))
		abort();
	got = buf + BLOCK;
	while (!atomic_load(&w->stop)) {
		uint64_t off =
		    (next(&me->seed) % (SIZE / BLOCK / WRITERS) * WRITERS + me->id) * BLOCK;
		unsigned what = next(&me->seed) % 48;
		int r;

		pthread_rwlock_rdlock(&w->still);
		r = blk_pread(w->bd, got, BLOCK, off);
		if (r || memcmp(got, w->shadow + off, BLOCK))
			atomic_fetch_add(&w->wrong, 1);
		if (what < 3) {
			r = blk_zero(w->bd, off, BLOCK, true);
			memset(w->shadow + off, 0, BLOCK);
		} else if (what == 3) {
			r = blk_flush(w->bd);
		} else {
			for (unsigned i = 0; i < BLOCK / 8; i++)
				((uint64_t *)(void *)buf)[i] = next(&me->seed);
			r = blk_pwrite(w->bd, buf, BLOCK, off);
			memcpy(w->shadow + off, buf, BLOCK);
		}
		if (r)
			atomic_fetch_add(&w->wrong, 1);
		atomic_fetch_add(&w->writes, 1);
		pthread_rwlock_unlock(&w->still);
	}
	free(buf);
	return NULL;
}

static void writers_start(struct world *w)
{
	atomic_store(&w->stop, false);
	for (unsigned i = 0; i < WRITERS; i++) {
		w->writer[i] = (struct writer){ w, i, rng() | 1 };
		assert_int_equal(pthread_create(&w->thread[i], NULL, writer_main, &w->writer[i]),
				 0);
	}
}

static void writers_reach(struct world *w, unsigned n)
{
	unsigned want = atomic_load(&w->writes) + n;

	while (atomic_load(&w->writes) < want && !atomic_load(&w->wrong))
		sched_yield();
}

static void writers_stop(struct world *w)
{
	atomic_store(&w->stop, true);
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(w->thread[i], NULL);
	assert_int_equal(atomic_load(&w->wrong), 0);
}

static void equals(struct blockdev *bd, const uint8_t *want, const char *what)
{
	uint8_t *got = malloc(MIB);

	for (uint64_t off = 0; off < SIZE; off += MIB) {
		assert_int_equal(blk_pread(bd, got, MIB, off), 0);
		for (uint64_t i = 0; i < MIB; i += 512)
			if (memcmp(got + i, want + off + i, 512))
				fail_msg("%s: sector at %llu differs", what,
					 (unsigned long long)(off + i));
	}
	free(got);
}

static void layer_make(const char *name, const char *below, const char *format, uint32_t cluster,
		       bool compat)
{
	struct qcow2_create c = { .size_bytes = SIZE,
				  .cluster_size = cluster,
				  .compat = compat,
				  .backing_name = below,
				  .backing_format = format };

	disk_create(name, &c);
}

static void specs_for(struct blk_spec *s, const char *const *names, unsigned n, bool rw)
{
	for (unsigned i = 0; i < n; i++)
		s[i] =
		    (struct blk_spec){ .driver = i + 1 == n && !strcmp(names[i], "base") ? "file"
											 : "qcow2",
				       .label = names[i],
				       .fd = disk_fd(names[i], !i && rw ? O_RDWR : O_RDONLY),
				       .read_only = i || !rw,
				       .discard = true,
				       .cache = BLK_CACHE_WRITEBACK,
				       .backing = i + 1 < n ? &s[i + 1] : NULL };
}

static struct blockdev *chain_open(const char *const *names, unsigned n, bool rw)
{
	struct blk_spec s[8];
	struct err e = { 0 };
	struct blockdev *bd;

	specs_for(s, names, n, rw);
	bd = blk_open(&s[0], &e);
	if (!bd)
		fail_msg("%s", e.detail);
	return bd;
}

static const char *const whole[] = { "top", "mid", "low", "base" };

/* world_make() - base (raw), low, mid, top, each with something of its own. */
static void world_make(struct world *w, uint32_t cluster, bool compat)
{
	uint8_t *buf = malloc(MIB);
	int fd = disk_fd("base", O_RDWR | O_CREAT | O_TRUNC);

	memset(w, 0, sizeof(*w));
	still_init(&w->still);
	w->shadow = malloc(SIZE);
	rng_fill(w->shadow, SIZE / 2);
	memset(w->shadow + SIZE / 2, 0, SIZE / 2);
	assert_int_equal(pwrite(fd, w->shadow, SIZE, 0), SIZE);
	close(fd);
	for (int i = 2; i >= 0; i--) {
		struct blockdev *bd;

		layer_make(whole[i], whole[i + 1], i == 2 ? "raw" : "qcow2", cluster, compat);
		bd = chain_open(whole + i, 4 - i, true);
		for (unsigned k = 0; k < 20; k++) {
			uint64_t len = 512 * (1 + rng_below(512)),
				 off = rng_below((SIZE - len) / 512) * 512;

			if (k % 4 == 3) {
				assert_int_equal(blk_zero(bd, off, len, true), 0);
				memset(w->shadow + off, 0, len);
			} else {
				rng_fill(buf, len);
				assert_int_equal(blk_pwrite(bd, buf, len, off), 0);
				memcpy(w->shadow + off, buf, len);
			}
		}
		assert_int_equal(blk_close(bd), 0);
	}
	free(buf);
	w->bd = chain_open(whole, 4, true);
}

static void world_end(struct world *w, const char *const *names, unsigned n)
{
	struct blockdev *bd;

	equals(w->bd, w->shadow, "the disk");
	assert_int_equal(blk_close(w->bd), 0);
	bd = chain_open(names, n, false);
	equals(bd, w->shadow, "the disk opened anew");
	assert_int_equal(blk_close(bd), 0);
	for (unsigned i = 0; i < n && have_qemu(); i++)
		if (strcmp(names[i], "base") && strcmp(names[i], "copy"))
			assert_int_equal(qemu_check(names[i]), 0);
	pthread_rwlock_destroy(&w->still);
	free(w->shadow);
}

static void backing_is(const char *name, const char *want)
{
	if (have_qemu())
		assert_int_equal(run("qemu-img info -U -f qcow2 '%s' | sed -n 's/^backing file: "
				     "\\([a-z0-9]*\\).*/"
				     "\\1/p' | grep -qx '%s'",
				     disk_path(name), want),
				 0);
}

static void no_backing(const char *name)
{
	if (have_qemu())
		assert_int_not_equal(run("qemu-img info -U -f qcow2 '%s' | grep -q '^backing file'",
					 disk_path(name)),
				     0);
}

static const struct {
	uint32_t cluster;
	bool compat;
} kinds[] = { { 0, false }, { 64 * KIB, true }, { 16 * KIB, false } };

static void a_snapshot_is_a_moment_of_all_its_disks(void **state)
{
	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
		static const char *const after[] = { "over", "top", "mid", "low", "base" };
		struct blk_spec over = { .driver = "qcow2",
					 .label = "over",
					 .discard = true,
					 .cache = BLK_CACHE_WRITEBACK },
				over2 = over;
		uint8_t *then = malloc(SIZE), *then2 = malloc(SIZE);
		struct world w, w2;
		struct err e = { 0 };
		struct blockdev *bd;

		world_make(&w, kinds[k].cluster, kinds[k].compat);
		/* the second disk has filters and a bitmap */
		struct blk_spec qs = { .driver = "qcow2",
				       .label = "two",
				       .discard = true,
				       .cache = BLK_CACHE_WRITEBACK };
		struct blk_spec rate = {
			.driver = "rate", .label = "two", .fd = -1, .child = &qs, .discard = true
		};

		memset(&w2, 0, sizeof(w2));
		still_init(&w2.still);
		w2.shadow = calloc(1, SIZE);
		layer_make("two", NULL, NULL, 0, false);
		layer_make("two-over", "two", "qcow2", 0, false);
		qs.fd = disk_fd("two", O_RDWR);
		w2.bd = blk_open(&rate, &e);
		assert_non_null(w2.bd);
		assert_int_equal(blk_bitmap_create(w2.bd, "b", 0, true, &e), 0);
		layer_make("over", "top", "qcow2", kinds[k].cluster, kinds[k].compat);
		over.fd = disk_fd("over", O_RDWR);
		over2.fd = disk_fd("two-over", O_RDWR);
		writers_start(&w);
		writers_start(&w2);
		writers_reach(&w, 300);
		writers_reach(&w2, 300);
		struct blk_live_overlay v[] = { { w.bd, &over }, { w2.bd, &over2 } };

		pthread_rwlock_wrlock(&w.still);
		pthread_rwlock_wrlock(&w2.still);
		assert_int_equal(blk_live_snapshot(v, 2, &e), 0);
		memcpy(then, w.shadow, SIZE);
		memcpy(then2, w2.shadow, SIZE);
		pthread_rwlock_unlock(&w.still);
		pthread_rwlock_unlock(&w2.still);
		writers_reach(&w, 300);
		writers_reach(&w2, 300);
		/* the old tops can be opened by others, and hold the moment */
		bd = chain_open(whole, 4, false);
		equals(bd, then, "the snapshot");
		assert_int_equal(blk_close(bd), 0);
		bd = chain_open((const char *const[]){ "two" }, 1, false);
		equals(bd, then2, "the second disk's snapshot");
		assert_int_equal(blk_close(bd), 0);
		writers_stop(&w);
		writers_stop(&w2);
		/* the bitmap goes on: it has what was written before and after */
		for (uint64_t off = 0; off < SIZE; off += 64 * KIB) {
			uint64_t len;
			bool dirty;

			assert_int_equal(blk_bitmap_next(w2.bd, "b", off, &len, &dirty), 0);
			for (unsigned i = 0; i < 64 * KIB; i += 8)
				if (w2.shadow[off + i])
					assert_true(dirty);
		}
		world_end(&w, after, 5);
		world_end(&w2, (const char *const[]){ "two-over", "two" }, 2);
		backing_is("over", "top");
		if (have_qemu())
			assert_int_equal(qemu_check("top"), 0);
		free(then);
		free(then2);
	}
}

static void a_snapshot_that_cannot_be_made_changes_nothing(void **state)
{
	struct blk_spec good = { .driver = "qcow2", .label = "good", .cache = BLK_CACHE_WRITEBACK },
			bad = good;
	struct qcow2_create small = { .size_bytes = SIZE / 2 };
	struct err e = { 0 };
	struct world w;

	(void)state;
	world_make(&w, 0, false);
	layer_make("good", "top", "qcow2", 0, false);
	disk_create("bad", &small);
	good.fd = disk_fd("good", O_RDWR);
	bad.fd = disk_fd("bad", O_RDWR);
	struct blk_live_overlay v[] = { { w.bd, &good }, { w.bd, &bad } };

	assert_int_equal(blk_live_snapshot(v, 2, &e), -EINVAL);
	assert_string_equal(e.code, "disk-overlay");
	close(good.fd);
	close(bad.fd);
	writers_start(&w);
	writers_reach(&w, 200);
	writers_stop(&w);
	world_end(&w, whole, 4);
}

static void streaming_shortens_the_chain_under_the_writers(void **state)
{
	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
		static const char *const after[] = { "top", "base" };
		struct err e = { 0 };
		struct world w;

		world_make(&w, kinds[k].cluster, kinds[k].compat);
		writers_start(&w);
		writers_reach(&w, 100);
		assert_int_equal(blk_live_stream(w.bd, 3, "base", "raw", NULL, &e), 0);
		writers_reach(&w, 100);
		writers_stop(&w);
		equals(w.bd, w.shadow, "half streamed");
		writers_start(&w);
		backing_is("top", "base");
		/* the layers that left are no longer held */
		assert_int_equal(run("rm '%s' '%s'", disk_path("mid"), disk_path("low")), 0);
		if (k == 1) {
			writers_stop(&w);
			world_end(&w, after, 2);
			continue;
		}
		assert_int_equal(blk_live_stream(w.bd, UINT_MAX, NULL, NULL, NULL, &e), 0);
		writers_reach(&w, 100);
		writers_stop(&w);
		no_backing("top");
		world_end(&w, after, 1);
	}
}

static void a_lower_layer_is_committed_under_the_writers(void **state)
{
	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
		static const char *const once[] = { "top", "low", "base" }, *const twice[] = {
			"top", "base"
		};
		struct err e = { 0 };
		struct world w;

		world_make(&w, kinds[k].cluster, kinds[k].compat);
		writers_start(&w);
		writers_reach(&w, 100);
		assert_int_equal(
		    blk_live_commit(w.bd, 1, disk_fd("low", O_RDWR), "low", "qcow2", NULL, &e), 0);
		writers_reach(&w, 100);
		backing_is("top", "low");
		if (k == 0) {
			writers_stop(&w);
			world_end(&w, once, 3);
			continue;
		}
		/* and into the raw file at the bottom */
		assert_int_equal(
		    blk_live_commit(w.bd, 1, disk_fd("base", O_RDWR), "base", "raw", NULL, &e), 0);
		writers_reach(&w, 100);
		writers_stop(&w);
		backing_is("top", "base");
		world_end(&w, twice, 2);
	}
}

static void the_top_is_committed_and_the_lower_becomes_the_disk(void **state)
{
	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
		static const char *const after[] = { "mid", "low", "base" };
		struct err e = { 0 };
		struct world w;
		struct blkjob slow = { .bps = k == 2 ? 400 * MIB : 0 };

		world_make(&w, kinds[k].cluster, kinds[k].compat);
		assert_int_equal(blk_bitmap_create(w.bd, "b", 0, true, &e), 0);
		writers_start(&w);
		writers_reach(&w, 100);
		assert_int_equal(
		    blk_live_commit(w.bd, 0, disk_fd("mid", O_RDWR), NULL, NULL, &slow, &e), 0);
		writers_reach(&w, 200);
		writers_stop(&w);
		struct qcow2_bitmap_info *maps;

		assert_int_equal(qcow2_bitmap_list(w.bd, &maps, &e), 1);
		assert_true(maps[0].bytes_dirty > 0 && maps[0].automatic);
		free(maps);
		/* who knows only of the old top finds the same disk in it */
		assert_int_equal(blk_close(w.bd), 0);
		w.bd = chain_open(whole, 4, false);
		equals(w.bd, w.shadow, "the disk by its old file");
		assert_int_equal(blk_close(w.bd), 0);
		w.bd = chain_open(after, 3, true);
		world_end(&w, after, 3);
	}
}

static void what_was_cancelled_leaves_the_chain_as_it_was(void **state)
{
	_Atomic bool cancel = true;
	struct blkjob job = { .cancel = &cancel };
	struct err e = { 0 };
	struct world w;
	int fd;

	(void)state;
	world_make(&w, 0, false);
	writers_start(&w);
	assert_int_equal(blk_live_stream(w.bd, UINT_MAX, NULL, NULL, &job, &e), -ECANCELED);
	e = (struct err){ 0 };
	assert_int_equal(blk_live_commit(w.bd, 0, disk_fd("mid", O_RDWR), NULL, NULL, &job, &e),
			 -ECANCELED);
	e = (struct err){ 0 };
	assert_int_equal(blk_live_commit(w.bd, 1, disk_fd("low", O_RDWR), "low", "qcow2", &job, &e),
			 -ECANCELED);
	e = (struct err){ 0 };
	/* the wrong file, or one that is not for writing, is refused */
	fd = disk_fd("base", O_RDWR);
	assert_int_equal(blk_live_commit(w.bd, 1, fd, "low", "qcow2", NULL, &e), -EINVAL);
	close(fd);
	fd = disk_fd("low", O_RDONLY);
	e = (struct err){ 0 };
	assert_int_equal(blk_live_commit(w.bd, 1, fd, "low", "qcow2", NULL, &e), -EINVAL);
	close(fd);
	/* a layer that someone else reads is not written */
	struct blockdev *other = chain_open(whole + 2, 2, false);

	fd = disk_fd("low", O_RDWR);
	e = (struct err){ 0 };
	assert_int_equal(blk_live_commit(w.bd, 1, fd, "low", "qcow2", NULL, &e), -EBUSY);
	close(fd);
	assert_int_equal(blk_close(other), 0);
	writers_reach(&w, 100);
	writers_stop(&w);
	world_end(&w, whole, 4);
}

/* --- backup --------------------------------------------------------------------------------------
 */

static void target_make(struct blk_spec *t, const char *name, const char *backing)
{
	layer_make(name, backing, backing ? "qcow2" : NULL, 0, false);
	*t = (struct blk_spec){ .driver = "qcow2",
				.label = name,
				.discard = true,
				.cache = BLK_CACHE_WRITEBACK,
				.fd = disk_fd(name, O_RDWR) };
}

static void backups_are_a_moment_full_and_incremental(void **state)
{
	static const char *const ignore[] = { "backing=ignore", NULL };

	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
		uint8_t *then = malloc(SIZE);
		struct blk_backup *b;
		struct err e = { 0 };
		struct world w;

		world_make(&w, kinds[k].cluster, kinds[k].compat);
		assert_int_equal(blk_bitmap_create(w.bd, "daily", 0, true, &e), 0);
		writers_start(&w);
		writers_reach(&w, 100);
		for (unsigned day = 0; day < 4; day++) {
			static const char *const names[] = { "b0", "b1", "b2", "b3" };
			struct blk_spec t;
			struct blk_backup_start v = { .bd = w.bd,
						      .target = &t,
						      .bitmap = day ? "daily" : NULL };
			const char *chain[4];
			struct blockdev *bd;

			target_make(&t, names[day], day ? names[day - 1] : NULL);
			t.opts = ignore;
			pthread_rwlock_wrlock(&w.still);
			if (!day)
				assert_int_equal(blk_bitmap_clear(w.bd, "daily", &e), 0);
			assert_int_equal(blk_backup_start(&v, 1, &b, &e), 0);
			memcpy(then, w.shadow, SIZE);
			pthread_rwlock_unlock(&w.still);
			writers_reach(&w, 50);
			assert_int_equal(blk_backup_run(b, NULL, &e), 0);
			assert_int_equal(blk_backup_end(b, &e), 0);
			writers_reach(&w, 50);
			for (unsigned i = 0; i <= day; i++)
				chain[i] = names[day - i];
			bd = chain_open(chain, day + 1, false);
			equals(bd, then, names[day]);
			assert_int_equal(blk_close(bd), 0);
			if (have_qemu())
				assert_int_equal(qemu_check(names[day]), 0);
		}
		writers_stop(&w);
		world_end(&w, whole, 4);
		free(then);
	}
}

/* the target fails in the middle: the guest does not notice, the bitmap has it all again */
static void a_failing_target_ends_the_backup_and_not_the_disk(void **state)
{
	static const char *const nth[] = { "nth=20", "on=write", "errno=28", "sticky=1", NULL };
	static const char *const ignore[] = { "backing=ignore", NULL };
	struct blk_spec t,
	    fail = { .driver = "fail", .label = "t", .fd = -1, .child = &t, .opts = nth };
	struct blk_backup *b;
	struct err e = { 0 };
	struct world w;
	struct qcow2_bitmap_info *maps;
	uint64_t dirty;

	(void)state;
	world_make(&w, 0, false);
	assert_int_equal(blk_bitmap_create(w.bd, "daily", 0, true, &e), 0);
	writers_start(&w);
	writers_reach(&w, 500);
	pthread_rwlock_wrlock(&w.still);
	assert_int_equal(qcow2_bitmap_list(w.bd, &maps, &e), 1);
	dirty = maps[0].bytes_dirty;
	free(maps);
	target_make(&t, "t", NULL);
	t.opts = ignore;
	struct blk_backup_start v = { .bd = w.bd, .target = &fail, .bitmap = "daily" };

	assert_int_equal(blk_backup_start(&v, 1, &b, &e), 0);
	pthread_rwlock_unlock(&w.still);
	writers_reach(&w, 100);
	assert_int_equal(blk_backup_run(b, NULL, &e), -ENOSPC);
	writers_reach(&w, 100);
	e = (struct err){ 0 };
	assert_int_equal(blk_backup_end(b, &e), -ENOSPC);
	assert_int_equal(qcow2_bitmap_list(w.bd, &maps, &e), 1);
	assert_true(maps[0].bytes_dirty >= dirty);
	free(maps);
	/* one that is not run at all is a cancelled one */
	target_make(&t, "t", NULL);
	t.opts = ignore;
	v.target = &t;
	assert_int_equal(blk_backup_start(&v, 1, &b, &e), 0);
	writers_reach(&w, 100);
	e = (struct err){ 0 };
	assert_int_equal(blk_backup_end(b, &e), -ECANCELED);
	/* a bitmap that is not there: nothing has changed, the descriptors are still ours */
	target_make(&t, "t", NULL);
	v.bitmap = "none";
	e = (struct err){ 0 };
	assert_int_equal(blk_backup_start(&v, 1, &b, &e), -ENOENT);
	assert_int_equal(close(t.fd), 0);
	writers_stop(&w);
	world_end(&w, whole, 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_snapshot_is_a_moment_of_all_its_disks),
		cmocka_unit_test(a_snapshot_that_cannot_be_made_changes_nothing),
		cmocka_unit_test(streaming_shortens_the_chain_under_the_writers),
		cmocka_unit_test(a_lower_layer_is_committed_under_the_writers),
		cmocka_unit_test(the_top_is_committed_and_the_lower_becomes_the_disk),
		cmocka_unit_test(what_was_cancelled_leaves_the_chain_as_it_was),
		cmocka_unit_test(backups_are_a_moment_full_and_incremental),
		cmocka_unit_test(a_failing_target_ends_the_backup_and_not_the_disk),
	};

	/* memory, where there is: the tests wait for many syncs otherwise */
	if (access("/dev/shm", W_OK) == 0)
		setenv("TMPDIR", "/dev/shm", 0);
	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
