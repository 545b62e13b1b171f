/* virtio_blk_io.c - requests of the virtio block device: off the ring, into the block layer, back.
 *
 * Errors: by the disk's policy a failed request is either reported to the guest, or held while the
 * VM pauses with VM_EVENT_IO_ERROR, and tried again once it runs on.
 * Threading: the I/O thread, all of it. Trust: header, sizes and segments are the guest's: bounds
 * and alignment are checked against the disk before use. Spec: virtio 1.2, 5.2.6.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/overflow.h"
#include "common/units.h"
#include "devices/virtio_blk_impl.h"

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK, S_IOERR, S_UNSUPP };

#define BLK_HDR	     16u
#define BLK_RETRY_NS (200 * NS_PER_MS)

/* ---- completion ---- */

static void blk_signal(struct blk_dev *d)
{
	for (unsigned i = 0; i < d->vd.nqueues; i++)
		if (d->q[i].dirty) {
			d->q[i].dirty = false;
			virtq_interrupt(&d->vd.vq[i]);
		}
}

static void blk_finish(struct blk_io *io, uint8_t status)
{
	struct blk_dev *d = io->dev;
	uint32_t written = 1;

	if (status == S_OK)
		written += io->in_bytes;
	else
		atomic_fetch_add_explicit(&d->errors, 1, memory_order_relaxed);
	__atomic_store_n(io->status, status, __ATOMIC_RELAXED); /* a driver may poll it */
	if (io->in_bytes && status == S_OK) {
		const gpa_t *gpa = (const gpa_t *)(const void *)&io->iov[io->niov];

		for (unsigned i = 0; i < io->nin_gpa; i++)
			mem_dirty_mark(d->vd.vm->mem, gpa[i], io->iov[i].iov_len);
	}
	mem_dirty_mark(d->vd.vm->mem, io->status_gpa, 1);
	virtq_push_head(io->q, io->head, io->ndescs, written);
	d->q[io->q->index].dirty = true;
	free(io);
}

/* Nothing is in flight any more? Then tell whoever waits for that: one queue's reset, the device's,
 * a quiesce, a thread. */
void blk_drained(struct blk_dev *d)
{
	for (unsigned i = 0; i < d->vd.nqueues; i++)
		if (d->q[i].resetting && !d->q[i].inflight) {
			d->q[i].resetting = false;
			virtio_queue_reset_done(&d->vd, i);
		}
	if (d->inflight)
		return;
	if (d->reset_told) {
		d->reset_told = d->resetting = false;
		virtio_reset_done(&d->vd);
	}
	if (d->quiesced) {
		if (loop_post(d->vd.vm->loop, d->quiesced, d->quiesced_arg) < 0)
			abort(); /* who waits would wait for ever */
		d->quiesced = NULL;
		d->quiet = true;
	}
	if (d->draining) {
		pthread_mutex_lock(&d->drain_lock);
		d->draining = d->resetting = false;
		pthread_cond_broadcast(&d->drain_cond);
		pthread_mutex_unlock(&d->drain_lock);
	}
}

static void blk_queue_submit(struct blk_dev *d, struct blk_io *io)
{
	struct blk_q *bq = &d->q[io->q->index];

	d->inflight++;
	bq->inflight++;
	blk_submit(bq->bq, &io->req);
}

static void blk_done(struct blk_req *r, int result)
{
	struct blk_io *io = container_of(r, struct blk_io, req);
	struct blk_dev *d = io->dev;

	d->inflight--;
	d->q[io->q->index].inflight--;
	/* a lost lease (storage/lease.h) is no fault of the disk: the guest never hears of it */
	if (!d->resetting && !d->q[io->q->index].resetting &&
	    (result == -ESTALE || (d->on_error == IO_ERROR_PAUSE &&
				   (result == -ENOSPC || result == -EIO || result == -EDQUOT)))) {
		list_add_tail(&d->held, &io->node);
		if (!d->retry_armed) {
			d->retry_armed = true;
			/* the VM leaves RUNNING before this returns, so the timer cannot mistake it
			 * for a resumed one */
			vm_event(d->vd.vm, VM_EVENT_IO_ERROR, "disk %s: %s failed: %s", d->vd.id,
				 r->op == BLK_READ    ? "read"
				 : r->op == BLK_FLUSH ? "flush"
						      : "write",
				 result == -ESTALE
				     ? "its lease is lost, another host may have taken it over"
				     : strerror(-result));
			loop_timer_after(&d->retry, BLK_RETRY_NS);
		}
		blk_drained(d);
		return;
	}
	blk_finish(io, result < 0 ? S_IOERR : S_OK);
	blk_signal(d);
	blk_drained(d);
}

/* The VM runs again after the pause that an error caused: try what was held. */
void blk_retry(void *arg)
{
	struct blk_dev *d = arg;
	bool running;

	pthread_mutex_lock(&d->vd.vm->run_lock);
	running = d->vd.vm->run_state == VM_RUNNING;
	pthread_mutex_unlock(&d->vd.vm->run_lock);
	if (!running || d->quiet || d->quiesced) {
		loop_timer_after(&d->retry, BLK_RETRY_NS);
		return;
	}
	d->retry_armed = false;
	/* completions come by the loop, never from inside submit: the list does not grow under us
	 */
	while (!list_empty(&d->held)) {
		struct blk_io *io = list_first(&d->held, struct blk_io, node);

		list_del(&io->node);
		blk_queue_submit(d, io);
	}
}

/* ---- requests ---- */

/* The segments of the ring that carry data: without the header in front and the status byte at the
 * end. */
static unsigned blk_data_iov(const struct virtq_req *r, bool in, struct iovec *iov, gpa_t *gpa)
{
	unsigned n = 0, first = in ? r->nout : 0, count = in ? r->nin : r->nout;
	uint64_t skip = in ? 0 : BLK_HDR, left = in ? r->in_bytes - 1 : r->out_bytes - BLK_HDR;

	for (unsigned i = 0; i < count && left; i++) {
		uint8_t *p = r->iov[first + i].iov_base;
		uint64_t len = r->iov[first + i].iov_len, cut = MIN(skip, len);

		skip -= cut;
		p += cut;
		len = MIN(len - cut, left);
		left -= len;
		if (!len)
			continue;
		iov[n] = (struct iovec){ p, len };
		if (in)
			gpa[n] = r->in_gpa[i];
		n++;
	}
	return n;
}

static bool blk_range_ok(const struct blk_dev *d, uint64_t sector, uint64_t bytes)
{
	uint32_t per_block = d->info.block_size / BLK_SECTOR;

	return bytes % BLK_SECTOR == 0 &&
	       range_within(sector, bytes / BLK_SECTOR, d->capacity_sectors) &&
	       sector % per_block == 0 && bytes / BLK_SECTOR % per_block == 0;
}

/* Fill io->req from the header. Return: 0 submit, else the status to answer with at once, plus one.
 */
static int blk_prepare(struct blk_dev *d, struct blk_io *io, const struct virtq_req *r,
		       uint32_t type, uint64_t sector)
{
	struct {
		uint64_t sector;
		uint32_t sectors, flags;
	} seg;
	struct blk_req *q = &io->req;
	uint64_t bytes;

	switch (type) {
	case T_IN:
	case T_OUT:
		bytes = type == T_IN ? r->in_bytes - 1 : r->out_bytes - BLK_HDR;
		if (!blk_range_ok(d, sector, bytes) || (type == T_OUT && d->read_only))
			return 1 + S_IOERR;
		if (!bytes)
			return 1 + S_OK;
		q->op = type == T_IN ? BLK_READ : BLK_WRITE;
		q->off_bytes = sector * BLK_SECTOR;
		q->len_bytes = bytes;
		q->iov = io->iov;
		q->niov = (int)io->niov;
		if (type == T_IN)
			io->in_bytes = (uint32_t)MIN(bytes, UINT32_MAX - 1);
		atomic_fetch_add_explicit(type == T_IN ? &d->reads : &d->writes, 1,
					  memory_order_relaxed);
		atomic_fetch_add_explicit(type == T_IN ? &d->read_bytes : &d->written_bytes, bytes,
					  memory_order_relaxed);
		return 0;
	case T_FLUSH:
		q->op = BLK_FLUSH;
		atomic_fetch_add_explicit(&d->flushes, 1, memory_order_relaxed);
		return 0;
	case T_GET_ID: {
		char id[20] = "";

		memcpy(id, d->serial, strnlen(d->serial, sizeof(id)));
		io->in_bytes = (uint32_t)virtq_copy_in(r, 0, id, MIN(sizeof(id), r->in_bytes - 1));
		virtq_mark(r, io->in_bytes);
		return 1 + S_OK;
	}
	case T_DISCARD:
	case T_WRITE_ZEROES:
		if (r->out_bytes - BLK_HDR != sizeof(seg) ||
		    virtq_copy_out(r, BLK_HDR, &seg, sizeof(seg)) != sizeof(seg))
			return 1 + S_UNSUPP;
		if (seg.flags & ~1u || (type == T_DISCARD && seg.flags))
			return 1 + S_UNSUPP;
		if (seg.sectors > BLK_DISCARD_MAX || d->read_only ||
		    !blk_range_ok(d, seg.sector, seg.sectors * (uint64_t)BLK_SECTOR))
			return 1 + S_IOERR;
		if (!seg.sectors)
			return 1 + S_OK;
		q->op = type == T_DISCARD ? BLK_DISCARD : BLK_WRITE_ZEROES;
		q->flags = seg.flags & 1 ? BLK_MAY_UNMAP : 0;
		q->off_bytes = seg.sector * BLK_SECTOR;
		q->len_bytes = seg.sectors * (uint64_t)BLK_SECTOR;
		atomic_fetch_add_explicit(&d->discards, 1, memory_order_relaxed);
		return 0;
	default:
		return 1 + S_UNSUPP;
	}
}

int blk_one(struct blk_dev *d, const struct virtq_req *r)
{
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} hdr;
	const struct iovec *last;
	struct blk_io *io;
	unsigned slots = r->nout + r->nin;
	int ret;

	/* without a header or a place for the status there is no answer to give */
	if (virtq_copy_out(r, 0, &hdr, sizeof(hdr)) != sizeof(hdr) || !r->in_bytes)
		return -EPROTO;
	io = calloc(1, sizeof(*io) + slots * (sizeof(struct iovec) + sizeof(gpa_t)));
	if (!io)
		return -ENOMEM;
	last = &r->iov[r->nout + r->nin - 1];
	io->dev = d;
	io->q = r->q;
	io->head = r->head;
	io->ndescs = r->ndescs;
	io->status = (uint8_t *)last->iov_base + last->iov_len - 1;
	io->status_gpa = r->in_gpa[r->nin - 1] + last->iov_len - 1;
	io->req.done = blk_done;
	list_init(&io->node);
	if (hdr.type == T_IN || hdr.type == T_OUT) {
		gpa_t *gpa = (gpa_t *)(void *)&io->iov[slots];

		io->niov = blk_data_iov(r, hdr.type == T_IN, io->iov, gpa);
		io->nin_gpa = hdr.type == T_IN ? io->niov : 0;
		/* blk_finish() looks for the addresses right behind the segments in use */
		memmove(&io->iov[io->niov], gpa, io->nin_gpa * sizeof(*gpa));
	}
	ret = blk_prepare(d, io, r, hdr.type, hdr.sector);
	if (ret) {
		blk_finish(io, (uint8_t)(ret - 1));
	} else {
		if (d->pace.iops || d->pace.bps)
			pace_charge(&d->pace, clock_mono_ns(),
				    io->req.op == BLK_READ || io->req.op == BLK_WRITE
					? io->req.len_bytes
					: 0);
		blk_queue_submit(d, io);
	}
	return 0;
}

/* The disk's limit says "not yet": what is on the rings stays there, and the timer comes back. */
static bool blk_paced(struct blk_dev *d)
{
	uint64_t until = pace_until(&d->pace);

	if (!until || until <= clock_mono_ns())
		return false;
	loop_timer_set(&d->paced, until);
	return true;
}

void blk_process(struct blk_dev *d, struct blk_q *bq)
{
	struct virtq *q = &d->vd.vq[bq->index];
	bool paced = false;
	int r = 0;

	if (!bq->active || !d->started || d->resetting || d->quiet || d->quiesced)
		return;
	if (!d->scratch && !(d->scratch = malloc(sizeof(*d->scratch)))) {
		virtio_needs_reset(&d->vd, "out of memory");
		return;
	}
	blk_queue_plug(bq->bq); /* what one kick brings reaches the kernel together */
	do {
		virtq_kicks_off(q);
		while (!(paced = blk_paced(d)) && (r = virtq_pop(q, d->scratch)) > 0) {
			r = blk_one(d, d->scratch);
			if (r < 0)
				break;
		}
	} while (r >= 0 && !paced && virtq_kicks_on(q));
	blk_queue_unplug(bq->bq);
	blk_signal(d);
	if (r < 0) {
		q->broken = true;
		virtio_needs_reset(&d->vd, r == -ENOMEM ? "out of memory" : "malformed request");
	}
}

void blk_pace_over(void *arg)
{
	struct blk_dev *d = arg;

	for (unsigned i = 0; i < d->vd.nqueues; i++)
		blk_process(d, &d->q[i]);
}

void blk_kicked(void *arg, int fd, uint32_t events)
{
	struct blk_q *bq = arg;
	uint64_t n;

	if (read(fd, &n, sizeof(n)) == (ssize_t)sizeof(n))
		blk_process(bq->dev, bq);
}
