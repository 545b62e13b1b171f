/* blockdev.c - the graph: opening nodes from a spec, dispatch, the synchronous calls.
 *
 * The drivers are rows of one table; a spec names a row, and nothing is ever probed. The checks
 * that every driver would need (range, alignment, read-only) are made once, here, at the root.
 * Threading: after blk_open() every call may come from any thread.
 * Trust: a spec comes from the core and is trusted to name drivers and fds; what is inside the fds
 * is hostile and is the drivers' matter.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/overflow.h"
#include "common/units.h"
#include "storage/node.h"

#define THREADS_DEFAULT 64
#define THREADS_MAX	256

static const struct blockdev_ops *const node_drivers[] = {
	&file_ops,	 &qcow2_ops,	   &filter_fail_ops,	 &filter_delay_ops,
	&filter_log_ops, &filter_rate_ops, &filter_copyread_ops, &nbd_ops,
};

const char *spec_opt(const struct blk_spec *spec, const char *key)
{
	size_t n = strlen(key);

	for (const char *const *o = spec->opts; o && *o; o++)
		if (strncmp(*o, key, n) == 0 && (*o)[n] == '=')
			return *o + n + 1;
	return NULL;
}

int spec_opt_u64(const struct blk_spec *spec, const char *key, uint64_t dflt, uint64_t max,
		 uint64_t *v, struct err *e)
{
	const char *s = spec_opt(spec, key);
	char *end;

	*v = dflt;
	if (!s)
		return 0;
	errno = 0;
	*v = strtoull(s, &end, 0);
	if (errno || end == s || *end || *v > max || *s == '-')
		return err_set(
		    e, EINVAL, "disk-option", "%s: option %s=%s is not a number up to %llu",
		    spec->label ? spec->label : spec->driver, key, s, (unsigned long long)max);
	return 0;
}

static const struct blockdev_ops *node_driver(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(node_drivers); i++)
		if (name && strcmp(node_drivers[i]->name, name) == 0)
			return node_drivers[i];
	return NULL;
}

static void node_locks_init(struct blockdev *bd)
{
	pthread_mutex_init(&bd->pool_lock, NULL);
	pthread_mutex_init(&bd->gate_lock, NULL);
	pthread_cond_init(&bd->gate_cond, NULL);
}

struct blockdev *node_open(const struct blk_spec *spec, unsigned depth, struct err *e)
{
	const struct blockdev_ops *ops = node_driver(spec->driver);
	const char *label = spec->label ? spec->label : "disk";
	struct blockdev *bd;
	uint64_t threads;

	if (!ops) {
		err_set(e, EINVAL, "disk-driver", "%s: no disk driver is called \"%s\"", label,
			spec->driver ? spec->driver : "");
		return NULL;
	}
	if (depth > BLK_CHAIN_MAX) {
		err_set(e, ELOOP, "disk-chain-too-deep", "%s: more than %d layers in the chain",
			label, BLK_CHAIN_MAX);
		err_hint(e, "flatten it: vmctl disk commit");
		return NULL;
	}
	if (spec_opt_u64(spec, "threads", THREADS_DEFAULT, THREADS_MAX, &threads, e) < 0)
		return NULL;
	bd = calloc(1, sizeof(*bd));
	if (!bd) {
		err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", label);
		return NULL;
	}
	bd->ops = ops;
	bd->read_only = spec->read_only;
	bd->discard = spec->discard;
	bd->detect_zeroes = spec->detect_zeroes;
	bd->unsafe = spec->cache == BLK_CACHE_UNSAFE;
	bd->block_size = 512;
	bd->aio = spec_opt(spec, "aio") && strcmp(spec_opt(spec, "aio"), "on") == 0;
	bd->depth = depth;
	bd->threads_max = threads ? threads : 1;
	snprintf(bd->label, sizeof(bd->label), "%s", label);
	node_locks_init(bd);
	if (ops->open(bd, spec, e) < 0) {
		node_shell_free(bd);
		return NULL;
	}
	return bd;
}

int node_close(struct blockdev *bd, bool keep_fds)
{
	int r = 0;

	if (!bd)
		return 0;
	pool_free(bd->pool);
	r = bd->ops->close(bd, keep_fds);
	node_shell_free(bd);
	return r;
}

/* --- the gate, and moving nodes ------------------------------------------------------------------
 */

bool node_gate_try(struct blockdev *bd)
{
	atomic_fetch_add(&bd->gate_in, 1);
	if (!atomic_load(&bd->gate_shut))
		return true;
	node_gate_leave(bd);
	return false;
}

void node_gate_enter(struct blockdev *bd)
{
	while (!node_gate_try(bd)) {
		pthread_mutex_lock(&bd->gate_lock);
		while (atomic_load(&bd->gate_shut))
			pthread_cond_wait(&bd->gate_cond, &bd->gate_lock);
		pthread_mutex_unlock(&bd->gate_lock);
	}
}

void node_gate_leave(struct blockdev *bd)
{
	/* who shuts it sets the flag and then reads the count, we count down and then read the
	 * flag: one of us sees the other */
	if (atomic_fetch_sub(&bd->gate_in, 1) == 1 && atomic_load(&bd->gate_shut)) {
		pthread_mutex_lock(&bd->gate_lock);
		pthread_cond_broadcast(&bd->gate_cond);
		pthread_mutex_unlock(&bd->gate_lock);
	}
}

void node_gate_shut(struct blockdev *bd)
{
	pthread_mutex_lock(&bd->gate_lock);
	while (atomic_load(&bd->gate_shut))
		pthread_cond_wait(&bd->gate_cond, &bd->gate_lock);
	atomic_store(&bd->gate_shut, true);
	while (atomic_load(&bd->gate_in))
		pthread_cond_wait(&bd->gate_cond, &bd->gate_lock);
	pthread_mutex_unlock(&bd->gate_lock);
}

void node_gate_open(struct blockdev *bd)
{
	pthread_mutex_lock(&bd->gate_lock);
	atomic_store(&bd->gate_shut, false);
	pthread_cond_broadcast(&bd->gate_cond);
	pthread_mutex_unlock(&bd->gate_lock);
}

struct blockdev *node_shell_new(const char *label)
{
	struct blockdev *bd = calloc(1, sizeof(*bd));

	if (!bd)
		return NULL;
	snprintf(bd->label, sizeof(bd->label), "%s", label);
	bd->threads_max = 1;
	node_locks_init(bd);
	return bd;
}

void node_shell_free(struct blockdev *bd)
{
	pthread_mutex_destroy(&bd->pool_lock);
	pthread_mutex_destroy(&bd->gate_lock);
	pthread_cond_destroy(&bd->gate_cond);
	free(bd);
}

void node_move(struct blockdev *to, struct blockdev *from)
{
	to->ops = from->ops;
	to->drv = from->drv;
	memcpy(to->label, from->label, sizeof(to->label));
	to->read_only = from->read_only;
	to->discard = from->discard;
	to->detect_zeroes = from->detect_zeroes;
	to->unsafe = from->unsafe;
	to->aio |= from->aio;
	atomic_store(&to->serial_writes, atomic_load(&from->serial_writes));
	to->block_size = from->block_size;
	atomic_store(&to->size_bytes, atomic_load(&from->size_bytes));
	to->child = from->child;
	to->backing = from->backing;
	to->depth = from->depth;
	from->ops = NULL;
	from->drv = NULL;
	from->child = from->backing = NULL;
	if (to->ops->moved)
		to->ops->moved(to);
}

void node_redepth(struct blockdev *bd, unsigned depth)
{
	for (; bd; bd = bd->backing, depth++) {
		bd->depth = depth;
		for (struct blockdev *c = bd->child; c; c = c->child) {
			c->depth = depth;
			if (c->backing)
				node_redepth(c->backing, depth + 1);
		}
	}
}

int node_read(struct blockdev *bd, struct blk_buf b, uint64_t off, uint64_t len)
{
	return len ? bd->ops->rw(bd, false, b, off, len) : 0;
}

int node_write(struct blockdev *bd, struct blk_buf b, uint64_t off, uint64_t len)
{
	if (!len)
		return 0;
	if (bd->read_only)
		return -EROFS;
	if (bd->detect_zeroes && blk_buf_is_zero(b, len))
		return bd->ops->zero(bd, off, len, NODE_UNMAP);
	return bd->ops->rw(bd, true, b, off, len);
}

int node_pread(struct blockdev *bd, void *p, uint64_t len, uint64_t off)
{
	struct iovec v = { .iov_base = p, .iov_len = len };

	return node_read(bd, (struct blk_buf){ &v, 1, 0 }, off, len);
}

int node_pwrite(struct blockdev *bd, const void *p, uint64_t len, uint64_t off)
{
	struct iovec v = { .iov_base = (void *)(uintptr_t)p, .iov_len = len };

	return node_write(bd, (struct blk_buf){ &v, 1, 0 }, off, len);
}

int node_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	if (!len)
		return 0;
	if (bd->read_only)
		return -EROFS;
	return bd->ops->zero(bd, off, len, flags);
}

int node_flush(struct blockdev *bd)
{
	if (bd->read_only || bd->unsafe)
		return 0;
	return bd->ops->flush(bd);
}

int64_t node_allocate(struct blockdev *bd, uint64_t off, uint64_t min, uint64_t want)
{
	return bd->ops->allocate ? bd->ops->allocate(bd, off, min, want) : -EOPNOTSUPP;
}

int node_resize(struct blockdev *bd, uint64_t size, struct err *e)
{
	if (bd->read_only)
		return err_set(e, EROFS, "disk-read-only", "%s: is read-only", bd->label);
	if (!bd->ops->resize)
		return err_set(e, EOPNOTSUPP, "disk-resize", "%s: driver %s cannot change its size",
			       bd->label, bd->ops->name);
	return bd->ops->resize(bd, size, e);
}

int node_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max)
{
	uint64_t size = atomic_load(&bd->size_bytes);

	if (off >= size || !max)
		return 0;
	if (!bd->ops->extents) {
		ext[0] = (struct blk_extent){ off, size - off, BLK_EXT_DATA, 0 };
		return 1;
	}
	return bd->ops->extents(bd, off, ext, max);
}

static int node_check_range(struct blockdev *bd, uint64_t off, uint64_t len)
{
	uint64_t mask = bd->block_size - 1;

	if (!range_within(off, len, atomic_load(&bd->size_bytes)) || (off & mask) || (len & mask))
		return -EINVAL;
	return 0;
}

static bool request_iov_matches(const struct blk_req *r)
{
	uint64_t sum = 0;

	for (int i = 0; i < r->niov; i++)
		if (!add_u64(sum, r->iov[i].iov_len, &sum))
			return false;
	return sum == r->len_bytes;
}

int node_request(struct blockdev *bd, struct blk_req *r)
{
	struct blk_buf b = { r->iov, r->niov, 0 };
	uint64_t off = r->off_bytes, len = r->len_bytes;
	int ret;

	if (r->op == BLK_FLUSH)
		return node_flush(bd);
	ret = node_check_range(bd, off, len);
	if (ret)
		return ret;
	switch (r->op) {
	case BLK_READ:
		return request_iov_matches(r) ? node_read(bd, b, off, len) : -EINVAL;
	case BLK_WRITE:
		ret = request_iov_matches(r) ? node_write(bd, b, off, len) : -EINVAL;
		break;
	case BLK_DISCARD:
		if (bd->read_only)
			return -EROFS;
		if (bd->discard)
			ret = node_zero(bd, off, len, NODE_DISCARD | NODE_UNMAP);
		break;
	case BLK_WRITE_ZEROES:
		ret = node_zero(bd, off, len,
				(r->flags & BLK_MAY_UNMAP) && bd->discard ? NODE_UNMAP : 0);
		break;
	default:
		return -EINVAL;
	}
	if (ret == 0 && (r->flags & BLK_FUA))
		ret = node_flush(bd);
	return ret;
}

int node_map(struct blockdev *bd, const struct blk_req *r, struct blk_place *p)
{
	bool write = r->op == BLK_WRITE;

	if (!bd->ops->map || (r->op != BLK_READ && !write) || !r->len_bytes || r->niov > 64 ||
	    (write && (bd->read_only || bd->detect_zeroes || (r->flags & BLK_FUA))) ||
	    node_check_range(bd, r->off_bytes, r->len_bytes) || !request_iov_matches(r))
		return -EAGAIN;
	p->finish = NULL;
	p->zero = false;
	return bd->ops->map(bd, write, r, r->off_bytes, p);
}

struct blockdev *blk_open(const struct blk_spec *spec, struct err *e)
{
	return node_open(spec, 1, e);
}

int blk_close(struct blockdev *bd)
{
	return node_close(bd, false);
}

void blk_info(struct blockdev *bd, struct blk_info *info)
{
	*info = (struct blk_info){
		.size_bytes = atomic_load(&bd->size_bytes),
		.block_size = bd->block_size,
		.read_only = bd->read_only,
		.chain_depth = 1,
	};
	node_gate_enter(bd);
	snprintf(info->driver, sizeof(info->driver), "%s", bd->ops->name);
	if (bd->ops->info)
		bd->ops->info(bd, info);
	node_gate_leave(bd);
	info->has_discard = info->has_discard && bd->discard && !bd->read_only;
	info->has_write_zeroes = info->has_write_zeroes && !bd->read_only;
}

int blk_resize(struct blockdev *bd, uint64_t size_bytes, struct err *e)
{
	if (size_bytes % bd->block_size || size_bytes > INT64_MAX)
		return err_set(e, EINVAL, "disk-size",
			       "%s: size %llu is not a multiple of %u below 2^63", bd->label,
			       (unsigned long long)size_bytes, bd->block_size);
	int r;

	node_gate_enter(bd);
	r = node_resize(bd, size_bytes, e);
	node_gate_leave(bd);
	return r;
}

static int blk_sync(struct blockdev *bd, enum blk_op op, void *buf, uint64_t off, uint64_t len,
		    uint32_t flags)
{
	struct iovec v = { .iov_base = buf, .iov_len = len };
	struct blk_req r = {
		.op = op, .flags = flags, .off_bytes = off, .len_bytes = len, .iov = &v, .niov = 1
	};

	int ret;

	node_gate_enter(bd);
	ret = node_request(bd, &r);
	node_gate_leave(bd);
	return ret;
}

int blk_pread(struct blockdev *bd, void *buf, uint64_t len, uint64_t off)
{
	return blk_sync(bd, BLK_READ, buf, off, len, 0);
}

int blk_pwrite(struct blockdev *bd, const void *buf, uint64_t len, uint64_t off)
{
	return blk_sync(bd, BLK_WRITE, (void *)(uintptr_t)buf, off, len, 0);
}

int blk_zero(struct blockdev *bd, uint64_t off, uint64_t len, bool may_unmap)
{
	return blk_sync(bd, BLK_WRITE_ZEROES, NULL, off, len, may_unmap ? BLK_MAY_UNMAP : 0);
}

int blk_discard(struct blockdev *bd, uint64_t off, uint64_t len)
{
	return blk_sync(bd, BLK_DISCARD, NULL, off, len, 0);
}

int blk_flush(struct blockdev *bd)
{
	int r;

	node_gate_enter(bd);
	r = node_flush(bd);
	node_gate_leave(bd);
	return r;
}

int blk_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max)
{
	int r;

	node_gate_enter(bd);
	r = node_extents(bd, off, ext, max);
	node_gate_leave(bd);
	return r;
}
