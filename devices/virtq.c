/* virtq.c - see virtq.h: split virtqueues (virtio 1.2, 2.7) with event index and indirect tables.
 *
 * Ring memory is the guest's and changes under us: each field is loaded once, by an atomic load of
 * its size, into a local, checked, and only the local is used. Packed rings are not offered.
 */
#include "devices/virtq.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "common/overflow.h"

#define DESC_NEXT      1u
#define DESC_WRITE     2u
#define DESC_INDIRECT  4u
#define AVAIL_NO_INTR  1u
#define USED_NO_NOTIFY 1u

struct virtq_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct virtq_avail {
	uint16_t flags, idx, ring[];
};

struct virtq_used_elem {
	uint32_t id, len;
};

struct virtq_used {
	uint16_t flags, idx;
	struct virtq_used_elem ring[];
};

static inline uint16_t load16(const uint16_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline void store16(uint16_t *p, uint16_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELAXED);
}

static void desc_copy(struct virtq_desc *to, const struct virtq_desc *from)
{
	uint64_t a = __atomic_load_n(&((const uint64_t *)(const void *)from)[0], __ATOMIC_RELAXED);
	uint64_t b = __atomic_load_n(&((const uint64_t *)(const void *)from)[1], __ATOMIC_RELAXED);

	memcpy(&to->addr, &a, sizeof(a));
	memcpy(&to->len, &b, sizeof(b));
}

static uint64_t avail_bytes(const struct virtq *q)
{
	return 6 + 2ull * q->size;
}

static uint64_t used_bytes(const struct virtq *q)
{
	return 6 + 8ull * q->size;
}

int virtq_enable(struct virtq *q, struct err *e)
{
	if (!q->size || q->size > VIRTQ_SIZE_MAX || (q->size & (q->size - 1)))
		return err_set(e, EINVAL, "bad-virtqueue",
			       "queue %u: size %u is no power of two up to %u", q->index, q->size,
			       VIRTQ_SIZE_MAX);
	if (!IS_ALIGNED(q->desc, 16) || !IS_ALIGNED(q->avail, 2) || !IS_ALIGNED(q->used, 4))
		return err_set(e, EINVAL, "bad-virtqueue", "queue %u: its rings are not aligned",
			       q->index);
	q->desc_p = mem_ptr(q->mem, q->desc, 16ull * q->size);
	q->avail_p = mem_ptr(q->mem, q->avail, avail_bytes(q));
	q->used_p = mem_ptr_write(q->mem, q->used, used_bytes(q));
	if (!q->desc_p || !q->avail_p || !q->used_p) {
		q->desc_p = q->avail_p = q->used_p = NULL;
		return err_set(e, EINVAL, "bad-virtqueue", "queue %u: its rings lie outside RAM",
			       q->index);
	}
	q->ready = true;
	q->broken = false;
	return 0;
}

void virtq_reset(struct virtq *q)
{
	q->ready = q->event_idx = q->packed = q->broken = q->signalled_valid = false;
	q->desc = q->avail = q->used = 0;
	q->desc_p = q->avail_p = q->used_p = NULL;
	q->last_avail = q->used_idx = q->signalled_used = 0;
}

void virtq_go_on_at(struct virtq *q, uint16_t index)
{
	q->last_avail = q->used_idx = index;
	q->signalled_valid = false;
}

/* How many requests wait; more than the ring holds is a lie. */
static int virtq_waiting(const struct virtq *q)
{
	const struct virtq_avail *a = q->avail_p;
	uint16_t n = (uint16_t)(__atomic_load_n(&a->idx, __ATOMIC_ACQUIRE) - q->last_avail);

	return n > q->size ? -EPROTO : n;
}

bool virtq_empty(const struct virtq *q)
{
	return !q->ready || q->broken || virtq_waiting(q) == 0;
}

/* Host address for the device to write to: RAM only. Not marked dirty: that comes with the push,
 * when what was written is known. */
static void *virtq_writable(const struct virtq *q, gpa_t gpa, uint64_t len)
{
	const struct mem_region *r = mem_region_find(q->mem, gpa);

	return r && !(r->flags & MEM_ROM) ? mem_ptr(q->mem, gpa, len) : NULL;
}

/* Add one descriptor's memory to @r. */
static int virtq_segment(struct virtq *q, struct virtq_req *r, const struct virtq_desc *d)
{
	unsigned n = r->nout + r->nin;
	void *p;

	if (d->flags & DESC_WRITE) {
		if (!d->len)
			return 0;
		if (n == VIRTQ_SEG_MAX)
			return -EPROTO;
		p = virtq_writable(q, d->addr, d->len);
		if (!p)
			return -EPROTO;
		r->in_gpa[r->nin] = d->addr;
		r->nin++;
		r->in_bytes += d->len;
	} else {
		if (r->nin)
			return -EPROTO; /* readable after writable (2.7.4.2) */
		if (!d->len)
			return 0;
		if (n == VIRTQ_SEG_MAX)
			return -EPROTO;
		p = mem_ptr(q->mem, d->addr, d->len);
		if (!p)
			return -EPROTO;
		r->nout++;
		r->out_bytes += d->len;
	}
	r->iov[n] = (struct iovec){ .iov_base = p, .iov_len = d->len };
	return 0;
}

/* Walk a chain in @table of @count entries from @i. */
static int virtq_walk(struct virtq *q, struct virtq_req *r, const struct virtq_desc *table,
		      unsigned count, unsigned i, bool indirect)
{
	for (unsigned steps = 0; steps < count; steps++) {
		struct virtq_desc d;
		int ret;

		if (i >= count)
			return -EPROTO;
		desc_copy(&d, &table[i]);
		if (d.flags & DESC_INDIRECT) {
			const struct virtq_desc *t;

			if (indirect || (d.flags & DESC_NEXT) || !d.len || d.len % sizeof(d) ||
			    d.len / sizeof(d) > VIRTQ_SIZE_MAX)
				return -EPROTO;
			t = mem_ptr(q->mem, d.addr, d.len);
			if (!t || !IS_ALIGNED((uintptr_t)t, 8))
				return -EPROTO;
			return virtq_walk(q, r, t, d.len / sizeof(d), 0, true);
		}
		ret = virtq_segment(q, r, &d);
		if (ret)
			return ret;
		if (!(d.flags & DESC_NEXT))
			return 0;
		i = d.next;
	}
	return -EPROTO; /* a loop */
}

int virtq_take(struct virtq *q, uint16_t head, struct virtq_req *req)
{
	if (!q->ready || q->broken)
		return q->broken ? -EPROTO : 0;
	req->q = q;
	req->head = head;
	req->ndescs = 1;
	req->nout = req->nin = 0;
	req->out_bytes = req->in_bytes = 0;
	if (head >= q->size || virtq_walk(q, req, q->desc_p, q->size, head, false) < 0) {
		q->broken = true;
		return -EPROTO;
	}
	return 1;
}

int virtq_pop(struct virtq *q, struct virtq_req *req)
{
	const struct virtq_avail *a = q->avail_p;
	int n;
	uint16_t head;

	if (!q->ready || q->broken)
		return q->broken ? -EPROTO : 0;
	n = virtq_waiting(q);
	if (n <= 0) {
		q->broken = n < 0;
		return n;
	}
	/* more taken than the ring has places: a head is offered again before it came back. It
	 * would be memory without bound here. */
	if ((uint16_t)(q->last_avail - q->used_idx) >= q->size) {
		q->broken = true;
		return -EPROTO;
	}
	head = load16(&a->ring[q->last_avail & (q->size - 1)]);
	n = virtq_take(q, head, req);
	q->last_avail += n > 0;
	return n;
}

void virtq_unpop(struct virtq *q, const struct virtq_req *req)
{
	q->last_avail--;
}

void virtq_put(struct virtq *q, uint16_t ahead, uint16_t head, uint32_t written)
{
	struct virtq_used *u = q->used_p;
	uint16_t slot = (uint16_t)(q->used_idx + ahead) & (q->size - 1);

	if (!q->ready)
		return;
	__atomic_store_n(&u->ring[slot].id, head, __ATOMIC_RELAXED);
	__atomic_store_n(&u->ring[slot].len, written, __ATOMIC_RELAXED);
	mem_dirty_mark(q->mem, q->used + offsetof(struct virtq_used, ring) + 8u * slot, 8);
}

void virtq_publish(struct virtq *q, uint16_t n)
{
	struct virtq_used *u = q->used_p;

	if (!q->ready)
		return;
	q->used_idx += n;
	__atomic_store_n(&u->idx, q->used_idx, __ATOMIC_RELEASE);
	mem_dirty_mark(q->mem, q->used, 4);
}

void virtq_push_head(struct virtq *q, uint16_t head, uint16_t ndescs, uint32_t written)
{
	virtq_put(q, 0, head, written);
	virtq_publish(q, 1);
}

void virtq_mark(const struct virtq_req *req, uint64_t written)
{
	uint64_t left = written;

	for (unsigned i = 0; i < req->nin && left; i++) {
		uint64_t n = MIN(left, req->iov[req->nout + i].iov_len);

		mem_dirty_mark(req->q->mem, req->in_gpa[i], n);
		left -= n;
	}
}

void virtq_push(struct virtq *q, const struct virtq_req *req, uint32_t written)
{
	virtq_mark(req, written);
	virtq_push_head(q, req->head, req->ndescs, written);
}

void virtq_interrupt(struct virtq *q)
{
	const struct virtq_avail *a = q->avail_p;
	bool fire;

	if (!q->ready)
		return;
	/* the used index must be visible before the driver's wish is read (2.7.7.2) */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (q->event_idx) {
		uint16_t event = load16(&a->ring[q->size]);
		uint16_t old = q->signalled_used;

		fire = !q->signalled_valid ||
		       (uint16_t)(q->used_idx - event - 1) < (uint16_t)(q->used_idx - old);
		q->signalled_used = q->used_idx;
		q->signalled_valid = true;
	} else {
		fire = !(load16(&a->flags) & AVAIL_NO_INTR);
	}
	if (fire && q->notify)
		q->notify(q->notify_arg, q);
}

bool virtq_kicks_on(struct virtq *q)
{
	struct virtq_used *u = q->used_p;

	if (!q->ready || q->broken)
		return false;
	if (q->event_idx) {
		store16((uint16_t *)(void *)&u->ring[q->size], q->last_avail);
		mem_dirty_mark(q->mem, q->used + offsetof(struct virtq_used, ring) + 8ull * q->size,
			       2);
	} else {
		store16(&u->flags, 0);
		mem_dirty_mark(q->mem, q->used, 2);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return virtq_waiting(q) != 0;
}

void virtq_kicks_off(struct virtq *q)
{
	struct virtq_used *u = q->used_p;

	/* with the event index, an index once passed asks for nothing more */
	if (q->ready && !q->event_idx) {
		store16(&u->flags, USED_NO_NOTIFY);
		mem_dirty_mark(q->mem, q->used, 2);
	}
}

uint64_t virtq_copy_out(const struct virtq_req *r, uint64_t off, void *buf, uint64_t len)
{
	uint64_t done = 0;

	for (unsigned i = 0; i < r->nout && done < len; i++) {
		uint64_t n = r->iov[i].iov_len;

		if (off >= n) {
			off -= n;
			continue;
		}
		n = MIN(n - off, len - done);
		memcpy((uint8_t *)buf + done, (const uint8_t *)r->iov[i].iov_base + off, n);
		done += n;
		off = 0;
	}
	return done;
}

uint64_t virtq_copy_in(const struct virtq_req *r, uint64_t off, const void *buf, uint64_t len)
{
	uint64_t done = 0;

	for (unsigned i = 0; i < r->nin && done < len; i++) {
		const struct iovec *v = &r->iov[r->nout + i];
		uint64_t n = v->iov_len;

		if (off >= n) {
			off -= n;
			continue;
		}
		n = MIN(n - off, len - done);
		memcpy((uint8_t *)v->iov_base + off, (const uint8_t *)buf + done, n);
		done += n;
		off = 0;
	}
	return done;
}

void virtq_save(const struct virtq *q, struct state_writer *w, uint16_t base_tag)
{
	state_put_u64(w, base_tag,
		      q->size | (uint64_t)q->ready << 16 | (uint64_t)q->event_idx << 17 |
			  (uint64_t)q->broken << 18 | (uint64_t)q->signalled_valid << 19);
	state_put_u64(w, base_tag + 1, q->desc);
	state_put_u64(w, base_tag + 2, q->avail);
	state_put_u64(w, base_tag + 3, q->used);
	state_put_u64(w, base_tag + 4,
		      q->last_avail | (uint64_t)q->used_idx << 16 |
			  (uint64_t)q->signalled_used << 32);
}

int virtq_load(struct virtq *q, const struct state_reader *r, uint16_t base_tag, struct err *e)
{
	uint64_t flags = state_get_u64_or(r, base_tag, 0),
		 idx = state_get_u64_or(r, base_tag + 4, 0);
	int ret = 0;

	q->size = (uint16_t)flags;
	q->event_idx = flags >> 17 & 1;
	q->signalled_valid = flags >> 19 & 1;
	q->desc = state_get_u64_or(r, base_tag + 1, 0);
	q->avail = state_get_u64_or(r, base_tag + 2, 0);
	q->used = state_get_u64_or(r, base_tag + 3, 0);
	q->last_avail = (uint16_t)idx;
	q->used_idx = (uint16_t)(idx >> 16);
	q->signalled_used = (uint16_t)(idx >> 32);
	if (flags >> 16 & 1)
		ret = virtq_enable(q, e);
	q->broken = flags >> 18 & 1;
	return ret;
}
