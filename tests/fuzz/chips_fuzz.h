/* chips_fuzz.h - what the chip fuzzers share: one pc machine (software CPU, never run), reset for
 * each input; the input is a list of six-byte accesses {selector, address low, address high, three
 * bytes of value}. Single-threaded.
 */
#ifndef TESTS_CHIPS_FUZZ_H
#define TESTS_CHIPS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "devices/machine_config.h"
#include "hypervisor-core/machine.h"
#include "hypervisor-core/vm.h"

struct chips_access {
	uint8_t sel;
	uint16_t addr;
	uint32_t val; /* 24 bits, spread to 32 */
};

static struct vm *chips_vm(void)
{
	static struct vm *vm;
	struct vm_config vc = { .name = "fuzz",
				.accel = &accel_soft,
				.accel_cfg = { .kvm_fd = -1, .vcpus = 2 } };
	struct mc_port serial = { .name = "serial0", .chr = { .kind = CHARDEV_NULL, .fd = -1 } };
	struct machine_config mc = { .memory_bytes = 16 * MIB,
				     .memory_fd = -1,
				     .vcpus = 2,
				     .nserials = 1,
				     .serials = &serial,
				     .rng = true,
				     .boot = { .kernel_fd = -1, .initrd_fd = -1 } };
	struct err e = { 0 };

	if (!vm) {
		memcpy(vc.cpu.model, "host", sizeof("host"));
		vc.cpu.vcpus = 2;
		vm = vm_new(loop_new(), &vc, &e);
		if (!vm || machine_rows[0]->build(vm, &mc, &e))
			abort();
	}
	if (vm_reset(vm, &e))
		abort();
	return vm;
}

static int chips_run(const uint8_t *p, size_t len,
		     void (*one)(struct vm *vm, const struct chips_access *a))
{
	struct vm *vm = chips_vm();

	for (size_t n = 0; len >= 6 && n < 512; n++, p += 6, len -= 6) {
		struct chips_access a = { p[0], (uint16_t)(p[1] | p[2] << 8),
					  p[3] | p[4] << 8 | p[5] << 16 |
					      (uint32_t)(p[5] & 0x80) << 24 };

		one(vm, &a);
	}
	loop_run_once(vm->loop, 0);
	return 0;
}

static inline void chips_port(struct vm *vm, const struct chips_access *a, uint16_t port)
{
	if (a->sel & 1)
		bus_write(vm->pio, port,
			  1u << (a->sel >> 1 & 3) & 7 ? 1u << (a->sel >> 1 & 3) & 7 : 1, a->val);
	else
		(void)bus_read(vm->pio, port, 1);
}

#endif
