/* loop.c - see loop.h. One epoll; timers in a binary heap behind one timerfd (armed only when the
 * earliest deadline changes); signals through one signalfd; posts through one eventfd. Timerfd and
 * signalfd are made on first use, so that an I/O thread's loop costs two descriptors.
 */
#include "common/loop.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/units.h"

#define LOOP_EVENTS  64
#define LOOP_SIGNALS 65

struct loop_posted {
	struct loop_posted *next;
	loop_fn *fn;
	void *arg;
};

struct loop {
	int epfd, wakefd, timerfd, sigfd;
	struct loop_fd wake_w, timer_w, sig_w;
	_Atomic bool stop;
	/* events of the current round; loop_fd_del() blanks those of a deleted watcher */
	struct epoll_event ev[LOOP_EVENTS];
	int ev_count, ev_next;
	/* timers: heap ordered by deadline; armed_ns is what the timerfd is set to */
	struct loop_timer **heap;
	unsigned heap_len, heap_cap;
	uint64_t armed_ns;
	/* signals */
	sigset_t sigset;
	struct {
		loop_signal_fn *fn;
		void *arg;
	} * sig; /* LOOP_SIGNALS, on first use */
	pthread_mutex_t post_lock;
	struct loop_posted *post_head, **post_tail;
};

/* ---- posts ---- */

static void loop_wake(struct loop *l)
{
	uint64_t one = 1;

	/* EAGAIN: the counter is full, so the loop is awake anyway */
	if (write(l->wakefd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		abort();
}

static void loop_run_posts(void *arg, int fd, uint32_t events)
{
	struct loop *l = arg;
	struct loop_posted *p, *next;
	uint64_t n;

	if (read(fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		return;
	pthread_mutex_lock(&l->post_lock);
	p = l->post_head;
	l->post_head = NULL;
	l->post_tail = &l->post_head;
	pthread_mutex_unlock(&l->post_lock);
	for (; p; p = next) {
		next = p->next;
		p->fn(p->arg);
		free(p);
	}
}

int loop_post(struct loop *l, loop_fn *fn, void *arg)
{
	struct loop_posted *p = malloc(sizeof(*p));

	if (!p)
		return -ENOMEM;
	*p = (struct loop_posted){ .fn = fn, .arg = arg };
	pthread_mutex_lock(&l->post_lock);
	*l->post_tail = p;
	l->post_tail = &p->next;
	pthread_mutex_unlock(&l->post_lock);
	loop_wake(l);
	return 0;
}

void loop_stop(struct loop *l)
{
	l->stop = true;
	loop_wake(l);
}

/* ---- timers ---- */

static void heap_put(struct loop *l, unsigned i, struct loop_timer *t)
{
	l->heap[i] = t;
	t->heap_index = i;
}

static void heap_up(struct loop *l, unsigned i)
{
	struct loop_timer *t = l->heap[i];

	while (i) {
		unsigned up = (i - 1) / 2;

		if (l->heap[up]->deadline_ns <= t->deadline_ns)
			break;
		heap_put(l, i, l->heap[up]);
		i = up;
	}
	heap_put(l, i, t);
}

static void heap_down(struct loop *l, unsigned i)
{
	struct loop_timer *t = l->heap[i];

	for (;;) {
		unsigned c = 2 * i + 1;

		if (c >= l->heap_len)
			break;
		if (c + 1 < l->heap_len && l->heap[c + 1]->deadline_ns < l->heap[c]->deadline_ns)
			c++;
		if (l->heap[c]->deadline_ns >= t->deadline_ns)
			break;
		heap_put(l, i, l->heap[c]);
		i = c;
	}
	heap_put(l, i, t);
}

static void loop_arm(struct loop *l)
{
	uint64_t want = l->heap_len ? l->heap[0]->deadline_ns : 0;
	struct itimerspec its = { 0 };

	if (want == l->armed_ns || l->timerfd < 0)
		return;
	its.it_value.tv_sec = (time_t)(want / NS_PER_S);
	its.it_value.tv_nsec = (long)(want % NS_PER_S);
	timerfd_settime(l->timerfd, TFD_TIMER_ABSTIME, &its, NULL);
	l->armed_ns = want;
}

static void loop_run_timers(void *arg, int fd, uint32_t events)
{
	struct loop *l = arg;
	uint64_t n, now;

	if (read(fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		return;
	l->armed_ns = 0;
	now = clock_mono_ns();
	/* timers armed by callbacks for "now" wait for the next round: no starvation of fds */
	while (l->heap_len && l->heap[0]->deadline_ns <= now) {
		struct loop_timer *t = l->heap[0];

		loop_timer_stop(t);
		t->fn(t->arg);
	}
}

static int loop_timerfd(struct loop *l)
{
	int fd, r;

	if (l->timerfd >= 0)
		return 0;
	fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = loop_fd_add(l, &l->timer_w, fd, EPOLLIN, loop_run_timers, l);
	if (r < 0) {
		close(fd);
		return r;
	}
	l->timerfd = fd;
	return 0;
}

int loop_timers_prepare(struct loop *l)
{
	return loop_timerfd(l);
}

void loop_timer_init(struct loop *l, struct loop_timer *t, loop_fn *fn, void *arg)
{
	*t = (struct loop_timer){ .fn = fn, .arg = arg, .loop = l };
}

void loop_timer_set(struct loop_timer *t, uint64_t deadline_ns)
{
	struct loop *l = t->loop;

	if (!deadline_ns)
		deadline_ns = 1;
	if (t->deadline_ns) {
		t->deadline_ns = deadline_ns;
		heap_up(l, t->heap_index);
		heap_down(l, t->heap_index);
		loop_arm(l);
		return;
	}
	if (l->heap_len == l->heap_cap) {
		unsigned cap = l->heap_cap ? l->heap_cap * 2 : 8;
		struct loop_timer **heap = realloc(l->heap, cap * sizeof(*heap));

		/* A timer that cannot be set would be an error passing in silence. */
		if (!heap)
			abort();
		l->heap = heap;
		l->heap_cap = cap;
	}
	if (loop_timerfd(l) < 0)
		abort();
	t->deadline_ns = deadline_ns;
	heap_put(l, l->heap_len++, t);
	heap_up(l, t->heap_index);
	loop_arm(l);
}

void loop_timer_after(struct loop_timer *t, uint64_t delay_ns)
{
	loop_timer_set(t, clock_mono_ns() + delay_ns);
}

void loop_timer_stop(struct loop_timer *t)
{
	struct loop *l = t->loop;
	unsigned i = t->heap_index;
	struct loop_timer *last;

	if (!t->deadline_ns)
		return;
	t->deadline_ns = 0;
	last = l->heap[--l->heap_len];
	if (last != t) {
		heap_put(l, i, last);
		heap_up(l, i);
		heap_down(l, last->heap_index);
	}
	loop_arm(l);
}

/* ---- descriptors ---- */

int loop_fd_add(struct loop *l, struct loop_fd *w, int fd, uint32_t events, loop_fd_fn *fn,
		void *arg)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	*w = (struct loop_fd){ .fd = fd, .events = events, .fn = fn, .arg = arg, .loop = l };
	if (epoll_ctl(l->epfd, EPOLL_CTL_ADD, fd, &ev) < 0) {
		w->fd = -1;
		return -errno;
	}
	return 0;
}

int loop_fd_mod(struct loop_fd *w, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	if (w->fd < 0)
		return -EBADF;
	if (w->events == events)
		return 0;
	if (epoll_ctl(w->loop->epfd, EPOLL_CTL_MOD, w->fd, &ev) < 0)
		return -errno;
	w->events = events;
	return 0;
}

void loop_fd_del(struct loop_fd *w)
{
	struct loop *l = w->loop;

	if (w->fd < 0 || !l)
		return;
	epoll_ctl(l->epfd, EPOLL_CTL_DEL, w->fd, NULL);
	w->fd = -1;
	for (int i = l->ev_next; i < l->ev_count; i++)
		if (l->ev[i].data.ptr == w)
			l->ev[i].data.ptr = NULL;
}

/* ---- signals ---- */

static void loop_run_signals(void *arg, int fd, uint32_t events)
{
	struct loop *l = arg;
	struct signalfd_siginfo si;

	while (read(fd, &si, sizeof(si)) == (ssize_t)sizeof(si))
		if (si.ssi_signo < LOOP_SIGNALS && l->sig[si.ssi_signo].fn)
			l->sig[si.ssi_signo].fn(l->sig[si.ssi_signo].arg, (int)si.ssi_signo);
}

int loop_signal(struct loop *l, int signo, loop_signal_fn *fn, void *arg)
{
	int fd, r;

	if (signo <= 0 || signo >= LOOP_SIGNALS)
		return -EINVAL;
	if (!l->sig && !(l->sig = calloc(LOOP_SIGNALS, sizeof(*l->sig))))
		return -ENOMEM;
	sigaddset(&l->sigset, signo);
	r = pthread_sigmask(SIG_BLOCK, &l->sigset, NULL);
	if (r)
		return -r;
	fd = signalfd(l->sigfd, &l->sigset, SFD_NONBLOCK | SFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (l->sigfd < 0) {
		l->sigfd = fd;
		r = loop_fd_add(l, &l->sig_w, fd, EPOLLIN, loop_run_signals, l);
		if (r < 0)
			return r;
	}
	l->sig[signo].fn = fn;
	l->sig[signo].arg = arg;
	return 0;
}

/* ---- the loop ---- */

struct loop *loop_new(void)
{
	struct loop *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return NULL;
	l->timerfd = l->sigfd = -1;
	l->timer_w.fd = l->sig_w.fd = l->wake_w.fd = -1;
	sigemptyset(&l->sigset);
	l->post_tail = &l->post_head;
	pthread_mutex_init(&l->post_lock, NULL);
	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	l->wakefd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (l->epfd < 0 || l->wakefd < 0)
		goto fail;
	r = loop_fd_add(l, &l->wake_w, l->wakefd, EPOLLIN, loop_run_posts, l);
	if (r < 0) {
		errno = -r;
		goto fail;
	}
	return l;
fail:
	r = errno;
	loop_free(l);
	errno = r;
	return NULL;
}

void loop_free(struct loop *l)
{
	struct loop_posted *p, *next;

	if (!l)
		return;
	for (p = l->post_head; p; p = next) {
		next = p->next;
		free(p);
	}
	if (l->epfd >= 0)
		close(l->epfd);
	if (l->wakefd >= 0)
		close(l->wakefd);
	if (l->timerfd >= 0)
		close(l->timerfd);
	if (l->sigfd >= 0)
		close(l->sigfd);
	pthread_mutex_destroy(&l->post_lock);
	free(l->heap);
	free(l->sig);
	free(l);
}

int loop_run_once(struct loop *l, int timeout_ms)
{
	int n = epoll_wait(l->epfd, l->ev, LOOP_EVENTS, timeout_ms);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	l->ev_count = n;
	for (l->ev_next = 0; l->ev_next < l->ev_count;) {
		struct epoll_event *e = &l->ev[l->ev_next++];
		struct loop_fd *w = e->data.ptr;

		if (w)
			w->fn(w->arg, w->fd, e->events);
	}
	l->ev_count = l->ev_next = 0;
	return n;
}

int loop_run(struct loop *l)
{
	while (!l->stop) {
		int r = loop_run_once(l, -1);

		if (r < 0)
			return r;
	}
	l->stop = false;
	return 0;
}
