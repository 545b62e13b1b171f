/* run.c - the VM of this process: build it, run it, report what becomes of it, end it.
 *
 * A guest's own reboot is served here and only told to the daemon; poweroff, triple fault and
 * failure leave the vCPUs parked until the daemon decides (restart policy is its business). With
 * the daemon away the process waits, so that the reason is not lost.
 */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "devices/virtio_devices.h"
#include "vmd/guest/guest.h"

#define TRIM_STACK_BYTES (96u << 10)

/* ---- events ---- */

static void guest_rebooted(void *arg)
{
	struct guest *g = arg;
	struct err e = { 0 };

	if (g->quitting)
		return;
	if (vm_reset(g->vm, &e) < 0 || g->machine->reset(g->vm, &e) < 0 ||
	    vm_start(g->vm, &e) < 0) {
		log_error("reboot failed: %s", e.detail);
		g->phase = GUEST_STOPPED;
		guest_tell(g, "accel-failed", e.detail);
		return;
	}
	g->phase = GUEST_RUNNING;
	guest_tell(g, "reboot", "the guest rebooted");
}

static void guest_vm_event(void *arg, enum vm_event ev, const char *text)
{
	static const char *const kinds[] = {
		[VM_EVENT_POWEROFF] = "poweroff",	  [VM_EVENT_REBOOT] = "reboot",
		[VM_EVENT_TRIPLE_FAULT] = "triple-fault", [VM_EVENT_PANIC] = "panic",
		[VM_EVENT_ACCEL_FAILED] = "accel-failed", [VM_EVENT_IO_ERROR] = "io-error",
		[VM_EVENT_WATCHDOG] = "watchdog",
	};
	struct guest *g = arg;

	log_info("%s%s%s", kinds[ev], text && *text ? ": " : "", text ? text : "");
	switch (ev) {
	case VM_EVENT_REBOOT:
		if (!g->reboot_stops) {
			vm_pause(g->vm, guest_rebooted, g);
			return;
		}
		g->phase = GUEST_STOPPED;
		break;
	case VM_EVENT_POWEROFF:
	case VM_EVENT_TRIPLE_FAULT:
	case VM_EVENT_ACCEL_FAILED:
		g->phase = GUEST_STOPPED;
		break;
	case VM_EVENT_IO_ERROR:
		g->phase = GUEST_PAUSED;
		break;
	case VM_EVENT_PANIC:
	case VM_EVENT_WATCHDOG:
		break;
	}
	guest_tell(g, kinds[ev], text ? text : "");
}

/* ---- build ---- */

static const struct machine_ops *guest_machine(const char *name, struct err *e)
{
	const char *names[16];
	unsigned n = 0;

	if (!*name)
		return machine_rows[0];
	for (unsigned i = 0; machine_rows[i]; i++) {
		if (!strcmp(machine_rows[i]->name, name))
			return machine_rows[i];
		if (n + 1 < ARRAY_SIZE(names))
			names[n++] = machine_rows[i]->name;
	}
	names[n] = NULL;
	err_set(e, EINVAL, "unknown-machine", "machine \"%s\" does not exist", name);
	err_hint(e, "try --machine %s", suggest(name, names) ? suggest(name, names) : names[0]);
	return NULL;
}

/* Building needs more memory than running: what it leaves behind, in the heap and below the stack's
 * end, goes back. There may be thousands of these processes. */
static __attribute__((noinline)) void guest_trim(void)
{
	uintptr_t here = ALIGN_DOWN((uintptr_t)__builtin_frame_address(0), 4096u);

	malloc_trim(0);
	/* two pages are left for this call; the stack is private memory that reads as zeroes when
	 * it is used again */
	madvise((void *)(here - TRIM_STACK_BYTES), TRIM_STACK_BYTES - 2 * 4096, MADV_DONTNEED);
}

int guest_build(struct guest *g, struct msg_g_ready *ready, struct err *e)
{
	uint64_t start_ns = clock_mono_ns();
	struct machine_config mc;
	struct guest_settings s;
	struct vm_config vc = { .name = g->name };
	char reason[200] = "";
	int r = guest_config_open(g, &mc, &s, e);

	if (r < 0)
		return r;
	if (s.kvm_fd < 0)
		s.kvm_fd = g->kvm_fd;
	g->machine = guest_machine(s.machine, e);
	if (!g->machine)
		return -EINVAL;
	vc.accel = accel_choose(*s.accel ? s.accel : "auto", s.kvm_fd, reason, sizeof(reason), e);
	if (!vc.accel)
		return e->num ? -e->num : -ENODEV;
	vc.accel_cfg = (struct accel_config){ .kvm_fd = s.kvm_fd,
					      .vcpus = s.vcpus,
					      .icount = s.icount,
					      .threads_one = s.threads_one };
	vc.cpu = s.cpu;
	g->vm = vm_new(g->loop, &vc, e);
	if (!g->vm)
		return e->num ? -e->num : -ENOMEM;
	snprintf(g->vm->accel_reason, sizeof(g->vm->accel_reason), "%s", reason);
	g->vm->on_event = guest_vm_event;
	g->vm->on_event_arg = g;
	r = g->machine->build(g->vm, &mc, e);
	if (r < 0) {
		/* what the half-built machine took is freed with it; what it did not is still the
		 * configuration's */
		guest_config_taken(g->cfg);
		return r;
	}
	guest_config_taken(g->cfg);
	g->phase = GUEST_BUILT;
	g->reboot_stops = s.reboot_stops;
	r = guest_lockdown(g, e);
	if (!r && s.load_state_fd >= 0)
		r = guest_load(g, s.load_state_fd, s.load_memory_fd, e);
	guest_config_free(g->cfg);
	g->cfg = NULL;
	if (r < 0)
		return r;
	snprintf(ready->accel, sizeof(ready->accel), "%s", vc.accel->name);
	snprintf(ready->reason, sizeof(ready->reason), "%s", reason);
	snprintf(ready->boot_format, sizeof(ready->boot_format), "%s",
		 g->vm->boot_format ? g->vm->boot_format : "");
	snprintf(ready->jail, sizeof(ready->jail), "%s", g->jail);
	virtio_net_backends(g->vm, ready->net, sizeof(ready->net));
	guest_trim();
	ready->build_us = (clock_mono_ns() - start_ns) / NS_PER_US;
	return 0;
}

/* ---- run control ---- */

/* After a pause: what was held or kept quiet goes on, now and not at some later look. */
static void guest_unquiesce(struct guest *g)
{
	g->quiet = false;
	vm_lock(g->vm);
	list_for_each (n, &g->vm->devices) {
		struct device *d = container_of(n, struct device, node);

		if (d->ops->unquiesce)
			d->ops->unquiesce(d);
	}
	vm_unlock(g->vm);
}

int guest_start(struct guest *g, struct err *e)
{
	int r;

	if (g->phase == GUEST_RUNNING)
		return 0;
	if (g->save)
		return err_set(e, EBUSY, "save-under-way", "guest %s is being saved", g->name);
	if (g->phase == GUEST_STOPPED)
		return err_set(e, EINVAL, "guest-stopped",
			       "guest %s has stopped; only a new start runs it again", g->name);
	r = vm_start(g->vm, e);
	if (r)
		return r;
	if (g->quiet || g->phase == GUEST_PAUSED)
		guest_unquiesce(g);
	g->phase = GUEST_RUNNING;
	return 0;
}

struct guest_deferred {
	struct guest *g;
	uint32_t id;
};

static struct guest_deferred *guest_defer(struct guest *g, uint32_t id)
{
	struct guest_deferred *d = malloc(sizeof(*d));
	struct err e = { 0 };

	if (!d) {
		err_set(&e, ENOMEM, "no-memory", "guest %s: out of memory", g->name);
		guest_reply(g, id, &e);
		return NULL;
	}
	*d = (struct guest_deferred){ g, id };
	return d;
}

static void guest_paused(void *arg)
{
	struct guest_deferred *d = arg;
	struct err none = { 0 };

	if (d->g->phase == GUEST_RUNNING)
		d->g->phase = GUEST_PAUSED;
	guest_reply(d->g, d->id, &none);
	free(d);
}

void guest_pause(struct guest *g, uint32_t id)
{
	struct guest_deferred *d = guest_defer(g, id);

	if (d)
		vm_pause(g->vm, guest_paused, d);
}

static void guest_reset_parked(void *arg)
{
	struct guest_deferred *d = arg;
	struct guest *g = d->g;
	struct err e = { 0 };

	if (g->save) {
		err_set(&e, EBUSY, "save-under-way", "guest %s is being saved", g->name);
	} else if (vm_reset(g->vm, &e) == 0 && g->machine->reset(g->vm, &e) == 0 &&
		   vm_start(g->vm, &e) == 0) {
		guest_unquiesce(g);
		g->phase = GUEST_RUNNING;
	}
	guest_reply(g, d->id, &e);
	free(d);
}

void guest_reset(struct guest *g, uint32_t id)
{
	struct guest_deferred *d = guest_defer(g, id);

	if (d)
		vm_pause(g->vm, guest_reset_parked, d);
}

void guest_power_button(struct guest *g)
{
	g->machine->power_button(g->vm);
}

static void guest_quit_parked(void *arg)
{
	struct guest_deferred *d = arg;
	struct guest *g = d->g;
	struct err none = { 0 };
	uint32_t id = d->id;

	free(d);
	if (g->vm) {
		guest_save_wait(g);
		guest_disk_job_end(g);
		g->machine->destroy(g->vm);
		vm_free(g->vm); /* closes the disks, which flushes them */
		g->vm = NULL;
		guest_leases_end(g);
	}
	guest_reply(g, id, &none);
	loop_stop(g->loop);
}

void guest_quit(struct guest *g, uint32_t id)
{
	struct guest_deferred *d;

	if (g->quitting)
		return;
	g->quitting = true;
	d = guest_defer(g, id);
	if (!d) {
		g->quitting = false;
		return;
	}
	if (g->vm)
		vm_pause(g->vm, guest_quit_parked, d);
	else
		guest_quit_parked(d);
}

/* ---- ports and counters ---- */

int guest_disk_resize(struct guest *g, const struct msg_g_disk_resize *m, struct err *e)
{
	/* a job works on the graph from a thread of its own, and has measured it */
	if (guest_disk_job_runs(g)) {
		err_set(e, EBUSY, "disk-job-under-way",
			"guest %s: work on a disk of it is under way", g->name);
		err_hint(e, "vmctl ops; try again when it is done");
		return -EBUSY;
	}
	return virtio_blk_resize(g->vm, m->name, m->size_bytes, e);
}

int guest_console(struct guest *g, struct msg_g_console *m, struct err *e)
{
	struct chardev *c = chardev_find(g->vm, m->port);
	int r;

	if (!c) {
		err_set(e, ENOENT, "port-not-found", "guest %s has no port \"%s\"", g->name,
			m->port);
		err_hint(e, "vmctl info %s lists its ports", g->name);
		return -ENOENT;
	}
	vm_lock(g->vm);
	r = chardev_attach(c, m->fd, m->read_only, e);
	vm_unlock(g->vm);
	if (!r)
		m->fd = -1;
	return r;
}

int guest_port_replace(struct guest *g, struct msg_g_port_replace *m, struct err *e)
{
	struct chardev *c = chardev_find(g->vm, m->port);
	struct chardev_config cfg = { .kind = (enum chardev_kind)m->kind, .fd = m->fd };
	int r;

	if (!c || m->kind > CHARDEV_LOG)
		return err_set(e, ENOENT, "port-not-found",
			       "guest %s has no port \"%s\", or its new kind is unknown", g->name,
			       m->port);
	vm_lock(g->vm);
	r = chardev_replace(c, &cfg, e);
	vm_unlock(g->vm);
	if (!r)
		m->fd = -1;
	return r;
}

static void guest_counter(struct guest *g, uint32_t id, const char *object, const char *name,
			  uint64_t value, bool more)
{
	struct msg_g_counter m = { .value = value, .more = more };

	snprintf(m.object, sizeof(m.object), "%s", object);
	snprintf(m.name, sizeof(m.name), "%s", name);
	if (g->conn)
		msg_g_counter_send(g->conn, &m, id);
}

#define GUEST_COUNTERS_MAX 32
void guest_counters(struct guest *g, uint32_t id)
{
	const char *names[GUEST_COUNTERS_MAX];
	uint64_t values[GUEST_COUNTERS_MAX], exits = 0;
	unsigned n;

	vm_lock(g->vm);
	list_for_each (node, &g->vm->devices) {
		struct device *d = container_of(node, struct device, node);

		n = d->ops->stats ? d->ops->stats(d, names, values, GUEST_COUNTERS_MAX) : 0;
		for (unsigned i = 0; i < n; i++)
			guest_counter(g, id, d->id, names[i], values[i], true);
	}
	vm_unlock(g->vm);
	n = g->vm->accel->stats ? g->vm->accel->stats(g->vm, names, values, GUEST_COUNTERS_MAX) : 0;
	for (unsigned i = 0; i < n; i++)
		guest_counter(g, id, g->vm->accel->name, names[i], values[i], true);
	for (unsigned i = 0; i < g->vm->nvcpus; i++) {
		char vcpu[16];

		snprintf(vcpu, sizeof(vcpu), "vcpu%u", i);
		guest_counter(g, id, vcpu, "tid", (uint64_t)g->vm->vcpus[i]->tid, true);
		exits += g->vm->vcpus[i]->exits;
	}
	guest_counter(g, id, "vm", "unclaimed",
		      bus_unclaimed_count(g->vm->pio) + bus_unclaimed_count(g->vm->mmio), true);
	guest_counter(g, id, "vm", "exits", exits, false);
}
