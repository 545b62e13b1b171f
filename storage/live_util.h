/* live_util.h - inside storage/: what the live verbs share. */
#ifndef STORAGE_LIVE_UTIL_H
#define STORAGE_LIVE_UTIL_H

#include "storage/job_util.h"
#include "storage/live.h"
#include "storage/qcow2_bitmap.h"

/* live_top() - the node below the root's filters that holds the disk; a qcow2, or NULL with @e. */
struct blockdev *live_top(struct blockdev *root, struct err *e);
/* live_below() - the layer @depth below @top, or NULL. */
struct blockdev *live_below(struct blockdev *top, unsigned depth);
/* live_carry_bitmaps() - enabled bitmaps of one image also in another; best effort. */
void live_carry_bitmaps(struct blockdev *from, struct blockdev *to);
/* live_pace() - sleeps so that @done bytes since @start_ns keep to the job's bps. */
void live_pace(const struct blkjob *job, uint64_t start_ns, uint64_t done);

#endif
