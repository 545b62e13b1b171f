/* jail.c - see jail.h.
 *
 * The child runs on a copy of the parent's memory and makes only system calls: no allocation, no
 * locks, no log. It reports a failed step as {step, errno} through a close-on-exec pipe; EOF means
 * that the program runs.
 * Order matters: cgroup and mounts need root, then limits, then listen() under the final uid, then
 * capabilities.
 */
#include "vmd/priv/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/sandbox.h"

enum jail_step {
	STEP_SIGNALS,
	STEP_USERNS,
	STEP_CGROUP,
	STEP_ROOT,
	STEP_RLIMIT,
	STEP_LISTEN,
	STEP_UID,
	STEP_CAPS,
	STEP_FDS,
	STEP_EXEC,
};

static const char *const jail_steps[] = {
	[STEP_SIGNALS] = "reset signals",   [STEP_USERNS] = "map the user",
	[STEP_CGROUP] = "join the cgroup",  [STEP_ROOT] = "make the empty root",
	[STEP_RLIMIT] = "set limits",	    [STEP_LISTEN] = "listen",
	[STEP_UID] = "change the user",	    [STEP_CAPS] = "drop capabilities",
	[STEP_FDS] = "arrange descriptors", [STEP_EXEC] = "execute the program",
};

static const struct {
	uint32_t layer;
	uint64_t flag;
	const char *name;
} jail_layers[] = {
	{ JAIL_MOUNT, CLONE_NEWNS, "mount" },
	{ JAIL_PID, CLONE_NEWPID, "pid" },
	{ JAIL_NET, CLONE_NEWNET, "net" },
	{ JAIL_IPC, CLONE_NEWIPC, "ipc" },
	{ JAIL_UTS, CLONE_NEWUTS, "uts" },
	{ JAIL_CGROUP, CLONE_NEWCGROUP, "cgroup" },
	{ JAIL_USERNS, CLONE_NEWUSER, "user" },
	{ JAIL_UID, 0, "uid" },
	{ JAIL_CAPS, 0, "caps" },
	{ JAIL_NNP, 0, "no-new-privs" },
	{ JAIL_RLIMIT, 0, "rlimits" },
};

void jail_layers_text(uint32_t layers, char *buf, size_t len)
{
	size_t n = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(jail_layers); i++)
		if ((layers & jail_layers[i].layer) && n < len)
			n += (size_t)snprintf(buf + n, len - n, "%s%s", n ? " " : "",
					      jail_layers[i].name);
}

static int jail_write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));

	if (fd >= 0)
		close(fd);
	return n < 0 ? -1 : 0;
}

static int jail_map_user(uid_t uid, gid_t gid)
{
	char map[64];

	if (jail_write_file("/proc/self/setgroups", "deny") < 0 && errno != ENOENT)
		return -1;
	snprintf(map, sizeof(map), "%u %u 1", uid, uid);
	if (jail_write_file("/proc/self/uid_map", map) < 0)
		return -1;
	snprintf(map, sizeof(map), "%u %u 1", gid, gid);
	return jail_write_file("/proc/self/gid_map", map);
}

/* The old root is stacked under the new one by pivot_root(".", ".") and detached: no directory is
 * needed for it. */
static int jail_empty_root(const char *dir)
{
	const unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", dir, "tmpfs", flags, "size=4k,nr_inodes=1,mode=555") < 0 ||
	    chdir(dir) < 0)
		return -1;
	if (syscall(__NR_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0)
		return -1;
	return chdir("/");
}

static int jail_bind(const char *from, const char *to, bool exec)
{
	const unsigned long flags =
	    MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | (exec ? 0 : MS_NOEXEC);

	if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) < 0)
		return -1;
	return mount(NULL, to, NULL, MS_REMOUNT | flags, NULL);
}

/* A descriptor's mount is that of the namespace it was opened in, and cannot be bound here: by its path, then,
 * and what is there now must be that file. */
static int jail_bind_fd(int fd, const char *to)
{
	char link[64], path[PATH_MAX];
	struct stat want, is;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 0)
		return -1;
	path[n] = '\0';
	if (jail_bind(path, to, false) < 0 || fstat(fd, &want) < 0 || stat(to, &is) < 0)
		return -1;
	errno = ESTALE;
	return want.st_dev == is.st_dev && want.st_ino == is.st_ino ? 0 : -1;
}

/* jail_programs_root() - /usr as it is on the host, the links that lead into it, and the one file that the
 * program is for. Nothing of /etc, /var, /proc, /sys or /dev. */
static int jail_programs_root(const char *dir, int in_fd)
{
	static const char *const links[] = { "bin", "sbin", "lib", "lib32", "lib64", "libx32" };
	const unsigned long flags = MS_NOSUID | MS_NODEV;
	char from[64], to[256];
	int fd;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", dir, "tmpfs", flags, "size=64k,nr_inodes=32,mode=755") < 0 ||
	    chdir(dir) < 0 || mkdir("usr", 0755) < 0 || jail_bind("/usr", "usr", true) < 0)
		return -1;
	for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
		ssize_t n;

		snprintf(from, sizeof(from), "/%s", links[i]);
		n = readlink(from, to, sizeof(to) - 1);
		if (n > 0) {
			to[n] = '\0';
			if (symlink(to, links[i]) < 0)
				return -1;
		} else if (errno == EINVAL &&
			   (mkdir(links[i], 0755) < 0 || jail_bind(from, links[i], true) < 0)) {
			return -1; /* a host whose /lib is a directory of its own */
		}
	}
	fd = open("in", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (fd < 0)
		return -1;
	close(fd);
	if (jail_bind_fd(in_fd, "in") < 0 ||
	    mount(NULL, ".", NULL, MS_REMOUNT | MS_RDONLY | flags, NULL) < 0)
		return -1;
	if (syscall(__NR_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0)
		return -1;
	return chdir("/");
}

static int jail_rlimits(const struct jail_spec *s)
{
	const struct {
		int what;
		rlim_t max;
	} limits[] = {
		{ RLIMIT_CORE, 0 },
		{ RLIMIT_NOFILE, s->nofile_max },
		{ RLIMIT_NPROC, s->nproc_max },
		{ RLIMIT_MSGQUEUE, 0 },
		{ RLIMIT_RTPRIO, 0 },
		{ RLIMIT_NICE, 0 },
		{ RLIMIT_LOCKS, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
		struct rlimit r = { limits[i].max, limits[i].max };

		/* rootless, NPROC counts all of one's processes: it would not be ours to set */
		if (limits[i].what == RLIMIT_NPROC && !(s->layers & JAIL_UID))
			continue;
		if (setrlimit(limits[i].what, &r) < 0)
			return -1;
	}
	return 0;
}

static int jail_drop_uid(uid_t uid)
{
	/* with every "noroot" bit locked uid 0 would mean nothing, even were it reached */
	prctl(PR_SET_SECUREBITS,
	      SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED |
		  SECBIT_KEEP_CAPS_LOCKED,
	      0, 0, 0);
	if (syscall(__NR_setgroups, 0, NULL) < 0 || syscall(__NR_setresgid, uid, uid, uid) < 0 ||
	    syscall(__NR_setresuid, uid, uid, uid) < 0)
		return -1;
	return 0;
}

/* jail_place_fds() - everything to its number: first all out of the way, then down. */
static int jail_place_fds(const struct jail_spec *s, int *status_fd, int *exe_fd)
{
	int want[3 + JAIL_FDS_MAX], high[3 + JAIL_FDS_MAX];
	unsigned n = 0;

	want[n++] = -1; /* 0: a descriptor that is always at its end */
	want[n++] = s->log_fd;
	want[n++] = s->log_fd;
	for (unsigned i = 0; i < s->nfds; i++)
		want[n++] = s->fds[i];
	*status_fd = fcntl(*status_fd, F_DUPFD_CLOEXEC, 64);
	*exe_fd = fcntl(s->exe_fd, F_DUPFD_CLOEXEC, 64);
	if (*status_fd < 0 || *exe_fd < 0)
		return -1;
	for (unsigned i = 0; i < n; i++) {
		high[i] = want[i] < 0 ? -1 : fcntl(want[i], F_DUPFD_CLOEXEC, 64);
		if (want[i] >= 0 && high[i] < 0)
			return -1;
	}
	for (unsigned i = 0; i < n; i++) {
		if (high[i] >= 0 ? dup2(high[i], (int)i) < 0 : (close((int)i), false))
			return -1;
	}
	int null[2];

	/* no /dev/null in an empty root: an ended pipe reads as EOF; it lands on 0, the lowest free
	 * number */
	if (pipe(null) < 0)
		return -1;
	close(null[1]);
	if (null[0] != 0 && (dup2(null[0], 0) < 0 || close(null[0]) < 0))
		return -1;
	/* an index without a descriptor stays closed; all above go at exec */
	return (int)syscall(__NR_close_range, n, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
}

static enum jail_step jail_child(const struct jail_spec *s, gid_t gid, int *status_fd)
{
	sigset_t none;
	int exe = -1;

	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL) < 0)
		return STEP_SIGNALS;
	setsid();
	if ((s->layers & JAIL_USERNS) && jail_map_user(s->uid, gid) < 0)
		return STEP_USERNS;
	for (unsigned i = 0; i < s->ncgroups; i++)
		if (write(s->cgroup_fds[i], "0", 1) < 0)
			return STEP_CGROUP;
	if ((s->layers & JAIL_MOUNT) && (s->programs ? jail_programs_root(s->root_dir, s->in_fd)
						     : jail_empty_root(s->root_dir)) < 0)
		return STEP_ROOT;
	if ((s->layers & JAIL_RLIMIT) && jail_rlimits(s) < 0)
		return STEP_RLIMIT;
	/* the bounding set needs a capability that the change of uid takes away */
	if (s->layers & JAIL_CAPS)
		sandbox_drop_bounding();
	if ((s->layers & JAIL_UID) && jail_drop_uid(s->uid) < 0)
		return STEP_UID;
	if (s->listen && listen(s->fds[0], 8) < 0)
		return STEP_LISTEN;
	if ((s->layers & JAIL_CAPS) && sandbox_drop_caps() < 0)
		return STEP_CAPS;
	if ((s->layers & JAIL_NNP) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return STEP_CAPS;
	umask(077);
	if (jail_place_fds(s, status_fd, &exe) < 0)
		return STEP_FDS;
	char *const no_env[] = { NULL };

	syscall(__NR_execveat, exe, "", s->argv, s->env ? s->env : no_env, AT_EMPTY_PATH);
	return STEP_EXEC;
}

int jail_spawn(const struct jail_spec *s, struct jail_proc *out, struct err *e)
{
	struct clone_args args = { .flags = CLONE_PIDFD, .exit_signal = SIGCHLD };
	int status[2], pidfd = -1;
	gid_t gid = getgid();

	for (size_t i = 0; i < ARRAY_SIZE(jail_layers); i++)
		if (s->layers & jail_layers[i].layer)
			args.flags |= jail_layers[i].flag;
	args.pidfd = (uint64_t)(uintptr_t)&pidfd;
	if (pipe2(status, O_CLOEXEC) < 0)
		return err_set(e, errno, "no-descriptor", "cannot make a pipe: %s",
			       strerror(errno));
	long pid = syscall(__NR_clone3, &args, sizeof(args));

	if (pid == 0) {
		int report[2];

		report[0] = (int)jail_child(s, gid, &status[1]);
		report[1] = errno;
		if (write(status[1], report, sizeof(report)) < 0)
			_exit(126);
		_exit(127);
	}
	int saved = errno;

	close(status[1]);
	if (pid < 0) {
		close(status[0]);
		return err_set(e, saved, "jail-failed",
			       "cannot make a process with its own namespaces: %s",
			       strerror(saved));
	}
	*out = (struct jail_proc){ .pid = (pid_t)pid, .pidfd = pidfd, .status_fd = status[0] };
	return 0;
}

int jail_result(int status_fd, const char *who, struct err *e)
{
	int report[2];
	ssize_t n;

	do
		n = read(status_fd, report, sizeof(report));
	while (n < 0 && errno == EINTR);
	close(status_fd);
	if (n == 0)
		return 0;
	if (n != (ssize_t)sizeof(report) || report[0] < 0 ||
	    report[0] >= (int)ARRAY_SIZE(jail_steps))
		return err_set(e, EIO, "jail-failed", "%s: its jail ended without a report", who);
	err_set(e, report[1], "jail-failed", "%s: the jail could not %s: %s", who,
		jail_steps[report[0]], strerror(report[1]));
	if (report[0] == STEP_EXEC && report[1] == ENOENT)
		err_hint(e, "the program must be linked statically");
	return -report[1];
}
