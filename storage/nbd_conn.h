/* nbd_conn.h - inside storage/: one NBD connection, shared by handshake and transmission. */
#ifndef STORAGE_NBD_CONN_H
#define STORAGE_NBD_CONN_H

#include <endian.h>
#include <sys/types.h>

#include "common/list.h"
#include "storage/nbd_proto.h"
#include "storage/nbd_server.h"
#include "storage/node.h"

/* context ids: 1 base:allocation, 2 + i the export's bitmap i; a bit each in nbd_conn.meta */
#define NBD_META_ALLOCATION 1u
#define NBD_META_BITMAP	    2u
#define NBD_IN_BYTES	    (64 * 1024u) /* more than the longest option */
#define NBD_SPARES	    32u		 /* buffers of a page that a connection keeps */

struct nbd_server {
	struct loop *loop;
	struct loop_fd listen;
	struct nbd_export *exports;
	unsigned nexports, nclients;
	struct nbd_limits limits;
	struct list clients;
	nbd_idle_fn *idle;
	void *idle_arg;
	bool stopping;
};

struct nbd_msg {
	struct list node;
	void *data;
	size_t data_len, head_len, sent;
	uint64_t charged; /* bytes in flight that leave with it */
	uint8_t head[];
};

struct nbd_conn {
	struct list node;
	struct nbd_server *server;
	struct loop_fd watch;
	struct loop_timer deadline;
	int sock;
	uint32_t watched;
	bool handshaking, got_flags, no_zeroes, structured;
	uint64_t meta;		/* chosen contexts, bit id - 1 */
	bool closing;		/* no more requests; end when those in flight are answered */
	bool broken, eof, deaf; /* deaf: no longer watched */
	unsigned out_count;
	const struct nbd_export *export;
	struct blk_queue *queue;
	uint64_t size;
	bool read_only;
	unsigned inflight;
	uint64_t inflight_bytes;
	struct list out;
	struct nbd_request *payload; /* write whose data is arriving */
	size_t payload_len, payload_got;
	void *spare[NBD_SPARES];
	unsigned nspares;
	size_t in_len;
	uint8_t in[NBD_IN_BYTES];
};

struct nbd_request {
	struct nbd_conn *conn;
	struct blk_req r;
	struct iovec v;
	void *data;
	uint64_t cookie, charged;
	uint16_t type, flags;
	int check;
};

void nbd_put16(uint8_t *p, uint16_t v);
void nbd_put32(uint8_t *p, uint32_t v);
void nbd_put64(uint8_t *p, uint64_t v);
uint16_t nbd_get16(const uint8_t *p);
uint32_t nbd_get32(const uint8_t *p);
uint64_t nbd_get64(const uint8_t *p);
bool nbd_reply(struct nbd_conn *c, const void *head, size_t head_len, void *data, size_t data_len,
	       uint64_t charged);
void nbd_flush_out(struct nbd_conn *c);
void nbd_conn_turn(struct nbd_conn *c); /* may free @c */
/* nbd_handshake() - take what can be taken of @p; bytes used, -1: end the connection. */
ssize_t nbd_handshake(struct nbd_conn *c, const uint8_t *p, size_t n);

#endif
