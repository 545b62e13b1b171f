/* http.c - a strict parser of HTTP/1.1 request heads (RFC 9110, RFC 9112), for an API server only.
 *
 * Why not libmicrohttpd: 0.9.75 reads the socket itself and parses loosely (acts on Content-Length
 * beside Transfer-Encoding and on two Content-Lengths, takes bare LF, cuts paths at %00). Each
 * head, also of pipelined requests and of those inside TLS, would have to be parsed strictly before
 * it is handed over, and then nothing is left for the library to do.
 *
 * Whatever two parsers could read differently is refused, and the connection closed: bare CR or LF,
 * folded lines, space before a colon, control and non-ASCII bytes, any Transfer-Encoding, repeated
 * headers that are single by nature, a Content-Length that is not just digits, paths that are not
 * in their one canonical form. HTTP/1.1 only. No allocation, no I/O: tests and the fuzzer drive it.
 * Trust: all input is hostile.
 */
#include "api/http.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#define HTTP_TARGET_MAX 4096

static const char *const http_header_names[HTTP_HEADER_COUNT] = {
	[HTTP_HOST] = "host",
	[HTTP_CONTENT_LENGTH] = "content-length",
	[HTTP_CONTENT_TYPE] = "content-type",
	[HTTP_TRANSFER_ENCODING] = "transfer-encoding",
	[HTTP_CONNECTION] = "connection",
	[HTTP_EXPECT] = "expect",
	[HTTP_AUTHORIZATION] = "authorization",
	[HTTP_IF_MATCH] = "if-match",
	[HTTP_IF_NONE_MATCH] = "if-none-match",
	[HTTP_PREFER] = "prefer",
	[HTTP_IDEMPOTENCY_KEY] = "idempotency-key",
	[HTTP_LAST_EVENT_ID] = "last-event-id",
	[HTTP_UPGRADE] = "upgrade",
	[HTTP_WS_KEY] = "sec-websocket-key",
	[HTTP_WS_VERSION] = "sec-websocket-version",
	[HTTP_ORIGIN] = "origin",
};

long http_head_len(const char *buf, size_t len, size_t *from)
{
	size_t i = *from;

	for (; i < len && i < HTTP_HEAD_MAX; i++) {
		unsigned char ch = (unsigned char)buf[i];

		if (ch == '\n') {
			if (!i || buf[i - 1] != '\r')
				return -EPROTO;
			if (i >= 3 && buf[i - 2] == '\n')
				return (long)i + 1;
			if (i == 1) /* an empty line before the request */
				return -EPROTO;
		} else if (i && buf[i - 1] == '\r') {
			return -EPROTO;
		} else if ((ch < 0x20 && ch != '\t' && ch != '\r') || ch >= 0x7f) {
			return -EPROTO;
		}
	}
	*from = i;
	return i >= HTTP_HEAD_MAX ? -E2BIG : 0;
}

static int http_refuse(struct http_req *r, unsigned status, const char *detail)
{
	r->status = status;
	r->detail = detail;
	return -EPROTO;
}

static bool http_is_token(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		char c = s[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
		      strchr("!#$%&'*+-.^_`|~", c)))
			return false;
	}
	return len > 0;
}

static int http_hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

static bool http_is_unreserved(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c == '-' || c == '.' || c == '_' || c == '~';
}

/* Decode in place. A path part may hold no escape of a character that needs none (one form only)
 * and no control byte; a query value takes '+' for a space. */
static int http_decode(char *s, bool is_path)
{
	char *out = s;

	for (; *s; s++) {
		int hi, lo, c = (unsigned char)*s;

		if (c == '%') {
			hi = http_hex(s[1]);
			lo = hi < 0 ? -1 : http_hex(s[2]);
			if (lo < 0)
				return -EPROTO;
			c = hi << 4 | lo;
			if (c < 0x20 || c >= 0x7f)
				return -EPROTO;
			if (is_path && http_is_unreserved((char)c))
				return -EPROTO;
			s += 2;
		} else if (!is_path && c == '+') {
			c = ' ';
		} else if (!http_is_unreserved((char)c) &&
			   !strchr(is_path ? "!$&'()*+,;=:@" : "!$'()*,;:@/?=", c)) {
			return -EPROTO;
		}
		*out++ = (char)c;
	}
	*out = '\0';
	return 0;
}

static int http_parse_query(char *q, struct http_req *r)
{
	while (q && *q) {
		char *amp = strchr(q, '&'), *eq;

		if (amp)
			*amp++ = '\0';
		if (r->queries == HTTP_QUERY_MAX)
			return http_refuse(r, 400, "too many query parameters");
		eq = strchr(q, '=');
		if (eq)
			*eq++ = '\0';
		if (!*q || http_decode(q, false) < 0 || (eq && http_decode(eq, false) < 0))
			return http_refuse(r, 400, "malformed query string");
		if (eq && strchr(eq, '&'))
			return http_refuse(r, 400, "a query value may not hold '&'");
		r->query[r->queries].key = q;
		r->query[r->queries++].value = eq ? eq : "";
		q = amp;
	}
	return 0;
}

static int http_parse_target(char *t, struct http_req *r)
{
	char *q = strchr(t, '?');

	if (*t != '/')
		return http_refuse(r, 400, "the request target must be a path");
	if (strlen(t) > HTTP_TARGET_MAX)
		return http_refuse(r, 414, "the request target is too long");
	if (q)
		*q++ = '\0';
	t++;
	while (t) {
		char *slash = strchr(t, '/');

		if (slash)
			*slash++ = '\0';
		if (!*t || !strcmp(t, ".") || !strcmp(t, ".."))
			return http_refuse(
			    r, 400,
			    "the path is not in canonical form (empty part, \".\" or \"..\")");
		if (http_decode(t, true) < 0)
			return http_refuse(r, 400,
					   "the path is not in canonical form (needless or "
					   "forbidden escape or character)");
		if (r->parts == HTTP_PARTS_MAX)
			return http_refuse(r, 404, "no such path");
		r->part[r->parts++] = t;
		t = slash;
	}
	return http_parse_query(q, r);
}

static int http_parse_line(char *line, struct http_req *r)
{
	char *sp1 = strchr(line, ' '), *sp2 = sp1 ? strchr(sp1 + 1, ' ') : NULL;

	if (!sp2 || strchr(sp2 + 1, ' ') || strchr(line, '\t'))
		return http_refuse(r, 400, "malformed request line");
	*sp1 = *sp2 = '\0';
	if (!http_is_token(line, strlen(line)) || strlen(line) > 16)
		return http_refuse(r, 400, "malformed method");
	if (strcmp(sp2 + 1, "HTTP/1.1"))
		return http_refuse(r, 505, "only HTTP/1.1 is spoken here");
	r->method = line;
	return http_parse_target(sp1 + 1, r);
}

static int http_parse_header(char *line, struct http_req *r)
{
	char *colon = strchr(line, ':'), *value, *end;

	if (*line == ' ' || *line == '\t')
		return http_refuse(r, 400, "folded header line");
	if (!colon || !http_is_token(line, (size_t)(colon - line)))
		return http_refuse(r, 400, "malformed header line");
	*colon = '\0';
	value = colon + 1 + strspn(colon + 1, " \t");
	end = value + strlen(value);
	while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
		*--end = '\0';
	for (unsigned h = 0; h < HTTP_HEADER_COUNT; h++) {
		if (strcasecmp(line, http_header_names[h]))
			continue;
		if (r->header[h])
			return http_refuse(r, 400,
					   h == HTTP_CONTENT_LENGTH ? "two Content-Length headers"
					   : h == HTTP_HOST
					       ? "two Host headers"
					       : "a header that may come only once came twice");
		r->header[h] = value;
	}
	return 0;
}

/* is @word one of a comma-separated list? */
static bool http_list_has(const char *list, const char *word)
{
	size_t n = strlen(word);

	while (list && *list) {
		list += strspn(list, " \t,");
		size_t len = strcspn(list, ",");
		size_t bare = len;

		while (bare && (list[bare - 1] == ' ' || list[bare - 1] == '\t'))
			bare--;
		if (bare == n && !strncasecmp(list, word, n))
			return true;
		list += len;
	}
	return false;
}

static int http_check_framing(struct http_req *r)
{
	const char *cl = r->header[HTTP_CONTENT_LENGTH];

	if (!r->header[HTTP_HOST] || !*r->header[HTTP_HOST])
		return http_refuse(r, 400, "Host header missing");
	if (r->header[HTTP_TRANSFER_ENCODING])
		return http_refuse(
		    r, cl ? 400 : 411,
		    cl ? "both Content-Length and Transfer-Encoding"
		       : "a body needs a Content-Length; transfer codings are not taken");
	if (cl) {
		size_t n = strlen(cl);

		if (!n || n > 18 || strspn(cl, "0123456789") != n || (n > 1 && *cl == '0'))
			return http_refuse(r, 400, "malformed Content-Length");
		for (; *cl; cl++)
			r->content_length = r->content_length * 10 + (*cl - '0');
	}
	if (r->header[HTTP_EXPECT]) {
		if (strcasecmp(r->header[HTTP_EXPECT], "100-continue"))
			return http_refuse(r, 417, "unknown expectation");
		r->expect_continue = r->content_length > 0;
	}
	r->close = http_list_has(r->header[HTTP_CONNECTION], "close");
	r->upgrade = http_list_has(r->header[HTTP_CONNECTION], "upgrade") &&
		     r->header[HTTP_UPGRADE] && !strcasecmp(r->header[HTTP_UPGRADE], "websocket");
	if (r->upgrade && r->content_length)
		return http_refuse(r, 400, "an upgrade with a body");
	return 0;
}

int http_parse(char *head, size_t len, struct http_req *r)
{
	unsigned lines = 0;
	int e;

	*r = (struct http_req){ 0 };
	for (char *line = head, *end = head + len; line < end; lines++) {
		char *eol = memchr(line, '\r', (size_t)(end - line));

		if (!eol || eol + 1 >= end || eol[1] != '\n')
			return http_refuse(r, 400, "malformed line end");
		*eol = '\0';
		if (eol == line)
			break;
		if (lines > HTTP_HEADERS_MAX)
			return http_refuse(r, 431, "too many headers");
		e = lines ? http_parse_header(line, r) : http_parse_line(line, r);
		if (e < 0)
			return e;
		line = eol + 2;
	}
	if (!r->method)
		return http_refuse(r, 400, "malformed request line");
	return http_check_framing(r);
}

const char *http_query(const struct http_req *r, const char *key)
{
	for (unsigned i = 0; i < r->queries; i++)
		if (!strcmp(r->query[i].key, key))
			return r->query[i].value;
	return NULL;
}

const char *http_status_text(unsigned status)
{
	switch (status) {
	case 101:
		return "Switching Protocols";
	case 200:
		return "OK";
	case 201:
		return "Created";
	case 202:
		return "Accepted";
	case 204:
		return "No Content";
	case 304:
		return "Not Modified";
	case 400:
		return "Bad Request";
	case 401:
		return "Unauthorized";
	case 403:
		return "Forbidden";
	case 404:
		return "Not Found";
	case 405:
		return "Method Not Allowed";
	case 406:
		return "Not Acceptable";
	case 408:
		return "Request Timeout";
	case 409:
		return "Conflict";
	case 411:
		return "Length Required";
	case 412:
		return "Precondition Failed";
	case 413:
		return "Content Too Large";
	case 414:
		return "URI Too Long";
	case 415:
		return "Unsupported Media Type";
	case 417:
		return "Expectation Failed";
	case 421:
		return "Misdirected Request";
	case 422:
		return "Unprocessable Content";
	case 423:
		return "Locked";
	case 426:
		return "Upgrade Required";
	case 428:
		return "Precondition Required";
	case 429:
		return "Too Many Requests";
	case 431:
		return "Request Header Fields Too Large";
	case 500:
		return "Internal Server Error";
	case 501:
		return "Not Implemented";
	case 502:
		return "Bad Gateway";
	case 503:
		return "Service Unavailable";
	case 504:
		return "Gateway Timeout";
	case 505:
		return "HTTP Version Not Supported";
	case 507:
		return "Insufficient Storage";
	}
	return status < 400 ? "OK" : "Error";
}
