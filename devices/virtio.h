/* virtio.h - a virtio device class as its transport (virtio-pci) sees it.
 *
 * virtio_dev is embedded in each device. The transport owns feature negotiation, status, queue
 * addresses and interrupts; the device owns config space and the queues' contents.
 * Locking: all callbacks under the machine lock, except kick where the device took the queue's
 * doorbell into its own I/O thread (virtio_queue_doorbell_fd).
 */
#ifndef DEVICES_VIRTIO_H
#define DEVICES_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "devices/virtq.h"
#include "hypervisor-core/device.h"

struct virtio_dev;

enum { VIRTIO_ID_NET = 1, VIRTIO_ID_BLK = 2, VIRTIO_ID_CONSOLE = 3, VIRTIO_ID_RNG = 4 };
#define VIRTIO_QUEUES_MAX 130u

struct virtio_ops {
	uint16_t virtio_id;
	uint32_t pci_class;
	uint64_t (*features)(
	    struct virtio_dev *d); /* device part; transport adds VERSION_1, RING_* */
	void (*features_set)(struct virtio_dev *d, uint64_t negotiated);
	void (*config_read)(struct virtio_dev *d, uint32_t off, void *buf, uint32_t len);
	void (*config_write)(struct virtio_dev *d, uint32_t off, const void *buf, uint32_t len);
	void (*queue_enable)(struct virtio_dev *d, unsigned q); /* virtq is enabled and checked */
	void (*kick)(struct virtio_dev *d, unsigned q);		/* main thread or vCPU thread */
	void (*driver_ok)(struct virtio_dev *d);
	/* reset: must stop using the queues before it returns (joins or drains its workers). vCPUs
	 * are parked. */
	void (*reset)(struct virtio_dev *d);
	/* reset_start, queue_reset: optional; the driver's own reset, other vCPUs running. True:
	 * done. False: I/O in flight has to end first, then virtio_reset_done() or
	 * virtio_queue_reset_done(); the machine lock is not held meanwhile. What is left out is
	 * served by reset, or not offered (VIRTIO_F_RING_RESET). */
	bool (*reset_start)(struct virtio_dev *d);
	bool (*queue_reset)(struct virtio_dev *d, unsigned q);
	/* optional: what virtio_queue_irq_fd() says of @q is another now */
	void (*irq_changed)(struct virtio_dev *d, unsigned q);
	void (*save)(struct virtio_dev *d, struct state_writer *w); /* tags below 0x4000 */
	int (*load)(struct virtio_dev *d, const struct state_reader *r, struct err *e);
	void (*quiesce)(struct virtio_dev *d, void (*done)(void *), void *arg);
	void (*unquiesce)(struct virtio_dev *d);
	void (*destroy)(struct virtio_dev *d);
	unsigned (*stats)(struct virtio_dev *d, const char **names, uint64_t *values, unsigned max);
};

struct virtio_dev {
	const struct virtio_ops *ops;
	struct vm *vm;
	char id[32];
	unsigned nqueues;
	struct virtq *vq; /* nqueues, allocated by virtio_pci_new() */
	uint16_t queue_size_max;
	uint64_t features; /* negotiated */
	bool driver_ok;
	void *transport;
};

struct pci_bus;
/* virtio_pci_new() - put @d on @bus at the next free slot (modern only, MSI-X, one vector a queue +
 * config). */
int virtio_pci_new(struct vm *vm, struct pci_bus *bus, struct virtio_dev *d, struct err *e);
/* For devices: */
void virtio_config_changed(struct virtio_dev *d); /* bumps generation, config interrupt */
void virtio_needs_reset(struct virtio_dev *d, const char *why);
/* virtio_find() - the device called @id, if it is of class @ops; else NULL. Main thread. */
struct virtio_dev *virtio_find(struct vm *vm, const char *id, const struct virtio_ops *ops);
/* What reset_start() and queue_reset() left for later is done. Any thread. */
void virtio_reset_done(struct virtio_dev *d);
void virtio_queue_reset_done(struct virtio_dev *d, unsigned q);
/* virtio_queue_doorbell_fd() - eventfd that a kick of queue @q signals; ops->kick is then not
 * called for it. Owned by the transport. -1 on failure. */
int virtio_queue_doorbell_fd(struct virtio_dev *d, unsigned q);

/* virtio_queue_irq_fd() - eventfd that raises queue @q's interrupt by itself (irqfd), or -1: then
 * by vq->notify(). Machine lock. */
int virtio_queue_irq_fd(struct virtio_dev *d, unsigned q);

#endif
