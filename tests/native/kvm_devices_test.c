/* kvm_devices_test.c - the machine's devices on the real /dev/kvm, driven from inside by drivers of
 * our own (guest_code.c), checked from outside: sockets, files, qemu-img, clocks. The path is the
 * whole one: exits, doorbells (ioeventfd), MSI-X through irqfd, I/O APIC, 8259 pair, local APICs. */
#include "pc_guest.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "storage/blockdev.h"

static void write_all(int fd, const char *p, size_t len)
{
	assert_int_equal(write(fd, p, len), (ssize_t)len);
}

/* What comes out of @fd within the deadline, up to @want bytes. */
static size_t read_until(struct guest *g, int fd, char *buf, size_t want)
{
	size_t have = 0;
	uint64_t end = clock_mono_ns() + GUEST_DEADLINE_MS * NS_PER_MS;

	while (have < want && clock_mono_ns() < end) {
		ssize_t n = recv(fd, buf + have, want - have, MSG_DONTWAIT);

		if (n > 0)
			have += (size_t)n;
		else
			loop_run_once(g->loop, 1);
		pcg_check(g);
	}
	return have;
}

static void serial_sends_and_receives_by_interrupt(void **state)
{
	struct mc_port port = { .name = "serial0" };
	struct machine_config cfg = { .nserials = 1, .serials = &port };
	char text[512], back[512];
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	port.chr = (struct chardev_config){ .kind = CHARDEV_STREAM, .fd = sv[0] };
	struct guest *g = pcg_new(pcg_serial, 1, &cfg);
	guest_start(g);
	assert_int_equal(read_until(g, sv[1], back, 1), 1);
	assert_int_equal(back[0], '>');
	for (unsigned round = 0; round < 5; round++) {
		for (unsigned i = 0; i < sizeof(text); i++)
			text[i] = (char)('A' + (i * (round + 3)) % 26);
		write_all(sv[1], text, sizeof(text));
		assert_int_equal(read_until(g, sv[1], back, sizeof(back)), sizeof(back));
		for (unsigned i = 0; i < sizeof(text); i++)
			assert_int_equal(back[i], text[i] ^ 0x20);
	}
	assert_true(pcg_count(g, 0x44) >= 5);
	write_all(sv[1], "\033", 1);
	pcg_done(g);
	guest_free(g);
	close(sv[1]);
}

/* ---- disks ---- */

#define BLK_REQUESTS 48u
#define BLK_BYTES    16384u
#define BLK_PLANTED  4096u /* sector */
#define BLK_SIZE     (4 * MIB)

static uint8_t blk_pattern(uint64_t request, uint64_t i)
{
	return (uint8_t)(request * 7 + i * 13 + (i >> 9));
}

static void run(const char *fmt, const char *a, const char *b)
{
	char cmd[512];

	snprintf(cmd, sizeof(cmd), fmt, a, b);
	if (system(cmd) != 0)
		fail_msg("%s", cmd);
}

static void blk_in_guest(bool qcow2)
{
	char path[] = "/tmp/vmd-native-XXXXXX", flat[40];
	int fd = mkstemp(path);
	uint8_t *all = malloc(BLK_SIZE);
	struct err e = { 0 };
	struct blk_spec spec = { .driver = qcow2 ? "qcow2" : "file",
				 .label = "disk vda",
				 .fd = fd,
				 .cache = BLK_CACHE_WRITEBACK };
	struct qcow2_create create = { .size_bytes = BLK_SIZE, .compat = true };
	struct mc_disk disk = { .name = "vda", .serial = "native", .queues = 1 };
	struct machine_config cfg = { .ndisks = 1, .disks = &disk };

	assert_true(fd >= 0);
	if (qcow2)
		assert_int_equal(qcow2_create(fd, &create, &e), 0);
	else
		assert_int_equal(ftruncate(fd, BLK_SIZE), 0);
	disk.bd = blk_open(&spec, &e);
	if (!disk.bd)
		fail_msg("%s", e.detail);
	for (unsigned i = 0; i < BLK_BYTES; i++)
		all[i] = blk_pattern(1000, i);
	assert_int_equal(blk_pwrite(disk.bd, all, BLK_BYTES, BLK_PLANTED * 512), 0);

	struct guest *g = pcg_new(pcg_blk, 1, &cfg);
	struct pcg_params *p = pcg_params(g);
	p->arg[0] = BLK_REQUESTS;
	p->arg[1] = BLK_BYTES;
	p->arg[2] = BLK_PLANTED;
	guest_start(g);
	struct pcg_report *r = pcg_report(g);
	guest_until(g, r->stage >= 2 || r->fail || g->events);
	uint64_t exits = g->vm->vcpus[0]->exits, from = r->stage;
	guest_until(g, r->stage >= BLK_REQUESTS || r->fail || g->events);
	exits = g->vm->vcpus[0]->exits - exits;
	pcg_done(g);
	assert_int_equal(r->value[0], BLK_SIZE / 512);
	/* planted + writes + flushes + reads, each by an interrupt of its own */
	assert_true(r->value[1] >= 1 + 2 * BLK_REQUESTS + BLK_REQUESTS / 8 + 1);
	/* kicks go to an eventfd in KVM, interrupts come by irqfd: the vCPU does not leave */
	if (exits >= BLK_REQUESTS - from)
		fail_msg("%llu exits for %llu requests", (unsigned long long)exits,
			 (unsigned long long)(BLK_REQUESTS - from));
	guest_free(g);

	/* from outside */
	if (qcow2) {
		if (system("command -v qemu-img >/dev/null 2>&1") == 0) {
			run("qemu-img check -q -f qcow2 %s%s", path, "");
			snprintf(flat, sizeof(flat), "%s.raw", path);
			run("qemu-img convert -f qcow2 -O raw %s %s", path, flat);
			fd = open(flat, O_RDONLY | O_CLOEXEC);
			unlink(flat);
		} else {
			printf("no qemu-img here: the qcow2 is read back by our own driver only\n");
			fd = -1;
		}
	} else {
		fd = open(path, O_RDONLY | O_CLOEXEC);
	}
	if (fd >= 0) {
		assert_int_equal(pread(fd, all, BLK_SIZE, 0), BLK_SIZE);
		close(fd);
	} else {
		spec.fd = open(path, O_RDWR | O_CLOEXEC);
		struct blockdev *bd = blk_open(&spec, &e);
		assert_non_null(bd);
		assert_int_equal(blk_pread(bd, all, BLK_SIZE, 0), 0);
		blk_close(bd);
	}
	for (unsigned k = 0; k < BLK_REQUESTS; k++)
		for (unsigned i = 0; i < BLK_BYTES; i++)
			if (all[k * BLK_BYTES + i] != blk_pattern(k, i))
				fail_msg("request %u, byte %u", k, i);
	for (unsigned i = 0; i < BLK_BYTES; i++)
		assert_int_equal(all[BLK_PLANTED * 512 + i], blk_pattern(1000, i));
	for (unsigned i = BLK_REQUESTS * BLK_BYTES; i < BLK_PLANTED * 512; i++)
		assert_int_equal(all[i], 0);
	unlink(path);
	free(all);
}

static void virtio_blk_on_a_raw_file_holds_what_the_guest_wrote(void **state)
{
	blk_in_guest(false);
}

static void virtio_blk_on_qcow2_holds_what_the_guest_wrote(void **state)
{
	blk_in_guest(true);
}

/* ---- network, random numbers ---- */

static void virtio_net_carries_frames_both_ways(void **state)
{
	enum { FRAMES = 100, HDR = 12 };
	struct mc_nic nic = { .name = "net0",
			      .mac = { 0x52, 0x54, 0, 0xab, 0xcd, 0xef },
			      .vhost_fds = { -1 },
			      .queues = 1 };
	struct machine_config cfg = { .nnics = 1, .nics = &nic };
	uint8_t out[HDR + 1514] = { 0 }, in[2048];
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sv), 0);
	nic.tap_fds[0] = sv[0];
	struct guest *g = pcg_new(pcg_net, 1, &cfg);
	struct pcg_report *r = pcg_report(g);
	pcg_params(g)->arg[0] = FRAMES;
	guest_start(g);
	guest_until(g, r->stage == 1 || r->fail || g->events);
	pcg_check(g);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(r->bytes[i], nic.mac[i]);
	for (unsigned k = 0; k < FRAMES; k++) {
		size_t len = 60 + (k * 37) % 1454;

		for (size_t i = 0; i < len; i++)
			out[HDR + i] = (uint8_t)(k + i * 3);
		write_all(sv[1], (char *)out, HDR + len);
		if (k % 4 != 3 && k != FRAMES - 1)
			continue; /* several in flight */
		for (unsigned j = k - k % 4; j <= k; j++) {
			size_t want = 60 + (j * 37) % 1454;
			ssize_t n = -1;
			uint64_t end = clock_mono_ns() + GUEST_DEADLINE_MS * NS_PER_MS;

			while (n < 0 && clock_mono_ns() < end) {
				n = recv(sv[1], in, sizeof(in), MSG_DONTWAIT);
				if (n < 0)
					loop_run_once(g->loop, 1);
				pcg_check(g);
			}
			assert_int_equal(n, HDR + want);
			for (size_t i = 0; i < want; i++)
				assert_int_equal(in[HDR + i], (uint8_t) ~(uint8_t)(j + i * 3));
		}
	}
	pcg_done(g);
	assert_int_equal(r->value[0], FRAMES);
	assert_true(r->value[1] >= FRAMES / 4 && r->value[2] >= FRAMES / 4);
	guest_free(g);
	close(sv[1]);
}

static void virtio_rng_gives_random_bytes(void **state)
{
	struct machine_config cfg = { .rng = true };
	struct guest *g = pcg_new(pcg_rng, 1, &cfg);
	const struct pcg_report *r = pcg_report(g);
	unsigned seen[256] = { 0 }, distinct = 0;

	guest_start(g);
	pcg_done(g);
	for (unsigned i = 0; i < 256; i++)
		distinct += seen[r->bytes[i]]++ == 0;
	/* 256 random bytes have about 162 different values; 110 is 10 sigma away */
	assert_in_range(distinct, 110, 210);
	for (unsigned k = 1; k < 4; k++)
		assert_memory_not_equal((const void *)r->bytes, (const void *)(r->bytes + 64 * k),
					64);
	guest_free(g);
}

/* ---- timers ---- */

/* @ticks interrupts of @vector, and none sooner than the clock allows. */
static void timer_in_guest(enum pcg_timer kind, uint64_t period, uint64_t period_ns,
			   unsigned vector, unsigned ticks)
{
	struct machine_config cfg = { 0 };
	struct guest *g = pcg_new(pcg_timers, 1, &cfg);
	struct pcg_params *p = pcg_params(g);

	p->arg[0] = kind;
	p->arg[1] = p->tsc_rearm = period;
	uint64_t start = clock_mono_ns();
	guest_start(g);
	guest_until(g, pcg_count(g, vector) >= ticks || g->events || pcg_report(g)->fail);
	uint64_t took = clock_mono_ns() - start;
	pcg_check(g);
	uint64_t n = pcg_count(g, vector);
	/* late ones may be caught up, so only the sum is bounded; 10% for the clocks' difference */
	if (took * 10 < (n - 1) * period_ns * 9)
		fail_msg("%llu ticks of %llu ns in %llu ns", (unsigned long long)n,
			 (unsigned long long)period_ns, (unsigned long long)took);
	guest_free(g);
}

static void the_pit_ticks_through_the_io_apic(void **state)
{
	timer_in_guest(PCG_PIT_IOAPIC, 2386, 1999728, 0x42, 50);
}

static void the_pit_ticks_through_the_8259_pair(void **state)
{
	timer_in_guest(PCG_PIT_PIC, 2386, 1999728, 0x20, 50);
}

static void the_local_apics_timer_ticks(void **state)
{
	timer_in_guest(PCG_LAPIC_PERIODIC, 2000000, 2000000, 0x50, 50);
}

static void a_one_shot_timer_fires_once(void **state)
{
	struct machine_config cfg = { 0 };
	struct guest *g = pcg_new(pcg_timers, 1, &cfg);

	pcg_params(g)->arg[0] = PCG_LAPIC_ONESHOT;
	pcg_params(g)->arg[1] = 3000000;
	guest_start(g);
	guest_until(g, pcg_count(g, 0x50) == 1);
	uint64_t until = clock_mono_ns() + 20 * NS_PER_MS;
	guest_until(g, clock_mono_ns() > until);
	pcg_check(g);
	assert_int_equal(pcg_count(g, 0x50), 1);
	guest_free(g);
}

static void tsc_deadlines_fire(void **state)
{
	int fd = guest_open_kvm();
	bool has = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;

	close(fd);
	if (!has) {
		printf("skipped: this host's KVM has no TSC deadline timer\n");
		skip();
	}
	/* 6 million cycles: at least 1 ms on any CPU there is */
	timer_in_guest(PCG_TSC, 6000000, NS_PER_MS, PCG_REARM_VECTOR, 50);
}

/* ---- several vCPUs ---- */

static void a_token_goes_round_by_ipi(unsigned vcpus, unsigned rounds)
{
	struct machine_config cfg = { 0 };
	struct guest *g = pcg_new(pcg_ipi, vcpus, &cfg);

	pcg_params(g)->arg[0] = rounds;
	guest_start(g);
	pcg_done(g);
	for (unsigned i = 0; i < vcpus; i++) {
		assert_int_equal(pcg_cpu(g, i), rounds);
		assert_int_equal(pcg_count(g, 0x80 + i), rounds);
	}
	assert_int_equal(pcg_count(g, 0x7f), vcpus - 1);
	guest_free(g);
}

static void four_vcpus_pass_a_token_by_ipi(void **state)
{
	a_token_goes_round_by_ipi(4, 100);
}

static void sixteen_vcpus_pass_a_token_by_ipi(void **state)
{
	a_token_goes_round_by_ipi(16, 3);
}

static void init_and_sipi_wake_the_other_vcpus_in_real_mode(void **state)
{
	/* lock incw 0x40 (DS 0); then for ever */
	static const uint8_t code[] = { 0xf0, 0xff, 0x06, 0x40, 0x00, 0xeb, 0xfe };
	struct machine_config cfg = { 0 };
	struct guest *g = pcg_new(pcg_sipi, 4, &cfg);
	uint16_t *count = mem_ptr(g->vm->mem, 0x40, 2);

	mem_store(g->vm->mem, 0x8000, code, sizeof(code));
	*count = 0;
	guest_start(g);
	pcg_done(g);
	guest_until(g, __atomic_load_n(count, __ATOMIC_SEQ_CST) == 3 || g->events);
	pcg_check(g);
	guest_free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(serial_sends_and_receives_by_interrupt),
		cmocka_unit_test(virtio_blk_on_a_raw_file_holds_what_the_guest_wrote),
		cmocka_unit_test(virtio_blk_on_qcow2_holds_what_the_guest_wrote),
		cmocka_unit_test(virtio_net_carries_frames_both_ways),
		cmocka_unit_test(virtio_rng_gives_random_bytes),
		cmocka_unit_test(the_pit_ticks_through_the_io_apic),
		cmocka_unit_test(the_pit_ticks_through_the_8259_pair),
		cmocka_unit_test(the_local_apics_timer_ticks),
		cmocka_unit_test(a_one_shot_timer_fires_once),
		cmocka_unit_test(tsc_deadlines_fire),
		cmocka_unit_test(four_vcpus_pass_a_token_by_ipi),
		cmocka_unit_test(sixteen_vcpus_pass_a_token_by_ipi),
		cmocka_unit_test(init_and_sipi_wake_the_other_vcpus_in_real_mode),
	};

	guest_skip_without_kvm();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
