/* disk_backup.c - what a disk held at one moment goes to a new disk, all of it or what its bitmap has;
 * and back again.
 *
 * A backup is a disk like any other: a full one stands alone, an incremental one is an overlay over the
 * last one of the same bitmap, so that each shows the whole disk. The process of a running guest copies,
 * else a jailed vmd-image. Which backup a bitmap goes on from is kept with the disk (rt, "bitmaps"): it
 * is put aside, written, before an incremental one begins and comes back only by the copier's own word,
 * so that a crash can cost a full backup and never a hole in a chain of them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "vmd/core/disk_job.h"

struct backup {
	struct op *op;
	struct call *call;
	struct disk_job *job;
};

static void backup_free(void *arg)
{
	struct backup *b = arg;

	call_forget(b->call);
	disk_job_drop(b->job);
	free(b);
}

static struct obj *backup_dest(struct op *op)
{
	return obj_by_name(op->c, K_DISK, jstr_or(op->args, "dest", ""));
}

const char *disk_backup_last(const struct obj *o, const char *bitmap)
{
	return jstr_or(json_object_get(o->rt, "bitmaps"), bitmap, "");
}

void disk_backup_set_last(struct core *c, struct obj *o, const char *bitmap, const char *id)
{
	json_t *map;

	obj_before(c, o);
	if (!o->rt)
		o->rt = json_object();
	map = json_object_get(o->rt, "bitmaps");
	if (!map) {
		map = json_object();
		json_object_set_new(o->rt, "bitmaps", map);
	}
	jset_str(map, bitmap, id);
	obj_put(c, o, PUT_FACT);
}

int disk_backup_bitmap_check(const struct obj *o, const char *bitmap, struct err *e)
{
	if (!bitmap)
		return 0;
	if (strcmp(jstr_or(o->doc, "format", ""), "qcow2"))
		return err_set(e, EINVAL, "disk-format",
			       "disk \"%s\" is %s: only qcow2 disks have bitmaps", o->name,
			       jstr_or(o->doc, "format", "raw"));
	return disk_no_layer(o, e);
}

static int backup_base(struct op *op, struct obj **base, struct err *e)
{
	const char *bitmap = jstr(op->args, "bitmap");
	struct obj *o = op->target;

	*base = NULL;
	if (!jbool(op->args, "incremental", false))
		return 0;
	if (!bitmap)
		return err_set(e, EINVAL, "no-bitmap", "an incremental backup wants a bitmap");
	*base = obj_by_id(op->c, K_DISK, disk_backup_last(o, bitmap));
	if (*base)
		return 0;
	err_set(e, EINVAL, "no-backup",
		"disk \"%s\": there is no whole backup that bitmap \"%s\" could go on from",
		o->name, bitmap);
	err_hint(e, "a full one first: vmctl disk backup %s NAME --bitmap %s", o->name, bitmap);
	return -EINVAL;
}

static int backup_prepare(struct op *op, struct err *e)
{
	struct obj *o = op->target, *base, *dest;
	const char *pool = jstr_or(op->args, "pool", jstr_or(o->doc, "pool", "default"));
	json_t *spec;

	if (disk_backup_bitmap_check(o, jstr(op->args, "bitmap"), e) < 0)
		return -e->num;
	if (backup_base(op, &base, e) < 0)
		return -e->num;
	spec = json_pack("{s:s, s:s, s:O}", "pool", pool, "format", "qcow2", "size",
			 json_object_get(o->doc, "size"));
	if (base)
		jset_str(spec, "backing", base->name);
	dest = disk_record(op->c, spec, jstr_or(op->args, "name", ""), NULL, e);
	json_decref(spec);
	if (!dest)
		return -e->num;
	jset_str(op->args, "dest", dest->name);
	if (base)
		jset_str(op->args, "base", base->id);
	json_object_set_new(op->args, "live", json_boolean(disk_live(op->c, o, NULL) != NULL));
	return disk_live(op->c, o, NULL) ? 0 : disk_take(op->c, o, e);
}

/* the copier's word: its bitmap is as before */
static void backup_refused(struct op *op, const struct err *e)
{
	if (op->target && jstr(op->args, "base"))
		disk_backup_set_last(op->c, op->target, jstr(op->args, "bitmap"),
				     jstr(op->args, "base"));
	op_finish(op, e);
}

static void backup_job_done(struct op *op, const struct err *e, json_t *out)
{
	if (e && strcmp(e->code, "job-died"))
		backup_refused(op, e);
	else
		op_finish(op, e);
}

static void backup_live_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct op *op = arg;

	if (disk_live_progress(op, ev, b))
		return;
	((struct backup *)op->data)->call = NULL;
	if (e && strcmp(e->code, "peer-gone"))
		backup_refused(op, e);
	else
		op_finish(op, e);
}

/* the target's chain is open, top first: it goes to the guest's process */
static void backup_live(struct disk_job *d)
{
	struct op *op = d->op;
	struct backup *k = op->data;
	struct msg_g_disk_job m = { .fd = -1 };
	struct guest *g = disk_live(op->c, op->target, m.name);
	struct err e = { 0 };

	if (!g) {
		err_set(&e, ECONNRESET, "guest-died", "the guest ended before the backup was done");
		op_finish(op, &e);
		return;
	}
	for (unsigned i = 0; i < d->n; i++) {
		struct msg_g_disk_overlay l = { .fd = d->fds[i], .first = i == 0, .cache = 1 };

		memcpy(l.label, d->label[i], sizeof(l.label));
		peer_send(g->link, MSG_g_disk_overlay, &l);
	}
	snprintf(m.job, sizeof(m.job), "%.36s", op->o->id);
	snprintf(m.verb, sizeof(m.verb), "backup");
	snprintf(m.bitmap, sizeof(m.bitmap), "%.255s", jstr_or(op->args, "bitmap", ""));
	m.value = jstr(op->args, "base") != NULL;
	k->call = peer_call(g->link, MSG_g_disk_job, &m, 0, 0, backup_live_done, op);
}

/* the target's file is there, empty, over the last backup where there is one */
static void backup_made(void *arg, const struct err *e)
{
	struct op *op = arg;
	struct backup *k = op->data;
	struct obj *dest = backup_dest(op);
	struct disk_job *d;

	if (e || !dest) {
		struct err gone = { 0 };

		err_set(&gone, ENOENT, "disk-not-found", "the backup was removed");
		op_finish(op, e ? e : &gone);
		return;
	}
	obj_before(op->c, dest);
	json_object_set_new(dest->doc, "state", json_string("busy"));
	if (jstr(op->args, "base"))
		disk_backup_set_last(op->c, op->target, jstr(op->args, "bitmap"), NULL);
	obj_put(op->c, dest, PUT_FACT);
	round_commit(op->c);
	d = k->job = disk_job_make(op, "backup", backup_job_done);
	if (!d)
		return;
	if (jstr(op->args, "bitmap"))
		snprintf(d->args, sizeof(d->args), "bitmap=%.250s\n", jstr(op->args, "bitmap"));
	snprintf(d->args + strlen(d->args), sizeof(d->args) - strlen(d->args), "incremental=%d\n",
		 jstr(op->args, "base") != NULL);
	if (jbool(op->args, "live", false))
		d->ready = backup_live;
	else
		disk_job_side(d, op->target, 0, jstr(op->args, "bitmap") ? 1 : 0);
	disk_job_side(d, dest, 1, 1);
	disk_job_sent(d);
}

static void backup_run(struct op *op)
{
	struct backup *k = calloc(1, sizeof(*k));
	struct obj *dest = backup_dest(op);
	struct err e = { 0 };

	if (k) {
		k->op = op;
		op->data = k;
		op->free_data = backup_free;
	}
	if (!k || !dest) {
		err_set(&e, ENOMEM, "no-memory", "no memory");
		op_finish(op, &e);
		return;
	}
	disk_make(op->c, dest, backup_made, op);
}

static void backup_commit(struct op *op)
{
	struct obj *dest = backup_dest(op), *o = op->target;

	disk_let_go(op->c, o);
	disk_let_go(op->c, dest);
	if (o && dest && jstr(op->args, "bitmap"))
		disk_backup_set_last(op->c, o, jstr(op->args, "bitmap"), dest->id);
}

static void backup_abort(struct op *op, const struct err *e)
{
	struct obj *dest = backup_dest(op);

	if (!op->o)
		return;
	disk_let_go(op->c, op->target);
	disk_live_cancel(op);
	if (!dest)
		return;
	disk_remove_file(op->c, dest, disk_file_gone, NULL);
	obj_del(op->c, dest, PUT_FACT);
}

static void backup_cancel(struct op *op)
{
	struct backup *k = op->data;

	if (k && k->job && k->job->job)
		image_job_cancel(k->job->job);
	disk_live_cancel(op);
}

const struct op_ops op_disk_backup = { "disk-backup", false,	    backup_prepare, backup_run,
				       backup_commit, backup_abort, backup_cancel };

/* ---- restore: the disk holds what another shows ---- */

static int restore_prepare(struct op *op, struct err *e)
{
	struct obj *o = op->target, *from = disk_find(op->c, jstr_or(op->args, "from", ""), e),
		   *child;
	char file[128], id[40];

	if (!from)
		return -e->num;
	if (from == o)
		return err_set(e, EINVAL, "same-disk", "disk \"%s\" holds what it holds", o->name);
	child = disk_child(op->c, o, NULL);
	if (child)
		return err_set(e, EBUSY, "disk-is-backing",
			       "disk \"%s\" is what disk \"%s\" is built on", o->name, child->name);
	if (disk_no_layer(o, e) < 0 || disk_take(op->c, o, e) < 0)
		return -e->num;
	if (disk_take(op->c, from, e) < 0) {
		disk_let_go(op->c, o);
		return -e->num;
	}
	jset_str(op->args, "other", from->name);
	snprintf(id, sizeof(id), "%s", o->id);
	snprintf(file, sizeof(file), "%.63s.%.8s%.4x.qcow2", jstr_or(o->doc, "name", "disk"), id,
		 (unsigned)o->revision & 0xffff);
	jset_str(op->args, "file", file);
	return 0;
}

static void restore_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct disk_job *d = arg;

	if (ev != CALL_ITEM)
		disk_job_take(d, b, e, 1, "qcow2", "the new file");
}

static void restore_run(struct op *op)
{
	struct obj *from = obj_by_name(op->c, K_DISK, jstr_or(op->args, "other", ""));
	struct msg_p_volume_open m = { .mode = VOLUME_CREATE };
	struct disk_job *d = disk_job_new(op, "convert");

	if (!d)
		return;
	snprintf(m.pool, sizeof(m.pool), "%.63s", jstr_or(op->target->doc, "pool", "default"));
	snprintf(m.name, sizeof(m.name), "%.127s", jstr_or(op->args, "file", ""));
	d->open++;
	peer_call(op->c->priv, MSG_p_volume_open, &m, 0, 30000, restore_opened, d);
	if (from)
		disk_job_side(d, from, 0, 0);
	disk_job_sent(d);
}

static void restore_commit(struct op *op)
{
	struct obj *o = op->target,
		   *from = obj_by_name(op->c, K_DISK, jstr_or(op->args, "other", ""));
	char pool[64], old[128];

	disk_let_go(op->c, from);
	if (!o)
		return;
	volume_file(o, pool, old);
	obj_before(op->c, o);
	jset_str(o->doc, "file", jstr(op->args, "file"));
	disk_file_taken(op->c, pool, jstr_or(op->args, "file", ""));
	jset_str(o->doc, "format", "qcow2");
	jset_str(o->doc, "backing", NULL);
	jset_str(o->doc, "image", NULL);
	if (from)
		json_object_set(o->doc, "size", json_object_get(from->doc, "size"));
	if (o->rt)
		json_object_del(o->rt, "bitmaps"); /* the new file has none */
	disk_let_go(op->c, o);
	volume_remove_later(op->c, pool, old);
}

static void restore_abort(struct op *op, const struct err *e)
{
	if (!op->o)
		return;
	disk_let_go(op->c, obj_by_name(op->c, K_DISK, jstr_or(op->args, "other", "")));
	if (!op->target)
		return;
	disk_let_go(op->c, op->target);
	volume_remove_later(op->c, jstr_or(op->target->doc, "pool", "default"),
			    jstr_or(op->args, "file", ""));
}

const struct op_ops op_disk_restore = { "disk-restore", false,	       restore_prepare, restore_run,
					restore_commit, restore_abort, disk_job_cancel };

/* ---- bitmaps: made, removed, ... by vmd-image, or by the process of a running guest ---- */

static int bitmap_prepare(struct op *op, struct err *e)
{
	struct obj *o = op->target;

	if (strcmp(jstr_or(o->doc, "format", ""), "qcow2"))
		return err_set(e, EINVAL, "disk-format",
			       "disk \"%s\" is %s: only qcow2 disks have bitmaps", o->name,
			       jstr_or(o->doc, "format", "raw"));
	if (disk_no_layer(o, e) < 0)
		return -e->num;
	json_object_set_new(op->args, "live", json_boolean(disk_live(op->c, o, NULL) != NULL));
	return jbool(op->args, "live", false) ? 0 : disk_take(op->c, o, e);
}

static void bitmap_live_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (ev == CALL_DONE)
		op_finish(arg, e);
}

static void bitmap_run(struct op *op)
{
	const char *what = jstr_or(op->args, "do", "add"), *name = jstr_or(op->args, "name", ""),
		   *source = jstr_or(op->args, "source", "");
	int64_t granularity = jsize(op->args, "granularity", 0);
	struct msg_g_disk_job m = { .fd = -1 };
	struct guest *g = disk_live(op->c, op->target, m.name);
	struct disk_job *d;

	if (g) {
		snprintf(m.job, sizeof(m.job), "%.36s", op->o->id);
		snprintf(m.verb, sizeof(m.verb), "bitmap");
		snprintf(m.bitmap, sizeof(m.bitmap), "%.255s", name);
		snprintf(m.backing, sizeof(m.backing), "%.15s", what);
		snprintf(m.source, sizeof(m.source), "%.255s", source);
		m.value = (uint64_t)granularity;
		peer_call(g->link, MSG_g_disk_job, &m, 0, 0, bitmap_live_done, op);
		return;
	}
	if (jbool(op->args, "live", false)) {
		disk_live_gone(op);
		return;
	}
	d = disk_job_new(op, "bitmap");
	if (!d)
		return;
	snprintf(d->args, sizeof(d->args),
		 "do=%.15s\nname=%.200s\ngranularity=%lld\nsource=%.200s\n", what, name,
		 (long long)granularity, source);
	disk_job_side(d, op->target, 0, 1);
	disk_job_sent(d);
}

static void bitmap_commit(struct op *op)
{
	const char *what = jstr_or(op->args, "do", "add");

	if (!op->target)
		return;
	/* whoever clears it by hand, or takes it away, loses what it knew */
	if (strcmp(what, "add") && strcmp(what, "enable") && strcmp(what, "merge"))
		disk_backup_set_last(op->c, op->target, jstr_or(op->args, "name", ""), NULL);
	disk_let_go(op->c, op->target);
}

static void bitmap_abort(struct op *op, const struct err *e)
{
	if (op->o)
		disk_let_go(op->c, op->target);
}

const struct op_ops op_disk_bitmap = { "disk-bitmap", false,	     bitmap_prepare,
				       bitmap_run,    bitmap_commit, bitmap_abort,
				       NULL };

/* ---- routes ---- */

int route_disk_backup(struct core *c, struct req *r, struct err *e)
{
	const char *to = jstr_or(r->body, "name", "");

	return disk_verb(c, r, disk_uri(to) ? &op_disk_backup_nbd : &op_disk_backup, e);
}

int route_disk_restore(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_restore, e);
}

int route_disk_bitmap(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_bitmap, e);
}
