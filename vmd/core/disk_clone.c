/* disk_clone.c - overlays over one disk or image, any number in one operation.
 *
 * All files are made by priv, filled by a few jailed jobs of many files each, made durable by one sync
 * a job; then all are ready in one transaction. What fails, or is cut off, is undone whole.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "vmd/core/disk_job.h"

#define CLONE_CHUNK 256

struct chunk {
	struct clone *k;
	unsigned n, left;
	struct chunk_file {
		struct chunk *ch;
		int fd;
	} file[CLONE_CHUNK];
};

struct clone {
	struct op *op;
	unsigned nchunks, left;
	struct err first;
	struct chunk *chunks;
};

static void clone_free(void *arg)
{
	struct clone *k = arg;

	for (unsigned i = 0; i < k->nchunks; i++)
		for (unsigned j = 0; j < k->chunks[i].n; j++)
			close_fd(&k->chunks[i].file[j].fd);
	free(k->chunks);
	free(k);
}

static void clone_chunk_done(void *arg, const struct err *e, json_t *out)
{
	struct chunk *ch = arg;
	struct clone *k = ch->k;

	for (unsigned j = 0; j < ch->n; j++)
		close_fd(&ch->file[j].fd);
	if (e && !k->first.num)
		k->first = *e;
	if (--k->left) {
		op_progress(k->op, (int)((k->nchunks - k->left) * 100 / k->nchunks), NULL);
		return;
	}
	op_finish(k->op, k->first.num ? &k->first : NULL);
}

/* every file of the chunk is open: the job that fills them */
static void clone_chunk_fill(struct chunk *ch)
{
	struct op *op = ch->k->op;
	struct job_layer *l = calloc(ch->n, sizeof(*l));
	struct obj *src = op->target;
	struct err e = ch->k->first;
	char args[512], pool[64], file[128];

	if (!e.num && op->cancelled)
		err_set(&e, ECANCELED, "cancelled", "the clones were cancelled");
	if (!l && !e.num)
		err_set(&e, ENOMEM, "no-memory", "no memory");
	if (!src && !e.num)
		err_set(&e, ENOENT, "disk-not-found", "the source was removed");
	if (e.num || !l || !src) {
		free(l);
		clone_chunk_done(ch, &e, NULL);
		return;
	}
	for (unsigned j = 0; j < ch->n; j++)
		l[j] = (struct job_layer){
			.layer = j, .driver = "qcow2", .label = "clone", .fd = ch->file[j].fd
		};
	volume_file(src, pool, file);
	snprintf(args, sizeof(args), "format=qcow2\nsize=%lld\nbacking=%s\nbacking_format=%s\n",
		 (long long)jint(op->args, "size", 0), file, jstr_or(src->doc, "format", "raw"));
	image_job_run(op->c, l, ch->n, "create-many", args, NULL, clone_chunk_done, ch, NULL);
	free(l);
}

static void clone_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct chunk_file *f = arg;
	struct chunk *ch = f->ch;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (!e && msg_result_decode(&m, b) == 0) {
		f->fd = m.fd;
		m.fd = -1;
		msg_result_close(&m);
	}
	if (e && !ch->k->first.num)
		ch->k->first = *e;
	if (!--ch->left)
		clone_chunk_fill(ch);
}

static void clone_run(struct op *op)
{
	json_t *ids = json_object_get(op->args, "ids"), *id;
	size_t i, n = json_array_size(ids);
	struct clone *k = calloc(1, sizeof(*k));
	struct err e = { 0 };

	if (k) {
		k->nchunks = k->left = (unsigned)((n + CLONE_CHUNK - 1) / CLONE_CHUNK);
		k->chunks = calloc(k->nchunks, sizeof(*k->chunks));
	}
	if (!k || !k->chunks) {
		free(k);
		err_set(&e, ENOMEM, "no-memory", "no memory");
		op_finish(op, &e);
		return;
	}
	k->op = op;
	op->data = k;
	op->free_data = clone_free;
	for (i = 0; i < n; i++) {
		struct chunk *ch = &k->chunks[i / CLONE_CHUNK];

		ch->k = k;
		ch->file[ch->n] = (struct chunk_file){ ch, -1 };
		ch->n++;
		ch->left++;
	}
	json_array_foreach(ids, i, id)
	{
		struct chunk *ch = &k->chunks[i / CLONE_CHUNK];
		struct msg_p_volume_open m = { .mode = VOLUME_CREATE };
		struct obj *o = obj_by_id(op->c, K_DISK, json_string_value(id));

		if (o)
			volume_file(o, m.pool, m.name);
		peer_call(op->c->priv, MSG_p_volume_open, &m, 0, 60000, clone_opened,
			  &ch->file[i % CLONE_CHUNK]);
	}
}

static void clone_commit(struct op *op)
{
	json_t *id;
	size_t i;

	json_array_foreach(json_object_get(op->args, "ids"), i, id)
	{
		struct obj *o = obj_by_id(op->c, K_DISK, json_string_value(id));

		if (!o)
			continue;
		obj_before(op->c, o);
		json_object_set_new(o->doc, "state", json_string("ready"));
		obj_put(op->c, o, PUT_FACT);
		op_item(op, o->name, NULL);
	}
}

static void clone_abort(struct op *op, const struct err *e)
{
	json_t *id;
	size_t i;

	if (!op->o)
		return;
	json_array_foreach(json_object_get(op->args, "ids"), i, id)
	{
		struct obj *o = obj_by_id(op->c, K_DISK, json_string_value(id));

		if (!o)
			continue;
		disk_remove_file(op->c, o, disk_file_gone, NULL);
		obj_del(op->c, o, PUT_FACT);
	}
}

static void clone_cancel(struct op *op)
{
	/* before a chunk is filled it is looked at; what is made is undone */
}

const struct op_ops op_disk_clone = { "disk-clone", false,	 NULL,	      clone_run,
				      clone_commit, clone_abort, clone_cancel };

/* @text with "{n}" or "{n:04}" as the number; false: it has none */
static bool clone_name(const char *text, unsigned n, char out[192])
{
	const char *open = strchr(text, '{'), *close = open ? strchr(open, '}') : NULL;
	unsigned width = 0;

	if (!close || open[1] != 'n' ||
	    (close != open + 2 && (open[2] != ':' || sscanf(open + 3, "%3u}", &width) != 1)) ||
	    width > 20) {
		snprintf(out, 192, "%.191s", text);
		return false;
	}
	snprintf(out, 192, "%.*s%0*u%.80s", (int)(open - text), text, (int)width, n, close + 1);
	return true;
}

/* What overlays are built on must not change from then on. */
static int clone_source_check(struct obj *src, struct err *e)
{
	const char *guest = jstr_or(src->doc, "guest", "");

	if (strcmp(jstr_or(src->doc, "state", ""), "ready"))
		return err_set(e, EBUSY, "disk-busy", "%s \"%s\" is %s", kind_name(src->kind),
			       src->name, jstr_or(src->doc, "state", "?"));
	if (src->kind != K_DISK || !*guest)
		return 0;
	err_set(e, EBUSY, "disk-in-use",
		"disk \"%s\" belongs to guest \"%s\", which would change what its clones show",
		src->name, guest);
	err_hint(e, "vmctl snapshot create %s, then clone the snapshot's layer (vmctl disk ls)",
		 guest);
	return -EBUSY;
}

int route_disk_clone(struct core *c, struct req *r, struct err *e)
{
	struct obj *src = disk_find(c, r->name, e);
	const char *text = jstr_or(r->body, "name", "");
	int64_t count = jint(r->body, "count", 1), size;
	json_t *spec, *ids;
	struct op *op;
	char name[192];

	if (!src && !strchr(r->name, '/') && obj_by_name(c, K_IMAGE, r->name)) {
		src = obj_by_name(c, K_IMAGE, r->name);
		err_clear(e);
	}
	if (!src || clone_source_check(src, e) < 0)
		return -e->num;
	if (!clone_name(text, 1, name) && count > 1) {
		snprintf(c->bad_field, sizeof(c->bad_field), "name");
		err_set(e, EINVAL, "bad-name", "\"%s\" gives %lld disks one name", text,
			(long long)count);
		err_hint(e, "--name 'web-{n:04}' numbers them");
		return -EINVAL;
	}
	size = jint(src->doc, "virtual_size", jint(src->doc, "size", 0));
	spec = json_pack("{s:s, s:s, s:s, s:I}", "pool",
			 jstr_or(r->body, "pool", jstr_or(src->doc, "pool", "default")), "format",
			 "qcow2", src->kind == K_IMAGE ? "image" : "backing", src->name, "size",
			 (json_int_t)size);
	if (json_object_get(r->body, "labels"))
		json_object_set(spec, "labels", json_object_get(r->body, "labels"));
	ids = json_array();
	for (unsigned n = 1; n <= (uint64_t)count && !e->num; n++) {
		struct obj *o;

		clone_name(text, n, name);
		o = disk_record(c, spec, name, NULL, e);
		if (o)
			json_array_append_new(ids, json_string(o->id));
	}
	json_decref(spec);
	if (e->num) {
		json_decref(ids);
		return -e->num;
	}
	op = op_new(c, &op_disk_clone, src, src->name,
		    json_pack("{s:o, s:I}", "ids", ids, "size", (json_int_t)size), r->principal, e);
	return op ? op_answer(op, r) : -e->num;
}
