/* fuzz_serial.c - 16550A registers in any order. */
#include "tests/fuzz/chips_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void one(struct vm *vm, const struct chips_access *a)
{
	chips_port(vm, a, 0x3f8 + (a->addr & 7));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	return chips_run(data, len, one);
}
