/* snapshot_rm.c - a snapshot is removed: each of its layers is merged with the disk that is built on it.
 *
 * A layer that nothing is built on just goes. Else the one disk above it is written into it and takes
 * over its file, in a jailed vmd-image; where the guest runs, its process does the work: it pulls the
 * layer into its own top, or writes the layer above down into this one. What a disk shows is the same
 * at each moment, so whatever dies, the operation is run again and ends. It may be cancelled, but from
 * its first step on the snapshot is not whole: it stays "removing" until it is removed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "vmd/core/disk_job.h"
#include "vmd/core/snapshot.h"

static void rm_next(struct op *op);

struct rm {
	struct op *op;
	struct call *call; /* to the guest's process */
	struct obj *layer, *child;
	bool pull; /* the layer went into the child, not the child into the layer */
	char done_for[40];
	struct disk_job *job;
};

/* the layer @i of the snapshot, while it has one */
static struct obj *rm_layer(struct op *op, size_t i)
{
	const json_t *d = json_array_get(json_object_get(op->target->doc, "disks"), i);
	struct obj *o = obj_by_name(op->c, K_DISK, jstr_or(d, "layer", ""));

	return o && !strcmp(jstr_or(o->doc, "snapshot", ""), op->target->name) ? o : NULL;
}

static size_t rm_count(struct op *op)
{
	return op->target ? json_array_size(json_object_get(op->target->doc, "disks")) : 0;
}

/* Where the process of the snapshot's guest has @layer open below one of its disks. Return: how far
 * below, 0: not. */
static unsigned rm_live_depth(struct op *op, const struct obj *layer, struct guest **out,
			      char entry[32])
{
	struct obj *go = snapshot_guest(op->c, op->target);
	struct guest *g = go ? go->mem : NULL;
	struct chain_layer chain[DISK_CHAIN_MAX];
	struct err e = { 0 };
	size_t i;
	json_t *d;

	if (!g || !g->link)
		return 0;
	json_array_foreach(json_object_get(go->doc, "disks"), i, d)
	{
		struct obj *top = disk_find(op->c, jstr_or(d, "disk", ""), NULL);
		int n = top ? disk_chain(op->c, top, chain, DISK_CHAIN_MAX, true, &e) : 0;

		for (int k = 1; k < n; k++)
			if (chain[k].o == layer) {
				*out = g;
				snprintf(entry, 32, "%.31s", jstr_or(d, "name", ""));
				return (unsigned)k;
			}
	}
	return 0;
}

static int rm_busy(struct core *c, struct obj *o, struct err *e)
{
	if (strcmp(jstr_or(o->doc, "state", ""), "ready"))
		return err_set(e, EBUSY, "disk-busy", "disk \"%s\" is %s", o->name,
			       jstr_or(o->doc, "state", "?"));
	if (guest_saved_needs(c, o, e) < 0)
		return -e->num;
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string("busy"));
	obj_put(c, o, PUT_ASKED);
	return 0;
}

static int rm_prepare(struct op *op, struct err *e)
{
	struct core *c = op->c;

	for (size_t i = 0; i < rm_count(op); i++) {
		struct obj *layer = rm_layer(op, i),
			   *child = layer ? disk_child(c, layer, NULL) : 0;
		struct obj *second = child ? disk_child(c, layer, child) : NULL;
		char entry[32];
		struct guest *g;

		if (!layer)
			continue;
		if (second) {
			err_set(e, EBUSY, "disk-is-backing",
				"disks \"%s\" and \"%s\" are both built on layer \"%s\" of it",
				child->name, second->name, layer->name);
			err_hint(e, "vmctl disk rebase %s, or remove what needs it first",
				 second->name);
			return -EBUSY;
		}
		if (disk_has_reader(c, layer))
			return err_set(e, EBUSY, "disk-busy", "layer \"%s\" is being read",
				       layer->name);
		if (rm_live_depth(op, layer, &g, entry) > 2) {
			err_set(
			    e, EBUSY, "snapshot-too-deep",
			    "while guest \"%s\" runs only its two newest snapshots can be removed",
			    g->o->name);
			err_hint(e, "remove newer ones first, or vmctl stop %s", g->o->name);
			return -EBUSY;
		}
		if (rm_busy(c, layer, e) < 0 || (child && rm_busy(c, child, e) < 0))
			return -e->num;
	}
	obj_before(c, op->target);
	json_object_set_new(op->target->doc, "state", json_string("removing"));
	obj_put(c, op->target, PUT_ASKED);
	return 0;
}

/* ---- a layer is merged: the records follow ---- */

static void rm_take_over(struct obj *child, const struct obj *layer, const char *key)
{
	json_t *v = json_object_get(layer->doc, key);

	if (v)
		json_object_set(child->doc, key, v);
	else
		json_object_del(child->doc, key);
}

static void rm_apply(struct op *op)
{
	struct rm *r = op->data;
	struct core *c = op->c;
	char pool[64], gone[128], kept[128], entry[32];
	struct guest *live;

	volume_file(r->pull ? r->layer : r->child, pool, gone);
	volume_file(r->layer, pool, kept);
	obj_before(c, r->child);
	if (!r->pull) {
		jset_str(r->child->doc, "file", kept);
		live = disk_live(c, r->child, entry);
		if (live)
			disk_lease_top(live, entry, kept);
		rm_take_over(r->child, r->layer, "format");
		rm_take_over(r->child, r->layer, "cluster_size");
	}
	rm_take_over(r->child, r->layer, "backing");
	rm_take_over(r->child, r->layer, "image");
	json_object_set_new(r->child->doc, "state", json_string("ready"));
	obj_put(c, r->child, PUT_FACT);
	obj_del(c, r->layer, PUT_FACT);
	volume_remove_later(c, pool, gone);
	round_commit(c);
	rm_next(op);
}

/* The next disk that is built on the child and has to note how its parent looks now. */
static struct obj *rm_restamp(struct op *op)
{
	struct rm *r = op->data;
	bool after = !r->done_for[0];

	list_for_each (p, &op->c->kinds[K_DISK].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (strcmp(jstr_or(o->doc, "backing", ""), r->child->name))
			continue;
		if (after)
			return o;
		after = !strcmp(o->id, r->done_for);
	}
	return NULL;
}

static void rm_merged(struct op *op);

static void rm_restamped(struct op *op, const struct err *e, json_t *out)
{
	if (e)
		op_finish(op, e);
	else
		rm_merged(op);
}

static void rm_job_free(struct rm *r)
{
	disk_job_drop(r->job);
	r->job = NULL;
}

/* The files are as they should be; what is built on the child is told, then the records change. */
static void rm_merged(struct op *op)
{
	struct rm *r = op->data;
	struct obj *on = rm_restamp(op), *parent = r->pull ? r->child : r->layer;
	char pool[64], file[128], entry[32];
	struct disk_job *d;
	struct guest *g;

	/* the guest's own top has noted it itself */
	while (on && rm_live_depth(op, r->child, &g, entry) && jstr(on->doc, "guest") &&
	       !strcmp(jstr(on->doc, "guest"), g->o->name)) {
		snprintf(r->done_for, sizeof(r->done_for), "%s", on->id);
		on = rm_restamp(op);
	}
	rm_job_free(r);
	if (!on) {
		rm_apply(op);
		return;
	}
	snprintf(r->done_for, sizeof(r->done_for), "%s", on->id);
	d = r->job = disk_job_make(op, "rebase", rm_restamped);
	if (!d)
		return;
	volume_file(parent, pool, file);
	snprintf(d->args, sizeof(d->args), "unsafe=1\nbacking=%s\nbacking_format=%s\n", file,
		 jstr_or(parent->doc, "format", "raw"));
	disk_job_side(d, on, 0, 1);
	disk_job_side(d, parent, 1, 0);
	disk_job_sent(d);
}

static void rm_job_done(struct op *op, const struct err *e, json_t *out)
{
	if (e)
		op_finish(op, e);
	else
		rm_merged(op);
}

/* ---- merging ---- */

static void rm_offline(struct op *op)
{
	struct rm *r = op->data;
	struct chain_layer chain[DISK_CHAIN_MAX];
	char pool[64], file[128];
	struct disk_job *d;
	int n;

	/* what is smaller than the layer would grow by going into it */
	r->pull = jint(r->child->doc, "size", 0) < jint(r->layer->doc, "size", 0);
	rm_job_free(r);
	d = r->job = disk_job_make(op, r->pull ? "rebase" : "commit", rm_job_done);
	if (!d)
		return;
	disk_job_side(d, r->child, 0, r->pull ? 1 : 2);
	n = r->pull ? disk_chain(op->c, r->layer, chain, DISK_CHAIN_MAX, true, &d->err) : 0;
	if (n > 1) {
		volume_file(chain[1].o, pool, file);
		snprintf(d->args, sizeof(d->args), "backing=%s\nbacking_format=%s\n", file,
			 jstr_or(chain[1].o->doc, "format", "raw"));
		disk_job_side(d, chain[1].o, 1, 0);
	}
	disk_job_sent(d);
}

static void rm_live_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct op *op = arg;
	struct rm *r = op->data;

	if (ev == CALL_ITEM) {
		struct msg_g_disk_progress m;

		if (b->type == MSG_g_disk_progress && msg_g_disk_progress_decode(&m, b) == 0)
			disk_job_percent(op, m.done, m.total);
		return;
	}
	r->call = NULL;
	if (e && !strcmp(e->code, "peer-gone"))
		rm_offline(op); /* its process ended: what it did not end is done here */
	else if (e)
		op_finish(op, e);
	else
		rm_merged(op);
}

static void rm_live_send(struct op *op, int fd)
{
	struct rm *r = op->data;
	struct msg_g_disk_job m = { .fd = fd };
	struct chain_layer chain[DISK_CHAIN_MAX];
	struct err e = { 0 };
	struct guest *g = NULL;
	unsigned depth = rm_live_depth(op, r->layer, &g, m.name);
	int n = disk_chain(op->c, r->layer, chain, DISK_CHAIN_MAX, true, &e);
	char pool[64];

	if (!depth || n < 0) {
		rm_offline(op);
		return;
	}
	snprintf(m.job, sizeof(m.job), "%.36s", r->layer->id);
	if (depth == 1) {
		snprintf(m.verb, sizeof(m.verb), "stream");
		m.depth = n > 1 ? 2 : 0;
		if (n > 1) {
			char file[128];

			volume_file(chain[1].o, pool, file);
			snprintf(m.backing, sizeof(m.backing), "%s", file);
			snprintf(m.backing_format, sizeof(m.backing_format), "%s",
				 jstr_or(chain[1].o->doc, "format", "raw"));
		}
	} else {
		char file[128];

		snprintf(m.verb, sizeof(m.verb), "commit");
		m.depth = 1;
		volume_file(r->layer, pool, file);
		snprintf(m.backing, sizeof(m.backing), "%s", file);
		snprintf(m.backing_format, sizeof(m.backing_format), "%s",
			 jstr_or(r->layer->doc, "format", "raw"));
	}
	r->pull = depth == 1;
	r->call = peer_call(g->link, MSG_g_disk_job, &m, 0, 0, rm_live_done, op);
}

static void rm_into_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct op *op = arg;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (e) {
		op_finish(op, e);
		return;
	}
	if (msg_result_decode(&m, b) < 0)
		m.fd = m.fd2 = -1;
	rm_live_send(op, m.fd);
	msg_result_close(&m);
}

static void rm_merge(struct op *op)
{
	struct rm *r = op->data;
	struct msg_p_volume_open m = { .mode = VOLUME_WRITE };
	struct guest *g = NULL;
	char entry[32];
	unsigned depth = rm_live_depth(op, r->layer, &g, entry);

	r->done_for[0] = '\0';
	if (!depth) {
		rm_offline(op);
	} else if (depth == 1) {
		rm_live_send(op, -1);
	} else {
		volume_file(r->layer, m.pool, m.name);
		peer_call(op->c->priv, MSG_p_volume_open, &m, 0, 30000, rm_into_opened, op);
	}
}

static void rm_next(struct op *op)
{
	struct err e = { 0 };

	for (size_t i = 0; i < rm_count(op); i++) {
		struct rm *r = op->data;
		struct obj *layer = rm_layer(op, i);

		if (!layer)
			continue;
		if (op->cancelled) {
			err_set(&e, ECANCELED, "cancelled", "the removal was cancelled");
			err_hint(&e, "vmctl snapshot rm %s ends it", op->target->name);
			op_finish(op, &e);
			return;
		}
		r->layer = layer;
		r->child = disk_child(op->c, layer, NULL);
		if (r->child) {
			rm_merge(op);
			return;
		}
		disk_remove_file(op->c, layer, disk_file_gone, NULL);
		obj_del(op->c, layer, PUT_FACT);
	}
	op_finish(op, NULL);
}

static void rm_free(void *arg)
{
	struct rm *r = arg;

	call_forget(r->call);
	rm_job_free(r);
	free(r);
}

static void rm_run(struct op *op)
{
	struct rm *r = calloc(1, sizeof(*r));
	struct err e = { 0 };

	if (!r) {
		err_set(&e, ENOMEM, "no-memory", "no memory");
		op_finish(op, &e);
		return;
	}
	r->op = op;
	op->data = r;
	op->free_data = rm_free;
	rm_next(op);
}

static void rm_commit(struct op *op)
{
	struct obj *snap = op->target;

	if (!snap)
		return;
	event_add(op->c, "snapshot.removed", "snapshot", snap->name, "removed");
	obj_del(op->c, snap, PUT_FACT);
	op->target = NULL;
}

static void rm_abort(struct op *op, const struct err *e)
{
	if (!op->o)
		return;
	for (size_t i = 0; i < rm_count(op); i++) {
		struct obj *layer = rm_layer(op, i);

		if (!layer)
			continue;
		disk_let_go(op->c, layer);
		disk_let_go(op->c, disk_child(op->c, layer, NULL));
	}
}

static void rm_cancel(struct op *op)
{
	struct rm *r = op->data;
	struct obj *go = snapshot_guest(op->c, op->target);
	struct guest *g = go ? go->mem : NULL;
	struct msg_g_disk_cancel m = { 0 };

	if (r && r->job && r->job->job)
		image_job_cancel(r->job->job);
	if (!r || !r->call || !g || !g->link)
		return;
	snprintf(m.job, sizeof(m.job), "%.36s", r->layer->id);
	peer_send(g->link, MSG_g_disk_cancel, &m);
}

const struct op_ops op_snapshot_rm = { "snapshot-rm", true,	rm_prepare, rm_run,
				       rm_commit,     rm_abort, rm_cancel };

int route_snapshot_delete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = snapshot_find(c, r->name, "removing", e);
	struct op *op = o ? op_new(c, &op_snapshot_rm, o, o->name, NULL, r->principal, e) : NULL;

	return op ? op_answer(op, r) : -e->num;
}
