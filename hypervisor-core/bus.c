/* bus.c - port I/O and MMIO dispatch, and doorbells (bus.h).
 *
 * Ranges and doorbells are two sorted arrays behind one reader lock that prefers writers, so that
 * guests hammering a port cannot starve a BAR that moves. The lock is held for the lookup only,
 * never while a device runs: a config write may well call bus_del() and bus_add() from inside its
 * handler.
 * A device behind the machine lock is therefore looked up, locked, and, if the bus changed in
 * between (a generation count tells), looked up again. Handlers that run BUS_UNLOCKED may still be
 * finishing when bus_del() returns; such a device is freed only while the vCPUs are parked.
 *
 * Trust: address, size and value are the guest's. What crosses the end of a range is split, so that
 * a handler sees only offsets inside its own range.
 */
#include "hypervisor-core/bus.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/overflow.h"
#include "hypervisor-core/vm.h"

struct bus_range {
	uint64_t base, len;
	const struct bus_ops *ops;
	void *dev;
	unsigned flags;
	const char *name;
};

struct bus_doorbell {
	uint64_t addr, match;
	unsigned size;
	bool use_match, in_kernel;
	int fd;
};

struct bus {
	struct vm *vm;
	uint64_t limit;
	pthread_rwlock_t lock;
	_Atomic uint64_t generation;
	_Atomic uint64_t unclaimed;
	struct bus_range *range;
	unsigned nranges, cap_ranges;
	struct bus_doorbell *bell;
	unsigned nbells, cap_bells;
};

struct bus *bus_new(struct vm *vm, uint64_t limit)
{
	struct bus *b = calloc(1, sizeof(*b));
	pthread_rwlockattr_t attr;

	if (!b)
		return NULL;
	b->vm = vm;
	b->limit = limit;
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&b->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	return b;
}

void bus_free(struct bus *b)
{
	if (!b)
		return;
	pthread_rwlock_destroy(&b->lock);
	free(b->range);
	free(b->bell);
	free(b);
}

/* bus_range_pos() - index of the first range that ends after @addr; nranges if none. Lock held. */
static unsigned bus_range_pos(const struct bus *b, uint64_t addr)
{
	unsigned lo = 0, hi = b->nranges;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;
		const struct bus_range *r = &b->range[mid];

		if (addr >= r->base && addr - r->base >= r->len)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* bus_grow() - room for one more of @size bytes each in *@array. */
static int bus_grow(void **array, unsigned n, unsigned *cap, size_t size)
{
	if (n < *cap)
		return 0;
	unsigned want = *cap ? *cap * 2 : 8;
	void *p = reallocarray(*array, want, size);
	if (!p)
		return -ENOMEM;
	*array = p;
	*cap = want;
	return 0;
}

int bus_add(struct bus *b, uint64_t base, uint64_t len, const struct bus_ops *ops, void *dev,
	    const char *name, unsigned flags)
{
	int ret = 0;

	if (!len || !range_within(base, len, b->limit))
		return -EINVAL;
	pthread_rwlock_wrlock(&b->lock);
	unsigned at = bus_range_pos(b, base);
	if (at < b->nranges && b->range[at].base < base + len)
		ret = -EEXIST;
	if (!ret)
		ret = bus_grow((void **)&b->range, b->nranges, &b->cap_ranges, sizeof(*b->range));
	if (!ret) {
		memmove(&b->range[at + 1], &b->range[at], (b->nranges - at) * sizeof(*b->range));
		b->range[at] = (struct bus_range){ base, len, ops, dev, flags, name };
		b->nranges++;
		atomic_fetch_add(&b->generation, 1);
	}
	pthread_rwlock_unlock(&b->lock);
	return ret;
}

void bus_del(struct bus *b, uint64_t base)
{
	pthread_rwlock_wrlock(&b->lock);
	unsigned at = bus_range_pos(b, base);
	if (at < b->nranges && b->range[at].base == base) {
		b->nranges--;
		memmove(&b->range[at], &b->range[at + 1], (b->nranges - at) * sizeof(*b->range));
		atomic_fetch_add(&b->generation, 1);
	}
	pthread_rwlock_unlock(&b->lock);
}

/* bus_bell_pos() - index of the first doorbell at @addr or above. Lock held. */
static unsigned bus_bell_pos(const struct bus *b, uint64_t addr)
{
	unsigned lo = 0, hi = b->nbells;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (b->bell[mid].addr < addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool bus_bell_same(const struct bus_doorbell *d, uint64_t addr, unsigned size,
			  bool use_match, uint64_t match)
{
	return d->addr == addr && d->size == size && d->use_match == use_match &&
	       (!use_match || d->match == match);
}

static int bus_bell_kernel(struct bus *b, const struct bus_doorbell *d, bool assign)
{
	const struct accel_ops *a = b->vm ? b->vm->accel : NULL;

	if (!a || !(a->caps & ACCEL_HAS_DOORBELL) || !a->doorbell)
		return -ENOTSUP;
	return a->doorbell(b->vm, b == b->vm->pio, d->addr, d->size, d->use_match, d->match, d->fd,
			   assign);
}

int bus_doorbell_add(struct bus *b, uint64_t addr, unsigned size, bool use_match, uint64_t match,
		     int fd)
{
	struct bus_doorbell d = { addr, match, size, use_match, false, fd };
	int ret = 0;

	if (fd < 0 || (size != 0 && size != 1 && size != 2 && size != 4 && size != 8) ||
	    !range_within(addr, size ? size : 1, b->limit) || (use_match && !size))
		return -EINVAL;
	pthread_rwlock_wrlock(&b->lock);
	unsigned at = bus_bell_pos(b, addr);
	for (unsigned i = at; i < b->nbells && b->bell[i].addr == addr; i++)
		if (bus_bell_same(&b->bell[i], addr, size, use_match, match))
			ret = -EEXIST;
	if (!ret)
		ret = bus_grow((void **)&b->bell, b->nbells, &b->cap_bells, sizeof(*b->bell));
	if (!ret) {
		/* Where the kernel refuses (its bus is full, say), the write still comes to us. */
		d.in_kernel = bus_bell_kernel(b, &d, true) == 0;
		memmove(&b->bell[at + 1], &b->bell[at], (b->nbells - at) * sizeof(*b->bell));
		b->bell[at] = d;
		b->nbells++;
	}
	pthread_rwlock_unlock(&b->lock);
	return ret;
}

void bus_doorbell_del(struct bus *b, uint64_t addr, unsigned size, bool use_match, uint64_t match,
		      int fd)
{
	pthread_rwlock_wrlock(&b->lock);
	for (unsigned i = bus_bell_pos(b, addr); i < b->nbells && b->bell[i].addr == addr; i++) {
		if (b->bell[i].fd != fd ||
		    !bus_bell_same(&b->bell[i], addr, size, use_match, match))
			continue;
		if (b->bell[i].in_kernel)
			bus_bell_kernel(b, &b->bell[i], false);
		b->nbells--;
		memmove(&b->bell[i], &b->bell[i + 1], (b->nbells - i) * sizeof(*b->bell));
		break;
	}
	pthread_rwlock_unlock(&b->lock);
}

/* bus_ring() - signal the doorbell that this write hits, if any. Lock held for reading. */
static bool bus_ring(struct bus *b, uint64_t addr, unsigned size, uint64_t val)
{
	uint64_t mask = size == 8 ? UINT64_MAX : (UINT64_C(1) << (size * 8)) - 1;

	for (unsigned i = bus_bell_pos(b, addr); i < b->nbells && b->bell[i].addr == addr; i++) {
		const struct bus_doorbell *d = &b->bell[i];
		uint64_t one = 1;

		if ((d->size && d->size != size) ||
		    (d->use_match && (val & mask) != (d->match & mask)))
			continue;
		/* A full counter (EAGAIN) already wakes its reader: nothing is lost. */
		if (write(d->fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
			return false;
		return true;
	}
	return false;
}

static bool bus_lookup(struct bus *b, uint64_t addr, struct bus_range *out, uint64_t *generation)
{
	unsigned at = bus_range_pos(b, addr);

	*generation = atomic_load_explicit(&b->generation, memory_order_relaxed);
	if (at == b->nranges || addr < b->range[at].base)
		return false;
	*out = b->range[at];
	return true;
}

/* bus_enter() - find who answers at @addr and take the machine lock where it wants that.
 * Return: false where nobody does (no lock held then). */
static bool bus_enter(struct bus *b, uint64_t addr, struct bus_range *r)
{
	uint64_t generation;

	pthread_rwlock_rdlock(&b->lock);
	bool found = bus_lookup(b, addr, r, &generation);
	pthread_rwlock_unlock(&b->lock);
	if (!found || (r->flags & BUS_UNLOCKED))
		return found;
	vm_lock(b->vm);
	if (atomic_load(&b->generation) == generation)
		return true;
	pthread_rwlock_rdlock(&b->lock);
	found = bus_lookup(b, addr, r, &generation);
	pthread_rwlock_unlock(&b->lock);
	if (!found || (r->flags & BUS_UNLOCKED))
		vm_unlock(b->vm);
	return found;
}

static void bus_leave(struct bus *b, const struct bus_range *r)
{
	if (!(r->flags & BUS_UNLOCKED))
		vm_unlock(b->vm);
}

/* bus_part() - how many of @size bytes at @addr go to @r in one access: a power of two. */
static unsigned bus_part(const struct bus_range *r, uint64_t addr, unsigned size)
{
	uint64_t left = r->len - (addr - r->base);
	unsigned part = size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;

	while (part > left)
		part /= 2;
	return part;
}

static uint64_t bus_ones(unsigned size)
{
	return size >= 8 ? UINT64_MAX : (UINT64_C(1) << (size * 8)) - 1;
}

uint64_t bus_read(struct bus *b, uint64_t addr, unsigned size)
{
	struct bus_range r;
	uint64_t val = 0;
	unsigned done = 0;

	while (done < size) {
		unsigned left = size - done, part;
		uint64_t got;

		if (bus_enter(b, addr + done, &r)) {
			part = bus_part(&r, addr + done, left);
			got = r.ops->read ? r.ops->read(r.dev, addr + done - r.base, part)
					  : UINT64_MAX;
			bus_leave(b, &r);
		} else {
			atomic_fetch_add_explicit(&b->unclaimed, 1, memory_order_relaxed);
			if (!done)
				return bus_ones(size);
			part = 1;
			got = UINT64_MAX;
		}
		val |= (got & bus_ones(part)) << (done * 8);
		done += part;
	}
	return val;
}

void bus_write(struct bus *b, uint64_t addr, unsigned size, uint64_t val)
{
	struct bus_range r;
	unsigned done = 0;

	if (__atomic_load_n(&b->nbells, __ATOMIC_RELAXED)) {
		pthread_rwlock_rdlock(&b->lock);
		bool rung = bus_ring(b, addr, size, val);
		pthread_rwlock_unlock(&b->lock);
		if (rung)
			return;
	}
	while (done < size) {
		unsigned left = size - done, part = 1;

		if (bus_enter(b, addr + done, &r)) {
			part = bus_part(&r, addr + done, left);
			if (r.ops->write)
				r.ops->write(r.dev, addr + done - r.base, part,
					     (val >> (done * 8)) & bus_ones(part));
			bus_leave(b, &r);
		} else {
			atomic_fetch_add_explicit(&b->unclaimed, 1, memory_order_relaxed);
			if (!done)
				return;
		}
		done += part;
	}
}

uint64_t bus_unclaimed_count(const struct bus *b)
{
	return atomic_load_explicit(&((struct bus *)b)->unclaimed, memory_order_relaxed);
}
