/* decode.h - one x86 instruction taken apart: prefixes, opcode, operands, length. */
#ifndef SOFT_DECODE_H
#define SOFT_DECODE_H

#include "soft.h"

struct insn {
	u8 len, map, opc;	/* map: 0 one byte, 1 after 0F */
	u8 rex, osz, asz;	/* osz, asz: bytes */
	u8 p66, rep;		/* rep: 0, 0xf2, 0xf3 */
	u8 lock, seg;		/* seg: X86_* or 0xff */
	u8 modrm, mod, reg, rm; /* reg, rm with REX bits */
	u8 base, index, scale;	/* register numbers; 0xff none, 0xfe rip */
	s64 disp;
	u64 imm;  /* sign-extended to 64 bits */
	u64 imm2; /* selector of a far pointer, level of enter */
};

/* insn_decode() - at most @avail bytes at @p. Return: 0; 1 more bytes are needed; 2 undefined
 * (#UD), or longer than 15 bytes (#GP as 3). Each byte is read once. */
int insn_decode(const u8 *p, unsigned avail, unsigned mode, struct insn *in);

#endif
