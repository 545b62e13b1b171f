/* trans.c - instructions into operations: the one-byte opcodes. trans0f.c has those after 0F.
 *
 * A block runs on through conditional jumps that are not taken, and ends at an unconditional one, at what
 * changes the machine's mode, at the page's end, or when full. An odd address (segment, 32-bit, beyond the
 * common form) is made by a micro-op in front, so that each handler knows one form of address only.
 */
#include "trans.h"

#include <string.h>

struct op *trans_op(struct trans *t, op_fn *fn)
{
	struct op *o = &t->out[t->n++];

	memset(o, 0, sizeof(*o));
	o->fn = fn ? fn : ud_op;
	o->base = o->index = SLOT(S_ZERO);
	o->off = (u16)t->off;
	o->len = t->in.len;
	o->ord = (u8)t->ord;
	return o;
}

u8 trans_reg(struct trans *t, unsigned n, unsigned size)
{
	if (size == 1 && !t->in.rex && n >= 4 && n < 8)
		return (u8)(SLOT(n - 4) + 1);
	return SLOT(n);
}

static unsigned default_seg(const struct insn *in)
{
	if (in->seg != 0xff)
		return in->seg;
	return in->base == X86_RSP || in->base == X86_RBP ? X86_SS : X86_DS;
}

/* trans_mem() - an operation on the instruction's memory operand. */
struct op *trans_mem(struct trans *t, op_fn *fn, unsigned size, bool write)
{
	const struct insn *in = &t->in;
	u8 base = in->base == 0xff ? SLOT(S_ZERO) : in->base == 0xfe ? SLOT(S_RIP) : SLOT(in->base);
	u8 index = in->index == 0xff ? SLOT(S_ZERO) : SLOT(in->index), scale = in->scale;
	s64 disp = in->disp + (in->base == 0xfe ? (s64)t->off + in->len : 0);
	u8 seg = SLOT(S_ZERO);
	struct op *o;

	if (t->mode == MODE_64) {
		if (in->seg == X86_FS || in->seg == X86_GS)
			seg = SLOT(S_SEG + in->seg);
		if (in->asz == 8 && disp == (s32)disp) {
			if (seg != SLOT(S_ZERO) && index == SLOT(S_ZERO)) {
				index = seg;
				scale = 0;
				seg = SLOT(S_ZERO);
			} else if (seg != SLOT(S_ZERO) && base == SLOT(S_ZERO)) {
				base = seg;
				seg = SLOT(S_ZERO);
			}
			if (seg == SLOT(S_ZERO)) {
				o = trans_op(t, fn);
				o->base = base;
				o->index = index;
				o->scale = scale;
				o->disp = (s32)disp;
				if (index == SLOT(S_ZERO))
					o->fn = soft_mov_no_index(o->fn);
				return o;
			}
		}
		o = trans_op(t, in->asz == 8 ? ea_big : ea_a32);
		o->disp = (s32)disp;
		if (in->asz == 8)
			o->imm = (u64)disp - (u64)(s64)(s32)disp;
		o->r1 = seg;
	} else {
		o = trans_op(t, ea_leg);
		o->x = (u8)default_seg(in);
		o->y = (u16)(size | (write ? 0x100 : 0) | (in->asz == 2 ? 0x200 : 0));
		o->disp = (s32)disp;
	}
	o->base = base;
	o->index = index;
	o->scale = scale;
	o = trans_op(t, fn);
	o->base = SLOT(S_TMP);
	return o;
}

void trans_exit(struct trans *t)
{
	t->exit = true;
}

/* r/m and reg operand pair */
static void alu_rm_reg(struct trans *t, unsigned size, op_fn *rr, op_fn *mr, op_fn *mr_lock, bool write)
{
	const struct insn *in = &t->in;
	struct op *o;

	if (in->mod == 3) {
		o = trans_op(t, rr);
		o->r0 = trans_reg(t, in->rm, size);
		o->r1 = trans_reg(t, in->reg, size);
		return;
	}
	if (in->lock && mr_lock) {
		t->lock_ok = true;
		mr = mr_lock;
	}
	o = trans_mem(t, mr, size, write);
	o->r1 = trans_reg(t, in->reg, size);
}

static void alu_reg_rm(struct trans *t, unsigned size, op_fn *rr, op_fn *rm)
{
	const struct insn *in = &t->in;
	struct op *o;

	if (in->mod == 3) {
		o = trans_op(t, rr);
		o->r1 = trans_reg(t, in->rm, size);
	} else {
		o = trans_mem(t, rm, size, false);
	}
	o->r0 = trans_reg(t, in->reg, size);
}

static void alu_rm_imm(struct trans *t, unsigned size, op_fn *ri, op_fn *mi, op_fn *mi_lock, u64 imm,
		       bool write)
{
	const struct insn *in = &t->in;
	struct op *o;

	if (in->mod == 3) {
		o = trans_op(t, ri);
		o->r0 = trans_reg(t, in->rm, size);
	} else {
		if (in->lock && mi_lock) {
			t->lock_ok = true;
			mi = mi_lock;
		}
		o = trans_mem(t, mi, size, write);
	}
	o->imm = imm;
}

static void unary(struct trans *t, unsigned size, op_fn *r, op_fn *const m[2][4], unsigned si)
{
	const struct insn *in = &t->in;

	if (in->mod == 3) {
		trans_op(t, r)->r0 = trans_reg(t, in->rm, size);
	} else {
		if (in->lock)
			t->lock_ok = true;
		trans_mem(t, m[in->lock][si], size, true);
	}
}

/* near branches of 64 bits; AMD's 66 prefix makes them 16 bits wide, which the legacy forms do */
static bool near64(const struct trans *t)
{
	return t->mode == MODE_64 && t->in.osz != 2;
}

/* a relative jump or call: @fn has the linked form, @leg the legacy one */
static struct op *jump(struct trans *t, op_fn *fn, op_fn *leg)
{
	s64 target = (s64)t->off + t->in.len + (s64)t->in.imm;
	s64 page = (s64)t->page_off + target;
	struct op *o = trans_op(t, near64(t) ? fn : leg);

	o->disp = (s32)target; /* see trans_far_target() */
	o->x = near64(t) && page >= 0 && page < (s64)MEM_PAGE;
	o->y = near64(t) ? 8 : t->in.osz;
	return o;
}

/* trans_far_target() - the target does not fit an operation's 32 bits: make it in S_TMP. */
static bool far_target(struct trans *t, op_fn *by_reg)
{
	s64 target = (s64)t->off + t->in.len + (s64)t->in.imm;
	struct op *o;

	if (target == (s32)target || !near64(t))
		return false;
	o = trans_op(t, ea_big);
	o->base = SLOT(S_RIP);
	o->imm = (u64)target;
	o->r1 = SLOT(S_ZERO);
	trans_op(t, by_reg)->r0 = SLOT(S_TMP);
	return true;
}

static int fuse_form(op_fn *fn, unsigned *si)
{
	for (unsigned s = 0; s < 4; s++) {
		*si = s;
		if (fn == alu_rr[7][s])
			return FUSE_RR;
		if (fn == alu_ri[7][s])
			return FUSE_RI;
		if (fn == alu_rm[7][s])
			return FUSE_RM;
		if (fn == alu_mr[7][s])
			return FUSE_MR;
		if (fn == alu_mi[7][s])
			return FUSE_MI;
		if (fn == test_rr[s])
			return FUSE_TRR;
		if (fn == test_ri[s])
			return FUSE_TRI;
		if (fn == test_mi[s])
			return FUSE_TMI;
	}
	return -1;
}

void trans_jcc(struct trans *t, unsigned cc)
{
	unsigned si;

	if (near64(t)) {
		s64 target = (s64)t->off + t->in.len + (s64)t->in.imm;

		if (target != (s32)target) {
			struct op *skip = trans_op(t, jcc_op[cc ^ 1]);

			skip->disp = (s32)(t->off + t->in.len);
			far_target(t, jmp_r);
			t->end = true;
			return;
		}
		if (t->n && t->ord && t->out[t->n - 1].ord + 1u == t->ord) {
			int f = fuse_form(t->out[t->n - 1].fn, &si);

			if (f >= 0 && fuse_cc[f][si][cc])
				t->out[t->n - 1].fn = fuse_cc[f][si][cc];
		}
		jump(t, jcc_op[cc], NULL);
		return;
	}
	struct op *o = jump(t, NULL, jcc_leg);

	o->imm = cc;
}

static void string_op(struct trans *t, unsigned kind)
{
	const struct insn *in = &t->in;
	unsigned size = in->opc & 1 ? in->osz : 1;
	struct op *o;

	if (kind >= 5 && size == 8)
		size = 4;
	o = trans_op(t, str_op);
	o->x = (u8)kind;
	o->y = (u16)(size | (in->rep == 0xf3 ? 0x100 : in->rep == 0xf2 ? 0x200 : 0));
	o->r0 = in->asz;
	o->r1 = in->seg == 0xff ? X86_DS : in->seg;
	if (t->mode == MODE_64 && (in->seg == X86_FS || in->seg == X86_GS))
		o->base = SLOT(S_SEG + in->seg);
}

/* stack operand size: 64-bit mode has no 32-bit pushes */
static unsigned stack_size(const struct trans *t)
{
	if (t->mode == MODE_64)
		return t->in.p66 && !(t->in.rex & 8) ? 2 : 8;
	return t->in.osz;
}

static void push_reg(struct trans *t, unsigned n)
{
	unsigned s = stack_size(t);
	struct op *o = trans_op(t, t->mode == MODE_64 ? (s == 8 ? push_r : push_w) : push_leg);

	o->r0 = SLOT(n);
	o->y = (u16)s;
	o->base = SLOT(X86_RSP);
}

static void pop_reg(struct trans *t, unsigned n)
{
	unsigned s = stack_size(t);
	struct op *o = trans_op(t, t->mode == MODE_64 ? (s == 8 ? pop_r : pop_w) : pop_leg);

	o->r0 = SLOT(n);
	o->y = (u16)s;
	o->base = SLOT(X86_RSP);
}

void trans_sreg(struct trans *t, op_fn *fn, unsigned seg)
{
	struct op *o = trans_op(t, fn);

	o->r1 = (u8)seg;
	o->y = (u16)stack_size(t);
	o->base = SLOT(X86_RSP);
}

/* system forms with a 16-bit memory or a register operand (x & 0x80 = memory) */
struct op *trans_rm16(struct trans *t, op_fn *fn, bool write)
{
	const struct insn *in = &t->in;
	struct op *o;

	if (in->mod == 3) {
		o = trans_op(t, fn);
		o->r0 = SLOT(in->rm);
	} else {
		o = trans_mem(t, fn, 2, write);
		o->x = 0x80;
	}
	o->y = in->osz;
	return o;
}

static void group5(struct trans *t, unsigned sub, unsigned size, unsigned si)
{
	const struct insn *in = &t->in;
	struct op *o;
	bool m = in->mod != 3;

	switch (sub) {
	case 0:
		unary(t, size, inc_r[si], inc_m, si);
		return;
	case 1:
		unary(t, size, dec_r[si], dec_m, si);
		return;
	case 2:
	case 4:
		if (near64(t)) {
			if (m)
				trans_mem(t, sub == 2 ? call_m : jmp_m, 8, false);
			else
				{
				o = trans_op(t, sub == 2 ? call_r : jmp_r);
				o->r0 = SLOT(in->rm);
				o->base = SLOT(X86_RSP);
			}
		} else {
			o = m ? trans_mem(t, sub == 2 ? calli_leg : jmpi_leg, in->osz, false) :
				trans_op(t, sub == 2 ? calli_leg : jmpi_leg);
			o->r0 = SLOT(in->rm);
			o->x = m;
			o->y = in->osz;
		}
		t->end = true;
		return;
	case 3:
	case 5:
		o = m ? trans_mem(t, far_op, in->osz + 2, false) : trans_op(t, ud_op);
		o->x = sub == 3 ? 3 : 2;
		o->y = in->osz;
		t->end = true;
		return;
	case 6:
		size = stack_size(t);
		if (!m) {
			push_reg(t, in->rm);
		} else {
			o = trans_mem(t, t->mode == MODE_64 && size == 8 ? push_m : push_leg, size, false);
			o->x = 2;
			o->y = (u16)size;
		}
		return;
	default:
		trans_op(t, ud_op);
		t->end = true;
		return;
	}
}

static void group3(struct trans *t, unsigned size, unsigned si)
{
	const struct insn *in = &t->in;
	unsigned sub = in->modrm >> 3 & 7;

	if (sub < 2) {
		alu_rm_imm(t, size, test_ri[si], test_mi[si], NULL, in->imm, false);
	} else if (sub == 2) {
		unary(t, size, not_r[si], not_m, si);
	} else if (sub == 3) {
		unary(t, size, neg_r[si], neg_m, si);
	} else if (in->mod == 3) {
		trans_op(t, mul_r[sub - 4][si])->r0 = trans_reg(t, in->rm, size);
	} else {
		trans_mem(t, mul_m[sub - 4][si], size, false);
	}
}

static void shift_group(struct trans *t, unsigned size, unsigned si)
{
	const struct insn *in = &t->in;
	unsigned sub = in->modrm >> 3 & 7;
	bool cl = in->opc == 0xd2 || in->opc == 0xd3;
	u64 k = in->opc < 0xd0 ? in->imm & (size == 8 ? 63 : 31) : 1;
	op_fn *r = cl ? shift_rc[sub][si] : shift_ri[sub][si], *m = cl ? shift_mc[sub][si] : shift_mi[sub][si];

	alu_rm_imm(t, size, r, m, NULL, k, true);
}

static void x87(struct trans *t)
{
	const struct insn *in = &t->in;
	unsigned sub = in->modrm >> 3 & 7, row = in->opc & 7;
	struct op *o;

	if (!t->c->fp_ok) {
		trans_op(t, nm_op);
		t->end = true;
		return;
	}
	if (in->mod == 3) {
		u16 code = (u16)(row << 8 | in->modrm);
		bool ok = true;

		/* what is not an instruction on any processor of this level */
		if (row == 1)
			ok = !(in->modrm >= 0xd1 && in->modrm <= 0xd7) && in->modrm != 0xe2 && in->modrm != 0xe3 &&
			     in->modrm != 0xe6 && in->modrm != 0xe7 && in->modrm != 0xef;
		else if (row == 2)
			ok = sub < 4 || in->modrm == 0xe9;
		else if (row == 3)
			ok = in->modrm < 0xe5 || (in->modrm >= 0xe8 && in->modrm < 0xf8);
		else if (row == 5)
			ok = in->modrm < 0xf0;
		else if (row == 6)
			ok = sub != 3 || in->modrm == 0xd9;
		else if (row == 7)
			ok = in->modrm == 0xe0 || (in->modrm >= 0xe8 && in->modrm < 0xf8) || in->modrm < 0xe0;
		o = trans_op(t, !ok ? ud_op : row == 7 && in->modrm == 0xe0 ? x87_fnstsw_ax : x87_reg);
		o->imm = row * 64u + (in->modrm & 63u);
		o->y = code & 0x7ff;
		o->x = row == 3 && in->modrm >= 0xe0 && in->modrm <= 0xe4; /* fnclex, fninit, nops */
		/* fcmov reads the flags, fcomi sets them */
		if ((row == 2 || row == 3) && sub < 4)
			o->r0 = 1;
		if ((row == 3 || row == 7) && (sub == 5 || sub == 6))
			o->r0 = 2;
		return;
	}
	unsigned n = soft_x87_memsize((u8)row, (u8)sub);
	static const u8 store[8] = { 0, 0xcc, 0, 0x8e, 0, 0xce, 0, 0xce };
	bool st = store[row] >> sub & 1;

	if (row == 5 && sub == 1)
		n = 0; /* fisttp is SSE3 */
	if ((row == 3 || row == 7) && sub == 1)
		n = 0;
	if (!n) {
		trans_op(t, ud_op);
		t->end = true;
		return;
	}
	bool control = (row == 1 && sub >= 4) || (row == 5 && (sub == 4 || sub >= 6));
	bool nowait = (row == 1 && (sub == 6 || sub == 7)) || (row == 5 && (sub == 6 || sub == 7));

	bool env16 = (row == 1 || row == 5) && (sub == 4 || sub == 6) && in->osz == 2;

	if (env16)
		n = row == 1 ? 14 : 94;
	o = trans_mem(t, x87_mem, n, st);
	o->imm = row * 8 + sub + (env16 ? 64 : 0);
	o->r1 = (u8)n;
	o->x = (u8)((nowait ? 1 : 0) | (st ? 2 : 0) | (control ? 4 : 0));
	o->y = (u16)(row << 8 | in->modrm);
}

static void io(struct trans *t, bool dx)
{
	struct op *o = trans_op(t, io_op);

	o->x = t->in.opc >> 1 & 1;
	o->y = t->in.opc & 1 ? (t->in.osz == 2 ? 2 : 4) : 1;
	o->r0 = dx;
	o->imm = (u8)t->in.imm;
}

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
			alu_rm_reg(t, size, alu_rr[k][si], alu_mr[k][si], alu_mr_l[k][si], k != 7);
			return;
		case 2:
		case 3:
			alu_reg_rm(t, size, alu_rr[k][si], alu_rm[k][si]);
			return;
		default:
			o = trans_op(t, alu_ri[k][si]);
			o->r0 = SLOT(0);
			o->imm = in->imm;
			return;
		}
	}
	switch (b) {
	case 0x06: case 0x0e: case 0x16: case 0x1e:
		if (lm)
			ud(t);
		else
			trans_sreg(t, pushs_op, b >> 3);
		return;
	case 0x07: case 0x17: case 0x1f:
		if (lm) {
			ud(t);
		} else {
			trans_sreg(t, pops_op, b >> 3);
			trans_exit(t);
		}
		return;
	case 0x27: case 0x2f: case 0x37: case 0x3f:
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
		push_reg(t, (b & 7u) | (in->rex & 1 ? 8 : 0));
		return;
	case 0x58 ... 0x5f:
		pop_reg(t, (b & 7u) | (in->rex & 1 ? 8 : 0));
		return;
	case 0x60: case 0x61:
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
	case 0x68: case 0x6a:
		size = stack_size(t);
		o = trans_op(t, lm && size == 8 ? push_i : push_leg);
		o->imm = in->imm;
		o->x = 1;
		o->y = (u16)size;
		o->base = SLOT(X86_RSP);
		return;
	case 0x69: case 0x6b:
		if (in->mod == 3) {
			o = trans_op(t, imul_rri[osi]);
			o->r1 = SLOT(in->rm);
		} else {
			o = trans_mem(t, imul_rmi[osi], in->osz, false);
		}
		o->r0 = SLOT(in->reg);
		o->imm = in->imm;
		return;
	case 0x6c: case 0x6d:
		string_op(t, 5);
		return;
	case 0x6e: case 0x6f:
		string_op(t, 6);
		return;
	case 0x70 ... 0x7f:
		trans_jcc(t, b & 15);
		return;
	case 0x82:
		if (lm) {
			ud(t);
			return;
		}
		/* fallthrough */
	case 0x80: case 0x81: case 0x83: {
		unsigned k = in->modrm >> 3 & 7;

		if (b != 0x80 && b != 0x82) {
			size = in->osz;
			si = osi;
		} else {
			size = 1;
			si = 0;
		}
		alu_rm_imm(t, size, alu_ri[k][si], alu_mi[k][si], alu_mi_l[k][si], in->imm, k != 7);
		return;
	}
	case 0x84: case 0x85:
		alu_rm_reg(t, size, test_rr[si], test_mr[si], NULL, false);
		return;
	case 0x86: case 0x87:
		t->lock_ok = in->mod != 3;
		alu_rm_reg(t, size, xchg_rr[si], xchg_mr[si], NULL, true);
		return;
	case 0x88: case 0x89:
		alu_rm_reg(t, size, mov_rr[si], mov_mr[si], NULL, true);
		return;
	case 0x8a: case 0x8b:
		alu_reg_rm(t, size, mov_rr[si], mov_rm[si]);
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
		o->base = in->base == 0xff ? SLOT(S_ZERO) : in->base == 0xfe ? SLOT(S_RIP) : SLOT(in->base);
		o->index = in->index == 0xff ? SLOT(S_ZERO) : SLOT(in->index);
		o->scale = in->scale;
		o->disp = (s32)(in->disp + (in->base == 0xfe ? t->off + in->len : 0));
		o->r1 = SLOT(S_ZERO);
		o = trans_op(t, in->asz == 2 ? movzx_rr[1][osi] : mov_rr[osi]);
		o->r0 = SLOT(in->reg);
		o->r1 = SLOT(S_TMP);
		return;
	case 0x8f:
		size = stack_size(t);
		if (in->modrm >> 3 & 7) {
			ud(t);
		} else if (in->mod == 3) {
			pop_reg(t, in->rm);
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
	case 0x9a: case 0xea:
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
		o->y = (u16)stack_size(t);
		o->base = SLOT(X86_RSP);
		return;
	case 0x9d:
		o = trans_op(t, popf_any);
		o->y = (u16)stack_size(t);
		o->base = SLOT(X86_RSP);
		return;
	case 0x9e:
		trans_op(t, sahf_op);
		return;
	case 0x9f:
		trans_op(t, lahf_op);
		return;
	case 0xa0: case 0xa1:
		o = trans_mem(t, mov_rm[si], size, false);
		o->r0 = SLOT(0);
		return;
	case 0xa2: case 0xa3:
		o = trans_mem(t, mov_mr[si], size, true);
		o->r1 = SLOT(0);
		return;
	case 0xa4: case 0xa5:
		string_op(t, 0);
		return;
	case 0xa6: case 0xa7:
		string_op(t, 1);
		return;
	case 0xa8: case 0xa9:
		o = trans_op(t, test_ri[si]);
		o->r0 = SLOT(0);
		o->imm = in->imm;
		return;
	case 0xaa: case 0xab:
		string_op(t, 2);
		return;
	case 0xac: case 0xad:
		string_op(t, 3);
		return;
	case 0xae: case 0xaf:
		string_op(t, 4);
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
	case 0xc0: case 0xc1: case 0xd0: case 0xd1: case 0xd2: case 0xd3:
		shift_group(t, size, si);
		return;
	case 0xc2: case 0xc3:
		o = trans_op(t, near64(t) ? ret_op : ret_leg);
		o->imm = b == 0xc2 ? in->imm : 0;
		o->y = in->osz;
		o->base = SLOT(X86_RSP);
		t->end = true;
		return;
	case 0xc4: case 0xc5:
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
	case 0xc6: case 0xc7:
		if (in->modrm >> 3 & 7)
			ud(t);
		else
			alu_rm_imm(t, size, mov_ri[si], mov_mi[si], NULL, in->imm, true);
		return;
	case 0xc8:
		o = trans_op(t, enter_any);
		o->imm = in->imm;
		o->x = (u8)in->imm2;
		o->y = (u16)stack_size(t);
		o->base = SLOT(X86_RSP);
		return;
	case 0xc9:
		size = stack_size(t);
		o = trans_op(t, lm && size == 8 ? leave_64 : leave_leg);
		o->y = (u16)size;
		o->base = SLOT(X86_RBP);
		return;
	case 0xca: case 0xcb:
		o = trans_op(t, retf_op);
		o->imm = b == 0xca ? in->imm : 0;
		o->y = in->osz;
		t->end = true;
		return;
	case 0xcc: case 0xcd:
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
	case 0xd4: case 0xd5:
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
		o->r1 = lm && (in->seg == X86_FS || in->seg == X86_GS) ? SLOT(S_SEG + in->seg) : SLOT(S_ZERO);
		return;
	case 0xd8 ... 0xdf:
		x87(t);
		return;
	case 0xe0 ... 0xe3:
		o = jump(t, loop_op, loop_op);
		o->x = b & 3;
		o->r0 = in->asz;
		return;
	case 0xe4: case 0xe5: case 0xe6: case 0xe7:
		io(t, false);
		return;
	case 0xec: case 0xed: case 0xee: case 0xef:
		io(t, true);
		return;
	case 0xe8:
		if (!far_target(t, call_r))
			jump(t, call_op, call_leg)->base = SLOT(X86_RSP);
		t->end = true;
		return;
	case 0xe9: case 0xeb:
		if (!far_target(t, jmp_r))
			jump(t, jmp_op, jmp_leg);
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
	case 0xf6: case 0xf7:
		group3(t, size, si);
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
			group5(t, in->modrm >> 3 & 7, 1, 0);
		return;
	case 0xff:
		group5(t, in->modrm >> 3 & 7, in->osz, osi);
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
	/* what follows: nothing after an unconditional jump, but a conditional one may have set t.end too */
	o = trans_op(&t, t.exit || max_insns == 1 ? exit_op : fall_op);
	o->disp = (s32)t.off;
	o->ord = (u8)t.ord;
	o->off = (u16)t.off;
	o->len = 0;
	o->x = t.mode == MODE_64 && !t.exit && t.page_off + t.off < MEM_PAGE && max_insns > 1;
	return t.n;
}
