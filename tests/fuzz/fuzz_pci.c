/* fuzz_pci.c - configuration space by ECAM and type 1, BAR moves, MSI-X table. */
#include "tests/fuzz/chips_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void one(struct vm *vm, const struct chips_access *a)
{
	uint64_t at = 0xe0000000u + ((a->addr & 0x300ull) << 7) + (a->addr & 0xff);

	if (a->sel & 2)
		at = 0xc0000000u + a->addr; /* where BARs lie */
	if (a->sel & 4)
		chips_port(vm, a, 0xcf8 + (a->addr & 7));
	else if (a->sel & 1)
		bus_write(vm->mmio, at, 1u << (a->sel >> 3 & 3), a->val);
	else
		(void)bus_read(vm->mmio, at, 1u << (a->sel >> 3 & 3));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	return chips_run(data, len, one);
}
