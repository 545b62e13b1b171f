/* priv.c - priv's loop: starts the other roles, restarts what dies, hands each message to its
 * handler.
 *
 * Start: socketpairs priv-core, priv-api, core-api; each role is this same program executed again
 * (main.c), so that it shares no memory with us. api's death: a new api and a new link for core.
 * core's death: both anew; guests are not touched and core finds them again by p_guest_adopt.
 * Deaths in a row are answered ever later, up to 30 s. systemd: READY=1 once core has opened its
 * data base, STATUS= for people, WATCHDOG=1 at half the interval, STOPPING=1 (sd_notify(3), by
 * hand). The watchdog is fed only while both roles take what priv sends them.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sockios.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/state.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/priv/priv.h"

/* Where the package's users do not exist (a private daemon of a developer, a test): uids that
 * nothing else uses. */
#define PRIV_UID_CORE 1999997u
#define PRIV_UID_API  1999998u

/* ---- answers ---- */

void priv_result(struct priv *p, uint32_t id, uint64_t value, int fd, int fd2, const char *text)
{
	struct msg_result m = { .value = value, .fd = fd, .fd2 = fd2 };

	if (!p->core.conn || !id)
		return;
	snprintf(m.text, sizeof(m.text), "%s", text ? text : "");
	int ret = msg_result_send(p->core.conn, &m, id);

	if (ret < 0)
		log_warn("cannot answer core: %s", strerror(-ret));
}

void priv_ok(struct priv *p, uint32_t id)
{
	priv_result(p, id, 0, -1, -1, NULL);
}

void priv_fail(struct priv *p, uint32_t id, const struct err *e)
{
	struct msg_result m = { .num = (uint64_t)e->num, .fd = -1, .fd2 = -1 };

	if (!p->core.conn || !id)
		return;
	memcpy(m.code, e->code, MIN(sizeof(m.code), sizeof(e->code)));
	m.code[sizeof(m.code) - 1] = '\0';
	memcpy(m.detail, e->detail, sizeof(m.detail));
	memcpy(m.hint, e->hint, sizeof(m.hint));
	msg_result_send(p->core.conn, &m, id);
}

/* ---- systemd ---- */

static void priv_notify(const char *text)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof(sa.sun_path))
		return;
	size_t n = strlen(path);
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	memcpy(sa.sun_path, path, n);
	if (path[0] == '@')
		sa.sun_path[0] = '\0';
	if (fd >= 0 && sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&sa,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) < 0)
		log_debug("NOTIFY_SOCKET: %s", strerror(errno));
}

/* priv_status() - @first, a line for systemd (or ""), and a sentence for people (systemctl status). */
static void priv_status(struct priv *p, const char *first, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void priv_status(struct priv *p, const char *first, const char *fmt, ...)
{
	struct text t = { 0 };
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	text_printf(&t, "%sSTATUS=%s", first, line);
	if (!t.error)
		priv_notify(t.s);
	text_free(&t);
}

/* priv_role_lives() - it has taken the greeting of last time, so its loop turns; greet it again. No
 * answer is needed: what its socket still holds (SIOCOUTQ of our end) tells, whatever it is busy
 * with, and a role that is stopped or spins takes nothing. */
static bool priv_role_lives(struct priv_role *r)
{
	struct msg_hello m = { .version = PROTO_VERSION,
			       .role = "priv",
			       .pid = (uint64_t)getpid() };
	int unread = 0;

	if (!r->up || !r->conn || ioctl(wire_conn_fd(r->conn), SIOCOUTQ, &unread) < 0 || unread ||
	    wire_conn_queued(r->conn))
		return false;
	return msg_hello_send(r->conn, &m, 0) == 0;
}

static void priv_watchdog(void *arg)
{
	struct priv *p = arg;
	/* only a whole daemon is a living one; both are asked, also where the first is dead */
	bool core = priv_role_lives(&p->core), api = priv_role_lives(&p->api);

	if (core && api)
		priv_notify("WATCHDOG=1");
	/* it may just have been sent something: ask again soon */
	loop_timer_after(&p->watchdog, core && api ? p->watchdog_ns : p->watchdog_ns / 8);
}

static void priv_watchdog_start(struct priv *p)
{
	const char *usec = getenv("WATCHDOG_USEC");
	unsigned long long n = usec ? strtoull(usec, NULL, 10) : 0;

	loop_timer_init(p->loop, &p->watchdog, priv_watchdog, p);
	if (!n || n > 86400000000ull)
		return;
	p->watchdog_ns = n * NS_PER_US / 2;
	loop_timer_after(&p->watchdog, p->watchdog_ns);
}

/* ---- messages ---- */

#define PRIV_CASE(name, call) \
	case MSG_##name: { \
		struct msg_##name m; \
		int r = msg_##name##_decode(&m, b); \
\
		if (r < 0) { \
			err_set(&e, -r, "bad-message", "malformed " #name); \
		} else { \
			r = call; \
			msg_##name##_close(&m); \
		} \
		if (r < 0) \
			priv_fail(p, b->id, &e); \
		break; \
	}

static void priv_core_request(struct priv *p, struct wire_buf *b)
{
	struct err e = { 0 };

	switch (b->type) {
		PRIV_CASE(p_volume_open, volume_open(p, &m, &e))
		PRIV_CASE(p_volume_unlink, volume_unlink(p, &m, &e))
		PRIV_CASE(p_volume_rename, volume_rename(p, &m, &e))
		PRIV_CASE(p_volume_list, volume_list(p, &m, &e))
		PRIV_CASE(p_pool_open, volume_pool_open(p, &m, &e))
		PRIV_CASE(p_pool_close, volume_pool_close(p, &m, &e))
		PRIV_CASE(p_pool_stat, volume_pool_stat(p, &m, &e))
		PRIV_CASE(p_net_up, net_up(p, &m, &e))
		PRIV_CASE(p_net_down, net_down(p, &m, &e))
		PRIV_CASE(p_tap_add, net_tap_add(p, &m, &e))
		PRIV_CASE(p_tap_del, net_tap_del(p, &m, &e))
		PRIV_CASE(p_dhcp_host, net_dhcp_host(p, &m, &e))
		PRIV_CASE(p_dhcp_leases, net_dhcp_leases(p, &m, &e))
		PRIV_CASE(p_forward, net_forward(p, &m, &e))
		PRIV_CASE(p_chardev_open, chardev_open(p, &m, &e))
		PRIV_CASE(p_guest_spawn, guests_spawn(p, &m, &e))
		PRIV_CASE(p_guest_kill, guests_kill(p, &m, &e))
		PRIV_CASE(p_guest_clean, guests_clean(p, &m, &e))
		PRIV_CASE(p_guest_adopt, guests_adopt(p, m.msg_id, &e))
		PRIV_CASE(p_guest_usage, guests_usage(p, &m, &e))
		PRIV_CASE(p_guest_limit, guests_limit(p, &m, &e))
		PRIV_CASE(p_log_open, guests_log_open(p, &m, &e))
		PRIV_CASE(p_guest_forget, guests_forget(p, &m, &e))
		PRIV_CASE(p_image_spawn, guests_image_spawn(p, &m, &e))
		PRIV_CASE(p_foreign_spawn, guests_foreign_spawn(p, &m, &e))
		PRIV_CASE(p_export_listen, export_listen(p, &m, &e))
		PRIV_CASE(p_export_gone, export_gone(p, &m, &e))
		PRIV_CASE(p_host_probe, probe_host(p, &m, &e))
	default:
		err_set(&e, EOPNOTSUPP, "not-supported", "priv does not know message 0x%04x",
			b->type);
		priv_fail(p, b->id, &e);
	}
}

static void priv_hello(struct priv_role *r, struct wire_buf *b)
{
	struct msg_hello in, out = { .version = PROTO_VERSION, .pid = (uint64_t)getpid() };

	if (msg_hello_decode(&in, b) < 0)
		return;
	snprintf(out.role, sizeof(out.role), "priv");
	msg_hello_send(r->conn, &out, in.msg_id);
}

/* core asks for the guests once its data base is open: from then on a request is answered. api's
 * socket listens all along. */
static void priv_ready(struct priv *p)
{
	if (p->ready_told)
		return;
	p->ready_told = true;
	log_info("ready: %s", p->cfg->socket);
	priv_notify("READY=1\nSTATUS=Guests can be started; those that ran before are adopted.");
}

static void priv_message(void *arg, struct wire_conn *c, struct wire_buf *b)
{
	struct priv_role *r = arg;
	/* we made both ends of this link ourselves: it is up from the start, hello or not */
	int ret = proto_permit(b, r->proto, PROTO_PRIV, PROTO_UP);

	if (ret < 0) {
		/* our own role asks for what it may not: it is no longer our own */
		log_error("%s sent message 0x%04x, which it may not (%s): it is ended", r->name,
			  b->type, strerror(-ret));
		kill(r->pid, SIGKILL);
		return;
	}
	if (b->type == MSG_hello)
		priv_hello(r, b);
	else if (r == &r->p->core && b->type != MSG_result)
		priv_core_request(r->p, b);
	if (r == &r->p->core && b->type == MSG_p_guest_adopt) {
		if (r->p->ready_told)
			priv_status(r->p, "", "answering on %s", r->p->cfg->socket);
		priv_ready(r->p);
	}
}

static void priv_closed(void *arg, struct wire_conn *c, int why)
{
	struct priv_role *r = arg;

	wire_conn_free(c);
	if (r->conn == c)
		r->conn = NULL;
	r->up = false;
	if (!r->p->stopping && r->pid > 0)
		kill(r->pid, SIGKILL); /* no link, no use; its pidfd tells the rest */
}

/* ---- roles ---- */

static void priv_role_users(struct priv *p)
{
	const struct {
		struct priv_role *r;
		const char *user;
		uid_t fallback;
	} rows[] = { { &p->core, p->cfg->core_user, PRIV_UID_CORE },
		     { &p->api, p->cfg->api_user, PRIV_UID_API } };

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct passwd *pw = p->root ? getpwnam(rows[i].user) : NULL;

		rows[i].r->uid = pw ? pw->pw_uid : p->root ? rows[i].fallback : getuid();
		rows[i].r->gid = pw ? pw->pw_gid : p->root ? rows[i].fallback : getgid();
		if (!pw && p->root)
			log_info("user %s does not exist: role %s runs as uid %u", rows[i].user,
				 rows[i].r->name, (unsigned)rows[i].fallback);
	}
}

/* priv_role_exec() - child: descriptors 3 = link, 4 = its root directory; then ourselves again. */
static void priv_role_exec(struct priv_role *r, int sock, int dir)
{
	char role[24], ids[48];
	sigset_t none;
	int high_sock = fcntl(sock, F_DUPFD, 64), high_dir = fcntl(dir, F_DUPFD, 64);

	snprintf(role, sizeof(role), "--role=%s", r->name);
	snprintf(ids, sizeof(ids), "--role-ids=%u:%u", (unsigned)r->uid, (unsigned)r->gid);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (dup2(high_sock, 3) < 0 || dup2(high_dir, 4) < 0)
		_exit(126);
	syscall(SYS_close_range, 5u, ~0u, 0u);
	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	setsid(); /* a terminal's ^C is priv's to handle */
	/* priv asks first when it ends in order; when it was killed, a stuck role must not keep the
	 * data base from the next daemon's */
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	execl("/proc/self/exe", "vmd", role, ids, r->p->root ? "--role-root" : "--role-user",
	      !strcmp(r->name, "api") && r->p->listen->tls_fd >= 0 ? "--role-tls" : (char *)NULL,
	      (char *)NULL);
	_exit(127);
}

static void priv_role_ended(void *arg, int fd, uint32_t events);

static struct proto_bytes priv_text(const char *s)
{
	return (struct proto_bytes){ (const uint8_t *)s, strlen(s) };
}

/* @lst: what api listens on; NULL for core */
static int priv_role_start(struct priv *p, struct priv_role *r, int dir, int peer,
			   const struct vmd_listen *lst)
{
	struct msg_s_setup m = { .peer = peer,
				 .listen = lst ? lst->api_fd : -1,
				 .listen_tls = lst ? lst->tls_fd : -1,
				 .db_dir = -1,
				 .user_mode = !p->root };
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return -errno;
	pid_t pid = fork();

	if (pid == 0)
		priv_role_exec(r, sv[1], dir);
	close(sv[1]);
	if (pid < 0) {
		close(sv[0]);
		return -errno;
	}
	r->pid = pid;
	r->started_ns = clock_mono_ns();
	r->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	fd_set_nonblock(sv[0]);
	r->conn = wire_conn_new(p->loop, sv[0], WIRE_FDS_MAX, priv_message, priv_closed, r);
	if (!r->conn || r->pidfd < 0 ||
	    loop_fd_add(p->loop, &r->pid_w, r->pidfd, EPOLLIN, priv_role_ended, r) < 0)
		return -ENOMEM;
	wire_conn_set_limit(r->conn, 16 << 20);
	r->up = true;
	if (r == &p->core)
		m.db_dir = dir;
	if (lst && lst->tls_fd >= 0) {
		m.tls_cert = priv_text(lst->cert);
		m.tls_key = priv_text(lst->key);
		m.tls_ca = priv_text(lst->ca);
	}
	config_settings(p->cfg, m.settings, sizeof(m.settings));
	if (r == &p->core && p->first_start) {
		size_t n = strlen(m.settings);

		snprintf(m.settings + n, sizeof(m.settings) - n, "first_start=1\n");
		p->first_start = false;
	}
	return msg_s_setup_send(r->conn, &m, 0);
}

/* priv_db_dir() - <state>/db, core's own: it is core's root directory too. */
static int priv_db_dir(struct priv *p)
{
	mkdirat(p->state_fd, "db", 0700);
	int fd = openat(p->state_fd, "db", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	if (fd >= 0 && p->root &&
	    (fchown(fd, p->core.uid, p->core.gid) < 0 || fchmod(fd, 0700) < 0))
		log_warn("data base directory: %s", strerror(errno));
	/* files of an earlier daemon that ran under other uids */
	static const char *const files[] = { "vmd.db", "vmd.db-wal", "vmd.db-shm" };

	for (size_t i = 0; fd >= 0 && p->root && i < ARRAY_SIZE(files); i++)
		if (fchownat(fd, files[i], p->core.uid, p->core.gid, AT_SYMLINK_NOFOLLOW) < 0 &&
		    errno != ENOENT)
			log_warn("%s: %s", files[i], strerror(errno));
	return fd;
}

static int priv_start_api(struct priv *p, int peer)
{
	mkdirat(p->run_fd, "empty", 0755);
	_cleanup_close_ int dir =
	    openat(p->run_fd, "empty", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	return dir < 0 ? -errno : priv_role_start(p, &p->api, dir, peer, p->listen);
}

static int priv_start_roles(struct priv *p)
{
	_cleanup_close_ int dir = priv_db_dir(p);
	int link[2];

	if (dir < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, link) < 0)
		return -errno;
	int ret = priv_role_start(p, &p->core, dir, link[0], NULL);

	if (!ret)
		ret = priv_start_api(p, link[1]);
	close(link[0]);
	close(link[1]);
	return ret;
}

static void priv_restart(void *arg)
{
	struct priv_role *r = arg;
	struct priv *p = r->p;
	int ret;

	if (p->stopping)
		return;
	if (r == &p->core) {
		if (p->api.pid >
		    0) { /* its link is gone with core; both come anew once it has ended */
			kill(p->api.pid, SIGKILL);
			loop_timer_after(&r->restart, 10 * NS_PER_MS);
			return;
		}
		loop_timer_stop(&p->api.restart);
		ret = priv_start_roles(p);
	} else {
		struct msg_s_setup m = {
			.listen = -1, .listen_tls = -1, .db_dir = -1, .user_mode = !p->root
		};
		int link[2];

		if (!p->core.conn)
			return; /* core's own restart brings us */
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, link) < 0)
			return;
		m.peer = link[0];
		ret = msg_s_setup_send(p->core.conn, &m, 0);
		if (!ret)
			ret = priv_start_api(p, link[1]);
		close(link[0]);
		close(link[1]);
	}
	if (ret < 0) {
		log_error("role %s cannot be started: %s", r->name, strerror(-ret));
		loop_timer_after(&r->restart, NS_PER_S);
	}
}

static void priv_role_ended(void *arg, int fd, uint32_t events)
{
	struct priv_role *r = arg;
	struct priv *p = r->p;
	siginfo_t si = { 0 };

	waitid(P_PIDFD, (id_t)fd, &si, WEXITED | WNOHANG);
	loop_fd_del(&r->pid_w);
	close_fd(&r->pidfd);
	r->pid = 0;
	r->up = false;
	if (r->conn) {
		wire_conn_free(r->conn);
		r->conn = NULL;
	}
	if (p->stopping) {
		if (!p->core.pid && !p->api.pid)
			loop_stop(p->loop);
		return;
	}
	/* an orderly end that nobody asked for is a refusal to run: say so and go */
	if (r == &p->core && si.si_code == CLD_EXITED && si.si_status == 78 /* EX_CONFIG */) {
		log_error("core refuses to run");
		p->exit_status = 78;
		loop_stop(p->loop);
		return;
	}
	if (clock_mono_ns() - r->started_ns > 60 * NS_PER_S)
		r->deaths = 0;
	uint64_t delay =
	    r->deaths ? MIN((100 * NS_PER_MS) << MIN(r->deaths, 9u), 30 * NS_PER_S) : NS_PER_MS;

	r->deaths++;
	log_error("role %s ended by %s %d; it is started again in %llu ms", r->name,
		  si.si_code == CLD_EXITED ? "exit" : "signal", si.si_status,
		  (unsigned long long)(delay / NS_PER_MS));
	priv_status(p, "", "role %s ended; it is started again in %llu ms", r->name,
		    (unsigned long long)(delay / NS_PER_MS));
	if (r == &p->api && !p->core.pid)
		return;
	loop_timer_after(&r->restart, delay);
}

/* ---- start and stop ---- */

static void priv_stop(void *arg, int signo)
{
	struct priv *p = arg;

	if (p->stopping)
		return;
	p->stopping = true;
	log_info("signal %d: ending; guests run on", signo);
	priv_status(p, "STOPPING=1\n", "ending; guests run on");
	/* EOF on its link ends a role in order */
	struct priv_role *roles[] = { &p->api, &p->core };

	for (size_t i = 0; i < ARRAY_SIZE(roles); i++) {
		if (roles[i]->pid > 0)
			kill(roles[i]->pid, SIGTERM);
		if (roles[i]->conn) {
			wire_conn_free(roles[i]->conn);
			roles[i]->conn = NULL;
		}
	}
	if (!p->core.pid && !p->api.pid)
		loop_stop(p->loop);
	else
		loop_timer_after(&p->core.restart, 5 * NS_PER_S);
}

static void priv_core_timer(void *arg)
{
	struct priv_role *r = arg;
	struct priv *p = r->p;

	if (!p->stopping) {
		priv_restart(r);
		return;
	}
	log_warn("a role did not end in 5 s: killed");
	if (p->core.pid > 0)
		kill(p->core.pid, SIGKILL);
	if (p->api.pid > 0)
		kill(p->api.pid, SIGKILL);
}

static int priv_dirs(struct priv *p, struct err *e)
{
	p->state_fd = path_open_dir(p->cfg->state_dir, true, 0711);
	if (p->state_fd < 0)
		return err_set(e, -p->state_fd, "no-state-dir", "state directory %s: %s",
			       p->cfg->state_dir, strerror(-p->state_fd));
	p->run_fd = path_open_dir(p->cfg->run_dir, true, 0755);
	if (p->run_fd < 0)
		return err_set(e, -p->run_fd, "no-run-dir", "run directory %s: %s", p->cfg->run_dir,
			       strerror(-p->run_fd));
	/* one daemon a state directory: the lock goes with the process, and roles do not inherit it
	 */
	int lock = openat(p->run_fd, "vmd.lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (lock < 0 || !listen_lock(lock)) {
		err_set(e, lock < 0 ? errno : EBUSY, "already-running", "another vmd runs in %s",
			p->cfg->run_dir);
		err_hint(e, "use --run and --state to run a second one");
		return -e->num;
	}
	p->first_start = boot_is_first(p);
	if (strcmp(p->cfg->run_dir, "/run/vmd"))
		snprintf(p->instance, sizeof(p->instance), "vmd-%08x",
			 crc32c(0, p->cfg->run_dir, strlen(p->cfg->run_dir)));
	else
		snprintf(p->instance, sizeof(p->instance), "vmd");
	return 0;
}

static void priv_limits(void)
{
	struct rlimit r;

	/* a connection, a pidfd and a log a guest */
	if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
		r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_NOFILE, &r);
	}
}

int priv_main(const struct vmd_config *cfg, const struct vmd_listen *lst)
{
	static struct priv priv;
	struct priv *p = &priv;
	struct err e = { 0 };

	*p = (struct priv){ .cfg = cfg,
			    .root = geteuid() == 0 && !cfg->user_mode,
			    .state_fd = -1,
			    .run_fd = -1,
			    .listen = lst };
	p->core = (struct priv_role){
		.name = "core", .proto = PROTO_CORE, .p = p, .pidfd = -1, .pid_w = LOOP_FD_NONE
	};
	p->api = (struct priv_role){
		.name = "api", .proto = PROTO_API, .p = p, .pidfd = -1, .pid_w = LOOP_FD_NONE
	};
	p->loop = loop_new();
	if (!p->loop)
		return 1;
	signal(SIGPIPE, SIG_IGN);
	priv_limits();
	loop_timer_init(p->loop, &p->core.restart, priv_core_timer, &p->core);
	loop_timer_init(p->loop, &p->api.restart, priv_restart, &p->api);
	loop_signal(p->loop, SIGTERM, priv_stop, p);
	loop_signal(p->loop, SIGINT, priv_stop, p);
	priv_watchdog_start(p);
	int ret = priv_confine(p, &e);

	if (!ret)
		ret = priv_dirs(p, &e);
	if (!ret)
		ret = volume_default_pool(p, &e);
	if (!ret)
		ret = guests_init(p, &e);
	if (!ret) {
		priv_role_users(p);
		ret = priv_start_roles(p);
		if (ret < 0)
			err_set(&e, -ret, "no-roles", "cannot start the other roles: %s",
				strerror(-ret));
	}
	if (ret < 0) {
		log_error("%s%s%s", e.detail, *e.hint ? "; " : "", e.hint);
		return 1;
	}
	ret = loop_run(p->loop);
	net_fini(p);
	guests_fini(p);
	return ret < 0 ? 1 : p->exit_status;
}
