/* fuzz_cmos.c - RTC and CMOS index and data. */
#include "tests/fuzz/chips_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void one(struct vm *vm, const struct chips_access *a)
{
	chips_port(vm, a, 0x70 + (a->addr & 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	return chips_run(data, len, one);
}
