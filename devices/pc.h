/* pc.h - the machine row `pc` (pc.c). */
#ifndef DEVICES_PC_H
#define DEVICES_PC_H

#include "hypervisor-core/machine.h"

extern const struct machine_ops machine_pc;

#endif
