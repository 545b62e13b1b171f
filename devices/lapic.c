/* lapic.c - local APIC: xAPIC page, x2APIC MSRs, priorities, saved state (Intel SDM vol. 3, chapter
 * 10 and 10.12). The timer is in lapic_timer.c, messages between CPUs in lapic_ipi.c.
 *
 * Locking: each LAPIC has its own mutex, a leaf: nothing is called with it held. The accelerator
 * calls in from vCPU threads without the machine lock, other chips with it. Arming the timer needs
 * the machine lock (vm_timer), so a vCPU thread first lets go of its LAPIC, then takes the machine
 * lock; the timer's callback checks the deadline again under the LAPIC's mutex, so a late one of an
 * older setting is harmless.
 * Not modelled: SMI, remote read, relocation of the page, EOI-broadcast suppression, thermal and
 * performance interrupts (their LVT registers only store).
 * Trust: registers and messages come from the guest; reserved bits are masked, bad MSR values
 * answer false (#GP), vectors below 16 set the error status register.
 */
#include "devices/lapic_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"

static const uint32_t lvt_writable[LVT_COUNT] = {
	[LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
	[LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,	[LVT_ERROR] = 0x100ff,
};

static uint32_t lapic_ppr(const struct lapic *l)
{
	int isrv = lapic_highest(l->isr);
	uint32_t in_service = isrv < 0 ? 0 : (uint32_t)isrv & 0xf0;

	return (l->tpr & 0xf0) >= in_service ? l->tpr : in_service;
}

/* Deliverable vector, or -1. */
static int lapic_deliverable(const struct lapic *l)
{
	int v = lapic_highest(l->irr);

	if (v < 0 || !lapic_hw_on(l))
		return -1;
	return ((uint32_t)v & 0xf0) > (lapic_ppr(l) & 0xf0) ? v : -1;
}

void lapic_wake(struct lapic *l)
{
	struct vm *vm = l->set->vm;

	if (vm->accel->vcpu_interrupt && l->index < vm->nvcpus)
		vm->accel->vcpu_interrupt(vm->vcpus[l->index]);
}

void lapic_error(struct lapic *l, uint32_t bit)
{
	uint32_t lvt = l->lvt[LVT_ERROR];

	l->esr_latched |= bit;
	if (!(lvt & LVT_MASKED) && (l->svr & SVR_ENABLE) && (lvt & 0xff) >= 16) {
		lapic_bit_set(l->irr, lvt & 0xff);
		lapic_bit_clear(l->tmr, lvt & 0xff);
	}
}

/* lapic_accept() - a fixed interrupt arrives; @l locked. True where the vCPU should look. */
bool lapic_accept(struct lapic *l, uint8_t vector, bool level)
{
	if (!lapic_hw_on(l) || !(l->svr & SVR_ENABLE))
		return false;
	if (vector < 16) {
		lapic_error(l, ESR_RECV_ILLEGAL);
		return true;
	}
	lapic_bit_set(l->irr, vector);
	if (level)
		lapic_bit_set(l->tmr, vector);
	else
		lapic_bit_clear(l->tmr, vector);
	return true;
}
/* ---- reset ---- */

/* INIT or power-on; @l locked. @cold: the enable bits too. */
void lapic_regs_reset(struct lapic *l, bool cold)
{
	if (cold)
		l->base = APIC_PAGE | BASE_ENABLE | (l->index == 0 ? BASE_BSP : 0);
	l->id = l->index;
	l->tpr = l->esr = l->esr_latched = l->icr = l->icr2 = 0;
	l->ldr = lapic_x2(l) ? (l->id >> 4) << 16 | 1u << (l->id & 15) : 0;
	l->dfr = 0xffffffff;
	l->svr = 0xff;
	memset(l->isr, 0, sizeof(l->isr));
	memset(l->tmr, 0, sizeof(l->tmr));
	memset(l->irr, 0, sizeof(l->irr));
	for (unsigned i = 0; i < LVT_COUNT; i++)
		l->lvt[i] = LVT_MASKED;
	/* Firmware would leave the boot CPU in virtual wire mode: 8259 through LINT0. */
	if (l->index == 0)
		l->lvt[LVT_LINT0] = DM_EXTINT << 8;
	l->timer_init = l->timer_div = 0;
	l->timer_start_ns = l->timer_due_ns = l->tsc_deadline = 0;
}
/* ---- what the accelerator asks ---- */

int lapic_pending(struct lapic_set *s, unsigned cpu)
{
	struct lapic *l = &s->cpu[cpu];
	int v;

	pthread_mutex_lock(&l->lock);
	v = lapic_deliverable(l);
	pthread_mutex_unlock(&l->lock);
	return v;
}

int lapic_ack(struct lapic_set *s, unsigned cpu)
{
	struct lapic *l = &s->cpu[cpu];
	int v;

	pthread_mutex_lock(&l->lock);
	v = lapic_deliverable(l);
	if (v >= 0) {
		lapic_bit_clear(l->irr, (unsigned)v);
		lapic_bit_set(l->isr, (unsigned)v);
	}
	pthread_mutex_unlock(&l->lock);
	return v;
}

bool lapic_accepts_pic(struct lapic_set *s, unsigned cpu)
{
	struct lapic *l = &s->cpu[cpu];
	bool ok;

	pthread_mutex_lock(&l->lock);
	if (!lapic_hw_on(l))
		ok = cpu == 0;
	else
		ok = !(l->lvt[LVT_LINT0] & LVT_MASKED) && (l->lvt[LVT_LINT0] >> 8 & 7) == DM_EXTINT;
	pthread_mutex_unlock(&l->lock);
	return ok;
}

uint8_t lapic_cr8_get(struct lapic_set *s, unsigned cpu)
{
	struct lapic *l = &s->cpu[cpu];
	uint8_t v;

	pthread_mutex_lock(&l->lock);
	v = (uint8_t)(l->tpr >> 4 & 0xf);
	pthread_mutex_unlock(&l->lock);
	return v;
}

static void lapic_tpr_set(struct lapic *l, uint32_t tpr)
{
	bool wake;

	pthread_mutex_lock(&l->lock);
	l->tpr = tpr & 0xff;
	wake = lapic_deliverable(l) >= 0;
	pthread_mutex_unlock(&l->lock);
	if (wake)
		lapic_wake(l);
}

void lapic_cr8_set(struct lapic_set *s, unsigned cpu, uint8_t val)
{
	lapic_tpr_set(&s->cpu[cpu], (uint32_t)(val & 0xf) << 4);
}

/* ---- registers ---- */

static void lapic_eoi(struct lapic *l)
{
	bool level = false, wake;
	int v;

	pthread_mutex_lock(&l->lock);
	v = lapic_highest(l->isr);
	if (v >= 0) {
		lapic_bit_clear(l->isr, (unsigned)v);
		level = lapic_bit(l->tmr, (unsigned)v);
	}
	wake = lapic_deliverable(l) >= 0;
	pthread_mutex_unlock(&l->lock);
	if (level && l->set->eoi)
		l->set->eoi(l->set->opaque, (uint8_t)v);
	if (wake)
		lapic_wake(l);
}

static uint32_t lapic_reg_read(struct lapic *l, unsigned reg)
{
	uint32_t v = 0;

	pthread_mutex_lock(&l->lock);
	switch (reg) {
	case R_ID:
		v = lapic_x2(l) ? l->id : l->id << 24;
		break;
	case R_VERSION:
		v = APIC_VERSION;
		break;
	case R_TPR:
		v = l->tpr;
		break;
	case R_APR:
		break;
	case R_PPR:
		v = lapic_ppr(l);
		break;
	case R_LDR:
		v = l->ldr;
		break;
	case R_DFR:
		v = l->dfr;
		break;
	case R_SVR:
		v = l->svr;
		break;
	case R_ISR ... R_ISR + 7:
		v = l->isr[reg - R_ISR];
		break;
	case R_TMR ... R_TMR + 7:
		v = l->tmr[reg - R_TMR];
		break;
	case R_IRR ... R_IRR + 7:
		v = l->irr[reg - R_IRR];
		break;
	case R_ESR:
		v = l->esr;
		break;
	case R_ICR:
		v = l->icr;
		break;
	case R_ICR2:
		v = l->icr2;
		break;
	case R_LVT_TIMER ... R_LVT_ERROR:
		v = l->lvt[reg - R_LVT_TIMER];
		break;
	case R_TIMER_INIT:
		v = l->timer_init;
		break;
	case R_TIMER_CUR:
		v = lapic_timer_current(l);
		break;
	case R_TIMER_DIV:
		v = l->timer_div;
		break;
	default:
		l->esr_latched |= ESR_REGISTER;
		break;
	}
	pthread_mutex_unlock(&l->lock);
	return v;
}

static void lapic_lvt_write(struct lapic *l, unsigned n, uint32_t val)
{
	bool rearm = false, wake = false;

	pthread_mutex_lock(&l->lock);
	val &= lvt_writable[n];
	if (!(l->svr & SVR_ENABLE))
		val |= LVT_MASKED;
	if (n == LVT_TIMER && LVT_MODE(val) != LVT_MODE(l->lvt[n])) {
		/* Leaving or entering deadline mode disarms (SDM 10.5.4.1). */
		if (LVT_MODE(val) == 2 || LVT_MODE(l->lvt[n]) == 2)
			l->timer_init = 0;
		l->tsc_deadline = 0;
		l->lvt[n] = val;
		lapic_timer_due(l, vm_now_ns(l->set->vm));
		rearm = true;
	}
	/* The 8259 may have been waiting for LINT0. */
	wake = n == LVT_LINT0 && !(val & LVT_MASKED);
	l->lvt[n] = val;
	pthread_mutex_unlock(&l->lock);
	if (rearm)
		lapic_timer_arm_locking(l);
	if (wake)
		lapic_wake(l);
}
static void lapic_reg_write(struct lapic *l, unsigned reg, uint32_t val)
{
	uint32_t icr2;

	switch (reg) {
	case R_TPR:
		lapic_tpr_set(l, val);
		return;
	case R_EOI:
		lapic_eoi(l);
		return;
	case R_ICR:
		pthread_mutex_lock(&l->lock);
		l->icr = val & 0xccfff; /* delivery status reads 0: sent at once */
		icr2 = l->icr2;
		pthread_mutex_unlock(&l->lock);
		lapic_send_ipi(l, val, icr2 >> 24, false);
		return;
	case R_LVT_TIMER ... R_LVT_ERROR:
		lapic_lvt_write(l, reg - R_LVT_TIMER, val);
		return;
	case R_TIMER_INIT:
		lapic_timer_init_write(l, val);
		return;
	case R_TIMER_DIV:
		lapic_timer_div_write(l, val);
		return;
	default:
		break;
	}
	pthread_mutex_lock(&l->lock);
	switch (reg) {
	case R_ID:
		l->id = val >> 24;
		break;
	case R_LDR:
		l->ldr = val & 0xff000000;
		break;
	case R_DFR:
		l->dfr = val | 0x0fffffff;
		break;
	case R_SVR:
		l->svr = val & 0x3ff;
		if (!(l->svr & SVR_ENABLE))
			for (unsigned i = 0; i < LVT_COUNT; i++)
				l->lvt[i] |= LVT_MASKED;
		break;
	case R_ESR:
		l->esr = l->esr_latched;
		l->esr_latched = 0;
		break;
	case R_ICR2:
		l->icr2 = val & 0xff000000;
		break;
	default:
		l->esr_latched |= ESR_REGISTER;
		break;
	}
	pthread_mutex_unlock(&l->lock);
}

uint32_t lapic_mmio_read(struct lapic_set *s, unsigned cpu, uint32_t off, unsigned size)
{
	struct lapic *l = &s->cpu[cpu];

	if (!lapic_hw_on(l) || lapic_x2(l) || (off & 0xf) + size > 16)
		return 0xffffffff;
	if ((off & 0xf) > 3)
		return 0;
	return lapic_reg_read(l, off >> 4 & 0xff) >> 8 * (off & 3);
}

void lapic_mmio_write(struct lapic_set *s, unsigned cpu, uint32_t off, unsigned size, uint32_t val)
{
	struct lapic *l = &s->cpu[cpu];

	/* Only aligned 32-bit writes are defined (SDM 10.4.1). */
	if (!lapic_hw_on(l) || lapic_x2(l) || (off & 0xf) || size != 4)
		return;
	lapic_reg_write(l, off >> 4 & 0xff, val);
}

static bool lapic_base_write(struct lapic *l, uint64_t val)
{
	bool cold = false;

	if ((val & ~(uint64_t)(BASE_BSP | BASE_X2APIC | BASE_ENABLE)) != APIC_PAGE)
		return false;
	if ((val & BASE_X2APIC) && !(val & BASE_ENABLE))
		return false;
	pthread_mutex_lock(&l->lock);
	if ((lapic_x2(l) && (val & BASE_ENABLE) && !(val & BASE_X2APIC)) ||
	    (!lapic_hw_on(l) && (val & BASE_X2APIC))) {
		pthread_mutex_unlock(&l->lock);
		return false; /* SDM figure 10-27 */
	}
	cold = lapic_hw_on(l) && !(val & BASE_ENABLE);
	l->base = val;
	if (cold)
		lapic_regs_reset(l, false);
	else if (val & BASE_X2APIC) {
		l->id = l->index;
		l->ldr = (l->id >> 4) << 16 | 1u << (l->id & 15);
	}
	pthread_mutex_unlock(&l->lock);
	return true;
}
/* Which registers exist as MSRs, and how (SDM table 10-6). */
static bool lapic_msr_readable(unsigned reg)
{
	switch (reg) {
	case R_ID:
	case R_VERSION:
	case R_TPR:
	case R_PPR:
	case R_LDR:
	case R_SVR:
	case R_ISR ... R_IRR + 7:
	case R_ESR:
	case R_ICR:
	case R_LVT_TIMER ... R_TIMER_CUR:
	case R_TIMER_DIV:
		return true;
	default:
		return false;
	}
}

bool lapic_msr_read(struct lapic_set *s, unsigned cpu, uint32_t msr, uint64_t *val)
{
	struct lapic *l = &s->cpu[cpu];
	unsigned reg = msr - 0x800;

	if (msr == MSR_APIC_BASE) {
		*val = l->base;
		return true;
	}
	if (msr == MSR_TSC_DEADLINE) {
		pthread_mutex_lock(&l->lock);
		*val = l->tsc_deadline;
		pthread_mutex_unlock(&l->lock);
		return true;
	}
	if (reg > 0xff || !lapic_x2(l) || !lapic_msr_readable(reg))
		return false;
	*val = lapic_reg_read(l, reg);
	if (reg == R_ICR)
		*val |= (uint64_t)l->icr2 << 32;
	return true;
}

bool lapic_msr_write(struct lapic_set *s, unsigned cpu, uint32_t msr, uint64_t val)
{
	struct lapic *l = &s->cpu[cpu];
	unsigned reg = msr - 0x800;

	if (msr == MSR_APIC_BASE)
		return lapic_base_write(l, val);
	if (msr == MSR_TSC_DEADLINE) {
		lapic_tsc_deadline_write(l, val);
		return true;
	}
	if (reg > 0xff || !lapic_x2(l))
		return false;
	if (reg == R_ICR) {
		pthread_mutex_lock(&l->lock);
		l->icr = (uint32_t)val & 0xccfff;
		l->icr2 = (uint32_t)(val >> 32);
		pthread_mutex_unlock(&l->lock);
		lapic_send_ipi(l, (uint32_t)val, (uint32_t)(val >> 32), true);
		return true;
	}
	if (val >> 32)
		return false;
	switch (reg) {
	case R_EOI:
	case R_ESR:
		if (val)
			return false;
		break;
	case R_SELF_IPI:
		if (val >> 8)
			return false;
		lapic_send_ipi(l, (uint32_t)val | 1u << 18, 0, true);
		return true;
	case R_TPR:
		if (val >> 8)
			return false;
		break;
	case R_SVR:
		if (val & ~0x1ffull)
			return false;
		break;
	case R_LVT_TIMER ... R_LVT_ERROR:
		if (val & ~(uint64_t)(lvt_writable[reg - R_LVT_TIMER] | 0x5000))
			return false;
		break;
	case R_TIMER_INIT:
		break;
	case R_TIMER_DIV:
		if (val & ~0xbull)
			return false;
		break;
	default:
		return false;
	}
	lapic_reg_write(l, reg, (uint32_t)val);
	return true;
}

/* ---- device ---- */

static void lapic_dev_reset(struct device *d)
{
	struct lapic_set *s = container_of(d, struct lapic_set, dev);

	for (unsigned i = 0; i < s->n; i++) {
		struct lapic *l = &s->cpu[i];

		pthread_mutex_lock(&l->lock);
		lapic_regs_reset(l, true);
		pthread_mutex_unlock(&l->lock);
		vm_timer_stop(&l->timer);
	}
	atomic_store(&s->lowest_next, 0);
}

/* A LAPIC in the state stream: 64-bit words in this order, little-endian. New words go at the end.
 */
#define LAPIC_WORDS (15 + 24 + LVT_COUNT)

static void lapic_words(struct lapic *l, uint64_t w[LAPIC_WORDS], bool load)
{
	unsigned n = 0;

#define WORD(field) \
	do { \
		if (load) \
			(field) = (__typeof__(field))w[n]; \
		else \
			w[n] = (field); \
		n++; \
	} while (0)
	WORD(l->base);
	WORD(l->id);
	WORD(l->tpr);
	WORD(l->ldr);
	WORD(l->dfr);
	WORD(l->svr);
	WORD(l->esr);
	WORD(l->esr_latched);
	WORD(l->icr);
	WORD(l->icr2);
	WORD(l->timer_init);
	WORD(l->timer_div);
	WORD(l->timer_start_ns);
	WORD(l->timer_due_ns);
	WORD(l->tsc_deadline);
	for (unsigned i = 0; i < 8; i++) {
		WORD(l->isr[i]);
		WORD(l->tmr[i]);
		WORD(l->irr[i]);
	}
	for (unsigned i = 0; i < LVT_COUNT; i++)
		WORD(l->lvt[i]);
#undef WORD
}

static void lapic_dev_save(struct device *d, struct state_writer *w)
{
	struct lapic_set *s = container_of(d, struct lapic_set, dev);

	state_put_u64(w, 1, s->n);
	state_put_u64(w, 2, atomic_load(&s->lowest_next));
	for (unsigned i = 0; i < s->n; i++) {
		uint64_t words[LAPIC_WORDS] = { 0 };

		lapic_words(&s->cpu[i], words, false);
		state_put_bytes(w, (uint16_t)(0x100 + i), words, sizeof(words));
	}
}

static int lapic_dev_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct lapic_set *s = container_of(d, struct lapic_set, dev);

	if (state_get_u64_or(r, 1, 0) != s->n)
		return err_set(e, EINVAL, "state-mismatch",
			       "lapic: the state has %llu vCPUs, this machine %u",
			       (unsigned long long)state_get_u64_or(r, 1, 0), s->n);
	atomic_store(&s->lowest_next, (unsigned)state_get_u64_or(r, 2, 0));
	for (unsigned i = 0; i < s->n; i++) {
		struct lapic *l = &s->cpu[i];
		uint64_t words[LAPIC_WORDS] = { 0 };

		if (state_get_bytes(r, (uint16_t)(0x100 + i), words, sizeof(words)))
			return err_set(e, EBADMSG, "state-corrupt",
				       "lapic: vCPU %u is missing in the state", i);
		pthread_mutex_lock(&l->lock);
		lapic_words(l, words, true);
		l->base = (l->base & (BASE_ENABLE | BASE_X2APIC)) | APIC_PAGE | (i ? 0 : BASE_BSP);
		l->timer_div &= 0xb;
		for (unsigned k = 0; k < LVT_COUNT; k++)
			l->lvt[k] &= lvt_writable[k] | LVT_MASKED;
		pthread_mutex_unlock(&l->lock);
		lapic_timer_arm(l);
		lapic_wake(l);
	}
	return 0;
}

static void lapic_dev_destroy(struct device *d)
{
	struct lapic_set *s = container_of(d, struct lapic_set, dev);

	for (unsigned i = 0; i < s->n; i++) {
		vm_timer_stop(&s->cpu[i].timer);
		pthread_mutex_destroy(&s->cpu[i].lock);
	}
	free(s);
}

static const struct device_ops lapic_ops = {
	.name = "lapic",
	.version = 1,
	.reset = lapic_dev_reset,
	.save = lapic_dev_save,
	.load = lapic_dev_load,
	.destroy = lapic_dev_destroy,
};

struct lapic_set *lapic_set_new(struct vm *vm, unsigned ncpus,
				void (*eoi)(void *opaque, uint8_t vector), void *opaque,
				struct err *e)
{
	struct lapic_set *s = calloc(1, sizeof(*s) + ncpus * sizeof(s->cpu[0]));

	if (!s) {
		err_set(e, ENOMEM, "no-memory", "lapic: no memory for %u vCPUs", ncpus);
		return NULL;
	}
	s->vm = vm;
	s->n = ncpus;
	s->eoi = eoi;
	s->opaque = opaque;
	for (unsigned i = 0; i < ncpus; i++) {
		struct lapic *l = &s->cpu[i];

		l->set = s;
		l->index = i;
		pthread_mutex_init(&l->lock, NULL);
		vm_timer_init(vm, &l->timer, lapic_timer_fired, l);
		lapic_regs_reset(l, true);
	}
	vm_device_add(vm, &s->dev, &lapic_ops, "lapic");
	return s;
}
