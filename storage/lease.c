/* lease.c - a disk's lease record and its heartbeat; see lease.h.
 *
 * Taking is in three steps: the record is free, or stands still for the stale time; one's own is
 * written with the next generation; after a settling time it is read again and still one's own.
 * Two that both saw it free both write; the later write wins, and the earlier finds it out when it
 * looks again: it waits for a quarter of the stale time, which no single write may take. The
 * owner checks at each beat that the record is its own before it writes.
 * Record, little-endian, one sector: magic 8, version 4, state 4 (0 free, 1 held), generation 8,
 * counter 8, stale_ms 8, id 16, name 64, host 40, file 128, then crc32c of all of that.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "common/le.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/overflow.h"
#include "common/state.h"
#include "common/units.h"
#include "storage/lease.h"

#define LEASE_MAGIC	   0x316573616c444d56ULL /* "VMDlase1" */
#define LEASE_SECTOR	   512u
#define LEASE_CRC_AT	   288u
#define LEASE_STALE_MIN_MS 100u
#define LEASE_STALE_MAX_MS (10u * 60 * 1000)
#define LEASE_STACK_BYTES  (256u * 1024) /* touched: a few KiB; sanitizers want the rest */

struct lease_rec {
	bool held, whole; /* whole: its checksum is right */
	uint64_t generation, counter, stale_ms;
	struct lease_owner owner;
};

static void lease_printable(char *s)
{
	for (; *s; s++)
		if (*s < 0x20 || *s > 0x7e)
			*s = '?';
}

/* lease_read() - 0 with what the file holds; an empty one is free. */
static int lease_read(int fd, uint8_t raw[LEASE_SECTOR], struct lease_rec *rec)
{
	ssize_t n;

	memset(raw, 0, LEASE_SECTOR);
	*rec = (struct lease_rec){ .whole = true };
	/* a network file system's client must ask the server: closing and locking do that, and so
	 * does this, where it is kept */
	(void)posix_fadvise(fd, 0, LEASE_SECTOR, POSIX_FADV_DONTNEED);
	do
		n = pread(fd, raw, LEASE_SECTOR, 0);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (n == 0)
		return 0;
	rec->whole = n == LEASE_SECTOR && le_get64(raw) == LEASE_MAGIC && le_get32(raw + 8) == 1 &&
		     le_get32(raw + LEASE_CRC_AT) == crc32c(0, raw, LEASE_CRC_AT);
	rec->held = !rec->whole || le_get32(raw + 12) != 0;
	if (!rec->whole)
		return 0;
	rec->generation = le_get64(raw + 16);
	rec->counter = le_get64(raw + 24);
	rec->stale_ms = le_get64(raw + 32);
	memcpy(rec->owner.id, raw + 40, sizeof(rec->owner.id));
	memcpy(rec->owner.name, raw + 56, LEASE_OWNER_MAX);
	memcpy(rec->owner.host, raw + 120, LEASE_HOST_MAX);
	memcpy(rec->owner.file, raw + 160, LEASE_FILE_MAX);
	lease_printable(rec->owner.name);
	lease_printable(rec->owner.file);
	return 0;
}

static int lease_write(const struct lease *l, bool held)
{
	uint8_t raw[LEASE_SECTOR] = { 0 };
	ssize_t n;

	le_put64(raw, LEASE_MAGIC);
	le_put32(raw + 8, 1);
	le_put32(raw + 12, held);
	le_put64(raw + 16, l->generation);
	le_put64(raw + 24, l->counter);
	le_put64(raw + 32, l->stale_ms);
	memcpy(raw + 40, l->owner.id, sizeof(l->owner.id));
	memcpy(raw + 56, l->owner.name, sizeof(l->owner.name));
	memcpy(raw + 120, l->owner.host, sizeof(l->owner.host));
	memcpy(raw + 160, l->owner.file, sizeof(l->owner.file));
	le_put32(raw + LEASE_CRC_AT, crc32c(0, raw, LEASE_CRC_AT));
	do
		n = pwrite(l->fd, raw, sizeof(raw), 0);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof(raw))
		return n < 0 ? -errno : -EIO;
	return fdatasync(l->fd) < 0 ? -errno : 0;
}

static int lease_wait(uint64_t ms, const _Atomic bool *cancel)
{
	uint64_t until = clock_mono_ns() + ms * NS_PER_MS;

	while (clock_mono_ns() < until) {
		uint64_t left = until - clock_mono_ns(), step = MIN(left, 100 * NS_PER_MS);
		struct timespec t = { 0, (long)MIN(step, 999999999ULL) };

		if (cancel && atomic_load(cancel))
			return -ECANCELED;
		(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
	}
	return 0;
}

static int lease_io_error(struct err *e, int r, const char *what)
{
	return err_set(e, -r, "lease-io", "the disk's lease cannot be %s: %s", what, strerror(-r));
}

static bool lease_is_own(const struct lease *l, const struct lease_rec *rec)
{
	return rec->whole && rec->held && rec->generation == l->generation &&
	       !memcmp(rec->owner.id, l->owner.id, sizeof(rec->owner.id));
}

/* lease_watch() - 0: free, or it stood still for its owner's stale time and ours. */
static int lease_watch(struct lease *l, const _Atomic bool *cancel, struct lease_rec *rec,
		       struct err *e)
{
	uint8_t first[LEASE_SECTOR], now[LEASE_SECTOR];
	uint64_t wait, waited = 0, step;
	int r = lease_read(l->fd, first, rec);

	if (r)
		return lease_io_error(e, r, "read");
	if (!rec->held)
		return 0;
	wait = MAX(l->stale_ms, MIN(rec->stale_ms, (uint64_t)LEASE_STALE_MAX_MS));
	step = MAX(wait / 10, 1u);
	while (waited <= wait) {
		r = lease_wait(step, cancel);
		if (r)
			return err_set(e, ECANCELED, "cancelled",
				       "waiting for the disk's lease was cancelled");
		waited += step;
		r = lease_read(l->fd, now, rec);
		if (r)
			return lease_io_error(e, r, "read");
		if (!rec->held)
			return 0;
		if (memcmp(first, now, sizeof(first)) == 0)
			continue;
		err_set(e, EBUSY, "disk-leased", "the disk is in use by %s, which is alive",
			rec->whole ? rec->owner.name : "another host");
		return -EBUSY;
	}
	return 0;
}

/* lease_settle() - our record is written: who read "free", or a record that stood still, when we did
 * has written by now, or sees ours. 0: it is ours, and for long enough to say so. */
static int lease_settle(struct lease *l, const _Atomic bool *cancel, struct err *e)
{
	uint8_t raw[LEASE_SECTOR];
	uint64_t began = clock_mono_ns();
	struct lease_rec rec;
	int r = lease_write(l, true);

	if (r)
		return lease_io_error(e, r, "written");
	if (lease_wait(l->stale_ms / 4, cancel))
		return err_set(e, ECANCELED, "cancelled",
			       "waiting for the disk's lease was cancelled");
	r = lease_read(l->fd, raw, &rec);
	if (r)
		return lease_io_error(e, r, "read");
	if (!lease_is_own(l, &rec)) {
		atomic_store(&l->lost, true);
		return err_set(e, EBUSY, "disk-leased", "the disk was just taken by %s",
			       rec.whole ? rec.owner.name : "another host");
	}
	atomic_store(&l->beat_ns, began);
	return 0;
}

int lease_take(struct lease *l, int fd, const struct lease_owner *owner, uint64_t stale_ms,
	       const _Atomic bool *cancel, struct err *e)
{
	struct lease_rec rec;
	int r;

	if (stale_ms < LEASE_STALE_MIN_MS || stale_ms > LEASE_STALE_MAX_MS)
		return err_set(e, EINVAL, "bad-lease",
			       "a stale time of %llu ms is not 100 to 600000",
			       (unsigned long long)stale_ms);
	*l = (struct lease){ .fd = fd, .owner = *owner, .stale_ms = stale_ms };
	l->owner.name[LEASE_OWNER_MAX] = l->owner.file[LEASE_FILE_MAX] =
	    l->owner.host[LEASE_HOST_MAX] = '\0';
	r = lease_watch(l, cancel, &rec, e);
	if (r)
		return r;
	if (rec.whole && *rec.owner.file && strcmp(rec.owner.file, l->owner.file) &&
	    strcmp(rec.owner.host, l->owner.host)) {
		err_set(e, ESTALE, "disk-goes-on-elsewhere",
			"the disk's newest layer is not %s but %s, since %s had it", l->owner.file,
			rec.owner.file, rec.owner.name);
		err_hint(e, "take it over anew: vmctl disk create NAME --volume %.100s",
			 rec.owner.file);
		return -ESTALE;
	}
	l->generation = rec.generation + 1;
	l->counter = 1;
	r = lease_settle(l, cancel, e);
	return r ? r : lease_beat(l, cancel, e);
}

int lease_beat(struct lease *l, const _Atomic bool *cancel, struct err *e)
{
	uint8_t raw[LEASE_SECTOR];
	uint64_t began = clock_mono_ns();
	struct lease_rec rec;
	bool late = !lease_valid(l);
	int r;

	if (atomic_load(&l->lost))
		return err_set(e, ESTALE, "lease-lost", "the disk's lease is another's by now");
	r = lease_read(l->fd, raw, &rec);
	if (r)
		return lease_io_error(e, r, "read");
	if (!lease_is_own(l, &rec)) {
		atomic_store(&l->lost, true);
		return err_set(e, ESTALE, "lease-lost", "the disk's lease was taken over by %s",
			       rec.whole && rec.held ? rec.owner.name : "another host");
	}
	/* too late: another may be between its last look and its writing, as when it is taken */
	if (late) {
		l->generation++;
		l->counter = 1;
		return lease_settle(l, cancel, e);
	}
	l->counter++;
	r = lease_write(l, true);
	if (r)
		return lease_io_error(e, r, "written");
	atomic_store(&l->beat_ns, began);
	return 0;
}

bool lease_valid(const struct lease *l)
{
	return !atomic_load(&l->lost) &&
	       clock_mono_ns() - atomic_load(&l->beat_ns) < l->stale_ms * NS_PER_MS / 2;
}

int lease_drop(struct lease *l)
{
	struct err e = { 0 };
	/* still ours, and for long enough to say so; a late one is left to go stale */
	int r = lease_valid(l) ? lease_beat(l, NULL, &e) : -ESTALE;

	if (!r)
		r = lease_write(l, false);
	atomic_store(&l->lost, true);
	return r;
}

/* ---- kept by a thread ---- */

static void *lease_thread(void *arg)
{
	struct lease *l = arg;
	bool told = false;

	pthread_mutex_lock(&l->lock);
	while (!atomic_load(&l->ending)) {
		struct timespec until;
		struct err e = { 0 };

		clock_gettime(CLOCK_MONOTONIC, &until);
		uint64_t at = (uint64_t)until.tv_sec * NS_PER_S + (uint64_t)until.tv_nsec +
			      l->stale_ms * NS_PER_MS / 6;
		until = (struct timespec){ (time_t)(at / NS_PER_S), (long)(at % NS_PER_S) };
		pthread_cond_timedwait(&l->wake, &l->lock, &until);
		if (atomic_load(&l->ending) || atomic_load(&l->lost))
			continue;
		bool was = lease_valid(l);

		if (lease_beat(l, &l->ending, &e) && !told && e.num != ECANCELED) {
			log_error("%s: %s", l->owner.name, e.detail);
			told = true;
		} else if (!e.num) {
			if (!was)
				log_warn("%s: the disk's lease is held again", l->owner.name);
			told = false;
		}
	}
	pthread_mutex_unlock(&l->lock);
	return NULL;
}

/* lease_thread_start() - small, and deaf to signals, which are the main thread's. */
static int lease_thread_start(struct lease *l)
{
	sigset_t all, before;
	pthread_condattr_t clock;
	pthread_attr_t small;
	int r;

	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&l->wake, &clock);
	pthread_condattr_destroy(&clock);
	pthread_mutex_init(&l->lock, NULL);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, LEASE_STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	r = pthread_create(&l->thread, &small, lease_thread, l);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&small);
	return r;
}

struct lease *lease_hold(int fd, const struct lease_owner *owner, uint64_t stale_ms,
			 const _Atomic bool *cancel, struct err *e)
{
	struct lease *l = calloc(1, sizeof(*l));
	struct lease_owner who = *owner;
	int r;

	if (!l || getrandom(who.id, sizeof(who.id), 0) != (ssize_t)sizeof(who.id)) {
		err_set(e, l ? EIO : ENOMEM, "lease-failed", "no %s for a lease",
			l ? "random number" : "memory");
		free(l);
		return NULL;
	}
	if (lease_take(l, fd, &who, stale_ms, cancel, e)) {
		free(l);
		return NULL;
	}
	r = lease_thread_start(l);
	if (r) {
		lease_drop(l);
		free(l);
		err_set(e, r, "no-thread", "no thread to keep the disk's lease: %s", strerror(r));
		return NULL;
	}
	return l;
}

int lease_set_file(struct lease *l, const char *file, struct err *e)
{
	char old[LEASE_FILE_MAX + 1];
	int r;

	pthread_mutex_lock(&l->lock);
	memcpy(old, l->owner.file, sizeof(old));
	snprintf(l->owner.file, sizeof(l->owner.file), "%s", file);
	r = lease_beat(l, &l->ending, e);
	if (r)
		memcpy(l->owner.file, old, sizeof(old));
	pthread_mutex_unlock(&l->lock);
	return r;
}

void lease_let_go(struct lease *l)
{
	if (!l)
		return;
	atomic_store(&l->ending, true); /* what the thread waits for ends by it */
	pthread_mutex_lock(&l->lock);
	pthread_cond_signal(&l->wake);
	pthread_mutex_unlock(&l->lock);
	pthread_join(l->thread, NULL);
	if (lease_drop(l) < 0)
		log_warn("%s: the disk's lease is not given back, it goes stale by itself",
			 l->owner.name);
	close(l->fd);
	pthread_mutex_destroy(&l->lock);
	pthread_cond_destroy(&l->wake);
	free(l);
}
