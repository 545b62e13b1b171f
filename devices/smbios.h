/* smbios.h - SMBIOS 3 tables of the pc machine. See smbios.c. */
#ifndef DEVICES_SMBIOS_H
#define DEVICES_SMBIOS_H

#include <stdint.h>

#include "devices/aml.h"
#include "hypervisor-core/mem.h"

struct smbios_config {
	gpa_t base;	     /* where the tables go: 16-byte aligned, inside 0xf0000-0xfffff */
	const uint8_t *uuid; /* 16 bytes, in the order of the UUID's text */
	unsigned vcpus;
	uint64_t low_bytes, high_bytes; /* RAM below the hole, and from 4 GiB on */
};

/* smbios_build() - entry point and structures as they lie from @cfg->base on. aml_free(@out). 0 or
 * -ENOMEM. */
int smbios_build(const struct smbios_config *cfg, struct aml *out);

#endif
