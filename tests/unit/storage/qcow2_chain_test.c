/* qcow2_chain_test.c - reading through many layers gives what the layers hold, however it is read.
 *
 * Chains of mixed cluster sizes get random writes and zeroes in each layer, in pieces smaller and
 * larger than what the merged map knows as one; then the whole disk is read in random pieces, with
 * workers and with kernel AIO, twice (the second time from the map), against a flat shadow.
 */
#include "tests/unit/storage/disk_test.h"

#include "common/loop.h"

#define SIZE   (12 * MIB + 64 * KIB) /* not a multiple of the map's stretch */
#define LAYERS 14
#define READS  3000

static uint8_t *shadow;

static void chain_specs(struct blk_spec *specs, unsigned n, bool top_rw, const char *const *opts)
{
	static char names[LAYERS][16];

	for (unsigned i = 0; i < n; i++) {
		bool rw = top_rw && i + 1 == n;

		snprintf(names[i], sizeof(names[i]), "layer%u", i);
		specs[i] = (struct blk_spec){ .driver = i ? "qcow2" : "file",
					      .label = names[i],
					      .fd = disk_fd(names[i], rw ? O_RDWR : O_RDONLY),
					      .read_only = !rw,
					      .discard = true,
					      .cache = i % 3 ? BLK_CACHE_NONE : BLK_CACHE_WRITEBACK,
					      .backing = i ? &specs[i - 1] : NULL,
					      .opts = i + 1 == n ? opts : NULL };
	}
}

static void chain_make(void)
{
	static const uint32_t sizes[] = { 128 * KIB, 64 * KIB, 16 * KIB, 1 * MIB };
	struct blk_spec specs[LAYERS];
	uint8_t *buf = malloc(MIB);
	struct err e = { 0 };
	int fd = disk_fd("layer0", O_RDWR | O_CREAT | O_TRUNC);

	shadow = malloc(SIZE);
	assert_true(shadow && buf);
	rng_fill(shadow, SIZE - 2 * MIB); /* the base ends before the disk does */
	memset(shadow + SIZE - 2 * MIB, 0, 2 * MIB);
	assert_int_equal(pwrite(fd, shadow, SIZE - 2 * MIB, 0), (ssize_t)(SIZE - 2 * MIB));
	close(fd);
	for (unsigned i = 1; i < LAYERS; i++) {
		struct qcow2_create c = { .size_bytes = SIZE,
					  .cluster_size = sizes[i % 4],
					  .compat = i % 5 == 0,
					  .backing_name = "below",
					  .backing_format = i > 1 ? "qcow2" : "raw" };
		struct blockdev *bd;
		char name[16];

		snprintf(name, sizeof(name), "layer%u", i);
		disk_create(name, &c);
		chain_specs(specs, i + 1, true, NULL);
		bd = blk_open(&specs[i], &e);
		if (!bd)
			fail_msg("%s", e.detail);
		for (unsigned k = 0; k < 12; k++) {
			uint64_t len =
			    k % 3 ? (1 + rng_below(16)) * 512 : (1 + rng_below(6)) * 128 * KIB;
			uint64_t off = rng_below((SIZE - len) / 512) * 512;

			if (len >= 128 * KIB && k % 2)
				off = ALIGN_DOWN(off, 128 * KIB);
			if (k % 4 == 3) {
				assert_int_equal(blk_zero(bd, off, len, true), 0);
				memset(shadow + off, 0, len);
			} else {
				rng_fill(buf, len);
				assert_int_equal(blk_pwrite(bd, buf, len, off), 0);
				memcpy(shadow + off, buf, len);
			}
		}
		assert_int_equal(blk_close(bd), 0);
	}
	free(buf);
}

struct reader {
	struct loop *loop;
	struct blk_queue *q;
	unsigned left, running, wrong;
	struct slot {
		struct blk_req r;
		struct iovec v;
		uint8_t *buf;
		struct reader *rd;
	} slot[16];
};

static void read_next(struct slot *s);

static void read_done(struct blk_req *r, int result)
{
	struct slot *s = r->arg;

	s->rd->running--;
	if (result || memcmp(s->buf, shadow + r->off_bytes, r->len_bytes))
		s->rd->wrong++;
	read_next(s);
	if (!s->rd->running)
		loop_stop(s->rd->loop);
}

static void read_next(struct slot *s)
{
	uint64_t len = rng_below(4) ? 4096 : 512 * (1 + rng_below(512));

	if (!s->rd->left)
		return;
	s->rd->left--;
	s->v = (struct iovec){ s->buf, len };
	s->r = (struct blk_req){ .op = BLK_READ,
				 .off_bytes = rng_below((SIZE - len) / 512) * 512,
				 .len_bytes = len,
				 .iov = &s->v,
				 .niov = 1,
				 .done = read_done,
				 .arg = s };
	s->rd->running++;
	blk_submit(s->rd->q, &s->r);
}

static void chain_read(const char *const *opts, bool top_rw)
{
	struct reader rd = { .loop = loop_new(), .left = READS };
	struct blk_spec specs[LAYERS];
	struct err e = { 0 };
	struct blockdev *bd;

	chain_specs(specs, LAYERS, top_rw, opts);
	bd = blk_open(&specs[LAYERS - 1], &e);
	if (!bd)
		fail_msg("%s", e.detail);
	rd.q = blk_queue_new(bd, rd.loop, &e);
	assert_non_null(rd.q);
	for (unsigned i = 0; i < ARRAY_SIZE(rd.slot); i++) {
		rd.slot[i].rd = &rd;
		assert_int_equal(posix_memalign((void **)&rd.slot[i].buf, 4096, 256 * KIB), 0);
		read_next(&rd.slot[i]);
	}
	loop_run(rd.loop);
	blk_queue_free(rd.q);
	loop_free(rd.loop);
	for (unsigned i = 0; i < ARRAY_SIZE(rd.slot); i++)
		free(rd.slot[i].buf);
	assert_int_equal(rd.wrong, 0);
	assert_int_equal(blk_close(bd), 0);
}

static void a_chain_reads_as_its_layers_by_workers(void **state)
{
	(void)state;
	chain_read(NULL, false);
	chain_read(NULL, true);
}

static void a_chain_reads_as_its_layers_by_kernel_aio(void **state)
{
	static const char *const opts[] = { "aio=on", NULL };

	(void)state;
	chain_read(opts, false);
	chain_read(opts, true);
}

/* what the top layer gets afterwards hides what the map says of the layers below */
static void writes_above_the_map_are_seen(void **state)
{
	struct blk_spec specs[LAYERS];
	uint8_t *buf = malloc(MIB), *got = malloc(MIB);
	struct err e = { 0 };
	struct blockdev *bd;

	(void)state;
	chain_specs(specs, LAYERS, true, NULL);
	bd = blk_open(&specs[LAYERS - 1], &e);
	assert_true(bd && buf && got);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t len = 512 * (1 + rng_below(256)),
			 off = rng_below((SIZE - len) / 512) * 512;

		assert_int_equal(blk_pread(bd, got, len, off), 0);
		assert_memory_equal(got, shadow + off, len);
		rng_fill(buf, len);
		assert_int_equal(blk_pwrite(bd, buf, len, off), 0);
		memcpy(shadow + off, buf, len);
		assert_int_equal(blk_pread(bd, got, len, off), 0);
		assert_memory_equal(got, shadow + off, len);
	}
	for (uint64_t off = 0; off < SIZE; off += 64 * KIB) {
		assert_int_equal(blk_pread(bd, got, 64 * KIB, off), 0);
		assert_memory_equal(got, shadow + off, 64 * KIB);
	}
	assert_int_equal(blk_close(bd), 0);
	free(buf);
	free(got);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_chain_reads_as_its_layers_by_workers),
		cmocka_unit_test(a_chain_reads_as_its_layers_by_kernel_aio),
		cmocka_unit_test(writes_above_the_map_are_seen),
	};
	int r;

	if (disk_setup(NULL))
		return 1;
	chain_make();
	r = cmocka_run_group_tests(tests, NULL, NULL);
	free(shadow);
	return disk_teardown(NULL) || r;
}
