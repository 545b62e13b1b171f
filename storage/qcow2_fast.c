/* qcow2_fast.c - the way without a worker: requests whose place is known, or made, in memory alone.
 *
 * A read that lies in one run of one layer, a write in place, and a write of whole units into a
 * cluster that can be allocated from what is already loaded and preallocated, are mapped on the
 * loop's thread and transferred asynchronously by the kernel; everything else, and whenever a lock
 * is taken, goes to a worker. The rules are those of qcow2_io.c: units are locked, data is written
 * before the entry names it, and an epoch holds clusters that somebody may be using.
 * Threading: map on the queue's thread, finish on the same thread, later.
 */
#include <errno.h>
#include <string.h>

#include "common/overflow.h"
#include "storage/qcow2.h"

struct q2_flight {
	struct qcow2 *q;
	uint64_t epoch, off, alloc;
	bool fresh;
	struct q2_range range;
	struct q2_place place;
};
_Static_assert(sizeof(struct q2_flight) <= sizeof(((struct blk_place *)0)->priv), "priv too small");

static int q2_flight_end(struct blk_place *p, int error)
{
	struct q2_flight *f = (struct q2_flight *)(void *)p->priv;
	struct qcow2 *q = f->q;

	if (f->fresh) {
		if (!error)
			error = q2_publish(q, &f->place, f->off, f->alloc);
		if (error && !f->place.inplace && !f->place.published) {
			pthread_rwlock_wrlock(&q->lock);
			q2_free_now_locked(q, f->place.base, q->cluster_size);
			pthread_rwlock_unlock(&q->lock);
		}
		q2_range_drop(q, &f->range);
	}
	q2_epoch_leave(q, f->epoch);
	return error;
}

/* q2_map_fresh() - room for whole units of one cluster, the lock taken alone. */
static int q2_map_fresh(struct qcow2 *q, struct q2_flight *f, uint64_t off, uint64_t len)
{
	struct q2_place *p = &f->place;
	int r;

	if (pthread_rwlock_trywrlock(&q->lock))
		return -EAGAIN;
	*p = (struct q2_place){ .cluster_off = ALIGN_DOWN(off, q->cluster_size) };
	r = q->slices_dirty > q->slices_max / 2 ? -EAGAIN : q2_entry_quick_locked(q, off, &p->old);
	if (!r && q2_must_move(&p->old))
		r = -EAGAIN;
	if (r)
		goto out;
	p->base = p->old.l2 & Q2_OFFSET_MASK;
	if (p->base) {
		p->inplace = true;
		if ((p->base & (q->cluster_size - 1)) ||
		    p->base + q->cluster_size > atomic_load(&q->host_end) ||
		    q2_meta_hit_locked(q, p->base, q->cluster_size))
			r = -EAGAIN; /* the slow way says what is wrong */
		goto out;
	}
	r = q2_alloc_quick_locked(q, &p->base);
	if (r || !q->ext_l2)
		goto out;
	r = q2_entry_set_locked(q, off, (struct q2_entry){ p->base | Q2_COPIED, p->old.bits });
	if (r)
		q2_free_now_locked(q, p->base, q->cluster_size);
	else
		p->published = true;
out:
	pthread_rwlock_unlock(&q->lock);
	f->alloc = q2_unit_mask(q, off, len);
	return r;
}

static int q2_map_write(struct qcow2 *q, const struct blk_req *r, uint64_t off, struct blk_place *p,
			struct q2_flight *f)
{
	uint64_t len = r->len_bytes, mask = q->unit_size - 1;
	struct q2_seg s;
	int ret = q2_seg_try(q, off, len, true, &s);

	if (ret)
		return ret;
	if (s.kind == Q2_DATA && s.copied)
		return s.len == len ? q->file->ops->map(q->file, true, r, s.host, p) : -EAGAIN;
	if ((off & mask) || (len & mask) || s.kind == Q2_COMP ||
	    len > q->cluster_size - (off & (q->cluster_size - 1)))
		return -EAGAIN;
	if (!q2_range_try(q, &f->range, off, off + len))
		return -EAGAIN;
	ret = q2_map_fresh(q, f, off, len);
	if (!ret) {
		ret = q->file->ops->map(q->file, true, r,
					f->place.base + (off - f->place.cluster_off), p);
		if (ret && !f->place.inplace && !f->place.published) {
			pthread_rwlock_wrlock(&q->lock);
			q2_free_now_locked(q, f->place.base, q->cluster_size);
			pthread_rwlock_unlock(&q->lock);
		}
	}
	if (ret)
		q2_range_drop(q, &f->range);
	else
		f->fresh = true;
	return ret;
}

static int q2_map_read(struct qcow2 *q, const struct blk_req *r, uint64_t off, struct blk_place *p)
{
	struct q2_seg s;
	struct q2_chain_place below;
	int ret = q2_seg_try(q, off, r->len_bytes, false, &s);
	struct blockdev *back = q->bd->backing;

	if (ret || s.len < r->len_bytes || s.kind == Q2_COMP)
		return -EAGAIN;
	if (s.kind == Q2_DATA)
		return q->file->ops->map ? q->file->ops->map(q->file, false, r, s.host, p)
					 : -EAGAIN;
	if (s.kind == Q2_ZERO || !back) {
		p->zero = true;
		return 0;
	}
	ret = q2_chain_find(q, off, r->len_bytes, false, &below);
	if (!ret && below.len == r->len_bytes) {
		p->zero = below.zero;
		if (below.zero)
			return 0;
		return below.file->ops->map
			   ? below.file->ops->map(below.file, false, r, below.off, p)
			   : -EAGAIN;
	}
	if (ret && ret != -ENOENT)
		return -EAGAIN;
	if (!back->ops->map || off + r->len_bytes > atomic_load(&back->size_bytes))
		return -EAGAIN;
	if (back->ops == &qcow2_ops)
		return q2_map_read(back->drv, r, off,
				   p); /* read-only: it frees nothing, needs no epoch */
	return back->ops->map(back, false, r, off, p);
}

int q2_map(struct blockdev *bd, bool write, const struct blk_req *r, uint64_t off,
	   struct blk_place *p)
{
	struct qcow2 *q = bd->drv;
	struct q2_flight *f = (struct q2_flight *)(void *)p->priv;
	int ret;

	if (write && (!q->file->ops->map || !atomic_load(&q->begun) || atomic_load(&q->corrupt) ||
		      !q2_bitmaps_try_mark(q, off, r->len_bytes)))
		return -EAGAIN;
	f->q = q;
	f->fresh = false;
	f->off = off;
	f->epoch = q2_epoch_enter(q);
	ret = write ? q2_map_write(q, r, off, p, f) : q2_map_read(q, r, off, p);
	if (ret)
		q2_epoch_leave(q, f->epoch);
	else
		p->finish = q2_flight_end;
	return ret;
}
