/* qcow2_compact.c - what compacting needs of the driver: forget, relocate, punch, cut.
 *
 * Each is one cluster at a time under its range lock; clusters let go take the usual way (stable
 * unreferenced first, then the refcount). Threading: any; the job has the image to itself.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2.h"

int q2_forget_cluster(struct qcow2 *q, uint64_t off)
{
	uint64_t cluster = ALIGN_DOWN(off, q->cluster_size);
	struct q2_range range;
	struct q2_entry en;
	int r;

	q2_range_take(q, &range, cluster, cluster + q->cluster_size);
	pthread_rwlock_wrlock(&q->lock);
	r = q2_entry_locked(q, off, &en);
	if (!r && (en.l2 || en.bits)) {
		uint64_t host = en.l2 & Q2_OFFSET_MASK, n = q->cluster_size;

		r = q2_entry_set_locked(q, off, (struct q2_entry){ 0 });
		if (en.l2 & Q2_COMPRESSED)
			q2_comp_extent(q, en.l2, &host, &n);
		if (!r && host)
			q2_free_later_locked(q, host, n);
	}
	pthread_rwlock_unlock(&q->lock);
	q2_range_drop(q, &range);
	return r;
}

int q2_relocate(struct qcow2 *q, uint64_t off)
{
	uint64_t cluster = ALIGN_DOWN(off, q->cluster_size), host, to = 0;
	_cleanup_free_ void *buf = NULL;
	struct q2_range range;
	struct q2_entry en;
	int r;

	if (posix_memalign(&buf, Q2_SLICE_MAX, q->cluster_size))
		return -ENOMEM;
	q2_range_take(q, &range, cluster, cluster + q->cluster_size);
	pthread_rwlock_wrlock(&q->lock);
	r = q2_entry_locked(q, off, &en);
	host = en.l2 & Q2_OFFSET_MASK;
	/* only into a free cluster that lies before it: the list is in order */
	if (!r && host && q->nfree && q->free_ext[0].start << q->cluster_bits < host)
		r = q2_alloc_locked(q, 1, false, &to, NULL);
	pthread_rwlock_unlock(&q->lock);
	if (!r && to > host) {
		pthread_rwlock_wrlock(&q->lock);
		q2_free_now_locked(q, to, q->cluster_size);
		pthread_rwlock_unlock(&q->lock);
		to = 0;
	}
	if (!r && to) {
		r = node_pread(q->file, buf, q->cluster_size, host);
		if (!r)
			r = node_pwrite(q->file, buf, q->cluster_size, to);
		pthread_rwlock_wrlock(&q->lock);
		if (!r)
			r = q2_entry_set_locked(
			    q, off, (struct q2_entry){ to | (en.l2 & ~Q2_OFFSET_MASK), en.bits });
		if (!r)
			q2_free_later_locked(q, host, q->cluster_size);
		else
			q2_free_now_locked(q, to, q->cluster_size);
		pthread_rwlock_unlock(&q->lock);
	}
	q2_range_drop(q, &range);
	return r;
}

int q2_punch_free(struct qcow2 *q)
{
	int r = 0;

	pthread_rwlock_wrlock(&q->lock);
	/* what is free up to the end is no part of the file: closing cuts it off */
	while (q->nfree &&
	       q->free_ext[q->nfree - 1].start + q->free_ext[q->nfree - 1].count == q->bump) {
		q->bump = q->free_ext[--q->nfree].start;
		q->prealloc_end = MAX(q->prealloc_end, (q->bump + 1) << q->cluster_bits);
		q->zero_from = MAX(q->zero_from, atomic_load(&q->host_end) >> q->cluster_bits);
	}
	for (unsigned i = 0; i < q->nfree && !r; i++)
		r = node_zero(q->file, q->free_ext[i].start << q->cluster_bits,
			      q->free_ext[i].count << q->cluster_bits, NODE_UNMAP | NODE_DISCARD);
	pthread_rwlock_unlock(&q->lock);
	return r;
}
