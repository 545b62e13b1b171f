/* aml.h - a small AML writer (ACPI 6.4, chapter 20): appends terms to a buffer, closes packages by
 * inserting their length. No objects, no tree: the caller writes terms in order. Errors (memory)
 * are sticky.
 */
#ifndef DEVICES_AML_H
#define DEVICES_AML_H

#include <stddef.h>
#include <stdint.h>

struct aml {
	uint8_t *p;
	size_t len, cap;
	int error; /* sticky -errno */
};

void aml_free(struct aml *a);
void aml_byte(struct aml *a, uint8_t v);
void aml_bytes(struct aml *a, const void *p, size_t len);
void aml_le(struct aml *a, uint64_t v, unsigned bytes); /* little-endian, for tables */

/* names: "\\_SB_.PCI0", "_CRS"; segments of four characters */
void aml_path(struct aml *a, const char *path);
void aml_int(struct aml *a, uint64_t v);
void aml_string(struct aml *a, const char *s);
void aml_eisaid(struct aml *a, const char *id); /* "PNP0A08" as an integer */

/* aml_*_begin() returns a mark for aml_end(), which puts the package length in. */
size_t aml_scope_begin(struct aml *a, const char *path);
size_t aml_device_begin(struct aml *a, const char *path);
size_t aml_method_begin(struct aml *a, const char *path, unsigned args);
size_t aml_package_begin(struct aml *a, unsigned elements);
size_t aml_if_begin(struct aml *a); /* the predicate follows */
size_t aml_else_begin(struct aml *a);
void aml_end(struct aml *a, size_t mark);

void aml_name(struct aml *a, const char *path); /* its value follows */
void aml_name_int(struct aml *a, const char *path, uint64_t v);
void aml_name_string(struct aml *a, const char *path, const char *s);
void aml_name_eisaid(struct aml *a, const char *path, const char *id);
void aml_buffer(struct aml *a, const void *p, size_t len);

/* Resource templates: begin after aml_name("_CRS"). Two marks: aml_resources_end() takes both. */
struct aml_resources {
	size_t outer, size_at;
};
struct aml_resources aml_resources_begin(struct aml *a);
void aml_resources_end(struct aml *a, struct aml_resources r);
void aml_io(struct aml *a, uint16_t base, uint8_t len);
void aml_irq(struct aml *a, unsigned irq); /* edge, active high, exclusive */
void aml_memory32(struct aml *a, uint32_t base, uint32_t len);
enum aml_space { AML_MEMORY, AML_IO, AML_BUS };
void aml_window(struct aml *a, enum aml_space space, unsigned bytes, uint64_t first, uint64_t last);

#endif
