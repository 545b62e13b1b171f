/* kvm_guest_test.c - the KVM row on the real /dev/kvm: I/O, interrupts, pause, state, dirty pages.
 * Guests are a few instructions each and stay in ring 3 (guest.h). */
#include "guest.h"

#include <sys/eventfd.h>

#define PORT 0x510
#define MMIO 0xd0000000u

/* out 1,2,4 bytes; rep outsb of 16; in 4 bytes, hand it back by out; then say done. */
GUEST_CODE(
    pio, "mov $0x510, %edx; mov $0x5a, %al; out %al, %dx; mov $0x1234, %ax; out %ax, %dx;"
	 "mov $0xcafef00d, %eax; out %eax, %dx; lea pio_text(%rip), %rsi; mov $16, %ecx; rep outsb;"
	 "in %dx, %eax; mov %rax, (%rbx); movq $1, 8(%rbx); 1: pause; jmp 1b; pio_text: .ascii "
	 "\"0123456789abcdef\"");

static void port_io_of_every_size_and_rep_reaches_the_bus(void **state)
{
	struct guest *g = guest_new(1, pio);
	struct probe_dev d = { .answer = 0x11223344 };

	assert_int_equal(bus_add(g->vm->pio, PORT, 4, &probe_ops, &d, "probe", 0), 0);
	guest_start(g);
	guest_until(g, guest_peek64(g, GUEST_DATA + 8) == 1);
	assert_int_equal(guest_peek64(g, GUEST_DATA), 0x11223344);
	assert_int_equal(d.writes, 3 + 16);
	assert_int_equal(d.last_val, 'f');
	assert_int_equal(d.reads, 1);
	guest_free(g);
}

GUEST_CODE(
    mmio,
    "mov $0xd0000000, %esi; mov $0x1122334455667788, %rax; mov %rax, 8(%rsi); mov %eax, 4(%rsi);"
    "mov %ax, 2(%rsi); mov %al, 1(%rsi); mov 8(%rsi), %rax; mov %rax, (%rbx); movzwl 2(%rsi), %eax;"
    "mov %rax, 8(%rbx); mov 0x1000(%rsi), %eax; mov %rax, 16(%rbx); movq $1, 24(%rbx); 1: pause; "
    "jmp 1b");

static void mmio_of_every_size_reaches_the_bus_and_nothing_reads_ones(void **state)
{
	struct guest *g = guest_new(1, mmio);
	struct probe_dev d = { .answer = 0xa1a2a3a4a5a6a7a8 };

	assert_int_equal(bus_add(g->vm->mmio, MMIO, 0x1000, &probe_ops, &d, "probe", 0), 0);
	guest_start(g);
	guest_until(g, guest_peek64(g, GUEST_DATA + 24) == 1);
	assert_int_equal(guest_peek64(g, GUEST_DATA), 0xa1a2a3a4a5a6a7a8);
	assert_int_equal(guest_peek64(g, GUEST_DATA + 8), 0xa7a8);
	assert_int_equal(guest_peek64(g, GUEST_DATA + 16), 0xffffffff);
	assert_int_equal(d.writes, 4);
	assert_int_equal(bus_unclaimed_count(g->vm->mmio), 1);
	guest_free(g);
}

GUEST_CODE(spin, "1: incq (%rbx); jmp 1b");

static void pause_and_start_many_times_while_all_vcpus_spin(void **state)
{
	struct guest *g = guest_new(3, spin);
	uint64_t before;

	for (unsigned i = 0; i < 200; i++) {
		guest_start(g);
		/* odd rounds pause before a thread may have entered the guest at all */
		if (i % 2 == 0) {
			before = guest_peek64(g, GUEST_DATA);
			guest_until(g, guest_peek64(g, GUEST_DATA) != before);
		}
		guest_pause(g);
		before = guest_peek64(g, GUEST_DATA);
		assert_int_equal(guest_peek64(g, GUEST_DATA), before);
	}
	guest_free(g);
}

GUEST_CODE(mmiospin, "mov $0xd0000000, %esi; xor %ecx, %ecx; 1: mov (%rsi), %eax; inc %rcx; mov "
		     "%rcx, (%rbx); jmp 1b");

static void a_guest_spinning_in_mmio_is_paused_with_no_access_half_done(void **state)
{
	struct guest *g = guest_new(1, mmiospin);
	struct probe_dev d = { .answer = 7 };
	struct x86_state *s = malloc(sizeof(*s));

	assert_int_equal(bus_add(g->vm->mmio, MMIO, 0x1000, &probe_ops, &d, "probe", 0), 0);
	for (unsigned i = 0; i < 50; i++) {
		uint64_t seen = d.reads;

		guest_start(g);
		guest_until(g, d.reads > seen);
		guest_pause(g);
		assert_int_equal(accel_kvm.vcpu_get_state(g->vm->vcpus[0], s, &g->e), 0);
		/* each read is counted by the guest too, but for the one whose count is not yet
		 * taken */
		assert_true(d.reads == s->gpr[X86_RCX] || d.reads == s->gpr[X86_RCX] + 1);
		assert_int_equal(s->gpr[X86_RAX], 7);
	}
	free(s);
	guest_free(g);
}

static void freeing_a_spinning_guest_joins_its_threads(void **state)
{
	struct guest *g = guest_new(4, spin);

	guest_start(g);
	guest_until(g, guest_peek64(g, GUEST_DATA) > 1000);
	guest_free(g);
}

GUEST_CODE(
    smp,
    "lock incq (%rbx); mov $1, %eax; lea 64(%rbx), %rsi; movq $1, (%rsi,%rdi,8); 1: pause; jmp 1b");

static void four_vcpus_run_at_once(void **state)
{
	struct guest *g = guest_new(4, smp);

	guest_start(g);
	guest_until(g, guest_peek64(g, GUEST_DATA) == 4);
	for (unsigned i = 0; i < 4; i++)
		guest_until(g, guest_peek64(g, GUEST_DATA + 64 + 8 * i) == 1);
	guest_free(g);
}

GUEST_CODE(bell, "mov $0xd0000000, %esi; movl $7, (%rsi); movl $8, (%rsi); movl $7, (%rsi);"
		 "mov $0x520, %edx; mov $3, %ax; out %ax, %dx; movq $1, (%rbx); 1: pause; jmp 1b");

static void doorbells_match_their_value_and_signal_an_eventfd(void **state)
{
	struct guest *g = guest_new(1, bell);
	struct probe_dev d = { 0 };
	uint64_t count = 0;
	int mmio_fd = eventfd(0, EFD_NONBLOCK), pio_fd = eventfd(0, EFD_NONBLOCK);

	assert_int_equal(bus_add(g->vm->mmio, MMIO, 0x1000, &probe_ops, &d, "probe", 0), 0);
	assert_int_equal(bus_doorbell_add(g->vm->mmio, MMIO, 4, true, 7, mmio_fd), 0);
	assert_int_equal(bus_doorbell_add(g->vm->pio, 0x520, 2, false, 0, pio_fd), 0);
	assert_int_equal(bus_doorbell_add(g->vm->mmio, MMIO, 4, true, 7, mmio_fd), -EEXIST);
	guest_start(g);
	guest_until(g, guest_peek64(g, GUEST_DATA) == 1);
	assert_int_equal(read(mmio_fd, &count, 8), 8);
	assert_int_equal(count, 2);
	assert_int_equal(read(pio_fd, &count, 8), 8);
	assert_int_equal(count, 1);
	assert_int_equal(d.writes, 1);
	assert_int_equal(d.last_val, 8);
	bus_doorbell_del(g->vm->mmio, MMIO, 4, true, 7, mmio_fd);
	bus_doorbell_del(g->vm->pio, 0x520, 2, false, 0, pio_fd);
	guest_free(g);
	close(mmio_fd);
	close(pio_fd);
}

/* Enables its local APIC, then counts in ring 3 while a ring 0 handler counts vector 0x40. */
GUEST_CODE(intr, "mov $0xfee00000, %esi; movl $0x1ff, 0xf0(%rsi); movq $1, (%rbx);"
		 "1: incq 16(%rbx); jmp 1b; .balign 256; incq 8(%rbx); movl $0, 0xb0(%rsi);"
		 "mov (%rsp), %rdx; mov 24(%rsp), %rcx; sti; sysexitq");

static struct guest *interrupt_guest(void)
{
	struct guest *g = guest_new(1, intr);

	guest_vector(g, 0x40, GUEST_CODE_GPA + 256);
	guest_start(g);
	guest_until(g, guest_peek64(g, GUEST_DATA + 16) > 0);
	return g;
}

static void a_message_interrupts_the_guest(void **state)
{
	struct guest *g = interrupt_guest();

	for (unsigned i = 1; i <= 20; i++) {
		assert_int_equal(vm_msi(g->vm, 0xfee00000, 0x40), 0);
		guest_until(g, guest_peek64(g, GUEST_DATA + 8) == i);
	}
	guest_free(g);
}

static void an_msix_vector_interrupts_by_irqfd_and_follows_its_route(void **state)
{
	struct guest *g = interrupt_guest();
	struct msi_vector v = { 0 }, other = { 0 };

	msi_fire(&v); /* disabled: nothing */
	assert_int_equal(msi_vector_set(&other, g->vm, 0xfee00000, 0x41), 0);
	assert_int_equal(msi_vector_set(&v, g->vm, 0xfee00000, 0x41), 0);
	assert_true(v.gsi >= 24 && v.gsi != other.gsi);
	assert_int_equal(msi_vector_set(&v, g->vm, 0xfee00000, 0x40), 0);
	/* the new route reaches KVM before the guest runs on; make it run on */
	guest_pause(g);
	uint64_t before = guest_peek64(g, GUEST_DATA + 16);
	guest_start(g);
	guest_until(g, guest_peek64(g, GUEST_DATA + 16) != before);
	for (unsigned i = 1; i <= 20; i++) {
		msi_fire(&v);
		guest_until(g, guest_peek64(g, GUEST_DATA + 8) == i);
	}
	msi_vector_clear(&v);
	msi_vector_clear(&other);
	msi_fire(&v);
	guest_free(g);
}

static void saved_state_goes_on_in_another_vm(void **state)
{
	struct guest *a = guest_new(2, spin), *b = guest_new(2, spin);
	struct state_writer w;

	guest_start(a);
	guest_until(a, guest_peek64(a, GUEST_DATA) > 1000);
	guest_pause(a);
	state_writer_init(&w);
	assert_int_equal(vm_save(a->vm, &w, &a->e), 0);
	uint64_t then = vm_now_ns(a->vm);
	memcpy(mem_ptr_write(b->vm->mem, 0, GUEST_RAM), mem_ptr(a->vm->mem, 0, GUEST_RAM),
	       GUEST_RAM);
	uint64_t count = guest_peek64(b, GUEST_DATA);
	if (vm_load(b->vm, w.data, w.len, &b->e) < 0)
		fail_msg("load: %s", b->e.detail);
	assert_int_equal(vm_now_ns(b->vm), then);
	guest_start(b);
	guest_until(b, guest_peek64(b, GUEST_DATA) > count + 1000);
	guest_pause(b);
	/* every cut and every flipped byte is refused before anything changes */
	for (size_t cut = 0; cut < w.len; cut += 97)
		assert_true(vm_load(b->vm, w.data, cut, &b->e) < 0);
	for (size_t at = 0; at < w.len; at += 211) {
		w.data[at] ^= 0x40;
		assert_true(vm_load(b->vm, w.data, w.len, &b->e) < 0);
		w.data[at] ^= 0x40;
	}
	guest_start(b);
	count = guest_peek64(b, GUEST_DATA);
	guest_until(b, guest_peek64(b, GUEST_DATA) > count);
	state_writer_fini(&w);
	guest_free(a);
	guest_free(b);
}

static void registers_survive_get_and_set(void **state)
{
	struct guest *g = guest_new(1, spin);
	struct x86_state *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b));

	guest_start(g);
	guest_until(g, guest_peek64(g, GUEST_DATA) > 10);
	guest_pause(g);
	assert_int_equal(accel_kvm.vcpu_get_state(g->vm->vcpus[0], a, &g->e), 0);
	for (unsigned i = 8; i < 16; i++)
		a->gpr[i] = 0x0123456789abcdef * i;
	memset(a->xsave + 160, 0x5c, 16 * 16); /* XMM0-15 */
	memset(a->xsave + 512, 0, 64);
	a->xsave[512] = 3;
	if (accel_kvm.vcpu_set_state(g->vm->vcpus[0], a, &g->e) < 0)
		fail_msg("%s", g->e.detail);
	assert_int_equal(accel_kvm.vcpu_get_state(g->vm->vcpus[0], b, &g->e), 0);
	assert_memory_equal(a->gpr, b->gpr, sizeof(a->gpr));
	assert_int_equal(a->rip, b->rip);
	assert_int_equal(a->rflags, b->rflags);
	assert_int_equal(a->cr3, b->cr3);
	assert_int_equal(a->efer, b->efer);
	assert_memory_equal(a->seg, b->seg, sizeof(a->seg));
	assert_memory_equal(a->xsave + 160, b->xsave + 160, 256);
	assert_int_equal(a->nmsrs, b->nmsrs);
	free(a);
	free(b);
	guest_free(g);
}

GUEST_CODE(dirty, "mov $0x400000, %esi; 1: pause; cmpq $0, (%rbx); je 1b; movq $1, 0x5000(%rsi);"
		  "movq $1, 0x9008(%rsi); movq $2, (%rbx); 2: pause; jmp 2b");

static void dirty_pages(bool ring)
{
	struct guest *g = guest_new_cfg(1, dirty_start, dirty_end, ring);
	uint8_t bits[GUEST_RAM / MEM_PAGE / 8] = { 0 };

	guest_start(g);
	assert_int_equal(accel_kvm.dirty_start(g->vm), 0);
	guest_poke64(g, GUEST_DATA, 1);
	guest_until(g, guest_peek64(g, GUEST_DATA) == 2);
	guest_pause(g);
	const struct mem_region *r = mem_region_find(g->vm->mem, 0);
	assert_int_equal(accel_kvm.dirty_fetch(g->vm, r, bits), 0);
	for (unsigned page = 0x400; page < 0x410; page++)
		assert_int_equal(bits[page / 8] >> (page % 8) & 1, page == 0x405 || page == 0x409);
	memset(bits, 0, sizeof(bits));
	assert_int_equal(accel_kvm.dirty_fetch(g->vm, r, bits), 0);
	for (unsigned page = 0x400; page < 0x410; page++)
		assert_int_equal(bits[page / 8] >> (page % 8) & 1, 0);
	accel_kvm.dirty_stop(g->vm);
	guest_start(g);
	guest_free(g);
}

static void the_dirty_log_names_exactly_the_written_pages(void **state)
{
	dirty_pages(false);
}

static void the_dirty_ring_names_exactly_the_written_pages(void **state)
{
	dirty_pages(true);
}

GUEST_CODE(crash, "ud2");

static void a_triple_fault_is_reported_once_and_parks_the_guest(void **state)
{
	struct guest *g = guest_new(2, crash);

	guest_start(g);
	guest_until(g, g->events >= 1 && g->vm->run_state == VM_PAUSED);
	assert_true(g->last == VM_EVENT_TRIPLE_FAULT || g->last == VM_EVENT_ACCEL_FAILED);
	guest_free(g);
}

static void timer_hit(void *arg)
{
	(*(unsigned *)arg)++;
}

static void timers_fire_and_stand_still_while_paused(void **state)
{
	struct guest *g = guest_new(1, spin);
	struct vm_timer t;
	unsigned hits = 0;

	guest_start(g);
	vm_timer_init(g->vm, &t, timer_hit, &hits);
	vm_lock(g->vm);
	vm_timer_set(&t, vm_now_ns(g->vm) + 2 * NS_PER_MS);
	vm_unlock(g->vm);
	guest_until(g, hits == 1);
	guest_pause(g);
	uint64_t now = vm_now_ns(g->vm);
	vm_lock(g->vm);
	vm_timer_set(&t, now + NS_PER_MS);
	vm_unlock(g->vm);
	uint64_t until = clock_mono_ns() + 20 * NS_PER_MS;
	guest_until(g, clock_mono_ns() > until);
	assert_int_equal(hits, 1);
	assert_int_equal(vm_now_ns(g->vm), now);
	guest_start(g);
	guest_until(g, hits == 2);
	guest_free(g);
}

static unsigned fds_open(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static long own_kib(const char *what)
{
	char line[128];
	long kib = -1;
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, what, strlen(what)) == 0)
			kib = atol(line + strlen(what) + 1);
	if (f)
		fclose(f);
	return kib;
}

static void two_hundred_guests_leak_nothing(void **state)
{
	unsigned fds = 0;
	long threads = 0, size = 0;

	for (unsigned i = 0; i < 200; i++) {
		struct guest *g = guest_new(1 + i % 2, smp);

		guest_start(g);
		guest_until(g, guest_peek64(g, GUEST_DATA) == 1 + i % 2);
		guest_free(g);
		if (i == 20) { /* allocator and thread caches are warm */
			fds = fds_open();
			threads = own_kib("Threads:");
			size = own_kib("VmSize:");
		}
	}
	assert_int_equal(fds_open(), fds);
	assert_int_equal(own_kib("Threads:"), threads);
	assert_true(own_kib("VmSize:") <= size + 512);
}

static void the_probe_tells_whether_guest_kernels_run_natively(void **state)
{
	int fd = guest_open_kvm();
	struct accel_probe p;
	uint64_t start = clock_mono_ns();

	assert_int_equal(accel_kvm.probe(fd, true, &p), 0);
	assert_true(clock_mono_ns() - start < 2 * NS_PER_S);
	assert_true(p.usable);
	assert_true(p.vcpus_max >= 1 && p.vcpus_max <= VM_VCPUS_MAX);
	if (p.ring0_ns > 0)
		assert_int_equal(p.ring0_native, p.ring0_ns < 50);
	else
		assert_false(p.ring0_native);
	printf("%s (%.1f ms)\n", p.reason, (double)(clock_mono_ns() - start) / 1e6);
	close(fd);
	fd = eventfd(0, 0);
	assert_true(accel_kvm.probe(fd, true, &p) < 0);
	assert_non_null(strstr(p.reason, "not /dev/kvm"));
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(port_io_of_every_size_and_rep_reaches_the_bus),
		cmocka_unit_test(mmio_of_every_size_reaches_the_bus_and_nothing_reads_ones),
		cmocka_unit_test(pause_and_start_many_times_while_all_vcpus_spin),
		cmocka_unit_test(a_guest_spinning_in_mmio_is_paused_with_no_access_half_done),
		cmocka_unit_test(freeing_a_spinning_guest_joins_its_threads),
		cmocka_unit_test(four_vcpus_run_at_once),
		cmocka_unit_test(doorbells_match_their_value_and_signal_an_eventfd),
		cmocka_unit_test(a_message_interrupts_the_guest),
		cmocka_unit_test(an_msix_vector_interrupts_by_irqfd_and_follows_its_route),
		cmocka_unit_test(saved_state_goes_on_in_another_vm),
		cmocka_unit_test(registers_survive_get_and_set),
		cmocka_unit_test(the_dirty_log_names_exactly_the_written_pages),
		cmocka_unit_test(the_dirty_ring_names_exactly_the_written_pages),
		cmocka_unit_test(a_triple_fault_is_reported_once_and_parks_the_guest),
		cmocka_unit_test(timers_fire_and_stand_still_while_paused),
		cmocka_unit_test(two_hundred_guests_leak_nothing),
		cmocka_unit_test(the_probe_tells_whether_guest_kernels_run_natively),
	};

	guest_skip_without_kvm();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
