/* qcow2_check.c - count every reference in an image, compare with its refcounts, repair.
 *
 * All users of clusters are walked: header, refcount table and blocks, active L1 and L2, the
 * snapshots' L1 and L2, compressed runs, bitmaps. Fewer references than the refcount says is a leak
 * (space lost, nothing else); more is an error. Repair "leaks" lowers refcounts in place; "all"
 * writes a whole new refcount structure at the file's end, makes it stable, and then points the
 * header to it; it also clears entries that point nowhere (their data is gone) and sets the COPIED
 * flags right.
 * Threading: nothing else may use the image. Trust: the file is hostile; memory is 4 bytes a host
 * cluster, capped.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2.h"

#define Q2_CHECK_CLUSTERS_MAX (1ULL << 28)

struct q2_walk {
	struct qcow2 *q;
	struct q2_check *c;
	enum q2_repair how;
	uint32_t *ref;
	uint64_t n; /* clusters in the file */
};

static void q2_found(struct q2_walk *w, bool error, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void q2_found(struct q2_walk *w, bool error, const char *fmt, ...)
{
	uint64_t *count = error ? &w->c->errors : &w->c->leaks;
	va_list ap;

	if (!w->c->errors && (error || !w->c->leaks)) {
		va_start(ap, fmt);
		vsnprintf(w->c->first, sizeof(w->c->first), fmt, ap);
		va_end(ap);
	}
	++*count;
}

/* q2_walk_ref() - one use of [off, off+len). False: it lies outside the file. */
static bool q2_walk_ref(struct q2_walk *w, uint64_t off, uint64_t len, const char *what)
{
	uint64_t c = off >> w->q->cluster_bits, end;

	if (!len)
		return true;
	if (off > INT64_MAX - len || (end = q2_clusters(w->q, off + len)) > w->n) {
		q2_found(w, true, "%s at offset %llu lies outside the file", what,
			 (unsigned long long)off);
		return false;
	}
	for (; c < end; c++) {
		if (w->ref[c] < UINT32_MAX)
			w->ref[c]++;
		w->c->image_end = MAX(w->c->image_end, (c + 1) << w->q->cluster_bits);
	}
	return true;
}

static bool q2_walk_entry(struct q2_walk *w, const uint64_t *table, uint32_t i, bool count)
{
	struct qcow2 *q = w->q;
	uint64_t l2 = be64toh(table[q->ext_l2 ? 2 * i : i]),
		 bits = q->ext_l2 ? be64toh(table[2 * i + 1]) : 0;
	uint64_t host = l2 & Q2_OFFSET_MASK, off, len;

	if (!l2 && !bits)
		return true;
	if (l2 & Q2_COMPRESSED) {
		q2_comp_extent(q, l2, &off, &len);
		if (count)
			w->c->compressed_clusters++;
		/* the last sector may be the file's ragged end */
		if (off < w->n << q->cluster_bits)
			len = MIN(len, (w->n << q->cluster_bits) - off);
		return q2_walk_ref(w, off, len, "compressed cluster");
	}
	if (l2 & ~(Q2_OFFSET_MASK | Q2_COPIED | (q->ext_l2 ? 0 : Q2_ZERO_FLAG))) {
		q2_found(w, true, "L2 entry %016llx has reserved bits set", (unsigned long long)l2);
		return false;
	}
	if (q->ext_l2 && (((bits & 0xffffffff) & (bits >> 32)) || (!host && (bits & 0xffffffff)))) {
		q2_found(w, true, "an extended L2 entry has an impossible bitmap %016llx",
			 (unsigned long long)bits);
		return false;
	}
	if (!host)
		return true;
	if (host & (q->cluster_size - 1)) {
		q2_found(w, true, "an L2 entry points to unaligned offset %llu",
			 (unsigned long long)host);
		return false;
	}
	if (count)
		w->c->data_clusters++;
	return q2_walk_ref(w, host, q->cluster_size, "data cluster");
}

/* q2_walk_l1() - an L1 table and all below it. @active: counts clusters, may be repaired. */
static int q2_walk_l1(struct q2_walk *w, uint64_t l1_off, uint64_t n, bool active)
{
	struct qcow2 *q = w->q;
	_cleanup_free_ uint64_t *l1 = NULL, *table = NULL;
	bool l1_changed = false;
	int r;

	if (n > Q2_L1_MAX_BYTES / 8 || (l1_off & (q->cluster_size - 1))) {
		q2_found(w, true, "the L1 table at offset %llu is not valid",
			 (unsigned long long)l1_off);
		return 0;
	}
	if (!q2_walk_ref(w, l1_off, n * 8, "L1 table"))
		return 0;
	l1 = malloc(MAX(n, 1ULL) * 8);
	table = malloc(q->cluster_size);
	if (!l1 || !table)
		return -ENOMEM;
	r = node_pread(q->file, l1, n * 8, l1_off);
	for (uint64_t t = 0; t < n && !r; t++) {
		uint64_t host = be64toh(l1[t]) & Q2_OFFSET_MASK;
		bool changed = false;

		if (be64toh(l1[t]) & ~(Q2_OFFSET_MASK | Q2_COPIED)) {
			q2_found(w, true, "L1 entry %llu has reserved bits set",
				 (unsigned long long)t);
			if (active && w->how == Q2_REPAIR_ALL) {
				l1[t] = htobe64(be64toh(l1[t]) & (Q2_OFFSET_MASK | Q2_COPIED));
				l1_changed = true;
			}
		}
		if (!host)
			continue;
		if ((host & (q->cluster_size - 1)) ||
		    !q2_walk_ref(w, host, q->cluster_size, "L2 table")) {
			if (host & (q->cluster_size - 1))
				q2_found(w, true, "L1 entry %llu points to unaligned offset %llu",
					 (unsigned long long)t, (unsigned long long)host);
			if (active && w->how == Q2_REPAIR_ALL) {
				l1[t] = 0;
				l1_changed = true;
				w->c->errors_fixed++;
			}
			continue;
		}
		r = node_pread(q->file, table, q->cluster_size, host);
		for (uint32_t i = 0; i < 1u << q->l2_bits && !r; i++) {
			if (q2_walk_entry(w, table, i, active) || !active ||
			    w->how != Q2_REPAIR_ALL)
				continue;
			table[q->ext_l2 ? 2 * i : i] = 0;
			if (q->ext_l2)
				table[2 * i + 1] = 0;
			changed = true;
			w->c->errors_fixed++;
		}
		if (changed && !r)
			r = node_pwrite(q->file, table, q->cluster_size, host);
	}
	if (l1_changed && !r)
		r = node_pwrite(q->file, l1, n * 8, l1_off);
	return r;
}

static int q2_walk_bitmaps(struct q2_walk *w)
{
	struct qcow2 *q = w->q;
	_cleanup_free_ uint8_t *dir = NULL;
	uint64_t at = 0;
	int r;

	if (!q->has_bitmap_ext || !(q->autoclear & Q2_AUTOCLEAR_BITMAPS) || !q->bitmap_dir_size)
		return 0;
	if (q->bitmap_dir_size > Q2_BITMAPS_MAX * 1072ULL ||
	    !q2_walk_ref(w, q->bitmap_dir_off, q->bitmap_dir_size, "bitmap directory"))
		return 0;
	dir = malloc(q->bitmap_dir_size);
	if (!dir)
		return -ENOMEM;
	r = node_pread(q->file, dir, q->bitmap_dir_size, q->bitmap_dir_off);
	while (!r && at + 24 <= q->bitmap_dir_size) {
		uint64_t tab_off, v;
		uint32_t n, extra;
		uint16_t name;
		_cleanup_free_ uint64_t *tab = NULL;

		memcpy(&tab_off, dir + at, 8);
		memcpy(&n, dir + at + 8, 4);
		memcpy(&name, dir + at + 18, 2);
		memcpy(&extra, dir + at + 20, 4);
		tab_off = be64toh(tab_off);
		n = be32toh(n);
		at += ALIGN_UP(24 + (uint64_t)be16toh(name) + be32toh(extra), 8ULL);
		if (n > 1u << 22 || !q2_walk_ref(w, tab_off, n * 8ULL, "bitmap table"))
			continue;
		tab = malloc(MAX(n, 1u) * 8ULL);
		if (!tab)
			return -ENOMEM;
		r = node_pread(q->file, tab, n * 8ULL, tab_off);
		for (uint32_t i = 0; i < n && !r; i++) {
			v = be64toh(tab[i]) & Q2_OFFSET_MASK;
			if (v)
				q2_walk_ref(w, v, q->cluster_size, "bitmap data");
		}
	}
	return r;
}

static int q2_walk_all(struct q2_walk *w, struct err *e)
{
	struct qcow2 *q = w->q;
	_cleanup_free_ struct q2_snapshot *snaps = NULL;
	int r, n;

	memset(w->ref, 0, w->n * sizeof(*w->ref));
	w->c->data_clusters = w->c->compressed_clusters = w->c->image_end = 0;
	q2_walk_ref(w, 0, q->cluster_size, "header");
	r = q2_walk_l1(w, q->l1.top_off, q->l1.top_n, true);
	if (!r && q->nb_snapshots) {
		n = q2_snapshots_load(q, &snaps, e);
		if (n < 0)
			return n;
		q2_walk_ref(w, q->snapshots_off, q->snapshots_bytes, "snapshot table");
		for (int i = 0; i < n && !r; i++)
			r = q2_walk_l1(w, snaps[i].l1_off, snaps[i].l1_size, false);
	}
	if (!r)
		r = q2_walk_bitmaps(w);
	return r;
}

/* q2_walk_refcounts() - the structure itself, as uses and as values to compare. */
static int q2_walk_refcounts(struct q2_walk *w, bool *broken)
{
	struct qcow2 *q = w->q;
	uint64_t v;
	int r = 0;

	*broken = !q2_walk_ref(w, q->rt.top_off, q->rt.top_n * 8ULL, "refcount table");
	for (uint32_t t = 0; t < q->rt.top_n; t++) {
		uint64_t host = q->rt.top[t] & Q2_OFFSET_MASK;

		if (q->rt.top[t] & ~Q2_OFFSET_MASK) {
			q2_found(w, true, "refcount table entry %u has reserved bits set", t);
			*broken = true;
		}
		if (!host)
			continue;
		if ((host & (q->cluster_size - 1)) ||
		    !q2_walk_ref(w, host, q->cluster_size, "refcount block")) {
			*broken = true;
			q->rt.top[t] = 0;
		} else if (w->ref[host >> q->cluster_bits] > 1) {
			q2_found(w, true,
				 "refcount block at offset %llu is used for something else too",
				 (unsigned long long)host);
			*broken = true;
		}
	}
	for (uint64_t c = 0; c < w->n && !r; c++) {
		r = q2_refcount_locked(q, c, &v);
		if (r || v == w->ref[c])
			continue;
		q2_found(
		    w, v < w->ref[c], "the cluster at offset %llu has refcount %llu and %u users",
		    (unsigned long long)(c << q->cluster_bits), (unsigned long long)v, w->ref[c]);
	}
	return r;
}

static int q2_fix_leaks(struct q2_walk *w)
{
	struct qcow2 *q = w->q;
	uint64_t v;
	int r = 0;

	for (uint64_t c = 0; c < w->n && !r; c++) {
		r = q2_refcount_locked(q, c, &v);
		if (r || v <= w->ref[c])
			continue;
		r = q2_refcount_set_locked(q, c, w->ref[c]);
		if (!r)
			w->c->leaks_fixed++;
	}
	return r ? r : q2_commit(q);
}

/* q2_users() - by the walk's count, or without one by the refcounts themselves. */
static int q2_users(struct qcow2 *q, const struct q2_walk *w, uint64_t host, bool *once)
{
	uint64_t v = 0;
	int r = 0;

	if (w)
		v = host >> q->cluster_bits < w->n ? w->ref[host >> q->cluster_bits] : 0;
	else
		r = q2_refcount_locked(q, host >> q->cluster_bits, &v);
	*once = v == 1;
	return r;
}

/* q2_fix_copied() - on disk: COPIED exactly where there is one user. */
static int q2_fix_copied(struct qcow2 *q, const struct q2_walk *w)
{
	_cleanup_free_ uint64_t *l1 = malloc(MAX(q->l1.top_n, 1u) * 8ULL);
	_cleanup_free_ uint64_t *table = malloc(q->cluster_size);
	bool l1_changed = false, once;
	int r;

	if (!l1 || !table)
		return -ENOMEM;
	r = node_pread(q->file, l1, q->l1.top_n * 8ULL, q->l1.top_off);
	for (uint32_t t = 0; t < q->l1.top_n && !r; t++) {
		uint64_t en = be64toh(l1[t]), host = en & Q2_OFFSET_MASK, want;
		bool changed = false;

		if (!host)
			continue;
		r = q2_users(q, w, host, &once);
		want = host | (once ? Q2_COPIED : 0);
		if (want != en) {
			l1[t] = htobe64(want);
			l1_changed = true;
		}
		if (!r)
			r = node_pread(q->file, table, q->cluster_size, host);
		for (uint32_t i = 0; i < 1u << q->l2_bits && !r; i++) {
			uint64_t *p = &table[q->ext_l2 ? 2 * i : i], l2 = be64toh(*p);
			uint64_t data = l2 & Q2_OFFSET_MASK;

			want = l2 & ~Q2_COPIED;
			if (!(l2 & Q2_COMPRESSED) && data) {
				r = q2_users(q, w, data, &once);
				want |= once ? Q2_COPIED : 0;
			}
			if (want != l2) {
				*p = htobe64(want);
				changed = true;
			}
		}
		if (changed && !r)
			r = node_pwrite(q->file, table, q->cluster_size, host);
	}
	if (l1_changed && !r)
		r = node_pwrite(q->file, l1, q->l1.top_n * 8ULL, q->l1.top_off);
	return r;
}

static int q2_reload_l1(struct qcow2 *q, struct err *e)
{
	uint64_t off = q->l1.top_off;
	uint32_t n = q->l1.top_n;

	q2_dir_fini(q, &q->l1);
	q->slice_gen++;
	return q2_load_top(q, &q->l1, off, n, e);
}

int q2_check_copied(struct qcow2 *q)
{
	struct err ignored = { 0 };
	int r = q2_fix_copied(q, NULL);

	if (!r)
		r = node_flush(q->file);
	return r ? r : q2_reload_l1(q, &ignored);
}

static void q2_put_count(const struct qcow2 *q, uint8_t *blocks, uint64_t c, uint64_t v)
{
	unsigned bits = 1u << q->refcount_order;

	v = MIN(v, q2_refcount_max(q));
	if (bits < 8) {
		unsigned per = 8 / bits, sh = c % per * bits;

		blocks[c / per] = (blocks[c / per] & ~(((1u << bits) - 1) << sh)) | v << sh;
		return;
	}
	for (unsigned i = 0; i < bits / 8; i++)
		blocks[c * (bits / 8) + i] = v >> (bits - 8 * (i + 1));
}

/* q2_rebuild() - new refcount blocks and table past the end of what is used; then the header. */
static int q2_rebuild(struct q2_walk *w)
{
	struct qcow2 *q = w->q;
	uint64_t used = w->n /* clear of the old structure */, total, nb = 1, nt = 1, per, at;
	_cleanup_free_ uint8_t *blocks = NULL;
	_cleanup_free_ uint64_t *table = NULL;
	struct err ignored = { 0 };
	int r;

	per = 1ULL << (q->cluster_bits + 3 - q->refcount_order);
	/* both counts only grow, and slower than what they cover: this ends */
	while (nb * per < used + nb + nt || nt << q->cluster_bits < nb * 8) {
		nb = (used + nb + nt + per - 1) / per;
		nt = q2_clusters(q, nb * 8);
	}
	total = used + nb + nt;
	if (nt << q->cluster_bits > Q2_REFTABLE_MAX_BYTES)
		return -EFBIG;
	blocks = calloc(nb, q->cluster_size);
	table = calloc(nt, q->cluster_size);
	if (!blocks || !table)
		return -ENOMEM;
	for (uint64_t c = 0; c < total; c++)
		q2_put_count(q, blocks, c, c < used ? w->ref[c] : 1);
	at = used << q->cluster_bits;
	for (uint64_t b = 0; b < nb; b++)
		table[b] = htobe64(at + (b << q->cluster_bits));
	r = node_pwrite(q->file, blocks, nb << q->cluster_bits, at);
	if (!r)
		r = node_pwrite(q->file, table, nt << q->cluster_bits,
				at + (nb << q->cluster_bits));
	if (!r)
		r = node_flush(q->file);
	if (r)
		return r;
	q2_dir_fini(q, &q->rt);
	q->slice_gen++;
	q->alloc_ready = false;
	atomic_store(&q->begun, false);
	q->reftable_clusters = nt;
	r = q2_load_top(q, &q->rt, at + (nb << q->cluster_bits), (nt << q->cluster_bits) / 8,
			&ignored);
	if (r)
		return r;
	atomic_store(&q->host_end, MAX(atomic_load(&q->host_end), total << q->cluster_bits));
	q->incompat &= ~(Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT);
	atomic_store(&q->corrupt, false);
	r = q2_write_header_locked(q);
	return r ? r : node_flush(q->file);
}

static int q2_check_all(struct q2_walk *w, struct err *e)
{
	struct qcow2 *q = w->q;
	struct q2_check *c = w->c;
	bool broken;
	int r;

	r = q2_walk_all(w, e);
	if (!r)
		r = q2_walk_refcounts(w, &broken);
	if (!r && w->how == Q2_REPAIR_LEAKS && !c->errors && c->leaks)
		r = q2_fix_leaks(w);
	if (r || w->how != Q2_REPAIR_ALL)
		return r;
	if (!c->errors && !c->leaks && !(q->incompat & (Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT)))
		return 0;
	/* count again without the old refcount structure, which is given up */
	struct q2_check again = { 0 };
	struct q2_walk w2 = *w;

	w2.c = &again;
	r = q2_walk_all(&w2, e);
	c->image_end = again.image_end;
	if (!r)
		r = q2_fix_copied(q, w);
	if (!r)
		r = node_flush(q->file);
	if (!r)
		r = q2_rebuild(w);
	if (!r)
		r = q2_reload_l1(q, e);
	if (!r) {
		c->errors_fixed = c->errors;
		c->leaks_fixed = c->leaks;
	}
	return r;
}

int q2_check_run(struct qcow2 *q, enum q2_repair how, struct q2_check *c, struct err *e)
{
	struct q2_walk w = { .q = q, .c = c, .how = how };
	bool was_corrupt = atomic_load(&q->corrupt);
	int r;

	*c = (struct q2_check){ 0 };
	w.n = q2_clusters(q, MAX(atomic_load(&q->file->size_bytes), atomic_load(&q->host_end)));
	if (w.n > Q2_CHECK_CLUSTERS_MAX)
		return err_set(e, EFBIG, "disk-check",
			       "%s: has too many clusters (%llu) to be checked", q->bd->label,
			       (unsigned long long)w.n);
	w.ref = calloc(MAX(w.n, 1ULL), sizeof(*w.ref));
	if (!w.ref)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", q->bd->label);
	c->total_clusters = q2_clusters(q, atomic_load(&q->bd->size_bytes));
	pthread_rwlock_wrlock(&q->lock);
	atomic_store(&q->corrupt, false);
	pthread_rwlock_unlock(&q->lock);
	r = q2_check_all(&w, e);
	if (was_corrupt && how != Q2_REPAIR_ALL)
		atomic_store(&q->corrupt, true);
	free(w.ref);
	if (r && !err_is_set(e))
		err_set(e, -r, "disk-check", "%s: the check could not finish: %s", q->bd->label,
			strerror(-r));
	return r;
}
