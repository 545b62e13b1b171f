/* priv_cgroup_test.c - control groups on trees of plain files: which version is taken, where a
 * guest's group lies, what is written into it, and what goes away again. The kernel's own part (files that
 * appear with a directory) is made here beforehand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmd/priv/priv.h"

#define GUEST "11111111-2222-4333-8444-555555555555"

static char top[64], self[96];
static struct vmd_config cfg;
static struct priv priv = { .cfg = &cfg };

static void put(const char *name, const char *text)
{
	char path[400];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", top, name);
	f = fopen(path, "we");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	fclose(f);
}

static const char *got(const char *name)
{
	static char text[200];
	char path[400];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", top, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return "(missing)";
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	return text;
}

static void dir(const char *name)
{
	char path[400];

	snprintf(path, sizeof(path), "%s/%s", top, name);
	assert_int_equal(mkdir(path, 0755), 0);
}

static bool there(const char *name)
{
	char path[400];

	snprintf(path, sizeof(path), "%s/%s", top, name);
	return access(path, F_OK) == 0;
}

static int setup(void **state)
{
	snprintf(top, sizeof(top), "/tmp/vmd-cgroup-XXXXXX");
	if (!mkdtemp(top))
		return -1;
	snprintf(self, sizeof(self), "%s/self", top);
	snprintf(priv.instance, sizeof(priv.instance), "vmd");
	snprintf(cfg.cgroup, sizeof(cfg.cgroup), "auto");
	cgroup_tree(top, self);
	return 0;
}

static int teardown(void **state)
{
	char cmd[96];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", top);
	cgroup_tree("/sys/fs/cgroup", "/proc/self/cgroup");
	return system(cmd);
}

/* a delegated service: /svc with controllers, the guests' root below it */
static void make_v2(void)
{
	put("self", "1:name=systemd:/x\n0::/svc\n");
	put("cgroup.controllers", "cpu memory io pids\n");
	dir("svc");
	put("svc/cgroup.controllers", "cpu memory io pids\n");
	put("svc/cgroup.subtree_control", "");
	dir("svc/vmd-daemon");
	put("svc/vmd-daemon/cgroup.procs", "");
	dir("svc/vmd");
	put("svc/vmd/cgroup.subtree_control", "");
}

static void make_v2_guest(void)
{
	dir("svc/vmd/" GUEST);
	put("svc/vmd/" GUEST "/cgroup.procs", "");
	put("svc/vmd/" GUEST "/cpu.weight", "");
	put("svc/vmd/" GUEST "/cpu.max", "");
	put("svc/vmd/" GUEST "/memory.max", "");
}

static void v2_puts_daemon_and_guests_apart_and_writes_limits(void **state)
{
	const struct cgroup_limits lim = { .cpu_shares = 2048,
					   .cpu_limit_pct = 150,
					   .memory_max_bytes = 1 << 30 };
	int fds[JAIL_CGROUPS_MAX];
	struct err e = { 0 };

	make_v2();
	make_v2_guest();
	assert_string_equal(cgroup_mode_text(&priv), "v2");
	assert_string_equal(got("svc/vmd-daemon/cgroup.procs"), "0");
	assert_int_equal(cgroup_make(&priv, GUEST, &lim, fds, &e), 1);
	close(fds[0]);
	assert_string_equal(got("svc/vmd/" GUEST "/cpu.weight"), "200");
	assert_string_equal(got("svc/vmd/" GUEST "/cpu.max"), "150000 100000");
	assert_string_equal(got("svc/vmd/" GUEST "/memory.max"), "1073741824");
	/* lifted again */
	put("svc/vmd/" GUEST "/cpu.max", "");
	put("svc/vmd/" GUEST "/memory.max", "");
	assert_int_equal(cgroup_limit(&priv, GUEST, &(struct cgroup_limits){ 0 }, &e), 0);
	assert_string_equal(got("svc/vmd/" GUEST "/cpu.max"), "max 100000");
	assert_string_equal(got("svc/vmd/" GUEST "/memory.max"), "max");
}

static void v2_is_not_taken_without_its_controllers(void **state)
{
	make_v2();
	put("svc/cgroup.controllers", "pids\n");
	assert_string_equal(cgroup_mode_text(&priv), "none");
}

static void v2_daemon_of_a_dead_one_finds_the_same_root(void **state)
{
	make_v2();
	put("self", "0::/svc/vmd-daemon\n");
	assert_string_equal(cgroup_mode_text(&priv), "v2");
	assert_string_equal(got("svc/vmd-daemon/cgroup.procs"), "0");
	assert_false(there("svc/vmd-daemon/vmd"));
}

static bool lives(struct priv *p, const char *name)
{
	return !strcmp(name, GUEST);
}

static void sweep_takes_groups_of_nobody_and_no_others(void **state)
{
	make_v2();
	assert_string_equal(cgroup_mode_text(&priv), "v2");
	dir("svc/vmd/" GUEST);
	dir("svc/vmd/99999999-2222-4333-8444-555555555555");
	dir("svc/vmd/somebody-elses");
	assert_true(cgroup_sweep(&priv, lives));
	assert_true(there("svc/vmd/" GUEST));
	assert_true(there("svc/vmd/somebody-elses"));
	assert_false(there("svc/vmd/99999999-2222-4333-8444-555555555555"));
	assert_true(cgroup_remove(&priv, GUEST));
	assert_false(there("svc/vmd/" GUEST));
	assert_true(cgroup_remove(&priv, GUEST)); /* once more does no harm */
}

static void v1_writes_each_controllers_own_files(void **state)
{
	const struct cgroup_limits lim = { .cpu_shares = 512,
					   .cpu_limit_pct = 50,
					   .memory_max_bytes = 1 << 20 };
	int fds[JAIL_CGROUPS_MAX], n;
	struct err e = { 0 };

	dir("cpu");
	put("cpu/cgroup.procs", "");
	dir("memory");
	put("memory/cgroup.procs", "");
	dir("cpu/vmd");
	dir("memory/vmd");
	dir("cpu/vmd/" GUEST);
	dir("memory/vmd/" GUEST);
	put("cpu/vmd/" GUEST "/cgroup.procs", "");
	put("cpu/vmd/" GUEST "/cpu.shares", "");
	put("cpu/vmd/" GUEST "/cpu.cfs_quota_us", "");
	put("memory/vmd/" GUEST "/cgroup.procs", "");
	put("memory/vmd/" GUEST "/memory.limit_in_bytes", "");
	assert_string_equal(cgroup_mode_text(&priv), "v1");
	n = cgroup_make(&priv, GUEST, &lim, fds, &e);
	assert_int_equal(n, 2);
	while (n)
		close(fds[--n]);
	assert_string_equal(got("cpu/vmd/" GUEST "/cpu.shares"), "512");
	assert_string_equal(got("cpu/vmd/" GUEST "/cpu.cfs_quota_us"), "50000");
	assert_string_equal(got("memory/vmd/" GUEST "/memory.limit_in_bytes"), "1048576");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(v2_puts_daemon_and_guests_apart_and_writes_limits,
						setup, teardown),
		cmocka_unit_test_setup_teardown(v2_is_not_taken_without_its_controllers, setup,
						teardown),
		cmocka_unit_test_setup_teardown(v2_daemon_of_a_dead_one_finds_the_same_root, setup,
						teardown),
		cmocka_unit_test_setup_teardown(sweep_takes_groups_of_nobody_and_no_others, setup,
						teardown),
		cmocka_unit_test_setup_teardown(v1_writes_each_controllers_own_files, setup,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
