/* loop.h - the one event loop of a process (or of one I/O thread).
 *
 * epoll, one timerfd for all timers, one signalfd for all signals, one eventfd for posts.
 * Watchers are embedded in their owner's struct: the loop allocates nothing per watcher.
 * Threading: all calls from the loop's own thread, except loop_post() and loop_stop().
 * A callback may delete any watcher, itself included; a deleted watcher's callback never runs
 * afterwards, not even for an event already fetched in the same epoll_wait.
 */
#ifndef COMMON_LOOP_H
#define COMMON_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

struct loop;
struct loop_fd;
struct loop_timer;

typedef void loop_fd_fn(void *arg, int fd, uint32_t events);
typedef void loop_fn(void *arg);
typedef void loop_signal_fn(void *arg, int signo);

struct loop_fd {
	int fd; /* -1 = not watched; set to -1 (LOOP_FD_NONE) before first use */
	uint32_t events;
	loop_fd_fn *fn;
	void *arg;
	struct loop *loop;
};
#define LOOP_FD_NONE \
	{ \
		.fd = -1 \
	}

struct loop_timer {
	uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0 = stopped */
	loop_fn *fn;
	void *arg;
	struct loop *loop;
	unsigned heap_index;
};

struct loop *loop_new(void);	/* NULL and errno on failure */
void loop_free(struct loop *l); /* watchers still there are forgotten, their fds stay open */

/* loop_fd_add() - watch @fd (not owned) for EPOLLIN, EPOLLOUT, ... Return: 0 or -errno. */
int loop_fd_add(struct loop *l, struct loop_fd *w, int fd, uint32_t events, loop_fd_fn *fn,
		void *arg);
int loop_fd_mod(struct loop_fd *w, uint32_t events);
void loop_fd_del(struct loop_fd *w); /* no-op where not watched; does not close */

/* loop_timers_prepare() - what the first timer would make, made now: for a loop whose thread may not do so
 * any more when it sets one. 0 or -errno. */
int loop_timers_prepare(struct loop *l);
void loop_timer_init(struct loop *l, struct loop_timer *t, loop_fn *fn, void *arg);
void loop_timer_set(struct loop_timer *t, uint64_t deadline_ns); /* one shot; re-arms */
void loop_timer_after(struct loop_timer *t, uint64_t delay_ns);
void loop_timer_stop(struct loop_timer *t);

/* loop_signal() - deliver @signo (blocked in this thread by this call) to @fn. */
int loop_signal(struct loop *l, int signo, loop_signal_fn *fn, void *arg);

/* loop_post() - run @fn(@arg) on the loop's thread, soon, in order. Any thread; from a callback
 * it runs in the next round. Return: 0 or -ENOMEM. */
int loop_post(struct loop *l, loop_fn *fn, void *arg);

int loop_run(struct loop *l);			   /* until loop_stop(); 0 or -errno */
int loop_run_once(struct loop *l, int timeout_ms); /* one round; events handled or -errno */
void loop_stop(struct loop *l);			   /* any thread */

#endif
