/* pit.c - 8254 programmable interval timer: three counters at 1.193182 MHz (Intel 8254 datasheet),
 * and the gate and speaker bits of port 61h by which kernels calibrate other clocks.
 *
 * No counter ticks: counts and outputs are computed from the time of their start when they are
 * read. Only channel 0 has a timer of the host's, which ends in pulses on IRQ 0 (rise and fall at
 * once: both controllers latch the edge). Channel 1 (DRAM refresh) has its gate high and no user;
 * port 61h bit 4 toggles at its traditional 15 µs.
 * Locking: the machine lock. Trust: a guest's count of 1 would ask for a million interrupts a
 * second; host timers go no faster than PERIOD_MIN_NS, and ticks lost by lateness are not made up
 * for.
 */
#include "devices/pit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"
#include "common/units.h"
#include "hypervisor-core/vm.h"

#define PIT_HZ	      1193182ull
#define PERIOD_MIN_NS (100 * NS_PER_US)

struct pit_channel {
	uint32_t count; /* 1 to 65536, as loaded */
	uint64_t start_ns;
	uint16_t latch;
	uint8_t status_latch, mode, access; /* access: 1 low, 2 high, 3 both */
	uint8_t write_low;
	bool bcd, gate, loaded, latched, status_latched;
	bool read_high, write_high; /* the next byte of a two-byte access */
};

struct pit {
	struct device dev;
	struct irq irq0;
	struct pit_channel ch[3];
	uint8_t speaker; /* port 61h bits 0, 1 */
	struct vm_timer timer;
	uint64_t next_ns;
};

static uint64_t pit_ticks(uint64_t ns)
{
	return (uint64_t)((unsigned __int128)ns * PIT_HZ / NS_PER_S);
}

static uint64_t pit_ns(uint64_t ticks)
{
	return (uint64_t)(((unsigned __int128)ticks * NS_PER_S + PIT_HZ - 1) / PIT_HZ);
}

static uint64_t pit_elapsed(const struct pit *p, const struct pit_channel *c)
{
	return pit_ticks(vm_now_ns(p->dev.vm) - c->start_ns);
}

static bool pit_periodic(const struct pit_channel *c)
{
	return c->mode == 2 || c->mode == 3;
}

static uint16_t pit_to_bcd(uint32_t v)
{
	v %= 10000;
	return (uint16_t)(v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 << 12);
}

/* The counting element as the guest reads it. */
static uint16_t pit_value(const struct pit *p, const struct pit_channel *c)
{
	uint64_t t, n = c->count;
	uint32_t v;

	if (!c->loaded)
		return 0;
	t = c->gate || c->mode == 1 || c->mode == 5 ? pit_elapsed(p, c) : 0;
	switch (c->mode) {
	case 2:
		v = (uint32_t)(n - t % n);
		break;
	case 3: /* counts by two, twice a period */
		v = (uint32_t)((n - (t * 2) % n) & ~1u);
		break;
	default:
		v = (uint32_t)(n - t);
		if (c->bcd)
			v = (uint32_t)((n + 10000 - t % 10000) % 10000);
		break;
	}
	return c->bcd ? pit_to_bcd(v) : (uint16_t)v;
}

static bool pit_output(const struct pit *p, const struct pit_channel *c)
{
	uint64_t t, n = c->count;

	if (!c->loaded)
		return c->mode != 0;
	t = pit_elapsed(p, c);
	switch (c->mode) {
	case 0:
		return c->gate && t >= n;
	case 1:
		return t >= n;
	case 2:
		return !c->gate || t % n != n - 1;
	case 3:
		return !c->gate || t % n < (n + 1) / 2;
	default: /* 4, 5: low for one tick */
		return t != n;
	}
}

static void pit_arm(struct pit *p)
{
	struct pit_channel *c = &p->ch[0];
	uint64_t period;

	vm_timer_stop(&p->timer);
	p->next_ns = 0;
	if (!c->loaded || c->mode == 1 ||
	    c->mode == 5) /* gate of channel 0 is tied high: no trigger comes */
		return;
	period = pit_ns(c->count);
	if (pit_periodic(c))
		period = MAX(period, PERIOD_MIN_NS);
	p->next_ns = c->start_ns + period;
	vm_timer_set(&p->timer, p->next_ns);
}

static void pit_fired(void *arg)
{
	struct pit *p = arg;
	struct pit_channel *c = &p->ch[0];
	uint64_t now = vm_now_ns(p->dev.vm), period;

	if (!p->next_ns || now < p->next_ns)
		return;
	irq_set(&p->irq0, true);
	irq_set(&p->irq0, false);
	p->next_ns = 0;
	if (!pit_periodic(c))
		return;
	/* From the start, so that rounding does not add up. */
	period = MAX(pit_ns(c->count), PERIOD_MIN_NS);
	if (period == PERIOD_MIN_NS)
		p->next_ns = now + period;
	else
		p->next_ns = c->start_ns + pit_ns((pit_elapsed(p, c) / c->count + 1) * c->count);
	vm_timer_set(&p->timer, p->next_ns);
}

static void pit_load(struct pit *p, unsigned n, uint16_t val)
{
	struct pit_channel *c = &p->ch[n];
	uint32_t count = val;

	if (c->bcd)
		count = (val & 15u) + (val >> 4 & 15u) * 10 + (val >> 8 & 15u) * 100 +
			(val >> 12) * 1000;
	c->count = count ? count : c->bcd ? 10000 : 0x10000;
	if (c->count == 1 && pit_periodic(c))
		c->count = 2; /* 1 is illegal there */
	c->start_ns = vm_now_ns(p->dev.vm);
	c->loaded = c->mode != 1 && c->mode != 5;
	if (n == 0)
		pit_arm(p);
}

static void pit_latch_count(struct pit *p, struct pit_channel *c)
{
	if (c->latched)
		return;
	c->latch = pit_value(p, c);
	c->latched = true;
	c->read_high = false;
}

static void pit_readback(struct pit *p, uint8_t val)
{
	for (unsigned i = 0; i < 3; i++) {
		struct pit_channel *c = &p->ch[i];

		if (!(val >> (i + 1) & 1))
			continue;
		if (!(val & 0x20))
			pit_latch_count(p, c);
		if (!(val & 0x10) && !c->status_latched) {
			c->status_latched = true;
			c->status_latch = (uint8_t)(pit_output(p, c) << 7 | !c->loaded << 6 |
						    c->access << 4 | c->mode << 1 | c->bcd);
		}
	}
}

static void pit_control(struct pit *p, uint8_t val)
{
	unsigned n = val >> 6;
	struct pit_channel *c;

	if (n == 3) {
		pit_readback(p, val);
		return;
	}
	c = &p->ch[n];
	if (!(val & 0x30)) {
		pit_latch_count(p, c);
		return;
	}
	c->access = val >> 4 & 3;
	c->mode = val >> 1 & 7;
	if (c->mode > 5)
		c->mode &= 3;
	c->bcd = val & 1;
	c->loaded = c->latched = c->status_latched = c->read_high = c->write_high = false;
	if (n == 0)
		pit_arm(p);
}

static void pit_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pit *p = opaque;
	struct pit_channel *c;

	if (off == 3) {
		pit_control(p, (uint8_t)val);
		return;
	}
	c = &p->ch[off];
	switch (c->access) {
	case 1:
		pit_load(p, (unsigned)off, (uint8_t)val);
		break;
	case 2:
		pit_load(p, (unsigned)off, (uint16_t)((val & 0xff) << 8));
		break;
	default:
		if (!c->write_high) {
			c->write_low = (uint8_t)val;
			c->write_high = true;
			if (c->mode == 0) /* the first byte stops the count */
				c->loaded = false;
		} else {
			c->write_high = false;
			pit_load(p, (unsigned)off, (uint16_t)(c->write_low | (val & 0xff) << 8));
		}
		break;
	}
}

static uint64_t pit_read(void *opaque, uint64_t off, unsigned size)
{
	struct pit *p = opaque;
	struct pit_channel *c;
	uint16_t v;
	uint8_t b;

	if (off == 3)
		return 0xff;
	c = &p->ch[off];
	if (c->status_latched) {
		c->status_latched = false;
		return c->status_latch;
	}
	v = c->latched ? c->latch : pit_value(p, c);
	switch (c->access) {
	case 1:
		c->latched = false;
		return v & 0xff;
	case 2:
		c->latched = false;
		return v >> 8;
	default:
		b = (uint8_t)(c->read_high ? v >> 8 : v);
		if (c->read_high)
			c->latched = false;
		c->read_high = !c->read_high;
		return b;
	}
}

/* Channel 2's gate: a rise starts (modes 1, 5) or restarts (2, 3) the count. */
static void pit_gate2(struct pit *p, bool gate)
{
	struct pit_channel *c = &p->ch[2];

	if (gate && !c->gate) {
		if (c->mode != 0 && c->mode != 4) {
			c->start_ns = vm_now_ns(p->dev.vm);
			if (c->count)
				c->loaded = true;
		} else if (c->loaded) {
			c->start_ns = vm_now_ns(p->dev.vm);
		}
	} else if (!gate && c->gate && c->loaded && (c->mode == 0 || c->mode == 4)) {
		uint64_t t = pit_elapsed(p, c); /* the count stands still from here */

		c->count = t < c->count ? (uint32_t)(c->count - t) : 1;
	}
	c->gate = gate;
}

static uint64_t pit_61_read(void *opaque, uint64_t off, unsigned size)
{
	struct pit *p = opaque;
	uint64_t refresh = vm_now_ns(p->dev.vm) / 15085 & 1;

	return p->speaker | refresh << 4 | (uint64_t)pit_output(p, &p->ch[2]) << 5;
}

static void pit_61_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pit *p = opaque;

	p->speaker = val & 3;
	pit_gate2(p, val & 1);
}

static const struct bus_ops pit_bus_ops = { .read = pit_read, .write = pit_write };
static const struct bus_ops pit_61_ops = { .read = pit_61_read, .write = pit_61_write };

static void pit_reset(struct device *d)
{
	struct pit *p = container_of(d, struct pit, dev);

	vm_timer_stop(&p->timer);
	p->next_ns = 0;
	p->speaker = 0;
	for (unsigned i = 0; i < 3; i++)
		p->ch[i] = (struct pit_channel){ .access = 3, .count = 0x10000, .gate = i < 2 };
}

#define PIT_WORDS 16

static void pit_words(struct pit_channel *c, uint64_t w[PIT_WORDS], bool load)
{
	unsigned n = 0;

#define WORD(field) \
	do { \
		if (load) \
			(field) = (__typeof__(field))w[n]; \
		else \
			w[n] = (field); \
		n++; \
	} while (0)
	WORD(c->count);
	WORD(c->start_ns);
	WORD(c->latch);
	WORD(c->status_latch);
	WORD(c->mode);
	WORD(c->access);
	WORD(c->write_low);
	WORD(c->bcd);
	WORD(c->gate);
	WORD(c->loaded);
	WORD(c->latched);
	WORD(c->status_latched);
	WORD(c->read_high);
	WORD(c->write_high);
#undef WORD
	while (!load && n < PIT_WORDS)
		w[n++] = 0;
}

static void pit_save(struct device *d, struct state_writer *w)
{
	struct pit *p = container_of(d, struct pit, dev);

	state_put_u64(w, 1, p->speaker);
	state_put_u64(w, 2, p->next_ns);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t words[PIT_WORDS] = { 0 };

		pit_words(&p->ch[i], words, false);
		state_put_bytes(w, (uint16_t)(0x10 + i), words, sizeof(words));
	}
}

static int pit_load_state(struct device *d, const struct state_reader *r, struct err *e)
{
	struct pit *p = container_of(d, struct pit, dev);

	for (unsigned i = 0; i < 3; i++) {
		struct pit_channel *c = &p->ch[i];
		uint64_t words[PIT_WORDS] = { 0 };

		if (state_get_bytes(r, (uint16_t)(0x10 + i), words, sizeof(words)))
			return err_set(e, EBADMSG, "state-corrupt",
				       "pit: channel %u is missing in the state", i);
		pit_words(c, words, true);
		c->mode = c->mode > 5 ? c->mode & 3 : c->mode;
		c->access &= 3;
		if (c->count < 1 || c->count > 0x10000)
			c->count = 0x10000;
	}
	p->speaker = state_get_u64_or(r, 1, 0) & 3;
	p->next_ns = state_get_u64_or(r, 2, 0);
	if (p->next_ns)
		vm_timer_set(&p->timer, p->next_ns);
	else
		vm_timer_stop(&p->timer);
	return 0;
}

static void pit_destroy(struct device *d)
{
	struct pit *p = container_of(d, struct pit, dev);

	vm_timer_stop(&p->timer);
	bus_del(d->vm->pio, 0x40);
	bus_del(d->vm->pio, 0x61);
	free(p);
}

static const struct device_ops pit_ops = {
	.name = "pit",
	.version = 1,
	.reset = pit_reset,
	.save = pit_save,
	.load = pit_load_state,
	.destroy = pit_destroy,
};

struct pit *pit_new(struct vm *vm, const struct irq *irq0, struct err *e)
{
	struct pit *p = calloc(1, sizeof(*p));

	if (!p) {
		err_set(e, ENOMEM, "no-memory", "pit: out of memory");
		return NULL;
	}
	if (bus_add(vm->pio, 0x40, 4, &pit_bus_ops, p, "pit", 0) ||
	    bus_add(vm->pio, 0x61, 1, &pit_61_ops, p, "pit-61", 0)) {
		err_set(e, EEXIST, "port-conflict", "pit: its ports are taken");
		bus_del(vm->pio, 0x40);
		free(p);
		return NULL;
	}
	p->irq0 = *irq0;
	vm_timer_init(vm, &p->timer, pit_fired, p);
	vm_device_add(vm, &p->dev, &pit_ops, "pit");
	pit_reset(&p->dev);
	return p;
}
