/* job_chain.c - jobs over a chain of layers: commit and rebase.
 *
 * Commit writes what the top layer holds (depth 0) into its parent, zeroes as zeroes, and makes the
 * parent stable; the top is left as it is, for the caller drops it once the daemon's state says so.
 * Rebase compares old and new parent where the top holds nothing and copies what differs; the
 * header changes last. Both may be repeated after a crash. Threading and trust: job.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/job_util.h"
#include "storage/live_util.h"
#include "storage/qcow2.h"
#include "storage/qcow2_tools.h"

#define CHAIN_STEP JOB_CHAIN_STEP

int job_commit_range(struct blockdev *top, struct blockdev *into, uint8_t *buf,
		     const struct blk_extent *x, uint64_t limit, struct blkjob_run *run)
{
	uint64_t off = x->off_bytes, end = MIN(x->off_bytes + x->len_bytes, limit);
	int r = 0;

	while (off < end && !r) {
		uint64_t len = MIN(end - off, CHAIN_STEP);

		if (x->kind == BLK_EXT_ZERO) {
			len = end - off;
			r = node_zero(into, off, len, NODE_UNMAP);
		} else {
			r = node_pread(top, buf, len, off);
			if (!r)
				r = node_pwrite(into, buf, len, off);
		}
		if (!r)
			r = job_step(run, len);
		off += len;
	}
	return r;
}

/* commit_note_parent() - the parent changed by our own hand: the top, which stays valid over it, is
 * told; closing the parent must not change it again. */
static int commit_note_parent(struct blockdev *top, struct blockdev *into)
{
	int r;

	if (top->ops != &qcow2_ops || top->read_only)
		return 0;
	r = into->ops->freeze ? into->ops->freeze(into) : 0;
	return r ? r : q2_stamp_renew(top->drv);
}

int blkjob_commit(const struct blkjob *job, const struct blk_spec *top_spec, struct err *e)
{
	struct blockdev *top = job_open(top_spec, e), *into;
	_cleanup_free_ uint8_t *buf = NULL;
	uint64_t off = 0, size;
	struct blkjob_run run;
	int r = 0, r2;

	if (!top)
		return e ? -e->num : -EIO;
	into = top->backing;
	size = atomic_load(&top->size_bytes);
	run = job_begin(job, size);
	if (!into || into->read_only)
		r = err_set(e, EINVAL, "disk-commit", "%s: %s", top->label,
			    into ? "its parent was not opened for writing"
				 : "has no parent to commit into");
	/* an end at any moment leaves a disk that opens */
	if (!r && top->ops == &qcow2_ops && !top->read_only)
		r = q2_stamp_lift(top->drv);
	if (!r && atomic_load(&into->size_bytes) < size)
		r = blk_resize(into, size, e);
	if (!r && posix_memalign((void **)&buf, 4096, CHAIN_STEP))
		r = -ENOMEM;
	while (!r && off < size) {
		struct blk_extent x[32];
		int n = blk_extents(top, off, x, ARRAY_SIZE(x));

		if (n <= 0) {
			r = n;
			break;
		}
		for (int i = 0; i < n && !r; i++) {
			if (x[i].depth == 0 && x[i].kind != BLK_EXT_HOLE)
				r = job_commit_range(top, into, buf, &x[i], size, &run);
			else
				r = job_step(&run, x[i].len_bytes);
			off = x[i].off_bytes + x[i].len_bytes;
		}
	}
	if (!r && into)
		r = node_flush(into);
	/* half a commit takes nothing from what the top shows: it stays usable over what it wrote */
	if (into && !into->read_only) {
		r2 = commit_note_parent(top, into);
		r = r ? r : r2;
	}
	if (r)
		job_error(e, r, top->label, "commit");
	r2 = blk_close(top);
	return r ? r : r2 ? job_error(e, r2, top_spec->label, "commit") : 0;
}

static int rebase_read(struct blockdev *bd, uint8_t *buf, uint64_t off, uint64_t len)
{
	uint64_t size = bd ? atomic_load(&bd->size_bytes) : 0,
		 there = off < size ? MIN(len, size - off) : 0;

	memset(buf + there, 0, len - there);
	return there ? blk_pread(bd, buf, there, off) : 0;
}

static int rebase_range(struct blockdev *top, struct blockdev *parent, uint8_t *was, uint8_t *will,
			uint64_t off, uint64_t end, struct blkjob_run *run)
{
	struct qcow2 *q = top->drv;
	int r = 0;

	while (off < end && !r) {
		uint64_t len = MIN(end - off, CHAIN_STEP), step = MAX(q->unit_size, 4096ULL);

		r = rebase_read(top->backing, was, off, len);
		if (!r)
			r = rebase_read(parent, will, off, len);
		for (uint64_t at = 0; at < len && !r; at += step) {
			uint64_t n = MIN(step, len - at);

			if (memcmp(was + at, will + at, n) == 0)
				continue;
			/* zeroes too: holes would show the new parent. A disk that had no parent
			 * keeps no zero entries, so there they are written out */
			if (top->backing && mem_is_zero(was + at, n))
				r = node_zero(top, off + at, n, 0);
			else
				r = node_pwrite(top, was + at, n, off + at);
		}
		if (!r)
			r = job_step(run, len);
		off += len;
	}
	return r;
}

static int rebase_copy(struct blkjob_run *run, struct blockdev *top, struct blockdev *parent)
{
	uint64_t off = 0, size = atomic_load(&top->size_bytes);
	_cleanup_free_ uint8_t *was = NULL, *will = NULL;
	int r = 0;

	if (posix_memalign((void **)&was, 4096, CHAIN_STEP) ||
	    posix_memalign((void **)&will, 4096, CHAIN_STEP))
		return -ENOMEM;
	while (!r && off < size) {
		struct blk_extent x[32];
		int n = blk_extents(top, off, x, ARRAY_SIZE(x));

		if (n <= 0)
			return n;
		for (int i = 0; i < n && !r; i++) {
			uint64_t end = MIN(x[i].off_bytes + x[i].len_bytes, size);

			if (x[i].depth > 0 || x[i].kind == BLK_EXT_HOLE)
				r = rebase_range(top, parent, was, will, off, end, run);
			else
				r = job_step(run, end - off);
			off = end;
		}
	}
	return r ? r : blk_flush(top);
}

int blkjob_rebase(const struct blkjob *job, const struct blk_spec *top_spec,
		  const struct blk_spec *parent_spec, const char *parent_name,
		  const char *parent_format, bool unsafe, struct err *e)
{
	static const char *const opts[] = { "backing-changed=accept", NULL };
	struct blk_spec accept = *top_spec;
	struct blockdev *parent = NULL, *top;
	struct blkjob_run run;
	int r = 0, r2;

	/* it is the way out where the parent was changed */
	if (!accept.opts)
		accept.opts = opts;
	top = job_open(&accept, e);
	if (parent_spec) {
		if (top)
			parent = job_open(parent_spec, e);
		else
			job_close_fds(parent_spec);
	}
	if (!top || (parent_spec && !parent)) {
		blk_close(top);
		return e && e->num ? -e->num : -EIO;
	}
	run = job_begin(job, atomic_load(&top->size_bytes));
	if (top->ops != &qcow2_ops)
		r = err_set(e, ENOTSUP, "disk-format", "%s: only a qcow2 image has a parent",
			    top->label);
	if (!r && !unsafe)
		r = rebase_copy(&run, top, parent);
	if (!r)
		r = qcow2_set_backing_name(top, parent ? parent_name : NULL, parent_format, e);
	if (r)
		job_error(e, r, top->label, "rebase");
	blk_close(parent);
	r2 = blk_close(top);
	return r ? r : r2 ? job_error(e, r2, top_spec->label, "rebase") : 0;
}

int blkjob_carry_bitmaps(const struct blk_spec *from, const struct blk_spec *to, struct err *e)
{
	static const char *const alone[] = { "backing=ignore", NULL };
	struct blk_spec old = *from, new = *to;
	struct blockdev *a, *b = NULL;
	int r = 0;

	old.opts = new.opts = alone;
	old.backing = new.backing = NULL;
	a = blk_open(&old, e);
	if (a)
		b = blk_open(&new, e);
	if (!b)
		r = -e->num;
	else
		live_carry_bitmaps(a, b);
	if (b) {
		int closed = blk_close(b);

		if (closed)
			r = err_set(e, -closed, "disk-close", "%s: cannot be made stable: %s",
				    new.label, strerror(-closed));
	}
	if (a)
		blk_close(a);
	return r;
}
