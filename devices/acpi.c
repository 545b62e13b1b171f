/* acpi.c - ACPI tables of the pc machine (ACPI 6.4): RSDP, FACS, DSDT, FADT, MADT, MCFG, XSDT.
 *
 * The DSDT has the PCI root bridge with its windows and interrupt routing, the UARTs, the RTC,
 * pvpanic and the VM generation ID; nothing that has to be patched at run time, so that any restore
 * has the same bytes.
 * Pure function of its config: no state, no lock.
 */
#include "devices/acpi.h"

#include <errno.h>
#include <string.h>

#include "common/overflow.h"
#include "devices/ioapic.h"
#include "devices/pm.h"
#include "devices/pvpanic.h"
#include "devices/rtc.h"
#include "devices/vmgenid.h"

#define LAPIC_BASE 0xfee00000u
#define PCI_GSI	   16u /* first of the four interrupt lines of the root bus */

/* ---- DSDT ---- */

static void acpi_pci_routing(struct aml *a)
{
	size_t prt, entry;

	aml_name(a, "_PRT");
	prt = aml_package_begin(a, 32 * 4);
	for (unsigned slot = 0; slot < 32; slot++) {
		for (unsigned pin = 0; pin < 4; pin++) {
			entry = aml_package_begin(a, 4);
			aml_int(a, (uint64_t)slot << 16 | 0xffff);
			aml_int(a, pin);
			aml_int(a, 0);
			aml_int(a, PCI_GSI + ((slot + pin) & 3));
			aml_end(a, entry);
		}
	}
	aml_end(a, prt);
}

/* _OSC: every control the OS asks for is granted: the bus has no port that would mind. */
static void acpi_pci_osc(struct aml *a)
{
	/* 33DB4D5B-1FF7-401C-9657-7441C03DD766 */
	static const uint8_t uuid[16] = { 0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
					  0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66 };
	size_t method = aml_method_begin(a, "_OSC", 4), branch;

	aml_byte(a, 0x8a); /* CreateDWordField(Arg3, 0, CDW1) */
	aml_byte(a, 0x6b);
	aml_int(a, 0);
	aml_path(a, "CDW1");
	branch = aml_if_begin(a);
	aml_byte(a, 0x93); /* LEqual(Arg0, uuid) */
	aml_byte(a, 0x68);
	aml_buffer(a, uuid, sizeof(uuid));
	aml_byte(a, 0xa4); /* Return(Arg3) */
	aml_byte(a, 0x6b);
	aml_end(a, branch);
	aml_byte(a, 0x7d); /* Or(CDW1, 4, CDW1): unrecognised UUID */
	aml_path(a, "CDW1");
	aml_int(a, 4);
	aml_path(a, "CDW1");
	aml_byte(a, 0xa4);
	aml_byte(a, 0x6b);
	aml_end(a, method);
}

static void acpi_pci(struct aml *a, const struct acpi_config *c)
{
	size_t dev = aml_device_begin(a, "PCI0");
	struct aml_resources r;

	aml_name_eisaid(a, "_HID", "PNP0A08");
	aml_name_eisaid(a, "_CID", "PNP0A03");
	aml_name_int(a, "_UID", 0);
	aml_name_int(a, "_BBN", 0);
	aml_name_int(a, "_SEG", 0);
	aml_name(a, "_CRS");
	r = aml_resources_begin(a);
	aml_window(a, AML_BUS, 2, 0, c->ecam_buses - 1);
	aml_io(a, 0xcf8, 8);
	aml_window(a, AML_IO, 2, 0, 0xcf7);
	aml_window(a, AML_IO, 2, 0xd00, 0xffff);
	aml_window(a, AML_MEMORY, 4, c->mmio32_base, c->mmio32_base + c->mmio32_size - 1);
	if (c->mmio64_size)
		aml_window(a, AML_MEMORY, 8, c->mmio64_base, c->mmio64_base + c->mmio64_size - 1);
	aml_resources_end(a, r);
	acpi_pci_routing(a);
	acpi_pci_osc(a);
	aml_end(a, dev);
}

/* The kernel wants ECAM reserved by a motherboard resource before it trusts the MCFG. */
static void acpi_motherboard(struct aml *a, const struct acpi_config *c)
{
	size_t dev = aml_device_begin(a, "MBRD");
	struct aml_resources r;

	aml_name_eisaid(a, "_HID", "PNP0C02");
	aml_name_int(a, "_UID", 0);
	aml_name(a, "_CRS");
	r = aml_resources_begin(a);
	aml_memory32(a, (uint32_t)c->ecam_base, c->ecam_buses << 20);
	aml_resources_end(a, r);
	aml_end(a, dev);
}

static void acpi_serials(struct aml *a, const struct acpi_config *c)
{
	for (unsigned i = 0; i < c->nserials; i++) {
		char name[5] = { 'C', 'O', 'M', (char)('1' + i), 0 };
		size_t dev = aml_device_begin(a, name);
		struct aml_resources r;

		aml_name_eisaid(a, "_HID", "PNP0501");
		aml_name_int(a, "_UID", i + 1);
		aml_name(a, "_CRS");
		r = aml_resources_begin(a);
		aml_io(a, c->serials[i].port, 8);
		aml_irq(a, c->serials[i].irq);
		aml_resources_end(a, r);
		aml_end(a, dev);
	}
}

static void acpi_rtc(struct aml *a)
{
	size_t dev = aml_device_begin(a, "RTC_");
	struct aml_resources r;

	aml_name_eisaid(a, "_HID", "PNP0B00");
	aml_name(a, "_CRS");
	r = aml_resources_begin(a);
	aml_io(a, 0x70, 2);
	aml_irq(a, 8);
	aml_resources_end(a, r);
	aml_end(a, dev);
}

static void acpi_pvpanic(struct aml *a)
{
	size_t dev = aml_device_begin(a, "PEVT");
	struct aml_resources r;

	aml_name_string(a, "_HID", "QEMU0001");
	aml_name_int(a, "_STA", 0xf);
	aml_name(a, "_CRS");
	r = aml_resources_begin(a);
	aml_io(a, PVPANIC_PORT, 1);
	aml_resources_end(a, r);
	aml_end(a, dev);
}

static void acpi_vmgenid(struct aml *a, const struct acpi_config *c)
{
	size_t dev = aml_device_begin(a, "VGEN"), addr, cid;

	aml_name_string(a, "_HID", "VMDV0001");
	aml_name(a, "_CID"); /* Microsoft's name, and Linux's for buses with short ids */
	cid = aml_package_begin(a, 2);
	aml_string(a, "VM_Gen_Counter");
	aml_string(a, "VMGENCTR");
	aml_end(a, cid);
	aml_name_string(a, "_DDN", "VM_Gen_Counter");
	aml_name(a, "ADDR");
	addr = aml_package_begin(a, 2);
	aml_int(a, (uint32_t)c->vmgenid);
	aml_int(a, c->vmgenid >> 32);
	aml_end(a, addr);
	aml_end(a, dev);
}

static void acpi_dsdt_body(struct aml *a, const struct acpi_config *c)
{
	size_t scope, m, method;
	char event[5] = { '_', 'E', '0', (char)('0' + VMGENID_GPE), 0 };

	scope = aml_scope_begin(a, "\\_SB_");
	acpi_pci(a, c);
	acpi_motherboard(a, c);
	acpi_serials(a, c);
	acpi_rtc(a);
	acpi_pvpanic(a);
	acpi_vmgenid(a, c);
	aml_end(a, scope);

	scope = aml_scope_begin(a, "\\_GPE");
	method = aml_method_begin(a, event, 0);
	aml_byte(a, 0x86); /* Notify */
	aml_path(a, "\\_SB_.VGEN");
	aml_int(a, 0x80);
	aml_end(a, method);
	aml_end(a, scope);

	aml_name(a, "\\_S5_");
	m = aml_package_begin(a, 4);
	aml_int(a, PM_S5_TYPE);
	aml_int(a, PM_S5_TYPE);
	aml_int(a, 0);
	aml_int(a, 0);
	aml_end(a, m);
}

/* ---- tables ---- */

static uint8_t acpi_sum(const uint8_t *p, size_t len)
{
	uint8_t s = 0;

	while (len--)
		s = (uint8_t)(s + *p++);
	return s;
}

static void acpi_patch(struct aml *a, size_t at, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes && !a->error; i++)
		a->p[at + i] = (uint8_t)(v >> 8 * i);
}

static void acpi_align(struct aml *a, size_t to)
{
	while (!a->error && a->len % to)
		aml_byte(a, 0);
}

static size_t acpi_table_begin(struct aml *a, const char *sig, uint8_t revision)
{
	size_t at;

	acpi_align(a, 16);
	at = a->len;
	aml_bytes(a, sig, 4);
	aml_le(a, 0, 4); /* length */
	aml_byte(a, revision);
	aml_byte(a, 0); /* checksum */
	aml_bytes(a, "VMD   ", 6);
	aml_bytes(a, "VMDPC   ", 8);
	aml_le(a, 1, 4);
	aml_bytes(a, "VMD ", 4);
	aml_le(a, 1, 4);
	return at;
}

static void acpi_table_end(struct aml *a, size_t at)
{
	if (a->error)
		return;
	acpi_patch(a, at + 4, a->len - at, 4);
	a->p[at + 9] = (uint8_t)-acpi_sum(a->p + at, a->len - at);
}

/* Generic address: port space. */
static void acpi_gas(struct aml *a, uint8_t bits, uint8_t access, uint16_t port)
{
	aml_byte(a, 1);
	aml_byte(a, bits);
	aml_byte(a, 0);
	aml_byte(a, access);
	aml_le(a, port, 8);
}

static void acpi_gas_none(struct aml *a)
{
	aml_le(a, 0, 8);
	aml_le(a, 0, 4);
}

static size_t acpi_fadt(struct aml *a, uint64_t facs, uint64_t dsdt)
{
	size_t at = acpi_table_begin(a, "FACP", 6);
	/* WBINVD, PROC_C1, no sleep button, RTC wake not fixed, 32-bit timer, reset register */
	uint32_t flags = 1u << 0 | 1u << 2 | 1u << 5 | 1u << 6 | 1u << 8 | 1u << 10;

	aml_le(a, facs, 4);
	aml_le(a, dsdt, 4);
	aml_byte(a, 0);
	aml_byte(a, 4); /* profile: enterprise server */
	aml_le(a, PM_SCI, 2);
	aml_le(a, 0, 4); /* SMI_CMD: always in ACPI mode */
	aml_le(a, 0, 4); /* ACPI_ENABLE ... PSTATE_CNT */
	aml_le(a, PM_BASE, 4);
	aml_le(a, 0, 4);
	aml_le(a, PM_BASE + 4, 4);
	aml_le(a, 0, 4);
	aml_le(a, 0, 4);
	aml_le(a, PM_BASE + 8, 4);
	aml_le(a, PM_GPE_BASE, 4);
	aml_le(a, 0, 4);
	aml_byte(
	    a, 4); /* lengths: PM1_EVT, PM1_CNT, PM2_CNT, PM_TMR, GPE0, GPE1, GPE1_BASE, CST_CNT */
	aml_byte(a, 2);
	aml_byte(a, 0);
	aml_byte(a, 4);
	aml_byte(a, PM_GPE_LEN);
	aml_le(a, 0, 3);
	aml_le(a, 0xfff, 2); /* C2 and C3: not there */
	aml_le(a, 0xfff, 2);
	aml_le(a, 0, 4); /* FLUSH_SIZE, FLUSH_STRIDE */
	aml_le(a, 0, 4); /* duty cycle, alarms */
	aml_byte(a, RTC_CENTURY);
	aml_le(a, 1u << 0 | 1u << 2, 2); /* legacy devices; no 8042 to probe, no VGA */
	aml_byte(a, 0);
	aml_le(a, flags, 4);
	acpi_gas(a, 8, 1, 0xcf9);
	aml_byte(a, 6);
	aml_le(a, 0, 2);
	aml_byte(a, 3);	 /* minor revision */
	aml_le(a, 0, 8); /* X_FIRMWARE_CTRL: the 32-bit field holds it */
	aml_le(a, dsdt, 8);
	acpi_gas(a, 32, 2, PM_BASE);
	acpi_gas_none(a);
	acpi_gas(a, 16, 2, PM_BASE + 4);
	acpi_gas_none(a);
	acpi_gas_none(a);
	acpi_gas(a, 32, 3, PM_BASE + 8);
	acpi_gas(a, PM_GPE_LEN * 8, 1, PM_GPE_BASE);
	acpi_gas_none(a);
	acpi_gas_none(a); /* SLEEP_CONTROL_REG, SLEEP_STATUS_REG */
	acpi_gas_none(a);
	aml_bytes(a, "vmd\0\0\0\0", 8);
	acpi_table_end(a, at);
	return at;
}

static size_t acpi_madt(struct aml *a, const struct acpi_config *c)
{
	size_t at = acpi_table_begin(a, "APIC", 5);

	aml_le(a, LAPIC_BASE, 4);
	aml_le(a, 1, 4); /* 8259 pair present */
	for (unsigned i = 0; i < c->vcpus; i++) {
		aml_byte(a, 0);
		aml_byte(a, 8);
		aml_byte(a, (uint8_t)i);
		aml_byte(a, (uint8_t)i);
		aml_le(a, 1, 4);
	}
	aml_byte(a, 1); /* I/O APIC */
	aml_byte(a, 12);
	aml_le(a, 0, 2);
	aml_le(a, IOAPIC_BASE, 4);
	aml_le(a, 0, 4);
	/* Overrides: the timer is on pin 2; SCI is level-triggered, active high. */
	aml_byte(a, 2);
	aml_byte(a, 10);
	aml_byte(a, 0);
	aml_byte(a, 0);
	aml_le(a, 2, 4);
	aml_le(a, 0, 2);
	aml_byte(a, 2);
	aml_byte(a, 10);
	aml_byte(a, 0);
	aml_byte(a, PM_SCI);
	aml_le(a, PM_SCI, 4);
	aml_le(a, 0xd, 2);
	/* NMI on LINT1 of every LAPIC */
	aml_byte(a, 4);
	aml_byte(a, 6);
	aml_byte(a, 0xff);
	aml_le(a, 0, 2);
	aml_byte(a, 1);
	acpi_table_end(a, at);
	return at;
}

static size_t acpi_mcfg(struct aml *a, const struct acpi_config *c)
{
	size_t at = acpi_table_begin(a, "MCFG", 1);

	aml_le(a, 0, 8);
	aml_le(a, c->ecam_base, 8);
	aml_le(a, 0, 2);
	aml_byte(a, 0);
	aml_byte(a, (uint8_t)(c->ecam_buses - 1));
	aml_le(a, 0, 4);
	acpi_table_end(a, at);
	return at;
}

static size_t acpi_facs(struct aml *a)
{
	size_t at;

	acpi_align(a, 64);
	at = a->len;
	aml_bytes(a, "FACS", 4);
	aml_le(a, 64, 4);
	for (unsigned i = 8; i < 64; i++)
		aml_byte(a, i == 32 ? 2 : 0); /* version */
	return at;
}

int acpi_build(const struct acpi_config *cfg, struct aml *out)
{
	struct aml *a = out;
	size_t facs, dsdt, fadt, madt, mcfg, xsdt;

	*a = (struct aml){ 0 };
	aml_bytes(a, "RSD PTR \0VMD   \2\0\0\0\0",
		  20); /* checksum and XSDT follow below; no RSDT */
	aml_le(a, 36, 4);
	aml_le(a, 0, 12);

	facs = acpi_facs(a);
	dsdt = acpi_table_begin(a, "DSDT", 2);
	acpi_dsdt_body(a, cfg);
	acpi_table_end(a, dsdt);
	fadt = acpi_fadt(a, cfg->base + facs, cfg->base + dsdt);
	madt = acpi_madt(a, cfg);
	mcfg = acpi_mcfg(a, cfg);
	xsdt = acpi_table_begin(a, "XSDT", 1);
	aml_le(a, cfg->base + fadt, 8);
	aml_le(a, cfg->base + madt, 8);
	aml_le(a, cfg->base + mcfg, 8);
	acpi_table_end(a, xsdt);

	acpi_patch(a, 24, cfg->base + xsdt, 8);
	if (!a->error) {
		a->p[8] = (uint8_t)-acpi_sum(a->p, 20);
		a->p[32] = (uint8_t)-acpi_sum(a->p, 36);
	}
	if (a->error) {
		int ret = a->error;

		aml_free(a);
		return ret;
	}
	return 0;
}
