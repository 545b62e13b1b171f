/* state_test.c - the saved-state format: round trip, unknown tags, every truncation and bit flip
 * refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/state.h"

static void write_sample(struct state_writer *w)
{
	state_writer_init(w);
	state_begin(w, "serial16550", 1, 3);
	state_put_u64(w, 1, 0x1122334455667788);
	state_put_bytes(w, 2, "fifo", 4);
	state_put_u64(w, 900, 5);
	state_end(w);
	state_begin(w, "rtc", 0, 1);
	state_end(w);
	assert_int_equal(w->error, 0);
}

static void sections_and_fields_survive(void **s)
{
	struct state_writer w;
	struct state_reader r;
	struct err e = { 0 };
	char buf[4];
	uint64_t v;

	write_sample(&w);
	state_reader_init(&r, w.data, w.len);
	assert_int_equal(state_next(&r, &e), 1);
	assert_string_equal(r.name, "serial16550");
	assert_int_equal(r.instance, 1);
	assert_int_equal(r.version, 3);
	assert_int_equal(state_get_u64(&r, 1, &v), 0);
	assert_true(v == 0x1122334455667788);
	assert_int_equal(state_get_bytes(&r, 2, buf, 4), 0);
	assert_memory_equal(buf, "fifo", 4);
	assert_int_equal(state_get_bytes(&r, 2, buf, 3), -EBADMSG);
	assert_int_equal(state_get_u64(&r, 2, &v), -EBADMSG);
	assert_int_equal(state_get_u64(&r, 77, &v), -ENOENT);
	assert_int_equal(state_get_u64_or(&r, 77, 42), 42);
	assert_int_equal(state_next(&r, &e), 1);
	assert_string_equal(r.name, "rtc");
	assert_int_equal(state_next(&r, &e), 0);
	state_writer_fini(&w);
}

static void every_truncation_and_bit_flip_is_refused(void **s)
{
	struct state_writer w;
	struct state_reader r;
	struct err e;
	int last;

	write_sample(&w);
	for (size_t cut = 1; cut < w.len; cut++) {
		state_reader_init(&r, w.data, cut);
		while ((last = state_next(&r, &e)) == 1)
			;
		/* only a cut between the two sections looks whole */
		if (last == 0)
			assert_int_equal(r.off, cut);
		else
			assert_int_equal(last, -EBADMSG);
	}
	for (size_t bit = 0; bit < w.len * 8; bit++) {
		w.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		state_reader_init(&r, w.data, w.len);
		while ((last = state_next(&r, &e)) == 1)
			;
		assert_int_equal(last, -EBADMSG);
		w.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	state_writer_fini(&w);
}

static void crc32c_matches_the_published_check_value(void **s)
{
	assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sections_and_fields_survive),
		cmocka_unit_test(every_truncation_and_bit_flip_is_refused),
		cmocka_unit_test(crc32c_matches_the_published_check_value),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
