/* openapi.c - the OpenAPI 3.1 document, generated from the table: a schema an object (as shown, to
 * create, to change), an operation a route, and the problem that every error is. Made once, when
 * api starts.
 */
#include "api/server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum openapi_view { VIEW_SHOWN, VIEW_CREATE, VIEW_PATCH };
static const char *const openapi_suffix[] = { "", "_create", "_patch" };

static bool openapi_in_view(const struct schema_field *f, enum openapi_view v)
{
	return f->flags & (v == VIEW_SHOWN ? SF_READ : v == VIEW_CREATE ? SF_CREATE : SF_PATCH);
}

static json_t *openapi_ref(const struct schema_object *o, enum openapi_view v)
{
	return json_pack("{s:s++}", "$ref", "#/components/schemas/", o->name, openapi_suffix[v]);
}

static const struct {
	const char *format, *keyword, *value;
} openapi_formats[] = {
	{ "name", "pattern", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$" },
	{ "image", "pattern", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$" },
	{ "network", "pattern", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$" },
	{ "guest", "pattern", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$" },
	{ "volume", "pattern",
	  "^([A-Za-z0-9][A-Za-z0-9._-]{0,62}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}$" },
	{ "uuid", "format", "uuid" },
	{ "ipv4", "format", "ipv4" },
	{ "time", "format", "date-time" },
	{ "mac", "pattern", "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$" },
	{ "cidr4", "pattern", "^[0-9.]+/[0-9]+$" },
	{ "path", "pattern", "^/" },
};

static json_t *openapi_string(const struct schema_field *f)
{
	json_t *j = json_pack("{s:s}", "type", "string");

	if (f->min)
		json_object_set_new(j, "minLength", json_integer(f->min));
	if (f->max)
		json_object_set_new(j, "maxLength", json_integer(f->max));
	for (size_t i = 0; f->format && i < sizeof(openapi_formats) / sizeof(openapi_formats[0]);
	     i++)
		if (!strcmp(f->format, openapi_formats[i].format))
			json_object_set_new(j, openapi_formats[i].keyword,
					    json_string(openapi_formats[i].value));
	return j;
}

static json_t *openapi_number(const struct schema_field *f, enum openapi_view v)
{
	bool unit = f->type != ST_INT;
	json_t *j = json_pack("{s:o}", "type",
			      unit && v != VIEW_SHOWN ? json_pack("[s,s]", "integer", "string")
						      : json_string("integer"));

	if (f->min || f->max) {
		json_object_set_new(j, "minimum", json_integer(f->min));
		if (f->max != INT64_MAX)
			json_object_set_new(j, "maximum", json_integer(f->max));
	}
	return j;
}

static json_t *openapi_field(const struct schema_field *f, enum openapi_view v)
{
	/* a nested object is always given whole */
	enum openapi_view inner = v == VIEW_SHOWN ? VIEW_SHOWN : VIEW_CREATE;
	json_t *j = NULL;

	switch (f->type) {
	case ST_STRING:
		j = openapi_string(f);
		break;
	case ST_ENUM:
		j = json_pack("{s:s,s:[]}", "type", "string", "enum");
		for (const char *const *s = f->values; *s; s++)
			json_array_append_new(json_object_get(j, "enum"), json_string(*s));
		break;
	case ST_INT:
	case ST_SIZE:
	case ST_DURATION:
		j = openapi_number(f, v);
		break;
	case ST_BOOL:
		j = json_pack("{s:s}", "type", "boolean");
		break;
	case ST_OBJECT:
		j = json_pack("{s:[o]}", "allOf", openapi_ref(f->object, inner));
		break;
	case ST_ARRAY:
		j = json_pack("{s:s,s:o}", "type", "array", "items",
			      f->object ? openapi_ref(f->object, inner)
					: json_pack("{s:s}", "type", "string"));
		if (f->max)
			json_object_set_new(j, "maxItems", json_integer(f->max));
		break;
	case ST_MAP:
		j = json_pack("{s:s,s:{s:s}}", "type", "object", "additionalProperties", "type",
			      "string");
		if (f->max)
			json_object_set_new(j, "maxProperties", json_integer(f->max));
		break;
	}
	json_object_set_new(j, "description", json_string(f->help));
	return j;
}

static json_t *openapi_object(const struct schema_object *o, enum openapi_view v)
{
	json_t *props = json_object(), *required = json_array(), *j;

	for (const struct schema_field *f = o->fields; f->name; f++) {
		if (!openapi_in_view(f, v))
			continue;
		json_object_set_new(props, f->name, openapi_field(f, v));
		if ((f->flags & SF_REQUIRED) && v != VIEW_PATCH)
			json_array_append_new(required, json_string(f->name));
	}
	j = json_pack("{s:s,s:o}", "type", "object", "properties", props);
	if (json_array_size(required))
		json_object_set(j, "required", required);
	json_decref(required);
	if (o->help)
		json_object_set_new(j, "description", json_string(o->help));
	if (v != VIEW_SHOWN)
		json_object_set_new(j, "additionalProperties", json_false());
	return j;
}

static json_t *openapi_schemas(void)
{
	json_t *j = json_object();

	for (const struct schema_object *const *o = schema_objects; *o; o++) {
		for (enum openapi_view v = VIEW_SHOWN; v <= VIEW_PATCH; v++) {
			json_t *s = openapi_object(*o, v);

			char name[64];

			snprintf(name, sizeof(name), "%s%s", (*o)->name, openapi_suffix[v]);
			if (json_object_size(json_object_get(s, "properties")))
				json_object_set(j, name, s);
			json_decref(s);
		}
	}
	return j;
}

static json_t *openapi_parameters(const struct schema_route *r)
{
	const char *open = strchr(r->path, '{');
	json_t *list = json_array();

	if (open)
		json_array_append_new(list,
				      json_pack("{s:s%,s:s,s:b,s:{s:s},s:s}", "name", open + 1,
						(size_t)(strchr(open, '}') - open - 1), "in",
						"path", "required", 1, "schema", "type", "string",
						"description", "name or UUID"));
	for (const struct schema_field *f = r->query ? r->query->fields : NULL; f && f->name; f++)
		json_array_append_new(
		    list, json_pack("{s:s,s:s,s:b,s:o,s:s}", "name", f->name, "in", "query",
				    "required", !!(f->flags & SF_REQUIRED), "schema",
				    openapi_field(f, VIEW_CREATE), "description", f->help));
	if (strcmp(r->method, "GET"))
		json_array_append_new(list, json_pack("{s:s,s:s,s:b,s:{s:s},s:s}", "name",
						      "dry_run", "in", "query", "required", 0,
						      "schema", "type", "boolean", "description",
						      "check everything, change nothing"));
	return list;
}

static json_t *openapi_content(const char *type, json_t *schema)
{
	json_t *j = json_object();

	json_object_set_new(j, type, json_pack("{s:o}", "schema", schema));
	return j;
}

static bool openapi_is_list(const struct schema_route *r)
{
	return r->resource && r->resource->plural && !strchr(r->path, '{') &&
	       !strcmp(r->method, "GET") &&
	       (r->flags & RF_CACHED || !strcmp(r->path, "/v1/tokens"));
}

static json_t *openapi_result(const struct schema_route *r)
{
	if (openapi_is_list(r))
		return openapi_content("application/json",
				       json_pack("{s:s,s:{s:{s:s,s:o},s:{s:s}}}", "type", "object",
						 "properties", "items", "type", "array", "items",
						 openapi_ref(r->resource, VIEW_SHOWN), "next",
						 "type", "string"));
	if (r->id == ROUTE_EVENT_STREAM)
		return openapi_content("text/event-stream", json_pack("{s:s}", "type", "string"));
	if (r->id == ROUTE_METRICS || r->id == ROUTE_GUEST_LOGS)
		return openapi_content("text/plain", json_pack("{s:s}", "type", "string"));
	if (r->id == ROUTE_IMAGE_EXPORT)
		return openapi_content(
		    "application/octet-stream",
		    json_pack("{s:s,s:s}", "type", "string", "format", "binary"));
	if (r->resource &&
	    (!strcmp(r->method, "PATCH") ||
	     (!strcmp(r->method, "POST") && r->body == r->resource) || (r->flags & RF_CACHED)))
		return openapi_content("application/json", openapi_ref(r->resource, VIEW_SHOWN));
	return openapi_content("application/json", json_pack("{s:s}", "type", "object"));
}

static json_t *openapi_body(const struct schema_route *r)
{
	json_t *schema;

	if (r->flags & RF_UPLOAD)
		return json_pack(
		    "{s:b,s:o}", "required", 1, "content",
		    openapi_content("application/octet-stream",
				    json_pack("{s:s,s:s}", "type", "string", "format", "binary")));
	if (r->body == r->resource)
		schema =
		    openapi_ref(r->body, strcmp(r->method, "PATCH") ? VIEW_CREATE : VIEW_PATCH);
	else
		schema = openapi_object(r->body, VIEW_CREATE);
	return json_pack("{s:o}", "content",
			 openapi_content(strcmp(r->method, "PATCH")
					     ? "application/json"
					     : "application/merge-patch+json",
					 schema));
}

static json_t *openapi_operation(const struct schema_route *r)
{
	static const char *const roles[] = { "none", "viewer", "operator", "admin" };
	json_t *responses =
		   json_pack("{s:{s:s}}", "default", "$ref", "#/components/responses/problem"),
	       *op;

	if (r->flags & RF_UPGRADE)
		json_object_set_new(
		    responses, "101",
		    json_pack("{s:s}", "description", "WebSocket; binary frames both ways"));
	else
		json_object_set_new(
		    responses, "200",
		    json_pack("{s:s,s:o}", "description", "done", "content", openapi_result(r)));
	if (r->flags & RF_SLOW)
		json_object_set_new(
		    responses, "202",
		    json_pack("{s:s,s:{s:{s:s,s:{s:s}}},s:o}", "description",
			      "under way; Location is the operation", "headers", "Location",
			      "description", "the operation", "schema", "type", "string", "content",
			      openapi_content("application/json",
					      openapi_ref(&schema_operation, VIEW_SHOWN))));
	op = json_pack(
	    "{s:s,s:s,s:[s],s:o,s:o,s:s}", "operationId", route_name(r->id), "summary", r->help,
	    "tags", r->resource && r->resource->plural ? r->resource->plural : "host", "parameters",
	    openapi_parameters(r), "responses", responses, "x-role", roles[r->role]);
	if (r->body || (r->flags & RF_UPLOAD))
		json_object_set_new(op, "requestBody", openapi_body(r));
	if (r->flags & RF_PUBLIC)
		json_object_set_new(op, "security", json_array());
	return op;
}

int openapi_build(struct text *t)
{
	json_t *paths = json_object(), *doc;
	char *s;

	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		const struct schema_route *r = &schema_routes[i];
		json_t *p = json_object_get(paths, r->path);
		char method[8];

		if (!p) {
			p = json_object();
			json_object_set_new(paths, r->path, p);
		}
		for (unsigned m = 0; m < sizeof(method); m++) {
			method[m] = (char)(r->method[m] | 0x20);
			if (!r->method[m]) {
				method[m] = '\0';
				break;
			}
		}
		json_object_set_new(p, method, openapi_operation(r));
	}
	doc = json_pack(
	    "{s:s,s:{s:s,s:s,s:s,s:{s:s,s:s}},s:[{s:s}],s:[{s:[]}],s:o,s:{s:o,s:{s:{s:s,s:s}},s:{s:"
	    "{s:s,s:o}}}}",
	    "openapi", "3.1.0", "info", "title", "vmd", "version", VMD_VERSION, "description",
	    "Virtual machines on this host.", "license", "name", "ISC", "identifier", "ISC",
	    "servers", "url", "/", "security", "token", "paths", paths, "components", "schemas",
	    openapi_schemas(), "securitySchemes", "token", "type", "http", "scheme", "bearer",
	    "responses", "problem", "description", "what went wrong (RFC 9457)", "content",
	    openapi_content("application/problem+json",
			    json_pack("{s:s}", "$ref", "#/components/schemas/problem")));
	s = doc ? json_dumps(doc, JSON_COMPACT) : NULL;
	if (!doc)
		json_decref(paths);
	json_decref(doc);
	if (!s)
		return -ENOMEM;
	text_add(t, s);
	free(s);
	return t->error;
}
