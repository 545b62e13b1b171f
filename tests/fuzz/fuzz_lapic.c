/* fuzz_lapic.c - xAPIC page, x2APIC MSRs, messages, acknowledge. */
#include "tests/fuzz/chips_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void one(struct vm *vm, const struct chips_access *a)
{
	const struct intc_ops *ic = vm->intc;
	unsigned cpu = a->sel & 1;
	uint64_t v;

	switch (a->sel >> 1 & 7) {
	case 0:
		ic->apic_mmio_write(vm->intc_opaque, cpu, a->addr & 0xff0, 4, a->val);
		break;
	case 1:
		(void)ic->apic_mmio_read(vm->intc_opaque, cpu, a->addr & 0xfff, 4);
		break;
	case 2:
		(void)ic->msr_write(vm->intc_opaque, cpu, 0x800 + (a->addr & 0xff), a->val);
		break;
	case 3:
		(void)ic->msr_read(vm->intc_opaque, cpu, 0x800 + (a->addr & 0xff), &v);
		break;
	case 4:
		ic->msi(vm->intc_opaque, 0xfee00000 | (uint64_t)a->addr << 4, a->val);
		break;
	case 5:
		(void)ic->apic_ack(vm->intc_opaque, cpu);
		break;
	case 6:
		(void)ic->msr_write(vm->intc_opaque, cpu, 0x1b, 0xfee00000 | (a->val & 0xd00));
		break;
	default:
		(void)ic->msr_write(vm->intc_opaque, cpu, 0x6e0, a->val);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	return chips_run(data, len, one);
}
