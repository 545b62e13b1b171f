/* lease.c - a disk's lease record and its heartbeat; see lease.h.
 *
 * Taking is in three steps: the record is free, or stands still for the stale time; one's own is
 * written with the next generation; after a settling time it is read again and still one's own.
 * Two that both saw it free both write; the later write wins, and the earlier finds it out when it
 * looks again: it waits for a quarter of the stale time, which no single write may take. The
 * owner checks at each beat that the record is its own before it writes.
 * Record, little-endian, one sector: magic 8, version 4, state 4 (0 free, 1 held), generation 8,
 * counter 8, stale_ms 8, id 16, name 64, then crc32c of all of that.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/le.h"
#include "common/loop.h"
#include "common/overflow.h"
#include "common/state.h"
#include "common/units.h"
#include "storage/lease.h"

#define LEASE_MAGIC	   0x316573616c444d56ULL /* "VMDlase1" */
#define LEASE_SECTOR	   512u
#define LEASE_CRC_AT	   120u
#define LEASE_STALE_MIN_MS 100u
#define LEASE_STALE_MAX_MS (10u * 60 * 1000)

struct lease_rec {
	bool held, whole; /* whole: its checksum is right */
	uint64_t generation, counter, stale_ms;
	struct lease_owner owner;
};

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
	for (char *c = rec->owner.name; *c; c++)
		if (*c < 0x20 || *c > 0x7e)
			*c = '?';
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

int lease_take(struct lease *l, int fd, const struct lease_owner *owner, uint64_t stale_ms,
	       const _Atomic bool *cancel, struct err *e)
{
	uint8_t raw[LEASE_SECTOR];
	struct lease_rec rec;
	uint64_t began;
	int r;

	if (stale_ms < LEASE_STALE_MIN_MS || stale_ms > LEASE_STALE_MAX_MS)
		return err_set(e, EINVAL, "bad-lease",
			       "a stale time of %llu ms is not 100 to 600000",
			       (unsigned long long)stale_ms);
	*l = (struct lease){ .fd = fd, .owner = *owner, .stale_ms = stale_ms };
	l->owner.name[LEASE_OWNER_MAX] = '\0';
	r = lease_watch(l, cancel, &rec, e);
	if (r)
		return r;
	l->generation = rec.generation + 1;
	l->counter = 1;
	began = clock_mono_ns();
	r = lease_write(l, true);
	if (r)
		return lease_io_error(e, r, "written");
	/* who read "free" when we did has written by now, or sees ours */
	if (lease_wait(stale_ms / 4, cancel))
		return err_set(e, ECANCELED, "cancelled",
			       "waiting for the disk's lease was cancelled");
	r = lease_read(fd, raw, &rec);
	if (r)
		return lease_io_error(e, r, "read");
	if (!rec.whole || memcmp(rec.owner.id, l->owner.id, sizeof(rec.owner.id)) ||
	    rec.generation != l->generation)
		return err_set(e, EBUSY, "disk-leased", "the disk was just taken by %s",
			       rec.whole ? rec.owner.name : "another host");
	atomic_store(&l->beat_ns, began);
	return lease_beat(l, e);
}

int lease_beat(struct lease *l, struct err *e)
{
	uint8_t raw[LEASE_SECTOR];
	uint64_t began = clock_mono_ns();
	struct lease_rec rec;
	int r;

	/* too late is too late: another may be between its last look and its writing */
	if (atomic_load(&l->lost) || !lease_valid(l)) {
		atomic_store(&l->lost, true);
		return err_set(e, ESTALE, "lease-lost", "the disk's lease was not renewed in time");
	}
	r = lease_read(l->fd, raw, &rec);
	if (r)
		return lease_io_error(e, r, "read");
	if (!rec.whole || !rec.held || rec.generation != l->generation ||
	    memcmp(rec.owner.id, l->owner.id, sizeof(rec.owner.id))) {
		atomic_store(&l->lost, true);
		return err_set(e, ESTALE, "lease-lost", "the disk's lease was taken over by %s",
			       rec.whole && rec.held ? rec.owner.name : "another host");
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
	int r = lease_beat(l, &e); /* still ours, and for long enough to say so */

	if (!r)
		r = lease_write(l, false);
	atomic_store(&l->lost, true);
	return r;
}
