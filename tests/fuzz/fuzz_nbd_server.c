/* fuzz_nbd_server.c - a client that says anything, to a server over a small disk in memory.
 *
 * The first byte chooses whether the fuzzer starts in the handshake or behind it.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/log.h"
#include "common/loop.h"
#include "storage/blockdev.h"
#include "storage/nbd_server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct loop *loop;
static struct blockdev *disk;
static struct nbd_server *server;

static void fuzz_start(void)
{
	struct blk_spec s = {
		.driver = "file", .label = "fuzz", .discard = true, .cache = BLK_CACHE_UNSAFE
	};
	static const char *const opts[] = { "threads=1", NULL };
	struct err e = { 0 };
	static const char *const bitmaps[] = { "daily", "b", NULL };
	struct nbd_export x = { .name = "disk", .bitmaps = bitmaps };

	log_set_level(LOG_ERR_ - 1);
	s.opts = opts;
	s.fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (s.fd < 0 || ftruncate(s.fd, 1 << 20) < 0)
		abort();
	disk = blk_open(&s, &e);
	loop = loop_new();
	x.bd = disk;
	server = nbd_server_new(loop, -1, &x, 1, NULL, &e);
	if (!disk || !loop || !server)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* flags; structured replies; the context; GO on "disk" */
	static const uint8_t entry[] = "\0\0\0\3IHAVEOPT\0\0\0\x8\0\0\0\0"
				       "IHAVEOPT\0\0\0\xa\0\0\0\x1f\0\0\0\4disk\0\0\0\1\0\0\0\xf"
				       "base:allocation"
				       "IHAVEOPT\0\0\0\7\0\0\0\xa\0\0\0\4disk\0\0";
	char sink[65536];
	int sp[2];

	if (!server)
		fuzz_start();
	if (size < 1 || size > 200000)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sp) < 0)
		abort();
	if (nbd_server_serve(server, sp[0]) < 0)
		abort();
	if ((data[0] & 1) && send(sp[1], entry, sizeof(entry) - 1, MSG_NOSIGNAL) < 0)
		abort();
	for (size_t at = 1; at < size && nbd_server_clients(server);) {
		ssize_t n = send(sp[1], data + at, size - at, MSG_NOSIGNAL);

		if (n > 0)
			at += n;
		while (recv(sp[1], sink, sizeof(sink), 0) > 0)
			;
		loop_run_once(loop, 0);
	}
	shutdown(sp[1], SHUT_WR);
	while (nbd_server_clients(server)) {
		while (recv(sp[1], sink, sizeof(sink), 0) > 0)
			;
		loop_run_once(loop, 100);
	}
	close(sp[1]);
	return 0;
}
