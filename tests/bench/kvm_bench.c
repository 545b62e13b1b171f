/* kvm_bench.c - what a VM costs on the real /dev/kvm: made to first exit, torn down, paused, exits
 * a second.
 * One JSON object a line (make bench). The guest is one instruction loop in ring 3
 * (tests/native/guest.h). */
#include "tests/bench/only.h"
#include "tests/native/guest.h"

#include <sys/ioctl.h>

#include "hypervisor-core/kvm/kvm.h"

#define RUNS 200u

GUEST_CODE(first, "mov $0x510, %edx; 1: out %al, %dx; jmp 1b");
GUEST_CODE(idle, "1: incq (%rbx); jmp 1b");

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void report(const char *figure, double *us, unsigned n, const char *note)
{
	qsort(us, n, sizeof(*us), by_value);
	printf("{\"figure\":\"%s\",\"unit\":\"us\",\"ours\":%.1f,\"runs\":%u,\"ours_p99\":%.1f,"
	       "\"note\":\"%s\"}\n",
	       figure, us[n / 2], n, us[n * 99 / 100], note);
}

static double since_us(uint64_t start)
{
	return (double)(clock_mono_ns() - start) / 1e3;
}

static void wait_reads(struct guest *g, struct probe_dev *d)
{
	while (!atomic_load(&d->writes))
		loop_run_once(g->loop, 0);
}

static void bench_life(void)
{
	double made[RUNS], gone[RUNS];
	struct probe_dev d = { 0 };

	for (unsigned i = 0; i < RUNS; i++) {
		uint64_t start = clock_mono_ns();
		struct guest *g = guest_new(1, first);

		atomic_store(&d.writes, 0);
		bus_add(g->vm->pio, 0x510, 1, &probe_ops, &d, "bench", BUS_UNLOCKED);
		guest_start(g);
		wait_reads(g, &d);
		made[i] = since_us(start);
		start = clock_mono_ns();
		guest_free(g);
		gone[i] = since_us(start);
	}
	report("kvm.create_to_first_exit", made, RUNS,
	       "16 MiB, 1 vCPU, threads and event loop included");
	report("kvm.teardown", gone, RUNS, "spinning guest");
}

static void bench_pause(struct guest *g)
{
	double kick[RUNS];

	for (unsigned i = 0; i < RUNS; i++) {
		guest_start(g);
		uint64_t seen = guest_peek64(g, GUEST_DATA);
		while (guest_peek64(g, GUEST_DATA) == seen)
			loop_run_once(g->loop, 0);
		uint64_t start = clock_mono_ns();
		guest_pause(g);
		kick[i] = since_us(start);
	}
	report("kvm.pause_spinning_guest", kick, RUNS, "vm_pause to its report on the main loop");
}

/* the run area's copy of the registers (KVM_CAP_SYNC_REGS) could save three of the calls in these */
static int bench_state(struct guest *g)
{
	struct x86_state *s = malloc(sizeof(*s));
	double get[RUNS], set[RUNS], regs[RUNS];
	int fd = kvm_vcpu_of(g->vm->vcpus[0])->fd;
	for (unsigned i = 0; i < RUNS; i++) {
		struct kvm_regs r;
		uint64_t start = clock_mono_ns();

		if (accel_kvm.vcpu_get_state(g->vm->vcpus[0], s, &g->e) < 0)
			return 1;
		get[i] = since_us(start);
		start = clock_mono_ns();
		if (accel_kvm.vcpu_set_state(g->vm->vcpus[0], s, &g->e) < 0)
			return 1;
		set[i] = since_us(start);
		start = clock_mono_ns();
		if (ioctl(fd, KVM_GET_REGS, &r) < 0)
			return 1;
		regs[i] = since_us(start);
	}
	free(s);
	report("kvm.vcpu_get_state", get, RUNS, "all of a parked vCPU");
	report("kvm.vcpu_set_state", set, RUNS, "all of a parked vCPU");
	report("kvm.get_regs", regs, RUNS, "one call of those; what SYNC_REGS saves up to 3 of");
	return 0;
}

static void bench_exits(void)
{
	struct probe_dev d = { 0 };
	struct guest *g = guest_new(1, first);
	double rate;

	atomic_store(&d.writes, 0);
	bus_add(g->vm->pio, 0x510, 1, &probe_ops, &d, "bench", 0);
	guest_start(g);
	wait_reads(g, &d);
	uint64_t start = clock_mono_ns(), first_count = d.writes;
	while (clock_mono_ns() - start < 300 * NS_PER_MS)
		loop_run_once(g->loop, 10);
	rate = since_us(start) / (double)(d.writes - first_count);
	printf("{\"figure\":\"kvm.port_io_exit\",\"unit\":\"us\",\"ours\":%.2f,\"note\":\"OUT to a "
	       "locked device and back\"}\n",
	       rate);
	guest_free(g);
}

int main(void)
{
	bool life = bench_wanted("kvm.create_to_first_exit") || bench_wanted("kvm.teardown");
	bool pause = bench_wanted("kvm.pause_spinning_guest");
	bool state = bench_wanted("kvm.vcpu_") || bench_wanted("kvm.get_regs");
	bool exits = bench_wanted("kvm.port_io_exit");
	int r = 0;

	if (!life && !pause && !state && !exits)
		return 0;
	guest_skip_without_kvm();
	if (life)
		bench_life();
	if (pause || state) {
		struct guest *g = guest_new(1, idle);

		/* the state is read of a vCPU that has run and is parked */
		bench_pause(g);
		r = state ? bench_state(g) : 0;
		guest_free(g);
	}
	if (exits)
		bench_exits();
	return r;
}
