/* disk_job.h - operations over chains of disks in a jailed vmd-image, for the files that have such verbs.
 */
#ifndef VMD_CORE_DISK_JOB_H
#define VMD_CORE_DISK_JOB_H

#include "vmd/core/internal.h"

#define JOB_LAYERS (2 * DISK_CHAIN_MAX)

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
	job_progress_fn *progress; /* NULL: the operation's percentage; gets the operation */
};

/* disk_job_new() - the operation's job. Opening starts by disk_job_side(); disk_job_sent() then runs it once
 * all is open. NULL: the operation is over, for want of memory. */
struct disk_job *disk_job_new(struct op *op, const char *verb);
/* disk_job_side() - the chain of @o as @side; the upper @writable layers for writing */
void disk_job_side(struct disk_job *d, struct obj *o, unsigned side, unsigned writable);
void disk_job_sent(struct disk_job *d);
void disk_job_go(struct disk_job *d); /* one that opened something of its own: the last is open */
void disk_job_cancel(struct op *op);

/* disk_take() - nobody else uses @o from now on; -EBUSY with @e. disk_let_go() - @o may be NULL */
int disk_take(struct core *c, struct obj *o, struct err *e);
void disk_let_go(struct core *c, struct obj *o);

#endif
