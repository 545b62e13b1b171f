/* fuzz_api.c - a client of the API, from its first byte to the end of the connection: request heads,
 * bodies, JSON, pipelining, uploads, lists. Input: bytes as sent; 0xff splits them into pieces that are
 * sent one after another.
 */
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/api_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = api_fuzz_open();
	bool gone = false;

	for (unsigned pieces = 0; size && pieces < 8 && !gone; pieces++) {
		const uint8_t *cut = memchr(data, 0xff, size);
		size_t n = cut ? (size_t)(cut - data) : size;

		api_fuzz_send(fd, data, n, &gone);
		n += cut != NULL;
		data += n;
		size -= n;
	}
	api_fuzz_end(fd);
	return 0;
}
