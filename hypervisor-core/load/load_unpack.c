/* load_unpack.c - a bzImage's kernel, unpacked here instead of by the stub in the guest.
 *
 * The stub unpacks at the guest's first steps, where each new page is a fault of nested paging (and
 * on the software CPU each instruction costs many); a library on the host does it several times
 * faster. What comes out is an ELF file, and behind it the kernel's relocations. The one is placed
 * as it comes, its pages of zeroes left out; the others are applied for a random virtual address as
 * the stub would (KASLR), and the kernel is told so.
 * Whatever is not just as expected - another compression, sizes that do not fit, relocations of an
 * unknown layout - is left to the stub, which knows its own kernel: no guest fails to boot, and
 * none loses KASLR, by our doing.
 * Trust: the file is hostile. The sizes that it claims are bounded before anything is taken, the
 * decompressors get exact buffers, each part must lie in RAM above 1 MiB, each relocation must hit
 * what was placed.
 * Memory: packed bytes, a window of what is unpacked (all of it for zstd), and what lies behind the
 * loaded parts, in anonymous maps that are returned at the end.
 * Sources: Linux Documentation/arch/x86/boot.rst (payload_offset, kernel_alignment),
 * arch/x86/boot/compressed/misc.c and kaslr.c, lib/decompress_unlz4.c.
 */
#include <elf.h>
#include <fcntl.h>
#include <lz4.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "common/overflow.h"
#include "common/units.h"
#include "hypervisor-core/load/load_impl.h"

#define UNPACK_IN_MAX	    (128 * MIB)
#define UNPACK_OUT_MAX	    (512 * MIB)
#define UNPACK_REST_MAX	    (64 * MIB)
#define UNPACK_WINDOW	    (8 * MIB)  /* an LZ4 legacy block; a piece of the others */
#define UNPACK_HOLE	    (64 * KIB) /* zeroes from here on are left out, not written */
#define LZ4_LEGACY_MAGIC    0x184c2102u
#define KERNEL_MAP	    0xffffffff80000000ull /* __START_KERNEL_map */
#define KERNEL_IMAGE_SIZE   GIB			  /* room for it there, with KASLR */
#define KASLR_ALIGN_DEFAULT (2 * MIB)

struct unpack {
	struct load_job *j;
	uint64_t size, at; /* of the unpacked bytes: all, and seen so far */
	Elf64_Ehdr h;
	Elf64_Phdr part[LOAD_PHDRS_MAX];
	unsigned nparts;
	uint64_t rest_from; /* end of the loaded parts in the file; what follows is kept in @rest */
	uint8_t *rest;
};

static uint8_t *unpack_map(uint64_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void unpack_unmap(uint8_t *p, uint64_t size)
{
	if (p)
		munmap(p, size);
}

/* ---- placing what comes out ---- */

/* unpack_head() - ELF header and program headers, whole in the first piece; the parts are checked
 * before anything is placed. */
static bool unpack_head(struct unpack *u, const uint8_t *p, size_t n)
{
	struct load_job *j = u->j;
	uint64_t end;

	if (!load_is_elf(p, n))
		return false;
	memcpy(&u->h, p, sizeof(u->h));
	if (load_elf_check(j, &u->h) < 0 ||
	    !range_within(u->h.e_phoff, u->h.e_phnum * sizeof(Elf64_Phdr), n))
		return false;
	j->kernel_gpa = UINT64_MAX;
	j->kernel_end = 0;
	for (unsigned i = 0; i < u->h.e_phnum; i++) {
		Elf64_Phdr *ph = &u->part[u->nparts];

		memcpy(ph, p + u->h.e_phoff + i * sizeof(*ph), sizeof(*ph));
		if (ph->p_type != PT_LOAD || !ph->p_memsz)
			continue;
		if (ph->p_filesz > ph->p_memsz || ph->p_paddr < LOAD_HIGH ||
		    !add_u64(ph->p_paddr, ph->p_memsz, &end) || end > j->ram_end ||
		    !range_within(ph->p_offset, ph->p_filesz, u->size))
			return false;
		j->kernel_gpa = MIN(j->kernel_gpa, (gpa_t)ph->p_paddr);
		j->kernel_end = MAX(j->kernel_end, end);
		u->rest_from = MAX(u->rest_from, ph->p_offset + ph->p_filesz);
		u->nparts++;
	}
	if (!u->nparts || u->h.e_entry < j->kernel_gpa || u->h.e_entry >= j->kernel_end ||
	    u->size - u->rest_from > UNPACK_REST_MAX)
		return false;
	if (u->size > u->rest_from)
		u->rest = unpack_map(u->size - u->rest_from);
	return u->rest || u->size == u->rest_from;
}

/* zeroes_at() - how many whole pages of zeroes begin at @p, in bytes. */
static size_t zeroes_at(const uint8_t *p, size_t n)
{
	size_t z = 0;

	while (n - z >= MEM_PAGE && p[z] == 0 && !memcmp(p + z, p + z + 1, MEM_PAGE - 1))
		z += MEM_PAGE;
	return z;
}

/* unpack_bytes() - @p into guest RAM. By a write to its memfd, which neither clears the pages first
 * nor takes a fault for each; else by a copy (huge pages, private memory). */
static void unpack_bytes(const struct mem_region *r, uint64_t off, uint8_t *to, const uint8_t *p,
			 size_t n)
{
	size_t done = 0;

	while (r->fd >= 0 && !(r->flags & MEM_PRIVATE) && done < n) {
		ssize_t w = pwrite(r->fd, p + done, n - done, (off_t)(r->fd_off + off + done));

		if (w <= 0)
			break;
		done += (size_t)w;
	}
	memcpy(to + done, p + done, n - done);
}

/* unpack_zero() - guest RAM that reads as zeroes: a hole in its memfd, which takes no memory. */
static void unpack_zero(const struct mem_region *r, uint64_t off, uint8_t *to, size_t n)
{
	if (n < UNPACK_HOLE || r->fd < 0 || (r->flags & (MEM_PRIVATE | MEM_HUGETLB)) ||
	    fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(r->fd_off + off),
		      (off_t)n) < 0)
		memset(to, 0, n);
}

/* unpack_put() - @n bytes to @gpa; NULL: zeroes. The range was checked. */
static bool unpack_put(struct unpack *u, gpa_t gpa, const uint8_t *p, size_t n)
{
	const struct mem_region *r = mem_region_find(u->j->mem, gpa);
	uint8_t *to = mem_ptr_write(u->j->mem, gpa, n);
	size_t from = 0;

	if (!r || !to)
		return false;
	if (!p) {
		unpack_zero(r, gpa - r->gpa, to, n);
		return true;
	}
	for (size_t at = 0; at < n;) {
		size_t skip = (size_t)(-(gpa + at) & (MEM_PAGE - 1));
		size_t zeroes = at + skip < n ? zeroes_at(p + at + skip, n - at - skip) : 0;

		if (zeroes >= UNPACK_HOLE) {
			at += skip;
			unpack_bytes(r, gpa - r->gpa + from, to + from, p + from, at - from);
			unpack_zero(r, gpa - r->gpa + at, to + at, zeroes);
			from = at += zeroes;
		} else {
			at += skip + MAX(zeroes, (size_t)MEM_PAGE);
		}
	}
	unpack_bytes(r, gpa - r->gpa + from, to + from, p + from, n - from);
	return true;
}

/* unpack_sink() - the next @n unpacked bytes. */
static bool unpack_sink(struct unpack *u, const uint8_t *p, size_t n)
{
	uint64_t from = u->at, to = from + n;

	if (n > u->size - from || (from == 0 && !unpack_head(u, p, n)))
		return false;
	for (unsigned i = 0; i < u->nparts; i++) {
		const Elf64_Phdr *ph = &u->part[i];
		uint64_t lo = MAX(from, (uint64_t)ph->p_offset);
		uint64_t hi = MIN(to, (uint64_t)(ph->p_offset + ph->p_filesz));

		if (lo < hi &&
		    !unpack_put(u, ph->p_paddr + (lo - ph->p_offset), p + (lo - from), hi - lo))
			return false;
	}
	if (to > u->rest_from) {
		uint64_t lo = MAX(from, u->rest_from);

		memcpy(u->rest + (lo - u->rest_from), p + (lo - from), to - lo);
	}
	u->at = to;
	return true;
}

/* ---- decompressors: all @n bytes in, all that the file claims out, or false ---- */

static bool unpack_lz4(struct unpack *u, const uint8_t *in, size_t n)
{
	uint8_t *window = unpack_map(UNPACK_WINDOW);
	bool good = window != NULL;
	size_t at = 0;

	while (good && n - at >= 4) {
		uint32_t len = load_le32(in + at);

		at += 4;
		if (len == LZ4_LEGACY_MAGIC)
			continue;
		good = len && len <= n - at && len <= INT32_MAX;
		int got = good ? LZ4_decompress_safe((const char *)in + at, (char *)window,
						     (int)len, (int)UNPACK_WINDOW)
			       : -1;
		good = got > 0 && unpack_sink(u, window, (size_t)got);
		at += len;
	}
	unpack_unmap(window, UNPACK_WINDOW);
	return good && at == n;
}

static bool unpack_zstd(struct unpack *u, const uint8_t *in, size_t n)
{
	uint8_t *all = unpack_map(u->size);
	bool good =
	    all && ZSTD_decompress(all, u->size, in, n) == u->size && unpack_sink(u, all, u->size);

	unpack_unmap(all, u->size);
	return good;
}

static bool unpack_gzip(struct unpack *u, const uint8_t *in, size_t n)
{
	z_stream z = { .next_in = (z_const Bytef *)in, .avail_in = (uInt)n };
	uint8_t *window = unpack_map(UNPACK_WINDOW);
	bool good = window && inflateInit2(&z, 15 + 16) == Z_OK;
	int ret = Z_OK;

	if (!good) {
		unpack_unmap(window, UNPACK_WINDOW);
		return false;
	}
	while (good && ret == Z_OK) {
		z.next_out = window;
		z.avail_out = (uInt)UNPACK_WINDOW;
		ret = inflate(&z, Z_NO_FLUSH);
		good = (ret == Z_OK && !z.avail_out) || ret == Z_STREAM_END;
		if (good && z.avail_out < UNPACK_WINDOW)
			good = unpack_sink(u, window, UNPACK_WINDOW - z.avail_out);
	}
	inflateEnd(&z);
	unpack_unmap(window, UNPACK_WINDOW);
	return good;
}

static const struct {
	uint8_t magic[4], len;
	uint8_t
	    tail; /* bytes of the size that the kernel's build appends to what the packer made */
	bool (*unpack)(struct unpack *u, const uint8_t *in, size_t n);
} unpack_kinds[] = {
	{ { 0x02, 0x21, 0x4c, 0x18 }, 4, 4, unpack_lz4 },
	{ { 0x28, 0xb5, 0x2f, 0xfd }, 4, 4, unpack_zstd },
	{ { 0x1f, 0x8b }, 2, 0, unpack_gzip },
};

/* unpack_all() - everything placed, the parts' bss zeroed. */
static bool unpack_all(struct unpack *u, const uint8_t *in, size_t n)
{
	bool good = false;

	u->size = load_le32(in + n - 4); /* all kinds end with it */
	if (u->size < sizeof(Elf64_Ehdr) || u->size > UNPACK_OUT_MAX || u->size > u->j->ram_end)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(unpack_kinds); i++)
		if (memcmp(in, unpack_kinds[i].magic, unpack_kinds[i].len) == 0) {
			good = unpack_kinds[i].unpack(u, in, n - unpack_kinds[i].tail);
			break;
		}
	if (!good || u->at != u->size)
		return false;
	for (unsigned i = 0; i < u->nparts; i++) {
		const Elf64_Phdr *ph = &u->part[i];

		if (ph->p_memsz > ph->p_filesz &&
		    !unpack_put(u, ph->p_paddr + ph->p_filesz, NULL, ph->p_memsz - ph->p_filesz))
			return false;
	}
	return true;
}

/* ---- relocations ---- */

/* unpack_tail() - where the ELF file ends, its section headers included; what follows are
 * relocations. */
static bool unpack_tail(const struct unpack *u, uint64_t *tail)
{
	const Elf64_Ehdr *h = &u->h;
	uint64_t end = u->rest_from, at;

	*tail = end;
	if (!h->e_shoff || !h->e_shnum)
		return true;
	if (h->e_shentsize != sizeof(Elf64_Shdr) || h->e_shoff < u->rest_from ||
	    !range_within(h->e_shoff, h->e_shnum * sizeof(Elf64_Shdr), u->size))
		return false;
	end = MAX(end, h->e_shoff + h->e_shnum * sizeof(Elf64_Shdr));
	for (unsigned i = 0; i < h->e_shnum; i++) {
		Elf64_Shdr s;

		memcpy(&s, u->rest + (h->e_shoff - u->rest_from) + i * sizeof(s), sizeof(s));
		if (s.sh_type == SHT_NOBITS || s.sh_type == SHT_NULL)
			continue;
		if (!add_u64(s.sh_offset, s.sh_size, &at) || at > u->size)
			return false;
		end = MAX(end, at);
	}
	*tail = end;
	return true;
}

enum reloc_kind { RELOC_64, RELOC_32_INVERSE, RELOC_32 };

/* reloc_list() - apply one zero-terminated list. */
static bool reloc_list(const struct load_job *j, const uint8_t *list, size_t n,
		       enum reloc_kind kind, uint64_t delta)
{
	uint64_t room = j->kernel_end - j->kernel_gpa;
	unsigned width = kind == RELOC_64 ? 8 : 4;
	uint8_t *base = mem_ptr_write(j->mem, j->kernel_gpa, room);

	for (size_t i = 0; base && i < n; i++) {
		uint64_t va = (uint64_t)(int64_t)(int32_t)load_le32(list + 4 * i);
		uint64_t at = va - KERNEL_MAP - j->kernel_gpa;

		if (!range_within(at, width, room))
			return false;
		if (kind == RELOC_64)
			load_put64(base + at, load_le64(base + at) + delta);
		else
			load_put32(base + at, load_le32(base + at) +
						  (uint32_t)(kind == RELOC_32 ? delta : 0 - delta));
	}
	return base != NULL;
}

/* The relocations, from the file's end: [0] 64-bit ones [0] 32-bit inverse ones [0] 32-bit ones;
 * since Linux 6.15 there are no inverse ones, nor their 0. */
static bool reloc_apply(const struct unpack *u, uint64_t tail, uint64_t delta)
{
	static const enum reloc_kind kinds[2][3] = { { RELOC_64, RELOC_32 },
						     { RELOC_64, RELOC_32_INVERSE, RELOC_32 } };
	size_t n = (size_t)(u->size - tail) / 4, zeros[4], found = 0;
	const uint8_t *r = u->rest + (tail - u->rest_from);

	if ((u->size - tail) % 4 || !n)
		return false;
	for (size_t i = 0; i < n; i++)
		if (load_le32(r + 4 * i) == 0) {
			if (found == 3)
				return false;
			zeros[found++] = i;
		}
	if (found < 2 || zeros[0] != 0)
		return false;
	zeros[found] = n;
	for (size_t i = 0; i < found; i++)
		if (!reloc_list(u->j, r + 4 * (zeros[i] + 1), zeros[i + 1] - zeros[i] - 1,
				kinds[found - 2][i], delta))
			return false;
	return true;
}

/* unpack_word() - is @word one of the command line's? */
static bool unpack_word(const char *line, const char *word)
{
	size_t n = strlen(word);

	for (const char *p = line; p && (p = strstr(p, word)); p += n)
		if ((p == line || p[-1] == ' ') && (!p[n] || p[n] == ' '))
			return true;
	return false;
}

/* unpack_move() - KASLR. False: it should be, and the relocations are not understood. */
static bool unpack_move(struct unpack *u, uint32_t align, uint32_t init_bytes, bool *moved)
{
	const struct load_job *j = u->j;
	uint64_t room = MAX(j->kernel_end - j->kernel_gpa, MAX((uint64_t)init_bytes, u->size));
	uint64_t tail, slots;

	*moved = false;
	if (unpack_word(j->cfg->cmdline, "nokaslr"))
		return true;
	if (!unpack_tail(u, &tail))
		return false;
	if (tail == u->size)
		return true; /* built without */
	if (!align || (align & (align - 1)))
		align = KASLR_ALIGN_DEFAULT;
	if (room + j->kernel_gpa >= KERNEL_IMAGE_SIZE)
		return false;
	slots = 1 + (KERNEL_IMAGE_SIZE - j->kernel_gpa - room) / align;
	*moved = reloc_apply(u, tail, j->cfg->random % slots * align);
	return *moved;
}

bool load_unpack(struct load_job *j, uint64_t off, uint64_t len, uint32_t align,
		 uint32_t init_bytes, struct load_unpacked *out)
{
	struct unpack u = { .j = j };
	uint8_t *in;
	bool good;

	if (len < 16 || len > UNPACK_IN_MAX || !range_within(off, len, j->file_bytes))
		return false;
	in = unpack_map(len);
	if (!in)
		return false;
	good = load_read(j, off, in, len) == 0 && unpack_all(&u, in, len);
	munmap(in, len);
	good = good && unpack_move(&u, align, init_bytes, &out->moved);
	out->entry = u.h.e_entry;
	unpack_unmap(u.rest, u.size - u.rest_from);
	return good;
}
