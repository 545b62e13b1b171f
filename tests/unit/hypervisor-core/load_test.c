/* load_test.c - kernel loaders: small files made here, and Debian's own kernels where the lab has
 * fetched them (VMD_TEST_KERNELS, default .lab/kernels/cloud). */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/units.h"
#include "hypervisor-core/load/load.h"

struct bench {
	struct mem *mem;
	struct x86_state s;
	struct err e;
	enum boot_format used;
	struct boot_e820 e820[2];
	struct boot_config cfg;
};

static struct bench *bench_new(uint64_t ram)
{
	struct bench *b = calloc(1, sizeof(*b));

	b->mem = mem_new();
	assert_int_equal(mem_add(b->mem, "ram", 0, ram, -1, 0, 0, &b->e), 0);
	b->e820[0] = (struct boot_e820){ 0, 0x9f000, 1 };
	b->e820[1] = (struct boot_e820){ MIB, ram - MIB, 1 };
	b->cfg = (struct boot_config){ .kernel_fd = -1,
				       .initrd_fd = -1,
				       .kernel_name = "k",
				       .initrd_name = "i",
				       .cmdline = "console=ttyS0",
				       .rsdp = 0xe0000,
				       .e820 = b->e820,
				       .ne820 = 2 };
	return b;
}

static void bench_free(struct bench *b)
{
	if (b->cfg.kernel_fd >= 0)
		close(b->cfg.kernel_fd);
	if (b->cfg.initrd_fd >= 0)
		close(b->cfg.initrd_fd);
	mem_free(b->mem);
	free(b);
}

static int file_of(const void *data, size_t len)
{
	int fd = memfd_create("file", MFD_CLOEXEC);

	assert_true(write(fd, data, len) == (ssize_t)len);
	return fd;
}

static int load(struct bench *b)
{
	return boot_load(b->mem, &b->cfg, &b->s, &b->used, &b->e);
}

static uint64_t peek(struct bench *b, gpa_t gpa, unsigned len)
{
	uint64_t v = 0;

	assert_int_equal(mem_read(b->mem, gpa, &v, len), 0);
	return v;
}

static void refusals_say_what_the_file_is(void **state)
{
	static const struct {
		const char *data;
		size_t len;
		const char *says;
	} t[] = {
		{ "", 0, "empty" },
		{ "\x1f\x8b\x08", 3, "gzip" },
		{ "\xfd"
		  "7zXZ\0",
		  6, "xz" },
		{ "QFI\xfb", 4, "qcow2" },
		{ "#!/bin/sh\n", 10, "script" },
		{ "hello, world", 12, "no format" },
	};

	for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct bench *b = bench_new(64 * MIB);

		b->cfg.kernel_fd = file_of(t[i].data, t[i].len);
		assert_int_equal(load(b), -ENOEXEC);
		assert_non_null(strstr(b->e.detail, t[i].says));
		bench_free(b);
	}
	struct bench *b = bench_new(64 * MIB);
	assert_int_equal(load(b), -ENOENT);
	bench_free(b);
}

static int elf_file(uint16_t machine, uint64_t paddr, uint64_t filesz, uint64_t memsz,
		    uint64_t entry)
{
	uint8_t f[0x1000] = { 0 };
	Elf64_Ehdr h = { .e_type = ET_EXEC,
			 .e_machine = machine,
			 .e_entry = entry,
			 .e_phoff = 64,
			 .e_phentsize = sizeof(Elf64_Phdr),
			 .e_phnum = 1 };
	Elf64_Phdr p = { .p_type = PT_LOAD,
			 .p_offset = 0x800,
			 .p_paddr = paddr,
			 .p_filesz = filesz,
			 .p_memsz = memsz };

	memcpy(h.e_ident,
	       "\x7f"
	       "ELF\x02\x01\x01",
	       7);
	memcpy(f, &h, sizeof(h));
	memcpy(f + 64, &p, sizeof(p));
	memset(f + 0x800, 0x90, 0x800);
	return file_of(f, sizeof(f));
}

static void elf_parts_are_placed_and_bss_is_zeroed(void **state)
{
	struct bench *b = bench_new(64 * MIB);

	b->cfg.kernel_fd = elf_file(EM_X86_64, 16 * MIB, 0x800, 0x2000, 16 * MIB + 16);
	memset(mem_ptr_write(b->mem, 16 * MIB, 0x3000), 0xee, 0x3000);
	assert_int_equal(load(b), 0);
	assert_int_equal(b->used, BOOT_ELF);
	assert_int_equal(b->s.rip, 16 * MIB + 16);
	assert_int_equal(peek(b, 16 * MIB + 0x7f8, 8), 0x9090909090909090);
	assert_int_equal(peek(b, 16 * MIB + 0x800, 8), 0);
	assert_int_equal(peek(b, 16 * MIB + 0x1ff8, 8), 0);
	assert_int_equal(peek(b, 16 * MIB + 0x2000, 1), 0xee);
	bench_free(b);
}

static void hostile_elf_files_are_refused(void **state)
{
	static const struct {
		uint16_t machine;
		uint64_t paddr, filesz, memsz, entry;
		int ret;
		const char *says;
	} t[] = {
		{ EM_AARCH64, 16 * MIB, 16, 16, 16 * MIB, -ENOEXEC, "aarch64" },
		{ EM_386, 16 * MIB, 16, 16, 16 * MIB, -ENOEXEC, "32-bit" },
		{ EM_X86_64, 16 * MIB, 0x801, 0x900, 16 * MIB, -EBADMSG, "outside" },
		{ EM_X86_64, 16 * MIB, 0x20, 0x10, 16 * MIB, -EBADMSG, "outside" },
		{ EM_X86_64, 0x1000, 16, 16, 0x1000, -EBADMSG, "below 1 MiB" },
		{ EM_X86_64, 0xfffffffffffff000, 16, 0x2000, 16 * MIB, -EBADMSG, "outside" },
		{ EM_X86_64, 63 * MIB, 16, 2 * MIB, 63 * MIB, -ENOMEM, "65 MiB" },
		{ EM_X86_64, 16 * MIB, 16, 16, 17 * MIB, -ENOEXEC, "entry" },
	};

	for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct bench *b = bench_new(64 * MIB);

		b->cfg.kernel_fd =
		    elf_file(t[i].machine, t[i].paddr, t[i].filesz, t[i].memsz, t[i].entry);
		assert_int_equal(load(b), t[i].ret);
		assert_non_null(strstr(b->e.detail, t[i].says));
		bench_free(b);
	}
}

static int kernel_open(const char *name)
{
	const char *dir = getenv("VMD_TEST_KERNELS");
	char path[300];

	snprintf(path, sizeof(path), "%s/%s", dir ? dir : ".lab/kernels/cloud", name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static void debians_bzimage_gets_its_zero_page_and_initrd(void **state)
{
	int kernel = kernel_open("vmlinuz");

	if (kernel < 0)
		skip();
	struct bench *b = bench_new(256 * MIB);
	uint8_t *initrd = calloc(1, 3 * MIB + 5);

	b->cfg.kernel_fd = kernel;
	initrd[3 * MIB + 4] = 0x99;
	b->cfg.initrd_fd = file_of(initrd, 3 * MIB + 5);
	assert_int_equal(load(b), 0);
	assert_int_equal(b->used, BOOT_BZIMAGE);
	assert_int_equal(b->s.gpr[X86_RSI], 0x7000);
	assert_int_equal(b->s.seg[X86_CS].sel, 0x10);
	assert_int_equal(peek(b, 0x7000 + 0x202, 4), 0x53726448); /* "HdrS" */
	assert_int_equal(peek(b, 0x7000 + 0x70, 8), 0xe0000);
	assert_int_equal(peek(b, 0x7000 + 0x1e8, 1), 2);
	uint64_t at = peek(b, 0x7000 + 0x218, 4);
	assert_int_equal(peek(b, 0x7000 + 0x21c, 4), 3 * MIB + 5);
	assert_int_equal(peek(b, at + 3 * MIB + 4, 1), 0x99);
	assert_true(at + 3 * MIB + 5 <= 256 * MIB);
	assert_string_equal((char *)mem_ptr(b->mem, peek(b, 0x7000 + 0x228, 4), 16),
			    "console=ttyS0");
	free(initrd);
	bench_free(b);
}

static void debians_kernel_is_unpacked_and_moved(void **state)
{
	struct bench *b = bench_new(256 * MIB);

	b->cfg.kernel_fd = kernel_open("vmlinuz");
	if (b->cfg.kernel_fd < 0)
		skip();
	b->cfg.random = 3;
	assert_int_equal(load(b), 0);
	assert_int_equal(b->used, BOOT_UNPACKED);
	assert_int_equal(b->s.rip, 16 * MIB);
	assert_int_equal(peek(b, 0x7000 + 0x211, 1) & 3, 3);
	/* as its vmlinux has it, but for the addresses in it */
	struct bench *v = bench_new(256 * MIB);
	v->cfg.kernel_fd = kernel_open("vmlinux");
	v->cfg.format = BOOT_ELF;
	assert_int_equal(load(v), 0);
	uint64_t same = 0, moved = 0, other = 0;
	for (gpa_t at = 16 * MIB; at < 28 * MIB; at += 4) {
		uint32_t x = (uint32_t)peek(b, at, 4), y = (uint32_t)peek(v, at, 4);

		if (x == y)
			same++;
		else if (x == y + 3 * 2 * MIB || x == y - 3 * 2 * MIB)
			moved++;
		else
			other++; /* an address that lies across two words */
	}
	assert_true(moved > 1000 && same > 20 * (moved + other));
	bench_free(v);
	b->cfg.format = BOOT_BZIMAGE; /* its stub, when asked for */
	assert_int_equal(load(b), 0);
	assert_int_equal(b->used, BOOT_BZIMAGE);
	bench_free(b);
}

static void debians_bzimage_cut_short_or_in_little_memory_is_refused(void **state)
{
	struct bench *b = bench_new(256 * MIB);
	char line[5000];

	b->cfg.kernel_fd = kernel_open("vmlinuz");
	if (b->cfg.kernel_fd < 0)
		skip();
	uint8_t *head = malloc(MIB);
	assert_int_equal(pread(b->cfg.kernel_fd, head, MIB, 0), MIB);
	int whole = b->cfg.kernel_fd;
	b->cfg.kernel_fd = file_of(head, MIB);
	assert_int_equal(load(b), -EBADMSG);
	assert_non_null(strstr(b->e.detail, "truncated"));
	close(b->cfg.kernel_fd);
	b->cfg.kernel_fd = whole;
	memset(line, 'a', sizeof(line) - 1);
	line[sizeof(line) - 1] = '\0';
	b->cfg.cmdline = line;
	assert_int_equal(load(b), -E2BIG);
	bench_free(b);
	b = bench_new(16 * MIB);
	b->cfg.kernel_fd = kernel_open("vmlinuz");
	assert_int_equal(load(b), -ENOMEM);
	assert_non_null(strstr(b->e.hint, "MiB of memory"));
	free(head);
	bench_free(b);
}

static void debians_vmlinux_enters_by_pvh_or_by_its_64_bit_entry(void **state)
{
	struct bench *b = bench_new(256 * MIB);

	b->cfg.kernel_fd = kernel_open("vmlinux");
	if (b->cfg.kernel_fd < 0)
		skip();
	b->cfg.initrd_fd = file_of("070701initrd", 12);
	assert_int_equal(load(b), 0);
	assert_int_equal(b->used, BOOT_PVH);
	assert_int_equal(b->s.cr0 & 0x80000001, 1);
	assert_int_equal(b->s.efer, 0);
	gpa_t si = b->s.gpr[X86_RBX];
	assert_int_equal(peek(b, si, 4), 0x336ec578);
	assert_int_equal(peek(b, peek(b, peek(b, si + 16, 8), 8), 6), 0x313037303730);
	assert_int_equal(peek(b, si + 32, 8), 0xe0000);
	assert_int_equal(peek(b, si + 48, 4), 2);
	assert_int_equal(peek(b, peek(b, si + 40, 8) + 24, 8), MIB);
	b->cfg.format = BOOT_ELF;
	assert_int_equal(load(b), 0);
	assert_int_equal(b->used, BOOT_ELF);
	assert_int_equal(b->s.efer & 0x500, 0x500);
	b->cfg.format = BOOT_BZIMAGE;
	assert_int_equal(load(b), -ENOEXEC);
	bench_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refusals_say_what_the_file_is),
		cmocka_unit_test(elf_parts_are_placed_and_bss_is_zeroed),
		cmocka_unit_test(hostile_elf_files_are_refused),
		cmocka_unit_test(debians_bzimage_gets_its_zero_page_and_initrd),
		cmocka_unit_test(debians_kernel_is_unpacked_and_moved),
		cmocka_unit_test(debians_bzimage_cut_short_or_in_little_memory_is_refused),
		cmocka_unit_test(debians_vmlinux_enters_by_pvh_or_by_its_64_bit_entry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
