/* guest.h - a bare guest on the software CPU: ring 3 code and data at fixed addresses, an IDT whose
 * gates all halt. For tests only: it drives the interpreter directly, without vCPU threads. */
#ifndef TESTS_SOFT_GUEST_H
#define TESTS_SOFT_GUEST_H

#include "hypervisor-core/soft/run.h"

#define CODE_VA	   0x20000000ULL /* one page, writable */
#define DATA_VA	   0x10000000ULL /* two pages; the neighbours are not mapped */
#define STACK_VA   0x30000000ULL /* one page */
#define DATA_BYTES 0x2000u
#define USER_CS	   0x33
#define USER_SS	   0x2b

struct guest {
	struct vm *vm;
	struct vcpu *v;
	struct cpu *c;
	u8 *ram; /* host address of guest physical 0 */
	u8 *code, *data, *stack;
	struct x86_state base;
	u64 limit; /* instructions a run; 0 = 100,000 */
};

struct guest *guest_new(void);
void guest_free(struct guest *g);
/* guest_run() - ring 3 from @s until an exception; the vector, or -1 where @max instructions did
 * not reach one.
 * @rip, @rsp, @rflags: as the exception frame has them. */
int guest_run(struct guest *g, const struct x86_state *s, u64 *rip, u64 *rsp, u64 *rflags);

#endif
