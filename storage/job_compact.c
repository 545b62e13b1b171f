/* job_compact.c - a disk's file made as small as what it holds, in place.
 *
 * Three passes, each stable before the next begins: (1) data that reads as zeroes becomes a zero
 * entry, and over a parent data equal to the parent's is dropped; (2) clusters near the file's end
 * move into free ones nearer its beginning: copied, made stable, and only then is the entry changed
 * (the write path's own order); (3) what no entry references is punched out, and the tail is cut.
 * A crash leaves the disk as it was shown before, at worst with leaks.
 * Threading and trust: job.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/job_util.h"
#include "storage/qcow2.h"

static uint64_t compact_host_bytes(struct blockdev *bd)
{
	struct blk_info i = { 0 };

	bd->ops->info(bd, &i);
	return i.allocated_bytes;
}

static int compact_backing_read(struct blockdev *bd, uint8_t *buf, uint64_t off, uint64_t len)
{
	struct blockdev *b = bd->backing;
	uint64_t size = b ? atomic_load(&b->size_bytes) : 0,
		 there = off < size ? MIN(len, size - off) : 0;

	memset(buf + there, 0, len - there);
	return there ? node_pread(b, buf, there, off) : 0;
}

/* compact_cluster() - one cluster of the top: as few of its units as it needs. Zero where there is
 * no parent to show through is no entry at all; a cluster equal to the parent's is forgotten. */
static int compact_cluster(struct blockdev *bd, uint64_t off, uint64_t len, bool compressed,
			   uint8_t *own, uint8_t *below)
{
	struct qcow2 *q = bd->drv;
	int r = node_pread(bd, own, len, off);

	if (!r && mem_is_zero(own, len))
		return node_zero(bd, off, len, NODE_UNMAP);
	if (!r && bd->backing)
		r = compact_backing_read(bd, below, off, len);
	if (!r && bd->backing && memcmp(own, below, len) == 0)
		return q2_forget_cluster(q, off);
	for (uint64_t at = 0; at < len && !r && q->units > 1 && !compressed;) {
		uint64_t n = 0;

		while (at + n < len && mem_is_zero(own + at + n, MIN(q->unit_size, len - at - n)))
			n += q->unit_size;
		n = MIN(n, len - at);
		if (n)
			r = node_zero(bd, off + at, n, NODE_UNMAP);
		at += n + q->unit_size;
	}
	return r;
}

static int compact_content(struct blockdev *bd, struct blkjob_run *run)
{
	struct qcow2 *q = bd->drv;
	uint64_t size = atomic_load(&bd->size_bytes);
	_cleanup_free_ uint8_t *own = NULL, *below = NULL;
	int r = 0;

	if (posix_memalign((void **)&own, 4096, q->cluster_size) ||
	    posix_memalign((void **)&below, 4096, q->cluster_size))
		return -ENOMEM;
	for (uint64_t off = 0; off < size && !r;) {
		struct q2_seg s;
		uint64_t n, cluster = ALIGN_DOWN(off, q->cluster_size);

		r = q2_seg_get(q, off, size - off, false, &s);
		if (r)
			break;
		if (s.kind == Q2_UNALLOC || s.kind == Q2_ZERO) {
			n = s.len;
		} else {
			n = MIN(q->cluster_size, size - cluster);
			r = compact_cluster(bd, cluster, n, s.kind == Q2_COMP, own, below);
			n -= off - cluster;
		}
		off += n;
		if (!r)
			r = job_step(run, n);
	}
	return r;
}

/* compact_tail() - data clusters at or past @limit go to free ones before it, while there are. */
static int compact_tail(struct blockdev *bd, struct blkjob_run *run)
{
	struct qcow2 *q = bd->drv;
	uint64_t size = atomic_load(&bd->size_bytes);
	int r = 0;

	for (uint64_t off = 0; off < size && !r;) {
		struct q2_entry en;
		struct q2_seg s;
		uint64_t step = q->cluster_size;

		r = q2_seg_get(q, off, size - off, false, &s);
		if (!r && s.kind == Q2_UNALLOC && s.len > step) {
			off = ALIGN_DOWN(off + s.len, q->cluster_size);
			continue;
		}
		if (!r)
			r = q2_entry_get(q, off, &en);
		if (!r && (en.l2 & Q2_COPIED) && !(en.l2 & Q2_COMPRESSED))
			r = q2_relocate(q, off);
		off += step;
		if (!r)
			r = job_step(run, 0);
	}
	return r;
}

static int compact_settle(struct blockdev *bd)
{
	int r = 0;

	/* unreferenced, refcount down, those refcounts written */
	for (int i = 0; i < 3 && !r; i++)
		r = q2_commit(bd->drv);
	return r;
}

int blkjob_compact(const struct blkjob *job, const struct blk_spec *spec, uint64_t *freed,
		   struct err *e)
{
	struct blockdev *bd = job_open(spec, e);
	struct blkjob_run run;
	uint64_t before, after;
	int r = 0, r2;

	*freed = 0;
	if (!bd)
		return e ? -e->num : -EIO;
	if (bd->ops != &qcow2_ops || bd->read_only) {
		err_set(e, EINVAL, "disk-compact", "%s: %s", bd->label,
			bd->read_only ? "is read-only" : "only a qcow2 disk can be compacted");
		blk_close(bd);
		return -EINVAL;
	}
	/* holes are what this is for, whatever the guest may do */
	bd->discard = true;
	before = compact_host_bytes(bd);
	run = job_begin(job, atomic_load(&bd->size_bytes));
	r = q2_begin_write(bd->drv);
	if (!r)
		r = compact_content(bd, &run);
	if (!r)
		r = compact_settle(bd);
	if (!r)
		r = compact_tail(bd, &run);
	if (!r)
		r = compact_settle(bd);
	if (!r)
		r = q2_punch_free(bd->drv);
	after = compact_host_bytes(bd);
	*freed = before > after ? before - after : 0;
	if (r)
		job_error(e, r, bd->label, "compact");
	r2 = blk_close(bd);
	return r ? r : r2 ? job_error(e, r2, spec->label, "compact") : 0;
}
