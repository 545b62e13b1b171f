/* http.h - one HTTP/1.1 request head, strictly parsed. */
#ifndef API_HTTP_H
#define API_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_HEAD_MAX	 16384
#define HTTP_HEADERS_MAX 64
#define HTTP_PARTS_MAX	 8
#define HTTP_QUERY_MAX	 16

enum http_header {
	HTTP_HOST,
	HTTP_CONTENT_LENGTH,
	HTTP_CONTENT_TYPE,
	HTTP_TRANSFER_ENCODING,
	HTTP_CONNECTION,
	HTTP_EXPECT,
	HTTP_AUTHORIZATION,
	HTTP_IF_MATCH,
	HTTP_IF_NONE_MATCH,
	HTTP_PREFER,
	HTTP_IDEMPOTENCY_KEY,
	HTTP_LAST_EVENT_ID,
	HTTP_UPGRADE,
	HTTP_WS_KEY,
	HTTP_WS_VERSION,
	HTTP_ORIGIN,
	HTTP_HEADER_COUNT
};

/* Strings point into the caller's copy of the head, which the parser cuts up in place. */
struct http_req {
	const char *method;
	const char *part[HTTP_PARTS_MAX]; /* of the path, percent-decoded: "v1", "guests", "web" */
	unsigned parts;
	struct {
		const char *key, *value; /* percent-decoded */
	} query[HTTP_QUERY_MAX];
	unsigned queries;
	const char *header[HTTP_HEADER_COUNT]; /* NULL: absent */
	int64_t content_length;		       /* 0 without a body */
	bool close;			       /* Connection: close */
	bool upgrade;			       /* Connection: upgrade and Upgrade: websocket */
	bool expect_continue;
	/* on refusal */
	unsigned status;
	const char *detail;
};

/* http_head_len() - length of the head in @buf with its empty line, 0 where it is not complete yet,
 * -EPROTO where it can no longer become one: a bare LF or CR, a control byte, or more than
 * HTTP_HEAD_MAX bytes (then -E2BIG).
 * @from: where the last call stopped looking; updated. */
long http_head_len(const char *buf, size_t len, size_t *from);

/* http_parse() - @head: exactly one head as found by http_head_len(), writable.
 * Return: 0; -EPROTO with r->status and r->detail: answer so and close, for what follows cannot be
 * trusted. */
int http_parse(char *head, size_t len, struct http_req *r);

const char *http_query(const struct http_req *r, const char *key); /* first value or NULL */
const char *http_status_text(unsigned status);

#endif
