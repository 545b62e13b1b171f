/* virtio_fault_test.c - virtio devices when things go wrong or move: held requests over a pause, a
 * save and a reset, heads offered again before they came back, ROM as a target, BARs that move,
 * frames in merged buffers, tiny console buffers.
 */
#include <errno.h>
#include <fcntl.h>
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

#include "common/units.h"
#include "devices/virtio_devices.h"
#include "storage/blockdev.h"
#include "virtio_driver.h"

#define NEEDS_RESET 64
#define DISK_BYTES  (1u << 20)
#define DEVFN	    (1 << 3)
#define ROM_AT	    0x4000000u
enum { T_IN, T_OUT };

struct disk {
	struct vd_machine m;
	struct vd d;
	gpa_t hdr, data, status;
};

static struct blockdev *disk_open(const char *filter, const char *const *opts)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);
	struct blk_spec file = {
		.driver = "file", .label = "disk vda", .fd = fd, .cache = BLK_CACHE_WRITEBACK
	};
	struct blk_spec top = {
		.driver = filter, .label = "disk vda", .fd = -1, .child = &file, .opts = opts
	};
	struct err e = { 0 };
	struct blockdev *bd;

	assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
	bd = blk_open(filter ? &top : &file, &e);
	if (!bd)
		fail_msg("%s", e.detail);
	return bd;
}

static void disk_build(struct disk *t, struct blockdev *bd)
{
	struct mc_disk disk = { .name = "vda", .bd = bd, .queues = 1, .on_error = IO_ERROR_PAUSE };
	struct err e = { 0 };

	vd_machine_init(&t->m);
	if (virtio_blk_new(t->m.vm, t->m.bus, &disk, &e))
		fail_msg("%s", e.detail);
	t->hdr = vd_alloc(&t->m, 16, 16);
	t->data = vd_alloc(&t->m, 4096, 4096);
	t->status = vd_alloc(&t->m, 1, 1);
}

static void disk_start(struct disk *t, const char *filter, const char *const *opts)
{
	disk_build(t, disk_open(filter, opts));
	assert_true(vd_attach(&t->d, &t->m, DEVFN, ~0ull));
	vd_queue_setup(&t->d, 0, 16);
	vd_driver_ok(&t->d);
}

static uint8_t *disk_status(struct disk *t)
{
	return vd_ptr(&t->m, t->status);
}

static void disk_add(struct disk *t, uint32_t type)
{
	struct vd_seg s[3] = { { t->hdr, 16, false },
			       { t->data, 512, type == T_IN },
			       { t->status, 1, true } };

	memset(vd_ptr(&t->m, t->hdr), 0, 16);
	memcpy(vd_ptr(&t->m, t->hdr), &type, 4);
	*disk_status(t) = 0xff;
	vd_add(&t->d, 0, s, 3);
}

static void run_state_set(struct vm *vm, enum vm_run_state s)
{
	pthread_mutex_lock(&vm->run_lock);
	vm->run_state = s;
	pthread_mutex_unlock(&vm->run_lock);
}

struct seen {
	int errors;
};

static void on_event(void *arg, enum vm_event ev, const char *text)
{
	struct seen *s = arg;

	s->errors += ev == VM_EVENT_IO_ERROR;
}

/* A write that fails once; the VM counts as running until the event parks it. */
static void disk_fail_once(struct disk *t, struct seen *seen)
{
	static const char *const opts[] = { "nth=1", "on=write", NULL };
	uint64_t end = clock_mono_ns() + 5 * NS_PER_S;

	disk_start(t, "fail", opts);
	*seen = (struct seen){ 0 };
	t->m.vm->on_event = on_event;
	t->m.vm->on_event_arg = seen;
	run_state_set(t->m.vm, VM_RUNNING);
	memset(vd_ptr(&t->m, t->data), 0x5a, 512);
	disk_add(t, T_OUT);
	vd_kick(&t->d, 0);
	while (!seen->errors && clock_mono_ns() < end)
		loop_run_once(t->m.loop, 10);
	assert_int_equal(seen->errors, 1);
	assert_int_equal(*disk_status(t), 0xff);
	/* no vCPU to wait for: the pause is complete at once */
	pthread_mutex_lock(&t->m.vm->run_lock);
	assert_int_not_equal(t->m.vm->run_state, VM_RUNNING);
	pthread_mutex_unlock(&t->m.vm->run_lock);
}

static void a_held_request_is_tried_again_when_the_guest_runs_on(void **s)
{
	struct disk t;
	struct seen seen;

	disk_fail_once(&t, &seen);
	/* resumed at once: sooner than anybody could have looked at the pause */
	run_state_set(t.m.vm, VM_RUNNING);
	assert_true(vd_wait(&t.d, 0, 1));
	assert_int_equal(*disk_status(&t), 0);
	run_state_set(t.m.vm, VM_PAUSED);
	vd_machine_fini(&t.m);
}

static void quiesced(void *arg)
{
	*(bool *)arg = true;
}

static void a_held_request_survives_a_save(void **s)
{
	struct disk a, b;
	struct seen seen;
	struct device *dev;
	struct state_writer w;
	struct state_reader r;
	struct err e = { 0 };
	bool done = false;
	const uint8_t *got;

	disk_fail_once(&a, &seen);
	dev = vm_device_find(a.m.vm, "vda");
	dev->ops->quiesce(dev, quiesced, &done);
	while (!done && loop_run_once(a.m.loop, 5000) > 0)
		;
	assert_true(done); /* what is held is not in flight */
	state_writer_init(&w);
	vm_lock(a.m.vm);
	state_begin(&w, dev->ops->name, 0, dev->ops->version);
	dev->ops->save(dev, &w);
	state_end(&w);
	vm_unlock(a.m.vm);
	assert_int_equal(w.error, 0);

	disk_build(&b, disk_open(NULL, NULL)); /* the disk has room now */
	memcpy(vd_ptr(&b.m, 0), vd_ptr(&a.m, 0), VD_RAM);
	b.d = a.d;
	b.d.m = &b.m;
	state_reader_init(&r, w.data, w.len);
	assert_int_equal(state_next(&r, &e), 1);
	dev = vm_device_find(b.m.vm, "vda");
	vm_lock(b.m.vm);
	if (dev->ops->load(dev, &r, &e) < 0)
		fail_msg("%s", e.detail);
	vm_unlock(b.m.vm);
	assert_true(vd_wait(&b.d, 0, 1));
	assert_int_equal(*disk_status(&b), 0);
	/* it was written, and the queue goes on */
	memset(vd_ptr(&b.m, b.data), 0, 512);
	disk_add(&b, T_IN);
	vd_kick(&b.d, 0);
	assert_true(vd_wait(&b.d, 0, 1));
	got = vd_ptr(&b.m, b.data);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(got[i], 0x5a);
	state_writer_fini(&w);
	vd_machine_fini(&a.m);
	vd_machine_fini(&b.m);
}

static void a_corrupt_list_of_held_requests_is_refused(void **s)
{
	static const uint32_t lists[][2] = { { 0, 0 },
					     { 7u << 16, 0 },
					     { UINT32_MAX, UINT32_MAX } };
	struct disk t;
	struct device *dev;

	disk_start(&t, NULL, NULL);
	dev = vm_device_find(t.m.vm, "vda");
	for (unsigned i = 0; i < 3; i++) {
		struct state_writer w;
		struct state_reader r;
		struct err e = { 0 };

		state_writer_init(&w);
		state_begin(&w, dev->ops->name, 0, 1);
		vm_lock(t.m.vm);
		/* first occurrence counts */
		state_put_bytes(&w, 1, lists[i], i ? 8 : 7);
		dev->ops->save(dev, &w);
		state_end(&w);
		state_reader_init(&r, w.data, w.len);
		assert_int_equal(state_next(&r, &e), 1);
		assert_int_equal(dev->ops->load(dev, &r, &e), -EBADMSG);
		vm_unlock(t.m.vm);
		state_writer_fini(&w);
	}
	vd_machine_fini(&t.m);
}

static void one_head_offered_for_ever_is_malformed(void **s)
{
	static const char *const opts[] = { "us=200000", NULL };
	struct disk t;

	disk_start(&t, "delay", opts);
	disk_add(&t, T_IN);
	for (unsigned i = 0; i < 200 && !(vd_status(&t.d) & NEEDS_RESET); i++) {
		vd_add_head(&t.d, 0, 0);
		vd_kick(&t.d, 0);
		/* the device must have seen this one before the next: the ring never looks overfull
		 */
		const uint16_t *used = vd_ptr(&t.m, t.d.q[0].used);
		uint64_t end = clock_mono_ns() + NS_PER_S;

		while (__atomic_load_n(&used[2 + 4 * 16], __ATOMIC_ACQUIRE) != t.d.q[0].avail_idx &&
		       !(vd_status(&t.d) & NEEDS_RESET) && clock_mono_ns() < end)
			;
	}
	assert_true(vd_wait_status(&t.d, NEEDS_RESET));
	vd_reset(&t.d);
	assert_int_equal(vd_status(&t.d), 0);
	vd_machine_fini(&t.m);
}

static void a_read_into_rom_is_malformed(void **s)
{
	struct disk t;
	struct vd_seg seg[3];
	struct err e = { 0 };
	uint8_t mark = 0xee;

	disk_start(&t, NULL, NULL);
	assert_int_equal(vm_add_ram(t.m.vm, "rom", ROM_AT, 65536, -1, 0, MEM_ROM, &e), 0);
	assert_int_equal(mem_store(t.m.vm->mem, ROM_AT, &mark, 1), 0);
	memset(vd_ptr(&t.m, t.hdr), 0, 16);
	seg[0] = (struct vd_seg){ t.hdr, 16, false };
	seg[1] = (struct vd_seg){ ROM_AT, 512, true };
	seg[2] = (struct vd_seg){ t.status, 1, true };
	vd_add(&t.d, 0, seg, 3);
	vd_kick(&t.d, 0);
	assert_true(vd_wait_status(&t.d, NEEDS_RESET));
	assert_int_equal(mem_read(t.m.vm->mem, ROM_AT, &mark, 1), 0);
	assert_int_equal(mark, 0xee);
	vd_machine_fini(&t.m);
}

static void nothing_is_served_before_driver_ok(void **s)
{
	struct disk t;

	disk_build(&t, disk_open(NULL, NULL));
	assert_true(vd_attach(&t.d, &t.m, DEVFN, ~0ull));
	vd_queue_setup(&t.d, 0, 16);
	disk_add(&t, T_IN);
	vd_kick(&t.d, 0);
	for (int i = 0; i < 20; i++)
		loop_run_once(t.m.loop, 2);
	assert_int_equal(*disk_status(&t), 0xff);
	vd_driver_ok(&t.d); /* and what waits is served then, without a kick */
	assert_true(vd_wait(&t.d, 0, 1));
	assert_int_equal(*disk_status(&t), 0);
	vd_machine_fini(&t.m);
}

static void cfg_write(struct vd_machine *m, unsigned off, unsigned size, uint32_t val)
{
	bus_write(m->vm->pio, 0xcf8, 4, 0x80000000u | DEVFN << 8 | (off & ~3u));
	bus_write(m->vm->pio, 0xcfc + (off & 3), size, val);
}

static void doorbells_follow_a_bar_that_moves_with_requests_in_flight(void **s)
{
	static const char *const opts[] = { "us=1000", NULL };
	struct disk t;
	uint64_t from;

	disk_start(&t, "delay", opts);
	from = t.d.bar;
	for (unsigned i = 0; i < 20; i++) {
		disk_add(&t, T_IN);
		vd_kick(&t.d, 0);
		cfg_write(&t.m, 4, 2, 0); /* decoding off: the kick goes nowhere */
		disk_add(&t, T_IN);
		vd_kick(&t.d, 0);
		t.d.bar = i % 2 ? from : from + 0x100000;
		cfg_write(&t.m, 0x20, 4, (uint32_t)t.d.bar);
		cfg_write(&t.m, 4, 2, 6);
		vd_kick(&t.d, 0);
		assert_true(vd_wait(&t.d, 0, 2));
		assert_int_equal(*disk_status(&t), 0);
	}
	assert_int_equal(bus_read(t.m.vm->mmio, from + 0x100000 + 0x14, 1),
			 0xff); /* the old place is free */
	vd_machine_fini(&t.m);
}

/* The window in configuration space reaches the same registers as the BAR. */
static void the_pci_window_reaches_the_registers(void **s)
{
	struct disk t;
	struct pci_dev *p;
	unsigned cap = 0;

	disk_start(&t, NULL, NULL);
	p = pci_dev_find(t.m.bus, DEVFN);
	for (unsigned at = p->cfg[0x34]; at; at = p->cfg[at + 1])
		if (p->cfg[at] == 9 && p->cfg[at + 3] == 5)
			cap = at;
	assert_int_not_equal(cap, 0);
	cfg_write(&t.m, cap + 4, 1, 4);
	cfg_write(&t.m, cap + 8, 4, 0x14);
	cfg_write(&t.m, cap + 12, 4, 1);
	bus_write(t.m.vm->pio, 0xcf8, 4, 0x80000000u | DEVFN << 8 | (cap + 16));
	assert_int_equal(bus_read(t.m.vm->pio, 0xcfc, 1), 15);
	cfg_write(&t.m, cap + 16, 1, 0);
	assert_int_equal(vd_status(&t.d), 0);
	/* beyond the BAR, of an odd size, of another BAR: nothing happens */
	cfg_write(&t.m, cap + 8, 4, 0xfffffffc);
	cfg_write(&t.m, cap + 12, 4, 4);
	cfg_write(&t.m, cap + 16, 4, 1);
	cfg_write(&t.m, cap + 8, 4, 0x14);
	cfg_write(&t.m, cap + 12, 4, 3);
	cfg_write(&t.m, cap + 16, 4, 1);
	cfg_write(&t.m, cap + 12, 4, 1);
	cfg_write(&t.m, cap + 4, 1, 1);
	cfg_write(&t.m, cap + 16, 1, 1);
	assert_int_equal(vd_status(&t.d), 0);
	vd_machine_fini(&t.m);
}

/* A driver that polls never sees a frame without all of its buffers. */
static void merged_buffers_become_visible_together(void **s)
{
	struct vd_machine m;
	struct vd d;
	struct mc_nic nic = { .name = "net0", .mac = { 0x52, 0x54 }, .queues = 1 };
	struct err e = { 0 };
	static uint8_t frame[40000];
	gpa_t buf[256];
	unsigned seen = 0;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sv), 0);
	nic.tap_fds[0] = sv[0];
	nic.vhost_fds[0] = -1;
	vd_machine_init(&m);
	assert_int_equal(virtio_net_new(m.vm, m.bus, &nic, &e), 0);
	assert_true(vd_attach(&d, &m, DEVFN, ~0ull));
	vd_queue_setup(&d, 0, 256);
	vd_queue_setup(&d, 1, 16);
	vd_driver_ok(&d);
	for (unsigned i = 0; i < 256; i++) {
		struct vd_seg rx = { vd_alloc(&m, 1024, 1024), 1024, true };

		buf[vd_add(&d, 0, &rx, 1)] = rx.gpa;
	}
	vd_kick(&d, 0);
	for (unsigned n = 0; n < 6; n++) {
		const uint16_t *used = vd_ptr(&m, d.q[0].used);
		uint64_t end = clock_mono_ns() + 5 * NS_PER_S;
		unsigned now;

		assert_int_equal(send(sv[1], frame, sizeof(frame), 0), (ssize_t)sizeof(frame));
		do
			now = __atomic_load_n(&used[1], __ATOMIC_ACQUIRE);
		while (now == seen && clock_mono_ns() < end);
		assert_int_equal(now - seen, 40); /* the first look that sees any sees all */
		const uint32_t *elem = (const uint32_t *)(const void *)(used + 2);
		const uint8_t *first = vd_ptr(&m, buf[elem[2 * (seen % 256)]]);
		assert_int_equal(first[10], 40);
		seen = now;
	}
	vd_machine_fini(&m);
	close(sv[1]);
}

static void tiny_console_buffers_lose_no_byte(void **s)
{
	struct vd_machine m;
	struct vd d;
	struct err e = { 0 };
	struct mc_port port = { .name = "console0" };
	char text[64], got[64];
	gpa_t buf[16];
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv), 0);
	port.chr = (struct chardev_config){ .kind = CHARDEV_STREAM, .fd = sv[0] };
	vd_machine_init(&m);
	assert_int_equal(virtio_console_new(m.vm, m.bus, &port, 1, &e), 0);
	assert_true(vd_attach(&d, &m, DEVFN, ~0ull));
	for (unsigned q = 0; q < 4; q++)
		vd_queue_setup(&d, q, 16);
	vd_driver_ok(&d);
	for (unsigned i = 0; i < sizeof(text); i++)
		text[i] = (char)('!' + i);
	assert_int_equal(write(sv[1], text, sizeof(text)), (ssize_t)sizeof(text));
	for (unsigned round = 0; round < 4; round++) {
		for (unsigned i = 0; i < 8; i++) {
			struct vd_seg rx = { vd_alloc(&m, 2, 2), 2, true };

			buf[i] = rx.gpa;
			vd_add(&d, 0, &rx, 1);
		}
		vd_kick(&d, 0);
		assert_true(vd_wait(&d, 0, 8));
		for (unsigned i = 0; i < 8; i++)
			memcpy(got + 16 * round + 2 * i, vd_ptr(&m, buf[i]), 2);
	}
	assert_memory_equal(got, text, sizeof(text));
	vd_machine_fini(&m);
	close(sv[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_held_request_is_tried_again_when_the_guest_runs_on),
		cmocka_unit_test(a_held_request_survives_a_save),
		cmocka_unit_test(a_corrupt_list_of_held_requests_is_refused),
		cmocka_unit_test(one_head_offered_for_ever_is_malformed),
		cmocka_unit_test(a_read_into_rom_is_malformed),
		cmocka_unit_test(nothing_is_served_before_driver_ok),
		cmocka_unit_test(doorbells_follow_a_bar_that_moves_with_requests_in_flight),
		cmocka_unit_test(the_pci_window_reaches_the_registers),
		cmocka_unit_test(merged_buffers_become_visible_together),
		cmocka_unit_test(tiny_console_buffers_lose_no_byte),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
