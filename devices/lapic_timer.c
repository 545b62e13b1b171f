/* lapic_timer.c - a local APIC's timer: one-shot, periodic, TSC deadline (Intel SDM vol. 3, 10.5.4).
 *
 * The timer counts 1 GHz, as KVM's does; TSC deadlines are converted by accel->tsc_to_ns.
 * Arming needs the machine lock (vm_timer), so a vCPU thread first lets go of its LAPIC, then takes
 * the machine lock; the timer's callback checks the deadline again under the LAPIC's mutex, so a
 * late one of an older setting is harmless.
 * Trust: counts, divisors and deadlines are the guest's; a period below PERIOD_MIN_NS is stretched.
 */
#include "common/overflow.h"
#include "devices/lapic_impl.h"

static unsigned lapic_divisor(const struct lapic *l)
{
	unsigned d = (l->timer_div & 3) | (l->timer_div >> 1 & 4);

	return d == 7 ? 1 : 2u << d;
}

static uint64_t lapic_period_ns(const struct lapic *l)
{
	return (uint64_t)l->timer_init * lapic_divisor(l);
}

uint32_t lapic_timer_current(const struct lapic *l)
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
void lapic_timer_due(struct lapic *l, uint64_t now)
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
void lapic_timer_arm(struct lapic *l)
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
void lapic_timer_arm_locking(struct lapic *l)
{
	vm_lock(l->set->vm);
	lapic_timer_arm(l);
	vm_unlock(l->set->vm);
}

void lapic_timer_fired(void *arg)
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
void lapic_timer_init_write(struct lapic *l, uint32_t val)
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

void lapic_timer_div_write(struct lapic *l, uint32_t val)
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
void lapic_tsc_deadline_write(struct lapic *l, uint64_t val)
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
