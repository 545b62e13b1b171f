/* serial16550.c - 16550A UART: FIFOs, interrupts, modem lines, loopback (National PC16550D
 * datasheet).
 *
 * The transmitter is infinitely fast: a byte written is in the port's ring at once and THRE stays
 * set, unless the far side is a file that holds (chardev_write() takes less); then bytes wait in
 * the transmit FIFO.
 * The divisor is stored, never obeyed. The receive FIFO holds 16 bytes (1 with FIFOs off); more
 * stays in the far side's buffers, so nothing is overrun. The character timeout comes at once: what
 * is below the trigger level is announced as timeout rather than after four character times.
 * Carrier (DCD, DSR, CTS) follows the far side; RI is never set.
 * Locking: machine lock. Trust: all register values are the guest's.
 */
#include "devices/serial16550.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"
#include "hypervisor-core/vm.h"

enum { IER_RX = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_THRE = 2, IIR_RX = 4, IIR_LINE = 6, IIR_TIMEOUT = 12 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2, FCR_CLEAR_TX = 4 };
enum { LCR_DLAB = 0x80, LCR_BREAK = 0x40 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 16 };
enum { LSR_DR = 1, LSR_OE = 2, LSR_BI = 16, LSR_THRE = 32, LSR_TEMT = 64 };
enum {
	MSR_DCTS = 1,
	MSR_DDSR = 2,
	MSR_TERI = 4,
	MSR_DDCD = 8,
	MSR_CTS = 16,
	MSR_DSR = 32,
	MSR_RI = 64,
	MSR_DCD = 128
};

#define FIFO_SIZE 16u

struct serial_fifo {
	uint8_t byte[FIFO_SIZE];
	uint8_t first, count;
};

struct serial16550 {
	struct device dev;
	struct irq irq;
	uint16_t port;
	struct chardev *chr;
	uint8_t ier, fcr, lcr, mcr, lsr, msr, scr, dll, dlm;
	struct serial_fifo rx, tx;
	bool thre_pending; /* THRE interrupt not yet seen */
	bool carrier, irq_level;
};

static void serial_fifo_put(struct serial_fifo *f, uint8_t b)
{
	f->byte[(f->first + f->count++) % FIFO_SIZE] = b;
}

static uint8_t serial_fifo_get(struct serial_fifo *f)
{
	uint8_t b = f->byte[f->first];

	f->first = (f->first + 1) % FIFO_SIZE;
	f->count--;
	return b;
}

static unsigned serial_rx_size(const struct serial16550 *s)
{
	return s->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned serial_trigger(const struct serial16550 *s)
{
	static const uint8_t level[4] = { 1, 4, 8, 14 };

	return s->fcr & FCR_ENABLE ? level[s->fcr >> 6] : 1;
}

static unsigned serial_iir(const struct serial16550 *s)
{
	if ((s->ier & IER_LINE) && (s->lsr & (LSR_OE | LSR_BI)))
		return IIR_LINE;
	if ((s->ier & IER_RX) && s->rx.count)
		return s->rx.count >= serial_trigger(s) ? IIR_RX : IIR_TIMEOUT;
	if ((s->ier & IER_THRE) && s->thre_pending)
		return IIR_THRE;
	if ((s->ier & IER_MODEM) && (s->msr & 0x0f))
		return IIR_MODEM;
	return IIR_NONE;
}

static void serial_irq(struct serial16550 *s)
{
	/* OUT2 gates the interrupt on a PC; in loopback it is cut off. */
	bool level = serial_iir(s) != IIR_NONE && (s->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;

	if (level == s->irq_level)
		return;
	s->irq_level = level;
	irq_set(&s->irq, level);
}

/* Modem status from the far side, or from our own outputs in loopback. */
static void serial_modem(struct serial16550 *s)
{
	uint8_t now = 0, changed;

	if (s->mcr & MCR_LOOP) {
		now =
		    (uint8_t)((s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
			      (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0));
	} else if (s->carrier) {
		now = MSR_CTS | MSR_DSR | MSR_DCD;
	}
	changed = (uint8_t)((now ^ s->msr) & 0xf0);
	if (changed & MSR_CTS)
		s->msr |= MSR_DCTS;
	if (changed & MSR_DSR)
		s->msr |= MSR_DDSR;
	if (changed & MSR_DCD)
		s->msr |= MSR_DDCD;
	if ((s->msr & MSR_RI) && !(now & MSR_RI))
		s->msr |= MSR_TERI;
	s->msr = (uint8_t)((s->msr & 0x0f) | now);
}

static void serial_tx_empty(struct serial16550 *s)
{
	s->lsr |= LSR_THRE | LSR_TEMT;
	s->thre_pending = true;
}

/* Give the far side what waits; true when all is gone. */
static bool serial_tx_drain(struct serial16550 *s)
{
	while (s->tx.count) {
		uint8_t b = s->tx.byte[s->tx.first];

		if (!chardev_write(s->chr, &b, 1))
			return false;
		serial_fifo_get(&s->tx);
	}
	return true;
}

static void serial_rx_byte(struct serial16550 *s, uint8_t b)
{
	if (s->rx.count >= serial_rx_size(s)) {
		s->lsr |= LSR_OE; /* loopback only: the far side is asked for room first */
		return;
	}
	serial_fifo_put(&s->rx, b);
	s->lsr |= LSR_DR;
}

static void serial_transmit(struct serial16550 *s, uint8_t b)
{
	s->thre_pending = false;
	if (s->mcr & MCR_LOOP) {
		serial_rx_byte(s, b);
		serial_tx_empty(s);
		return;
	}
	if (!s->tx.count && chardev_write(s->chr, &b, 1)) {
		serial_tx_empty(s);
		return;
	}
	if (s->tx.count < FIFO_SIZE)
		serial_fifo_put(&s->tx, b);
	s->lsr &= (uint8_t) ~(LSR_THRE | LSR_TEMT);
}

static void serial_fcr_write(struct serial16550 *s, uint8_t val)
{
	/* Switching the FIFOs on or off empties them. */
	if ((val ^ s->fcr) & FCR_ENABLE)
		val |= FCR_CLEAR_RX | FCR_CLEAR_TX;
	if (val & FCR_CLEAR_RX) {
		s->rx.count = 0;
		s->lsr &= (uint8_t) ~(LSR_DR | LSR_BI);
	}
	if ((val & FCR_CLEAR_TX) && s->tx.count) {
		s->tx.count = 0;
		serial_tx_empty(s);
	}
	s->fcr = val & FCR_ENABLE ? val & 0xc9 : 0;
	chardev_room(s->chr);
}

static void serial_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct serial16550 *s = opaque;
	uint8_t v = (uint8_t)val;

	switch (off) {
	case 0:
		if (s->lcr & LCR_DLAB)
			s->dll = v;
		else
			serial_transmit(s, v);
		break;
	case 1:
		if (s->lcr & LCR_DLAB) {
			s->dlm = v;
			break;
		}
		/* Switching the THRE interrupt on with an empty transmitter raises it: drivers test
		 * for that. */
		if ((v & IER_THRE) && !(s->ier & IER_THRE) && (s->lsr & LSR_THRE))
			s->thre_pending = true;
		s->ier = v & 0x0f;
		break;
	case 2:
		serial_fcr_write(s, v);
		break;
	case 3:
		if ((v & LCR_BREAK) && (s->mcr & MCR_LOOP)) {
			serial_rx_byte(s, 0);
			s->lsr |= LSR_BI;
		}
		s->lcr = v;
		break;
	case 4:
		s->mcr = v & 0x1f;
		serial_modem(s);
		chardev_room(s->chr); /* loopback may have ended */
		break;
	case 7:
		s->scr = v;
		break;
	default:
		break;
	}
	serial_irq(s);
}

static uint64_t serial_read(void *opaque, uint64_t off, unsigned size)
{
	struct serial16550 *s = opaque;
	uint8_t v = 0;

	switch (off) {
	case 0:
		if (s->lcr & LCR_DLAB)
			return s->dll;
		if (s->rx.count)
			v = serial_fifo_get(&s->rx);
		if (!s->rx.count) {
			s->lsr &= (uint8_t)~LSR_DR;
			chardev_room(s->chr);
		}
		break;
	case 1:
		return s->lcr & LCR_DLAB ? s->dlm : s->ier;
	case 2:
		v = (uint8_t)serial_iir(s);
		if (v == IIR_THRE)
			s->thre_pending = false;
		if (s->fcr & FCR_ENABLE)
			v |= 0xc0;
		break;
	case 3:
		return s->lcr;
	case 4:
		return s->mcr;
	case 5:
		v = s->lsr;
		s->lsr &= (uint8_t) ~(LSR_OE | LSR_BI);
		break;
	case 6:
		v = s->msr;
		s->msr &= 0xf0;
		break;
	default:
		return s->scr;
	}
	serial_irq(s);
	return v;
}

static const struct bus_ops serial_bus_ops = { .read = serial_read, .write = serial_write };

/* ---- far side ---- */

static size_t serial_room(void *owner)
{
	const struct serial16550 *s = owner;
	unsigned size = serial_rx_size(s);

	if (s->mcr & MCR_LOOP)
		return 0;
	return s->rx.count < size ? size - s->rx.count : 0;
}

static void serial_receive(void *owner, const uint8_t *p, size_t len)
{
	struct serial16550 *s = owner;

	while (len--)
		serial_rx_byte(s, *p++);
	serial_irq(s);
}

static void serial_connected(void *owner, bool on)
{
	struct serial16550 *s = owner;

	s->carrier = on;
	serial_modem(s);
	serial_irq(s);
}

static void serial_writable(void *owner)
{
	struct serial16550 *s = owner;

	if (s->tx.count && serial_tx_drain(s)) {
		serial_tx_empty(s);
		serial_irq(s);
	}
}

static const struct chardev_owner_ops serial_owner_ops = {
	.room = serial_room,
	.receive = serial_receive,
	.connected = serial_connected,
	.writable = serial_writable,
};

/* ---- device ---- */

static void serial_reset(struct device *d)
{
	struct serial16550 *s = container_of(d, struct serial16550, dev);

	s->ier = s->fcr = s->lcr = s->mcr = s->scr = s->dlm = 0;
	s->dll = 12; /* 9600 */
	s->rx.count = s->tx.count = 0;
	s->rx.first = s->tx.first = 0;
	s->lsr = LSR_THRE | LSR_TEMT;
	s->thre_pending = false;
	s->msr = 0;
	serial_modem(s);
	s->msr &= 0xf0;
	serial_irq(s);
	if (s->chr)
		chardev_room(s->chr);
}

static void serial_save(struct device *d, struct state_writer *w)
{
	struct serial16550 *s = container_of(d, struct serial16550, dev);
	uint8_t regs[] = { s->ier, s->fcr, s->lcr, s->mcr, s->lsr,
			   s->msr, s->scr, s->dll, s->dlm, s->thre_pending };
	struct serial_fifo rx = { .count = s->rx.count }, tx = { .count = s->tx.count };

	for (unsigned i = 0; i < rx.count; i++)
		rx.byte[i] = s->rx.byte[(s->rx.first + i) % FIFO_SIZE];
	for (unsigned i = 0; i < tx.count; i++)
		tx.byte[i] = s->tx.byte[(s->tx.first + i) % FIFO_SIZE];
	state_put_bytes(w, 1, regs, sizeof(regs));
	state_put_bytes(w, 2, rx.byte, rx.count);
	state_put_bytes(w, 3, tx.byte, tx.count);
	state_put_u64(w, 4, s->irq_level);
}

static int serial_load_fifo(const struct state_reader *r, uint16_t tag, struct serial_fifo *f)
{
	const void *p;
	size_t len;

	*f = (struct serial_fifo){ 0 };
	if (state_get_span(r, tag, &p, &len))
		return 0; /* empty */
	if (len > FIFO_SIZE)
		return -EBADMSG;
	memcpy(f->byte, p, len);
	f->count = (uint8_t)len;
	return 0;
}

static int serial_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct serial16550 *s = container_of(d, struct serial16550, dev);
	uint8_t regs[10];

	if (state_get_bytes(r, 1, regs, sizeof(regs)) || serial_load_fifo(r, 2, &s->rx) ||
	    serial_load_fifo(r, 3, &s->tx))
		return err_set(e, EBADMSG, "state-corrupt", "%s: the state does not fit", d->id);
	s->ier = regs[0] & 0x0f;
	s->fcr = regs[1] & 0xc9;
	s->lcr = regs[2];
	s->mcr = regs[3] & 0x1f;
	s->lsr = regs[4];
	s->msr = regs[5];
	s->scr = regs[6];
	s->dll = regs[7];
	s->dlm = regs[8];
	s->thre_pending = regs[9];
	if (s->rx.count)
		s->lsr |= LSR_DR;
	else
		s->lsr &= (uint8_t)~LSR_DR;
	s->irq_level = state_get_u64_or(r, 4, 0);
	/* The far side here may have another carrier than the one saved: the guest sees a change.
	 */
	serial_modem(s);
	if (s->tx.count && serial_tx_drain(s))
		serial_tx_empty(s);
	serial_irq(s);
	chardev_room(s->chr);
	return 0;
}

static void serial_destroy(struct device *d)
{
	struct serial16550 *s = container_of(d, struct serial16550, dev);

	bus_del(d->vm->pio, s->port);
	chardev_free(s->chr);
	free(s);
}

static unsigned serial_stats(struct device *d, const char **names, uint64_t *values, unsigned max)
{
	struct serial16550 *s = container_of(d, struct serial16550, dev);

	if (max < 3)
		return 0;
	names[0] = "bytes_in";
	names[1] = "bytes_out";
	names[2] = "bytes_dropped";
	chardev_stats(s->chr, &values[0], &values[1], &values[2]);
	return 3;
}

static const struct device_ops serial_ops = {
	.name = "serial16550",
	.version = 1,
	.reset = serial_reset,
	.save = serial_save,
	.load = serial_load,
	.destroy = serial_destroy,
	.stats = serial_stats,
};

struct serial16550 *serial16550_new(struct vm *vm, const struct serial16550_config *cfg,
				    struct err *e)
{
	struct serial16550 *s = calloc(1, sizeof(*s));
	char id[32];

	if (!s) {
		err_set(e, ENOMEM, "no-memory", "port %s: out of memory", cfg->name);
		return NULL;
	}
	s->irq = cfg->irq;
	s->port = cfg->port;
	serial_reset(&s->dev);
	if (bus_add(vm->pio, cfg->port, 8, &serial_bus_ops, s, "serial16550", 0)) {
		err_set(e, EEXIST, "port-conflict", "port %s: I/O ports at 0x%x are taken",
			cfg->name, cfg->port);
		free(s);
		return NULL;
	}
	s->chr = chardev_new(vm, cfg->name, &cfg->chr, &serial_owner_ops, s, e);
	if (!s->chr) {
		bus_del(vm->pio, cfg->port);
		free(s);
		return NULL;
	}
	s->msr &= 0xf0; /* carrier that was there at power-on is no change */
	snprintf(id, sizeof(id), "uart-%.26s", cfg->name);
	vm_device_add(vm, &s->dev, &serial_ops, id);
	return s;
}
