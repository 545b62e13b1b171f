/* forward.c - ports of the host that lead to guests: records here, rules and bound ports by priv.
 *
 * A forward names its guest by UUID (in rt), so it follows a rename, and finds the guest's address
 * anew whenever that may have changed. In the trash a guest keeps its addresses but gets nothing; a
 * guest that is removed for good takes its forwards along. priv forgets on its own end and hears
 * everything again once the network is up (forwards_net_up).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/text.h"
#include "vmd/core/internal.h"

/* An object may be deleted while priv works: it is kept by id. */
struct forward_arg {
	struct core *c;
	struct req *r;
	char id[40];
	struct msg_p_forward m;
};

static void forward_quiet(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (ev != CALL_ITEM && e)
		log_warn("a forward could not be taken down: %s", e->detail);
}

static void forward_msg(const struct obj *o, struct msg_p_forward *m)
{
	memset(m, 0, sizeof(*m));
	snprintf(m->net, sizeof(m->net), "%.63s", jstr_or(o->rt, "network", ""));
	snprintf(m->proto, sizeof(m->proto), "%.3s", jstr_or(o->doc, "proto", "tcp"));
	snprintf(m->host_ip, sizeof(m->host_ip), "%.45s", jstr_or(o->doc, "host_ip", ""));
	snprintf(m->guest_ip, sizeof(m->guest_ip), "%.15s", jstr_or(o->doc, "guest_ip", ""));
	m->host_port = (uint64_t)jint(o->doc, "host_port", 0);
	m->guest_port = (uint64_t)jint(o->doc, "guest_port", 0);
}

static void forward_state(struct core *c, struct obj *o, const char *state, const char *why)
{
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string(state));
	jset_str(o->doc, "reason", why);
	obj_put(c, o, PUT_FACT);
}

static void forward_told(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct forward_arg *a = arg;
	struct obj *o = obj_by_id(a->c, K_FORWARD, a->id);
	struct err gone = { 0 };

	if (ev == CALL_ITEM)
		return;
	if (!o) {
		/* its record was removed, or refused by the store: nothing stays behind it */
		a->m.remove = 1;
		if (!e)
			peer_call(a->c->priv, MSG_p_forward, &a->m, 0, 10000, forward_quiet, NULL);
		err_set(&gone, ENOENT, "forward-not-found",
			"the forward was removed while it was made");
		if (a->r)
			req_fail(a->r, e ? e : &gone, NULL, NULL);
	} else if (strcmp(a->m.guest_ip, jstr_or(o->doc, "guest_ip", ""))) {
		/* meanwhile it was taken down or leads elsewhere, and priv has heard that since */
		if (a->r)
			req_obj(a->r, 201, o);
	} else if (a->r && e) {
		obj_del(a->c, o, PUT_FACT);
		req_fail(a->r, e, e->num == EADDRNOTAVAIL ? "host_ip" : "host_port", NULL);
	} else {
		if (e)
			log_error("forward %s: %s", o->name, e->detail);
		forward_state(a->c, o, e ? "error" : "up", e ? e->detail : NULL);
		if (a->r)
			req_obj(a->r, 201, o);
	}
	free(a);
}

static int forward_tell(struct core *c, struct obj *o, struct req *r)
{
	struct forward_arg *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	a->c = c;
	a->r = r;
	snprintf(a->id, sizeof(a->id), "%s", o->id);
	forward_msg(o, &a->m);
	return peer_call(c->priv, MSG_p_forward, &a->m, 0, 15000, forward_told, a) ? 0 : -ENOMEM;
}

static void forward_untell(struct core *c, struct obj *o)
{
	struct msg_p_forward m;

	forward_msg(o, &m);
	m.remove = 1;
	if (*m.guest_ip)
		peer_call(c->priv, MSG_p_forward, &m, 0, 10000, forward_quiet, NULL);
}

/* The guest's interface that @o means: on the network asked for, or the first with an address. */
static const json_t *forward_nic(const struct obj *o, const struct obj *guest)
{
	const char *net = jstr(o->doc, "network");
	size_t i;
	json_t *n;

	json_array_foreach(json_object_get(guest->doc, "nics"), i,
			   n) if (jstr(n, "ip") &&
				  (!net || !strcmp(net, jstr_or(n, "network", "")))) return n;
	return NULL;
}

static void forward_aim(struct obj *o, const json_t *nic)
{
	if (!o->rt)
		o->rt = json_object();
	jset_str(o->doc, "guest_ip", nic ? jstr(nic, "ip") : NULL);
	jset_str(o->rt, "network", nic ? jstr(nic, "network") : NULL);
}

void forwards_guest(struct core *c, struct obj *guest)
{
	bool trash = !*guest->name;

	list_for_each_safe (p, &c->kinds[K_FORWARD].all) {
		struct obj *o = container_of(p, struct obj, node);
		const json_t *nic;

		if (strcmp(jstr_or(o->rt, "guest", ""), guest->id))
			continue;
		if (guest->dead) {
			forward_untell(c, o);
			event_add(c, "forward.removed", "forward", o->name,
				  "its guest was removed");
			obj_del(c, o, PUT_FACT);
			continue;
		}
		nic = trash ? NULL : forward_nic(o, guest);
		obj_before(c, o);
		jset_str(o->doc, "guest", jstr_or(guest->doc, "name", guest->id));
		if (nic && !strcmp(jstr(nic, "ip"), jstr_or(o->doc, "guest_ip", "")) &&
		    !strcmp(jstr_or(nic, "network", ""), jstr_or(o->rt, "network", ""))) {
			obj_put(c, o, PUT_FACT);
			continue;
		}
		forward_untell(c, o);
		forward_aim(o, nic);
		if (!nic)
			forward_state(c, o, "down",
				      trash ? "its guest is in the trash"
					    : "its guest has no address there any more");
		else
			forward_tell(c, o, NULL);
	}
}

void forwards_net_up(struct core *c, struct obj *net)
{
	struct msg_p_forward sweep = { .sweep = 1 };

	list_for_each (p, &c->kinds[K_FORWARD].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(o->rt, "network", ""), net->name) && jstr(o->doc, "guest_ip"))
			forward_tell(c, o, NULL);
	}
	snprintf(sweep.net, sizeof(sweep.net), "%.63s", net->name);
	peer_call(c->priv, MSG_p_forward, &sweep, 0, 15000, forward_quiet, NULL);
}

/* ---- routes ---- */

static int forward_free(struct core *c, const json_t *doc, struct err *e)
{
	const char *ip = jstr_or(doc, "host_ip", "");

	list_for_each (p, &c->kinds[K_FORWARD].all) {
		struct obj *o = container_of(p, struct obj, node);
		const char *has = jstr_or(o->doc, "host_ip", "");

		if (jint(o->doc, "host_port", 0) != jint(doc, "host_port", -1) ||
		    strcmp(jstr_or(o->doc, "proto", "tcp"), jstr_or(doc, "proto", "tcp")) ||
		    (*ip && *has && strcmp(ip, has)))
			continue;
		snprintf(c->bad_field, sizeof(c->bad_field), "host_port");
		err_set(e, EEXIST, "port-taken", "port %lld/%s of the host leads to guest \"%s\"",
			(long long)jint(doc, "host_port", 0), jstr_or(doc, "proto", "tcp"),
			jstr_or(o->doc, "guest", "?"));
		err_hint(e, "take another port, or vmctl forward rm %s", o->name);
		return -EEXIST;
	}
	return 0;
}

static int forward_target(struct core *c, json_t *doc, struct obj **guest, struct err *e)
{
	const char *net = jstr(doc, "network");
	struct obj probe = { .doc = doc };

	*guest = guest_find(c, jstr_or(doc, "guest", ""), e);
	if (!*guest) {
		snprintf(c->bad_field, sizeof(c->bad_field), "guest");
		return -ENOENT;
	}
	if (net && !obj_find(c, K_NETWORK, net, e)) {
		snprintf(c->bad_field, sizeof(c->bad_field), "network");
		return -ENOENT;
	}
	if (forward_nic(&probe, *guest))
		return 0;
	err_set(e, EINVAL, "no-address", "guest \"%s\" has no address of its own%s%s",
		(*guest)->name, net ? " on network " : " on any network", net ? net : "");
	err_hint(e, "a network with --cidr gives its guests addresses; or set one: --net "
		    "NAME,ip=ADDRESS");
	return -EINVAL;
}

int route_forward_create(struct core *c, struct req *r, struct err *e)
{
	json_t *doc = json_deep_copy(r->body);
	char id[UUID_TEXT_LEN], name[64];
	struct obj *guest, *o;

	if (!jstr(doc, "proto"))
		json_object_set_new(doc, "proto", json_string("tcp"));
	snprintf(name, sizeof(name), "%.3s%s%.15s-%u", jstr(doc, "proto"),
		 jstr(doc, "host_ip") ? "-" : "", jstr_or(doc, "host_ip", ""),
		 (unsigned)jint(doc, "host_port", 0) & 0xffff);
	if (jstr(doc, "name"))
		snprintf(name, sizeof(name), "%.63s", jstr(doc, "name"));
	json_object_set_new(doc, "name", json_string(name));
	if (forward_target(c, doc, &guest, e) < 0 || forward_free(c, doc, e) < 0) {
		json_decref(doc);
		return -e->num;
	}
	if (!name_valid(name) || obj_by_name(c, K_FORWARD, name)) {
		json_decref(doc);
		snprintf(c->bad_field, sizeof(c->bad_field), "name");
		return name_valid(name)
			   ? err_set(e, EEXIST, "forward-exists",
				     "a forward named \"%s\" exists already", name)
			   : err_set(e, EINVAL, "bad-name", "\"%s\" is not a name", name);
	}
	/* by whatever it was named, shown by its name */
	json_object_set_new(doc, "guest", json_string(guest->name));
	json_object_set_new(doc, "state", json_string("down"));
	json_object_set_new(doc, "created", jnow());
	uuid_make(id);
	o = obj_new(c, K_FORWARD, id, name, doc);
	if (!o) {
		json_decref(doc);
		return err_set(e, ENOMEM, "no-memory", "no memory");
	}
	o->rt = json_pack("{s:s}", "guest", guest->id);
	forward_aim(o, forward_nic(o, guest));
	obj_put(c, o, PUT_ASKED);
	if (req_dry(r, o))
		return 0;
	event_add(c, "forward.created", "forward", name, "to port %lld of %s",
		  (long long)jint(doc, "guest_port", 0), guest->name);
	if (forward_tell(c, o, r) < 0) {
		obj_del(c, o, PUT_ASKED);
		return err_set(e, ENOMEM, "no-memory", "no memory");
	}
	return 0;
}

static void forward_removed(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (ev == CALL_ITEM)
		return;
	forward_quiet(NULL, ev, b, e);
	req_reply(arg, 204, NULL, 0, NULL);
}

int route_forward_delete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_FORWARD, r->name, e);
	struct msg_p_forward m;

	if (!o)
		return -ENOENT;
	if (req_dry(r, o))
		return 0;
	forward_msg(o, &m);
	m.remove = 1;
	event_add(c, "forward.removed", "forward", o->name, "removed by %s", r->principal);
	obj_del(c, o, PUT_ASKED);
	if (!*m.guest_ip) {
		req_reply(r, 204, NULL, 0, NULL);
		return 0;
	}
	/* answered when nothing gets through any more */
	if (!peer_call(c->priv, MSG_p_forward, &m, 0, 15000, forward_removed, r))
		return err_set(e, ENOMEM, "no-memory", "no memory");
	return 0;
}
