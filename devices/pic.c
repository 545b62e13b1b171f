/* pic.c - two cascaded 8259A interrupt controllers and the ELCR (Intel 8259A datasheet; 82371AB
 * 4.7).
 *
 * Ports 0x20-21 (master), 0xa0-a1 (slave), 0x4d0-4d1 (edge/level). Modelled: initialisation, masks,
 * fixed and rotating priority, special mask, automatic EOI, poll, special fully nested mode, level
 * inputs by ELCR.
 * An edge is latched in IRR at the rise and survives the line's fall.
 * Locking: one mutex, a leaf: lines come with the machine lock, pending and ack from vCPU threads
 * without it.
 */
#include "devices/pic.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "hypervisor-core/vm.h"

struct pic_chip {
	uint8_t irr, isr, imr, line, elcr, elcr_mask;
	uint8_t base;	/* vector of input 0 */
	uint8_t lowest; /* input with the lowest priority */
	uint8_t init;	/* 0 = running, else the ICW awaited (2, 3, 4) */
	bool need_icw4, single, auto_eoi, rotate_auto_eoi, special_mask, nested_special, read_isr,
	    poll;
};

struct pic {
	struct device dev;
	pthread_mutex_t lock;
	struct pic_chip chip[2]; /* master, slave */
	bool intr;
	void (*output)(void *opaque, bool level);
	void *opaque;
};

static bool pic_level(const struct pic_chip *c, unsigned n)
{
	return c->elcr >> n & 1;
}

/* Position from the highest priority (0) of the first bit set in @bits; 8 = none. */
static unsigned pic_first(const struct pic_chip *c, uint8_t bits)
{
	for (unsigned i = 0; i < 8; i++)
		if (bits >> ((c->lowest + 1 + i) & 7) & 1)
			return i;
	return 8;
}

/* pic_request() - input that @c would raise now, or -1. */
static int pic_request(const struct pic_chip *c, bool master)
{
	unsigned want = pic_first(c, c->irr & (uint8_t)~c->imr);
	uint8_t busy = c->isr;

	if (c->init || want == 8)
		return -1;
	if (c->special_mask)
		busy &= (uint8_t)~c->imr;
	/* special fully nested: the slave may interrupt its own service */
	if (c->nested_special && master)
		busy &= (uint8_t)~4;
	return want < pic_first(c, busy) ? (int)((c->lowest + 1 + want) & 7) : -1;
}

/* Recompute the cascade and INTR; @p locked. True where INTR changed. */
static bool pic_update(struct pic *p)
{
	struct pic_chip *m = &p->chip[0];
	bool slave = pic_request(&p->chip[1], false) >= 0, intr;

	/* The cascade input behaves as a level one: it follows the slave's output. */
	if (slave) {
		m->line |= 4;
		m->irr |= 4;
	} else {
		m->line &= (uint8_t)~4;
		m->irr &= (uint8_t)~4;
	}
	intr = pic_request(m, true) >= 0;
	if (intr == p->intr)
		return false;
	p->intr = intr;
	return true;
}

/* Unlock and report a change. */
static void pic_leave(struct pic *p, bool changed)
{
	bool level = p->intr;

	pthread_mutex_unlock(&p->lock);
	if (changed && p->output)
		p->output(p->opaque, level);
}

void pic_irq_set(void *opaque, unsigned n, bool level)
{
	struct pic *p = opaque;
	struct pic_chip *c = &p->chip[n >> 3 & 1];
	uint8_t bit = (uint8_t)(1u << (n & 7));

	if (n > 15 || n == 2)
		return;
	pthread_mutex_lock(&p->lock);
	if (pic_level(c, n & 7)) {
		if (level)
			c->irr |= bit;
		else
			c->irr &= (uint8_t)~bit;
	} else if (level && !(c->line & bit)) {
		c->irr |= bit;
	}
	if (level)
		c->line |= bit;
	else
		c->line &= (uint8_t)~bit;
	pic_leave(p, pic_update(p));
}

bool pic_pending(struct pic *p)
{
	bool intr;

	pthread_mutex_lock(&p->lock);
	intr = p->intr;
	pthread_mutex_unlock(&p->lock);
	return intr;
}

static void pic_chip_ack(struct pic_chip *c, unsigned n)
{
	uint8_t bit = (uint8_t)(1u << n);

	if (c->auto_eoi) {
		if (c->rotate_auto_eoi)
			c->lowest = (uint8_t)n;
	} else {
		c->isr |= bit;
	}
	if (!pic_level(c, n))
		c->irr &= (uint8_t)~bit;
}

/* INTA on @c; input number, 7 where spurious. */
static unsigned pic_chip_inta(struct pic_chip *c, bool master)
{
	int n = pic_request(c, master);

	if (n < 0)
		return 7;
	pic_chip_ack(c, (unsigned)n);
	return (unsigned)n;
}

int pic_ack(struct pic *p)
{
	unsigned n;
	int vector;

	pthread_mutex_lock(&p->lock);
	n = pic_chip_inta(&p->chip[0], true);
	vector = p->chip[0].base + (int)n;
	if (n == 2)
		vector = p->chip[1].base + (int)pic_chip_inta(&p->chip[1], false);
	pic_leave(p, pic_update(p));
	return vector;
}

static void pic_chip_eoi(struct pic_chip *c, unsigned n)
{
	c->isr &= (uint8_t) ~(1u << n);
}

static void pic_ocw2(struct pic_chip *c, uint8_t val)
{
	unsigned cmd = val >> 5, n = val & 7, pos;

	switch (cmd) {
	case 0: /* rotate in automatic EOI: clear, set */
	case 4:
		c->rotate_auto_eoi = cmd == 4;
		break;
	case 1: /* non-specific EOI, with rotation */
	case 5:
		pos = pic_first(c, c->isr);
		if (pos == 8)
			break;
		n = (c->lowest + 1 + pos) & 7;
		pic_chip_eoi(c, n);
		if (cmd == 5)
			c->lowest = (uint8_t)n;
		break;
	case 3: /* specific EOI, with rotation */
	case 7:
		pic_chip_eoi(c, n);
		if (cmd == 7)
			c->lowest = (uint8_t)n;
		break;
	case 6: /* set priority */
		c->lowest = (uint8_t)n;
		break;
	default:
		break;
	}
}

static void pic_chip_reset(struct pic_chip *c)
{
	uint8_t line = c->line, elcr = c->elcr, mask = c->elcr_mask;

	*c = (struct pic_chip){ .line = line, .elcr = elcr, .elcr_mask = mask, .lowest = 7 };
}

static void pic_command(struct pic_chip *c, uint8_t val)
{
	if (val & 0x10) { /* ICW1 */
		pic_chip_reset(c);
		c->irr = c->line & c->elcr; /* edges latched before are forgotten */
		c->init = 2;
		c->need_icw4 = val & 1;
		c->single = val & 2;
	} else if (val & 0x08) { /* OCW3 */
		if (val & 4)
			c->poll = true;
		if (val & 2)
			c->read_isr = val & 1;
		if (val & 0x40)
			c->special_mask = val & 0x20;
	} else {
		pic_ocw2(c, val);
	}
}

static void pic_data(struct pic_chip *c, uint8_t val)
{
	switch (c->init) {
	case 2:
		c->base = val & 0xf8;
		c->init = c->single ? (c->need_icw4 ? 4 : 0) : 3;
		break;
	case 3:
		c->init = c->need_icw4 ? 4 : 0;
		break;
	case 4:
		c->nested_special = val & 0x10;
		c->auto_eoi = val & 2;
		c->init = 0;
		break;
	default:
		c->imr = val;
		break;
	}
}

static void pic_port_write(void *opaque, uint64_t off, unsigned size, uint64_t val, unsigned chip)
{
	struct pic *p = opaque;

	pthread_mutex_lock(&p->lock);
	if (off)
		pic_data(&p->chip[chip], (uint8_t)val);
	else
		pic_command(&p->chip[chip], (uint8_t)val);
	pic_leave(p, pic_update(p));
}

static uint64_t pic_port_read(void *opaque, uint64_t off, unsigned chip)
{
	struct pic *p = opaque;
	struct pic_chip *c = &p->chip[chip];
	uint8_t v;

	pthread_mutex_lock(&p->lock);
	if (c->poll) {
		int n = pic_request(c, chip == 0);

		c->poll = false;
		v = n < 0 ? 0 : (uint8_t)(0x80 | n);
		if (n >= 0)
			pic_chip_ack(c, (unsigned)n);
	} else if (off) {
		v = c->imr;
	} else {
		v = c->read_isr ? c->isr : c->irr;
	}
	pic_leave(p, pic_update(p));
	return v;
}

static uint64_t pic_master_read(void *opaque, uint64_t off, unsigned size)
{
	return pic_port_read(opaque, off, 0);
}

static void pic_master_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	pic_port_write(opaque, off, size, val, 0);
}

static uint64_t pic_slave_read(void *opaque, uint64_t off, unsigned size)
{
	return pic_port_read(opaque, off, 1);
}

static void pic_slave_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	pic_port_write(opaque, off, size, val, 1);
}

static uint64_t pic_elcr_read(void *opaque, uint64_t off, unsigned size)
{
	struct pic *p = opaque;

	return off	   ? p->chip[1].elcr
	       : size == 2 ? p->chip[0].elcr | p->chip[1].elcr << 8
			   : p->chip[0].elcr;
}

static void pic_elcr_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pic *p = opaque;

	pthread_mutex_lock(&p->lock);
	if (off)
		p->chip[1].elcr = (uint8_t)val & p->chip[1].elcr_mask;
	else
		p->chip[0].elcr = (uint8_t)val & p->chip[0].elcr_mask;
	if (!off && size == 2)
		p->chip[1].elcr = (uint8_t)(val >> 8) & p->chip[1].elcr_mask;
	for (unsigned i = 0; i < 2; i++) { /* level inputs follow their lines from now on */
		struct pic_chip *c = &p->chip[i];

		c->irr = (uint8_t)((c->irr & ~c->elcr) | (c->line & c->elcr));
	}
	pic_leave(p, pic_update(p));
}

static const struct bus_ops pic_master_ops = { .read = pic_master_read, .write = pic_master_write };
static const struct bus_ops pic_slave_ops = { .read = pic_slave_read, .write = pic_slave_write };
static const struct bus_ops pic_elcr_ops = { .read = pic_elcr_read, .write = pic_elcr_write };

static void pic_reset(struct device *d)
{
	struct pic *p = container_of(d, struct pic, dev);

	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < 2; i++) {
		p->chip[i].elcr = 0;
		p->chip[i].line = 0;
		pic_chip_reset(&p->chip[i]);
		p->chip[i].imr = 0xff; /* nothing before a kernel asks: no firmware programmed it */
	}
	pic_leave(p, pic_update(p));
}

/* One chip in 16 bytes; the order is the format. */
static void pic_save(struct device *d, struct state_writer *w)
{
	struct pic *p = container_of(d, struct pic, dev);

	for (unsigned i = 0; i < 2; i++) {
		const struct pic_chip *c = &p->chip[i];
		uint8_t b[16] = { c->irr,	   c->isr,
				  c->imr,	   c->line,
				  c->elcr,	   c->base,
				  c->lowest,	   c->init,
				  c->need_icw4,	   c->single,
				  c->auto_eoi,	   c->rotate_auto_eoi,
				  c->special_mask, c->nested_special,
				  c->read_isr,	   c->poll };

		state_put_bytes(w, (uint16_t)(1 + i), b, sizeof(b));
	}
}

static int pic_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct pic *p = container_of(d, struct pic, dev);

	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < 2; i++) {
		struct pic_chip *c = &p->chip[i];
		uint8_t b[16];

		if (state_get_bytes(r, (uint16_t)(1 + i), b, sizeof(b))) {
			pthread_mutex_unlock(&p->lock);
			return err_set(e, EBADMSG, "state-corrupt",
				       "pic: chip %u is missing in the state", i);
		}
		c->irr = b[0];
		c->isr = b[1];
		c->imr = b[2];
		c->line = b[3];
		c->elcr = b[4] & c->elcr_mask;
		c->base = b[5] & 0xf8;
		c->lowest = b[6] & 7;
		c->init = b[7] > 4 ? 0 : b[7];
		c->need_icw4 = b[8];
		c->single = b[9];
		c->auto_eoi = b[10];
		c->rotate_auto_eoi = b[11];
		c->special_mask = b[12];
		c->nested_special = b[13];
		c->read_isr = b[14];
		c->poll = b[15];
	}
	pic_update(p);
	pic_leave(p, true);
	return 0;
}

static void pic_destroy(struct device *d)
{
	struct pic *p = container_of(d, struct pic, dev);

	bus_del(d->vm->pio, 0x20);
	bus_del(d->vm->pio, 0xa0);
	bus_del(d->vm->pio, 0x4d0);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static const struct device_ops pic_ops = {
	.name = "pic",
	.version = 1,
	.reset = pic_reset,
	.save = pic_save,
	.load = pic_load,
	.destroy = pic_destroy,
};

struct pic *pic_new(struct vm *vm, void (*output)(void *opaque, bool level), void *opaque,
		    struct err *e)
{
	struct pic *p = calloc(1, sizeof(*p));

	if (!p) {
		err_set(e, ENOMEM, "no-memory", "pic: out of memory");
		return NULL;
	}
	pthread_mutex_init(&p->lock, NULL);
	p->output = output;
	p->opaque = opaque;
	p->chip[0].elcr_mask = 0xf8; /* 0, 1 and 2 are always edge */
	p->chip[1].elcr_mask = 0xde; /* so are 8 and 13 */
	for (unsigned i = 0; i < 2; i++) {
		pic_chip_reset(&p->chip[i]);
		p->chip[i].imr = 0xff;
	}
	if (bus_add(vm->pio, 0x20, 2, &pic_master_ops, p, "pic-master", 0) ||
	    bus_add(vm->pio, 0xa0, 2, &pic_slave_ops, p, "pic-slave", 0) ||
	    bus_add(vm->pio, 0x4d0, 2, &pic_elcr_ops, p, "pic-elcr", 0)) {
		err_set(e, EEXIST, "port-conflict", "pic: its ports are taken");
		bus_del(vm->pio, 0x20);
		bus_del(vm->pio, 0xa0);
		free(p);
		return NULL;
	}
	vm_device_add(vm, &p->dev, &pic_ops, "pic");
	return p;
}
