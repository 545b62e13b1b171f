/* guest.c - guest and image-job processes: jailed, watched, adopted, cleaned up after.
 *
 * <run>/guests/UUID.sock is a guest's listening socket, made here and inherited by it; its name is
 * how a daemon after this one finds the guest. The directory is root's alone. A spawn does not
 * block: the jail's status descriptor becomes readable when the program runs, then we connect and
 * answer core. At most spawn_max are under way; others queue.
 * A process is known by pidfd, never by pid alone.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/priv/priv.h"

#define SWEEP_NS	     (100 * NS_PER_MS)
#define FOREIGN_MEMORY_BYTES (512ull << 20)

struct guest_proc {
	struct list node;
	struct priv *p;
	char uuid[37];
	bool image; /* an image job: no socket by name, nothing to adopt */
	bool gone;
	pid_t pid;
	int pidfd;
	struct loop_fd pid_w;
	/* while the jail is being made */
	struct loop_fd status_w;
	uint32_t spawn_id;
	int sock; /* image: our end of the pair */
	uint64_t begun_ns;
	struct guest_log *log;
};

struct priv_guests {
	struct list procs;
	int dir_fd; /* <run>/guests */
	char dir[200], root_dir[200];
	int guest_exe, image_exe;
	bool userns_ok, userns_known;
	struct loop_timer sweep;
};

static struct guest_proc *guest_find(struct priv *p, const char *uuid)
{
	list_for_each (n, &p->guests->procs) {
		struct guest_proc *g = container_of(n, struct guest_proc, node);

		if (!strcmp(g->uuid, uuid))
			return g;
	}
	return NULL;
}

static struct guest_proc *guest_get(struct priv *p, const char *uuid, struct err *e)
{
	struct guest_proc *g = guest_find(p, uuid);

	if (!g)
		err_set(e, ESRCH, "no-process", "guest %s has no process", uuid);
	return g;
}

static void guest_free(struct guest_proc *g)
{
	list_del(&g->node);
	loop_fd_del(&g->pid_w);
	if (g->status_w.fd >= 0) {
		int fd = g->status_w.fd;

		loop_fd_del(&g->status_w);
		close(fd);
	}
	close_fd(&g->pidfd);
	close_fd(&g->sock);
	guest_log_free(g->log);
	free(g);
}

/* What a process leaves behind by name. */
static void guest_leftovers(struct priv *p, const char *uuid)
{
	char name[64];

	snprintf(name, sizeof(name), "%s.sock", uuid);
	unlinkat(p->guests->dir_fd, name, 0);
	snprintf(name, sizeof(name), "%s.log", uuid);
	unlinkat(p->guests->dir_fd, name, 0);
	/* its pidfd tells of a death a little before the kernel has taken it out of its group */
	if (!cgroup_remove(p, uuid))
		loop_timer_after(&p->guests->sweep, SWEEP_NS);
}

static void guest_ended(void *arg, int fd, uint32_t events)
{
	struct guest_proc *g = arg;
	struct priv *p = g->p;
	struct msg_p_exited m = { .pid = (uint64_t)g->pid, .status = -1 };
	siginfo_t si = { 0 };

	/* an adopted guest is init's child, not ours: its status is not to be had */
	if (waitid(P_PIDFD, (id_t)fd, &si, WEXITED | WNOHANG) == 0 && si.si_pid)
		m.status = si.si_code == CLD_EXITED ? si.si_status << 8 : si.si_status;
	loop_fd_del(&g->pid_w);
	g->gone = true;
	if (g->status_w.fd >= 0)
		return; /* died in its jail: guest_jailed() tells */
	memcpy(m.uuid, g->uuid, sizeof(m.uuid));
	if (p->core.conn && p->core.up)
		msg_p_exited_send(p->core.conn, &m, 0);
	log_info("%s %s ended, status %lld", g->image ? "job" : "guest", g->uuid,
		 (long long)m.status);
	guest_leftovers(p, g->uuid);
	guest_free(g);
}

/* guest_connect() - a new connection to a guest; checks that who listens is @uid, and tells its
 * pid. fd or -errno. */
static int guest_connect(struct priv *p, const char *uuid, struct ucred *cred)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	socklen_t len = sizeof(*cred);

	if (fd < 0)
		return -errno;
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.60s/%.36s.sock", p->guests->dir, uuid);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, cred, &len) < 0)
		return -errno;
	uint64_t uid = cred->uid;

	if (p->root ? uid < p->cfg->guest_uid_first ||
			  uid >= p->cfg->guest_uid_first + p->cfg->guest_uid_count
		    : uid != getuid())
		return -EPERM;
	return take_fd(&fd);
}

static void guest_jailed(void *arg, int fd, uint32_t events)
{
	struct guest_proc *g = arg;
	struct priv *p = g->p;
	struct err e = { 0 };
	struct ucred cred;
	int sock = -1;

	loop_fd_del(&g->status_w);
	int ret = jail_result(fd, g->uuid, &e);

	if (!ret && g->image) {
		sock = take_fd(&g->sock);
	} else if (!ret) {
		sock = guest_connect(p, g->uuid, &cred);
		if (sock < 0)
			ret = err_set(&e, -sock, "guest-unreachable",
				      "guest %s: its process does not listen: %s", g->uuid,
				      strerror(-sock));
	}
	if (ret < 0) {
		syscall(SYS_pidfd_send_signal, g->pidfd, SIGKILL, NULL, 0);
		siginfo_t si;

		waitid(P_PIDFD, (id_t)g->pidfd, &si, WEXITED);
		priv_fail(p, g->spawn_id, &e);
		guest_leftovers(p, g->uuid);
		guest_free(g);
		return;
	}
	log_debug("%s %s: pid %d, jailed in %llu us", g->image ? "job" : "guest", g->uuid, g->pid,
		  (unsigned long long)((clock_mono_ns() - g->begun_ns) / NS_PER_US));
	priv_result(p, g->spawn_id, (uint64_t)g->pid, g->pidfd, sock, NULL);
	close(sock);
	if (g->gone) { /* and ended at once */
		loop_fd_add(p->loop, &g->pid_w, g->pidfd, EPOLLIN, guest_ended, g);
		g->gone = false;
	}
}

static struct guest_proc *guest_new(struct priv *p, const char *uuid)
{
	struct guest_proc *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	*g = (struct guest_proc){
		.p = p, .pidfd = -1, .pid_w = LOOP_FD_NONE, .status_w = LOOP_FD_NONE, .sock = -1
	};
	snprintf(g->uuid, sizeof(g->uuid), "%s", uuid);
	list_add_tail(&p->guests->procs, &g->node);
	return g;
}

static uint32_t guest_layers(struct priv *p)
{
	if (p->root)
		return JAIL_ALL_ROOT;
	if (!p->guests->userns_known) {
		/* ask the kernel, not its settings: a child tries */
		pid_t pid = fork();
		int status = 1;

		if (pid == 0)
			_exit(syscall(SYS_unshare, 0x10000000 /* CLONE_NEWUSER */) < 0);
		if (pid > 0)
			waitpid(pid, &status, 0);
		p->guests->userns_ok = status == 0;
		p->guests->userns_known = true;
		if (!p->guests->userns_ok)
			log_warn("user namespaces are not allowed here: guests are held by "
				 "seccomp, Landlock and limits alone");
	}
	return p->guests->userns_ok ? JAIL_ALL_USER : JAIL_LEAST;
}

static int guest_listen_socket(struct priv *p, const char *uuid, struct err *e)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	char name[64];

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.60s/%.36s.sock", p->guests->dir, uuid);
	snprintf(name, sizeof(name), "%s.sock", uuid);
	unlinkat(p->guests->dir_fd, name,
		 0); /* of a process that is no more: guests_spawn() looked */
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return err_set(e, errno, "no-socket", "guest %s: cannot make its socket: %s", uuid,
			       strerror(errno));
	return take_fd(&fd);
}

static int guest_jail(struct guest_proc *g, struct jail_spec *s, struct err *e)
{
	struct priv *p = g->p;
	struct jail_proc proc;
	int ret = jail_spawn(s, &proc, e);

	if (ret < 0)
		return ret;
	g->pid = proc.pid;
	g->pidfd = proc.pidfd;
	ret = loop_fd_add(p->loop, &g->status_w, proc.status_fd, EPOLLIN, guest_jailed, g);
	if (!ret)
		ret = loop_fd_add(p->loop, &g->pid_w, g->pidfd, EPOLLIN, guest_ended, g);
	if (ret < 0) {
		syscall(SYS_pidfd_send_signal, g->pidfd, SIGKILL, NULL, 0);
		return err_set(e, -ret, "no-epoll", "guest %s: cannot watch its process: %s",
			       g->uuid, strerror(-ret));
	}
	return 0;
}

static unsigned guests_spawning(struct priv *p)
{
	unsigned n = 0;

	list_for_each (node, &p->guests->procs)
		n += container_of(node, struct guest_proc, node)->status_w.fd >= 0;
	return n;
}

int guests_spawn(struct priv *p, const struct msg_p_guest_spawn *m, struct err *e)
{
	struct cgroup_limits lim = { .cpu_shares = m->cpu_shares,
				     .cpu_limit_pct = m->cpu_limit_pct,
				     .memory_max_bytes = m->memory_max_bytes };
	int log_fd = -1, ret, ncg, n = 0;
	char layers[200], uid_text[24], *argv[12];
	struct ucred cred;

	if (!uuid_valid(m->uuid))
		return err_set(e, EINVAL, "bad-uuid", "\"%.36s\" is not a UUID", m->uuid);
	if (m->uid_slot >= p->cfg->guest_uid_count)
		return err_set(e, ERANGE, "uids-exhausted",
			       "guest %.63s: no uid left; guest_uid_count is %llu", m->name,
			       (unsigned long long)p->cfg->guest_uid_count);
	_cleanup_close_ int other = guest_find(p, m->uuid) ? -1 : guest_connect(p, m->uuid, &cred);

	if (guest_find(p, m->uuid) || other >= 0)
		return err_set(e, EEXIST, "guest-running", "guest %.63s already has a process",
			       m->name);
	if (guests_spawning(p) >= p->cfg->spawn_max * 4)
		return err_set(e, EAGAIN, "busy", "more than %llu guests are being started at once",
			       (unsigned long long)p->cfg->spawn_max * 4);
	if (p->guests->guest_exe < 0)
		return err_set(e, ENOENT, "no-guest-binary", "%s cannot be opened",
			       p->cfg->guest_binary);
	struct guest_proc *g = guest_new(p, m->uuid);

	if (!g)
		return err_set(e, ENOMEM, "no-memory", "guest %.63s: out of memory", m->name);
	g->spawn_id = m->msg_id;
	g->begun_ns = clock_mono_ns();
	struct jail_spec s = { .exe_fd = p->guests->guest_exe,
			       .layers = guest_layers(p),
			       .root_dir = p->guests->root_dir,
			       .uid = p->root ? (uid_t)(p->cfg->guest_uid_first + m->uid_slot)
					      : getuid(),
			       .listen = true,
			       .nofile_max = 4096,
			       .nproc_max = 256 + m->vcpus };
	int listen_fd = guest_listen_socket(p, m->uuid, e);

	ret = listen_fd < 0 ? listen_fd : 0;
	if (!ret) {
		g->log = guest_log_new(p, p->guests->dir_fd, m->uuid, &log_fd, e);
		ret = g->log ? 0 : -e->num;
	}
	if (!ret) {
		ncg = cgroup_make(p, m->uuid, &lim, s.cgroup_fds, e);
		ret = ncg < 0 ? ncg : 0;
		s.ncgroups = ncg > 0 ? (unsigned)ncg : 0;
	}
	_cleanup_close_ int kvm = m->want_kvm ? open("/dev/kvm", O_RDWR | O_CLOEXEC) : -1;

	if (!ret) {
		jail_layers_text(s.layers, layers, sizeof(layers));
		snprintf(uid_text, sizeof(uid_text), "%u", (unsigned)getuid());
		s.log_fd = log_fd;
		s.fds[s.nfds++] = listen_fd;
		if (kvm >= 0)
			s.fds[s.nfds++] = kvm;
		argv[n++] = (char *)"vmd-guest";
		argv[n++] = (char *)"--listen";
		argv[n++] = (char *)"3";
		argv[n++] = (char *)"--peer-uid";
		argv[n++] = uid_text;
		argv[n++] = (char *)"--jail";
		argv[n++] = layers;
		if (kvm >= 0) {
			argv[n++] = (char *)"--kvm";
			argv[n++] = (char *)"4";
		}
		argv[n] = NULL;
		s.argv = argv;
		ret = guest_jail(g, &s, e);
	}
	for (unsigned i = 0; i < s.ncgroups; i++)
		close(s.cgroup_fds[i]);
	close_fd(&listen_fd);
	close_fd(&log_fd);
	if (ret < 0) {
		guest_leftovers(p, m->uuid);
		guest_free(g);
	}
	return ret;
}

/* The last uid of the range: jobs share it, each alone in its namespaces. */
static uid_t guest_job_uid(const struct priv *p)
{
	return p->root ? (uid_t)(p->cfg->guest_uid_first + p->cfg->guest_uid_count - 1) : getuid();
}

/* guest_job() - jail the program of @s for core's job @job; @sock: core's end, taken in any case. */
static int guest_job(struct priv *p, const char *job, uint32_t id, struct jail_spec *s, int sock,
		     uint64_t memory_max_bytes, struct err *e)
{
	struct cgroup_limits lim = { .cpu_shares = 256, .memory_max_bytes = memory_max_bytes };
	struct guest_proc *g;
	int ret, ncg, log_fd = -1;

	g = guest_find(p, job) || !uuid_valid(job) ? NULL : guest_new(p, job);
	if (!g) {
		close(sock);
		return err_set(e, EINVAL, "bad-uuid", "\"%.36s\" is not the UUID of a new job",
			       job);
	}
	s->layers = guest_layers(p);
	s->root_dir = p->guests->root_dir;
	s->nofile_max = 1024;
	s->nproc_max = 64;
	s->uid = guest_job_uid(p);
	g->image = true;
	g->spawn_id = id;
	g->begun_ns = clock_mono_ns();
	g->sock = sock;
	g->log = guest_log_new(p, p->guests->dir_fd, job, &log_fd, e);
	ret = g->log ? 0 : -e->num;
	if (!ret) {
		ncg = cgroup_make(p, job, &lim, s->cgroup_fds, e);
		ret = ncg < 0 ? ncg : 0;
		s->ncgroups = ncg > 0 ? (unsigned)ncg : 0;
		s->log_fd = log_fd;
	}
	if (!ret)
		ret = guest_jail(g, s, e);
	for (unsigned i = 0; i < s->ncgroups; i++)
		close(s->cgroup_fds[i]);
	close_fd(&log_fd);
	if (ret < 0) {
		guest_leftovers(p, job);
		guest_free(g);
	}
	return ret;
}

int guests_image_spawn(struct priv *p, const struct msg_p_image_spawn *m, struct err *e)
{
	char *argv[] = { (char *)"vmd-image", NULL };
	int sv[2];

	if (p->guests->image_exe < 0)
		return err_set(e, ENOENT, "no-image-binary", "%s cannot be opened",
			       p->cfg->image_binary);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return err_set(e, errno, "no-socket", "job %s: %s", m->job, strerror(errno));
	struct jail_spec s = {
		.exe_fd = p->guests->image_exe, .argv = argv, .fds = { sv[1] }, .nfds = 1
	};
	int ret = guest_job(p, m->job, m->msg_id, &s, sv[0], 0, e);

	close(sv[1]);
	return ret;
}

/* guest_listening_pair() - a listening socket and one connected to it. Its name lies in the run directory
 * for that moment only, for nobody but us: another local user must not be the first to connect. */
static int guest_listening_pair(struct priv *p, const char *job, int *listener, int *sock,
				struct err *e)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char leaf[64];
	int ok = -1, num;

	*listener = *sock = -1;
	snprintf(leaf, sizeof(leaf), "job-%.36s.sock", job);
	if (!path_leaf_ok(leaf))
		return err_set(e, EINVAL, "bad-name", "\"%.36s\" is no id of a job", job);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "/proc/self/fd/%d/%s", p->run_fd, leaf);
	*listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	*sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	(void)unlinkat(p->run_fd, leaf, 0);
	if (*listener >= 0 && *sock >= 0 && fchmod(*listener, 0600) == 0 &&
	    bind(*listener, (struct sockaddr *)&sa, sizeof(sa)) == 0) {
		if (listen(*listener, 1) == 0)
			ok = connect(*sock, (struct sockaddr *)&sa, sizeof(sa));
		num = errno;
		(void)unlinkat(p->run_fd, leaf, 0);
		errno = num;
	}
	if (ok == 0)
		return 0;
	err_set(e, errno, "no-socket", "no socket for a job: %s", strerror(errno));
	close_fd(listener);
	close_fd(sock);
	return -e->num;
}

int guests_foreign_spawn(struct priv *p, const struct msg_p_foreign_spawn *m, struct err *e)
{
	static const char *const formats[] = { "vmdk", "vdi", "vhdx", "vpc" };
	char format[32];
	char *argv[] = { (char *)"qemu-nbd",   (char *)"--read-only", format,
			 (char *)"--shared=1", (char *)"/in",	      NULL };
	/* in its namespace it is process 1 */
	char *env[] = { (char *)"LISTEN_FDS=1", (char *)"LISTEN_PID=1", (char *)"PATH=/usr/bin",
			NULL };
	struct msg_p_volume_open v = { .mode = 0 };
	int listener = -1, sock = -1, ret;
	bool known = false;

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		known |= !strcmp(formats[i], m->format);
	if (!known)
		return err_set(e, EINVAL, "bad-format", "\"%s\" is no format that is imported",
			       m->format);
	if (!(guest_layers(p) & JAIL_MOUNT))
		return err_set(
		    e, EPERM, "no-jail",
		    "images of other makers are read in a jail, and user namespaces are not "
		    "allowed here");
	_cleanup_close_ int exe = open(FOREIGN_READER, O_PATH | O_CLOEXEC);

	if (exe < 0) {
		err_set(e, errno, "no-qemu-nbd", "%s, which reads %s files, is missing: %s",
			FOREIGN_READER, m->format, strerror(errno));
		err_hint(e, "apt install qemu-utils");
		return -e->num;
	}
	memcpy(v.pool, m->pool, sizeof(v.pool));
	memcpy(v.name, m->name, sizeof(v.name));
	_cleanup_close_ int in = volume_fd(p, &v, e);

	if (in < 0)
		return in;
	if (p->root && (fchown(in, guest_job_uid(p), guest_job_uid(p)) < 0 || fchmod(in, 0400) < 0))
		return err_set(e, errno, "volume-failed",
			       "volume %s: cannot be given to the job: %s", m->name,
			       strerror(errno));
	ret = guest_listening_pair(p, m->job, &listener, &sock, e);
	if (ret < 0)
		return ret;
	snprintf(format, sizeof(format), "--format=%s", m->format);
	struct jail_spec s = { .exe_fd = exe,
			       .argv = argv,
			       .env = env,
			       .programs = true,
			       .in_fd = in,
			       .fds = { listener },
			       .nfds = 1 };

	ret = guest_job(p, m->job, m->msg_id, &s, sock, FOREIGN_MEMORY_BYTES, e);
	close(listener);
	return ret;
}

int guests_kill(struct priv *p, const struct msg_p_guest_kill *m, struct err *e)
{
	struct guest_proc *g = guest_get(p, m->uuid, e);

	if (!g)
		return -ESRCH;
	if (m->signo != SIGKILL && m->signo != SIGTERM)
		return err_set(e, EINVAL, "bad-signal", "guest %s: signal %llu is not for guests",
			       m->uuid, (unsigned long long)m->signo);
	if (syscall(SYS_pidfd_send_signal, g->pidfd, (int)m->signo, NULL, 0) < 0)
		return err_set(e, errno, "kill-failed", "guest %s: cannot be signalled: %s",
			       m->uuid, strerror(errno));
	priv_ok(p, m->msg_id);
	return 0;
}

int guests_clean(struct priv *p, const struct msg_p_guest_clean *m, struct err *e)
{
	if (!uuid_valid(m->uuid))
		return err_set(e, EINVAL, "bad-uuid", "\"%.36s\" is not a UUID", m->uuid);
	if (guest_find(p, m->uuid))
		return err_set(e, EBUSY, "guest-running", "guest %s still has a process", m->uuid);
	guest_leftovers(p, m->uuid);
	priv_ok(p, m->msg_id);
	return 0;
}

/* guest_adopt_one() - a socket by that name: its listener, if it lives, is a guest again. */
static void guest_adopt_one(struct priv *p, const char *uuid)
{
	struct ucred cred = { 0 };
	int sock = guest_connect(p, uuid, &cred);

	if (sock < 0) {
		if (sock == -ECONNREFUSED || sock == -ENOENT)
			guest_leftovers(p, uuid);
		else
			log_warn("guest %s: cannot be adopted: %s", uuid, strerror(-sock));
		return;
	}
	close(sock);
	pid_t pid = cred.pid;
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	/* the pid may have been reused before the pidfd was there. Who listens under it still, after
	 * that, has lived all along: it is whom the pidfd means. */
	sock = pidfd < 0 ? -1 : guest_connect(p, uuid, &cred);
	if (sock < 0 || cred.pid != pid) {
		log_info("guest %s: ended while it was being adopted", uuid);
		if (sock >= 0)
			close(sock);
		close_fd(&pidfd);
		return;
	}
	close(sock);
	struct guest_proc *g = guest_new(p, uuid);

	if (!g) {
		close(pidfd);
		return;
	}
	g->pidfd = pidfd;
	g->pid = pid;
	g->log = guest_log_new(p, p->guests->dir_fd, uuid, NULL, NULL);
	loop_fd_add(p->loop, &g->pid_w, pidfd, EPOLLIN, guest_ended, g);
	log_info("guest %s: adopted, pid %d", uuid, g->pid);
}

static bool guest_lives(struct priv *p, const char *uuid)
{
	return guest_find(p, uuid) != NULL;
}

/* of guests and jobs that ended while no daemon was there, or whose daemon did not get to it */
static void guests_sweep(void *arg)
{
	struct priv *p = arg;

	if (!cgroup_sweep(p, guest_lives))
		loop_timer_after(&p->guests->sweep, SWEEP_NS);
}

/* guests_each() - @fn for each UUID that a name in <run>/guests begins with, if it ends in @end. */
static void guests_each(struct priv *p, const char *end,
			void (*fn)(struct priv *p, const char *uuid))
{
	int fd = openat(p->guests->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

	for (struct dirent *de; d && (de = readdir(d));) {
		char uuid[37];

		if (strlen(de->d_name) != 36 + strlen(end) || strcmp(de->d_name + 36, end))
			continue;
		memcpy(uuid, de->d_name, 36);
		uuid[36] = '\0';
		if (uuid_valid(uuid) && !guest_find(p, uuid))
			fn(p, uuid);
	}
	if (d)
		closedir(d);
}

static void guest_log_orphan(struct priv *p, const char *uuid)
{
	char name[64];

	snprintf(name, sizeof(name), "%s.sock", uuid);
	/* with a socket it is a guest that could not be adopted */
	if (faccessat(p->guests->dir_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
		guest_leftovers(p, uuid);
}

static void guests_scan(struct priv *p)
{
	guests_each(p, ".sock", guest_adopt_one);
	guests_each(p, ".log", guest_log_orphan);
	guests_sweep(p);
}

int guests_adopt(struct priv *p, uint32_t id, struct err *e)
{
	uint64_t count = 0;

	guests_scan(p);
	list_for_each_safe (n, &p->guests->procs) {
		struct guest_proc *g = container_of(n, struct guest_proc, node);
		struct msg_p_guest_found m = { .pid = (uint64_t)g->pid, .pidfd = g->pidfd };
		struct ucred cred;

		if (g->image || g->gone || g->status_w.fd >= 0)
			continue;
		m.sock = guest_connect(p, g->uuid, &cred);
		if (m.sock < 0)
			continue;
		memcpy(m.uuid, g->uuid, sizeof(m.uuid));
		if (msg_p_guest_found_send(p->core.conn, &m, id) == 0)
			count++;
		close(m.sock);
	}
	priv_result(p, id, count, -1, -1, NULL);
	return 0;
}

static uint64_t guest_proc_kib(const char *text, const char *key)
{
	const char *at = strstr(text, key);

	return at ? strtoull(at + strlen(key), NULL, 10) * 1024 : 0;
}

static void guest_proc_read(pid_t pid, const char *file, char *buf, size_t len)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, buf, len - 1);

	buf[n > 0 ? n : 0] = '\0';
}

int guests_usage(struct priv *p, const struct msg_p_guest_usage *m, struct err *e)
{
	struct guest_proc *g = guest_get(p, m->uuid, e);
	unsigned long long utime = 0, stime = 0, threads = 0;
	char buf[4096];

	if (!g)
		return -ESRCH;
	struct msg_p_usage u = { 0 };

	memcpy(u.uuid, g->uuid, sizeof(u.uuid));
	guest_proc_read(g->pid, "stat", buf, sizeof(buf));
	char *after = strrchr(buf, ')');

	if (after &&
	    sscanf(after + 1,
		   " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %llu",
		   &utime, &stime, &threads) == 3)
		u.cpu_ns = (utime + stime) * (NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK));
	u.threads = threads;
	guest_proc_read(g->pid, "smaps_rollup", buf, sizeof(buf));
	u.rss_bytes = guest_proc_kib(buf, "Rss:");
	u.pss_bytes = guest_proc_kib(buf, "Pss:");
	u.private_bytes =
	    guest_proc_kib(buf, "Private_Clean:") + guest_proc_kib(buf, "Private_Dirty:");
	u.shared_bytes =
	    guest_proc_kib(buf, "Shared_Clean:") + guest_proc_kib(buf, "Shared_Dirty:");
	if (!u.rss_bytes) {
		guest_proc_read(g->pid, "status", buf, sizeof(buf));
		u.rss_bytes = guest_proc_kib(buf, "VmRSS:");
	}
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd", g->pid);
	DIR *d = opendir(path);

	for (struct dirent *de; d && (de = readdir(d));)
		u.fds += de->d_name[0] != '.';
	if (d)
		closedir(d);
	return msg_p_usage_send(p->core.conn, &u, m->msg_id);
}

int guests_limit(struct priv *p, const struct msg_p_guest_limit *m, struct err *e)
{
	struct cgroup_limits lim = { m->cpu_shares, m->cpu_limit_pct, m->memory_max_bytes };

	if (!guest_get(p, m->uuid, e))
		return -ESRCH;
	int ret = cgroup_limit(p, m->uuid, &lim, e);

	if (!ret)
		priv_ok(p, m->msg_id);
	return ret;
}

int guests_log_open(struct priv *p, const struct msg_p_log_open *m, struct err *e)
{
	if (!uuid_valid(m->uuid))
		return err_set(e, EINVAL, "bad-uuid", "\"%.36s\" is not a UUID", m->uuid);
	_cleanup_close_ int fd = guest_log_port_fd(p, m->uuid, m->port, false);

	if (fd < 0)
		return err_set(e, -fd, "no-log", "guest %s has no log: %s", m->uuid, strerror(-fd));
	priv_result(p, m->msg_id, 0, fd, -1, NULL);
	return 0;
}

int guests_forget(struct priv *p, const struct msg_p_guest_forget *m, struct err *e)
{
	if (!uuid_valid(m->uuid))
		return err_set(e, EINVAL, "bad-uuid", "\"%.36s\" is not a UUID", m->uuid);
	if (guest_find(p, m->uuid))
		return err_set(e, EBUSY, "guest-runs", "guest %s still runs", m->uuid);
	guest_log_forget(p, m->uuid);
	priv_ok(p, m->msg_id);
	return 0;
}

int guests_init(struct priv *p, struct err *e)
{
	struct priv_guests *gs = calloc(1, sizeof(*gs));

	if (!gs)
		return err_set(e, ENOMEM, "no-memory", "out of memory");
	p->guests = gs;
	list_init(&gs->procs);
	gs->guest_exe = gs->image_exe = -1;
	loop_timer_init(p->loop, &gs->sweep, guests_sweep, p);
	snprintf(gs->dir, sizeof(gs->dir), "%.190s/guests", p->cfg->run_dir);
	snprintf(gs->root_dir, sizeof(gs->root_dir), "%.190s/empty", p->cfg->run_dir);
	gs->dir_fd = path_open_dir(gs->dir, true, 0700);
	_cleanup_close_ int empty = path_open_dir(gs->root_dir, true, 0755);

	if (gs->dir_fd < 0 || empty < 0)
		return err_set(e, EIO, "no-run-dir", "cannot make directories in %s",
			       p->cfg->run_dir);
	gs->guest_exe = open(p->cfg->guest_binary, O_PATH | O_CLOEXEC);
	gs->image_exe = open(p->cfg->image_binary, O_PATH | O_CLOEXEC);
	if (gs->guest_exe < 0)
		log_warn("%s: %s; no guest can be started", p->cfg->guest_binary, strerror(errno));
	guests_scan(p);
	return 0;
}

void guests_fini(struct priv *p)
{
	struct priv_guests *gs = p->guests;

	if (!gs)
		return;
	loop_timer_stop(&gs->sweep);
	list_for_each_safe (n, &gs->procs)
		guest_free(container_of(n, struct guest_proc, node));
	close_fd(&gs->dir_fd);
	close_fd(&gs->guest_exe);
	close_fd(&gs->image_exe);
	cgroup_fini(p);
	free(gs);
	p->guests = NULL;
}
