/* sandbox.h - what a process gives up: system calls (seccomp-BPF), paths (Landlock), capabilities.
 *
 * A filter is a list of rules kept beside the code that needs them; sandbox_seccomp() compiles it
 * to BPF and installs it. No library: the jailed programs stay small. What no rule allows fails
 * with EPERM rather than killing: an unforeseen call of a library must not end somebody's guest,
 * and an attacker gains nothing from it. io_uring is in nobody's list (its operations are not seen
 * by the filter).
 * Spec: seccomp(2), landlock(7), capabilities(7).
 */
#ifndef COMMON_SANDBOX_H
#define COMMON_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

enum sandbox_rule_kind {
	SANDBOX_ALLOW, /* always */
	SANDBOX_ARG_IN, /* low 32 bits of args[arg] are one of vals[n], its high half 0 or all ones */
	SANDBOX_NO_BITS, /* args[arg] has none of the bits n */
	SANDBOX_ERRNO,	 /* fails with errno n (instead of EPERM) */
};

struct sandbox_rule {
	int nr; /* __NR_...; -1 ends the list */
	enum sandbox_rule_kind kind;
	unsigned arg;
	const uint32_t *vals;
	unsigned n;
};

#define SB_ALLOW(name) \
	{ \
		__NR_##name, SANDBOX_ALLOW, 0, 0, 0 \
	}
#define SB_ARG_IN(name, a, v, cnt) \
	{ \
		__NR_##name, SANDBOX_ARG_IN, a, v, cnt \
	}
#define SB_NO_BITS(name, a, bits) \
	{ \
		__NR_##name, SANDBOX_NO_BITS, a, 0, bits \
	}
#define SB_ERRNO(name, err) \
	{ \
		__NR_##name, SANDBOX_ERRNO, 0, 0, err \
	}
#define SB_END \
	{ \
		-1, SANDBOX_ALLOW, 0, 0, 0 \
	}

/* sandbox_seccomp() - install @lists (NULL-terminated, each ended by SB_END) as one filter;
 * no_new_privs is set.
 * @all_threads: every thread of the process, else the caller and what it starts. 0 or -errno. */
int sandbox_seccomp(const struct sandbox_rule *const *lists, bool all_threads);

/* sandbox_landlock() - no path may be opened any more, no TCP port bound or connected (as far as
 * the kernel's version goes).
 * Call before threads are made. Return: ABI version, or -errno (-EOPNOTSUPP: kernel without it). */
int sandbox_landlock(void);

/* sandbox_drop_caps() - bounding, ambient, permitted, effective, inheritable sets all emptied. */
int sandbox_drop_caps(void);

/* sandbox_drop_bounding() - while CAP_SETPCAP is there still, so before a change of uid. */
void sandbox_drop_bounding(void);

/* sandbox_keep_caps() - all of them emptied but for @caps, as far as they are there. 0 or -errno. */
int sandbox_keep_caps(const unsigned *caps, unsigned n);

#endif
