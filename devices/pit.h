/* pit.h - the 8254 timer of a PC and port 61h. See pit.c. */
#ifndef DEVICES_PIT_H
#define DEVICES_PIT_H

#include "common/err.h"
#include "hypervisor-core/irq.h"

struct pit;

/* pit_new() - ports 0x40-0x43 and 0x61; channel 0 drives @irq0. Owned by the VM. */
struct pit *pit_new(struct vm *vm, const struct irq *irq0, struct err *e);

#endif
