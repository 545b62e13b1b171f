/* fuzz_virtio_blk.c - virtio-blk over a 1 MiB memfd. */
#include "virtio_fuzz.h"

static int make(struct fuzz_vm *f, struct err *e)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);
	struct blk_spec spec = { .driver = "file",
				 .label = "disk vda",
				 .fd = fd,
				 .discard = true,
				 .cache = BLK_CACHE_WRITEBACK };
	struct mc_disk disk = { .name = "vda", .queues = 2, .on_error = IO_ERROR_REPORT };

	if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
		return -1;
	disk.bd = blk_open(&spec, e);
	return disk.bd ? virtio_blk_new(f->vm, f->bus, &disk, e) : -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_run(data, size, make);
	return 0;
}
