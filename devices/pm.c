/* pm.c - ACPI fixed hardware (ACPI 6.4, 4.8): power button, S5, the 3.58 MHz timer, general-purpose
 * events; and the reset control register at port 0xcf9.
 *
 * The machine is born in ACPI mode: SCI_EN is always set and there is no SMI command port. The
 * timer has 32 bits and counts vm_now_ns(). SCI is level-triggered, active high.
 * Locking: machine lock.
 */
#include "devices/pm.h"

#include <errno.h>
#include <stdlib.h>

#include "common/units.h"
#include "hypervisor-core/vm.h"

#define PM_TIMER_HZ 3579545ull

enum {
	STS_TIMER = 1 << 0,
	STS_GLOBAL = 1 << 5,
	STS_POWER_BUTTON = 1 << 8,
	STS_RTC = 1 << 10,
	STS_WAKE = 1 << 15
};
enum { CNT_SCI_EN = 1 << 0, CNT_SLP_EN = 1 << 13 };
#define EN_WRITABLE  (STS_TIMER | STS_GLOBAL | STS_POWER_BUTTON | STS_RTC)
#define CNT_WRITABLE 0x1c02u /* SLP_TYP, BM_RLD */

struct pm {
	struct device dev;
	struct irq sci;
	uint16_t sts, en, cnt, gpe_sts, gpe_en;
	uint8_t cf9;
	struct vm_timer timer; /* the timer's top bit toggles; runs only while enabled */
};

static uint64_t pm_ticks(const struct pm *p)
{
	return (uint64_t)((unsigned __int128)vm_now_ns(p->dev.vm) * PM_TIMER_HZ / NS_PER_S);
}

static void pm_sci(struct pm *p)
{
	irq_set(&p->sci, (p->sts & p->en & EN_WRITABLE) || (p->gpe_sts & p->gpe_en));
}

static void pm_timer_arm(struct pm *p)
{
	uint64_t toggle;

	if (!(p->en & STS_TIMER)) {
		vm_timer_stop(&p->timer);
		return;
	}
	toggle = ((pm_ticks(p) >> 31) + 1) << 31;
	vm_timer_set(&p->timer, (uint64_t)((unsigned __int128)toggle * NS_PER_S / PM_TIMER_HZ) + 1);
}

static void pm_timer_fired(void *arg)
{
	struct pm *p = arg;

	p->sts |= STS_TIMER;
	pm_sci(p);
	pm_timer_arm(p);
}

static uint64_t pm_reg(struct pm *p, unsigned off)
{
	switch (off) {
	case 0:
		return p->sts;
	case 2:
		return p->en;
	case 4:
		return p->cnt | CNT_SCI_EN;
	case 8:
		return pm_ticks(p) & 0xffff;
	case 10:
		return pm_ticks(p) >> 16 & 0xffff;
	default:
		return 0;
	}
}

static uint64_t pm_read(void *opaque, uint64_t off, unsigned size)
{
	struct pm *p = opaque;

	if (off == 8 && size == 4)
		return pm_ticks(p) & 0xffffffff;
	if (size == 4 && !(off & 1))
		return pm_reg(p, (unsigned)off) | pm_reg(p, (unsigned)off + 2) << 16;
	return pm_reg(p, off & ~1u) >> 8 * (off & 1);
}

static void pm_cnt_write(struct pm *p, uint16_t val)
{
	p->cnt = val & CNT_WRITABLE;
	if (!(val & CNT_SLP_EN))
		return;
	if ((val >> 10 & 7) == PM_S5_TYPE)
		vm_event(p->dev.vm, VM_EVENT_POWEROFF, "guest switched itself off (ACPI S5)");
	else
		p->sts |= STS_WAKE; /* no other sleep state: awake at once */
}

/* 16-bit registers; @mask: which bytes are written. */
static void pm_reg_write(struct pm *p, unsigned off, uint16_t val, uint16_t mask)
{
	switch (off) {
	case 0:
		p->sts &= (uint16_t) ~(val & mask);
		break;
	case 2:
		p->en = (uint16_t)((p->en & ~mask) | (val & mask & EN_WRITABLE));
		pm_timer_arm(p);
		break;
	case 4:
		pm_cnt_write(p, (uint16_t)((p->cnt & ~mask) | (val & mask)));
		break;
	default:
		break;
	}
	pm_sci(p);
}

static void pm_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pm *p = opaque;

	if (size == 1)
		pm_reg_write(p, off & ~1u, (uint16_t)(val << 8 * (off & 1)),
			     off & 1 ? 0xff00 : 0xff);
	else if (!(off & 1))
		pm_reg_write(p, (unsigned)off, (uint16_t)val, 0xffff);
	if (size == 4 && !(off & 1))
		pm_reg_write(p, (unsigned)off + 2, (uint16_t)(val >> 16), 0xffff);
}

static uint64_t pm_gpe_read(void *opaque, uint64_t off, unsigned size)
{
	struct pm *p = opaque;

	return (p->gpe_sts | (uint32_t)p->gpe_en << 16) >> 8 * off;
}

static void pm_gpe_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pm *p = opaque;

	for (unsigned i = 0; i < size && off + i < PM_GPE_LEN; i++) {
		uint16_t v = (uint16_t)((val >> 8 * i & 0xff) << 8 * ((off + i) & 1));

		if (off + i < 2)
			p->gpe_sts &= (uint16_t)~v;
		else
			p->gpe_en = (uint16_t)((p->gpe_en & ((off + i) & 1 ? 0x00ff : 0xff00)) | v);
	}
	pm_sci(p);
}

static uint64_t pm_cf9_read(void *opaque, uint64_t off, unsigned size)
{
	return ((struct pm *)opaque)->cf9;
}

static void pm_cf9_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pm *p = opaque;
	bool go = (val & 4) && !(p->cf9 & 4);

	p->cf9 = val & 0x0e;
	if (go) {
		p->cf9 &= (uint8_t)~4;
		vm_event(p->dev.vm, VM_EVENT_REBOOT, "reset by port cf9h");
	}
}

const struct bus_ops pm_cf9_ops = { .read = pm_cf9_read, .write = pm_cf9_write };
static const struct bus_ops pm_bus_ops = { .read = pm_read, .write = pm_write };
static const struct bus_ops pm_gpe_ops = { .read = pm_gpe_read, .write = pm_gpe_write };

void pm_power_button(struct pm *p)
{
	p->sts |= STS_POWER_BUTTON;
	pm_sci(p);
}

void pm_gpe_raise(struct pm *p, unsigned n)
{
	p->gpe_sts |= (uint16_t)(1u << (n & 15));
	pm_sci(p);
}

static void pm_reset(struct device *d)
{
	struct pm *p = container_of(d, struct pm, dev);

	p->sts = p->en = p->cnt = p->gpe_sts = p->gpe_en = 0;
	p->cf9 = 0;
	vm_timer_stop(&p->timer);
	pm_sci(p);
}

static void pm_save(struct device *d, struct state_writer *w)
{
	struct pm *p = container_of(d, struct pm, dev);

	state_put_u64(w, 1, p->sts);
	state_put_u64(w, 2, p->en);
	state_put_u64(w, 3, p->cnt);
	state_put_u64(w, 4, p->gpe_sts);
	state_put_u64(w, 5, p->gpe_en);
	state_put_u64(w, 6, p->cf9);
}

static int pm_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct pm *p = container_of(d, struct pm, dev);

	p->sts = (uint16_t)state_get_u64_or(r, 1, 0);
	p->en = state_get_u64_or(r, 2, 0) & EN_WRITABLE;
	p->cnt = state_get_u64_or(r, 3, 0) & CNT_WRITABLE;
	p->gpe_sts = (uint16_t)state_get_u64_or(r, 4, 0);
	p->gpe_en = (uint16_t)state_get_u64_or(r, 5, 0);
	p->cf9 = state_get_u64_or(r, 6, 0) & 0x0a;
	pm_timer_arm(p);
	return 0;
}

static void pm_destroy(struct device *d)
{
	struct pm *p = container_of(d, struct pm, dev);

	vm_timer_stop(&p->timer);
	bus_del(d->vm->pio, PM_BASE);
	bus_del(d->vm->pio, PM_GPE_BASE);
	free(p);
}

static const struct device_ops pm_ops = {
	.name = "pm",
	.version = 1,
	.reset = pm_reset,
	.save = pm_save,
	.load = pm_load,
	.destroy = pm_destroy,
};

struct pm *pm_new(struct vm *vm, const struct irq *sci, struct err *e)
{
	struct pm *p = calloc(1, sizeof(*p));

	if (!p) {
		err_set(e, ENOMEM, "no-memory", "pm: out of memory");
		return NULL;
	}
	if (bus_add(vm->pio, PM_BASE, 12, &pm_bus_ops, p, "acpi-pm", 0) ||
	    bus_add(vm->pio, PM_GPE_BASE, PM_GPE_LEN, &pm_gpe_ops, p, "acpi-gpe", 0)) {
		bus_del(vm->pio, PM_BASE);
		err_set(e, EEXIST, "port-conflict", "pm: ports at 0x%x are taken", PM_BASE);
		free(p);
		return NULL;
	}
	p->sci = *sci;
	vm_timer_init(vm, &p->timer, pm_timer_fired, p);
	vm_device_add(vm, &p->dev, &pm_ops, "pm");
	return p;
}
