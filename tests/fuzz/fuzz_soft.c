/* fuzz_soft.c - arbitrary guest code, page tables and descriptors on the software CPU: whatever
 * they are, the host stays whole. First byte: mode (bits 0-1: 0 real, 1 protected, 2 long, 3 long in
 * ring 3; bit 2: single-stepped; bit 3: breakpoints of DR0-DR3 as the next 16 bytes say); the rest is memory, spread over the places that matter: code at 0x1000, tables at 0x2000 and up.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "hypervisor-core/accel.h"
#include "hypervisor-core/soft/run.h"
#include "hypervisor-core/vm.h"

#define RAM_BYTES (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct vm *vm;
static uint8_t *ram;

static void fuzz_init(void)
{
	struct vm_config cfg = { .name = "fuzz", .accel = &accel_soft };
	struct err e = { 0 };

	cfg.accel_cfg.icount = true; /* so that every run ends */
	memcpy(cfg.cpu.model, "host", sizeof("host"));
	cfg.cpu.vcpus = 1;
	vm = vm_new(NULL, &cfg, &e);
	if (!vm || vm_add_ram(vm, "ram", 0, RAM_BYTES, -1, 0, 0, &e) < 0 ||
	    vm_make_vcpus(vm, 1, &e) < 0)
		abort();
	ram = mem_ptr(vm->mem, 0, RAM_BYTES);
}

static void put64(uint64_t at, uint64_t v)
{
	memcpy(ram + at, &v, 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct x86_state *s;
	struct err e = { 0 };
	struct cpu *c;
	unsigned mode;

	if (size < 2)
		return 0;
	if (!vm)
		fuzz_init();
	s = calloc(1, sizeof(*s));
	if (!s)
		return 0;
	c = vm->vcpus[0]->accel_vcpu;
	mode = data[0] & 3;
	memset(ram, 0, 0x10000);
	x86_state_reset(s, 0);
	/* identity map of 2 MiB pages, flat descriptors; the input may overwrite them all */
	put64(0x2000, 0x3007);
	put64(0x3000, 0x4007);
	put64(0x4000, 0x87);
	put64(0x4008, 0x200087);
	put64(0x5008, 0x00af9b000000ffffULL);
	put64(0x5010, 0x00cf93000000ffffULL);
	put64(0x5018, 0x00cffb000000ffffULL);
	put64(0x5020, 0x00cff3000000ffffULL);
	put64(0x5028, 0x00affb000000ffffULL);
	for (unsigned v = 0; v < 32; v++) {
		put64(0x6000 + v * 16, 0x00008e0000081000ULL);
		put64(0x6008 + v * 16, 0);
	}
	size_t n = size - 1 < 0x400 ? size - 1 : 0x400;

	memcpy(ram + 0x1000, data + 1, n);
	if (size - 1 > n)
		memcpy(ram + 0x2000 + (data[1] << 4), data + 1 + n,
		       size - 1 - n < 0x4000 ? size - 1 - n : 0x4000);
	s->rip = 0x1000;
	s->gpr[X86_RSP] = 0x9000;
	s->seg[X86_CS].base = 0;
	s->seg[X86_CS].sel = 0;
	s->gdt_base = 0x5000;
	s->gdt_limit = 0x7f;
	s->idt_base = mode ? 0x6000 : 0;
	s->idt_limit = 0x3ff;
	if (mode) {
		s->cr0 = 0x33;
		s->seg[X86_CS] = (struct x86_seg){ 0, 0xffffffff, 8, 0xc09b };
		for (int i = 0; i < 6; i++)
			if (i != X86_CS)
				s->seg[i] = (struct x86_seg){ 0, 0xffffffff, 0x10, 0xc093 };
	}
	if (mode >= 2) {
		s->cr0 |= 0x80000000;
		s->cr3 = 0x2000;
		s->cr4 = 0x6a0;
		s->efer = 0xd01;
		s->seg[X86_CS].attr = 0xa09b;
		if (mode == 3) {
			s->seg[X86_CS] = (struct x86_seg){ 0, 0xffffffff, 0x2b, 0xa0fb };
			s->seg[X86_SS] = (struct x86_seg){ 0, 0xffffffff, 0x23, 0xc0f3 };
		}
	}
	if (data[0] & 4)
		s->rflags |= 0x100;
	if (data[0] & 8 && size > 16) {
		for (int i = 0; i < 4; i++)
			s->dr[i] = (uint64_t)data[1 + i] << 8 | data[5 + i];
		memcpy(&s->dr7, data + 9, 4);
	}
	s->mp_state = X86_MP_RUNNABLE;
	accel_soft.vcpu_set_state(vm->vcpus[0], s, &e);
	c->icount_limit = c->icount + 300;
	c->shutdown = false;
	soft_run_some(c, false);
	c->shutdown = false;
	accel_soft.vcpu_get_state(vm->vcpus[0], s, &e);
	free(s);
	return 0;
}
