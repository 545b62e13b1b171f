/* virtio_blk_impl.h - what virtio_blk.c (configuration, resets, state, life) and virtio_blk_io.c (requests)
 * share. All functions here run on the I/O thread.
 */
#ifndef DEVICES_VIRTIO_BLK_IMPL_H
#define DEVICES_VIRTIO_BLK_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "devices/iothread.h"
#include "devices/pace.h"
#include "devices/virtio.h"
#include "devices/virtio_devices.h"
#include "hypervisor-core/vm.h"

#define BLK_SECTOR	512u
#define BLK_QUEUES_MAX	8u
#define BLK_DISCARD_MAX 0x3fffffu /* sectors a segment: 2 GiB */

struct blk_dev;

/* One request in flight; the ring's segments are copied behind it. */
struct blk_io {
	struct blk_req req; /* first: the block layer hands it back */
	struct blk_dev *dev;
	struct list node;
	struct virtq *q;
	uint16_t head, ndescs;
	uint8_t *status;
	gpa_t status_gpa;
	uint32_t in_bytes;
	unsigned niov, nin_gpa;
	struct iovec iov[];
};

struct blk_q {
	struct blk_dev *dev;
	unsigned index;
	struct blk_queue *bq;
	struct loop_fd w;
	bool active, dirty; /* dirty: completions not yet signalled */
	bool resetting;	    /* its last completion tells the transport */
	unsigned inflight;
};

struct blk_dev {
	struct virtio_dev vd; /* first */
	struct blockdev *bd;
	struct iothread *io;
	struct blk_info info;
	char serial[21];
	bool read_only;
	enum io_error_policy on_error;
	struct blk_q q[BLK_QUEUES_MAX];
	struct virtq_req *scratch; /* I/O thread; made at the first request */
	struct list held;	   /* failed, waiting for the VM to run on */
	struct loop_timer retry;
	bool retry_armed;
	struct pace pace; /* I/O thread */
	struct loop_timer paced;
	unsigned inflight; /* in the block layer; held ones are not */
	bool quiet;	   /* quiesced: nothing new until unquiesce */
	bool started, draining, resetting;
	bool reset_told;	     /* the driver's own reset: the last completion tells */
	void (*quiesced)(void *arg); /* the last completion posts it to the main loop */
	void *quiesced_arg;
	uint32_t *again; /* loaded: held requests of before, queue << 16 | head */
	unsigned nagain;
	pthread_mutex_t drain_lock;
	pthread_cond_t drain_cond;
	_Atomic uint64_t capacity_sectors;
	_Atomic uint64_t reads, writes, flushes, discards, read_bytes, written_bytes, errors;
};

/* blk_process() - take what is on the ring; blk_one(): one request. blk_kicked(): by its doorbell. */
void blk_process(struct blk_dev *d, struct blk_q *bq);
int blk_one(struct blk_dev *d, const struct virtq_req *r);
void blk_kicked(void *arg, int fd, uint32_t events);
/* Timers: held requests again; the limit lets the next one go. */
void blk_retry(void *arg);
void blk_pace_over(void *arg);
/* blk_drained() - where nothing is in flight any more, tell whoever waits for that. */
void blk_drained(struct blk_dev *d);

#endif
