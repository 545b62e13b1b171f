/* qcow2_create.c - a new qcow2 file, in one write.
 *
 * Layout: header cluster, refcount table, first refcount block, L1 table. A clone's overlay is made
 * thousands at a time, so nothing but the bytes that are not zero is written: the file is extended
 * by truncation and only the header, one table entry and the first refcounts reach the disk. The
 * caller syncs when it must be durable (a thousand clones: once).
 * Threading: any. Trust: the parameters come from the core; they are checked nevertheless.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "storage/qcow2.h"

struct q2_layout {
	unsigned cluster_bits, order;
	uint64_t cluster, l1_n, l1_clusters, rb, total;
	bool ext;
};

static void q2_put32(uint8_t *h, size_t at, uint32_t v)
{
	v = htobe32(v);
	memcpy(h + at, &v, 4);
}

static void q2_put64(uint8_t *h, size_t at, uint64_t v)
{
	v = htobe64(v);
	memcpy(h + at, &v, 8);
}

static int q2_create_check(const struct qcow2_create *c, struct q2_layout *l, struct err *e)
{
	unsigned bits = c->refcount_bits ? c->refcount_bits : 16;
	uint64_t span;

	l->cluster = c->cluster_size ? c->cluster_size : c->compat ? 64 * KIB : 128 * KIB;
	if ((l->cluster & (l->cluster - 1)) || l->cluster < 512 || l->cluster > 2 * MIB)
		return err_set(e, EINVAL, "disk-cluster-size",
			       "cluster size %llu is not a power of two from 512 to 2 MiB",
			       (unsigned long long)l->cluster);
	if ((bits & (bits - 1)) || bits > 64)
		return err_set(e, EINVAL, "disk-refcount-bits",
			       "refcount width %u is not a power of two up to 64", bits);
	if (c->size_bytes % 512 || c->size_bytes > INT64_MAX)
		return err_set(e, EINVAL, "disk-size",
			       "disk size %llu is not a multiple of 512 below 2^63",
			       (unsigned long long)c->size_bytes);
	l->cluster_bits = __builtin_ctzll(l->cluster);
	l->order = __builtin_ctz(bits);
	l->ext = !c->compat && l->cluster >= 16 * KIB;
	span = l->cluster_bits + (l->cluster_bits - (l->ext ? 4 : 3));
	l->l1_n = (c->size_bytes >> span) + ((c->size_bytes & ((1ULL << span) - 1)) != 0);
	if (l->l1_n * 8 > Q2_L1_MAX_BYTES) {
		err_set(e, EFBIG, "disk-size",
			"disk size %llu is too large for clusters of %llu bytes",
			(unsigned long long)c->size_bytes, (unsigned long long)l->cluster);
		err_hint(e, "use larger clusters");
		return -EFBIG;
	}
	l->l1_clusters = MAX((l->l1_n * 8 + l->cluster - 1) >> l->cluster_bits, 1ULL);
	/* one refcount block must cover them all, or more of them, for narrow clusters */
	l->rb = 1;
	do {
		l->total = 2 + l->rb + l->l1_clusters;
		if (l->total <= l->rb << (l->cluster_bits + 3 - l->order))
			break;
		l->rb++;
	} while (l->rb <= l->cluster / 8);
	if (l->rb > l->cluster / 8)
		return err_set(e, EFBIG, "disk-size",
			       "the first refcount table would not fit in one cluster");
	return 0;
}

static int q2_create_header(uint8_t *h, size_t cap, const struct qcow2_create *c,
			    const struct q2_layout *l, struct err *e)
{
	size_t at = Q2_HEADER_OURS, name = c->backing_name ? strlen(c->backing_name) : 0;
	size_t fmt = c->backing_format ? strlen(c->backing_format) : 0;

	if (name > 1023 || fmt > 15 || at + 16 + ALIGN_UP(fmt, (size_t)8) + 8 + name > cap)
		return err_set(e, ENAMETOOLONG, "disk-backing-name",
			       "the backing file's name does not fit in the header");
	q2_put32(h, 0, Q2_MAGIC);
	q2_put32(h, 4, 3);
	q2_put32(h, 20, l->cluster_bits);
	q2_put64(h, 24, c->size_bytes);
	q2_put32(h, 36, l->l1_n);
	q2_put64(h, 40, (2 + l->rb) << l->cluster_bits);
	q2_put64(h, 48, l->cluster);
	q2_put32(h, 56, 1);
	q2_put64(h, 72,
		 (c->zstd ? Q2_INCOMPAT_COMPRESSION : 0) | (l->ext ? Q2_INCOMPAT_EXT_L2 : 0));
	q2_put64(h, 80, c->lazy_refcounts ? Q2_COMPAT_LAZY : 0);
	q2_put32(h, 96, l->order);
	q2_put32(h, 100, Q2_HEADER_OURS);
	h[104] = c->zstd;
	if (fmt) {
		q2_put32(h, at, Q2_EXT_BACKING_FORMAT);
		q2_put32(h, at + 4, fmt);
		memcpy(h + at + 8, c->backing_format, fmt);
		at += 8 + ALIGN_UP(fmt, (size_t)8);
	}
	at += 8; /* end of extensions: zeroes */
	if (name) {
		q2_put64(h, 8, at);
		q2_put32(h, 16, name);
		memcpy(h + at, c->backing_name, name);
	}
	return 0;
}

static void q2_create_refcount(uint8_t *block, const struct q2_layout *l, uint64_t i)
{
	if (l->order < 3) {
		unsigned bits = 1u << l->order, per = 8 / bits;

		block[i / per] |= 1u << (i % per * bits);
	} else {
		/* big-endian: the last byte of the entry */
		block[((i + 1) << (l->order - 3)) - 1] = 1;
	}
}

static int q2_create_put(int fd, const void *p, size_t len, uint64_t off)
{
	const char *c = p;

	while (len) {
		ssize_t n = pwrite(fd, c, len, off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		c += n;
		off += n;
		len -= n;
	}
	return 0;
}

int qcow2_create(int fd, const struct qcow2_create *c, struct err *e)
{
	struct q2_layout l = { 0 };
	_cleanup_free_ uint8_t *page = NULL;
	struct stat st;
	size_t rb_bytes, cap;
	int r = q2_create_check(c, &l, e);

	if (r)
		return r;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size)
		return err_set(e, EEXIST, "disk-not-empty",
			       "the new disk's file is not an empty regular file");
	cap = MIN(l.cluster, 4096ULL);
	rb_bytes = ALIGN_UP(((l.total << l.order) + 7) / 8, (uint64_t)512);
	page = calloc(1, MAX(MAX(cap, rb_bytes), ALIGN_UP(l.rb * 8, (uint64_t)512)));
	if (!page)
		return err_set(e, ENOMEM, "out-of-memory", "out of memory");
	r = q2_create_header(page, cap, c, &l, e);
	if (r)
		return r;
	if (ftruncate(fd, l.total << l.cluster_bits) < 0)
		r = -errno;
	if (!r)
		r = q2_create_put(fd, page, cap, 0);
	memset(page, 0, cap);
	for (uint64_t i = 0; i < l.rb; i++)
		q2_put64(page, i * 8, (2 + i) << l.cluster_bits);
	if (!r)
		r = q2_create_put(fd, page, ALIGN_UP(l.rb * 8, (uint64_t)512), l.cluster);
	memset(page, 0, l.rb * 8);
	for (uint64_t i = 0; i < l.total; i++)
		q2_create_refcount(page, &l, i);
	if (!r)
		r = q2_create_put(fd, page, rb_bytes, 2ULL << l.cluster_bits);
	if (r) {
		if (ftruncate(fd, 0) < 0)
			r = -errno; /* the caller unlinks it */
		return err_set(e, -r, "disk-create", "cannot write the new disk's file: %s",
			       strerror(-r));
	}
	return 0;
}
