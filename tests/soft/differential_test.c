/* differential_test.c - random ring 3 instructions on the real CPU and on the interpreter,
 * compared.
 *
 * Each case: one instruction (a few where one cannot be compared) with random prefixes, operands, registers, flags, x87,
 * MMX and SSE state. Compared: the fault's kind and address, registers, memory, defined flags, x87
 * and SSE state.
 * SOFT_DIFF_CASES sets the number (bounded default), or SOFT_DIFF_SECONDS the time, SOFT_DIFF_SEED
 * the start; the count is printed.
 * What is left out, and why, is in gen_refuse(): newer instructions than x86-64-v1 that the host
 * executes, and those whose result is the machine's (CPUID, RDTSC, selectors, system calls).
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include <cmocka.h>

#include "guest.h"
#include "native.h"

#include "hypervisor-core/soft/decode.h"

static u64 rng_state;

static u64 rnd(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state * 0x2545f4914f6cdd1dULL;
}

static unsigned pick(unsigned n)
{
	return (unsigned)(rnd() >> 33) % n;
}

struct gen {
	u8 b[64];
	unsigned n;
	bool movs;  /* source and destination both fault: which comes first is the microcode's */
	bool image; /* x87 images are read in parts: which part faults first is the microcode's */
	u32 undef;  /* arithmetic flags that the last instruction leaves undefined */
};

/* gen_refuse() - not comparable, or beyond the level offered. */
static bool gen_refuse(bool two, u8 op, u8 modrm, unsigned rep, bool p66)
{
	unsigned reg = modrm >> 3 & 7;
	bool m = modrm < 0xc0;

	if (!two) {
		switch (op) {
		case 0x0f:
		case 0x26:
		case 0x2e:
		case 0x36:
		case 0x3e:
		case 0x40 ... 0x4f:
		case 0x62:
		case 0x64:
		case 0x65:
		case 0x66:
		case 0x67:
		case 0x8e:
		case 0xc4:
		case 0xc5:
		case 0xca:
		case 0xcb:
		case 0xcd:
		case 0xcf:
		case 0xf0:
		case 0xf1:
		case 0xf2:
		case 0xf3:
		case 0x9d: /* popf: gen_popf() */
			return true;
		case 0x8f: /* XOP */
			return modrm & 0x38;
		case 0xff:
			return reg == 3 || reg == 5;
		case 0xdb:
		case 0xdd:
		case 0xdf: /* fisttp */
			return (m && reg == 1) ||
			       (op == 0xdd && m && reg == 6); /* and fnsave: gen_saved_x87() */
		case 0xd9:
			return m && reg == 6; /* fnstenv: gen_saved_x87() */
		case 0xe0:
		case 0xe1: /* REP changes the condition on some processors */
			return rep;
		default:
			return false;
		}
	}
	switch (op) {
	case 0x00 ... 0x0c:
	case 0x0e:
	case 0x0f:
	case 0x18 ... 0x1f:
	case 0x20 ... 0x27:
	case 0x30 ... 0x3f:
	case 0x77 ... 0x7d:
	case 0xa1:
	case 0xa2:
	case 0xa9:
	case 0xaa:
	case 0xb2:
	case 0xb4:
	case 0xb5:
	case 0xb8:
	case 0xb9:
	case 0xd0:
	case 0xf0:
	case 0xff:
	case 0x0d:
		return true;
	case 0xbc:
	case 0xbd: /* tzcnt, lzcnt */
		return rep == 0xf3;
	case 0xc7:
		return !m || reg != 1;
	case 0xae: /* fxsave: pointers; xsave and friends */
		return m ? (reg != 2 && reg != 3) || rep || p66 : true;
	case 0x12:
	case 0x16:
	case 0x2b: /* SSE3, SSE4a */
		return rep;
	case 0xa4:
	case 0xa5:
	case 0xac:
	case 0xad: /* counts above 16 of 16 bits: undefined */
		return p66;
	case 0xc3:
	case 0xc2:
		return false;
	default:
		return false;
	}
}

static u32 gen_undefined(bool two, u8 op, u8 modrm)
{
	unsigned reg = modrm >> 3 & 7;

	if (!two) {
		switch (op) {
		case 0x69:
		case 0x6b:
			return EFL_SF | EFL_ZF | EFL_AF | EFL_PF;
		case 0x08 ... 0x0d:
		case 0x20 ... 0x25:
		case 0x30 ... 0x35:
		case 0x84:
		case 0x85:
		case 0xa8:
		case 0xa9:
			return EFL_AF;
		case 0x80:
		case 0x81:
		case 0x83:
			return reg == 1 || reg == 4 || reg == 6 ? EFL_AF : 0;
		case 0xc0:
		case 0xc1:
		case 0xd0 ... 0xd3:
			return (reg < 4 ? 0 : EFL_AF) | EFL_OF | (reg >= 4 ? EFL_CF : 0);
		case 0xf6:
		case 0xf7:
			return reg < 2	 ? EFL_AF
			       : reg < 4 ? 0
			       : reg < 6 ? EFL_SF | EFL_ZF | EFL_AF | EFL_PF
					 : EFL_ARITH;
		default:
			return 0;
		}
	}
	switch (op) {
	case 0xa3:
	case 0xab:
	case 0xb3:
	case 0xbb:
	case 0xba:
		return EFL_OF | EFL_SF | EFL_AF | EFL_PF;
	case 0xa4:
	case 0xa5:
	case 0xac:
	case 0xad:
		return EFL_OF | EFL_AF | EFL_CF | EFL_SF | EFL_ZF | EFL_PF;
	case 0xaf:
		return EFL_SF | EFL_ZF | EFL_AF | EFL_PF;
	case 0xbc:
	case 0xbd:
		return EFL_ARITH & ~EFL_ZF;
	default:
		return 0;
	}
}

/* gen_one() - append one instruction. Lengths come out right by construction of ModRM; immediates
 * are plenty. */
static void gen_one(struct gen *g)
{
	bool two, p66;
	u8 op, modrm;
	unsigned rep, start = g->n;

	do {
		g->n = start;
		two = pick(2);
		op = (u8)rnd();
		modrm = (u8)rnd();
		p66 = pick(4) == 0;
		rep = two	     ? (pick(2) ? (pick(2) ? 0xf2 : 0xf3) : 0)
		      : pick(8) == 0 ? (pick(2) ? 0xf2 : 0xf3)
				     : 0;
	} while (gen_refuse(two, op, modrm, rep, p66));
	if (pick(64) == 0)
		g->b[g->n++] = 0xf0;
	if (pick(32) == 0)
		g->b[g->n++] = pick(2) ? 0x64 : 0x65;
	if (pick(32) == 0)
		g->b[g->n++] = 0x67;
	if (p66)
		g->b[g->n++] = 0x66;
	if (rep)
		g->b[g->n++] = (u8)rep;
	if (pick(2))
		g->b[g->n++] = (u8)(0x40 | pick(16));
	if (two)
		g->b[g->n++] = 0x0f;
	g->b[g->n++] = op;
	g->b[g->n++] = modrm;
	/* sib, displacement, immediate: mostly small */
	for (unsigned i = 0; i < 12; i++)
		g->b[g->n++] = (u8)rnd();
	if ((modrm & 0xc0) == 0x80) { /* keep 32-bit displacements small */
		unsigned d = (u8)((modrm & 7) == 4) + 1u;
		unsigned m = g->n - 12;
		s32 v = (s32)pick(4096) - 1024;

		memcpy(&g->b[m + d - 1], &v, 4);
	} else if (!two &&
		   ((op >= 0x70 && op <= 0x7f) || (op >= 0xe0 && op <= 0xe3) || op == 0xeb) &&
		   (s8)modrm < 0 && (s8)modrm > -20) {
		g->b[g->n - 13] = 5;		     /* not into itself: that may never end */
	} else if ((modrm & 0xc7) == 5 && pick(4)) { /* rip-relative, into the data */
		s32 v = (s32)(DATA_VA - CODE_VA) + (s32)pick(DATA_BYTES);

		memcpy(&g->b[g->n - 12], &v, 4);
	}
	g->undef = gen_undefined(two, op, modrm);
	g->movs = !two && (op == 0xa4 || op == 0xa5);
	g->image = !two && (op == 0xd9 || op == 0xdd) && (modrm >> 3 & 7) == 4;
	/* what follows is int3. A wrong length would show: the real CPU takes int3s as operands, or
	 * too few bytes. */
	struct insn in;

	if (insn_decode(g->b + start, g->n - start, MODE_64, &in) == 0)
		g->n = start + in.len;
}

static void gen_bytes(struct gen *g, const void *b, unsigned n)
{
	memcpy(g->b + g->n, b, n);
	g->n += n;
}

/* gen_popf() - push an immediate, pop it into the flags, push them. Without TF and AC, that end
 * the comparison's own means, and ID, that a tracer cannot set back. */
static void gen_popf(struct gen *g)
{
	u32 imm = (u32)(rnd() & ~(u64)(EFL_TF | EFL_AC | EFL_ID));
	bool p66 = pick(2);

	if (p66)
		gen_bytes(g, "\x66", 1);
	gen_bytes(g, "\x68", 1);
	gen_bytes(g, &imm, p66 ? 2 : 4);
	if (p66)
		gen_bytes(g, "\x66", 1);
	gen_bytes(g, "\x9d\x9c", 2);
}

/* gen_saved_x87() - fnsave or fnstenv, then zeroes over the instruction and data pointers, which
 * hold what the host executed last. */
static void gen_saved_x87(struct gen *g)
{
	s32 at = (s32)(DATA_VA - (CODE_VA + 0x107)) + (s32)pick(DATA_BYTES - 128);
	bool p66 = pick(2);

	gen_bytes(g, "\x48\x8d\x1d", 3); /* lea rbx, [rip + at] */
	gen_bytes(g, &at, 4);
	if (p66)
		gen_bytes(g, "\x66", 1);
	gen_bytes(g, pick(2) ? "\xdd\x33" : "\xd9\x33", 2);
	gen_bytes(g, "\xb8\0\0\0\0", 5);				/* mov eax, 0 */
	gen_bytes(g, p66 ? "\x48\x89\x43\x06" : "\x48\x89\x43\x0c", 4); /* mov [rbx + n], rax */
	if (!p66)
		gen_bytes(g, "\x48\x89\x43\x14", 4);
}

static const u64 edges[] = { 0,
			     1,
			     2,
			     0x7f,
			     0x80,
			     0xff,
			     0x7fff,
			     0x8000,
			     0xffff,
			     0x7fffffff,
			     0x80000000,
			     0xffffffff,
			     0x7fffffffffffffffULL,
			     0x8000000000000000ULL,
			     ~0ULL,
			     63,
			     64,
			     31,
			     32 };

static u64 gen_value(void)
{
	switch (pick(8)) {
	case 0:
		return edges[pick(sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return rnd();
	case 2:
		return pick(256);
	case 3:
		return STACK_VA + 0x800 + pick(256) * 8;
	case 4:
		return DATA_VA + DATA_BYTES - 16 + pick(32);
	case 5:
		return DATA_VA + 0xff0 + pick(32);
	default:
		return DATA_VA + (pick(DATA_BYTES) & (pick(2) ? ~15u : ~0u));
	}
}

static void gen_fp(struct user_fpregs_struct *f)
{
	static const u32 floats[] = { 0,	  0x80000000, 0x3f800000, 0x7f800000, 0xff800000,
				      0x7fc00000, 0x7fa00000, 1,	  0x7fffff,   0x7f7fffff,
				      0x4f000000, 0xcf000000, 0xbf800000 };
	static const u64 doubles[] = { 0,
				       1ULL << 63,
				       0x3ff0000000000000ULL,
				       0x7ff0000000000000ULL,
				       0x7ff8000000000000ULL,
				       0x7ff4000000000000ULL,
				       1,
				       0x000fffffffffffffULL,
				       0x7fefffffffffffffULL,
				       0x43e0000000000000ULL,
				       0xc3e0000000000000ULL,
				       0x41dfffffffc00000ULL };
	u8 *x = (u8 *)f->xmm_space;

	memset(f, 0, sizeof(*f));
	for (unsigned i = 0; i < 256; i += 8) {
		u64 v = rnd();

		if (pick(3) == 0)
			v = doubles[pick(12)];
		else if (pick(3) == 0)
			v = floats[pick(13)] | (u64)floats[pick(13)] << 32;
		memcpy(x + i, &v, 8);
	}
	f->cwd = (u16)(0x40 | (pick(4) ? 0x3f : pick(64)) | (pick(4) == 3 ? 2 : 3) << 8 |
		       (pick(2) ? 0 : pick(4) << 10));
	f->swd = (u16)((pick(2) ? 0 : pick(8)) << 11 | (pick(4) ? 0 : (rnd() & 0x4700)));
	f->ftw = pick(2) ? 0xff : (u16)pick(256);
	for (unsigned i = 0; i < 8; i++) {
		u64 man = rnd() | 1ULL << 63;
		u16 exp = (u16)(0x3fff - 40 + pick(80));

		switch (pick(8)) {
		case 0:
			man = 0;
			exp = 0;
			break;
		case 1:
			exp = 0x7fff;
			if (pick(2))
				man = 1ULL << 63;
			break;
		case 2:
			man = (1ULL << 63) >> pick(64);
			exp = 0;
			break;
		case 3:
			man = rnd();
			exp = (u16)(rnd() & 0x7fff);
			break;
		case 4:
			man = (u64)(pick(1000) + 1) << 53 | 1ULL << 63;
			break;
		default:
			break;
		}
		if (pick(2))
			exp |= 0x8000;
		memcpy((u8 *)f->st_space + i * 16, &man, 8);
		memcpy((u8 *)f->st_space + i * 16 + 8, &exp, 2);
	}
	f->mxcsr = (pick(8) ? 0x1f80 : pick(64) << 7) | (pick(2) ? 0 : pick(4) << 13) |
		   (pick(8) ? 0 : 0x8000) | (pick(8) ? 0 : 0x40) | (pick(4) ? 0 : 0);
	f->mxcr_mask = 0xffff;
}

static int vector_to_signal(int v, u64 cr2, u64 *addr, int *code)
{
	*addr = 0;
	*code = 0;
	switch (v) {
	case EXC_BP:
	case EXC_DB:
		return SIGTRAP;
	case EXC_UD:
		return SIGILL;
	case EXC_DE:
	case EXC_MF:
	case EXC_XM:
		return SIGFPE;
	case EXC_SS:
		return SIGBUS;
	case EXC_AC:
		return SIGBUS;
	case EXC_GP:
		*code = 128;
		return SIGSEGV;
	case EXC_PF:
		*addr = cr2;
		return SIGSEGV;
	default:
		return -v;
	}
}

static const char *const reg_names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					   "r8",  "r9",	 "r10", "r11", "r12", "r13", "r14", "r15" };

static unsigned mismatches, endless, explained;

__attribute__((format(printf, 3, 4))) static void complain(const struct gen *g, u64 n,
							   const char *fmt, ...)
{
	va_list ap;

	if (mismatches++ > 40)
		return;
	printf("case %llu:", (unsigned long long)n);
	for (unsigned i = 0; i < 16; i++)
		printf(" %02x", g->b[i]);
	printf(": ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

/* guest_reaches() - are the (at most) 8 bytes at @va mapped? */
static bool guest_reaches(struct guest *g, u64 va)
{
	u64 gpa;

	return soft_mmu_probe(g->c, va, &gpa) && soft_mmu_probe(g->c, va + 7, &gpa);
}

static void diff_case(struct guest *g, struct native *nat, u64 n, u8 *pristine)
{
	struct gen gen = { .n = 0 };
	struct user_regs_struct r = nat->base;
	struct user_fpregs_struct f;
	struct x86_state s = g->base;
	unsigned long long *const nr[16] = { (void *)&r.rax, (void *)&r.rcx, (void *)&r.rdx,
					     (void *)&r.rbx, (void *)&r.rsp, (void *)&r.rbp,
					     (void *)&r.rsi, (void *)&r.rdi, (void *)&r.r8,
					     (void *)&r.r9,  (void *)&r.r10, (void *)&r.r11,
					     (void *)&r.r12, (void *)&r.r13, (void *)&r.r14,
					     (void *)&r.r15 };
	u64 addr, gaddr, rip, rsp, rflags;
	int code, gcode, sig, gsig, vec;

	switch (pick(64)) {
	case 0:
		gen_popf(&gen);
		break;
	case 1:
		gen_saved_x87(&gen);
		break;
	default:
		gen_one(&gen);
	}
	memset(gen.b + gen.n, 0xcc, sizeof(gen.b) - gen.n);
	for (unsigned i = 0; i < 16; i++)
		*nr[i] = gen_value();
	if (pick(16))
		r.rsp = STACK_VA + 0x400 + pick(0x100) * 8;
	if (pick(2))
		r.rcx = pick(40);
	r.eflags = 0x202 | (rnd() & EFL_ARITH) | (pick(8) ? 0 : EFL_DF);
	r.rip = CODE_VA + 0x100;
	r.fs_base = DATA_VA;
	r.gs_base = DATA_VA + 0x800;
	r.ds = r.es = r.fs = r.gs = 0;
	gen_fp(&f);
	memcpy(nat->code + 0x100, gen.b, sizeof(gen.b));
	memcpy(g->code + 0x100, gen.b, sizeof(gen.b));
	for (unsigned i = 0; i < 16; i++)
		s.gpr[i] = *nr[i];
	s.rip = r.rip;
	s.rflags = r.eflags;
	s.seg[X86_FS].base = r.fs_base;
	s.seg[X86_GS].base = r.gs_base;
	s.xsave_len = 576;
	memcpy(s.xsave, &f, 416);
	s.xsave[512] = 3;
	const struct user_regs_struct r0 = r;
	const struct user_fpregs_struct f0 = f;
	u8 data0[DATA_BYTES + 0x1000];

	memcpy(data0, nat->data, DATA_BYTES);
	memcpy(data0 + DATA_BYTES, nat->stack, 0x1000);
	vec = guest_run(g, &s, &rip, &rsp, &rflags);
	sig = native_run(nat, &r, &f, &addr, &code);
	/* the alarm may have rung before the child was given a processor at all */
	for (int tries = 0; sig == SIGSTOP && vec >= 0 && tries < 20; tries++) {
		r = r0;
		f = f0;
		memcpy(nat->code + 0x100, gen.b, sizeof(gen.b));
		memcpy(nat->data, data0, DATA_BYTES);
		memcpy(nat->stack, data0 + DATA_BYTES, 0x1000);
		sig = native_run(nat, &r, &f, &addr, &code);
	}
	assert_true(sig > 0);
	bool bad = false;

	if (sig == SIGSTOP) { /* endless: then it must be so here */
		endless++;
		if (vec >= 0)
			complain(&gen, n, "endless on the real CPU, here vector %d", vec);
		goto restore;
	}
	if (vec < 0) {
		complain(&gen, n, "native signal %d, here endless", sig);
		goto restore;
	}
	gsig = vector_to_signal(vec, g->c->cr2, &gaddr, &gcode);

	if (r.rip >> 32 && sig == SIGSEGV && r.rip >= 0xffffffffff600000ULL)
		goto restore; /* the vsyscall page */
	if (addr >= 0xffffffffff600000ULL && sig == SIGSEGV)
		gaddr = addr;
	/* A string move that can neither read nor write: which of the two is reported is the
	 * processor's affair, and differs when an operand lies across two pages. */
	if (gen.movs && sig == SIGSEGV && gsig == SIGSEGV && (code == 128) != (gcode == 128) &&
	    !guest_reaches(g, g->c->r[X86_RSI]) && !guest_reaches(g, g->c->r[X86_RDI])) {
		explained++;
		goto restore;
	}
	if (sig != gsig || (sig == SIGSEGV && (code == 128) != (gcode == 128))) {
		complain(&gen, n, "native signal %d code %d addr %llx, here vector %d cr2 %llx",
			 sig, code, (unsigned long long)addr, vec, (unsigned long long)g->c->cr2);
		bad = true;
	} else if (sig == SIGSEGV && code != 128 && addr != gaddr && !gen.movs &&
		   !(gen.image && (addr ^ gaddr) < 0x1000)) {
		complain(&gen, n, "fault address %llx here %llx", (unsigned long long)addr,
			 (unsigned long long)gaddr);
		bad = true;
	}
	if (!bad && rip != r.rip) {
		complain(&gen, n, "rip %llx here %llx", (unsigned long long)r.rip,
			 (unsigned long long)rip);
		bad = true;
	}
	for (unsigned i = 0; i < 16 && !bad; i++) {
		u64 v = i == 4 ? rsp : g->c->r[i];

		if (v != *nr[i]) {
			complain(&gen, n, "%s %llx here %llx (was %llx)", reg_names[i], *nr[i],
				 (unsigned long long)v, (unsigned long long)s.gpr[i]);
			bad = true;
		}
	}
	u32 mask = (EFL_ARITH | EFL_DF) & ~gen.undef;

	if (!bad && ((rflags ^ r.eflags) & mask)) {
		complain(&gen, n, "flags %llx here %llx (were %llx)", (unsigned long long)r.eflags,
			 (unsigned long long)rflags, (unsigned long long)s.rflags);
		bad = true;
	}
	struct fximg *x = &g->c->fx;

	/* an unmasked overflow or underflow: whether the result, never seen, was inexact too is not
	 * known here */
	if (vec == EXC_XM && (f.mxcsr & 0x18) && (x->mxcsr & 0x18))
		x->mxcsr = (x->mxcsr & ~0x20u) | (f.mxcsr & 0x20);

	if (!bad && (memcmp(x->xmm, f.xmm_space, 256) || x->mxcsr != f.mxcsr)) {
		complain(&gen, n, "sse state differs, mxcsr %x here %x", f.mxcsr, x->mxcsr);
		bad = true;
	}
	if (!bad && (x->fcw != f.cwd || x->fsw != f.swd || x->ftw != (u8)f.ftw)) {
		complain(&gen, n, "x87 control %x status %x tags %x, here %x %x %x", f.cwd, f.swd,
			 f.ftw, x->fcw, x->fsw, x->ftw);
		bad = true;
	}
	for (unsigned i = 0; i < 8 && !bad; i++)
		if (memcmp(&x->st[i], (u8 *)f.st_space + i * 16, 10)) {
			complain(&gen, n, "st%u differs", i);
			bad = true;
		}
	if (!bad &&
	    (memcmp(g->data, nat->data, DATA_BYTES) || memcmp(g->stack, nat->stack, 0x1000))) {
		complain(&gen, n, "memory differs");
		bad = true;
	}
restore:
	if (memcmp(g->data, pristine, DATA_BYTES) || memcmp(nat->data, pristine, DATA_BYTES)) {
		memcpy(g->data, pristine, DATA_BYTES);
		memcpy(nat->data, pristine, DATA_BYTES);
	}
	if (memcmp(g->stack, pristine + DATA_BYTES, 0x1000) ||
	    memcmp(nat->stack, pristine + DATA_BYTES, 0x1000)) {
		memcpy(g->stack, pristine + DATA_BYTES, 0x1000);
		memcpy(nat->stack, pristine + DATA_BYTES, 0x1000);
	}
	memset(nat->code, 0xcc, 0x1000);
	memset(g->code, 0xcc, 0x1000);
}

static void on_alarm(int sig)
{
	(void)sig;
}

static void soft_cpu_agrees_with_the_real_cpu(void **state)
{
	const char *cases = getenv("SOFT_DIFF_CASES"), *seed = getenv("SOFT_DIFF_SEED");
	const char *seconds = getenv("SOFT_DIFF_SECONDS");
	u64 i, n = cases ? strtoull(cases, NULL, 0) : seconds ? UINT64_MAX : 100000;
	time_t end = seconds ? time(NULL) + strtol(seconds, NULL, 0) : 0;
	static u8 pristine[DATA_BYTES + 0x1000];
	struct native nat = { 0 };
	struct guest *g;

	rng_state = seed ? strtoull(seed, NULL, 0) | 1 : 0x9e3779b97f4a7c15ULL;
	if (native_start(&nat) < 0) {
		printf("no tracing of children here: not compared\n");
		skip();
	}
	g = guest_new();
	for (i = 0; i < sizeof(pristine); i++)
		pristine[i] = (u8)(rnd() >> 40);
	memset(nat.code, 0xcc, 0x1000);
	memset(g->code, 0xcc, 0x1000);
	memcpy(g->data, pristine, DATA_BYTES);
	memcpy(nat.data, pristine, DATA_BYTES);
	memcpy(g->stack, pristine + DATA_BYTES, 0x1000);
	memcpy(nat.stack, pristine + DATA_BYTES, 0x1000);
	struct sigaction sa = { .sa_handler = on_alarm };
	struct itimerval tick = { { 0, 200000 }, { 0, 200000 } };

	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &tick, NULL);
	for (i = 0; i < n && (!end || i % 1024 || time(NULL) < end); i++)
		diff_case(g, &nat, i, pristine);
	printf(
	    "%llu cases compared with the real CPU, %u mismatches, %u explained (string move whose "
	    "operands both fault)\n",
	    (unsigned long long)i, mismatches, explained);
	memset(&tick, 0, sizeof(tick));
	setitimer(ITIMER_REAL, &tick, NULL);
	native_stop(&nat);
	guest_free(g);
	assert_int_equal(mismatches, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(soft_cpu_agrees_with_the_real_cpu),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
