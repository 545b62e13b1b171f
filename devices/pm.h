/* pm.h - ACPI fixed hardware: PM1a, timer, GPE0, and the reset control port 0xcf9. See pm.c. */
#ifndef DEVICES_PM_H
#define DEVICES_PM_H

#include "common/err.h"
#include "hypervisor-core/bus.h"
#include "hypervisor-core/irq.h"

#define PM_BASE	    0x600u /* events 0, control 4, timer 8 */
#define PM_GPE_BASE 0x620u
#define PM_GPE_LEN  4u /* two bytes of status, two of enable */
#define PM_SCI	    9u
#define PM_S5_TYPE  5u

struct pm;

struct pm *pm_new(struct vm *vm, const struct irq *sci, struct err *e); /* owned by the VM */
void pm_power_button(struct pm *p);
void pm_gpe_raise(struct pm *p, unsigned n); /* n below 16 */
extern const struct bus_ops pm_cf9_ops;	     /* opaque: struct pm; for pci_bus_config.cf9 */

#endif
