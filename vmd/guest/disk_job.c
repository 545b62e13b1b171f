/* disk_job.c - work on the graph of disks while the guest uses them: snapshot, stream, commit.
 *
 * The verbs of storage/live.h block, so a thread of its own does them; the main loop goes on, tells how
 * far it is and answers when it is over. One at a time a guest. What became of the last is kept, by
 * the job's id: a daemon that was restarted meanwhile asks again and gets the answer, not a second
 * job. The guest's end cancels a job and waits for it: each may be cut off at any moment.
 * Threading: main thread; the job's thread touches its own struct, the graphs by live.h's rules and
 * the atomics. Trust: the daemon is trusted for what it asks; layers are parsed here, in the jail.
 */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/units.h"
#include "devices/virtio_devices.h"
#include "storage/live.h"
#include "vmd/guest/guest.h"

#define DISK_TICK_NS (250 * NS_PER_MS)

struct disk_overlay {
	struct blockdev *bd;
	char label[160], export[270];
	const char *opts[2];
	struct blk_spec spec;
};

struct guest_disk_job {
	struct guest *g;
	uint32_t id; /* who waits for the answer; 0: nobody */
	char job[40], verb[16];
	struct blockdev *bd;
	struct msg_g_disk_job m;
	int fd;
	unsigned noverlays;
	struct disk_overlay overlays[MC_DISKS_MAX];
	_Atomic bool cancel;
	_Atomic uint64_t done, total;
	struct loop_timer tick;
	pthread_t thread;
	bool asked; /* a job came for what is here */
	bool runs;
	struct err e;
};

static struct guest_disk_job *disk_job_get(struct guest *g)
{
	struct guest_disk_job *j = g->disk_job ? g->disk_job : calloc(1, sizeof(*j));

	if (j && !g->disk_job) {
		j->g = g;
		j->fd = -1;
		g->disk_job = j;
	}
	return j;
}

static void disk_overlays_drop(struct guest_disk_job *j)
{
	for (unsigned i = 0; i < j->noverlays; i++)
		close_fd(&j->overlays[i].spec.fd);
	j->noverlays = 0;
}

bool guest_disk_job_runs(const struct guest *g)
{
	return g->disk_job && g->disk_job->runs;
}

int guest_disk_overlay(struct guest *g, struct msg_g_disk_overlay *m, struct err *e)
{
	struct guest_disk_job *j = disk_job_get(g);
	struct disk_overlay *o;

	if (!j)
		return err_set(e, ENOMEM, "no-memory", "guest %s: out of memory", g->name);
	if (j->runs)
		return 0; /* asked for again: the one under way is the same */
	if (m->first)
		disk_overlays_drop(j);
	if (j->noverlays == MC_DISKS_MAX || m->fd < 0 || m->cache > BLK_CACHE_UNSAFE)
		return err_set(e, EINVAL, "bad-layer", "disk %s: not a layer", m->name);
	o = &j->overlays[j->noverlays];
	o->bd = *m->name ? virtio_blk_backend(g->vm, m->name) : NULL;
	if (*m->name && !o->bd)
		return err_set(e, ENOENT, "disk-not-found", "guest %s has no disk \"%s\"", g->name,
			       m->name);
	memcpy(o->label, m->label, sizeof(o->label));
	snprintf(o->export, sizeof(o->export), "export=%s", m->export);
	o->opts[0] = strcmp(m->driver, "nbd") ? NULL : o->export;
	o->opts[1] = NULL;
	o->spec = (struct blk_spec){
		.driver = o->opts[0] ? "nbd" : "qcow2",
		.opts = o->opts[0] ? o->opts : NULL,
		.label = o->label,
		.fd = take_fd(&m->fd),
		.cache = (enum blk_cache)m->cache,
		.read_only = !*m->name && !m->first,
		.lease = *m->name ? guest_lease_of(g, m->name) : NULL,
	};
	j->noverlays++;
	return 0;
}

static void disk_job_progress(void *arg, uint64_t done, uint64_t total)
{
	struct guest_disk_job *j = arg;

	atomic_store(&j->done, done);
	atomic_store(&j->total, total);
}

static int disk_snapshot(struct guest_disk_job *j)
{
	struct blk_live_overlay v[MC_DISKS_MAX];
	int r;

	for (unsigned i = 0; i < j->noverlays; i++) {
		if (!j->overlays[i].bd)
			return err_set(&j->e, EINVAL, "bad-layer", "a layer came without its disk");
		v[i] = (struct blk_live_overlay){ j->overlays[i].bd, &j->overlays[i].spec };
	}
	r = blk_live_snapshot(v, j->noverlays, &j->e);
	for (unsigned i = 0; !r && i < j->noverlays; i++)
		j->overlays[i].spec.fd = -1; /* the graph's now */
	return r;
}

/* the bitmap of a full backup: it knows nothing yet */
static int disk_bitmap_ready(struct guest_disk_job *j)
{
	struct err there = { 0 };
	int r = blk_bitmap_create(j->bd, j->m.bitmap, 0, true, &there);

	if (r == -EEXIST)
		return blk_bitmap_clear(j->bd, j->m.bitmap, &j->e);
	if (r < 0)
		j->e = there;
	return r;
}

static int disk_backup(struct guest_disk_job *j, const struct blkjob *job)
{
	struct blk_backup_start start = { .bd = j->bd,
					  .target = &j->overlays[0].spec,
					  .unknown = !strcmp(j->overlays[0].spec.driver, "nbd"),
					  .bitmap = j->m.value ? j->m.bitmap : NULL };
	struct blk_backup *b = NULL;
	struct err why = { 0 };
	int r = 0, end;

	for (unsigned i = 0; i + 1 < j->noverlays; i++)
		j->overlays[i].spec.backing = &j->overlays[i + 1].spec;
	if (*j->m.bitmap && !j->m.value)
		r = disk_bitmap_ready(j);
	if (!r)
		r = blk_backup_start(&start, 1, &b, &j->e);
	if (r)
		return r;
	for (unsigned i = 0; i < j->noverlays; i++)
		j->overlays[i].spec.fd = -1; /* the graph's now */
	r = blk_backup_run(b, job, &j->e);
	end = blk_backup_end(b, &why);
	if (!r && end) {
		r = end;
		j->e = why;
	}
	return r;
}

static int disk_bitmap(struct guest_disk_job *j)
{
	const char *what = j->m.backing, *name = j->m.bitmap;

	if (!strcmp(what, "add"))
		return blk_bitmap_create(j->bd, name, j->m.value, true, &j->e);
	if (!strcmp(what, "remove"))
		return blk_bitmap_remove(j->bd, name, &j->e);
	if (!strcmp(what, "clear"))
		return blk_bitmap_clear(j->bd, name, &j->e);
	if (!strcmp(what, "enable") || !strcmp(what, "disable"))
		return blk_bitmap_enable(j->bd, name, *what == 'e', &j->e);
	if (!strcmp(what, "merge"))
		return blk_bitmap_merge(j->bd, name, j->m.source, &j->e);
	return err_set(&j->e, EINVAL, "bad-bitmap", "\"%s\" is nothing to do with a bitmap", what);
}

static void disk_job_over(void *arg);

static void *disk_job_thread(void *arg)
{
	struct guest_disk_job *j = arg;
	struct blkjob job = {
		.progress = disk_job_progress, .arg = j, .cancel = &j->cancel, .bps = j->m.bps
	};
	const char *backing = *j->m.backing ? j->m.backing : NULL;
	const char *format = backing && *j->m.backing_format ? j->m.backing_format : NULL;
	unsigned depth = (unsigned)j->m.depth;
	int r;

	if (!strcmp(j->verb, "snapshot")) {
		r = disk_snapshot(j);
	} else if (!strcmp(j->verb, "stream")) {
		r = blk_live_stream(j->bd, depth ? depth : UINT_MAX, backing, format, &job, &j->e);
	} else if (!strcmp(j->verb, "backup")) {
		r = disk_backup(j, &job);
	} else if (!strcmp(j->verb, "bitmap")) {
		r = disk_bitmap(j);
	} else {
		r = blk_live_commit(j->bd, depth, j->fd, backing, format, &job, &j->e);
		if (!r)
			j->fd = -1;
	}
	if (r < 0 && !j->e.num)
		err_set(&j->e, -r, r == -ECANCELED ? "cancelled" : "disk-job-failed", "%s: %s",
			j->verb, strerror(-r));
	if (loop_post(j->g->loop, disk_job_over, j) < 0)
		abort(); /* the daemon would wait for ever */
	return NULL;
}

static void disk_job_settle(struct guest_disk_job *j)
{
	if (!j->runs)
		return;
	pthread_join(j->thread, NULL);
	j->runs = false;
	loop_timer_stop(&j->tick);
	disk_overlays_drop(j);
	close_fd(&j->fd);
}

static void disk_job_over(void *arg)
{
	struct guest_disk_job *j = arg;

	if (!j->runs) /* told by guest_disk_job_end() */
		return;
	disk_job_settle(j);
	log_info("disk job %s: %s", j->verb, j->e.num ? j->e.detail : "done");
	guest_reply(j->g, j->id, &j->e);
	j->id = 0;
}

static void disk_job_tick(void *arg)
{
	struct guest_disk_job *j = arg;
	struct msg_g_disk_progress m = { .done = atomic_load(&j->done),
					 .total = atomic_load(&j->total) };

	memcpy(m.job, j->job, sizeof(m.job));
	if (j->g->conn && j->id && m.total)
		msg_g_disk_progress_send(j->g->conn, &m, j->id);
	loop_timer_after(&j->tick, DISK_TICK_NS);
}

static int disk_job_check(struct guest *g, struct guest_disk_job *j, struct msg_g_disk_job *m,
			  struct err *e)
{
	bool snapshot = !strcmp(m->verb, "snapshot");

	if (g->quitting || g->phase == GUEST_STOPPED)
		return err_set(e, EINVAL, "guest-stopped", "guest %s has stopped", g->name);
	if (g->save)
		return err_set(e, EBUSY, "save-under-way", "guest %s is being saved", g->name);
	if (j->runs)
		return err_set(e, EBUSY, "disk-job-under-way",
			       "guest %s: %s of a disk is under way", g->name, j->verb);
	if (!snapshot && strcmp(m->verb, "stream") && strcmp(m->verb, "commit") &&
	    strcmp(m->verb, "backup") && strcmp(m->verb, "bitmap"))
		return err_set(e, EOPNOTSUPP, "unknown-verb", "disks in use have no job \"%s\"",
			       m->verb);
	if ((snapshot || !strcmp(m->verb, "backup")) && !j->noverlays)
		return err_set(e, EINVAL, "no-layer", "%s came without its layers", m->verb);
	if (!snapshot && !virtio_blk_backend(g->vm, m->name))
		return err_set(e, ENOENT, "disk-not-found", "guest %s has no disk \"%s\"", g->name,
			       m->name);
	return 0;
}

void guest_disk_job(struct guest *g, uint32_t id, struct msg_g_disk_job *m)
{
	struct guest_disk_job *j = disk_job_get(g);
	struct err e = { 0 };
	int r;

	if (j && j->asked && !strcmp(j->job, m->job) && (j->runs || !j->e.num)) {
		/* asked for again: by a daemon that does not know what became of it */
		j->id = id;
		if (!j->runs)
			guest_reply(g, id, &j->e);
		return;
	}
	if (!j)
		err_set(&e, ENOMEM, "no-memory", "guest %s: out of memory", g->name);
	if (e.num || disk_job_check(g, j, m, &e) < 0) {
		guest_reply(g, id, &e);
		return;
	}
	j->id = id;
	j->asked = true;
	j->m = *m;
	memcpy(j->job, m->job, sizeof(m->job));
	memcpy(j->verb, m->verb, sizeof(m->verb));
	j->fd = take_fd(&m->fd);
	j->bd = virtio_blk_backend(g->vm, m->name);
	j->e = (struct err){ 0 };
	atomic_store(&j->cancel, false);
	atomic_store(&j->done, 0);
	atomic_store(&j->total, 0);
	r = pthread_create(&j->thread, NULL, disk_job_thread, j);
	if (r) {
		err_set(&j->e, r, "no-thread", "guest %s: no thread for the job: %s", g->name,
			strerror(r));
		close_fd(&j->fd);
		guest_reply(g, id, &j->e);
		return;
	}
	j->runs = true;
	loop_timer_init(g->loop, &j->tick, disk_job_tick, j);
	loop_timer_after(&j->tick, DISK_TICK_NS);
}

void guest_disk_cancel(struct guest *g, const char *job)
{
	if (guest_disk_job_runs(g) && !strcmp(g->disk_job->job, job))
		atomic_store(&g->disk_job->cancel, true);
}

void guest_disk_job_end(struct guest *g)
{
	struct guest_disk_job *j = g->disk_job;

	if (!j)
		return;
	atomic_store(&j->cancel, true);
	if (j->runs) {
		/* its thread's post still waits in the loop, which ends with the process */
		disk_job_settle(j);
		guest_reply(g, j->id, &j->e);
		return;
	}
	disk_overlays_drop(j);
	g->disk_job = NULL;
	free(j);
}
