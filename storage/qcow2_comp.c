/* qcow2_comp.c - compressed clusters, zlib (raw deflate, 4 KiB window) and zstd.
 *
 * A compressed cluster must unpack to exactly one cluster: less is corruption, more is never looked
 * at. The last one unpacked is kept, for readers come back to it in small steps.
 * Threading: any; one lock for the kept cluster, none while unpacking. Trust: the bytes are
 * hostile; output and input are bounded by the cluster size.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2.h"

/* level 1 takes half the time of the usual 3 for about 3% more space */
#define Q2_ZSTD_LEVEL 1

static int q2_inflate(void *dst, size_t dst_len, const void *src, size_t src_len)
{
	z_stream z = { .next_in = (void *)(uintptr_t)src,
		       .avail_in = src_len,
		       .next_out = dst,
		       .avail_out = dst_len };
	int r = inflateInit2(&z, -12);

	if (r != Z_OK)
		return -ENOMEM;
	r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	if (r == Z_MEM_ERROR)
		return -ENOMEM; /* nothing is known of the image */
	/* the sector padding after the stream may look like input that did not fit */
	return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EUCLEAN;
}

static int q2_unzstd(void *dst, size_t dst_len, const void *src, size_t src_len)
{
	ZSTD_inBuffer in = { src, src_len, 0 };
	ZSTD_outBuffer out = { dst, dst_len, 0 };
	ZSTD_DCtx *d = ZSTD_createDCtx();
	int r = 0;

	if (!d)
		return -ENOMEM;
	ZSTD_DCtx_setParameter(d, ZSTD_d_windowLogMax, 23);
	while (out.pos < out.size && !r) {
		size_t before_in = in.pos, before_out = out.pos;
		size_t n = ZSTD_decompressStream(d, &out, &in);

		if (ZSTD_isError(n) || (in.pos == before_in && out.pos == before_out))
			r = ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? -ENOMEM
										 : -EUCLEAN;
	}
	ZSTD_freeDCtx(d);
	return r;
}

static int q2_unpack(struct qcow2 *q, uint8_t *out, uint64_t l2)
{
	_cleanup_free_ uint8_t *raw = NULL;
	uint64_t off, len;
	int r;

	q2_comp_extent(q, l2, &off, &len);
	/* an incompressible cluster is stored plainly, so more than two are never needed */
	len = MIN(len, 2 * q->cluster_size);
	if (posix_memalign((void **)&raw, Q2_SLICE_MAX, len))
		return -ENOMEM;
	r = node_pread(q->file, raw, len, off);
	if (!r)
		r = q->compression ? q2_unzstd(out, q->cluster_size, raw, len)
				   : q2_inflate(out, q->cluster_size, raw, len);
	if (r == -EUCLEAN)
		q2_corrupt(q,
			   "the compressed cluster at offset %llu does not unpack to one cluster",
			   (unsigned long long)off);
	return r;
}

int q2_comp_read(struct qcow2 *q, const struct q2_seg *s, uint64_t in_cluster, struct blk_buf b,
		 uint64_t len)
{
	uint8_t *buf, *old;
	int r;

	pthread_mutex_lock(&q->comp_lock);
	if (q->comp_cached == s->entry) {
		blk_buf_from(b, q->comp_buf + in_cluster, len);
		pthread_mutex_unlock(&q->comp_lock);
		return 0;
	}
	pthread_mutex_unlock(&q->comp_lock);
	buf = malloc(q->cluster_size);
	if (!buf)
		return -ENOMEM;
	r = q2_unpack(q, buf, s->entry);
	if (r) {
		free(buf);
		return r;
	}
	blk_buf_from(b, buf + in_cluster, len);
	pthread_mutex_lock(&q->comp_lock);
	old = q->comp_buf;
	q->comp_buf = buf;
	q->comp_cached = s->entry;
	pthread_mutex_unlock(&q->comp_lock);
	free(old);
	return 0;
}

/* q2_compress() - Return: bytes in @dst, -EFBIG where they would be more than @cap. @ctx: kept
 * between calls of one thread, NULL at first. */
long q2_compress(int type, int level, void **ctx, void *dst, size_t cap, const void *src,
		 size_t len)
{
	z_stream z = { .next_in = (void *)(uintptr_t)src,
		       .avail_in = len,
		       .next_out = dst,
		       .avail_out = cap };
	int r;

	if (type == 1) {
		size_t n;

		if (!*ctx)
			*ctx = ZSTD_createCCtx();
		if (!*ctx)
			return -ENOMEM;
		n = ZSTD_compressCCtx(*ctx, dst, cap, src, len, level ? level : Q2_ZSTD_LEVEL);
		return ZSTD_isError(n) ? -EFBIG : (long)n;
	}
	r = deflateInit2(&z, level ? level : Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9,
			 Z_DEFAULT_STRATEGY);
	if (r != Z_OK)
		return -ENOMEM;
	r = deflate(&z, Z_FINISH);
	deflateEnd(&z);
	return r == Z_STREAM_END ? (long)(cap - z.avail_out) : -EFBIG;
}

void q2_compress_free(void *ctx)
{
	ZSTD_freeCCtx(ctx);
}
