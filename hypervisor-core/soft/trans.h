/* trans.h - the translator's own state and helpers, shared by trans.c and trans0f.c. */
#ifndef SOFT_TRANS_H
#define SOFT_TRANS_H

#include "decode.h"
#include "ops.h"

struct trans {
	struct cpu *c;
	unsigned mode;
	struct op *out;
	unsigned n;	  /* operations so far */
	unsigned off;	  /* of the instruction from the block's start */
	unsigned ord;	  /* its number */
	unsigned page_off; /* block's start in its page */
	bool end;	  /* no instruction follows in this block */
	bool exit;	  /* back to the run loop after this instruction */
	bool lock_ok;	  /* LOCK is allowed here and was honoured */
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

#endif
