/* flags.h - lazy flags and the inline fast path of guest memory access, for the op_*.c files.
 *
 * A handler is written once by H() or HM(): HM compiles it twice, a frameless fast version that
 * gives up on the first TLB miss by a tail call of its slow twin, and the twin, which calls the
 * MMU. Handlers change no architectural state before their last access can no longer fault.
 */
#ifndef SOFT_FLAGS_H
#define SOFT_FLAGS_H

#include "soft.h"

#ifndef __clang__
/* two 64-bit stores beat packing them into a vector register first */
#pragma GCC optimize("no-tree-slp-vectorize")
#endif

static inline u32 parity_flag(u8 v)
{
	return __builtin_parity(v) ? 0 : EFL_PF;
}

static inline bool flag_cf(const struct cpu *c)
{
	s64 a = c->fl_a, b = c->fl_b, r = c->fl_r;

	switch (c->fl_type) {
	case FL_ADD:
		return ((a & b) | ((a | b) & ~r)) < 0;
	case FL_SUB:
		return ((~a & b) | ((~a | b) & r)) < 0;
	case FL_LOGIC:
		return 0;
	default:
		return a & EFL_CF;
	}
}

static inline bool flag_of(const struct cpu *c)
{
	s64 a = c->fl_a, b = c->fl_b, r = c->fl_r;

	switch (c->fl_type) {
	case FL_ADD:
		return ((a ^ r) & (b ^ r)) < 0;
	case FL_SUB:
		return ((a ^ b) & (a ^ r)) < 0;
	case FL_LOGIC:
		return 0;
	default:
		return a & EFL_OF;
	}
}

static inline u32 flag_af(const struct cpu *c)
{
	switch (c->fl_type) {
	case FL_ADD:
	case FL_SUB:
		return (c->fl_a ^ c->fl_b ^ c->fl_r) & EFL_AF;
	case FL_LOGIC:
		return 0;
	default:
		return c->fl_a & EFL_AF;
	}
}

static inline bool flag_zf(const struct cpu *c)
{
	return c->fl_r == 0;
}

static inline bool flag_sf(const struct cpu *c)
{
	if (unlikely(c->fl_type == FL_ALL))
		return c->fl_a & EFL_SF;
	return c->fl_r < 0;
}

static inline bool flag_pf(const struct cpu *c)
{
	if (unlikely(c->fl_type == FL_ALL))
		return c->fl_a & EFL_PF;
	return parity_flag((u8)c->fl_r);
}

static inline bool flag_cc(const struct cpu *c, unsigned cc)
{
	bool v;

	switch (cc >> 1) {
	case 0:
		v = flag_of(c);
		break;
	case 1:
		v = flag_cf(c);
		break;
	case 2:
		v = flag_zf(c);
		break;
	case 3:
		v = flag_zf(c) || flag_cf(c);
		break;
	case 4:
		v = flag_sf(c);
		break;
	case 5:
		v = flag_pf(c);
		break;
	case 6:
		v = flag_sf(c) != flag_of(c);
		break;
	default:
		v = flag_zf(c) || flag_sf(c) != flag_of(c);
		break;
	}
	return v ^ (cc & 1);
}

static inline void flags_set_all(struct cpu *c, u32 arith)
{
	c->fl_type = FL_ALL;
	c->fl_a = arith & EFL_ARITH;
	c->fl_b = 0;
	c->fl_r = !(arith & EFL_ZF);
}

static inline void flags_set(struct cpu *c, u32 type, s64 a, s64 b, s64 r)
{
	c->fl_type = type;
	c->fl_a = a;
	c->fl_b = b;
	c->fl_r = r;
}

static inline void flags_logic(struct cpu *c, s64 r)
{
	c->fl_type = FL_LOGIC;
	c->fl_r = r;
}

/* ---- atomics on guest memory. The host's instructions take any alignment, which C types cannot
 * say. */
#ifdef __clang__
#define ANY_ALIGN __attribute__((no_sanitize("alignment")))
#else
#define ANY_ALIGN __attribute__((no_sanitize_undefined))
#endif
#define ATOMICS(n, T) \
	typedef T __attribute__((may_alias)) a##n; \
	ANY_ALIGN static inline bool cas_##n(void *p, void *old, T v) \
	{ \
		a##n o_ = *(m##n *)old; \
		bool ok = __atomic_compare_exchange_n((a##n *)p, &o_, v, false, __ATOMIC_SEQ_CST, \
						      __ATOMIC_SEQ_CST); \
		*(m##n *)old = o_; \
		return ok; \
	} \
	ANY_ALIGN static inline T xchg_##n(void *p, T v) \
	{ \
		return __atomic_exchange_n((a##n *)p, v, __ATOMIC_SEQ_CST); \
	} \
	ANY_ALIGN static inline T xadd_##n(void *p, T v) \
	{ \
		return __atomic_fetch_add((a##n *)p, v, __ATOMIC_SEQ_CST); \
	}
ATOMICS(8, u8)
ATOMICS(16, u16)
ATOMICS(32, u32)
ATOMICS(64, u64)

/* ---- guest memory, fast */
#define EA(o) (R64((o)->base) + (R64((o)->index) << (o)->scale) + (u64)(s64)(o)->disp)

static inline struct tlbe *tlb_at(struct cpu *c, u64 va)
{
	return (struct tlbe *)((u8 *)c->tlb + ((va >> (PAGE_BITS - 5)) & ((TLB_SIZE - 1) << 5)));
}

static inline u64 tlb_tag(const struct cpu *c, u64 va, unsigned size)
{
	return ((va + size - 1) & ~PAGE_OFF) | c->epoch;
}

#define H(name, ...) \
	static const struct op *name(struct cpu *c, const struct op *o) \
	{ \
		__VA_ARGS__ \
	}

#define HM(name, ...) \
	static COLD const struct op *name##_slow(struct cpu *c, const struct op *o) \
	{ \
		enum { SLOW = 1 }; \
		op_fn *const self_slow = name##_slow; \
		(void)self_slow; \
		__VA_ARGS__ \
	} \
	static const struct op *name(struct cpu *c, const struct op *o) \
	{ \
		enum { SLOW = 0 }; \
		op_fn *const self_slow = name##_slow; \
		(void)self_slow; \
		__VA_ARGS__ \
	}

/* inside HM: T is an unsigned type name m8..m64 */
#define LD(T, var, va) \
	do { \
		u64 va_ = (va); \
		if (SLOW) { \
			var = (__typeof__(var))soft_ld(c, o, va_, sizeof(T)); \
		} else { \
			struct tlbe *e_ = tlb_at(c, va_); \
			if (unlikely(e_->rtag != tlb_tag(c, va_, sizeof(T)))) \
				MUSTTAIL return self_slow(c, o); \
			var = (__typeof__(var))*(volatile T *)(va_ + e_->addend); \
		} \
	} while (0)

#define ST(T, va, val) \
	do { \
		u64 va_ = (va); \
		if (SLOW) { \
			soft_st(c, o, va_, sizeof(T), (u64)(val)); \
		} else { \
			struct tlbe *e_ = tlb_at(c, va_); \
			if (unlikely(e_->wtag != tlb_tag(c, va_, sizeof(T)))) \
				MUSTTAIL return self_slow(c, o); \
			*(volatile T *)(va_ + e_->addend) = (T)(val); \
		} \
	} while (0)

/* RMW(T, p, va) ... *p ... RMW_END: p is T * */
#define RMW(T, p, va) \
	T *p; \
	do { \
		u64 va_ = (va); \
		if (SLOW) { \
			p = soft_rmw(c, o, va_, sizeof(T)); \
		} else { \
			struct tlbe *e_ = tlb_at(c, va_); \
			if (unlikely(e_->wtag != tlb_tag(c, va_, sizeof(T)))) \
				MUSTTAIL return self_slow(c, o); \
			p = (T *)(va_ + e_->addend); \
		} \
	} while (0)
#define RMW_END \
	do { \
		if (SLOW) \
			soft_rmw_end(c, o); \
	} while (0)

/* ---- leaving a block */
static inline struct jce *jc_at(struct cpu *c, u64 rip)
{
	u64 t = rip ^ (rip >> 6);

	return &c->jc[((t >> 6) & 0xfc0) | (t & 0x3f)];
}

/* must_leave() - somebody wants attention, or the instruction budget (icount) is used up */
static inline bool must_leave(struct cpu *c)
{
	return atomic_load_explicit(&c->attn, memory_order_relaxed) || c->icount >= c->icount_limit;
}

/* GOTO_RIP - RIP is set: the block there if the jump cache knows it, else back to the run loop. */
#define GOTO_RIP \
	do { \
		struct jce *j_ = jc_at(c, RIP); \
		if (likely(j_->rip == RIP && j_->ctx == c->jctx && !must_leave(c))) \
			DISPATCH(j_->ops); \
		return NULL; \
	} while (0)

#endif
