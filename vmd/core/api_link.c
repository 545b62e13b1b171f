/* api_link.c - the connection to api: requests in, replies, read model and events out.
 *
 * All that goes out waits for the end of the round (out_flush), so that api never shows what was
 * not written; within that order is kept, so that a reply comes after the objects it tells of. When
 * the store refused, what requests had asked for is answered 503 and their objects' updates are
 * dropped (the old state is sent again).
 * A request's body may come in parts (more = 1); the descriptor and the rest come with the last.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/units.h"
#include "vmd/core/internal.h"

#define JSON_PART	32768 /* one part of a document, well below a datagram */
#define API_QUEUE_LIMIT (256u << 20)
#define BODY_MAX	(1u << 20)

struct partial {
	struct list node;
	uint32_t id;
	char *body;
	size_t len;
};

static struct out_msg *out_new(struct core *c, uint32_t req_id, bool asked)
{
	struct out_msg *m;

	if (!c->api)
		return NULL;
	m = calloc(1, sizeof(*m));
	if (!m)
		return NULL;
	m->req_id = req_id;
	m->asked = asked;
	list_add_tail(&c->out, &m->node);
	round_touch(c);
	return m;
}

static void out_free(struct out_msg *m)
{
	list_del(&m->node);
	wire_buf_clear(&m->b);
	free(m);
}

static void api_out(struct core *c, uint16_t type, const void *msg, uint32_t id, bool asked)
{
	struct out_msg *m = out_new(c, id, asked);

	if (m && proto_encode(type, msg, id, &m->b) < 0) {
		log_error("message 0x%04x to api cannot be encoded: %s", type,
			  strerror(-m->b.error));
		out_free(m);
	}
}

void api_send_obj(struct core *c, struct obj *o)
{
	struct msg_a_put p = { .revision = o->revision };
	char *text;
	size_t len, off = 0;

	if (!c->api || o->dead || o->kind == K_TOKEN)
		return;
	text = o->text ? o->text : jtext(o->doc);
	o->text = NULL;
	if (!text)
		return;
	len = strlen(text);
	snprintf(p.kind, sizeof(p.kind), "%s", kind_name(o->kind));
	snprintf(p.id, sizeof(p.id), "%.36s", o->id);
	snprintf(p.name, sizeof(p.name), "%.127s", o->name);
	do {
		size_t n = len - off < JSON_PART ? len - off : JSON_PART;

		p.json = (struct proto_bytes){ (const uint8_t *)text + off, n };
		off += n;
		p.more = off < len;
		api_out(c, MSG_a_put, &p, 0, false);
	} while (off < len);
	free(text);
}

void api_send_del(struct core *c, enum kind k, const char *id)
{
	struct msg_a_del d = { 0 };

	snprintf(d.kind, sizeof(d.kind), "%s", kind_name(k));
	snprintf(d.id, sizeof(d.id), "%.36s", id);
	api_out(c, MSG_a_del, &d, 0, false);
}

void api_send_event(struct core *c, int64_t seq, const char *json)
{
	struct msg_a_event m = { .seq = (uint64_t)seq,
				 .json = { (const uint8_t *)json, strlen(json) } };

	api_out(c, MSG_a_event, &m, 0, false);
}

void api_send_reply(struct core *c, struct req *r, const struct msg_a_reply *in, const char *body)
{
	struct msg_a_reply m = *in;
	size_t len = body ? strlen(body) : 0, off = 0;

	do {
		size_t n = len - off < JSON_PART ? len - off : JSON_PART;

		m.body = (struct proto_bytes){ (const uint8_t *)(body ? body + off : NULL), n };
		off += n;
		m.more = off < len;
		m.fd = m.more ? -1 : in->fd;
		api_out(c, MSG_a_reply, &m, r->id, r->wrote && in->status < 400);
	} while (off < len);
}

static void out_refuse(struct core *c, struct out_msg *m)
{
	struct msg_a_reply a = { .status = 503, .fd = -1, .revision = 0 };
	uint32_t id = m->req_id;

	snprintf(a.code, sizeof(a.code), "state-read-only");
	snprintf(a.detail, sizeof(a.detail), "the change was not made: %.300s", c->read_only_why);
	snprintf(a.hint, sizeof(a.hint), "vmctl doctor");
	wire_buf_clear(&m->b);
	m->b = (struct wire_buf){ 0 };
	if (proto_encode(MSG_a_reply, &a, id, &m->b) < 0)
		out_free(m);
}

/* After a refused round the read model is told again how things stand. */
static void out_resync(struct core *c)
{
	for (int k = 0; k < K_COUNT; k++)
		list_for_each (p, &c->kinds[k].all)
			api_send_obj(c, container_of(p, struct obj, node));
}

void out_flush(struct core *c, bool refused)
{
	if (refused) {
		uint32_t last = 0;

		list_for_each_safe (p, &c->out) {
			struct out_msg *m = container_of(p, struct out_msg, node);

			if (m->asked && m->req_id == last)
				out_free(m); /* a further part of the same reply */
			else if (m->asked) {
				last = m->req_id;
				out_refuse(c, m);
			}
		}
		if (c->undone)
			out_resync(c);
		c->undone = false;
	}
	list_for_each_safe (p, &c->out) {
		struct out_msg *m = container_of(p, struct out_msg, node);
		int r = c->api ? wire_conn_send(c->api, &m->b) : -EPIPE;

		if (r < 0 && r != -EPIPE)
			log_error("api does not take messages: %s", strerror(-r));
		out_free(m);
	}
}

void out_drop_since(struct core *c, struct list *mark)
{
	for (struct list *p = mark->next, *next = p->next; p != &c->out; p = next, next = p->next) {
		struct out_msg *m = container_of(p, struct out_msg, node);

		if (!m->req_id)
			out_free(m);
	}
}

/* ---- in ---- */

static struct partial *partial_find(struct core *c, uint32_t id)
{
	list_for_each (p, &c->partials)
		if (container_of(p, struct partial, node)->id == id)
			return container_of(p, struct partial, node);
	return NULL;
}

static void partial_free(struct partial *p)
{
	list_del(&p->node);
	free(p->body);
	free(p);
}

static int partial_add(struct core *c, uint32_t id, struct proto_bytes b)
{
	struct partial *p = partial_find(c, id);
	char *body;

	if (!p) {
		p = calloc(1, sizeof(*p));
		if (!p)
			return -ENOMEM;
		p->id = id;
		list_add_tail(&c->partials, &p->node);
	}
	if (p->len + b.len > BODY_MAX)
		return -E2BIG;
	body = realloc(p->body, p->len + b.len + 1);
	if (!body)
		return -ENOMEM;
	if (b.len)
		memcpy(body + p->len, b.p, b.len);
	p->body = body;
	p->len += b.len;
	return 0;
}

static void api_request(struct core *c, struct wire_buf *b)
{
	struct msg_a_request m;
	struct partial *part;
	struct req *r;

	if (msg_a_request_decode(&m, b) < 0) {
		log_warn("api: malformed request");
		return;
	}
	part = partial_find(c, b->id);
	if ((m.more || part) && partial_add(c, b->id, m.body) < 0) {
		log_warn("api: request too large");
		if (part)
			partial_free(part);
		msg_a_request_close(&m);
		return;
	}
	if (m.more) {
		msg_a_request_close(&m);
		return;
	}
	part = partial_find(c, b->id);
	r = calloc(1, sizeof(*r));
	if (!r) {
		msg_a_request_close(&m);
		return;
	}
	*r = (struct req){ .c = c,
			   .id = b->id,
			   .route = (enum route_id)(m.route < ROUTE_COUNT ? m.route : ROUTE_COUNT),
			   .role = (enum role)m.role,
			   .uid = m.uid,
			   .if_match = m.if_match,
			   .wait_ms = m.wait_ms,
			   .dry_run = m.dry_run != 0,
			   .fd = m.fd };
	memcpy(r->principal, m.principal, sizeof(r->principal));
	memcpy(r->name, m.name, sizeof(r->name));
	memcpy(r->sub, m.sub, sizeof(r->sub));
	memcpy(r->idem, m.idempotency_key, sizeof(r->idem));
	snprintf(r->request_id, sizeof(r->request_id), "%s", m.request_id);
	list_init(&r->op_node);
	list_init(&r->guest_node);
	list_add_tail(&c->reqs, &r->node);
	loop_timer_init(c->loop, &r->wait, NULL, r);
	if (part)
		r->body = jparse(part->body, part->len);
	else if (m.body.len)
		r->body = jparse(m.body.p, m.body.len);
	if (!r->body)
		r->body = json_object();
	r->query = m.query.len ? jparse(m.query.p, m.query.len) : NULL;
	if (!r->query)
		r->query = json_object();
	if (part)
		partial_free(part);
	request_handle(c, r);
}

struct replay {
	struct core *c;
};

static int api_replay_one(void *arg, int64_t seq, const char *json)
{
	struct replay *p = arg;
	struct msg_a_event m = { .seq = (uint64_t)seq,
				 .json = { (const uint8_t *)json, strlen(json) } };

	api_out(p->c, MSG_a_event, &m, p->c->replay_id, false);
	return 0;
}

static void api_events_since(struct core *c, struct wire_buf *b)
{
	struct msg_a_events_since m;
	struct msg_result res = { .fd = -1, .fd2 = -1 };
	struct replay p = { c };

	if (msg_a_events_since_decode(&m, b) < 0)
		return;
	c->replay_id = b->id;
	res.value = (uint64_t)c->store_ops->events_since(
	    c->store, (int64_t)m.seq, m.max && m.max < 10000 ? (unsigned)m.max : 10000,
	    api_replay_one, &p);
	api_out(c, MSG_result, &res, b->id, false);
}

static void api_auth(struct core *c, struct wire_buf *b)
{
	struct msg_a_auth m;
	struct msg_result res = { .fd = -1, .fd2 = -1 };
	struct obj *o;
	struct err e = { 0 };

	if (msg_a_auth_decode(&m, b) < 0)
		return;
	o = token_find(c, m.token_sha256, &e);
	if (o) {
		struct msg_a_authed a = { .role = (uint64_t)jint(o->rt, "role", 0),
					  .expires_ms = jint(o->rt, "expires_ms", 0) };

		snprintf(a.principal, sizeof(a.principal), "token:%.100s", o->name);
		snprintf(a.token, sizeof(a.token), "%.36s", o->id);
		api_out(c, MSG_a_authed, &a, b->id, false);
		return;
	}
	res.num = (uint64_t)e.num;
	snprintf(res.code, sizeof(res.code), "%s", e.code);
	snprintf(res.detail, sizeof(res.detail), "%s", e.detail);
	snprintf(res.hint, sizeof(res.hint), "%s", e.hint);
	api_out(c, MSG_result, &res, b->id, false);
}

static void api_message(void *arg, struct wire_conn *conn, struct wire_buf *b)
{
	struct core *c = arg;
	int r = proto_permit(b, PROTO_API, PROTO_CORE, PROTO_UP);

	if (r < 0) {
		log_warn("api: message 0x%04x refused: %s", b->type, strerror(-r));
		return;
	}
	switch (b->type) {
	case MSG_a_request:
		api_request(c, b);
		break;
	case MSG_a_abandon:
		req_gone(c, b->id);
		break;
	case MSG_a_events_since:
		api_events_since(c, b);
		break;
	case MSG_a_auth:
		api_auth(c, b);
		break;
	case MSG_hello:
		break;
	default:
		log_warn("api: unexpected message 0x%04x", b->type);
	}
}

void api_detach(struct core *c)
{
	if (c->api)
		wire_conn_free(c->api);
	c->api = NULL;
	list_for_each_safe (p, &c->out)
		out_free(container_of(p, struct out_msg, node));
	list_for_each_safe (p, &c->partials)
		partial_free(container_of(p, struct partial, node));
	reqs_drop_all(c);
}

static void api_closed(void *arg, struct wire_conn *conn, int why)
{
	log_warn("api went away%s%s; waiting for the next", why ? ": " : "",
		 why ? strerror(-why) : "");
	api_detach(arg);
}

/* In the order in which api keeps them: by name; operations by age. */
static int api_order(const void *a, const void *b)
{
	const struct obj *x = *(struct obj *const *)a, *y = *(struct obj *const *)b;
	int r = x->kind == K_OPERATION
		    ? strcmp(jstr_or(x->doc, "created", ""), jstr_or(y->doc, "created", ""))
		    : strcmp(x->name, y->name);

	return r ? r : strcmp(x->id, y->id);
}

static void api_send_kind(struct core *c, enum kind k)
{
	struct obj **v = calloc(obj_count(c, k) + 1, sizeof(*v));
	size_t n = 0;

	list_for_each (p, &c->kinds[k].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (v)
			v[n++] = o;
		else
			api_send_obj(c, o);
	}
	if (v)
		qsort(v, n, sizeof(*v), api_order);
	for (size_t i = 0; i < n; i++)
		api_send_obj(c, v[i]);
	free(v);
}

int core_api_attach(struct core *c, int sock)
{
	struct msg_hello h = { .version = PROTO_VERSION, .pid = (uint64_t)getpid() };
	struct msg_a_synced done;

	api_detach(c);
	c->api = wire_conn_new(c->loop, sock, WIRE_FDS_MAX, api_message, api_closed, c);
	if (!c->api)
		return -ENOMEM;
	wire_conn_set_limit(c->api, API_QUEUE_LIMIT);
	snprintf(h.role, sizeof(h.role), "core");
	api_out(c, MSG_hello, &h, 0, false);
	for (int k = 0; k < K_COUNT; k++)
		api_send_kind(c, (enum kind)k);
	memset(&done, 0, sizeof(done));
	api_out(c, MSG_a_synced, &done, 0, false);
	return 0;
}
