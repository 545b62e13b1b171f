/* pci_msix.c - MSI-X capability, table and pending bits (PCI 3.0, 6.8.2).
 *
 * Threading: the guest's table writes come under the machine lock; pci_msix_fire() from any thread
 * without it. They meet in one byte a vector: live (deliver), masked (latch the pending bit), off
 * (drop). Fire latches, then looks at the byte again; unmasking sets the byte, then takes the
 * pending bit: whichever comes second delivers, so no interrupt is lost, and the bit's owner
 * delivers it once.
 * A masked vector keeps its route: Linux masks and unmasks often, rerouting is dear.
 */
#include "devices/pci_msix.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/overflow.h"
#include "hypervisor-core/vm.h"

#define MSIX_CAP_ID  0x11u
#define MSIX_ENABLE  0x80u /* in the control word's high byte */
#define MSIX_MASKALL 0x40u
#define MSIX_MAX     2048u

enum msix_state { MSIX_OFF, MSIX_MASKED, MSIX_LIVE };

unsigned pci_msix_pba_bytes(const struct pci_dev *d)
{
	return (d->nvectors + 63) / 64 * 8;
}

bool pci_msix_enabled(const struct pci_dev *d)
{
	return d->msix_cap && (d->cfg[d->msix_cap + 3u] & MSIX_ENABLE);
}

static uint8_t msix_state_get(const struct pci_dev *d, unsigned v)
{
	return __atomic_load_n(&d->msix_state[v], __ATOMIC_SEQ_CST);
}

static bool msix_pending_take(struct pci_dev *d, unsigned v)
{
	uint8_t bit = (uint8_t)(1u << (v & 7));

	return __atomic_fetch_and(&d->msix_pba[v >> 3], (uint8_t)~bit, __ATOMIC_SEQ_CST) & bit;
}

void pci_msix_fire(struct pci_dev *d, unsigned vector)
{
	if (vector >= d->nvectors)
		return;
	switch (msix_state_get(d, vector)) {
	case MSIX_LIVE:
		msi_fire(&d->vectors[vector]);
		break;
	case MSIX_MASKED:
		__atomic_fetch_or(&d->msix_pba[vector >> 3], (uint8_t)(1u << (vector & 7)),
				  __ATOMIC_SEQ_CST);
		if (msix_state_get(d, vector) == MSIX_LIVE && msix_pending_take(d, vector))
			msi_fire(&d->vectors[vector]);
		break;
	default:
		break;
	}
}

int pci_msix_fd(const struct pci_dev *d, unsigned vector)
{
	if (vector >= d->nvectors || msix_state_get(d, vector) != MSIX_LIVE)
		return -1;
	return d->vectors[vector].enabled && d->vectors[vector].gsi >= 0 ? d->vectors[vector].fd
									 : -1;
}

static uint32_t msix_word(const struct pci_dev *d, unsigned v, unsigned n)
{
	uint32_t w;

	memcpy(&w, &d->msix_table[v * 16 + n * 4], 4);
	return w;
}

static void msix_vector_set(struct pci_dev *d, unsigned v)
{
	bool on = pci_msix_enabled(d);
	bool masked = (d->cfg[d->msix_cap + 3u] & MSIX_MASKALL) || (msix_word(d, v, 3) & 1);
	uint64_t addr = msix_word(d, v, 0) | (uint64_t)msix_word(d, v, 1) << 32;
	uint8_t state = !on ? MSIX_OFF : masked ? MSIX_MASKED : MSIX_LIVE;

	if (state == MSIX_OFF) {
		__atomic_store_n(&d->msix_state[v], state, __ATOMIC_SEQ_CST);
		msi_vector_clear(&d->vectors[v]);
		msix_pending_take(d, v);
		return;
	}
	if (state == MSIX_LIVE) {
		int ret =
		    msi_vector_set(&d->vectors[v], pci_bus_vm(d->bus), addr, msix_word(d, v, 2));

		if (ret)
			log_warn("device %s: MSI-X vector %u: %s; its interrupts are lost", d->name,
				 v, strerror(-ret));
	}
	__atomic_store_n(&d->msix_state[v], state, __ATOMIC_SEQ_CST);
	if (state == MSIX_LIVE && msix_pending_take(d, v))
		msi_fire(&d->vectors[v]);
}

static void msix_vector_update(struct pci_dev *d, unsigned v)
{
	uint8_t was = msix_state_get(d, v);

	msix_vector_set(d, v);
	if (d->vector_changed && msix_state_get(d, v) != was)
		d->vector_changed(d, v);
}

void pci_msix_update(struct pci_dev *d)
{
	for (unsigned v = 0; v < d->nvectors; v++)
		msix_vector_update(d, v);
}

/* ---- the BAR ---- */

static uint64_t msix_bar_read(void *opaque, uint64_t off, unsigned size)
{
	struct pci_dev *d = opaque;
	const uint8_t *from;
	uint64_t v = 0;

	if (off >= d->msix_table_off &&
	    range_within(off - d->msix_table_off, size, d->nvectors * 16))
		from = &d->msix_table[off - d->msix_table_off];
	else if (off >= d->msix_pba_off &&
		 range_within(off - d->msix_pba_off, size, pci_msix_pba_bytes(d)))
		from = &d->msix_pba[off - d->msix_pba_off];
	else
		return 0;
	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)__atomic_load_n(&from[i], __ATOMIC_RELAXED) << 8 * i;
	return v;
}

static void msix_bar_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pci_dev *d = opaque;

	/* Aligned 4- or 8-byte writes are the only ones defined; the pending bits are read-only. */
	if ((size != 4 && size != 8) || off & (size - 1) || off < d->msix_table_off)
		return;
	off -= d->msix_table_off;
	if (!range_within(off, size, d->nvectors * 16))
		return;
	memcpy(&d->msix_table[off], &val, size);
	d->msix_table[off / 16 * 16 + 12] &= 1; /* vector control: the mask bit only */
	memset(&d->msix_table[off / 16 * 16 + 13], 0, 3);
	d->msix_table[off / 16 * 16] &= 0xfc;
	msix_vector_update(d, (unsigned)(off / 16));
}

const struct bus_ops pci_msix_bar_ops = { .read = msix_bar_read, .write = msix_bar_write };

int pci_msix_init(struct pci_dev *d, unsigned nvectors, unsigned bar, uint32_t table_off,
		  uint32_t pba_off)
{
	uint64_t need;
	int cap;

	if (!nvectors || nvectors > MSIX_MAX || bar > 5 || (table_off | pba_off) & 7 || d->msix_cap)
		return -EINVAL;
	d->nvectors = nvectors;
	need = MAX((uint64_t)table_off + nvectors * 16, (uint64_t)pba_off + pci_msix_pba_bytes(d));
	if (range_overlaps(table_off, nvectors * 16, pba_off, pci_msix_pba_bytes(d)))
		return -EINVAL;
	d->vectors = calloc(nvectors, sizeof(*d->vectors));
	/* table, pending bits and states in one piece */
	d->msix_table = calloc(1, nvectors * 17 + pci_msix_pba_bytes(d));
	if (!d->vectors || !d->msix_table) {
		pci_msix_fini(d);
		return -ENOMEM;
	}
	d->msix_pba = d->msix_table + nvectors * 16;
	d->msix_state = d->msix_pba + pci_msix_pba_bytes(d);
	for (unsigned v = 0; v < nvectors; v++) {
		d->vectors[v].fd = d->vectors[v].gsi = -1;
		d->msix_table[v * 16 + 12] = 1;
	}
	if (!d->bar[bar].size_bytes) {
		d->bar[bar].size_bytes = MEM_PAGE;
		while (d->bar[bar].size_bytes < need)
			d->bar[bar].size_bytes *= 2;
	}
	if (!d->bar[bar].ops) {
		d->bar[bar].ops = &pci_msix_bar_ops;
		d->bar[bar].opaque = d;
	}
	cap = d->bar[bar].size_bytes < need ? -ENOSPC : pci_add_cap(d, MSIX_CAP_ID, 12);
	if (cap >= 0 && d->bus && pci_bar_setup(d, bar))
		cap = -ENOSPC;
	if (cap < 0) {
		pci_msix_fini(d);
		return cap;
	}
	d->msix_cap = (uint16_t)cap;
	d->msix_bar = bar;
	d->msix_table_off = table_off;
	d->msix_pba_off = pba_off;
	d->cfg[cap + 2] = (uint8_t)(nvectors - 1);
	d->cfg[cap + 3] = (uint8_t)((nvectors - 1) >> 8);
	d->wmask[cap + 3] = MSIX_ENABLE | MSIX_MASKALL;
	table_off |= bar;
	pba_off |= bar;
	memcpy(&d->cfg[cap + 4], &table_off, 4);
	memcpy(&d->cfg[cap + 8], &pba_off, 4);
	return 0;
}

void pci_msix_reset(struct pci_dev *d)
{
	if (!d->msix_cap)
		return;
	d->cfg[d->msix_cap + 3u] &= (uint8_t) ~(MSIX_ENABLE | MSIX_MASKALL);
	memset(d->msix_table, 0, d->nvectors * 16);
	for (unsigned v = 0; v < d->nvectors; v++)
		d->msix_table[v * 16 + 12] = 1;
	pci_msix_update(d);
}

void pci_msix_fini(struct pci_dev *d)
{
	if (d->vectors && d->msix_table)
		for (unsigned v = 0; v < d->nvectors; v++)
			if (d->vectors[v].vm)
				msi_vector_clear(&d->vectors[v]);
	free(d->vectors);
	free(d->msix_table);
	d->vectors = NULL;
	d->msix_table = d->msix_pba = d->msix_state = NULL;
	d->nvectors = 0;
	d->msix_cap = 0;
}
