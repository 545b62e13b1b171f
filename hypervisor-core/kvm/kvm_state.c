/* kvm_state.c - a parked vCPU's state to and from KVM.
 *
 * Order of reading: the run state first, because asking for it makes KVM act on an INIT or SIPI
 * that waits, which changes everything else; then events, then registers.
 * Order of setting matters: CR and APIC base (SREGS) before the local APIC's registers, whose
 * layout depends on x2APIC mode; the local APIC before MSRs, because the TSC deadline is dropped
 * while its timer is not in that mode; events and the run state last. MSRs that this KVM does not
 * have are skipped: a reset lists all that any accelerator knows, and the CPUID check of vm_load()
 * has already refused another CPU.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/log.h"
#include "common/overflow.h"
#include "hypervisor-core/kvm/kvm.h"

#define EFER_SVME	 (1u << 12)
#define CR4_VMXE	 (1u << 13)
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176

static struct kvm_msrs *kvm_msrs_new(void)
{
	return calloc(1, sizeof(struct kvm_msrs) + X86_MSRS_MAX * sizeof(struct kvm_msr_entry));
}

static void kvm_seg_to(const struct x86_seg *s, struct kvm_segment *k)
{
	*k = (struct kvm_segment){
		.base = s->base,
		.limit = s->limit,
		.selector = s->sel,
		.type = s->attr & 0xf,
		.s = s->attr >> 4 & 1,
		.dpl = s->attr >> 5 & 3,
		.present = s->attr >> 7 & 1,
		.unusable = s->attr >> 8 & 1,
		.avl = s->attr >> 12 & 1,
		.l = s->attr >> 13 & 1,
		.db = s->attr >> 14 & 1,
		.g = s->attr >> 15 & 1,
	};
}

static void kvm_seg_from(const struct kvm_segment *k, struct x86_seg *s)
{
	s->base = k->base;
	s->limit = k->limit;
	s->sel = k->selector;
	s->attr = (uint16_t)((k->type & 0xf) | (k->s & 1) << 4 | (k->dpl & 3) << 5 |
			     (k->present & 1) << 7 | (k->unusable & 1) << 8 | (k->avl & 1) << 12 |
			     (k->l & 1) << 13 | (k->db & 1) << 14 | (k->g & 1) << 15);
}

/* Register numbers follow the instruction encoding in x86_state, the alphabet in KVM. */
static void kvm_regs_to(const struct x86_state *s, struct kvm_regs *k)
{
	*k = (struct kvm_regs){
		.rax = s->gpr[0],
		.rcx = s->gpr[1],
		.rdx = s->gpr[2],
		.rbx = s->gpr[3],
		.rsp = s->gpr[4],
		.rbp = s->gpr[5],
		.rsi = s->gpr[6],
		.rdi = s->gpr[7],
		.r8 = s->gpr[8],
		.r9 = s->gpr[9],
		.r10 = s->gpr[10],
		.r11 = s->gpr[11],
		.r12 = s->gpr[12],
		.r13 = s->gpr[13],
		.r14 = s->gpr[14],
		.r15 = s->gpr[15],
		.rip = s->rip,
		.rflags = s->rflags,
	};
}

static void kvm_regs_from(const struct kvm_regs *k, struct x86_state *s)
{
	const uint64_t g[16] = { k->rax, k->rcx, k->rdx, k->rbx, k->rsp, k->rbp, k->rsi, k->rdi,
				 k->r8,	 k->r9,	 k->r10, k->r11, k->r12, k->r13, k->r14, k->r15 };

	memcpy(s->gpr, g, sizeof(g));
	s->rip = k->rip;
	s->rflags = k->rflags;
}

static int kvm_get_sregs(int fd, struct x86_state *s)
{
	struct kvm_sregs k;

	if (ioctl(fd, KVM_GET_SREGS, &k) < 0)
		return -errno;
	const struct kvm_segment *const from[X86_NSEGS] = { &k.es, &k.cs, &k.ss,  &k.ds,
							    &k.fs, &k.gs, &k.ldt, &k.tr };
	for (unsigned i = 0; i < X86_NSEGS; i++)
		kvm_seg_from(from[i], &s->seg[i]);
	s->gdt_base = k.gdt.base;
	s->gdt_limit = k.gdt.limit;
	s->idt_base = k.idt.base;
	s->idt_limit = k.idt.limit;
	s->cr0 = k.cr0;
	s->cr2 = k.cr2;
	s->cr3 = k.cr3;
	s->cr4 = k.cr4;
	s->cr8 = k.cr8;
	s->efer = k.efer;
	s->apic_base = k.apic_base;
	return 0;
}

static int kvm_set_sregs(int fd, const struct x86_state *s)
{
	struct kvm_sregs k = {
		.gdt = { .base = s->gdt_base, .limit = s->gdt_limit },
		.idt = { .base = s->idt_base, .limit = s->idt_limit },
		.cr0 = s->cr0,
		.cr2 = s->cr2,
		.cr3 = s->cr3,
		.cr4 = s->cr4,
		.cr8 = s->cr8,
		.efer = s->efer,
		.apic_base = s->apic_base,
	};
	struct kvm_segment *const to[X86_NSEGS] = { &k.es, &k.cs, &k.ss,  &k.ds,
						    &k.fs, &k.gs, &k.ldt, &k.tr };

	for (unsigned i = 0; i < X86_NSEGS; i++)
		kvm_seg_to(&s->seg[i], to[i]);
	return ioctl(fd, KVM_SET_SREGS, &k) < 0 ? -errno : 0;
}

static int kvm_get_fpu(const struct kvm_vm *kv, int fd, struct x86_state *s)
{
	struct kvm_xsave *x = calloc(1, sizeof(*x));
	struct kvm_xcrs xcrs = { 0 };

	if (!x)
		return -ENOMEM;
	int ret = ioctl(fd, KVM_GET_XSAVE, x) < 0 ? -errno : 0;
	s->xsave_len = (uint32_t)MIN(sizeof(x->region), (size_t)X86_XSAVE_MAX);
	memcpy(s->xsave, x->region, s->xsave_len);
	free(x);
	s->xcr0 = 1;
	if (ret == 0 && kv->xcrs && ioctl(fd, KVM_GET_XCRS, &xcrs) == 0 && xcrs.nr_xcrs > 0)
		s->xcr0 = xcrs.xcrs[0].value;
	return ret;
}

static int kvm_set_fpu(const struct kvm_vm *kv, int fd, const struct x86_state *s)
{
	struct kvm_xsave *x = calloc(1, sizeof(*x));
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .xcr = 0, .value = s->xcr0 } } };
	int ret = 0;

	if (!x)
		return -ENOMEM;
	/* XCR0 of 1 is what a CPU without XSAVE has, and what some KVMs refuse to be told */
	if (kv->xcrs && ioctl(fd, KVM_SET_XCRS, &xcrs) < 0 && s->xcr0 > 1)
		ret = -errno;
	memcpy(x->region, s->xsave,
	       MIN(MIN((size_t)s->xsave_len, sizeof(x->region)), sizeof(s->xsave)));
	if (ret == 0 && ioctl(fd, KVM_SET_XSAVE, x) < 0)
		ret = -errno;
	free(x);
	return ret;
}

/* kvm_cpu_is_amd() - the guest's CPU; in long mode such a one has no SYSENTER (AMD APM vol. 2,
 * 6.1.1). */
static bool kvm_cpu_is_amd(const struct vm *vm)
{
	const struct cpuid_entry *c = cpuid_find(&vm->cpuid, 0, 0);

	return c && (c->ebx == 0x68747541 /* Auth */ || c->ebx == 0x6f677948 /* Hygo */);
}

/* kvm_drop_sysenter_hi() - KVM takes only 32 bits of these two MSRs for an AMD guest, which can use
 * no more. What a guest wrote above is left out at once, so that a state says the same before and
 * after. */
static void kvm_drop_sysenter_hi(struct x86_state *s)
{
	for (unsigned i = 0; i < s->nmsrs; i++)
		if (s->msr[i].index == MSR_SYSENTER_ESP || s->msr[i].index == MSR_SYSENTER_EIP)
			s->msr[i].value &= UINT32_MAX;
}

/* kvm_get_msrs() - KVM stops at the first one that it cannot read: leave that out from now on. */
static int kvm_get_msrs(struct kvm_vm *kv, int fd, struct x86_state *s)
{
	struct kvm_msrs *b = kvm_msrs_new();
	unsigned skip = 0;

	if (!b)
		return -ENOMEM;
	s->nmsrs = 0;
	for (unsigned at = 0; at < kv->nmsrs;) {
		b->nmsrs = kv->nmsrs - at;
		for (unsigned i = at; i < kv->nmsrs; i++)
			b->entries[i - at] = (struct kvm_msr_entry){ .index = kv->msr[i] };
		int got = ioctl(fd, KVM_GET_MSRS, b);
		if (got < 0) {
			int ret = -errno;

			free(b);
			return ret;
		}
		for (int i = 0; i < got; i++)
			s->msr[s->nmsrs++] =
			    (struct x86_msr){ b->entries[i].index, b->entries[i].data };
		at += (unsigned)got + 1;
		skip += at <= kv->nmsrs;
	}
	if (skip)
		log_debug("kvm: %u MSRs of its own list cannot be read", skip);
	free(b);
	return 0;
}

static int kvm_set_msrs(struct kvm_vm *kv, int fd, const struct x86_state *s)
{
	struct kvm_msrs *b = kvm_msrs_new();
	struct kvm_msr_entry want[X86_MSRS_MAX];
	unsigned n = 0;

	if (!b)
		return -ENOMEM;
	for (unsigned i = 0; i < s->nmsrs && i < X86_MSRS_MAX; i++)
		for (unsigned j = 0; j < kv->nmsrs; j++)
			if (kv->msr[j] == s->msr[i].index)
				want[n++] = (struct kvm_msr_entry){ .index = s->msr[i].index,
								    .data = s->msr[i].value };
	for (unsigned at = 0; at < n;) {
		b->nmsrs = n - at;
		memcpy(b->entries, want + at, (n - at) * sizeof(want[0]));
		int done = ioctl(fd, KVM_SET_MSRS, b);
		if (done < 0) {
			int ret = -errno;

			free(b);
			return ret;
		}
		at += (unsigned)done;
		if (at < n) {
			if (want[at].data)
				log_debug("kvm: MSR 0x%x does not take 0x%llx", want[at].index,
					  (unsigned long long)want[at].data);
			at++;
		}
	}
	free(b);
	return 0;
}

static int kvm_get_events(int fd, struct x86_state *s)
{
	struct kvm_vcpu_events ev = { 0 };
	struct kvm_mp_state mp;

	if (ioctl(fd, KVM_GET_MP_STATE, &mp) < 0 || ioctl(fd, KVM_GET_VCPU_EVENTS, &ev) < 0)
		return -errno;
	/* pending is reported where payloads are; otherwise KVM has put it into injected and the
	 * registers */
	if (ev.exception.injected)
		s->exc_pending = 1;
	else if ((ev.flags & KVM_VCPUEVENT_VALID_PAYLOAD) && ev.exception.pending)
		s->exc_pending = 2;
	s->exc_has_payload = s->exc_pending == 2 && ev.exception_has_payload;
	s->exc_payload = s->exc_has_payload ? ev.exception_payload : 0;
	s->exc_nr = ev.exception.nr;
	s->exc_has_error = ev.exception.has_error_code;
	s->exc_error = ev.exception.error_code;
	s->intr_injected = ev.interrupt.injected;
	s->intr_nr = ev.interrupt.nr;
	s->intr_soft = ev.interrupt.soft;
	s->intr_shadow = ev.interrupt.shadow;
	s->nmi_injected = ev.nmi.injected;
	s->nmi_pending = ev.nmi.pending != 0;
	s->nmi_masked = ev.nmi.masked;
	s->sipi_vector = (uint8_t)ev.sipi_vector;
	switch (mp.mp_state) {
	case KVM_MP_STATE_UNINITIALIZED:
		s->mp_state = X86_MP_UNINIT;
		break;
	case KVM_MP_STATE_INIT_RECEIVED:
		s->mp_state = X86_MP_INIT;
		break;
	case KVM_MP_STATE_SIPI_RECEIVED:
		s->mp_state = X86_MP_SIPI;
		break;
	case KVM_MP_STATE_HALTED:
		s->mp_state = X86_MP_HALTED;
		break;
	default:
		s->mp_state = X86_MP_RUNNABLE;
	}
	return 0;
}

static int kvm_set_events(const struct kvm_vm *kv, int fd, const struct x86_state *s)
{
	static const uint32_t mp_states[] = {
		[X86_MP_RUNNABLE] = KVM_MP_STATE_RUNNABLE,
		[X86_MP_UNINIT] = KVM_MP_STATE_UNINITIALIZED,
		[X86_MP_INIT] = KVM_MP_STATE_INIT_RECEIVED,
		[X86_MP_SIPI] = KVM_MP_STATE_SIPI_RECEIVED,
		[X86_MP_HALTED] = KVM_MP_STATE_HALTED,
	};
	const bool raised = s->exc_pending == 2 && kv->exc_payload;
	struct kvm_vcpu_events ev = {
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW |
			 (s->sipi_vector ? KVM_VCPUEVENT_VALID_SIPI_VECTOR : 0) |
			 (kv->exc_payload ? KVM_VCPUEVENT_VALID_PAYLOAD : 0),
		.exception = { .injected = s->exc_pending && !raised,
			       .pending = raised,
			       .nr = s->exc_nr,
			       .has_error_code = s->exc_has_error,
			       .error_code = s->exc_error },
		.interrupt = { .injected = s->intr_injected,
			       .nr = s->intr_nr,
			       .soft = s->intr_soft,
			       .shadow = s->intr_shadow },
		.nmi = { .injected = s->nmi_injected,
			 .pending = s->nmi_pending,
			 .masked = s->nmi_masked },
		.sipi_vector = s->sipi_vector,
		.exception_has_payload = raised && s->exc_has_payload,
		.exception_payload = raised ? s->exc_payload : 0,
	};
	struct kvm_mp_state mp = { .mp_state = mp_states[s->mp_state] };

	if (ioctl(fd, KVM_SET_VCPU_EVENTS, &ev) < 0 || ioctl(fd, KVM_SET_MP_STATE, &mp) < 0)
		return -errno;
	return 0;
}

static int kvm_state_fail(struct vcpu *v, struct err *e, const char *verb, const char *what,
			  int ret)
{
	return err_set(e, -ret, "kvm-vcpu-state", "guest %s: vCPU %u: KVM does not %s its %s: %s",
		       v->vm->name, v->index, verb, what, strerror(-ret));
}

int kvm_vcpu_get_state(struct vcpu *v, struct x86_state *s, struct err *e)
{
	struct kvm_vm *kv = kvm_vm_of(v->vm);
	int fd = kvm_vcpu_of(v)->fd, ret;
	const char *what = "registers";
	struct kvm_regs regs;
	struct kvm_debugregs dr = { 0 };
	struct kvm_lapic_state lapic;

	memset(s, 0, sizeof(*s));
	ret = kvm_get_events(fd, s);
	if (ret < 0)
		return kvm_state_fail(v, e, "give", "pending events", ret);
	ret = ioctl(fd, KVM_GET_REGS, &regs) < 0 ? -errno : kvm_get_sregs(fd, s);
	if (ret < 0)
		return kvm_state_fail(v, e, "give", what, ret);
	kvm_regs_from(&regs, s);
	if (kv->nested && ((s->efer & EFER_SVME) || (s->cr4 & CR4_VMXE)))
		return err_set(e, ENOTSUP, "nested-state",
			       "guest %s: it runs guests of its own, whose state cannot be saved; "
			       "stop them first",
			       v->vm->name);
	what = "FPU";
	ret = kvm_get_fpu(kv, fd, s);
	if (ret == 0) {
		what = "MSRs";
		ret = kvm_get_msrs(kv, fd, s);
		if (kvm_cpu_is_amd(v->vm))
			kvm_drop_sysenter_hi(s);
	}
	if (ret == 0 && kv->debugregs && ioctl(fd, KVM_GET_DEBUGREGS, &dr) == 0) {
		memcpy(s->dr, dr.db, sizeof(s->dr));
		s->dr6 = dr.dr6;
		s->dr7 = dr.dr7;
	}
	if (ret == 0) {
		what = "local APIC";
		ret = ioctl(fd, KVM_GET_LAPIC, &lapic) < 0 ? -errno : 0;
		s->has_lapic = ret == 0;
		memcpy(s->lapic, lapic.regs, sizeof(s->lapic));
	}
	return ret < 0 ? kvm_state_fail(v, e, "give", what, ret) : 0;
}

int kvm_vcpu_set_state(struct vcpu *v, const struct x86_state *s, struct err *e)
{
	struct kvm_vm *kv = kvm_vm_of(v->vm);
	int fd = kvm_vcpu_of(v)->fd;
	const char *what = "control registers";
	struct kvm_regs regs;
	struct kvm_lapic_state lapic;
	struct kvm_debugregs dr = { .dr6 = s->dr6, .dr7 = s->dr7 };
	struct kvm_mp_state old;

	kvm_vcpu_of(v)->completing = kvm_vcpu_of(v)->in_flight = false;
	/* what the last exit said of interrupts was said of another state */
	kvm_vcpu_of(v)->run->ready_for_interrupt_injection = 0;
	/* an INIT or SIPI still on its way is of the state that goes: let KVM take it now */
	(void)ioctl(fd, KVM_GET_MP_STATE, &old);
	int ret = kvm_set_sregs(fd, s);
	if (ret == 0) {
		what = "registers";
		kvm_regs_to(s, &regs);
		ret = ioctl(fd, KVM_SET_REGS, &regs) < 0 ? -errno : 0;
	}
	if (ret == 0) {
		what = "FPU";
		ret = kvm_set_fpu(kv, fd, s);
	}
	if (ret == 0 && s->has_lapic) {
		what = "local APIC";
		memcpy(lapic.regs, s->lapic, sizeof(lapic.regs));
		ret = ioctl(fd, KVM_SET_LAPIC, &lapic) < 0 ? -errno : 0;
	}
	if (ret == 0) {
		what = "MSRs";
		ret = kvm_set_msrs(kv, fd, s);
	}
	if (ret == 0 && kv->debugregs) {
		what = "debug registers";
		memcpy(dr.db, s->dr, sizeof(dr.db));
		ret = ioctl(fd, KVM_SET_DEBUGREGS, &dr) < 0 ? -errno : 0;
	}
	if (ret == 0) {
		what = "pending events";
		ret = kvm_set_events(kv, fd, s);
	}
	return ret < 0 ? kvm_state_fail(v, e, "take", what, ret) : 0;
}
