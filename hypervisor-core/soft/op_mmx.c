/* op_mmx.c - MMX, on the host's MMX registers; the guest's are the mantissas of its x87 registers.
 * o->r0, r1: registers; o->x: opcode; o->y: operand bytes | 0x100 register form | 0x200 66 | 0x400 F3 | 0x800 F2.
 */
#include <string.h>

#include "flags.h"
#include "ops.h"

/* macro tables, a handler a line */
/* clang-format off */

/* Handlers here have locals whose address is taken, so gcc makes no tail call of their NEXT, and the stack would grow
 * with every instruction: they go back to run_ops() instead. */
#undef NEXT
#define NEXT return o + 1

/* mmx_enter() - first MMX instruction after x87 ones: top of stack 0, all registers valid. */
static void mmx_enter(struct cpu *c, const struct op *o)
{
	unsigned top = c->fx.fsw >> 11 & 7;

	if (unlikely(c->fx.fsw & 0x80))
		soft_raise(c, o, EXC_MF);
	if (unlikely(top)) {
		u8 t[8][16];

		/* the image is ordered from the top of the stack */
		for (unsigned i = 0; i < 8; i++)
			memcpy(t[(top + i) & 7], &c->fx.st[i], 16);
		memcpy(c->fx.st, t, sizeof(t));
		c->fx.fsw &= (u16)~0x3800;
	}
	c->fx.ftw = 0xff;
}

static void mmx_set(struct cpu *c, unsigned n, u64 v)
{
	c->fx.st[n & 7].man = v;
	c->fx.st[n & 7].exp = 0xffff;
}

static u64 mmx_src(struct cpu *c, const struct op *o)
{
	if (o->y & 0x100)
		return c->fx.st[o->r1 & 7].man;
	return soft_ld(c, o, EA(o), o->y & 0xff);
}

#define MMX_LIST(X) \
	X(0x60, punpcklbw) X(0x61, punpcklwd) X(0x62, punpckldq) X(0x63, packsswb) X(0x64, pcmpgtb) X(0x65, pcmpgtw) \
	X(0x66, pcmpgtd) X(0x67, packuswb) X(0x68, punpckhbw) X(0x69, punpckhwd) X(0x6a, punpckhdq) X(0x6b, packssdw) \
	X(0x74, pcmpeqb) X(0x75, pcmpeqw) X(0x76, pcmpeqd) X(0xd1, psrlw) X(0xd2, psrld) X(0xd3, psrlq) X(0xd4, paddq) \
	X(0xd5, pmullw) X(0xd8, psubusb) X(0xd9, psubusw) X(0xda, pminub) X(0xdb, pand) X(0xdc, paddusb) X(0xdd, paddusw) \
	X(0xde, pmaxub) X(0xdf, pandn) X(0xe0, pavgb) X(0xe1, psraw) X(0xe2, psrad) X(0xe3, pavgw) X(0xe4, pmulhuw) \
	X(0xe5, pmulhw) X(0xe8, psubsb) X(0xe9, psubsw) X(0xea, pminsw) X(0xeb, por) X(0xec, paddsb) X(0xed, paddsw) \
	X(0xee, pmaxsw) X(0xef, pxor) X(0xf1, psllw) X(0xf2, pslld) X(0xf3, psllq) X(0xf4, pmuludq) X(0xf5, pmaddwd) \
	X(0xf6, psadbw) X(0xf8, psubb) X(0xf9, psubw) X(0xfa, psubd) X(0xfb, psubq) X(0xfc, paddb) X(0xfd, paddw) X(0xfe, paddd)

#define MMX_OP(opc, mn) \
	static const struct op *mmx_##mn(struct cpu *c, const struct op *o) \
	{ \
		u64 s, d; \
		if (unlikely(c->fx.fsw & 0x80)) \
			soft_raise(c, o, EXC_MF); \
		s = o->y & 0x100 ? 0 : mmx_src(c, o); \
		mmx_enter(c, o); \
		if (o->y & 0x100) \
			s = mmx_src(c, o); \
		d = c->fx.st[o->r0 & 7].man; \
		asm volatile("movq %0, %%mm0\n\t" #mn " %1, %%mm0\n\tmovq %%mm0, %0\n\temms" \
			     : "+m"(d) : "m"(s) : "mm0"); \
		mmx_set(c, o->r0, d); \
		NEXT; \
	}
MMX_LIST(MMX_OP)

/* shifts by immediate: o->r0 = group member */
static const struct op *mmx_shift(struct cpu *c, const struct op *o)
{
	unsigned bits = o->x == 0x71 ? 16 : o->x == 0x72 ? 32 : 64, k = (unsigned)o->imm;
	u64 v, r = 0;

	mmx_enter(c, o);
	v = c->fx.st[o->r1 & 7].man;
	for (unsigned i = 0; i < 64; i += bits) {
		u64 m = bits == 64 ? ~0ULL : (1ULL << bits) - 1, e = v >> i & m;

		if (o->r0 == 4) {
			s64 x = (s64)(e << (64 - bits)) >> (64 - bits);

			e = (u64)(x >> (k < bits ? k : bits - 1)) & m;
		} else if (k >= bits) {
			e = 0;
		} else {
			e = (o->r0 == 2 ? e >> k : e << k) & m;
		}
		r |= e << i;
	}
	mmx_set(c, o->r1, r);
	NEXT;
}

static const struct op *mmx_load(struct cpu *c, const struct op *o) /* movq mm, mm/m64 */
{
	u64 v = 0;

	if (!(o->y & 0x100))
		v = mmx_src(c, o);
	mmx_enter(c, o);
	mmx_set(c, o->r0, o->y & 0x100 ? mmx_src(c, o) : v);
	NEXT;
}

static const struct op *mmx_store(struct cpu *c, const struct op *o) /* movq mm/m64, mm; movntq */
{
	if (o->y & 0x100) {
		mmx_enter(c, o);
		mmx_set(c, o->r1, c->fx.st[o->r0 & 7].man);
		NEXT;
	}
	u64 ea = EA(o);

	soft_probe_w(c, o, ea, 8);
	mmx_enter(c, o);
	soft_st(c, o, ea, 8, c->fx.st[o->r0 & 7].man);
	NEXT;
}

static const struct op *mmx_movd(struct cpu *c, const struct op *o) /* 6e, 7e */
{
	unsigned n = o->y & 0xff;

	if (o->x == 0x6e) {
		u64 v = o->y & 0x100 ? R64(SLOT(o->r1)) : soft_ld(c, o, EA(o), n);

		mmx_enter(c, o);
		mmx_set(c, o->r0, n == 8 ? v : (u32)v);
	} else if (o->y & 0x100) {
		mmx_enter(c, o);
		R64(SLOT(o->r1)) = n == 8 ? c->fx.st[o->r0 & 7].man : (u32)c->fx.st[o->r0 & 7].man;
	} else {
		u64 ea = EA(o);

		soft_probe_w(c, o, ea, n);
		mmx_enter(c, o);
		soft_st(c, o, ea, n, c->fx.st[o->r0 & 7].man);
	}
	NEXT;
}

static const struct op *mmx_misc(struct cpu *c, const struct op *o)
{
	u64 v, r;

	switch (o->x) {
	case 0x70: /* pshufw */
		v = o->y & 0x100 ? 0 : mmx_src(c, o);
		mmx_enter(c, o);
		if (o->y & 0x100)
			v = mmx_src(c, o);
		r = 0;
		for (unsigned i = 0; i < 4; i++)
			r |= (v >> (o->imm >> (2 * i) & 3) * 16 & 0xffff) << (16 * i);
		mmx_set(c, o->r0, r);
		break;
	case 0xc4: /* pinsrw */
		v = o->y & 0x100 ? R16(SLOT(o->r1)) : soft_ld(c, o, EA(o), 2);
		mmx_enter(c, o);
		r = c->fx.st[o->r0 & 7].man & ~(0xffffULL << (o->imm & 3) * 16);
		mmx_set(c, o->r0, r | v << (o->imm & 3) * 16);
		break;
	case 0xc5: /* pextrw */
		mmx_enter(c, o);
		R64(SLOT(o->r0)) = c->fx.st[o->r1 & 7].man >> (o->imm & 3) * 16 & 0xffff;
		break;
	case 0xd7: /* pmovmskb */
		mmx_enter(c, o);
		v = c->fx.st[o->r1 & 7].man;
		r = 0;
		for (unsigned i = 0; i < 8; i++)
			r |= (v >> (8 * i + 7) & 1) << i;
		R64(SLOT(o->r0)) = r;
		break;
	case 0xd6: /* movq2dq, movdq2q */
		mmx_enter(c, o);
		if (o->y & 0x400) {
			u64 q[2] = { c->fx.st[o->r1 & 7].man, 0 };

			memcpy(c->fx.xmm[o->r0], q, 16);
		} else {
			memcpy(&v, c->fx.xmm[o->r1], 8);
			mmx_set(c, o->r0, v);
		}
		break;
	case 0xf7: { /* maskmovq */
		u64 ea = EA(o), mask;

		mmx_enter(c, o);
		mask = c->fx.st[o->r1 & 7].man;
		soft_probe_w(c, o, ea, 8); /* all of it, whatever the mask */
		v = c->fx.st[o->r0 & 7].man;
		for (unsigned i = 0; i < 8; i++)
			if (mask >> (8 * i + 7) & 1)
				soft_st(c, o, ea + i, 1, v >> (8 * i) & 0xff);
		break;
	}
	default:
		soft_raise(c, o, EXC_UD);
	}
	NEXT;
}

/* conversions between MMX and SSE registers */
static const struct op *mmx_cvt(struct cpu *c, const struct op *o)
{
	bool pd = o->y & 0x200;
	u8 src[16] __attribute__((aligned(16))) = { 0 }, d[16] __attribute__((aligned(16)));
	u64 r;

	if (o->x == 0x2a) { /* cvtpi2ps, cvtpi2pd: xmm from mm/m64 */
		u64 s = o->y & 0x100 ? 0 : mmx_src(c, o);

		if (o->y & 0x100) /* a memory operand leaves the x87 state alone */
			mmx_enter(c, o);
		if (o->y & 0x100)
			s = mmx_src(c, o);
		memcpy(d, c->fx.xmm[o->r0], 16);
		if (pd)
			asm volatile("movdqa %0, %%xmm0\n\tcvtpi2pd %1, %%xmm0\n\tmovdqa %%xmm0, %0\n\temms" : "+m"(d) : "m"(s) : "xmm0");
		else
			asm volatile("movdqa %0, %%xmm0\n\tcvtpi2ps %1, %%xmm0\n\tmovdqa %%xmm0, %0\n\temms" : "+m"(d) : "m"(s) : "xmm0");
		if (unlikely(c->mxcsr_unmasked))
			soft_fp_check(c, o);
		memcpy(c->fx.xmm[o->r0], d, 16);
		NEXT;
	}
	if (o->y & 0x100)
		memcpy(src, c->fx.xmm[o->r1], 16);
	else if (pd && (EA(o) & 15))
		soft_raise_err(c, o, EXC_GP, 0);
	else
		soft_ld_buf(c, o, EA(o), src, o->y & 0xff);
	mmx_enter(c, o);
#define CVT(mn) asm volatile(#mn " %1, %%mm0\n\tmovq %%mm0, %0\n\temms" : "=m"(r) : "m"(src) : "mm0")
	if (pd && o->x == 0x2c)
		CVT(cvttpd2pi);
	else if (pd)
		CVT(cvtpd2pi);
	else if (o->x == 0x2c)
		CVT(cvttps2pi);
	else
		CVT(cvtps2pi);
	if (unlikely(c->mxcsr_unmasked))
		soft_fp_check(c, o);
	mmx_set(c, o->r0, r);
	NEXT;
}

H(emms_do, if (unlikely(c->fx.fsw & 0x80)) soft_raise(c, o, EXC_MF); c->fx.ftw = 0; NEXT;)
op_fn *const emms_op = emms_do;

#define MMX_ROW(opc, mn) [opc] = mmx_##mn,
static op_fn *const mmx_rows[256] = {
	MMX_LIST(MMX_ROW)
	[0x6e] = mmx_movd, [0x7e] = mmx_movd, [0x6f] = mmx_load, [0x7f] = mmx_store,
	[0x2a] = mmx_cvt, [0x2c] = mmx_cvt, [0x2d] = mmx_cvt,
	[0x70] = mmx_misc, [0xc4] = mmx_misc, [0xc5] = mmx_misc, [0xd6] = mmx_misc, [0xd7] = mmx_misc,
	[0xe7] = mmx_store, [0xf7] = mmx_misc,
};

op_fn *soft_mmx_find(u8 opc, bool reg, u8 modrm)
{
	unsigned sub = modrm >> 3 & 7;

	if (opc >= 0x71 && opc <= 0x73)
		return reg && (sub == 2 || sub == 6 || (sub == 4 && opc != 0x73)) ? mmx_shift : NULL;
	if (opc == 0xe7 && reg)
		return NULL;
	if ((opc == 0xc5 || opc == 0xd6 || opc == 0xd7 || opc == 0xf7) && !reg)
		return NULL;
	return mmx_rows[opc];
}
