/* guest_start.h - a guest's start, between the files that do it: guest_start.c leads, guest_needs.c gathers
 * what it needs, guest_configure.c says it to the new process.
 */
#ifndef VMD_CORE_GUEST_START_H
#define VMD_CORE_GUEST_START_H

#include "common/accel_words.h"
#include "devices/chardev.h"
#include "vmd/core/internal.h"

#define NEED_TIMEOUT_MS	 20000
#define BUILD_TIMEOUT_MS 60000

enum need_kind { N_VOLUME, N_TAP, N_PORT, N_HOST, N_SAVED };

struct need {
	struct list node;
	struct start *s;
	enum need_kind kind;
	struct call *call;
	unsigned index, layer;
	int fds[16];
	unsigned nfds;
	struct disk_lease lease; /* its descriptor is the volume's second */
	bool read_only, kernel, initrd, console;
	char label[160], driver[16], text[256];
	struct port_spec spec;
	struct obj *pair; /* the guest at the other end of a port */
	char pair_port[32];
	int pair_fd;
};

struct start {
	struct guest *g;
	struct list needs;
	unsigned open; /* unanswered */
	bool spawned, failed;
	struct call *spawn, *build;
	uint64_t lease_ms; /* what waiting for leases may take */
	struct err why;
	void (*done)(struct guest *g, const struct err *e);
};

/* ---- guest_start.c ---- */
void start_fail(struct start *s, const struct err *e); /* @s is gone then */
void start_spawn(struct start *s);		       /* all is there */

/* ---- guest_needs.c ---- */
/* start_gather() - asks for everything; the last answer calls start_spawn(), the first failure start_fail(). 0, or -errno with @e
 * where something could not even be asked for. */
int start_gather(struct start *s, struct err *e);
void needs_free(struct start *s); /* what was opened and not passed on is closed */
void nic_mac(const char *text, uint8_t mac[6]);

/* ---- guest_configure.c ---- */
struct accel_words start_accel(const struct guest *g);
void start_configure(struct start *s); /* every message but the build */
/* start_join_ports() - the far guests' ports get the other sockets, now that this side lives */
void start_join_ports(struct start *s);

#endif
