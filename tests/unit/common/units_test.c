/* units_test.c - what people type as sizes and durations, names, UUIDs, did-you-mean, errors. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/err.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"

static void sizes_are_read_as_people_write_them(void **s)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} ok[] = { { "0", 0 },
		   { "4096", 4096 },
		   { "512M", 512 * MIB },
		   { "512MB", 512 * MIB },
		   { "1.5G", 3 * GIB / 2 },
		   { "10GiB", 10 * GIB },
		   { "1k", 1024 },
		   { "7b", 7 } };
	static const char *const bad[] = { "",	  "M",	  "-1",	 "1X",	  "1.5", "1 G",
					   "1G ", "0x10", "1.G", "1GiBB", " 1" };
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(ok); i++) {
		assert_int_equal(units_parse_size(ok[i].text, &v), 0);
		assert_int_equal(v, ok[i].bytes);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(units_parse_size(bad[i], &v), -EINVAL);
	assert_int_equal(units_parse_size("8E", &v), -ERANGE);
	assert_int_equal(units_parse_size("99999999999999999999", &v), -ERANGE);
	assert_int_equal(units_parse_size("9007199254740992K", &v), -ERANGE);
}

static void durations_have_units(void **s)
{
	uint64_t v;

	assert_int_equal(units_parse_duration("250ms", &v), 0);
	assert_int_equal(v, 250);
	assert_int_equal(units_parse_duration("30", &v), 0);
	assert_int_equal(v, 30000);
	assert_int_equal(units_parse_duration("1.5m", &v), 0);
	assert_int_equal(v, 90000);
	assert_int_equal(units_parse_duration("2 h", &v), -EINVAL);
	assert_int_equal(units_parse_duration("2w", &v), -EINVAL);
}

static void sizes_are_shown_short(void **s)
{
	char b[32];

	assert_string_equal(units_format_size(512 * MIB, b, sizeof(b)), "512 MiB");
	assert_string_equal(units_format_size(3 * GIB / 2, b, sizeof(b)), "1.5 GiB");
	assert_string_equal(units_format_size(7, b, sizeof(b)), "7 B");
	assert_string_equal(units_format_duration(1500, b, sizeof(b)), "1.5 s");
	assert_string_equal(units_format_duration(61000, b, sizeof(b)), "1m01s");
}

static void names_cannot_hold_paths(void **s)
{
	static const char *const bad[] = {
		"",
		".",
		"..",
		"a/b",
		"-x",
		"a..b",
		"a b",
		"a\n",
		"\xc3\xa9t\xc3\xa9",
		"0123456789012345678901234567890123456789012345678901234567890123"
	};

	assert_true(name_valid("web-01.example_x"));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(name_valid(bad[i]));
}

static void uuids_are_version_4_and_distinct(void **s)
{
	char a[UUID_TEXT_LEN], b[UUID_TEXT_LEN];

	uuid_make(a);
	uuid_make(b);
	assert_true(uuid_valid(a));
	assert_int_equal(a[14], '4');
	assert_string_not_equal(a, b);
	assert_false(uuid_valid("00000000-0000-0000-0000-00000000000g"));
	assert_false(uuid_valid("00000000-0000-0000-0000-0000000000000"));
	assert_false(uuid_valid("00000000x0000-0000-0000-000000000000"));
}

static void typos_find_the_word_meant(void **s)
{
	static const char *const verbs[] = { "start",  "stop", "restart", "console",
					     "launch", "ls",   NULL };

	assert_string_equal(suggest("strat", verbs), "start");
	assert_string_equal(suggest("lanch", verbs), "launch");
	assert_string_equal(suggest("Console", verbs), "console");
	assert_null(suggest("frobnicate", verbs));
}

static void utf8_rejects_overlong_and_surrogates(void **s)
{
	assert_true(utf8_valid("gr\xc3\xbc\xc3\x9f", 6));
	assert_false(utf8_valid("\xc0\xaf", 2));
	assert_false(utf8_valid("\xed\xa0\x80", 3));
	assert_false(utf8_valid("\xf5\x80\x80\x80", 4));
	assert_false(utf8_valid("\xc3", 1));
}

static void errors_cannot_forge_log_lines(void **s)
{
	struct err e = { 0 };

	assert_int_equal(
	    err_set(&e, ENOENT, "guest-not-found", "guest \"%s\" does not exist", "a\nb\x1b[0m"),
	    -ENOENT);
	assert_string_equal(e.detail, "guest \"a?b?[0m\" does not exist");
	err_prefix(&e, "team %s", "x");
	assert_string_equal(e.detail, "team x: guest \"a?b?[0m\" does not exist");
	assert_int_equal(err_set(NULL, EIO, "x", "y"), -EIO);
}

static void overflow_helpers_refuse_wraps(void **s)
{
	uint64_t v;

	assert_false(add_u64(UINT64_MAX, 1, &v));
	assert_false(mul_u64(1ULL << 63, 2, &v));
	assert_true(range_within(10, 0, 10));
	assert_false(range_within(10, 1, 10));
	assert_false(range_within(5, UINT64_MAX, 10));
	assert_true(range_overlaps(0, 10, 9, 1));
	assert_false(range_overlaps(0, 10, 10, 1));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_are_read_as_people_write_them),
		cmocka_unit_test(durations_have_units),
		cmocka_unit_test(sizes_are_shown_short),
		cmocka_unit_test(names_cannot_hold_paths),
		cmocka_unit_test(uuids_are_version_4_and_distinct),
		cmocka_unit_test(typos_find_the_word_meant),
		cmocka_unit_test(utf8_rejects_overlong_and_surrogates),
		cmocka_unit_test(errors_cannot_forge_log_lines),
		cmocka_unit_test(overflow_helpers_refuse_wraps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
