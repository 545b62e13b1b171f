/* virtio_pci.c - the modern PCI transport (virtio 1.2, 4.1): capabilities, common configuration,
 * interrupts, doorbells.
 *
 * BAR 4 (memory, 64-bit) holds common (0), ISR (0x1000), device (0x2000) and notify (0x3000); BAR 1
 * the MSI-X table. No legacy interface. A queue's kick is a doorbell (eventfd) where the device
 * asked for one, else a call under the machine lock.
 * Threading: configuration under the machine lock; queue interrupts from any thread (MSI-X
 * directly; INTx by a post to the main loop, because the line needs the machine lock and an I/O
 * thread must not take it).
 * A driver's reset of a device, or of one queue (VIRTIO_F_RING_RESET), does not wait for the disk:
 * the register reads as "not yet" until the device has let go of the rings, and the vCPUs go on.
 * Trust: every register write is the guest's; a wrong sequence sets NEEDS_RESET or is ignored,
 * never trusted.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/log.h"
#include "common/overflow.h"
#include "devices/virtio_pci_impl.h"

/* struct virtio_pci_common_cfg (4.1.4.3) */
enum {
	C_DEVICE_FEATURE_SEL = 0x00,
	C_DEVICE_FEATURE = 0x04,
	C_DRIVER_FEATURE_SEL = 0x08,
	C_DRIVER_FEATURE = 0x0c,
	C_CONFIG_VECTOR = 0x10,
	C_NUM_QUEUES = 0x12,
	C_STATUS = 0x14,
	C_GENERATION = 0x15,
	C_QUEUE_SEL = 0x16,
	C_QUEUE_SIZE = 0x18,
	C_QUEUE_VECTOR = 0x1a,
	C_QUEUE_ENABLE = 0x1c,
	C_QUEUE_NOTIFY_OFF = 0x1e,
	C_QUEUE_DESC = 0x20,
	C_QUEUE_DRIVER = 0x28,
	C_QUEUE_DEVICE = 0x30,
	C_QUEUE_NOTIFY_DATA = 0x38,
	C_QUEUE_RESET = 0x3a,
	C_END = VP_COMMON_LEN,
};

/* ---- interrupts ---- */

/* A post for a device that is gone frees it, if it is the last. */
static void vp_dead_posted(struct virtio_pci *vp, _Atomic bool *post)
{
	atomic_store(post, false);
	if (!atomic_load(&vp->intx_posted) && !atomic_load(&vp->done_posted))
		free(vp);
}

static void vp_intx_update(void *arg)
{
	struct virtio_pci *vp = arg;

	if (vp->dead) {
		vp_dead_posted(vp, &vp->intx_posted);
		return;
	}
	atomic_store(&vp->intx_posted, false);
	vm_lock(vp->dev.vm);
	pci_intx_set(&vp->pci, atomic_load(&vp->isr) != 0 && !pci_msix_enabled(&vp->pci));
	vm_unlock(vp->dev.vm);
}

static void vp_interrupt(struct virtio_pci *vp, uint16_t vector, uint8_t isr)
{
	if (pci_msix_enabled(&vp->pci)) {
		if (vector != VP_NO_VECTOR)
			pci_msix_fire(&vp->pci, vector);
		return;
	}
	atomic_fetch_or(&vp->isr, isr);
	if (!atomic_exchange(&vp->intx_posted, true) &&
	    loop_post(vp->dev.vm->loop, vp_intx_update, vp) < 0)
		atomic_store(&vp->intx_posted, false);
}

void vp_notify(void *arg, struct virtq *q)
{
	struct virtio_pci *vp = arg;

	vp_interrupt(vp, vp->queue_vector[q->index], 1);
}

void virtio_config_changed(struct virtio_dev *d)
{
	struct virtio_pci *vp = d->transport;

	vp->generation++;
	if (atomic_load(&vp->status) & STATUS_DRIVER_OK)
		vp_interrupt(vp, vp->config_vector, 2);
}

void virtio_needs_reset(struct virtio_dev *d, const char *why)
{
	struct virtio_pci *vp = d->transport;

	if (atomic_fetch_or(&vp->status, STATUS_NEEDS_RESET) & STATUS_NEEDS_RESET)
		return;
	log_warn("%s: the driver broke the protocol (%s); the device waits for a reset", d->id,
		 why);
	if (atomic_load(&vp->status) & STATUS_DRIVER_OK)
		vp_interrupt(vp, vp->config_vector, 2);
}

/* ---- doorbells ---- */

void vp_doorbell(struct virtio_pci *vp, unsigned q, bool on)
{
	uint64_t addr = vp->notify_base + q * VP_NOTIFY_STEP;
	struct bus *bus;

	on = on && vp->notify_base && vp->doorbell[q] >= 0;
	if (!vp->dev.vm || on == vp->doorbell_on[q]) /* not yet on the bus; nothing changes */
		return;
	bus = vp->dev.vm->mmio;
	if (!on) {
		bus_doorbell_del(bus, addr, 0, false, 0, vp->doorbell[q]);
		vp->doorbell_on[q] = false;
	} else if (bus_doorbell_add(bus, addr, 0, false, 0, vp->doorbell[q]) == 0) {
		vp->doorbell_on[q] = true;
	}
}

void vp_bar_moved(struct pci_dev *d, unsigned bar)
{
	struct virtio_pci *vp = container_of(d, struct virtio_pci, pci);

	for (unsigned q = 0; q < vp->vd->nqueues; q++)
		vp_doorbell(vp, q, false);
	vp->notify_base = d->bar[VP_BAR].mapped ? d->bar[VP_BAR].addr + VP_NOTIFY : 0;
	for (unsigned q = 0; q < vp->vd->nqueues; q++)
		vp_doorbell(vp, q, true);
}

int virtio_queue_doorbell_fd(struct virtio_dev *d, unsigned q)
{
	struct virtio_pci *vp = d->transport;

	if (vp->doorbell[q] < 0) {
		vp->doorbell[q] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		vp_doorbell(vp, q, true);
	}
	return vp->doorbell[q];
}

int virtio_queue_irq_fd(struct virtio_dev *d, unsigned q)
{
	const struct virtio_pci *vp = d->transport;

	return pci_msix_fd(&vp->pci, vp->queue_vector[q]);
}

void vp_vector_changed(struct pci_dev *d, unsigned v)
{
	struct virtio_pci *vp = container_of(d, struct virtio_pci, pci);

	for (unsigned q = 0; q < vp->vd->nqueues; q++)
		if (vp->queue_vector[q] == v)
			vp->vd->ops->irq_changed(vp->vd, q);
}

static void vp_kick(struct virtio_pci *vp, unsigned q)
{
	if (q >= vp->vd->nqueues || !(atomic_load(&vp->status) & STATUS_DRIVER_OK) ||
	    !vp->vd->vq[q].ready || vp->resetting || vp->queue_resetting[q])
		return;
	if (vp->doorbell[q] >= 0) {
		uint64_t one = 1;

		/* the doorbell could not be registered: ring it ourselves. EAGAIN: it rings already
		 */
		if (write(vp->doorbell[q], &one, sizeof(one)) < 0 && errno != EAGAIN)
			log_warn("%s: doorbell: %s", vp->vd->id, strerror(errno));
		return;
	}
	vp->vd->ops->kick(vp->vd, q);
}

/* ---- reset and status ---- */

static void vp_queue_forget(struct virtio_pci *vp, unsigned q)
{
	virtq_reset(&vp->vd->vq[q]);
	vp->vd->vq[q].size = vp->vd->queue_size_max;
	vp->queue_vector[q] = VP_NO_VECTOR;
	vp->queue_resetting[q] = false;
	atomic_store(&vp->queue_reset_done[q], false);
}

/* The device has let go of its rings: back to what it was at power-on. */
static void vp_forget(struct virtio_pci *vp)
{
	struct virtio_dev *vd = vp->vd;

	vp->resetting = false;
	atomic_store(&vp->reset_done, false);
	vd->features = 0;
	vd->driver_ok = false;
	for (unsigned q = 0; q < vd->nqueues; q++)
		vp_queue_forget(vp, q);
	vp->driver_features = 0;
	vp->device_feature_sel = vp->driver_feature_sel = 0;
	vp->queue_sel = 0;
	vp->config_vector = VP_NO_VECTOR;
	vp->generation = 0;
	atomic_store(&vp->status, 0);
	atomic_store(&vp->isr, 0);
	pci_intx_set(&vp->pci, false);
}

/* Reset now, vCPUs parked. */
void vp_reset(struct virtio_pci *vp)
{
	if (vp->vd->ops->reset)
		vp->vd->ops->reset(vp->vd);
	vp_forget(vp);
}

/* Take up what devices reported as done. Machine lock held. */
void vp_resets_finish(struct virtio_pci *vp)
{
	if (vp->resetting && atomic_load(&vp->reset_done)) {
		vp_forget(vp);
		return;
	}
	for (unsigned q = 0; q < vp->vd->nqueues; q++)
		if (vp->queue_resetting[q] && atomic_load(&vp->queue_reset_done[q]))
			vp_queue_forget(vp, q);
}

static void vp_resets_posted(void *arg)
{
	struct virtio_pci *vp = arg;

	if (vp->dead) {
		vp_dead_posted(vp, &vp->done_posted);
		return;
	}
	atomic_store(&vp->done_posted, false);
	vm_lock(vp->dev.vm);
	vp_resets_finish(vp);
	vm_unlock(vp->dev.vm);
}

/* Where the post fails the driver's next look at the register finds the flag. */
static void vp_resets_post(struct virtio_pci *vp)
{
	if (!atomic_exchange(&vp->done_posted, true) &&
	    loop_post(vp->dev.vm->loop, vp_resets_posted, vp) < 0)
		atomic_store(&vp->done_posted, false);
}

void virtio_reset_done(struct virtio_dev *d)
{
	struct virtio_pci *vp = d->transport;

	atomic_store(&vp->reset_done, true);
	vp_resets_post(vp);
}

void virtio_queue_reset_done(struct virtio_dev *d, unsigned q)
{
	struct virtio_pci *vp = d->transport;

	atomic_store(&vp->queue_reset_done[q], true);
	vp_resets_post(vp);
}

/* The driver's reset: others run, so the disk is not waited for. Status reads as before until it is
 * done (2.1.2, 4.1.4.3.2: the driver waits for 0). */
static void vp_reset_asked(struct virtio_pci *vp)
{
	struct virtio_dev *vd = vp->vd;

	if (!vd->ops->reset_start) {
		vp_reset(vp);
		return;
	}
	vp->resetting = true;
	atomic_store(&vp->reset_done, false);
	if (vd->ops->reset_start(vd))
		vp_forget(vp);
}

static void vp_queue_reset_asked(struct virtio_pci *vp, unsigned q)
{
	struct virtio_dev *vd = vp->vd;

	if (!(vd->features >> F_RING_RESET & 1) || !vd->vq[q].ready || vp->queue_resetting[q])
		return;
	vp->queue_resetting[q] = true;
	atomic_store(&vp->queue_reset_done[q], false);
	if (vd->ops->queue_reset(vd, q))
		vp_queue_forget(vp, q);
}

static void vp_status_write(struct virtio_pci *vp, uint8_t val)
{
	struct virtio_dev *vd = vp->vd;
	uint8_t old = atomic_load(&vp->status), fresh;

	if (!val) {
		vp_reset_asked(vp);
		return;
	}
	/* bits are only ever added; NEEDS_RESET is ours */
	fresh = (uint8_t)(val & ~old & ~STATUS_NEEDS_RESET);
	if (fresh & STATUS_FEATURES_OK) {
		bool ok = !(vp->driver_features & ~vp->offered) &&
			  (vp->driver_features >> F_VERSION_1 & 1);

		if (!ok) {
			/* the driver reads it back and gives up */
			fresh &= (uint8_t)~STATUS_FEATURES_OK;
		} else {
			vd->features = vp->driver_features;
			if (vd->ops->features_set)
				vd->ops->features_set(vd, vd->features);
		}
	}
	if ((fresh & STATUS_DRIVER_OK) && !((old | fresh) & STATUS_FEATURES_OK)) {
		virtio_needs_reset(vd, "DRIVER_OK without FEATURES_OK");
		return;
	}
	atomic_fetch_or(&vp->status, fresh);
	if (fresh & STATUS_DRIVER_OK) {
		vd->driver_ok = true;
		if (vd->ops->driver_ok)
			vd->ops->driver_ok(vd);
	}
}

static void vp_queue_enable(struct virtio_pci *vp, unsigned q)
{
	struct virtio_dev *vd = vp->vd;
	struct virtq *vq = &vd->vq[q];
	struct err e = { 0 };

	if (vq->ready)
		return;
	if (!(atomic_load(&vp->status) & STATUS_FEATURES_OK)) {
		virtio_needs_reset(vd, "queue enabled before FEATURES_OK");
		return;
	}
	vq->event_idx = vd->features >> F_EVENT_IDX & 1;
	if (virtq_enable(vq, &e) < 0) {
		virtio_needs_reset(vd, e.detail);
		return;
	}
	if (vd->ops->queue_enable)
		vd->ops->queue_enable(vd, q);
}

/* ---- common configuration ---- */

uint64_t vp_offered(const struct virtio_pci *vp)
{
	return vp->vd->ops->features(vp->vd) | 1ull << F_VERSION_1 | 1ull << F_INDIRECT |
	       1ull << F_EVENT_IDX | (vp->vd->ops->queue_reset ? 1ull << F_RING_RESET : 0);
}

uint16_t vp_vector(const struct virtio_pci *vp, uint64_t val)
{
	return val < vp->pci.nvectors ? (uint16_t)val : VP_NO_VECTOR;
}

static uint64_t vp_common_field(struct virtio_pci *vp, uint64_t off)
{
	struct virtio_dev *vd = vp->vd;
	struct virtq *q = vp->queue_sel < vd->nqueues ? &vd->vq[vp->queue_sel] : NULL;

	switch (off) {
	case C_DEVICE_FEATURE_SEL:
		return vp->device_feature_sel;
	case C_DEVICE_FEATURE:
		return vp->device_feature_sel < 2
			   ? (uint32_t)(vp->offered >> (32 * vp->device_feature_sel))
			   : 0;
	case C_DRIVER_FEATURE_SEL:
		return vp->driver_feature_sel;
	case C_DRIVER_FEATURE:
		return vp->driver_feature_sel < 2
			   ? (uint32_t)(vp->driver_features >> (32 * vp->driver_feature_sel))
			   : 0;
	case C_CONFIG_VECTOR:
		return vp->config_vector;
	case C_NUM_QUEUES:
		return vd->nqueues;
	case C_STATUS:
		return atomic_load(&vp->status);
	case C_GENERATION:
		return vp->generation;
	case C_QUEUE_SEL:
		return vp->queue_sel;
	case C_QUEUE_SIZE:
		return q ? q->size : 0;
	case C_QUEUE_VECTOR:
		return q ? vp->queue_vector[vp->queue_sel] : VP_NO_VECTOR;
	case C_QUEUE_ENABLE:
		return q ? q->ready && !vp->queue_resetting[vp->queue_sel] : 0;
	case C_QUEUE_RESET:
		return q ? vp->queue_resetting[vp->queue_sel] : 0;
	case C_QUEUE_NOTIFY_OFF:
		return vp->queue_sel;
	case C_QUEUE_DESC:
		return q ? q->desc : 0;
	case C_QUEUE_DRIVER:
		return q ? q->avail : 0;
	case C_QUEUE_DEVICE:
		return q ? q->used : 0;
	default:
		return 0;
	}
}

/* Where the field that covers @off starts, and its size. */
static uint64_t vp_common_start(uint64_t off, unsigned *size)
{
	static const uint8_t starts[] = { 0x00, 0x04, 0x08, 0x0c, 0x10, 0x12, 0x14,
					  0x15, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x20,
					  0x28, 0x30, 0x38, 0x3a, 0x3c };

	for (unsigned i = 0; i + 1 < ARRAY_SIZE(starts); i++)
		if (off >= starts[i] && off < starts[i + 1]) {
			*size = starts[i + 1] - starts[i];
			return starts[i];
		}
	*size = 0;
	return off;
}

static uint64_t vp_common_read(struct virtio_pci *vp, uint64_t off, unsigned size)
{
	uint64_t val = 0;

	vp_resets_finish(vp);
	/* a read may be of a part of a field (the 64-bit addresses) or over several: byte by byte
	 * serves all */
	for (unsigned i = 0; i < size; i++) {
		unsigned fsize;
		uint64_t start = vp_common_start(off + i, &fsize);

		if (fsize)
			val |= (vp_common_field(vp, start) >> (8 * ((off + i - start) & 7)) & 0xff)
			       << (8 * i);
	}
	return val;
}

static void vp_set_half(gpa_t *field, uint64_t at, unsigned size, uint64_t val)
{
	if (size == 8 && at == 0)
		*field = val;
	else if (size == 4 && at == 0)
		*field = (*field & ~0xffffffffull) | (uint32_t)val;
	else if (size == 4 && at == 4)
		*field = (*field & 0xffffffffull) | val << 32;
}

static void vp_queue_write(struct virtio_pci *vp, uint64_t off, unsigned size, uint64_t val)
{
	struct virtio_dev *vd = vp->vd;
	struct virtq *q;

	if (vp->queue_sel >= vd->nqueues)
		return;
	q = &vd->vq[vp->queue_sel];
	if (off == C_QUEUE_VECTOR) {
		vp->queue_vector[vp->queue_sel] = vp_vector(vp, val & 0xffff);
		if (vd->ops->irq_changed)
			vd->ops->irq_changed(vd, vp->queue_sel);
		return;
	}
	if (off == C_QUEUE_RESET) {
		if ((val & 0xffff) == 1)
			vp_queue_reset_asked(vp, vp->queue_sel);
		return;
	}
	if (q->ready)
		return; /* what is enabled does not change (4.1.4.3.2) */
	if (off == C_QUEUE_SIZE) {
		val &= 0xffff;
		if (val && val <= vd->queue_size_max && !(val & (val - 1)))
			q->size = (uint16_t)val;
	} else if (off == C_QUEUE_ENABLE) {
		if ((val & 0xffff) == 1)
			vp_queue_enable(vp, vp->queue_sel);
	} else if (off >= C_QUEUE_DESC && off < C_QUEUE_DRIVER) {
		vp_set_half(&q->desc, off - C_QUEUE_DESC, size, val);
	} else if (off >= C_QUEUE_DRIVER && off < C_QUEUE_DEVICE) {
		vp_set_half(&q->avail, off - C_QUEUE_DRIVER, size, val);
	} else if (off >= C_QUEUE_DEVICE && off < C_QUEUE_NOTIFY_DATA) {
		vp_set_half(&q->used, off - C_QUEUE_DEVICE, size, val);
	}
}

static void vp_common_write(struct virtio_pci *vp, uint64_t off, unsigned size, uint64_t val)
{
	uint32_t shift;

	vp_resets_finish(vp);
	if (vp->resetting)
		return; /* nothing counts before the reset is through */
	switch (off) {
	case C_DEVICE_FEATURE_SEL:
		vp->device_feature_sel = (uint32_t)val;
		break;
	case C_DRIVER_FEATURE_SEL:
		vp->driver_feature_sel = (uint32_t)val;
		break;
	case C_DRIVER_FEATURE:
		if (vp->driver_feature_sel > 1 || (atomic_load(&vp->status) & STATUS_FEATURES_OK))
			break;
		shift = 32 * vp->driver_feature_sel;
		vp->driver_features = (vp->driver_features & ~(0xffffffffull << shift)) |
				      (uint64_t)(uint32_t)val << shift;
		break;
	case C_CONFIG_VECTOR:
		vp->config_vector = vp_vector(vp, val & 0xffff);
		break;
	case C_STATUS:
		vp_status_write(vp, (uint8_t)val);
		break;
	case C_QUEUE_SEL:
		vp->queue_sel = (uint16_t)val;
		break;
	default:
		if (off >= C_QUEUE_SIZE && off < C_END)
			vp_queue_write(vp, off, size, val);
	}
}

/* ---- the BAR ---- */

uint64_t vp_read(void *dev, uint64_t off, unsigned size)
{
	struct virtio_pci *vp = dev;
	uint64_t val = 0;

	if (off < VP_ISR)
		return range_within(off, size, C_END) ? vp_common_read(vp, off, size) : 0;
	if (off < VP_CONFIG) {
		if (off != VP_ISR)
			return 0;
		val = atomic_exchange(&vp->isr, 0);
		pci_intx_set(&vp->pci, false);
		return val;
	}
	if (off < VP_NOTIFY && vp->vd->ops->config_read)
		vp->vd->ops->config_read(vp->vd, (uint32_t)(off - VP_CONFIG), &val, size);
	return val;
}

void vp_write(void *dev, uint64_t off, unsigned size, uint64_t val)
{
	struct virtio_pci *vp = dev;

	if (off < VP_ISR)
		vp_common_write(vp, off, size, val);
	else if (off >= VP_NOTIFY)
		vp_kick(vp, (unsigned)((off - VP_NOTIFY) / VP_NOTIFY_STEP));
	else if (off >= VP_CONFIG && vp->vd->ops->config_write)
		vp->vd->ops->config_write(vp->vd, (uint32_t)(off - VP_CONFIG), &val, size);
}

const struct bus_ops vp_bar_ops = { .read = vp_read, .write = vp_write };
