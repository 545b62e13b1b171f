/* nbd_server_test.c - the NBD server against real clients (qemu-io, qemu-img, nbdinfo, nbdcopy,
 * fio) and against clients that mean harm. */
#include "tests/unit/storage/disk_test.h"

#include <pthread.h>
#include <poll.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "storage/bitmap.h"
#include "storage/nbd_proto.h"
#include "storage/nbd_server.h"

#define SIZE (64 * MIB)

struct served {
	struct loop *loop;
	struct nbd_server *server;
	struct blockdev *bd;
	pthread_t thread;
	int listen;
	struct nbd_limits limits;
	bool read_only;
	const char *const *bitmaps;
};

static void *serve_thread(void *arg)
{
	struct served *s = arg;

	loop_run(s->loop);
	return NULL;
}

static void serve(struct served *s, const char *image)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct err e = { 0 };

	s->bd = disk_open(image, "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
	s->loop = loop_new();
	snprintf(a.sun_path, sizeof(a.sun_path), "%.90s/sock", disk_dir);
	unlink(a.sun_path);
	s->listen = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(s->listen, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(s->listen, 16), 0);
	struct nbd_export x[] = { { .name = "disk",
				    .description = "the test's disk",
				    .bd = s->bd,
				    .read_only = s->read_only,
				    .bitmaps = s->bitmaps },
				  { .name = "ro", .bd = s->bd, .read_only = true } };

	s->server = nbd_server_new(s->loop, s->listen, x, 2, &s->limits, &e);
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

static void image_new(const char *name)
{
	struct qcow2_create cr = { .size_bytes = SIZE };

	disk_create(name, &cr);
}

static void real_clients_read_write_map_and_copy(void **state)
{
	struct served s = { 0 };
	char uri[200];

	(void)state;
	if (!have_qemu() || run("command -v nbdinfo nbdcopy jq >/dev/null"))
		skip();
	image_new("img");
	serve(&s, "img");
	snprintf(uri, sizeof(uri), "nbd+unix:///disk?socket=%.90s/sock", disk_dir);
	assert_int_equal(run("qemu-io -f raw -c 'write -P 5 1M 2M' -c 'write -z -u 2M 64k' -c "
			     "'write -f -P 6 63M 1M' -c 'discard 1M 128k' -c flush"
			     " -c 'read -P 5 1280k 700k' -c 'read -P 0 2M 64k' '%s' >/dev/null",
			     uri),
			 0);
	assert_int_equal(run("nbdinfo --size '%s' | grep -qx %llu", uri, (unsigned long long)SIZE),
			 0);
	assert_int_equal(run("nbdinfo --list '%s' | grep -q 'test.s disk'", uri), 0);
	assert_int_equal(run("nbdinfo --can multi-conn '%s' && nbdinfo --can fua '%s' && nbdinfo "
			     "--can trim '%s'",
			     uri, uri, uri),
			 0);
	assert_int_equal(
	    run("nbdinfo --json --map '%s' | jq -e '[.[] | select(.type == 0) | .length] | add == "
		"2949120'  >/dev/null || { nbdinfo --map '%s' >&2; false; }",
		uri, uri),
	    0);
	assert_int_equal(run("nbdcopy '%s' '%s'", uri, disk_path("copy")), 0);
	assert_int_equal(run("qemu-img compare -q -f raw -F raw '%s' '%s'", uri, disk_path("copy")),
			 0);
	assert_int_equal(
	    run("qemu-img convert -n -f raw -O raw -W -m 8 '%s' '%s'", disk_path("copy"), uri), 0);
	assert_int_equal(run("qemu-img compare -q -f raw -F raw '%s' '%s'", uri, disk_path("copy")),
			 0);
	/* the read-only export refuses */
	assert_int_not_equal(
	    run("qemu-io -f raw -c 'write 0 4k' 'nbd+unix:///ro?socket=%.90s/sock' >/dev/null 2>&1",
		disk_dir),
	    0);
	assert_int_not_equal(
	    run("nbdinfo 'nbd+unix:///none?socket=%.90s/sock' >/dev/null 2>&1", disk_dir), 0);
	served_stop(&s);
	assert_int_equal(qemu_check("img"), 0);
}

/* two contexts in one answer, with writes between; nbdinfo and qemu-img as the clients */
static void dirty_bitmaps_are_shown_as_they_are(void **state)
{
	struct served s = { 0 };
	struct err e = { 0 };
	char uri[200];

	(void)state;
	if (!have_qemu() || run("command -v nbdinfo >/dev/null"))
		skip();
	image_new("bits");
	s.bd = disk_open("bits", "qcow2", NULL, false, BLK_CACHE_WRITEBACK);
	assert_int_equal(blk_bitmap_create(s.bd, "daily", 0, true, &e), 0);
	assert_int_equal(blk_bitmap_create(s.bd, "hidden", 0, true, &e), 0);
	assert_int_equal(blk_close(s.bd), 0);
	s.bitmaps = (const char *const[]){ "daily", "missing", NULL };
	serve(&s, "bits");
	snprintf(uri, sizeof(uri), "nbd+unix:///disk?socket=%.90s/sock", disk_dir);
	assert_int_equal(
	    run("qemu-io -f raw -c 'write -P 5 1M 70k' -c 'discard 3M 64k' '%s' >/dev/null", uri),
	    0);
	assert_int_equal(run("nbdinfo --list '%s' | grep -q qemu:dirty-bitmap:daily && "
			     "! nbdinfo --list '%s' | grep -q hidden",
			     uri, uri),
			 0);
	assert_int_equal(
	    run("test \"$(nbdinfo --map=qemu:dirty-bitmap:daily '%s' | awk '{print $1, "
		"$2, $3, $4}' | tr '\\n' ,)\" = '0 1048576 0 clean,1048576 131072 1 "
		"dirty,1179648 1966080 0 clean,3145728 65536 1 dirty,3211264 %llu 0 "
		"clean,'",
		uri, (unsigned long long)SIZE - 3211264),
	    0);
	/* QEMU's own client reads it as a block status, together with the allocation */
	assert_int_equal(run("qemu-img map --output=json --image-opts 'driver=nbd,path=%s/sock,"
			     "export=disk,x-dirty-bitmap=qemu:dirty-bitmap:daily' | tr -d '\n ' | "
			     "grep -q '\"start\":1048576,\"length\":131072'",
			     disk_dir),
			 0);
	/* a bitmap that is not there is an error of that question, not of the connection */
	assert_int_not_equal(
	    run("nbdinfo --map=qemu:dirty-bitmap:missing '%s' >/dev/null 2>&1", uri), 0);
	assert_int_equal(run("nbdinfo --size '%s' >/dev/null", uri), 0);
	served_stop(&s);
	assert_int_equal(qemu_check("bits"), 0);
}

static void fio_verifies_what_it_wrote(void **state)
{
	struct served s = { 0 };

	(void)state;
	if (run("fio --enghelp 2>/dev/null | grep -q nbd"))
		skip();
	image_new("fio");
	serve(&s, "fio");
	assert_int_equal(
	    run("cd '%s' && fio --name=v --ioengine=nbd --uri='nbd+unix:///disk?socket=%.90s/sock' "
		"--rw=randwrite --bs=4k-64k --size=32M"
		" --iodepth=32 --verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=1 "
		">fio.out 2>&1 || { cat fio.out >&2; false; }",
		disk_dir, disk_dir),
	    0);
	served_stop(&s);
	if (have_qemu())
		assert_int_equal(qemu_check("fio"), 0);
}

/* a file that any program can use: what is written there and through NBD is one */
static void a_file_of_nbdfuse_is_the_disk(void **state)
{
	struct served s = { 0 };
	char uri[200];

	(void)state;
	if (!have_qemu() || geteuid() != 0 || access("/dev/fuse", R_OK | W_OK) ||
	    run("command -v nbdfuse >/dev/null"))
		skip();
	image_new("fused");
	serve(&s, "fused");
	snprintf(uri, sizeof(uri), "nbd+unix:///disk?socket=%.90s/sock", disk_dir);
	assert_int_equal(run("qemu-io -f raw -c 'write -P 7 0 1M' -c flush '%s' >/dev/null", uri),
			 0);
	/* it writes its pid, here into a pipe, when the file is there */
	assert_int_equal(
	    run("cd '%s' && mkdir m && mkfifo up && { nbdfuse -P up m/disk '%s' & } && "
		"timeout 20 cat up >/dev/null && "
		"test \"$(stat -c %%s m/disk)\" = %llu && "
		"test \"$(head -c 1M m/disk | tr -d '\\007' | wc -c)\" = 0 && "
		"head -c 315392 /dev/zero | tr '\\0' '\\011' | dd of=m/disk bs=4096 seek=512 "
		"conv=notrunc,fsync iflag=fullblock status=none; r=$?; umount m || kill $!; wait; "
		"exit $r",
		disk_dir, uri, (unsigned long long)SIZE),
	    0);
	assert_int_equal(run("qemu-io -r -f raw -c 'read -P 9 2M 315392' -c 'read -P 7 0 1M' "
			     "-c 'read -P 0 2412544 4k' '%s' >'%s' && ! grep verification '%s'",
			     uri, disk_path("out"), disk_path("out")),
			 0);
	served_stop(&s);
	assert_int_equal(qemu_check("fused"), 0);
}

/* --- by hand
 * ----------------------------------------------------------------------------------------- */

static int dial(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval tv = { 10, 0 };

	snprintf(a.sun_path, sizeof(a.sun_path), "%.90s/sock", disk_dir);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static void get(int fd, void *p, size_t n)
{
	assert_int_equal(recv(fd, p, n, MSG_WAITALL), n);
}

/* ended() - the server closes the connection (before the socket's time-out). */
static void ended(int fd)
{
	char buf[4096];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
		;
	if (n < 0 && errno != ECONNRESET)
		fail_msg("still open: %s", strerror(errno));
	close(fd);
}

static void be(uint8_t *p, uint64_t v, int n)
{
	while (n--) {
		p[n] = v;
		v >>= 8;
	}
}

/* enter() - EXPORT_NAME on the default export, simple replies. */
static int enter(void)
{
	uint8_t hello[18], req[4 + 16 + 4], rep[10];
	int fd = dial();

	get(fd, hello, sizeof(hello));
	be(req, 3, 4);
	be(req + 4, NBD_OPT_MAGIC, 8);
	be(req + 12, NBD_OPT_EXPORT_NAME, 4);
	be(req + 16, 4, 4);
	memcpy(req + 20, "disk", 4);
	assert_int_equal(send(fd, req, sizeof(req), MSG_NOSIGNAL), sizeof(req));
	get(fd, rep, sizeof(rep));
	return fd;
}

static void request(uint8_t *p, uint16_t flags, uint16_t type, uint64_t off, uint32_t len)
{
	be(p, NBD_REQUEST_MAGIC, 4);
	be(p + 4, flags, 2);
	be(p + 6, type, 2);
	be(p + 8, 0x1122334455667788ULL, 8);
	be(p + 16, off, 8);
	be(p + 24, len, 4);
}

static uint32_t answer(int fd)
{
	uint8_t rep[16];

	get(fd, rep, sizeof(rep));
	assert_int_equal(rep[0], 0x67);
	return (uint32_t)rep[4] << 24 | rep[5] << 16 | rep[6] << 8 | rep[7];
}

static void bad_requests_get_errors_and_the_connection_lives(void **state)
{
	static const struct {
		uint16_t flags, type;
		uint64_t off;
		uint32_t len, error;
	} bad[] = {
		{ 0, NBD_CMD_READ, SIZE, 512, 22 },	   { 0, NBD_CMD_READ, UINT64_MAX, 512, 22 },
		{ 0, NBD_CMD_READ, 1, 512, 22 },	   { 0, NBD_CMD_READ, 0, UINT32_MAX, 75 },
		{ 0xff00, NBD_CMD_READ, 0, 512, 22 },	   { 0, 99, 0, 0, 22 },
		{ 0, NBD_CMD_TRIM, SIZE - 512, 1024, 22 }, { 0, NBD_CMD_WRITE_ZEROES, 3, 512, 22 },
		{ 0, NBD_CMD_BLOCK_STATUS, 0, 512, 22 }, /* no context was chosen */
	};
	struct served s = { 0 };
	uint8_t req[NBD_REQUEST_LEN], buf[512];
	int fd;

	(void)state;
	image_new("bad");
	serve(&s, "bad");
	fd = enter();
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		request(req, bad[i].flags, bad[i].type, bad[i].off, bad[i].len);
		assert_int_equal(send(fd, req, sizeof(req), MSG_NOSIGNAL), sizeof(req));
		assert_int_equal(answer(fd), bad[i].error);
	}
	request(req, 0, NBD_CMD_READ, 0, 512);
	assert_int_equal(send(fd, req, sizeof(req), MSG_NOSIGNAL), sizeof(req));
	assert_int_equal(answer(fd), 0);
	get(fd, buf, sizeof(buf));
	/* a write that is refused still has its payload taken off the wire */
	request(req, 0, NBD_CMD_WRITE, SIZE, 512);
	assert_int_equal(send(fd, req, sizeof(req), MSG_NOSIGNAL), sizeof(req));
	assert_int_equal(send(fd, buf, sizeof(buf), MSG_NOSIGNAL), sizeof(buf));
	assert_int_equal(answer(fd), 28);
	request(req, 0, NBD_CMD_FLUSH, 0, 0);
	assert_int_equal(send(fd, req, sizeof(req), MSG_NOSIGNAL), sizeof(req));
	assert_int_equal(answer(fd), 0);
	/* a wrong magic ends it */
	req[0] ^= 1;
	assert_int_equal(send(fd, req, sizeof(req), MSG_NOSIGNAL), sizeof(req));
	ended(fd);
	served_stop(&s);
}

/* Requests and payloads cut at every place of one stream: each arrives whole and in its own place. */
static void a_stream_may_be_cut_anywhere(void **state)
{
	enum { WRITES = 3, LEN = 1024, ONE = NBD_REQUEST_LEN + LEN };
	uint8_t stream[WRITES * ONE + NBD_REQUEST_LEN], got[WRITES * LEN];
	struct served s = { 0 };
	uint64_t until = clock_mono_ns() + 60 * NS_PER_S;
	int fd, one = 0;

	(void)state;
	image_new("cut");
	serve(&s, "cut");
	fd = enter();
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){ MIB }, sizeof(int)), 0);
	for (unsigned cut = 1; cut < sizeof(stream); cut += 1 + cut % 13) {
		for (unsigned i = 0; i < WRITES; i++) {
			request(stream + i * ONE, 0, NBD_CMD_WRITE, i * LEN, LEN);
			memset(stream + i * ONE + NBD_REQUEST_LEN, (int)(cut + i) & 255, LEN);
		}
		request(stream + WRITES * ONE, 0, NBD_CMD_FLUSH, 0, 0);
		assert_int_equal(send(fd, stream, cut, MSG_NOSIGNAL), cut);
		/* the server has taken the first part before the second comes */
		do {
			assert_int_equal(ioctl(fd, SIOCOUTQ, &one), 0);
			assert_true(clock_mono_ns() < until);
		} while (one);
		assert_int_equal(send(fd, stream + cut, sizeof(stream) - cut, MSG_NOSIGNAL),
				 sizeof(stream) - cut);
		for (unsigned i = 0; i < WRITES + 1; i++)
			assert_int_equal(answer(fd), 0);
		request(stream, 0, NBD_CMD_READ, 0, sizeof(got));
		assert_int_equal(send(fd, stream, NBD_REQUEST_LEN, MSG_NOSIGNAL), NBD_REQUEST_LEN);
		assert_int_equal(answer(fd), 0);
		get(fd, got, sizeof(got));
		for (unsigned i = 0; i < sizeof(got); i++)
			if (got[i] != ((cut + i / LEN) & 255))
				fail_msg("cut at %u: byte %u is %u", cut, i, got[i]);
	}
	close(fd);
	served_stop(&s);
}

static void handshakes_are_bounded_in_time_size_and_number(void **state)
{
	struct served s = { .limits = { .connections = 3, .handshake_ms = 200 } };
	uint8_t hello[18], req[24] = { 0 };
	int fd[3];

	(void)state;
	image_new("hs");
	serve(&s, "hs");
	/* says nothing: dropped in time */
	fd[0] = dial();
	get(fd[0], hello, sizeof(hello));
	ended(fd[0]);
	/* an option of 4 GiB */
	fd[0] = dial();
	get(fd[0], hello, sizeof(hello));
	be(req, 3, 4);
	be(req + 4, NBD_OPT_MAGIC, 8);
	be(req + 12, NBD_OPT_GO, 4);
	be(req + 16, UINT32_MAX, 4);
	assert_int_equal(send(fd[0], req, 20, MSG_NOSIGNAL), 20);
	ended(fd[0]);
	/* unknown client flags */
	fd[0] = dial();
	get(fd[0], hello, sizeof(hello));
	be(req, 0xffff, 4);
	assert_int_equal(send(fd[0], req, 4, MSG_NOSIGNAL), 4);
	ended(fd[0]);
	/* the fourth is turned away, and may come when one has left */
	for (int i = 0; i < 3; i++)
		fd[i] = enter();
	int extra = dial();

	ended(extra);
	uint8_t disc[NBD_REQUEST_LEN];

	request(disc, 0, NBD_CMD_DISC, 0, 0);
	assert_int_equal(send(fd[0], disc, sizeof(disc), MSG_NOSIGNAL), sizeof(disc));
	ended(fd[0]);
	fd[0] = enter();
	for (int i = 0; i < 3; i++)
		close(fd[i]);
	served_stop(&s);
}

static void a_client_that_never_reads_is_not_fed_without_end(void **state)
{
	struct served s = { .limits = { .requests = 8, .bytes = 4 * MIB } };
	uint8_t req[NBD_REQUEST_LEN];
	size_t sent = 0;
	int fd;

	(void)state;
	image_new("slow");
	serve(&s, "slow");
	fd = enter();
	request(req, 0, NBD_CMD_READ, 0, MIB);
	/* ask for far more than may be in flight; the server must stop reading before we could send
	 * all */
	fcntl(fd, F_SETFL, O_NONBLOCK);
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };

		if (poll(&p, 1, 300) <= 0)
			break;
		ssize_t n = send(fd, req, sizeof(req), MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			continue;
		assert_true(n > 0);
		sent += n;
		if (sent > 100 * MIB)
			fail_msg("the server keeps taking requests");
	}
	close(fd);
	served_stop(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(real_clients_read_write_map_and_copy),
		cmocka_unit_test(dirty_bitmaps_are_shown_as_they_are),
		cmocka_unit_test(fio_verifies_what_it_wrote),
		cmocka_unit_test(a_file_of_nbdfuse_is_the_disk),
		cmocka_unit_test(a_stream_may_be_cut_anywhere),
		cmocka_unit_test(bad_requests_get_errors_and_the_connection_lives),
		cmocka_unit_test(handshakes_are_bounded_in_time_size_and_number),
		cmocka_unit_test(a_client_that_never_reads_is_not_fed_without_end),
	};

	return cmocka_run_group_tests(tests, disk_setup, disk_teardown);
}
