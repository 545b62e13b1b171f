/* disk.c - disks: records, files in pools, chains, and the jobs over them.
 *
 * A disk is POOL/NAME; its file NAME.FORMAT in the pool. Format and parents are on record: no file
 * is ever probed, no path in an image followed. A raw file is only sized here; everything that
 * reads an image's own tables runs in vmd-image.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "vmd/core/internal.h"

#define CHAIN_MAX 16

const char *disk_driver(const char *format)
{
	return !strcmp(format, "qcow2") ? "qcow2" : "file";
}

void volume_file(const struct obj *o, char pool[64], char file[128])
{
	snprintf(pool, 64, "%.63s", jstr_or(o->doc, "pool", "default"));
	snprintf(file, 128, "%.100s.%s", jstr_or(o->doc, "name", o->name),
		 o->kind == K_IMAGE ? "img" : jstr_or(o->doc, "format", "raw"));
}

struct obj *disk_find(struct core *c, const char *name, struct err *e)
{
	char full[192];

	if (strchr(name, '/'))
		return obj_find(c, K_DISK, name, e);
	snprintf(full, sizeof(full), "default/%.127s", name);
	if (obj_by_name(c, K_DISK, full))
		return obj_by_name(c, K_DISK, full);
	list_for_each (p, &c->kinds[K_DISK].all) { /* a bare name that only one pool has */
		struct obj *o = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(o->doc, "name", ""), name))
			return o;
	}
	return obj_find(c, K_DISK, name, e);
}

int disk_chain(struct core *c, struct obj *disk, struct chain_layer *l, unsigned max, struct err *e)
{
	struct obj *o = disk;
	unsigned n = 0;

	while (o) {
		const char *image = jstr(o->doc, "image"), *backing = jstr(o->doc, "backing");

		if (n == max) {
			err_set(e, ERANGE, "chain-too-deep", "disk \"%s\": more than %u layers",
				disk->name, max);
			err_hint(e, "vmctl disk convert %s NEW", disk->name);
			return -ERANGE;
		}
		if (strcmp(jstr_or(o->doc, "state", ""), "ready") &&
		    !(o == disk && !strcmp(jstr_or(o->doc, "state", ""), "busy")))
			return err_set(e, EBUSY, "disk-not-ready", "%s \"%s\" is %s",
				       kind_name(o->kind), o->name, jstr_or(o->doc, "state", "?"));
		l[n++] = (struct chain_layer){ o, o->kind == K_IMAGE };
		if (o->kind == K_IMAGE)
			break;
		if (image && *image)
			o = obj_find(c, K_IMAGE, image, e);
		else if (backing && *backing)
			o = disk_find(c, backing, e);
		else
			break;
		if (!o)
			return -ENOENT;
	}
	return (int)n;
}

struct obj *disk_record(struct core *c, const json_t *spec, const char *name, const char *owner,
			struct err *e)
{
	const char *pool = jstr_or(spec, "pool", "default"),
		   *format = jstr_or(spec, "format", "qcow2");
	int64_t size = jsize(spec, "size", 0);
	char full[192], id[UUID_TEXT_LEN];
	struct obj *parent = NULL, *o;
	json_t *doc;

	if (!name_valid(name)) {
		err_set(e, EINVAL, "bad-name", "\"%s\" is not a name for a disk", name);
		return NULL;
	}
	if (!obj_find(c, K_POOL, pool, e))
		return NULL;
	snprintf(full, sizeof(full), "%s/%s", pool, name);
	if (obj_by_name(c, K_DISK, full)) {
		err_set(e, EEXIST, "disk-exists", "a disk named \"%s\" exists already", full);
		err_hint(e, "vmctl disk ls");
		return NULL;
	}
	if (jstr(spec, "image"))
		parent = obj_find(c, K_IMAGE, jstr(spec, "image"), e);
	else if (jstr(spec, "backing"))
		parent = disk_find(c, jstr(spec, "backing"), e);
	if (!parent && e->num)
		return NULL;
	if (parent && strcmp(format, "qcow2")) {
		err_set(e, EINVAL, "overlay-needs-qcow2",
			"disk \"%s\": an overlay is qcow2, not %s", full, format);
		return NULL;
	}
	if (parent && strcmp(jstr_or(parent->doc, "state", ""), "ready")) {
		err_set(e, EBUSY, "parent-not-ready", "%s \"%s\" is %s", kind_name(parent->kind),
			parent->name, jstr_or(parent->doc, "state", "?"));
		return NULL;
	}
	if (!size && parent)
		size = jint(parent->doc, "virtual_size", jint(parent->doc, "size", 0));
	if (size <= 0 || size % 512) {
		err_set(e, EINVAL, "bad-size",
			"disk \"%s\": its size must be given, a multiple of 512", full);
		return NULL;
	}
	uuid_make(id);
	doc = json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:o}", "name", name, "uuid", id, "pool",
			pool, "format", format, "size", (json_int_t)size, "state", "busy",
			"created", jnow());
	jset_str(doc, "image", jstr(spec, "image"));
	jset_str(doc, "backing", parent && parent->kind == K_DISK ? parent->name : NULL);
	jset_str(doc, "guest", owner);
	if (json_object_get(spec, "labels"))
		json_object_set(doc, "labels", json_object_get(spec, "labels"));
	if (jint(spec, "cluster_size", 0))
		json_object_set(doc, "cluster_size", json_object_get(spec, "cluster_size"));
	o = obj_new(c, K_DISK, id, full, doc);
	if (!o) {
		err_set(e, ENOMEM, "no-memory", "no memory for a disk");
		return NULL;
	}
	o->rt = json_pack("{s:b}", "made_for", owner != NULL);
	obj_put(c, o, PUT_ASKED);
	return o;
}

/* ---- the file ---- */

struct make {
	struct core *c;
	char id[40];
	void (*done)(void *arg, const struct err *e);
	void *arg;
	bool created;
};

static void file_gone(void *arg, const struct err *e)
{
	if (e && e->num != ENOENT)
		log_warn("a disk's file could not be removed: %s", e->detail);
}

static void make_end(struct make *m, const struct err *e)
{
	struct obj *o = obj_by_id(m->c, K_DISK, m->id);

	if (o && e && m->created)
		disk_remove_file(m->c, o, file_gone, NULL);
	if (o) {
		obj_before(m->c, o);
		json_object_set_new(o->doc, "state", json_string(e ? "error" : "ready"));
		obj_put(m->c, o, PUT_FACT);
	}
	m->done(m->arg, e);
	free(m);
}

static void make_job_done(void *arg, const struct err *e, json_t *out)
{
	make_end(arg, e);
}

static void make_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct make *k = arg;
	struct obj *o = obj_by_id(k->c, K_DISK, k->id), *parent = NULL;
	struct msg_result m;
	struct err bad = { 0 };
	char args[512];
	int64_t size;

	if (ev == CALL_ITEM)
		return;
	if (e || !o) {
		err_set(&bad, ENOENT, "disk-not-found", "the disk was removed while it was made");
		make_end(k, e ? e : &bad);
		return;
	}
	if (msg_result_decode(&m, b) < 0 || m.fd < 0) {
		err_set(&bad, EPROTO, "bad-message", "priv gave no file");
		make_end(k, &bad);
		return;
	}
	k->created = true;
	size = jint(o->doc, "size", 0);
	if (!strcmp(jstr_or(o->doc, "format", "raw"), "raw")) {
		if (ftruncate(m.fd, size) < 0 || fsync(m.fd) < 0)
			err_set(&bad, errno, "write-failed", "disk \"%s\": %s", o->name,
				strerror(errno));
		msg_result_close(&m);
		make_end(k, bad.num ? &bad : NULL);
		return;
	}
	if (jstr(o->doc, "image"))
		parent = obj_by_name(k->c, K_IMAGE, jstr(o->doc, "image"));
	else if (jstr(o->doc, "backing"))
		parent = obj_by_name(k->c, K_DISK, jstr(o->doc, "backing"));
	snprintf(args, sizeof(args), "format=qcow2\nsize=%lld\n", (long long)size);
	if (jint(o->doc, "cluster_size", 0))
		snprintf(args + strlen(args), sizeof(args) - strlen(args), "cluster_size=%lld\n",
			 (long long)jint(o->doc, "cluster_size", 0));
	if (parent) {
		char pool[64], file[128];

		/* the name in the header is for other tools (qemu-img finds the file beside this
		 * one); we go by the record */
		volume_file(parent, pool, file);
		snprintf(args + strlen(args), sizeof(args) - strlen(args),
			 "backing=%s\nbacking_format=%s\n", file,
			 jstr_or(parent->doc, "format", "raw"));
	}
	image_job_run(k->c, &(struct job_layer){ 0, 0, "qcow2", o->name, m.fd, false }, 1, "create",
		      args, NULL, make_job_done, k);
	msg_result_close(&m);
}

void disk_make(struct core *c, struct obj *disk, void (*done)(void *arg, const struct err *e),
	       void *arg)
{
	struct make *k = calloc(1, sizeof(*k));
	struct msg_p_volume_open m = { .mode = 2 };
	struct err e = { 0 };

	if (!k) {
		err_set(&e, ENOMEM, "no-memory", "no memory");
		done(arg, &e);
		return;
	}
	*k = (struct make){ .c = c, .done = done, .arg = arg };
	memcpy(k->id, disk->id, sizeof(k->id));
	volume_file(disk, m.pool, m.name);
	peer_call(c->priv, MSG_p_volume_open, &m, 0, 30000, make_opened, k);
}

struct gone {
	void (*done)(void *arg, const struct err *e);
	void *arg;
};

static void file_removed(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct gone *g = arg;

	if (ev == CALL_ITEM)
		return;
	g->done(g->arg, e && e->num != ENOENT ? e : NULL);
	free(g);
}

void disk_remove_file(struct core *c, struct obj *disk,
		      void (*done)(void *arg, const struct err *e), void *arg)
{
	struct gone *g = calloc(1, sizeof(*g));
	struct msg_p_volume_unlink m = { 0 };

	if (!g)
		return;
	*g = (struct gone){ done, arg };
	volume_file(disk, m.pool, m.name);
	peer_call(c->priv, MSG_p_volume_unlink, &m, 0, 30000, file_removed, g);
}

/* ---- operations ---- */

static void create_end(void *arg, const struct err *e)
{
	op_finish(arg, e);
}

static void create_run(struct op *op)
{
	disk_make(op->c, op->target, create_end, op);
}

static void create_abort(struct op *op, const struct err *e)
{
	if (!op->target || !op->o)
		return;
	disk_remove_file(op->c, op->target, file_gone, NULL);
	obj_del(op->c, op->target, PUT_FACT);
	op->target = NULL;
}

const struct op_ops op_disk_create = { "disk-create", false,	    NULL, create_run,
				       NULL,	      create_abort, NULL };

int route_disk_create(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_record(c, r->body, jstr_or(r->body, "name", ""), NULL, e);
	struct op *op;

	if (!o)
		return -e->num;
	if (r->dry_run) {
		json_t *doc = json_incref(o->doc);

		obj_del(c, o, PUT_ASKED);
		req_reply(r, 200, doc, 0, NULL);
		return 0;
	}
	op = op_new(c, &op_disk_create, o, o->name, NULL, r->principal, e);
	return op ? op_answer(op, r) : -e->num;
}

/* A job over a disk's whole chain: layers are opened, then the verb runs. */
struct disk_job {
	struct op *op;
	struct chain_layer chain[CHAIN_MAX];
	struct job_layer layers[CHAIN_MAX + 1];
	int fds[CHAIN_MAX + 1];
	char label[CHAIN_MAX + 1][160];
	unsigned n, open;
	struct err err;
	const char *verb;
	char args[256];
	bool write;
	struct image_job *job;
	struct obj *dest;
};
struct layer_arg {
	struct disk_job *d;
	unsigned i;
};

static void disk_job_free(void *p)
{
	struct disk_job *d = p;

	for (unsigned i = 0; d && i <= CHAIN_MAX; i++)
		close_fd(&d->fds[i]);
	free(d);
}

static void disk_job_progress(void *arg, uint64_t done, uint64_t total)
{
	struct op *op = arg;

	op_progress(op, total ? (int)(done >= total ? 99 : done * 100 / total) : 0, NULL);
}

static void disk_job_done(void *arg, const struct err *e, json_t *out)
{
	struct op *op = arg;
	struct disk_job *d = op->data;

	d->job = NULL;
	if (out)
		json_object_set(op->o->doc, "result", out);
	op_finish(op, e);
}

static void disk_job_go(struct disk_job *d)
{
	struct op *op = d->op;

	if (d->err.num) {
		op_finish(op, &d->err);
		return;
	}
	d->job = image_job_run(op->c, d->layers, d->n, d->verb, d->args, disk_job_progress,
			       disk_job_done, op);
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
		msg_result_close(&m);
	}
	free(a);
	if (!--d->open)
		disk_job_go(d);
}

static void disk_job_open(struct disk_job *d, struct obj *o, unsigned side, unsigned layer,
			  uint64_t mode)
{
	struct msg_p_volume_open m = { .mode = mode };
	struct layer_arg *a = calloc(1, sizeof(*a));
	unsigned i = d->n++;

	if (!a)
		return;
	*a = (struct layer_arg){ d, i };
	snprintf(d->label[i], sizeof(d->label[i]), "%s %.120s", kind_name(o->kind), o->name);
	d->layers[i] =
	    (struct job_layer){ side,	     layer, disk_driver(jstr_or(o->doc, "format", "raw")),
				d->label[i], -1,    mode == 0 };
	volume_file(o, m.pool, m.name);
	d->open++;
	peer_call(d->op->c->priv, MSG_p_volume_open, &m, 0, 30000, disk_job_layer, a);
}

static void disk_job_start(struct op *op, const char *verb, bool write, struct obj *dest)
{
	struct disk_job *d = calloc(1, sizeof(*d));
	struct err e = { 0 };
	int n;

	if (!d)
		return;
	for (unsigned i = 0; i <= CHAIN_MAX; i++)
		d->fds[i] = -1;
	d->op = op;
	d->verb = verb;
	op->data = d;
	op->free_data = disk_job_free;
	n = disk_chain(op->c, op->target, d->chain, CHAIN_MAX, &e);
	if (n < 0) {
		op_finish(op, &e);
		return;
	}
	snprintf(d->args, sizeof(d->args),
		 "size=%lld\nshrink=%d\nrepair=%s\nformat=%s\ncompress=%s\n",
		 (long long)jsize(op->args, "size", 0), jbool(op->args, "shrink", false),
		 jstr_or(op->args, "repair", "no"), jstr_or(op->args, "format", "qcow2"),
		 jstr_or(op->args, "compress", "no"));
	for (int i = 0; i < n; i++)
		disk_job_open(d, d->chain[i].o, 0, (unsigned)i, i == 0 && write ? 1 : 0);
	if (dest)
		disk_job_open(d, dest, 1, 0, 2);
}

/* Nobody else may write while a job reads or changes it. */
static int disk_job_prepare(struct op *op, struct err *e)
{
	struct obj *o = op->target;
	const char *guest = jstr(o->doc, "guest");
	struct obj *g = guest ? obj_by_name(op->c, K_GUEST, guest) : NULL;

	if (strcmp(jstr_or(o->doc, "state", ""), "ready"))
		return err_set(e, EBUSY, "disk-busy", "disk \"%s\" is %s", o->name,
			       jstr_or(o->doc, "state", "?"));
	if (g && gstate_has_process(((struct guest *)g->mem)->state)) {
		err_set(e, EBUSY, "disk-in-use", "disk \"%s\" is in use by guest \"%s\"", o->name,
			guest);
		err_hint(e, "vmctl stop %s", guest);
		return -EBUSY;
	}
	obj_before(op->c, o);
	json_object_set_new(o->doc, "state", json_string("busy"));
	obj_put(op->c, o, PUT_ASKED);
	return 0;
}

static void disk_ready(struct op *op)
{
	if (!op->target)
		return;
	obj_before(op->c, op->target);
	json_object_set_new(op->target->doc, "state", json_string("ready"));
	obj_put(op->c, op->target, PUT_FACT);
}

static void disk_job_abort(struct op *op, const struct err *e)
{
	disk_ready(op);
}
static void disk_job_cancel(struct op *op)
{
	struct disk_job *d = op->data;

	if (d && d->job)
		image_job_cancel(d->job);
}

static void check_run(struct op *op)
{
	disk_job_start(op, "check", strcmp(jstr_or(op->args, "repair", "no"), "no") != 0, NULL);
}
static void map_run(struct op *op)
{
	disk_job_start(op, "map", false, NULL);
}
const struct op_ops op_disk_check = { "disk-check", false,	    disk_job_prepare, check_run,
				      disk_ready,   disk_job_abort, disk_job_cancel };
const struct op_ops op_disk_map = { "disk-map", false,		disk_job_prepare, map_run,
				    disk_ready, disk_job_abort, disk_job_cancel };

static void resize_commit(struct op *op)
{
	obj_before(op->c, op->target);
	json_object_set_new(op->target->doc, "size",
			    json_integer((json_int_t)jsize(op->args, "size", 0)));
	disk_ready(op);
}

static struct guest *disk_live_guest(struct op *op)
{
	const char *guest = jstr(op->target->doc, "guest");
	struct obj *g = guest ? obj_by_name(op->c, K_GUEST, guest) : NULL;

	return g && ((struct guest *)g->mem)->link ? g->mem : NULL;
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
	return disk_live_guest(op) ? 0 : disk_job_prepare(op, e);
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

	if (!g) {
		disk_job_start(op, "resize", true, NULL);
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
	disk_job_start(op, "convert", false, obj_by_name(op->c, K_DISK, jstr(op->args, "dest")));
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
	disk_remove_file(op->c, o, file_gone, NULL);
	obj_del(op->c, o, PUT_FACT);
}

const struct op_ops op_disk_convert = { "disk-convert", false,	       convert_prepare, convert_run,
					convert_commit, convert_abort, disk_job_cancel };

/* ---- routes ---- */

static int disk_verb(struct core *c, struct req *r, const struct op_ops *ops, struct err *e)
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

int route_disk_delete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_find(c, r->name, e);

	if (!o)
		return -ENOENT;
	if (*jstr_or(o->doc, "guest", "")) {
		err_set(e, EBUSY, "disk-in-use", "disk \"%s\" belongs to guest \"%s\"", o->name,
			jstr(o->doc, "guest"));
		err_hint(e, "vmctl disk detach %s", o->name);
		return -EBUSY;
	}
	if (!strcmp(jstr_or(o->doc, "state", ""), "busy"))
		return err_set(e, EBUSY, "disk-busy", "disk \"%s\" is being worked on", o->name);
	list_for_each (p, &c->kinds[K_DISK].all) {
		struct obj *d = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(d->doc, "backing", ""), o->name) &&
		    !jbool(r->query, "force", false))
			return err_set(e, EBUSY, "disk-is-backing",
				       "disk \"%s\" is what disk \"%s\" is built on", o->name,
				       d->name);
	}
	disk_remove_file(c, o, file_gone, NULL);
	obj_del(c, o, PUT_ASKED);
	req_reply(r, 204, NULL, 0, NULL);
	return 0;
}

int route_disk_attach(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_find(c, r->name, e),
		   *g = o ? guest_find(c, jstr_or(r->body, "guest", ""), e) : NULL;
	json_t *disks, *d;
	char name[32];

	if (!g)
		return -ENOENT;
	if (gstate_check(g->name, ((struct guest *)g->mem)->state, GV_ATTACH, e) < 0)
		return -e->num;
	if (*jstr_or(o->doc, "guest", ""))
		return err_set(e, EBUSY, "disk-in-use", "disk \"%s\" belongs to guest \"%s\"",
			       o->name, jstr(o->doc, "guest"));
	obj_before(c, g);
	obj_before(c, o);
	disks = json_object_get(g->doc, "disks");
	snprintf(name, sizeof(name), "disk%zu", json_array_size(disks) % 1000);
	d = json_pack("{s:s, s:s}", "name", jstr_or(r->body, "name", name), "disk", o->name);
	if (jbool(r->body, "read_only", false))
		json_object_set_new(d, "read_only", json_true());
	jset_str(d, "cache", jstr(r->body, "cache"));
	json_array_append_new(disks, d);
	jset_str(o->doc, "guest", g->name);
	obj_put(c, g, PUT_ASKED);
	obj_put(c, o, PUT_ASKED);
	req_obj(r, 200, o);
	return 0;
}

int route_disk_detach(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_find(c, r->name, e),
		   *g = o ? obj_by_name(c, K_GUEST, jstr_or(o->doc, "guest", "")) : NULL;
	json_t *disks;

	if (!o)
		return -ENOENT;
	if (!*jstr_or(o->doc, "guest", ""))
		return err_set(e, EBUSY, "disk-not-attached", "disk \"%s\" belongs to no guest",
			       o->name);
	if (g && gstate_check(g->name, ((struct guest *)g->mem)->state, GV_DETACH, e) < 0)
		return -e->num;
	obj_before(c, o);
	jset_str(o->doc, "guest", NULL);
	if (g) {
		obj_before(c, g);
		disks = json_object_get(g->doc, "disks");
		for (size_t i = json_array_size(disks); i-- > 0;)
			if (disk_find(c, jstr_or(json_array_get(disks, i), "disk", ""), NULL) == o)
				json_array_remove(disks, i);
		obj_put(c, g, PUT_ASKED);
	}
	obj_put(c, o, PUT_ASKED);
	req_obj(r, 200, o);
	return 0;
}
