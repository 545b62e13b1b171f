/* qcow2_bitmap_ram.c - dirty bitmaps while the disk is open: marking, and the verbs.
 *
 * Marking sets bits with atomic ORs under the shared lock; whatever changes the list or moves bits
 * takes it alone, for as long as a copy in memory takes. A bit is set before the data changes, so
 * that a backup may copy too much and never too little.
 * Threading: any. Trust: names are the caller's and checked; bits from the file were bounded.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/qcow2_bitmap.h"

#define BITMAPS_BYTES_MAX (512ULL << 20) /* all of one image */
#define BITMAPS_MAX	  1024u

void q2_bitmap_ram_free(struct q2_bitmap_ram *b)
{
	if (b->words)
		q2_table_free((void *)(uintptr_t)b->words, q2_bitmap_words(b->nbits) * 8);
	free(b);
}

void q2_bitmaps_init(struct qcow2 *q)
{
	pthread_rwlockattr_t a;

	list_init(&q->bm);
	list_init(&q->bm_gone);
	/* a verb must not wait until the guest stops writing */
	pthread_rwlockattr_init(&a);
	pthread_rwlockattr_setkind_np(&a, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&q->bm_lock, &a);
	pthread_rwlockattr_destroy(&a);
}

void q2_bitmaps_fini(struct qcow2 *q)
{
	struct list *both[] = { &q->bm, &q->bm_gone };

	for (size_t i = 0; i < ARRAY_SIZE(both); i++)
		while (!list_empty(both[i])) {
			struct q2_bitmap_ram *b = list_first(both[i], struct q2_bitmap_ram, node);

			list_del(&b->node);
			q2_bitmap_ram_free(b);
		}
}

struct q2_bitmap_ram *q2_bitmap_find_locked(struct qcow2 *q, const char *name)
{
	list_for_each (l, &q->bm) {
		struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);

		if (strcmp(b->disk.name, name) == 0)
			return b;
	}
	return NULL;
}

uint64_t q2_bitmap_count(const struct q2_bitmap_ram *b)
{
	uint64_t n = 0;

	for (uint64_t i = 0; b->words && i < q2_bitmap_words(b->nbits); i++)
		n += __builtin_popcountll(atomic_load_explicit(&b->words[i], memory_order_relaxed));
	return n;
}

static void q2_bitmaps_refresh_on(struct qcow2 *q)
{
	bool on = false;

	list_for_each (l, &q->bm) {
		const struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);

		on |= b->enabled && !b->stale;
	}
	atomic_store(&q->bm_on, (on && q->bm_owned) || q->track);
}

/* --- marking ------------------------------------------------------------------------------------
 */

static void q2_bitmap_set(struct q2_bitmap_ram *b, uint64_t off, uint64_t len)
{
	uint64_t first = off >> b->disk.granularity_bits,
		 last = (off + len - 1) >> b->disk.granularity_bits;

	if (!b->nbits || first >= b->nbits)
		return;
	last = MIN(last, b->nbits - 1);
	for (uint64_t w = first / 64; w <= last / 64; w++) {
		uint64_t mask = UINT64_MAX;

		if (w == first / 64)
			mask &= UINT64_MAX << (first % 64);
		if (w == last / 64)
			mask &= UINT64_MAX >> (63 - last % 64);
		/* mostly set already: a read leaves the line shared */
		if ((atomic_load_explicit(&b->words[w], memory_order_relaxed) & mask) != mask)
			atomic_fetch_or(&b->words[w], mask);
	}
	if (!atomic_load_explicit(&b->changed, memory_order_relaxed))
		atomic_store(&b->changed, true);
}

static void q2_bitmaps_mark_locked(struct qcow2 *q, uint64_t off, uint64_t len)
{
	list_for_each (l, &q->bm) {
		struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);

		if (b->enabled && !b->stale && len)
			q2_bitmap_set(b, off, len);
	}
	if (q->track && len)
		q2_bitmap_set(q->track, off, len);
}

void q2_bitmaps_mark_slow(struct qcow2 *q, uint64_t off, uint64_t len)
{
	pthread_rwlock_rdlock(&q->bm_lock);
	q2_bitmaps_mark_locked(q, off, len);
	pthread_rwlock_unlock(&q->bm_lock);
}

bool q2_bitmaps_try_mark_slow(struct qcow2 *q, uint64_t off, uint64_t len)
{
	if (pthread_rwlock_tryrdlock(&q->bm_lock))
		return false;
	q2_bitmaps_mark_locked(q, off, len);
	pthread_rwlock_unlock(&q->bm_lock);
	return true;
}

int q2_bitmaps_resize(struct qcow2 *q, uint64_t size)
{
	int r = 0;

	pthread_rwlock_wrlock(&q->bm_lock);
	list_for_each (l, &q->bm) {
		struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);
		uint64_t gran = 1ULL << b->disk.granularity_bits;
		uint64_t n = size / gran + (size % gran != 0), copy;
		_Atomic uint64_t *w;

		if (b->stale || n == b->nbits)
			continue;
		w = n > Q2_BITMAP_BYTES_MAX * 8ULL ? NULL : q2_table_new(q2_bitmap_words(n) * 8);
		if (!w) {
			r = -ENOMEM;
			break;
		}
		copy = MIN(n, b->nbits);
		for (uint64_t i = 0; i < q2_bitmap_words(copy); i++)
			atomic_init(&w[i], atomic_load(&b->words[i]));
		if (copy % 64) /* what lay past a new end is nobody's any more */
			atomic_fetch_and(&w[copy / 64], (1ULL << (copy % 64)) - 1);
		q2_table_free((void *)(uintptr_t)b->words, q2_bitmap_words(b->nbits) * 8);
		b->words = w;
		b->nbits = n;
		b->changed = q->bm_changed = true;
	}
	pthread_rwlock_unlock(&q->bm_lock);
	return r;
}

static struct q2_bitmap_ram *q2_bitmap_ram_new(uint64_t size, unsigned gran_bits);

int q2_track_start(struct qcow2 *q)
{
	struct q2_bitmap_ram *b = q2_bitmap_ram_new(atomic_load(&q->bd->size_bytes), 16);

	if (!b)
		return -ENOMEM;
	pthread_rwlock_wrlock(&q->bm_lock);
	q->track = b;
	q2_bitmaps_refresh_on(q);
	pthread_rwlock_unlock(&q->bm_lock);
	return 0;
}

int q2_track_take(struct qcow2 *q, struct blk_bits *out)
{
	struct q2_bitmap_ram *b = q->track;

	*out = (struct blk_bits){ .granularity = 1ULL << b->disk.granularity_bits, .n = b->nbits };
	out->words = malloc(q2_bitmap_words(b->nbits) * 8);
	if (!out->words)
		return -ENOMEM;
	pthread_rwlock_wrlock(&q->bm_lock);
	for (uint64_t i = 0; i < q2_bitmap_words(b->nbits); i++)
		out->words[i] = atomic_exchange(&b->words[i], 0);
	pthread_rwlock_unlock(&q->bm_lock);
	return 0;
}

void q2_track_stop(struct qcow2 *q)
{
	struct q2_bitmap_ram *b;

	pthread_rwlock_wrlock(&q->bm_lock);
	b = q->track;
	q->track = NULL;
	q2_bitmaps_refresh_on(q);
	pthread_rwlock_unlock(&q->bm_lock);
	if (b)
		q2_bitmap_ram_free(b);
}

/* --- loading ------------------------------------------------------------------------------------
 */

static struct q2_bitmap_ram *q2_bitmap_ram_new(uint64_t size, unsigned gran_bits)
{
	struct q2_bitmap_ram *b = calloc(1, sizeof(*b));
	uint64_t gran = 1ULL << gran_bits;

	if (!b)
		return NULL;
	b->disk.granularity_bits = gran_bits;
	b->nbits = size / gran + (size % gran != 0);
	if (b->nbits <= Q2_BITMAP_BYTES_MAX * 8ULL)
		b->words = q2_table_new(q2_bitmap_words(b->nbits) * 8);
	if (!b->words) {
		free(b);
		return NULL;
	}
	return b;
}

static int q2_bitmap_load_one(struct qcow2 *q, const struct q2_bitmap *d, uint64_t *left,
			      struct err *e)
{
	uint64_t size = atomic_load(&q->bd->size_bytes), n, cost = size >> d->granularity_bits >> 3;
	_cleanup_free_ uint8_t *bits = NULL;
	struct q2_bitmap_ram *b;
	int r = 0;

	if (!q2_bitmap_consistent(q, d) || cost > *left) {
		b = calloc(1, sizeof(*b));
		if (!b)
			return -ENOMEM;
		b->stale = true;
	} else {
		*left -= cost;
		r = q2_bitmap_bits(q, d, &bits, &n, e);
		if (r)
			return r;
		b = q2_bitmap_ram_new(size, d->granularity_bits);
		if (!b)
			return -ENOMEM;
		for (uint64_t i = 0; i < n; i++)
			if (bits[i / 8] >> (i % 8) & 1)
				b->words[i / 64] |= 1ULL << (i % 64);
	}
	b->disk = *d;
	b->enabled = d->flags & Q2_BITMAP_AUTO;
	list_add_tail(&q->bm, &b->node);
	return r;
}

int q2_bitmaps_load(struct qcow2 *q, struct err *e)
{
	_cleanup_free_ struct q2_bitmap *list = NULL;
	uint64_t left = BITMAPS_BYTES_MAX;
	int n, r = 0;

	pthread_rwlock_wrlock(&q->bm_lock);
	n = q->bm_loaded ? 0 : q2_bitmaps_parse(q, &list, e);
	for (int i = 0; i < n && !r; i++)
		r = q2_bitmap_load_one(q, &list[i], &left, e);
	if (n < 0)
		r = n;
	if (r)
		q2_bitmaps_fini(q);
	else
		q->bm_loaded = true;
	pthread_rwlock_unlock(&q->bm_lock);
	if (r && !err_is_set(e))
		err_set(e, -r, "disk-open", "%s: cannot load the bitmaps: %s", q->bd->label,
			strerror(-r));
	return r;
}

/* --- verbs ---------------------------------------------------------------------------------------
 */

/* q2_bitmap_writable() - the image, its bitmaps loaded and ours to change; the gate entered, and
 * bm_lock taken alone, until q2_bitmap_done(). */
static struct qcow2 *q2_bitmap_writable(struct blockdev *bd, struct err *e)
{
	struct qcow2 *q;
	int r;

	node_gate_enter(bd);
	q = q2_bitmap_image(bd, e);
	if (!q) {
		node_gate_leave(bd);
		return NULL;
	}
	if (q->bd->read_only || q->version < 3) {
		err_set(e, EROFS, "disk-read-only", "%s: %s", q->bd->label,
			q->version < 3 ? "version 2 images have no bitmaps" : "is read-only");
		node_gate_leave(bd);
		return NULL;
	}
	r = q2_begin_write(q);
	if (!r)
		r = q2_bitmaps_load(q, e);
	if (r) {
		if (!err_is_set(e))
			err_set(e, -r, "disk-bitmaps", "%s: cannot change the bitmaps: %s",
				q->bd->label, strerror(-r));
		node_gate_leave(bd);
		return NULL;
	}
	pthread_rwlock_wrlock(&q->bm_lock);
	return q;
}

static int q2_bitmap_done(struct blockdev *bd, struct qcow2 *q, int r)
{
	q2_bitmaps_refresh_on(q);
	pthread_rwlock_unlock(&q->bm_lock);
	node_gate_leave(bd);
	return r;
}

static struct q2_bitmap_ram *q2_bitmap_get(struct qcow2 *q, const char *name, struct err *e)
{
	struct q2_bitmap_ram *b = q2_bitmap_find_locked(q, name);

	if (!b) {
		err_set(e, ENOENT, "bitmap-not-found", "%s: has no bitmap \"%s\"", q->bd->label,
			name);
	} else if (b->stale) {
		err_set(e, ESTALE, "bitmap-stale", "%s: bitmap \"%s\" was not kept up to date",
			q->bd->label, name);
		err_hint(e, "make a full backup, remove the bitmap and add it again");
		b = NULL;
	}
	return b;
}

static bool q2_bitmap_name_ok(const char *name)
{
	size_t n = strlen(name);

	for (size_t i = 0; i < n; i++)
		if ((unsigned char)name[i] < ' ' || name[i] == 0x7f)
			return false;
	return n > 0 && n <= BLK_BITMAP_NAME_MAX;
}

int blk_bitmap_create(struct blockdev *bd, const char *name, uint64_t granularity, bool enabled,
		      struct err *e)
{
	struct q2_bitmap_ram *b;
	struct qcow2 *q;
	unsigned n = 0;

	granularity = granularity ? granularity : 64 * KIB;
	if (granularity < 512 || granularity > 2 * GIB || (granularity & (granularity - 1)))
		return err_set(e, EINVAL, "bitmap-granularity",
			       "granularity %llu is not a power of two from 512 to 2 GiB",
			       (unsigned long long)granularity);
	if (!q2_bitmap_name_ok(name))
		return err_set(e, EINVAL, "bitmap-name",
			       "a bitmap's name has 1 to %u printable characters",
			       BLK_BITMAP_NAME_MAX);
	q = q2_bitmap_writable(bd, e);
	if (!q)
		return -e->num;
	list_for_each (l, &q->bm)
		n++;
	if (q2_bitmap_find_locked(q, name))
		return q2_bitmap_done(bd, q,
				      err_set(e, EEXIST, "bitmap-exists",
					      "%s: has a bitmap \"%s\" already", bd->label, name));
	if (n >= BITMAPS_MAX)
		return q2_bitmap_done(bd, q,
				      err_set(e, ENOSPC, "bitmap-too-many",
					      "%s: has %u bitmaps already", bd->label, n));
	b = q2_bitmap_ram_new(atomic_load(&q->bd->size_bytes), __builtin_ctzll(granularity));
	if (!b)
		return q2_bitmap_done(bd, q,
				      err_set(e, ENOMEM, "out-of-memory",
					      "%s: no memory for a bitmap of this granularity",
					      bd->label));
	memcpy(b->disk.name, name, strlen(name) + 1);
	b->enabled = enabled;
	b->changed = q->bm_changed = true;
	list_add_tail(&q->bm, &b->node);
	return q2_bitmap_done(bd, q, 0);
}

int blk_bitmap_remove(struct blockdev *bd, const char *name, struct err *e)
{
	struct qcow2 *q = q2_bitmap_writable(bd, e);
	struct q2_bitmap_ram *b;

	if (!q)
		return -e->num;
	b = q2_bitmap_find_locked(q, name); /* a stale one too */
	if (!b)
		return q2_bitmap_done(bd, q,
				      err_set(e, ENOENT, "bitmap-not-found",
					      "%s: has no bitmap \"%s\"", bd->label, name));
	/* its clusters are let go when the directory without it is stable */
	list_del(&b->node);
	if (b->disk.table_n)
		list_add_tail(&q->bm_gone, &b->node);
	else
		q2_bitmap_ram_free(b);
	q->bm_changed = true;
	return q2_bitmap_done(bd, q, 0);
}

int blk_bitmap_enable(struct blockdev *bd, const char *name, bool on, struct err *e)
{
	struct qcow2 *q = q2_bitmap_writable(bd, e);
	struct q2_bitmap_ram *b;

	if (!q)
		return -e->num;
	b = q2_bitmap_get(q, name, e);
	if (!b)
		return q2_bitmap_done(bd, q, -e->num);
	b->enabled = on;
	q->bm_changed = true;
	return q2_bitmap_done(bd, q, 0);
}

int blk_bitmap_clear(struct blockdev *bd, const char *name, struct err *e)
{
	struct blk_bits b = { 0 };
	int r = blk_bitmap_take(bd, name, &b, e);

	blk_bits_fini(&b);
	return r;
}

int blk_bitmap_merge(struct blockdev *bd, const char *dst, const char *src, struct err *e)
{
	struct qcow2 *q = q2_bitmap_writable(bd, e);
	struct q2_bitmap_ram *d, *s;

	if (!q)
		return -e->num;
	d = q2_bitmap_get(q, dst, e);
	s = d ? q2_bitmap_get(q, src, e) : NULL;
	if (!d || !s)
		return q2_bitmap_done(bd, q, -e->num);
	for (uint64_t i = 0; i < s->nbits; i++) {
		if (!s->words[i / 64])
			i |= 63;
		else if (s->words[i / 64] >> (i % 64) & 1)
			q2_bitmap_set(d, i << s->disk.granularity_bits,
				      1ULL << s->disk.granularity_bits);
	}
	q->bm_changed = true;
	return q2_bitmap_done(bd, q, 0);
}

int blk_bitmap_next(struct blockdev *bd, const char *name, uint64_t off, uint64_t *len, bool *dirty)
{
	struct err e = { 0 };
	uint64_t size = atomic_load(&bd->size_bytes), i, first;
	const struct q2_bitmap_ram *b;
	struct qcow2 *q;
	int r;

	node_gate_enter(bd);
	q = q2_bitmap_image(bd, &e);
	r = q ? q2_bitmaps_load(q, &e) : -ENOTSUP;
	if (r) {
		node_gate_leave(bd);
		return r;
	}
	pthread_rwlock_rdlock(&q->bm_lock);
	b = q2_bitmap_find_locked(q, name);
	r = !b ? -ENOENT : b->stale ? -ESTALE : off >= size ? -EINVAL : 0;
	if (!r) {
		first = i = off >> b->disk.granularity_bits;
		*dirty = first < b->nbits && (b->words[i / 64] >> (i % 64) & 1);
		for (i++; i < b->nbits; i++) {
			uint64_t w = b->words[i / 64];

			if (i % 64 == 0 && w == (*dirty ? UINT64_MAX : 0) && i + 64 <= b->nbits)
				i += 63;
			else if ((w >> (i % 64) & 1) != *dirty)
				break;
		}
		*len = MIN(MIN(i, b->nbits) << b->disk.granularity_bits, size) - off;
	}
	pthread_rwlock_unlock(&q->bm_lock);
	node_gate_leave(bd);
	return r;
}

int blk_bitmap_take(struct blockdev *bd, const char *name, struct blk_bits *out, struct err *e)
{
	struct qcow2 *q = q2_bitmap_writable(bd, e);
	struct q2_bitmap_ram *b;

	*out = (struct blk_bits){ 0 };
	if (!q)
		return -e->num;
	b = q2_bitmap_get(q, name, e);
	if (!b)
		return q2_bitmap_done(bd, q, -e->num);
	out->granularity = 1ULL << b->disk.granularity_bits;
	out->n = b->nbits;
	out->words = malloc(q2_bitmap_words(b->nbits) * 8);
	if (!out->words)
		return q2_bitmap_done(
		    bd, q, err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label));
	for (uint64_t i = 0; i < q2_bitmap_words(b->nbits); i++)
		out->words[i] = atomic_exchange(&b->words[i], 0);
	b->changed = q->bm_changed = true;
	return q2_bitmap_done(bd, q, 0);
}

int blk_bitmap_give_back(struct blockdev *bd, const char *name, const struct blk_bits *bits,
			 struct err *e)
{
	struct qcow2 *q = q2_bitmap_writable(bd, e);
	struct q2_bitmap_ram *b;

	if (!q)
		return -e->num;
	b = q2_bitmap_get(q, name, e);
	if (!b)
		return q2_bitmap_done(bd, q, -e->num);
	for (uint64_t i = 0; i < bits->n; i++)
		if (bits->words[i / 64] >> (i % 64) & 1)
			q2_bitmap_set(b, i * bits->granularity, bits->granularity);
	q->bm_changed = true;
	return q2_bitmap_done(bd, q, 0);
}

void blk_bits_fini(struct blk_bits *b)
{
	free(b->words);
	*b = (struct blk_bits){ 0 };
}

bool blk_bits_any(const struct blk_bits *b, uint64_t off, uint64_t len)
{
	for (uint64_t i = off / b->granularity; len && i <= (off + len - 1) / b->granularity; i++)
		if (i < b->n && (b->words[i / 64] >> (i % 64) & 1))
			return true;
	return false;
}
