/* ops.h - the handlers that the translator chooses from. Size index: 0 = 8 bits, 1 = 16, 2 = 32, 3
 * = 64.
 * Suffixes: r register (r0), m memory, i immediate; destination first. _l: with LOCK. */
#ifndef SOFT_OPS_H
#define SOFT_OPS_H

#include "soft.h"

/* tables, a row a line */
/* clang-format off */

/* op_alu.c: add or adc sbb and sub xor cmp */
extern op_fn *const alu_rr[8][4], *const alu_ri[8][4], *const alu_rm[8][4], *const alu_mr[8][4],
	*const alu_mi[8][4], *const alu_mr_l[8][4], *const alu_mi_l[8][4];
extern op_fn *const test_rr[4], *const test_ri[4], *const test_mr[4], *const test_mi[4];
extern op_fn *const inc_r[4], *const dec_r[4], *const not_r[4], *const neg_r[4];
extern op_fn *const inc_m[2][4], *const dec_m[2][4], *const not_m[2][4], *const neg_m[2][4]; /* [lock] */
enum { FUSE_RR, FUSE_RI, FUSE_RM, FUSE_MR, FUSE_MI, FUSE_TRR, FUSE_TRI, FUSE_TMI, FUSE_N };
extern op_fn *const fuse_cc[FUSE_N][4][16]; /* NULL: not fused */

/* op_mov.c */
extern op_fn *const mov_rr[4], *const mov_ri[4], *const mov_rm[4], *const mov_mr[4], *const mov_mi[4];
extern op_fn *const movzx_rr[3][4], *const movzx_rm[3][4], *const movsx_rr[3][4], *const movsx_rm[3][4];
extern op_fn *const lea_r[4], *const lea_rip[4], *const cmov_rr[16][4], *const cmov_rm[16][4];
extern op_fn *const setcc_r[16], *const setcc_m[16], *const xchg_rr[4], *const xchg_mr[4];
extern op_fn *const push_r, *const push_i, *const push_m, *const pop_r, *const pop_m, *const leave_64;
extern op_fn *const push_leg, *const pop_leg, *const leave_leg, *const enter_any, *const pusha_leg, *const popa_leg;
extern op_fn *const pushf_any, *const popf_any, *const ea_a32, *const ea_leg, *const ea_big, *const push_w, *const pop_w;
extern op_fn *const cbw_op[4], *const cwd_op[4], *const bswap_op[4], *const lahf_op, *const sahf_op,
	*const xlat_op, *const nop_op, *const cld_op, *const std_op, *const clc_op, *const stc_op, *const cmc_op;
extern op_fn *const mov_tmp_rm[4], *const salc_op, *const movnti_op[4], *const popm_leg;

op_fn *soft_mov_no_index(op_fn *fn); /* the same move for an address without index */

/* op_bits.c */
extern op_fn *const shift_ri[8][4], *const shift_rc[8][4], *const shift_mi[8][4], *const shift_mc[8][4];
extern op_fn *const shld_r[2][4], *const shld_m[2][4]; /* [shld, shrd]; count r CL where x = 1 else imm */
extern op_fn *const bt_r[4][4], *const bt_m[2][4][4];  /* [bt bts btr btc]; [lock]; x = 1: imm */
extern op_fn *const ea_bit; /* address of bt and so on outside the common form */
extern op_fn *const bsf_r[2][4], *const bsf_m[2][4];
extern op_fn *const mul_r[4][4], *const mul_m[4][4];   /* mul imul div idiv */
extern op_fn *const imul_rr[4], *const imul_rm[4], *const imul_rri[4], *const imul_rmi[4];
extern op_fn *const xadd_rr[4], *const xadd_mr[4], *const cmpxchg_rr[4], *const cmpxchg_mr[4],
	*const cmpxchg8b_op, *const cmpxchg16b_op;
extern op_fn *const bcd_op[6]; /* daa das aaa aas aam aad */

/* op_jump.c */
extern op_fn *const jcc_op[16], *const jmp_op, *const call_op, *const ret_op, *const jmp_r, *const jmp_m,
	*const call_r, *const call_m, *const fall_op, *const exit_op, *const jcc_leg, *const jmp_leg,
	*const call_leg, *const ret_leg, *const jmpi_leg, *const calli_leg, *const loop_op, *const int_op,
	*const iret_op, *const far_op, *const retf_op, *const ud_op, *const gp_op, *const nm_op, *const into_op,
	*const int3_op, *const int1_op, *const bound_op;
op_fn soft_jump_take;

/* op_str.c */
extern op_fn *const str_op, *const str_movs_rep, *const str_stos_rep, *const io_op;

/* op_sys.c */
extern op_fn *const hlt_op, *const cli_op, *const sti_op, *const cpuid_op, *const rdtsc_op, *const rdtscp_op,
	*const rdmsr_op, *const wrmsr_op, *const movcr_op, *const movdr_op, *const sgdt_op, *const lgdt_op,
	*const lmsw_op, *const smsw_op, *const invlpg_op, *const invd_op, *const clts_op, *const sysc_op, *const sysret_op,
	*const swapgs_op, *const stac_op, *const lldt_op, *const sldt_op, *const verr_op, *const lar_op,
	*const movsr_op, *const movrs_op, *const pushs_op, *const pops_op, *const lds_op, *const vmcall_op,
	*const fsgsbase_op, *const arpl_op, *const monitor_op, *const pause_op, *const rdpmc_op;

/* op_sse.c, op_mmx.c, op_x87.c: NULL where there is no such instruction */
op_fn *soft_sse_find(u8 opc, unsigned prefix, bool reg, u8 modrm); /* prefix: 0, 0x66, 0xf3, 0xf2 */
bool soft_sse_has_imm(u8 opc);
op_fn *soft_mmx_find(u8 opc, bool reg, u8 modrm);
extern op_fn *const x87_reg, *const x87_fnstsw_ax, *const x87_mem, *const fwait_op, *const fxsave_op, *const fxrstor_op,
	*const ldmxcsr_op, *const stmxcsr_op, *const emms_op, *const fence_op;
unsigned soft_x87_memsize(u8 opc, u8 reg);

#endif
