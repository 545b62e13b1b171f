/* json.c - short-hand over jansson, so that handlers read as sentences.
 *
 * Documents come from api (validated by the table, but api is a peer of its own: types are looked
 * at again here) and from the store. Absent or wrongly typed members read as the default. Times are
 * RFC 3339 in UTC.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/units.h"
#include "vmd/core/internal.h"

const char *jstr(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

const char *jstr_or(const json_t *o, const char *key, const char *dflt)
{
	const char *s = jstr(o, key);

	return s && *s ? s : dflt;
}

int64_t jint(const json_t *o, const char *key, int64_t dflt)
{
	const json_t *v = json_object_get(o, key);

	return json_is_integer(v) ? (int64_t)json_integer_value(v) : dflt;
}

bool jbool(const json_t *o, const char *key, bool dflt)
{
	const json_t *v = json_object_get(o, key);

	return json_is_boolean(v) ? json_is_true(v) : dflt;
}

int64_t jsize(const json_t *o, const char *key, int64_t dflt)
{
	const json_t *v = json_object_get(o, key);
	uint64_t n;

	if (json_is_string(v))
		return units_parse_size(json_string_value(v), &n) < 0 ? -1 : (int64_t)n;
	return json_is_integer(v) ? (int64_t)json_integer_value(v) : dflt;
}

int64_t jduration_ms(const json_t *o, const char *key, int64_t dflt)
{
	const json_t *v = json_object_get(o, key);
	uint64_t ms;

	if (json_is_string(v))
		return units_parse_duration(json_string_value(v), &ms) < 0 ? -1 : (int64_t)ms;
	return json_is_integer(v) ? (int64_t)json_integer_value(v) : dflt;
}

void jset(json_t *o, const char *key, json_t *value)
{
	if (value)
		json_object_set_new(o, key, value);
	else
		json_object_del(o, key);
}

void jset_str(json_t *o, const char *key, const char *s)
{
	jset(o, key, s && *s ? json_string(s) : NULL);
}

char *jtext(const json_t *o)
{
	return json_dumps(o, JSON_COMPACT | JSON_ENCODE_ANY);
}

json_t *jparse(const void *p, size_t len)
{
	return json_loadb(p, len, JSON_REJECT_DUPLICATES, NULL);
}

void time_text(uint64_t real_ms, char out[32])
{
	time_t s = (time_t)(real_ms / 1000);
	struct tm tm;
	size_t n;

	gmtime_r(&s, &tm);
	n = strftime(out, 32, "%Y-%m-%dT%H:%M:%S", &tm);
	out[n++] = '.';
	out[n++] = (char)('0' + real_ms % 1000 / 100);
	out[n++] = (char)('0' + real_ms % 100 / 10);
	out[n++] = (char)('0' + real_ms % 10);
	out[n++] = 'Z';
	out[n] = '\0';
}

json_t *jnow(void)
{
	char text[32];

	time_text(clock_real_ms(), text);
	return json_string(text);
}
