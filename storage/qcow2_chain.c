/* qcow2_chain.c - one lookup for a whole chain: the merged map of the layers below a disk.
 *
 * Under the top layer nothing changes, so where a stretch of 128 KiB lies (which layer's file, at
 * which offset, or zeroes) is found once by walking down, and then kept in 8 bytes: reading costs
 * the same over twenty layers as over one. A stretch that is not of one piece (layers share it
 * subcluster by subcluster, or it is compressed) is marked so and walked each time. The table is
 * made with the first read that needs it and its untouched pages cost nothing.
 * Threading: any; an entry is one atomic word, and two that fill it write the same. Dropped only
 * where no request is in flight. Trust: what is kept was checked by the layers' own lookups.
 */
#include <errno.h>
#include <stdlib.h>

#include "common/overflow.h"
#include "storage/qcow2.h"

#define CHAIN_BITS  17u
#define CHAIN_CHUNK Q2_CHAIN_STEP

enum chain_kind { CHAIN_UNKNOWN, CHAIN_DATA, CHAIN_ZERO, CHAIN_MIXED };

struct q2_chain {
	uint64_t n;
	struct blockdev *file[BLK_CHAIN_MAX + 1]; /* by layer; NULL: none at this depth */
	_Atomic uint64_t *map;			  /* host offset / 512 << 8 | layer << 2 | kind */
	uint64_t size;
};

void q2_chain_drop(struct qcow2 *q)
{
	struct q2_chain *c = atomic_exchange(&q->chain, NULL);

	if (!c)
		return;
	q2_table_free(c->map, c->n * 8);
	free(c);
}

static struct q2_chain *q2_chain_make(struct qcow2 *q)
{
	struct q2_chain *c = calloc(1, sizeof(*c)), *was = NULL;
	unsigned layer = 0;

	if (!c)
		return NULL;
	c->size = atomic_load(&q->bd->backing->size_bytes);
	c->n = (c->size + CHAIN_CHUNK - 1) >> CHAIN_BITS;
	c->map = q2_table_new(MAX(c->n, 1ULL) * 8);
	for (struct blockdev *b = q->bd->backing; b && layer < BLK_CHAIN_MAX; layer++) {
		c->file[layer] = b->ops == &qcow2_ops ? ((struct qcow2 *)b->drv)->file : b;
		b = b->ops == &qcow2_ops ? b->backing : NULL;
	}
	if (!c->map || !atomic_compare_exchange_strong(&q->chain, &was, c)) {
		q2_table_free(c->map, c->n * 8);
		free(c);
		return was;
	}
	return c;
}

/* q2_chain_walk() - down the layers for the whole of [off, off+len). -EAGAIN: not without I/O. */
static int q2_chain_walk(struct qcow2 *q, uint64_t off, uint64_t len, bool wait, uint64_t *entry)
{
	struct blockdev *b = q->bd->backing;

	for (unsigned layer = 0;; layer++) {
		struct qcow2 *l = b->drv;
		struct q2_seg s;
		int r;

		/* a layer that is written (a commit into it) may move its clusters */
		if (layer >= BLK_CHAIN_MAX || !b->read_only ||
		    off + len > atomic_load(&b->size_bytes))
			break;
		if (b->ops != &qcow2_ops) {
			*entry = off >> 9 << 8 | layer << 2 | CHAIN_DATA;
			return 0;
		}
		r = wait ? q2_seg_get(l, off, len, false, &s) : q2_seg_try(l, off, len, false, &s);
		if (r)
			return r;
		if (s.len < len || s.kind == Q2_COMP || (s.host & 511))
			break;
		if (s.kind == Q2_DATA) {
			*entry = s.host >> 9 << 8 | layer << 2 | CHAIN_DATA;
			return 0;
		}
		if (s.kind == Q2_ZERO || !b->backing) {
			*entry = CHAIN_ZERO;
			return 0;
		}
		b = b->backing;
	}
	*entry = CHAIN_MIXED;
	return 0;
}

int q2_chain_find(struct qcow2 *q, uint64_t off, uint64_t len, bool wait, struct q2_chain_place *p)
{
	struct q2_chain *c = atomic_load_explicit(&q->chain, memory_order_acquire);
	uint64_t at = off >> CHAIN_BITS, in = off & (CHAIN_CHUNK - 1), e;
	int r;

	/* only the disk itself keeps one, and only over layers that need it */
	if (q->bd->depth != 1 || !q->bd->backing || q->bd->backing->ops != &qcow2_ops)
		return -ENOENT;
	if (!c)
		c = q2_chain_make(q);
	if (!c || at >= c->n || off + len > c->size)
		return -ENOENT;
	e = atomic_load_explicit(&c->map[at], memory_order_relaxed);
	if (!e) {
		uint64_t start = at << CHAIN_BITS;

		r = q2_chain_walk(q, start, MIN(CHAIN_CHUNK, c->size - start), wait, &e);
		if (r) /* damage next to what was asked for is not this request's matter */
			return wait ? -ENOENT : -EAGAIN;
		atomic_store_explicit(&c->map[at], e, memory_order_relaxed);
	}
	if ((e & 3) == CHAIN_MIXED)
		return -ENOENT;
	p->len = MIN(len, CHAIN_CHUNK - in);
	p->zero = (e & 3) == CHAIN_ZERO;
	p->file = p->zero ? NULL : c->file[(e & 255) >> 2];
	p->off = (e >> 8 << 9) + in;
	return 0;
}
