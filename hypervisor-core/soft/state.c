/* state.c - the vCPU's architectural state in and out (struct x86_state), between accelerators. */
#include <string.h>

#include "flags.h"
#include "run.h"

static const u32 state_msrs[] = {
	0x10,	    0x3b,	0x174,	    0x175,	0x176,	    0x1a0,	0x277,
	0x2ff,	    0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0xc0000103,
	0x4b564d00, 0x4b564d01, 0x4b564d05, 0x6e0,	0x200,	    0x201,	0x202,
	0x203,	    0x204,	0x205,	    0x206,	0x207,	    0x208,	0x209,
	0x20a,	    0x20b,	0x20c,	    0x20d,	0x20e,	    0x20f,	0x250,
	0x258,	    0x259,	0x268,	    0x269,	0x26a,	    0x26b,	0x26c,
	0x26d,	    0x26e,	0x26f,
};

int soft_vcpu_get_state(struct vcpu *v, struct x86_state *s, struct err *e)
{
	struct cpu *c = v->accel_vcpu;
	const struct intc_ops *ic = v->vm->intc;
	u64 val;

	memset(s, 0, sizeof(*s));
	for (int i = 0; i < 16; i++)
		s->gpr[i] = c->r[i];
	s->rip = c->r[S_RIP];
	s->rflags = soft_eflags(c);
	memcpy(s->seg, c->seg, sizeof(s->seg));
	s->gdt_base = c->gdt_base;
	s->idt_base = c->idt_base;
	s->gdt_limit = c->gdt_limit;
	s->idt_limit = c->idt_limit;
	s->cr0 = c->cr0;
	s->cr2 = c->cr2;
	s->cr3 = c->cr3;
	s->cr4 = c->cr4;
	s->cr8 = ic && ic->cr8_get ? ic->cr8_get(v->vm->intc_opaque, v->index) : c->cr8;
	s->xcr0 = 3;
	s->efer = c->efer;
	if (ic && ic->msr_read && ic->msr_read(v->vm->intc_opaque, v->index, 0x1b, &val))
		s->apic_base = val;
	else
		s->apic_base = c->apic_base;
	memcpy(s->dr, c->dr, sizeof(s->dr));
	s->dr6 = c->dr6;
	s->dr7 = c->dr7;
	/* legacy area and header: x87 and SSE in use */
	s->xsave_len = 576;
	memcpy(s->xsave, &c->fx, 416);
	val = 0xffff;
	memcpy(s->xsave + 28, &val, 4);
	val = 3;
	memcpy(s->xsave + 512, &val, 8);
	for (unsigned i = 0; i < sizeof(state_msrs) / sizeof(state_msrs[0]); i++) {
		if (state_msrs[i] == 0x6e0)
			continue; /* the LAPIC's own section has it */
		if (soft_msr_read(c, state_msrs[i], &val)) {
			s->msr[s->nmsrs].index = state_msrs[i];
			s->msr[s->nmsrs++].value = val;
		}
	}
	s->mp_state = c->mp == X86_MP_RUNNABLE && c->halted ? X86_MP_HALTED : c->mp;
	s->intr_shadow = c->inhibit;
	s->nmi_pending = c->nmi_pending || (atomic_load(&c->attn) & ATTN_NMI);
	s->nmi_masked = c->nmi_masked;
	s->sipi_vector = c->sipi_vector;
	return 0;
}

int soft_vcpu_set_state(struct vcpu *v, const struct x86_state *s, struct err *e)
{
	struct cpu *c = v->accel_vcpu;
	const struct intc_ops *ic = v->vm->intc;
	u32 host;

	asm volatile("stmxcsr %0" : "=m"(host));
	for (int i = 0; i < 16; i++)
		c->r[i] = s->gpr[i];
	c->r[S_ZERO] = c->r[S_TMP] = 0;
	c->r[S_RIP] = s->rip;
	soft_eflags_set(c, (u32)s->rflags);
	for (unsigned i = 0; i < X86_NSEGS; i++)
		soft_seg_cache(c, i, s->seg[i].sel, s->seg[i].base, s->seg[i].limit,
			       s->seg[i].attr);
	c->cpl = s->cr0 & 1 ? s->seg[X86_SS].attr >> 5 & 3 : 0;
	c->gdt_base = s->gdt_base;
	c->idt_base = s->idt_base;
	c->gdt_limit = s->gdt_limit;
	c->idt_limit = s->idt_limit;
	c->cr0 = s->cr0;
	c->cr2 = s->cr2;
	c->cr3 = s->cr3;
	c->cr4 = s->cr4 & 0x3107ff;
	c->cr8 = (u8)s->cr8;
	c->efer = s->efer & 0xd01;
	c->apic_base = s->apic_base;
	if (ic && ic->msr_write)
		ic->msr_write(v->vm->intc_opaque, v->index, 0x1b, s->apic_base);
	if (ic && ic->cr8_set)
		ic->cr8_set(v->vm->intc_opaque, v->index, (u8)s->cr8);
	memcpy(c->dr, s->dr, sizeof(c->dr));
	c->dr6 = s->dr6;
	c->dr7 = s->dr7;
	soft_debug_update(c);
	if (s->xsave_len >= 512) {
		u64 bv = s->xsave_len >= 576 ? *(const m64 *)(s->xsave + 512) : 3;
		struct fximg f;

		memset(&f, 0, sizeof(f));
		f.fcw = 0x37f;
		if (bv & 1)
			memcpy(&f, s->xsave, 160);
		if (bv & 2)
			memcpy(f.xmm, s->xsave + 160, 256);
		memcpy(&f.mxcsr, s->xsave + 24, 4);
		f.mxcsr &= 0xffff;
		if (s->xsave_len >= 576 && !(bv & 6))
			f.mxcsr = 0x1f80;
		memcpy(&c->fx, &f, sizeof(f));
	}
	for (unsigned i = 0; i < s->nmsrs && i < X86_MSRS_MAX; i++) {
		if (s->msr[i].index == 0x1b || s->msr[i].index == 0x6e0)
			continue;
		/* what this CPU does not know came from another accelerator's larger set: not
		 * architectural here */
		if (s->msr[i].index == 0xc0000080)
			continue;
		if (s->msr[i].index == 0x4b564d00) {
			c->pv_wall = s->msr[i].value;
			continue;
		}
		soft_msr_write(c, s->msr[i].index, s->msr[i].value);
	}
	c->halted = s->mp_state == X86_MP_HALTED;
	c->mp = s->mp_state == X86_MP_HALTED ? X86_MP_RUNNABLE : s->mp_state;
	if (s->mp_state == X86_MP_SIPI)
		c->mp = X86_MP_INIT;
	c->inhibit = s->intr_shadow != 0;
	c->nmi_pending = s->nmi_pending;
	c->nmi_masked = s->nmi_masked;
	c->sipi_vector = s->sipi_vector;
	c->shutdown = false;
	c->exc_nested = 0;
	c->fault_op = NULL;
	c->single = 0; /* no instruction is under way */
	if (s->mp_state == X86_MP_SIPI)
		soft_attn(c, ATTN_SIPI);
	/* RAM may be another one: nothing decoded or translated stays */
	soft_tlb_flush(c, true);
	soft_code_flush(c);
	soft_mode_update(c);
	soft_attn(c, ATTN_INTR);
	asm volatile("ldmxcsr %0" : : "m"(host));
	/* an event that another accelerator had half delivered */
	if (s->exc_pending || s->intr_injected || s->nmi_injected) {
		c->pending_event = (u8)(s->nmi_injected	 ? EXC_NMI
					: s->exc_pending ? s->exc_nr
							 : s->intr_nr);
		c->pending_err = s->exc_error;
		c->pending_kind = s->nmi_injected  ? 2
				  : s->exc_pending ? (s->exc_has_error ? 4 : 3)
						   : 1;
	} else {
		c->pending_kind = 0;
	}
	return 0;
}
