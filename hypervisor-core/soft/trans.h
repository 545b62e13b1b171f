/* trans.h - the translator's own state and helpers, shared by trans.c and trans0f.c. */
#ifndef SOFT_TRANS_H
#define SOFT_TRANS_H

#include "decode.h"
#include "ops.h"

struct trans {
	struct cpu *c;
	unsigned mode;
	struct op *out;
	unsigned n;	   /* operations so far */
	unsigned off;	   /* of the instruction from the block's start */
	unsigned ord;	   /* its number */
	unsigned page_off; /* block's start in its page */
	bool end;	   /* no instruction follows in this block */
	bool exit;	   /* back to the run loop after this instruction */
	bool lock_ok;	   /* LOCK is allowed here and was honoured */
	struct insn in;
};

struct op *trans_op(struct trans *t, op_fn *fn);
struct op *trans_mem(struct trans *t, op_fn *fn, unsigned size, bool write);
u8 trans_reg(struct trans *t, unsigned n, unsigned size);
struct op *trans_rm16(struct trans *t, op_fn *fn, bool write);
void trans_jcc(struct trans *t, unsigned cc);
void trans_exit(struct trans *t);
void trans_sreg(struct trans *t, op_fn *fn, unsigned seg);
void trans_0f(struct trans *t);

/* trans_group.c */
void trans_alu_rm_reg(struct trans *t, unsigned size, op_fn *rr, op_fn *mr, op_fn *mr_lock,
		      bool write);
void trans_alu_reg_rm(struct trans *t, unsigned size, op_fn *rr, op_fn *rm);
void trans_alu_rm_imm(struct trans *t, unsigned size, op_fn *ri, op_fn *mi, op_fn *mi_lock, u64 imm,
		      bool write);
struct op *trans_jump(struct trans *t, op_fn *fn, op_fn *leg);
bool trans_near64(const struct trans *t);
bool trans_far_target(struct trans *t, op_fn *by_reg);
void trans_string_op(struct trans *t, unsigned kind);
unsigned trans_stack_size(const struct trans *t);
void trans_push_reg(struct trans *t, unsigned n);
void trans_pop_reg(struct trans *t, unsigned n);
void trans_group5(struct trans *t, unsigned sub, unsigned size, unsigned si);
void trans_group3(struct trans *t, unsigned size, unsigned si);
void trans_shift_group(struct trans *t, unsigned size, unsigned si);
void trans_x87(struct trans *t);
void trans_io(struct trans *t, bool dx);

#endif
