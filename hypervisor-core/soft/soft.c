/* soft.c - the accel_soft row: an x86-64 interpreter for hosts without a useful /dev/kvm.
 *
 * One host thread a vCPU, or one for all where threads_one is set (then virtual time can count
 * instructions, and the same boot twice is the same to the last bit). Interrupt controllers are the
 * machine's own (vm->intc); messages and lines reach a vCPU as vcpu_interrupt().
 * Locking: a vCPU's `lock` guards its sleep; nothing is taken under it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "run.h"

#include "common/log.h"
#include "common/units.h"
#include "hypervisor-core/accel.h"

static struct cpu *cpu_of(struct vcpu *v)
{
	return v->accel_vcpu;
}

static int soft_probe(int kvm_fd, bool measure, struct accel_probe *out)
{
	*out = (struct accel_probe){ .usable = true,
				     .ring0_native = false,
				     .vcpus_max = VM_VCPUS_MAX };
	snprintf(out->reason, sizeof(out->reason),
		 "software CPU: interprets x86-64, needs nothing of the host");
	return 0;
}

static int soft_vm_init(struct vm *vm, const struct accel_config *cfg, struct err *e)
{
	struct soft_vm *sv = calloc(1, sizeof(*sv));

	if (!sv)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for the software CPU",
			       vm->name);
	sv->vm = vm;
	sv->icount = cfg->icount;
	pthread_mutex_init(&sv->split_lock, NULL);
	vm->accel_vm = sv;
	return 0;
}

static void soft_vm_fini(struct vm *vm)
{
	struct soft_vm *sv = vm->accel_vm;

	if (!sv)
		return;
	if (vm->mem)
		mem_write_hook(vm->mem, NULL, NULL);
	if (sv->code_lines)
		munmap((void *)sv->code_lines, sv->npages * 8);
	if (sv->dirty)
		munmap((void *)sv->dirty, sv->dirty_words * 8);
	pthread_mutex_destroy(&sv->split_lock);
	free(sv);
	vm->accel_vm = NULL;
}

static void *lazy_map(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void soft_device_write(void *arg, gpa_t gpa, uint64_t len)
{
	soft_code_device_write(arg, gpa, len);
}

/* soft_map_ram() - grows the per-page tables; no vCPU runs. */
static int soft_map_ram(struct vm *vm, const struct mem_region *r, struct err *e)
{
	struct soft_vm *sv = vm->accel_vm;
	u64 top = (r->gpa + r->size_bytes) >> PAGE_BITS;
	_Atomic u64 *lines;

	mem_write_hook(vm->mem, soft_device_write, sv);
	if (top <= sv->npages)
		return 0;
	if (top > 1ULL << 28)
		return err_set(e, E2BIG, "memory-too-big",
			       "guest %s: the software CPU takes at most 1 TiB of addresses",
			       vm->name);
	lines = lazy_map(top * 8);
	if (!lines)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for code tracking",
			       vm->name);
	for (unsigned i = 0; i < sv->ncpus; i++) {
		struct cpu *c = sv->cpus[i];
		u16 *w = lazy_map(top * sizeof(u16));

		if (!w) {
			munmap((void *)lines, top * 8);
			return err_set(e, ENOMEM, "no-memory",
				       "guest %s: no memory for code tracking", vm->name);
		}
		if (c->wslot)
			munmap(c->wslot, sv->npages * sizeof(u16));
		c->wslot = w;
		soft_tlb_flush(c, true);
		soft_code_flush(c);
	}
	if (sv->code_lines)
		munmap((void *)sv->code_lines, sv->npages * 8);
	sv->code_lines = lines;
	sv->npages = top;
	return 0;
}

static int soft_unmap_ram(struct vm *vm, const struct mem_region *r)
{
	struct soft_vm *sv = vm->accel_vm;

	for (unsigned i = 0; i < sv->ncpus; i++) {
		soft_tlb_flush(sv->cpus[i], true);
		soft_code_flush(sv->cpus[i]);
	}
	return 0;
}

static int soft_irq_init(struct vm *vm, struct err *e)
{
	return 0;
}

static void soft_cpu_free(struct cpu *c)
{
	soft_mmu_fini(c);
	soft_code_fini(c);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->wake);
	munmap(c, sizeof(*c));
}

static int soft_vcpu_init(struct vcpu *v, struct err *e)
{
	struct soft_vm *sv = v->vm->accel_vm;
	struct cpu *c = lazy_map(sizeof(*c));
	const struct cpuid_entry *ce;

	if (!c)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for vCPU %u",
			       v->vm->name, v->index);
	c->vm = v->vm;
	c->v = v;
	c->sv = sv;
	c->index = v->index;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->wake, NULL);
	c->cpuid = v->vm->cpuid;
	cpuid_for_vcpu(&c->cpuid, v->index);
	ce = cpuid_find(&c->cpuid, 0x80000008, 0);
	unsigned bits =
	    ce && (ce->eax & 0xff) >= 36 && (ce->eax & 0xff) <= 52 ? ce->eax & 0xff : 40;

	c->reserved_pa = 0x000fffffffffffffULL & ~((1ULL << bits) - 1);
	c->apic_base = 0xfee00800 | (v->index == 0 ? 0x100 : 0);
	c->icount_limit = ~0ULL;
	if (soft_code_init(c) < 0 || soft_mmu_init(c) < 0) {
		soft_cpu_free(c);
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for vCPU %u",
			       v->vm->name, v->index);
	}
	soft_cpu_reset(c, false);
	c->mp = v->index == 0 ? X86_MP_RUNNABLE : X86_MP_UNINIT;
	v->accel_vcpu = c;
	sv->cpus[v->index] = c;
	if (sv->ncpus <= v->index)
		sv->ncpus = v->index + 1;
	return 0;
}

static void soft_vcpu_fini(struct vcpu *v)
{
	struct soft_vm *sv = v->vm->accel_vm;
	struct cpu *c = cpu_of(v);

	if (!c)
		return;
	sv->cpus[v->index] = NULL;
	v->accel_vcpu = NULL;
	soft_cpu_free(c);
}

/* soft_enter() ... soft_exit() - the host's MXCSR is the guest's in between. */
static u32 soft_enter(struct cpu *c)
{
	u32 host;

	asm volatile("stmxcsr %0" : "=m"(host));
	soft_mxcsr_load(c, c->fx.mxcsr);
	return host;
}

static void soft_exit(struct cpu *c, u32 host)
{
	c->fx.mxcsr = soft_mxcsr_read(c);
	asm volatile("ldmxcsr %0" : : "m"(host));
}

static void in_guest(struct cpu *c, bool on)
{
	pthread_mutex_lock(&c->lock);
	c->in_guest = on;
	if (!on && c->flush_done != c->flush_asked) {
		/* nobody else runs this vCPU: do it here, before the waiter goes on */
		soft_tlb_flush(c, true);
		memset(c->wslot, 0, c->sv->npages * sizeof(u16));
		c->flush_done = c->flush_asked;
	}
	pthread_cond_broadcast(&c->wake);
	pthread_mutex_unlock(&c->lock);
}

static enum vcpu_exit soft_why(struct cpu *c)
{
	struct vcpu *v = c->v;

	if (c->shutdown) {
		c->shutdown = false;
		c->exc_nested = 0;
		return VCPU_EXIT_SHUTDOWN;
	}
	atomic_fetch_add_explicit(&v->exits, 1, memory_order_relaxed);
	return VCPU_EXIT_KICKED;
}

static enum vcpu_exit soft_vcpu_run(struct vcpu *v)
{
	struct cpu *c = cpu_of(v);
	u32 host = soft_enter(c);

	in_guest(c, true);
	/* a request set before its kick reached us must not be slept over */
	if (atomic_load(&v->requests))
		soft_attn(c, ATTN_KICK);
	soft_attn(c, ATTN_INTR);
	soft_run_some(c, true);
	in_guest(c, false);
	soft_exit(c, host);
	return soft_why(c);
}

static void soft_vcpu_kick(struct vcpu *v)
{
	if (v->accel_vcpu)
		soft_wake(cpu_of(v), ATTN_KICK);
}

static void soft_vcpu_interrupt(struct vcpu *v)
{
	if (v->accel_vcpu)
		soft_wake(cpu_of(v), ATTN_INTR);
}

static int soft_vcpu_nmi(struct vcpu *v)
{
	soft_wake(cpu_of(v), ATTN_NMI);
	return 0;
}

static void soft_vcpu_init_sipi(struct vcpu *v, int vector)
{
	struct cpu *c = cpu_of(v);

	if (vector < 0) {
		soft_wake(c, ATTN_INIT);
	} else {
		c->sipi_vector = (u8)vector;
		soft_wake(c, ATTN_SIPI);
	}
}

static int soft_msi(struct vm *vm, uint64_t addr, uint32_t data)
{
	if (!vm->intc || !vm->intc->msi)
		return -ENODEV;
	vm->intc->msi(vm->intc_opaque, addr, data);
	return 0;
}

/* ---- dirty log */
static int soft_flush_all(struct soft_vm *sv)
{
	for (unsigned i = 0; i < sv->ncpus; i++) {
		struct cpu *c = sv->cpus[i];

		if (!c)
			continue;
		pthread_mutex_lock(&c->lock);
		u64 want = ++c->flush_asked;

		if (!c->in_guest) {
			soft_tlb_flush(c, true);
			memset(c->wslot, 0, sv->npages * sizeof(u16));
			c->flush_done = want;
		} else {
			soft_attn(c, ATTN_FLUSH);
			pthread_cond_broadcast(&c->wake);
			while (c->flush_done < want)
				pthread_cond_wait(&c->wake, &c->lock);
		}
		pthread_mutex_unlock(&c->lock);
	}
	return 0;
}

static int soft_dirty_start(struct vm *vm)
{
	struct soft_vm *sv = vm->accel_vm;

	if (sv->dirty)
		return 0;
	sv->dirty_words = (sv->npages + 63) / 64;
	sv->dirty = lazy_map(sv->dirty_words * 8);
	if (!sv->dirty)
		return -ENOMEM;
	return soft_flush_all(sv);
}

static void soft_dirty_stop(struct vm *vm)
{
	struct soft_vm *sv = vm->accel_vm;
	_Atomic u64 *d = sv->dirty;

	if (!d)
		return;
	sv->dirty = NULL;
	soft_flush_all(sv); /* after this nobody holds the old pointer */
	munmap((void *)d, sv->dirty_words * 8);
}

static int soft_dirty_fetch(struct vm *vm, const struct mem_region *r, uint8_t *bitmap)
{
	struct soft_vm *sv = vm->accel_vm;
	u64 first = r->gpa >> PAGE_BITS, n = r->size_bytes >> PAGE_BITS;

	if (!sv->dirty)
		return -EINVAL;
	/* take fast writes away first: a page written after this is marked anew */
	for (int pass = 0; pass < 2; pass++) {
		for (u64 i = 0; i < n; i++) {
			u64 p = first + i, m = 1ULL << (p % 64);

			if (p / 64 >= sv->dirty_words)
				break;
			if (!(atomic_load_explicit(&sv->dirty[p / 64], memory_order_relaxed) & m))
				continue;
			if (atomic_fetch_and(&sv->dirty[p / 64], ~m) & m)
				bitmap[i / 8] |= (uint8_t)(1 << (i % 8));
		}
		if (!pass)
			soft_flush_all(sv);
	}
	return 0;
}

/* ---- clocks */
static int soft_clock_get(struct vm *vm, uint64_t *ns)
{
	struct soft_vm *sv = vm->accel_vm;

	*ns = vm_now_ns(vm) + sv->clock_offset;
	return 0;
}

static int soft_clock_set(struct vm *vm, uint64_t ns)
{
	struct soft_vm *sv = vm->accel_vm;

	sv->clock_offset = ns - vm_now_ns(vm);
	for (unsigned i = 0; i < sv->ncpus; i++)
		if (sv->cpus[i])
			soft_pvclock_update(sv->cpus[i]);
	return 0;
}

static uint64_t soft_vm_now_ns(struct vm *vm)
{
	struct soft_vm *sv = vm->accel_vm;

	return atomic_load(&sv->icount_ns);
}

static uint64_t soft_tsc_to_ns(struct vcpu *v, uint64_t tsc)
{
	return tsc - cpu_of(v)->tsc_offset;
}

static int soft_cpuid_table(struct vm *vm, struct cpuid_table *out, struct err *e)
{
	soft_cpuid_supported(out);
	return 0;
}

/* ---- one thread for all vCPUs: round robin, a fixed number of instructions a turn */
#define TURN_INSNS 20000

static bool soft_runs_all(struct vm *vm)
{
	return vm->accel_cfg.threads_one || vm->accel_cfg.icount;
}

static bool run_all_turn(struct soft_vm *sv, struct cpu *c, bool *ran)
{
	u64 before = c->icount, left, next;
	bool stay;
	u32 host;

	left = TURN_INSNS;
	if (sv->icount) {
		next = vm_timers_next_ns(sv->vm);
		u64 now = atomic_load(&sv->icount_ns);

		if (next && next <= now)
			left = 1;
		else if (next && (next - now) / SOFT_ICOUNT_NS < left)
			left = (next - now) / SOFT_ICOUNT_NS + 1;
		c->icount_base = now - c->icount * SOFT_ICOUNT_NS;
	}
	c->icount_limit = before + left;
	host = soft_enter(c);
	in_guest(c, true);
	if (atomic_load(&c->v->requests))
		soft_attn(c, ATTN_KICK);
	soft_attn(c, ATTN_INTR);
	stay = soft_run_some(c, false);
	in_guest(c, false);
	soft_exit(c, host);
	*ran = c->icount != before;
	if (sv->icount) {
		atomic_fetch_add(&sv->icount_ns, (c->icount - before) * SOFT_ICOUNT_NS);
		vm_timers_run(sv->vm, atomic_load(&sv->icount_ns));
	}
	return stay;
}

static enum vcpu_exit soft_run_all(struct vm *vm, struct vcpu **which)
{
	struct soft_vm *sv = vm->accel_vm;

	for (;;) {
		bool any = false;

		for (unsigned n = 0; n < sv->ncpus; n++) {
			unsigned i = sv->turn++ % sv->ncpus;
			bool ran;

			if (!run_all_turn(sv, sv->cpus[i], &ran)) {
				*which = vm->vcpus[i];
				return soft_why(sv->cpus[i]);
			}
			any |= ran;
		}
		if (any)
			continue;
		/* all halted: under icount time jumps to the next timer; else wait for anybody's
		 * attention */
		if (sv->icount) {
			u64 next = vm_timers_next_ns(vm);

			if (next) {
				if (next > atomic_load(&sv->icount_ns))
					atomic_store(&sv->icount_ns, next);
				vm_timers_run(vm, next);
				continue;
			}
		}
		struct cpu *c = sv->cpus[0];
		bool wake = false;

		pthread_mutex_lock(&c->lock);
		for (;;) {
			for (unsigned i = 0; i < sv->ncpus; i++)
				wake |= atomic_load(&sv->cpus[i]->attn) != 0;
			if (wake)
				break;
			struct timespec ts;

			/* not under icount: where blocks begin shows in where turns end */
			for (unsigned i = 0; i < sv->ncpus && !sv->icount; i++)
				if (soft_code_idle(sv->cpus[i]) == 0)
					soft_code_trim(sv->cpus[i]);
			/* others wake their own condition: look again often enough */
			clock_gettime(CLOCK_REALTIME, &ts);
			ts.tv_nsec += 1000000;
			if (ts.tv_nsec >= 1000000000) {
				ts.tv_nsec -= 1000000000;
				ts.tv_sec++;
			}
			pthread_cond_timedwait(&c->wake, &c->lock, &ts);
		}
		pthread_mutex_unlock(&c->lock);
	}
}

static unsigned soft_stats(struct vm *vm, const char **names, uint64_t *values, unsigned max)
{
	static const char *const n[] = { "instructions",       "blocks",     "tlb_misses",
					 "tlb_flushes",	       "exceptions", "interrupts",
					 "code_invalidations", "mmio",	     "pio" };
	struct soft_vm *sv = vm->accel_vm;
	unsigned k = sizeof(n) / sizeof(n[0]);

	if (k > max)
		k = max;
	for (unsigned i = 0; i < k; i++) {
		names[i] = n[i];
		values[i] = 0;
	}
	for (unsigned i = 0; i < sv->ncpus; i++) {
		const struct cpu *c = sv->cpus[i];
		const u64 v[] = { c->icount, c->n_blocks, c->n_tlbmiss, c->n_flush, c->n_exc,
				  c->n_irq,  c->n_inval,  c->n_mmio,	c->n_pio };

		for (unsigned j = 0; j < k; j++)
			values[j] += v[j];
	}
	return k;
}

const struct accel_ops accel_soft = {
	.name = "soft",
	.caps = 0,
	.probe = soft_probe,
	.vm_init = soft_vm_init,
	.vm_fini = soft_vm_fini,
	.map_ram = soft_map_ram,
	.unmap_ram = soft_unmap_ram,
	.irq_init = soft_irq_init,
	.vcpu_init = soft_vcpu_init,
	.vcpu_fini = soft_vcpu_fini,
	.vcpu_run = soft_vcpu_run,
	.vcpu_kick = soft_vcpu_kick,
	.vcpu_get_state = soft_vcpu_get_state,
	.vcpu_set_state = soft_vcpu_set_state,
	.vcpu_nmi = soft_vcpu_nmi,
	.vcpu_interrupt = soft_vcpu_interrupt,
	.vcpu_init_sipi = soft_vcpu_init_sipi,
	.msi = soft_msi,
	.dirty_start = soft_dirty_start,
	.dirty_stop = soft_dirty_stop,
	.dirty_fetch = soft_dirty_fetch,
	.clock_get = soft_clock_get,
	.clock_set = soft_clock_set,
	.now_ns = soft_vm_now_ns,
	.tsc_to_ns = soft_tsc_to_ns,
	.cpuid_supported = soft_cpuid_table,
	.runs_all = soft_runs_all,
	.run_all = soft_run_all,
	.stats = soft_stats,
};
