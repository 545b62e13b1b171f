/* validate.h - bodies and queries against the table. */
#ifndef API_VALIDATE_H
#define API_VALIDATE_H

#include <jansson.h>

#include "common/err.h"
#include "common/schema.h"

#define VALIDATE_FIELD_LEN 128

enum validate_mode { VALIDATE_CREATE, VALIDATE_PATCH, VALIDATE_BODY };

/* validate_body() - parse @text (at most 1 MiB, depth 16, no duplicate members, UTF-8) and check
 * each member against @o.
 * Return: the normalised tree (sizes and durations as integers, a new reference); NULL with @e and
 * the path of the member at fault in @field ("disks[0].size", "" where none). An empty text is an
 * empty object. */
json_t *validate_body(const char *text, size_t len, const struct schema_object *o,
		      enum validate_mode mode, struct err *e, char field[VALIDATE_FIELD_LEN]);
/* validate_query() - one parameter; the normalised value is written to @out (a number for sizes,
 * durations, "1" or "0" for booleans). 0 or -EINVAL. */
int validate_query(const struct schema_object *o, const char *key, const char *value, char *out,
		   size_t len, struct err *e);

#endif
