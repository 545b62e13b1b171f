/* wire_test.c - messages between processes: round trips, hostile bytes, descriptors, back pressure.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/wire.h"

static void pair(int sv[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
}

static void fields_survive_the_trip(void **s)
{
	struct wire_buf tx = { 0 }, rx = { 0 };
	struct wire_iter it, sub;
	struct wire_field f;
	size_t mark;
	int sv[2];

	pair(sv);
	wire_begin(&tx, 7, 99);
	wire_put_u64(&tx, 1, UINT64_MAX);
	wire_put_i64(&tx, 2, -5);
	wire_put_str(&tx, 3, "n\xc3\xa4me");
	wire_put_str(&tx, 4, NULL);
	mark = wire_nest_begin(&tx, 5);
	wire_put_bytes(&tx, 1, "abc", 3);
	wire_nest_end(&tx, mark);
	assert_int_equal(wire_send(sv[0], &tx), 0);
	assert_int_equal(wire_recv(sv[1], &rx, 0), 1);
	assert_int_equal(rx.type, 7);
	assert_int_equal(rx.id, 99);
	wire_iter_init(&it, &rx);
	assert_int_equal(wire_next(&it, &f), 1);
	assert_true(f.u64 == UINT64_MAX);
	assert_int_equal(wire_next(&it, &f), 1);
	assert_true((int64_t)f.u64 == -5);
	assert_int_equal(wire_next(&it, &f), 1);
	assert_int_equal(f.len, 5);
	assert_int_equal(wire_next(&it, &f), 1);
	assert_int_equal(f.tag, 5);
	assert_int_equal(wire_iter_nested(&sub, &f), 0);
	assert_int_equal(wire_next(&sub, &f), 1);
	assert_memory_equal(f.p, "abc", 3);
	assert_int_equal(wire_next(&sub, &f), 0);
	assert_int_equal(wire_next(&it, &f), 0);
	wire_buf_clear(&tx);
	wire_buf_clear(&rx);
	close(sv[0]);
	assert_int_equal(wire_recv(sv[1], &rx, 0), 0);
	wire_buf_clear(&rx);
	close(sv[1]);
}

static void hostile_bytes_are_refused(void **s)
{
	struct wire_buf good = { 0 }, rx = { 0 };
	uint8_t msg[256];
	size_t len;
	int sv[2];

	pair(sv);
	wire_begin(&good, 1, 1);
	wire_put_str(&good, 1, "hello");
	wire_put_u64(&good, 2, 3);
	assert_int_equal(wire_send(sv[0], &good), 0);
	len = (size_t)recv(sv[1], msg, sizeof(msg), 0);
	/* every single-byte change is either refused or decodes within bounds */
	for (size_t i = 0; i < len; i++) {
		for (unsigned v = 0; v < 256; v += 5) {
			uint8_t m[256];
			struct wire_iter it;
			struct wire_field f;
			int r;

			memcpy(m, msg, len);
			m[i] = (uint8_t)v;
			assert_int_equal(send(sv[0], m, len, 0), (ssize_t)len);
			r = wire_recv(sv[1], &rx, 0);
			assert_true(r == 1 || r == -EPROTO);
			if (r < 0)
				continue;
			wire_iter_init(&it, &rx);
			while ((r = wire_next(&it, &f)) > 0)
				assert_true(f.p >= rx.data && f.p + f.len <= rx.data + rx.len);
			assert_int_equal(r, 0);
		}
	}
	for (size_t cut = 1; cut < len; cut++) {
		assert_int_equal(send(sv[0], msg, cut, 0), (ssize_t)cut);
		assert_int_equal(wire_recv(sv[1], &rx, 0), -EPROTO);
	}
	wire_buf_clear(&good);
	wire_buf_clear(&rx);
	close(sv[0]);
	close(sv[1]);
}

static void a_string_with_nul_is_refused(void **s)
{
	struct wire_buf tx = { 0 }, rx = { 0 };
	int sv[2];

	pair(sv);
	wire_begin(&tx, 1, 1);
	wire_put_str(&tx, 1, "abcd");
	tx.data[WIRE_HDR_LEN + 8 + 1] = 0;
	assert_int_equal(wire_send(sv[0], &tx), 0);
	assert_int_equal(wire_recv(sv[1], &rx, 0), -EPROTO);
	wire_buf_clear(&tx);
	wire_buf_clear(&rx);
	close(sv[0]);
	close(sv[1]);
}

static int open_fds(void)
{
	int n = 0;

	for (int i = 0; i < 256; i++)
		n += fcntl(i, F_GETFD) >= 0;
	return n;
}

static void unexpected_descriptors_are_closed(void **s)
{
	struct wire_buf tx = { 0 }, rx = { 0 };
	int sv[2], before;

	pair(sv);
	before = open_fds();
	wire_begin(&tx, 1, 1);
	for (int i = 0; i < 3; i++)
		assert_int_equal(wire_put_fd(&tx, eventfd(0, 0), true), i);
	assert_int_equal(wire_send(sv[0], &tx), 0);
	assert_int_equal(wire_recv(sv[1], &rx, 2), -EPROTO);
	assert_int_equal(open_fds(), before);
	wire_begin(&tx, 1, 1);
	wire_put_fd(&tx, sv[0], false);
	assert_int_equal(wire_send(sv[0], &tx), 0);
	assert_int_equal(wire_recv(sv[1], &rx, 2), 1);
	assert_int_equal(wire_take_fd(&rx, 1), -EPROTO);
	close(wire_take_fd(&rx, 0));
	assert_int_equal(wire_take_fd(&rx, 0), -EPROTO);
	wire_buf_clear(&tx);
	wire_buf_clear(&rx);
	assert_int_equal(open_fds(), before);
	close(sv[0]);
	close(sv[1]);
}

static void too_large_a_message_is_an_error_at_the_sender(void **s)
{
	static uint8_t big[WIRE_MSG_MAX];
	struct wire_buf tx = { 0 };

	wire_begin(&tx, 1, 1);
	wire_put_bytes(&tx, 1, big, sizeof(big) - 100);
	wire_put_bytes(&tx, 1, big, 200);
	assert_int_equal(tx.error, -EMSGSIZE);
	assert_int_equal(wire_send(-1, &tx), -EMSGSIZE);
	wire_buf_clear(&tx);
}

struct peer {
	struct loop *l;
	struct wire_conn *c;
	unsigned got;
	int closed;
};

static void on_msg(void *arg, struct wire_conn *c, struct wire_buf *b)
{
	struct peer *p = arg;

	assert_int_equal(b->id, ++p->got);
}

static void on_close(void *arg, struct wire_conn *c, int why)
{
	struct peer *p = arg;

	p->closed++;
	wire_conn_free(c);
	p->c = NULL;
	loop_stop(p->l);
}

static void a_slow_reader_gets_all_in_order_then_eof(void **s)
{
	struct loop *l = loop_new();
	struct peer tx = { .l = l }, rx = { .l = l };
	static uint8_t payload[8000];
	int sv[2], r;

	pair(sv);
	tx.c = wire_conn_new(l, sv[0], 0, on_msg, on_close, &tx);
	rx.c = wire_conn_new(l, sv[1], 0, on_msg, on_close, &rx);
	wire_conn_pause(rx.c, true);
	for (uint32_t i = 1; i <= 500; i++) {
		struct wire_buf b = { 0 };

		wire_begin(&b, 1, i);
		wire_put_bytes(&b, 1, payload, sizeof(payload));
		assert_int_equal(wire_conn_send(tx.c, &b), 0);
	}
	assert_true(wire_conn_queued(tx.c) > 0);
	wire_conn_pause(rx.c, false);
	while (rx.got < 500)
		assert_true(loop_run_once(l, 2000) > 0);
	wire_conn_free(tx.c);
	r = loop_run(l);
	assert_int_equal(r, 0);
	assert_int_equal(rx.closed, 1);
	loop_free(l);
}

static void a_reader_that_never_reads_is_found_out(void **s)
{
	struct loop *l = loop_new();
	struct peer tx = { .l = l };
	int sv[2], r = 0;

	pair(sv);
	tx.c = wire_conn_new(l, sv[0], 0, on_msg, on_close, &tx);
	wire_conn_set_limit(tx.c, 4096);
	for (int i = 0; i < 100000 && r == 0; i++) {
		struct wire_buf b = { 0 };

		wire_begin(&b, 1, 1);
		wire_put_str(&b, 1, "padding padding padding");
		r = wire_conn_send(tx.c, &b);
	}
	assert_int_equal(r, -ENOBUFS);
	wire_conn_free(tx.c);
	close(sv[1]);
	loop_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fields_survive_the_trip),
		cmocka_unit_test(hostile_bytes_are_refused),
		cmocka_unit_test(a_string_with_nul_is_refused),
		cmocka_unit_test(unexpected_descriptors_are_closed),
		cmocka_unit_test(too_large_a_message_is_an_error_at_the_sender),
		cmocka_unit_test(a_slow_reader_gets_all_in_order_then_eof),
		cmocka_unit_test(a_reader_that_never_reads_is_found_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
