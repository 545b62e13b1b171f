/* link.c - the daemon's connection: one at a time, permit table first, requests answered by id.
 *
 * The process listens; the daemon connects, now and again after each of its own restarts. EOF means
 * "daemon away".
 * Trust: who connects is checked by SO_PEERCRED (root, or the daemon's own uid); what it sends by
 * proto_permit().
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/log.h"
#include "devices/virtio_devices.h"
#include "vmd/guest/guest.h"

void guest_reply(struct guest *g, uint32_t id, const struct err *e)
{
	struct msg_result m = { .num = (uint64_t)e->num };

	if (!g->conn || !id)
		return;
	memcpy(m.code, e->code, sizeof(m.code));
	memcpy(m.detail, e->detail, sizeof(m.detail));
	memcpy(m.hint, e->hint, sizeof(m.hint));
	msg_result_send(g->conn, &m, id);
}

void guest_tell(struct guest *g, const char *kind, const char *text)
{
	struct msg_g_event m = { .state = g->phase };

	snprintf(m.kind, sizeof(m.kind), "%s", kind);
	snprintf(m.text, sizeof(m.text), "%s", text);
	if (g->conn && msg_g_event_send(g->conn, &m, 0) == 0)
		return;
	snprintf(g->event_kind, sizeof(g->event_kind), "%s", kind);
	snprintf(g->event_text, sizeof(g->event_text), "%s", text);
	g->event_untold = true;
}

static void link_hello(struct guest *g, struct wire_buf *b)
{
	struct msg_hello in,
	    out = { .version = PROTO_VERSION, .state = g->phase, .pid = (uint64_t)getpid() };

	if (msg_hello_decode(&in, b) < 0)
		return;
	snprintf(out.role, sizeof(out.role), "guest");
	memcpy(out.uuid, g->uuid, sizeof(out.uuid));
	msg_hello_send(g->conn, &out, in.msg_id);
	if (g->event_untold) {
		g->event_untold = false;
		guest_tell(g, g->event_kind, g->event_text);
	}
}

static void link_build(struct guest *g, struct wire_buf *b)
{
	struct msg_g_build m;
	struct msg_g_ready ready = { 0 };
	struct err e = { 0 };

	if (msg_g_build_decode(&m, b) < 0)
		return;
	if (guest_build(g, &ready, &e) < 0) {
		/* nothing half-made goes on living: say why, and go */
		log_error("cannot build: %s", e.detail);
		guest_reply(g, m.msg_id, &e);
		loop_stop(g->loop);
		return;
	}
	msg_g_ready_send(g->conn, &ready, m.msg_id);
	if (m.start && guest_start(g, &e) < 0)
		guest_tell(g, "accel-failed", e.detail);
}

static void link_disk_job(struct guest *g, struct wire_buf *b)
{
	struct msg_g_disk_job m;
	struct err e = { 0 };

	if (msg_g_disk_job_decode(&m, b) < 0) {
		err_set(&e, EPROTO, "bad-message", "malformed g_disk_job");
		guest_reply(g, b->id, &e);
		return;
	}
	guest_disk_job(g, b->id, &m);
	msg_g_disk_job_close(&m);
}

static void link_save(struct guest *g, struct wire_buf *b)
{
	struct msg_g_save m;
	struct err e = { 0 };

	if (msg_g_save_decode(&m, b) < 0) {
		err_set(&e, EPROTO, "bad-message", "malformed g_save");
		guest_reply(g, b->id, &e);
		return;
	}
	guest_save(g, b->id, &m);
	msg_g_save_close(&m);
}

/* decode, act, reply, close what was not taken */
#define LINK_CASE(name, call) \
	case MSG_##name: { \
		struct msg_##name m; \
		if (msg_##name##_decode(&m, b) < 0) { \
			err_set(&e, EPROTO, "bad-message", "malformed " #name); \
		} else { \
			call; \
			msg_##name##_close(&m); \
		} \
		guest_reply(g, b->id, &e); \
		break; \
	}

static void link_message(void *arg, struct wire_conn *c, struct wire_buf *b)
{
	struct guest *g = arg;
	enum proto_state state = g->phase == GUEST_NEW ? PROTO_CONF : PROTO_LIVE;
	struct err e = { 0 };
	int r = proto_permit(b, PROTO_CORE, PROTO_GUEST, state);

	if (r < 0) {
		const struct proto_desc *d = proto_find(b->type);

		log_warn("refused message %s (0x%04x): %s", d ? d->name : "?", b->type,
			 strerror(-r));
		err_set(&e, -r, "not-permitted", "guest %s does not take %s now", g->name,
			d ? d->name : "that message");
		guest_reply(g, b->id, &e);
		return;
	}
	switch (b->type) {
	case MSG_hello:
		link_hello(g, b);
		break;
		LINK_CASE(g_config, guest_config_base(g, &m, &e))
		LINK_CASE(g_boot, guest_config_boot(g, &m, &e))
		LINK_CASE(g_disk, guest_config_disk(g, &m, &e))
		LINK_CASE(g_nic, guest_config_nic(g, &m, &e))
		LINK_CASE(g_port, guest_config_port(g, &m, &e))
		LINK_CASE(g_load, guest_config_load(g, &m, &e))
		LINK_CASE(g_disk_resize, guest_disk_resize(g, &m, &e))
		LINK_CASE(g_disk_limit, virtio_blk_limit(g->vm, m.name, m.iops, m.bps, &e))
		LINK_CASE(g_disk_overlay, guest_disk_overlay(g, &m, &e))
		LINK_CASE(g_disk_file, guest_disk_file(g, &m, &e))
		LINK_CASE(g_disk_cancel, guest_disk_cancel(g, m.job))
		LINK_CASE(g_start, guest_start(g, &e))
		LINK_CASE(g_power_button, guest_power_button(g))
		LINK_CASE(g_console, guest_console(g, &m, &e))
		LINK_CASE(g_port_replace, guest_port_replace(g, &m, &e))
	case MSG_g_build:
		link_build(g, b);
		break;
	case MSG_g_disk_job:
		link_disk_job(g, b);
		break;
	case MSG_g_save:
		link_save(g, b);
		break;
	case MSG_g_pause:
		guest_pause(g, b->id);
		break;
	case MSG_g_reset:
		guest_reset(g, b->id);
		break;
	case MSG_g_stat:
		guest_counters(g, b->id);
		break;
	case MSG_g_quit:
		guest_quit(g, b->id);
		break;
	case MSG_g_nmi:
		r = g->vm->accel->vcpu_nmi ? g->vm->accel->vcpu_nmi(g->vm->vcpus[0]) : -EOPNOTSUPP;
		if (r < 0)
			err_set(&e, -r, "nmi-failed",
				"guest %s: its accelerator refused the NMI: %s", g->name,
				strerror(-r));
		guest_reply(g, b->id, &e);
		break;
	default:
		err_set(&e, EOPNOTSUPP, "not-supported",
			"guest %s was built without message 0x%04x", g->name, b->type);
		guest_reply(g, b->id, &e);
	}
}

static void link_closed(void *arg, struct wire_conn *c, int why)
{
	struct guest *g = arg;

	wire_conn_free(c);
	if (g->conn == c)
		g->conn = NULL;
	/* never configured: there is no guest to keep */
	if (g->phase == GUEST_NEW) {
		log_info("the daemon went away before this guest was built");
		loop_stop(g->loop);
		return;
	}
	log_info("daemon away%s%s", why ? ": " : "", why ? strerror(-why) : "");
}

static void link_accept(void *arg, int fd, uint32_t events)
{
	struct guest *g = arg;
	int sock = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct wire_conn *conn;

	if (sock < 0)
		return;
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 ||
	    (cred.uid != 0 && cred.uid != g->peer_uid)) {
		log_warn("refused a connection of uid %d", (int)cred.uid);
		close(sock);
		return;
	}
	conn = wire_conn_new(g->loop, sock, WIRE_FDS_MAX, link_message, link_closed, g);
	if (!conn) {
		close(sock);
		return;
	}
	/* a new daemon takes over from one whose end was not yet seen */
	if (g->conn)
		wire_conn_free(g->conn);
	g->conn = conn;
}

int guest_link_start(struct guest *g, struct err *e)
{
	int r = loop_fd_add(g->loop, &g->listen_w, g->listen_fd, EPOLLIN, link_accept, g);

	return r < 0 ? err_set(e, -r, "no-socket", "cannot watch the listening socket: %s",
			       strerror(-r))
		     : 0;
}

void guest_link_stop(struct guest *g)
{
	loop_fd_del(&g->listen_w);
	if (g->conn)
		wire_conn_free(g->conn);
	g->conn = NULL;
}
