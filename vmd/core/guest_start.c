/* guest_start.c - starting a guest: resolve, open, spawn, configure, build.
 *
 * Everything is asked for at once and gathered (guest_needs.c). When all is there the jail is spawned, gets
 * its configuration and descriptors (guest_configure.c), builds and says ready. The first failure ends it:
 * descriptors closed, taps and process removed, the reason kept in the guest. What priv opened too late is
 * closed on arrival.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/units.h"
#include "vmd/core/guest_start.h"

static void start_free(struct start *s)
{
	needs_free(s);
	call_forget(s->spawn);
	call_forget(s->build);
	free(s);
}

/* ---- unwinding ---- */

void start_fail(struct start *s, const struct err *e)
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

/* ---- spawn and build ---- */

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
	start_configure(s);
	build.start = !guest_saved(g);
	s->build = peer_call(g->link, MSG_g_build, &build, MSG_g_ready,
			     BUILD_TIMEOUT_MS + (unsigned)s->lease_ms, start_built, s);
}

void start_spawn(struct start *s)
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
	else
		start_gather(s, &e);
	if (e.num) {
		start_fail(s, &e);
		return;
	}
	g->c->n.starts++;
	if (!s->open)
		start_spawn(s);
}
