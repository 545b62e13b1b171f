/* disk_adopt.c - a file that lies in a pool already becomes a disk; a disk that others may write goes.
 *
 * Adopting makes a record, after the jailed vmd-image has read what the file says of itself; the file
 * is not written. The disk must bear the name that it has on the pool's other hosts, since the name is
 * what its lease goes by. A file that is an overlay needs its parent named, and the parent's file must
 * be the one that it names.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/text.h"
#include "vmd/core/disk_job.h"

/* ---- a file becomes a disk ---- */

/* The record that has this file of this pool already, or NULL. */
static struct obj *adopt_owner(struct core *c, const char *pool, const char *file)
{
	for (int k = K_DISK; k <= K_IMAGE; k++)
		list_for_each (p, &c->kinds[k].all) {
			struct obj *o = container_of(p, struct obj, node);
			char in[64], is[128];

			volume_file(o, in, is);
			if (!strcmp(in, pool) && !strcmp(is, file))
				return o;
		}
	return NULL;
}

static int adopt_check(struct core *c, json_t *body, struct err *e)
{
	const char *file = jstr_or(body, "volume", ""), *name = jstr_or(body, "name", ""),
		   *pool = jstr_or(body, "pool", "default"),
		   *dot = *file ? strrchr(file, '.') : NULL;
	size_t n = strlen(name);
	struct obj *has = adopt_owner(c, pool, file);

	if (json_object_get(body, "size") || json_object_get(body, "cluster_size"))
		return err_set(e, EINVAL, "bad-size",
			       "disk \"%s\": an existing file has its size already", name);
	if (has)
		return err_set(e, EEXIST, "volume-in-use", "pool %s: \"%s\" is %s \"%s\" already",
			       pool, file, kind_name(has->kind), has->name);
	if (!dot || strncmp(file, name, n) || file[n] != '.' ||
	    (strcmp(dot, ".qcow2") && strcmp(dot, ".raw"))) {
		err_set(e, EINVAL, "bad-volume",
			"\"%s\" is no file for a disk \"%s\": it must be called %s.qcow2, %s.raw "
			"or %s.*.qcow2",
			file, name, name, name, name);
		err_hint(e, "a disk keeps its name on all hosts of a pool");
		return -EINVAL;
	}
	jset_str(body, "format", dot + 1);
	return 0;
}

static void adopt_done(struct op *op, const struct err *e, json_t *out)
{
	struct obj *o = op->target, *parent = NULL;
	const char *name = out ? jstr(out, "backing-filename") : NULL;
	char pool[64], file[128];
	struct err bad = { 0 };
	int64_t size = out ? jint(out, "virtual-size", 0) : 0;

	if (!e && o) {
		if (jstr(o->doc, "image"))
			parent = obj_by_name(op->c, K_IMAGE, jstr(o->doc, "image"));
		else if (jstr(o->doc, "backing"))
			parent = obj_by_name(op->c, K_DISK, jstr(o->doc, "backing"));
		if (parent)
			volume_file(parent, pool, file);
		if (size <= 0 || size % 512) {
			err_set(&bad, EINVAL, "bad-size",
				"disk \"%s\": its file has %lld bytes, no multiple of 512", o->name,
				(long long)size);
		} else if (name && !parent) {
			err_set(&bad, EINVAL, "backing-needed",
				"disk \"%s\": its file is built on \"%.150s\"", o->name, name);
			err_hint(&bad, "adopt that first, then name it with --backing or --image");
		} else if (parent && (!name || strcmp(name, file))) {
			err_set(&bad, EINVAL, "backing-differs",
				"disk \"%s\": its file is built on %.150s, not on %s \"%s\"",
				o->name, name ? name : "nothing", kind_name(parent->kind),
				parent->name);
		} else {
			obj_before(op->c, o);
			json_object_set_new(o->doc, "size", json_integer((json_int_t)size));
			json_object_set_new(o->doc, "state", json_string("ready"));
			if (jint(out, "cluster-size", 0))
				json_object_set(o->doc, "cluster_size",
						json_object_get(out, "cluster-size"));
			obj_put(op->c, o, PUT_FACT);
		}
		if (bad.num)
			e = &bad;
	}
	op_finish(op, e);
}

static void adopt_run(struct op *op)
{
	struct disk_job *d = disk_job_new(op, "info");

	if (!d)
		return;
	d->done = adopt_done;
	/* another host may be writing it: a look at the header, without the locks */
	snprintf(d->args, sizeof(d->args), "lock=off\n");
	disk_job_side(d, op->target, 0, 0);
	disk_job_sent(d);
}

static void adopt_abort(struct op *op, const struct err *e)
{
	if (!op->target || !op->o)
		return;
	obj_del(op->c, op->target, PUT_FACT); /* the file stays */
	op->target = NULL;
}

const struct op_ops op_disk_adopt = { "disk-adopt", false,	 NULL,		 adopt_run,
				      NULL,	    adopt_abort, disk_job_cancel };

int disk_adopt(struct core *c, struct req *r, struct err *e)
{
	json_t *spec = json_deep_copy(r->body);
	struct obj *o = NULL;
	struct op *op;

	if (adopt_check(c, spec, e) == 0) {
		/* its true size comes with the job */
		json_object_set_new(spec, "size", json_integer(512));
		o = disk_record(c, spec, jstr_or(spec, "name", ""), NULL, e);
	}
	if (o) {
		jset_str(o->doc, "file", jstr(spec, "volume"));
		disk_file_taken(c, jstr(o->doc, "pool"), jstr(spec, "volume"));
	}
	json_decref(spec);
	if (!o)
		return -e->num;
	if (r->dry_run) {
		json_t *doc = json_incref(o->doc);

		obj_del(c, o, PUT_ASKED);
		req_reply(r, 200, doc, 0, NULL);
		return 0;
	}
	op = op_new(c, &op_disk_adopt, o, o->name, NULL, r->principal, e);
	return op ? op_answer(op, r) : -e->num;
}

/* ---- a disk of a shared pool goes: only where no other host has it ---- */

static int shared_rm_prepare(struct op *op, struct err *e)
{
	return disk_take(op->c, op->target, e);
}

static void shared_rm_run(struct op *op)
{
	struct disk_job *d = disk_job_new(op, "lease");

	if (!d)
		return;
	disk_job_add(d, op->target, 0, 0, VOLUME_WRITE);
	disk_job_sent(d);
}

static void shared_rm_commit(struct op *op)
{
	struct obj *o = op->target;
	struct disk_lease l;
	char pool[64], file[128];

	if (!o)
		return;
	volume_file(o, pool, file);
	if (disk_lease_of(op->c, o, "rm", &l))
		volume_remove_later(op->c, pool, l.file);
	disk_remove_file(op->c, o, disk_file_gone, NULL);
	obj_del(op->c, o, PUT_FACT);
	op->target = NULL;
}

static void shared_rm_abort(struct op *op, const struct err *e)
{
	if (op->o)
		disk_let_go(op->c, op->target);
}

const struct op_ops op_disk_rm = { "disk-rm",	      false,
				   shared_rm_prepare, shared_rm_run,
				   shared_rm_commit,  shared_rm_abort,
				   disk_job_cancel };
