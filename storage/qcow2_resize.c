/* qcow2_resize.c - growing and shrinking the virtual disk.
 *
 * Growing within the L1 table is one header write; beyond it, a larger L1 is written at a new
 * place, made stable, and only then does the header point to it. Shrinking unreferences the
 * clusters past the new end first. Requests may be in flight; those past a new end were refused or
 * are lost.
 * Threading: any; one at a time by the flush lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"
#include "storage/qcow2.h"

static uint64_t q2_l1_need(const struct qcow2 *q, uint64_t size)
{
	unsigned span = q->cluster_bits + q->l2_bits;

	return (size >> span) + ((size & ((1ULL << span) - 1)) != 0);
}

/* q2_l1_grow() - a larger L1 at a new place, complete on disk before the header names it. */
static int q2_l1_grow(struct qcow2 *q, uint32_t n)
{
	uint64_t old_off = q->l1.top_off, old_len = ALIGN_UP(q->l1.top_n * 8ULL, q->cluster_size);
	uint64_t host, clusters = q2_clusters(q, n * 8ULL), old_n = q->l1.top_n, *be;
	struct q2_dir *d = &q->l1;
	int r = q2_alloc_locked(q, clusters, true, &host, NULL);

	if (r)
		return r;
	be = q2_table_new(clusters << q->cluster_bits);
	r = be ? 0 : -ENOMEM;
	for (uint64_t i = 0; !r && i < old_n; i++)
		be[i] = htobe64(d->top[i]);
	if (!r)
		r = node_pwrite(q->file, be, clusters << q->cluster_bits, host);
	q2_table_free(be, clusters << q->cluster_bits);
	if (!r)
		r = q2_dir_grow(d, n);
	if (r) {
		for (uint64_t c = 0; c < clusters; c++)
			q2_meta_del_locked(q, host + (c << q->cluster_bits));
		q2_free_now_locked(q, host, clusters << q->cluster_bits);
		return r;
	}
	d->top_off = host;
	q->header_dirty = true;
	q->slice_gen++;
	for (uint64_t at = 0; at < old_len; at += q->cluster_size)
		q2_meta_del_locked(q, old_off + at);
	if (old_len)
		q2_free_later_locked(q, old_off, old_len);
	return 0;
}

static int q2_shrink_clusters(struct qcow2 *q, uint64_t size, uint64_t old)
{
	uint64_t off = ALIGN_UP(size, q->cluster_size);
	int r = 0;

	/* the last cluster's tail: must read as zeroes if the disk grows again */
	if (off > size && off <= ALIGN_UP(old, q->cluster_size)) {
		uint64_t tail = MIN(off, old) - size;

		r = q2_zero(q->bd, size, tail, 0);
	}
	while (off < old && !r) {
		struct q2_seg s;

		r = q2_seg_get(q, off, old - off, false, &s);
		if (r)
			break;
		if (s.kind == Q2_UNALLOC && !s.host) {
			off += s.len;
			continue;
		}
		pthread_rwlock_wrlock(&q->lock);
		struct q2_entry en;
		uint64_t host, n = q->cluster_size;

		r = q2_entry_locked(q, off, &en);
		if (!r && (en.l2 || en.bits)) {
			r = q2_entry_set_locked(q, off, (struct q2_entry){ 0 });
			host = en.l2 & Q2_OFFSET_MASK;
			if (en.l2 & Q2_COMPRESSED)
				q2_comp_extent(q, en.l2, &host, &n);
			if (!r && host)
				q2_free_later_locked(q, host, n);
		}
		pthread_rwlock_unlock(&q->lock);
		off += q->cluster_size;
	}
	return r;
}

int q2_resize(struct blockdev *bd, uint64_t size, struct err *e)
{
	struct qcow2 *q = bd->drv;
	uint64_t old = atomic_load(&bd->size_bytes), need = q2_l1_need(q, size);
	int r;

	if (need * 8 > Q2_L1_MAX_BYTES)
		return err_set(e, EFBIG, "disk-size",
			       "%s: %llu bytes is too large for clusters of %llu bytes", bd->label,
			       (unsigned long long)size, (unsigned long long)q->cluster_size);
	if (q->nb_snapshots)
		return err_set(e, ENOTSUP, "disk-resize",
			       "%s: has internal snapshots; delete them or convert the disk first",
			       bd->label);
	r = q2_begin_write(q);
	if (!r)
		r = q2_bitmaps_resize(q, size);
	if (!r && size < old) {
		r = q2_shrink_clusters(q, size, old);
		if (!r)
			atomic_store(&bd->size_bytes, size);
	}
	pthread_mutex_lock(&q->flush_lock);
	if (!r) {
		pthread_rwlock_wrlock(&q->lock);
		if (need > q->l1.top_n)
			r = q2_l1_grow(q, need);
		if (!r) {
			atomic_store(&bd->size_bytes, size);
			q->header_dirty = true;
		}
		pthread_rwlock_unlock(&q->lock);
	}
	if (!r)
		r = q2_commit(q);
	pthread_mutex_unlock(&q->flush_lock);
	if (r)
		return err_set(e, -r, "disk-resize", "%s: cannot be made %llu bytes: %s", bd->label,
			       (unsigned long long)size, strerror(-r));
	return 0;
}
