/* op_sse.c - SSE and SSE2 on the host's own unit.
 *
 * While the vCPU runs, the host's MXCSR holds the guest's rounding and flags with every exception masked. Where
 * the guest unmasked one (rare), flags are looked at after each operation, before the result is stored.
 * o->r0: destination xmm (or register slot), o->r1: source, o->y: access size in bytes, o->imm: immediate.
 */
#include <emmintrin.h>
#include <string.h>

#include "flags.h"
#include "ops.h"

/* macro tables, a handler a line */
/* clang-format off */

#define XMM(n) (*(__m128i *)c->fx.xmm[n])

static inline u32 mxcsr_host(void)
{
	u32 v;

	asm volatile("stmxcsr %0" : "=m"(v));
	return v;
}

static inline void mxcsr_host_set(u32 v)
{
	asm volatile("ldmxcsr %0" : : "m"(v));
}

void soft_mxcsr_load(struct cpu *c, u32 val)
{
	c->fx.mxcsr = val;
	c->mxcsr_unmasked = (val & 0x1f80) != 0x1f80;
	mxcsr_host_set((c->mxcsr_unmasked ? val & ~0x3fu : val) | 0x1f80);
}

u32 soft_mxcsr_read(struct cpu *c)
{
	c->fx.mxcsr |= mxcsr_host() & 0x3f;
	return c->fx.mxcsr;
}

COLD void soft_fp_check(struct cpu *c, const struct op *o)
{
	u32 h = mxcsr_host(), f = h & 0x3f;

	if (!f)
		return;
	mxcsr_host_set(h & ~0x3fu);
	u32 un = f & ~(c->fx.mxcsr >> 7);

	if (un & 7) /* invalid, denormal, divide: found before the computation */
		f &= 7;
	c->fx.mxcsr |= f;
	if (un)
		soft_raise(c, o, c->cr4 & (1 << 10) ? EXC_XM : EXC_UD);
}
#define FPCHECK \
	do { \
		if (unlikely(c->mxcsr_unmasked)) \
			soft_fp_check(c, o); \
	} while (0)

/* sse_tiny() - an unmasked underflow is raised by an exact tiny result too, which the masked operation executed here
 * does not report: a denormal in the first @n lanes of @size bytes is one. (Inexact ones are reported.) */
static COLD void sse_tiny(struct cpu *c, __m128i v, unsigned size, unsigned n)
{
	union {
		__m128i v;
		u32 d[4];
		u64 q[2];
	} u = { v };
	bool tiny = false;

	if (c->fx.mxcsr & 0x800)
		return;
	for (unsigned i = 0; i < n; i++)
		tiny |= size == 4 ? !(u.d[i] & 0x7f800000) && (u.d[i] & 0x7fffff)
				  : !(u.q[i] & 0x7ff0000000000000ULL) && (u.q[i] & 0xfffffffffffffULL);
	if (tiny)
		mxcsr_host_set(mxcsr_host() | 0x10);
}
#define FPCHECK_TINY(size, n) \
	do { \
		if (unlikely(c->mxcsr_unmasked)) { \
			sse_tiny(c, d, size, n); \
			soft_fp_check(c, o); \
		} \
	} while (0)

/* a memory source of n bytes into a zero-extended vector; ALIGN: 16-byte operands must be aligned */
#define LDX(var, n, ALIGN) \
	__m128i var; \
	do { \
		u64 va_ = EA(o); \
		if (ALIGN && (va_ & 15)) \
			soft_raise_err(c, o, EXC_GP, 0); \
		const u8 *h_; \
		if (SLOW) { \
			soft_ld_buf(c, o, va_, c->bounce, n); \
			h_ = c->bounce; \
		} else { \
			struct tlbe *e_ = tlb_at(c, va_); \
			if (unlikely(e_->rtag != tlb_tag(c, va_, n))) \
				MUSTTAIL return self_slow(c, o); \
			h_ = (const u8 *)(uintptr_t)(va_ + e_->addend); \
		} \
		if (n == 16) \
			var = _mm_loadu_si128((const __m128i *)h_); \
		else if (n == 8) \
			var = _mm_loadl_epi64((const __m128i *)h_); \
		else \
			var = _mm_cvtsi32_si128((int)*(const m32 *)h_); \
	} while (0)

#define STX(n, val, ALIGN) \
	do { \
		u64 va_ = EA(o); \
		__m128i v_ = (val); \
		if (ALIGN && (va_ & 15)) \
			soft_raise_err(c, o, EXC_GP, 0); \
		if (SLOW) { \
			_mm_store_si128((__m128i *)c->bounce, v_); \
			soft_st_buf(c, o, va_, c->bounce, n); \
		} else { \
			struct tlbe *e_ = tlb_at(c, va_); \
			if (unlikely(e_->wtag != tlb_tag(c, va_, n))) \
				MUSTTAIL return self_slow(c, o); \
			u8 *h_ = (u8 *)(uintptr_t)(va_ + e_->addend); \
			if (n == 16) \
				_mm_storeu_si128((__m128i *)h_, v_); \
			else if (n == 8) \
				_mm_storel_epi64((__m128i *)h_, v_); \
			else \
				*(volatile m32 *)h_ = (u32)_mm_cvtsi128_si32(v_); \
		} \
	} while (0)

#define BIN(mn, n, FP) \
	H(mn##_r, __m128i d = XMM(o->r0), s = XMM(o->r1); \
	  asm volatile(#mn " %1, %0" : "+x"(d) : "x"(s)); FP; XMM(o->r0) = d; NEXT;) \
	HM(mn##_m, LDX(s, n, n == 16); __m128i d = XMM(o->r0); \
	   asm volatile(#mn " %1, %0" : "+x"(d) : "x"(s)); FP; XMM(o->r0) = d; NEXT;)
#define FPBIN(mn, n) BIN(mn, n, FPCHECK)
#define FPARITH(op) \
	BIN(op##ps, 16, FPCHECK_TINY(4, 4)) BIN(op##pd, 16, FPCHECK_TINY(8, 2)) \
	BIN(op##ss, 4, FPCHECK_TINY(4, 1)) BIN(op##sd, 8, FPCHECK_TINY(8, 1))
#define INT(mn) BIN(mn, 16, )

#define FP4(X, op) X(op##ps, 16) X(op##pd, 16) X(op##ss, 4) X(op##sd, 8)
FP4(FPBIN, sqrt)
FPARITH(add)
FPARITH(mul)
FPARITH(sub)
FP4(FPBIN, min)
FPARITH(div)
FP4(FPBIN, max)
FPBIN(rsqrtps, 16) FPBIN(rsqrtss, 4) FPBIN(rcpps, 16) FPBIN(rcpss, 4)
INT(andps) INT(andpd) INT(andnps) INT(andnpd) INT(orps) INT(orpd) INT(xorps) INT(xorpd)
INT(unpcklps) INT(unpcklpd) INT(unpckhps) INT(unpckhpd)
FPBIN(cvtps2pd, 8) BIN(cvtpd2ps, 16, FPCHECK_TINY(4, 2)) FPBIN(cvtss2sd, 4) BIN(cvtsd2ss, 8, FPCHECK_TINY(4, 1))
FPBIN(cvtdq2ps, 16) FPBIN(cvtps2dq, 16) FPBIN(cvttps2dq, 16)
FPBIN(cvttpd2dq, 16) FPBIN(cvtpd2dq, 16) FPBIN(cvtdq2pd, 8)
INT(punpcklbw) INT(punpcklwd) INT(punpckldq) INT(packsswb) INT(pcmpgtb) INT(pcmpgtw) INT(pcmpgtd)
INT(packuswb) INT(punpckhbw) INT(punpckhwd) INT(punpckhdq) INT(packssdw) INT(punpcklqdq) INT(punpckhqdq)
INT(pcmpeqb) INT(pcmpeqw) INT(pcmpeqd)
INT(psrlw) INT(psrld) INT(psrlq) INT(paddq) INT(pmullw)
INT(psubusb) INT(psubusw) INT(pminub) INT(pand) INT(paddusb) INT(paddusw) INT(pmaxub) INT(pandn)
INT(pavgb) INT(psraw) INT(psrad) INT(pavgw) INT(pmulhuw) INT(pmulhw)
INT(psubsb) INT(psubsw) INT(pminsw) INT(por) INT(paddsb) INT(paddsw) INT(pmaxsw) INT(pxor)
INT(psllw) INT(pslld) INT(psllq) INT(pmuludq) INT(pmaddwd) INT(psadbw)
INT(psubb) INT(psubw) INT(psubd) INT(psubq) INT(paddb) INT(paddw) INT(paddd)

/* ucomis, comis: ZF, PF, CF */
#define COMI(mn, n) \
	static inline void mn##_set(struct cpu *c, const struct op *o, __m128i d, __m128i s) \
	{ \
		u64 f; \
		asm volatile(#mn " %2, %1\n\tpushfq\n\tpopq %0" : "=r"(f) : "x"(d), "x"(s) : "cc", "memory"); \
		FPCHECK; \
		flags_set_all(c, (u32)f & (EFL_ZF | EFL_PF | EFL_CF)); \
	} \
	H(mn##_r, mn##_set(c, o, XMM(o->r0), XMM(o->r1)); NEXT;) \
	HM(mn##_m, LDX(s, n, 0); mn##_set(c, o, XMM(o->r0), s); NEXT;)
COMI(ucomiss, 4)
COMI(ucomisd, 8)
COMI(comiss, 4)
COMI(comisd, 8)

/* cmpXX imm8 */
#define CMPX(sfx, n) \
	static inline __m128i cmp##sfx##_do(struct cpu *c, const struct op *o, __m128i d, __m128i s) \
	{ \
		switch (o->imm & 7) { \
		case 0: asm volatile("cmpeq" #sfx " %1, %0" : "+x"(d) : "x"(s)); break; \
		case 1: asm volatile("cmplt" #sfx " %1, %0" : "+x"(d) : "x"(s)); break; \
		case 2: asm volatile("cmple" #sfx " %1, %0" : "+x"(d) : "x"(s)); break; \
		case 3: asm volatile("cmpunord" #sfx " %1, %0" : "+x"(d) : "x"(s)); break; \
		case 4: asm volatile("cmpneq" #sfx " %1, %0" : "+x"(d) : "x"(s)); break; \
		case 5: asm volatile("cmpnlt" #sfx " %1, %0" : "+x"(d) : "x"(s)); break; \
		case 6: asm volatile("cmpnle" #sfx " %1, %0" : "+x"(d) : "x"(s)); break; \
		default: asm volatile("cmpord" #sfx " %1, %0" : "+x"(d) : "x"(s)); break; \
		} \
		FPCHECK; \
		return d; \
	} \
	H(cmp##sfx##_r, XMM(o->r0) = cmp##sfx##_do(c, o, XMM(o->r0), XMM(o->r1)); NEXT;) \
	HM(cmp##sfx##_m, LDX(s, n, n == 16); XMM(o->r0) = cmp##sfx##_do(c, o, XMM(o->r0), s); NEXT;)
CMPX(ps, 16)
CMPX(pd, 16)
CMPX(ss, 4)
CMPX(sd, 8)

/* shuffles by immediate */
union vec { __m128i v; u32 d[4]; u16 w[8]; u64 q[2]; u8 b[16]; };
static inline __m128i shuf_do(unsigned kind, unsigned i, __m128i dv, __m128i sv)
{
	union vec d = { dv }, s = { sv }, r = { sv };

	switch (kind) {
	case 0: /* shufps */
		for (int k = 0; k < 2; k++)
			r.d[k] = d.d[i >> (2 * k) & 3], r.d[k + 2] = s.d[i >> (2 * k + 4) & 3];
		break;
	case 1: /* shufpd */
		r.q[0] = d.q[i & 1], r.q[1] = s.q[i >> 1 & 1];
		break;
	case 2: /* pshufd */
		for (int k = 0; k < 4; k++)
			r.d[k] = s.d[i >> (2 * k) & 3];
		break;
	case 3: /* pshuflw */
		for (int k = 0; k < 4; k++)
			r.w[k] = s.w[i >> (2 * k) & 3];
		break;
	default: /* pshufhw */
		for (int k = 0; k < 4; k++)
			r.w[4 + k] = s.w[4 + (i >> (2 * k) & 3)];
		break;
	}
	return r.v;
}
#define SHUF(name, kind) \
	H(name##_r, XMM(o->r0) = shuf_do(kind, (unsigned)o->imm, XMM(o->r0), XMM(o->r1)); NEXT;) \
	HM(name##_m, LDX(s, 16, 1); XMM(o->r0) = shuf_do(kind, (unsigned)o->imm, XMM(o->r0), s); NEXT;)
SHUF(shufps, 0)
SHUF(shufpd, 1)
SHUF(pshufd, 2)
SHUF(pshuflw, 3)
SHUF(pshufhw, 4)

/* ---- moves */
H(mov128_r, XMM(o->r0) = XMM(o->r1); NEXT;)
HM(mova_m, LDX(s, 16, 1); XMM(o->r0) = s; NEXT;)
HM(movu_m, LDX(s, 16, 0); XMM(o->r0) = s; NEXT;)
HM(movq_m, LDX(s, 8, 0); XMM(o->r0) = s; NEXT;)
HM(movd_m, LDX(s, 4, 0); XMM(o->r0) = s; NEXT;)
HM(mova_st, STX(16, XMM(o->r0), 1); NEXT;)
HM(movu_st, STX(16, XMM(o->r0), 0); NEXT;)
HM(movq_st, STX(8, XMM(o->r0), 0); NEXT;)
HM(movd_st, STX(4, XMM(o->r0), 0); NEXT;)
HM(movh_st, STX(8, _mm_srli_si128(XMM(o->r0), 8), 0); NEXT;)
H(mov128_rst, XMM(o->r1) = XMM(o->r0); NEXT;)
H(movss_r, ((m32 *)&XMM(o->r0))[0] = ((m32 *)&XMM(o->r1))[0]; NEXT;)
H(movsd_r, ((m64 *)&XMM(o->r0))[0] = ((m64 *)&XMM(o->r1))[0]; NEXT;)
H(movss_rst, ((m32 *)&XMM(o->r1))[0] = ((m32 *)&XMM(o->r0))[0]; NEXT;)
H(movsd_rst, ((m64 *)&XMM(o->r1))[0] = ((m64 *)&XMM(o->r0))[0]; NEXT;)
H(movq_r, XMM(o->r0) = _mm_move_epi64(XMM(o->r1)); NEXT;)
H(movq_rst, XMM(o->r1) = _mm_move_epi64(XMM(o->r0)); NEXT;)
H(movhlps_r, ((m64 *)&XMM(o->r0))[0] = ((m64 *)&XMM(o->r1))[1]; NEXT;)
H(movlhps_r, ((m64 *)&XMM(o->r0))[1] = ((m64 *)&XMM(o->r1))[0]; NEXT;)
HM(movl_m, u64 v; LD(m64, v, EA(o)); ((m64 *)&XMM(o->r0))[0] = v; NEXT;)
HM(movh_m, u64 v; LD(m64, v, EA(o)); ((m64 *)&XMM(o->r0))[1] = v; NEXT;)
/* movd/movq with a general register (slot r1); y = 8 with REX.W */
H(movd_gr, XMM(o->r0) = o->y == 8 ? _mm_cvtsi64_si128((s64)R64(o->r1)) : _mm_cvtsi32_si128((int)R32(o->r1)); NEXT;)
H(movd_rg, R64(o->r1) = o->y == 8 ? (u64)_mm_cvtsi128_si64(XMM(o->r0)) : (u32)_mm_cvtsi128_si32(XMM(o->r0)); NEXT;)
H(movmskps_r, R64(o->r0) = (u32)_mm_movemask_ps((__m128)XMM(o->r1)); NEXT;)
H(movmskpd_r, R64(o->r0) = (u32)_mm_movemask_pd((__m128d)XMM(o->r1)); NEXT;)
H(pmovmskb_r, R64(o->r0) = (u32)_mm_movemask_epi8(XMM(o->r1)); NEXT;)
H(pinsrw_r, ((m16 *)&XMM(o->r0))[o->imm & 7] = R16(o->r1); NEXT;)
HM(pinsrw_m, u16 v; LD(m16, v, EA(o)); ((m16 *)&XMM(o->r0))[o->imm & 7] = v; NEXT;)
H(pextrw_r, R64(o->r0) = ((m16 *)&XMM(o->r1))[o->imm & 7]; NEXT;)
H(maskmovdqu_r, u64 a = EA(o);
  soft_probe_w(c, o, a, 16); /* all of it, whatever the mask */
  for (unsigned i = 0; i < 16; i++)
	if (c->fx.xmm[o->r1][i] & 0x80) soft_st(c, o, a + i, 1, c->fx.xmm[o->r0][i]);
  NEXT;)

/* shifts by immediate: x = opcode group's reg field */
#define SHI(mn) asm volatile(#mn " %1, %0" : "+x"(d) : "x"(_mm_cvtsi32_si128((int)o->imm)))
static inline __m128i shift_bytes(__m128i v, unsigned n, bool left)
{
	u8 t[48] = { 0 };

	if (n > 15)
		return _mm_setzero_si128();
	memcpy(t + 16, &v, 16);
	memcpy(&v, left ? t + 16 - n : t + 16 + n, 16);
	return v;
}
#define SHIFTI(name, mn) H(name, __m128i d = XMM(o->r1); SHI(mn); XMM(o->r1) = d; NEXT;)
SHIFTI(psrlw_i, psrlw)
SHIFTI(psraw_i, psraw)
SHIFTI(psllw_i, psllw)
SHIFTI(psrld_i, psrld)
SHIFTI(psrad_i, psrad)
SHIFTI(pslld_i, pslld)
SHIFTI(psrlq_i, psrlq)
SHIFTI(psllq_i, psllq)
H(psrldq_i, XMM(o->r1) = shift_bytes(XMM(o->r1), (unsigned)o->imm, false); NEXT;)
H(pslldq_i, XMM(o->r1) = shift_bytes(XMM(o->r1), (unsigned)o->imm, true); NEXT;)

/* ---- conversions with general registers: y = 8 with REX.W */
#define CVTFROM(mn) \
	static inline __m128i mn##_do(struct cpu *c, const struct op *o, __m128i d, u64 v) \
	{ \
		if (o->y == 8) \
			asm volatile(#mn "q %1, %0" : "+x"(d) : "r"(v)); \
		else \
			asm volatile(#mn "l %k1, %0" : "+x"(d) : "r"(v)); \
		FPCHECK; \
		return d; \
	} \
	H(mn##_r, XMM(o->r0) = mn##_do(c, o, XMM(o->r0), R64(o->r1)); NEXT;) \
	HM(mn##_m4, u32 v; LD(m32, v, EA(o)); XMM(o->r0) = mn##_do(c, o, XMM(o->r0), v); NEXT;) \
	HM(mn##_m8, u64 v; LD(m64, v, EA(o)); XMM(o->r0) = mn##_do(c, o, XMM(o->r0), v); NEXT;) \
	H(mn##_m, if (o->y == 8) TAIL(mn##_m8); TAIL(mn##_m4);)
CVTFROM(cvtsi2ss)
CVTFROM(cvtsi2sd)
#define CVTTO(mn, n) \
	static inline void mn##_do(struct cpu *c, const struct op *o, __m128i s) \
	{ \
		u64 v; \
		if (o->y == 8) \
			asm volatile(#mn " %1, %q0" : "=r"(v) : "x"(s)); \
		else \
			asm volatile(#mn " %1, %k0" : "=r"(v) : "x"(s)); \
		FPCHECK; \
		R64(o->r0) = o->y == 8 ? v : (u32)v; \
	} \
	H(mn##_r, mn##_do(c, o, XMM(o->r1)); NEXT;) \
	HM(mn##_m, LDX(s, n, 0); mn##_do(c, o, s); NEXT;)
CVTTO(cvttss2si, 4)
CVTTO(cvttsd2si, 8)
CVTTO(cvtss2si, 4)
CVTTO(cvtsd2si, 8)

struct sse_row {
	op_fn *reg, *mem;
};
#define R2(f) { f##_r, f##_m }
#define FPROW(op) { R2(op##ps), R2(op##pd), R2(op##ss), R2(op##sd) }
#define I66(op) { { NULL, NULL }, R2(op), { NULL, NULL }, { NULL, NULL } }
#define NO { NULL, NULL }
/* by opcode; columns: no prefix, 66, F3, F2 */
static const struct sse_row sse_rows[256][4] = {
	[0x10] = { { mov128_r, movu_m }, { mov128_r, movu_m }, { movss_r, movd_m }, { movsd_r, movq_m } },
	[0x11] = { { mov128_rst, movu_st }, { mov128_rst, movu_st }, { movss_rst, movd_st }, { movsd_rst, movq_st } },
	[0x12] = { { movhlps_r, movl_m }, { NULL, movl_m }, NO, NO },
	[0x13] = { { NULL, movq_st }, { NULL, movq_st }, NO, NO },
	[0x14] = { R2(unpcklps), R2(unpcklpd), NO, NO },
	[0x15] = { R2(unpckhps), R2(unpckhpd), NO, NO },
	[0x16] = { { movlhps_r, movh_m }, { NULL, movh_m }, NO, NO },
	[0x17] = { { NULL, movh_st }, { NULL, movh_st }, NO, NO },
	[0x28] = { { mov128_r, mova_m }, { mov128_r, mova_m }, NO, NO },
	[0x29] = { { mov128_rst, mova_st }, { mov128_rst, mova_st }, NO, NO },
	[0x2a] = { NO, NO, R2(cvtsi2ss), R2(cvtsi2sd) },
	[0x2b] = { { NULL, mova_st }, { NULL, mova_st }, NO, NO },
	[0x2c] = { NO, NO, R2(cvttss2si), R2(cvttsd2si) },
	[0x2d] = { NO, NO, R2(cvtss2si), R2(cvtsd2si) },
	[0x2e] = { R2(ucomiss), R2(ucomisd), NO, NO },
	[0x2f] = { R2(comiss), R2(comisd), NO, NO },
	[0x50] = { { movmskps_r, NULL }, { movmskpd_r, NULL }, NO, NO },
	[0x51] = FPROW(sqrt),
	[0x52] = { R2(rsqrtps), NO, R2(rsqrtss), NO },
	[0x53] = { R2(rcpps), NO, R2(rcpss), NO },
	[0x54] = { R2(andps), R2(andpd), NO, NO },
	[0x55] = { R2(andnps), R2(andnpd), NO, NO },
	[0x56] = { R2(orps), R2(orpd), NO, NO },
	[0x57] = { R2(xorps), R2(xorpd), NO, NO },
	[0x58] = FPROW(add), [0x59] = FPROW(mul),
	[0x5a] = { R2(cvtps2pd), R2(cvtpd2ps), R2(cvtss2sd), R2(cvtsd2ss) },
	[0x5b] = { R2(cvtdq2ps), R2(cvtps2dq), R2(cvttps2dq), NO },
	[0x5c] = FPROW(sub), [0x5d] = FPROW(min), [0x5e] = FPROW(div), [0x5f] = FPROW(max),
	[0x60] = I66(punpcklbw), [0x61] = I66(punpcklwd), [0x62] = I66(punpckldq), [0x63] = I66(packsswb),
	[0x64] = I66(pcmpgtb), [0x65] = I66(pcmpgtw), [0x66] = I66(pcmpgtd), [0x67] = I66(packuswb),
	[0x68] = I66(punpckhbw), [0x69] = I66(punpckhwd), [0x6a] = I66(punpckhdq), [0x6b] = I66(packssdw),
	[0x6c] = I66(punpcklqdq), [0x6d] = I66(punpckhqdq),
	[0x6e] = { NO, { movd_gr, NULL }, NO, NO },
	[0x6f] = { NO, { mov128_r, mova_m }, { mov128_r, movu_m }, NO },
	[0x70] = { NO, R2(pshufd), R2(pshufhw), R2(pshuflw) },
	[0x74] = I66(pcmpeqb), [0x75] = I66(pcmpeqw), [0x76] = I66(pcmpeqd),
	[0x7e] = { NO, { movd_rg, NULL }, { movq_r, movq_m }, NO },
	[0x7f] = { NO, { mov128_rst, mova_st }, { mov128_rst, movu_st }, NO },
	[0xc2] = { R2(cmpps), R2(cmppd), R2(cmpss), R2(cmpsd) },
	[0xc4] = { NO, R2(pinsrw), NO, NO },
	[0xc5] = { NO, { pextrw_r, NULL }, NO, NO },
	[0xc6] = { R2(shufps), R2(shufpd), NO, NO },
	[0xd1] = I66(psrlw), [0xd2] = I66(psrld), [0xd3] = I66(psrlq), [0xd4] = I66(paddq), [0xd5] = I66(pmullw),
	[0xd6] = { NO, { movq_rst, movq_st }, NO, NO },
	[0xd7] = { NO, { pmovmskb_r, NULL }, NO, NO },
	[0xd8] = I66(psubusb), [0xd9] = I66(psubusw), [0xda] = I66(pminub), [0xdb] = I66(pand),
	[0xdc] = I66(paddusb), [0xdd] = I66(paddusw), [0xde] = I66(pmaxub), [0xdf] = I66(pandn),
	[0xe0] = I66(pavgb), [0xe1] = I66(psraw), [0xe2] = I66(psrad), [0xe3] = I66(pavgw),
	[0xe4] = I66(pmulhuw), [0xe5] = I66(pmulhw),
	[0xe6] = { NO, R2(cvttpd2dq), R2(cvtdq2pd), R2(cvtpd2dq) },
	[0xe7] = { NO, { NULL, mova_st }, NO, NO },
	[0xe8] = I66(psubsb), [0xe9] = I66(psubsw), [0xea] = I66(pminsw), [0xeb] = I66(por),
	[0xec] = I66(paddsb), [0xed] = I66(paddsw), [0xee] = I66(pmaxsw), [0xef] = I66(pxor),
	[0xf1] = I66(psllw), [0xf2] = I66(pslld), [0xf3] = I66(psllq), [0xf4] = I66(pmuludq),
	[0xf5] = I66(pmaddwd), [0xf6] = I66(psadbw),
	[0xf7] = { NO, { maskmovdqu_r, NULL }, NO, NO },
	[0xf8] = I66(psubb), [0xf9] = I66(psubw), [0xfa] = I66(psubd), [0xfb] = I66(psubq),
	[0xfc] = I66(paddb), [0xfd] = I66(paddw), [0xfe] = I66(paddd),
};

bool soft_sse_has_imm(u8 opc)
{
	return opc == 0x70 || opc == 0xc2 || (opc >= 0xc4 && opc <= 0xc6) || (opc >= 0x71 && opc <= 0x73);
}

op_fn *soft_sse_find(u8 opc, unsigned prefix, bool reg, u8 modrm)
{
	static op_fn *const shi[3][8] = {
		{ NULL, NULL, psrlw_i, NULL, psraw_i, NULL, psllw_i, NULL },
		{ NULL, NULL, psrld_i, NULL, psrad_i, NULL, pslld_i, NULL },
		{ NULL, NULL, psrlq_i, psrldq_i, NULL, NULL, psllq_i, pslldq_i },
	};
	unsigned col = prefix == 0x66 ? 1 : prefix == 0xf3 ? 2 : prefix == 0xf2 ? 3 : 0;

	if (opc >= 0x71 && opc <= 0x73)
		return reg && prefix == 0x66 ? shi[opc - 0x71][modrm >> 3 & 7] : NULL;
	if (opc == 0x6e && col == 1 && !reg)
		return movd_m; /* the translator takes movq_m with REX.W: 0xf3 0x7e */
	if (opc == 0x7e && col == 1 && !reg)
		return movd_st;
	return reg ? sse_rows[opc][col].reg : sse_rows[opc][col].mem;
}
