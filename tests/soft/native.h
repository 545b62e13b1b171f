/* native.h - the same code on the real CPU: a traced child that has nothing mapped but the test's
 * pages. */
#ifndef TESTS_SOFT_NATIVE_H
#define TESTS_SOFT_NATIVE_H

#include <stdint.h>
#include <sys/user.h>

struct native {
	int pid;
	uint8_t *code, *data, *stack; /* shared with the child */
	struct user_regs_struct base;
};

/* native_start() - 0, or -errno where this machine allows no tracing. */
int native_start(struct native *n);
void native_stop(struct native *n);
/* native_run() - from @r and @f until a signal. Return: the signal; *addr and *code as siginfo has
 * them. */
int native_run(struct native *n, struct user_regs_struct *r, struct user_fpregs_struct *f,
	       uint64_t *addr, int *code);

#endif
