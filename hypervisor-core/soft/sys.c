/* sys.c - control registers, I/O permission, CPUID, eflags: what system instructions do, for any
 * tier. */
#include <string.h>

#include "flags.h"

#define CR0_PE	  1ULL
#define CR0_ET	  0x10ULL
#define CR0_WP	  (1ULL << 16)
#define CR0_NW	  (1ULL << 29)
#define CR0_CD	  (1ULL << 30)
#define CR0_PG	  (1ULL << 31)
#define CR0_KNOWN 0xe005003fULL
#define CR4_PAE	  (1ULL << 5)
#define CR4_KNOWN 0x3107ffULL /* VME..OSXMMEXCPT, FSGSBASE, SMEP, SMAP */
#define EFER_LME  (1ULL << 8)
#define EFER_LMA  (1ULL << 10)

u32 soft_eflags(const struct cpu *c)
{
	return c->eflags | 2 | (flag_cf(c) ? EFL_CF : 0) | flag_af(c) | (flag_zf(c) ? EFL_ZF : 0) |
	       (flag_sf(c) ? EFL_SF : 0) | (flag_pf(c) ? EFL_PF : 0) | (flag_of(c) ? EFL_OF : 0);
}

void soft_eflags_set(struct cpu *c, u32 val)
{
	flags_set_all(c, val);
	c->eflags = val & EFL_ALL_BITS & ~EFL_ARITH;
}

void soft_set_cr0(struct cpu *c, const struct op *o, u64 val)
{
	u64 old = c->cr0;

	if (val >> 32)
		soft_raise_err(c, o, EXC_GP, 0);
	val = (val & CR0_KNOWN) | CR0_ET;
	if (((val & CR0_PG) && !(val & CR0_PE)) || ((val & CR0_NW) && !(val & CR0_CD)))
		soft_raise_err(c, o, EXC_GP, 0);
	if ((val & CR0_PG) && !(old & CR0_PG) && (c->efer & EFER_LME)) {
		if (!(c->cr4 & CR4_PAE) || (c->seg[X86_CS].attr & 0x2000))
			soft_raise_err(c, o, EXC_GP, 0);
		c->efer |= EFER_LMA;
	} else if (!(val & CR0_PG) && (old & CR0_PG) && (c->efer & EFER_LMA)) {
		if (c->mode == MODE_64)
			soft_raise_err(c, o, EXC_GP, 0);
		c->efer &= ~EFER_LMA;
	}
	c->cr0 = val;
	if ((old ^ val) & (CR0_PG | CR0_WP | CR0_PE))
		soft_tlb_flush(c, true);
	soft_mode_update(c);
}

void soft_set_cr3(struct cpu *c, u64 val)
{
	c->cr3 = val;
	soft_tlb_flush(c, false);
}

void soft_set_cr4(struct cpu *c, const struct op *o, u64 val)
{
	u64 old = c->cr4;

	if ((val & ~CR4_KNOWN) || ((c->efer & EFER_LMA) && !(val & CR4_PAE)))
		soft_raise_err(c, o, EXC_GP, 0);
	c->cr4 = val;
	if ((old ^ val) & ((1 << 4) | CR4_PAE | (1 << 7) | (1 << 20) | (1 << 21)))
		soft_tlb_flush(c, true);
	soft_mode_update(c);
}

/* soft_io_allowed() - IOPL, then the TSS bitmap (SDM vol. 1, 19.5.2). */
bool soft_io_allowed(struct cpu *c, const struct op *o, u16 port, unsigned size)
{
	const struct x86_seg *tr = &c->seg[X86_TR];
	u32 map, bits;

	if (!(c->cr0 & CR0_PE) || c->cpl <= (c->eflags & EFL_IOPL) >> 12)
		return true;
	if (tr->attr & 0x100 || (tr->attr & 0xd) != 9 || tr->limit < 103)
		return false;
	map = (u32)soft_ld_sys(c, o, tr->base + 102, 2) + port / 8;
	if (map + 1 > tr->limit)
		return false;
	bits = (u32)soft_ld_sys(c, o, tr->base + map, 2);
	return !((bits >> (port & 7)) & ((1u << size) - 1));
}

void soft_cpuid(struct cpu *c, u32 leaf, u32 sub, u32 out[4])
{
	const struct cpuid_entry *e = cpuid_find(&c->cpuid, leaf, sub);

	out[0] = e ? e->eax : 0;
	out[1] = e ? e->ebx : 0;
	out[2] = e ? e->ecx : 0;
	out[3] = e ? e->edx : 0;
}

static void cpuid_add(struct cpuid_table *t, u32 leaf, u32 sub, u32 flags, u32 a, u32 b, u32 cx,
		      u32 d)
{
	t->e[t->n++] = (struct cpuid_entry){ leaf, sub, flags, a, b, cx, d };
}

static void cpuid_text(struct cpuid_table *t, u32 leaf, const char *s)
{
	u32 w[4];

	memcpy(w, s, 16);
	cpuid_add(t, leaf, 0, 0, w[0], w[1], w[2], w[3]);
}

/* soft_cpuid_supported() - what this interpreter executes, and no more. */
void soft_cpuid_supported(struct cpuid_table *t)
{
	memset(t, 0, sizeof(*t));
	/* "AuthenticAMD": SYSCALL everywhere, no page table isolation, fast system entry */
	cpuid_add(t, 0, 0, 0, 0x16, 0x68747541, 0x444d4163, 0x69746e65);
	/* FPU DE PSE TSC MSR PAE CX8 APIC MTRR PGE CMOV PAT CLFSH MMX FXSR SSE SSE2 HTT;
	 * CX16 X2APIC TSC_DEADLINE HYPERVISOR */
	cpuid_add(t, 1, 0, 0, 0x00800f12, 8 << 8, 1u << 13 | 1u << 21 | 1u << 24 | 1u << 31,
		  0x0789b37d | 1u << 28);
	cpuid_add(t, 7, 0, 1, 0, 1u << 0 | 1u << 7 | 1u << 9 | 1u << 20, 0,
		  0); /* FSGSBASE SMEP ERMS SMAP */
	cpuid_add(t, 0xb, 0, 1, 0, 1, 0x100, 0);
	cpuid_add(t, 0xb, 1, 1, 0, 1, 0x201, 0);
	cpuid_add(t, 0x15, 0, 0, 1, 1, 1000000000u, 0); /* TSC = 1 GHz crystal */
	cpuid_add(t, 0x16, 0, 0, 1000, 1000, 100, 0);
	cpuid_add(t, 0x40000000, 0, 0, 0x40000010, 0x4b4d564b, 0x564b4d56, 0x4d);
	/* kvmclock (old and new MSRs), no I/O delay, stable clock */
	cpuid_add(t, 0x40000001, 0, 0, 1u << 0 | 1u << 1 | 1u << 3 | 1u << 24, 0, 0, 0);
	cpuid_add(t, 0x40000010, 0, 0, 1000000, 1000000, 0, 0);
	cpuid_add(t, 0x80000000, 0, 0, 0x80000008, 0x68747541, 0x444d4163, 0x69746e65);
	/* LAHF, CMP_LEGACY no; SYSCALL NX 1G pages RDTSCP LM */
	cpuid_add(t, 0x80000001, 0, 0, 0x00800f12, 0, 1u << 0,
		  0x0183e3fd | 1u << 11 | 1u << 20 | 1u << 26 | 1u << 27 | 1u << 29);
	cpuid_text(t, 0x80000002, "vmd software CPU");
	cpuid_text(t, 0x80000003, "                ");
	cpuid_text(t, 0x80000004, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
	cpuid_add(t, 0x80000005, 0, 0, 0xff40ff40, 0xff40ff40, 0x20080140, 0x20080140);
	/* L2 16 MiB, L3 64 MiB: up to the cache's size C libraries copy by REP MOVSB, which runs in bulk
	 * here; beyond it by a loop around the cache, which would be 15 times slower */
	cpuid_add(t, 0x80000006, 0, 0, 0, 0x42004200, 0x40006140, 0x80u << 18 | 0x6140);
	cpuid_add(t, 0x80000007, 0, 0, 0, 0, 0, 1u << 8); /* invariant TSC */
	cpuid_add(t, 0x80000008, 0, 0, 0x3028, 0, 0, 0);  /* 48-bit virtual, 40-bit physical */
}
