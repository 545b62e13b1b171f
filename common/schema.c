/* schema.c - the rows of schema.h that describe routes: method, path, least role, body, query,
 * vmctl verb, help. Objects are in schema_objects.c, checks of single values in schema_check.c.
 * Bodies and queries that belong to one verb stand here beside it.
 *
 * A verb of vmctl is named by `cli`; its path parameter, if any, is the first argument.
 */
#include "common/schema.h"

#include <stddef.h>
#include <string.h>

/* tables, a row a line */
/* clang-format off */

#define HOUR_MS 3600000LL
#define DAY_MS (24 * HOUR_MS)
#define VALUES(...) (const char *const[]){ __VA_ARGS__, NULL }
#define C SF_CREATE
#define BODY(n) static const struct schema_object n = { #n, NULL, NULL, n##_fields, NULL }

/* ---- bodies ---- */

static const struct schema_field stop_body_fields[] = {
	{ .name = "force", .type = ST_BOOL, .flags = C, .cli = "force", .help = "at once, without asking the guest" },
	{ .name = "timeout", .type = ST_DURATION, .flags = C, .max = HOUR_MS, .cli = "timeout", .help = "how long the guest may take before it is forced (default: its stop_timeout)" },
	{ 0 },
};
BODY(stop_body);

static const struct schema_field limit_body_fields[] = {
	{ .name = "disk", .type = ST_STRING, .flags = C, .format = "name", .max = 31, .cli = "disk", .help = "only this disk of the guest, as disk0 (default: each of them)" },
	{ .name = "iops", .type = ST_INT, .flags = C, .min = 0, .max = 100000000, .cli = "iops", .help = "requests a second at most; 0: no limit" },
	{ .name = "bps", .type = ST_SIZE, .flags = C, .min = 0, .max = 1LL << 40, .cli = "bps", .help = "bytes a second at most, as 10M; 0: no limit" },
	{ 0 },
};
BODY(limit_body);

static const struct schema_field rename_body_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = C | SF_REQUIRED, .format = "name", .help = "new name" },
	{ 0 },
};
BODY(rename_body);

static const struct schema_field console_body_fields[] = {
	{ .name = "port", .type = ST_STRING, .flags = C, .format = "name", .max = 31, .help = "port, as serial0 or console3 (default: the first)" },
	{ .name = "read_only", .type = ST_BOOL, .flags = C, .cli = "read-only", .help = "watch, do not type" },
	{ 0 },
};
BODY(console_body);

static const struct schema_field resize_body_fields[] = {
	{ .name = "size", .type = ST_SIZE, .flags = C | SF_REQUIRED, .min = 512, .max = 64LL << 40, .help = "new size" },
	{ .name = "shrink", .type = ST_BOOL, .flags = C, .cli = "shrink", .help = "allow a smaller size; what lies beyond must be zeroes" },
	{ .name = "force", .type = ST_BOOL, .flags = C, .cli = "force", .help = "with --shrink: let go of what lies beyond, whatever it is" },
	{ 0 },
};
BODY(resize_body);

static const struct schema_field nic_attach_body_fields[] = {
	{ .name = "network", .type = ST_STRING, .flags = C | SF_REQUIRED, .format = "network", .help = "network to connect to" },
	{ .name = "name", .type = ST_STRING, .flags = C, .format = "name", .max = 31, .cli = "name", .help = "name inside the guest's definition (default: the first free of net0, net1, ...)" },
	{ .name = "mac", .type = ST_STRING, .flags = C, .format = "mac", .cli = "mac", .help = "hardware address (default: random)" },
	{ .name = "ip", .type = ST_STRING, .flags = C, .format = "ipv4", .cli = "ip", .help = "address that the network's DHCP hands out to it (default: any free)" },
	{ .name = "mtu", .type = ST_INT, .flags = C, .min = 576, .max = 65535, .cli = "mtu", .help = "MTU (default: that of the network)" },
	{ .name = "queues", .type = ST_INT, .flags = C, .min = 1, .max = 8, .cli = "queues", .help = "queue pairs (default 1)" },
	{ 0 },
};
BODY(nic_attach_body);
static const struct schema_field nic_detach_body_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = C | SF_REQUIRED, .format = "name", .max = 31, .help = "the interface, as net0" },
	{ 0 },
};
BODY(nic_detach_body);
static const struct schema_field attach_body_fields[] = {
	{ .name = "guest", .type = ST_STRING, .flags = C | SF_REQUIRED, .format = "guest", .help = "guest to give it to" },
	{ .name = "name", .type = ST_STRING, .flags = C, .format = "name", .max = 31, .cli = "name", .help = "name inside the guest's definition" },
	{ .name = "read_only", .type = ST_BOOL, .flags = C, .cli = "read-only", .help = "the guest may not write" },
	{ .name = "cache", .type = ST_ENUM, .flags = C, .values = VALUES("writeback", "none", "unsafe"), .cli = "cache", .help = "host caching" },
	{ 0 },
};
BODY(attach_body);

static const struct schema_field check_body_fields[] = {
	{ .name = "repair", .type = ST_ENUM, .flags = C, .values = VALUES("no", "leaks", "all"), .cli = "repair", .dflt = "no", .help = "what to mend: no, leaks, all (default no)" },
	{ 0 },
};
BODY(check_body);

static const struct schema_field convert_body_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = C | SF_REQUIRED, .format = "name", .help = "name of the new disk" },
	{ .name = "pool", .type = ST_STRING, .flags = C, .format = "name", .cli = "pool", .help = "pool of the new disk (default: that of the old)" },
	{ .name = "format", .type = ST_ENUM, .flags = C, .values = VALUES("qcow2", "raw"), .cli = "format", .dflt = "qcow2", .help = "format of the new disk (default qcow2)" },
	{ .name = "compress", .type = ST_ENUM, .flags = C, .values = VALUES("no", "zlib", "zstd"), .cli = "compress", .dflt = "no", .help = "compression: no, zlib, zstd (default no)" },
	{ 0 },
};
BODY(convert_body);

static const struct schema_field clone_body_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = C | SF_REQUIRED, .max = 127, .cli = "name", .help = "name of the new disk; {n} or {n:04} in it is the number of each" },
	{ .name = "count", .type = ST_INT, .flags = C, .min = 1, .max = 10000, .cli = "count", .dflt = "1", .help = "how many (default 1)" },
	{ .name = "pool", .type = ST_STRING, .flags = C, .format = "name", .cli = "pool", .help = "pool of the new disks (default: that of the source)" },
	{ .name = "labels", .type = ST_MAP, .flags = C, .max = 64, .cli = "label", .help = "key=value; repeatable" },
	{ 0 },
};
BODY(clone_body);

static const struct schema_field rebase_body_fields[] = {
	{ .name = "backing", .type = ST_STRING, .flags = C, .format = "volume", .cli = "backing", .help = "disk to build it on" },
	{ .name = "image", .type = ST_STRING, .flags = C, .format = "name", .cli = "image", .help = "image to build it on (neither: it stands alone)" },
	{ .name = "unsafe", .type = ST_BOOL, .flags = C, .cli = "unsafe", .help = "change only the record: you know that both parents hold the same" },
	{ 0 },
};
BODY(rebase_body);

static const struct schema_field compare_body_fields[] = {
	{ .name = "with", .type = ST_STRING, .flags = C | SF_REQUIRED, .format = "volume", .help = "the other disk" },
	{ 0 },
};
BODY(compare_body);
static const struct schema_field bitmap_body_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = C | SF_REQUIRED, .format = "name", .help = "the bitmap" },
	{ .name = "do", .type = ST_ENUM, .flags = C, .values = VALUES("add", "remove", "clear", "enable", "disable", "merge"), .cli = "do", .dflt = "add", .help = "add, remove, clear, enable, disable or merge (default add)" },
	{ .name = "granularity", .type = ST_SIZE, .flags = C, .min = 4096, .max = 2LL << 30, .cli = "granularity", .help = "add: bytes a bit stands for, a power of two (default 64K)" },
	{ .name = "source", .type = ST_STRING, .flags = C, .format = "name", .cli = "source", .help = "merge: the bitmap whose bits are added" },
	{ 0 },
};
BODY(bitmap_body);
static const struct schema_field backup_body_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = C | SF_REQUIRED, .min = 1, .max = 600, .help = "the disk that is made to hold the backup, or where it goes: nbd://ADDRESS[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=/PATH (beneath serial_roots)" },
	{ .name = "pool", .type = ST_STRING, .flags = C, .format = "name", .cli = "pool", .help = "pool of the backup (default: that of the disk)" },
	{ .name = "bitmap", .type = ST_STRING, .flags = C, .format = "name", .cli = "bitmap", .help = "bitmap that notes what changes from now on, made where it is missing; the next backup may then be incremental" },
	{ .name = "incremental", .type = ST_BOOL, .flags = C, .cli = "incremental", .dflt = "false", .help = "only what changed since the bitmap's last backup, as an overlay over that, or in place at the same URI (default false)" },
	{ 0 },
};
BODY(backup_body);
static const struct schema_field restore_body_fields[] = {
	{ .name = "from", .type = ST_STRING, .flags = C | SF_REQUIRED, .format = "volume", .help = "disk whose content it gets, as a backup" },
	{ 0 },
};
BODY(restore_body);
static const struct schema_field export_body_fields[] = {
	{ .name = "writable", .type = ST_BOOL, .flags = C, .cli = "writable", .dflt = "false", .help = "clients may write (default false)" },
	{ .name = "bitmap", .type = ST_STRING, .flags = C, .format = "name", .cli = "bitmap", .help = "show this bitmap of the disk, as the context qemu:dirty-bitmap:NAME" },
	{ 0 },
};
BODY(export_body);

/* ---- queries ---- */

#define LIST_FIELDS                                                                                                                                 \
	{ .name = "limit", .type = ST_INT, .flags = C, .min = 1, .max = 10000, .cli = "limit", .help = "at most so many (default: all, in pages of 1000)" }, \
	{ .name = "cursor", .type = ST_STRING, .flags = C, .max = 255, .help = "where the last page ended" },                                       \
	{ .name = "fields", .type = ST_STRING, .flags = C, .max = 1023, .help = "only these members, comma-separated" },                            \
	{ .name = "label", .type = ST_STRING, .flags = C, .max = 255, .cli = "label", .help = "only with this label, as key=value; repeatable" },   \
	{ .name = "state", .type = ST_STRING, .flags = C, .max = 63, .cli = "state", .help = "only in this state" }
static const struct schema_field list_query_fields[] = { LIST_FIELDS, { 0 } };
BODY(list_query);

static const struct schema_field get_query_fields[] = {
	{ .name = "fields", .type = ST_STRING, .flags = C, .max = 1023, .help = "only these members, comma-separated" },
	{ 0 },
};
BODY(get_query);

static const struct schema_field guest_delete_query_fields[] = {
	{ .name = "now", .type = ST_BOOL, .flags = C, .cli = "now", .help = "at once, not by way of the trash" },
	{ .name = "force", .type = ST_BOOL, .flags = C, .cli = "force", .help = "even if it runs" },
	{ .name = "keep_disks", .type = ST_BOOL, .flags = C, .cli = "keep-disks", .help = "leave the disks that were made for it" },
	{ 0 },
};
BODY(guest_delete_query);

static const struct schema_field wait_query_fields[] = {
	{ .name = "state", .type = ST_ENUM, .flags = C, .values = VALUES("stopped", "starting", "running", "pausing", "paused", "stopping", "crashed", "failed", "saved", "deleted"), .cli = "state", .dflt = "running",
	  .help = "state to wait for (default running)" },
	{ .name = "timeout", .type = ST_DURATION, .flags = C, .max = HOUR_MS, .cli = "timeout", .dflt = "60s", .help = "how long at most (default 60s)" },
	{ 0 },
};
BODY(wait_query);

static const struct schema_field logs_query_fields[] = {
	{ .name = "tail", .type = ST_INT, .flags = C, .min = 1, .max = 1000000, .cli = "tail", .help = "only the last lines" },
	{ .name = "follow", .type = ST_BOOL, .flags = C, .cli = "follow", .help = "go on as it grows" },
	{ .name = "port", .type = ST_STRING, .flags = C, .format = "name", .max = 31, .cli = "port", .help = "a port of the kind log, as serial0; process: what its process says (default: the first such port)" },
	{ 0 },
};
BODY(logs_query);

static const struct schema_field console_query_fields[] = {
	{ .name = "ticket", .type = ST_STRING, .flags = C | SF_REQUIRED | SF_SECRET, .min = 32, .max = 64, .help = "from POST .../console; good once, for 30 s" },
	{ 0 },
};
BODY(console_query);

static const struct schema_field upload_query_fields[] = {
	{ .name = "sha256", .type = ST_STRING, .flags = C, .min = 64, .max = 64, .help = "what the upload must hash to" },
	{ 0 },
};
BODY(upload_query);

static const struct schema_field events_query_fields[] = {
	{ .name = "since", .type = ST_INT, .flags = C, .min = 0, .max = INT64_MAX, .cli = "since", .help = "after this event number (also as Last-Event-ID)" },
	{ .name = "kind", .type = ST_STRING, .flags = C, .max = 63, .cli = "kind", .help = "only kinds that begin so, as guest." },
	{ .name = "name", .type = ST_STRING, .flags = C, .max = 127, .cli = "name", .help = "only of this object" },
	{ .name = "follow", .type = ST_BOOL, .flags = C, .cli = "follow", .dflt = "true", .help = "go on for ever (default true)" },
	{ 0 },
};
BODY(events_query);

static const struct schema_field disk_delete_query_fields[] = {
	{ .name = "force", .type = ST_BOOL, .flags = C, .cli = "force", .help = "even if something was built on it" },
	{ 0 },
};
BODY(disk_delete_query);

/* ---- routes ---- */

#define R(id_, m, p, r, f, res, b, q, c, h)                                                                                                   \
	[ROUTE_##id_] = { .id = ROUTE_##id_, .method = m, .path = p, .role = ROLE_##r, .flags = f, .resource = res, .body = b, .query = q, \
			  .cli = c, .help = h }
#define ID RF_IDEMPOTENT

const struct schema_route schema_routes[ROUTE_COUNT] = {
	R(GUEST_LIST, "GET", "/v1/guests", VIEWER, RF_CACHED, &schema_guest, NULL, &list_query, "ls", "list guests"),
	R(GUEST_CREATE, "POST", "/v1/guests", OPERATOR, 0, &schema_guest, &schema_guest, NULL, "create", "define a guest"),
	R(GUEST_GET, "GET", "/v1/guests/{guest}", VIEWER, RF_CACHED, &schema_guest, NULL, &get_query, NULL, "show a guest"),
	R(GUEST_PATCH, "PATCH", "/v1/guests/{guest}", OPERATOR, 0, &schema_guest, &schema_guest, NULL, "set", "change a guest"),
	R(GUEST_DELETE, "DELETE", "/v1/guests/{guest}", OPERATOR, RF_SLOW | ID, &schema_guest, NULL, &guest_delete_query, "delete",
	  "put a stopped guest into the trash, which expires"),
	R(GUEST_UNDELETE, "POST", "/v1/guests/{guest}/undelete", OPERATOR, 0, &schema_guest, NULL, NULL, "undelete", "take a guest out of the trash"),
	R(GUEST_START, "POST", "/v1/guests/{guest}/start", OPERATOR, RF_SLOW, &schema_guest, NULL, NULL, "start", "start a guest"),
	R(GUEST_STOP, "POST", "/v1/guests/{guest}/stop", OPERATOR, RF_SLOW, &schema_guest, &stop_body, NULL, "stop",
	  "stop a guest gracefully, by force after a timeout"),
	R(GUEST_RESTART, "POST", "/v1/guests/{guest}/restart", OPERATOR, RF_SLOW, &schema_guest, &stop_body, NULL, "restart", "stop a guest, then start it"),
	R(GUEST_RESET, "POST", "/v1/guests/{guest}/reset", OPERATOR, RF_SLOW, &schema_guest, NULL, NULL, "reset", "press the reset button"),
	R(GUEST_PAUSE, "POST", "/v1/guests/{guest}/pause", OPERATOR, RF_SLOW, &schema_guest, NULL, NULL, "pause", "stop its virtual CPUs"),
	R(GUEST_RESUME, "POST", "/v1/guests/{guest}/resume", OPERATOR, RF_SLOW, &schema_guest, NULL, NULL, "resume", "let a paused guest go on"),
	R(GUEST_SAVE, "POST", "/v1/guests/{guest}/save", OPERATOR, RF_SLOW, &schema_guest, NULL, NULL, "save",
	  "stop a guest with all it is at: its next start goes on from there"),
	R(GUEST_DISCARD, "POST", "/v1/guests/{guest}/discard", OPERATOR, 0, &schema_guest, NULL, NULL, "discard",
	  "give up what a saved guest would go on from"),
	R(GUEST_RENAME, "POST", "/v1/guests/{guest}/rename", OPERATOR, 0, &schema_guest, &rename_body, NULL, "rename", "give a guest another name"),
	R(GUEST_LIMIT, "POST", "/v1/guests/{guest}/limit", OPERATOR, 0, &schema_guest, &limit_body, NULL, "limit", "limit what a guest may take, from now on"),
	R(GUEST_WAIT, "GET", "/v1/guests/{guest}/wait", VIEWER, RF_CACHED, &schema_guest, NULL, &wait_query, "wait", "wait until a guest is in a state"),
	R(GUEST_INFO, "GET", "/v1/guests/{guest}/info", VIEWER, 0, &schema_guest, NULL, NULL, "info", "all about a guest, with live counters"),
	R(GUEST_NMI, "POST", "/v1/guests/{guest}/nmi", OPERATOR, 0, &schema_guest, NULL, NULL, "debug nmi", "send a non-maskable interrupt"),
	R(GUEST_LOGS, "GET", "/v1/guests/{guest}/logs", VIEWER, RF_STREAM, &schema_guest, NULL, &logs_query, "logs", "the log of a guest's process and ports"),
	R(GUEST_CONSOLE_TICKET, "POST", "/v1/guests/{guest}/console", OPERATOR, 0, &schema_guest, &console_body, NULL, NULL, "ask for a one-use ticket to a console"),
	R(GUEST_CONSOLE, "GET", "/v1/guests/{guest}/console", OPERATOR, RF_UPGRADE, &schema_guest, NULL, &console_query, "console", "connect to a console"),

	R(DISK_LIST, "GET", "/v1/disks", VIEWER, RF_CACHED, &schema_disk, NULL, &list_query, "disk ls", "list disks"),
	R(DISK_CREATE, "POST", "/v1/disks", OPERATOR, RF_SLOW, &schema_disk, &schema_disk, NULL, "disk create", "make a disk"),
	R(DISK_GET, "GET", "/v1/disks/{disk}", VIEWER, RF_CACHED, &schema_disk, NULL, &get_query, "disk info", "show a disk"),
	R(DISK_DELETE, "DELETE", "/v1/disks/{disk}", OPERATOR, RF_SLOW | ID, &schema_disk, NULL, &disk_delete_query, "disk rm", "remove a disk"),
	R(DISK_RESIZE, "POST", "/v1/disks/{disk}/resize", OPERATOR, RF_SLOW, &schema_disk, &resize_body, NULL, "disk resize", "change a disk's size"),
	R(DISK_ATTACH, "POST", "/v1/disks/{disk}/attach", OPERATOR, 0, &schema_disk, &attach_body, NULL, "disk attach", "give a disk to a guest"),
	R(DISK_DETACH, "POST", "/v1/disks/{disk}/detach", OPERATOR, 0, &schema_disk, NULL, NULL, "disk detach", "take a disk from its guest"),
	R(DISK_CHECK, "POST", "/v1/disks/{disk}/check", OPERATOR, RF_SLOW, &schema_disk, &check_body, NULL, "disk check", "check a disk's metadata"),
	R(DISK_MAP, "POST", "/v1/disks/{disk}/map", OPERATOR, RF_SLOW, &schema_disk, NULL, NULL, "disk map", "show which parts of a disk are allocated, and where"),
	R(DISK_CONVERT, "POST", "/v1/disks/{disk}/convert", OPERATOR, RF_SLOW, &schema_disk, &convert_body, NULL, "disk convert", "copy a disk into another format"),
	R(DISK_CLONE, "POST", "/v1/disks/{disk}/clone", OPERATOR, RF_SLOW, &schema_disk, &clone_body, NULL, "disk clone",
	  "make overlays over a disk, a snapshot's layer or an image, any number at once; the full copy is disk convert"),
	R(DISK_COMMIT, "POST", "/v1/disks/{disk}/commit", OPERATOR, RF_SLOW, &schema_disk, NULL, NULL, "disk commit", "write what a disk holds into the disk that it is built on; while a guest uses it the two become one, under its name"),
	R(DISK_REBASE, "POST", "/v1/disks/{disk}/rebase", OPERATOR, RF_SLOW, &schema_disk, &rebase_body, NULL, "disk rebase", "build a disk on another, or on nothing, with the same content; while a guest uses it: on one that it is built on, or on nothing"),
	R(DISK_COMPARE, "POST", "/v1/disks/{disk}/compare", OPERATOR, RF_SLOW, &schema_disk, &compare_body, NULL, "disk compare", "do two disks hold the same? Exit status 1: they differ"),
	R(DISK_INSPECT, "POST", "/v1/disks/{disk}/inspect", OPERATOR, RF_SLOW, &schema_disk, NULL, NULL, "disk inspect",
	  "what a disk's file says of itself, with the members of qemu-img info; also while a guest uses it"),
	R(DISK_COMPACT, "POST", "/v1/disks/{disk}/compact", OPERATOR, RF_SLOW, &schema_disk, NULL, NULL, "disk compact", "give back to the host what a disk's file does not need"),
	R(DISK_BITMAP, "POST", "/v1/disks/{disk}/bitmap", OPERATOR, RF_SLOW, &schema_disk, &bitmap_body, NULL, "disk bitmap",
	  "add, remove or change a bitmap of what is written, for incremental backups; also while a guest runs (disk inspect lists them)"),
	R(DISK_BACKUP, "POST", "/v1/disks/{disk}/backup", OPERATOR, RF_SLOW, &schema_disk, &backup_body, NULL, "disk backup",
	  "copy what a disk holds at this moment into a new disk, all of it or what changed; also while a guest uses it"),
	R(DISK_RESTORE, "POST", "/v1/disks/{disk}/restore", OPERATOR, RF_SLOW, &schema_disk, &restore_body, NULL, "disk restore",
	  "give a disk what another one shows, as a backup; what it held is gone"),
	R(DISK_EXPORT, "POST", "/v1/disks/{disk}/export", ADMIN, 0, &schema_disk, &export_body, NULL, "disk export", "serve a disk over NBD on a socket of this host, until disk unexport"),
	R(DISK_UNEXPORT, "DELETE", "/v1/disks/{disk}/export", ADMIN, ID, &schema_disk, NULL, NULL, "disk unexport", "serve a disk no longer"),

	R(SNAPSHOT_LIST, "GET", "/v1/snapshots", VIEWER, RF_CACHED, &schema_snapshot, NULL, &list_query, "snapshot ls", "list snapshots"),
	R(SNAPSHOT_CREATE, "POST", "/v1/snapshots", OPERATOR, RF_SLOW, &schema_snapshot, &schema_snapshot, NULL, "snapshot create",
	  "keep what all disks of a guest hold at one moment, also while it runs; of the disks only, as after a power cut, not of memory"),
	R(SNAPSHOT_GET, "GET", "/v1/snapshots/{snapshot}", VIEWER, RF_CACHED, &schema_snapshot, NULL, &get_query, "snapshot info", "show a snapshot, as GUEST/NAME"),
	R(SNAPSHOT_RESTORE, "POST", "/v1/snapshots/{snapshot}/restore", OPERATOR, RF_SLOW, &schema_snapshot, NULL, NULL, "snapshot restore",
	  "put the disks of a stopped guest back to a snapshot, as GUEST NAME or GUEST/NAME; what they held since is gone"),
	R(SNAPSHOT_DELETE, "DELETE", "/v1/snapshots/{snapshot}", OPERATOR, RF_SLOW | ID, &schema_snapshot, NULL, NULL, "snapshot rm",
	  "remove a snapshot, as GUEST NAME or GUEST/NAME; the disks keep what they hold"),

	R(IMAGE_LIST, "GET", "/v1/images", VIEWER, RF_CACHED, &schema_image, NULL, &list_query, "image ls", "list images"),
	R(IMAGE_CREATE, "POST", "/v1/images", OPERATOR, 0, &schema_image, &schema_image, NULL, "image import", "import a file as an image"),
	R(IMAGE_GET, "GET", "/v1/images/{image}", VIEWER, RF_CACHED, &schema_image, NULL, &get_query, "image info", "show an image"),
	R(IMAGE_UPLOAD, "PUT", "/v1/images/{image}/content", OPERATOR, RF_UPLOAD | RF_SLOW, &schema_image, NULL, &upload_query, NULL, "send an image's bytes"),
	R(IMAGE_DELETE, "DELETE", "/v1/images/{image}", OPERATOR, ID, &schema_image, NULL, NULL, "image rm", "remove an image"),
	R(IMAGE_EXPORT, "GET", "/v1/images/{image}/content", VIEWER, RF_STREAM, &schema_image, NULL, NULL, "image export", "fetch an image's bytes"),

	R(POOL_LIST, "GET", "/v1/pools", VIEWER, RF_CACHED, &schema_pool, NULL, &list_query, "pool ls", "list pools"),
	R(POOL_CREATE, "POST", "/v1/pools", ADMIN, 0, &schema_pool, &schema_pool, NULL, "pool create", "make a pool"),
	R(POOL_GET, "GET", "/v1/pools/{pool}", VIEWER, RF_CACHED, &schema_pool, NULL, &get_query, "pool info", "show a pool"),
	R(POOL_PATCH, "PATCH", "/v1/pools/{pool}", ADMIN, 0, &schema_pool, &schema_pool, NULL, "pool set", "change a pool's quota or watermark"),
	R(POOL_DELETE, "DELETE", "/v1/pools/{pool}", ADMIN, ID, &schema_pool, NULL, NULL, "pool rm", "forget an empty pool"),

	R(NET_LIST, "GET", "/v1/networks", VIEWER, RF_CACHED, &schema_network, NULL, &list_query, "net ls", "list networks"),
	R(NET_CREATE, "POST", "/v1/networks", ADMIN, 0, &schema_network, &schema_network, NULL, "net create", "make a network"),
	R(NET_GET, "GET", "/v1/networks/{network}", VIEWER, RF_CACHED, &schema_network, NULL, &get_query, "net info", "show a network"),
	R(NET_DELETE, "DELETE", "/v1/networks/{network}", ADMIN, ID, &schema_network, NULL, NULL, "net rm", "remove a network that no guest uses"),
	R(NET_LEASES, "GET", "/v1/networks/{network}/leases", VIEWER, 0, &schema_network, NULL, NULL, "leases", "addresses handed out on a network"),
	R(NIC_ATTACH, "POST", "/v1/guests/{guest}/nics/attach", OPERATOR, 0, &schema_guest, &nic_attach_body, NULL, "nic attach",
	  "give a stopped guest one more network interface"),
	R(NIC_DETACH, "POST", "/v1/guests/{guest}/nics/detach", OPERATOR, 0, &schema_guest, &nic_detach_body, NULL, "nic detach", "take one from a stopped guest"),
	R(FORWARD_LIST, "GET", "/v1/forwards", VIEWER, RF_CACHED, &schema_forward, NULL, &list_query, "forward ls", "list ports of the host that lead to guests"),
	R(FORWARD_CREATE, "POST", "/v1/forwards", ADMIN, 0, &schema_forward, &schema_forward, NULL, "forward add", "let a port of the host lead to a guest; both in one: [ADDRESS:]8080:80[/udp]"),
	R(FORWARD_GET, "GET", "/v1/forwards/{forward}", VIEWER, RF_CACHED, &schema_forward, NULL, &get_query, "forward info", "show a forward"),
	R(FORWARD_DELETE, "DELETE", "/v1/forwards/{forward}", ADMIN, ID, &schema_forward, NULL, NULL, "forward rm", "close a port of the host again"),

	R(OP_LIST, "GET", "/v1/operations", VIEWER, RF_CACHED, &schema_operation, NULL, &list_query, "ops", "list operations"),
	R(OP_GET, "GET", "/v1/operations/{operation}", VIEWER, RF_CACHED, &schema_operation, NULL, &get_query, "ops info", "show an operation"),
	R(OP_CANCEL, "POST", "/v1/operations/{operation}/cancel", OPERATOR, 0, &schema_operation, NULL, NULL, "ops cancel", "cancel an operation"),

	R(EVENT_STREAM, "GET", "/v1/events", VIEWER, RF_STREAM, &schema_event, NULL, &events_query, "events", "what happens, as it happens"),
	R(TOKEN_LIST, "GET", "/v1/tokens", ADMIN, 0, &schema_token, NULL, NULL, "token ls", "list tokens"),
	R(TOKEN_CREATE, "POST", "/v1/tokens", ADMIN, 0, &schema_token, &schema_token, NULL, "token create", "make a token"),
	R(TOKEN_DELETE, "DELETE", "/v1/tokens/{token}", ADMIN, ID, &schema_token, NULL, NULL, "token rm", "revoke a token"),
	R(HOST_GET, "GET", "/v1/hosts/local", VIEWER, 0, &schema_host, NULL, NULL, "host info", "show this host"),
	R(TOP, "GET", "/v1/top", VIEWER, 0, &schema_guest, NULL, NULL, "top", "what running guests use"),
	R(DOCTOR, "GET", "/v1/doctor", VIEWER, 0, &schema_host, NULL, NULL, "doctor", "check what this host can do, and how to mend what it cannot"),
	R(METRICS, "GET", "/metrics", VIEWER, 0, &schema_host, NULL, NULL, "metrics", "counters in Prometheus text"),
	R(OPENAPI, "GET", "/v1/openapi.json", NONE, RF_PUBLIC, &schema_host, NULL, NULL, NULL, "this API, as OpenAPI 3.1"),
	R(HEALTHZ, "GET", "/v1/healthz", NONE, RF_PUBLIC, &schema_host, NULL, NULL, NULL, "is the daemon well"),
	R(VERSION, "GET", "/v1/version", NONE, RF_PUBLIC, &schema_host, NULL, NULL, NULL, "version of the daemon and of the API"),
};

static const char *const route_names[ROUTE_COUNT] = {
#define X(n) #n,
	ROUTES(X)
#undef X
};

const char *route_name(enum route_id id)
{
	return (unsigned)id < ROUTE_COUNT ? route_names[id] : "?";
}

const struct schema_object *schema_object_find(const char *name)
{
	for (const struct schema_object *const *o = schema_objects; *o; o++)
		if (!strcmp((*o)->name, name))
			return *o;
	return NULL;
}

const struct schema_field *schema_field_find(const struct schema_object *o, const char *name)
{
	for (const struct schema_field *f = o->fields; f->name; f++)
		if (!strcmp(f->name, name))
			return f;
	return NULL;
}
