/* disk_job.h - operations over chains of disks in a jailed vmd-image, for the files that have such verbs.
 */
#ifndef VMD_CORE_DISK_JOB_H
#define VMD_CORE_DISK_JOB_H

#include "vmd/core/internal.h"

#define JOB_LAYERS (2 * DISK_CHAIN_MAX)

typedef void disk_job_done_fn(struct op *op, const struct err *e, json_t *out);

/* disk_job - over whole chains: layers are opened, then the verb runs */
struct disk_job {
	struct op *op;
	struct job_layer layers[JOB_LAYERS];
	int fds[JOB_LAYERS];
	char label[JOB_LAYERS][160];
	struct disk_lease *lease[JOB_LAYERS]; /* of those that are written; NULL: none */
	unsigned n, open;
	struct err err;
	const char *verb;
	char args[512];
	struct image_job *job;
	void (*ready)(struct disk_job *d); /* all is open; NULL: the job runs in vmd-image */
	disk_job_done_fn *done;		   /* NULL: the operation ends with the job */
	job_progress_fn *progress; /* NULL: the operation's percentage; gets the operation */
};

/* disk_job_new() - the operation's job. Opening starts by disk_job_side(); disk_job_sent() then runs it once
 * all is open. NULL: the operation is over, for want of memory. */
struct disk_job *disk_job_new(struct op *op, const char *verb);
/* disk_job_make() - one of several jobs of an operation, which keeps it: @done tells its end, disk_job_drop()
 * frees it (it may be NULL). NULL: as disk_job_new(). */
struct disk_job *disk_job_make(struct op *op, const char *verb, disk_job_done_fn *done);
void disk_job_drop(struct disk_job *d);
/* disk_job_side() - the chain of @o as @side; the upper @writable layers for writing */
void disk_job_side(struct disk_job *d, struct obj *o, unsigned side, unsigned writable);
/* disk_job_add() - one layer of a side by itself. disk_job_take() - one that was asked for elsewhere (d->open counted up) has
 * come, or has not: @b or @e of that call. */
void disk_job_add(struct disk_job *d, struct obj *o, unsigned side, unsigned layer, uint64_t mode);
void disk_job_take(struct disk_job *d, struct wire_buf *b, const struct err *e, unsigned side,
		   const char *driver, const char *label);
void disk_job_sent(struct disk_job *d);
void disk_job_go(struct disk_job *d); /* one that opened something of its own: the last is open */
void disk_job_cancel(struct op *op);
/* disk_job_percent() - the operation is so far */
void disk_job_percent(struct op *op, uint64_t done, uint64_t total);

/* disk_verb() - an operation of the disk that the path names, with the request's body as its arguments */
int disk_verb(struct core *c, struct req *r, const struct op_ops *ops, struct err *e);

/* disk_commit_into() - what the operation's disk may be committed into; NULL with @e */
struct obj *disk_commit_into(struct op *op, struct err *e);

/* disk_backup.c: what the last whole backup of @bitmap went to, a disk's id or a URI; "" unknown */
const char *disk_backup_last(const struct obj *o, const char *bitmap);
void disk_backup_set_last(struct core *c, struct obj *o, const char *bitmap, const char *where);
int disk_backup_bitmap_check(const struct obj *o, const char *bitmap, struct err *e);
bool disk_uri(const char *text); /* or a name */

/* disk_adopt() - route_disk_create() of an existing file */
int disk_adopt(struct core *c, struct req *r, struct err *e);

/* ---- disk_live.c ---- */
/* disk_live() - the guest whose process has @o; @entry: its name there, may be NULL. NULL: none runs */
struct guest *disk_live(struct core *c, const struct obj *o, char entry[32]);
/* disk_live_progress() - of a g_disk_job's call: true where it was only how far it is */
bool disk_live_progress(struct op *op, enum call_event ev, struct wire_buf *b);
/* disk_live_gone() - @op was prepared for a guest's process, without taking the disk, and that process is gone */
void disk_live_gone(struct op *op);
void disk_live_cancel(struct op *op); /* the job named after it, if there is one */
int disk_live_rebase_check(struct op *op, const struct obj *parent, struct err *e);
void disk_live_rebase(struct op *op, const struct obj *parent);

/* disk_take() - nobody else uses @o from now on; -EBUSY with @e. disk_let_go() - @o may be NULL */
int disk_take(struct core *c, struct obj *o, struct err *e);
void disk_let_go(struct core *c, struct obj *o);
/* disk_has_reader() - is an operation under way with @o, which is a snapshot's layer? */
bool disk_has_reader(struct core *c, const struct obj *o);

#endif
