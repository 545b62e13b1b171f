/* op_mov.c - moves, extensions, lea, cmov, setcc, xchg, stack operations, flag bits, address micro-ops. */
#include "flags.h"
#include "ops.h"
#include "sizes.h"

/* macro tables, a handler a line */
/* clang-format off */

#define MOV(n) \
	H(mov_rr_##n, WR_##n(o->r0, RDU_##n(o->r1)); NEXT;) \
	H(mov_ri_##n, WR_##n(o->r0, o->imm); NEXT;) \
	HM(mov_rm_##n, T_##n v; LD(T_##n, v, EA(o)); WR_##n(o->r0, v); NEXT;) \
	HM(mov_mr_##n, ST(T_##n, EA(o), RDU_##n(o->r1)); NEXT;) \
	HM(mov_mi_##n, ST(T_##n, EA(o), o->imm); NEXT;) \
	HM(mov_tmp_rm_##n, T_##n v; LD(T_##n, v, EA(o)); c->r[S_TMP] = v; NEXT;) \
	H(xchg_rr_##n, u64 a = RDU_##n(o->r0), b = RDU_##n(o->r1); WR_##n(o->r0, b); \
	  WR_##n(o->r1, a); NEXT;) \
	HM(xchg_mr_##n, RMW(T_##n, p, EA(o)); \
	   T_##n v = xchg_##n(p, (T_##n)RDU_##n(o->r1)); \
	   RMW_END; WR_##n(o->r1, v); NEXT;)
FOR4(MOV)
op_fn *const mov_rr[4] = SIZES(mov_rr);
op_fn *const mov_ri[4] = SIZES(mov_ri);
op_fn *const mov_rm[4] = SIZES(mov_rm);
op_fn *const mov_mr[4] = SIZES(mov_mr);
op_fn *const mov_mi[4] = SIZES(mov_mi);
op_fn *const mov_tmp_rm[4] = SIZES(mov_tmp_rm);
op_fn *const xchg_rr[4] = SIZES(xchg_rr);
op_fn *const xchg_mr[4] = SIZES(xchg_mr);
/* base + displacement, no index: the commonest addresses */
#define EAB(o) (R64((o)->base) + (u64)(s64)(o)->disp)
#define MOVB(n) \
	HM(movb_rm_##n, T_##n v; LD(T_##n, v, EAB(o)); WR_##n(o->r0, v); NEXT;) \
	HM(movb_mr_##n, ST(T_##n, EAB(o), RDU_##n(o->r1)); NEXT;)
MOVB(32)
MOVB(64)
op_fn *soft_mov_no_index(op_fn *fn)
{
	return fn == mov_rm_32 ? movb_rm_32 : fn == mov_rm_64 ? movb_rm_64 : fn == mov_mr_32 ? movb_mr_32 :
	       fn == mov_mr_64 ? movb_mr_64 : fn;
}
op_fn *const movnti_op[4] = { NULL, NULL, mov_mr_32, mov_mr_64 };

/* movzx, movsx: source size f, destination size n */
#define MOVX(f, n) \
	H(movzx_rr_##f##_##n, WR_##n(o->r0, RDU_##f(o->r1)); NEXT;) \
	HM(movzx_rm_##f##_##n, T_##f v; LD(T_##f, v, EA(o)); WR_##n(o->r0, v); NEXT;) \
	H(movsx_rr_##f##_##n, WR_##n(o->r0, RD_##f(o->r1)); NEXT;) \
	HM(movsx_rm_##f##_##n, T_##f v; LD(T_##f, v, EA(o)); WR_##n(o->r0, (s64)(S_##f)v); NEXT;)
MOVX(8, 16)
MOVX(8, 32)
MOVX(8, 64)
MOVX(16, 16)
MOVX(16, 32)
MOVX(16, 64)
MOVX(32, 32)
MOVX(32, 64)
MOVX(32, 16)
#define XROW8(p) { NULL, p##_8_16, p##_8_32, p##_8_64 }
#define XROW16(p) { NULL, p##_16_16, p##_16_32, p##_16_64 }
#define XROW32(p) { NULL, p##_32_16, p##_32_32, p##_32_64 }
op_fn *const movzx_rr[3][4] = { XROW8(movzx_rr), XROW16(movzx_rr), XROW32(movzx_rr) };
op_fn *const movzx_rm[3][4] = { XROW8(movzx_rm), XROW16(movzx_rm), XROW32(movzx_rm) };
op_fn *const movsx_rr[3][4] = { XROW8(movsx_rr), XROW16(movsx_rr), XROW32(movsx_rr) };
op_fn *const movsx_rm[3][4] = { XROW8(movsx_rm), XROW16(movsx_rm), XROW32(movsx_rm) };

#define LEA(n) H(lea_##n, WR_##n(o->r0, EA(o)); NEXT;)
LEA(16)
LEA(32)
LEA(64)
op_fn *const lea_r[4] = { NULL, lea_16, lea_32, lea_64 };

#define CMOV(cc, n) \
	H(cmov_rr_##cc##_##n, u64 v = flag_cc(c, cc) ? RDU_##n(o->r1) : RDU_##n(o->r0); \
	  WR_##n(o->r0, v); NEXT;) \
	HM(cmov_rm_##cc##_##n, T_##n m; LD(T_##n, m, EA(o)); \
	   WR_##n(o->r0, flag_cc(c, cc) ? (u64)m : RDU_##n(o->r0)); NEXT;)
#define SETCC(cc) \
	CMOV(cc, 16) CMOV(cc, 32) CMOV(cc, 64) \
	H(setcc_r_##cc, R8(o->r0) = flag_cc(c, cc); NEXT;) \
	HM(setcc_m_##cc, ST(m8, EA(o), flag_cc(c, cc)); NEXT;)
#define FOR16(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
FOR16(SETCC)
#define CROW(cc) [cc] = { NULL, cmov_rr_##cc##_16, cmov_rr_##cc##_32, cmov_rr_##cc##_64 },
#define CROWM(cc) [cc] = { NULL, cmov_rm_##cc##_16, cmov_rm_##cc##_32, cmov_rm_##cc##_64 },
#define SROW(cc) [cc] = setcc_r_##cc,
#define SROWM(cc) [cc] = setcc_m_##cc,
op_fn *const cmov_rr[16][4] = { FOR16(CROW) };
op_fn *const cmov_rm[16][4] = { FOR16(CROWM) };
op_fn *const setcc_r[16] = { FOR16(SROW) };
op_fn *const setcc_m[16] = { FOR16(SROWM) };

/* ---- stack, 64-bit mode */
#define RSP c->r[X86_RSP]
HM(push_r64, u64 v = R64(o->r0); ST(m64, RSP - 8, v); RSP -= 8; NEXT;)
HM(push_i64, ST(m64, RSP - 8, o->imm); RSP -= 8; NEXT;)
HM(push_m64, u64 v; LD(m64, v, EA(o));
   if (SLOW && (s64)((RSP - 8) << 16) >> 16 != (s64)(RSP - 8)) soft_raise_err(c, o, EXC_SS, 0);
   ST(m64, RSP - 8, v); RSP -= 8; NEXT;)
HM(push_r16, ST(m16, RSP - 2, R16(o->r0)); RSP -= 2; NEXT;)
HM(pop_r64, u64 v; LD(m64, v, RSP); RSP += 8; R64(o->r0) = v; NEXT;)
HM(pop_r16, u16 v; LD(m16, v, RSP); RSP += 2; R16(o->r0) = v; NEXT;)
HM(leave64, u64 v; u64 bp = c->r[X86_RBP]; LD(m64, v, bp); RSP = bp + 8; c->r[X86_RBP] = v; NEXT;)

/* pop to memory: the translator added the size to a displacement from the stack pointer */
HM(pop_m64, u64 v; if (SLOW && (s64)(RSP << 16) >> 16 != (s64)RSP) soft_raise_err(c, o, EXC_SS, 0);
   LD(m64, v, RSP); ST(m64, EA(o), v); RSP += 8; NEXT;)
op_fn *const push_r = push_r64;
op_fn *const push_i = push_i64;
op_fn *const push_m = push_m64;
op_fn *const push_w = push_r16;
op_fn *const pop_r = pop_r64;
op_fn *const pop_w = pop_r16;
op_fn *const pop_m = pop_m64;
op_fn *const leave_64 = leave64;

/* ---- stack of any mode and operand size (o->y: bytes) */
static void stack_check(struct cpu *c, const struct op *o, u64 sp)
{
	if ((s64)(sp << 16) >> 16 != (s64)sp)
		soft_raise_err(c, o, EXC_SS, 0);
}

static void stack_push(struct cpu *c, const struct op *o, unsigned size, u64 v)
{
	if (c->mode == MODE_64) {
		stack_check(c, o, RSP - size);
		soft_st(c, o, RSP - size, size, v);
		RSP -= size;
	} else {
		u64 mask = c->stack32 ? 0xffffffff : 0xffff, sp = (RSP - size) & mask;

		soft_st(c, o, soft_seg_ea(c, o, X86_SS, sp, size, true), size, v);
		RSP = c->stack32 ? sp : (RSP & ~0xffffULL) | sp;
	}
}

static u64 stack_peek(struct cpu *c, const struct op *o, unsigned size, u64 at)
{
	if (c->mode == MODE_64) {
		stack_check(c, o, RSP + at);
		return soft_ld(c, o, RSP + at, size);
	}
	return soft_ld(c, o, soft_seg_ea(c, o, X86_SS, (RSP + at) & (c->stack32 ? 0xffffffff : 0xffff),
					 size, false), size);
}

static void stack_add(struct cpu *c, s64 n)
{
	if (c->mode == MODE_64)
		RSP += (u64)n;
	else if (c->stack32)
		RSP = (u32)(RSP + (u64)n);
	else
		RSP = (RSP & ~0xffffULL) | ((RSP + (u64)n) & 0xffff);
}

static void reg_set(struct cpu *c, u8 slot, unsigned size, u64 v)
{
	if (size == 2)
		R16(slot) = (u16)v;
	else if (size == 4)
		R64(slot) = (u32)v;
	else
		R64(slot) = v;
}

/* x = 0 register, 1 immediate, 2 memory */
H(push_any, u64 v = o->x == 0 ? R64(o->r0) : o->x == 1 ? o->imm : soft_ld(c, o, EA(o), o->y);
  stack_push(c, o, o->y, v); NEXT;)
H(pop_any, u64 v = stack_peek(c, o, o->y, 0); stack_add(c, o->y); reg_set(c, o->r0, o->y, v); NEXT;)
H(pop_any_m, u64 v = stack_peek(c, o, o->y, 0); soft_st(c, o, EA(o), o->y, v); stack_add(c, o->y); NEXT;)
op_fn *const push_leg = push_any;
op_fn *const pop_leg = pop_any;
op_fn *const popm_leg = pop_any_m;

H(leave_any, u64 sp = RSP;
  if (c->mode == MODE_64) RSP = c->r[X86_RBP];
  else if (c->stack32) RSP = (u32)c->r[X86_RBP];
  else RSP = (sp & ~0xffffULL) | (u16)c->r[X86_RBP];
  u64 nsp = RSP; RSP = sp; /* as it was, should the load fault */
  u64 v = c->mode == MODE_64 ? soft_ld(c, o, nsp, o->y) :
	  soft_ld(c, o, soft_seg_ea(c, o, X86_SS, nsp & (c->stack32 ? 0xffffffff : 0xffff), o->y, false), o->y);
  RSP = nsp; stack_add(c, o->y); reg_set(c, SLOT(X86_RBP), o->y, v); NEXT;)
op_fn *const leave_leg = leave_any;

/* enter: imm = size, x = level */
static const struct op *enter_do(struct cpu *c, const struct op *o)
{
	u64 sp = RSP, bp = c->r[X86_RBP], frame;
	unsigned n = o->y, level = o->x & 31;
	u64 mask = c->mode == MODE_64 ? ~0ULL : c->stack32 ? 0xffffffffULL : 0xffffULL;

	c->r[S_TMP] = sp;
	stack_push(c, o, n, bp);
	frame = RSP;
	for (unsigned i = 1; i < level; i++) {
		u64 a = (bp - i * n) & mask, v;

		/* a fault half-way leaves the stack pointer as it was */
		u64 cur = RSP;
		RSP = sp;
		v = c->mode == MODE_64 ? soft_ld(c, o, a, n) :
		    soft_ld(c, o, soft_seg_ea(c, o, X86_SS, a, n, false), n);
		u64 to = (cur - n) & mask;
		soft_st(c, o, c->mode == MODE_64 ? to : soft_seg_ea(c, o, X86_SS, to, n, true), n, v);
		RSP = (cur & ~mask) | to;
	}
	if (level) {
		u64 cur = RSP, to = (cur - n) & mask;

		RSP = sp;
		soft_st(c, o, c->mode == MODE_64 ? to : soft_seg_ea(c, o, X86_SS, to, n, true), n, frame);
		RSP = (cur & ~mask) | to;
	}
	u64 fin = (RSP & ~mask) | ((RSP - (u64)o->imm) & mask), keep = RSP;

	RSP = sp;
	soft_probe_w(c, o, c->mode == MODE_64 ? fin : soft_seg_ea(c, o, X86_SS, fin & mask, n, true), 1);
	RSP = keep;
	RSP = fin;
	reg_set(c, SLOT(X86_RBP), n, frame);
	NEXT;
}
op_fn *const enter_any = enter_do;

H(pusha_do, u64 sp = RSP;
  for (int i = 0; i < 8; i++) {
	u64 v = i == 4 ? sp : c->r[i];
	u64 cur = RSP;
	RSP = cur; stack_push(c, o, o->y, v);
  } NEXT;)
H(popa_do, u64 v[8];
  for (unsigned i = 0; i < 8; i++)
	v[7 - i] = stack_peek(c, o, o->y, i * o->y);
  for (unsigned i = 0; i < 8; i++)
	if (i != 4) reg_set(c, SLOT(i), o->y, v[i]);
  stack_add(c, 8 * o->y); NEXT;)
op_fn *const pusha_leg = pusha_do;
op_fn *const popa_leg = popa_do;

HM(pushf64, u64 f = soft_eflags(c) & ~(EFL_RF | EFL_VM); ST(m64, RSP - 8, f); RSP -= 8; NEXT;)

static const struct op *pushf_do(struct cpu *c, const struct op *o)
{
	if ((c->eflags & EFL_VM) && (c->eflags & EFL_IOPL) != EFL_IOPL)
		soft_raise_err(c, o, EXC_GP, 0);
	if (c->mode == MODE_64 && o->y == 8)
		TAIL(pushf64);
	stack_push(c, o, o->y, soft_eflags(c) & ~(EFL_RF | EFL_VM));
	NEXT;
}
op_fn *const pushf_any = pushf_do;

/* popf: what may change depends on privilege; leaves the block where an interrupt may come in now */
static const struct op *popf_do(struct cpu *c, const struct op *o)
{
	u64 v;
	u32 mask = EFL_ALL_BITS & ~(EFL_RF | EFL_IF | EFL_IOPL), old = c->eflags;

	if ((c->eflags & EFL_VM) && (c->eflags & EFL_IOPL) != EFL_IOPL)
		soft_raise_err(c, o, EXC_GP, 0);
	v = stack_peek(c, o, o->y, 0);
	stack_add(c, o->y);
	if (c->cpl == 0)
		mask |= EFL_IOPL;
	if (c->cpl <= (c->eflags & EFL_IOPL) >> 12)
		mask |= EFL_IF;
	if (o->y == 2)
		mask &= 0xffff;
	soft_eflags_set(c, ((u32)v & mask) | (soft_eflags(c) & ~mask & ~EFL_RF));
	if (unlikely((c->eflags ^ old) & (EFL_TF | EFL_AC)) || unlikely(c->eflags & EFL_TF) ||
	    ((c->eflags & EFL_IF) && !(old & EFL_IF) && c->irq_wait)) {
		soft_mmu_select(c);
		c->icount += o->ord + 1u;
		RIP += NEXT_OFF(o);
		if (c->irq_wait)
			soft_attn(c, ATTN_INTR);
		return NULL;
	}
	NEXT;
}
op_fn *const popf_any = popf_do;

/* ---- address micro-ops: the linear address goes to S_TMP, the operation itself follows */
H(ea_32, c->r[S_TMP] = (u32)EA(o) + R64(o->r1); NEXT;)
/* a 64-bit displacement, or one that does not fit the common form */
H(ea_64, c->r[S_TMP] = EA(o) + o->imm + R64(o->r1); NEXT;)
/* legacy: x = segment, y = size | 0x100 write | 0x200 16-bit address */
H(ea_legacy, u64 a = EA(o); a &= o->y & 0x200 ? 0xffff : 0xffffffff;
  c->r[S_TMP] = soft_seg_ea(c, o, o->x, a, o->y & 0xff, o->y & 0x100); NEXT;)
op_fn *const ea_a32 = ea_32;
op_fn *const ea_big = ea_64;
op_fn *const ea_leg = ea_legacy;

H(cbw16, R16(0) = (u16)(s8)R8(0); NEXT;)
H(cwde32, R64(0) = (u32)(s16)R16(0); NEXT;)
H(cdqe64, R64(0) = (u64)(s64)(s32)R32(0); NEXT;)
op_fn *const cbw_op[4] = { NULL, cbw16, cwde32, cdqe64 };
H(cwd16, R16(SLOT(X86_RDX)) = (s16)R16(0) < 0 ? 0xffff : 0; NEXT;)
H(cdq32, R64(SLOT(X86_RDX)) = (s32)R32(0) < 0 ? 0xffffffff : 0; NEXT;)
H(cqo64, R64(SLOT(X86_RDX)) = (s64)R64(0) < 0 ? ~0ULL : 0; NEXT;)
op_fn *const cwd_op[4] = { NULL, cwd16, cdq32, cqo64 };
H(bswap16, R16(o->r0) = 0; NEXT;) /* undefined; what processors do */
H(bswap32, R64(o->r0) = __builtin_bswap32(R32(o->r0)); NEXT;)
H(bswap64, R64(o->r0) = __builtin_bswap64(R64(o->r0)); NEXT;)
op_fn *const bswap_op[4] = { NULL, bswap16, bswap32, bswap64 };
H(lahf_do, R8(1) = (u8)(soft_eflags(c) & 0xd7); NEXT;)
H(sahf_do, u32 f = soft_eflags(c) & EFL_OF; flags_set_all(c, f | (R8(1) & 0xd5)); NEXT;)
op_fn *const lahf_op = lahf_do;
op_fn *const sahf_op = sahf_do;
/* x = segment, y = address bytes, r1 = slot of its base in 64-bit mode */
H(xlat_do, u64 a = c->r[X86_RBX] + R8(0);
  a = o->y == 8 ? a : o->y == 4 ? (u32)a : (u16)a;
  a = c->mode == MODE_64 ? a + R64(o->r1) : soft_seg_ea(c, o, o->x, a, 1, false);
  R8(0) = (u8)soft_ld(c, o, a, 1); NEXT;)
op_fn *const xlat_op = xlat_do;
H(nop_do, NEXT;)
op_fn *const nop_op = nop_do;
H(cld_do, c->eflags &= ~EFL_DF; NEXT;)
H(std_do, c->eflags |= EFL_DF; NEXT;)
op_fn *const cld_op = cld_do;
op_fn *const std_op = std_do;

static void flags_cf_set(struct cpu *c, u32 cf)
{
	u32 f = soft_eflags(c) & (EFL_ARITH & ~EFL_CF);

	flags_set_all(c, f | cf);
}
H(clc_do, flags_cf_set(c, 0); NEXT;)
H(stc_do, flags_cf_set(c, 1); NEXT;)
H(cmc_do, flags_cf_set(c, !flag_cf(c)); NEXT;)
op_fn *const clc_op = clc_do;
op_fn *const stc_op = stc_do;
op_fn *const cmc_op = cmc_do;
H(salc_do, R8(0) = flag_cf(c) ? 0xff : 0; NEXT;)
op_fn *const salc_op = salc_do;
