/* fuzz_x86_state.c - loading one vCPU's section. The input is the section's fields; the frame with
 * its checksum is put around it, so that the fields are reached. What loads must save and load
 * again to the same.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "hypervisor-core/x86_state.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int load_one(const struct state_writer *w, struct x86_state *s)
{
	struct state_reader r;
	struct err e = { 0 };

	state_reader_init(&r, w->data, w->len);
	if (state_next(&r, &e) != 1)
		return -1;
	int ret = x86_state_load(s, &r, &e);
	if ((ret < 0) != err_is_set(&e))
		abort();
	return ret;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct x86_state a, b;
	struct state_writer w;
	size_t at = 0;

	state_writer_init(&w);
	state_begin(&w, "vcpu", 0, 1);
	/* tag, length (two bytes), bytes; tag with the high bit: a number of 8 bytes */
	while (at + 3 <= size) {
		uint16_t tag = data[at] & 0x7f;
		size_t len = (size_t)data[at + 1] | (size_t)data[at + 2] << 8;
		uint64_t v = 0;

		if (data[at] & 0x80) {
			len = len < 8 ? len : 8;
			if (len > size - at - 3)
				break;
			memcpy(&v, data + at + 3, len);
			state_put_u64(&w, tag, v);
		} else {
			if (len > size - at - 3)
				len = size - at - 3;
			state_put_bytes(&w, tag, data + at + 3, len);
		}
		at += 3 + len;
	}
	state_end(&w);
	if (load_one(&w, &a) == 0) {
		state_writer_fini(&w);
		state_begin(&w, "vcpu", 0, 1);
		x86_state_save(&a, &w);
		state_end(&w);
		if (load_one(&w, &b) < 0 || memcmp(&a, &b, sizeof(a)) != 0)
			abort();
	}
	state_writer_fini(&w);
	return 0;
}
