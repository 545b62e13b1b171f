/* x86_state_test.c - reset values that kernels rely on, and the section there and back. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "hypervisor-core/x86_state.h"

static uint64_t msr_of(const struct x86_state *s, uint32_t index)
{
	for (unsigned i = 0; i < s->nmsrs; i++)
		if (s->msr[i].index == index)
			return s->msr[i].value;
	fail_msg("MSR 0x%x is not reset", index);
	return 0;
}

static void reset_is_the_architectures_power_on_state(void **state)
{
	struct x86_state *s = malloc(sizeof(*s));

	x86_state_reset(s, 0);
	assert_int_equal(s->seg[X86_CS].base + s->rip, 0xfffffff0);
	assert_int_equal(s->cr0, 0x60000010);
	assert_int_equal(s->apic_base, 0xfee00900);
	assert_int_equal(s->mp_state, X86_MP_RUNNABLE);
	assert_int_equal(msr_of(s, 0x277), 0x0007040600070406);
	assert_int_equal(msr_of(s, 0x4b564d01),
			 0); /* kvmclock writes into nobody's memory any more */
	assert_int_equal(s->lapic[0x350 + 1], 7); /* LINT0 takes the 8259 pair */
	x86_state_reset(s, 3);
	assert_int_equal(s->apic_base, 0xfee00800);
	assert_int_equal(s->mp_state, X86_MP_UNINIT);
	assert_int_equal(s->lapic[0x23], 3);
	assert_int_equal(s->lapic[0x350 + 2], 1); /* masked */
	free(s);
}

static int there_and_back(const struct x86_state *a, struct x86_state *b)
{
	struct state_writer w;
	struct state_reader r;
	struct err e = { 0 };

	state_writer_init(&w);
	state_begin(&w, "vcpu", 0, 1);
	x86_state_save(a, &w);
	state_end(&w);
	state_reader_init(&r, w.data, w.len);
	assert_int_equal(state_next(&r, &e), 1);
	int ret = x86_state_load(b, &r, &e);
	state_writer_fini(&w);
	return ret;
}

static void every_field_survives_save_and_load(void **state)
{
	struct x86_state *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b));
	uint8_t *p = (uint8_t *)a;

	for (size_t i = 0; i < sizeof(*a); i++)
		p[i] = (uint8_t)(i * 37 + 11);
	a->xsave_len = X86_XSAVE_MAX;
	a->nmsrs = X86_MSRS_MAX;
	a->mp_state = X86_MP_HALTED;
	a->has_lapic = 1;
	a->exc_pending = 2;
	a->exc_has_payload = 1;
	assert_int_equal(there_and_back(a, b), 0);
	assert_memory_equal(a->gpr, b->gpr, sizeof(a->gpr));
	assert_int_equal(a->rip, b->rip);
	assert_int_equal(a->rflags, b->rflags);
	assert_memory_equal(a->seg, b->seg, sizeof(a->seg));
	assert_int_equal(a->gdt_base, b->gdt_base);
	assert_int_equal(a->idt_limit, b->idt_limit);
	assert_int_equal(a->cr8, b->cr8);
	assert_int_equal(a->xcr0, b->xcr0);
	assert_int_equal(a->apic_base, b->apic_base);
	assert_memory_equal(a->dr, b->dr, sizeof(a->dr));
	assert_int_equal(a->dr7, b->dr7);
	assert_memory_equal(a->xsave, b->xsave, sizeof(a->xsave));
	for (unsigned i = 0; i < X86_MSRS_MAX; i++) {
		assert_int_equal(a->msr[i].index, b->msr[i].index);
		assert_int_equal(a->msr[i].value, b->msr[i].value);
	}
	assert_int_equal(a->exc_error, b->exc_error);
	assert_int_equal(b->exc_pending, 2);
	assert_int_equal(b->exc_has_payload, 1);
	assert_int_equal(a->exc_payload, b->exc_payload);
	assert_int_equal(a->intr_shadow, b->intr_shadow);
	assert_int_equal(a->nmi_masked, b->nmi_masked);
	assert_int_equal(a->sipi_vector, b->sipi_vector);
	assert_memory_equal(a->lapic, b->lapic, sizeof(a->lapic));
	free(a);
	free(b);
}

static void missing_fields_and_wild_values_are_refused(void **state)
{
	struct x86_state *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b));
	struct state_writer w;
	struct state_reader r;
	struct err e = { 0 };

	x86_state_reset(a, 0);
	a->mp_state = (enum x86_mp_state)77;
	assert_int_equal(there_and_back(a, b), -EBADMSG);
	x86_state_reset(a, 0);
	a->exc_pending = 3;
	assert_int_equal(there_and_back(a, b), -EBADMSG);
	x86_state_reset(a, 0);
	a->xsave_len = 100;
	assert_int_equal(there_and_back(a, b), -EBADMSG);
	state_writer_init(&w);
	state_begin(&w, "vcpu", 5, 1);
	state_end(&w);
	state_reader_init(&r, w.data, w.len);
	assert_int_equal(state_next(&r, &e), 1);
	assert_int_equal(x86_state_load(b, &r, &e), -EBADMSG);
	assert_non_null(strstr(e.detail, "vCPU 5"));
	state_writer_fini(&w);
	free(a);
	free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reset_is_the_architectures_power_on_state),
		cmocka_unit_test(every_field_survives_save_and_load),
		cmocka_unit_test(missing_fields_and_wild_values_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
