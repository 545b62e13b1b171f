/* tls.c - see tls.h. GnuTLS is opened by dlopen(3) at first use: most daemons serve only the unix
 * socket and most commands of vmctl use only that, and loading it costs each process some
 * milliseconds and megabytes. Only TLS 1.3 is offered. Threading: one thread.
 */
#include "common/tls.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/err.h"

/* clang-format off */
#define TLS_FUNCTIONS(X) \
	X(certificate_allocate_credentials) X(certificate_free_credentials) \
	X(certificate_set_x509_key_mem) \
	X(certificate_set_x509_trust_mem) X(certificate_set_x509_system_trust) X(init) X(deinit) \
	X(priority_set_direct) \
	X(credentials_set) X(transport_set_int2) X(handshake) X(record_recv) X(record_send) \
	X(record_get_direction) \
	X(record_check_pending) X(bye) X(strerror) X(error_is_fatal) \
	X(certificate_server_set_request) \
	X(session_set_verify_cert) X(server_name_set) X(certificate_get_peers) X(x509_crt_init) \
	X(x509_crt_import) \
	X(x509_crt_get_dn_by_oid) X(x509_crt_deinit) X(certificate_verify_peers)
/* clang-format on */

static struct {
	void *lib;
#define X(f) __typeof__(&gnutls_##f) f;
	TLS_FUNCTIONS(X)
#undef X
} gt;

struct tls_ctx {
	gnutls_certificate_credentials_t cred;
	bool server, ask_client;
};

struct tls {
	gnutls_session_t s;
	struct tls_ctx *ctx;
};

int tls_load(struct err *e)
{
	void *lib;

	if (gt.lib)
		return 0;
	lib = dlopen("libgnutls.so.30", RTLD_NOW | RTLD_LOCAL);
	if (!lib) {
		err_set(e, ENOTSUP, "tls-missing",
			"TLS needs the library libgnutls.so.30, which is not here");
		err_hint(e, "apt-get install libgnutls30");
		return -ENOTSUP;
	}
#define X(f) \
	*(void **)&gt.f = dlsym(lib, "gnutls_" #f); \
	if (!gt.f) { \
		dlclose(lib); \
		return err_set(e, ENOTSUP, "tls-missing", \
			       "libgnutls.so.30 is too old (no gnutls_" #f ")"); \
	}
	TLS_FUNCTIONS(X)
#undef X
	gt.lib = lib;
	return 0;
}

static struct tls_ctx *tls_ctx_new(const char *cert, const char *key, struct err *e)
{
	struct tls_ctx *c;
	int r;

	if (tls_load(e) < 0)
		return NULL;
	c = calloc(1, sizeof(*c));
	if (!c || gt.certificate_allocate_credentials(&c->cred) < 0) {
		free(c);
		err_set(e, ENOMEM, "no-memory", "out of memory");
		return NULL;
	}
	if (cert) {
		gnutls_datum_t cd = { (unsigned char *)cert, (unsigned)strlen(cert) },
			       kd = { (unsigned char *)key, (unsigned)strlen(key) };

		r = gt.certificate_set_x509_key_mem(c->cred, &cd, &kd, GNUTLS_X509_FMT_PEM);
		if (r < 0) {
			err_set(e, EINVAL, "tls-certificate",
				"the TLS certificate or key cannot be used: %s", gt.strerror(r));
			tls_ctx_free(c);
			return NULL;
		}
	}
	return c;
}

static int tls_trust(struct tls_ctx *c, const char *ca, struct err *e)
{
	gnutls_datum_t d = { (unsigned char *)ca, (unsigned)strlen(ca) };
	int r = gt.certificate_set_x509_trust_mem(c->cred, &d, GNUTLS_X509_FMT_PEM);

	return r > 0 ? 0
		     : err_set(e, EINVAL, "tls-ca", "the CA certificates cannot be read: %s",
			       r ? gt.strerror(r) : "none found");
}

struct tls_ctx *tls_server_new(const char *cert_pem, const char *key_pem, const char *client_ca_pem,
			       struct err *e)
{
	struct tls_ctx *c = tls_ctx_new(cert_pem, key_pem, e);

	if (!c)
		return NULL;
	c->server = true;
	if (client_ca_pem && tls_trust(c, client_ca_pem, e) < 0) {
		tls_ctx_free(c);
		return NULL;
	}
	c->ask_client = client_ca_pem != NULL;
	return c;
}

struct tls_ctx *tls_client_new(const char *ca_pem, const char *cert_pem, const char *key_pem,
			       struct err *e)
{
	struct tls_ctx *c = tls_ctx_new(cert_pem, key_pem, e);

	if (!c)
		return NULL;
	if (!ca_pem)
		gt.certificate_set_x509_system_trust(c->cred);
	else if (tls_trust(c, ca_pem, e) < 0) {
		tls_ctx_free(c);
		return NULL;
	}
	return c;
}

void tls_ctx_free(struct tls_ctx *c)
{
	if (!c)
		return;
	gt.certificate_free_credentials(c->cred);
	free(c);
}

static bool tls_is_address(const char *host)
{
	unsigned char a[sizeof(struct in6_addr)];

	return inet_pton(AF_INET, host, a) == 1 || inet_pton(AF_INET6, host, a) == 1;
}

struct tls *tls_open(struct tls_ctx *c, int fd, const char *host)
{
	struct tls *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->ctx = c;
	if (gt.init(&t->s, (c->server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK |
			       GNUTLS_NO_SIGNAL) < 0) {
		free(t);
		return NULL;
	}
	if (gt.priority_set_direct(t->s, "NORMAL:-VERS-ALL:+VERS-TLS1.3", NULL) < 0 ||
	    gt.credentials_set(t->s, GNUTLS_CRD_CERTIFICATE, c->cred) < 0) {
		tls_free(t);
		return NULL;
	}
	if (c->server && c->ask_client)
		gt.certificate_server_set_request(t->s, GNUTLS_CERT_REQUEST);
	if (!c->server) {
		if (!tls_is_address(host)) /* RFC 6066, 3: names only */
			gt.server_name_set(t->s, GNUTLS_NAME_DNS, host, strlen(host));
		gt.session_set_verify_cert(t->s, host, 0);
	}
	gt.transport_set_int2(t->s, fd, fd);
	return t;
}

void tls_free(struct tls *t)
{
	if (!t)
		return;
	gt.deinit(t->s);
	free(t);
}

static long tls_result(long r)
{
	if (r >= 0)
		return r;
	if (r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED)
		return -EAGAIN;
	return r == GNUTLS_E_PREMATURE_TERMINATION ? 0 : -ECONNRESET;
}

int tls_handshake(struct tls *t, struct err *e)
{
	int r;

	do
		r = gt.handshake(t->s);
	while (r < 0 && r != GNUTLS_E_AGAIN && !gt.error_is_fatal(r));
	if (r == GNUTLS_E_AGAIN)
		return -EAGAIN;
	if (r == 0)
		return 0;
	return err_set(e, ECONNREFUSED, "tls-handshake", "TLS handshake failed: %s",
		       gt.strerror(r));
}

bool tls_wants_write(struct tls *t)
{
	return gt.record_get_direction(t->s) == 1;
}

long tls_recv(struct tls *t, void *buf, size_t len)
{
	long r;

	do /* key updates and tickets are told as warnings */
		r = gt.record_recv(t->s, buf, len);
	while (r < 0 && r != GNUTLS_E_AGAIN && r != GNUTLS_E_INTERRUPTED &&
	       !gt.error_is_fatal((int)r));
	return tls_result(r);
}

long tls_send(struct tls *t, const void *buf, size_t len)
{
	return tls_result(gt.record_send(t->s, buf, len));
}

bool tls_pending(struct tls *t)
{
	return gt.record_check_pending(t->s) > 0;
}

bool tls_peer_name(struct tls *t, char *buf, size_t len)
{
	/* signed by our authority, in time, and for being a client (where it says for what) */
	gnutls_typed_vdata_st purpose = { .type = GNUTLS_DT_KEY_PURPOSE_OID,
					  .data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT };
	unsigned count = 0, status = 0;
	const gnutls_datum_t *list = gt.certificate_get_peers(t->s, &count);
	gnutls_x509_crt_t crt;
	bool ok;

	if (!list || !count || gt.certificate_verify_peers(t->s, &purpose, 1, &status) < 0 ||
	    status)
		return false;
	if (gt.x509_crt_init(&crt) < 0)
		return false;
	ok = gt.x509_crt_import(crt, &list[0], GNUTLS_X509_FMT_DER) >= 0 &&
	     gt.x509_crt_get_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, 0, buf, &len) >= 0 &&
	     strlen(buf) == len; /* a name with a NUL in it is a trick */
	gt.x509_crt_deinit(crt);
	return ok;
}

void tls_bye(struct tls *t)
{
	gt.bye(t->s, GNUTLS_SHUT_WR);
}
