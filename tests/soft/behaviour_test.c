/* behaviour_test.c - what the software CPU must do beyond single instructions: long runs on a
 * bounded stack, self-modifying code, code that a device writes, faults in the middle of string
 * operations, garbage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "guest.h"

static int run_code(struct guest *g, const u8 *code, unsigned n, struct x86_state *s)
{
	u64 rip, rsp, fl;

	memset(g->code, 0xcc, 0x1000);
	memcpy(g->code, code, n);
	*s = g->base;
	s->rip = CODE_VA;
	s->gpr[X86_RSP] = STACK_VA + 0x800;
	s->gpr[X86_RDI] = DATA_VA;
	s->gpr[X86_RSI] = DATA_VA + 0x1000;
	s->xsave_len = 0;
	return guest_run(g, s, &rip, &rsp, &fl);
}

/* A handler that does not return and is not left by a tail call would end the host thread's stack.
 */
static void soft_long_runs_do_not_grow_the_stack(void **state)
{
	static const u8 code[] = { 0x41, 0xb8, 0x40, 0x42, 0x0f, 0x00, /* mov r8d, 1000000 */
				   0x0f, 0xfc, 0xc1,		       /* paddb mm0, mm1 */
				   0x0f, 0x77,			       /* emms */
				   0xd9, 0xe8, 0xdd, 0xd8,	       /* fld1; fstp st0 */
				   0x0f, 0x31,			       /* rdtsc */
				   0x66, 0x0f, 0x58, 0xc1,	       /* addpd xmm0, xmm1 */
				   0xf0, 0x48, 0x0f, 0xc1, 0x07,       /* lock xadd [rdi], rax */
				   0x50, 0x58,			       /* push, pop */
				   0x9c, 0x9d,			       /* pushf, popf */
				   0x41, 0xff, 0xc8,		       /* dec r8d */
				   0x75, 0xe3,			       /* jnz: back to the paddb */
				   0xcc };
	struct guest *g = guest_new();
	struct x86_state s;

	g->limit = 20000000;
	assert_int_equal(code[sizeof(code) - 2], (u8) - (int)(sizeof(code) - 1 - 6));
	assert_int_equal(run_code(g, code, sizeof(code), &s), EXC_BP);
	assert_int_equal(g->c->r[8], 0);
	guest_free(g);
}

static void soft_sees_code_that_it_writes_itself(void **state)
{
	/* the immediate of the mov right behind is overwritten first, in the same block */
	static const u8 code[] = { 0xc6, 0x05, 0x01, 0x00, 0x00,
				   0x00, 0x2a,			 /* mov byte [rip + 1], 42 */
				   0xb8, 0x01, 0x00, 0x00, 0x00, /* mov eax, 1 */
				   0xcc };
	struct guest *g = guest_new();
	struct x86_state s;

	assert_int_equal(run_code(g, code, sizeof(code), &s), EXC_BP);
	assert_int_equal(g->c->r[0], 42);
	guest_free(g);
}

static void soft_sees_code_that_a_device_writes(void **state)
{
	static const u8 code[] = { 0xb8, 0x01, 0x00, 0x00, 0x00, 0xcc };
	struct guest *g = guest_new();
	struct x86_state s;
	u32 two = 2;

	assert_int_equal(run_code(g, code, sizeof(code), &s), EXC_BP);
	assert_int_equal(g->c->r[0], 1);
	assert_int_equal(mem_write(g->vm->mem, (u64)(g->code - g->ram) + 1, &two, 4), 0);
	/* the same vCPU goes on without a state load, which would forget all code */
	assert_true(atomic_load(&g->c->attn) & ATTN_CODE);
	guest_free(g);
}

static void soft_rep_movs_stops_at_the_fault_with_exact_registers(void **state)
{
	static const u8 code[] = {
		0xb9, 0x00, 0x30, 0x00, 0x00, 0xf3, 0xa4, 0xcc
	}; /* 0x3000 bytes, 0x1000 are there */
	struct guest *g = guest_new();
	struct x86_state s;

	assert_int_equal(run_code(g, code, sizeof(code), &s), EXC_PF);
	assert_int_equal(g->c->r[X86_RCX], 0x2000);
	assert_int_equal(g->c->r[X86_RSI], DATA_VA + 0x2000);
	assert_int_equal(g->c->r[X86_RDI], DATA_VA + 0x1000);
	assert_int_equal(g->c->cr2, DATA_VA + 0x2000);
	guest_free(g);
}

static void soft_shuts_down_without_a_usable_idt(void **state)
{
	static const u8 code[] = { 0x0f, 0x0b };
	struct guest *g = guest_new();
	struct x86_state s;
	struct err e = { 0 };

	memcpy(g->code, code, sizeof(code));
	s = g->base;
	s.rip = CODE_VA;
	s.idt_limit = 0;
	accel_soft.vcpu_set_state(g->v, &s, &e);
	g->c->icount_limit = ~0ULL;
	assert_false(soft_run_some(g->c, false));
	assert_true(g->c->shutdown);
	g->c->shutdown = false;
	guest_free(g);
}

static void soft_state_survives_get_and_set(void **state)
{
	struct guest *g = guest_new();
	struct x86_state a = g->base, b, d;
	struct err e = { 0 };

	for (int i = 0; i < 16; i++)
		a.gpr[i] = 0x1111111111111111ULL * (unsigned)i;
	a.rip = CODE_VA;
	a.rflags = 0x8d7 | 2;
	a.dr[0] = 0x1234;
	a.xsave_len = 576;
	for (int i = 0; i < 256; i++)
		a.xsave[160 + i] = (u8)i;
	a.xsave[0] = 0x7f;
	a.xsave[1] = 3;
	a.xsave[24] = 0x80;
	a.xsave[25] = 0x1f;
	a.xsave[512] = 3;
	assert_int_equal(accel_soft.vcpu_set_state(g->v, &a, &e), 0);
	assert_int_equal(accel_soft.vcpu_get_state(g->v, &b, &e), 0);
	assert_int_equal(accel_soft.vcpu_set_state(g->v, &b, &e), 0);
	assert_int_equal(accel_soft.vcpu_get_state(g->v, &d, &e), 0);
	assert_memory_equal(b.gpr, a.gpr, sizeof(a.gpr));
	assert_int_equal(b.rflags, a.rflags);
	assert_memory_equal(b.seg, a.seg, sizeof(a.seg));
	assert_memory_equal(b.xsave + 160, a.xsave + 160, 256);
	assert_int_equal(b.cr4, a.cr4);
	assert_int_equal(d.nmsrs, b.nmsrs);
	assert_memory_equal(d.gpr, b.gpr, sizeof(a.gpr));
	assert_memory_equal(d.xsave, b.xsave, 576);
	guest_free(g);
}

/* The result is exact, so a masked operation reports nothing; with underflow unmasked it faults. */
static void soft_unmasked_underflow_of_an_exact_result_faults(void **state)
{
	static const u8 code[] = { 0x0f, 0xae, 0x17,	   /* ldmxcsr [rdi] */
				   0x0f, 0x28, 0x4f, 0x10, /* movaps xmm1, [rdi + 16] */
				   0x0f, 0x57, 0xc0,	   /* xorps xmm0, xmm0 */
				   0x0f, 0x58, 0xc1,	   /* addps xmm0, xmm1 */
				   0xcc };
	static const u32 data[8] = { 0x1f80 & ~0x800u, 0, 0, 0, 0, 0, 1, 0 };
	struct guest *g = guest_new();
	struct x86_state s;

	memcpy(g->data, data, sizeof(data));
	assert_int_equal(run_code(g, code, sizeof(code), &s), EXC_XM);
	assert_int_equal(g->c->fx.mxcsr & 0x3f, 0x12);
	g->data[1] |= 0x08; /* masked: the sum is there */
	assert_int_equal(run_code(g, code, sizeof(code), &s), EXC_BP);
	assert_int_equal(g->c->fx.xmm[0][8], 1);
	guest_free(g);
}

/* The instruction was once begun again after it had popped: data beside the running code, every 64th write. */
static void soft_x87_store_beside_running_code_pops_once(void **state)
{
	static const u8 code[] = { 0xb9, 0xf4, 0x01, 0x00, 0x00, /* mov ecx, 500 */
				   0xdb, 0xe3,			 /* fninit */
				   0xd9, 0xe8,			 /* fld1 */
				   0xdd, 0x1d, 0x00, 0x08, 0x00,
				   0x00,       /* fstp qword [rip + 0x800] */
				   0xff, 0xc9, /* dec ecx */
				   0x75, 0xf4, 0xcc };
	struct guest *g = guest_new();
	struct x86_state s;

	assert_int_equal(run_code(g, code, sizeof(code), &s), EXC_BP);
	assert_int_equal(g->c->r[X86_RCX], 0);
	assert_int_equal(g->c->fx.fsw & 0x387f, 0); /* top 0, no stack fault */
	guest_free(g);
}

static void soft_16_bit_call_without_a_stack_is_a_stack_fault(void **state)
{
	static const u8 code[] = { 0x48, 0xbc, 0,    0,	   0,
				   0,	 0,    0,    0x80, 0x80, /* mov rsp, 0x8080000000000000 */
				   0x66, 0xff, 0xd0, 0xcc };	 /* callw ax */
	struct guest *g = guest_new();
	struct x86_state s;

	assert_int_equal(run_code(g, code, sizeof(code), &s), EXC_SS);
	guest_free(g);
}

/* DR7: breakpoint @n on, of @kind (0 execute, 1 write, 3 access), @len coded as there */
#define DR7(n, kind, len) (1ULL << (2 * (n)) | (u64)((kind) | (len) << 2) << (16 + 4 * (n)))

static void soft_debug_registers_break_where_they_should(void **state)
{
	static const struct {
		const char *what;
		u8 code[16];
		u8 n;
		u64 dr[4], dr7, rflags;
		int vec;
		u64 rip, dr6; /* rip: offset in the code */
	} t[] = {
		{ "an instruction, before it",
		  { 0x90, 0x90, 0xb0, 7, 0xcc },
		  5,
		  { CODE_VA + 2 },
		  DR7(0, 0, 0),
		  2,
		  EXC_DB,
		  2,
		  1 },
		{ "not with RF",
		  { 0x90, 0x90, 0xcc },
		  3,
		  { CODE_VA },
		  DR7(0, 0, 0),
		  0x10002,
		  EXC_BP,
		  3,
		  0 },
		{ "RF holds one back, not the next",
		  { 0x90, 0x90, 0xcc },
		  3,
		  { CODE_VA, CODE_VA + 1 },
		  DR7(0, 0, 0) | DR7(1, 0, 0),
		  0x10002,
		  EXC_DB,
		  1,
		  2 },
		{ "none that is off",
		  { 0x90, 0xc6, 0x07, 1, 0xcc },
		  5,
		  { CODE_VA, DATA_VA },
		  DR7(1, 1, 0) & ~0xffULL,
		  2,
		  EXC_BP,
		  5,
		  0 },
		{ "a byte written",
		  { 0xc6, 0x07, 1, 0x90, 0xcc },
		  5,
		  { 0, 0, DATA_VA },
		  DR7(2, 1, 0),
		  2,
		  EXC_DB,
		  3,
		  4 },
		{ "not its neighbours",
		  { 0xc6, 0x47, 1, 1, 0xc6, 0x47, 0xff, 1, 0xcc },
		  9,
		  { DATA_VA + 0x10, 0, 0, 0 },
		  DR7(0, 1, 0),
		  2,
		  EXC_PF,
		  4,
		  0 },
		{ "a byte of eight",
		  { 0xc6, 0x47, 15, 1, 0xcc },
		  5,
		  { DATA_VA + 8 },
		  DR7(0, 1, 2),
		  2,
		  EXC_DB,
		  4,
		  1 },
		{ "four of which one is met",
		  { 0x48, 0x89, 0x47, 1, 0xcc },
		  5,
		  { 0, DATA_VA + 8 },
		  DR7(1, 1, 3),
		  2,
		  EXC_DB,
		  4,
		  2 },
		{ "eight bytes that end before",
		  { 0x48, 0x89, 0x07, 0xcc },
		  4,
		  { DATA_VA + 8 },
		  DR7(0, 1, 3),
		  2,
		  EXC_BP,
		  4,
		  0 },
		{ "a read where reads count",
		  { 0x8b, 0x07, 0xcc },
		  3,
		  { 0, 0, 0, DATA_VA },
		  DR7(3, 3, 3),
		  2,
		  EXC_DB,
		  2,
		  8 },
		{ "not where writes count",
		  { 0x8b, 0x07, 0xcc },
		  3,
		  { DATA_VA },
		  DR7(0, 1, 3),
		  2,
		  EXC_BP,
		  3,
		  0 },
		{ "a locked add",
		  { 0xf0, 0xff, 0x07, 0xcc },
		  4,
		  { DATA_VA },
		  DR7(0, 1, 3),
		  2,
		  EXC_DB,
		  3,
		  1 },
		{ "across pages",
		  { 0x48, 0x89, 0x87, 0xfc, 0x0f, 0, 0, 0xcc },
		  8,
		  { DATA_VA + 0x1000 },
		  DR7(0, 1, 0),
		  2,
		  EXC_DB,
		  7,
		  1 },
		{ "16 bytes of SSE",
		  { 0x0f, 0x11, 0x47, 4, 0xcc },
		  5,
		  { DATA_VA + 0x10 },
		  DR7(0, 1, 0),
		  2,
		  EXC_DB,
		  4,
		  1 },
		{ "a string store",
		  { 0xb9, 0, 2, 0, 0, 0xf3, 0xaa, 0xcc },
		  8,
		  { DATA_VA + 0x100 },
		  DR7(0, 1, 0),
		  2,
		  EXC_DB,
		  7,
		  1 },
		{ "a string load",
		  { 0xb9, 0, 2, 0, 0, 0xf3, 0xa4, 0xcc },
		  8,
		  { DATA_VA + 0x1100 },
		  DR7(0, 3, 0),
		  2,
		  EXC_DB,
		  7,
		  1 },
		{ "a push",
		  { 0x50, 0xcc },
		  2,
		  { STACK_VA + 0x7f8 },
		  DR7(0, 1, 2),
		  2,
		  EXC_DB,
		  1,
		  1 },
		{ "two at once",
		  { 0x89, 0x07, 0xcc },
		  3,
		  { DATA_VA, DATA_VA + 3 },
		  DR7(0, 1, 0) | DR7(1, 3, 0),
		  2,
		  EXC_DB,
		  2,
		  3 },
		{ "beside a single step",
		  { 0x89, 0x07, 0x90, 0xcc },
		  4,
		  { DATA_VA },
		  DR7(0, 1, 3),
		  0x102,
		  EXC_DB,
		  2,
		  0x4001 },
		{ "not what faulted",
		  { 0x01, 0x87, 0xfe, 0x1f, 0, 0, 0xcc },
		  7,
		  { DATA_VA + 0x1ffe },
		  DR7(0, 3, 0),
		  2,
		  EXC_PF,
		  0,
		  0 },
		{ "a step over a jump",
		  { 0xeb, 1, 0x90, 0x90, 0x90, 0xcc },
		  6,
		  { 0 },
		  0,
		  0x102,
		  EXC_DB,
		  3,
		  0x4000 },
		{ "in a loop",
		  { 0xb1, 9, 0xfe, 0xc9, 0x75, 0xfc, 0xc6, 0x07, 1, 0xcc },
		  10,
		  { DATA_VA },
		  DR7(0, 1, 0),
		  2,
		  EXC_DB,
		  9,
		  1 },
	};
	struct guest *g = guest_new();

	(void)state;
	for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct x86_state s = g->base;
		u64 rip = 0, rsp, fl;

		memset(g->code, 0xcc, 0x1000);
		memcpy(g->code, t[i].code, t[i].n);
		s.rip = CODE_VA;
		s.gpr[X86_RSP] = STACK_VA + 0x800;
		s.gpr[X86_RDI] = DATA_VA;
		s.gpr[X86_RSI] = DATA_VA + 0x1000;
		s.xsave_len = 0;
		memcpy(s.dr, t[i].dr, sizeof(s.dr));
		s.dr6 = 0xffff0ff0;
		s.dr7 = t[i].dr7 | 0x400;
		s.rflags = t[i].rflags;
		/* the second time its code is known: jumps are linked */
		s.dr7 = 0x400;
		s.rflags = 2;
		guest_run(g, &s, &rip, &rsp, &fl);
		memset(g->data, 0, 0x2000);
		s.dr7 = t[i].dr7 | 0x400;
		s.rflags = t[i].rflags;
		int vec = guest_run(g, &s, &rip, &rsp, &fl);
		if (vec == EXC_PF) /* the frame has an error code */
			rip = CODE_VA + t[i].rip;
		if (vec != t[i].vec || rip != CODE_VA + t[i].rip ||
		    (g->c->dr6 & 0xe00f) != t[i].dr6)
			fail_msg("%s: vector %d at +%lld, DR6 %llx", t[i].what, vec,
				 (long long)(rip - CODE_VA), (unsigned long long)g->c->dr6);
	}
	guest_free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(soft_long_runs_do_not_grow_the_stack),
		cmocka_unit_test(soft_sees_code_that_it_writes_itself),
		cmocka_unit_test(soft_sees_code_that_a_device_writes),
		cmocka_unit_test(soft_rep_movs_stops_at_the_fault_with_exact_registers),
		cmocka_unit_test(soft_shuts_down_without_a_usable_idt),
		cmocka_unit_test(soft_state_survives_get_and_set),
		cmocka_unit_test(soft_unmasked_underflow_of_an_exact_result_faults),
		cmocka_unit_test(soft_x87_store_beside_running_code_pops_once),
		cmocka_unit_test(soft_debug_registers_break_where_they_should),
		cmocka_unit_test(soft_16_bit_call_without_a_stack_is_a_stack_fault),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
