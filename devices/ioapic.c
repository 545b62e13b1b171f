/* ioapic.c - I/O APIC with 24 pins at 0xfec00000 (Intel 82093AA datasheet).
 *
 * Each pin's redirection entry becomes one message (vm_msi). The accelerator hears of every change
 * by accel->ioapic_route, so that a LAPIC inside it reports the EOIs of level-triggered vectors.
 * An edge on a masked pin is lost, as in the chip; a level-triggered pin is sent when it is
 * unmasked.
 * Locking: one mutex; messages and route changes are sent with it held (LAPIC mutexes and the
 * accelerator's come below it). Lines arrive with the machine lock, EOIs from vCPU threads without.
 */
#include "devices/ioapic.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "hypervisor-core/vm.h"

#define RTE_MASKED     (1ull << 16)
#define RTE_LEVEL      (1ull << 15)
#define RTE_REMOTE_IRR (1ull << 14)
#define RTE_LOW_ACTIVE (1ull << 13)
#define RTE_STATUS     (1ull << 12)
#define RTE_LOGICAL    (1ull << 11)
#define RTE_WRITABLE   (0xff0000000001ffffull & ~(RTE_REMOTE_IRR | RTE_STATUS))
#define IOAPIC_VERSION (0x11u | (IOAPIC_PINS - 1) << 16)

struct ioapic {
	struct device dev;
	pthread_mutex_t lock;
	uint8_t select, id;
	uint32_t lines; /* asserted inputs */
	uint64_t rte[IOAPIC_PINS];
};

static void ioapic_message(uint64_t rte, uint64_t *addr, uint32_t *data)
{
	*addr = 0xfee00000u | (rte >> 56) << 12 | (rte & RTE_LOGICAL ? 4 : 0);
	*data = (uint32_t)((rte & 0x7ff) | (rte & RTE_LEVEL ? 1u << 15 | 1u << 14 : 0));
}

/* Send pin @n's message if it is due; locked. */
static void ioapic_service(struct ioapic *io, unsigned n, bool edge)
{
	uint64_t *rte = &io->rte[n], addr;
	uint32_t data;

	if (*rte & RTE_MASKED)
		return;
	if (*rte & RTE_LEVEL) {
		if (!(io->lines >> n & 1) || (*rte & RTE_REMOTE_IRR))
			return;
		*rte |= RTE_REMOTE_IRR;
	} else if (!edge) {
		return;
	}
	ioapic_message(*rte, &addr, &data);
	vm_msi(io->dev.vm, addr, data);
}

static void ioapic_tell(struct ioapic *io, unsigned n)
{
	struct vm *vm = io->dev.vm;
	uint64_t addr = 0;
	uint32_t data = 0;

	if (!vm->accel->ioapic_route)
		return;
	if (!(io->rte[n] & RTE_MASKED))
		ioapic_message(io->rte[n], &addr, &data);
	vm->accel->ioapic_route(vm, n, addr, data, io->rte[n] & RTE_LEVEL);
}

void ioapic_irq_set(void *opaque, unsigned pin, bool level)
{
	struct ioapic *io = opaque;
	uint32_t bit = 1u << pin;
	bool rise;

	if (pin >= IOAPIC_PINS)
		return;
	pthread_mutex_lock(&io->lock);
	rise = level && !(io->lines & bit);
	if (level)
		io->lines |= bit;
	else
		io->lines &= ~bit;
	if (rise)
		ioapic_service(io, pin, true);
	pthread_mutex_unlock(&io->lock);
}

void ioapic_eoi(struct ioapic *io, uint8_t vector)
{
	pthread_mutex_lock(&io->lock);
	for (unsigned n = 0; n < IOAPIC_PINS; n++) {
		uint64_t *rte = &io->rte[n];

		if ((uint8_t)*rte != vector || !(*rte & RTE_LEVEL) || !(*rte & RTE_REMOTE_IRR))
			continue;
		*rte &= ~RTE_REMOTE_IRR;
		ioapic_service(io, n, false);
	}
	pthread_mutex_unlock(&io->lock);
}

static uint32_t ioapic_reg_read(struct ioapic *io)
{
	unsigned n = (io->select - 0x10u) >> 1;

	switch (io->select) {
	case 0:
	case 2:
		return (uint32_t)io->id << 24;
	case 1:
		return IOAPIC_VERSION;
	default:
		if (io->select < 0x10 || n >= IOAPIC_PINS)
			return 0;
		return (uint32_t)(io->select & 1 ? io->rte[n] >> 32 : io->rte[n]);
	}
}

static void ioapic_reg_write(struct ioapic *io, uint32_t val)
{
	unsigned n = (io->select - 0x10u) >> 1;
	uint64_t old, new;

	if (io->select == 0)
		io->id = val >> 24 & 0xf;
	if (io->select < 0x10 || n >= IOAPIC_PINS)
		return;
	old = io->rte[n];
	if (io->select & 1)
		new = (old & 0xffffffff) | (uint64_t)val << 32;
	else
		new = (old & ~0xffffffffull) | val;
	new = (new &RTE_WRITABLE) | (old & RTE_REMOTE_IRR);
	/* Linux clears a stuck remote IRR by switching the pin to edge and back. */
	if (!(new &RTE_LEVEL))
		new &= ~RTE_REMOTE_IRR;
	io->rte[n] = new;
	if (new != old)
		ioapic_tell(io, n);
	ioapic_service(io, n, false);
}

static uint64_t ioapic_read(void *opaque, uint64_t off, unsigned size)
{
	struct ioapic *io = opaque;
	uint64_t v = 0;

	pthread_mutex_lock(&io->lock);
	if (off == 0)
		v = io->select;
	else if (off == 0x10)
		v = ioapic_reg_read(io);
	pthread_mutex_unlock(&io->lock);
	return v;
}

static void ioapic_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct ioapic *io = opaque;

	pthread_mutex_lock(&io->lock);
	if (off == 0)
		io->select = (uint8_t)val;
	else if (off == 0x10 && size == 4)
		ioapic_reg_write(io, (uint32_t)val);
	pthread_mutex_unlock(&io->lock);
}

static const struct bus_ops ioapic_bus_ops = { .read = ioapic_read, .write = ioapic_write };

static void ioapic_reset(struct device *d)
{
	struct ioapic *io = container_of(d, struct ioapic, dev);

	pthread_mutex_lock(&io->lock);
	io->select = io->id = 0;
	io->lines = 0;
	for (unsigned n = 0; n < IOAPIC_PINS; n++) {
		bool tell = !(io->rte[n] & RTE_MASKED);

		io->rte[n] = RTE_MASKED;
		if (tell)
			ioapic_tell(io, n);
	}
	pthread_mutex_unlock(&io->lock);
}

static void ioapic_save(struct device *d, struct state_writer *w)
{
	struct ioapic *io = container_of(d, struct ioapic, dev);

	state_put_u64(w, 1, io->select);
	state_put_u64(w, 2, io->id);
	state_put_u64(w, 3, io->lines);
	state_put_bytes(w, 4, io->rte, sizeof(io->rte));
}

static int ioapic_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct ioapic *io = container_of(d, struct ioapic, dev);
	uint64_t rte[IOAPIC_PINS];

	if (state_get_bytes(r, 4, rte, sizeof(rte)))
		return err_set(e, EBADMSG, "state-corrupt",
			       "ioapic: the redirection table is missing in the state");
	pthread_mutex_lock(&io->lock);
	io->select = (uint8_t)state_get_u64_or(r, 1, 0);
	io->id = state_get_u64_or(r, 2, 0) & 0xf;
	io->lines = (uint32_t)state_get_u64_or(r, 3, 0) & ((1u << IOAPIC_PINS) - 1);
	for (unsigned n = 0; n < IOAPIC_PINS; n++) {
		io->rte[n] = rte[n] & (RTE_WRITABLE | RTE_REMOTE_IRR);
		ioapic_tell(io, n);
	}
	pthread_mutex_unlock(&io->lock);
	return 0;
}

static void ioapic_destroy(struct device *d)
{
	struct ioapic *io = container_of(d, struct ioapic, dev);

	bus_del(d->vm->mmio, IOAPIC_BASE);
	pthread_mutex_destroy(&io->lock);
	free(io);
}

static const struct device_ops ioapic_ops = {
	.name = "ioapic",
	.version = 1,
	.reset = ioapic_reset,
	.save = ioapic_save,
	.load = ioapic_load,
	.destroy = ioapic_destroy,
};

struct ioapic *ioapic_new(struct vm *vm, struct err *e)
{
	struct ioapic *io = calloc(1, sizeof(*io));

	if (!io) {
		err_set(e, ENOMEM, "no-memory", "ioapic: out of memory");
		return NULL;
	}
	pthread_mutex_init(&io->lock, NULL);
	for (unsigned n = 0; n < IOAPIC_PINS; n++)
		io->rte[n] = RTE_MASKED;
	if (bus_add(vm->mmio, IOAPIC_BASE, 0x1000, &ioapic_bus_ops, io, "ioapic", BUS_UNLOCKED)) {
		err_set(e, EEXIST, "address-conflict", "ioapic: address 0x%x is taken",
			IOAPIC_BASE);
		free(io);
		return NULL;
	}
	vm_device_add(vm, &io->dev, &ioapic_ops, "ioapic");
	return io;
}
