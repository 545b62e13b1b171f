/* dhcp.c - one dnsmasq a network, with no configuration but ours, giving up root by itself.
 *
 * <state>/dhcp/NET holds its host entries and leases. It is found again by its pid file, checked by
 * program name, so that a daemon after this one ends the old and starts a new. Leases are kept over
 * that.
 */
#include <errno.h>
#include <fcntl.h>
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
#include "common/text.h"
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

/* dhcp_running() - pidfd of the dnsmasq that the pid file names, or -1. */
static int dhcp_running(struct priv *p, struct priv_net *n)
{
	_cleanup_close_ int dir = dhcp_dir(p, n->name);
	char text[32] = "", path[64], comm[32] = "";

	_cleanup_close_ int fd =
	    dir < 0 ? -1 : openat(dir, "pid", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -1;
	pid_t pid = (pid_t)strtol(text, NULL, 10);

	if (pid <= 1)
		return -1;
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	_cleanup_close_ int cfd = open(path, O_RDONLY | O_CLOEXEC);

	if (pidfd < 0 || cfd < 0 || read(cfd, comm, sizeof(comm) - 1) <= 0 ||
	    strncmp(comm, "dnsmasq", 7))
		return -1;
	return take_fd(&pidfd);
}

void dhcp_stop(struct priv *p, struct priv_net *n)
{
	_cleanup_close_ int pidfd = dhcp_running(p, n);

	if (pidfd >= 0)
		syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0);
	if (n->dnsmasq > 0) {
		if (pidfd < 0)
			kill(n->dnsmasq, SIGTERM);
		waitpid(n->dnsmasq, NULL, 0);
		n->dnsmasq = 0;
	}
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
	snprintf(base, sizeof(base), "%.250s/dhcp/%.63s", p->cfg->state_dir, n->name);
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
	return 0;
}
