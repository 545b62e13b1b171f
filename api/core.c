/* core.c - the connection to core: the read model's feed, requests and their replies, audit of what
 * api decides itself.
 * A request has an id; its connection waits, and is told when the reply is whole, is late, or core
 * is gone. Parts (`more`) are put together here, within bounds. A reply's a_put comes before it on
 * the same socket, so that a client reads its own writes.
 */
#include "api/server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/validate.h"
#include "common/log.h"
#include "common/units.h"
#include "vmd/proto.h"

#define CORE_REPLY_MAX (64u << 20)
#define CORE_PART      49152u

void core_free_pending(struct pending *p)
{
	list_del(&p->node);
	if (p->fd >= 0)
		close(p->fd);
	text_free(&p->body);
	free(p);
}

static struct pending *core_pending_new(struct api *a, struct conn *c, pending_fn *done,
					uint64_t timeout_ns)
{
	struct pending *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	if (!++a->next_id)
		a->next_id = 1;
	*p = (struct pending){ .id = a->next_id,
			       .c = c,
			       .done = done,
			       .fd = -1,
			       .deadline_ns = clock_mono_ns() + timeout_ns };
	list_add_tail(&a->pendings, &p->node);
	c->pending = p;
	return p;
}

static struct pending *core_pending_find(struct api *a, uint32_t id)
{
	list_for_each (n, &a->pendings) {
		struct pending *p = container_of(n, struct pending, node);

		if (p->id == id)
			return p;
	}
	return NULL;
}

/* the reply is as whole as it will get */
static void core_finish(struct pending *p)
{
	struct conn *c = p->c;

	if (c) {
		c->pending = NULL;
		p->done(c, p);
	}
	core_free_pending(p);
}

static void core_fail(struct pending *p, unsigned status, const char *code, const char *detail)
{
	p->status = status;
	snprintf(p->code, sizeof(p->code), "%s", code);
	snprintf(p->detail, sizeof(p->detail), "%s", detail);
	core_finish(p);
}

void core_abandon(struct pending *p)
{
	struct conn *c = p->c;

	p->c = NULL;
	if (c->api->core)
		msg_a_abandon_send(c->api->core, &(struct msg_a_abandon){ 0 }, p->id);
	/* an fd on its way must still be taken and closed: the entry stays until the reply or its
	 * deadline */
}

/* the parameters, typed by the table; they were checked */
static char *core_query(const struct conn *c)
{
	json_t *j = json_object();
	char *s;

	for (unsigned i = 0; i < c->req.queries; i++) {
		const char *key = c->req.query[i].key;
		const struct schema_field *f =
		    c->route->query ? schema_field_find(c->route->query, key) : NULL;
		struct err e = { 0 };
		char value[2048];

		if (!f || validate_query(c->route->query, key, c->req.query[i].value, value,
					 sizeof(value), &e) < 0)
			continue;
		if (f->type == ST_BOOL)
			json_object_set_new(j, key, json_boolean(*value == '1'));
		else if (f->type == ST_INT || f->type == ST_SIZE || f->type == ST_DURATION)
			json_object_set_new(j, key, json_integer(strtoll(value, NULL, 10)));
		else
			json_object_set_new(j, key, json_string(value));
	}
	s = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	return s;
}

static int64_t core_if_match(const char *h)
{
	/* "17" → 17; anything else was refused before */
	return h && *h == '"' ? strtoll(h + 1, NULL, 10) : 0;
}

int core_request(struct conn *c, const struct schema_route *route, const char *sub,
		 const char *body, size_t len, pending_fn *done, uint64_t timeout_ns)
{
	struct api *a = c->api;
	struct pending *p;
	struct msg_a_request m = { .route = route->id,
				   .role = c->role,
				   .uid = c->uid == (uid_t)-1 ? -1 : (int64_t)c->uid };
	char *query;
	size_t off = 0;
	int r = 0;

	if (!a->core)
		return -EPIPE;
	p = core_pending_new(a, c, done, timeout_ns + request_wait_ms(c) * NS_PER_MS);
	if (!p)
		return -ENOMEM;
	query = core_query(c);
	snprintf(m.principal, sizeof(m.principal), "%s", c->principal);
	snprintf(m.name, sizeof(m.name), "%s", c->name);
	snprintf(m.sub, sizeof(m.sub), "%s", sub ? sub : "");
	m.query = (struct proto_bytes){ (const uint8_t *)query, query ? strlen(query) : 0 };
	m.wait_ms = request_wait_ms(c);
	m.if_match = core_if_match(c->req.header[HTTP_IF_MATCH]);
	snprintf(m.idempotency_key, sizeof(m.idempotency_key), "%s",
		 c->req.header[HTTP_IDEMPOTENCY_KEY] ? c->req.header[HTTP_IDEMPOTENCY_KEY] : "");
	m.dry_run =
	    http_query(&c->req, "dry_run") && strcmp(http_query(&c->req, "dry_run"), "false") != 0;
	do {
		size_t n = len - off < CORE_PART ? len - off : CORE_PART;

		m.body = (struct proto_bytes){ n ? (const uint8_t *)body + off : NULL, n };
		off += n;
		m.more = off < len;
		r = msg_a_request_send(a->core, &m, p->id);
	} while (!r && off < len);
	free(query);
	if (r < 0) {
		c->pending = NULL;
		core_free_pending(p);
	}
	return r;
}

/* ---- what comes from core ---- */

static void core_on_reply(struct api *a, struct wire_buf *b)
{
	struct msg_a_reply *m = malloc(sizeof(*m));
	struct pending *p;

	if (!m || msg_a_reply_decode(m, b) < 0) {
		free(m);
		return;
	}
	p = core_pending_find(a, b->id);
	if (p && p->body.len + m->body.len <= CORE_REPLY_MAX) {
		text_addn(&p->body, (const char *)m->body.p, m->body.len);
		if (m->fd >= 0 && p->fd < 0) {
			p->fd = m->fd;
			m->fd = -1;
		}
		if (!m->more) {
			p->status = m->status ? (unsigned)m->status : 200;
			p->revision = m->revision;
			snprintf(p->code, sizeof(p->code), "%s", m->code);
			snprintf(p->detail, sizeof(p->detail), "%s", m->detail);
			snprintf(p->hint, sizeof(p->hint), "%s", m->hint);
			snprintf(p->field, sizeof(p->field), "%s", m->field);
			snprintf(p->op, sizeof(p->op), "%s", m->op);
			snprintf(p->location, sizeof(p->location), "%s", m->location);
			core_finish(p);
		}
	} else if (p) {
		core_fail(p, 502, "reply-too-large",
			  "the daemon's answer is larger than the API passes on");
	}
	msg_a_reply_close(m);
	free(m);
}

/* `result` answers what has no reply of its own, and may stand for a bare refusal */
static void core_on_result(struct api *a, struct wire_buf *b)
{
	struct msg_result *m = malloc(sizeof(*m));
	struct pending *p;

	if (!m || msg_result_decode(m, b) < 0) {
		free(m);
		return;
	}
	p = core_pending_find(a, b->id);
	if (p) {
		p->status = !m->num				  ? 200
			    : m->num == ENOENT			  ? 404
			    : m->num == EPERM || m->num == EACCES ? 403
								  : 500;
		p->revision = (int64_t)m->value;
		snprintf(p->code, sizeof(p->code), "%s", m->code);
		snprintf(p->detail, sizeof(p->detail), "%s", m->detail);
		snprintf(p->hint, sizeof(p->hint), "%s", m->hint);
		snprintf(p->location, sizeof(p->location), "%.255s", m->text);
		core_finish(p);
	}
	msg_result_close(m);
	free(m);
}

static void core_on_authed(struct api *a, struct wire_buf *b)
{
	struct msg_a_authed m;
	struct pending *p;

	if (msg_a_authed_decode(&m, b) < 0)
		return;
	p = core_pending_find(a, b->id);
	if (!p)
		return;
	p->status = 200;
	p->revision = (int64_t)m.role;
	p->token.expires_ms = m.expires_ms;
	memcpy(p->token.id, m.token, sizeof(p->token.id));
	snprintf(p->location, sizeof(p->location), "%s", m.principal);
	core_finish(p);
}

/* parts of an object that does not fit one message; one object at a time, as core sends them */
static void core_on_put(struct api *a, struct wire_buf *b)
{
	struct text *parts = &a->put_parts;
	struct msg_a_put m;
	const struct schema_object *kind;
	const char *json;
	size_t len;

	if (msg_a_put_decode(&m, b) < 0)
		return;
	if (m.more || parts->len) {
		text_addn(parts, (const char *)m.json.p, m.json.len);
		if (parts->len > CORE_REPLY_MAX)
			text_clear(parts);
		if (m.more)
			return;
	}
	json = parts->len ? parts->s : (const char *)m.json.p;
	len = parts->len ? parts->len : m.json.len;
	if (model_put(a->model, m.kind, m.id, m.name, m.revision, json ? json : "", len) < 0)
		log_warn("core sent an object of kind \"%s\" that cannot be shown", m.kind);
	text_free(parts);
	kind = schema_object_find(m.kind);
	if (kind)
		wait_notify(a, kind, model_find(a->model, kind, *m.id ? m.id : m.name));
}

static void core_on_event(struct api *a, struct wire_buf *b)
{
	struct msg_a_event m;
	struct pending *p;

	if (msg_a_event_decode(&m, b) < 0)
		return;
	if (!b->id) {
		sse_event(a, m.seq, (const char *)m.json.p, m.json.len);
		return;
	}
	p = core_pending_find(a, b->id);
	if (p && p->c)
		sse_replayed(p->c, m.seq, (const char *)m.json.p, m.json.len);
}

static void token_gone(struct api *a, const char *id)
{
	console_token_gone(a, id);
	conn_token_gone(a, id);
}

static void core_message(void *arg, struct wire_conn *wc, struct wire_buf *b)
{
	struct api *a = arg;
	struct msg_a_del del;
	struct msg_hello hello;

	a->now_ns = clock_mono_ns();
	if (proto_permit(b, PROTO_CORE, PROTO_API, b->type == MSG_hello ? PROTO_NEW : PROTO_UP) <
	    0) {
		log_error("core sent message 0x%04x, which it may not", b->type);
		return;
	}
	switch (b->type) {
	case MSG_hello:
		if (msg_hello_decode(&hello, b) == 0 && hello.version != PROTO_VERSION)
			log_warn("core speaks version %llu of the wire, api %u",
				 (unsigned long long)hello.version, PROTO_VERSION);
		break;
	case MSG_a_reply:
		core_on_reply(a, b);
		break;
	case MSG_result:
		core_on_result(a, b);
		break;
	case MSG_a_authed:
		core_on_authed(a, b);
		break;
	case MSG_a_put:
		core_on_put(a, b);
		break;
	case MSG_a_del:
		if (msg_a_del_decode(&del, b) == 0)
			model_del(a->model, del.kind, del.id);
		if (!strcmp(del.kind, "guest"))
			wait_notify(a, &schema_guest, NULL);
		else if (!strcmp(del.kind, "token"))
			token_gone(a, del.id);
		break;
	case MSG_a_synced:
		a->synced = true;
		break;
	case MSG_a_event:
		core_on_event(a, b);
		break;
	}
	conn_reap(a);
}

/* Core is gone: priv starts both anew. Everybody gets an answer, then a clean end. */
static void core_closed(void *arg, struct wire_conn *wc, int why)
{
	struct api *a = arg;

	log_warn("core went away (%s); closing", why ? strerror(-why) : "end of connection");
	wire_conn_free(a->core);
	a->core = NULL;
	a->core_lost = true;
	a->synced = false;
	while (!list_empty(&a->pendings)) {
		struct pending *p = list_first(&a->pendings, struct pending, node);

		if (p->c)
			p->c->keep = false;
		core_fail(p, 503, "daemon-restarting",
			  "the daemon is restarting; what was asked may or may not have been done");
	}
	conn_reap(a);
	loop_stop(a->loop);
}

int core_start(struct api *a, int sock)
{
	int r;

	a->core = wire_conn_new(a->loop, sock, 2, core_message, core_closed, a);
	if (!a->core)
		return -errno;
	wire_conn_set_limit(a->core, 32u << 20);
	r = msg_hello_send(a->core,
			   &(struct msg_hello){ .version = PROTO_VERSION,
						.role = "api",
						.pid = (uint64_t)getpid(),
						.build = VMD_VERSION },
			   0);
	return r;
}

void core_tick(struct api *a)
{
	list_for_each_safe (n, &a->pendings) {
		struct pending *p = container_of(n, struct pending, node);

		if (a->now_ns >= p->deadline_ns)
			core_fail(
			    p, 504, "daemon-slow",
			    "the daemon did not answer in time; what was asked may still be done");
	}
}

/* ---- ends that several routes share ---- */

static unsigned core_error_status(const struct pending *p)
{
	return p->status >= 400 && p->status < 600 ? p->status : 500;
}

void core_reply_done(struct conn *c, struct pending *p)
{
	char extra[512];
	int n = 0;

	if (p->status >= 400) {
		conn_problem(c,
			     &(struct problem){ core_error_status(p), *p->code ? p->code : "failed",
						p->detail, p->hint, p->field, p->op });
		return;
	}
	extra[0] = '\0';
	if (p->revision > 0)
		n += snprintf(extra + n, sizeof(extra) - (size_t)n, "ETag: \"%lld\"\r\n",
			      (long long)p->revision);
	if (*p->location && !strpbrk(p->location, "\r\n"))
		snprintf(extra + n, sizeof(extra) - (size_t)n, "Location: %s\r\n", p->location);
	else if (p->status == 202 && *p->op)
		snprintf(extra + n, sizeof(extra) - (size_t)n, "Location: /v1/operations/%s\r\n",
			 p->op);
	if (!p->body.len && *p->op) {
		const struct model_obj *o = model_find(c->api->model, &schema_operation, p->op);

		if (o) {
			conn_reply_json(c, p->status, extra, o->json, o->json_len);
			return;
		}
	}
	if (!p->body.len && p->status != 202)
		conn_reply(c, 204, NULL, extra, "", 0);
	else
		conn_reply_json(c, p->status, extra, p->body.len ? p->body.s : "{}",
				p->body.len ? p->body.len : 2);
}

static void core_auth_done(struct conn *c, struct pending *p)
{
	if (p->status >= 400 || p->revision < ROLE_VIEWER || p->revision > ROLE_ADMIN) {
		c->keep = false;
		conn_refuse(c, p->status == 503 || p->status == 504 ? 503 : 401, "bad-token",
			    "vmctl token create NAME",
			    "the bearer token is unknown or has expired");
		return;
	}
	c->role = (enum role)p->revision;
	c->token = p->token;
	snprintf(c->principal, sizeof(c->principal), "%.127s", p->location);
	request_head(c);
	conn_resume(c);
}

int core_auth(struct conn *c, const char *token)
{
	struct pending *p;
	struct sha256 s;
	struct msg_a_auth m;
	int r;

	if (!c->api->core)
		return -EPIPE;
	p = core_pending_new(c->api, c, core_auth_done, 10 * NS_PER_S);
	if (!p)
		return -ENOMEM;
	memset(&m, 0, sizeof(m));
	sha256_init(&s);
	sha256_add(&s, token, strlen(token));
	sha256_hex(&s, m.token_sha256);
	r = msg_a_auth_send(c->api->core, &m, p->id);
	if (r < 0) {
		c->pending = NULL;
		core_free_pending(p);
	}
	return r;
}

static void core_replay_done(struct conn *c, struct pending *p)
{
	sse_replay_end(c);
}

int core_events_since(struct conn *c, uint64_t seq)
{
	struct pending *p =
	    c->api->core ? core_pending_new(c->api, c, core_replay_done, 30 * NS_PER_S) : NULL;
	int r = p ? msg_a_events_since_send(c->api->core,
					    &(struct msg_a_events_since){ .seq = seq, .max = 1000 },
					    p->id)
		  : -EPIPE;

	if (r < 0 && p) {
		c->pending = NULL;
		core_free_pending(p);
	}
	return r;
}

/* a request whose answer nobody waits for */
void core_notify(struct api *a, const struct schema_route *route, const char *name, const char *sub,
		 const char *principal, enum role role, const char *body)
{
	struct msg_a_request m = { .route = route->id, .role = role, .uid = -1 };

	if (!a->core)
		return;
	snprintf(m.principal, sizeof(m.principal), "%s", principal);
	snprintf(m.name, sizeof(m.name), "%s", name);
	snprintf(m.sub, sizeof(m.sub), "%s", sub);
	m.body = (struct proto_bytes){ (const uint8_t *)body, strlen(body) };
	if (!++a->next_id)
		a->next_id = 1;
	msg_a_request_send(a->core, &m, a->next_id);
}
