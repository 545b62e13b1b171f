/* out.c - what people and programs see: aligned tables with human sizes and relative times, JSON,
 * YAML, CSV, problems, progress.
 * Text from the daemon may hold what guests chose: control bytes never reach the terminal.
 */
#include "vmctl/vmctl.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "common/units.h"

#define OUT_COLUMNS 32

static void out_clean(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			*s = '?';
}

static void out_time(const char *s, char *buf, size_t len)
{
	struct tm tm = { 0 };
	time_t now = time(NULL), t;
	char d[32];

	if (!strptime(s, "%Y-%m-%dT%H:%M:%S", &tm)) {
		snprintf(buf, len, "%s", s);
		return;
	}
	t = timegm(&tm);
	units_format_duration((uint64_t)llabs((long long)(now - t)) * 1000, d, sizeof(d));
	if (strchr(d, '.')) /* "5.0 s" */
		snprintf(d, sizeof(d), "%llds", llabs((long long)(now - t)));
	if (now - t == 0)
		snprintf(buf, len, "now");
	else
		snprintf(buf, len, now > t ? "%s ago" : "in %s", d);
}

const char *out_cell(const struct schema_field *f, const json_t *j, char *buf, size_t len)
{
	*buf = '\0';
	if (!j || json_is_null(j) || (json_is_string(j) && !json_string_length(j))) {
		snprintf(buf, len, "-");
	} else if (json_is_string(j)) {
		if (f && f->format && !strcmp(f->format, "time"))
			out_time(json_string_value(j), buf, len);
		else
			snprintf(buf, len, "%s", json_string_value(j));
	} else if (json_is_boolean(j)) {
		snprintf(buf, len, json_is_true(j) ? "yes" : "no");
	} else if (json_is_integer(j)) {
		if (f && f->type == ST_SIZE)
			units_format_size((uint64_t)json_integer_value(j), buf, len);
		else if (f && f->type == ST_DURATION)
			units_format_duration((uint64_t)json_integer_value(j), buf, len);
		else if (f && !strcmp(f->name, "progress"))
			snprintf(buf, len, "%lld %%", (long long)json_integer_value(j));
		else if (f && !strcmp(f->name, "cpu_ns"))
			snprintf(buf, len, "%.2f s", (double)json_integer_value(j) / 1e9);
		else
			snprintf(buf, len, "%lld", (long long)json_integer_value(j));
	} else if (json_is_real(j)) {
		snprintf(buf, len, "%.1f", json_real_value(j));
	} else {
		char *s = json_dumps(j, JSON_COMPACT);

		snprintf(buf, len, "%s", s ? s : "");
		free(s);
	}
	out_clean(buf);
	return buf;
}

void out_json(const json_t *j)
{
	char *s = json_dumps(j, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_ENCODE_ANY);

	puts(s ? s : "null");
	free(s);
}

/* ---- YAML ---- */

static void out_yaml_scalar(const json_t *j)
{
	/* JSON scalars are YAML scalars */
	char *s = json_dumps(j, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);

	printf("%s\n", s ? s : "null");
	free(s);
}

static void out_yaml(const json_t *j, unsigned depth, bool in_list)
{
	const char *key;
	json_t *v;
	bool first = in_list;

	if (json_is_object(j) && json_object_size(j)) {
		json_object_foreach((json_t *)j, key, v)
		{
			bool deep = (json_is_object(v) && json_object_size(v)) ||
				    (json_is_array(v) && json_array_size(v));

			printf("%*s%s:%s", first ? 0 : (int)(2 * depth), "", key,
			       deep ? "\n" : " ");
			first = false;
			out_yaml(v, depth + 1, false);
		}
	} else if (json_is_array(j) && json_array_size(j)) {
		for (size_t i = 0; i < json_array_size(j); i++) {
			printf("%*s- ", (int)(2 * depth), "");
			out_yaml(json_array_get(j, i), depth + 1, true);
		}
	} else {
		out_yaml_scalar(j);
	}
}

/* ---- tables ---- */

/* heads that are not the member's name in capitals */
static const struct {
	const char *name, *head;
} out_heads[] = {
	{ "cpu_percent", "CPU%" },
	{ "accel_used", "ACCEL" },
	{ "accel", "ACCEL WANTED" },
	{ "cpu_ns", "CPU TIME" },
};

struct column {
	const char *name;
	const struct schema_field *f;
	int width;
	bool right;
};

static unsigned out_columns(const struct vmctl *v, const struct schema_object *o,
			    const json_t *items, struct column *c)
{
	unsigned n = 0;
	const char *key;
	json_t *val;

	if (o) {
		for (const struct schema_field *f = o->fields; f->name && n < OUT_COLUMNS; f++)
			if (f->flags & (v->out == OUT_TABLE ? SF_COLUMN : SF_COLUMN | SF_WIDE))
				c[n++] = (struct column){ f->name, f, 0, false };
		return n;
	}
	json_object_foreach(json_array_get(items, 0), key,
			    val) if (n < OUT_COLUMNS && !json_is_object(val) && !json_is_array(val))
	    c[n++] = (struct column){ key, NULL, 0, false };
	return n;
}

/* cells count code points, not bytes */
static int out_width(const char *s)
{
	int n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static const char *out_head(const char *name, char *buf, size_t len)
{
	for (size_t i = 0; i < sizeof(out_heads) / sizeof(out_heads[0]); i++)
		if (!strcmp(out_heads[i].name, name))
			return out_heads[i].head;
	snprintf(buf, len, "%s", name);
	for (char *p = buf; *p; p++)
		*p = *p == '_' ? ' ' : (char)toupper((unsigned char)*p);
	return buf;
}

static void out_table(struct vmctl *v, const struct schema_object *o, const json_t *items)
{
	struct column col[OUT_COLUMNS];
	unsigned n = out_columns(v, o, items, col);
	char cell[1024], head[64];

	for (unsigned c = 0; c < n; c++) {
		col[c].width = (int)strlen(out_head(col[c].name, head, sizeof(head)));
		bool number = false;

		col[c].right = true;
		for (size_t i = 0; i < json_array_size(items); i++) {
			const json_t *j = json_object_get(json_array_get(items, i), col[c].name);
			int w = out_width(out_cell(col[c].f, j, cell, sizeof(cell)));

			col[c].width = w > col[c].width ? w : col[c].width;
			number = number || json_is_number(j);
			col[c].right = col[c].right && (json_is_number(j) || !j || json_is_null(j));
		}
		col[c].right = col[c].right && number;
	}
	printf("%s", v->color ? "\033[1m" : "");
	for (unsigned c = 0; c < n; c++) {
		printf(col[c].right ? "%*s" : "%-*s", c + 1 < n || col[c].right ? col[c].width : 0,
		       out_head(col[c].name, head, sizeof(head)));
		printf("%s", c + 1 < n ? "  " : "");
	}
	printf("%s\n", v->color ? "\033[0m" : "");
	for (size_t i = 0; i < json_array_size(items); i++) {
		for (unsigned c = 0; c < n; c++) {
			int pad;

			out_cell(col[c].f, json_object_get(json_array_get(items, i), col[c].name),
				 cell, sizeof(cell));
			pad = col[c].width - out_width(cell);
			if (col[c].right)
				printf("%*s%s", pad, "", cell);
			else if (v->color && !strcmp(col[c].name, "state"))
				printf("\033[%sm%s\033[0m%*s",
				       !strcmp(cell, "running") || !strcmp(cell, "ready") ||
					       !strcmp(cell, "succeeded") || !strcmp(cell, "up")
					   ? "32"
				       : !strcmp(cell, "failed") || !strcmp(cell, "crashed") ||
					       !strcmp(cell, "error")
					   ? "31"
					   : "33",
				       cell, c + 1 < n ? pad : 0, "");
			else
				printf("%s%*s", cell, c + 1 < n ? pad : 0, "");
			printf("%s", c + 1 < n ? "  " : "");
		}
		printf("\n");
	}
}

static void out_csv(const struct vmctl *v, const struct schema_object *o, const json_t *items)
{
	struct column col[OUT_COLUMNS];
	unsigned n = out_columns(v, o, items, col);

	for (unsigned c = 0; c < n; c++)
		printf("%s%s", c ? "," : "", col[c].name);
	printf("\r\n");
	for (size_t i = 0; i < json_array_size(items); i++) {
		for (unsigned c = 0; c < n; c++) {
			const json_t *j = json_object_get(json_array_get(items, i), col[c].name);
			char cell[1024];

			/* programs want raw numbers and times */
			if (json_is_string(j))
				snprintf(cell, sizeof(cell), "%s", json_string_value(j));
			else if (!j || json_is_null(j))
				*cell = '\0';
			else
				out_cell(NULL, j, cell, sizeof(cell));
			out_clean(cell);
			printf("%s", c ? "," : "");
			if (strpbrk(cell, ",\"")) {
				putchar('"');
				for (const char *p = cell; *p; p++)
					printf(*p == '"' ? "\"\"" : "%c", *p);
				putchar('"');
			} else {
				printf("%s", cell);
			}
		}
		printf("\r\n");
	}
}

void out_items(struct vmctl *v, const struct schema_object *o, json_t *items)
{
	if (v->quiet) {
		for (size_t i = 0; i < json_array_size(items); i++) {
			const json_t *j = json_array_get(items, i);
			const char *s = json_string_value(json_object_get(j, "name"));

			s = s ? s : json_string_value(json_object_get(j, "id"));
			if (o == &schema_snapshot) /* by what the other verbs take */
				printf("%s/", json_string_value(json_object_get(j, "guest")));
			printf("%s\n", s ? s : "-");
		}
		return;
	}
	switch (v->out) {
	case OUT_JSON:
		out_json(items);
		break;
	case OUT_YAML:
		out_yaml(items, 0, false);
		break;
	case OUT_CSV:
		out_csv(v, o, items);
		break;
	case OUT_TABLE:
	case OUT_WIDE:
		if (json_array_size(items) || o)
			out_table(v, o, items);
		break;
	}
}

/* name: value lines; what is inside is indented */
static void out_long(const struct schema_object *o, const json_t *j, unsigned depth)
{
	const char *key;
	json_t *val;
	int width = 0;

	json_object_foreach((json_t *)j, key, val) width =
	    (int)strlen(key) > width ? (int)strlen(key) : width;
	json_object_foreach((json_t *)j, key, val)
	{
		const struct schema_field *f = o ? schema_field_find(o, key) : NULL;
		bool deep = json_is_object(val) ||
			    (json_is_array(val) && json_is_object(json_array_get(val, 0)));
		char cell[4600];

		if ((json_is_array(val) && !json_array_size(val)) ||
		    (json_is_object(val) && !json_object_size(val)))
			continue;
		printf("%*s%-*s", (int)(2 * depth), "", width + 2, key);
		if (!deep) {
			printf("%s", out_cell(f, val, cell, sizeof(cell)));
			if (f && f->format && !strcmp(f->format, "time") && json_is_string(val))
				printf(" (%s)", json_string_value(val));
			printf("\n");
			continue;
		}
		printf("\n");
		if (json_is_object(val)) {
			out_long(f			 ? f->object
				 : !strcmp(key, "usage") ? &top_shape
							 : NULL,
				 val, depth + 1);
			continue;
		}
		for (size_t i = 0; i < json_array_size(val); i++) {
			const char *k;
			json_t *x;

			printf("%*s", (int)(2 * depth + 2), "");
			json_object_foreach(json_array_get(val, i), k, x)
			{
				const struct schema_field *g =
				    f && f->object ? schema_field_find(f->object, k) : NULL;

				if (!json_is_null(x))
					printf("%s=%s ", k, out_cell(g, x, cell, sizeof(cell)));
			}
			printf("\n");
		}
	}
}

void out_value(struct vmctl *v, const struct schema_object *o, json_t *j)
{
	json_t *items = json_object_get(j, "items"), *one;

	if (json_is_array(items) && o != &schema_operation) {
		out_items(v, o, items);
		return;
	}
	switch (v->out) {
	case OUT_JSON:
		out_json(j);
		break;
	case OUT_YAML:
		out_yaml(j, 0, false);
		break;
	case OUT_CSV:
		one = json_pack("[O]", j);
		out_csv(v, o, one);
		json_decref(one);
		break;
	case OUT_TABLE:
	case OUT_WIDE:
		out_long(o, j, 0);
		break;
	}
}

/* ---- problems and progress ---- */

void out_error(struct vmctl *v, const struct err *e)
{
	bool color = v->color && isatty(2);

	fprintf(stderr, "vmctl: %s%s%s\n", color ? "\033[31m" : "", e->detail,
		color ? "\033[0m" : "");
	if (*e->hint)
		fprintf(stderr, "  hint: %s\n", e->hint);
}

int exit_of_status(unsigned status, const char *code)
{
	if (code && !strcmp(code, "timed-out"))
		return EX_TIMED_OUT;
	if (code && !strcmp(code, "no-quorum"))
		return EX_NO_QUORUM;
	if (status < 300)
		return EX_DONE;
	switch (status) {
	case 400:
	case 405:
	case 413:
	case 415:
	case 422:
		return EX_USAGE_;
	case 401:
	case 403:
		return EX_DENIED;
	case 404:
		return EX_NOT_FOUND;
	case 409:
	case 412:
	case 423:
		return EX_CONFLICT;
	case 502:
	case 503:
		return EX_UNREACHABLE;
	case 504:
		return EX_TIMED_OUT;
	}
	return EX_FAILED_;
}

int out_problem(struct vmctl *v, struct reply *r)
{
	const char *detail = json_string_value(json_object_get(r->json, "detail")),
		   *hint = json_string_value(json_object_get(r->json, "hint"));
	const char *code = json_string_value(json_object_get(r->json, "code"));
	struct err e = { 0 };

	if (v->out == OUT_JSON && r->json) {
		char *s = json_dumps(r->json, JSON_COMPACT | JSON_ENSURE_ASCII);

		fprintf(stderr, "%s\n", s ? s : "{}");
		free(s);
		return exit_of_status(r->status, code);
	}
	err_set(&e, 1, "problem", "%s", detail ? detail : "the daemon refused");
	if (!detail)
		err_set(&e, 1, "problem", "the daemon answered with status %u", r->status);
	if (hint)
		err_hint(&e, "%s", hint);
	out_error(v, &e);
	return exit_of_status(r->status, code);
}

void out_progress(struct vmctl *v, const char *what, uint64_t done, uint64_t total, bool bytes)
{
	unsigned pct = total ? (unsigned)(done * 100 / total) : 100;
	static unsigned last = 101;
	static char bar[] = "########################################";
	char a[32], b[32];

	if (v->quiet || pct == last)
		return;
	/* a program that reads along wants to know that it goes on, not each percent */
	if (!isatty(2) && pct != 100 && last <= 100 && pct / 10 == last / 10 && pct > last)
		return;
	last = pct;
	if (!isatty(2)) {
		fprintf(stderr, "{\"progress\":%u,\"what\":\"%s\"}\n", pct, what);
		return;
	}
	fprintf(stderr, "\r\033[K%s [%-40.*s] %3u %%", what, (int)(pct * 40 / 100), bar, pct);
	if (bytes)
		fprintf(stderr, "  %s of %s", units_format_size(done, a, sizeof(a)),
			units_format_size(total, b, sizeof(b)));
	fflush(stderr);
}

void out_progress_end(struct vmctl *v)
{
	if (!v->quiet && isatty(2))
		fprintf(stderr, "\r\033[K");
}

/* -o FORMAT */
int out_format(struct vmctl *v, const char *s, struct err *e)
{
	static const char *const names[] = { "table", "wide", "json", "yaml", "csv", NULL };

	for (unsigned i = 0; names[i]; i++)
		if (!strcmp(names[i], s)) {
			v->out = (enum output)i;
			return 0;
		}
	err_set(e, EINVAL, "usage", "-o: \"%s\" is not one of table, wide, json, yaml, csv", s);
	if (suggest(s, names))
		err_hint(e, "did you mean %s?", suggest(s, names));
	return -EINVAL;
}
