/* guest_create.c - a guest is defined.
 *
 * Every name and address is resolved first; disks that must be made are made by one operation, and the
 * guest is there only when all of them are: else nothing of it stays.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "vmd/core/internal.h"

int guest_check_boot(struct core *c, const json_t *doc, struct err *e)
{
	static const char *const keys[] = { "kernel", "initrd" };

	for (int i = 0; i < 2; i++) {
		const char *name = jstr(doc, keys[i]);

		if (name && *name && !obj_find(c, K_IMAGE, name, e)) {
			snprintf(c->bad_field, sizeof(c->bad_field), "%s", keys[i]);
			return -ENOENT;
		}
	}
	return 0;
}

static void guest_default(json_t *d, const char *key, json_t *v)
{
	if (json_object_get(d, key))
		json_decref(v);
	else
		json_object_set_new(d, key, v);
}

void guest_defaults(json_t *d)
{
	guest_default(d, "cpus", json_integer(1));
	guest_default(d, "memory", json_integer(512 << 20));
	guest_default(d, "machine", json_string("pc"));
	guest_default(d, "accel", json_string("auto"));
	guest_default(d, "restart", json_string("no"));
	guest_default(d, "autostart", json_false());
	guest_default(d, "labels", json_object());
	guest_default(d, "disks", json_array());
	guest_default(d, "nics", json_array());
	guest_default(d, "serials", json_pack("[{s:s, s:s}]", "name", "serial0", "spec", "log"));
	guest_default(d, "consoles", json_array());
}

struct create {
	unsigned left;
	struct err first;
};

static void create_free(void *p)
{
	free(p);
}

static void create_made(void *arg, const struct err *e)
{
	struct op *op = arg;
	struct create *k = op->data;

	if (e && !k->first.num)
		k->first = *e;
	if (!--k->left)
		op_finish(op, k->first.num ? &k->first : NULL);
}

/* disks that were there before belong to nobody again */
static void create_let_go(struct core *c, struct obj *o)
{
	json_t *entry;
	size_t i;

	json_array_foreach(json_object_get(o->doc, "disks"), i, entry)
	{
		struct obj *d = disk_find(c, jstr_or(entry, "disk", ""), NULL);

		if (!d || strcmp(jstr_or(d->doc, "guest", ""), o->name))
			continue;
		obj_before(c, d);
		jset_str(d->doc, "guest", NULL);
		obj_put(c, d, PUT_FACT);
	}
}

static int create_prepare(struct op *op, struct err *e)
{
	((struct guest *)op->target->mem)->op = op;
	return 0;
}

static void create_run(struct op *op)
{
	struct core *c = op->c;
	struct create *k = calloc(1, sizeof(*k));
	json_t *ids = json_object_get(op->args, "make");
	struct err e = { 0 };
	size_t i;
	json_t *v;

	if (!k) {
		err_set(&e, ENOMEM, "no-memory", "no memory to make the disks");
		op_finish(op, &e);
		return;
	}
	op->data = k;
	op->free_data = create_free;
	k->left = 1;
	json_array_foreach(ids, i, v)
	{
		struct obj *d = obj_by_id(c, K_DISK, json_string_value(v));

		if (!d)
			continue;
		k->left++;
		disk_make(c, d, create_made, op);
	}
	create_made(op, NULL);
}

static void create_commit(struct op *op)
{
	struct guest *g = op->target->mem;

	g->op = NULL;
	guest_set_state(g, G_STOPPED, NULL);
}

static void create_abort(struct op *op, const struct err *e)
{
	struct core *c = op->c;
	struct obj *o = op->target;
	size_t i;
	json_t *v;

	if (!op->o) /* never written: the round took all of it back already */
		return;
	json_array_foreach(json_object_get(op->args, "make"), i, v)
	{
		struct obj *d = obj_by_id(c, K_DISK, json_string_value(v));

		if (d) {
			disk_remove_file(c, d, disk_file_gone, NULL);
			obj_del(c, d, PUT_FACT);
		}
	}
	if (!o)
		return;
	create_let_go(c, o);
	guest_release_addresses(c, o->doc);
	guest_detach(o);
	obj_del(c, o, PUT_FACT);
	forwards_guest(c, o);
	op->target = NULL;
}

const struct op_ops op_guest_create = { "create",   false,	   create_prepare,
					create_run, create_commit, create_abort,
					NULL };

/* Each disk of the body becomes {name, disk: POOL/NAME}; the records of those to be made are listed
 * in @make. */
static int guest_disks(struct core *c, json_t *doc, json_t *make, struct err *e)
{
	const char *guest = jstr(doc, "name");
	size_t i;
	json_t *d;

	json_array_foreach(json_object_get(doc, "disks"), i, d)
	{
		char name[128];
		struct obj *o;

		snprintf(name, sizeof(name), "disk%zu", i);
		if (!jstr(d, "name"))
			jset_str(d, "name", name);
		snprintf(c->bad_field, sizeof(c->bad_field), "disks[%zu]", i);
		if (jstr(d, "disk")) {
			o = disk_find(c, jstr(d, "disk"), e);
			if (!o)
				return -ENOENT;
			if (*jstr_or(o->doc, "guest", "")) {
				err_set(e, EBUSY, "disk-in-use",
					"disk \"%s\" belongs to guest \"%s\"", o->name,
					jstr(o->doc, "guest"));
				err_hint(e, "vmctl disk detach %s", o->name);
				return -EBUSY;
			}
			obj_before(c, o);
			jset_str(o->doc, "guest", guest);
			obj_put(c, o, PUT_ASKED);
		} else {
			snprintf(name, sizeof(name), "%.60s-%.31s", guest, jstr(d, "name"));
			o = disk_record(c, d, name, guest, e);
			if (!o)
				return -e->num;
			json_array_append_new(make, json_string(o->id));
			json_object_del(d, "image");
			json_object_del(d, "backing");
			json_object_del(d, "size");
			json_object_del(d, "format");
			json_object_del(d, "pool");
		}
		jset_str(d, "disk", o->name);
	}
	c->bad_field[0] = '\0';
	return 0;
}

static void create_started(struct op *op, const struct err *e)
{
	struct err e2 = { 0 };
	struct op *next;

	if (!e && jbool(op->args, "start", false) && op->target &&
	    guest_start_op(op->target->mem, "system", &next, &e2) < 0)
		log_warn("start after create: %s", e2.detail);
}

int route_guest_create(struct core *c, struct req *r, struct err *e)
{
	const char *name = jstr(r->body, "name");
	char id[UUID_TEXT_LEN];
	json_t *doc, *make;
	struct obj *o;
	struct op *op;
	bool start = jbool(r->body, "start", false);

	if (!name || !name_valid(name)) {
		snprintf(c->bad_field, sizeof(c->bad_field), "name");
		return err_set(e, EINVAL, "bad-name",
			       "a guest needs a name of 1 to 63 letters, digits, . _ -");
	}
	if (obj_by_name(c, K_GUEST, name)) {
		err_set(e, EEXIST, "guest-exists", "a guest named \"%s\" exists already", name);
		err_hint(e, "vmctl info %s, or choose another name", name);
		return -EEXIST;
	}
	if (jstr(r->body, "uuid"))
		snprintf(id, sizeof(id), "%.36s", jstr(r->body, "uuid"));
	else
		uuid_make(id);
	if (!uuid_valid(id) || obj_by_id(c, K_GUEST, id))
		return err_set(e, EEXIST, "uuid-in-use", "uuid %s is not one, or is in use", id);
	if (guest_check_serials(c, r, r->body, e) < 0 || guest_check_boot(c, r->body, e) < 0)
		return -e->num;
	doc = json_deep_copy(r->body);
	if (!doc)
		return err_set(e, ENOMEM, "no-memory", "no memory for guest \"%s\"", name);
	json_object_del(doc, "start");
	guest_defaults(doc);
	json_object_set_new(doc, "uuid", json_string(id));
	json_object_set_new(doc, "state", json_string("stopped"));
	json_object_set_new(doc, "created", jnow());
	o = obj_new(c, K_GUEST, id, name, doc);
	if (!o) {
		json_decref(doc);
		return err_set(e, ENOMEM, "no-memory", "no memory for guest \"%s\"", name);
	}
	if (!guest_attach(c, o))
		return err_set(e, ENOMEM, "no-memory", "no memory for guest \"%s\"", name);
	/* what fails from here on is taken back with the request */
	if (guest_resolve_nics(c, doc, id, e) < 0)
		return -e->num;
	obj_put(c, o, PUT_ASKED);
	make = json_array();
	if (guest_disks(c, doc, make, e) < 0 || req_dry(r, o)) {
		json_decref(make);
		return -e->num;
	}
	event_add(c, "guest.created", "guest", name, "defined by %s", r->principal);
	if (!json_array_size(make) && !start) {
		json_decref(make);
		req_obj(r, 201, o);
		return 0;
	}
	op = op_new(c, &op_guest_create, o, name,
		    json_pack("{s:o, s:b}", "make", make, "start", start), r->principal, e);
	if (!op)
		return -e->num;
	op->on_done = create_started;
	r->reply_target = 201;
	return op_answer(op, r);
}
