/* iothread.c - see iothread.h. */
#include "devices/iothread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "hypervisor-core/vm.h"

#define IOTHREAD_STACK (128u << 10)

struct iothread {
	struct vm *vm;
	struct loop *loop;
	pthread_t thread;
	unsigned users;
	pthread_mutex_t lock;
	pthread_cond_t done_cond;
};

struct iothread_wait {
	struct iothread *t;
	loop_fn *fn;
	void *arg;
	bool done;
};

static void *iothread_main(void *arg)
{
	struct iothread *t = arg;

	pthread_setname_np(pthread_self(), "io");
	loop_run(t->loop);
	return NULL;
}

static int iothread_spawn(struct iothread *t)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, IOTHREAD_STACK);
	/* signals are the main thread's */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&t->thread, &attr, iothread_main, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return -r;
}

struct iothread *iothread_get(struct vm *vm, struct err *e)
{
	struct iothread *t = vm->iothread;
	int r;

	if (t) {
		t->users++;
		return t;
	}
	t = calloc(1, sizeof(*t));
	/* disks set timers when an error pauses the guest or a limit is set, long after this thread has
	 * given up making descriptors */
	if (!t || !(t->loop = loop_new()) || loop_timers_prepare(t->loop) < 0) {
		if (t && t->loop)
			loop_free(t->loop);
		free(t);
		err_set(e, ENOMEM, "no-memory",
			"guest %s: no memory or descriptors for an I/O thread", vm->name);
		return NULL;
	}
	t->vm = vm;
	t->users = 1;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->done_cond, NULL);
	r = iothread_spawn(t);
	if (r < 0) {
		loop_free(t->loop);
		free(t);
		err_set(e, -r, "no-thread", "guest %s: cannot start an I/O thread: %s", vm->name,
			strerror(-r));
		return NULL;
	}
	vm->iothread = t;
	return t;
}

void iothread_put(struct iothread *t)
{
	if (!t || --t->users)
		return;
	loop_stop(t->loop);
	pthread_join(t->thread, NULL);
	t->vm->iothread = NULL;
	loop_free(t->loop);
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->done_cond);
	free(t);
}

struct loop *iothread_loop(struct iothread *t)
{
	return t->loop;
}

static void iothread_called(void *arg)
{
	struct iothread_wait *w = arg;

	w->fn(w->arg);
	pthread_mutex_lock(&w->t->lock);
	w->done = true;
	pthread_cond_broadcast(&w->t->done_cond);
	pthread_mutex_unlock(&w->t->lock);
}

void iothread_call(struct iothread *t, loop_fn *fn, void *arg)
{
	struct iothread_wait w = { .t = t, .fn = fn, .arg = arg };

	/* the caller cannot go on without it: better to end loudly than to use a queue two threads
	 * share */
	if (loop_post(t->loop, iothread_called, &w) < 0)
		abort();
	pthread_mutex_lock(&t->lock);
	while (!w.done)
		pthread_cond_wait(&t->done_cond, &t->lock);
	pthread_mutex_unlock(&t->lock);
}
