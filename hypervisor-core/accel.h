/* accel.h - what executes guest instructions: a row of accel_ops.
 *
 * Rows: kvm (hypervisor-core/kvm/), soft (hypervisor-core/soft/). Devices, API, snapshots and
 * migration never ask which. A row dispatches port I/O and MMIO itself, by bus_read/bus_write.
 * Threading: vm_* from the main thread; vcpu_run, vcpu_get/set_state from the vCPU's own thread, or
 * from any while it is parked; vcpu_kick, msi, irqfd and route from any thread, any time.
 */
#ifndef CORE_ACCEL_H
#define CORE_ACCEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "hypervisor-core/cpuid.h"
#include "hypervisor-core/mem.h"
#include "hypervisor-core/x86_state.h"

struct vm;
struct vcpu;

enum vcpu_exit {
	VCPU_EXIT_KICKED,   /* a request waits: look at vcpu->requests, then run again */
	VCPU_EXIT_SHUTDOWN, /* triple fault */
	VCPU_EXIT_FAILED,   /* accelerator cannot go on; vcpu->exit_err says why */
	VCPU_EXIT_DEBUG,    /* breakpoint or single step */
};

struct accel_probe {
	bool usable;	   /* can run a guest at all */
	bool ring0_native; /* guest ring 0 at native speed: stock kernels run */
	double ring0_ns;   /* measured ns an instruction in guest ring 0; 0 = not measured */
	bool nested, dirty_ring, sync_regs;
	unsigned vcpus_max;
	char reason[200]; /* one sentence for `info` and `doctor` */
};

enum accel_caps {
	ACCEL_HAS_LAPIC = 1 << 0, /* own LAPICs: the machine builds none */
	ACCEL_HAS_IRQFD = 1 << 1,
	ACCEL_HAS_DOORBELL = 1 << 2, /* ioeventfd */
};

struct accel_config {
	int kvm_fd; /* /dev/kvm, opened by priv; -1 for soft. Borrowed during vm_init. */
	unsigned vcpus;
	bool icount, threads_one; /* soft: deterministic virtual time, one host thread */
	bool dirty_ring;
};

struct accel_ops {
	const char *name;
	uint32_t caps; /* enum accel_caps */
	/* probe() - cheap facts; measures ring 0 by a real guest where @measure. @kvm_fd as above.
	 */
	int (*probe)(int kvm_fd, bool measure, struct accel_probe *out);

	int (*vm_init)(struct vm *vm, const struct accel_config *cfg, struct err *e);
	void (*vm_fini)(struct vm *vm);
	/* map_ram() first, for every region; then irq_init(); then vcpu_init(): order costs 15x. */
	int (*map_ram)(struct vm *vm, const struct mem_region *r, struct err *e);
	int (*unmap_ram)(struct vm *vm, const struct mem_region *r);
	int (*irq_init)(struct vm *vm, struct err *e);

	int (*vcpu_init)(struct vcpu *v, struct err *e); /* applies vm->cpuid */
	void (*vcpu_fini)(struct vcpu *v);
	enum vcpu_exit (*vcpu_run)(struct vcpu *v);
	void (*vcpu_kick)(struct vcpu *v); /* make vcpu_run return soon; async-signal-safe */
	int (*vcpu_get_state)(struct vcpu *v, struct x86_state *s, struct err *e);
	int (*vcpu_set_state)(struct vcpu *v, const struct x86_state *s, struct err *e);
	int (*vcpu_nmi)(struct vcpu *v);
	/* vcpu_interrupt() - the controllers' view changed (PIC line, LAPIC pending): look again.
	 * vcpu_init_sipi() - INIT (@vector < 0) or SIPI from a user-space LAPIC; soft only. */
	void (*vcpu_interrupt)(struct vcpu *v);
	void (*vcpu_init_sipi)(struct vcpu *v, int vector);

	int (*msi)(struct vm *vm, uint64_t addr, uint32_t data);
	int (*msi_route)(struct vm *vm, int *gsi, uint64_t addr,
			 uint32_t data); /* *gsi -1: allocate */
	void (*msi_unroute)(struct vm *vm, int gsi);
	int (*irqfd)(struct vm *vm, int fd, int gsi, bool assign);
	int (*doorbell)(struct vm *vm, bool pio, uint64_t addr, unsigned size, bool use_match,
			uint64_t match, int fd, bool assign);
	/* ioapic_route() - tell the accelerator what IOAPIC pin @pin would send, so that it reports
	 * EOIs of level-triggered ones (split irqchip). addr/data 0 = masked. */
	void (*ioapic_route)(struct vm *vm, unsigned pin, uint64_t addr, uint32_t data, bool level);

	/* dirty log of vCPU writes; the bitmap has a bit a page of @r, set bits are or-ed in and
	 * cleared in the accelerator. */
	int (*dirty_start)(struct vm *vm);
	void (*dirty_stop)(struct vm *vm);
	int (*dirty_fetch)(struct vm *vm, const struct mem_region *r, uint8_t *bitmap);

	/* Guest clock (kvmclock): get before pause is saved, set on load, ns. */
	int (*clock_get)(struct vm *vm, uint64_t *ns);
	int (*clock_set)(struct vm *vm, uint64_t ns);
	/* optional: virtual time of devices; NULL = CLOCK_MONOTONIC */
	uint64_t (*now_ns)(struct vm *vm);
	/* optional, for a user-space LAPIC: the vm_now_ns() time at which vCPU @v's TSC reads @tsc
	 * (in the past or the future). NULL = the TSC counts vm_now_ns() itself (1 GHz). Any
	 * thread. */
	uint64_t (*tsc_to_ns)(struct vcpu *v, uint64_t tsc);
	/* optional: one thread runs all vCPUs (soft threads=1); returns when vm->stopping */
	bool (*runs_all)(struct vm *vm);
	enum vcpu_exit (*run_all)(struct vm *vm, struct vcpu **which);
	/* optional: counters for `info`/`top`: instructions, exits, tlb ... */
	unsigned (*stats)(struct vm *vm, const char **names, uint64_t *values, unsigned max);
	/* cpuid_supported() - every leaf that this accelerator can honour. vm_new() calls it after
	 * vm_init() and fills vm->cpuid by cpuid_build(); vcpu_init() applies that, per vCPU by
	 * cpuid_for_vcpu(). */
	int (*cpuid_supported)(struct vm *vm, struct cpuid_table *out, struct err *e);
};

extern const struct accel_ops accel_kvm;
extern const struct accel_ops accel_soft;
extern const struct accel_ops *const accel_rows[]; /* NULL-terminated, order of preference */

/* accel_choose() - "auto", "kvm", "soft". auto takes kvm where it is usable and runs guest ring 0
 * natively, else soft. @reason: one sentence why (what was measured). NULL with @e where
 * impossible. */
const struct accel_ops *accel_choose(const char *want, int kvm_fd, char *reason,
				     unsigned reason_len, struct err *e);

#endif
