/* pvpanic.h - the port by which a guest says that it panicked. See pvpanic.c. */
#ifndef DEVICES_PVPANIC_H
#define DEVICES_PVPANIC_H

#include "common/err.h"

#define PVPANIC_PORT 0x505u

struct vm;
struct pvpanic;

struct pvpanic *pvpanic_new(struct vm *vm, struct err *e); /* owned by the VM */

#endif
