/* lease.c - the leases of this guest's disks that lie on pools of several hosts (storage/lease.h).
 *
 * Taken before a disk is opened, which may wait for one that went stale; kept by a thread each; let go
 * after the last disk was closed, so that the flush on closing is still covered by it. A process that
 * dies leaves them to go stale: another host waits for that.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/lease.h"
#include "vmd/guest/guest.h"

struct guest_lease {
	char disk[32];
	struct lease *lease;
};

struct lease *guest_lease_of(const struct guest *g, const char *disk)
{
	for (unsigned i = 0; i < g->nleases; i++)
		if (!strcmp(g->leases[i].disk, disk))
			return g->leases[i].lease;
	return NULL;
}

int guest_lease_take(struct guest *g, const char *disk, int fd, const struct lease_owner *owner,
		     uint64_t stale_ms, struct err *e)
{
	struct guest_lease *more = reallocarray(g->leases, g->nleases + 1, sizeof(*more));
	struct lease *l;

	if (!more)
		return err_set(e, ENOMEM, "no-memory", "disk %s: out of memory", disk);
	g->leases = more;
	l = lease_hold(fd, owner, stale_ms, NULL, e);
	if (!l) {
		err_prefix(e, "disk %s", disk);
		return -e->num;
	}
	more = &g->leases[g->nleases++];
	*more = (struct guest_lease){ .lease = l };
	strncat(more->disk, disk, sizeof(more->disk) - 1);
	return 0;
}

int guest_disk_file(struct guest *g, const struct msg_g_disk_file *m, struct err *e)
{
	struct lease *l = guest_lease_of(g, m->name);

	return l ? lease_set_file(l, m->file, e) : 0;
}

void guest_leases_end(struct guest *g)
{
	for (unsigned i = 0; i < g->nleases; i++)
		lease_let_go(g->leases[i].lease);
	free(g->leases);
	g->leases = NULL;
	g->nleases = 0;
}
