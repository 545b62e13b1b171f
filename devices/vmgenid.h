/* vmgenid.h - the VM generation ID: tells a guest that it is a copy. See vmgenid.c. */
#ifndef DEVICES_VMGENID_H
#define DEVICES_VMGENID_H

#include <stdint.h>

#include "common/err.h"
#include "hypervisor-core/mem.h"

#define VMGENID_GPE 0u

struct pm;
struct vm;
struct vmgenid;

/* vmgenid_new() - @gpa: page in guest RAM that no memory map gives to the kernel; @id as in a
 * UUID's text.
 * Nothing is written yet. Owned by the VM. */
struct vmgenid *vmgenid_new(struct vm *vm, gpa_t gpa, const uint8_t id[16], struct pm *pm,
			    struct err *e);
void vmgenid_write(struct vmgenid *g); /* put the id into guest RAM */

#endif
