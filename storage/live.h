/* live.h - changing the graph of a disk that is in use: snapshot, stream, commit, backup.
 *
 * The disk's root keeps its address, its queues and its requests: each verb shuts the root's gate
 * for a moment (requests wait, those inside end first), changes what lies below, and opens it. Long
 * work is done with the gate open. All are synchronous, report progress, and stop soon after their
 * cancel flag is set (struct blkjob; bps limits them); what was cancelled may be started again.
 * Filters above the qcow2 stay where they are. One verb at a time for a disk.
 * Threading: from a thread of one's own, never from a queue's loop (its requests must end).
 * Trust: as blockdev.h; layers and targets come open, from someone allowed to.
 */
#ifndef STORAGE_LIVE_H
#define STORAGE_LIVE_H

#include "storage/bitmap.h"
#include "storage/job.h"

/* One disk's new top layer: a qcow2 of the same size, empty, made with the old top as its backing
 * (the name in its header); its fd is taken on success of them all. */
struct blk_live_overlay {
	struct blockdev *bd;
	const struct blk_spec *overlay; /* driver qcow2, no backing in the spec */
};

/* blk_live_snapshot() - all disks at the same moment get a new top layer; what was the top is
 * stable, read-only, and no longer locked for writing. Enabled bitmaps go on in the new top.
 * On failure nothing has changed. */
int blk_live_snapshot(const struct blk_live_overlay *v, unsigned n, struct err *e);

/* blk_live_stream() - the top takes what it needs from the layers below it down to @base layers
 * further (UINT_MAX: all of them), which then leave the chain and are closed. @base_name and
 * @base_format: what the header says of the layer that stays as the backing (NULL where none). */
int blk_live_stream(struct blockdev *bd, unsigned base, const char *base_name,
		    const char *base_format, const struct blkjob *job, struct err *e);

/* blk_live_commit() - the layer @depth (0 the top, 1 the one below it) goes into the one below it
 * and leaves the chain; its file is then nobody's. @into_fd: the lower layer's file, open for
 * writing (taken on success). With @depth 0 the lower layer becomes the top; with 1, @name and
 * @format are what the top's header says of it. */
int blk_live_commit(struct blockdev *bd, unsigned depth, int into_fd, const char *name,
		    const char *format, const struct blkjob *job, struct err *e);

/* Backup: what the disk held at one moment goes to a target, while it is written. What is about to
 * be overwritten is copied first. A target that fails ends the backup, never the disk. */
struct blk_backup;
struct blk_backup_start {
	struct blockdev *bd;
	const struct blk_spec *target; /* at least as large, writable, reads as zeroes (full) or
					* as the last backup (incremental) */
	bool unknown;	    /* of the target's content nothing is known: zeroes are written too */
	const char *bitmap; /* only what it has is copied, and it starts anew; NULL: all */
};
/* blk_backup_start() - all disks at the same moment. out[n]; fds are taken on success of all. */
int blk_backup_start(const struct blk_backup_start *v, unsigned n, struct blk_backup **out,
		     struct err *e);
/* blk_backup_run() - copies until all is there. Blocks; 0 or -errno. Then end it, whatever came. */
int blk_backup_run(struct blk_backup *b, const struct blkjob *job, struct err *e);
/* blk_backup_end() - the disk as before; the target flushed and closed. A backup that did not
 * finish gives its bitmap's bits back. Return: 0 where the backup is whole and stable. */
int blk_backup_end(struct blk_backup *b, struct err *e);

#endif
