/* load_bzimage.c - the Linux boot protocol's 64-bit entry (protocol 2.12 and later).
 *
 * The file is a real-mode part with the setup header at 0x1f1, then the protected-mode part, whose
 * stub unpacks the kernel (LZ4, XZ, zstd ...) itself. Where we can, we unpack the kernel and enter
 * it without the stub (load_unpack.c). Else we place that part where the kernel prefers to be, give
 * it the room that it asks for (init_size), and enter 512 bytes into it, in 64-bit mode.
 * Source: Linux Documentation/arch/x86/boot.rst.
 */
#include <errno.h>
#include <string.h>

#include "common/overflow.h"
#include "common/units.h"
#include "hypervisor-core/load/load_impl.h"

#define HDR		   0x1f1u
#define HDR_SETUP_SECTS	   0x1f1u
#define HDR_SYSSIZE	   0x1f4u
#define HDR_BOOT_FLAG	   0x1feu
#define HDR_JUMP_LEN	   0x201u
#define HDR_MAGIC	   0x202u
#define HDR_VERSION	   0x206u
#define HDR_LOADFLAGS	   0x211u
#define HDR_INITRD_MAX	   0x22cu
#define HDR_ALIGN	   0x230u
#define HDR_RELOCATABLE	   0x234u
#define HDR_XLOADFLAGS	   0x236u
#define HDR_CMDLINE_SIZE   0x238u
#define HDR_PAYLOAD_OFFSET 0x248u
#define HDR_PAYLOAD_LENGTH 0x24cu
#define HDR_PREF_ADDRESS   0x258u
#define HDR_INIT_SIZE	   0x260u
#define HDR_END		   0x280u
#define HDR_KASLR_FLAG	   2u /* in loadflags, for the kernel: it was moved */

bool load_is_bzimage(const uint8_t *head, size_t len)
{
	return len >= HDR_END && memcmp(head + HDR_MAGIC, "HdrS", 4) == 0 &&
	       load_le16(head + HDR_BOOT_FLAG) == 0xaa55;
}

static int bzimage_refuse(struct load_job *j, const char *why)
{
	return err_set(j->e, ENOEXEC, "kernel-unsupported", "kernel \"%s\": %s",
		       j->cfg->kernel_name ? j->cfg->kernel_name : "(no name)", why);
}

/* bzimage_address() - where to load: the preferred address, or the lowest that is aligned and free.
 */
static int bzimage_address(struct load_job *j, const uint8_t *h, gpa_t *at)
{
	uint64_t pref = load_le64(h + HDR_PREF_ADDRESS), end;
	uint32_t align = load_le32(h + HDR_ALIGN), room = load_le32(h + HDR_INIT_SIZE);

	if (!h[HDR_RELOCATABLE] || !align || (align & (align - 1)))
		align = 0;
	if (pref < LOAD_HIGH || !add_u64(pref, room, &end))
		return bzimage_refuse(j, "its preferred load address makes no sense");
	if (end > j->ram_end && align) {
		uint64_t low = ALIGN_UP((uint64_t)LOAD_HIGH, (uint64_t)align);

		if (low < pref && low + room <= j->ram_end)
			pref = low;
	}
	*at = pref;
	return 0;
}

/* bzimage_around() - what every way to enter it needs: initrd, command line, zero page. */
static int bzimage_around(struct load_job *j, const uint8_t h[HDR_END])
{
	uint32_t line = load_le32(h + HDR_CMDLINE_SIZE);
	size_t end = HDR_MAGIC + h[HDR_JUMP_LEN];
	int ret;

	j->initrd_max = load_le32(h + HDR_INITRD_MAX);
	ret = load_initrd(j);
	if (ret == 0)
		ret = load_cmdline(j, line ? line : 255);
	if (ret == 0)
		ret = load_zero_page(j, h + HDR, MIN(end, (size_t)HDR_END) - HDR);
	return ret;
}

/* bzimage_unpacked() - unpack it here, enter the kernel itself. Below 0: leave it to its stub. */
static int bzimage_unpacked(struct load_job *j, struct x86_state *s, uint8_t h[HDR_END],
			    uint64_t setup)
{
	struct load_unpacked kernel;
	uint64_t off;
	int ret;

	if (!j->cfg->random || !add_u64(setup, load_le32(h + HDR_PAYLOAD_OFFSET), &off) ||
	    !load_unpack(j, off, load_le32(h + HDR_PAYLOAD_LENGTH), load_le32(h + HDR_ALIGN),
			 load_le32(h + HDR_INIT_SIZE), &kernel))
		return -1;
	if (kernel.moved)
		h[HDR_LOADFLAGS] |= HDR_KASLR_FLAG;
	ret = bzimage_around(j, h);
	return ret < 0 ? ret : load_long_mode(j, s, kernel.entry);
}

int load_bzimage(struct load_job *j, struct x86_state *s, enum boot_format *used)
{
	uint8_t h[HDR_END];
	int ret = load_read(j, 0, h, sizeof(h));

	if (ret < 0)
		return ret;
	if (load_le16(h + HDR_VERSION) < 0x20c)
		return bzimage_refuse(j, "its boot protocol is older than 2.12 (Linux 3.8)");
	if (!(h[HDR_LOADFLAGS] & 1))
		return bzimage_refuse(j, "it is a zImage that loads low");
	if (!(load_le16(h + HDR_XLOADFLAGS) & 1))
		return bzimage_refuse(j, "it is a 32-bit kernel; a 64-bit one (amd64) is needed");

	uint64_t setup = ((h[HDR_SETUP_SECTS] ? h[HDR_SETUP_SECTS] : 4u) + 1u) * 512u;
	uint64_t body = (uint64_t)load_le32(h + HDR_SYSSIZE) * 16;
	if (body < 0x400 || setup + body > j->file_bytes)
		return err_set(j->e, EBADMSG, "kernel-truncated",
			       "kernel \"%s\" is truncated: %llu bytes, its header says %llu",
			       j->cfg->kernel_name ? j->cfg->kernel_name : "(no name)",
			       (unsigned long long)j->file_bytes,
			       (unsigned long long)(setup + body));
	if (j->cfg->format == BOOT_AUTO) {
		struct err *e = j->e, quiet = { 0 };
		uint8_t own[HDR_END];

		memcpy(own, h, sizeof(own));
		j->e = &quiet;
		ret = bzimage_unpacked(j, s, own, setup);
		j->e = e;
		if (ret == 0) {
			*used = BOOT_UNPACKED;
			return 0;
		}
	}
	ret = bzimage_address(j, h, &j->kernel_gpa);
	if (ret < 0)
		return ret;
	j->kernel_end = j->kernel_gpa + MAX(body, (uint64_t)load_le32(h + HDR_INIT_SIZE));
	ret = load_need_ram(j, j->kernel_end);
	if (ret == 0)
		ret = load_place(j, setup, body, j->kernel_gpa, body);
	if (ret == 0)
		ret = bzimage_around(j, h);
	return ret < 0 ? ret : load_long_mode(j, s, j->kernel_gpa + 0x200);
}
