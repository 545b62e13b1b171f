/* overflow.h - arithmetic on numbers that somebody else wrote.
 * Each returns true where the result fits and was stored; false leaves *res unspecified. */
#ifndef COMMON_OVERFLOW_H
#define COMMON_OVERFLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *res)
{
	return !__builtin_add_overflow(a, b, res);
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *res)
{
	return !__builtin_mul_overflow(a, b, res);
}

static inline bool mul_size(size_t a, size_t b, size_t *res)
{
	return !__builtin_mul_overflow(a, b, res);
}

/* range_within() - is [off, off+len) inside [0, limit)? Empty ranges at the end are. */
static inline bool range_within(uint64_t off, uint64_t len, uint64_t limit)
{
	return off <= limit && len <= limit - off;
}

/* range_overlaps() - do [a, a+alen) and [b, b+blen) share a byte? The ends must not wrap. */
static inline bool range_overlaps(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return alen && blen && a < b + blen && b < a + alen;
}

#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1))
#define ALIGN_UP(x, a)	 ALIGN_DOWN((x) + ((__typeof__(x))(a)-1), a)
#define IS_ALIGNED(x, a) (((x) & ((__typeof__(x))(a)-1)) == 0)
#define ARRAY_SIZE(a)	 (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)	 ((a) < (b) ? (a) : (b))
#define MAX(a, b)	 ((a) > (b) ? (a) : (b))

#endif
