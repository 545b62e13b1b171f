/* disk_live.c - disks whose guest runs: who has them, and work that its process does; and the verbs that
 * only look (inspect) or tidy (compact).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/overflow.h"
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

/* ---- commit of a disk in use: what it holds goes into the disk that it is built on, and the two are one ---- */

static struct obj *live_commit_into(struct op *op)
{
	return obj_by_name(op->c, K_DISK, jstr_or(op->args, "other", ""));
}

static int live_commit_prepare(struct op *op, struct err *e)
{
	struct obj *o = op->target, *into = disk_commit_into(op, e);
	char pool[64], other[64], file[128];

	if (!into)
		return -e->num;
	volume_file(o, pool, file);
	volume_file(into, other, file);
	if (strcmp(pool, other)) {
		err_set(e, EBUSY, "disk-in-use",
			"disk \"%s\" is in use by guest \"%s\", and what it is built on lies in "
			"another "
			"pool",
			o->name, jstr_or(o->doc, "guest", "?"));
		err_hint(e, "vmctl stop %s, then commit", jstr_or(o->doc, "guest", "?"));
		return -EBUSY;
	}
	if (disk_take(op->c, into, e) < 0)
		return -e->num;
	jset_str(op->args, "other", into->name);
	return 0;
}

static void live_commit_opened(void *arg, enum call_event ev, struct wire_buf *b,
			       const struct err *e)
{
	struct op *op = arg;
	struct msg_g_disk_job m = { .fd = -1 };
	struct msg_result file;
	struct guest *g;

	if (ev == CALL_ITEM)
		return;
	if (e) {
		op_finish(op, e);
		return;
	}
	if (msg_result_decode(&file, b) < 0)
		file.fd = file.fd2 = -1;
	g = disk_live(op->c, op->target, m.name);
	if (g) {
		snprintf(m.job, sizeof(m.job), "%.36s", op->o->id);
		snprintf(m.verb, sizeof(m.verb), "commit");
		m.fd = file.fd;
		peer_call(g->link, MSG_g_disk_job, &m, 0, 0, live_rebased, op);
	}
	msg_result_close(&file);
	if (!g)
		disk_live_gone(op);
}

static void live_commit_run(struct op *op)
{
	struct msg_p_volume_open m = { .mode = VOLUME_WRITE };
	struct obj *into = live_commit_into(op);

	if (!into) { /* a daemon before this one has it on record */
		op_finish(op, NULL);
		return;
	}
	volume_file(into, m.pool, m.name);
	peer_call(op->c->priv, MSG_p_volume_open, &m, 0, 30000, live_commit_opened, op);
}

/* The guest's process goes on with the parent's file; the old one shows just that (storage/live.h), so that
 * it does not matter when it goes. */
static void live_commit_commit(struct op *op)
{
	static const char *const taken[] = { "format", "cluster_size", "backing", "image" };
	struct obj *o = op->target, *into = live_commit_into(op);
	char pool[64], old[128], file[128], entry[32];
	struct guest *g;

	if (!o || !into)
		return;
	volume_file(o, pool, old);
	volume_file(into, pool, file);
	g = disk_live(op->c, o, entry);
	if (g)
		disk_lease_top(g, entry, file);
	obj_before(op->c, o);
	for (size_t i = 0; i < ARRAY_SIZE(taken); i++) {
		json_t *v = json_object_get(into->doc, taken[i]);

		if (v)
			json_object_set(o->doc, taken[i], v);
		else
			json_object_del(o->doc, taken[i]);
	}
	jset_str(o->doc, "file", file);
	obj_put(op->c, o, PUT_FACT);
	obj_del(op->c, into, PUT_FACT);
	volume_remove_later(op->c, pool, old);
}

static void live_commit_abort(struct op *op, const struct err *e)
{
	if (op->o)
		disk_let_go(op->c, live_commit_into(op));
}

const struct op_ops op_disk_commit_live = { "disk-commit-live",	 true,
					    live_commit_prepare, live_commit_run,
					    live_commit_commit,	 live_commit_abort,
					    disk_live_cancel };

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
