/* qcow2_io.c - reading, writing, zeroing and mapping guest ranges.
 *
 * The unit is the subcluster (the cluster itself without extended L2). A write into units that are
 * allocated and ours goes straight to its place with no lock held. Any other write takes a range
 * lock on its units (on the whole cluster where the cluster must move), makes room, writes data
 * with what must be copied around it, and only then publishes the entry; with extended L2 the
 * cluster's place is published at once, with no unit in it, so that writers of other units need not
 * wait.
 * Threading: any number of workers; lock order: range, then the image's lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2.h"

/* --- range locks -------------------------------------------------------------------------------
 */

void q2_range_take(struct qcow2 *q, struct q2_range *r, uint64_t start, uint64_t end)
{
	bool clash;

	r->start = start;
	r->end = end;
	pthread_mutex_lock(&q->range_lock);
	do {
		clash = false;
		list_for_each (l, &q->ranges) {
			struct q2_range *o = container_of(l, struct q2_range, node);

			if (o->start < end && start < o->end) {
				clash = true;
				pthread_cond_wait(&q->range_cond, &q->range_lock);
				break;
			}
		}
	} while (clash);
	list_add_tail(&q->ranges, &r->node);
	pthread_mutex_unlock(&q->range_lock);
}

bool q2_range_try(struct qcow2 *q, struct q2_range *r, uint64_t start, uint64_t end)
{
	bool clash = false;

	r->start = start;
	r->end = end;
	pthread_mutex_lock(&q->range_lock);
	list_for_each (l, &q->ranges) {
		struct q2_range *o = container_of(l, struct q2_range, node);

		clash |= o->start < end && start < o->end;
	}
	if (!clash)
		list_add_tail(&q->ranges, &r->node);
	pthread_mutex_unlock(&q->range_lock);
	return !clash;
}

void q2_range_drop(struct qcow2 *q, struct q2_range *r)
{
	pthread_mutex_lock(&q->range_lock);
	list_del(&r->node);
	pthread_cond_broadcast(&q->range_cond);
	pthread_mutex_unlock(&q->range_lock);
}

/* --- reading -------------------------------------------------------------------------------------
 */

static int q2_read_backing(struct qcow2 *q, struct blk_buf b, uint64_t off, uint64_t len)
{
	struct blockdev *back = q->bd->backing;
	uint64_t size = back ? atomic_load(&back->size_bytes) : 0;
	uint64_t there = off < size ? MIN(len, size - off) : 0, tail = len - there;
	int r = 0;

	while (there && !r) {
		struct q2_chain_place p;
		uint64_t n = there;

		r = q2_chain_find(q, off, there, true, &p);
		if (!r) {
			n = p.len;
			if (p.zero)
				blk_buf_zero(b, n);
			else
				r = node_read(p.file, b, p.off, n);
		} else if (r == -ENOENT) {
			n = MIN(n, Q2_CHAIN_STEP - (off & (Q2_CHAIN_STEP - 1)));
			r = node_read(back, b, off, n);
		}
		b = blk_buf_advance(b, n);
		off += n;
		there -= n;
	}
	if (!r && tail)
		blk_buf_zero(b, tail);
	return r;
}

static int q2_read(struct qcow2 *q, struct blk_buf b, uint64_t off, uint64_t len)
{
	int r = 0;

	while (len && !r) {
		struct q2_seg s;

		r = q2_seg_get(q, off, len, false, &s);
		if (r)
			break;
		switch (s.kind) {
		case Q2_DATA:
			r = node_read(q->file, b, s.host, s.len);
			break;
		case Q2_ZERO:
			blk_buf_zero(b, s.len);
			break;
		case Q2_UNALLOC:
			r = q2_read_backing(q, b, off, s.len);
			break;
		case Q2_COMP:
			r = q2_comp_read(q, &s, off & (q->cluster_size - 1), b, s.len);
			break;
		}
		b = blk_buf_advance(b, s.len);
		off += s.len;
		len -= s.len;
	}
	return r;
}

/* --- writing -------------------------------------------------------------------------------------
 */

bool q2_must_move(const struct q2_entry *en)
{
	return (en->l2 & Q2_COMPRESSED) || ((en->l2 & Q2_OFFSET_MASK) && !(en->l2 & Q2_COPIED));
}

static int q2_lock_units(struct qcow2 *q, struct q2_range *range, uint64_t off, uint64_t len)
{
	uint64_t cluster = ALIGN_DOWN(off, q->cluster_size);
	struct q2_entry en;
	int r = q2_entry_get(q, off, &en);

	while (!r) {
		bool whole = !q->ext_l2 || q2_must_move(&en);

		if (whole)
			q2_range_take(q, range, cluster, cluster + q->cluster_size);
		else
			q2_range_take(q, range, ALIGN_DOWN(off, q->unit_size),
				      ALIGN_UP(off + len, q->unit_size));
		r = q2_entry_get(q, off, &en);
		if (!r && (whole || !q2_must_move(&en)))
			return 0;
		q2_range_drop(q, range);
	}
	return r;
}

static int q2_place_make(struct qcow2 *q, uint64_t off, struct q2_place *p)
{
	int r;

	*p = (struct q2_place){ .cluster_off = ALIGN_DOWN(off, q->cluster_size) };
	pthread_rwlock_wrlock(&q->lock);
	r = q2_entry_locked(q, off, &p->old);
	if (r)
		goto out;
	p->moved = q2_must_move(&p->old);
	p->base = p->old.l2 & Q2_OFFSET_MASK;
	if (p->base && !p->moved) {
		p->inplace = true;
		if ((p->base & (q->cluster_size - 1)) || p->base >= atomic_load(&q->host_end) ||
		    q2_meta_hit_locked(q, p->base, q->cluster_size))
			r = q2_corrupt(q,
				       "the L2 entry for guest offset %llu points to offset %llu",
				       (unsigned long long)off, (unsigned long long)p->base);
		goto out;
	}
	r = q2_alloc_locked(q, 1, false, &p->base, &p->zeroed);
	if (r || !q->ext_l2 || p->moved)
		goto out;
	r = q2_entry_set_locked(q, off, (struct q2_entry){ p->base | Q2_COPIED, p->old.bits });
	if (r)
		q2_free_now_locked(q, p->base, q->cluster_size);
	else
		p->published = true;
out:
	pthread_rwlock_unlock(&q->lock);
	return r;
}

static enum q2_kind q2_old_kind(struct qcow2 *q, const struct q2_place *p, uint64_t off)
{
	struct q2_seg s;

	if (q2_entry_seg(q, &p->old, (off - p->cluster_off) >> q->unit_bits, &s))
		return Q2_DATA;
	return s.kind;
}

static bool q2_reads_zero(const struct qcow2 *q, enum q2_kind k)
{
	return k == Q2_ZERO || (k == Q2_UNALLOC && !q->bd->backing);
}

/* q2_write_around() - the data and what must be copied before and after it, in one write. */
static int q2_write_around(struct qcow2 *q, const struct q2_place *p, struct blk_buf b,
			   uint64_t off, uint64_t len)
{
	uint64_t start = ALIGN_DOWN(off, q->unit_size), end = ALIGN_UP(off + len, q->unit_size);
	enum q2_kind first = q2_old_kind(q, p, off), last = q2_old_kind(q, p, off + len - 1);
	_cleanup_free_ uint8_t *buf = NULL;
	int r = 0;

	/* units already in place hold their own surroundings, and others may be writing them */
	if ((p->inplace && first == Q2_DATA) || (p->zeroed && q2_reads_zero(q, first)))
		start = off;
	if ((p->inplace && last == Q2_DATA) || (p->zeroed && q2_reads_zero(q, last)))
		end = off + len;
	if (start == off && end == off + len)
		return node_write(q->file, b, p->base + (off - p->cluster_off), len);
	if (posix_memalign((void **)&buf, Q2_SLICE_MAX, end - start))
		return -ENOMEM;
	if (start < off) {
		struct iovec v = { buf, off - start };

		r = q2_read(q, (struct blk_buf){ &v, 1, 0 }, start, off - start);
	}
	if (!r && end > off + len) {
		struct iovec v = { buf + (off + len - start), end - off - len };

		r = q2_read(q, (struct blk_buf){ &v, 1, 0 }, off + len, end - off - len);
	}
	if (r)
		return r;
	blk_buf_to(b, buf + (off - start), len);
	return node_pwrite(q->file, buf, end - start, p->base + (start - p->cluster_off));
}

/* q2_write_moved() - a shared or compressed cluster: everything it holds goes to its new place.
 * @bits: the units that will be data there (bit 0 alone without extended L2). */
static int q2_write_moved(struct qcow2 *q, const struct q2_place *p, struct blk_buf b, uint64_t off,
			  uint64_t len, uint64_t *bits)
{
	_cleanup_free_ uint8_t *buf = NULL;
	struct iovec v;
	int r;

	*bits = 0;
	for (unsigned u = 0; u < q->units; u++) {
		uint64_t at = p->cluster_off + u * q->unit_size;
		enum q2_kind k = q2_old_kind(q, p, at);

		if (!q->ext_l2 || k == Q2_DATA || k == Q2_COMP ||
		    range_overlaps(at, q->unit_size, off, len))
			*bits |= 1ULL << u;
	}
	if (posix_memalign((void **)&buf, Q2_SLICE_MAX, q->cluster_size))
		return -ENOMEM;
	v = (struct iovec){ buf, q->cluster_size };
	r = q2_read(q, (struct blk_buf){ &v, 1, 0 }, p->cluster_off, q->cluster_size);
	if (r)
		return r;
	blk_buf_to(b, buf + (off - p->cluster_off), len);
	for (unsigned u = 0; u < q->units && !r;) {
		unsigned n = u;

		while (n < q->units && (*bits >> n & 1))
			n++;
		if (n > u)
			r = node_pwrite(q->file, buf + u * q->unit_size, (n - u) * q->unit_size,
					p->base + u * q->unit_size);
		u = n + 1;
	}
	return r;
}

uint64_t q2_unit_mask(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	unsigned first = (off & (q->cluster_size - 1)) >> q->unit_bits;
	unsigned last = ((off + len - 1) & (q->cluster_size - 1)) >> q->unit_bits;

	return ((2ULL << last) - 1) & ~((1ULL << first) - 1);
}

int q2_publish(struct qcow2 *q, const struct q2_place *p, uint64_t off, uint64_t alloc)
{
	struct q2_entry cur;
	int r;

	pthread_rwlock_wrlock(&q->lock);
	r = q2_entry_locked(q, off, &cur);
	if (!r) {
		cur.l2 = p->base | Q2_COPIED;
		if (q->ext_l2) {
			if (p->old.l2 & Q2_COMPRESSED)
				cur.bits = 0;
			cur.bits = (cur.bits | alloc) & ~(alloc << 32);
		}
		r = q2_entry_set_locked(q, off, cur);
	}
	if (!r && p->moved) {
		uint64_t host = p->old.l2 & Q2_OFFSET_MASK, n = q->cluster_size;

		if (p->old.l2 & Q2_COMPRESSED)
			q2_comp_extent(q, p->old.l2, &host, &n);
		q2_free_later_locked(q, host, n);
	}
	pthread_rwlock_unlock(&q->lock);
	return r;
}

/* q2_relieve() - dirty metadata cannot be evicted: past half the cache, write it out. */
static int q2_relieve(struct qcow2 *q)
{
	bool much;

	pthread_rwlock_rdlock(&q->lock);
	much = q->slices_dirty > q->slices_max / 2;
	pthread_rwlock_unlock(&q->lock);
	return much ? q2_flush(q->bd) : 0;
}

/* q2_write_cluster_held() - a write inside one cluster whose units are locked by us. */
static int q2_write_cluster_held(struct qcow2 *q, struct blk_buf b, uint64_t off, uint64_t len)
{
	struct q2_place p;
	uint64_t alloc = q2_unit_mask(q, off, len);
	int r = q2_place_make(q, off, &p);

	if (r)
		return r;
	if (p.moved)
		r = q2_write_moved(q, &p, b, off, len, &alloc);
	else
		r = q2_write_around(q, &p, b, off, len);
	if (!r)
		r = q2_publish(q, &p, off, alloc);
	if (r && !p.inplace && !p.published) {
		pthread_rwlock_wrlock(&q->lock);
		q2_free_now_locked(q, p.base, q->cluster_size);
		pthread_rwlock_unlock(&q->lock);
	}
	return r;
}

/* q2_write_cluster() - a write inside one cluster that is not simply in place. */
static int q2_write_cluster(struct qcow2 *q, struct blk_buf b, uint64_t off, uint64_t len)
{
	struct q2_range range;
	int r = q2_lock_units(q, &range, off, len);

	if (r)
		return r;
	r = q2_write_cluster_held(q, b, off, len);
	q2_range_drop(q, &range);
	return r;
}

/* q2_populate_zero() - units that read as zeroes below say so themselves. */
static int q2_populate_zero(struct qcow2 *q, uint64_t off, uint64_t mask)
{
	struct q2_entry en;
	int r;

	pthread_rwlock_wrlock(&q->lock);
	r = q2_entry_locked(q, off, &en);
	if (!r) {
		if (q->ext_l2)
			en.bits |= (mask & ~en.bits) << 32;
		else
			en.l2 |= Q2_ZERO_FLAG;
		r = q2_entry_set_locked(q, off, en);
	}
	pthread_rwlock_unlock(&q->lock);
	return r;
}

/* q2_populate_cluster() - its units that are not allocated get what they show from below. */
static int q2_populate_cluster(struct qcow2 *q, uint64_t cluster, uint64_t end, uint8_t *buf)
{
	struct q2_range range;
	int r = 0;

	/* the whole cluster: nobody else makes room in it meanwhile */
	q2_range_take(q, &range, cluster, cluster + q->cluster_size);
	for (uint64_t off = cluster; off < end && !r;) {
		struct q2_seg s;
		struct iovec v;

		r = q2_seg_get(q, off, end - off, false, &s);
		if (!r && s.kind == Q2_UNALLOC) {
			s.len = MIN(s.len, end - off);
			v = (struct iovec){ buf, s.len };
			r = q2_read_backing(q, (struct blk_buf){ &v, 1, 0 }, off, s.len);
			if (!r && mem_is_zero(buf, s.len))
				r = q2_populate_zero(q, off, q2_unit_mask(q, off, s.len));
			else if (!r)
				r = q2_write_cluster_held(q, (struct blk_buf){ &v, 1, 0 }, off,
							  s.len);
		}
		off += s.len;
	}
	q2_range_drop(q, &range);
	return r;
}

int q2_populate(struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t end = MIN(off + len, atomic_load(&q->bd->size_bytes)), epoch;
	_cleanup_free_ uint8_t *buf = NULL;
	int r = q2_begin_write(q);

	if (r)
		return r;
	if (posix_memalign((void **)&buf, Q2_SLICE_MAX, q->cluster_size))
		return -ENOMEM;
	epoch = q2_epoch_enter(q);
	for (off = ALIGN_DOWN(off, q->cluster_size); off < end && !r; off += q->cluster_size)
		r = q2_populate_cluster(q, off, MIN(off + q->cluster_size, end), buf);
	q2_epoch_leave(q, epoch);
	return r ? r : q2_relieve(q);
}

static int q2_write(struct qcow2 *q, struct blk_buf b, uint64_t off, uint64_t len)
{
	int r = 0;

	while (len && !r) {
		struct q2_seg s;
		uint64_t n;

		r = q2_seg_get(q, off, len, true, &s);
		if (r)
			break;
		if (s.kind == Q2_DATA && s.copied) {
			n = s.len;
			r = node_write(q->file, b, s.host, n);
		} else {
			n = MIN(len, q->cluster_size - (off & (q->cluster_size - 1)));
			r = q2_write_cluster(q, b, off, n);
		}
		b = blk_buf_advance(b, n);
		off += n;
		len -= n;
	}
	return r;
}

int q2_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	struct qcow2 *q = bd->drv;
	uint64_t epoch;
	int r;

	if (!write) {
		epoch = q2_epoch_enter(q);
		r = q2_read(q, b, off, len);
		q2_epoch_leave(q, epoch);
		return r;
	}
	r = q2_begin_write(q);
	if (r)
		return r;
	epoch = q2_epoch_enter(q);
	q2_bitmaps_mark(q, off, len);
	r = q2_write(q, b, off, len);
	q2_epoch_leave(q, epoch);
	return r ? r : q2_relieve(q);
}

/* --- zeroes and discard
 * --------------------------------------------------------------------------- */

static int q2_write_zero_bytes(struct qcow2 *q, uint64_t off, uint64_t len)
{
	_cleanup_free_ void *p = NULL;
	struct iovec v;

	if (posix_memalign(&p, Q2_SLICE_MAX, ALIGN_UP(len, 512ULL)))
		return -ENOMEM;
	memset(p, 0, len);
	v = (struct iovec){ p, len };
	return q2_write(q, (struct blk_buf){ &v, 1, 0 }, off, len);
}

/* q2_zero_entry() - the entry with units @mask reading as zeroes; @freed: it let its cluster go. */
static struct q2_entry q2_zero_entry(const struct qcow2 *q, struct q2_entry old, uint64_t mask,
				     bool unmap, bool *freed)
{
	struct q2_entry en = old;
	uint64_t all = (1ULL << q->units) - 1;
	bool keep = !unmap && !q2_must_move(&old) && (old.l2 & Q2_OFFSET_MASK);

	*freed = false;
	if (!q->ext_l2) {
		en.l2 = keep ? old.l2 | Q2_ZERO_FLAG : q->bd->backing || !unmap ? Q2_ZERO_FLAG : 0;
		*freed = !keep && (old.l2 & (Q2_OFFSET_MASK | Q2_COMPRESSED));
		return en;
	}
	if (old.l2 & Q2_COMPRESSED)
		en.bits = 0;
	en.bits = (en.bits & ~mask) | mask << 32;
	if (!(en.bits & all) && !keep && (unmap || mask == all)) {
		*freed = old.l2 & (Q2_OFFSET_MASK | Q2_COMPRESSED);
		en.l2 = 0;
		if (!q->bd->backing && unmap)
			en.bits = 0;
	}
	return en;
}

/* q2_drop_empty() - let go of a cluster that holds no unit any more. Only under the lock of the
 * whole cluster: a writer of another unit may have it as its place already. */
static int q2_drop_empty(struct qcow2 *q, uint64_t off)
{
	uint64_t cluster = ALIGN_DOWN(off, q->cluster_size);
	struct q2_range range;
	struct q2_entry en;
	int r;

	q2_range_take(q, &range, cluster, cluster + q->cluster_size);
	pthread_rwlock_wrlock(&q->lock);
	r = q2_entry_locked(q, off, &en);
	if (!r && (en.l2 & Q2_OFFSET_MASK) && !(en.l2 & Q2_COMPRESSED) && !(en.bits & 0xffffffff)) {
		uint64_t host = en.l2 & Q2_OFFSET_MASK;

		r = q2_entry_set_locked(q, off,
					(struct q2_entry){ 0, q->bd->backing ? en.bits : 0 });
		if (!r)
			q2_free_later_locked(q, host, q->cluster_size);
	}
	pthread_rwlock_unlock(&q->lock);
	q2_range_drop(q, &range);
	return r;
}

static int q2_zero_units(struct qcow2 *q, uint64_t off, uint64_t len, bool unmap)
{
	uint64_t mask = q2_unit_mask(q, off, len), all = (1ULL << q->units) - 1;
	struct q2_range range = { 0 };
	struct q2_entry old = { 0 }, en;
	bool freed, whole, empty = false;
	int r;

	if (mask == all || !q->ext_l2)
		q2_range_take(q, &range, ALIGN_DOWN(off, q->cluster_size),
			      ALIGN_DOWN(off, q->cluster_size) + q->cluster_size);
	else if ((r = q2_lock_units(q, &range, off, len)) != 0)
		return r;
	pthread_rwlock_wrlock(&q->lock);
	r = q2_entry_locked(q, off, &old);
	if (!r && (old.l2 & Q2_COMPRESSED) && mask != all)
		r = -EAGAIN; /* a compressed cluster has no units: write the zeroes */
	if (!r) {
		whole = range.end - range.start == q->cluster_size;
		en = q2_zero_entry(q, old, mask, unmap && whole, &freed);
		empty = unmap && q->ext_l2 && (en.l2 & Q2_OFFSET_MASK) && !(en.bits & 0xffffffff);
		if (en.l2 != old.l2 || en.bits != old.bits)
			r = q2_entry_set_locked(q, off, en);
		if (!r && freed) {
			uint64_t host = old.l2 & Q2_OFFSET_MASK, n = q->cluster_size;

			if (old.l2 & Q2_COMPRESSED)
				q2_comp_extent(q, old.l2, &host, &n);
			q2_free_later_locked(q, host, n);
		}
	}
	pthread_rwlock_unlock(&q->lock);
	q2_range_drop(q, &range);
	if (r == -EAGAIN)
		return q2_write_zero_bytes(q, off, len);
	return !r && empty ? q2_drop_empty(q, off) : r;
}

/* q2_zero_cluster() - a range inside one cluster: whole units by their entry, the rest by writing.
 */
static int q2_zero_cluster(struct qcow2 *q, uint64_t off, uint64_t len, uint32_t flags)
{
	uint64_t end = off + len, a = ALIGN_UP(off, q->unit_size),
		 z = ALIGN_DOWN(end, q->unit_size);
	int r = 0;

	if (end == atomic_load(&q->bd->size_bytes))
		z = ALIGN_UP(end, q->unit_size); /* what lies past the disk's end is nobody's */
	if (a >= z)
		return flags & NODE_DISCARD ? 0 : q2_write_zero_bytes(q, off, len);
	if (!(flags & NODE_DISCARD) && off < a)
		r = q2_write_zero_bytes(q, off, a - off);
	if (!r)
		r = q2_zero_units(q, a, z - a, flags & NODE_UNMAP);
	if (!r && !(flags & NODE_DISCARD) && z < end)
		r = q2_write_zero_bytes(q, z, end - z);
	return r;
}

int q2_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	struct qcow2 *q = bd->drv;
	uint64_t epoch;
	int r = q2_begin_write(q);

	if (r)
		return r;
	epoch = q2_epoch_enter(q);
	q2_bitmaps_mark(q, off, len);
	while (len && !r) {
		struct q2_seg s;
		uint64_t n;

		r = q2_seg_get(q, off, len, false, &s);
		if (r)
			break;
		if (s.kind == Q2_UNALLOC && q2_reads_zero(q, s.kind) && !s.host) {
			n = s.len;
		} else {
			n = MIN(len, q->cluster_size - (off & (q->cluster_size - 1)));
			r = q2_zero_cluster(q, off, n, flags);
		}
		off += n;
		len -= n;
	}
	q2_epoch_leave(q, epoch);
	return r ? r : q2_relieve(q);
}

/* --- extents
 * ---------------------------------------------------------------------------------------- */

static void q2_extent_add(struct blk_extent *ext, unsigned *n, struct blk_extent x)
{
	struct blk_extent *last = *n ? &ext[*n - 1] : NULL;

	if (last && last->kind == x.kind && last->depth == x.depth &&
	    last->off_bytes + last->len_bytes == x.off_bytes)
		last->len_bytes += x.len_bytes;
	else
		ext[(*n)++] = x;
}

/* q2_extents_backing() - how the parent sees [off, off+len); returns bytes covered or -errno. */
static int64_t q2_extents_backing(struct qcow2 *q, uint64_t off, uint64_t len,
				  struct blk_extent *ext, unsigned *n, unsigned max)
{
	struct blockdev *back = q->bd->backing;
	struct blk_extent below[16];
	uint64_t at = off, end = off + len;
	int got = 0;

	if (back && off < atomic_load(&back->size_bytes))
		got = node_extents(back, off, below, MIN(max - *n, (unsigned)ARRAY_SIZE(below)));
	if (got < 0)
		return got;
	for (int i = 0; i < got && at < end && *n < max; i++) {
		struct blk_extent x = below[i];

		x.len_bytes = MIN(x.len_bytes, end - at);
		x.depth++;
		q2_extent_add(ext, n, x);
		at += x.len_bytes;
	}
	if (!got) {
		q2_extent_add(ext, n, (struct blk_extent){ off, len, BLK_EXT_HOLE, back ? 1 : 0 });
		at = end;
	}
	return at - off;
}

int q2_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max)
{
	struct qcow2 *q = bd->drv;
	uint64_t size = atomic_load(&bd->size_bytes);
	uint64_t epoch = q2_epoch_enter(q);
	unsigned n = 0;
	int r = 0;

	while (n < max && off < size && !r) {
		struct q2_seg s;
		int64_t took;

		r = q2_seg_get(q, off, size - off, false, &s);
		if (r)
			break;
		took = s.len;
		if (s.kind == Q2_UNALLOC) {
			took = q2_extents_backing(q, off, s.len, ext, &n, max);
			if (took < 0)
				r = took;
		} else {
			q2_extent_add(
			    ext, &n,
			    (struct blk_extent){
				off, s.len, s.kind == Q2_ZERO ? BLK_EXT_ZERO : BLK_EXT_DATA, 0 });
		}
		off += took;
	}
	q2_epoch_leave(q, epoch);
	return r ? r : (int)n;
}

/* --- compressed
 * ------------------------------------------------------------------------------------- */

int q2_write_compressed(struct qcow2 *q, uint64_t off, const void *comp, uint64_t comp_len)
{
	unsigned x = 62 - (q->cluster_bits - 8);
	struct q2_range range;
	struct q2_entry old;
	uint64_t host, sectors;
	int r = q2_begin_write(q);

	if (r)
		return r;
	if (comp_len >= q->cluster_size)
		return -EFBIG;
	q2_bitmaps_mark(q, off, q->cluster_size);
	q2_range_take(q, &range, off, off + q->cluster_size);
	pthread_rwlock_wrlock(&q->lock);
	r = q2_entry_locked(q, off, &old);
	if (!r && (old.l2 || old.bits))
		r = -EEXIST;
	if (!r)
		r = q2_comp_alloc_locked(q, comp_len, &host);
	pthread_rwlock_unlock(&q->lock);
	if (!r && host >> x)
		r = -EFBIG;
	if (!r)
		r = node_pwrite(q->file, comp, comp_len, host);
	if (!r) {
		sectors = ((host & (Q2_SECTOR - 1)) + comp_len + Q2_SECTOR - 1) / Q2_SECTOR - 1;
		pthread_rwlock_wrlock(&q->lock);
		r = q2_entry_set_locked(
		    q, off, (struct q2_entry){ Q2_COMPRESSED | sectors << x | host, 0 });
		pthread_rwlock_unlock(&q->lock);
	}
	q2_range_drop(q, &range);
	return r ? r : q2_relieve(q);
}
