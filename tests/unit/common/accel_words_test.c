/* accel_words_test.c - what --accel takes, and what it does not. */
#include "common/accel_words.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void good_words_are_taken_apart(void **state)
{
	static const struct {
		const char *text, *name;
		bool one, icount;
	} good[] = {
		{ "auto", "auto", false, false },
		{ "kvm", "kvm", false, false },
		{ "soft", "soft", false, false },
		{ "soft,threads=1", "soft", true, false },
		{ "soft,icount", "soft", true, true },
		{ "soft,threads=1,icount", "soft", true, true },
		{ "soft,icount,threads=1", "soft", true, true },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		struct accel_words w;

		memset(&w, 0xa5, sizeof(w));
		assert_int_equal(accel_words(good[i].text, &w), 0);
		assert_string_equal(w.name, good[i].name);
		assert_int_equal(w.threads_one, good[i].one);
		assert_int_equal(w.icount, good[i].icount);
	}
}

static void bad_words_are_refused_and_set_nothing(void **state)
{
	static const char *const bad[] = {
		"",
		"sof",
		"softy",
		"auto,icount",
		"kvm,threads=1",
		"soft,",
		"soft,,",
		"soft,threads=2",
		"soft,threads",
		"soft,icount,",
		"SOFT",
		",",
		"soft icount",
		"soft,icount=1",
		"auto,",
		"aut\nos",
		"softsoftsoft",
		"soft,threads=11",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct accel_words w = { .name = "kept" };

		assert_int_equal(accel_words(bad[i], &w), -EINVAL);
		assert_string_equal(w.name, "kept");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_words_are_taken_apart),
		cmocka_unit_test(bad_words_are_refused_and_set_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
