/* trans.c - instructions into operations: the one-byte opcodes. trans0f.c has those after 0F.
 *
 * A block runs on through conditional jumps that are not taken, and ends at an unconditional one,
 * at what changes the machine's mode, at the page's end, or when full.
 */
#include "trans.h"

static void ud(struct trans *t)
{
	trans_op(t, ud_op);
	t->end = true;
}

static void trans_one(struct trans *t)
{
	const struct insn *in = &t->in;
	u8 b = in->opc;
	bool lm = t->mode == MODE_64;
	unsigned size = b & 1 ? in->osz : 1, si = size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
	unsigned osi = in->osz == 2 ? 1 : in->osz == 4 ? 2 : 3;
	struct op *o;

	if (b < 0x40 && (b & 7) < 6) {
		unsigned k = b >> 3;

		switch (b & 7) {
		case 0:
		case 1:
			trans_alu_rm_reg(t, size, alu_rr[k][si], alu_mr[k][si], alu_mr_l[k][si],
					 k != 7);
			return;
		case 2:
		case 3:
			trans_alu_reg_rm(t, size, alu_rr[k][si], alu_rm[k][si]);
			return;
		default:
			o = trans_op(t, alu_ri[k][si]);
			o->r0 = SLOT(0);
			o->imm = in->imm;
			return;
		}
	}
	switch (b) {
	case 0x06:
	case 0x0e:
	case 0x16:
	case 0x1e:
		if (lm)
			ud(t);
		else
			trans_sreg(t, pushs_op, b >> 3);
		return;
	case 0x07:
	case 0x17:
	case 0x1f:
		if (lm) {
			ud(t);
		} else {
			trans_sreg(t, pops_op, b >> 3);
			trans_exit(t);
		}
		return;
	case 0x27:
	case 0x2f:
	case 0x37:
	case 0x3f:
		if (lm) {
			ud(t);
		} else {
			o = trans_op(t, bcd_op[(b - 0x27) >> 3]);
			o->x = b == 0x2f || b == 0x3f;
		}
		return;
	case 0x40 ... 0x4f: /* legacy modes only: the decoder takes REX */
		trans_op(t, (b & 8 ? dec_r : inc_r)[osi])->r0 = SLOT(b & 7);
		return;
	case 0x50 ... 0x57:
		trans_push_reg(t, (b & 7u) | (in->rex & 1 ? 8 : 0));
		return;
	case 0x58 ... 0x5f:
		trans_pop_reg(t, (b & 7u) | (in->rex & 1 ? 8 : 0));
		return;
	case 0x60:
	case 0x61:
		if (lm) {
			ud(t);
			return;
		}
		trans_op(t, b == 0x60 ? pusha_leg : popa_leg)->y = in->osz;
		return;
	case 0x62:
		if (lm || in->mod == 3) {
			ud(t);
			return;
		}
		o = trans_mem(t, bound_op, 2 * in->osz, false);
		o->r0 = SLOT(in->reg);
		o->y = in->osz;
		return;
	case 0x63:
		if (!lm) {
			o = trans_rm16(t, arpl_op, true);
			o->r1 = SLOT(in->reg);
			return;
		}
		if (in->mod == 3) {
			o = trans_op(t, movsx_rr[2][osi]);
			o->r1 = SLOT(in->rm);
		} else {
			o = trans_mem(t, movsx_rm[2][osi], 4, false);
		}
		o->r0 = SLOT(in->reg);
		return;
	case 0x68:
	case 0x6a:
		size = trans_stack_size(t);
		o = trans_op(t, lm && size == 8 ? push_i : push_leg);
		o->imm = in->imm;
		o->x = 1;
		o->y = (u16)size;
		o->base = SLOT(X86_RSP);
		return;
	case 0x69:
	case 0x6b:
		if (in->mod == 3) {
			o = trans_op(t, imul_rri[osi]);
			o->r1 = SLOT(in->rm);
		} else {
			o = trans_mem(t, imul_rmi[osi], in->osz, false);
		}
		o->r0 = SLOT(in->reg);
		o->imm = in->imm;
		return;
	case 0x6c:
	case 0x6d:
		trans_string_op(t, 5);
		return;
	case 0x6e:
	case 0x6f:
		trans_string_op(t, 6);
		return;
	case 0x70 ... 0x7f:
		trans_jcc(t, b & 15);
		return;
	case 0x82:
		if (lm) {
			ud(t);
			return;
		}
		__attribute__((fallthrough));
	case 0x80:
	case 0x81:
	case 0x83: {
		unsigned k = in->modrm >> 3 & 7;

		if (b != 0x80 && b != 0x82) {
			size = in->osz;
			si = osi;
		} else {
			size = 1;
			si = 0;
		}
		trans_alu_rm_imm(t, size, alu_ri[k][si], alu_mi[k][si], alu_mi_l[k][si], in->imm,
				 k != 7);
		return;
	}
	case 0x84:
	case 0x85:
		trans_alu_rm_reg(t, size, test_rr[si], test_mr[si], NULL, false);
		return;
	case 0x86:
	case 0x87:
		t->lock_ok = in->mod != 3;
		trans_alu_rm_reg(t, size, xchg_rr[si], xchg_mr[si], NULL, true);
		return;
	case 0x88:
	case 0x89:
		trans_alu_rm_reg(t, size, mov_rr[si], mov_mr[si], NULL, true);
		return;
	case 0x8a:
	case 0x8b:
		trans_alu_reg_rm(t, size, mov_rr[si], mov_rm[si]);
		return;
	case 0x8c:
		if ((in->modrm >> 3 & 7) > 5) {
			ud(t);
			return;
		}
		o = trans_rm16(t, movrs_op, true);
		o->r1 = in->modrm >> 3 & 7;
		return;
	case 0x8e:
		if ((in->modrm >> 3 & 7) > 5 || (in->modrm >> 3 & 7) == X86_CS) {
			ud(t);
			return;
		}
		o = trans_rm16(t, movsr_op, false);
		o->r1 = in->modrm >> 3 & 7;
		trans_exit(t);
		return;
	case 0x8d:
		if (in->mod == 3) {
			ud(t);
			return;
		}
		t->in.seg = 0xff;
		if (lm && in->asz == 8) {
			trans_mem(t, lea_r[osi], 1, false)->r0 = SLOT(in->reg);
			return;
		}
		o = trans_op(t, ea_a32);
		o->base = in->base == 0xff   ? SLOT(S_ZERO)
			  : in->base == 0xfe ? SLOT(S_RIP)
					     : SLOT(in->base);
		o->index = in->index == 0xff ? SLOT(S_ZERO) : SLOT(in->index);
		o->scale = in->scale;
		o->disp = (s32)(in->disp + (in->base == 0xfe ? t->off + in->len : 0));
		o->r1 = SLOT(S_ZERO);
		o = trans_op(t, in->asz == 2 ? movzx_rr[1][osi] : mov_rr[osi]);
		o->r0 = SLOT(in->reg);
		o->r1 = SLOT(S_TMP);
		return;
	case 0x8f:
		size = trans_stack_size(t);
		if (in->modrm >> 3 & 7) {
			ud(t);
		} else if (in->mod == 3) {
			trans_pop_reg(t, in->rm);
		} else {
			if (in->base == X86_RSP)
				t->in.disp += size;
			o = trans_mem(t, popm_leg, size, true);
			if (lm && size == 8 && o->base != SLOT(S_TMP))
				o->fn = pop_m;
			o->y = (u16)size;
		}
		return;
	case 0x90 ... 0x97: {
		unsigned r = (b & 7u) | (in->rex & 1 ? 8 : 0);

		if (!r) {
			if (in->rep == 0xf3) {
				trans_op(t, pause_op);
				t->end = true;
			} else {
				trans_op(t, nop_op);
			}
			return;
		}
		o = trans_op(t, xchg_rr[osi]);
		o->r0 = SLOT(0);
		o->r1 = SLOT(r);
		return;
	}
	case 0x98:
		trans_op(t, cbw_op[osi]);
		return;
	case 0x99:
		trans_op(t, cwd_op[osi]);
		return;
	case 0x9a:
	case 0xea:
		if (lm) {
			ud(t);
			return;
		}
		o = trans_op(t, far_op);
		o->imm = in->imm;
		o->r0 = (u8)in->imm2;
		o->r1 = (u8)(in->imm2 >> 8);
		o->x = b == 0x9a;
		o->y = in->osz;
		t->end = true;
		return;
	case 0x9b:
		trans_op(t, t->c->fp_ok || !(t->c->cr0 & 2) ? fwait_op : nm_op);
		return;
	case 0x9c:
		o = trans_op(t, pushf_any);
		o->y = (u16)trans_stack_size(t);
		o->base = SLOT(X86_RSP);
		return;
	case 0x9d:
		o = trans_op(t, popf_any);
		o->y = (u16)trans_stack_size(t);
		o->base = SLOT(X86_RSP);
		return;
	case 0x9e:
		trans_op(t, sahf_op);
		return;
	case 0x9f:
		trans_op(t, lahf_op);
		return;
	case 0xa0:
	case 0xa1:
		o = trans_mem(t, mov_rm[si], size, false);
		o->r0 = SLOT(0);
		return;
	case 0xa2:
	case 0xa3:
		o = trans_mem(t, mov_mr[si], size, true);
		o->r1 = SLOT(0);
		return;
	case 0xa4:
	case 0xa5:
		trans_string_op(t, 0);
		return;
	case 0xa6:
	case 0xa7:
		trans_string_op(t, 1);
		return;
	case 0xa8:
	case 0xa9:
		o = trans_op(t, test_ri[si]);
		o->r0 = SLOT(0);
		o->imm = in->imm;
		return;
	case 0xaa:
	case 0xab:
		trans_string_op(t, 2);
		return;
	case 0xac:
	case 0xad:
		trans_string_op(t, 3);
		return;
	case 0xae:
	case 0xaf:
		trans_string_op(t, 4);
		return;
	case 0xb0 ... 0xb7:
		o = trans_op(t, mov_ri[0]);
		o->r0 = trans_reg(t, (b & 7u) | (in->rex & 1 ? 8 : 0), 1);
		o->imm = in->imm;
		return;
	case 0xb8 ... 0xbf:
		o = trans_op(t, mov_ri[osi]);
		o->r0 = SLOT((b & 7u) | (in->rex & 1 ? 8u : 0u));
		o->imm = in->imm;
		return;
	case 0xc0:
	case 0xc1:
	case 0xd0:
	case 0xd1:
	case 0xd2:
	case 0xd3:
		trans_shift_group(t, size, si);
		return;
	case 0xc2:
	case 0xc3:
		o = trans_op(t, trans_near64(t) ? ret_op : ret_leg);
		o->imm = b == 0xc2 ? in->imm : 0;
		o->y = in->osz;
		o->base = SLOT(X86_RSP);
		t->end = true;
		return;
	case 0xc4:
	case 0xc5:
		if (lm || in->mod == 3) { /* VEX */
			ud(t);
			return;
		}
		o = trans_mem(t, lds_op, in->osz + 2, false);
		o->r0 = SLOT(in->reg);
		o->r1 = b == 0xc4 ? X86_ES : X86_DS;
		o->y = in->osz;
		trans_exit(t);
		return;
	case 0xc6:
	case 0xc7:
		if (in->modrm >> 3 & 7)
			ud(t);
		else
			trans_alu_rm_imm(t, size, mov_ri[si], mov_mi[si], NULL, in->imm, true);
		return;
	case 0xc8:
		o = trans_op(t, enter_any);
		o->imm = in->imm;
		o->x = (u8)in->imm2;
		o->y = (u16)trans_stack_size(t);
		o->base = SLOT(X86_RSP);
		return;
	case 0xc9:
		size = trans_stack_size(t);
		o = trans_op(t, lm && size == 8 ? leave_64 : leave_leg);
		o->y = (u16)size;
		o->base = SLOT(X86_RBP);
		return;
	case 0xca:
	case 0xcb:
		o = trans_op(t, retf_op);
		o->imm = b == 0xca ? in->imm : 0;
		o->y = in->osz;
		t->end = true;
		return;
	case 0xcc:
	case 0xcd:
		o = trans_op(t, int_op);
		o->imm = b == 0xcc ? 3 : (u8)in->imm;
		t->end = true;
		return;
	case 0xce:
		if (lm) {
			ud(t);
			return;
		}
		trans_op(t, into_op)->imm = 4;
		return;
	case 0xcf:
		o = trans_op(t, iret_op);
		o->y = in->osz;
		t->end = true;
		return;
	case 0xd4:
	case 0xd5:
		if (lm)
			ud(t);
		else
			trans_op(t, bcd_op[4 + (b & 1)])->imm = (u8)in->imm;
		return;
	case 0xd6:
		if (lm)
			ud(t);
		else
			trans_op(t, salc_op);
		return;
	case 0xd7:
		o = trans_op(t, xlat_op);
		o->x = in->seg == 0xff ? X86_DS : in->seg;
		o->y = in->asz;
		o->r1 = lm && (in->seg == X86_FS || in->seg == X86_GS) ? SLOT(S_SEG + in->seg)
								       : SLOT(S_ZERO);
		return;
	case 0xd8 ... 0xdf:
		trans_x87(t);
		return;
	case 0xe0 ... 0xe3:
		o = trans_jump(t, loop_op, loop_op);
		o->x = b & 3;
		o->r0 = in->asz;
		return;
	case 0xe4:
	case 0xe5:
	case 0xe6:
	case 0xe7:
		trans_io(t, false);
		return;
	case 0xec:
	case 0xed:
	case 0xee:
	case 0xef:
		trans_io(t, true);
		return;
	case 0xe8:
		if (!trans_far_target(t, call_r))
			trans_jump(t, call_op, call_leg)->base = SLOT(X86_RSP);
		t->end = true;
		return;
	case 0xe9:
	case 0xeb:
		if (!trans_far_target(t, jmp_r))
			trans_jump(t, jmp_op, jmp_leg);
		t->end = true;
		return;
	case 0xf1:
		trans_op(t, int1_op);
		t->end = true;
		return;
	case 0xf4:
		trans_op(t, hlt_op);
		t->end = true;
		return;
	case 0xf5:
		trans_op(t, cmc_op);
		return;
	case 0xf6:
	case 0xf7:
		trans_group3(t, size, si);
		return;
	case 0xf8:
		trans_op(t, clc_op);
		return;
	case 0xf9:
		trans_op(t, stc_op);
		return;
	case 0xfa:
		trans_op(t, cli_op);
		return;
	case 0xfb:
		trans_op(t, sti_op);
		return;
	case 0xfc:
		trans_op(t, cld_op);
		return;
	case 0xfd:
		trans_op(t, std_op);
		return;
	case 0xfe:
		if ((in->modrm >> 3 & 7) > 1)
			ud(t);
		else
			trans_group5(t, in->modrm >> 3 & 7, 1, 0);
		return;
	case 0xff:
		trans_group5(t, in->modrm >> 3 & 7, in->osz, osi);
		return;
	default:
		ud(t);
		return;
	}
}

unsigned soft_trans(struct cpu *c, const u8 *p, unsigned avail, unsigned max_insns, struct op *out,
		    unsigned *bytes, bool *crossing)
{
	struct trans t = { .c = c, .mode = c->mode, .out = out };
	struct op *o;

	t.page_off = (unsigned)(c->r[S_RIP] & PAGE_OFF);
	*crossing = false;
	while (!t.end && !t.exit && t.ord < max_insns && t.n < TRANS_OPS_MAX - 8) {
		unsigned start = t.n;
		int ret = insn_decode(p + t.off, avail - t.off, t.mode, &t.in);

		if (ret == 1) {
			if (!t.ord) {
				*crossing = true;
				trans_op(&t, ud_op); /* never run: the caller fetches more */
				return t.n;
			}
			break;
		}
		if (ret) {
			t.in.len = 1;
			trans_op(&t, ret == 2 ? ud_op : gp_op);
			t.end = true;
		} else {
			t.lock_ok = false;
			if (t.in.map)
				trans_0f(&t);
			else
				trans_one(&t);
			if (t.in.lock && !t.lock_ok) {
				t.n = start;
				trans_op(&t, ud_op);
				t.end = true;
			}
		}
		t.off += t.in.len;
		t.ord++;
	}
	*bytes = t.off;
	/* what follows: nothing after an unconditional jump, but a conditional one may have set
	 * t.end too */
	o = trans_op(&t, t.exit || max_insns == 1 ? exit_op : fall_op);
	o->disp = (s32)t.off;
	o->ord = (u8)t.ord;
	o->off = (u16)t.off;
	o->len = 0;
	o->x = t.mode == MODE_64 && !t.exit && t.page_off + t.off < MEM_PAGE && max_insns > 1;
	return t.n;
}
