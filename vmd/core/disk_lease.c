/* disk_lease.c - disks on pools that several hosts share: one writer at a time (storage/lease.h).
 *
 * The lease is the disk's, not a file's: it stays the same file, NAME.lease beside the disk, while
 * snapshots give the disk another top layer, which the lease names. The process that writes the disk
 * keeps it; the daemon only says what is written into it. A host is told from another by the UUID of
 * its default pool, which goes with its state.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "common/log.h"
#include "vmd/core/disk_job.h"

#define LEASE_STALE_S 20

bool disk_lease_of(struct core *c, const struct obj *o, const char *who, struct disk_lease *l)
{
	const struct obj *self = obj_by_name(c, K_POOL, "default");
	struct utsname un;
	char pool[64];
	struct obj *p;

	memset(l, 0, sizeof(*l));
	l->fd = -1;
	if (o->kind != K_DISK)
		return false;
	/* a snapshot's layer is part of the disk that is built on it */
	for (unsigned i = 0; i < DISK_CHAIN_MAX && jstr(o->doc, "snapshot"); i++) {
		const struct obj *above = disk_child(c, o, NULL);

		if (!above)
			break;
		o = above;
	}
	volume_file(o, pool, l->top);
	p = obj_by_name(c, K_POOL, pool);
	if (!p || !jbool(p->doc, "shared", false))
		return false;
	if (uname(&un) < 0)
		*un.nodename = '\0';
	snprintf(l->file, sizeof(l->file), "%.100s.lease", jstr_or(o->doc, "name", o->name));
	snprintf(l->owner, sizeof(l->owner), "%.24s: %.36s", un.nodename, who);
	snprintf(l->host, sizeof(l->host), "%.36s", self ? self->id : "");
	l->stale_ms = (uint64_t)jint(p->doc, "stale", LEASE_STALE_S) * 1000;
	return true;
}

/* ---- the top layer of a disk in use ---- */

static void lease_told(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (ev != CALL_ITEM && e)
		log_error("a disk's lease does not name its new top layer: %s", e->detail);
}

void disk_lease_top(struct guest *g, const char *entry, const char *file)
{
	struct msg_g_disk_file m = { 0 };

	snprintf(m.name, sizeof(m.name), "%.31s", entry);
	snprintf(m.file, sizeof(m.file), "%.127s", file);
	if (g->link)
		peer_call(g->link, MSG_g_disk_file, &m, 0, 60000, lease_told, NULL);
}
