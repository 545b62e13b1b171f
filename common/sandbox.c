/* sandbox.c - see sandbox.h. The filter is a straight run over the rules: since Linux 5.11 the
 * kernel caches the verdict of every call that is allowed whatever its arguments, so that the
 * length costs next to nothing.
 */
#include "common/sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SANDBOX_BPF_MAX 1024u
#define X32_BIT		0x40000000u

struct sandbox_prog {
	struct sock_filter f[SANDBOX_BPF_MAX];
	unsigned n;
	bool overflow;
};

static void sandbox_op(struct sandbox_prog *p, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf)
{
	if (p->n == SANDBOX_BPF_MAX) {
		p->overflow = true;
		return;
	}
	p->f[p->n++] = (struct sock_filter){ code, jt, jf, k };
}

static void sandbox_ret(struct sandbox_prog *p, uint32_t action)
{
	sandbox_op(p, BPF_RET | BPF_K, action, 0, 0);
}

static void sandbox_load_arg(struct sandbox_prog *p, unsigned arg, bool high)
{
	sandbox_op(p, BPF_LD | BPF_W | BPF_ABS,
		   (uint32_t)(offsetof(struct seccomp_data, args) + 8 * arg + (high ? 4 : 0)), 0,
		   0);
}

#define DENY (SECCOMP_RET_ERRNO | EPERM)

/* Each rule ends in a RET: what follows a match is that rule's verdict, so A need not be reloaded
 * between rules. */
static void sandbox_rule_emit(struct sandbox_prog *p, const struct sandbox_rule *r)
{
	unsigned at = p->n;

	sandbox_op(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)r->nr, 0, 0); /* jf patched below */
	switch (r->kind) {
	case SANDBOX_ALLOW:
		sandbox_ret(p, SECCOMP_RET_ALLOW);
		break;
	case SANDBOX_ERRNO:
		sandbox_ret(p, SECCOMP_RET_ERRNO | (r->n & SECCOMP_RET_DATA));
		break;
	case SANDBOX_ARG_IN:
		/* an int argument may come sign-extended; the kernel looks at its low half alone */
		sandbox_load_arg(p, r->arg, true);
		sandbox_op(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 2, 0);
		sandbox_op(p, BPF_JMP | BPF_JEQ | BPF_K, UINT32_MAX, 1, 0);
		sandbox_ret(p, DENY);
		sandbox_load_arg(p, r->arg, false);
		for (unsigned i = 0; i < r->n; i++) {
			sandbox_op(p, BPF_JMP | BPF_JEQ | BPF_K, r->vals[i], 0, 1);
			sandbox_ret(p, SECCOMP_RET_ALLOW);
		}
		sandbox_ret(p, DENY);
		break;
	case SANDBOX_NO_BITS:
		sandbox_load_arg(p, r->arg, false);
		sandbox_op(p, BPF_JMP | BPF_JSET | BPF_K, r->n, 1, 0);
		sandbox_ret(p, SECCOMP_RET_ALLOW);
		sandbox_ret(p, DENY);
		break;
	}
	unsigned skip = p->n - at - 1;

	if (skip > UINT8_MAX) {
		p->overflow = true;
		return;
	}
	p->f[at].jf = (uint8_t)skip;
}

int sandbox_seccomp(const struct sandbox_rule *const *lists, bool all_threads)
{
	struct sandbox_prog prog_buf;
	struct sandbox_prog *p = &prog_buf;

	p->n = 0;
	p->overflow = false;
	sandbox_op(p, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch), 0, 0);
	sandbox_op(p, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
	sandbox_ret(p, SECCOMP_RET_KILL_PROCESS);
	sandbox_op(p, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
	sandbox_op(p, BPF_JMP | BPF_JSET | BPF_K, X32_BIT, 0, 1);
	sandbox_ret(p, DENY);
	for (unsigned i = 0; lists[i]; i++)
		for (const struct sandbox_rule *r = lists[i]; r->nr >= 0; r++)
			sandbox_rule_emit(p, r);
	sandbox_ret(p, DENY);
	if (p->overflow)
		return -E2BIG;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	struct sock_fprog fprog = { .len = (unsigned short)p->n, .filter = p->f };
	long ret = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER,
			   all_threads ? SECCOMP_FILTER_FLAG_TSYNC : 0, &fprog);

	if (ret > 0)
		return -EBUSY; /* a thread with a filter of its own */
	return ret < 0 ? -errno : 0;
}

/* landlock(7), by number: the headers of Debian 12 know less than its newer kernels. */
#define LANDLOCK_CREATE	  444
#define LANDLOCK_RESTRICT 446

int sandbox_landlock(void)
{
	static const uint64_t fs_by_abi[] = { 0, 0x1fff, 0x3fff, 0x7fff, 0x7fff, 0xffff };
	struct {
		uint64_t fs, net, scoped;
	} attr = { 0 };
	long abi = syscall(LANDLOCK_CREATE, NULL, 0, 1u /* LANDLOCK_CREATE_RULESET_VERSION */);
	size_t len = 8;

	if (abi < 1)
		return abi < 0 && errno != ENOSYS ? -errno : -EOPNOTSUPP;
	attr.fs = fs_by_abi[abi > 5 ? 5 : abi];
	if (abi >= 4) {
		attr.net = 3; /* bind, connect TCP */
		len = 16;
	}
	if (abi >= 6) {
		attr.scoped = 3; /* abstract unix sockets, signals */
		len = 24;
	}
	int fd = (int)syscall(LANDLOCK_CREATE, &attr, len, 0u);

	if (fd < 0)
		return -errno;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(LANDLOCK_RESTRICT, fd, 0u) < 0) {
		int ret = -errno;

		close(fd);
		return ret;
	}
	close(fd);
	return (int)abi;
}

void sandbox_drop_bounding(void)
{
	for (int cap = 0; cap <= 63; cap++)
		if (prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1)
			prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
}

int sandbox_drop_caps(void)
{
	struct __user_cap_header_struct hdr = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0 } };

	sandbox_drop_bounding(); /* as far as it can still be; capset decides */
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return syscall(__NR_capset, &hdr, none) < 0 ? -errno : 0;
}

int sandbox_keep_caps(const unsigned *caps, unsigned n)
{
	struct __user_cap_header_struct hdr = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct has[2] = { { 0 } };
	uint64_t keep = 0;

	for (unsigned i = 0; i < n; i++)
		keep |= 1ull << caps[i];
	for (unsigned cap = 0; cap <= 63; cap++)
		if (!(keep >> cap & 1) && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1 &&
		    prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			return -errno;
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(__NR_capget, &hdr, has) < 0)
		return -errno;
	for (int i = 0; i < 2; i++) {
		has[i].permitted &= (uint32_t)(keep >> (32 * i));
		has[i].effective &= (uint32_t)(keep >> (32 * i));
		has[i].inheritable = 0;
	}
	return syscall(__NR_capset, &hdr, has) < 0 ? -errno : 0;
}
