/* kvm_probe.c - is this /dev/kvm there, and does it run guest ring 0 at native speed?
 *
 * Nothing in the ABI tells a KVM on hardware from one that interprets the guest's kernel (PVM-type
 * KVMs do). So a real guest is run: two instructions in a loop, in 64-bit ring 0, first few rounds,
 * then, if that was quick, enough to time well. Bounded to a few ms: the short run decides for slow
 * hosts.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "hypervisor-core/kvm/kvm.h"

#define PROBE_RAM	0x10000u
#define PROBE_CODE	0x8000u
#define PROBE_SHORT	500u /* 0.7 ms where an instruction is interpreted in 700 ns */
#define PROBE_LONG	100000u
#define PROBE_UNSURE_NS 200 /* above: interpreted, without a longer look */
#define PROBE_NATIVE_NS \
	50.0 /* hardware: below 1; hardware emulated by software: about 5; interpreted: 600 */

struct kvm_probe_vm {
	int vm, vcpu;
	uint8_t *ram;
	struct kvm_run *run;
	size_t run_bytes;
};

static void kvm_probe_close(struct kvm_probe_vm *p)
{
	if (p->run)
		munmap(p->run, p->run_bytes);
	close_fd(&p->vcpu);
	close_fd(&p->vm);
	if (p->ram)
		munmap(p->ram, PROBE_RAM);
}

static int kvm_probe_cpuid(int kvm_fd, int vcpu)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(c->entries[0]));
	int ret = 0;

	if (!c)
		return -ENOMEM;
	c->nent = 256;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, c) < 0 || ioctl(vcpu, KVM_SET_CPUID2, c) < 0)
		ret = -errno;
	free(c);
	return ret;
}

static int kvm_probe_enter_long_mode(int vcpu)
{
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1
	};
	struct kvm_segment data = { .limit = 0xffffffff,
				    .selector = 16,
				    .type = 3,
				    .present = 1,
				    .s = 1,
				    .db = 1,
				    .g = 1 };
	struct kvm_sregs s;

	if (ioctl(vcpu, KVM_GET_SREGS, &s) < 0)
		return -errno;
	s.cs = code;
	s.ds = s.es = s.ss = s.fs = s.gs = data;
	s.cr0 = 0x80000011;
	s.cr4 = 0x20;
	s.cr3 = 0x1000;
	s.efer = 0x500;
	return ioctl(vcpu, KVM_SET_SREGS, &s) < 0 ? -errno : 0;
}

/* kvm_probe_open() - 64 KiB of identity-mapped RAM with the loop in it. */
static int kvm_probe_open(int kvm_fd, struct kvm_probe_vm *p)
{
	/* dec rcx; jnz; out */
	static const uint8_t loop[] = { 0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, 0x10 };
	int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	*p = (struct kvm_probe_vm){ .vm = -1, .vcpu = -1 };
	p->vm = ioctl(kvm_fd, KVM_CREATE_VM, 0UL);
	if (p->vm < 0)
		return -errno;
	if (size < (int)sizeof(struct kvm_run))
		return -EIO;
	uint8_t *ram =
	    mmap(NULL, PROBE_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ram == MAP_FAILED)
		return -errno;
	p->ram = ram;
	const uint64_t entry[3] = { 0x2003, 0x3003, 0x83 }; /* PML4, PDPT, one 2 MiB page */
	for (unsigned i = 0; i < 3; i++)
		memcpy(ram + 0x1000 * (i + 1), &entry[i], 8);
	memcpy(ram + PROBE_CODE, loop, sizeof(loop));
	struct kvm_userspace_memory_region m = { .memory_size = PROBE_RAM,
						 .userspace_addr = (uintptr_t)ram };
	if (ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &m) < 0)
		return -errno;
	p->vcpu = ioctl(p->vm, KVM_CREATE_VCPU, 0UL);
	if (p->vcpu < 0)
		return -errno;
	p->run_bytes = (size_t)size;
	void *run = mmap(NULL, p->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu, 0);
	if (run == MAP_FAILED)
		return -errno;
	p->run = run;
	int ret = kvm_probe_cpuid(kvm_fd, p->vcpu);
	return ret < 0 ? ret : kvm_probe_enter_long_mode(p->vcpu);
}

/* kvm_probe_time() - run @rounds of the loop. Return: 0 and the ns it took, or -errno. */
static int kvm_probe_time(struct kvm_probe_vm *p, uint64_t rounds, uint64_t *ns)
{
	struct kvm_regs r = { .rcx = rounds, .rip = PROBE_CODE, .rflags = 2 };

	if (ioctl(p->vcpu, KVM_SET_REGS, &r) < 0)
		return -errno;
	uint64_t start = clock_mono_ns();
	for (unsigned tries = 0; ioctl(p->vcpu, KVM_RUN, 0) < 0; tries++)
		if ((errno != EINTR && errno != EAGAIN && errno != ENOMEM) || tries > 100)
			return -errno;
	*ns = clock_mono_ns() - start;
	return p->run && p->run->exit_reason == KVM_EXIT_IO ? 0 : -EIO;
}

/* kvm_probe_slope() - ns an instruction, from what @rounds take more than one: entering and leaving the
 * guest is dear where KVM itself runs under a hypervisor, and says nothing of its instructions. The
 * least of three, for others use the CPU too. */
static int kvm_probe_slope(struct kvm_probe_vm *p, uint64_t rounds, double *ns)
{
	double least = 0;

	for (unsigned i = 0; i < 3; i++) {
		uint64_t one = 0, many = 0;
		int ret = kvm_probe_time(p, 1, &one);

		if (ret == 0)
			ret = kvm_probe_time(p, rounds, &many);
		if (ret < 0)
			return ret;
		double each = many > one ? (double)(many - one) / (2.0 * (double)(rounds - 1)) : 0;

		if (!i || each < least)
			least = each;
	}
	*ns = least;
	return 0;
}

static void kvm_probe_measure(int kvm_fd, struct accel_probe *out)
{
	struct kvm_probe_vm p;
	uint64_t first;
	double ns = 0;
	int ret = kvm_probe_open(kvm_fd, &p);

	if (ret == 0)
		ret = kvm_probe_time(&p, 1, &first); /* builds the kernel's tables */
	if (ret == 0)
		ret = kvm_probe_slope(&p, PROBE_SHORT, &ns);
	if (ret == 0 && ns < PROBE_UNSURE_NS)
		ret = kvm_probe_slope(&p, PROBE_LONG, &ns);
	kvm_probe_close(&p);
	out->ring0_ns = ret == 0 ? ns : 0;
	out->ring0_native = ret == 0 && ns < PROBE_NATIVE_NS;
	if (ret == -EIO)
		snprintf(out->reason, sizeof(out->reason),
			 "/dev/kvm is there but cannot run 64-bit guest kernel code");
	else if (ret < 0)
		snprintf(out->reason, sizeof(out->reason),
			 "/dev/kvm is there but a test guest failed: %s", strerror(-ret));
	else if (out->ring0_native)
		snprintf(out->reason, sizeof(out->reason),
			 "/dev/kvm runs guest kernels natively (%.2f ns an instruction measured)",
			 ns);
	else
		snprintf(out->reason, sizeof(out->reason),
			 "/dev/kvm is there but interprets guest kernel code (%.0f ns an "
			 "instruction measured, hardware takes below 5)",
			 ns);
}

int kvm_probe(int kvm_fd, bool measure, struct accel_probe *out)
{
	*out = (struct accel_probe){ 0 };
	int version = ioctl(kvm_fd, KVM_GET_API_VERSION, 0);
	if (version < 0) {
		int ret = -errno;

		snprintf(out->reason, sizeof(out->reason), "what was handed in is not /dev/kvm: %s",
			 strerror(-ret));
		return ret;
	}
	out->nested = kvm_check(kvm_fd, KVM_CAP_NESTED_STATE) > 0;
	out->dirty_ring = kvm_check(kvm_fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL) > 0;
	out->sync_regs = kvm_check(kvm_fd, KVM_CAP_SYNC_REGS) > 0;
	out->vcpus_max = kvm_vcpus_max(kvm_fd);
	if (version != KVM_API_VERSION) {
		snprintf(out->reason, sizeof(out->reason), "/dev/kvm speaks API version %d, not %d",
			 version, KVM_API_VERSION);
		return 0;
	}
	if (!kvm_check(kvm_fd, KVM_CAP_SPLIT_IRQCHIP) ||
	    !kvm_check(kvm_fd, KVM_CAP_IMMEDIATE_EXIT)) {
		snprintf(out->reason, sizeof(out->reason),
			 "this kernel's KVM is too old (no split interrupt controller; Linux 4.12 "
			 "has it)");
		return 0;
	}
	out->usable = true;
	snprintf(out->reason, sizeof(out->reason),
		 "/dev/kvm is usable (speed of guest kernels not measured)");
	if (measure)
		kvm_probe_measure(kvm_fd, out);
	return 0;
}
