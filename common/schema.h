/* schema.h - the one table of the API: resources, fields, routes, permissions, help.
 *
 * common/schema.c holds the rows. From it come request validation (api), the permission check (api for the
 * route, core for the resulting object), the OpenAPI document, vmctl's flags and help, and the reference part
 * of the man page. A route without a row does not build: api's and core's handlers are indexed by enum route_id.
 * Data only: no JSON library here.
 */
#ifndef COMMON_SCHEMA_H
#define COMMON_SCHEMA_H

#include <stdbool.h>
#include <stdint.h>

enum schema_type { ST_STRING, ST_INT, ST_BOOL, ST_SIZE, ST_DURATION, ST_ENUM, ST_OBJECT, ST_ARRAY, ST_MAP /* string → string */ };

enum schema_flags {
	SF_REQUIRED = 1 << 0, /* on create */
	SF_CREATE = 1 << 1,   /* may be given on create */
	SF_PATCH = 1 << 2,    /* may be changed by PATCH */
	SF_LIVE = 1 << 3,     /* ... while the guest runs */
	SF_READ = 1 << 4,     /* shown by GET */
	SF_SECRET = 1 << 5,   /* never shown, never logged */
	SF_COLUMN = 1 << 6,   /* a column of the default table output */
	SF_WIDE = 1 << 7,     /* ... of -o wide only */
};

/* @format of a string: NULL any printable text, or "name" "uuid" "mac" "ipv4" "cidr4" "volume" (POOL/NAME or NAME)
 * "image" "network" "guest" "path" (serial targets only) "time" (RFC 3339) "serialspec" */
struct schema_object;
struct schema_field {
	const char *name; /* JSON member */
	enum schema_type type;
	uint32_t flags;
	const char *format;
	const char *const *values; /* ST_ENUM */
	int64_t min, max; /* numbers: value; strings: length; arrays, maps: count; both 0 = type's default */
	const struct schema_object *object; /* ST_OBJECT, ST_ARRAY of objects (NULL: of strings) */
	const char *cli; /* vmctl flag of create/launch/set ("cpus" for --cpus), or NULL */
	const char *help; /* one line; default value in it */
	const char *dflt; /* default as text, or NULL */
};

struct schema_object {
	const char *name;   /* "guest" */
	const char *plural; /* "guests"; NULL for nested objects and verb bodies */
	const char *help;
	const struct schema_field *fields; /* ends with name == NULL */
};

enum role { ROLE_NONE, ROLE_VIEWER, ROLE_OPERATOR, ROLE_ADMIN };

enum route_flags {
	RF_SLOW = 1 << 0,     /* makes an operation: 202, Location, Prefer: wait */
	RF_CACHED = 1 << 1,   /* GET answered from api's read model */
	RF_STREAM = 1 << 2,   /* SSE or chunked text */
	RF_UPGRADE = 1 << 3,  /* WebSocket */
	RF_UPLOAD = 1 << 4,   /* octet-stream body into an fd handed over by core */
	RF_PUBLIC = 1 << 5,   /* no credentials needed */
	RF_IDEMPOTENT = 1 << 6,
};

#define ROUTES(X)                                                                                             \
	X(GUEST_LIST) X(GUEST_CREATE) X(GUEST_GET) X(GUEST_PATCH) X(GUEST_DELETE) X(GUEST_UNDELETE)           \
	X(GUEST_START) X(GUEST_STOP) X(GUEST_RESTART) X(GUEST_RESET) X(GUEST_PAUSE) X(GUEST_RESUME)           \
	X(GUEST_RENAME) X(GUEST_WAIT) X(GUEST_INFO) X(GUEST_NMI) X(GUEST_LOGS)                                \
	X(GUEST_CONSOLE_TICKET) X(GUEST_CONSOLE)                                                              \
	X(DISK_LIST) X(DISK_CREATE) X(DISK_GET) X(DISK_DELETE) X(DISK_RESIZE) X(DISK_ATTACH) X(DISK_DETACH)   \
	X(DISK_CHECK) X(DISK_MAP) X(DISK_CONVERT)                                                             \
	X(IMAGE_LIST) X(IMAGE_CREATE) X(IMAGE_GET) X(IMAGE_UPLOAD) X(IMAGE_DELETE) X(IMAGE_EXPORT)            \
	X(POOL_LIST) X(POOL_CREATE) X(POOL_GET) X(POOL_DELETE)                                                \
	X(NET_LIST) X(NET_CREATE) X(NET_GET) X(NET_DELETE) X(NET_LEASES)                                      \
	X(OP_LIST) X(OP_GET) X(OP_CANCEL)                                                                     \
	X(EVENT_STREAM) X(TOKEN_LIST) X(TOKEN_CREATE) X(TOKEN_DELETE)                                         \
	X(HOST_GET) X(TOP) X(DOCTOR) X(METRICS) X(OPENAPI) X(HEALTHZ) X(VERSION)

enum route_id {
#define X(n) ROUTE_##n,
	ROUTES(X)
#undef X
	ROUTE_COUNT
};

struct schema_route {
	enum route_id id;
	const char *method; /* "GET" */
	const char *path;   /* "/v1/guests/{guest}/start" */
	enum role role;	    /* least role */
	uint32_t flags;	    /* enum route_flags */
	const struct schema_object *resource; /* what it lists, makes or acts on */
	const struct schema_object *body;     /* NULL: none accepted */
	const struct schema_object *query;    /* allowed query parameters; NULL: none */
	const char *cli;  /* "start" or "image ls"; NULL: no verb */
	const char *help; /* one line */
};

extern const struct schema_object *const schema_objects[]; /* NULL-terminated */
extern const struct schema_route schema_routes[ROUTE_COUNT]; /* indexed by id */

const struct schema_field *schema_field_find(const struct schema_object *o, const char *name);
const char *route_name(enum route_id id);

#endif
