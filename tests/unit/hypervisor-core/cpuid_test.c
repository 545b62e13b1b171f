/* cpuid_test.c - CPUID policy: models, flags, topology, what follows from what. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "hypervisor-core/cpuid.h"

static const struct cpuid_table everything = {
	.n = 12,
	.e = {
		{ 0, 0, 0, 0x16, 0x756e6547, 0x6c65746e, 0x49656e69 },
		{ 1, 0, 0, 0x906ea, 0x800, 0xffffffff, 0xffffffff },
		{ 4, 0, 1, 0x121, 0x1c0003f, 0x3f, 0 },
		{ 4, 3, 1, 0x163, 0x3c0003f, 0x3fff, 6 },
		{ 7, 0, 1, 0, 0xffffffff, 0xffffffff, 0xffffffff },
		{ 0xa, 0, 0, 0x08300803, 0, 0, 0x603 },
		{ 0xd, 0, 1, 0x2e7, 0xa88, 0xa88, 0 },
		{ 0xd, 2, 1, 0x100, 0x240, 0, 0 },
		{ 0xd, 5, 1, 0x40, 0x440, 0, 0 },
		{ 0x80000001, 0, 0, 0, 0, 0xffffffff, 0xffffffff },
		{ 0x40000000, 0, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d },
		{ 0x40000001, 0, 0, 0x01007efb, 0, 0, 0 },
	},
};

static struct cpuid_table built(const char *model, const char *flags, bool nested, unsigned vcpus)
{
	struct cpuid_policy p = { .nested = nested, .vcpus = vcpus };
	struct cpuid_table t;
	struct err e = { 0 };

	strcpy(p.model, model);
	strcpy(p.flags, flags);
	if (cpuid_build(&p, &everything, &t, &e) < 0)
		fail_msg("%s", e.detail);
	return t;
}

static int refused(const char *model, const char *flags, const struct cpuid_table *have,
		   struct err *e)
{
	struct cpuid_policy p = { .vcpus = 1 };
	struct cpuid_table t;

	strcpy(p.model, model);
	strcpy(p.flags, flags);
	err_clear(e);
	return cpuid_build(&p, have, &t, e);
}

static void host_hides_what_cannot_work_unless_asked(void **state)
{
	struct cpuid_table t = built("host", "", false, 1);
	const struct cpuid_entry *c = cpuid_find(&t, 1, 0);

	assert_int_equal(c->ecx >> 3 & 1, 0); /* MWAIT */
	assert_int_equal(c->ecx >> 5 & 1, 0); /* VMX */
	assert_int_equal(c->ecx >> 31, 1);
	assert_null(cpuid_find(&t, 0xa, 0));
	assert_int_equal(cpuid_find(&t, 0x80000001, 0)->ecx >> 2 & 1, 0); /* SVM */
	assert_int_equal(cpuid_find(&t, 0x40000001, 0)->eax >> 3 & 1, 1); /* kvmclock */
	t = built("host", "+monitor,+pdcm", true, 1);
	c = cpuid_find(&t, 1, 0);
	assert_int_equal(c->ecx >> 3 & 1, 1);
	assert_int_equal(c->ecx >> 5 & 1, 1);
	assert_non_null(cpuid_find(&t, 0xa, 0));
}

static void a_baseline_keeps_exactly_its_level(void **state)
{
	struct cpuid_table t = built("x86-64-v2", "", false, 1);
	const struct cpuid_entry *c = cpuid_find(&t, 1, 0);

	assert_int_equal(c->ecx >> 20 & 1, 1); /* SSE4.2 */
	assert_int_equal(c->ecx >> 28 & 1, 0); /* AVX */
	assert_int_equal(c->ecx >> 26 & 1, 0); /* XSAVE */
	assert_null(cpuid_find(&t, 0xd, 0));
	assert_int_equal(cpuid_find(&t, 7, 0)->ebx, 0);
	t = built("x86-64-v3", "+smep", false, 1);
	assert_int_equal(cpuid_find(&t, 7, 0)->ebx, 1u << 3 | 1u << 5 | 1u << 8 | 1u << 7);
	assert_int_equal(cpuid_find(&t, 0xd, 0)->eax, 7);
	assert_int_equal(cpuid_find(&t, 0xd, 0)->ecx, 0x340);
	assert_null(cpuid_find(&t, 0xd, 5)); /* AVX-512 is gone, and its state with it */
}

static void taking_xsave_away_takes_avx_away(void **state)
{
	struct cpuid_table t = built("host", "-xsave", false, 1);

	assert_int_equal(cpuid_find(&t, 1, 0)->ecx >> 28 & 1, 0);
	assert_int_equal(cpuid_find(&t, 7, 0)->ebx >> 5 & 1, 0);
	assert_int_equal(cpuid_find(&t, 7, 0)->ebx >> 16 & 1, 0);
	assert_null(cpuid_find(&t, 0xd, 0));
}

static void topology_is_one_socket_of_cores(void **state)
{
	struct cpuid_table t = built("host", "", false, 6);

	cpuid_for_vcpu(&t, 5);
	assert_int_equal(cpuid_find(&t, 1, 0)->ebx, 5u << 24 | 6u << 16 | 0x800);
	assert_int_equal(cpuid_find(&t, 0xb, 1)->eax, 3);
	assert_int_equal(cpuid_find(&t, 0xb, 1)->ebx, 6);
	assert_int_equal(cpuid_find(&t, 0xb, 0)->edx, 5);
	assert_int_equal(cpuid_find(&t, 4, 3)->eax >> 14 & 0xfff, 5); /* last level shared by all */
	assert_int_equal(cpuid_find(&t, 4, 0)->eax >> 14 & 0xfff, 0);
	assert_int_equal(cpuid_find(&t, 4, 0)->eax >> 26, 7);
}

static void unknown_and_unsupported_names_are_refused_by_name(void **state)
{
	struct cpuid_table poor = { .n = 1, .e = { { 1, 0, 0, 0, 0, 0, 0x078bfbff } } };
	struct err e;

	assert_int_equal(refused("x86-64-v4", "", &everything, &e), -EINVAL);
	assert_non_null(strstr(e.hint, "x86-64-v"));
	assert_int_equal(refused("host", "+avxx2", &everything, &e), -EINVAL);
	assert_non_null(strstr(e.hint, "avx2"));
	assert_int_equal(refused("host", "avx2", &everything, &e), -EINVAL);
	assert_int_equal(refused("host", "+", &everything, &e), -EINVAL);
	assert_int_equal(refused("host", "+avx2", &poor, &e), -ENOTSUP);
	assert_non_null(strstr(e.detail, "avx2"));
	assert_int_equal(refused("x86-64-v2", "", &poor, &e), -ENOTSUP);
	assert_int_equal(refused("x86-64-v1", "", &poor, &e), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(host_hides_what_cannot_work_unless_asked),
		cmocka_unit_test(a_baseline_keeps_exactly_its_level),
		cmocka_unit_test(taking_xsave_away_takes_avx_away),
		cmocka_unit_test(topology_is_one_socket_of_cores),
		cmocka_unit_test(unknown_and_unsupported_names_are_refused_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
