/* kvm_vm.c - the kvm row of accel_ops: a VM, its memory slots, its split interrupt controller.
 *
 * Order is cost: slots first, then the split irqchip (KVM keeps only the local APICs; PIC, PIT and
 * IOAPIC are the machine's own chips), then vCPUs. The other way round costs 15 times as much,
 * since each slot then waits for readers of KVM's I/O bus. /dev/kvm is borrowed for vm_init() only:
 * all that is read from it (CPUID, MSR list, sizes) is kept. No other descriptor is opened; the
 * process is jailed.
 * Spec: Linux Documentation/virt/kvm/api.rst.
 */
#include "hypervisor-core/kvm/kvm.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/log.h"
#include "common/overflow.h"

#define KVM_CPUID_ASK 256u
#define KVM_MSRS_ASK  1024u
/* Three pages that VMX without unrestricted guest mode needs; below the BIOS hole, never guest RAM.
 */
#define KVM_TSS_GPA	 0xfffbd000u
#define KVM_IDENTITY_GPA 0xfffbc000u

int kvm_check(int kvm_fd, int cap)
{
	int n = ioctl(kvm_fd, KVM_CHECK_EXTENSION, cap);

	return n < 0 ? 0 : n;
}

/* A host that is itself emulated by QEMU's TCG (the lab) does not intercept XSETBV, although it
 * says so: KVM never learns of the guest's XCR0 and runs it with the wrong state. Such a host's
 * guests get no XSAVE. */
static bool kvm_host_misses_xsetbv(void)
{
	char name[13] = "";
	unsigned eax, ebx, ecx, edx;

	__cpuid(1, eax, ebx, ecx, edx);
	if (!(ecx >> 31))
		return false; /* bare metal: the leaf below means nothing */
	__cpuid(0x40000000, eax, ebx, ecx, edx);
	memcpy(name, &ebx, 4);
	memcpy(name + 4, &ecx, 4);
	memcpy(name + 8, &edx, 4);
	return !strcmp(name, "TCGTCGTCGTCG");
}

/* How many vCPUs a VM may have here: a guest's, each with an APIC id of its own (KVM's ids may end
 * sooner). */
unsigned kvm_vcpus_max(int kvm_fd)
{
	int most = kvm_check(kvm_fd, KVM_CAP_MAX_VCPUS);
	int ids = kvm_check(kvm_fd, KVM_CAP_MAX_VCPU_ID);

	if (most <= 0)
		most = kvm_check(kvm_fd, KVM_CAP_NR_VCPUS);
	if (most <= 0)
		most = 4; /* what the API promises where it says nothing */
	if (ids > 0 && ids < most)
		most = ids;
	return MIN((unsigned)most, VM_VCPUS_MAX);
}

int kvm_read_supported(int kvm_fd, struct cpuid_table *out)
{
	const bool no_xsave = kvm_host_misses_xsetbv();

	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + KVM_CPUID_ASK * sizeof(c->entries[0]));
	int ret = 0;

	if (!c)
		return -ENOMEM;
	c->nent = KVM_CPUID_ASK;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, c) < 0)
		ret = -errno;
	out->n = 0;
	for (unsigned i = 0; ret == 0 && i < c->nent && i < KVM_CPUID_ASK; i++) {
		const struct kvm_cpuid_entry2 *k = &c->entries[i];

		/* Empty leaves say nothing, and there are many of them. */
		if (!(k->eax | k->ebx | k->ecx | k->edx) || out->n == CPUID_ENTRIES_MAX)
			continue;
		out->e[out->n++] = (struct cpuid_entry){ k->function, k->index, k->flags, k->eax,
							 k->ebx,      k->ecx,	k->edx };
	}
	/* Not in KVM's list, since they depend on its local APIC, which we always use. */
	for (unsigned i = 0; i < out->n; i++)
		if (out->e[i].leaf == 1) {
			out->e[i].ecx |= 1u << 31; /* a hypervisor is there */
			if (kvm_check(kvm_fd, KVM_CAP_TSC_DEADLINE_TIMER))
				out->e[i].ecx |= 1u << 24;
			if (no_xsave)
				out->e[i].ecx &= ~(1u << 26);
		}
	free(c);
	return ret;
}

/* State that does not travel: counters, Hyper-V, VMX capability MSRs. */
static bool kvm_msr_is_state(uint32_t msr)
{
	return !((msr >= 0xc1 && msr <= 0xc8) || (msr >= 0x186 && msr <= 0x18f) ||
		 (msr >= 0x309 && msr <= 0x30c) || (msr >= 0x38d && msr <= 0x391) ||
		 (msr >= 0x3f1 && msr <= 0x3f2) || (msr >= 0x4c1 && msr <= 0x4c8) ||
		 (msr >= 0x480 && msr <= 0x493) || (msr >= 0x40000000 && msr <= 0x400001ff) ||
		 (msr >= 0xc0010000 && msr <= 0xc0010007) ||
		 (msr >= 0xc0010200 && msr <= 0xc001020f) ||
		 (msr >= 0xc0000300 && msr <= 0xc0000303) || msr == 0x10a || msr == 0x345 ||
		 msr == 0xce);
}

static int kvm_read_msr_list(int kvm_fd, struct kvm_vm *kv)
{
	struct kvm_msr_list *l = calloc(1, sizeof(*l) + KVM_MSRS_ASK * sizeof(l->indices[0]));

	if (!l)
		return -ENOMEM;
	l->nmsrs = KVM_MSRS_ASK;
	int ret = ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, l) < 0 ? -errno : 0;
	for (unsigned i = 0; ret == 0 && i < l->nmsrs && kv->nmsrs < X86_MSRS_MAX; i++)
		if (kvm_msr_is_state(l->indices[i]))
			kv->msr[kv->nmsrs++] = l->indices[i];
	free(l);
	return ret;
}

static int kvm_enable(int vm_fd, uint32_t cap, uint64_t arg)
{
	struct kvm_enable_cap c = { .cap = cap, .args = { arg } };

	return ioctl(vm_fd, KVM_ENABLE_CAP, &c) < 0 ? -errno : 0;
}

/* kvm_vm_options() - what must be set before slots and vCPUs exist. */
static void kvm_vm_options(struct kvm_vm *kv, int kvm_fd, const struct accel_config *cfg)
{
	if (kvm_check(kvm_fd, KVM_CAP_X2APIC_API))
		(void)kvm_enable(kv->fd, KVM_CAP_X2APIC_API,
				 KVM_X2APIC_API_USE_32BIT_IDS |
				     KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
	/* An MSR that KVM does not know faults in the guest as on hardware, whatever
	 * kvm.ignore_msrs says. */
	if (kvm_check(kvm_fd, KVM_CAP_X86_USER_SPACE_MSR))
		kv->user_msr = kvm_enable(kv->fd, KVM_CAP_X86_USER_SPACE_MSR,
					  KVM_MSR_EXIT_REASON_UNKNOWN) == 0;
	if (kvm_check(kvm_fd, KVM_CAP_EXCEPTION_PAYLOAD))
		kv->exc_payload = kvm_enable(kv->fd, KVM_CAP_EXCEPTION_PAYLOAD, 1) == 0;
	int most = kvm_check(kvm_fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
	if (cfg->dirty_ring && most >= (int)KVM_RING_BYTES &&
	    kvm_enable(kv->fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_RING_BYTES) == 0)
		kv->ring_bytes = KVM_RING_BYTES;
	uint64_t identity = KVM_IDENTITY_GPA;
	if (ioctl(kv->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
	    ioctl(kv->fd, KVM_SET_TSS_ADDR, (unsigned long)KVM_TSS_GPA) < 0)
		log_debug("kvm: no place set for the real-mode TSS: %s", strerror(errno));
}

static int kvm_vm_init(struct vm *vm, const struct accel_config *cfg, struct err *e)
{
	static const struct {
		int cap;
		const char *what;
	} need[] = {
		{ KVM_CAP_SPLIT_IRQCHIP, "a split interrupt controller" },
		{ KVM_CAP_USER_MEMORY, "user memory slots" },
		{ KVM_CAP_IMMEDIATE_EXIT, "immediate_exit" },
		{ KVM_CAP_SIGNAL_MSI, "KVM_SIGNAL_MSI" },
		{ KVM_CAP_IRQ_ROUTING, "interrupt routing" },
		{ KVM_CAP_XSAVE, "KVM_GET_XSAVE" },
	};
	int version = ioctl(cfg->kvm_fd, KVM_GET_API_VERSION, 0);

	if (version < 0) {
		version = -errno;
		err_set(e, -version, "kvm-missing", "guest %s: /dev/kvm cannot be used: %s",
			vm->name, strerror(-version));
		err_hint(e, "is it /dev/kvm that was opened? --accel soft needs none");
		return version;
	}
	if (version != KVM_API_VERSION)
		return err_set(e, ENODEV, "kvm-version",
			       "guest %s: /dev/kvm answers API version %d, %d is needed", vm->name,
			       version, KVM_API_VERSION);
	for (unsigned i = 0; i < ARRAY_SIZE(need); i++)
		if (!kvm_check(cfg->kvm_fd, need[i].cap))
			return err_set(e, ENOTSUP, "kvm-too-old",
				       "guest %s: this kernel's KVM lacks %s", vm->name,
				       need[i].what);
	unsigned most = kvm_vcpus_max(cfg->kvm_fd);
	if (cfg->vcpus > most) {
		err_set(e, ENOTSUP, "kvm-too-many-vcpus",
			"guest %s: %u vCPUs asked, this host's KVM allows %u", vm->name, cfg->vcpus,
			most);
		err_hint(e, "give it at most %u vCPUs, or use --accel soft", most);
		return -ENOTSUP;
	}
	struct kvm_vm *kv = calloc(1, sizeof(*kv));
	int ret = kv ? 0 : -ENOMEM;
	if (kv) {
		kv->fd = ioctl(cfg->kvm_fd, KVM_CREATE_VM, 0UL);
		ret = kv->fd < 0 ? -errno : 0;
	}
	if (ret < 0) {
		free(kv);
		err_set(e, -ret, "kvm-create-vm", "guest %s: KVM cannot make a VM: %s", vm->name,
			strerror(-ret));
		if (ret == -EBUSY)
			err_hint(e,
				 "another hypervisor holds the CPU; stop it, or use --accel soft");
		return ret;
	}
	pthread_mutex_init(&kv->route_lock, NULL);
	pthread_mutex_init(&kv->dirty_lock, NULL);
	vm->accel_vm = kv;
	int size = ioctl(cfg->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	kv->run_bytes = size > 0 ? (size_t)size : 0;
	kv->xcrs = kvm_check(cfg->kvm_fd, KVM_CAP_XCRS);
	kv->debugregs = kvm_check(cfg->kvm_fd, KVM_CAP_DEBUGREGS);
	kv->readonly_mem = kvm_check(cfg->kvm_fd, KVM_CAP_READONLY_MEM);
	kv->supported = calloc(1, sizeof(*kv->supported));
	ret = kv->supported ? kvm_read_supported(cfg->kvm_fd, kv->supported) : -ENOMEM;
	if (ret == 0)
		ret = kvm_read_msr_list(cfg->kvm_fd, kv);
	if (ret == 0 && kv->run_bytes < sizeof(struct kvm_run))
		ret = -EINVAL;
	if (ret < 0) {
		vm->accel->vm_fini(vm);
		return err_set(e, -ret, "kvm-facts",
			       "guest %s: KVM does not tell its CPUID and MSRs: %s", vm->name,
			       strerror(-ret));
	}
	kvm_vm_options(kv, cfg->kvm_fd, cfg);
	return 0;
}

static void kvm_vm_fini(struct vm *vm)
{
	struct kvm_vm *kv = kvm_vm_of(vm);

	if (!kv)
		return;
	kvm_dirty_fini(vm);
	close(kv->fd);
	pthread_mutex_destroy(&kv->route_lock);
	pthread_mutex_destroy(&kv->dirty_lock);
	free(kv->supported);
	free(kv->route);
	free(kv);
	vm->accel_vm = NULL;
}

static int kvm_cpuid_supported(struct vm *vm, struct cpuid_table *out, struct err *e)
{
	struct kvm_vm *kv = kvm_vm_of(vm);

	if (!kv->supported)
		return err_set(e, EALREADY, "kvm-facts", "guest %s: CPUID was read already",
			       vm->name);
	*out = *kv->supported;
	/* asked once, by vm_new(): an idle guest need not carry it */
	free(kv->supported);
	kv->supported = NULL;
	return 0;
}

int kvm_slot_set(struct vm *vm, const struct mem_region *r, bool log, bool remove)
{
	struct kvm_vm *kv = kvm_vm_of(vm);
	struct kvm_userspace_memory_region m = {
		.slot = r->slot,
		.guest_phys_addr = r->gpa,
		.memory_size = remove ? 0 : r->size_bytes,
		.userspace_addr = (uintptr_t)r->hva,
	};

	if ((r->flags & MEM_ROM) && kv->readonly_mem)
		m.flags |= KVM_MEM_READONLY;
	else if (log)
		m.flags |= KVM_MEM_LOG_DIRTY_PAGES;
	return ioctl(kv->fd, KVM_SET_USER_MEMORY_REGION, &m) < 0 ? -errno : 0;
}

static int kvm_map_ram(struct vm *vm, const struct mem_region *r, struct err *e)
{
	int ret = kvm_slot_set(vm, r, kvm_vm_of(vm)->tracking, false);

	if (ret < 0)
		return err_set(e, -ret, "kvm-slot",
			       "guest %s: KVM refuses memory of %llu KiB at 0x%llx: %s", vm->name,
			       (unsigned long long)(r->size_bytes / 1024),
			       (unsigned long long)r->gpa, strerror(-ret));
	return 0;
}

static int kvm_unmap_ram(struct vm *vm, const struct mem_region *r)
{
	return kvm_slot_set(vm, r, false, true);
}

static int kvm_irq_init(struct vm *vm, struct err *e)
{
	struct kvm_vm *kv = kvm_vm_of(vm);
	int ret = kvm_enable(kv->fd, KVM_CAP_SPLIT_IRQCHIP, KVM_IOAPIC_PINS);

	if (ret < 0)
		return err_set(e, -ret, "kvm-irqchip",
			       "guest %s: KVM refuses a split interrupt controller: %s", vm->name,
			       strerror(-ret));
	return 0;
}

static int kvm_clock_get(struct vm *vm, uint64_t *ns)
{
	struct kvm_clock_data c = { 0 };

	if (ioctl(kvm_vm_of(vm)->fd, KVM_GET_CLOCK, &c) < 0)
		return -errno;
	*ns = c.clock;
	/* Tells a guest that it was stopped, so that its watchdogs forgive the gap. EINVAL: no
	 * kvmclock yet. */
	for (unsigned i = 0; i < vm->nvcpus; i++)
		(void)ioctl(kvm_vcpu_of(vm->vcpus[i])->fd, KVM_KVMCLOCK_CTRL, 0);
	return 0;
}

static int kvm_clock_set(struct vm *vm, uint64_t ns)
{
	struct kvm_clock_data c = { .clock = ns };

	return ioctl(kvm_vm_of(vm)->fd, KVM_SET_CLOCK, &c) < 0 ? -errno : 0;
}

static unsigned kvm_stats(struct vm *vm, const char **names, uint64_t *values, unsigned max)
{
	uint64_t exits = 0;
	unsigned n = 0;

	for (unsigned i = 0; i < vm->nvcpus; i++)
		exits += atomic_load_explicit(&vm->vcpus[i]->exits, memory_order_relaxed);
	if (n < max) {
		names[n] = "exits";
		values[n++] = exits;
	}
	if (n < max) {
		names[n] = "unknown_msrs";
		values[n++] =
		    atomic_load_explicit(&kvm_vm_of(vm)->unknown_msrs, memory_order_relaxed);
	}
	return n;
}

const struct accel_ops accel_kvm = {
	.name = "kvm",
	.caps = ACCEL_HAS_LAPIC | ACCEL_HAS_IRQFD | ACCEL_HAS_DOORBELL,
	.probe = kvm_probe,
	.vm_init = kvm_vm_init,
	.vm_fini = kvm_vm_fini,
	.map_ram = kvm_map_ram,
	.unmap_ram = kvm_unmap_ram,
	.irq_init = kvm_irq_init,
	.vcpu_init = kvm_vcpu_init,
	.vcpu_fini = kvm_vcpu_fini,
	.vcpu_run = kvm_vcpu_run,
	.vcpu_kick = kvm_vcpu_kick,
	.vcpu_get_state = kvm_vcpu_get_state,
	.vcpu_set_state = kvm_vcpu_set_state,
	.vcpu_nmi = kvm_vcpu_nmi,
	.vcpu_interrupt = kvm_vcpu_interrupt,
	.msi = kvm_msi,
	.msi_route = kvm_msi_route,
	.msi_unroute = kvm_msi_unroute,
	.irqfd = kvm_irqfd,
	.doorbell = kvm_doorbell,
	.ioapic_route = kvm_ioapic_route,
	.dirty_start = kvm_dirty_start,
	.dirty_stop = kvm_dirty_stop,
	.dirty_fetch = kvm_dirty_fetch,
	.clock_get = kvm_clock_get,
	.clock_set = kvm_clock_set,
	.stats = kvm_stats,
	.cpuid_supported = kvm_cpuid_supported,
};
