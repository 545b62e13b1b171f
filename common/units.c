/* units.c - see units.h. Parsers take what people type and accept nothing after it. */
#include "common/units.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* Number with an optional fraction of up to 9 digits, scaled by @mult without floating point. */
static int units_parse_scaled(const char *text, const char **end, uint64_t *whole,
			      uint64_t *frac_e9)
{
	uint64_t w = 0, f = 0, scale = 100000000;
	bool any = false;

	for (; isdigit((unsigned char)*text); text++, any = true) {
		if (__builtin_mul_overflow(w, 10, &w) ||
		    __builtin_add_overflow(w, (uint64_t)(*text - '0'), &w))
			return -ERANGE;
	}
	if (any && *text == '.') {
		text++;
		if (!isdigit((unsigned char)*text))
			return -EINVAL;
		for (; isdigit((unsigned char)*text); text++) {
			f += (uint64_t)(*text - '0') * scale;
			scale /= 10;
		}
	}
	if (!any)
		return -EINVAL;
	*end = text;
	*whole = w;
	*frac_e9 = f;
	return 0;
}

static int units_scale(uint64_t whole, uint64_t frac_e9, uint64_t mult, uint64_t *out)
{
	uint64_t v;
	unsigned __int128 f = (unsigned __int128)frac_e9 * mult / 1000000000u;

	if (__builtin_mul_overflow(whole, mult, &v) || __builtin_add_overflow(v, (uint64_t)f, &v) ||
	    v > INT64_MAX)
		return -ERANGE;
	*out = v;
	return 0;
}

int units_parse_size(const char *text, uint64_t *size_bytes)
{
	static const char letters[] = "KMGTPE";
	uint64_t whole, frac, mult = 1;
	const char *end, *hit;
	int r = units_parse_scaled(text, &end, &whole, &frac);

	if (r < 0)
		return r;
	if (*end && (hit = strchr(letters, toupper((unsigned char)*end)))) {
		mult = 1ULL << (10 * (hit - letters + 1));
		end++;
		if (*end == 'i' && (end[1] == 'B' || end[1] == 'b' || !end[1]))
			end++;
		if (*end == 'B' || *end == 'b')
			end++;
	} else if ((*end == 'B' || *end == 'b') && !end[1]) {
		end++;
	}
	if (*end || (frac && mult == 1))
		return -EINVAL;
	return units_scale(whole, frac, mult, size_bytes);
}

int units_parse_duration(const char *text, uint64_t *duration_ms)
{
	static const struct {
		const char *name;
		uint64_t ms;
	} units[] = { { "ms", 1 },	{ "s", 1000 },	  { "", 1000 },	    { "m", 60000 },
		      { "min", 60000 }, { "h", 3600000 }, { "d", 86400000 } };
	uint64_t whole, frac;
	const char *end;
	int r = units_parse_scaled(text, &end, &whole, &frac);

	if (r < 0)
		return r;
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (!strcmp(end, units[i].name))
			return units_scale(whole, frac, units[i].ms, duration_ms);
	return -EINVAL;
}

char *units_format_size(uint64_t size_bytes, char *buf, size_t len)
{
	static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	unsigned i = 0;
	uint64_t unit = 1;

	while (i < 6 && size_bytes / unit >= 1024) {
		unit *= 1024;
		i++;
	}
	if (size_bytes % unit == 0 || size_bytes / unit >= 100)
		snprintf(buf, len, "%llu %s", (unsigned long long)(size_bytes / unit), names[i]);
	else
		snprintf(buf, len, "%.1f %s", (double)size_bytes / (double)unit, names[i]);
	return buf;
}

char *units_format_duration(uint64_t duration_ms, char *buf, size_t len)
{
	uint64_t s = duration_ms / 1000;

	if (duration_ms < 1000)
		snprintf(buf, len, "%llu ms", (unsigned long long)duration_ms);
	else if (s < 60)
		snprintf(buf, len, "%.1f s", (double)duration_ms / 1000.0);
	else if (s < 3600)
		snprintf(buf, len, "%llum%02llus", (unsigned long long)(s / 60),
			 (unsigned long long)(s % 60));
	else if (s < 86400)
		snprintf(buf, len, "%lluh%02llum", (unsigned long long)(s / 3600),
			 (unsigned long long)(s / 60 % 60));
	else
		snprintf(buf, len, "%llud%02lluh", (unsigned long long)(s / 86400),
			 (unsigned long long)(s / 3600 % 24));
	return buf;
}

uint64_t clock_mono_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t clock_real_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / NS_PER_MS;
}
