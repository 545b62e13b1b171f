/* acpi.h - the ACPI tables of the pc machine. See acpi.c. */
#ifndef DEVICES_ACPI_H
#define DEVICES_ACPI_H

#include <stdint.h>

#include "devices/aml.h"
#include "hypervisor-core/mem.h"

struct acpi_serial {
	uint16_t port;
	uint8_t irq;
};

struct acpi_config {
	gpa_t base; /* where the tables go: 16-byte aligned, below 4 GiB; RSDP first */
	unsigned vcpus;
	uint64_t ecam_base;
	unsigned ecam_buses;
	uint64_t mmio32_base, mmio32_size, mmio64_base, mmio64_size;
	gpa_t vmgenid;
	unsigned nserials;
	struct acpi_serial serials[4];
};

/* acpi_build() - all tables as they lie from @cfg->base on, into @out (freed by the caller with
 * aml_free()).
 * The RSDP is at its start. Return: 0 or -ENOMEM. */
int acpi_build(const struct acpi_config *cfg, struct aml *out);

#endif
