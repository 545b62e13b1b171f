/* probe.c - what this host has, for doctor: one p_fact each, with the way out where something is
 * missing. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "vmd/priv/priv.h"

static void probe_fact(struct priv *p, uint32_t id, const char *name, bool ok, const char *text,
		       const char *hint)
{
	struct msg_p_fact m = { .ok = ok };

	snprintf(m.name, sizeof(m.name), "%s", name);
	snprintf(m.text, sizeof(m.text), "%.399s", text);
	snprintf(m.hint, sizeof(m.hint), "%s", ok ? "" : hint);
	msg_p_fact_send(p->core.conn, &m, id);
}

static void probe_device(struct priv *p, uint32_t id, const char *name, const char *path,
			 const char *hint)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
	char text[128];

	snprintf(text, sizeof(text), "%s: %s", path, fd >= 0 ? "there" : strerror(errno));
	probe_fact(p, id, name, fd >= 0, text, hint);
}

int probe_host(struct priv *p, const struct msg_p_host_probe *m, struct err *e)
{
	uint32_t id = m->msg_id;
	struct utsname un;
	struct rlimit nofile;
	struct statvfs v;
	char text[400], size[24];

	uname(&un);
	snprintf(text, sizeof(text), "Linux %.64s on %.64s", un.release, un.machine);
	probe_fact(p, id, "kernel", true, text, "");
	probe_device(p, id, "kvm", "/dev/kvm",
		     "load kvm_intel or kvm_amd; without it guests run on the software CPU");
	probe_device(p, id, "tun", "/dev/net/tun",
		     "modprobe tun; without it guests have no network");
	probe_device(p, id, "vhost-net", "/dev/vhost-net",
		     "modprobe vhost_net; without it the guest process moves packets itself");
	snprintf(text, sizeof(text), "control groups: %s", cgroup_mode_text(p));
	probe_fact(p, id, "cgroup", strcmp(cgroup_mode_text(p), "none") != 0, text,
		   "mount cgroup2, or guests run without limits");
	long abi = syscall(444, NULL, 0, 1u);
	snprintf(text, sizeof(text), abi > 0 ? "Landlock version %ld" : "no Landlock (%ld)", abi);
	probe_fact(p, id, "landlock", abi > 0, text,
		   "boot with lsm=landlock,...; the jail has its other layers");
	getrlimit(RLIMIT_NOFILE, &nofile);
	snprintf(text, sizeof(text), "%llu open files", (unsigned long long)nofile.rlim_max);
	probe_fact(p, id, "nofile", nofile.rlim_max >= 16384, text,
		   "LimitNOFILE=infinity in vmd.service: thousands of guests need it");
	probe_fact(p, id, "guest-binary", access(p->cfg->guest_binary, X_OK) == 0,
		   p->cfg->guest_binary, "set guest_binary in vmd.conf");
	probe_fact(p, id, "image-binary", access(p->cfg->image_binary, X_OK) == 0,
		   p->cfg->image_binary, "set image_binary in vmd.conf");
	probe_fact(p, id, "dnsmasq", access(p->cfg->dnsmasq, X_OK) == 0, p->cfg->dnsmasq,
		   "apt install dnsmasq-base; without it there is no DHCP");
	if (fstatvfs(p->state_fd, &v) == 0) {
		uint64_t room = (uint64_t)v.f_bavail * v.f_frsize;

		snprintf(text, sizeof(text), "%s free in %.300s",
			 units_format_size(room, size, sizeof(size)), p->cfg->state_dir);
		probe_fact(p, id, "space", room > GIB, text, "free some space, or move state_dir");
	}
	snprintf(text, sizeof(text),
		 p->root ? "root: each role and guest has a uid of its own"
			 : "rootless: roles and guests share your uid");
	probe_fact(p, id, "mode", true, text, "");
	priv_ok(p, id);
	return 0;
}
