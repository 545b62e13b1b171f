/* vm.h - one virtual machine: memory, buses, vCPU threads, clock, run state.
 *
 * Threads: the main thread runs vm->loop; one thread a vCPU (or one for all, soft threads=1); I/O
 * threads belong to devices. Lock order: machine lock (vm_lock) > device queue lock > bus lookup.
 * vm_pause() never waits: it asks, kicks, and reports on the loop once all vCPUs are parked, so it
 * can be called under any lock. Everything here is per VM; there is no global that means "this
 * guest".
 */
#ifndef CORE_VM_H
#define CORE_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "common/err.h"
#include "common/list.h"
#include "common/loop.h"
#include "hypervisor-core/accel.h"
#include "hypervisor-core/bus.h"
#include "hypervisor-core/cpuid.h"
#include "hypervisor-core/device.h"
#include "hypervisor-core/irq.h"
#include "hypervisor-core/mem.h"

#define VM_VCPUS_MAX 255u

enum vm_run_state { VM_BUILT, VM_RUNNING, VM_PAUSING, VM_PAUSED, VM_STOPPED };

/* Why a VM stopped or asks for attention; reported once through vm->on_event on the main loop. */
enum vm_event {
	VM_EVENT_POWEROFF, /* guest asked (ACPI S5) */
	VM_EVENT_REBOOT,   /* guest asked (i8042, ACPI reset, port 92h, 0xcf9) */
	VM_EVENT_TRIPLE_FAULT,
	VM_EVENT_PANIC,	       /* pvpanic */
	VM_EVENT_ACCEL_FAILED, /* detail in the text */
	VM_EVENT_IO_ERROR,     /* a disk's policy says stop: VM pauses */
	VM_EVENT_WATCHDOG,
};

enum vcpu_request { VCPU_REQ_PARK = 1, VCPU_REQ_EXIT = 2, VCPU_REQ_INTR = 4, VCPU_REQ_CALL = 8 };

struct vcpu {
	struct vm *vm;
	unsigned index; /* = APIC id */
	_Atomic unsigned requests;
	pthread_t thread;
	bool thread_started;
	_Atomic int tid;  /* host thread id, for top and affinity */
	bool parked;	  /* under vm->run_lock */
	void *accel_vcpu; /* the row's own */
	struct err exit_err;
	_Atomic uint64_t exits; /* exits to us */
};

struct vm {
	char name[64];
	struct loop *loop;
	const struct accel_ops *accel;
	void *accel_vm; /* the row's own */
	struct accel_config accel_cfg;
	const char *boot_format; /* how its kernel was entered; NULL: none was loaded */
	char accel_reason[200];

	struct mem *mem;
	struct bus *pio, *mmio;
	struct cpuid_table cpuid;
	const struct intc_ops *intc; /* set by the machine before vCPUs run */
	void *intc_opaque;

	unsigned nvcpus;
	struct vcpu **vcpus;
	struct list devices; /* struct device, creation order */

	/* the machine lock; recursive use is a bug (error-checked in debug) */
	pthread_mutex_t lock;

	pthread_mutex_t run_lock;
	pthread_cond_t run_cond;
	enum vm_run_state run_state;
	unsigned parked;
	void *machine; /* machine_ops' own */

	void (*on_event)(void *arg, enum vm_event ev, const char *text);
	void *on_event_arg;
	void (*on_vcpu_thread)(
	    struct vm *vm); /* optional: first thing in each new vCPU thread (own lockdown) */
	struct vm_timers *timers;
	struct vm_run *run;	   /* vm_vcpu.c: waiters, events, clock */
	struct list chardevs;	   /* devices/chardev.c, initialised there at first use */
	struct iothread *iothread; /* devices/iothread.c, made at first use */
};

struct vm_config {
	const char *name;
	const struct accel_ops *accel;
	struct accel_config accel_cfg;
	struct cpuid_policy cpu;
};

/* vm_new() - an empty VM on @loop: accel vm_init done, no RAM, no vCPU. */
struct vm *vm_new(struct loop *loop, const struct vm_config *cfg, struct err *e);
void vm_free(struct vm *vm); /* vCPUs joined, devices destroyed, memory unmapped */

/* vm_add_ram() - mem_add() and tell the accelerator. */
int vm_add_ram(struct vm *vm, const char *name, gpa_t gpa, uint64_t size_bytes, int fd,
	       uint64_t fd_off, uint32_t flags, struct err *e);
/* vm_make_vcpus() - after all RAM: irq_init() and vcpu_init() for each; threads not started. */
int vm_make_vcpus(struct vm *vm, unsigned n, struct err *e);
/* vm_start() - from BUILT or PAUSED: (make threads and) let vCPUs run. */
int vm_start(struct vm *vm, struct err *e);
/* vm_pause() - park all vCPUs; then done(arg) on the loop with no lock held (at once if parked). */
void vm_pause(struct vm *vm, void (*done)(void *arg), void *arg);
/* vm_kick() - ask @v to look again (VCPU_REQ_...); any thread, async-signal-safe. */
void vm_kick(struct vcpu *v, enum vcpu_request why);
/* vm_reset() - vCPUs parked: every device reset, vCPUs to power-on; RAM untouched. */
int vm_reset(struct vm *vm, struct err *e);
/* vm_event() - report on the main loop. Poweroff, reboot, triple fault, accelerator failure and I/O
 * error also park the vCPUs, so that the guest runs no further until the owner decides. Any thread,
 * any lock. */
void vm_event(struct vm *vm, enum vm_event ev, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Error-checking: taking it twice, or dropping what is not held, ends the process at once. */
static inline void vm_lock(struct vm *vm)
{
	if (pthread_mutex_lock(&vm->lock))
		abort();
}

static inline void vm_unlock(struct vm *vm)
{
	if (pthread_mutex_unlock(&vm->lock))
		abort();
}

/* Time as devices see it: CLOCK_MONOTONIC before the first start, stands still while PAUSED, goes
 * on from the saved value after vm_load(); accel->now_ns where accel_cfg.icount. Timers fire on the
 * main loop with the machine lock held; the callback may re-arm. All are called with the machine
 * lock held, or before start; vm_now_ns() may be called from anywhere. */
uint64_t vm_now_ns(struct vm *vm);
struct vm_timer {
	struct vm *vm;
	uint64_t deadline_ns; /* 0 = stopped */
	void (*fn)(void *arg);
	void *arg;
	struct list node;
};
void vm_timer_init(struct vm *vm, struct vm_timer *t, void (*fn)(void *arg), void *arg);
void vm_timer_set(struct vm_timer *t, uint64_t deadline_ns);
void vm_timer_stop(struct vm_timer *t);
/* For accelerators with virtual time (accel_cfg.icount): earliest deadline (0 = none), and run what
 * is due.
 * These two take the machine lock themselves where the caller does not hold it. */
uint64_t vm_timers_next_ns(struct vm *vm);
void vm_timers_run(struct vm *vm, uint64_t now_ns);

/* Whole state: clock, vCPUs, devices (not RAM). VM paused and quiesced. */
int vm_save(struct vm *vm, struct state_writer *w, struct err *e);
int vm_load(struct vm *vm, const void *data, size_t len, struct err *e);

#endif
