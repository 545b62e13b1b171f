/* nbd_client_test.c - the NBD driver against our server, qemu-nbd and nbdkit, and against servers
 * that mean harm. */
#include "tests/unit/storage/disk_test.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "storage/job.h"
#include "storage/nbd_proto.h"
#include "storage/nbd_server.h"

#define SIZE (16 * MIB)

static int dial_unix(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%.100s", path);
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static struct blockdev *nbd_open(int fd, const char *const *opts, struct err *e)
{
	struct blk_spec s = {
		.driver = "nbd", .label = "remote", .fd = fd, .discard = true, .opts = opts
	};
	struct blockdev *bd = blk_open(&s, e);

	if (!bd)
		close(fd);
	return bd;
}

/* --- real servers
 * ------------------------------------------------------------------------------------ */

struct worker {
	struct blockdev *bd;
	unsigned id;
	uint8_t *shadow;
	int error;
};

#define WORKERS 8
#define PART	(SIZE / WORKERS)

static void *worker_run(void *arg)
{
	struct worker *w = arg;
	uint64_t seed = w->id + 1;
	uint8_t *buf = malloc(256 * KIB);

	for (int i = 0; i < 150 && !w->error; i++) {
		seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
		uint64_t len = 512 * (1 + (seed >> 40) % 256), off = 512 * ((seed >> 20) % 1024);
		uint64_t at = w->id * PART + off;

		len = MIN(len, PART - off);
		switch (i % 4) {
		case 0:
		case 1:
			memset(buf, (int)(seed >> 33) | 1, len);
			memcpy(w->shadow + at, buf, len);
			w->error = blk_pwrite(w->bd, buf, len, at);
			break;
		case 2:
			memset(w->shadow + at, 0, len);
			w->error = blk_zero(w->bd, at, len, i % 8 == 2);
			break;
		default:
			w->error = blk_pread(w->bd, buf, len, at);
			if (!w->error && memcmp(buf, w->shadow + at, len))
				w->error = -EBADMSG;
		}
	}
	free(buf);
	return NULL;
}

/* many threads on one connection, each with its own part of the disk; then the whole is read */
static void exercise(struct blockdev *bd)
{
	uint8_t *shadow = calloc(1, SIZE), *all = malloc(SIZE);
	struct worker w[WORKERS];
	pthread_t t[WORKERS];
	struct blk_info info;

	blk_info(bd, &info);
	assert_int_equal(info.size_bytes, SIZE);
	for (unsigned i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){ bd, i, shadow, 0 };
		assert_int_equal(pthread_create(&t[i], NULL, worker_run, &w[i]), 0);
	}
	for (unsigned i = 0; i < WORKERS; i++) {
		pthread_join(t[i], NULL);
		assert_int_equal(w[i].error, 0);
	}
	assert_int_equal(blk_flush(bd), 0);
	assert_int_equal(blk_pread(bd, all, SIZE, 0), 0);
	assert_memory_equal(all, shadow, SIZE);
	/* what the map calls zero or hole reads as zeroes; and it covers the disk */
	for (uint64_t off = 0; off < SIZE;) {
		struct blk_extent x[32];
		int n = blk_extents(bd, off, x, ARRAY_SIZE(x));

		assert_true(n > 0);
		for (int i = 0; i < n; i++) {
			assert_int_equal(x[i].off_bytes, off);
			assert_true(x[i].len_bytes > 0);
			if (x[i].kind != BLK_EXT_DATA)
				for (uint64_t k = 0; k < x[i].len_bytes; k++)
					assert_int_equal(shadow[off + k], 0);
			off += x[i].len_bytes;
		}
	}
	assert_int_equal(blk_pread(bd, all, 512, SIZE), -EINVAL);
	free(shadow);
	free(all);
}

/* a server in a child process; its socket appears when it serves */
static pid_t peer_start(char *const argv[], const char *sock)
{
	uint64_t until = clock_mono_ns() + 20ULL * NS_PER_S;
	pid_t pid = fork();
	int fd;

	if (pid == 0) {
		execvp(argv[0], argv);
		_exit(127);
	}
	while ((fd = dial_unix(sock)) < 0) {
		siginfo_t si = { 0 };

		if (waitid(P_PID, (id_t)pid, &si, WEXITED | WNOHANG | WNOWAIT) == 0 && si.si_pid)
			fail_msg("%s ended", argv[0]);
		if (clock_mono_ns() > until)
			fail_msg("%s does not serve", argv[0]);
		(void)poll(NULL, 0, 10); /* the next look, not a guess: the deadline is above */
	}
	close(fd);
	return pid;
}

static void peer_stop(pid_t pid)
{
	kill(pid, SIGTERM);
	waitpid(pid, NULL, 0);
}

static void remote_exercise(const char *sock, const char *export)
{
	char opt[64];
	const char *const opts[] = { opt, NULL };
	struct err e = { 0 };
	struct blockdev *bd;

	snprintf(opt, sizeof(opt), "export=%s", export);
	bd = nbd_open(dial_unix(sock), opts, &e);
	if (!bd)
		fail_msg("%s", e.detail);
	exercise(bd);
	assert_int_equal(blk_close(bd), 0);
}

static void a_disk_behind_qemu_nbd(void **state)
{
	char sock[200], img[256];

	(void)state;
	if (!have_qemu() || run("command -v qemu-nbd >/dev/null"))
		skip();
	disk_create("q", &(struct qcow2_create){ .size_bytes = SIZE });
	snprintf(sock, sizeof(sock), "%s/q.sock", disk_dir);
	snprintf(img, sizeof(img), "%s", disk_path("q"));
	char *const argv[] = { "qemu-nbd", "-k", sock, "-f", "qcow2",		"-t",
			       "-e",	   "4",	 "-x", "d",  "--discard=unmap", img,
			       NULL };
	pid_t pid = peer_start(argv, sock);

	remote_exercise(sock, "d");
	peer_stop(pid);
	assert_int_equal(qemu_check("q"), 0);
}

static void a_disk_behind_nbdkit(void **state)
{
	char sock[200], size[40];

	(void)state;
	if (run("command -v nbdkit >/dev/null"))
		skip();
	snprintf(sock, sizeof(sock), "%s/k.sock", disk_dir);
	snprintf(size, sizeof(size), "%llu", (unsigned long long)SIZE);
	char *const argv[] = { "nbdkit", "-f", "-U", sock, "memory", size, NULL };
	pid_t pid = peer_start(argv, sock);

	remote_exercise(sock, "");
	peer_stop(pid);
}

struct served {
	struct loop *loop;
	struct nbd_server *server;
	struct blockdev *bd;
	pthread_t thread;
	int listen;
	char sock[200];
};

static void *serve_thread(void *arg)
{
	loop_run(((struct served *)arg)->loop);
	return NULL;
}

static void serve(struct served *s, const char *image, bool ro)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct err e = { 0 };
	struct nbd_export x = { .name = "disk", .read_only = ro };

	s->bd = disk_open(image, "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
	x.bd = s->bd;
	s->loop = loop_new();
	snprintf(a.sun_path, sizeof(a.sun_path), "%.90s/o.sock", disk_dir);
	snprintf(s->sock, sizeof(s->sock), "%s", a.sun_path);
	unlink(a.sun_path);
	s->listen = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(s->listen, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(s->listen, 16), 0);
	s->server = nbd_server_new(s->loop, s->listen, &x, 1, NULL, &e);
	assert_non_null(s->server);
	assert_int_equal(pthread_create(&s->thread, NULL, serve_thread, s), 0);
}

static void served_stop(struct served *s)
{
	loop_stop(s->loop);
	pthread_join(s->thread, NULL);
	nbd_server_free(s->server);
	loop_free(s->loop);
	close(s->listen);
	assert_int_equal(blk_close(s->bd), 0);
}

static void a_disk_behind_our_server(void **state)
{
	struct served s;

	(void)state;
	disk_create("o", &(struct qcow2_create){ .size_bytes = SIZE });
	serve(&s, "o", false);
	remote_exercise(s.sock, "disk");
	served_stop(&s);
	if (have_qemu())
		assert_int_equal(qemu_check("o"), 0);
}

static void a_remote_disk_is_a_source_of_jobs_and_a_parent(void **state)
{
	static const char *const opts[] = { "export=disk", NULL };
	uint8_t *buf = malloc(MIB), *got = malloc(MIB);
	struct err e = { 0 };
	struct blk_spec remote = {
		.driver = "nbd", .label = "remote", .read_only = true, .opts = opts
	};
	struct blk_spec copy = { .driver = "qcow2", .label = "copy", .read_only = true };
	struct blkjob_target t = { .driver = "qcow2" };
	struct served s;
	struct blockdev *bd;
	uint64_t at = 0;

	(void)state;
	disk_create("src", &(struct qcow2_create){ .size_bytes = SIZE });
	serve(&s, "src", false);
	memset(buf, 7, MIB);
	assert_int_equal(blk_pwrite(s.bd, buf, MIB, 3 * MIB), 0);
	remote.fd = dial_unix(s.sock);
	t.fd = disk_fd("copy", O_RDWR | O_CREAT | O_TRUNC);
	if (blkjob_convert(NULL, &remote, &t, &e))
		fail_msg("%s", e.detail);
	remote.fd = dial_unix(s.sock);
	copy.fd = disk_fd("copy", O_RDONLY);
	assert_int_equal(blkjob_compare(NULL, &copy, &remote, &at, &e), 0);

	remote.fd = dial_unix(s.sock);
	disk_create("over", &(struct qcow2_create){ .size_bytes = SIZE });
	bd = disk_open("over", "qcow2", &remote, false, BLK_CACHE_WRITEBACK);
	memset(got, 9, 4096);
	assert_int_equal(blk_pwrite(bd, got, 4096, 3 * MIB + 4096), 0);
	memset(buf + 4096, 9, 4096);
	assert_int_equal(blk_pread(bd, got, MIB, 3 * MIB), 0);
	assert_memory_equal(got, buf, MIB);
	assert_int_equal(blk_close(bd), 0);
	served_stop(&s);
	free(buf);
	free(got);
}

static void a_refused_export_and_a_read_only_one_are_named(void **state)
{
	static const char *const none[] = { "export=none", NULL };
	struct served s;
	struct err e = { 0 };

	(void)state;
	disk_create("r", &(struct qcow2_create){ .size_bytes = SIZE });
	serve(&s, "r", true);
	assert_null(nbd_open(dial_unix(s.sock), none, &e));
	assert_string_equal(e.code, "nbd-export");
	e = (struct err){ 0 };
	assert_null(nbd_open(dial_unix(s.sock), NULL, &e));
	assert_string_equal(e.code, "nbd-read-only");
	served_stop(&s);
}

/* --- servers that mean harm: a thread answers the handshake well, then each request as scripted
 */

struct script {
	const char *name;
	uint64_t size;
	bool structured;
	const uint8_t *answer; /* cookie at byte 8 is filled in where it is all ff */
	size_t len;
	bool hang; /* afterwards silence instead of the end */
	uint16_t type;
	int fd;
};

static bool put_all(int fd, const void *p, size_t n)
{
	return send(fd, p, n, MSG_NOSIGNAL) == (ssize_t)n;
}

static bool get_all(int fd, void *p, size_t n)
{
	return recv(fd, p, n, MSG_WAITALL) == (ssize_t)n;
}

static void be_put(uint8_t *p, uint64_t v, int n)
{
	while (n--) {
		p[n] = (uint8_t)v;
		v >>= 8;
	}
}

static bool opt_reply(int fd, uint32_t opt, uint32_t type, const void *data, uint32_t len)
{
	uint8_t h[20];

	be_put(h, NBD_REP_MAGIC, 8);
	be_put(h + 8, opt, 4);
	be_put(h + 12, type, 4);
	be_put(h + 16, len, 4);
	return put_all(fd, h, 20) && (!len || put_all(fd, data, len));
}

static void *villain(void *arg)
{
	struct script *s = arg;
	uint8_t b[4096];

	be_put(b, NBD_MAGIC, 8);
	be_put(b + 8, NBD_OPT_MAGIC, 8);
	be_put(b + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES, 2);
	if (!put_all(s->fd, b, 18) || !get_all(s->fd, b, 4))
		goto out;
	for (;;) {
		uint32_t opt, len;

		if (!get_all(s->fd, b, 16))
			goto out;
		opt = (uint32_t)b[8] << 24 | b[9] << 16 | b[10] << 8 | b[11];
		len = (uint32_t)b[12] << 24 | b[13] << 16 | b[14] << 8 | b[15];
		if (len > sizeof(b) || (len && !get_all(s->fd, b, len)))
			goto out;
		if (opt == NBD_OPT_STRUCTURED_REPLY) {
			opt_reply(s->fd, opt, s->structured ? NBD_REP_ACK : NBD_REP_ERR_UNSUP, NULL,
				  0);
		} else if (opt == NBD_OPT_SET_META) {
			be_put(b, 5, 4);
			memcpy(b + 4, "base:allocation", 15);
			opt_reply(s->fd, opt, NBD_REP_META, b, 19);
			opt_reply(s->fd, opt, NBD_REP_ACK, NULL, 0);
		} else if (opt == NBD_OPT_GO) {
			be_put(b, NBD_INFO_EXPORT, 2);
			be_put(b + 2, s->size, 8);
			be_put(b + 10,
			       NBD_EXPORT_HAS_FLAGS | NBD_EXPORT_FLUSH | NBD_EXPORT_ZEROES |
				   NBD_EXPORT_TRIM,
			       2);
			opt_reply(s->fd, opt, NBD_REP_INFO, b, 12);
			opt_reply(s->fd, opt, NBD_REP_ACK, NULL, 0);
			break;
		}
	}
	while (get_all(s->fd, b, 28)) {
		uint8_t out[4096];

		if (((b[6] << 8 | b[7]) & 0xff) != s->type)
			break;
		memcpy(out, s->answer, s->len);
		if (s->len >= 16 && memcmp(out + 8, "\xff\xff\xff\xff\xff\xff\xff\xff", 8) == 0)
			memcpy(out + 8, b + 8, 8);
		put_all(s->fd, out, s->len);
		if (s->hang)
			(void)recv(s->fd, out, 1, MSG_WAITALL);
		break;
	}
out:
	shutdown(s->fd, SHUT_RDWR);
	return NULL;
}

#define COOKIE	     "\xff\xff\xff\xff\xff\xff\xff\xff"
#define CHUNK(f, t)  "\x66\x8e\x33\xef\0" f t COOKIE
#define ANSWER(text) (const uint8_t *)(text), sizeof(text) - 1

static void a_server_that_breaks_the_protocol_fails_requests_and_touches_nothing_else(void **state)
{
	static const struct script scripts[] = {
		{ "no such magic", MIB, true, ANSWER("\1\2\3\4\0\0\0\0" COOKIE "\0\0\0\0"), false,
		  NBD_CMD_READ, -1 },
		{ "a cookie nobody sent", MIB, true,
		  ANSWER("\x67\x44\x66\x98\0\0\0\0\1\2\3\4\5\6\7\7"), false, NBD_CMD_READ, -1 },
		{ "a simple reply to a read after structured ones were agreed", MIB, true,
		  ANSWER("\x67\x44\x66\x98\0\0\0\0" COOKIE "AAAAAAAA"), false, NBD_CMD_READ, -1 },
		{ "a chunk where none were agreed", MIB, false,
		  ANSWER(CHUNK("\1", "\0\0") "\0\0\0\0"), false, NBD_CMD_READ, -1 },
		{ "data before the request", MIB, true,
		  ANSWER(CHUNK("\1", "\0\1") "\0\0\2\x08\0\0\0\0\0\0\0\0"), false, NBD_CMD_READ,
		  -1 },
		{ "data longer than the request", MIB, true,
		  ANSWER(CHUNK("\1", "\0\1") "\0\1\0\0\0\0\0\0\0\0\x10\0"), false, NBD_CMD_READ,
		  -1 },
		{ "data whose offset wraps", MIB, true,
		  ANSWER(CHUNK("\1", "\0\1") "\0\0\2\x08\xff\xff\xff\xff\xff\xff\xff\0"), false,
		  NBD_CMD_READ, -1 },
		{ "a hole longer than the request", MIB, true,
		  ANSWER(CHUNK("\1", "\0\2") "\0\0\0\x0c\0\0\0\0\0\0\x10\0\xff\xff\xff\xff"), false,
		  NBD_CMD_READ, -1 },
		{ "a read that ends without its data", MIB, true,
		  ANSWER(CHUNK("\1", "\0\0") "\0\0\0\0"), false, NBD_CMD_READ, -1 },
		{ "the end inside the data", MIB, true,
		  ANSWER(CHUNK("\1", "\0\1") "\0\0\x10\x08\0\0\0\0\0\0\x10\0abc"), false,
		  NBD_CMD_READ, -1 },
		{ "silence", MIB, true, ANSWER(""), true, NBD_CMD_READ, -1 },
		{ "extents for a read", MIB, true,
		  ANSWER(CHUNK("\1", "\0\5") "\0\0\0\x0c\0\0\0\5\0\0\x10\0\0\0\0\0"), false,
		  NBD_CMD_READ, -1 },
		{ "an extent of nothing", MIB, true,
		  ANSWER(CHUNK("\1", "\0\5") "\0\0\0\x0c\0\0\0\5\0\0\0\0\0\0\0\0"), false,
		  NBD_CMD_BLOCK_STATUS, -1 },
		{ "extents of another context", MIB, true,
		  ANSWER(CHUNK("\1", "\0\5") "\0\0\0\x0c\0\0\0\6\0\0\x10\0\0\0\0\0"), false,
		  NBD_CMD_BLOCK_STATUS, -1 },
		{ "four GiB of extents", MIB, true,
		  ANSWER(CHUNK("\1", "\0\5") "\xff\xff\xff\xfc\0\0\0\5"), false,
		  NBD_CMD_BLOCK_STATUS, -1 },
		{ "an error message of four GiB", MIB, true,
		  ANSWER(CHUNK("\1", "\x80\1") "\xff\xff\xff\xff\0\0\0\5"), false, NBD_CMD_READ,
		  -1 },
	};
	static const char *const opts[] = { "timeout-ms=700", NULL };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
		struct script s = scripts[i];
		uint8_t guard[3 * 4096];
		struct blk_extent x[2];
		struct err e = { 0 };
		struct blockdev *bd;
		pthread_t t;
		int sp[2], r;

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sp), 0);
		s.fd = sp[1];
		assert_int_equal(pthread_create(&t, NULL, villain, &s), 0);
		bd = nbd_open(sp[0], opts, &e);
		if (!bd)
			fail_msg("%s: %s", s.name, e.detail);
		memset(guard, 0x5a, sizeof(guard));
		r = s.type == NBD_CMD_READ ? blk_pread(bd, guard + 4096, 4096, 4096)
					   : blk_extents(bd, 4096, x, 2);
		if (r >= 0)
			fail_msg("%s: passed", s.name);
		for (size_t k = 0; k < 4096; k++)
			if (guard[k] != 0x5a || guard[8192 + k] != 0x5a)
				fail_msg("%s: wrote beside the request", s.name);
		/* dead for good */
		assert_int_equal(blk_pread(bd, guard, 512, 0), -EIO);
		assert_int_equal(blk_flush(bd), -EIO);
		assert_int_equal(blk_close(bd), -EIO);
		pthread_join(t, NULL);
		close(sp[1]);
	}
}

static void pieces_that_leave_gaps_show_zeroes_not_old_memory(void **state)
{
	/* two chunks over the same 2048 bytes: the sum is right, half of it is not covered */
	static const char twice[] =
	    CHUNK("\0", "\0\2") "\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\x08\0" CHUNK(
		"\1", "\0\2") "\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\x08\0";
	uint8_t answer[sizeof(twice) - 1], buf[4096];
	struct script s = { .name = "twice",
			    .size = MIB,
			    .structured = true,
			    .answer = answer,
			    .len = sizeof(answer),
			    .type = NBD_CMD_READ };
	struct err e = { 0 };
	struct blockdev *bd;
	pthread_t t;
	int sp[2];

	(void)state;
	memcpy(answer, twice, sizeof(answer));
	be_put(answer + 32 + 8, 1, 8); /* the first request's cookie */
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sp), 0);
	s.fd = sp[1];
	assert_int_equal(pthread_create(&t, NULL, villain, &s), 0);
	bd = nbd_open(sp[0], NULL, &e);
	assert_non_null(bd);
	memset(buf, 0x5a, sizeof(buf));
	assert_int_equal(blk_pread(bd, buf, 4096, 4096), 0);
	for (size_t k = 0; k < sizeof(buf); k++)
		assert_int_equal(buf[k], 0);
	(void)blk_close(bd);
	pthread_join(t, NULL);
	close(sp[1]);
}

static void a_size_past_two_to_the_63_is_refused(void **state)
{
	struct script s = { .size = 1ULL << 63, .structured = true, .type = NBD_CMD_READ };
	struct err e = { 0 };
	pthread_t t;
	int sp[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sp), 0);
	s.fd = sp[1];
	assert_int_equal(pthread_create(&t, NULL, villain, &s), 0);
	assert_null(nbd_open(sp[0], NULL, &e));
	assert_string_equal(e.code, "nbd-size");
	pthread_join(t, NULL);
	close(sp[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_disk_behind_our_server),
		cmocka_unit_test(a_disk_behind_qemu_nbd),
		cmocka_unit_test(a_disk_behind_nbdkit),
		cmocka_unit_test(a_remote_disk_is_a_source_of_jobs_and_a_parent),
		cmocka_unit_test(a_refused_export_and_a_read_only_one_are_named),
		cmocka_unit_test(
		    a_server_that_breaks_the_protocol_fails_requests_and_touches_nothing_else),
		cmocka_unit_test(pieces_that_leave_gaps_show_zeroes_not_old_memory),
		cmocka_unit_test(a_size_past_two_to_the_63_is_refused),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
