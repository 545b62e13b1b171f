/* live_move.c - chains made shorter while the disk is used: stream (pull up), commit (push down).
 *
 * Stream copies under the top layer's own locks what it does not hold; a crash leaves a top that
 * holds more than before, over the same parent. Commit of a lower layer copies what hides the layer
 * it is written into, so that nobody sees the difference; commit of the top tracks what is written
 * meanwhile and repeats, and does the last part with the gate shut. A crash leaves both layers, and
 * the chain shows the same. Only when all is stable does the graph change.
 * Threading and trust: live.h.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/live_util.h"

#define STREAM_STEP   (4 * MIB)
#define COMMIT_ROUNDS 10
#define COMMIT_LAST   (4 * MIB) /* what may be copied while requests wait */

/* --- stream ------------------------------------------------------------------------------------
 */

/* stream_copy() - everything of layers above @base (0: of all) becomes the top's. */
static int stream_copy(struct blockdev *root, struct blockdev *top, unsigned base,
		       struct blkjob_run *run)
{
	uint64_t size = atomic_load(&top->size_bytes), t0 = clock_mono_ns(), copied = 0;
	int r = 0;

	for (uint64_t off = 0; off < size && !r;) {
		struct blk_extent x[16];
		uint64_t step;
		int n;

		node_gate_enter(root);
		n = node_extents(top, off, x, ARRAY_SIZE(x));
		node_gate_leave(root);
		if (n <= 0)
			return n;
		for (int i = 0; i < n && !r; i++) {
			bool want = x[i].depth > 0 &&
				    (base ? x[i].depth < base : x[i].kind == BLK_EXT_DATA);
			uint64_t end = MIN(x[i].off_bytes + x[i].len_bytes, size);

			for (off = x[i].off_bytes; off < end && !r; off += step) {
				step = want ? MIN(end - off, STREAM_STEP) : end - off;
				if (want) {
					node_gate_enter(root);
					r = q2_populate(top->drv, off, step);
					node_gate_leave(root);
					copied += step;
					live_pace(run->job, t0, copied);
				}
				if (!r)
					r = job_step(run, step);
			}
			off = end;
		}
	}
	return r;
}

int blk_live_stream(struct blockdev *root, unsigned base, const char *base_name,
		    const char *base_format, const struct blkjob *job, struct err *e)
{
	struct blockdev *top = live_top(root, e), *stays, *above, *gone;
	struct blkjob_run run;
	int r;

	if (!top)
		return -e->num;
	stays = base == UINT_MAX ? NULL : live_below(top, base);
	if (top->read_only || !top->backing || base == 0 || (base != UINT_MAX && !stays))
		return err_set(e, EINVAL, "disk-stream", "%s: %s", top->label,
			       top->read_only ? "is read-only" : "has no such layer below it");
	if (stays == top->backing)
		return 0;
	run = job_begin(job, atomic_load(&top->size_bytes));
	r = stream_copy(root, top, stays ? base : 0, &run);
	if (!r)
		r = node_flush(top);
	if (r)
		return job_error(e, r, top->label, "stream");
	node_gate_shut(root);
	/* what was written since is above all of it: one more flush, then the header */
	r = q2_begin_write(top->drv);
	if (!r)
		r = node_flush(top);
	if (!r)
		r = q2_header_rewrite(top->drv, stays ? base_name : NULL, base_format);
	if (!r) {
		gone = top->backing;
		for (above = gone; above->backing != stays;)
			above = above->backing;
		q2_chain_drop(top->drv);
		above->backing = NULL;
		top->backing = stays;
		node_redepth(top, top->depth);
		(void)q2_stamp_renew(top->drv); /* if not now, then at the next first write */
	}
	node_gate_open(root);
	if (r)
		return job_error(e, r, top->label, "stream");
	node_close(gone, false);
	return 0;
}

/* --- commit --------------------------------------------------------------------------------------
 */

struct commit {
	struct blkjob_run run;
	struct blockdev *root, *top, *from, *into;
	uint8_t *buf;
	uint64_t t0, copied;
};

static int commit_extents(struct commit *c, uint64_t off, uint64_t end, bool gated)
{
	int r = 0;

	while (off < end && !r) {
		struct blk_extent x[16];
		int n;

		if (!gated)
			node_gate_enter(c->root);
		n = node_extents(c->from, off, x, gated ? ARRAY_SIZE(x) : 1);
		if (n <= 0)
			r = n ? n : -EIO;
		for (int i = 0; i < n && off < end && !r; i++) {
			uint64_t stop = MIN(x[i].off_bytes + x[i].len_bytes, end);

			/* the gate is not held for longer than one step takes */
			if (x[i].depth == 0 && x[i].kind == BLK_EXT_DATA && !gated &&
			    stop - off > STREAM_STEP)
				stop = off + STREAM_STEP;
			x[i].len_bytes = stop - off;
			x[i].off_bytes = off;
			if (x[i].depth == 0 && x[i].kind != BLK_EXT_HOLE) {
				r = job_commit_range(c->from, c->into, c->buf, &x[i], stop,
						     &c->run);
				c->copied += x[i].kind == BLK_EXT_DATA ? stop - off : 0;
			} else {
				r = job_step(&c->run, stop - off);
			}
			off = stop;
		}
		if (!gated) {
			node_gate_leave(c->root);
			live_pace(c->run.job, c->t0, c->copied);
		}
	}
	return r;
}

static uint64_t commit_dirty_bytes(const struct blk_bits *b)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < (b->n + 63) / 64; i++)
		n += __builtin_popcountll(b->words[i]);
	return n * b->granularity;
}

static int commit_dirty(struct commit *c, const struct blk_bits *b, bool gated)
{
	uint64_t size = atomic_load(&c->from->size_bytes);
	int r = 0;

	for (uint64_t i = 0; i < b->n && !r; i++)
		if (b->words[i / 64] >> (i % 64) & 1)
			r = commit_extents(c, i * b->granularity,
					   MIN((i + 1) * b->granularity, size), gated);
	return r;
}

/* commit_top_rounds() - leaves with the gate shut and all copied, or with it open and an error. */
static int commit_top_rounds(struct commit *c)
{
	struct qcow2 *q = c->top->drv;
	int r = commit_extents(c, 0, atomic_load(&c->from->size_bytes), false);

	for (unsigned round = 0; !r; round++) {
		struct blk_bits bits;
		bool last;

		r = q2_track_take(q, &bits);
		if (r)
			break;
		last = commit_dirty_bytes(&bits) <= COMMIT_LAST || round == COMMIT_ROUNDS;
		/* a write marks itself before it lands: those that marked what we took end first */
		node_gate_shut(c->root);
		if (last) {
			struct blk_bits more;

			r = commit_dirty(c, &bits, true);
			if (!r)
				r = q2_track_take(q, &more);
			if (!r) {
				r = commit_dirty(c, &more, true);
				blk_bits_fini(&more);
			}
			blk_bits_fini(&bits);
			if (r)
				node_gate_open(c->root);
			return r;
		}
		node_gate_open(c->root);
		r = commit_dirty(c, &bits, false);
		blk_bits_fini(&bits);
	}
	return r;
}

static int commit_top(struct commit *c, struct err *e)
{
	struct blockdev *top = c->top, *into = c->into, *shell = node_shell_new("");
	bool discard = top->discard, detect_zeroes = top->detect_zeroes;
	int r = shell ? 0 : -ENOMEM;

	if (!r) {
		node_gate_shut(c->root);
		r = q2_begin_write(top->drv);
		if (!r)
			r = q2_track_start(top->drv);
		node_gate_open(c->root);
	}
	if (!r)
		r = commit_top_rounds(c);
	if (r) {
		q2_track_stop(top->drv);
		if (shell)
			node_shell_free(shell);
		return r;
	}
	r = node_flush(into);
	q2_track_stop(top->drv);
	/* whoever knows only of the old file finds the same disk in it, now and after later writes */
	if (!r)
		r = q2_show_backing(top->drv);
	if (!r) {
		unsigned depth = top->depth;

		live_carry_bitmaps(top, into);
		top->backing = NULL;
		node_move(shell, top);
		node_move(top, into);
		node_shell_free(into);
		top->discard = discard;
		top->detect_zeroes = detect_zeroes;
		if (top->ops == &qcow2_ops)
			q2_chain_drop(top->drv);
		node_redepth(top, depth);
	}
	node_gate_open(c->root);
	if (r) {
		node_shell_free(shell);
		return r;
	}
	/* whatever closing it says, its content is below and stable */
	(void)node_close(shell, false);
	(void)e;
	return 0;
}

/* commit_lower() - the layer below the top, which is not written by anybody. */
static int commit_lower(struct commit *c, const char *name, const char *format)
{
	int r = commit_extents(c, 0, atomic_load(&c->from->size_bytes), false);

	if (!r)
		r = node_flush(c->into);
	if (r)
		return r;
	node_gate_shut(c->root);
	r = node_flush(c->top);
	if (!r && c->into->ops->freeze)
		r = c->into->ops->freeze(c->into);
	if (!r) {
		r = q2_begin_write(c->top->drv);
		if (!r)
			r = q2_header_rewrite(c->top->drv, name, format);
	}
	if (!r) {
		q2_chain_drop(c->top->drv);
		c->top->backing = c->into;
		c->from->backing = NULL;
		node_redepth(c->top, c->top->depth);
		(void)q2_stamp_renew(c->top->drv); /* if not now, then at the next first write */
	}
	node_gate_open(c->root);
	if (!r)
		(void)node_close(c->from, false);
	return r;
}

int blk_live_commit(struct blockdev *root, unsigned depth, int into_fd, const char *name,
		    const char *format, const struct blkjob *job, struct err *e)
{
	struct commit c = { .run = job_begin(job, 0), .root = root };
	_cleanup_free_ uint8_t *buf = NULL;
	int r = 0;

	c.top = live_top(root, e);
	if (!c.top)
		return -e->num;
	c.from = live_below(c.top, depth);
	c.into = c.from ? c.from->backing : NULL;
	if (depth > 1 || !c.into || c.top->read_only)
		return err_set(e, EINVAL, "disk-commit", "%s: %s", c.top->label,
			       depth > 1 ? "only the top layer and the one below it are committed "
					   "while the disk is used"
			       : c.into	 ? "is read-only"
					 : "has no such layer to commit into");
	if (!depth && atomic_load(&c.into->size_bytes) > atomic_load(&c.from->size_bytes))
		return err_set(
		    e, EINVAL, "disk-commit",
		    "%s: is smaller than the layer below it, which would become the disk",
		    c.top->label);
	if (!c.into->ops->thaw)
		return err_set(e, EOPNOTSUPP, "disk-commit", "%s: cannot be made writable",
			       c.into->label);
	if (posix_memalign((void **)&buf, 4096, JOB_CHAIN_STEP))
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", c.top->label);
	c.buf = buf;
	c.run.total = atomic_load(&c.from->size_bytes);
	c.t0 = clock_mono_ns();
	node_gate_shut(root);
	r = c.top->ops == &qcow2_ops ? q2_stamp_lift(c.top->drv) : 0;
	if (!r)
		r = c.into->ops->thaw(c.into, into_fd, e);
	if (!r) {
		/* the merged map knows only layers that stand still */
		q2_chain_drop(c.top->drv);
		if (atomic_load(&c.into->size_bytes) < c.run.total)
			r = node_resize(c.into, c.run.total, e);
	}
	node_gate_open(root);
	if (c.into->read_only)
		return job_error(e, r, c.top->label, "commit");
	if (!r)
		r = depth ? commit_lower(&c, name, format) : commit_top(&c, e);
	if (r) {
		job_error(e, r, c.top->label, "commit");
		node_gate_shut(root);
		if (!c.into->read_only && c.into->ops->freeze)
			(void)c.into->ops->freeze(c.into);
		q2_chain_drop(c.top->drv);
		if (!depth) /* deeper it stays lifted, for that layer's own note is out of date */
			(void)q2_stamp_renew(c.top->drv);
		node_gate_open(root);
	}
	return r;
}
