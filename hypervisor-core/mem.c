/* mem.c - guest physical memory regions over memfds.
 *
 * Regions sit in a small array sorted by guest address; a lookup is a scan of a handful of entries,
 * with no lock. The array changes only before vCPUs run or while they are parked (mem.h).
 * Host addresses are placed so that they agree with guest addresses modulo 2 MiB: without that, no
 * accelerator and no kernel can map a huge page for the guest.
 *
 * Trust: gpa and length are the guest's. Every access is bounded by one region, with arithmetic
 * that cannot wrap. A template's fd comes from priv, but is checked all the same: a file that could
 * still shrink under a mapping would turn a guest's read into SIGBUS in this process.
 * Dirty bits are a byte array of atomics, a bit a page; once made they live as long as the region,
 * so that an I/O thread that marks a page late can never write into freed memory.
 */
#include "hypervisor-core/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "common/overflow.h"
#include "common/units.h"

#define MEM_HUGE (2 * MIB)

struct mem {
	unsigned n;
	atomic_bool tracking;
	void (*hook)(void *arg, gpa_t gpa, uint64_t len);
	void *hook_arg;
	struct mem_region r[MEM_REGIONS_MAX];
};

struct mem *mem_new(void)
{
	return calloc(1, sizeof(struct mem));
}

static void mem_region_release(struct mem_region *r)
{
	if (r->hva)
		munmap(r->hva, r->size_bytes);
	if (r->fd >= 0)
		close(r->fd);
	free((void *)r->dirty);
}

void mem_free(struct mem *m)
{
	if (!m)
		return;
	for (unsigned i = 0; i < m->n; i++)
		mem_region_release(&m->r[i]);
	free(m);
}

/* mem_make_fd() - a memfd of exactly @size_bytes that nobody can resize any more. */
static int mem_make_fd(const char *name, uint64_t size_bytes, uint32_t flags, struct err *e)
{
	unsigned mf = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	char text[32];

	if (flags & MEM_HUGETLB)
		mf |= MFD_HUGETLB;
	int fd = memfd_create(name, mf);
	if (fd < 0)
		return err_set(e, errno, "memory-unavailable",
			       "guest memory \"%s\": cannot make a memfd: %s", name,
			       strerror(errno));
	if (ftruncate(fd, (off_t)size_bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0) {
		int saved = errno;

		close(fd);
		return err_set(e, saved, "memory-unavailable",
			       "guest memory \"%s\": cannot size it to %s: %s", name,
			       units_format_size(size_bytes, text, sizeof(text)), strerror(saved));
	}
	return fd;
}

/* mem_check_fd() - is a handed-in fd long enough, and can it not shrink or change under us? */
static int mem_check_fd(const char *name, int fd, uint64_t fd_off, uint64_t size_bytes,
			uint32_t flags, struct err *e)
{
	struct stat st;
	uint64_t end;

	if (fstat(fd, &st) < 0)
		return err_set(e, errno, "memory-bad-fd", "guest memory \"%s\": bad descriptor: %s",
			       name, strerror(errno));
	if (!add_u64(fd_off, size_bytes, &end) || st.st_size < 0 || end > (uint64_t)st.st_size)
		return err_set(e, EINVAL, "memory-too-short",
			       "guest memory \"%s\": the file holds %" PRId64 " bytes, %" PRIu64
			       " at offset %" PRIu64 " are needed",
			       name, (int64_t)st.st_size, size_bytes, fd_off);
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return 0; /* a regular file: priv vouches for it */
	if (!(seals & F_SEAL_SHRINK))
		return err_set(
		    e, EINVAL, "memory-not-sealed",
		    "guest memory \"%s\": the memfd can still shrink (F_SEAL_SHRINK missing)",
		    name);
	if ((flags & MEM_PRIVATE) && !(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)))
		return err_set(
		    e, EINVAL, "memory-not-sealed",
		    "guest memory \"%s\": a template must be sealed against writes first", name);
	return 0;
}

/* mem_map() - map so that hva and gpa agree modulo the huge page size. */
static uint8_t *mem_map(gpa_t gpa, uint64_t size_bytes, int fd, uint64_t fd_off, uint32_t flags)
{
	/* Huge pages are reserved now: without, a pool that runs dry later is a SIGBUS. */
	int mf = flags & MEM_HUGETLB ? 0 : MAP_NORESERVE;
	uint64_t skew = gpa & (MEM_HUGE - 1);
	uint64_t room;

	if (fd < 0)
		mf |= MAP_PRIVATE | MAP_ANONYMOUS;
	else
		mf |= flags & MEM_PRIVATE ? MAP_PRIVATE : MAP_SHARED;
	if (size_bytes < MEM_HUGE || !add_u64(size_bytes, MEM_HUGE, &room)) {
		void *p = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, mf, fd, (off_t)fd_off);

		return p == MAP_FAILED ? NULL : p;
	}
	uint8_t *base =
	    mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return NULL;
	uintptr_t want = ALIGN_UP((uintptr_t)base - skew, (uintptr_t)MEM_HUGE) + skew;
	if (want < (uintptr_t)base)
		want += MEM_HUGE;
	uint8_t *at = (uint8_t *)want;
	void *p = mmap(at, size_bytes, PROT_READ | PROT_WRITE, mf | MAP_FIXED, fd, (off_t)fd_off);
	if (p == MAP_FAILED) {
		int saved = errno;

		munmap(base, room);
		errno = saved;
		return NULL;
	}
	if (at > base)
		munmap(base, (size_t)(at - base));
	if (base + room > at + size_bytes)
		munmap(at + size_bytes, (size_t)(base + room - (at + size_bytes)));
	return at;
}

/* mem_make() - a memfd of our own, mapped. Where the host has not enough reserved huge pages (or
 * none at all) ordinary ones serve, with transparent huge pages asked for: *flags then says so, and
 * the log why. */
static uint8_t *mem_make(const char *name, gpa_t gpa, uint64_t size_bytes, uint32_t *flags,
			 int *fd_out, struct err *e)
{
	char text[32];

	for (;;) {
		struct err why = { 0 };
		uint8_t *hva = NULL;
		int fd = mem_make_fd(name, size_bytes, *flags, &why);

		if (fd >= 0) {
			hva = mem_map(gpa, size_bytes, fd, 0, *flags);
			if (hva) {
				*fd_out = fd;
				return hva;
			}
			err_set(&why, errno, "memory-unavailable",
				"guest memory \"%s\": cannot map %s: %s", name,
				units_format_size(size_bytes, text, sizeof(text)), strerror(errno));
			close(fd);
		}
		if (!(*flags & MEM_HUGETLB)) {
			if (e)
				*e = why;
			return NULL;
		}
		log_warn("%s in reserved huge pages (vm.nr_hugepages); ordinary pages, with "
			 "transparent huge pages where the host has them, are used instead",
			 why.detail);
		*flags = (*flags & ~(uint32_t)MEM_HUGETLB) | MEM_THP;
	}
}

int mem_add(struct mem *m, const char *name, gpa_t gpa, uint64_t size_bytes, int fd,
	    uint64_t fd_off, uint32_t flags, struct err *e)
{
	uint64_t end, unit = flags & MEM_HUGETLB ? MEM_HUGE : MEM_PAGE;
	char text[32];
	bool made = false;

	if (!size_bytes || !IS_ALIGNED(size_bytes, unit) || !IS_ALIGNED(gpa, (uint64_t)MEM_PAGE) ||
	    !IS_ALIGNED(fd_off, (uint64_t)MEM_PAGE) || !add_u64(gpa, size_bytes, &end) ||
	    size_bytes > INT64_MAX)
		return err_set(e, EINVAL, "memory-bad-size",
			       "guest memory \"%s\": %" PRIu64 " bytes at 0x%" PRIx64
			       " is not a multiple of %" PRIu64 " KiB inside the address space",
			       name, size_bytes, gpa, (uint64_t)(unit / KIB));
	if (m->n == MEM_REGIONS_MAX)
		return err_set(e, ENOMEM, "memory-regions",
			       "guest memory \"%s\": more than %u regions", name, MEM_REGIONS_MAX);
	for (unsigned i = 0; i < m->n; i++)
		if (range_overlaps(gpa, size_bytes, m->r[i].gpa, m->r[i].size_bytes))
			return err_set(e, EEXIST, "memory-overlap",
				       "guest memory \"%s\" at 0x%" PRIx64
				       " overlaps the region at 0x%" PRIx64,
				       name, gpa, m->r[i].gpa);
	uint8_t *hva;
	if (fd < 0 && !(flags & MEM_PRIVATE)) {
		struct err why = { 0 };

		hva = mem_make(name, gpa, size_bytes, &flags, &fd, e ? e : &why);
		if (!hva)
			return e ? -e->num : -why.num;
		fd_off = 0;
		made = true;
	} else {
		int ret = fd >= 0 ? mem_check_fd(name, fd, fd_off, size_bytes, flags, e) : 0;

		if (ret < 0)
			return ret;
		flags &= ~(uint32_t)MEM_HUGETLB; /* the file decides, or there is none */
		hva = mem_map(gpa, size_bytes, fd, fd_off, flags);
		if (!hva)
			return err_set(e, errno, "memory-unavailable",
				       "guest memory \"%s\": cannot map %s: %s", name,
				       units_format_size(size_bytes, text, sizeof(text)),
				       strerror(errno));
	}
	/* Hints only: a kernel without them loses nothing but speed. Guest RAM stays out of our
	 * cores. */
	(void)madvise(hva, size_bytes, MADV_DONTDUMP);
	if (flags & MEM_THP)
		(void)madvise(hva, size_bytes, MADV_HUGEPAGE);

	uint8_t *bits = NULL;
	if (atomic_load(&m->tracking)) {
		bits = calloc((size_bytes / MEM_PAGE + 7) / 8, 1);
		if (!bits) {
			munmap(hva, size_bytes);
			if (made)
				close(fd);
			return err_set(e, ENOMEM, "memory-unavailable",
				       "guest memory \"%s\": no memory for its dirty bitmap", name);
		}
	}
	unsigned at = m->n;
	while (at > 0 && m->r[at - 1].gpa > gpa) {
		m->r[at] = m->r[at - 1];
		at--;
	}
	m->r[at] = (struct mem_region){
		.gpa = gpa,
		.size_bytes = size_bytes,
		.hva = hva,
		.fd = fd,
		.fd_off = fd_off,
		.flags = flags,
		.dirty = (_Atomic uint8_t *)bits,
		.slot = m->n, /* order of arrival: stable, however the array is sorted later */
	};
	m->n++;
	return 0;
}

unsigned mem_region_count(const struct mem *m)
{
	return m->n;
}

const struct mem_region *mem_region_get(const struct mem *m, unsigned i)
{
	return i < m->n ? &m->r[i] : NULL;
}

const struct mem_region *mem_region_find(const struct mem *m, gpa_t gpa)
{
	for (unsigned i = 0; i < m->n; i++) {
		const struct mem_region *r = &m->r[i];

		if (gpa - r->gpa < r->size_bytes) /* wraps to huge where gpa is below */
			return r;
	}
	return NULL;
}

void *mem_ptr(const struct mem *m, gpa_t gpa, uint64_t len)
{
	const struct mem_region *r = mem_region_find(m, gpa);

	if (!r || len > r->size_bytes - (gpa - r->gpa))
		return NULL;
	return r->hva + (gpa - r->gpa);
}

static void mem_region_mark(const struct mem_region *r, uint64_t off, uint64_t len)
{
	if (!r->dirty || !len)
		return;
	uint64_t last = (off + len - 1) / MEM_PAGE;

	for (uint64_t page = off / MEM_PAGE; page <= last; page++)
		atomic_fetch_or_explicit(&r->dirty[page / 8], (uint8_t)(1u << (page % 8)),
					 memory_order_release);
}

void *mem_ptr_write(struct mem *m, gpa_t gpa, uint64_t len)
{
	const struct mem_region *r = mem_region_find(m, gpa);

	if (!r || (r->flags & MEM_ROM) || len > r->size_bytes - (gpa - r->gpa))
		return NULL;
	if (m->hook)
		m->hook(m->hook_arg, gpa, len);
	if (atomic_load_explicit(&m->tracking, memory_order_acquire))
		mem_region_mark(r, gpa - r->gpa, len);
	return r->hva + (gpa - r->gpa);
}

void *mem_ptr_max(const struct mem *m, gpa_t gpa, uint64_t *len)
{
	const struct mem_region *r = mem_region_find(m, gpa);

	if (!r)
		return NULL;
	if (*len > r->size_bytes - (gpa - r->gpa))
		*len = r->size_bytes - (gpa - r->gpa);
	return r->hva + (gpa - r->gpa);
}

int mem_read(const struct mem *m, gpa_t gpa, void *buf, size_t len)
{
	uint8_t *to = buf;

	while (len) {
		uint64_t part = len;
		const void *p = mem_ptr_max(m, gpa, &part);

		if (!p)
			return -EFAULT;
		memcpy(to, p, part);
		to += part;
		len -= part;
		if (len && !add_u64(gpa, part, &gpa))
			return -EFAULT;
	}
	return 0;
}

static int mem_put(struct mem *m, gpa_t gpa, const void *buf, size_t len, bool rom_too)
{
	const uint8_t *from = buf;
	bool track = atomic_load_explicit(&m->tracking, memory_order_acquire);

	while (len) {
		const struct mem_region *r = mem_region_find(m, gpa);

		if (!r || ((r->flags & MEM_ROM) && !rom_too))
			return -EFAULT;
		uint64_t off = gpa - r->gpa;
		uint64_t part = MIN(len, r->size_bytes - off);
		memcpy(r->hva + off, from, part);
		if (m->hook)
			m->hook(m->hook_arg, gpa, part);
		/* marked after the copy: a fetch between the two would lose the write otherwise */
		if (track)
			mem_region_mark(r, off, part);
		from += part;
		len -= part;
		if (len && !add_u64(gpa, part, &gpa))
			return -EFAULT;
	}
	return 0;
}

int mem_write(struct mem *m, gpa_t gpa, const void *buf, size_t len)
{
	return mem_put(m, gpa, buf, len, false);
}

int mem_store(struct mem *m, gpa_t gpa, const void *buf, size_t len)
{
	return mem_put(m, gpa, buf, len, true);
}

uint64_t mem_ram_bytes(const struct mem *m)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < m->n; i++)
		if (!(m->r[i].flags & MEM_ROM))
			sum += m->r[i].size_bytes;
	return sum;
}

int mem_dirty_start(struct mem *m)
{
	for (unsigned i = 0; i < m->n; i++) {
		struct mem_region *r = &m->r[i];
		uint64_t bytes = (r->size_bytes / MEM_PAGE + 7) / 8;

		if (!r->dirty) {
			r->dirty = calloc(bytes, 1);
			if (!r->dirty)
				return -ENOMEM;
		} else {
			for (uint64_t b = 0; b < bytes; b++)
				atomic_store_explicit(&r->dirty[b], 0, memory_order_relaxed);
		}
	}
	atomic_store_explicit(&m->tracking, true, memory_order_release);
	return 0;
}

void mem_dirty_stop(struct mem *m)
{
	atomic_store(&m->tracking, false);
}

void mem_dirty_mark(struct mem *m, gpa_t gpa, uint64_t len)
{
	if (m->hook)
		m->hook(m->hook_arg, gpa, len);
	if (!atomic_load_explicit(&m->tracking, memory_order_acquire))
		return;
	while (len) {
		const struct mem_region *r = mem_region_find(m, gpa);

		if (!r)
			return;
		uint64_t part = MIN(len, r->size_bytes - (gpa - r->gpa));
		mem_region_mark(r, gpa - r->gpa, part);
		len -= part;
		if (len && !add_u64(gpa, part, &gpa))
			return;
	}
}

void mem_write_hook(struct mem *m, void (*fn)(void *arg, gpa_t gpa, uint64_t len), void *arg)
{
	m->hook_arg = arg;
	m->hook = fn;
}
