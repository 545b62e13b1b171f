/* virtio_pci_impl.h - what virtio_pci.c (registers, resets, interrupts) and virtio_pci_dev.c (the PCI
 * function, the device of the VM) share.
 */
#ifndef DEVICES_VIRTIO_PCI_IMPL_H
#define DEVICES_VIRTIO_PCI_IMPL_H

#include <stdatomic.h>

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
#define VP_COMMON_LEN  0x3cu

/* device status (2.1) */
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

/* The BAR. vp_read(), vp_write(): also through the configuration window. */
extern const struct bus_ops vp_bar_ops;
uint64_t vp_read(void *dev, uint64_t off, unsigned size);
void vp_write(void *dev, uint64_t off, unsigned size, uint64_t val);
void vp_bar_moved(struct pci_dev *d, unsigned bar);
void vp_vector_changed(struct pci_dev *d, unsigned v);
void vp_doorbell(struct virtio_pci *vp, unsigned q, bool on);
void vp_notify(void *arg, struct virtq *q);
/* vp_reset() - now, vCPUs parked. vp_resets_finish() - take up what devices reported as done. */
void vp_reset(struct virtio_pci *vp);
void vp_resets_finish(struct virtio_pci *vp);
uint64_t vp_offered(const struct virtio_pci *vp);
uint16_t vp_vector(const struct virtio_pci *vp, uint64_t val); /* or VP_NO_VECTOR */

#endif
