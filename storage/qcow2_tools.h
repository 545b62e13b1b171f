/* qcow2_tools.h - what only image jobs need of qcow2: snapshots, check, compressed writing, header.
 *
 * For the jailed image process and tests; the guest's process uses blockdev.h alone. Nothing else
 * may use the image while these run.
 */
#ifndef STORAGE_QCOW2_TOOLS_H
#define STORAGE_QCOW2_TOOLS_H

#include "storage/blockdev.h"

struct qcow2_snapshot_info {
	char id[64], name[256];
	uint64_t date_ms, vm_state_bytes, disk_bytes;
};

/* qcow2_snapshot_list() - Return: their number, *list to be freed; or -errno. */
int qcow2_snapshot_list(struct blockdev *bd, struct qcow2_snapshot_info **list, struct err *e);
/* qcow2_snapshot_view() - a read-only node shows the snapshot (by id or name) from now on. */
int qcow2_snapshot_view(struct blockdev *bd, const char *name, struct err *e);
int qcow2_snapshot_delete(struct blockdev *bd, const char *name, struct err *e);

struct qcow2_bitmap_info {
	char name[1024];
	uint64_t granularity, bytes_dirty;
	bool in_use, automatic, consistent;
};
/* qcow2_bitmap_list() - persistent bitmaps; a bitmap whose autoclear bit was lost is not
 * consistent. */
int qcow2_bitmap_list(struct blockdev *bd, struct qcow2_bitmap_info **list, struct err *e);
/* qcow2_bitmap_read() - the bitmap's bits, one a granule, least significant first; *bits to be
 * freed.
 * -ESTALE where it cannot be trusted: the caller then makes a full backup. */
int qcow2_bitmap_read(struct blockdev *bd, const char *name, uint8_t **bits, uint64_t *nbits,
		      uint64_t *granularity, struct err *e);

struct qcow2_header_info {
	unsigned version;
	bool extended_l2, lazy_refcounts, dirty, corrupt, zstd;
	unsigned refcount_bits, snapshots, bitmaps;
	const char *backing_name, *backing_format; /* borrowed; "" none */
};
int qcow2_header_info(struct blockdev *bd, struct qcow2_header_info *h);
int qcow2_set_backing_name(struct blockdev *bd, const char *name, const char *format,
			   struct err *e);

#endif
