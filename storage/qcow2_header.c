/* qcow2_header.c - the header's informational fields, and writing its extensions anew.
 *
 * All that changes together must fit into the first sector, which a crash leaves old or new but
 * never torn: extensions we know, those we do not (kept as they are), and the backing file's name
 * where there is room; a longer name is written beside the old one first, and made stable. Feature
 * names are decoration and go when room is short.
 * Threading: nothing else changes the header meanwhile. Trust: what is on disk is hostile.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2.h"
#include "storage/qcow2_tools.h"

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

struct q2_sector {
	uint8_t b[Q2_SECTOR];
	size_t at;
};

static uint32_t q2_be(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return be32toh(v);
}

static void q2_put(uint8_t *p, uint64_t v, unsigned n)
{
	while (n--) {
		p[n] = (uint8_t)v;
		v >>= 8;
	}
}

/* q2_sector_add() - one extension. False: no room, with the end mark counted in. */
static bool q2_sector_add(struct q2_sector *s, uint32_t type, const void *data, size_t len)
{
	size_t need = 8 + ALIGN_UP(len, (size_t)8);

	if (len > sizeof(s->b) || s->at + need + 8 > sizeof(s->b))
		return false;
	memset(s->b + s->at, 0, need);
	q2_put(s->b + s->at, type, 4);
	q2_put(s->b + s->at + 4, len, 4);
	memcpy(s->b + s->at + 8, data, len);
	s->at += need;
	return true;
}

/* q2_keep_extensions() - those of the old header that are not rewritten. */
static int q2_keep_extensions(struct qcow2 *q, const uint8_t *old, size_t end, struct q2_sector *s,
			      bool features)
{
	size_t at = q->header_length;

	while (at + 8 <= end) {
		uint32_t type = q2_be(old + at), len = q2_be(old + at + 4);

		at += 8;
		if (type == Q2_EXT_END || len > end - at)
			break;
		if (type != Q2_EXT_BITMAPS && type != Q2_EXT_BACKING_FORMAT &&
		    type != Q2_EXT_STAMP && (type == Q2_EXT_FEATURES) == features &&
		    !q2_sector_add(s, type, old + at, len) && !features)
			return -ENOTSUP;
		at += ALIGN_UP((size_t)len, (size_t)8);
	}
	return 0;
}

static int q2_sector_build(struct qcow2 *q, const uint8_t *old, size_t end, const char *format,
			   struct q2_sector *s)
{
	uint8_t bm[24] = { 0 }, stamp[24];
	int r;

	memcpy(s->b, old, q->header_length);
	s->at = q->header_length;
	q2_put(bm, q->nb_bitmaps, 4);
	q2_put(bm + 8, q->bitmap_dir_size, 8);
	q2_put(bm + 16, q->bitmap_dir_off, 8);
	if ((q->has_bitmap_ext && !q2_sector_add(s, Q2_EXT_BITMAPS, bm, sizeof(bm))) ||
	    (format && !q2_sector_add(s, Q2_EXT_BACKING_FORMAT, format, strlen(format))))
		return -ENAMETOOLONG;
	q2_put(stamp, q->stamp.size_bytes, 8);
	q2_put(stamp + 8, q->stamp.mtime_ns, 8);
	q2_put(stamp + 16, q->stamp.name_hash, 8);
	if (q->stamp.mtime_ns && !q2_sector_add(s, Q2_EXT_STAMP, stamp, sizeof(stamp)))
		return -ENAMETOOLONG;
	r = q2_keep_extensions(q, old, end, s, false);
	if (!r)
		r = q2_keep_extensions(q, old, end, s, true);
	s->at += 8; /* the end mark: zeroes */
	q2_put(s->b + 88, q->autoclear, 8);
	return r;
}

/* q2_name_place() - where a name that does not fit into the first sector goes: clear of the old. */
static int q2_name_place(struct qcow2 *q, const uint8_t *old, const char *name, size_t n,
			 uint64_t *at)
{
	uint64_t was = (uint64_t)q2_be(old + 8) << 32 | q2_be(old + 12), was_n = q2_be(old + 16);

	if (was >= Q2_SECTOR && was_n == n && strcmp(name, q->backing_name) == 0) {
		*at = was;
		return 0;
	}
	*at = Q2_SECTOR;
	if (was && range_overlaps(*at, n, was, was_n))
		*at = ALIGN_UP(was + was_n, (uint64_t)Q2_SECTOR);
	if (*at + n > q->cluster_size)
		return -ENAMETOOLONG;
	int r = node_pwrite(q->file, name, n, *at);

	return r ? r : node_flush(q->file);
}

int q2_header_rewrite(struct qcow2 *q, const char *name, const char *format)
{
	_cleanup_free_ uint8_t *old = NULL;
	struct q2_sector s = { 0 };
	size_t n = name ? strlen(name) : 0, room = MIN(q->cluster_size, 65536ULL), end = room;
	uint64_t at = 0, was;
	int r;

	if (q->version < 3 || q->header_length + 8 > Q2_SECTOR || n >= sizeof(q->backing_name) ||
	    (format && strlen(format) >= sizeof(q->backing_format)))
		return q->version < 3 ? -ENOTSUP : -ENAMETOOLONG;
	if (posix_memalign((void **)&old, Q2_SLICE_MAX, room))
		return -ENOMEM;
	r = node_pread(q->file, old, room, 0);
	if (r)
		return r;
	was = (uint64_t)q2_be(old + 8) << 32 | q2_be(old + 12);
	if (was && was < end)
		end = was;
	if (name != q->backing_name)
		q->stamp = (struct q2_stamp){ 0 }; /* it was of another */
	r = q2_sector_build(q, old, end, n ? format : NULL, &s);
	if (r)
		return r;
	if (n && s.at + n <= sizeof(s.b)) {
		at = s.at;
		memcpy(s.b + at, name, n);
	} else if (n) {
		r = q2_name_place(q, old, name, n, &at);
		if (r)
			return r;
	}
	q2_put(s.b + 8, at, 8);
	q2_put(s.b + 16, n, 4);
	r = node_pwrite(q->file, s.b, sizeof(s.b), 0);
	if (!r)
		r = node_flush(q->file);
	if (r)
		return r;
	if (name != q->backing_name) {
		memset(q->backing_name, 0, sizeof(q->backing_name));
		if (n)
			memcpy(q->backing_name, name, n);
	}
	if (format != q->backing_format) {
		memset(q->backing_format, 0, sizeof(q->backing_format));
		if (n && format)
			memcpy(q->backing_format, format, strlen(format));
	}
	return 0;
}

int qcow2_set_backing_name(struct blockdev *bd, const char *name, const char *format, struct err *e)
{
	struct qcow2 *q = bd->drv;
	int r;

	if (bd->ops != &qcow2_ops)
		return err_set(e, ENOTSUP, "disk-format", "%s: is not a qcow2 image", bd->label);
	r = q2_begin_write(q);
	if (!r)
		r = q2_flush(bd);
	if (!r)
		r = q2_header_rewrite(q, name && name[0] ? name : NULL, format);
	if (r == -ENAMETOOLONG)
		return err_set(e, ENAMETOOLONG, "disk-backing-name",
			       "%s: the backing file's name does not fit in the header", bd->label);
	return r ? err_set(e, -r, "disk-header", "%s: cannot write the header: %s", bd->label,
			   strerror(-r))
		 : 0;
}
