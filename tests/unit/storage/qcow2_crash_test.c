/* qcow2_crash_test.c - every state that a crash can leave is a good image with all flushed data.
 *
 * Random operations run over the log filter. Then for each prefix of the log: what the last
 * completed sync covers is there, and of the rest all, or a random subset, torn at random 512-byte
 * sectors.
 * In each such state the checker must find no error (leaks are allowed), and each sector must hold
 * what it held at the last completed flush or what was written to it later. A sample of the states
 * is judged by qemu-img and written on. VMD_TEST_LONG=1 makes ten times the states.
 */
#include "tests/unit/storage/disk_test.h"

#include <sys/mman.h>

#include "storage/blk_log.h"
#include "storage/qcow2.h"

#define FILE_CAP    (6 * MIB)
#define HISTORY_MAX 64

struct crash_case {
	const char *name;
	struct qcow2_create cr;
	bool backing;
	unsigned ops, states;
};

struct sector_history {
	uint32_t version[HISTORY_MAX]; /* 0 = zeroes, or the backing file's */
	size_t at[HISTORY_MAX];	       /* log length when it was started */
	unsigned n;
};

struct guest_flush {
	size_t done_at;	    /* log length at completion */
	size_t started_ops; /* operations completed before */
};

struct crash {
	const struct crash_case *c;
	uint64_t size, sectors;
	struct blk_log *log;
	struct sector_history *hist;
	struct guest_flush flushes[512];
	unsigned nflush;
	size_t *hist_floor; /* per flush and sector: index in history that is stable; flattened */
	int memfd;
	uint8_t *file, *stable; /* the state under test (shared with memfd); what is synced */
	int backing_memfd;
	uint64_t tried, leaks;
};

/* the content of a sector at a version: the backing's has a version too */
static void sector_make(uint8_t *p, uint64_t sector, uint32_t version)
{
	uint64_t x = (sector << 32 | version) * 0x9e3779b97f4a7c15ULL;

	if (!version) {
		memset(p, 0, 512);
		return;
	}
	for (int i = 0; i < 64; i++) {
		uint64_t v = x + (uint64_t)i * 0xbf58476d1ce4e5b9ULL;

		memcpy(p + 8 * i, &v, 8);
	}
}

static void crash_write(struct crash *k, struct blockdev *bd, uint64_t sector, uint64_t n,
			uint32_t version, bool zero)
{
	static uint8_t buf[256 * 512];

	for (uint64_t s = 0; s < n; s++) {
		struct sector_history *h = &k->hist[sector + s];

		assert_true(h->n < HISTORY_MAX);
		h->at[h->n] = k->log->n;
		h->version[h->n++] = zero ? 0 : version;
		sector_make(buf + s * 512, sector + s, version);
	}
	if (zero)
		assert_int_equal(blk_zero(bd, sector * 512, n * 512, rng() & 1), 0);
	else
		assert_int_equal(blk_pwrite(bd, buf, n * 512, sector * 512), 0);
}

static void crash_record(struct crash *k)
{
	char opt[64];
	const char *const opts[] = { opt, NULL }, *const q_opts[] = {
		k->c->name[0] == 'p' ? "prealloc=on" : "prealloc=off", NULL
	};
	struct err e = { 0 };
	struct blk_spec file = { .driver = "file",
				 .label = "file",
				 .fd = disk_fd("crash", O_RDWR),
				 .discard = true,
				 .cache = BLK_CACHE_WRITEBACK };
	struct blk_spec log = { .driver = "log",
				.label = "log",
				.fd = -1,
				.discard = true,
				.child = &file,
				.opts = opts };
	struct blk_spec back = {
		.driver = "file", .label = "back", .read_only = true, .cache = BLK_CACHE_WRITEBACK
	};
	struct blk_spec top = { .driver = "qcow2",
				.label = "crash",
				.fd = -1,
				.discard = true,
				.child = &log,
				.opts = q_opts };
	struct blockdev *bd;

	snprintf(opt, sizeof(opt), "log=%p", (void *)k->log);
	if (k->c->backing) {
		back.fd = dup(k->backing_memfd);
		top.backing = &back;
	}
	bd = blk_open(&top, &e);
	if (!bd)
		fail_msg("%s", e.detail);
	for (unsigned i = 0; i < k->c->ops; i++) {
		uint64_t n = 1 + rng_below(rng_below(8) ? 12 : 120), sector = rng_below(k->sectors);
		unsigned what = rng_below(100);

		n = MIN(n, k->sectors - sector);
		if (what < 20 && k->nflush < 500) {
			struct guest_flush *f = &k->flushes[k->nflush];

			for (uint64_t s = 0; s < k->sectors; s++)
				k->hist_floor[k->nflush * k->sectors + s] = k->hist[s].n - 1;
			assert_int_equal(blk_flush(bd), 0);
			f->done_at = k->log->n;
			k->nflush++;
		} else {
			crash_write(k, bd, sector, n, i + 2, what > 80);
		}
	}
	assert_int_equal(blk_flush(bd), 0);
	size_t n = k->log->n;

	assert_int_equal(blk_close(bd), 0);
	assert_false(k->log->failed);
	k->log->n = n; /* what closing wrote is not replayed, and is leaked on purpose */
}

/* sector_is() - a sector is written whole or not at all, so its ends tell; each 16th state is
 * compared to the last byte. */
static bool sector_is(const uint8_t *p, uint64_t sector, uint32_t version, bool whole)
{
	uint8_t want[512];
	uint64_t x = version ? (sector << 32 | version) * 0x9e3779b97f4a7c15ULL : 0;
	uint64_t last = version ? x + 63 * 0xbf58476d1ce4e5b9ULL : 0;

	if (memcmp(p, &x, 8) || memcmp(p + 504, &last, 8))
		return false;
	if (!whole)
		return true;
	sector_make(want, sector, version);
	return memcmp(p, want, 512) == 0;
}

/* --- judging a state ---------------------------------------------------------------------------
 */

static struct blockdev *crash_open(struct crash *k, bool ro)
{
	static const char *const opts[] = { "repair=no", "prealloc=off", "lock=off", NULL };
	struct err e = { 0 };
	struct blk_spec back = { .driver = "file",
				 .label = "back",
				 .read_only = true,
				 .cache = BLK_CACHE_WRITEBACK,
				 .opts = opts };
	struct blk_spec top = { .driver = "qcow2",
				.label = "state",
				.fd = dup(k->memfd),
				.read_only = ro,
				.cache = BLK_CACHE_UNSAFE,
				.opts = opts };
	struct blockdev *bd;

	if (k->c->backing) {
		back.fd = dup(k->backing_memfd);
		top.backing = &back;
	}
	bd = blk_open(&top, &e);
	if (!bd)
		fail_msg("state %llu: %s", (unsigned long long)k->tried, e.detail);
	return bd;
}

static void crash_judge(struct crash *k, size_t prefix)
{
	static uint8_t got[1 * MIB];
	struct blockdev *bd = crash_open(k, true);
	struct q2_check c;
	struct err e = { 0 };
	int last = -1;

	k->tried++;
	assert_int_equal(q2_check_run(bd->drv, Q2_REPAIR_NONE, &c, &e), 0);
	if (c.errors)
		fail_msg("%s: prefix %zu of %zu, state %llu: %s", k->c->name, prefix, k->log->n,
			 (unsigned long long)k->tried, c.first);
	k->leaks += c.leaks;
	for (unsigned i = 0; i < k->nflush && k->flushes[i].done_at <= prefix; i++)
		last = i;
	assert_int_equal(blk_pread(bd, got, k->size, 0), 0);
	for (uint64_t s = 0; s < k->sectors; s++) {
		struct sector_history *h = &k->hist[s];
		size_t from = last < 0 ? 0 : k->hist_floor[last * k->sectors + s];
		bool ok = false;

		for (size_t i = from; i < h->n && !ok && (i == from || h->at[i] <= prefix); i++) {
			ok = sector_is(got + s * 512, s, h->version[i], k->tried % 16 == 0);
		}
		if (!ok)
			fail_msg("%s: prefix %zu of %zu, state %llu: sector %llu holds neither its "
				 "flushed nor a later content",
				 k->c->name, prefix, k->log->n, (unsigned long long)k->tried,
				 (unsigned long long)s);
	}
	assert_int_equal(blk_close(bd), 0);
}

/* --- building states
 * ------------------------------------------------------------------------------ */

static void crash_apply(uint8_t *to, const struct blk_log_rec *r, bool torn)
{
	if (r->kind != BLK_LOG_WRITE && r->kind != BLK_LOG_ZERO)
		return;
	if (r->off + r->len > FILE_CAP)
		fail_msg("the log writes past the test's file: %llu", (unsigned long long)r->off);
	for (uint64_t at = 0; at < r->len;) {
		uint64_t n = MIN(512 - (r->off + at) % 512, r->len - at);

		if (!torn || (rng() & 4)) {
			if (r->kind == BLK_LOG_WRITE)
				memcpy(to + r->off + at, r->data + at, n);
			else
				memset(to + r->off + at, 0, n);
		}
		at += n;
	}
}

static void crash_revert(struct crash *k, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++) {
		const struct blk_log_rec *r = &k->log->rec[i];

		if (r->kind == BLK_LOG_WRITE || r->kind == BLK_LOG_ZERO)
			memcpy(k->file + r->off, k->stable + r->off, r->len);
	}
}

static void crash_sample(struct crash *k)
{
	uint8_t buf[4096];
	struct blockdev *bd;
	int fd;

	if (have_qemu()) {
		fd = disk_fd("state", O_RDWR | O_CREAT | O_TRUNC);
		assert_int_equal(write(fd, k->file, FILE_CAP), FILE_CAP);
		close(fd);
		/* 0: clean, 3: leaks only */
		int r = run("qemu-img check -q -f qcow2 '%s' >/dev/null 2>&1", disk_path("state"));

		if (r != 0 && r != 3)
			fail_msg("qemu-img check says %d", r);
	}
	/* the guest goes on after the crash; the state is put back afterwards */
	uint8_t *keep = malloc(FILE_CAP);
	struct q2_check c;
	struct err e = { 0 };

	memcpy(keep, k->file, FILE_CAP);
	bd = crash_open(k, false);
	for (int i = 0; i < 20; i++) {
		uint64_t off = rng_below(k->size / 512 - 8) * 512;

		rng_fill(buf, sizeof(buf));
		assert_int_equal(blk_pwrite(bd, buf, sizeof(buf), off), 0);
	}
	assert_int_equal(blk_close(bd), 0);
	bd = crash_open(k, true);
	assert_int_equal(q2_check_run(bd->drv, Q2_REPAIR_NONE, &c, &e), 0);
	if (c.errors)
		fail_msg("%s: after writing on: %s", k->c->name, c.first);
	assert_int_equal(blk_close(bd), 0);
	assert_int_equal(ftruncate(k->memfd, FILE_CAP), 0);
	memcpy(k->file, keep, FILE_CAP);
	free(keep);
}

static void crash_replay(struct crash *k)
{
	size_t stable_n = 0,
	       each = MAX(k->c->states * (test_long() ? 10 : 1) / MAX(k->log->n, (size_t)1),
			  (size_t)1);
	size_t samples = MAX(k->log->n / 6, (size_t)1);

	for (size_t p = 0; p <= k->log->n; p++) {
		if (p && k->log->rec[p - 1].kind == BLK_LOG_SYNC) {
			size_t covers = k->log->rec[p - 1].off;

			for (size_t i = stable_n; i < covers; i++) {
				crash_apply(k->stable, &k->log->rec[i], false);
				crash_apply(k->file, &k->log->rec[i], false);
			}
			stable_n = MAX(stable_n, covers);
		}
		for (size_t t = 0; t < each; t++) {
			for (size_t i = stable_n; i < p; i++)
				if (t == 0 || (rng() & 8))
					crash_apply(k->file, &k->log->rec[i],
						    t > 0 && (rng() & 16));
			crash_judge(k, p);
			if (t == 1 && p % samples == 0)
				crash_sample(k);
			crash_revert(k, stable_n, p);
		}
	}
}

static void crash_run(const struct crash_case *c)
{
	struct crash k = { .c = c, .size = c->cr.size_bytes, .sectors = c->cr.size_bytes / 512 };
	int fd;

	k.log = blk_log_new();
	k.hist = calloc(k.sectors, sizeof(*k.hist));
	k.hist_floor = calloc(512 * k.sectors, sizeof(*k.hist_floor));
	k.memfd = memfd_create("state", MFD_CLOEXEC);
	k.backing_memfd = memfd_create("backing", MFD_CLOEXEC);
	assert_int_equal(ftruncate(k.memfd, FILE_CAP), 0);
	k.file = mmap(NULL, FILE_CAP, PROT_READ | PROT_WRITE, MAP_SHARED, k.memfd, 0);
	k.stable = calloc(1, FILE_CAP);
	assert_true(k.file != MAP_FAILED);
	for (uint64_t s = 0; s < k.sectors; s++) {
		uint8_t b[512];

		k.hist[s].n = 1;
		k.hist[s].version[0] = c->backing ? 1 : 0;
		sector_make(b, s, 1);
		assert_int_equal(pwrite(k.backing_memfd, b, 512, s * 512), 512);
	}
	disk_create("crash", &c->cr);
	fd = disk_fd("crash", O_RDONLY);
	assert_true(read(fd, k.stable, FILE_CAP) > 0);
	close(fd);
	memcpy(k.file, k.stable, FILE_CAP);
	crash_record(&k);
	crash_replay(&k);
	print_message("  %s: %zu records, %llu states, %llu leaks seen\n", c->name, k.log->n,
		      (unsigned long long)k.tried, (unsigned long long)k.leaks);
	munmap(k.file, FILE_CAP);
	close(k.memfd);
	close(k.backing_memfd);
	blk_log_free(k.log);
	free(k.hist);
	free(k.hist_floor);
	free(k.stable);
}

static void no_crash_loses_flushed_data_or_damages_the_image(void **state)
{
	static const struct crash_case cases[] = {
		{ "extended L2, 16K, overlay",
		  { .size_bytes = 256 * KIB, .cluster_size = 16384 },
		  true,
		  150,
		  21000 },
		{ "preallocating, 128K", { .size_bytes = 512 * KIB }, true, 80, 10000 },
		{ "64K compat", { .size_bytes = 256 * KIB, .compat = true }, false, 100, 10000 },
		{ "4K, overlay",
		  { .size_bytes = 256 * KIB, .cluster_size = 4096, .compat = true },
		  true,
		  150,
		  21000 },
		{ "512, refcount 64: growing tables",
		  { .size_bytes = 256 * KIB,
		    .cluster_size = 512,
		    .compat = true,
		    .refcount_bits = 64 },
		  true,
		  150,
		  22000 },
		{ "1K, refcount 1",
		  { .size_bytes = 192 * KIB,
		    .cluster_size = 1024,
		    .compat = true,
		    .refcount_bits = 1 },
		  false,
		  150,
		  20000 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		rng_seed(1000 + i);
		crash_run(&cases[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_crash_loses_flushed_data_or_damages_the_image),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
