/* guest_io.c - what a guest measures of its own disk and network, and the other end of the wire.
 *
 *	guest_io blk DEVICE SECONDS	4 KiB random reads and writes at queue depth 32, 1 MiB
 *					sequential reads and writes at depth 4, O_DIRECT, kernel AIO
 *	guest_io net ADDRESS SECONDS	one TCP stream to ADDRESS:5001; one byte there and back, in turn
 *	guest_io serve			the other end
 * Prints "RESULT name value" lines. Static: it is the only program of the bench's initramfs besides
 * busybox.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_MAX 32
#define PORT	  5001

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what)
{
	fprintf(stderr, "guest_io: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* requests a second */
static double blk_run(int fd, uint64_t size, size_t block, unsigned depth, int write_it,
		      int random_it, double seconds)
{
	static struct iocb cb[DEPTH_MAX];
	static void *buf[DEPTH_MAX];
	struct iocb *list[DEPTH_MAX];
	struct io_event ev[DEPTH_MAX];
	aio_context_t ctx = 0;
	uint64_t blocks = size / block, next = 0, x = 88172645463325252ULL, done = 0;
	double start, end;

	if (syscall(SYS_io_setup, depth, &ctx) < 0)
		die("io_setup");
	for (unsigned i = 0; i < depth; i++) {
		if (posix_memalign(&buf[i], 4096, block))
			die("memory");
		memset(buf[i], (int)i + 1, block);
	}
	start = now();
	end = start + seconds;
	for (unsigned n = depth, first = 1; n; first = 0) {
		for (unsigned i = 0; i < n; i++) {
			unsigned slot = first ? i : (unsigned)ev[i].data;
			uint64_t at = next++ % blocks;

			if (random_it) {
				x ^= x << 13;
				x ^= x >> 7;
				x ^= x << 17;
				at = x % blocks;
			}
			cb[slot] = (struct iocb){ .aio_data = slot,
						  .aio_lio_opcode =
						      write_it ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
						  .aio_fildes = (uint32_t)fd,
						  .aio_buf = (uintptr_t)buf[slot],
						  .aio_nbytes = block,
						  .aio_offset = (int64_t)(at * block) };
			list[i] = &cb[slot];
		}
		if (syscall(SYS_io_submit, ctx, n, list) != (long)n)
			die("io_submit");
		n = (unsigned)syscall(SYS_io_getevents, ctx, 1, depth, ev, NULL);
		for (unsigned i = 0; i < n; i++)
			if (ev[i].res != (int64_t)block)
				die("a request failed");
		done += n;
		if (now() >= end)
			break;
	}
	end = now();
	syscall(SYS_io_destroy, ctx); /* waits for what is under way */
	for (unsigned i = 0; i < depth; i++)
		free(buf[i]);
	return (double)done / (end - start);
}

static int blk(const char *path, double seconds)
{
	int fd = open(path, O_RDWR | O_DIRECT);
	uint64_t size;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0)
		die(path);
	printf("RESULT randread %.1f\n", blk_run(fd, size, 4096, 32, 0, 1, seconds));
	printf("RESULT randwrite %.1f\n", blk_run(fd, size, 4096, 32, 1, 1, seconds));
	printf("RESULT seqread %.1f\n", blk_run(fd, size, 1 << 20, 4, 0, 0, seconds));
	printf("RESULT seqwrite %.1f\n", blk_run(fd, size, 1 << 20, 4, 1, 0, seconds));
	return 0;
}

static int dial(const char *address, char kind)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	inet_pton(AF_INET, address, &in.sin_addr);
	for (unsigned tries = 0; connect(fd, (struct sockaddr *)&in, sizeof(in)) < 0; tries++)
		if (tries > 50 || poll(NULL, 0, 100) < 0)
			die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (write(fd, &kind, 1) != 1)
		die("write");
	return fd;
}

static int net(const char *address, double seconds)
{
	static char buf[65536];
	double start, end;
	uint64_t n = 0;
	int fd = dial(address, 's');
	char c;

	for (start = now(), end = start + seconds; now() < end;) {
		ssize_t w = write(fd, buf, sizeof(buf));

		if (w <= 0)
			die("stream");
		n += (uint64_t)w;
	}
	shutdown(fd, SHUT_WR);
	if (read(fd, &c, 1) != 1) /* it has all of it */
		die("stream's end");
	printf("RESULT stream %.3f\n", (double)n / (now() - start) / (1 << 20));
	close(fd);
	fd = dial(address, 'r');
	for (n = 0, start = now(), end = start + seconds; now() < end; n++)
		if (write(fd, "x", 1) != 1 || read(fd, &c, 1) != 1)
			die("request");
	printf("RESULT requests %.1f\n", (double)n / (now() - start));
	close(fd);
	return 0;
}

static void serve(void)
{
	static char buf[1 << 20];
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int l = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(l, (struct sockaddr *)&in, sizeof(in)) < 0 || listen(l, 8) < 0)
		die("listen");
	for (;;) {
		int fd = accept(l, NULL, NULL);
		ssize_t n;
		char kind;

		if (fd < 0)
			die("accept");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (read(fd, &kind, 1) != 1)
			kind = 's';
		while ((n = read(fd, buf, kind == 's' ? sizeof(buf) : 1)) > 0)
			if (kind == 'r' && write(fd, buf, 1) != 1)
				break;
		if (n == 0 && kind == 's' && write(fd, "e", 1) != 1)
			perror("guest_io: end");
		close(fd);
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 4 && !strcmp(argv[1], "blk"))
		return blk(argv[2], strtod(argv[3], NULL));
	if (argc == 4 && !strcmp(argv[1], "net"))
		return net(argv[2], strtod(argv[3], NULL));
	if (argc == 2 && !strcmp(argv[1], "serve"))
		serve();
	fprintf(stderr, "usage: guest_io blk DEVICE SECONDS | net ADDRESS SECONDS | serve\n");
	return 2;
}
