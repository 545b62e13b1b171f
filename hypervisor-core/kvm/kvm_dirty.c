/* kvm_dirty.c - which pages the vCPUs wrote: dirty ring where it was asked for, else the dirty log.
 *
 * The ring is per vCPU and is emptied either by a fetch or by the vCPU that found it full, into one
 * bitmap a slot, from which fetch takes. An entry is read after its DIRTY flag (acquire), and given
 * back by its RESET flag (release); KVM_RESET_DIRTY_RINGS then write-protects those pages again.
 * Spec: Documentation/virt/kvm/api.rst, 8.29 KVM_CAP_DIRTY_LOG_RING.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "hypervisor-core/kvm/kvm.h"

/* kvm_ring_drain() - dirty_lock held. Return: entries taken. */
static unsigned kvm_ring_drain(struct kvm_vm *kv, struct kvm_vcpu *kc)
{
	uint32_t n = kv->ring_bytes / (uint32_t)sizeof(struct kvm_dirty_gfn);
	unsigned taken = 0;

	while (kc->ring && taken < n) {
		struct kvm_dirty_gfn *g = &kc->ring[kc->ring_next % n];

		if (!(__atomic_load_n(&g->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
			break;
		unsigned slot = g->slot & 0xffff;
		uint64_t page = g->offset;
		if (slot < MEM_REGIONS_MAX && kv->harvest[slot] && page < kv->harvest_pages[slot])
			kv->harvest[slot][page / 64] |= UINT64_C(1) << (page % 64);
		__atomic_store_n(&g->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		kc->ring_next++;
		taken++;
	}
	return taken;
}

static void kvm_rings_drain(struct vm *vm)
{
	struct kvm_vm *kv = kvm_vm_of(vm);
	unsigned taken = 0;

	for (unsigned i = 0; i < vm->nvcpus; i++)
		taken += kvm_ring_drain(kv, kvm_vcpu_of(vm->vcpus[i]));
	if (taken)
		(void)ioctl(kv->fd, KVM_RESET_DIRTY_RINGS, 0);
}

void kvm_dirty_ring_full(struct vm *vm)
{
	struct kvm_vm *kv = kvm_vm_of(vm);

	pthread_mutex_lock(&kv->dirty_lock);
	kvm_rings_drain(vm);
	pthread_mutex_unlock(&kv->dirty_lock);
}

static uint64_t kvm_bitmap_words(const struct mem_region *r)
{
	return (r->size_bytes / MEM_PAGE + 63) / 64;
}

int kvm_dirty_start(struct vm *vm)
{
	struct kvm_vm *kv = kvm_vm_of(vm);
	int ret = 0;

	pthread_mutex_lock(&kv->dirty_lock);
	for (unsigned i = 0; ret == 0 && i < mem_region_count(vm->mem); i++) {
		const struct mem_region *r = mem_region_get(vm->mem, i);

		if (r->flags & MEM_ROM)
			continue;
		if (kv->ring_bytes && !kv->harvest[r->slot]) {
			kv->harvest[r->slot] = calloc(kvm_bitmap_words(r), 8);
			kv->harvest_pages[r->slot] = r->size_bytes / MEM_PAGE;
			if (!kv->harvest[r->slot])
				ret = -ENOMEM;
		}
		if (ret == 0)
			ret = kvm_slot_set(vm, r, true, false);
	}
	kv->tracking = ret == 0;
	pthread_mutex_unlock(&kv->dirty_lock);
	return ret;
}

void kvm_dirty_stop(struct vm *vm)
{
	struct kvm_vm *kv = kvm_vm_of(vm);

	pthread_mutex_lock(&kv->dirty_lock);
	for (unsigned i = 0; i < mem_region_count(vm->mem); i++)
		if (!(mem_region_get(vm->mem, i)->flags & MEM_ROM))
			(void)kvm_slot_set(vm, mem_region_get(vm->mem, i), false, false);
	kvm_rings_drain(vm);
	kvm_dirty_fini(vm);
	kv->tracking = false;
	pthread_mutex_unlock(&kv->dirty_lock);
}

void kvm_dirty_fini(struct vm *vm)
{
	struct kvm_vm *kv = kvm_vm_of(vm);

	for (unsigned i = 0; i < MEM_REGIONS_MAX; i++) {
		free(kv->harvest[i]);
		kv->harvest[i] = NULL;
	}
}

static void kvm_bitmap_or(uint8_t *bitmap, const uint64_t *words, uint64_t pages)
{
	for (uint64_t b = 0; b < (pages + 7) / 8; b++)
		bitmap[b] |= (uint8_t)(words[b / 8] >> (b % 8 * 8));
}

int kvm_dirty_fetch(struct vm *vm, const struct mem_region *r, uint8_t *bitmap)
{
	struct kvm_vm *kv = kvm_vm_of(vm);
	uint64_t pages = r->size_bytes / MEM_PAGE, words = kvm_bitmap_words(r);
	int ret = 0;

	if (r->flags & MEM_ROM)
		return 0;
	if (kv->ring_bytes) {
		pthread_mutex_lock(&kv->dirty_lock);
		kvm_rings_drain(vm);
		if (kv->harvest[r->slot]) {
			kvm_bitmap_or(bitmap, kv->harvest[r->slot], pages);
			memset(kv->harvest[r->slot], 0, words * 8);
		} else {
			ret = -EINVAL;
		}
		pthread_mutex_unlock(&kv->dirty_lock);
		return ret;
	}
	uint64_t *w = calloc(words, 8);
	if (!w)
		return -ENOMEM;
	struct kvm_dirty_log log = { .slot = r->slot, .dirty_bitmap = w };
	if (ioctl(kv->fd, KVM_GET_DIRTY_LOG, &log) < 0)
		ret = -errno;
	else
		kvm_bitmap_or(bitmap, w, pages);
	free(w);
	return ret;
}
