/* vm.c - making and taking apart one virtual machine; its device list; reset.
 *
 * Order of construction is fixed by cost (accel.h): vm_new() makes the accelerator's VM,
 * vm_add_ram() its memory slots, vm_make_vcpus() first the interrupt controllers, then the vCPUs.
 * Taking apart runs backwards: threads joined, devices last to first, vCPUs, accelerator, buses,
 * memory.
 * Threading: all of this runs on the main thread.
 */
#include "hypervisor-core/vm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "hypervisor-core/vm_impl.h"

#define VM_MMIO_LIMIT (UINT64_C(1) << 52) /* the architecture's widest physical address */

static int vm_init_locks(struct vm *vm)
{
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
	int ret = pthread_mutex_init(&vm->lock, &attr);
	pthread_mutexattr_destroy(&attr);
	if (ret)
		return -ret;
	pthread_mutex_init(&vm->run_lock, NULL);
	pthread_cond_init(&vm->run_cond, NULL);
	return 0;
}

static int vm_init_cpuid(struct vm *vm, const struct vm_config *cfg, struct err *e)
{
	struct cpuid_policy p = cfg->cpu;
	struct cpuid_table *supported;
	int ret;

	if (!vm->accel->cpuid_supported)
		return 0;
	if (!p.model[0])
		snprintf(p.model, sizeof(p.model), "host");
	if (!p.vcpus)
		p.vcpus = cfg->accel_cfg.vcpus ? cfg->accel_cfg.vcpus : 1;
	supported = calloc(1, sizeof(*supported));
	if (!supported)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for its CPUID table",
			       vm->name);
	ret = vm->accel->cpuid_supported(vm, supported, e);
	if (ret == 0)
		ret = cpuid_build(&p, supported, &vm->cpuid, e);
	free(supported);
	return ret;
}

struct vm *vm_new(struct loop *loop, const struct vm_config *cfg, struct err *e)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	if (!vm || vm_init_locks(vm) < 0) {
		free(vm);
		err_set(e, ENOMEM, "no-memory", "guest %s: no memory for its VM", cfg->name);
		return NULL;
	}
	snprintf(vm->name, sizeof(vm->name), "%s", cfg->name ? cfg->name : "guest");
	vm->loop = loop;
	vm->accel = cfg->accel;
	vm->accel_cfg = cfg->accel_cfg;
	vm->run_state = VM_BUILT;
	list_init(&vm->devices);
	vm->mem = mem_new();
	vm->pio = bus_new(vm, 0x10000);
	vm->mmio = bus_new(vm, VM_MMIO_LIMIT);
	if (!vm->mem || !vm->pio || !vm->mmio) {
		err_set(e, ENOMEM, "no-memory", "guest %s: no memory for its buses", vm->name);
		goto fail;
	}
	if (vm_run_init(vm, e) < 0 || vm_timers_init(vm, e) < 0)
		goto fail;
	if (vm->accel->vm_init(vm, &cfg->accel_cfg, e) < 0)
		goto fail;
	if (vm_init_cpuid(vm, cfg, e) < 0) {
		vm->accel->vm_fini(vm);
		goto fail;
	}
	return vm;
fail:
	vm_timers_fini(vm);
	vm_run_fini(vm);
	bus_free(vm->pio);
	bus_free(vm->mmio);
	mem_free(vm->mem);
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->run_lock);
	pthread_cond_destroy(&vm->run_cond);
	free(vm);
	return NULL;
}

static void vm_free_vcpus(struct vm *vm)
{
	for (unsigned i = vm->nvcpus; i-- > 0;) {
		vm->accel->vcpu_fini(vm->vcpus[i]);
		free(vm->vcpus[i]);
	}
	free(vm->vcpus);
	vm->vcpus = NULL;
	vm->nvcpus = 0;
}

void vm_free(struct vm *vm)
{
	if (!vm)
		return;
	vm_run_join(vm);
	vm_lock(vm);
	while (!list_empty(&vm->devices)) {
		struct device *d = container_of(vm->devices.prev, struct device, node);

		vm_device_del(d);
		if (d->ops->destroy)
			d->ops->destroy(d);
	}
	vm_unlock(vm);
	vm_free_vcpus(vm);
	vm->accel->vm_fini(vm);
	vm_timers_fini(vm);
	vm_run_fini(vm);
	bus_free(vm->pio);
	bus_free(vm->mmio);
	mem_free(vm->mem);
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->run_lock);
	pthread_cond_destroy(&vm->run_cond);
	free(vm);
}

int vm_add_ram(struct vm *vm, const char *name, gpa_t gpa, uint64_t size_bytes, int fd,
	       uint64_t fd_off, uint32_t flags, struct err *e)
{
	int ret = mem_add(vm->mem, name, gpa, size_bytes, fd, fd_off, flags, e);

	if (ret < 0)
		return ret;
	return vm->accel->map_ram(vm, mem_region_find(vm->mem, gpa), e);
}

int vm_make_vcpus(struct vm *vm, unsigned n, struct err *e)
{
	if (n == 0 || n > VM_VCPUS_MAX)
		return err_set(e, EINVAL, "vcpus-out-of-range",
			       "guest %s: %u vCPUs asked, 1 to %u are possible", vm->name, n,
			       VM_VCPUS_MAX);
	if (vm->vcpus)
		return err_set(e, EALREADY, "vcpus-made", "guest %s: its vCPUs are there already",
			       vm->name);
	vm->vcpus = calloc(n, sizeof(*vm->vcpus));
	if (!vm->vcpus)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory for %u vCPUs", vm->name,
			       n);
	int ret = vm->accel->irq_init ? vm->accel->irq_init(vm, e) : 0;
	while (ret == 0 && vm->nvcpus < n) {
		struct vcpu *v = calloc(1, sizeof(*v));

		if (!v) {
			ret = err_set(e, ENOMEM, "no-memory", "guest %s: no memory for vCPU %u",
				      vm->name, vm->nvcpus);
			break;
		}
		v->vm = vm;
		v->index = vm->nvcpus;
		ret = vm->accel->vcpu_init(v, e);
		if (ret < 0) {
			free(v);
			break;
		}
		vm->vcpus[vm->nvcpus++] = v;
	}
	if (ret < 0)
		vm_free_vcpus(vm);
	return ret;
}

static bool vm_is_parked(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	bool parked = vm->run_state == VM_BUILT || vm->run_state == VM_PAUSED;
	pthread_mutex_unlock(&vm->run_lock);
	return parked;
}

int vm_reset(struct vm *vm, struct err *e)
{
	struct x86_state *s;
	int ret = 0;

	if (!vm_is_parked(vm))
		return err_set(e, EBUSY, "guest-running", "guest %s: pause it before a reset",
			       vm->name);
	s = malloc(sizeof(*s));
	if (!s)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory to reset it", vm->name);
	vm_lock(vm);
	list_for_each (n, &vm->devices) {
		struct device *d = container_of(n, struct device, node);

		if (d->ops->reset)
			d->ops->reset(d);
	}
	vm_unlock(vm);
	for (unsigned i = 0; i < vm->nvcpus && ret == 0; i++) {
		x86_state_reset(s, i);
		ret = vm->accel->vcpu_set_state(vm->vcpus[i], s, e);
		err_clear(&vm->vcpus[i]->exit_err);
	}
	free(s);
	return ret;
}

void vm_device_add(struct vm *vm, struct device *d, const struct device_ops *ops, const char *id)
{
	uint32_t instance = 0;

	list_for_each (n, &vm->devices) {
		struct device *other = container_of(n, struct device, node);

		if (strcmp(other->ops->name, ops->name) == 0 && other->instance >= instance)
			instance = other->instance + 1;
	}
	d->ops = ops;
	d->vm = vm;
	d->instance = instance;
	snprintf(d->id, sizeof(d->id), "%s", id);
	list_add_tail(&vm->devices, &d->node);
}

void vm_device_del(struct device *d)
{
	list_del(&d->node);
}

struct device *vm_device_find(struct vm *vm, const char *id)
{
	list_for_each (n, &vm->devices) {
		struct device *d = container_of(n, struct device, node);

		if (strcmp(d->id, id) == 0)
			return d;
	}
	return NULL;
}
