/* msr.c - model-specific registers, time, and the KVM paravirtual clock.
 *
 * The guest's TSC counts nanoseconds of vm_now_ns() (1 GHz), so that TSC, kvmclock, LAPIC and
 * devices show one time and a saved guest goes on anywhere. Under icount that time comes from
 * executed instructions.
 * Unknown MSRs raise #GP, as the kernel's own tables expect (it probes with safe accessors).
 */
#include "soft.h"

#define MSR_TSC		 0x10
#define MSR_APIC_BASE	 0x1b
#define MSR_TSC_ADJUST	 0x3b
#define MSR_MTRRCAP	 0xfe
#define MSR_SYSENTER_CS	 0x174
#define MSR_MCG_CAP	 0x179
#define MSR_MCG_STATUS	 0x17a
#define MSR_MISC_ENABLE	 0x1a0
#define MSR_MTRR_VAR	 0x200
#define MSR_PAT		 0x277
#define MSR_MTRR_DEF	 0x2ff
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_EFER	 0xc0000080
#define MSR_STAR	 0xc0000081
#define MSR_LSTAR	 0xc0000082
#define MSR_CSTAR	 0xc0000083
#define MSR_FMASK	 0xc0000084
#define MSR_FS_BASE	 0xc0000100
#define MSR_GS_BASE	 0xc0000101
#define MSR_KERNEL_GS	 0xc0000102
#define MSR_TSC_AUX	 0xc0000103
#define MSR_KVM_WALL	 0x4b564d00
#define MSR_KVM_SYSTEM	 0x4b564d01
#define MSR_KVM_POLL	 0x4b564d05

#define EFER_SCE 1ULL
#define EFER_LME (1ULL << 8)
#define EFER_LMA (1ULL << 10)
#define EFER_NXE (1ULL << 11)

u64 soft_now_ns(struct cpu *c)
{
	if (c->sv->icount)
		return atomic_load_explicit(&c->sv->icount_ns, memory_order_relaxed);
	return vm_now_ns(c->vm);
}

u64 soft_tsc(struct cpu *c)
{
	return soft_now_ns(c) + c->tsc_offset;
}

/* soft_pvclock_update() - pvclock_vcpu_time_info at the address the guest gave (KVM's msr.rst). */
void soft_pvclock_update(struct cpu *c)
{
	struct {
		u32 version, pad;
		u64 tsc, ns;
		u32 mul;
		s8 shift;
		u8 flags, pad2[2];
	} t = { 0 };
	u64 gpa = c->pv_system & ~1ULL;
	u32 version;

	if (!(c->pv_system & 1) || mem_read(c->vm->mem, gpa, &version, 4))
		return;
	u64 now = soft_now_ns(c);

	t.version = (version | 1) + 1;
	t.tsc = now + c->tsc_offset;
	t.ns = now + c->sv->clock_offset;
	t.mul = 0x80000000u; /* ns = tsc: (tsc << 1) * 2^31 >> 32 */
	t.shift = 1;
	t.flags = 1; /* stable on all vCPUs */
	version |= 1;
	mem_write(c->vm->mem, gpa, &version, 4);
	mem_write(c->vm->mem, gpa + 4, (u8 *)&t + 4, sizeof(t) - 4);
	atomic_thread_fence(memory_order_release);
	mem_write(c->vm->mem, gpa, &t.version, 4);
	soft_code_device_write(c->sv, gpa, sizeof(t));
}

static void pvclock_wall(struct cpu *c, u64 gpa)
{
	struct {
		u32 version, sec, nsec;
	} w = { 2, 0, 0 };
	struct timespec ts = { 0, 0 };
	u64 boot;

	/* wall clock at the moment the guest's clock read 0; deterministic guests start at the
	 * epoch */
	if (!c->sv->icount) {
		clock_gettime(CLOCK_REALTIME, &ts);
		boot = (u64)ts.tv_sec * 1000000000ULL + (u64)ts.tv_nsec -
		       (soft_now_ns(c) + c->sv->clock_offset);
	} else {
		boot = 0;
	}
	w.sec = (u32)(boot / 1000000000ULL);
	w.nsec = (u32)(boot % 1000000000ULL);
	mem_write(c->vm->mem, gpa, &w, sizeof(w));
	soft_code_device_write(c->sv, gpa, sizeof(w));
}

static bool canonical(u64 va)
{
	return (s64)(va << 16) >> 16 == (s64)va;
}

static u64 *msr_slot(struct cpu *c, u32 msr)
{
	switch (msr) {
	case MSR_SYSENTER_CS:
	case MSR_SYSENTER_CS + 1:
	case MSR_SYSENTER_CS + 2:
		return &c->sysenter[msr - MSR_SYSENTER_CS];
	case MSR_MISC_ENABLE:
		return &c->misc_enable;
	case MSR_MCG_STATUS:
		return &c->mcg_status;
	case MSR_STAR:
		return &c->star;
	case MSR_FMASK:
		return &c->fmask;
	case MSR_TSC_AUX:
		return &c->tsc_aux;
	case 0x250:
		return &c->mtrr_fix[0];
	case 0x258:
	case 0x259:
		return &c->mtrr_fix[1 + msr - 0x258];
	case MSR_MTRR_DEF:
		return &c->mtrr_def;
	}
	if (msr >= 0x268 && msr <= 0x26f)
		return &c->mtrr_fix[3 + msr - 0x268];
	if (msr >= MSR_MTRR_VAR && msr < MSR_MTRR_VAR + 16)
		return &c->mtrr_var[msr - MSR_MTRR_VAR];
	return NULL;
}

static bool msr_is_apic(u32 msr)
{
	return msr == MSR_APIC_BASE || msr == MSR_TSC_DEADLINE || (msr >= 0x800 && msr <= 0x8ff);
}

bool soft_msr_read(struct cpu *c, u32 msr, u64 *val)
{
	const struct intc_ops *ic = c->vm->intc;
	u64 *slot = msr_slot(c, msr);

	if (slot) {
		*val = *slot;
		return true;
	}
	if (msr_is_apic(msr)) {
		if (ic && ic->msr_read)
			return ic->msr_read(c->vm->intc_opaque, c->index, msr, val);
		*val = c->apic_base;
		return msr == MSR_APIC_BASE;
	}
	switch (msr) {
	case MSR_TSC:
		*val = soft_tsc(c);
		return true;
	case MSR_TSC_ADJUST:
		*val = c->tsc_adjust;
		return true;
	case MSR_MTRRCAP:
		*val = 0x508; /* 8 variable ranges, fixed ranges, write-combining */
		return true;
	case MSR_MCG_CAP:
		*val = 0; /* no banks */
		return true;
	case MSR_PAT:
		*val = c->pat;
		return true;
	case MSR_EFER:
		*val = c->efer;
		return true;
	case MSR_LSTAR:
		*val = c->lstar;
		return true;
	case MSR_CSTAR:
		*val = c->cstar;
		return true;
	case MSR_FS_BASE:
		*val = c->seg[X86_FS].base;
		return true;
	case MSR_GS_BASE:
		*val = c->seg[X86_GS].base;
		return true;
	case MSR_KERNEL_GS:
		*val = c->kernel_gs;
		return true;
	case 0x11:
	case MSR_KVM_WALL:
		*val = c->pv_wall;
		return true;
	case 0x12:
	case MSR_KVM_SYSTEM:
		*val = c->pv_system;
		return true;
	case MSR_KVM_POLL:
		*val = c->pv_poll;
		return true;
	case 0x17:	 /* platform id */
	case 0x8b:	 /* microcode revision */
	case 0x1d9:	 /* debugctl */
	case 0xc0010010: /* syscfg */
	case 0xc001001f: /* nb_cfg */
	case 0xc0011022: /* dc_cfg */
	case 0xc0011023:
	case 0xc0011029:			  /* de_cfg */
	case 0xc0010114:			  /* vm_cr */
		*val = msr == 0xc0011029 ? 2 : 0; /* lfence serialises */
		return true;
	case 0xc0010015: /* hwcr: the TSC counts at P0's frequency, as a constant one does */
		*val = 1 << 24;
		return true;
	}
	return false;
}

static bool msr_write_efer(struct cpu *c, u64 val)
{
	u64 known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;

	if (val & ~known)
		return false;
	if (((val ^ c->efer) & EFER_LME) && (c->cr0 & 0x80000000u))
		return false;
	val = (val & ~EFER_LMA) | (c->efer & EFER_LMA);
	if (val != c->efer) {
		c->efer = val;
		soft_tlb_flush(c, true);
		soft_mode_update(c);
	}
	return true;
}

bool soft_msr_write(struct cpu *c, u32 msr, u64 val)
{
	const struct intc_ops *ic = c->vm->intc;
	u64 *slot = msr_slot(c, msr);

	if (msr == MSR_TSC_AUX && val >> 32)
		return false;
	if ((msr == MSR_SYSENTER_CS + 1 || msr == MSR_SYSENTER_CS + 2) && !canonical(val))
		return false;
	if (slot) {
		*slot = val;
		return true;
	}
	if (msr_is_apic(msr)) {
		soft_attn(c, ATTN_INTR); /* EOI and TPR may let another interrupt in */
		if (ic && ic->msr_write)
			return ic->msr_write(c->vm->intc_opaque, c->index, msr, val);
		c->apic_base = val;
		return msr == MSR_APIC_BASE;
	}
	switch (msr) {
	case MSR_TSC: {
		u64 off = val - soft_now_ns(c);

		c->tsc_adjust += off - c->tsc_offset;
		c->tsc_offset = off;
		soft_pvclock_update(c);
		return true;
	}
	case MSR_TSC_ADJUST:
		c->tsc_offset += val - c->tsc_adjust;
		c->tsc_adjust = val;
		soft_pvclock_update(c);
		return true;
	case MSR_PAT:
		for (int i = 0; i < 8; i++) {
			u8 t = (u8)(val >> (8 * i));

			if (t > 7 || t == 2 || t == 3)
				return false;
		}
		c->pat = val;
		return true;
	case MSR_EFER:
		return msr_write_efer(c, val);
	case MSR_LSTAR:
		c->lstar = val;
		return canonical(val);
	case MSR_CSTAR:
		c->cstar = val;
		return canonical(val);
	case MSR_FS_BASE:
	case MSR_GS_BASE:
		if (!canonical(val))
			return false;
		c->seg[msr == MSR_FS_BASE ? X86_FS : X86_GS].base = val;
		c->r[S_SEG + (msr == MSR_FS_BASE ? X86_FS : X86_GS)] = val;
		return true;
	case MSR_KERNEL_GS:
		if (!canonical(val))
			return false;
		c->kernel_gs = val;
		return true;
	case 0x11:
	case MSR_KVM_WALL:
		c->pv_wall = val;
		pvclock_wall(c, val);
		return true;
	case 0x12:
	case MSR_KVM_SYSTEM:
		c->pv_system = val;
		soft_pvclock_update(c);
		return true;
	case MSR_KVM_POLL:
		c->pv_poll = val;
		return true;
	case 0x79: /* microcode update trigger: ignored */
	case 0x8b:
	case 0x1d9:
	case 0xc0010015:
	case 0xc0010010:
	case 0xc001001f:
	case 0xc0011022:
	case 0xc0011023:
	case 0xc0011029:
		return true;
	}
	return false;
}
