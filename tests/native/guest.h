/* guest.h - a small guest of our own on the real /dev/kvm, for tests/native and tests/bench.
 *
 * 64-bit mode, ring 3, IOPL 3, interrupts possible: the GDT, IDT and a TSS are there, all of the
 * first 4 GiB is identity-mapped for user mode. Ring 3, because a KVM that interprets ring 0 still
 * runs ring 3 natively.
 * Guest code is position-independent assembly between two symbols (GUEST_CODE); it runs at 1 MiB.
 */
#ifndef TESTS_NATIVE_GUEST_H
#define TESTS_NATIVE_GUEST_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/units.h"
#include "hypervisor-core/vm.h"

#define GUEST_RAM	  (16 * MIB)
#define GUEST_GDT	  0x1000u
#define GUEST_TSS	  0x2000u
#define GUEST_IDT	  0x6000u
#define GUEST_TABLES	  0x10000u
#define GUEST_CODE_GPA	  0x100000u
#define GUEST_STACKS	  0x200000u /* growing down, 4 KiB a vCPU */
#define GUEST_RING0_STACK 0x280000u /* vCPU 0's, for interrupt handlers */
#define GUEST_DATA	  0x300000u
#define GUEST_DEADLINE_MS 10000

#define GUEST_CODE(name, text) \
	extern const uint8_t name##_start[], name##_end[]; \
	__asm__(".pushsection .rodata\n.balign 256\n" #name "_start:\n" text "\n" #name \
		"_end:\n.popsection\n")

struct guest {
	struct loop *loop;
	struct vm *vm;
	struct err e;
	unsigned events, paused;
	enum vm_event last;
	char text[400];
};

static inline int guest_open_kvm(void)
{
	return open("/dev/kvm", O_RDWR | O_CLOEXEC);
}

static inline void guest_skip_without_kvm(void)
{
	int fd = guest_open_kvm();

	if (fd < 0) {
		printf("skipped: /dev/kvm cannot be opened: %s\n", strerror(errno));
		exit(77);
	}
	close(fd);
}

static inline void guest_on_event(void *arg, enum vm_event ev, const char *text)
{
	struct guest *g = arg;

	g->events++;
	g->last = ev;
	snprintf(g->text, sizeof(g->text), "%s", text);
}

static inline void guest_on_paused(void *arg)
{
	((struct guest *)arg)->paused++;
}

static inline void guest_poke64(struct guest *g, gpa_t gpa, uint64_t v)
{
	mem_store(g->vm->mem, gpa, &v, 8);
}

static inline uint64_t guest_peek64(struct guest *g, gpa_t gpa)
{
	return __atomic_load_n((uint64_t *)mem_ptr(g->vm->mem, gpa, 8), __ATOMIC_SEQ_CST);
}

/* Vectors 0-31 stay empty: a fault becomes a triple fault and is reported. */
static inline void guest_tables(struct guest *g)
{
	static const uint64_t gdt[] = {
		0, 0x00af9b000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff, 0x00008b0020000fff, 0
	};

	for (unsigned i = 0; i < 6; i++)
		guest_poke64(g, GUEST_GDT + 8 * i, gdt[i]);
	guest_poke64(g, GUEST_TSS + 4, GUEST_RING0_STACK);
	guest_poke64(g, GUEST_TABLES, (GUEST_TABLES + 0x1000) | 7);
	for (uint64_t i = 0; i < 4; i++)
		guest_poke64(g, GUEST_TABLES + 0x1000 + 8 * i,
			     (GUEST_TABLES + 0x2000 + 0x1000 * i) | 7);
	for (uint64_t i = 0; i < 2048; i++)
		guest_poke64(g, GUEST_TABLES + 0x2000 + 8 * i, i * 2 * MIB | 0x87);
}

/* A handler runs in ring 0 and goes back by SYSEXIT (rdx = rip, rcx = rsp): of the ways back to
 * ring 3 the one that a KVM without hardware support interprets too. SYSENTER_CS is set for it. */
static inline void guest_vector(struct guest *g, unsigned vector, gpa_t handler)
{
	guest_poke64(g, GUEST_IDT + 16 * vector,
		     (handler & 0xffff) | 0x8u << 16 | UINT64_C(0x8e00) << 32 |
			 (handler >> 16 & 0xffff) << 48);
	guest_poke64(g, GUEST_IDT + 16 * vector + 8, handler >> 32);
}

static inline void guest_state(struct guest *g, unsigned cpu, struct x86_state *s)
{
	(void)g;
	x86_state_reset(s, cpu);
	x86_state_long_mode(s, GUEST_TABLES, GUEST_GDT, 47);
	s->seg[X86_CS] = (struct x86_seg){ 0, 0xffffffff, 0x13, 0xa0fb };
	s->seg[X86_DS] = s->seg[X86_ES] = s->seg[X86_SS] = s->seg[X86_FS] = s->seg[X86_GS] =
	    (struct x86_seg){ 0, 0xffffffff, 0x1b, 0xc0f3 };
	s->seg[X86_TR] = (struct x86_seg){ GUEST_TSS, 0xfff, 0x20, 0x8b };
	s->idt_base = GUEST_IDT;
	s->idt_limit = 0xfff;
	s->rflags = 0x3202; /* interrupts on: STI itself is privileged on some hosts */
	s->rip = GUEST_CODE_GPA;
	s->gpr[X86_RSP] = GUEST_STACKS - 0x1000u * cpu;
	s->gpr[X86_RDI] = cpu;
	s->gpr[X86_RBX] = GUEST_DATA;
	for (unsigned i = 0; i < s->nmsrs; i++)
		if (s->msr[i].index == 0x174)
			s->msr[i].value = 8;
}

static inline struct guest *guest_new_cfg(unsigned vcpus, const uint8_t *code, const uint8_t *end,
					  bool dirty_ring)
{
	struct guest *g = calloc(1, sizeof(*g));
	struct x86_state *s = malloc(sizeof(*s));
	int kvm = guest_open_kvm();
	struct vm_config cfg = {
		.name = "native",
		.accel = &accel_kvm,
		.accel_cfg = { .kvm_fd = kvm, .vcpus = vcpus, .dirty_ring = dirty_ring },
		.cpu = { .model = "host", .vcpus = vcpus },
	};

	g->loop = loop_new();
	g->vm = vm_new(g->loop, &cfg, &g->e);
	close(kvm);
	if (!g->vm)
		fail_msg("vm_new: %s", g->e.detail);
	g->vm->on_event = guest_on_event;
	g->vm->on_event_arg = g;
	if (vm_add_ram(g->vm, "ram", 0, GUEST_RAM, -1, 0, 0, &g->e) < 0 ||
	    vm_make_vcpus(g->vm, vcpus, &g->e) < 0)
		fail_msg("build: %s", g->e.detail);
	guest_tables(g);
	mem_store(g->vm->mem, GUEST_CODE_GPA, code, (size_t)(end - code));
	for (unsigned i = 0; i < vcpus; i++) {
		guest_state(g, i, s);
		if (accel_kvm.vcpu_set_state(g->vm->vcpus[i], s, &g->e) < 0)
			fail_msg("state: %s", g->e.detail);
	}
	free(s);
	return g;
}

#define guest_new(vcpus, name) guest_new_cfg(vcpus, name##_start, name##_end, false)

static inline void guest_free(struct guest *g)
{
	vm_free(g->vm);
	loop_free(g->loop);
	free(g);
}

static inline void guest_start(struct guest *g)
{
	if (vm_start(g->vm, &g->e) < 0)
		fail_msg("start: %s", g->e.detail);
}

/* guest_until() - run the main loop until @cond, or fail at the deadline. */
#define guest_until(g, cond) \
	do { \
		uint64_t _end = clock_mono_ns() + GUEST_DEADLINE_MS * NS_PER_MS; \
		while (!(cond)) { \
			if (clock_mono_ns() > _end) \
				fail_msg("deadline: %s (last event: %s)", #cond, (g)->text); \
			loop_run_once((g)->loop, 1); \
		} \
	} while (0)

static inline void guest_pause(struct guest *g)
{
	unsigned want = g->paused + 1;

	vm_pause(g->vm, guest_on_paused, g);
	guest_until(g, g->paused == want);
	assert_int_equal(g->vm->run_state, VM_PAUSED);
}

/* A device of one register bank that counts what it sees. */
struct probe_dev {
	_Atomic uint64_t reads, writes, last_off, last_val, last_size, answer;
};

static inline uint64_t probe_read(void *dev, uint64_t off, unsigned size)
{
	struct probe_dev *d = dev;

	d->last_off = off;
	d->last_size = size;
	d->reads++;
	return d->answer;
}

static inline void probe_write(void *dev, uint64_t off, unsigned size, uint64_t val)
{
	struct probe_dev *d = dev;

	d->last_off = off;
	d->last_size = size;
	d->last_val = val;
	d->writes++;
}

static const struct bus_ops probe_ops = { .read = probe_read, .write = probe_write };

#endif
