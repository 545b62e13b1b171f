/* image_foreign.c - images of other makers (VMDK, VDI, VHDX, VHD) become qcow2 as they are imported.
 *
 * Their formats are read by qemu-nbd, in a jail of its own with nothing but the host's programs and this
 * one file; what it serves is written as qcow2 by a jailed vmd-image. Neither sees another file, so that
 * what a descriptor names is not there. The record changes to the new file in one step, and the upload
 * goes after that; a daemon that dies before begins anew.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "vmd/core/internal.h"

struct foreign {
	struct op *op;
	char job[UUID_TEXT_LEN]; /* qemu-nbd's */
	char file[64];		 /* what is made */
	int nbd, out;
	unsigned open;
	struct err first;
	struct image_job *convert;
	foreign_done_fn *done;
};

bool image_is_foreign(const struct obj *o)
{
	static const char *const formats[] = { "vmdk", "vdi", "vhdx", "vpc" };

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		if (!strcmp(jstr_or(o->doc, "format", "raw"), formats[i]))
			return true;
	return false;
}

static void foreign_free(void *arg)
{
	struct foreign *f = arg;

	close_fd(&f->nbd);
	close_fd(&f->out);
	free(f);
}

static void foreign_killed(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	/* it may have ended by itself */
}

static void foreign_end(struct foreign *f, const struct err *e)
{
	struct msg_p_guest_kill kill = { .signo = SIGKILL };
	struct op *op = f->op;
	struct core *c = op->c;
	char pool[64], old[128];
	struct err why;

	memcpy(kill.uuid, f->job, sizeof(f->job));
	peer_call(c->priv, MSG_p_guest_kill, &kill, 0, 10000, foreign_killed, NULL);
	volume_file(op->target, pool, old);
	if (e) {
		why = *e;
		volume_remove_later(c, pool, f->file);
		f->done(op, &why);
		return;
	}
	obj_before(c, op->target);
	json_object_set_new(op->target->doc, "format", json_string("qcow2"));
	jset_str(op->target->doc, "file", f->file);
	obj_put(c, op->target, PUT_FACT);
	volume_remove_later(c, pool, old);
	round_commit(c);
	f->done(op, NULL);
}

static void foreign_converted(void *arg, const struct err *e, json_t *out)
{
	struct foreign *f = arg;
	struct err why = { 0 };

	/* the reader ends without a word to us; what it said is in the daemon's log */
	if (e && (!strncmp(e->code, "nbd", 3) || !strcmp(e->code, "disk-open"))) {
		err_set(&why, EINVAL, "image-unreadable",
			"image \"%s\": qemu-nbd does not read it as %s", f->op->target->name,
			jstr_or(f->op->target->doc, "format", "?"));
		err_hint(&why,
			 "qemu-img info says what it is; it must be a single file, with no parent");
		e = &why;
	}
	foreign_end(f, e);
}

static void foreign_progress(void *arg, uint64_t done, uint64_t total)
{
	struct foreign *f = arg;

	op_progress(f->op, total ? (int)(done >= total ? 99 : done * 100 / total) : 0, NULL);
}

static void foreign_opened(struct foreign *f, const struct err *e)
{
	struct obj *o = f->op->target;

	if (e && !f->first.num)
		f->first = *e;
	if (--f->open)
		return;
	if (f->op->cancelled && !f->first.num)
		err_set(&f->first, ECANCELED, "cancelled", "the import was cancelled");
	if (f->first.num) {
		struct err why = f->first;

		foreign_end(f, &why);
		return;
	}
	/* @f may be gone when this returns */
	_cleanup_close_ int nbd = take_fd(&f->nbd), out = take_fd(&f->out);
	const struct job_layer l[2] = {
		{ .driver = "nbd", .label = o->name, .fd = nbd, .read_only = true },
		{ .side = 1, .driver = "qcow2", .label = o->name, .fd = out },
	};

	image_job_run(f->op->c, l, 2, "convert", "compress=0\n", foreign_progress,
		      foreign_converted, f, &f->convert);
}

static void foreign_served(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct foreign *f = arg;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (!e && msg_result_decode(&m, b) == 0) {
		f->nbd = m.fd2;
		m.fd2 = -1;
		msg_result_close(&m);
	}
	foreign_opened(f, e);
}

static void foreign_made(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct foreign *f = arg;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (!e && msg_result_decode(&m, b) == 0) {
		f->out = m.fd;
		m.fd = -1;
		msg_result_close(&m);
	}
	foreign_opened(f, e);
}

void image_foreign_run(struct op *op, foreign_done_fn *done)
{
	struct foreign *f = calloc(1, sizeof(*f));
	struct msg_p_volume_unlink rest = { 0 };
	struct msg_p_volume_open out = { .mode = VOLUME_CREATE };
	struct msg_p_foreign_spawn m = { 0 };
	struct err e = { 0 };

	if (!f) {
		err_set(&e, ENOMEM, "no-memory", "no memory for an import");
		done(op, &e);
		return;
	}
	*f = (struct foreign){ .op = op, .nbd = -1, .out = -1, .open = 2, .done = done };
	op->data = f;
	op->free_data = foreign_free;
	uuid_make(f->job);
	snprintf(f->file, sizeof(f->file), "%.36s.img", op->target->id);
	volume_file(op->target, m.pool, m.name);
	memcpy(m.job, f->job, sizeof(f->job));
	snprintf(m.format, sizeof(m.format), "%.15s", jstr_or(op->target->doc, "format", ""));
	memcpy(rest.pool, m.pool, sizeof(rest.pool));
	memcpy(out.pool, m.pool, sizeof(out.pool));
	snprintf(rest.name, sizeof(rest.name), "%s", f->file);
	snprintf(out.name, sizeof(out.name), "%s", f->file);
	/* what an attempt that was cut off has left; in order on the same link */
	peer_call(op->c->priv, MSG_p_volume_unlink, &rest, 0, 30000, foreign_killed, NULL);
	peer_call(op->c->priv, MSG_p_volume_open, &out, 0, 30000, foreign_made, f);
	peer_call(op->c->priv, MSG_p_foreign_spawn, &m, 0, 30000, foreign_served, f);
}

void image_foreign_cancel(struct op *op)
{
	struct foreign *f = op->data;

	if (f && f->convert)
		image_job_cancel(f->convert);
}
