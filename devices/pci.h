/* pci.h - one PCI root bus (ECAM and type 1), functions with BARs that move, MSI-X, INTx.
 * Spec: PCI Local Bus 3.0, PCI Express 4.0 7.2.2 (ECAM). Under the machine lock, but for
 * pci_msix_fire().
 * Functions are conventional ones: 256 bytes of configuration; what lies above reads all ones.
 */
#ifndef DEVICES_PCI_H
#define DEVICES_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "hypervisor-core/bus.h"
#include "hypervisor-core/device.h"
#include "hypervisor-core/irq.h"

struct pci_bus;
struct pci_dev;

#define PCI_CFG_SIZE 256u

struct pci_bar {
	/* 0 = not there; power of two; memory at least 4 KiB, ports at least 4 */
	uint64_t size_bytes;
	bool io, mem64, prefetch;
	const struct bus_ops *ops;
	void *opaque;
	unsigned bus_flags; /* BUS_UNLOCKED */
	uint64_t addr;	    /* where mapped now */
	uint64_t home;	    /* where placed at first; reset goes back there */
	bool mapped;
	void (*moved)(struct pci_dev *d,
		      unsigned bar); /* optional: after map or unmap (doorbells) */
};

struct pci_dev {
	struct pci_bus *bus; /* NULL while on none */
	uint8_t devfn;
	char name[32];
	uint8_t cfg[PCI_CFG_SIZE];
	uint8_t wmask[PCI_CFG_SIZE]; /* bits the guest may write */
	struct pci_bar bar[6];
	/* optional hooks: after a guest's write, before a guest's read */
	void (*cfg_written)(struct pci_dev *d, uint32_t off, unsigned len);
	void (*cfg_reading)(struct pci_dev *d, uint32_t off, unsigned len);
	/* optional: MSI-X vector @v became live, masked or off; machine lock held */
	void (*vector_changed)(struct pci_dev *d, unsigned v);
	uint8_t cap_tail;  /* last capability, 0 = none yet */
	uint16_t cap_next; /* where the next goes */
	/* MSI-X */
	unsigned nvectors;
	struct msi_vector *vectors;
	uint8_t *msix_table; /* 16 bytes a vector */
	uint8_t *msix_pba;   /* a bit a vector; atomic */
	uint8_t *msix_state; /* a byte a vector: pci.c's enum msix_state; atomic */
	uint16_t msix_cap;   /* 0 = none */
	unsigned msix_bar;
	uint32_t msix_table_off, msix_pba_off;
	bool intx_level;
};

struct pci_bus_config {
	struct vm *vm;
	uint64_t ecam_base;
	unsigned ecam_buses;
	uint64_t mmio32_base, mmio32_size, mmio64_base, mmio64_size;
	uint16_t io_base, io_size;
	struct irq intx[4]; /* line (slot + pin) mod 4, to I/O APIC pins */
	/* port 0xcf9 (reset control) lies inside the type 1 address register */
	const struct bus_ops *cf9;
	void *cf9_opaque;
};

/* pci_bus_new() - owned by the VM (vm_device_add). Functions still on it when it goes are taken
 * off. */
struct pci_bus *pci_bus_new(const struct pci_bus_config *cfg, struct err *e);
/* pci_dev_add() - @devfn < 0: next free slot (function 0), or, with all 32 slots used, next free
 * function.
 * BARs given in @d are placed inside the windows at once, so that a kernel without firmware finds
 * them assigned. Fills vendor, device, class from the arguments (@class_rev: class << 8 |
 * revision). @d is zeroed by its owner before and stays the owner's. */
int pci_dev_add(struct pci_bus *b, struct pci_dev *d, int devfn, uint16_t vendor, uint16_t device,
		uint32_t class_rev, struct err *e);
void pci_dev_del(struct pci_dev *d); /* unmaps, frees MSI-X; harmless twice */
struct pci_dev *pci_dev_find(struct pci_bus *b, unsigned devfn);
int pci_add_cap(struct pci_dev *d, uint8_t id, uint8_t len); /* offset or -ENOSPC */
/* pci_msix_init() - capability and table, before or after pci_dev_add(). Where bar[@bar] has no ops
 * yet, it becomes the table's (size set where 0); else its owner forwards accesses to
 * pci_msix_bar_ops with @d. */
int pci_msix_init(struct pci_dev *d, unsigned nvectors, unsigned bar, uint32_t table_off,
		  uint32_t pba_off);
extern const struct bus_ops pci_msix_bar_ops; /* opaque: struct pci_dev; offsets inside the BAR */
void pci_msix_fire(struct pci_dev *d, unsigned vector); /* any thread; latches PBA when masked */
bool pci_msix_enabled(const struct pci_dev *d);
/* pci_msix_fd() - eventfd that raises @vector with nobody of ours in between, while it is live and
 * the accelerator takes irqfds; else -1. Good until vector_changed(). Machine lock. */
int pci_msix_fd(const struct pci_dev *d, unsigned vector);
void pci_intx_set(struct pci_dev *d, bool level);
void pci_dev_reset(struct pci_dev *d);
void pci_dev_save(const struct pci_dev *d, struct state_writer *w, uint16_t base_tag); /* 4 tags */
int pci_dev_load(struct pci_dev *d, const struct state_reader *r, uint16_t base_tag, struct err *e);

#endif
