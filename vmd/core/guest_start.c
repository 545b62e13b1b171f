/* guest_start.c - starting a guest: resolve, open, spawn, configure, build.
 *
 * Everything is asked for at once and gathered: volumes of every disk's chain, kernel, initrd,
 * taps, far sides of ports. When all is there the jail is spawned, gets its configuration and
 * descriptors, builds and says ready. The first failure ends it: descriptors closed, taps and
 * process removed, the reason kept in the guest. What priv opened too late is closed on arrival.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/accel_words.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "common/units.h"
#include "devices/chardev.h"
#include "vmd/core/internal.h"

#define NEED_TIMEOUT_MS	 20000
#define BUILD_TIMEOUT_MS 60000
#define SCROLLBACK	 65536

enum need_kind { N_VOLUME, N_TAP, N_PORT, N_HOST, N_SAVED };

struct need {
	struct list node;
	struct start *s;
	enum need_kind kind;
	struct call *call;
	unsigned index, layer;
	int fds[16];
	unsigned nfds;
	struct disk_lease lease; /* its descriptor is the volume's second */
	bool read_only, kernel, initrd, console;
	char label[160], driver[16], text[256];
	struct port_spec spec;
	struct obj *pair; /* the guest at the other end of a port */
	char pair_port[32];
	int pair_fd;
};

struct start {
	struct guest *g;
	struct list needs;
	unsigned open; /* unanswered */
	bool spawned, failed, running;
	struct call *spawn, *build;
	unsigned sent;
	uint64_t lease_ms; /* what waiting for leases may take */
	struct err why;
	void (*done)(struct guest *g, const struct err *e);
};

static void start_fail(struct start *s, const struct err *e);
static void start_spawn(struct start *s);

static void need_free(struct need *n)
{
	call_forget(n->call);
	for (unsigned i = 0; i < n->nfds; i++)
		close_fd(&n->fds[i]);
	close_fd(&n->pair_fd);
	list_del(&n->node);
	free(n);
}

static void start_free(struct start *s)
{
	while (!list_empty(&s->needs))
		need_free(list_first(&s->needs, struct need, node));
	call_forget(s->spawn);
	call_forget(s->build);
	free(s);
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

static void mac_bytes(const char *text, uint8_t mac[6])
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
		mac_bytes(jstr_or(d, "mac", ""), mac);
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

/* ---- unwinding ---- */

static void start_fail(struct start *s, const struct err *e)
{
	struct guest *g = s->g;
	void (*done)(struct guest *, const struct err *) = s->done;
	struct err why = *e;

	if (s->spawned) {
		guest_kill(g, why.detail);
		call_forget(s->build); /* before the link that it waits on */
		s->build = NULL;
		peer_free(g->link);
		g->link = NULL;
		loop_fd_del(&g->pidfd_w);
		close_fd(&g->pidfd);
	}
	g->start = NULL;
	start_free(s);
	guest_cleanup_host(g);
	g->killed = false;
	done(g, &why);
}

void guest_start_cancel(struct guest *g)
{
	struct err e = { 0 };

	if (!g->start)
		return;
	if (!g->o->mem) { /* the object itself goes */
		start_free(g->start);
		g->start = NULL;
		return;
	}
	err_set(&e, ECONNRESET, "guest-died",
		"guest \"%s\": its process ended while it was started%s%s", g->o->name,
		*g->why ? ": " : "", g->why);
	err_hint(&e, "vmctl logs %s", g->o->name);
	start_fail(g->start, g->start->failed ? &g->start->why : &e);
}

/* ---- spawn and configure ---- */

static void start_conf_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct start *s = arg;

	if (ev == CALL_ITEM)
		return;
	/* the first refusal is the cause; the build's own failure only follows from it */
	if (e && e->num && !s->failed) {
		s->failed = true;
		s->why = *e;
		err_prefix(&s->why, "guest \"%s\"", s->g->o->name);
	}
}

static void start_send(struct start *s, uint16_t type, const void *msg)
{
	/* answered before the build's answer, on the same ordered link */
	peer_call(s->g->link, type, msg, 0, BUILD_TIMEOUT_MS + 1000, start_conf_done, s);
}

static struct need *start_need(struct start *s, enum need_kind kind, unsigned index, unsigned layer,
			       bool console)
{
	list_for_each (p, &s->needs) {
		struct need *n = container_of(p, struct need, node);

		if (n->kind == kind && n->index == index && n->layer == layer &&
		    n->console == console && !n->kernel && !n->initrd)
			return n;
	}
	return NULL;
}

static struct accel_words start_accel(const struct guest *g)
{
	struct accel_words w;

	if (accel_words(jstr_or(g->o->doc, "accel", "auto"), &w))
		accel_words("auto", &w);
	/* a saved state is of the accelerator that it ran on */
	const char *saved = jstr_or(g->o->doc, "saved_accel", "");

	if (*saved)
		snprintf(w.name, sizeof(w.name), "%.7s", saved);
	return w;
}

static void start_send_base(struct start *s)
{
	const json_t *d = s->g->o->doc;
	struct msg_g_config m = { .memory_fd = -1, .kvm_fd = s->g->kvm_fd };
	struct msg_g_boot boot = { .kernel_fd = -1, .initrd_fd = -1 };
	struct accel_words accel = start_accel(s->g);
	uint8_t gen[16] = { 0 };

	/* under virtual time each start is the same start */
	if (!accel.icount && getrandom(gen, sizeof(gen), 0) != (ssize_t)sizeof(gen))
		memset(gen, 0, sizeof(gen));
	snprintf(m.name, sizeof(m.name), "%.63s", s->g->o->name);
	snprintf(m.uuid, sizeof(m.uuid), "%.36s", s->g->o->id);
	snprintf(m.machine, sizeof(m.machine), "%.31s", jstr_or(d, "machine", "pc"));
	snprintf(m.accel, sizeof(m.accel), "%.7s", accel.name);
	m.icount = accel.icount;
	m.threads_one = accel.threads_one;
	snprintf(m.cpu_model, sizeof(m.cpu_model), "%.31s", jstr_or(d, "cpu_model", "host"));
	snprintf(m.cpu_flags, sizeof(m.cpu_flags), "%.255s", jstr_or(d, "cpu_flags", ""));
	m.vcpus = (uint64_t)jint(d, "cpus", 1);
	m.memory_bytes = (uint64_t)jsize(d, "memory", 512 << 20);
	snprintf(m.memory_pages, sizeof(m.memory_pages), "%.7s",
		 jstr_or(d, "memory_pages", "small"));
	m.nested = jbool(d, "nested", false);
	m.rng = jbool(d, "rng", true);
	m.reboot_stops = !strcmp(jstr_or(d, "on_reboot", ""), "stop");
	m.vmgenid = (struct proto_bytes){ gen, sizeof(gen) };
	start_send(s, MSG_g_config, &m);
	list_for_each (p, &s->needs) {
		struct need *n = container_of(p, struct need, node);

		if (n->kernel)
			boot.kernel_fd = n->fds[0];
		if (n->initrd)
			boot.initrd_fd = n->fds[0];
	}
	snprintf(boot.kernel_name, sizeof(boot.kernel_name), "%.127s", jstr_or(d, "kernel", ""));
	snprintf(boot.initrd_name, sizeof(boot.initrd_name), "%.127s", jstr_or(d, "initrd", ""));
	snprintf(boot.cmdline, sizeof(boot.cmdline), "%.4095s",
		 jstr_or(d, "cmdline", "console=ttyS0"));
	snprintf(boot.format, sizeof(boot.format), "%.15s", jstr_or(d, "boot_format", "auto"));
	start_send(s, MSG_g_boot, &boot);
}

static void start_send_saved(struct start *s)
{
	struct need *state = start_need(s, N_SAVED, 0, 0, false),
		    *memory = start_need(s, N_SAVED, 1, 0, false);
	struct msg_g_load m = { .state_fd = -1, .memory_fd = -1 };

	if (!state || !memory || !state->nfds || !memory->nfds)
		return;
	m.state_fd = state->fds[0];
	m.memory_fd = memory->fds[0];
	start_send(s, MSG_g_load, &m);
}

static unsigned start_cache(const char *s)
{
	return !strcmp(s, "none") ? 0 : !strcmp(s, "unsafe") ? 2 : 1;
}

static void start_send_disks(struct start *s)
{
	size_t i;
	json_t *d;

	json_array_foreach(json_object_get(s->g->o->doc, "disks"), i, d) for (unsigned layer = 0;;
									      layer++)
	{
		struct need *n = start_need(s, N_VOLUME, (unsigned)i, layer, false);
		const char *on = jstr_or(d, "on_error", "enospc-pause");
		struct msg_g_disk m = { .layer = layer, .lease_fd = -1 };

		if (!n || !n->nfds)
			break;
		snprintf(m.name, sizeof(m.name), "%.31s", jstr_or(d, "name", "disk"));
		memcpy(m.driver, n->driver, sizeof(m.driver));
		memcpy(m.label, n->label, sizeof(m.label));
		m.fd = n->fds[0];
		if (n->nfds > 1) {
			m.lease_fd = n->fds[1];
			m.lease_ms = n->lease.stale_ms;
			memcpy(m.lease_owner, n->lease.owner, sizeof(m.lease_owner));
			memcpy(m.lease_file, n->lease.top, sizeof(m.lease_file));
			memcpy(m.lease_host, n->lease.host, sizeof(m.lease_host));
			s->lease_ms += 3 * n->lease.stale_ms;
		}
		m.read_only = n->read_only;
		snprintf(m.serial, sizeof(m.serial), "%.20s",
			 jstr_or(d, "serial", jstr_or(d, "name", "")));
		m.queues = (uint64_t)jint(d, "queues", 1);
		m.on_error = !strcmp(on, "report") ? 1 : 0;
		m.cache = start_cache(jstr_or(d, "cache", "writeback"));
		m.discard = jbool(d, "discard", true);
		m.detect_zeroes = jbool(d, "detect_zeroes", false);
		start_send(s, MSG_g_disk, &m);
	}
}

static void start_send_nics(struct start *s)
{
	size_t i;
	json_t *d;

	json_array_foreach(json_object_get(s->g->o->doc, "nics"), i, d)
	{
		struct need *n = start_need(s, N_TAP, (unsigned)i, 0, false);
		unsigned q = (unsigned)jint(d, "queues", 1);
		struct msg_g_nic m = { .queues = q };
		uint8_t mac[6] = { 0 };
		int *const tap[8] = { &m.tap0, &m.tap1, &m.tap2, &m.tap3,
				      &m.tap4, &m.tap5, &m.tap6, &m.tap7 };
		int *const vhost[8] = { &m.vhost0, &m.vhost1, &m.vhost2, &m.vhost3,
					&m.vhost4, &m.vhost5, &m.vhost6, &m.vhost7 };

		for (unsigned k = 0; k < 8; k++)
			*tap[k] = *vhost[k] = -1;
		for (unsigned k = 0; n && k < q && k < 8 && k < n->nfds; k++)
			*tap[k] = n->fds[k];
		for (unsigned k = 0; n && k < q && k < 8 && q + k < n->nfds; k++)
			*vhost[k] = n->fds[q + k];
		m.vhost = n && n->nfds >= 2 * q;
		snprintf(m.name, sizeof(m.name), "%.31s", jstr_or(d, "name", "net"));
		mac_bytes(jstr_or(d, "mac", ""), mac);
		m.mac = (struct proto_bytes){ mac, 6 };
		m.mtu = (uint64_t)jint(d, "mtu", 0);
		start_send(s, MSG_g_nic, &m);
	}
}

static void start_send_ports(struct start *s)
{
	list_for_each (p, &s->needs) {
		struct need *n = container_of(p, struct need, node);
		json_t *port = json_array_get(
		    json_object_get(s->g->o->doc, n->console ? "consoles" : "serials"), n->index);
		struct msg_g_port m = { .bus = n->console,
					.kind = n->spec.chardev,
					.fd = n->nfds ? n->fds[0] : -1,
					.scrollback_bytes = SCROLLBACK };

		if (n->kind != N_PORT)
			continue;
		snprintf(m.name, sizeof(m.name), "%s%u", n->console ? "console" : "serial",
			 n->index);
		if (n->console && jstr(port, "name"))
			snprintf(m.name, sizeof(m.name), "%.31s", jstr(port, "name"));
		if (json_is_object(port))
			jset_str(port, "address", n->text);
		start_send(s, MSG_g_port, &m);
	}
}

/* The far guest's port gets the other socket only now that this side lives. */
static void start_join_ports(struct start *s)
{
	list_for_each (p, &s->needs) {
		struct need *n = container_of(p, struct need, node);
		struct guest *other = n->pair && !n->pair->dead ? n->pair->mem : NULL;
		struct msg_g_port_replace m = { .kind = CHARDEV_STREAM, .fd = n->pair_fd };

		if (!other || !other->link || n->pair_fd < 0)
			continue;
		memcpy(m.port, n->pair_port, sizeof(m.port));
		peer_send(other->link, MSG_g_port_replace, &m);
	}
}

static void start_limited(void *arg, const struct err *e)
{
	if (e)
		log_warn("limits of a guest's disks: %s", e->detail);
}

static void start_built(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct start *s = arg;
	struct guest *g = s->g;
	struct msg_g_ready m;
	struct err bad = { 0 };
	void (*done)(struct guest *, const struct err *) = s->done;

	if (ev == CALL_ITEM)
		return;
	s->build = NULL;
	if (!e && (b->type != MSG_g_ready || msg_g_ready_decode(&m, b) < 0)) {
		err_set(&bad, EPROTO, "bad-message", "it answered the build with something else");
		e = &bad;
	}
	if (e || s->failed) {
		if (!s->failed) {
			s->why = *e;
			err_prefix(&s->why, "guest \"%s\"", g->o->name);
		}
		bad = s->why;
		start_fail(s, &bad);
		return;
	}
	if (guest_saved(g)) {
		struct msg_g_start go;

		memset(&go, 0, sizeof(go));
		if (guest_saved_consume(g, &bad) < 0) {
			start_fail(s, &bad);
			return;
		}
		peer_send(g->link, MSG_g_start, &go);
	}
	start_join_ports(s);
	guest_limits_send(g, start_limited, g);
	jset_str(g->o->doc, "accel_used", m.accel);
	jset_str(g->o->doc, "accel_reason", m.reason);
	if (*m.boot_format)
		jset_str(g->o->doc, "boot_format_used", m.boot_format);
	json_object_set_new(g->o->doc, "build_us", json_integer((json_int_t)m.build_us));
	jset_str(g->o->doc, "jail", m.jail);
	if (m.net[0])
		jset_str(g->o->doc, "net_backend", m.net);
	json_object_set_new(g->o->doc, "started", jnow());
	g->up_since_ns = clock_mono_ns();
	g->start = NULL;
	start_free(s);
	done(g, NULL);
}

static void start_spawned(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct start *s = arg;
	struct guest *g = s->g;
	struct msg_result m;
	struct err bad = { 0 };
	struct msg_hello hello = { .version = PROTO_VERSION, .pid = (uint64_t)getpid() };
	struct msg_g_build build = { .start = 1 };

	if (ev == CALL_ITEM)
		return;
	s->spawn = NULL;
	/* even of a failure priv may have left something; but a process that was there before is not ours to end */
	s->spawned = !e || strcmp(e->code, "guest-running") != 0;
	if (!e && msg_result_decode(&m, b) < 0) {
		err_set(&bad, EPROTO, "bad-message",
			"priv answered the spawn with a malformed result");
		e = &bad;
	} else if (!e) {
		if (guest_watch_pid(g, m.fd, (pid_t)m.value) < 0)
			err_set(&bad, EPROTO, "spawn-failed", "guest \"%s\": no pidfd", g->o->name);
		else
			m.fd = -1;
		if (!bad.num && guest_linked(g, m.fd2, &bad) == 0)
			m.fd2 = -1;
		msg_result_close(&m);
		if (bad.num)
			e = &bad;
	}
	if (e) {
		bad = *e;
		start_fail(s, &bad);
		return;
	}
	json_object_set_new(guest_rt(g), "pid", json_integer(g->pid));
	json_object_set_new(g->o->doc, "pid", json_integer(g->pid));
	obj_put(g->c, g->o, PUT_FACT);
	snprintf(hello.role, sizeof(hello.role), "core");
	snprintf(hello.uuid, sizeof(hello.uuid), "%.36s", g->o->id);
	peer_send(g->link, MSG_hello, &hello);
	start_send_base(s);
	start_send_disks(s);
	start_send_nics(s);
	start_send_ports(s);
	start_send_saved(s);
	build.start = !guest_saved(g);
	s->build =
	    peer_call(g->link, MSG_g_build, &build, MSG_g_ready,
		      BUILD_TIMEOUT_MS + (unsigned)s->lease_ms, start_built, s);
}

static void start_spawn(struct start *s)
{
	struct guest *g = s->g;
	const json_t *d = g->o->doc;
	struct msg_p_guest_spawn m = { .uid_slot = (uint64_t)g->uid_slot,
				       .want_kvm = strcmp(start_accel(g).name, "soft") != 0 };

	/* the taps are on record before there is a process to own them */
	obj_put(g->c, g->o, PUT_FACT);
	m.memory_bytes = (uint64_t)jsize(d, "memory", 512 << 20);
	m.vcpus = (uint64_t)jint(d, "cpus", 1);
	snprintf(m.uuid, sizeof(m.uuid), "%.36s", g->o->id);
	snprintf(m.name, sizeof(m.name), "%.63s", g->o->name);
	s->spawn =
	    peer_call(g->c->priv, MSG_p_guest_spawn, &m, 0, NEED_TIMEOUT_MS, start_spawned, s);
}

void guest_start_begin(struct guest *g, void (*done)(struct guest *g, const struct err *e))
{
	struct start *s = calloc(1, sizeof(*s));
	struct err e = { 0 };

	if (!s) {
		err_set(&e, ENOMEM, "no-memory", "no memory to start guest \"%s\"", g->o->name);
		done(g, &e);
		return;
	}
	s->g = g;
	s->done = done;
	list_init(&s->needs);
	g->start = s;
	obj_before(g->c, g->o);
	json_decref(g->o->rt);
	g->uid_slot = uid_slot_take(g->c);
	g->o->rt = json_pack("{s:i, s:[]}", "uid_slot", g->uid_slot, "taps");
	if (g->uid_slot < 0)
		err_set(&e, EMFILE, "no-uid-left", "all %u uids of guests are in use",
			g->c->uid_slots);
	else if (start_images(s, &e) == 0 && start_saved(s, &e) == 0 && start_disks(s, &e) == 0 &&
		 start_nics(s, &e) == 0)
		start_ports(s, &e);
	if (e.num) {
		start_fail(s, &e);
		return;
	}
	g->c->n.starts++;
	if (!s->open)
		start_spawn(s);
}
