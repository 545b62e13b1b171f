/* pci.h - one PCI Express root (ECAM and type 1), functions with BARs that move, MSI-X, INTx.
 * Spec: PCI Local Bus 3.0, PCIe 4.0 7.5. Under the machine lock.
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

#define PCI_CFG_SIZE 4096u

struct pci_bar {
	uint64_t size_bytes; /* 0 = not there; power of two */
	bool io, mem64, prefetch;
	const struct bus_ops *ops;
	void *opaque;
	unsigned bus_flags; /* BUS_UNLOCKED */
	uint64_t addr;	    /* where mapped now */
	bool mapped;
	void (*moved)(struct pci_dev *d, unsigned bar); /* optional: after map or unmap (doorbells) */
};

struct pci_dev {
	struct pci_bus *bus;
	uint8_t devfn;
	char name[32];
	uint8_t cfg[PCI_CFG_SIZE];
	uint8_t wmask[PCI_CFG_SIZE]; /* bits the guest may write */
	struct pci_bar bar[6];
	/* optional hooks */
	void (*cfg_written)(struct pci_dev *d, uint32_t off, unsigned len);
	uint8_t cap_tail;
	uint16_t cap_next;
	/* MSI-X */
	unsigned nvectors;
	struct msi_vector *vectors;
	uint8_t *msix_table; /* 16 bytes a vector */
	uint8_t *msix_pba;
	uint16_t msix_cap;
	unsigned msix_bar;
	bool intx_level;
};

struct pci_bus_config {
	struct vm *vm;
	uint64_t ecam_base;
	unsigned ecam_buses;
	uint64_t mmio32_base, mmio32_size, mmio64_base, mmio64_size;
	uint16_t io_base, io_size;
	struct irq intx[4]; /* A..D after swizzle, to IOAPIC pins */
};

struct pci_bus *pci_bus_new(const struct pci_bus_config *cfg, struct err *e);
void pci_bus_free(struct pci_bus *b);
/* pci_dev_add() - @devfn < 0: next free slot. BARs given in @d are placed inside the windows at once, so that
 * a kernel without firmware finds them assigned. Fills vendor, device, class from the arguments. */
int pci_dev_add(struct pci_bus *b, struct pci_dev *d, int devfn, uint16_t vendor, uint16_t device,
		uint32_t class_rev, struct err *e);
void pci_dev_del(struct pci_dev *d);
int pci_add_cap(struct pci_dev *d, uint8_t id, uint8_t len); /* offset or -ENOSPC */
int pci_msix_init(struct pci_dev *d, unsigned nvectors, unsigned bar, uint32_t table_off, uint32_t pba_off);
void pci_msix_fire(struct pci_dev *d, unsigned vector); /* any thread; latches PBA when masked */
bool pci_msix_enabled(const struct pci_dev *d);
void pci_intx_set(struct pci_dev *d, bool level);
void pci_dev_reset(struct pci_dev *d);
void pci_dev_save(const struct pci_dev *d, struct state_writer *w, uint16_t base_tag);
int pci_dev_load(struct pci_dev *d, const struct state_reader *r, uint16_t base_tag, struct err *e);

#endif
