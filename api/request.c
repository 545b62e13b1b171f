/* request.c - from a parsed head to an answer: Host and Origin, route, credentials, role, query and
 * body by the table, then the handler. Order matters: nothing about the objects is said to somebody
 * without credentials, and no body is read that will be refused. The handlers are a table indexed
 * by enum route_id: a route that nobody handles does not build.
 */
#include "api/server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/validate.h"
#include "common/log.h"
#include "common/units.h"

#define REQUEST_TIMEOUT_NS  (120 * NS_PER_S)
#define REQUEST_WAIT_MAX_MS 3600000u

typedef void route_handler(struct conn *c);

static void handle_core(struct conn *c);
static void handle_openapi(struct conn *c);
static void handle_metrics(struct conn *c);
static void handle_logs(struct conn *c);
static void handle_export(struct conn *c);

/* every row of the table names who answers it */
static route_handler *const request_handlers[] = {
#define H_CACHED(n) [ROUTE_##n] = handle_cached,
#define H_CORE(n)   [ROUTE_##n] = handle_core,
	/* clang-format off */
	H_CACHED(GUEST_LIST) H_CORE(GUEST_CREATE) H_CACHED(GUEST_GET) H_CORE(GUEST_PATCH)
	H_CORE(GUEST_DELETE) H_CORE(GUEST_UNDELETE)
	H_CORE(GUEST_START) H_CORE(GUEST_STOP) H_CORE(GUEST_RESTART) H_CORE(GUEST_RESET)
	H_CORE(GUEST_PAUSE) H_CORE(GUEST_RESUME)
	H_CORE(GUEST_SAVE) H_CORE(GUEST_DISCARD) H_CORE(NIC_ATTACH) H_CORE(NIC_DETACH) H_CORE(GUEST_RENAME) H_CORE(GUEST_LIMIT)
	[ROUTE_GUEST_WAIT] = handle_wait_guest,
	H_CORE(GUEST_INFO) H_CORE(GUEST_NMI) [ROUTE_GUEST_LOGS] = handle_logs,
	[ROUTE_GUEST_CONSOLE_TICKET] = console_ticket,
	[ROUTE_GUEST_CONSOLE] = console_start,
	H_CACHED(DISK_LIST) H_CORE(DISK_CREATE) H_CACHED(DISK_GET) H_CORE(DISK_DELETE)
	H_CORE(DISK_RESIZE) H_CORE(DISK_ATTACH)
	H_CORE(DISK_DETACH) H_CORE(DISK_CHECK) H_CORE(DISK_MAP) H_CORE(DISK_CONVERT) H_CORE(DISK_CLONE)
	H_CORE(DISK_COMMIT) H_CORE(DISK_REBASE) H_CORE(DISK_COMPARE) H_CORE(DISK_INSPECT) H_CORE(DISK_COMPACT) H_CORE(DISK_BITMAP) H_CORE(DISK_BACKUP) H_CORE(DISK_RESTORE)
	H_CORE(DISK_EXPORT) H_CORE(DISK_UNEXPORT)
	H_CACHED(SNAPSHOT_LIST) H_CORE(SNAPSHOT_CREATE) H_CACHED(SNAPSHOT_GET) H_CORE(SNAPSHOT_RESTORE) H_CORE(SNAPSHOT_DELETE)
	H_CACHED(IMAGE_LIST) H_CORE(IMAGE_CREATE) H_CACHED(IMAGE_GET)
	[ROUTE_IMAGE_UPLOAD] = upload_start,
	H_CORE(IMAGE_DELETE) [ROUTE_IMAGE_EXPORT] = handle_export,
	H_CACHED(POOL_LIST) H_CORE(POOL_CREATE) H_CACHED(POOL_GET) H_CORE(POOL_PATCH) H_CORE(POOL_DELETE)
	H_CACHED(NET_LIST) H_CORE(NET_CREATE) H_CACHED(NET_GET) H_CORE(NET_DELETE)
	H_CORE(NET_LEASES) H_CACHED(FORWARD_LIST) H_CORE(FORWARD_CREATE) H_CACHED(FORWARD_GET)
	H_CORE(FORWARD_DELETE)
	H_CACHED(OP_LIST) H_CACHED(OP_GET) H_CORE(OP_CANCEL)
	[ROUTE_EVENT_STREAM] = sse_start,
	H_CORE(TOKEN_LIST) H_CORE(TOKEN_CREATE) H_CORE(TOKEN_DELETE) H_CORE(HOST_GET)
	H_CORE(TOP) H_CORE(DOCTOR)
	[ROUTE_METRICS] = handle_metrics,
	[ROUTE_OPENAPI] = handle_openapi,
	[ROUTE_HEALTHZ] = handle_healthz,
	[ROUTE_VERSION] = handle_version,
	/* clang-format on */
};
_Static_assert(sizeof(request_handlers) / sizeof(request_handlers[0]) == ROUTE_COUNT,
	       "a route has no handler");

/* ---- where it goes ---- */

/* does @path of the table fit the request? The parameter's value to @name. */
static bool request_path_fits(const char *path, const struct http_req *r, const char **name)
{
	*name = "";
	for (unsigned i = 0; i < r->parts; i++) {
		size_t n;

		if (*path++ != '/')
			return false;
		n = strcspn(path, "/");
		if (*path == '{')
			*name = r->part[i];
		else if (strlen(r->part[i]) != n || memcmp(path, r->part[i], n))
			return false;
		path += n;
	}
	return !*path;
}

static void request_no_path(struct conn *c)
{
	const char *words[ROUTE_COUNT + 1], *near;
	unsigned n = 0;
	char hint[100];

	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		const char *last = strrchr(schema_routes[i].path, '/') + 1;

		if (*last != '{')
			words[n++] = last;
	}
	words[n] = NULL;
	near = c->req.parts ? suggest(c->req.part[c->req.parts == 4  ? 3
						  : c->req.parts > 1 ? 1
								     : 0],
				      words)
			    : NULL;
	if (near && !strcmp(near, c->req.part[c->req.parts == 4 ? 3 : c->req.parts > 1 ? 1 : 0]))
		near = NULL;
	if (near)
		snprintf(hint, sizeof(hint), "did you mean \"%s\"?", near);
	else
		snprintf(hint, sizeof(hint), "GET /v1/openapi.json lists the paths");
	conn_refuse(c, 404, "no-such-path", hint, "there is no such path");
}

static bool request_find_route(struct conn *c)
{
	char allow[80] = "", extra[120];

	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		const struct schema_route *r = &schema_routes[i];
		const char *name;

		if (!request_path_fits(r->path, &c->req, &name))
			continue;
		if (!strcmp(r->method, c->req.method)) {
			c->route = r;
			c->name = name;
			return true;
		}
		snprintf(allow + strlen(allow), sizeof(allow) - strlen(allow), "%s%s",
			 *allow ? ", " : "", r->method);
	}
	if (*allow) {
		struct text t = { 0 };

		problem_json(&t, &(struct problem){ .status = 405,
						    .code = "wrong-method",
						    .detail = "the path does not take this method",
						    .hint = allow });
		snprintf(extra, sizeof(extra), "Allow: %s\r\n", allow);
		conn_reply(c, 405, "application/problem+json", extra, t.s ? t.s : "", t.len);
		text_free(&t);
	} else {
		request_no_path(c);
	}
	return false;
}

/* The name in Host must be ours: a page on another site whose DNS name is made to point here is
 * refused. */
static bool request_host_ok(const struct api *a, const char *host)
{
	size_t n = strcspn(host, ":");

	if (*host == '[')
		n = strcspn(host, "]") + 1;
	for (unsigned i = 0; i < a->host_count; i++)
		if (strlen(a->hosts[i]) == n && !strncasecmp(a->hosts[i], host, n))
			return true;
	return false;
}

static bool request_origin_ok(const struct http_req *r)
{
	const char *o = r->header[HTTP_ORIGIN], *rest;

	if (!o)
		return true;
	rest = strstr(o, "://");
	return rest && !strcasecmp(rest + 3, r->header[HTTP_HOST]);
}

/* ---- who asks ---- */

/* What core is asked for is in its audit trail; what is refused here goes to the log, ten lines a
 * second at most. */
static void request_log_refusal(struct conn *c)
{
	struct api *a = c->api;

	if (a->now_ns / NS_PER_S != a->refusals_second) {
		a->refusals_second = a->now_ns / NS_PER_S;
		a->refusals_logged = 0;
	}
	if (a->refusals_logged++ < 10)
		log_warn("refused: %s asked for %s of \"%s\"",
			 *c->principal ? c->principal : "somebody without credentials",
			 route_name(c->route->id), name_valid(c->name) ? c->name : "");
}

/* true: go on; false: answered, or waiting for core's word on the token */
static bool request_authenticate(struct conn *c)
{
	const char *h = c->req.header[HTTP_AUTHORIZATION];

	if (!c->tls)
		return true; /* the kernel told us */
	if (c->route->flags & RF_UPGRADE)
		return true; /* its ticket speaks for it: a browser can set no header there */
	if (c->role != ROLE_NONE && !h)
		return true; /* a client certificate */
	if (!h || strncasecmp(h, "Bearer ", 7) || strlen(h + 7) < 16 || strlen(h + 7) > 512) {
		if (c->route->flags & RF_PUBLIC)
			return true;
		request_log_refusal(c);
		conn_refuse(c, 401, "no-credentials", "vmctl token create NAME",
			    "this listener wants a bearer token or a client certificate");
		return false;
	}
	if (core_auth(c, h + 7) < 0)
		conn_refuse(c, 503, "daemon-restarting", NULL, "the daemon is restarting");
	return false;
}

static bool request_authorise(struct conn *c)
{
	static const char *const roles[] = { "none", "viewer", "operator", "admin" };

	if (c->role >= c->route->role || (c->route->flags & RF_UPGRADE))
		return true;
	request_log_refusal(c);
	if (c->role == ROLE_NONE)
		conn_refuse(c, 403, "no-role",
			    "add the user to the group vmd-viewer, vmd-operator or vmd-admin",
			    "%s has no role on this host", c->principal);
	else
		conn_refuse(c, 403, "role-too-low", NULL, "%s is %s; this needs %s", c->principal,
			    roles[c->role], roles[c->route->role]);
	return false;
}

/* ---- is it well formed? ---- */

static bool request_check_query(struct conn *c)
{
	for (unsigned i = 0; i < c->req.queries; i++) {
		const char *key = c->req.query[i].key;
		struct err e = { 0 };
		char value[2048];

		if (!strcmp(key, "dry_run") && strcmp(c->req.method, "GET"))
			continue;
		if (validate_query(c->route->query, key, c->req.query[i].value, value,
				   sizeof(value), &e) == 0)
			continue;
		conn_problem(c, &(struct problem){ 400, e.code, e.detail, e.hint, key, NULL });
		return false;
	}
	for (const struct schema_field *f = c->route->query ? c->route->query->fields : NULL;
	     f && f->name; f++) {
		if ((f->flags & SF_REQUIRED) && !http_query(&c->req, f->name)) {
			conn_problem(c, &(struct problem){ 400, "missing-parameter", f->help, "",
							   f->name, NULL });
			return false;
		}
	}
	return true;
}

static bool request_check_name(struct conn *c)
{
	const char *slash = strchr(c->name, '/');
	char pool[64];
	size_t n = strlen(c->name);

	if (!*c->name)
		return true;
	if (slash &&
	    (c->route->resource == &schema_disk || c->route->resource == &schema_snapshot) &&
	    (size_t)(slash - c->name) < sizeof(pool)) {
		memcpy(pool, c->name, (size_t)(slash - c->name));
		pool[slash - c->name] = '\0';
		if (name_valid(pool) && name_valid(slash + 1))
			return true;
	}
	if (n <= 63 && name_valid(c->name))
		return true;
	conn_refuse(c, 400, "bad-name", NULL,
		    "the name in the path is not one: 1 to 63 of letters, digits, . _ -");
	return false;
}

static bool request_check_headers(struct conn *c)
{
	const char *m = c->req.header[HTTP_IF_MATCH], *k = c->req.header[HTTP_IDEMPOTENCY_KEY];

	if (m && strcmp(m, "*")) {
		size_t n = strlen(m);

		if (n < 3 || n > 20 || m[0] != '"' || m[n - 1] != '"' ||
		    strspn(m + 1, "0123456789") != n - 2) {
			conn_refuse(c, 412, "stale-revision", NULL,
				    "If-Match holds no ETag of this server");
			return false;
		}
	}
	if (k && (strlen(k) < 1 || strlen(k) > 127)) {
		conn_refuse(c, 400, "bad-idempotency-key", NULL,
			    "Idempotency-Key must have 1 to 127 characters");
		return false;
	}
	return true;
}

/* what a body must look like; NULL: none is taken. A verb without members takes {}, which HTTP libraries
 * like to send with a POST */
static const struct schema_object *request_shape(const struct schema_route *r)
{
	static const struct schema_field none[] = { { 0 } };
	static const struct schema_object empty = { "body", NULL, NULL, none, NULL };

	return r->body || strcmp(r->method, "POST") ? r->body : &empty;
}

/* a body: only where one is taken, only JSON, only so large */
static bool request_check_body(struct conn *c)
{
	const char *type = c->req.header[HTTP_CONTENT_TYPE];
	size_t n = type ? strcspn(type, "; ") : 0;

	if (c->route->flags & RF_UPLOAD)
		return true;
	if (!c->req.content_length)
		return true;
	if (c->req.content_length > (int64_t)API_BODY_MAX) {
		c->keep = false;
		conn_refuse(c, 413, "body-too-large", NULL, "the body is larger than 1 MiB");
		return false;
	}
	if (!request_shape(c->route)) {
		c->keep = false;
		conn_refuse(c, 400, "unexpected-body", NULL, "this request takes no body");
		return false;
	}
	if ((n == 16 && !strncasecmp(type, "application/json", n)) ||
	    (n == 28 && !strncasecmp(type, "application/merge-patch+json", n)))
		return true;
	/* what `curl -d` says unasked. A browser can send it across sites without asking first, but
	 * no browser reaches the unix socket */
	if (!c->tls && n == 33 && !strncasecmp(type, "application/x-www-form-urlencoded", n))
		return true;
	c->keep = false;
	conn_refuse(c, 415, "not-json", "set Content-Type: application/json",
		    "the body must be JSON");
	return false;
}

/* ---- the way ---- */

void request_head(struct conn *c)
{
	if (!c->route) {
		if (!request_host_ok(c->api, c->req.header[HTTP_HOST])) {
			c->keep = false;
			conn_refuse(c, 421, "unknown-host",
				    "use localhost, or add the name to host_allow in vmd.conf",
				    "this server does not go by the name in the Host header");
			return;
		}
		if (!request_origin_ok(&c->req)) {
			c->keep = false;
			conn_refuse(c, 403, "foreign-origin", NULL,
				    "requests from pages of other sites are refused");
			return;
		}
		/* a refusal below leaves a body unread: then the connection ends */
		if (c->req.content_length)
			c->keep = false;
		if (!request_find_route(c) || !request_authenticate(c))
			return;
	}
	if (!request_authorise(c) || !request_check_name(c) || !request_check_query(c) ||
	    !request_check_headers(c) || !request_check_body(c))
		return;
	c->keep = !c->req.close;
	if (c->route->flags & RF_UPLOAD) {
		upload_start(c);
		return;
	}
	if (c->req.content_length) {
		conn_continue(c);
		c->state = CONN_BODY;
		c->deadline_ns = c->api->now_ns + 30 * NS_PER_S;
		return;
	}
	c->req.expect_continue = false;
	request_complete(c);
}

uint64_t request_wait_ms(const struct conn *c)
{
	const char *p = c->req.header[HTTP_PREFER];
	uint64_t s;

	p = p ? strcasestr(p, "wait=") : NULL;
	s = p ? strtoull(p + 5, NULL, 10) : 0;
	return s > REQUEST_WAIT_MAX_MS / 1000 ? REQUEST_WAIT_MAX_MS : s * 1000;
}

void request_complete(struct conn *c)
{
	c->deadline_ns = 0;
	if (c->route->body || c->body_len) {
		const struct schema_object *shape = request_shape(c->route);
		enum validate_mode mode = !strcmp(c->req.method, "PATCH") ? VALIDATE_PATCH
					  : shape == c->route->resource	  ? VALIDATE_CREATE
									  : VALIDATE_BODY;
		char field[VALIDATE_FIELD_LEN];
		struct err e = { 0 };
		json_t *j = validate_body(c->body, c->body_len, shape, mode, &e, field);

		if (!j) {
			char detail[540];

			snprintf(detail, sizeof(detail), "%s%s%s", field, *field ? ": " : "",
				 e.detail);
			conn_problem(c,
				     &(struct problem){ 400, e.code, detail, e.hint, field, NULL });
			return;
		}
		free(c->body);
		c->body = json_dumps(j, JSON_COMPACT);
		json_decref(j);
		if (!c->body) {
			conn_refuse(c, 503, "no-memory", NULL, "the daemon is out of memory");
			return;
		}
		c->body_len = strlen(c->body);
		c->body_cap = c->body_len + 1;
	}
	request_handlers[c->route->id](c);
}

/* ---- handlers that core answers ---- */

static void request_core_done(struct conn *c, struct pending *p)
{
	uint64_t wait = request_wait_ms(c), spent = (clock_mono_ns() - c->start_ns) / NS_PER_MS;

	if (p->status == 202 && *p->op && wait > spent + 10) {
		handle_wait_op(c, p->op, p->location, wait - spent);
		return;
	}
	core_reply_done(c, p);
}

static void request_ask(struct conn *c, pending_fn *done)
{
	c->state = CONN_WAIT;
	if (core_request(c, c->route, "", c->body, c->body_len, done, REQUEST_TIMEOUT_NS) < 0)
		conn_refuse(c, 503, "daemon-restarting", NULL,
			    "the daemon is restarting or overloaded; try again");
}

static void handle_core(struct conn *c)
{
	request_ask(c, request_core_done);
}

static void metrics_done(struct conn *c, struct pending *p)
{
	struct text t = { 0 };

	/* with core away, api's own figures still come */
	metrics_add(c->api, p->status < 400 && p->body.s ? p->body.s : "",
		    p->status < 400 ? p->body.len : 0, &t);
	conn_reply(c, 200, "text/plain; version=0.0.4; charset=utf-8", NULL, t.s ? t.s : "", t.len);
	text_free(&t);
}

static void handle_metrics(struct conn *c)
{
	request_ask(c, metrics_done);
}

static void source_done(struct conn *c, struct pending *p, const char *type, bool follow, long tail)
{
	int fd = p->fd;

	if (p->status >= 400 || fd < 0) {
		core_reply_done(c, p);
		return;
	}
	p->fd = -1;
	source_start(c, fd, type, follow, tail);
}

static void logs_done(struct conn *c, struct pending *p)
{
	const char *tail = http_query(&c->req, "tail"), *follow = http_query(&c->req, "follow");

	source_done(c, p, "text/plain; charset=utf-8",
		    follow && strcmp(follow, "false") && strcmp(follow, "0"),
		    tail ? strtol(tail, NULL, 10) : 0);
}

static void handle_logs(struct conn *c)
{
	request_ask(c, logs_done);
}

static void export_done(struct conn *c, struct pending *p)
{
	source_done(c, p, "application/octet-stream", false, -1);
}

static void handle_export(struct conn *c)
{
	request_ask(c, export_done);
}

static void handle_openapi(struct conn *c)
{
	conn_reply_json(c, 200, NULL, c->api->openapi, c->api->openapi_len);
}
