/* virtio_driver.c - see virtio_driver.h. */
#include "virtio_driver.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"
#include "common/units.h"
#include "hypervisor-core/accel.h"

void vd_machine_init(struct vd_machine *m)
{
	struct vm_config vc = { .name = "test",
				.accel = &accel_soft,
				.accel_cfg = { .kvm_fd = -1, .vcpus = 1 } };
	struct pci_bus_config bc = { .ecam_base = 0xe0000000,
				     .ecam_buses = 1,
				     .mmio32_base = 0xc0000000,
				     .mmio32_size = 0x10000000,
				     .io_base = 0x1000,
				     .io_size = 0x1000 };
	struct err e = { 0 };

	memset(m, 0, sizeof(*m));
	m->loop = loop_new();
	m->vm = vm_new(m->loop, &vc, &e);
	if (!m->vm || vm_add_ram(m->vm, "ram", 0, VD_RAM, -1, 0, 0, &e) < 0)
		abort();
	bc.vm = m->vm;
	m->bus = pci_bus_new(&bc, &e);
	if (!m->bus)
		abort();
	m->brk = 0x10000;
}

void vd_machine_fini(struct vd_machine *m)
{
	vm_free(m->vm);
	/* posts on their way at the end free what they belong to */
	while (loop_run_once(m->loop, 0) > 0)
		;
	loop_free(m->loop);
}

void *vd_ptr(struct vd_machine *m, gpa_t gpa)
{
	return mem_ptr(m->vm->mem, gpa, 1);
}

gpa_t vd_alloc(struct vd_machine *m, uint64_t len, uint64_t align)
{
	gpa_t at = ALIGN_UP(m->brk, align);

	assert(at + len <= VD_RAM);
	memset(vd_ptr(m, at), 0, len);
	m->brk = at + len;
	return at;
}

static void vd_cfg_write(struct vd_machine *m, unsigned devfn, unsigned off, unsigned size,
			 uint32_t val)
{
	bus_write(m->vm->pio, 0xcf8, 4, 0x80000000u | devfn << 8 | (off & ~3u));
	bus_write(m->vm->pio, 0xcfc + (off & 3), size, val);
}

uint64_t vd_read(struct vd *d, uint64_t off, unsigned size)
{
	return bus_read(d->m->vm->mmio, d->bar + off, size);
}

void vd_write(struct vd *d, uint64_t off, unsigned size, uint64_t val)
{
	bus_write(d->m->vm->mmio, d->bar + off, size, val);
}

uint8_t vd_status(struct vd *d)
{
	return (uint8_t)vd_read(d, 0x14, 1);
}

void vd_reset_ask(struct vd *d)
{
	vd_write(d, 0x14, 1, 0);
}

void vd_reset(struct vd *d)
{
	uint64_t end = clock_mono_ns() + 5 * NS_PER_S;

	vd_reset_ask(d);
	while (vd_status(d) && clock_mono_ns() < end)
		loop_run_once(d->m->loop, 5);
}

bool vd_queue_reset(struct vd *d, unsigned q)
{
	uint64_t end = clock_mono_ns() + 5 * NS_PER_S;

	vd_write(d, 0x16, 2, q);
	vd_write(d, 0x3a, 2, 1);
	while (vd_read(d, 0x3a, 2) && clock_mono_ns() < end)
		loop_run_once(d->m->loop, 5);
	memset(&d->q[q], 0, sizeof(d->q[q]));
	return !vd_read(d, 0x3a, 2);
}

bool vd_attach(struct vd *d, struct vd_machine *m, unsigned devfn, uint64_t want)
{
	uint64_t offered;

	memset(d, 0, sizeof(*d));
	d->m = m;
	vd_cfg_write(m, devfn, 4, 2, 6);
	d->bar = pci_dev_find(m->bus, devfn)->bar[4].addr;
	vd_reset(d);
	vd_write(d, 0x14, 1, 1);
	vd_write(d, 0x14, 1, 3);
	vd_write(d, 0, 4, 0);
	offered = vd_read(d, 4, 4);
	vd_write(d, 0, 4, 1);
	offered |= vd_read(d, 4, 4) << 32;
	d->features = offered & (want | 1ull << 32);
	vd_write(d, 8, 4, 0);
	vd_write(d, 12, 4, (uint32_t)d->features);
	vd_write(d, 8, 4, 1);
	vd_write(d, 12, 4, d->features >> 32);
	vd_write(d, 0x14, 1, 11);
	return vd_status(d) & 8;
}

void vd_queue_setup(struct vd *d, unsigned qi, unsigned size)
{
	struct vd_queue *q = &d->q[qi];

	q->size = size;
	q->desc = vd_alloc(d->m, 16 * size, 16);
	q->avail = vd_alloc(d->m, 6 + 2 * size, 2);
	q->used = vd_alloc(d->m, 6 + 8 * size, 4);
	vd_write(d, 0x16, 2, qi);
	vd_write(d, 0x18, 2, size);
	vd_write(d, 0x20, 8, q->desc);
	vd_write(d, 0x28, 4, (uint32_t)q->avail);
	vd_write(d, 0x2c, 4, q->avail >> 32);
	vd_write(d, 0x30, 8, q->used);
	vd_write(d, 0x1c, 2, 1);
}

void vd_driver_ok(struct vd *d)
{
	vd_write(d, 0x14, 1, 15);
}

struct vd_desc *vd_descs(struct vd *d, unsigned q)
{
	return vd_ptr(d->m, d->q[q].desc);
}

void vd_add_head(struct vd *d, unsigned qi, uint16_t head)
{
	struct vd_queue *q = &d->q[qi];
	uint16_t *avail = vd_ptr(d->m, q->avail);

	__atomic_store_n(&avail[2 + q->avail_idx % q->size], head, __ATOMIC_RELAXED);
	q->avail_idx++;
	__atomic_store_n(&avail[1], q->avail_idx, __ATOMIC_RELEASE);
}

uint16_t vd_add(struct vd *d, unsigned qi, const struct vd_seg *segs, unsigned n)
{
	struct vd_queue *q = &d->q[qi];
	struct vd_desc *t = vd_descs(d, qi);
	uint16_t head = q->next_desc;

	for (unsigned i = 0; i < n; i++) {
		uint16_t at = (uint16_t)((head + i) % q->size);

		t[at] = (struct vd_desc){ segs[i].gpa, segs[i].len,
					  (uint16_t)((segs[i].write ? VD_WRITE : 0) |
						     (i + 1 < n ? VD_NEXT : 0)),
					  (uint16_t)((at + 1) % q->size) };
	}
	q->next_desc = (uint16_t)((head + n) % q->size);
	vd_add_head(d, qi, head);
	return head;
}

void vd_kick(struct vd *d, unsigned q)
{
	vd_write(d, 0x3000 + 4 * q, 2, q);
}

static uint16_t vd_used_idx(struct vd *d, unsigned qi)
{
	const uint16_t *used = vd_ptr(d->m, d->q[qi].used);

	return __atomic_load_n(&used[1], __ATOMIC_ACQUIRE);
}

/* A round of the main loop: the interrupt of a completion comes in as a post. Short, because a
 * driver may have interrupts off. */
static void vd_round(struct vd *d)
{
	loop_run_once(d->m->loop, 5);
}

bool vd_wait(struct vd *d, unsigned qi, unsigned n)
{
	uint64_t end = clock_mono_ns() + 5 * NS_PER_S;

	while ((uint16_t)(vd_used_idx(d, qi) - d->q[qi].seen_used) < n) {
		if (clock_mono_ns() > end)
			return false;
		vd_round(d);
	}
	d->q[qi].seen_used = (uint16_t)(d->q[qi].seen_used + n);
	return true;
}

bool vd_wait_status(struct vd *d, uint8_t bit)
{
	uint64_t end = clock_mono_ns() + 5 * NS_PER_S;

	while (!(vd_status(d) & bit)) {
		if (clock_mono_ns() > end)
			return false;
		vd_round(d);
	}
	return true;
}

uint32_t vd_used_len(struct vd *d, unsigned qi, unsigned back)
{
	const uint32_t *elem =
	    (const uint32_t *)(const void *)((const uint8_t *)vd_ptr(d->m, d->q[qi].used) + 4);

	return elem[2 * ((uint16_t)(vd_used_idx(d, qi) - back) % d->q[qi].size) + 1];
}
