/* node.h - inside storage/: what a driver row implements and how nodes call each other.
 *
 * Every driver is synchronous and thread-safe: a worker thread walks the whole graph with blocking
 * calls, any number of workers at once. Concurrency lives in one place (queue.c and pool.c), so
 * that a driver is ordinary code. The exception is map(), the fast path: it names, without
 * blocking, the place in a file where a request's bytes are.
 * Trust: ranges were checked against the root's size by blockdev.c; a driver over another node may
 * read and write beyond its child's end (the child grows) within what its own format allows.
 */
#ifndef STORAGE_NODE_H
#define STORAGE_NODE_H

#include <pthread.h>
#include <stdatomic.h>

#include "storage/blockdev.h"

/* A borrowed scatter list with bytes at its front already consumed. */
struct blk_buf {
	const struct iovec *iov;
	int niov;
	uint64_t skip;
};

/* Where a whole request lies, found without blocking. With finish set, it must be called once, when
 * the transfer has ended. */
struct blk_place {
	int fd;
	uint64_t off;
	bool direct; /* O_DIRECT: asynchronous I/O does not block */
	bool zero;   /* read: nothing to transfer, it is zeroes */
	int (*finish)(struct blk_place *p, int error); /* returns the request's result */
	uint64_t priv[24];
};

enum node_zero_flags {
	NODE_UNMAP = 1 << 0,   /* write-zeroes: may deallocate */
	NODE_DISCARD = 1 << 1, /* contents become undefined; failure to deallocate is no error */
};

struct blockdev_ops {
	const char *name;
	/* open() - set bd->drv, bd->size_bytes, bd->block_size. 0 or -errno with @e; on failure it
	 * has released what it made, fds excepted. */
	int (*open)(struct blockdev *bd, const struct blk_spec *spec, struct err *e);
	/* close() - @keep_fds: undo only, the fds stay the caller's. 0 or first -errno. */
	int (*close)(struct blockdev *bd, bool keep_fds);
	void (*info)(struct blockdev *bd, struct blk_info *info); /* adds to what is filled in */
	int (*rw)(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len);
	int (*zero)(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags);
	int (*flush)(struct blockdev *bd);
	int (*extents)(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max);
	int (*resize)(struct blockdev *bd, uint64_t size_bytes, struct err *e);
	/* allocate() - make host space from @off on without changing what is read, @want bytes if
	 * the file system has plenty, at least @min; the file may grow. Return: bytes made,
	 * -ENOSPC, or -EOPNOTSUPP where it cannot be done ahead. NULL: likewise. */
	int64_t (*allocate)(struct blockdev *bd, uint64_t off, uint64_t min, uint64_t want);
	/* map() - the place of one whole read or write, without blocking on I/O; a write may have
	 * made room. Anything else but 0: the request takes the slow way. NULL: always. */
	int (*map)(struct blockdev *bd, bool write, const struct blk_req *r, uint64_t off,
		   struct blk_place *p);
	/* moved() - the node's content lies in @bd now. NULL: the driver keeps no pointer to it. */
	void (*moved)(struct blockdev *bd);
	/* freeze() - with no request in flight: all that was written is stable, and the node is
	 * read-only from now on. thaw() - writable again; @fd, open for writing, replaces what a
	 * file was opened with (taken on success); -1: it was opened for writing. NULL: cannot. */
	int (*freeze)(struct blockdev *bd);
	int (*thaw)(struct blockdev *bd, int fd, struct err *e);
};

struct blockdev {
	const struct blockdev_ops *ops;
	void *drv;
	char label[96];
	bool read_only, discard, detect_zeroes, unsafe, aio;
	_Atomic bool serial_writes; /* the kernel lets one write at a time into it */
	uint32_t block_size;
	_Atomic uint64_t size_bytes;
	struct blockdev *child;	  /* filter: filtered node; qcow2: the image file */
	struct blockdev *backing; /* qcow2: the parent */
	unsigned depth;		  /* 1 + depth of backing */
	struct pool *pool;	  /* root only, made with the first queue */
	pthread_mutex_t pool_lock;
	unsigned threads_max;
	/* the gate, of the root: who is inside, and whether it is shut */
	_Atomic unsigned gate_in;
	_Atomic bool gate_shut;
	pthread_mutex_t gate_lock;
	pthread_cond_t gate_cond;
};

/* The gate of a graph: every request enters it and leaves it when it has ended. Shut, it waits for
 * those inside and keeps others out, so that the graph can be changed. Who shuts it uses node_
 * calls meanwhile, never blk_ calls on the root. */
bool node_gate_try(struct blockdev *bd);   /* false: shut */
void node_gate_enter(struct blockdev *bd); /* waits */
void node_gate_leave(struct blockdev *bd);
void node_gate_shut(struct blockdev *bd); /* one at a time: waits for another's */
void node_gate_open(struct blockdev *bd);

/* node_move() - @to becomes what @from was; its own gate, pool and threads stay. @from is left
 * empty, to be filled or freed by node_shell_free(). The gate above must be shut. */
void node_move(struct blockdev *to, struct blockdev *from);
struct blockdev *node_shell_new(const char *label);
void node_shell_free(struct blockdev *bd);
/* node_redepth() - the depths below @bd, after a change; its own is @depth. */
void node_redepth(struct blockdev *bd, unsigned depth);

extern const struct blockdev_ops file_ops;
extern const struct blockdev_ops qcow2_ops;
extern const struct blockdev_ops nbd_ops;
extern const struct blockdev_ops filter_fail_ops;
extern const struct blockdev_ops filter_delay_ops;
extern const struct blockdev_ops filter_log_ops;
extern const struct blockdev_ops filter_rate_ops;
extern const struct blockdev_ops filter_copyread_ops;

/* Node calls. Lengths of 0 succeed. */
struct blockdev *node_open(const struct blk_spec *spec, unsigned depth, struct err *e);
int node_close(struct blockdev *bd, bool keep_fds);
int node_read(struct blockdev *bd, struct blk_buf b, uint64_t off, uint64_t len);
int node_write(struct blockdev *bd, struct blk_buf b, uint64_t off, uint64_t len);
int node_pread(struct blockdev *bd, void *p, uint64_t len, uint64_t off);
int node_pwrite(struct blockdev *bd, const void *p, uint64_t len, uint64_t off);
int node_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags);
int node_flush(struct blockdev *bd);
int node_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max);
int64_t node_allocate(struct blockdev *bd, uint64_t off, uint64_t min, uint64_t want);
int node_resize(struct blockdev *bd, uint64_t size, struct err *e);
/* node_request() - run one request to its end on the calling thread; checks its range. */
int node_request(struct blockdev *bd, struct blk_req *r);
/* node_map() - map() with the checks that every driver would need. */
int node_map(struct blockdev *bd, const struct blk_req *r, struct blk_place *p);

/* file_stamp() - a "file" node's size and time of last change; -ENOTSUP for a device. */
int file_stamp(struct blockdev *bd, uint64_t *size_bytes, uint64_t *mtime_ns);

/* blk_queue_more() - inside a completion: another one of this queue follows before the loop does,
 * so that what they cause can be done once, by the last. */
bool blk_queue_more(const struct blk_queue *q);

/* spec_opt() - value of "key=value" among the spec's options, or NULL. */
const char *spec_opt(const struct blk_spec *spec, const char *key);
int spec_opt_u64(const struct blk_spec *spec, const char *key, uint64_t dflt, uint64_t max,
		 uint64_t *v, struct err *e);

/* Scatter lists. */
static inline struct blk_buf blk_buf_advance(struct blk_buf b, uint64_t n)
{
	b.skip += n;
	while (b.niov > 0 && b.skip >= b.iov->iov_len) {
		b.skip -= b.iov->iov_len;
		b.iov++;
		b.niov--;
	}
	return b;
}
/* blk_buf_iov() - at most @max plain iovecs covering at most @len bytes; @got: bytes covered. */
int blk_buf_iov(struct blk_buf b, uint64_t len, struct iovec *out, int max, uint64_t *got);
void blk_buf_zero(struct blk_buf b, uint64_t len);
void blk_buf_to(struct blk_buf b, void *dst, uint64_t len);
void blk_buf_from(struct blk_buf b, const void *src, uint64_t len);
bool blk_buf_is_zero(struct blk_buf b, uint64_t len);
bool mem_is_zero(const void *p, size_t len);

/* pool.c: worker threads made on demand, gone when idle. */
struct pool;
struct pool_job {
	struct pool_job *next;
	void (*fn)(struct pool_job *j);
};
struct pool *pool_new(unsigned max_threads);
void pool_free(struct pool *p); /* nothing queued; waits for the threads */
void pool_submit(struct pool *p, struct pool_job *j);

#endif
