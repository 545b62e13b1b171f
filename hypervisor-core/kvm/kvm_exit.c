/* kvm_exit.c - what the guest did that KVM does not do itself.
 *
 * Port I/O and MMIO go to the buses; everything that ends the run ends it with a sentence for
 * people.
 * Trust: ports, addresses, sizes and data are the guest's; the layout of kvm_run is the kernel's.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/log.h"
#include "common/overflow.h"
#include "hypervisor-core/kvm/kvm.h"

#ifndef KVM_EXIT_MEMORY_FAULT /* Linux 6.8 */
#define KVM_EXIT_MEMORY_FAULT 39
#endif

static uint64_t kvm_data_get(const uint8_t *p, unsigned len)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < len; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

static void kvm_data_put(uint8_t *p, unsigned len, uint64_t v)
{
	for (unsigned i = 0; i < len; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

/* REP INS/OUTS arrive as one exit with @count items. */
static void kvm_exit_io(struct vcpu *v, struct kvm_run *run)
{
	uint8_t *p = (uint8_t *)run + run->io.data_offset;

	for (uint32_t i = 0; i < run->io.count; i++, p += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_OUT)
			bus_write(v->vm->pio, run->io.port, run->io.size,
				  kvm_data_get(p, run->io.size));
		else
			kvm_data_put(p, run->io.size,
				     bus_read(v->vm->pio, run->io.port, run->io.size));
	}
}

static void kvm_exit_mmio(struct vcpu *v, struct kvm_run *run)
{
	unsigned len = MIN(run->mmio.len, 8u);

	if (run->mmio.is_write)
		bus_write(v->vm->mmio, run->mmio.phys_addr, len, kvm_data_get(run->mmio.data, len));
	else
		kvm_data_put(run->mmio.data, len, bus_read(v->vm->mmio, run->mmio.phys_addr, len));
}

static uint64_t kvm_rip(const struct vcpu *v)
{
	struct kvm_regs r;

	return ioctl(kvm_vcpu_of(v)->fd, KVM_GET_REGS, &r) < 0 ? 0 : r.rip;
}

static void kvm_internal_error(struct vcpu *v, const struct kvm_run *run)
{
	static const char *const names[] = {
		[KVM_INTERNAL_ERROR_EMULATION] = "an instruction that KVM cannot emulate",
		[KVM_INTERNAL_ERROR_SIMUL_EX] = "an exception while another was delivered",
		[KVM_INTERNAL_ERROR_DELIVERY_EV] = "a fault while an event was delivered",
		[KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON] = "an exit that KVM does not know",
	};
	uint32_t sub = run->internal.suberror;
	const char *what = sub < ARRAY_SIZE(names) && names[sub] ? names[sub] : "an internal error";
	char bytes[64] = "";

	if (sub == KVM_INTERNAL_ERROR_EMULATION && run->emulation_failure.ndata >= 3 &&
	    (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
		unsigned n = MIN(run->emulation_failure.insn_size, 15u);

		snprintf(bytes, sizeof(bytes), ", bytes");
		for (unsigned i = 0; i < n; i++)
			snprintf(bytes + 7 + 3 * i, 4, " %02x",
				 run->emulation_failure.insn_bytes[i]);
	}
	err_set(&v->exit_err, EIO, "kvm-internal-error",
		"KVM stopped at %s (suberror %u, rip 0x%llx%s); accel soft may run this guest",
		what, sub, (unsigned long long)kvm_rip(v), bytes);
}

static void kvm_exit_system_event(struct vcpu *v, const struct kvm_run *run)
{
	switch (run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		vm_event(v->vm, VM_EVENT_POWEROFF, "vCPU %u asked KVM for power off", v->index);
		break;
	case KVM_SYSTEM_EVENT_RESET:
		vm_event(v->vm, VM_EVENT_REBOOT, "vCPU %u asked KVM for a reset", v->index);
		break;
	case KVM_SYSTEM_EVENT_CRASH:
		vm_event(v->vm, VM_EVENT_PANIC, "vCPU %u reported a crash to KVM", v->index);
		break;
	}
}

static void kvm_exit_msr(struct vcpu *v, struct kvm_run *run)
{
	struct kvm_vm *kv = kvm_vm_of(v->vm);
	bool write = run->exit_reason == KVM_EXIT_X86_WRMSR;

	/* #GP, as hardware does for an MSR that it does not have */
	run->msr.error = 1;
	if (atomic_fetch_add(&kv->unknown_msrs, 1) < 16)
		log_debug("vCPU %u: unknown MSR 0x%x %s", v->index, run->msr.index,
			  write ? "written" : "read");
}

static bool kvm_exit_fail(struct vcpu *v, enum vcpu_exit *out)
{
	*out = VCPU_EXIT_FAILED;
	return false;
}

bool kvm_exit_handle(struct vcpu *v, enum vcpu_exit *out)
{
	struct kvm_vcpu *kc = kvm_vcpu_of(v);
	struct kvm_run *run = kc->run;
	struct vm *vm = v->vm;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		kc->completing = true;
		kvm_exit_io(v, run);
		return true;
	case KVM_EXIT_MMIO:
		kc->completing = true;
		kvm_exit_mmio(v, run);
		return true;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN: /* the run loop injects */
	case KVM_EXIT_SET_TPR:
		return true;
	case KVM_EXIT_IOAPIC_EOI:
		if (vm->intc && vm->intc->eoi)
			vm->intc->eoi(vm->intc_opaque, run->eoi.vector);
		return true;
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR:
		kc->completing = true;
		kvm_exit_msr(v, run);
		return true;
	case KVM_EXIT_DIRTY_RING_FULL:
		kvm_dirty_ring_full(vm);
		return true;
	case KVM_EXIT_SYSTEM_EVENT:
		kvm_exit_system_event(v, run);
		return true;
	case KVM_EXIT_X86_BUS_LOCK: /* allowed, merely slow */
		return true;
	case KVM_EXIT_SHUTDOWN:
		*out = VCPU_EXIT_SHUTDOWN;
		return false;
	case KVM_EXIT_DEBUG:
		*out = VCPU_EXIT_DEBUG;
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		kvm_internal_error(v, run);
		return kvm_exit_fail(v, out);
	case KVM_EXIT_FAIL_ENTRY:
		err_set(&v->exit_err, EIO, "kvm-fail-entry",
			"the CPU refused to enter the guest (hardware reason 0x%llx, rip 0x%llx)",
			(unsigned long long)run->fail_entry.hardware_entry_failure_reason,
			(unsigned long long)kvm_rip(v));
		return kvm_exit_fail(v, out);
	case KVM_EXIT_MEMORY_FAULT:
		err_set(&v->exit_err, EFAULT, "kvm-memory-fault",
			"KVM cannot reach guest memory (rip 0x%llx)",
			(unsigned long long)kvm_rip(v));
		return kvm_exit_fail(v, out);
	default:
		err_set(&v->exit_err, EIO, "kvm-unknown-exit",
			"KVM left the guest for a reason that this program does not know (%u, "
			"hardware 0x%llx, rip 0x%llx)",
			run->exit_reason, (unsigned long long)run->hw.hardware_exit_reason,
			(unsigned long long)kvm_rip(v));
		return kvm_exit_fail(v, out);
	}
}
