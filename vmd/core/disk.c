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
#include "vmd/core/disk_job.h"

const char *disk_driver(const char *format)
{
	return !strcmp(format, "qcow2") ? "qcow2" : "file";
}

void volume_file(const struct obj *o, char pool[64], char file[128])
{
	snprintf(pool, 64, "%.63s", jstr_or(o->doc, "pool", "default"));
	if (jstr(o->doc, "file")) {
		snprintf(file, 128, "%.127s", jstr(o->doc, "file"));
		return;
	}
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

struct obj *disk_child(struct core *c, const struct obj *o, const struct obj *but)
{
	list_for_each (p, &c->kinds[K_DISK].all) {
		struct obj *d = container_of(p, struct obj, node);

		if (but && d == but)
			continue;
		if (!strcmp(jstr_or(d->doc, "backing", ""), o->name))
			return d;
	}
	return NULL;
}

int disk_chain(struct core *c, struct obj *disk, struct chain_layer *l, unsigned max, bool for_job,
	       struct err *e)
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
		    !(for_job && !strcmp(jstr_or(o->doc, "state", ""), "busy")))
			return err_set(e, EBUSY, "disk-not-ready", "%s \"%s\" is %s",
				       kind_name(o->kind), o->name, jstr_or(o->doc, "state", "?"));
		if (pool_usable(c, jstr_or(o->doc, "pool", "default"), false, e) < 0)
			return -e->num;
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

void disk_file_taken(struct core *c, const char *pool, const char *file)
{
	char path[256];

	if (!c->disk_files) {
		c->disk_files = json_object();
		list_for_each (p, &c->kinds[K_DISK].all) {
			struct obj *o = container_of(p, struct obj, node);

			if (jstr(o->doc, "file"))
				disk_file_taken(c, jstr_or(o->doc, "pool", "default"),
						jstr(o->doc, "file"));
		}
	}
	snprintf(path, sizeof(path), "%s/%s", pool, file);
	if (*file)
		json_object_set_new(c->disk_files, path, json_true());
}

/* The file that a new disk would have may be that of a layer of an older one: then another. */
static void disk_pick_file(struct core *c, json_t *doc)
{
	char path[256], file[128], id[UUID_TEXT_LEN];

	disk_file_taken(c, "", ""); /* only known from now on */
	snprintf(path, sizeof(path), "%s/%.63s.%.10s", jstr(doc, "pool"), jstr(doc, "name"),
		 jstr(doc, "format"));
	if (!json_object_get(c->disk_files, path))
		return;
	uuid_make(id);
	snprintf(file, sizeof(file), "%.63s.%.8s.%.10s", jstr(doc, "name"), id,
		 jstr(doc, "format"));
	jset_str(doc, "file", file);
	disk_file_taken(c, jstr(doc, "pool"), file);
}

unsigned disk_cache_number(const json_t *entry)
{
	const char *s = jstr_or(entry, "cache", "writeback");

	return !strcmp(s, "none") ? 0 : !strcmp(s, "unsafe") ? 2 : 1;
}

int disk_no_layer(const struct obj *o, struct err *e)
{
	if (!jstr(o->doc, "snapshot"))
		return 0;
	err_set(e, EBUSY, "disk-in-snapshot",
		"disk \"%s\" is a layer of snapshot \"%s\": it stays as it is", o->name,
		jstr(o->doc, "snapshot"));
	err_hint(e,
		 "vmctl snapshot rm %s, or build a disk on it: vmctl disk create NAME --backing %s",
		 jstr(o->doc, "snapshot"), o->name);
	return -EBUSY;
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
	if (pool_usable(c, pool, true, e) < 0)
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
	disk_pick_file(c, doc);
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

void disk_file_gone(void *arg, const struct err *e)
{
	if (e && e->num != ENOENT)
		log_warn("a disk's file could not be removed: %s", e->detail);
}

static void make_end(struct make *m, const struct err *e)
{
	struct obj *o = obj_by_id(m->c, K_DISK, m->id);

	if (o && e && m->created)
		disk_remove_file(m->c, o, disk_file_gone, NULL);
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
	image_job_run(k->c, &(struct job_layer){ .driver = "qcow2", .label = o->name, .fd = m.fd },
		      1, "create", args, NULL, make_job_done, k, NULL);
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
	disk_remove_file(op->c, op->target, disk_file_gone, NULL);
	obj_del(op->c, op->target, PUT_FACT);
	op->target = NULL;
}

const struct op_ops op_disk_create = { "disk-create", false,	    NULL, create_run,
				       NULL,	      create_abort, NULL };

int route_disk_create(struct core *c, struct req *r, struct err *e)
{
	struct obj *o;
	struct op *op;

	if (jstr(r->body, "volume"))
		return disk_adopt(c, r, e);
	o = disk_record(c, r->body, jstr_or(r->body, "name", ""), NULL, e);
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

/* ---- routes ---- */

int route_disk_delete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_find(c, r->name, e), *child;
	struct disk_lease lease;
	struct op *op;

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
	if (disk_no_layer(o, e) < 0)
		return -e->num;
	child = disk_child(c, o, NULL);
	if (child && !jbool(r->query, "force", false)) {
		err_set(e, EBUSY, "disk-is-backing", "disk \"%s\" is what disk \"%s\" is built on",
			o->name, child->name);
		err_hint(e, "vmctl disk rebase %s", child->name);
		return -EBUSY;
	}
	if (req_dry(r, o))
		return 0;
	if (disk_lease_of(c, o, "rm", &lease)) {
		op = op_new(c, &op_disk_rm, o, o->name, NULL, r->principal, e);
		return op ? op_answer(op, r) : -e->num;
	}
	disk_remove_file(c, o, disk_file_gone, NULL);
	obj_del(c, o, PUT_ASKED);
	req_reply(r, 204, NULL, 0, NULL);
	return 0;
}

/* the first of disk0, disk1, ... that no entry of @disks has */
static void disk_entry_name(const json_t *disks, char name[32])
{
	for (unsigned n = 0;; n++) {
		const json_t *d;
		bool taken = false;
		size_t i;

		snprintf(name, 32, "disk%u", n);
		json_array_foreach(disks, i, d) taken |= !strcmp(jstr_or(d, "name", ""), name);
		if (!taken)
			return;
	}
}

int route_disk_attach(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_find(c, r->name, e),
		   *g = o ? guest_find(c, jstr_or(r->body, "guest", ""), e) : NULL;
	json_t *disks, *d;
	char name[32];

	if (!g)
		return -ENOENT;
	if (!strcmp(jstr_or(o->doc, "state", ""), "busy"))
		return err_set(e, EBUSY, "disk-busy", "disk \"%s\" is being worked on", o->name);
	if (gstate_check(g->name, ((struct guest *)g->mem)->state, GV_ATTACH, e) < 0 ||
	    disk_no_layer(o, e) < 0)
		return -e->num;
	if (*jstr_or(o->doc, "guest", ""))
		return err_set(e, EBUSY, "disk-in-use", "disk \"%s\" belongs to guest \"%s\"",
			       o->name, jstr(o->doc, "guest"));
	obj_before(c, g);
	obj_before(c, o);
	disks = json_object_get(g->doc, "disks");
	disk_entry_name(disks, name);
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
	if ((g && gstate_check(g->name, ((struct guest *)g->mem)->state, GV_DETACH, e) < 0) ||
	    guest_saved_needs(c, o, e) < 0)
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
