/* lockdown.c - what vmd-guest gives up: every path (Landlock), and every system call but these.
 *
 * By now the machine is built; the guest holds descriptors and needs only to use them. The lists
 * are per thread: all wear the main thread's, and each vCPU thread and the I/O thread, with the
 * workers that it starts, adds a narrower one on top of it. What takes a number that chooses among many acts (ioctl, fcntl, prctl, clone) is
 * filtered by that number.
 * Memory is never executable: PROT_EXEC is refused in mmap and mprotect (a JIT asks for its pages
 * before).
 */
#include "vmd/guest/lockdown.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/sched.h>
#include <linux/vhost.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/log.h"
#include "common/overflow.h"
#include "common/sandbox.h"
#include "devices/iothread.h"
#include "vmd/guest/guest.h"

#ifndef KVM_RESET_DIRTY_RINGS
#define KVM_RESET_DIRTY_RINGS _IO(KVMIO, 0xc7)
#endif

/* No KVM_CREATE_VM, no KVM_CREATE_DEVICE, no SEV: one VM exists, and it stays one. */
#define LOCKDOWN_KVM_VCPU \
	KVM_RUN, KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_GET_MSRS, \
	    KVM_SET_MSRS, KVM_GET_FPU, KVM_SET_FPU, KVM_GET_LAPIC, KVM_SET_LAPIC, KVM_GET_XSAVE, \
	    KVM_SET_XSAVE, KVM_GET_XCRS, KVM_SET_XCRS, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, \
	    KVM_GET_MP_STATE, KVM_SET_MP_STATE, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, \
	    KVM_GET_TSC_KHZ, KVM_SET_TSC_KHZ, KVM_INTERRUPT, KVM_NMI, KVM_KVMCLOCK_CTRL, \
	    KVM_SET_GUEST_DEBUG, KVM_TRANSLATE, KVM_SET_SIGNAL_MASK, KVM_GET_XSAVE2, \
	    KVM_GET_SREGS2, KVM_SET_SREGS2
#define LOCKDOWN_KVM_VM \
	KVM_SIGNAL_MSI, KVM_IRQFD, KVM_IOEVENTFD, KVM_SET_GSI_ROUTING, KVM_GET_CLOCK, \
	    KVM_SET_CLOCK, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_SET_USER_MEMORY_REGION, \
	    KVM_IRQ_LINE, KVM_RESET_DIRTY_RINGS, KVM_CHECK_EXTENSION

#define LOCKDOWN_VHOST \
	VHOST_SET_FEATURES, VHOST_SET_MEM_TABLE, VHOST_SET_VRING_NUM, VHOST_SET_VRING_ADDR, \
	    VHOST_SET_VRING_BASE, VHOST_GET_VRING_BASE, VHOST_SET_VRING_KICK, \
	    VHOST_SET_VRING_CALL, VHOST_SET_VRING_ERR, VHOST_NET_SET_BACKEND

static const uint32_t lockdown_ioctls[] = {
	LOCKDOWN_KVM_VCPU, LOCKDOWN_KVM_VM, TUNSETOFFLOAD, /* not TUNSETIFF: the tap is what priv made it */
	TUNSETVNETHDRSZ,   TUNSETQUEUE, /* queues of this tap on and off, as the guest's driver uses them */
	LOCKDOWN_VHOST, /* the I/O thread's filter stands on this one; no VHOST_SET_OWNER */
	FIONREAD,	   FIONBIO,	    BLKDISCARD,	   BLKZEROOUT,
};
static const uint32_t lockdown_vcpu_ioctls[] = { LOCKDOWN_KVM_VCPU, LOCKDOWN_KVM_VM,
						 TUNSETOFFLOAD };

/* The flags of glibc's pthread_create, no others: no namespace, no process. clone3 hides its flags
 * in memory. */
static const uint32_t lockdown_clone[] = { CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND |
					   CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
					   CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID };
static const uint32_t lockdown_fcntl[] = { F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_DUPFD_CLOEXEC,
					   F_ADD_SEALS, F_GET_SEALS,
					   /* a disk's new layer is locked, its old one let go */
					   F_OFD_SETLK, F_OFD_GETLK };
static const uint32_t lockdown_prctl[] = { PR_SET_NAME };
static const uint32_t lockdown_empty_path[] = { AT_EMPTY_PATH };
static const uint32_t lockdown_sol_socket[] = { SOL_SOCKET };

/* What every thread may do. */
/* clang-format off */
static const struct sandbox_rule lockdown_common[] = {
	SB_ALLOW(read), SB_ALLOW(write), SB_ALLOW(readv), SB_ALLOW(writev), SB_ALLOW(close),
	SB_ALLOW(futex), SB_ALLOW(clock_gettime), SB_ALLOW(clock_nanosleep), SB_ALLOW(nanosleep),
	SB_ALLOW(gettimeofday), SB_ALLOW(sched_yield), SB_ALLOW(gettid), SB_ALLOW(getpid),
	SB_ALLOW(rt_sigreturn), SB_ALLOW(rt_sigprocmask), SB_ALLOW(rt_sigtimedwait), SB_ALLOW(restart_syscall), SB_ALLOW(exit),
	SB_ALLOW(exit_group), SB_ALLOW(getrandom), SB_ALLOW(brk), SB_ALLOW(munmap), SB_ALLOW(madvise),
	SB_NO_BITS(mmap, 2, PROT_EXEC), SB_NO_BITS(mprotect, 2, PROT_EXEC), SB_ALLOW(mremap),
	SB_ALLOW(epoll_ctl), SB_ALLOW(epoll_wait), SB_ALLOW(epoll_pwait), SB_ALLOW(poll), SB_ALLOW(ppoll),
	SB_ALLOW(timerfd_settime), SB_ALLOW(timerfd_gettime), SB_ALLOW(recvmsg), SB_ALLOW(sendmsg), SB_ALLOW(recvfrom),
	SB_ALLOW(sendto), SB_ALLOW(rseq), SB_ALLOW(set_robust_list), SB_ALLOW(sigaltstack), SB_ALLOW(membarrier),
	SB_ALLOW(pread64), SB_ALLOW(pwrite64), SB_ALLOW(preadv), SB_ALLOW(pwritev), SB_ALLOW(preadv2), SB_ALLOW(pwritev2),
	SB_ARG_IN(prctl, 0, lockdown_prctl, ARRAY_SIZE(lockdown_prctl)),
	SB_ERRNO(clone3, ENOSYS), SB_ERRNO(sched_getaffinity, ENOSYS),
	SB_END,
};
/* clang-format on */

/* What the I/O thread and its workers ask of descriptors: taps, block devices, a message-signalled
 * interrupt that has no eventfd; of vhost-net what devices/vhost_net.c needs once it owns one. */
static const uint32_t lockdown_io_ioctls[] = {
	TUNSETOFFLOAD, TUNSETQUEUE, BLKDISCARD, BLKZEROOUT, KVM_SIGNAL_MSI, LOCKDOWN_VHOST,
};

/* The main thread: files, new threads, the daemon's connections. */
/* clang-format off */
static const struct sandbox_rule lockdown_main[] = {
	SB_ALLOW(fstat), SB_ALLOW(lseek), SB_ALLOW(fallocate), SB_ALLOW(ftruncate), SB_ALLOW(fsync), SB_ALLOW(fdatasync),
	SB_ALLOW(sync_file_range), SB_ALLOW(fadvise64), SB_ALLOW(copy_file_range), SB_ALLOW(flock), SB_ALLOW(fstatfs),
	SB_ARG_IN(newfstatat, 3, lockdown_empty_path, ARRAY_SIZE(lockdown_empty_path)),
	SB_ARG_IN(ioctl, 1, lockdown_ioctls, ARRAY_SIZE(lockdown_ioctls)),
	SB_ARG_IN(fcntl, 1, lockdown_fcntl, ARRAY_SIZE(lockdown_fcntl)),
	SB_ARG_IN(clone, 0, lockdown_clone, ARRAY_SIZE(lockdown_clone)),
	SB_ARG_IN(getsockopt, 1, lockdown_sol_socket, ARRAY_SIZE(lockdown_sol_socket)),
	SB_ALLOW(accept4), SB_ALLOW(shutdown), SB_ALLOW(dup), SB_ALLOW(dup3), SB_ALLOW(eventfd2), SB_ALLOW(epoll_create1),
	SB_ALLOW(timerfd_create), SB_ALLOW(signalfd4), SB_ALLOW(rt_sigaction), SB_ALLOW(memfd_create),
	SB_ALLOW(mincore), SB_ALLOW(msync), SB_ALLOW(getuid), SB_ALLOW(uname), SB_ALLOW(sysinfo),
	SB_END,
};
/* clang-format on */

/* A vCPU thread, on top: KVM's own calls, the devices' short work (an eventfd, a timer, a byte to a
 * console). */
/* clang-format off */
static const struct sandbox_rule lockdown_vcpu_only[] = {
	SB_ARG_IN(ioctl, 1, lockdown_vcpu_ioctls, ARRAY_SIZE(lockdown_vcpu_ioctls)),
	SB_ALLOW(fstat), SB_ALLOW(eventfd2), /* doorbells and interrupt vectors are made when the driver asks for them */
	SB_END,
};
/* clang-format on */

/* The I/O thread, on top: data of disks and taps, workers, wake-ups. No connection is accepted, no
 * socket asked, no descriptor duplicated or made but the eventfd of a queue; no vCPU's call. */
/* clang-format off */
static const struct sandbox_rule lockdown_io_only[] = {
	SB_ALLOW(read), SB_ALLOW(write), SB_ALLOW(readv), SB_ALLOW(writev), SB_ALLOW(close),
	SB_ALLOW(pread64), SB_ALLOW(pwrite64), SB_ALLOW(preadv), SB_ALLOW(pwritev), SB_ALLOW(preadv2), SB_ALLOW(pwritev2),
	SB_ALLOW(fstat), SB_ALLOW(lseek), SB_ALLOW(fallocate), SB_ALLOW(ftruncate), SB_ALLOW(fsync), SB_ALLOW(fdatasync),
	SB_ALLOW(sync_file_range), SB_ALLOW(fstatfs),
	SB_ALLOW(poll), SB_ALLOW(sendmsg), SB_ALLOW(recvmsg), /* a backup's target, where it is an NBD server */
	SB_ALLOW(epoll_ctl), SB_ALLOW(epoll_wait), SB_ALLOW(epoll_pwait), SB_ALLOW(timerfd_settime), SB_ALLOW(eventfd2),
	SB_ALLOW(futex), SB_ALLOW(clock_gettime), SB_ALLOW(clock_nanosleep), SB_ALLOW(gettimeofday), SB_ALLOW(sched_yield),
	SB_ALLOW(rt_sigreturn), SB_ALLOW(rt_sigprocmask), SB_ALLOW(restart_syscall), SB_ALLOW(gettid), SB_ALLOW(getpid),
	SB_ALLOW(exit), SB_ALLOW(exit_group), SB_ALLOW(brk), SB_ALLOW(munmap), SB_ALLOW(madvise), SB_ALLOW(mremap),
	SB_NO_BITS(mmap, 2, PROT_EXEC), SB_NO_BITS(mprotect, 2, PROT_EXEC), SB_ALLOW(getrandom),
	SB_ALLOW(rseq), SB_ALLOW(set_robust_list), SB_ALLOW(membarrier),
	SB_ARG_IN(clone, 0, lockdown_clone, ARRAY_SIZE(lockdown_clone)),
	SB_ARG_IN(ioctl, 1, lockdown_io_ioctls, ARRAY_SIZE(lockdown_io_ioctls)),
	SB_ERRNO(clone3, ENOSYS), SB_ERRNO(sched_getaffinity, ENOSYS),
	SB_END,
};
/* clang-format on */

int lockdown_paths(void)
{
	return sandbox_landlock();
}

/* This thread's own filter. A signal goes to threads of this process alone: vCPUs are kicked by one.
 * The rule names our own pid, so it is made here. */
static int lockdown_thread(const struct sandbox_rule *first, const struct sandbox_rule *more)
{
	const uint32_t self[] = { (uint32_t)getpid() };
	const struct sandbox_rule kick[] = { SB_ARG_IN(tgkill, 0, self, 1), SB_END };
	const struct sandbox_rule *const lists[] = { kick, first, more, NULL };

	return sandbox_seccomp(lists, false);
}

/* SECCOMP_RET_ERRNO hides the number of a call that was refused; the program that installs a filter
 * may still stack a narrower one on it, hence seccomp(2) itself with that one operation. */
static const uint32_t lockdown_seccomp_op[] = { 1 /* SECCOMP_SET_MODE_FILTER */ };

/* clang-format off */
static const struct sandbox_rule lockdown_stack[] = {
	SB_ARG_IN(seccomp, 0, lockdown_seccomp_op, 1),
	SB_END,
};
/* clang-format on */

static const uint32_t lockdown_prctl_nnp[] = { PR_SET_NAME, PR_SET_NO_NEW_PRIVS };

int lockdown_calls(void)
{
	const uint32_t self[] = { (uint32_t)getpid() };
	const struct sandbox_rule kick[] = {
		SB_ARG_IN(tgkill, 0, self, 1),
		SB_ARG_IN(prctl, 0, lockdown_prctl_nnp, ARRAY_SIZE(lockdown_prctl_nnp)),
		SB_END,
	};
	/* the first rule for a call decides: kick's prctl comes before common's */
	const struct sandbox_rule *const lists[] = { kick, lockdown_common, lockdown_main,
						     lockdown_stack, NULL };

	return sandbox_seccomp(lists, true);
}

int lockdown_vcpu(void)
{
	return lockdown_thread(lockdown_common, lockdown_vcpu_only);
}

int lockdown_io(void)
{
	return lockdown_thread(lockdown_io_only, NULL);
}

/* ---- as the guest wears it ---- */

static void guest_vcpu_thread(struct vm *vm)
{
	int ret = lockdown_vcpu();

	if (ret < 0)
		log_warn("a vCPU thread keeps the main thread's system calls: %s", strerror(-ret));
}

static void guest_io_thread(void *arg)
{
	*(int *)arg = lockdown_io();
}

int guest_lockdown(struct guest *g, struct err *e)
{
	size_t n = strlen(g->jail);
	int ret = lockdown_calls();

	/* it was made with the machine, before the process's filter; workers come later and inherit
	 * both */
	if (ret >= 0 && g->vm->iothread)
		iothread_call(g->vm->iothread, guest_io_thread, &ret);
	if (ret < 0)
		return err_set(e, -ret, "lockdown-failed",
			       "guest %s: cannot give up its system calls: %s", g->name,
			       strerror(-ret));
	snprintf(g->jail + n, sizeof(g->jail) - n, "%sseccomp", n ? " " : "");
	g->vm->on_vcpu_thread = guest_vcpu_thread;
	return 0;
}
