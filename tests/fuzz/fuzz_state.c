/* fuzz_state.c - saved state: any bytes are refused, or read within bounds. */
#include <stddef.h>
#include <stdint.h>

#include "common/state.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct state_reader r;
	struct err e = { 0 };
	const void *p;
	uint64_t v;
	size_t n;

	state_reader_init(&r, data, size);
	while (state_next(&r, &e) > 0)
		for (uint16_t tag = 0; tag < 64; tag++) {
			state_get_u64(&r, tag, &v);
			state_get_span(&r, tag, &p, &n);
		}
	return 0;
}
