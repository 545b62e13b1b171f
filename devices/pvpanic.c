/* pvpanic.c - paravirtual panic notification (QEMU docs/specs/pvpanic): one port, a bit an event.
 * Bit 0: the kernel panicked; bit 1: it panicked and a crash kernel takes over, which is only
 * counted.
 * Locking: machine lock. A guest may write as often as it likes: an event is reported once a reset.
 */
#include "devices/pvpanic.h"

#include <errno.h>
#include <stdlib.h>

#include "hypervisor-core/vm.h"

enum { PVPANIC_PANICKED = 1, PVPANIC_CRASH_LOADED = 2 };

struct pvpanic {
	struct device dev;
	uint64_t panics, crash_loads;
	bool reported;
};

static uint64_t pvpanic_read(void *opaque, uint64_t off, unsigned size)
{
	return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
}

static void pvpanic_write(void *opaque, uint64_t off, unsigned size, uint64_t val)
{
	struct pvpanic *p = opaque;

	if (val & PVPANIC_CRASH_LOADED)
		p->crash_loads++;
	if (!(val & PVPANIC_PANICKED))
		return;
	p->panics++;
	if (!p->reported)
		vm_event(p->dev.vm, VM_EVENT_PANIC, "guest kernel panicked");
	p->reported = true;
}

static const struct bus_ops pvpanic_bus_ops = { .read = pvpanic_read, .write = pvpanic_write };

static void pvpanic_reset(struct device *d)
{
	container_of(d, struct pvpanic, dev)->reported = false;
}

static void pvpanic_save(struct device *d, struct state_writer *w)
{
	struct pvpanic *p = container_of(d, struct pvpanic, dev);

	state_put_u64(w, 1, p->reported);
	state_put_u64(w, 2, p->panics);
	state_put_u64(w, 3, p->crash_loads);
}

static int pvpanic_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct pvpanic *p = container_of(d, struct pvpanic, dev);

	p->reported = state_get_u64_or(r, 1, 0);
	p->panics = state_get_u64_or(r, 2, 0);
	p->crash_loads = state_get_u64_or(r, 3, 0);
	return 0;
}

static void pvpanic_destroy(struct device *d)
{
	bus_del(d->vm->pio, PVPANIC_PORT);
	free(container_of(d, struct pvpanic, dev));
}

static unsigned pvpanic_stats(struct device *d, const char **names, uint64_t *values, unsigned max)
{
	struct pvpanic *p = container_of(d, struct pvpanic, dev);

	if (max < 2)
		return 0;
	names[0] = "panics";
	names[1] = "crash_kernels";
	values[0] = p->panics;
	values[1] = p->crash_loads;
	return 2;
}

static const struct device_ops pvpanic_ops = {
	.name = "pvpanic",
	.version = 1,
	.reset = pvpanic_reset,
	.save = pvpanic_save,
	.load = pvpanic_load,
	.destroy = pvpanic_destroy,
	.stats = pvpanic_stats,
};

struct pvpanic *pvpanic_new(struct vm *vm, struct err *e)
{
	struct pvpanic *p = calloc(1, sizeof(*p));

	if (!p || bus_add(vm->pio, PVPANIC_PORT, 1, &pvpanic_bus_ops, p, "pvpanic", 0)) {
		err_set(e, p ? EEXIST : ENOMEM, "pvpanic-failed",
			"pvpanic: port 0x%x is taken or memory is out", PVPANIC_PORT);
		free(p);
		return NULL;
	}
	vm_device_add(vm, &p->dev, &pvpanic_ops, "pvpanic");
	return p;
}
