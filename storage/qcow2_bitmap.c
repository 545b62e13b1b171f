/* qcow2_bitmap.c - persistent dirty bitmaps as the file has them, and the lists that tools show.
 *
 * A bitmap is trusted only where the autoclear bit still stands (a writer that keeps no bitmaps
 * clears it) and it is not marked in use (its last writer did not come to closing the disk); else
 * the next backup is a full one. Threading: parsing needs the image to itself; list and read also
 * serve an image that is in use, from RAM. Trust: hostile; every size is bounded by the disk's size
 * and the format's limits.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2_bitmap.h"
#include "storage/qcow2_tools.h"

struct qcow2 *q2_bitmap_image(struct blockdev *bd, struct err *e)
{
	while (bd->ops != &qcow2_ops && bd->child)
		bd = bd->child;
	if (bd->ops == &qcow2_ops)
		return bd->drv;
	err_set(e, ENOTSUP, "disk-format", "%s: is not a qcow2 image", bd->label);
	return NULL;
}

static uint64_t q2_num(const uint8_t *p, unsigned n)
{
	uint64_t v = 0;

	while (n--)
		v = v << 8 | *p++;
	return v;
}

static int q2_bitmap_bad(const struct qcow2 *q, struct err *e, uint64_t at, const char *what)
{
	return err_set(e, EUCLEAN, "disk-corrupt", "%s: bitmap directory at offset %llu: %s",
		       q->bd->label, (unsigned long long)at, what);
}

int q2_bitmaps_parse(struct qcow2 *q, struct q2_bitmap **list, struct err *e)
{
	_cleanup_free_ uint8_t *dir = NULL;
	uint64_t at = 0, n = q->bitmap_dir_size;
	int r;

	*list = NULL;
	if (!q->has_bitmap_ext || !q->nb_bitmaps)
		return 0;
	if (q->nb_bitmaps > Q2_BITMAPS_MAX || n > Q2_BITMAP_DIR_MAX || n < q->nb_bitmaps * 24ULL ||
	    !range_within(q->bitmap_dir_off, n, atomic_load(&q->host_end)))
		return q2_bitmap_bad(q, e, q->bitmap_dir_off, "its size is out of range");
	dir = malloc(n);
	*list = calloc(q->nb_bitmaps, sizeof(**list));
	r = dir && *list ? node_pread(q->file, dir, n, q->bitmap_dir_off) : -ENOMEM;
	for (uint32_t i = 0; i < q->nb_bitmaps && !r; i++) {
		struct q2_bitmap *b = &(*list)[i];
		uint64_t name, extra;

		if (n - at < 24) {
			r = q2_bitmap_bad(q, e, q->bitmap_dir_off + at, "an entry is cut off");
			break;
		}
		b->table_off = q2_num(dir + at, 8);
		b->table_n = q2_num(dir + at + 8, 4);
		b->flags = q2_num(dir + at + 12, 4);
		b->flags_at = q->bitmap_dir_off + at + 12;
		b->granularity_bits = dir[at + 17];
		name = q2_num(dir + at + 18, 2);
		extra = q2_num(dir + at + 20, 4);
		if (extra > n || name > 1023 || 24 + extra + name > n - at || dir[at + 16] != 1 ||
		    b->granularity_bits < 9 || b->granularity_bits > 31 || b->table_n > 1u << 27) {
			r = q2_bitmap_bad(q, e, q->bitmap_dir_off + at, "an entry is not valid");
			break;
		}
		b->foreign = extra && !(b->flags & Q2_BITMAP_EXTRA_OK);
		memcpy(b->name, dir + at + 24 + extra, name);
		at = MIN(at + ALIGN_UP(24 + extra + name, 8ULL), n);
	}
	if (r) {
		free(*list);
		*list = NULL;
		return err_is_set(e)
			   ? r
			   : err_set(e, -r, "disk-open", "%s: cannot read the bitmaps: %s",
				     q->bd->label, strerror(-r));
	}
	return q->nb_bitmaps;
}

bool q2_bitmap_consistent(const struct qcow2 *q, const struct q2_bitmap *b)
{
	return (q->autoclear & Q2_AUTOCLEAR_BITMAPS) && !(b->flags & Q2_BITMAP_IN_USE) &&
	       !b->foreign;
}

int q2_bitmap_bits(struct qcow2 *q, const struct q2_bitmap *b, uint8_t **bits, uint64_t *nbits,
		   struct err *e)
{
	uint64_t gran = 1ULL << b->granularity_bits, bytes, clusters;
	_cleanup_free_ uint64_t *table = NULL;
	int r;

	*nbits = (atomic_load(&q->bd->size_bytes) + gran - 1) / gran;
	bytes = (*nbits + 7) / 8;
	clusters = q2_clusters(q, bytes);
	if (bytes > Q2_BITMAP_BYTES_MAX || b->table_n != clusters ||
	    !range_within(b->table_off, clusters * 8, atomic_load(&q->host_end)))
		return q2_bitmap_bad(q, e, b->table_off, "a bitmap's table does not fit the disk");
	table = malloc(MAX(clusters, 1ULL) * 8);
	*bits = calloc(MAX(clusters, 1ULL), q->cluster_size);
	r = table && *bits ? node_pread(q->file, table, clusters * 8, b->table_off) : -ENOMEM;
	for (uint64_t i = 0; i < clusters && !r; i++) {
		uint64_t en = be64toh(table[i]), host = en & Q2_OFFSET_MASK;

		if (!host) {
			if (en & 1)
				memset(*bits + (i << q->cluster_bits), 0xff, q->cluster_size);
			continue;
		}
		if ((host & (q->cluster_size - 1)) || host >= atomic_load(&q->host_end))
			r = q2_bitmap_bad(q, e, b->table_off,
					  "a bitmap's data lies outside the file");
		else
			r = node_pread(q->file, *bits + (i << q->cluster_bits), q->cluster_size,
				       host);
	}
	if (r) {
		free(*bits);
		*bits = NULL;
		if (!err_is_set(e))
			err_set(e, -r, "disk-open", "%s: cannot read bitmap \"%s\": %s",
				q->bd->label, b->name, strerror(-r));
	}
	return r;
}

int qcow2_bitmap_list(struct blockdev *bd, struct qcow2_bitmap_info **list, struct err *e)
{
	struct qcow2 *q;
	int r, n = 0;

	*list = NULL;
	node_gate_enter(bd);
	q = q2_bitmap_image(bd, e);
	r = q ? q2_bitmaps_load(q, e) : -ENOTSUP;
	if (r) {
		node_gate_leave(bd);
		return r;
	}
	pthread_rwlock_rdlock(&q->bm_lock);
	list_for_each (l, &q->bm)
		n++;
	*list = n ? calloc(n, sizeof(**list)) : NULL;
	if (n && !*list) {
		pthread_rwlock_unlock(&q->bm_lock);
		node_gate_leave(bd);
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	}
	n = 0;
	list_for_each (l, &q->bm) {
		const struct q2_bitmap_ram *b = container_of(l, struct q2_bitmap_ram, node);
		struct qcow2_bitmap_info *o;

		if (!*list) /* counted under the same lock */
			break;
		o = *list + n++;
		memcpy(o->name, b->disk.name, sizeof(o->name));
		o->granularity = 1ULL << b->disk.granularity_bits;
		o->in_use = b->disk.flags & Q2_BITMAP_IN_USE;
		o->automatic = b->enabled;
		o->consistent = !b->stale;
		o->bytes_dirty = q2_bitmap_count(b) * o->granularity;
	}
	pthread_rwlock_unlock(&q->bm_lock);
	node_gate_leave(bd);
	return n;
}

int qcow2_bitmap_read(struct blockdev *bd, const char *name, uint8_t **bits, uint64_t *nbits,
		      uint64_t *granularity, struct err *e)
{
	const struct q2_bitmap_ram *b;
	struct qcow2 *q;
	int r;

	*bits = NULL;
	node_gate_enter(bd);
	q = q2_bitmap_image(bd, e);
	r = q ? q2_bitmaps_load(q, e) : -ENOTSUP;
	if (r) {
		node_gate_leave(bd);
		return r;
	}
	pthread_rwlock_rdlock(&q->bm_lock);
	b = q2_bitmap_find_locked(q, name);
	if (!b) {
		r = err_set(e, ENOENT, "bitmap-not-found", "%s: has no bitmap \"%s\"", bd->label,
			    name);
	} else if (b->stale) {
		r = err_set(e, ESTALE, "bitmap-stale", "%s: bitmap \"%s\" was not kept up to date",
			    bd->label, name);
		err_hint(e, "make a full backup, remove the bitmap and add it again");
	} else if (!(*bits = calloc(q2_bitmap_words(b->nbits), 8))) {
		r = err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	} else {
		*nbits = b->nbits;
		*granularity = 1ULL << b->disk.granularity_bits;
		for (uint64_t i = 0; i < q2_bitmap_words(b->nbits); i++) {
			uint64_t w = htole64(atomic_load(&b->words[i]));

			memcpy(*bits + i * 8, &w, 8);
		}
	}
	pthread_rwlock_unlock(&q->bm_lock);
	node_gate_leave(bd);
	return r;
}
