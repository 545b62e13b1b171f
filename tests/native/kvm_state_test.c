/* kvm_state_test.c - state taken from a running KVM guest and put into another VM, again and again:
 * no interrupt may be lost, none may come twice, and no storm of kicks and pauses may hang. */
#include "pc_guest.h"

#include <pthread.h>

#include "devices/intc.h"

#define ROUNDS	   150u
#define ACK_PORT   0x530
#define MSI_FIRST  0x60u
#define MSI_COUNT  8u
#define IRQ3_VEC   0x23u
#define IRQ5_VEC   0x25u
#define LEVEL_VEC  0x70u
#define USED_BYTES 0x700000u /* of guest memory */

struct cycle {
	struct guest *g;
	struct irq irq3, irq5, level;
	_Atomic bool level_up; /* raised, and the guest has not taken it back yet */
	uint64_t want[256];
	unsigned rng;
};

static void ack_write(void *dev, uint64_t off, unsigned size, uint64_t val)
{
	struct cycle *c = dev;

	irq_set(&c->level, false);
	c->level_up = false;
}

static const struct bus_ops ack_ops = { .write = ack_write };

static unsigned cycle_random(struct cycle *c)
{
	c->rng = c->rng * 1103515245 + 12345;
	return c->rng >> 16;
}

/* The lines of the VM that is there now. */
static void cycle_wire(struct cycle *c)
{
	struct intc *ic = c->g->vm->intc_opaque;

	c->irq3 = intc_isa(ic, 3);
	c->irq5 = intc_isa(ic, 5);
	c->level = intc_gsi(ic, 16);
	assert_int_equal(bus_add(c->g->vm->pio, ACK_PORT, 1, &ack_ops, c, "ack", 0), 0);
}

static void cycle_start(struct cycle *c, unsigned vcpus)
{
	struct machine_config cfg = { 0 };

	c->g = pcg_new(pcg_idle, vcpus, &cfg);
	pcg_params(c->g)->arg[0] = 1;
	pcg_params(c->g)->arg[1] = 0xff & ~(1u << 3 | 1u << 5);
	pcg_params(c->g)->ack_port = ACK_PORT;
	cycle_wire(c);
	guest_start(c->g);
	for (unsigned i = 0; i < vcpus; i++)
		guest_until(c->g, pcg_cpu(c->g, i) > 0 || c->g->events);
	pcg_check(c->g);
}

/* Save, then load into a VM of its own, or into the same one. */
static void cycle_move(struct cycle *c, bool same)
{
	struct machine_config cfg = { 0 };
	struct guest *to = same ? c->g : pcg_empty(c->g->vm->nvcpus, &cfg);
	struct state_writer w;

	state_writer_init(&w);
	if (vm_save(c->g->vm, &w, &c->g->e) < 0)
		fail_msg("save: %s", c->g->e.detail);
	if (!same)
		memcpy(mem_ptr_write(to->vm->mem, 0, USED_BYTES),
		       mem_ptr(c->g->vm->mem, 0, USED_BYTES), USED_BYTES);
	if (vm_load(to->vm, w.data, w.len, &to->e) < 0)
		fail_msg("load: %s", to->e.detail);
	state_writer_fini(&w);
	if (same)
		return;
	guest_free(c->g);
	c->g = to;
	cycle_wire(c);
}

/* A random choice of interrupts, each once, none of which is on its way already. */
static void cycle_fire(struct cycle *c)
{
	for (unsigned k = 0; k < MSI_COUNT; k++)
		if (cycle_random(c) & 1) {
			unsigned cpu = cycle_random(c) % c->g->vm->nvcpus;

			c->want[MSI_FIRST + k]++;
			vm_msi(c->g->vm, 0xfee00000 | cpu << 12, MSI_FIRST + k);
		}
	if (cycle_random(c) & 1) {
		c->want[IRQ3_VEC]++;
		irq_set(&c->irq3, true);
	}
	if (cycle_random(c) & 1) {
		c->want[IRQ5_VEC]++;
		irq_set(&c->irq5, true);
	}
	if (cycle_random(c) & 1) {
		c->level_up = true;
		irq_set(&c->level, true);
	}
}

/* A level-triggered interrupt came when the guest has lowered its line. How often is not counted:
 * the KVM of some development machines ends one by itself now and then, and it comes again. */
static bool cycle_all_came(struct cycle *c)
{
	if (c->level_up)
		return false;
	for (unsigned v = 0x20; v < 256; v++)
		if (pcg_count(c->g, v) < c->want[v])
			return false;
	return true;
}

static void cycle_settle(struct cycle *c, unsigned round)
{
	uint64_t end = clock_mono_ns() + GUEST_DEADLINE_MS * NS_PER_MS;

	while (!cycle_all_came(c)) {
		loop_run_once(c->g->loop, 1);
		pcg_check(c->g);
		if (clock_mono_ns() < end)
			continue;
		if (c->level_up)
			fail_msg("round %u: the level-triggered interrupt never came", round);
		for (unsigned v = 0x20; v < 256; v++)
			if (pcg_count(c->g, v) < c->want[v])
				fail_msg("round %u: vector 0x%x came %llu times, not %llu", round,
					 v, (unsigned long long)pcg_count(c->g, v),
					 (unsigned long long)c->want[v]);
	}
	irq_set(&c->irq3, false);
	irq_set(&c->irq5, false);
	for (unsigned v = 0x20; v < 256; v++)
		if (v != LEVEL_VEC && pcg_count(c->g, v) != c->want[v])
			fail_msg("round %u: vector 0x%x came %llu times, not %llu", round, v,
				 (unsigned long long)pcg_count(c->g, v),
				 (unsigned long long)c->want[v]);
}

/* What another thread does to a VM at any moment: kicks, messages. */
struct storm {
	struct vm *vm;
	bool bare; /* only make vCPU 0 come out, with nothing to do */
	_Atomic bool stop;
	_Atomic uint64_t kicks;
};

static void *storm_thread(void *arg)
{
	struct storm *s = arg;
	unsigned n = 0;

	while (!s->stop) {
		struct vcpu *v = s->vm->vcpus[n % s->vm->nvcpus];

		if (s->bare)
			s->vm->accel->vcpu_kick(s->vm->vcpus[0]);
		else if (n % 7 == 0)
			vm_msi(s->vm, 0xfee00000 | v->index << 12, MSI_FIRST);
		else
			vm_kick(v, VCPU_REQ_INTR);
		n++;
		s->kicks++;
	}
	return NULL;
}

static void no_interrupt_is_lost_over_saves(unsigned vcpus, unsigned rounds, bool stormy)
{
	struct cycle c = { .rng = 7 };
	pthread_t t;

	cycle_start(&c, vcpus);
	for (unsigned round = 0; round < rounds; round++) {
		bool late = cycle_random(&c) % 3 == 0;

		struct storm st = { .vm = c.g->vm, .bare = true };
		if (stormy)
			assert_int_equal(pthread_create(&t, NULL, storm_thread, &st), 0);
		if (!late)
			cycle_fire(&c);
		/* at any point of their way into the guest */
		uint64_t until = clock_mono_ns() + cycle_random(&c) % 128 * NS_PER_US;
		while (clock_mono_ns() < until)
			;
		guest_pause(c.g);
		st.stop = true;
		if (stormy)
			pthread_join(t, NULL);
		if (late)
			cycle_fire(&c);
		uint64_t ran = pcg_cpu(c.g, 0);
		for (unsigned n = 1 + cycle_random(&c) % 2; n > 0; n--)
			cycle_move(&c, cycle_random(&c) % 3 == 0);
		assert_int_equal(pcg_cpu(c.g, 0), ran);
		guest_start(c.g);
		cycle_settle(&c, round);
		guest_until(c.g, pcg_cpu(c.g, 0) > ran);
	}
	guest_free(c.g);
}

static void pending_interrupts_survive_many_saves_on_one_vcpu(void **state)
{
	no_interrupt_is_lost_over_saves(1, ROUNDS, false);
}

static void pending_interrupts_survive_many_saves_on_four_vcpus(void **state)
{
	no_interrupt_is_lost_over_saves(4, ROUNDS / 3, false);
}

/* A vCPU that comes out at every moment: between a vector's hand-over and its delivery, too. */
static void pending_interrupts_survive_saves_under_a_storm_of_kicks(void **state)
{
	no_interrupt_is_lost_over_saves(1, ROUNDS * 2, true);
}

/* The guest ended a level-triggered interrupt, and was parked before KVM told of it: the vector is
 * in no LAPIC any more, and the pin still waits. */
static void the_end_of_a_level_interrupt_is_not_lost(void **state)
{
	struct x86_state *s = malloc(sizeof(*s));
	struct cycle c = { .rng = 1 };

	cycle_start(&c, 1);
	guest_pause(c.g);
	c.level_up = true;
	irq_set(&c.level, true);
	assert_int_equal(accel_kvm.vcpu_get_state(c.g->vm->vcpus[0], s, &c.g->e), 0);
	uint8_t *irr = s->lapic + 0x200 + 16 * (LEVEL_VEC / 32) + LEVEL_VEC % 32 / 8;
	assert_true(*irr >> LEVEL_VEC % 8 & 1);
	*irr &= (uint8_t) ~(1u << LEVEL_VEC % 8);
	assert_int_equal(accel_kvm.vcpu_set_state(c.g->vm->vcpus[0], s, &c.g->e), 0);
	cycle_move(&c, false);
	guest_start(c.g);
	cycle_settle(&c, 0); /* the line is still up: it comes again */
	assert_true(pcg_count(c.g, LEVEL_VEC) >= 1);
	guest_free(c.g);
	free(s);
}

static void thirty_two_vcpus_are_saved_under_a_storm_of_kicks(void **state)
{
	struct cycle c = { .rng = 3 };
	uint64_t most = 0;
	pthread_t t;

	cycle_start(&c, 32);
	for (unsigned round = 0; round < 12; round++) {
		struct storm s = { .vm = c.g->vm };

		assert_int_equal(pthread_create(&t, NULL, storm_thread, &s), 0);
		guest_until(c.g, s.kicks > 100);
		for (unsigned i = 0; i < 3; i++) {
			struct state_writer w;
			uint64_t start = clock_mono_ns();

			guest_pause(c.g);
			if (clock_mono_ns() - start > most)
				most = clock_mono_ns() - start;
			state_writer_init(&w);
			assert_int_equal(vm_save(c.g->vm, &w, &c.g->e), 0);
			state_writer_fini(&w);
			guest_start(c.g);
		}
		s.stop = true;
		pthread_join(t, NULL);
		guest_pause(c.g);
		cycle_move(&c, round % 2);
		guest_start(c.g);
		uint64_t ran = pcg_cpu(c.g, round);
		guest_until(c.g, pcg_cpu(c.g, round) > ran);
	}
	printf("longest pause of 32 spinning vCPUs: %.1f ms\n", (double)most / 1e6);
	guest_free(c.g);
}

/* vCPUs that start and pause many times while others ask the same: from the loop and by events. */
static void pauses_asked_many_times_over_are_each_answered(void **state)
{
	struct cycle c = { .rng = 5 };

	cycle_start(&c, 32);
	for (unsigned round = 0; round < 20; round++) {
		unsigned before = c.g->paused;

		for (unsigned i = 0; i < 8; i++)
			vm_pause(c.g->vm, guest_on_paused, c.g);
		guest_until(c.g, c.g->paused == before + 8);
		guest_start(c.g);
	}
	guest_free(c.g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pending_interrupts_survive_many_saves_on_one_vcpu),
		cmocka_unit_test(pending_interrupts_survive_many_saves_on_four_vcpus),
		cmocka_unit_test(pending_interrupts_survive_saves_under_a_storm_of_kicks),
		cmocka_unit_test(the_end_of_a_level_interrupt_is_not_lost),
		cmocka_unit_test(thirty_two_vcpus_are_saved_under_a_storm_of_kicks),
		cmocka_unit_test(pauses_asked_many_times_over_are_each_answered),
	};

	guest_skip_without_kvm();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
