/* net.c - networks: records here, bridges, NAT and DHCP by priv. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/core/internal.h"

void ip4_text(uint32_t ip, char out[16])
{
	snprintf(out, 16, "%u.%u.%u.%u", ip >> 24, ip >> 16 & 255, ip >> 8 & 255, ip & 255);
}

bool ip4_parse(const char *text, uint32_t *ip)
{
	struct in_addr a;

	if (!text || inet_pton(AF_INET, text, &a) != 1)
		return false;
	*ip = ntohl(a.s_addr);
	return true;
}

bool cidr4_parse(const char *text, uint32_t *addr, unsigned *prefix)
{
	char ip[16];
	const char *slash = text ? strchr(text, '/') : NULL;
	char *end;

	if (!slash || (size_t)(slash - text) >= sizeof(ip))
		return false;
	snprintf(ip, sizeof(ip), "%.*s", (int)(slash - text), text);
	*prefix = (unsigned)strtoul(slash + 1, &end, 10);
	return ip4_parse(ip, addr) && *end == '\0' && end > slash + 1 && *prefix >= 8 &&
	       *prefix <= 30;
}

int net_ip_pick(struct core *c, struct obj *net, char ip[16], struct err *e)
{
	uint32_t first, last, at;
	char key[128];

	if (!ip4_parse(jstr(net->doc, "dhcp_first"), &first) ||
	    !ip4_parse(jstr(net->doc, "dhcp_last"), &last) || last < first)
		return err_set(e, EINVAL, "no-range", "network \"%s\" has no DHCP range",
			       net->name);
	/* from where the last search ended: a create costs one look */
	at = (uint32_t)(jint(net->rt, "next_ip", first));
	for (uint64_t n = 0; n <= last - first; n++, at++) {
		if (at < first || at > last)
			at = first;
		ip4_text(at, ip);
		snprintf(key, sizeof(key), "%.63s/%.40s", net->name, ip);
		if (!json_object_get(c->ips, key)) {
			if (!net->rt)
				net->rt = json_object();
			json_object_set_new(net->rt, "next_ip", json_integer(at + 1));
			return 0;
		}
	}
	err_set(e, EADDRINUSE, "no-address-left",
		"network \"%s\": every address of its DHCP range is given out", net->name);
	return -EADDRINUSE;
}

/* ---- networks ---- */

/* An object may be deleted while priv works: it is kept by id. */
struct net_arg {
	struct core *c;
	struct req *r;
	char id[40];
};

static struct net_arg *net_arg_new(struct core *c, struct req *r, const struct obj *o)
{
	struct net_arg *a = calloc(1, sizeof(*a));

	if (a) {
		a->c = c;
		a->r = r;
		snprintf(a->id, sizeof(a->id), "%s", o->id);
	}
	return a;
}

static void net_host_told(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (ev != CALL_ITEM && e)
		log_error("a running guest's fixed address is not kept for it: %s", e->detail);
}

/* A new priv knows no fixed leases: those of the guests that run are told again. */
static void net_hosts_again(struct core *c, struct obj *net)
{
	struct msg_p_dhcp_host h = { 0 };
	size_t i;
	json_t *n;

	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (!o->mem || !gstate_has_process(((struct guest *)o->mem)->state))
			continue;
		json_array_foreach(json_object_get(o->doc, "nics"), i, n)
		{
			if (!jstr(n, "ip") || strcmp(jstr_or(n, "network", ""), net->name))
				continue;
			h.more = 1;
			if (*h.mac)
				peer_call(c->priv, MSG_p_dhcp_host, &h, 0, 15000, net_host_told,
					  NULL);
			snprintf(h.net, sizeof(h.net), "%.63s", net->name);
			snprintf(h.mac, sizeof(h.mac), "%.17s", jstr_or(n, "mac", ""));
			snprintf(h.ip, sizeof(h.ip), "%.15s", jstr(n, "ip"));
			snprintf(h.name, sizeof(h.name), "%.63s", o->name);
		}
	}
	h.more = 0;
	if (*h.mac)
		peer_call(c->priv, MSG_p_dhcp_host, &h, 0, 15000, net_host_told, NULL);
}

static void net_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct net_arg *a = arg;
	struct obj *o = obj_by_id(a->c, K_NETWORK, a->id);
	struct msg_result m = { 0 };
	struct err gone = { 0 };

	if (ev == CALL_ITEM)
		return;
	if (!e && msg_result_decode(&m, b) == 0)
		msg_result_close(&m);
	if (!o) {
		err_set(&gone, ENOENT, "network-not-found",
			"the network was removed while it was made");
		if (a->r)
			req_fail(a->r, e ? e : &gone, NULL, NULL);
		free(a);
		return;
	}
	obj_before(a->c, o);
	json_object_set_new(o->doc, "state", json_string(e ? "error" : "up"));
	if (!e && !json_object_get(o->rt, "made_bridge"))
		json_object_set_new(o->rt, "made_bridge", json_boolean(m.value == 1));
	if (a->r && e && !strcmp(e->code, "peer-gone")) {
		/* half of it may be there: the next start takes it down */
		json_object_set_new(o->doc, "state", json_string("removing"));
		obj_put(a->c, o, PUT_FACT);
		req_fail(a->r, e, NULL, NULL);
	} else if (a->r && e) {
		obj_del(a->c, o, PUT_FACT);
		req_fail(a->r, e, NULL, NULL);
	} else {
		if (e)
			log_error("network %s: %s", o->name, e->detail);
		obj_put(a->c, o, PUT_FACT);
		if (!e && jbool(o->doc, "dhcp", false))
			net_hosts_again(a->c, o);
		if (!e)
			forwards_net_up(a->c, o);
		if (a->r)
			req_obj(a->r, 201, o);
	}
	free(a);
}

static void net_up(struct core *c, struct obj *o, struct req *r)
{
	struct net_arg *a = net_arg_new(c, r, o);
	struct msg_p_net_up m = { 0 };

	if (!a)
		return;
	snprintf(m.net, sizeof(m.net), "%.63s", o->name);
	snprintf(m.bridge, sizeof(m.bridge), "%.15s", jstr_or(o->doc, "bridge", ""));
	m.make_bridge = json_object_get(o->rt, "made_bridge")
			    ? (uint64_t)jbool(o->rt, "made_bridge", false)
			    : 2;
	snprintf(m.cidr4, sizeof(m.cidr4), "%.18s", jstr_or(o->doc, "cidr", ""));
	m.nat = jbool(o->doc, "nat", false);
	m.dhcp = jbool(o->doc, "dhcp", false);
	snprintf(m.dhcp_first, sizeof(m.dhcp_first), "%.15s", jstr_or(o->doc, "dhcp_first", ""));
	snprintf(m.dhcp_last, sizeof(m.dhcp_last), "%.15s", jstr_or(o->doc, "dhcp_last", ""));
	snprintf(m.domain, sizeof(m.domain), "%.63s", jstr_or(o->doc, "domain", ""));
	m.mtu = (uint64_t)jint(o->doc, "mtu", 0);
	m.isolated = jbool(o->doc, "isolated", false);
	peer_call(c->priv, MSG_p_net_up, &m, 0, 30000, net_opened, a);
}

static void net_downed(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct net_arg *a = arg;
	struct obj *o = obj_by_id(a->c, K_NETWORK, a->id);
	struct req *r = a->r;

	if (ev == CALL_ITEM)
		return;
	if (e && !strcmp(e->code, "peer-gone")) {
		/* "removing" on record: it goes on at the next start */
		if (r)
			req_fail(r, e, NULL, NULL);
		free(a);
		return;
	}
	if (e)
		log_warn("a network could not be taken down: %s", e->detail);
	if (o)
		obj_del(a->c, o, PUT_FACT);
	if (r)
		req_reply(r, 204, NULL, 0, NULL);
	free(a);
}

static void net_take_down(struct core *c, struct obj *o, struct req *r)
{
	struct net_arg *a = net_arg_new(c, r, o);
	struct msg_p_net_down m = { 0 };

	if (!a)
		return;
	snprintf(m.net, sizeof(m.net), "%.63s", o->name);
	snprintf(m.bridge, sizeof(m.bridge), "%.15s", jstr_or(o->doc, "bridge", ""));
	m.made_bridge = jbool(o->rt, "made_bridge", false);
	peer_call(c->priv, MSG_p_net_down, &m, 0, 30000, net_downed, a);
}

void net_up_all(struct core *c)
{
	list_for_each (p, &c->kinds[K_NETWORK].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(o->doc, "state", ""), "removing"))
			net_take_down(c, o, NULL);
		else
			net_up(c, o, NULL);
	}
}

int route_net_create(struct core *c, struct req *r, struct err *e)
{
	const char *name = jstr_or(r->body, "name", "");
	char id[UUID_TEXT_LEN], text[16];
	uint32_t addr;
	unsigned prefix;
	struct obj *o;
	json_t *doc;

	if (!name_valid(name))
		return err_set(e, EINVAL, "bad-name", "\"%s\" is not a name for a network", name);
	if (obj_by_name(c, K_NETWORK, name))
		return err_set(e, EEXIST, "network-exists", "a network named \"%s\" exists already",
			       name);
	doc = json_deep_copy(r->body);
	if (jstr(doc, "cidr")) {
		uint32_t mask;

		if (!cidr4_parse(jstr(doc, "cidr"), &addr, &prefix)) {
			json_decref(doc);
			snprintf(c->bad_field, sizeof(c->bad_field), "cidr");
			return err_set(
			    e, EINVAL, "bad-cidr",
			    "network \"%s\": \"%s\" is not an address with a prefix from 8 to 30",
			    name, jstr(r->body, "cidr"));
		}
		mask = ~0u << (32 - prefix);
		if (!json_object_get(doc, "nat"))
			json_object_set_new(doc, "nat", json_true());
		if (!json_object_get(doc, "dhcp"))
			json_object_set_new(doc, "dhcp", json_true());
		if (!jstr(doc, "dhcp_first")) {
			ip4_text((addr & mask) + ((addr & ~mask) <= 1 ? 2 : 1), text);
			json_object_set_new(doc, "dhcp_first", json_string(text));
		}
		if (!jstr(doc, "dhcp_last")) {
			ip4_text((addr | ~mask) - 1, text);
			json_object_set_new(doc, "dhcp_last", json_string(text));
		}
	}
	if (r->dry_run) {
		req_reply(r, 200, doc, 0, NULL);
		return 0;
	}
	uuid_make(id);
	json_object_set_new(doc, "state", json_string("down"));
	json_object_set_new(doc, "guests", json_integer(0));
	json_object_set_new(doc, "created", jnow());
	o = obj_new(c, K_NETWORK, id, name, doc);
	if (!o)
		return err_set(e, ENOMEM, "no-memory", "no memory");
	/* whether a named bridge is ours is known once priv has looked for it */
	o->rt = jstr(doc, "bridge") ? json_object() : json_pack("{s:b}", "made_bridge", 1);
	if (!jstr(doc, "bridge")) {
		snprintf(text, sizeof(text), strlen(name) <= 10 ? "vmbr-%.10s" : "vb-%.11s",
			 strlen(name) <= 10 ? name : id + 24);
		json_object_set_new(doc, "bridge", json_string(text));
	}
	obj_put(c, o, PUT_ASKED);
	/* no bridge without a record, whatever is killed when: priv is asked once it is written */
	round_commit(c);
	o = obj_by_id(c, K_NETWORK, id);
	if (!o)
		return err_set(e, EROFS, "state-read-only", "network \"%s\": %.300s", name,
			       c->read_only_why);
	net_up(c, o, r);
	return 0;
}

int route_net_delete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_NETWORK, r->name, e);
	size_t i;
	json_t *n;

	if (!o)
		return -ENOENT;
	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *g = container_of(p, struct obj, node);

		json_array_foreach(json_object_get(g->doc, "nics"), i, n) if (
		    !strcmp(jstr_or(n, "network", ""),
			    o->name)) return err_set(e, EBUSY, "network-in-use",
						     "network \"%s\" is used by guest \"%s\"",
						     o->name, jstr_or(g->doc, "name", "?"));
	}
	if (req_dry(r, o))
		return 0;
	/* on record before it is done: whatever dies meanwhile, no guest gets onto it any more, and
	 * nothing of it stays. Answered when it is down */
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string("removing"));
	obj_put(c, o, PUT_ASKED);
	net_take_down(c, o, r);
	return 0;
}

static void leases_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct req *r = arg;
	struct msg_result m;
	json_t *items;
	char buf[65536], *save = NULL;
	ssize_t n = 0;

	if (ev == CALL_ITEM)
		return;
	if (e) {
		req_fail(r, e, NULL, NULL);
		return;
	}
	items = json_array();
	if (msg_result_decode(&m, b) == 0) {
		n = m.fd >= 0 ? pread(m.fd, buf, sizeof(buf) - 1, 0) : 0;
		msg_result_close(&m);
	}
	buf[n > 0 ? n : 0] = '\0';
	/* dnsmasq: expiry mac ip name client-id */
	for (char *line = strtok_r(buf, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char mac[32], ip[32], name[80], when[32];
		long long expiry;

		if (sscanf(line, "%lld %31s %31s %79s", &expiry, mac, ip, name) != 4 ||
		    !utf8_valid(name, strlen(name)))
			continue;
		time_text((uint64_t)expiry * 1000, when);
		json_array_append_new(items, json_pack("{s:s, s:s, s:s, s:s}", "mac", mac, "ip", ip,
						       "name", name, "expires", when));
	}
	req_reply(r, 200, json_pack("{s:o}", "items", items), 0, NULL);
}

int route_net_leases(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_NETWORK, r->name, e);
	struct msg_p_dhcp_leases m = { 0 };

	if (!o)
		return -ENOENT;
	snprintf(m.net, sizeof(m.net), "%.63s", o->name);
	peer_call(c->priv, MSG_p_dhcp_leases, &m, 0, 10000, leases_done, r);
	return 0;
}

void net_count_guests(struct core *c)
{
	json_t *count = json_object(), *nic;
	size_t i;

	c->nets_stale = false;
	list_for_each (p, &c->kinds[K_GUEST].all)
		json_array_foreach(json_object_get(container_of(p, struct obj, node)->doc, "nics"),
				   i, nic)
		{
			const char *net = jstr_or(nic, "network", "");

			json_object_set_new(count, net, json_integer(jint(count, net, 0) + 1));
		}
	list_for_each (p, &c->kinds[K_NETWORK].all) {
		struct obj *o = container_of(p, struct obj, node);
		int64_t n = jint(count, o->name, 0);

		if (jint(o->doc, "guests", -1) == n)
			continue;
		json_object_set_new(o->doc, "guests", json_integer(n));
		obj_show(c, o);
	}
	json_decref(count);
}
