/* lapic_ipi.c - interrupt messages between local APICs: who is meant, and what each mode does there
 * (Intel SDM vol. 3, 10.6, 10.11, 10.12.9).
 *
 * Threading: any thread; no LAPIC's mutex held by the caller. Each target is locked by itself, so
 * two CPUs that send to each other cannot deadlock.
 * Trust: destination, mode and vector are the guest's: reserved modes are dropped, vectors below 16
 * set the sender's or the receiver's error status register.
 */
#include "devices/lapic_impl.h"

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
void lapic_send_ipi(struct lapic *l, uint32_t icr, uint32_t dest, bool x2)
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
