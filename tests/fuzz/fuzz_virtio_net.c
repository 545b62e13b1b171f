/* fuzz_virtio_net.c - virtio-net with two queue pairs over datagram sockets in the tap's place. */
#include "virtio_fuzz.h"

static int make(struct fuzz_vm *f, struct err *e)
{
	struct mc_nic nic = { .name = "net0", .mac = { 2, 0, 0, 0, 0, 1 }, .queues = 2 };
	int sv[2], sv2[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sv) < 0 ||
	    socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sv2) < 0)
		return -1;
	f->peer = sv[1];
	close(sv2[1]);
	nic.tap_fds[0] = sv[0];
	nic.tap_fds[1] = sv2[0];
	nic.vhost_fds[0] = nic.vhost_fds[1] = -1;
	return virtio_net_new(f->vm, f->bus, &nic, e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_run(data, size, make);
	return 0;
}
