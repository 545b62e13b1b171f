/* vm_state.c - the whole VM to and from the state stream (RAM travels apart).
 *
 * Sections in order: "vm" (clocks, vCPU count), "cpuid", "vcpu" a vCPU, then each device in order
 * of creation, named by its row. Restore is build + load: the stream must name exactly the devices
 * that the machine has. It is walked twice: first every section is checked (frame, checksum, known,
 * once), and only then does the first device see its own, so that a broken stream changes nothing.
 * Trust: the stream is input.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"
#include "hypervisor-core/vm_impl.h"

enum { TAG_VM_VCPUS = 1, TAG_VM_NOW, TAG_VM_CLOCK, TAG_VM_OWN_LAPIC };
enum { TAG_CPUID = 1 };

#define VM_STATE_VERSION  1
#define CPUID_ENTRY_BYTES 28u

static bool vm_state_parked(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	bool ok = vm->run_state == VM_BUILT || vm->run_state == VM_PAUSED;
	pthread_mutex_unlock(&vm->run_lock);
	return ok;
}

static size_t vm_cpuid_encode(const struct cpuid_table *t, uint8_t *b)
{
	size_t at = 0;

	for (unsigned i = 0; i < t->n; i++) {
		const struct cpuid_entry *c = &t->e[i];
		const uint32_t f[7] = { c->leaf, c->subleaf, c->flags, c->eax,
					c->ebx,	 c->ecx,     c->edx };

		for (unsigned j = 0; j < 7; j++)
			for (unsigned k = 0; k < 4; k++)
				b[at++] = (uint8_t)(f[j] >> (8 * k));
	}
	return at;
}

static void vm_save_cpuid(struct vm *vm, struct state_writer *w)
{
	uint8_t b[CPUID_ENTRIES_MAX * CPUID_ENTRY_BYTES];
	size_t len = vm_cpuid_encode(&vm->cpuid, b);

	state_begin(w, "cpuid", 0, VM_STATE_VERSION);
	state_put_bytes(w, TAG_CPUID, b, len);
	state_end(w);
}

static int vm_save_vcpus(struct vm *vm, struct state_writer *w, struct err *e)
{
	struct x86_state *s = malloc(sizeof(*s));
	int ret = 0;

	if (!s)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory to save it", vm->name);
	for (unsigned i = 0; i < vm->nvcpus && ret == 0; i++) {
		memset(s, 0, sizeof(*s));
		ret = vm->accel->vcpu_get_state(vm->vcpus[i], s, e);
		if (ret < 0)
			break;
		state_begin(w, "vcpu", i, VM_STATE_VERSION);
		x86_state_save(s, w);
		state_end(w);
	}
	free(s);
	return ret;
}

int vm_save(struct vm *vm, struct state_writer *w, struct err *e)
{
	struct vm_run *run = vm->run;
	uint64_t guest_clock = run->guest_clock_ns;
	bool clock_known = run->guest_clock_known;

	if (!vm_state_parked(vm))
		return err_set(e, EBUSY, "guest-running", "guest %s: pause it before saving",
			       vm->name);
	if (!clock_known && vm->accel->clock_get)
		clock_known = vm->accel->clock_get(vm, &guest_clock) == 0;
	state_begin(w, "vm", 0, VM_STATE_VERSION);
	state_put_u64(w, TAG_VM_VCPUS, vm->nvcpus);
	state_put_u64(w, TAG_VM_NOW, vm_now_ns(vm));
	if (clock_known)
		state_put_u64(w, TAG_VM_CLOCK, guest_clock);
	state_put_u64(w, TAG_VM_OWN_LAPIC, !!(vm->accel->caps & ACCEL_HAS_LAPIC));
	state_end(w);
	vm_save_cpuid(vm, w);
	int ret = vm_save_vcpus(vm, w, e);
	if (ret < 0)
		return ret;
	vm_lock(vm);
	list_for_each (n, &vm->devices) {
		struct device *d = container_of(n, struct device, node);

		if (!d->ops->save)
			continue;
		state_begin(w, d->ops->name, d->instance, d->ops->version);
		d->ops->save(d, w);
		state_end(w);
	}
	vm_unlock(vm);
	if (w->error)
		return err_set(e, -w->error, "state-write", "guest %s: cannot write its state: %s",
			       vm->name, strerror(-w->error));
	return 0;
}

static struct device *vm_state_device(struct vm *vm, const struct state_reader *r)
{
	list_for_each (n, &vm->devices) {
		struct device *d = container_of(n, struct device, node);

		if (d->instance == r->instance && d->ops->load &&
		    strcmp(d->ops->name, r->name) == 0)
			return d;
	}
	return NULL;
}

static int vm_check_header(struct vm *vm, const struct state_reader *r, struct err *e)
{
	uint64_t n = state_get_u64_or(r, TAG_VM_VCPUS, 0);
	uint64_t lapic = state_get_u64_or(r, TAG_VM_OWN_LAPIC, 0);

	if (n != vm->nvcpus)
		return err_set(e, EINVAL, "state-vcpus",
			       "guest %s: the saved state has %llu vCPUs, the guest %u", vm->name,
			       (unsigned long long)n, vm->nvcpus);
	if (lapic != !!(vm->accel->caps & ACCEL_HAS_LAPIC))
		return err_set(e, ENOTSUP, "state-accel",
			       "guest %s: saved under an accelerator with %s local APICs, %s has "
			       "the other kind",
			       vm->name, lapic ? "its own" : "no", vm->accel->name);
	return 0;
}

/* The guest has seen this CPU: one that differs under its feet is refused, not patched. */
static int vm_check_cpuid(struct vm *vm, const struct state_reader *r, struct err *e)
{
	uint8_t mine[CPUID_ENTRIES_MAX * CPUID_ENTRY_BYTES];
	const void *p;
	size_t len, n = vm_cpuid_encode(&vm->cpuid, mine);

	if (state_get_span(r, TAG_CPUID, &p, &len) < 0)
		return err_set(e, EBADMSG, "state-bad-cpuid",
			       "guest %s: the saved state has no CPU model", vm->name);
	if (len != n || memcmp(p, mine, n) != 0)
		return err_set(e, ENOTSUP, "state-cpu-model",
			       "guest %s: saved with another CPU model or flags than it has here",
			       vm->name);
	return 0;
}

/* vm_load_check() - first walk: nothing is changed. */
static int vm_load_check(struct vm *vm, const void *data, size_t len, struct err *e)
{
	struct state_reader r;
	unsigned nvcpus = 0, ndevices = 0, want = 0, heads = 0;
	int ret;

	state_reader_init(&r, data, len);
	while ((ret = state_next(&r, e)) > 0) {
		struct device *d;
		uint16_t newest = VM_STATE_VERSION;

		if (strcmp(r.name, "vm") == 0) {
			ret = heads++ ? -EBADMSG : vm_check_header(vm, &r, e);
		} else if (strcmp(r.name, "cpuid") == 0) {
			ret = vm_check_cpuid(vm, &r, e);
		} else if (strcmp(r.name, "vcpu") == 0) {
			ret = r.instance == nvcpus++ ? 0 : -EBADMSG;
		} else if ((d = vm_state_device(vm, &r))) {
			newest = d->ops->version;
			ndevices++;
		} else if (!r.optional) {
			return err_set(e, ENOENT, "state-unknown-device",
				       "guest %s: the saved state has a %.40s (number %u) that the "
				       "guest lacks",
				       vm->name, r.name, r.instance);
		}
		if (ret >= 0 && !r.optional && r.version > newest)
			return err_set(
			    e, ENOTSUP, "state-too-new",
			    "guest %s: saved state of %.40s has version %u, this program knows %u",
			    vm->name, r.name, r.version, newest);
		if (ret < 0)
			return err_is_set(e)
				   ? ret
				   : err_set(
					 e, EBADMSG, "state-bad-order",
					 "guest %s: the saved state repeats or misses a section",
					 vm->name);
	}
	if (ret < 0)
		return ret;
	list_for_each (n, &vm->devices)
		want += container_of(n, struct device, node)->ops->load != NULL;
	if (!heads || nvcpus != vm->nvcpus || ndevices != want)
		return err_set(e, EBADMSG, "state-incomplete",
			       "guest %s: the saved state has %u of %u vCPUs and %u of %u devices",
			       vm->name, nvcpus, vm->nvcpus, ndevices, want);
	return 0;
}

static int vm_load_section(struct vm *vm, const struct state_reader *r, struct x86_state *s,
			   struct err *e)
{
	struct vm_run *run = vm->run;
	struct device *d;
	int ret;

	if (strcmp(r->name, "vm") == 0) {
		uint64_t now = state_get_u64_or(r, TAG_VM_NOW, 0);

		pthread_mutex_lock(&vm->run_lock);
		atomic_store(&run->frozen_ns, now ? now : 1);
		run->guest_clock_known = state_get_u64(r, TAG_VM_CLOCK, &run->guest_clock_ns) == 0;
		pthread_mutex_unlock(&vm->run_lock);
		return 0;
	}
	if (strcmp(r->name, "vcpu") == 0) {
		ret = x86_state_load(s, r, e);
		return ret < 0 ? ret : vm->accel->vcpu_set_state(vm->vcpus[r->instance], s, e);
	}
	d = vm_state_device(vm, r);
	if (!d)
		return 0; /* checked before: "cpuid", or optional */
	vm_lock(vm);
	ret = d->ops->load(d, r, e);
	vm_unlock(vm);
	if (ret < 0 && !err_is_set(e))
		err_set(e, -ret, "state-bad-device", "guest %s: saved state of %s was refused: %s",
			vm->name, d->id, strerror(-ret));
	return ret;
}

/* vm_in_flight() - vectors that @s's own LAPIC has accepted and the guest has not ended. */
static void vm_in_flight(const struct x86_state *s, uint8_t flying[32])
{
	for (unsigned i = 0; s->has_lapic && i < 32; i++)
		flying[i] |= s->lapic[0x100 + 16 * (i / 4) + i % 4] | /* ISR, then IRR */
			     s->lapic[0x200 + 16 * (i / 4) + i % 4];
}

/* vm_end_lost() - an accelerator's LAPIC tells of the end of a level-triggered interrupt by an exit
 * of the vCPU; one that could not be had before parking (or was lost by who made the state) leaves
 * a pin that waits for ever. A vector that no LAPIC has any more was ended: say so; where the line
 * is still up, the interrupt comes again. */
static void vm_end_lost(struct vm *vm, const uint8_t flying[32])
{
	if (!(vm->accel->caps & ACCEL_HAS_LAPIC) || !vm->intc || !vm->intc->eoi)
		return;
	for (unsigned v = 16; v < 256; v++)
		if (!(flying[v / 8] >> (v % 8) & 1))
			vm->intc->eoi(vm->intc_opaque, (uint8_t)v);
}

int vm_load(struct vm *vm, const void *data, size_t len, struct err *e)
{
	uint8_t flying[32] = { 0 };
	struct err own = { 0 };
	struct state_reader r;
	int ret;

	if (!e)
		e = &own;
	err_clear(e);
	if (!vm_state_parked(vm))
		return err_set(e, EBUSY, "guest-running", "guest %s: pause it before loading",
			       vm->name);
	ret = vm_load_check(vm, data, len, e);
	if (ret < 0)
		return ret;
	struct x86_state *s = calloc(1, sizeof(*s));
	if (!s)
		return err_set(e, ENOMEM, "no-memory", "guest %s: no memory to load it", vm->name);
	state_reader_init(&r, data, len);
	while ((ret = state_next(&r, e)) > 0) {
		ret = vm_load_section(vm, &r, s, e);
		if (ret < 0)
			break;
		if (strcmp(r.name, "vcpu") == 0)
			vm_in_flight(s, flying);
	}
	if (ret == 0)
		vm_end_lost(vm, flying);
	free(s);
	return ret;
}
