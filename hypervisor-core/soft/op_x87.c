/* op_x87.c - the x87 unit, FXSAVE, MXCSR: executed by the host's own unit, so exact to the last bit.
 *
 * The guest's state lies in an FXSAVE image. An instruction loads it, executes the very opcode from a table of
 * stubs, and saves it: stack faults, tags, rounding, unmasked responses and all are the hardware's. The host
 * never sees a pending unmasked exception: the guest's own is checked, and raised as #MF, first.
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

/* 512 register forms (D8-DF, C0-FF), 8 bytes each; then 64 memory forms on (%rax). */
asm(".section .text\n"
    ".p2align 4\n"
    "x87_stub_reg:\n"
    ".set i, 0\n"
    ".rept 512\n"
    ".byte 0xf3, 0x0f, 0x1e, 0xfa, 0xd8 + i / 64, 0xc0 + i % 64\n"
    "ret\n"
    "nop\n"
    ".set i, i + 1\n"
    ".endr\n"
    "x87_stub_mem:\n"
    ".set i, 0\n"
    ".rept 64\n"
    ".byte 0xf3, 0x0f, 0x1e, 0xfa, 0xd8 + i / 8, (i % 8) * 8\n"
    "ret\n"
    "nop\n"
    ".set i, i + 1\n"
    ".endr\n"
    ".set i, 0\n" /* and with a 66 prefix: 16-bit environments */
    ".rept 64\n"
    ".byte 0xf3, 0x0f, 0x1e, 0xfa, 0x66, 0xd8 + i / 8, (i % 8) * 8\n"
    "ret\n"
    ".set i, i + 1\n"
    ".endr\n"
    ".previous\n");
extern const u8 x87_stub_reg[] __asm__("x87_stub_reg"), x87_stub_mem[] __asm__("x87_stub_mem");

/* x87_exec() - run one stub on the guest's state. @mem: its operand. Return: host eflags (fcomi, fcmov). */
static u64 x87_exec(struct cpu *c, const u8 *stub, void *mem, u64 eflags)
{
	struct fximg *f = &c->fx;
	u32 mxcsr = f->mxcsr, host;
	u8 area[512] __attribute__((aligned(16)));

	/* only the x87 part: xmm and mxcsr stay as the host has them */
	asm volatile("stmxcsr %0" : "=m"(host));
	memcpy(area, f, 160);
	*(u32 *)(area + 24) = host;
	asm volatile("fxrstor %0\n\t"
		     "pushq %2\n\t"
		     "popfq\n\t"
		     "call *%3\n\t"
		     "pushfq\n\t"
		     "popq %1\n\t"
		     "fxsave %0\n\t"
		     "fninit"
		     : "+m"(area), "=&r"(eflags)
		     : "r"(eflags), "r"(stub), "a"(mem)
		     : "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)",
		       "st(7)", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
		       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	asm volatile("ldmxcsr %0" : : "m"(host));
	u64 fip = f->fip, fdp = f->fdp;
	u16 fop = f->fop;

	memcpy(f, area, 160);
	f->mxcsr = mxcsr;
	f->fip = fip;
	f->fdp = fdp;
	f->fop = fop;
	return eflags;
}

static void x87_pending(struct cpu *c, const struct op *o)
{
	if (unlikely(c->fx.fsw & 0x80))
		soft_raise(c, o, EXC_MF);
}

/* register form: imm = (opcode - D8) * 64 + modrm low six bits; x = 1: does not wait; r0 = 1: touches flags */
static const struct op *x87_reg_do(struct cpu *c, const struct op *o)
{
	u64 f;

	if (!o->x)
		x87_pending(c, o);
	f = x87_exec(c, x87_stub_reg + o->imm * 8, NULL,
		     o->r0 ? (soft_eflags(c) & EFL_ARITH) | 2 : 2);
	if (o->r0 == 2)
		flags_set_all(c, (u32)f & EFL_ARITH);
	if (o->r0 == 3) /* fnstsw ax */
		R16(0) = c->fx.fsw;
	if (!o->x) {
		c->fx.fip = RIP + o->off;
		c->fx.fop = o->y;
	}
	NEXT;
}

static const struct op *fnstsw_ax_do(struct cpu *c, const struct op *o)
{
	R16(0) = c->fx.fsw;
	NEXT;
}

/* memory form: imm = (opcode - D8) * 8 + reg; x: bit 0 no wait, bit 1 store, bit 2 control; scale bytes in r1 */
static const struct op *x87_mem_do(struct cpu *c, const struct op *o)
{
	u64 ea = EA(o);
	unsigned n = o->r1, key = (unsigned)o->imm;
	u8 buf[128] __attribute__((aligned(16))) = { 0 };

	if (!(o->x & 1))
		x87_pending(c, o);
	if (o->x & 2) {
		soft_probe_w(c, o, ea, n);
		/* an unmasked exception may store nothing: then what was there goes back */
		soft_ld_buf(c, o, ea, buf, n);
		x87_exec(c, x87_stub_mem + key * 8, buf, 2);
		if (n == 28 || n == 108) { /* environment: the last instruction's address is the guest's */
			u32 fip = (u32)c->fx.fip, fop = c->fx.fop, fdp = (u32)c->fx.fdp;

			memcpy(buf + 12, &fip, 4);
			fop = (fop & 0x7ff) << 16;
			memcpy(buf + 16, &fop, 4);
			memcpy(buf + 20, &fdp, 4);
			memset(buf + 24, 0, 2);
		}
		soft_st_buf(c, o, ea, buf, n);
	} else {
		soft_ld_buf(c, o, ea, buf, n);
		x87_exec(c, x87_stub_mem + key * 8, buf, 2);
	}
	if (!(o->x & 4)) {
		c->fx.fip = RIP + o->off;
		c->fx.fop = o->y;
		c->fx.fdp = ea;
	}
	NEXT;
}
op_fn *const x87_reg = x87_reg_do;
op_fn *const x87_mem = x87_mem_do;
op_fn *const x87_fnstsw_ax = fnstsw_ax_do;

/* soft_x87_memsize() - operand bytes of D8+@opc, modrm reg; 0 = no such instruction. */
unsigned soft_x87_memsize(u8 opc, u8 reg)
{
	static const u8 size[8][8] = {
		{ 4, 4, 4, 4, 4, 4, 4, 4 },
		{ 4, 0, 4, 4, 28, 2, 28, 2 },
		{ 4, 4, 4, 4, 4, 4, 4, 4 },
		{ 4, 0, 4, 4, 0, 10, 0, 10 },
		{ 8, 8, 8, 8, 8, 8, 8, 8 },
		{ 8, 0, 8, 8, 108, 0, 108, 2 },
		{ 2, 2, 2, 2, 2, 2, 2, 2 },
		{ 2, 0, 2, 2, 10, 8, 10, 8 },
	};

	return size[opc & 7][reg & 7];
}

H(fwait_do, x87_pending(c, o); NEXT;)
op_fn *const fwait_op = fwait_do;
H(fence_do, atomic_thread_fence(memory_order_seq_cst); NEXT;)
op_fn *const fence_op = fence_do;

/* x = 1: 64-bit pointers (REX.W) */
static const struct op *fxsave_do(struct cpu *c, const struct op *o)
{
	struct fximg t;
	u64 ea = EA(o);

	if (ea & 15)
		soft_raise_err(c, o, EXC_GP, 0);
	c->fx.mxcsr = soft_mxcsr_read(c);
	c->fx.mxcsr_mask = 0xffff;
	soft_probe_w(c, o, ea, 512);
	t = c->fx;
	if (!o->x) {
		t.fip = (u32)t.fip | (u64)0 << 32;
		t.fdp = (u32)t.fdp;
	}
	/* the last 96 bytes belong to software and are not written; nor xmm8-15 outside 64-bit mode */
	soft_st_buf(c, o, ea, &t, c->mode == MODE_64 ? 416 : 288);
	NEXT;
}

static const struct op *fxrstor_do(struct cpu *c, const struct op *o)
{
	struct fximg t;
	u64 ea = EA(o);

	if (ea & 15)
		soft_raise_err(c, o, EXC_GP, 0);
	t = c->fx;
	soft_ld_buf(c, o, ea, &t, c->mode == MODE_64 ? 416 : 288);
	if (t.mxcsr & ~0xffffu)
		soft_raise_err(c, o, EXC_GP, 0);
	memcpy(&c->fx, &t, 416);
	if (!o->x) {
		c->fx.fip = (u32)t.fip;
		c->fx.fdp = (u32)t.fdp;
	}
	/* ES is derived: pending where an unmasked flag is set */
	if (t.fsw & ~t.fcw & 0x3f)
		c->fx.fsw |= 0x8080;
	else
		c->fx.fsw &= (u16)~0x8080u;
	soft_mxcsr_load(c, t.mxcsr);
	NEXT;
}
op_fn *const fxsave_op = fxsave_do;
op_fn *const fxrstor_op = fxrstor_do;

static const struct op *ldmxcsr_do(struct cpu *c, const struct op *o)
{
	u32 v = (u32)soft_ld(c, o, EA(o), 4);

	if (v & ~0xffffu)
		soft_raise_err(c, o, EXC_GP, 0);
	soft_mxcsr_load(c, v);
	NEXT;
}
H(stmxcsr_do, soft_st(c, o, EA(o), 4, soft_mxcsr_read(c)); NEXT;)
op_fn *const ldmxcsr_op = ldmxcsr_do;
op_fn *const stmxcsr_op = stmxcsr_do;
