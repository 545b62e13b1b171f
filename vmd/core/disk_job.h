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
	unsigned n, open;
	struct err err;
	const char *verb;
	char args[512];
	struct image_job *job;
	disk_job_done_fn *done;	   /* NULL: the operation ends with the job */
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
void disk_job_sent(struct disk_job *d);
void disk_job_go(struct disk_job *d); /* one that opened something of its own: the last is open */
void disk_job_cancel(struct op *op);
/* disk_job_percent() - the operation is so far */
void disk_job_percent(struct op *op, uint64_t done, uint64_t total);

/* disk_take() - nobody else uses @o from now on; -EBUSY with @e. disk_let_go() - @o may be NULL */
int disk_take(struct core *c, struct obj *o, struct err *e);
void disk_let_go(struct core *c, struct obj *o);
/* disk_has_reader() - is an operation under way with @o, which is a snapshot's layer? */
bool disk_has_reader(struct core *c, const struct obj *o);

#endif
