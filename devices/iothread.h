/* iothread.h - an I/O thread: an event loop of its own, shared by a VM's disks and network ports.
 *
 * Made on first use, ended with its last user. It never takes the machine lock, so a caller that
 * holds it may wait for the thread (iothread_call). Stack 64 KiB, no arena of its own (mallopt in
 * vmd-guest).
 */
#ifndef DEVICES_IOTHREAD_H
#define DEVICES_IOTHREAD_H

#include "common/err.h"
#include "common/loop.h"

struct vm;
struct iothread;

/* iothread_get() - the VM's I/O thread, one more user. NULL with @e. iothread_put(): one less. */
struct iothread *iothread_get(struct vm *vm, struct err *e);
void iothread_put(struct iothread *t);
struct loop *iothread_loop(struct iothread *t);
/* iothread_call() - run @fn(@arg) on the thread and wait until it returned. Not from the thread
 * itself. */
void iothread_call(struct iothread *t, loop_fn *fn, void *arg);

#endif
