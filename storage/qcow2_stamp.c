/* qcow2_stamp.c - a parent that was changed under its overlay is noticed.
 *
 * An overlay's first write notes in a header extension of our own (others keep and ignore it) what
 * its parent's file looked like: size, time of the last change, and the name it goes by. When the
 * overlay is opened for writing again and the parent looks different, what the overlay shows is no
 * longer what its guest wrote: opening is refused, with the parent's name. For reading (to rescue
 * what is there) it is only said. Rebasing makes it good: the next first write notes anew.
 * A commit changes a parent and takes nothing from what is shown. It first lifts the note of the
 * top (a time that no file has): killed or failed at any moment, the chain opens as it did before,
 * and what is below the top is not compared until a commit or a rebase has ended well.
 * Threading: at opening, and under the image's lock. Trust: the extension's numbers are only
 * compared.
 */
#include <errno.h>
#include <string.h>

#include "common/log.h"
#include "storage/qcow2.h"

#define Q2_STAMP_LIFTED UINT64_MAX

static uint64_t q2_stamp_name(const char *s)
{
	uint64_t h = 0xcbf29ce484222325ULL;

	for (; *s; s++)
		h = (h ^ (uint8_t)*s) * 0x100000001b3ULL;
	return h;
}

/* q2_stamp_now() - of the parent's file as it is. False: it has none that could be stamped. */
static bool q2_stamp_now(const struct qcow2 *q, struct q2_stamp *s)
{
	struct blockdev *b = q->bd->backing;

	if (b && b->ops == &qcow2_ops)
		b = ((struct qcow2 *)b->drv)->file;
	*s = (struct q2_stamp){ .name_hash = q2_stamp_name(q->backing_name) };
	return b && b->ops == &file_ops && q->backing_name[0] &&
	       file_stamp(b, &s->size_bytes, &s->mtime_ns) == 0;
}

static int q2_stamp_write(struct qcow2 *q, const struct q2_stamp *s)
{
	struct q2_stamp was = q->stamp;
	int r;

	if (memcmp(&was, s, sizeof(was)) == 0)
		return 0;
	q->stamp = *s;
	r = q2_header_rewrite(q, q->backing_name, q->backing_format[0] ? q->backing_format : NULL);
	if (r)
		q->stamp = was;
	/* a header that is full has none, and is as good as it was */
	return r == -ENAMETOOLONG || r == -ENOTSUP ? 0 : r;
}

int q2_stamp_renew(struct qcow2 *q)
{
	struct q2_stamp s;

	return q->version < 3 || !q2_stamp_now(q, &s) ? 0 : q2_stamp_write(q, &s);
}

int q2_stamp_lift(struct qcow2 *q)
{
	const struct q2_stamp s = { .mtime_ns = Q2_STAMP_LIFTED,
				    .name_hash = q2_stamp_name(q->backing_name) };
	int r = q2_begin_write(q);

	return r || q->version < 3 || !q->backing_name[0] ? r : q2_stamp_write(q, &s);
}

int q2_stamp_check(struct qcow2 *q, const struct blk_spec *spec, struct err *e)
{
	const char *opt = spec_opt(spec, "backing-changed");

	for (struct blockdev *b = q->bd; b && b->ops == &qcow2_ops && b->backing; b = b->backing) {
		const struct qcow2 *l = b->drv;
		struct q2_stamp now;

		if (l->stamp.mtime_ns == Q2_STAMP_LIFTED)
			break;
		if (!l->stamp.mtime_ns || !q2_stamp_now(l, &now) ||
		    l->stamp.name_hash != now.name_hash ||
		    (l->stamp.size_bytes == now.size_bytes && l->stamp.mtime_ns == now.mtime_ns))
			continue;
		if (q->bd->read_only || (opt && strcmp(opt, "accept") == 0)) {
			log_warn("%s: what it is built on, \"%s\", was changed under it", b->label,
				 l->backing_name);
			continue;
		}
		err_set(e, ESTALE, "disk-backing-changed",
			"%s: what it is built on, \"%s\" (%s), was changed under it: its guest "
			"would see a mixture of old and new",
			b->label, l->backing_name, b->backing->label);
		err_hint(e, "put the old file back, or accept it as it is: vmctl disk rebase "
			    "--unsafe");
		return -ESTALE;
	}
	return 0;
}
