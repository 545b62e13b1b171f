/* kvm_irq.c - messages, GSI routes, irqfds, doorbells.
 *
 * KVM replaces its routing table as a whole and waits for readers each time, so changes are
 * gathered and handed over when they first matter: before an irqfd is bound, before a message is
 * sent, before any vCPU enters the guest. A driver that programs many vectors in one exit costs one
 * update then.
 * IOAPIC pins are routed only while level-triggered: KVM uses those entries for nothing but telling
 * us of EOIs (KVM_EXIT_IOAPIC_EOI), delivery itself is kvm_msi().
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "hypervisor-core/kvm/kvm.h"

#define KVM_ROUTES_MAX 4096u

static void kvm_msi_split(uint64_t addr, uint32_t *lo, uint32_t *hi)
{
	*lo = (uint32_t)addr;
	*hi = (uint32_t)(addr >> 32);
}

/* kvm_routes_push() - route_lock held. */
static int kvm_routes_push(struct kvm_vm *kv)
{
	struct kvm_irq_routing *t = calloc(1, sizeof(*t) + kv->nroutes * sizeof(t->entries[0]));
	int ret = 0;

	if (!t)
		return -ENOMEM;
	for (unsigned gsi = 0; gsi < kv->nroutes; gsi++) {
		const struct kvm_route *r = &kv->route[gsi];
		struct kvm_irq_routing_entry *k = &t->entries[t->nr];

		if (!r->used)
			continue;
		k->gsi = gsi;
		k->type = KVM_IRQ_ROUTING_MSI;
		kvm_msi_split(r->addr, &k->u.msi.address_lo, &k->u.msi.address_hi);
		k->u.msi.data = r->data;
		t->nr++;
	}
	if (ioctl(kv->fd, KVM_SET_GSI_ROUTING, t) < 0)
		ret = -errno;
	free(t);
	return ret;
}

int kvm_routes_flush(struct vm *vm)
{
	struct kvm_vm *kv = kvm_vm_of(vm);
	int ret = 0;

	if (!atomic_load_explicit(&kv->routes_changed, memory_order_acquire))
		return 0;
	pthread_mutex_lock(&kv->route_lock);
	if (atomic_load(&kv->routes_changed)) {
		ret = kvm_routes_push(kv);
		if (ret == 0)
			atomic_store(&kv->routes_changed, false);
	}
	pthread_mutex_unlock(&kv->route_lock);
	return ret;
}

int kvm_msi(struct vm *vm, uint64_t addr, uint32_t data)
{
	struct kvm_msi m = { .data = data };
	int ret = kvm_routes_flush(vm);

	if (ret < 0)
		return ret;
	kvm_msi_split(addr, &m.address_lo, &m.address_hi);
	/* 0 = the guest blocked it, which is the guest's business */
	return ioctl(kvm_vm_of(vm)->fd, KVM_SIGNAL_MSI, &m) < 0 ? -errno : 0;
}

static int kvm_routes_grow(struct kvm_vm *kv, unsigned n)
{
	if (n <= kv->nroutes)
		return 0;
	if (n > KVM_ROUTES_MAX)
		return -ENOSPC;
	struct kvm_route *r = reallocarray(kv->route, n, sizeof(*r));
	if (!r)
		return -ENOMEM;
	memset(r + kv->nroutes, 0, (n - kv->nroutes) * sizeof(*r));
	kv->route = r;
	kv->nroutes = n;
	return 0;
}

/* kvm_gsi_alloc() - a free GSI above the IOAPIC's pins. */
static int kvm_gsi_alloc(struct kvm_vm *kv)
{
	unsigned gsi = KVM_IOAPIC_PINS;

	while (gsi < kv->nroutes && kv->route[gsi].used)
		gsi++;
	int ret = gsi < kv->nroutes
		      ? 0
		      : kvm_routes_grow(kv, gsi + 16 < KVM_ROUTES_MAX ? gsi + 16 : gsi + 1);
	return ret < 0 ? ret : (int)gsi;
}

int kvm_msi_route(struct vm *vm, int *gsi, uint64_t addr, uint32_t data)
{
	struct kvm_vm *kv = kvm_vm_of(vm);
	int ret = 0;

	pthread_mutex_lock(&kv->route_lock);
	if (*gsi < 0)
		ret = kvm_gsi_alloc(kv);
	else
		ret = (unsigned)*gsi < kv->nroutes ? *gsi : -EINVAL;
	if (ret >= 0) {
		kv->route[ret] = (struct kvm_route){ true, addr, data };
		*gsi = ret;
		atomic_store_explicit(&kv->routes_changed, true, memory_order_release);
		ret = 0;
	}
	pthread_mutex_unlock(&kv->route_lock);
	return ret;
}

void kvm_msi_unroute(struct vm *vm, int gsi)
{
	struct kvm_vm *kv = kvm_vm_of(vm);

	pthread_mutex_lock(&kv->route_lock);
	/* Nothing signals it any more: KVM may keep the entry until the next change. */
	if (gsi >= (int)KVM_IOAPIC_PINS && (unsigned)gsi < kv->nroutes)
		kv->route[gsi].used = false;
	pthread_mutex_unlock(&kv->route_lock);
}

void kvm_ioapic_route(struct vm *vm, unsigned pin, uint64_t addr, uint32_t data, bool level)
{
	struct kvm_vm *kv = kvm_vm_of(vm);

	if (pin >= KVM_IOAPIC_PINS)
		return;
	pthread_mutex_lock(&kv->route_lock);
	if (kvm_routes_grow(kv, KVM_IOAPIC_PINS) == 0) {
		struct kvm_route want = { level && (addr || data), addr,
					  data | (level ? 0x8000u : 0) };
		struct kvm_route *r = &kv->route[pin];

		if (want.used != r->used ||
		    (want.used && (want.addr != r->addr || want.data != r->data))) {
			*r = want;
			atomic_store_explicit(&kv->routes_changed, true, memory_order_release);
		}
	}
	pthread_mutex_unlock(&kv->route_lock);
}

int kvm_irqfd(struct vm *vm, int fd, int gsi, bool assign)
{
	struct kvm_irqfd k = {
		.fd = (uint32_t)fd,
		.gsi = (uint32_t)gsi,
		.flags = assign ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
	};
	int ret = assign ? kvm_routes_flush(vm) : 0;

	if (ret < 0)
		return ret;
	return ioctl(kvm_vm_of(vm)->fd, KVM_IRQFD, &k) < 0 ? -errno : 0;
}

int kvm_doorbell(struct vm *vm, bool pio, uint64_t addr, unsigned size, bool use_match,
		 uint64_t match, int fd, bool assign)
{
	struct kvm_ioeventfd k = {
		.datamatch = match,
		.addr = addr,
		.len = size,
		.fd = fd,
		.flags = (use_match ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
			 (pio ? KVM_IOEVENTFD_FLAG_PIO : 0) |
			 (assign ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
	};

	return ioctl(kvm_vm_of(vm)->fd, KVM_IOEVENTFD, &k) < 0 ? -errno : 0;
}
