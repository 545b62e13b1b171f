/* fuzz_virtio_console.c - virtio-console with two ports, one of them on a stream socket. */
#include "virtio_fuzz.h"

static int make(struct fuzz_vm *f, struct err *e)
{
	struct mc_port ports[2] = { { .name = "console0" }, { .name = "console1" } };
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return -1;
	f->peer = sv[1];
	ports[0].chr = (struct chardev_config){ .kind = CHARDEV_STREAM,
						.fd = sv[0],
						.scrollback_bytes = 4096 };
	ports[1].chr = (struct chardev_config){ .kind = CHARDEV_NULL, .fd = -1 };
	return virtio_console_new(f->vm, f->bus, ports, 2, e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_run(data, size, make);
	return 0;
}
