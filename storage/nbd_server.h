/* nbd_server.h - disks and snapshots over NBD, on a loop.
 *
 * The listening socket (unix, mode 0600, made by someone allowed to) and the open graphs come from
 * the caller and stay the caller's. Fixed newstyle handshake; structured replies, block status
 * (base:allocation, qemu:dirty-bitmap:NAME), FUA, flush, trim, write-zeroes, multi-conn, list and
 * info; no TLS.
 * Threading: everything on the loop's thread; disk I/O on the graphs' workers.
 * Trust: clients are hostile; connections, handshake time and memory in flight are capped.
 */
#ifndef STORAGE_NBD_SERVER_H
#define STORAGE_NBD_SERVER_H

#include "storage/blockdev.h"

struct nbd_export {
	const char *name;	 /* "" = the default export; copied */
	const char *description; /* or NULL; copied */
	struct blockdev *bd;	 /* outlives the server */
	bool read_only;
	/* dirty bitmaps shown as qemu:dirty-bitmap:NAME; NULL-terminated or NULL; copied; at most
	 * NBD_BITMAPS_MAX */
	const char *const *bitmaps;
};

#define NBD_BITMAPS_MAX 63

struct nbd_limits {
	unsigned connections;  /* 0 = 16 */
	unsigned handshake_ms; /* 0 = 10,000 */
	unsigned requests;     /* in flight, a connection; 0 = 128 */
	uint64_t bytes;	       /* in flight, a connection; 0 = 64 MiB */
};

struct nbd_server;
typedef void nbd_idle_fn(void *arg); /* the last client has gone */

struct nbd_server *nbd_server_new(struct loop *l, int listen_fd, const struct nbd_export *exports,
				  unsigned n, const struct nbd_limits *limits, struct err *e);
void nbd_server_on_idle(struct nbd_server *s, nbd_idle_fn *fn, void *arg);
unsigned nbd_server_clients(const struct nbd_server *s);
/* nbd_server_serve() - serve an already connected socket (taken), as if it had been accepted. */
int nbd_server_serve(struct nbd_server *s, int sock);
/* nbd_server_free() - ends all connections; runs the loop until their requests are done. */
void nbd_server_free(struct nbd_server *s);

#endif
