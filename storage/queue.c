/* queue.c - asynchronous requests: a queue per I/O thread, workers and kernel AIO behind it.
 *
 * blk_submit() first asks the graph where the request lies (map). Where that is known without
 * blocking and the file is O_DIRECT, the transfer goes to the kernel's native AIO, from this thread
 * and without a context switch (spec option aio=on; io_setup, io_submit, io_getevents, io_destroy
 * must be allowed); a read of a buffered file is tried from the page cache. Everything else goes to
 * the graph's worker pool. All completions arrive through one eventfd on the loop.
 * Threading: submit and callbacks on the loop's thread; workers touch only the completion list,
 * under its lock. A callback may submit again, but may not free the queue while others are in
 * flight.
 */
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/overflow.h"
#include "storage/node.h"

#define AIO_SLOTS  128
#define CACHED_MAX (128u << 10) /* a longer copy is better made by a worker, beside others */
#define LANE_BATCH 8u
#define LANE_BYTES (256u << 10)

struct aio_slot {
	struct iocb cb;
	struct blk_req *req;
	struct blk_place place;
	struct aio_slot *next_free;
};

struct blk_queue {
	struct blockdev *bd;
	struct loop *loop;
	struct loop_fd wake;
	int efd;
	unsigned inflight, plugged;
	unsigned misses, cold; /* page cache: how often in a row it was not there; do not look */
	int asked_fd;	       /* the file last asked where it lies; -1 none */
	bool asked_ram;	       /* in memory */
	bool more;	       /* inside a callback: others follow at once */
	bool *freed;	       /* inside callbacks: told when the queue goes */
	pthread_mutex_t lock;
	struct list done;
	/* writes that one worker does in turn, see lane_run(); under lock */
	struct list lane;
	bool lane_runs;
	struct pool_job lane_job;
	bool lane_waits; /* loop's thread: to be started when the plug is pulled */
	/* kernel AIO: made with the first request that can use it */
	bool aio, aio_ready;
	aio_context_t ctx;
	struct aio_slot *slots, *free_slot;
	struct iocb *pending[AIO_SLOTS];
	unsigned npending, naio;
};

/* the worker's view of a request lies in the request's private words */
struct queue_job {
	struct pool_job job;
	struct blk_req *req;
};
_Static_assert(sizeof(struct queue_job) <= sizeof(((struct blk_req *)0)->drv), "drv too small");

/* queue_finish_locked() - @n requests whose results are set. The loop is woken under the lock: once
 * it has taken the list, the queue may be freed. */
static void queue_finish_locked(struct blk_queue *q, struct blk_req *const *r, unsigned n)
{
	bool first = list_empty(&q->done);
	uint64_t one = 1;

	for (unsigned i = 0; i < n; i++)
		list_add_tail(&q->done, &r[i]->node);
	if (first && write(q->efd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		abort();
}

static void queue_finish(struct blk_queue *q, struct blk_req *r, int result)
{
	r->result = result;
	pthread_mutex_lock(&q->lock);
	queue_finish_locked(q, &r, 1);
	pthread_mutex_unlock(&q->lock);
}

static int queue_request(struct blk_queue *q, struct blk_req *r)
{
	struct blockdev *bd = q->bd;
	int ret;

	node_gate_enter(bd);
	ret = node_request(bd, r);
	node_gate_leave(bd);
	return ret;
}

static void queue_run(struct pool_job *j)
{
	struct blk_req *r = container_of(j, struct queue_job, job)->req;

	queue_finish(r->queue, r, queue_request(r->queue, r));
}

static unsigned lane_take_locked(struct blk_queue *q, struct blk_req **batch)
{
	uint64_t bytes = 0;
	unsigned n = 0;

	while (n < LANE_BATCH && bytes < LANE_BYTES && !list_empty(&q->lane)) {
		batch[n] = list_first(&q->lane, struct blk_req, node);
		list_del(&batch[n]->node);
		bytes += batch[n++]->len_bytes;
	}
	return n;
}

/* lane_run() - buffered writes to one file hold its lock in turn whatever we do: one worker that
 * does them one after the other costs no more time than many, and no waking of any. The loop hears
 * of a few small ones at once. */
static void lane_run(struct pool_job *j)
{
	struct blk_queue *q = container_of(j, struct blk_queue, lane_job);
	struct blk_req *batch[LANE_BATCH];
	unsigned n;
	bool last;

	pthread_mutex_lock(&q->lock);
	do {
		n = lane_take_locked(q, batch);
		pthread_mutex_unlock(&q->lock);
		for (unsigned i = 0; i < n; i++)
			batch[i]->result = queue_request(q, batch[i]);
		pthread_mutex_lock(&q->lock);
		last = list_empty(&q->lane);
		q->lane_runs = !last;
		queue_finish_locked(q, batch, n);
	} while (!last);
	/* with its last request taken the queue may go, but not before it has this lock */
	pthread_mutex_unlock(&q->lock);
}

static void lane_start(struct blk_queue *q)
{
	q->lane_waits = false;
	q->lane_job.fn = lane_run;
	pool_submit(q->bd->pool, &q->lane_job);
}

static void queue_to_lane(struct blk_queue *q, struct blk_req *r)
{
	bool start;

	pthread_mutex_lock(&q->lock);
	list_add_tail(&q->lane, &r->node);
	start = !q->lane_runs;
	q->lane_runs = true;
	pthread_mutex_unlock(&q->lock);
	if (start && q->plugged)
		q->lane_waits = true; /* what comes together wakes the worker once */
	else if (start)
		lane_start(q);
}

static void queue_to_worker(struct blk_queue *q, struct blk_req *r)
{
	struct queue_job *qj = (struct queue_job *)(void *)r->drv;

	if (atomic_load(&q->bd->serial_writes) && r->op == BLK_WRITE && !(r->flags & BLK_FUA)) {
		queue_to_lane(q, r);
		return;
	}

	qj->req = r;
	qj->job.fn = queue_run;
	pool_submit(q->bd->pool, &qj->job);
}

/* --- reads that need no waiting
 * ---------------------------------------------------------------------- */

/* A file system in memory need not be asked whether it would wait, and cannot be (EOPNOTSUPP). */
static ssize_t queue_preadv(struct blk_queue *q, const struct blk_req *r,
			    const struct blk_place *place)
{
	ssize_t n = preadv2(place->fd, r->iov, r->niov, place->off, RWF_NOWAIT);
	struct statfs fs;

	if (n >= 0 || errno != EOPNOTSUPP)
		return n;
	if (place->fd != q->asked_fd) {
		q->asked_fd = place->fd;
		q->asked_ram = fstatfs(place->fd, &fs) == 0 &&
			       (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
	}
	return q->asked_ram ? preadv(place->fd, r->iov, r->niov, place->off) : -1;
}

/* read_now() - @place is mapped, the gate entered: take it from the page cache, or make zeroes.
 * False: it is not there, and the gate is left. */
static bool read_now(struct blk_queue *q, struct blk_req *r, struct blk_place *place)
{
	ssize_t n = r->len_bytes;
	int ret = 0;

	if (place->zero)
		blk_buf_zero((struct blk_buf){ r->iov, r->niov, 0 }, r->len_bytes);
	else
		n = queue_preadv(q, r, place);
	if (place->finish)
		ret = place->finish(place, 0);
	node_gate_leave(q->bd);
	if (n != (ssize_t)r->len_bytes)
		return false;
	queue_finish(q, r, ret);
	return true;
}

/* cached_try() - a small read of a buffered file, done by this thread if that takes a copy only: no
 * worker woken, none waited for. While what is asked for is not in the cache (or the file system
 * cannot tell) fewer and fewer requests look. True: done. */
static bool cached_try(struct blk_queue *q, struct blk_req *r)
{
	struct blk_place place;

	if (r->op != BLK_READ || r->len_bytes > CACHED_MAX)
		return false;
	if (q->cold) {
		q->cold--;
		return false;
	}
	if (!node_gate_try(q->bd))
		return false;
	if (node_map(q->bd, r, &place)) {
		node_gate_leave(q->bd);
		return false;
	}
	if (!place.zero && place.direct) {
		if (place.finish)
			(void)place.finish(&place, -EAGAIN);
		node_gate_leave(q->bd);
		return false;
	}
	if (read_now(q, r, &place)) {
		q->misses = 0;
		return true;
	}
	q->misses = MIN(q->misses + 1, 10u);
	q->cold = (1u << q->misses) - 1;
	return false;
}

/* --- kernel AIO
 * ------------------------------------------------------------------------------------ */

static bool aio_setup(struct blk_queue *q)
{
	if (q->aio_ready)
		return true;
	if (syscall(SYS_io_setup, AIO_SLOTS, &q->ctx) < 0) {
		q->aio = false;
		return false;
	}
	q->slots = calloc(AIO_SLOTS, sizeof(*q->slots));
	if (!q->slots) {
		syscall(SYS_io_destroy, q->ctx);
		q->aio = false;
		return false;
	}
	for (unsigned i = 0; i < AIO_SLOTS; i++) {
		q->slots[i].next_free = q->free_slot;
		q->free_slot = &q->slots[i];
	}
	q->aio_ready = true;
	return true;
}

static void aio_slot_put(struct blk_queue *q, struct aio_slot *s)
{
	s->next_free = q->free_slot;
	q->free_slot = s;
}

/* aio_redo() - what did not go through as a whole goes the slow way, which tells why. */
static void aio_redo(struct blk_queue *q, struct aio_slot *s, int error)
{
	struct blk_req *r = s->req;

	if (s->place.finish)
		(void)s->place.finish(&s->place, error);
	node_gate_leave(q->bd);
	aio_slot_put(q, s);
	queue_to_worker(q, r);
}

static void aio_submit_pending(struct blk_queue *q)
{
	unsigned at = 0;

	while (at < q->npending) {
		long n = syscall(SYS_io_submit, q->ctx, (long)(q->npending - at), q->pending + at);

		if (n > 0) {
			at += n;
			q->naio += n;
		} else if (n < 0 && errno == EINTR) {
			continue;
		} else {
			struct aio_slot *s = container_of(q->pending[at], struct aio_slot, cb);

			at++;
			aio_redo(q, s, -EAGAIN);
		}
	}
	q->npending = 0;
}

static void aio_reap(struct blk_queue *q, struct list *batch)
{
	struct io_event ev[AIO_SLOTS];
	struct timespec now = { 0, 0 };
	long n;

	if (!q->naio)
		return;
	n = syscall(SYS_io_getevents, q->ctx, 0L, (long)AIO_SLOTS, ev, &now);
	for (long i = 0; i < n; i++) {
		struct aio_slot *s = (struct aio_slot *)(uintptr_t)ev[i].data;
		struct blk_req *r = s->req;

		q->naio--;
		if (ev[i].res != (__s64)r->len_bytes) {
			aio_redo(q, s, ev[i].res < 0 ? (int)ev[i].res : -EIO);
			continue;
		}
		r->result = s->place.finish ? s->place.finish(&s->place, 0) : 0;
		node_gate_leave(q->bd);
		aio_slot_put(q, s);
		list_add_tail(batch, &r->node);
	}
}

/* aio_try() - True: the request is on its way, or done. */
static bool aio_try(struct blk_queue *q, struct blk_req *r)
{
	struct aio_slot *s;
	bool write = r->op == BLK_WRITE;

	if (!aio_setup(q) || !q->free_slot)
		return false;
	s = q->free_slot;
	if (!node_gate_try(q->bd))
		return false; /* a worker waits for it, the loop does not */
	if (node_map(q->bd, r, &s->place)) {
		node_gate_leave(q->bd);
		return false;
	}
	if (s->place.zero || !s->place.direct)
		return read_now(q, r, &s->place);
	q->free_slot = s->next_free;
	s->req = r;
	memset(&s->cb, 0, sizeof(s->cb));
	s->cb.aio_data = (uintptr_t)s;
	s->cb.aio_lio_opcode = write ? IOCB_CMD_PWRITEV : IOCB_CMD_PREADV;
	s->cb.aio_fildes = s->place.fd;
	s->cb.aio_buf = (uintptr_t)r->iov;
	s->cb.aio_nbytes = r->niov;
	s->cb.aio_offset = s->place.off;
	s->cb.aio_flags = IOCB_FLAG_RESFD;
	s->cb.aio_resfd = q->efd;
	q->pending[q->npending++] = &s->cb;
	if (!q->plugged || q->npending == AIO_SLOTS)
		aio_submit_pending(q);
	return true;
}

/* --- the queue
 * --------------------------------------------------------------------------------------- */

static void queue_complete(void *arg, int fd, uint32_t events)
{
	struct blk_queue *q = arg;
	struct list batch;
	bool freed = false;
	uint64_t n;

	if (read(fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		return;
	list_init(&batch);
	pthread_mutex_lock(&q->lock);
	if (!list_empty(&q->done)) {
		batch = q->done;
		batch.next->prev = &batch;
		batch.prev->next = &batch;
		list_init(&q->done);
	}
	pthread_mutex_unlock(&q->lock);
	aio_reap(q, &batch);
	blk_queue_plug(q);
	q->freed = &freed;
	while (!list_empty(&batch)) {
		struct blk_req *r = list_first(&batch, struct blk_req, node);

		list_del(&r->node);
		q->inflight--;
		q->more = !list_empty(&batch);
		r->done(r, r->result); /* the last one may free the queue */
		if (freed)
			return;
	}
	q->freed = NULL;
	blk_queue_unplug(q);
}

struct blk_queue *blk_queue_new(struct blockdev *bd, struct loop *l, struct err *e)
{
	struct blk_queue *q = calloc(1, sizeof(*q));
	int r = -ENOMEM;

	if (!q)
		goto fail;
	q->asked_fd = -1;
	q->efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->efd < 0) {
		r = -errno;
		goto fail;
	}
	q->bd = bd;
	q->loop = l;
	q->aio = bd->aio;
	q->wake = (struct loop_fd)LOOP_FD_NONE;
	list_init(&q->done);
	list_init(&q->lane);
	pthread_mutex_init(&q->lock, NULL);
	pthread_mutex_lock(&bd->pool_lock);
	if (!bd->pool)
		bd->pool = pool_new(bd->threads_max);
	pthread_mutex_unlock(&bd->pool_lock);
	r = bd->pool ? loop_fd_add(l, &q->wake, q->efd, EPOLLIN, queue_complete, q) : -ENOMEM;
	if (r < 0) {
		close(q->efd);
		pthread_mutex_destroy(&q->lock);
		goto fail;
	}
	return q;
fail:
	free(q);
	err_set(e, -r, "disk-queue", "%s: cannot make an I/O queue (error %d)", bd->label, -r);
	return NULL;
}

void blk_queue_free(struct blk_queue *q)
{
	if (!q)
		return;
	if (q->freed)
		*q->freed = true;
	/* a worker that has just finished the last request may still hold the lock */
	pthread_mutex_lock(&q->lock);
	pthread_mutex_unlock(&q->lock);
	loop_fd_del(&q->wake);
	if (q->aio_ready)
		syscall(SYS_io_destroy, q->ctx);
	free(q->slots);
	close(q->efd);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

void blk_submit(struct blk_queue *q, struct blk_req *r)
{
	r->queue = q;
	q->inflight++;
	if (!(q->aio ? aio_try(q, r) : cached_try(q, r)))
		queue_to_worker(q, r);
}

void blk_queue_plug(struct blk_queue *q)
{
	q->plugged++;
}

void blk_queue_unplug(struct blk_queue *q)
{
	if (--q->plugged)
		return;
	if (q->npending)
		aio_submit_pending(q);
	if (q->lane_waits)
		lane_start(q);
}

bool blk_queue_more(const struct blk_queue *q)
{
	return q->more;
}

unsigned blk_queue_inflight(const struct blk_queue *q)
{
	return q->inflight;
}
