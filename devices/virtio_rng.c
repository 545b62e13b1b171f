/* virtio_rng.c - the virtio entropy device (virtio 1.2, 5.4): buffers filled from getrandom(2).
 *
 * At most 64 KiB a request and 64 requests a kick, so that a greedy guest cannot hold the machine
 * lock; what remains is taken up by the next kick or by a post to the main loop.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "common/overflow.h"
#include "devices/virtio.h"
#include "devices/virtio_devices.h"
#include "hypervisor-core/vm.h"

#define RNG_REQUEST_MAX 65536u
#define RNG_BATCH	64u

struct rng {
	struct virtio_dev vd; /* first */
	uint64_t bytes;
	struct vm_timer again;
};

static struct rng *rng_of(struct virtio_dev *d)
{
	return container_of(d, struct rng, vd);
}

/* Straight into the guest's buffers; getrandom() of up to 256 bytes never fails once the pool is
 * up. */
static uint32_t rng_fill(const struct virtq_req *r)
{
	uint32_t done = 0;

	for (unsigned i = 0; i < r->nin; i++) {
		const struct iovec *v = &r->iov[r->nout + i];

		for (size_t off = 0; off < v->iov_len && done < RNG_REQUEST_MAX;) {
			size_t n = MIN(MIN(v->iov_len - off, 256u), RNG_REQUEST_MAX - done);
			ssize_t got = getrandom((uint8_t *)v->iov_base + off, n, 0);

			if (got <= 0)
				return done;
			off += (size_t)got;
			done += (uint32_t)got;
		}
	}
	return done;
}

static void rng_kick(struct virtio_dev *vd, unsigned q)
{
	struct rng *d = rng_of(vd);
	struct virtq *vq = &vd->vq[0];
	struct virtq_req *r = malloc(sizeof(*r));
	int ret = 0;

	if (!r) {
		virtio_needs_reset(vd, "out of memory");
		return;
	}
	for (unsigned n = 0; n < RNG_BATCH && (ret = virtq_pop(vq, r)) > 0; n++) {
		uint32_t done = rng_fill(r);

		d->bytes += done;
		virtq_push(vq, r, done);
	}
	free(r);
	virtq_interrupt(vq);
	if (ret < 0)
		virtio_needs_reset(vd, "malformed request");
	else if (virtq_kicks_on(vq))
		vm_timer_set(&d->again, vm_now_ns(vd->vm) + 1);
}

static void rng_again(void *arg)
{
	struct rng *d = arg;

	rng_kick(&d->vd, 0);
}

static uint64_t rng_features(struct virtio_dev *vd)
{
	return 0;
}

static void rng_reset(struct virtio_dev *vd)
{
	vm_timer_stop(&rng_of(vd)->again);
}

static void rng_driver_ok(struct virtio_dev *vd)
{
	if (vd->vq[0].ready)
		rng_kick(vd, 0);
}

static void rng_destroy(struct virtio_dev *vd)
{
	free(rng_of(vd));
}

static unsigned rng_stats(struct virtio_dev *vd, const char **names, uint64_t *values, unsigned max)
{
	if (!max)
		return 0;
	names[0] = "bytes";
	values[0] = rng_of(vd)->bytes;
	return 1;
}

static const struct virtio_ops rng_ops = {
	.virtio_id = VIRTIO_ID_RNG,
	.pci_class = 0x00ff00,
	.features = rng_features,
	.kick = rng_kick,
	.driver_ok = rng_driver_ok,
	.reset = rng_reset,
	.destroy = rng_destroy,
	.stats = rng_stats,
};

int virtio_rng_new(struct vm *vm, struct pci_bus *bus, struct err *e)
{
	struct rng *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return err_set(e, ENOMEM, "no-memory", "device rng: out of memory");
	d->vd.ops = &rng_ops;
	snprintf(d->vd.id, sizeof(d->vd.id), "rng0");
	d->vd.nqueues = 1;
	d->vd.queue_size_max = 64;
	vm_timer_init(vm, &d->again, rng_again, d);
	r = virtio_pci_new(vm, bus, &d->vd, e);
	if (r < 0)
		free(d);
	return r;
}
