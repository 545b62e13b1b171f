/* guest.h - the parts of vmd-guest, and the one struct they share.
 *
 * main.c starts and ends the process; link.c speaks with the daemon; config.c gathers descriptors
 * and settings into a machine_config; run.c builds, runs and ends the VM; save.c writes it to files
 * and reads it from them. All on the main thread.
 * Trust: the daemon is trusted for what it asks, not for what the image or kernel it passes
 * contains.
 */
#ifndef VMD_GUEST_GUEST_H
#define VMD_GUEST_GUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/loop.h"
#include "common/wire.h"
#include "devices/machine_config.h"
#include "hypervisor-core/machine.h"
#include "hypervisor-core/vm.h"
#include "vmd/proto.h"
#include "vmd/roles.h"

struct guest_config;   /* config.c */
struct guest_save;     /* save.c */
struct guest_disk_job; /* disk_job.c */
struct guest_lease;    /* lease.c */
struct lease;
struct lease_owner;

struct guest {
	struct loop *loop;
	char name[64], uuid[37];
	uid_t peer_uid; /* besides root: whose connection is the daemon's */

	int listen_fd;
	int kvm_fd; /* inherited /dev/kvm, or -1; g_config may bring another */
	struct loop_fd listen_w;
	struct wire_conn *conn; /* NULL: daemon away */

	enum guest_state phase;
	struct guest_config *cfg; /* until built */
	struct vm *vm;
	const struct machine_ops *machine;
	/* what happened last while nobody listened; told at the next hello */
	char event_kind[32], event_text[400];
	bool event_untold;
	bool quitting;
	bool reboot_stops;		 /* the guest's reboot stops it */
	struct guest_save *save;	 /* under way, or NULL */
	struct guest_disk_job *disk_job; /* the one under way, or what became of the last */
	struct guest_lease *leases;	 /* of disks on shared pools */
	unsigned nleases;
	bool quiet;	/* devices are quiesced: a start lets them go on */
	char jail[400]; /* which layers hold, for info */
};

/* ---- link.c ---- */
int guest_link_start(struct guest *g, struct err *e);
void guest_link_stop(struct guest *g);
/* guest_tell() - an event; kept for the next daemon where none is there. @kind as in g_event. */
void guest_tell(struct guest *g, const char *kind, const char *text);
void guest_reply(struct guest *g, uint32_t id, const struct err *e); /* e->num 0: success */

/* ---- config.c: each takes the message's descriptors on success ---- */
struct guest_config *guest_config_new(void);
void guest_config_free(struct guest_config *c);
int guest_config_base(struct guest *g, struct msg_g_config *m, struct err *e);
int guest_config_boot(struct guest *g, struct msg_g_boot *m, struct err *e);
int guest_config_disk(struct guest *g, struct msg_g_disk *m, struct err *e);
int guest_config_nic(struct guest *g, struct msg_g_nic *m, struct err *e);
int guest_config_port(struct guest *g, struct msg_g_port *m, struct err *e);
int guest_config_load(struct guest *g, struct msg_g_load *m, struct err *e);

/* What run.c builds from: guest_config_open() opens the disks and fills @mc, which borrows from @c.
 * On a build's success the descriptors are the machine's: guest_config_taken(). Waits where a disk's
 * lease must be watched. */
struct guest_settings {
	char machine[32], accel[16];
	int kvm_fd;
	unsigned vcpus;
	struct cpuid_policy cpu;
	bool icount, threads_one;
	bool reboot_stops;
	int load_state_fd, load_memory_fd; /* a saved state to go on from, or -1; the caller's */
};
int guest_config_open(struct guest *g, struct machine_config *mc, struct guest_settings *s,
		      struct err *e);
void guest_config_taken(struct guest_config *c);

/* ---- run.c ---- */
int guest_build(struct guest *g, struct msg_g_ready *ready, struct err *e);
int guest_start(struct guest *g, struct err *e);
void guest_pause(struct guest *g, uint32_t id); /* replies when parked */
void guest_reset(struct guest *g, uint32_t id);
void guest_power_button(struct guest *g);
int guest_disk_resize(struct guest *g, const struct msg_g_disk_resize *m, struct err *e);
int guest_console(struct guest *g, struct msg_g_console *m, struct err *e);
int guest_port_replace(struct guest *g, struct msg_g_port_replace *m, struct err *e);
void guest_counters(struct guest *g, uint32_t id);
/* guest_quit() - vCPUs parked, disks flushed and closed, reply, exit 0. */
void guest_quit(struct guest *g, uint32_t id);

/* ---- save.c ---- */
/* guest_save() - pause, write state and memory, reply; takes the message's descriptors. The guest
 * stays paused. */
void guest_save(struct guest *g, uint32_t id, struct msg_g_save *m);
void guest_save_wait(struct guest *g); /* before the VM goes: the writer has ended */
/* guest_load() - into a built VM that never ran: RAM, then vCPUs and devices. */
int guest_load(struct guest *g, int state_fd, int memory_fd, struct err *e);

/* ---- lease.c ---- */
/* guest_lease_take() - @fd is taken on success; waits up to twice @stale_ms. */
int guest_lease_take(struct guest *g, const char *disk, int fd, const struct lease_owner *owner,
		     uint64_t stale_ms, struct err *e);
struct lease *guest_lease_of(const struct guest *g, const char *disk); /* NULL: none is needed */
int guest_disk_file(struct guest *g, const struct msg_g_disk_file *m, struct err *e);
void guest_leases_end(struct guest *g); /* after the last disk was closed */

/* ---- disk_job.c: each takes the message's descriptor on success ---- */
int guest_disk_overlay(struct guest *g, struct msg_g_disk_overlay *m, struct err *e);
void guest_disk_job(struct guest *g, uint32_t id, struct msg_g_disk_job *m); /* replies when over */
void guest_disk_cancel(struct guest *g, const char *job);
bool guest_disk_job_runs(const struct guest *g);
void guest_disk_job_end(struct guest *g); /* before the VM goes: cancelled, ended, forgotten */

/* ---- lockdown.c: what the process gives up once it holds all it needs ---- */
int guest_lockdown(struct guest *g, struct err *e);

#endif
