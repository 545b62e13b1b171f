/* jail.h - a process with nothing: namespaces, empty read-only root, own uid, no capabilities,
 * limits.
 *
 * jail_spawn() forks straight into new namespaces, gives up everything layer by layer and executes
 * a static program by descriptor. It does not wait: jail_result() on the returned status descriptor
 * tells when it is readable.
 * What only the program itself can give up (system calls, Landlock) it does after it has built its
 * machine: vmd/guest/lockdown.c. Each layer is a bit, so that tests can leave one out and count
 * what the others still stop.
 */
#ifndef VMD_PRIV_JAIL_H
#define VMD_PRIV_JAIL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

enum jail_layer {
	JAIL_MOUNT = 1 << 0, /* mount namespace with an empty root */
	JAIL_PID = 1 << 1,
	JAIL_NET = 1 << 2,
	JAIL_IPC = 1 << 3,
	JAIL_UTS = 1 << 4,
	JAIL_CGROUP = 1 << 5,
	JAIL_UID = 1 << 6,
	JAIL_CAPS = 1 << 7,
	JAIL_NNP = 1 << 8,
	JAIL_RLIMIT = 1 << 9,
	JAIL_USERNS = 1 << 10, /* rootless: a user namespace that maps one's own uid alone */
	JAIL_ALL_ROOT = (1 << 10) - 1,
	JAIL_ALL_USER = JAIL_ALL_ROOT - JAIL_UID + JAIL_USERNS,
	JAIL_LEAST = JAIL_NNP | JAIL_RLIMIT, /* rootless without user namespaces */
};

#define JAIL_FDS_MAX	 6u
#define JAIL_CGROUPS_MAX 8u

struct jail_spec {
	int exe_fd; /* a static executable */
	char *const *argv;
	uint32_t layers;
	uid_t uid; /* and gid */
	/* an empty directory to mount the empty root over, in the child's namespace only */
	const char *root_dir;
	/* the root is not empty: the host's programs and libraries in it, read-only (/usr and what
	 * leads there), and the file @in_fd as /in; for a program of the distribution */
	bool programs;
	int in_fd;
	char *const *env;      /* NULL: none */
	int log_fd;	       /* becomes 1 and 2 */
	int fds[JAIL_FDS_MAX]; /* become 3, 4, ... */
	unsigned nfds;
	/* listen() on fds[0] as the jailed process, so that SO_PEERCRED of a connection names it */
	bool listen;
	int cgroup_fds[JAIL_CGROUPS_MAX]; /* open cgroup.procs files */
	unsigned ncgroups;
	uint64_t nofile_max, nproc_max;
};

struct jail_proc {
	pid_t pid;
	int pidfd;
	int status_fd; /* readable when the program runs (EOF) or the jail failed */
};

int jail_spawn(const struct jail_spec *s, struct jail_proc *out, struct err *e);
/* jail_result() - read and close @status_fd; blocks until the jail is made. 0, or -errno with the
 * failed step in @e. */
int jail_result(int status_fd, const char *who, struct err *e);
/* jail_layers_text() - "mount pid net ..." for info. */
void jail_layers_text(uint32_t layers, char *buf, size_t len);

#endif
