/* storage_bench.c - the disk layer beside qemu-img, one JSON object a line (the contract's format).
 *
 * Both run the same pattern in the same files' directory, in turns, and the medians are compared.
 * "ratio" is ours over the peer's for rates (above 1 is better), and for times and sizes ours over
 * the peer's too (below 1 is better). Figures named *.of_raw give our rate over QEMU's on a raw
 * file.
 * TMPDIR says where (default /var/tmp), BENCH_RUNS how often, ONLY which.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/loop.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/blockdev.h"
#include "storage/job.h"
#include "storage/live.h"
#include "tests/bench/only.h"

#define DISK	 (2 * GIB)
#define STRIDE	 1327181824ULL
#define RUNS_MAX 15

static char dir[200];
static unsigned runs = 5;
static const char *const aio_opts[] = { "aio=on", NULL };

static void die(const char *what)
{
	fprintf(stderr, "storage_bench: %s: %s\n", what, strerror(errno));
	exit(1);
}

__attribute__((format(printf, 1, 2))) static void sh(const char *fmt, ...)
{
	char cmd[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	if (system(cmd) != 0) {
		fprintf(stderr, "storage_bench: failed: %s\n", cmd);
		exit(1);
	}
}

static const char *path(const char *name)
{
	static char ring[8][600];
	static unsigned next;
	char *p = ring[next++ % 8];

	snprintf(p, 600, "%s/%.300s", dir, name);
	return p;
}

static int open_file(const char *name, int flags)
{
	int fd = open(path(name), flags | O_CLOEXEC, 0600);

	if (fd < 0)
		die(path(name));
	return fd;
}

/* --- our side ----------------------------------------------------------------------------------
 */

struct run {
	struct loop *loop;
	struct blk_queue *q;
	enum blk_op op;
	uint64_t issued, done, count, pos, flush_every, stride;
	bool flushing;
	struct slot *slots;
	unsigned depth;
	int error;
};

struct slot {
	struct blk_req r;
	struct iovec v;
	struct run *run;
};

static void slot_done(struct blk_req *r, int result);

static void slot_issue(struct slot *s)
{
	struct run *run = s->run;

	if (run->issued >= run->count)
		return;
	s->r.op = run->op;
	s->r.off_bytes = run->pos;
	s->r.len_bytes = 4096;
	s->r.iov = &s->v;
	s->r.niov = 1;
	run->pos = (run->pos + run->stride) % (DISK - 4096);
	run->pos = ALIGN_DOWN(run->pos, 4096ULL);
	run->issued++;
	blk_submit(run->q, &s->r);
}

static void slot_done(struct blk_req *r, int result)
{
	struct slot *s = r->arg;
	struct run *run = s->run;

	if (result)
		run->error = result;
	if (r->op == BLK_FLUSH) {
		run->flushing = false;
		for (unsigned i = 0; i < run->depth; i++)
			slot_issue(&run->slots[i]);
	} else {
		run->done++;
		/* as qemu-img bench: at a flush, the requests before it drain first */
		if (run->flush_every && run->issued % run->flush_every == 0) {
			if (run->done == run->issued && !run->flushing) {
				run->flushing = true;
				s->r.op = BLK_FLUSH;
				s->r.len_bytes = 0;
				blk_submit(run->q, &s->r);
			}
			goto out;
		}
		slot_issue(s);
	}
out:
	if (run->done >= run->count && !run->flushing)
		loop_stop(run->loop);
}

/* ours_rate() - operations a second on an opened graph. */
static double ours_rate(struct blockdev *bd, enum blk_op op, uint64_t count, unsigned depth,
			unsigned flush_every)
{
	struct err e = { 0 };
	struct run run = { .loop = loop_new(),
			   .op = op,
			   .count = count,
			   .flush_every = flush_every,
			   .stride = STRIDE,
			   .depth = flush_every ? MIN(depth, flush_every) : depth };
	uint64_t t0;
	void *mem = NULL;

	run.q = blk_queue_new(bd, run.loop, &e);
	run.slots = calloc(run.depth, sizeof(*run.slots));
	if (!run.q || !run.slots || posix_memalign(&mem, 4096, run.depth * 4096UL))
		die("queue");
	memset(mem, 0xa5, run.depth * 4096UL);
	t0 = clock_mono_ns();
	for (unsigned i = 0; i < run.depth; i++) {
		run.slots[i].run = &run;
		run.slots[i].v = (struct iovec){ (char *)mem + i * 4096UL, 4096 };
		run.slots[i].r.done = slot_done;
		run.slots[i].r.arg = &run.slots[i];
		slot_issue(&run.slots[i]);
	}
	loop_run(run.loop);
	t0 = clock_mono_ns() - t0;
	blk_queue_free(run.q);
	loop_free(run.loop);
	free(run.slots);
	free(mem);
	if (run.error) {
		errno = -run.error;
		die("request");
	}
	return count * 1e9 / t0;
}

static struct blockdev *ours_open(const char *name, const char *driver,
				  const struct blk_spec *backing, bool ro)
{
	static const char *const opts[] = { "backing=ignore", "aio=on", NULL };
	struct err e = { 0 };
	struct blk_spec s = { .driver = driver,
			      .label = name,
			      .fd = open_file(name, ro ? O_RDONLY : O_RDWR),
			      .read_only = ro,
			      .discard = true,
			      .backing = backing,
			      .opts = backing ? NULL : opts };
	struct blockdev *bd = blk_open(&s, &e);

	if (!bd) {
		fprintf(stderr, "storage_bench: %s\n", e.detail);
		exit(1);
	}
	return bd;
}

static void ours_create(const char *name, const char *backing, const char *fmt)
{
	struct err e = { 0 };
	struct qcow2_create c = { .size_bytes = DISK,
				  .backing_name = backing,
				  .backing_format = fmt };
	int fd = open_file(name, O_RDWR | O_CREAT | O_TRUNC);

	if (qcow2_create(fd, &c, &e) < 0) {
		fprintf(stderr, "storage_bench: %s\n", e.detail);
		exit(1);
	}
	close(fd);
}

/* --- the peer ------------------------------------------------------------------------------------
 */

static double peer_rate(const char *fmt, const char *name, bool write, uint64_t count,
			unsigned depth, unsigned flush_every)
{
	char cmd[1200], line[200], flush[40] = "";
	double s = 0;
	FILE *f;

	if (flush_every)
		snprintf(flush, sizeof(flush), "--flush-interval=%u", flush_every);
	snprintf(cmd, sizeof(cmd),
		 "qemu-img bench %s %s -t none -i io_uring -f %s -c %llu -d %u -s 4k -S %llu '%s'",
		 write ? "-w" : "", flush, fmt, (unsigned long long)count, depth, STRIDE,
		 path(name));
	f = popen(cmd, "r");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "Run completed in %lf", &s);
	if (!f || pclose(f) != 0 || s <= 0) {
		fprintf(stderr, "storage_bench: failed: %s\n", cmd);
		exit(1);
	}
	return count / s;
}

/* --- figures
 * -------------------------------------------------------------------------------------- */

static int cmp_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *v, unsigned n)
{
	qsort(v, n, sizeof(*v), cmp_double);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static void figure(const char *name, const char *unit, double *ours, double *peer,
		   const char *peer_name, unsigned n, bool rate, const char *note)
{
	double o = median(ours, n), worst = rate ? ours[0] : ours[n - 1];

	printf("{\"figure\":\"%s\",\"unit\":\"%s\",\"ours\":%.6g", name, unit, o);
	if (peer)
		printf(",\"peer\":%.6g,\"peer_name\":\"%s\",\"ratio\":%.3f", median(peer, n),
		       peer_name, o / median(peer, n));
	printf(",\"runs\":%u,\"ours_p99\":%.6g,\"note\":\"%s\"}\n", n, worst, note);
	fflush(stdout);
}

/* bytes written to the disk under the directory: /proc/diskstats would count others; ours by
 * getrusage is rounded. The file system's own counter is taken from /proc/self/io around our run.
  */
static uint64_t written_bytes(void)
{
	char line[100];
	unsigned long long v = 0;
	FILE *f = fopen("/proc/self/io", "r");

	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "write_bytes: %llu", &v);
	if (f)
		fclose(f);
	return v;
}

static void raw_make(const char *name)
{
	sh("test -s '%s' || { fallocate -l %llu '%s' && dd if=/dev/urandom of='%s' bs=1M "
	   "count=%llu conv=notrunc status=none oflag=direct; }",
	   path(name), DISK, path(name), path(name), DISK / MIB);
}

static void fig_raw(bool write)
{
	double ours[RUNS_MAX], peer[RUNS_MAX];
	const char *name = write ? "storage.raw.write_qd64" : "storage.raw.read_qd64";

	if (!bench_wanted(name))
		return;
	raw_make("raw");
	for (unsigned i = 0; i < runs; i++) {
		struct blockdev *bd = ours_open("raw", "file", NULL, false);

		ours[i] = ours_rate(bd, write ? BLK_WRITE : BLK_READ, 20000, 64, 0);
		blk_close(bd);
		peer[i] = peer_rate("raw", "raw", write, 20000, 64, 0);
	}
	figure(name, "ops/s", ours, peer, "qemu-img bench io_uring", runs, true,
	       "4K random, O_DIRECT");
}

/* fresh writes into an overlay; the peer with its defaults, and raw as the yardstick */
static void fig_fresh(unsigned flush_every)
{
	double ours[RUNS_MAX], peer[RUNS_MAX], tuned[RUNS_MAX], raw[RUNS_MAX], bytes[RUNS_MAX];
	const char *name = flush_every ? "storage.overlay.fresh_write_flush32"
				       : "storage.overlay.fresh_write_qd64";
	uint64_t count = flush_every ? 2000 : 12000;
	unsigned depth = flush_every ? 32 : 64;
	char of_raw[100];

	if (!bench_wanted(name))
		return;
	raw_make("raw");
	raw_make("base");
	for (unsigned i = 0; i < runs; i++) {
		struct err e = { 0 };
		struct blk_spec back = { .driver = "file",
					 .label = "base",
					 .read_only = true,
					 .cache = BLK_CACHE_WRITEBACK };
		struct blk_spec s = { .driver = "qcow2",
				      .label = "ours",
				      .discard = true,
				      .backing = &back,
				      .opts = aio_opts };
		struct blockdev *bd;
		uint64_t w0;

		raw[i] = peer_rate("raw", "raw", true, count, depth, flush_every);
		ours_create("ours", path("base"), "raw");
		back.fd = open_file("base", O_RDONLY);
		s.fd = open_file("ours", O_RDWR);
		bd = blk_open(&s, &e);
		if (!bd) {
			fprintf(stderr, "storage_bench: %s\n", e.detail);
			exit(1);
		}
		w0 = written_bytes();
		ours[i] = ours_rate(bd, BLK_WRITE, count, depth, flush_every);
		bytes[i] = (double)(written_bytes() - w0) / count;
		if (blk_close(bd) < 0)
			die("close");
		sh("qemu-img check -q -f qcow2 '%s'", path("ours"));
		sh("rm -f '%s'; qemu-img create -q -f qcow2 -F raw -b '%s' '%s'", path("peer"),
		   path("base"), path("peer"));
		peer[i] = peer_rate("qcow2", "peer", true, count, depth, flush_every);
		sh("rm -f '%s'; qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k -F "
		   "raw -b '%s' '%s'",
		   path("peer"), path("base"), path("peer"));
		tuned[i] = peer_rate("qcow2", "peer", true, count, depth, flush_every);
		sh("rm -f '%s' '%s'", path("peer"), path("ours"));
	}
	figure(name, "ops/s", ours, peer, "qemu-img bench io_uring", runs, true,
	       "4K stride, overlay over raw, O_DIRECT");
	snprintf(of_raw, sizeof(of_raw), "%s.tuned", name);
	figure(of_raw, "ops/s", ours, tuned, "qemu-img bench, 128K extended L2", runs, true, "");
	snprintf(of_raw, sizeof(of_raw), "%s.of_raw", name);
	figure(of_raw, "ops/s", ours, raw, "qemu-img bench, raw file", runs, true,
	       "target: 0.95, with flushes 0.6");
	snprintf(of_raw, sizeof(of_raw), "%s.bytes_per_op", name);
	figure(of_raw, "bytes", bytes, NULL, NULL, runs, false,
	       "bytes sent to the block layer by our process; target with flushes: 8192");
}

/* a chain of @depth layers, each with its share of the clusters */
static void fig_chain(void)
{
	const char *name = "storage.chain20.random_read";
	double ours[RUNS_MAX], peer[RUNS_MAX], raw[RUNS_MAX];
	struct blk_spec specs[21];
	char names[21][16];

	if (!bench_wanted(name))
		return;
	raw_make("raw");
	for (unsigned i = 0; i < 20; i++) {
		struct err e = { 0 };
		struct blockdev *bd;

		snprintf(names[i], sizeof(names[i]), "chain%u", i);
		specs[i] = (struct blk_spec){ .driver = "qcow2",
					      .label = names[i],
					      .discard = true,
					      .opts = aio_opts,
					      .backing = i ? &specs[i - 1] : NULL };
		ours_create(names[i], i ? path(names[i - 1]) : NULL, i ? "qcow2" : NULL);
		for (unsigned k = 0; k <= i; k++) {
			specs[k].fd = open_file(names[k], k == i ? O_RDWR : O_RDONLY);
			specs[k].read_only = k != i;
		}
		bd = blk_open(&specs[i], &e);
		if (!bd) {
			fprintf(stderr, "storage_bench: %s\n", e.detail);
			exit(1);
		}
		/* the first layer holds all; each later one rewrites a twentieth, whole clusters,
		 * spread */
		char *buf = malloc(MIB);

		memset(buf, i + 1, MIB);
		for (uint64_t off = 0; off < DISK && i == 0; off += MIB)
			if (blk_pwrite(bd, buf, MIB, off) < 0)
				die("fill");
		for (uint64_t c = i; c < DISK / (128 * KIB) && i; c += 20)
			if (blk_pwrite(bd, buf, 128 * KIB, c * 128 * KIB) < 0)
				die("fill");
		free(buf);
		if (blk_close(bd) < 0)
			die("close");
	}
	for (unsigned i = 0; i < runs; i++) {
		struct err e = { 0 };
		struct blockdev *bd;

		raw[i] = peer_rate("raw", "raw", false, 20000, 64, 0);
		for (unsigned k = 0; k < 20; k++) {
			specs[k].fd = open_file(names[k], O_RDONLY);
			specs[k].read_only = true;
		}
		bd = blk_open(&specs[19], &e);
		if (!bd)
			die("chain");
		ours[i] = ours_rate(bd, BLK_READ, 20000, 64, 0);
		blk_close(bd);
		peer[i] = peer_rate("qcow2", "chain19", false, 20000, 64, 0);
	}
	figure(name, "ops/s", ours, peer, "qemu-img bench io_uring", runs, true,
	       "4K stride, 20 qcow2 layers, same files");
	figure("storage.chain20.random_read.of_raw", "ops/s", ours, raw, "qemu-img bench, raw file",
	       runs, true, "target: 0.95");
	sh("rm -f '%s'/chain*", dir);
}

/* overwriting a full disk just after a snapshot: ours is a new top layer, made under the open disk;
 * the peer's is one inside the image */
static void fig_after_snapshot(void)
{
	const char *name = "storage.snapshot.overwrite";
	static const char *const opts[] = { "backing=ignore", "aio=on", NULL };
	double ours[RUNS_MAX], peer[RUNS_MAX], raw[RUNS_MAX], took[RUNS_MAX];

	if (!bench_wanted("storage.snapshot."))
		return;
	raw_make("raw");
	sh("qemu-img convert -f raw -O qcow2 '%s' '%s' && cp --reflink=auto '%s' '%s'", path("raw"),
	   path("full"), path("full"), path("pfull"));
	for (unsigned i = 0; i < runs; i++) {
		struct blk_spec over = {
			.driver = "qcow2", .label = "over", .discard = true, .opts = opts
		};
		struct blockdev *bd = ours_open("full", "qcow2", NULL, false);
		struct blk_live_overlay v = { bd, &over };
		struct err e = { 0 };
		uint64_t t0;

		raw[i] = peer_rate("raw", "raw", true, 12000, 64, 0);
		ours_create("over", path("full"), "qcow2");
		over.fd = open_file("over", O_RDWR);
		t0 = clock_mono_ns();
		if (blk_live_snapshot(&v, 1, &e) < 0) {
			fprintf(stderr, "storage_bench: %s\n", e.detail);
			exit(1);
		}
		took[i] = (clock_mono_ns() - t0) / 1e6;
		ours[i] = ours_rate(bd, BLK_WRITE, 12000, 64, 0);
		if (blk_close(bd) < 0)
			die("close");
		sh("qemu-img check -q -f qcow2 '%s'; rm -f '%s'", path("over"), path("over"));
		sh("qemu-img snapshot -c s '%s'", path("pfull"));
		peer[i] = peer_rate("qcow2", "pfull", true, 3000, 64, 0);
		sh("qemu-img snapshot -d s '%s'", path("pfull"));
	}
	sh("rm -f '%s' '%s'", path("full"), path("pfull"));
	figure(name, "ops/s", ours, peer, "qemu-img bench after qemu-img snapshot -c", runs, true,
	       "4K stride over a full qcow2, O_DIRECT");
	figure("storage.snapshot.overwrite.of_raw", "ops/s", ours, raw, "qemu-img bench, raw file",
	       runs, true, "target: 0.8");
	figure("storage.snapshot.live", "ms", took, NULL, NULL, runs, false,
	       "a new top layer under an open disk");
}

static void fig_clones(void)
{
	double ours[RUNS_MAX] = { 0 }, peer[RUNS_MAX] = { 0 };
	double size[RUNS_MAX] = { 0 }, peer_size[RUNS_MAX] = { 0 };

	if (!bench_wanted("storage.clones."))
		return;
	sh("qemu-img create -q -f qcow2 '%s' 2G", path("template"));
	for (unsigned i = 0; i < runs; i++) {
		char name[64];
		struct stat st;
		uint64_t t0;
		int dfd;

		/* directories of their own, deleted when all is measured: ext4 walks past every
		 * inode deleted in the last seconds before it takes one (recently_deleted), which
		 * makes a thousand new files after a thousand deleted ones ten times as dear */
		sh("mkdir -p '%s/clones%u' '%s/peers%u'; sync -f '%s'", dir, i, dir, i, dir);
		t0 = clock_mono_ns();
		for (unsigned k = 0; k < 1000; k++) {
			snprintf(name, sizeof(name), "clones%u/c%u", i, k);
			ours_create(name, "template", "qcow2");
		}
		dfd = open(path(name), O_RDONLY | O_CLOEXEC);
		if (dfd < 0 || syncfs(dfd) < 0)
			die("syncfs");
		close(dfd);
		ours[i] = (clock_mono_ns() - t0) / 1e9;
		if (stat(path(name), &st) < 0)
			die("stat");
		size[i] = st.st_blocks * 512.0 / 1024;
		/* a tenth of the thousand, times ten: it takes nine seconds otherwise */
		t0 = clock_mono_ns();
		for (unsigned k = 0; k < 100; k++) {
			snprintf(name, sizeof(name), "peers%u/c%u", i, k);
			sh("qemu-img create -q -f qcow2 -F qcow2 -b '%s' '%s'", path("template"),
			   path(name));
		}
		peer[i] = (clock_mono_ns() - t0) / 1e8;
		if (stat(path(name), &st) < 0)
			die("stat");
		peer_size[i] = st.st_blocks * 512.0 / 1024;
	}
	sh("rm -rf '%s'/clones* '%s'/peers* '%s'", dir, dir, path("template"));
	figure("storage.clones.1000", "s", ours, peer, "qemu-img create (100 timed)", runs, false,
	       "durable; target 0.2");
	figure("storage.clones.size", "KiB", size, peer_size, "qemu-img create", runs, false,
	       "target 16");
}

static uint64_t private_dirty(void)
{
	char line[200];
	unsigned long long v = 0;
	FILE *f = fopen("/proc/self/smaps_rollup", "r");

	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "Private_Dirty: %llu", &v);
	if (f)
		fclose(f);
	return v * KIB;
}

/* idle_once() - in a child of its own, for a used heap would hide what a disk takes. */
static double idle_once(unsigned n)
{
	struct blockdev *bd[100];
	struct blk_queue *q[100];
	struct loop *l;
	struct err e = { 0 };
	uint64_t before;
	char buf[4096];
	double kib;
	int p[2], st;
	pid_t pid = -1;

	if (pipe(p) < 0 || (pid = fork()) < 0)
		die("fork");
	if (pid) {
		close(p[1]);
		if (read(p[0], &kib, sizeof(kib)) != sizeof(kib) || waitpid(pid, &st, 0) != pid ||
		    st)
			die("idle disk");
		close(p[0]);
		return kib;
	}
	l = loop_new();
	memset(buf, 1, sizeof(buf));
	before = private_dirty();
	for (unsigned k = 0; k < n; k++) {
		char name[32];

		snprintf(name, sizeof(name), "idle%u", k);
		bd[k] = ours_open(name, "qcow2", NULL, false);
		q[k] = blk_queue_new(bd[k], l, &e);
		/* used once, then idle: the map's slices stay */
		if (!q[k] || blk_pwrite(bd[k], buf, sizeof(buf), 0) < 0 || blk_flush(bd[k]) < 0)
			_exit(1);
	}
	kib = (double)(private_dirty() - before) / n / KIB;
	_exit(write(p[1], &kib, sizeof(kib)) == sizeof(kib) ? 0 : 1);
}

static void fig_idle(void)
{
	double ours[RUNS_MAX];
	unsigned n = 100;

	if (!bench_wanted("storage.idle"))
		return;
	for (unsigned i = 0; i < runs; i++) {
		for (unsigned k = 0; k < n; k++) {
			char name[32];

			snprintf(name, sizeof(name), "idle%u", k);
			ours_create(name, NULL, NULL);
		}
		ours[i] = idle_once(n);
		sh("rm -f '%s'/idle*", dir);
	}
	figure("storage.idle.memory", "KiB", ours, NULL, NULL, runs, false,
	       "Private_Dirty a disk, written once; QEMU measured 1200; target 64");
}

/* zstd convert of a file system's worth of ordinary files: this machine's /usr, 512 MiB of it */
static void fig_convert(void)
{
	double ours[RUNS_MAX] = { 0 }, peer[RUNS_MAX] = { 0 };
	double size[RUNS_MAX] = { 0 }, peer_size[RUNS_MAX] = { 0 };
	struct stat st;

	if (!bench_wanted("storage.convert"))
		return;
	sh("{ tar cf - -C / usr/lib usr/share usr/bin 2>/dev/null || true; } | head -c 512M >'%s' "
	   "&& truncate -s 1G '%s'",
	   path("fs.raw"), path("fs.raw"));
	for (unsigned i = 0; i < MIN(runs, 3u); i++) {
		struct err e = { 0 };
		struct blk_spec src = { .driver = "file",
					.label = "fs",
					.read_only = true,
					.cache = BLK_CACHE_WRITEBACK };
		struct blkjob_target t = { .driver = "qcow2",
					   .compress = true,
					   .create = { .zstd = true } };
		uint64_t t0 = clock_mono_ns();

		src.fd = open_file("fs.raw", O_RDONLY);
		t.fd = open_file("o.q", O_RDWR | O_CREAT | O_TRUNC);
		if (blkjob_convert(NULL, &src, &t, &e) < 0) {
			fprintf(stderr, "storage_bench: %s\n", e.detail);
			exit(1);
		}
		ours[i] = (clock_mono_ns() - t0) / 1e9;
		if (stat(path("o.q"), &st) < 0)
			die("stat");
		size[i] = st.st_blocks * 512.0 / MIB;
		sh("qemu-img compare -q -f raw -F qcow2 '%s' '%s'", path("fs.raw"), path("o.q"));
		t0 = clock_mono_ns();
		sh("qemu-img convert -c -W -m 8 -o compression_type=zstd -f raw -O qcow2 '%s' '%s' "
		   "&& sync -d '%s'",
		   path("fs.raw"), path("p.q"), path("p.q"));
		peer[i] = (clock_mono_ns() - t0) / 1e9;
		if (stat(path("p.q"), &st) < 0)
			die("stat");
		peer_size[i] = st.st_blocks * 512.0 / MIB;
	}
	figure("storage.convert.zstd", "s", ours, peer, "qemu-img convert -m 8", MIN(runs, 3u),
	       false, "512 MiB of files; target ratio 0.58");
	figure("storage.convert.zstd.size", "MiB", size, peer_size, "qemu-img convert -m 8",
	       MIN(runs, 3u), false, "");
}

int main(void)
{
	const char *base = getenv("TMPDIR"), *n = getenv("BENCH_RUNS");

	if (!bench_wanted("storage."))
		return 0;
	if (n && atoi(n) > 0)
		runs = MIN((unsigned)atoi(n), RUNS_MAX);
	snprintf(dir, sizeof(dir), "%.150s/vmd-bench-XXXXXX", base ? base : "/var/tmp");
	if (!mkdtemp(dir))
		die(dir);
	fig_raw(false);
	fig_raw(true);
	fig_fresh(0);
	fig_fresh(32);
	fig_chain();
	fig_after_snapshot();
	fig_clones();
	fig_idle();
	fig_convert();
	sh("rm -rf '%s'", dir);
	return 0;
}
