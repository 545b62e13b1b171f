/* native.c - see native.h. The child unmaps everything but the test's pages by system calls that
 * the parent injects, so that a wild access faults and can harm nobody. */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

static int native_wait(struct native *n)
{
	int st, late = 0;

	/* the caller's timer interrupts a wait for what never ends */
	while (waitpid(n->pid, &st, __WALL) < 0) {
		if (errno != EINTR)
			return -1;
		if (++late == 3)
			kill(n->pid, SIGSTOP);
	}
	return WIFSTOPPED(st) ? WSTOPSIG(st) : -1;
}

/* native_syscall() - the child executes one system call on the code page. */
static long native_syscall(struct native *n, long nr, u64 a, u64 b)
{
	struct user_regs_struct r = n->base;

	memcpy(n->code, "\x0f\x05\xcc", 3);
	r.rip = CODE_VA;
	r.rax = (u64)nr;
	r.orig_rax = (u64)-1;
	r.rdi = a;
	r.rsi = b;
	if (ptrace(PTRACE_SETREGS, n->pid, 0, &r) < 0 || ptrace(PTRACE_CONT, n->pid, 0, 0) < 0 ||
	    native_wait(n) != SIGTRAP || ptrace(PTRACE_GETREGS, n->pid, 0, &r) < 0)
		return -1;
	return (long)r.rax;
}

static int native_strip(struct native *n)
{
	char path[64], line[256];
	u64 lo[128], hi[128];
	unsigned k = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", n->pid);
	FILE *f = fopen(path, "r");

	if (!f)
		return -errno;
	while (k < 128 && fgets(line, sizeof(line), f)) {
		unsigned long a, b;

		if (sscanf(line, "%lx-%lx", &a, &b) != 2 || strstr(line, "vsyscall"))
			continue;
		if (a == CODE_VA || a == DATA_VA || a == STACK_VA)
			continue;
		lo[k] = a;
		hi[k++] = b;
	}
	fclose(f);
	for (unsigned i = 0; i < k; i++)
		if (native_syscall(n, SYS_munmap, lo[i], hi[i] - lo[i]) < 0)
			return -EINVAL;
	return 0;
}

int native_start(struct native *n)
{
	int fd = memfd_create("soft-diff", MFD_CLOEXEC);
	u8 *p;

	if (fd < 0 || ftruncate(fd, 0x4000) < 0)
		return -errno;
	p = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	n->code = p;
	n->data = p + 0x1000;
	n->stack = p + 0x3000;
	n->pid = fork();
	if (n->pid < 0)
		return -errno;
	if (!n->pid) {
		int rw = PROT_READ | PROT_WRITE;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (mmap((void *)CODE_VA, 0x1000, rw | PROT_EXEC, MAP_SHARED | MAP_FIXED_NOREPLACE,
			 fd, 0) == MAP_FAILED ||
		    mmap((void *)DATA_VA, DATA_BYTES, rw, MAP_SHARED | MAP_FIXED_NOREPLACE, fd,
			 0x1000) == MAP_FAILED ||
		    mmap((void *)STACK_VA, 0x1000, rw, MAP_SHARED | MAP_FIXED_NOREPLACE, fd,
			 0x3000) == MAP_FAILED)
			_exit(1);
		if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0)
			_exit(1);
		/* the kernel writes there on every switch, and it is about to be unmapped */
		syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, 1,
			RSEQ_SIG);
		raise(SIGSTOP);
		_exit(1);
	}
	close(fd);
	if (native_wait(n) != SIGSTOP ||
	    ptrace(PTRACE_SETOPTIONS, n->pid, 0, PTRACE_O_EXITKILL) < 0 ||
	    ptrace(PTRACE_GETREGS, n->pid, 0, &n->base) < 0)
		return -EPERM;
	n->base.orig_rax = (u64)-1;
	return native_strip(n);
}

void native_stop(struct native *n)
{
	kill(n->pid, SIGKILL);
	waitpid(n->pid, NULL, 0);
	munmap(n->code, 0x4000);
}

int native_run(struct native *n, struct user_regs_struct *r, struct user_fpregs_struct *f,
	       uint64_t *addr, int *code)
{
	siginfo_t si;
	int sig;

	if (ptrace(PTRACE_SETREGS, n->pid, 0, r) < 0 ||
	    ptrace(PTRACE_SETFPREGS, n->pid, 0, f) < 0 || ptrace(PTRACE_CONT, n->pid, 0, 0) < 0)
		return -1;
	sig = native_wait(n);
	if (sig < 0 || ptrace(PTRACE_GETREGS, n->pid, 0, r) < 0 ||
	    ptrace(PTRACE_GETFPREGS, n->pid, 0, f) < 0)
		return -1;
	*addr = 0;
	*code = 0;
	if (sig != SIGTRAP) {
		if (ptrace(PTRACE_GETSIGINFO, n->pid, 0, &si) < 0)
			return -1;
		*addr = (u64)(uintptr_t)si.si_addr;
		*code = si.si_code;
	}
	return sig;
}
