/* load_elf.c - an uncompressed kernel (vmlinux): by its 64-bit entry, or by PVH where it has the
 * Xen note.
 *
 * PVH starts in 32-bit protected mode without paging, EBX at start_info; the plain entry starts in
 * 64-bit mode with a zero page, as a bzImage's stub would do it.
 * Trust: program headers are read one at a time and at most LOAD_PHDRS_MAX of them; each part must
 * lie in the file and in RAM above 1 MiB; notes are walked with lengths that cannot wrap.
 * Sources: System V ABI (ELF64), xen/include/public/arch-x86/hvm/start_info.h, Linux
 * arch/x86/platform/pvh.
 */
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/overflow.h"
#include "common/units.h"
#include "hypervisor-core/load/load_impl.h"

#define ELF_NOTES_BYTES		 65536u
#define XEN_ELFNOTE_PHYS32_ENTRY 18u
#define PVH_MAGIC		 0x336ec578u
#define PVH_MODULES		 (LOAD_START_INFO + 0x40)
#define PVH_MEMMAP		 (LOAD_START_INFO + 0x80)
#define PVH_MEMMAP_MAX		 128u

struct elf_scan {
	gpa_t low, high; /* extent of what was loaded */
	bool pvh;
	gpa_t pvh_entry;
};

bool load_is_elf(const uint8_t *head, size_t len)
{
	return len >= sizeof(Elf64_Ehdr) && memcmp(head, ELFMAG, SELFMAG) == 0;
}

static int elf_refuse(struct load_job *j, const char *why)
{
	return err_set(j->e, ENOEXEC, "kernel-unsupported", "kernel \"%s\": %s",
		       j->cfg->kernel_name ? j->cfg->kernel_name : "(no name)", why);
}

int load_elf_check(struct load_job *j, const Elf64_Ehdr *h)
{
	static const struct {
		uint16_t machine;
		const char *name;
	} others[] = {
		{ EM_386, "32-bit x86 (a 32-bit kernel)" },
		{ EM_AARCH64, "aarch64" },
		{ EM_ARM, "arm" },
		{ EM_RISCV, "RISC-V" },
		{ EM_PPC64, "ppc64" },
		{ EM_S390, "s390x" },
		{ EM_MIPS, "mips" },
	};
	char text[80];

	if (h->e_ident[EI_DATA] != ELFDATA2LSB)
		return elf_refuse(j, "this is a big-endian ELF file");
	for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
		if (h->e_machine != others[i].machine)
			continue;
		snprintf(text, sizeof(text), "this is an ELF file for %s", others[i].name);
		return elf_refuse(j, text);
	}
	if (h->e_machine != EM_X86_64) {
		snprintf(text, sizeof(text), "this is an ELF file for machine type %u",
			 h->e_machine);
		return elf_refuse(j, text);
	}
	if (h->e_ident[EI_CLASS] != ELFCLASS64)
		return elf_refuse(j, "this is a 32-bit ELF file");
	if (h->e_type != ET_EXEC && h->e_type != ET_DYN)
		return elf_refuse(j, h->e_type == ET_REL ? "this is an object file, not a kernel"
							 : "this ELF file is not executable");
	if (h->e_phentsize != sizeof(Elf64_Phdr) || h->e_phnum == 0 || h->e_phnum > LOAD_PHDRS_MAX)
		return elf_refuse(j, "its ELF program headers make no sense");
	return 0;
}

/* elf_scan_notes() - look for the PVH entry in one PT_NOTE. */
static int elf_scan_notes(struct load_job *j, const Elf64_Phdr *p, struct elf_scan *out)
{
	uint64_t off = p->p_offset, end;

	if (p->p_filesz > ELF_NOTES_BYTES || !add_u64(off, p->p_filesz, &end))
		return 0; /* none of the kernel's own notes is that large */
	while (end - off >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr n;
		uint8_t buf[16] = { 0 };
		int ret = load_read(j, off, &n, sizeof(n));

		if (ret < 0)
			return ret;
		uint64_t name = off + sizeof(n);
		uint64_t desc = name + ALIGN_UP((uint64_t)n.n_namesz, (uint64_t)4);
		uint64_t next = desc + ALIGN_UP((uint64_t)n.n_descsz, (uint64_t)4);
		if (next > end)
			return 0;
		if (n.n_type == XEN_ELFNOTE_PHYS32_ENTRY && n.n_namesz == 4 &&
		    (n.n_descsz == 4 || n.n_descsz == 8)) {
			ret = load_read(j, name, buf, 4);
			if (ret == 0)
				ret = load_read(j, desc, buf + 8, n.n_descsz);
			if (ret < 0)
				return ret;
			if (memcmp(buf, "Xen", 4) == 0) {
				out->pvh = true;
				out->pvh_entry = load_le64(buf + 8);
			}
		}
		off = next;
	}
	return 0;
}

static int elf_load_parts(struct load_job *j, const Elf64_Ehdr *h, struct elf_scan *out)
{
	int ret = 0;

	out->low = UINT64_MAX;
	for (unsigned i = 0; ret == 0 && i < h->e_phnum; i++) {
		Elf64_Phdr p;
		uint64_t at;

		if (!add_u64(h->e_phoff, i * sizeof(p), &at))
			return elf_refuse(j, "its ELF program headers make no sense");
		ret = load_read(j, at, &p, sizeof(p));
		if (ret < 0)
			return ret;
		if (p.p_type == PT_NOTE)
			ret = elf_scan_notes(j, &p, out);
		if (p.p_type != PT_LOAD || !p.p_memsz)
			continue;
		ret = load_place(j, p.p_offset, p.p_filesz, p.p_paddr, p.p_memsz);
		out->low = MIN(out->low, (gpa_t)p.p_paddr);
		out->high = MAX(out->high, (gpa_t)(p.p_paddr + p.p_memsz));
	}
	if (ret == 0 && out->high == 0)
		return elf_refuse(j, "this ELF file has nothing to load");
	return ret;
}

static int elf_start_info(const struct load_job *j)
{
	uint8_t si[56] = { 0 }, mod[32] = { 0 }, map[PVH_MEMMAP_MAX * 24] = { 0 };
	const struct boot_config *c = j->cfg;

	if (c->ne820 > PVH_MEMMAP_MAX)
		return err_set(j->e, EINVAL, "memory-map-too-long",
			       "the memory map has %u entries, %u fit", c->ne820, PVH_MEMMAP_MAX);
	load_put32(si, PVH_MAGIC);
	load_put32(si + 4, 1); /* version: memory map is there */
	if (j->initrd_bytes) {
		load_put32(si + 12, 1);
		load_put64(si + 16, PVH_MODULES);
		load_put64(mod, j->initrd_gpa);
		load_put64(mod + 8, j->initrd_bytes);
	}
	load_put64(si + 24, LOAD_CMDLINE);
	load_put64(si + 32, c->rsdp);
	load_put64(si + 40, PVH_MEMMAP);
	load_put32(si + 48, c->ne820);
	for (unsigned i = 0; i < c->ne820; i++) {
		load_put64(map + 24 * i, c->e820[i].gpa);
		load_put64(map + 24 * i + 8, c->e820[i].size_bytes);
		load_put32(map + 24 * i + 16, c->e820[i].type);
	}
	if (mem_write(j->mem, LOAD_START_INFO, si, sizeof(si)) < 0 ||
	    mem_write(j->mem, PVH_MODULES, mod, sizeof(mod)) < 0 ||
	    mem_write(j->mem, PVH_MEMMAP, map, sizeof(map)) < 0)
		return err_set(j->e, ENOMEM, "memory-too-small",
			       "the guest has no RAM below 640 KiB");
	return 0;
}

/* elf_enter_pvh() - 32-bit, flat, paging off, interrupts off, EBX = start_info. */
static int elf_enter_pvh(const struct load_job *j, struct x86_state *s, gpa_t entry)
{
	static const uint64_t gdt[5] = { 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff,
					 0x00008b000000ffff };
	struct x86_seg code = { 0, 0xffffffff, 0x10, 0xc09b },
		       data = { 0, 0xffffffff, 0x18, 0xc093 };

	if (mem_write(j->mem, LOAD_GDT, gdt, sizeof(gdt)) < 0)
		return err_set(j->e, ENOMEM, "memory-too-small",
			       "the guest has no RAM below 640 KiB");
	x86_state_reset(s, 0);
	s->cr0 = 0x11; /* PE, ET */
	s->gpr[X86_RDX] = 0;
	s->gpr[X86_RBX] = LOAD_START_INFO;
	s->rip = entry;
	s->seg[X86_CS] = code;
	s->seg[X86_DS] = s->seg[X86_ES] = s->seg[X86_SS] = s->seg[X86_FS] = s->seg[X86_GS] = data;
	s->seg[X86_LDTR] = (struct x86_seg){ 0, 0, 0, 0x100 };
	s->seg[X86_TR] = (struct x86_seg){ 0, 0x67, 0x20, 0x8b };
	s->gdt_base = LOAD_GDT;
	s->gdt_limit = sizeof(gdt) - 1;
	return 0;
}

int load_elf(struct load_job *j, struct x86_state *s, enum boot_format want, enum boot_format *used)
{
	struct elf_scan scan = { 0 };
	Elf64_Ehdr h;
	int ret = load_read(j, 0, &h, sizeof(h));

	if (ret == 0)
		ret = load_elf_check(j, &h);
	if (ret == 0)
		ret = elf_load_parts(j, &h, &scan);
	if (ret < 0)
		return ret;
	if (want == BOOT_PVH && !scan.pvh)
		return elf_refuse(j, "it has no PVH entry (CONFIG_PVH is off)");
	bool pvh = scan.pvh && want != BOOT_ELF;
	gpa_t entry = pvh ? scan.pvh_entry : h.e_entry;
	if (entry < scan.low || entry >= scan.high)
		return elf_refuse(j, "its entry point lies outside of what it loads");
	j->kernel_gpa = scan.low;
	j->kernel_end = scan.high;
	ret = load_initrd(j);
	if (ret == 0)
		ret = load_cmdline(j, 2047); /* COMMAND_LINE_SIZE of x86 */
	if (ret < 0)
		return ret;
	*used = pvh ? BOOT_PVH : BOOT_ELF;
	if (pvh) {
		ret = elf_start_info(j);
		return ret < 0 ? ret : elf_enter_pvh(j, s, entry);
	}
	/* What a bzImage's header would have carried: magic and version, for the kernel's sanity
	 * checks. */
	uint8_t hdr[0x20] = { 0 };
	memcpy(&hdr[0x202 - 0x1f1], "HdrS", 4);
	hdr[0x206 - 0x1f1] = 0x0f;
	hdr[0x207 - 0x1f1] = 0x02;
	hdr[0x1fe - 0x1f1] = 0x55;
	hdr[0x1ff - 0x1f1] = 0xaa;
	ret = load_zero_page(j, hdr, sizeof(hdr));
	return ret < 0 ? ret : load_long_mode(j, s, entry);
}
