/* job_util.h - inside storage/: what the jobs share. */
#ifndef STORAGE_JOB_UTIL_H
#define STORAGE_JOB_UTIL_H

#include <pthread.h>

#include "storage/job.h"
#include "storage/node.h"

struct blkjob_run {
	const struct blkjob *job;
	uint64_t total, done, reported;
	pthread_mutex_t lock;
};

struct blkjob_run job_begin(const struct blkjob *job, uint64_t total);
int job_step(struct blkjob_run *r, uint64_t done); /* 0 or -ECANCELED */
int job_error(struct err *e, int r, const char *label, const char *what);
/* job_commit_range() - one extent of @top's own content into @into, up to @limit. */
int job_commit_range(struct blockdev *top, struct blockdev *into, uint8_t *buf,
		     const struct blk_extent *x, uint64_t limit, struct blkjob_run *run);
#define JOB_CHAIN_STEP (1024 * 1024)
/* job_open() - blk_open() that closes the spec's fds on failure too. */
struct blockdev *job_open(const struct blk_spec *spec, struct err *e);

void job_close_fds(const struct blk_spec *s); /* of the whole tree */

#endif
