/* load_unpack_test.c - bzImages made here, whose kernel is unpacked by the loader: each packer, both
 * layouts of relocations, and what must be left to the kernel's own stub. */
#include <elf.h>
#include <errno.h>
#include <lz4.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "common/units.h"
#include "hypervisor-core/load/load.h"

#define RAM	 (64 * MIB)
#define AT	 (16 * MIB) /* where the kernel wants to be */
#define VA(off)	 (0x81000000u + (uint32_t)(off))
#define IMG_MAX	 0x20000u
#define IMG_ELF	 0x4000u /* size of the ELF file in it */
#define SETUP	 1024u
#define PAY	 0x400u /* payload's offset in the body */
#define ZP_FLAGS (0x7000u + 0x211u)

enum packer { GZIP, ZSTD, LZ4 };

struct made {
	uint8_t image[IMG_MAX]; /* ELF, then relocations */
	size_t size;
	uint32_t claim; /* the size that the payload says; 0: the true one */
};

static void reloc(struct made *m, uint32_t v)
{
	memcpy(m->image + m->size, &v, 4);
	m->size += 4;
}

/* an ELF kernel of one part, its words at 0x100, 0x200 and 0x300 to be moved */
static struct made *made_new(bool inverse)
{
	struct made *m = calloc(1, sizeof(*m));
	Elf64_Ehdr h = { .e_type = ET_EXEC,
			 .e_machine = EM_X86_64,
			 .e_entry = AT + 16,
			 .e_phoff = 64,
			 .e_phentsize = sizeof(Elf64_Phdr),
			 .e_phnum = 1 };
	Elf64_Phdr p = { .p_type = PT_LOAD,
			 .p_offset = 0x1000,
			 .p_paddr = AT,
			 .p_filesz = 0x3000,
			 .p_memsz = 0x5000 };
	uint64_t v64 = 0xffffffff81000100;
	uint32_t v32 = 0x81000200, inv = 0x1000;

	memcpy(h.e_ident,
	       "\x7f"
	       "ELF\x02\x01\x01",
	       7);
	memcpy(m->image, &h, sizeof(h));
	memcpy(m->image + 64, &p, sizeof(p));
	for (unsigned i = 0x1400; i < IMG_ELF; i++)
		m->image[i] = (uint8_t)(i * 7 >> 3);
	memcpy(m->image + 0x1100, &v64, 8);
	memcpy(m->image + 0x1200, &v32, 4);
	memcpy(m->image + 0x1300, &inv, 4);
	m->size = IMG_ELF;
	reloc(m, 0);
	reloc(m, VA(0x100));
	reloc(m, 0);
	if (inverse) {
		reloc(m, VA(0x300));
		reloc(m, 0);
	}
	reloc(m, VA(0x200));
	return m;
}

static size_t pack(const struct made *m, enum packer how, uint8_t *to, size_t room)
{
	uint32_t size = m->claim ? m->claim : (uint32_t)m->size;
	size_t n = 0;

	if (how == GZIP) {
		z_stream z = { .next_in = (uint8_t *)(uintptr_t)m->image,
			       .avail_in = (uInt)m->size,
			       .next_out = to,
			       .avail_out = (uInt)room };

		assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY),
				 Z_OK);
		assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
		n = room - z.avail_out - 4; /* its own last four bytes are the size */
		deflateEnd(&z);
	} else if (how == ZSTD) {
		n = ZSTD_compress(to, room, m->image, m->size, 3);
		assert_false(ZSTD_isError(n));
	} else {
		int len = LZ4_compress_default((const char *)m->image, (char *)to + 8, (int)m->size,
					       (int)room - 8);
		uint32_t magic = 0x184c2102, word = (uint32_t)len;

		assert_true(len > 0);
		memcpy(to, &magic, 4);
		memcpy(to + 4, &word, 4);
		n = (size_t)len + 8;
	}
	memcpy(to + n, &size, 4);
	return n + 4;
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, 4);
}

/* load @m packed by @how; the command line and the random number are given */
static enum boot_format load(const struct made *m, enum packer how, const char *line,
			     uint64_t random, struct mem **mem, struct x86_state *s)
{
	struct boot_e820 e820[2] = { { 0, 0x9f000, 1 }, { MIB, RAM - MIB, 1 } };
	uint8_t *f = calloc(1, SETUP + 4 * IMG_MAX);
	size_t pay = pack(m, how, f + SETUP + PAY, 3 * IMG_MAX), body = (PAY + pay + 15) / 16 * 16;
	enum boot_format used = BOOT_AUTO;
	uint64_t pref = AT;
	struct err e = { 0 };

	f[0x1f1] = 1;
	put32(f + 0x1f4, (uint32_t)(body / 16));
	f[0x1fe] = 0x55;
	f[0x1ff] = 0xaa;
	f[0x201] = 0x6a;
	memcpy(f + 0x202, "HdrS", 4);
	f[0x206] = 0x0f;
	f[0x207] = 0x02;
	f[0x211] = 1;
	put32(f + 0x22c, 0x7fffffff);
	put32(f + 0x230, 2 * MIB);
	f[0x234] = 1;
	f[0x236] = 1;
	put32(f + 0x238, 2047);
	put32(f + 0x248, PAY);
	put32(f + 0x24c, (uint32_t)pay);
	memcpy(f + 0x258, &pref, 8);
	put32(f + 0x260, 4 * MIB);
	int fd = memfd_create("k", MFD_CLOEXEC);
	assert_int_equal(write(fd, f, SETUP + body), SETUP + body);
	*mem = mem_new();
	assert_int_equal(mem_add(*mem, "ram", 0, RAM, -1, 0, 0, &e), 0);
	struct boot_config c = { .kernel_fd = fd,
				 .initrd_fd = -1,
				 .kernel_name = "k",
				 .cmdline = line,
				 .random = random,
				 .e820 = e820,
				 .ne820 = 2 };
	int ret = boot_load(*mem, &c, s, &used, &e);
	if (ret)
		print_error("%s\n", e.detail);
	assert_int_equal(ret, 0);
	close(fd);
	free(f);
	return used;
}

static uint64_t peek(struct mem *mem, gpa_t gpa, unsigned len)
{
	uint64_t v = 0;

	assert_int_equal(mem_read(mem, gpa, &v, len), 0);
	return v;
}

static void each_packers_kernel_is_placed_moved_and_entered(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		bool inverse = i & 1;
		struct made *m = made_new(inverse);
		struct x86_state s;
		struct mem *mem;
		const uint32_t delta = 5 * 2 * MIB;

		assert_int_equal(load(m, i / 2, "quiet", 5, &mem, &s), BOOT_UNPACKED);
		assert_int_equal(s.rip, AT + 16);
		assert_int_equal(s.gpr[X86_RSI], 0x7000);
		assert_int_equal(peek(mem, AT + 0x100, 8), 0xffffffff81000100 + delta);
		assert_int_equal(peek(mem, AT + 0x200, 4), 0x81000200 + delta);
		assert_int_equal(peek(mem, AT + 0x300, 4),
				 inverse ? (uint32_t)(0x1000 - delta) : 0x1000);
		assert_int_equal(peek(mem, AT + 0x2fff, 1), (uint8_t)(0x3fff * 7 >> 3));
		assert_int_equal(peek(mem, AT + 0x3000, 8), 0);
		assert_int_equal(peek(mem, ZP_FLAGS, 1) & 3, 3); /* loaded high, moved */
		assert_int_equal(peek(mem, 0x7000 + 0x202, 4), 0x53726448);
		mem_free(mem);
		free(m);
	}
}

static void a_kernel_stays_where_it_was_linked_when_asked_to_or_built_so(void **state)
{
	struct made *m = made_new(true);
	struct x86_state s;
	struct mem *mem;

	(void)state;
	assert_int_equal(load(m, ZSTD, "quiet nokaslr", 5, &mem, &s), BOOT_UNPACKED);
	assert_int_equal(peek(mem, AT + 0x200, 4), 0x81000200);
	assert_int_equal(peek(mem, ZP_FLAGS, 1) & 3, 1);
	mem_free(mem);
	/* a word that only holds it does not count */
	assert_int_equal(load(m, ZSTD, "nokaslrx anokaslr", 5, &mem, &s), BOOT_UNPACKED);
	assert_int_equal(peek(mem, AT + 0x200, 4), 0x81000200 + 5 * 2 * MIB);
	mem_free(mem);
	m->size = IMG_ELF; /* no relocations */
	assert_int_equal(load(m, ZSTD, "quiet", 5, &mem, &s), BOOT_UNPACKED);
	assert_int_equal(peek(mem, AT + 0x200, 4), 0x81000200);
	assert_int_equal(peek(mem, ZP_FLAGS, 1) & 3, 1);
	mem_free(mem);
	free(m);
}

static void every_address_chosen_leaves_room_for_the_kernel(void **state)
{
	struct made *m = made_new(true);

	(void)state;
	for (uint64_t random = UINT64_MAX - 40; random > UINT64_MAX - 1000; random -= 41) {
		struct x86_state s;
		struct mem *mem;

		assert_int_equal(load(m, LZ4, "", random, &mem, &s), BOOT_UNPACKED);
		uint64_t va = peek(mem, AT + 0x100, 8) - 0x100;
		assert_int_equal(va % (2 * MIB), 0);
		assert_in_range(va, 0xffffffff81000000, 0xffffffffbfc00000); /* 4 MiB: init_size */
		mem_free(mem);
	}
	free(m);
}

static void what_is_not_as_expected_is_left_to_the_stub(void **state)
{
	static const struct {
		const char *what;
		uint32_t claim, at, word; /* word: written over the image at @at */
	} bad[] = {
		{ "a size that is too large", IMG_ELF + 4096, 0, 0 },
		{ "a size that is too small", IMG_ELF - 4096, 0, 0 },
		{ "a size beyond RAM", 0x7fffffff, 0, 0 },
		{ "no size", 4, 0, 0 },
		{ "a relocation below the kernel", 0, IMG_ELF + 4, VA(0) - 1 },
		{ "a relocation across its end", 0, IMG_ELF + 4, VA(0x5000 - 4) },
		{ "a relocation behind it", 0, IMG_ELF + 12, VA(0x5000) },
		{ "a relocation of user space", 0, IMG_ELF + 12, 0x1000 },
		{ "relocations that do not begin with a zero", 0, IMG_ELF, VA(0) },
		{ "one list too many", 0, IMG_ELF + 4, 0 },
		{ "no ELF file", 0, 0, 0x41414141 },
		{ "another machine's", 0, 16, 0x00b70002 },
		{ "an entry outside", 0, 24, 0x900000 },
		{ "a part below 1 MiB", 0, 64 + 24, 0x1000 },
		{ "a part outside of the file", 0, 64 + 8, 0x7fffff },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct made *m = made_new(true);
		struct x86_state s;
		struct mem *mem;

		m->claim = bad[i].claim;
		if (!m->claim)
			put32(m->image + bad[i].at, bad[i].word);
		for (enum packer how = GZIP; how <= LZ4; how++) {
			enum boot_format used = load(m, how, "quiet", 7, &mem, &s);

			if (used != BOOT_BZIMAGE || s.rip != AT + 0x200 ||
			    (peek(mem, ZP_FLAGS, 1) & 2))
				fail_msg("%s, packer %d: %s at 0x%llx", bad[i].what, how,
					 boot_format_name(used), (unsigned long long)s.rip);
			mem_free(mem);
		}
		free(m);
	}
	/* nor without a random number: then the stub does what it always did */
	struct made *m = made_new(true);
	struct x86_state s;
	struct mem *mem;
	assert_int_equal(load(m, ZSTD, "quiet", 0, &mem, &s), BOOT_BZIMAGE);
	mem_free(mem);
	free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_packers_kernel_is_placed_moved_and_entered),
		cmocka_unit_test(a_kernel_stays_where_it_was_linked_when_asked_to_or_built_so),
		cmocka_unit_test(every_address_chosen_leaves_room_for_the_kernel),
		cmocka_unit_test(what_is_not_as_expected_is_left_to_the_stub),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
