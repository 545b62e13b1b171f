/* mem_test.c - guest memory: bounds, borders, seals, templates, dirty bits. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/units.h"
#include "hypervisor-core/mem.h"

static void accesses_stay_inside_one_region(void **state)
{
	struct mem *m = mem_new();
	struct err e = { 0 };
	uint8_t buf[64];

	assert_int_equal(mem_add(m, "low", 0, 64 * KIB, -1, 0, 0, &e), 0);
	assert_int_equal(mem_add(m, "next", 64 * KIB, 64 * KIB, -1, 0, 0, &e), 0);
	assert_int_equal(mem_add(m, "over", 32 * KIB, MEM_PAGE, -1, 0, 0, &e), -EEXIST);
	assert_non_null(mem_ptr(m, 64 * KIB - 8, 8));
	assert_null(mem_ptr(m, 64 * KIB - 8, 9));
	assert_null(mem_ptr(m, 8, UINT64_MAX));
	assert_null(mem_ptr(m, UINT64_MAX - 3, 8));
	assert_null(mem_ptr(m, 128 * KIB, 1));
	/* copies cross the border, and stop at the end */
	memset(buf, 0x77, sizeof(buf));
	assert_int_equal(mem_write(m, 64 * KIB - 32, buf, 64), 0);
	memset(buf, 0, sizeof(buf));
	assert_int_equal(mem_read(m, 64 * KIB - 32, buf, 64), 0);
	assert_int_equal(buf[0], 0x77);
	assert_int_equal(buf[63], 0x77);
	assert_int_equal(mem_read(m, 128 * KIB - 32, buf, 64), -EFAULT);
	uint64_t len = 100;
	assert_non_null(mem_ptr_max(m, 128 * KIB - 10, &len));
	assert_int_equal(len, 10);
	assert_int_equal(mem_ram_bytes(m), 128 * KIB);
	mem_free(m);
}

static void rom_takes_loaders_but_no_guest_writes(void **state)
{
	struct mem *m = mem_new();
	struct err e = { 0 };

	assert_int_equal(mem_add(m, "rom", 0xf0000, 64 * KIB, -1, 0, MEM_ROM, &e), 0);
	assert_int_equal(mem_write(m, 0xf0000, "x", 1), -EFAULT);
	assert_null(mem_ptr_write(m, 0xf0000, 1));
	assert_int_equal(mem_store(m, 0xf0000, "x", 1), 0);
	assert_int_equal(*(char *)mem_ptr(m, 0xf0000, 1), 'x');
	assert_int_equal(mem_ram_bytes(m), 0);
	mem_free(m);
}

static void a_template_must_be_sealed_and_is_never_written(void **state)
{
	struct mem *m = mem_new();
	struct err e = { 0 };
	int fd = memfd_create("template", MFD_ALLOW_SEALING);
	char c = 0;

	assert_int_equal(ftruncate(fd, MEM_PAGE * 4), 0);
	assert_int_equal(pwrite(fd, "T", 1, 0), 1);
	assert_int_equal(mem_add(m, "t", 0, 4 * MEM_PAGE, fd, 0, MEM_PRIVATE, &e), -EINVAL);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
	assert_int_equal(mem_add(m, "t", 0, 5 * MEM_PAGE, fd, 0, MEM_PRIVATE, &e), -EINVAL);
	assert_int_equal(mem_add(m, "t", 0, 4 * MEM_PAGE, fd, 0, MEM_PRIVATE, &e), 0);
	assert_int_equal(mem_read(m, 0, &c, 1), 0);
	assert_int_equal(c, 'T');
	assert_int_equal(mem_write(m, 0, "G", 1), 0);
	assert_int_equal(pread(fd, &c, 1, 0), 1);
	assert_int_equal(c, 'T');
	mem_free(m);
}

static void large_regions_are_congruent_for_huge_pages(void **state)
{
	struct mem *m = mem_new();
	struct err e = { 0 };

	assert_int_equal(mem_add(m, "odd", 0x123000, 8 * MIB, -1, 0, MEM_THP, &e), 0);
	const struct mem_region *r = mem_region_get(m, 0);
	assert_int_equal(((uintptr_t)r->hva ^ r->gpa) & (2 * MIB - 1), 0);
	memset(r->hva, 1, r->size_bytes);
	assert_int_equal(fcntl(r->fd, F_GET_SEALS) & (F_SEAL_GROW | F_SEAL_SHRINK),
			 F_SEAL_GROW | F_SEAL_SHRINK);
	mem_free(m);
}

static void dirty_bits_name_the_pages_written(void **state)
{
	struct mem *m = mem_new();
	struct err e = { 0 };
	char two[2] = { 1, 2 };

	assert_int_equal(mem_add(m, "a", 0, 16 * MEM_PAGE, -1, 0, 0, &e), 0);
	assert_int_equal(mem_write(m, 0, two, 2), 0);
	assert_int_equal(mem_dirty_start(m), 0);
	assert_int_equal(mem_add(m, "b", 16 * MEM_PAGE, MEM_PAGE, -1, 0, 0, &e), 0);
	assert_int_equal(mem_write(m, 3 * MEM_PAGE - 1, two, 2), 0);
	assert_non_null(mem_ptr_write(m, 9 * MEM_PAGE, 1));
	mem_dirty_mark(m, 15 * MEM_PAGE, 2 * MEM_PAGE);
	mem_dirty_mark(m, 0x100000000, 1); /* nowhere: nothing */
	const struct mem_region *a = mem_region_find(m, 0), *b = mem_region_find(m, 16 * MEM_PAGE);
	assert_int_equal(a->dirty[0], 1 << 2 | 1 << 3);
	assert_int_equal(a->dirty[1], 1 << 1 | 1 << 7);
	assert_int_equal(b->dirty[0], 1);
	mem_dirty_stop(m);
	assert_int_equal(mem_write(m, 5 * MEM_PAGE, two, 2), 0);
	assert_int_equal(a->dirty[0], 1 << 2 | 1 << 3);
	mem_free(m);
}

static void sizes_that_wrap_or_are_odd_are_refused(void **state)
{
	struct mem *m = mem_new();
	struct err e = { 0 };

	assert_int_equal(mem_add(m, "x", 0, 0, -1, 0, 0, &e), -EINVAL);
	assert_int_equal(mem_add(m, "x", 0, 100, -1, 0, 0, &e), -EINVAL);
	assert_int_equal(mem_add(m, "x", 0xfffffffffffff000, 2 * MEM_PAGE, -1, 0, 0, &e), -EINVAL);
	assert_int_equal(mem_add(m, "x", 1, MEM_PAGE, -1, 0, 0, &e), -EINVAL);
	for (unsigned i = 0; i < MEM_REGIONS_MAX; i++)
		assert_int_equal(mem_add(m, "x", (16 - i) * MIB, MEM_PAGE, -1, 0, 0, &e), 0);
	assert_int_equal(mem_add(m, "x", 64 * MIB, MEM_PAGE, -1, 0, 0, &e), -ENOMEM);
	for (unsigned i = 1; i < mem_region_count(m); i++)
		assert_true(mem_region_get(m, i)->gpa > mem_region_get(m, i - 1)->gpa);
	mem_free(m);
}

/* A pool of half a TiB is on no machine that runs this; a small one may be. Either way the memory is
 * there, can be written, and tells what it is. */
static void without_reserved_huge_pages_ordinary_ones_serve(void **state)
{
	struct mem *m = mem_new();
	struct err e = { 0 };

	assert_int_equal(mem_add(m, "huge", 0, 512 * GIB, -1, 0, MEM_HUGETLB, &e), 0);
	assert_int_equal(mem_region_get(m, 0)->flags, MEM_THP);
	assert_int_equal(mem_write(m, 300 * GIB, "x", 1), 0);
	assert_int_equal(mem_add(m, "small", 512 * GIB, 2 * MIB, -1, 0, MEM_HUGETLB, &e), 0);
	uint32_t flags = mem_region_get(m, 1)->flags;
	assert_true(flags == MEM_HUGETLB || flags == MEM_THP);
	memset(mem_ptr_write(m, 512 * GIB, 2 * MIB), 7, 2 * MIB);
	assert_int_equal(mem_add(m, "odd", 1024 * GIB, MEM_PAGE, -1, 0, MEM_HUGETLB, &e), -EINVAL);
	assert_int_equal(mem_add(m, "thp", 1024 * GIB, 4 * MIB, -1, 0, MEM_THP, &e), 0);
	assert_int_equal(mem_region_get(m, 2)->flags, MEM_THP);
	mem_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(accesses_stay_inside_one_region),
		cmocka_unit_test(rom_takes_loaders_but_no_guest_writes),
		cmocka_unit_test(a_template_must_be_sealed_and_is_never_written),
		cmocka_unit_test(without_reserved_huge_pages_ordinary_ones_serve),
		cmocka_unit_test(large_regions_are_congruent_for_huge_pages),
		cmocka_unit_test(dirty_bits_name_the_pages_written),
		cmocka_unit_test(sizes_that_wrap_or_are_odd_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
