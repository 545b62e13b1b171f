/* fuzz_virtio_rng.c - virtio-rng. */
#include "virtio_fuzz.h"

static int make(struct fuzz_vm *f, struct err *e)
{
	return virtio_rng_new(f->vm, f->bus, e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_run(data, size, make);
	return 0;
}
