/* qcow2_commit.c - flush: making stable what was written, with the map to find it.
 *
 * The order, two syncs in the common case:
 *   (only when refcount blocks were added: refcounts, sync, then the refcount table and header)
 *   1. refcounts; one sync makes them and all guest data stable;
 *   2. L2 entries and L1 entries, in any order (a new L2 table is zero on disk since step 1); sync.
 * A crash before 2 leaks clusters, never leaves a dangling one. Clusters unreferenced by 2 wait
 * until every request that could hold their address has ended, then lose their refcount (written by
 * the next commit) and may be used again.
 * Threading: one commit at a time; the map stays usable meanwhile, for dirty sectors are copied
 * out.
 */
#include <errno.h>
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/overflow.h"
#include "storage/qcow2.h"

#define Q2_AIO_BATCH 64

/* Dirty runs this near to each other are written as one: below some size a device charges for the
 * write, not for its bytes. Rewriting clean sectors between them changes nothing on the disk. */
#define Q2_GAP_SECTORS 12u

struct q2_out {
	uint64_t host;
	uint32_t len;
	uint8_t *data;
};

struct q2_taken {
	struct q2_slice *s;
	uint8_t was_dirty;
};

struct q2_batch {
	struct q2_out *out;
	size_t n, cap;
	struct q2_taken *taken; /* slices whose dirty sectors are in it */
	size_t ntaken;
};

/* q2_batch_add() - room for @len bytes at @host; NULL: out of memory. */
static uint8_t *q2_batch_add(struct q2_batch *b, uint64_t host, uint32_t len)
{
	struct q2_out *o;

	if (b->n == b->cap) {
		size_t cap = b->cap ? b->cap * 2 : 32;
		struct q2_out *p = realloc(b->out, cap * sizeof(*p));

		if (!p)
			return NULL;
		b->out = p;
		b->cap = cap;
	}
	o = &b->out[b->n];
	if (posix_memalign((void **)&o->data, Q2_SECTOR, len))
		return NULL;
	o->host = host;
	o->len = len;
	b->n++;
	return o->data;
}

/* a run of sectors in one table, from its start on */
struct q2_run {
	struct q2_slice *first;
	uint32_t start, end;
};

static int q2_batch_run(struct qcow2 *q, struct q2_batch *b, struct q2_dir *d, struct q2_run *run)
{
	uint32_t per_slice = q->slice_bytes / Q2_SECTOR, top;
	uint8_t *p;

	if (!run->first || run->start == run->end)
		return 0;
	top = run->first->top;
	p = q2_batch_add(b, run->first->host + (run->start % per_slice) * (uint64_t)Q2_SECTOR,
			 (run->end - run->start) * Q2_SECTOR);
	if (!p)
		return -ENOMEM;
	for (uint32_t at = run->start; at < run->end;) {
		uint32_t in = at % per_slice, n = MIN(per_slice - in, run->end - at);

		memcpy(p, (uint8_t *)d->tab[top][at / per_slice]->data + in * Q2_SECTOR,
		       (size_t)n * Q2_SECTOR);
		p += (size_t)n * Q2_SECTOR;
		at += n;
	}
	run->start = run->end;
	return 0;
}

/* q2_run_reaches() - the run can go on to sector @to of the table: near, and all between loaded. */
static bool q2_run_reaches(struct qcow2 *q, const struct q2_dir *d, const struct q2_run *run,
			   uint32_t top, uint32_t to)
{
	uint32_t per_slice = q->slice_bytes / Q2_SECTOR;

	if (!run->first || run->start == run->end || run->first->top != top ||
	    to - run->end > Q2_GAP_SECTORS)
		return false;
	for (uint32_t i = run->end / per_slice; i < to / per_slice; i++)
		if (!d->tab[top][i])
			return false;
	return true;
}

static int q2_batch_slice(struct qcow2 *q, struct q2_batch *b, struct q2_slice *s,
			  struct q2_run *run)
{
	uint32_t per_slice = q->slice_bytes / Q2_SECTOR, base = s->idx * per_slice;

	for (uint32_t i = 0; i < per_slice; i++) {
		int r;

		if (!(s->dirty >> i & 1))
			continue;
		if (!q2_run_reaches(q, s->dir, run, s->top, base + i)) {
			r = q2_batch_run(q, b, s->dir, run);
			if (r)
				return r;
			*run = (struct q2_run){ .first = s, .start = base + i };
		}
		run->end = base + i + 1;
	}
	return 0;
}

static void q2_batch_done(struct qcow2 *q, struct q2_batch *b, bool failed)
{
	/* with the lock taken alone */
	for (size_t i = 0; i < b->ntaken; i++) {
		struct q2_slice *s = b->taken[i].s;

		s->busy = 0;
		if (failed) {
			if (!s->dirty && b->taken[i].was_dirty)
				q->slices_dirty++;
			s->dirty |= b->taken[i].was_dirty;
		}
	}
	for (size_t i = 0; i < b->n; i++)
		free(b->out[i].data);
	free(b->taken);
	free(b->out);
	*b = (struct q2_batch){ 0 };
}

static int q2_taken_cmp(const void *a, const void *b)
{
	const struct q2_slice *x = ((const struct q2_taken *)a)->s,
			      *y = ((const struct q2_taken *)b)->s;

	if (x->top != y->top)
		return x->top < y->top ? -1 : 1;
	return x->idx < y->idx ? -1 : x->idx > y->idx;
}

/* q2_batch_slices() - copy out what is dirty of a directory's tables, in their order. */
static int q2_batch_slices(struct qcow2 *q, struct q2_dir *d, struct q2_batch *b)
{
	struct q2_run run = { 0 };
	int r = 0;

	if (!q->slices_dirty)
		return 0;
	b->taken = malloc(q->slices_dirty * sizeof(*b->taken));
	if (!b->taken)
		return -ENOMEM;
	list_for_each (l, &q->clock) {
		struct q2_slice *s = container_of(l, struct q2_slice, clock);

		if (s->dir == d && s->dirty)
			b->taken[b->ntaken++] = (struct q2_taken){ s, s->dirty };
	}
	qsort(b->taken, b->ntaken, sizeof(*b->taken), q2_taken_cmp);
	for (size_t i = 0; i < b->ntaken && !r; i++)
		r = q2_batch_slice(q, b, b->taken[i].s, &run);
	if (!r)
		r = q2_batch_run(q, b, d, &run);
	for (size_t i = 0; i < b->ntaken; i++) {
		b->taken[i].s->dirty = 0;
		b->taken[i].s->busy = 1;
		q->slices_dirty--;
	}
	return r;
}

static int q2_batch_top(const struct q2_dir *d, struct q2_batch *b)
{
	if (!d->top_is_dirty)
		return 0;
	for (uint32_t i = 0; i < d->top_n; i += 64) {
		uint32_t n = MIN(64u, d->top_n - i);
		uint64_t *sector;

		if (!d->moved && !(d->top_dirty[i / 4096] >> (i / 64 % 64) & 1))
			continue;
		sector = (uint64_t *)(void *)q2_batch_add(b, d->top_off + i * 8ULL, Q2_SECTOR);
		if (!sector)
			return -ENOMEM;
		memset(sector, 0, Q2_SECTOR);
		for (uint32_t k = 0; k < n; k++)
			sector[k] = htobe64(d->top[i + k]);
	}
	return 0;
}

static void q2_top_clean(struct q2_dir *d)
{
	memset(d->top_dirty, 0, (d->top_n / 4096 + 1) * sizeof(*d->top_dirty));
	d->top_is_dirty = d->moved = false;
}

static int q2_out_cmp(const void *a, const void *b)
{
	const struct q2_out *x = a, *y = b;

	return x->host < y->host ? -1 : x->host > y->host;
}

/* q2_batch_aio() - all of them at once: on a device each small write alone costs its latency.
 * Return: 0; 1 where this way is closed; -errno. What fails is written again by the caller's retry.
  */
static int q2_batch_aio(struct qcow2 *q, struct q2_batch *b)
{
	struct iocb cb[Q2_AIO_BATCH], *list[Q2_AIO_BATCH];
	struct iovec iov[Q2_AIO_BATCH];
	size_t at = 0;
	int r = 0;

	if (!q->bd->aio || !q->file->ops->map || b->n < 4)
		return 1;
	if (!q->aio_ctx && syscall(SYS_io_setup, Q2_AIO_BATCH, &q->aio_ctx) < 0)
		return 1;
	while (at < b->n && !r) {
		struct io_event ev[Q2_AIO_BATCH];
		long n = 0, sent = 0, done = 0;

		for (; at + n < b->n && n < Q2_AIO_BATCH; n++) {
			struct q2_out *o = &b->out[at + n];
			struct blk_req req = {
				.op = BLK_WRITE, .len_bytes = o->len, .iov = &iov[n], .niov = 1
			};
			struct blk_place p;

			iov[n] = (struct iovec){ o->data, o->len };
			if (q->file->ops->map(q->file, true, &req, o->host, &p))
				return 1;
			memset(&cb[n], 0, sizeof(cb[n]));
			cb[n].aio_lio_opcode = IOCB_CMD_PWRITEV;
			cb[n].aio_fildes = p.fd;
			cb[n].aio_buf = (uintptr_t)&iov[n];
			cb[n].aio_nbytes = 1;
			cb[n].aio_offset = p.off;
			cb[n].aio_data = o->len;
			list[n] = &cb[n];
		}
		while (sent < n) {
			long k = syscall(SYS_io_submit, q->aio_ctx, n - sent, list + sent);

			if (k < 0 && errno == EINTR)
				continue;
			if (k <= 0)
				break;
			sent += k;
		}
		/* those under way use our memory: wait for each */
		while (done < sent) {
			long k = syscall(SYS_io_getevents, q->aio_ctx, 1L, sent - done, ev, NULL);

			for (long i = 0; i < k; i++)
				if (ev[i].res != (__s64)ev[i].data && !r)
					r = ev[i].res < 0 ? (int)ev[i].res : -EIO;
			if (k > 0)
				done += k;
			else if (k < 0 && errno != EINTR)
				abort(); /* the kernel has lost its own context */
		}
		if (!r && sent < n)
			return 1;
		at += n;
	}
	return r;
}

void q2_commit_fini(struct qcow2 *q)
{
	if (q->aio_ctx)
		syscall(SYS_io_destroy, q->aio_ctx);
}

static int q2_batch_write(struct qcow2 *q, struct q2_batch *b)
{
	int r;

	if (b->n > 1)
		qsort(b->out, b->n, sizeof(*b->out), q2_out_cmp);
	r = q2_batch_aio(q, b);
	if (r <= 0)
		return r;
	r = 0;
	for (size_t i = 0; i < b->n && !r;) {
		struct iovec iov[32];
		uint64_t len = 0, host = b->out[i].host;
		int n = 0;

		while (i < b->n && n < 32 && b->out[i].host == host + len) {
			iov[n].iov_base = b->out[i].data;
			iov[n++].iov_len = b->out[i].len;
			len += b->out[i++].len;
		}
		r = node_write(q->file, (struct blk_buf){ iov, n, 0 }, host, len);
	}
	return r;
}

/* q2_release_limbo() - drained clusters lose a reference; with discard, their holes are punched
 * before they can be handed out again. */
static void q2_release_limbo(struct qcow2 *q)
{
	struct q2_freed *list;

	pthread_rwlock_wrlock(&q->lock);
	list = q->limbo;
	if (list && atomic_load(&q->active[q->limbo_epoch]) == 0)
		q->limbo = NULL;
	else
		list = NULL;
	pthread_rwlock_unlock(&q->lock);
	while (list) {
		struct q2_freed *f = list;
		bool punch = q->bd->discard && !((f->host | f->len) & (q->cluster_size - 1));
		uint64_t v;

		list = f->next;
		for (uint64_t at = 0; punch && at < f->len; at += q->cluster_size) {
			pthread_rwlock_wrlock(&q->lock);
			if (q2_refcount_locked(q, (f->host + at) >> q->cluster_bits, &v) || v != 1)
				punch = false;
			pthread_rwlock_unlock(&q->lock);
		}
		if (punch)
			(void)node_zero(q->file, f->host, f->len, NODE_UNMAP | NODE_DISCARD);
		pthread_rwlock_wrlock(&q->lock);
		q2_unref_locked(q, f->host, f->len);
		pthread_rwlock_unlock(&q->lock);
		free(f);
	}
}

/* q2_sync() - a sync that failed is never asked again: what it lost stays lost. */
static int q2_sync(struct qcow2 *q)
{
	int r = atomic_load(&q->sync_error), none = 0;

	if (r)
		return r;
	r = node_flush(q->file);
	if (r)
		atomic_compare_exchange_strong(&q->sync_error, &none, r);
	return r;
}

static int q2_commit_refs(struct qcow2 *q, struct q2_batch *refs, struct q2_batch *rt, bool header,
			  bool early)
{
	int r = q2_batch_write(q, refs);

	if (!r && early) {
		r = q2_sync(q);
		if (!r)
			r = q2_batch_write(q, rt);
		if (!r && header) {
			if (rt->n)
				r = q2_sync(q);
			if (!r) {
				pthread_rwlock_wrlock(&q->lock);
				r = q2_write_header_locked(q);
				pthread_rwlock_unlock(&q->lock);
			}
		}
	}
	return r ? r : q2_sync(q);
}

/* q2_commit() - with flush_lock held, or with nobody else about. */
int q2_commit(struct qcow2 *q)
{
	struct q2_batch refs = { 0 }, rt = { 0 }, map = { 0 };
	struct q2_freed *freed, *tail;
	bool header, early, l1_dirty, rt_dirty, rt_moved;
	int r = atomic_load(&q->sync_error);

	if (r)
		return r;
	q2_release_limbo(q);
	pthread_rwlock_wrlock(&q->lock);
	header = q->header_dirty;
	early = q->new_refblocks || q->rt.top_is_dirty || header;
	l1_dirty = q->l1.top_is_dirty;
	rt_dirty = q->rt.top_is_dirty;
	rt_moved = q->rt.moved;
	r = q2_batch_top(&q->rt, &rt);
	if (!r)
		r = q2_batch_top(&q->l1, &map);
	if (!r)
		r = q2_batch_slices(q, &q->rt, &refs);
	if (!r)
		r = q2_batch_slices(q, &q->l1, &map);
	freed = q->freed;
	if (r) {
		q2_batch_done(q, &refs, true);
		q2_batch_done(q, &rt, true);
		q2_batch_done(q, &map, true);
		pthread_rwlock_unlock(&q->lock);
		return r;
	}
	q->freed = NULL;
	q->header_dirty = q->new_refblocks = false;
	q2_top_clean(&q->rt);
	q2_top_clean(&q->l1);
	pthread_rwlock_unlock(&q->lock);

	r = q2_commit_refs(q, &refs, &rt, header, early);
	if (!r && map.n) {
		r = q2_batch_write(q, &map);
		if (!r)
			r = q2_sync(q);
	}

	pthread_rwlock_wrlock(&q->lock);
	q2_batch_done(q, &refs, r != 0);
	q2_batch_done(q, &rt, r != 0);
	q2_batch_done(q, &map, r != 0);
	for (tail = freed; tail && tail->next;)
		tail = tail->next;
	if (r) {
		/* all of it again, next time: whole tables, for which sectors got there is unknown
		 */
		if (l1_dirty) {
			memset(q->l1.top_dirty, 0xff, (q->l1.top_n / 4096 + 1) * 8);
			q->l1.top_is_dirty = true;
		}
		if (rt_dirty || rt_moved) {
			memset(q->rt.top_dirty, 0xff, (q->rt.top_n / 4096 + 1) * 8);
			q->rt.top_is_dirty = true;
			q->rt.moved |= rt_moved;
		}
		q->header_dirty |= header;
		q->new_refblocks |= early;
		if (tail) {
			tail->next = q->freed;
			q->freed = freed;
		}
	} else if (freed && !q->limbo) {
		q->limbo = freed;
		q->limbo_epoch = atomic_fetch_add(&q->epoch, 1) & 1;
	} else if (freed) {
		/* limbo still waits for a slow request: these go round once more */
		tail->next = q->freed;
		q->freed = freed;
	}
	pthread_rwlock_unlock(&q->lock);
	return r;
}

/* q2_flush() - one commit serves all who asked before it began. */
int q2_flush(struct blockdev *bd)
{
	struct qcow2 *q = bd->drv;
	uint64_t ticket;
	int r;

	if (!atomic_load(&q->begun))
		return q2_sync(q);
	if (atomic_load(&q->corrupt))
		return -EUCLEAN;
	ticket = atomic_fetch_add(&q->flush_want, 1) + 1;
	pthread_mutex_lock(&q->flush_lock);
	if (q->flush_done >= ticket) {
		r = q->flush_result;
	} else {
		uint64_t covers = atomic_load(&q->flush_want);

		r = q2_commit(q);
		q->flush_done = covers;
		q->flush_result = r;
	}
	pthread_mutex_unlock(&q->flush_lock);
	return r;
}
