/* machine.h - a machine is wired in one function; restore is build + load.
 * Rows live in devices/ (pc.c); later riscv-virt and atari2600 are one file and one row each.
 */
#ifndef CORE_MACHINE_H
#define CORE_MACHINE_H

#include "common/err.h"

struct vm;
struct machine_config; /* devices/machine_config.h: disks, nics, ports by fd */

struct machine_ops {
	const char *name; /* "pc" */
	const char *arch; /* "x86_64" */
	const char *help; /* one line for --help and doctor */
	unsigned vcpus_max;
	/* build() - RAM, chips, vCPUs, boot payload; VM is VM_BUILT and reset afterwards. */
	int (*build)(struct vm *vm, const struct machine_config *cfg, struct err *e);
	/* reset() - reload the boot payload and entry state after vm_reset(). */
	int (*reset)(struct vm *vm, struct err *e);
	void (*power_button)(struct vm *vm);
	void (*destroy)(struct vm *vm);
};

extern const struct machine_ops *const machine_rows[]; /* NULL-terminated; defined in devices/ */

#endif
