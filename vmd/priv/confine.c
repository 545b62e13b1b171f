/* confine.c - what priv gives up before it does anything: capabilities that none of its work needs,
 * and system calls that neither it nor what it starts has a use for.
 *
 * The bounding set is that of systemd/vmd.service, so that a daemon started by hand is no stronger.
 * The filter is worn by every child too (roles, jails, dnsmasq, each with a narrower one of its own
 * on top where it is ours), so it is as wide as all of them together: no modules, no kexec, no bpf,
 * no perf, no ptrace, no other process's memory, no keyrings, no clock, no swap, no io_uring, no
 * userfaultfd, no mount by the newer calls, no entering of other namespaces. Nothing in it looks at
 * an argument: the kernel keeps such verdicts in a bitmap, and a guest pays nothing.
 */
#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/log.h"
#include "common/overflow.h"
#include "common/sandbox.h"
#include "vmd/priv/priv.h"

static const unsigned confine_caps[] = {
	CAP_SYS_ADMIN,	  CAP_SETUID,	    CAP_SETGID, CAP_SETPCAP,	CAP_CHOWN,
	CAP_DAC_OVERRIDE, CAP_FOWNER,	    CAP_KILL,	CAP_NET_ADMIN,	CAP_NET_RAW,
	CAP_SYS_CHROOT,	  CAP_SYS_RESOURCE, CAP_MKNOD,	CAP_SYS_PTRACE, CAP_NET_BIND_SERVICE,
};

/* clang-format off */
static const struct sandbox_rule confine_calls[] = {
	SB_ALLOW(read), SB_ALLOW(write), SB_ALLOW(open), SB_ALLOW(close), SB_ALLOW(stat), SB_ALLOW(fstat),
	SB_ALLOW(lstat), SB_ALLOW(poll), SB_ALLOW(lseek), SB_ALLOW(mmap), SB_ALLOW(mprotect), SB_ALLOW(munmap),
	SB_ALLOW(brk), SB_ALLOW(rt_sigaction), SB_ALLOW(rt_sigprocmask), SB_ALLOW(rt_sigreturn),
	SB_ALLOW(ioctl), SB_ALLOW(pread64), SB_ALLOW(pwrite64), SB_ALLOW(readv), SB_ALLOW(writev),
	SB_ALLOW(access), SB_ALLOW(pipe), SB_ALLOW(select), SB_ALLOW(sched_yield), SB_ALLOW(mremap),
	SB_ALLOW(msync), SB_ALLOW(madvise), SB_ALLOW(dup), SB_ALLOW(dup2), SB_ALLOW(nanosleep),
	SB_ALLOW(getpid), SB_ALLOW(sendfile), SB_ALLOW(socket), SB_ALLOW(connect), SB_ALLOW(accept),
	SB_ALLOW(sendto), SB_ALLOW(recvfrom), SB_ALLOW(sendmsg), SB_ALLOW(recvmsg), SB_ALLOW(shutdown),
	SB_ALLOW(bind), SB_ALLOW(listen), SB_ALLOW(getsockname), SB_ALLOW(getpeername), SB_ALLOW(socketpair),
	SB_ALLOW(setsockopt), SB_ALLOW(getsockopt), SB_ALLOW(clone), SB_ALLOW(fork), SB_ALLOW(vfork),
	SB_ALLOW(execve), SB_ALLOW(exit), SB_ALLOW(wait4), SB_ALLOW(kill), SB_ALLOW(uname), SB_ALLOW(fcntl),
	SB_ALLOW(flock), SB_ALLOW(fsync), SB_ALLOW(fdatasync), SB_ALLOW(ftruncate), SB_ALLOW(getdents),
	SB_ALLOW(getcwd), SB_ALLOW(chdir), SB_ALLOW(fchdir), SB_ALLOW(rename), SB_ALLOW(mkdir),
	SB_ALLOW(rmdir), SB_ALLOW(link), SB_ALLOW(unlink), SB_ALLOW(symlink), SB_ALLOW(readlink),
	SB_ALLOW(chmod), SB_ALLOW(fchmod), SB_ALLOW(chown), SB_ALLOW(fchown), SB_ALLOW(umask),
	SB_ALLOW(gettimeofday), SB_ALLOW(getrlimit), SB_ALLOW(getrusage), SB_ALLOW(sysinfo), SB_ALLOW(times),
	SB_ALLOW(getuid), SB_ALLOW(getgid), SB_ALLOW(setuid), SB_ALLOW(setgid), SB_ALLOW(geteuid),
	SB_ALLOW(getegid), SB_ALLOW(setpgid), SB_ALLOW(getppid), SB_ALLOW(getpgrp), SB_ALLOW(setsid),
	SB_ALLOW(getgroups), SB_ALLOW(setgroups), SB_ALLOW(setresuid), SB_ALLOW(getresuid),
	SB_ALLOW(setresgid), SB_ALLOW(getresgid), SB_ALLOW(getpgid), SB_ALLOW(setfsuid), SB_ALLOW(setfsgid),
	SB_ALLOW(getsid), SB_ALLOW(capget), SB_ALLOW(capset), SB_ALLOW(rt_sigpending),
	SB_ALLOW(rt_sigtimedwait), SB_ALLOW(rt_sigqueueinfo), SB_ALLOW(rt_sigsuspend), SB_ALLOW(sigaltstack),
	SB_ALLOW(mknod), SB_ALLOW(statfs), SB_ALLOW(fstatfs), SB_ALLOW(getpriority), SB_ALLOW(setpriority),
	SB_ALLOW(sched_getparam), SB_ALLOW(sched_getscheduler), SB_ALLOW(sched_get_priority_max),
	SB_ALLOW(sched_get_priority_min), SB_ALLOW(mlock), SB_ALLOW(munlock), SB_ALLOW(pivot_root),
	SB_ALLOW(prctl), SB_ALLOW(arch_prctl), SB_ALLOW(setrlimit), SB_ALLOW(chroot), SB_ALLOW(sync),
	SB_ALLOW(mount), SB_ALLOW(umount2), SB_ALLOW(gettid), SB_ALLOW(readahead), SB_ALLOW(time),
	SB_ALLOW(futex), SB_ALLOW(sched_setaffinity), SB_ALLOW(sched_getaffinity), SB_ALLOW(epoll_create),
	SB_ALLOW(getdents64), SB_ALLOW(set_tid_address), SB_ALLOW(restart_syscall), SB_ALLOW(fadvise64),
	SB_ALLOW(timer_create), SB_ALLOW(timer_settime), SB_ALLOW(timer_gettime), SB_ALLOW(timer_getoverrun),
	SB_ALLOW(timer_delete), SB_ALLOW(clock_gettime), SB_ALLOW(clock_getres), SB_ALLOW(clock_nanosleep),
	SB_ALLOW(exit_group), SB_ALLOW(epoll_wait), SB_ALLOW(epoll_ctl), SB_ALLOW(tgkill), SB_ALLOW(waitid),
	SB_ALLOW(inotify_add_watch), SB_ALLOW(inotify_rm_watch), SB_ALLOW(openat), SB_ALLOW(mkdirat),
	SB_ALLOW(mknodat), SB_ALLOW(fchownat), SB_ALLOW(newfstatat), SB_ALLOW(unlinkat), SB_ALLOW(renameat),
	SB_ALLOW(linkat), SB_ALLOW(symlinkat), SB_ALLOW(readlinkat), SB_ALLOW(fchmodat), SB_ALLOW(faccessat),
	SB_ALLOW(pselect6), SB_ALLOW(ppoll), SB_ALLOW(unshare), SB_ALLOW(set_robust_list), SB_ALLOW(splice),
	SB_ALLOW(tee), SB_ALLOW(sync_file_range), SB_ALLOW(utimensat), SB_ALLOW(epoll_pwait),
	SB_ALLOW(timerfd_create), SB_ALLOW(fallocate), SB_ALLOW(timerfd_settime), SB_ALLOW(timerfd_gettime),
	SB_ALLOW(accept4), SB_ALLOW(signalfd4), SB_ALLOW(eventfd2), SB_ALLOW(epoll_create1), SB_ALLOW(dup3),
	SB_ALLOW(pipe2), SB_ALLOW(inotify_init1), SB_ALLOW(preadv), SB_ALLOW(pwritev), SB_ALLOW(recvmmsg),
	SB_ALLOW(prlimit64), SB_ALLOW(syncfs), SB_ALLOW(sendmmsg), SB_ALLOW(getcpu), SB_ALLOW(sched_getattr),
	SB_ALLOW(renameat2), SB_ALLOW(seccomp), SB_ALLOW(getrandom), SB_ALLOW(memfd_create),
	SB_ALLOW(execveat), SB_ALLOW(membarrier), SB_ALLOW(mlock2), SB_ALLOW(copy_file_range),
	SB_ALLOW(preadv2), SB_ALLOW(pwritev2), SB_ALLOW(statx), SB_ALLOW(rseq), SB_ALLOW(pidfd_send_signal),
	SB_ALLOW(pidfd_open), SB_ALLOW(clone3), SB_ALLOW(close_range), SB_ALLOW(openat2), SB_ALLOW(faccessat2),
	SB_ALLOW(epoll_pwait2), SB_ALLOW(landlock_create_ruleset), SB_ALLOW(landlock_add_rule),
	SB_ALLOW(landlock_restrict_self), SB_ALLOW(futex_waitv),
	SB_ERRNO(io_uring_setup, ENOSYS), SB_ERRNO(userfaultfd, ENOSYS),
	SB_END,
};
/* clang-format on */

int priv_confine(const struct priv *p, struct err *e)
{
	const struct sandbox_rule *const lists[] = { confine_calls, NULL };
	int ret;

	if (!p->root) /* no power to give up; newer rights come by set-uid programs alone */
		return 0;
	ret = sandbox_keep_caps(confine_caps, ARRAY_SIZE(confine_caps));
	if (ret < 0)
		return err_set(e, -ret, "no-confinement", "capabilities cannot be given up: %s",
			       strerror(-ret));
	ret = sandbox_seccomp(lists, true);
	/* a kernel without seccomp: guests say so too, and are told by doctor */
	if (ret < 0)
		log_warn("system calls cannot be given up here: %s", strerror(-ret));
	return 0;
}
