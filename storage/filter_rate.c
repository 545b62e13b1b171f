/* filter_rate.c - product filters: rate limit ("rate") and copy-on-read ("copyread").
 *
 * rate: iops= and bps= (0 = no limit), each with a burst of one tenth of a second, as a token
 * schedule: a request is given the moment at which its tokens exist, and its worker waits for it.
 * copyread: what is read from below the top layer is written into it, so that a clone over a slow
 * parent becomes local as it is used. The child must be a qcow2.
 * Threading: any; rate keeps one lock for two numbers.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/overflow.h"
#include "common/units.h"
#include "storage/filter.h"

struct rate {
	pthread_mutex_t lock;
	uint64_t iops, bps;
	uint64_t next_op_ns, next_byte_ns; /* when the schedule is caught up */
};

#define RATE_BURST_NS (NS_PER_S / 10)

static int rate_open(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	struct rate *t = calloc(1, sizeof(*t));

	if (!t)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	bd->drv = t;
	if (spec_opt_u64(spec, "iops", 0, 1000000000, &t->iops, e) < 0 ||
	    spec_opt_u64(spec, "bps", 0, 1ULL << 50, &t->bps, e) < 0 ||
	    filter_open_child(bd, spec, e) < 0) {
		free(t);
		return -EINVAL;
	}
	pthread_mutex_init(&t->lock, NULL);
	return 0;
}

/* rate_slot() - take @cost_ns on one schedule; returns when the request may go. */
static uint64_t rate_slot(uint64_t *next, uint64_t now, uint64_t cost_ns)
{
	uint64_t floor_ns = now - RATE_BURST_NS, at;

	if (*next < floor_ns)
		*next = floor_ns;
	at = *next;
	*next += cost_ns;
	return at;
}

static void rate_wait(struct blockdev *bd, uint64_t len)
{
	struct rate *t = bd->drv;
	uint64_t now = clock_mono_ns(), until = 0;
	struct timespec ts;

	pthread_mutex_lock(&t->lock);
	if (t->iops)
		until = rate_slot(&t->next_op_ns, now, NS_PER_S / t->iops);
	if (t->bps) {
		uint64_t cost = (uint64_t)((unsigned __int128)len * NS_PER_S / t->bps);
		uint64_t at = rate_slot(&t->next_byte_ns, now, cost);

		until = MAX(until, at);
	}
	pthread_mutex_unlock(&t->lock);
	if (until <= now)
		return;
	ts = (struct timespec){ until / NS_PER_S, until % NS_PER_S };
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

static int rate_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	rate_wait(bd, len);
	return filter_rw(bd, write, b, off, len);
}

static int rate_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	rate_wait(bd, 0); /* costs an operation, moves no bytes */
	return filter_zero(bd, off, len, flags);
}

const struct blockdev_ops filter_rate_ops = {
	.name = "rate",
	.open = rate_open,
	.close = filter_close,
	.info = filter_info,
	.rw = rate_rw,
	.zero = rate_zero,
	.flush = filter_flush,
	.extents = filter_extents,
	.resize = filter_resize,
	.allocate = filter_allocate,
};

/* --- copy-on-read ------------------------------------------------------------------------------
 */

struct copyread {
	pthread_rwlock_t lock; /* read: guest writes; write: a copy in progress */
};

static int copyread_open(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	struct copyread *c = calloc(1, sizeof(*c));

	if (!c)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	bd->drv = c;
	if (filter_open_child(bd, spec, e) < 0) {
		free(c);
		return -EINVAL;
	}
	pthread_rwlock_init(&c->lock, NULL);
	return 0;
}

/* copyread_copy() - a read that found its bytes below: under the exclusive lock no guest write can
 * fall between our reading the parent and our writing the copy. */
static int copyread_copy(struct blockdev *bd, struct blk_buf b, uint64_t off, uint64_t len)
{
	struct copyread *c = bd->drv;
	int r;

	pthread_rwlock_wrlock(&c->lock);
	r = node_read(bd->child, b, off, len);
	if (!r) {
		struct blk_extent x[8];
		uint64_t at = off, end = off + len;

		while (at < end && !r) {
			int n = node_extents(bd->child, at, x, 8);

			if (n <= 0)
				break; /* the read is good; the copy is a courtesy */
			for (int i = 0; i < n && at < end && !r; i++) {
				uint64_t part = MIN(x[i].len_bytes, end - at);

				if (x[i].depth > 0 && x[i].kind == BLK_EXT_DATA)
					r = node_write(bd->child, blk_buf_advance(b, at - off), at,
						       part);
				at += part;
			}
		}
	}
	pthread_rwlock_unlock(&c->lock);
	return r == -ENOSPC || r == -EDQUOT ? 0 : r;
}

static int copyread_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off,
		       uint64_t len)
{
	struct copyread *c = bd->drv;
	struct blk_extent x;
	int r;

	if (write) {
		pthread_rwlock_rdlock(&c->lock);
		r = filter_rw(bd, true, b, off, len);
		pthread_rwlock_unlock(&c->lock);
		return r;
	}
	r = bd->read_only ? 0 : node_extents(bd->child, off, &x, 1);
	if (r == 1 && x.len_bytes >= len && (x.depth == 0 || x.kind != BLK_EXT_DATA))
		r = 0;
	return r == 1 ? copyread_copy(bd, b, off, len) : filter_rw(bd, false, b, off, len);
}

static int copyread_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	struct copyread *c = bd->drv;
	int r;

	pthread_rwlock_rdlock(&c->lock);
	r = filter_zero(bd, off, len, flags);
	pthread_rwlock_unlock(&c->lock);
	return r;
}

const struct blockdev_ops filter_copyread_ops = {
	.name = "copyread",
	.open = copyread_open,
	.close = filter_close,
	.info = filter_info,
	.rw = copyread_rw,
	.zero = copyread_zero,
	.flush = filter_flush,
	.extents = filter_extents,
	.resize = filter_resize,
	.allocate = filter_allocate,
};
