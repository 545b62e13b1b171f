/* intc.c - ties 8259 pair, I/O APIC and LAPICs to struct intc_ops and to the chips' lines (intc.h).
 * No state of its own, so no lock of its own.
 */
#include "devices/intc.h"

#include <errno.h>

#include "devices/ioapic.h"
#include "devices/lapic.h"
#include "devices/pic.h"
#include "hypervisor-core/vm.h"

static bool intc_pic_pending(void *opaque)
{
	return pic_pending(((struct intc *)opaque)->pic);
}

static int intc_pic_ack(void *opaque)
{
	return pic_ack(((struct intc *)opaque)->pic);
}

static void intc_eoi(void *opaque, uint8_t vector)
{
	ioapic_eoi(((struct intc *)opaque)->ioapic, vector);
}

static void intc_msi(void *opaque, uint64_t addr, uint32_t data)
{
	lapic_msi(((struct intc *)opaque)->lapic, addr, data);
}

static int intc_apic_pending(void *opaque, unsigned cpu)
{
	return lapic_pending(((struct intc *)opaque)->lapic, cpu);
}

static int intc_apic_ack(void *opaque, unsigned cpu)
{
	return lapic_ack(((struct intc *)opaque)->lapic, cpu);
}

static bool intc_apic_accepts_pic(void *opaque, unsigned cpu)
{
	return lapic_accepts_pic(((struct intc *)opaque)->lapic, cpu);
}

static bool intc_msr_read(void *opaque, unsigned cpu, uint32_t msr, uint64_t *val)
{
	return lapic_msr_read(((struct intc *)opaque)->lapic, cpu, msr, val);
}

static bool intc_msr_write(void *opaque, unsigned cpu, uint32_t msr, uint64_t val)
{
	return lapic_msr_write(((struct intc *)opaque)->lapic, cpu, msr, val);
}

static uint8_t intc_cr8_get(void *opaque, unsigned cpu)
{
	return lapic_cr8_get(((struct intc *)opaque)->lapic, cpu);
}

static void intc_cr8_set(void *opaque, unsigned cpu, uint8_t val)
{
	lapic_cr8_set(((struct intc *)opaque)->lapic, cpu, val);
}

static uint32_t intc_apic_mmio_read(void *opaque, unsigned cpu, uint32_t off, unsigned size)
{
	return lapic_mmio_read(((struct intc *)opaque)->lapic, cpu, off, size);
}

static void intc_apic_mmio_write(void *opaque, unsigned cpu, uint32_t off, unsigned size,
				 uint32_t val)
{
	lapic_mmio_write(((struct intc *)opaque)->lapic, cpu, off, size, val);
}

static const struct intc_ops intc_ops_split = {
	.pic_pending = intc_pic_pending,
	.pic_ack = intc_pic_ack,
	.eoi = intc_eoi,
};

static const struct intc_ops intc_ops_full = {
	.pic_pending = intc_pic_pending,
	.pic_ack = intc_pic_ack,
	.eoi = intc_eoi,
	.msi = intc_msi,
	.apic_pending = intc_apic_pending,
	.apic_ack = intc_apic_ack,
	.apic_accepts_pic = intc_apic_accepts_pic,
	.msr_read = intc_msr_read,
	.msr_write = intc_msr_write,
	.cr8_get = intc_cr8_get,
	.cr8_set = intc_cr8_set,
	.apic_mmio_read = intc_apic_mmio_read,
	.apic_mmio_write = intc_apic_mmio_write,
};

static void intc_pic_output(void *opaque, bool level)
{
	struct intc *ic = opaque;

	if (ic->vm->accel->vcpu_interrupt && ic->vm->nvcpus)
		ic->vm->accel->vcpu_interrupt(ic->vm->vcpus[0]);
}

int intc_build(struct intc *ic, struct vm *vm, unsigned ncpus, struct err *e)
{
	*ic = (struct intc){ .vm = vm };
	ic->pic = pic_new(vm, intc_pic_output, ic, e);
	if (!ic->pic)
		return -ENOMEM;
	ic->ioapic = ioapic_new(vm, e);
	if (!ic->ioapic)
		return -ENOMEM;
	if (!(vm->accel->caps & ACCEL_HAS_LAPIC)) {
		ic->lapic = lapic_set_new(vm, ncpus, intc_eoi, ic, e);
		if (!ic->lapic)
			return -ENOMEM;
	}
	vm->intc_opaque = ic;
	vm->intc = ic->lapic ? &intc_ops_full : &intc_ops_split;
	return 0;
}

static void intc_isa_set(void *opaque, unsigned n, bool level)
{
	struct intc *ic = opaque;

	pic_irq_set(ic->pic, n, level);
	ioapic_irq_set(ic->ioapic, n ? n : 2, level);
}

static void intc_gsi_set(void *opaque, unsigned n, bool level)
{
	ioapic_irq_set(((struct intc *)opaque)->ioapic, n, level);
}

struct irq intc_isa(struct intc *ic, unsigned n)
{
	return (struct irq){ .set = intc_isa_set, .opaque = ic, .n = n };
}

struct irq intc_gsi(struct intc *ic, unsigned n)
{
	return (struct irq){ .set = intc_gsi_set, .opaque = ic, .n = n };
}
