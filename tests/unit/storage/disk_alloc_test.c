/* disk_alloc_test.c - memory that is not there: each allocation of each verb fails once, and then
 * all of them from there on.
 *
 * This program has its own malloc() and its like in front of the C library's. After each failure
 * the verb must have said so (with words) or have done its work, nothing may be lost of memory or
 * descriptors, the images must have no error, and what was flushed must be there. Sanitizers bring
 * an allocator of their own: there the test is skipped.
 */
#include "tests/unit/storage/disk_test.h"

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

#include "common/log.h"
#include "common/text.h"
#include "storage/live.h"
#include "storage/qcow2.h"

#define SIZE  (512 * KIB)
#define FILES 4

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_MALLOC 0
#else
#define OWN_MALLOC 1
#endif
#else
#define OWN_MALLOC 1
#endif

/* --- the allocator ------------------------------------------------------------------------------
 */

static struct {
	_Atomic bool armed;
	bool sticky;
	long nth;
	_Atomic long calls, live;
} mem;

#if OWN_MALLOC
/* what the C library keeps with a thread's stack is not ours to free */
static __thread bool in_thread_create;

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t m);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t a, size_t n);
void __libc_free(void *p);

static bool mem_fails(void)
{
	long n;

	if (!atomic_load(&mem.armed))
		return false;
	n = atomic_fetch_add(&mem.calls, 1) + 1;
	if (mem.sticky ? n < mem.nth : n != mem.nth)
		return false;
	errno = ENOMEM;
	return true;
}

static void *mem_count(void *p)
{
	if (p && !in_thread_create)
		atomic_fetch_add(&mem.live, 1);
	return p;
}

void *malloc(size_t n)
{
	return mem_fails() ? NULL : mem_count(__libc_malloc(n));
}

void *calloc(size_t n, size_t m)
{
	return mem_fails() ? NULL : mem_count(__libc_calloc(n, m));
}

void *realloc(void *p, size_t n)
{
	if (mem_fails())
		return NULL;
	return p ? __libc_realloc(p, n) : mem_count(__libc_realloc(p, n));
}

int posix_memalign(void **p, size_t a, size_t n)
{
	void *m = mem_fails() ? NULL : mem_count(__libc_memalign(a, n));

	if (!m)
		return ENOMEM;
	*p = m;
	return 0;
}

void *aligned_alloc(size_t a, size_t n)
{
	return mem_fails() ? NULL : mem_count(__libc_memalign(a, n));
}

void free(void *p)
{
	if (p)
		atomic_fetch_sub(&mem.live, 1);
	__libc_free(p);
}

int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
	static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
	int r;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
	in_thread_create = true;
	r = real(t, a, fn, arg);
	in_thread_create = false;
	return r;
}
#endif

/* --- fixtures: a base with data in every other 16K, an overlay with some of its own --------------
 */

static uint8_t *made[4];
static size_t made_len[4];
static uint8_t shown[SIZE]; /* what the overlay shows */
static struct timespec base_times[2];
static int files[FILES]; /* the fixture's memfds of this run */

static struct blk_spec spec_of(const char *driver, unsigned file, bool ro)
{
	return (struct blk_spec){ .driver = driver,
				  .label = "disk",
				  .fd = dup(files[file]),
				  .read_only = ro,
				  .discard = true,
				  .cache = BLK_CACHE_WRITEBACK };
}

static void fixture_make(void)
{
	struct qcow2_create cr = { .size_bytes = SIZE, .cluster_size = 16384 };
	static uint8_t buf[16384];
	struct err e = { 0 };

	for (int i = 0; i < 2; i++) {
		struct blk_spec below, s;
		struct blockdev *bd;
		struct stat st;

		files[i] = memfd_create("made", MFD_CLOEXEC);
		cr.backing_name = i ? "below" : NULL;
		cr.backing_format = i ? "qcow2" : NULL;
		assert_int_equal(qcow2_create(files[i], &cr, &e), 0);
		s = spec_of("qcow2", i, false);
		if (i) {
			below = spec_of("qcow2", 0, true);
			s.backing = &below;
		}
		bd = blk_open(&s, &e);
		assert_non_null(bd);
		for (uint64_t at = 0; at < SIZE; at += (i ? 5 : 2) * sizeof(buf)) {
			rng_fill(buf, sizeof(buf) / 8);
			memset(buf + sizeof(buf) / 8, (int)at / 512, sizeof(buf) / 8 * 7);
			assert_int_equal(
			    blk_pwrite(bd, buf, MIN(sizeof(buf) >> (2 * i), SIZE - at), at), 0);
			memcpy(shown + at, buf, sizeof(buf) >> (2 * i));
		}
		assert_int_equal(blk_close(bd), 0);
		assert_int_equal(fstat(files[i], &st), 0);
		made_len[i] = st.st_size;
		if (!i)
			base_times[0] = base_times[1] = st.st_mtim;
		made[i] = malloc(st.st_size);
		assert_int_equal(pread(files[i], made[i], st.st_size, 0), st.st_size);
	}
	for (int i = 2; i < 4; i++) {
		struct blk_spec chain[2] = { spec_of("qcow2", 1, true), spec_of("qcow2", 0, true) };
		struct blkjob_target t = { .driver = "qcow2",
					   .compress = true,
					   .create = { .zstd = i == 2, .cluster_size = 65536 } };
		struct stat st;

		chain[0].backing = &chain[1];
		files[i] = memfd_create("packed", MFD_CLOEXEC);
		t.fd = dup(files[i]);
		assert_int_equal(blkjob_convert(NULL, chain, &t, &e), 0);
		assert_int_equal(fstat(files[i], &st), 0);
		made_len[i] = st.st_size;
		made[i] = malloc(st.st_size);
		assert_int_equal(pread(files[i], made[i], st.st_size, 0), st.st_size);
	}
	for (int i = 0; i < 4; i++)
		close(files[i]);
}

/* @packed: which compressed image is to be there, 0: none */
static void fixture_begin(int packed)
{
	for (int i = 0; i < FILES; i++) {
		files[i] = memfd_create("file", MFD_CLOEXEC);
		assert_true(files[i] >= 0);
		if (i < 2)
			assert_int_equal(write(files[i], made[i], made_len[i]), made_len[i]);
	}
	if (packed)
		assert_int_equal(write(files[2], made[packed], made_len[packed]), made_len[packed]);
	/* the overlay knows when its parent was last changed */
	assert_int_equal(futimens(files[0], base_times), 0);
}

static void fixture_end(void)
{
	for (int i = 0; i < FILES; i++)
		close(files[i]);
}

static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* an opened chain's fds are its own; those of a refused one stay the caller's */
static struct blockdev *chain_open(struct err *e)
{
	struct blk_spec below = spec_of("qcow2", 0, true), s = spec_of("qcow2", 1, false);
	struct blockdev *bd;

	s.backing = &below;
	bd = blk_open(&s, e);
	if (!bd) {
		close(below.fd);
		close(s.fd);
	}
	return bd;
}

static void sound(unsigned file, const char *when, long nth)
{
	static const char *const opts[] = { "backing=ignore", "repair=no", NULL };
	struct blk_spec s = spec_of("qcow2", file, true);
	struct q2_check c;
	struct err e = { 0 };
	struct blockdev *bd;

	s.opts = opts;
	bd = blk_open(&s, &e);
	if (!bd)
		fail_msg("%s, allocation %ld: %s", when, nth, e.detail);
	assert_int_equal(q2_check_run(bd->drv, Q2_REPAIR_NONE, &c, &e), 0);
	if (c.errors)
		fail_msg("%s, allocation %ld: %s", when, nth, c.first);
	assert_int_equal(blk_close(bd), 0);
}

/* shows() - the chain shows @want but where @maybe says that it may show either. */
static void shows(const uint8_t *want, const uint8_t *other, const char *when, long nth)
{
	static uint8_t got[SIZE];
	struct err e = { 0 };
	struct blockdev *bd = chain_open(&e);

	if (!bd)
		fail_msg("%s, allocation %ld: %s", when, nth, e.detail);
	assert_int_equal(blk_pread(bd, got, SIZE, 0), 0);
	for (unsigned at = 0; at < SIZE; at += 512)
		if (memcmp(got + at, want + at, 512) && memcmp(got + at, other + at, 512))
			fail_msg("%s, allocation %ld: sector %u is lost", when, nth, at / 512);
	assert_int_equal(blk_close(bd), 0);
}

/* --- what is tried: each returns 0 or -errno, and fills @e where it failed -----------------------
 */

static uint8_t written[SIZE]; /* what it shows if all of it worked */

static int try_requests(struct err *e)
{
	static uint8_t buf[64 * KIB];
	struct blk_extent x[8];
	struct blockdev *bd = chain_open(e);
	int r, worst = 0;

	if (!bd)
		return -e->num;
	for (unsigned i = 0; i < 6; i++) {
		uint64_t at = i * 80 * KIB + 512, len = i % 2 ? 40 * KIB : 4096;

		memset(buf, 0x80 + i, len);
		r = blk_pwrite(bd, buf, len, at);
		worst = r ? r : worst;
		r = i % 2 ? blk_flush(bd) : blk_pread(bd, buf, sizeof(buf), at);
		worst = r ? r : worst;
	}
	r = blk_zero(bd, 176 * KIB, 48 * KIB, true);
	worst = r ? r : worst;
	r = blk_extents(bd, 0, x, 8);
	worst = r < 0 ? r : worst;
	r = blk_close(bd);
	return r ? r : worst;
}

static int try_bitmaps(struct err *e)
{
	struct blockdev *bd = chain_open(e);
	struct blk_bits bits = { 0 };
	uint8_t buf[4096];
	int r, r2;

	if (!bd)
		return -e->num;
	r = blk_bitmap_create(bd, "b", 4096, true, e);
	if (!r)
		r = blk_pread(bd, buf, sizeof(buf), 8192);
	if (!r)
		r = blk_pwrite(bd, buf, sizeof(buf), 8192);
	if (!r)
		r = blk_bitmap_take(bd, "b", &bits, e);
	if (!r) {
		r = blk_bitmap_give_back(bd, "b", &bits, e);
		blk_bits_fini(&bits);
	}
	if (!r)
		r = blk_bitmap_create(bd, "c", 65536, false, e);
	if (!r)
		r = blk_bitmap_merge(bd, "c", "b", e);
	r2 = blk_close(bd);
	return r ? r : r2;
}

/* chain_specs() - for jobs, which take the fds whatever comes */
static const struct blk_spec *chain_specs(struct blk_spec s[2], bool below_writable)
{

	s[0] = spec_of("qcow2", 1, false);
	s[1] = spec_of("qcow2", 0, !below_writable);
	s[0].backing = &s[1];
	return s;
}

static int try_convert(struct err *e)
{
	struct blkjob job = { .threads = 2 };
	struct blk_spec s[2];
	struct blkjob_target t = { .fd = dup(files[2]),
				   .driver = "qcow2",
				   .compress = true,
				   .create = { .zstd = true, .cluster_size = 65536 } };

	return blkjob_convert(&job, chain_specs(s, false), &t, e);
}

/* a compressed image is read; what was not read for want of memory is not damaged */
static int try_unpack(struct err *e)
{
	static uint8_t got[SIZE];
	struct blk_spec s = spec_of("qcow2", 2, false);
	struct blockdev *bd = blk_open(&s, e);
	int r = 0, r2;

	if (!bd) {
		close(s.fd);
		return -e->num;
	}
	memset(got, 0, SIZE);
	for (uint64_t at = 0; at < SIZE && !r; at += 64 * KIB)
		r = blk_pread(bd, got + at, 64 * KIB, at);
	if (!r && memcmp(got, shown, SIZE))
		r = EINVAL;
	r2 = blk_close(bd);
	return r == -EUCLEAN ? EUCLEAN : r ? r : r2;
}

static int try_unpack_zlib(struct err *e)
{
	return try_unpack(e);
}

static int try_info_map_check(struct err *e)
{
	struct blk_spec s[2];
	struct text json = { 0 };
	struct blkjob_check c;
	int r = blkjob_info(chain_specs(s, false), &json, e);

	text_free(&json);
	if (!r)
		r = blkjob_map(NULL, chain_specs(s, false), &json, e);
	text_free(&json);
	if (!r)
		r = blkjob_check(chain_specs(s, false), BLKJOB_REPAIR_ALL, &c, e);
	return r;
}

static int try_compact(struct err *e)
{
	struct blk_spec s[2];
	uint64_t freed;

	return blkjob_compact(NULL, chain_specs(s, false), &freed, e);
}

static int try_commit(struct err *e)
{
	struct blk_spec s[2];

	return blkjob_commit(NULL, chain_specs(s, true), e);
}

/* live_commit() - of the layer @depth, while it is open. */
static int live_commit(unsigned depth, const struct blkjob *job, struct err *e)
{
	struct blockdev *bd = chain_open(e);
	int into = dup(files[0]), r, r2;

	if (!bd) {
		close(into);
		return -e->num;
	}
	r = blk_live_commit(bd, depth, into, "below", "qcow2", job, e);
	if (r)
		close(into);
	r2 = blk_close(bd);
	return r ? r : r2;
}

static int try_live_commit(struct err *e)
{
	_Atomic bool stop = true;
	const struct blkjob job = { .cancel = &stop };
	int r = live_commit(0, &job, e);

	return r == -ECANCELED ? 0 : r ? r : EINVAL;
}

static int try_snapshot(struct err *e)
{
	struct qcow2_create cr = { .size_bytes = SIZE,
				   .cluster_size = 16384,
				   .backing_name = "disk",
				   .backing_format = "qcow2" };
	struct blockdev *bd = chain_open(e);
	uint8_t buf[4096];
	int r, r2;

	if (!bd)
		return -e->num;
	r = qcow2_create(files[3], &cr, e);
	if (!r) {
		struct blk_spec over = spec_of("qcow2", 3, false);
		struct blk_live_overlay v = { bd, &over };

		r = blk_live_snapshot(&v, 1, e);
		if (r)
			close(over.fd);
	}
	r2 = blk_pread(bd, buf, sizeof(buf), 0);
	if (!r2 && !r)
		r2 = blk_live_stream(bd, UINT32_MAX, NULL, NULL, NULL, e);
	r = r ? r : r2;
	r2 = blk_close(bd);
	return r ? r : r2;
}

/* --- all of them, each allocation ---------------------------------------------------------------
 */

static void each_allocation(const char *what, int (*fn)(struct err *e), bool said)
{
	unsigned failed = 0, points = 0;

	for (int sticky = 0; sticky < 2; sticky++) {
		long nth = sticky, step = 1;

		for (;; nth += step) {
			struct err e = { 0 };
			unsigned fds;
			long live;
			int r;

			fixture_begin(fn == try_unpack ? 2 : fn == try_unpack_zlib ? 3 : 0);
			fds = open_fds();
			live = atomic_load(&mem.live);
			atomic_store(&mem.calls, 0);
			mem.nth = nth; /* 0: none, which tells what is kept once for all */
			mem.sticky = sticky && nth;
			atomic_store(&mem.armed, true);
			r = fn(&e);
			atomic_store(&mem.armed, false);
			if (nth && atomic_load(&mem.live) != live)
				fail_msg("%s: allocation %ld%s: %ld blocks are lost", what, nth,
					 sticky ? " and all after" : "",
					 atomic_load(&mem.live) - live);
			if (open_fds() != fds)
				fail_msg("%s: allocation %ld: %u descriptors open instead of %u",
					 what, nth, open_fds(), fds);
			if (r > 0 || (!nth && r))
				fail_msg("%s: allocation %ld: %d (%s)", what, nth, r, e.detail);
			if (r && said && !e.detail[0])
				fail_msg("%s: allocation %ld: %s without a word", what, nth,
					 strerror(-r));
			sound(0, what, nth);
			sound(1, what, nth);
			shows(shown, fn == try_requests ? written : shown, what, nth);
			if (!r && fn == try_requests)
				shows(written, written, what, nth);
			fixture_end();
			failed += r != 0;
			points++;
			if (nth && atomic_load(&mem.calls) < nth)
				break;
			step = nth > 100 && !test_long() ? 7 : 1;
		}
	}
	print_message("  %s: %u points, %u failed\n", what, points, failed);
	assert_true(failed > 2);
}

static void any_failed_allocation_is_reported_and_harms_nothing(void **state)
{
	(void)state;
#if !OWN_MALLOC
	print_message("skipped: the sanitizer brings its own allocator\n");
	skip();
#endif
	log_set_level(LOG_ERR_ - 1);
	rng_seed(11);
	fixture_make();
	memcpy(written, shown, SIZE);
	for (unsigned i = 0; i < 6; i++)
		memset(written + i * 80 * KIB + 512, 0x80 + i, i % 2 ? 40 * KIB : 4096);
	memset(written + 176 * KIB, 0, 48 * KIB);
	each_allocation("requests", try_requests, false);
	each_allocation("bitmaps", try_bitmaps, false);
	each_allocation("convert", try_convert, true);
	each_allocation("reading zstd", try_unpack, false);
	each_allocation("reading zlib", try_unpack_zlib, false);
	each_allocation("info, map, check", try_info_map_check, true);
	each_allocation("compact", try_compact, true);
	each_allocation("commit", try_commit, true);
	each_allocation("cancelled live commit", try_live_commit, false);
	each_allocation("snapshot, stream", try_snapshot, false);
	for (int i = 0; i < 4; i++)
		free(made[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_failed_allocation_is_reported_and_harms_nothing),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
