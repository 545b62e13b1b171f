/* seg.c - segment registers, descriptor tables, far transfers, and what follows from them: the mode
 * of the code, the privilege level, which TLB and jump cache tags are in force.
 * Spec: SDM vol. 3, chapters 3, 5 and 7. Task gates and hardware task switches raise #GP: long mode
 * has none, and no system of the last decades uses them.
 */
#include "soft.h"

#define CR0_PE	   1ULL
#define CR0_EM	   4ULL
#define CR0_TS	   8ULL
#define CR4_OSFXSR (1ULL << 9)
#define EFER_LMA   (1ULL << 10)

#define ATTR_TYPE     0xf
#define ATTR_S	      0x10
#define ATTR_DPL(a)   (((a) >> 5) & 3)
#define ATTR_P	      0x80
#define ATTR_UNUSABLE 0x100
#define ATTR_L	      0x2000
#define ATTR_DB	      0x4000
#define ATTR_G	      0x8000

void soft_mode_update(struct cpu *c)
{
	const struct x86_seg *cs = &c->seg[X86_CS];

	if ((c->efer & EFER_LMA) && (cs->attr & ATTR_L))
		c->mode = MODE_64;
	else
		c->mode = cs->attr & ATTR_DB ? MODE_32 : MODE_16;
	c->stack32 = !!(c->seg[X86_SS].attr & ATTR_DB);
	c->fp_ok = !(c->cr0 & (CR0_EM | CR0_TS));
	c->sse_off = !c->fp_ok || !(c->cr4 & CR4_OSFXSR);
	c->jctx = c->code_epoch[c->cpl == 3] << 4 | (u64)(c->cpl == 3) << 3 | (u64)c->fp_ok << 2 |
		  c->mode;
	soft_mmu_select(c);
}

void soft_seg_cache(struct cpu *c, unsigned seg, u16 sel, u64 base, u32 limit, u16 attr)
{
	c->seg[seg] = (struct x86_seg){ base, limit, sel, attr };
	if (seg < 6)
		c->r[S_SEG + seg] = base;
}

void soft_set_cs_flat(struct cpu *c, u16 sel, unsigned dpl, bool l)
{
	soft_seg_cache(c, X86_CS, (u16)((sel & ~3) | dpl), 0, 0xffffffff,
		       (u16)(0x8000 | (l ? ATTR_L : ATTR_DB) | ATTR_P | dpl << 5 | ATTR_S | 0xb));
}

void soft_set_ss_flat(struct cpu *c, u16 sel, unsigned dpl)
{
	soft_seg_cache(c, X86_SS, sel, 0, 0xffffffff,
		       (u16)(0xc000 | ATTR_P | dpl << 5 | ATTR_S | 3));
}

/* soft_seg_ea() - linear address of seg:off in legacy modes, checked; wraps at 4 GiB. */
u64 soft_seg_ea(struct cpu *c, const struct op *o, unsigned seg, u64 off, unsigned size, bool write)
{
	const struct x86_seg *s = &c->seg[seg];
	unsigned nr = seg == X86_SS ? EXC_SS : EXC_GP;

	if (c->mode == MODE_64)
		return off + (seg >= X86_FS ? s->base : 0);
	if (c->cr0 & CR0_PE && !(c->eflags & EFL_VM)) {
		if (s->attr & ATTR_UNUSABLE || !(s->attr & ATTR_P))
			soft_raise_err(c, o, nr, 0);
		if (write && ((s->attr & 8) || !(s->attr & 2)))
			soft_raise_err(c, o, nr, 0);
		if (!write && (s->attr & 0xa) == 8) /* execute-only code */
			soft_raise_err(c, o, nr, 0);
	}
	u32 a = (u32)off, last = a + size - 1;

	if ((s->attr & 0xc) == 4) { /* expand-down data */
		u32 top = s->attr & ATTR_DB ? 0xffffffff : 0xffff;

		if (a <= s->limit || last > top || last < a)
			soft_raise_err(c, o, nr, 0);
	} else if (last > s->limit || last < a) {
		soft_raise_err(c, o, nr, 0);
	}
	return (u32)(s->base + a);
}

/* soft_desc_read() - 8 bytes of the descriptor of @sel (16 in @hi's case). false: outside its
 * table. */
bool soft_desc_read(struct cpu *c, const struct op *o, u16 sel, u64 *lo, u64 *hi)
{
	u64 base = sel & 4 ? c->seg[X86_LDTR].base : c->gdt_base;
	u32 limit = sel & 4 ? c->seg[X86_LDTR].limit : c->gdt_limit;
	u32 off = sel & ~7u;

	if ((sel & 4) && (c->seg[X86_LDTR].attr & ATTR_UNUSABLE))
		return false;
	if (off + (hi ? 15 : 7) > limit)
		return false;
	*lo = soft_ld_sys(c, o, base + off, 8);
	if (hi)
		*hi = soft_ld_sys(c, o, base + off + 8, 8);
	return true;
}

static u16 desc_attr(u64 d)
{
	return (u16)((d >> 40) & 0xf0ff);
}

static u64 desc_base(u64 d)
{
	return ((d >> 16) & 0xffffff) | ((d >> 32) & 0xff000000);
}

static u32 desc_limit(u64 d)
{
	u32 l = (u32)((d & 0xffff) | ((d >> 32) & 0xf0000));

	return d >> 55 & 1 ? l << 12 | 0xfff : l;
}

static void desc_accessed(struct cpu *c, const struct op *o, u16 sel, u64 d)
{
	u64 base = sel & 4 ? c->seg[X86_LDTR].base : c->gdt_base;

	if (!(d >> 40 & 1))
		soft_st_sys(c, o, base + (sel & ~7u) + 5, 1, (d >> 40 & 0xff) | 1);
}

static bool seg_real(const struct cpu *c)
{
	return !(c->cr0 & CR0_PE) || (c->eflags & EFL_VM);
}

/* soft_seg_load() - MOV/POP/LxS to a data segment register or SS. */
void soft_seg_load(struct cpu *c, const struct op *o, unsigned seg, u16 sel)
{
	u64 d;
	u16 attr;
	u32 err = sel & ~3u;
	unsigned rpl = sel & 3;

	if (seg_real(c)) {
		struct x86_seg *s = &c->seg[seg];

		soft_seg_cache(c, seg, sel, (u64)sel << 4, c->eflags & EFL_VM ? 0xffff : s->limit,
			       c->eflags & EFL_VM ? 0xf3 : (u16)(s->attr & ~ATTR_UNUSABLE));
		if (seg == X86_SS)
			c->stack32 = !!(s->attr & ATTR_DB);
		return;
	}
	if (!(sel & ~3u)) {
		if (seg == X86_SS && (c->mode != MODE_64 || c->cpl == 3 || rpl != c->cpl))
			soft_raise_err(c, o, EXC_GP, 0);
		soft_seg_cache(c, seg, sel, 0, 0,
			       seg == X86_SS ? (u16)(ATTR_UNUSABLE | ATTR_DB | c->cpl << 5)
					     : ATTR_UNUSABLE);
		return;
	}
	if (!soft_desc_read(c, o, sel, &d, NULL))
		soft_raise_err(c, o, EXC_GP, err);
	attr = desc_attr(d);
	if (seg == X86_SS) {
		if (rpl != c->cpl || ATTR_DPL(attr) != c->cpl || !(attr & ATTR_S) ||
		    (attr & 0xa) != 2)
			soft_raise_err(c, o, EXC_GP, err);
		if (!(attr & ATTR_P))
			soft_raise_err(c, o, EXC_SS, err);
	} else {
		if (!(attr & ATTR_S) || (attr & 0xa) == 8)
			soft_raise_err(c, o, EXC_GP, err);
		if ((attr & 0xc) != 0xc && (ATTR_DPL(attr) < c->cpl || ATTR_DPL(attr) < rpl))
			soft_raise_err(c, o, EXC_GP, err);
		if (!(attr & ATTR_P))
			soft_raise_err(c, o, EXC_NP, err);
	}
	desc_accessed(c, o, sel, d);
	soft_seg_cache(c, seg, sel, desc_base(d), desc_limit(d), attr | 1);
	if (seg == X86_SS)
		c->stack32 = !!(attr & ATTR_DB);
}

void soft_lldt(struct cpu *c, const struct op *o, u16 sel)
{
	u64 d, hi = 0;
	bool lm = c->efer & EFER_LMA;

	if (!(sel & ~3u)) {
		soft_seg_cache(c, X86_LDTR, sel, 0, 0, ATTR_UNUSABLE | 2);
		return;
	}
	if ((sel & 4) || !soft_desc_read(c, o, sel, &d, lm ? &hi : NULL) ||
	    (desc_attr(d) & 0x1f) != 2)
		soft_raise_err(c, o, EXC_GP, sel & ~3u);
	if (!(desc_attr(d) & ATTR_P))
		soft_raise_err(c, o, EXC_NP, sel & ~3u);
	soft_seg_cache(c, X86_LDTR, sel, desc_base(d) | hi << 32, desc_limit(d), desc_attr(d));
}

void soft_ltr(struct cpu *c, const struct op *o, u16 sel)
{
	u64 d, hi = 0;
	bool lm = c->efer & EFER_LMA;

	if (!(sel & ~3u))
		soft_raise_err(c, o, EXC_GP, 0);
	if ((sel & 4) || !soft_desc_read(c, o, sel, &d, lm ? &hi : NULL) ||
	    ((desc_attr(d) & 0x1f) != 9 && (lm || (desc_attr(d) & 0x1f) != 1)))
		soft_raise_err(c, o, EXC_GP, sel & ~3u);
	if (!(desc_attr(d) & ATTR_P))
		soft_raise_err(c, o, EXC_NP, sel & ~3u);
	soft_st_sys(c, o, c->gdt_base + (sel & ~7u) + 5, 1, (d >> 40 & 0xff) | 2);
	soft_seg_cache(c, X86_TR, sel, desc_base(d) | hi << 32, desc_limit(d), desc_attr(d) | 2);
}

static bool canonical(u64 va)
{
	return (s64)(va << 16) >> 16 == (s64)va;
}

/* far_code() - check code descriptor @d of @sel for a jump or call at the same privilege (@ret: a
 * return to
 * @rpl) and load CS. */
static void far_code(struct cpu *c, const struct op *o, u16 sel, u64 d, u64 rip, unsigned new_cpl,
		     bool ret)
{
	u16 attr = desc_attr(d);
	u32 err = sel & ~3u;
	unsigned dpl = ATTR_DPL(attr), rpl = sel & 3;
	bool conforming = attr & 4;

	if (!(attr & ATTR_S) || !(attr & 8))
		soft_raise_err(c, o, EXC_GP, err);
	if (ret) {
		if (conforming ? dpl > rpl : dpl != rpl)
			soft_raise_err(c, o, EXC_GP, err);
	} else if (conforming ? dpl > c->cpl : (dpl != c->cpl || rpl > c->cpl)) {
		soft_raise_err(c, o, EXC_GP, err);
	}
	if (!(attr & ATTR_P))
		soft_raise_err(c, o, EXC_NP, err);
	if ((c->efer & EFER_LMA) && (attr & ATTR_L)) {
		if ((attr & ATTR_DB))
			soft_raise_err(c, o, EXC_GP, err);
		if (!canonical(rip))
			soft_raise_err(c, o, EXC_GP, 0);
	} else if ((u32)rip > desc_limit(d)) {
		soft_raise_err(c, o, EXC_GP, 0);
	}
	desc_accessed(c, o, sel, d);
	soft_seg_cache(c, X86_CS, (u16)((sel & ~3u) | new_cpl), desc_base(d), desc_limit(d),
		       attr | 1);
}

void soft_far_jmp(struct cpu *c, const struct op *o, u16 sel, u64 rip, unsigned osz)
{
	u64 d;

	if (osz == 2)
		rip = (u16)rip;
	else if (osz == 4)
		rip = (u32)rip;
	if (seg_real(c)) {
		struct x86_seg *s = &c->seg[X86_CS];

		if (rip > s->limit)
			soft_raise_err(c, o, EXC_GP, 0);
		soft_seg_cache(c, X86_CS, sel, (u64)sel << 4, s->limit, s->attr);
		c->r[S_RIP] = rip;
		soft_mode_update(c);
		return;
	}
	if (!(sel & ~3u))
		soft_raise_err(c, o, EXC_GP, 0);
	if (!soft_desc_read(c, o, sel, &d, NULL))
		soft_raise_err(c, o, EXC_GP, sel & ~3u);
	far_code(c, o, sel, d, rip, c->cpl, false);
	c->r[S_RIP] = rip;
	soft_mode_update(c);
}

static u64 sp_mask(const struct cpu *c)
{
	return c->mode == MODE_64 ? ~0ULL : c->stack32 ? 0xffffffffULL : 0xffffULL;
}

static void sp_set(struct cpu *c, u64 sp)
{
	u64 m = sp_mask(c);

	c->r[X86_RSP] = m == 0xffff ? (c->r[X86_RSP] & ~m) | (sp & m) : sp & m;
}

void soft_far_call(struct cpu *c, const struct op *o, u16 sel, u64 rip, unsigned osz)
{
	u64 sp = c->r[X86_RSP], m = sp_mask(c), ret = c->r[S_RIP] + o->off + o->len;
	u16 old_cs = c->seg[X86_CS].sel;
	u64 a1 = (sp - osz) & m, a2 = (sp - 2 * osz) & m;
	u64 l1 = soft_seg_ea(c, o, X86_SS, a1, osz, true),
	    l2 = soft_seg_ea(c, o, X86_SS, a2, osz, true);

	soft_probe_w(c, o, l1, osz);
	soft_probe_w(c, o, l2, osz);
	unsigned idx = c->idx;

	soft_far_jmp(c, o, sel, rip, osz);
	(void)idx; /* same privilege: the pages stay writable */
	soft_st(c, NULL, l1, osz, old_cs);
	soft_st(c, NULL, l2, osz, ret);
	c->r[X86_RSP] = m == 0xffff ? (sp & ~m) | a2 : a2;
}

/* seg_null_outer() - a return to an outer level drops data segments that it may not have. */
static void seg_null_outer(struct cpu *c)
{
	static const u8 list[] = { X86_ES, X86_DS, X86_FS, X86_GS };

	for (unsigned i = 0; i < 4; i++) {
		struct x86_seg *s = &c->seg[list[i]];

		if (!(s->attr & ATTR_UNUSABLE) && (s->attr & 0xc) != 0xc &&
		    ATTR_DPL(s->attr) < c->cpl) {
			u64 base = s->base;

			soft_seg_cache(c, list[i], 0, c->mode == MODE_64 ? base : 0, 0,
				       ATTR_UNUSABLE);
		}
	}
}

/* soft_far_ret() - RETF, and the protected-mode half of IRET (@pop from exc.c is 0 there). */
void soft_far_ret(struct cpu *c, const struct op *o, unsigned osz, unsigned pop)
{
	u64 sp = c->r[X86_RSP], m = sp_mask(c), rip, d, nsp = 0;
	u16 sel, nss = 0;

	rip = soft_ld(c, o, soft_seg_ea(c, o, X86_SS, sp & m, osz, false), osz);
	sel = (u16)soft_ld(c, o, soft_seg_ea(c, o, X86_SS, (sp + osz) & m, osz, false), osz);
	if (seg_real(c)) {
		soft_far_jmp(c, o, sel, rip, osz);
		sp_set(c, sp + 2 * osz + pop);
		return;
	}
	if (!(sel & ~3u))
		soft_raise_err(c, o, EXC_GP, 0);
	if (!soft_desc_read(c, o, sel, &d, NULL) || (sel & 3) < c->cpl)
		soft_raise_err(c, o, EXC_GP, sel & ~3u);
	if ((sel & 3) > c->cpl) {
		nsp = soft_ld(c, o, soft_seg_ea(c, o, X86_SS, (sp + 2 * osz + pop) & m, osz, false),
			      osz);
		nss = (u16)soft_ld(
		    c, o, soft_seg_ea(c, o, X86_SS, (sp + 3 * osz + pop) & m, osz, false), osz);
	}
	bool outer = (sel & 3) > c->cpl;

	far_code(c, o, sel, d, rip, sel & 3, true);
	c->r[S_RIP] = rip;
	if (outer) {
		c->cpl = sel & 3;
		soft_mode_update(c);
		soft_seg_load(c, NULL, X86_SS, nss);
		c->r[X86_RSP] = nsp + pop;
		seg_null_outer(c);
	} else {
		soft_mode_update(c);
		sp_set(c, sp + 2 * osz + pop);
	}
	soft_mode_update(c);
}
