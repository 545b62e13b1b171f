/* pc_guest.c - the host half of pc_guest.h: builds the machine and puts a program into it. */
#include "pc_guest.h"

#include "devices/pc.h"

extern const uint8_t __start_guest_text[], __stop_guest_text[];
extern const uint8_t pcg_common_start[], pcg_common_end[], pcg_tramp_start[], pcg_tramp_end[];

static struct guest *pcg_build(unsigned vcpus, struct machine_config *cfg, bool dirty_ring)
{
	struct guest *g = calloc(1, sizeof(*g));
	int kvm = guest_open_kvm();
	struct vm_config vc = {
		.name = "native",
		.accel = &accel_kvm,
		.accel_cfg = { .kvm_fd = kvm, .vcpus = vcpus, .dirty_ring = dirty_ring },
		.cpu = { .model = "host", .vcpus = vcpus },
	};

	cfg->memory_bytes = PCG_RAM;
	cfg->memory_fd = -1;
	cfg->vcpus = vcpus;
	cfg->boot.kernel_fd = cfg->boot.initrd_fd = -1;
	g->loop = loop_new();
	g->vm = vm_new(g->loop, &vc, &g->e);
	close(kvm);
	if (!g->vm)
		fail_msg("vm_new: %s", g->e.detail);
	g->vm->on_event = guest_on_event;
	g->vm->on_event_arg = g;
	if (machine_pc.build(g->vm, cfg, &g->e) < 0)
		fail_msg("build: %s", g->e.detail);
	return g;
}

struct guest *pcg_empty(unsigned vcpus, struct machine_config *cfg)
{
	return pcg_build(vcpus, cfg, false);
}

static void pcg_copy(struct guest *g, gpa_t to, const uint8_t *from, const uint8_t *end)
{
	mem_store(g->vm->mem, to, from, (size_t)(end - from));
}

/* Stub: push $vector; jmp common. */
static void pcg_vectors(struct guest *g)
{
	for (unsigned v = 0x20; v < 256; v++) {
		gpa_t at = PCG_STUBS + 16 * v;
		uint32_t rel = PCG_COMMON - (uint32_t)(at + 10);
		uint8_t code[10] = { 0x68, (uint8_t)v, 0, 0, 0, 0xe9 };

		memcpy(code + 6, &rel, 4);
		mem_store(g->vm->mem, at, code, sizeof(code));
		guest_vector(g, v, at);
	}
	pcg_copy(g, PCG_COMMON, pcg_common_start, pcg_common_end);
	pcg_copy(g, PCG_TRAMPOLINE, pcg_tramp_start, pcg_tramp_end);
}

static void pcg_enter(struct guest *g, pcg_program *p)
{
	struct x86_state *s = malloc(sizeof(*s));

	for (unsigned i = 0; i < g->vm->nvcpus; i++) {
		guest_poke64(g, PCG_TSS + 128 * i + 4, PCG_RING0 + 0x800 * (i + 1));
		guest_state(g, i, s);
		s->seg[X86_TR].base = PCG_TSS + 128 * i;
		/* all ports allowed by one empty bitmap: not every KVM keeps IOPL */
		uint32_t bitmap = PCG_IO_BITMAP - (PCG_TSS + 128 * i);
		mem_store(g->vm->mem, PCG_TSS + 128 * i + 102, &bitmap, 2);
		s->seg[X86_TR].limit = bitmap + 0x2000;
		s->rip = GUEST_CODE_GPA + (uint64_t)((const uint8_t *)p - __start_guest_text);
		s->gpr[X86_RSP] = PCG_STACKS - 0x1000u * i - 8;
		if (p == pcg_sipi && i)
			x86_state_reset(s, i); /* waits for its SIPI */
		if (accel_kvm.vcpu_set_state(g->vm->vcpus[i], s, &g->e) < 0)
			fail_msg("state: %s", g->e.detail);
	}
	free(s);
}

struct guest *pcg_new_opts(pcg_program *p, unsigned vcpus, struct machine_config *cfg,
			   bool dirty_ring)
{
	struct guest *g = pcg_build(vcpus, cfg, dirty_ring);

	guest_tables(g);
	pcg_vectors(g);
	pcg_copy(g, GUEST_CODE_GPA, __start_guest_text, __stop_guest_text);
	pcg_params(g)->vcpus = vcpus;
	pcg_enter(g, p);
	return g;
}

struct guest *pcg_new(pcg_program *p, unsigned vcpus, struct machine_config *cfg)
{
	return pcg_new_opts(p, vcpus, cfg, false);
}

struct pcg_params *pcg_params(struct guest *g)
{
	return mem_ptr(g->vm->mem, PCG_PARAMS, sizeof(struct pcg_params));
}

struct pcg_report *pcg_report(struct guest *g)
{
	return mem_ptr(g->vm->mem, PCG_REPORT, sizeof(struct pcg_report));
}

uint64_t pcg_count(struct guest *g, unsigned vector)
{
	return guest_peek64(g, PCG_COUNTERS + 8 * vector);
}

uint64_t pcg_cpu(struct guest *g, unsigned cpu)
{
	return guest_peek64(g, PCG_CPUS + 64 * cpu);
}

void pcg_check(struct guest *g)
{
	struct pcg_report *r = pcg_report(g);

	if (r->fail)
		fail_msg("the guest failed at guest_code.c:%llu, it saw 0x%llx",
			 (unsigned long long)r->fail, (unsigned long long)r->seen);
	if (g->events) {
		struct x86_state *s = malloc(sizeof(*s));

		for (unsigned i = 0; i < g->vm->nvcpus; i++)
			if (accel_kvm.vcpu_get_state(g->vm->vcpus[i], s, &g->e) == 0)
				printf("vCPU %u: rip 0x%llx rsp 0x%llx rflags 0x%llx cs 0x%x\n", i,
				       (unsigned long long)s->rip,
				       (unsigned long long)s->gpr[X86_RSP],
				       (unsigned long long)s->rflags, s->seg[X86_CS].sel);
		free(s);
		fail_msg("event %d: %s", (int)g->last, g->text);
	}
}

void pcg_done(struct guest *g)
{
	struct pcg_report *r = pcg_report(g);

	guest_until(g, r->stage == PCG_DONE || r->fail || g->events);
	pcg_check(g);
}
