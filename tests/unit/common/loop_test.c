/* loop_test.c - the event loop's promises: order of timers, deletion inside callbacks, posts from
 * threads. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/loop.h"
#include "common/units.h"

struct trace {
	struct loop *l;
	int order[16];
	int n;
	struct loop_fd a, b;
	int count;
};

struct numbered {
	struct trace *t;
	int id;
};

static void record(void *arg)
{
	struct numbered *x = arg;

	x->t->order[x->t->n++] = x->id;
	if (x->t->n == 3)
		loop_stop(x->t->l);
}

static void timers_fire_in_order_of_deadline(void **s)
{
	struct trace t = { .l = loop_new() };
	struct numbered n[4] = { { &t, 0 }, { &t, 1 }, { &t, 2 }, { &t, 3 } };
	struct loop_timer tm[4];
	uint64_t now = clock_mono_ns();

	for (int i = 0; i < 4; i++)
		loop_timer_init(t.l, &tm[i], record, &n[i]);
	loop_timer_set(&tm[0], now + 9 * NS_PER_MS);
	loop_timer_set(&tm[1], now + 3 * NS_PER_MS);
	loop_timer_set(&tm[2], now + 6 * NS_PER_MS);
	loop_timer_set(&tm[3], now + 1 * NS_PER_MS);
	loop_timer_set(&tm[3], now + 900 * NS_PER_S); /* moved */
	loop_timer_stop(&tm[3]);
	loop_timer_stop(&tm[3]);
	assert_int_equal(loop_run(t.l), 0);
	assert_int_equal(t.n, 3);
	assert_int_equal(t.order[0], 1);
	assert_int_equal(t.order[1], 2);
	assert_int_equal(t.order[2], 0);
	loop_free(t.l);
}

static void delete_both(void *arg, int fd, uint32_t ev)
{
	struct trace *t = arg;

	t->count++;
	loop_fd_del(&t->a);
	loop_fd_del(&t->b);
}

static void a_deleted_watcher_never_runs_again(void **s)
{
	struct trace t = { .l = loop_new() };
	int a = eventfd(1, 0), b = eventfd(1, 0);

	assert_int_equal(loop_fd_add(t.l, &t.a, a, EPOLLIN, delete_both, &t), 0);
	assert_int_equal(loop_fd_add(t.l, &t.b, b, EPOLLIN, delete_both, &t), 0);
	assert_int_equal(loop_run_once(t.l, 1000), 2); /* both were fetched in one round */
	assert_int_equal(t.count, 1);
	assert_int_equal(loop_run_once(t.l, 0), 0);
	close(a);
	close(b);
	loop_free(t.l);
}

#define POSTS 2000
static void count_post(void *arg)
{
	struct trace *t = arg;

	if (++t->count == 2 * POSTS)
		loop_stop(t->l);
}

static void *poster(void *arg)
{
	struct trace *t = arg;

	for (int i = 0; i < POSTS; i++)
		if (loop_post(t->l, count_post, t) < 0)
			break;
	return NULL;
}

static void posts_from_threads_all_arrive(void **s)
{
	struct trace t = { .l = loop_new() };
	pthread_t th[2];

	for (int i = 0; i < 2; i++)
		pthread_create(&th[i], NULL, poster, &t);
	assert_int_equal(loop_run(t.l), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(th[i], NULL);
	assert_int_equal(t.count, 2 * POSTS);
	loop_free(t.l);
}

static void on_signal(void *arg, int signo)
{
	struct trace *t = arg;

	t->count = signo;
	loop_stop(t->l);
}

static void signals_arrive_on_the_loop(void **s)
{
	struct trace t = { .l = loop_new() };

	assert_int_equal(loop_signal(t.l, SIGUSR1, on_signal, &t), 0);
	assert_int_equal(loop_signal(t.l, 0, on_signal, &t), -EINVAL);
	raise(SIGUSR1);
	assert_int_equal(loop_run(t.l), 0);
	assert_int_equal(t.count, SIGUSR1);
	loop_free(t.l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(timers_fire_in_order_of_deadline),
		cmocka_unit_test(a_deleted_watcher_never_runs_again),
		cmocka_unit_test(posts_from_threads_all_arrive),
		cmocka_unit_test(signals_arrive_on_the_loop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
