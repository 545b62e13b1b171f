/* kvm_ioctls.h - every ioctl that accel_kvm makes, and on which kind of descriptor.
 *
 * The jail's seccomp filter is generated from this table: an ioctl that is not here kills the
 * guest's process, so a new one is added here in the same change. FD: SYS is /dev/kvm, VM and VCPU
 * are made in the process itself. Nothing else is opened.
 */
#ifndef CORE_KVM_IOCTLS_H
#define CORE_KVM_IOCTLS_H

#include <linux/kvm.h>

#define KVM_IOCTL_TABLE(X) \
	X(SYS, KVM_GET_API_VERSION) \
	X(SYS, KVM_CREATE_VM) \
	X(SYS, KVM_CHECK_EXTENSION) \
	X(SYS, KVM_GET_VCPU_MMAP_SIZE) \
	X(SYS, KVM_GET_SUPPORTED_CPUID) \
	X(SYS, KVM_GET_MSR_INDEX_LIST) \
	X(VM, KVM_SET_USER_MEMORY_REGION) \
	X(VM, KVM_SET_TSS_ADDR) \
	X(VM, KVM_SET_IDENTITY_MAP_ADDR) \
	X(VM, KVM_ENABLE_CAP) \
	X(VM, KVM_CREATE_VCPU) \
	X(VM, KVM_SET_GSI_ROUTING) \
	X(VM, KVM_SIGNAL_MSI) \
	X(VM, KVM_IRQFD) \
	X(VM, KVM_IOEVENTFD) \
	X(VM, KVM_GET_DIRTY_LOG) \
	X(VM, KVM_RESET_DIRTY_RINGS) \
	X(VM, KVM_GET_CLOCK) \
	X(VM, KVM_SET_CLOCK) \
	X(VCPU, KVM_RUN) \
	X(VCPU, KVM_SET_SIGNAL_MASK) \
	X(VCPU, KVM_SET_CPUID2) \
	X(VCPU, KVM_GET_REGS) \
	X(VCPU, KVM_SET_REGS) \
	X(VCPU, KVM_GET_SREGS) \
	X(VCPU, KVM_SET_SREGS) \
	X(VCPU, KVM_GET_DEBUGREGS) \
	X(VCPU, KVM_SET_DEBUGREGS) \
	X(VCPU, KVM_GET_XSAVE) \
	X(VCPU, KVM_SET_XSAVE) \
	X(VCPU, KVM_GET_XCRS) \
	X(VCPU, KVM_SET_XCRS) \
	X(VCPU, KVM_GET_MSRS) \
	X(VCPU, KVM_SET_MSRS) \
	X(VCPU, KVM_GET_LAPIC) \
	X(VCPU, KVM_SET_LAPIC) \
	X(VCPU, KVM_GET_VCPU_EVENTS) \
	X(VCPU, KVM_SET_VCPU_EVENTS) \
	X(VCPU, KVM_GET_MP_STATE) \
	X(VCPU, KVM_SET_MP_STATE) \
	X(VCPU, KVM_INTERRUPT) \
	X(VCPU, KVM_NMI) \
	X(VCPU, KVM_KVMCLOCK_CTRL)

#endif
