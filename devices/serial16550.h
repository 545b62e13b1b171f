/* serial16550.h - a 16550A UART on the ISA bus. See serial16550.c. */
#ifndef DEVICES_SERIAL16550_H
#define DEVICES_SERIAL16550_H

#include <stdint.h>

#include "common/err.h"
#include "devices/chardev.h"
#include "hypervisor-core/irq.h"

struct serial16550_config {
	const char *name; /* "serial0": the port's name; the device is "uart-serial0" */
	uint16_t port;	  /* 0x3f8 */
	struct irq irq;
	struct chardev_config chr; /* fd taken on success */
};

struct serial16550;

/* serial16550_new() - owned by the VM. NULL with @e. */
struct serial16550 *serial16550_new(struct vm *vm, const struct serial16550_config *cfg,
				    struct err *e);

#endif
