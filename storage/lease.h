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
 * Use: lease_take() before the disk is opened for writing, on a thread that may wait; then
 * lease_beat() every stale_ms / 6; ask lease_valid() before each batch of writes, or pause the
 * guest when a beat fails; lease_drop() after the disk was closed. Reading needs no lease.
 * Threading: one lease, one thread at a time; lease_valid() from any. Trust: the record is written
 * by other hosts of the same pool: checked, bounded, its owner's name printed as text only.
 */
#ifndef STORAGE_LEASE_H
#define STORAGE_LEASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define LEASE_OWNER_MAX 63u

struct lease_owner {
	char name[LEASE_OWNER_MAX + 1]; /* for people: host and guest */
	uint8_t id[16];			/* of this run of the owner, random */
};

struct lease {
	int fd;
	struct lease_owner owner;
	uint64_t generation, counter, stale_ms;
	_Atomic uint64_t beat_ns; /* when the last heartbeat that succeeded began */
	_Atomic bool lost;
};

/* lease_take() - waits up to about twice @stale_ms where a record must be watched. @fd: the lease
 * file, open for reading and writing, possibly empty; borrowed until lease_drop().
 * Return: 0; -EBUSY with the owner's name where it lives; -ECANCELED; -errno. */
int lease_take(struct lease *l, int fd, const struct lease_owner *owner, uint64_t stale_ms,
	       const _Atomic bool *cancel, struct err *e);
/* lease_beat() - 0; -ESTALE: another took it over, nothing may be written any more. */
int lease_beat(struct lease *l, struct err *e);
bool lease_valid(const struct lease *l);
/* lease_drop() - free for the next one at once. The file stays. */
int lease_drop(struct lease *l);

#endif
