/* accel.c - the rows, and which one a guest gets.
 *
 * auto measures rather than believes: a /dev/kvm that runs guest ring 0 by emulation (hundreds of
 * times slower, with instructions missing) is usable for little guests of our own and useless for a
 * stock kernel, and nothing in KVM's ABI says so. The measurement takes a few ms at most.
 */
#include "hypervisor-core/accel.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/text.h"

const struct accel_ops *const accel_rows[] = { &accel_kvm, &accel_soft, NULL };

static const struct accel_ops *accel_choose_auto(int kvm_fd, char *reason, unsigned reason_len)
{
	struct accel_probe p = { 0 };

	if (kvm_fd < 0) {
		snprintf(reason, reason_len,
			 "soft: there is no /dev/kvm here, or it may not be opened");
		return &accel_soft;
	}
	int ret = accel_kvm.probe(kvm_fd, true, &p);
	const struct accel_ops *a =
	    ret == 0 && p.usable && p.ring0_native ? &accel_kvm : &accel_soft;
	snprintf(reason, reason_len, "%s: %s", a->name, p.reason[0] ? p.reason : strerror(-ret));
	return a;
}

static const struct accel_ops *accel_choose_kvm(int kvm_fd, char *reason, unsigned reason_len,
						struct err *e)
{
	struct accel_probe p = { 0 };

	if (kvm_fd < 0) {
		err_set(e, ENODEV, "kvm-missing",
			"accelerator kvm was asked for, but /dev/kvm is not there");
		err_hint(e, "load kvm_intel or kvm_amd, or use --accel soft");
		return NULL;
	}
	int ret = accel_kvm.probe(kvm_fd, false, &p);
	if (ret < 0 || !p.usable) {
		err_set(e, ret < 0 ? -ret : ENODEV, "kvm-unusable", "accelerator kvm: %s",
			p.reason);
		err_hint(e, "use --accel soft");
		return NULL;
	}
	snprintf(reason, reason_len, "kvm: asked for; %s", p.reason);
	return &accel_kvm;
}

const struct accel_ops *accel_choose(const char *want, int kvm_fd, char *reason,
				     unsigned reason_len, struct err *e)
{
	static const char *const names[] = { "auto", "kvm", "soft", NULL };

	reason[0] = '\0';
	if (!want || !*want || strcmp(want, "auto") == 0)
		return accel_choose_auto(kvm_fd, reason, reason_len);
	if (strcmp(want, "kvm") == 0)
		return accel_choose_kvm(kvm_fd, reason, reason_len, e);
	if (strcmp(want, "soft") == 0) {
		snprintf(reason, reason_len, "soft: asked for");
		return &accel_soft;
	}
	err_set(e, EINVAL, "accel-unknown", "accelerator \"%.32s\" is not known", want);
	const char *near = suggest(want, names);
	err_hint(e, near ? "did you mean %s?" : "known: %s, kvm, soft", near ? near : "auto");
	return NULL;
}
