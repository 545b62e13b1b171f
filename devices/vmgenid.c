/* vmgenid.c - Virtual Machine Generation ID (Microsoft, 2012): 16 bytes in guest RAM and a
 * notification.
 *
 * The id belongs to this run of the guest, not to the state: after a load, a state that was saved
 * under another id (a clone, a snapshot gone back to) makes the device write its own and raise the
 * general-purpose event by which the guest's kernel learns to reseed its random numbers.
 * Guest RAM must be in place before the state is loaded. Locking: machine lock.
 */
#include "devices/vmgenid.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "devices/pm.h"
#include "hypervisor-core/vm.h"

struct vmgenid {
	struct device dev;
	gpa_t gpa;
	uint8_t id[16];
	struct pm *pm;
};

void vmgenid_write(struct vmgenid *g)
{
	/* A GUID's first three fields are little-endian in memory. */
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	uint8_t guid[16];

	for (unsigned i = 0; i < 16; i++)
		guid[i] = g->id[order[i]];
	if (mem_store(g->dev.vm->mem, g->gpa, guid, sizeof(guid)))
		log_error("vmgenid: no guest RAM at 0x%llx", (unsigned long long)g->gpa);
}

static void vmgenid_save(struct device *d, struct state_writer *w)
{
	struct vmgenid *g = container_of(d, struct vmgenid, dev);

	state_put_bytes(w, 1, g->id, sizeof(g->id));
}

static int vmgenid_load(struct device *d, const struct state_reader *r, struct err *e)
{
	struct vmgenid *g = container_of(d, struct vmgenid, dev);
	uint8_t saved[16];

	if (state_get_bytes(r, 1, saved, sizeof(saved)))
		return err_set(e, EBADMSG, "state-corrupt",
			       "vmgenid: the id is missing in the state");
	if (memcmp(saved, g->id, sizeof(saved))) {
		vmgenid_write(g);
		pm_gpe_raise(g->pm, VMGENID_GPE);
	}
	return 0;
}

static void vmgenid_destroy(struct device *d)
{
	free(container_of(d, struct vmgenid, dev));
}

static const struct device_ops vmgenid_ops = {
	.name = "vmgenid",
	.version = 1,
	.save = vmgenid_save,
	.load = vmgenid_load,
	.destroy = vmgenid_destroy,
};

struct vmgenid *vmgenid_new(struct vm *vm, gpa_t gpa, const uint8_t id[16], struct pm *pm,
			    struct err *e)
{
	struct vmgenid *g = calloc(1, sizeof(*g));

	if (!g) {
		err_set(e, ENOMEM, "no-memory", "vmgenid: out of memory");
		return NULL;
	}
	g->gpa = gpa;
	memcpy(g->id, id, sizeof(g->id));
	g->pm = pm;
	vm_device_add(vm, &g->dev, &vmgenid_ops, "vmgenid");
	return g;
}
