/* intc.h - the interrupt controllers of a PC together, as an accelerator and the chips see them.
 * Threading: see lapic.c, ioapic.c, pic.c; everything here may be called from any thread.
 */
#ifndef DEVICES_INTC_H
#define DEVICES_INTC_H

#include "common/err.h"
#include "hypervisor-core/irq.h"

struct intc {
	struct vm *vm;
	struct pic *pic;
	struct ioapic *ioapic;
	struct lapic_set *lapic; /* NULL where the accelerator has its own */
};

/* intc_build() - make the chips for @ncpus vCPUs and set vm->intc and vm->intc_opaque (= @ic, which
 * must live as long as the VM's threads). A LAPIC set is made unless the accelerator has
 * ACCEL_HAS_LAPIC. */
int intc_build(struct intc *ic, struct vm *vm, unsigned ncpus, struct err *e);
/* intc_isa() - the line of ISA interrupt @n: to the 8259 and to its I/O APIC pin (0 goes to pin 2).
 */
struct irq intc_isa(struct intc *ic, unsigned n);
/* intc_gsi() - the line of I/O APIC pin @n alone (PCI). */
struct irq intc_gsi(struct intc *ic, unsigned n);

#endif
