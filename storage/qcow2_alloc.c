/* qcow2_alloc.c - refcounts, the one allocator, and clusters on their way to being free.
 *
 * New clusters come from what was found free at the first write, else from the file's end, where
 * extents are allocated ahead of the writer in growing steps: writes into unwritten extents run in
 * parallel, writes past the end do not. A refcount block describes itself: when the end reaches a
 * region that has none, the region's first cluster becomes it.
 * Threading: everything here with the image's lock taken alone. Trust: a cluster is handed out only
 * where its refcount is 0 and it is no known metadata; anything else marks the image corrupt.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"
#include "common/units.h"
#include "storage/qcow2.h"

#define Q2_PREALLOC_FIRST   (8 * MIB)
#define Q2_PREALLOC_MOST    (256 * MIB)
#define Q2_FREE_EXTENTS_MAX 65536u
#define Q2_SCAN_BLOCKS_MAX  16384u

uint64_t q2_refcount_max(const struct qcow2 *q)
{
	return q->refcount_order == 6 ? INT64_MAX : (1ULL << (1u << q->refcount_order)) - 1;
}

static unsigned q2_block_bits(const struct qcow2 *q)
{
	return q->cluster_bits + 3 - q->refcount_order; /* log2 of refcounts in a block */
}

static uint64_t q2_refcount_at(const struct qcow2 *q, const void *data, uint32_t i)
{
	const uint8_t *p = data;

	switch (q->refcount_order) {
	case 3:
		return p[i];
	case 4:
		return be16toh(((const uint16_t *)data)[i]);
	case 5:
		return be32toh(((const uint32_t *)data)[i]);
	case 6:
		return be64toh(((const uint64_t *)data)[i]);
	default: {
		unsigned bits = 1u << q->refcount_order, per = 8 / bits;

		return p[i / per] >> (i % per * bits) & ((1u << bits) - 1);
	}
	}
}

static void q2_refcount_put(const struct qcow2 *q, void *data, uint32_t i, uint64_t v)
{
	uint8_t *p = data;

	switch (q->refcount_order) {
	case 3:
		p[i] = v;
		break;
	case 4:
		((uint16_t *)data)[i] = htobe16(v);
		break;
	case 5:
		((uint32_t *)data)[i] = htobe32(v);
		break;
	case 6:
		((uint64_t *)data)[i] = htobe64(v);
		break;
	default: {
		unsigned bits = 1u << q->refcount_order, per = 8 / bits, sh = i % per * bits;

		p[i / per] = (p[i / per] & ~(((1u << bits) - 1) << sh)) | v << sh;
	}
	}
}

static int q2_refcount_slice(struct qcow2 *q, uint64_t cluster, struct q2_slice **s, uint32_t *i)
{
	uint64_t top = cluster >> q2_block_bits(q);
	uint32_t in_block = cluster & ((1ULL << q2_block_bits(q)) - 1);
	uint32_t per_slice = (q->slice_bytes * 8) >> q->refcount_order;

	*s = NULL;
	*i = 0;
	if (top >= q->rt.top_n || !(q->rt.top[top] & Q2_OFFSET_MASK))
		return 0;
	*i = in_block % per_slice;
	return q2_slice_locked(q, &q->rt, top, in_block / per_slice, s);
}

int q2_refcount_locked(struct qcow2 *q, uint64_t cluster, uint64_t *v)
{
	struct q2_slice *s;
	uint32_t i;
	int r = q2_refcount_slice(q, cluster, &s, &i);

	*v = r || !s ? 0 : q2_refcount_at(q, s->data, i);
	return r;
}

/* --- known metadata -------------------------------------------------------------------------- */

static size_t q2_meta_find(const struct qcow2 *q, uint64_t host)
{
	size_t lo = 0, hi = q->nmeta;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (q->meta[mid] < host)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

bool q2_meta_hit_locked(const struct qcow2 *q, uint64_t host, uint64_t len)
{
	size_t i = q2_meta_find(q, ALIGN_DOWN(host, q->cluster_size));

	return len && i < q->nmeta && q->meta[i] < host + len;
}

int q2_meta_add_locked(struct qcow2 *q, uint64_t host)
{
	size_t i = q2_meta_find(q, host);

	if (i < q->nmeta && q->meta[i] == host)
		return q2_corrupt(q, "two metadata tables overlap at offset %llu",
				  (unsigned long long)host);
	if (q->nmeta == q->meta_cap) {
		size_t cap = q->meta_cap ? q->meta_cap * 2 : 64;
		uint64_t *p = realloc(q->meta, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		q->meta = p;
		q->meta_cap = cap;
	}
	memmove(q->meta + i + 1, q->meta + i, (q->nmeta - i) * sizeof(*q->meta));
	q->meta[i] = host;
	q->nmeta++;
	return 0;
}

void q2_meta_del_locked(struct qcow2 *q, uint64_t host)
{
	size_t i = q2_meta_find(q, host);

	if (i < q->nmeta && q->meta[i] == host) {
		memmove(q->meta + i, q->meta + i + 1, (q->nmeta - i - 1) * sizeof(*q->meta));
		q->nmeta--;
	}
}

static int q2_meta_add_run(struct qcow2 *q, uint64_t host, uint64_t len)
{
	int r = 0;

	for (uint64_t at = 0; at < len && !r; at += q->cluster_size)
		r = q2_meta_add_locked(q, host + at);
	return r;
}

static int q2_cmp_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static int q2_meta_build(struct qcow2 *q)
{
	size_t n = 0, fixed;
	uint64_t host, end = atomic_load(&q->host_end);
	int r = q2_meta_add_locked(q, 0);

	if (!r)
		r = q2_meta_add_run(q, q->l1.top_off, q->l1.top_n * 8ULL);
	if (!r)
		r = q2_meta_add_run(q, q->rt.top_off, q->rt.top_n * 8ULL);
	if (r)
		return r;
	for (uint32_t i = 0; i < q->l1.top_n; i++)
		n += (q->l1.top[i] & Q2_OFFSET_MASK) != 0;
	for (uint32_t i = 0; i < q->rt.top_n; i++)
		n += (q->rt.top[i] & Q2_OFFSET_MASK) != 0;
	fixed = q->nmeta;
	if (fixed + n > q->meta_cap) {
		uint64_t *p = realloc(q->meta, (fixed + n) * sizeof(*p));

		if (!p)
			return -ENOMEM;
		q->meta = p;
		q->meta_cap = fixed + n;
	}
	for (int which = 0; which < 2; which++) {
		const struct q2_dir *d = which ? &q->rt : &q->l1;

		for (uint32_t i = 0; i < d->top_n; i++) {
			host = d->top[i] & Q2_OFFSET_MASK;
			if (!host)
				continue;
			if ((host & (q->cluster_size - 1)) || host >= end)
				return q2_corrupt(q, "a table entry points to offset %llu",
						  (unsigned long long)host);
			q->meta[q->nmeta++] = host;
		}
	}
	qsort(q->meta, q->nmeta, sizeof(*q->meta), q2_cmp_u64);
	for (size_t i = 1; i < q->nmeta; i++)
		if (q->meta[i] == q->meta[i - 1])
			return q2_corrupt(q, "two metadata tables overlap at offset %llu",
					  (unsigned long long)q->meta[i]);
	return 0;
}

/* --- free extents ------------------------------------------------------------------------------
 */

static int q2_free_ext_add(struct qcow2 *q, uint64_t start, uint64_t count)
{
	unsigned lo = 0, hi = q->nfree;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (q->free_ext[mid].start < start)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo > 0 && q->free_ext[lo - 1].start + q->free_ext[lo - 1].count == start) {
		q->free_ext[lo - 1].count += count;
		return 0;
	}
	if (lo < q->nfree && start + count == q->free_ext[lo].start) {
		q->free_ext[lo].start = start;
		q->free_ext[lo].count += count;
		return 0;
	}
	if (q->nfree == q->free_cap) {
		unsigned cap = q->free_cap ? q->free_cap * 2 : 16;
		struct q2_extent *p;

		if (cap > Q2_FREE_EXTENTS_MAX)
			return 0; /* found again at the next open */
		p = realloc(q->free_ext, cap * sizeof(*p));
		if (!p)
			return -ENOMEM;
		q->free_ext = p;
		q->free_cap = cap;
	}
	memmove(q->free_ext + lo + 1, q->free_ext + lo, (q->nfree - lo) * sizeof(*q->free_ext));
	q->free_ext[lo] = (struct q2_extent){ start, count };
	q->nfree++;
	return 0;
}

static bool q2_free_ext_take(struct qcow2 *q, uint64_t n, uint64_t *start)
{
	for (unsigned i = 0; i < q->nfree; i++) {
		struct q2_extent *x = &q->free_ext[i];

		if (x->count < n)
			continue;
		*start = x->start;
		x->start += n;
		x->count -= n;
		if (!x->count) {
			memmove(x, x + 1, (q->nfree - i - 1) * sizeof(*x));
			q->nfree--;
		}
		return true;
	}
	return false;
}

/* q2_scan_refcounts() - find free runs and the end of what is used. */
static int q2_scan_refcounts(struct qcow2 *q)
{
	uint64_t per_block = 1ULL << q2_block_bits(q), end = 0, run = 0;
	uint64_t clusters = atomic_load(&q->host_end) >> q->cluster_bits;
	void *buf = malloc(q->cluster_size);
	unsigned blocks = 0;
	int r = buf ? 0 : -ENOMEM;

	for (uint32_t t = 0; t < q->rt.top_n && !r; t++) {
		uint64_t host = q->rt.top[t] & Q2_OFFSET_MASK, first = t * per_block;

		if (!host)
			continue; /* nothing used here: a gap, or past the end */
		if (first >= clusters || ++blocks > Q2_SCAN_BLOCKS_MAX) {
			end = MAX(end, clusters);
			break;
		}
		r = node_pread(q->file, buf, q->cluster_size, host);
		for (uint64_t i = 0; i < per_block && !r; i++) {
			if (!q2_refcount_at(q, buf, i))
				continue;
			run = first + i;
			if (run > end)
				r = q2_free_ext_add(q, end, run - end);
			end = run + 1;
		}
	}
	free(buf);
	/* gaps where no refcount block exists are usable too, but would need blocks: they wait */
	q->bump = end;
	return r;
}

int q2_alloc_ready_locked(struct qcow2 *q)
{
	uint64_t file_len = atomic_load(&q->file->size_bytes);
	int r;

	if (q->alloc_ready)
		return 0;
	q->nmeta = 0;
	q->nfree = 0;
	r = q2_meta_build(q);
	if (!r)
		r = q2_scan_refcounts(q);
	if (r)
		return r;
	q->zero_from = q2_clusters(q, file_len);
	if (q->bump < q->zero_from) {
		/* the tail past the last used cluster may hold stale bytes; it is used first */
		atomic_store(&q->host_end,
			     MAX(atomic_load(&q->host_end), q->zero_from << q->cluster_bits));
	} else {
		atomic_store(&q->host_end, q->bump << q->cluster_bits);
	}
	q->prealloc_end = MAX(file_len, q->bump << q->cluster_bits);
	if (q->bump << q->cluster_bits > file_len)
		q->prealloc_end = ALIGN_DOWN(file_len, q->cluster_size);
	q->prealloc_step = Q2_PREALLOC_FIRST;
	q->alloc_ready = true;
	return 0;
}

/* q2_space() - see that the host has room up to cluster @end. */
static int q2_space(struct qcow2 *q, uint64_t end)
{
	uint64_t need = end << q->cluster_bits;

	if (need > INT64_MAX >> 1)
		return -EFBIG;
	while (!q->prealloc_off && need > q->prealloc_end) {
		int64_t got = node_allocate(q->file, q->prealloc_end, need - q->prealloc_end,
					    MAX(q->prealloc_step, need - q->prealloc_end));

		if (got == -EOPNOTSUPP)
			q->prealloc_off = true;
		else if (got < 0)
			return got;
		else
			q->prealloc_end += got;
		q->prealloc_step = MIN(q->prealloc_step * 2, Q2_PREALLOC_MOST);
	}
	if (need > atomic_load(&q->host_end))
		atomic_store(&q->host_end, need);
	return 0;
}

static int q2_bump(struct qcow2 *q, uint64_t n, uint64_t *start)
{
	int r = q2_space(q, q->bump + n);

	if (r)
		return r;
	*start = q->bump;
	q->bump += n;
	return 0;
}

static int q2_reftable_grow(struct qcow2 *q, uint64_t need_top);

/* q2_refblock_make() - the block for region @top exists afterwards. */
static int q2_refblock_make(struct qcow2 *q, uint64_t top)
{
	uint64_t at, host;
	int r;

	for (;;) {
		if (top >= q->rt.top_n) {
			r = q2_reftable_grow(q, top);
			if (r)
				return r;
		}
		if (q->rt.top[top] & Q2_OFFSET_MASK)
			return 0;
		at = q->bump >> q2_block_bits(q);
		if (at == top || (at < q->rt.top_n && (q->rt.top[at] & Q2_OFFSET_MASK)))
			break;
		r = q2_refblock_make(q, at); /* its region's first cluster describes itself */
		if (r)
			return r;
	}
	r = q2_bump(q, 1, &at);
	if (r)
		return r;
	host = at << q->cluster_bits;
	if (at < q->zero_from)
		r = node_zero(q->file, host, q->cluster_size, 0);
	if (!r)
		r = q2_meta_add_locked(q, host);
	if (r)
		return r;
	q->rt.top[top] = host;
	q->slice_gen++;
	q2_top_mark(&q->rt, top);
	q->new_refblocks = true;
	r = q2_refcount_set_locked(q, at, 1);
	if (r) {
		/* never leave a block in the table that does not count itself */
		q->rt.top[top] = 0;
		q2_meta_del_locked(q, host);
	}
	return r;
}

/* q2_reftable_grow() - a larger table at the end; the commit writes it whole, then the header. */
static int q2_reftable_grow(struct qcow2 *q, uint64_t need_top)
{
	uint64_t old_off = q->rt.top_off, old_len = q->rt.top_n * 8ULL, n, clusters, start;
	int r;

	n = MAX(need_top + 1, q->rt.top_n + (uint64_t)q->rt.top_n / 2 + 1);
	clusters = q2_clusters(q, n * 8);
	if (clusters << q->cluster_bits > Q2_REFTABLE_MAX_BYTES)
		return -EFBIG;
	r = q2_bump(q, clusters, &start);
	if (!r)
		r = q2_dir_grow(&q->rt, (clusters << q->cluster_bits) / 8);
	if (r)
		return r;
	q->rt.top_off = start << q->cluster_bits;
	q->reftable_clusters = clusters;
	q->rt.moved = q->rt.top_is_dirty = true;
	q->header_dirty = true;
	for (uint64_t c = 0; c < clusters && !r; c++)
		r = q2_refcount_set_locked(q, start + c, 1);
	for (uint64_t at = 0; at < old_len && !r; at += q->cluster_size)
		q2_meta_del_locked(q, old_off + at);
	if (!r)
		r = q2_meta_add_run(q, q->rt.top_off, clusters << q->cluster_bits);
	if (!r) {
		q2_free_later_locked(q, old_off, old_len);
	} else {
		/* half moved: what is on disk is whole, and stays as it is */
		int none = 0;

		atomic_compare_exchange_strong(&q->sync_error, &none, r);
	}
	return r;
}

int q2_refcount_set_locked(struct qcow2 *q, uint64_t cluster, uint64_t v)
{
	struct q2_slice *s = NULL;
	uint32_t i, bits = 1u << q->refcount_order;
	int r = q2_refblock_make(q, cluster >> q2_block_bits(q));

	if (!r)
		r = q2_refcount_slice(q, cluster, &s, &i);
	if (r || !s)
		return r ? r : -EIO;
	q2_refcount_put(q, s->data, i, v);
	q2_slice_mark(q, s, (uint64_t)i * bits / 8, MAX(bits / 8, 1u));
	return 0;
}

/* --- allocate and free ---------------------------------------------------------------------------
 */

int q2_alloc_locked(struct qcow2 *q, uint64_t n, bool meta, uint64_t *host, bool *zeroed)
{
	uint64_t start, v;
	bool bumped = false;
	int r = q2_alloc_ready_locked(q);

	while (!r) {
		bumped = !q2_free_ext_take(q, n, &start);
		if (bumped) {
			/* make the refcount block first: it may want the next cluster for itself */
			r = q2_refblock_make(q, q->bump >> q2_block_bits(q));
			if (!r)
				r = q2_bump(q, n, &start);
			if (r)
				return r;
		}
		for (uint64_t c = 0; c < n && !r; c++) {
			r = q2_refcount_locked(q, start + c, &v);
			if (!r && v)
				r = -EEXIST;
		}
		if (!r && q2_meta_hit_locked(q, start << q->cluster_bits, n << q->cluster_bits))
			return q2_corrupt(
			    q, "cluster at offset %llu has refcount 0 but holds metadata",
			    (unsigned long long)(start << q->cluster_bits));
		if (r == -EEXIST) {
			r = 0; /* taken since it was listed: pass over it */
			continue;
		}
		break;
	}
	for (uint64_t c = 0; c < n && !r; c++)
		r = q2_refcount_set_locked(q, start + c, 1);
	if (r)
		return r;
	*host = start << q->cluster_bits;
	if (zeroed)
		*zeroed = bumped && start >= q->zero_from;
	if (meta)
		r = q2_meta_add_run(q, *host, n << q->cluster_bits);
	return r;
}

/* q2_alloc_quick_locked() - one data cluster, where that needs no I/O at all; else -EAGAIN. */
int q2_alloc_quick_locked(struct qcow2 *q, uint64_t *host)
{
	uint64_t c = q->bump;
	uint32_t in_block = c & ((1ULL << q2_block_bits(q)) - 1),
		 per_slice = (q->slice_bytes * 8) >> q->refcount_order;
	uint64_t v;

	if (!q->alloc_ready || q->nfree || (c + 1) << q->cluster_bits > q->prealloc_end ||
	    !q2_slice_there_locked(q, &q->rt, c >> q2_block_bits(q), in_block / per_slice))
		return -EAGAIN;
	if (q2_refcount_locked(q, c, &v) || v ||
	    q2_meta_hit_locked(q, c << q->cluster_bits, q->cluster_size))
		return -EAGAIN;
	if (q2_refcount_set_locked(q, c, 1))
		return -EAGAIN;
	q->bump++;
	*host = c << q->cluster_bits;
	if (*host + q->cluster_size > atomic_load(&q->host_end))
		atomic_store(&q->host_end, *host + q->cluster_size);
	return 0;
}

int q2_alloc_zeroed_meta_locked(struct qcow2 *q, uint64_t n, uint64_t *host)
{
	bool zeroed = false;
	int r = q2_alloc_locked(q, n, true, host, &zeroed);

	if (!r && !zeroed) {
		r = node_zero(q->file, *host, n << q->cluster_bits, 0);
		if (r) {
			for (uint64_t c = 0; c < n; c++)
				q2_meta_del_locked(q, *host + (c << q->cluster_bits));
			q2_free_now_locked(q, *host, n << q->cluster_bits);
		}
	}
	return r;
}

/* q2_unref_locked() - refcounts of [host, host+len) down by one; what reaches 0 becomes free. */
void q2_unref_locked(struct qcow2 *q, uint64_t host, uint64_t len)
{
	uint64_t c = host >> q->cluster_bits, end = q2_clusters(q, host + len);

	for (; c < end; c++) {
		uint64_t v;

		if (q2_refcount_locked(q, c, &v))
			continue; /* a leak, nothing worse */
		if (!v) {
			q2_corrupt(q, "cluster at offset %llu is freed twice",
				   (unsigned long long)(c << q->cluster_bits));
			return;
		}
		if (q2_refcount_set_locked(q, c, v - 1) == 0 && v == 1) {
			if (c == q->comp_next >> q->cluster_bits ||
			    c + 1 == q->comp_end >> q->cluster_bits)
				q->comp_next = q->comp_end = 0; /* do not go on packing into it */
			(void)q2_free_ext_add(q, c, 1);
		}
	}
}

void q2_free_now_locked(struct qcow2 *q, uint64_t host, uint64_t len)
{
	q2_unref_locked(q, host, len);
}

void q2_free_later_locked(struct qcow2 *q, uint64_t host, uint64_t len)
{
	struct q2_freed *f = q->freed;

	if (f && !((f->host | f->len | host | len) & (q->cluster_size - 1))) {
		if (f->host + f->len == host) {
			f->len += len;
			return;
		}
	}
	f = malloc(sizeof(*f));
	if (!f)
		return; /* leaks the cluster, which a check finds */
	f->host = host;
	f->len = len;
	f->next = q->freed;
	q->freed = f;
}

int q2_comp_alloc_locked(struct qcow2 *q, uint64_t len, uint64_t *host)
{
	uint64_t v, c;
	int r = 0;

	if (!q->comp_next || q->comp_end - q->comp_next < len) {
		/* go on in the neighbour where the allocator gives it, else waste the remainder */
		r = q2_alloc_locked(q, 1, false, host, NULL);
		if (r)
			return r;
		if (!q->comp_next || *host != q->comp_end || q->comp_next == q->comp_end) {
			q->comp_next = *host;
			q->comp_end = *host + q->cluster_size;
			*host = q->comp_next;
			q->comp_next += len;
			return 0;
		}
		/* spans both: the old cluster gains a user, the new one has its first */
		c = q->comp_next >> q->cluster_bits;
		r = q2_refcount_locked(q, c, &v);
		if (!r)
			r = v >= q2_refcount_max(q) ? -ERANGE : q2_refcount_set_locked(q, c, v + 1);
		if (r) {
			q->comp_next = *host;
		}
		q->comp_end = *host + q->cluster_size;
		*host = q->comp_next;
		q->comp_next += len;
		return 0;
	}
	c = q->comp_next >> q->cluster_bits;
	r = q2_refcount_locked(q, c, &v);
	if (!r && v < q2_refcount_max(q)) {
		r = q2_refcount_set_locked(q, c, v + 1);
		*host = q->comp_next;
		q->comp_next += len;
		return r;
	}
	q->comp_next = 0;
	return r ? r : q2_comp_alloc_locked(q, len, host);
}
