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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "devices/pci.h"
#include "devices/virtio.h"
#include "hypervisor-core/vm.h"

#define VP_VENDOR      0x1af4u
#define VP_DEVICE      0x1040u
#define VP_BAR_MSIX    1u
#define VP_BAR	       4u
#define VP_BAR_BYTES   0x4000u
#define VP_COMMON      0x0000u
#define VP_ISR	       0x1000u
#define VP_CONFIG      0x2000u
#define VP_NOTIFY      0x3000u
#define VP_NOTIFY_STEP 4u
#define VP_NO_VECTOR   0xffffu

enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI };

enum {
	STATUS_ACK = 1,
	STATUS_DRIVER = 2,
	STATUS_DRIVER_OK = 4,
	STATUS_FEATURES_OK = 8,
	STATUS_NEEDS_RESET = 64,
	STATUS_FAILED = 128,
};

#define F_INDIRECT   28
#define F_EVENT_IDX  29
#define F_VERSION_1  32
#define F_RING_RESET 40

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
	C_END = 0x3c,
};

struct virtio_pci {
	struct device dev;
	struct device_ops dev_ops; /* per instance: the section's name is the device class's */
	struct pci_dev pci;
	struct virtio_dev *vd;
	uint64_t offered, driver_features;
	uint32_t device_feature_sel, driver_feature_sel;
	uint16_t queue_sel, config_vector;
	_Atomic uint16_t *queue_vector; /* read by I/O threads */
	int *doorbell;			/* eventfd a queue, -1 none */
	bool *doorbell_on;
	uint64_t notify_base; /* where doorbells are registered; 0 nowhere */
	_Atomic uint8_t status, isr;
	uint8_t generation;
	uint8_t pci_cap; /* offset of the PCI configuration access capability */
	/* the driver asked for a reset that is not done; ..._done is set by the device's thread */
	bool resetting;
	bool *queue_resetting;
	_Atomic bool reset_done;
	_Atomic bool *queue_reset_done;
	_Atomic bool intx_posted, done_posted;
	bool dead; /* destroyed with posts on their way, the last of which frees it */
};

static const char *const virtio_names[] = { [VIRTIO_ID_NET] = "virtio-net",
					    [VIRTIO_ID_BLK] = "virtio-blk",
					    [VIRTIO_ID_CONSOLE] = "virtio-console",
					    [VIRTIO_ID_RNG] = "virtio-rng" };

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

static void vp_notify(void *arg, struct virtq *q)
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

static void vp_doorbell(struct virtio_pci *vp, unsigned q, bool on)
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

static void vp_bar_moved(struct pci_dev *d, unsigned bar)
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
static void vp_reset(struct virtio_pci *vp)
{
	if (vp->vd->ops->reset)
		vp->vd->ops->reset(vp->vd);
	vp_forget(vp);
}

/* Take up what devices reported as done. Machine lock held. */
static void vp_resets_finish(struct virtio_pci *vp)
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

static uint64_t vp_offered(const struct virtio_pci *vp)
{
	return vp->vd->ops->features(vp->vd) | 1ull << F_VERSION_1 | 1ull << F_INDIRECT |
	       1ull << F_EVENT_IDX | (vp->vd->ops->queue_reset ? 1ull << F_RING_RESET : 0);
}

static uint16_t vp_vector(const struct virtio_pci *vp, uint64_t val)
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
			val |= (vp_common_field(vp, start) >> (8 * (off + i - start)) & 0xff)
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

static uint64_t vp_read(void *dev, uint64_t off, unsigned size)
{
	struct virtio_pci *vp = dev;
	uint64_t val = 0;

	if (off < VP_ISR)
		return off + size <= C_END ? vp_common_read(vp, off, size) : 0;
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

static void vp_write(void *dev, uint64_t off, unsigned size, uint64_t val)
{
	struct virtio_pci *vp = dev;

	if (off < VP_ISR)
		vp_common_write(vp, off, size, val);
	else if (off >= VP_NOTIFY)
		vp_kick(vp, (unsigned)((off - VP_NOTIFY) / VP_NOTIFY_STEP));
	else if (off >= VP_CONFIG && vp->vd->ops->config_write)
		vp->vd->ops->config_write(vp->vd, (uint32_t)(off - VP_CONFIG), &val, size);
}

static const struct bus_ops vp_bar_ops = { .read = vp_read, .write = vp_write };

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
	ret = pci_dev_add(bus, &vp->pci, -1, VP_VENDOR, (uint16_t)(VP_DEVICE + d->ops->virtio_id),
			  d->ops->pci_class << 8 | 1, e);
	if (!ret)
		ret =
		    pci_msix_init(&vp->pci, d->nqueues + 1, VP_BAR_MSIX, 0, 16 * (d->nqueues + 1));
	if (!ret)
		ret = vp_cap(vp, CAP_COMMON, VP_COMMON, C_END, 0);
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
