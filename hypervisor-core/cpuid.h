/* cpuid.h - CPUID and MSR policy: what CPU the guest sees, the same for KVM and the software CPU.
 * Models: "host" (what the accelerator supports), "x86-64-v1", "x86-64-v2", "x86-64-v3" (baselines
 * for migration between hosts). Flags by name can be added or removed: "+avx2,-rdrand". nested
 * on/off gives or hides VMX/SVM. Leaves 0x40000000/1 carry the KVM signature, kvmclock (stable bit)
 * and PV features. */
#ifndef CORE_CPUID_H
#define CORE_CPUID_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

struct cpuid_entry {
	uint32_t leaf, subleaf, flags; /* flag bit 0: subleaf significant (KVM's numbering) */
	uint32_t eax, ebx, ecx, edx;
};
#define CPUID_ENTRIES_MAX 128

struct cpuid_policy {
	char model[32];	 /* as given */
	char flags[256]; /* "+x,-y" */
	bool nested;
	unsigned vcpus; /* topology: one socket, @vcpus cores */
};

struct cpuid_table {
	unsigned n;
	struct cpuid_entry e[CPUID_ENTRIES_MAX];
};

/* cpuid_build() - @supported: what the accelerator can do (masked by the model). -EINVAL unknown
 * model or flag (did-you-mean in @e), -ENOTSUP a flag the accelerator lacks. */
int cpuid_build(const struct cpuid_policy *p, const struct cpuid_table *supported,
		struct cpuid_table *out, struct err *e);
/* cpuid_for_vcpu() - per-vCPU fields (APIC ids in leaves 1, 0xb, 0x1f). */
void cpuid_for_vcpu(struct cpuid_table *t, unsigned cpu_index);
const struct cpuid_entry *cpuid_find(const struct cpuid_table *t, uint32_t leaf, uint32_t subleaf);

#endif
