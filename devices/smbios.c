/* smbios.c - SMBIOS 3.0 entry point and structures 0, 1, 3, 4, 16, 17, 19, 32, 127 (DMTF DSP0134
 * 3.0).
 * One processor socket with all vCPUs as cores, one memory module a region. Pure function of its
 * config.
 */
#include "devices/smbios.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/overflow.h"
#include "common/units.h"

#define SMBIOS_ENTRY_LEN 24u

struct smbios {
	struct aml *a;
	size_t at; /* the open structure */
	unsigned nstrings;
	char strings[256];
	size_t strings_len;
};

static void smbios_begin(struct smbios *s, uint8_t type, uint16_t handle)
{
	s->at = s->a->len;
	s->nstrings = 0;
	s->strings_len = 0;
	aml_byte(s->a, type);
	aml_byte(s->a, 0); /* length */
	aml_le(s->a, handle, 2);
}

/* A field that refers to a string. */
static void smbios_string(struct smbios *s, const char *text)
{
	size_t len = strlen(text) + 1;

	if (len == 1 || s->strings_len + len > sizeof(s->strings)) {
		aml_byte(s->a, 0);
		return;
	}
	memcpy(s->strings + s->strings_len, text, len);
	s->strings_len += len;
	aml_byte(s->a, (uint8_t)++s->nstrings);
}

static void smbios_end(struct smbios *s)
{
	if (!s->a->error)
		s->a->p[s->at + 1] = (uint8_t)(s->a->len - s->at);
	aml_bytes(s->a, s->strings, s->strings_len);
	aml_le(s->a, 0, s->nstrings ? 1 : 2);
}

static void smbios_bios(struct smbios *s)
{
	smbios_begin(s, 0, 0);
	smbios_string(s, "vmd");
	smbios_string(s, "1");
	aml_le(s->a, 0xf000, 2); /* start segment */
	smbios_string(s, "01/01/2024");
	aml_byte(s->a, 0);
	aml_le(s->a, 1u << 3, 8); /* characteristics not supported */
	aml_byte(s->a, 0x01);	  /* ACPI */
	aml_byte(s->a, 0x14);	  /* virtual machine; targeted content distribution */
	aml_byte(s->a, 1);	  /* release 1.0; no embedded controller */
	aml_byte(s->a, 0);
	aml_le(s->a, 0xffff, 2);
	smbios_end(s);
}

static void smbios_system(struct smbios *s, const uint8_t uuid[16])
{
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	char text[37];

	snprintf(text, sizeof(text),
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", uuid[0],
		 uuid[1], uuid[2], uuid[3], uuid[4], uuid[5], uuid[6], uuid[7], uuid[8], uuid[9],
		 uuid[10], uuid[11], uuid[12], uuid[13], uuid[14], uuid[15]);
	smbios_begin(s, 1, 0x100);
	smbios_string(s, "vmd");
	smbios_string(s, "vmd pc");
	smbios_string(s, "1");
	smbios_string(s, text);
	for (unsigned i = 0; i < 16; i++) /* first three fields little-endian (7.2.1) */
		aml_byte(s->a, uuid[order[i]]);
	aml_byte(s->a, 6); /* wake-up: power switch */
	aml_byte(s->a, 0);
	smbios_string(s, "Virtual Machine");
	smbios_end(s);
}

static void smbios_chassis(struct smbios *s)
{
	smbios_begin(s, 3, 0x300);
	smbios_string(s, "vmd");
	aml_byte(s->a, 1); /* other */
	aml_le(s->a, 0, 3);
	aml_le(s->a, 0x030303, 3); /* states: safe */
	aml_byte(s->a, 2);	   /* security: unknown */
	aml_le(s->a, 0, 4);
	aml_le(s->a, 0, 4); /* height, cords, contained elements */
	aml_byte(s->a, 0);
	smbios_end(s);
}

static void smbios_processor(struct smbios *s, unsigned vcpus)
{
	uint8_t cores = (uint8_t)MIN(vcpus, 0xffu);

	smbios_begin(s, 4, 0x400);
	smbios_string(s, "CPU 0");
	aml_byte(s->a, 3); /* central processor */
	aml_byte(s->a, 1); /* family: other */
	smbios_string(s, "vmd");
	aml_le(s->a, 0, 8); /* CPUID: the instruction tells */
	smbios_string(s, "1");
	aml_byte(s->a, 0x80); /* voltage 0 */
	aml_le(s->a, 0, 2);
	aml_le(s->a, 2000, 2); /* MHz, for show */
	aml_le(s->a, 2000, 2);
	aml_byte(s->a, 0x41); /* populated, enabled */
	aml_byte(s->a, 1);    /* upgrade: other */
	aml_le(s->a, 0xffff, 2);
	aml_le(s->a, 0xffff, 2);
	aml_le(s->a, 0xffff, 2);
	aml_le(s->a, 0, 3);
	aml_byte(s->a, cores);
	aml_byte(s->a, cores);
	aml_byte(s->a, cores);
	aml_le(s->a, 0x0c, 2); /* 64-bit, multi-core */
	aml_le(s->a, 1, 2);
	aml_le(s->a, vcpus, 2);
	aml_le(s->a, vcpus, 2);
	aml_le(s->a, vcpus, 2);
	smbios_end(s);
}

static void smbios_memory_array(struct smbios *s, uint64_t bytes, unsigned modules)
{
	uint64_t kib = bytes / KIB;

	smbios_begin(s, 16, 0x1000);
	aml_byte(s->a, 1); /* other */
	aml_byte(s->a, 3); /* system memory */
	aml_byte(s->a, 6); /* multi-bit ECC */
	aml_le(s->a, kib < 0x80000000u ? kib : 0x80000000u, 4);
	aml_le(s->a, 0xfffe, 2);
	aml_le(s->a, modules, 2);
	aml_le(s->a, kib < 0x80000000u ? 0 : bytes, 8);
	smbios_end(s);
}

static void smbios_module(struct smbios *s, unsigned n, uint64_t bytes)
{
	uint64_t mib = bytes / MIB;
	char name[16];

	snprintf(name, sizeof(name), "DIMM %u", n);
	smbios_begin(s, 17, (uint16_t)(0x1100 + n));
	aml_le(s->a, 0x1000, 2);
	aml_le(s->a, 0xfffe, 2);
	aml_le(s->a, 0xffff, 2); /* widths unknown */
	aml_le(s->a, 0xffff, 2);
	aml_le(s->a, mib < 0x7fff ? mib : 0x7fff, 2);
	aml_byte(s->a, 9); /* DIMM */
	aml_byte(s->a, 0);
	smbios_string(s, name);
	smbios_string(s, "");
	aml_byte(s->a, 7); /* RAM */
	aml_le(s->a, 2, 2);
	aml_le(s->a, 0, 2); /* speed */
	smbios_string(s, "vmd");
	aml_le(s->a, 0, 3);
	aml_byte(s->a, 0);
	aml_le(s->a, mib < 0x7fff ? 0 : mib & 0x7fffffff, 4);
	aml_le(s->a, 0, 2);
	aml_le(s->a, 0, 6); /* voltages */
	smbios_end(s);
}

static void smbios_mapping(struct smbios *s, unsigned n, uint64_t start, uint64_t bytes)
{
	uint64_t end = start + bytes - 1;
	bool wide = end / KIB >= 0xffffffff;

	smbios_begin(s, 19, (uint16_t)(0x1300 + n));
	aml_le(s->a, wide ? 0xffffffff : start / KIB, 4);
	aml_le(s->a, wide ? 0xffffffff : end / KIB, 4);
	aml_le(s->a, 0x1000, 2);
	aml_byte(s->a, 1);
	aml_le(s->a, wide ? start : 0, 8);
	aml_le(s->a, wide ? end : 0, 8);
	smbios_end(s);
}

int smbios_build(const struct smbios_config *cfg, struct aml *out)
{
	struct smbios s = { .a = out };
	unsigned modules = cfg->high_bytes ? 2 : 1;
	size_t table, len;
	uint8_t sum = 0;

	*out = (struct aml){ 0 };
	aml_bytes(out, "_SM3_\0", 6); /* checksum at 5 */
	aml_byte(out, SMBIOS_ENTRY_LEN);
	aml_le(out, 0x000003, 3); /* 3.0, docrev 0 */
	aml_byte(out, 1);
	aml_byte(out, 0);
	aml_le(out, 0, 4);
	aml_le(out, 0, 8);
	while (!out->error && out->len % 16)
		aml_byte(out, 0);
	table = out->len;

	smbios_bios(&s);
	smbios_system(&s, cfg->uuid);
	smbios_chassis(&s);
	smbios_processor(&s, cfg->vcpus);
	smbios_memory_array(&s, cfg->low_bytes + cfg->high_bytes, modules);
	smbios_module(&s, 0, cfg->low_bytes);
	if (cfg->high_bytes)
		smbios_module(&s, 1, cfg->high_bytes);
	smbios_mapping(&s, 0, 0, cfg->low_bytes);
	if (cfg->high_bytes)
		smbios_mapping(&s, 1, 4 * GIB, cfg->high_bytes);
	smbios_begin(&s, 32, 0x2000);
	aml_le(out, 0, 6);
	aml_byte(out, 0); /* no errors at boot */
	smbios_end(&s);
	smbios_begin(&s, 127, 0x7f00);
	smbios_end(&s);
	if (out->error) {
		int ret = out->error;

		aml_free(out);
		return ret;
	}
	len = out->len - table;
	for (unsigned i = 0; i < 4; i++)
		out->p[12 + i] = (uint8_t)(len >> 8 * i);
	for (unsigned i = 0; i < 8; i++)
		out->p[16 + i] = (uint8_t)((cfg->base + table) >> 8 * i);
	for (unsigned i = 0; i < SMBIOS_ENTRY_LEN; i++)
		sum = (uint8_t)(sum + out->p[i]);
	out->p[5] = (uint8_t)-sum;
	return 0;
}
