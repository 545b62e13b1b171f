/* virtio_blk.c - the virtio block device (virtio 1.2, 5.2): many queues, flush, discard,
 * write-zeroes, serial.
 *
 * Kicks arrive as doorbells on the VM's I/O thread; requests go to the block layer from there and
 * complete there (virtio_blk_io.c), so that one thread owns every queue and no lock is held.
 * A driver's reset of the disk or of one queue does not wait for I/O: nothing new is taken, and the
 * last completion reports the reset as done. A resize raises the configuration interrupt.
 * Threading: here under the machine lock; what touches queues is called on the I/O thread. Trust: a
 * saved state is input.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/overflow.h"
#include "common/units.h"
#include "devices/virtio_blk_impl.h"

enum {
	F_SEG_MAX = 2,
	F_RO = 5,
	F_BLK_SIZE = 6,
	F_FLUSH = 9,
	F_TOPOLOGY = 10,
	F_MQ = 12,
	F_DISCARD = 13,
	F_WRITE_ZEROES = 14
};

/* struct virtio_blk_config (5.2.4), little-endian as the host is */
struct blk_config {
	uint64_t capacity;
	uint32_t size_max, seg_max;
	uint16_t cylinders;
	uint8_t heads, sectors;
	uint32_t blk_size;
	uint8_t physical_block_exp, alignment_offset;
	uint16_t min_io_size;
	uint32_t opt_io_size;
	uint8_t writeback, unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));

static struct blk_dev *blk_of(struct virtio_dev *d)
{
	return container_of(d, struct blk_dev, vd);
}

/* ---- configuration, under the machine lock ---- */

static uint64_t blk_features(struct virtio_dev *vd)
{
	const struct blk_dev *d = blk_of(vd);
	uint64_t f = 1ull << F_SEG_MAX | 1ull << F_BLK_SIZE | 1ull << F_FLUSH | 1ull << F_TOPOLOGY;

	if (vd->nqueues > 1)
		f |= 1ull << F_MQ;
	if (d->read_only)
		return f | 1ull << F_RO;
	if (d->info.has_discard)
		f |= 1ull << F_DISCARD;
	if (d->info.has_write_zeroes)
		f |= 1ull << F_WRITE_ZEROES;
	return f;
}

static void blk_config_read(struct virtio_dev *vd, uint32_t off, void *buf, uint32_t len)
{
	const struct blk_dev *d = blk_of(vd);
	struct blk_config c = {
		.capacity = d->capacity_sectors,
		.seg_max = 126, /* what drivers expect of a queue of 128 and more */
		.blk_size = d->info.block_size,
		.physical_block_exp = 3, /* 4 KiB */
		.opt_io_size = 1,
		.num_queues = (uint16_t)vd->nqueues,
		.max_discard_sectors = BLK_DISCARD_MAX,
		.max_discard_seg = 1,
		.discard_sector_alignment = 8,
		.max_write_zeroes_sectors = BLK_DISCARD_MAX,
		.max_write_zeroes_seg = 1,
		.write_zeroes_may_unmap = 1,
	};

	if (range_within(off, len, sizeof(c)))
		memcpy(buf, (const uint8_t *)&c + off, len);
}

struct blk_queue_call {
	struct blk_q *bq;
	int fd;
	int result;
};

static void blk_queue_attach(void *arg)
{
	struct blk_queue_call *c = arg;
	struct blk_q *bq = c->bq;
	struct err e = { 0 };

	if (!bq->bq)
		bq->bq = blk_queue_new(bq->dev->bd, iothread_loop(bq->dev->io), &e);
	c->result = bq->bq ? 0 : -ENOMEM;
	if (!c->result && bq->w.fd < 0)
		c->result =
		    loop_fd_add(iothread_loop(bq->dev->io), &bq->w, c->fd, EPOLLIN, blk_kicked, bq);
	bq->active = !c->result;
}

static void blk_queue_enable(struct virtio_dev *vd, unsigned q)
{
	struct blk_dev *d = blk_of(vd);
	struct blk_queue_call c = { .bq = &d->q[q], .fd = virtio_queue_doorbell_fd(vd, q) };

	if (c.fd < 0) {
		virtio_needs_reset(vd, "no descriptor for a doorbell");
		return;
	}
	iothread_call(d->io, blk_queue_attach, &c);
	if (c.result < 0)
		virtio_needs_reset(vd, "no memory for a queue");
}

/* DRIVER_OK: what was put on the rings before, and after a restore what was held at the save. */
static void blk_start(void *arg)
{
	struct blk_dev *d = arg;
	bool broken = false;

	d->started = true;
	if (d->nagain && !d->scratch)
		d->scratch = malloc(sizeof(*d->scratch));
	for (unsigned i = 0; i < d->nagain && d->scratch; i++) {
		struct blk_q *bq = &d->q[d->again[i] >> 16];

		broken |=
		    virtq_take(&d->vd.vq[bq->index], (uint16_t)d->again[i], d->scratch) <= 0 ||
		    blk_one(d, d->scratch) < 0;
	}
	if (broken || (d->nagain && !d->scratch))
		virtio_needs_reset(&d->vd, "requests of a saved state cannot be taken up again");
	free(d->again);
	d->again = NULL;
	d->nagain = 0;
	for (unsigned i = 0; i < d->vd.nqueues; i++)
		blk_process(d, &d->q[i]);
}

static void blk_driver_ok(struct virtio_dev *vd)
{
	iothread_call(blk_of(vd)->io, blk_start, blk_of(vd));
}

static void blk_save(struct virtio_dev *vd, struct state_writer *w)
{
	struct blk_dev *d = blk_of(vd);
	unsigned n = 0;

	/* quiesced: the I/O thread touches nothing of this now but its retry timer, which waits for
	 * RUNNING */
	list_for_each (p, &d->held)
		n++;
	if (!n && !d->nagain)
		return;
	uint32_t *heads = calloc(n + d->nagain, sizeof(*heads));

	if (!heads) {
		w->error = -ENOMEM;
		return;
	}
	n = 0;
	list_for_each (p, &d->held) {
		const struct blk_io *io = container_of(p, struct blk_io, node);

		heads[n++] = io->q->index << 16 | io->head;
	}
	for (unsigned i = 0; i < d->nagain; i++)
		heads[n++] = d->again[i];
	state_put_bytes(w, 1, heads, n * sizeof(*heads));
	free(heads);
}

static int blk_load(struct virtio_dev *vd, const struct state_reader *r, struct err *e)
{
	struct blk_dev *d = blk_of(vd);
	const void *p;
	size_t len;

	if (state_get_span(r, 1, &p, &len) < 0)
		return 0;
	if (len % sizeof(uint32_t) ||
	    len / sizeof(uint32_t) > vd->nqueues * (size_t)vd->queue_size_max)
		return err_set(e, EBADMSG, "state-corrupt",
			       "disk %s: its list of waiting requests makes no sense", vd->id);
	free(d->again);
	d->nagain = 0;
	d->again = malloc(len ? len : 1);
	if (!d->again)
		return err_set(e, ENOMEM, "no-memory", "disk %s: out of memory", vd->id);
	memcpy(d->again, p, len);
	for (unsigned i = 0; i < len / sizeof(uint32_t); i++)
		if (d->again[i] >> 16 >= vd->nqueues || !vd->vq[d->again[i] >> 16].ready)
			return err_set(e, EBADMSG, "state-corrupt",
				       "disk %s: a waiting request is of no queue", vd->id);
	d->nagain = (unsigned)(len / sizeof(uint32_t));
	return 0;
}

/* Requests of @bq (NULL: any) that wait for a retry go unanswered. */
static void blk_held_forget(struct blk_dev *d, const struct blk_q *bq)
{
	list_for_each_safe (n, &d->held) {
		struct blk_io *io = container_of(n, struct blk_io, node);

		if (bq && &d->q[io->q->index] != bq)
			continue;
		list_del(n);
		free(io);
	}
}

static void blk_detach(struct blk_dev *d)
{
	d->resetting = true;
	d->started = false;
	free(d->again);
	d->again = NULL;
	d->nagain = 0;
	loop_timer_stop(&d->retry);
	loop_timer_stop(&d->paced);
	d->retry_armed = false;
	for (unsigned i = 0; i < d->vd.nqueues; i++) {
		loop_fd_del(&d->q[i].w);
		d->q[i].active = d->q[i].resetting = false;
	}
	/* what waits for a retry has nobody left to answer to */
	blk_held_forget(d, NULL);
}

/* Stop using the queues: nothing in flight afterwards. May wait for the disk. */
static void blk_stop_io(void *arg)
{
	struct blk_dev *d = arg;

	blk_detach(d);
	d->reset_told = false;
	d->draining = true;
	blk_drained(d);
}

static void blk_reset(struct virtio_dev *vd)
{
	struct blk_dev *d = blk_of(vd);

	if (!d->io)
		return;
	iothread_call(d->io, blk_stop_io, d);
	pthread_mutex_lock(&d->drain_lock);
	while (d->draining)
		pthread_cond_wait(&d->drain_cond, &d->drain_lock);
	pthread_mutex_unlock(&d->drain_lock);
}

struct blk_reset_call {
	struct blk_dev *d;
	unsigned q;
	bool done;
};

static void blk_reset_start_io(void *arg)
{
	struct blk_reset_call *c = arg;

	blk_detach(c->d);
	c->done = !c->d->inflight;
	c->d->reset_told = c->d->resetting = !c->done;
}

static bool blk_reset_start(struct virtio_dev *vd)
{
	struct blk_reset_call c = { .d = blk_of(vd) };

	iothread_call(c.d->io, blk_reset_start_io, &c);
	return c.done;
}

static void blk_queue_reset_io(void *arg)
{
	struct blk_reset_call *c = arg;
	struct blk_q *bq = &c->d->q[c->q];

	loop_fd_del(&bq->w);
	bq->active = false;
	blk_held_forget(c->d, bq);
	c->done = !bq->inflight;
	bq->resetting = !c->done;
}

static bool blk_queue_reset(struct virtio_dev *vd, unsigned q)
{
	struct blk_reset_call c = { .d = blk_of(vd), .q = q };

	iothread_call(c.d->io, blk_queue_reset_io, &c);
	return c.done;
}

/* quiesce: I/O in flight ends, new kicks wait. Held requests stay held: a save writes down their
 * heads. */
struct blk_quiesce_call {
	struct blk_dev *d;
	void (*done)(void *);
	void *arg;
};

static void blk_quiesce_io(void *arg)
{
	struct blk_quiesce_call *c = arg;
	struct blk_dev *d = c->d;

	d->quiesced = c->done;
	d->quiesced_arg = c->arg;
	for (unsigned i = 0; i < d->vd.nqueues; i++)
		loop_fd_mod(&d->q[i].w, 0);
	blk_drained(d);
}

static void blk_quiesce(struct virtio_dev *vd, void (*done)(void *), void *arg)
{
	struct blk_quiesce_call c = { blk_of(vd), done, arg };

	iothread_call(c.d->io, blk_quiesce_io, &c);
}

/* The VM runs on: after a quiesce, or after the pause that an error caused. */
static void blk_unquiesce_io(void *arg)
{
	struct blk_dev *d = arg;

	d->quiet = false;
	if (d->retry_armed) {
		loop_timer_stop(&d->retry);
		blk_retry(d);
	}
	for (unsigned i = 0; i < d->vd.nqueues; i++) {
		if (!d->q[i].active)
			continue;
		loop_fd_mod(&d->q[i].w, EPOLLIN);
		blk_process(d, &d->q[i]);
	}
}

static void blk_unquiesce(struct virtio_dev *vd)
{
	iothread_call(blk_of(vd)->io, blk_unquiesce_io, blk_of(vd));
}

static void blk_free_io(void *arg)
{
	struct blk_dev *d = arg;

	for (unsigned i = 0; i < BLK_QUEUES_MAX; i++)
		if (d->q[i].bq)
			blk_queue_free(d->q[i].bq);
}

static void blk_destroy(struct virtio_dev *vd)
{
	struct blk_dev *d = blk_of(vd);
	int r;

	if (d->io) {
		iothread_call(d->io, blk_free_io, d);
		iothread_put(d->io);
	}
	r = d->bd ? blk_close(d->bd) : 0;
	if (r < 0)
		log_error("disk %s: closing: %s", vd->id, strerror(-r));
	pthread_mutex_destroy(&d->drain_lock);
	pthread_cond_destroy(&d->drain_cond);
	free(d->scratch);
	free(d->again);
	free(d);
}

static void blk_kick(struct virtio_dev *vd, unsigned q)
{
	/* every enabled queue has a doorbell; a kick before that has nothing to look at */
}

static unsigned blk_stats(struct virtio_dev *vd, const char **names, uint64_t *values, unsigned max)
{
	struct blk_dev *d = blk_of(vd);
	const struct {
		const char *name;
		_Atomic uint64_t *v;
	} all[] = { { "reads", &d->reads },	      { "writes", &d->writes },
		    { "flushes", &d->flushes },	      { "discards", &d->discards },
		    { "read_bytes", &d->read_bytes }, { "written_bytes", &d->written_bytes },
		    { "errors", &d->errors } };
	unsigned n = 0;

	for (; n < ARRAY_SIZE(all) && n < max; n++) {
		names[n] = all[n].name;
		values[n] = atomic_load_explicit(all[n].v, memory_order_relaxed);
	}
	return n;
}

static const struct virtio_ops blk_ops = {
	.virtio_id = VIRTIO_ID_BLK,
	.pci_class = 0x010000, /* SCSI storage, as drivers expect */
	.features = blk_features,
	.config_read = blk_config_read,
	.queue_enable = blk_queue_enable,
	.kick = blk_kick,
	.driver_ok = blk_driver_ok,
	.reset = blk_reset,
	.reset_start = blk_reset_start,
	.queue_reset = blk_queue_reset,
	.save = blk_save,
	.load = blk_load,
	.quiesce = blk_quiesce,
	.unquiesce = blk_unquiesce,
	.destroy = blk_destroy,
	.stats = blk_stats,
};

int virtio_blk_resize(struct vm *vm, const char *name, uint64_t size_bytes, struct err *e)
{
	struct virtio_dev *vd = virtio_find(vm, name, &blk_ops);
	struct blk_info info;
	struct blk_dev *d;
	int r;

	if (!vd)
		return err_set(e, ENOENT, "disk-not-found", "guest %s has no disk \"%s\"", vm->name,
			       name);
	d = blk_of(vd);
	if (size_bytes < atomic_load(&d->capacity_sectors) * BLK_SECTOR)
		return err_set(e, EINVAL, "would-shrink",
			       "disk %s: %llu bytes would cut it off while the guest uses it", name,
			       (unsigned long long)size_bytes);
	r = d->read_only ? err_set(e, EROFS, "disk-read-only", "disk %s is read-only", name)
			 : blk_resize(d->bd, size_bytes, e);
	if (r < 0)
		return r;
	blk_info(d->bd, &info);
	vm_lock(vm);
	atomic_store(&d->capacity_sectors, info.size_bytes / BLK_SECTOR);
	virtio_config_changed(vd);
	vm_unlock(vm);
	return 0;
}

struct blockdev *virtio_blk_backend(struct vm *vm, const char *name)
{
	struct virtio_dev *vd = virtio_find(vm, name, &blk_ops);

	return vd ? blk_of(vd)->bd : NULL;
}

struct blk_limit_call {
	struct blk_dev *d;
	uint64_t iops, bps;
};

static void blk_limit_io(void *arg)
{
	struct blk_limit_call *c = arg;

	pace_set(&c->d->pace, c->iops, c->bps);
	loop_timer_stop(&c->d->paced);
	blk_pace_over(c->d);
}

int virtio_blk_limit(struct vm *vm, const char *name, uint64_t iops, uint64_t bps, struct err *e)
{
	unsigned found = 0;

	list_for_each (n, &vm->devices) {
		const struct device *dev = container_of(n, struct device, node);
		struct virtio_dev *vd = virtio_find(vm, dev->id, &blk_ops);
		struct blk_limit_call c = { .iops = iops, .bps = bps };

		if (!vd || (*name && strcmp(dev->id, name)))
			continue;
		c.d = blk_of(vd);
		iothread_call(c.d->io, blk_limit_io, &c);
		found++;
	}
	return found || !*name ? 0
			       : err_set(e, ENOENT, "disk-not-found", "guest %s has no disk \"%s\"",
					 vm->name, name);
}

int virtio_blk_new(struct vm *vm, struct pci_bus *bus, const struct mc_disk *disk, struct err *e)
{
	struct blk_dev *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return err_set(e, ENOMEM, "no-memory", "disk %s: out of memory", disk->name);
	d->vd.ops = &blk_ops;
	d->vd.vm = vm;
	snprintf(d->vd.id, sizeof(d->vd.id), "%s", disk->name);
	snprintf(d->serial, sizeof(d->serial), "%.20s", *disk->serial ? disk->serial : disk->name);
	d->vd.nqueues = disk->queues ? MIN(disk->queues, BLK_QUEUES_MAX)
				     : MIN(MAX(vm->nvcpus, 1u), BLK_QUEUES_MAX);
	d->vd.queue_size_max = 256;
	d->read_only = disk->read_only;
	d->on_error = disk->on_error;
	blk_info(disk->bd, &d->info);
	d->read_only |= d->info.read_only;
	atomic_store(&d->capacity_sectors, d->info.size_bytes / BLK_SECTOR);
	list_init(&d->held);
	pthread_mutex_init(&d->drain_lock, NULL);
	pthread_cond_init(&d->drain_cond, NULL);
	for (unsigned i = 0; i < BLK_QUEUES_MAX; i++) {
		d->q[i] = (struct blk_q){ .dev = d, .index = i };
		d->q[i].w.fd = -1;
	}
	d->io = iothread_get(vm, e);
	if (!d->io) {
		blk_destroy(&d->vd);
		return e && e->num ? -e->num : -ENOMEM;
	}
	loop_timer_init(iothread_loop(d->io), &d->retry, blk_retry, d);
	loop_timer_init(iothread_loop(d->io), &d->paced, blk_pace_over, d);
	r = virtio_pci_new(vm, bus, &d->vd, e);
	if (r < 0) {
		blk_destroy(&d->vd);
		return r;
	}
	d->bd = disk->bd;
	return 0;
}
