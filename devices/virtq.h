/* virtq.h - the only code that touches virtqueue rings (virtio 1.2, 2.7; packed 2.8 where
 * negotiated).
 *
 * Trust: rings and descriptors are written by the guest at any moment. Each descriptor is copied
 * once, chains are bounded by the queue size, indirect tables by VIRTQ_SEG_MAX, every address is
 * translated and checked by mem.h. A malformed chain marks the queue broken: the device sets
 * DEVICE_NEEDS_RESET.
 * Locking: one user a queue at a time (the device's queue lock, or its I/O thread).
 */
#ifndef DEVICES_VIRTQ_H
#define DEVICES_VIRTQ_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/err.h"
#include "common/state.h"
#include "hypervisor-core/mem.h"

#define VIRTQ_SIZE_MAX 1024u
#define VIRTQ_SEG_MAX  256u

struct virtq {
	struct mem *mem;
	uint16_t size; /* negotiated; power of two (split) */
	bool ready, event_idx, packed, broken;
	gpa_t desc, avail, used;
	/* host addresses, resolved and checked when enabled */
	void *desc_p, *avail_p, *used_p;
	uint16_t last_avail, used_idx, signalled_used;
	bool signalled_valid;
	bool avail_wrap, used_wrap; /* packed */
	/* notify() raises the queue's interrupt; set by the transport */
	void (*notify)(void *arg, struct virtq *q);
	void *notify_arg;
	unsigned index;
};

/* A request as taken off the ring. Readable segments first, then writable. Host addresses; contents
 * may change under the reader. */
struct virtq_req {
	struct virtq *q;
	uint16_t head;	    /* id for virtq_push */
	uint16_t ndescs;    /* ring slots taken (packed) */
	unsigned nout, nin; /* readable, writable segments in @iov */
	uint64_t out_bytes, in_bytes;
	struct iovec iov[VIRTQ_SEG_MAX];
	gpa_t in_gpa[VIRTQ_SEG_MAX]; /* for dirty marking of writable segments */
};

int virtq_enable(struct virtq *q,
		 struct err *e); /* checks size, alignment, addresses; 0 or -EINVAL */
void virtq_reset(struct virtq *q);

/* virtq_pop() - take the next request. Return: 1 taken, 0 empty, -EPROTO malformed (queue broken):
 * also where more are out than the ring has places, so that what a device holds for a queue is
 * bounded by its size. */
int virtq_pop(struct virtq *q, struct virtq_req *req);
/* virtq_take() - the chain at @head, which an earlier pop took and nobody gave back (a request that
 * outlived a save). */
int virtq_take(struct virtq *q, uint16_t head, struct virtq_req *req);
bool virtq_empty(const struct virtq *q);
/* virtq_push() - give @req back, @written bytes put into writable segments (marked dirty). */
void virtq_push(struct virtq *q, const struct virtq_req *req, uint32_t written);
/* virtq_push_head() - same for a user that kept head/ndescs and marked dirty itself. */
void virtq_push_head(struct virtq *q, uint16_t head, uint16_t ndescs, uint32_t written);
/* virtq_put(), virtq_publish() - several at once: put the @ahead'th after those published, then
 * make @n visible by one index update (5.1.6.4: all buffers of a merged frame). virtq_mark(): the
 * first @written writable bytes are dirty. */
void virtq_put(struct virtq *q, uint16_t ahead, uint16_t head, uint32_t written);
void virtq_publish(struct virtq *q, uint16_t n);
void virtq_mark(const struct virtq_req *req, uint64_t written);
/* virtq_unpop() - put the last popped request back (no buffer now). */
void virtq_unpop(struct virtq *q, const struct virtq_req *req);
/* virtq_go_on_at() - somebody else (vhost) served the ring up to here, with nothing left half-way.
 */
void virtq_go_on_at(struct virtq *q, uint16_t index);
/* virtq_interrupt() - after a batch of pushes: notify unless the driver asked not to. */
void virtq_interrupt(struct virtq *q);
/* Ask the driver for kicks, or not. virtq_kicks_on() returns true where requests came meanwhile. */
bool virtq_kicks_on(struct virtq *q);
void virtq_kicks_off(struct virtq *q);

/* Copy between a flat buffer and the segments, from byte @off of the readable/writable part. Bytes
 * copied. */
uint64_t virtq_copy_out(const struct virtq_req *r, uint64_t off, void *buf,
			uint64_t len); /* guest → host */
uint64_t virtq_copy_in(const struct virtq_req *r, uint64_t off, const void *buf, uint64_t len);

void virtq_save(const struct virtq *q, struct state_writer *w, uint16_t base_tag);
int virtq_load(struct virtq *q, const struct state_reader *r, uint16_t base_tag, struct err *e);

#endif
