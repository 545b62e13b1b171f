/* trans_group.c - what instructions have in common when they become operations: operands,
 * addresses, relative jumps, stack forms, opcode groups, x87.
 *
 * An odd address (segment, 32-bit, beyond the common form) is made by a micro-op in front, so that
 * each handler knows one form of address only.
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
void trans_alu_rm_reg(struct trans *t, unsigned size, op_fn *rr, op_fn *mr, op_fn *mr_lock,
		      bool write)
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

void trans_alu_reg_rm(struct trans *t, unsigned size, op_fn *rr, op_fn *rm)
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

void trans_alu_rm_imm(struct trans *t, unsigned size, op_fn *ri, op_fn *mi, op_fn *mi_lock, u64 imm,
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
bool trans_near64(const struct trans *t)
{
	return t->mode == MODE_64 && t->in.osz != 2;
}

/* a relative jump or call: @fn has the linked form, @leg the legacy one */
struct op *trans_jump(struct trans *t, op_fn *fn, op_fn *leg)
{
	s64 target = (s64)t->off + t->in.len + (s64)t->in.imm;
	s64 page = (s64)t->page_off + target;
	struct op *o = trans_op(t, trans_near64(t) ? fn : leg);

	o->disp = (s32)target; /* see trans_far_target() */
	o->x = trans_near64(t) && page >= 0 && page < (s64)MEM_PAGE;
	o->y = trans_near64(t) ? 8 : t->in.osz;
	return o;
}

/* trans_far_target() - the target does not fit an operation's 32 bits: make it in S_TMP. */
bool trans_far_target(struct trans *t, op_fn *by_reg)
{
	s64 target = (s64)t->off + t->in.len + (s64)t->in.imm;
	struct op *o;

	if (target == (s32)target || !trans_near64(t))
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

	if (trans_near64(t)) {
		s64 target = (s64)t->off + t->in.len + (s64)t->in.imm;

		if (target != (s32)target) {
			struct op *skip = trans_op(t, jcc_op[cc ^ 1]);

			skip->disp = (s32)(t->off + t->in.len);
			trans_far_target(t, jmp_r);
			t->end = true;
			return;
		}
		if (t->n && t->ord && t->out[t->n - 1].ord + 1u == t->ord) {
			int f = fuse_form(t->out[t->n - 1].fn, &si);

			if (f >= 0 && fuse_cc[f][si][cc])
				t->out[t->n - 1].fn = fuse_cc[f][si][cc];
		}
		trans_jump(t, jcc_op[cc], NULL);
		return;
	}
	struct op *o = trans_jump(t, NULL, jcc_leg);

	o->imm = cc;
}

void trans_string_op(struct trans *t, unsigned kind)
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
unsigned trans_stack_size(const struct trans *t)
{
	if (t->mode == MODE_64)
		return t->in.p66 && !(t->in.rex & 8) ? 2 : 8;
	return t->in.osz;
}

void trans_push_reg(struct trans *t, unsigned n)
{
	unsigned s = trans_stack_size(t);
	struct op *o = trans_op(t, t->mode == MODE_64 ? (s == 8 ? push_r : push_w) : push_leg);

	o->r0 = SLOT(n);
	o->y = (u16)s;
	o->base = SLOT(X86_RSP);
}

void trans_pop_reg(struct trans *t, unsigned n)
{
	unsigned s = trans_stack_size(t);
	struct op *o = trans_op(t, t->mode == MODE_64 ? (s == 8 ? pop_r : pop_w) : pop_leg);

	o->r0 = SLOT(n);
	o->y = (u16)s;
	o->base = SLOT(X86_RSP);
}

void trans_sreg(struct trans *t, op_fn *fn, unsigned seg)
{
	struct op *o = trans_op(t, fn);

	o->r1 = (u8)seg;
	o->y = (u16)trans_stack_size(t);
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

void trans_group5(struct trans *t, unsigned sub, unsigned size, unsigned si)
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
		if (trans_near64(t)) {
			if (m)
				trans_mem(t, sub == 2 ? call_m : jmp_m, 8, false);
			else {
				o = trans_op(t, sub == 2 ? call_r : jmp_r);
				o->r0 = SLOT(in->rm);
				o->base = SLOT(X86_RSP);
			}
		} else {
			o = m ? trans_mem(t, sub == 2 ? calli_leg : jmpi_leg, in->osz, false)
			      : trans_op(t, sub == 2 ? calli_leg : jmpi_leg);
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
		size = trans_stack_size(t);
		if (!m) {
			trans_push_reg(t, in->rm);
		} else {
			o = trans_mem(t, t->mode == MODE_64 && size == 8 ? push_m : push_leg, size,
				      false);
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

void trans_group3(struct trans *t, unsigned size, unsigned si)
{
	const struct insn *in = &t->in;
	unsigned sub = in->modrm >> 3 & 7;

	if (sub < 2) {
		trans_alu_rm_imm(t, size, test_ri[si], test_mi[si], NULL, in->imm, false);
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

void trans_shift_group(struct trans *t, unsigned size, unsigned si)
{
	const struct insn *in = &t->in;
	unsigned sub = in->modrm >> 3 & 7;
	bool cl = in->opc == 0xd2 || in->opc == 0xd3;
	u64 k = in->opc < 0xd0 ? in->imm & (size == 8 ? 63 : 31) : 1;
	op_fn *r = cl ? shift_rc[sub][si] : shift_ri[sub][si],
	      *m = cl ? shift_mc[sub][si] : shift_mi[sub][si];

	trans_alu_rm_imm(t, size, r, m, NULL, k, true);
}

void trans_x87(struct trans *t)
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
			ok = !(in->modrm >= 0xd1 && in->modrm <= 0xd7) && in->modrm != 0xe2 &&
			     in->modrm != 0xe3 && in->modrm != 0xe6 && in->modrm != 0xe7 &&
			     in->modrm != 0xef;
		else if (row == 2)
			ok = sub < 4 || in->modrm == 0xe9;
		else if (row == 3)
			ok = in->modrm < 0xe5 || (in->modrm >= 0xe8 && in->modrm < 0xf8);
		else if (row == 5)
			ok = in->modrm < 0xf0;
		else if (row == 6)
			ok = sub != 3 || in->modrm == 0xd9;
		else if (row == 7)
			ok = in->modrm == 0xe0 || (in->modrm >= 0xe8 && in->modrm < 0xf8) ||
			     in->modrm < 0xe0;
		o = trans_op(t, !ok				? ud_op
				: row == 7 && in->modrm == 0xe0 ? x87_fnstsw_ax
								: x87_reg);
		o->imm = row * 64u + (in->modrm & 63u);
		o->y = code & 0x7ff;
		/* fnclex, fninit, nops */
		o->x = row == 3 && in->modrm >= 0xe0 && in->modrm <= 0xe4;
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

void trans_io(struct trans *t, bool dx)
{
	struct op *o = trans_op(t, io_op);

	o->x = t->in.opc >> 1 & 1;
	o->y = t->in.opc & 1 ? (t->in.osz == 2 ? 2 : 4) : 1;
	o->r0 = dx;
	o->imm = (u8)t->in.imm;
}
