/* pci_msix.h - what pci.c and pci_msix.c share. */
#ifndef DEVICES_PCI_MSIX_H
#define DEVICES_PCI_MSIX_H

#include "devices/pci.h"

unsigned pci_msix_pba_bytes(const struct pci_dev *d);
void pci_msix_update(struct pci_dev *d); /* the control word or the whole table changed */
void pci_msix_reset(struct pci_dev *d);
void pci_msix_fini(struct pci_dev *d);
struct vm *pci_bus_vm(const struct pci_bus *b);
int pci_bar_setup(struct pci_dev *d,
		  unsigned n); /* pci.c: place a BAR that has a size and no home */

#endif
