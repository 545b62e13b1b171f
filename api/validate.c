/* validate.c - see validate.h. The one place where JSON from outside becomes trusted shape: by the
 * table of common/schema.h, a member at a time, each refusal naming the member's path. What passes
 * is rebuilt, so nothing that the table does not know goes on to core.
 */
#include "api/validate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "common/units.h"

#define VALIDATE_DEPTH 16

struct validate {
	struct err *e;
	char *field; /* path being looked at */
	enum validate_mode mode;
};

static json_t *validate_object(struct validate *v, const json_t *j, const struct schema_object *o,
			       bool nested);

/* longer than any path the table can make is cut, not refused */
static size_t validate_push(struct validate *v, const char *name, int index)
{
	size_t n = strlen(v->field);

	if (name)
		snprintf(v->field + n, VALIDATE_FIELD_LEN - n, "%s%.60s", n ? "." : "", name);
	else
		snprintf(v->field + n, VALIDATE_FIELD_LEN - n, "[%d]", index);
	return n;
}

static void validate_pop(struct validate *v, size_t mark)
{
	v->field[mark] = '\0';
}

static json_t *validate_wrong_type(struct validate *v, const struct schema_field *f)
{
	err_set(v->e, EINVAL, "wrong-type", "must be %s", schema_type_name(f));
	return NULL;
}

static json_t *validate_number(struct validate *v, const json_t *j, const struct schema_field *f)
{
	int64_t n;

	if (json_is_integer(j)) {
		n = json_integer_value(j);
	} else if (json_is_string(j) && f->type != ST_INT) {
		uint64_t u;
		int r = f->type == ST_SIZE ? units_parse_size(json_string_value(j), &u)
					   : units_parse_duration(json_string_value(j), &u);

		if (r < 0) {
			err_set(v->e, EINVAL, "bad-value", "\"%.60s\" is not %s",
				json_string_value(j),
				f->type == ST_SIZE ? "a size, as 512M or 4G"
						   : "a duration, as 30s or 5m");
			return NULL;
		}
		n = (int64_t)u;
	} else {
		return validate_wrong_type(v, f);
	}
	return schema_check_number(f, n, v->e) < 0 ? NULL : json_integer(n);
}

static int validate_count(struct validate *v, const struct schema_field *f, size_t n)
{
	size_t max = f->max ? (size_t)f->max : 256;

	if (n <= max)
		return 0;
	return err_set(v->e, EINVAL, "too-many", "has %zu members; at most %zu", n, max);
}

static json_t *validate_array(struct validate *v, const json_t *j, const struct schema_field *f)
{
	static const struct schema_field item = { .name = "item", .type = ST_STRING };
	json_t *out;

	if (!json_is_array(j))
		return validate_wrong_type(v, f);
	if (validate_count(v, f, json_array_size(j)) < 0)
		return NULL;
	out = json_array();
	for (size_t i = 0; i < json_array_size(j); i++) {
		const json_t *in = json_array_get(j, i);
		size_t mark = validate_push(v, NULL, (int)i);
		json_t *one = NULL;

		if (f->object)
			one = validate_object(v, in, f->object, true);
		else if (!json_is_string(in))
			validate_wrong_type(v, &item);
		else if (schema_check_string(&item, json_string_value(in), v->e) == 0)
			one = json_copy((json_t *)in);
		if (!one) {
			json_decref(out);
			return NULL;
		}
		validate_pop(v, mark);
		json_array_append_new(out, one);
	}
	return out;
}

static json_t *validate_map(struct validate *v, const json_t *j, const struct schema_field *f)
{
	static const struct schema_field key_rule = { .name = "key",
						      .type = ST_STRING,
						      .format = "name" };
	static const struct schema_field value_rule = { .name = "value",
							.type = ST_STRING,
							.max = 255 };
	json_t *out, *val;
	const char *key;

	if (!json_is_object(j))
		return validate_wrong_type(v, f);
	if (validate_count(v, f, json_object_size(j)) < 0)
		return NULL;
	out = json_object();
	json_object_foreach((json_t *)j, key, val)
	{
		size_t mark = validate_push(v, key, 0);
		/* merge patch: take it out */
		bool gone = json_is_null(val) && v->mode == VALIDATE_PATCH;

		if (schema_check_string(&key_rule, key, v->e) < 0)
			goto bad;
		if (!gone && !json_is_string(val)) {
			validate_wrong_type(v, &value_rule);
			goto bad;
		}
		if (!gone && schema_check_string(&value_rule, json_string_value(val), v->e) < 0)
			goto bad;
		validate_pop(v, mark);
		json_object_set(out, key, val);
	}
	return out;
bad:
	json_decref(out);
	return NULL;
}

static json_t *validate_value(struct validate *v, const json_t *j, const struct schema_field *f)
{
	switch (f->type) {
	case ST_STRING:
	case ST_ENUM:
		if (!json_is_string(j))
			return validate_wrong_type(v, f);
		if (strlen(json_string_value(j)) != json_string_length(j)) {
			err_set(v->e, EINVAL, "bad-value", "holds a NUL character");
			return NULL;
		}
		return schema_check_string(f, json_string_value(j), v->e) < 0
			   ? NULL
			   : json_copy((json_t *)j);
	case ST_INT:
	case ST_SIZE:
	case ST_DURATION:
		return validate_number(v, j, f);
	case ST_BOOL:
		return json_is_boolean(j) ? json_copy((json_t *)j) : validate_wrong_type(v, f);
	case ST_OBJECT:
		return validate_object(v, j, f->object, true);
	case ST_ARRAY:
		return validate_array(v, j, f);
	case ST_MAP:
		return validate_map(v, j, f);
	}
	return NULL;
}

static bool validate_settable(const struct validate *v, const struct schema_field *f, bool nested)
{
	/* a nested object is given whole, whatever the request */
	return f->flags & (v->mode == VALIDATE_PATCH && !nested ? SF_PATCH : SF_CREATE);
}

static void validate_unknown(struct validate *v, const struct schema_object *o, const char *key,
			     bool nested)
{
	const char *names[64];
	unsigned n = 0;
	const char *near;

	for (const struct schema_field *f = o->fields; f->name && n < 63; f++)
		if (validate_settable(v, f, nested))
			names[n++] = f->name;
	names[n] = NULL;
	near = suggest(key, names);
	err_set(v->e, EINVAL, "unknown-field", "there is no such member");
	if (near)
		err_hint(v->e, "did you mean \"%s\"?", near);
	else
		err_hint(v->e, "GET /v1/openapi.json lists the members");
}

static json_t *validate_object(struct validate *v, const json_t *j, const struct schema_object *o,
			       bool nested)
{
	json_t *out, *val, *one;
	const char *key;

	if (!json_is_object(j)) {
		err_set(v->e, EINVAL, "wrong-type", "must be an object");
		return NULL;
	}
	out = json_object();
	json_object_foreach((json_t *)j, key, val)
	{
		const struct schema_field *f = schema_field_find(o, key);
		size_t mark = validate_push(v, key, 0);

		if (!f) {
			validate_unknown(v, o, key, nested);
			goto bad;
		}
		if (!validate_settable(v, f, nested)) {
			err_set(v->e, EINVAL, "read-only-field",
				v->mode == VALIDATE_PATCH && (f->flags & SF_CREATE)
				    ? "can only be given when the object is made"
				    : "is told by the daemon, it cannot be set");
			goto bad;
		}
		if (json_is_null(val) && v->mode == VALIDATE_PATCH && !nested)
			one = json_null(); /* back to the default */
		else
			one = validate_value(v, val, f);
		if (!one)
			goto bad;
		validate_pop(v, mark);
		json_object_set_new(out, key, one);
	}
	for (const struct schema_field *f = o->fields;
	     f->name && (v->mode != VALIDATE_PATCH || nested); f++) {
		if ((f->flags & SF_REQUIRED) && !json_object_get(out, f->name)) {
			validate_push(v, f->name, 0);
			err_set(v->e, EINVAL, "missing-field", "is required: %s", f->help);
			goto bad;
		}
	}
	return out;
bad:
	json_decref(out);
	return NULL;
}

/* jansson recurses; bound the depth before it does */
static int validate_depth(const char *s, size_t len)
{
	unsigned depth = 0;
	bool in_string = false;

	for (size_t i = 0; i < len; i++) {
		if (in_string) {
			if (s[i] == '\\')
				i++;
			else if (s[i] == '"')
				in_string = false;
		} else if (s[i] == '"') {
			in_string = true;
		} else if (s[i] == '{' || s[i] == '[') {
			if (++depth > VALIDATE_DEPTH)
				return -E2BIG;
		} else if ((s[i] == '}' || s[i] == ']') && depth) {
			depth--;
		}
	}
	return 0;
}

json_t *validate_body(const char *text, size_t len, const struct schema_object *o,
		      enum validate_mode mode, struct err *e, char field[VALIDATE_FIELD_LEN])
{
	struct validate v = { .e = e, .field = field, .mode = mode };
	json_error_t je = { 0 };
	json_t *in, *out;

	field[0] = '\0';
	if (!len)
		in = json_object();
	else if (validate_depth(text, len) < 0) {
		err_set(e, EINVAL, "bad-json", "the body nests deeper than %d", VALIDATE_DEPTH);
		return NULL;
	} else {
		in = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
	}
	if (!in) {
		err_set(e, EINVAL, "bad-json", "the body is not JSON: line %d, column %d: %s",
			je.line, je.column, je.text);
		return NULL;
	}
	out = validate_object(&v, in, o, false);
	json_decref(in);
	return out;
}

int validate_query(const struct schema_object *o, const char *key, const char *value, char *out,
		   size_t len, struct err *e)
{
	const struct schema_field *f = o ? schema_field_find(o, key) : NULL;
	uint64_t u = 0;
	int64_t n;
	char *end;
	int r = 0;

	if (!f) {
		const char *names[64], *near;
		unsigned count = 0;

		for (f = o ? o->fields : NULL; f && f->name && count < 63; f++)
			names[count++] = f->name;
		names[count] = NULL;
		near = suggest(key, names);
		err_set(e, EINVAL, "unknown-parameter",
			"there is no query parameter \"%.60s\" here", key);
		if (near)
			err_hint(e, "did you mean \"%s\"?", near);
		return -EINVAL;
	}
	switch (f->type) {
	case ST_BOOL:
		if (strcmp(value, "true") && strcmp(value, "false") && strcmp(value, "") &&
		    strcmp(value, "1") && strcmp(value, "0"))
			return err_set(e, EINVAL, "bad-value", "must be true or false");
		snprintf(out, len, "%d", strcmp(value, "false") && strcmp(value, "0"));
		return 0;
	case ST_INT:
		errno = 0;
		n = strtoll(value, &end, 10);
		if (end == value || *end || errno || value[strspn(value, "-0123456789")])
			return err_set(e, EINVAL, "wrong-type", "must be an integer");
		break;
	case ST_SIZE:
		r = units_parse_size(value, &u);
		n = (int64_t)u;
		break;
	case ST_DURATION:
		r = units_parse_duration(value, &u);
		n = (int64_t)u;
		break;
	default:
		r = schema_check_string(f, value, e);
		if (!r)
			snprintf(out, len, "%s", value);
		return r;
	}
	if (r < 0)
		return err_set(e, EINVAL, "bad-value", "\"%.60s\" is not %s", value,
			       f->type == ST_SIZE ? "a size, as 512M" : "a duration, as 30s");
	r = schema_check_number(f, n, e);
	if (!r)
		snprintf(out, len, "%" PRId64, n);
	return r;
}
