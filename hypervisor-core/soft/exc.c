/* exc.c - exceptions and interrupts: raising, delivery through the IVT or IDT, IRET.
 *
 * soft_raise() records the exception and unwinds to the run loop, which delivers it. A fault while
 * delivering becomes a double fault by the SDM's table (vol. 3, 6-5), and one more shuts the vCPU
 * down.
 */
#include "soft.h"

#define CR0_PE	 1ULL
#define EFER_LMA (1ULL << 10)
#define ATTR_P	 0x80

_Noreturn void soft_leave(struct cpu *c, int why)
{
	if (c->rmw_locked) {
		c->rmw_locked = false;
		pthread_mutex_unlock(&c->sv->split_lock);
	}
	longjmp(*c->env, why);
}

_Noreturn void soft_raise(struct cpu *c, const struct op *o, unsigned nr)
{
	c->fault_op = o;
	c->exc_nr = (u8)nr;
	c->exc_has_err = 0;
	c->exc_err = 0;
	soft_leave(c, JMP_EXC);
}

_Noreturn void soft_raise_err(struct cpu *c, const struct op *o, unsigned nr, u32 err)
{
	c->fault_op = o;
	c->exc_nr = (u8)nr;
	c->exc_has_err = 1;
	c->exc_err = err;
	soft_leave(c, JMP_EXC);
}

void soft_fix_rip(struct cpu *c)
{
	const struct op *o = c->fault_op;

	if (!o)
		return;
	c->fault_op = NULL;
	c->r[S_RIP] += o->off;
	c->icount += o->ord;
	if (c->mode != MODE_64)
		c->r[S_RIP] = (u32)c->r[S_RIP];
}

static bool exc_contributory(unsigned nr)
{
	return nr == EXC_DE || (nr >= EXC_TS && nr <= EXC_GP);
}

void soft_deliver_exception(struct cpu *c)
{
	unsigned nr = c->exc_nr, err = c->exc_err;
	bool has_err = c->exc_has_err;

	c->n_exc++;
	if (nr == EXC_PF)
		c->cr2 = c->exc_cr2; /* one that becomes a double fault too */
	if (c->exc_nested) {
		unsigned first = c->exc_nested - 1;

		if (first == EXC_DF) {
			c->shutdown = true;
			return;
		}
		if ((exc_contributory(first) && exc_contributory(nr)) ||
		    (first == EXC_PF && (exc_contributory(nr) || nr == EXC_PF))) {
			nr = EXC_DF;
			err = 0;
			has_err = true;
		}
	}
	if (nr == EXC_DB) {
		c->dr6 = (c->dr6 & ~0xfULL) | c->exc_dr6 | 0xffff0ff0;
		c->dr7 &= ~0x2000ULL;
	}
	if (!(c->cr0 & CR0_PE))
		has_err = false;
	c->exc_nested = (u8)(nr + 1);
	if (nr != EXC_DB && nr != EXC_BP && nr != EXC_OF)
		c->eflags |= EFL_RF; /* faults push RF set */
	soft_interrupt(c, nr, nr == EXC_BP || nr == EXC_OF ? false : false, c->r[S_RIP], has_err,
		       err);
	c->exc_nested = 0;
}

/* int_real() - through the interrupt vector table. */
static void int_real(struct cpu *c, unsigned vector, u64 rip)
{
	u64 sp = c->r[X86_RSP], m = c->stack32 ? 0xffffffffULL : 0xffffULL;
	u32 f = soft_eflags(c);
	u16 ip, cs;

	if (vector * 4u + 3 > c->idt_limit)
		soft_raise_err(c, c->fault_op, EXC_GP, 0);
	ip = (u16)soft_ld_sys(c, c->fault_op, c->idt_base + vector * 4, 2);
	cs = (u16)soft_ld_sys(c, c->fault_op, c->idt_base + vector * 4 + 2, 2);
	u16 vals[3] = { (u16)f, c->seg[X86_CS].sel, (u16)rip };

	for (int i = 0; i < 3; i++) {
		sp = (sp - 2) & m;
		soft_st(c, c->fault_op, soft_seg_ea(c, c->fault_op, X86_SS, sp, 2, true), 2,
			vals[i]);
	}
	c->r[X86_RSP] = (c->r[X86_RSP] & ~m) | sp;
	c->eflags &= ~(EFL_IF | EFL_TF | EFL_AC | EFL_RF);
	soft_seg_cache(c, X86_CS, cs, (u64)cs << 4, c->seg[X86_CS].limit, c->seg[X86_CS].attr);
	c->r[S_RIP] = ip;
	soft_mode_update(c);
}

static u64 tss_ld(struct cpu *c, u32 off, unsigned size, u32 err)
{
	if (off + size - 1 > c->seg[X86_TR].limit)
		soft_raise_err(c, c->fault_op, EXC_TS, err);
	return soft_ld_sys(c, c->fault_op, c->seg[X86_TR].base + off, size);
}

static bool canonical(u64 va)
{
	return (s64)(va << 16) >> 16 == (s64)va;
}

/* soft_interrupt() - deliver @vector. @soft: INT n (gate DPL is checked). May unwind with an
 * exception. */
void soft_interrupt(struct cpu *c, unsigned vector, bool soft, u64 rip, bool has_err, u32 err)
{
	const struct op *o = c->fault_op;
	bool lm = c->efer & EFER_LMA;
	u32 ext = soft ? 0 : 1, gerr = vector * 8 + 2 + ext;
	u64 lo, hi = 0, d, sp, target, rflags = soft_eflags(c);
	unsigned gsize = lm ? 16 : 8, type, dpl, ist;
	u16 sel, old_ss = c->seg[X86_SS].sel, old_cs = c->seg[X86_CS].sel;
	u64 old_sp = c->r[X86_RSP];

	if (!soft && vector < 32 && vector != EXC_NMI && vector != EXC_BP)
		;
	else
		rflags &= ~(u64)EFL_RF;
	if (!(c->cr0 & CR0_PE)) {
		int_real(c, vector, rip);
		return;
	}
	if (c->eflags & EFL_VM) /* virtual-8086 mode is not offered: long mode has none */
		soft_raise_err(c, o, EXC_GP, gerr);
	if ((vector + 1) * gsize - 1 > c->idt_limit)
		soft_raise_err(c, o, EXC_GP, gerr);
	lo = soft_ld_sys(c, o, c->idt_base + vector * gsize, 8);
	if (lm)
		hi = soft_ld_sys(c, o, c->idt_base + vector * gsize + 8, 8);
	type = lo >> 40 & 0x1f;
	dpl = lo >> 45 & 3;
	ist = lm ? lo >> 32 & 7 : 0;
	if (type != 0xe && type != 0xf && (lm || (type != 6 && type != 7)))
		soft_raise_err(c, o, EXC_GP, gerr);
	if (soft && dpl < c->cpl)
		soft_raise_err(c, o, EXC_GP, gerr);
	if (!(lo >> 47 & 1))
		soft_raise_err(c, o, EXC_NP, gerr);
	sel = (u16)(lo >> 16);
	target = (lo & 0xffff) | (lo >> 32 & 0xffff0000);
	if (lm)
		target |= hi << 32;
	else if (!(type & 8))
		target &= 0xffff;
	if (!(sel & ~3u))
		soft_raise_err(c, o, EXC_GP, ext);
	if (!soft_desc_read(c, o, sel, &d, NULL))
		soft_raise_err(c, o, EXC_GP, (sel & ~3u) + ext);
	u16 attr = (u16)(d >> 40 & 0xf0ff);
	unsigned cdpl = attr >> 5 & 3, new_cpl = attr & 4 ? c->cpl : cdpl;

	if (!(attr & 0x10) || !(attr & 8) || cdpl > c->cpl || (lm && (attr & 0x6000) != 0x2000))
		soft_raise_err(c, o, EXC_GP, (sel & ~3u) + ext);
	if (!(attr & ATTR_P))
		soft_raise_err(c, o, EXC_NP, (sel & ~3u) + ext);

	u64 cbase = (d >> 16 & 0xffffff) | (d >> 32 & 0xff000000);
	u32 climit = (u32)((d & 0xffff) | (d >> 32 & 0xf0000));

	if (attr & 0x8000)
		climit = climit << 12 | 0xfff;
	if (lm) {
		u8 cpl = c->cpl;

		if (ist)
			sp = tss_ld(c, 36 + (ist - 1) * 8, 8, (c->seg[X86_TR].sel & ~3u) + ext);
		else if (new_cpl < c->cpl)
			sp = tss_ld(c, 4 + new_cpl * 8, 8, (c->seg[X86_TR].sel & ~3u) + ext);
		else
			sp = old_sp;
		if (!canonical(sp))
			soft_raise_err(c, o, EXC_SS, ext);
		if (!canonical(target))
			soft_raise_err(c, o, EXC_GP, ext);
		sp &= ~15ULL;
		u64 frame[6] = { err, rip, old_cs, rflags, old_sp, old_ss };
		unsigned n = has_err ? 6 : 5;

		/* pushes are at the new privilege */
		c->cpl = (u8)new_cpl;
		u32 ac = c->eflags & EFL_AC;

		c->eflags &= ~EFL_AC;
		soft_mmu_select(c);
		c->cpl = cpl;
		c->eflags |= ac;
		enum tlb_idx idx = c->idx;
		soft_mmu_select(c);
		sp -= n * 8;
		/* downwards, as hardware pushes: CR2 of a fault here is the highest address that has no page */
		for (unsigned i = n; i-- > 0;) {
			u64 v = frame[i + (6 - n)];

			if (idx == TLB_USER)
				soft_st(c, o, sp + i * 8, 8, v);
			else
				soft_st_sys(c, o, sp + i * 8, 8, v);
		}
		if (new_cpl != c->cpl)
			soft_seg_cache(c, X86_SS, (u16)new_cpl, 0, 0,
				       (u16)(0x100 | 0x4000 | new_cpl << 5));
		c->r[X86_RSP] = sp;
	} else {
		unsigned w = type & 8 ? 4 : 2;
		u64 m = c->stack32 ? 0xffffffffULL : 0xffffULL;
		u32 vals[6];
		unsigned n = 0;
		u8 cpl = c->cpl;

		if (new_cpl < cpl) {
			u32 nsp = (u32)tss_ld(c, 4 + new_cpl * 8, 4, c->seg[X86_TR].sel & ~3u);
			u16 nss = (u16)tss_ld(c, 8 + new_cpl * 8, 2, c->seg[X86_TR].sel & ~3u);

			c->cpl = (u8)new_cpl;
			soft_mmu_select(c);
			soft_seg_load(c, o, X86_SS, nss);
			c->r[X86_RSP] = nsp;
			m = c->stack32 ? 0xffffffffULL : 0xffffULL;
			vals[n++] = old_ss;
			vals[n++] = (u32)old_sp;
		}
		vals[n++] = (u32)rflags;
		vals[n++] = old_cs;
		vals[n++] = (u32)rip;
		if (has_err)
			vals[n++] = err;
		sp = c->r[X86_RSP];
		for (unsigned i = 0; i < n; i++) {
			sp = (sp - w) & m;
			soft_st(c, o, soft_seg_ea(c, o, X86_SS, sp, w, true), w, vals[i]);
		}
		c->r[X86_RSP] = m == 0xffff ? (c->r[X86_RSP] & ~m) | sp : sp;
	}
	soft_seg_cache(c, X86_CS, (u16)((sel & ~3u) | new_cpl), cbase, climit, attr | 1);
	c->cpl = (u8)new_cpl;
	c->eflags &= ~(EFL_TF | EFL_NT | EFL_RF | EFL_VM);
	if (!(type & 1))
		c->eflags &= ~EFL_IF;
	c->r[S_RIP] = target;
	soft_mode_update(c);
}

static u32 iret_flags_mask(const struct cpu *c, unsigned osz)
{
	u32 m = EFL_ALL_BITS & ~(EFL_IF | EFL_IOPL);

	if (c->cpl == 0)
		m |= EFL_IOPL;
	if (c->cpl <= (c->eflags & EFL_IOPL) >> 12)
		m |= EFL_IF;
	return osz == 2 ? m & 0xffff : m;
}

/* soft_iret() - the caller counts the instruction and leaves the block. */
void soft_iret(struct cpu *c, const struct op *o, unsigned osz)
{
	u64 sp = c->r[X86_RSP], rip, f, nsp = 0, d = 0;
	u16 cs, ss = 0;
	u32 mask = iret_flags_mask(c, osz);

	c->nmi_masked = false;
	if (c->mode == MODE_64) {
		rip = soft_ld(c, o, sp, osz);
		cs = (u16)soft_ld(c, o, sp + osz, osz);
		f = soft_ld(c, o, sp + 2 * osz, osz);
		nsp = soft_ld(c, o, sp + 3 * osz, osz);
		ss = (u16)soft_ld(c, o, sp + 4 * osz, osz);
	} else {
		u64 m = c->stack32 ? 0xffffffffULL : 0xffffULL;

		if (c->eflags & EFL_NT && c->cr0 & CR0_PE)
			soft_raise_err(c, o, EXC_GP, 0);
		rip = soft_ld(c, o, soft_seg_ea(c, o, X86_SS, sp & m, osz, false), osz);
		cs = (u16)soft_ld(c, o, soft_seg_ea(c, o, X86_SS, (sp + osz) & m, osz, false), osz);
		f = soft_ld(c, o, soft_seg_ea(c, o, X86_SS, (sp + 2 * osz) & m, osz, false), osz);
		if (!(c->cr0 & CR0_PE)) {
			soft_far_jmp(c, o, cs, rip, osz);
			c->r[X86_RSP] =
			    m == 0xffff ? (sp & ~m) | ((sp + 3 * osz) & m) : (sp + 3 * osz) & m;
			soft_eflags_set(c, ((u32)f & mask) | (soft_eflags(c) & ~mask));
			return;
		}
		if ((cs & 3) > c->cpl) {
			nsp = soft_ld(
			    c, o, soft_seg_ea(c, o, X86_SS, (sp + 3 * osz) & m, osz, false), osz);
			ss = (u16)soft_ld(
			    c, o, soft_seg_ea(c, o, X86_SS, (sp + 4 * osz) & m, osz, false), osz);
		} else {
			nsp = m == 0xffff ? (sp & ~m) | ((sp + 3 * osz) & m) : (sp + 3 * osz) & m;
		}
	}
	if (!(cs & ~3u))
		soft_raise_err(c, o, EXC_GP, 0);
	if (!soft_desc_read(c, o, cs, &d, NULL) || (cs & 3) < c->cpl)
		soft_raise_err(c, o, EXC_GP, cs & ~3u);
	u16 attr = (u16)(d >> 40 & 0xf0ff);
	unsigned dpl = attr >> 5 & 3, rpl = cs & 3;
	bool l = (attr & 0x2000) && (c->efer & EFER_LMA);

	if (!(attr & 0x10) || !(attr & 8) || (attr & 4 ? dpl > rpl : dpl != rpl))
		soft_raise_err(c, o, EXC_GP, cs & ~3u);
	if (!(attr & ATTR_P))
		soft_raise_err(c, o, EXC_NP, cs & ~3u);
	if (l && !canonical(rip))
		soft_raise_err(c, o, EXC_GP, 0);
	bool outer = rpl > c->cpl, was64 = c->mode == MODE_64;
	u8 old_cpl = c->cpl;
	u64 sd = 0;

	/* check the stack segment before anything changes */
	if (outer || was64) {
		if (!(ss & ~3u)) {
			if (!l || rpl == 3 || (ss & 3) != rpl)
				soft_raise_err(c, o, EXC_GP, 0);
		} else {
			if (!soft_desc_read(c, o, ss, &sd, NULL))
				soft_raise_err(c, o, EXC_GP, ss & ~3u);
			u16 sa = (u16)(sd >> 40 & 0xf0ff);

			if ((ss & 3) != rpl || !(sa & 0x10) || (sa & 0xa) != 2 ||
			    (sa >> 5 & 3u) != rpl)
				soft_raise_err(c, o, EXC_GP, ss & ~3u);
			if (!(sa & ATTR_P))
				soft_raise_err(c, o, EXC_SS, ss & ~3u);
		}
	}
	u32 limit = (u32)((d & 0xffff) | (d >> 32 & 0xf0000));

	if (attr & 0x8000)
		limit = limit << 12 | 0xfff;
	soft_seg_cache(c, X86_CS, cs, (d >> 16 & 0xffffff) | (d >> 32 & 0xff000000), limit,
		       attr | 1);
	c->r[S_RIP] = l ? rip : (u32)rip;
	soft_eflags_set(c, ((u32)f & mask) | (soft_eflags(c) & ~mask));
	c->cpl = (u8)rpl;
	soft_mode_update(c);
	if (outer || was64) {
		if (!(ss & ~3u)) {
			soft_seg_cache(c, X86_SS, ss, 0, 0, (u16)(0x100 | 0x4000 | rpl << 5));
		} else {
			u32 sl = (u32)((sd & 0xffff) | (sd >> 32 & 0xf0000));
			u16 sa = (u16)(sd >> 40 & 0xf0ff);

			soft_seg_cache(c, X86_SS, ss,
				       (sd >> 16 & 0xffffff) | (sd >> 32 & 0xff000000),
				       sa & 0x8000 ? sl << 12 | 0xfff : sl, sa | 1);
		}
	}
	c->r[X86_RSP] = nsp;
	if (rpl > old_cpl) {
		static const u8 list[] = { X86_ES, X86_DS, X86_FS, X86_GS };

		for (unsigned i = 0; i < 4; i++) {
			struct x86_seg *s = &c->seg[list[i]];

			if (!(s->attr & 0x100) && (s->attr & 0xc) != 0xc &&
			    (s->attr >> 5 & 3u) < rpl)
				soft_seg_cache(c, list[i], 0, s->base, 0, 0x100);
		}
	}
	soft_mode_update(c);
	if ((c->eflags & EFL_IF) && c->irq_wait)
		soft_attn(c, ATTN_INTR);
}
