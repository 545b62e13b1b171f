/* main.c - vmd-guest: one virtual machine in one process.
 *
 *	vmd-guest --listen FD [--peer-uid UID] [--kvm FD] [--jail LAYERS] [--verbose]
 *	vmd-guest --probe [--kvm FD]		what accel=auto picks here, and why, on one line
 * Started by vmd's priv role inside a jail: FD listens on a SOCK_SEQPACKET unix socket, standard
 * error is the log. There is nothing else to name: everything the guest has arrives as a
 * descriptor. It ends when told to (g_quit), when it could not be built, or never: the daemon's end
 * is not its own.
 * Memory: one malloc arena and small thread stacks, because there may be thousands of these
 * processes.
 */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/log.h"
#include "hypervisor-core/accel.h"
#include "vmd/guest/guest.h"
#include "vmd/guest/lockdown.h"

static int guest_usage(FILE *f)
{
	fputs(
	    "usage: vmd-guest --listen FD [--peer-uid UID] [--kvm FD] [--jail LAYERS] [--verbose]\n"
	    "       vmd-guest --probe [--kvm FD]\n"
	    "one virtual machine; started by vmd, which passes all else as descriptors\n",
	    f);
	return f == stdout ? 0 : 2;
}

static int guest_number(const char *text, long *out)
{
	char *end;

	errno = 0;
	*out = strtol(text, &end, 10);
	return errno || *end || end == text || *out < 0 ? -EINVAL : 0;
}

static int guest_probe(int kvm_fd)
{
	char reason[256];
	struct err e = { 0 };

	if (!accel_choose("auto", kvm_fd, reason, sizeof(reason), &e))
		return 1;
	printf("%s\n", reason);
	return 0;
}

static void guest_sigterm(void *arg, int signo)
{
	struct guest *g = arg;

	/* a polite end for people and service managers: as if the daemon had asked */
	log_info("signal %d: closing disks and ending", signo);
	guest_quit(g, 0);
}

int main(int argc, char **argv)
{
	struct guest g = { .listen_fd = -1,
			   .kvm_fd = -1,
			   .listen_w = LOOP_FD_NONE,
			   .phase = GUEST_NEW,
			   .peer_uid = getuid() };
	enum log_level level = LOG_INFO_;
	struct err e = { 0 };
	bool probe = false;
	long n;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--listen") && i + 1 < argc &&
		    guest_number(argv[i + 1], &n) == 0) {
			g.listen_fd = (int)n;
			i++;
		} else if (!strcmp(argv[i], "--peer-uid") && i + 1 < argc &&
			   guest_number(argv[i + 1], &n) == 0) {
			g.peer_uid = (uid_t)n;
			i++;
		} else if (!strcmp(argv[i], "--kvm") && i + 1 < argc &&
			   guest_number(argv[i + 1], &n) == 0) {
			g.kvm_fd = (int)n;
			i++;
		} else if (!strcmp(argv[i], "--jail") && i + 1 < argc) {
			/* what priv has put around us, for people to read */
			snprintf(g.jail, sizeof(g.jail), "%s", argv[++i]);
		} else if (!strcmp(argv[i], "--probe")) {
			probe = true;
		} else if (!strcmp(argv[i], "--verbose")) {
			level = LOG_DEBUG_;
		} else {
			return guest_usage(!strcmp(argv[i], "--help") ? stdout : stderr);
		}
	}
	if (probe)
		return guest_probe(g.kvm_fd);
	if (g.listen_fd < 0)
		return guest_usage(stderr);
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_TRIM_THRESHOLD, 64 << 10);
	log_open("guest", NULL, 2, level);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_DUMPABLE, 0, 0, 0,
	      0); /* no core file, no ptrace by a neighbour of the same uid */
	int landlock = lockdown_paths();

	if (landlock > 0)
		snprintf(g.jail + strlen(g.jail), sizeof(g.jail) - strlen(g.jail), "%slandlock-%d",
			 *g.jail ? " " : "", landlock);
	else
		log_info("no Landlock here: %s", strerror(-landlock));
	g.loop = loop_new();
	g.cfg = guest_config_new();
	if (!g.loop || !g.cfg) {
		log_error("out of memory");
		return 1;
	}
	loop_signal(g.loop, SIGTERM, guest_sigterm, &g);
	if (guest_link_start(&g, &e) < 0) {
		log_error("%s", e.detail);
		return 1;
	}
	if (loop_run(g.loop) < 0)
		log_error("event loop: %s", strerror(errno));
	guest_link_stop(&g);
	if (g.vm)
		vm_free(g.vm);
	guest_config_free(g.cfg);
	guest_leases_end(&g);
	loop_free(g.loop);
	return g.quitting ? 0 : 1;
}
