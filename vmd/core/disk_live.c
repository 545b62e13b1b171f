/* disk_live.c - disks whose guest runs: who has them, and work that its process does; and the verbs that
 * only look (inspect) or tidy (compact).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "vmd/core/disk_job.h"

struct guest *disk_live(struct core *c, const struct obj *o, char entry[32])
{
	const char *guest = jstr(o->doc, "guest");
	struct obj *g = guest ? obj_by_name(c, K_GUEST, guest) : NULL;
	size_t i;
	json_t *d;

	if (!g || !g->mem || !((struct guest *)g->mem)->link)
		return NULL;
	json_array_foreach(json_object_get(g->doc, "disks"), i,
			   d) if (entry && disk_find(c, jstr_or(d, "disk", ""), NULL) == o)
	    snprintf(entry, 32, "%.31s", jstr_or(d, "name", ""));
	return g->mem;
}

bool disk_live_progress(struct op *op, enum call_event ev, struct wire_buf *b)
{
	struct msg_g_disk_progress m;

	if (ev != CALL_ITEM)
		return false;
	if (b->type == MSG_g_disk_progress && msg_g_disk_progress_decode(&m, b) == 0)
		disk_job_percent(op, m.done, m.total);
	return true;
}

void disk_live_cancel(struct op *op)
{
	struct guest *g =
	    op->target && op->target->kind == K_DISK ? disk_live(op->c, op->target, NULL) : NULL;
	struct msg_g_disk_cancel m = { 0 };

	if (!g)
		return;
	snprintf(m.job, sizeof(m.job), "%.36s", op->o->id);
	peer_send(g->link, MSG_g_disk_cancel, &m);
}

void disk_live_gone(struct op *op)
{
	struct err e = { 0 };

	err_set(&e, ECONNRESET, "guest-died", "the guest of disk \"%s\" ended", op->target->name);
	err_hint(&e, "repeat the command");
	op_finish(op, &e);
}

/* ---- rebase of a disk in use: its process pulls up what lies between it and its new parent ---- */

int disk_live_rebase_check(struct op *op, const struct obj *parent, struct err *e)
{
	struct chain_layer chain[DISK_CHAIN_MAX];
	int n = disk_chain(op->c, op->target, chain, DISK_CHAIN_MAX, true, e), at = 0;

	if (n < 0)
		return n;
	if (jbool(op->args, "unsafe", false))
		return err_set(e, EBUSY, "disk-in-use", "disk \"%s\" is in use by guest \"%s\"",
			       op->target->name, jstr_or(op->target->doc, "guest", "?"));
	for (int i = 1; parent && i < n; i++)
		if (chain[i].o == parent)
			at = i;
	if (parent && !at) {
		err_set(e, EBUSY, "disk-in-use",
			"disk \"%s\" is in use by guest \"%s\": it can only leave layers out, and "
			"\"%s\" is none that it is built on",
			op->target->name, jstr_or(op->target->doc, "guest", "?"), parent->name);
		err_hint(e, "vmctl stop %s", jstr_or(op->target->doc, "guest", "?"));
		return -EBUSY;
	}
	json_object_set_new(op->args, "depth", json_integer(at));
	json_object_set_new(op->args, "live", json_true());
	return 0;
}

static void live_rebased(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (!disk_live_progress(arg, ev, b))
		op_finish(arg, e);
}

void disk_live_rebase(struct op *op, const struct obj *parent)
{
	struct msg_g_disk_job m = { .fd = -1, .depth = (uint64_t)jint(op->args, "depth", 0) };
	struct guest *g = disk_live(op->c, op->target, m.name);
	char pool[64], file[128];

	if (!g) {
		disk_live_gone(op);
		return;
	}
	snprintf(m.job, sizeof(m.job), "%.36s", op->o->id);
	snprintf(m.verb, sizeof(m.verb), "stream");
	if (parent) {
		volume_file(parent, pool, file);
		snprintf(m.backing, sizeof(m.backing), "%s", file);
		snprintf(m.backing_format, sizeof(m.backing_format), "%.15s",
			 jstr_or(parent->doc, "format", "raw"));
	}
	peer_call(g->link, MSG_g_disk_job, &m, 0, 0, live_rebased, op);
}

/* ---- inspect: what the file says; also of a disk in use ---- */

static int inspect_prepare(struct op *op, struct err *e)
{
	return !strcmp(jstr_or(op->target->doc, "state", ""), "ready")
		   ? 0
		   : err_set(e, EBUSY, "disk-busy", "disk \"%s\" is %s", op->target->name,
			     jstr_or(op->target->doc, "state", "?"));
}

static void inspect_done(struct op *op, const struct err *e, json_t *out)
{
	char pool[64], file[128];
	struct obj *o = op->target;

	if (out && o) {
		volume_file(o, pool, file);
		json_object_set_new(out, "filename", json_string(file));
		json_object_set(op->o->doc, "result", out);
		if (json_object_get(out, "actual-size")) {
			obj_before(op->c, o);
			json_object_set(o->doc, "allocated", json_object_get(out, "actual-size"));
			obj_put(op->c, o, PUT_FACT);
		}
	}
	op_finish(op, e);
}

static void inspect_run(struct op *op)
{
	struct disk_job *d = disk_job_new(op, "info");

	if (!d)
		return;
	d->done = inspect_done;
	/* who writes it meanwhile is not disturbed: a look at the header, without the locks */
	snprintf(d->args, sizeof(d->args), "lock=off\n");
	disk_job_side(d, op->target, 0, 0);
	disk_job_sent(d);
}

const struct op_ops op_disk_inspect = { "disk-inspect", false, inspect_prepare, inspect_run,
					NULL,		NULL,  disk_job_cancel };

/* ---- compact ---- */

static int compact_prepare(struct op *op, struct err *e)
{
	struct obj *child = disk_child(op->c, op->target, NULL);

	if (child)
		return err_set(e, EBUSY, "disk-is-backing",
			       "disk \"%s\" is what disk \"%s\" is built on", op->target->name,
			       child->name);
	if (strcmp(jstr_or(op->target->doc, "format", ""), "qcow2")) {
		err_set(e, EINVAL, "disk-format",
			"disk \"%s\" is %s; only a qcow2 file is compacted", op->target->name,
			jstr_or(op->target->doc, "format", "raw"));
		err_hint(e, "vmctl disk convert %s NEW leaves out what is zero", op->target->name);
		return -EINVAL;
	}
	if (disk_no_layer(op->target, e) < 0)
		return -e->num;
	return disk_take(op->c, op->target, e);
}

static void compact_run(struct op *op)
{
	struct disk_job *d = disk_job_new(op, "compact");

	if (!d)
		return;
	disk_job_side(d, op->target, 0, 1);
	disk_job_sent(d);
}

static void compact_over(struct op *op)
{
	if (op->o)
		disk_let_go(op->c, op->target);
}

static void compact_abort(struct op *op, const struct err *e)
{
	compact_over(op);
}

const struct op_ops op_disk_compact = { "disk-compact", false,	       compact_prepare, compact_run,
					compact_over,	compact_abort, disk_job_cancel };

int route_disk_inspect(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_inspect, e);
}

int route_disk_compact(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_compact, e);
}
