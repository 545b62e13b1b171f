/* guest_adopt.c - after a restart of the daemon: find the guests that went on, and those that did
 * not.
 *
 * priv finds the sockets and opens pidfds; each guest answers hello with its state. Guests recorded
 * with a process that were not found ended while the daemon was away: that is recorded and their
 * taps, cgroups and uids are cleaned. A process found half configured cannot be taken on; it is
 * ended and its start runs again. A process nobody knows is left alone and reported.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/units.h"
#include "vmd/core/internal.h"
#include "vmd/roles.h"

struct adopt {
	struct core *c;
	unsigned waiting, found;
	bool listed, over;
	bool failed; /* priv could not say who runs: nobody is taken for dead */
	uint64_t began_ns;
};

struct adopt_one {
	struct adopt *a;
	struct guest *g;
};

static void adopt_over(struct adopt *a)
{
	struct core *c = a->c;

	if (!a->listed || a->waiting || a->over)
		return;
	a->over = true;
	if (a->failed) {
		free(a);
		if (!c->priv_lost)
			guest_adopt_all(c);
		return;
	}
	list_for_each_safe (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);
		struct guest *g = o->mem;

		/* a start that was asked for meanwhile is this daemon's own */
		if (g && (g->start || (g->op && g->op->ops == &op_guest_start)))
			continue;
		if (g && gstate_has_process(g->state) && g->pidfd < 0) {
			snprintf(g->why, sizeof(g->why),
				 "its process ended while the daemon was away");
			guest_gone(g, g->why, true);
		}
	}
	log_info("%u guests adopted in %llu ms", a->found,
		 (unsigned long long)((clock_mono_ns() - a->began_ns) / NS_PER_MS));
	c->n.adopted += a->found;
	c->adopted = true;
	free(a);
	op_resume_all(c);
	/* once a boot of the host: a guest that was stopped since then stays stopped */
	if (!strcmp(jstr_or(c->settings, "first_start", "0"), "1"))
		guest_autostart(c);
	guest_restarts_resume(c);
}

static void adopt_hello(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct adopt_one *one = arg;
	struct adopt *a = one->a;
	struct guest *g = one->g;
	struct msg_hello m;

	if (ev == CALL_ITEM)
		return;
	free(one);
	a->waiting--;
	if (e || msg_hello_decode(&m, b) < 0) {
		log_error("guest %s: found, but it does not answer: %s", g->o->name,
			  e ? e->detail : "malformed hello");
	} else {
		g->up_since_ns =
		    clock_mono_ns(); /* it is steady from here on, for its restart policy */
		switch ((enum guest_state)m.state) {
		case GUEST_RUNNING:
			if (g->state != G_RUNNING && g->state != G_STOPPING)
				guest_set_state(g,
						g->state == G_STARTING ||
							gstate_may_become(g->state, G_RUNNING)
						    ? G_RUNNING
						    : g->state,
						NULL);
			break;
		case GUEST_PAUSED:
			if (g->state == G_STARTING)
				guest_set_state(g, G_RUNNING, NULL);
			if (g->state != G_PAUSED && g->state != G_STOPPING)
				guest_set_state(g, G_PAUSED, "found paused");
			break;
		case GUEST_STOPPED:
			guest_quit_now(g);
			break;
		default:
			guest_kill(g, "it was not fully configured when the daemon ended");
		}
		a->found++;
	}
	adopt_over(a);
}

static void adopt_found(struct adopt *a, struct msg_p_guest_found *m)
{
	struct core *c = a->c;
	struct obj *o = obj_by_id(c, K_GUEST, m->uuid);
	struct guest *g = o ? o->mem : NULL;
	struct msg_hello hello = { .version = PROTO_VERSION, .pid = (uint64_t)getpid() };
	struct adopt_one *one;
	struct err e = { 0 };

	if (!g) {
		log_error("a guest process %llu with unknown uuid %s runs; left alone",
			  (unsigned long long)m->pid, m->uuid);
		event_add(c, "guest.unknown", "guest", m->uuid,
			  "process %llu belongs to no guest on record", (unsigned long long)m->pid);
		return;
	}
	if (guest_watch_pid(g, m->pidfd, (pid_t)m->pid) < 0)
		return;
	m->pidfd = -1;
	if (guest_linked(g, m->sock, &e) < 0)
		return;
	m->sock = -1;
	if (!gstate_has_process(g->state)) {
		guest_kill(g, "on record it does not run");
		return;
	}
	one = calloc(1, sizeof(*one));
	if (!one)
		return;
	*one = (struct adopt_one){ a, g };
	a->waiting++;
	snprintf(hello.role, sizeof(hello.role), "core");
	memcpy(hello.uuid, m->uuid, sizeof(hello.uuid));
	peer_call(g->link, MSG_hello, &hello, MSG_hello, 2000, adopt_hello, one);
}

static void adopt_listed(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct adopt *a = arg;
	struct msg_p_guest_found m;

	if (ev == CALL_ITEM) {
		if (b->type == MSG_p_guest_found && msg_p_guest_found_decode(&m, b) == 0) {
			adopt_found(a, &m);
			msg_p_guest_found_close(&m);
		}
		return;
	}
	if (e)
		log_error("guests of before cannot be found: %s", e->detail);
	a->failed = e != NULL;
	a->listed = true;
	adopt_over(a);
}

void guest_adopt_all(struct core *c)
{
	struct adopt *a = calloc(1, sizeof(*a));
	struct msg_p_guest_adopt m;

	if (!a)
		return;
	memset(&m, 0, sizeof(m));
	a->c = c;
	a->began_ns = clock_mono_ns();
	peer_call(c->priv, MSG_p_guest_adopt, &m, 0, 30000, adopt_listed, a);
}
