/* args.c - a verb's arguments by the table: the path's parameter first, then required members
 * without a flag in their order; what is left over are further names, where the verb takes several,
 * and else an error; flags set members of the body or parameters of the query. Checked
 * here only so far as needed to build the request: the daemon checks all.
 */
#include "vmctl/vmctl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"

void args_encode(struct text *t, const char *s)
{
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
		    strchr("-._~", c))
			text_addn(t, s, 1);
		else
			text_printf(t, "%%%02X", c);
	}
}

static int args_bool(const char *s)
{
	if (!s || !strcmp(s, "true") || !strcmp(s, "yes") || !strcmp(s, "on") || !strcmp(s, "1"))
		return 1;
	if (!strcmp(s, "false") || !strcmp(s, "no") || !strcmp(s, "off") || !strcmp(s, "0"))
		return 0;
	return -1;
}

/* one value of a scalar field as JSON */
static json_t *args_scalar(const struct schema_field *f, const char *s, struct err *e)
{
	char *end;
	long long n;
	uint64_t u;
	int b;

	switch (f->type) {
	case ST_BOOL:
		b = args_bool(s);
		if (b < 0)
			err_set(e, EINVAL, "usage", "%s: \"%s\" is neither true nor false", f->name,
				s);
		return b < 0 ? NULL : json_boolean(b);
	case ST_INT:
		errno = 0;
		n = strtoll(s, &end, 10);
		if (end == s || *end || errno) {
			err_set(e, EINVAL, "usage", "%s: \"%s\" is not an integer", f->name, s);
			return NULL;
		}
		return json_integer(n);
	case ST_SIZE:
	case ST_DURATION:
		b = f->type == ST_SIZE ? units_parse_size(s, &u) : units_parse_duration(s, &u);
		if (b < 0) {
			err_set(e, EINVAL, "usage", "%s: \"%s\" is not %s", f->name, s,
				f->type == ST_SIZE ? "a size, as 512M or 4G"
						   : "a duration, as 30s or 5m");
			return NULL;
		}
		return json_integer((json_int_t)u);
	default:
		if (!utf8_valid(s, strlen(s))) {
			err_set(e, EINVAL, "usage", "%s: not UTF-8", f->name);
			return NULL;
		}
		if (f->type == ST_ENUM && schema_check_string(f, s, e) < 0) {
			err_prefix(e, "%s", f->name);
			return NULL;
		}
		return json_string(s);
	}
}

/* "key=value,key=value", the first possibly bare */
static json_t *args_object(const struct schema_object *o, const char *text, struct err *e)
{
	json_t *j = json_object();
	char *copy = strdup(text), *save = NULL;
	/* a serial spec holds commas of its own */
	bool whole = o->bare && !strcmp(o->bare, "spec");
	unsigned i = 0;

	for (char *p = whole ? copy : strtok_r(copy, ",", &save); p;
	     p = whole ? NULL : strtok_r(NULL, ",", &save), i++) {
		char *eq = whole ? NULL : strchr(p, '=');
		const struct schema_field *f = NULL;
		json_t *v;

		if (eq)
			*eq++ = '\0';
		if (eq) {
			f = schema_field_find(o, p);
		} else if (!i && o->bare) {
			f = schema_field_find(o, o->bare);
			eq = p;
		} else {
			f = schema_field_find(o, p); /* a bare boolean */
			eq = f && f->type == ST_BOOL ? (char *)"true" : NULL;
		}
		if (!f || !eq || !(f->flags & SF_CREATE)) {
			const char *names[64], *near;
			unsigned n = 0;

			for (const struct schema_field *g = o->fields; g->name && n < 63; g++)
				if (g->flags & SF_CREATE)
					names[n++] = g->name;
			names[n] = NULL;
			near = suggest(p, names);
			err_set(e, EINVAL, "usage", "\"%s\" in \"%s\" is not understood", p, text);
			if (near)
				err_hint(e, "did you mean \"%s=\"?", near);
			goto bad;
		}
		v = args_scalar(f, eq, e);
		if (!v)
			goto bad;
		json_object_set_new(j, f->name, v);
	}
	free(copy);
	return j;
bad:
	free(copy);
	json_decref(j);
	return NULL;
}

static int args_set_body(struct args *a, const struct schema_field *f, const char *value,
			 struct err *e)
{
	json_t *v, *into;

	if (f->type == ST_MAP) {
		const char *eq = strchr(value, '=');
		char key[128];

		if (!eq || eq == value || (size_t)(eq - value) >= sizeof(key))
			return err_set(e, EINVAL, "usage", "--%s wants key=value, not \"%s\"",
				       f->cli, value);
		snprintf(key, sizeof(key), "%.*s", (int)(eq - value), value);
		into = json_object_get(a->body, f->name);
		if (!into) {
			into = json_object();
			json_object_set_new(a->body, f->name, into);
		}
		json_object_set_new(into, key, json_string(eq + 1));
		return 0;
	}
	v = f->type == ST_ARRAY && f->object ? args_object(f->object, value, e)
					     : args_scalar(f, value, e);
	if (!v)
		return -EINVAL;
	if (f->type == ST_ARRAY) {
		into = json_object_get(a->body, f->name);
		if (!into) {
			into = json_array();
			json_object_set_new(a->body, f->name, into);
		}
		json_array_append_new(into, v);
		return 0;
	}
	json_object_set_new(a->body, f->name, v);
	return 0;
}

static const struct schema_field *args_flag(const struct schema_object *o, const char *flag,
					    uint32_t need)
{
	for (const struct schema_field *f = o ? o->fields : NULL; f && f->name; f++)
		if (f->cli && (f->flags & need) && !strcmp(f->cli, flag))
			return f;
	return NULL;
}

static int args_unknown(const struct schema_route *r, const char *flag, uint32_t need,
			struct err *e)
{
	const char *names[128], *near;
	unsigned n = 0;

	for (const struct schema_field *f = r->body ? r->body->fields : NULL;
	     f && f->name && n < 120; f++)
		if (f->cli && (f->flags & need))
			names[n++] = f->cli;
	for (const struct schema_field *f = r->query ? r->query->fields : NULL;
	     f && f->name && n < 120; f++)
		if (f->cli)
			names[n++] = f->cli;
	for (const struct args_own *o = args_own; o->flag; o++)
		if (o->route == r->id)
			names[n++] = o->flag;
	names[n] = NULL;
	near = suggest(flag, names);
	err_set(e, EINVAL, "usage", "%s knows no flag --%s", r->cli ? r->cli : "this verb", flag);
	if (near)
		err_hint(e, "did you mean --%s?", near);
	else
		err_hint(e, "vmctl help %s", r->cli ? r->cli : "");
	return -EINVAL;
}

const struct args_own args_own[] = {
	{ ROUTE_GUEST_CREATE, "image", "VALUE",
	  "image that its first disk is an overlay of; a value with a slash is uploaded" },
	{ ROUTE_GUEST_CONSOLE, "read-only", "", "watch, do not type" },
	{ ROUTE_GUEST_INFO, "counters", "", "with the counters of its devices" },
	{ 0 },
};

static const struct args_own *args_is_own(const struct schema_route *r, const char *flag)
{
	for (const struct args_own *o = args_own; o->flag; o++)
		if (o->route == r->id && !strcmp(o->flag, flag))
			return o;
	return NULL;
}

/* the flags without a value: one a route */
static int args_set_own(struct args *a)
{
	a->read_only = a->route->id == ROUTE_GUEST_CONSOLE;
	a->counters = a->route->id == ROUTE_GUEST_INFO;
	return 0;
}

static int args_one_flag(struct vmctl *v, struct args *a, int argc, char **argv, int *i,
			 uint32_t need, struct err *e)
{
	const struct schema_route *r = a->route;
	const struct schema_field *f;
	char flag[64], *eq = strchr(argv[*i], '='), *value = eq ? eq + 1 : NULL;
	bool in_query = false, negated = false;

	snprintf(flag, sizeof(flag), "%.*s",
		 (int)(eq ? eq - argv[*i] - 2 : (long)strlen(argv[*i]) - 2), argv[*i] + 2);
	f = args_flag(r->body, flag, need);
	if (!f && (f = args_flag(r->query, flag, SF_CREATE)))
		in_query = true;
	if (!f && !strncmp(flag, "no-", 3) && (f = args_flag(r->body, flag + 3, need)) &&
	    f->type == ST_BOOL)
		negated = true;
	else if (!f && args_is_own(r, flag) && !value && !*args_is_own(r, flag)->value)
		return args_set_own(a);
	else if (!f && args_is_own(r, flag) && *args_is_own(r, flag)->value)
		;
	else if (!f)
		return args_unknown(r, flag, need, e);
	if (negated || (f && f->type == ST_BOOL && !value))
		value = (char *)(negated ? "false" : "true");
	if (!value) {
		if (*i + 1 >= argc)
			return err_set(e, EINVAL, "usage", "--%s wants a value", flag);
		value = argv[++*i];
	}
	if (!f) {
		a->image = value;
		return 0;
	}
	if (!in_query)
		return args_set_body(a, f, value, e);
	if (f->type == ST_BOOL && args_bool(value) < 0)
		return err_set(e, EINVAL, "usage", "--%s: \"%s\" is neither true nor false", flag,
			       value);
	text_printf(&a->query, "%s%s=", a->query.len ? "&" : "", f->name);
	args_encode(&a->query, f->type == ST_BOOL ? args_bool(value) ? "true" : "false" : value);
	return 0;
}

/* forward add GUEST [HOST_IP:]HOST_PORT:GUEST_PORT[/PROTO] */
static int args_forward(struct args *a, const char *s, struct err *e)
{
	static const char *const members[] = { "guest_port", "host_port", "host_ip" };
	char *text = strdup(s), *proto = strchr(text, '/'), *colon;
	int n = 0;

	if (proto) {
		*proto++ = '\0';
		n = args_set_body(a, schema_field_find(a->route->body, "proto"), proto, e);
	}
	for (unsigned i = 0; i < 3 && n >= 0 && text; i++) {
		colon = i < 2 ? strrchr(text, ':') : NULL;
		n = args_set_body(a, schema_field_find(a->route->body, members[i]),
				  colon ? colon + 1 : text, e);
		if (!colon)
			break;
		*colon = '\0';
	}
	free(text);
	return n;
}

static int args_positional(struct args *a, const char *s, struct err *e)
{
	const struct schema_route *r = a->route;

	/* GUEST NAME is as good as GUEST/NAME */
	if (r->resource == &schema_snapshot && a->name && !strchr(a->name, '/')) {
		snprintf(a->joined, sizeof(a->joined), "%.100s/%.100s", a->name, s);
		a->name = a->joined;
		return 0;
	}
	if (strchr(r->path, '{') && !a->name) {
		a->name = s;
		return 0;
	}
	if (((r->id == ROUTE_SNAPSHOT_CREATE && json_object_get(a->body, "guest")) ||
	     r->id == ROUTE_DISK_CLONE) &&
	    !json_object_get(a->body, "name"))
		return args_set_body(a, schema_field_find(r->body, "name"), s, e);
	/* as qemu-img: create NAME SIZE, resize NAME +SIZE */
	if (r->id == ROUTE_DISK_CREATE && json_object_get(a->body, "name") &&
	    !json_object_get(a->body, "size"))
		return args_set_body(a, schema_field_find(r->body, "size"), s, e);
	if (r->id == ROUTE_DISK_RESIZE && !a->by && (*s == '+' || *s == '-')) {
		a->by = s;
		return args_set_body(a, schema_field_find(r->body, "size"), s + 1, e);
	}
	if (r->id == ROUTE_FORWARD_CREATE && strchr(s, ':'))
		return args_forward(a, s, e);
	for (const struct schema_field *f = r->body && strcmp(r->method, "PATCH") ? r->body->fields
										  : NULL;
	     f && f->name; f++)
		if ((f->flags & SF_REQUIRED) && !f->cli && !json_object_get(a->body, f->name))
			return args_set_body(a, f, s, e);
	a->rest[a->rest_count++] = s;
	return 0;
}

bool args_many(const struct schema_route *r)
{
	switch (r->id) {
	case ROUTE_GUEST_CONSOLE:
	case ROUTE_GUEST_LOGS:
	case ROUTE_IMAGE_EXPORT:
	case ROUTE_NET_LEASES:
	case ROUTE_DISK_CLONE:
		return false;
	default:
		break;
	}
	if (!strchr(r->path, '{'))
		return false;
	for (const struct schema_field *f = r->body && strcmp(r->method, "PATCH") ? r->body->fields
										  : NULL;
	     f && f->name; f++)
		if ((f->flags & SF_REQUIRED) && !f->cli)
			return false; /* as rename GUEST NAME: one at a time */
	return true;
}

/* args_check_rest() - nothing that a person typed is passed over. */
static int args_check_rest(const struct args *a, struct err *e)
{
	enum route_id id = a->route->id;
	unsigned takes = id == ROUTE_GUEST_CONSOLE || id == ROUTE_IMAGE_CREATE ||
			 id == ROUTE_IMAGE_EXPORT || id == ROUTE_SNAPSHOT_LIST;

	if (args_many(a->route) || a->rest_count <= takes)
		return 0;
	err_set(e, EINVAL, "usage", "%s has no use for \"%s\"", a->route->cli, a->rest[takes]);
	err_hint(e, "vmctl help %s", a->route->cli);
	return -EINVAL;
}

int args_parse(struct vmctl *v, const struct schema_route *r, int argc, char **argv, struct args *a,
	       struct err *e)
{
	uint32_t need = strcmp(r->method, "PATCH") ? SF_CREATE : SF_PATCH;
	bool flags = true;
	int n = 0;

	*a = (struct args){ .route = r,
			    .body = json_object(),
			    .rest = calloc((size_t)argc + 1, sizeof(a->rest[0])) };
	if (!a->body || !a->rest)
		return err_set(e, ENOMEM, "no-memory", "no memory for the arguments");
	for (int i = 0; i < argc && n >= 0; i++) {
		if (flags && !strcmp(argv[i], "--"))
			flags = false;
		else if (flags && !strcmp(argv[i], "-q"))
			v->quiet = true;
		else if (flags && !strcmp(argv[i], "-o") && i + 1 < argc)
			n = out_format(v, argv[++i], e);
		else if (flags && argv[i][0] == '-' && argv[i][1] == '-')
			n = args_one_flag(v, a, argc, argv, &i, need, e);
		else if (flags && r->id == ROUTE_DISK_RESIZE && argv[i][0] == '-' &&
			 argv[i][1] >= '0' && argv[i][1] <= '9')
			n = args_positional(a, argv[i], e);
		else if (flags && argv[i][0] == '-' && argv[i][1])
			n = err_set(
			    e, EINVAL, "usage",
			    "\"%s\" is not understood here; global options go before the verb",
			    argv[i]);
		else
			n = args_positional(a, argv[i], e);
	}
	if (n >= 0)
		n = args_check_rest(a, e);
	if (n < 0)
		return n;
	if (strchr(r->path, '{') && !a->name && r->id != ROUTE_NET_LEASES) {
		err_set(e, EINVAL, "usage", "%s wants the name of a %s", r->cli, r->resource->name);
		err_hint(e, "vmctl help %s", r->cli);
		return -EINVAL;
	}
	for (const struct schema_field *f =
		 r->body && strcmp(r->method, "PATCH") && r->id != ROUTE_IMAGE_CREATE
		     ? r->body->fields
		     : NULL;
	     f && f->name; f++) {
		if ((f->flags & SF_REQUIRED) && !json_object_get(a->body, f->name)) {
			err_set(e, EINVAL, "usage", "%s wants a %s: %s", r->cli, f->name, f->help);
			err_hint(e, "vmctl help %s", r->cli);
			return -EINVAL;
		}
	}
	return 0;
}

void args_free(struct args *a)
{
	json_decref(a->body);
	free(a->rest);
	text_free(&a->query);
}
