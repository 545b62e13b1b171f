/* guest.c - see guest.h. Physical layout: tables and kernel stuff below 1 MiB, user pages from 1
 * MiB. */
#include "guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hypervisor-core/accel.h"

#define KVA	0xffff800000000000ULL /* kernel pages, 4 KiB of each below */
#define PML4	0x1000
#define GDT	0x8000
#define IDT	0x9000
#define TSS	0xa000
#define KSTACK	0xc000 /* top 0xd000 */
#define GATES	0xe000 /* 16 bytes a vector: hlt */
#define USER_PA 0x100000

static void put64(struct guest *g, u64 pa, u64 v)
{
	memcpy(g->ram + pa, &v, 8);
}

static u64 next_table = 0x20000;

/* map_page() - 4 KiB page at @va. */
static void map_page(struct guest *g, u64 va, u64 pa, bool user)
{
	u64 t = PML4;

	for (int shift = 39; shift > 12; shift -= 9) {
		u64 at = t + (va >> shift & 511) * 8, e;

		memcpy(&e, g->ram + at, 8);
		if (!e) {
			e = next_table | 7;
			next_table += 0x1000;
			put64(g, at, e);
		}
		t = e & ~0xfffULL;
	}
	put64(g, t + (va >> 12 & 511) * 8,
	      pa | (user ? 7 : 3) | 0x60 | (user && va != CODE_VA ? 1ULL << 63 : 0));
}

struct guest *guest_new(void)
{
	struct guest *g = calloc(1, sizeof(*g));
	struct vm_config cfg = { .name = "soft-test", .accel = &accel_soft };
	struct x86_state *s = &g->base;
	struct err e = { 0 };

	cfg.accel_cfg.icount = true; /* so that a loop ends */
	strcpy(cfg.cpu.model, "host");
	cfg.cpu.vcpus = 1;
	next_table = 0x20000;
	g->vm = vm_new(NULL, &cfg, &e);
	if (!g->vm || vm_add_ram(g->vm, "ram", 0, 4 << 20, -1, 0, 0, &e) < 0 ||
	    vm_make_vcpus(g->vm, 1, &e) < 0) {
		fprintf(stderr, "guest_new: %s\n", e.detail);
		abort();
	}
	g->v = g->vm->vcpus[0];
	g->c = g->v->accel_vcpu;
	g->ram = mem_ptr(g->vm->mem, 0, 4 << 20);
	g->code = g->ram + USER_PA;
	g->data = g->ram + USER_PA + 0x1000;
	g->stack = g->ram + USER_PA + 0x3000;
	map_page(g, CODE_VA, USER_PA, true);
	map_page(g, DATA_VA, USER_PA + 0x1000, true);
	map_page(g, DATA_VA + 0x1000, USER_PA + 0x2000, true);
	map_page(g, STACK_VA, USER_PA + 0x3000, true);
	for (u64 pa = GDT; pa < 0x10000; pa += 0x1000)
		map_page(g, KVA + pa, pa, false);
	put64(g, GDT + 0x10, 0x00af9b000000ffffULL); /* kernel code */
	put64(g, GDT + 0x18, 0x00cf93000000ffffULL);
	put64(g, GDT + 0x28, 0x00cff3000000ffffULL); /* user data */
	put64(g, GDT + 0x30, 0x00affb000000ffffULL); /* user code, 64-bit */
	g->ram[TSS + 102] = 0x68;		     /* no I/O bitmap */
	put64(g, TSS + 4, KVA + KSTACK + 0x1000);
	for (unsigned v = 0; v < 256; v++) {
		u64 to = KVA + GATES + v * 16;

		memset(g->ram + GATES + v * 16, 0xf4, 16);
		put64(g, IDT + v * 16,
		      (to & 0xffff) | 0x10ULL << 16 | 0xeeULL << 40 | (to & 0xffff0000) << 32);
		put64(g, IDT + v * 16 + 8, to >> 32);
	}
	x86_state_reset(s, 0);
	s->cr0 = 0x80050033;
	s->cr3 = PML4;
	s->cr4 = 0x6a0 | 1 << 10;
	s->efer = 0xd01;
	s->gdt_base = KVA + GDT;
	s->gdt_limit = 0x3f;
	s->idt_base = KVA + IDT;
	s->idt_limit = 0xfff;
	s->seg[X86_CS] = (struct x86_seg){ 0, 0xffffffff, USER_CS, 0xa0fb };
	s->seg[X86_SS] = (struct x86_seg){ 0, 0xffffffff, USER_SS, 0xc0f3 };
	for (int i = 0; i < 4; i++) {
		static const u8 list[] = { X86_DS, X86_ES, X86_FS, X86_GS };

		s->seg[list[i]] = (struct x86_seg){ 0, 0, 0, 0x100 };
	}
	s->seg[X86_LDTR] = (struct x86_seg){ 0, 0, 0, 0x100 };
	s->seg[X86_TR] = (struct x86_seg){ KVA + TSS, 0x67, 0x38, 0x8b };
	s->rflags = 2;
	s->mp_state = X86_MP_RUNNABLE;
	return g;
}

void guest_free(struct guest *g)
{
	vm_free(g->vm);
	free(g);
}

int guest_run(struct guest *g, const struct x86_state *s, u64 *rip, u64 *rsp, u64 *rflags)
{
	struct cpu *c = g->c;
	struct err e = { 0 };
	u32 host;
	u64 f;

	accel_soft.vcpu_set_state(g->v, s, &e);
	__asm__ volatile("stmxcsr %0" : "=m"(host));
	soft_mxcsr_load(c, c->fx.mxcsr);
	c->icount_limit = c->icount + (g->limit ? g->limit : 100000);
	soft_run_some(c, false);
	c->fx.mxcsr = soft_mxcsr_read(c);
	__asm__ volatile("ldmxcsr %0" : : "m"(host));
	if (!c->halted)
		return -1;
	f = c->r[S_RIP] - (KVA + GATES) - 1;
	unsigned vec = (unsigned)(f / 16);
	u64 frame = c->r[X86_RSP] - (KVA + KSTACK) + KSTACK;

	/* the frame: [error code] rip cs rflags rsp ss, ending at the stack's top */
	frame = KSTACK + 0x1000 - 40;
	memcpy(rip, g->ram + frame, 8);
	memcpy(rflags, g->ram + frame + 16, 8);
	memcpy(rsp, g->ram + frame + 24, 8);
	return (int)vec;
}
