/* pc.c - the machine `pc`: memory map, chips and their wiring, boot payload.
 *
 * Memory map:
 *	0 - 0x9fc00             RAM
 *	0xe0000                 ACPI tables (RSDP first)
 *	0xef000                 VM generation ID
 *	0xf0000                 SMBIOS
 *	1 MiB - 3 GiB at most   RAM
 *	0xc0000000 - 0xdfffffff PCI memory window
 *	0xe0000000              ECAM, bus 0
 *	0xfec00000, 0xfee00000  I/O APIC, LAPICs
 *	4 GiB and on            the rest of RAM; behind it the 64-bit PCI window
 * RAM below 3 GiB is one region: what lies between 0xa0000 and 1 MiB is RAM that the memory map
 * keeps from kernels.
 *
 * One function wires it all; a restore is the same build followed by vm_load(). A guest cloned from
 * a template (memory_fd given) has its payload in that memory already, and nothing is written to it
 * before the load, so that no page of it is copied for nothing.
 * Threading: build, reset and destroy on the main thread with no vCPU running.
 */
#include "devices/pc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "devices/acpi.h"
#include "devices/i8042.h"
#include "devices/intc.h"
#include "devices/machine_config.h"
#include "devices/pci.h"
#include "devices/pit.h"
#include "devices/pm.h"
#include "devices/pvpanic.h"
#include "devices/rtc.h"
#include "devices/serial16550.h"
#include "devices/smbios.h"
#include "devices/virtio_devices.h"
#include "devices/vmgenid.h"
#include "hypervisor-core/load/load.h"
#include "hypervisor-core/machine.h"
#include "hypervisor-core/vm.h"

#define PC_LOW_MAX     (3 * GIB)
#define PC_HIGH_BASE   (4 * GIB)
#define PC_MEMORY_MIN  (16 * MIB)
#define PC_MMIO32_BASE 0xc0000000u
#define PC_MMIO32_SIZE 0x20000000u
#define PC_ECAM_BASE   0xe0000000u
#define PC_MMIO64_SIZE (64 * GIB)
#define PC_ACPI_BASE   0xe0000u
#define PC_VMGENID     0xef000u
#define PC_SMBIOS_BASE 0xf0000u
#define PC_EBDA	       0x9fc00u
#define PC_PCI_GSI     16u

static const struct {
	uint16_t port;
	uint8_t irq;
} pc_serials[MC_SERIALS_MAX] = { { 0x3f8, 4 }, { 0x2f8, 3 }, { 0x3e8, 5 }, { 0x2e8, 7 } };

struct pc {
	struct device dev; /* first in, so last out */
	struct intc intc;
	struct pm *pm;
	struct rtc *rtc;
	struct vmgenid *vmgenid;
	struct pci_bus *pci;
	uint64_t low_bytes, high_bytes, mmio64_base, mmio64_size;
	unsigned vcpus, nserials;
	uint8_t uuid[16];
	/* boot payload, for each reset */
	int kernel_fd, initrd_fd;
	char kernel_name[64], initrd_name[64];
	enum boot_format format;
	char *cmdline;
};

/* ---- boot payload ---- */

static int pc_store(struct vm *vm, gpa_t gpa, const struct aml *blob, uint64_t room,
		    const char *what, struct err *e)
{
	if (blob->len > room || mem_store(vm->mem, gpa, blob->p, blob->len))
		return err_set(e, ENOSPC, "tables-too-large",
			       "guest %s: its %s tables (%zu bytes) do not fit below 1 MiB",
			       vm->name, what, blob->len);
	return 0;
}

static int pc_tables(struct pc *pc, struct err *e)
{
	struct vm *vm = pc->dev.vm;
	struct acpi_config ac = {
		.base = PC_ACPI_BASE,
		.vcpus = pc->vcpus,
		.ecam_base = PC_ECAM_BASE,
		.ecam_buses = 1,
		.mmio32_base = PC_MMIO32_BASE,
		.mmio32_size = PC_MMIO32_SIZE,
		.mmio64_base = pc->mmio64_base,
		.mmio64_size = pc->mmio64_size,
		.vmgenid = PC_VMGENID,
		.nserials = pc->nserials,
	};
	struct smbios_config sc = {
		.base = PC_SMBIOS_BASE,
		.uuid = pc->uuid,
		.vcpus = pc->vcpus,
		.low_bytes = pc->low_bytes,
		.high_bytes = pc->high_bytes,
	};
	struct aml blob;
	int ret;

	for (unsigned i = 0; i < pc->nserials; i++)
		ac.serials[i] = (struct acpi_serial){ pc_serials[i].port, pc_serials[i].irq };
	if (acpi_build(&ac, &blob))
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for its ACPI tables",
			       vm->name);
	ret = pc_store(vm, PC_ACPI_BASE, &blob, PC_VMGENID - PC_ACPI_BASE, "ACPI", e);
	aml_free(&blob);
	if (ret)
		return ret;
	if (smbios_build(&sc, &blob))
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for its SMBIOS tables",
			       vm->name);
	ret = pc_store(vm, PC_SMBIOS_BASE, &blob, 0x10000, "SMBIOS", e);
	aml_free(&blob);
	return ret;
}

/* pc_random() - for KASLR; the same each time under virtual time, where each start is the same. */
static uint64_t pc_random(const struct vm *vm)
{
	uint64_t v;

	if (vm->accel_cfg.icount)
		return 0x9e3779b97f4a7c15;
	if (getrandom(&v, sizeof(v), GRND_NONBLOCK) != (ssize_t)sizeof(v))
		return 0; /* the kernel's stub then does it */
	return v;
}

/* Tables, generation id, kernel; and the boot vCPU's entry state. vCPUs are at power-on. */
static int pc_payload(struct pc *pc, struct err *e)
{
	struct vm *vm = pc->dev.vm;
	const struct boot_e820 map[] = {
		{ 0, PC_EBDA, 1 },
		{ PC_EBDA, 0xa0000 - PC_EBDA, 2 },
		{ PC_ACPI_BASE, MIB - PC_ACPI_BASE, 2 },
		{ MIB, pc->low_bytes - MIB, 1 },
		{ PC_ECAM_BASE, MIB, 2 },
		{ PC_HIGH_BASE, pc->high_bytes, 1 },
	};
	struct boot_config bc = {
		.kernel_fd = pc->kernel_fd,
		.initrd_fd = pc->initrd_fd,
		.kernel_name = pc->kernel_name,
		.initrd_name = pc->initrd_name,
		.cmdline = pc->cmdline,
		.format = pc->format,
		.random = pc_random(vm),
		.rsdp = PC_ACPI_BASE,
		.e820 = map,
		.ne820 = ARRAY_SIZE(map) - (pc->high_bytes ? 0 : 1),
	};
	struct x86_state *s;
	enum boot_format used;
	int ret = pc_tables(pc, e);

	if (ret)
		return ret;
	vmgenid_write(pc->vmgenid);
	if (pc->kernel_fd < 0)
		return 0; /* its memory and state come from elsewhere */
	s = malloc(sizeof(*s));
	if (!s)
		return err_set(e, ENOMEM, "no-memory", "guest %s: out of memory", vm->name);
	x86_state_reset(s, 0);
	ret = boot_load(vm->mem, &bc, s, &used, e);
	if (!ret)
		ret = vm->accel->vcpu_set_state(vm->vcpus[0], s, e);
	if (!ret)
		vm->boot_format = boot_format_name(used);
	free(s);
	return ret;
}

/* ---- building ---- */

static int pc_ram(struct pc *pc, const struct machine_config *cfg, struct err *e)
{
	struct vm *vm = pc->dev.vm;
	uint32_t flags = cfg->memory_flags | (cfg->memory_fd >= 0 ? MEM_PRIVATE : 0);
	int fd2 = -1, ret;

	pc->low_bytes = MIN(cfg->memory_bytes, PC_LOW_MAX);
	pc->high_bytes = cfg->memory_bytes - pc->low_bytes;
	if (pc->high_bytes && cfg->memory_fd >= 0) {
		fd2 = fcntl(cfg->memory_fd, F_DUPFD_CLOEXEC, 3);
		if (fd2 < 0)
			return err_set(e, errno, "no-descriptor",
				       "guest %s: cannot map its memory twice: %s", vm->name,
				       strerror(errno));
	}
	ret = vm_add_ram(vm, "ram", 0, pc->low_bytes, cfg->memory_fd, 0, flags, e);
	if (!ret && pc->high_bytes) {
		ret = vm_add_ram(vm, "ram-high", PC_HIGH_BASE, pc->high_bytes, fd2,
				 fd2 < 0 ? 0 : pc->low_bytes, flags, e);
		if (!ret)
			fd2 = -1;
	}
	close_fd(&fd2);
	return ret;
}

/* The 64-bit PCI window lies behind RAM, where the guest's CPU can still address it. */
static void pc_window64(struct pc *pc)
{
	const struct cpuid_entry *c = cpuid_find(&pc->dev.vm->cpuid, 0x80000008, 0);
	unsigned bits = c && (c->eax & 0xff) ? c->eax & 0xff : 36;
	uint64_t base = ALIGN_UP(PC_HIGH_BASE + pc->high_bytes, PC_MMIO64_SIZE);

	if (bits > 52 || base + PC_MMIO64_SIZE > 1ull << bits)
		return; /* all BARs then go below 4 GiB */
	pc->mmio64_base = base;
	pc->mmio64_size = PC_MMIO64_SIZE;
}

static int pc_pci(struct pc *pc, struct err *e)
{
	struct pci_bus_config bc = {
		.vm = pc->dev.vm,
		.ecam_base = PC_ECAM_BASE,
		.ecam_buses = 1,
		.mmio32_base = PC_MMIO32_BASE,
		.mmio32_size = PC_MMIO32_SIZE,
		.io_base = 0x1000,
		.io_size = 0xf000,
		.cf9 = &pm_cf9_ops,
		.cf9_opaque = pc->pm,
	};

	pc_window64(pc);
	bc.mmio64_base = pc->mmio64_base;
	bc.mmio64_size = pc->mmio64_size;
	for (unsigned i = 0; i < 4; i++)
		bc.intx[i] = intc_gsi(&pc->intc, PC_PCI_GSI + i);
	pc->pci = pci_bus_new(&bc, e);
	return pc->pci ? 0 : -ENOMEM;
}

static int pc_chips(struct pc *pc, const struct machine_config *cfg, struct err *e)
{
	struct vm *vm = pc->dev.vm;
	struct irq line = intc_isa(&pc->intc, 0);

	if (!pit_new(vm, &line, e))
		return -ENOMEM;
	line = intc_isa(&pc->intc, 8);
	pc->rtc = rtc_new(vm, &line, e);
	line = intc_isa(&pc->intc, 1);
	if (!pc->rtc || !i8042_new(vm, &line, e))
		return -ENOMEM;
	rtc_memory_set(pc->rtc, pc->low_bytes, pc->high_bytes);
	line = intc_isa(&pc->intc, PM_SCI);
	pc->pm = pm_new(vm, &line, e);
	if (!pc->pm || !pvpanic_new(vm, e))
		return -ENOMEM;
	pc->vmgenid = vmgenid_new(vm, PC_VMGENID, cfg->vmgenid, pc->pm, e);
	if (!pc->vmgenid)
		return -ENOMEM;
	for (unsigned i = 0; i < cfg->nserials; i++) {
		struct serial16550_config sc = {
			.name = cfg->serials[i].name,
			.port = pc_serials[i].port,
			.irq = intc_isa(&pc->intc, pc_serials[i].irq),
			.chr = cfg->serials[i].chr,
		};

		if (!serial16550_new(vm, &sc, e))
			return -ENOMEM;
	}
	return pc_pci(pc, e);
}

static int pc_virtio(struct pc *pc, const struct machine_config *cfg, struct err *e)
{
	struct vm *vm = pc->dev.vm;
	int ret = 0;

	for (unsigned i = 0; i < cfg->ndisks && !ret; i++)
		ret = virtio_blk_new(vm, pc->pci, &cfg->disks[i], e);
	for (unsigned i = 0; i < cfg->nnics && !ret; i++)
		ret = virtio_net_new(vm, pc->pci, &cfg->nics[i], e);
	if (cfg->nconsoles && !ret)
		ret = virtio_console_new(vm, pc->pci, cfg->consoles, cfg->nconsoles, e);
	if (cfg->rng && !ret)
		ret = virtio_rng_new(vm, pc->pci, e);
	return ret;
}

static int pc_check(const struct vm *vm, const struct machine_config *cfg, struct err *e)
{
	if (cfg->memory_bytes < PC_MEMORY_MIN || cfg->memory_bytes % MEM_PAGE ||
	    cfg->memory_bytes > 16384 * GIB)
		return err_set(
		    e, EINVAL, "memory-out-of-range",
		    "guest %s: %llu bytes of memory; a pc needs 16 MiB to 16 TiB in whole pages",
		    vm->name, (unsigned long long)cfg->memory_bytes);
	if (cfg->vcpus < 1 || cfg->vcpus > VM_VCPUS_MAX)
		return err_set(e, EINVAL, "vcpus-out-of-range",
			       "guest %s: %u vCPUs; a pc has 1 to %u", vm->name, cfg->vcpus,
			       VM_VCPUS_MAX);
	if (cfg->ndisks > MC_DISKS_MAX || cfg->nnics > MC_NICS_MAX ||
	    cfg->nserials > MC_SERIALS_MAX || cfg->nconsoles > MC_CONSOLES_MAX)
		return err_set(e, EINVAL, "too-many-devices",
			       "guest %s: a pc takes %u disks, %u network ports, %u serial ports "
			       "and %u console ports",
			       vm->name, MC_DISKS_MAX, MC_NICS_MAX, MC_SERIALS_MAX,
			       MC_CONSOLES_MAX);
	return 0;
}

static void pc_dev_save(struct device *d, struct state_writer *w)
{
	struct pc *pc = container_of(d, struct pc, dev);

	state_put_u64(w, 1, pc->low_bytes);
	state_put_u64(w, 2, pc->high_bytes);
	state_put_u64(w, 3, pc->vcpus);
}

static int pc_dev_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct pc *pc = container_of(d, struct pc, dev);

	if (state_get_u64_or(r, 1, 0) != pc->low_bytes ||
	    state_get_u64_or(r, 2, 0) != pc->high_bytes || state_get_u64_or(r, 3, 0) != pc->vcpus)
		return err_set(e, EINVAL, "state-mismatch",
			       "guest %s: the saved state is of a pc with other memory or another "
			       "number of vCPUs",
			       d->vm->name);
	return 0;
}

static void pc_dev_destroy(struct device *d)
{
	struct pc *pc = container_of(d, struct pc, dev);

	close_fd(&pc->kernel_fd);
	close_fd(&pc->initrd_fd);
	d->vm->machine = NULL;
	d->vm->intc = NULL;
	free(pc->cmdline);
	free(pc);
}

static const struct device_ops pc_device_ops = {
	.name = "pc",
	.version = 1,
	.save = pc_dev_save,
	.load = pc_dev_load,
	.destroy = pc_dev_destroy,
};

static int pc_build(struct vm *vm, const struct machine_config *cfg, struct err *e)
{
	struct pc *pc;
	int ret = pc_check(vm, cfg, e);

	if (ret)
		return ret;
	pc = calloc(1, sizeof(*pc));
	if (!pc)
		return err_set(e, ENOMEM, "no-memory", "guest %s: out of memory", vm->name);
	pc->kernel_fd = pc->initrd_fd = -1;
	pc->vcpus = cfg->vcpus;
	pc->nserials = cfg->nserials;
	memcpy(pc->uuid, cfg->uuid, sizeof(pc->uuid));
	vm_device_add(vm, &pc->dev, &pc_device_ops, "pc");
	vm->machine = pc;
	pc->cmdline = strdup(cfg->cmdline	 ? cfg->cmdline
			     : cfg->boot.cmdline ? cfg->boot.cmdline
						 : "");
	if (!pc->cmdline)
		return err_set(e, ENOMEM, "no-memory", "guest %s: out of memory", vm->name);
	/* RAM, then controllers, then vCPUs: the order costs (accel.h). */
	ret = pc_ram(pc, cfg, e);
	if (!ret)
		ret = intc_build(&pc->intc, vm, cfg->vcpus, e);
	if (!ret)
		ret = vm_make_vcpus(vm, cfg->vcpus, e);
	if (!ret)
		ret = pc_chips(pc, cfg, e);
	if (!ret)
		ret = pc_virtio(pc, cfg, e);
	if (ret)
		return ret;
	pc->kernel_fd = cfg->boot.kernel_fd;
	pc->initrd_fd = cfg->boot.initrd_fd;
	snprintf(pc->kernel_name, sizeof(pc->kernel_name), "%.63s",
		 cfg->boot.kernel_name ? cfg->boot.kernel_name : "kernel");
	snprintf(pc->initrd_name, sizeof(pc->initrd_name), "%.63s",
		 cfg->boot.initrd_name ? cfg->boot.initrd_name : "initrd");
	pc->format = cfg->boot.format;
	if (cfg->memory_fd < 0) {
		ret = vm_reset(vm, e);
		if (!ret)
			ret = pc_payload(pc, e);
	}
	if (ret) /* still the caller's */
		pc->kernel_fd = pc->initrd_fd = -1;
	return ret;
}

static int pc_reset(struct vm *vm, struct err *e)
{
	return pc_payload(vm->machine, e);
}

static void pc_power_button(struct vm *vm)
{
	struct pc *pc = vm->machine;

	vm_lock(vm);
	pm_power_button(pc->pm);
	vm_unlock(vm);
}

/* The machine is the VM's first device and goes with it; this lets go of the payload's files early.
 */
static void pc_destroy(struct vm *vm)
{
	struct pc *pc = vm->machine;

	if (!pc)
		return;
	close_fd(&pc->kernel_fd);
	close_fd(&pc->initrd_fd);
}

const struct machine_ops machine_pc = {
	.name = "pc",
	.arch = "x86_64",
	.help = "x86-64 PC: PCI, ACPI, virtio, four serial ports",
	.vcpus_max = VM_VCPUS_MAX,
	.build = pc_build,
	.reset = pc_reset,
	.power_button = pc_power_button,
	.destroy = pc_destroy,
};
