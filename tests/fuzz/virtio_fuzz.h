/* virtio_fuzz.h - a hostile driver made of the fuzzer's bytes, for one virtio device at a time.
 *
 * The input is a program of small steps: register writes of any size, guest memory writes,
 * configuration space writes (BARs moved in flight), kicks, rounds of the main loop, device resets.
 * A prologue gets past negotiation, so that most inputs reach the queues. Included by
 * fuzz_virtio_NAME.c, which defines FUZZ_DEVICE(m).
 */
#ifndef TESTS_VIRTIO_FUZZ_H
#define TESTS_VIRTIO_FUZZ_H

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/log.h"
#include "common/overflow.h"
#include "devices/pci.h"
#include "devices/virtio_devices.h"
#include "hypervisor-core/vm.h"
#include "storage/blockdev.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_RAM   (1u << 20)
#define FUZZ_STEPS 400

struct fuzz_input {
	const uint8_t *p;
	size_t left;
};

static uint64_t fuzz_take(struct fuzz_input *in, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes && in->left; i++, in->left--)
		v |= (uint64_t)*in->p++ << (8 * i);
	return v;
}

struct fuzz_vm {
	struct loop *loop;
	struct vm *vm;
	struct pci_bus *bus;
	uint64_t bar;
	int peer; /* far side of a port or tap, or -1 */
};

static void fuzz_pci_write(struct fuzz_vm *f, unsigned off, unsigned size, uint32_t val)
{
	bus_write(f->vm->pio, 0xcf8, 4, 0x80000000u | 1u << 11 | (off & 0xfcu));
	bus_write(f->vm->pio, 0xcfc + (off & 3u & ~(size - 1)), size, val);
}

/* Negotiate everything offered, enable up to 4 queues of 8 at fixed places: desc 0x1000*q, avail
 * +0x400, used +0x800. */
static void fuzz_prologue(struct fuzz_vm *f)
{
	struct bus *b = f->vm->mmio;

	bus_write(b, f->bar + 0x14, 1, 3);
	for (unsigned half = 0; half < 2; half++) {
		bus_write(b, f->bar, 4, half);
		bus_write(b, f->bar + 8, 4, half);
		bus_write(b, f->bar + 12, 4, bus_read(b, f->bar + 4, 4));
	}
	bus_write(b, f->bar + 0x14, 1, 11);
	for (unsigned q = 0; q < 4; q++) {
		bus_write(b, f->bar + 0x16, 2, q);
		bus_write(b, f->bar + 0x18, 2, 8);
		bus_write(b, f->bar + 0x20, 8, 0x1000 * (q + 1));
		bus_write(b, f->bar + 0x28, 8, 0x1000 * (q + 1) + 0x400);
		bus_write(b, f->bar + 0x30, 8, 0x1000 * (q + 1) + 0x800);
		bus_write(b, f->bar + 0x1c, 2, 1);
	}
	bus_write(b, f->bar + 0x14, 1, 15);
}

static void fuzz_step(struct fuzz_vm *f, struct fuzz_input *in)
{
	static const unsigned sizes[] = { 1, 2, 4, 8 };
	struct bus *b = f->vm->mmio;
	uint8_t op = (uint8_t)fuzz_take(in, 1);
	unsigned size = sizes[op >> 6];
	uint64_t at, n;
	char buf[256];

	switch (op % 12) {
	case 0: /* a register or the device's configuration */
		at = fuzz_take(in, 2) % 0x4000;
		bus_write(b, f->bar + ALIGN_DOWN(at, size), size, fuzz_take(in, size));
		break;
	case 1:
		bus_read(b, f->bar + ALIGN_DOWN(fuzz_take(in, 2) % 0x4000, (uint64_t)size), size);
		break;
	case 2:
	case 3: /* guest memory */
		at = fuzz_take(in, 3) % FUZZ_RAM;
		n = fuzz_take(in, 1) % sizeof(buf);
		for (unsigned i = 0; i < n; i++)
			buf[i] = (char)fuzz_take(in, 1);
		mem_write(f->vm->mem, at, buf, n);
		break;
	case 4:
	case 5: { /* a descriptor that is nearly right */
		uint64_t q = fuzz_take(in, 1) % 4, i = fuzz_take(in, 1) % 8, d[2];

		d[0] = 0x8000 + fuzz_take(in, 2);
		d[1] =
		    fuzz_take(in, 2) | (fuzz_take(in, 1) & 7) << 32 | (fuzz_take(in, 1) % 9) << 48;
		mem_write(f->vm->mem, 0x1000 * (q + 1) + 16 * i, d, 16);
		break;
	}
	case 6: { /* make a chain available, and kick */
		uint64_t q = fuzz_take(in, 1) % 4;
		uint16_t idx, head = (uint16_t)(fuzz_take(in, 1) % 9);

		mem_read(f->vm->mem, 0x1000 * (q + 1) + 0x402, &idx, 2);
		mem_write(f->vm->mem, 0x1000 * (q + 1) + 0x404 + 2 * (idx % 8), &head, 2);
		idx++;
		mem_write(f->vm->mem, 0x1000 * (q + 1) + 0x402, &idx, 2);
		bus_write(b, f->bar + 0x3000 + 4 * q, 2, q);
		break;
	}
	case 7:
		bus_write(b, f->bar + 0x3000 + 4 * (fuzz_take(in, 1) % 300), size, 0);
		break;
	case 8:
		loop_run_once(f->loop, 0);
		break;
	case 9: /* configuration space: BARs, command, capabilities */
		at = fuzz_take(in, 1);
		fuzz_pci_write(f, (unsigned)at, size > 4 ? 4 : size, (uint32_t)fuzz_take(in, 4));
		f->bar = pci_dev_find(f->bus, 1 << 3)->bar[4].addr;
		break;
	case 10: /* the far side sends */
		n = fuzz_take(in, 1) % sizeof(buf);
		memset(buf, op, sizeof(buf));
		if (f->peer >= 0 && send(f->peer, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			break;
		loop_run_once(f->loop, 0);
		break;
	case 11:
		if (!(fuzz_take(in, 1) % 8)) {
			bus_write(b, f->bar + 0x14, 1, 0);
			fuzz_prologue(f);
		}
		break;
	}
}

static void fuzz_run(const uint8_t *data, size_t size,
		     int (*make)(struct fuzz_vm *f, struct err *e))
{
	struct vm_config vc = { .name = "fuzz",
				.accel = &accel_soft,
				.accel_cfg = { .kvm_fd = -1, .vcpus = 1 } };
	struct pci_bus_config bc = { .ecam_base = 0xe0000000,
				     .ecam_buses = 1,
				     .mmio32_base = 0xc0000000,
				     .mmio32_size = 0x10000000,
				     .io_base = 0x1000,
				     .io_size = 0x1000 };
	struct fuzz_input in = { data, size };
	struct fuzz_vm f = { .peer = -1 };
	struct err e = { 0 };

	log_set_level(0);
	f.loop = loop_new();
	f.vm = vm_new(f.loop, &vc, &e);
	if (!f.vm || vm_add_ram(f.vm, "ram", 0, FUZZ_RAM, -1, 0, 0, &e) < 0)
		abort();
	bc.vm = f.vm;
	f.bus = pci_bus_new(&bc, &e);
	if (!f.bus || make(&f, &e) < 0)
		abort();
	fuzz_pci_write(&f, 4, 2, 6);
	f.bar = pci_dev_find(f.bus, 1 << 3)->bar[4].addr;
	fuzz_prologue(&f);
	for (unsigned i = 0; i < FUZZ_STEPS && in.left; i++)
		fuzz_step(&f, &in);
	loop_run_once(f.loop, 0);
	vm_free(f.vm);
	if (f.peer >= 0)
		close(f.peer);
	/* posts on their way at the end free what they belong to */
	while (loop_run_once(f.loop, 0) > 0)
		;
	loop_free(f.loop);
}

#endif
