/* queue.c - asynchronous requests: a queue per I/O thread, workers behind it.
 *
 * blk_submit() hands the request to the graph's worker pool; a worker runs it to its end and puts
 * it on the queue's completion list; an eventfd wakes the queue's loop, which calls back. One wake
 * serves all that completed meanwhile.
 * Threading: submit and callbacks on the loop's thread; workers touch only the completion list,
 * under its lock. A callback may submit again, but may not free the queue while others are in flight.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/overflow.h"
#include "storage/node.h"

struct blk_queue {
	struct blockdev *bd;
	struct loop *loop;
	struct loop_fd wake;
	int efd;
	unsigned inflight;
	pthread_mutex_t lock;
	struct list done;
};

/* the worker's view of a request lies in the request's private words */
struct queue_job {
	struct pool_job job;
	struct blk_req *req;
};
_Static_assert(sizeof(struct queue_job) <= sizeof(((struct blk_req *)0)->drv), "drv too small");

static void queue_finish(struct blk_queue *q, struct blk_req *r, int result)
{
	bool first;
	uint64_t one = 1;

	r->result = result;
	pthread_mutex_lock(&q->lock);
	first = list_empty(&q->done);
	list_add_tail(&q->done, &r->node);
	/* written under the lock: once the loop has taken the list, the queue may be freed */
	if (first && write(q->efd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		abort();
	pthread_mutex_unlock(&q->lock);
}

static void queue_run(struct pool_job *j)
{
	struct blk_req *r = container_of(j, struct queue_job, job)->req;

	queue_finish(r->queue, r, node_request(r->queue->bd, r));
}

static void queue_complete(void *arg, int fd, uint32_t events)
{
	struct blk_queue *q = arg;
	struct list batch;
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
	while (!list_empty(&batch)) {
		struct blk_req *r = list_first(&batch, struct blk_req, node);

		list_del(&r->node);
		q->inflight--;
		r->done(r, r->result); /* the last one may free the queue */
	}
}

struct blk_queue *blk_queue_new(struct blockdev *bd, struct loop *l, struct err *e)
{
	struct blk_queue *q = calloc(1, sizeof(*q));
	int r = -ENOMEM;

	if (!q)
		goto fail;
	q->efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->efd < 0) {
		r = -errno;
		goto fail;
	}
	q->bd = bd;
	q->loop = l;
	q->wake = (struct loop_fd)LOOP_FD_NONE;
	list_init(&q->done);
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
	/* a worker that has just finished the last request may still hold the lock */
	pthread_mutex_lock(&q->lock);
	pthread_mutex_unlock(&q->lock);
	loop_fd_del(&q->wake);
	close(q->efd);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

void blk_submit(struct blk_queue *q, struct blk_req *r)
{
	struct queue_job *qj = (struct queue_job *)(void *)r->drv;

	r->queue = q;
	q->inflight++;
	qj->req = r;
	qj->job.fn = queue_run;
	pool_submit(q->bd->pool, &qj->job);
}

unsigned blk_queue_inflight(const struct blk_queue *q)
{
	return q->inflight;
}
