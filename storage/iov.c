/* iov.c - scatter lists with a consumed front (struct blk_buf), and the zero test.
 *
 * Threading: pure functions over borrowed memory. The lists come from devices that built them; the
 * caller guarantees that a list holds at least the length it names.
 */
#include <string.h>

#include "common/overflow.h"
#include "storage/node.h"

int blk_buf_iov(struct blk_buf b, uint64_t len, struct iovec *out, int max, uint64_t *got)
{
	int n = 0;

	*got = 0;
	b = blk_buf_advance(b, 0);
	for (; b.niov > 0 && n < max && *got < len; b.iov++, b.niov--, b.skip = 0) {
		uint64_t part = MIN(b.iov->iov_len - b.skip, len - *got);

		if (!part)
			continue;
		out[n].iov_base = (char *)b.iov->iov_base + b.skip;
		out[n++].iov_len = part;
		*got += part;
	}
	return n;
}

enum iov_action { IOV_ZERO, IOV_OUT, IOV_IN };

static void iov_walk(struct blk_buf b, uint64_t len, enum iov_action what, void *flat)
{
	char *p = flat;

	b = blk_buf_advance(b, 0);
	for (; b.niov > 0 && len; b.iov++, b.niov--, b.skip = 0) {
		size_t part = MIN(b.iov->iov_len - b.skip, len);
		char *seg = (char *)b.iov->iov_base + b.skip;

		if (what == IOV_ZERO) {
			memset(seg, 0, part);
		} else if (what == IOV_OUT) {
			memcpy(p, seg, part);
			p += part;
		} else {
			memcpy(seg, p, part);
			p += part;
		}
		len -= part;
	}
}

void blk_buf_zero(struct blk_buf b, uint64_t len)
{
	iov_walk(b, len, IOV_ZERO, NULL);
}

void blk_buf_to(struct blk_buf b, void *dst, uint64_t len)
{
	iov_walk(b, len, IOV_OUT, dst);
}

void blk_buf_from(struct blk_buf b, const void *src, uint64_t len)
{
	iov_walk(b, len, IOV_IN, (void *)(uintptr_t)src);
}

bool mem_is_zero(const void *p, size_t len)
{
	const unsigned char *c = p;

	/* the first bytes decide nearly always; then the range is compared with itself, shifted */
	for (size_t i = 0; i < 16; i++)
		if (i == len)
			return true;
		else if (c[i])
			return false;
	return memcmp(c, c + 16, len - 16) == 0;
}

bool blk_buf_is_zero(struct blk_buf b, uint64_t len)
{
	b = blk_buf_advance(b, 0);
	for (; b.niov > 0 && len; b.iov++, b.niov--, b.skip = 0) {
		size_t part = MIN(b.iov->iov_len - b.skip, len);

		if (!mem_is_zero((char *)b.iov->iov_base + b.skip, part))
			return false;
		len -= part;
	}
	return true;
}
