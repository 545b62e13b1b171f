/* op_bits.c - shifts, rotates, double shifts, bit tests, bit scans, multiply, divide, exchange-and-add,
 * compare-and-exchange, decimal adjust. Undefined flags get what AMD processors are known to leave, where
 * that is cheap; the differential test masks them out. */
#include "flags.h"
#include "ops.h"
#include "sizes.h"

/* macro tables, a handler a line */
/* clang-format off */

typedef unsigned __int128 u128;
typedef __int128 s128;

/* Rotates touch CF and OF only. */
static inline void flags_cf_of(struct cpu *c, bool cf, bool of)
{
	s64 v = (cf ? EFL_CF : 0) | (of ? EFL_OF : 0);

	if (c->fl_type == FL_ALL) {
		c->fl_a = (c->fl_a & ~(s64)(EFL_CF | EFL_OF)) | v;
	} else {
		c->fl_a = v | flag_af(c);
		c->fl_type = FL_X;
	}
}

static inline void flags_shift(struct cpu *c, bool cf, bool of, s64 r)
{
	c->fl_type = FL_X;
	c->fl_a = (cf ? EFL_CF : 0) | (of ? EFL_OF : 0);
	c->fl_r = r;
}

/* shift_N(): value, masked count (may be 0) → value; sets flags. Order: rol ror rcl rcr shl shr shl sar */
#define SHIFT(n) \
static inline u64 rol_##n(struct cpu *c, u64 v, unsigned k) \
{ \
	unsigned m = k % n; \
	u64 r = m ? (T_##n)(v << m | (u64)(T_##n)v >> (n - m)) : v; \
	if (k) \
		flags_cf_of(c, r & 1, (r >> (n - 1) ^ r) & 1); \
	return r; \
} \
static inline u64 ror_##n(struct cpu *c, u64 v, unsigned k) \
{ \
	unsigned m = k % n; \
	u64 r = m ? (T_##n)((u64)(T_##n)v >> m | v << (n - m)) : v; \
	if (k) \
		flags_cf_of(c, r >> (n - 1) & 1, (r >> (n - 1) ^ r >> (n - 2)) & 1); \
	return r; \
} \
static inline u64 rcl_##n(struct cpu *c, u64 v, unsigned k) \
{ \
	unsigned m = k % (n + 1); \
	bool cf = flag_cf(c); \
	if (!m) \
		return v; \
	u64 r = m == 1 ? 0 : (u64)(T_##n)v >> (n + 1 - m); \
	r = (T_##n)((m < n ? v << m : 0) | (u64)cf << (m - 1) | r); \
	cf = (u64)(T_##n)v >> (n - m) & 1; \
	flags_cf_of(c, cf, (r >> (n - 1) & 1) ^ cf); \
	return r; \
} \
static inline u64 rcr_##n(struct cpu *c, u64 v, unsigned k) \
{ \
	unsigned m = k % (n + 1); \
	bool cf = flag_cf(c); \
	if (!m) \
		return v; \
	u64 w = (u64)(T_##n)v; \
	u64 r = m == 1 ? 0 : w << (n + 1 - m); \
	r = (T_##n)((m < n ? w >> m : 0) | (u64)cf << (n - m) | r); \
	cf = w >> (m - 1) & 1; \
	flags_cf_of(c, cf, (r >> (n - 1) ^ r >> (n - 2)) & 1); \
	return r; \
} \
static inline u64 shl_##n(struct cpu *c, u64 v, unsigned k) \
{ \
	if (!k) \
		return v; \
	u64 w = (u64)(T_##n)v, r = (T_##n)(k < n ? w << k : 0); \
	bool cf = k <= n ? w >> (n - k) & 1 : 0; \
	flags_shift(c, cf, (r >> (n - 1) & 1) ^ cf, (S_##n)r); \
	return r; \
} \
static inline u64 shr_##n(struct cpu *c, u64 v, unsigned k) \
{ \
	if (!k) \
		return v; \
	u64 w = (u64)(T_##n)v, r = k < n ? w >> k : 0; \
	bool cf = k <= n ? w >> (k - 1) & 1 : 0; \
	flags_shift(c, cf, k == 1 && w >> (n - 1), (S_##n)r); \
	return r; \
} \
static inline u64 sar_##n(struct cpu *c, u64 v, unsigned k) \
{ \
	if (!k) \
		return v; \
	s64 w = (S_##n)v, r = w >> (k < n ? k : n - 1); \
	bool cf = k < n ? w >> (k - 1) & 1 : w < 0; \
	flags_shift(c, cf, false, r); \
	return (T_##n)r; \
}
/* cppcheck-suppress shiftTooManyBitsSigned ; SAR is the compiler's own */
FOR4(SHIFT)

#define CMASK_8 31
#define CMASK_16 31
#define CMASK_32 31
#define CMASK_64 63
#define CL R8(SLOT(X86_RCX))
#define SHOP(op, n) \
	H(op##_ri_##n, u64 r = op##_##n(c, RDU_##n(o->r0), (unsigned)o->imm); WR_##n(o->r0, r); NEXT;) \
	H(op##_rc_##n, u64 r = op##_##n(c, RDU_##n(o->r0), CL & CMASK_##n); WR_##n(o->r0, r); NEXT;) \
	HM(op##_mi_##n, RMW(T_##n, p, EA(o)); *p = (T_##n)op##_##n(c, *p, (unsigned)o->imm); RMW_END; NEXT;) \
	HM(op##_mc_##n, RMW(T_##n, p, EA(o)); *p = (T_##n)op##_##n(c, *p, CL & CMASK_##n); RMW_END; NEXT;)
#define SHOP4(op) SHOP(op, 8) SHOP(op, 16) SHOP(op, 32) SHOP(op, 64)
SHOP4(rol)
SHOP4(ror)
SHOP4(rcl)
SHOP4(rcr)
SHOP4(shl)
SHOP4(shr)
SHOP4(sar)
#define SHROWS(f) { SIZES(rol_##f), SIZES(ror_##f), SIZES(rcl_##f), SIZES(rcr_##f), SIZES(shl_##f), \
	SIZES(shr_##f), SIZES(shl_##f), SIZES(sar_##f) }
op_fn *const shift_ri[8][4] = SHROWS(ri);
op_fn *const shift_rc[8][4] = SHROWS(rc);
op_fn *const shift_mi[8][4] = SHROWS(mi);
op_fn *const shift_mc[8][4] = SHROWS(mc);

/* shld, shrd; 16-bit counts above 16 are undefined: take what falls out */
#define DSHIFT(n) \
static inline u64 shld_##n(struct cpu *c, u64 v, u64 s, unsigned k) \
{ \
	if (!k) \
		return v; \
	u128 w = ((u128)v << n | s); \
	if (n == 16) \
		w = w << 16 | v; \
	unsigned top = n == 16 ? 48 : 2 * n; \
	u64 r = (T_##n)((w << k) >> (top - n)); \
	bool cf = w >> (top - k) & 1; \
	flags_shift(c, cf, (r ^ v) >> (n - 1) & 1, (S_##n)r); \
	return r; \
} \
static inline u64 shrd_##n(struct cpu *c, u64 v, u64 s, unsigned k) \
{ \
	if (!k) \
		return v; \
	u128 w = (u128)s << n | v; \
	if (n == 16) \
		w |= (u128)v << 32; \
	u64 r = (T_##n)(w >> k); \
	bool cf = w >> (k - 1) & 1; \
	flags_shift(c, cf, (r ^ v) >> (n - 1) & 1, (S_##n)r); \
	return r; \
} \
H(shld_r_##n, unsigned k = (o->x ? CL : (unsigned)o->imm) & CMASK_##n; \
  u64 r = shld_##n(c, RDU_##n(o->r0), RDU_##n(o->r1), k); WR_##n(o->r0, r); NEXT;) \
H(shrd_r_##n, unsigned k = (o->x ? CL : (unsigned)o->imm) & CMASK_##n; \
  u64 r = shrd_##n(c, RDU_##n(o->r0), RDU_##n(o->r1), k); WR_##n(o->r0, r); NEXT;) \
HM(shld_m_##n, unsigned k = (o->x ? CL : (unsigned)o->imm) & CMASK_##n; RMW(T_##n, p, EA(o)); \
   *p = (T_##n)shld_##n(c, *p, RDU_##n(o->r1), k); RMW_END; NEXT;) \
HM(shrd_m_##n, unsigned k = (o->x ? CL : (unsigned)o->imm) & CMASK_##n; RMW(T_##n, p, EA(o)); \
   *p = (T_##n)shrd_##n(c, *p, RDU_##n(o->r1), k); RMW_END; NEXT;)
DSHIFT(16)
DSHIFT(32)
DSHIFT(64)
op_fn *const shld_r[2][4] = { { NULL, shld_r_16, shld_r_32, shld_r_64 }, { NULL, shrd_r_16, shrd_r_32, shrd_r_64 } };
op_fn *const shld_m[2][4] = { { NULL, shld_m_16, shld_m_32, shld_m_64 }, { NULL, shrd_m_16, shrd_m_32, shrd_m_64 } };

/* ---- bt, bts, btr, btc: CF only. Memory form with a register reaches beyond the operand. */
static inline void flags_cf_only(struct cpu *c, bool cf)
{
	u32 of = flag_of(c) ? EFL_OF : 0;

	if (c->fl_type == FL_ALL) {
		c->fl_a = (c->fl_a & ~(s64)EFL_CF) | cf;
	} else {
		c->fl_a = (s64)(flag_af(c) | of | cf);
		c->fl_type = FL_X;
	}
}
#define BIT_bt(v, m) (v)
#define BIT_bts(v, m) ((v) | (m))
#define BIT_btr(v, m) ((v) & ~(m))
#define BIT_btc(v, m) ((v) ^ (m))
#define BITOFF(n) s64 bit = o->x ? (s64)(o->imm & (n - 1)) : RD_##n(o->r1); \
	u64 ea = EA(o) + (o->x || o->y ? 0 : (u64)((bit >> __builtin_ctz(n)) * (n / 8))); \
	T_##n mask = (T_##n)((T_##n)1 << (bit & (n - 1)));
#define BT(op, n) \
	H(op##_r_##n, T_##n v = (T_##n)RDU_##n(o->r0); \
	  T_##n mask = (T_##n)((T_##n)1 << ((o->x ? o->imm : RDU_##n(o->r1)) & (n - 1))); \
	  flags_cf_only(c, v & mask); if (#op[2]) WR_##n(o->r0, BIT_##op(v, mask)); NEXT;) \
	HM(op##_m_##n, BITOFF(n) RMW(T_##n, p, ea); T_##n v = *p; flags_cf_only(c, v & mask); \
	   *p = (T_##n)BIT_##op(v, mask); RMW_END; NEXT;) \
	HM(op##_l_##n, BITOFF(n) RMW(T_##n, p, ea); T_##n v = *(volatile T_##n *)p; \
	   while (!cas_##n(p, &v, (T_##n)BIT_##op(v, mask))) ; \
	   RMW_END; flags_cf_only(c, v & mask); NEXT;)
#define BT3(op) BT(op, 16) BT(op, 32) BT(op, 64)
BT3(bts)
BT3(btr)
BT3(btc)
#define BTR(n) \
	H(bt_r_##n, T_##n v = (T_##n)RDU_##n(o->r0); \
	  T_##n mask = (T_##n)((T_##n)1 << ((o->x ? o->imm : RDU_##n(o->r1)) & (n - 1))); \
	  flags_cf_only(c, v & mask); NEXT;) \
	HM(bt_m_##n, BITOFF(n) T_##n v; LD(T_##n, v, ea); flags_cf_only(c, v & mask); NEXT;)
BTR(16)
BTR(32)
BTR(64)
#define S3(f) { NULL, f##_16, f##_32, f##_64 }
op_fn *const bt_r[4][4] = { S3(bt_r), S3(bts_r), S3(btr_r), S3(btc_r) };
op_fn *const bt_m[2][4][4] = { { S3(bt_m), S3(bts_m), S3(btr_m), S3(btc_m) },
	{ { NULL, NULL, NULL, NULL }, S3(bts_l), S3(btr_l), S3(btc_l) } };

/* r0 = bit register, len = address bytes << 4 | operand bytes, x = segment (0xff: 64-bit mode, base in slot r1) */
H(ea_bit_do, unsigned n = o->len & 15; unsigned bits = n * 8;
  s64 bit = n == 2 ? RD_16(o->r0) : n == 4 ? RD_32(o->r0) : RD_64(o->r0);
  u64 a = EA(o) + (o->x == 0xff ? o->imm : 0) + (u64)((bit >> __builtin_ctz(bits)) * (s64)n);
  if (o->len >> 4 == 4) a = (u32)a; else if (o->len >> 4 == 2) a = (u16)a;
  c->r[S_TMP] = o->x == 0xff ? a + R64(o->r1) : soft_seg_ea(c, o, o->x, a, n, o->y & 0x100);
  NEXT;)
op_fn *const ea_bit = ea_bit_do;

#define CTZ(v) ((u64)__builtin_ctzll(v))
#define CLZ(v) ((u64)(63 - __builtin_clzll(v)))
/* a zero source leaves the destination alone, and only ZF is defined */
#define BSX(op, f, n) \
	H(op##_r_##n, u64 v = RDU_##n(o->r1); if (v) WR_##n(o->r0, f(v)); \
	  flags_logic(c, v != 0); NEXT;) \
	HM(op##_m_##n, T_##n m; LD(T_##n, m, EA(o)); u64 v = m; if (v) WR_##n(o->r0, f(v)); \
	   flags_logic(c, v != 0); NEXT;)
BSX(bsf, CTZ, 16)
BSX(bsf, CTZ, 32)
BSX(bsf, CTZ, 64)
BSX(bsr, CLZ, 16)
BSX(bsr, CLZ, 32)
BSX(bsr, CLZ, 64)
op_fn *const bsf_r[2][4] = { S3(bsf_r), S3(bsr_r) };
op_fn *const bsf_m[2][4] = { S3(bsf_m), S3(bsr_m) };

/* ---- multiply and divide of the accumulator */
#define AX 0
#define DX SLOT(X86_RDX)
#define W_8 u16
#define W_16 u32
#define W_32 u64
#define W_64 u128
#define SW_8 s16
#define SW_16 s32
#define SW_32 s64
#define SW_64 s128
#define PAIR_8 ((u16)R16(AX))
#define PAIR_16 ((u32)R16(DX) << 16 | R16(AX))
#define PAIR_32 ((u64)R32(DX) << 32 | R32(AX))
#define PAIR_64 ((u128)R64(DX) << 64 | R64(AX))
#define SETP_8(lo, hi) (R8(0) = (u8)(lo), R8(1) = (u8)(hi))
#define SETP_16(lo, hi) (R16(AX) = (u16)(lo), R16(DX) = (u16)(hi))
#define SETP_32(lo, hi) (R64(AX) = (u32)(lo), R64(DX) = (u32)(hi))
#define SETP_64(lo, hi) (R64(AX) = (u64)(lo), R64(DX) = (u64)(hi))

static inline void flags_mul(struct cpu *c, bool over, s64 r)
{
	c->fl_type = FL_X;
	c->fl_a = over ? EFL_CF | EFL_OF : 0;
	c->fl_r = r;
}
#define MULDIV(n) \
static inline void mul_##n(struct cpu *c, const struct op *o, T_##n v) \
{ \
	W_##n r = (W_##n)((W_##n)(T_##n)RDU_##n(AX) * (W_##n)v); \
	SETP_##n((T_##n)r, (T_##n)(r >> n)); \
	flags_mul(c, (T_##n)(r >> n), (S_##n)r); \
} \
static inline void imul_##n(struct cpu *c, const struct op *o, T_##n v) \
{ \
	SW_##n r = (SW_##n)((SW_##n)(S_##n)RDU_##n(AX) * (SW_##n)(S_##n)v); \
	SETP_##n((T_##n)r, (T_##n)(r >> n)); \
	flags_mul(c, r != (SW_##n)(S_##n)r, (S_##n)r); \
} \
static inline void div_##n(struct cpu *c, const struct op *o, T_##n v) \
{ \
	W_##n a = (W_##n)PAIR_##n, q; \
	if (!v || (T_##n)(a >> n) >= v) \
		soft_raise(c, o, EXC_DE); \
	q = n == 64 && !(a >> (n / 2) >> (n / 2)) ? (W_##n)((T_##n)a / v) : (W_##n)(a / v); \
	SETP_##n((T_##n)q, (T_##n)(a - q * v)); \
} \
static inline void idiv_##n(struct cpu *c, const struct op *o, T_##n v) \
{ \
	SW_##n a = (SW_##n)PAIR_##n, d = (S_##n)v, q; \
	if (!d || (d == -1 && a == (SW_##n)((W_##n)1 << (2 * n - 1)))) \
		soft_raise(c, o, EXC_DE); \
	q = (SW_##n)(a / d); \
	if (q != (SW_##n)(S_##n)q) \
		soft_raise(c, o, EXC_DE); \
	SETP_##n((T_##n)q, (T_##n)(a - q * d)); \
}
/* cppcheck-suppress zerodivcond ; soft_raise() does not return */
FOR4(MULDIV)
#define MD(op, n) \
	H(op##_r_##n, op##_##n(c, o, (T_##n)RDU_##n(o->r0)); NEXT;) \
	HM(op##_m_##n, T_##n v; LD(T_##n, v, EA(o)); op##_##n(c, o, v); NEXT;)
FOR4A(MD, mul)
FOR4A(MD, imul)
FOR4A(MD, div)
FOR4A(MD, idiv)
op_fn *const mul_r[4][4] = { SIZES(mul_r), SIZES(imul_r), SIZES(div_r), SIZES(idiv_r) };
op_fn *const mul_m[4][4] = { SIZES(mul_m), SIZES(imul_m), SIZES(div_m), SIZES(idiv_m) };

#define IMUL2(n) \
static inline T_##n imul2_##n(struct cpu *c, T_##n a, T_##n b) \
{ \
	S_##n r; \
	bool over = __builtin_mul_overflow((S_##n)a, (S_##n)b, &r); \
	flags_mul(c, over, r); \
	return (T_##n)r; \
} \
H(imul_rr_##n, T_##n r = imul2_##n(c, (T_##n)RDU_##n(o->r0), (T_##n)RDU_##n(o->r1)); WR_##n(o->r0, r); NEXT;) \
H(imul_rri_##n, T_##n r = imul2_##n(c, (T_##n)RDU_##n(o->r1), (T_##n)o->imm); WR_##n(o->r0, r); NEXT;) \
HM(imul_rm_##n, T_##n v; LD(T_##n, v, EA(o)); v = imul2_##n(c, (T_##n)RDU_##n(o->r0), v); WR_##n(o->r0, v); NEXT;) \
HM(imul_rmi_##n, T_##n v; LD(T_##n, v, EA(o)); v = imul2_##n(c, v, (T_##n)o->imm); WR_##n(o->r0, v); NEXT;)
IMUL2(16)
IMUL2(32)
IMUL2(64)
op_fn *const imul_rr[4] = S3(imul_rr);
op_fn *const imul_rm[4] = S3(imul_rm);
op_fn *const imul_rri[4] = S3(imul_rri);
op_fn *const imul_rmi[4] = S3(imul_rmi);

/* ---- xadd, cmpxchg: always atomic on memory (a plain one is allowed to be) */
#define XADD(n) \
	H(xadd_rr_##n, s64 a = RD_##n(o->r0), b = RD_##n(o->r1), r = (S_##n)((u64)a + (u64)b); \
	  flags_set(c, FL_ADD, a, b, r); WR_##n(o->r1, a); WR_##n(o->r0, r); NEXT;) \
	HM(xadd_mr_##n, s64 b = RD_##n(o->r1); RMW(T_##n, p, EA(o)); \
	   s64 a = (S_##n)xadd_##n(p, (T_##n)b); RMW_END; \
	   s64 r = (S_##n)((u64)a + (u64)b); flags_set(c, FL_ADD, a, b, r); WR_##n(o->r1, a); NEXT;) \
	H(cmpxchg_rr_##n, s64 a = RD_##n(AX), b = RD_##n(o->r0), r = (S_##n)((u64)a - (u64)b); \
	  flags_set(c, FL_SUB, a, b, r); if (!r) WR_##n(o->r0, RDU_##n(o->r1)); else WR_##n(AX, b); NEXT;) \
	HM(cmpxchg_mr_##n, T_##n want = (T_##n)RDU_##n(AX), old = want; RMW(T_##n, p, EA(o)); \
	   cas_##n(p, &old, (T_##n)RDU_##n(o->r1)); \
	   RMW_END; s64 a = (S_##n)want, b = (S_##n)old, r = (S_##n)((u64)a - (u64)b); \
	   flags_set(c, FL_SUB, a, b, r); if (r) WR_##n(AX, old); NEXT;)
FOR4(XADD)
op_fn *const xadd_rr[4] = SIZES(xadd_rr);
op_fn *const xadd_mr[4] = SIZES(xadd_mr);
op_fn *const cmpxchg_rr[4] = SIZES(cmpxchg_rr);
op_fn *const cmpxchg_mr[4] = SIZES(cmpxchg_mr);

static void flag_zf_only(struct cpu *c, bool zf)
{
	flags_set_all(c, (soft_eflags(c) & EFL_ARITH & ~EFL_ZF) | (zf ? EFL_ZF : 0));
}

HM(cmpxchg8b_do, u64 want = (u64)R32(DX) << 32 | R32(AX);
   u64 nv = (u64)R32(SLOT(X86_RCX)) << 32 | R32(SLOT(X86_RBX)), old = want; RMW(m64, p, EA(o));
   bool ok = cas_64(p, &old, nv);
   RMW_END; flag_zf_only(c, ok); if (!ok) { R64(AX) = (u32)old; R64(DX) = old >> 32; } NEXT;)
op_fn *const cmpxchg8b_op = cmpxchg8b_do;

static const struct op *cmpxchg16b_do(struct cpu *c, const struct op *o)
{
	u64 ea = EA(o), lo = c->r[X86_RAX], hi = c->r[X86_RDX];
	u64 *p;
	bool ok;

	if (ea & 15)
		soft_raise_err(c, o, EXC_GP, 0);
	p = soft_rmw(c, o, ea, 16);
	asm volatile("lock cmpxchg16b %0\n\tsete %1"
		     : "+m"(*(struct { u64 v[2]; } *)p), "=q"(ok), "+a"(lo), "+d"(hi)
		     : "b"(c->r[X86_RBX]), "c"(c->r[X86_RCX])
		     : "memory", "cc");
	soft_rmw_end(c, o);
	flag_zf_only(c, ok);
	if (!ok) {
		c->r[X86_RAX] = lo;
		c->r[X86_RDX] = hi;
	}
	NEXT;
}
op_fn *const cmpxchg16b_op = cmpxchg16b_do;

/* ---- decimal adjust (legacy modes) */
static const struct op *daa_do(struct cpu *c, const struct op *o)
{
	u8 al = R8(0), old = al;
	bool cf = flag_cf(c), af = flag_af(c), das = o->x, ncf = false;

	if ((old & 15) > 9 || af) {
		ncf = cf || (das ? old < 6 : old > 0xf9);
		al = (u8)(das ? al - 6 : al + 6);
		af = true;
	}
	if (old > 0x99 || cf) {
		al = (u8)(das ? al - 0x60 : al + 0x60);
		ncf = true;
	}
	R8(0) = al;
	c->fl_type = FL_X;
	c->fl_a = (ncf ? EFL_CF : 0) | (af ? EFL_AF : 0);
	c->fl_r = (s8)al;
	NEXT;
}

static const struct op *aaa_do(struct cpu *c, const struct op *o)
{
	bool adj = (R8(0) & 15) > 9 || flag_af(c);

	if (adj)
		R16(0) = (u16)(o->x ? R16(0) - 0x106 : R16(0) + 0x106);
	R8(0) &= 15;
	c->fl_type = FL_X;
	c->fl_a = adj ? EFL_CF | EFL_AF : 0;
	c->fl_r = (s8)R8(0);
	NEXT;
}

static const struct op *aam_do(struct cpu *c, const struct op *o)
{
	u8 d = (u8)o->imm, al = R8(0);

	if (!d)
		soft_raise(c, o, EXC_DE);
	/* cppcheck-suppress zerodivcond ; soft_raise() does not return */
	R8(1) = al / d;
	/* cppcheck-suppress zerodivcond */
	R8(0) = al % d;
	flags_logic(c, (s8)R8(0));
	NEXT;
}

static const struct op *aad_do(struct cpu *c, const struct op *o)
{
	R16(0) = (u8)(R8(0) + R8(1) * (u8)o->imm);
	flags_logic(c, (s8)R8(0));
	NEXT;
}
op_fn *const bcd_op[6] = { daa_do, daa_do, aaa_do, aaa_do, aam_do, aad_do };
