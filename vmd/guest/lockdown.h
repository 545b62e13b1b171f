/* lockdown.h - the guest's own half of its jail, apart from struct guest so that the tests can wear
 * it too. */
#ifndef VMD_GUEST_LOCKDOWN_H
#define VMD_GUEST_LOCKDOWN_H

#include <stddef.h>
#include <stdint.h>

enum lockdown_layer { LOCKDOWN_LANDLOCK = 1, LOCKDOWN_SECCOMP = 2, LOCKDOWN_ALL = 3 };

/* lockdown_paths() - Landlock; first thing in the process, before any thread. ABI version or
 * -errno. */
int lockdown_paths(void);
/* lockdown_calls() - the process's system calls, all threads, now that it holds all it needs. 0 or
 * -errno. */
int lockdown_calls(void);
/* lockdown_vcpu() - in a new vCPU thread: what only the main thread needs goes too. 0 or -errno. */
int lockdown_vcpu(void);
/* lockdown_io() - in the I/O thread, likewise; threads that it starts inherit it. 0 or -errno. */
int lockdown_io(void);

#endif
