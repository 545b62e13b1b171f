/* job_copy.c - jobs that move data: convert, compare.
 *
 * Convert runs a few workers over the disk in chunks of one target cluster; each reads, leaves out
 * zeroes, compresses where asked, and writes. The order in which chunks land is free, for the map
 * says where they are. Threading and trust: job.h.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/job_util.h"
#include "storage/qcow2.h"

#define COPY_THREADS_MAX 16
#define COPY_RAW_CHUNK	 (512 * KIB)
#define COPY_GRAIN	 4096u

struct blkjob_run job_begin(const struct blkjob *job, uint64_t total)
{
	return (struct blkjob_run){ .job = job, .total = total, .lock = PTHREAD_MUTEX_INITIALIZER };
}

int job_step(struct blkjob_run *r, uint64_t done)
{
	const struct blkjob *j = r->job;

	if (j && j->cancel && atomic_load(j->cancel))
		return -ECANCELED;
	if (j && j->progress) {
		pthread_mutex_lock(&r->lock);
		r->done += done;
		/* a thousand reports are enough for any bar */
		if (r->done >= r->reported + r->total / 1000 || r->done >= r->total) {
			r->reported = r->done;
			j->progress(j->arg, MIN(r->done, r->total), r->total);
		}
		pthread_mutex_unlock(&r->lock);
	}
	return 0;
}

int job_error(struct err *e, int r, const char *label, const char *what)
{
	if (err_is_set(e))
		return r;
	if (r == -ECANCELED)
		return err_set(e, ECANCELED, "cancelled", "%s: %s was cancelled", label, what);
	if (r == -EDQUOT)
		return err_set(e, EDQUOT, "disk-quota", "%s: %s would grow past its quota", label,
			       what);
	return err_set(e, -r, "disk-job", "%s: %s failed: %s", label, what, strerror(-r));
}

struct copy {
	struct blkjob_run run;
	struct blockdev *src, *dst;
	struct qcow2 *q; /* target, where compressed */
	uint64_t size, chunk, grain;
	uint64_t written;
	_Atomic uint64_t next;
	_Atomic int error;
	int level;
};

/* copy_is_empty() - the whole of [off, off+len) reads as zeroes, by the map alone. */
static int copy_is_empty(struct blockdev *bd, uint64_t off, uint64_t len, bool *empty)
{
	uint64_t end = off + len;

	*empty = true;
	while (off < end) {
		struct blk_extent x[16];
		int n = blk_extents(bd, off, x, ARRAY_SIZE(x));

		if (n < 0)
			return n;
		if (!n)
			break;
		for (int i = 0; i < n && off < end; i++) {
			if (x[i].kind == BLK_EXT_DATA) {
				*empty = false;
				return 0;
			}
			off = x[i].off_bytes + x[i].len_bytes;
		}
	}
	return 0;
}

static int copy_charge(struct copy *c, uint64_t bytes)
{
	const struct blkjob *j = c->run.job;
	uint64_t sum;

	pthread_mutex_lock(&c->run.lock);
	c->written += bytes;
	sum = c->written;
	pthread_mutex_unlock(&c->run.lock);
	return j && j->max_output_bytes && sum > j->max_output_bytes ? -EDQUOT : 0;
}

static int copy_plain(struct copy *c, const uint8_t *buf, uint64_t off, uint64_t len)
{
	uint64_t at = 0;
	int r = 0;

	while (at < len && !r) {
		uint64_t n = MIN(c->grain, len - at), run;

		if (mem_is_zero(buf + at, n)) {
			at += n;
			continue;
		}
		for (run = n; at + run < len; run += n) {
			n = MIN(c->grain, len - at - run);
			if (mem_is_zero(buf + at + run, n))
				break;
		}
		r = copy_charge(c, run);
		if (!r)
			r = blk_pwrite(c->dst, buf + at, run, off + at);
		at += run;
	}
	return r;
}

static int copy_chunk(struct copy *c, uint8_t *buf, uint8_t *out, void **ctx, uint64_t off)
{
	uint64_t len = MIN(c->chunk, c->size - off);
	bool empty;
	long n;
	int r = copy_is_empty(c->src, off, len, &empty);

	if (r || empty)
		return r;
	r = blk_pread(c->src, buf, len, off);
	if (r)
		return r;
	if (!c->q)
		return copy_plain(c, buf, off, len);
	if (mem_is_zero(buf, len))
		return 0;
	if (len < c->chunk)
		memset(buf + len, 0, c->chunk - len);
	n = q2_compress(c->q->compression, c->level, ctx, out, c->chunk - 1, buf, c->chunk);
	if (n == -EFBIG)
		return copy_plain(c, buf, off, len);
	if (n < 0)
		return n;
	r = copy_charge(c, n);
	return r ? r : q2_write_compressed(c->q, off, out, n);
}

static void *copy_worker(void *arg)
{
	struct copy *c = arg;
	uint8_t *buf = NULL, *out = NULL;
	void *ctx = NULL;
	int r = 0, none = 0;

	if (posix_memalign((void **)&buf, 4096, c->chunk) || !(out = malloc(c->chunk)))
		r = -ENOMEM;
	while (!r && !atomic_load(&c->error)) {
		uint64_t off = atomic_fetch_add(&c->next, c->chunk);

		if (off >= c->size)
			break;
		r = copy_chunk(c, buf, out, &ctx, off);
		if (!r)
			r = job_step(&c->run, MIN(c->chunk, c->size - off));
	}
	if (r)
		atomic_compare_exchange_strong(&c->error, &none, r);
	q2_compress_free(ctx);
	free(buf);
	free(out);
	return NULL;
}

static int copy_run(struct copy *c)
{
	const struct blkjob *j = c->run.job;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	/* twice the CPUs: while some wait for the disk, others compress */
	unsigned want = j && j->threads ? j->threads : cpus > 0 ? 2 * (unsigned)cpus : 2, n = 0;
	pthread_t t[COPY_THREADS_MAX];

	want = MIN(want, (unsigned)COPY_THREADS_MAX);
	/* this thread is one of them, and the only one where no other can be made */
	while (n + 1 < want && pthread_create(&t[n], NULL, copy_worker, c) == 0)
		n++;
	copy_worker(c);
	while (n)
		pthread_join(t[--n], NULL);
	return atomic_load(&c->error);
}

static struct blockdev *copy_target(const struct blkjob_target *t, uint64_t size, struct err *e)
{
	struct qcow2_create cr = t->create;
	struct blk_spec s = { .driver = t->driver,
			      .label = "target",
			      .fd = t->fd,
			      .discard = true,
			      .cache = BLK_CACHE_WRITEBACK };
	static const char *const opts[] = { "backing=ignore", NULL };

	s.opts = opts;
	if (strcmp(t->driver, "qcow2") == 0) {
		cr.size_bytes = cr.size_bytes ? cr.size_bytes : size;
		if (cr.size_bytes < size) {
			err_set(e, EINVAL, "disk-size",
				"target: is smaller than what is copied into it");
			return NULL;
		}
		if (qcow2_create(t->fd, &cr, e) < 0)
			return NULL;
	} else if (ftruncate(t->fd, size) < 0) {
		err_set(e, errno, "disk-create", "target: cannot be made %llu bytes: %s",
			(unsigned long long)size, strerror(errno));
		return NULL;
	}
	return blk_open(&s, e);
}

int blkjob_convert(const struct blkjob *job, const struct blk_spec *src,
		   const struct blkjob_target *dst, struct err *e)
{
	struct copy c = { .run = job_begin(job, 0), .level = dst->level };
	int r = -EINVAL, r2;

	c.src = job_open(src, e);
	if (!c.src) {
		close(dst->fd);
		return e ? -e->num : -EIO;
	}
	c.size = c.run.total = atomic_load(&c.src->size_bytes);
	if (strcmp(dst->driver, "qcow2") != 0 &&
	    (strcmp(dst->driver, "file") != 0 || dst->compress))
		err_set(e, EINVAL, "disk-format", "target: format \"%s\"%s cannot be written",
			dst->driver, dst->compress ? " compressed" : "");
	else
		c.dst = copy_target(dst, c.size, e);
	if (!c.dst) {
		close(dst->fd);
		blk_close(c.src);
		return e && e->num ? -e->num : r;
	}
	c.chunk = COPY_RAW_CHUNK;
	c.grain = COPY_GRAIN;
	if (c.dst->ops == &qcow2_ops) {
		struct qcow2 *q = c.dst->drv;

		c.grain = MAX(q->unit_size, (uint64_t)COPY_GRAIN);
		if (dst->compress) {
			c.q = q;
			c.chunk = q->cluster_size;
		} else {
			c.chunk = MAX(c.chunk, q->cluster_size);
		}
	}
	r = copy_run(&c);
	if (r)
		job_error(e, r, c.src->label, "convert");
	r2 = blk_close(c.dst);
	if (!r && r2)
		r = job_error(e, r2, c.src->label, "convert");
	blk_close(c.src);
	return r;
}

/* --- compare
 * -------------------------------------------------------------------------------------- */

static int compare_chunk(struct blockdev *bd, uint8_t *buf, uint64_t off, uint64_t len, bool *zero)
{
	uint64_t size = atomic_load(&bd->size_bytes), there = off < size ? MIN(len, size - off) : 0;
	int r;

	memset(buf + there, 0, len - there);
	r = copy_is_empty(bd, off, there, zero);
	if (r)
		return r;
	if (*zero)
		memset(buf, 0, there);
	return *zero || !there ? 0 : blk_pread(bd, buf, there, off);
}

int blkjob_compare(const struct blkjob *job, const struct blk_spec *a, const struct blk_spec *b,
		   uint64_t *at, struct err *e)
{
	struct blockdev *x = job_open(a, e), *y = x ? job_open(b, e) : NULL;
	uint64_t size, chunk = COPY_RAW_CHUNK;
	_cleanup_free_ uint8_t *p = NULL, *q = NULL;
	struct blkjob_run run;
	int r = 0;

	if (!x)
		job_close_fds(b);
	if (!x || !y) {
		blk_close(x);
		return e && e->num ? -e->num : -EIO;
	}
	size = MAX(atomic_load(&x->size_bytes), atomic_load(&y->size_bytes));
	run = job_begin(job, size);
	if (posix_memalign((void **)&p, 4096, chunk) || posix_memalign((void **)&q, 4096, chunk))
		r = -ENOMEM;
	for (uint64_t off = 0; off < size && !r; off += chunk) {
		uint64_t len = MIN(chunk, size - off);
		bool zx, zy;

		r = compare_chunk(x, p, off, len, &zx);
		if (!r)
			r = compare_chunk(y, q, off, len, &zy);
		if (!r && !(zx && zy) && memcmp(p, q, len)) {
			for (uint64_t s = 0; s < len; s += 512)
				if (memcmp(p + s, q + s, MIN(512, len - s))) {
					*at = off + s;
					break;
				}
			r = 1;
			break;
		}
		if (!r)
			r = job_step(&run, len);
	}
	if (r < 0)
		job_error(e, r, x->label, "compare");
	blk_close(x);
	blk_close(y);
	return r;
}
