/* filter.c - nodes that pass requests on: nth failure, delay, log of writes and syncs.
 *
 * "fail": the request number nth= (counted over all kinds named by on=, default
 * read,write,zero,flush)
 *   fails with errno=N, once, or with sticky=1 all after it too.
 * "delay": each request waits us= microseconds first, as a slow disk does.
 * "log": every write, zeroing and completed sync is appended to a blk_log, from which a test builds
 *   every state that a crash could have left (blk_log.h).
 * They are test tools that ship: a support case is reproduced with the product's own binary.
 * Threading: any; counters are atomic, the log has its lock.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "storage/blk_log.h"
#include "storage/filter.h"

int filter_open_child(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	if (!spec->child)
		return err_set(e, EINVAL, "disk-filter", "%s: filter %s has nothing to filter",
			       bd->label, spec->driver);
	bd->child = node_open(spec->child, bd->depth, e);
	if (!bd->child)
		return -EINVAL;
	if (bd->child->read_only)
		bd->read_only = true;
	bd->block_size = bd->child->block_size;
	atomic_store(&bd->size_bytes, atomic_load(&bd->child->size_bytes));
	return 0;
}

static void filter_follow_size(struct blockdev *bd)
{
	uint64_t below = atomic_load(&bd->child->size_bytes), size = atomic_load(&bd->size_bytes);

	while (size < below && !atomic_compare_exchange_weak(&bd->size_bytes, &size, below))
		;
}

int filter_close(struct blockdev *bd, bool keep_fds)
{
	int r = node_close(bd->child, keep_fds);

	free(bd->drv);
	return r;
}

void filter_info(struct blockdev *bd, struct blk_info *info)
{
	if (bd->child->ops->info)
		bd->child->ops->info(bd->child, info);
}

int filter_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	int r = write ? node_write(bd->child, b, off, len) : node_read(bd->child, b, off, len);

	if (write)
		filter_follow_size(bd);
	return r;
}

int filter_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	return node_zero(bd->child, off, len, flags);
}

int filter_flush(struct blockdev *bd)
{
	return node_flush(bd->child);
}

int filter_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max)
{
	return node_extents(bd->child, off, ext, max);
}

int filter_resize(struct blockdev *bd, uint64_t size, struct err *e)
{
	int r = node_resize(bd->child, size, e);

	if (!r)
		atomic_store(&bd->size_bytes, size);
	return r;
}

int64_t filter_allocate(struct blockdev *bd, uint64_t off, uint64_t min, uint64_t want)
{
	int64_t r = node_allocate(bd->child, off, min, want);

	filter_follow_size(bd);
	return r;
}

/* --- fail ----------------------------------------------------------------------------------------
 */

enum fail_kind { FAIL_READ = 1, FAIL_WRITE = 2, FAIL_ZERO = 4, FAIL_FLUSH = 8, FAIL_ALLOCATE = 16 };

struct fail {
	_Atomic int64_t left;
	int error;
	bool sticky;
	unsigned on;
};

static int fail_open(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	static const char *const names[] = { "read", "write", "zero", "flush", "allocate" };
	struct fail *f = calloc(1, sizeof(*f));
	const char *on = spec_opt(spec, "on");
	uint64_t nth, error, sticky;

	if (!f)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	bd->drv = f;
	if (spec_opt_u64(spec, "nth", 0, INT64_MAX, &nth, e) < 0 ||
	    spec_opt_u64(spec, "errno", EIO, 4095, &error, e) < 0 ||
	    spec_opt_u64(spec, "sticky", 0, 1, &sticky, e) < 0 ||
	    filter_open_child(bd, spec, e) < 0) {
		free(f);
		return -EINVAL;
	}
	for (int i = 0; on && i < 5; i++)
		if (strstr(on, names[i]))
			f->on |= 1u << i;
	if (!on)
		f->on = FAIL_READ | FAIL_WRITE | FAIL_ZERO | FAIL_FLUSH;
	/* nth=0: never; nth=1: the first one */
	atomic_store(&f->left, nth ? (int64_t)nth : INT64_MAX);
	f->error = error;
	f->sticky = sticky;
	return 0;
}

static int fail_now(struct blockdev *bd, enum fail_kind kind)
{
	struct fail *f = bd->drv;
	int64_t n;

	if (!(f->on & kind))
		return 0;
	n = atomic_fetch_sub(&f->left, 1);
	return n == 1 || (n < 1 && f->sticky) ? -f->error : 0;
}

static int fail_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	int r = fail_now(bd, write ? FAIL_WRITE : FAIL_READ);

	return r ? r : filter_rw(bd, write, b, off, len);
}

static int fail_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	int r = fail_now(bd, FAIL_ZERO);

	return r ? r : filter_zero(bd, off, len, flags);
}

static int fail_flush(struct blockdev *bd)
{
	int r = fail_now(bd, FAIL_FLUSH);

	return r ? r : filter_flush(bd);
}

static int64_t fail_allocate(struct blockdev *bd, uint64_t off, uint64_t min, uint64_t want)
{
	int r = fail_now(bd, FAIL_ALLOCATE);

	return r ? r : filter_allocate(bd, off, min, want);
}

const struct blockdev_ops filter_fail_ops = {
	.name = "fail",
	.open = fail_open,
	.close = filter_close,
	.info = filter_info,
	.rw = fail_rw,
	.zero = fail_zero,
	.flush = fail_flush,
	.extents = filter_extents,
	.resize = filter_resize,
	.allocate = fail_allocate,
};

/* --- delay ---------------------------------------------------------------------------------------
 */

struct delay {
	struct timespec each;
};

static int delay_open(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	struct delay *d = calloc(1, sizeof(*d));
	uint64_t us;

	if (!d)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	bd->drv = d;
	if (spec_opt_u64(spec, "us", 1000, 60000000, &us, e) < 0 ||
	    filter_open_child(bd, spec, e) < 0) {
		free(d);
		return -EINVAL;
	}
	d->each = (struct timespec){ us / 1000000, us % 1000000 * 1000 };
	return 0;
}

static void delay_wait(struct blockdev *bd)
{
	struct delay *d = bd->drv;
	struct timespec left = d->each;

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR)
		;
}

static int delay_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	delay_wait(bd);
	return filter_rw(bd, write, b, off, len);
}

static int delay_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	delay_wait(bd);
	return filter_zero(bd, off, len, flags);
}

static int delay_flush(struct blockdev *bd)
{
	delay_wait(bd);
	return filter_flush(bd);
}

const struct blockdev_ops filter_delay_ops = {
	.name = "delay",
	.open = delay_open,
	.close = filter_close,
	.info = filter_info,
	.rw = delay_rw,
	.zero = delay_zero,
	.flush = delay_flush,
	.extents = filter_extents,
	.resize = filter_resize,
	.allocate = filter_allocate,
};

/* --- log -----------------------------------------------------------------------------------------
 */

struct blk_log *blk_log_new(void)
{
	struct blk_log *l = calloc(1, sizeof(*l));

	if (l)
		pthread_mutex_init(&l->lock, NULL);
	return l;
}

void blk_log_clear(struct blk_log *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->rec[i].data);
	free(l->rec);
	l->rec = NULL;
	l->n = l->cap = 0;
	l->failed = false;
}

void blk_log_free(struct blk_log *l)
{
	if (!l)
		return;
	blk_log_clear(l);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static void log_add(struct blk_log *l, enum blk_log_kind kind, uint64_t off, uint64_t len,
		    struct blk_buf *b)
{
	pthread_mutex_lock(&l->lock);
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 256;
		struct blk_log_rec *p = realloc(l->rec, cap * sizeof(*p));

		if (!p) {
			l->failed = true;
			goto out;
		}
		l->rec = p;
		l->cap = cap;
	}
	l->rec[l->n] = (struct blk_log_rec){ .kind = kind, .off = off, .len = len };
	if (b) {
		l->rec[l->n].data = malloc(len);
		if (!l->rec[l->n].data) {
			l->failed = true;
			goto out;
		}
		blk_buf_to(*b, l->rec[l->n].data, len);
	}
	l->n++;
out:
	pthread_mutex_unlock(&l->lock);
}

static int log_open(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	const char *at = spec_opt(spec, "log");
	void *p = NULL;

	/* the log's address, printed by the test that owns it: in-process by nature */
	if (!at || sscanf(at, "%p", &p) != 1 || !p)
		return err_set(e, EINVAL, "disk-option", "%s: filter log needs log=ADDRESS",
			       bd->label);
	if (filter_open_child(bd, spec, e) < 0)
		return -EINVAL;
	bd->drv = p;
	return 0;
}

static int log_close(struct blockdev *bd, bool keep_fds)
{
	bd->drv = NULL; /* the log is the test's */
	return filter_close(bd, keep_fds);
}

static int log_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	if (write)
		log_add(bd->drv, BLK_LOG_WRITE, off, len, &b);
	return filter_rw(bd, write, b, off, len);
}

static int log_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	log_add(bd->drv, BLK_LOG_ZERO, off, len, NULL);
	return filter_zero(bd, off, len, flags);
}

static int log_flush(struct blockdev *bd)
{
	struct blk_log *l = bd->drv;
	size_t covers;
	int r;

	pthread_mutex_lock(&l->lock);
	covers = l->n;
	pthread_mutex_unlock(&l->lock);
	r = filter_flush(bd);
	if (!r)
		log_add(l, BLK_LOG_SYNC, covers, 0, NULL);
	return r;
}

static int log_resize(struct blockdev *bd, uint64_t size, struct err *e)
{
	log_add(bd->drv, BLK_LOG_TRUNCATE, size, 0, NULL);
	return filter_resize(bd, size, e);
}

const struct blockdev_ops filter_log_ops = {
	.name = "log",
	.open = log_open,
	.close = log_close,
	.info = filter_info,
	.rw = log_rw,
	.zero = log_zero,
	.flush = log_flush,
	.extents = filter_extents,
	.resize = log_resize,
	.allocate = filter_allocate,
};
