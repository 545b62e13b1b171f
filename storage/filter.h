/* filter.h - inside storage/: the parts that filters share; each passes its call to the child. */
#ifndef STORAGE_FILTER_H
#define STORAGE_FILTER_H

#include "storage/node.h"

int filter_open_child(struct blockdev *bd, const struct blk_spec *spec, struct err *e);
int filter_close(struct blockdev *bd, bool keep_fds); /* frees bd->drv */
void filter_info(struct blockdev *bd, struct blk_info *info);
int filter_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len);
int filter_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags);
int filter_flush(struct blockdev *bd);
int filter_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max);
int filter_resize(struct blockdev *bd, uint64_t size, struct err *e);
int64_t filter_allocate(struct blockdev *bd, uint64_t off, uint64_t min, uint64_t want);

#endif
