/* schema_objects.c - the rows of schema.h that describe objects: what a guest, disk, image, ... is
 * made of, what may be given on create, changed by PATCH, seen by GET, and what each member means.
 * Help texts are one line and hold the default.
 * Order of fields is the order of table columns, of help and of the manual.
 */
#include "common/schema.h"

#include <stddef.h>

/* tables, a row a line */
/* clang-format off */

#define KIB_ 1024LL
#define MIB_ (1024 * KIB_)
#define GIB_ (1024 * MIB_)
#define TIB_ (1024 * GIB_)
#define HOUR_MS 3600000LL

#define CP (SF_CREATE | SF_PATCH | SF_READ)
#define CPL (CP | SF_LIVE)
#define CR (SF_CREATE | SF_READ)
#define RO SF_READ
#define VALUES(...) (const char *const[]){ __VA_ARGS__, NULL }

/* ---- parts of a guest ---- */

static const struct schema_field guest_disk_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR, .format = "name", .max = 31, .help = "name inside the guest's definition (default: disk0, disk1, ...)" },
	{ .name = "disk", .type = ST_STRING, .flags = CR, .format = "volume", .help = "existing disk, as NAME or POOL/NAME" },
	{ .name = "image", .type = ST_STRING, .flags = CR, .format = "image", .help = "image to put a new overlay disk on" },
	{ .name = "backing", .type = ST_STRING, .flags = CR, .format = "volume", .help = "disk that a new disk is an overlay of" },
	{ .name = "size", .type = ST_SIZE, .flags = CR, .min = 512, .max = 64 * TIB_, .help = "size of a new disk (default: that of the image or backing disk)" },
	{ .name = "format", .type = ST_ENUM, .flags = CR, .values = VALUES("qcow2", "raw"), .dflt = "qcow2", .help = "format of a new disk (default qcow2)" },
	{ .name = "pool", .type = ST_STRING, .flags = CR, .format = "name", .dflt = "default", .help = "pool of a new disk (default: default)" },
	{ .name = "cache", .type = ST_ENUM, .flags = CR, .values = VALUES("writeback", "none", "unsafe"), .dflt = "writeback",
	  .help = "host caching: writeback, none (O_DIRECT), unsafe (flushes ignored) (default writeback)" },
	{ .name = "discard", .type = ST_BOOL, .flags = CR, .dflt = "true", .help = "pass discards to the file (default true)" },
	{ .name = "detect_zeroes", .type = ST_BOOL, .flags = CR, .dflt = "false", .help = "turn writes of zeroes into holes (default false)" },
	{ .name = "read_only", .type = ST_BOOL, .flags = CR, .dflt = "false", .help = "the guest may not write (default false)" },
	{ .name = "serial", .type = ST_STRING, .flags = CR, .min = 1, .max = 20, .help = "serial number the guest sees (default: the disk's name)" },
	{ .name = "queues", .type = ST_INT, .flags = CR, .min = 1, .max = 16, .dflt = "1", .help = "request queues (default 1)" },
	{ .name = "iops", .type = ST_INT, .flags = CR, .min = 0, .max = 100000000, .help = "requests a second at most; 0: no limit (default 0)" },
	{ .name = "bps", .type = ST_SIZE, .flags = CR, .min = 0, .max = TIB_, .help = "bytes a second at most; 0: no limit (default 0)" },
	{ .name = "on_error", .type = ST_ENUM, .flags = CR, .values = VALUES("report", "pause", "enospc-pause"), .dflt = "enospc-pause",
	  .help = "on an I/O error: report it to the guest, pause the guest, or pause only when space ran out (default enospc-pause)" },
	{ 0 },
};
const struct schema_object schema_guest_disk = { "guest_disk", NULL, "A disk of a guest.", guest_disk_fields, "disk" };

static const struct schema_field guest_nic_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR, .format = "name", .max = 31, .help = "name inside the guest's definition (default: net0, net1, ...)" },
	{ .name = "network", .type = ST_STRING, .flags = CR | SF_REQUIRED, .format = "network", .help = "network to connect to" },
	{ .name = "mac", .type = ST_STRING, .flags = CR, .format = "mac", .help = "hardware address (default: made from the guest's UUID)" },
	{ .name = "ip", .type = ST_STRING, .flags = CR, .format = "ipv4", .help = "address that the network's DHCP hands out to it (default: any free)" },
	{ .name = "mtu", .type = ST_INT, .flags = CR, .min = 576, .max = 65535, .help = "MTU (default: that of the network)" },
	{ .name = "queues", .type = ST_INT, .flags = CR, .min = 1, .max = 8, .dflt = "1", .help = "queue pairs (default 1)" },
	{ 0 },
};
const struct schema_object schema_guest_nic = { "guest_nic", NULL, "A network interface of a guest.", guest_nic_fields, "network" };

static const struct schema_field guest_port_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR, .format = "name", .max = 31, .help = "name of the port (default: serial0, ... or console0, ...)" },
	{ .name = "spec", .type = ST_STRING, .flags = CR | SF_REQUIRED, .format = "serialspec", .min = 1, .max = 255,
	  .help = "where it leads: log, null, pty, file:PATH, unix:PATH[,connect], tcp:HOST:PORT[,connect], tty:PATH, guest:NAME:PORT" },
	{ .name = "address", .type = ST_STRING, .flags = RO, .help = "what was opened: the pty's name, the port listened on" },
	{ 0 },
};
const struct schema_object schema_guest_port = { "guest_port", NULL, "A serial or console port of a guest.", guest_port_fields, "spec" };

/* ---- guest ---- */

static const struct schema_field guest_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR | SF_REQUIRED | SF_COLUMN, .format = "name", .help = "unique name: 1 to 63 letters, digits, . _ -" },
	{ .name = "uuid", .type = ST_STRING, .flags = CR | SF_WIDE, .format = "uuid", .help = "identity for life (default: random)" },
	{ .name = "state", .type = ST_ENUM, .flags = RO | SF_COLUMN,
	  .values = VALUES("stopped", "starting", "running", "pausing", "paused", "stopping", "crashed", "failed", "saved", "deleted"), .help = "what it is doing" },
	{ .name = "state_reason", .type = ST_STRING, .flags = RO | SF_WIDE, .help = "why it is in that state" },
	{ .name = "cpus", .type = ST_INT, .flags = CP | SF_COLUMN, .min = 1, .max = 255, .cli = "cpus", .dflt = "1", .help = "virtual CPUs (default 1)" },
	{ .name = "memory", .type = ST_SIZE, .flags = CP | SF_COLUMN, .min = 4 * MIB_, .max = 4 * TIB_, .cli = "memory", .dflt = "512M",
	  .help = "RAM, as 512M or 4G (default 512M)" },
	{ .name = "memory_pages", .type = ST_ENUM, .flags = CP, .values = VALUES("small", "thp", "huge"), .cli = "memory-pages", .dflt = "small",
	  .help = "host pages behind RAM: small; thp, transparent huge; huge, 2 MiB of vm.nr_hugepages, else thp (default small)" },
	{ .name = "accel", .type = ST_STRING, .flags = CP | SF_WIDE, .format = "accel", .max = 63, .cli = "accel", .dflt = "auto",
	  .help = "what executes it: auto (measures, picks), kvm, soft; soft,threads=1[,icount] has virtual time (default auto)" },
	{ .name = "accel_used", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "what executes it now" },
	{ .name = "accel_reason", .type = ST_STRING, .flags = RO, .help = "why auto picked that" },
	{ .name = "net_backend", .type = ST_STRING, .flags = RO, .help = "who moves each network port's frames: vhost, or tap and why" },
	{ .name = "machine", .type = ST_ENUM, .flags = CP, .values = VALUES("pc"), .cli = "machine", .dflt = "pc", .help = "machine model (default pc)" },
	{ .name = "cpu_model", .type = ST_ENUM, .flags = CP, .values = VALUES("host", "x86-64-v1", "x86-64-v2", "x86-64-v3"), .cli = "cpu-model",
	  .dflt = "host", .help = "CPU model shown to the guest (default host)" },
	{ .name = "cpu_flags", .type = ST_STRING, .flags = CP, .max = 255, .cli = "cpu-flags", .help = "CPU features to add or take away, as +rdrand,-avx2" },
	{ .name = "nested", .type = ST_BOOL, .flags = CP, .cli = "nested", .dflt = "false", .help = "let the guest run guests (default false)" },
	{ .name = "kernel", .type = ST_STRING, .flags = CP, .format = "image", .cli = "kernel", .help = "kernel image to boot; vmctl uploads a value with a slash" },
	{ .name = "initrd", .type = ST_STRING, .flags = CP, .format = "image", .cli = "initrd", .help = "initial RAM disk image; vmctl uploads a value with a slash" },
	{ .name = "cmdline", .type = ST_STRING, .flags = CP, .max = 4095, .cli = "cmdline", .help = "kernel command line (default: console=ttyS0)" },
	{ .name = "boot_format", .type = ST_ENUM, .flags = CP, .values = VALUES("auto", "bzimage", "elf", "pvh"), .cli = "boot-format", .dflt = "auto",
	  .help = "how the kernel is entered; auto unpacks a bzImage on the host, bzimage leaves that to its stub (default auto)" },
	{ .name = "boot_format_used", .type = ST_STRING, .flags = RO | SF_WIDE, .help = "how its kernel was entered" },
	{ .name = "disks", .type = ST_ARRAY, .flags = CP, .max = 64, .object = &schema_guest_disk, .cli = "disk",
	  .help = "disk, as name=,size=,format=,pool=,backing=,cache=,discard= or NAME; repeatable" },
	{ .name = "nics", .type = ST_ARRAY, .flags = CP, .max = 16, .object = &schema_guest_nic, .cli = "net",
	  .help = "network interface, as NETWORK[,mac=,ip=]; repeatable" },
	{ .name = "serials", .type = ST_ARRAY, .flags = CP, .max = 4, .object = &schema_guest_port, .cli = "serial",
	  .help = "16550A port: log, null, pty, file:, unix:, tcp:, tty:, guest:; repeatable (default: one, log)" },
	{ .name = "consoles", .type = ST_ARRAY, .flags = CP, .max = 128, .object = &schema_guest_port, .cli = "console",
	  .help = "virtio-console port, values as --serial; repeatable" },
	{ .name = "rng", .type = ST_BOOL, .flags = CP, .cli = "rng", .dflt = "true", .help = "give it a virtio-rng (default true)" },
	{ .name = "labels", .type = ST_MAP, .flags = CPL, .max = 64, .cli = "label", .help = "key=value, to select by; repeatable" },
	{ .name = "autostart", .type = ST_BOOL, .flags = CPL, .cli = "autostart", .dflt = "false", .help = "start it when the daemon starts on a fresh boot (default false)" },
	{ .name = "restart", .type = ST_ENUM, .flags = CPL, .values = VALUES("no", "on-failure", "always"), .cli = "restart", .dflt = "no",
	  .help = "start it again when it ends: no, on-failure, always (default no)" },
	{ .name = "restarts", .type = ST_INT, .flags = RO, .help = "starts by that policy since it last ran for a minute" },
	{ .name = "on_reboot", .type = ST_ENUM, .flags = CP, .values = VALUES("reboot", "stop"), .cli = "on-reboot", .dflt = "reboot",
	  .help = "what the guest's own reboot does: reboot, or stop, which with --restart always makes it anew (default reboot)" },
	{ .name = "start_order", .type = ST_INT, .flags = CPL, .min = -1000, .max = 1000, .cli = "start-order", .dflt = "0",
	  .help = "autostart order, low first (default 0)" },
	{ .name = "stop_timeout", .type = ST_DURATION, .flags = CPL, .min = 0, .max = HOUR_MS, .cli = "stop-timeout", .dflt = "60s",
	  .help = "how long a graceful stop may take before it is forced (default 60s)" },
	{ .name = "saved", .type = ST_STRING, .flags = RO, .format = "time", .help = "when what its next start goes on from was saved" },
	{ .name = "saved_accel", .type = ST_STRING, .flags = RO, .help = "what executed it then, and will" },
	{ .name = "started", .type = ST_STRING, .flags = RO | SF_COLUMN, .format = "time", .help = "when it was last started" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when it was defined" },
	{ .name = "pid", .type = ST_INT, .flags = RO | SF_WIDE, .help = "its process" },
	{ .name = "revision", .type = ST_INT, .flags = RO, .help = "grows with every change; the ETag" },
	{ 0 },
};
const struct schema_object schema_guest = { "guest", "guests", "A virtual machine.", guest_fields, NULL };

/* ---- disk, image, pool, network ---- */

static const struct schema_field disk_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR | SF_REQUIRED | SF_COLUMN, .format = "name", .help = "name, unique in its pool" },
	{ .name = "uuid", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "uuid", .help = "identity" },
	{ .name = "pool", .type = ST_STRING, .flags = CR | SF_COLUMN, .format = "name", .cli = "pool", .dflt = "default", .help = "pool that holds it (default: default)" },
	{ .name = "format", .type = ST_ENUM, .flags = CR | SF_COLUMN, .values = VALUES("qcow2", "raw"), .cli = "format", .dflt = "qcow2", .help = "file format (default qcow2)" },
	{ .name = "size", .type = ST_SIZE, .flags = CR | SF_COLUMN, .min = 512, .max = 64 * TIB_, .cli = "size",
	  .help = "virtual size, a multiple of 512 (default: that of backing or image)" },
	{ .name = "allocated", .type = ST_SIZE, .flags = RO | SF_WIDE, .help = "bytes used on the host" },
	{ .name = "backing", .type = ST_STRING, .flags = CR | SF_COLUMN, .format = "volume", .cli = "backing", .help = "disk it is an overlay of" },
	{ .name = "image", .type = ST_STRING, .flags = CR, .format = "image", .cli = "image", .help = "image it is an overlay of" },
	{ .name = "cluster_size", .type = ST_SIZE, .flags = CR, .min = 512, .max = 2 * MIB_, .cli = "cluster-size", .help = "qcow2 cluster size (default 64K)" },
	{ .name = "volume", .type = ST_STRING, .flags = CR, .min = 1, .max = 127, .cli = "volume", .help = "an existing file of the pool, NAME.FORMAT or NAME.*.FORMAT, becomes this disk; it is not changed (of a shared pool: the disk of another host)" },
	{ .name = "guest", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "guest that has it" },
	{ .name = "state", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "ready, busy, missing or error" },
	{ .name = "export", .type = ST_STRING, .flags = RO | SF_WIDE, .help = "where it is served over NBD, as a URI" },
	{ .name = "snapshot", .type = ST_STRING, .flags = RO | SF_WIDE, .help = "snapshot that it is a layer of: it does not change" },
	{ .name = "file", .type = ST_STRING, .flags = RO | SF_WIDE, .help = "its file in the pool's directory, where that is not NAME.FORMAT" },
	{ .name = "labels", .type = ST_MAP, .flags = CR, .max = 64, .cli = "label", .help = "key=value; repeatable" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when it was made" },
	{ .name = "revision", .type = ST_INT, .flags = RO, .help = "the ETag" },
	{ 0 },
};
const struct schema_object schema_disk = { "disk", "disks", "A disk: a file in a pool.", disk_fields, NULL };

static const struct schema_field snapshot_disk_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = RO, .help = "name inside the guest's definition" },
	{ .name = "disk", .type = ST_STRING, .flags = RO, .help = "the guest's disk" },
	{ .name = "layer", .type = ST_STRING, .flags = RO, .help = "disk that holds what it held then; it may be read, compared, converted, exported and built on" },
	{ .name = "size", .type = ST_SIZE, .flags = RO, .help = "its virtual size then" },
	{ 0 },
};
static const struct schema_object schema_snapshot_disk = { "snapshot_disk", NULL, "A disk of a snapshot.", snapshot_disk_fields, NULL };

static const struct schema_field snapshot_fields[] = {
	{ .name = "guest", .type = ST_STRING, .flags = CR | SF_REQUIRED | SF_COLUMN, .format = "guest", .help = "guest whose disks it keeps" },
	{ .name = "name", .type = ST_STRING, .flags = CR | SF_COLUMN, .format = "name", .max = 40, .help = "name, unique for the guest (default: s1, s2, ...)" },
	{ .name = "uuid", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "uuid", .help = "identity" },
	{ .name = "state", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "busy, ready or removing" },
	{ .name = "live", .type = ST_BOOL, .flags = RO | SF_COLUMN, .help = "taken while the guest ran: its disks are as after a power cut" },
	{ .name = "disks", .type = ST_ARRAY, .flags = RO, .max = 64, .object = &schema_snapshot_disk, .help = "what it keeps" },
	{ .name = "labels", .type = ST_MAP, .flags = CR, .max = 64, .cli = "label", .help = "key=value; repeatable" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_COLUMN, .format = "time", .help = "when it was taken" },
	{ .name = "revision", .type = ST_INT, .flags = RO, .help = "the ETag" },
	{ 0 },
};
const struct schema_object schema_snapshot = { "snapshot", "snapshots", "What the disks of a guest held at one moment.", snapshot_fields, NULL };

static const struct schema_field image_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR | SF_REQUIRED | SF_COLUMN, .format = "name", .help = "unique name" },
	{ .name = "uuid", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "uuid", .help = "identity" },
	{ .name = "kind", .type = ST_ENUM, .flags = CR | SF_COLUMN, .values = VALUES("disk", "kernel", "initrd", "iso"), .cli = "kind", .dflt = "disk",
	  .help = "what it is for: disk, kernel, initrd, iso (default disk)" },
	{ .name = "format", .type = ST_ENUM, .flags = CR | SF_COLUMN, .values = VALUES("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc"), .cli = "format",
	  .help = "format of the file: qcow2, raw, or vmdk, vdi, vhdx, vpc, which become qcow2; never guessed from its content (default: by the name's end, as *.qcow2, else raw)" },
	{ .name = "file", .type = ST_STRING, .flags = RO | SF_WIDE, .help = "its file in the pool's directory, where that is not NAME.img" },
	{ .name = "size", .type = ST_SIZE, .flags = CR | SF_COLUMN, .min = 0, .max = 64 * TIB_, .help = "bytes of the upload (on create: to come)" },
	{ .name = "allocated", .type = ST_SIZE, .flags = RO | SF_WIDE, .help = "bytes used on the host" },
	{ .name = "sha256", .type = ST_STRING, .flags = CR | SF_WIDE, .min = 64, .max = 64, .help = "SHA-256 of the file (on create: what the upload must have)" },
	{ .name = "state", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "uploading, checking, ready or error" },
	{ .name = "pool", .type = ST_STRING, .flags = CR | SF_WIDE, .format = "name", .cli = "pool", .dflt = "default", .help = "pool that holds it (default: default)" },
	{ .name = "labels", .type = ST_MAP, .flags = CR, .max = 64, .cli = "label", .help = "key=value; repeatable" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_COLUMN, .format = "time", .help = "when it was imported" },
	{ .name = "revision", .type = ST_INT, .flags = RO, .help = "the ETag" },
	{ 0 },
};
const struct schema_object schema_image = { "image", "images", "A read-only file that guests boot from or disks build on.", image_fields, NULL };

static const struct schema_field pool_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR | SF_REQUIRED | SF_COLUMN, .format = "name", .help = "unique name" },
	{ .name = "path", .type = ST_STRING, .flags = CR | SF_COLUMN, .format = "path", .min = 1, .max = 1023, .cli = "path",
	  .help = "directory, beneath a root that vmd.conf allows (default: <state>/pools/NAME)" },
	{ .name = "size", .type = ST_SIZE, .flags = RO | SF_COLUMN, .help = "bytes of its file system" },
	{ .name = "free", .type = ST_SIZE, .flags = RO | SF_COLUMN, .help = "bytes free" },
	{ .name = "allocated", .type = ST_SIZE, .flags = RO | SF_COLUMN, .help = "bytes its volumes use" },
	{ .name = "provisioned", .type = ST_SIZE, .flags = RO | SF_COLUMN, .help = "bytes its disks could come to use: the sum of their virtual sizes" },
	{ .name = "overcommit", .type = ST_INT, .flags = RO | SF_WIDE, .help = "that, in percent of its quota or file system" },
	{ .name = "used", .type = ST_INT, .flags = RO | SF_COLUMN, .help = "percent of its quota, or of its file system, in use" },
	{ .name = "quota", .type = ST_SIZE, .flags = CP | SF_WIDE, .min = 0, .max = 1024 * TIB_, .cli = "quota", .help = "bytes its volumes may use before no more are made; what exists may grow on (default: none)" },
	{ .name = "shared", .type = ST_BOOL, .flags = CR | SF_WIDE, .cli = "shared", .dflt = "false", .help = "several hosts use it: each disk has one writer at a time, by a lease (default false)" },
	{ .name = "stale", .type = ST_INT, .flags = CP | SF_WIDE, .min = 1, .max = 600, .cli = "stale", .dflt = "20", .help = "seconds without a sign of life until a disk's writer on another host counts as dead; shared pools (default 20)" },
	{ .name = "watermark", .type = ST_INT, .flags = CP | SF_WIDE, .min = 1, .max = 100, .cli = "watermark", .dflt = "85", .help = "an event (pool.watermark) where so many percent are used (default 85)" },
	{ .name = "volumes", .type = ST_INT, .flags = RO | SF_COLUMN, .help = "how many disks and images" },
	{ .name = "state", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "ready, read-only or missing" },
	{ .name = "reason", .type = ST_STRING, .flags = RO, .help = "why it is not ready" },
	{ .name = "labels", .type = ST_MAP, .flags = CP, .max = 64, .cli = "label", .help = "key=value; repeatable" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when it was made" },
	{ .name = "revision", .type = ST_INT, .flags = RO, .help = "the ETag" },
	{ 0 },
};
const struct schema_object schema_pool = { "pool", "pools", "A directory that holds disks and images.", pool_fields, NULL };

static const struct schema_field network_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR | SF_REQUIRED | SF_COLUMN, .format = "name", .help = "unique name" },
	{ .name = "bridge", .type = ST_STRING, .flags = CR | SF_COLUMN, .format = "ifname", .max = 15, .cli = "bridge",
	  .help = "bridge to use; made if it does not exist (default: one made and named after the network)" },
	{ .name = "cidr", .type = ST_STRING, .flags = CR | SF_COLUMN, .format = "cidr4", .cli = "cidr",
	  .help = "address and prefix of the host on it, as 10.1.2.1/24 (default: none; layer 2 only)" },
	{ .name = "nat", .type = ST_BOOL, .flags = CR | SF_COLUMN, .cli = "nat", .help = "masquerade towards the outside; without it, guests reach one another and the host only (default: true where cidr is given)" },
	{ .name = "dhcp", .type = ST_BOOL, .flags = CR | SF_COLUMN, .cli = "dhcp", .help = "run DHCP and DNS on it (default: true where cidr is given)" },
	{ .name = "dhcp_first", .type = ST_STRING, .flags = CR, .format = "ipv4", .cli = "dhcp-first", .help = "first address handed out" },
	{ .name = "dhcp_last", .type = ST_STRING, .flags = CR, .format = "ipv4", .cli = "dhcp-last", .help = "last address handed out" },
	{ .name = "domain", .type = ST_STRING, .flags = CR, .format = "name", .cli = "domain", .help = "DNS domain of its guests" },
	{ .name = "mtu", .type = ST_INT, .flags = CR, .min = 576, .max = 65535, .cli = "mtu", .help = "MTU (default 1500)" },
	{ .name = "isolated", .type = ST_BOOL, .flags = CR, .cli = "isolated", .dflt = "false", .help = "guests reach the host and, with NAT, the outside, but not one another (default false)" },
	{ .name = "state", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "up, down, removing or error" },
	{ .name = "guests", .type = ST_INT, .flags = RO | SF_COLUMN, .help = "interfaces connected" },
	{ .name = "labels", .type = ST_MAP, .flags = CR, .max = 64, .cli = "label", .help = "key=value; repeatable" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when it was made" },
	{ .name = "revision", .type = ST_INT, .flags = RO, .help = "the ETag" },
	{ 0 },
};
const struct schema_object schema_network = { "network", "networks", "A virtual network: a bridge, perhaps with NAT and DHCP.", network_fields, NULL };

static const struct schema_field forward_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR | SF_COLUMN, .format = "name", .cli = "name", .help = "unique name (default: protocol and port, as tcp-8080)" },
	{ .name = "guest", .type = ST_STRING, .flags = CR | SF_REQUIRED | SF_COLUMN, .format = "guest", .help = "guest that it leads to" },
	{ .name = "host_port", .type = ST_INT, .flags = CR | SF_REQUIRED | SF_COLUMN, .min = 1, .max = 65535, .help = "port of the host" },
	{ .name = "guest_port", .type = ST_INT, .flags = CR | SF_REQUIRED | SF_COLUMN, .min = 1, .max = 65535, .help = "port of the guest" },
	{ .name = "proto", .type = ST_ENUM, .flags = CR | SF_COLUMN, .values = VALUES("tcp", "udp"), .cli = "proto", .dflt = "tcp", .help = "tcp or udp (default tcp)" },
	{ .name = "host_ip", .type = ST_STRING, .flags = CR | SF_COLUMN, .format = "ipv4", .cli = "host-ip", .help = "address of the host (default: each of its addresses)" },
	{ .name = "network", .type = ST_STRING, .flags = CR | SF_WIDE, .format = "network", .cli = "net", .help = "network to reach the guest on (default: the first that gave it an address)" },
	{ .name = "guest_ip", .type = ST_STRING, .flags = RO | SF_COLUMN, .format = "ipv4", .help = "address of the guest" },
	{ .name = "state", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "up, down or error" },
	{ .name = "reason", .type = ST_STRING, .flags = RO | SF_WIDE, .help = "why it is not up" },
	{ .name = "labels", .type = ST_MAP, .flags = CR, .max = 64, .cli = "label", .help = "key=value; repeatable" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when it was made" },
	{ .name = "revision", .type = ST_INT, .flags = RO, .help = "the ETag" },
	{ 0 },
};
const struct schema_object schema_forward = { "forward", "forwards", "A port of the host that leads to a port of a guest.", forward_fields, NULL };

/* ---- operation, event, token, host ---- */

static const struct schema_field problem_fields[] = {
	{ .name = "type", .type = ST_STRING, .flags = RO, .help = "URI of the kind of problem" },
	{ .name = "title", .type = ST_STRING, .flags = RO, .help = "the status in words" },
	{ .name = "status", .type = ST_INT, .flags = RO, .help = "HTTP status" },
	{ .name = "code", .type = ST_STRING, .flags = RO, .help = "stable word for programs" },
	{ .name = "detail", .type = ST_STRING, .flags = RO, .help = "a sentence that names the object and the cause" },
	{ .name = "hint", .type = ST_STRING, .flags = RO, .help = "the next command to try" },
	{ .name = "field", .type = ST_STRING, .flags = RO, .help = "path of the member at fault, as disks[0].size" },
	{ .name = "op", .type = ST_STRING, .flags = RO, .help = "operation that failed" },
	{ 0 },
};
static const struct schema_object schema_problem = { "problem", NULL, "What went wrong (RFC 9457).", problem_fields, NULL };

static const struct schema_field op_item_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = RO, .help = "object" },
	{ .name = "state", .type = ST_STRING, .flags = RO, .help = "queued, running, succeeded, failed" },
	{ .name = "error", .type = ST_OBJECT, .flags = RO, .object = &schema_problem, .help = "why it failed" },
	{ 0 },
};
static const struct schema_object schema_op_item = { "operation_item", NULL, "One object of an operation over many.", op_item_fields, NULL };

static const struct schema_field operation_fields[] = {
	{ .name = "id", .type = ST_STRING, .flags = RO | SF_COLUMN, .format = "uuid", .help = "identity" },
	{ .name = "verb", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "what is done" },
	{ .name = "target", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "to what, as guest/web" },
	{ .name = "state", .type = ST_ENUM, .flags = RO | SF_COLUMN, .values = VALUES("queued", "running", "succeeded", "failed", "cancelled"), .help = "how far it is" },
	{ .name = "progress", .type = ST_INT, .flags = RO | SF_COLUMN, .max = 100, .help = "percent" },
	{ .name = "error", .type = ST_OBJECT, .flags = RO, .object = &schema_problem, .help = "why it failed" },
	{ .name = "items", .type = ST_ARRAY, .flags = RO, .object = &schema_op_item, .help = "result an object" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_COLUMN, .format = "time", .help = "when it was asked for" },
	{ .name = "finished", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when it ended" },
	{ .name = "revision", .type = ST_INT, .flags = RO, .help = "the ETag" },
	{ 0 },
};
const struct schema_object schema_operation = { "operation", "operations", "A slow verb under way or done.", operation_fields, NULL };

static const struct schema_field event_fields[] = {
	{ .name = "seq", .type = ST_INT, .flags = RO | SF_COLUMN, .help = "number, growing for ever; the Last-Event-ID" },
	{ .name = "time", .type = ST_STRING, .flags = RO | SF_COLUMN, .format = "time", .help = "when" },
	{ .name = "kind", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "what happened, as guest.started" },
	{ .name = "object", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "kind of object" },
	{ .name = "name", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "its name" },
	{ .name = "text", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "in words" },
	{ 0 },
};
const struct schema_object schema_event = { "event", "events", "Something that happened.", event_fields, NULL };

static const struct schema_field token_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = CR | SF_REQUIRED | SF_COLUMN, .format = "name", .help = "unique name; the principal in the audit log" },
	{ .name = "role", .type = ST_ENUM, .flags = CR | SF_COLUMN, .values = VALUES("viewer", "operator", "admin"), .cli = "role", .dflt = "viewer",
	  .help = "what it allows: viewer, operator, admin (default viewer)" },
	{ .name = "expires_in", .type = ST_DURATION, .flags = SF_CREATE, .min = 1000, .max = 366 * 24 * HOUR_MS, .cli = "expires-in", .dflt = "30d",
	  .help = "how long it is good for (default 30d)" },
	{ .name = "expires", .type = ST_STRING, .flags = RO | SF_COLUMN, .format = "time", .help = "when it ends" },
	{ .name = "token", .type = ST_STRING, .flags = RO | SF_SECRET, .help = "the secret; shown once, when it is made" },
	{ .name = "created", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when it was made" },
	{ .name = "used", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when it was last used" },
	{ 0 },
};
const struct schema_object schema_token = { "token", "tokens", "A bearer token for the TLS listener; only its hash is kept.", token_fields, NULL };

static const struct schema_field host_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "host name" },
	{ .name = "version", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "version of vmd" },
	{ .name = "cpus", .type = ST_INT, .flags = RO | SF_COLUMN, .help = "CPUs online" },
	{ .name = "memory", .type = ST_SIZE, .flags = RO | SF_COLUMN, .help = "RAM" },
	{ .name = "memory_free", .type = ST_SIZE, .flags = RO | SF_COLUMN, .help = "RAM available" },
	{ .name = "accel", .type = ST_STRING, .flags = RO | SF_COLUMN, .help = "what accel=auto picks here" },
	{ .name = "accel_reason", .type = ST_STRING, .flags = RO, .help = "and why" },
	{ .name = "guests", .type = ST_INT, .flags = RO, .help = "guests defined" },
	{ .name = "running", .type = ST_INT, .flags = RO | SF_COLUMN, .help = "guests running" },
	{ .name = "kernel", .type = ST_STRING, .flags = RO | SF_WIDE, .help = "kernel release" },
	{ .name = "started", .type = ST_STRING, .flags = RO | SF_WIDE, .format = "time", .help = "when the daemon started" },
	{ 0 },
};
const struct schema_object schema_host = { "host", "hosts", "This machine.", host_fields, NULL };

const struct schema_object *const schema_objects[] = {
	&schema_guest, &schema_guest_disk, &schema_guest_nic, &schema_guest_port, &schema_disk,	  &schema_snapshot, &schema_snapshot_disk, &schema_image,   &schema_pool,
	&schema_network, &schema_forward, &schema_operation, &schema_op_item,  &schema_event,	  &schema_token, &schema_host, &schema_problem, NULL,
};
