/* irq.h - how chips raise interrupts without knowing who delivers them.
 *
 * A line (struct irq) joins a chip to an input of an interrupt controller. A message (MSI) goes
 * through vm_msi() or, for devices with MSI-X, through a struct msi_vector that owns an eventfd:
 * in KVM it is an irqfd, otherwise the fd is never read and msi_fire() delivers directly.
 * intc_ops is how an accelerator sees the machine's own controllers (devices/); the core knows no
 * chip.
 */
#ifndef CORE_IRQ_H
#define CORE_IRQ_H

#include <stdbool.h>
#include <stdint.h>

struct vm;

struct irq {
	void (*set)(void *opaque, unsigned n, bool level);
	void *opaque;
	unsigned n;
};

static inline void irq_set(const struct irq *line, bool level)
{
	if (line && line->set)
		line->set(line->opaque, line->n, level);
}

/* The machine's interrupt controllers, as an accelerator needs them. NULL members: not there.
 * Called from vCPU threads; each implementation locks itself (never the machine lock inside ack).
  */
struct intc_ops {
	/* 8259 pair: is INTR raised towards vCPU 0; acknowledge (vector, or -1 spurious). */
	bool (*pic_pending)(void *opaque);
	int (*pic_ack)(void *opaque);
	/* EOI of a level-triggered vector (KVM_EXIT_IOAPIC_EOI, or our LAPIC's broadcast). */
	void (*eoi)(void *opaque, uint8_t vector);

	/* Only where the accelerator has no LAPIC of its own (soft): devices/lapic.c. */
	void (*msi)(void *opaque, uint64_t addr, uint32_t data);
	int (*apic_pending)(void *opaque, unsigned cpu); /* deliverable vector above PPR, or -1 */
	int (*apic_ack)(void *opaque, unsigned cpu);	 /* takes it: ISR set; vector or -1 */
	bool (*apic_accepts_pic)(void *opaque,
				 unsigned cpu); /* LINT0 ExtINT unmasked or APIC off */
	/* MSRs 0x1b, 0x6e0, 0x800-0x8ff; false = the vCPU raises #GP. */
	bool (*msr_read)(void *opaque, unsigned cpu, uint32_t msr, uint64_t *val);
	bool (*msr_write)(void *opaque, unsigned cpu, uint32_t msr, uint64_t val);
	uint8_t (*cr8_get)(void *opaque, unsigned cpu);
	void (*cr8_set)(void *opaque, unsigned cpu, uint8_t val);
	/* xAPIC page (0xfee00000, 4 KiB): the accelerator decodes it itself, because each vCPU sees
	 * its own LAPIC there, and calls these instead of the bus. @off inside the page; 32-bit
	 * registers. Accesses are ignored (read all ones) in x2APIC mode or with the APIC off. */
	uint32_t (*apic_mmio_read)(void *opaque, unsigned cpu, uint32_t off, unsigned size);
	void (*apic_mmio_write)(void *opaque, unsigned cpu, uint32_t off, unsigned size,
				uint32_t val);
};

/* vm_msi() - deliver one message now (any thread). */
int vm_msi(struct vm *vm, uint64_t addr, uint32_t data);

struct msi_vector {
	struct vm *vm;
	int fd;	 /* eventfd; -1 until enabled */
	int gsi; /* the accelerator's route, or -1 */
	uint64_t addr;
	uint32_t data;
	bool enabled;
	_Atomic int lock; /* irq.c: fire against set and clear; zero at first */
};

/* msi_vector_set() - (re)route and enable; msi_vector_clear() - disable, close. 0 or -errno.
 * A zeroed struct is a disabled vector. */
int msi_vector_set(struct msi_vector *v, struct vm *vm, uint64_t addr, uint32_t data);
void msi_vector_clear(struct msi_vector *v);
void msi_fire(struct msi_vector *v); /* any thread; no-op where disabled */

#endif
