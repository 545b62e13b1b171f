/* fuzz_pic_pit_ioapic.c - 8259 pair, ELCR, 8254, port 61h, I/O APIC, acknowledge and EOI. */
#include "tests/fuzz/chips_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void one(struct vm *vm, const struct chips_access *a)
{
	static const uint16_t ports[] = { 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1,
					  0x40, 0x41, 0x42, 0x43, 0x61 };

	if (a->sel & 0x80)
		bus_write(vm->mmio, 0xfec00000 + (a->addr & 0x10), 4, a->val);
	else if (a->sel & 0x40)
		(void)vm->intc->pic_ack(vm->intc_opaque);
	else if (a->sel & 0x20)
		vm->intc->eoi(vm->intc_opaque, (uint8_t)a->val);
	else
		chips_port(vm, a, ports[a->addr % 11]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	return chips_run(data, len, one);
}
