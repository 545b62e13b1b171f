/* decode.c - the instruction decoder: two tables of operand shapes and one pass over the bytes.
 * Shapes: '.' none, M modrm, b imm8, w imm16, z imm16/32, v imm16/32/64, m modrm+imm8, Z modrm+imm
 * z, o offset by address size, p far pointer, e enter, 3/# group 3 (immediate on /0 and /1), j jump
 * imm z, X undefined.
 * Trust: the bytes are the guest's and may change under us: each is read once, results are bounded
 * by shape.
 */
#include "decode.h"

#include <string.h>

static const char shape0[257] = "MMMMbz..MMMMbz.."
				"MMMMbz..MMMMbz.."
				"MMMMbz..MMMMbz.."
				"MMMMbz..MMMMbz.."
				"................"
				"................"
				"..MM....zZbm...."
				"bbbbbbbbbbbbbbbb"
				"mZmmMMMMMMMMMMMM"
				"..........p....."
				"oooo....bz......"
				"bbbbbbbbvvvvvvvv"
				"mmw.MMmZe.w..b.."
				"MMMMbb..MMMMMMMM"
				"bbbbbbbbjjpb...."
				"......3#......MM";

static const char shape1[257] = "MMMMX.....X.XM.X"
				"MMMMMMMMMMMMMMMM"
				"MMMMXXXXMMMMMMMM"
				"......XXXXXXXXXX"
				"MMMMMMMMMMMMMMMM"
				"MMMMMMMMMMMMMMMM"
				"MMMMMMMMMMMMMMMM"
				"mmmmMMM.XXXXXXMM"
				"jjjjjjjjjjjjjjjj"
				"MMMMMMMMMMMMMMMM"
				"...MmMXX...MmMMM"
				"MMMMMMMMXMmMMMMM"
				"MMmMmmmM........"
				"XMMMMMMMMMMMMMMM"
				"MMMMMMMMMMMMMMMM"
				"XMMMMMMMMMMMMMMM";

struct cursor {
	const u8 *p;
	unsigned n, avail;
	bool out;
};

static u64 get(struct cursor *k, unsigned size)
{
	u64 v = 0;

	if (k->n + size > k->avail) {
		k->out = true;
		return 0;
	}
	for (unsigned i = 0; i < size; i++)
		v |= (u64)((const volatile u8 *)k->p)[k->n + i] << (8 * i);
	k->n += size;
	return v;
}

static u64 get_s(struct cursor *k, unsigned size)
{
	u64 v = get(k, size);

	return size == 1 ? (u64)(s8)v : size == 2 ? (u64)(s16)v : size == 4 ? (u64)(s32)v : v;
}

static void modrm_mem16(struct cursor *k, struct insn *in)
{
	static const u8 bases[8] = { X86_RBX, X86_RBX, X86_RBP, X86_RBP,
				     X86_RSI, X86_RDI, X86_RBP, X86_RBX };
	static const u8 idx[8] = { X86_RSI, X86_RDI, X86_RSI, X86_RDI, 0xff, 0xff, 0xff, 0xff };
	unsigned rm = in->modrm & 7;

	in->base = bases[rm];
	in->index = idx[rm];
	if (in->mod == 0 && rm == 6) {
		in->base = 0xff;
		in->disp = (s64)get_s(k, 2);
	} else if (in->mod) {
		in->disp = (s64)get_s(k, in->mod == 1 ? 1 : 2);
	}
}

static void modrm_mem(struct cursor *k, struct insn *in, unsigned mode)
{
	unsigned rm = in->modrm & 7;

	if (in->asz == 2) {
		modrm_mem16(k, in);
		return;
	}
	if (rm == 4) {
		u8 sib = (u8)get(k, 1);

		in->scale = sib >> 6;
		in->index = (u8)((sib >> 3 & 7) | (in->rex & 2 ? 8 : 0));
		if (in->index == 4)
			in->index = 0xff;
		in->base = (u8)((sib & 7) | (in->rex & 1 ? 8 : 0));
		if ((sib & 7) == 5 && in->mod == 0) {
			in->base = 0xff;
			in->disp = (s64)get_s(k, 4);
		}
	} else {
		in->base = in->rm;
		if (rm == 5 && in->mod == 0) {
			in->base = mode == MODE_64 ? 0xfe : 0xff;
			in->disp = (s64)get_s(k, 4);
		}
	}
	if (in->mod == 1)
		in->disp = (s64)get_s(k, 1);
	else if (in->mod == 2)
		in->disp = (s64)get_s(k, 4);
}

int insn_decode(const u8 *p, unsigned avail, unsigned mode, struct insn *in)
{
	struct cursor k = { p, 0, avail < 15 ? avail : 15, false };
	bool capped = avail >= 15;
	char s;
	u8 b;

	memset(in, 0, sizeof(*in));
	in->seg = 0xff;
	in->base = in->index = 0xff;
	in->osz = mode == MODE_16 ? 2 : 4;
	in->asz = mode == MODE_64 ? 8 : mode == MODE_32 ? 4 : 2;
	for (;;) {
		b = (u8)get(&k, 1);
		if (k.out)
			return capped ? 3 : 1;
		if (mode == MODE_64 && (b & 0xf0) == 0x40) {
			in->rex = b;
			continue;
		}
		if (b == 0x66)
			in->p66 = 1;
		else if (b == 0x67)
			in->asz = mode == MODE_64 ? 4 : mode == MODE_32 ? 2 : 4;
		else if (b == 0xf0)
			in->lock = 1;
		else if (b == 0xf2 || b == 0xf3)
			in->rep = b;
		else if (b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e)
			in->seg = mode == MODE_64 ? in->seg : b >> 3 & 3;
		else if (b == 0x64 || b == 0x65)
			in->seg = b == 0x64 ? X86_FS : X86_GS;
		else
			break;
		in->rex = 0; /* only right before the opcode */
	}
	if (in->p66)
		in->osz = mode == MODE_16 ? 4 : 2;
	if (in->rex & 8)
		in->osz = 8;
	if (b == 0x0f) {
		in->map = 1;
		b = (u8)get(&k, 1);
		s = shape1[b];
	} else {
		s = shape0[b];
	}
	in->opc = b;
	if (k.out)
		return capped ? 3 : 1;
	if (s == 'X')
		return 2;
	if (s == 'M' || s == 'm' || s == 'Z' || s == '3' || s == '#') {
		in->modrm = (u8)get(&k, 1);
		in->mod = in->modrm >> 6;
		in->reg = (u8)((in->modrm >> 3 & 7) | (in->rex & 4 ? 8 : 0));
		in->rm = (u8)((in->modrm & 7) | (in->rex & 1 ? 8 : 0));
		if (in->map == 1 && b >= 0x20 && b <= 0x23)
			in->mod = 3;
		if (in->mod != 3)
			modrm_mem(&k, in, mode);
	}
	unsigned z = in->osz == 2 ? 2 : 4;

	switch (s) {
	case 'b':
	case 'm':
		in->imm = get_s(&k, 1);
		break;
	case 'w':
		in->imm = get(&k, 2);
		break;
	case 'z':
	case 'Z':
		in->imm = get_s(&k, z);
		break;
	case 'j':
		in->imm = get_s(&k, z);
		break;
	case 'v':
		in->imm = get_s(&k, in->osz);
		break;
	case 'o':
		in->disp = (s64)get(&k, in->asz);
		break;
	case 'p':
		in->imm = get(&k, z);
		in->imm2 = get(&k, 2);
		break;
	case 'e':
		in->imm = get(&k, 2);
		in->imm2 = get(&k, 1);
		break;
	case '3':
		if ((in->modrm >> 3 & 7) < 2)
			in->imm = get_s(&k, 1);
		break;
	case '#':
		if ((in->modrm >> 3 & 7) < 2)
			in->imm = get_s(&k, z);
		break;
	default:
		break;
	}
	if (k.out)
		return capped ? 3 : 1;
	in->len = (u8)k.n;
	return 0;
}
