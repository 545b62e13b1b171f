/* disk_test.h - what the storage tests share: temporary files, specs, a seeded generator, running
 * qemu-img. Header only: each test is one program. */
#ifndef TESTS_STORAGE_DISK_TEST_H
#define TESTS_STORAGE_DISK_TEST_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/overflow.h"
#include "common/units.h"
#include "storage/blockdev.h"

static char disk_dir[128];

__attribute__((unused)) static int disk_setup(void **state)
{
	const char *base = getenv("TMPDIR");

	(void)state;
	snprintf(disk_dir, sizeof(disk_dir), "%.90s/vmd-disk-XXXXXX", base ? base : "/tmp");
	return mkdtemp(disk_dir) ? 0 : -1;
}

__attribute__((unused)) static int disk_teardown(void **state)
{
	char cmd[200];

	(void)state;
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", disk_dir);
	return system(cmd);
}

/* disk_path() - @name in the test's directory; four may be alive at a time. */
__attribute__((unused)) static const char *disk_path(const char *name)
{
	static char ring[4][256];
	static unsigned next;
	char *p = ring[next++ % 4];

	snprintf(p, 256, "%s/%s", disk_dir, name);
	return p;
}

__attribute__((unused)) static int disk_fd(const char *name, int flags)
{
	int fd = open(disk_path(name), flags | O_CLOEXEC, 0600);

	if (fd < 0)
		fail_msg("open %s: %s", disk_path(name), strerror(errno));
	return fd;
}

/* run() - a shell command; its exit status. %D expands nothing: pass paths. */
__attribute__((unused, format(printf, 1, 2))) static int run(const char *fmt, ...)
{
	char cmd[2048];
	va_list ap;
	int n, st;

	va_start(ap, fmt);
	n = vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	assert_true(n > 0 && (size_t)n < sizeof(cmd));
	st = system(cmd);
	return WIFEXITED(st) ? WEXITSTATUS(st) : 128;
}

__attribute__((unused)) static bool have_qemu(void)
{
	return run("command -v qemu-img qemu-io >/dev/null 2>&1") == 0;
}

static uint64_t rng_state = 88172645463325252ULL;
__attribute__((unused)) static void rng_seed(uint64_t s)
{
	rng_state = s * 0x9e3779b97f4a7c15ULL + 88172645463325252ULL;
	if (!rng_state)
		rng_state = 1;
}
__attribute__((unused)) static uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state * 0x2545f4914f6cdd1dULL;
}
__attribute__((unused)) static uint64_t rng_below(uint64_t n)
{
	return (rng() >> 11) % n;
}
__attribute__((unused)) static void rng_fill(void *p, size_t n)
{
	uint8_t *c = p;

	for (; n >= 8; n -= 8, c += 8) {
		uint64_t v = rng() | 1;

		memcpy(c, &v, 8);
	}
	while (n--)
		*c++ = (uint8_t)rng() | 1;
}

__attribute__((unused)) static bool test_long(void)
{
	const char *v = getenv("VMD_TEST_LONG");

	return v && *v == '1';
}

__attribute__((unused)) static void disk_create(const char *name, const struct qcow2_create *c)
{
	struct err e = { 0 };
	int fd = disk_fd(name, O_RDWR | O_CREAT | O_TRUNC);

	if (qcow2_create(fd, c, &e) < 0)
		fail_msg("create %s: %s", name, e.detail);
	close(fd);
}

/* disk_open() - qcow2 @name over an open parent spec (or NULL); fails the test on error. */
__attribute__((unused)) static struct blockdev *disk_open(const char *name, const char *driver,
							  const struct blk_spec *backing, bool ro,
							  enum blk_cache cache)
{
	static const char *const ignore[] = { "backing=ignore", NULL };
	struct err e = { 0 };
	struct blk_spec s = { .driver = driver,
			      .label = name,
			      .fd = disk_fd(name, ro ? O_RDONLY : O_RDWR),
			      .read_only = ro,
			      .discard = true,
			      .cache = cache,
			      .backing = backing,
			      .opts = backing ? NULL : ignore };
	struct blockdev *bd = blk_open(&s, &e);

	if (!bd)
		fail_msg("open %s: %s", name, e.detail);
	return bd;
}

__attribute__((unused)) static int qemu_check(const char *name)
{
	return run("qemu-img check -q -f qcow2 '%s' >'%s/check.out' 2>&1 || { r=$?; cat "
		   "'%s/check.out' >&2; exit $r; }",
		   disk_path(name), disk_dir, disk_dir);
}

#endif
