/* guest_needs.c - what a guest's start needs, asked for all at once: the volumes of every disk's chain, kernel,
 * initrd, saved state, taps and their addresses, far sides of ports. priv opens; what arrives is kept until
 * the guest's process gets it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "vmd/core/guest_start.h"

static void need_free(struct need *n)
{
	call_forget(n->call);
	for (unsigned i = 0; i < n->nfds; i++)
		close_fd(&n->fds[i]);
	close_fd(&n->pair_fd);
	list_del(&n->node);
	free(n);
}

void needs_free(struct start *s)
{
	struct need *n;

	while ((n = list_first(&s->needs, struct need, node)))
		need_free(n);
}

static struct need *need_new(struct start *s, enum need_kind kind)
{
	struct need *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->s = s;
	n->kind = kind;
	n->pair_fd = -1;
	list_add_tail(&s->needs, &n->node);
	return n;
}

/* Every descriptor of a result, in order: the two that have fields, then the rest. */
static int need_take(struct need *n, struct wire_buf *b)
{
	struct msg_result m;

	if (msg_result_decode(&m, b) < 0)
		return -EPROTO;
	if (m.fd >= 0)
		n->fds[n->nfds++] = m.fd;
	if (m.fd2 >= 0)
		n->fds[n->nfds++] = m.fd2;
	for (unsigned i = 0; i < WIRE_FDS_MAX && n->nfds < 16; i++) {
		int fd = wire_take_fd(b, i);

		if (fd >= 0)
			n->fds[n->nfds++] = fd;
	}
	snprintf(n->text, sizeof(n->text), "%.255s", m.text);
	return 0;
}

static void need_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct need *n = arg;
	struct start *s = n->s;
	struct err bad = { 0 };

	if (ev == CALL_ITEM)
		return;
	n->call = NULL;
	s->open--;
	if (!e && need_take(n, b) < 0) {
		err_set(&bad, EPROTO, "bad-message", "priv answered with a malformed result");
		e = &bad;
	}
	if (!e && n->kind == N_TAP)
		json_array_append_new(json_object_get(s->g->o->rt, "taps"), json_string(n->text));
	if (e) {
		struct err named = *e;

		err_prefix(&named, "guest \"%s\", %s", s->g->o->name, n->label);
		start_fail(s, &named);
		return;
	}
	if (!s->open)
		start_spawn(s);
}

static int need_ask(struct need *n, uint16_t type, const void *msg)
{
	n->call = peer_call(n->s->g->c->priv, type, msg, 0, NEED_TIMEOUT_MS, need_done, n);
	if (!n->call)
		return -ENOMEM;
	n->s->open++;
	return 0;
}

static int need_volume(struct start *s, struct obj *o, unsigned index, unsigned layer,
		       bool read_only, bool direct, struct need **out)
{
	struct need *n = need_new(s, N_VOLUME);
	struct msg_p_volume_open m = { .mode = read_only ? 0 : 1, .direct = direct };
	char who[64];

	if (!n)
		return -ENOMEM;
	n->index = index;
	n->layer = layer;
	n->read_only = read_only;
	snprintf(who, sizeof(who), "guest %.40s", s->g->o->name);
	if (!read_only && disk_lease_of(s->g->c, o, who, &n->lease))
		memcpy(m.lease, n->lease.file, sizeof(m.lease));
	snprintf(n->label, sizeof(n->label), "%s %.120s", kind_name(o->kind), o->name);
	snprintf(n->driver, sizeof(n->driver), "%s", disk_driver(jstr_or(o->doc, "format", "raw")));
	volume_file(o, m.pool, m.name);
	if (out)
		*out = n;
	return need_ask(n, MSG_p_volume_open, &m);
}

static int start_images(struct start *s, struct err *e)
{
	struct core *c = s->g->c;
	static const char *const keys[] = { "kernel", "initrd" };

	for (int i = 0; i < 2; i++) {
		const char *name = jstr(s->g->o->doc, keys[i]);
		struct need *n;
		struct obj *o;

		if (!name || !*name)
			continue;
		o = obj_find(c, K_IMAGE, name, e);
		if (!o)
			return -ENOENT;
		if (strcmp(jstr_or(o->doc, "state", ""), "ready"))
			return err_set(e, EBUSY, "image-not-ready", "image \"%s\" is %s", name,
				       jstr_or(o->doc, "state", "?"));
		if (need_volume(s, o, 0, 0, true, false, &n) < 0)
			return err_set(e, ENOMEM, "no-memory", "no memory");
		n->kernel = i == 0;
		n->initrd = i == 1;
	}
	if (!jstr(s->g->o->doc, "kernel")) {
		err_set(e, EINVAL, "no-kernel", "guest \"%s\" has no kernel to boot",
			s->g->o->name);
		err_hint(e, "vmctl set %s --kernel IMAGE", s->g->o->name);
		return -EINVAL;
	}
	return 0;
}

static int start_saved(struct start *s, struct err *e)
{
	for (unsigned i = 0; guest_saved(s->g) && i < 2; i++) {
		struct need *n = need_new(s, N_SAVED);
		struct msg_p_volume_open m = { .mode = VOLUME_READ };

		if (!n)
			return err_set(e, ENOMEM, "no-memory", "no memory");
		n->index = i;
		snprintf(n->label, sizeof(n->label), "saved %s", i ? "memory" : "state");
		guest_saved_file(s->g->o, i, m.pool, m.name);
		if (need_ask(n, MSG_p_volume_open, &m) < 0)
			return err_set(e, ENOMEM, "no-memory", "no memory");
	}
	return 0;
}

static int start_disks(struct start *s, struct err *e)
{
	struct core *c = s->g->c;
	size_t i;
	json_t *d;

	json_array_foreach(json_object_get(s->g->o->doc, "disks"), i, d)
	{
		struct obj *disk = disk_find(c, jstr_or(d, "disk", ""), e);
		struct chain_layer layers[DISK_CHAIN_MAX];
		bool ro = jbool(d, "read_only", false);
		int n;

		if (!disk)
			return -ENOENT;
		n = disk_chain(c, disk, layers, DISK_CHAIN_MAX, false, e);
		if (n < 0)
			return n;
		for (int l = 0; l < n; l++)
			if (need_volume(s, layers[l].o, (unsigned)i, (unsigned)l, l > 0 || ro,
					l == 0 && !strcmp(jstr_or(d, "cache", ""), "none"),
					NULL) < 0)
				return err_set(e, ENOMEM, "no-memory", "no memory");
	}
	return 0;
}

void nic_mac(const char *text, uint8_t mac[6])
{
	unsigned v[6] = { 0 };

	if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5]) != 6)
		return;
	for (int i = 0; i < 6; i++)
		mac[i] = (uint8_t)v[i];
}

static int start_nics(struct start *s, struct err *e)
{
	struct core *c = s->g->c;
	size_t i;
	json_t *d;

	json_array_foreach(json_object_get(s->g->o->doc, "nics"), i, d)
	{
		struct obj *net = obj_find(c, K_NETWORK, jstr_or(d, "network", ""), e);
		struct msg_p_tap_add m = { .vhost = 1, .queues = (uint64_t)jint(d, "queues", 1) };
		struct need *n;
		uint8_t mac[6] = { 0 };

		if (!net)
			return -ENOENT;
		if (jstr(d, "ip") && jbool(net->doc, "dhcp", false)) {
			struct msg_p_dhcp_host h = { 0 };

			n = need_new(s, N_HOST);
			if (!n)
				return err_set(e, ENOMEM, "no-memory", "no memory");
			snprintf(n->label, sizeof(n->label), "lease on %.63s", net->name);
			snprintf(h.net, sizeof(h.net), "%.63s", net->name);
			snprintf(h.mac, sizeof(h.mac), "%.17s", jstr_or(d, "mac", ""));
			snprintf(h.ip, sizeof(h.ip), "%.15s", jstr(d, "ip"));
			snprintf(h.name, sizeof(h.name), "%.63s", s->g->o->name);
			if (need_ask(n, MSG_p_dhcp_host, &h) < 0)
				return err_set(e, ENOMEM, "no-memory", "no memory");
		}
		n = need_new(s, N_TAP);
		if (!n)
			return err_set(e, ENOMEM, "no-memory", "no memory");
		n->index = (unsigned)i;
		snprintf(n->label, sizeof(n->label), "nic %.31s on %.63s", jstr_or(d, "name", "?"),
			 net->name);
		snprintf(m.net, sizeof(m.net), "%.63s", net->name);
		snprintf(m.bridge, sizeof(m.bridge), "%.15s", jstr_or(net->doc, "bridge", ""));
		/* from the UUID: what a crash leaves behind is found again by name */
		snprintf(m.ifname, sizeof(m.ifname), "vt%.8s%x", s->g->o->id, (unsigned)i & 31);
		m.mtu = (uint64_t)jint(d, "mtu", jint(net->doc, "mtu", 0));
		nic_mac(jstr_or(d, "mac", ""), mac);
		m.mac = (struct proto_bytes){ mac, 6 };
		if (need_ask(n, MSG_p_tap_add, &m) < 0)
			return err_set(e, ENOMEM, "no-memory", "no memory");
	}
	return 0;
}

static int start_port(struct start *s, const char *spec, unsigned index, bool console,
		      struct err *e)
{
	struct core *c = s->g->c;
	struct need *n = need_new(s, N_PORT);
	struct msg_p_chardev_open m = { 0 };
	int r, pair[2];

	if (!n)
		return err_set(e, ENOMEM, "no-memory", "no memory");
	n->index = index;
	n->console = console;
	snprintf(n->label, sizeof(n->label), "%s%u (%.100s)", console ? "console" : "serial", index,
		 spec);
	r = port_spec_parse(spec, &n->spec, e);
	if (r < 0)
		return r;
	if (!strcmp(n->spec.kind, "null"))
		return 0;
	if (!strcmp(n->spec.kind, "guest")) {
		char *colon = strrchr(n->spec.target, ':');
		struct obj *other;

		if (colon)
			*colon = '\0';
		other = obj_by_name(c, K_GUEST, n->spec.target);
		/* nobody there yet: that guest connects both when it starts */
		if (!other || !other->mem || !((struct guest *)other->mem)->link ||
		    other == s->g->o) {
			n->spec.chardev = CHARDEV_NULL;
			return 0;
		}
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
			return err_set(e, errno, "no-socket", "no pair of sockets: %s",
				       strerror(errno));
		n->fds[n->nfds++] = pair[0];
		n->pair_fd = pair[1];
		n->pair = other;
		snprintf(n->pair_port, sizeof(n->pair_port), "%.31s",
			 colon ? colon + 1 : "serial0");
		return 0;
	}
	snprintf(m.kind, sizeof(m.kind), "%s", n->spec.kind);
	snprintf(m.path, sizeof(m.path), "%.255s", n->spec.target);
	snprintf(m.uuid, sizeof(m.uuid), "%.36s", s->g->o->id);
	snprintf(m.port, sizeof(m.port), "%s%u", console ? "console" : "serial", index);
	m.append = n->spec.append;
	return need_ask(n, MSG_p_chardev_open, &m) < 0
		   ? err_set(e, ENOMEM, "no-memory", "no memory")
		   : 0;
}

static int start_ports(struct start *s, struct err *e)
{
	static const char *const keys[] = { "serials", "consoles" };
	size_t i;
	json_t *p;
	int r;

	for (int k = 0; k < 2; k++)
		json_array_foreach(json_object_get(s->g->o->doc, keys[k]), i, p)
		{
			r = start_port(s,
				       json_is_string(p) ? json_string_value(p)
							 : jstr_or(p, "spec", "null"),
				       (unsigned)i, k == 1, e);
			if (r < 0)
				return r;
		}
	return 0;
}

int start_gather(struct start *s, struct err *e)
{
	int r = start_images(s, e);

	r = r ? r : start_saved(s, e);
	r = r ? r : start_disks(s, e);
	r = r ? r : start_nics(s, e);
	return r ? r : start_ports(s, e);
}
