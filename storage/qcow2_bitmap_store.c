/* qcow2_bitmap_store.c - dirty bitmaps between RAM and file: marked in use, and stored at close.
 *
 * In use: the flag of each is set in the directory, in place, and made stable before the first
 * write; from then on a crash leaves them untrusted. Stored: data, tables and a new directory go to
 * fresh clusters; a commit makes those and their refcounts stable; one sector of the header then
 * names the new directory; only after that are the old clusters let go. A crash before it leaves
 * the old directory, in which they are in use.
 * Threading: own under the image's lock taken alone; store when no request is left.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "storage/qcow2_bitmap.h"

static void q2_put(uint8_t *p, uint64_t v, unsigned n)
{
	while (n--) {
		p[n] = (uint8_t)v;
		v >>= 8;
	}
}

static int q2_bitmaps_flag_all(struct qcow2 *q)
{
	bool any = false;
	int r = 0;

	list_for_each (l, &q->bm) {
		struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);
		uint8_t flags[4];

		if (b->disk.flags & Q2_BITMAP_IN_USE)
			continue;
		q2_put(flags, b->disk.flags | Q2_BITMAP_IN_USE, 4);
		r = node_pwrite(q->file, flags, 4, b->disk.flags_at);
		if (r)
			return r;
		any = true;
	}
	return any ? node_flush(q->file) : 0;
}

int q2_bitmaps_own(struct qcow2 *q)
{
	bool stands = q->has_bitmap_ext && (q->autoclear & Q2_AUTOCLEAR_BITMAPS);
	struct err e = { 0 };
	int r;

	if (q->bm_owned)
		return 0;
	r = stands ? q2_bitmaps_load(q, &e) : 0;
	pthread_rwlock_wrlock(&q->bm_lock);
	if (!r && stands)
		r = q2_bitmaps_flag_all(q);
	if (r || !stands) {
		/* what they point to may be anybody's by now: it is never looked at again */
		if (r)
			log_warn("%s: its dirty bitmaps are lost: %s", q->bd->label,
				 err_is_set(&e) ? e.detail : strerror(-r));
		q2_bitmaps_fini(q);
		q->autoclear &= ~Q2_AUTOCLEAR_BITMAPS;
		q->has_bitmap_ext = false;
		q->nb_bitmaps = 0;
		q->bitmap_dir_off = q->bitmap_dir_size = 0;
		q->bm_loaded = true;
	}
	q->bm_owned = true;
	list_for_each (l, &q->bm) {
		const struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);

		if (b->enabled && !b->stale)
			atomic_store(&q->bm_on, true);
	}
	pthread_rwlock_unlock(&q->bm_lock);
	return 0;
}

/* --- storing -------------------------------------------------------------------------------------
 */

/* clusters that the old directory used */
struct q2_old {
	uint64_t *host;
	size_t n, cap;
};

static int q2_old_add(struct q2_old *o, uint64_t host)
{
	if (o->n == o->cap) {
		size_t cap = o->cap ? 2 * o->cap : 64;
		uint64_t *p = realloc(o->host, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		o->host = p;
		o->cap = cap;
	}
	o->host[o->n++] = host;
	return 0;
}

static int q2_old_add_run(struct qcow2 *q, struct q2_old *o, uint64_t host, uint64_t len)
{
	int r = 0;

	for (uint64_t at = 0; at < len && !r; at += q->cluster_size)
		r = q2_old_add(o, host + at);
	return r;
}

/* q2_old_bitmap() - the table and data of one that is replaced or gone. */
static int q2_old_bitmap(struct qcow2 *q, struct q2_old *o, const struct q2_bitmap *d)
{
	_cleanup_free_ uint64_t *table = NULL;
	uint64_t bytes = d->table_n * 8ULL;
	int r;

	if (!d->table_n)
		return 0;
	if ((d->table_off & (q->cluster_size - 1)) ||
	    !range_within(d->table_off, bytes, atomic_load(&q->host_end)))
		return 0; /* a hostile entry: nothing of it is known to be ours */
	table = malloc(bytes);
	if (!table)
		return -ENOMEM;
	r = node_pread(q->file, table, bytes, d->table_off);
	for (uint32_t i = 0; i < d->table_n && !r; i++) {
		uint64_t host = be64toh(table[i]) & Q2_OFFSET_MASK;

		if (host && !(host & (q->cluster_size - 1)) && host < atomic_load(&q->host_end))
			r = q2_old_add(o, host);
	}
	return r ? r : q2_old_add_run(q, o, d->table_off, bytes);
}

static int q2_store_alloc(struct qcow2 *q, uint64_t clusters, uint64_t *host)
{
	int r;

	pthread_rwlock_wrlock(&q->lock);
	r = q2_alloc_locked(q, clusters, false, host, NULL);
	pthread_rwlock_unlock(&q->lock);
	return r;
}

/* q2_store_table() - a buffer of @bytes, padded to whole clusters, at a fresh place. */
static int q2_store_table(struct qcow2 *q, const void *p, uint64_t bytes, uint64_t *host)
{
	uint64_t len = q2_clusters(q, bytes) << q->cluster_bits;
	_cleanup_free_ uint8_t *buf = NULL;
	int r = q2_store_alloc(q, len >> q->cluster_bits, host);

	if (r)
		return r;
	if (posix_memalign((void **)&buf, Q2_SLICE_MAX, len))
		return -ENOMEM;
	memcpy(buf, p, bytes);
	memset(buf + bytes, 0, len - bytes);
	return node_pwrite(q->file, buf, len, *host);
}

/* q2_store_bits() - one bitmap's data and table; clusters of equal bits need none. */
static int q2_store_bits(struct qcow2 *q, struct q2_bitmap_ram *b, struct q2_bitmap *d)
{
	uint64_t bytes = (b->nbits + 7) / 8, clusters = q2_clusters(q, bytes);
	uint64_t per = q->cluster_size / 8, words = q2_bitmap_words(b->nbits);
	_cleanup_free_ uint64_t *table = calloc(MAX(clusters, 1ULL), 8), *buf = NULL;
	int r = 0;

	if (!table || posix_memalign((void **)&buf, Q2_SLICE_MAX, q->cluster_size))
		return -ENOMEM;
	for (uint64_t c = 0; c < clusters && !r; c++) {
		bool zero = true, ones = true;
		uint64_t host;

		for (uint64_t i = 0; i < per; i++) {
			uint64_t w = c * per + i < words ? atomic_load(&b->words[c * per + i]) : 0;

			buf[i] = htole64(w);
			zero &= !w;
			ones &= w == UINT64_MAX;
		}
		if (zero || ones) {
			table[c] = htobe64(ones);
			continue;
		}
		r = q2_store_alloc(q, 1, &host);
		if (!r)
			r = node_pwrite(q->file, buf, q->cluster_size, host);
		table[c] = htobe64(host);
	}
	d->table_n = clusters;
	d->table_off = 0;
	return r || !clusters ? r : q2_store_table(q, table, clusters * 8, &d->table_off);
}

static int q2_store_dir(struct qcow2 *q, uint32_t *n, uint64_t *off, uint64_t *size)
{
	_cleanup_free_ uint8_t *dir = NULL;
	uint64_t at = 0;

	*n = 0;
	*off = *size = 0;
	list_for_each (l, &q->bm) {
		const struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);

		*size += ALIGN_UP(24 + strlen(b->disk.name), (size_t)8);
		++*n;
	}
	if (!*n)
		return 0;
	dir = calloc(1, *size);
	if (!dir)
		return -ENOMEM;
	list_for_each (l, &q->bm) {
		const struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);
		size_t name = strlen(b->disk.name);

		q2_put(dir + at, b->disk.table_off, 8);
		q2_put(dir + at + 8, b->disk.table_n, 4);
		q2_put(dir + at + 12,
		       (b->stale ? Q2_BITMAP_IN_USE : 0) | (b->enabled ? Q2_BITMAP_AUTO : 0), 4);
		dir[at + 16] = 1;
		dir[at + 17] = b->disk.granularity_bits;
		q2_put(dir + at + 18, name, 2);
		memcpy(dir + at + 24, b->disk.name, name);
		at += ALIGN_UP(24 + name, (size_t)8);
	}
	return q2_store_table(q, dir, *size, off);
}

static int q2_store_all(struct qcow2 *q, struct q2_old *old)
{
	uint64_t off, size, old_off = q->bitmap_dir_off, old_size = q->bitmap_dir_size;
	bool had = q->has_bitmap_ext;
	uint32_t n;
	int r = 0;

	list_for_each (l, &q->bm) {
		struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);
		struct q2_bitmap d = b->disk;

		if (b->stale || (!b->changed && d.table_n))
			continue;
		r = q2_old_bitmap(q, old, &b->disk);
		if (!r)
			r = q2_store_bits(q, b, &d);
		if (r)
			return r;
		b->disk = d;
	}
	list_for_each (l, &q->bm_gone) {
		r = q2_old_bitmap(q, old, &container_of(l, struct q2_bitmap_ram, node)->disk);
		if (r)
			return r;
	}
	if (had && old_size)
		r = q2_old_add_run(q, old, old_off, old_size);
	if (!r)
		r = q2_store_dir(q, &n, &off, &size);
	if (!r)
		r = q2_commit(q);
	if (r)
		return r;
	q->has_bitmap_ext = n;
	q->nb_bitmaps = n;
	q->bitmap_dir_off = off;
	q->bitmap_dir_size = size;
	q->autoclear = n ? Q2_AUTOCLEAR_BITMAPS : 0;
	return q2_header_rewrite(q, q->backing_name[0] ? q->backing_name : NULL,
				 q->backing_format[0] ? q->backing_format : NULL);
}

int q2_bitmaps_store(struct qcow2 *q)
{
	struct q2_old old = { 0 };
	int r = 0;

	/* owned with none in the list and nothing gone: the file says so already */
	if (!q->bm_owned || (list_empty(&q->bm) && !q->bm_changed))
		return 0;
	r = q2_bitmaps_resize(q, atomic_load(&q->bd->size_bytes));
	if (!r)
		r = q2_store_all(q, &old);
	pthread_rwlock_wrlock(&q->lock);
	for (size_t i = 0; i < old.n && !r; i++)
		q2_free_now_locked(q, old.host[i], q->cluster_size);
	pthread_rwlock_unlock(&q->lock);
	free(old.host);
	if (r)
		log_warn("%s: its dirty bitmaps could not be stored (%s): the next backup is a "
			 "full one",
			 q->bd->label, strerror(-r));
	/* whoever goes on reads them from the file */
	pthread_rwlock_wrlock(&q->bm_lock);
	q2_bitmaps_fini(q);
	q->bm_loaded = q->bm_owned = q->bm_changed = false;
	atomic_store(&q->bm_on, false);
	pthread_rwlock_unlock(&q->bm_lock);
	return r;
}
