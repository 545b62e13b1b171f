/* snapshot.h - what snapshot.c and snapshot_rm.c share. */
#ifndef VMD_CORE_SNAPSHOT_H
#define VMD_CORE_SNAPSHOT_H

#include "vmd/core/internal.h"

/* the operation's disks: {disk, pool, file, parent (id of what the new overlay is over), size, ...} */
json_t *snapshot_disks(const struct op *op);
struct obj *snapshot_guest(struct core *c, const struct obj *snap);
/* snapshot_find() - ready, or in the state @want (NULL: none else); NULL with @e */
struct obj *snapshot_find(struct core *c, const char *name, const char *want, struct err *e);

#endif
