/* disk_backup_nbd.c - a backup to another machine: what a disk held at one moment goes to an NBD export.
 *
 * The export is nobody's record here. A full backup writes all of it, zeroes too; an incremental one
 * writes what changed since the last backup of its bitmap in place, and so must go to the same URI.
 * Which that was is kept with the disk as for backups to disks (disk_backup.c), and put aside the same
 * way while one is under way: a crash costs a full backup, never a hole.
 * priv connects; the copier, in a jail, speaks NBD and reads no name. No TLS: a tunnel, or a unix socket
 * of one, is what a network that others share asks for.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmd/core/disk_job.h"

#define NBD_PORT "10809"

struct nbd_backup {
	struct call *call;
	struct disk_job *job;
};

static void nbd_backup_free(void *arg)
{
	struct nbd_backup *b = arg;

	call_forget(b->call);
	disk_job_drop(b->job);
	free(b);
}

bool disk_uri(const char *text)
{
	return !strncmp(text, "nbd:", 4) || !strncmp(text, "nbd+unix:", 9) || strstr(text, "://");
}

/* uri_part() - @n bytes of @s with %XX decoded; false: too long, a control byte, or not decodable. */
static bool uri_part(const char *s, size_t n, char *out, size_t cap)
{
	size_t k = 0;

	for (size_t i = 0; i < n; i++) {
		unsigned c = (unsigned char)s[i];

		if (c == '%') {
			if (i + 2 >= n || sscanf(s + i + 1, "%2x", &c) != 1)
				return false;
			i += 2;
		}
		if (c < 0x20 || c == 0x7f || k + 1 >= cap)
			return false;
		out[k++] = (char)c;
	}
	out[k] = '\0';
	return true;
}

/* nbd_uri() - of the NBD project's doc/uri.md: nbd://ADDRESS[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH */
static int nbd_uri(const char *uri, struct msg_p_chardev_open *m, char export[256], struct err *e)
{
	bool is_unix = !strncmp(uri, "nbd+unix:///", 12);
	const char *at = uri + (is_unix ? 12 : 6), *slash, *query;
	bool ok = is_unix || !strncmp(uri, "nbd://", 6);

	if (ok && is_unix) {
		query = strstr(at, "?socket=");
		ok = query && uri_part(at, (size_t)(query - at), export, 256) &&
		     uri_part(query + 8, strlen(query + 8), m->path, sizeof(m->path)) &&
		     m->path[0] == '/';
	} else if (ok) {
		char host[256];

		slash = strchr(at, '/');
		ok = uri_part(at, slash ? (size_t)(slash - at) : strlen(at), host, 200) && *host &&
		     !strchr(at, '?') &&
		     (!slash || uri_part(slash + 1, strlen(slash + 1), export, 256));
		if (ok && (host[0] == '[' ? host[strlen(host) - 1] == ']' : !strchr(host, ':')))
			strncat(host, ":" NBD_PORT, sizeof(host) - strlen(host) - 1);
		if (ok)
			snprintf(m->path, sizeof(m->path), "%.255s", host);
	}
	snprintf(m->kind, sizeof(m->kind), "%s", is_unix ? "unix-connect" : "tcp-connect");
	if (ok)
		return 0;
	err_set(e, EINVAL, "bad-uri",
		"\"%.200s\" is no NBD URI that can be used: nbd://ADDRESS[:PORT]/EXPORT or "
		"nbd+unix:///EXPORT?socket=/PATH",
		uri);
	if (strstr(uri, "nbds"))
		err_hint(e, "NBD over TLS is not there yet: a tunnel's unix socket is");
	return -EINVAL;
}

static int nbd_backup_prepare(struct op *op, struct err *e)
{
	const char *bitmap = jstr(op->args, "bitmap"), *uri = jstr_or(op->args, "name", "");
	struct msg_p_chardev_open m = { 0 };
	struct obj *o = op->target;
	char export[256] = "";

	if (nbd_uri(uri, &m, export, e) < 0)
		return -e->num;
	if (jstr(op->args, "pool"))
		return err_set(e, EINVAL, "bad-pool", "an NBD export is in no pool");
	if (disk_backup_bitmap_check(o, bitmap, e) < 0)
		return -e->num;
	if (jbool(op->args, "incremental", false)) {
		if (!bitmap)
			return err_set(e, EINVAL, "no-bitmap",
				       "an incremental backup wants a bitmap");
		if (strcmp(disk_backup_last(o, bitmap), uri)) {
			err_set(e, EINVAL, "no-backup",
				"disk \"%s\": the last whole backup of bitmap \"%s\" did not go to "
				"%.150s",
				o->name, bitmap, uri);
			err_hint(e, "a full one first: vmctl disk backup %.60s URI --bitmap %.60s",
				 o->name, bitmap);
			return -EINVAL;
		}
	}
	json_object_set_new(op->args, "live", json_boolean(disk_live(op->c, o, NULL) != NULL));
	return disk_live(op->c, o, NULL) ? 0 : disk_take(op->c, o, e);
}

/* the copier's word: its bitmap is as before, what it wrote there is what the next one writes again */
static void nbd_backup_refused(struct op *op, const struct err *e)
{
	if (op->target && jbool(op->args, "incremental", false))
		disk_backup_set_last(op->c, op->target, jstr(op->args, "bitmap"),
				     jstr(op->args, "name"));
	op_finish(op, e);
}

static void nbd_backup_done(struct op *op, const struct err *e, json_t *out)
{
	if (e && strcmp(e->code, "job-died"))
		nbd_backup_refused(op, e);
	else
		op_finish(op, e);
}

static void nbd_live_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct op *op = arg;

	if (disk_live_progress(op, ev, b))
		return;
	((struct nbd_backup *)op->data)->call = NULL;
	if (e && strcmp(e->code, "peer-gone"))
		nbd_backup_refused(op, e);
	else
		op_finish(op, e);
}

/* connected: the socket goes to the guest's process */
static void nbd_live(struct disk_job *d)
{
	struct op *op = d->op;
	struct nbd_backup *k = op->data;
	struct msg_g_disk_job m = { .fd = -1 };
	struct msg_g_disk_overlay l = { .fd = d->fds[0], .first = 1, .cache = 1 };
	struct guest *g = disk_live(op->c, op->target, m.name);
	struct msg_p_chardev_open where = { 0 };
	struct err e = { 0 };

	if (!g) {
		disk_live_gone(op);
		return;
	}
	if (nbd_uri(jstr_or(op->args, "name", ""), &where, l.export, &e) < 0) {
		nbd_backup_refused(op, &e);
		return;
	}
	snprintf(l.driver, sizeof(l.driver), "nbd");
	snprintf(l.label, sizeof(l.label), "%.159s", jstr_or(op->args, "name", "?"));
	peer_send(g->link, MSG_g_disk_overlay, &l);
	snprintf(m.job, sizeof(m.job), "%.36s", op->o->id);
	snprintf(m.verb, sizeof(m.verb), "backup");
	snprintf(m.bitmap, sizeof(m.bitmap), "%.255s", jstr_or(op->args, "bitmap", ""));
	m.value = jbool(op->args, "incremental", false);
	k->call = peer_call(g->link, MSG_g_disk_job, &m, 0, 0, nbd_live_done, op);
}

static void nbd_connected(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct disk_job *d = arg;
	const char *uri = jstr_or(d->op->args, "name", "?");
	struct err named;

	if (ev == CALL_ITEM)
		return;
	if (e) {
		named = *e;
		err_prefix(&named, "%.200s", uri);
		e = &named;
	}
	disk_job_take(d, b, e, 1, "nbd", uri);
}

static void nbd_backup_run(struct op *op)
{
	struct nbd_backup *k = calloc(1, sizeof(*k));
	struct msg_p_chardev_open m = { 0 };
	const char *bitmap = jstr(op->args, "bitmap");
	struct err e = { 0 };
	char export[256] = "";
	struct disk_job *d;

	if (!k) {
		err_set(&e, ENOMEM, "no-memory", "no memory");
		op_finish(op, &e);
		return;
	}
	op->data = k;
	op->free_data = nbd_backup_free;
	if (nbd_uri(jstr_or(op->args, "name", ""), &m, export, &e) < 0) {
		op_finish(op, &e);
		return;
	}
	if (bitmap) {
		disk_backup_set_last(op->c, op->target, bitmap, NULL);
		round_commit(op->c);
	}
	d = k->job = disk_job_make(op, "backup", nbd_backup_done);
	if (!d)
		return;
	if (bitmap)
		snprintf(d->args, sizeof(d->args), "bitmap=%.100s\n", bitmap);
	snprintf(d->args + strlen(d->args), sizeof(d->args) - strlen(d->args),
		 "incremental=%d\nexport=%.255s\n", jbool(op->args, "incremental", false), export);
	if (jbool(op->args, "live", false))
		d->ready = nbd_live;
	else
		disk_job_side(d, op->target, 0, bitmap ? 1 : 0);
	d->open++;
	if (!peer_call(op->c->priv, MSG_p_chardev_open, &m, 0, 20000, nbd_connected, d)) {
		d->open--;
		err_set(&d->err, ENOMEM, "no-memory", "no memory");
	}
	disk_job_sent(d);
}

static void nbd_backup_commit(struct op *op)
{
	disk_let_go(op->c, op->target);
	if (op->target && jstr(op->args, "bitmap"))
		disk_backup_set_last(op->c, op->target, jstr(op->args, "bitmap"),
				     jstr(op->args, "name"));
}

static void nbd_backup_abort(struct op *op, const struct err *e)
{
	if (!op->o)
		return;
	disk_let_go(op->c, op->target);
	disk_live_cancel(op);
}

static void nbd_backup_cancel(struct op *op)
{
	struct nbd_backup *k = op->data;

	if (k && k->job && k->job->job)
		image_job_cancel(k->job->job);
	disk_live_cancel(op);
}

const struct op_ops op_disk_backup_nbd = { "disk-backup-nbd",  false,
					   nbd_backup_prepare, nbd_backup_run,
					   nbd_backup_commit,  nbd_backup_abort,
					   nbd_backup_cancel };
