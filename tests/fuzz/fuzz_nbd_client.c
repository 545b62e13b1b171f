/* fuzz_nbd_client.c - a server that says anything, to our NBD driver: handshake, reads, block
 * status, flush.
 *
 * The first byte chooses whether the fuzzer's bytes follow a handshake that went well. All its bytes
 * are in the socket before the client starts, and then comes the end: nothing can wait.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/log.h"
#include "storage/blockdev.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REP "\0\3\xe8\x89\4\x55\x65\xa9"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* greeting; structured replies; base:allocation as context 5; an export of 1 MiB */
	static const char entry[] =
	    "NBDMAGICIHAVEOPT\0\3" REP "\0\0\0\x8\0\0\0\1\0\0\0\0" REP
	    "\0\0\0\xa\0\0\0\4\0\0\0\x13\0\0\0\5"
	    "base:allocation" REP "\0\0\0\xa\0\0\0\1\0\0\0\0" REP
	    "\0\0\0\7\0\0\0\3\0\0\0\xc\0\0\0\0\0\0\0\x10\0\0\0\x6d" REP "\0\0\0\7\0\0\0\1\0\0\0\0";
	struct blk_spec s = { .driver = "nbd", .label = "fuzz", .discard = true };
	struct err e = { 0 };
	struct blk_extent x[8];
	struct blockdev *bd;
	uint8_t *buf;
	int sp[2], big = 1 << 18;

	log_set_level(LOG_ERR_ - 1);
	if (size < 1 || size > 60000)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sp) < 0)
		abort();
	setsockopt(sp[1], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
	if (((data[0] & 1) && send(sp[1], entry, sizeof(entry) - 1, MSG_NOSIGNAL) < 0) ||
	    (size > 1 && send(sp[1], data + 1, size - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0))
		abort();
	shutdown(sp[1], SHUT_WR);
	s.fd = sp[0];
	bd = blk_open(&s, &e);
	if (bd) {
		buf = malloc(8192); /* of its own: one byte beside it is an error that shows */
		if (!buf)
			abort();
		(void)blk_pread(bd, buf, 8192, 4096);
		(void)blk_extents(bd, 0, x, 8);
		(void)blk_pread(bd, buf, 512, 0);
		(void)blk_pwrite(bd, buf, 512, 0);
		(void)blk_flush(bd);
		(void)blk_close(bd);
		free(buf);
	} else {
		close(sp[0]);
	}
	close(sp[1]);
	return 0;
}
