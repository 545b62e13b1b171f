/* lease.h - who may write a disk that lies where several hosts can reach it.
 *
 * Beside the disk lies a lease file with one 512-byte record: owner, generation, a counter that the
 * owner raises (the heartbeat). The image's own locks (file.c) hold as well where the file system
 * has them, but some have none, and a host that died may leave its lock on a server for ever: the
 * record decides. No clocks are compared: who wants the disk watches the counter by its own clock,
 * and only a record that stood still for the stale time is taken over. The owner counts more
 * strictly: it must stop writing when its last successful heartbeat is half the stale time ago
 * (lease_valid()), so that a host that was cut off has stopped before another starts. The stale
 * time must be well above what one read or write of the file can take (four times is the least).
 *
 * Use: lease_hold() before the disk is opened for writing, on a thread that may wait; a thread of its
 * own then beats every stale_ms / 6. blk_spec's lease makes the file below refuse each write with
 * -ESTALE while lease_valid() is false (a request under way must not take longer than the other half
 * of the stale time). lease_let_go() after the disk was closed. Reading needs no lease.
 * A beat that came too late (the server was away) loses nothing as long as the record is still the
 * owner's own: it is taken anew, with the settling time, and writing goes on. Once another has taken
 * it, it is lost for good.
 * Threading: one lease, one thread at a time; lease_valid() from any. Trust: the record is written
 * by other hosts of the same pool: checked, bounded, its owner's name printed as text only.
 */
#ifndef STORAGE_LEASE_H
#define STORAGE_LEASE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define LEASE_OWNER_MAX 63u
#define LEASE_FILE_MAX	127u
#define LEASE_HOST_MAX	39u

struct lease_owner {
	char name[LEASE_OWNER_MAX + 1]; /* for people: host and guest */
	char file[LEASE_FILE_MAX + 1];	/* the disk's top layer, as this owner knows it */
	char host[LEASE_HOST_MAX + 1];	/* UUID of whose records say so */
	uint8_t id[16];			/* of this run of the owner, random */
};

struct lease {
	int fd;
	struct lease_owner owner;
	uint64_t generation, counter, stale_ms;
	_Atomic uint64_t beat_ns; /* when the last heartbeat that succeeded began */
	_Atomic bool lost;	  /* another's record was seen, or it was dropped */
	/* lease_hold() only */
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	_Atomic bool ending;
};

/* lease_take() - waits up to about twice @stale_ms where a record must be watched. @fd: the lease
 * file, open for reading and writing, possibly empty; borrowed until lease_drop(). A snapshot gives a
 * disk another top layer: who comes from another host with the old one in mind is refused.
 * Return: 0; -EBUSY with the owner's name where it lives; -ESTALE: another layer is the top;
 * -ECANCELED; -errno. */
int lease_take(struct lease *l, int fd, const struct lease_owner *owner, uint64_t stale_ms,
	       const _Atomic bool *cancel, struct err *e);
/* lease_beat() - 0; -ESTALE: another took it over, nothing may be written any more. After a beat that
 * is late it waits for the settling time. */
int lease_beat(struct lease *l, const _Atomic bool *cancel, struct err *e);
bool lease_valid(const struct lease *l);
/* lease_drop() - free for the next one at once. The file stays. */
int lease_drop(struct lease *l);

/* lease_hold() - lease_take() with an id of its own (@owner's is not used), and a thread that keeps it.
 * @fd is taken on success. NULL with @e. */
struct lease *lease_hold(int fd, const struct lease_owner *owner, uint64_t stale_ms,
			 const _Atomic bool *cancel, struct err *e);
/* lease_set_file() - the disk's top layer is another from now on; on record when it returns 0. */
int lease_set_file(struct lease *l, const char *file, struct err *e);
/* lease_let_go() - ends the thread, drops the lease if it is still ours. NULL is none. */
void lease_let_go(struct lease *l);

#endif
