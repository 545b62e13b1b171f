/* fuzz_ws.c - a console's client after the WebSocket handshake: frames, masks, lengths, fragments,
 * control frames, close codes (RFC 6455), as raw bytes. */
#include <stdio.h>
#include <string.h>

#include "tests/fuzz/api_fuzz.h"

#define HOST "Host: localhost\r\n"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = api_fuzz_open();
	const char *t =
	    api_fuzz_ask(fd,
			 "POST /v1/guests/web/console HTTP/1.1\r\n" HOST
			 "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
			 "\"ticket\":\"");
	char get[400];
	bool gone = false;

	snprintf(get, sizeof(get),
		 "GET /v1/guests/web/console?ticket=%.32s HTTP/1.1\r\n" HOST
		 "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
		 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		 t + 10);
	api_fuzz_ask(fd, get, "101 Switching");
	api_fuzz_send(fd, data, size, &gone);
	api_fuzz_end(fd);
	return 0;
}
