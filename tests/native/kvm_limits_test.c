/* kvm_limits_test.c - dirty pages exactly, from both of KVM's mechanisms; many vCPUs; what is said
 * where /dev/kvm is not what it should be. */
#include "pc_guest.h"

#include <sys/eventfd.h>

#include <linux/kvm.h>
#include <sys/ioctl.h>

/* ---- dirty pages ---- */

#define DIRTY_LIST  (PCG_BUFFERS - 0x10000)
#define DIRTY_FIRST (PCG_BUFFERS / MEM_PAGE)
#define DIRTY_PAGES 8000u /* the guest writes in these: more than a ring takes */

static unsigned dirty_random(unsigned *s)
{
	*s = *s * 1103515245 + 12345;
	return *s >> 16;
}

/* Rounds of random pages, some with more pages than a ring takes before a fetch (4,096). */
static void exactly_the_written_pages(bool ring)
{
	struct machine_config cfg = { 0 };
	struct guest *g = pcg_new_opts(pcg_dirty, 1, &cfg, ring);
	uint64_t *list = mem_ptr(g->vm->mem, DIRTY_LIST, 0x10000);
	const struct mem_region *r = mem_region_find(g->vm->mem, 0);
	uint8_t *bits = calloc(1, PCG_RAM / MEM_PAGE / 8), *want = calloc(1, DIRTY_PAGES);
	unsigned seed = 5;

	guest_start(g);
	assert_int_equal(accel_kvm.dirty_start(g->vm), 0);
	for (uint64_t round = 1; round <= 12; round++) {
		unsigned n = round % 3 ? 1 + dirty_random(&seed) % 20 : 8000;

		memset(want, 0, DIRTY_PAGES);
		memset(bits, 0, PCG_RAM / MEM_PAGE / 8);
		for (unsigned i = 0; i < n; i++) {
			unsigned page = dirty_random(&seed) % DIRTY_PAGES;

			list[2 + i] = DIRTY_FIRST + page;
			want[page] = 1;
		}
		list[1] = n;
		__atomic_store_n(&list[0], round, __ATOMIC_SEQ_CST);
		guest_until(g, pcg_report(g)->stage == round || g->events);
		pcg_check(g);
		if (round % 2) /* parked or running: the answer is the same */
			guest_pause(g);
		assert_int_equal(accel_kvm.dirty_fetch(g->vm, r, bits), 0);
		if (round % 2)
			guest_start(g);
		for (unsigned i = 0; i < DIRTY_PAGES; i++) {
			unsigned page = DIRTY_FIRST + i;

			if ((bits[page / 8] >> page % 8 & 1) != want[i])
				fail_msg("round %u: page 0x%x %s", (unsigned)round, page,
					 want[i] ? "was written and is not reported"
						 : "is reported and was not written");
		}
	}
	accel_kvm.dirty_stop(g->vm);
	assert_int_equal(accel_kvm.dirty_start(g->vm), 0); /* and once more */
	memset(bits, 0, PCG_RAM / MEM_PAGE / 8);
	list[1] = 1;
	list[2] = DIRTY_FIRST + 3;
	__atomic_store_n(&list[0], 99, __ATOMIC_SEQ_CST);
	guest_until(g, pcg_report(g)->stage == 99 || g->events);
	assert_int_equal(accel_kvm.dirty_fetch(g->vm, r, bits), 0);
	for (unsigned i = 0; i < DIRTY_PAGES; i++)
		assert_int_equal(bits[(DIRTY_FIRST + i) / 8] >> (DIRTY_FIRST + i) % 8 & 1, i == 3);
	accel_kvm.dirty_stop(g->vm);
	free(bits);
	free(want);
	guest_free(g);
}

static void the_dirty_log_is_exact_round_after_round(void **state)
{
	exactly_the_written_pages(false);
}

static void the_dirty_ring_is_exact_round_after_round(void **state)
{
	int fd = guest_open_kvm();
	bool has = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL) > 0;

	close(fd);
	if (!has) {
		printf("skipped: this host's KVM has no dirty ring\n");
		skip();
	}
	exactly_the_written_pages(true);
}

/* ---- many vCPUs ---- */

static void as_many_vcpus_as_the_host_allows_up_to_255(void **state)
{
	/* lock incw 0x40; cli; hlt; back to hlt */
	static const uint8_t code[] = { 0xf0, 0xff, 0x06, 0x40, 0x00, 0xfa, 0xf4, 0xeb, 0xfd };
	int fd = guest_open_kvm();
	struct accel_probe p;
	struct machine_config cfg = { 0 };

	assert_int_equal(accel_kvm.probe(fd, false, &p), 0);
	close(fd);
	printf("this host's KVM allows %u vCPUs\n", p.vcpus_max);
	assert_in_range(p.vcpus_max, 1, VM_VCPUS_MAX);
	/* each has its own APIC id; the first wakes the others by theirs; they count, and halt */
	struct guest *g = pcg_new(pcg_sipi, p.vcpus_max, &cfg);
	struct x86_state *s = malloc(sizeof(*s));
	uint16_t *count = mem_ptr(g->vm->mem, 0x40, 2);
	*count = 0;
	mem_store(g->vm->mem, 0x8000, code, sizeof(code));
	for (unsigned i = 0; i < p.vcpus_max; i++) {
		assert_int_equal(accel_kvm.vcpu_get_state(g->vm->vcpus[i], s, &g->e), 0);
		assert_int_equal(s->lapic[0x23], i);
		assert_int_equal(s->mp_state, i ? X86_MP_UNINIT : X86_MP_RUNNABLE);
	}
	guest_start(g);
	pcg_done(g);
	guest_until(g, __atomic_load_n(count, __ATOMIC_SEQ_CST) == p.vcpus_max - 1 || g->events);
	pcg_check(g);
	guest_pause(g);
	for (unsigned i = 1; i < p.vcpus_max; i++) {
		assert_int_equal(accel_kvm.vcpu_get_state(g->vm->vcpus[i], s, &g->e), 0);
		assert_true(s->mp_state == X86_MP_HALTED || s->mp_state == X86_MP_RUNNABLE);
	}
	free(s);
	guest_free(g);
}

static void more_vcpus_than_there_can_be_are_refused(void **state)
{
	int fd = guest_open_kvm();
	struct vm_config vc = { .name = "big",
				.accel = &accel_kvm,
				.accel_cfg = { .kvm_fd = fd, .vcpus = 256 },
				.cpu = { .model = "host", .vcpus = 256 } };
	struct loop *l = loop_new();
	struct err e = { 0 };

	assert_null(vm_new(l, &vc, &e));
	assert_string_equal(e.code, "kvm-too-many-vcpus");
	assert_non_null(strstr(e.detail, "256"));
	assert_true(e.hint[0]);
	close(fd);
	loop_free(l);
}

/* ---- /dev/kvm that is none ---- */

static void what_is_wrong_with_dev_kvm_is_said(void **state)
{
	struct loop *l = loop_new();
	struct vm_config vc = { .name = "none",
				.accel = &accel_kvm,
				.accel_cfg = { .kvm_fd = -1, .vcpus = 1 },
				.cpu = { .model = "host", .vcpus = 1 } };
	struct err e = { 0 };
	char reason[200];

	/* not there */
	assert_null(accel_choose("kvm", -1, reason, sizeof(reason), &e));
	assert_string_equal(e.code, "kvm-missing");
	assert_non_null(strstr(e.detail, "/dev/kvm"));
	assert_non_null(strstr(e.hint, "soft"));
	assert_ptr_equal(accel_choose("auto", -1, reason, sizeof(reason), &e), &accel_soft);
	assert_non_null(strstr(reason, "/dev/kvm"));
	assert_null(vm_new(l, &vc, &e));
	assert_string_equal(e.code, "kvm-missing");
	assert_non_null(strstr(e.detail, "guest none: /dev/kvm"));
	/* something else */
	int fd = eventfd(0, EFD_CLOEXEC);
	assert_null(accel_choose("kvm", fd, reason, sizeof(reason), &e));
	assert_string_equal(e.code, "kvm-unusable");
	assert_non_null(strstr(e.detail, "not /dev/kvm"));
	assert_ptr_equal(accel_choose("auto", fd, reason, sizeof(reason), &e), &accel_soft);
	vc.accel_cfg.kvm_fd = fd;
	assert_null(vm_new(l, &vc, &e));
	assert_string_equal(e.code, "kvm-missing");
	close(fd);
	loop_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_dirty_log_is_exact_round_after_round),
		cmocka_unit_test(the_dirty_ring_is_exact_round_after_round),
		cmocka_unit_test(as_many_vcpus_as_the_host_allows_up_to_255),
		cmocka_unit_test(more_vcpus_than_there_can_be_are_refused),
		cmocka_unit_test(what_is_wrong_with_dev_kvm_is_said),
	};

	guest_skip_without_kvm();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
