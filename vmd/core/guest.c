/* guest.c - guests as objects: their facts in this process, state changes, restart policy, the
 * trash.
 *
 * obj->doc is what GET shows; obj->rt holds what re-adoption needs: pid, uid slot, taps. struct
 * guest hangs on obj->mem.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/core/internal.h"
#include "vmd/roles.h"

#define BACKOFF_MAX_S 60
#define STEADY_NS     (60 * NS_PER_S) /* up for so long: the back-off starts anew */

struct guest *guest_of(struct obj *o)
{
	return o->mem;
}

json_t *guest_rt(struct guest *g)
{
	if (!g->o->rt)
		g->o->rt = json_object();
	return g->o->rt;
}

static void guest_restart_due(void *arg)
{
	struct guest *g = arg;
	struct err e = { 0 };
	struct op *op;

	if (g->c->stopping || g->op || gstate_has_process(g->state))
		return;
	if (guest_start_op(g, "system", &op, &e) < 0)
		log_warn("guest %s: restart: %s", g->o->name, e.detail);
}

struct guest *guest_attach(struct core *c, struct obj *o)
{
	struct guest *g = calloc(1, sizeof(*g));
	int s = gstate_parse(jstr(o->doc, "state"));

	if (!g)
		return NULL;
	g->c = c;
	g->o = o;
	g->state = s < 0 ? G_STOPPED : (enum gstate)s;
	g->pidfd = -1;
	g->pidfd_w.fd = -1;
	g->kvm_fd = -1;
	g->restarts = (unsigned)jint(o->rt, "restarts", 0);
	g->uid_slot = (int)jint(o->rt, "uid_slot", -1);
	g->pid = (pid_t)jint(o->rt, "pid", 0);
	list_init(&g->waiters);
	loop_timer_init(c->loop, &g->stop_timer, NULL, g);
	loop_timer_init(c->loop, &g->restart_timer, guest_restart_due, g);
	if (g->uid_slot >= 0 && (unsigned)g->uid_slot < c->uid_slots)
		c->uid_used[g->uid_slot] = 1;
	o->mem = g;
	return g;
}

void guest_detach(struct obj *o)
{
	struct guest *g = o->mem;

	if (!g)
		return;
	o->mem = NULL;
	guest_start_cancel(g);
	peer_free(g->link);
	loop_fd_del(&g->pidfd_w);
	close_fd(&g->pidfd);
	loop_timer_stop(&g->stop_timer);
	loop_timer_stop(&g->restart_timer);
	uid_slot_put(g->c, g->uid_slot);
	json_decref(g->counters);
	free(g);
}

int uid_slot_take(struct core *c)
{
	for (unsigned i = 0; i < c->uid_slots; i++)
		if (!c->uid_used[i]) {
			c->uid_used[i] = 1;
			return (int)i;
		}
	return -1;
}

void uid_slot_put(struct core *c, int slot)
{
	if (slot >= 0 && (unsigned)slot < c->uid_slots)
		c->uid_used[slot] = 0;
}

struct obj *guest_find(struct core *c, const char *name, struct err *e)
{
	return obj_find(c, K_GUEST, name, e);
}

void guest_retry_waiters(struct guest *g)
{
	list_for_each_safe (p, &g->waiters) {
		struct req *r = container_of(p, struct req, guest_node);

		if (r->want_states & 1u << g->state)
			req_obj(r, 200, g->o);
	}
}

void guest_set_state(struct guest *g, enum gstate s, const char *reason)
{
	struct core *c = g->c;

	if (!gstate_may_become(g->state, s))
		log_error("guest %s: %s → %s is not in the table", g->o->name,
			  gstate_name(g->state), gstate_name(s));
	obj_before(c, g->o);
	if (s != g->state || reason)
		event_add(c,
			  s == G_STOPPED    ? "guest.stopped"
			  : s == G_RUNNING  ? "guest.running"
			  : s == G_STARTING ? "guest.starting"
			  : s == G_PAUSED   ? "guest.paused"
			  : s == G_CRASHED  ? "guest.crashed"
			  : s == G_FAILED   ? "guest.failed"
			  : s == G_SAVED    ? "guest.saved"
			  : s == G_DELETED  ? "guest.deleted"
			  : s == G_STOPPING ? "guest.stopping"
					    : "guest.pausing",
			  "guest", *g->o->name ? g->o->name : jstr_or(g->o->doc, "name", "?"),
			  "%s%s%s", gstate_name(s), reason ? ": " : "", reason ? reason : "");
	g->state = s;
	json_object_set_new(g->o->doc, "state", json_string(gstate_name(s)));
	jset_str(g->o->doc, "state_reason", reason);
	obj_put(c, g->o, PUT_ASKED);
	guest_retry_waiters(g);
}

/* ---- its process ---- */

static void guest_clean_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (e)
		log_warn("cleaning up after a guest: %s", e->detail);
}

void guest_cleanup_host(struct guest *g)
{
	struct core *c = g->c;
	struct msg_p_guest_clean clean = { 0 };
	json_t *taps = json_object_get(g->o->rt, "taps");
	const char *tap;
	size_t i;
	json_t *v;

	json_array_foreach(taps, i, v) if ((tap = json_string_value(v)))
	{
		struct msg_p_tap_del del = { 0 };

		snprintf(del.ifname, sizeof(del.ifname), "%s", tap);
		peer_call(c->priv, MSG_p_tap_del, &del, 0, 10000, guest_clean_done, NULL);
	}
	snprintf(clean.uuid, sizeof(clean.uuid), "%.36s", g->o->id);
	peer_call(c->priv, MSG_p_guest_clean, &clean, 0, 10000, guest_clean_done, NULL);
	uid_slot_put(c, g->uid_slot);
	g->uid_slot = -1;
	g->pid = 0;
	obj_before(c, g->o);
	json_decref(g->o->rt);
	g->o->rt = NULL;
	json_object_del(g->o->doc, "pid");
	json_object_del(g->o->doc, "accel_used");
	json_object_del(g->o->doc, "boot_format_used");
	json_object_del(g->o->doc, "accel_reason");
	json_object_del(g->o->doc, "net_backend");
}

/* When a start by policy is due is on record: a daemon that dies meanwhile forgets none. */
static void guest_restart_record(struct guest *g, uint64_t at_ms)
{
	obj_before(g->c, g->o);
	jset(guest_rt(g), "restart_at_ms", at_ms ? json_integer((json_int_t)at_ms) : NULL);
	jset(guest_rt(g), "restarts", json_integer((json_int_t)g->restarts));
	jset(g->o->doc, "restarts", json_integer((json_int_t)g->restarts));
	obj_put(g->c, g->o, PUT_FACT);
}

void guest_restart_forget(struct guest *g)
{
	loop_timer_stop(&g->restart_timer);
	if (json_object_get(g->o->rt, "restart_at_ms")) {
		obj_before(g->c, g->o);
		json_object_del(g->o->rt, "restart_at_ms");
		obj_put(g->c, g->o, PUT_ASKED);
	}
}

void guest_policy_restart(struct guest *g, bool failed)
{
	const char *policy = jstr_or(g->o->doc, "restart", "no");
	unsigned delay;

	if (strcmp(policy, "always") && (strcmp(policy, "on-failure") || !failed))
		return;
	if (g->up_since_ns && clock_mono_ns() - g->up_since_ns > STEADY_NS)
		g->restarts = 0;
	delay = g->restarts < 6 ? 1u << g->restarts : BACKOFF_MAX_S;
	g->restarts++;
	event_add(g->c, "guest.restart-due", "guest", g->o->name,
		  "restart policy \"%s\": starts again in %u s", policy, delay);
	guest_restart_record(g, clock_real_ms() + delay * 1000ull);
	loop_timer_after(&g->restart_timer, delay * NS_PER_S);
}

void guest_restarts_resume(struct core *c)
{
	uint64_t now = clock_real_ms();

	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);
		struct guest *g = o->mem;
		uint64_t at = (uint64_t)jint(o->rt, "restart_at_ms", 0);

		if (!g || !at || gstate_has_process(g->state) || g->state == G_DELETED || g->op)
			continue;
		/* a clock that was set back does not put it off for longer than the policy ever would */
		at = MIN(at, now + BACKOFF_MAX_S * 1000ull);
		loop_timer_after(&g->restart_timer, (at > now ? at - now : 1) * NS_PER_MS);
	}
}

/* The process is no more: by its pidfd, by priv's word, or found missing at adoption. Once. */
void guest_gone(struct guest *g, const char *how, bool crashed)
{
	struct core *c = g->c;
	bool asked = g->quit_sent || g->killed || g->state == G_STOPPING;
	bool own = asked && !g->power_off && !g->failed; /* we wanted it to end, it did not */
	char why[256];

	if (g->start)
		guest_start_cancel(g); /* tells its starter */
	if (!gstate_has_process(g->state) && !g->pid)
		return;
	loop_fd_del(&g->pidfd_w);
	close_fd(&g->pidfd);
	loop_timer_stop(&g->stop_timer);
	/* its pidfd may tell before the link's end does: those who wait for an answer are told */
	peer_end(take_ptr(&g->link));
	guest_cleanup_host(g);
	snprintf(why, sizeof(why), "%s", *g->why ? g->why : asked ? "" : how);
	crashed = g->failed || (crashed && !asked);
	if (crashed)
		c->n.crashes++;
	c->n.stops++;
	if (gstate_has_process(g->state))
		guest_set_state(g,
				guest_saved(g) ? G_SAVED
				: crashed      ? G_CRASHED
					       : G_STOPPED,
				*why && !guest_saved(g) ? why : NULL);
	else
		obj_put(c, g->o, PUT_FACT);
	g->quit_sent = g->killed = g->power_off = g->failed = false;
	*g->why = '\0';
	if (g->op && !g->start)
		guest_op_gone(g);
	else if (!own && g->state != G_SAVED)
		guest_policy_restart(g, crashed);
}

static void guest_pid_ended(void *arg, int fd, uint32_t events)
{
	guest_gone(arg, "its process ended", true);
}

int guest_watch_pid(struct guest *g, int pidfd, pid_t pid)
{
	int r;

	if (pidfd < 0)
		return -EBADF;
	r = loop_fd_add(g->c->loop, &g->pidfd_w, pidfd, EPOLLIN, guest_pid_ended, g);
	if (r < 0)
		return r;
	g->pidfd = pidfd;
	g->pid = pid;
	return 0;
}

/* priv reaped it and knows how it ended; the pidfd may have told before */
void guest_exited(struct core *c, const char *uuid, pid_t pid, int status)
{
	struct obj *o = obj_by_id(c, K_GUEST, uuid);
	struct guest *g = o ? o->mem : NULL;
	char how[128];

	if (!g)
		return;
	if (WIFSIGNALED(status))
		snprintf(how, sizeof(how), "its process was killed by signal %d (%s)",
			 WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		snprintf(how, sizeof(how), "its process ended with status %d", WEXITSTATUS(status));
	if (!g->pid && g->state == G_CRASHED &&
	    !strcmp(jstr_or(o->doc, "state_reason", ""), "its process ended")) {
		obj_before(c, o);
		jset_str(o->doc, "state_reason", how);
		obj_put(c, o, PUT_FACT);
		return;
	}
	/* late news of the process before this one, which its pidfd told of: a start may be under way */
	if (pid && g->pid != pid)
		return;
	guest_gone(g, how, !WIFEXITED(status) || WEXITSTATUS(status) != 0);
}

static void guest_quit_timeout(void *arg)
{
	guest_kill(arg, "it did not quit in time");
}

static void guest_quit_send(struct guest *g)
{
	struct msg_g_quit q;

	memset(&q, 0, sizeof(q));
	g->quit_sent = true;
	if (!g->link || peer_send(g->link, MSG_g_quit, &q) < 0) {
		guest_kill(g, "it cannot be reached");
		return;
	}
	g->stop_timer.fn = guest_quit_timeout;
	loop_timer_after(&g->stop_timer, 20 * NS_PER_S);
}

void guest_quit_now(struct guest *g)
{
	guest_quit_send(g);
}

void guest_kill(struct guest *g, const char *why)
{
	struct msg_p_guest_kill k = { .signo = 9 };

	if (why)
		log_warn("guest %s: killed: %s", g->o->name, why);
	g->killed = true;
	snprintf(k.uuid, sizeof(k.uuid), "%.36s", g->o->id);
	peer_call(g->c->priv, MSG_p_guest_kill, &k, 0, 10000, guest_clean_done, NULL);
}

/* ---- what it tells ---- */

static void guest_event(struct guest *g, const struct msg_g_event *m)
{
	log_info("guest %s: %s%s%s", g->o->name, m->kind, *m->text ? ": " : "", m->text);
	if (!strcmp(m->kind, "poweroff")) {
		snprintf(g->why, sizeof(g->why), "%s",
			 g->state == G_STOPPING ? "" : "powered off by itself");
		g->power_off = true;
	} else if (!strcmp(m->kind, "reboot") && m->state == GUEST_STOPPED) {
		snprintf(g->why, sizeof(g->why), "rebooted, and on_reboot is stop");
		g->power_off = true;
		guest_quit_send(g);
		return;
	} else if (!strcmp(m->kind, "reboot")) {
		event_add(g->c, "guest.rebooted", "guest", g->o->name, "rebooted by itself");
		return;
	} else if (!strcmp(m->kind, "io-error")) {
		if (g->state == G_RUNNING && m->state == GUEST_PAUSED)
			guest_set_state(g, G_PAUSED, m->text);
		else
			event_add(g->c, "guest.io-error", "guest", g->o->name, "%s", m->text);
		return;
	} else {
		snprintf(g->why, sizeof(g->why), "%.40s%s%.200s", m->kind, *m->text ? ": " : "",
			 m->text);
	}
	if (m->state == GUEST_STOPPED) {
		if (strcmp(m->kind, "poweroff"))
			g->failed = true;
		guest_quit_send(g);
	} else if (strcmp(m->kind, "poweroff")) {
		event_add(g->c, "guest.event", "guest", g->o->name, "%s", g->why);
	}
}

static void guest_peer_event(void *arg, struct peer *p, struct wire_buf *b)
{
	struct guest *g = arg;

	if (b->type == MSG_g_event) {
		struct msg_g_event m;

		if (msg_g_event_decode(&m, b) == 0)
			guest_event(g, &m);
	}
}

static void guest_peer_closed(void *arg, struct peer *p, int why)
{
	struct guest *g = arg;

	/* its end is told by the pidfd; a broken link alone does not end a guest */
	g->link = NULL;
	peer_free(p);
	if (!g->quit_sent && !g->killed && gstate_has_process(g->state))
		log_warn("guest %s: link lost", g->o->name);
}

int guest_linked(struct guest *g, int sock, struct err *e)
{
	char label[80];

	snprintf(label, sizeof(label), "guest %.60s", g->o->name);
	peer_free(g->link);
	g->link = peer_new(g->c, sock, PROTO_GUEST, label, guest_peer_event, guest_peer_closed, g);
	return g->link ? 0
		       : err_set(e, ENOMEM, "no-memory", "guest \"%s\": no memory for its link",
				 g->o->name);
}

/* ---- trash ---- */

void guest_trash_sweep(struct core *c)
{
	int64_t now = (int64_t)clock_real_ms();

	list_for_each_safe (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);
		struct guest *g = o->mem;
		struct err e = { 0 };

		if (!g || g->state != G_DELETED || g->op || jint(o->rt, "expires_ms", 0) > now)
			continue;
		op_new(c, &op_guest_delete, o, jstr_or(o->doc, "name", "?"),
		       json_pack("{s:b}", "now", 1), "system", &e);
	}
}

int64_t guest_trash_hours(const struct core *c)
{
	return strtol(jstr_or(c->settings, "trash_hours", "72"), NULL, 10);
}

static int guest_by_order(const void *a, const void *b)
{
	const struct obj *x = *(struct obj *const *)a, *y = *(struct obj *const *)b;
	int64_t ox = jint(x->doc, "start_order", 0), oy = jint(y->doc, "start_order", 0);

	return ox < oy ? -1 : ox > oy ? 1 : strcmp(x->name, y->name);
}

void guest_autostart(struct core *c)
{
	struct obj **v = calloc(obj_count(c, K_GUEST) + 1, sizeof(*v));
	size_t n = 0;

	if (!v)
		return;
	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);
		struct guest *g = o->mem;

		if (g && !gstate_has_process(g->state) && g->state != G_DELETED && !g->op &&
		    jbool(o->doc, "autostart", false))
			v[n++] = o;
	}
	qsort(v, n, sizeof(*v), guest_by_order);
	for (size_t i = 0; i < n; i++) {
		struct err e = { 0 };
		struct op *op;

		if (guest_start_op(v[i]->mem, "system", &op, &e) < 0)
			log_warn("autostart of %s: %s", v[i]->name, e.detail);
	}
	free(v);
}
