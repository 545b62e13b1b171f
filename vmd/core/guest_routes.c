/* guest_routes.c - guests as objects over the API: create, change, delete, undelete, rename, wait,
 * info, logs, console.
 *
 * Create resolves every name and address first; disks that must be made are made by one operation,
 * and the guest is there only when all of them are: else nothing of it stays.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "devices/chardev.h"
#include "vmd/core/internal.h"

/* ---- ports ---- */

static const struct {
	const char *word, *listen, *connect;
	unsigned chardev;
} port_kinds[] = {
	{ "null", "null", NULL, CHARDEV_NULL },
	{ "log", "log", NULL, CHARDEV_LOG },
	{ "pty", "pty", NULL, CHARDEV_STREAM },
	{ "file", "file", NULL, CHARDEV_FILE },
	{ "tty", "tty", NULL, CHARDEV_STREAM },
	{ "guest", "guest", NULL, CHARDEV_STREAM },
	{ "unix", "unix-listen", "unix-connect", CHARDEV_LISTEN },
	{ "tcp", "tcp-listen", "tcp-connect", CHARDEV_LISTEN },
};

int port_spec_parse(const char *text, struct port_spec *p, struct err *e)
{
	static const char connect_word[] = ",connect";
	size_t word = strcspn(text, ":"), len = strlen(text);
	bool connect = len > sizeof(connect_word) &&
		       !strcmp(text + len - (sizeof(connect_word) - 1), connect_word);

	*p = (struct port_spec){ 0 };
	for (size_t i = 0; i < ARRAY_SIZE(port_kinds); i++) {
		if (strlen(port_kinds[i].word) != word || strncmp(port_kinds[i].word, text, word))
			continue;
		if (connect && !port_kinds[i].connect)
			break;
		snprintf(p->kind, sizeof(p->kind), "%s",
			 connect ? port_kinds[i].connect : port_kinds[i].listen);
		p->chardev = connect ? CHARDEV_STREAM : port_kinds[i].chardev;
		if (text[word] == ':')
			snprintf(p->target, sizeof(p->target), "%.*s",
				 (int)(len - word - 1 - (connect ? sizeof(connect_word) - 1 : 0)),
				 text + word + 1);
		return 0;
	}
	err_set(e, EINVAL, "bad-port",
		"port \"%s\": not one of log, null, pty, file:PATH, unix:PATH[,connect], "
		"tcp:HOST:PORT[,connect], tty:PATH, guest:NAME:PORT",
		text);
	return -EINVAL;
}

bool port_spec_host_path(const struct port_spec *p)
{
	return !strcmp(p->kind, "file") || !strcmp(p->kind, "tty") ||
	       !strncmp(p->kind, "unix", 4) || !strncmp(p->kind, "tcp", 3);
}

int guest_check_serials(struct core *c, struct req *r, const json_t *body, struct err *e)
{
	static const char *const keys[] = { "serials", "consoles" };
	struct port_spec p;
	size_t i;
	json_t *v;

	for (int k = 0; k < 2; k++)
		json_array_foreach(json_object_get(body, keys[k]), i, v)
		{
			snprintf(c->bad_field, sizeof(c->bad_field), "%s[%zu].spec", keys[k], i);
			if (port_spec_parse(json_is_string(v) ? json_string_value(v)
							      : jstr_or(v, "spec", ""),
					    &p, e) < 0)
				return -EINVAL;
			/* a path or port of the host is more than a guest */
			if (port_spec_host_path(&p) &&
			    req_role(r, ROLE_ADMIN,
				     "a port that leads to a path or port of the host", e) < 0)
				return -EPERM;
		}
	c->bad_field[0] = '\0';
	return 0;
}

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

/* ---- addresses ---- */

static void guest_ip_key(char key[128], const char *net, const char *ip)
{
	snprintf(key, 128, "%.63s/%.40s", net, ip);
}

void guest_claim_addresses(struct core *c, const json_t *doc, const char *uuid)
{
	char key[128];
	size_t i;
	json_t *n;

	json_array_foreach(json_object_get(doc, "nics"), i, n)
	{
		if (jstr(n, "mac"))
			json_object_set_new(c->macs, jstr(n, "mac"), json_string(uuid));
		if (jstr(n, "ip")) {
			guest_ip_key(key, jstr_or(n, "network", ""), jstr(n, "ip"));
			json_object_set_new(c->ips, key, json_string(uuid));
		}
	}
}

void guest_release_addresses(struct core *c, const json_t *doc)
{
	char key[128];
	size_t i;
	json_t *n;

	json_array_foreach(json_object_get(doc, "nics"), i, n)
	{
		if (jstr(n, "mac"))
			json_object_del(c->macs, jstr(n, "mac"));
		if (jstr(n, "ip")) {
			guest_ip_key(key, jstr_or(n, "network", ""), jstr(n, "ip"));
			json_object_del(c->ips, key);
		}
	}
}

static int guest_nic(struct core *c, json_t *nic, size_t i, const char *uuid, struct err *e)
{
	struct obj *net = obj_find(c, K_NETWORK, jstr_or(nic, "network", ""), e);
	char text[32], key[128];
	const char *holder;
	uint8_t r[3];

	if (!net) {
		snprintf(c->bad_field, sizeof(c->bad_field), "nics[%zu].network", i);
		return -ENOENT;
	}
	if (!strcmp(jstr_or(net->doc, "state", ""), "removing"))
		return err_set(e, EBUSY, "network-going", "network \"%s\" is being removed",
			       net->name);
	snprintf(text, sizeof(text), "net%zu", i);
	if (!jstr(nic, "name"))
		jset_str(nic, "name", text);
	while (!jstr(nic, "mac")) {
		if (getrandom(r, sizeof(r), 0) != (ssize_t)sizeof(r))
			return err_set(e, EIO, "no-random", "no random bytes");
		snprintf(text, sizeof(text), "52:54:00:%02x:%02x:%02x", r[0], r[1], r[2]);
		if (!json_object_get(c->macs, text))
			jset_str(nic, "mac", text);
	}
	holder = jstr(c->macs, jstr(nic, "mac"));
	if (holder && strcmp(holder, uuid)) {
		struct obj *o = obj_by_id(c, K_GUEST, holder);

		snprintf(c->bad_field, sizeof(c->bad_field), "nics[%zu].mac", i);
		return err_set(e, EEXIST, "mac-in-use", "address %s is in use by guest \"%s\"",
			       jstr(nic, "mac"), o ? o->name : "?");
	}
	if (!jstr(nic, "ip") && jbool(net->doc, "dhcp", false) && jstr(net->doc, "cidr")) {
		char ip[16];

		if (net_ip_pick(c, net, ip, e) < 0)
			return -e->num;
		jset_str(nic, "ip", ip);
	}
	if (jstr(nic, "ip")) {
		guest_ip_key(key, net->name, jstr(nic, "ip"));
		holder = jstr(c->ips, key);
		if (holder && strcmp(holder, uuid)) {
			snprintf(c->bad_field, sizeof(c->bad_field), "nics[%zu].ip", i);
			return err_set(e, EEXIST, "ip-in-use",
				       "address %s is taken on network \"%s\"", jstr(nic, "ip"),
				       net->name);
		}
		json_object_set_new(c->ips, key, json_string(uuid));
	}
	json_object_set_new(c->macs, jstr(nic, "mac"), json_string(uuid));
	return 0;
}

int guest_resolve_nics(struct core *c, json_t *body, const char *uuid, struct err *e)
{
	size_t i;
	json_t *n;

	json_array_foreach(json_object_get(body, "nics"), i, n)
	{
		int r = guest_nic(c, n, i, uuid, e);

		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- create ---- */

static void guest_default(json_t *d, const char *key, json_t *v)
{
	if (json_object_get(d, key))
		json_decref(v);
	else
		json_object_set_new(d, key, v);
}

static void guest_defaults(json_t *d)
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

static int create_prepare(struct op *op, struct err *e)
{
	((struct guest *)op->target->mem)->op = op;
	return 0;
}

static void create_run(struct op *op)
{
	struct core *c = op->c;
	struct create *k = calloc(1, sizeof(*k));
	json_t *names = json_object_get(op->args, "make");
	size_t i;
	json_t *v;

	if (!k)
		return;
	op->data = k;
	op->free_data = create_free;
	k->left = 1;
	json_array_foreach(names, i, v)
	{
		struct obj *d = obj_by_name(c, K_DISK, json_string_value(v));

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

static void create_removed(void *arg, const struct err *e)
{
}

static void create_abort(struct op *op, const struct err *e)
{
	struct core *c = op->c;
	struct obj *o = op->target;
	size_t i;
	json_t *v;

	json_array_foreach(json_object_get(op->args, "make"), i, v)
	{
		struct obj *d = obj_by_name(c, K_DISK, json_string_value(v));

		if (d) {
			disk_remove_file(c, d, create_removed, NULL);
			obj_del(c, d, PUT_FACT);
		}
	}
	if (!o || !op->o) /* the round took the record back already */
		return;
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
			json_array_append_new(make, json_string(o->name));
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

/* What a refused create took in this round is given back record by record. */
static void guest_disks_undo(struct core *c, json_t *doc, json_t *make)
{
	size_t i;
	json_t *v;

	json_array_foreach(make, i, v)
	{
		struct obj *o = obj_by_name(c, K_DISK, json_string_value(v));

		if (o)
			obj_del(c, o, PUT_ASKED);
	}
	list_for_each (p, &c->kinds[K_DISK].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(o->doc, "guest", ""), jstr_or(doc, "name", "?")) && !o->mem) {
			obj_before(c, o);
			jset_str(o->doc, "guest", NULL);
			obj_put(c, o, PUT_ASKED);
		}
	}
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
	json_object_del(doc, "start");
	guest_defaults(doc);
	json_object_set_new(doc, "uuid", json_string(id));
	json_object_set_new(doc, "state", json_string("stopped"));
	json_object_set_new(doc, "created", jnow());
	make = json_array();
	if (guest_resolve_nics(c, doc, id, e) < 0 || guest_disks(c, doc, make, e) < 0 ||
	    r->dry_run) {
		guest_release_addresses(c, doc);
		guest_disks_undo(c, doc, make);
		json_decref(make);
		if (!e->num) {
			req_reply(r, 200, doc, 0, NULL);
			return 0;
		}
		json_decref(doc);
		return -e->num;
	}
	o = obj_new(c, K_GUEST, id, name, doc);
	if (!o || !guest_attach(c, o)) {
		json_decref(make);
		return err_set(e, ENOMEM, "no-memory", "no memory for guest \"%s\"", name);
	}
	obj_put(c, o, PUT_ASKED);
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
	if (req_if_match(r, o, e) < 0 || guest_check_serials(c, r, r->body, e) < 0 ||
	    guest_check_boot(c, r->body, e) < 0)
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
	if (json_object_get(r->body, "nics")) {
		guest_release_addresses(c, o->doc);
		if (guest_resolve_nics(c, r->body, o->id, e) < 0) {
			guest_release_addresses(c, r->body);
			guest_claim_addresses(c, o->doc, o->id);
			return -e->num;
		}
	}
	if (r->dry_run) {
		req_obj(r, 200, o);
		return 0;
	}
	obj_before(c, o);
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
	obj_put(c, o, PUT_ASKED);
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
	if (req_if_match(r, o, e) < 0 ||
	    gstate_check(o->name, ((struct guest *)o->mem)->state, GV_RENAME, e) < 0)
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
	forwards_guest(c, o);
	event_add(c, "guest.renamed", "guest", name, "was %s", old);
	req_obj(r, 200, o);
	return 0;
}

/* ---- delete ---- */

static int delete_prepare(struct op *op, struct err *e)
{
	struct guest *g = op->target->mem;

	if (g->op)
		return err_set(e, EBUSY, "guest-busy", "guest \"%s\" is busy with %s", g->o->name,
			       g->op->ops->verb);
	if (!jbool(op->args, "force", false) &&
	    gstate_check(*g->o->name ? g->o->name : jstr_or(g->o->doc, "name", "?"), g->state,
			 GV_DELETE, e) < 0)
		return -EBUSY;
	g->op = op;
	loop_timer_stop(&g->restart_timer);
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

	g->op = op;
	if (gstate_has_process(g->state)) {
		guest_quit_now(g); /* comes back here by guest_op_gone() */
		return;
	}
	snprintf(name, sizeof(name), "%s", jstr_or(o->doc, "name", o->id));
	if (!jbool(op->args, "now", false) && g->state != G_DELETED) {
		obj_rename(c, o, "", PUT_FACT);
		jset(guest_rt(g), "expires_ms", json_integer(guest_trash_expiry()));
		guest_set_state(g, G_DELETED, "in the trash for 7 days");
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
		if (jbool(d->rt, "made_for", false) && !jbool(op->args, "keep_disks", false) &&
		    strcmp(jstr_or(d->doc, "state", ""), "busy")) {
			disk_remove_file(c, d, create_removed, NULL);
			obj_del(c, d, PUT_FACT);
		} else {
			obj_before(c, d);
			jset_str(d->doc, "guest", NULL);
			obj_put(c, d, PUT_FACT);
		}
	}
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
	if (req_if_match(r, o, e) < 0)
		return -e->num;
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
	guest_set_state(o->mem, G_STOPPED, NULL);
	forwards_guest(c, o);
	req_obj(r, 200, o);
	return 0;
}

/* ---- wait, nmi, logs, console ---- */

static void wait_over(void *arg)
{
	struct req *r = arg;
	struct err e = { 0 };

	err_set(&e, ETIMEDOUT, "timed-out", "guest \"%s\" is still %s", r->name,
		gstate_name(r->waiting->state));
	err_hint(&e, "vmctl info %s", r->name);
	req_fail(r, &e, NULL, NULL);
}

int route_guest_wait(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	int s = gstate_parse(jstr_or(r->query, "state", "running"));
	int64_t ms = jduration_ms(r->query, "timeout", 60000);

	if (!o)
		return -ENOENT;
	if (s < 0)
		return err_set(e, EINVAL, "bad-state", "\"%s\" is not a state of a guest",
			       jstr(r->query, "state"));
	r->want_states = 1u << s;
	r->waiting = o->mem;
	if (r->waiting->state == (enum gstate)s) {
		req_obj(r, 200, o);
		return 0;
	}
	r->abandonable = true;
	list_add_tail(&r->waiting->waiters, &r->guest_node);
	r->wait.fn = wait_over;
	loop_timer_after(&r->wait, (uint64_t)(ms > 0 ? ms : 1) * NS_PER_MS);
	return 0;
}

static void guest_plain_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct req *r = arg;

	if (ev == CALL_ITEM)
		return;
	if (e)
		req_fail(r, e, NULL, NULL);
	else
		req_reply(r, 204, NULL, 0, NULL);
}

static struct guest *guest_live(struct core *c, struct req *r, enum gverb v, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct guest *g = o ? o->mem : NULL;

	if (!g || gstate_check(o->name, g->state, v, e) < 0)
		return NULL;
	if (!g->link) {
		err_set(e, ECONNRESET, "guest-unreachable",
			"guest \"%s\" runs but cannot be reached", o->name);
		return NULL;
	}
	return g;
}

int route_guest_nmi(struct core *c, struct req *r, struct err *e)
{
	struct guest *g = guest_live(c, r, GV_NMI, e);
	struct msg_g_nmi m;

	if (!g)
		return -e->num;
	if (req_dry(r, g->o))
		return 0;
	memset(&m, 0, sizeof(m));
	peer_call(g->link, MSG_g_nmi, &m, 0, 10000, guest_plain_done, r);
	return 0;
}

static void guest_fd_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct req *r = arg;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (e) {
		req_fail(r, e, NULL, NULL);
		return;
	}
	if (msg_result_decode(&m, b) < 0)
		m.fd = m.fd2 = -1;
	req_reply_fd(r, 200, NULL, m.fd);
	msg_result_close(&m);
}

/* which log is meant: a port that keeps one, the first such unless @want says, else the process's own */
static int logs_port(struct obj *o, const char *want, char port[32], struct err *e)
{
	static const char *const keys[] = { "serials", "consoles" }, *const names[] = { "serial",
											"console" };
	const json_t *p;
	size_t i;

	*port = '\0';
	if (want && !strcmp(want, "process"))
		return 0;
	for (unsigned k = 0; k < 2; k++)
		json_array_foreach(json_object_get(o->doc, keys[k]), i, p)
		{
			char name[32];

			snprintf(name, sizeof(name), "%s%zu", names[k], i);
			if (strcmp(json_is_string(p) ? json_string_value(p)
						     : jstr_or(p, "spec", ""),
				   "log") ||
			    (want && strcmp(want, name)))
				continue;
			memcpy(port, name, sizeof(name));
			return 0;
		}
	if (!want)
		return 0;
	err_set(e, ENOENT, "no-such-log", "guest \"%s\" has no port \"%s\" of the kind log",
		o->name, want);
	err_hint(e, "vmctl logs %s --port process", o->name);
	return -ENOENT;
}

int route_guest_logs(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct msg_p_log_open m = { 0 };

	if (!o)
		return -ENOENT;
	snprintf(m.uuid, sizeof(m.uuid), "%.36s", o->id);
	if (logs_port(o, jstr(r->query, "port"), m.port, e) < 0)
		return -e->num;
	peer_call(c->priv, MSG_p_log_open, &m, 0, 10000, guest_fd_done, r);
	return 0;
}

int route_guest_console_ticket(struct core *c, struct req *r, struct err *e)
{
	return err_set(e, EOPNOTSUPP, "not-here", "tickets are made by api");
}

static void console_attached(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct req *r = arg;

	if (ev == CALL_ITEM)
		return;
	if (e)
		req_fail(r, e, "port", NULL);
	else
		req_reply_fd(r, 200, NULL, r->fd);
}

int route_guest_console(struct core *c, struct req *r, struct err *e)
{
	struct guest *g = guest_live(c, r, GV_CONSOLE, e);
	struct msg_g_console m = { .fd = -1 };
	int pair[2];

	if (!g)
		return -e->num;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return err_set(e, errno, "no-socket", "no pair of sockets: %s", strerror(errno));
	close_fd(&r->fd);
	r->fd = pair[0];
	m.fd = pair[1];
	m.read_only = jbool(r->body, "read_only", false);
	snprintf(m.port, sizeof(m.port), "%.31s",
		 jstr_or(r->body, "port", *r->sub ? r->sub : "serial0"));
	peer_call(g->link, MSG_g_console, &m, 0, 10000, console_attached, r);
	close(pair[1]); /* the guest has its own now */
	return 0;
}
