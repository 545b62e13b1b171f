/* qcow2_map.c - slices of L2 tables and refcount blocks, and the guest-to-host lookup.
 *
 * A slice is 4 KiB of a table, loaded when first needed. It is read without the lock and put in
 * place under it, unless a generation count says that the tables changed meanwhile. Over the cap, a
 * clock hand evicts slices that are clean and unused.
 * Threading: lookups under the shared lock; everything named _locked under the lock taken alone.
 * Trust: entries are checked when they are looked up: alignment and the file's end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2.h"

#define Q2_SLICES_AHEAD 8u

void q2_top_mark(struct q2_dir *d, uint32_t i)
{
	d->top_dirty[i / 4096] |= 1ULL << (i / 64 % 64);
	d->top_is_dirty = true;
}

void q2_slice_mark(struct qcow2 *q, struct q2_slice *s, unsigned byte, unsigned len)
{
	if (!s->dirty)
		q->slices_dirty++;
	for (unsigned i = byte / Q2_SECTOR; i <= (byte + len - 1) / Q2_SECTOR; i++)
		s->dirty |= 1u << i;
}

static struct q2_slice *q2_slice_find(const struct q2_dir *d, uint32_t top, uint32_t idx)
{
	struct q2_slice *s = d->tab[top] ? d->tab[top][idx] : NULL;

	if (s && !atomic_load_explicit(&s->used, memory_order_relaxed))
		atomic_store_explicit(&s->used, 1, memory_order_relaxed);
	return s;
}

static void q2_slice_unlink(struct qcow2 *q, struct q2_slice *s)
{
	s->dir->tab[s->top][s->idx] = NULL;
	list_del(&s->clock);
	q->slices--;
	if (s->dirty)
		q->slices_dirty--;
	q->slice_gen++;
	free(s);
}

void q2_slices_drop(struct qcow2 *q, struct q2_dir *d)
{
	for (uint32_t t = 0; t < d->top_n && q->slices; t++) {
		if (!d->tab[t])
			continue;
		for (uint32_t i = 0; i < q->slices_per_table; i++)
			if (d->tab[t][i])
				q2_slice_unlink(q, d->tab[t][i]);
	}
	for (uint32_t t = 0; t < d->top_n; t++) {
		if (d->tab[t]) {
			free(d->tab[t]);
			d->tab[t] = NULL;
		}
	}
}

/* q2_slices_evict() - make room for one, if a clean one can be found within two turns. */
static void q2_slices_evict(struct qcow2 *q)
{
	for (unsigned turn = 0; turn < 2 * q->slices && q->slices >= q->slices_max; turn++) {
		struct q2_slice *s = list_first(&q->clock, struct q2_slice, clock);

		list_del(&s->clock);
		list_add_tail(&q->clock, &s->clock);
		if (s->dirty || s->busy || atomic_exchange(&s->used, 0))
			continue;
		q2_slice_unlink(q, s);
	}
}

static int q2_table_host(struct qcow2 *q, const struct q2_dir *d, uint32_t top, uint64_t *host)
{
	*host = d->top[top] & Q2_OFFSET_MASK;
	if ((*host & (q->cluster_size - 1)) || *host >= atomic_load(&q->host_end))
		return q2_corrupt(q,
				  "the %s at offset %llu has entry %u, which points to offset %llu",
				  d == &q->l1 ? "L1 table" : "refcount table",
				  (unsigned long long)d->top_off, top, (unsigned long long)*host);
	return 0;
}

static struct q2_slice *q2_slice_new(struct qcow2 *q, struct q2_dir *d, uint32_t top, uint32_t idx,
				     uint64_t table)
{
	struct q2_slice *s = malloc(sizeof(*s) + q->slice_bytes);

	if (!s)
		return NULL;
	memset(s, 0, sizeof(*s));
	s->dir = d;
	s->top = top;
	s->idx = idx;
	s->host = table + (uint64_t)idx * q->slice_bytes;
	list_init(&s->clock);
	return s;
}

static struct q2_slice *q2_slice_read(struct qcow2 *q, struct q2_dir *d, uint32_t top, uint32_t idx,
				      uint64_t table, int *r)
{
	struct q2_slice *s = q2_slice_new(q, d, top, idx, table);

	if (!s) {
		*r = -ENOMEM;
		return NULL;
	}
	*r = node_pread(q->file, s->data, q->slice_bytes, s->host);
	if (*r) {
		free(s);
		return NULL;
	}
	return s;
}

static int q2_slice_insert(struct qcow2 *q, struct q2_slice *s)
{
	struct q2_dir *d = s->dir;

	if (!d->tab[s->top]) {
		d->tab[s->top] = calloc(q->slices_per_table, sizeof(*d->tab[s->top]));
		if (!d->tab[s->top])
			return -ENOMEM;
	}
	q2_slices_evict(q);
	d->tab[s->top][s->idx] = s;
	atomic_store(&s->used, 1);
	list_add_tail(&q->clock, &s->clock);
	q->slices++;
	return 0;
}

/* q2_slices_ahead() - how many slices from @idx on one read brings in. A layer that only serves
 * reads is asked for its whole map sooner or later, through a chain of many such. */
static uint32_t q2_slices_ahead(const struct qcow2 *q, const struct q2_dir *d, uint32_t top,
				uint32_t *idx)
{
	uint32_t n = MIN((uint32_t)Q2_SLICES_AHEAD, q->slices_per_table);

	if (!q->bd->read_only || d != &q->l1 || q->slices + n > q->slices_max)
		return 1;
	*idx -= *idx % n;
	for (uint32_t i = 0; i < n && d->tab[top]; i++)
		if (d->tab[top][*idx + i])
			return 0;
	return n;
}

/* q2_slice_load() - bring a slice in; called without the lock. The caller looks again. */
int q2_slice_load(struct qcow2 *q, struct q2_dir *d, uint32_t top, uint32_t idx)
{
	struct q2_slice *s[Q2_SLICES_AHEAD] = { 0 };
	uint32_t first = idx, n = 0, made = 0;
	uint64_t host = 0, gen;
	int r;

	pthread_rwlock_rdlock(&q->lock);
	gen = q->slice_gen;
	r = top < d->top_n && d->top[top] ? q2_table_host(q, d, top, &host) : -EAGAIN;
	if (!r)
		n = q2_slices_ahead(q, d, top, &first);
	pthread_rwlock_unlock(&q->lock);
	if (r)
		return r == -EAGAIN ? 0 : r;
	if (n > 1) {
		_cleanup_free_ uint8_t *buf = NULL;

		if (posix_memalign((void **)&buf, Q2_SLICE_MAX, (size_t)n * q->slice_bytes))
			return -ENOMEM;
		r = node_pread(q->file, buf, (uint64_t)n * q->slice_bytes,
			       host + (uint64_t)first * q->slice_bytes);
		for (; !r && made < n; made++) {
			s[made] = q2_slice_new(q, d, top, first + made, host);
			if (!s[made])
				break;
			memcpy(s[made]->data, buf + (size_t)made * q->slice_bytes, q->slice_bytes);
		}
	}
	if (!made) {
		s[0] = q2_slice_read(q, d, top, idx, host, &r);
		if (!s[0])
			return r;
		made = 1;
	}
	pthread_rwlock_wrlock(&q->lock);
	for (uint32_t i = 0; i < made; i++) {
		if (gen != q->slice_gen || (d->tab[top] && d->tab[top][s[i]->idx]) ||
		    (d->top[top] & Q2_OFFSET_MASK) != host || (r = q2_slice_insert(q, s[i])) < 0)
			free(s[i]);
		/* what was inserted may have evicted another, which changes the count of changes */
		else
			gen = q->slice_gen;
	}
	pthread_rwlock_unlock(&q->lock);
	return r;
}

int q2_slice_locked(struct qcow2 *q, struct q2_dir *d, uint32_t top, uint32_t idx,
		    struct q2_slice **out)
{
	uint64_t host;
	int r;

	*out = q2_slice_find(d, top, idx);
	if (*out)
		return 0;
	r = q2_table_host(q, d, top, &host);
	if (r)
		return r;
	*out = q2_slice_read(q, d, top, idx, host, &r);
	if (!*out)
		return r;
	r = q2_slice_insert(q, *out);
	if (r) {
		free(*out);
		*out = NULL;
	}
	return r;
}

/* --- entries ---------------------------------------------------------------------------------- */

static void q2_place(const struct qcow2 *q, uint64_t off, uint32_t *top, uint32_t *slice,
		     uint32_t *entry)
{
	uint64_t cluster = off >> q->cluster_bits;
	uint32_t in_table = cluster & ((1ULL << q->l2_bits) - 1);

	*top = cluster >> q->l2_bits;
	*slice = in_table / q->entries_per_slice;
	*entry = in_table % q->entries_per_slice;
}

static struct q2_entry q2_slice_entry(const struct qcow2 *q, const struct q2_slice *s, uint32_t i)
{
	struct q2_entry en = { 0 };

	if (q->ext_l2) {
		en.l2 = be64toh(s->data[2 * i]);
		en.bits = be64toh(s->data[2 * i + 1]);
	} else {
		en.l2 = be64toh(s->data[i]);
	}
	return en;
}

void q2_comp_extent(const struct qcow2 *q, uint64_t l2, uint64_t *off, uint64_t *len)
{
	unsigned x = 62 - (q->cluster_bits - 8);
	uint64_t sectors = (l2 >> x) & ((1ULL << (q->cluster_bits - 8)) - 1);

	*off = l2 & ((1ULL << x) - 1);
	*len = (sectors + 1) * Q2_SECTOR - (*off & (Q2_SECTOR - 1));
}

int q2_entry_seg(struct qcow2 *q, const struct q2_entry *en, unsigned unit, struct q2_seg *s)
{
	uint64_t host = en->l2 & Q2_OFFSET_MASK;
	bool alloc, zero;

	*s = (struct q2_seg){ .entry = en->l2, .copied = en->l2 & Q2_COPIED };
	if (en->l2 & Q2_COMPRESSED) {
		uint64_t off, len;

		q2_comp_extent(q, en->l2, &off, &len);
		s->kind = Q2_COMP;
		s->copied = false;
		if (off >= atomic_load(&q->host_end))
			return q2_corrupt(
			    q,
			    "a compressed cluster's L2 entry points past the file, to offset %llu",
			    (unsigned long long)off);
		return 0;
	}
	if (q->ext_l2) {
		alloc = en->bits >> unit & 1;
		zero = en->bits >> (32 + unit) & 1;
		if ((alloc && zero) || (alloc && !host))
			return q2_corrupt(q,
					  "an extended L2 entry (host offset %llu) has an "
					  "impossible bitmap %016llx",
					  (unsigned long long)host, (unsigned long long)en->bits);
	} else {
		zero = q->version >= 3 && (en->l2 & Q2_ZERO_FLAG);
		alloc = host && !zero;
	}
	if (host & (q->cluster_size - 1))
		return q2_corrupt(q,
				  "an L2 entry points to offset %llu, which is not cluster-aligned",
				  (unsigned long long)host);
	s->kind = zero ? Q2_ZERO : alloc ? Q2_DATA : Q2_UNALLOC;
	s->host = host ? host + unit * q->unit_size : 0;
	if (alloc && s->host >= atomic_load(&q->host_end))
		return q2_corrupt(q, "an L2 entry points past the file's end, to offset %llu",
				  (unsigned long long)s->host);
	return 0;
}

/* q2_seg_scan() - the lookup under the lock. -EAGAIN: slice (*top, *slice) must be loaded first. */
static int q2_seg_scan(struct qcow2 *q, uint64_t off, uint64_t len, struct q2_seg *s, uint32_t *top,
		       uint32_t *slice)
{
	struct q2_slice *sl;
	uint32_t i;
	uint64_t run;
	unsigned unit;
	struct q2_entry en;
	int r;

	q2_place(q, off, top, slice, &i);
	if (*top >= q->l1.top_n || !(q->l1.top[*top] & Q2_OFFSET_MASK)) {
		uint64_t span = 1ULL << (q->cluster_bits + q->l2_bits);

		*s = (struct q2_seg){ .kind = Q2_UNALLOC };
		s->len = MIN(len, span - (off & (span - 1)));
		return 0;
	}
	sl = q2_slice_find(&q->l1, *top, *slice);
	if (!sl)
		return -EAGAIN;
	unit = (off & (q->cluster_size - 1)) >> q->unit_bits;
	en = q2_slice_entry(q, sl, i);
	r = q2_entry_seg(q, &en, unit, s);
	if (r)
		return r;
	if (s->kind == Q2_COMP) {
		s->len = MIN(len, q->cluster_size - (off & (q->cluster_size - 1)));
		return 0;
	}
	run = q->unit_size - (off & (q->unit_size - 1));
	if (s->host)
		s->host += off & (q->unit_size - 1);
	while (run < len) {
		struct q2_seg next;

		if (++unit == q->units) {
			unit = 0;
			if (++i == q->entries_per_slice)
				break;
			en = q2_slice_entry(q, sl, i);
		}
		if (q2_entry_seg(q, &en, unit, &next) || next.kind != s->kind ||
		    next.copied != s->copied || (s->kind == Q2_DATA && next.host != s->host + run))
			break;
		run += q->unit_size;
	}
	s->len = MIN(len, run);
	return 0;
}

int q2_seg_get(struct qcow2 *q, uint64_t off, uint64_t len, bool write, struct q2_seg *s)
{
	uint32_t top, slice;
	int r;

	for (;;) {
		pthread_rwlock_rdlock(&q->lock);
		r = q2_seg_scan(q, off, len, s, &top, &slice);
		if (!r && write && s->kind == Q2_DATA && q2_meta_hit_locked(q, s->host, s->len))
			r = q2_corrupt(
			    q,
			    "the L2 entry for guest offset %llu points to metadata at offset %llu",
			    (unsigned long long)off, (unsigned long long)s->host);
		pthread_rwlock_unlock(&q->lock);
		if (r != -EAGAIN)
			return r;
		r = q2_slice_load(q, &q->l1, top, slice);
		if (r)
			return r;
	}
}

int q2_seg_try(struct qcow2 *q, uint64_t off, uint64_t len, bool write, struct q2_seg *s)
{
	uint32_t top, slice;
	int r;

	if (pthread_rwlock_tryrdlock(&q->lock))
		return -EAGAIN;
	r = q2_seg_scan(q, off, len, s, &top, &slice);
	if (!r && write && s->kind == Q2_DATA && q2_meta_hit_locked(q, s->host, s->len))
		r = -EAGAIN;
	pthread_rwlock_unlock(&q->lock);
	return r ? -EAGAIN : 0;
}

/* q2_entry_quick_locked() - the entry, where reading and then setting it will need no I/O. */
int q2_entry_quick_locked(struct qcow2 *q, uint64_t off, struct q2_entry *en)
{
	uint32_t top, slice, i;
	struct q2_slice *s;

	q2_place(q, off, &top, &slice, &i);
	if (top >= q->l1.top_n || !(q->l1.top[top] & Q2_COPIED))
		return -EAGAIN;
	s = q2_slice_find(&q->l1, top, slice);
	if (!s)
		return -EAGAIN;
	*en = q2_slice_entry(q, s, i);
	return 0;
}

bool q2_slice_there_locked(struct qcow2 *q, const struct q2_dir *d, uint32_t top, uint32_t idx)
{
	(void)q;
	return top < d->top_n && q2_slice_find(d, top, idx) != NULL;
}

int q2_entry_get(struct qcow2 *q, uint64_t off, struct q2_entry *en)
{
	uint32_t top, slice, i;
	struct q2_slice *s;
	int r;

	q2_place(q, off, &top, &slice, &i);
	for (;;) {
		bool there = true;

		*en = (struct q2_entry){ 0 };
		pthread_rwlock_rdlock(&q->lock);
		if (top < q->l1.top_n && (q->l1.top[top] & Q2_OFFSET_MASK)) {
			s = q2_slice_find(&q->l1, top, slice);
			there = s != NULL;
			if (s)
				*en = q2_slice_entry(q, s, i);
		}
		pthread_rwlock_unlock(&q->lock);
		if (there)
			return 0;
		r = q2_slice_load(q, &q->l1, top, slice);
		if (r)
			return r;
	}
}

int q2_entry_locked(struct qcow2 *q, uint64_t off, struct q2_entry *en)
{
	uint32_t top, slice, i;
	struct q2_slice *s;
	int r;

	q2_place(q, off, &top, &slice, &i);
	*en = (struct q2_entry){ 0 };
	if (top >= q->l1.top_n)
		return -EINVAL;
	if (!(q->l1.top[top] & Q2_OFFSET_MASK))
		return 0;
	r = q2_slice_locked(q, &q->l1, top, slice, &s);
	if (!r)
		*en = q2_slice_entry(q, s, i);
	return r;
}

/* q2_l2_writable() - the L2 table for entry @top exists and is ours alone. */
static int q2_l2_writable(struct qcow2 *q, uint32_t top)
{
	uint64_t old = q->l1.top[top], host;
	void *copy;
	int r;

	if (old & Q2_COPIED)
		return q2_table_host(q, &q->l1, top, &host);
	if (!(old & Q2_OFFSET_MASK)) {
		r = q2_alloc_zeroed_meta_locked(q, 1, &host);
		if (r)
			return r;
	} else {
		/* shared with a snapshot: copy it, stable before the L1 entry is */
		uint64_t from;

		r = q2_table_host(q, &q->l1, top, &from);
		if (r)
			return r;
		copy = malloc(q->cluster_size);
		if (!copy)
			return -ENOMEM;
		r = node_pread(q->file, copy, q->cluster_size, from);
		if (!r)
			r = q2_alloc_locked(q, 1, true, &host, NULL);
		if (!r) {
			r = node_pwrite(q->file, copy, q->cluster_size, host);
			if (r)
				q2_free_now_locked(q, host, q->cluster_size);
		}
		free(copy);
		if (r)
			return r;
		q2_meta_del_locked(q, from);
		q2_free_later_locked(q, from, q->cluster_size);
		/* slices of the shared table are clean; they are re-homed */
		for (uint32_t i = 0; q->l1.tab[top] && i < q->slices_per_table; i++)
			if (q->l1.tab[top][i])
				q->l1.tab[top][i]->host = host + (uint64_t)i * q->slice_bytes;
	}
	q->l1.top[top] = host | Q2_COPIED;
	q->slice_gen++;
	q2_top_mark(&q->l1, top);
	return 0;
}

int q2_entry_set_locked(struct qcow2 *q, uint64_t off, struct q2_entry en)
{
	uint32_t top, slice, i;
	struct q2_slice *s;
	int r;

	q2_place(q, off, &top, &slice, &i);
	if (top >= q->l1.top_n)
		return -EINVAL;
	r = q2_l2_writable(q, top);
	if (!r)
		r = q2_slice_locked(q, &q->l1, top, slice, &s);
	if (r)
		return r;
	if (q->ext_l2) {
		s->data[2 * i] = htobe64(en.l2);
		s->data[2 * i + 1] = htobe64(en.bits);
	} else {
		s->data[i] = htobe64(en.l2);
	}
	q2_slice_mark(q, s, i * q->l2_entry_bytes, q->l2_entry_bytes);
	return 0;
}
