/* hash.h - SHA-256 and, for the WebSocket handshake only, SHA-1; base64. */
#ifndef COMMON_HASH_H
#define COMMON_HASH_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_HEX_LEN 65

struct sha256 {
	uint32_t h[8];
	uint64_t len;
	uint8_t block[64];
	unsigned used;
};
void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t len);
void sha256_end(struct sha256 *s, uint8_t out[32]);
void sha256_hex(struct sha256 *s, char out[SHA256_HEX_LEN]); /* ends it */

void sha1_digest(const void *data, size_t len, uint8_t out[20]);

/* base64_encode() - @out: at least 4 * ((len + 2) / 3) + 1 bytes. */
void base64_encode(const uint8_t *data, size_t len, char *out);

#endif
