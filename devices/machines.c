/* machines.c - the table of machines. One row each; the first is the default. Data only. */
#include <stddef.h>

#include "devices/pc.h"
#include "hypervisor-core/machine.h"

const struct machine_ops *const machine_rows[] = { &machine_pc, NULL };
