/* virtio_pci_dev.c - a virtio device as a PCI function and as a device of the VM: capabilities, the
 * configuration window, state, life.
 *
 * Spec: virtio 1.2, 4.1. Threading: under the machine lock, made and ended on the main thread.
 * Trust: the guest writes the window's offset and length, which are checked; a saved state is input.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "devices/virtio_pci_impl.h"

enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI };

static const char *const virtio_names[] = { [VIRTIO_ID_NET] = "virtio-net",
					    [VIRTIO_ID_BLK] = "virtio-blk",
					    [VIRTIO_ID_CONSOLE] = "virtio-console",
					    [VIRTIO_ID_RNG] = "virtio-rng" };

/* ---- PCI configuration access capability (4.1.4.9): the BAR seen through a window of 4 bytes ----
 */

static uint32_t cfg32(const struct pci_dev *d, uint32_t off)
{
	uint32_t v;

	memcpy(&v, &d->cfg[off], sizeof(v));
	return v;
}

static bool vp_window(struct virtio_pci *vp, uint32_t off, unsigned len, uint32_t *bar_off,
		      uint32_t *size)
{
	uint32_t data = vp->pci_cap + 16u;

	if (!range_overlaps(off, len, data, 4) || vp->pci.cfg[vp->pci_cap + 4u] != VP_BAR)
		return false;
	*bar_off = cfg32(&vp->pci, vp->pci_cap + 8u);
	*size = cfg32(&vp->pci, vp->pci_cap + 12u);
	return (*size == 1 || *size == 2 || *size == 4) && IS_ALIGNED(*bar_off, *size) &&
	       range_within(*bar_off, *size, VP_BAR_BYTES);
}

static void vp_cfg_written(struct pci_dev *d, uint32_t off, unsigned len)
{
	struct virtio_pci *vp = container_of(d, struct virtio_pci, pci);
	uint32_t at, size;

	if (vp_window(vp, off, len, &at, &size)) {
		uint64_t mask = size == 4 ? 0xffffffffu : (1u << (8 * size)) - 1;

		vp_write(vp, at, size, cfg32(d, vp->pci_cap + 16u) & mask);
	}
	/* MSI-X switched on or off: the line's level may no longer count */
	if (d->msix_cap && range_overlaps(off, len, d->msix_cap, 4))
		pci_intx_set(d, atomic_load(&vp->isr) != 0 && !pci_msix_enabled(d));
}

static void vp_cfg_reading(struct pci_dev *d, uint32_t off, unsigned len)
{
	struct virtio_pci *vp = container_of(d, struct virtio_pci, pci);
	uint32_t at, size;

	if (vp_window(vp, off, len, &at, &size)) {
		uint32_t v = (uint32_t)vp_read(vp, at, size);

		memcpy(&d->cfg[vp->pci_cap + 16u], &v, sizeof(v));
	}
}

static int vp_cap(struct virtio_pci *vp, uint8_t type, uint32_t off, uint32_t len, uint32_t extra)
{
	uint8_t size = type == CAP_NOTIFY || type == CAP_PCI ? 20 : 16;
	int at = pci_add_cap(&vp->pci, 0x09, size);
	uint8_t *p;

	if (at < 0)
		return at;
	p = &vp->pci.cfg[at];
	p[2] = size;
	p[3] = type;
	p[4] = VP_BAR;
	memcpy(p + 8, &off, 4);
	memcpy(p + 12, &len, 4);
	if (size == 20)
		memcpy(p + 16, &extra, 4);
	if (type == CAP_PCI) {
		vp->pci_cap = (uint8_t)at;
		vp->pci.wmask[at + 4] = 0xff;
		memset(&vp->pci.wmask[at + 8], 0xff, 12);
	}
	return 0;
}

/* ---- as a device of the VM ---- */

static struct virtio_pci *vp_of(struct device *d)
{
	return container_of(d, struct virtio_pci, dev);
}

static void vp_dev_reset(struct device *d)
{
	struct virtio_pci *vp = vp_of(d);

	vp_reset(vp);
	pci_dev_reset(&vp->pci);
}

#define VP_TAG	     0x4000u
#define VP_TAG_PCI   0x4100u
#define VP_TAG_QUEUE 0x5000u
static void vp_dev_save(struct device *d, struct state_writer *w)
{
	struct virtio_pci *vp = vp_of(d);
	struct virtio_dev *vd = vp->vd;

	vp_resets_finish(vp); /* quiesced: what was under way is through */
	state_put_u64(w, VP_TAG, vp->driver_features);
	state_put_u64(w, VP_TAG + 1, vd->features);
	state_put_u64(w, VP_TAG + 2,
		      vp->device_feature_sel | (uint64_t)vp->driver_feature_sel << 32);
	state_put_u64(w, VP_TAG + 3,
		      vp->queue_sel | (uint64_t)vp->config_vector << 16 |
			  (uint64_t)vp->generation << 32);
	state_put_u64(w, VP_TAG + 4,
		      atomic_load(&vp->status) | (uint64_t)atomic_load(&vp->isr) << 8);
	pci_dev_save(&vp->pci, w, VP_TAG_PCI);
	for (unsigned q = 0; q < vd->nqueues; q++) {
		virtq_save(&vd->vq[q], w, (uint16_t)(VP_TAG_QUEUE + 8 * q));
		state_put_u64(w, (uint16_t)(VP_TAG_QUEUE + 8 * q + 7), vp->queue_vector[q]);
	}
	if (vd->ops->save)
		vd->ops->save(vd, w);
}

static int vp_dev_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct virtio_pci *vp = vp_of(d);
	struct virtio_dev *vd = vp->vd;
	uint64_t v;
	int ret;

	vp_reset(vp);
	vp->driver_features = state_get_u64_or(r, VP_TAG, 0);
	vd->features = state_get_u64_or(r, VP_TAG + 1, 0);
	if ((vd->features | vp->driver_features) & ~vp->offered)
		return err_set(
		    e, EINVAL, "state-mismatch",
		    "device %s: the saved state uses features that this host does not offer",
		    d->id);
	v = state_get_u64_or(r, VP_TAG + 2, 0);
	vp->device_feature_sel = (uint32_t)v;
	vp->driver_feature_sel = (uint32_t)(v >> 32);
	v = state_get_u64_or(r, VP_TAG + 3, 0);
	vp->queue_sel = (uint16_t)v;
	vp->config_vector = vp_vector(vp, v >> 16 & 0xffff);
	vp->generation = (uint8_t)(v >> 32);
	v = state_get_u64_or(r, VP_TAG + 4, 0);
	ret = pci_dev_load(&vp->pci, r, VP_TAG_PCI, e);
	if (ret)
		return ret;
	if (vd->ops->features_set && vd->features)
		vd->ops->features_set(vd, vd->features);
	for (unsigned q = 0; q < vd->nqueues; q++) {
		ret = virtq_load(&vd->vq[q], r, (uint16_t)(VP_TAG_QUEUE + 8 * q), e);
		if (ret)
			return ret;
		if (!vd->vq[q].size || vd->vq[q].size > vd->queue_size_max)
			return err_set(e, EBADMSG, "state-corrupt",
				       "device %s: queue %u has an impossible size", d->id, q);
		vp->queue_vector[q] = vp_vector(
		    vp, state_get_u64_or(r, (uint16_t)(VP_TAG_QUEUE + 8 * q + 7), VP_NO_VECTOR));
	}
	if (vd->ops->load) {
		ret = vd->ops->load(vd, r, e);
		if (ret)
			return ret;
	}
	atomic_store(&vp->isr, (uint8_t)(v >> 8));
	atomic_store(&vp->status, (uint8_t)v);
	for (unsigned q = 0; q < vd->nqueues; q++)
		if (vd->vq[q].ready && vd->ops->queue_enable)
			vd->ops->queue_enable(vd, q);
	if ((uint8_t)v & STATUS_DRIVER_OK) {
		vd->driver_ok = true;
		if (vd->ops->driver_ok)
			vd->ops->driver_ok(vd);
	}
	return 0;
}

static void vp_dev_quiesce(struct device *d, void (*done)(void *arg), void *arg)
{
	struct virtio_dev *vd = vp_of(d)->vd;

	if (vd->ops->quiesce)
		vd->ops->quiesce(vd, done, arg);
	else
		done(arg);
}

static void vp_dev_unquiesce(struct device *d)
{
	struct virtio_dev *vd = vp_of(d)->vd;

	if (vd->ops->unquiesce)
		vd->ops->unquiesce(vd);
}

static unsigned vp_dev_stats(struct device *d, const char **names, uint64_t *values, unsigned max)
{
	struct virtio_dev *vd = vp_of(d)->vd;

	return vd->ops->stats ? vd->ops->stats(vd, names, values, max) : 0;
}

static void vp_free(struct virtio_pci *vp)
{
	struct virtio_dev *vd = vp->vd;

	for (unsigned q = 0; vp->doorbell && q < vd->nqueues; q++) {
		if (vp->doorbell_on)
			vp_doorbell(vp, q, false);
		close_fd(&vp->doorbell[q]);
	}
	free(vp->queue_vector);
	free(vp->doorbell);
	free(vp->doorbell_on);
	free(vp->queue_resetting);
	free(vp->queue_reset_done);
	free(vd->vq);
	vd->vq = NULL;
	vd->transport = NULL;
	vp->dead = true;
	/* nobody raises interrupts or ends resets any more */
	if (!atomic_load(&vp->intx_posted) && !atomic_load(&vp->done_posted))
		free(vp);
}

static void vp_dev_destroy(struct device *d)
{
	struct virtio_pci *vp = vp_of(d);
	struct virtio_dev *vd = vp->vd;

	vd->ops->reset(vd); /* workers let go of the queues */
	for (unsigned q = 0; q < vd->nqueues; q++)
		vp_doorbell(vp, q, false);
	pci_dev_del(&vp->pci);
	vp->notify_base = 0;
	vp_free(vp);
	vd->ops->destroy(vd);
}

struct virtio_dev *virtio_find(struct vm *vm, const char *id, const struct virtio_ops *ops)
{
	struct device *d = vm_device_find(vm, id);
	struct virtio_dev *vd = d && d->ops->reset == vp_dev_reset ? vp_of(d)->vd : NULL;

	return vd && vd->ops == ops ? vd : NULL;
}

int virtio_pci_new(struct vm *vm, struct pci_bus *bus, struct virtio_dev *d, struct err *e)
{
	struct virtio_pci *vp;
	int ret;

	if (!d->nqueues || d->nqueues > VIRTIO_QUEUES_MAX * 2 + 4)
		return err_set(e, EINVAL, "too-many-queues", "device %s: %u queues", d->id,
			       d->nqueues);
	vp = calloc(1, sizeof(*vp));
	if (!vp)
		return err_set(e, ENOMEM, "no-memory", "device %s: out of memory", d->id);
	vp->vd = d;
	d->vm = vm;
	d->transport = vp;
	if (!d->queue_size_max)
		d->queue_size_max = 256;
	vp->queue_vector = calloc(d->nqueues, sizeof(*vp->queue_vector));
	vp->doorbell = calloc(d->nqueues, sizeof(*vp->doorbell));
	vp->doorbell_on = calloc(d->nqueues, sizeof(*vp->doorbell_on));
	vp->queue_resetting = calloc(d->nqueues, sizeof(*vp->queue_resetting));
	vp->queue_reset_done = calloc(d->nqueues, sizeof(*vp->queue_reset_done));
	d->vq = calloc(d->nqueues, sizeof(*d->vq));
	if (!vp->queue_vector || !vp->doorbell || !vp->doorbell_on || !vp->queue_resetting ||
	    !vp->queue_reset_done || !d->vq) {
		d->nqueues = vp->doorbell ? d->nqueues : 0;
		for (unsigned q = 0; vp->doorbell && q < d->nqueues; q++)
			vp->doorbell[q] = -1;
		vp_free(vp);
		return err_set(e, ENOMEM, "no-memory", "device %s: out of memory", d->id);
	}
	for (unsigned q = 0; q < d->nqueues; q++) {
		vp->doorbell[q] = -1;
		vp->queue_vector[q] = VP_NO_VECTOR;
		d->vq[q] = (struct virtq){ .mem = vm->mem,
					   .size = d->queue_size_max,
					   .notify = vp_notify,
					   .notify_arg = vp,
					   .index = q };
	}
	vp->config_vector = VP_NO_VECTOR;
	snprintf(vp->pci.name, sizeof(vp->pci.name), "%s", d->id);
	vp->pci.bar[VP_BAR] = (struct pci_bar){ .size_bytes = VP_BAR_BYTES,
						.mem64 = true,
						.prefetch = true,
						.ops = &vp_bar_ops,
						.opaque = vp,
						.moved = vp_bar_moved };
	vp->pci.cfg_written = vp_cfg_written;
	vp->pci.cfg_reading = vp_cfg_reading;
	vp->pci.vector_changed = d->ops->irq_changed ? vp_vector_changed : NULL;
	ret = pci_dev_add(bus, &vp->pci, -1, VP_VENDOR, (uint16_t)(VP_DEVICE + d->ops->virtio_id),
			  d->ops->pci_class << 8 | 1, e);
	if (!ret)
		ret =
		    pci_msix_init(&vp->pci, d->nqueues + 1, VP_BAR_MSIX, 0, 16 * (d->nqueues + 1));
	if (!ret)
		ret = vp_cap(vp, CAP_COMMON, VP_COMMON, VP_COMMON_LEN, 0);
	if (!ret)
		ret = vp_cap(vp, CAP_ISR, VP_ISR, 1, 0);
	if (!ret)
		ret = vp_cap(vp, CAP_DEVICE, VP_CONFIG, 0x1000, 0);
	if (!ret)
		ret =
		    vp_cap(vp, CAP_NOTIFY, VP_NOTIFY, VP_NOTIFY_STEP * d->nqueues, VP_NOTIFY_STEP);
	if (!ret)
		ret = vp_cap(vp, CAP_PCI, 0, 0, 0);
	if (ret) {
		pci_dev_del(&vp->pci);
		vp->notify_base = 0;
		vp_free(vp);
		return e && e->num ? ret
				   : err_set(e, -ret, "no-pci-slot",
					     "device %s: cannot be placed on the PCI bus", d->id);
	}
	vp->offered = vp_offered(vp);
	vp->dev_ops = (struct device_ops){ .name = virtio_names[d->ops->virtio_id],
					   .version = 1,
					   .reset = vp_dev_reset,
					   .save = vp_dev_save,
					   .load = vp_dev_load,
					   .quiesce = vp_dev_quiesce,
					   .unquiesce = vp_dev_unquiesce,
					   .destroy = vp_dev_destroy,
					   .stats = vp_dev_stats };
	vm_device_add(vm, &vp->dev, &vp->dev_ops, d->id);
	return 0;
}
