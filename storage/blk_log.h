/* blk_log.h - what filter "log" records: the writes and syncs a disk file saw, in order.
 *
 * A crash leaves the file with every record that a completed sync covers, and any subset, torn at
 * any 512 bytes, of those after it. Passed to the filter as "log=%p".
 * Threading: the filter appends under the lock; read it when the graph is closed.
 */
#ifndef STORAGE_BLK_LOG_H
#define STORAGE_BLK_LOG_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum blk_log_kind { BLK_LOG_WRITE, BLK_LOG_ZERO, BLK_LOG_SYNC, BLK_LOG_TRUNCATE };

struct blk_log_rec {
	enum blk_log_kind kind;
	uint64_t off, len; /* sync: off = number of records it covers; truncate: off = new size */
	uint8_t *data;	   /* write */
};

struct blk_log {
	pthread_mutex_t lock;
	struct blk_log_rec *rec;
	size_t n, cap;
	bool failed; /* out of memory: the log is not complete */
};

struct blk_log *blk_log_new(void);
void blk_log_clear(struct blk_log *l);
void blk_log_free(struct blk_log *l);

#endif
