/* dhcp.c - one dnsmasq a network, with no configuration but ours, giving up root by itself.
 *
 * <state>/dhcp/NET holds its host entries and leases. It is found again by its pid file, checked by
 * its arguments, so that a daemon after this one ends the old and starts a new. Leases are kept over
 * that. One that dies is started again: at once, then ever later up to 30 s.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/priv/net.h"

static const struct passwd *dhcp_user(struct priv *p)
{
	const struct passwd *pw = getpwnam(p->cfg->dnsmasq_user);

	return pw ? pw : getpwnam("nobody");
}

int dhcp_dir(struct priv *p, const char *net)
{
	mkdirat(p->state_fd, "dhcp", 0711);
	_cleanup_close_ int all =
	    openat(p->state_fd, "dhcp", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	if (all < 0)
		return -errno;
	mkdirat(all, net, 0755);
	int fd = openat(all, net, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	const struct passwd *pw = dhcp_user(p);

	if (fd >= 0 && pw && fchown(fd, pw->pw_uid, pw->pw_gid) < 0)
		log_debug("dhcp directory of %s: %s", net, strerror(errno));
	return fd < 0 ? -errno : fd;
}

static void dhcp_base(struct priv *p, const struct priv_net *n, char base[400])
{
	snprintf(base, 400, "%.250s/dhcp/%.63s", p->cfg->state_dir, n->name);
}

/* dhcp_running() - pidfd of the dnsmasq that the pid file names, or -1. The file is dnsmasq's own to
 * write: what it names is ended only if its arguments are those that we gave. */
static int dhcp_running(struct priv *p, struct priv_net *n)
{
	_cleanup_close_ int dir = dhcp_dir(p, n->name);
	char text[32] = "", path[64], base[400], want[432], args[4096];

	_cleanup_close_ int fd =
	    dir < 0 ? -1 : openat(dir, "pid", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -1;
	pid_t pid = (pid_t)strtol(text, NULL, 10);

	if (pid <= 1)
		return -1;
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
	_cleanup_close_ int cfd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len = pidfd < 0 || cfd < 0 ? 0 : read(cfd, args, sizeof(args) - 1);

	if (len <= 0)
		return -1;
	args[len] = '\0';
	dhcp_base(p, n, base);
	snprintf(want, sizeof(want), "--pid-file=%s/pid", base);
	for (const char *a = args; a < args + len; a += strlen(a) + 1)
		if (!strcmp(a, want))
			return take_fd(&pidfd);
	return -1;
}

void dhcp_unwatch(struct priv_net *n)
{
	loop_timer_stop(&n->dnsmasq_again);
	loop_fd_del(&n->dnsmasq_w);
	close_fd(&n->dnsmasq_pidfd);
}

void dhcp_stop(struct priv *p, struct priv_net *n)
{
	_cleanup_close_ int pidfd = dhcp_running(p, n);

	if (pidfd >= 0)
		syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0);
	if (n->dnsmasq > 0) {
		struct pollfd end = { .fd = n->dnsmasq_pidfd, .events = POLLIN };

		if (pidfd < 0)
			kill(n->dnsmasq, SIGTERM);
		/* it ends within milliseconds; a stuck one does not hold the daemon up */
		if (end.fd < 0 || poll(&end, 1, 1000) <= 0)
			kill(n->dnsmasq, SIGKILL);
		waitpid(n->dnsmasq, NULL, 0);
		n->dnsmasq = 0;
	}
	dhcp_unwatch(n);
}

static void dhcp_again(void *arg)
{
	struct priv_net *n = arg;
	struct err e = { 0 };

	if (dhcp_start(n->p, n, &e) == 0)
		return;
	log_error("%s", e.detail);
	loop_timer_after(&n->dnsmasq_again, 30 * NS_PER_S);
}

static void dhcp_ended(void *arg, int fd, uint32_t events)
{
	struct priv_net *n = arg;
	siginfo_t si = { 0 };

	waitid(P_PIDFD, (id_t)fd, &si, WEXITED | WNOHANG);
	dhcp_unwatch(n);
	n->dnsmasq = 0;
	if (clock_mono_ns() - n->dnsmasq_started_ns > 60 * NS_PER_S)
		n->dnsmasq_deaths = 0;
	uint64_t delay = n->dnsmasq_deaths
			     ? MIN((100 * NS_PER_MS) << MIN(n->dnsmasq_deaths, 9u), 30 * NS_PER_S)
			     : NS_PER_MS;

	n->dnsmasq_deaths++;
	log_error("network %s: dnsmasq ended by %s %d; it is started again in %llu ms", n->name,
		  si.si_code == CLD_EXITED ? "exit" : "signal", si.si_status,
		  (unsigned long long)(delay / NS_PER_MS));
	loop_timer_after(&n->dnsmasq_again, delay);
}

void dhcp_init(struct priv *p, struct priv_net *n)
{
	n->p = p;
	n->dnsmasq_pidfd = -1;
	n->dnsmasq_w = (struct loop_fd)LOOP_FD_NONE;
	loop_timer_init(p->loop, &n->dnsmasq_again, dhcp_again, n);
}

int dhcp_hosts_write(struct priv *p, struct priv_net *n, struct err *e)
{
	_cleanup_close_ int dir = dhcp_dir(p, n->name);
	struct text t = { 0 };
	int ret = 0;

	for (unsigned i = 0; i < n->nhosts; i++)
		text_printf(&t, "%s%s%s%s%s\n", n->hosts[i].mac, *n->hosts[i].ip ? "," : "",
			    n->hosts[i].ip, *n->hosts[i].name ? "," : "", n->hosts[i].name);
	_cleanup_close_ int fd =
	    dir < 0 ? -1
		    : openat(dir, "hosts.new",
			     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);

	if (fd < 0 || t.error || io_write_full(fd, t.s ? t.s : "", t.len) < 0 ||
	    fchmod(fd, 0644) < 0 || renameat(dir, "hosts.new", dir, "hosts") < 0)
		ret =
		    err_set(e, EIO, "dhcp-failed", "network %s: cannot write its fixed leases: %s",
			    n->name, strerror(errno));
	text_free(&t);
	_cleanup_close_ int pidfd = dhcp_running(p, n);

	if (pidfd >= 0)
		syscall(SYS_pidfd_send_signal, pidfd, SIGHUP, NULL, 0); /* reads the file again */
	return ret;
}

int dhcp_start(struct priv *p, struct priv_net *n, struct err *e)
{
	const struct passwd *pw = dhcp_user(p);
	char *argv[24], base[400];
	sigset_t none;
	int c = 0;

	if (access(p->cfg->dnsmasq, X_OK) < 0) {
		err_set(e, ENOENT, "no-dnsmasq", "network %s: DHCP needs %s", n->name,
			p->cfg->dnsmasq);
		err_hint(e, "apt install dnsmasq-base");
		return -ENOENT;
	}
	dhcp_stop(p, n);
	int ret = dhcp_hosts_write(p, n, e);

	if (ret < 0)
		return ret;
	dhcp_base(p, n, base);
#define DHCP_ARG(...) \
	do { \
		argv[c] = NULL; \
		if (asprintf(&argv[c], __VA_ARGS__) < 0) \
			return err_set(e, ENOMEM, "no-memory", "out of memory"); \
		c++; \
	} while (0)
	DHCP_ARG("dnsmasq");
	DHCP_ARG("--keep-in-foreground");
	DHCP_ARG("--conf-file=/dev/null");
	DHCP_ARG("--no-hosts");
	DHCP_ARG("--bind-interfaces");
	DHCP_ARG("--except-interface=lo");
	DHCP_ARG("--interface=%s", n->bridge);
	DHCP_ARG("--dhcp-authoritative");
	DHCP_ARG("--dhcp-no-override");
	DHCP_ARG("--dhcp-range=%s,%s,12h", n->dhcp_first, n->dhcp_last);
	DHCP_ARG("--dhcp-lease-max=65536");
	DHCP_ARG("--dhcp-hostsfile=%s/hosts", base);
	DHCP_ARG("--dhcp-leasefile=%s/leases", base);
	DHCP_ARG("--pid-file=%s/pid", base);
	DHCP_ARG("--user=%s", pw ? pw->pw_name : "nobody");
	DHCP_ARG("--log-facility=-");
	if (*n->domain) {
		DHCP_ARG("--domain=%s", n->domain);
		DHCP_ARG("--local=/%s/", n->domain);
	}
	argv[c] = NULL;
	pid_t pid = fork();

	if (pid == 0) {
		char *env[] = { (char *)"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL };
		int null = open("/dev/null", O_RDWR);

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid();
		dup2(null, 0);
		dup2(null, 1);
		syscall(SYS_close_range, 3u, ~0u, 4u);
		execve(p->cfg->dnsmasq, argv, env);
		_exit(127);
	}
	while (c)
		free(argv[--c]);
	if (pid < 0)
		return err_set(e, errno, "dhcp-failed", "network %s: cannot start dnsmasq: %s",
			       n->name, strerror(errno));
	n->dnsmasq = pid;
	n->dnsmasq_started_ns = clock_mono_ns();
	n->dnsmasq_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (n->dnsmasq_pidfd < 0 ||
	    loop_fd_add(p->loop, &n->dnsmasq_w, n->dnsmasq_pidfd, EPOLLIN, dhcp_ended, n) < 0)
		log_warn("network %s: nobody will notice the end of its dnsmasq", n->name);
	return 0;
}

/* dhcp_lease_free() - a lease of @ip that another than @mac holds goes: dnsmasq hands a fixed address
 * to nobody while a guest that was removed still has it for hours. It keeps leases in memory, so it
 * is stopped while its file changes. */
int dhcp_lease_free(struct priv *p, struct priv_net *n, const char *ip, const char *mac,
		    struct err *e)
{
	_cleanup_close_ int dir = dhcp_dir(p, n->name);
	_cleanup_close_ int fd = dir < 0 ? -1 : path_open_beneath(dir, "leases", O_RDONLY, 0);
	_cleanup_free_ char *text = NULL;
	struct text keep = { 0 };
	struct stat st;
	bool dropped = false;
	long len = 0;

	/* its own file: what is wrong in there is dnsmasq's matter */
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > 16 << 20)
		return 0;
	text = malloc((size_t)st.st_size + 1);
	len = text ? io_read_full(fd, text, (size_t)st.st_size) : -ENOMEM;
	if (len < 0)
		return 0;
	text[len] = '\0';
	for (char *line = text, *end; *line; line = end) {
		char has_mac[32], has_ip[32];

		end = line + strcspn(line, "\n");
		end += *end == '\n';
		if (sscanf(line, "%*s %31s %31s", has_mac, has_ip) == 2 && !strcmp(has_ip, ip) &&
		    strcasecmp(has_mac, mac))
			dropped = true;
		else
			text_addn(&keep, line, (size_t)(end - line));
	}
	if (dropped && !keep.error) {
		dhcp_stop(p, n);
		_cleanup_close_ int out = openat(
		    dir, "leases.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);

		if (out < 0 || io_write_full(out, keep.s ? keep.s : "", keep.len) < 0 ||
		    fchown(out, st.st_uid, st.st_gid) < 0 ||
		    renameat(dir, "leases.new", dir, "leases") < 0)
			log_warn("network %s: the old lease of %s stays: %s", n->name, ip,
				 strerror(errno));
	}
	text_free(&keep);
	return dropped ? dhcp_start(p, n, e) : 0;
}

/* dhcp_forget() - the network is no more, nor are its leases. */
void dhcp_forget(struct priv *p, const char *net)
{
	static const char *const files[] = { "hosts", "hosts.new", "leases", "leases.new", "pid" };
	_cleanup_close_ int dir = dhcp_dir(p, net);
	char path[80];

	for (size_t i = 0; dir >= 0 && i < ARRAY_SIZE(files); i++)
		unlinkat(dir, files[i], 0);
	snprintf(path, sizeof(path), "dhcp/%.63s", net);
	if (unlinkat(p->state_fd, path, AT_REMOVEDIR) < 0 && errno != ENOENT)
		log_warn("network %s: its directory %s stays: %s", net, path, strerror(errno));
}
