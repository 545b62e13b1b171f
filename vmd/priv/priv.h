/* priv.h - the privileged role: its state, its handlers, one file a subject.
 *
 * priv opens, makes and jails what the other roles may only name. It parses nothing but the wire;
 * every name is checked against its own roots, every number against its own limits, as if core were
 * hostile. One thread, one loop; nothing in here waits for anybody.
 * Handlers: 0 = answered or will be; < 0 = failed with @e, and the caller answers.
 */
#ifndef VMD_PRIV_PRIV_H
#define VMD_PRIV_PRIV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/list.h"
#include "common/loop.h"
#include "common/wire.h"
#include "vmd/config.h"
#include "vmd/listen.h"
#include "vmd/priv/jail.h"
#include "vmd/proto.h"

#define PRIV_POOLS_MAX 64u
#define PRIV_NETS_MAX  256u

struct priv_pool {
	char name[64];
	int fd; /* directory */
};

struct priv_net;    /* net.c */
struct priv_guests; /* guest.c */

struct priv_role {
	const char *name;
	enum proto_role proto;
	struct priv *p;
	pid_t pid;
	int pidfd;
	struct loop_fd pid_w;
	struct wire_conn *conn;
	bool up; /* has a link */
	uid_t uid;
	gid_t gid;
	struct loop_timer restart;
	unsigned deaths; /* in a row */
	uint64_t started_ns;
};

struct priv {
	struct loop *loop;
	const struct vmd_config *cfg;
	/* names tables and cgroups: "vmd", or vmd-XXXXXXXX where run_dir is another */
	char instance[16];
	bool root;
	int state_fd, run_fd; /* directories */
	bool first_start;     /* since the host booted: core is told once */
	int null_fd;
	const struct vmd_listen *listen;
	struct priv_role core, api;
	bool stopping, ready_told;
	struct loop_timer watchdog;
	uint64_t watchdog_ns;
	int exit_status;

	struct priv_pool pools[PRIV_POOLS_MAX];
	unsigned npools;
	struct priv_net *nets;
	struct priv_guests *guests;
};

/* ---- priv.c ---- */
int priv_main(const struct vmd_config *cfg, const struct vmd_listen *lst);
void priv_ok(struct priv *p, uint32_t id);
void priv_result(struct priv *p, uint32_t id, uint64_t value, int fd, int fd2, const char *text);
void priv_fail(struct priv *p, uint32_t id, const struct err *e);

/* ---- confine.c ---- */
/* priv_confine() - first of all; what is started later inherits it. */
int priv_confine(const struct priv *p, struct err *e);

/* ---- path.c: files beneath directories that we hold ---- */
/* path_open_beneath() - openat2(RESOLVE_BENEATH, no symlinks). fd or -errno. */
int path_open_beneath(int dir_fd, const char *name, int flags, mode_t mode);
/* path_open_dir() - a directory by absolute path, @create: made (one level) where missing. fd or
 * -errno. */
int path_open_dir(const char *path, bool create, mode_t mode);
/* path_under_roots() - split absolute @path into a root of the colon-separated @roots (opened) and
 * the rest.
 * Return: directory fd, @rest set; or -EACCES. */
int path_under_roots(const char *roots, const char *path, const char **rest);
bool path_leaf_ok(const char *name); /* one component of plain letters, not hidden, no ".." */

/* ---- volume.c ---- */
int volume_default_pool(struct priv *p, struct err *e);
/* volume_fd() - a volume by name, as volume_open()'s @mode says: a regular file's descriptor, or -errno */
int volume_fd(struct priv *p, const struct msg_p_volume_open *m, struct err *e);
int volume_open(struct priv *p, const struct msg_p_volume_open *m, struct err *e);
int volume_unlink(struct priv *p, const struct msg_p_volume_unlink *m, struct err *e);
int volume_rename(struct priv *p, const struct msg_p_volume_rename *m, struct err *e);
int volume_list(struct priv *p, const struct msg_p_volume_list *m, struct err *e);
int volume_pool_open(struct priv *p, const struct msg_p_pool_open *m, struct err *e);
int volume_pool_close(struct priv *p, const struct msg_p_pool_close *m, struct err *e);
int volume_pool_stat(struct priv *p, const struct msg_p_pool_stat *m, struct err *e);

/* ---- export.c ---- */
int export_listen(struct priv *p, const struct msg_p_export_listen *m, struct err *e);
int export_gone(struct priv *p, const struct msg_p_export_gone *m, struct err *e);

/* ---- boot.c ---- */
bool boot_is_first(struct priv *p); /* and from now on it is not */

/* ---- guest.c, guest_log.c ---- */
int guests_init(struct priv *p, struct err *e);
void guests_fini(struct priv *p);
int guests_spawn(struct priv *p, const struct msg_p_guest_spawn *m, struct err *e);
int guests_kill(struct priv *p, const struct msg_p_guest_kill *m, struct err *e);
int guests_clean(struct priv *p, const struct msg_p_guest_clean *m, struct err *e);
int guests_adopt(struct priv *p, uint32_t id, struct err *e);
int guests_usage(struct priv *p, const struct msg_p_guest_usage *m, struct err *e);
int guests_limit(struct priv *p, const struct msg_p_guest_limit *m, struct err *e);
int guests_log_open(struct priv *p, const struct msg_p_log_open *m, struct err *e);
int guests_forget(struct priv *p, const struct msg_p_guest_forget *m, struct err *e);
int guests_image_spawn(struct priv *p, const struct msg_p_image_spawn *m, struct err *e);
#define FOREIGN_READER "/usr/bin/qemu-nbd"
int guests_foreign_spawn(struct priv *p, const struct msg_p_foreign_spawn *m, struct err *e);

struct guest_log; /* fifo → bounded, rate-limited file */
/* guest_log_new() - make or find the fifo @dir_fd/UUID.log; @write_fd (may be NULL): its end for
 * the guest. */
struct guest_log *guest_log_new(struct priv *p, int dir_fd, const char *uuid, int *write_fd,
				struct err *e);
void guest_log_free(struct guest_log *g);
/* guest_log_port_fd() - the log of @port, "" the process's own; to append to, or to read. fd, -errno. */
int guest_log_port_fd(struct priv *p, const char *uuid, const char *port, bool write);
int guest_log_forget(struct priv *p, const char *uuid); /* all logs of a guest go */

/* ---- cgroup.c ---- */
struct cgroup_limits {
	uint64_t cpu_shares, cpu_limit_pct, memory_max_bytes;
};
/* cgroup_tree() - another place than /sys/fs/cgroup and /proc/self/cgroup: a test's. */
void cgroup_tree(const char *mount, const char *self);
/* cgroup_make() - a group for @name with @lim; fills open cgroup.procs files. Their number (0 = no
 * cgroups here) or -errno. */
int cgroup_make(struct priv *p, const char *name, const struct cgroup_limits *lim,
		int fds[JAIL_CGROUPS_MAX], struct err *e);
int cgroup_limit(struct priv *p, const char *name, const struct cgroup_limits *lim, struct err *e);
/* cgroup_remove() - false: a process is still on its way out of it; try again. */
bool cgroup_remove(struct priv *p, const char *name);
/* cgroup_sweep() - groups of guests and jobs that no longer are go. As cgroup_remove(). */
bool cgroup_sweep(struct priv *p, bool (*lives)(struct priv *p, const char *name));
void cgroup_fini(struct priv *p); /* the daemon ends: its group goes, if no guest is in it */
const char *cgroup_mode_text(struct priv *p);

/* ---- net.c, forward.c, nft.c, dhcp.c ---- */
int net_up(struct priv *p, const struct msg_p_net_up *m, struct err *e);
int net_down(struct priv *p, const struct msg_p_net_down *m, struct err *e);
int net_tap_add(struct priv *p, const struct msg_p_tap_add *m, struct err *e);
int net_tap_del(struct priv *p, const struct msg_p_tap_del *m, struct err *e);
int net_dhcp_host(struct priv *p, const struct msg_p_dhcp_host *m, struct err *e);
int net_dhcp_leases(struct priv *p, const struct msg_p_dhcp_leases *m, struct err *e);
int net_forward(struct priv *p, const struct msg_p_forward *m, struct err *e);
void net_fini(struct priv *p);

/* ---- chardev.c, probe.c ---- */
int chardev_open(struct priv *p, const struct msg_p_chardev_open *m, struct err *e);
int probe_host(struct priv *p, const struct msg_p_host_probe *m, struct err *e);

#endif
