/* load.c - direct kernel boot: choosing the format, and what every format needs.
 *
 * The initrd goes to the top of low RAM, below what the kernel accepts and above what it takes for
 * itself.
 * Kernel and initrd are read straight into guest memory; nothing of them is kept on the host.
 * Trust: both files are hostile. Sizes come from fstat, every header field is bounded by them and
 * by guest RAM before it is used, and a file that shrinks meanwhile is a short read, refused as
 * truncated.
 * Sources: Linux Documentation/arch/x86/boot.rst and zero-page.rst.
 */
#include "hypervisor-core/load/load.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/overflow.h"
#include "common/units.h"
#include "hypervisor-core/load/load_impl.h"

#define LOAD_HEAD_BYTES	     4096u
#define LOAD_RAM_LIMIT	     (4 * GIB)
#define ZP_ACPI_RSDP	     0x70
#define ZP_EXT_RAMDISK_IMAGE 0xc0
#define ZP_E820_ENTRIES	     0x1e8
#define ZP_HEADER	     0x1f1
#define ZP_TYPE_OF_LOADER    0x210
#define ZP_LOADFLAGS	     0x211
#define ZP_RAMDISK_IMAGE     0x218
#define ZP_CMD_LINE_PTR	     0x228
#define ZP_E820_TABLE	     0x2d0
#define ZP_E820_MAX	     128u
#define PAGE_TABLES	     6u /* PML4, PDPT, 4 page directories */

const char *boot_format_name(enum boot_format f)
{
	switch (f) {
	case BOOT_AUTO:
		return "auto";
	case BOOT_BZIMAGE:
		return "bzImage";
	case BOOT_ELF:
		return "elf";
	case BOOT_PVH:
		return "pvh";
	case BOOT_UNPACKED:
		return "bzImage, unpacked by the host";
	}
	return "unknown";
}

static const char *load_name(const struct load_job *j)
{
	return j->cfg->kernel_name ? j->cfg->kernel_name : "(no name)";
}

static int load_read_fd(int fd, uint64_t off, uint8_t *to, uint64_t len)
{
	while (len) {
		ssize_t n = pread(fd, to, MIN(len, (uint64_t)(16 * MIB)), (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EFAULT ? -EFAULT : -EIO;
		if (n == 0)
			return -EBADMSG;
		to += n;
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

int load_read(const struct load_job *j, uint64_t off, void *buf, size_t len)
{
	int ret = -EBADMSG;

	if (range_within(off, len, j->file_bytes))
		ret = load_read_fd(j->cfg->kernel_fd, off, buf, len);
	if (ret == -EBADMSG)
		return err_set(j->e, EBADMSG, "kernel-truncated",
			       "kernel \"%s\" is truncated: %llu bytes, byte %llu is needed",
			       load_name(j), (unsigned long long)j->file_bytes,
			       (unsigned long long)(off + len));
	if (ret < 0)
		return err_set(j->e, EIO, "kernel-unreadable", "kernel \"%s\" cannot be read",
			       load_name(j));
	return 0;
}

int load_need_ram(const struct load_job *j, gpa_t end)
{
	if (end <= j->ram_end)
		return 0;
	err_set(j->e, ENOMEM, "memory-too-small",
		"kernel \"%s\" needs RAM up to %llu MiB, the guest has %llu MiB there",
		load_name(j), (unsigned long long)((end + MIB - 1) / MIB),
		(unsigned long long)(j->ram_end / MIB));
	err_hint(j->e, "give the guest at least %llu MiB of memory",
		 (unsigned long long)((end + 16 * MIB - 1) / MIB));
	return -ENOMEM;
}

int load_place(const struct load_job *j, uint64_t off, uint64_t file_bytes, gpa_t gpa,
	       uint64_t mem_bytes)
{
	uint64_t end;

	if (file_bytes > mem_bytes || gpa < LOAD_HIGH || !add_u64(gpa, mem_bytes, &end) ||
	    !range_within(off, file_bytes, j->file_bytes))
		return err_set(j->e, EBADMSG, "kernel-malformed",
			       "kernel \"%s\": a part lies outside the file or below 1 MiB",
			       load_name(j));
	int ret = load_need_ram(j, end);
	if (ret < 0)
		return ret;
	uint8_t *to = mem_ptr_write(j->mem, gpa, mem_bytes);
	if (!to)
		return err_set(j->e, EBADMSG, "kernel-malformed",
			       "kernel \"%s\": 0x%llx is not RAM", load_name(j),
			       (unsigned long long)gpa);
	ret = load_read(j, off, to, file_bytes);
	if (ret == 0)
		memset(to + file_bytes, 0, mem_bytes - file_bytes);
	return ret;
}

int load_initrd(struct load_job *j)
{
	const char *name = j->cfg->initrd_name ? j->cfg->initrd_name : "(no name)";
	struct stat st;

	if (j->cfg->initrd_fd < 0)
		return 0;
	if (fstat(j->cfg->initrd_fd, &st) < 0 || st.st_size < 0)
		return err_set(j->e, EIO, "initrd-unreadable", "initrd \"%s\" cannot be read",
			       name);
	j->initrd_bytes = (uint64_t)st.st_size;
	if (j->initrd_bytes == 0)
		return err_set(j->e, EBADMSG, "initrd-empty", "initrd \"%s\" is empty", name);
	uint64_t top = MIN(j->ram_end, (uint64_t)j->initrd_max + 1);
	if (j->initrd_bytes > top ||
	    ALIGN_DOWN(top - j->initrd_bytes, (uint64_t)MEM_PAGE) < j->kernel_end) {
		uint64_t need = (j->kernel_end + j->initrd_bytes + 2 * MIB) / MIB;

		err_set(j->e, E2BIG, "initrd-too-large",
			"initrd \"%s\" of %llu MiB does not fit between the kernel's end at %llu "
			"MiB and %llu MiB",
			name, (unsigned long long)(j->initrd_bytes / MIB),
			(unsigned long long)(j->kernel_end / MIB), (unsigned long long)(top / MIB));
		err_hint(j->e, "give the guest at least %llu MiB of memory",
			 (unsigned long long)need);
		return -E2BIG;
	}
	j->initrd_gpa = ALIGN_DOWN(top - j->initrd_bytes, (uint64_t)MEM_PAGE);
	uint8_t *to = mem_ptr_write(j->mem, j->initrd_gpa, j->initrd_bytes);
	int ret = to ? load_read_fd(j->cfg->initrd_fd, 0, to, j->initrd_bytes) : -EFAULT;
	if (ret < 0)
		return err_set(j->e, -ret, "initrd-unreadable", "initrd \"%s\": %s", name,
			       ret == -EBADMSG ? "it shrank while it was read"
					       : "it cannot be read");
	return 0;
}

int load_cmdline(const struct load_job *j, size_t most)
{
	const char *text = j->cfg->cmdline ? j->cfg->cmdline : "";
	size_t len = strlen(text);

	most = MIN(most, (size_t)LOAD_CMDLINE_MAX - 1);
	if (len > most)
		return err_set(j->e, E2BIG, "cmdline-too-long",
			       "the kernel's command line has %zu bytes, kernel \"%s\" takes %zu",
			       len, load_name(j), most);
	return mem_write(j->mem, LOAD_CMDLINE, text, len + 1);
}

int load_zero_page(const struct load_job *j, const uint8_t *setup_header, size_t len)
{
	uint8_t zp[MEM_PAGE] = { 0 };

	if (setup_header)
		memcpy(zp + ZP_HEADER, setup_header, MIN(len, (size_t)(ZP_E820_TABLE - ZP_HEADER)));
	load_put64(zp + ZP_ACPI_RSDP, j->cfg->rsdp);
	zp[ZP_TYPE_OF_LOADER] = 0xff;
	zp[ZP_LOADFLAGS] |= 1;		    /* loaded high */
	zp[ZP_LOADFLAGS] &= (uint8_t)~0x80; /* no heap of a real-mode part */
	load_put32(zp + ZP_RAMDISK_IMAGE, (uint32_t)j->initrd_gpa);
	load_put32(zp + ZP_RAMDISK_IMAGE + 4, (uint32_t)j->initrd_bytes);
	load_put32(zp + ZP_EXT_RAMDISK_IMAGE, (uint32_t)(j->initrd_gpa >> 32));
	load_put32(zp + ZP_EXT_RAMDISK_IMAGE + 4, (uint32_t)(j->initrd_bytes >> 32));
	load_put32(zp + ZP_CMD_LINE_PTR, LOAD_CMDLINE);
	if (j->cfg->ne820 > ZP_E820_MAX)
		return err_set(j->e, EINVAL, "memory-map-too-long",
			       "the memory map has %u entries, %u fit", j->cfg->ne820, ZP_E820_MAX);
	zp[ZP_E820_ENTRIES] = (uint8_t)j->cfg->ne820;
	for (unsigned i = 0; i < j->cfg->ne820; i++) {
		uint8_t *p = zp + ZP_E820_TABLE + 20 * i;

		load_put64(p, j->cfg->e820[i].gpa);
		load_put64(p + 8, j->cfg->e820[i].size_bytes);
		load_put32(p + 16, j->cfg->e820[i].type);
	}
	return mem_write(j->mem, LOAD_ZERO_PAGE, zp, sizeof(zp));
}

int load_long_mode(const struct load_job *j, struct x86_state *s, gpa_t entry)
{
	/* null, null, 64-bit code at 0x10, data at 0x18, TSS (two slots) at 0x20: boot.rst's
	 * selectors */
	static const uint64_t gdt[6] = {
		0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00008b000000ffff, 0
	};
	uint8_t t[PAGE_TABLES * MEM_PAGE];
	const gpa_t base = LOAD_PAGE_TABLES;

	memset(t, 0, sizeof(t));
	load_put64(t, (base + MEM_PAGE) | 3);
	for (unsigned i = 0; i < 4; i++)
		load_put64(t + MEM_PAGE + 8 * i, (base + (2 + i) * MEM_PAGE) | 3);
	for (unsigned i = 0; i < 2048; i++)
		load_put64(t + 2 * MEM_PAGE + 8 * i, (uint64_t)i * 2 * MIB | 0x83);
	if (mem_write(j->mem, LOAD_GDT, gdt, sizeof(gdt)) < 0 ||
	    mem_write(j->mem, base, t, sizeof(t)) < 0)
		return err_set(j->e, ENOMEM, "memory-too-small",
			       "the guest has no RAM below 640 KiB");
	x86_state_reset(s, 0);
	x86_state_long_mode(s, base, LOAD_GDT, sizeof(gdt) - 1);
	s->gpr[X86_RDX] = 0;
	s->gpr[X86_RSI] = LOAD_ZERO_PAGE;
	s->rip = entry;
	return 0;
}

/* load_ram_end() - end of usable low RAM above 1 MiB: by the region, and by the memory map over it.
 */
static gpa_t load_ram_end(const struct mem *mem, const struct boot_config *cfg)
{
	const struct mem_region *r = mem_region_find(mem, LOAD_HIGH);
	gpa_t end;

	if (!r || (r->flags & MEM_ROM))
		return 0;
	end = MIN(r->gpa + r->size_bytes, (gpa_t)LOAD_RAM_LIMIT);
	for (unsigned i = 0; i < cfg->ne820; i++) {
		const struct boot_e820 *m = &cfg->e820[i];

		if (m->type == 1 && m->gpa <= LOAD_HIGH && LOAD_HIGH - m->gpa < m->size_bytes)
			end = MIN(end, m->gpa + m->size_bytes);
		else if (m->type != 1 && m->gpa > LOAD_HIGH)
			end = MIN(end, m->gpa);
	}
	return end;
}

/* load_what() - for a person: what a file is that is no kernel of ours. */
static const char *load_what(const uint8_t *h, size_t len)
{
	static const struct {
		const char *magic, *what;
		unsigned len, at;
	} known[] = {
		{ "\x1f\x8b", "gzip data (unpack it first)", 2, 0 },
		{ "\xfd"
		  "7zXZ",
		  "xz data (unpack it first)", 5, 0 },
		{ "\x28\xb5\x2f\xfd", "zstd data (unpack it first)", 4, 0 },
		{ "\x04\x22\x4d\x18", "LZ4 data (unpack it first)", 4, 0 },
		{ "\x02\x21\x4c\x18", "LZ4 data (unpack it first)", 4, 0 },
		{ "BZh", "bzip2 data (unpack it first)", 3, 0 },
		{ "QFI\xfb", "a qcow2 disk image", 4, 0 },
		{ "070701", "a cpio archive (an initrd?)", 6, 0 },
		{ "#!", "a script", 2, 0 },
		{ "!<arch>", "an archive (a .deb?)", 7, 0 },
		{ "ARM\x64", "a kernel for aarch64", 4, 0x38 },
		{ "RISCV", "a kernel for RISC-V", 5, 0x30 },
		{ "MZ", "a Windows or EFI program without a Linux kernel in it", 2, 0 },
	};

	if (len == 0)
		return "empty";
	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		if (known[i].at + known[i].len <= len &&
		    memcmp(h + known[i].at, known[i].magic, known[i].len) == 0)
			return known[i].what;
	if (len >= 512 && h[510] == 0x55 && h[511] == 0xaa)
		return "a boot sector or disk image";
	return "no format that this program knows";
}

static int load_open(struct load_job *j, uint8_t head[LOAD_HEAD_BYTES], size_t *head_len)
{
	struct stat st;

	if (j->cfg->kernel_fd < 0 || fstat(j->cfg->kernel_fd, &st) < 0) {
		err_set(j->e, ENOENT, "kernel-missing", "no kernel was given");
		err_hint(j->e, "use --kernel FILE");
		return -ENOENT;
	}
	if (!S_ISREG(st.st_mode) || st.st_size < 0)
		return err_set(j->e, ENOEXEC, "kernel-not-a-file",
			       "kernel \"%s\" is not a regular file", load_name(j));
	j->file_bytes = (uint64_t)st.st_size;
	*head_len = (size_t)MIN(j->file_bytes, (uint64_t)LOAD_HEAD_BYTES);
	j->ram_end = load_ram_end(j->mem, j->cfg);
	if (!mem_ptr_write(j->mem, 0, LOAD_LOW_END) || j->ram_end <= LOAD_HIGH) {
		err_set(j->e, ENOMEM, "memory-too-small",
			"the guest has too little RAM for any kernel");
		err_hint(j->e, "give the guest at least 64 MiB of memory");
		return -ENOMEM;
	}
	return load_read(j, 0, head, *head_len);
}

int boot_load(struct mem *mem, const struct boot_config *cfg, struct x86_state *s,
	      enum boot_format *format_used, struct err *e)
{
	struct load_job j = { .mem = mem, .cfg = cfg, .e = e, .initrd_max = UINT32_MAX };
	enum boot_format used = cfg->format;
	uint8_t head[LOAD_HEAD_BYTES];
	size_t len = 0;
	int ret = load_open(&j, head, &len);

	if (ret < 0)
		return ret;
	bool bz = load_is_bzimage(head, len), elf = load_is_elf(head, len);
	if ((cfg->format == BOOT_BZIMAGE && !bz) || (cfg->format >= BOOT_ELF && !elf) ||
	    (!bz && !elf)) {
		err_set(e, ENOEXEC, "kernel-not-a-kernel", "kernel \"%s\" is not %s: it is %s",
			load_name(&j),
			cfg->format == BOOT_AUTO ? "a kernel" : boot_format_name(cfg->format),
			bz    ? "a bzImage"
			: elf ? "an ELF file"
			      : load_what(head, len));
		err_hint(e, "a kernel is a bzImage, as /boot/vmlinuz, or an ELF file, as vmlinux");
		return -ENOEXEC;
	}
	if (bz) {
		used = BOOT_BZIMAGE;
		ret = load_bzimage(&j, s, &used);
	} else {
		ret = load_elf(&j, s, cfg->format, &used);
	}
	if (ret == 0 && format_used)
		*format_used = used;
	return ret;
}
