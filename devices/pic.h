/* pic.h - the 8259A pair of a PC with its edge/level register. See pic.c. */
#ifndef DEVICES_PIC_H
#define DEVICES_PIC_H

#include <stdbool.h>

#include "common/err.h"
#include "hypervisor-core/irq.h"

struct pic;

/* pic_new() - ports 0x20, 0xa0, 0x4d0. @output(@opaque, level) is called without the PIC's lock
 * whenever INTR towards vCPU 0 changes. Owned by the VM. */
struct pic *pic_new(struct vm *vm, void (*output)(void *opaque, bool level), void *opaque,
		    struct err *e);
/* pic_irq_set() - line 0-15 (2 is the cascade: ignored). Any thread. Fits struct irq. */
void pic_irq_set(void *pic, unsigned n, bool level);
bool pic_pending(struct pic *p); /* any thread */
int pic_ack(struct pic *p);	 /* vector; a spurious one where nothing is pending; any thread */

#endif
