/* api.c - the api role: set-up, settings, the loop.
 *
 * priv's first message brings the socket to core, the listening sockets and the settings; then this
 * process needs no file, no device and no name service any more. It ends when priv or core goes
 * away: priv starts it again, and clients come back.
 */
#include "api/api.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/server.h"
#include "common/log.h"
#include "common/units.h"
#include "vmd/proto.h"

#define API_CONNS     4096
#define API_FDS_SPARE 128

/* ---- settings ---- */

static bool api_setting(const char *settings, const char *key, char *out, size_t len)
{
	size_t n = strlen(key);

	for (const char *line = settings; *line;) {
		size_t l = strcspn(line, "\n");

		if (l > n && !strncmp(line, key, n) && line[n] == '=') {
			size_t v = l - n - 1;

			snprintf(out, len, "%.*s", (int)v, line + n + 1);
			return v > 0;
		}
		line += l + (line[l] == '\n');
	}
	*out = '\0';
	return false;
}

/* a group's number, as priv looked it up; none: (gid_t)-1 */
static gid_t api_group(const char *settings, const char *key)
{
	char number[16], *end;
	unsigned long gid;

	if (!api_setting(settings, key, number, sizeof(number)))
		return (gid_t)-1;
	gid = strtoul(number, &end, 10);
	return *end || gid >= (gid_t)-1 ? (gid_t)-1 : (gid_t)gid;
}

static void api_host_add(struct api *a, const char *name)
{
	if (*name && a->host_count < API_HOSTS_MAX) {
		a->hosts[a->host_count] = strdup(name);
		a->host_count += a->hosts[a->host_count] != NULL;
	}
}

static void api_hosts(struct api *a, const char *settings)
{
	char buf[512], host[256] = "", *save = NULL;

	api_host_add(a, "localhost");
	api_host_add(a, "127.0.0.1");
	api_host_add(a, "[::1]");
	api_host_add(a, "vmd");
	if (gethostname(host, sizeof(host) - 1) == 0)
		api_host_add(a, host);
	/* the address that it listens on, where that is one: no DNS name can pose as it */
	if (api_setting(settings, "listen", buf, sizeof(buf)) && strrchr(buf, ':')) {
		*strrchr(buf, ':') = '\0';
		if (strcmp(buf, "0.0.0.0") && strcmp(buf, "[::]") && strcmp(buf, "*"))
			api_host_add(a, buf);
	}
	api_setting(settings, "host_allow", buf, sizeof(buf));
	for (char *h = strtok_r(buf, ", ", &save); h; h = strtok_r(NULL, ", ", &save))
		api_host_add(a, h);
}

static char *api_pem(struct proto_bytes b)
{
	return b.len ? strndup((const char *)b.p, b.len) : NULL;
}

static int api_tls(struct api *a, const struct msg_s_setup *s)
{
	char *cert = api_pem(s->tls_cert), *key = api_pem(s->tls_key), *ca = api_pem(s->tls_ca);
	struct err e = { 0 };

	if (!cert || !key || (s->tls_ca.len && !ca))
		log_error("TLS listener: no certificate and key came with the socket");
	else if (!(a->tls = tls_server_new(cert, key, ca, &e)))
		log_error("TLS listener: %s", e.detail);
	free(cert);
	if (key)
		explicit_bzero(key, strlen(key));
	free(key);
	free(ca);
	return a->tls ? 0 : -EINVAL;
}

/* as many connections as descriptors allow, less what else is open */
static void api_limits(struct api *a)
{
	struct rlimit r;

	a->conn_max = API_CONNS;
	if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
		r.rlim_cur = r.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &r) < 0)
			getrlimit(RLIMIT_NOFILE, &r);
		if (r.rlim_cur < API_CONNS + API_FDS_SPARE)
			a->conn_max = r.rlim_cur > 2 * API_FDS_SPARE
					  ? (unsigned)r.rlim_cur - API_FDS_SPARE
					  : API_FDS_SPARE;
	}
	a->peer_max = a->conn_max / 4;
}

static void api_configure(struct api *a, const char *settings)
{
	uint8_t raw[8];
	char buf[32];

	a->own_uid = geteuid();
	a->gid_admin = api_group(settings, "admin_gid");
	a->gid_operator = api_group(settings, "operator_gid");
	a->gid_viewer = api_group(settings, "viewer_gid");
	a->cert_role = ROLE_VIEWER;
	if (api_setting(settings, "tls_client_role", buf, sizeof(buf)))
		a->cert_role = !strcmp(buf, "admin")	  ? ROLE_ADMIN
			       : !strcmp(buf, "operator") ? ROLE_OPERATOR
			       : !strcmp(buf, "viewer")	  ? ROLE_VIEWER
							  : ROLE_NONE;
	api_setting(settings, "tls_clients", a->cert_clients, sizeof(a->cert_clients));
	a->max_upload = 1ULL << 40;
	if (api_setting(settings, "max_upload", buf, sizeof(buf)))
		units_parse_size(buf, &a->max_upload);
	api_hosts(a, settings);
	api_limits(a);
	if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
		abort();
	for (unsigned i = 0; i < sizeof(raw); i++)
		snprintf(a->boot + 2 * i, 3, "%02x", raw[i]);
}

/* ---- loop ---- */

static void api_on_listen(void *arg, int fd, uint32_t events)
{
	conn_accept(arg, fd, false);
}

static void api_on_listen_tls(void *arg, int fd, uint32_t events)
{
	conn_accept(arg, fd, true);
}

static void api_on_tick(void *arg)
{
	struct api *a = arg;

	a->now_ns = clock_mono_ns();
	core_tick(a);
	wait_tick(a);
	sse_tick(a);
	console_tick(a);
	conn_tick(a);
	loop_fd_mod(&a->listen_w, EPOLLIN);
	loop_fd_mod(&a->listen_tls_w, EPOLLIN);
	loop_timer_after(&a->tick, NS_PER_S);
}

static void api_on_priv(void *arg, struct wire_conn *c, struct wire_buf *b)
{
	log_debug("message 0x%04x from priv passed over", b->type);
}

static void api_on_priv_closed(void *arg, struct wire_conn *c, int why)
{
	struct api *a = arg;

	wire_conn_free(a->priv);
	a->priv = NULL;
	loop_stop(a->loop);
}

static void api_on_signal(void *arg, int signo)
{
	loop_stop(((struct api *)arg)->loop);
}

static struct api *api_new(void)
{
	struct api *a = calloc(1, sizeof(*a));
	struct text t = { 0 };

	if (!a)
		return NULL;
	a->loop = loop_new();
	a->model = model_new();
	a->listen_w.fd = a->listen_tls_w.fd = -1;
	list_init(&a->conns);
	list_init(&a->dead);
	list_init(&a->peers);
	list_init(&a->waiters);
	list_init(&a->sse_list);
	list_init(&a->pendings);
	list_init(&a->tickets);
	a->now_ns = clock_mono_ns();
	if (!a->loop || !a->model || openapi_build(&t) < 0) {
		log_error("out of memory");
		free(a);
		return NULL;
	}
	a->openapi = t.s;
	a->openapi_len = t.len;
	loop_timer_init(a->loop, &a->tick, api_on_tick, a);
	return a;
}

static void api_free(struct api *a)
{
	while (!list_empty(&a->conns))
		conn_close(list_first(&a->conns, struct conn, node));
	conn_reap(a);
	while (!list_empty(&a->pendings))
		core_free_pending(list_first(&a->pendings, struct pending, node));
	a->now_ns = UINT64_MAX;
	console_tick(a);
	for (unsigned i = 0; i < API_EVENTS_KEPT; i++)
		free(a->events[i]);
	for (unsigned i = 0; i < a->host_count; i++)
		free(a->hosts[i]);
	wire_conn_free(a->core);
	wire_conn_free(a->priv);
	tls_ctx_free(a->tls);
	model_free(a->model);
	text_free(&a->put_parts);
	free(a->openapi);
	loop_free(a->loop);
	free(a);
}

static int api_listen(struct api *a, struct msg_s_setup *s)
{
	int r = fd_set_nonblock(s->listen);

	if (!r)
		r = loop_fd_add(a->loop, &a->listen_w, s->listen, EPOLLIN, api_on_listen, a);
	if (r < 0) {
		log_error("API socket: %s", strerror(-r));
		return r;
	}
	if (s->listen_tls >= 0 && api_tls(a, s) == 0) {
		r = fd_set_nonblock(s->listen_tls);
		if (!r)
			r = loop_fd_add(a->loop, &a->listen_tls_w, s->listen_tls, EPOLLIN,
					api_on_listen_tls, a);
		if (r < 0)
			log_error("TLS listener: %s",
				  strerror(-r)); /* the unix socket still serves */
	}
	return 0;
}

/* @s points into @b */
static int api_setup(int setup_fd, struct msg_s_setup *s, struct wire_buf *b)
{
	int r = wire_recv(setup_fd, b, 4);

	if (r == 1)
		r = proto_permit(b, PROTO_PRIV, PROTO_API, PROTO_NEW);
	else
		r = r ? r : -EPIPE;
	if (!r)
		r = msg_s_setup_decode(s, b);
	if (!r && (s->peer < 0 || s->listen < 0)) {
		msg_s_setup_close(s);
		r = -EPROTO;
	}
	return r;
}

static void api_forget(struct wire_buf *b)
{
	if (b->data)
		explicit_bzero(b->data, b->len);
	wire_buf_clear(b);
}

int api_main(int setup_fd)
{
	struct msg_s_setup *s = calloc(1, sizeof(*s));
	struct api *a = api_new();
	struct wire_buf b = { 0 };
	int r, status = 1;

	signal(SIGPIPE, SIG_IGN);
	r = s && a ? api_setup(setup_fd, s, &b) : -ENOMEM;
	if (r < 0) {
		log_error("no set-up from priv: %s", strerror(-r));
		goto out;
	}
	a->user_mode = s->user_mode != 0;
	api_configure(a, s->settings);
	r = api_listen(a, s);
	api_forget(&b); /* the key is GnuTLS's alone now */
	if (r < 0)
		goto out;
	r = core_start(a, s->peer);
	if (r < 0) {
		log_error("no connection to core: %s", strerror(-r));
		goto out;
	}
	a->priv = wire_conn_new(a->loop, setup_fd, 4, api_on_priv, api_on_priv_closed, a);
	loop_signal(a->loop, SIGTERM, api_on_signal, a);
	loop_timer_after(&a->tick, NS_PER_S);
	log_info("serving (%u connections at most, %u for one user)", a->conn_max, a->peer_max);
	r = loop_run(a->loop);
	status = r < 0 || a->core_lost;
out:
	api_forget(&b);
	if (a)
		api_free(a);
	free(s);
	return status;
}
