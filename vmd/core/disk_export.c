/* disk_export.c - a disk served over NBD on a socket of this host, by a jailed vmd-image, until somebody
 * ends it.
 *
 * It is an operation that goes on: `ops` shows it, cancelling it ends it in order. Meanwhile the disk is
 * busy. The socket (RUN/nbd/UUID.sock, mode 0600) is made by priv. With the daemon the export ends: its
 * clients are told by the end of their connections, what they flushed is in the file.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "vmd/core/disk_job.h"

static int export_prepare(struct op *op, struct err *e)
{
	if (jbool(op->args, "writable", false) && disk_no_layer(op->target, e) < 0)
		return -e->num;
	return disk_take(op->c, op->target, e);
}

/* the job's word that it serves */
static void export_serves(void *arg, uint64_t done, uint64_t total)
{
	struct op *op = ((struct disk_job *)arg)->op;
	struct obj *o = op->target;
	const char *uri = jstr(op->args, "uri");

	if (!uri || jstr(o->doc, "export"))
		return;
	obj_before(op->c, o);
	jset_str(o->doc, "export", uri);
	obj_put(op->c, o, PUT_FACT);
	event_add(op->c, "disk.exported", "disk", o->name, "served at %s", uri);
	while (!list_empty(&op->waiters))
		req_obj(list_first(&op->waiters, struct req, op_node), 200, o);
}

static void export_socket(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct disk_job *d = arg;
	struct msg_result m;
	char uri[512];

	if (ev == CALL_ITEM)
		return;
	if (e && !d->err.num)
		d->err = *e;
	if (!e && msg_result_decode(&m, b) == 0) {
		unsigned i = d->n++;

		d->layers[i] = (struct job_layer){
			.side = 1, .driver = "socket", .label = "socket", .fd = m.fd
		};
		d->fds[i] = m.fd;
		m.fd = -1;
		snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%.400s", m.text);
		jset_str(d->op->args, "uri", uri);
		msg_result_close(&m);
	}
	if (!--d->open)
		disk_job_go(d);
}

static void export_run(struct op *op)
{
	struct disk_job *d = disk_job_new(op, "export");
	bool writable = jbool(op->args, "writable", false);
	struct msg_p_export_listen m = { 0 };
	struct obj *o = op->target;

	if (!d)
		return;
	d->progress = export_serves;
	snprintf(d->args, sizeof(d->args), "name=%.200s\nwritable=%d\n", o->name, writable);
	if (jstr(op->args, "bitmap"))
		snprintf(d->args + strlen(d->args), sizeof(d->args) - strlen(d->args),
			 "bitmap=%.200s\n", jstr(op->args, "bitmap"));
	snprintf(m.id, sizeof(m.id), "%.36s", o->id);
	/* in its own slot, taken when it comes */
	d->open++;
	if (!peer_call(op->c->priv, MSG_p_export_listen, &m, 0, 10000, export_socket, d))
		d->open--;
	disk_job_side(d, o, 0, writable ? 1 : 0);
	disk_job_sent(d);
}

static void export_socket_gone(void *arg, enum call_event ev, struct wire_buf *b,
			       const struct err *e)
{
	if (ev != CALL_ITEM && e)
		log_warn("an export's socket stays: %s", e->detail);
}

static void export_over(struct op *op)
{
	struct obj *o = op->target;
	struct msg_p_export_gone m = { 0 };

	if (!o || !op->o)
		return;
	snprintf(m.id, sizeof(m.id), "%.36s", o->id);
	peer_call(op->c->priv, MSG_p_export_gone, &m, 0, 10000, export_socket_gone, NULL);
	if (jstr(o->doc, "export")) {
		obj_before(op->c, o);
		jset_str(o->doc, "export", NULL);
		obj_put(op->c, o, PUT_FACT);
	}
	disk_let_go(op->c, o);
}

static void export_abort(struct op *op, const struct err *e)
{
	export_over(op);
}

const struct op_ops op_disk_export = { "disk-export", false,	    export_prepare, export_run,
				       export_over,   export_abort, disk_job_cancel };

int route_disk_export(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_find(c, r->name, e);
	struct op *op;

	if (!o)
		return -ENOENT;
	if (jstr(o->doc, "export")) {
		err_set(e, EBUSY, "disk-exported", "disk \"%s\" is served at %s", o->name,
			jstr(o->doc, "export"));
		err_hint(e, "vmctl disk unexport %s", o->name);
		return -EBUSY;
	}
	op = op_new(c, &op_disk_export, o, o->name, json_deep_copy(r->body), r->principal, e);
	if (!op)
		return -e->num;
	if (req_dry(r, o))
		return 0;
	/* answered when it serves, or with what kept it from it */
	r->op = op;
	r->abandonable = true;
	list_add_tail(&op->waiters, &r->op_node);
	return 0;
}

int route_disk_unexport(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = disk_find(c, r->name, e);

	if (!o)
		return -ENOENT;
	list_for_each (p, &c->kinds[K_OPERATION].all) {
		struct op *op = container_of(p, struct obj, node)->mem;

		if (!op || op->ops != &op_disk_export || op->target != o)
			continue;
		if (req_dry(r, o))
			return 0;
		if (op_cancel(op, e) < 0)
			return -e->num;
		r->op = op;
		r->abandonable = true;
		r->reply_target = 200;
		list_add_tail(&op->waiters, &r->op_node);
		return 0;
	}
	return err_set(e, EBUSY, "disk-not-exported", "disk \"%s\" is not exported", o->name);
}
