/* bus_test.c - dispatch, splits, doorbells in user space, ranges that move from inside their own
 * handler. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "hypervisor-core/vm.h"

static const struct accel_ops bare = { .name = "bare" }; /* no doorbells of its own */

struct dev {
	struct vm *vm;
	struct bus *bus;
	unsigned reads, writes, last_size;
	uint64_t last_off, last_val, answer;
	bool locked_in_handler, move;
};

static uint64_t dev_read(void *p, uint64_t off, unsigned size)
{
	struct dev *d = p;

	d->reads++;
	d->last_off = off;
	d->last_size = size;
	return d->answer >> (8 * off);
}

static void dev_write(void *p, uint64_t off, unsigned size, uint64_t val);
static const struct bus_ops ops = { .read = dev_read, .write = dev_write };

static void dev_write(void *p, uint64_t off, unsigned size, uint64_t val)
{
	struct dev *d = p;

	d->writes++;
	d->last_off = off;
	d->last_size = size;
	d->last_val = val;
	d->locked_in_handler = pthread_mutex_trylock(&d->vm->lock) != 0;
	if (!d->locked_in_handler)
		pthread_mutex_unlock(&d->vm->lock);
	if (d->move) {
		bus_del(d->bus, 0x100);
		assert_int_equal(bus_add(d->bus, 0x200, 8, &ops, d, "moved", 0), 0);
	}
}

static struct vm *vm_bare(void)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	pthread_mutex_init(&vm->lock, NULL);
	vm->accel = &bare;
	vm->pio = bus_new(vm, 0x10000);
	return vm;
}

static void vm_bare_free(struct vm *vm)
{
	bus_free(vm->pio);
	pthread_mutex_destroy(&vm->lock);
	free(vm);
}

static void ranges_do_not_overlap_and_nothing_reads_ones(void **state)
{
	struct vm *vm = vm_bare();
	struct dev d = { .vm = vm, .answer = 0x8877665544332211 };

	assert_int_equal(bus_add(vm->pio, 0x100, 8, &ops, &d, "a", 0), 0);
	assert_int_equal(bus_add(vm->pio, 0x107, 1, &ops, &d, "b", 0), -EEXIST);
	assert_int_equal(bus_add(vm->pio, 0xff, 2, &ops, &d, "b", 0), -EEXIST);
	assert_int_equal(bus_add(vm->pio, 0x80, 0x200, &ops, &d, "b", 0), -EEXIST);
	assert_int_equal(bus_add(vm->pio, 0xfff8, 9, &ops, &d, "b", 0), -EINVAL);
	assert_int_equal(bus_add(vm->pio, 0x50, 0, &ops, &d, "b", 0), -EINVAL);
	assert_int_equal(bus_read(vm->pio, 0x104, 4), 0x88776655);
	assert_int_equal(bus_read(vm->pio, 0x108, 2), 0xffff);
	assert_int_equal(bus_unclaimed_count(vm->pio), 1);
	bus_del(vm->pio, 0x100);
	assert_int_equal(bus_read(vm->pio, 0x100, 1), 0xff);
	vm_bare_free(vm);
}

static void accesses_that_cross_an_end_are_split(void **state)
{
	struct vm *vm = vm_bare();
	struct dev a = { .vm = vm, .answer = 0x2211 }, b = { .vm = vm, .answer = 0x33 };

	assert_int_equal(bus_add(vm->pio, 0x100, 2, &ops, &a, "a", 0), 0);
	assert_int_equal(bus_add(vm->pio, 0x102, 1, &ops, &b, "b", 0), 0);
	assert_int_equal(bus_read(vm->pio, 0x100, 4), 0xff332211);
	bus_write(vm->pio, 0x101, 2, 0xbbaa);
	assert_int_equal(a.last_off, 1);
	assert_int_equal(a.last_size, 1);
	assert_int_equal(a.last_val, 0xaa);
	assert_int_equal(b.last_val, 0xbb);
	vm_bare_free(vm);
}

static void handlers_hold_the_machine_lock_unless_they_ask_not_to(void **state)
{
	struct vm *vm = vm_bare();
	struct dev a = { .vm = vm }, b = { .vm = vm };

	assert_int_equal(bus_add(vm->pio, 0x100, 1, &ops, &a, "a", 0), 0);
	assert_int_equal(bus_add(vm->pio, 0x101, 1, &ops, &b, "b", BUS_UNLOCKED), 0);
	bus_write(vm->pio, 0x100, 1, 0);
	bus_write(vm->pio, 0x101, 1, 0);
	assert_true(a.locked_in_handler);
	assert_false(b.locked_in_handler);
	vm_bare_free(vm);
}

static void a_range_moves_from_inside_its_own_handler(void **state)
{
	struct vm *vm = vm_bare();
	struct dev d = { .vm = vm, .bus = vm->pio, .move = true };

	assert_int_equal(bus_add(vm->pio, 0x100, 8, &ops, &d, "a", 0), 0);
	bus_write(vm->pio, 0x100, 4, 1);
	d.move = false;
	bus_write(vm->pio, 0x100, 4, 1);
	bus_write(vm->pio, 0x204, 4, 2);
	assert_int_equal(d.writes, 2);
	assert_int_equal(d.last_off, 4);
	vm_bare_free(vm);
}

static void doorbells_work_without_help_from_a_kernel(void **state)
{
	struct vm *vm = vm_bare();
	struct dev d = { .vm = vm };
	int any = eventfd(0, EFD_NONBLOCK), two = eventfd(0, EFD_NONBLOCK);
	uint64_t n = 0;

	assert_int_equal(bus_add(vm->pio, 0x100, 8, &ops, &d, "a", 0), 0);
	assert_int_equal(bus_doorbell_add(vm->pio, 0x100, 2, true, 2, two), 0);
	assert_int_equal(bus_doorbell_add(vm->pio, 0x104, 0, false, 0, any), 0);
	assert_int_equal(bus_doorbell_add(vm->pio, 0x100, 3, false, 0, any), -EINVAL);
	assert_int_equal(bus_doorbell_add(vm->pio, 0x100, 0, true, 1, any), -EINVAL);
	bus_write(vm->pio, 0x100, 2, 2);
	bus_write(vm->pio, 0x100, 2, 3);
	bus_write(vm->pio, 0x100, 4, 2);
	bus_write(vm->pio, 0x104, 1, 9);
	bus_write(vm->pio, 0x104, 4, 9);
	assert_int_equal(read(two, &n, 8), 8);
	assert_int_equal(n, 1);
	assert_int_equal(read(any, &n, 8), 8);
	assert_int_equal(n, 2);
	assert_int_equal(d.writes, 2);
	bus_doorbell_del(vm->pio, 0x100, 2, true, 2, two);
	bus_write(vm->pio, 0x100, 2, 2);
	assert_int_equal(d.writes, 3);
	close(any);
	close(two);
	vm_bare_free(vm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranges_do_not_overlap_and_nothing_reads_ones),
		cmocka_unit_test(accesses_that_cross_an_end_are_split),
		cmocka_unit_test(handlers_hold_the_machine_lock_unless_they_ask_not_to),
		cmocka_unit_test(a_range_moves_from_inside_its_own_handler),
		cmocka_unit_test(doorbells_work_without_help_from_a_kernel),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
