/* vm_vcpu.c - vCPU threads, pause and start, events to the main loop.
 *
 * States: BUILT -start-> RUNNING -pause-> PAUSING -last vCPU parks-> PAUSED -start-> RUNNING;
 * any -free-> STOPPED. A thread parks by waiting on run_cond until the state is RUNNING again, so a
 * start right after a pause, or a pause right after a start, needs no handshake: `parked` counts
 * who sits in that wait, and PAUSED is reached when all do.
 * A kick sets a request bit first and then pokes the accelerator; vcpu_run() looks at the bits
 * after it has made itself pokeable. So no order of events loses a wakeup (see kvm_vcpu.c, soft).
 * Reports go through one eventfd on the main loop: it cannot fail for want of memory, and it may be
 * signalled under any lock. One callback runs a round, since a callback may free the VM.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/log.h"
#include "hypervisor-core/vm_impl.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define VCPU_STACK_BYTES (1024 * 1024) /* instrumented frames are many times larger */
#else
#define VCPU_STACK_BYTES \
	(96 * 1024) /* 64 KiB to use, beside thread-local data and signal frames (AVX-512) */
#endif

static void vm_wake(struct vm_run *run)
{
	uint64_t one = 1;

	if (write(run->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_error("cannot wake the main loop: %s", strerror(errno));
}

/* vm_on_wake() - main loop: hand out one event or one pause report. */
static void vm_on_wake(void *arg, int fd, uint32_t events)
{
	struct vm *vm = arg;
	struct vm_run *run = vm->run;
	struct vm_queued_event ev;
	struct vm_waiter w = { NULL, NULL };
	bool have_event = false, more;
	uint64_t count;

	if (read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("wake-up eventfd: %s", strerror(errno));
	pthread_mutex_lock(&vm->run_lock);
	if (run->nevents) {
		ev = run->event[0];
		memmove(run->event, run->event + 1, --run->nevents * sizeof(run->event[0]));
		have_event = true;
	} else if (run->nwaiters && vm->run_state != VM_PAUSING) {
		w = run->waiter[0];
		memmove(run->waiter, run->waiter + 1, --run->nwaiters * sizeof(run->waiter[0]));
	}
	more = run->nevents || (run->nwaiters && vm->run_state != VM_PAUSING);
	if (more)
		vm_wake(run);
	pthread_mutex_unlock(&vm->run_lock);
	if (have_event && vm->on_event)
		vm->on_event(vm->on_event_arg, ev.ev, ev.text);
	else if (w.done)
		w.done(w.arg);
}

int vm_run_init(struct vm *vm, struct err *e)
{
	struct vm_run *run = calloc(1, sizeof(*run));

	if (!run)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for its run state",
			       vm->name);
	run->wake.fd = -1;
	run->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vm->run = run;
	if (run->wake_fd < 0)
		return err_set(e, errno, "no-eventfd", "guest %s: cannot make an eventfd: %s",
			       vm->name, strerror(errno));
	if (vm->loop) {
		int ret = loop_fd_add(vm->loop, &run->wake, run->wake_fd, EPOLLIN, vm_on_wake, vm);

		if (ret < 0)
			return err_set(e, -ret, "no-epoll", "guest %s: cannot watch an eventfd: %s",
				       vm->name, strerror(-ret));
	}
	return 0;
}

void vm_run_fini(struct vm *vm)
{
	struct vm_run *run = vm->run;

	if (!run)
		return;
	loop_fd_del(&run->wake);
	if (run->wake_fd >= 0)
		close(run->wake_fd);
	free(run);
	vm->run = NULL;
}

/* vm_check_parked() - run_lock held: the last vCPU to park completes a pause. */
static void vm_check_parked(struct vm *vm)
{
	if (vm->run_state != VM_PAUSING || vm->parked < vm->run->nthreads)
		return;
	vm->run_state = VM_PAUSED;
	vm_time_freeze(vm);
	vm_wake(vm->run);
}

void vm_kick(struct vcpu *v, enum vcpu_request why)
{
	atomic_fetch_or(&v->requests, why);
	v->vm->accel->vcpu_kick(v);
}

/* vm_ask_park() - run_lock held. */
static void vm_ask_park(struct vm *vm)
{
	if (vm->run_state != VM_RUNNING)
		return;
	vm->run_state = VM_PAUSING;
	vm_check_parked(vm);
	if (vm->run_state == VM_PAUSING)
		for (unsigned i = 0; i < vm->nvcpus; i++)
			vm_kick(vm->vcpus[i], VCPU_REQ_PARK);
}

void vm_pause(struct vm *vm, void (*done)(void *arg), void *arg)
{
	struct vm_run *run = vm->run;

	pthread_mutex_lock(&vm->run_lock);
	if (done) {
		if (run->nwaiters == VM_WAITERS_MAX)
			abort(); /* our own code asked 32 times and never ran the loop */
		run->waiter[run->nwaiters++] = (struct vm_waiter){ done, arg };
	}
	vm_ask_park(vm);
	if (vm->run_state != VM_PAUSING)
		vm_wake(run);
	pthread_mutex_unlock(&vm->run_lock);
}

static bool vm_event_parks(enum vm_event ev)
{
	switch (ev) {
	case VM_EVENT_POWEROFF:
	case VM_EVENT_REBOOT:
	case VM_EVENT_TRIPLE_FAULT:
	case VM_EVENT_ACCEL_FAILED:
	case VM_EVENT_IO_ERROR:
		return true;
	case VM_EVENT_PANIC: /* the guest may still dump or reboot itself */
	case VM_EVENT_WATCHDOG:
		break;
	}
	return false;
}

void vm_event(struct vm *vm, enum vm_event ev, const char *fmt, ...)
{
	struct vm_run *run = vm->run;
	bool queued = false;
	char text[VM_EVENT_TEXT];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&vm->run_lock);
	for (unsigned i = 0; i < run->nevents; i++)
		queued |= run->event[i].ev == ev;
	if (!queued && run->nevents < VM_EVENTS_MAX) {
		run->event[run->nevents].ev = ev;
		memcpy(run->event[run->nevents++].text, text, sizeof(text));
	}
	if (vm_event_parks(ev))
		vm_ask_park(vm);
	vm_wake(run);
	pthread_mutex_unlock(&vm->run_lock);
}

/* vcpu_wait_runnable() - park until the VM runs. Return: false where the thread must end. */
static bool vcpu_wait_runnable(struct vcpu *v)
{
	struct vm *vm = v->vm;

	pthread_mutex_lock(&vm->run_lock);
	while (vm->run_state != VM_RUNNING && !vm->run->exiting) {
		if (!v->parked) {
			v->parked = true;
			vm->parked++;
			vm_check_parked(vm);
		}
		pthread_cond_wait(&vm->run_cond, &vm->run_lock);
	}
	if (v->parked) {
		v->parked = false;
		vm->parked--;
	}
	bool run = !vm->run->exiting;
	if (run) {
		/* The request is met: a later one comes with a new PAUSING under this lock. */
		atomic_fetch_and(&v->requests, ~(unsigned)(VCPU_REQ_PARK | VCPU_REQ_CALL));
		if (vm->run->one_thread)
			for (unsigned i = 0; i < vm->nvcpus; i++)
				atomic_fetch_and(&vm->vcpus[i]->requests,
						 ~(unsigned)(VCPU_REQ_PARK | VCPU_REQ_CALL));
	}
	pthread_mutex_unlock(&vm->run_lock);
	return run;
}

static void vcpu_report(struct vcpu *v, enum vcpu_exit why)
{
	switch (why) {
	case VCPU_EXIT_KICKED:
		break;
	case VCPU_EXIT_SHUTDOWN:
		vm_event(v->vm, VM_EVENT_TRIPLE_FAULT, "vCPU %u: triple fault", v->index);
		break;
	case VCPU_EXIT_FAILED:
		vm_event(v->vm, VM_EVENT_ACCEL_FAILED, "vCPU %u: %s", v->index,
			 err_is_set(&v->exit_err) ? v->exit_err.detail : "the accelerator stopped");
		break;
	case VCPU_EXIT_DEBUG:
		vm_event(v->vm, VM_EVENT_ACCEL_FAILED,
			 "vCPU %u: a debug stop that nobody asked for", v->index);
		break;
	}
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;
	struct vm *vm = v->vm;
	char name[16];

	snprintf(name, sizeof(name), "vcpu%u", v->index);
	prctl(PR_SET_NAME, name, 0, 0, 0);
	atomic_store(&v->tid, (int)syscall(SYS_gettid));
	if (vm->on_vcpu_thread)
		vm->on_vcpu_thread(vm);
	while (vcpu_wait_runnable(v)) {
		struct vcpu *which = v;
		enum vcpu_exit why =
		    vm->run->one_thread ? vm->accel->run_all(vm, &which) : vm->accel->vcpu_run(v);

		vcpu_report(which ? which : v, why);
	}
	atomic_store(&v->tid, 0);
	return NULL;
}

/* vm_make_threads() - first start only; they wait until the state is RUNNING. */
static int vm_make_threads(struct vm *vm, struct err *e)
{
	struct vm_run *run = vm->run;
	pthread_attr_t attr;
	sigset_t all, before;
	int ret = 0;

	/* Signals are the main thread's, but for those that a thread raises itself. */
	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	sigdelset(&all, SIGTRAP);
	sigdelset(&all, SIGSYS);
	sigdelset(&all, SIGABRT);
	run->one_thread = vm->accel->runs_all && vm->accel->run_all && vm->accel->runs_all(vm);
	unsigned want = run->one_thread ? 1 : vm->nvcpus;
	pthread_sigmask(SIG_BLOCK, &all, &before);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, VCPU_STACK_BYTES);
	for (unsigned i = 0; i < want && !ret; i++) {
		struct vcpu *v = vm->vcpus[i];

		if (v->thread_started)
			continue;
		ret = pthread_create(&v->thread, &attr, vcpu_thread, v);
		if (!ret) {
			v->thread_started = true;
			pthread_mutex_lock(&vm->run_lock);
			run->nthreads++;
			pthread_mutex_unlock(&vm->run_lock);
		}
	}
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (ret)
		return err_set(e, ret, "no-thread", "guest %s: cannot start a vCPU thread: %s",
			       vm->name, strerror(ret));
	return 0;
}

int vm_start(struct vm *vm, struct err *e)
{
	int ret = 0;

	pthread_mutex_lock(&vm->run_lock);
	enum vm_run_state state = vm->run_state;
	pthread_mutex_unlock(&vm->run_lock);
	if (state == VM_RUNNING)
		return 0;
	if (state == VM_PAUSING)
		return err_set(e, EBUSY, "guest-pausing", "guest %s: still pausing", vm->name);
	if (state == VM_STOPPED)
		return err_set(e, ESHUTDOWN, "guest-stopped", "guest %s: stopped for good",
			       vm->name);
	if (state == VM_BUILT)
		ret = vm_make_threads(vm, e);
	if (ret < 0)
		return ret;
	pthread_mutex_lock(&vm->run_lock);
	vm_time_thaw(vm);
	vm->run_state = VM_RUNNING;
	pthread_cond_broadcast(&vm->run_cond);
	pthread_mutex_unlock(&vm->run_lock);
	vm_lock(vm);
	vm_timers_rearm(vm);
	vm_unlock(vm);
	return 0;
}

void vm_run_join(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	vm->run_state = VM_STOPPED;
	vm->run->exiting = true;
	pthread_cond_broadcast(&vm->run_cond);
	for (unsigned i = 0; i < vm->nvcpus; i++)
		vm_kick(vm->vcpus[i], VCPU_REQ_EXIT);
	pthread_mutex_unlock(&vm->run_lock);
	for (unsigned i = 0; i < vm->nvcpus; i++) {
		if (!vm->vcpus[i]->thread_started)
			continue;
		pthread_join(vm->vcpus[i]->thread, NULL);
		vm->vcpus[i]->thread_started = false;
	}
	vm->run->nthreads = 0;
}
