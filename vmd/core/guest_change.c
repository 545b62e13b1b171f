/* guest_change.c - a guest is changed, renamed, deleted, taken out of the trash. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/core/internal.h"

/* ---- change ---- */

int route_guest_patch(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct guest *g;
	const char *key;
	json_t *v;

	if (!o)
		return -ENOENT;
	g = o->mem;
	if (guest_check_serials(c, r, r->body, e) < 0 || guest_check_boot(c, r->body, e) < 0)
		return -e->num;
	json_object_foreach(r->body, key, v)
	{
		const struct schema_field *f =
		    schema_field_find(schema_routes[ROUTE_GUEST_PATCH].body, key);
		int res;

		snprintf(c->bad_field, sizeof(c->bad_field), "%s", key);
		if (!f || !(f->flags & SF_PATCH) || !strcmp(key, "disks"))
			return err_set(e, EINVAL, "not-changeable",
				       "guest \"%s\": %s cannot be changed this way", o->name, key);
		res = gstate_check(o->name, g->state, f->flags & SF_LIVE ? GV_SET_LIVE : GV_SET, e);
		if (res < 0) {
			err_prefix(e, "%s", key);
			return res;
		}
	}
	c->bad_field[0] = '\0';
	obj_before(c, o);
	if (json_object_get(r->body, "nics"))
		guest_release_addresses(c, o->doc);
	json_object_foreach(r->body, key, v)
	{
		json_t *old = json_object_get(o->doc, key);
		const char *k2;
		json_t *v2;

		if (json_is_null(v)) {
			json_object_del(o->doc, key);
		} else if (json_is_object(v) && json_is_object(old)) { /* merge patch */
			json_object_foreach(v, k2, v2)
			    jset(old, k2, json_is_null(v2) ? NULL : json_incref(v2));
		} else {
			json_object_set(o->doc, key, v);
		}
	}
	guest_defaults(o->doc);
	if (json_object_get(r->body, "nics") && guest_resolve_nics(c, o->doc, o->id, e) < 0)
		return -e->num;
	obj_put(c, o, PUT_ASKED);
	if (req_dry(r, o))
		return 0;
	forwards_guest(c, o);
	req_obj(r, 200, o);
	return 0;
}

int route_guest_rename(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	const char *name = jstr(r->body, "name");
	char old[192];

	if (!o)
		return -ENOENT;
	if (gstate_check(o->name, ((struct guest *)o->mem)->state, GV_RENAME, e) < 0)
		return -e->num;
	if (!name || !name_valid(name))
		return err_set(e, EINVAL, "bad-name",
			       "a guest needs a name of 1 to 63 letters, digits, . _ -");
	snprintf(old, sizeof(old), "%s", o->name);
	if (obj_rename(c, o, name, PUT_ASKED) < 0)
		return err_set(e, EEXIST, "guest-exists", "a guest named \"%s\" exists already",
			       name);
	json_object_set_new(o->doc, "name", json_string(name));
	list_for_each (p, &c->kinds[K_DISK].all) {
		struct obj *d = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(d->doc, "guest", ""), old)) {
			obj_before(c, d);
			jset_str(d->doc, "guest", name);
			obj_put(c, d, PUT_ASKED);
		}
	}
	obj_put(c, o, PUT_ASKED);
	guest_ports_follow(c, old, name);
	snapshots_follow(c, o, name);
	if (req_dry(r, o))
		return 0;
	forwards_guest(c, o);
	event_add(c, "guest.renamed", "guest", name, "was %s", old);
	req_obj(r, 200, o);
	return 0;
}

/* ---- delete ---- */

/* The disks that would go with it: none of them in the middle of something. */
static int delete_disks_idle(struct op *op, struct err *e)
{
	struct obj *o = op->target;
	json_t *entry;
	size_t i;

	if (!jbool(op->args, "now", false) && *o->name)
		return 0;
	json_array_foreach(json_object_get(o->doc, "disks"), i, entry)
	{
		struct obj *d = disk_find(op->c, jstr_or(entry, "disk", ""), NULL);

		if (!d || strcmp(jstr_or(d->doc, "state", ""), "busy"))
			continue;
		err_set(e, EBUSY, "disk-busy", "disk \"%s\" of guest \"%s\" is being worked on",
			d->name, jstr_or(o->doc, "name", "?"));
		err_hint(e, "vmctl ops, then delete it again");
		return -EBUSY;
	}
	return 0;
}

static int delete_prepare(struct op *op, struct err *e)
{
	struct guest *g = op->target->mem;

	if (delete_disks_idle(op, e) < 0)
		return -EBUSY;
	if (g->op)
		return err_set(e, EBUSY, "guest-busy", "guest \"%s\" is busy with %s", g->o->name,
			       g->op->ops->verb);
	if (!jbool(op->args, "force", false) &&
	    gstate_check(*g->o->name ? g->o->name : jstr_or(g->o->doc, "name", "?"), g->state,
			 GV_DELETE, e) < 0)
		return -EBUSY;
	g->op = op;
	guest_restart_forget(g);
	return 0;
}

static void guest_forgotten(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (ev != CALL_ITEM && e)
		log_warn("a removed guest's logs stay: %s", e->detail);
}

static void delete_run(struct op *op)
{
	struct msg_p_guest_forget forget = { 0 };
	struct core *c = op->c;
	struct obj *o = op->target;
	struct guest *g = o->mem;
	char name[192];
	json_t *entry;
	size_t i;
	struct disk_lease lease;

	g->op = op;
	if (gstate_has_process(g->state)) {
		guest_quit_now(g); /* comes back here by guest_op_gone() */
		return;
	}
	snprintf(name, sizeof(name), "%s", jstr_or(o->doc, "name", o->id));
	if (!jbool(op->args, "now", false) && g->state != G_DELETED) {
		obj_rename(c, o, "", PUT_FACT);
		int64_t hours = guest_trash_hours(c);
		char why[64];

		jset(guest_rt(g), "expires_ms",
		     json_integer((int64_t)clock_real_ms() + hours * 3600 * 1000));
		snprintf(why, sizeof(why), "in the trash for %lld hours", (long long)hours);
		guest_set_state(g, G_DELETED, why);
		forwards_guest(c, o);
		g->op = NULL;
		op_finish(op, NULL);
		return;
	}
	/* its own disks are those it lists: a guest in the trash and a newer one may share a name */
	json_array_foreach(json_object_get(o->doc, "disks"), i, entry)
	{
		struct obj *d = disk_find(c, jstr_or(entry, "disk", ""), NULL);

		if (!d || strcmp(jstr_or(d->doc, "guest", ""), name))
			continue;
		/* one of a shared pool stays: another host may go on with it */
		if (jbool(d->rt, "made_for", false) && !jbool(op->args, "keep_disks", false) &&
		    !disk_lease_of(c, d, "rm", &lease) &&
		    strcmp(jstr_or(d->doc, "state", ""), "busy")) {
			disk_remove_file(c, d, disk_file_gone, NULL);
			obj_del(c, d, PUT_FACT);
		} else {
			obj_before(c, d);
			jset_str(d->doc, "guest", NULL);
			obj_put(c, d, PUT_FACT);
		}
	}
	snapshots_guest_gone(c, o, jbool(op->args, "keep_disks", false));
	guest_saved_drop(g);
	event_add(c, "guest.removed", "guest", name, "removed for good");
	guest_release_addresses(c, o->doc);
	list_for_each_safe (p, &g->waiters) {
		struct req *r = container_of(p, struct req, guest_node);

		if (r->want_states & 1u << G_DELETED)
			req_obj(r, 200, o);
		else {
			struct err e = { 0 };

			err_set(&e, ENOENT, "guest-not-found", "guest \"%s\" was deleted", name);
			req_fail(r, &e, NULL, NULL);
		}
	}
	snprintf(forget.uuid, sizeof(forget.uuid), "%.36s", o->id);
	peer_call(c->priv, MSG_p_guest_forget, &forget, 0, 10000, guest_forgotten, NULL);
	guest_detach(o);
	obj_del(c, o, PUT_FACT);
	forwards_guest(c, o);
	op->target = NULL;
	op_finish(op, NULL);
}

static void delete_abort(struct op *op, const struct err *e)
{
	struct guest *g = op->target ? op->target->mem : NULL;

	if (g && g->op == op)
		g->op = NULL;
}

const struct op_ops op_guest_delete = { "delete",     true, delete_prepare, delete_run, NULL,
					delete_abort, NULL };

static struct obj *guest_find_trash(struct core *c, const char *name)
{
	struct obj *hit = obj_by_id(c, K_GUEST, name);

	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (!*o->name && !strcmp(jstr_or(o->doc, "name", ""), name))
			hit = o; /* the newest of that name */
	}
	return hit;
}

static bool query_bool(const json_t *q, const char *key)
{
	const char *s = jstr(q, key);

	return jbool(q, key, false) || (s && (!strcmp(s, "true") || !strcmp(s, "1")));
}

int route_guest_delete(struct core *c, struct req *r, struct err *e)
{
	bool now = query_bool(r->query, "now");
	struct obj *o = obj_by_name(c, K_GUEST, r->name);
	struct op *op;

	if (!o && now)
		o = guest_find_trash(c, r->name);
	if (!o)
		o = guest_find(c, r->name, e);
	if (!o)
		return -ENOENT;
	op = op_new(c, &op_guest_delete, o, jstr_or(o->doc, "name", "?"),
		    json_pack("{s:b, s:b, s:b}", "now", now, "force", query_bool(r->query, "force"),
			      "keep_disks", query_bool(r->query, "keep_disks")),
		    r->principal, e);
	return op ? op_answer(op, r) : -e->num;
}

int route_guest_undelete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find_trash(c, r->name);
	const char *name;

	if (!o || *o->name) {
		err_set(e, ENOENT, "guest-not-found", "no guest named \"%s\" is in the trash",
			r->name);
		err_hint(e, "vmctl ls --state deleted");
		return -ENOENT;
	}
	name = jstr_or(o->doc, "name", "");
	if (obj_rename(c, o, name, PUT_ASKED) < 0) {
		err_set(e, EEXIST, "guest-exists", "another guest is named \"%s\" by now", name);
		err_hint(e, "vmctl rename %s NEW, then undelete", name);
		return -EEXIST;
	}
	json_decref(o->rt);
	o->rt = NULL;
	guest_set_state(o->mem, guest_saved(o->mem) ? G_SAVED : G_STOPPED, NULL);
	forwards_guest(c, o);
	req_obj(r, 200, o);
	return 0;
}
