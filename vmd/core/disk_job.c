/* disk_job.c - work on disks in the jailed vmd-image: check, map, resize, convert, commit, rebase,
 * compare.
 *
 * Each is an operation. While it lasts, every disk that it writes, and every disk that must not change
 * under it, is "busy" on record: no guest starts with it, nothing else takes it. A daemon that dies
 * meanwhile aborts the operation at its next start; each job may then be run again. A live resize goes
 * to the guest's process instead.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "vmd/core/disk_job.h"

struct layer_arg {
	struct disk_job *d;
	unsigned i;
};

static void disk_job_free(void *p)
{
	struct disk_job *d = p;

	for (unsigned i = 0; d && i < JOB_LAYERS; i++) {
		close_fd(&d->fds[i]);
		if (d->lease[i])
			close_fd(&d->lease[i]->fd);
		free(d->lease[i]);
	}
	free(d);
}

void disk_job_drop(struct disk_job *d)
{
	disk_job_free(d);
}

static void disk_job_end(struct disk_job *d, const struct err *e, json_t *out)
{
	struct op *op = d->op;

	if (d->done) {
		d->done(op, e, out);
		return;
	}
	if (out)
		json_object_set(op->o->doc, "result", out);
	op_finish(op, e);
}

void disk_job_percent(struct op *op, uint64_t done, uint64_t total)
{
	op_progress(op, total ? (int)(done >= total ? 99 : done * 100 / total) : 0, NULL);
}

static void disk_job_progress(void *arg, uint64_t done, uint64_t total)
{
	disk_job_percent(((struct disk_job *)arg)->op, done, total);
}

static void disk_job_done(void *arg, const struct err *e, json_t *out)
{
	struct disk_job *d = arg;

	disk_job_end(d, e, out);
}

void disk_job_go(struct disk_job *d)
{
	struct op *op = d->op;

	if (op->cancelled && !d->err.num)
		err_set(&d->err, ECANCELED, "cancelled", "%s was cancelled", d->verb);
	if (d->err.num) {
		struct err why = d->err;

		disk_job_end(d, &why, NULL);
		return;
	}
	if (d->ready) {
		d->ready(d);
		return;
	}
	image_job_run(op->c, d->layers, d->n, d->verb, d->args,
		      d->progress ? d->progress : disk_job_progress, disk_job_done, d, &d->job);
}

static void disk_job_layer(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct layer_arg *a = arg;
	struct disk_job *d = a->d;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (e && !d->err.num)
		d->err = *e;
	if (!e && msg_result_decode(&m, b) == 0) {
		d->fds[a->i] = d->layers[a->i].fd = m.fd;
		m.fd = -1;
		if (d->lease[a->i]) {
			d->lease[a->i]->fd = m.fd2;
			m.fd2 = -1;
		}
		msg_result_close(&m);
	}
	free(a);
	if (!--d->open)
		disk_job_go(d);
}

static bool disk_job_leases(const struct disk_job *d, const char *file)
{
	for (unsigned i = 0; i < d->n; i++)
		if (d->lease[i] && !strcmp(d->lease[i]->file, file))
			return true;
	return false;
}

void disk_job_add(struct disk_job *d, struct obj *o, unsigned side, unsigned layer, uint64_t mode)
{
	struct msg_p_volume_open m = { .mode = mode };
	struct layer_arg *a = calloc(1, sizeof(*a));
	struct disk_lease lease;
	unsigned i = d->n++;

	if (!a) {
		err_set(&d->err, ENOMEM, "no-memory", "no memory for the job");
		return;
	}
	*a = (struct layer_arg){ d, i };
	snprintf(d->label[i], sizeof(d->label[i]), "%s %.120s", kind_name(o->kind), o->name);
	d->layers[i] = (struct job_layer){ .side = side,
					   .layer = layer,
					   .driver = disk_driver(jstr_or(o->doc, "format", "raw")),
					   .label = d->label[i],
					   .fd = -1,
					   .read_only = mode == VOLUME_READ };
	volume_file(o, m.pool, m.name);
	if (mode == VOLUME_WRITE && disk_lease_of(d->op->c, o, d->verb, &lease) &&
	    !disk_job_leases(d, lease.file)) {
		d->lease[i] = malloc(sizeof(lease));
		if (!d->lease[i]) {
			err_set(&d->err, ENOMEM, "no-memory", "no memory for the job");
		} else {
			*d->lease[i] = lease;
			d->layers[i].lease = d->lease[i];
			memcpy(m.lease, lease.file, sizeof(m.lease));
		}
	}
	d->open++;
	peer_call(d->op->c->priv, MSG_p_volume_open, &m, 0, 30000, disk_job_layer, a);
}

void disk_job_take(struct disk_job *d, struct wire_buf *b, const struct err *e, unsigned side,
		   const char *driver, const char *label)
{
	struct msg_result m;

	if (e && !d->err.num)
		d->err = *e;
	if (!e && msg_result_decode(&m, b) == 0) {
		unsigned i = d->n++;

		d->layers[i] = (struct job_layer){
			.side = side, .driver = driver, .label = label, .fd = m.fd
		};
		d->fds[i] = m.fd;
		m.fd = -1;
		msg_result_close(&m);
	}
	if (!--d->open)
		disk_job_go(d);
}

struct disk_job *disk_job_make(struct op *op, const char *verb, disk_job_done_fn *done)
{
	struct disk_job *d = calloc(1, sizeof(*d));
	struct err e = { 0 };

	if (!d) {
		err_set(&e, ENOMEM, "no-memory", "no memory for the job");
		op_finish(op, &e);
		return NULL;
	}
	for (unsigned i = 0; i < JOB_LAYERS; i++)
		d->fds[i] = -1;
	d->op = op;
	d->verb = verb;
	d->done = done;
	return d;
}

struct disk_job *disk_job_new(struct op *op, const char *verb)
{
	struct disk_job *d = disk_job_make(op, verb, NULL);

	if (d) {
		op->data = d;
		op->free_data = disk_job_free;
	}
	return d;
}

/* the chain of @o as @side; the upper @writable layers for writing */
void disk_job_side(struct disk_job *d, struct obj *o, unsigned side, unsigned writable)
{
	struct chain_layer chain[DISK_CHAIN_MAX];
	int n = disk_chain(d->op->c, o, chain, DISK_CHAIN_MAX, true, &d->err);

	for (int i = 0; i < n; i++)
		disk_job_add(d, chain[i].o, side, (unsigned)i,
			     (unsigned)i < writable ? VOLUME_WRITE : VOLUME_READ);
}

/* a chain that cannot be opened: nothing is under way that would end the operation */
void disk_job_sent(struct disk_job *d)
{
	struct err why = d->err;

	if (!d->open)
		disk_job_end(d, why.num ? &why : NULL, NULL);
}

/* ---- who may be worked on ---- */

/* nobody else may write @o while a job reads or changes it */
int disk_take(struct core *c, struct obj *o, struct err *e)
{
	const char *guest = jstr(o->doc, "guest");
	struct obj *g = guest ? obj_by_name(c, K_GUEST, guest) : NULL;

	if (strcmp(jstr_or(o->doc, "state", ""), "ready"))
		return err_set(e, EBUSY, "disk-busy", "disk \"%s\" is %s", o->name,
			       jstr_or(o->doc, "state", "?"));
	if (jstr(o->doc, "snapshot")) /* any number may read it; who would change it asks first */
		return 0;
	if (guest_saved_needs(c, o, e) < 0)
		return -e->num;
	if (g && gstate_has_process(((struct guest *)g->mem)->state)) {
		err_set(e, EBUSY, "disk-in-use", "disk \"%s\" is in use by guest \"%s\"", o->name,
			guest);
		err_hint(e, "vmctl stop %s", guest);
		return -EBUSY;
	}
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string("busy"));
	obj_put(c, o, PUT_ASKED);
	return 0;
}

/* as disk_take(), of one that is changed */
static int disk_take_write(struct core *c, struct obj *o, struct err *e)
{
	int r = disk_no_layer(o, e);

	return r < 0 ? r : disk_take(c, o, e);
}

bool disk_has_reader(struct core *c, const struct obj *o)
{
	list_for_each (p, &c->kinds[K_OPERATION].all) {
		const struct op *op = container_of(p, struct obj, node)->mem;

		if (op && !op->finished &&
		    (op->target == o || !strcmp(jstr_or(op->args, "other", ""), o->name)))
			return true;
	}
	return false;
}

void disk_let_go(struct core *c, struct obj *o)
{
	if (!o || strcmp(jstr_or(o->doc, "state", ""), "busy"))
		return;
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string("ready"));
	obj_put(c, o, PUT_FACT);
}

/* the second disk of the operation, if it has one; by name, for it is looked up after a restart too */
static struct obj *disk_other(struct op *op)
{
	const char *name = jstr(op->args, "other");

	return name ? obj_by_name(op->c, K_DISK, name) : NULL;
}

static int disk_take_other(struct op *op, struct obj *o, struct err *e)
{
	int r = disk_take(op->c, o, e);

	if (r < 0) {
		disk_let_go(op->c, op->target);
		return r;
	}
	jset_str(op->args, "other", o->name);
	return 0;
}

static int disk_job_prepare(struct op *op, struct err *e)
{
	return disk_take(op->c, op->target, e);
}

static int check_prepare(struct op *op, struct err *e)
{
	bool mends = strcmp(jstr_or(op->args, "repair", "no"), "no") != 0;

	return mends ? disk_take_write(op->c, op->target, e) : disk_take(op->c, op->target, e);
}

static void disk_ready(struct op *op)
{
	disk_let_go(op->c, op->target);
	disk_let_go(op->c, disk_other(op));
}

static void disk_job_abort(struct op *op, const struct err *e)
{
	disk_ready(op);
}

void disk_job_cancel(struct op *op)
{
	struct disk_job *d = op->data;

	if (d && d->job)
		image_job_cancel(d->job);
	else
		disk_live_cancel(op);
}

/* ---- check, map ---- */

static void check_run(struct op *op)
{
	const char *repair = jstr_or(op->args, "repair", "no");
	struct disk_job *d = disk_job_new(op, "check");

	if (!d)
		return;
	if (strcmp(repair, "no"))
		snprintf(d->args, sizeof(d->args), "repair=%s\n", repair);
	disk_job_side(d, op->target, 0, strcmp(repair, "no") != 0);
	disk_job_sent(d);
}

static void map_run(struct op *op)
{
	struct disk_job *d = disk_job_new(op, "map");

	if (!d)
		return;
	disk_job_side(d, op->target, 0, 0);
	disk_job_sent(d);
}

const struct op_ops op_disk_check = { "disk-check", false,	    check_prepare,  check_run,
				      disk_ready,   disk_job_abort, disk_job_cancel };
const struct op_ops op_disk_map = { "disk-map", false,		disk_job_prepare, map_run,
				    disk_ready, disk_job_abort, disk_job_cancel };

/* ---- resize ---- */

static void resize_commit(struct op *op)
{
	obj_before(op->c, op->target);
	json_object_set_new(op->target->doc, "size",
			    json_integer((json_int_t)jsize(op->args, "size", 0)));
	obj_put(op->c, op->target, PUT_FACT);
	disk_ready(op);
}

static struct guest *disk_live_guest(struct op *op)
{
	return disk_live(op->c, op->target, NULL);
}

static int resize_prepare(struct op *op, struct err *e)
{
	int64_t size = jsize(op->args, "size", 0), old = jint(op->target->doc, "size", 0);

	if (size <= 0 || size % 512)
		return err_set(e, EINVAL, "bad-size",
			       "disk \"%s\": the size must be a multiple of 512", op->target->name);
	if (size < old && (!jbool(op->args, "shrink", false) || disk_live_guest(op))) {
		err_set(e, EINVAL, "would-shrink",
			"disk \"%s\" has %lld bytes; %lld would cut it off", op->target->name,
			(long long)old, (long long)size);
		err_hint(e, "stop the guest and use --shrink");
		return -EINVAL;
	}
	json_object_set_new(op->args, "live", json_boolean(disk_live_guest(op) != NULL));
	return jbool(op->args, "live", false) ? 0 : disk_take_write(op->c, op->target, e);
}

static void resize_live_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (ev == CALL_DONE)
		op_finish(arg, e);
}

static void resize_run(struct op *op)
{
	struct guest *g = disk_live_guest(op);
	struct msg_g_disk_resize m = { .size_bytes = (uint64_t)jsize(op->args, "size", 0) };
	size_t i;
	json_t *d;

	if (!g && jbool(op->args, "live", false)) {
		disk_live_gone(op);
		return;
	}
	if (!g) {
		struct disk_job *j = disk_job_new(op, "resize");

		if (!j)
			return;
		snprintf(j->args, sizeof(j->args), "size=%llu\nforce=%d\n",
			 (unsigned long long)m.size_bytes, jbool(op->args, "force", false));
		disk_job_side(j, op->target, 0, 1);
		disk_job_sent(j);
		return;
	}
	json_array_foreach(json_object_get(g->o->doc, "disks"), i,
			   d) if (disk_find(op->c, jstr_or(d, "disk", ""), NULL) == op->target)
	    snprintf(m.name, sizeof(m.name), "%.31s", jstr_or(d, "name", ""));
	peer_call(g->link, MSG_g_disk_resize, &m, 0, 60000, resize_live_done, op);
}

const struct op_ops op_disk_resize = { "disk-resize", false,	     resize_prepare,
				       resize_run,    resize_commit, disk_job_abort,
				       NULL };

/* ---- convert ---- */

static int convert_prepare(struct op *op, struct err *e)
{
	json_t *spec = json_pack(
	    "{s:s, s:s, s:O}", "pool",
	    jstr_or(op->args, "pool", jstr_or(op->target->doc, "pool", "default")), "format",
	    jstr_or(op->args, "format", "qcow2"), "size", json_object_get(op->target->doc, "size"));
	int r = disk_job_prepare(op, e);
	struct obj *o = r ? NULL : disk_record(op->c, spec, jstr_or(op->args, "name", ""), NULL, e);

	json_decref(spec);
	if (!r && !o) {
		disk_ready(op);
		r = -e->num;
	}
	if (o)
		jset_str(op->args, "dest", o->name);
	return r;
}

static void convert_run(struct op *op)
{
	struct obj *dest = obj_by_name(op->c, K_DISK, jstr_or(op->args, "dest", ""));
	const char *compress = jstr_or(op->args, "compress", "no");
	struct disk_job *d = disk_job_new(op, "convert");

	if (!d)
		return;
	snprintf(d->args, sizeof(d->args), "compress=%d\nzstd=%d\n", strcmp(compress, "no") != 0,
		 !strcmp(compress, "zstd"));
	disk_job_side(d, op->target, 0, 0);
	if (dest && !d->err.num)
		disk_job_add(d, dest, 1, 0, VOLUME_CREATE);
	disk_job_sent(d);
}

static void convert_commit(struct op *op)
{
	struct obj *o = obj_by_name(op->c, K_DISK, jstr(op->args, "dest"));

	disk_ready(op);
	if (!o)
		return;
	obj_before(op->c, o);
	json_object_set_new(o->doc, "state", json_string("ready"));
	obj_put(op->c, o, PUT_FACT);
}

static void convert_abort(struct op *op, const struct err *e)
{
	struct obj *o = obj_by_name(op->c, K_DISK, jstr(op->args, "dest"));

	disk_ready(op);
	if (!o || !op->o)
		return;
	disk_remove_file(op->c, o, disk_file_gone, NULL);
	obj_del(op->c, o, PUT_FACT);
}

const struct op_ops op_disk_convert = { "disk-convert", false,	       convert_prepare, convert_run,
					convert_commit, convert_abort, disk_job_cancel };

/* ---- commit: what the top layer holds goes into the disk that it is built on ---- */

struct obj *disk_commit_into(struct op *op, struct err *e)
{
	struct obj *o = op->target, *into = NULL, *child;

	if (jstr(o->doc, "image")) {
		err_set(e, EINVAL, "parent-is-image",
			"disk \"%s\" is built on image \"%s\", and images do not change", o->name,
			jstr(o->doc, "image"));
		err_hint(e, "vmctl disk convert %s NEW makes a disk that stands alone", o->name);
		return NULL;
	}
	if (!jstr(o->doc, "backing")) {
		err_set(e, EINVAL, "no-parent", "disk \"%s\" is built on nothing", o->name);
		return NULL;
	}
	into = disk_find(op->c, jstr(o->doc, "backing"), e);
	child = into ? disk_child(op->c, into, o) : NULL;
	if (child) {
		err_set(
		    e, EBUSY, "disk-is-backing",
		    "disk \"%s\" is also what disk \"%s\" is built on, which would change with it",
		    into->name, child->name);
		err_hint(e, "vmctl disk rebase %s, then commit", child->name);
		return NULL;
	}
	return into && disk_no_layer(into, e) == 0 ? into : NULL;
}

static int commit_prepare(struct op *op, struct err *e)
{
	struct obj *into = disk_commit_into(op, e);
	int r = into ? disk_take_write(op->c, op->target, e) : -e->num;

	return r ? r : disk_take_other(op, into, e);
}

static void commit_run(struct op *op)
{
	struct disk_job *d = disk_job_new(op, "commit");

	if (!d)
		return;
	disk_job_side(d, op->target, 0, 2);
	disk_job_sent(d);
}

static void commit_commit(struct op *op)
{
	struct obj *into = disk_other(op);
	int64_t size = op->target ? jint(op->target->doc, "size", 0) : 0;

	if (into && size > jint(into->doc, "size", 0)) { /* the parent grew with it */
		obj_before(op->c, into);
		json_object_set_new(into->doc, "size", json_integer((json_int_t)size));
	}
	disk_ready(op);
}

const struct op_ops op_disk_commit = { "disk-commit", false,	      commit_prepare, commit_run,
				       commit_commit, disk_job_abort, disk_job_cancel };

/* ---- rebase: another parent, or none, under the same content ---- */

static int rebase_parent(struct op *op, struct obj **parent, struct err *e)
{
	const char *image = jstr(op->args, "image"), *backing = jstr(op->args, "backing");
	struct chain_layer chain[DISK_CHAIN_MAX];
	int n;

	*parent = NULL;
	if (image && *image && backing && *backing)
		return err_set(e, EINVAL, "two-parents",
			       "a disk is built on an image or on a disk, not on both");
	if (image && *image)
		*parent = obj_find(op->c, K_IMAGE, image, e);
	else if (backing && *backing)
		*parent = disk_find(op->c, backing, e);
	else
		return 0;
	if (!*parent)
		return -e->num;
	n = disk_chain(op->c, *parent, chain, DISK_CHAIN_MAX - 1, true, e);
	for (int i = 0; i < n; i++)
		if (chain[i].o == op->target)
			return err_set(e, EINVAL, "own-parent",
				       "disk \"%s\" is itself built on disk \"%s\"",
				       (*parent)->name, op->target->name);
	return n < 0 ? n : 0;
}

static int rebase_prepare(struct op *op, struct err *e)
{
	struct obj *parent;
	int r;

	if (strcmp(jstr_or(op->target->doc, "format", ""), "qcow2")) {
		err_set(e, EINVAL, "overlay-needs-qcow2",
			"disk \"%s\" is %s; only a qcow2 disk is built on another",
			op->target->name, jstr_or(op->target->doc, "format", "raw"));
		return -EINVAL;
	}
	r = rebase_parent(op, &parent, e);
	if (!r && disk_live(op->c, op->target, NULL))
		return disk_live_rebase_check(op, parent, e);
	if (!r)
		r = disk_take_write(op->c, op->target, e);
	if (!r && parent && parent->kind == K_DISK)
		r = disk_take_other(op, parent, e);
	return r;
}

static void rebase_run(struct op *op)
{
	struct obj *parent = NULL;
	char pool[64], file[128];
	struct disk_job *d;
	struct err e = { 0 };

	if (jbool(op->args, "live", false) && rebase_parent(op, &parent, &e) == 0) {
		disk_live_rebase(op, parent);
		return;
	}
	d = disk_job_new(op, "rebase");
	if (!d)
		return;
	rebase_parent(op, &parent, &d->err);
	snprintf(d->args, sizeof(d->args), "unsafe=%d\n", jbool(op->args, "unsafe", false));
	if (parent) {
		volume_file(parent, pool, file);
		snprintf(d->args + strlen(d->args), sizeof(d->args) - strlen(d->args),
			 "backing=%s\nbacking_format=%s\n", file,
			 jstr_or(parent->doc, "format", "raw"));
	}
	if (!d->err.num)
		disk_job_side(d, op->target, 0, 1);
	if (parent && !d->err.num)
		disk_job_side(d, parent, 1, 0);
	disk_job_sent(d);
}

static void rebase_commit(struct op *op)
{
	struct obj *parent;
	struct err e = { 0 };

	if (op->target && rebase_parent(op, &parent, &e) == 0) {
		obj_before(op->c, op->target);
		jset_str(op->target->doc, "image",
			 parent && parent->kind == K_IMAGE ? parent->name : NULL);
		jset_str(op->target->doc, "backing",
			 parent && parent->kind == K_DISK ? parent->name : NULL);
		obj_put(op->c, op->target, PUT_FACT);
	}
	disk_ready(op);
}

const struct op_ops op_disk_rebase = { "disk-rebase", false,	      rebase_prepare, rebase_run,
				       rebase_commit, disk_job_abort, disk_job_cancel };

/* ---- compare ---- */

static int compare_prepare(struct op *op, struct err *e)
{
	struct obj *with = disk_find(op->c, jstr_or(op->args, "with", ""), e);
	int r;

	if (!with)
		return -e->num;
	if (with == op->target)
		return err_set(e, EINVAL, "same-disk", "disk \"%s\" is always equal to itself",
			       with->name);
	r = disk_take(op->c, op->target, e);
	return r ? r : disk_take_other(op, with, e);
}

static void compare_run(struct op *op)
{
	struct disk_job *d = disk_job_new(op, "compare");
	struct obj *with = disk_other(op);

	if (!d)
		return;
	disk_job_side(d, op->target, 0, 0);
	if (with && !d->err.num)
		disk_job_side(d, with, 1, 0);
	disk_job_sent(d);
}

const struct op_ops op_disk_compare = { "disk-compare", false,	    compare_prepare,
					compare_run,	disk_ready, disk_job_abort,
					disk_job_cancel };

/* ---- routes ---- */

int disk_verb(struct core *c, struct req *r, const struct op_ops *ops, struct err *e)
{
	struct obj *o = disk_find(c, r->name, e);
	struct op *op =
	    o ? op_new(c, ops, o, o->name, json_deep_copy(r->body), r->principal, e) : NULL;

	return op ? op_answer(op, r) : -e->num;
}

int route_disk_resize(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_resize, e);
}
int route_disk_check(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_check, e);
}
int route_disk_map(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_map, e);
}
int route_disk_convert(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_convert, e);
}

int route_disk_commit(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_find(c, r->name, NULL);

	return disk_verb(c, r, o && disk_live(c, o, NULL) ? &op_disk_commit_live : &op_disk_commit,
			 e);
}
int route_disk_rebase(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_rebase, e);
}
int route_disk_compare(struct core *c, struct req *r, struct err *e)
{
	return disk_verb(c, r, &op_disk_compare, e);
}
