/* read.c - answers from the read model: objects and lists, with ETags; waiting for a guest's state
 * or an operation's end; health and version.
 */
#include "api/server.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"

static bool read_synced(struct conn *c)
{
	if (c->api->synced)
		return true;
	conn_refuse(c, 503, "starting", NULL,
		    "the daemon is starting and does not know its guests yet");
	return false;
}

static bool read_unchanged(struct conn *c, const char *etag, const char *extra)
{
	const char *h = c->req.header[HTTP_IF_NONE_MATCH];

	if (!h || (strcmp(h, "*") && !strstr(h, etag)))
		return false;
	conn_reply(c, 304, NULL, extra, "", 0);
	return true;
}

static void read_missing(struct conn *c)
{
	const struct schema_object *o = c->route->resource;
	char hint[80], code[48];

	snprintf(code, sizeof(code), "%s-not-found", o->name);
	snprintf(hint, sizeof(hint), "GET /v1/%s lists them", o->plural);
	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		const struct schema_route *r = &schema_routes[i];

		if (r->resource == o && r->cli && (r->flags & RF_CACHED) && !strchr(r->path, '{'))
			snprintf(hint, sizeof(hint), "vmctl %s lists them", r->cli);
	}
	conn_refuse(c, 404, code, hint, "%s \"%s\" does not exist", o->name, c->name);
}

static void read_object(struct conn *c, const struct model_obj *o)
{
	const char *fields = http_query(&c->req, "fields");
	char etag[32], extra[64];
	struct text t = { 0 };

	snprintf(etag, sizeof(etag), "\"%" PRId64 "\"", o->revision);
	snprintf(extra, sizeof(extra), "ETag: %s\r\n", etag);
	if (read_unchanged(c, etag, extra))
		return;
	if (!fields || !*fields) {
		conn_reply_json(c, 200, extra, o->json, o->json_len);
		return;
	}
	if (model_project(o->json, o->json_len, fields, &t) < 0)
		conn_refuse(c, 503, "no-memory", NULL, "the daemon is out of memory");
	else
		conn_reply_json(c, 200, extra, t.s, t.len);
	text_free(&t);
}

static void read_list(struct conn *c)
{
	struct model_query q = { 0 };
	char etag[64], extra[80];
	struct text t = { 0 };
	int r;

	for (unsigned i = 0; i < c->req.queries; i++) {
		const char *key = c->req.query[i].key, *value = c->req.query[i].value;

		if (!strcmp(key, "label") && q.label_count < 8)
			q.labels[q.label_count++] = value;
		else if (!strcmp(key, "state"))
			q.state = value;
		else if (!strcmp(key, "fields") && *value)
			q.fields = value;
		else if (!strcmp(key, "cursor"))
			q.cursor = value;
		else if (!strcmp(key, "limit"))
			q.limit = (unsigned)strtoul(value, NULL, 10);
	}
	snprintf(etag, sizeof(etag), "\"%s-%" PRIu64 "\"", c->api->boot,
		 model_generation(c->api->model, c->route->resource));
	snprintf(extra, sizeof(extra), "ETag: %s\r\n", etag);
	if (read_unchanged(c, etag, extra))
		return;
	r = model_list(c->api->model, c->route->resource, &q, &t);
	if (r == 0)
		conn_reply_json(c, 200, extra, t.s, t.len);
	else
		conn_refuse(c, r == -EINVAL ? 400 : 503, r == -EINVAL ? "bad-cursor" : "no-memory",
			    NULL,
			    r == -EINVAL ? "the cursor is not one of this list"
					 : "the daemon is out of memory");
	text_free(&t);
}

void handle_cached(struct conn *c)
{
	const struct model_obj *o;

	if (!read_synced(c))
		return;
	if (!*c->name) {
		read_list(c);
		return;
	}
	o = model_find(c->api->model, c->route->resource, c->name);
	if (o)
		read_object(c, o);
	else
		read_missing(c);
}

/* ---- waiting ---- */

static bool wait_op_over(const struct model_obj *o)
{
	return !strcmp(o->state, "succeeded") || !strcmp(o->state, "failed") ||
	       !strcmp(o->state, "cancelled");
}

/* a failed operation is answered as the problem it ended with */
static void wait_op_answer(struct conn *c, const struct model_obj *o)
{
	json_t *j, *e;
	char loc[200];

	if (!strcmp(o->state, "succeeded")) {
		snprintf(loc, sizeof(loc), "Location: /v1/operations/%s\r\n", o->id);
		conn_reply_json(c, 200, loc, o->json, o->json_len);
		return;
	}
	j = json_loadb(o->json, o->json_len, 0, NULL);
	e = json_object_get(j, "error");
	{
		json_int_t status = json_integer_value(json_object_get(e, "status"));
		const char *code = json_string_value(json_object_get(e, "code")),
			   *detail = json_string_value(json_object_get(e, "detail"));

		conn_problem(c, &(struct problem){
				    .status = status >= 400 && status < 600    ? (unsigned)status
					      : !strcmp(o->state, "cancelled") ? 409
									       : 500,
				    .code = code ? code : o->state,
				    .detail = detail ? detail : "the operation did not succeed",
				    .hint = json_string_value(json_object_get(e, "hint")),
				    .field = json_string_value(json_object_get(e, "field")),
				    .op = o->id });
	}
	json_decref(j);
}

static void wait_enlist(struct conn *c, const char *id, bool on_guest, uint64_t wait_ms)
{
	struct waiter *w = &c->waiter;

	w->on_guest = on_guest;
	snprintf(w->id, sizeof(w->id), "%s", id);
	w->deadline_ns = clock_mono_ns() + wait_ms * NS_PER_MS;
	list_del(&w->node);
	list_add_tail(&c->api->waiters, &w->node);
	c->state = CONN_WAIT;
}

void handle_wait_op(struct conn *c, const char *op, const char *location, uint64_t wait_ms)
{
	const struct model_obj *o = model_find(c->api->model, &schema_operation, op);

	if (o && wait_op_over(o)) {
		wait_op_answer(c, o);
		return;
	}
	snprintf(c->waiter.location, sizeof(c->waiter.location), "%s", location);
	wait_enlist(c, op, false, wait_ms);
}

void handle_wait_guest(struct conn *c)
{
	const struct model_obj *o;
	const char *state = http_query(&c->req, "state"), *timeout = http_query(&c->req, "timeout");
	uint64_t ms = 60000;

	if (!read_synced(c))
		return;
	o = model_find(c->api->model, &schema_guest, c->name);
	state = state ? state : "running";
	if (timeout)
		units_parse_duration(timeout, &ms); /* was checked */
	if (!o && strcmp(state, "deleted")) {
		read_missing(c);
		return;
	}
	if (!o) {
		conn_reply_json(c, 200, NULL, "{}", 2);
		return;
	}
	if (!strcmp(o->state, state)) {
		read_object(c, o);
		return;
	}
	snprintf(c->waiter.state, sizeof(c->waiter.state), "%s", state);
	wait_enlist(c, o->id, true, ms);
}

static void wait_guest_check(struct conn *c, const struct model_obj *o)
{
	if (o && strcmp(o->state, c->waiter.state))
		return;
	list_del(&c->waiter.node);
	if (o)
		conn_reply_json(c, 200, NULL, o->json, o->json_len);
	else if (!strcmp(c->waiter.state, "deleted"))
		conn_reply_json(c, 200, NULL, "{}", 2);
	else
		read_missing(c);
}

/* @o: what changed; NULL: some guest went away */
void wait_notify(struct api *a, const struct schema_object *kind, const struct model_obj *o)
{
	list_for_each_safe (n, &a->waiters) {
		struct waiter *w = container_of(n, struct waiter, node);
		struct conn *c = container_of(w, struct conn, waiter);

		if (w->on_guest && kind == &schema_guest) {
			if (!o && !model_find(a->model, &schema_guest, w->id))
				wait_guest_check(c, NULL);
			else if (o && !strcmp(o->id, w->id))
				wait_guest_check(c, o);
		} else if (!w->on_guest && kind == &schema_operation && o &&
			   !strcmp(o->id, w->id) && wait_op_over(o)) {
			list_del(&w->node);
			wait_op_answer(c, o);
		}
	}
}

static void wait_expired(struct conn *c)
{
	const struct model_obj *o;
	char extra[256];

	list_del(&c->waiter.node);
	if (c->waiter.on_guest) {
		conn_refuse(c, 504, "timed-out", NULL,
			    "guest \"%s\" did not reach state %s in time", c->name,
			    c->waiter.state);
		return;
	}
	o = model_find(c->api->model, &schema_operation, c->waiter.id);
	snprintf(extra, sizeof(extra), "Location: /v1/operations/%s\r\n", c->waiter.id);
	conn_reply_json(c, 202, extra, o ? o->json : "{}", o ? o->json_len : 2);
}

void wait_tick(struct api *a)
{
	list_for_each_safe (n, &a->waiters) {
		struct waiter *w = container_of(n, struct waiter, node);

		if (a->now_ns >= w->deadline_ns)
			wait_expired(container_of(w, struct conn, waiter));
	}
}

/* ---- about the daemon ---- */

void handle_healthz(struct conn *c)
{
	static const char ok[] = "{\"status\":\"ok\"}\n",
			  starting[] = "{\"status\":\"starting\"}\n";

	if (c->api->synced)
		conn_reply_json(c, 200, NULL, ok, sizeof(ok) - 1);
	else
		conn_reply_json(c, 503, "Retry-After: 1\r\n", starting, sizeof(starting) - 1);
}

void handle_version(struct conn *c)
{
	static const char version[] =
	    "{\"name\":\"vmd\",\"version\":\"" VMD_VERSION "\",\"api\":\"v1\"}\n";

	conn_reply_json(c, 200, NULL, version, sizeof(version) - 1);
}
