/* vm_impl.h - what the files of vm*.c share and nobody else sees.
 * vm->run and everything in it is under vm->run_lock unless it is atomic. run_lock is a leaf: no
 * other lock is taken while it is held, and of the accelerator only vcpu_kick and clock_get/set are
 * called.
 */
#ifndef CORE_VM_IMPL_H
#define CORE_VM_IMPL_H

#include "hypervisor-core/vm.h"

#define VM_WAITERS_MAX 32
#define VM_EVENT_TEXT  400
#define VM_EVENTS_MAX  (VM_EVENT_WATCHDOG + 1) /* each kind is queued once at most */

struct vm_waiter {
	void (*done)(void *arg);
	void *arg;
};

struct vm_queued_event {
	enum vm_event ev;
	char text[VM_EVENT_TEXT];
};

struct vm_run {
	int wake_fd; /* eventfd: something waits for the main loop */
	struct loop_fd wake;
	struct vm_waiter waiter[VM_WAITERS_MAX];
	unsigned nwaiters;
	struct vm_queued_event event[VM_EVENTS_MAX];
	unsigned nevents;
	unsigned nthreads; /* vCPU threads that exist */
	bool one_thread, exiting;

	/* vm_now_ns() is CLOCK_MONOTONIC + offset, or frozen_ns where that is not 0. */
	_Atomic uint64_t frozen_ns;
	_Atomic int64_t offset_ns;
	/* the guest's own clock (kvmclock) as it stood when the VM was paused or loaded */
	bool guest_clock_known;
	uint64_t guest_clock_ns;
};

/* vm_vcpu.c */
int vm_run_init(struct vm *vm, struct err *e);
void vm_run_fini(struct vm *vm); /* joins the threads */
void vm_run_join(struct vm *vm);

/* vm_time.c */
int vm_timers_init(struct vm *vm, struct err *e);
void vm_timers_fini(struct vm *vm);
void vm_time_freeze(struct vm *vm);  /* run_lock held */
void vm_time_thaw(struct vm *vm);    /* run_lock held */
void vm_timers_rearm(struct vm *vm); /* machine lock held */

#endif
