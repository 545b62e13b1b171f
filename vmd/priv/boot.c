/* boot.c - is this the first daemon since the host booted? Then guests with autostart are to be started.
 *
 * The run directory may outlive a boot (it need not be a tmpfs), so it keeps the kernel's boot id.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "vmd/priv/priv.h"

#define BOOT_FILE "boot-id"

bool boot_is_first(struct priv *p)
{
	char now[64] = "", then[64] = "";
	_cleanup_close_ int id = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int old = openat(p->run_fd, BOOT_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (id < 0 || read(id, now, sizeof(now) - 1) <= 0)
		return false; /* rather none started than all of them each time */
	if (old >= 0 && read(old, then, sizeof(then) - 1) > 0 && !strcmp(now, then))
		return false;
	_cleanup_close_ int fd =
	    openat(p->run_fd, BOOT_FILE ".new",
		   O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0 || io_write_full(fd, now, strlen(now)) < 0 ||
	    renameat(p->run_fd, BOOT_FILE ".new", p->run_fd, BOOT_FILE) < 0)
		log_warn("the boot id cannot be kept: guests may be started again by autostart");
	return true;
}
