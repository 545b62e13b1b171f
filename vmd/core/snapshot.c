/* snapshot.c - snapshots of a guest's disks: taken, put back, removed.
 *
 * A snapshot is external: each disk goes on in a new, empty overlay, and the file that it had becomes
 * a layer, a disk record of its own that nothing writes (it can be read, exported, built on). Names of
 * disks stay; which file a disk is in is on record ("file"). A guest that runs switches all its disks
 * at one moment (g_disk_overlay, g_disk_job); one that does not needs no switch.
 * Whatever dies: before the overlays are all made the operation is undone. From the moment that the
 * switch is asked for it only goes forward: an overlay over the old file shows what the old file
 * shows, whether the guest had switched or not.
 * Putting back gives each disk a new overlay over the layer; removing merges a layer with the one
 * that is built on it (snapshot_rm.c). Of the disks only: not memory.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "vmd/core/disk_job.h"
#include "vmd/core/snapshot.h"

#define SNAP_DISKS_MAX 64

struct snap {
	struct op *op;
	unsigned left;
	struct err first;
	bool again; /* a daemon before this one may have asked for the switch */
	struct snap_file {
		struct snap *s;
		size_t i;
		int fd;
		bool made;
	} file[SNAP_DISKS_MAX];
	void (*done)(struct op *op, const struct err *e);
};

static void snap_free(void *arg)
{
	struct snap *s = arg;

	for (unsigned i = 0; s && i < SNAP_DISKS_MAX; i++)
		close_fd(&s->file[i].fd);
	free(s);
}

json_t *snapshot_disks(const struct op *op)
{
	return json_object_get(op->args, "disks");
}

static struct obj *snap_obj(struct op *op)
{
	return obj_by_id(op->c, K_SNAPSHOT, jstr_or(op->args, "snapshot", ""));
}

static void snap_state(struct core *c, struct obj *o, const char *state, enum put_how how)
{
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string(state));
	obj_put(c, o, how);
}

/* ---- new overlays, one for each of the operation's disks ---- */

static void snap_file_done(struct snap_file *f, const struct err *e)
{
	struct snap *s = f->s;

	if (e && !s->first.num)
		s->first = *e;
	if (--s->left)
		return;
	s->done(s->op, s->first.num ? &s->first : NULL);
}

static void snap_created(void *arg, const struct err *e, json_t *out)
{
	snap_file_done(arg, e);
}

static struct guest *snap_guest(struct op *op)
{
	struct guest *g = op->target ? op->target->mem : NULL;

	return g && g->link ? g : NULL;
}

static struct obj *snap_parent(const struct snap_file *f)
{
	json_t *d = json_array_get(snapshot_disks(f->s->op), f->i);

	return obj_by_id(f->s->op->c, K_DISK, jstr_or(d, "parent", ""));
}

/* The overlay's file is open, and its parent's at @under where the parent's bitmaps go on in it. */
static void snap_write(struct snap_file *f, struct obj *parent, int under)
{
	struct core *c = f->s->op->c;
	json_t *d = json_array_get(snapshot_disks(f->s->op), f->i);
	char args[512], pool[64], file[128];
	_cleanup_close_ int fd = take_fd(&f->fd);
	struct job_layer l[2] = {
		{ .driver = "qcow2", .label = jstr_or(d, "file", ""), .fd = fd },
		{ .side = 1,
		  .driver = "qcow2",
		  .label = parent->name,
		  .fd = under,
		  .read_only = true },
	};

	volume_file(parent, pool, file);
	snprintf(args, sizeof(args), "format=qcow2\nsize=%lld\nbacking=%s\nbacking_format=%s\n",
		 (long long)jint(d, "size", 0), file, jstr_or(parent->doc, "format", "raw"));
	image_job_run(c, l, under >= 0 ? 2 : 1, "create", args, NULL, snap_created, f, NULL);
}

static void snap_parent_opened(void *arg, enum call_event ev, struct wire_buf *b,
			       const struct err *e)
{
	struct snap_file *f = arg;
	struct obj *parent = snap_parent(f);
	struct msg_result m;
	struct err bad = { 0 };

	if (ev == CALL_ITEM)
		return;
	if (!e && (msg_result_decode(&m, b) < 0 || !parent)) {
		err_set(&bad, EPROTO, "bad-message", "priv gave no file, or the disk is gone");
		e = &bad;
	}
	if (e) {
		snap_file_done(f, e);
		return;
	}
	snap_write(f, parent, m.fd);
	msg_result_close(&m);
}

static void snap_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct snap_file *f = arg;
	struct op *op = f->s->op;
	struct msg_result m;
	struct err bad = { 0 };
	struct obj *parent = snap_parent(f);

	if (ev == CALL_ITEM)
		return;
	if (!e && (msg_result_decode(&m, b) < 0 || m.fd < 0 || !parent)) {
		err_set(&bad, EPROTO, "bad-message", "priv gave no file, or the disk is gone");
		e = &bad;
	}
	if (e) {
		snap_file_done(f, e);
		return;
	}
	close_fd(&f->fd);
	f->fd = m.fd;
	m.fd = -1;
	msg_result_close(&m);
	/* A disk that is put back is not what its newest backup was made of: its bitmaps end. A
	 * running guest's process carries them over itself, up to the last write. */
	if (op->ops == &op_snapshot_create && !snap_guest(op) &&
	    !strcmp(jstr_or(parent->doc, "format", ""), "qcow2")) {
		struct msg_p_volume_open v = { .mode = VOLUME_READ };

		volume_file(parent, v.pool, v.name);
		peer_call(op->c->priv, MSG_p_volume_open, &v, 0, 30000, snap_parent_opened, f);
	} else {
		snap_write(f, parent, -1);
	}
}

static void snap_old_gone(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	/* usually there is none; if one stays, the open says why */
}

/* Each entry of "disks" names pool, file, size and its parent's id; @done once. */
static void snap_make(struct op *op, void (*done)(struct op *op, const struct err *e))
{
	struct snap *s = calloc(1, sizeof(*s));
	struct err e = { 0 };
	size_t i;
	json_t *d;

	if (!s) {
		err_set(&e, ENOMEM, "no-memory", "no memory");
		op_finish(op, &e);
		return;
	}
	s->op = op;
	s->done = done;
	for (i = 0; i < SNAP_DISKS_MAX; i++)
		s->file[i] = (struct snap_file){ .s = s, .i = i, .fd = -1 };
	op->data = s;
	op->free_data = snap_free;
	s->left = (unsigned)json_array_size(snapshot_disks(op));
	json_array_foreach(snapshot_disks(op), i, d)
	{
		struct msg_p_volume_unlink old = { 0 };
		struct msg_p_volume_open m = { .mode = VOLUME_CREATE };

		/* the rest of an attempt that was cut off; in order on the same link */
		snprintf(m.pool, sizeof(m.pool), "%.63s", jstr_or(d, "pool", "default"));
		snprintf(m.name, sizeof(m.name), "%.127s", jstr_or(d, "file", ""));
		memcpy(old.pool, m.pool, sizeof(old.pool));
		memcpy(old.name, m.name, sizeof(old.name));
		peer_call(op->c->priv, MSG_p_volume_unlink, &old, 0, 30000, snap_old_gone, NULL);
		peer_call(op->c->priv, MSG_p_volume_open, &m, 0, 30000, snap_opened, &s->file[i]);
	}
}

/* the files of an operation that is undone, and its disks free again */
static void snap_undo(struct op *op)
{
	size_t i;
	json_t *d;

	json_array_foreach(snapshot_disks(op), i, d)
	{
		volume_remove_later(op->c, jstr_or(d, "pool", "default"), jstr_or(d, "file", ""));
		disk_let_go(op->c, obj_by_id(op->c, K_DISK, jstr_or(d, "disk", "")));
	}
}

/* The file that disk @o gets: unique, so that no name is ever used for two contents. */
static void snap_new_file(const struct obj *o, char file[128])
{
	char id[UUID_TEXT_LEN];

	uuid_make(id);
	snprintf(file, 128, "%.63s.%.8s.qcow2", jstr_or(o->doc, "name", "disk"), id);
}

/* snap_moved() - @o is the new overlay @d over the disk @layer from now on. */
static void snap_moved(struct core *c, struct obj *o, const json_t *d, const struct obj *layer)
{
	obj_before(c, o);
	jset_str(o->doc, "file", jstr(d, "file"));
	jset_str(o->doc, "format", "qcow2");
	jset_str(o->doc, "image", NULL);
	jset_str(o->doc, "backing", layer->name);
	json_object_set(o->doc, "size", json_object_get(d, "size"));
	json_object_set_new(o->doc, "state", json_string("ready"));
	obj_put(c, o, PUT_FACT);
}

/* ---- create ---- */

/* a name for the layer of @o in snapshot @snap that no disk has */
static void snap_layer_name(struct core *c, const struct obj *o, const char *snap, char name[64])
{
	char full[192];

	for (unsigned n = 0;; n++) {
		char more[12] = "";

		if (n)
			snprintf(more, sizeof(more), "-%u", n);
		snprintf(name, 64, "%.28s.%.22s%.11s", jstr_or(o->doc, "name", "disk"), snap, more);
		snprintf(full, sizeof(full), "%s/%s", jstr_or(o->doc, "pool", "default"), name);
		if (!obj_by_name(c, K_DISK, full))
			return;
	}
}

static int create_disk(struct op *op, const char *snap, const json_t *entry, json_t *list,
		       bool live, struct err *e)
{
	struct core *c = op->c;
	struct obj *o = disk_find(c, jstr_or(entry, "disk", ""), e);
	struct chain_layer chain[DISK_CHAIN_MAX];
	char name[64], file[128], id[UUID_TEXT_LEN];

	if (!o)
		return -e->num;
	if (strcmp(jstr_or(o->doc, "state", ""), "ready"))
		return err_set(e, EBUSY, "disk-busy", "disk \"%s\" is %s", o->name,
			       jstr_or(o->doc, "state", "?"));
	if (pool_usable(c, jstr_or(o->doc, "pool", "default"), true, e) < 0)
		return -e->num;
	if (live && strcmp(jstr_or(o->doc, "format", ""), "qcow2")) {
		err_set(e, EINVAL, "disk-format",
			"disk \"%s\" is %s: only qcow2 disks are kept while their guest runs",
			o->name, jstr_or(o->doc, "format", "raw"));
		err_hint(e, "vmctl stop %s, then take it", op->target->name);
		return -EINVAL;
	}
	/* one more layer must fit */
	if (disk_chain(c, o, chain, DISK_CHAIN_MAX - 1, false, e) < 0)
		return -e->num;
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string("busy"));
	obj_put(c, o, PUT_ASKED);
	snap_layer_name(c, o, snap, name);
	snap_new_file(o, file);
	uuid_make(id);
	json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:O}", "disk",
					      o->id, "entry", jstr_or(entry, "name", ""), "parent",
					      o->id, "pool", jstr_or(o->doc, "pool", "default"),
					      "file", file, "layer", name, "layer_id", id, "size",
					      json_object_get(o->doc, "size")));
	return 0;
}

static int create_prepare(struct op *op, struct err *e)
{
	struct guest *g = op->target->mem;
	const struct obj *snap = snap_obj(op);
	json_t *list = json_array(), *entry;
	bool live = g->link != NULL;
	size_t i;

	json_object_set_new(op->args, "disks", list);
	if (g->op)
		return err_set(e, EBUSY, "guest-busy", "guest \"%s\" is busy with %s", g->o->name,
			       g->op->ops->verb);
	if (guest_saved(g)) {
		err_set(e, EBUSY, "guest-state-conflict",
			"guest \"%s\" is saved: its disks stay as they are until it goes on",
			g->o->name);
		err_hint(e, "vmctl start %s, or vmctl discard %s", g->o->name, g->o->name);
		return -EBUSY;
	}
	if (gstate_has_process(g->state) && g->state != G_RUNNING && g->state != G_PAUSED)
		return err_set(e, EBUSY, "guest-state-conflict", "guest \"%s\" is %s", g->o->name,
			       gstate_name(g->state));
	json_array_foreach(json_object_get(g->o->doc, "disks"), i, entry)
	{
		if (jbool(entry, "read_only", false)) /* it does not change */
			continue;
		if (create_disk(op, jstr_or(snap->doc, "name", "s"), entry, list, live, e) < 0)
			return -e->num;
	}
	if (!json_array_size(list))
		return err_set(e, EINVAL, "no-disk",
			       "guest \"%s\" has no disk that it writes: there is nothing to keep",
			       g->o->name);
	return 0;
}

static void create_switched(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct op *op = arg;

	if (ev == CALL_ITEM)
		return;
	/* it ended, before or after: forward either way */
	if (e && !strcmp(e->code, "peer-gone"))
		e = NULL;
	op_finish(op, e);
}

static void create_send(struct op *op, const struct err *e)
{
	struct snap *s = op->data;
	struct guest *g = snap_guest(op);
	struct msg_g_disk_job go = { .fd = -1 };
	size_t i, k;
	json_t *d, *entry;

	if (e || !g) {
		/* nothing was asked of it; where it ended, its disks stand still */
		op_finish(op, g && !s->again ? e : NULL);
		return;
	}
	json_array_foreach(snapshot_disks(op), i, d)
	{
		struct msg_g_disk_overlay m = { .fd = s->file[i].fd, .first = i == 0 };

		snprintf(m.name, sizeof(m.name), "%.31s", jstr_or(d, "entry", ""));
		snprintf(m.label, sizeof(m.label), "disk %.120s",
			 jstr_or(obj_by_id(op->c, K_DISK, jstr(d, "disk"))->doc, "name", "?"));
		json_array_foreach(json_object_get(g->o->doc, "disks"), k,
				   entry) if (!strcmp(jstr_or(entry, "name", ""), m.name)) m.cache =
		    disk_cache_number(entry);
		disk_lease_top(g, m.name, jstr_or(d, "file", ""));
		peer_send(g->link, MSG_g_disk_overlay, &m);
	}
	snprintf(go.job, sizeof(go.job), "%.36s", op->o->id);
	snprintf(go.verb, sizeof(go.verb), "snapshot");
	peer_call(g->link, MSG_g_disk_job, &go, 0, 0, create_switched, op);
}

static void create_reopened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct snap_file *f = arg;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (!e && msg_result_decode(&m, b) == 0) {
		f->fd = m.fd;
		m.fd = -1;
		msg_result_close(&m);
	}
	snap_file_done(f, e);
}

/* All overlays are there, and that is on record: from here on there is no way back but by the guest's word. */
static void create_switch(struct op *op)
{
	struct snap *s = op->data;
	size_t i, k;
	json_t *d, *entry;

	if (!s) { /* a daemon before this one made them */
		s = calloc(1, sizeof(*s));
		op->data = s;
		op->free_data = snap_free;
		if (s)
			*s = (struct snap){ .op = op, .again = true };
		for (i = 0; s && i < SNAP_DISKS_MAX; i++)
			s->file[i] = (struct snap_file){ .s = s, .i = i, .fd = -1 };
	}
	if (!s || !snap_guest(op)) {
		op_finish(op, NULL);
		return;
	}
	s->done = create_send;
	s->left = (unsigned)json_array_size(snapshot_disks(op));
	json_array_foreach(snapshot_disks(op), i, d)
	{
		struct msg_p_volume_open m = { .mode = VOLUME_WRITE };

		snprintf(m.pool, sizeof(m.pool), "%.63s", jstr_or(d, "pool", "default"));
		snprintf(m.name, sizeof(m.name), "%.127s", jstr_or(d, "file", ""));
		json_array_foreach(
		    json_object_get(op->target->doc, "disks"), k,
		    entry) if (!strcmp(jstr_or(entry, "name", ""), jstr_or(d, "entry", "?")))
		    m.direct = disk_cache_number(entry) == 0;
		peer_call(op->c->priv, MSG_p_volume_open, &m, 0, 30000, create_reopened,
			  &s->file[i]);
	}
}

static void create_made(struct op *op, const struct err *e)
{
	struct err why = { 0 };

	if (e) {
		op_finish(op, e);
		return;
	}
	json_object_set_new(op->args, "made", json_true());
	obj_put(op->c, op->o, PUT_FACT);
	round_commit(op->c);
	if (op->c->read_only) {
		json_object_set_new(op->args, "made", json_false());
		err_set(&why, EROFS, "state-read-only", "%.380s", op->c->read_only_why);
		op_finish(op, &why);
		return;
	}
	create_switch(op);
}

static void create_run(struct op *op)
{
	if (jbool(op->args, "made", false))
		create_switch(op);
	else
		snap_make(op, create_made);
}

/* The record of a layer: the disk as it was, under another name. */
static struct obj *create_layer(struct op *op, struct obj *disk, const json_t *d)
{
	struct core *c = op->c;
	const char *pool = jstr_or(d, "pool", "default"), *id = jstr_or(d, "layer_id", "");
	json_t *doc = json_deep_copy(disk->doc);
	char full[192], in[64], file[128];
	struct obj *layer;

	volume_file(disk, in, file);
	snprintf(full, sizeof(full), "%s/%s", pool, jstr_or(d, "layer", ""));
	jset_str(doc, "name", jstr(d, "layer"));
	jset_str(doc, "uuid", id);
	jset_str(doc, "file", file);
	disk_file_taken(c, pool, file);
	jset_str(doc, "guest", NULL);
	jset_str(doc, "export", NULL);
	jset_str(doc, "snapshot", snap_obj(op)->name);
	json_object_set_new(doc, "state", json_string("ready"));
	json_object_set_new(doc, "created", jnow());
	layer = obj_new(c, K_DISK, id, full, doc);
	if (!layer)
		return NULL;
	/* whether it goes with the guest */
	layer->rt = json_pack("{s:b}", "made_for", jbool(disk->rt, "made_for", false));
	obj_put(c, layer, PUT_FACT);
	return layer;
}

static void create_commit(struct op *op)
{
	struct core *c = op->c;
	struct obj *snap = snap_obj(op);
	json_t *list = json_array(), *d;
	size_t i;

	json_array_foreach(snapshot_disks(op), i, d)
	{
		struct obj *disk = obj_by_id(c, K_DISK, jstr_or(d, "disk", "")), *layer;

		layer = disk && snap ? create_layer(op, disk, d) : NULL;
		if (!layer)
			continue;
		list_for_each (p, &c->kinds[K_DISK].all) {
			struct obj *child = container_of(p, struct obj, node);

			/* what was built on the disk is built on what it was */
			if (child == disk || strcmp(jstr_or(child->doc, "backing", ""), disk->name))
				continue;
			obj_before(c, child);
			jset_str(child->doc, "backing", layer->name);
			obj_put(c, child, PUT_FACT);
		}
		snap_moved(c, disk, d, layer);
		json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:O}", "name",
						      jstr_or(d, "entry", ""), "disk", disk->name,
						      "layer", layer->name, "size",
						      json_object_get(d, "size")));
	}
	if (!snap) {
		json_decref(list);
		return;
	}
	obj_before(c, snap);
	json_object_set_new(snap->doc, "disks", list);
	snap_state(c, snap, "ready", PUT_FACT);
	json_object_set_new(op->o->doc, "result", json_pack("{s:s}", "name", snap->name));
	event_add(c, "snapshot.created", "snapshot", snap->name, "%zu disks",
		  json_array_size(list));
}

static void create_abort(struct op *op, const struct err *e)
{
	struct obj *snap = snap_obj(op);

	if (!op->o)
		return;
	snap_undo(op);
	if (snap)
		obj_del(op->c, snap, PUT_FACT);
}

const struct op_ops op_snapshot_create = { "snapshot", true,	      create_prepare,
					   create_run, create_commit, create_abort,
					   NULL };

/* ---- restore ---- */

static int restore_disk(struct op *op, const json_t *kept, json_t *list, struct err *e)
{
	struct core *c = op->c;
	struct obj *o = disk_find(c, jstr_or(kept, "disk", ""), e), *layer, *child;
	char file[128];

	if (!o)
		return -e->num;
	layer = disk_find(c, jstr_or(kept, "layer", ""), e);
	if (!layer)
		return -e->num;
	if (strcmp(jstr_or(o->doc, "guest", ""), jstr_or(op->args, "guest", "")))
		return err_set(e, EBUSY, "disk-moved",
			       "disk \"%s\" of the snapshot is no longer the guest's", o->name);
	child = disk_child(c, o, NULL);
	if (child) {
		err_set(e, EBUSY, "disk-is-backing", "disk \"%s\" is what disk \"%s\" is built on",
			o->name, child->name);
		err_hint(e, "vmctl disk rebase %s", child->name);
		return -EBUSY;
	}
	if (disk_take(c, o, e) < 0)
		return -e->num;
	snap_new_file(o, file);
	json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:O}", "disk", o->id, "parent",
					      layer->id, "pool", jstr_or(o->doc, "pool", "default"),
					      "file", file, "size", json_object_get(kept, "size")));
	return 0;
}

static int restore_prepare(struct op *op, struct err *e)
{
	struct obj *snap = op->target;
	struct obj *g = snapshot_guest(op->c, snap);
	json_t *list = json_array(), *kept;
	size_t i;

	json_object_set_new(op->args, "disks", list);
	json_object_set_new(op->args, "snapshot", json_string(snap->id));
	if (!g)
		return err_set(e, ENOENT, "guest-not-found", "the guest of snapshot \"%s\" is gone",
			       snap->name);
	json_object_set_new(op->args, "guest", json_string(g->name));
	if (gstate_check(g->name, ((struct guest *)g->mem)->state, GV_ATTACH, e) < 0)
		return -e->num;
	json_array_foreach(json_object_get(snap->doc, "disks"), i,
			   kept) if (restore_disk(op, kept, list, e) < 0) return -e->num;
	return 0;
}

static void restore_made(struct op *op, const struct err *e)
{
	op_finish(op, e);
}

static void restore_run(struct op *op)
{
	snap_make(op, restore_made);
}

static void restore_commit(struct op *op)
{
	struct core *c = op->c;
	size_t i;
	json_t *d;

	json_array_foreach(snapshot_disks(op), i, d)
	{
		struct obj *o = obj_by_id(c, K_DISK, jstr_or(d, "disk", "")),
			   *layer = obj_by_id(c, K_DISK, jstr_or(d, "parent", ""));
		char pool[64], old[128];

		if (!o || !layer)
			continue;
		volume_file(o, pool, old);
		snap_moved(c, o, d, layer);
		if (o->rt)
			json_object_del(o->rt, "bitmaps"); /* the new file has none */
		volume_remove_later(c, pool, old);
	}
	if (op->target)
		event_add(c, "snapshot.restored", "snapshot", op->target->name, "%zu disks",
			  json_array_size(snapshot_disks(op)));
}

static void restore_abort(struct op *op, const struct err *e)
{
	if (op->o)
		snap_undo(op);
}

const struct op_ops op_snapshot_restore = {
	"snapshot-restore", true, restore_prepare, restore_run, restore_commit, restore_abort, NULL
};

/* ---- what others ask ---- */

struct obj *snapshot_guest(struct core *c, const struct obj *snap)
{
	return obj_by_id(c, K_GUEST, jstr_or(snap->rt, "guest_id", ""));
}

void snapshots_follow(struct core *c, const struct obj *guest, const char *name)
{
	list_for_each (p, &c->kinds[K_SNAPSHOT].all) {
		struct obj *o = container_of(p, struct obj, node), *layer;
		char full[192];
		size_t i;
		json_t *d;

		if (strcmp(jstr_or(o->rt, "guest_id", ""), guest->id))
			continue;
		obj_before(c, o);
		snprintf(full, sizeof(full), "%.63s/%.63s", name, jstr_or(o->doc, "name", ""));
		/* a guest in the trash may have had that name, and has its snapshots still */
		for (unsigned n = 2; obj_rename(c, o, full, PUT_ASKED) < 0; n++) {
			char own[64];

			snprintf(own, sizeof(own), "%.40s-%u", jstr_or(o->doc, "name", ""), n);
			snprintf(full, sizeof(full), "%.63s/%s", name, own);
		}
		jset_str(o->doc, "name", strchr(full, '/') + 1);
		json_array_foreach(json_object_get(o->doc, "disks"), i, d)
		{
			layer = obj_by_name(c, K_DISK, jstr_or(d, "layer", ""));
			if (!layer)
				continue;
			obj_before(c, layer);
			jset_str(layer->doc, "snapshot", full);
			obj_put(c, layer, PUT_ASKED);
		}
		jset_str(o->doc, "guest", name);
		obj_put(c, o, PUT_ASKED);
	}
}

/* A layer that nothing is built on goes, those below it may follow; others become disks as any. */
static bool snapshot_layer_gone(struct core *c, struct obj *layer, bool keep)
{
	if (keep || disk_child(c, layer, NULL) || !jbool(layer->rt, "made_for", false))
		return false;
	disk_remove_file(c, layer, disk_file_gone, NULL);
	obj_del(c, layer, PUT_FACT);
	return true;
}

void snapshots_guest_gone(struct core *c, const struct obj *guest, bool keep_disks)
{
	bool again = true;

	while (again) {
		again = false;
		list_for_each_safe (p, &c->kinds[K_DISK].all) {
			struct obj *layer = container_of(p, struct obj, node), *snap;

			if (!jstr(layer->doc, "snapshot"))
				continue;
			snap = obj_by_name(c, K_SNAPSHOT, jstr(layer->doc, "snapshot"));
			if (snap && !strcmp(jstr_or(snap->rt, "guest_id", ""), guest->id))
				again |= snapshot_layer_gone(c, layer, keep_disks);
		}
	}
	list_for_each_safe (p, &c->kinds[K_SNAPSHOT].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (strcmp(jstr_or(o->rt, "guest_id", ""), guest->id))
			continue;
		list_for_each (q, &c->kinds[K_DISK].all) {
			struct obj *layer = container_of(q, struct obj, node);

			if (strcmp(jstr_or(layer->doc, "snapshot", ""), o->name))
				continue;
			obj_before(c, layer);
			jset_str(layer->doc, "snapshot", NULL);
			obj_put(c, layer, PUT_FACT);
		}
		obj_del(c, o, PUT_FACT);
	}
}

/* ---- routes ---- */

static void snap_default_name(struct core *c, const char *guest, char name[64])
{
	char full[192];

	for (unsigned n = 1;; n++) {
		snprintf(name, 64, "s%u", n);
		snprintf(full, sizeof(full), "%.63s/%s", guest, name);
		if (!obj_by_name(c, K_SNAPSHOT, full))
			return;
	}
}

int route_snapshot_create(struct core *c, struct req *r, struct err *e)
{
	struct obj *g = guest_find(c, jstr_or(r->body, "guest", ""), e), *o;
	char name[64], full[192], id[UUID_TEXT_LEN];
	struct op *op;
	json_t *doc;

	if (!g) {
		snprintf(c->bad_field, sizeof(c->bad_field), "guest");
		return -e->num;
	}
	if (jstr(r->body, "name"))
		snprintf(name, sizeof(name), "%.63s", jstr(r->body, "name"));
	else
		snap_default_name(c, g->name, name);
	if (!name_valid(name))
		return err_set(e, EINVAL, "bad-name", "\"%s\" is not a name for a snapshot", name);
	snprintf(full, sizeof(full), "%.63s/%.63s", g->name, name);
	if (obj_by_name(c, K_SNAPSHOT, full)) {
		err_set(e, EEXIST, "snapshot-exists",
			"guest \"%s\" has a snapshot named \"%s\" already", g->name, name);
		err_hint(e, "vmctl snapshot ls");
		return -EEXIST;
	}
	uuid_make(id);
	doc = json_pack("{s:s, s:s, s:s, s:s, s:b, s:[], s:o}", "guest", g->name, "name", name,
			"uuid", id, "state", "busy", "live", ((struct guest *)g->mem)->link != NULL,
			"disks", "created", jnow());
	if (json_object_get(r->body, "labels"))
		json_object_set(doc, "labels", json_object_get(r->body, "labels"));
	o = obj_new(c, K_SNAPSHOT, id, full, doc);
	if (!o)
		return err_set(e, ENOMEM, "no-memory", "no memory for a snapshot");
	o->rt = json_pack("{s:s}", "guest_id", g->id);
	obj_put(c, o, PUT_ASKED);
	op = op_new(c, &op_snapshot_create, g, g->name, json_pack("{s:s}", "snapshot", id),
		    r->principal, e);
	return op ? op_answer(op, r) : -e->num;
}

/* found, and not in the middle of something */
struct obj *snapshot_find(struct core *c, const char *name, const char *want, struct err *e)
{
	struct obj *o = obj_find(c, K_SNAPSHOT, name, e);
	const char *state = o ? jstr_or(o->doc, "state", "?") : "";

	if (!o || !strcmp(state, "ready") || (want && !strcmp(state, want)))
		return o;
	if (!strcmp(state, "removing")) {
		err_set(e, EBUSY, "snapshot-not-whole",
			"snapshot \"%s\" was being removed: it is no longer whole", o->name);
		err_hint(e, "vmctl snapshot rm %s", o->name);
	} else {
		err_set(e, EBUSY, "snapshot-busy", "snapshot \"%s\" is %s", o->name, state);
	}
	return NULL;
}

int route_snapshot_restore(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = snapshot_find(c, r->name, NULL, e);
	struct op *op =
	    o ? op_new(c, &op_snapshot_restore, o, o->name, NULL, r->principal, e) : NULL;

	return op ? op_answer(op, r) : -e->num;
}
