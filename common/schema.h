/* schema.h - the one table of the API: resources, fields, routes, permissions, help.
 *
 * common/schema.c holds the rows. From it come request validation (api), the permission check (api
 * for the route, core for the resulting object), the OpenAPI document, vmctl's flags and help, and
 * the reference part of the man page. A route without a row does not build: api's and core's
 * handlers are indexed by enum route_id.
 * Data only: no JSON library here.
 *
 * Conventions between api and core (a_request, a_reply, a_put):
 * - api has authenticated, matched route and least role, and validated path names, query and body
 * by this table. In the
 *   body sizes are integers (bytes), durations integers (milliseconds), unknown members are gone;
 *   defaults are core's to apply.
 * - name = the {guest}, {disk}, ... of the path, percent-decoded ({disk} may be POOL/NAME); sub is
 * used by the rows below.
 *   query = a JSON object of the checked parameters (integers, booleans, strings).
 * - Objects of the kinds guest, disk, snapshot (GUEST/NAME), image, pool, network, forward, operation are a_put with their JSON as
 * a GET shows it; kind is
 *   the object's name here, id its UUID (pool, network: the name), name its name (disk: NAME or
 *   POOL/NAME). RF_CACHED routes are
 *   answered by api from there and never reach core. Replies of other lists are {"items":[...]}.
 * - RF_SLOW: core answers 202 with op; `Prefer: wait` arrives as wait_ms, and where core answers 202
 *   before that is over, api watches the operation's a_put. A failed operation carries error
 *   {status, code, detail, hint}.
 * - IMAGE_UPLOAD comes twice: sub "begin", body {"length":N} → a_reply with fd to write; then sub
 *   "end", body {"length":N,"sha256":"hex"} → the final reply; or sub "abort" (client gone, disk
 *   full) → the half upload is removed.
 * - GUEST_CONSOLE_TICKET is api's own. GUEST_CONSOLE: sub = port ("" = the first), body
 *   {"read_only":bool} → a_reply with fd, a stream socket to the guest's port. GUEST_LOGS,
 *   IMAGE_EXPORT → a_reply with fd, a file open for reading from offset 0.
 * - METRICS: body is an object of core's counters; api makes Prometheus text of it and adds its own.
 *   GUEST_WAIT, EVENT_STREAM, OPENAPI, HEALTHZ, VERSION stay in api.
 */
#ifndef COMMON_SCHEMA_H
#define COMMON_SCHEMA_H

#include <stdbool.h>
#include <stdint.h>

enum schema_type {
	ST_STRING,
	ST_INT,
	ST_BOOL,
	ST_SIZE,
	ST_DURATION,
	ST_ENUM,
	ST_OBJECT,
	ST_ARRAY,
	ST_MAP /* string → string */
};

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

/* @format of a string: NULL any printable text, or "name" "uuid" "mac" "ipv4" "cidr4" "volume"
 * (POOL/NAME or NAME) "image" "network" "guest" "path" (serial targets only) "time" (RFC 3339)
 * "serialspec" "accel" */
struct schema_object;
struct schema_field {
	const char *name; /* JSON member */
	enum schema_type type;
	uint32_t flags;
	const char *format;
	const char *const *values; /* ST_ENUM */
	int64_t min,
	    max; /* numbers: value; strings: length; arrays, maps: count; both 0 = type's default */
	const struct schema_object *object; /* ST_OBJECT, ST_ARRAY of objects (NULL: of strings) */
	const char *cli;  /* vmctl flag of create/launch/set ("cpus" for --cpus), or NULL */
	const char *help; /* one line; default value in it */
	const char *dflt; /* default as text, or NULL */
};

struct schema_object {
	const char *name;   /* "guest" */
	const char *plural; /* "guests"; NULL for nested objects and verb bodies */
	const char *help;
	const struct schema_field *fields; /* ends with name == NULL */
	const char
	    *bare; /* on the command line, the field that a value without "key=" sets; NULL: none */
};

enum role { ROLE_NONE, ROLE_VIEWER, ROLE_OPERATOR, ROLE_ADMIN };

enum route_flags {
	RF_SLOW = 1 << 0,    /* makes an operation: 202, Location, Prefer: wait */
	RF_CACHED = 1 << 1,  /* GET answered from api's read model */
	RF_STREAM = 1 << 2,  /* SSE or chunked text */
	RF_UPGRADE = 1 << 3, /* WebSocket */
	RF_UPLOAD = 1 << 4,  /* octet-stream body into an fd handed over by core */
	RF_PUBLIC = 1 << 5,  /* no credentials needed */
	RF_IDEMPOTENT = 1 << 6,
};

/* clang-format off */
#define ROUTES(X) \
	X(GUEST_LIST) X(GUEST_CREATE) X(GUEST_GET) X(GUEST_PATCH) X(GUEST_DELETE) \
	X(GUEST_UNDELETE) \
	X(GUEST_START) X(GUEST_STOP) X(GUEST_RESTART) X(GUEST_RESET) X(GUEST_PAUSE) \
	X(GUEST_RESUME) \
	X(GUEST_SAVE) X(GUEST_DISCARD) X(GUEST_RENAME) X(GUEST_LIMIT) X(GUEST_WAIT) X(GUEST_INFO) X(GUEST_NMI) X(GUEST_LOGS) \
	X(GUEST_CONSOLE_TICKET) X(GUEST_CONSOLE) \
	X(DISK_LIST) X(DISK_CREATE) X(DISK_GET) X(DISK_DELETE) X(DISK_RESIZE) X(DISK_ATTACH) \
	X(DISK_DETACH) \
	X(DISK_CHECK) X(DISK_MAP) X(DISK_CONVERT) X(DISK_CLONE) X(DISK_COMMIT) X(DISK_REBASE) X(DISK_COMPARE) X(DISK_INSPECT) X(DISK_COMPACT) X(DISK_BITMAP) X(DISK_BACKUP) X(DISK_RESTORE) X(DISK_EXPORT) X(DISK_UNEXPORT) \
	X(SNAPSHOT_LIST) X(SNAPSHOT_CREATE) X(SNAPSHOT_GET) X(SNAPSHOT_RESTORE) X(SNAPSHOT_DELETE) \
	X(IMAGE_LIST) X(IMAGE_CREATE) X(IMAGE_GET) X(IMAGE_UPLOAD) X(IMAGE_DELETE) \
	X(IMAGE_EXPORT) \
	X(POOL_LIST) X(POOL_CREATE) X(POOL_GET) X(POOL_PATCH) X(POOL_DELETE) \
	X(NET_LIST) X(NET_CREATE) X(NET_GET) X(NET_DELETE) X(NET_LEASES) \
	X(NIC_ATTACH) X(NIC_DETACH) X(FORWARD_LIST) X(FORWARD_CREATE) X(FORWARD_GET) X(FORWARD_DELETE) \
	X(OP_LIST) X(OP_GET) X(OP_CANCEL) \
	X(EVENT_STREAM) X(TOKEN_LIST) X(TOKEN_CREATE) X(TOKEN_DELETE) \
	X(HOST_GET) X(TOP) X(DOCTOR) X(METRICS) X(OPENAPI) X(HEALTHZ) X(VERSION)
/* clang-format on */

enum route_id {
#define X(n) ROUTE_##n,
	ROUTES(X)
#undef X
	    ROUTE_COUNT
};

#define VMD_VERSION "0.1.0"

struct schema_route {
	enum route_id id;
	const char *method;		      /* "GET" */
	const char *path;		      /* "/v1/guests/{guest}/start" */
	enum role role;			      /* least role */
	uint32_t flags;			      /* enum route_flags */
	const struct schema_object *resource; /* what it lists, makes or acts on */
	const struct schema_object *body;     /* NULL: none accepted */
	const struct schema_object *query;    /* allowed query parameters; NULL: none */
	const char *cli;		      /* "start" or "image ls"; NULL: no verb */
	const char *help;		      /* one line */
};

extern const struct schema_object *const schema_objects[];   /* NULL-terminated */
extern const struct schema_route schema_routes[ROUTE_COUNT]; /* indexed by id */

/* objects by name, for those that need one without a search */
extern const struct schema_object schema_guest, schema_guest_disk, schema_guest_nic,
    schema_guest_port, schema_disk, schema_snapshot, schema_image, schema_pool, schema_network,
    schema_forward, schema_operation, schema_event, schema_token, schema_host;

/* schema_check_string() - does @s fit @f's format, length, values? 0, or -EINVAL with a sentence
 * that names the field. */
struct err;
int schema_check_string(const struct schema_field *f, const char *s, struct err *e);
/* schema_check_number() - is @v (bytes, ms, count) within @f's bounds? As above. */
int schema_check_number(const struct schema_field *f, int64_t v, struct err *e);
const char *schema_type_name(const struct schema_field *f); /* "a size, as 512M or bytes" */

const struct schema_object *schema_object_find(const char *name);
const struct schema_field *schema_field_find(const struct schema_object *o, const char *name);
const char *route_name(enum route_id id);

#endif
