/* cpuid.c - CPUID policy (cpuid.h).
 *
 * "host" is everything the accelerator supports that also works in a guest of ours. The baselines
 * are the x86-64 psABI's micro-architecture levels plus what every level's CPUs have in a VM (APIC,
 * TSC deadline, x2APIC, hypervisor bit ...): a guest of one level moves between any hosts of that
 * level.
 * Left out unless asked for by a flag: PMU (counters do not survive a move), MWAIT (a guest that
 * sleeps by it would hold its host CPU), nested VMX/SVM.
 * Threading: pure functions. Trust: model and flags come from the API and are matched exactly; the
 * table comes from the kernel or from the software CPU.
 * Sources: Intel SDM vol. 2 CPUID, AMD APM vol. 3 appendix E, Linux
 * Documentation/virt/kvm/x86/cpuid.rst.
 */
#include "hypervisor-core/cpuid.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/overflow.h"
#include "common/text.h"

enum cpuid_reg { R_EAX, R_EBX, R_ECX, R_EDX };
enum { KVM_LEAF_SIGNATURE = 0x40000000, KVM_LEAF_FEATURES = 0x40000001 };

#define LEVEL_V1     1u
#define LEVEL_V2     2u
#define LEVEL_V3     3u
#define LEVEL_VM     1u	 /* present at every level: architectural in a VM */
#define LEVEL_HOST   9u	 /* only by "host" or by name */
#define LEVEL_ASK    10u /* only by name */
#define LEVEL_NESTED 11u

struct cpuid_flag {
	const char *name;
	uint32_t leaf, subleaf;
	uint8_t reg, bit, level;
};

static const struct cpuid_flag cpuid_flags[] = {
	{ "fpu", 1, 0, R_EDX, 0, LEVEL_V1 },
	{ "vme", 1, 0, R_EDX, 1, LEVEL_VM },
	{ "de", 1, 0, R_EDX, 2, LEVEL_VM },
	{ "pse", 1, 0, R_EDX, 3, LEVEL_V1 },
	{ "tsc", 1, 0, R_EDX, 4, LEVEL_V1 },
	{ "msr", 1, 0, R_EDX, 5, LEVEL_V1 },
	{ "pae", 1, 0, R_EDX, 6, LEVEL_V1 },
	{ "mce", 1, 0, R_EDX, 7, LEVEL_VM },
	{ "cx8", 1, 0, R_EDX, 8, LEVEL_V1 },
	{ "apic", 1, 0, R_EDX, 9, LEVEL_VM },
	{ "sep", 1, 0, R_EDX, 11, LEVEL_VM },
	{ "mtrr", 1, 0, R_EDX, 12, LEVEL_VM },
	{ "pge", 1, 0, R_EDX, 13, LEVEL_V1 },
	{ "mca", 1, 0, R_EDX, 14, LEVEL_VM },
	{ "cmov", 1, 0, R_EDX, 15, LEVEL_V1 },
	{ "pat", 1, 0, R_EDX, 16, LEVEL_V1 },
	{ "pse36", 1, 0, R_EDX, 17, LEVEL_VM },
	{ "clflush", 1, 0, R_EDX, 19, LEVEL_VM },
	{ "mmx", 1, 0, R_EDX, 23, LEVEL_V1 },
	{ "fxsr", 1, 0, R_EDX, 24, LEVEL_V1 },
	{ "sse", 1, 0, R_EDX, 25, LEVEL_V1 },
	{ "sse2", 1, 0, R_EDX, 26, LEVEL_V1 },
	{ "ss", 1, 0, R_EDX, 27, LEVEL_HOST },
	{ "sse3", 1, 0, R_ECX, 0, LEVEL_V2 },
	{ "pclmulqdq", 1, 0, R_ECX, 1, LEVEL_HOST },
	{ "monitor", 1, 0, R_ECX, 3, LEVEL_ASK },
	{ "vmx", 1, 0, R_ECX, 5, LEVEL_NESTED },
	{ "ssse3", 1, 0, R_ECX, 9, LEVEL_V2 },
	{ "fma", 1, 0, R_ECX, 12, LEVEL_V3 },
	{ "cx16", 1, 0, R_ECX, 13, LEVEL_V2 },
	{ "pdcm", 1, 0, R_ECX, 15, LEVEL_ASK },
	{ "pcid", 1, 0, R_ECX, 17, LEVEL_HOST },
	{ "sse4.1", 1, 0, R_ECX, 19, LEVEL_V2 },
	{ "sse4.2", 1, 0, R_ECX, 20, LEVEL_V2 },
	{ "x2apic", 1, 0, R_ECX, 21, LEVEL_VM },
	{ "movbe", 1, 0, R_ECX, 22, LEVEL_V3 },
	{ "popcnt", 1, 0, R_ECX, 23, LEVEL_V2 },
	{ "tsc-deadline", 1, 0, R_ECX, 24, LEVEL_VM },
	{ "aes", 1, 0, R_ECX, 25, LEVEL_HOST },
	{ "xsave", 1, 0, R_ECX, 26, LEVEL_V3 },
	{ "avx", 1, 0, R_ECX, 28, LEVEL_V3 },
	{ "f16c", 1, 0, R_ECX, 29, LEVEL_V3 },
	{ "rdrand", 1, 0, R_ECX, 30, LEVEL_HOST },
	{ "hypervisor", 1, 0, R_ECX, 31, LEVEL_VM },
	{ "arat", 6, 0, R_EAX, 2, LEVEL_VM },
	{ "fsgsbase", 7, 0, R_EBX, 0, LEVEL_HOST },
	{ "tsc-adjust", 7, 0, R_EBX, 1, LEVEL_HOST },
	{ "bmi1", 7, 0, R_EBX, 3, LEVEL_V3 },
	{ "hle", 7, 0, R_EBX, 4, LEVEL_HOST },
	{ "avx2", 7, 0, R_EBX, 5, LEVEL_V3 },
	{ "smep", 7, 0, R_EBX, 7, LEVEL_HOST },
	{ "bmi2", 7, 0, R_EBX, 8, LEVEL_V3 },
	{ "erms", 7, 0, R_EBX, 9, LEVEL_HOST },
	{ "invpcid", 7, 0, R_EBX, 10, LEVEL_HOST },
	{ "rtm", 7, 0, R_EBX, 11, LEVEL_HOST },
	{ "mpx", 7, 0, R_EBX, 14, LEVEL_ASK },
	{ "avx512f", 7, 0, R_EBX, 16, LEVEL_HOST },
	{ "avx512dq", 7, 0, R_EBX, 17, LEVEL_HOST },
	{ "rdseed", 7, 0, R_EBX, 18, LEVEL_HOST },
	{ "adx", 7, 0, R_EBX, 19, LEVEL_HOST },
	{ "smap", 7, 0, R_EBX, 20, LEVEL_HOST },
	{ "clflushopt", 7, 0, R_EBX, 23, LEVEL_HOST },
	{ "clwb", 7, 0, R_EBX, 24, LEVEL_HOST },
	{ "avx512cd", 7, 0, R_EBX, 28, LEVEL_HOST },
	{ "sha-ni", 7, 0, R_EBX, 29, LEVEL_HOST },
	{ "avx512bw", 7, 0, R_EBX, 30, LEVEL_HOST },
	{ "avx512vl", 7, 0, R_EBX, 31, LEVEL_HOST },
	{ "umip", 7, 0, R_ECX, 2, LEVEL_HOST },
	{ "pku", 7, 0, R_ECX, 3, LEVEL_HOST },
	{ "waitpkg", 7, 0, R_ECX, 5, LEVEL_ASK },
	{ "gfni", 7, 0, R_ECX, 8, LEVEL_HOST },
	{ "vaes", 7, 0, R_ECX, 9, LEVEL_HOST },
	{ "vpclmulqdq", 7, 0, R_ECX, 10, LEVEL_HOST },
	{ "la57", 7, 0, R_ECX, 16, LEVEL_HOST },
	{ "rdpid", 7, 0, R_ECX, 22, LEVEL_HOST },
	{ "fsrm", 7, 0, R_EDX, 4, LEVEL_HOST },
	{ "md-clear", 7, 0, R_EDX, 10, LEVEL_HOST },
	{ "serialize", 7, 0, R_EDX, 14, LEVEL_HOST },
	{ "arch-lbr", 7, 0, R_EDX, 19, LEVEL_ASK },
	{ "spec-ctrl", 7, 0, R_EDX, 26, LEVEL_HOST },
	{ "stibp", 7, 0, R_EDX, 27, LEVEL_HOST },
	{ "arch-capabilities", 7, 0, R_EDX, 29, LEVEL_HOST },
	{ "ssbd", 7, 0, R_EDX, 31, LEVEL_HOST },
	{ "xsaveopt", 0xd, 1, R_EAX, 0, LEVEL_HOST },
	{ "xsavec", 0xd, 1, R_EAX, 1, LEVEL_HOST },
	{ "xgetbv1", 0xd, 1, R_EAX, 2, LEVEL_HOST },
	{ "xsaves", 0xd, 1, R_EAX, 3, LEVEL_HOST },
	{ "syscall", 0x80000001, 0, R_EDX, 11, LEVEL_V1 },
	{ "nx", 0x80000001, 0, R_EDX, 20, LEVEL_V1 },
	{ "mmxext", 0x80000001, 0, R_EDX, 22, LEVEL_HOST },
	{ "fxsr-opt", 0x80000001, 0, R_EDX, 25, LEVEL_HOST },
	{ "pdpe1gb", 0x80000001, 0, R_EDX, 26, LEVEL_HOST },
	{ "rdtscp", 0x80000001, 0, R_EDX, 27, LEVEL_HOST },
	{ "lm", 0x80000001, 0, R_EDX, 29, LEVEL_V1 },
	{ "lahf-lm", 0x80000001, 0, R_ECX, 0, LEVEL_V2 },
	{ "svm", 0x80000001, 0, R_ECX, 2, LEVEL_NESTED },
	{ "cr8-legacy", 0x80000001, 0, R_ECX, 4, LEVEL_HOST },
	{ "abm", 0x80000001, 0, R_ECX, 5, LEVEL_V3 },
	{ "sse4a", 0x80000001, 0, R_ECX, 6, LEVEL_HOST },
	{ "misalignsse", 0x80000001, 0, R_ECX, 7, LEVEL_HOST },
	{ "3dnowprefetch", 0x80000001, 0, R_ECX, 8, LEVEL_HOST },
	{ "ibs", 0x80000001, 0, R_ECX, 10, LEVEL_ASK },
	{ "perfctr-core", 0x80000001, 0, R_ECX, 23, LEVEL_ASK },
	{ "invtsc", 0x80000007, 0, R_EDX, 8, LEVEL_HOST },
	{ "clzero", 0x80000008, 0, R_EBX, 0, LEVEL_HOST },
	{ "ibpb", 0x80000008, 0, R_EBX, 12, LEVEL_HOST },
	{ "kvmclock", KVM_LEAF_FEATURES, 0, R_EAX, 3, LEVEL_VM },
	{ "kvm-asyncpf", KVM_LEAF_FEATURES, 0, R_EAX, 4, LEVEL_HOST },
	{ "kvm-steal-time", KVM_LEAF_FEATURES, 0, R_EAX, 5, LEVEL_HOST },
	{ "kvm-pv-eoi", KVM_LEAF_FEATURES, 0, R_EAX, 6, LEVEL_HOST },
	{ "kvm-pv-unhalt", KVM_LEAF_FEATURES, 0, R_EAX, 7, LEVEL_HOST },
	{ "kvm-pv-tlb-flush", KVM_LEAF_FEATURES, 0, R_EAX, 9, LEVEL_HOST },
	{ "kvm-pv-ipi", KVM_LEAF_FEATURES, 0, R_EAX, 11, LEVEL_HOST },
};

/* Leaves whose every bit is a feature or an attribute of one: a baseline keeps only what it names.
 */
static bool cpuid_leaf_is_flags(uint32_t leaf, uint32_t subleaf, enum cpuid_reg reg)
{
	switch (leaf) {
	case 1:
		return reg == R_ECX || reg == R_EDX;
	case 6:
		return true;
	case 7:
		return subleaf == 0 ? reg != R_EAX : true;
	case 0xd:
		return subleaf == 1 && reg == R_EAX;
	case 0x80000001:
		return reg == R_ECX || reg == R_EDX;
	case 0x80000007:
		return true;
	case 0x80000008:
		return reg == R_EBX;
	}
	return false;
}

static uint32_t *cpuid_reg_of(struct cpuid_entry *c, unsigned reg)
{
	uint32_t *const r[4] = { &c->eax, &c->ebx, &c->ecx, &c->edx };

	return r[reg & 3];
}

const struct cpuid_entry *cpuid_find(const struct cpuid_table *t, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < t->n; i++) {
		const struct cpuid_entry *c = &t->e[i];

		if (c->leaf == leaf && (!(c->flags & 1) || c->subleaf == subleaf))
			return c;
	}
	return NULL;
}

static struct cpuid_entry *cpuid_get(struct cpuid_table *t, uint32_t leaf, uint32_t subleaf)
{
	return (struct cpuid_entry *)cpuid_find(t, leaf, subleaf);
}

static struct cpuid_entry *cpuid_add(struct cpuid_table *t, uint32_t leaf, uint32_t subleaf,
				     uint32_t flags)
{
	struct cpuid_entry *c = cpuid_get(t, leaf, subleaf);

	if (!c && t->n < CPUID_ENTRIES_MAX)
		c = &t->e[t->n++];
	if (c)
		*c = (struct cpuid_entry){ .leaf = leaf, .subleaf = subleaf, .flags = flags };
	return c;
}

static void cpuid_drop(struct cpuid_table *t, uint32_t leaf)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < t->n; i++)
		if (t->e[i].leaf != leaf)
			t->e[kept++] = t->e[i];
	t->n = kept;
}

static bool cpuid_has(const struct cpuid_table *t, const struct cpuid_flag *f)
{
	struct cpuid_entry *c = (struct cpuid_entry *)cpuid_find(t, f->leaf, f->subleaf);

	return c && (*cpuid_reg_of(c, f->reg) >> f->bit & 1);
}

static void cpuid_set(struct cpuid_table *t, const struct cpuid_flag *f, bool on)
{
	struct cpuid_entry *c = cpuid_get(t, f->leaf, f->subleaf);

	if (!c)
		return;
	uint32_t *r = cpuid_reg_of(c, f->reg);
	*r = on ? *r | 1u << f->bit : *r & ~(1u << f->bit);
}

static const struct cpuid_flag *cpuid_flag_by_name(const char *name)
{
	for (unsigned i = 0; i < ARRAY_SIZE(cpuid_flags); i++)
		if (strcmp(cpuid_flags[i].name, name) == 0)
			return &cpuid_flags[i];
	return NULL;
}

static int cpuid_model_level(const char *model, unsigned *level, struct err *e)
{
	static const char *const names[] = { "host", "x86-64-v1", "x86-64-v2", "x86-64-v3", NULL };
	static const unsigned levels[] = { LEVEL_HOST, LEVEL_V1, LEVEL_V2, LEVEL_V3 };

	for (unsigned i = 0; names[i]; i++) {
		if (strcmp(model, names[i]) == 0) {
			*level = levels[i];
			return 0;
		}
	}
	const char *near = suggest(model, names);
	err_set(e, EINVAL, "cpu-model-unknown", "CPU model \"%.32s\" is not known", model);
	if (near)
		err_hint(e, "did you mean %s?", near);
	else
		err_hint(e, "known: host, x86-64-v1, x86-64-v2, x86-64-v3");
	return -EINVAL;
}

/* cpuid_apply_level() - take away what the model does not have; -ENOTSUP where the host has less.
 */
static int cpuid_apply_level(struct cpuid_table *t, unsigned level, const char *model, bool nested,
			     struct err *e)
{
	struct cpuid_table want = *t;

	if (level < LEVEL_HOST)
		for (unsigned i = 0; i < want.n; i++)
			for (unsigned reg = 0; reg < 4; reg++)
				if (cpuid_leaf_is_flags(want.e[i].leaf, want.e[i].subleaf, reg))
					*cpuid_reg_of(&want.e[i], reg) = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(cpuid_flags); i++) {
		const struct cpuid_flag *f = &cpuid_flags[i];
		bool has = cpuid_has(t, f);

		if (f->level == LEVEL_NESTED)
			cpuid_set(&want, f, has && nested);
		else if (level < LEVEL_HOST)
			cpuid_set(&want, f, has && f->level <= level);
		else if (f->level == LEVEL_ASK)
			cpuid_set(&want, f, false);
		/* a level is a promise: its own instructions must be there */
		if (level < LEVEL_HOST && f->level <= level && f->level >= LEVEL_V2 && !has)
			return err_set(e, ENOTSUP, "cpu-model-unsupported",
				       "CPU model %s needs %s, which this accelerator lacks", model,
				       f->name);
	}
	*t = want;
	return 0;
}

static int cpuid_apply_one(struct cpuid_table *t, const struct cpuid_table *supported,
			   const char *word, bool on, struct err *e)
{
	const struct cpuid_flag *f = cpuid_flag_by_name(word);
	const char *names[ARRAY_SIZE(cpuid_flags) + 1] = { NULL };

	if (!f) {
		for (unsigned i = 0; i < ARRAY_SIZE(cpuid_flags); i++)
			names[i] = cpuid_flags[i].name;
		const char *near = suggest(word, names);
		err_set(e, EINVAL, "cpu-flag-unknown", "CPU flag \"%.32s\" is not known", word);
		if (near)
			err_hint(e, "did you mean %s?", near);
		return -EINVAL;
	}
	if (on && !cpuid_has(supported, f))
		return err_set(e, ENOTSUP, "cpu-flag-unsupported",
			       "CPU flag %s: this accelerator does not have it", f->name);
	cpuid_set(t, f, on);
	return 0;
}

static int cpuid_apply_flags(struct cpuid_table *t, const struct cpuid_table *supported,
			     const char *flags, struct err *e)
{
	const char *p = flags;

	while (*p) {
		char word[32];
		size_t len = strcspn(p, ",");

		if (len < 2 || len >= sizeof(word) || (*p != '+' && *p != '-'))
			return err_set(
			    e, EINVAL, "cpu-flags-malformed",
			    "CPU flags \"%.100s\": write +name or -name, separated by commas",
			    flags);
		memcpy(word, p + 1, len - 1);
		word[len - 1] = '\0';
		int ret = cpuid_apply_one(t, supported, word, *p == '+', e);
		if (ret < 0)
			return ret;
		p += len;
		p += *p == ',';
	}
	return 0;
}

/* What depends on a flag that is gone must go with it, or the guest faults on what it was promised.
 */
static void cpuid_follow(struct cpuid_table *t)
{
	static const char *const on_avx[] = { "avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq" };
	static const char *const on_avx512[] = { "avx512f", "avx512dq", "avx512cd", "avx512bw",
						 "avx512vl" };
	bool xsave = cpuid_has(t, cpuid_flag_by_name("xsave"));
	bool avx = xsave && cpuid_has(t, cpuid_flag_by_name("avx"));
	bool avx512 = avx && cpuid_has(t, cpuid_flag_by_name("avx512f"));

	for (unsigned i = 0; !avx && i < ARRAY_SIZE(on_avx); i++)
		cpuid_set(t, cpuid_flag_by_name(on_avx[i]), false);
	for (unsigned i = 0; !avx512 && i < ARRAY_SIZE(on_avx512); i++)
		cpuid_set(t, cpuid_flag_by_name(on_avx512[i]), false);
	if (!xsave) {
		cpuid_drop(t, 0xd);
		return;
	}
	/* leaf 0xd: state components of features that were taken away. */
	uint64_t mask = 3 | (avx ? 4u : 0) | (avx512 ? 0xe0u : 0);
	if (cpuid_has(t, cpuid_flag_by_name("pku")))
		mask |= 0x200;
	struct cpuid_entry *c = cpuid_get(t, 0xd, 0);
	if (!c)
		return;
	c->eax &= (uint32_t)mask;
	c->edx = 0;
	uint32_t size = 576;
	unsigned kept = 0;
	for (unsigned i = 0; i < t->n; i++) {
		const struct cpuid_entry *s = &t->e[i];

		if (s->leaf == 0xd && s->subleaf >= 2 &&
		    (s->subleaf >= 32 || !(mask >> s->subleaf & 1)))
			continue;
		if (s->leaf == 0xd && s->subleaf >= 2 && s->ebx + s->eax > size)
			size = s->ebx + s->eax;
		t->e[kept++] = *s;
	}
	t->n = kept;
	c = cpuid_get(t, 0xd, 0);
	if (c)
		c->ecx = c->ebx = size;
}

/* cpuid_topology() - one socket of @n cores, one thread each; APIC ids are filled in per vCPU. */
static void cpuid_topology(struct cpuid_table *t, unsigned n)
{
	unsigned bits = 0;
	struct cpuid_entry *c;

	while ((1u << bits) < n)
		bits++;
	c = cpuid_get(t, 1, 0);
	if (c) {
		c->ebx = (c->ebx & 0xff00) | (n > 255 ? 255 : n) << 16; /* CLFLUSH line size kept */
		c->edx = n > 1 ? c->edx | 1u << 28 : c->edx & ~(1u << 28); /* HTT */
	}
	/* Intel's cache leaf and AMD's: caches are private to a core but for the last level. */
	for (unsigned i = 0; i < t->n; i++) {
		struct cpuid_entry *d = &t->e[i];

		if (d->leaf == 4 && (d->eax & 0x1f)) {
			unsigned shared = (d->eax >> 5 & 7) >= 3 ? n - 1 : 0;

			d->eax = (d->eax & 0x3fff) | shared << 14 | ((1u << bits) - 1) << 26;
		}
		if (d->leaf == 0x8000001d && (d->eax & 0x1f))
			d->eax = (d->eax & 0x3fff) | ((d->eax >> 5 & 7) >= 3 ? n - 1 : 0) << 14;
	}
	c = cpuid_get(t, 0, 0);
	if (c && c->eax < 0xb)
		c->eax = 0xb;
	cpuid_drop(t, 0xb);
	cpuid_drop(t, 0x1f);
	c = cpuid_add(t, 0xb, 0, 1);
	if (c) {
		c->ebx = 1;
		c->ecx = 0x100; /* SMT */
	}
	c = cpuid_add(t, 0xb, 1, 1);
	if (c) {
		c->eax = bits;
		c->ebx = n;
		c->ecx = 0x201; /* core */
	}
	c = cpuid_add(t, 0xb, 2, 1);
	if (c)
		c->ecx = 2;
	c = cpuid_get(t, 0x80000008, 0);
	if (c)
		c->ecx = n > 1 ? (n - 1) | bits << 12 : 0;
	c = cpuid_get(t, 0x80000001, 0);
	if (c && n > 1)
		c->ecx |= 1u << 1; /* CmpLegacy: the extra logical processors are cores */
	else if (c)
		c->ecx &= ~(1u << 1);
	if (c)
		c->ecx &= ~(1u << 22); /* TopologyExtensions: 0x8000001e is not filled */
	cpuid_drop(t, 0x8000001e);
}

/* cpuid_hide() - leaves that promise what does not work in our guests. */
static void cpuid_hide(struct cpuid_table *t)
{
	static const uint32_t gone[] = {
		2,	    3,		5,	    9,		0xf,	    0x10,	0x12, 0x14,
		0x17,	    0x18,	0x19,	    0x1b,	0x1c,	    0x1d,	0x1e, 0x20,
		0x80000009, 0x8000001b, 0x8000001c, 0x8000001f, 0x80000020, 0x80000022,
	};
	struct cpuid_entry *c;

	for (unsigned i = 0; i < ARRAY_SIZE(gone); i++)
		cpuid_drop(t, gone[i]);
	if (!cpuid_has(t, cpuid_flag_by_name("pdcm")) &&
	    !cpuid_has(t, cpuid_flag_by_name("perfctr-core")))
		cpuid_drop(t, 0xa);
	if (!cpuid_has(t, cpuid_flag_by_name("svm")))
		cpuid_drop(t, 0x8000000a);
	c = cpuid_get(t, 6, 0); /* thermal and power: only the timer that never stops */
	if (c) {
		c->eax &= 4;
		c->ebx = c->ecx = c->edx = 0;
	}
	c = cpuid_get(t, 7, 0);
	if (c && c->eax > 2)
		c->eax = 2;
	c = cpuid_get(t, 1, 0);
	if (c)
		c->ecx &= ~(1u << 27); /* OSXSAVE follows CR4; the accelerator sets it */
}

static int cpuid_copy(const struct cpuid_table *supported, struct cpuid_table *out)
{
	out->n = 0;
	if (supported->n > CPUID_ENTRIES_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < supported->n; i++) {
		const struct cpuid_entry *c = &supported->e[i];
		bool empty = !(c->eax | c->ebx | c->ecx | c->edx);

		/* some kernels pad the table with zeroes, or name leaves that hold nothing */
		if (empty || cpuid_find(out, c->leaf, c->subleaf))
			continue;
		out->e[out->n++] = *c;
	}
	return 0;
}

int cpuid_build(const struct cpuid_policy *p, const struct cpuid_table *supported,
		struct cpuid_table *out, struct err *e)
{
	struct cpuid_table have;
	unsigned level = 0;

	if (cpuid_copy(supported, &have) < 0)
		return err_set(e, EINVAL, "cpuid-too-large",
			       "the accelerator's CPUID table is too large");
	int ret = cpuid_model_level(p->model, &level, e);
	if (ret < 0)
		return ret;
	*out = have;
	ret = cpuid_apply_level(out, level, p->model, p->nested, e);
	if (ret == 0)
		ret = cpuid_apply_flags(out, &have, p->flags, e);
	if (ret < 0)
		return ret;
	cpuid_follow(out);
	cpuid_hide(out);
	cpuid_topology(out, p->vcpus ? p->vcpus : 1);
	return 0;
}

void cpuid_for_vcpu(struct cpuid_table *t, unsigned cpu_index)
{
	for (unsigned i = 0; i < t->n; i++) {
		struct cpuid_entry *c = &t->e[i];

		if (c->leaf == 1)
			c->ebx = (c->ebx & 0x00ffffff) | cpu_index << 24;
		else if (c->leaf == 0xb || c->leaf == 0x1f)
			c->edx = cpu_index;
	}
}
