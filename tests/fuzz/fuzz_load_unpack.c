/* fuzz_load_unpack.c - a bzImage whose kernel the loader unpacks: the input is the unpacked kernel, ELF file and
 * relocations, hostile in every field; or, by its first byte, the packed bytes themselves (LZ4, zstd, gzip).
 */
#include <elf.h>
#include <lz4.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hypervisor-core/load/load.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX 65536u
#define SETUP	  1024u
#define PAYLOAD	  0x400u

static size_t payload(uint8_t *to, size_t room, const uint8_t *data, size_t size, unsigned how)
{
	static const uint8_t magics[3][4] = { { 0x02, 0x21, 0x4c, 0x18 },
					      { 0x28, 0xb5, 0x2f, 0xfd },
					      { 0x1f, 0x8b, 8, 0 } };
	static uint8_t image[INPUT_MAX];
	uint32_t len = (uint32_t)size;

	if (how < 3) {
		memcpy(to, magics[how], 4);
		memcpy(to + 4, data, size);
		return size + 4;
	}
	memcpy(image, data, size);
	if (size > sizeof(Elf64_Ehdr)) {
		Elf64_Ehdr h;

		memcpy(&h, image, sizeof(h));
		memcpy(h.e_ident,
		       "\x7f"
		       "ELF\x02\x01\x01",
		       7);
		h.e_type = ET_EXEC;
		h.e_machine = EM_X86_64;
		h.e_phentsize = sizeof(Elf64_Phdr);
		memcpy(image, &h, sizeof(h));
	}
	int n =
	    LZ4_compress_default((const char *)image, (char *)to + 8, (int)size, (int)room - 12);
	if (n <= 0)
		return 0;
	memcpy(to, magics[0], 4);
	memcpy(to + 4, &n, 4);
	memcpy(to + 8 + n, &len, 4);
	return (size_t)n + 12;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct boot_e820 e820[] = { { 0, 0x9f000, 1 }, { 0x100000, 0x2f00000, 1 } };
	static uint8_t f[SETUP + PAYLOAD + 2 * INPUT_MAX + 4096];
	static struct mem *mem;
	static struct x86_state s;
	struct err e = { 0 };

	if (size < 2 || size > INPUT_MAX)
		return 0;
	if (!mem) {
		mem = mem_new();
		if (!mem || mem_add(mem, "fuzz", 0, 0x3000000, -1, 0, MEM_PRIVATE, &e) < 0)
			abort();
	}
	memset(f, 0, sizeof(f));
	size_t pay = payload(f + SETUP + PAYLOAD, 2 * INPUT_MAX, data + 2, size - 2, data[0] & 7);
	uint32_t v[] = { (uint32_t)((PAYLOAD + pay + 15) / 16),
			 0x7fffffff,
			 2 << 20,
			 2047,
			 PAYLOAD,
			 (uint32_t)pay,
			 1 << 24,
			 4 << 20 };
	static const unsigned at[] = { 0x1f4, 0x22c, 0x230, 0x238, 0x248, 0x24c, 0x258, 0x260 };
	f[0x1f1] = 1;
	memcpy(f + 0x1fe, "\x55\xaa", 2);
	f[0x201] = 0x6a;
	memcpy(f + 0x202, "HdrS\x0f\x02", 6);
	f[0x211] = f[0x234] = f[0x236] = 1;
	for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++)
		memcpy(f + at[i], &v[i], 4);
	int fd = memfd_create("kernel", MFD_CLOEXEC);
	size_t all = SETUP + (size_t)v[0] * 16;
	if (fd < 0 || write(fd, f, all) != (ssize_t)all)
		abort();
	struct boot_config cfg = { .kernel_fd = fd,
				   .initrd_fd = -1,
				   .cmdline = data[1] & 1 ? "nokaslr" : "quiet",
				   .random = 1 + (uint64_t)data[1] * 0x123456789,
				   .e820 = e820,
				   .ne820 = 2 };
	enum boot_format used = BOOT_AUTO;
	int ret = boot_load(mem, &cfg, &s, &used, &e);
	if ((ret < 0) != err_is_set(&e) ||
	    (ret == 0 && used != BOOT_UNPACKED && used != BOOT_BZIMAGE))
		abort();
	close(fd);
	return 0;
}
