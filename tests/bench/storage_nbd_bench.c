/* storage_nbd_bench.c - our NBD server beside qemu-nbd (the same qcow2 file) and nbdkit (the same
 * raw file), with fio's nbd engine as the client of all: 4K random, 32 requests in flight.
 *
 * The servers take turns on the same file; medians are compared; a ratio above 1 is better. The
 * file is written once before, so that what is measured is the server and not the allocator.
 * Figures: storage.nbd.{read,write}.{qemu,nbdkit}_4k_qd32. TMPDIR says where (default /var/tmp),
 * BENCH_RUNS how often, ONLY which.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <poll.h>
#include <unistd.h>

#include "common/loop.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/blockdev.h"
#include "storage/nbd_server.h"
#include "tests/bench/only.h"

#define DISK	 (1 * GIB)
#define RUNS_MAX 15

static char dir[100], image[160], sock[160];
static unsigned runs = 3;
static bool image_ready; /* the one that the next figures serve */

static void die(const char *what)
{
	fprintf(stderr, "storage_nbd_bench: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* image_open() - qcow2 by O_DIRECT, as qemu-nbd is told; raw through the page cache, as nbdkit. */
static struct blockdev *image_open(const char *driver)
{
	static const char *const opts[] = { "backing=ignore", "aio=on", NULL };
	struct err e = { 0 };
	struct blk_spec s = { .driver = driver,
			      .label = "bench",
			      .fd = open(image, O_RDWR | O_CLOEXEC),
			      .discard = true,
			      .cache =
				  strcmp(driver, "file") ? BLK_CACHE_NONE : BLK_CACHE_WRITEBACK,
			      .opts = opts };
	struct blockdev *bd = blk_open(&s, &e);

	if (!bd) {
		fprintf(stderr, "storage_nbd_bench: %s\n", e.detail);
		exit(1);
	}
	return bd;
}

/* image_make() - a file whose every block has been written. */
static void image_make(bool qcow2)
{
	struct qcow2_create c = { .size_bytes = DISK };
	struct err e = { 0 };
	int fd = open(image, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct blockdev *bd;
	void *buf;

	if (fd < 0 || (qcow2 ? qcow2_create(fd, &c, &e) : ftruncate(fd, DISK)) < 0)
		die(image);
	close(fd);
	bd = image_open(qcow2 ? "qcow2" : "file");
	if (posix_memalign(&buf, 4096, MIB))
		die("memory");
	memset(buf, 0x5a, MIB);
	for (uint64_t at = 0; at < DISK; at += MIB)
		if (blk_pwrite(bd, buf, MIB, at) < 0)
			die("fill");
	free(buf);
	if (blk_close(bd) < 0)
		die("close");
}

static void ours_serve(bool qcow2)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct nbd_export x = { .name = "" };
	struct loop *l = loop_new();
	struct err e = { 0 };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	x.bd = image_open(qcow2 ? "qcow2" : "file");
	snprintf(a.sun_path, sizeof(a.sun_path), "%.107s", sock);
	if (!l || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 16) < 0)
		die("listen");
	if (!nbd_server_new(l, fd, &x, 1, NULL, &e))
		die(e.detail);
	loop_run(l);
	_exit(0);
}

enum server { OURS, QEMU, NBDKIT };

static pid_t server_start(enum server which, bool qcow2)
{
	uint64_t until;
	pid_t pid;

	unlink(sock);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (which == OURS)
			ours_serve(qcow2);
		else if (which == QEMU)
			execlp("qemu-nbd", "qemu-nbd", "-k", sock, "-f", qcow2 ? "qcow2" : "raw",
			       "--cache=none", "--aio=io_uring", "-t", "-e", "8", "--discard=unmap",
			       image, (char *)NULL);
		else
			execlp("nbdkit", "nbdkit", "-f", "-U", sock, "file", image, (char *)NULL);
		die("server");
	}
	for (until = clock_mono_ns() + 20ULL * NS_PER_S; access(sock, F_OK) < 0;) {
		if (clock_mono_ns() > until || waitpid(pid, NULL, WNOHANG) == pid)
			die("the server does not start");
		(void)poll(NULL, 0, 10);
	}
	return pid;
}

static void server_stop(pid_t pid)
{
	kill(pid, SIGTERM);
	waitpid(pid, NULL, 0);
}

/* fio_rate() - operations a second; terse output, version 3: fields 8 and 49. */
static double fio_rate(bool write)
{
	char cmd[700], line[4000];
	double v = 0;
	FILE *f;

	snprintf(
	    cmd, sizeof(cmd),
	    "cd '%s' && fio --minimal --name=x --ioengine=nbd --uri='nbd+unix:///?socket=%s' "
	    "--rw=rand%s --bs=4k --size=1G --io_size=64M --iodepth=32 | grep '^3;' | cut -d';' "
	    "-f%d",
	    dir, sock, write ? "write" : "read", write ? 49 : 8);
	f = popen(cmd, "r");
	if (f && fgets(line, sizeof(line), f))
		v = strtod(line, NULL);
	if (!f || pclose(f) != 0 || v <= 0) {
		fprintf(stderr, "storage_nbd_bench: failed: %s\n", cmd);
		exit(1);
	}
	return v;
}

static int cmp_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double measure(enum server which, bool qcow2, bool write)
{
	pid_t pid = server_start(which, qcow2);
	double v = fio_rate(write);

	server_stop(pid);
	return v;
}

static void figure(bool write, enum server peer)
{
	double ours[RUNS_MAX] = { 0 }, theirs[RUNS_MAX] = { 0 };
	bool qcow2 = peer == QEMU;
	char name[64];

	snprintf(name, sizeof(name), "storage.nbd.%s.%s_4k_qd32", write ? "write" : "read",
		 peer == QEMU ? "qemu" : "nbdkit");
	if (!bench_wanted(name))
		return;
	if (!image_ready)
		image_make(qcow2);
	image_ready = true;
	for (unsigned i = 0; i < runs; i++) {
		ours[i] = measure(OURS, qcow2, write);
		theirs[i] = measure(peer, qcow2, write);
	}
	qsort(ours, runs, sizeof(*ours), cmp_double);
	qsort(theirs, runs, sizeof(*theirs), cmp_double);
	printf("{\"figure\":\"%s\",\"unit\":\"ops/s\",\"ours\":%.6g,"
	       "\"peer\":%.6g,\"peer_name\":\"%s\",\"ratio\":%.3f,\"runs\":%u,\"ours_p99\":%.6g,"
	       "\"note\":\"%s; target ratio 1.5\"}\n",
	       name, ours[runs / 2], theirs[runs / 2],
	       peer == QEMU ? "qemu-nbd io_uring" : "nbdkit file",
	       ours[runs / 2] / theirs[runs / 2], runs, ours[0],
	       peer == QEMU ? "same qcow2 file, O_DIRECT"
			    : "same raw file, both through the page cache");
	fflush(stdout);
}

static bool have(const char *cmd)
{
	if (system(cmd) == 0)
		return true;
	fprintf(stderr, "storage_nbd_bench: skipped: fails here: %s\n", cmd);
	return false;
}

int main(void)
{
	const char *base = getenv("TMPDIR"), *n = getenv("BENCH_RUNS");

	if (!bench_wanted("storage.nbd."))
		return 0;
	if (n && strtoul(n, NULL, 10) > 0)
		runs = (unsigned)MIN(strtoul(n, NULL, 10), (unsigned long)RUNS_MAX);
	if (!have("fio --enghelp 2>/dev/null | grep -q nbd"))
		return 0;
	snprintf(dir, sizeof(dir), "%.60s/vmd-nbd-XXXXXX", base ? base : "/var/tmp");
	if (!mkdtemp(dir))
		die(dir);
	snprintf(image, sizeof(image), "%s/image", dir);
	snprintf(sock, sizeof(sock), "%s/sock", dir);
	if (have("command -v qemu-nbd >/dev/null")) {
		image_ready = false;
		figure(false, QEMU);
		figure(true, QEMU);
	}
	if (have("command -v nbdkit >/dev/null")) {
		image_ready = false;
		figure(false, NBDKIT);
		figure(true, NBDKIT);
	}
	unlink(image);
	unlink(sock);
	return rmdir(dir) < 0;
}
