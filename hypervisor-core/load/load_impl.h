/* load_impl.h - what the loaders share: the kernel file, the plan of low memory, the pieces around
 * it.
 *
 * Low memory of a direct boot, all inside the first 640 KiB (addresses below are guest-physical):
 *	0x00500 GDT	0x06000 PVH start_info, modules, memory map	0x07000 zero page
 *	0x09000 page tables (identity, 4 GiB by 2 MiB pages)		0x20000 command line
 */
#ifndef CORE_LOAD_IMPL_H
#define CORE_LOAD_IMPL_H

#include <elf.h>

#include "hypervisor-core/load/load.h"

#define LOAD_GDT	 0x500u
#define LOAD_START_INFO	 0x6000u
#define LOAD_ZERO_PAGE	 0x7000u
#define LOAD_PAGE_TABLES 0x9000u
#define LOAD_CMDLINE	 0x20000u
#define LOAD_CMDLINE_MAX 0x10000u
#define LOAD_LOW_END	 (LOAD_CMDLINE + LOAD_CMDLINE_MAX)
#define LOAD_HIGH	 0x100000u /* kernels live at 1 MiB and above */

struct load_job {
	struct mem *mem;
	const struct boot_config *cfg;
	struct err *e;
	uint64_t file_bytes;
	gpa_t ram_end;		      /* end of the usable RAM that holds 1 MiB, below 4 GiB */
	gpa_t kernel_gpa, kernel_end; /* what the kernel takes, its bss and stub's room included */
	gpa_t initrd_gpa;
	uint64_t initrd_bytes;
	/* last byte where the kernel accepts its initrd; 0xffffffff where it does not say */
	uint32_t initrd_max;
};

int load_read(const struct load_job *j, uint64_t off, void *buf,
	      size_t len); /* 0, -EIO, -EBADMSG short */
/* load_place() - file bytes straight into guest RAM, zeroes up to @mem_bytes. */
int load_place(const struct load_job *j, uint64_t off, uint64_t file_bytes, gpa_t gpa,
	       uint64_t mem_bytes);
int load_need_ram(const struct load_job *j, gpa_t end);
int load_initrd(struct load_job *j);
int load_cmdline(const struct load_job *j, size_t most);
int load_zero_page(const struct load_job *j, const uint8_t *setup_header, size_t len);
int load_long_mode(const struct load_job *j, struct x86_state *s, gpa_t entry);

int load_bzimage(struct load_job *j, struct x86_state *s, enum boot_format *used);
int load_elf(struct load_job *j, struct x86_state *s, enum boot_format want,
	     enum boot_format *used);
/* load_elf_check() - is it a 64-bit x86 kernel with sane program headers? 0, -ENOEXEC. */
#define LOAD_PHDRS_MAX 64u
int load_elf_check(struct load_job *j, const Elf64_Ehdr *h);
/* load_unpack() - the kernel packed in [off, off+len) of the file: unpacked, placed, and moved to a
 * random virtual address as its own stub would (not on "nokaslr", nor if it was built without).
 * Sets kernel_gpa and kernel_end. @align, @init_bytes: of the setup header. False: cannot be done
 * here, RAM above 1 MiB may hold a part. */
struct load_unpacked {
	gpa_t entry;
	bool moved;
};
bool load_unpack(struct load_job *j, uint64_t off, uint64_t len, uint32_t align,
		 uint32_t init_bytes, struct load_unpacked *out);
bool load_is_bzimage(const uint8_t *head, size_t len);
bool load_is_elf(const uint8_t *head, size_t len);

static inline uint16_t load_le16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t load_le32(const uint8_t *p)
{
	return load_le16(p) | (uint32_t)load_le16(p + 2) << 16;
}

static inline uint64_t load_le64(const uint8_t *p)
{
	return load_le32(p) | (uint64_t)load_le32(p + 4) << 32;
}

static inline void load_put32(uint8_t *p, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static inline void load_put64(uint8_t *p, uint64_t v)
{
	load_put32(p, (uint32_t)v);
	load_put32(p + 4, (uint32_t)(v >> 32));
}

#endif
