/* softsteps.c - the software CPU, one instruction at a time from reset, for tests/soft/lockstep/compare.
 *
 *	softsteps IMAGE STEPS
 *
 * IMAGE (64 KiB) is ROM below 1 MiB and below 4 GiB; the rest of the first 16 MiB is RAM. No device is there. After each step one line:
 * the general registers in encoding order, rip, rflags, then cs ss ds es fs gs, cr0 cr2 cr3 cr4 cr8 efer, fs and gs base, sixteen 128-bit
 * vector registers; all hexadecimal.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hypervisor-core/accel.h"
#include "hypervisor-core/soft/run.h"

#define IMAGE_BYTES 0x10000u

static void die(const char *what, const struct err *e)
{
	fprintf(stderr, "softsteps: %s: %s\n", what, e->detail);
	exit(1);
}

static void print_state(const struct cpu *c)
{
	static const u8 segs[] = { X86_CS, X86_SS, X86_DS, X86_ES, X86_FS, X86_GS };
	const u64 more[] = { c->cr0,
			     c->cr2,
			     c->cr3,
			     c->cr4,
			     c->cr8,
			     c->efer,
			     c->seg[X86_FS].base,
			     c->seg[X86_GS].base };

	for (unsigned i = 0; i < 16; i++)
		printf("%llx ", (unsigned long long)c->r[i]);
	printf("%llx %x", (unsigned long long)c->r[S_RIP], soft_eflags(c));
	for (unsigned i = 0; i < sizeof(segs); i++)
		printf(" %x", c->seg[segs[i]].sel);
	for (unsigned i = 0; i < sizeof(more) / sizeof(more[0]); i++)
		printf(" %llx", (unsigned long long)more[i]);
	for (unsigned i = 0; i < 16; i++) {
		u64 q[2];

		memcpy(q, c->fx.xmm[i], 16);
		printf(" %llx:%llx", (unsigned long long)q[1], (unsigned long long)q[0]);
	}
	printf("\n");
}

int main(int argc, char **argv)
{
	struct vm_config cfg = { .name = "steps", .accel = &accel_soft };
	static u8 image[IMAGE_BYTES];
	struct err e = { 0 };
	struct vm *vm;
	struct cpu *c;
	FILE *f;

	if (argc != 3)
		return 2;
	f = fopen(argv[1], "rb");
	if (!f || fread(image, 1, sizeof(image), f) != sizeof(image)) {
		fprintf(stderr, "softsteps: %s: no image of 64 KiB\n", argv[1]);
		return 1;
	}
	fclose(f);
	strcpy(cfg.cpu.model, "host");
	cfg.cpu.vcpus = 1;
	cfg.accel_cfg.icount = true;
	vm = vm_new(NULL, &cfg, &e);
	if (!vm || vm_add_ram(vm, "low", 0, 0xa0000, -1, 0, 0, &e) < 0 ||
	    vm_add_ram(vm, "rom", 0xf0000, IMAGE_BYTES, -1, 0, MEM_ROM, &e) < 0 ||
	    vm_add_ram(vm, "ram", 0x100000, 15 << 20, -1, 0, 0, &e) < 0 ||
	    vm_add_ram(vm, "top", 0xffff0000, IMAGE_BYTES, -1, 0, MEM_ROM, &e) < 0 ||
	    vm_make_vcpus(vm, 1, &e) < 0)
		die("machine", &e);
	mem_store(vm->mem, 0xf0000, image, sizeof(image));
	mem_store(vm->mem, 0xffff0000, image, sizeof(image));
	c = vm->vcpus[0]->accel_vcpu;
	soft_mxcsr_load(c, c->fx.mxcsr);
	print_state(c);
	for (long n = atol(argv[2]); n > 0 && !c->halted; n--) {
		c->icount_limit = c->icount + 1;
		c->inhibit = 1; /* runs one instruction apart from any block */
		if (!soft_run_some(c, false)) {
			printf("shutdown\n");
			break;
		}
		print_state(c);
	}
	vm_free(vm);
	return 0;
}
