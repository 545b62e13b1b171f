/* bus.h - port I/O and MMIO dispatch, and doorbells.
 *
 * Two buses a VM: vm->pio (16-bit) and vm->mmio. Ranges do not overlap; PCI BARs move by
 * bus_del() + bus_add(). Lookup is safe against concurrent change (reader lock).
 * Locking: ops are called with the machine lock (vm_lock) held, unless the range says BUS_UNLOCKED.
 * Trust: offsets are inside the range; size is 1, 2, 4 or 8 and never crosses the range's end.
 * Reads of nothing give all ones, writes to nothing vanish; both are counted for `info`.
 */
#ifndef CORE_BUS_H
#define CORE_BUS_H

#include <stdbool.h>
#include <stdint.h>

struct vm;
struct bus;

struct bus_ops {
	uint64_t (*read)(void *dev, uint64_t off, unsigned size);
	void (*write)(void *dev, uint64_t off, unsigned size, uint64_t val);
	/* optional, for machines with a cycle clock */
	void (*tick)(void *dev, uint64_t cycles);
};

enum { BUS_UNLOCKED = 1 };

struct bus *bus_new(struct vm *vm, uint64_t limit);
void bus_free(struct bus *b);
int bus_add(struct bus *b, uint64_t base, uint64_t len, const struct bus_ops *ops, void *dev,
	    const char *name, unsigned flags); /* 0, -EEXIST overlap, -EINVAL, -ENOMEM */
void bus_del(struct bus *b, uint64_t base); /* returns when no other thread is inside the lookup; a
						* BUS_UNLOCKED handler may still be finishing: free
						* its device only while the vCPUs are parked */

/* Called by the accelerators. @count repeats (REP INS/OUTS) move *data on by size each time. */
uint64_t bus_read(struct bus *b, uint64_t addr, unsigned size);
void bus_write(struct bus *b, uint64_t addr, unsigned size, uint64_t val);

/* bus_doorbell_add() - a write of @size (0 = any) at @addr, with value @match where @use_match,
 * signals eventfd @fd (not owned) and goes no further: in the kernel (ioeventfd) where the
 * accelerator can, in bus_write() otherwise. Return 0 or -errno. */
int bus_doorbell_add(struct bus *b, uint64_t addr, unsigned size, bool use_match, uint64_t match,
		     int fd);
void bus_doorbell_del(struct bus *b, uint64_t addr, unsigned size, bool use_match, uint64_t match,
		      int fd);

uint64_t bus_unclaimed_count(const struct bus *b);

#endif
