/* job_info.c - jobs that look and mend: info, map, check, resize, internal snapshots.
 *
 * JSON keys are those of qemu-img --output=json, so that scripts written for it read ours.
 * Threading and trust: job.h. Every string that comes from an image is escaped.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/job_util.h"
#include "storage/qcow2.h"
#include "storage/qcow2_tools.h"

void job_close_fds(const struct blk_spec *s)
{
	for (; s; s = s->backing) {
		if (s->fd >= 0)
			close(s->fd);
		if (s->child)
			job_close_fds(s->child);
	}
}

struct blockdev *job_open(const struct blk_spec *spec, struct err *e)
{
	struct blockdev *bd = blk_open(spec, e);

	if (!bd)
		job_close_fds(spec);
	return bd;
}

static void json_str(struct text *t, const char *s)
{
	text_add(t, "\"");
	for (; *s; s++) {
		unsigned char c = *s;

		if (c == '"' || c == '\\')
			text_printf(t, "\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			text_printf(t, "\\u%04x", c); /* bytes, not characters: names are hostile */
		else
			text_printf(t, "%c", c);
	}
	text_add(t, "\"");
}

static const char *json_bool(bool b)
{
	return b ? "true" : "false";
}

static int info_qcow2(struct blockdev *bd, struct text *t, struct err *e)
{
	struct qcow2_header_info h;
	struct qcow2_snapshot_info *s = NULL;
	struct qcow2_bitmap_info *b = NULL;
	int n = 0, nb = 0;

	if (qcow2_header_info(bd, &h) < 0)
		return 0;
	n = qcow2_snapshot_list(bd, &s, e);
	nb = n < 0 ? n : qcow2_bitmap_list(bd, &b, e);
	if (n < 0 || nb < 0) {
		free(s);
		return n < 0 ? n : nb;
	}
	text_printf(t, ",\"dirty-flag\":%s", json_bool(h.dirty));
	if (h.backing_name[0]) {
		text_add(t, ",\"backing-filename\":");
		json_str(t, h.backing_name);
	}
	if (h.backing_format[0]) {
		text_add(t, ",\"backing-filename-format\":");
		json_str(t, h.backing_format);
	}
	for (int i = 0; i < n; i++) {
		text_add(t, i ? ",{\"id\":" : ",\"snapshots\":[{\"id\":");
		json_str(t, s[i].id);
		text_add(t, ",\"name\":");
		json_str(t, s[i].name);
		text_printf(t, ",\"vm-state-size\":%llu,\"date-sec\":%llu,\"date-nsec\":%llu}%s",
			    (unsigned long long)s[i].vm_state_bytes,
			    (unsigned long long)s[i].date_ms / 1000,
			    (unsigned long long)s[i].date_ms % 1000 * 1000000,
			    i + 1 == n ? "]" : "");
	}
	text_printf(t,
		    ",\"format-specific\":{\"type\":\"qcow2\",\"data\":{\"compat\":\"%s\","
		    "\"compression-type\":\"%s\","
		    "\"lazy-refcounts\":%s,\"refcount-bits\":%u,\"corrupt\":%s,\"extended-l2\":%s",
		    h.version == 2 ? "0.10" : "1.1", h.zstd ? "zstd" : "zlib",
		    json_bool(h.lazy_refcounts), h.refcount_bits, json_bool(h.corrupt),
		    json_bool(h.extended_l2));
	for (int i = 0; i < nb; i++) {
		text_add(t, i ? ",{\"name\":" : ",\"bitmaps\":[{\"name\":");
		json_str(t, b[i].name);
		text_printf(t, ",\"granularity\":%llu,\"flags\":[%s%s%s]}%s",
			    (unsigned long long)b[i].granularity, b[i].in_use ? "\"in-use\"" : "",
			    b[i].in_use && b[i].automatic ? "," : "",
			    b[i].automatic ? "\"auto\"" : "", i + 1 == nb ? "]" : "");
	}
	text_add(t, "}}");
	free(s);
	free(b);
	return 0;
}

int blkjob_info(const struct blk_spec *spec, struct text *json, struct err *e)
{
	struct blockdev *bd = job_open(spec, e);
	struct blk_info info;
	int r;

	if (!bd)
		return e ? -e->num : -EIO;
	blk_info(bd, &info);
	text_add(json, "{\"filename\":");
	json_str(json, bd->label);
	text_printf(json, ",\"format\":\"%s\",\"virtual-size\":%llu,\"actual-size\":%llu",
		    strcmp(info.driver, "file") == 0 ? "raw" : info.driver,
		    (unsigned long long)info.size_bytes, (unsigned long long)info.allocated_bytes);
	if (info.cluster_size)
		text_printf(json, ",\"cluster-size\":%u", info.cluster_size);
	r = info_qcow2(bd, json, e);
	text_add(json, "}");
	blk_close(bd);
	r = r ? r : json->error;
	return r ? job_error(e, r, spec->label, "info") : 0;
}

int blkjob_map(const struct blkjob *job, const struct blk_spec *spec, struct text *json,
	       struct err *e)
{
	struct blockdev *bd = job_open(spec, e);
	struct blk_extent x[64], cur = { 0 };
	uint64_t off = 0, size;
	struct blkjob_run run;
	bool any = false;
	int n, r = 0;

	if (!bd)
		return e ? -e->num : -EIO;
	size = atomic_load(&bd->size_bytes);
	run = job_begin(job, size);
	text_add(json, "[");
	for (;;) {
		n = off < size ? blk_extents(bd, off, x, ARRAY_SIZE(x)) : 0;
		if (n < 0)
			r = n;
		for (int i = 0; i <= n; i++) {
			bool last = i == n;

			if (last && n)
				break;
			if (!last && any && x[i].kind == cur.kind && x[i].depth == cur.depth) {
				cur.len_bytes += x[i].len_bytes;
				continue;
			}
			if (any)
				text_printf(json,
					    "%s{\"start\":%llu,\"length\":%llu,\"depth\":%u,"
					    "\"present\":%s,\"zero\":%s,\"data\":%s}",
					    cur.off_bytes ? ",\n" : "",
					    (unsigned long long)cur.off_bytes,
					    (unsigned long long)cur.len_bytes, cur.depth,
					    json_bool(cur.kind != BLK_EXT_HOLE),
					    json_bool(cur.kind != BLK_EXT_DATA),
					    json_bool(cur.kind == BLK_EXT_DATA));
			if (!last) {
				cur = x[i];
				any = true;
			}
		}
		if (n <= 0)
			break;
		r = job_step(&run, x[n - 1].off_bytes + x[n - 1].len_bytes - off);
		if (r)
			break;
		off = x[n - 1].off_bytes + x[n - 1].len_bytes;
	}
	text_add(json, "]");
	blk_close(bd);
	r = r ? r : json->error;
	return r ? job_error(e, r, spec->label, "map") : 0;
}

int blkjob_check(const struct blk_spec *spec, enum blkjob_repair how, struct blkjob_check *c,
		 struct err *e)
{
	static const char *const opts[] = { "repair=no", "backing=ignore", NULL };
	struct blk_spec s = *spec;
	struct blockdev *bd;
	struct q2_check q = { 0 };
	int r, r2, same = -1;
	struct stat was;

	*c = (struct blkjob_check){ 0 };
	/* leaks are nobody's content: those built on it need not notice that they went */
	if (how == BLKJOB_REPAIR_LEAKS && fstat(spec->fd, &was) == 0)
		same = fcntl(spec->fd, F_DUPFD_CLOEXEC, 3);
	s.opts = opts;
	s.read_only = how == BLKJOB_CHECK;
	bd = job_open(&s, e);
	if (!bd || bd->ops != &qcow2_ops) {
		if (same >= 0)
			close(same);
		if (!bd)
			return e ? -e->num : -EIO;
		blk_close(bd);
		return err_set(e, ENOTSUP, "disk-format", "%s: only qcow2 images can be checked",
			       spec->label);
	}
	r = q2_check_run(bd->drv,
			 how == BLKJOB_REPAIR_ALL     ? Q2_REPAIR_ALL
			 : how == BLKJOB_REPAIR_LEAKS ? Q2_REPAIR_LEAKS
						      : Q2_REPAIR_NONE,
			 &q, e);
	if (!r) {
		*c =
		    (struct blkjob_check){ q.errors,	     q.leaks,	      q.errors_fixed,
					   q.leaks_fixed,    q.data_clusters, q.compressed_clusters,
					   q.total_clusters, q.image_end,     "" };
		memcpy(c->first, q.first, sizeof(c->first));
	}
	r2 = blk_close(bd);
	if (same >= 0) {
		if (!q.errors)
			(void)futimens(same, (const struct timespec[]){ was.st_atim, was.st_mtim });
		close(same);
	}
	r = r ? r : r2;
	return r ? job_error(e, r, spec->label, "check") : 0;
}

/* resize_tail_is_zero() - proof that shrinking loses nothing. */
static int resize_tail_is_zero(struct blkjob_run *run, struct blockdev *bd, uint64_t from,
			       bool *zero)
{
	uint64_t size = atomic_load(&bd->size_bytes), off = from;
	_cleanup_free_ uint8_t *buf = malloc(MIB);
	int r = buf ? 0 : -ENOMEM;

	*zero = true;
	while (off < size && !r && *zero) {
		struct blk_extent x[1];
		int n = blk_extents(bd, off, x, 1);
		uint64_t len;

		if (n <= 0)
			return n;
		len = MIN(x[0].off_bytes + x[0].len_bytes, size) - off;
		if (x[0].kind == BLK_EXT_DATA) {
			len = MIN(len, MIB);
			r = blk_pread(bd, buf, len, off);
			*zero = !r && mem_is_zero(buf, len);
		}
		if (!r)
			r = job_step(run, len);
		off += len;
	}
	return r;
}

int blkjob_resize(const struct blkjob *job, const struct blk_spec *spec, uint64_t size_bytes,
		  bool force, struct err *e)
{
	struct blockdev *bd = job_open(spec, e);
	struct blkjob_run run;
	bool zero = true;
	uint64_t old;
	int r = 0, r2;

	if (!bd)
		return e ? -e->num : -EIO;
	old = atomic_load(&bd->size_bytes);
	run = job_begin(job, old > size_bytes ? old - size_bytes : 0);
	if (size_bytes < old && !force)
		r = resize_tail_is_zero(&run, bd, size_bytes, &zero);
	if (!zero) {
		r = err_set(e, ENOTEMPTY, "disk-shrink", "%s: holds data past %llu bytes",
			    bd->label, (unsigned long long)size_bytes);
		err_hint(e, "shrink the file system in the guest first and trim, or use --force");
	}
	if (!r)
		r = blk_resize(bd, size_bytes, e);
	if (r)
		job_error(e, r, bd->label, "resize");
	r2 = blk_close(bd);
	return r ? r : r2 ? job_error(e, r2, spec->label, "resize") : 0;
}

int blkjob_snapshot_delete(const struct blk_spec *spec, const char *name, struct err *e)
{
	struct blockdev *bd = job_open(spec, e);
	int r, r2;

	if (!bd)
		return e ? -e->num : -EIO;
	r = qcow2_snapshot_delete(bd, name, e);
	r2 = blk_close(bd);
	r = r ? r : r2;
	return r ? job_error(e, r, spec->label, "snapshot delete") : 0;
}
