/* lapic.c - local APIC: xAPIC page, x2APIC MSRs, timer, IPIs (Intel SDM vol. 3, chapter 10 and
 * 10.12).
 *
 * Locking: each LAPIC has its own mutex, a leaf: nothing is called with it held. The accelerator
 * calls in from vCPU threads without the machine lock, other chips with it. Arming the timer needs
 * the machine lock (vm_timer), so a vCPU thread first lets go of its LAPIC, then takes the machine
 * lock; the timer's callback checks the deadline again under the LAPIC's mutex, so a late one of an
 * older setting is harmless.
 * The timer counts 1 GHz, as KVM's does; TSC deadlines are converted by accel->tsc_to_ns.
 * Not modelled: SMI, remote read, relocation of the page, EOI-broadcast suppression, thermal and
 * performance interrupts (their LVT registers only store).
 * Trust: registers and messages come from the guest; reserved bits are masked, bad MSR values
 * answer false (#GP), vectors below 16 set the error status register.
 */
#include "devices/lapic.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"
#include "common/units.h"
#include "hypervisor-core/vm.h"

/* register numbers: MMIO offset >> 4, MSR - 0x800 */
enum {
	R_ID = 0x02,
	R_VERSION = 0x03,
	R_TPR = 0x08,
	R_APR = 0x09,
	R_PPR = 0x0a,
	R_EOI = 0x0b,
	R_LDR = 0x0d,
	R_DFR = 0x0e,
	R_SVR = 0x0f,
	R_ISR = 0x10,
	R_TMR = 0x18,
	R_IRR = 0x20,
	R_ESR = 0x28,
	R_ICR = 0x30,
	R_ICR2 = 0x31,
	R_LVT_TIMER = 0x32,
	R_LVT_ERROR = 0x37,
	R_TIMER_INIT = 0x38,
	R_TIMER_CUR = 0x39,
	R_TIMER_DIV = 0x3e,
	R_SELF_IPI = 0x3f,
};
enum { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };
enum { DM_FIXED, DM_LOWEST, DM_SMI, DM_REMRD, DM_NMI, DM_INIT, DM_SIPI, DM_EXTINT };

#define MSR_APIC_BASE	 0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define APIC_PAGE	 0xfee00000u
#define BASE_BSP	 (1u << 8)
#define BASE_X2APIC	 (1u << 10)
#define BASE_ENABLE	 (1u << 11)
#define SVR_ENABLE	 (1u << 8)
#define LVT_MASKED	 (1u << 16)
#define LVT_MODE(v)	 ((v) >> 17 & 3) /* timer: 0 one-shot, 1 periodic, 2 TSC deadline */
#define APIC_VERSION	 (0x14u | (LVT_COUNT - 1) << 16)
#define ESR_SEND_ILLEGAL (1u << 5)
#define ESR_RECV_ILLEGAL (1u << 6)
#define ESR_REGISTER	 (1u << 7)
/* A guest may ask for a 1 ns period; the host timer goes no faster than this. */
#define PERIOD_MIN_NS (100 * NS_PER_US)

static const uint32_t lvt_writable[LVT_COUNT] = {
	[LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
	[LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,	[LVT_ERROR] = 0x100ff,
};

struct lapic {
	struct lapic_set *set;
	unsigned index;
	pthread_mutex_t lock;
	uint64_t base; /* MSR 0x1b */
	uint32_t id;   /* 8 bits in xAPIC mode */
	uint32_t tpr, ldr, dfr, svr, esr, esr_latched, icr, icr2;
	uint32_t isr[8], tmr[8], irr[8];
	uint32_t lvt[LVT_COUNT];
	uint32_t timer_init, timer_div;
	uint64_t timer_start_ns, timer_due_ns; /* due 0 = not armed */
	uint64_t tsc_deadline;
	struct vm_timer timer;
};

struct lapic_set {
	struct device dev;
	struct vm *vm;
	unsigned n;
	void (*eoi)(void *opaque, uint8_t vector);
	void *opaque;
	_Atomic unsigned lowest_next; /* rotates among equals */
	struct lapic cpu[];
};

static bool lapic_hw_on(const struct lapic *l)
{
	return l->base & BASE_ENABLE;
}

static bool lapic_x2(const struct lapic *l)
{
	return l->base & BASE_X2APIC;
}

static int lapic_highest(const uint32_t *bits)
{
	for (int i = 7; i >= 0; i--)
		if (bits[i])
			return i * 32 + 31 - __builtin_clz(bits[i]);
	return -1;
}

static void lapic_bit_set(uint32_t *bits, unsigned v)
{
	bits[v >> 5] |= 1u << (v & 31);
}

static void lapic_bit_clear(uint32_t *bits, unsigned v)
{
	bits[v >> 5] &= ~(1u << (v & 31));
}

static bool lapic_bit(const uint32_t *bits, unsigned v)
{
	return bits[v >> 5] >> (v & 31) & 1;
}

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

static void lapic_wake(struct lapic *l)
{
	struct vm *vm = l->set->vm;

	if (vm->accel->vcpu_interrupt && l->index < vm->nvcpus)
		vm->accel->vcpu_interrupt(vm->vcpus[l->index]);
}

static void lapic_error(struct lapic *l, uint32_t bit)
{
	uint32_t lvt = l->lvt[LVT_ERROR];

	l->esr_latched |= bit;
	if (!(lvt & LVT_MASKED) && (l->svr & SVR_ENABLE) && (lvt & 0xff) >= 16) {
		lapic_bit_set(l->irr, lvt & 0xff);
		lapic_bit_clear(l->tmr, lvt & 0xff);
	}
}

/* lapic_accept() - a fixed interrupt arrives; @l locked. True where the vCPU should look. */
static bool lapic_accept(struct lapic *l, uint8_t vector, bool level)
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

/* ---- timer ---- */

static unsigned lapic_divisor(const struct lapic *l)
{
	unsigned d = (l->timer_div & 3) | (l->timer_div >> 1 & 4);

	return d == 7 ? 1 : 2u << d;
}

static uint64_t lapic_period_ns(const struct lapic *l)
{
	return (uint64_t)l->timer_init * lapic_divisor(l);
}

static uint32_t lapic_timer_current(const struct lapic *l)
{
	uint64_t period = lapic_period_ns(l), past;

	if (!period || LVT_MODE(l->lvt[LVT_TIMER]) == 2)
		return 0;
	past = vm_now_ns(l->set->vm) - l->timer_start_ns;
	if (LVT_MODE(l->lvt[LVT_TIMER]) == 1)
		past %= period;
	else if (past >= period)
		return 0;
	return (uint32_t)((period - past + lapic_divisor(l) - 1) / lapic_divisor(l));
}

/* lapic_timer_due() - recompute the deadline from the registers; @l locked. */
static void lapic_timer_due(struct lapic *l, uint64_t now)
{
	unsigned mode = LVT_MODE(l->lvt[LVT_TIMER]);
	struct vm *vm = l->set->vm;

	l->timer_due_ns = 0;
	if (mode == 2) {
		if (l->tsc_deadline) {
			l->timer_due_ns =
			    vm->accel->tsc_to_ns && l->index < vm->nvcpus
				? vm->accel->tsc_to_ns(vm->vcpus[l->index], l->tsc_deadline)
				: l->tsc_deadline;
			if (!l->timer_due_ns)
				l->timer_due_ns = 1;
		}
	} else if (l->timer_init) {
		uint64_t period = lapic_period_ns(l);

		if (mode == 1)
			period = MAX(period, PERIOD_MIN_NS);
		l->timer_due_ns = l->timer_start_ns + period;
		if (mode == 1 && l->timer_due_ns <= now)
			l->timer_due_ns = now + period;
		else if (mode == 0 && l->timer_due_ns <= now)
			l->timer_due_ns = 0; /* has run out already */
	}
}

/* Machine lock held, @l not locked. */
static void lapic_timer_arm(struct lapic *l)
{
	uint64_t due;

	pthread_mutex_lock(&l->lock);
	due = l->timer_due_ns;
	pthread_mutex_unlock(&l->lock);
	if (due)
		vm_timer_set(&l->timer, due);
	else
		vm_timer_stop(&l->timer);
}

/* From a vCPU thread, no lock held. */
static void lapic_timer_arm_locking(struct lapic *l)
{
	vm_lock(l->set->vm);
	lapic_timer_arm(l);
	vm_unlock(l->set->vm);
}

static void lapic_timer_fired(void *arg)
{
	struct lapic *l = arg;
	uint64_t now = vm_now_ns(l->set->vm);
	bool wake = false;

	pthread_mutex_lock(&l->lock);
	if (l->timer_due_ns && now >= l->timer_due_ns) {
		uint32_t lvt = l->lvt[LVT_TIMER];

		if (!(lvt & LVT_MASKED))
			wake = lapic_accept(l, lvt & 0xff, false);
		switch (LVT_MODE(lvt)) {
		case 1: {
			uint64_t period = MAX(lapic_period_ns(l), PERIOD_MIN_NS);

			l->timer_due_ns += period;
			if (l->timer_due_ns <= now) /* late by whole periods: those are lost */
				l->timer_due_ns = now + period - (now - l->timer_due_ns) % period;
			break;
		}
		case 2:
			l->tsc_deadline = 0;
			l->timer_due_ns = 0;
			break;
		default:
			l->timer_due_ns = 0;
			break;
		}
	}
	pthread_mutex_unlock(&l->lock);
	lapic_timer_arm(l);
	if (wake)
		lapic_wake(l);
}

/* ---- reset ---- */

/* INIT or power-on; @l locked. @cold: the enable bits too. */
static void lapic_regs_reset(struct lapic *l, bool cold)
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

/* ---- delivery ---- */

static bool lapic_matches(const struct lapic *l, uint32_t dest, bool logical, bool x2_sender)
{
	bool broadcast = x2_sender ? dest == 0xffffffff : dest == 0xff;

	if (!lapic_hw_on(l))
		return false;
	if (broadcast)
		return true;
	if (!logical)
		return dest == l->id;
	if (lapic_x2(l))
		return dest >> 16 == l->ldr >> 16 && (dest & l->ldr & 0xffff);
	if (l->dfr >> 28 == 0xf)
		return l->ldr >> 24 & dest;
	return (l->ldr >> 28) == (dest >> 4 & 0xf) && (l->ldr >> 24 & dest & 0xf);
}

static void lapic_deliver_one(struct lapic *l, unsigned mode, uint8_t vector, bool level)
{
	struct vm *vm = l->set->vm;
	struct vcpu *v = l->index < vm->nvcpus ? vm->vcpus[l->index] : NULL;
	bool wake = false;

	switch (mode) {
	case DM_FIXED:
	case DM_LOWEST:
		pthread_mutex_lock(&l->lock);
		wake = lapic_accept(l, vector, level);
		pthread_mutex_unlock(&l->lock);
		if (wake)
			lapic_wake(l);
		break;
	case DM_NMI:
		if (v && vm->accel->vcpu_nmi)
			vm->accel->vcpu_nmi(v);
		break;
	case DM_INIT:
		/* A pending timer deadline is dropped by the callback's own check. */
		pthread_mutex_lock(&l->lock);
		lapic_regs_reset(l, false);
		pthread_mutex_unlock(&l->lock);
		if (v && vm->accel->vcpu_init_sipi)
			vm->accel->vcpu_init_sipi(v, -1);
		break;
	case DM_SIPI:
		if (v && vm->accel->vcpu_init_sipi)
			vm->accel->vcpu_init_sipi(v, vector);
		break;
	default: /* SMI, remote read; ExtINT by message: the 8259 answers at LINT0 only */
		break;
	}
}

/* lapic_deliver() - to every LAPIC that matches. @except: index left out, or -1. No LAPIC lock
 * held. */
static void lapic_deliver(struct lapic_set *s, uint32_t dest, bool logical, bool x2, unsigned mode,
			  uint8_t vector, bool level, int except)
{
	unsigned first = mode == DM_LOWEST ? atomic_fetch_add(&s->lowest_next, 1) % s->n : 0;

	for (unsigned i = 0; i < s->n; i++) {
		struct lapic *l = &s->cpu[(first + i) % s->n];
		bool match;

		if ((int)l->index == except)
			continue;
		pthread_mutex_lock(&l->lock);
		match = lapic_matches(l, dest, logical, x2);
		if (mode == DM_LOWEST && !(l->svr & SVR_ENABLE))
			match = false;
		pthread_mutex_unlock(&l->lock);
		if (!match)
			continue;
		lapic_deliver_one(l, mode, vector, level);
		if (mode == DM_LOWEST)
			return;
	}
}

void lapic_msi(struct lapic_set *s, uint64_t addr, uint32_t data)
{
	unsigned mode = data >> 8 & 7;

	if ((addr & 0xfff00000) != APIC_PAGE)
		return;
	if (mode == DM_SIPI || mode == DM_REMRD)
		return; /* not allowed in a message */
	lapic_deliver(s, addr >> 12 & 0xff, addr >> 2 & 1, false, mode, (uint8_t)data,
		      data >> 15 & 1, -1);
}

/* ICR written; @l not locked. */
static void lapic_send_ipi(struct lapic *l, uint32_t icr, uint32_t dest, bool x2)
{
	unsigned mode = icr >> 8 & 7, shorthand = icr >> 18 & 3;
	uint8_t vector = (uint8_t)icr;
	bool level = icr >> 15 & 1, assert = icr >> 14 & 1;
	bool logical = icr >> 11 & 1;

	if ((mode == DM_FIXED || mode == DM_LOWEST) && vector < 16) {
		pthread_mutex_lock(&l->lock);
		lapic_error(l, ESR_SEND_ILLEGAL);
		pthread_mutex_unlock(&l->lock);
		lapic_wake(l);
		return;
	}
	if (mode == DM_INIT && level && !assert)
		return; /* INIT level de-assert: arbitration ids only */
	switch (shorthand) {
	case 0:
		lapic_deliver(l->set, dest, logical, x2, mode, vector, false, -1);
		break;
	case 1:
		if (mode == DM_FIXED)
			lapic_deliver_one(l, mode, vector, false);
		break;
	default: /* all including self, all but self */
		lapic_deliver(l->set, 0xffffffff, false, true, mode, vector, false,
			      shorthand == 3 || mode == DM_INIT || mode == DM_SIPI ? (int)l->index
										   : -1);
		break;
	}
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

static void lapic_timer_init_write(struct lapic *l, uint32_t val)
{
	bool arm;

	pthread_mutex_lock(&l->lock);
	arm = LVT_MODE(l->lvt[LVT_TIMER]) != 2;
	if (arm) {
		uint64_t now = vm_now_ns(l->set->vm);

		l->timer_init = val;
		l->timer_start_ns = now;
		lapic_timer_due(l, now);
	}
	pthread_mutex_unlock(&l->lock);
	if (arm)
		lapic_timer_arm_locking(l);
}

static void lapic_timer_div_write(struct lapic *l, uint32_t val)
{
	bool arm;

	pthread_mutex_lock(&l->lock);
	/* What is left of the count goes on at the new rate. */
	arm = l->timer_due_ns && LVT_MODE(l->lvt[LVT_TIMER]) != 2 && l->timer_div != (val & 0xb);
	if (arm) {
		uint64_t now = vm_now_ns(l->set->vm);
		uint32_t left = lapic_timer_current(l);

		l->timer_div = val & 0xb;
		l->timer_start_ns = now - (uint64_t)(l->timer_init - left) * lapic_divisor(l);
		lapic_timer_due(l, now);
	}
	l->timer_div = val & 0xb;
	pthread_mutex_unlock(&l->lock);
	if (arm)
		lapic_timer_arm_locking(l);
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

static void lapic_tsc_deadline_write(struct lapic *l, uint64_t val)
{
	bool arm;

	pthread_mutex_lock(&l->lock);
	arm = LVT_MODE(l->lvt[LVT_TIMER]) == 2;
	if (arm) {
		l->tsc_deadline = val;
		lapic_timer_due(l, 0);
	}
	pthread_mutex_unlock(&l->lock);
	if (arm)
		lapic_timer_arm_locking(l);
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
		uint64_t words[LAPIC_WORDS];

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
		uint64_t words[LAPIC_WORDS];

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
