/* main.c - vmd-image: one image job in a jail of its own, parsing what nobody trusts.
 *
 *	vmd-image            (descriptor 3: SOCK_SEQPACKET link to core; standard error: the log)
 * core sends the layers of each side (i_layer: side 0 = source or only, 1 = target or new parent;
 * top first) and then one i_run with the verb and "key=value" lines. Answer: i_progress now and
 * then, i_output with JSON where the verb has some, then result; then the process ends. i_cancel,
 * or the link's end, stops the job at its next step.
 * Threads: the main thread keeps the link, one thread does the job. Limits: seccomp and Landlock
 * before the first byte is read.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/overflow.h"
#include "common/sandbox.h"
#include "common/text.h"
#include "common/units.h"
#include "storage/bitmap.h"
#include "storage/job.h"
#include "storage/lease.h"
#include "storage/live.h"
#include "storage/nbd_server.h"
#include "vmd/proto.h"

#define IMAGE_SIDES	 2
#define IMAGE_LAYERS_MAX 512 /* files of one job; a chain is bounded by blk_open() */

struct image_job {
	struct loop *loop;
	struct wire_conn *conn;
	unsigned nlayers[IMAGE_SIDES];
	struct msg_i_layer *layers[IMAGE_SIDES];
	struct lease **leases[IMAGE_SIDES]; /* as layers; NULL: none */
	struct blk_spec *specs[IMAGE_SIDES];
	struct msg_i_run run;
	char export[270]; /* of the NBD server that a layer is a connection to */
	const char *nbd_opts[2];
	uint32_t run_id;
	bool running;
	_Atomic bool cancel;
	pthread_mutex_t serving_lock;
	struct loop *serving; /* the export's own loop, while it runs */
	_Atomic uint64_t done, total;
	struct loop_timer tick;
	struct text json;
	struct err err;
	uint64_t value;
	pthread_t thread;
};

/* ---- what the job may do ---- */

static const uint32_t image_clone[] = { CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND |
					CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
					CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID };
static const uint32_t image_fcntl[] = { F_GETFL,	 F_SETFL,     F_GETFD,	  F_SETFD,
					F_DUPFD_CLOEXEC, F_OFD_SETLK, F_OFD_GETLK };
static const uint32_t image_prctl[] = { PR_SET_NAME };
static const uint32_t image_empty_path[] = { AT_EMPTY_PATH };
static const uint32_t image_no_path[] = { 0 };

/* clang-format off */
static const struct sandbox_rule image_calls[] = {
	SB_ALLOW(read), SB_ALLOW(write), SB_ALLOW(readv), SB_ALLOW(writev), SB_ALLOW(pread64), SB_ALLOW(pwrite64),
	SB_ALLOW(preadv), SB_ALLOW(pwritev), SB_ALLOW(preadv2), SB_ALLOW(pwritev2), SB_ALLOW(lseek), SB_ALLOW(fstat),
	SB_ARG_IN(newfstatat, 3, image_empty_path, ARRAY_SIZE(image_empty_path)), SB_ALLOW(fallocate), SB_ALLOW(ftruncate), SB_ALLOW(fsync),
	SB_ALLOW(fdatasync), SB_ALLOW(syncfs), SB_ALLOW(sync_file_range), SB_ALLOW(fadvise64), SB_ALLOW(copy_file_range), SB_ALLOW(flock), SB_ALLOW(fstatfs),
	SB_ARG_IN(utimensat, 1, image_no_path, ARRAY_SIZE(image_no_path)), /* futimens() */
	SB_ALLOW(close), SB_ALLOW(dup), SB_ARG_IN(fcntl, 1, image_fcntl, ARRAY_SIZE(image_fcntl)),
	SB_ARG_IN(prctl, 0, image_prctl, ARRAY_SIZE(image_prctl)), SB_ARG_IN(clone, 0, image_clone, ARRAY_SIZE(image_clone)),
	SB_ERRNO(clone3, ENOSYS), SB_ALLOW(sched_getaffinity), SB_ALLOW(sched_yield), SB_ALLOW(futex), SB_ALLOW(brk),
	SB_NO_BITS(mmap, 2, PROT_EXEC), SB_NO_BITS(mprotect, 2, PROT_EXEC), SB_ALLOW(munmap), SB_ALLOW(mremap), SB_ALLOW(madvise),
	SB_ALLOW(epoll_create1), SB_ALLOW(epoll_ctl), SB_ALLOW(epoll_wait), SB_ALLOW(epoll_pwait), SB_ALLOW(eventfd2), SB_ALLOW(poll),
	SB_ALLOW(timerfd_create), SB_ALLOW(timerfd_settime), SB_ALLOW(recvmsg), SB_ALLOW(sendmsg), SB_ALLOW(recvfrom), SB_ALLOW(accept4),
	SB_ALLOW(clock_gettime),
	SB_ALLOW(clock_nanosleep), SB_ALLOW(getrandom), SB_ALLOW(getpid), SB_ALLOW(gettid), SB_ALLOW(rt_sigreturn),
	SB_ALLOW(rt_sigprocmask), SB_ALLOW(rt_sigaction), SB_ALLOW(restart_syscall), SB_ALLOW(set_robust_list), SB_ALLOW(rseq),
	SB_ALLOW(sigaltstack), SB_ALLOW(sysinfo), SB_ALLOW(prlimit64), SB_ALLOW(exit), SB_ALLOW(exit_group),
	SB_END,
};
/* clang-format on */

/* ---- arguments: "key=value" lines ---- */

static const char *image_arg(const struct image_job *j, const char *key, char buf[256])
{
	size_t n = strlen(key);

	for (const char *s = j->run.args; s && *s; s = strchr(s, '\n'), s += s != NULL)
		if (!strncmp(s, key, n) && s[n] == '=') {
			snprintf(buf, 256, "%.*s", (int)MIN(strcspn(s + n + 1, "\n"), 255u),
				 s + n + 1);
			return buf;
		}
	return NULL;
}

static uint64_t image_arg_u64(const struct image_job *j, const char *key)
{
	char buf[256];
	const char *v = image_arg(j, key, buf);

	return v ? strtoull(v, NULL, 10) : 0;
}

/* ---- the job's thread ---- */

static void image_progress(void *arg, uint64_t done, uint64_t total)
{
	struct image_job *j = arg;

	atomic_store(&j->done, done);
	atomic_store(&j->total, total);
}

static struct qcow2_create image_create_args(const struct image_job *j, char backing[256],
					     char format[256])
{
	return (struct qcow2_create){
		.size_bytes = image_arg_u64(j, "size"),
		.cluster_size = (uint32_t)image_arg_u64(j, "cluster_size"),
		.compat = image_arg_u64(j, "compat"),
		.lazy_refcounts = image_arg_u64(j, "lazy_refcounts"),
		.refcount_bits = (unsigned)image_arg_u64(j, "refcount_bits"),
		.zstd = image_arg_u64(j, "zstd"),
		.backing_name = image_arg(j, "backing", backing),
		.backing_format = image_arg(j, "backing_format", format),
	};
}

static int image_create(struct image_job *j, struct err *e)
{
	char backing[256], format[256];
	struct qcow2_create c = image_create_args(j, backing, format);
	struct msg_i_layer *l = j->layers[0];

	if (strcmp(l->driver, "qcow2")) {
		if (ftruncate(l->fd, (off_t)c.size_bytes) < 0)
			return err_set(e, errno, "create-failed", "%s: %s", l->label,
				       strerror(errno));
	} else {
		int ret = qcow2_create(l->fd, &c, e);

		if (ret < 0)
			return ret;
	}
	if (fsync(l->fd) < 0)
		return err_set(e, errno, "create-failed", "%s: %s", l->label, strerror(errno));
	/* side 1: what the new one lies over, whose bitmaps go on in it */
	if (j->nlayers[1] && !strcmp(j->layers[1][0].driver, "qcow2")) {
		int ret = blkjob_carry_bitmaps(j->specs[1], j->specs[0], e);

		j->layers[0][0].fd = j->layers[1][0].fd = -1;
		return ret;
	}
	return 0;
}

/* image_create_many() - each layer is a new image, all alike; durable at one stroke. */
static int image_create_many(struct image_job *j, struct err *e)
{
	char backing[256], format[256];
	struct qcow2_create c = image_create_args(j, backing, format);

	for (unsigned i = 0; i < j->nlayers[0]; i++) {
		int ret = qcow2_create(j->layers[0][i].fd, &c, e);

		if (ret < 0)
			return ret;
		image_progress(j, i, j->nlayers[0]);
		if (atomic_load(&j->cancel))
			return -ECANCELED;
	}
	if (syncfs(j->layers[0][0].fd) < 0)
		return err_set(e, errno, "create-failed", "the new disks cannot be made stable: %s",
			       strerror(errno));
	return 0;
}

static int image_check(struct image_job *j, struct err *e)
{
	struct blkjob_check c;
	char how[256];
	const char *repair = image_arg(j, "repair", how);
	int ret = blkjob_check(j->specs[0],
			       !repair			 ? BLKJOB_CHECK
			       : strcmp(repair, "leaks") ? BLKJOB_REPAIR_ALL
							 : BLKJOB_REPAIR_LEAKS,
			       &c, e);

	if (ret < 0)
		return ret;
	text_printf(
	    &j->json,
	    "{\"errors\":%llu,\"leaks\":%llu,\"errors_fixed\":%llu,\"leaks_fixed\":%llu,\"data_"
	    "clusters\":%llu,"
	    "\"compressed_clusters\":%llu,\"total_clusters\":%llu,\"image_end_bytes\":%llu}",
	    (unsigned long long)c.errors, (unsigned long long)c.leaks,
	    (unsigned long long)c.errors_fixed, (unsigned long long)c.leaks_fixed,
	    (unsigned long long)c.data_clusters, (unsigned long long)c.compressed_clusters,
	    (unsigned long long)c.total_clusters, (unsigned long long)c.image_end_bytes);
	j->value = c.errors;
	return 0;
}

static int image_convert(struct image_job *j, const struct blkjob *job, struct err *e)
{
	char backing[256], format[256];
	struct msg_i_layer *l = j->layers[1];
	struct blkjob_target t = { .driver = l ? l->driver : "",
				   .create = image_create_args(j, backing, format),
				   .compress = image_arg_u64(j, "compress"),
				   .level = (int)image_arg_u64(j, "level") };

	if (!l)
		return err_set(e, EINVAL, "no-target", "the job has no target");
	t.fd = take_fd(&l->fd);
	return blkjob_convert(job, j->specs[0], &t, e);
}

/* image_bitmap() - args: do=add|remove|enable|disable|clear|merge, name=, granularity=, source=. */
static int image_bitmap(struct image_job *j, struct err *e)
{
	char what[256], name[256], source[256];
	struct blockdev *bd;
	int ret, closed;

	if (!image_arg(j, "do", what) || !image_arg(j, "name", name))
		return err_set(e, EINVAL, "bad-bitmap",
			       "what to do and the bitmap's name are missing");
	bd = blk_open(j->specs[0], e);
	if (!bd)
		return -e->num;
	if (!strcmp(what, "add"))
		ret = blk_bitmap_create(bd, name, image_arg_u64(j, "granularity"),
					!image_arg_u64(j, "disabled"), e);
	else if (!strcmp(what, "remove"))
		ret = blk_bitmap_remove(bd, name, e);
	else if (!strcmp(what, "enable") || !strcmp(what, "disable"))
		ret = blk_bitmap_enable(bd, name, *what == 'e', e);
	else if (!strcmp(what, "clear"))
		ret = blk_bitmap_clear(bd, name, e);
	else if (!strcmp(what, "merge") && image_arg(j, "source", source))
		ret = blk_bitmap_merge(bd, name, source, e);
	else
		ret = err_set(e, EINVAL, "bad-bitmap",
			      "\"%s\" is not add, remove, enable, disable, clear or merge", what);
	closed = blk_close(bd);
	if (!ret && closed)
		ret = err_set(e, -closed, "disk-close", "%s: cannot be made stable: %s",
			      j->layers[0][0].label, strerror(-closed));
	return ret;
}

static int image_compact(struct image_job *j, const struct blkjob *job, struct err *e)
{
	uint64_t freed = 0;
	int ret = blkjob_compact(job, j->specs[0], &freed, e);

	if (!ret)
		text_printf(&j->json, "{\"freed_bytes\":%llu}", (unsigned long long)freed);
	j->value = freed;
	return ret;
}

/* image_bitmap_ready() - the bitmap of a full backup: it knows nothing yet */
static int image_bitmap_ready(struct blockdev *bd, const char *name, struct err *e)
{
	struct err there = { 0 };
	int ret = blk_bitmap_create(bd, name, 0, true, &there);

	if (ret == -EEXIST)
		return blk_bitmap_clear(bd, name, e);
	if (ret < 0)
		*e = there;
	return ret;
}

/* image_backup() - side 0 into side 1. args: bitmap=, incremental=1: only what the bitmap has. */
static int image_backup(struct image_job *j, const struct blkjob *job, struct err *e)
{
	char name[256];
	const char *bitmap = image_arg(j, "bitmap", name);
	bool incremental = image_arg_u64(j, "incremental");
	struct blk_backup_start start = { .bitmap = incremental ? bitmap : NULL };
	struct blk_backup *b = NULL;
	int ret = 0, closed;

	if (!j->specs[1])
		return err_set(e, EINVAL, "no-target", "the job has no target");
	start.bd = blk_open(j->specs[0], e);
	if (!start.bd)
		return -e->num;
	for (unsigned i = 0; i < j->nlayers[0]; i++)
		j->layers[0][i].fd = -1;
	start.target = j->specs[1];
	start.unknown = !strcmp(j->specs[1]->driver, "nbd");
	if (bitmap && !incremental)
		ret = image_bitmap_ready(start.bd, bitmap, e);
	if (!ret)
		ret = blk_backup_start(&start, 1, &b, e);
	if (!ret) {
		int end;
		struct err why = { 0 };

		for (unsigned i = 0; i < j->nlayers[1]; i++)
			j->layers[1][i].fd = -1;
		ret = blk_backup_run(b, job, e);
		end = blk_backup_end(b, &why);
		if (!ret && end) {
			ret = end;
			*e = why;
		}
	}
	closed = blk_close(start.bd);
	if (!ret && closed < 0)
		ret = err_set(e, -closed, "disk-close", "%s: cannot be made stable: %s",
			      j->layers[0][0].label, strerror(-closed));
	return ret;
}

static void image_serving(struct image_job *j, struct loop *l)
{
	pthread_mutex_lock(&j->serving_lock);
	j->serving = l;
	pthread_mutex_unlock(&j->serving_lock);
}

/* image_export() - serve side 0 over NBD on the listening socket of side 1 until cancelled. */
static int image_export(struct image_job *j, struct err *e)
{
	struct msg_i_layer *sock = j->layers[1];
	struct loop *l = loop_new();
	char name[256], bitmap[256];
	bool writable = image_arg_u64(j, "writable");
	struct nbd_server *s = NULL;
	struct blockdev *bd;
	int ret = -ENOMEM;

	if (!sock || strcmp(sock->driver, "socket")) {
		loop_free(l);
		return err_set(e, EINVAL, "no-socket", "the job has no socket to serve on");
	}
	bd = l ? blk_open(j->specs[0], e) : NULL;
	if (bd) {
		const char *n = image_arg(j, "name", name), *b = image_arg(j, "bitmap", bitmap);
		const char *const bitmaps[] = { b, NULL };
		struct nbd_export ex[] = {
			{ .name = "", .bd = bd, .read_only = !writable, .bitmaps = bitmaps },
			{ .name = n ? n : "disk",
			  .bd = bd,
			  .read_only = !writable,
			  .bitmaps = bitmaps },
		};

		for (unsigned i = 0; i < j->nlayers[0]; i++)
			j->layers[0][i].fd = -1; /* the graph's now */
		uint64_t run = 0;
		bool dirty;
		int has = b ? blk_bitmap_next(bd, b, 0, &run, &dirty) : 0;

		if (has < 0)
			err_set(e, -has, has == -ENOENT ? "bitmap-not-found" : "bitmap-stale",
				"%s: %s bitmap \"%s\"", j->layers[0]->label,
				has == -ENOENT ? "has no"
					       : "its disk was not closed in order: do not trust",
				b);
		else
			s = nbd_server_new(l, sock->fd, ex, ARRAY_SIZE(ex), NULL, e);
	}
	if (s) {
		atomic_store(&j->done, 1);
		atomic_store(&j->total, 1); /* core takes it for "it serves" */
		image_serving(j, l);
		ret = atomic_load(&j->cancel) ? 0 : loop_run(l);
		image_serving(j, NULL);
		nbd_server_free(s);
	}
	if (bd) {
		int closed = blk_close(bd);

		if (s && !ret && closed < 0)
			ret = err_set(e, -closed, "close-failed", "%s: %s", j->layers[0]->label,
				      strerror(-closed));
	}
	loop_free(l);
	return s ? ret : e->num ? -e->num : ret;
}

static int image_verb(struct image_job *j, struct err *e)
{
	struct blkjob job = { .progress = image_progress,
			      .arg = j,
			      .cancel = &j->cancel,
			      .threads = (unsigned)image_arg_u64(j, "threads"),
			      .max_output_bytes = image_arg_u64(j, "quota") };
	static const char *const verbs[] = { "create", "create-many", "import", "convert",
					     "info",   "check",	      "map",	"resize",
					     "commit", "compare",     "rebase", "snapshot-delete",
					     "bitmap", "compact",     "backup", "export",
					     "lease",  NULL };
	const char *v = j->run.verb;
	char name[256], format[256];
	int ret;

	if (!j->nlayers[0])
		return err_set(e, EINVAL, "no-image", "the job has no image");
	if (!strcmp(v, "create"))
		return image_create(j, e);
	if (!strcmp(v, "create-many"))
		return image_create_many(j, e);
	if (!strcmp(v, "backup"))
		return image_backup(j, &job, e);
	if (!strcmp(v, "export"))
		return image_export(j, e);
	if (!strcmp(v, "import") || !strcmp(v, "convert"))
		return image_convert(j, &job, e);
	if (!strcmp(v, "check"))
		return image_check(j, e);
	if (!strcmp(v, "lease")) /* it is free, or went stale: that was asked */
		return 0;
	if (!strcmp(v, "info"))
		ret = blkjob_info(j->specs[0], &j->json, e);
	else if (!strcmp(v, "map"))
		ret = blkjob_map(&job, j->specs[0], &j->json, e);
	else if (!strcmp(v, "resize"))
		ret = blkjob_resize(&job, j->specs[0], image_arg_u64(j, "size"),
				    image_arg_u64(j, "force"), e);
	else if (!strcmp(v, "commit"))
		ret = blkjob_commit(&job, j->specs[0], e);
	else if (!strcmp(v, "compare") && j->nlayers[1])
		ret = blkjob_compare(&job, j->specs[0], j->specs[1], &j->value, e);
	else if (!strcmp(v, "rebase"))
		ret = blkjob_rebase(&job, j->specs[0], j->specs[1], image_arg(j, "backing", name),
				    image_arg(j, "backing_format", format),
				    image_arg_u64(j, "unsafe"), e);
	else if (!strcmp(v, "bitmap"))
		ret = image_bitmap(j, e);
	else if (!strcmp(v, "compact"))
		ret = image_compact(j, &job, e);
	else if (!strcmp(v, "snapshot-delete") && image_arg(j, "snapshot", name))
		ret = blkjob_snapshot_delete(j->specs[0], name, e);
	else {
		ret = err_set(e, EINVAL, "unknown-verb",
			      "image jobs have no verb \"%s\" of that shape", v);
		if (suggest(v, verbs))
			err_hint(e, "did you mean %s?", suggest(v, verbs));
		return ret;
	}
	/* the specs' files belong to the job once it opened them */
	for (unsigned side = 0; side < IMAGE_SIDES; side++)
		for (unsigned i = 0; i < j->nlayers[side]; i++)
			j->layers[side][i].fd = -1;
	if (!strcmp(v, "compare") && ret == 1) {
		text_printf(&j->json, "{\"equal\":false,\"first_difference\":%llu}",
			    (unsigned long long)j->value);
		ret = 0;
	} else if (!strcmp(v, "compare") && !ret) {
		text_add(&j->json, "{\"equal\":true}");
	}
	return ret;
}

static void image_ended(void *arg)
{
	struct image_job *j = arg;
	struct msg_result m = {
		.num = (uint64_t)j->err.num, .value = j->value, .fd = -1, .fd2 = -1
	};

	pthread_join(j->thread, NULL);
	for (size_t off = 0; j->conn && j->json.len && !j->err.num;) {
		size_t n = MIN(j->json.len - off, (size_t)48000);
		struct msg_i_output o = { .json = { (const uint8_t *)j->json.s + off, n },
					  .more = off + n < j->json.len };

		msg_i_output_send(j->conn, &o, j->run_id);
		off += n;
		if (off >= j->json.len)
			break;
	}
	memcpy(m.code, j->err.code, sizeof(m.code));
	memcpy(m.detail, j->err.detail, sizeof(m.detail));
	memcpy(m.hint, j->err.hint, sizeof(m.hint));
	if (j->conn)
		msg_result_send(j->conn, &m, j->run_id);
	if (!j->conn || !wire_conn_queued(j->conn))
		loop_stop(j->loop);
	else
		j->running = false; /* the link's end, or an empty queue, ends us */
}

/* image_leases() - of what is written on a pool of several hosts. May wait for one that went stale. */
static int image_leases(struct image_job *j, struct err *e)
{
	for (unsigned side = 0; side < IMAGE_SIDES; side++)
		for (unsigned i = 0; i < j->nlayers[side]; i++) {
			struct msg_i_layer *m = &j->layers[side][i];
			struct lease_owner who = { 0 };

			/* the layers of a disk go by its own */
			if (m->lease_fd < 0 && i)
				j->specs[side][i].lease = j->specs[side][i - 1].lease;
			if (m->lease_fd < 0)
				continue;
			memcpy(who.name, m->lease_owner, sizeof(who.name));
			memcpy(who.file, m->lease_file, sizeof(who.file));
			memcpy(who.host, m->lease_host, sizeof(who.host));
			j->leases[side][i] =
			    lease_hold(m->lease_fd, &who, m->lease_ms, &j->cancel, e);
			if (!j->leases[side][i]) {
				err_prefix(e, "%s", m->label);
				return -e->num;
			}
			m->lease_fd = -1;
			j->specs[side][i].lease = j->leases[side][i];
		}
	return 0;
}

static void image_leases_end(struct image_job *j)
{
	for (unsigned side = 0; side < IMAGE_SIDES; side++)
		for (unsigned i = 0; i < j->nlayers[side]; i++)
			lease_let_go(j->leases[side][i]);
}

static void *image_thread(void *arg)
{
	struct image_job *j = arg;
	int ret = image_leases(j, &j->err);

	if (!ret)
		ret = image_verb(j, &j->err);
	image_leases_end(j);

	if (ret < 0 && !j->err.num)
		err_set(&j->err, -ret, ret == -ECANCELED ? "cancelled" : "job-failed", "%s: %s",
			j->run.verb, strerror(-ret));
	if (loop_post(j->loop, image_ended, j) < 0)
		_exit(1);
	return NULL;
}

/* ---- the link ---- */

static void image_tick(void *arg)
{
	struct image_job *j = arg;
	struct msg_i_progress m = { .done = atomic_load(&j->done),
				    .total = atomic_load(&j->total) };

	if (!j->running) {
		if (!j->conn || !wire_conn_queued(j->conn))
			loop_stop(j->loop);
	} else if (j->conn && m.total) {
		msg_i_progress_send(j->conn, &m, j->run_id);
	}
	loop_timer_after(&j->tick, 200 * NS_PER_MS);
}

static int image_add_layer(struct image_job *j, struct msg_i_layer *m, struct err *e)
{
	if (m->side >= IMAGE_SIDES || m->fd < 0 || j->running || m->layer != j->nlayers[m->side] ||
	    m->layer >= IMAGE_LAYERS_MAX)
		return err_set(e, EINVAL, "bad-layer",
			       "layer %llu of side %llu is out of order or has no file",
			       (unsigned long long)m->layer, (unsigned long long)m->side);
	struct msg_i_layer *l = realloc(j->layers[m->side], (m->layer + 1) * sizeof(*l));

	if (!l)
		return err_set(e, ENOMEM, "no-memory", "out of memory");
	j->layers[m->side] = l;
	l[j->nlayers[m->side]++] = *m;
	m->fd = m->lease_fd = -1;
	return 0;
}

static int image_start(struct image_job *j, struct msg_i_run *m, struct err *e)
{
	if (j->running)
		return err_set(e, EBUSY, "job-running", "a job does one thing");
	static const char *const no_lock[] = { "lock=off", NULL };
	char lock[256], name[256];

	j->run = *m;
	bool unlocked = image_arg(j, "lock", lock) != NULL;

	snprintf(j->export, sizeof(j->export), "export=%s",
		 image_arg(j, "export", name) ? name : "");
	j->nbd_opts[0] = j->export;

	for (unsigned side = 0; side < IMAGE_SIDES; side++) {
		unsigned n = j->nlayers[side];

		j->specs[side] = n ? calloc(n, sizeof(struct blk_spec)) : NULL;
		j->leases[side] = n ? calloc(n, sizeof(struct lease *)) : NULL;
		if (n && (!j->specs[side] || !j->leases[side]))
			return err_set(e, ENOMEM, "no-memory", "out of memory");
		for (unsigned i = 0; i < n; i++)
			j->specs[side][i] = (struct blk_spec){
				.driver = j->layers[side][i].driver,
				.label = j->layers[side][i].label,
				.fd = j->layers[side][i].fd,
				.read_only = j->layers[side][i].read_only,
				.discard = true,
				.cache = BLK_CACHE_WRITEBACK,
				.opts = unlocked				    ? no_lock
					: !strcmp(j->layers[side][i].driver, "nbd") ? j->nbd_opts
										    : NULL,
				.backing = i + 1 < n ? &j->specs[side][i + 1] : NULL
			};
	}
	int ret = pthread_create(&j->thread, NULL, image_thread, j);

	if (ret)
		return err_set(e, ret, "no-thread", "cannot start the job's thread: %s",
			       strerror(ret));
	j->running = true;
	loop_timer_after(&j->tick, 200 * NS_PER_MS);
	return 0;
}

static void image_answer(struct image_job *j, uint32_t id, const struct err *e)
{
	struct msg_result m = { .num = (uint64_t)e->num, .fd = -1, .fd2 = -1 };

	memcpy(m.code, e->code, sizeof(m.code));
	memcpy(m.detail, e->detail, sizeof(m.detail));
	memcpy(m.hint, e->hint, sizeof(m.hint));
	if (id)
		msg_result_send(j->conn, &m, id);
}

static void image_stop(struct image_job *j)
{
	atomic_store(&j->cancel, true);
	pthread_mutex_lock(&j->serving_lock);
	if (j->serving)
		loop_stop(j->serving);
	pthread_mutex_unlock(&j->serving_lock);
}

static void image_message(void *arg, struct wire_conn *c, struct wire_buf *b)
{
	struct image_job *j = arg;
	struct err e = { 0 };
	struct msg_hello hello, out = { .version = PROTO_VERSION, .pid = (uint64_t)getpid() };
	struct msg_i_layer layer;
	struct msg_i_run run;
	int ret = proto_permit(b, PROTO_CORE, PROTO_IMAGE, PROTO_UP);

	if (ret < 0) {
		err_set(&e, -ret, "not-permitted", "an image job does not take message 0x%04x",
			b->type);
		image_answer(j, b->id, &e);
		return;
	}
	switch (b->type) {
	case MSG_hello:
		if (msg_hello_decode(&hello, b) == 0) {
			snprintf(out.role, sizeof(out.role), "image");
			msg_hello_send(j->conn, &out, hello.msg_id);
		}
		return;
	case MSG_i_layer:
		if (msg_i_layer_decode(&layer, b) < 0) {
			err_set(&e, EPROTO, "bad-message", "malformed i_layer");
		} else {
			image_add_layer(j, &layer, &e);
			msg_i_layer_close(&layer);
		}
		image_answer(j, b->id, &e);
		return;
	case MSG_i_run:
		if (msg_i_run_decode(&run, b) < 0)
			err_set(&e, EPROTO, "bad-message", "malformed i_run");
		else if (image_start(j, &run, &e) == 0)
			j->run_id = b->id;
		if (e.num)
			image_answer(j, b->id, &e);
		return;
	case MSG_i_cancel:
		image_stop(j);
		return;
	default:
		return;
	}
}

static void image_closed(void *arg, struct wire_conn *c, int why)
{
	struct image_job *j = arg;

	wire_conn_free(c);
	j->conn = NULL;
	/* nobody waits for the result: what was half made is core's to remove */
	image_stop(j);
	if (!j->running)
		loop_stop(j->loop);
}

int main(int argc, char **argv)
{
	static struct image_job job = { .serving_lock = PTHREAD_MUTEX_INITIALIZER };
	const struct sandbox_rule *const lists[] = { image_calls, NULL };
	struct image_job *j = &job;

	if (argc > 1) {
		fputs("usage: vmd-image (started by vmd with descriptor 3)\n", stderr);
		return 2;
	}
	log_open("image", NULL, 2, LOG_INFO_);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	sandbox_landlock();
	j->loop = loop_new();
	if (!j->loop || fd_set_nonblock(3) < 0 || fd_set_cloexec(3) < 0)
		return 1;
	loop_timer_init(j->loop, &j->tick, image_tick, j);
	j->conn = wire_conn_new(j->loop, 3, WIRE_FDS_MAX, image_message, image_closed, j);
	int ret = j->conn ? sandbox_seccomp(lists, true) : -ENOMEM;

	if (ret < 0) {
		log_error("cannot lock down: %s", strerror(-ret));
		return 1;
	}
	ret = loop_run(j->loop);
	return ret < 0 || j->err.num ? 1 : 0;
}
