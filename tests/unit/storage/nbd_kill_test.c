/* nbd_kill_test.c - a server that is killed at any moment leaves a good image with all it flushed.
 *
 * A child serves a qcow2 (with a dirty bitmap) over a socket; the parent writes through our client
 * until the child is killed in the middle of it. A block holds what it held at the last flush or
 * something written since; qemu-img finds no error; the bitmap is not trusted. Then the next round
 * goes on with the same image.
 */
#include "tests/unit/storage/disk_test.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "common/loop.h"
#include "storage/bitmap.h"
#include "storage/nbd_server.h"
#include "storage/qcow2_tools.h"

#define SIZE   (16 * MIB)
#define BLOCK  4096u
#define ROUNDS 12

static pid_t server_start(int sock[2])
{
	pid_t pid;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct nbd_export x = { .name = "" };
		struct loop *l = loop_new();
		struct err e = { 0 };
		struct nbd_server *s;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(sock[0]);
		x.bd = disk_open("img", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
		s = nbd_server_new(l, -1, &x, 1, NULL, &e);
		if (!s || fcntl(sock[1], F_SETFL, O_NONBLOCK) < 0 ||
		    nbd_server_serve(s, sock[1]) < 0)
			_exit(1);
		loop_run(l);
		_exit(0);
	}
	close(sock[1]);
	return pid;
}

static void content(uint8_t *p, uint32_t block, uint32_t version)
{
	uint64_t x = ((uint64_t)block << 32 | version) * 0x9e3779b97f4a7c15ULL;

	for (unsigned i = 0; i < BLOCK; i += 8) {
		memcpy(p + i, &x, 8);
		x = version ? x * 6364136223846793005ULL + 1442695040888963407ULL : 0;
	}
	if (!version)
		memset(p, 0, BLOCK);
}

static void killed_servers_lose_nothing_they_flushed(void **state)
{
	static uint32_t version[SIZE / BLOCK], stable[SIZE / BLOCK];
	static uint8_t buf[BLOCK], want[BLOCK];
	struct qcow2_create c = { .size_bytes = SIZE, .cluster_size = 64 * KIB };

	(void)state;
	disk_create("img", &c);
	for (unsigned round = 0; round < ROUNDS; round++) {
		static const char *const opts[] = { "timeout-ms=5000", NULL };
		struct blk_spec s = {
			.driver = "nbd", .label = "nbd", .discard = true, .opts = opts
		};
		unsigned left = 20 + (unsigned)rng_below(400), n;
		struct qcow2_bitmap_info *maps = NULL;
		struct err e = { 0 };
		struct blockdev *bd;
		uint32_t inflight = UINT32_MAX;
		int sock[2], st, r = 0;
		pid_t pid, killer;

		bd = disk_open("img", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
		r = blk_bitmap_remove(bd, "b", &e);
		assert_true(r == 0 || r == -ENOENT);
		e = (struct err){ 0 };
		assert_int_equal(blk_bitmap_create(bd, "b", 0, true, &e), 0);
		assert_int_equal(blk_close(bd), 0);
		pid = server_start(sock);
		s.fd = sock[0];
		bd = blk_open(&s, &e);
		if (!bd)
			fail_msg("%s", e.detail);
		/* the first writes are answered; then another process kills it while we go on */
		killer = -1;
		for (r = 0; !r;) {
			uint32_t block = (uint32_t)rng_below(SIZE / BLOCK);

			if (left && --left == 0) {
				killer = fork();
				assert_true(killer >= 0);
				if (killer == 0) {
					kill(pid, SIGKILL);
					_exit(0);
				}
			}
			if (rng_below(24) == 0) {
				r = blk_flush(bd);
				if (!r)
					memcpy(stable, version, sizeof(stable));
				continue;
			}
			content(buf, block, version[block] + 1);
			inflight = block;
			r = blk_pwrite(bd, buf, BLOCK, (uint64_t)block * BLOCK);
			if (!r) {
				version[block]++;
				inflight = UINT32_MAX;
			}
		}
		assert_int_equal(waitpid(pid, &st, 0), pid);
		assert_true(WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
		assert_int_equal(waitpid(killer, &st, 0), killer);
		(void)blk_close(bd);
		if (have_qemu()) {
			r = run("qemu-img check -q -f qcow2 '%s' >/dev/null 2>&1",
				disk_path("img"));
			assert_true(r == 0 || r == 3); /* leaks are allowed */
		}
		bd = disk_open("img", "qcow2", NULL, true, BLK_CACHE_WRITEBACK);
		for (uint32_t b = 0; b < SIZE / BLOCK; b++) {
			assert_int_equal(blk_pread(bd, buf, BLOCK, (uint64_t)b * BLOCK), 0);
			uint32_t v = version[b] + (b == inflight);

			for (content(want, b, v); memcmp(buf, want, BLOCK) && v > stable[b];)
				content(want, b, --v);
			if (memcmp(buf, want, BLOCK))
				fail_msg("round %u: block %u lost version %u", round, b, stable[b]);
			version[b] = stable[b] = v;
		}
		n = (unsigned)qcow2_bitmap_list(bd, &maps, &e);
		assert_int_equal(n, 1);
		assert_false(maps[0].consistent);
		free(maps);
		assert_int_equal(blk_close(bd), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(killed_servers_lose_nothing_they_flushed),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
