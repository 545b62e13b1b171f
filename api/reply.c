/* reply.c - replies: heads with the headers that every reply carries, JSON bodies, problems (RFC
 * 9457).
 * Nothing here can be framed, sniffed, cached by strangers or read across origins; there are no
 * cookies.
 */
#include "api/server.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/units.h"

static void reply_date(struct text *t)
{
	static char line[64];
	static time_t made;
	time_t now = time(NULL);

	if (now != made) {
		struct tm tm;

		gmtime_r(&now, &tm);
		strftime(line, sizeof(line), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &tm);
		made = now;
	}
	text_add(t, line);
}

static void reply_number(struct text *t, uint64_t v)
{
	char buf[24], *p = buf + sizeof(buf);

	do
		*--p = (char)('0' + v % 10);
	while (v /= 10);
	text_addn(t, p, (size_t)(buf + sizeof(buf) - p));
}

void reply_head(struct conn *c, unsigned status, const char *type, int64_t len, const char *extra)
{
	struct text *t = &c->out;

	c->api->n.by_class[status / 100 % 6]++;
	c->api->n.latency_ns_sum += clock_mono_ns() - c->start_ns;
	text_add(t, "HTTP/1.1 ");
	reply_number(t, status);
	text_add(t, " ");
	text_add(t, http_status_text(status));
	text_add(t, "\r\n");
	reply_date(t);
	if (type) {
		text_add(t, "Content-Type: ");
		text_add(t, type);
		text_add(t, "\r\n");
	}
	if (len >= 0) {
		text_add(t, "Content-Length: ");
		reply_number(t, (uint64_t)len);
		text_add(t, "\r\n");
	}
	if (!c->keep)
		text_add(t, "Connection: close\r\n");
	text_add(t, "X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src "
		    "'none'; frame-ancestors 'none'\r\n"
		    "Cross-Origin-Resource-Policy: same-origin\r\nReferrer-Policy: "
		    "no-referrer\r\nCache-Control: no-cache, private\r\n");
	if (extra)
		text_add(t, extra);
	text_add(t, "\r\n");
}

void conn_reply(struct conn *c, unsigned status, const char *type, const char *extra,
		const void *body, size_t len)
{
	if (c->dead)
		return;
	if (c->req.expect_continue)
		c->keep = false; /* the body that was announced may or may not come */
	if (status == 204 || status == 304) {
		reply_head(c, status, NULL, -1, extra);
	} else {
		reply_head(c, status, type, (int64_t)len, extra);
		text_addn(&c->out, body, len);
	}
	if (c->out.error) {
		conn_close(c);
		return;
	}
	conn_done(c);
}

void conn_reply_json(struct conn *c, unsigned status, const char *extra, const char *json,
		     size_t len)
{
	conn_reply(c, status, "application/json", extra, json, len);
}

static void problem_member(struct text *t, const char *name, const char *value)
{
	json_t *s;
	char *text;

	if (!value || !*value)
		return;
	s = json_stringn_nocheck(value, strlen(value));
	text = utf8_valid(value, strlen(value)) ? json_dumps(s, JSON_ENCODE_ANY | JSON_ENSURE_ASCII)
						: NULL;
	text_printf(t, ",\"%s\":%s", name, text ? text : "\"?\"");
	free(text);
	json_decref(s);
}

void problem_json(struct text *t, const struct problem *p)
{
	text_printf(t, "{\"type\":\"about:blank\",\"title\":\"%s\",\"status\":%u",
		    http_status_text(p->status), p->status);
	problem_member(t, "code", p->code);
	problem_member(t, "detail", p->detail);
	problem_member(t, "hint", p->hint);
	problem_member(t, "field", p->field);
	problem_member(t, "op", p->op);
	text_add(t, "}\n");
}

void conn_problem(struct conn *c, const struct problem *p)
{
	struct text t = { 0 };

	problem_json(&t, p);
	conn_reply(c, p->status, "application/problem+json",
		   p->status == 401   ? "WWW-Authenticate: Bearer\r\n"
		   : p->status == 503 ? "Retry-After: 1\r\n"
				      : NULL,
		   t.s ? t.s : "", t.len);
	text_free(&t);
}

void conn_refuse(struct conn *c, unsigned status, const char *code, const char *hint,
		 const char *fmt, ...)
{
	char detail[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(detail, sizeof(detail), fmt, ap);
	va_end(ap);
	conn_problem(
	    c, &(struct problem){ .status = status, .code = code, .detail = detail, .hint = hint });
}
