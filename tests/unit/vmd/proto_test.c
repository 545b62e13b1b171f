/* proto_test.c - typed messages and who may send what. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "vmd/proto.h"

static void a_typed_message_survives_the_trip(void **s)
{
	struct msg_g_disk m = {
		.name = "vda", .layer = 2, .driver = "qcow2", .fd = eventfd(0, 0), .read_only = 1
	};
	struct msg_g_disk got;
	struct wire_buf tx = { 0 }, rx = { 0 };
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv), 0);
	assert_int_equal(msg_g_disk_encode(&m, 12, &tx), 0);
	assert_int_equal(wire_send(sv[0], &tx), 0);
	assert_int_equal(wire_recv(sv[1], &rx, 16), 1);
	assert_int_equal(proto_permit(&rx, PROTO_CORE, PROTO_GUEST, PROTO_CONF), 0);
	assert_int_equal(msg_g_disk_decode(&got, &rx), 0);
	assert_int_equal(got.msg_id, 12);
	assert_string_equal(got.name, "vda");
	assert_int_equal(got.layer, 2);
	assert_true(got.fd > 0 && got.fd != m.fd);
	assert_string_equal(got.serial, "");
	msg_g_disk_close(&got);
	assert_int_equal(got.fd, -1);
	close(m.fd);
	wire_buf_clear(&tx);
	wire_buf_clear(&rx);
	close(sv[0]);
	close(sv[1]);
}

static void the_permit_table_refuses_the_wrong_sender_state_and_type(void **s)
{
	struct msg_p_guest_kill m = { .uuid = "x", .signo = 9 };
	struct wire_buf b = { 0 };

	assert_int_equal(msg_p_guest_kill_encode(&m, 1, &b), 0);
	assert_int_equal(proto_permit(&b, PROTO_CORE, PROTO_PRIV, PROTO_UP), 0);
	assert_int_equal(proto_permit(&b, PROTO_API, PROTO_PRIV, PROTO_UP), -EPERM);
	assert_int_equal(proto_permit(&b, PROTO_GUEST, PROTO_PRIV, PROTO_UP), -EPERM);
	assert_int_equal(proto_permit(&b, PROTO_CORE, PROTO_PRIV, PROTO_NEW), -EPERM);
	b.nfds = 1;
	b.fds[0] = -1;
	assert_int_equal(proto_permit(&b, PROTO_CORE, PROTO_PRIV, PROTO_UP), -EMFILE);
	b.type = 0x7777;
	assert_int_equal(proto_permit(&b, PROTO_CORE, PROTO_PRIV, PROTO_UP), -EPROTO);
	wire_buf_clear(&b);
}

static void overlong_and_mistyped_fields_are_refused(void **s)
{
	struct msg_p_tap_del got;
	struct wire_buf b = { 0 };

	wire_begin(&b, MSG_p_tap_del, 1);
	wire_put_str(&b, 1, "sixteen-chars-xx");
	assert_int_equal(msg_p_tap_del_decode(&got, &b), -EPROTO);
	wire_begin(&b, MSG_p_tap_del, 1);
	wire_put_u64(&b, 1, 5);
	assert_int_equal(msg_p_tap_del_decode(&got, &b), -EPROTO);
	wire_begin(&b, MSG_p_tap_del, 1);
	wire_put_u64(&b, 4000, 5); /* a newer peer's field */
	wire_put_str(&b, 1, "tap0");
	assert_int_equal(msg_p_tap_del_decode(&got, &b), 0);
	assert_string_equal(got.ifname, "tap0");
	wire_buf_clear(&b);
}

static void a_descriptor_cannot_be_claimed_twice(void **s)
{
	struct msg_g_boot got;
	struct wire_buf b = { 0 };

	wire_begin(&b, MSG_g_boot, 1);
	assert_int_equal(wire_put_fd(&b, eventfd(0, 0), true), 0);
	wire_put_u64(&b, 1, 0);
	wire_put_u64(&b, 2, 0);
	assert_int_equal(msg_g_boot_decode(&got, &b), -EPROTO);
	wire_buf_clear(&b);
}

static void type_numbers_and_tags_are_unique(void **s)
{
	unsigned rows = 0;

	for (unsigned t = 0; t < 0x10000; t++) {
		const struct proto_desc *d = proto_find((uint16_t)t);

		if (!d)
			continue;
		rows++;
		for (const struct proto_field *f = d->fields(); f->name; f++)
			for (const struct proto_field *g = f + 1; g->name; g++)
				assert_int_not_equal(f->tag, g->tag);
	}
	assert_true(rows > 60);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_typed_message_survives_the_trip),
		cmocka_unit_test(the_permit_table_refuses_the_wrong_sender_state_and_type),
		cmocka_unit_test(overlong_and_mistyped_fields_are_refused),
		cmocka_unit_test(a_descriptor_cannot_be_claimed_twice),
		cmocka_unit_test(type_numbers_and_tags_are_unique),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
