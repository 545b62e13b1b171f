/* guest_limit.c - what a guest may take of its disks: requests and bytes a second, on record with
 * the guest's entry of the disk and told to its process, at its start and while it runs.
 *
 * The record is what holds: a process that could not be told is told at its next start, and the
 * answer says so. A limit of 0 is none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "vmd/core/internal.h"

struct limit {
	unsigned left;
	struct err first;
	void (*done)(void *arg, const struct err *e);
	void *arg;
};

static void limit_told(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct limit *l = arg;

	if (ev == CALL_ITEM)
		return;
	if (e && !l->first.num)
		l->first = *e;
	if (--l->left)
		return;
	l->done(l->arg, l->first.num ? &l->first : NULL);
	free(l);
}

void guest_limits_send(struct guest *g, void (*done)(void *arg, const struct err *e), void *arg)
{
	struct limit *l = calloc(1, sizeof(*l));
	struct err e = { 0 };
	size_t i;
	json_t *d;

	if (!l) {
		err_set(&e, ENOMEM, "no-memory", "no memory");
		done(arg, &e);
		return;
	}
	*l = (struct limit){ .left = 1, .done = done, .arg = arg };
	json_array_foreach(json_object_get(g->o->doc, "disks"), i, d)
	{
		struct msg_g_disk_limit m = { .iops = (uint64_t)jint(d, "iops", 0),
					      .bps = (uint64_t)jsize(d, "bps", 0) };

		/* those without a limit too: they may have had one */
		if (!json_object_get(d, "iops") && !json_object_get(d, "bps"))
			continue;
		snprintf(m.name, sizeof(m.name), "%.31s", jstr_or(d, "name", ""));
		l->left++;
		if (!g->link ||
		    !peer_call(g->link, MSG_g_disk_limit, &m, 0, 10000, limit_told, l)) {
			err_set(&e, ECONNRESET, "guest-unreachable",
				"guest \"%s\" cannot be reached", g->o->name);
			limit_told(l, CALL_DONE, NULL, &e);
		}
	}
	limit_told(l, CALL_DONE, NULL, NULL);
}

struct limit_req {
	struct req *r;
	struct core *c;
	char id[40];
};

static void limit_answer(void *arg, const struct err *e)
{
	struct limit_req *a = arg;
	struct obj *o = obj_by_id(a->c, K_GUEST, a->id);
	struct err late = { 0 };

	if (e || !o) {
		err_set(&late, e ? e->num : ENOENT, e ? e->code : "guest-not-found",
			"on record, but the running guest was not told: %.300s",
			e ? e->detail : "it was removed");
		err_hint(&late, "it holds from the guest's next start");
		req_fail(a->r, &late, NULL, NULL);
	} else {
		req_obj(a->r, 200, o);
	}
	free(a);
}

int route_guest_limit(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	const char *want = jstr(r->body, "disk"), *key;
	struct limit_req *a;
	struct guest *g;
	unsigned found = 0;
	size_t i;
	json_t *d, *v;

	if (!o)
		return -ENOENT;
	g = o->mem;
	if (gstate_check(o->name, g->state, GV_SET_LIVE, e) < 0)
		return -e->num;
	if (!json_object_get(r->body, "iops") && !json_object_get(r->body, "bps")) {
		err_set(e, EINVAL, "nothing-to-limit", "a limit is of iops, bps, or both");
		err_hint(e, "vmctl limit %s --iops 1000 --bps 50M", o->name);
		return -EINVAL;
	}
	obj_before(c, o);
	json_array_foreach(json_object_get(o->doc, "disks"), i, d)
	{
		if (want && strcmp(want, jstr_or(d, "name", "")))
			continue;
		found++;
		json_object_foreach(r->body, key, v) if (strcmp(key, "disk"))
		    json_object_set(d, key, v);
	}
	if (!found) {
		snprintf(c->bad_field, sizeof(c->bad_field), "disk");
		return want ? err_set(e, ENOENT, "disk-not-found",
				      "guest \"%s\" has no disk \"%s\"", o->name, want)
			    : err_set(e, ENOENT, "disk-not-found", "guest \"%s\" has no disk",
				      o->name);
	}
	obj_put(c, o, PUT_ASKED);
	if (req_dry(r, o))
		return 0;
	if (!gstate_has_process(g->state) || g->start) { /* told at its start */
		req_obj(r, 200, o);
		return 0;
	}
	a = calloc(1, sizeof(*a));
	if (!a)
		return err_set(e, ENOMEM, "no-memory", "no memory");
	*a = (struct limit_req){ .r = r, .c = c };
	memcpy(a->id, o->id, sizeof(a->id));
	guest_limits_send(g, limit_answer, a);
	return 0;
}
