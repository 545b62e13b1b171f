/* op_sys.c - privileged and system instructions. What changes translation, privilege or mode ends its block
 * (the translator puts exit_op behind it). */
#include "flags.h"
#include "ops.h"

/* Handlers here have locals whose address is taken, so gcc makes no tail call of their NEXT, and the stack would grow
 * with every instruction: they go back to run_ops() instead. */
#undef NEXT
#define NEXT return o + 1
#include "sizes.h"

/* macro tables, a handler a line */
/* clang-format off */

#define NEED_CPL0 \
	do { \
		if (unlikely(c->cpl)) \
			soft_raise_err(c, o, EXC_GP, 0); \
	} while (0)

/* leave the block after this instruction */
#define LEAVE \
	do { \
		c->icount += o->ord + 1u; \
		RIP += NEXT_OFF(o); \
		return NULL; \
	} while (0)

H(hlt_do, NEED_CPL0; c->halted = 1; LEAVE;)
op_fn *const hlt_op = hlt_do;

H(cli_do, if (unlikely(c->cpl > (c->eflags & EFL_IOPL) >> 12)) soft_raise_err(c, o, EXC_GP, 0);
  c->eflags &= ~EFL_IF; NEXT;)
op_fn *const cli_op = cli_do;

/* interrupts stay off for one more instruction: only matters where one waits */
H(sti_do, if (unlikely(c->cpl > (c->eflags & EFL_IOPL) >> 12)) soft_raise_err(c, o, EXC_GP, 0);
  bool was = c->eflags & EFL_IF; c->eflags |= EFL_IF;
  if (unlikely(!was && (c->irq_wait || atomic_load_explicit(&c->attn, memory_order_relaxed)))) {
	c->inhibit = 1;
	if (c->irq_wait) soft_attn(c, ATTN_INTR);
	LEAVE;
  }
  NEXT;)
op_fn *const sti_op = sti_do;

H(cpuid_do, u32 out[4]; soft_cpuid(c, (u32)c->r[X86_RAX], (u32)c->r[X86_RCX], out);
  c->r[X86_RAX] = out[0]; c->r[X86_RBX] = out[1]; c->r[X86_RCX] = out[2]; c->r[X86_RDX] = out[3]; NEXT;)
op_fn *const cpuid_op = cpuid_do;

#define CR4_TSD 4u
static u64 tsc_now(struct cpu *c, const struct op *o)
{
	if (c->cpl && (c->cr4 & CR4_TSD))
		soft_raise_err(c, o, EXC_GP, 0);
	if (c->sv->icount) /* time inside the block too, so that a spin on the TSC ends */
		return (c->icount + o->ord) * SOFT_ICOUNT_NS + c->icount_base + c->tsc_offset;
	return soft_tsc(c);
}
H(rdtsc_do, u64 t = tsc_now(c, o); c->r[X86_RAX] = (u32)t; c->r[X86_RDX] = t >> 32; NEXT;)
H(rdtscp_do, u64 t = tsc_now(c, o); c->r[X86_RAX] = (u32)t; c->r[X86_RDX] = t >> 32;
  c->r[X86_RCX] = (u32)c->tsc_aux; NEXT;)
op_fn *const rdtsc_op = rdtsc_do;
op_fn *const rdtscp_op = rdtscp_do;
H(rdpmc_do, soft_raise_err(c, o, EXC_GP, 0);)
op_fn *const rdpmc_op = rdpmc_do;

static const struct op *rdmsr_do(struct cpu *c, const struct op *o)
{
	u64 v = 0;

	NEED_CPL0;
	if (!soft_msr_read(c, (u32)c->r[X86_RCX], &v))
		soft_raise_err(c, o, EXC_GP, 0);
	c->r[X86_RAX] = (u32)v;
	c->r[X86_RDX] = v >> 32;
	NEXT;
}
op_fn *const rdmsr_op = rdmsr_do;
H(wrmsr_do, NEED_CPL0;
  if (!soft_msr_write(c, (u32)c->r[X86_RCX], (u32)c->r[X86_RAX] | c->r[X86_RDX] << 32))
	soft_raise_err(c, o, EXC_GP, 0);
  NEXT;)
op_fn *const wrmsr_op = wrmsr_do;

/* mov crN: r0 = general register slot, y = control register, x = 1: write */
static const struct op *movcr_do(struct cpu *c, const struct op *o)
{
	u64 v = R64(o->r0);
	const struct intc_ops *ic = c->vm->intc;

	NEED_CPL0;
	if (c->mode != MODE_64)
		v = (u32)v;
	switch (o->y | o->x << 8) {
	case 0:
		v = c->cr0;
		break;
	case 2:
		v = c->cr2;
		break;
	case 3:
		v = c->cr3;
		break;
	case 4:
		v = c->cr4;
		break;
	case 8:
		v = ic && ic->cr8_get ? ic->cr8_get(c->vm->intc_opaque, c->index) : c->cr8;
		break;
	case 0x100:
		soft_set_cr0(c, o, v);
		break;
	case 0x102:
		c->cr2 = v;
		break;
	case 0x103:
		if (c->mode == MODE_64 && (v & c->reserved_pa))
			soft_raise_err(c, o, EXC_GP, 0);
		soft_set_cr3(c, v);
		break;
	case 0x104:
		soft_set_cr4(c, o, v);
		break;
	case 0x108:
		if (v & ~15ULL)
			soft_raise_err(c, o, EXC_GP, 0);
		c->cr8 = (u8)v;
		if (ic && ic->cr8_set)
			ic->cr8_set(c->vm->intc_opaque, c->index, (u8)v);
		if (c->irq_wait)
			soft_attn(c, ATTN_INTR);
		break;
	default:
		soft_raise(c, o, EXC_UD);
	}
	if (!o->x) {
		if (c->mode == MODE_64)
			R64(o->r0) = v;
		else
			R64(o->r0) = (u32)v;
	}
	NEXT;
}
op_fn *const movcr_op = movcr_do;

static const struct op *movdr_do(struct cpu *c, const struct op *o)
{
	unsigned n = o->y;
	u64 v = c->mode == MODE_64 ? R64(o->r0) : R32(o->r0);

	if (n == 4 || n == 5) {
		if (c->cr4 & 8)
			soft_raise(c, o, EXC_UD);
		n += 2;
	}
	NEED_CPL0;
	if (c->dr7 & 0x2000) { /* general detect */
		c->exc_dr6 = 0x2000;
		soft_raise(c, o, EXC_DB);
	}
	if (!o->x) {
		v = n < 4 ? c->dr[n] : n == 6 ? c->dr6 : c->dr7;
		R64(o->r0) = v;
		NEXT;
	}
	if (n >= 6 && v >> 32)
		soft_raise_err(c, o, EXC_GP, 0);
	if (n < 4)
		c->dr[n] = v;
	else if (n == 6)
		c->dr6 = (v & 0xe00f) | 0xffff0ff0;
	else
		c->dr7 = (v & 0xffff2bff) | 0x400;
	soft_debug_update(c);
	LEAVE;
}
op_fn *const movdr_op = movdr_do;

/* x = 0 gdt, 1 idt */
static const struct op *sgdt_do(struct cpu *c, const struct op *o)
{
	u64 ea = EA(o), base = o->x ? c->idt_base : c->gdt_base;

	soft_probe_w(c, o, ea, c->mode == MODE_64 ? 10 : 6);
	soft_st(c, o, ea, 2, o->x ? c->idt_limit : c->gdt_limit);
	soft_st(c, o, ea + 2, c->mode == MODE_64 ? 8 : 4, base);
	NEXT;
}
op_fn *const sgdt_op = sgdt_do;

static const struct op *lgdt_do(struct cpu *c, const struct op *o)
{
	u64 ea = EA(o), base;
	u16 limit;

	NEED_CPL0;
	limit = (u16)soft_ld(c, o, ea, 2);
	base = soft_ld(c, o, ea + 2, c->mode == MODE_64 ? 8 : 4);
	if (c->mode != MODE_64 && o->y == 2)
		base &= 0xffffff;
	if ((s64)(base << 16) >> 16 != (s64)base)
		soft_raise_err(c, o, EXC_GP, 0);
	if (o->x) {
		c->idt_base = base;
		c->idt_limit = limit;
	} else {
		c->gdt_base = base;
		c->gdt_limit = limit;
	}
	NEXT;
}
op_fn *const lgdt_op = lgdt_do;

/* value to a register (y bytes, r0) or a 16-bit memory operand (x & 0x80) */
static void put_rm(struct cpu *c, const struct op *o, u64 v)
{
	if (o->x & 0x80)
		soft_st(c, o, EA(o), 2, v);
	else if (o->y == 2)
		R16(o->r0) = (u16)v;
	else if (o->y == 4)
		R64(o->r0) = (u32)v;
	else
		R64(o->r0) = v;
}

static u16 get_rm16(struct cpu *c, const struct op *o)
{
	return o->x & 0x80 ? (u16)soft_ld(c, o, EA(o), 2) : R16(o->r0);
}

H(smsw_do, put_rm(c, o, c->cr0); NEXT;)
op_fn *const smsw_op = smsw_do;
H(lmsw_do, NEED_CPL0; u64 v = get_rm16(c, o);
  soft_set_cr0(c, o, (c->cr0 & ~0xeULL) | (v & 0xf)); NEXT;)
op_fn *const lmsw_op = lmsw_do;
H(invlpg_do, NEED_CPL0; soft_tlb_invlpg(c, EA(o)); NEXT;)
op_fn *const invlpg_op = invlpg_do;
H(invd_do, NEED_CPL0; NEXT;)
op_fn *const invd_op = invd_do;
H(clts_do, NEED_CPL0; c->cr0 &= ~8ULL; soft_mode_update(c); NEXT;)
op_fn *const clts_op = clts_do;

static const struct op *syscall_do(struct cpu *c, const struct op *o)
{
	u64 next = RIP + NEXT_OFF(o);

	if (!(c->efer & 1))
		soft_raise(c, o, EXC_UD);
	if (c->mode != MODE_64 && !(c->efer & 0x400))
		soft_raise(c, o, EXC_UD);
	c->r[X86_RCX] = next;
	c->r[11] = soft_eflags(c) & ~EFL_RF;
	RIP = c->mode == MODE_64 ? c->lstar : c->cstar;
	soft_eflags_set(c, soft_eflags(c) & ~(u32)c->fmask & ~EFL_RF);
	u16 sel = (u16)(c->star >> 32) & 0xfffc;
	soft_set_cs_flat(c, sel, 0, true);
	soft_set_ss_flat(c, sel + 8, 0);
	c->cpl = 0;
	c->icount += o->ord + 1u;
	soft_mode_update(c);
	GOTO_RIP;
}
op_fn *const sysc_op = syscall_do;

/* y = 8: to 64-bit code */
static const struct op *sysret_do(struct cpu *c, const struct op *o)
{
	u16 sel = (u16)(c->star >> 48);

	if (!(c->efer & 1) || c->mode != MODE_64)
		soft_raise(c, o, EXC_UD);
	NEED_CPL0;
	if (o->y == 8) {
		if ((s64)(c->r[X86_RCX] << 16) >> 16 != (s64)c->r[X86_RCX])
			soft_raise_err(c, o, EXC_GP, 0);
		soft_set_cs_flat(c, sel + 16, 3, true);
		RIP = c->r[X86_RCX];
	} else {
		soft_set_cs_flat(c, sel, 3, false);
		RIP = (u32)c->r[X86_RCX];
	}
	soft_set_ss_flat(c, (u16)((sel + 8) | 3), 3);
	soft_eflags_set(c, (u32)c->r[11] & EFL_ALL_BITS & ~EFL_RF);
	c->cpl = 3;
	c->icount += o->ord + 1u;
	soft_mode_update(c);
	if (unlikely(c->eflags & EFL_TF) || (c->irq_wait && (c->eflags & EFL_IF))) {
		soft_attn(c, ATTN_INTR);
		return NULL;
	}
	GOTO_RIP;
}
op_fn *const sysret_op = sysret_do;

H(swapgs_do, NEED_CPL0; if (c->mode != MODE_64) soft_raise(c, o, EXC_UD);
  u64 t = c->kernel_gs; c->kernel_gs = c->seg[X86_GS].base;
  c->seg[X86_GS].base = c->r[S_SEG + X86_GS] = t; NEXT;)
op_fn *const swapgs_op = swapgs_do;

/* x = 1 stac, 0 clac */
H(stac_do, if (unlikely(c->cpl || !(c->cr4 >> 21 & 1))) soft_raise(c, o, EXC_UD);
  if (o->x) c->eflags |= EFL_AC; else c->eflags &= ~EFL_AC; soft_mmu_select(c); NEXT;)
op_fn *const stac_op = stac_do;

#define NEED_PROT \
	do { \
		if (!(c->cr0 & 1) || (c->eflags & EFL_VM)) \
			soft_raise(c, o, EXC_UD); \
	} while (0)
/* x & 1: task register */
H(lldt_do, NEED_PROT; NEED_CPL0; u16 s = get_rm16(c, o);
  if (o->x & 1) soft_ltr(c, o, s); else soft_lldt(c, o, s); NEXT;)
H(sldt_do, NEED_PROT; put_rm(c, o, c->seg[o->x & 1 ? X86_TR : X86_LDTR].sel); NEXT;)
op_fn *const lldt_op = lldt_do;
op_fn *const sldt_op = sldt_do;

static void zf_only(struct cpu *c, bool zf)
{
	flags_set_all(c, (soft_eflags(c) & EFL_ARITH & ~EFL_ZF) | (zf ? EFL_ZF : 0));
}

/* seg_visible() - may the current level see the descriptor? */
static bool seg_visible(struct cpu *c, const struct op *o, u16 sel, u64 *d)
{
	unsigned dpl;

	if (!(sel & ~3u) || !soft_desc_read(c, o, sel, d, NULL))
		return false;
	dpl = *d >> 45 & 3;
	if ((*d >> 40 & 0x1c) == 0x1c) /* conforming code */
		return true;
	return dpl >= c->cpl && dpl >= (sel & 3u);
}

/* x & 1: verw */
static const struct op *verr_do(struct cpu *c, const struct op *o)
{
	u64 d = 0;
	bool ok;

	NEED_PROT;
	ok = seg_visible(c, o, get_rm16(c, o), &d) && (d >> 44 & 1);
	if (o->x & 1)
		ok = ok && (d >> 40 & 0xa) == 2;
	else
		ok = ok && (d >> 40 & 0xa) != 8;
	zf_only(c, ok);
	NEXT;
}
op_fn *const verr_op = verr_do;

/* r1 = destination register; x & 1: lsl */
static const struct op *lar_do(struct cpu *c, const struct op *o)
{
	u64 d = 0, v;
	unsigned type;
	bool ok;

	NEED_PROT;
	ok = seg_visible(c, o, get_rm16(c, o), &d);
	type = d >> 40 & 0x1f;
	if (ok && type < 16) {
		bool lm = c->efer & 0x400;

		ok = type == 2 || type == 9 || type == 0xb || (!lm && (type == 1 || type == 3));
		if (!(o->x & 1))
			ok = ok || type == 0xc || (!lm && (type == 4 || type == 5));
	}
	if (ok) {
		v = o->x & 1 ? (d & 0xffff) | (d >> 32 & 0xf0000) : d >> 32 & 0xffff00;
		if ((o->x & 1) && (d >> 55 & 1))
			v = v << 12 | 0xfff;
		if (o->y == 2)
			R16(o->r1) = (u16)v;
		else
			R64(o->r1) = v;
	}
	zf_only(c, ok);
	NEXT;
}
op_fn *const lar_op = lar_do;

/* mov sreg, r/m: r1 = segment number; mov r/m, sreg */
H(movsr_do, u16 s = get_rm16(c, o); soft_seg_load(c, o, o->r1, s);
  if (o->r1 == X86_SS) { c->inhibit = 1; LEAVE; } NEXT;)
H(movrs_do, put_rm(c, o, c->seg[o->r1].sel); NEXT;)
op_fn *const movsr_op = movsr_do;
op_fn *const movrs_op = movrs_do;

static u64 sys_sp_mask(const struct cpu *c)
{
	return c->mode == MODE_64 ? ~0ULL : c->stack32 ? 0xffffffffULL : 0xffffULL;
}
H(pushs_do, u64 m = sys_sp_mask(c); u64 sp = (c->r[X86_RSP] - o->y) & m;
  soft_st(c, o, soft_seg_ea(c, o, X86_SS, sp, o->y, true), o->y, c->seg[o->r1].sel);
  c->r[X86_RSP] = m == 0xffff ? (c->r[X86_RSP] & ~m) | sp : sp; NEXT;)
H(pops_do, u64 m = sys_sp_mask(c); u64 sp = c->r[X86_RSP] & m;
  u16 s = (u16)soft_ld(c, o, soft_seg_ea(c, o, X86_SS, sp, o->y, false), o->y);
  soft_seg_load(c, o, o->r1, s); sp = (sp + o->y) & m;
  c->r[X86_RSP] = m == 0xffff ? (c->r[X86_RSP] & ~m) | sp : sp;
  if (o->r1 == X86_SS) { c->inhibit = 1; LEAVE; } NEXT;)
op_fn *const pushs_op = pushs_do;
op_fn *const pops_op = pops_do;

/* lds and so on: r0 register, r1 segment, y operand size */
H(lds_do, u64 v = soft_ld(c, o, EA(o), o->y); u16 s = (u16)soft_ld(c, o, EA(o) + o->y, 2);
  soft_seg_load(c, o, o->r1, s);
  if (o->y == 2) R16(o->r0) = (u16)v; else if (o->y == 4) R64(o->r0) = (u32)v; else R64(o->r0) = v; NEXT;)
op_fn *const lds_op = lds_do;

/* hypercalls: none is offered beyond what the CPUID leaf promises */
H(vmcall_do, c->r[X86_RAX] = (u64)-1000; NEXT;)
op_fn *const vmcall_op = vmcall_do;

/* x: 0 rdfsbase 1 rdgsbase 2 wrfsbase 3 wrgsbase */
H(fsgsbase_do, if (!(c->cr4 >> 16 & 1)) soft_raise(c, o, EXC_UD);
  unsigned s = o->x & 1 ? X86_GS : X86_FS;
  if (o->x & 2) {
	u64 v = o->y == 8 ? R64(o->r0) : R32(o->r0);
	if ((s64)(v << 16) >> 16 != (s64)v) soft_raise_err(c, o, EXC_GP, 0);
	c->seg[s].base = c->r[S_SEG + s] = v;
  } else {
	R64(o->r0) = o->y == 8 ? c->seg[s].base : (u32)c->seg[s].base;
  }
  NEXT;)
op_fn *const fsgsbase_op = fsgsbase_do;

H(arpl_do, NEED_PROT; u16 d = get_rm16(c, o); unsigned rpl = R16(o->r1) & 3; bool z = (d & 3u) < rpl;
  if (z) { d = (u16)((d & ~3u) | rpl); if (o->x & 0x80) soft_st(c, o, EA(o), 2, d); else R16(o->r0) = d; }
  zf_only(c, z); NEXT;)
op_fn *const arpl_op = arpl_do;
H(monitor_do, soft_raise(c, o, EXC_UD);)
op_fn *const monitor_op = monitor_do;
H(pause_do, c->icount += o->ord + 1u; RIP += NEXT_OFF(o); GOTO_RIP;)
op_fn *const pause_op = pause_do;
