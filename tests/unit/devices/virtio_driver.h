/* virtio_driver.h - a guest's virtio driver in C, for tests: negotiates, builds rings in guest RAM,
 * kicks, waits.
 * The VM is a real one (software CPU, never started), the PCI bus and transport are the product's.
 */
#ifndef TESTS_VIRTIO_DRIVER_H
#define TESTS_VIRTIO_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/loop.h"
#include "devices/pci.h"
#include "hypervisor-core/vm.h"

#define VD_RAM	      (16u << 20)
#define VD_QUEUES_MAX 16

struct vd_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};
enum { VD_NEXT = 1, VD_WRITE = 2, VD_INDIRECT = 4 };

struct vd_queue {
	unsigned size;
	gpa_t desc, avail, used;
	uint16_t avail_idx, seen_used, next_desc;
};

/* A machine with RAM and a PCI bus; then a device on it is driven. */
struct vd_machine {
	struct loop *loop;
	struct vm *vm;
	struct pci_bus *bus;
	gpa_t brk; /* next free guest address */
};

struct vd {
	struct vd_machine *m;
	uint64_t bar;
	uint64_t features;
	struct vd_queue q[VD_QUEUES_MAX];
};

struct vd_seg {
	gpa_t gpa;
	uint32_t len;
	bool write;
};

void vd_machine_init(struct vd_machine *m);
void vd_machine_fini(struct vd_machine *m);
gpa_t vd_alloc(struct vd_machine *m, uint64_t len, uint64_t align); /* zeroed guest memory */
void *vd_ptr(struct vd_machine *m, gpa_t gpa);

/* vd_attach() - the device in slot @devfn: memory decoding on, reset, features @want of those
 * offered. True: FEATURES_OK. */
bool vd_attach(struct vd *d, struct vd_machine *m, unsigned devfn, uint64_t want);
void vd_queue_setup(struct vd *d, unsigned q, unsigned size);
void vd_driver_ok(struct vd *d);
void vd_reset(struct vd *d);	 /* waits until the device says that it is done, 5 s at most */
void vd_reset_ask(struct vd *d); /* does not wait */
bool vd_queue_reset(struct vd *d, unsigned q); /* VIRTIO_F_RING_RESET; true: done within 5 s */
uint8_t vd_status(struct vd *d);
uint64_t vd_read(struct vd *d, uint64_t off, unsigned size);
void vd_write(struct vd *d, uint64_t off, unsigned size, uint64_t val);
/* vd_add() - a chain; returns its head. vd_kick(). vd_wait(): until @n more are used; false after 5
 * s. */
uint16_t vd_add(struct vd *d, unsigned q, const struct vd_seg *segs, unsigned n);
void vd_add_head(struct vd *d, unsigned q,
		 uint16_t head); /* whatever head, as a hostile driver may */
struct vd_desc *vd_descs(struct vd *d, unsigned q);
void vd_kick(struct vd *d, unsigned q);
bool vd_wait(struct vd *d, unsigned q, unsigned n);
uint32_t vd_used_len(struct vd *d, unsigned q, unsigned back); /* 1 = the last used element */
bool vd_wait_status(struct vd *d, uint8_t bit);		       /* false after 5 s */

#endif
