/* kvm.h - what the files of accel_kvm share: the VM's and the vCPU's own records.
 *
 * Locks: route_lock guards the routing table, dirty_lock the harvested dirty pages; both are
 * leaves. A vCPU's record belongs to its thread, or to whoever holds it parked; only
 * run->immediate_exit is written by others (kvm_vcpu_kick).
 */
#ifndef CORE_KVM_H
#define CORE_KVM_H

#include <linux/kvm.h>
#include <pthread.h>

#include "hypervisor-core/kvm/kvm_ioctls.h"
#include "hypervisor-core/vm.h"

#define KVM_IOAPIC_PINS 24u
#define KVM_RING_BYTES	(4096u * sizeof(struct kvm_dirty_gfn))

struct kvm_route {
	bool used;
	uint64_t addr;
	uint32_t data;
};

struct kvm_vm {
	int fd;
	size_t run_bytes;
	bool xcrs, debugregs, readonly_mem, user_msr, exc_payload;
	bool nested; /* the guest has VMX or SVM */
	struct cpuid_table *supported;
	unsigned nmsrs;
	uint32_t msr[X86_MSRS_MAX];

	pthread_mutex_t route_lock;
	struct kvm_route *route; /* by GSI; the first KVM_IOAPIC_PINS are the IOAPIC's */
	unsigned nroutes;
	_Atomic bool routes_changed;

	uint32_t ring_bytes; /* 0 = dirty log */
	pthread_mutex_t dirty_lock;
	bool tracking;
	uint64_t *harvest[MEM_REGIONS_MAX]; /* by slot: dirty ring entries not fetched yet */
	uint64_t harvest_pages[MEM_REGIONS_MAX];

	_Atomic uint64_t unknown_msrs;
};

struct kvm_vcpu {
	int fd;
	struct kvm_run *run;
	struct kvm_dirty_gfn *ring;
	uint32_t ring_next;
	bool completing; /* an I/O or MMIO exit is half done: KVM_RUN must be entered once more */
	bool ran, signal_open;
	bool in_flight;	 /* it ran since it was last settled (kvm_settle) */
	bool can_settle; /* KVM_RUN lets the kick signal through where the thread blocks it */
};

static inline struct kvm_vm *kvm_vm_of(const struct vm *vm)
{
	return vm->accel_vm;
}

static inline struct kvm_vcpu *kvm_vcpu_of(const struct vcpu *v)
{
	return v->accel_vcpu;
}

/* kvm_vm.c */
int kvm_check(int kvm_fd, int cap);
unsigned kvm_vcpus_max(int kvm_fd);
int kvm_read_supported(int kvm_fd, struct cpuid_table *out);
int kvm_slot_set(struct vm *vm, const struct mem_region *r, bool log, bool remove);
/* kvm_probe.c */
int kvm_probe(int kvm_fd, bool measure, struct accel_probe *out);
/* kvm_vcpu.c */
int kvm_vcpu_init(struct vcpu *v, struct err *e);
void kvm_vcpu_fini(struct vcpu *v);
enum vcpu_exit kvm_vcpu_run(struct vcpu *v);
void kvm_vcpu_kick(struct vcpu *v);
void kvm_vcpu_interrupt(struct vcpu *v);
int kvm_vcpu_nmi(struct vcpu *v);
/* kvm_exit.c: false = the vCPU cannot go on, *out says how */
bool kvm_exit_handle(struct vcpu *v, enum vcpu_exit *out);
/* kvm_state.c */
int kvm_vcpu_get_state(struct vcpu *v, struct x86_state *s, struct err *e);
int kvm_vcpu_set_state(struct vcpu *v, const struct x86_state *s, struct err *e);
/* kvm_irq.c */
int kvm_msi(struct vm *vm, uint64_t addr, uint32_t data);
int kvm_msi_route(struct vm *vm, int *gsi, uint64_t addr, uint32_t data);
void kvm_msi_unroute(struct vm *vm, int gsi);
int kvm_irqfd(struct vm *vm, int fd, int gsi, bool assign);
int kvm_doorbell(struct vm *vm, bool pio, uint64_t addr, unsigned size, bool use_match,
		 uint64_t match, int fd, bool assign);
void kvm_ioapic_route(struct vm *vm, unsigned pin, uint64_t addr, uint32_t data, bool level);
int kvm_routes_flush(struct vm *vm);
/* kvm_dirty.c */
int kvm_dirty_start(struct vm *vm);
void kvm_dirty_stop(struct vm *vm);
int kvm_dirty_fetch(struct vm *vm, const struct mem_region *r, uint8_t *bitmap);
void kvm_dirty_ring_full(struct vm *vm);
void kvm_dirty_fini(struct vm *vm);

#endif
