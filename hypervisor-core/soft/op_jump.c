/* op_jump.c - leaving a block: jumps, calls, returns, software interrupts, undefined instructions.
 *
 * A direct jump inside the page is linked to its target's first operation on first use (op->tgt); any other
 * looks in the jump cache. Attention (interrupts, kicks, code invalidations) is polled on every taken jump.
 * Legacy modes wrap the instruction pointer and take the unlinked way.
 */
#include "flags.h"
#include "ops.h"

/* macro tables, a handler a line */
/* clang-format off */

/* o->x of a direct jump: 1 = inside the page (may be linked) */

/* jump_link() - find the block at RIP and link @o to it. */
COLD static const struct op *jump_link(struct cpu *c, const struct op *o)
{
	u32 gen = c->arena_gen;
	u64 inval = c->n_inval;
	const struct op *t;

	if (must_leave(c))
		return NULL;
	t = soft_code_find(c);
	/* not where the arena was dropped meanwhile, nor to the scratch operation */
	if (gen == c->arena_gen && inval == c->n_inval && (const u8 *)t >= c->arena &&
	    (const u8 *)t < c->arena + c->arena_size && !soft_code_crossing(t))
		((struct op *)(uintptr_t)o)->tgt = t;
	return t;
}

#define TAKE_JUMP \
	do { \
		c->icount += o->ord + 1u; \
		RIP += (u64)(s64)o->disp; \
		if (o->x) { \
			const struct op *t_ = o->tgt; \
			if (likely(t_ && !must_leave(c))) \
				DISPATCH(t_); \
			t_ = jump_link(c, o); \
			if (!t_) \
				return NULL; \
			DISPATCH(t_); \
		} \
		GOTO_RIP; \
	} while (0)

const struct op *soft_jump_take(struct cpu *c, const struct op *o)
{
	TAKE_JUMP;
}

#define JCC(cc) H(jcc_##cc, if (flag_cc(c, cc)) TAIL(soft_jump_take); NEXT;)
#define FOR16(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
FOR16(JCC)
#define JROW(cc) jcc_##cc,
op_fn *const jcc_op[16] = { FOR16(JROW) };
H(jmp_do, TAIL(soft_jump_take);)
op_fn *const jmp_op = jmp_do;

/* the block ends for its size or the page's end: go on at the next instruction (not counted) */
H(fall_do, c->icount += o->ord; RIP += (u64)(s64)o->disp;
  if (o->x) {
	const struct op *t = o->tgt;
	if (unlikely(!t)) {
		t = jump_link(c, o);
		if (!t) return NULL;
	}
	DISPATCH(t);
  }
  GOTO_RIP;)
op_fn *const fall_op = fall_do;

/* after an instruction that may have changed anything */
H(exit_do, c->icount += o->ord; RIP += (u64)(s64)o->disp; return NULL;)
op_fn *const exit_op = exit_do;

#define RSP c->r[X86_RSP]
/* GOTO_CHECKED() - to an address that a register or memory gave: a non-canonical one (never in the jump cache)
 * faults here, before @commit. */
#define GOTO_CHECKED(v, commit) \
	do { \
		struct jce *j_ = jc_at(c, v); \
		if (unlikely(j_->rip != (v) || j_->ctx != c->jctx || must_leave(c))) { \
			if ((s64)((v) << 16) >> 16 != (s64)(v)) \
				soft_raise_err(c, o, EXC_GP, 0); \
			commit; \
			c->icount += o->ord + 1u; \
			RIP = (v); \
			return NULL; \
		} \
		commit; \
		c->icount += o->ord + 1u; \
		RIP = (v); \
		DISPATCH(j_->ops); \
	} while (0)

HM(call_do, u64 ret = RIP + NEXT_OFF(o); ST(m64, RSP - 8, ret); RSP -= 8; TAIL(soft_jump_take);)
op_fn *const call_op = call_do;
HM(ret_do, u64 v; LD(m64, v, RSP); GOTO_CHECKED(v, RSP += 8 + o->imm);)
op_fn *const ret_op = ret_do;
H(jmp_r64, u64 v = R64(o->r0); GOTO_CHECKED(v, ;);)
op_fn *const jmp_r = jmp_r64;
HM(jmp_m64, u64 v; LD(m64, v, EA(o)); GOTO_CHECKED(v, ;);)
op_fn *const jmp_m = jmp_m64;
static inline bool jump_far_off(u64 v)
{
	return (s64)(v << 16) >> 16 != (s64)v;
}

static inline void jump_canonical(struct cpu *c, const struct op *o, u64 v)
{
	if (unlikely(jump_far_off(RSP - 8)))
		soft_raise_err(c, o, EXC_SS, 0);
	if (unlikely(jump_far_off(v))) {
		soft_probe_w(c, o, RSP - 8, 8); /* the push is checked first */
		soft_raise_err(c, o, EXC_GP, 0);
	}
}
HM(call_r64, u64 v = R64(o->r0); jump_canonical(c, o, v); ST(m64, RSP - 8, RIP + NEXT_OFF(o)); RSP -= 8;
   c->icount += o->ord + 1u; RIP = v; GOTO_RIP;)
op_fn *const call_r = call_r64;
HM(call_m64, u64 v; LD(m64, v, EA(o)); jump_canonical(c, o, v); ST(m64, RSP - 8, RIP + NEXT_OFF(o)); RSP -= 8;
   c->icount += o->ord + 1u; RIP = v; GOTO_RIP;)
op_fn *const call_m = call_m64;

/* ---- legacy modes, and odd operand sizes in 64-bit mode. o->y: operand size in bytes. */
static u64 leg_ip(struct cpu *c, const struct op *o, u64 ip)
{
	if (c->mode == MODE_64) {
		if (o->y == 2) /* AMD: a 66 prefix makes near branches 16 bits wide */
			ip = (u16)ip;
		if ((s64)(ip << 16) >> 16 != (s64)ip)
			soft_raise_err(c, o, EXC_GP, 0);
		return ip;
	}
	ip = o->y == 2 ? (u16)ip : (u32)ip;
	if (ip > c->seg[X86_CS].limit)
		soft_raise_err(c, o, EXC_GP, 0);
	return ip;
}

static void leg_goto(struct cpu *c, const struct op *o, u64 ip)
{
	c->icount += o->ord + 1u;
	RIP = ip;
}

static u64 leg_sp_mask(struct cpu *c)
{
	return c->mode == MODE_64 ? ~0ULL : c->stack32 ? 0xffffffffULL : 0xffffULL;
}

static void leg_push(struct cpu *c, const struct op *o, u64 v)
{
	u64 m = leg_sp_mask(c), sp = (RSP - o->y) & m;

	if (c->mode == MODE_64 && jump_far_off(sp))
		soft_raise_err(c, o, EXC_SS, 0);
	soft_st(c, o, c->mode == MODE_64 ? sp : soft_seg_ea(c, o, X86_SS, sp, o->y, true), o->y, v);
	RSP = m == 0xffff ? (RSP & ~m) | sp : sp;
}

static u64 leg_pop(struct cpu *c, const struct op *o, u64 extra)
{
	u64 m = leg_sp_mask(c), sp = RSP & m, v;

	if (c->mode == MODE_64 && jump_far_off(sp))
		soft_raise_err(c, o, EXC_SS, 0);
	v = soft_ld(c, o, c->mode == MODE_64 ? sp : soft_seg_ea(c, o, X86_SS, sp, o->y, false), o->y);
	v = leg_ip(c, o, v);
	sp = (sp + o->y + extra) & m;
	RSP = m == 0xffff ? (RSP & ~m) | sp : sp;
	return v;
}

#define LEG_GO(ip) \
	do { \
		leg_goto(c, o, ip); \
		GOTO_RIP; \
	} while (0)
H(jmp_legacy, LEG_GO(leg_ip(c, o, RIP + (u64)(s64)o->disp));)
H(jcc_legacy, if (flag_cc(c, (unsigned)o->imm)) LEG_GO(leg_ip(c, o, RIP + (u64)(s64)o->disp)); NEXT;)
H(call_legacy, u64 to = leg_ip(c, o, RIP + (u64)(s64)o->disp); leg_push(c, o, RIP + NEXT_OFF(o)); LEG_GO(to);)
H(ret_legacy, u64 to = leg_pop(c, o, o->imm); LEG_GO(to);)
/* x = 1: operand in memory */
H(jmpi_legacy, u64 v = o->x ? soft_ld(c, o, EA(o), o->y) : R64(o->r0); if (o->y == 2) v = (u16)v;
  LEG_GO(leg_ip(c, o, v));)
H(calli_legacy, u64 v = o->x ? soft_ld(c, o, EA(o), o->y) : R64(o->r0); if (o->y == 2) v = (u16)v;
  v = leg_ip(c, o, v); leg_push(c, o, RIP + NEXT_OFF(o)); LEG_GO(v);)
op_fn *const jmp_leg = jmp_legacy;
op_fn *const jcc_leg = jcc_legacy;
op_fn *const call_leg = call_legacy;
op_fn *const ret_leg = ret_legacy;
op_fn *const jmpi_leg = jmpi_legacy;
op_fn *const calli_leg = calli_legacy;

/* loopne, loope, loop, jrcxz: x = opcode & 3, r0 = address size in bytes */
static const struct op *loop_do(struct cpu *c, const struct op *o)
{
	u64 m = o->r0 == 8 ? ~0ULL : o->r0 == 4 ? 0xffffffff : 0xffff, n = c->r[X86_RCX] & m, to;
	bool take;

	if (o->x == 3) {
		take = n == 0;
	} else {
		n = (n - 1) & m;
		take = n && (o->x == 2 || flag_zf(c) == (o->x == 1));
	}
	to = take ? leg_ip(c, o, RIP + (u64)(s64)o->disp) : 0;
	if (o->x != 3)
		c->r[X86_RCX] = m == 0xffff ? (c->r[X86_RCX] & ~m) | n : n;
	if (take)
		LEG_GO(to);
	NEXT;
}
op_fn *const loop_op = loop_do;

/* ---- interrupts by instruction; far transfers */
static const struct op *int_do(struct cpu *c, const struct op *o)
{
	u64 next = RIP + NEXT_OFF(o);

	if ((c->eflags & EFL_VM) && (c->eflags & EFL_IOPL) != EFL_IOPL)
		soft_raise_err(c, o, EXC_GP, 0);
	c->fault_op = o;
	soft_interrupt(c, (unsigned)o->imm, true, next, false, 0);
	c->icount += o->ord + 1u;
	return NULL;
}
op_fn *const int_op = int_do;
op_fn *const int3_op = int_do;
H(into_do, if (flag_of(c)) return int_do(c, o); NEXT;)
op_fn *const into_op = into_do;
H(int1_do, c->exc_dr6 = 0; RIP += o->len; soft_raise(c, o, EXC_DB);)
op_fn *const int1_op = int1_do;
H(iret_do, c->fault_op = o; soft_iret(c, o, o->y); c->icount += o->ord + 1u; return NULL;)
op_fn *const iret_op = iret_do;

/* x: 0 = jmp ptr in imm, 1 = call ptr in imm, 2 = jmp mem, 3 = call mem; disp/imm of ptr: imm = off, r1:r0 = sel */
static const struct op *far_do(struct cpu *c, const struct op *o)
{
	u16 sel;
	u64 off;

	if (o->x < 2) {
		off = o->imm;
		sel = (u16)(o->r0 | o->r1 << 8);
	} else {
		off = soft_ld(c, o, EA(o), o->y);
		sel = (u16)soft_ld(c, o, EA(o) + o->y, 2);
	}
	if (o->x & 1)
		soft_far_call(c, o, sel, off, o->y);
	else
		soft_far_jmp(c, o, sel, off, o->y);
	c->icount += o->ord + 1u;
	return NULL;
}
op_fn *const far_op = far_do;
H(retf_do, soft_far_ret(c, o, o->y, (unsigned)o->imm); c->icount += o->ord + 1u; return NULL;)
op_fn *const retf_op = retf_do;

H(ud_do, soft_raise(c, o, EXC_UD);)
op_fn *const ud_op = ud_do;
H(gp_do, soft_raise_err(c, o, EXC_GP, 0);)
op_fn *const gp_op = gp_do;
H(nm_do, soft_raise(c, o, EXC_NM);)
op_fn *const nm_op = nm_do;

/* bound: y = size; r0 = index register */
H(bound_do, u64 ea = EA(o);
  s64 v = o->y == 2 ? (s64)(s16)R16(o->r0) : (s64)(s32)R32(o->r0);
  u64 lo = soft_ld(c, o, ea, o->y); u64 hi = soft_ld(c, o, ea + o->y, o->y);
  s64 l = o->y == 2 ? (s64)(s16)lo : (s64)(s32)lo; s64 h = o->y == 2 ? (s64)(s16)hi : (s64)(s32)hi;
  if (v < l || v > h) soft_raise(c, o, EXC_BR); NEXT;)
op_fn *const bound_op = bound_do;
