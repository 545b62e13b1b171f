/* rtc.c - real-time clock and 128 bytes of CMOS (Motorola MC146818A datasheet; ports 70h, 71h).
 *
 * The clock is the host's wall clock (UTC) plus a difference in seconds that the guest makes by
 * setting it; only the difference is saved, so a restored guest shows the present time. With
 * virtual time (icount) it starts at 2000-01-01 instead, so that runs are alike. Time registers are
 * computed when read; a host timer runs only while a guest wants interrupts: periodic, alarm or
 * update-ended, by IRQ 8.
 * Locking: machine lock. Trust: nonsense dates set by the guest are normalised by day arithmetic.
 */
#include "devices/rtc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/overflow.h"
#include "common/units.h"
#include "hypervisor-core/vm.h"

enum {
	R_SEC,
	R_SEC_ALARM,
	R_MIN,
	R_MIN_ALARM,
	R_HOUR,
	R_HOUR_ALARM,
	R_WDAY,
	R_MDAY,
	R_MONTH,
	R_YEAR,
	R_A,
	R_B,
	R_C,
	R_D,
};
enum { A_UIP = 0x80 };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 4, B_24H = 2 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10 };

#define ICOUNT_EPOCH_S 946684800ull
#define UPDATE_NS      (244 * NS_PER_US)
#define CMOS_SIZE      128u

struct rtc {
	struct device dev;
	struct irq irq8;
	uint8_t index, cmos[CMOS_SIZE];
	int64_t delta_s;      /* guest time less wall time */
	uint64_t last_s;      /* guest second up to which update and alarm were looked at */
	uint64_t periodic_ns; /* next periodic edge, vm_now_ns(); 0 = none */
	struct vm_timer timer;
};

static uint64_t rtc_wall_ns(const struct rtc *r)
{
	struct timespec ts;

	if (r->dev.vm->accel_cfg.icount)
		return ICOUNT_EPOCH_S * NS_PER_S + vm_now_ns(r->dev.vm);
	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint64_t rtc_now_s(const struct rtc *r)
{
	return rtc_wall_ns(r) / NS_PER_S + (uint64_t)r->delta_s;
}

/* Days since 1970-01-01 of a civil date, and back (proleptic Gregorian; years from 1 March). */
static int64_t rtc_days(int64_t y, unsigned m, unsigned d)
{
	int64_t era, yoe, doy;

	y -= m <= 2;
	era = (y >= 0 ? y : y - 399) / 400;
	yoe = y - era * 400;
	doy = (153 * ((int64_t)m + (m > 2 ? -3 : 9)) + 2) / 5 + (int64_t)d - 1;
	return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static void rtc_civil(int64_t days, int64_t *y, unsigned *m, unsigned *d)
{
	int64_t z = days + 719468, era = (z >= 0 ? z : z - 146096) / 146097, doe = z - era * 146097;
	int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;

	*d = (unsigned)(doy - (153 * mp + 2) / 5 + 1);
	*m = (unsigned)(mp < 10 ? mp + 3 : mp - 9);
	*y = yoe + era * 400 + (*m <= 2);
}

static uint8_t rtc_encode(const struct rtc *r, unsigned v)
{
	return (uint8_t)(r->cmos[R_B] & B_BINARY ? v : v % 10 | v / 10 % 10 << 4);
}

static unsigned rtc_decode(const struct rtc *r, uint8_t v)
{
	return r->cmos[R_B] & B_BINARY ? v : (v & 15u) + (v >> 4) * 10u;
}

static uint8_t rtc_encode_hour(const struct rtc *r, unsigned h)
{
	if (r->cmos[R_B] & B_24H)
		return rtc_encode(r, h);
	return (uint8_t)(rtc_encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0));
}

static unsigned rtc_decode_hour(const struct rtc *r, uint8_t v)
{
	if (r->cmos[R_B] & B_24H)
		return rtc_decode(r, v);
	return rtc_decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* Time registers from the clock. */
static void rtc_fill(struct rtc *r)
{
	uint64_t now = rtc_now_s(r);
	int64_t days = (int64_t)(now / 86400), year;
	unsigned s = (unsigned)(now % 86400), month, mday;

	rtc_civil(days, &year, &month, &mday);
	r->cmos[R_SEC] = rtc_encode(r, s % 60);
	r->cmos[R_MIN] = rtc_encode(r, s / 60 % 60);
	r->cmos[R_HOUR] = rtc_encode_hour(r, s / 3600);
	r->cmos[R_WDAY] = rtc_encode(r, (unsigned)((days + 4) % 7) + 1);
	r->cmos[R_MDAY] = rtc_encode(r, mday);
	r->cmos[R_MONTH] = rtc_encode(r, month);
	r->cmos[R_YEAR] = rtc_encode(r, (unsigned)(year % 100));
	r->cmos[RTC_CENTURY] = rtc_encode(r, (unsigned)(year / 100 % 100));
}

/* The clock from the time registers. */
static void rtc_take(struct rtc *r)
{
	unsigned month = rtc_decode(r, r->cmos[R_MONTH]), mday = rtc_decode(r, r->cmos[R_MDAY]);
	int64_t year = rtc_decode(r, r->cmos[RTC_CENTURY]) * 100 + rtc_decode(r, r->cmos[R_YEAR]);
	int64_t days = rtc_days(year, month < 1 || month > 12 ? 1 : month, mday);
	int64_t s = days * 86400 + (int64_t)rtc_decode_hour(r, r->cmos[R_HOUR]) * 3600 +
		    (int64_t)rtc_decode(r, r->cmos[R_MIN]) * 60 + rtc_decode(r, r->cmos[R_SEC]);

	if (s < 0) /* the chip's calendar reaches back to year 0; ours starts in 1970 */
		s = 0;
	r->delta_s = s - (int64_t)(rtc_wall_ns(r) / NS_PER_S);
	r->last_s = (uint64_t)s;
}

static void rtc_irq(struct rtc *r)
{
	bool on = r->cmos[R_C] & r->cmos[R_B] & (C_PF | C_AF | C_UF);

	if (on)
		r->cmos[R_C] |= C_IRQF;
	irq_set(&r->irq8, on);
}

static uint64_t rtc_period_ns(const struct rtc *r)
{
	unsigned rate = r->cmos[R_A] & 15;

	if (!rate || (r->cmos[R_A] >> 4 & 7) != 2) /* divider in reset: no ticks */
		return 0;
	if (rate <= 2)
		rate += 7;
	return NS_PER_S / (32768u >> (rate - 1));
}

static bool rtc_alarm_matches(const struct rtc *r, uint64_t second)
{
	unsigned s = (unsigned)(second % 86400);
	uint8_t want[3] = { rtc_encode(r, s % 60), rtc_encode(r, s / 60 % 60),
			    rtc_encode_hour(r, s / 3600) };

	for (unsigned i = 0; i < 3; i++) {
		uint8_t a = r->cmos[R_SEC_ALARM + 2 * i];

		if (a < 0xc0 && a != want[i]) /* 0xc0 and above: any */
			return false;
	}
	return true;
}

/* Set the flags for what passed since the last look. */
static void rtc_catch_up(struct rtc *r)
{
	uint64_t now_s = rtc_now_s(r), now = vm_now_ns(r->dev.vm), period = rtc_period_ns(r);

	if (!(r->cmos[R_B] & B_SET) && now_s != r->last_s) {
		r->cmos[R_C] |= C_UF;
		/* A clock that jumped looks at no more than a day of seconds. */
		uint64_t from =
		    now_s > r->last_s && now_s - r->last_s < 86400 ? r->last_s + 1 : now_s;

		for (uint64_t s = from; s <= now_s; s++)
			if (rtc_alarm_matches(r, s)) {
				r->cmos[R_C] |= C_AF;
				break;
			}
		r->last_s = now_s;
	}
	if (r->periodic_ns && now >= r->periodic_ns) {
		r->cmos[R_C] |= C_PF;
		r->periodic_ns = period ? now - now % period + period : 0;
	}
}

static void rtc_arm(struct rtc *r)
{
	uint64_t now = vm_now_ns(r->dev.vm), due = 0, period = rtc_period_ns(r);

	if (!period)
		r->periodic_ns = 0;
	else if (!r->periodic_ns || r->periodic_ns > now + period)
		r->periodic_ns = now - now % period + period;
	if ((r->cmos[R_B] & B_PIE) && r->periodic_ns)
		due = r->periodic_ns;
	if ((r->cmos[R_B] & (B_UIE | B_AIE)) && !(r->cmos[R_B] & B_SET)) {
		uint64_t second = now + NS_PER_S - rtc_wall_ns(r) % NS_PER_S;

		due = due ? MIN(due, second) : second;
	}
	if (due)
		vm_timer_set(&r->timer, due);
	else
		vm_timer_stop(&r->timer);
}

static void rtc_fired(void *arg)
{
	struct rtc *r = arg;

	rtc_catch_up(r);
	rtc_irq(r);
	rtc_arm(r);
}

static bool rtc_is_time(unsigned i)
{
	return i == RTC_CENTURY || i == R_SEC || i == R_MIN ||
	       (i >= R_HOUR && i <= R_YEAR && i != R_HOUR_ALARM);
}

static void rtc_data_write(struct rtc *r, unsigned i, uint8_t v)
{
	bool set = r->cmos[R_B] & B_SET;

	switch (i) {
	case R_A:
		rtc_catch_up(r);
		r->cmos[R_A] = v & 0x7f;
		r->periodic_ns = 0;
		rtc_arm(r);
		return;
	case R_B:
		rtc_catch_up(r);
		if ((v & B_SET) && !set)
			rtc_fill(r); /* the registers stand still from here */
		r->cmos[R_B] = v & B_SET ? v & (uint8_t)~B_UIE : v;
		if (!(v & B_SET) && set)
			rtc_take(r);
		rtc_irq(r);
		rtc_arm(r);
		return;
	case R_C:
	case R_D:
		return;
	default:
		break;
	}
	if (rtc_is_time(i) && !set)
		rtc_fill(r);
	r->cmos[i] = v;
	if (rtc_is_time(i) && !set)
		rtc_take(r);
}

static uint8_t rtc_data_read(struct rtc *r, unsigned i)
{
	uint8_t v;

	switch (i) {
	case R_A: {
		uint64_t into = rtc_wall_ns(r) % NS_PER_S;
		bool updating = !(r->cmos[R_B] & B_SET) && into >= NS_PER_S - UPDATE_NS;

		return r->cmos[R_A] | (updating ? A_UIP : 0);
	}
	case R_C:
		rtc_catch_up(r);
		rtc_irq(r);
		v = r->cmos[R_C];
		r->cmos[R_C] = 0;
		rtc_irq(r);
		return v;
	case R_D:
		return 0x80; /* battery good */
	default:
		if (rtc_is_time(i) && !(r->cmos[R_B] & B_SET))
			rtc_fill(r);
		return r->cmos[i];
	}
}

static void rtc_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct rtc *r = opaque;

	if (off == 0)
		r->index = val & (CMOS_SIZE - 1); /* bit 7 would mask NMI */
	else
		rtc_data_write(r, r->index, (uint8_t)val);
}

static uint64_t rtc_read(void *opaque, uint64_t off, unsigned size)
{
	struct rtc *r = opaque;

	return off == 0 ? 0xff : rtc_data_read(r, r->index);
}

static const struct bus_ops rtc_bus_ops = { .read = rtc_read, .write = rtc_write };

void rtc_memory_set(struct rtc *r, uint64_t below, uint64_t above)
{
	uint64_t ext_k = below > MIB ? MIN((below - MIB) / KIB, 0xffffull) : 0;
	uint64_t ext64k = below > 16 * MIB ? MIN((below - 16 * MIB) / (64 * KIB), 0xffffull) : 0;
	uint64_t high64k = MIN(above / (64 * KIB), 0xffffffull);

	r->cmos[0x15] = 640 & 0xff;
	r->cmos[0x16] = 640 >> 8;
	r->cmos[0x17] = r->cmos[0x30] = (uint8_t)ext_k;
	r->cmos[0x18] = r->cmos[0x31] = (uint8_t)(ext_k >> 8);
	r->cmos[0x34] = (uint8_t)ext64k;
	r->cmos[0x35] = (uint8_t)(ext64k >> 8);
	r->cmos[0x5b] = (uint8_t)high64k;
	r->cmos[0x5c] = (uint8_t)(high64k >> 8);
	r->cmos[0x5d] = (uint8_t)(high64k >> 16);
}

/* Reset leaves time and memory alone (the battery), and stops interrupts (datasheet, RESET). */
static void rtc_reset(struct device *d)
{
	struct rtc *r = container_of(d, struct rtc, dev);

	r->index = 0;
	if (r->cmos[R_B] & B_SET)
		rtc_take(r);
	r->cmos[R_A] = 0x26;
	r->cmos[R_B] = B_24H;
	r->cmos[R_C] = 0;
	r->periodic_ns = 0;
	r->last_s = rtc_now_s(r);
	rtc_irq(r);
	rtc_arm(r);
}

static void rtc_save(struct device *d, struct state_writer *w)
{
	struct rtc *r = container_of(d, struct rtc, dev);
	uint8_t cmos[CMOS_SIZE];

	/* Running time registers are the clock's, not state. */
	memcpy(cmos, r->cmos, sizeof(cmos));
	for (unsigned i = 0; i < CMOS_SIZE; i++)
		if (rtc_is_time(i) && !(r->cmos[R_B] & B_SET))
			cmos[i] = 0;
	state_put_bytes(w, 1, cmos, sizeof(cmos));
	state_put_u64(w, 2, r->index);
	state_put_u64(w, 3, (uint64_t)r->delta_s);
	state_put_u64(w, 4, r->periodic_ns);
}

static int rtc_load(struct device *d, const struct state_reader *sr, struct err *e)
{
	struct rtc *r = container_of(d, struct rtc, dev);

	if (state_get_bytes(sr, 1, r->cmos, sizeof(r->cmos)))
		return err_set(e, EBADMSG, "state-corrupt",
			       "rtc: the CMOS memory is missing in the state");
	r->index = state_get_u64_or(sr, 2, 0) & (CMOS_SIZE - 1);
	r->delta_s = (int64_t)state_get_u64_or(sr, 3, 0);
	/* A difference that no guest can have made would overflow the arithmetic. */
	if (r->delta_s > 400000000000 || r->delta_s < -(int64_t)(rtc_wall_ns(r) / NS_PER_S))
		r->delta_s = 0;
	r->periodic_ns = state_get_u64_or(sr, 4, 0);
	r->last_s = rtc_now_s(r);
	rtc_arm(r);
	return 0;
}

static void rtc_destroy(struct device *d)
{
	struct rtc *r = container_of(d, struct rtc, dev);

	vm_timer_stop(&r->timer);
	bus_del(d->vm->pio, 0x70);
	free(r);
}

static const struct device_ops rtc_ops = {
	.name = "rtc",
	.version = 1,
	.reset = rtc_reset,
	.save = rtc_save,
	.load = rtc_load,
	.destroy = rtc_destroy,
};

struct rtc *rtc_new(struct vm *vm, const struct irq *irq8, struct err *e)
{
	struct rtc *r = calloc(1, sizeof(*r));

	if (!r) {
		err_set(e, ENOMEM, "no-memory", "rtc: out of memory");
		return NULL;
	}
	if (bus_add(vm->pio, 0x70, 2, &rtc_bus_ops, r, "rtc", 0)) {
		err_set(e, EEXIST, "port-conflict", "rtc: ports 0x70-0x71 are taken");
		free(r);
		return NULL;
	}
	r->irq8 = *irq8;
	vm_timer_init(vm, &r->timer, rtc_fired, r);
	vm_device_add(vm, &r->dev, &rtc_ops, "rtc");
	rtc_reset(&r->dev);
	return r;
}
