/* bootguest.c - one guest in one process, for tests: no daemon, no jail.
 *
 *	bootguest [--accel auto|kvm|soft] [--kernel K] [--initrd I] [--cmdline C] [--mem MIB] [--cpus N]
 *	          [--disk FILE[,qcow2]]... [--tap-fd N[,vhost]]... [--serials N] [--consoles N] [--console-out N=FILE]
 *	          [--rng] [--timeout S] [--expect TEXT] [--send TEXT=BYTES] [--power-after TEXT] [--cycle-after TEXT]
 *	          [--reboots N] [--model M] [--format F] [--icount] [--threads-one] [--stats] [--hash] [-v]
 *
 * Serial port 0 is standard output (and standard input, where that is a pipe or terminal). Exit
 * status: 0 the guest switched itself off, or --expect's text came; 1 it ended otherwise; 2 usage;
 * 3 could not be built;
 * 4 timed out. --tap-fd N,vhost: by the kernel's vhost-net, where it is there.
 * --power-after presses the power button once TEXT was seen; --cycle-after pauses, saves, loads into the
 * same VM and runs on; --send types BYTES (with \n) once TEXT was seen.
 * --hash prints a hash of the saved state and one of the memory of a guest that switched itself off.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/err.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "devices/machine_config.h"
#include "devices/virtio_devices.h"
#include "hypervisor-core/machine.h"
#include "hypervisor-core/vm.h"
#include "storage/blockdev.h"

#define TRIGGERS_MAX 16

enum trigger_kind { TRIGGER_EXPECT, TRIGGER_SEND, TRIGGER_POWER, TRIGGER_CYCLE };
struct trigger {
	enum trigger_kind kind;
	const char *text;
	const char *send;
	bool done;
};

struct guest {
	struct loop *loop;
	struct vm *vm;
	const struct machine_ops *machine;
	struct loop_fd out, in;
	int serial_fd;
	char *seen; /* serial output so far, for the triggers */
	size_t seen_len, seen_cap;
	struct trigger triggers[TRIGGERS_MAX];
	unsigned ntriggers;
	int reboots;
	/* --cycle-after: devices not yet quiet; the state before and after a load */
	unsigned waiting;
	bool again;
	struct state_writer saved[2];
	int status;
	uint64_t start_ns;
	bool stats, hash;
};

static void guest_end(struct guest *g, int status)
{
	if (g->status < 0)
		g->status = status;
	loop_stop(g->loop);
}

static void guest_report(const char *what, const struct err *e)
{
	fprintf(stderr, "bootguest: %s: %s (%s)%s%s\n", what, e->detail, e->code,
		e->hint[0] ? "; " : "", e->hint);
}

static void guest_type(struct guest *g, const char *text)
{
	char buf[512];
	size_t n = 0;

	for (; *text && n < sizeof(buf); text++) {
		if (text[0] == '\\' && text[1] == 'n') {
			buf[n++] = '\n';
			text++;
		} else {
			buf[n++] = *text;
		}
	}
	if (io_write_full(g->serial_fd, buf, n) < 0)
		perror("bootguest: typing");
}

static void guest_resume(struct guest *g)
{
	struct err e = { 0 };

	if (vm_start(g->vm, &e)) {
		guest_report("start", &e);
		guest_end(g, 1);
	}
}

/* bytes_same() - or say where they differ first. */
static bool bytes_same(const char *what, unsigned instance, const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (size_t i = 0; i < n; i++) {
		if (x[i] == y[i])
			continue;
		fprintf(stderr, "bootguest: %s %u differs at byte %zu of %zu: %02x, %02x\n", what,
			instance, i, n, x[i], y[i]);
		return false;
	}
	return true;
}

/* vcpu_same() - what counts on by itself while a guest is parked under KVM may differ: a vCPU's TSC
 * and its local APIC's timer count. */
static bool vcpu_same(unsigned i, struct x86_state *a, struct x86_state *b)
{
	bool same = bytes_same("msr count of vcpu", i, &a->nmsrs, &b->nmsrs, sizeof(a->nmsrs));

	for (unsigned m = 0; same && m < a->nmsrs; m++) {
		if (a->msr[m].index == 0x10)
			a->msr[m].value = b->msr[m].value = 0;
		if (memcmp(&a->msr[m], &b->msr[m], sizeof(a->msr[m]))) {
			fprintf(stderr, "bootguest: vcpu %u: MSR 0x%x was 0x%llx, is 0x%llx\n", i,
				a->msr[m].index, (unsigned long long)a->msr[m].value,
				(unsigned long long)b->msr[m].value);
			same = false;
		}
	}
	memset(a->lapic + 0x390, 0, 4);
	memset(b->lapic + 0x390, 0, 4);
	return same && bytes_same("local APIC of vcpu", i, a->lapic, b->lapic, sizeof(a->lapic)) &&
	       bytes_same("XSAVE area of vcpu", i, a->xsave, b->xsave, sizeof(a->xsave)) &&
	       bytes_same("vcpu", i, a, b, sizeof(*a));
}

/* guest_same() - do two saved states say the same? */
static bool guest_same(const struct state_writer *a, const struct state_writer *b)
{
	struct x86_state *s[2] = { calloc(1, sizeof(*s[0])), calloc(1, sizeof(*s[1])) };
	struct state_reader r[2];
	struct err e = { 0 };
	bool same = s[0] && s[1];

	state_reader_init(&r[0], a->data, a->len);
	state_reader_init(&r[1], b->data, b->len);
	while (same) {
		int more = state_next(&r[0], &e);

		if (more != state_next(&r[1], &e) || more < 0)
			same = false;
		if (more <= 0 || !same)
			break;
		same = strcmp(r[0].name, r[1].name) == 0;
		if (same && strcmp(r[0].name, "vcpu") != 0) {
			same = r[0].fields_len == r[1].fields_len &&
			       bytes_same(r[0].name, r[0].instance, r[0].fields, r[1].fields,
					  r[0].fields_len);
			continue;
		}
		for (unsigned i = 0; i < 2 && same; i++)
			same = x86_state_load(s[i], &r[i], &e) == 0;
		same = same && vcpu_same(r[0].instance, s[0], s[1]);
	}
	free(s[0]);
	free(s[1]);
	return same;
}

static void guest_quiet(void *arg);

/* As a save does it: parked, then every device quiet, which may take until I/O in flight has
 * ended. */
static void guest_quiesce(struct guest *g)
{
	g->waiting = 1;
	vm_lock(g->vm);
	list_for_each (n, &g->vm->devices) {
		struct device *d = container_of(n, struct device, node);

		if (!d->ops->quiesce)
			continue;
		g->waiting++;
		d->ops->quiesce(d, guest_quiet, g);
	}
	vm_unlock(g->vm);
	guest_quiet(g);
}

static void guest_unquiesce(struct guest *g)
{
	vm_lock(g->vm);
	list_for_each (n, &g->vm->devices) {
		struct device *d = container_of(n, struct device, node);

		if (d->ops->unquiesce)
			d->ops->unquiesce(d);
	}
	vm_unlock(g->vm);
}

static void guest_cycled(struct guest *g)
{
	const struct state_writer *w = &g->saved[0], *again = &g->saved[1];

	if (w->len != again->len ||
	    (g->vm->accel->caps & ACCEL_HAS_LAPIC ? !guest_same(w, again)
						  : memcmp(w->data, again->data, w->len))) {
		fprintf(stderr, "bootguest: state differs after load (%zu and %zu bytes)\n", w->len,
			again->len);
		guest_end(g, 1);
		return;
	}
	fprintf(stderr, "bootguest: cycled through %zu bytes of state\n", w->len);
	guest_unquiesce(g);
	guest_resume(g);
}

/* One device more is quiet; all are: save and load, the first time, or save again and compare. */
static void guest_quiet(void *arg)
{
	struct guest *g = arg;
	struct state_writer *w = &g->saved[g->again];
	struct err e = { 0 };

	if (--g->waiting)
		return;
	state_writer_init(w);
	if (vm_save(g->vm, w, &e) || (!g->again && vm_load(g->vm, w->data, w->len, &e))) {
		guest_report("save and load", &e);
		guest_end(g, 1);
	} else if (!g->again) {
		g->again = true;
		guest_quiesce(g);
		return;
	} else {
		guest_cycled(g);
	}
	state_writer_fini(&g->saved[0]);
	if (g->again)
		state_writer_fini(&g->saved[1]);
	g->again = false;
}

static void guest_cycle(void *arg)
{
	guest_quiesce(arg);
}

static void guest_reboot(void *arg)
{
	struct guest *g = arg;
	struct err e = { 0 };

	if (vm_reset(g->vm, &e) || g->machine->reset(g->vm, &e)) {
		guest_report("reset", &e);
		guest_end(g, 1);
		return;
	}
	guest_resume(g);
}

static uint64_t hash_bytes(uint64_t h, const uint8_t *p, size_t n)
{
	for (; n >= 8; n -= 8, p += 8) {
		uint64_t v;

		memcpy(&v, p, 8);
		h = (h ^ v) * 0x100000001b3ULL;
		h ^= h >> 29;
	}
	while (n--)
		h = (h ^ *p++) * 0x100000001b3ULL;
	return h;
}

/* guest_hash() - CPUs and devices by their saved state, then all memory. */
static void guest_hash(void *arg)
{
	struct guest *g = arg;
	uint64_t state, ram = 0xcbf29ce484222325ULL;
	struct state_writer w;
	struct err e = { 0 };

	state_writer_init(&w);
	if (vm_save(g->vm, &w, &e)) {
		guest_report("hash", &e);
	} else {
		state = hash_bytes(0xcbf29ce484222325ULL, w.data, w.len);
		for (unsigned i = 0; i < mem_region_count(g->vm->mem); i++) {
			const struct mem_region *r = mem_region_get(g->vm->mem, i);

			ram = hash_bytes(ram ^ r->gpa, r->hva, r->size_bytes);
		}
		fprintf(stderr, "bootguest: state hash %016llx\nbootguest: memory hash %016llx\n",
			(unsigned long long)state, (unsigned long long)ram);
	}
	state_writer_fini(&w);
	guest_end(g, 0);
}

static void guest_event(void *arg, enum vm_event ev, const char *text)
{
	struct guest *g = arg;

	fprintf(stderr, "\nbootguest: %.3f s: event %d: %s\n",
		(double)(clock_mono_ns() - g->start_ns) / 1e9, (int)ev, text);
	switch (ev) {
	case VM_EVENT_POWEROFF:
		if (g->hash)
			vm_pause(g->vm, guest_hash, g); /* all vCPUs are parked then */
		else
			guest_end(g, 0);
		break;
	case VM_EVENT_REBOOT:
		if (g->reboots-- > 0)
			vm_pause(g->vm, guest_reboot, g);
		else
			guest_end(g, 1);
		break;
	case VM_EVENT_PANIC:
		break; /* the panic text is still to come */
	default:
		guest_end(g, 1);
		break;
	}
}

static void guest_trigger(struct guest *g, struct trigger *t)
{
	t->done = true;
	fprintf(stderr, "bootguest: %.3f s: saw \"%s\"\n",
		(double)(clock_mono_ns() - g->start_ns) / 1e9, t->text);
	switch (t->kind) {
	case TRIGGER_EXPECT:
		guest_end(g, 0);
		break;
	case TRIGGER_SEND:
		guest_type(g, t->send);
		break;
	case TRIGGER_POWER:
		g->machine->power_button(g->vm);
		break;
	case TRIGGER_CYCLE:
		vm_pause(g->vm, guest_cycle, g);
		break;
	}
}

static void guest_output(void *arg, int fd, uint32_t events)
{
	struct guest *g = arg;
	char buf[4096];
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n <= 0)
		return;
	if (io_write_full(STDOUT_FILENO, buf, (size_t)n) < 0)
		guest_end(g, 1);
	if (!g->ntriggers)
		return;
	if (g->seen_len + (size_t)n + 1 > g->seen_cap) {
		g->seen_cap = (g->seen_len + (size_t)n + 1) * 2;
		g->seen = realloc(g->seen, g->seen_cap);
		if (!g->seen)
			abort();
	}
	for (ssize_t i = 0; i < n; i++)
		g->seen[g->seen_len++] = buf[i] ? buf[i] : ' ';
	g->seen[g->seen_len] = 0;
	for (unsigned i = 0; i < g->ntriggers; i++)
		if (!g->triggers[i].done && strstr(g->seen, g->triggers[i].text))
			guest_trigger(g, &g->triggers[i]);
}

static void guest_input(void *arg, int fd, uint32_t events)
{
	struct guest *g = arg;
	char buf[256];
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n > 0)
		io_write_full(g->serial_fd, buf, (size_t)n);
	else
		loop_fd_del(&g->in);
}

static void guest_timed_out(void *arg)
{
	fprintf(stderr, "\nbootguest: timed out\n");
	guest_end(arg, 4);
}

static void guest_signal(void *arg, int signo)
{
	guest_end(arg, 1);
}

static void guest_stats(struct guest *g)
{
	const char *names[32];
	uint64_t values[32];
	unsigned n = g->vm->accel->stats ? g->vm->accel->stats(g->vm, names, values, 32) : 0;

	for (unsigned i = 0; i < n; i++)
		fprintf(stderr, "bootguest: %s %llu\n", names[i], (unsigned long long)values[i]);
	fprintf(stderr, "bootguest: unclaimed ports %llu, addresses %llu\n",
		(unsigned long long)bus_unclaimed_count(g->vm->pio),
		(unsigned long long)bus_unclaimed_count(g->vm->mmio));
	for (unsigned i = 0; i < g->vm->nvcpus; i++)
		fprintf(stderr, "bootguest: vcpu %u exits %llu\n", i,
			(unsigned long long)atomic_load(&g->vm->vcpus[i]->exits));
}

/* ---- command line ---- */

struct options {
	const char *accel, *kernel, *initrd, *cmdline, *model;
	enum boot_format format;
	unsigned mem_mib, cpus, serials, consoles, timeout_s;
	bool rng, icount, threads_one, verbose;
	struct mc_disk disks[MC_DISKS_MAX];
	struct mc_nic nics[MC_NICS_MAX];
	const char *console_out[MC_CONSOLES_MAX];
	unsigned ndisks, nnics;
};

enum {
	OPT_ACCEL = 256,
	OPT_KERNEL,
	OPT_INITRD,
	OPT_CMDLINE,
	OPT_MEM,
	OPT_CPUS,
	OPT_DISK,
	OPT_TAP,
	OPT_SERIALS,
	OPT_CONSOLES,
	OPT_CONSOLE_OUT,
	OPT_RNG,
	OPT_TIMEOUT,
	OPT_EXPECT,
	OPT_SEND,
	OPT_POWER,
	OPT_CYCLE,
	OPT_REBOOTS,
	OPT_MODEL,
	OPT_FORMAT,
	OPT_ICOUNT,
	OPT_ONE,
	OPT_STATS,
	OPT_HASH,
};

static const struct option longopts[] = {
	{ "accel", 1, NULL, OPT_ACCEL },
	{ "kernel", 1, NULL, OPT_KERNEL },
	{ "initrd", 1, NULL, OPT_INITRD },
	{ "cmdline", 1, NULL, OPT_CMDLINE },
	{ "mem", 1, NULL, OPT_MEM },
	{ "cpus", 1, NULL, OPT_CPUS },
	{ "disk", 1, NULL, OPT_DISK },
	{ "tap-fd", 1, NULL, OPT_TAP },
	{ "serials", 1, NULL, OPT_SERIALS },
	{ "consoles", 1, NULL, OPT_CONSOLES },
	{ "console-out", 1, NULL, OPT_CONSOLE_OUT },
	{ "rng", 0, NULL, OPT_RNG },
	{ "timeout", 1, NULL, OPT_TIMEOUT },
	{ "expect", 1, NULL, OPT_EXPECT },
	{ "send", 1, NULL, OPT_SEND },
	{ "power-after", 1, NULL, OPT_POWER },
	{ "cycle-after", 1, NULL, OPT_CYCLE },
	{ "reboots", 1, NULL, OPT_REBOOTS },
	{ "model", 1, NULL, OPT_MODEL },
	{ "format", 1, NULL, OPT_FORMAT },
	{ "icount", 0, NULL, OPT_ICOUNT },
	{ "threads-one", 0, NULL, OPT_ONE },
	{ "stats", 0, NULL, OPT_STATS },
	{ "hash", 0, NULL, OPT_HASH },
	{ NULL, 0, NULL, 0 },
};

static void add_trigger(struct guest *g, enum trigger_kind kind, char *arg)
{
	struct trigger *t = &g->triggers[g->ntriggers];

	if (g->ntriggers == TRIGGERS_MAX)
		exit(2);
	*t = (struct trigger){ .kind = kind, .text = arg };
	if (kind == TRIGGER_SEND) {
		char *eq = strchr(arg, '=');

		if (!eq)
			exit(2);
		*eq = 0;
		t->send = eq + 1;
	}
	g->ntriggers++;
}

static void add_disk(struct options *o, char *arg)
{
	struct mc_disk *d = &o->disks[o->ndisks];
	char *comma = strchr(arg, ',');
	struct blk_spec spec = {
		.driver = "file", .label = arg, .discard = true, .cache = BLK_CACHE_WRITEBACK
	};
	struct err e = { 0 };

	if (comma) {
		*comma = 0;
		spec.driver = comma + 1;
	}
	spec.fd = open(arg, O_RDWR | O_CLOEXEC);
	if (spec.fd < 0 || o->ndisks == MC_DISKS_MAX) {
		perror(arg);
		exit(3);
	}
	snprintf(d->name, sizeof(d->name), "vd%c", 'a' + (int)o->ndisks);
	snprintf(d->serial, sizeof(d->serial), "disk%u", o->ndisks);
	d->on_error = IO_ERROR_REPORT;
	d->bd = blk_open(&spec, &e);
	if (!d->bd) {
		guest_report("disk", &e);
		exit(3);
	}
	o->ndisks++;
}

static void add_nic(struct options *o, const char *arg)
{
	struct mc_nic *n = &o->nics[o->nnics];

	snprintf(n->name, sizeof(n->name), "net%u", o->nnics);
	memcpy(n->mac, (uint8_t[]){ 0x52, 0x54, 0, 0x76, 0x6d, (uint8_t)o->nnics }, 6);
	for (unsigned i = 0; i < ARRAY_SIZE(n->tap_fds); i++)
		n->tap_fds[i] = n->vhost_fds[i] = -1;
	n->tap_fds[0] = atoi(arg);
	if (strstr(arg, ",vhost"))
		n->vhost_fds[0] = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
	n->queues = 1;
	o->nnics++;
}

static void parse(int argc, char **argv, struct options *o, struct guest *g)
{
	int c;

	while ((c = getopt_long(argc, argv, "v", longopts, NULL)) >= 0) {
		switch (c) {
		case OPT_ACCEL:
			o->accel = optarg;
			break;
		case OPT_KERNEL:
			o->kernel = optarg;
			break;
		case OPT_INITRD:
			o->initrd = optarg;
			break;
		case OPT_CMDLINE:
			o->cmdline = optarg;
			break;
		case OPT_MEM:
			o->mem_mib = (unsigned)atoi(optarg);
			break;
		case OPT_CPUS:
			o->cpus = (unsigned)atoi(optarg);
			break;
		case OPT_DISK:
			add_disk(o, optarg);
			break;
		case OPT_TAP:
			add_nic(o, optarg);
			break;
		case OPT_SERIALS:
			o->serials = (unsigned)atoi(optarg);
			break;
		case OPT_CONSOLES:
			o->consoles = (unsigned)atoi(optarg);
			break;
		case OPT_CONSOLE_OUT: {
			char *eq = strchr(optarg, '=');
			unsigned n = (unsigned)atoi(optarg);

			if (!eq || n >= MC_CONSOLES_MAX)
				exit(2);
			o->console_out[n] = eq + 1;
			break;
		}
		case OPT_RNG:
			o->rng = true;
			break;
		case OPT_TIMEOUT:
			o->timeout_s = (unsigned)atoi(optarg);
			break;
		case OPT_EXPECT:
			add_trigger(g, TRIGGER_EXPECT, optarg);
			break;
		case OPT_SEND:
			add_trigger(g, TRIGGER_SEND, optarg);
			break;
		case OPT_POWER:
			add_trigger(g, TRIGGER_POWER, optarg);
			break;
		case OPT_CYCLE:
			add_trigger(g, TRIGGER_CYCLE, optarg);
			break;
		case OPT_REBOOTS:
			g->reboots = atoi(optarg);
			break;
		case OPT_FORMAT:
			for (o->format = BOOT_PVH; o->format > BOOT_AUTO; o->format--)
				if (!strcasecmp(optarg, boot_format_name(o->format)))
					break;
			if (o->format == BOOT_AUTO && strcmp(optarg, "auto") != 0)
				exit(2);
			break;
		case OPT_MODEL:
			o->model = optarg;
			break;
		case OPT_ICOUNT:
			o->icount = o->threads_one = true;
			break;
		case OPT_ONE:
			o->threads_one = true;
			break;
		case OPT_STATS:
			g->stats = true;
			break;
		case OPT_HASH:
			g->hash = true;
			break;
		case 'v':
			o->verbose = true;
			break;
		default:
			exit(2);
		}
	}
	if (optind != argc)
		exit(2);
}

static int open_or_exit(const char *path)
{
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (path && fd < 0) {
		perror(path);
		exit(3);
	}
	return fd;
}

static void fill_ports(const struct options *o, struct mc_port *serials, struct mc_port *consoles,
		       int serial_fd)
{
	for (unsigned i = 0; i < o->serials; i++) {
		snprintf(serials[i].name, sizeof(serials[i].name), "serial%u", i);
		serials[i].chr = (struct chardev_config){ .kind = i ? CHARDEV_NULL : CHARDEV_STREAM,
							  .fd = i ? -1 : serial_fd };
	}
	for (unsigned i = 0; i < o->consoles; i++) {
		snprintf(consoles[i].name, sizeof(consoles[i].name), "port%u", i);
		consoles[i].chr = (struct chardev_config){ .kind = CHARDEV_NULL, .fd = -1 };
		if (!o->console_out[i])
			continue;
		consoles[i].chr.kind = CHARDEV_FILE;
		consoles[i].chr.fd =
		    open(o->console_out[i], O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
		if (consoles[i].chr.fd < 0) {
			perror(o->console_out[i]);
			exit(3);
		}
	}
}

int main(int argc, char **argv)
{
	_cleanup_free_ struct options *o = calloc(1, sizeof(*o));
	struct guest g = { .status = -1, .serial_fd = -1, .out = LOOP_FD_NONE, .in = LOOP_FD_NONE };
	_cleanup_free_ struct mc_port *serials = calloc(MC_SERIALS_MAX, sizeof(*serials));
	_cleanup_free_ struct mc_port *consoles = calloc(MC_CONSOLES_MAX, sizeof(*consoles));
	struct loop_timer timer;
	struct err e = { 0 };
	int pair[2], kvm_fd;
	struct stat st;

	if (!o || !serials || !consoles)
		return 3;
	*o = (struct options){ .accel = "auto",
			       .mem_mib = 256,
			       .cpus = 1,
			       .serials = 1,
			       .timeout_s = 300,
			       .cmdline = "console=ttyS0",
			       .model = "host" };
	parse(argc, argv, o, &g);
	log_open("bootguest", NULL, 2, o->verbose ? LOG_DEBUG_ : LOG_INFO_);
	g.start_ns = clock_mono_ns();
	signal(SIGPIPE, SIG_IGN);
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	g.loop = loop_new();
	g.machine = machine_rows[0];
	if (!g.loop || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
		perror("bootguest");
		return 3;
	}
	g.serial_fd = pair[0];
	fill_ports(o, serials, consoles, pair[1]);

	struct vm_config vc = { .name = "bootguest" };
	char reason[200];

	vc.accel = accel_choose(o->accel, kvm_fd, reason, sizeof(reason), &e);
	if (!vc.accel) {
		guest_report("accelerator", &e);
		return 3;
	}
	fprintf(stderr, "bootguest: accelerator %s: %s\n", vc.accel->name, reason);
	vc.accel_cfg = (struct accel_config){ .kvm_fd = kvm_fd,
					      .vcpus = o->cpus,
					      .icount = o->icount,
					      .threads_one = o->threads_one };
	snprintf(vc.cpu.model, sizeof(vc.cpu.model), "%s", o->model);
	vc.cpu.vcpus = o->cpus;
	g.vm = vm_new(g.loop, &vc, &e);
	if (!g.vm) {
		guest_report("vm", &e);
		return 3;
	}
	g.vm->on_event = guest_event;
	g.vm->on_event_arg = &g;

	struct machine_config mc = {
		.memory_bytes = o->mem_mib * MIB,
		.memory_fd = -1,
		.vcpus = o->cpus,
		.ndisks = o->ndisks,
		.nnics = o->nnics,
		.nserials = o->serials,
		.nconsoles = o->consoles,
		.disks = o->disks,
		.nics = o->nics,
		.serials = serials,
		.consoles = consoles,
		.rng = o->rng,
		.cmdline = o->cmdline,
		.boot = { .kernel_fd = open_or_exit(o->kernel),
			  .initrd_fd = open_or_exit(o->initrd),
			  .format = o->format },
	};

	uuid_parse("5c1f7f5e-8e2b-4e0c-9d0a-0123456789ab", mc.uuid);
	uuid_parse("0d9c2f3a-70d1-4c53-8a39-ba9876543210", mc.vmgenid);
	if (g.machine->build(g.vm, &mc, &e)) {
		guest_report("machine", &e);
		vm_free(g.vm);
		return 3;
	}
	loop_fd_add(g.loop, &g.out, g.serial_fd, EPOLLIN, guest_output, &g);
	if (fstat(STDIN_FILENO, &st) == 0 && (S_ISFIFO(st.st_mode) || isatty(STDIN_FILENO)))
		loop_fd_add(g.loop, &g.in, STDIN_FILENO, EPOLLIN, guest_input, &g);
	loop_signal(g.loop, SIGINT, guest_signal, &g);
	loop_signal(g.loop, SIGTERM, guest_signal, &g);
	loop_timer_init(g.loop, &timer, guest_timed_out, &g);
	loop_timer_after(&timer, o->timeout_s * NS_PER_S);
	if (o->nnics) {
		char backends[400];

		virtio_net_backends(g.vm, backends, sizeof(backends));
		fprintf(stderr, "bootguest: network: %s\n", backends);
	}
	fprintf(stderr, "bootguest: built in %.3f ms\n",
		(double)(clock_mono_ns() - g.start_ns) / 1e6);
	guest_resume(&g);
	loop_run(g.loop);
	while (loop_run_once(g.loop, 0) > 0) /* what the serial port still holds */
		;
	if (g.stats)
		guest_stats(&g);
	g.machine->destroy(g.vm);
	vm_free(g.vm);
	loop_timer_stop(&timer);
	loop_fd_del(&g.out);
	loop_fd_del(&g.in);
	loop_run_once(g.loop, 0);
	loop_free(g.loop);
	close_fd(&g.serial_fd);
	close_fd(&kvm_fd);
	free(g.seen);
	return g.status < 0 ? 1 : g.status;
}
