/* guest_configure.c - a new guest's process is told what it is, message by message, with the descriptors that
 * were gathered. Each is answered before the build is; the first refusal is the start's cause of failure.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/text.h"
#include "common/units.h"
#include "vmd/core/guest_start.h"

#define SCROLLBACK 65536

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

struct accel_words start_accel(const struct guest *g)
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
		nic_mac(jstr_or(d, "mac", ""), mac);
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

void start_join_ports(struct start *s)
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

void start_configure(struct start *s)
{
	start_send_base(s);
	start_send_disks(s);
	start_send_nics(s);
	start_send_ports(s);
	start_send_saved(s);
}
