/* virtio_test.c - the virtio devices as a driver sees them, a decent one and a hostile one. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "devices/virtio_devices.h"
#include "storage/blockdev.h"
#include "virtio_driver.h"

#define NEEDS_RESET 64
#define DISK_BYTES  (4u << 20)
enum { T_IN, T_OUT, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_ZEROES = 13 };

struct blk_test {
	struct vd_machine m;
	struct vd d;
	gpa_t hdr, data, status;
};

static struct blockdev *disk_open(const char *filter, const char *const *opts, bool read_only)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);
	struct blk_spec file = { .driver = "file",
				 .label = "disk vda",
				 .fd = fd,
				 .discard = true,
				 .cache = BLK_CACHE_WRITEBACK,
				 .read_only = read_only };
	struct blk_spec top = { .driver = filter,
				.label = "disk vda",
				.fd = -1,
				.child = &file,
				.opts = opts,
				.read_only = read_only };
	struct err e = { 0 };
	struct blockdev *bd;

	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	bd = blk_open(filter ? &top : &file, &e);
	if (!bd)
		fail_msg("%s", e.detail);
	return bd;
}

static void blk_start(struct blk_test *t, struct blockdev *bd, enum io_error_policy policy)
{
	struct mc_disk disk = {
		.name = "vda", .serial = "SN-123", .bd = bd, .queues = 2, .on_error = policy
	};
	struct err e = { 0 };

	vd_machine_init(&t->m);
	if (virtio_blk_new(t->m.vm, t->m.bus, &disk, &e))
		fail_msg("%s", e.detail);
	assert_true(vd_attach(&t->d, &t->m, 1 << 3, ~0ull));
	vd_queue_setup(&t->d, 0, 64);
	vd_queue_setup(&t->d, 1, 64);
	vd_driver_ok(&t->d);
	t->hdr = vd_alloc(&t->m, 16, 16);
	t->data = vd_alloc(&t->m, 1 << 16, 4096);
	t->status = vd_alloc(&t->m, 1, 1);
}

static void blk_header(struct blk_test *t, uint32_t type, uint64_t sector)
{
	uint32_t h[4] = { type, 0, (uint32_t)sector, (uint32_t)(sector >> 32) };

	memcpy(vd_ptr(&t->m, t->hdr), h, sizeof(h));
	*(uint8_t *)vd_ptr(&t->m, t->status) = 0xff;
}

static uint8_t blk_do(struct blk_test *t, unsigned q, uint32_t type, uint64_t sector, uint32_t len,
		      bool write)
{
	struct vd_seg s[3] = { { t->hdr, 16, false },
			       { t->data, len, write },
			       { t->status, 1, true } };

	blk_header(t, type, sector);
	if (len) {
		vd_add(&t->d, q, s, 3);
	} else {
		s[1] = s[2];
		vd_add(&t->d, q, s, 2);
	}
	vd_kick(&t->d, q);
	assert_true(vd_wait(&t->d, q, 1));
	return *(uint8_t *)vd_ptr(&t->m, t->status);
}

static void disk_reads_what_it_wrote_on_any_queue(void **s)
{
	struct blk_test t;
	uint8_t *data;

	blk_start(&t, disk_open(NULL, NULL, false), IO_ERROR_REPORT);
	data = vd_ptr(&t.m, t.data);
	memset(data, 0xa5, 8192);
	assert_int_equal(blk_do(&t, 0, T_OUT, 8, 8192, false), 0);
	assert_int_equal(vd_used_len(&t.d, 0, 1), 1);
	assert_int_equal(blk_do(&t, 1, T_FLUSH, 0, 0, false), 0);
	memset(data, 0, 8192);
	assert_int_equal(blk_do(&t, 1, T_IN, 8, 8192, true), 0);
	assert_int_equal(vd_used_len(&t.d, 1, 1), 8193);
	for (unsigned i = 0; i < 8192; i++)
		assert_int_equal(data[i], 0xa5);
	assert_int_equal(blk_do(&t, 0, T_GET_ID, 0, 20, true), 0);
	assert_string_equal((char *)data, "SN-123");
	assert_int_equal(vd_read(&t.d, 0x2000, 8), DISK_BYTES / 512);
	vd_machine_fini(&t.m);
}

static void discard_and_zeroes_take_effect(void **s)
{
	struct {
		uint64_t sector;
		uint32_t sectors, flags;
	} seg = { 16, 8, 0 };
	struct blk_test t;
	uint8_t *data;

	blk_start(&t, disk_open(NULL, NULL, false), IO_ERROR_REPORT);
	data = vd_ptr(&t.m, t.data);
	memset(data, 0x77, 4096);
	assert_int_equal(blk_do(&t, 0, T_OUT, 16, 4096, false), 0);
	memcpy(data, &seg, sizeof(seg));
	assert_int_equal(blk_do(&t, 0, T_ZEROES, 0, sizeof(seg), false), 0);
	assert_int_equal(blk_do(&t, 0, T_IN, 16, 4096, true), 0);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(data[i], 0);
	memcpy(data, &seg, sizeof(seg));
	assert_int_equal(blk_do(&t, 0, T_DISCARD, 0, sizeof(seg), false), 0);
	seg.flags = 0x80;
	memcpy(data, &seg, sizeof(seg));
	assert_int_equal(blk_do(&t, 0, T_DISCARD, 0, sizeof(seg), false), 2);
	seg.flags = 0;
	seg.sectors = UINT32_MAX;
	memcpy(data, &seg, sizeof(seg));
	assert_int_equal(blk_do(&t, 0, T_ZEROES, 0, sizeof(seg), false), 1);
	vd_machine_fini(&t.m);
}

static void requests_beyond_the_end_or_misaligned_fail(void **s)
{
	struct blk_test t;

	blk_start(&t, disk_open(NULL, NULL, false), IO_ERROR_PAUSE);
	assert_int_equal(blk_do(&t, 0, T_IN, DISK_BYTES / 512, 512, true), 1);
	assert_int_equal(blk_do(&t, 0, T_IN, UINT64_MAX, 512, true), 1);
	assert_int_equal(blk_do(&t, 0, T_OUT, UINT64_MAX / 512, 4096, false), 1);
	assert_int_equal(blk_do(&t, 0, T_IN, 0, 511, true), 1);
	assert_int_equal(blk_do(&t, 0, 99, 0, 512, true), 2);
	assert_int_equal(vd_status(&t.d) & NEEDS_RESET, 0);
	vd_machine_fini(&t.m);
}

static void a_read_only_disk_refuses_writes(void **s)
{
	struct blk_test t;

	blk_start(&t, disk_open(NULL, NULL, true), IO_ERROR_PAUSE);
	assert_true(t.d.features >> 5 & 1);
	assert_int_equal(blk_do(&t, 0, T_OUT, 0, 512, false), 1);
	assert_int_equal(blk_do(&t, 0, T_IN, 0, 512, true), 0);
	vd_machine_fini(&t.m);
}

static void an_io_error_is_reported_by_policy(void **s)
{
	static const char *const opts[] = { "nth=1", "on=write", NULL };
	struct blk_test t;

	blk_start(&t, disk_open("fail", opts, false), IO_ERROR_REPORT);
	assert_int_equal(blk_do(&t, 0, T_OUT, 0, 512, false), 1);
	assert_int_equal(blk_do(&t, 0, T_OUT, 0, 512, false), 0);
	vd_machine_fini(&t.m);
}

struct seen {
	enum vm_event ev;
	int n;
};

static void on_event(void *arg, enum vm_event ev, const char *text)
{
	struct seen *s = arg;

	s->ev = ev;
	s->n++;
}

static void an_io_error_holds_the_request_and_says_so(void **s)
{
	static const char *const opts[] = { "nth=1", "on=write", NULL };
	struct blk_test t;
	struct seen seen = { 0 };
	struct vd_seg segs[3];

	blk_start(&t, disk_open("fail", opts, false), IO_ERROR_PAUSE);
	t.m.vm->on_event = on_event;
	t.m.vm->on_event_arg = &seen;
	blk_header(&t, T_OUT, 0);
	segs[0] = (struct vd_seg){ t.hdr, 16, false };
	segs[1] = (struct vd_seg){ t.data, 512, false };
	segs[2] = (struct vd_seg){ t.status, 1, true };
	vd_add(&t.d, 0, segs, 3);
	vd_kick(&t.d, 0);
	for (int i = 0; i < 1000 && !seen.n; i++)
		loop_run_once(t.m.loop, 10);
	assert_int_equal(seen.n, 1);
	assert_int_equal(seen.ev, VM_EVENT_IO_ERROR);
	assert_int_equal(*(uint8_t *)vd_ptr(&t.m, t.status), 0xff); /* not answered: held */
	vd_reset(&t.d);						    /* and a reset forgets it */
	assert_int_equal(vd_status(&t.d), 0);
	vd_machine_fini(&t.m);
}

static void reset_with_requests_in_flight_touches_no_memory_afterwards(void **s)
{
	static const char *const opts[] = { "us=2000", NULL };
	struct blk_test t;
	struct vd_seg segs[3];
	uint8_t *data;

	blk_start(&t, disk_open("delay", opts, false), IO_ERROR_REPORT);
	data = vd_ptr(&t.m, t.data);
	for (unsigned i = 0; i < 16; i++) {
		blk_header(&t, T_IN, 0);
		segs[0] = (struct vd_seg){ t.hdr, 16, false };
		segs[1] = (struct vd_seg){ t.data + 4096 * (i % 8), 4096, true };
		segs[2] = (struct vd_seg){ t.status, 1, true };
		vd_add(&t.d, 0, segs, 3);
	}
	vd_kick(&t.d, 0);
	vd_reset(&t.d);
	memset(data, 0x3c, 1 << 16);
	for (int i = 0; i < 10; i++)
		loop_run_once(t.m.loop, 2);
	for (unsigned i = 0; i < 1 << 16; i++)
		assert_int_equal(data[i], 0x3c);
	vd_machine_fini(&t.m);
}

/* ---- hostile rings: each ends in NEEDS_RESET, and a reset makes the device whole again ---- */

static void expect_broken(struct blk_test *t)
{
	vd_kick(&t->d, 0);
	assert_true(vd_wait_status(&t->d, NEEDS_RESET));
	vd_reset(&t->d);
	assert_int_equal(vd_status(&t->d), 0);
	assert_true(vd_attach(&t->d, &t->m, 1 << 3, ~0ull));
	vd_queue_setup(&t->d, 0, 64);
	vd_queue_setup(&t->d, 1, 64);
	vd_driver_ok(&t->d);
	assert_int_equal(blk_do(t, 0, T_IN, 0, 512, true), 0);
}

static void hostile_rings_end_in_needs_reset(void **s)
{
	struct blk_test t;
	struct vd_desc *desc;
	gpa_t table;

	blk_start(&t, disk_open(NULL, NULL, false), IO_ERROR_REPORT);
	/* a chain that loops */
	desc = vd_descs(&t.d, 0);
	for (unsigned i = 0; i < 64; i++)
		desc[i] = (struct vd_desc){ t.data, 16, VD_NEXT, (uint16_t)((i + 1) % 64) };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	/* a head that does not exist */
	vd_add_head(&t.d, 0, 64);
	expect_broken(&t);
	/* memory that does not exist, and an address that wraps */
	vd_descs(&t.d, 0)[0] = (struct vd_desc){ VD_RAM - 8, 16, 0, 0 };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	vd_descs(&t.d, 0)[0] = (struct vd_desc){ UINT64_MAX - 8, 16, 0, 0 };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	/* readable after writable */
	desc = vd_descs(&t.d, 0);
	desc[0] = (struct vd_desc){ t.data, 16, VD_WRITE | VD_NEXT, 1 };
	desc[1] = (struct vd_desc){ t.data, 16, 0, 0 };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	/* an indirect table in an indirect table, one of odd length, one with NEXT */
	table = vd_alloc(&t.m, 64, 16);
	*(struct vd_desc *)vd_ptr(&t.m, table) = (struct vd_desc){ table, 16, VD_INDIRECT, 0 };
	vd_descs(&t.d, 0)[0] = (struct vd_desc){ table, 16, VD_INDIRECT, 0 };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	vd_descs(&t.d, 0)[0] = (struct vd_desc){ table, 17, VD_INDIRECT, 0 };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	vd_descs(&t.d, 0)[0] = (struct vd_desc){ table, 16, VD_INDIRECT | VD_NEXT, 1 };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	/* more requests waiting than the ring holds */
	((uint16_t *)vd_ptr(&t.m, t.d.q[0].avail))[1] = 1000;
	expect_broken(&t);
	/* no place for the status byte; no header */
	desc = vd_descs(&t.d, 0);
	desc[0] = (struct vd_desc){ t.hdr, 16, 0, 0 };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	desc = vd_descs(&t.d, 0);
	desc[0] = (struct vd_desc){ t.hdr, 15, VD_NEXT, 1 };
	desc[1] = (struct vd_desc){ t.status, 1, VD_WRITE, 0 };
	vd_add_head(&t.d, 0, 0);
	expect_broken(&t);
	vd_machine_fini(&t.m);
}

static void wrong_set_up_sequences_are_refused(void **s)
{
	struct blk_test t;

	blk_start(&t, disk_open(NULL, NULL, false), IO_ERROR_REPORT);
	/* features that were not offered: FEATURES_OK does not stick */
	vd_reset(&t.d);
	vd_write(&t.d, 0x14, 1, 3);
	vd_write(&t.d, 8, 4, 1);
	vd_write(&t.d, 12, 4, 0xffffffff);
	vd_write(&t.d, 0x14, 1, 11);
	assert_int_equal(vd_status(&t.d) & 8, 0);
	/* DRIVER_OK without FEATURES_OK */
	vd_write(&t.d, 0x14, 1, 7);
	assert_true(vd_status(&t.d) & NEEDS_RESET);
	/* a queue outside RAM */
	vd_reset(&t.d);
	assert_true(vd_attach(&t.d, &t.m, 1 << 3, ~0ull));
	vd_write(&t.d, 0x16, 2, 0);
	vd_write(&t.d, 0x20, 8, VD_RAM);
	vd_write(&t.d, 0x1c, 2, 1);
	assert_true(vd_status(&t.d) & NEEDS_RESET);
	/* a queue number and sizes that do not exist are ignored */
	vd_reset(&t.d);
	assert_true(vd_attach(&t.d, &t.m, 1 << 3, ~0ull));
	vd_write(&t.d, 0x16, 2, 999);
	assert_int_equal(vd_read(&t.d, 0x18, 2), 0);
	vd_write(&t.d, 0x16, 2, 0);
	vd_write(&t.d, 0x18, 2, 100);
	assert_int_equal(vd_read(&t.d, 0x18, 2), 256);
	vd_kick(&t.d, 0);
	vd_kick(&t.d, 500);
	vd_machine_fini(&t.m);
}

static void event_index_raises_an_interrupt_only_where_asked(void **s)
{
	struct blk_test t;
	uint16_t *avail;

	blk_start(&t, disk_open(NULL, NULL, false), IO_ERROR_REPORT);
	avail = vd_ptr(&t.m, t.d.q[0].avail);
	avail[2 + 64] = 1; /* used_event: not before the second */
	vd_read(&t.d, 0x1000, 1);
	assert_int_equal(blk_do(&t, 0, T_IN, 0, 512, true), 0);
	assert_int_equal(blk_do(&t, 0, T_IN, 0, 512, true), 0);
	while (loop_run_once(t.m.loop, 20) > 0)
		;
	assert_int_equal(vd_read(&t.d, 0x1000, 1) & 1, 1);
	assert_int_equal(blk_do(&t, 0, T_IN, 0, 512, true), 0); /* event stays at 1: passed */
	while (loop_run_once(t.m.loop, 20) > 0)
		;
	assert_int_equal(vd_read(&t.d, 0x1000, 1), 0);
	vd_machine_fini(&t.m);
}

static void rng_fills_buffers_with_different_bytes(void **s)
{
	struct vd_machine m;
	struct vd d;
	struct err e = { 0 };
	struct vd_seg seg;
	uint8_t first[64], *p;

	vd_machine_init(&m);
	assert_int_equal(virtio_rng_new(m.vm, m.bus, &e), 0);
	assert_true(vd_attach(&d, &m, 1 << 3, ~0ull));
	vd_queue_setup(&d, 0, 8);
	vd_driver_ok(&d);
	seg = (struct vd_seg){ vd_alloc(&m, 64, 16), 64, true };
	p = vd_ptr(&m, seg.gpa);
	vd_add(&d, 0, &seg, 1);
	vd_kick(&d, 0);
	assert_true(vd_wait(&d, 0, 1));
	assert_int_equal(vd_used_len(&d, 0, 1), 64);
	memcpy(first, p, 64);
	vd_add(&d, 0, &seg, 1);
	vd_kick(&d, 0);
	assert_true(vd_wait(&d, 0, 1));
	assert_memory_not_equal(first, p, 64);
	vd_machine_fini(&m);
}

/* A frame each way over a socket that stands for the tap: same header, same calls. */
static void net_carries_frames_both_ways(void **s)
{
	struct vd_machine m;
	struct vd d;
	struct mc_nic nic = { .name = "net0", .mac = { 0x52, 0x54, 0, 1, 2, 3 }, .queues = 1 };
	struct err e = { 0 };
	uint8_t frame[9000], got[9100];
	struct vd_seg seg[2];
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sv), 0);
	nic.tap_fds[0] = sv[0];
	nic.vhost_fds[0] = -1;
	vd_machine_init(&m);
	assert_int_equal(virtio_net_new(m.vm, m.bus, &nic, &e), 0);
	assert_true(vd_attach(&d, &m, 1 << 3, ~0ull));
	vd_queue_setup(&d, 0, 64);
	vd_queue_setup(&d, 1, 64);
	vd_queue_setup(&d, 2, 16);
	vd_driver_ok(&d);
	assert_int_equal(vd_read(&d, 0x2000, 1), 0x52);
	/* out: header in one segment, frame in another */
	seg[0] = (struct vd_seg){ vd_alloc(&m, 12, 16), 12, false };
	seg[1] = (struct vd_seg){ vd_alloc(&m, 1500, 16), 1500, false };
	memset(vd_ptr(&m, seg[1].gpa), 0x42, 1500);
	vd_add(&d, 1, seg, 2);
	vd_kick(&d, 1);
	assert_true(vd_wait(&d, 1, 1));
	assert_int_equal(recv(sv[1], got, sizeof(got), 0), 1512);
	assert_int_equal(got[12], 0x42);
	/* in: a frame over three mergeable buffers of 4 KiB */
	for (unsigned i = 0; i < 4; i++) {
		struct vd_seg rx = { vd_alloc(&m, 4096, 4096), 4096, true };

		vd_add(&d, 0, &rx, 1);
		seg[i % 2] = rx;
	}
	vd_kick(&d, 0);
	for (unsigned i = 0; i < sizeof(frame); i++)
		frame[i] = (uint8_t)(i * 7);
	memset(frame, 0, 12);
	assert_int_equal(send(sv[1], frame, sizeof(frame), 0), (ssize_t)sizeof(frame));
	assert_true(vd_wait(&d, 0, 3));
	assert_int_equal(vd_used_len(&d, 0, 3), 4096);
	assert_int_equal(vd_used_len(&d, 0, 1), 9000 - 8192);
	{
		const struct vd_desc *desc = vd_descs(&d, 0);
		const uint8_t *first = vd_ptr(&m, desc[0].addr), *third = vd_ptr(&m, desc[2].addr);

		assert_int_equal(first[10], 3); /* num_buffers */
		assert_memory_equal(first + 12, frame + 12, 4096 - 12);
		assert_memory_equal(third, frame + 8192, 9000 - 8192);
	}
	/* more than the buffers hold: dropped, and the next small one still comes */
	assert_int_equal(send(sv[1], frame, 9000, 0), 9000);
	assert_int_equal(send(sv[1], frame, 100, 0), 100);
	assert_true(vd_wait(&d, 0, 1));
	assert_int_equal(vd_used_len(&d, 0, 1), 100);
	vd_machine_fini(&m);
	close(sv[1]);
}

/* What came for vhost-net and does not serve is closed, and the port says that it goes without. */
static void net_without_vhost_says_so(void **s)
{
	struct vd_machine m;
	struct mc_nic nic = { .name = "net0", .mac = { 0x52, 0x54 }, .queues = 1 };
	struct err e = { 0 };
	char text[200];
	int sv[2];

	vd_machine_init(&m);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sv), 0);
		snprintf(nic.name, sizeof(nic.name), "net%u", i);
		nic.tap_fds[0] = sv[0];
		nic.vhost_fds[0] = i ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
		assert_int_equal(virtio_net_new(m.vm, m.bus, &nic, &e), 0);
		close(sv[1]);
	}
	assert_int_equal(fcntl(nic.vhost_fds[0], F_GETFD), -1);
	virtio_net_backends(m.vm, text, sizeof(text));
	assert_non_null(strstr(text, "net0 tap: this host has no /dev/vhost-net; net1 tap: "));
	vd_machine_fini(&m);
}

static void console_ports_are_announced_and_carry_bytes(void **s)
{
	struct vd_machine m;
	struct vd d;
	struct err e = { 0 };
	struct mc_port ports[3];
	struct vd_seg seg;
	uint32_t *ctl;
	char text[8] = "";
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv), 0);
	for (int i = 0; i < 3; i++)
		ports[i] = (struct mc_port){ .name = "console0",
					     .chr = { .kind = CHARDEV_NULL, .fd = -1 } };
	ports[1].name[7] = '1';
	ports[2].name[7] = '2';
	ports[2].chr = (struct chardev_config){ .kind = CHARDEV_STREAM, .fd = sv[0] };
	vd_machine_init(&m);
	assert_int_equal(virtio_console_new(m.vm, m.bus, ports, 3, &e), 0);
	assert_true(vd_attach(&d, &m, 1 << 3, ~0ull));
	for (unsigned q = 0; q < 8; q++)
		vd_queue_setup(&d, q, 16);
	vd_driver_ok(&d);
	for (int i = 0; i < 12; i++) {
		seg = (struct vd_seg){ vd_alloc(&m, 64, 16), 64, true };
		vd_add(&d, 2, &seg, 1);
	}
	vd_kick(&d, 2);
	seg = (struct vd_seg){ vd_alloc(&m, 8, 16), 8, false };
	ctl = vd_ptr(&m, seg.gpa);
	ctl[0] = 0;
	ctl[1] = 1 << 16; /* DEVICE_READY */
	vd_add(&d, 3, &seg, 1);
	vd_kick(&d, 3);
	assert_true(vd_wait(&d, 2, 3)); /* DEVICE_ADD of three ports */
	ctl[0] = 2;
	ctl[1] = 3 | 1 << 16; /* PORT_READY */
	vd_add(&d, 3, &seg, 1);
	vd_kick(&d, 3);
	assert_true(vd_wait(&d, 2, 3)); /* console, name, open */
	ctl[0] = 1000;			/* a port that does not exist */
	ctl[1] = 6 | 1 << 16;
	vd_add(&d, 3, &seg, 1);
	vd_kick(&d, 3);
	/* bytes out of port 2 (queue 7), and into it (queue 6) */
	seg = (struct vd_seg){ vd_alloc(&m, 16, 16), 5, false };
	memcpy(vd_ptr(&m, seg.gpa), "hello", 5);
	vd_add(&d, 7, &seg, 1);
	vd_kick(&d, 7);
	assert_true(vd_wait(&d, 7, 1));
	for (int i = 0; i < 100 && read(sv[1], text, 5) != 5; i++)
		loop_run_once(m.loop, 20);
	assert_string_equal(text, "hello");
	seg = (struct vd_seg){ vd_alloc(&m, 64, 16), 64, true };
	vd_add(&d, 6, &seg, 1);
	vd_kick(&d, 6);
	assert_int_equal(write(sv[1], "typed", 5), 5);
	assert_true(vd_wait(&d, 6, 1));
	assert_memory_equal(vd_ptr(&m, seg.gpa), "typed", 5);
	vd_machine_fini(&m);
	close(sv[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(disk_reads_what_it_wrote_on_any_queue),
		cmocka_unit_test(discard_and_zeroes_take_effect),
		cmocka_unit_test(requests_beyond_the_end_or_misaligned_fail),
		cmocka_unit_test(a_read_only_disk_refuses_writes),
		cmocka_unit_test(an_io_error_is_reported_by_policy),
		cmocka_unit_test(an_io_error_holds_the_request_and_says_so),
		cmocka_unit_test(reset_with_requests_in_flight_touches_no_memory_afterwards),
		cmocka_unit_test(hostile_rings_end_in_needs_reset),
		cmocka_unit_test(wrong_set_up_sequences_are_refused),
		cmocka_unit_test(event_index_raises_an_interrupt_only_where_asked),
		cmocka_unit_test(rng_fills_buffers_with_different_bytes),
		cmocka_unit_test(net_carries_frames_both_ways),
		cmocka_unit_test(net_without_vhost_says_so),
		cmocka_unit_test(console_ports_are_announced_and_carry_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
