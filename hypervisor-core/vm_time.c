/* vm_time.c - the guest's time as devices see it, and timers on it.
 *
 * One timerfd a VM, watched by the main loop; armed timers sit in a list sorted by deadline. A vCPU
 * thread that programs a chip re-arms the timerfd itself (timerfd_settime is safe from any thread,
 * the loop's own timers are not). The timerfd is moved only when a deadline comes nearer; one that
 * moved away costs a wakeup that finds nothing due.
 * The clock stands still while the VM is paused, so that a long pause is no burst of ticks
 * afterwards.
 * Under icount the accelerator owns time: it asks vm_timers_next_ns() and calls vm_timers_run()
 * itself.
 */
#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/log.h"
#include "common/units.h"
#include "hypervisor-core/vm_impl.h"

#define VM_TIMERS_A_ROUND 1024 /* a timer that re-arms itself in the past must not hold the loop */

struct vm_timers {
	struct list armed;     /* struct vm_timer, soonest first; machine lock */
	uint64_t armed_for_ns; /* what the timerfd waits for, guest time; 0 = nothing */
	int fd;
	struct loop_fd watch;
};

static bool vm_time_is_virtual(const struct vm *vm)
{
	return vm->accel_cfg.icount && vm->accel->now_ns;
}

uint64_t vm_now_ns(struct vm *vm)
{
	if (vm_time_is_virtual(vm))
		return vm->accel->now_ns(vm);
	uint64_t frozen = atomic_load(&vm->run->frozen_ns);
	if (frozen)
		return frozen;
	return clock_mono_ns() + (uint64_t)atomic_load(&vm->run->offset_ns);
}

void vm_time_freeze(struct vm *vm)
{
	struct vm_run *run = vm->run;

	if (!atomic_load(&run->frozen_ns))
		atomic_store(&run->frozen_ns,
			     clock_mono_ns() + (uint64_t)atomic_load(&run->offset_ns));
	run->guest_clock_known =
	    vm->accel->clock_get && vm->accel->clock_get(vm, &run->guest_clock_ns) == 0;
}

void vm_time_thaw(struct vm *vm)
{
	struct vm_run *run = vm->run;
	uint64_t frozen = atomic_load(&run->frozen_ns);

	if (frozen) {
		atomic_store(&run->offset_ns, (int64_t)(frozen - clock_mono_ns()));
		atomic_store(&run->frozen_ns, 0);
	}
	if (run->guest_clock_known && vm->accel->clock_set) {
		int ret = vm->accel->clock_set(vm, run->guest_clock_ns);

		if (ret < 0)
			log_warn("guest clock not restored: %s", strerror(-ret));
	}
	run->guest_clock_known = false;
}

/* vm_timers_arm() - machine lock held: make the timerfd fire no later than the soonest deadline. */
static void vm_timers_arm(struct vm *vm)
{
	struct vm_timers *ts = vm->timers;
	const struct vm_timer *first = list_first(&ts->armed, struct vm_timer, node);

	if (!first || (ts->armed_for_ns && ts->armed_for_ns <= first->deadline_ns))
		return;
	if (vm_time_is_virtual(vm)) {
		/* Its loop may be idle until a deadline further away. */
		if (vm->nvcpus)
			vm->accel->vcpu_kick(vm->vcpus[0]);
		return;
	}
	if (atomic_load(&vm->run->frozen_ns))
		return; /* vm_start() arms */
	uint64_t host = first->deadline_ns - (uint64_t)atomic_load(&vm->run->offset_ns);
	if (host == 0 || host > INT64_MAX)
		host = 1; /* passed before this host was up: at once */
	struct itimerspec its = {
		.it_value = { (time_t)(host / NS_PER_S), (long)(host % NS_PER_S) },
	};
	if (timerfd_settime(ts->fd, TFD_TIMER_ABSTIME, &its, NULL) < 0)
		log_error("timerfd_settime: %s", strerror(errno));
	ts->armed_for_ns = first->deadline_ns;
}

void vm_timers_rearm(struct vm *vm)
{
	vm->timers->armed_for_ns = 0;
	vm_timers_arm(vm);
}

static void vm_timers_due(struct vm *vm, uint64_t now_ns)
{
	struct vm_timers *ts = vm->timers;

	for (unsigned i = 0; i < VM_TIMERS_A_ROUND; i++) {
		struct vm_timer *t = list_first(&ts->armed, struct vm_timer, node);

		if (!t || t->deadline_ns > now_ns)
			return;
		list_del(&t->node);
		t->deadline_ns = 0;
		t->fn(t->arg);
	}
}

static void vm_timers_fired(void *arg, int fd, uint32_t events)
{
	struct vm *vm = arg;
	uint64_t count;

	if (read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("timerfd: %s", strerror(errno));
	vm_lock(vm);
	vm->timers->armed_for_ns = 0;
	vm_timers_due(vm, vm_now_ns(vm));
	vm_timers_arm(vm);
	vm_unlock(vm);
}

int vm_timers_init(struct vm *vm, struct err *e)
{
	struct vm_timers *ts = calloc(1, sizeof(*ts));
	int ret = 0;

	if (!ts)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for its timers",
			       vm->name);
	list_init(&ts->armed);
	ts->watch.fd = -1;
	ts->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	vm->timers = ts;
	if (ts->fd < 0)
		return err_set(e, errno, "no-timerfd", "guest %s: cannot make a timerfd: %s",
			       vm->name, strerror(errno));
	if (vm->loop)
		ret = loop_fd_add(vm->loop, &ts->watch, ts->fd, EPOLLIN, vm_timers_fired, vm);
	if (ret < 0)
		return err_set(e, -ret, "no-epoll", "guest %s: cannot watch a timerfd: %s",
			       vm->name, strerror(-ret));
	return 0;
}

void vm_timers_fini(struct vm *vm)
{
	struct vm_timers *ts = vm->timers;

	if (!ts)
		return;
	loop_fd_del(&ts->watch);
	if (ts->fd >= 0)
		close(ts->fd);
	free(ts);
	vm->timers = NULL;
}

void vm_timer_init(struct vm *vm, struct vm_timer *t, void (*fn)(void *arg), void *arg)
{
	*t = (struct vm_timer){ .vm = vm, .fn = fn, .arg = arg };
	list_init(&t->node);
}

void vm_timer_set(struct vm_timer *t, uint64_t deadline_ns)
{
	struct vm_timers *ts = t->vm->timers;
	struct list *after;

	list_del(&t->node);
	t->deadline_ns = deadline_ns;
	if (!deadline_ns)
		return;
	/* from the end: most deadlines are later than what is there; equal ones keep their order */
	for (after = ts->armed.prev; after != &ts->armed; after = after->prev)
		if (container_of(after, struct vm_timer, node)->deadline_ns <= deadline_ns)
			break;
	list_add_head(after, &t->node);
	if (ts->armed.next == &t->node)
		vm_timers_arm(t->vm);
}

void vm_timer_stop(struct vm_timer *t)
{
	list_del(&t->node);
	t->deadline_ns = 0;
}

uint64_t vm_timers_next_ns(struct vm *vm)
{
	bool took = pthread_mutex_lock(&vm->lock) == 0; /* EDEADLK: the caller holds it */
	const struct vm_timer *first = list_first(&vm->timers->armed, struct vm_timer, node);
	uint64_t next = first ? first->deadline_ns : 0;

	if (took)
		vm_unlock(vm);
	return next;
}

void vm_timers_run(struct vm *vm, uint64_t now_ns)
{
	bool took = pthread_mutex_lock(&vm->lock) == 0;

	vm_timers_due(vm, now_ns);
	if (took)
		vm_unlock(vm);
}
