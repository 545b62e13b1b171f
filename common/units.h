/* units.h - numbers with units, read from people and shown to people. */
#ifndef COMMON_UNITS_H
#define COMMON_UNITS_H

#include <stddef.h>
#include <stdint.h>

#define KIB	  1024ULL
#define MIB	  (1024 * KIB)
#define GIB	  (1024 * MIB)
#define NS_PER_US 1000ULL
#define NS_PER_MS 1000000ULL
#define NS_PER_S  1000000000ULL

/* units_parse_size() - "512M", "1.5G", "4096", "10GiB" → bytes (powers of 1,024; "GB" too).
 * Return: 0; -EINVAL not a size; -ERANGE does not fit in 63 bits. Whole string must match. */
int units_parse_size(const char *text, uint64_t *size_bytes);

/* units_parse_duration() - "250ms", "30s", "5m", "2h", bare number = seconds → milliseconds. */
int units_parse_duration(const char *text, uint64_t *duration_ms);

/* units_format_size() - "1.5 GiB" into @buf (at least 16 bytes). Return: @buf. */
char *units_format_size(uint64_t size_bytes, char *buf, size_t len);
char *units_format_duration(uint64_t duration_ms, char *buf, size_t len);

/* clock_mono_ns() - CLOCK_MONOTONIC. clock_real_ms() - wall clock, ms since 1970. */
uint64_t clock_mono_ns(void);
uint64_t clock_real_ms(void);

#endif
