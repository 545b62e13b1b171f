/* listen.c - see listen.h.
 *
 * The api role has no path and no right to bind, so whatever it needs of either is made here, by root,
 * once: both listening sockets, and the PEM files as texts, which travel to api in its s_setup. They
 * are read when the daemon starts; a renewed certificate is taken up by the next start (guests go on).
 * Whether certificate, key and authority fit each other is asked of GnuTLS in a child process that
 * ends with the answer: its parsers never run in the process that stays root.
 * Trust: the files are the administrator's.
 */
#include "vmd/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/tls.h"
#include "common/text.h"

/* what s_setup carries of each (vmd/proto.def) */
#define LISTEN_CERT_MAX 16384u
#define LISTEN_KEY_MAX	8192u
#define LISTEN_CA_MAX	24576u
#define LISTEN_BACKLOG	1024

/* ---- PEM files ---- */

/* a PEM file's text; NULL with @e. "" where @path is empty. */
static char *listen_read_pem(const char *name, const char *path, size_t max, bool secret,
			     struct err *e)
{
	_cleanup_close_ int fd = *path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
	char *text = calloc(1, max + 2);
	struct stat st;
	long n;

	if (!text) {
		err_set(e, ENOMEM, "no-memory", "out of memory");
		return NULL;
	}
	if (!*path)
		return text;
	if (fd < 0 || fstat(fd, &st) < 0) {
		err_set(e, errno, "tls-file", "%s: %s: %s", name, path, strerror(errno));
		err_hint(e, "name a PEM file that is there, or take listen out of vmd.conf");
		goto fail;
	}
	if (!S_ISREG(st.st_mode) || st.st_size > (off_t)max) {
		err_set(e, EFBIG, "tls-file", "%s: %s is not a file of at most %zu bytes", name,
			path, max);
		err_hint(e, "leave only what this daemon needs in it");
		goto fail;
	}
	n = io_read_full(fd, text, max + 1);
	if (n < 0 || !strstr(text, "-----BEGIN ") || strlen(text) != (size_t)n) {
		err_set(e, EINVAL, "tls-file", "%s: %s holds no PEM text", name, path);
		err_hint(e, "a PEM file has a line \"-----BEGIN ...\"; openssl x509 -inform der "
			    "converts");
		goto fail;
	}
	if (secret && (st.st_mode & 077))
		log_warn("%s: %s can be read by others than its owner; chmod 600 %s", name, path,
			 path);
	return text;
fail:
	explicit_bzero(text, max + 1);
	free(text);
	return NULL;
}

static void listen_free_texts(struct vmd_listen *l)
{
	if (l->key)
		explicit_bzero(l->key, strlen(l->key));
	free(l->cert);
	free(l->key);
	free(l->ca);
	l->cert = l->key = l->ca = NULL;
}

/* child: the answer is a struct err's code, detail and hint through the pipe */
static void listen_try_child(const struct vmd_listen *l, int fd)
{
	struct err e = { 0 };
	struct tls_ctx *t = tls_server_new(l->cert, l->key, *l->ca ? l->ca : NULL, &e);

	tls_ctx_free(t);
	_exit(io_write_full(fd, &e, sizeof(e)) == (long)sizeof(e) ? 0 : 1);
}

/* do the texts make a TLS server? */
static int listen_try(const struct vmd_listen *l, const struct vmd_config *c, struct err *e)
{
	struct err said = { 0 };
	int p[2], status;
	pid_t pid;
	long n;

	if (pipe2(p, O_CLOEXEC) < 0 || (pid = fork()) < 0)
		return err_set(e, errno, "tls-check", "TLS cannot be checked: %s", strerror(errno));
	if (pid == 0)
		listen_try_child(l, p[1]);
	close(p[1]);
	n = io_read_full(p[0], &said, sizeof(said));
	close(p[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (n != (long)sizeof(said))
		return err_set(e, EIO, "tls-check", "TLS cannot be checked: the check ended early");
	if (!said.num)
		return 0;
	if (!strcmp(said.code, "tls-ca"))
		err_set(e, EINVAL, said.code, "tls_ca %s: %s", c->tls_ca, said.detail);
	else if (!strcmp(said.code, "tls-certificate"))
		err_set(e, EINVAL, said.code, "tls_cert %s with tls_key %s: %s", c->tls_cert,
			c->tls_key, said.detail);
	else
		*e = said;
	if (!*e->hint)
		err_hint(e, !strcmp(said.code, "tls-ca")
				? "tls_ca is the PEM certificate of the authority that signs "
				  "clients' certificates"
				: "tls_cert is the server's PEM certificate (its chain behind it), "
				  "tls_key the key made with it");
	return -EINVAL;
}

static int listen_texts(struct vmd_listen *l, const struct vmd_config *c, struct err *e)
{
	l->cert = listen_read_pem("tls_cert", c->tls_cert, LISTEN_CERT_MAX, false, e);
	if (l->cert)
		l->key = listen_read_pem("tls_key", c->tls_key, LISTEN_KEY_MAX, true, e);
	if (l->key)
		l->ca = listen_read_pem("tls_ca", c->tls_ca, LISTEN_CA_MAX, false, e);
	if (!l->ca || (*c->listen && listen_try(l, c, e) < 0)) {
		listen_free_texts(l);
		return -EINVAL;
	}
	return 0;
}

/* ---- sockets ---- */

/* ADDRESS:PORT, [ADDRESS]:PORT or *:PORT, all numeric: a name would be asked of the network at boot */
static int listen_address(const char *text, struct addrinfo **list, struct err *e)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV };
	const char *colon = strrchr(text, ':');
	char host[128];
	size_t n = colon ? (size_t)(colon - text) : 0;

	if (n && n < sizeof(host) && colon[1]) {
		bool bracket = text[0] == '[' && text[n - 1] == ']';

		memcpy(host, text + bracket, n - 2 * bracket);
		host[n - 2 * bracket] = '\0';
		if ((bracket || !strchr(host, ':')) &&
		    getaddrinfo(strcmp(host, "*") ? host : NULL, colon + 1, &hints, list) == 0)
			return 0;
	}
	err_set(e, EINVAL, "config-bad-value", "listen: \"%.100s\" is not ADDRESS:PORT", text);
	err_hint(e, "as 0.0.0.0:8443 or [::]:8443; addresses, not names");
	return -EINVAL;
}

static int listen_tcp(struct vmd_listen *l, const struct vmd_config *c, struct err *e)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof(sa);
	struct addrinfo *a = NULL;
	char host[64], port[8];
	int one = 1, ret = listen_address(c->listen, &a, e);

	if (ret < 0)
		return ret;
	_cleanup_close_ int fd =
	    socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
		err_set(e, errno, "no-socket", "listen: %s: %s", c->listen, strerror(errno));
		err_hint(e, e->num == EADDRINUSE      ? "ss -ltnp tells who has the port"
			    : e->num == EADDRNOTAVAIL ? "ip address lists this host's addresses"
						      : "man vmd.conf, listen");
		freeaddrinfo(a);
		return -e->num;
	}
	freeaddrinfo(a);
	if (getsockname(fd, (struct sockaddr *)&sa, &len) == 0 &&
	    getnameinfo((struct sockaddr *)&sa, len, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) == 0)
		snprintf(l->address, sizeof(l->address),
			 sa.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
	l->tls_fd = take_fd(&fd);
	return 0;
}

bool listen_lock(int fd)
{
	/* a jail that was just being made holds its dead daemon's lock until it executes */
	for (unsigned i = 0; i < 100; i++) {
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			return true;
		poll(NULL, 0, 10);
	}
	return false;
}

/* Somebody answers at the socket. Is it what is left of a daemon that was killed? Its lock is free then,
 * and its api ends by itself in a moment: wait for that. */
static bool listen_dying(const struct vmd_config *c, const struct sockaddr_un *sa)
{
	char path[256];

	snprintf(path, sizeof(path), "%.240s/vmd.lock", c->run_dir);
	_cleanup_close_ int lock = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

	if (lock < 0 || !listen_lock(lock))
		return false;
	for (unsigned i = 0; i < 500; i++) {
		_cleanup_close_ int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (probe < 0 || connect(probe, (const struct sockaddr *)sa, sizeof(*sa)) < 0)
			return true;
		poll(NULL, 0, 10);
	}
	return false;
}

/* the API socket: from systemd (LISTEN_FDS, sd_listen_fds(3)), else made here. fd or -errno. */
static int listen_unix(const struct vmd_config *c, struct err *e)
{
	const char *fds = getenv("LISTEN_FDS"), *pid = getenv("LISTEN_PID");
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct stat st;

	if (fds && pid && strtol(pid, NULL, 10) == (long)getpid() && strtol(fds, NULL, 10) >= 1) {
		int domain = 0, listening = 0;
		socklen_t len = sizeof(int);

		unsetenv("LISTEN_FDS");
		unsetenv("LISTEN_PID");
		if (getsockopt(3, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || domain != AF_UNIX ||
		    getsockopt(3, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 || !listening)
			return err_set(
			    e, EINVAL, "bad-activation",
			    "the socket passed by systemd is not a listening unix socket");
		fd_set_cloexec(3);
		fd_set_nonblock(3);
		return 3;
	}
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return err_set(e, errno, "no-socket", "cannot make a socket: %s", strerror(errno));
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%.107s", c->socket);
	if (lstat(c->socket, &st) == 0 && S_ISSOCK(st.st_mode)) {
		/* somebody else's, if it answers */
		_cleanup_close_ int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (probe >= 0 && connect(probe, (struct sockaddr *)&sa, sizeof(sa)) == 0 &&
		    !listen_dying(c, &sa)) {
			err_set(e, EADDRINUSE, "already-running", "another daemon listens on %s",
				c->socket);
			err_hint(e, "use --run and --state to run a second one");
			return -EADDRINUSE;
		}
		unlink(c->socket);
	}
	mode_t old = umask(0777 & ~(mode_t)c->socket_mode);
	int ret = bind(fd, (struct sockaddr *)&sa, sizeof(sa));

	umask(old);
	if (ret < 0 || listen(fd, LISTEN_BACKLOG) < 0)
		return err_set(e, errno, "no-socket", "API socket %s: %s", c->socket,
			       strerror(errno));
	return take_fd(&fd);
}

int listen_check(const struct vmd_config *c, struct err *e)
{
	struct vmd_listen l = { .api_fd = -1, .tls_fd = -1 };
	struct addrinfo *a = NULL;

	if (!*c->listen)
		return 0;
	int ret = listen_address(c->listen, &a, e);

	if (ret < 0)
		return ret;
	freeaddrinfo(a);
	ret = listen_texts(&l, c, e);
	listen_free_texts(&l);
	return ret;
}

int listen_open(struct vmd_listen *l, const struct vmd_config *c, struct err *e)
{
	struct vmd_config none = *c;

	*l = (struct vmd_listen){ .api_fd = -1, .tls_fd = -1 };
	if (!*c->listen) /* keys of a listener that is off are not looked at */
		*none.tls_cert = *none.tls_key = *none.tls_ca = '\0';
	int ret = listen_texts(l, &none, e);

	if (ret < 0)
		return ret;
	l->api_fd = listen_unix(c, e);
	if (l->api_fd < 0 || (*c->listen && listen_tcp(l, c, e) < 0)) {
		close_fd(&l->api_fd);
		listen_free_texts(l);
		return -e->num;
	}
	if (l->tls_fd >= 0)
		log_info("the API also listens on %s (TLS 1.3)", l->address);
	return 0;
}
