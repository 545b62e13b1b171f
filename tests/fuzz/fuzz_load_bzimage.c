/* fuzz_load_bzimage.c - the bzImage loader over hostile files: nothing but guest RAM is written,
 * nothing hangs.
 * The input is the file; whatever its first bytes, it is made to look like a bzImage, so that the
 * loader goes deep.
 */
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
	static struct mem *mem;
	static struct x86_state s;
	struct err e = { 0 };

	if (!mem) {
		mem = mem_new();
		if (!mem || mem_add(mem, "fuzz", 0, 0x3000000, -1, 0, MEM_PRIVATE, &e) < 0)
			abort();
	}
	int fd = memfd_create("kernel", MFD_CLOEXEC), initrd = memfd_create("initrd", MFD_CLOEXEC);
	if (fd < 0 || initrd < 0 || write(fd, data, size) != (ssize_t)size ||
	    ftruncate(initrd, size > 2 ? data[size / 2] * 65536 : 0) < 0)
		abort();
	if (size >= 0x280 &&
	    (pwrite(fd, "\x55\xaa", 2, 0x1fe) != 2 || pwrite(fd, "HdrS", 4, 0x202) != 4))
		abort();
	struct boot_config cfg = {
		.kernel_fd = fd,
		.initrd_fd = size > 2 && data[1] & 1 ? initrd : -1,
		.cmdline = "quiet",
		.random = size > 3 ? data[2] : 0,
		.e820 = e820,
		.ne820 = 2,
	};
	int ret = boot_load(mem, &cfg, &s, NULL, &e);
	if ((ret < 0) != err_is_set(&e)) /* each refusal has its sentence */
		abort();
	close(fd);
	close(initrd);
	return 0;
}
