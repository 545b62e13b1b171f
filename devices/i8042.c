/* i8042.c - keyboard controller (IBM PS/2 Technical Reference, keyboard/auxiliary controller) and
 * system control port A (92h): what guests use to reset the machine and to switch A20.
 *
 * No keyboard and no mouse are attached: commands to them come back as a timeout (0xfe, status bit
 * 6), at once, so that a driver that probes is done in microseconds. The controller itself passes
 * its self-tests.
 * A20 is always on; the bit is stored. Locking: machine lock.
 */
#include "devices/i8042.h"

#include <errno.h>
#include <stdlib.h>

#include "hypervisor-core/vm.h"

enum {
	ST_OUT_FULL = 0x01,
	ST_SYSTEM = 0x04,
	ST_COMMAND = 0x08,
	ST_UNLOCKED = 0x10,
	ST_AUX = 0x20,
	ST_TIMEOUT = 0x40
};
enum { CTR_KBD_IRQ = 0x01, CTR_SYSTEM = 0x04, CTR_KBD_OFF = 0x10, CTR_AUX_OFF = 0x20 };
enum { OUT_RESET_N = 0x01, OUT_A20 = 0x02 };

struct i8042 {
	struct device dev;
	struct irq irq1;
	uint8_t status, ctr, data, outport, port92;
	uint8_t command; /* awaits its data byte; 0 = none */
	uint8_t ram[32];
};

static void i8042_reply(struct i8042 *k, uint8_t v, uint8_t flags)
{
	k->data = v;
	k->status = (uint8_t)((k->status & ~(ST_AUX | ST_TIMEOUT)) | ST_OUT_FULL | flags);
	irq_set(&k->irq1, (k->ctr & CTR_KBD_IRQ) && !(flags & ST_AUX));
}

static void i8042_cpu_reset(struct i8042 *k)
{
	vm_event(k->dev.vm, VM_EVENT_REBOOT, "keyboard controller reset");
}

static void i8042_command(struct i8042 *k, uint8_t cmd)
{
	k->command = 0;
	switch (cmd) {
	case 0x20 ... 0x3f:
		i8042_reply(k, cmd == 0x20 ? k->ctr : k->ram[cmd & 31], 0);
		break;
	case 0x60 ... 0x7f: /* write RAM */
	case 0xd1:	    /* write output port */
	case 0xd2:	    /* into keyboard output buffer */
	case 0xd3:	    /* into mouse output buffer */
	case 0xd4:	    /* to the mouse */
		k->command = cmd;
		break;
	case 0xa7:
		k->ctr |= CTR_AUX_OFF;
		break;
	case 0xa8:
		k->ctr &= (uint8_t)~CTR_AUX_OFF;
		break;
	case 0xa9: /* test lines: fine */
	case 0xab:
		i8042_reply(k, 0x00, 0);
		break;
	case 0xaa:
		k->status |= ST_SYSTEM;
		i8042_reply(k, 0x55, 0);
		break;
	case 0xad:
		k->ctr |= CTR_KBD_OFF;
		break;
	case 0xae:
		k->ctr &= (uint8_t)~CTR_KBD_OFF;
		break;
	case 0xc0:
		i8042_reply(k, 0x80, 0); /* input port: not locked */
		break;
	case 0xd0:
		i8042_reply(k, k->outport, 0);
		break;
	case 0xf0 ... 0xff: /* pulse output lines low */
		if (!(cmd & OUT_RESET_N))
			i8042_cpu_reset(k);
		break;
	default:
		break;
	}
}

static void i8042_data(struct i8042 *k, uint8_t v)
{
	uint8_t cmd = k->command;

	k->command = 0;
	switch (cmd) {
	case 0x60:
		k->ctr = v;
		k->status = (uint8_t)((k->status & ~ST_SYSTEM) | (v & CTR_SYSTEM));
		break;
	case 0x61 ... 0x7f:
		k->ram[cmd & 31] = v;
		break;
	case 0xd1:
		k->outport = v;
		if (!(v & OUT_RESET_N))
			i8042_cpu_reset(k);
		break;
	case 0xd2:
		i8042_reply(k, v, 0);
		break;
	case 0xd3:
		i8042_reply(k, v, ST_AUX);
		break;
	case 0xd4:
		i8042_reply(k, 0xfe, ST_AUX | ST_TIMEOUT);
		break;
	default: /* to the keyboard */
		k->ctr &= (uint8_t)~CTR_KBD_OFF;
		i8042_reply(k, 0xfe, ST_TIMEOUT);
		break;
	}
}

static void i8042_write60(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct i8042 *k = opaque;

	k->status &= (uint8_t)~ST_COMMAND;
	i8042_data(k, (uint8_t)val);
}

static uint64_t i8042_read60(void *opaque, uint64_t off, unsigned size)
{
	struct i8042 *k = opaque;

	k->status &= (uint8_t) ~(ST_OUT_FULL | ST_AUX | ST_TIMEOUT);
	irq_set(&k->irq1, false);
	return k->data;
}

static void i8042_write64(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct i8042 *k = opaque;

	k->status |= ST_COMMAND;
	i8042_command(k, (uint8_t)val);
}

static uint64_t i8042_read64(void *opaque, uint64_t off, unsigned size)
{
	return ((struct i8042 *)opaque)->status;
}

static void i8042_write92(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct i8042 *k = opaque;

	k->port92 = val & 0xfe;
	k->outport = (uint8_t)((k->outport & ~OUT_A20) | (val & OUT_A20));
	if (val & 1)
		vm_event(k->dev.vm, VM_EVENT_REBOOT, "fast reset by port 92h");
}

static uint64_t i8042_read92(void *opaque, uint64_t off, unsigned size)
{
	struct i8042 *k = opaque;

	return (k->port92 & ~OUT_A20) | (k->outport & OUT_A20);
}

static const struct bus_ops i8042_60_ops = { .read = i8042_read60, .write = i8042_write60 };
static const struct bus_ops i8042_64_ops = { .read = i8042_read64, .write = i8042_write64 };
static const struct bus_ops i8042_92_ops = { .read = i8042_read92, .write = i8042_write92 };

static void i8042_reset(struct device *d)
{
	struct i8042 *k = container_of(d, struct i8042, dev);

	k->status = ST_UNLOCKED | ST_SYSTEM;
	k->ctr = CTR_SYSTEM | CTR_KBD_OFF | CTR_AUX_OFF;
	k->data = k->command = 0;
	k->port92 = 0;
	k->outport = 0xcc | OUT_RESET_N | OUT_A20;
	for (unsigned i = 0; i < sizeof(k->ram); i++)
		k->ram[i] = 0;
	irq_set(&k->irq1, false);
}

static void i8042_save(struct device *d, struct state_writer *w)
{
	struct i8042 *k = container_of(d, struct i8042, dev);
	uint8_t b[6] = { k->status, k->ctr, k->data, k->outport, k->port92, k->command };

	state_put_bytes(w, 1, b, sizeof(b));
	state_put_bytes(w, 2, k->ram, sizeof(k->ram));
}

static int i8042_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct i8042 *k = container_of(d, struct i8042, dev);
	uint8_t b[6];

	if (state_get_bytes(r, 1, b, sizeof(b)) || state_get_bytes(r, 2, k->ram, sizeof(k->ram)))
		return err_set(e, EBADMSG, "state-corrupt", "i8042: the state does not fit");
	k->status = b[0];
	k->ctr = b[1];
	k->data = b[2];
	k->outport = b[3];
	k->port92 = b[4];
	k->command = b[5];
	return 0;
}

static void i8042_destroy(struct device *d)
{
	struct i8042 *k = container_of(d, struct i8042, dev);

	bus_del(d->vm->pio, 0x60);
	bus_del(d->vm->pio, 0x64);
	bus_del(d->vm->pio, 0x92);
	free(k);
}

static const struct device_ops i8042_ops = {
	.name = "i8042",
	.version = 1,
	.reset = i8042_reset,
	.save = i8042_save,
	.load = i8042_load,
	.destroy = i8042_destroy,
};

struct i8042 *i8042_new(struct vm *vm, const struct irq *irq1, struct err *e)
{
	struct i8042 *k = calloc(1, sizeof(*k));

	if (!k) {
		err_set(e, ENOMEM, "no-memory", "i8042: out of memory");
		return NULL;
	}
	if (bus_add(vm->pio, 0x60, 1, &i8042_60_ops, k, "i8042-data", 0) ||
	    bus_add(vm->pio, 0x64, 1, &i8042_64_ops, k, "i8042-command", 0) ||
	    bus_add(vm->pio, 0x92, 1, &i8042_92_ops, k, "port92", 0)) {
		bus_del(vm->pio, 0x60);
		bus_del(vm->pio, 0x64);
		err_set(e, EEXIST, "port-conflict", "i8042: its ports are taken");
		free(k);
		return NULL;
	}
	k->irq1 = *irq1;
	vm_device_add(vm, &k->dev, &i8042_ops, "i8042");
	i8042_reset(&k->dev);
	return k;
}
