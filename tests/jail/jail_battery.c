/* jail_battery.c - forbidden acts, attempted inside the real jail by every kind of thread; all must
 * be stopped.
 *
 * The program jails itself with the daemon's own code (jail_spawn, lockdown_*), with /dev/kvm,
 * /dev/net/tun and a pty in hand as a guest has them, and tries each act from the main thread, an
 * I/O thread and a vCPU thread. Then again with each single layer left out: a table tells what the
 * other layers still stop. Acts are harmless where they get through: they fail by their arguments.
 * An act is stopped if it fails; a "probe" only if it fails by permission (EPERM, EACCES, ENOSYS),
 * because a bad argument noticed after the check of permission means that the check was passed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "common/err.h"
#include "common/overflow.h"
#include "vmd/guest/lockdown.h"
#include "vmd/priv/jail.h"

enum { FD_KVM = 3, FD_TUN = 4, FD_PTY = 5, FD_DIR = 6 };

#define ACT(id, expr) \
	static long act_##id(void) \
	{ \
		return (long)(expr); \
	}
static char page[4096] __attribute__((aligned(4096)));

static long act_child(void)
{
	pid_t pid = (pid_t)syscall(SYS_fork);

	if (pid == 0)
		syscall(SYS_exit_group, 0);
	return pid;
}

static long act_clone_newpid(void)
{
	long pid = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		syscall(SYS_exit_group, 0);
	return pid;
}

static long act_unix_bind(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX, .sun_path = "/x" };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	return fd < 0 ? fd : bind(fd, (struct sockaddr *)&sa, sizeof(sa));
}

static long act_tun_attach(void)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI };

	strcpy(ifr.ifr_name, "batt%d");
	return ioctl(FD_TUN, TUNSETIFF, &ifr);
}

static long act_sched_rt(void)
{
	struct sched_param sp = { .sched_priority = 10 };

	return syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &sp);
}

static long act_nofile_raise(void)
{
	struct rlimit r = { 1 << 20, 1 << 20 };

	return setrlimit(RLIMIT_NOFILE, &r);
}

static long act_perf(void)
{
	struct perf_event_attr a = { .type = PERF_TYPE_HARDWARE,
				     .size = sizeof(a),
				     .exclude_kernel = 0 };

	return syscall(SYS_perf_event_open, &a, 0, -1, -1, 0);
}

static long act_map_wx(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	return p == MAP_FAILED ? -1 : 0;
}

static long act_memfd_exec(void)
{
	char *const argv[] = { (char *)"x", NULL };
	int fd = (int)syscall(SYS_memfd_create, "x", 0);
	long r = fd < 0 ? -1 : syscall(SYS_execveat, fd, "", argv, argv + 1, AT_EMPTY_PATH);

	/* an empty file is no program: ENOEXEC, or EACCES without an x bit, would come after the
	 * call was let in */
	return r < 0 && errno == ENOEXEC ? 0 : r;
}

static long act_handle(void)
{
	struct {
		struct file_handle h;
		char b[64];
	} f = { .h = { .handle_bytes = 8, .handle_type = 1 } };

	return syscall(SYS_open_by_handle_at, FD_DIR, &f.h, O_RDONLY);
}

ACT(open_passwd, open("/etc/passwd", O_RDONLY))
ACT(open_shadow, open("/etc/shadow", O_RDONLY))
ACT(open_root, open("/", O_RDONLY | O_DIRECTORY))
ACT(open_proc_self, open("/proc/self/status", O_RDONLY))
ACT(open_proc_mem, open("/proc/self/mem", O_RDWR))
ACT(write_sysctl, open("/proc/sys/kernel/core_pattern", O_WRONLY))
ACT(open_dev_mem, open("/dev/mem", O_RDWR))
ACT(open_kmsg, open("/dev/kmsg", O_RDWR))
ACT(open_sda, open("/dev/vda", O_RDONLY))
ACT(open_beneath_dir_fd, openat(FD_DIR, "passwd", O_RDONLY))
ACT(open_dotdot_of_dir_fd, openat(FD_DIR, "..", O_RDONLY | O_DIRECTORY))
ACT(create_file, open("/x", O_WRONLY | O_CREAT, 0600))
ACT(make_dir, mkdir("/d", 0700))
ACT(make_node, mknod("/n", S_IFCHR | 0600, 0x0101))
ACT(make_link, symlink("/a", "/l"))
ACT(remove, unlink("/etc/passwd"))
ACT(rename_, rename("/etc/passwd", "/x"))
ACT(chmod_, chmod("/", 0777))
ACT(chown_, chown("/", 0, 0))
ACT(chdir_dir_fd, fchdir(FD_DIR))
ACT(chroot_, chroot("/"))
ACT(mount_tmpfs, mount("none", "/", "tmpfs", 0, ""))
ACT(umount_root, umount2("/", MNT_DETACH))
ACT(pivot, syscall(SYS_pivot_root, ".", "."))
ACT(open_tree_, syscall(428, AT_FDCWD, "/", 1))
ACT(fsopen_, syscall(430, "tmpfs", 0))
ACT(unshare_user, unshare(CLONE_NEWUSER))
ACT(unshare_net, unshare(CLONE_NEWNET))
ACT(setns_, syscall(SYS_setns, FD_DIR, 0))
ACT(setuid_root, setuid(0))
ACT(setuid_other, syscall(SYS_setresuid, 12345, 12345, 12345))
ACT(setgid_other, syscall(SYS_setresgid, 12345, 12345, 12345))
ACT(setgroups_, syscall(SYS_setgroups, 0, NULL))
ACT(sock_inet, socket(AF_INET, SOCK_STREAM, 0))
ACT(sock_inet6, socket(AF_INET6, SOCK_DGRAM, 0))
ACT(sock_netlink, socket(AF_NETLINK, SOCK_RAW, 0))
ACT(sock_packet, socket(AF_PACKET, SOCK_RAW, 0))
ACT(sock_vsock, socket(40, SOCK_STREAM, 0))
ACT(sock_alg, socket(38, SOCK_SEQPACKET, 0))
ACT(ptrace_seize, ptrace(PTRACE_SEIZE, 1, 0, 0))
ACT(ptrace_init, ptrace(PTRACE_ATTACH, 1, 0, 0))
ACT(vm_readv, syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0))
ACT(kill_one, kill(1, 0))
ACT(kill_all, kill(-1, 0))
ACT(pidfd_, syscall(434, 1, 0))
ACT(io_uring_, syscall(425, 4, page))
ACT(bpf_, syscall(SYS_bpf, 5, NULL, 0))
ACT(uffd, syscall(SYS_userfaultfd, O_CLOEXEC))
ACT(keyctl_, syscall(SYS_keyctl, 0, -3, 1))
ACT(add_key_, syscall(SYS_add_key, "user", "x", "y", 1, -3))
ACT(kexec, syscall(SYS_kexec_load, 0, 64, NULL, 0xffffffff))
ACT(module, syscall(SYS_finit_module, FD_DIR, "", 0))
ACT(module_rm, syscall(SYS_delete_module, NULL, 0))
ACT(iopl_, syscall(SYS_iopl, 3))
ACT(ioperm_, syscall(SYS_ioperm, 0x80, 1, 1))
ACT(swap, syscall(SYS_swapon, NULL, 0))
ACT(hostname, sethostname("x", 1))
ACT(clock_set, syscall(SYS_clock_settime, 0, NULL))
ACT(syslog_, syscall(SYS_syslog, 3, page, 16))
ACT(acct_, syscall(SYS_acct, NULL))
ACT(quota, syscall(SYS_quotactl, 0x80000700, NULL, 0, NULL))
ACT(personality_, syscall(SYS_personality, 0x0040000))
ACT(exec_shell, execl("/bin/sh", "sh", (char *)NULL))
ACT(kvm_create_vm, ioctl(FD_KVM, KVM_CREATE_VM, 0))
ACT(tun_persist, ioctl(FD_TUN, TUNSETPERSIST, 1))
ACT(tiocsti, ioctl(FD_PTY, TIOCSTI, "x"))
ACT(pty_peer, ioctl(FD_PTY, _IO('T', 0x41), O_RDWR))
ACT(mprotect_x, mprotect(page, 4096, PROT_READ | PROT_EXEC))
ACT(nice_up, setpriority(PRIO_PROCESS, 0, -10))
ACT(mlockall_, syscall(SYS_mlockall, 1))
ACT(dumpable, prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
ACT(fanotify, syscall(SYS_fanotify_init, 0, 0))
ACT(inotify, syscall(SYS_inotify_init1, 0))
ACT(msgq, syscall(SYS_msgget, 0, 01000 | 0600))
ACT(mq, syscall(SYS_mq_open, "/x", O_CREAT | O_RDWR, 0600, NULL))
ACT(shm, syscall(SYS_shmget, 0, 4096, 01000 | 0600))
ACT(kcmp_, syscall(SYS_kcmp, 1, 1, 0, 0, 0))

static const struct {
	const char *name;
	long (*fn)(void);
	bool probe;
} acts[] = {
#define A(n) \
	{ \
#n, act_##n, false \
	}
#define P(n) \
	{ \
#n, act_##n, true \
	}
	A(open_passwd),
	A(open_shadow),
	A(open_root),
	A(open_proc_self),
	A(open_proc_mem),
	A(write_sysctl),
	A(open_dev_mem),
	A(open_kmsg),
	A(open_sda),
	A(open_beneath_dir_fd),
	A(open_dotdot_of_dir_fd),
	A(create_file),
	A(make_dir),
	A(make_node),
	A(make_link),
	A(remove),
	A(rename_),
	A(chmod_),
	A(chown_),
	A(chdir_dir_fd),
	A(chroot_),
	A(mount_tmpfs),
	A(umount_root),
	A(pivot),
	A(open_tree_),
	A(fsopen_),
	A(unshare_user),
	A(unshare_net),
	A(setns_),
	A(clone_newpid),
	A(child),
	A(setuid_root),
	A(setuid_other),
	A(setgid_other),
	A(setgroups_),
	A(sock_inet),
	A(sock_inet6),
	A(sock_netlink),
	A(sock_packet),
	A(sock_vsock),
	A(sock_alg),
	A(unix_bind),
	A(ptrace_seize),
	A(ptrace_init),
	P(vm_readv),
	A(kill_one),
	A(kill_all),
	A(pidfd_),
	P(io_uring_),
	P(bpf_),
	A(uffd),
	A(keyctl_),
	A(add_key_),
	P(kexec),
	P(module),
	P(module_rm),
	A(iopl_),
	A(ioperm_),
	P(swap),
	A(hostname),
	P(clock_set),
	A(syslog_),
	A(acct_),
	P(quota),
	A(personality_),
	A(exec_shell),
	A(memfd_exec),
	A(kvm_create_vm),
	A(tun_attach),
	A(tun_persist),
	A(tiocsti),
	A(pty_peer),
	A(map_wx),
	A(mprotect_x),
	A(sched_rt),
	A(nice_up),
	A(nofile_raise),
	A(mlockall_),
	A(dumpable),
	A(perf),
	A(handle),
	A(fanotify),
	A(inotify),
	A(msgq),
	A(mq),
	A(shm),
	A(kcmp_),
};
#define NACTS (sizeof(acts) / sizeof(acts[0]))

static const char *const contexts[] = { "main", "io", "vcpu" };

/* ---- inside ---- */

static void battery_try(const char *context)
{
	for (unsigned i = 0; i < NACTS; i++) {
		char line[128];

		errno = 0;
		long r = acts[i].fn();
		int num = errno;
		bool through =
		    r >= 0 || (acts[i].probe && num != EPERM && num != EACCES && num != ENOSYS);

		if (r > 2 && r < 4096 && !strncmp(acts[i].name, "open", 4))
			close((int)r);
		int n = snprintf(line, sizeof(line), "%s %u %d %d\n", context, i, through,
				 r < 0 ? num : 0);

		if (write(2, line, (size_t)n) < 0)
			_exit(3);
	}
}

static void *battery_io(void *arg)
{
	if ((*(unsigned *)arg & LOCKDOWN_SECCOMP) && lockdown_io() < 0)
		_exit(4);
	battery_try("io");
	return arg;
}

static void *battery_vcpu(void *arg)
{
	if ((*(unsigned *)arg & LOCKDOWN_SECCOMP) && lockdown_vcpu() < 0)
		_exit(4);
	battery_try("vcpu");
	return arg;
}

static int battery_inside(unsigned layers)
{
	pthread_t t;

	alarm(20); /* an act that blocks ends the run, and the count shows it */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if ((layers & LOCKDOWN_LANDLOCK) && lockdown_paths() < 0)
		layers &= ~(unsigned)LOCKDOWN_LANDLOCK;
	if ((layers & LOCKDOWN_SECCOMP) && lockdown_calls() < 0)
		return 4;
	/* threads first: what main gets through without a layer may change the process */
	if (pthread_create(&t, NULL, battery_vcpu, &layers) || pthread_join(t, NULL) ||
	    pthread_create(&t, NULL, battery_io, &layers) || pthread_join(t, NULL))
		return 5;
	battery_try("main");
	return 0;
}

/* ---- outside ---- */

struct result {
	unsigned tried, through;
	unsigned char got[3][NACTS]; /* 0 not tried, 1 stopped, 2 got through */
};

static int battery_run(const char *dir, uint32_t jail, unsigned lock, struct result *r)
{
	char mask[8], line[128];
	char *argv[] = { (char *)"battery", (char *)"--inside", mask, NULL };
	struct jail_spec s = { .argv = argv,
			       .layers = jail,
			       .uid = 2077777,
			       .root_dir = dir,
			       .nofile_max = 256,
			       .nproc_max = 64 };
	struct jail_proc proc;
	struct err e = { 0 };
	int out[2], status, unlock = 0;

	memset(r, 0, sizeof(*r));
	snprintf(mask, sizeof(mask), "%u", lock);
	s.exe_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	s.fds[0] = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	s.fds[1] = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	s.fds[2] = open("/dev/ptmx", O_RDWR | O_CLOEXEC | O_NOCTTY);
	s.fds[3] = open("/etc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	s.nfds = 4;
	ioctl(s.fds[2], TIOCSPTLCK, &unlock);
	if (pipe2(out, O_CLOEXEC) < 0)
		return -errno;
	s.log_fd = out[1];
	int ret = jail_spawn(&s, &proc, &e);

	close(out[1]);
	close(s.exe_fd);
	for (unsigned i = 0; i < s.nfds; i++)
		if (s.fds[i] >= 0)
			close(s.fds[i]);
	if (!ret)
		ret = jail_result(proc.status_fd, "battery", &e);
	if (ret < 0) {
		fprintf(stderr, "%s\n", e.detail);
		return ret;
	}
	FILE *f = fdopen(out[0], "r");
	unsigned act, through, num;
	char context[16];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%15s %u %u %u", context, &act, &through, &num) == 4 &&
		    act < NACTS)
			for (unsigned c = 0; c < 3; c++)
				if (!strcmp(context, contexts[c])) {
					r->tried++;
					r->through += through;
					r->got[c][act] = through ? 2 : 1;
				}
	if (f)
		fclose(f);
	waitpid(proc.pid, &status, 0);
	close(proc.pidfd);
	return 0;
}

static void battery_names(const struct result *r)
{
	for (unsigned i = 0; i < NACTS; i++) {
		const char *sep = "";

		if (r->got[0][i] != 2 && r->got[1][i] != 2 && r->got[2][i] != 2)
			continue;
		printf(" %s(", acts[i].name);
		for (unsigned c = 0; c < 3; c++)
			if (r->got[c][i] == 2) {
				printf("%s%s", sep, contexts[c]);
				sep = ",";
			}
		printf(")");
	}
	printf("\n");
}

static void battery_time(const char *dir)
{
	enum { N = 200 };
	static uint64_t us[N];
	char *argv[] = { (char *)"battery", (char *)"--inside", (char *)"exit", NULL };
	struct err e;

	for (unsigned i = 0; i < N; i++) {
		struct jail_spec s = { .argv = argv,
				       .layers = JAIL_ALL_ROOT,
				       .uid = 2077777,
				       .root_dir = dir,
				       .nofile_max = 256,
				       .nproc_max = 64,
				       .log_fd = 2 };
		struct jail_proc proc;
		struct timespec a, b;

		s.exe_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
		clock_gettime(CLOCK_MONOTONIC, &a);
		if (jail_spawn(&s, &proc, &e) < 0 || jail_result(proc.status_fd, "timing", &e) < 0)
			return;
		clock_gettime(CLOCK_MONOTONIC, &b);
		us[i] = (uint64_t)(((int64_t)b.tv_sec - a.tv_sec) * 1000000 +
				   (b.tv_nsec - a.tv_nsec) / 1000);
		waitpid(proc.pid, NULL, 0);
		close(proc.pidfd);
		close(s.exe_fd);
	}
	for (unsigned i = 1; i < N; i++)
		for (unsigned j = i; j && us[j - 1] > us[j]; j--) {
			uint64_t t = us[j];

			us[j] = us[j - 1];
			us[j - 1] = t;
		}
	printf("jail set-up, fork to exec: p50 %llu us, p99 %llu us (%d runs)\n",
	       (unsigned long long)us[N / 2], (unsigned long long)us[N * 99 / 100], N);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		uint32_t jail;
		unsigned lock;
	} off[] = {
		{ "mount", JAIL_MOUNT, 0 },
		{ "pid", JAIL_PID, 0 },
		{ "net", JAIL_NET, 0 },
		{ "ipc", JAIL_IPC, 0 },
		{ "uts", JAIL_UTS, 0 },
		{ "cgroup", JAIL_CGROUP, 0 },
		{ "uid", JAIL_UID, 0 },
		{ "caps", JAIL_CAPS, 0 },
		{ "no-new-privs", JAIL_NNP, 0 },
		{ "rlimits", JAIL_RLIMIT, 0 },
		{ "landlock", 0, LOCKDOWN_LANDLOCK },
		{ "seccomp", 0, LOCKDOWN_SECCOMP },
	};
	char dir[] = "/tmp/jail-battery-XXXXXX";
	struct result r;
	unsigned passed = 0, failed = 0;

	if (argc == 3 && !strcmp(argv[1], "--inside"))
		return !strcmp(argv[2], "exit")
			   ? 0
			   : battery_inside((unsigned)strtoul(argv[2], NULL, 10));
	setlinebuf(stdout);
	if (geteuid() != 0) {
		printf("skipped: needs root to make the whole jail\n");
		return 77;
	}
	if (!mkdtemp(dir))
		return 1;
	if (battery_run(dir, JAIL_ALL_ROOT, LOCKDOWN_ALL, &r) < 0 || r.tried != 3 * NACTS) {
		printf("the battery did not run to its end: %u of %zu attempts\n", r.tried,
		       3 * NACTS);
		failed++;
	}
	for (unsigned c = 0; c < 3; c++)
		for (unsigned i = 0; i < NACTS; i++) {
			passed += r.got[c][i] == 1;
			failed += r.got[c][i] == 2;
		}
	printf(
	    "all layers: %zu acts by 3 kinds of thread, %u attempts, %u stopped, %u got through%s",
	    NACTS, r.tried, r.tried - r.through, r.through, r.through ? ":" : "");
	battery_names(&r);
	for (size_t i = 0; i < sizeof(off) / sizeof(off[0]); i++) {
		if (battery_run(dir, JAIL_ALL_ROOT & ~off[i].jail, LOCKDOWN_ALL & ~off[i].lock,
				&r) < 0)
			continue;
		printf("without %-13s %3u of %3u stopped%s", off[i].name, r.tried - r.through,
		       r.tried, r.through ? "; through:" : "");
		battery_names(&r);
	}
	battery_time(dir);
	rmdir(dir);
	printf("%u passed, %u failed, 0 skipped\n", passed, failed);
	return failed ? 1 : 0;
}
