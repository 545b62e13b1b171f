/* lapic.h - local APICs in user space, for accelerators that have none of their own (soft).
 * See lapic.c for locking. The member functions below fit struct intc_ops (hypervisor-core/irq.h);
 * devices/intc.c ties them to the machine.
 */
#ifndef DEVICES_LAPIC_H
#define DEVICES_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

struct vm;
struct lapic_set;

/* lapic_set_new() - one LAPIC for each of @ncpus, APIC id = index. @eoi(@opaque, vector) is called
 * without any LAPIC lock after the EOI of a level-triggered vector. Owned by the VM
 * (vm_device_add). */
struct lapic_set *lapic_set_new(struct vm *vm, unsigned ncpus,
				void (*eoi)(void *opaque, uint8_t vector), void *opaque,
				struct err *e);

/* lapic_msi() - deliver a message as if written to 0xfeexxxxx. Any thread, any lock but a LAPIC's.
 */
void lapic_msi(struct lapic_set *s, uint64_t addr, uint32_t data);
int lapic_pending(struct lapic_set *s, unsigned cpu);
int lapic_ack(struct lapic_set *s, unsigned cpu);
bool lapic_accepts_pic(struct lapic_set *s, unsigned cpu);
bool lapic_msr_read(struct lapic_set *s, unsigned cpu, uint32_t msr, uint64_t *val);
bool lapic_msr_write(struct lapic_set *s, unsigned cpu, uint32_t msr, uint64_t val);
uint8_t lapic_cr8_get(struct lapic_set *s, unsigned cpu);
void lapic_cr8_set(struct lapic_set *s, unsigned cpu, uint8_t val);
uint32_t lapic_mmio_read(struct lapic_set *s, unsigned cpu, uint32_t off, unsigned size);
void lapic_mmio_write(struct lapic_set *s, unsigned cpu, uint32_t off, unsigned size, uint32_t val);

#endif
