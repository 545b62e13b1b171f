/* err.c - see err.h. Formatting into fixed buffers; bytes that could forge a log line are replaced.
 */
#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void err_sanitise(char *s)
{
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c < 0x20 || c == 0x7f)
			*s = '?';
	}
}

int err_set(struct err *e, int num, const char *code, const char *fmt, ...)
{
	va_list ap;

	if (!e)
		return -num;
	e->num = num;
	snprintf(e->code, sizeof(e->code), "%s", code);
	va_start(ap, fmt);
	vsnprintf(e->detail, sizeof(e->detail), fmt, ap);
	va_end(ap);
	err_sanitise(e->detail);
	e->hint[0] = '\0';
	return -num;
}

void err_hint(struct err *e, const char *fmt, ...)
{
	va_list ap;

	if (!e)
		return;
	va_start(ap, fmt);
	vsnprintf(e->hint, sizeof(e->hint), fmt, ap);
	va_end(ap);
	err_sanitise(e->hint);
}

void err_prefix(struct err *e, const char *fmt, ...)
{
	char head[128], tail[sizeof(e->detail)];
	va_list ap;

	if (!e)
		return;
	va_start(ap, fmt);
	vsnprintf(head, sizeof(head), fmt, ap);
	va_end(ap);
	memcpy(tail, e->detail, sizeof(tail));
	/* the end of an overlong sentence is what gets lost, never the object's name */
	if (snprintf(e->detail, sizeof(e->detail), "%s: %s", head, tail) < 0)
		e->detail[0] = '\0';
	err_sanitise(e->detail);
}
