/* pci.c - PCI root bus: configuration by type 1 ports and ECAM, BAR placement and moves, INTx.
 *
 * A BAR is mapped while its decode bit is set and its address lies, aligned, inside the bus's
 * window of that kind: a guest that writes wild addresses (or sizes a BAR with decoding on) unmaps
 * it, and can never lay a device over RAM or another chip. Two BARs at one address: the first keeps
 * it.
 * Locking: machine lock. Trust: offsets, sizes and values are the guest's; each function's wmask
 * says which bits stick. MSI-X is in pci_msix.c.
 */
#include "devices/pci.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/overflow.h"
#include "devices/pci_msix.h"
#include "hypervisor-core/vm.h"

enum {
	PCI_COMMAND = 0x04,
	PCI_STATUS = 0x06,
	PCI_HEADER_TYPE = 0x0e,
	PCI_BAR0 = 0x10,
	PCI_CAP_PTR = 0x34,
	PCI_INT_LINE = 0x3c,
	PCI_INT_PIN = 0x3d,
};
#define CMD_IO	       0x0001u
#define CMD_MEM	       0x0002u
#define CMD_INTX_OFF   0x0400u
#define CMD_WRITABLE   0x0547u
#define STATUS_INTX    0x08u
#define STATUS_CAPS    0x10u
#define MULTI_FUNCTION 0x80u

struct pci_bus {
	struct device dev;
	struct pci_bus_config cfg;
	uint32_t address; /* port 0xcf8 */
	unsigned intx_count[4];
	struct pci_dev *devs[256];
};

struct vm *pci_bus_vm(const struct pci_bus *b)
{
	return b->cfg.vm;
}

static uint32_t pci_get32(const uint8_t *p)
{
	return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

static void pci_put32(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
	p[2] = (uint8_t)(v >> 16);
	p[3] = (uint8_t)(v >> 24);
}

static unsigned pci_command(const struct pci_dev *d)
{
	return d->cfg[PCI_COMMAND] | d->cfg[PCI_COMMAND + 1] << 8;
}

/* ---- BARs ---- */

static void pci_window(const struct pci_bus *b, const struct pci_bar *bar, uint64_t *base,
		       uint64_t *size)
{
	if (bar->io) {
		*base = b->cfg.io_base;
		*size = b->cfg.io_size;
	} else if (bar->mem64 && b->cfg.mmio64_size) {
		*base = b->cfg.mmio64_base;
		*size = b->cfg.mmio64_size;
	} else {
		*base = b->cfg.mmio32_base;
		*size = b->cfg.mmio32_size;
	}
}

/* A guest may move a 64-bit BAR into the 32-bit window as well. */
static bool pci_bar_inside(const struct pci_bus *b, const struct pci_bar *bar, uint64_t addr)
{
	uint64_t base, size;

	pci_window(b, bar, &base, &size);
	if (addr >= base && range_within(addr - base, bar->size_bytes, size))
		return true;
	return !bar->io && addr >= b->cfg.mmio32_base &&
	       range_within(addr - b->cfg.mmio32_base, bar->size_bytes, b->cfg.mmio32_size);
}

static uint64_t pci_bar_reg(const struct pci_dev *d, unsigned n)
{
	const struct pci_bar *bar = &d->bar[n];
	uint64_t v = pci_get32(&d->cfg[PCI_BAR0 + 4 * n]);

	if (bar->io)
		return v & ~3ull;
	v &= ~15ull;
	if (bar->mem64)
		v |= (uint64_t)pci_get32(&d->cfg[PCI_BAR0 + 4 * n + 4]) << 32;
	return v;
}

static void pci_bar_reg_set(struct pci_dev *d, unsigned n, uint64_t addr)
{
	const struct pci_bar *bar = &d->bar[n];
	uint32_t type = bar->io ? 1 : (bar->mem64 ? 4 : 0) | (bar->prefetch ? 8 : 0);

	pci_put32(&d->cfg[PCI_BAR0 + 4 * n], (uint32_t)addr | type);
	if (bar->mem64)
		pci_put32(&d->cfg[PCI_BAR0 + 4 * n + 4], (uint32_t)(addr >> 32));
}

static void pci_bar_unmap(struct pci_dev *d, unsigned n)
{
	struct pci_bar *bar = &d->bar[n];
	struct vm *vm = d->bus->cfg.vm;

	if (!bar->mapped)
		return;
	bus_del(bar->io ? vm->pio : vm->mmio, bar->addr);
	bar->mapped = false;
	if (bar->moved)
		bar->moved(d, n);
}

static void pci_bar_update(struct pci_dev *d, unsigned n)
{
	struct pci_bar *bar = &d->bar[n];
	struct vm *vm = d->bus->cfg.vm;
	uint64_t addr;
	bool on;

	if (!bar->size_bytes || !bar->ops)
		return;
	addr = pci_bar_reg(d, n);
	on = (pci_command(d) & (bar->io ? CMD_IO : CMD_MEM)) && IS_ALIGNED(addr, bar->size_bytes) &&
	     pci_bar_inside(d->bus, bar, addr);
	if (bar->mapped && on && bar->addr == addr)
		return;
	pci_bar_unmap(d, n);
	if (!on)
		return;
	if (bus_add(bar->io ? vm->pio : vm->mmio, addr, bar->size_bytes, bar->ops, bar->opaque,
		    d->name, bar->bus_flags)) {
		log_debug("pci %02x.%x: BAR %u at 0x%llx overlaps another; left unmapped",
			  d->devfn >> 3, d->devfn & 7, n, (unsigned long long)addr);
		return;
	}
	bar->addr = addr;
	bar->mapped = true;
	if (bar->moved)
		bar->moved(d, n);
}

static void pci_bars_update(struct pci_dev *d)
{
	/* First let go of what moves, so that two BARs can change places. */
	for (unsigned n = 0; n < 6; n++) {
		struct pci_bar *bar = &d->bar[n];

		if (bar->mapped && (pci_bar_reg(d, n) != bar->addr ||
				    !(pci_command(d) & (bar->io ? CMD_IO : CMD_MEM))))
			pci_bar_unmap(d, n);
	}
	for (unsigned n = 0; n < 6; n++)
		pci_bar_update(d, n);
}

/* First fit inside the window, beside every BAR's first place. */
static int pci_bar_place(struct pci_bus *b, struct pci_dev *d, unsigned n)
{
	struct pci_bar *bar = &d->bar[n];
	uint64_t base, size, at;
	bool moved;

	pci_window(b, bar, &base, &size);
	at = ALIGN_UP(base, bar->size_bytes);
	do {
		moved = false;
		for (unsigned i = 0; i < 256; i++) {
			struct pci_dev *o = b->devs[i] ? b->devs[i] : i == d->devfn ? d : NULL;

			for (unsigned k = 0; o && k < 6; k++) {
				const struct pci_bar *ob = &o->bar[k];

				if (!ob->size_bytes || !ob->home || ob->io != bar->io ||
				    !range_overlaps(at, bar->size_bytes, ob->home, ob->size_bytes))
					continue;
				at = ALIGN_UP(ob->home + ob->size_bytes, bar->size_bytes);
				moved = true;
			}
		}
	} while (moved);
	if (at < base || !range_within(at - base, bar->size_bytes, size))
		return -ENOSPC;
	bar->home = at;
	return 0;
}

static void pci_bar_wmask(struct pci_dev *d, unsigned n)
{
	const struct pci_bar *bar = &d->bar[n];
	uint64_t mask = ~(bar->size_bytes - 1);

	pci_put32(&d->wmask[PCI_BAR0 + 4 * n], (uint32_t)mask & (bar->io ? ~3u : ~15u));
	if (bar->mem64)
		pci_put32(&d->wmask[PCI_BAR0 + 4 * n + 4], (uint32_t)(mask >> 32));
}

int pci_bar_setup(struct pci_dev *d, unsigned n)
{
	struct pci_bar *bar = &d->bar[n];
	int ret;

	if (!bar->size_bytes || bar->home)
		return 0;
	if ((bar->size_bytes & (bar->size_bytes - 1)) || (bar->mem64 && n == 5) ||
	    bar->size_bytes < (bar->io ? 4 : MEM_PAGE))
		return -EINVAL;
	ret = pci_bar_place(d->bus, d, n);
	if (ret)
		return ret;
	pci_bar_wmask(d, n);
	pci_bar_reg_set(d, n, bar->home);
	return 0;
}

/* ---- INTx ---- */

static void pci_intx_line(struct pci_dev *d, bool level)
{
	struct pci_bus *b = d->bus;
	unsigned pin = d->cfg[PCI_INT_PIN], line = ((d->devfn >> 3) + pin - 1) & 3;

	if (!pin)
		return;
	if (level ? b->intx_count[line]++ == 0 : --b->intx_count[line] == 0)
		irq_set(&b->cfg.intx[line], level);
}

static bool pci_intx_driven(const struct pci_dev *d)
{
	return d->intx_level && !(pci_command(d) & CMD_INTX_OFF);
}

void pci_intx_set(struct pci_dev *d, bool level)
{
	bool before = pci_intx_driven(d);

	d->intx_level = level;
	if (level)
		d->cfg[PCI_STATUS] |= STATUS_INTX;
	else
		d->cfg[PCI_STATUS] &= (uint8_t)~STATUS_INTX;
	if (d->bus && before != pci_intx_driven(d))
		pci_intx_line(d, !before);
}

/* ---- configuration space ---- */

static uint64_t pci_cfg_read(struct pci_bus *b, unsigned devfn, uint32_t off, unsigned size)
{
	struct pci_dev *d = b->devs[devfn];
	uint64_t v = 0;

	if (!d || off >= PCI_CFG_SIZE)
		return ~0ull;
	if (d->cfg_reading)
		d->cfg_reading(d, off, size);
	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)(off + i < PCI_CFG_SIZE ? d->cfg[off + i] : 0xff) << 8 * i;
	return v;
}

static void pci_cfg_write(struct pci_bus *b, unsigned devfn, uint32_t off, unsigned size,
			  uint64_t val)
{
	struct pci_dev *d = b->devs[devfn];
	bool intx;

	if (!d || off >= PCI_CFG_SIZE)
		return;
	intx = pci_intx_driven(d);
	for (unsigned i = 0; i < size && off + i < PCI_CFG_SIZE; i++) {
		uint8_t mask = d->wmask[off + i];

		d->cfg[off + i] = (uint8_t)((d->cfg[off + i] & ~mask) | ((val >> 8 * i) & mask));
	}
	if (range_overlaps(off, size, PCI_COMMAND, 2)) {
		if (intx != pci_intx_driven(d))
			pci_intx_line(d, !intx);
		pci_bars_update(d);
	} else if (range_overlaps(off, size, PCI_BAR0, 24)) {
		pci_bars_update(d);
	}
	if (d->msix_cap && range_overlaps(off, size, d->msix_cap + 2u, 2))
		pci_msix_update(d);
	if (d->cfg_written)
		d->cfg_written(d, off, size);
}

static uint64_t pci_ecam_read(void *opaque, uint64_t off, unsigned size)
{
	struct pci_bus *b = opaque;

	if (off >> 20)
		return ~0ull; /* no bridges: bus 0 only */
	return pci_cfg_read(b, off >> 12 & 0xff, off & 0xfff, size);
}

static void pci_ecam_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pci_bus *b = opaque;

	if (!(off >> 20))
		pci_cfg_write(b, off >> 12 & 0xff, off & 0xfff, size, val);
}

static uint64_t pci_type1_read(void *opaque, uint64_t off, unsigned size)
{
	struct pci_bus *b = opaque;

	if (off >= 4) {
		if (!(b->address >> 31) || (b->address >> 16 & 0xff))
			return ~0ull;
		return pci_cfg_read(b, b->address >> 8 & 0xff, (b->address & 0xfc) + (off - 4),
				    size);
	}
	if (off == 0 && size == 4)
		return b->address;
	if (off == 1 && size == 1 && b->cfg.cf9)
		return b->cfg.cf9->read(b->cfg.cf9_opaque, 0, 1);
	return ~0ull;
}

static void pci_type1_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pci_bus *b = opaque;

	if (off >= 4) {
		if ((b->address >> 31) && !(b->address >> 16 & 0xff))
			pci_cfg_write(b, b->address >> 8 & 0xff,
				      (b->address & 0xfc) + (uint32_t)(off - 4), size, val);
	} else if (off == 0 && size == 4) {
		b->address = (uint32_t)val & 0x80fffffc;
	} else if (off == 1 && size == 1 && b->cfg.cf9) {
		b->cfg.cf9->write(b->cfg.cf9_opaque, 0, 1, val);
	}
}

static const struct bus_ops pci_ecam_ops = { .read = pci_ecam_read, .write = pci_ecam_write };
static const struct bus_ops pci_type1_ops = { .read = pci_type1_read, .write = pci_type1_write };

/* ---- functions ---- */

static int pci_devfn_free(const struct pci_bus *b)
{
	for (unsigned slot = 0; slot < 32; slot++)
		if (!b->devs[slot << 3])
			return (int)(slot << 3);
	/* All slots taken: further functions, from slot 1 on (0 is the host bridge's own). */
	for (unsigned fn = 1; fn < 8; fn++)
		for (unsigned slot = 1; slot < 32; slot++)
			if (!b->devs[slot << 3 | fn])
				return (int)(slot << 3 | fn);
	return -ENOSPC;
}

int pci_dev_add(struct pci_bus *b, struct pci_dev *d, int devfn, uint16_t vendor, uint16_t device,
		uint32_t class_rev, struct err *e)
{
	int ret;

	if (devfn < 0)
		devfn = pci_devfn_free(b);
	if (devfn < 0 || devfn > 255 || b->devs[devfn])
		return err_set(e, ENOSPC, "pci-full",
			       "device %s: no free place on the PCI bus (255 functions)", d->name);
	d->bus = b;
	d->devfn = (uint8_t)devfn;
	pci_put32(d->cfg, vendor | (uint32_t)device << 16);
	pci_put32(&d->cfg[8], class_rev);
	pci_put32(&d->cfg[0x2c], vendor | (uint32_t)device << 16);
	d->wmask[PCI_COMMAND] = CMD_WRITABLE & 0xff;
	d->wmask[PCI_COMMAND + 1] = CMD_WRITABLE >> 8;
	d->wmask[0x0c] = 0xff; /* cache line size: stored only */
	d->wmask[PCI_INT_LINE] = 0xff;
	for (unsigned n = 0; n < 6; n++) {
		ret = pci_bar_setup(d, n);
		if (ret) {
			d->bus = NULL;
			return err_set(e, -ret, "pci-window-full",
				       "device %s: no room for BAR %u (%llu bytes)", d->name, n,
				       (unsigned long long)d->bar[n].size_bytes);
		}
	}
	b->devs[devfn] = d;
	if ((devfn & 7) && b->devs[devfn & 0xf8])
		b->devs[devfn & 0xf8]->cfg[PCI_HEADER_TYPE] |= MULTI_FUNCTION;
	return 0;
}

void pci_dev_del(struct pci_dev *d)
{
	struct pci_bus *b = d->bus;

	if (b) {
		pci_intx_set(d, false);
		for (unsigned n = 0; n < 6; n++)
			pci_bar_unmap(d, n);
		b->devs[d->devfn] = NULL;
		d->bus = NULL;
	}
	pci_msix_fini(d);
}

struct pci_dev *pci_dev_find(struct pci_bus *b, unsigned devfn)
{
	return devfn < 256 ? b->devs[devfn] : NULL;
}

int pci_add_cap(struct pci_dev *d, uint8_t id, uint8_t len)
{
	unsigned at = d->cap_next ? d->cap_next : 0x40;

	if (at + len > PCI_CFG_SIZE)
		return -ENOSPC;
	d->cfg[at] = id;
	d->cfg[at + 1] = 0;
	d->cfg[d->cap_tail ? d->cap_tail + 1u : PCI_CAP_PTR] = (uint8_t)at;
	d->cfg[PCI_STATUS] |= STATUS_CAPS;
	d->cap_tail = (uint8_t)at;
	d->cap_next = (uint16_t)ALIGN_UP(at + len, 4u);
	return (int)at;
}

void pci_dev_reset(struct pci_dev *d)
{
	pci_intx_set(d, false);
	for (unsigned n = 0; n < 6; n++)
		if (d->bus)
			pci_bar_unmap(d, n);
	for (unsigned i = 0; i < PCI_CFG_SIZE; i++)
		d->cfg[i] &= (uint8_t)~d->wmask[i];
	for (unsigned n = 0; n < 6; n++)
		if (d->bar[n].home)
			pci_bar_reg_set(d, n, d->bar[n].home);
	pci_msix_reset(d);
}

enum { TAG_CFG, TAG_MSIX_TABLE, TAG_MSIX_PBA, TAG_INTX };

void pci_dev_save(const struct pci_dev *d, struct state_writer *w, uint16_t base_tag)
{
	state_put_bytes(w, base_tag + TAG_CFG, d->cfg, PCI_CFG_SIZE);
	if (d->msix_cap) {
		state_put_bytes(w, base_tag + TAG_MSIX_TABLE, d->msix_table, d->nvectors * 16);
		state_put_bytes(w, base_tag + TAG_MSIX_PBA, d->msix_pba, pci_msix_pba_bytes(d));
	}
	state_put_u64(w, base_tag + TAG_INTX, d->intx_level);
}

int pci_dev_load(struct pci_dev *d, const struct state_reader *r, uint16_t base_tag, struct err *e)
{
	uint8_t cfg[PCI_CFG_SIZE];

	if (state_get_bytes(r, base_tag + TAG_CFG, cfg, sizeof(cfg)) || memcmp(cfg, d->cfg, 4))
		return err_set(e, EBADMSG, "state-mismatch",
			       "device %s: its PCI state is missing or another device's", d->name);
	pci_dev_reset(d);
	/* Only what a guest could have written is taken from the state. */
	for (unsigned i = 0; i < PCI_CFG_SIZE; i++)
		d->cfg[i] = (uint8_t)((d->cfg[i] & ~d->wmask[i]) | (cfg[i] & d->wmask[i]));
	if (d->msix_cap) {
		uint8_t *table = d->msix_table;

		if (state_get_bytes(r, base_tag + TAG_MSIX_TABLE, table, d->nvectors * 16) ||
		    state_get_bytes(r, base_tag + TAG_MSIX_PBA, d->msix_pba, pci_msix_pba_bytes(d)))
			return err_set(e, EBADMSG, "state-mismatch",
				       "device %s: its MSI-X state does not fit %u vectors",
				       d->name, d->nvectors);
	}
	pci_bars_update(d);
	if (d->msix_cap)
		pci_msix_update(d);
	pci_intx_set(d, state_get_u64_or(r, base_tag + TAG_INTX, 0) != 0);
	return 0;
}

/* ---- the bus as a device ---- */

static void pci_bus_reset(struct device *dev)
{
	struct pci_bus *b = container_of(dev, struct pci_bus, dev);

	b->address = 0;
	/* Functions reset themselves: each belongs to a device of its own, but for the host bridge.
	 */
	if (b->devs[0])
		pci_dev_reset(b->devs[0]);
}

static void pci_bus_save(struct device *dev, struct state_writer *w)
{
	struct pci_bus *b = container_of(dev, struct pci_bus, dev);

	state_put_u64(w, 1, b->address);
	pci_dev_save(b->devs[0], w, 0x10);
}

static int pci_bus_load(struct device *dev, const struct state_reader *r, struct err *e)
{
	struct pci_bus *b = container_of(dev, struct pci_bus, dev);

	b->address = (uint32_t)state_get_u64_or(r, 1, 0) & 0x80fffffc;
	return pci_dev_load(b->devs[0], r, 0x10, e);
}

static void pci_bus_destroy(struct device *dev)
{
	struct pci_bus *b = container_of(dev, struct pci_bus, dev);
	struct pci_dev *bridge = b->devs[0];

	for (unsigned i = 0; i < 256; i++)
		if (b->devs[i])
			pci_dev_del(b->devs[i]);
	bus_del(b->cfg.vm->pio, 0xcf8);
	bus_del(b->cfg.vm->mmio, b->cfg.ecam_base);
	free(bridge);
	free(b);
}

static const struct device_ops pci_bus_device_ops = {
	.name = "pci",
	.version = 1,
	.reset = pci_bus_reset,
	.save = pci_bus_save,
	.load = pci_bus_load,
	.destroy = pci_bus_destroy,
};

struct pci_bus *pci_bus_new(const struct pci_bus_config *cfg, struct err *e)
{
	struct pci_bus *b = calloc(1, sizeof(*b));
	struct pci_dev *bridge = calloc(1, sizeof(*bridge));

	if (!b || !bridge) {
		err_set(e, ENOMEM, "no-memory", "pci: out of memory");
		goto fail;
	}
	b->cfg = *cfg;
	snprintf(bridge->name, sizeof(bridge->name), "host-bridge");
	if (pci_dev_add(b, bridge, 0, 0x1b36, 0x0008, 0x06000000, e))
		goto fail;
	if (bus_add(cfg->vm->pio, 0xcf8, 8, &pci_type1_ops, b, "pci-type1", 0)) {
		err_set(e, EEXIST, "port-conflict", "pci: ports 0xcf8-0xcff are taken");
		goto fail;
	}
	if (bus_add(cfg->vm->mmio, cfg->ecam_base, (uint64_t)cfg->ecam_buses << 20, &pci_ecam_ops,
		    b, "pci-ecam", 0)) {
		bus_del(cfg->vm->pio, 0xcf8);
		err_set(e, EEXIST, "address-conflict", "pci: the ECAM range is taken");
		goto fail;
	}
	vm_device_add(cfg->vm, &b->dev, &pci_bus_device_ops, "pci");
	return b;
fail:
	free(bridge);
	free(b);
	return NULL;
}
