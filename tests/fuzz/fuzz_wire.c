/* fuzz_wire.c - what a peer may send: whole datagrams into wire_recv(), then every decoder that
 * takes its type. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmd/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct wire_buf b = { 0 };
	int sv[2];

	if (!size || size > WIRE_MSG_MAX ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return 0;
	if (send(sv[0], data, size, 0) == (ssize_t)size &&
	    wire_recv(sv[1], &b, WIRE_FDS_MAX) == 1) {
		const struct proto_desc *d = proto_find(b.type);

		proto_permit(&b, PROTO_CORE, PROTO_GUEST, PROTO_CONF);
		if (d) {
			void *msg = malloc(d->size);

			if (msg && proto_decode(b.type, msg, &b) == 0) {
				struct wire_buf again = { 0 };

				/* what was decoded can be encoded */
				if (proto_encode(b.type, msg, b.id, &again) < 0)
					abort();
				wire_buf_clear(&again);
				proto_close(b.type, msg);
			}
			free(msg);
		}
	}
	wire_buf_clear(&b);
	close(sv[0]);
	close(sv[1]);
	return 0;
}
