/* trans0f.c - instructions into operations: the opcodes after 0F. */
#include "trans.h"

static void ud(struct trans *t)
{
	trans_op(t, ud_op);
	t->end = true;
}

static bool sse_on(struct trans *t)
{
	if (!t->c->fp_ok) {
		trans_op(t, t->c->cr0 & 4 ? ud_op : nm_op);
		t->end = true;
		return false;
	}
	return true;
}

static unsigned mem_size_sse(u8 b, unsigned prefix)
{
	if (prefix == 0xf3)
		return b == 0xe6 || b == 0x7e ? 8 : b == 0x6f || b == 0x7f || b == 0x70 ? 16 : 4;
	if (prefix == 0xf2)
		return b == 0x70 || b == 0xe6 ? 16 : 8;
	if (b == 0x12 || b == 0x13 || b == 0x16 || b == 0x17 || b == 0xd6)
		return 8;
	if (b == 0xc4)
		return 2;
	return 16;
}

static bool sse_is_store(u8 b, unsigned prefix)
{
	return b == 0x11 || b == 0x13 || b == 0x17 || b == 0x29 || b == 0x2b || b == 0x7f ||
	       b == 0xd6 || b == 0xe7 || (b == 0x7e && prefix != 0xf3);
}

/* general registers as source or destination of a vector instruction */
static bool sse_gpr_dst(u8 b)
{
	return b == 0x50 || b == 0xd7 || b == 0xc5 || b == 0x2c || b == 0x2d;
}

static bool sse_gpr_src(u8 b)
{
	return b == 0x2a || b == 0x6e || b == 0xc4;
}

/* maskmov_ea() - the implied operand DS:rDI; a micro-op goes in front of @o where the address is
 * not plain. */
static void maskmov_ea(struct trans *t, struct op *o)
{
	struct op keep = *o;

	t->n--;
	t->in.base = X86_RDI;
	t->in.index = 0xff;
	t->in.disp = 0;
	o = trans_mem(t, keep.fn, 16, true);
	keep.base = o->base;
	keep.index = o->index;
	keep.scale = o->scale;
	keep.disp = o->disp;
	*o = keep;
}

static void sse(struct trans *t)
{
	const struct insn *in = &t->in;
	u8 b = in->opc;
	unsigned prefix = in->rep ? in->rep : in->p66 ? 0x66 : 0;
	bool reg = in->mod == 3, mmx = false;
	op_fn *fn;
	struct op *o;

	if (!sse_on(t))
		return;
	if (b >= 0x60 && prefix != 0xf3 && prefix != 0xf2 && !in->p66 && b != 0xc2 && b != 0xc6)
		mmx = true;
	if (!prefix && (b == 0x2a || b == 0x2c || b == 0x2d))
		mmx = true;
	if (prefix == 0x66 && (b == 0x2a || b == 0x2c || b == 0x2d))
		mmx = true;
	if (b == 0xd6)
		mmx = prefix == 0xf3 || prefix == 0xf2;
	if (mmx) {
		fn = soft_mmx_find(b, reg, in->modrm);
		if (!fn) {
			ud(t);
			return;
		}
		unsigned size = b == 0x6e || b == 0x7e	 ? (in->osz == 8 ? 8 : 4)
				: b == 0xc4		 ? 2
				: b == 0x2c || b == 0x2d ? (prefix ? 16 : 8)
				: b >= 0x60 && b <= 0x62 ? 4
							 : 8;
		o = reg ? trans_op(t, fn)
			: trans_mem(t, fn, size, b == 0x7e || b == 0x7f || b == 0xe7);
		o->r0 = in->reg;
		o->r1 = in->rm;
		o->x = b;
		o->scale = reg ? 0 : o->scale;
		o->y = (u16)(size | (reg ? 0x100 : 0) |
			     (prefix == 0x66   ? 0x200
			      : prefix == 0xf3 ? 0x400
			      : prefix == 0xf2 ? 0x800
					       : 0));
		o->imm = (u8)in->imm;
		if (b >= 0x71 && b <= 0x73)
			o->r0 = in->modrm >> 3 & 7;
		if (b == 0xf7)
			maskmov_ea(t, o);
		return;
	}
	if (!(t->c->cr4 & 0x200)) { /* OSFXSR */
		ud(t);
		return;
	}
	if (b == 0x6e && prefix == 0x66 && !reg && in->osz == 8)
		fn = soft_sse_find(0x7e, 0xf3, false, in->modrm);
	else if (b == 0x7e && prefix == 0x66 && !reg && in->osz == 8)
		fn = soft_sse_find(0xd6, 0x66, false, in->modrm);
	else
		fn = soft_sse_find(b, prefix, reg, in->modrm);
	if (!fn) {
		ud(t);
		return;
	}
	o = reg ? trans_op(t, fn)
		: trans_mem(t, fn, mem_size_sse(b, prefix), sse_is_store(b, prefix));
	o->r0 = sse_gpr_dst(b) ? SLOT(in->reg) : in->reg;
	o->r1 = sse_gpr_src(b) || (b == 0x7e && prefix == 0x66) ? SLOT(in->rm) : in->rm;
	o->y = in->osz;
	o->imm = (u8)in->imm;
	if (b == 0xf7)
		maskmov_ea(t, o);
}

static void group6(struct trans *t)
{
	unsigned sub = t->in.modrm >> 3 & 7;
	struct op *o;

	switch (sub) {
	case 0:
	case 1:
		o = trans_rm16(t, sldt_op, true);
		break;
	case 2:
	case 3:
		o = trans_rm16(t, lldt_op, false);
		break;
	case 4:
	case 5:
		o = trans_rm16(t, verr_op, false);
		break;
	default:
		ud(t);
		return;
	}
	o->x |= sub & 1;
}

static void group7(struct trans *t)
{
	const struct insn *in = &t->in;
	unsigned sub = in->modrm >> 3 & 7;
	struct op *o;

	if (in->mod == 3) {
		switch (in->modrm) {
		case 0xc1: /* vmcall */
		case 0xd9: /* vmmcall */
			trans_op(t, vmcall_op);
			return;
		case 0xca:
		case 0xcb:
			trans_op(t, stac_op)->x = in->modrm == 0xcb;
			return;
		case 0xf8:
			trans_op(t, swapgs_op);
			return;
		case 0xf9:
			trans_op(t, rdtscp_op);
			return;
		default:
			break;
		}
		if (sub == 4) {
			trans_rm16(t, smsw_op, true);
		} else if (sub == 6) {
			trans_rm16(t, lmsw_op, false);
			trans_exit(t);
		} else {
			ud(t);
		}
		return;
	}
	switch (sub) {
	case 0:
	case 1:
		o = trans_mem(t, sgdt_op, t->mode == MODE_64 ? 10 : 6, true);
		o->x = (u8)sub;
		return;
	case 2:
	case 3:
		o = trans_mem(t, lgdt_op, t->mode == MODE_64 ? 10 : 6, false);
		o->x = (u8)(sub - 2);
		o->y = in->osz;
		return;
	case 4:
		trans_rm16(t, smsw_op, true);
		return;
	case 6:
		trans_rm16(t, lmsw_op, false);
		trans_exit(t);
		return;
	case 7:
		if (t->mode != MODE_64)
			t->in.seg = in->seg;
		trans_mem(t, invlpg_op, 1, false);
		trans_exit(t);
		return;
	default:
		ud(t);
		return;
	}
}

static void group15(struct trans *t)
{
	const struct insn *in = &t->in;
	unsigned sub = in->modrm >> 3 & 7;
	struct op *o;

	if (in->mod == 3) {
		if (in->rep == 0xf3 && sub < 4 && t->mode == MODE_64) {
			o = trans_op(t, fsgsbase_op);
			o->x = (u8)sub;
			o->r0 = SLOT(in->rm);
			o->y = in->osz == 8 ? 8 : 4;
			return;
		}
		if (sub >= 5 && !in->rep && !in->p66)
			trans_op(t, fence_op);
		else
			ud(t);
		return;
	}
	if (in->rep || (in->p66 && sub != 7)) {
		ud(t);
		return;
	}
	switch (sub) {
	case 0:
	case 1:
	case 2:
	case 3:
		if (!sse_on(t))
			return;
		if (sub >= 2 && !(t->c->cr4 & 0x200)) {
			ud(t);
			return;
		}
		o = trans_mem(t,
			      sub == 0	 ? fxsave_op
			      : sub == 1 ? fxrstor_op
			      : sub == 2 ? ldmxcsr_op
					 : stmxcsr_op,
			      sub < 2 ? 512 & 0xff : 4, sub == 0 || sub == 3);
		o->x = in->osz == 8;
		return;
	case 7: /* clflush: the address must be readable */
		trans_mem(t, mov_tmp_rm[0], 1, false);
		return;
	default:
		ud(t);
		return;
	}
}

static void reg_rm(struct trans *t, op_fn *r, op_fn *m, unsigned srcsize)
{
	const struct insn *in = &t->in;
	struct op *o;

	if (in->mod == 3) {
		o = trans_op(t, r);
		o->r1 = trans_reg(t, in->rm, srcsize);
	} else {
		o = trans_mem(t, m, srcsize, false);
	}
	o->r0 = SLOT(in->reg);
}

static void bit_test(struct trans *t, unsigned kind, bool imm, unsigned osi)
{
	const struct insn *in = &t->in;
	struct op *o;

	if (in->mod == 3) {
		o = trans_op(t, bt_r[kind][osi]);
		o->r0 = SLOT(in->rm);
	} else {
		op_fn *l = bt_m[1][kind][osi];

		if (in->lock && l)
			t->lock_ok = true;
		op_fn *fn = in->lock && l ? l : bt_m[0][kind][osi];

		if (!imm && !(t->mode == MODE_64 && in->asz == 8)) {
			/* the bit's offset is part of what wraps and is checked */
			o = trans_mem(t, NULL, in->osz, kind != 0);
			o[-1].r0 = SLOT(in->reg);
			o[-1].len = (u8)(in->asz << 4 | in->osz);
			if (t->mode == MODE_64)
				o[-1].x = 0xff;
			o[-1].fn = ea_bit;
			o->fn = fn;
			o->y = 1;
		} else {
			o = trans_mem(t, fn, in->osz, kind != 0);
		}
	}
	o->r1 = SLOT(in->reg);
	o->x = imm;
	o->imm = (u8)in->imm;
}

void trans_0f(struct trans *t)
{
	const struct insn *in = &t->in;
	u8 b = in->opc;
	unsigned osi = in->osz == 2 ? 1 : in->osz == 4 ? 2 : 3;
	unsigned size = b & 1 ? in->osz : 1, si = size == 1 ? 0 : osi;
	struct op *o;

	switch (b) {
	case 0x00:
		group6(t);
		return;
	case 0x01:
		group7(t);
		return;
	case 0x02:
	case 0x03:
		o = trans_rm16(t, lar_op, false);
		o->r1 = SLOT(in->reg);
		o->x |= b & 1;
		return;
	case 0x05:
		trans_op(t, sysc_op);
		t->end = true;
		return;
	case 0x06:
		trans_op(t, clts_op);
		trans_exit(t);
		return;
	case 0x07:
		o = trans_op(t, sysret_op);
		o->y = in->osz == 8 ? 8 : 4;
		t->end = true;
		return;
	case 0x08:
	case 0x09:
		trans_op(t, invd_op);
		return;
	case 0x0d:	    /* prefetch */
	case 0x18 ... 0x1f: /* nothing to do is no operation */
		return;
	case 0x20:
	case 0x22:
	case 0x21:
	case 0x23:
		o = trans_op(t, b & 1 ? movdr_op : movcr_op);
		o->r0 = SLOT(in->rm);
		o->y = in->reg;
		if (b < 0x22 && in->lock && in->reg == 0 &&
		    !(b & 1)) { /* AMD: lock mov cr0 is cr8 */
			o->y = 8;
			t->lock_ok = true;
		}
		o->x = b >= 0x22;
		trans_exit(t);
		return;
	case 0x30:
		trans_op(t, wrmsr_op);
		trans_exit(t);
		return;
	case 0x31:
		trans_op(t, rdtsc_op);
		return;
	case 0x32:
		trans_op(t, rdmsr_op);
		return;
	case 0x33:
		trans_op(t, rdpmc_op);
		return;
	case 0x40 ... 0x4f:
		reg_rm(t, cmov_rr[b & 15][osi], cmov_rm[b & 15][osi], in->osz);
		return;
	case 0x77:
		if (sse_on(t))
			trans_op(t, emms_op);
		return;
	case 0x80 ... 0x8f:
		trans_jcc(t, b & 15);
		return;
	case 0x90 ... 0x9f:
		if (in->mod == 3)
			trans_op(t, setcc_r[b & 15])->r0 = trans_reg(t, in->rm, 1);
		else
			trans_mem(t, setcc_m[b & 15], 1, true);
		return;
	case 0xa0:
	case 0xa8:
		trans_sreg(t, pushs_op, b == 0xa0 ? X86_FS : X86_GS);
		return;
	case 0xa1:
	case 0xa9:
		trans_sreg(t, pops_op, b == 0xa1 ? X86_FS : X86_GS);
		trans_exit(t);
		return;
	case 0xa2:
		trans_op(t, cpuid_op);
		trans_exit(t); /* serialises: messages of other vCPUs are taken in */
		return;
	case 0xa3:
	case 0xab:
	case 0xb3:
	case 0xbb:
		bit_test(t, b >> 3 & 3, false, osi);
		return;
	case 0xba:
		if ((in->modrm >> 3 & 7) < 4)
			ud(t);
		else
			bit_test(t, in->modrm >> 3 & 3, true, osi);
		return;
	case 0xa4:
	case 0xa5:
	case 0xac:
	case 0xad: {
		unsigned k = b >= 0xac;

		if (in->mod == 3) {
			o = trans_op(t, shld_r[k][osi]);
			o->r0 = SLOT(in->rm);
		} else {
			o = trans_mem(t, shld_m[k][osi], in->osz, true);
		}
		o->r1 = SLOT(in->reg);
		o->x = b & 1;
		o->imm = (u8)in->imm;
		return;
	}
	case 0xae:
		group15(t);
		return;
	case 0xaf:
		reg_rm(t, imul_rr[osi], imul_rm[osi], in->osz);
		return;
	case 0xb0:
	case 0xb1:
	case 0xc0:
	case 0xc1:
		if (in->mod == 3) {
			o = trans_op(t, b < 0xc0 ? cmpxchg_rr[si] : xadd_rr[si]);
			o->r0 = trans_reg(t, in->rm, size);
		} else {
			t->lock_ok = true;
			o = trans_mem(t, b < 0xc0 ? cmpxchg_mr[si] : xadd_mr[si], size, true);
		}
		o->r1 = trans_reg(t, in->reg, size);
		return;
	case 0xb2:
	case 0xb4:
	case 0xb5:
		if (in->mod == 3) {
			ud(t);
			return;
		}
		o = trans_mem(t, lds_op, in->osz + 2u, false);
		o->r0 = SLOT(in->reg);
		o->r1 = b == 0xb2 ? X86_SS : b == 0xb4 ? X86_FS : X86_GS;
		o->y = in->osz;
		trans_exit(t);
		return;
	case 0xb6:
	case 0xb7:
		reg_rm(t, movzx_rr[b & 1][osi], movzx_rm[b & 1][osi], b & 1 ? 2 : 1);
		return;
	case 0xbe:
	case 0xbf:
		reg_rm(t, movsx_rr[b & 1][osi], movsx_rm[b & 1][osi], b & 1 ? 2 : 1);
		return;
	case 0xbc:
	case 0xbd:
		reg_rm(t, bsf_r[b & 1][osi], bsf_m[b & 1][osi], in->osz);
		return;
	case 0xc3:
		if (in->mod == 3 || in->p66 || in->rep) {
			ud(t);
			return;
		}
		o = trans_mem(t, movnti_op[in->osz == 8 ? 3 : 2], in->osz, true);
		o->r1 = SLOT(in->reg);
		return;
	case 0xc7:
		if (in->mod == 3 || (in->modrm >> 3 & 7) != 1) {
			ud(t);
			return;
		}
		t->lock_ok = true;
		trans_mem(t, in->osz == 8 ? cmpxchg16b_op : cmpxchg8b_op, in->osz == 8 ? 16 : 8,
			  true);
		return;
	case 0xc8 ... 0xcf:
		trans_op(t, bswap_op[osi])->r0 = SLOT((b & 7u) | (in->rex & 1 ? 8u : 0u));
		return;
	case 0x10 ... 0x17:
	case 0x28 ... 0x2f:
	case 0x50 ... 0x76:
	case 0x7e:
	case 0x7f:
	case 0xc2:
	case 0xc4:
	case 0xc5:
	case 0xc6:
	case 0xd1 ... 0xef:
	case 0xf1 ... 0xfe:
		sse(t);
		return;
	default:
		ud(t);
		return;
	}
}
