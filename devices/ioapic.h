/* ioapic.h - the 82093AA I/O APIC, 24 pins. See ioapic.c. */
#ifndef DEVICES_IOAPIC_H
#define DEVICES_IOAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "hypervisor-core/irq.h"

#define IOAPIC_PINS 24u
#define IOAPIC_BASE 0xfec00000u

struct ioapic;

struct ioapic *ioapic_new(struct vm *vm, struct err *e); /* owned by the VM */
/* ioapic_irq_set() - a pin's line. Any thread. Fits struct irq. */
void ioapic_irq_set(void *ioapic, unsigned pin, bool level);
/* ioapic_eoi() - some LAPIC ended level-triggered @vector. Any thread. */
void ioapic_eoi(struct ioapic *io, uint8_t vector);

#endif
