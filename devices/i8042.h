/* i8042.h - keyboard controller without keyboard, and port 92h. See i8042.c. */
#ifndef DEVICES_I8042_H
#define DEVICES_I8042_H

#include "common/err.h"
#include "hypervisor-core/irq.h"

struct i8042;

/* i8042_new() - ports 0x60, 0x64, 0x92; keyboard interrupt on @irq1. Owned by the VM. */
struct i8042 *i8042_new(struct vm *vm, const struct irq *irq1, struct err *e);

#endif
