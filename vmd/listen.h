/* listen.h - what the daemon listens on, made as root before any role runs: the API socket, the TCP
 * socket for TLS, the texts of certificate, key and authority. */
#ifndef VMD_LISTEN_H
#define VMD_LISTEN_H

#include "common/err.h"
#include "vmd/config.h"

struct vmd_listen {
	int api_fd, tls_fd;    /* tls_fd -1: no TCP */
	char *cert, *key, *ca; /* PEM; "" where there is none */
	char address[80];      /* of the TCP socket, as bound */
};

/* listen_check() - the files and the address of the TLS listener are good. 0 at once where none is
 * wanted. Errors name key, file, cause and way out. */
int listen_check(const struct vmd_config *c, struct err *e);
/* listen_open() - @l filled; on failure nothing stays open. Descriptors and texts live as long as the
 * daemon. */
int listen_open(struct vmd_listen *l, const struct vmd_config *c, struct err *e);

/* listen_lock() - the daemon's own lock, by its descriptor; false after a second of trying. */
bool listen_lock(int fd);

#endif
