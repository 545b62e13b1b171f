/* mem.h - guest physical memory: the only gpa to host address translation there is.
 *
 * A map of few regions (RAM below 4 GiB, RAM above, ROM, option windows), each backed by a memfd
 * (or an anonymous private mapping of a sealed template). Lookups are lock-free for regions;
 * regions change only while no vCPU runs (build, load) or by whole-table swap.
 * Trust: gpa and length come from the guest; every access is checked against one region and never
 * crosses into another. What lies in guest RAM may change under the reader: copy once, then check.
 */
#ifndef CORE_MEM_H
#define CORE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

typedef uint64_t gpa_t;

#define MEM_PAGE	4096u
#define MEM_REGIONS_MAX 16u

enum mem_flags {
	MEM_RAM = 0,
	MEM_ROM = 1 << 0,     /* guest writes are dropped */
	MEM_PRIVATE = 1 << 1, /* MAP_PRIVATE over a sealed template */
	MEM_HUGETLB = 1 << 2,
	MEM_THP = 1 << 3,
};

struct mem_region {
	gpa_t gpa;
	uint64_t size_bytes; /* multiple of MEM_PAGE */
	uint8_t *hva;
	int fd; /* memfd, owned; -1 = anonymous */
	uint64_t fd_off;
	uint32_t flags;
	unsigned slot;		/* the accelerator's slot number */
	_Atomic uint8_t *dirty; /* a bit a page, set by device writes while tracking; or NULL */
};

struct mem;

struct mem *mem_new(void);
void mem_free(struct mem *m); /* unmaps, closes memfds */

/* mem_add() - map a region. @fd: -1 = make a memfd named @name; otherwise taken over on success.
 * MEM_HUGETLB (memfds made here): where the host has not the huge pages reserved, ordinary pages
 * with MEM_THP are used; the region's flags tell, the log says why.
 * Return: 0, -EEXIST overlap, -ENOMEM/-EINVAL with @e. */
int mem_add(struct mem *m, const char *name, gpa_t gpa, uint64_t size_bytes, int fd,
	    uint64_t fd_off, uint32_t flags, struct err *e);

unsigned mem_region_count(const struct mem *m);
const struct mem_region *mem_region_get(const struct mem *m, unsigned i);
const struct mem_region *mem_region_find(const struct mem *m, gpa_t gpa);

/* mem_ptr() - host address of [gpa, gpa+len), or NULL unless wholly inside one region.
 * mem_ptr_write(): same for RAM only (not ROM) and marks the range dirty.
 * mem_ptr_max(): host address of gpa, *len shortened to what is contiguous; NULL if none. */
void *mem_ptr(const struct mem *m, gpa_t gpa, uint64_t len);
void *mem_ptr_write(struct mem *m, gpa_t gpa, uint64_t len);
void *mem_ptr_max(const struct mem *m, gpa_t gpa, uint64_t *len);

/* mem_read(), mem_write() - copy across region borders. 0 or -EFAULT (nothing or a part copied).
 * mem_load()/mem_store(): as write, but ROM may be written too (loaders, reset). */
int mem_read(const struct mem *m, gpa_t gpa, void *buf, size_t len);
int mem_write(struct mem *m, gpa_t gpa, const void *buf, size_t len);
int mem_store(struct mem *m, gpa_t gpa, const void *buf, size_t len);

uint64_t mem_ram_bytes(const struct mem *m);

/* Dirty tracking of device writes (the accelerator tracks the vCPUs'). */
int mem_dirty_start(struct mem *m);
void mem_dirty_stop(struct mem *m);
void mem_dirty_mark(struct mem *m, gpa_t gpa, uint64_t len);

/* mem_write_hook() - tell @fn of every device write (whatever mem_dirty_mark() would be told),
 * tracking or not: an accelerator that caches decoded guest code needs it. Set before devices run;
 * NULL = none. */
void mem_write_hook(struct mem *m, void (*fn)(void *arg, gpa_t gpa, uint64_t len), void *arg);

#endif
