/* qcow2_snapshot.c - internal snapshots: list, open one for reading, delete.
 *
 * We never make them (ours are external: an overlay is instant and costs nothing to write through),
 * but images that carry them are imported. Deleting one lowers the refcounts of all it uses; the
 * table is rewritten without it at a new place, made stable, and only then are clusters let go.
 * Threading: nothing else may use the image while one is deleted. Trust: the table is hostile;
 * entries are bounded one by one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "storage/qcow2.h"
#include "storage/qcow2_tools.h"

static uint64_t q2_get(const uint8_t *p, unsigned n)
{
	uint64_t v = 0;

	while (n--)
		v = v << 8 | *p++;
	return v;
}

/* q2_snapshot_parse() - one entry from @p; returns its length, or 0 where it is not valid. */
static uint64_t q2_snapshot_parse(const uint8_t *p, uint64_t left, struct q2_snapshot *s)
{
	uint64_t id, name, extra, len;

	if (left < 40)
		return 0;
	id = q2_get(p + 12, 2);
	name = q2_get(p + 14, 2);
	extra = q2_get(p + 36, 4);
	if (extra > 1024)
		return 0;
	len = ALIGN_UP(40 + extra + id + name, 8ULL);
	if (40 + extra + id + name > left)
		return 0;
	*s = (struct q2_snapshot){
		.l1_off = q2_get(p, 8),
		.l1_size = q2_get(p + 8, 4),
		.date_s = q2_get(p + 16, 4),
		.date_ns = q2_get(p + 20, 4),
		.vm_clock_ns = q2_get(p + 24, 8),
		.vm_state_size = extra >= 8 ? q2_get(p + 40, 8) : q2_get(p + 32, 4),
		.disk_size = extra >= 16 ? q2_get(p + 48, 8) : 0,
	};
	memcpy(s->id, p + 40 + extra, MIN(id, sizeof(s->id) - 1));
	memcpy(s->name, p + 40 + extra + id, MIN(name, sizeof(s->name) - 1));
	return len;
}

static int q2_snapshot_bytes(struct qcow2 *q, uint8_t **buf, uint64_t *len)
{
	uint64_t most = atomic_load(&q->file->size_bytes) - q->snapshots_off, cap;
	int r;

	/* its length is known only by walking it: read at most what any table may take */
	cap = MIN(MIN(most, (uint64_t)Q2_SNAPSHOT_TABLE_MAX),
		  q->nb_snapshots * (40ULL + 1024 + 2 * 65536));
	*buf = malloc(MAX(cap, 1ULL));
	if (!*buf)
		return -ENOMEM;
	*len = cap;
	r = node_pread(q->file, *buf, cap, q->snapshots_off);
	if (r) {
		free(*buf);
		*buf = NULL;
	}
	return r;
}

int q2_snapshots_load(struct qcow2 *q, struct q2_snapshot **list, struct err *e)
{
	_cleanup_free_ uint8_t *buf = NULL;
	uint64_t len, at = 0;
	int r;

	*list = NULL;
	q->snapshots_bytes = 0;
	if (!q->nb_snapshots)
		return 0;
	r = q2_snapshot_bytes(q, &buf, &len);
	if (r)
		return err_set(e, -r, "disk-open", "%s: cannot read the snapshot table: %s",
			       q->bd->label, strerror(-r));
	*list = calloc(q->nb_snapshots, sizeof(**list));
	if (!*list)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", q->bd->label);
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		struct q2_snapshot *s = &(*list)[i];
		uint64_t n = q2_snapshot_parse(buf + at, len - at, s);

		if (!n || s->l1_size > Q2_L1_MAX_BYTES / 8 || (s->l1_off & (q->cluster_size - 1)) ||
		    s->disk_size > INT64_MAX ||
		    !range_within(s->l1_off, s->l1_size * 8ULL, atomic_load(&q->host_end))) {
			free(*list);
			*list = NULL;
			return err_set(e, EUCLEAN, "disk-corrupt",
				       "%s: snapshot %u in the table at offset %llu is not valid",
				       q->bd->label, i, (unsigned long long)q->snapshots_off);
		}
		at = MIN(at + n, len);
	}
	q->snapshots_bytes = at;
	return q->nb_snapshots;
}

static struct qcow2 *q2_of(struct blockdev *bd, struct err *e)
{
	if (bd->ops == &qcow2_ops)
		return bd->drv;
	err_set(e, ENOTSUP, "disk-format", "%s: is not a qcow2 image", bd->label);
	return NULL;
}

int qcow2_snapshot_list(struct blockdev *bd, struct qcow2_snapshot_info **list, struct err *e)
{
	struct qcow2 *q = q2_of(bd, e);
	_cleanup_free_ struct q2_snapshot *s = NULL;
	int n = q ? q2_snapshots_load(q, &s, e) : -ENOTSUP;

	*list = NULL;
	if (n <= 0)
		return n;
	*list = calloc(n, sizeof(**list));
	if (!*list)
		return err_set(e, ENOMEM, "out-of-memory", "%s: out of memory", bd->label);
	for (int i = 0; i < n; i++) {
		struct qcow2_snapshot_info *o = &(*list)[i];

		memcpy(o->id, s[i].id, sizeof(o->id));
		memcpy(o->name, s[i].name, sizeof(o->name));
		o->date_ms = s[i].date_s * 1000ULL + s[i].date_ns / 1000000;
		o->vm_state_bytes = s[i].vm_state_size;
		o->disk_bytes = s[i].disk_size ? s[i].disk_size : atomic_load(&bd->size_bytes);
	}
	return n;
}

static int q2_snapshot_find(const struct q2_snapshot *s, int n, const char *name)
{
	for (int i = 0; s && i < n; i++)
		if (strcmp(s[i].id, name) == 0)
			return i;
	for (int i = 0; s && i < n; i++)
		if (strcmp(s[i].name, name) == 0)
			return i;
	return -1;
}

/* qcow2_snapshot_view() - from now on the (read-only) node shows the disk as the snapshot has it.
 */
int qcow2_snapshot_view(struct blockdev *bd, const char *name, struct err *e)
{
	struct qcow2 *q = q2_of(bd, e);
	_cleanup_free_ struct q2_snapshot *s = NULL;
	uint64_t size, need;
	int n = q ? q2_snapshots_load(q, &s, e) : -ENOTSUP, i, r;

	if (n < 0)
		return n;
	i = q2_snapshot_find(s, n, name);
	if (i < 0)
		return err_set(e, ENOENT, "snapshot-not-found",
			       "%s: has no internal snapshot \"%s\"", bd->label, name);
	if (!bd->read_only)
		return err_set(e, EINVAL, "disk-not-read-only",
			       "%s: a snapshot is opened for reading only", bd->label);
	size = s[i].disk_size ? ALIGN_UP(s[i].disk_size, 512ULL) : atomic_load(&bd->size_bytes);
	need =
	    (size + (1ULL << (q->cluster_bits + q->l2_bits)) - 1) >> (q->cluster_bits + q->l2_bits);
	if (need > s[i].l1_size)
		return err_set(e, EUCLEAN, "disk-corrupt",
			       "%s: snapshot \"%s\" has too small an L1 table at offset %llu",
			       bd->label, name, (unsigned long long)s[i].l1_off);
	pthread_rwlock_wrlock(&q->lock);
	q2_dir_fini(q, &q->l1);
	q->slice_gen++;
	r = q2_load_top(q, &q->l1, s[i].l1_off, s[i].l1_size, e);
	if (r) {
		struct err ignored = { 0 };

		(void)q2_load_top(q, &q->l1, 0, 0, &ignored);
		size = 0;
	}
	atomic_store(&bd->size_bytes, size);
	pthread_rwlock_unlock(&q->lock);
	return r;
}

/* q2_snapshot_unref() - every cluster the snapshot's L1 uses loses one reference, on the next
 * commits. */
static int q2_snapshot_unref(struct qcow2 *q, const struct q2_snapshot *s)
{
	_cleanup_free_ uint64_t *l1 = malloc(MAX(s->l1_size, 1u) * 8ULL);
	_cleanup_free_ uint64_t *table = malloc(q->cluster_size);
	int r;

	if (!l1 || !table)
		return -ENOMEM;
	r = node_pread(q->file, l1, s->l1_size * 8ULL, s->l1_off);
	for (uint32_t t = 0; t < s->l1_size && !r; t++) {
		uint64_t host = be64toh(l1[t]) & Q2_OFFSET_MASK;

		if (!host)
			continue;
		if ((host & (q->cluster_size - 1)) || host >= atomic_load(&q->host_end))
			return q2_corrupt(q, "a snapshot's L1 entry points to offset %llu",
					  (unsigned long long)host);
		r = node_pread(q->file, table, q->cluster_size, host);
		for (uint32_t i = 0; i < 1u << q->l2_bits && !r; i++) {
			uint64_t l2 = be64toh(table[q->ext_l2 ? 2 * i : i]),
				 off = l2 & Q2_OFFSET_MASK;
			uint64_t len = q->cluster_size;

			if (l2 & Q2_COMPRESSED)
				q2_comp_extent(q, l2, &off, &len);
			if (off)
				q2_free_later_locked(q, off, len);
		}
		if (!r)
			q2_free_later_locked(q, host, q->cluster_size);
	}
	if (!r && s->l1_size)
		q2_free_later_locked(q, s->l1_off, ALIGN_UP(s->l1_size * 8ULL, q->cluster_size));
	return r;
}

static int q2_snapshot_table_without(struct qcow2 *q, int skip, uint64_t *host, uint64_t *len)
{
	_cleanup_free_ uint8_t *buf = NULL, *out = NULL;
	uint64_t n, at = 0, o = 0;
	struct q2_snapshot s;
	int r = q2_snapshot_bytes(q, &buf, &n);

	if (r)
		return r;
	out = calloc(1, ALIGN_UP(MAX(q->snapshots_bytes, 1ULL), q->cluster_size));
	if (!out)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->nb_snapshots; i++) {
		uint64_t k = q2_snapshot_parse(buf + at, n - at, &s);

		if (!k)
			return -EUCLEAN;
		if ((int)i != skip) {
			memcpy(out + o, buf + at, MIN(k, n - at));
			o += k;
		}
		at = MIN(at + k, n);
	}
	*len = o;
	*host = 0;
	if (!o)
		return 0;
	r = q2_alloc_locked(q, q2_clusters(q, o), false, host, NULL);
	return r ? r : node_pwrite(q->file, out, ALIGN_UP(o, q->cluster_size), *host);
}

int qcow2_snapshot_delete(struct blockdev *bd, const char *name, struct err *e)
{
	struct qcow2 *q = q2_of(bd, e);
	_cleanup_free_ struct q2_snapshot *s = NULL;
	uint64_t host, len, old_off, old_len;
	struct q2_check c;
	int n = q ? q2_snapshots_load(q, &s, e) : -ENOTSUP, i, r;

	if (n < 0)
		return n;
	i = q2_snapshot_find(s, n, name);
	if (i < 0)
		return err_set(e, ENOENT, "snapshot-not-found",
			       "%s: has no internal snapshot \"%s\"", bd->label, name);
	r = q2_begin_write(q);
	if (!r) {
		pthread_rwlock_wrlock(&q->lock);
		old_off = q->snapshots_off;
		old_len = ALIGN_UP(q->snapshots_bytes, q->cluster_size);
		r = q2_snapshot_table_without(q, i, &host, &len);
		if (!r) {
			q->nb_snapshots--;
			q->snapshots_off = host;
			q->header_dirty = true;
			r = q2_snapshot_unref(q, &s[i]);
			q2_free_later_locked(q, old_off, old_len);
		}
		pthread_rwlock_unlock(&q->lock);
	}
	/* the header without it; then the references; then their refcounts on disk */
	for (int k = 0; k < 3 && !r; k++)
		r = q2_commit(q);
	/* what is now used once may be written in place again: the COPIED flags */
	if (!r)
		r = q2_check_copied(q);
	if (!r)
		r = q2_check_run(q, Q2_REPAIR_LEAKS, &c, e);
	if (r && !err_is_set(e))
		err_set(e, -r, "disk-snapshot", "%s: snapshot \"%s\" could not be deleted: %s",
			bd->label, name, strerror(-r));
	return r;
}
