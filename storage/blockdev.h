/* blockdev.h - the one public header of storage/: block devices as a graph of nodes.
 *
 * A node is a driver row (file, raw, qcow2, nbd, filters) over fds or other nodes. The user opens a
 * graph from a spec in which every file is an fd already opened by someone allowed to (storage/
 * opens no path), makes one blk_queue per I/O thread, and submits requests whose completion runs on
 * that queue's loop. Any number of requests may be in flight; they may complete out of order;
 * overlapping writes in flight have no defined order.
 * Flush contract: every write completed before the flush was issued is stable when it completes,
 * with the metadata to find it. A failed fsync stays failed (sticky) for the node's life.
 * Threading: blk_submit() from the queue's loop thread only; different queues in parallel.
 * Trust: the images are hostile, the requests come from a device that checked its own bounds; out
 * of range requests fail with -EINVAL and touch nothing.
 */
#ifndef STORAGE_BLOCKDEV_H
#define STORAGE_BLOCKDEV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/err.h"
#include "common/list.h"
#include "common/loop.h"

struct blockdev;
struct blk_queue;
struct lease;

enum blk_op { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_DISCARD, BLK_WRITE_ZEROES };
enum blk_flags {
	BLK_FUA = 1 << 0,	/* stable before completion */
	BLK_MAY_UNMAP = 1 << 1, /* write-zeroes may deallocate */
};

struct blk_req;
typedef void blk_done_fn(struct blk_req *r, int result); /* 0 or -errno */

struct blk_req {
	enum blk_op op;
	uint32_t flags;
	uint64_t off_bytes, len_bytes; /* multiples of the logical block size */
	const struct iovec *iov;       /* read, write: sums to len_bytes; borrowed until done */
	int niov;
	blk_done_fn *done;
	void *arg;
	/* private to storage/ from here */
	struct list node;
	struct blk_queue *queue;
	int result;
	void *drv[6];
};

enum blk_cache {
	BLK_CACHE_NONE /* O_DIRECT */,
	BLK_CACHE_WRITEBACK,
	BLK_CACHE_UNSAFE /* ignores flush */
};

#define BLK_CHAIN_MAX 64

/* One node of a graph. The tree is borrowed during blk_open(); fds are taken on success only. */
struct blk_spec {
	const char *driver; /* "file" = raw bytes on fd, "qcow2", "nbd", filters by name */
	const char *label;  /* how a person knows it: "disk vda", "template web"; for messages */
	int fd;		    /* regular file, block device, or connected socket (nbd); -1 none */
	bool read_only;
	bool discard;	    /* pass discards down (punch holes) */
	bool detect_zeroes; /* turn zero writes into unmap */
	enum blk_cache cache;
	uint64_t size_bytes;	      /* "file": limit; 0 = the file's size */
	const struct blk_spec *child; /* filters: what they filter */
	struct lease
	    *lease; /* of a disk on a shared pool (lease.h): without it no file of the graph is
			      * written; borrowed for the graph's life */
	const struct blk_spec
	    *backing; /* qcow2: the parent, resolved by core; the header's path is ignored */
	/* NULL-terminated "key=value", driver's own (tests, limits). Any node: threads=N; root:
	 * aio=on (kernel AIO for O_DIRECT; needs io_setup, io_submit, io_getevents, io_destroy).
	 * file: lock=off. qcow2: backing=ignore, backing-changed=accept, repair=no,
	 * prealloc=off, cache-bytes=N. rate:
	 * iops=, bps=. nbd: export=NAME, timeout-ms=N. fail, delay, log: see filter.c. */
	const char *const *opts;
};

struct blk_info {
	uint64_t size_bytes;	  /* virtual */
	uint64_t allocated_bytes; /* on the host */
	uint32_t block_size;	  /* logical: 512 or 4096 */
	uint32_t cluster_size;	  /* 0 where there is none */
	bool read_only, has_discard, has_write_zeroes;
	unsigned chain_depth;
	char driver[16];
};

struct blockdev *blk_open(const struct blk_spec *spec, struct err *e); /* NULL with @e */
/* blk_close() - all queues freed before. Flushes, trims preallocation. 0 or first -errno (sticky
 * flush). */
int blk_close(struct blockdev *bd);
void blk_info(struct blockdev *bd, struct blk_info *info);
int blk_resize(struct blockdev *bd, uint64_t size_bytes,
	       struct err *e); /* live grow; no request in flight needed */

struct blk_queue *blk_queue_new(struct blockdev *bd, struct loop *l, struct err *e);
void blk_queue_free(struct blk_queue *q); /* nothing in flight */
void blk_submit(struct blk_queue *q,
		struct blk_req *r); /* r->done called later on the loop, never inside */
/* blk_queue_plug(), _unplug() - around several submissions: they reach the kernel in one call.
 * Nests. */
void blk_queue_plug(struct blk_queue *q);
void blk_queue_unplug(struct blk_queue *q);
unsigned blk_queue_inflight(const struct blk_queue *q);

/* Synchronous, for jobs and tests: no queue needed, blocks. 0 or -errno. */
int blk_pread(struct blockdev *bd, void *buf, uint64_t len, uint64_t off);
int blk_pwrite(struct blockdev *bd, const void *buf, uint64_t len, uint64_t off);
int blk_zero(struct blockdev *bd, uint64_t off, uint64_t len, bool may_unmap);
int blk_discard(struct blockdev *bd, uint64_t off, uint64_t len);
int blk_flush(struct blockdev *bd);

enum blk_extent_kind {
	BLK_EXT_DATA,
	BLK_EXT_ZERO,
	BLK_EXT_HOLE /* unallocated in the whole chain */
};
struct blk_extent {
	uint64_t off_bytes, len_bytes;
	enum blk_extent_kind kind;
	unsigned depth; /* 0 = top layer */
};
/* blk_extents() - fill up to @max from @off; returns the number, 0 at the end, -errno. */
int blk_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max);

/* Making a file. @fd: empty regular file opened read-write. */
struct qcow2_create {
	uint64_t size_bytes;
	uint32_t cluster_size; /* 0 = 128K */
	bool compat;	       /* 64K clusters, no extended L2: readable by everyone */
	bool lazy_refcounts;
	unsigned refcount_bits; /* 0 = 16 */
	bool zstd;
	const char *backing_name; /* information for foreign tools; NULL none */
	const char *backing_format;
};
int qcow2_create(int fd, const struct qcow2_create *c, struct err *e);

#endif
