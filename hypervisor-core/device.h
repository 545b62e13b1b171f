/* device.h - one row of device_ops a chip, one struct device an instance.
 *
 * A chip is made by its own typed constructor (serial16550_new(vm, &cfg, &e)), which embeds struct
 * device and calls vm_device_add(). Restore = build + load: the machine is wired by the same
 * function, then each device's load() takes its section. Order of reset, save and load is order of
 * creation.
 * Locking: all ops run with the machine lock held and every vCPU parked.
 */
#ifndef CORE_DEVICE_H
#define CORE_DEVICE_H

#include <stdint.h>

#include "common/err.h"
#include "common/list.h"
#include "common/state.h"

struct vm;
struct device;

struct device_ops {
	const char *name; /* section name in the state stream: "serial16550" */
	uint16_t version;
	void (*reset)(struct device *d);
	void (*save)(struct device *d, struct state_writer *w); /* inside an open section */
	int (*load)(struct device *d, const struct state_reader *r, struct err *e);
	/* quiesce() - optional: finish or park I/O in flight before save (devices with worker
	 * threads); done(arg) is called, on the main loop, once nothing is in flight. */
	void (*quiesce)(struct device *d, void (*done)(void *arg), void *arg);
	void (*unquiesce)(struct device *d);
	void (*destroy)(struct device *d);
	/* optional: counters for info/top/metrics */
	unsigned (*stats)(struct device *d, const char **names, uint64_t *values, unsigned max);
};

struct device {
	const struct device_ops *ops;
	char id[32];	   /* "serial0", "disk-vda": unique in the VM, stable over restore */
	uint32_t instance; /* set by vm_device_add(): nth of its ops->name */
	struct vm *vm;
	struct list node;
};

void vm_device_add(struct vm *vm, struct device *d, const struct device_ops *ops, const char *id);
void vm_device_del(struct device *d); /* unlinks only; destroy() frees */
struct device *vm_device_find(struct vm *vm, const char *id);

#endif
