/* cgroup.c - one control group a guest: v2 where the controllers are there, v1 next, none last.
 *
 * The group is <root>/INSTANCE/NAME. Under v2 the root is where the daemon itself was put (a
 * delegated service), with the daemon moved into a leaf of its own first: a group with controllers
 * below it holds no processes. A limit that this kernel cannot keep is logged once, never an error:
 * the guest runs without it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "vmd/priv/priv.h"

enum cgroup_mode { CGROUP_UNKNOWN, CGROUP_V2, CGROUP_V1, CGROUP_NONE };

static const char *const cgroup_v1_controllers[] = { "cpu", "memory", "blkio", "pids" };

static struct {
	enum cgroup_mode mode;
	const char *mount, *self; /* where control groups are; which is ours */
	char root[400];		  /* v2: directory that holds the guests' groups */
} cg = { .mount = "/sys/fs/cgroup", .self = "/proc/self/cgroup" };

void cgroup_tree(const char *mount, const char *self)
{
	cg.mount = mount;
	cg.self = self;
	cg.mode = CGROUP_UNKNOWN;
}

static int cgroup_write(const char *dir, const char *file, const char *text)
{
	char path[700];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		return -errno;
	return 0;
}

/* cgroup_own_v2() - the "0::/path" line of /proc/self/cgroup. */
static int cgroup_own_v2(char *out, size_t len)
{
	FILE *f = fopen(cg.self, "re");
	char line[512];
	int ret = -ENOENT;

	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "0::/", 4))
			continue;
		line[strcspn(line, "\n")] = '\0';
		snprintf(out, len, "%.255s", line + 3);
		ret = 0;
	}
	if (f)
		fclose(f);
	return ret;
}

static bool cgroup_try_v2(struct priv *p)
{
	char own[256], base[380], ctl[400], text[256] = "";

	snprintf(ctl, sizeof(ctl), "%.100s/cgroup.controllers", cg.mount);
	if (access(ctl, R_OK) < 0 || cgroup_own_v2(own, sizeof(own)) < 0)
		return false;
	/* a daemon that was started by one that died lies in its leaf already */
	char *leaf = strstr(own, "/vmd-daemon");

	if (leaf)
		*leaf = '\0';
	snprintf(base, sizeof(base), "%.100s%s", cg.mount, strcmp(own, "/") ? own : "");
	snprintf(ctl, sizeof(ctl), "%.370s/cgroup.controllers", base);
	_cleanup_close_ int fd = open(ctl, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0 || !strstr(text, "cpu") ||
	    !strstr(text, "memory"))
		return false;
	if (strcmp(own, "/")) {
		snprintf(ctl, sizeof(ctl), "%.370s/vmd-daemon", base);
		if ((mkdir(ctl, 0755) < 0 && errno != EEXIST) ||
		    cgroup_write(ctl, "cgroup.procs", "0") < 0)
			return false;
	}
	if (cgroup_write(base, "cgroup.subtree_control", "+cpu +memory") < 0)
		return false;
	cgroup_write(base, "cgroup.subtree_control", "+io");
	cgroup_write(base, "cgroup.subtree_control", "+pids");
	snprintf(cg.root, sizeof(cg.root), "%s/%s", base, p->instance);
	if (mkdir(cg.root, 0755) < 0 && errno != EEXIST)
		return false;
	if (cgroup_write(cg.root, "cgroup.subtree_control", "+cpu +memory") < 0)
		return false;
	cgroup_write(cg.root, "cgroup.subtree_control", "+io");
	cgroup_write(cg.root, "cgroup.subtree_control", "+pids");
	return true;
}

static bool cgroup_try_v1(struct priv *p)
{
	bool any = false;

	for (size_t i = 0; i < ARRAY_SIZE(cgroup_v1_controllers); i++) {
		char dir[300];

		snprintf(dir, sizeof(dir), "%.100s/%s/cgroup.procs", cg.mount,
			 cgroup_v1_controllers[i]);
		if (access(dir, W_OK) < 0)
			continue;
		snprintf(dir, sizeof(dir), "%.100s/%s/%s", cg.mount, cgroup_v1_controllers[i],
			 p->instance);
		any |= mkdir(dir, 0755) == 0 || errno == EEXIST;
	}
	return any;
}

static enum cgroup_mode cgroup_mode(struct priv *p)
{
	const char *want = p->cfg->cgroup;

	if (cg.mode != CGROUP_UNKNOWN)
		return cg.mode;
	cg.mode = CGROUP_NONE;
	if ((!strcmp(want, "auto") || !strcmp(want, "v2")) && cgroup_try_v2(p))
		cg.mode = CGROUP_V2;
	else if ((!strcmp(want, "auto") || !strcmp(want, "v1")) && cgroup_try_v1(p))
		cg.mode = CGROUP_V1;
	else if (strcmp(want, "none"))
		log_warn("no control groups to be had (cgroup = %s): guests run without CPU and "
			 "memory limits",
			 want);
	return cg.mode;
}

const char *cgroup_mode_text(struct priv *p)
{
	static const char *const text[] = { "?", "v2", "v1", "none" };

	return text[cgroup_mode(p)];
}

static void cgroup_dir(struct priv *p, unsigned i, const char *name, char *out, size_t len)
{
	if (cg.mode == CGROUP_V2)
		snprintf(out, len, "%s/%s", cg.root, name);
	else
		snprintf(out, len, "%.100s/%s/%s/%s", cg.mount, cgroup_v1_controllers[i],
			 p->instance, name);
}

static unsigned cgroup_dirs(void)
{
	return cg.mode == CGROUP_V2 ? 1 : ARRAY_SIZE(cgroup_v1_controllers);
}

static int cgroup_put(const char *dir, const char *file, const char *text, const char *name,
		      struct err *e)
{
	int ret = cgroup_write(dir, file, text);

	if (ret == -ENOENT) { /* a kernel without that knob */
		log_debug("cgroup %s: no %s here", name, file);
		return 0;
	}
	return ret < 0 ? err_set(e, -ret, "cgroup-failed", "guest %s: cannot set %s to %s: %s",
				 name, file, text, strerror(-ret))
		       : 0;
}

int cgroup_limit(struct priv *p, const char *name, const struct cgroup_limits *l, struct err *e)
{
	enum cgroup_mode mode = cgroup_mode(p);
	uint64_t shares = l->cpu_shares ? MIN(MAX(l->cpu_shares, 2u), 262144u) : 1024;
	char dir[600], v[64];
	int ret = 0;

	if (mode == CGROUP_V2) {
		cgroup_dir(p, 0, name, dir, sizeof(dir));
		/* 1,024 shares are weight 100 */
		snprintf(v, sizeof(v), "%llu",
			 (unsigned long long)MIN(MAX(shares * 100 / 1024, 1u), 10000u));
		ret = cgroup_put(dir, "cpu.weight", v, name, e);
		snprintf(v, sizeof(v), l->cpu_limit_pct ? "%llu 100000" : "max 100000",
			 (unsigned long long)l->cpu_limit_pct * 1000);
		ret = ret ? ret : cgroup_put(dir, "cpu.max", v, name, e);
		snprintf(v, sizeof(v), l->memory_max_bytes ? "%llu" : "max",
			 (unsigned long long)l->memory_max_bytes);
		return ret ? ret : cgroup_put(dir, "memory.max", v, name, e);
	}
	if (mode == CGROUP_V1) {
		cgroup_dir(p, 0, name, dir, sizeof(dir));
		snprintf(v, sizeof(v), "%llu", (unsigned long long)shares);
		ret = cgroup_put(dir, "cpu.shares", v, name, e);
		snprintf(v, sizeof(v), "%lld",
			 l->cpu_limit_pct ? (long long)l->cpu_limit_pct * 1000 : -1LL);
		ret = ret ? ret : cgroup_put(dir, "cpu.cfs_quota_us", v, name, e);
		cgroup_dir(p, 1, name, dir, sizeof(dir));
		snprintf(v, sizeof(v), "%lld",
			 l->memory_max_bytes ? (long long)l->memory_max_bytes : -1LL);
		return ret ? ret : cgroup_put(dir, "memory.limit_in_bytes", v, name, e);
	}
	return 0;
}

int cgroup_make(struct priv *p, const char *name, const struct cgroup_limits *l,
		int fds[JAIL_CGROUPS_MAX], struct err *e)
{
	int n = 0;

	if (cgroup_mode(p) == CGROUP_NONE)
		return 0;
	for (unsigned i = 0; i < cgroup_dirs(); i++) {
		char dir[600];

		cgroup_dir(p, i, name, dir, sizeof(dir) - 16);
		if (mkdir(dir, 0755) < 0 && errno != EEXIST)
			continue;
		size_t len = strlen(dir);

		snprintf(dir + len, sizeof(dir) - len, "/cgroup.procs");
		int fd = open(dir, O_WRONLY | O_CLOEXEC);

		if (fd >= 0)
			fds[n++] = fd;
	}
	int ret = cgroup_limit(p, name, l, e);

	if (ret < 0) {
		while (n)
			close(fds[--n]);
		cgroup_remove(p, name);
		return ret;
	}
	return n;
}

bool cgroup_remove(struct priv *p, const char *name)
{
	char dir[600];
	bool busy = false;

	if (cgroup_mode(p) == CGROUP_NONE)
		return true;
	for (unsigned i = 0; i < cgroup_dirs(); i++) {
		cgroup_dir(p, i, name, dir, sizeof(dir));
		if (rmdir(dir) < 0 && errno != ENOENT) {
			log_debug("cgroup %s: %s", dir, strerror(errno));
			busy |= errno == EBUSY;
		}
	}
	return !busy;
}

bool cgroup_sweep(struct priv *p, bool (*lives)(struct priv *p, const char *name))
{
	char dir[600];
	bool all = true;

	if (cgroup_mode(p) == CGROUP_NONE)
		return true;
	for (unsigned i = 0; i < cgroup_dirs(); i++) {
		cgroup_dir(p, i, "", dir, sizeof(dir));
		DIR *d = opendir(dir);

		for (struct dirent *de; d && (de = readdir(d));)
			if (uuid_valid(de->d_name) && !lives(p, de->d_name))
				all &= cgroup_remove(p, de->d_name);
		if (d)
			closedir(d);
	}
	return all;
}

void cgroup_fini(struct priv *p)
{
	char dir[600];

	if (cg.mode == CGROUP_UNKNOWN || cg.mode == CGROUP_NONE)
		return;
	/* refused by the kernel while a guest lives in it, which is right */
	for (unsigned i = 0; i < cgroup_dirs(); i++) {
		cgroup_dir(p, i, "", dir, sizeof(dir));
		rmdir(dir);
	}
	cg.mode = CGROUP_UNKNOWN;
}
