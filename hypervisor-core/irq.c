/* irq.c - messages and MSI-X vectors (irq.h).
 *
 * A vector owns an eventfd. Where the accelerator takes irqfds, the fd is bound to a route and
 * firing is one write(2); elsewhere firing hands address and data to the accelerator.
 * Threading: set and clear come from vCPU threads (guest writes its MSI-X table), fire from any I/O
 * thread. A vector's own lock keeps a fire from writing into a descriptor that a clear just closed
 * and somebody else reopened.
 */
#include "hypervisor-core/irq.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "hypervisor-core/vm.h"

int vm_msi(struct vm *vm, uint64_t addr, uint32_t data)
{
	return vm->accel->msi ? vm->accel->msi(vm, addr, data) : -ENOTSUP;
}

static void msi_vector_lock(struct msi_vector *v)
{
	while (atomic_exchange_explicit(&v->lock, 1, memory_order_acquire))
		sched_yield();
}

static void msi_vector_unlock(struct msi_vector *v)
{
	atomic_store_explicit(&v->lock, 0, memory_order_release);
}

static bool msi_vector_by_irqfd(const struct vm *vm)
{
	return (vm->accel->caps & ACCEL_HAS_IRQFD) && vm->accel->irqfd && vm->accel->msi_route;
}

static void msi_vector_off(struct msi_vector *v)
{
	if (!v->enabled)
		return;
	v->enabled = false;
	if (v->gsi >= 0) {
		v->vm->accel->irqfd(v->vm, v->fd, v->gsi, false);
		v->vm->accel->msi_unroute(v->vm, v->gsi);
	}
	close(v->fd);
	v->fd = -1;
	v->gsi = -1;
}

int msi_vector_set(struct msi_vector *v, struct vm *vm, uint64_t addr, uint32_t data)
{
	int ret = 0;

	msi_vector_lock(v);
	if (v->enabled) {
		if (v->gsi >= 0 && (v->addr != addr || v->data != data))
			ret = vm->accel->msi_route(vm, &v->gsi, addr, data);
		if (!ret) {
			v->addr = addr;
			v->data = data;
		}
		goto out;
	}
	v->vm = vm;
	v->gsi = -1;
	v->addr = addr;
	v->data = data;
	v->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->fd < 0) {
		ret = -errno;
		goto out;
	}
	if (msi_vector_by_irqfd(vm)) {
		ret = vm->accel->msi_route(vm, &v->gsi, addr, data);
		if (ret == 0) {
			ret = vm->accel->irqfd(vm, v->fd, v->gsi, true);
			if (ret < 0)
				vm->accel->msi_unroute(vm, v->gsi);
		}
		if (ret < 0) {
			close(v->fd);
			v->fd = -1;
			v->gsi = -1;
			goto out;
		}
	}
	v->enabled = true;
out:
	msi_vector_unlock(v);
	return ret;
}

void msi_vector_clear(struct msi_vector *v)
{
	msi_vector_lock(v);
	msi_vector_off(v);
	msi_vector_unlock(v);
}

void msi_fire(struct msi_vector *v)
{
	uint64_t one = 1;

	msi_vector_lock(v);
	if (v->enabled) {
		/* EAGAIN means that the counter is full, so the interrupt is pending already. */
		if (v->gsi < 0 || (write(v->fd, &one, sizeof(one)) < 0 && errno != EAGAIN))
			vm_msi(v->vm, v->addr, v->data);
	}
	msi_vector_unlock(v);
}
