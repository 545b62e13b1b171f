/* guest_save.c - a guest's whole state goes into two files and its process ends; its next start
 * goes on from there. Or the files are discarded.
 *
 * The files are UUID.state and UUID.memory in the default pool, made by priv, written by the
 * guest's process, which checks them when it loads. What is on record decides: "saved" is set when
 * both are stable and before the process is told to quit, and cleared, written, before a restored guest runs
 * its first instruction: memory of then never meets disks of later. Until that moment a start that
 * fails leaves the guest saved. While saved, the definition and the disks stay as they are.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "vmd/core/internal.h"

#define SAVE_TIMEOUT_MS (1800 * 1000)
#define SAVE_AGAIN_NS	(200 * NS_PER_MS)

static const char *const save_ends[2] = { "state", "memory" };

struct save {
	struct op *op;
	struct save_file {
		struct save *s;
		struct call *call;
		int fd;
	} file[2];
	unsigned open;
	struct err first;
	struct loop_timer again;
};

void guest_saved_file(const struct obj *o, unsigned which, char pool[64], char file[128])
{
	snprintf(pool, 64, "default");
	snprintf(file, 128, "%.36s.%s", o->id, save_ends[which]);
}

bool guest_saved(const struct guest *g)
{
	return jstr(g->o->doc, "saved") != NULL;
}

static struct obj *guest_saved_with(struct core *c, const struct obj *disk)
{
	size_t i;
	json_t *d;

	/* not by the name on the disk's record: a newer guest may have that of one in the trash */
	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (!o->mem || !guest_saved(o->mem))
			continue;
		json_array_foreach(json_object_get(o->doc, "disks"), i, d)
		{
			if (disk_find(c, jstr_or(d, "disk", ""), NULL) == disk)
				return o;
		}
	}
	return NULL;
}

int guest_saved_needs(struct core *c, const struct obj *disk, struct err *e)
{
	const struct obj *saved = guest_saved_with(c, disk);
	const char *name = saved ? jstr_or(saved->doc, "name", "?") : NULL;

	if (!saved)
		return 0;
	err_set(e, EBUSY, "disk-in-use", "disk \"%s\" is what the saved guest \"%s\" goes on with",
		disk->name, name);
	err_hint(e,
		 *saved->name ? "vmctl start %s, or vmctl discard %s"
			      : "vmctl undelete %s, or vmctl delete --now %s",
		 name, name);
	return -EBUSY;
}

static void saved_files_go(struct guest *g)
{
	char pool[64], file[128];

	for (unsigned i = 0; i < 2; i++) {
		guest_saved_file(g->o, i, pool, file);
		volume_remove_later(g->c, pool, file);
	}
}

/* guest_saved_drop() - the saved state is no more: not on record, its files go with that. */
void guest_saved_drop(struct guest *g)
{
	if (!guest_saved(g))
		return;
	obj_before(g->c, g->o);
	json_object_del(g->o->doc, "saved");
	json_object_del(g->o->doc, "saved_accel");
	saved_files_go(g);
	obj_put(g->c, g->o, PUT_ASKED);
}

int guest_saved_consume(struct guest *g, struct err *e)
{
	struct core *c = g->c;

	guest_saved_drop(g);
	round_commit(c);
	return c->read_only ? err_set(e, EROFS, "state-read-only",
				      "guest \"%s\": that its saved state is used up cannot be "
				      "recorded: %.250s",
				      g->o->name, c->read_only_why)
			    : 0;
}

/* ---- save ---- */

static void save_free(void *arg)
{
	struct save *s = arg;

	for (unsigned i = 0; i < 2; i++) {
		call_forget(s->file[i].call);
		close_fd(&s->file[i].fd);
	}
	loop_timer_stop(&s->again);
	free(s);
}

static int save_prepare(struct op *op, struct err *e)
{
	struct guest *g = op->target->mem;
	int r = gstate_check(g->o->name, g->state, GV_SAVE, e);

	if (r < 0)
		return r;
	if (g->op)
		return err_set(e, EBUSY, "guest-busy", "guest \"%s\" is busy with %s", g->o->name,
			       g->op->ops->verb);
	g->op = op;
	json_object_set_new(op->args, "paused", json_boolean(g->state == G_PAUSED));
	guest_set_state(g, G_STOPPING, "its state is being saved");
	return 0;
}

static void save_written(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct guest *g = arg;
	struct op *op = g->op;
	struct core *c = g->c;
	struct err why = { 0 };

	if (ev == CALL_ITEM || !op || op->ops != &op_guest_save || op->finished)
		return;
	/* for the daemon before this one, into files that are gone; then for us */
	if (e && !strcmp(e->code, "save-under-way")) {
		loop_timer_after(&((struct save *)op->data)->again, SAVE_AGAIN_NS);
		return;
	}
	if (!e) {
		obj_before(c, g->o);
		json_object_set_new(g->o->doc, "saved", jnow());
		jset_str(g->o->doc, "saved_accel", jstr(g->o->doc, "accel_used"));
		obj_put(c, g->o, PUT_FACT);
		round_commit(c);
		if (!c->read_only) {
			guest_quit_now(g); /* goes on in save_gone() */
			return;
		}
		err_set(&why, EROFS, "state-read-only", "%.380s", c->read_only_why);
		guest_saved_drop(g);
		e = &why;
	} else {
		saved_files_go(g);
	}
	op_finish(op, e);
}

static void save_send(void *arg)
{
	struct save *s = arg;
	struct op *op = s->op;
	struct guest *g = op->target->mem;
	struct msg_g_save m = { .state_fd = s->file[0].fd, .memory_fd = s->file[1].fd };
	struct err e = s->first;

	if (!e.num && !g->link)
		err_set(&e, ECONNRESET, "guest-unreachable", "guest \"%s\" cannot be reached",
			g->o->name);
	if (e.num)
		op_finish(op, &e);
	else
		peer_call(g->link, MSG_g_save, &m, 0, SAVE_TIMEOUT_MS, save_written, g);
}

static void save_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct save_file *f = arg;
	struct save *s = f->s;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	f->call = NULL;
	if (!e && msg_result_decode(&m, b) == 0) {
		f->fd = m.fd;
		m.fd = -1;
		msg_result_close(&m);
	}
	if (e && !s->first.num)
		s->first = *e;
	else if (f->fd < 0 && !s->first.num)
		err_set(&s->first, EPROTO, "bad-message", "priv gave no file");
	if (!--s->open)
		save_send(s);
}

static void save_old_gone(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	/* usually there is none; if one stays, the open says why */
}

static void save_run(struct op *op)
{
	struct guest *g = op->target->mem;
	struct core *c = op->c;
	struct save *s;
	struct err e = { 0 };

	g->op = op;
	if (g->state == G_SAVED) {
		op_finish(op, NULL);
		return;
	}
	if (!gstate_has_process(g->state)) {
		err_set(&e, ECONNRESET, "guest-died", "guest \"%s\" ended before it was saved",
			g->o->name);
		op_finish(op, &e);
		return;
	}
	if (guest_saved(g)) { /* all but its end was done by the daemon before this one */
		guest_quit_now(g);
		return;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		err_set(&e, ENOMEM, "no-memory", "no memory");
		op_finish(op, &e);
		return;
	}
	op->data = s;
	op->free_data = save_free;
	s->op = op;
	s->open = 2;
	loop_timer_init(c->loop, &s->again, save_send, s);
	for (unsigned i = 0; i < 2; i++)
		s->file[i] = (struct save_file){ .s = s, .fd = -1 };
	for (unsigned i = 0; i < 2; i++) {
		struct msg_p_volume_unlink old = { 0 };
		struct msg_p_volume_open m = { .mode = VOLUME_CREATE };

		/* the rest of a save that was cut off; in order on the same link */
		guest_saved_file(g->o, i, old.pool, old.name);
		guest_saved_file(g->o, i, m.pool, m.name);
		peer_call(c->priv, MSG_p_volume_unlink, &old, 0, 30000, save_old_gone, NULL);
		s->file[i].call =
		    peer_call(c->priv, MSG_p_volume_open, &m, 0, 30000, save_opened, &s->file[i]);
	}
}

void guest_save_gone(struct guest *g)
{
	struct err e = { 0 };

	if (g->state != G_SAVED)
		err_set(&e, ECONNRESET, "guest-died", "guest \"%s\" ended before it was saved",
			g->o->name);
	op_finish(g->op, e.num ? &e : NULL);
}

static void save_commit(struct op *op)
{
	((struct guest *)op->target->mem)->op = NULL;
}

/* It is as it was before, unless somebody stops it by force or it is no more. */
static void save_abort(struct op *op, const struct err *e)
{
	struct guest *g = op->target ? op->target->mem : NULL;
	struct msg_g_start m;

	if (!g || g->op != op)
		return;
	g->op = NULL;
	memset(&m, 0, sizeof(m));
	if (!op->o || !op->running || g->state != G_STOPPING || g->quit_sent || g->killed)
		return;
	if (jbool(op->args, "paused", false)) {
		guest_set_state(g, G_PAUSED, e->detail);
		return;
	}
	peer_send(g->link, MSG_g_start, &m);
	guest_set_state(g, G_RUNNING, e->detail);
}

const struct op_ops op_guest_save = { "save",	   true,       save_prepare, save_run,
				      save_commit, save_abort, NULL };

/* ---- routes ---- */

int route_guest_save(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct op *op;

	if (!o)
		return -ENOENT;
	op = op_new(c, &op_guest_save, o, o->name, NULL, r->principal, e);
	return op ? op_answer(op, r) : -e->num;
}

int route_guest_discard(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct guest *g = o ? o->mem : NULL;

	if (!g || gstate_check(o->name, g->state, GV_DISCARD, e) < 0)
		return -e->num;
	if (g->op)
		return err_set(e, EBUSY, "guest-busy", "guest \"%s\" is busy with %s", o->name,
			       g->op->ops->verb);
	if (req_dry(r, o))
		return 0;
	guest_saved_drop(g);
	guest_set_state(g, G_STOPPED, "its saved state was discarded");
	req_obj(r, 200, o);
	return 0;
}
