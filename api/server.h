/* server.h - what the files of api share: connections, requests to core, replies.
 *
 * Life of a request: conn.c reads and checks the head → request.c finds the route, authenticates,
 * checks query and body by the table → a handler answers from the read model, or request.c sends
 * a_request to core and the connection waits → conn_reply().
 * While a connection waits nothing is read from it, so the strings of its request live until it is
 * answered.
 * Threading: one loop. Trust: clients are hostile; core is a peer whose messages went through the
 * permit table.
 */
#ifndef API_SERVER_H
#define API_SERVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "api/http.h"
#include "api/model.h"
#include "common/err.h"
#include "common/hash.h"
#include "common/list.h"
#include "common/loop.h"
#include "common/schema.h"
#include "common/text.h"
#include "common/tls.h"
#include "common/wire.h"

#define API_BODY_MAX	  (1u << 20)
#define API_PRINCIPAL_LEN 128
#define API_HOSTS_MAX	  32
#define API_EVENTS_KEPT	  1024

struct conn;
struct pending;
struct sse;
struct console;
struct upload;
struct source;

/* All connections of one uid (or of one remote address) share a bound, so that none starves the
 * others. */
struct peer {
	struct list node;
	uint64_t key;
	unsigned count;
	struct list idle; /* its connections that wait for a request, longest first */
};

/* the bearer token that something was allowed by: when it ends, so does what goes on */
struct token_ref {
	char id[37];	    /* "": none */
	int64_t expires_ms; /* wall clock */
};

enum conn_state {
	CONN_HANDSHAKE, /* TLS */
	CONN_HEAD,	/* idle or within a head */
	CONN_BODY,
	CONN_WAIT,   /* core or a waiter will answer */
	CONN_UPLOAD, /* the body goes to a file */
	CONN_SOURCE, /* a file goes to the client */
	CONN_SSE,
	CONN_CONSOLE, /* WebSocket */
	CONN_CLOSING, /* what is in `out` still goes, then the end */
};

struct waiter {
	struct list node; /* of api->waiters */
	uint64_t deadline_ns;
	bool on_guest; /* else on an operation */
	char id[128];
	char state[24];
	char location[160];
};

struct conn {
	struct api *api;
	struct list node;      /* of api->conns */
	struct list idle_node; /* of peer->idle */
	struct peer *peer;
	struct loop_fd w;
	int fd;
	uint32_t events;
	struct tls *tls;
	bool handshake_seen;
	uid_t uid; /* (uid_t)-1 over TCP */
	/* who asks: of the connection as such (kernel, certificate); then of the request at hand, where
	 * a token may stand for somebody else */
	enum role conn_role, role;
	char conn_principal[API_PRINCIPAL_LEN], principal[API_PRINCIPAL_LEN];
	struct token_ref token; /* that the request at hand came with */
	enum conn_state state;
	uint64_t deadline_ns; /* 0: none */
	bool dead, in_event;

	char *in;
	size_t in_len, in_cap, scanned;
	struct text out;
	size_t out_off;

	char *head;
	size_t head_cap;
	struct http_req req;
	const struct schema_route *route;
	const char *name; /* the {parameter} of the path, or "" */
	char *body;
	size_t body_len, body_cap;
	bool keep; /* the connection goes on after this reply */
	uint64_t start_ns;

	struct pending *pending;
	struct waiter waiter;
	struct sse *sse;
	struct console *console;
	struct upload *upload;
	struct source *source;
};

struct api_counters {
	uint64_t requests, refused, by_class[6], accepted, evicted, turned_away, bytes_in,
	    bytes_out, events, ws, uploads;
	uint64_t latency_ns_sum;
};

struct api {
	struct loop *loop;
	struct wire_conn *core, *priv;
	struct model *model;
	bool synced, core_lost;
	char boot[17]; /* names this process in list ETags */
	struct loop_fd listen_w, listen_tls_w;
	struct loop_timer tick;
	struct tls_ctx *tls;
	struct list conns, dead, peers, waiters, sse_list, pendings, tickets;
	unsigned conn_count, conn_max, peer_max, ticket_count;
	uint32_t next_id;
	char *hosts[API_HOSTS_MAX];
	unsigned host_count;
	uid_t own_uid;
	gid_t gid_admin, gid_operator, gid_viewer; /* (gid_t)-1: none */
	uint64_t max_upload;
	uint64_t now_ns;	       /* of the current event */
	char *events[API_EVENTS_KEPT]; /* ring by seq */
	uint64_t event_seq[API_EVENTS_KEPT], last_seq;
	struct text put_parts; /* of an a_put in several messages */
	enum role cert_role; /* of a verified client certificate that cert_clients does not name */
	char cert_clients[1024]; /* "COMMONNAME:ROLE, ..." */
	bool user_mode;
	uint64_t refusals_second; /* bound on lines about refusals */
	unsigned refusals_logged;
	char *openapi;
	size_t openapi_len;
	struct api_counters n;
	int exit_status;
};

/* ---- conn.c ---- */
void conn_accept(struct api *a, int listen_fd, bool tls);
/* identify.c: who is at the other end of the unix socket, or of the TLS session */
int identify_unix(struct api *a, struct conn *c);
void identify_tls(struct api *a, struct conn *c);
/* what goes on by the token @id ends now */
void conn_token_gone(struct api *a, const char *id);
void conn_tick(struct api *a); /* deadlines, once a second */
void conn_reap(struct api *a);
void conn_close(struct conn *c);
/* queue bytes; they go out when the event is over or the socket takes them */
void conn_flush(struct conn *c);
size_t conn_unsent(const struct conn *c);
long conn_recv(struct conn *c, void *buf, size_t len);
long conn_send(struct conn *c, const void *buf, size_t len);
void conn_events(struct conn *c, uint32_t events);
/* the request is answered: next one, or the end */
void conn_done(struct conn *c);
/* go on with what has arrived, after an answer from outside the connection's own event; harmless
 * within it */
void conn_resume(struct conn *c);
void conn_continue(struct conn *c); /* "100 Continue" where the client waits for it */

/* ---- reply.c ---- */
/* head of a reply; @len -1: no Content-Length (stream until close or chunked by @extra). @extra:
 * header lines with CRLF, or NULL */
void reply_head(struct conn *c, unsigned status, const char *type, int64_t len, const char *extra);
void conn_reply(struct conn *c, unsigned status, const char *type, const char *extra,
		const void *body, size_t len);
void conn_reply_json(struct conn *c, unsigned status, const char *extra, const char *json,
		     size_t len);
struct problem {
	unsigned status;
	const char *code, *detail, *hint, *field, *op;
};
void conn_problem(struct conn *c, const struct problem *p);
void conn_refuse(struct conn *c, unsigned status, const char *code, const char *hint,
		 const char *fmt, ...) __attribute__((format(printf, 5, 6)));
void problem_json(struct text *t, const struct problem *p);

/* ---- request.c ---- */
void request_head(struct conn *c);		/* the head is parsed: decide how to go on */
void request_complete(struct conn *c);		/* the body is there too */
uint64_t request_wait_ms(const struct conn *c); /* of Prefer: wait=SECONDS */

/* ---- core.c ---- */
typedef void pending_fn(struct conn *c, struct pending *p);
struct pending {
	struct list node;
	uint32_t id;
	struct conn *c; /* NULL: the client is gone */
	pending_fn *done;
	uint64_t deadline_ns;
	/* the reply */
	unsigned status;
	int64_t revision;
	struct token_ref token; /* of a_authed; then revision is the role, location the principal */
	int fd;
	char code[48], detail[400], hint[200], field[128], op[37], location[256];
	struct text body;
};
int core_start(struct api *a, int sock);
/* core_request() - @done runs when the reply is whole, or with status 503/504 when it will not
 * come. 0 or -errno. */
int core_request(struct conn *c, const struct schema_route *route, const char *sub,
		 const char *body, size_t len, pending_fn *done, uint64_t timeout_ns);
void core_abandon(struct pending *p);
void core_free_pending(struct pending *p);
void core_tick(struct api *a);
int core_auth(struct conn *c, const char *token);
int core_events_since(struct conn *c, uint64_t seq);
void core_notify(struct api *a, const struct schema_route *route, const char *name, const char *sub,
		 const char *principal, enum role role, const char *body);
/* common end of a request that core answered */
void core_reply_done(struct conn *c, struct pending *p);

/* ---- handlers ---- */
void handle_cached(struct conn *c);
void handle_wait_guest(struct conn *c);
void handle_wait_op(struct conn *c, const char *op, const char *location, uint64_t wait_ms);
void wait_notify(struct api *a, const struct schema_object *kind, const struct model_obj *o);
void wait_tick(struct api *a);
void handle_healthz(struct conn *c);
void handle_version(struct conn *c);
int openapi_build(struct text *t);
/* @core: the counters core sent, a JSON object; empty where it did not answer */
void metrics_add(struct api *a, const char *core, size_t core_len, struct text *t);

/* ---- sse.c ---- */
void sse_start(struct conn *c);
void sse_event(struct api *a, uint64_t seq, const char *json, size_t len); /* live, from core */
void sse_replayed(struct conn *c, uint64_t seq, const char *json, size_t len);
void sse_replay_end(struct conn *c);
void sse_tick(struct api *a);
void sse_free(struct conn *c);

/* ---- source.c: a file to the client ---- */
/* takes fd. @tail_lines: the last lines of a log, 0 all that it kept; -1 no log, but a file as it is */
void source_start(struct conn *c, int fd, const char *type, bool follow, long tail_lines);
void source_writable(struct conn *c);
void source_free(struct conn *c);

/* ---- upload.c ---- */
void upload_start(struct conn *c);
void upload_readable(struct conn *c);
void upload_free(struct conn *c);

/* ---- console.c ---- */
void console_ticket(struct conn *c);
void console_start(struct conn *c);
void console_event(struct conn *c, uint32_t events);
void console_free(struct conn *c);
void console_tick(struct api *a);
void console_token_gone(struct api *a, const char *id); /* tickets made with it */

#endif
