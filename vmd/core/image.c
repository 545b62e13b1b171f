/* image.c - images: read-only files that guests boot from or disks build on.
 *
 * A record is made first (state "uploading"), then api is handed a descriptor, writes and hashes
 * what comes, and says length and SHA-256; a qcow2 is then examined in vmd-image, which refuses
 * backing and data files and names the virtual size. What other makers' formats hold becomes a qcow2
 * first (image_foreign.c).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "vmd/core/internal.h"

int route_image_create(struct core *c, struct req *r, struct err *e)
{
	const char *name = jstr_or(r->body, "name", ""),
		   *pool = jstr_or(r->body, "pool", "default");
	char id[UUID_TEXT_LEN];
	struct obj *o;
	json_t *doc;

	if (!name_valid(name))
		return err_set(e, EINVAL, "bad-name",
			       "an image needs a name of 1 to 63 letters, digits, . _ -");
	if (obj_by_name(c, K_IMAGE, name)) {
		err_set(e, EEXIST, "image-exists", "an image named \"%s\" exists already", name);
		err_hint(e, "vmctl image rm %s, or choose another name", name);
		return -EEXIST;
	}
	if (pool_usable(c, pool, true, e) < 0)
		return -e->num;
	if (r->dry_run) {
		req_reply(r, 200, json_incref(r->body), 0, NULL);
		return 0;
	}
	uuid_make(id);
	doc = json_deep_copy(r->body);
	json_object_set_new(doc, "uuid", json_string(id));
	json_object_set_new(doc, "pool", json_string(pool));
	json_object_set_new(doc, "kind", json_string(jstr_or(r->body, "kind", "disk")));
	json_object_set_new(doc, "format", json_string(jstr_or(r->body, "format", "raw")));
	json_object_set_new(doc, "state", json_string("uploading"));
	json_object_set_new(doc, "created", jnow());
	o = obj_new(c, K_IMAGE, id, name, doc);
	if (!o)
		return err_set(e, ENOMEM, "no-memory", "no memory for an image");
	obj_put(c, o, PUT_ASKED);
	req_obj(r, 201, o);
	return 0;
}

static void image_fd_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct req *r = arg;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (e) {
		req_fail(r, e, NULL, NULL);
		return;
	}
	if (msg_result_decode(&m, b) < 0)
		m.fd = m.fd2 = -1;
	req_reply_fd(r, 200, NULL, m.fd);
	msg_result_close(&m);
}

static void image_begin_fresh(void *arg, enum call_event ev, struct wire_buf *b,
			      const struct err *e)
{
	struct req *r = arg;
	struct obj *o;
	struct msg_p_volume_open m = { .mode = 2 };

	if (ev == CALL_ITEM)
		return;
	o = obj_by_name(r->c, K_IMAGE, r->name);
	if (!o) {
		struct err gone = { 0 };

		err_set(&gone, ENOENT, "image-not-found", "image \"%s\" was removed", r->name);
		req_fail(r, &gone, NULL, NULL);
		return;
	}
	volume_file(o, m.pool, m.name);
	peer_call(r->c->priv, MSG_p_volume_open, &m, 0, 30000, image_fd_done, r);
}

static void image_set(struct core *c, struct obj *o, const char *state)
{
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string(state));
	obj_put(c, o, PUT_FACT);
}

/* ---- check ---- */

static void check_done(void *arg, const struct err *e, json_t *out)
{
	struct op *op = arg;

	if (!e && out && op->target) {
		obj_before(op->c, op->target);
		json_object_set_new(op->target->doc, "virtual_size",
				    json_integer((json_int_t)jint(out, "virtual_size",
								  jint(out, "virtual-size", 0))));
	}
	op_finish(op, e);
}

static void check_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct op *op = arg;
	struct msg_result m;
	struct err bad = { 0 };

	if (ev == CALL_ITEM)
		return;
	if (e || msg_result_decode(&m, b) < 0) {
		err_set(&bad, EPROTO, "bad-message", "priv gave no file");
		op_finish(op, e ? e : &bad);
		return;
	}
	if (strcmp(jstr_or(op->target->doc, "format", "raw"), "qcow2")) {
		/* raw: nothing to parse; what was uploaded is made durable */
		if (fsync(m.fd) < 0 && errno != EINVAL && errno != EROFS)
			err_set(&bad, errno, "write-failed", "image \"%s\": %s", op->target->name,
				strerror(errno));
		msg_result_close(&m);
		op_finish(op, bad.num ? &bad : NULL);
		return;
	}
	image_job_run(
	    op->c,
	    &(struct job_layer){
		.driver = "qcow2", .label = op->target->name, .fd = m.fd, .read_only = true },
	    1, "info", "no_backing=1\n", NULL, check_done, op, NULL);
	msg_result_close(&m);
}

static void upload_run(struct op *op);

static void upload_converted(struct op *op, const struct err *e)
{
	if (e)
		op_finish(op, e);
	else
		upload_run(op);
}

static void upload_run(struct op *op)
{
	struct msg_p_volume_open m = { 0 };

	if (image_is_foreign(op->target)) {
		image_foreign_run(op, upload_converted);
		return;
	}
	volume_file(op->target, m.pool, m.name);
	peer_call(op->c->priv, MSG_p_volume_open, &m, 0, 30000, check_opened, op);
}

static void upload_commit(struct op *op)
{
	image_set(op->c, op->target, "ready");
	event_add(op->c, "image.ready", "image", op->target->name, "%lld bytes",
		  (long long)jint(op->target->doc, "size", 0));
}

static void upload_abort(struct op *op, const struct err *e)
{
	if (op->target)
		image_set(op->c, op->target, "error");
}

const struct op_ops op_image_upload = { "image-check",	     true,	    NULL,
					upload_run,	     upload_commit, upload_abort,
					image_foreign_cancel };

static void image_file_gone(void *arg, const struct err *e)
{
	if (e)
		log_warn("an image's file could not be removed: %s", e->detail);
}

int route_image_upload(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_IMAGE, r->name, e);
	const char *want, *got = jstr_or(r->body, "sha256", "");
	struct msg_p_volume_unlink del = { 0 };
	struct op *op;

	if (!o)
		return -ENOENT;
	if (!strcmp(jstr_or(o->doc, "state", ""), "ready") ||
	    !strcmp(jstr_or(o->doc, "state", ""), "checking")) {
		err_set(e, EEXIST, "image-exists", "image \"%s\" has its content already", o->name);
		err_hint(e, "vmctl image rm %s", o->name);
		return -EEXIST;
	}
	if (!strcmp(r->sub, "abort")) {
		disk_remove_file(c, o, image_file_gone, NULL);
		req_reply(r, 204, NULL, 0, NULL);
		return 0;
	}
	if (strcmp(r->sub, "end")) {
		/* what an earlier attempt left is taken away first, and nothing later */
		round_commit(c);
		volume_file(o, del.pool, del.name);
		peer_call(c->priv, MSG_p_volume_unlink, &del, 0, 30000, image_begin_fresh, r);
		return 0;
	}
	want = jstr(o->doc, "sha256");
	if (want && strcasecmp(want, got)) {
		disk_remove_file(c, o, image_file_gone, NULL);
		return err_set(e, EINVAL, "wrong-hash",
			       "image \"%s\": the upload hashes to %s, not to %s", o->name, got,
			       want);
	}
	obj_before(c, o);
	json_object_set_new(o->doc, "sha256", json_string(got));
	json_object_set_new(o->doc, "size", json_integer((json_int_t)jint(r->body, "length", 0)));
	json_object_set_new(o->doc, "state", json_string("checking"));
	obj_put(c, o, PUT_ASKED);
	op = op_new(c, &op_image_upload, o, o->name, NULL, r->principal, e);
	return op ? op_answer(op, r) : -e->num;
}

int route_image_export(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_IMAGE, r->name, e);
	struct msg_p_volume_open m = { 0 };

	if (!o)
		return -ENOENT;
	if (strcmp(jstr_or(o->doc, "state", ""), "ready"))
		return err_set(e, EBUSY, "image-not-ready", "image \"%s\" is %s", o->name,
			       jstr_or(o->doc, "state", "?"));
	volume_file(o, m.pool, m.name);
	peer_call(c->priv, MSG_p_volume_open, &m, 0, 30000, image_fd_done, r);
	return 0;
}

int route_image_delete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_IMAGE, r->name, e);

	if (!o)
		return -e->num;
	if (!strcmp(jstr_or(o->doc, "state", ""), "checking"))
		return err_set(e, EBUSY, "image-busy", "image \"%s\" is being checked", o->name);
	list_for_each (p, &c->kinds[K_DISK].all) {
		struct obj *d = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(d->doc, "image", ""), o->name)) {
			err_set(e, EBUSY, "image-in-use",
				"image \"%s\" is what disk \"%s\" is built on", o->name, d->name);
			err_hint(e, "vmctl disk rm %s first", d->name);
			return -EBUSY;
		}
	}
	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *g = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(g->doc, "kernel", ""), o->name) ||
		    !strcmp(jstr_or(g->doc, "initrd", ""), o->name)) {
			err_set(e, EBUSY, "image-in-use", "image \"%s\" boots guest \"%s\"",
				o->name, jstr_or(g->doc, "name", "?"));
			return -EBUSY;
		}
	}
	if (req_dry(r, o))
		return 0;
	disk_remove_file(c, o, image_file_gone, NULL);
	obj_del(c, o, PUT_ASKED);
	req_reply(r, 204, NULL, 0, NULL);
	return 0;
}
