/* job.h - image jobs: what the jailed image process does with disks that nobody else has open.
 *
 * Each is synchronous, reports progress, and stops soon after its cancel flag is set (-ECANCELED).
 * Files come as fds in specs (blockdev.h); blk_open's rule holds: an fd is taken once its spec was
 * opened, which every job does first, so after a job all fds of its specs are closed, whatever the
 * result.
 * A target is made in place: the caller gives it its final name only after success.
 * Threading: one job a thread; a job makes its own workers. Trust: sources are hostile.
 */
#ifndef STORAGE_JOB_H
#define STORAGE_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/text.h"
#include "storage/blockdev.h"

/* called now and then, from any of the job's threads but never two at once */
typedef void blkjob_progress_fn(void *arg, uint64_t done_bytes, uint64_t total_bytes);

struct blkjob {
	blkjob_progress_fn *progress; /* NULL: none */
	void *arg;
	const _Atomic bool *cancel; /* NULL: never */
	unsigned threads;	    /* 0 = two a CPU, at most 16 */
	uint64_t max_output_bytes;  /* 0 = no quota; above it: -EDQUOT */
	uint64_t bps;		    /* live jobs: bytes a second, 0 = no limit */
};

/* blkjob_info() - as JSON, the meaning of qemu-img info --output=json (no file names but the spec's
 * label; the backing's name as the header states it). */
int blkjob_info(const struct blk_spec *spec, struct text *json, struct err *e);
/* blkjob_map() - as JSON, the meaning of qemu-img map --output=json. */
int blkjob_map(const struct blkjob *job, const struct blk_spec *spec, struct text *json,
	       struct err *e);

enum blkjob_repair { BLKJOB_CHECK, BLKJOB_REPAIR_LEAKS, BLKJOB_REPAIR_ALL };
struct blkjob_check {
	uint64_t errors, leaks, errors_fixed, leaks_fixed;
	uint64_t data_clusters, compressed_clusters, total_clusters, image_end_bytes;
	char first[256]; /* the first finding in words, "" none */
};
int blkjob_check(const struct blk_spec *spec, enum blkjob_repair how, struct blkjob_check *c,
		 struct err *e);

/* blkjob_compare() - Return: 0 equal, 1 different (*at: first differing sector's offset; a longer
 * disk must be zero where the other ends), -errno. */
int blkjob_compare(const struct blkjob *job, const struct blk_spec *a, const struct blk_spec *b,
		   uint64_t *at, struct err *e);

struct blkjob_target {
	int fd;			    /* empty regular file, opened read-write; taken */
	const char *driver;	    /* "file" or "qcow2" */
	struct qcow2_create create; /* qcow2; size_bytes 0 = the source's */
	bool compress;		    /* qcow2: create.zstd chooses which */
	int level;		    /* 0 = default */
};
/* blkjob_convert() - copy what the source shows (its whole chain) into a new image, sparse. */
int blkjob_convert(const struct blkjob *job, const struct blk_spec *src,
		   const struct blkjob_target *dst, struct err *e);

/* blkjob_resize() - @force: lets go of what is not zero past the new end; otherwise -ENOTEMPTY. */
int blkjob_resize(const struct blkjob *job, const struct blk_spec *spec, uint64_t size_bytes,
		  bool force, struct err *e);

/* blkjob_commit() - write the top layer's content into its backing, which the spec gives writable.
 */
int blkjob_commit(const struct blkjob *job, const struct blk_spec *top, struct err *e);

/* blkjob_carry_bitmaps() - the enabled bitmaps of @from's top layer also in @to's: of a new layer over it,
 * which shows the same. Both without their backing. @to is stable afterwards. */
int blkjob_carry_bitmaps(const struct blk_spec *from, const struct blk_spec *to, struct err *e);

/* blkjob_compact() - give space back to the host without changing what the disk shows: clusters of
 * zeroes, clusters that say what the parent says, holes where nothing is referenced, and the file's
 * end. *freed: host bytes. In place and safe at any moment; nothing else may use the disk. */
int blkjob_compact(const struct blkjob *job, const struct blk_spec *spec, uint64_t *freed,
		   struct err *e);

/* blkjob_rebase() - @top carries its old parent; @parent (NULL: none) becomes the new one. What
 * differs between the two is first copied into the top. Unsafe: only the header changes. */
int blkjob_rebase(const struct blkjob *job, const struct blk_spec *top,
		  const struct blk_spec *parent, const char *parent_name, const char *parent_format,
		  bool unsafe, struct err *e);

/* blkjob_snapshot_delete() - an internal snapshot, by id or name. */
int blkjob_snapshot_delete(const struct blk_spec *spec, const char *name, struct err *e);

#endif
