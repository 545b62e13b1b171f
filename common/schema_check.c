/* schema_check.c - does one value fit its field? Strings by format, length, allowed words; numbers
 * by bounds.
 * The caller knows the path of the field and prefixes it; the sentences here speak of the value.
 * Trust: values are hostile.
 */
#include "common/schema.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/accel_words.h"
#include "common/err.h"
#include "common/text.h"
#include "common/units.h"

#define STRING_MAX 1024

static bool check_printable(const char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			return false;
	return true;
}

static bool check_mac(const char *s)
{
	unsigned first = 0;

	if (strlen(s) != 17)
		return false;
	for (unsigned i = 0; i < 17; i++) {
		if (i % 3 == 2 ? s[i] != ':' : !strchr("0123456789abcdefABCDEF", s[i]))
			return false;
	}
	sscanf(s, "%2x", &first); /* a group address is nobody's own */
	return !(first & 1) && strcmp(s, "00:00:00:00:00:00");
}

static bool check_cidr4(const char *s)
{
	char addr[16];
	const char *slash = strchr(s, '/');
	struct in_addr a;
	unsigned long bits;
	char *end;

	if (!slash || slash == s || (size_t)(slash - s) >= sizeof(addr) || slash[1] < '0' ||
	    slash[1] > '9')
		return false;
	memcpy(addr, s, (size_t)(slash - s));
	addr[slash - s] = '\0';
	bits = strtoul(slash + 1, &end, 10);
	return !*end && bits >= 1 && bits <= 30 && inet_pton(AF_INET, addr, &a) == 1;
}

static bool check_volume(const char *s)
{
	const char *slash = strchr(s, '/');
	char pool[64];

	if (!slash)
		return name_valid(s);
	if ((size_t)(slash - s) >= sizeof(pool))
		return false;
	memcpy(pool, s, (size_t)(slash - s));
	pool[slash - s] = '\0';
	return name_valid(pool) && name_valid(slash + 1);
}

/* absolute, no empty, "." or ".." part: priv checks roots, this refuses what no root could allow */
static bool check_path(const char *s)
{
	if (*s != '/' || !s[1] || !check_printable(s))
		return false;
	for (const char *p = s; *p;) {
		size_t n = strcspn(++p, "/");

		if (!n || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
			return false;
		p += n;
	}
	return true;
}

static bool check_port_number(const char *s)
{
	char *end;
	unsigned long v = strtoul(s, &end, 10);

	return *s >= '0' && *s <= '9' && !*end && v >= 1 && v <= 65535;
}

/* file: and unix: take a bare name (beneath the run directory) or an absolute path */
static bool check_target(const char *s)
{
	return *s == '/' ? check_path(s) : name_valid(s);
}

static bool check_serialspec(const char *spec)
{
	char buf[256], *colon, *comma;

	if (!strcmp(spec, "pty") || !strcmp(spec, "null") || !strcmp(spec, "log"))
		return true;
	if (strlen(spec) >= sizeof(buf) || !check_printable(spec))
		return false;
	snprintf(buf, sizeof(buf), "%s", spec);
	comma = strrchr(buf, ',');
	if (comma) {
		if (strcmp(comma, ",connect") ||
		    (strncmp(buf, "unix:", 5) && strncmp(buf, "tcp:", 4)))
			return false;
		*comma = '\0';
	}
	if (!strncmp(buf, "file:", 5))
		return check_target(buf + 5);
	if (!strncmp(buf, "unix:", 5))
		return check_target(buf + 5);
	if (!strncmp(buf, "tty:", 4))
		return check_path(buf + 4);
	if (!strncmp(buf, "tcp:", 4)) {
		colon = strrchr(buf + 4, ':');
		if (!colon || strcspn(buf + 4, "/ ") != strlen(buf + 4))
			return false;
		return check_port_number(colon + 1);
	}
	if (!strncmp(buf, "guest:", 6)) {
		colon = strrchr(buf + 6, ':');
		if (!colon)
			return false;
		*colon = '\0';
		return name_valid(buf + 6) && name_valid(colon + 1);
	}
	return false;
}

static bool check_accel(const char *s)
{
	struct accel_words w;

	return accel_words(s, &w) == 0;
}

static bool check_ipv4(const char *s)
{
	struct in_addr a;

	return inet_pton(AF_INET, s, &a) == 1;
}

static bool check_ifname(const char *s)
{
	return name_valid(s) && strlen(s) <= 15;
}

static const struct {
	const char *format;
	bool (*ok)(const char *s);
	const char *what;
} check_formats[] = {
	{ "name", name_valid,
	  "a name: 1 to 63 of letters, digits, . _ -, the first a letter or digit, no .." },
	{ "image", name_valid, "the name of an image" },
	{ "network", name_valid, "the name of a network" },
	{ "guest", name_valid, "the name or UUID of a guest" },
	{ "uuid", uuid_valid, "a UUID" },
	{ "mac", check_mac, "a unicast MAC address, as 52:54:00:12:34:56" },
	{ "accel", check_accel,
	  "one of auto, kvm, soft; soft may be followed by ,threads=1 (one host thread runs all "
	  "virtual CPUs) and ,icount (virtual time that counts instructions)" },
	{ "ipv4", check_ipv4, "an IPv4 address" },
	{ "cidr4", check_cidr4, "an IPv4 address with prefix, as 10.1.2.1/24" },
	{ "volume", check_volume, "a disk, as NAME or POOL/NAME" },
	{ "ifname", check_ifname, "an interface name of at most 15 letters, digits, . _ -" },
	{ "path", check_path, "an absolute path without . or .. in it" },
	{ "serialspec", check_serialspec,
	  "one of log, null, pty, file:PATH, unix:PATH[,connect], tcp:HOST:PORT[,connect], "
	  "tty:PATH, guest:NAME:PORT" },
};

int schema_check_string(const struct schema_field *f, const char *s, struct err *e)
{
	size_t len = strlen(s), max = f->max ? (size_t)f->max : STRING_MAX;

	if (f->type == ST_ENUM) {
		const char *near;
		char all[160] = "";

		for (const char *const *v = f->values; *v; v++) {
			size_t used = strlen(all);

			if (!strcmp(s, *v))
				return 0;
			snprintf(all + used, sizeof(all) - used, "%s%s", used ? ", " : "", *v);
		}
		err_set(e, EINVAL, "bad-value", "\"%.60s\" is not one of %s", s, all);
		near = suggest(s, f->values);
		if (near)
			err_hint(e, "did you mean \"%s\"?", near);
		return -EINVAL;
	}
	if (len < (size_t)f->min || len > max)
		return err_set(e, EINVAL, "bad-length",
			       "%zu bytes long; must be %" PRId64 " to %zu", len, f->min, max);
	if (!check_printable(s))
		return err_set(e, EINVAL, "bad-value", "holds a control character");
	for (size_t i = 0; f->format && i < sizeof(check_formats) / sizeof(check_formats[0]); i++)
		if (!strcmp(f->format, check_formats[i].format) && !check_formats[i].ok(s))
			return err_set(e, EINVAL, "bad-value", "\"%.80s\" is not %s", s,
				       check_formats[i].what);
	return 0;
}

int schema_check_number(const struct schema_field *f, int64_t v, struct err *e)
{
	char a[32], b[32];

	if (!f->min && !f->max)
		return v >= 0 ? 0 : err_set(e, EINVAL, "bad-value", "%" PRId64 " is negative", v);
	if (v >= f->min && v <= f->max)
		return 0;
	if (f->type == ST_SIZE && v >= 0)
		return err_set(e, EINVAL, "out-of-range",
			       "%" PRId64 " bytes is out of range: %s to %s", v,
			       units_format_size((uint64_t)f->min, a, sizeof(a)),
			       units_format_size((uint64_t)f->max, b, sizeof(b)));
	if (f->type == ST_DURATION && v >= 0)
		return err_set(e, EINVAL, "out-of-range",
			       "%" PRId64 " ms is out of range: %s to %s", v,
			       units_format_duration((uint64_t)f->min, a, sizeof(a)),
			       units_format_duration((uint64_t)f->max, b, sizeof(b)));
	return err_set(e, EINVAL, "out-of-range",
		       "%" PRId64 " is out of range: %" PRId64 " to %" PRId64, v, f->min, f->max);
}

const char *schema_type_name(const struct schema_field *f)
{
	switch (f->type) {
	case ST_STRING:
	case ST_ENUM:
		return "a string";
	case ST_INT:
		return "an integer";
	case ST_BOOL:
		return "true or false";
	case ST_SIZE:
		return "a size: bytes as an integer, or a string as \"512M\"";
	case ST_DURATION:
		return "a duration: milliseconds as an integer, or a string as \"30s\"";
	case ST_OBJECT:
		return "an object";
	case ST_ARRAY:
		return f->object ? "an array of objects" : "an array of strings";
	case ST_MAP:
		return "an object whose members are strings";
	}
	return "?";
}
