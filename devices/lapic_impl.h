/* lapic_impl.h - what lapic.c, lapic_timer.c and lapic_ipi.c share of a local APIC, and nobody else
 * sees.
 *
 * Locking is told in lapic.c. Here "@l locked" means its own mutex, "machine lock" means vm_lock().
 */
#ifndef DEVICES_LAPIC_IMPL_H
#define DEVICES_LAPIC_IMPL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/units.h"
#include "devices/lapic.h"
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

static inline bool lapic_hw_on(const struct lapic *l)
{
	return l->base & BASE_ENABLE;
}

static inline bool lapic_x2(const struct lapic *l)
{
	return l->base & BASE_X2APIC;
}

static inline int lapic_highest(const uint32_t *bits)
{
	for (int i = 7; i >= 0; i--)
		if (bits[i])
			return i * 32 + 31 - __builtin_clz(bits[i]);
	return -1;
}

static inline void lapic_bit_set(uint32_t *bits, unsigned v)
{
	bits[v >> 5] |= 1u << (v & 31);
}

static inline void lapic_bit_clear(uint32_t *bits, unsigned v)
{
	bits[v >> 5] &= ~(1u << (v & 31));
}

static inline bool lapic_bit(const uint32_t *bits, unsigned v)
{
	return bits[v >> 5] >> (v & 31) & 1;
}

/* lapic.c */
void lapic_wake(struct lapic *l);		 /* the vCPU should look at its controllers again */
void lapic_error(struct lapic *l, uint32_t bit); /* @l locked */
/* lapic_accept() - a fixed interrupt arrives; @l locked. True where the vCPU should look. */
bool lapic_accept(struct lapic *l, uint8_t vector, bool level);
/* lapic_regs_reset() - INIT or power-on; @l locked. @cold: the enable bits too. */
void lapic_regs_reset(struct lapic *l, bool cold);

/* lapic_timer.c */
uint32_t lapic_timer_current(const struct lapic *l); /* @l locked */
void lapic_timer_due(struct lapic *l, uint64_t now); /* deadline from the registers; @l locked */
void lapic_timer_arm(struct lapic *l);		     /* machine lock held, @l not locked */
void lapic_timer_arm_locking(struct lapic *l);	     /* from a vCPU thread, no lock held */
void lapic_timer_fired(void *arg);		     /* the vm_timer's callback */
void lapic_timer_init_write(struct lapic *l, uint32_t val);
void lapic_timer_div_write(struct lapic *l, uint32_t val);
void lapic_tsc_deadline_write(struct lapic *l, uint64_t val);

/* lapic_ipi.c: ICR written; @l not locked */
void lapic_send_ipi(struct lapic *l, uint32_t icr, uint32_t dest, bool x2);

#endif
