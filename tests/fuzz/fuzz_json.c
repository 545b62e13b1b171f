/* fuzz_json.c - bodies against the table: no crash, and what passes once passes again unchanged (it
 * is normal form). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api/validate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char field[VALIDATE_FIELD_LEN];
	struct err e = { 0 };
	enum validate_mode mode = size && data[0] & 1 ? VALIDATE_PATCH : VALIDATE_CREATE;
	const struct schema_object *o = size && data[0] & 2 ? &schema_network : &schema_guest;
	json_t *j, *again;
	char *text;

	if (!size)
		return 0;
	j = validate_body((const char *)data + 1, size - 1, o, mode, &e, field);
	if (!j) {
		if (!err_is_set(&e))
			abort();
		return 0;
	}
	text = json_dumps(j, JSON_COMPACT);
	again = text ? validate_body(text, strlen(text), o, mode, &e, field) : NULL;
	if (!again || !json_equal(j, again))
		abort();
	free(text);
	json_decref(j);
	json_decref(again);
	return 0;
}
