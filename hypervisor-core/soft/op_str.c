/* op_str.c - string instructions and port I/O.
 *
 * REP MOVS and STOS upwards run in bulk, a page piece at a time, as ERMS promises. Registers are updated
 * after each piece or element, so a fault or an interrupt in the middle resumes there.
 * o->x kind, o->y element bytes | rep << 8 (1 = repe, 2 = repne), o->r0 address bytes, o->r1 source segment,
 * o->base slot of the source segment's base in 64-bit mode.
 */
#include <string.h>

#include "flags.h"
#include "ops.h"

/* macro tables, a handler a line */
/* clang-format off */

enum { STR_MOVS, STR_CMPS, STR_STOS, STR_LODS, STR_SCAS, STR_INS, STR_OUTS };

static u64 str_mask(const struct op *o)
{
	return o->r0 == 8 ? ~0ULL : o->r0 == 4 ? 0xffffffffULL : 0xffffULL;
}

static void str_reg(struct cpu *c, const struct op *o, unsigned reg, u64 v)
{
	if (o->r0 == 8)
		c->r[reg] = v;
	else if (o->r0 == 4)
		c->r[reg] = (u32)v;
	else
		c->r[reg] = (c->r[reg] & ~0xffffULL) | (v & 0xffff);
}

static u64 str_src(struct cpu *c, const struct op *o, unsigned size)
{
	u64 a = c->r[X86_RSI] & str_mask(o);

	return c->mode == MODE_64 ? a + R64(o->base) : soft_seg_ea(c, o, o->r1, a, size, false);
}

static u64 str_dst(struct cpu *c, const struct op *o, unsigned size, bool write)
{
	u64 a = c->r[X86_RDI] & str_mask(o);

	return c->mode == MODE_64 ? a : soft_seg_ea(c, o, X86_ES, a, size, write);
}

static s64 str_sext(u64 v, unsigned size)
{
	return size == 1 ? (s64)(s8)v : size == 2 ? (s64)(s16)v : size == 4 ? (s64)(s32)v : (s64)v;
}

static void str_cmp_flags(struct cpu *c, u64 a, u64 b, unsigned size)
{
	s64 x = str_sext(a, size), y = str_sext(b, size);

	flags_set(c, FL_SUB, x, y, str_sext((u64)x - (u64)y, size));
}

/* str_one() - one element. Return: true where a repeated compare must end. */
static bool str_one(struct cpu *c, const struct op *o, unsigned kind, unsigned size, unsigned rep)
{
	s64 step = c->eflags & EFL_DF ? -(s64)size : (s64)size;
	u64 v, w;

	switch (kind) {
	case STR_MOVS:
		v = soft_ld(c, o, str_src(c, o, size), size);
		soft_st(c, o, str_dst(c, o, size, true), size, v);
		break;
	case STR_CMPS:
		/* the order shows where both fault */
		w = soft_ld(c, o, str_dst(c, o, size, false), size);
		v = soft_ld(c, o, str_src(c, o, size), size);
		str_cmp_flags(c, v, w, size);
		break;
	case STR_STOS:
		soft_st(c, o, str_dst(c, o, size, true), size, c->r[0]);
		break;
	case STR_LODS:
		v = soft_ld(c, o, str_src(c, o, size), size);
		if (size == 4)
			c->r[0] = v;
		else
			memcpy(&c->r[0], &v, size);
		break;
	case STR_SCAS:
		w = soft_ld(c, o, str_dst(c, o, size, false), size);
		str_cmp_flags(c, c->r[0], w, size);
		break;
	case STR_INS:
		/* the destination first: a port read cannot be undone */
		w = str_dst(c, o, size, true);
		soft_probe_w(c, o, w, size);
		c->n_pio++;
		v = bus_read(c->vm->pio, (u16)c->r[X86_RDX], size);
		soft_st(c, o, w, size, v);
		break;
	default:
		v = soft_ld(c, o, str_src(c, o, size), size);
		c->n_pio++;
		bus_write(c->vm->pio, (u16)c->r[X86_RDX], size, v);
		break;
	}
	if (kind == STR_MOVS || kind == STR_CMPS || kind == STR_LODS || kind == STR_OUTS)
		str_reg(c, o, X86_RSI, c->r[X86_RSI] + (u64)step);
	if (kind != STR_LODS && kind != STR_OUTS)
		str_reg(c, o, X86_RDI, c->r[X86_RDI] + (u64)step);
	return (kind == STR_CMPS || kind == STR_SCAS) && rep && flag_zf(c) != (rep == 1);
}

/* str_bulk() - REP MOVS/STOS forwards, 64-bit mode: up to @n elements in one page piece.
 * Return: elements done, 0 where the slow way must be taken. */
static u64 str_bulk(struct cpu *c, const struct op *o, bool movs, unsigned size, u64 n)
{
	u64 len, slen, dst = c->r[X86_RDI] & str_mask(o), src = 0;
	u8 *d, *s = NULL;

	if (o->r0 != 8)
		return 0;
	if (movs) {
		src = c->r[X86_RSI] + R64(o->base);
		s = soft_span(c, o, src, ACC_R, &slen);
		if (!s)
			return 0;
	}
	c->fault_op = o;
	d = soft_span(c, o, dst, ACC_W, &len);
	if (!d)
		return 0;
	if (movs && slen < len)
		len = slen;
	n = n < len / size ? n : len / size;
	if (!n)
		return 0;
	len = n * size;
	if (!movs) {
		u64 v = c->r[0];

		if (size == 1 || (size == 8 && !v) || v == 0) {
			memset(d, (int)v, len);
		} else {
			for (u64 i = 0; i < n; i++)
				memcpy(d + i * size, &v, size);
		}
	} else if (d >= s + len || d + len <= s) {
		memcpy(d, s, len);
	} else if (d < s) {
		memmove(d, s, len);
	} else {
		/* overlapping upwards repeats a pattern: that is what the guest asked for */
		for (u64 i = 0; i < n; i++)
			memmove(d + i * size, s + i * size, size);
	}
	c->r[X86_RDI] += len;
	if (movs)
		c->r[X86_RSI] += len;
	return n;
}

static const struct op *str_do(struct cpu *c, const struct op *o)
{
	unsigned kind = o->x, size = o->y & 0xff, rep = o->y >> 8;
	u64 mask = str_mask(o), n;
	unsigned budget = 4096;

	if (kind >= STR_INS && !soft_io_allowed(c, o, (u16)c->r[X86_RDX], size))
		soft_raise_err(c, o, EXC_GP, 0);
	if (!rep) {
		str_one(c, o, kind, size, 0);
		NEXT;
	}
	while ((n = c->r[X86_RCX] & mask) != 0) {
		u64 done = 0;
		bool end = false;

		if ((kind == STR_MOVS || kind == STR_STOS) && !(c->eflags & EFL_DF) &&
		    c->mode == MODE_64)
			done = str_bulk(c, o, kind == STR_MOVS, size, n);
		if (!done) {
			end = str_one(c, o, kind, size, rep);
			done = 1;
		}
		str_reg(c, o, X86_RCX, n - done);
		if (end)
			break;
		budget -= budget ? 1 : 0;
		if (n != done && (!budget || atomic_load_explicit(&c->attn, memory_order_relaxed))) {
			/* interruptible: come back to this same instruction */
			c->icount += o->ord + 1u; /* a piece counts: virtual time must go on */
			RIP += o->off;
			return NULL;
		}
	}
	NEXT;
}
op_fn *const str_op = str_do;
op_fn *const str_movs_rep = str_do;
op_fn *const str_stos_rep = str_do;

/* in, out: x = 0 in, 1 out; y = bytes; r0 = 0: port in imm, else DX */
static const struct op *io_do(struct cpu *c, const struct op *o)
{
	u16 port = (u16)(o->r0 ? c->r[X86_RDX] : o->imm);
	u64 v;

	if (!soft_io_allowed(c, o, port, o->y))
		soft_raise_err(c, o, EXC_GP, 0);
	c->n_pio++;
	if (o->x) {
		v = o->y == 4 ? (u32)c->r[0] : o->y == 2 ? (u16)c->r[0] : (u8)c->r[0];
		bus_write(c->vm->pio, port, o->y, v);
	} else {
		v = bus_read(c->vm->pio, port, o->y);
		if (o->y == 4)
			c->r[0] = (u32)v;
		else
			memcpy(&c->r[0], &v, o->y);
	}
	NEXT;
}
op_fn *const io_op = io_do;
