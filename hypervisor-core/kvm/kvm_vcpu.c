/* kvm_vcpu.c - a vCPU: KVM_RUN, kicks, and interrupts of the machine's own 8259 pair.
 *
 * A kick cannot get lost: the kicker sets the request, then run->immediate_exit, then sends the
 * signal; the vCPU clears immediate_exit, then reads the requests, then enters. If the request came
 * too late to be read, immediate_exit was set after the clearing and KVM_RUN returns at once; if
 * KVM had looked at it already, the signal interrupts the guest.
 * A vCPU leaves with nothing half done: KVM finishes an I/O instruction, reports the end of a
 * level-triggered interrupt, queues an expired timer, only on the next entry. So before parking it
 * is entered once more with the kick signal pending: KVM then does all that waits, and comes back
 * before the guest has run an instruction. That also makes a guest pausable that does nothing but
 * MMIO.
 * SIGUSR1 is this file's; its handler does nothing, its delivery is the message.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/overflow.h"
#include "hypervisor-core/kvm/kvm.h"

#define KICK_SIGNAL	  SIGUSR1
#define FIRST_RUN_TRIES	  50u
#define FIRST_RUN_WAIT_NS 2000000L
#define SETTLE_TRIES	  1000u
#define REQUESTS_OUT	  (VCPU_REQ_PARK | VCPU_REQ_EXIT | VCPU_REQ_CALL)

static pthread_once_t kvm_signal_once = PTHREAD_ONCE_INIT;

static void kvm_on_signal(int signo)
{
}

static void kvm_signal_install(void)
{
	/* no SA_RESTART: KVM_RUN must return */
	struct sigaction sa = { .sa_handler = kvm_on_signal };

	sigaction(KICK_SIGNAL, &sa, NULL);
}

static int kvm_set_cpuid(struct vcpu *v)
{
	struct cpuid_table t = v->vm->cpuid;
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + t.n * sizeof(c->entries[0]));
	int ret = 0;

	if (!c)
		return -ENOMEM;
	const struct cpuid_entry *intel = cpuid_find(&t, 1, 0),
				 *amd = cpuid_find(&t, 0x80000001, 0);

	kvm_vm_of(v->vm)->nested =
	    (intel && (intel->ecx & 1u << 5)) || (amd && (amd->ecx & 1u << 2));
	cpuid_for_vcpu(&t, v->index);
	c->nent = t.n;
	for (unsigned i = 0; i < t.n; i++)
		c->entries[i] = (struct kvm_cpuid_entry2){
			.function = t.e[i].leaf,
			.index = t.e[i].subleaf,
			.flags = t.e[i].flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
			.eax = t.e[i].eax,
			.ebx = t.e[i].ebx,
			.ecx = t.e[i].ecx,
			.edx = t.e[i].edx,
		};
	if (ioctl(kvm_vcpu_of(v)->fd, KVM_SET_CPUID2, c) < 0)
		ret = -errno;
	free(c);
	return ret;
}

int kvm_vcpu_init(struct vcpu *v, struct err *e)
{
	struct kvm_vm *kv = kvm_vm_of(v->vm);
	struct kvm_vcpu *kc = calloc(1, sizeof(*kc));
	const char *what = "make it";
	int ret;

	pthread_once(&kvm_signal_once, kvm_signal_install);
	if (!kc)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for vCPU %u",
			       v->vm->name, v->index);
	v->accel_vcpu = kc;
	kc->fd = ioctl(kv->fd, KVM_CREATE_VCPU, (unsigned long)v->index);
	if (kc->fd < 0)
		goto fail;
	what = "map its run area";
	kc->run = mmap(NULL, kv->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, kc->fd, 0);
	if (kc->run == MAP_FAILED) {
		kc->run = NULL;
		goto fail;
	}
	if (kv->ring_bytes) {
		what = "map its dirty ring";
		kc->ring = mmap(NULL, kv->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, kc->fd,
				KVM_DIRTY_LOG_PAGE_OFFSET * (long)MEM_PAGE);
		if (kc->ring == MAP_FAILED) {
			kc->ring = NULL;
			goto fail;
		}
	}
	ret = kvm_set_cpuid(v);
	if (ret < 0) {
		what = "set its CPUID";
		errno = -ret;
		goto fail;
	}
	return 0;
fail:
	ret = -errno;
	err_set(e, -ret, "kvm-vcpu", "guest %s: vCPU %u: KVM cannot %s: %s", v->vm->name, v->index,
		what, strerror(-ret));
	kvm_vcpu_fini(v);
	return ret;
}

void kvm_vcpu_fini(struct vcpu *v)
{
	struct kvm_vm *kv = kvm_vm_of(v->vm);
	struct kvm_vcpu *kc = kvm_vcpu_of(v);

	if (!kc)
		return;
	if (kc->ring)
		munmap(kc->ring, kv->ring_bytes);
	if (kc->run)
		munmap(kc->run, kv->run_bytes);
	if (kc->fd >= 0)
		close(kc->fd);
	free(kc);
	v->accel_vcpu = NULL;
}

void kvm_vcpu_kick(struct vcpu *v)
{
	struct kvm_vcpu *kc = kvm_vcpu_of(v);
	int tid = atomic_load(&v->tid);

	__atomic_store_n(&kc->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (tid && tid != (int)syscall(SYS_gettid))
		(void)syscall(SYS_tgkill, getpid(), tid, KICK_SIGNAL);
}

void kvm_vcpu_interrupt(struct vcpu *v)
{
	vm_kick(v, VCPU_REQ_INTR);
}

int kvm_vcpu_nmi(struct vcpu *v)
{
	return ioctl(kvm_vcpu_of(v)->fd, KVM_NMI, 0) < 0 ? -errno : 0;
}

/* kvm_pic_queue() - what KVM_INTERRUPT queues is shown by no ioctl and would be lost in a save. So
 * the vector is put where GET_VCPU_EVENTS sees it: allowed at an instruction boundary with
 * interrupts on and nothing half injected, which is what "ready" means. A guest with guests of its
 * own is the exception: there the event would reach the inner guest, and such a guest is not saved.
 */
static int kvm_pic_queue(struct vcpu *v, int vector)
{
	int fd = kvm_vcpu_of(v)->fd;
	struct kvm_vcpu_events ev;
	struct kvm_mp_state mp;

	if (kvm_vm_of(v->vm)->nested) {
		struct kvm_interrupt k = { .irq = (uint32_t)vector };

		return ioctl(fd, KVM_INTERRUPT, &k) < 0 ? -errno : 0;
	}
	if (ioctl(fd, KVM_GET_VCPU_EVENTS, &ev) < 0)
		return -errno;
	ev.flags = 0; /* an NMI that comes in meanwhile stays */
	ev.interrupt.injected = 1;
	ev.interrupt.nr = (uint8_t)vector;
	ev.interrupt.soft = 0;
	if (ioctl(fd, KVM_SET_VCPU_EVENTS, &ev) < 0 || ioctl(fd, KVM_GET_MP_STATE, &mp) < 0)
		return -errno;
	if (mp.mp_state != KVM_MP_STATE_HALTED)
		return 0;
	mp.mp_state = KVM_MP_STATE_RUNNABLE;
	return ioctl(fd, KVM_SET_MP_STATE, &mp) < 0 ? -errno : 0;
}

/* kvm_pic_sync() - hand vCPU 0 a vector of the 8259 pair when it can take one, else ask to be told.
 * KVM says "ready" only where its local APIC lets ExtINT through. Return: false where an I/O
 * instruction must be completed first. */
static bool kvm_pic_sync(struct vcpu *v)
{
	struct vm *vm = v->vm;
	struct kvm_run *run = kvm_vcpu_of(v)->run;

	run->request_interrupt_window = 0;
	if (!vm->intc || !vm->intc->pic_pending || !vm->intc->pic_pending(vm->intc_opaque))
		return true;
	if (kvm_vcpu_of(v)->completing)
		return false;
	if (!run->ready_for_interrupt_injection) {
		run->request_interrupt_window = 1;
		return true;
	}
	int vector = vm->intc->pic_ack(vm->intc_opaque);
	if (vector < 0)
		return true;
	int ret = kvm_pic_queue(v, vector);
	if (ret < 0)
		log_warn("vCPU %u: KVM does not take vector %d: %s", v->index, vector,
			 strerror(-ret));
	run->ready_for_interrupt_injection = 0;
	/* more behind it: come back once this one is in */
	run->request_interrupt_window = vm->intc->pic_pending(vm->intc_opaque);
	return true;
}

static void kvm_signal_open(struct kvm_vcpu *kc)
{
	sigset_t set;

	if (kc->signal_open)
		return;
	sigemptyset(&set);
	sigaddset(&set, KICK_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	kc->signal_open = true;

	/* what KVM_RUN blocks: the kernel's set of 8 bytes, as this thread's is now */
	struct {
		struct kvm_signal_mask head;
		uint64_t bits;
	} __attribute__((packed)) m = { .head = { .len = 8 } };
	sigset_t now;
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	for (int i = 1; i <= 64; i++)
		if (sigismember(&now, i) > 0)
			m.bits |= UINT64_C(1) << (i - 1);
	kc->can_settle = ioctl(kc->fd, KVM_SET_SIGNAL_MASK, &m) == 0;
}

/* kvm_enter() - KVM_RUN once. Return: 0 an exit to handle, 1 interrupted, -errno. */
static int kvm_enter(struct kvm_vcpu *kc)
{
	for (unsigned tries = 0;; tries++) {
		int ret = ioctl(kc->fd, KVM_RUN, 0) < 0 ? -errno : 0;

		if (ret == -ENOMEM && !kc->ran && tries < FIRST_RUN_TRIES) {
			/* Some kernels cannot build their first tables at once under pressure. */
			nanosleep(&(struct timespec){ 0, FIRST_RUN_WAIT_NS }, NULL);
			continue;
		}
		kc->ran = true;
		if (ret == -EINTR || ret == -EAGAIN)
			return 1;
		return ret;
	}
}

/* kvm_settle() - an entry that runs no guest instruction, see above. Return: 0 an exit to handle,
 * 1 nothing waits any more, -errno. */
static int kvm_settle(struct kvm_vcpu *kc)
{
	sigset_t kick;
	int ret;

	/* an interrupt window that was asked for and is open now would be told at every entry, before
	 * KVM looks at signals: what waits in the 8259 pair is handed over at the next true entry */
	kc->run->request_interrupt_window = 0;
	if (!kc->can_settle) {
		__atomic_store_n(&kc->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		ret = kvm_enter(kc);
		kc->in_flight = ret <= 0;
		return ret;
	}
	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	pthread_sigmask(SIG_BLOCK, &kick, NULL);
	(void)syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), KICK_SIGNAL);
	/* a kick in between makes KVM_RUN return before it has looked at anything: again, but not
	 * for ever */
	for (unsigned tries = 0;; tries++) {
		__atomic_store_n(&kc->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		ret = kvm_enter(kc);
		if (ret <= 0 || tries == SETTLE_TRIES ||
		    !__atomic_load_n(&kc->run->immediate_exit, __ATOMIC_SEQ_CST))
			break;
	}
	pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
	kc->in_flight = ret <= 0;
	return ret;
}

enum vcpu_exit kvm_vcpu_run(struct vcpu *v)
{
	struct kvm_vcpu *kc = kvm_vcpu_of(v);
	enum vcpu_exit out = VCPU_EXIT_FAILED;
	int ret;

	kvm_signal_open(kc);
	for (;;) {
		__atomic_store_n(&kc->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		unsigned req = atomic_load(&v->requests);
		if (req & REQUESTS_OUT) {
			if (!kc->in_flight)
				return VCPU_EXIT_KICKED;
			ret = kvm_settle(kc);
		} else {
			if (req & VCPU_REQ_INTR)
				atomic_fetch_and(&v->requests, ~(unsigned)VCPU_REQ_INTR);
			if (v->index == 0 && !kvm_pic_sync(v))
				__atomic_store_n(&kc->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
			kvm_routes_flush(v->vm);
			kc->in_flight = true;
			ret = kvm_enter(kc);
		}
		kc->completing = false;
		if (ret > 0)
			continue;
		atomic_fetch_add_explicit(&v->exits, 1, memory_order_relaxed);
		/* -EFAULT comes with a report in run where the kernel has one */
		if (ret < 0) {
			err_set(&v->exit_err, -ret, "kvm-run", "KVM_RUN: %s (exit reason %u)",
				strerror(-ret), kc->run->exit_reason);
			return VCPU_EXIT_FAILED;
		}
		if (!kvm_exit_handle(v, &out))
			return out;
	}
}
