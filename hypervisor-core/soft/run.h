/* run.h - the run loop as soft.c sees it. */
#ifndef SOFT_RUN_H
#define SOFT_RUN_H

#include "soft.h"

bool soft_run_some(struct cpu *c, bool may_sleep);
void soft_wake(struct cpu *c, u32 bits);

#endif
