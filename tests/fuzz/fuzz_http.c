/* fuzz_http.c - request heads: whatever passes is one head, with one Host, no transfer coding, and
 * a canonical path. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *copy = malloc(size + 1);
	struct http_req r;
	size_t from = 0;
	long n;

	if (!copy)
		return 0;
	memcpy(copy, data, size);
	copy[size] = '\0';
	n = http_head_len(copy, size, &from);
	if (n > 0) {
		copy[n] = '\0';
		if ((size_t)n > size)
			abort();
		if (http_parse(copy, (size_t)n, &r) == 0) {
			if (!r.header[HTTP_HOST] || r.header[HTTP_TRANSFER_ENCODING] ||
			    r.content_length < 0 || !r.parts)
				abort();
			for (unsigned i = 0; i < r.parts; i++)
				if (!*r.part[i] || !strcmp(r.part[i], "..") ||
				    !strcmp(r.part[i], "."))
					abort();
		} else if (r.status < 400 || !r.detail) {
			abort();
		}
	}
	free(copy);
	return 0;
}
