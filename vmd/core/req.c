/* req.c - a request from api, from its arrival to its one answer.
 *
 * Answers of requests with an Idempotency-Key are kept with the round that they belong to. A
 * request whose client went away is forgotten, what it started goes on. Errors map to HTTP status
 * here, in one table.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "vmd/core/internal.h"

static const struct {
	int num;
	unsigned status;
} req_status[] = {
	{ ENOENT, 404 },    { EEXIST, 409 },	 { EBUSY, 409 },     { EINVAL, 400 },
	{ ERANGE, 400 },    { EPERM, 403 },	 { EACCES, 403 },    { ESTALE, 412 },
	{ EROFS, 503 },	    { ENOSPC, 507 },	 { ETIMEDOUT, 504 }, { EOPNOTSUPP, 501 },
	{ E2BIG, 413 },	    { ECANCELED, 409 },	 { EUCLEAN, 422 },   { ECONNRESET, 502 },
	{ EPIPE, 502 },	    { EADDRINUSE, 409 }, { EMFILE, 503 },    { ENOTUNIQ, 422 },
	{ ENOTEMPTY, 409 }, { EDQUOT, 507 },	 { ENOTSUP, 501 },
};

unsigned err_status(const struct err *e)
{
	for (size_t i = 0; i < ARRAY_SIZE(req_status); i++)
		if (req_status[i].num == e->num)
			return req_status[i].status;
	return 500;
}

static void req_free(struct req *r)
{
	list_del(&r->node);
	list_del(&r->op_node);
	list_del(&r->guest_node);
	loop_timer_stop(&r->wait);
	if (r->c->cur == r)
		r->c->cur = NULL;
	json_decref(r->body);
	json_decref(r->query);
	close_fd(&r->fd);
	free(r);
}

static void req_keep_answer(struct req *r, unsigned status, const char *body, const char *location,
			    int64_t revision)
{
	json_t *j;
	char *text, key[300];

	if (!*r->idem || status >= 500 || r->replayed)
		return;
	j = json_pack("{s:i, s:s?, s:s?, s:I}", "status", (int)status, "body", body, "location",
		      location, "revision", (json_int_t)revision);
	text = j ? jtext(j) : NULL;
	json_decref(j);
	snprintf(key, sizeof(key), "%s\n%s\n%s", r->principal, route_name(r->route), r->idem);
	if (text)
		log_idem_add(r->c, key, text);
	free(text);
}

static void req_answer(struct req *r, const struct msg_a_reply *m, const char *body)
{
	struct core *c = r->c;

	r->answered = true;
	if (r->dry_run) { /* nothing hangs on the data base */
		r->mutates = r->wrote = false;
		*r->idem = '\0';
	}
	if (r->mutates)
		audit_add(c, r, m->status < 400 ? "ok" : m->code);
	if (!r->gone)
		api_send_reply(c, r, m, body);
	if (m->status < 400)
		req_keep_answer(r, (unsigned)m->status, body, m->location, m->revision);
	else
		c->n.errors++;
	req_free(r);
}

void req_reply(struct req *r, unsigned status, json_t *body, int64_t revision, const char *location)
{
	struct msg_a_reply m = { .status = status, .revision = revision, .fd = -1 };
	char *text = body ? jtext(body) : NULL;

	snprintf(m.location, sizeof(m.location), "%s", location ? location : "");
	if (r->op && r->op->o)
		snprintf(m.op, sizeof(m.op), "%.36s", r->op->o->id);
	json_decref(body);
	req_answer(r, &m, text);
	free(text);
}

void req_reply_fd(struct req *r, unsigned status, json_t *body, int fd)
{
	struct msg_a_reply m = { .status = status, .fd = fd };
	char *text = body ? jtext(body) : NULL;

	json_decref(body);
	req_answer(r, &m, text);
	free(text);
}

void req_replay(struct req *r, json_t *kept)
{
	struct msg_a_reply m = { .status = (uint64_t)jint(kept, "status", 200),
				 .revision = jint(kept, "revision", 0),
				 .fd = -1 };

	r->replayed = true;
	r->mutates = false;
	snprintf(m.location, sizeof(m.location), "%s", jstr_or(kept, "location", ""));
	req_answer(r, &m, jstr(kept, "body"));
}

void req_fail(struct req *r, const struct err *e, const char *field, const char *op_id)
{
	struct msg_a_reply m = { .status = err_status(e), .fd = -1 };

	snprintf(m.code, sizeof(m.code), "%.47s", *e->code ? e->code : "failed");
	snprintf(m.detail, sizeof(m.detail), "%s", e->detail);
	snprintf(m.hint, sizeof(m.hint), "%s", e->hint);
	snprintf(m.field, sizeof(m.field), "%s", field ? field : "");
	snprintf(m.op, sizeof(m.op), "%.36s", op_id ? op_id : "");
	if (op_id)
		snprintf(m.location, sizeof(m.location), "/v1/operations/%s", op_id);
	req_answer(r, &m, NULL);
}

bool req_dry(struct req *r, struct obj *o)
{
	bool dry = r->dry_run;

	if (dry)
		req_obj(r, 200, o); /* which frees @r */
	return dry;
}

void req_obj(struct req *r, unsigned status, struct obj *o)
{
	static const char *const plural[K_COUNT] = { "guests",	  "disks",	"images",
						     "snapshots", "pools",	"networks",
						     "forwards",  "operations", "tokens" };
	char where[256];

	snprintf(where, sizeof(where), "/v1/%s/%s", plural[o->kind], *o->name ? o->name : o->id);
	req_reply(r, status, json_incref(o->doc), o->revision, status == 201 ? where : NULL);
}

int req_if_match(struct req *r, const struct obj *o, struct err *e)
{
	if (r->if_match <= 0 || r->if_match == o->revision)
		return 0;
	err_set(e, ESTALE, "revision-changed",
		"%s \"%s\" is at revision %lld, not %lld: somebody changed it", kind_name(o->kind),
		o->name, (long long)o->revision, (long long)r->if_match);
	err_hint(e, "fetch it again and repeat the change");
	return -ESTALE;
}

int req_role(struct req *r, enum role least, const char *what, struct err *e)
{
	static const char *const names[] = { "nobody", "viewer", "operator", "admin" };

	if (r->role >= least && r->role <= ROLE_ADMIN)
		return 0;
	err_set(e, EPERM, "not-permitted", "%s needs the role %s; %s has %s", what, names[least],
		r->principal, names[r->role <= ROLE_ADMIN ? r->role : 0]);
	err_hint(e, "ask an admin, or use a token with that role");
	return -EPERM;
}

void req_gone(struct core *c, uint32_t id)
{
	list_for_each_safe (p, &c->reqs) {
		struct req *r = container_of(p, struct req, node);

		if (r->id == id && r->abandonable)
			req_free(r);
		else if (r->id == id)
			r->gone = true;
	}
}

void reqs_drop_all(struct core *c)
{
	/* those that a callback still holds are answered into nothing later */
	list_for_each_safe (p, &c->reqs) {
		struct req *r = container_of(p, struct req, node);

		if (r->abandonable)
			req_free(r);
		else
			r->gone = true;
	}
}
