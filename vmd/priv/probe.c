/* probe.c - what this host has, for doctor: one p_fact each, with the way out where something is
 * missing. What KVM is worth only a guest can tell: a short-lived vmd-guest without privileges measures
 * it, while priv goes on.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "vmd/priv/priv.h"

static void probe_fact(struct priv *p, uint32_t id, const char *name, bool ok, const char *text,
		       const char *hint)
{
	struct msg_p_fact m = { .ok = ok };

	snprintf(m.name, sizeof(m.name), "%s", name);
	snprintf(m.text, sizeof(m.text), "%.399s", text);
	snprintf(m.hint, sizeof(m.hint), "%s", ok ? "" : hint);
	msg_p_fact_send(p->core.conn, &m, id);
}

static void probe_device(struct priv *p, uint32_t id, const char *name, const char *path,
			 const char *hint)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
	bool denied = fd < 0 && (errno == EACCES || errno == EPERM);
	char text[128];

	snprintf(text, sizeof(text), "%s: %s", path, fd >= 0 ? "there" : strerror(errno));
	probe_fact(p, id, name, fd >= 0, text,
		   denied ? "run vmd as root, or give your user the group that owns it" : hint);
}

/* ---- what accel=auto picks ---- */

#define PROBE_NS     (5 * NS_PER_S)
#define PROBE_NOBODY 65534

struct probe {
	struct priv *p;
	uint32_t id;
	pid_t pid;
	int fd; /* its standard output */
	struct loop_fd w;
	struct loop_timer late;
	char text[300];
	size_t len;
};

static void probe_end(struct probe *b)
{
	struct priv *p = b->p;
	int status = 0;

	loop_fd_del(&b->w);
	loop_timer_stop(&b->late);
	close(b->fd);
	kill(b->pid, SIGKILL); /* it is done, or late */
	waitpid(b->pid, &status, 0);
	b->text[b->len] = '\0';
	b->text[strcspn(b->text, "\n")] = '\0';
	if (!*b->text)
		snprintf(b->text, sizeof(b->text), "the probe said nothing within 5 s");
	if (p->core.conn && p->core.up) {
		probe_fact(p, b->id, "accel", !strncmp(b->text, "kvm:", 4), b->text,
			   "guests that leave it open run on the software CPU; for native speed "
			   "vmd wants a KVM on hardware (VT-x or AMD-V, also nested)");
		priv_ok(p, b->id);
	}
	free(b);
}

static void probe_ready(void *arg, int fd, uint32_t events)
{
	struct probe *b = arg;
	ssize_t n = read(fd, b->text + b->len, sizeof(b->text) - 1 - b->len);

	if (n > 0)
		b->len += (size_t)n;
	if (n <= 0 || b->len == sizeof(b->text) - 1)
		probe_end(b);
}

static void probe_late(void *arg)
{
	probe_end(arg);
}

/* the child: nobody, with /dev/kvm and a pipe */
static void __attribute__((noreturn)) probe_exec(int exe, int out, int kvm)
{
	char fd[16], *argv[] = { "vmd-guest", "--probe", kvm >= 0 ? "--kvm" : NULL, fd, NULL };
	char *envp[] = { NULL };
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	snprintf(fd, sizeof(fd), "%d", kvm);
	if (dup2(out, 1) < 0 || (kvm >= 0 && fcntl(kvm, F_SETFD, 0) < 0))
		_exit(1);
	if (geteuid() == 0 &&
	    (setgroups(0, NULL) < 0 || setresgid(PROBE_NOBODY, PROBE_NOBODY, PROBE_NOBODY) < 0 ||
	     setresuid(PROBE_NOBODY, PROBE_NOBODY, PROBE_NOBODY) < 0))
		_exit(1);
	syscall(SYS_execveat, exe, "", argv, envp, AT_EMPTY_PATH);
	_exit(1);
}

/* probe_accel() - answers @id when the probe ends. 0, or -errno and nothing is under way. */
static int probe_accel(struct priv *p, uint32_t id)
{
	_cleanup_close_ int exe = open(p->cfg->guest_binary, O_PATH | O_CLOEXEC),
			    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), out = -1;
	struct probe *b = calloc(1, sizeof(*b));
	int pipe_fd[2];

	if (!b || exe < 0 || pipe2(pipe_fd, O_CLOEXEC | O_NONBLOCK) < 0) {
		free(b);
		return -ENOMEM;
	}
	out = pipe_fd[1];
	*b = (struct probe){ .p = p, .id = id, .fd = pipe_fd[0], .w = LOOP_FD_NONE };
	loop_timer_init(p->loop, &b->late, probe_late, b);
	b->pid = fork();
	if (b->pid == 0)
		probe_exec(exe, out, kvm);
	if (b->pid < 0 || loop_fd_add(p->loop, &b->w, b->fd, EPOLLIN, probe_ready, b) < 0) {
		if (b->pid > 0) {
			kill(b->pid, SIGKILL);
			waitpid(b->pid, NULL, 0);
		}
		close(b->fd);
		free(b);
		return -ENOMEM;
	}
	loop_timer_after(&b->late, PROBE_NS);
	return 0;
}

int probe_host(struct priv *p, const struct msg_p_host_probe *m, struct err *e)
{
	uint32_t id = m->msg_id;
	struct utsname un;
	struct rlimit nofile;
	struct statvfs v;
	char text[400], size[24];

	uname(&un);
	snprintf(text, sizeof(text), "Linux %.64s on %.64s", un.release, un.machine);
	probe_fact(p, id, "kernel", true, text, "");
	probe_device(p, id, "kvm", "/dev/kvm",
		     "load kvm_intel or kvm_amd; without it guests run on the software CPU");
	probe_device(p, id, "tun", "/dev/net/tun",
		     "modprobe tun; without it guests have no network");
	probe_device(p, id, "vhost-net", "/dev/vhost-net",
		     "modprobe vhost_net; without it the guest process moves packets itself");
	snprintf(text, sizeof(text), "control groups: %s", cgroup_mode_text(p));
	probe_fact(p, id, "cgroup", strcmp(cgroup_mode_text(p), "none") != 0, text,
		   "mount cgroup2, or guests run without limits");
	long abi = syscall(444, NULL, 0, 1u);
	snprintf(text, sizeof(text), abi > 0 ? "Landlock version %ld" : "no Landlock (%ld)", abi);
	probe_fact(p, id, "landlock", abi > 0, text,
		   "boot with lsm=landlock,...; the jail has its other layers");
	getrlimit(RLIMIT_NOFILE, &nofile);
	snprintf(text, sizeof(text), "%llu open files", (unsigned long long)nofile.rlim_max);
	probe_fact(p, id, "nofile", nofile.rlim_max >= 16384, text,
		   "LimitNOFILE=infinity in vmd.service: thousands of guests need it");
	probe_fact(p, id, "guest-binary", access(p->cfg->guest_binary, X_OK) == 0,
		   p->cfg->guest_binary, "set guest_binary in vmd.conf");
	probe_fact(p, id, "image-binary", access(p->cfg->image_binary, X_OK) == 0,
		   p->cfg->image_binary, "set image_binary in vmd.conf");
	probe_fact(p, id, "dnsmasq", access(p->cfg->dnsmasq, X_OK) == 0, p->cfg->dnsmasq,
		   "apt install dnsmasq-base; without it there is no DHCP");
	probe_fact(p, id, "qemu-nbd", access(FOREIGN_READER, X_OK) == 0, FOREIGN_READER,
		   "apt install qemu-utils; without it no VMDK, VDI, VHDX or VHD is imported");
	if (fstatvfs(p->state_fd, &v) == 0) {
		uint64_t room = (uint64_t)v.f_bavail * v.f_frsize;

		snprintf(text, sizeof(text), "%s free in %.300s",
			 units_format_size(room, size, sizeof(size)), p->cfg->state_dir);
		probe_fact(p, id, "space", room > GIB, text, "free some space, or move state_dir");
	}
	snprintf(text, sizeof(text),
		 p->root ? "root: each role and guest has a uid of its own"
			 : "rootless: roles and guests share your uid");
	probe_fact(p, id, "mode", true, text, "");
	if (!m->measure || probe_accel(p, id) < 0)
		priv_ok(p, id);
	return 0;
}
