/* chips_test.c - the PC's chips on a built machine: through ports and memory, as a guest sees them;
 * state that comes back byte for byte. The machine is the real one, on the software CPU, which
 * never runs here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/units.h"
#include "devices/acpi.h"
#include "devices/machine_config.h"
#include "hypervisor-core/machine.h"
#include "hypervisor-core/vm.h"

struct rig {
	struct loop *loop;
	struct vm *vm;
	int serial; /* far side of serial0 */
};

static struct rig *rig_new_id(uint8_t id)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct vm_config vc = { .name = "rig",
				.accel = &accel_soft,
				.accel_cfg = { .kvm_fd = -1, .vcpus = 2 } };
	struct mc_port serial = { .name = "serial0" };
	struct machine_config mc = { .memory_bytes = 32 * MIB,
				     .memory_fd = -1,
				     .vcpus = 2,
				     .nserials = 1,
				     .serials = &serial,
				     .rng = true,
				     .boot = { .kernel_fd = -1, .initrd_fd = -1 } };
	struct err e = { 0 };
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	r->serial = pair[0];
	serial.chr = (struct chardev_config){ .kind = CHARDEV_STREAM, .fd = pair[1] };
	strcpy(vc.cpu.model, "host");
	vc.cpu.vcpus = 2;
	mc.vmgenid[0] = id;
	r->loop = loop_new();
	r->vm = vm_new(r->loop, &vc, &e);
	if (!r->vm || machine_rows[0]->build(r->vm, &mc, &e))
		fail_msg("%s", e.detail);
	return r;
}

static int rig_setup(void **state)
{
	*state = rig_new_id(1);
	return 0;
}

static void rig_free(struct rig *r)
{
	vm_free(r->vm);
	loop_run_once(r->loop, 0);
	loop_free(r->loop);
	close(r->serial);
	free(r);
}

static int rig_teardown(void **state)
{
	rig_free(*state);
	return 0;
}

static uint64_t in(struct rig *r, uint16_t port, unsigned size)
{
	return bus_read(r->vm->pio, port, size);
}

static void out(struct rig *r, uint16_t port, unsigned size, uint64_t v)
{
	bus_write(r->vm->pio, port, size, v);
}

static void pic_setup(struct rig *r)
{
	static const uint8_t icw[4][2] = {
		{ 0x11, 0x11 }, { 0x20, 0x28 }, { 0x04, 0x02 }, { 0x01, 0x01 }
	};

	for (unsigned i = 0; i < 4; i++) {
		out(r, i ? 0x21 : 0x20, 1, icw[i][0]);
		out(r, i ? 0xa1 : 0xa0, 1, icw[i][1]);
	}
	out(r, 0x21, 1, 0);
	out(r, 0xa1, 1, 0);
}

static void pic_delivers_uart_interrupt_and_waits_for_eoi(void **state)
{
	struct rig *r = *state;

	pic_setup(r);
	out(r, 0x3fc, 1, 8); /* OUT2 */
	out(r, 0x3f9, 1, 2); /* THRE */
	assert_true(r->vm->intc->pic_pending(r->vm->intc_opaque));
	assert_int_equal(r->vm->intc->pic_ack(r->vm->intc_opaque), 0x24);
	assert_false(r->vm->intc->pic_pending(r->vm->intc_opaque));
	assert_int_equal(in(r, 0x3fa, 1) & 0xf, 2);
	assert_int_equal(in(r, 0x3fa, 1) & 0xf, 1);
	out(r, 0x20, 1, 0x0b);
	assert_int_equal(in(r, 0x20, 1), 1 << 4); /* in service until EOI */
	out(r, 0x20, 1, 0x20);
	assert_int_equal(in(r, 0x20, 1), 0);
}

static void lapic_ranks_by_priority_and_tpr(void **state)
{
	struct rig *r = *state;
	const struct intc_ops *ic = r->vm->intc;
	void *o = r->vm->intc_opaque;

	ic->apic_mmio_write(o, 0, 0xf0, 4, 0x1ff);
	ic->msi(o, 0xfee00000, 0x31);
	ic->msi(o, 0xfee00000, 0x52);
	assert_int_equal(ic->apic_pending(o, 0), 0x52);
	assert_int_equal(ic->apic_pending(o, 1), -1);
	assert_int_equal(ic->apic_ack(o, 0), 0x52);
	assert_int_equal(ic->apic_pending(o, 0), -1); /* 0x31 is below what is in service */
	ic->apic_mmio_write(o, 0, 0xb0, 4, 0);
	assert_int_equal(ic->apic_pending(o, 0), 0x31);
	ic->cr8_set(o, 0, 3);
	assert_int_equal(ic->apic_pending(o, 0), -1);
	ic->cr8_set(o, 0, 2);
	assert_int_equal(ic->apic_pending(o, 0), 0x31);
}

static void lapic_x2apic_refuses_bad_values(void **state)
{
	struct rig *r = *state;
	const struct intc_ops *ic = r->vm->intc;
	void *o = r->vm->intc_opaque;
	uint64_t v;

	assert_false(ic->msr_read(o, 1, 0x802, &v)); /* not in x2APIC mode yet */
	assert_true(ic->msr_write(o, 1, 0x1b, 0xfee00c00));
	assert_true(ic->msr_read(o, 1, 0x802, &v));
	assert_int_equal(v, 1);
	assert_false(ic->msr_write(o, 1, 0x80b, 1));
	assert_false(ic->msr_write(o, 1, 0x802, 0));
	assert_false(ic->msr_write(o, 1, 0x1b, 0xfee00800)); /* not straight back to xAPIC */
	ic->apic_mmio_write(o, 0, 0xf0, 4, 0x1ff);
	assert_true(ic->msr_write(o, 1, 0x830, 0x45)); /* fixed, to APIC id 0 */
	assert_int_equal(ic->apic_pending(o, 0), 0x45);
}

static void ioapic_resends_level_interrupt_after_eoi(void **state)
{
	struct rig *r = *state;
	const struct intc_ops *ic = r->vm->intc;
	void *o = r->vm->intc_opaque;

	ic->apic_mmio_write(o, 0, 0xf0, 4, 0x1ff);
	bus_write(r->vm->mmio, 0xfec00000, 4, 0x10 + 2 * 9);
	bus_write(r->vm->mmio, 0xfec00010, 4, 0x8061); /* pin 9 (SCI), level, vector 0x61 */
	out(r, 0x602, 2, 1 << 8);
	machine_rows[0]->power_button(r->vm);
	assert_int_equal(ic->apic_ack(o, 0), 0x61);
	assert_int_equal(ic->apic_pending(o, 0), -1);
	ic->apic_mmio_write(o, 0, 0xb0, 4, 0); /* the button's status is still set */
	assert_int_equal(ic->apic_ack(o, 0), 0x61);
	out(r, 0x600, 2, 1 << 8);
	ic->apic_mmio_write(o, 0, 0xb0, 4, 0);
	assert_int_equal(ic->apic_pending(o, 0), -1);
}

static void serial_loopback_and_scratch(void **state)
{
	struct rig *r = *state;

	out(r, 0x3ff, 1, 0x5a);
	assert_int_equal(in(r, 0x3ff, 1), 0x5a);
	out(r, 0x3fa, 1, 1);
	out(r, 0x3fc, 1, 0x1f);
	assert_int_equal(in(r, 0x3fe, 1) & 0xf0, 0xf0);
	for (unsigned i = 0; i < 17; i++)
		out(r, 0x3f8, 1, 'a' + i);
	assert_int_equal(in(r, 0x3fd, 1) & 3, 3); /* data ready, overrun */
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(in(r, 0x3f8, 1), 'a' + i);
	assert_int_equal(in(r, 0x3fd, 1) & 3, 0);
}

static void serial_output_reaches_far_side_and_late_console(void **state)
{
	struct rig *r = *state;
	char buf[16] = "";
	int pair[2];
	struct err e = { 0 };

	for (const char *p = "hello"; *p; p++)
		out(r, 0x3f8, 1, (uint8_t)*p);
	while (recv(r->serial, buf, 5, MSG_PEEK | MSG_DONTWAIT) < 5)
		loop_run_once(r->loop, 1000);
	assert_string_equal(buf, "hello");
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	vm_lock(r->vm);
	assert_int_equal(chardev_attach(chardev_find(r->vm, "serial0"), pair[1], false, &e), 0);
	vm_unlock(r->vm);
	memset(buf, 0, sizeof(buf));
	while (recv(pair[0], buf, 5, MSG_PEEK | MSG_DONTWAIT) < 5)
		loop_run_once(r->loop, 1000);
	assert_string_equal(buf, "hello"); /* the scrollback */
	assert_int_equal(write(pair[0], "x", 1), 1);
	while (!(in(r, 0x3fd, 1) & 1))
		loop_run_once(r->loop, 1000);
	assert_int_equal(in(r, 0x3f8, 1), 'x');
	close(pair[0]);
}

static uint64_t cfg_read(struct rig *r, unsigned devfn, unsigned off)
{
	return bus_read(r->vm->mmio, 0xe0000000u + (devfn << 12) + off, 4);
}

static void cfg_write(struct rig *r, unsigned devfn, unsigned off, uint32_t v)
{
	bus_write(r->vm->mmio, 0xe0000000u + (devfn << 12) + off, 4, v);
}

static void pci_bar_moves_and_never_leaves_its_window(void **state)
{
	struct rig *r = *state;
	const unsigned dev = 1 << 3;
	uint32_t home = (uint32_t)cfg_read(r, dev, 0x14), size;

	assert_int_equal(cfg_read(r, dev, 0) & 0xffff, 0x1af4);
	out(r, 0xcf8, 4, 0x80000000 | dev << 8);
	assert_int_equal(in(r, 0xcfc, 4), cfg_read(r, dev, 0));
	assert_true(home >= 0xc0000000);
	cfg_write(r, dev, 0x14, 0xffffffff);
	size = (uint32_t) - (cfg_read(r, dev, 0x14) & ~15u);
	assert_int_equal(size, 0x1000);
	cfg_write(r, dev, 0x14, 0xc8000000);
	cfg_write(r, dev, 4, 6);
	assert_int_equal(bus_read(r->vm->mmio, 0xc800000c, 4), 1); /* vector 0: masked */
	cfg_write(r, dev, 0x14, 0x00100000);			   /* over RAM: refused */
	assert_int_equal(bus_read(r->vm->mmio, 0x0010000c, 4), 0xffffffff);
	assert_int_equal(bus_read(r->vm->mmio, 0xc800000c, 4), 0xffffffff);
}

static void pit_counts_down_and_latches(void **state)
{
	struct rig *r = *state;
	uint64_t first, second;

	out(r, 0x43, 1, 0xb0); /* channel 2, mode 0 */
	out(r, 0x42, 1, 0xff);
	out(r, 0x61, 1, 1);
	out(r, 0x42, 1, 0xff);
	assert_int_equal(in(r, 0x61, 1) & 0x20, 0);
	out(r, 0x43, 1, 0x80);
	first = in(r, 0x42, 1);
	first |= in(r, 0x42, 1) << 8;
	do {
		out(r, 0x43, 1, 0x80);
		second = in(r, 0x42, 1);
		second |= in(r, 0x42, 1) << 8;
	} while (second == first);
	assert_true(second < first);
}

static void rtc_keeps_the_time_it_is_set_to(void **state)
{
	struct rig *r = *state;
	static const uint8_t set[][2] = { { 0x0b, 0x82 }, { 0, 0x10 },	  { 2, 0x59 },
					  { 4, 0x23 },	  { 7, 0x31 },	  { 8, 0x12 },
					  { 9, 0x99 },	  { 0x32, 0x19 }, { 0x0b, 0x02 } };

	for (unsigned i = 0; i < sizeof(set) / 2; i++) {
		out(r, 0x70, 1, set[i][0]);
		out(r, 0x71, 1, set[i][1]);
	}
	out(r, 0x70, 1, 9);
	assert_int_equal(in(r, 0x71, 1), 0x99);
	out(r, 0x70, 1, 4);
	assert_int_equal(in(r, 0x71, 1), 0x23);
	out(r, 0x70, 1, 6);
	assert_int_equal(in(r, 0x71, 1), 6); /* 1999-12-31 was a Friday */
}

static void state_comes_back_byte_for_byte(void **state)
{
	struct rig *a = *state, *b = rig_new_id(1);
	struct state_writer w, again;
	struct state_reader ra, rb;
	struct err e = { 0 };
	unsigned sections = 0;

	pic_setup(a);
	out(a, 0x43, 1, 0x34);
	out(a, 0x40, 1, 0xa9);
	out(a, 0x40, 1, 0x04);
	out(a, 0x3fc, 1, 0x1b);
	out(a, 0x3f8, 1, 'q');
	cfg_write(a, 1 << 3, 4, 6);
	out(a, 0x70, 1, 0x40);
	out(a, 0x71, 1, 0x77);
	state_writer_init(&w);
	state_writer_init(&again);
	if (vm_save(a->vm, &w, &e) || vm_load(b->vm, w.data, w.len, &e) ||
	    vm_save(b->vm, &again, &e))
		fail_msg("%s", e.detail);
	state_reader_init(&ra, w.data, w.len);
	state_reader_init(&rb, again.data, again.len);
	while (state_next(&ra, &e) == 1) {
		assert_int_equal(state_next(&rb, &e), 1);
		assert_string_equal(ra.name, rb.name);
		/* The clocks of a machine that was never started run on: not devices' business. */
		if (strcmp(ra.name, "vm") == 0 || strcmp(ra.name, "vcpu") == 0)
			continue;
		if (ra.fields_len != rb.fields_len || memcmp(ra.fields, rb.fields, ra.fields_len))
			fail_msg("state of %s %u differs after a load", ra.name, ra.instance);
		sections++;
	}
	assert_int_equal(state_next(&rb, &e), 0);
	assert_true(sections >= 12);
	state_writer_fini(&w);
	state_writer_fini(&again);
	rig_free(b);
}

static void clone_gets_a_new_generation_id_and_an_event(void **state)
{
	struct rig *a = *state, *b = rig_new_id(9);
	struct state_writer w;
	struct err e = { 0 };
	uint8_t id[16];

	state_writer_init(&w);
	assert_int_equal(vm_save(a->vm, &w, &e), 0);
	assert_int_equal(in(b, 0x620, 1), 0);
	assert_int_equal(vm_load(b->vm, w.data, w.len, &e), 0);
	assert_int_equal(in(b, 0x620, 1), 1);
	assert_int_equal(mem_read(b->vm->mem, 0xef000, id, 16), 0);
	assert_int_equal(id[3], 9); /* first field little-endian */
	state_writer_fini(&w);
	rig_free(b);
}

static int iasl(const char *args)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd), "iasl %s > /dev/null 2>&1", args);
	return system(cmd);
}

static void acpi_dsdt_survives_iasl(void **state)
{
	struct acpi_config c = { .base = 0xe0000,
				 .vcpus = 255,
				 .ecam_base = 0xe0000000,
				 .ecam_buses = 1,
				 .mmio32_base = 0xc0000000,
				 .mmio32_size = 0x20000000,
				 .mmio64_base = 64 * GIB,
				 .mmio64_size = 64 * GIB,
				 .vmgenid = 0xef000,
				 .nserials = 4,
				 .serials = {
				     { 0x3f8, 4 }, { 0x2f8, 3 }, { 0x3e8, 5 }, { 0x2e8, 7 } } };
	char dir[] = "/tmp/vmd-acpi.XXXXXX", args[128];
	struct aml blob;
	uint32_t len;

	if (iasl("-v"))
		skip();
	assert_non_null(mkdtemp(dir));
	assert_int_equal(acpi_build(&c, &blob), 0);
	for (size_t at = 0; at + 36 < blob.len; at += 16) {
		uint8_t sum = 0;
		FILE *f;

		memcpy(&len, blob.p + at + 4, 4);
		if (memcmp(blob.p + at, "DSDT", 4) && memcmp(blob.p + at, "FACP", 4) &&
		    memcmp(blob.p + at, "APIC", 4) && memcmp(blob.p + at, "MCFG", 4) &&
		    memcmp(blob.p + at, "XSDT", 4))
			continue;
		assert_true(at + len <= blob.len);
		for (uint32_t i = 0; i < len; i++)
			sum = (uint8_t)(sum + blob.p[at + i]);
		assert_int_equal(sum, 0);
		snprintf(args, sizeof(args), "%s/%.4s.aml", dir, (const char *)blob.p + at);
		f = fopen(args, "w");
		assert_non_null(f);
		assert_int_equal(fwrite(blob.p + at, 1, len, f), len);
		fclose(f);
		snprintf(args, sizeof(args), "-d %s/%.4s.aml", dir, (const char *)blob.p + at);
		assert_int_equal(iasl(args), 0);
		snprintf(args, sizeof(args), "-p %s/again %s/%.4s.dsl", dir, dir,
			 (const char *)blob.p + at);
		assert_int_equal(iasl(args), 0);
	}
	aml_free(&blob);
	snprintf(args, sizeof(args), "rm -r %s", dir);
	assert_int_equal(system(args), 0);
}

#define RIG(t) cmocka_unit_test_setup_teardown(t, rig_setup, rig_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG(pic_delivers_uart_interrupt_and_waits_for_eoi),
		RIG(lapic_ranks_by_priority_and_tpr),
		RIG(lapic_x2apic_refuses_bad_values),
		RIG(ioapic_resends_level_interrupt_after_eoi),
		RIG(serial_loopback_and_scratch),
		RIG(serial_output_reaches_far_side_and_late_console),
		RIG(pci_bar_moves_and_never_leaves_its_window),
		RIG(pit_counts_down_and_latches),
		RIG(rtc_keeps_the_time_it_is_set_to),
		RIG(state_comes_back_byte_for_byte),
		RIG(clone_gets_a_new_generation_id_and_an_event),
		cmocka_unit_test(acpi_dsdt_survives_iasl),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
