/* qcow2_bitmap.c - persistent dirty bitmaps (read), and the header's informational fields.
 *
 * A bitmap is trusted only where the autoclear bit still stands and it is not marked in use: any
 * writer that does not keep bitmaps (we, at our first write) clears that bit, and the next backup
 * is a full one. Threading: nothing else may use the image. Trust: hostile; every size is bounded
 * by the disk's size and the format's limits.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2.h"
#include "storage/qcow2_tools.h"

#define Q2_BITMAP_DIR_MAX   (64u << 20)
#define Q2_BITMAP_BYTES_MAX (512u << 20)

struct q2_bitmap {
	uint64_t table_off;
	uint32_t table_n, flags;
	unsigned granularity_bits;
	char name[1024];
};

static struct qcow2 *q2_tool(struct blockdev *bd, struct err *e)
{
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

static int q2_bitmaps_load(struct qcow2 *q, struct q2_bitmap **list, struct err *e)
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
		b->granularity_bits = dir[at + 17];
		name = q2_num(dir + at + 18, 2);
		extra = q2_num(dir + at + 20, 4);
		if (extra > n || name > 1023 || 24 + extra + name > n - at || dir[at + 16] != 1 ||
		    b->granularity_bits < 9 || b->granularity_bits > 31 || b->table_n > 1u << 27) {
			r = q2_bitmap_bad(q, e, q->bitmap_dir_off + at, "an entry is not valid");
			break;
		}
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

static bool q2_bitmap_consistent(const struct qcow2 *q, const struct q2_bitmap *b)
{
	return (q->autoclear & Q2_AUTOCLEAR_BITMAPS) && !(b->flags & 1);
}

static int q2_bitmap_bits(struct qcow2 *q, const struct q2_bitmap *b, uint8_t **bits,
			  uint64_t *nbits, struct err *e)
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
	struct qcow2 *q = q2_tool(bd, e);
	_cleanup_free_ struct q2_bitmap *b = NULL;
	int n = q ? q2_bitmaps_load(q, &b, e) : -ENOTSUP;

	*list = NULL;
	if (n <= 0)
		return n;
	*list = calloc(n, sizeof(**list));
	if (!*list)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	for (int i = 0; i < n; i++) {
		struct qcow2_bitmap_info *o = &(*list)[i];

		memcpy(o->name, b[i].name, sizeof(o->name));
		o->granularity = 1ULL << b[i].granularity_bits;
		o->in_use = b[i].flags & 1;
		o->automatic = b[i].flags & 2;
		o->consistent = q2_bitmap_consistent(q, &b[i]);
		if (o->consistent) {
			_cleanup_free_ uint8_t *bits = NULL;
			uint64_t nbits, set = 0;

			if (q2_bitmap_bits(q, &b[i], &bits, &nbits, e) < 0)
				return -e->num;
			for (uint64_t k = 0; k < nbits; k++)
				set += bits[k / 8] >> (k % 8) & 1;
			o->bytes_dirty = set * o->granularity;
		}
	}
	return n;
}

int qcow2_bitmap_read(struct blockdev *bd, const char *name, uint8_t **bits, uint64_t *nbits,
		      uint64_t *granularity, struct err *e)
{
	struct qcow2 *q = q2_tool(bd, e);
	_cleanup_free_ struct q2_bitmap *b = NULL;
	int n = q ? q2_bitmaps_load(q, &b, e) : -ENOTSUP;

	*bits = NULL;
	if (n < 0)
		return n;
	for (int i = 0; b && i < n; i++) {
		if (strcmp(b[i].name, name))
			continue;
		if (!q2_bitmap_consistent(q, &b[i])) {
			err_set(e, ESTALE, "bitmap-stale",
				"%s: bitmap \"%s\" was not kept up to date", bd->label, name);
			err_hint(e, "make a full backup");
			return -ESTALE;
		}
		*granularity = 1ULL << b[i].granularity_bits;
		return q2_bitmap_bits(q, &b[i], bits, nbits, e);
	}
	return err_set(e, ENOENT, "bitmap-not-found", "%s: has no bitmap \"%s\"", bd->label, name);
}

int qcow2_header_info(struct blockdev *bd, struct qcow2_header_info *h)
{
	struct qcow2 *q = bd->drv;

	if (bd->ops != &qcow2_ops)
		return -ENOTSUP;
	*h = (struct qcow2_header_info){
		.version = q->version,
		.extended_l2 = q->ext_l2,
		.lazy_refcounts = q->compat & Q2_COMPAT_LAZY,
		.dirty = q->incompat & Q2_INCOMPAT_DIRTY,
		.corrupt = (q->incompat & Q2_INCOMPAT_CORRUPT) || atomic_load(&q->corrupt),
		.zstd = q->compression == 1,
		.refcount_bits = 1u << q->refcount_order,
		.snapshots = q->nb_snapshots,
		.bitmaps = q->has_bitmap_ext ? q->nb_bitmaps : 0,
		.backing_name = q->backing_name,
		.backing_format = q->backing_format,
	};
	return 0;
}

int qcow2_set_backing_name(struct blockdev *bd, const char *name, const char *format, struct err *e)
{
	struct qcow2 *q = q2_tool(bd, e);
	size_t n = name ? strlen(name) : 0, f = format ? strlen(format) : 0;
	_cleanup_free_ uint8_t *h = NULL;
	uint64_t room, at;
	uint32_t v32;
	uint64_t v64;
	int r;

	if (!q)
		return -ENOTSUP;
	room = MIN(q->cluster_size, 4096ULL);
	h = calloc(1, room);
	if (!h)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	/* only what stands in the fixed header is kept, and the backing's name and format: feature
	 * names are decoration, and stale bitmaps were given up by the first write */
	if (q->has_bitmap_ext)
		return err_set(e, ENOTSUP, "disk-bitmaps",
			       "%s: has persistent bitmaps; convert it first", bd->label);
	at = q->header_length;
	if (n >= sizeof(q->backing_name) || f >= 16 ||
	    at + 8 + ALIGN_UP(f, (size_t)8) + 8 + n > room)
		return err_set(e, ENAMETOOLONG, "disk-backing-name",
			       "%s: the backing file's name does not fit in the header", bd->label);
	r = q2_begin_write(q);
	if (!r)
		r = q2_flush(bd);
	if (!r)
		r = node_pread(q->file, h, at, 0);
	if (r)
		goto out;
	if (f && n) {
		v32 = htobe32(Q2_EXT_BACKING_FORMAT);
		memcpy(h + at, &v32, 4);
		v32 = htobe32(f);
		memcpy(h + at + 4, &v32, 4);
		memcpy(h + at + 8, format, f);
		at += 8 + ALIGN_UP(f, (size_t)8);
	}
	at += 8;
	v64 = htobe64(n ? at : 0);
	memcpy(h + 8, &v64, 8);
	v32 = htobe32(n);
	memcpy(h + 16, &v32, 4);
	if (n)
		memcpy(h + at, name, n);
	r = node_pwrite(q->file, h, room, 0);
	if (!r)
		r = node_flush(q->file);
	if (!r) {
		memset(q->backing_name, 0, sizeof(q->backing_name));
		memset(q->backing_format, 0, sizeof(q->backing_format));
		if (n)
			memcpy(q->backing_name, name, n);
		if (n && f)
			memcpy(q->backing_format, format, f);
	}
out:
	return r ? err_set(e, -r, "disk-header", "%s: cannot write the header: %s", bd->label,
			   strerror(-r))
		 : 0;
}
