/* blk_queue_test.c - many requests in flight on several queues: each sector holds what was written.
 *
 * Each queue has its thread and its half of the sectors of every cluster, so that the queues meet
 * in the same clusters, tables and refcounts. Writes, zeroes, discards (followed by zeroes), reads
 * that are checked, and flushes run at depth 32, with kernel AIO and with workers alone.
 */
#include "tests/unit/storage/disk_test.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/mman.h>

#include "common/list.h"

#define SIZE   (48 * MIB)
#define DEPTH  32
#define QUEUES 2
#define GRAIN  4096u

struct hammer;

struct op {
	struct blk_req r;
	struct iovec v[2];
	struct hammer *h;
	uint8_t *buf;
	uint64_t first, n; /* sectors */
	bool then_zero;
};

struct hammer {
	struct blockdev *bd;
	struct loop *loop;
	struct blk_queue *q;
	uint8_t *shadow, *busy;
	uint64_t seed;
	unsigned id, left, running, grain, errors;
	struct op ops[DEPTH];
	pthread_t thread;
};

static uint64_t hammer_rng(struct hammer *h)
{
	h->seed ^= h->seed << 13;
	h->seed ^= h->seed >> 7;
	h->seed ^= h->seed << 17;
	return (h->seed * 0x2545f4914f6cdd1dULL) >> 11;
}

static void op_done(struct blk_req *r, int result);

/* op_start() - a free run of sectors of this queue's share. */
static void op_start(struct op *o)
{
	struct hammer *h = o->h;
	unsigned what = hammer_rng(h) % 100, g = h->grain / 512;

	if (!h->left)
		return;
	h->left--;
	do {
		o->first = hammer_rng(h) % (SIZE / h->grain);
		if (o->first % QUEUES != h->id)
			o->first = o->first - o->first % QUEUES + h->id;
		o->first *= g;
		o->n = g;
	} while (h->busy[o->first / g]);
	h->busy[o->first / g] = 1;
	o->then_zero = false;
	o->r = (struct blk_req){ .off_bytes = o->first * 512,
				 .len_bytes = o->n * 512,
				 .iov = o->v,
				 .niov = 2,
				 .done = op_done,
				 .arg = o };
	o->v[0] = (struct iovec){ o->buf, o->n * 512 / 2 };
	o->v[1] = (struct iovec){ o->buf + o->n * 512 / 2, o->n * 512 / 2 };
	if (what < 50) {
		o->r.op = BLK_WRITE;
		o->r.flags = what < 3 ? BLK_FUA : 0;
		for (uint64_t i = 0; i < o->n * 64; i++)
			((uint64_t *)(void *)o->buf)[i] = hammer_rng(h);
	} else if (what < 60) {
		o->r.op = BLK_WRITE_ZEROES;
		o->r.flags = what & 1 ? BLK_MAY_UNMAP : 0;
	} else if (what < 65) {
		o->r.op = BLK_DISCARD;
		o->then_zero = true;
	} else if (what < 68) {
		o->r.op = BLK_FLUSH;
	} else {
		o->r.op = BLK_READ;
	}
	h->running++;
	blk_submit(h->q, &o->r);
}

static void op_done(struct blk_req *r, int result)
{
	struct op *o = r->arg;
	struct hammer *h = o->h;
	uint8_t *s = h->shadow + o->first * 512;

	h->running--;
	if (result && !h->errors++)
		print_message("op %d at sector %llu: %s\n", r->op, (unsigned long long)o->first,
			      strerror(-result));
	if (o->then_zero) {
		o->then_zero = false;
		o->r.op = BLK_WRITE_ZEROES;
		o->r.flags = BLK_MAY_UNMAP;
		h->running++;
		blk_submit(h->q, &o->r);
		return;
	}
	if (r->op == BLK_WRITE)
		memcpy(s, o->buf, o->n * 512);
	else if (r->op == BLK_WRITE_ZEROES)
		memset(s, 0, o->n * 512);
	else if (r->op == BLK_READ && memcmp(s, o->buf, o->n * 512) && !h->errors++)
		print_message("sector %llu: read differs\n", (unsigned long long)o->first);
	h->busy[o->first / (h->grain / 512)] = 0;
	op_start(o);
	if (!h->running)
		loop_stop(h->loop);
}

static void *hammer_run(void *arg)
{
	struct hammer *h = arg;

	blk_queue_plug(h->q);
	for (unsigned i = 0; i < DEPTH; i++)
		op_start(&h->ops[i]);
	blk_queue_unplug(h->q);
	loop_run(h->loop);
	return NULL;
}

static void hammer_disk(const char *name, const struct qcow2_create *cr, const char *aio,
			enum blk_cache cache, unsigned grain, bool overlay)
{
	const char *const opts[] = { aio, "cache-bytes=262144", NULL };
	struct blk_spec back = {
		.driver = "file", .label = "base", .read_only = true, .cache = BLK_CACHE_WRITEBACK
	};
	struct blk_spec s = {
		.driver = "qcow2", .label = name, .discard = true, .cache = cache, .opts = opts
	};
	uint8_t *shadow = calloc(1, SIZE), *got = malloc(SIZE);
	struct hammer h[QUEUES] = { 0 };
	struct err e = { 0 };

	if (overlay) {
		int fd = disk_fd("base", O_RDWR | O_CREAT | O_TRUNC);

		rng_fill(shadow, SIZE);
		assert_int_equal(write(fd, shadow, SIZE), SIZE);
		close(fd);
		back.fd = disk_fd("base", O_RDONLY);
		s.backing = &back;
	}
	disk_create(name, cr);
	s.fd = disk_fd(name, O_RDWR);
	struct blockdev *bd = blk_open(&s, &e);

	if (!bd)
		fail_msg("%s", e.detail);
	for (unsigned i = 0; i < QUEUES; i++) {
		h[i] = (struct hammer){ .bd = bd,
					.loop = loop_new(),
					.shadow = shadow,
					.seed = 77 + i + grain,
					.id = i,
					.left = test_long() ? 200000 : 6000,
					.grain = grain };
		h[i].busy = calloc(1, SIZE / grain);
		h[i].q = blk_queue_new(bd, h[i].loop, &e);
		assert_non_null(h[i].q);
		for (unsigned k = 0; k < DEPTH; k++) {
			h[i].ops[k].h = &h[i];
			assert_int_equal(posix_memalign((void **)&h[i].ops[k].buf, 4096, grain), 0);
		}
	}
	for (unsigned i = 0; i < QUEUES; i++)
		assert_int_equal(pthread_create(&h[i].thread, NULL, hammer_run, &h[i]), 0);
	for (unsigned i = 0; i < QUEUES; i++) {
		pthread_join(h[i].thread, NULL);
		assert_int_equal(h[i].errors, 0);
		assert_int_equal(blk_queue_inflight(h[i].q), 0);
		blk_queue_free(h[i].q);
		loop_free(h[i].loop);
		free(h[i].busy);
		for (unsigned k = 0; k < DEPTH; k++)
			free(h[i].ops[k].buf);
	}
	assert_int_equal(blk_pread(bd, got, SIZE, 0), 0);
	for (uint64_t i = 0; i < SIZE; i += 512)
		if (memcmp(got + i, shadow + i, 512))
			fail_msg("%s: sector at %llu differs", name, (unsigned long long)i);
	assert_int_equal(blk_close(bd), 0);
	if (have_qemu())
		assert_int_equal(qemu_check(name), 0);
	bd = disk_open(name, "qcow2", overlay ? (back.fd = disk_fd("base", O_RDONLY), &back) : NULL,
		       true, BLK_CACHE_WRITEBACK);
	assert_int_equal(blk_pread(bd, got, SIZE, 0), 0);
	assert_memory_equal(got, shadow, SIZE);
	assert_int_equal(blk_close(bd), 0);
	free(shadow);
	free(got);
}

static void queues_meet_in_extended_l2_clusters(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE };

	(void)state;
	hammer_disk("x", &cr, "aio=on", BLK_CACHE_NONE, 4096, true);
	hammer_disk("x", &cr, "aio=off", BLK_CACHE_NONE, 4096, true);
	hammer_disk("x", &cr, "aio=on", BLK_CACHE_WRITEBACK, 8192, true);
}

static void queues_meet_in_units_smaller_than_a_write_and_larger(void **state)
{
	struct qcow2_create plain = { .size_bytes = SIZE, .compat = true };
	struct qcow2_create small = { .size_bytes = SIZE, .compat = true, .cluster_size = 4096 };
	struct qcow2_create ext = { .size_bytes = SIZE, .cluster_size = 2 * MIB };

	(void)state;
	hammer_disk("y", &plain, "aio=on", BLK_CACHE_NONE, 4096, true);
	hammer_disk("y", &small, "aio=on", BLK_CACHE_NONE, 4096, false);
	hammer_disk("y", &small, "aio=off", BLK_CACHE_WRITEBACK, 1024, true);
	hammer_disk("y", &ext, "aio=on", BLK_CACHE_NONE, 16384, true);
}

static void flush_done(struct blk_req *r, int result)
{
	*(int *)r->arg = result;
}

static unsigned threads(void)
{
	DIR *d = opendir("/proc/self/task");
	unsigned n = 0;

	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

/* The answer comes on the loop all the same. */
static void a_small_read_from_memory_takes_no_worker(void **state)
{
	int fd = memfd_create("ram", MFD_CLOEXEC), result = 1;
	struct blk_spec s = { .driver = "file", .label = "ram", .fd = fd };
	struct err e = { 0 };
	struct loop *l = loop_new();
	unsigned before = threads();
	char want[4096], got[4096];
	struct iovec v = { got, sizeof(got) };

	(void)state;
	memset(want, 0x5a, sizeof(want));
	assert_int_equal(ftruncate(fd, MIB), 0);
	assert_int_equal(pwrite(fd, want, sizeof(want), 8192), sizeof(want));
	struct blockdev *bd = blk_open(&s, &e);

	assert_non_null(bd);
	struct blk_queue *q = blk_queue_new(bd, l, &e);
	struct blk_req r = { .op = BLK_READ,
			     .off_bytes = 8192,
			     .len_bytes = sizeof(got),
			     .iov = &v,
			     .niov = 1,
			     .done = flush_done,
			     .arg = &result };

	blk_submit(q, &r);
	assert_int_equal(result, 1); /* never inside */
	assert_int_equal(threads(), before);
	while (blk_queue_inflight(q))
		assert_true(loop_run_once(l, 5000) >= 0);
	assert_int_equal(result, 0);
	assert_memory_equal(got, want, sizeof(got));
	blk_queue_free(q);
	assert_int_equal(blk_close(bd), 0);
	loop_free(l);
}

static void a_request_out_of_range_completes_with_einval_on_the_loop(void **state)
{
	struct qcow2_create cr = { .size_bytes = SIZE };
	struct err e = { 0 };
	int result = 1;
	struct loop *l = loop_new();

	(void)state;
	disk_create("z", &cr);
	struct blockdev *bd = disk_open("z", "qcow2", NULL, false, BLK_CACHE_NONE);
	struct blk_queue *q = blk_queue_new(bd, l, &e);
	struct blk_req r = { .op = BLK_DISCARD,
			     .off_bytes = SIZE,
			     .len_bytes = 512,
			     .done = flush_done,
			     .arg = &result };

	blk_submit(q, &r);
	assert_int_equal(result, 1); /* never inside */
	while (blk_queue_inflight(q))
		assert_true(loop_run_once(l, 5000) >= 0);
	assert_int_equal(result, -EINVAL);
	blk_queue_free(q);
	loop_free(l);
	assert_int_equal(blk_close(bd), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(queues_meet_in_extended_l2_clusters),
		cmocka_unit_test(queues_meet_in_units_smaller_than_a_write_and_larger),
		cmocka_unit_test(a_small_read_from_memory_takes_no_worker),
		cmocka_unit_test(a_request_out_of_range_completes_with_einval_on_the_loop),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
