/* guest_nics.c - a guest's network interfaces: each has an address of the link layer that no other guest
 * has, and an IP address out of its network's range.
 *
 * c->macs and c->ips say who holds which; they follow from the guests' documents and are filled again
 * at the daemon's start.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "vmd/core/internal.h"

#define NICS_MAX 16u

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
		c->nets_stale = true;
		if (jstr(n, "mac"))
			json_object_set_new(c->macs, jstr(n, "mac"), json_string(uuid));
		if (jstr(n, "ip")) {
			guest_ip_key(key, jstr_or(n, "network", ""), jstr(n, "ip"));
			json_object_set_new(c->ips, key, json_string(uuid));
		}
	}
}

static void guest_release(json_t *held, const char *key, const char *uuid)
{
	if (!strcmp(jstr_or(held, key, ""), uuid))
		json_object_del(held, key);
}

void guest_release_addresses(struct core *c, const json_t *doc)
{
	const char *uuid = jstr_or(doc, "uuid", "");
	char key[128];
	size_t i;
	json_t *n;

	json_array_foreach(json_object_get(doc, "nics"), i, n)
	{
		c->nets_stale = true;
		if (jstr(n, "mac"))
			guest_release(c->macs, jstr(n, "mac"), uuid);
		if (jstr(n, "ip")) {
			guest_ip_key(key, jstr_or(n, "network", ""), jstr(n, "ip"));
			guest_release(c->ips, key, uuid);
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
		c->nets_stale = true;
		int r = guest_nic(c, n, i, uuid, e);

		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- one more, one less: of a guest that stands still ---- */

static struct obj *nic_guest(struct core *c, struct req *r, unsigned verb, struct err *e)
{
	struct obj *g = guest_find(c, r->name, e);

	return g && gstate_check(g->name, ((struct guest *)g->mem)->state, verb, e) == 0 ? g : NULL;
}

static json_t *nic_find(const struct obj *g, const char *name, size_t *at)
{
	size_t i;
	json_t *n;

	json_array_foreach(json_object_get(g->doc, "nics"), i,
			   n) if (!strcmp(jstr_or(n, "name", ""), name))
	{
		*at = i;
		return n;
	}
	return NULL;
}

/* nic_change() - the guest's interfaces are @nics (stolen) from now on; who holds which address follows, also
 * where that is refused, or only tried. */
static int nic_change(struct core *c, struct req *r, struct obj *g, json_t *nics, struct err *e)
{
	json_t *before =
	    json_pack("{s:s, s:O}", "uuid", g->id, "nics", json_object_get(g->doc, "nics"));
	int ret;

	obj_before(c, g);
	guest_release_addresses(c, before);
	json_object_set_new(g->doc, "nics", nics);
	ret = guest_resolve_nics(c, g->doc, g->id, e);
	if (ret == 0)
		obj_put(c, g, PUT_ASKED);
	if (ret < 0 || r->dry_run) {
		guest_release_addresses(c, g->doc);
		guest_claim_addresses(c, before, g->id);
	}
	if (ret < 0)
		json_object_set(g->doc, "nics", json_object_get(before, "nics"));
	json_decref(before);
	if (ret < 0 || req_dry(r, g))
		return ret;
	forwards_guest(c, g);
	req_obj(r, 200, g);
	return 0;
}

int route_nic_attach(struct core *c, struct req *r, struct err *e)
{
	struct obj *g = nic_guest(c, r, GV_ATTACH, e);
	json_t *nics = g ? json_object_get(g->doc, "nics") : NULL, *nic;
	char name[32];
	size_t at;

	if (!g)
		return -e->num;
	if (json_array_size(nics) >= NICS_MAX)
		return err_set(e, E2BIG, "too-many-nics", "guest \"%s\" has %u network interfaces",
			       g->name, NICS_MAX);
	snprintf(name, sizeof(name), "%.31s", jstr_or(r->body, "name", ""));
	if (*name && nic_find(g, name, &at))
		return err_set(e, EEXIST, "nic-exists", "guest \"%s\" has an interface \"%s\"",
			       g->name, name);
	for (unsigned i = 0; !*name || (!jstr(r->body, "name") && nic_find(g, name, &at)); i++)
		snprintf(name, sizeof(name), "net%u", i);
	nic = json_deep_copy(r->body);
	jset_str(nic, "name", name);
	nics = json_deep_copy(nics);
	json_array_append_new(nics, nic);
	return nic_change(c, r, g, nics, e);
}

int route_nic_detach(struct core *c, struct req *r, struct err *e)
{
	struct obj *g = nic_guest(c, r, GV_DETACH, e);
	const char *name = jstr_or(r->body, "name", "");
	json_t *nics;
	size_t at;

	if (!g)
		return -e->num;
	if (!nic_find(g, name, &at)) {
		err_set(e, ENOENT, "nic-not-found", "guest \"%s\" has no interface \"%s\"", g->name,
			name);
		err_hint(e, "vmctl info %s", g->name);
		return -ENOENT;
	}
	nics = json_deep_copy(json_object_get(g->doc, "nics"));
	json_array_remove(nics, at);
	return nic_change(c, r, g, nics, e);
}
