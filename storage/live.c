/* live.c - a new top layer under a running guest, and what the live verbs share.
 *
 * A snapshot opens all overlays first, which may fail without a trace; then shuts all gates, makes
 * the old tops stable and read-only, and puts each under its overlay, which cannot fail. A disk of
 * several nodes keeps its filters: only the qcow2 below them is replaced, at its address.
 * Threading and trust: live.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/live_util.h"

struct blockdev *live_top(struct blockdev *root, struct err *e)
{
	struct blockdev *bd = root;

	while (bd->ops != &qcow2_ops && bd->child)
		bd = bd->child;
	if (bd->ops == &qcow2_ops)
		return bd;
	err_set(e, ENOTSUP, "disk-format", "%s: only a qcow2 disk can have layers", root->label);
	err_hint(e, "convert it to qcow2 first: vmctl disk convert");
	return NULL;
}

struct blockdev *live_below(struct blockdev *top, unsigned depth)
{
	while (top && depth--)
		top = top->backing;
	return top;
}

void live_carry_bitmaps(struct blockdev *from, struct blockdev *to)
{
	struct qcow2 *q = from->drv;
	struct err e = { 0 };

	if (from->ops != &qcow2_ops || to->ops != &qcow2_ops)
		return;
	if (q2_bitmaps_load(q, &e) < 0)
		return;
	pthread_rwlock_rdlock(&q->bm_lock);
	list_for_each (l, &q->bm) {
		const struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);
		struct blk_bits bits = { .granularity = 1ULL << b->disk.granularity_bits,
					 .n = b->nbits,
					 .words = (uint64_t *)(uintptr_t)b->words };
		int r;

		if (!b->enabled || b->stale)
			continue;
		e = (struct err){ 0 };
		r = blk_bitmap_create(to, b->disk.name, bits.granularity, true, &e);
		if (r == 0 || r == -EEXIST)
			r = blk_bitmap_give_back(to, b->disk.name, &bits, &e);
		if (r)
			log_warn("%s: bitmap \"%s\" does not go on in the new layer: %s", to->label,
				 b->disk.name, e.detail);
	}
	pthread_rwlock_unlock(&q->bm_lock);
}

void live_pace(const struct blkjob *job, uint64_t start_ns, uint64_t done)
{
	uint64_t until, step;

	if (!job || !job->bps)
		return;
	until = start_ns + (uint64_t)((unsigned __int128)done * NS_PER_S / job->bps);
	/* in short sleeps: a cancel is not kept waiting */
	while (clock_mono_ns() < until && !(job->cancel && atomic_load(job->cancel))) {
		struct timespec ts;

		step = MIN(until, clock_mono_ns() + 50 * NS_PER_MS);
		ts = (struct timespec){ step / NS_PER_S, step % NS_PER_S };
		(void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
	}
}

/* --- snapshot ----------------------------------------------------------------------------------
 */

static struct blockdev *live_overlay_open(const struct blk_live_overlay *v, struct err *e)
{
	static const char *const opts[] = { "backing=ignore", NULL };
	struct blockdev *top = live_top(v->bd, e), *bd;
	struct blk_spec s = *v->overlay;
	unsigned layers = 1;

	if (!top)
		return NULL;
	if (top->read_only) {
		err_set(e, EROFS, "disk-read-only", "%s: is read-only", top->label);
		return NULL;
	}
	for (struct blockdev *b = top; b; b = b->backing)
		layers++;
	if (layers > BLK_CHAIN_MAX) {
		err_set(e, ELOOP, "disk-chain-too-deep", "%s: more than %d layers in the chain",
			top->label, BLK_CHAIN_MAX);
		err_hint(e, "shorten it first: vmctl disk commit");
		return NULL;
	}
	if (!s.opts)
		s.opts = opts;
	bd = node_open(&s, top->depth, e);
	if (!bd)
		return NULL;
	if (bd->ops != &qcow2_ops || bd->read_only ||
	    atomic_load(&bd->size_bytes) != atomic_load(&top->size_bytes)) {
		err_set(e, EINVAL, "disk-overlay",
			"%s: the new layer is not a writable qcow2 of the disk's size",
			v->overlay->label ? v->overlay->label : "overlay");
		node_close(bd, true);
		return NULL;
	}
	return bd;
}

/* live_put_under() - @old's place goes to @over, and @old's content below it as @shell. */
static void live_put_under(struct blockdev *top, struct blockdev *over, struct blockdev *shell)
{
	bool discard = top->discard, detect_zeroes = top->detect_zeroes;

	node_move(shell, top);
	node_move(top, over);
	top->discard = discard;
	top->detect_zeroes = detect_zeroes;
	top->backing = shell;
	node_shell_free(over);
	node_redepth(top, shell->depth);
}

int blk_live_snapshot(const struct blk_live_overlay *v, unsigned n, struct err *e)
{
	struct blockdev **over = calloc(2 * (size_t)MAX(n, 1u), sizeof(struct blockdev *));
	struct blockdev **shell;
	unsigned shut = 0, made = 0;
	int r = 0;

	if (!over)
		return err_set(e, ENOMEM, "out-of-memory", "snapshot: out of memory");
	shell = over + MAX(n, 1u);
	for (; made < n && !r; made++) {
		over[made] = live_overlay_open(&v[made], e);
		shell[made] = over[made] ? node_shell_new("") : NULL;
		if (over[made] && !shell[made])
			err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", v[made].bd->label);
		if (!shell[made])
			r = -e->num;
	}
	for (; shut < n && !r; shut++)
		node_gate_shut(v[shut].bd);
	for (unsigned i = 0; i < n && !r; i++) {
		struct blockdev *top = live_top(v[i].bd, e);

		/* stable first, on all disks; only then is any of them changed */
		r = node_flush(top);
		if (r)
			err_set(e, -r, "disk-flush", "%s: cannot be made stable: %s", top->label,
				strerror(-r));
	}
	for (unsigned i = 0; i < n && !r; i++) {
		struct blockdev *top = live_top(v[i].bd, e);

		r = top->ops->freeze(top);
		if (!r)
			continue;
		err_set(e, -r, "disk-flush", "%s: cannot be made stable: %s", top->label,
			strerror(-r));
		/* those before it go on being written: frozen, they lost nothing but their locks */
		while (i--)
			(void)live_top(v[i].bd, e)->ops->thaw(live_top(v[i].bd, e), -1, e);
	}
	for (unsigned i = 0; i < n && !r; i++) {
		struct blockdev *top = live_top(v[i].bd, e);

		live_carry_bitmaps(top, over[i]);
		if (shell[i]) /* all are there, or r says so */
			live_put_under(top, over[i], shell[i]);
	}
	while (shut)
		node_gate_open(v[--shut].bd);
	for (unsigned i = 0; i < made && r; i++) {
		if (shell[i])
			node_shell_free(shell[i]);
		if (over[i])
			node_close(over[i], true);
	}
	free(over);
	return r;
}
