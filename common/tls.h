/* tls.h - TLS 1.3 over a non-blocking socket, by GnuTLS, which is loaded only when a listener or a
 * client asks for it. */
#ifndef COMMON_TLS_H
#define COMMON_TLS_H

#include <stdbool.h>
#include <stddef.h>

struct err;
struct tls_ctx;
struct tls;

/* tls_load() - load the library now, before paths and executable mappings are given up; else it is
 * loaded by the first call below. */
int tls_load(struct err *e);
/* PEM texts, not paths: the roles that speak TLS open no files. @client_ca: NULL: no client
 * certificates. */
struct tls_ctx *tls_server_new(const char *cert_pem, const char *key_pem, const char *client_ca_pem,
			       struct err *e);
/* @ca_pem: NULL: the system's. @cert_pem, @key_pem: a client certificate, or NULL. */
struct tls_ctx *tls_client_new(const char *ca_pem, const char *cert_pem, const char *key_pem,
			       struct err *e);
void tls_ctx_free(struct tls_ctx *c);

/* @host: the name the certificate must carry (client); NULL on the server. The fd stays the
 * caller's. */
struct tls *tls_open(struct tls_ctx *c, int fd, const char *host);
void tls_free(struct tls *t);
/* tls_handshake() - 0 done; -EAGAIN call again when the socket is ready; other -errno refused, with
 * @e. */
int tls_handshake(struct tls *t, struct err *e);
bool tls_wants_write(struct tls *t);
/* as recv(2), send(2): bytes, 0 at the end, -EAGAIN, -errno */
long tls_recv(struct tls *t, void *buf, size_t len);
long tls_send(struct tls *t, const void *buf, size_t len);
bool tls_pending(struct tls *t); /* decrypted bytes wait: the socket will not say so */
/* common name of the verified peer certificate; false where there is none */
bool tls_peer_name(struct tls *t, char *buf, size_t len);
void tls_bye(struct tls *t); /* close_notify, best effort */

#endif
