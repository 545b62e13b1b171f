/* load.h - direct kernel boot: bzImage (64-bit entry), ELF vmlinux, PVH.
 *
 * Parsed inside the jail. The kernel file is hostile: every header field is bounded by the file's
 * size and by RAM before use; nothing is executed or followed on the host.
 * Sources: Linux Documentation/arch/x86/boot.rst (protocol 2.12+),
 * xen/include/public/arch-x86/hvm/start_info.h.
 */
#ifndef CORE_LOAD_H
#define CORE_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "hypervisor-core/mem.h"
#include "hypervisor-core/x86_state.h"

/* BOOT_UNPACKED is an answer only: a bzImage's kernel that was unpacked here */
enum boot_format { BOOT_AUTO, BOOT_BZIMAGE, BOOT_ELF, BOOT_PVH, BOOT_UNPACKED };

struct boot_e820 {
	gpa_t gpa;
	uint64_t size_bytes;
	uint32_t type; /* 1 RAM, 2 reserved, 3 ACPI data */
};

struct boot_config {
	int kernel_fd, initrd_fd; /* borrowed; initrd -1 = none; regular files or memfds */
	const char *kernel_name, *initrd_name; /* for messages */
	const char *cmdline;
	/* AUTO: by content: bzImage magic (unpacked here if it can be, else by its stub), else ELF
	 * (PVH note preferred if present) */
	enum boot_format format;
	/* chooses the virtual address of a kernel that is unpacked here (KASLR); 0: none is, each
	 * bzImage's stub does it */
	uint64_t random;
	gpa_t rsdp;
	const struct boot_e820 *e820;
	unsigned ne820;
};

/* boot_load() - place kernel, initrd, command line, zero page or start_info in @mem and fill the
 * boot vCPU's entry state @s. @format_used for `info`. Errors: -ENOEXEC not a kernel (says what was
 * found), -ENOMEM too little RAM (says how much is needed), -E2BIG command line or initrd, -EIO,
 * -EBADMSG. */
int boot_load(struct mem *mem, const struct boot_config *cfg, struct x86_state *s,
	      enum boot_format *format_used, struct err *e);
const char *boot_format_name(enum boot_format f);

#endif
