/* x86_state.c - power-on state, direct-boot state, and one vCPU's section of the state stream.
 *
 * Written field by field in little-endian, so that the stream depends on no compiler's layout.
 * Trust: what is loaded may come from anywhere: lengths and counts are bounded before use,
 * enumerations are checked; values that the architecture forbids are left for the accelerator to
 * refuse.
 * Spec: Intel SDM vol. 3, 9.1.1 (state after reset), 10.4.7 (local APIC), 13 (XSAVE).
 */
#include "common/le.h"
#include "hypervisor-core/x86_state.h"

#include <errno.h>
#include <string.h>

#include "common/overflow.h"

enum {
	TAG_GPR = 1,
	TAG_RIP,
	TAG_RFLAGS,
	TAG_SEGS,
	TAG_TABLES,
	TAG_CRS,
	TAG_DRS,
	TAG_XSAVE,
	TAG_MSRS,
	TAG_MP_STATE,
	TAG_EVENTS,
	TAG_LAPIC,
	TAG_EXC_PAYLOAD, /* only where an exception has one */
};

#define SEG_BYTES 16u
#define MSR_BYTES 12u
#define NCRS	  8u
#define NEVENTS	  12u

enum {
	SEG_CODE16 = 0x9b, /* accessed, readable code, S, P */
	SEG_DATA16 = 0x93,
	SEG_LDT = 0x82,
	SEG_TSS32_BUSY = 0x8b,
	SEG_UNUSABLE = 0x100,
	SEG_CODE64 = 0xa09b,	/* + L, G */
	SEG_DATA_FLAT = 0xc093, /* + D/B, G */
};

static void x86_msr_add(struct x86_state *s, uint32_t index, uint64_t value)
{
	s->msr[s->nmsrs].index = index;
	s->msr[s->nmsrs++].value = value;
}

/* What a reset must bring back. Accelerators skip those that they do not have. */
static void x86_state_reset_msrs(struct x86_state *s)
{
	static const uint32_t zero[] = {
		0x10, /* TSC */
		0x3b, /* TSC_ADJUST */
		0x48, /* SPEC_CTRL */
		0x174,
		0x175,
		0x176, /* SYSENTER_CS, ESP, EIP */
		0x1d9, /* DEBUGCTL */
		0x2ff, /* MTRR_DEF_TYPE */
		0x6e0, /* TSC_DEADLINE */
		0xda0, /* XSS */
		0xc0000081,
		0xc0000082,
		0xc0000083,
		0xc0000084, /* STAR, LSTAR, CSTAR, FMASK */
		0xc0000102, /* KERNEL_GS_BASE */
		0xc0000103, /* TSC_AUX */
		/* paravirtual clock, async page faults, steal time, PV EOI, poll control: all off,
		 * or the host would go on writing into what is now somebody else's memory */
		0x11,
		0x12,
		0x4b564d00,
		0x4b564d01,
		0x4b564d02,
		0x4b564d03,
		0x4b564d04,
		0x4b564d06,
	};

	s->nmsrs = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(zero); i++)
		x86_msr_add(s, zero[i], 0);
	x86_msr_add(s, 0x4b564d05, 1);		   /* KVM_POLL_CONTROL: host polling allowed */
	x86_msr_add(s, 0x1a0, 1);		   /* MISC_ENABLE: fast strings */
	x86_msr_add(s, 0x277, 0x0007040600070406); /* PAT */
}

static void x86_state_reset_lapic(struct x86_state *s, unsigned cpu_index)
{
	static const uint16_t lvt[] = { 0x2f0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370 };

	s->has_lapic = 1;
	memset(s->lapic, 0, sizeof(s->lapic));
	le_put32(s->lapic + 0x20, cpu_index << 24);
	le_put32(s->lapic + 0x30, 0x00050014);
	le_put32(s->lapic + 0xe0, 0xffffffff);
	le_put32(s->lapic + 0xf0, 0xff);
	for (unsigned i = 0; i < ARRAY_SIZE(lvt); i++)
		le_put32(s->lapic + lvt[i], 0x10000);
	/* There is no firmware to set up virtual wire mode: LINT0 of the boot CPU takes the 8259
	 * pair. */
	if (cpu_index == 0)
		le_put32(s->lapic + 0x350, 0x700);
}

void x86_state_reset(struct x86_state *s, unsigned cpu_index)
{
	memset(s, 0, sizeof(*s));
	s->gpr[X86_RDX] = 0x600;
	s->rip = 0xfff0;
	s->rflags = 2;
	for (unsigned i = X86_ES; i <= X86_GS; i++)
		s->seg[i] = (struct x86_seg){ 0, 0xffff, 0, SEG_DATA16 };
	s->seg[X86_CS] = (struct x86_seg){ 0xffff0000, 0xffff, 0xf000, SEG_CODE16 };
	s->seg[X86_LDTR] = (struct x86_seg){ 0, 0xffff, 0, SEG_LDT };
	s->seg[X86_TR] = (struct x86_seg){ 0, 0xffff, 0, SEG_TSS32_BUSY };
	s->gdt_limit = s->idt_limit = 0xffff;
	s->cr0 = 0x60000010; /* CD, NW, ET */
	s->xcr0 = 1;
	s->apic_base = 0xfee00000 | 0x800 | (cpu_index == 0 ? 0x100 : 0);
	s->dr6 = 0xffff0ff0;
	s->dr7 = 0x400;
	s->xsave_len = 576;
	le_put16(s->xsave, 0x37f);	 /* FCW as FNINIT leaves it: what every kernel assumes */
	le_put32(s->xsave + 24, 0x1f80); /* MXCSR */
	x86_state_reset_msrs(s);
	s->mp_state = cpu_index == 0 ? X86_MP_RUNNABLE : X86_MP_UNINIT;
	x86_state_reset_lapic(s, cpu_index);
}

void x86_state_long_mode(struct x86_state *s, uint64_t cr3, uint64_t gdt_base, uint16_t gdt_limit)
{
	struct x86_seg data = { 0, 0xffffffff, 0x18, SEG_DATA_FLAT };

	s->cr0 = 0x80010033; /* PG, WP, NE, ET, MP, PE */
	s->cr3 = cr3;
	s->cr4 = 0x620;	 /* PAE, OSFXSR, OSXMMEXCPT */
	s->efer = 0x501; /* LMA, LME, SCE */
	s->gdt_base = gdt_base;
	s->gdt_limit = gdt_limit;
	s->idt_base = 0;
	s->idt_limit = 0;
	s->seg[X86_CS] = (struct x86_seg){ 0, 0xffffffff, 0x10, SEG_CODE64 };
	s->seg[X86_DS] = s->seg[X86_ES] = s->seg[X86_SS] = s->seg[X86_FS] = s->seg[X86_GS] = data;
	s->seg[X86_LDTR] = (struct x86_seg){ 0, 0, 0, SEG_UNUSABLE };
	s->seg[X86_TR] = (struct x86_seg){ 0, 0xffff, 0x20, SEG_TSS32_BUSY };
	s->rflags = 2;
	s->mp_state = X86_MP_RUNNABLE;
}

void x86_state_save(const struct x86_state *s, struct state_writer *w)
{
	uint8_t b[X86_MSRS_MAX * MSR_BYTES];
	uint32_t nmsrs = MIN(s->nmsrs, (unsigned)X86_MSRS_MAX);

	for (unsigned i = 0; i < 16; i++)
		le_put64(b + 8 * i, s->gpr[i]);
	state_put_bytes(w, TAG_GPR, b, 16 * 8);
	state_put_u64(w, TAG_RIP, s->rip);
	state_put_u64(w, TAG_RFLAGS, s->rflags);
	for (unsigned i = 0; i < X86_NSEGS; i++) {
		le_put64(b + SEG_BYTES * i, s->seg[i].base);
		le_put32(b + SEG_BYTES * i + 8, s->seg[i].limit);
		le_put16(b + SEG_BYTES * i + 12, s->seg[i].sel);
		le_put16(b + SEG_BYTES * i + 14, s->seg[i].attr);
	}
	state_put_bytes(w, TAG_SEGS, b, X86_NSEGS * SEG_BYTES);
	le_put64(b, s->gdt_base);
	le_put64(b + 8, s->idt_base);
	le_put16(b + 16, s->gdt_limit);
	le_put16(b + 18, s->idt_limit);
	state_put_bytes(w, TAG_TABLES, b, 20);
	const uint64_t cr[NCRS] = { s->cr0, s->cr2,  s->cr3,  s->cr4,
				    s->cr8, s->xcr0, s->efer, s->apic_base };
	for (unsigned i = 0; i < NCRS; i++)
		le_put64(b + 8 * i, cr[i]);
	state_put_bytes(w, TAG_CRS, b, NCRS * 8);
	for (unsigned i = 0; i < 4; i++)
		le_put64(b + 8 * i, s->dr[i]);
	le_put64(b + 32, s->dr6);
	le_put64(b + 40, s->dr7);
	state_put_bytes(w, TAG_DRS, b, 48);
	state_put_bytes(w, TAG_XSAVE, s->xsave, MIN(s->xsave_len, (uint32_t)X86_XSAVE_MAX));
	for (unsigned i = 0; i < nmsrs; i++) {
		le_put32(b + MSR_BYTES * i, s->msr[i].index);
		le_put64(b + MSR_BYTES * i + 4, s->msr[i].value);
	}
	state_put_bytes(w, TAG_MSRS, b, nmsrs * MSR_BYTES);
	state_put_u64(w, TAG_MP_STATE, s->mp_state);
	const uint8_t ev[NEVENTS] = {
		s->exc_pending, s->exc_nr,     s->exc_has_error, s->intr_injected,
		s->intr_nr,	s->intr_soft,  s->intr_shadow,	 s->nmi_injected,
		s->nmi_pending, s->nmi_masked, s->sipi_vector,	 0,
	};
	memcpy(b, ev, NEVENTS);
	le_put32(b + NEVENTS, s->exc_error);
	state_put_bytes(w, TAG_EVENTS, b, NEVENTS + 4);
	if (s->exc_has_payload)
		state_put_u64(w, TAG_EXC_PAYLOAD, s->exc_payload);
	if (s->has_lapic)
		state_put_bytes(w, TAG_LAPIC, s->lapic, sizeof(s->lapic));
}

static int x86_load_msrs(struct x86_state *s, const struct state_reader *r)
{
	const void *p;
	size_t len;
	int ret = state_get_span(r, TAG_MSRS, &p, &len);

	if (ret < 0)
		return ret;
	if (len % MSR_BYTES || len / MSR_BYTES > X86_MSRS_MAX)
		return -EBADMSG;
	s->nmsrs = (unsigned)(len / MSR_BYTES);
	for (unsigned i = 0; i < s->nmsrs; i++) {
		s->msr[i].index = le_get32((const uint8_t *)p + MSR_BYTES * i);
		s->msr[i].value = le_get64((const uint8_t *)p + MSR_BYTES * i + 4);
	}
	return 0;
}

static int x86_load_xsave(struct x86_state *s, const struct state_reader *r)
{
	const void *p;
	size_t len;
	int ret = state_get_span(r, TAG_XSAVE, &p, &len);

	if (ret < 0)
		return ret;
	if (len < 576 || len > X86_XSAVE_MAX)
		return -EBADMSG;
	memcpy(s->xsave, p, len);
	s->xsave_len = (uint32_t)len;
	return 0;
}

static int x86_load_cpu(struct x86_state *s, const struct state_reader *r)
{
	uint8_t b[X86_NSEGS * SEG_BYTES];
	int ret = state_get_bytes(r, TAG_GPR, b, 16 * 8);

	for (unsigned i = 0; ret == 0 && i < 16; i++)
		s->gpr[i] = le_get64(b + 8 * i);
	if (ret == 0)
		ret = state_get_u64(r, TAG_RIP, &s->rip);
	if (ret == 0)
		ret = state_get_u64(r, TAG_RFLAGS, &s->rflags);
	if (ret == 0)
		ret = state_get_bytes(r, TAG_SEGS, b, X86_NSEGS * SEG_BYTES);
	for (unsigned i = 0; ret == 0 && i < X86_NSEGS; i++) {
		const uint8_t *p = b + SEG_BYTES * i;

		s->seg[i] = (struct x86_seg){ le_get64(p), le_get32(p + 8), le_get16(p + 12),
					      le_get16(p + 14) };
	}
	if (ret == 0)
		ret = state_get_bytes(r, TAG_TABLES, b, 20);
	if (ret < 0)
		return ret;
	s->gdt_base = le_get64(b);
	s->idt_base = le_get64(b + 8);
	s->gdt_limit = le_get16(b + 16);
	s->idt_limit = le_get16(b + 18);
	ret = state_get_bytes(r, TAG_CRS, b, NCRS * 8);
	if (ret < 0)
		return ret;
	uint64_t *const cr[NCRS] = { &s->cr0, &s->cr2,	&s->cr3,  &s->cr4,
				     &s->cr8, &s->xcr0, &s->efer, &s->apic_base };
	for (unsigned i = 0; i < NCRS; i++)
		*cr[i] = le_get64(b + 8 * i);
	ret = state_get_bytes(r, TAG_DRS, b, 48);
	if (ret < 0)
		return ret;
	for (unsigned i = 0; i < 4; i++)
		s->dr[i] = le_get64(b + 8 * i);
	s->dr6 = le_get64(b + 32);
	s->dr7 = le_get64(b + 40);
	return 0;
}

static int x86_load_events(struct x86_state *s, const struct state_reader *r)
{
	uint8_t b[NEVENTS + 4];
	uint64_t mp = 0;
	int ret = state_get_bytes(r, TAG_EVENTS, b, sizeof(b));

	if (ret == 0)
		ret = state_get_u64(r, TAG_MP_STATE, &mp);
	if (ret < 0)
		return ret;
	if (mp > X86_MP_HALTED || b[0] > 2)
		return -EBADMSG;
	s->exc_has_payload = state_get_u64(r, TAG_EXC_PAYLOAD, &s->exc_payload) == 0;
	s->mp_state = (enum x86_mp_state)mp;
	uint8_t *const ev[NEVENTS - 1] = {
		&s->exc_pending, &s->exc_nr,	 &s->exc_has_error, &s->intr_injected,
		&s->intr_nr,	 &s->intr_soft,	 &s->intr_shadow,   &s->nmi_injected,
		&s->nmi_pending, &s->nmi_masked, &s->sipi_vector,
	};
	for (unsigned i = 0; i < NEVENTS - 1; i++)
		*ev[i] = b[i];
	s->exc_error = le_get32(b + NEVENTS);
	ret = state_get_bytes(r, TAG_LAPIC, s->lapic, sizeof(s->lapic));
	s->has_lapic = ret == 0;
	return ret == -ENOENT ? 0 : ret;
}

int x86_state_load(struct x86_state *s, const struct state_reader *r, struct err *e)
{
	memset(s, 0, sizeof(*s));
	int ret = x86_load_cpu(s, r);

	if (ret == 0)
		ret = x86_load_xsave(s, r);
	if (ret == 0)
		ret = x86_load_msrs(s, r);
	if (ret == 0)
		ret = x86_load_events(s, r);
	if (ret < 0)
		return err_set(e, EBADMSG, "state-bad-vcpu",
			       "saved state: vCPU %u is incomplete or malformed", r->instance);
	return 0;
}
