/* fuzz_load_elf.c - the ELF and PVH loader over hostile files. The first byte chooses the format
 * that is asked for; the identification of the ELF header is put right, so that program headers and
 * notes are reached.
 */
#include <elf.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hypervisor-core/load/load.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct boot_e820 e820[] = { { 0, 0x9f000, 1 }, { 0x100000, 0x2f00000, 1 } };
	static const enum boot_format formats[] = { BOOT_AUTO, BOOT_ELF, BOOT_PVH, BOOT_BZIMAGE };
	static struct mem *mem;
	static struct x86_state s;
	struct err e = { 0 };

	if (!size)
		return 0;
	if (!mem) {
		mem = mem_new();
		if (!mem || mem_add(mem, "fuzz", 0, 0x3000000, -1, 0, MEM_PRIVATE, &e) < 0)
			abort();
	}
	enum boot_format want = formats[data[0] & 3];
	int fd = memfd_create("kernel", MFD_CLOEXEC);
	if (fd < 0 || write(fd, data + 1, size - 1) != (ssize_t)size - 1)
		abort();
	if (size > sizeof(Elf64_Ehdr)) {
		Elf64_Ehdr h;

		memcpy(&h, data + 1, sizeof(h));
		memcpy(h.e_ident,
		       "\x7f"
		       "ELF\x02\x01\x01",
		       7);
		h.e_machine = EM_X86_64;
		h.e_phentsize = sizeof(Elf64_Phdr);
		if (pwrite(fd, &h, sizeof(h), 0) != sizeof(h))
			abort();
	}
	struct boot_config cfg = {
		.kernel_fd = fd, .initrd_fd = -1, .format = want, .e820 = e820, .ne820 = 2
	};
	enum boot_format used = BOOT_AUTO;
	int ret = boot_load(mem, &cfg, &s, &used, &e);
	if ((ret < 0) != err_is_set(&e) || (ret == 0 && used == BOOT_AUTO))
		abort();
	close(fd);
	return 0;
}
