/* aml.c - see aml.h. Opcodes by ACPI 6.4 table 20.3, resource descriptors by 6.4. */
#include "devices/aml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"

void aml_free(struct aml *a)
{
	free(a->p);
	*a = (struct aml){ 0 };
}

void aml_bytes(struct aml *a, const void *p, size_t len)
{
	if (a->error)
		return;
	if (a->len + len > a->cap) {
		size_t cap = MAX(a->cap * 2, a->len + len + 1024);
		uint8_t *n = realloc(a->p, cap);

		if (!n) {
			a->error = -ENOMEM;
			return;
		}
		a->p = n;
		a->cap = cap;
	}
	memcpy(a->p + a->len, p, len);
	a->len += len;
}

void aml_byte(struct aml *a, uint8_t v)
{
	aml_bytes(a, &v, 1);
}

void aml_le(struct aml *a, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		aml_byte(a, i < 8 ? (uint8_t)(v >> 8 * i)
				  : 0); /* longer: zeroes, as reserved fields want */
}

void aml_path(struct aml *a, const char *path)
{
	size_t len, segments;

	if (*path == '\\') {
		aml_byte(a, '\\');
		path++;
	}
	len = strlen(path);
	segments = (len + 1) / 5;
	if (segments == 2) {
		aml_byte(a, 0x2e);
	} else if (segments > 2) {
		aml_byte(a, 0x2f);
		aml_byte(a, (uint8_t)segments);
	}
	for (size_t i = 0; i < segments; i++)
		aml_bytes(a, path + 5 * i, 4);
}

void aml_int(struct aml *a, uint64_t v)
{
	if (v <= 1) {
		aml_byte(a, (uint8_t)v);
	} else if (v <= 0xff) {
		aml_byte(a, 0x0a);
		aml_le(a, v, 1);
	} else if (v <= 0xffff) {
		aml_byte(a, 0x0b);
		aml_le(a, v, 2);
	} else if (v <= 0xffffffff) {
		aml_byte(a, 0x0c);
		aml_le(a, v, 4);
	} else {
		aml_byte(a, 0x0e);
		aml_le(a, v, 8);
	}
}

void aml_string(struct aml *a, const char *s)
{
	aml_byte(a, 0x0d);
	aml_bytes(a, s, strlen(s) + 1);
}

static unsigned aml_hex(char c)
{
	return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

void aml_eisaid(struct aml *a, const char *id)
{
	uint32_t v = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 |
		     (uint32_t)(id[2] - 0x40) << 16 | aml_hex(id[3]) << 12 | aml_hex(id[4]) << 8 |
		     aml_hex(id[5]) << 4 | aml_hex(id[6]);

	aml_byte(a, 0x0c);
	aml_le(a, __builtin_bswap32(v), 4);
}

/* ---- packages ---- */

static size_t aml_begin(struct aml *a, uint8_t ext, uint8_t op)
{
	if (ext)
		aml_byte(a, ext);
	aml_byte(a, op);
	return a->len;
}

void aml_end(struct aml *a, size_t mark)
{
	size_t len = a->len - mark;
	uint8_t pkg[4];
	unsigned n;

	if (a->error)
		return;
	/* The length counts its own bytes (20.2.4). */
	n = len + 1 < 0x40 ? 1 : len + 2 < 0x1000 ? 2 : len + 3 < 0x100000 ? 3 : 4;
	len += n;
	if (n == 1) {
		pkg[0] = (uint8_t)len;
	} else {
		pkg[0] = (uint8_t)((n - 1) << 6 | (len & 15));
		for (unsigned i = 1; i < n; i++)
			pkg[i] = (uint8_t)(len >> (4 + 8 * (i - 1)));
	}
	aml_bytes(a, pkg, n); /* makes the room */
	if (a->error)
		return;
	memmove(a->p + mark + n, a->p + mark, len - n);
	memcpy(a->p + mark, pkg, n);
}

size_t aml_scope_begin(struct aml *a, const char *path)
{
	size_t m = aml_begin(a, 0, 0x10);

	aml_path(a, path);
	return m;
}

size_t aml_device_begin(struct aml *a, const char *path)
{
	size_t m = aml_begin(a, 0x5b, 0x82);

	aml_path(a, path);
	return m;
}

size_t aml_method_begin(struct aml *a, const char *path, unsigned args)
{
	size_t m = aml_begin(a, 0, 0x14);

	aml_path(a, path);
	aml_byte(a, (uint8_t)(args | 0x08)); /* serialized */
	return m;
}

size_t aml_package_begin(struct aml *a, unsigned elements)
{
	size_t m = aml_begin(a, 0, 0x12);

	aml_byte(a, (uint8_t)elements);
	return m;
}

size_t aml_if_begin(struct aml *a)
{
	return aml_begin(a, 0, 0xa0);
}

size_t aml_else_begin(struct aml *a)
{
	return aml_begin(a, 0, 0xa1);
}

void aml_name(struct aml *a, const char *path)
{
	aml_byte(a, 0x08);
	aml_path(a, path);
}

void aml_name_int(struct aml *a, const char *path, uint64_t v)
{
	aml_name(a, path);
	aml_int(a, v);
}

void aml_name_string(struct aml *a, const char *path, const char *s)
{
	aml_name(a, path);
	aml_string(a, s);
}

void aml_name_eisaid(struct aml *a, const char *path, const char *id)
{
	aml_name(a, path);
	aml_eisaid(a, id);
}

void aml_buffer(struct aml *a, const void *p, size_t len)
{
	size_t m = aml_begin(a, 0, 0x11);

	aml_int(a, len);
	aml_bytes(a, p, len);
	aml_end(a, m);
}

/* ---- resources ---- */

struct aml_resources aml_resources_begin(struct aml *a)
{
	struct aml_resources r = { .outer = aml_begin(a, 0, 0x11) };

	aml_byte(a, 0x0b); /* the size as a word, filled in at the end */
	r.size_at = a->len;
	aml_le(a, 0, 2);
	return r;
}

void aml_resources_end(struct aml *a, struct aml_resources r)
{
	size_t len;

	aml_byte(a, 0x79);
	aml_byte(a, 0); /* checksum not used */
	if (a->error)
		return;
	len = a->len - r.size_at - 2;
	a->p[r.size_at] = (uint8_t)len;
	a->p[r.size_at + 1] = (uint8_t)(len >> 8);
	aml_end(a, r.outer);
}

void aml_io(struct aml *a, uint16_t base, uint8_t len)
{
	aml_byte(a, 0x47);
	aml_byte(a, 1); /* decodes 16 bits */
	aml_le(a, base, 2);
	aml_le(a, base, 2);
	aml_byte(a, 1);
	aml_byte(a, len);
}

void aml_irq(struct aml *a, unsigned irq)
{
	aml_byte(a, 0x22);
	aml_le(a, 1u << irq, 2);
}

void aml_memory32(struct aml *a, uint32_t base, uint32_t len)
{
	aml_byte(a, 0x86);
	aml_le(a, 9, 2);
	aml_byte(a, 1);
	aml_le(a, base, 4);
	aml_le(a, len, 4);
}

void aml_window(struct aml *a, enum aml_space space, unsigned bytes, uint64_t first, uint64_t last)
{
	static const uint8_t specific[] = { [AML_MEMORY] = 1, [AML_IO] = 3, [AML_BUS] = 0 };

	aml_byte(a, bytes == 2 ? 0x88 : bytes == 4 ? 0x87 : 0x8a);
	aml_le(a, 3 + 5 * bytes, 2);
	aml_byte(a, (uint8_t)space);
	aml_byte(a, 0x0c); /* producer, positive decode, both ends fixed */
	aml_byte(a, specific[space]);
	aml_le(a, 0, bytes);
	aml_le(a, first, bytes);
	aml_le(a, last, bytes);
	aml_le(a, 0, bytes);
	aml_le(a, last - first + 1, bytes);
}
