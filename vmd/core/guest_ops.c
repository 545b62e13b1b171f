/* guest_ops.c - the verbs on a guest's process as operations: start, stop, restart, reset, pause,
 * resume.
 *
 * One operation moves a guest at a time (g->op); a forced stop takes over from a graceful one. Stop
 * presses the power button and waits for the process to end, by the guest's own power-off; after
 * the timeout it is told to quit (disks flushed), then killed.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/units.h"
#include "vmd/core/internal.h"

static struct guest *op_guest(struct op *op)
{
	return op->target ? op->target->mem : NULL;
}

static int op_take_guest(struct op *op, enum gverb v, struct err *e)
{
	struct guest *g = op_guest(op);
	int r = gstate_check(g->o->name, g->state, v, e);

	if (r < 0)
		return r;
	if (g->op) {
		err_set(e, EBUSY, "guest-busy", "guest \"%s\" is busy with %s", g->o->name,
			g->op->ops->verb);
		err_hint(e, "vmctl ops info %s", g->op->o ? g->op->o->id : "");
		return -EBUSY;
	}
	g->op = op;
	return 0;
}

static void op_release_guest(struct op *op)
{
	struct guest *g = op_guest(op);

	if (g && g->op == op)
		g->op = NULL;
}

static void op_released(struct op *op, const struct err *e)
{
	op_release_guest(op);
}

/* ---- start ---- */

static int start_prepare(struct op *op, struct err *e)
{
	struct guest *g = op_guest(op);
	int r = op_take_guest(op, GV_START, e);

	if (r < 0)
		return r;
	guest_restart_forget(g);
	guest_set_state(g, G_STARTING, NULL);
	return 0;
}

static void start_done(struct guest *g, const struct err *e)
{
	struct op *op = g->op;
	bool cancelled = op && op->cancelled;

	if (!e) {
		guest_set_state(g, G_RUNNING, NULL);
	} else if (gstate_has_process(g->state)) {
		guest_set_state(g,
				guest_saved(g) ? G_SAVED
				: cancelled    ? G_STOPPED
					       : G_FAILED,
				e->detail);
	}
	if (op)
		op_finish(op, e); /* frees it */
	if (e && !cancelled && g->state != G_SAVED)
		guest_policy_restart(g, true);
}

static void start_run(struct op *op)
{
	struct guest *g = op_guest(op);

	g->op = op;
	if (g->state == G_RUNNING) { /* found alive after the daemon's restart */
		op_finish(op, NULL);
		return;
	}
	if (g->state != G_STARTING)
		guest_set_state(g, G_STARTING, NULL);
	guest_start_begin(g, start_done);
}

static void start_cancel(struct op *op)
{
	guest_start_cancel(op_guest(op));
}

static void start_commit(struct op *op)
{
	op_release_guest(op);
}

static void start_abort(struct op *op, const struct err *e)
{
	struct guest *g = op_guest(op);

	op_release_guest(op);
	if (g && g->state == G_STARTING && !g->start)
		guest_set_state(g, guest_saved(g) ? G_SAVED : G_STOPPED, e->detail);
}

const struct op_ops op_guest_start = { "start",	     true,	  start_prepare, start_run,
				       start_commit, start_abort, start_cancel };

int guest_start_op(struct guest *g, const char *principal, struct op **op, struct err *e)
{
	*op = op_new(g->c, &op_guest_start, g->o, g->o->name, NULL, principal, e);
	return *op ? 0 : -e->num;
}

/* ---- stop ---- */

static int stop_prepare(struct op *op, struct err *e)
{
	struct guest *g = op_guest(op);
	bool force = jbool(op->args, "force", false);
	int r = gstate_check(g->o->name, g->state, force ? GV_FORCE_STOP : GV_STOP, e);

	if (r < 0)
		return r;
	guest_restart_forget(g);
	if (g->op && (force || g->op->ops == &op_guest_start)) {
		struct op *old = g->op;
		struct err why = { 0 };

		g->op = NULL;
		err_set(&why, ECANCELED, "superseded", "%s of guest \"%s\" gave way to stop",
			old->ops->verb, g->o->name);
		old->cancelled = true;
		if (g->start) {
			g->op = old;
			guest_start_cancel(g);
			round_commit(g->c); /* the answer is a refusal, and yet it is done */
			return err_set(e, EALREADY, "start-cancelled",
				       "the start of guest \"%s\" was cancelled", g->o->name);
		}
		op_finish(old, &why);
		if (!gstate_has_process(g->state)) { /* it had not begun: nothing is left to stop */
			g->op = op;
			return 0;
		}
	}
	r = op_take_guest(op, force ? GV_FORCE_STOP : GV_STOP, e);
	if (!r && g->state != G_STOPPING)
		guest_set_state(g, G_STOPPING, NULL);
	return r;
}

static void stop_overdue(void *arg)
{
	struct guest *g = arg;

	event_add(g->c, "guest.stop-forced", "guest", g->o->name, "it did not power off in time");
	guest_quit_now(g);
}

static void stop_pressed(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
}

static void stop_run(struct op *op)
{
	struct guest *g = op_guest(op);
	int64_t ms =
	    jduration_ms(op->args, "timeout", jduration_ms(g->o->doc, "stop_timeout", 60000));
	struct msg_g_power_button m;

	memset(&m, 0, sizeof(m));
	g->op = op;
	if (!gstate_has_process(g->state)) {
		op_finish(op, NULL);
		return;
	}
	if (g->state != G_STOPPING)
		guest_set_state(g, G_STOPPING, NULL);
	if (jbool(op->args, "force", false) || ms <= 0 || !g->link) {
		guest_quit_now(g);
		return;
	}
	peer_call(g->link, MSG_g_power_button, &m, 0, 10000, stop_pressed, NULL);
	g->stop_timer.fn = stop_overdue;
	loop_timer_after(&g->stop_timer, (uint64_t)ms * NS_PER_MS);
}

static void stop_commit(struct op *op)
{
	op_release_guest(op);
}

const struct op_ops op_guest_stop = { "stop",	   true,	stop_prepare, stop_run,
				      stop_commit, op_released, NULL };

/* ---- restart: a stop that starts when the process is gone ---- */

static int restart_prepare(struct op *op, struct err *e)
{
	struct guest *g = op_guest(op);
	int r = op_take_guest(op, GV_RESTART, e);

	if (!r)
		guest_set_state(g, G_STOPPING, NULL);
	return r;
}

static void restart_run(struct op *op)
{
	struct guest *g = op_guest(op);

	/* after the daemon's restart: what runs now may be what was to be started */
	if (!gstate_has_process(g->state) || jbool(op->args, "stopped", false))
		start_run(op);
	else
		stop_run(op);
}

static void restart_stopped(struct op *op)
{
	json_object_set_new(op->args, "stopped", json_true());
	obj_put(op->c, op->o, PUT_FACT);
	start_run(op);
}

const struct op_ops op_guest_restart = { "restart",   true,	    restart_prepare,
					 restart_run, start_commit, start_abort,
					 NULL };

void guest_op_gone(struct guest *g)
{
	struct op *op = g->op;
	struct err e = { 0 };

	if (op->ops == &op_guest_stop) {
		op_finish(op, NULL);
	} else if (op->ops == &op_guest_restart) {
		restart_stopped(op);
	} else if (op->ops == &op_guest_delete) {
		op->ops->run(op);
	} else if (op->ops == &op_guest_save) {
		guest_save_gone(g);
	} else {
		err_set(&e, ECONNRESET, "guest-died", "guest \"%s\": its process ended during %s",
			g->o->name, op->ops->verb);
		op_finish(op, &e);
	}
}

/* ---- reset, pause, resume: one message each ---- */

static void simple_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct guest *g = arg;
	struct op *op = g->op;

	if (ev == CALL_ITEM || !op || op->finished)
		return;
	op->data = NULL;
	if (e && op->ops == &op_guest_pause && g->state == G_PAUSING)
		guest_set_state(g, G_RUNNING, e->detail);
	if (!e && op->ops == &op_guest_pause)
		guest_set_state(g, G_PAUSED, NULL);
	if (!e && op->ops == &op_guest_resume)
		guest_set_state(g, G_RUNNING, NULL);
	op_finish(op, e);
}

static void simple_send(struct op *op, uint16_t type)
{
	struct guest *g = op_guest(op);
	union {
		struct msg_g_pause p;
		struct msg_g_start s;
		struct msg_g_reset r;
	} m;
	struct err e = { 0 };

	memset(&m, 0, sizeof(m));
	g->op = op;
	if (!g->link) {
		err_set(&e, ECONNRESET, "guest-unreachable", "guest \"%s\" cannot be reached",
			g->o->name);
		op_finish(op, &e);
		return;
	}
	peer_call(g->link, type, &m, 0, 30000, simple_done, g);
}

static int reset_prepare(struct op *op, struct err *e)
{
	return op_take_guest(op, GV_RESET, e);
}
static void reset_run(struct op *op)
{
	simple_send(op, MSG_g_reset);
}
static int pause_prepare(struct op *op, struct err *e)
{
	int r = op_take_guest(op, GV_PAUSE, e);

	if (!r)
		guest_set_state(op_guest(op), G_PAUSING, NULL);
	return r;
}
static void pause_run(struct op *op)
{
	simple_send(op, MSG_g_pause);
}
static int resume_prepare(struct op *op, struct err *e)
{
	return op_take_guest(op, GV_RESUME, e);
}
static void resume_run(struct op *op)
{
	simple_send(op, MSG_g_start);
}

const struct op_ops op_guest_reset = { "reset",	     false,	  reset_prepare, reset_run,
				       start_commit, op_released, NULL };
const struct op_ops op_guest_pause = { "pause",	     true,	  pause_prepare, pause_run,
				       start_commit, op_released, NULL };
const struct op_ops op_guest_resume = { "resume",    true, resume_prepare, resume_run, start_commit,
					op_released, NULL };

/* ---- routes ---- */

static int guest_verb(struct core *c, struct req *r, const struct op_ops *ops, enum gverb v,
		      struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct guest *g;
	struct op *op;

	if (!o)
		return -ENOENT;
	g = o->mem;
	if (r->dry_run) {
		int res = gstate_check(o->name, g->state, v, e);

		if (!res)
			req_obj(r, 200, o);
		return res;
	}
	op = op_new(c, ops, o, o->name, json_deep_copy(r->body), r->principal, e);
	if (!op && e->num == EALREADY) {
		req_obj(r, 200, o);
		return 0;
	}
	return op ? op_answer(op, r) : -e->num;
}

int route_guest_start(struct core *c, struct req *r, struct err *e)
{
	return guest_verb(c, r, &op_guest_start, GV_START, e);
}
int route_guest_stop(struct core *c, struct req *r, struct err *e)
{
	return guest_verb(c, r, &op_guest_stop, GV_STOP, e);
}
int route_guest_restart(struct core *c, struct req *r, struct err *e)
{
	return guest_verb(c, r, &op_guest_restart, GV_RESTART, e);
}
int route_guest_reset(struct core *c, struct req *r, struct err *e)
{
	return guest_verb(c, r, &op_guest_reset, GV_RESET, e);
}
int route_guest_pause(struct core *c, struct req *r, struct err *e)
{
	return guest_verb(c, r, &op_guest_pause, GV_PAUSE, e);
}
int route_guest_resume(struct core *c, struct req *r, struct err *e)
{
	return guest_verb(c, r, &op_guest_resume, GV_RESUME, e);
}
