/* live_backup.c - copy before write: what a disk held at one moment, to a target, while it is used.
 *
 * A filter is put at the disk's root. It keeps a bit for each stretch: still to be copied or not. A
 * guest's write to a stretch that is still to be copied waits until its old content is on the
 * target; the backup's own thread copies the rest in order. Stretches are locked in short runs, so
 * that nobody waits for long. Incremental: the stretches are those of a bitmap, taken and emptied
 * at the same moment.
 * A target that fails ends the backup: from then on writes pass, and the error is told at the end.
 * Threading and trust: live.h. The target is flushed only at its end: half a backup is none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/filter.h"
#include "storage/live_util.h"

#define BACKUP_STRETCH (64 * KIB)
#define BACKUP_BATCH   16 /* stretches that the backup's thread copies as one */

struct blk_backup {
	struct blockdev *root, *source, *target; /* source: what the filter passes to */
	uint64_t size, stretch, n;
	_Atomic uint64_t *todo; /* a bit a stretch */
	pthread_mutex_t lock;
	pthread_cond_t done;
	uint64_t
	    busy[BACKUP_BATCH + 64]; /* first stretches of runs being copied; UINT64_MAX free */
	uint64_t busy_n[BACKUP_BATCH + 64];
	_Atomic int error;
	_Atomic uint64_t copied;
	struct blk_bits bits;
	char bitmap[BLK_BITMAP_NAME_MAX + 1];
	bool whole, unknown;
};

static bool backup_todo(const struct blk_backup *b, uint64_t i)
{
	return atomic_load(&b->todo[i / 64]) >> (i % 64) & 1;
}

static bool backup_any(const struct blk_backup *b, uint64_t first, uint64_t last)
{
	for (uint64_t i = first; i <= last && i < b->n; i++)
		if (backup_todo(b, i))
			return true;
	return false;
}

/* backup_claim() - the first run of at most @max stretches still to be copied in [first, last],
 * ours alone; waits for others that copy one of them. 0: none is left. */
static unsigned backup_claim(struct blk_backup *b, uint64_t first, uint64_t last, unsigned max,
			     uint64_t *start, unsigned *slot)
{
	unsigned n = 0;

	pthread_mutex_lock(&b->lock);
	for (;;) {
		uint64_t i = first;
		bool clash = false;

		while (i <= last && !backup_todo(b, i))
			i++;
		if (i > last || atomic_load(&b->error))
			break;
		for (n = 1; n < max && i + n <= last && backup_todo(b, i + n);)
			n++;
		*slot = UINT32_MAX;
		for (unsigned k = 0; k < ARRAY_SIZE(b->busy); k++) {
			if (b->busy[k] == UINT64_MAX)
				*slot = k;
			else if (b->busy[k] < i + n && i < b->busy[k] + b->busy_n[k])
				clash = true;
		}
		if (!clash && *slot != UINT32_MAX) {
			b->busy[*slot] = *start = i;
			b->busy_n[*slot] = n;
			pthread_mutex_unlock(&b->lock);
			return n;
		}
		pthread_cond_wait(&b->done, &b->lock);
	}
	pthread_mutex_unlock(&b->lock);
	return 0;
}

static void backup_release(struct blk_backup *b, uint64_t start, unsigned n, unsigned slot)
{
	pthread_mutex_lock(&b->lock);
	for (uint64_t i = start; i < start + n; i++)
		atomic_fetch_and(&b->todo[i / 64], ~(1ULL << (i % 64)));
	b->busy[slot] = UINT64_MAX;
	pthread_cond_broadcast(&b->done);
	pthread_mutex_unlock(&b->lock);
}

static int backup_copy_run(struct blk_backup *b, uint64_t off, uint64_t len)
{
	_cleanup_free_ uint8_t *buf = NULL;
	int r;

	if (posix_memalign((void **)&buf, 4096, len))
		return -ENOMEM;
	r = node_pread(b->source, buf, len, off);
	if (r)
		return r;
	/* the target of a full backup is zeroes, one of an incremental shows the last backup */
	if (mem_is_zero(buf, len))
		return b->bitmap[0] || b->unknown ? node_zero(b->target, off, len, NODE_UNMAP) : 0;
	return node_pwrite(b->target, buf, len, off);
}

/* backup_copy() - all that is still to be copied in [first, last]. */
static int backup_copy(struct blk_backup *b, uint64_t first, uint64_t last, unsigned max)
{
	uint64_t start;
	unsigned n, slot;

	while ((n = backup_claim(b, first, last, max, &start, &slot)) != 0) {
		uint64_t off = start * b->stretch, len = MIN(n * b->stretch, b->size - off);
		int r = backup_copy_run(b, off, len), none = 0;

		atomic_fetch_add(&b->copied, len);
		if (r)
			atomic_compare_exchange_strong(&b->error, &none, r);
		backup_release(b, start, n, slot);
		if (r)
			return r;
	}
	return atomic_load(&b->error);
}

/* --- the filter ----------------------------------------------------------------------------------
 */

/* backup_before() - a write is about to change [off, off+len). Its failure is the backup's. */
static void backup_before(struct blockdev *bd, uint64_t off, uint64_t len)
{
	struct blk_backup *b = bd->drv;
	uint64_t first = off / b->stretch, last;

	if (!len || off >= b->size || atomic_load(&b->error))
		return;
	last = MIN((off + len - 1) / b->stretch, b->n - 1);
	if (backup_any(b, first, last))
		(void)backup_copy(b, first, last, 1);
}

static int backup_rw(struct blockdev *bd, bool write, struct blk_buf buf, uint64_t off,
		     uint64_t len)
{
	if (write)
		backup_before(bd, off, len);
	return filter_rw(bd, write, buf, off, len);
}

static int backup_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	backup_before(bd, off, len);
	return filter_zero(bd, off, len, flags);
}

static int backup_map(struct blockdev *bd, bool write, const struct blk_req *r, uint64_t off,
		      struct blk_place *p)
{
	struct blk_backup *b = bd->drv;

	if (!bd->child->ops->map)
		return -EAGAIN;
	if (write && off < b->size && !atomic_load(&b->error) &&
	    backup_any(b, off / b->stretch, (off + r->len_bytes - 1) / b->stretch))
		return -EAGAIN;
	return bd->child->ops->map(bd->child, write, r, off, p);
}

static int backup_resize(struct blockdev *bd, uint64_t size, struct err *e)
{
	struct blk_backup *b = bd->drv;

	if (size < b->size)
		return err_set(e, EBUSY, "disk-backup-runs",
			       "%s: cannot shrink while a backup of it runs", bd->label);
	return filter_resize(bd, size, e);
}

static int backup_close(struct blockdev *bd, bool keep_fds)
{
	/* the disk goes before its backup was ended: what is left of it is the caller's */
	return node_close(bd->child, keep_fds);
}

static const struct blockdev_ops filter_backup_ops = {
	.name = "backup",
	.close = backup_close,
	.info = filter_info,
	.rw = backup_rw,
	.zero = backup_zero,
	.flush = filter_flush,
	.extents = filter_extents,
	.resize = backup_resize,
	.allocate = filter_allocate,
	.map = backup_map,
};

/* --- start, run, end -----------------------------------------------------------------------------
 */

static void backup_free(struct blk_backup *b)
{
	if (!b)
		return;
	q2_table_free((void *)(uintptr_t)b->todo, q2_bitmap_words(b->n) * 8);
	blk_bits_fini(&b->bits);
	pthread_mutex_destroy(&b->lock);
	pthread_cond_destroy(&b->done);
	free(b);
}

static struct blk_backup *backup_new(const struct blk_backup_start *v, struct err *e)
{
	struct blk_backup *b = calloc(1, sizeof(*b));

	if (!b) {
		err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", v->bd->label);
		return NULL;
	}
	pthread_mutex_init(&b->lock, NULL);
	pthread_cond_init(&b->done, NULL);
	memset(b->busy, 0xff, sizeof(b->busy));
	b->root = v->bd;
	b->unknown = v->unknown;
	b->size = atomic_load(&v->bd->size_bytes);
	b->stretch = BACKUP_STRETCH;
	b->n = (b->size + b->stretch - 1) / b->stretch;
	b->todo = q2_table_new(q2_bitmap_words(b->n) * 8);
	b->source = node_shell_new("");
	if (!b->todo || !b->source) {
		err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", v->bd->label);
		goto fail;
	}
	if (v->bitmap && strlen(v->bitmap) > BLK_BITMAP_NAME_MAX) {
		err_set(e, EINVAL, "bitmap-name", "the bitmap's name is too long");
		goto fail;
	}
	if (v->bitmap)
		memcpy(b->bitmap, v->bitmap, strlen(v->bitmap) + 1);
	b->target = node_open(v->target, 1, e);
	if (!b->target)
		goto fail;
	if (b->target->read_only || atomic_load(&b->target->size_bytes) < b->size) {
		err_set(e, EINVAL, "backup-target", "%s: the backup's target is %s", v->bd->label,
			b->target->read_only ? "read-only" : "smaller than the disk");
		goto fail;
	}
	return b;
fail:
	if (b->target)
		node_close(b->target, true);
	if (b->source)
		node_shell_free(b->source);
	backup_free(b);
	return NULL;
}

/* backup_mark() - with the gate shut: what is to be copied. */
static int backup_mark(struct blk_backup *b, struct err *e)
{
	int r;

	if (!b->bitmap[0]) {
		for (uint64_t i = 0; i < b->n; i++)
			b->todo[i / 64] |= 1ULL << (i % 64);
		return 0;
	}
	r = blk_bitmap_take(b->source, b->bitmap, &b->bits, e);
	for (uint64_t i = 0; i < b->n && !r; i++)
		if (blk_bits_any(&b->bits, i * b->stretch,
				 MIN(b->stretch, b->size - i * b->stretch)))
			b->todo[i / 64] |= 1ULL << (i % 64);
	return r;
}

static void backup_insert(struct blk_backup *b)
{
	struct blockdev *root = b->root;

	node_move(b->source, root);
	root->ops = &filter_backup_ops;
	root->drv = b;
	root->child = b->source;
	atomic_store(&root->serial_writes, false);
}

static void backup_remove(struct blk_backup *b)
{
	struct blockdev *root = b->root;
	bool discard = root->discard, detect_zeroes = root->detect_zeroes;

	node_move(root, b->source);
	root->discard = discard;
	root->detect_zeroes = detect_zeroes;
	node_shell_free(b->source);
	b->source = NULL;
}

int blk_backup_start(const struct blk_backup_start *v, unsigned n, struct blk_backup **out,
		     struct err *e)
{
	unsigned made = 0, in = 0;
	int r = 0;

	for (; made < n && !r; made += !r) {
		if (v[made].bd->ops == &filter_backup_ops)
			r = err_set(e, EBUSY, "disk-backup-runs", "%s: a backup of it runs already",
				    v[made].bd->label);
		out[made] = r ? NULL : backup_new(&v[made], e);
		if (!out[made] && !r)
			r = e->num ? -e->num : -EIO;
	}
	for (unsigned i = 0; i < made && !r; i++)
		node_gate_shut(v[i].bd);
	if (!r) {
		for (; in < n && !r; in++) {
			backup_insert(out[in]);
			r = backup_mark(out[in], e);
		}
		for (unsigned i = 0; i < in && r; i++) {
			struct err ignored = { 0 };

			if (out[i]->bits.words)
				(void)blk_bitmap_give_back(out[i]->source, out[i]->bitmap,
							   &out[i]->bits, &ignored);
			backup_remove(out[i]);
		}
		for (unsigned i = n; i-- > 0;)
			node_gate_open(v[i].bd);
	}
	for (unsigned i = 0; i < made && r; i++) {
		node_close(out[i]->target, true);
		if (out[i]->source)
			node_shell_free(out[i]->source);
		backup_free(out[i]);
		out[i] = NULL;
	}
	return r;
}

int blk_backup_run(struct blk_backup *b, const struct blkjob *job, struct err *e)
{
	struct blkjob_run run = job_begin(job, b->size);
	uint64_t t0 = clock_mono_ns();
	int r = 0;

	for (uint64_t i = 0; i < b->n && !r; i += BACKUP_BATCH) {
		uint64_t last = MIN(i + BACKUP_BATCH, b->n) - 1;
		bool any = backup_any(b, i, last);

		/* the gate keeps the graph below still; it is not held while we wait for our turn */
		if (any) {
			node_gate_enter(b->root);
			r = backup_copy(b, i, last, BACKUP_BATCH);
			node_gate_leave(b->root);
			live_pace(job, t0, atomic_load(&b->copied));
		}
		if (!r)
			r = job_step(&run, (last - i + 1) * b->stretch);
	}
	if (!r)
		r = atomic_load(&b->error);
	b->whole = !r;
	return r ? job_error(e, r, b->root->label, "backup") : 0;
}

int blk_backup_end(struct blk_backup *b, struct err *e)
{
	struct err ignored = { 0 };
	int r = b->whole ? 0 : atomic_load(&b->error) ? atomic_load(&b->error) : -ECANCELED, r2;

	node_gate_shut(b->root);
	backup_remove(b);
	node_gate_open(b->root);
	if (!r)
		r = node_flush(b->target);
	r2 = node_close(b->target, false);
	r = r ? r : r2;
	if (r && b->bits.words && blk_bitmap_give_back(b->root, b->bitmap, &b->bits, &ignored) < 0)
		log_warn("%s: bitmap \"%s\" lost what a failed backup took: %s", b->root->label,
			 b->bitmap, ignored.detail);
	if (r)
		job_error(e, r, b->root->label, "backup");
	backup_free(b);
	return r;
}
