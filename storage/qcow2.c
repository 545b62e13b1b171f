/* qcow2.c - driver "qcow2": header, opening, closing (format: QEMU docs/interop/qcow2).
 *
 * Every number in the header is checked against the format's limits and the file's length before
 * anything is allocated from it. Backing and data file names in the header are information only:
 * the parent comes open, in the spec. An image marked dirty is repaired before it is written, one
 * marked corrupt is not opened for writing.
 * Threading: open and close alone; the rest as qcow2.h says. Trust: the file is hostile.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/log.h"
#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/qcow2.h"

#define Q2_CACHE_DEFAULT (32 * MIB)
#define Q2_TABLE_SMALL	 8192u

static uint32_t q2_be32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return be32toh(v);
}

static uint64_t q2_be64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return be64toh(v);
}

int q2_corrupt(struct qcow2 *q, const char *fmt, ...)
{
	char why[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	if (atomic_exchange(&q->corrupt, true))
		return -EUCLEAN;
	log_error("%s: qcow2 image is corrupt: %s", q->bd->label, why);
	if (!q->bd->read_only && q->version >= 3 && atomic_load(&q->begun)) {
		uint64_t bits = htobe64(q->incompat | Q2_INCOMPAT_CORRUPT);

		q->incompat |= Q2_INCOMPAT_CORRUPT;
		if (node_pwrite(q->file, &bits, 8, 72) == 0)
			(void)node_flush(q->file);
	}
	return -EUCLEAN;
}

/* q2_write_header_locked() - the fields that change in an image's life; one sector, in place. */
int q2_write_header_locked(struct qcow2 *q)
{
	uint8_t h[Q2_SECTOR];
	uint64_t v64;
	uint32_t v32;
	int r = node_pread(q->file, h, sizeof(h), 0);

	if (r)
		return r;
#define PUT64(at, val) (v64 = htobe64(val), memcpy(h + (at), &v64, 8))
#define PUT32(at, val) (v32 = htobe32(val), memcpy(h + (at), &v32, 4))
	PUT64(24, atomic_load(&q->bd->size_bytes));
	PUT32(36, q->l1.top_n);
	PUT64(40, q->l1.top_off);
	PUT64(48, q->rt.top_off);
	PUT32(56, q->reftable_clusters);
	PUT32(60, q->nb_snapshots);
	PUT64(64, q->snapshots_off);
	if (q->version >= 3) {
		PUT64(72, q->incompat);
		PUT64(80, q->compat);
		PUT64(88, q->autoclear);
	}
#undef PUT64
#undef PUT32
	return node_pwrite(q->file, h, sizeof(h), 0);
}

/* q2_begin_write() - before the first change: clear the autoclear bits, so that whoever kept extra
 * data sees that it is stale; bitmaps we keep ourselves. */
int q2_begin_write(struct qcow2 *q)
{
	int r = 0;

	if (atomic_load(&q->corrupt))
		return -EUCLEAN;
	if (atomic_load_explicit(&q->begun, memory_order_acquire))
		return 0;
	pthread_rwlock_wrlock(&q->lock);
	if (!atomic_load(&q->begun)) {
		uint64_t was = q->autoclear;

		q->autoclear &= Q2_AUTOCLEAR_BITMAPS;
		r = q2_bitmaps_own(q);
		if (!r && q->autoclear != was) {
			r = q2_write_header_locked(q);
			if (!r)
				r = node_flush(q->file);
		}
		if (!r && !q->stamp.mtime_ns)
			r = q2_stamp_renew(q);
		if (!r)
			r = q2_alloc_ready_locked(q);
		if (!r)
			atomic_store_explicit(&q->begun, true, memory_order_release);
	}
	pthread_rwlock_unlock(&q->lock);
	return r;
}

static int q2_bad(struct err *e, const struct qcow2 *q, uint64_t at, const char *what)
{
	return err_set(e, EUCLEAN, "disk-corrupt", "%s: qcow2 header offset %llu: %s", q->bd->label,
		       (unsigned long long)at, what);
}

static int q2_refuse_features(struct qcow2 *q, const uint8_t *tab, uint32_t len, struct err *e)
{
	uint64_t unknown = q->incompat & ~(Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT |
					   Q2_INCOMPAT_COMPRESSION | Q2_INCOMPAT_EXT_L2);
	char name[47] = "";
	unsigned bit;

	if (!unknown)
		return 0;
	bit = __builtin_ctzll(unknown);
	for (uint32_t i = 0; tab && i + 48 <= len; i += 48)
		if (tab[i] == 0 && tab[i + 1] == bit)
			snprintf(name, sizeof(name), "%.46s", (const char *)tab + i + 2);
	if (!name[0] && unknown & Q2_INCOMPAT_DATA_FILE)
		snprintf(name, sizeof(name), "external data file");
	return err_set(e, ENOTSUP, "disk-feature",
		       "%s: qcow2 feature \"%s\" (incompatible bit %u) is not supported",
		       q->bd->label, name[0] ? name : "unknown", bit);
}

static int q2_read_extensions(struct qcow2 *q, uint64_t end, struct err *e)
{
	uint64_t at = q->header_length;
	uint8_t *features = NULL;
	uint32_t features_len = 0;
	int r = 0;

	while (at + 8 <= end) {
		uint8_t h[8];
		uint32_t type, len;

		r = node_pread(q->file, h, 8, at);
		if (r)
			break;
		type = q2_be32(h);
		len = q2_be32(h + 4);
		if (type == Q2_EXT_END)
			break;
		at += 8;
		if (len > end - at) {
			r = q2_bad(e, q, at - 8, "a header extension runs past the first cluster");
			break;
		}
		if (type == Q2_EXT_BACKING_FORMAT && len < sizeof(q->backing_format)) {
			r = node_pread(q->file, q->backing_format, len, at);
			q->backing_format[len] = 0;
		} else if (type == Q2_EXT_FEATURES && len && len <= 64 * KIB && !features) {
			features = malloc(len);
			r = features ? node_pread(q->file, features, len, at) : -ENOMEM;
			features_len = len;
		} else if (type == Q2_EXT_BITMAPS && len == 24) {
			uint8_t b[24];

			r = node_pread(q->file, b, 24, at);
			q->has_bitmap_ext = true;
			q->nb_bitmaps = q2_be32(b);
			q->bitmap_dir_size = q2_be64(b + 8);
			q->bitmap_dir_off = q2_be64(b + 16);
		} else if (type == Q2_EXT_STAMP && len == 24) {
			uint8_t b[24];

			r = node_pread(q->file, b, 24, at);
			q->stamp = (struct q2_stamp){ q2_be64(b), q2_be64(b + 8), q2_be64(b + 16) };
		} else if (type == Q2_EXT_LUKS) {
			r = err_set(e, ENOTSUP, "disk-feature",
				    "%s: encrypted qcow2 images are not supported", q->bd->label);
		}
		if (r)
			break;
		at += ALIGN_UP((uint64_t)len, 8ULL);
	}
	if (!r)
		r = q2_refuse_features(q, features, features_len, e);
	else if (!err_is_set(e))
		err_set(e, -r, "disk-open", "%s: cannot read the qcow2 header: %s", q->bd->label,
			strerror(-r));
	free(features);
	return r;
}

static int q2_read_backing_name(struct qcow2 *q, uint64_t off, uint32_t len, struct err *e)
{
	if (!off)
		return 0;
	if (len >= sizeof(q->backing_name) || !range_within(off, len, q->cluster_size))
		return q2_bad(e, q, 8, "the backing file's name lies outside the first cluster");
	if (node_pread(q->file, q->backing_name, len, off))
		return q2_bad(e, q, 8, "the backing file's name cannot be read");
	q->backing_name[len] = 0;
	return 0;
}

static void q2_geometry(struct qcow2 *q)
{
	q->cluster_size = 1ULL << q->cluster_bits;
	q->units = q->ext_l2 ? 32 : 1;
	q->unit_bits = q->cluster_bits - (q->ext_l2 ? 5 : 0);
	q->unit_size = 1ULL << q->unit_bits;
	q->l2_entry_bytes = q->ext_l2 ? 16 : 8;
	q->l2_bits = q->cluster_bits - (q->ext_l2 ? 4 : 3);
	q->slice_bytes = MIN(Q2_SLICE_MAX, q->cluster_size);
	q->slices_per_table = q->cluster_size / q->slice_bytes;
	q->entries_per_slice = q->slice_bytes / q->l2_entry_bytes;
}

/* q2_read_header() - parse and bound everything; the tables are loaded by the caller. */
int q2_read_header(struct qcow2 *q, const struct blk_spec *spec, struct err *e)
{
	uint8_t h[Q2_HEADER_OURS];
	uint64_t file_len = atomic_load(&q->file->size_bytes), size, l1_need, backing_off;
	uint32_t backing_len;
	int r;

	if (file_len < Q2_HEADER_V2)
		return err_set(e, EUCLEAN, "disk-corrupt",
			       "%s: is too short (%llu bytes) to be a qcow2 image", q->bd->label,
			       (unsigned long long)file_len);
	memset(h, 0, sizeof(h));
	r = node_pread(q->file, h, sizeof(h), 0);
	if (r)
		return err_set(e, -r, "disk-open", "%s: cannot read the qcow2 header: %s",
			       q->bd->label, strerror(-r));
	if (q2_be32(h) != Q2_MAGIC) {
		err_set(e, EUCLEAN, "disk-format", "%s: is not a qcow2 image (offset 0)",
			q->bd->label);
		err_hint(e, "state the right format; it is never guessed");
		return -EUCLEAN;
	}
	q->version = q2_be32(h + 4);
	if (q->version != 2 && q->version != 3)
		return q2_bad(e, q, 4, "the version is neither 2 nor 3");
	backing_off = q2_be64(h + 8);
	backing_len = q2_be32(h + 16);
	q->cluster_bits = q2_be32(h + 20);
	if (q->cluster_bits < 9 || q->cluster_bits > 21)
		return q2_bad(e, q, 20, "the cluster size is not between 512 bytes and 2 MiB");
	size = q2_be64(h + 24);
	if (q2_be32(h + 32))
		return err_set(e, ENOTSUP, "disk-feature",
			       "%s: encrypted qcow2 images are not supported", q->bd->label);
	q->refcount_order = 4;
	q->header_length = Q2_HEADER_V2;
	if (q->version == 3) {
		q->incompat = q2_be64(h + 72);
		q->compat = q2_be64(h + 80);
		q->autoclear = q2_be64(h + 88);
		q->refcount_order = q2_be32(h + 96);
		q->header_length = q2_be32(h + 100);
		if (q->header_length < Q2_HEADER_V3 || q->header_length > (1u << q->cluster_bits) ||
		    q->header_length % 8)
			return q2_bad(e, q, 100, "the header's length is out of range");
		if (q->refcount_order > 6)
			return q2_bad(e, q, 96, "the refcount width is above 64 bits");
		if (q->header_length > 104)
			q->compression = h[104];
	}
	q->ext_l2 = q->incompat & Q2_INCOMPAT_EXT_L2;
	q2_geometry(q);
	r = q2_read_extensions(
	    q, backing_off && backing_off < q->cluster_size ? backing_off : q->cluster_size, e);
	if (r)
		return r;
	if (q->ext_l2 && q->cluster_bits < 14)
		return q2_bad(e, q, 20, "extended L2 entries need clusters of 16 KiB or more");
	if (q->compression > 1 || (!(q->incompat & Q2_INCOMPAT_COMPRESSION) && q->compression))
		return q2_bad(e, q, 104, "the compression type is unknown or not announced");
	r = q2_read_backing_name(q, backing_off, backing_len, e);
	if (r)
		return r;
	if (size > INT64_MAX || (size & 511 && !spec->read_only))
		return q2_bad(e, q, 24, "the disk's size is not a multiple of 512 below 2^63");
	q->l1.top_n = q2_be32(h + 36);
	q->l1.top_off = q2_be64(h + 40);
	q->rt.top_off = q2_be64(h + 48);
	q->reftable_clusters = q2_be32(h + 56);
	q->nb_snapshots = q2_be32(h + 60);
	q->snapshots_off = q2_be64(h + 64);
	l1_need = (size >> (q->cluster_bits + q->l2_bits)) +
		  ((size & ((1ULL << (q->cluster_bits + q->l2_bits)) - 1)) != 0);
	if (q->l1.top_n > Q2_L1_MAX_BYTES / 8 || q->l1.top_n < l1_need)
		return q2_bad(e, q, 36,
			      "the L1 table is larger than 32 MiB or too small for the disk");
	if ((q->l1.top_off & (q->cluster_size - 1)) ||
	    !range_within(q->l1.top_off, q->l1.top_n * 8ULL, file_len))
		return q2_bad(e, q, 40, "the L1 table lies outside the file or is not aligned");
	if (q->reftable_clusters == 0 ||
	    q->reftable_clusters > Q2_REFTABLE_MAX_BYTES >> MIN(q->cluster_bits, 23u))
		return q2_bad(e, q, 56, "the refcount table's size is out of range");
	if ((q->rt.top_off & (q->cluster_size - 1)) ||
	    !range_within(q->rt.top_off, (uint64_t)q->reftable_clusters << q->cluster_bits,
			  ALIGN_UP(file_len, q->cluster_size)))
		return q2_bad(e, q, 48,
			      "the refcount table lies outside the file or is not aligned");
	if (q->nb_snapshots > Q2_SNAPSHOTS_MAX ||
	    (q->nb_snapshots &&
	     ((q->snapshots_off & (q->cluster_size - 1)) || q->snapshots_off >= file_len)))
		return q2_bad(e, q, 60, "the snapshot table lies outside the file or is too long");
	q->rt.top_n = ((uint64_t)q->reftable_clusters << q->cluster_bits) / 8;
	atomic_store(&q->bd->size_bytes, ALIGN_UP(size, 512ULL));
	atomic_store(&q->host_end, ALIGN_UP(file_len, q->cluster_size));
	return 0;
}

/* q2_table_new() - a zeroed table whose untouched pages cost nothing, whatever malloc thinks. */
void *q2_table_new(size_t bytes)
{
	void *p;

	if (bytes <= Q2_TABLE_SMALL)
		return calloc(1, MAX(bytes, (size_t)1));
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void q2_table_free(void *p, size_t bytes)
{
	if (bytes <= Q2_TABLE_SMALL)
		free(p);
	else if (p)
		munmap(p, bytes);
}

int q2_dir_new(struct q2_dir *d, uint32_t n)
{
	d->top_n = n;
	d->top = q2_table_new(n * 8ULL);
	d->tab = q2_table_new(n * sizeof(*d->tab));
	d->top_dirty = q2_table_new((n / 4096 + 1) * 8ULL);
	return d->top && d->tab && d->top_dirty ? 0 : -ENOMEM;
}

/* q2_load_top() - read a table of 64-bit entries and make its directory; pages of zeroes, which is
 * most of a young image's tables, are not touched. */
int q2_load_top(struct qcow2 *q, struct q2_dir *d, uint64_t off, uint32_t n, struct err *e)
{
	uint64_t page[512];
	int r = q2_dir_new(d, n);

	for (uint32_t i = 0; i < n && !r; i += ARRAY_SIZE(page)) {
		uint32_t k = MIN(n - i, (uint32_t)ARRAY_SIZE(page));

		r = node_pread(q->file, page, k * 8ULL, off + i * 8ULL);
		for (uint32_t j = 0; j < k && !r; j++)
			if (page[j])
				d->top[i + j] = be64toh(page[j]);
	}
	d->top_off = off;
	if (r) {
		q2_dir_fini(q, d);
		return err_set(e, -r, "disk-open", "%s: cannot read the table at offset %llu: %s",
			       q->bd->label, (unsigned long long)off, strerror(-r));
	}
	return 0;
}

void q2_dir_fini(struct qcow2 *q, struct q2_dir *d)
{
	if (d->tab)
		q2_slices_drop(q, d);
	q2_table_free(d->tab, d->top_n * sizeof(*d->tab));
	q2_table_free(d->top, d->top_n * 8ULL);
	q2_table_free(d->top_dirty, (d->top_n / 4096 + 1) * 8ULL);
	d->tab = NULL;
	d->top = NULL;
	d->top_dirty = NULL;
	d->top_n = 0;
}

/* q2_dir_grow() - to @n entries; on failure nothing has changed. */
int q2_dir_grow(struct q2_dir *d, uint32_t n)
{
	struct q2_dir g = *d;

	if (q2_dir_new(&g, n) < 0) {
		q2_table_free(g.tab, n * sizeof(*g.tab));
		q2_table_free(g.top, n * 8ULL);
		q2_table_free(g.top_dirty, (n / 4096 + 1) * 8ULL);
		return -ENOMEM;
	}
	memcpy(g.top, d->top, d->top_n * 8ULL);
	memcpy(g.tab, d->tab, d->top_n * sizeof(*d->tab));
	memcpy(g.top_dirty, d->top_dirty, (d->top_n / 4096 + 1) * 8ULL);
	q2_table_free(d->tab, d->top_n * sizeof(*d->tab));
	q2_table_free(d->top, d->top_n * 8ULL);
	q2_table_free(d->top_dirty, (d->top_n / 4096 + 1) * 8ULL);
	*d = g;
	return 0;
}

static void q2_free(struct qcow2 *q)
{
	q2_dir_fini(q, &q->l1);
	q2_dir_fini(q, &q->rt);
	while (q->freed) {
		struct q2_freed *f = q->freed;

		q->freed = f->next;
		free(f);
	}
	while (q->limbo) {
		struct q2_freed *f = q->limbo;

		q->limbo = f->next;
		free(f);
	}
	q2_commit_fini(q);
	q2_chain_drop(q);
	q2_bitmaps_fini(q);
	pthread_rwlock_destroy(&q->bm_lock);
	free(q->free_ext);
	free(q->meta);
	free(q->comp_buf);
	pthread_rwlock_destroy(&q->lock);
	pthread_mutex_destroy(&q->flush_lock);
	pthread_mutex_destroy(&q->range_lock);
	pthread_cond_destroy(&q->range_cond);
	pthread_mutex_destroy(&q->comp_lock);
	free(q);
}

static int q2_open_children(struct qcow2 *q, const struct blk_spec *spec, struct err *e)
{
	struct blockdev *bd = q->bd;

	if (spec->child) {
		bd->child = node_open(spec->child, bd->depth, e);
	} else {
		struct blk_spec file = *spec;

		file.driver = "file";
		file.detect_zeroes = false;
		file.backing = NULL;
		file.size_bytes = 0;
		bd->child = node_open(&file, bd->depth, e);
	}
	q->file = bd->child;
	return q->file ? 0 : -1;
}

static int q2_open_backing(struct qcow2 *q, const struct blk_spec *spec, struct err *e)
{
	const char *opt = spec_opt(spec, "backing");

	if (spec->backing) {
		q->bd->backing = node_open(spec->backing, q->bd->depth + 1, e);
		return q->bd->backing ? 0 : -1;
	}
	if (q->backing_name[0] && !(opt && strcmp(opt, "ignore") == 0)) {
		err_set(e, EINVAL, "disk-backing-missing",
			"%s: needs its backing file \"%s\", and none was given", q->bd->label,
			q->backing_name);
		err_hint(e, "import it with its chain, or flatten it (qemu-img convert)");
		return -EINVAL;
	}
	return 0;
}

/* q2_make_writable() - a dirty image (lazy refcounts, a crash) has its refcounts rebuilt first. */
static int q2_make_writable(struct qcow2 *q, const struct blk_spec *spec, struct err *e)
{
	const char *opt = spec_opt(spec, "repair");
	struct q2_check c;

	if (opt && strcmp(opt, "no") == 0)
		return 0; /* the check verb looks for itself */
	if (q->incompat & Q2_INCOMPAT_CORRUPT) {
		err_set(e, EUCLEAN, "disk-corrupt",
			"%s: is marked corrupt and is not opened for writing", q->bd->label);
		err_hint(e, "vmctl disk check --repair all");
		return -EUCLEAN;
	}
	if (!(q->incompat & Q2_INCOMPAT_DIRTY))
		return 0;
	log_warn("%s: was not closed cleanly; its refcounts are being rebuilt", q->bd->label);
	return q2_check_run(q, Q2_REPAIR_ALL, &c, e);
}

static int q2_open(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	struct qcow2 *q = calloc(1, sizeof(*q));
	uint64_t cache;

	if (!q)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	bd->drv = q;
	q->bd = bd;
	pthread_rwlock_init(&q->lock, NULL);
	pthread_mutex_init(&q->flush_lock, NULL);
	pthread_mutex_init(&q->range_lock, NULL);
	pthread_cond_init(&q->range_cond, NULL);
	pthread_mutex_init(&q->comp_lock, NULL);
	list_init(&q->clock);
	list_init(&q->ranges);
	q2_bitmaps_init(q);
	if (spec_opt_u64(spec, "cache-bytes", Q2_CACHE_DEFAULT, 1 << 30, &cache, e) < 0 ||
	    q2_open_children(q, spec, e) < 0)
		goto fail;
	if (q2_read_header(q, spec, e) < 0)
		goto fail;
	q->slices_max = MAX(cache / q->slice_bytes, 64ULL);
	q->prealloc_off = spec_opt(spec, "prealloc") && !strcmp(spec_opt(spec, "prealloc"), "off");
	if (q->version == 2 && !spec->read_only) {
		err_set(e, ENOTSUP, "disk-feature",
			"%s: version 2 qcow2 images are opened for reading only", bd->label);
		err_hint(e, "convert it: vmctl disk convert");
		goto fail;
	}
	if (q2_load_top(q, &q->l1, q->l1.top_off, q->l1.top_n, e) < 0 ||
	    q2_load_top(q, &q->rt, q->rt.top_off, q->rt.top_n, e) < 0)
		goto fail;
	if (q2_open_backing(q, spec, e) < 0)
		goto fail;
	if (bd->depth == 1 && q2_stamp_check(q, spec, e) < 0)
		goto fail;
	if (!spec->read_only && q2_make_writable(q, spec, e) < 0)
		goto fail;
	return 0;
fail:
	node_close(bd->backing, true);
	node_close(bd->child, true);
	q2_free(q);
	return -1;
}

/* q2_settle() - with no request left: all is in the file, and nothing of it is in RAM alone. */
static int q2_settle(struct blockdev *bd)
{
	struct qcow2 *q = bd->drv;
	int r = 0;

	if (bd->read_only || !atomic_load(&q->begun) || atomic_load(&q->corrupt))
		return 0;
	(void)q2_bitmaps_store(q); /* without them the disk is as good */
	/* three rounds: unreferenced, refcount down, those refcounts written */
	for (int i = 0; i < 4 && !r; i++)
		r = q2_commit(q);
	if (!r && q->prealloc_end > q->bump << q->cluster_bits && q->file->ops->resize) {
		struct err ignored = { 0 };

		/* trimming is a courtesy: what it leaves is found free at the next open */
		if (node_resize(q->file, q->bump << q->cluster_bits, &ignored) == 0)
			q->prealloc_end = q->bump << q->cluster_bits;
	}
	return r;
}

int q2_show_backing(struct qcow2 *q)
{
	size_t len = ALIGN_UP((size_t)q->l1.top_n * 8, Q2_SECTOR);
	_cleanup_free_ uint8_t *zero = NULL;
	int r = node_flush(q->bd);

	if (r || !len)
		return r;
	if (posix_memalign((void **)&zero, 4096, len))
		return -ENOMEM;
	memset(zero, 0, len);
	r = node_pwrite(q->file, zero, len, q->l1.top_off);
	return r ? r : node_flush(q->file);
}

static int q2_close(struct blockdev *bd, bool keep_fds)
{
	struct qcow2 *q = bd->drv;
	int r = keep_fds ? 0 : q2_settle(bd), r2;

	r = r ? r : atomic_load(&q->sync_error);
	r2 = node_close(bd->child, keep_fds);
	r = r ? r : r2;
	r2 = node_close(bd->backing, keep_fds);
	r = r ? r : r2;
	q2_free(q);
	return r;
}

static void q2_moved(struct blockdev *bd)
{
	((struct qcow2 *)bd->drv)->bd = bd;
}

static int q2_freeze(struct blockdev *bd)
{
	struct qcow2 *q = bd->drv;
	int r = q2_settle(bd);

	if (!r)
		r = q->file->ops->freeze ? q->file->ops->freeze(q->file) : -EOPNOTSUPP;
	if (r)
		return r;
	bd->read_only = true;
	/* as after opening: whoever writes it next begins anew */
	pthread_rwlock_wrlock(&q->lock);
	atomic_store(&q->begun, false);
	q->alloc_ready = false;
	pthread_rwlock_unlock(&q->lock);
	return 0;
}

static int q2_thaw(struct blockdev *bd, int fd, struct err *e)
{
	struct qcow2 *q = bd->drv;
	int r;

	if (q->version < 3 || (q->incompat & (Q2_INCOMPAT_CORRUPT | Q2_INCOMPAT_DIRTY)))
		return err_set(e, EUCLEAN, "disk-corrupt",
			       "%s: cannot be written as it is; check or convert it", bd->label);
	if (!q->file->ops->thaw)
		return err_set(e, EOPNOTSUPP, "disk-thaw", "%s: stays read-only", bd->label);
	r = q->file->ops->thaw(q->file, fd, e);
	if (!r)
		bd->read_only = false;
	return r;
}

static void q2_info(struct blockdev *bd, struct blk_info *info)
{
	struct qcow2 *q = bd->drv;
	struct blk_info below = { 0 };

	if (q->file->ops->info)
		q->file->ops->info(q->file, &below);
	info->allocated_bytes = below.allocated_bytes;
	info->cluster_size = q->cluster_size;
	info->has_discard = true;
	info->has_write_zeroes = true;
	for (struct blockdev *b = bd->backing; b; b = b->backing ? b->backing : b->child)
		info->chain_depth += b->backing != NULL;
	info->chain_depth += bd->backing != NULL;
}

const struct blockdev_ops qcow2_ops = {
	.name = "qcow2",
	.open = q2_open,
	.close = q2_close,
	.info = q2_info,
	.rw = q2_rw,
	.zero = q2_zero,
	.flush = q2_flush,
	.extents = q2_extents,
	.resize = q2_resize,
	.map = q2_map,
	.moved = q2_moved,
	.freeze = q2_freeze,
	.thaw = q2_thaw,
};
