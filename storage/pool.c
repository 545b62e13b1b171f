/* pool.c - worker threads for blocking file I/O: made on demand, gone when idle.
 *
 * A disk that does nothing must cost nothing: no thread exists until the first request, and a
 * worker that finds no work for two seconds ends. Stacks are small (the deepest path is a read
 * through a full backing chain) and only touched pages count.
 * Threading: pool_submit() from any thread; jobs run on workers, in order of submission but in
 * parallel. All signals are blocked in the workers.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "common/log.h"
#include "storage/node.h"

#define POOL_STACK_BYTES (256 * 1024)
#define POOL_IDLE_S	 2

struct pool {
	pthread_mutex_t lock;
	pthread_cond_t work, gone;
	struct pool_job *head, **tail;
	unsigned threads, idle, queued, max;
	bool stopping;
};

struct pool *pool_new(unsigned max_threads)
{
	struct pool *p = calloc(1, sizeof(*p));
	pthread_condattr_t ca;

	if (!p)
		return NULL;
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&p->work, &ca);
	pthread_condattr_destroy(&ca);
	pthread_cond_init(&p->gone, NULL);
	p->tail = &p->head;
	p->max = max_threads ? max_threads : 1;
	return p;
}

static struct pool_job *pool_take(struct pool *p)
{
	struct pool_job *j = p->head;

	if (j) {
		p->head = j->next;
		if (!p->head)
			p->tail = &p->head;
		p->queued--;
	}
	return j;
}

static void *pool_worker(void *arg)
{
	struct pool *p = arg;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct pool_job *j = pool_take(p);
		struct timespec until;
		int r = 0;

		if (j) {
			pthread_mutex_unlock(&p->lock);
			j->fn(j);
			pthread_mutex_lock(&p->lock);
			continue;
		}
		if (p->stopping)
			break;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += POOL_IDLE_S;
		p->idle++;
		while (!p->head && !p->stopping && r != ETIMEDOUT)
			r = pthread_cond_timedwait(&p->work, &p->lock, &until);
		p->idle--;
		if (!p->head)
			break;
	}
	if (--p->threads == 0)
		pthread_cond_signal(&p->gone);
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static bool pool_spawn(struct pool *p)
{
	pthread_attr_t a;
	pthread_t t;
	sigset_t all, old;
	int r;

	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, POOL_STACK_BYTES);
	pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&t, &a, pool_worker, p);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&a);
	return r == 0;
}

void pool_submit(struct pool *p, struct pool_job *j)
{
	bool run_here = false;

	j->next = NULL;
	pthread_mutex_lock(&p->lock);
	*p->tail = j;
	p->tail = &j->next;
	p->queued++;
	if (p->idle >= p->queued) {
		pthread_cond_signal(&p->work);
	} else if (p->threads < p->max) {
		p->threads++;
		if (!pool_spawn(p)) {
			p->threads--;
			/* no thread to be had: others take it, or the submitter must */
			run_here = p->threads == 0;
		}
	} else if (p->idle) {
		pthread_cond_signal(&p->work);
	}
	if (run_here) {
		struct pool_job *mine = pool_take(p);

		pthread_mutex_unlock(&p->lock);
		log_warn("storage: no worker thread could be made; disk I/O runs in line");
		mine->fn(mine);
		return;
	}
	pthread_mutex_unlock(&p->lock);
}

void pool_free(struct pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stopping = true;
	pthread_cond_broadcast(&p->work);
	while (p->threads)
		pthread_cond_wait(&p->gone, &p->lock);
	pthread_mutex_unlock(&p->lock);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->gone);
	free(p);
}
