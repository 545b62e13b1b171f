/* op.c - operations: slow verbs as records that survive the daemon.
 *
 * A row of op_ops prepares within the request's transaction (checks, the state change that others
 * must see), runs after that is on disk, and ends in commit or abort, exactly once. After a restart
 * of the daemon an unfinished operation is run again where its row says that this is safe (rerun),
 * else aborted: nothing half-made remains either way.
 * The last 1,000 finished ones are kept.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/core/internal.h"

#define OPS_KEEP 1000

const struct op_ops *const op_table[] = {
	&op_guest_create,     &op_guest_start,	&op_guest_stop,
	&op_guest_restart,    &op_guest_reset,	&op_guest_pause,
	&op_guest_resume,     &op_guest_delete, &op_guest_save,
	&op_disk_create,      &op_disk_resize,	&op_disk_check,
	&op_disk_backup_nbd,  &op_disk_adopt,	&op_disk_rm,
	&op_disk_map,	      &op_disk_convert, &op_disk_commit,
	&op_disk_commit_live, &op_disk_rebase,	&op_disk_compare,
	&op_disk_export,      &op_image_upload, &op_snapshot_create,
	&op_disk_clone,	      &op_disk_inspect, &op_disk_compact,
	&op_disk_bitmap,      &op_disk_backup,	&op_disk_restore,
	&op_snapshot_restore, &op_snapshot_rm,	NULL,
};

static struct obj *op_target_find(struct core *c, const char *id)
{
	for (int k = 0; id && *id && k < K_COUNT; k++) {
		struct obj *o = obj_by_id(c, (enum kind)k, id);

		if (o)
			return o;
	}
	return NULL;
}

static void op_free(struct op *op)
{
	if (op->free_data)
		op->free_data(op->data);
	list_del(&op->start_node);
	if (op->o)
		op->o->mem = NULL;
	json_decref(op->args);
	free(op);
}

static struct op *op_alloc(struct core *c, const struct op_ops *ops, struct obj *target)
{
	struct op *op = calloc(1, sizeof(*op));

	if (!op)
		return NULL;
	op->c = c;
	op->ops = ops;
	op->target = target;
	if (target)
		memcpy(op->target_id, target->id, sizeof(op->target_id));
	list_init(&op->waiters);
	list_init(&op->start_node);
	return op;
}

struct op *op_new(struct core *c, const struct op_ops *ops, struct obj *target,
		  const char *target_name, json_t *args, const char *principal, struct err *e)
{
	struct op *op = op_alloc(c, ops, target);
	char id[UUID_TEXT_LEN], where[256];
	json_t *doc;

	if (!op) {
		json_decref(args);
		err_set(e, ENOMEM, "no-memory", "no memory for an operation");
		return NULL;
	}
	op->args = args ? args : json_object();
	uuid_make(id);
	snprintf(where, sizeof(where), "%s/%s", target ? kind_name(target->kind) : "host",
		 target_name);
	if (ops->prepare && ops->prepare(op, e) < 0) {
		op_free(op);
		return NULL;
	}
	doc = json_pack("{s:s, s:s, s:s, s:s, s:i, s:[], s:o, s:s}", "id", id, "verb", ops->verb,
			"target", where, "state", "queued", "progress", 0, "items", "created",
			jnow(), "principal", principal);
	op->o = obj_new(c, K_OPERATION, id, NULL, doc);
	if (!op->o) {
		json_decref(doc);
		op_free(op);
		err_set(e, ENOMEM, "no-memory", "no memory for an operation");
		return NULL;
	}
	op->o->rt =
	    json_pack("{s:O, s:s}", "args", op->args, "target_id", target ? target->id : "");
	op->o->mem = op;
	obj_put(c, op->o, PUT_ASKED);
	list_add_tail(&c->op_starts, &op->start_node);
	return op;
}

static void op_run(struct op *op)
{
	op->running = true;
	json_object_set_new(op->o->doc, "state", json_string("running"));
	obj_put(op->c, op->o, PUT_FACT);
	op->ops->run(op);
}

void op_start_pending(struct core *c)
{
	/* run() may start further operations: those wait for their own round */
	struct list now;

	list_init(&now);
	while (!list_empty(&c->op_starts)) {
		struct list *p = c->op_starts.next;

		list_del(p);
		list_add_tail(&now, p);
	}
	while (!list_empty(&now)) {
		struct op *op = list_first(&now, struct op, start_node);

		list_del(&op->start_node);
		op_run(op);
	}
}

void op_drop_pending(struct core *c)
{
	while (!list_empty(&c->op_starts)) {
		struct op *op = list_first(&c->op_starts, struct op, start_node);
		struct err e = { 0 };

		/* its record is gone with the round; those who wait are told by out_flush() or here
		 */
		list_del(&op->start_node);
		op->o = NULL;
		op->target = op_target_find(c, op->target_id); /* gone too, if it was new */
		err_set(&e, EROFS, "state-read-only", "%.380s", c->read_only_why);
		while (!list_empty(&op->waiters)) {
			struct req *r = list_first(&op->waiters, struct req, op_node);

			req_fail(r, &e, NULL, NULL);
		}
		if (op->ops->abort)
			op->ops->abort(op, &e);
		if (op->on_done)
			op->on_done(op, &e);
		op_free(op);
	}
}

void op_progress(struct op *op, int percent, const char *text)
{
	if (op->finished || percent == jint(op->o->doc, "progress", 0))
		return;
	json_object_set_new(op->o->doc, "progress", json_integer(percent));
	if (text)
		json_object_set_new(op->o->doc, "text", json_string(text));
	/* not worth a transaction */
	obj_show(op->c, op->o);
	round_touch(op->c);
}

static json_t *op_error_json(const struct err *e)
{
	return json_pack("{s:i, s:s, s:s, s:s}", "status", (int)err_status(e), "code",
			 *e->code ? e->code : "failed", "detail", e->detail, "hint", e->hint);
}

void op_item(struct op *op, const char *name, const struct err *e)
{
	json_t *item = json_pack("{s:s, s:s}", "name", name, "state", e ? "failed" : "succeeded");

	if (e)
		json_object_set_new(item, "error", op_error_json(e));
	json_array_append_new(json_object_get(op->o->doc, "items"), item);
}

static void op_prune(struct core *c)
{
	size_t done = 0;

	if (obj_count(c, K_OPERATION) <= OPS_KEEP)
		return;
	list_for_each_safe (p, &c->kinds[K_OPERATION].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (!o->mem && obj_count(c, K_OPERATION) > OPS_KEEP && done++ < 16)
			obj_del(c, o, PUT_FACT);
	}
}

static void op_tell(struct op *op, struct req *r, const struct err *e)
{
	char where[128];

	snprintf(where, sizeof(where), "/v1/operations/%s", op->o->id);
	if (e && e->num)
		req_fail(r, e, NULL, op->o->id);
	else if (r->reply_target && op->target && !op->target->dead)
		req_obj(r, r->reply_target, op->target);
	else if (r->reply_target == 204)
		req_reply(r, 204, NULL, 0, NULL);
	else
		req_reply(r, 200, json_incref(op->o->doc), op->o->revision, where);
}

void op_finish(struct op *op, const struct err *e)
{
	struct core *c = op->c;

	if (op->finished)
		return;
	op->finished = true;
	if (e && e->num) {
		if (op->ops->abort)
			op->ops->abort(op, e);
		json_object_set_new(op->o->doc, "state",
				    json_string(op->cancelled ? "cancelled" : "failed"));
		json_object_set_new(op->o->doc, "error", op_error_json(e));
		log_info("%s %s failed: %s", op->ops->verb, jstr(op->o->doc, "target"), e->detail);
		event_add(c, "operation.failed", "operation", op->o->id, "%s %s: %s", op->ops->verb,
			  jstr(op->o->doc, "target"), e->detail);
	} else {
		e = NULL;
		if (op->ops->commit)
			op->ops->commit(op);
		json_object_set_new(op->o->doc, "state", json_string("succeeded"));
		json_object_set_new(op->o->doc, "progress", json_integer(100));
	}
	json_object_set_new(op->o->doc, "finished", jnow());
	obj_put(c, op->o, PUT_FACT);
	while (!list_empty(&op->waiters))
		op_tell(op, list_first(&op->waiters, struct req, op_node), e);
	if (op->on_done)
		op->on_done(op, e);
	op_free(op);
	op_prune(c);
}

static void op_wait_over(void *arg)
{
	struct req *r = arg;
	struct op *op = r->op;
	char where[128];

	snprintf(where, sizeof(where), "/v1/operations/%s", op->o->id);
	req_reply(r, 202, json_incref(op->o->doc), op->o->revision, where);
}

int op_answer(struct op *op, struct req *r)
{
	if (r->dry_run) { /* it was prepared, and request_handle() takes that back */
		req_reply(r, 200, op->target ? json_incref(op->target->doc) : NULL, 0, NULL);
		return 0;
	}
	r->op = op;
	r->abandonable = true;
	if (!r->wait_ms && !r->reply_target) {
		op_wait_over(r);
		return 0;
	}
	list_add_tail(&op->waiters, &r->op_node);
	r->wait.fn = op_wait_over;
	if (!r->reply_target)
		loop_timer_after(&r->wait, r->wait_ms * NS_PER_MS);
	return 0;
}

int op_cancel(struct op *op, struct err *e)
{
	if (op->cancelled)
		return 0;
	if (op->running && !op->ops->cancel) {
		err_set(e, EBUSY, "not-cancellable",
			"operation %s (%s) is under way and cannot be cancelled", op->o->id,
			op->ops->verb);
		err_hint(e, "vmctl ops info %s", op->o->id);
		return -EBUSY;
	}
	op->cancelled = true;
	if (op->running) {
		op->ops->cancel(op);
	} else {
		list_del(&op->start_node);
		err_set(e, ECANCELED, "cancelled", "operation %s was cancelled", op->o->id);
		op_finish(op, e);
		err_clear(e);
	}
	return 0;
}

int route_op_cancel(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_OPERATION, r->name, e);
	int res;

	if (!o)
		return -ENOENT;
	if (!o->mem) {
		err_set(e, EBUSY, "operation-over", "operation %s is over (%s)", o->id,
			jstr_or(o->doc, "state", "?"));
		return -EBUSY;
	}
	if (req_dry(r, o))
		return 0;
	res = op_cancel(o->mem, e);
	if (res < 0)
		return res;
	req_obj(r, 202, o);
	return 0;
}

static const struct op_ops *op_ops_find(const char *verb)
{
	for (const struct op_ops *const *t = op_table; verb && *t; t++)
		if (!strcmp((*t)->verb, verb))
			return *t;
	return NULL;
}

void op_resume_all(struct core *c)
{
	list_for_each_safe (p, &c->kinds[K_OPERATION].all) {
		struct obj *o = container_of(p, struct obj, node);
		const char *state = jstr_or(o->doc, "state", "");
		const struct op_ops *ops = op_ops_find(jstr(o->doc, "verb"));
		struct err e = { 0 };
		struct op *op;

		if (o->mem || (strcmp(state, "queued") && strcmp(state, "running")))
			continue;
		op = ops ? op_alloc(c, ops, op_target_find(c, jstr(o->rt, "target_id"))) : NULL;
		if (!op) {
			if (ops)
				err_set(&e, ENOMEM, "no-memory", "no memory for the operation");
			else
				err_set(&e, EINVAL, "unknown-verb",
					"this version of vmd does not know the verb \"%s\", which "
					"another one began",
					jstr_or(o->doc, "verb", ""));
			json_object_set_new(o->doc, "error", op_error_json(&e));
			json_object_set_new(o->doc, "finished", jnow());
			json_object_set_new(o->doc, "state", json_string("failed"));
			obj_put(c, o, PUT_FACT);
			continue;
		}
		op->o = o;
		o->mem = op;
		op->args = json_incref(json_object_get(o->rt, "args"));
		if (ops->rerun && op->target) {
			log_info("%s %s goes on after the daemon's restart", ops->verb,
				 jstr(o->doc, "target"));
			op_run(op);
			continue;
		}
		err_set(&e, ECANCELED, "interrupted",
			"%s %s was cut off by the daemon's restart and undone", ops->verb,
			jstr_or(o->doc, "target", ""));
		err_hint(&e, "repeat the command");
		op_finish(op, &e);
	}
}
