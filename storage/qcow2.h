/* qcow2.h - inside storage/: the qcow2 driver's shared structures (format: QEMU
 * docs/interop/qcow2).
 *
 * Metadata is kept as on disk (big-endian), in slices of 4 KiB loaded on demand and dirty by
 * sector: an idle disk holds only its L1 and refcount tables. One reader/writer lock guards the map
 * and the allocator: lookups share it, changes take it alone, and no data I/O happens under it. A
 * cluster that is unreferenced is reused only after that is stable on disk and after every request
 * that could still hold its address has ended (epochs).
 */
#ifndef STORAGE_QCOW2_H
#define STORAGE_QCOW2_H

#include <endian.h>

#include "common/list.h"
#include "storage/node.h"

#define Q2_MAGIC		0x514649fbu
#define Q2_INCOMPAT_DIRTY	(1ULL << 0)
#define Q2_INCOMPAT_CORRUPT	(1ULL << 1)
#define Q2_INCOMPAT_DATA_FILE	(1ULL << 2)
#define Q2_INCOMPAT_COMPRESSION (1ULL << 3)
#define Q2_INCOMPAT_EXT_L2	(1ULL << 4)
#define Q2_COMPAT_LAZY		(1ULL << 0)
#define Q2_AUTOCLEAR_BITMAPS	(1ULL << 0)
#define Q2_EXT_END		0u
#define Q2_EXT_BACKING_FORMAT	0xe2792acau
#define Q2_EXT_FEATURES		0x6803f857u
#define Q2_EXT_BITMAPS		0x23852875u
#define Q2_EXT_LUKS		0x0537be77u
#define Q2_EXT_DATA_FILE	0x44415441u
#define Q2_EXT_STAMP		0x564d4442u /* ours: "VMDB", see qcow2_stamp.c */
#define Q2_HEADER_V2		72u
#define Q2_HEADER_V3		104u
#define Q2_HEADER_OURS		112u
#define Q2_L1_MAX_BYTES		(32u << 20)
#define Q2_REFTABLE_MAX_BYTES	(8u << 20)
#define Q2_SNAPSHOTS_MAX	65536u
#define Q2_SNAPSHOT_TABLE_MAX	(64u << 20)
#define Q2_BITMAPS_MAX		65535u

#define Q2_OFFSET_MASK 0x00fffffffffffe00ULL
#define Q2_COPIED      (1ULL << 63)
#define Q2_COMPRESSED  (1ULL << 62)
#define Q2_ZERO_FLAG   (1ULL << 0)
#define Q2_SLICE_MAX   4096u
#define Q2_SECTOR      512u

struct q2_slice {
	struct list clock; /* ring of all slices, for eviction */
	struct q2_dir *dir;
	uint32_t top, idx; /* place in the directory */
	uint64_t host;
	uint8_t dirty; /* a bit a 512-byte sector */
	uint8_t busy;  /* being written by a commit: not evicted */
	_Atomic uint8_t used;
	uint64_t data[];
};

/* A two-level table on disk: L1 over L2 tables, or the refcount table over refcount blocks. */
struct q2_dir {
	uint64_t *top; /* host-endian */
	uint64_t top_off;
	uint32_t top_n;
	uint64_t *top_dirty; /* a bit a sector of the top table, i.e. 64 entries */
	bool top_is_dirty,
	    moved;		/* moved: the whole top table is at a new place, header to follow */
	struct q2_slice ***tab; /* top_n pointers to slices_per_table pointers */
};

struct q2_extent {
	uint64_t start, count; /* clusters */
};

struct q2_freed {
	struct q2_freed *next;
	uint64_t host, len;
};

struct q2_range {
	struct list node;
	uint64_t start, end;
};

struct q2_snapshot {
	uint64_t l1_off, vm_clock_ns, disk_size, vm_state_size;
	uint32_t l1_size, date_s, date_ns;
	char id[64], name[256];
};

struct q2_limits {
	uint64_t cache_bytes;
};

/* what a parent's file looked like; mtime_ns 0: not noted */
struct q2_stamp {
	uint64_t size_bytes, mtime_ns, name_hash;
};

struct qcow2 {
	struct blockdev *bd, *file;
	/* format, constant after open */
	unsigned version, cluster_bits, unit_bits, units, l2_entry_bytes, l2_bits, refcount_order;
	uint64_t cluster_size, unit_size;
	bool ext_l2;
	uint8_t compression; /* 0 zlib, 1 zstd */
	uint32_t header_length, slice_bytes, slices_per_table, entries_per_slice;
	uint64_t incompat, compat, autoclear;
	char backing_name[1024];
	char backing_format[64];
	struct q2_stamp stamp;
	uint64_t bitmap_dir_off, bitmap_dir_size;
	uint32_t nb_bitmaps;
	bool has_bitmap_ext;
	uint64_t snapshots_off, snapshots_bytes;
	uint32_t nb_snapshots;

	pthread_rwlock_t lock;
	struct q2_dir l1, rt;
	uint32_t reftable_clusters;
	_Atomic uint64_t host_end; /* bytes: nothing valid lies at or beyond */
	struct list clock;
	unsigned slices, slices_max, slices_dirty;
	uint64_t slice_gen; /* grows whenever a slice leaves or its table moves */
	_Atomic bool corrupt;
	_Atomic bool begun;	/* the first write has cleared the autoclear bits */
	_Atomic int sync_error; /* the first failed sync, for good */
	bool header_dirty;

	/* allocator, under lock taken alone */
	bool alloc_ready;
	uint64_t bump, zero_from; /* clusters; from zero_from on the file reads as zeroes */
	uint64_t prealloc_end, prealloc_step; /* bytes */
	bool prealloc_off;
	struct q2_extent *free_ext;
	unsigned nfree, free_cap;
	uint64_t *meta; /* sorted host offsets of metadata clusters */
	size_t nmeta, meta_cap;
	bool new_refblocks;
	uint64_t comp_next, comp_end; /* bytes: where the next compressed cluster goes */

	/* freed clusters on their way: fresh → (commit) → limbo → (epoch drained) → refcount down
	 */
	struct q2_freed *freed, *limbo;
	_Atomic unsigned epoch;
	_Atomic unsigned active[2];
	unsigned limbo_epoch;

	pthread_mutex_t flush_lock;
	_Atomic uint64_t flush_want;
	uint64_t flush_done;
	int flush_result;
	unsigned long aio_ctx; /* kernel AIO for commits, under flush_lock; 0 none yet */

	pthread_mutex_t range_lock;
	pthread_cond_t range_cond;
	struct list ranges;

	pthread_mutex_t comp_lock;
	uint64_t comp_cached; /* guest-independent: the L2 entry, 0 none */
	uint8_t *comp_buf;

	/* dirty bitmaps in RAM: lock order is the image's lock, then this one */
	pthread_rwlock_t bm_lock;
	struct list bm, bm_gone;     /* q2_bitmap_ram; removed but still in the file */
	bool bm_loaded;		     /* the list is what counts, not the file */
	bool bm_owned;		     /* in the file they are marked in use */
	bool bm_changed;	     /* the directory must be written anew */
	_Atomic bool bm_on;	     /* one at least is enabled, or tracked */
	struct q2_bitmap_ram *track; /* what is written during a live commit; in no file */

	struct q2_chain *_Atomic chain; /* the layers below, merged; NULL until needed */
};

enum q2_kind { Q2_UNALLOC, Q2_ZERO, Q2_DATA, Q2_COMP };

struct q2_seg {
	enum q2_kind kind;
	bool copied;
	uint64_t host, len;
	uint64_t entry; /* compressed: the L2 entry */
};

struct q2_entry {
	uint64_t l2, bits;
};

/* qcow2.c */
int q2_corrupt(struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int q2_write_header_locked(struct qcow2 *q);
int q2_begin_write(struct qcow2 *q);
int q2_read_header(struct qcow2 *q, const struct blk_spec *spec, struct err *e);
int q2_load_top(struct qcow2 *q, struct q2_dir *d, uint64_t off, uint32_t n, struct err *e);
void *q2_table_new(size_t bytes);
void q2_table_free(void *p, size_t bytes);
int q2_dir_grow(struct q2_dir *d, uint32_t n);
int q2_dir_new(struct q2_dir *d, uint32_t n);
void q2_dir_fini(struct qcow2 *q, struct q2_dir *d);
static inline uint64_t q2_epoch_enter(struct qcow2 *q)
{
	for (;;) {
		unsigned e = atomic_load(&q->epoch) & 1;

		atomic_fetch_add(&q->active[e], 1);
		if ((atomic_load(&q->epoch) & 1) == e)
			return e;
		atomic_fetch_sub(&q->active[e], 1);
	}
}
static inline void q2_epoch_leave(struct qcow2 *q, uint64_t e)
{
	atomic_fetch_sub(&q->active[e], 1);
}

/* qcow2_map.c */
int q2_slice_load(struct qcow2 *q, struct q2_dir *d, uint32_t top, uint32_t idx);
int q2_slice_locked(struct qcow2 *q, struct q2_dir *d, uint32_t top, uint32_t idx,
		    struct q2_slice **s);
void q2_slice_mark(struct qcow2 *q, struct q2_slice *s, unsigned byte, unsigned len);
void q2_top_mark(struct q2_dir *d, uint32_t i);
void q2_slices_drop(struct qcow2 *q, struct q2_dir *d);
/* q2_seg_get() - what lies at guest @off, for at most @len; takes and drops the lock. @write: data
 * that lies in known metadata is corruption, found before it is written over. */
int q2_seg_get(struct qcow2 *q, uint64_t off, uint64_t len, bool write, struct q2_seg *s);
int q2_seg_try(struct qcow2 *q, uint64_t off, uint64_t len, bool write, struct q2_seg *s);
int q2_entry_quick_locked(struct qcow2 *q, uint64_t off, struct q2_entry *en);
bool q2_slice_there_locked(struct qcow2 *q, const struct q2_dir *d, uint32_t top, uint32_t idx);
int q2_entry_get(struct qcow2 *q, uint64_t off, struct q2_entry *en);
int q2_entry_locked(struct qcow2 *q, uint64_t off, struct q2_entry *en);
int q2_entry_set_locked(struct qcow2 *q, uint64_t off, struct q2_entry en);
/* q2_entry_seg() - classify one unit of an entry. */
int q2_entry_seg(struct qcow2 *q, const struct q2_entry *en, unsigned unit, struct q2_seg *s);
void q2_comp_extent(const struct qcow2 *q, uint64_t l2, uint64_t *off, uint64_t *len);

/* qcow2_alloc.c: all with the lock taken alone */
int q2_refcount_locked(struct qcow2 *q, uint64_t cluster, uint64_t *v);
int q2_refcount_set_locked(struct qcow2 *q, uint64_t cluster, uint64_t v);
int q2_alloc_locked(struct qcow2 *q, uint64_t n, bool meta, uint64_t *host, bool *zeroed);
int q2_alloc_quick_locked(struct qcow2 *q, uint64_t *host);
int q2_alloc_zeroed_meta_locked(struct qcow2 *q, uint64_t n, uint64_t *host);
void q2_free_now_locked(struct qcow2 *q, uint64_t host,
			uint64_t len); /* never referenced on disk */
void q2_free_later_locked(struct qcow2 *q, uint64_t host, uint64_t len);
void q2_unref_locked(struct qcow2 *q, uint64_t host, uint64_t len);
int q2_alloc_ready_locked(struct qcow2 *q);
bool q2_meta_hit_locked(const struct qcow2 *q, uint64_t host, uint64_t len);
int q2_meta_add_locked(struct qcow2 *q, uint64_t host);
void q2_meta_del_locked(struct qcow2 *q, uint64_t host);
uint64_t q2_refcount_max(const struct qcow2 *q);
int q2_comp_alloc_locked(struct qcow2 *q, uint64_t len, uint64_t *host);

/* qcow2_io.c */
/* what a write into one cluster is about to do */
struct q2_place {
	struct q2_entry old;
	uint64_t cluster_off; /* guest */
	uint64_t base;	      /* host cluster that will hold it */
	bool inplace;	      /* base is the entry's own cluster, ours alone */
	bool moved;	      /* the old cluster was shared or compressed: all of it moves */
	bool zeroed;	      /* base reads as zeroes */
	bool published;
};
bool q2_must_move(const struct q2_entry *en);
uint64_t q2_unit_mask(const struct qcow2 *q, uint64_t off, uint64_t len);
int q2_publish(struct qcow2 *q, const struct q2_place *p, uint64_t off, uint64_t alloc);
int q2_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len);
int q2_map(struct blockdev *bd, bool write, const struct blk_req *r, uint64_t off,
	   struct blk_place *p);
int q2_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags);
int q2_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max);
void q2_range_take(struct qcow2 *q, struct q2_range *r, uint64_t start, uint64_t end);
bool q2_range_try(struct qcow2 *q, struct q2_range *r, uint64_t start, uint64_t end);
void q2_range_drop(struct qcow2 *q, struct q2_range *r);
/* q2_populate() - what [off, off+len), in whole clusters, shows from the layers below becomes the
 * image's own; what it has itself stays. Requests may be in flight. */
int q2_populate(struct qcow2 *q, uint64_t off, uint64_t len);
/* q2_write_compressed() - store one cluster compressed; -EFBIG where it does not shrink. */
int q2_write_compressed(struct qcow2 *q, uint64_t off, const void *comp, uint64_t comp_len);

/* qcow2_compact.c: for blkjob_compact() */
int q2_forget_cluster(struct qcow2 *q, uint64_t off); /* the parent shows through again */
int q2_relocate(struct qcow2 *q, uint64_t off); /* into a free cluster nearer the file's start */
int q2_punch_free(struct qcow2 *q);		/* free clusters cost the host nothing */

/* qcow2_chain.c */
#define Q2_CHAIN_STEP (1ULL << 17) /* what the merged map knows as one */
struct q2_chain_place {
	struct blockdev *file; /* where the bytes are, at @off; NULL with @zero */
	uint64_t off, len;
	bool zero;
};
/* q2_chain_find() - what the layers below hold at @off, for at most @len (p->len). -ENOENT: not of
 * one piece, walk down; -EAGAIN: not known without I/O (only with !@wait); or -errno. */
int q2_chain_find(struct qcow2 *q, uint64_t off, uint64_t len, bool wait, struct q2_chain_place *p);
void q2_chain_drop(struct qcow2 *q);

/* qcow2_comp.c */
int q2_comp_read(struct qcow2 *q, const struct q2_seg *s, uint64_t in_cluster, struct blk_buf b,
		 uint64_t len);
long q2_compress(int type, int level, void **ctx, void *dst, size_t cap, const void *src,
		 size_t len);
void q2_compress_free(void *ctx);

/* qcow2_commit.c */
int q2_flush(struct blockdev *bd);
int q2_commit(struct qcow2 *q);
void q2_commit_fini(struct qcow2 *q);

/* qcow2_resize.c */
int q2_resize(struct blockdev *bd, uint64_t size, struct err *e);

/* qcow2_check.c */
struct q2_check {
	uint64_t errors, leaks, errors_fixed, leaks_fixed;
	uint64_t data_clusters, compressed_clusters, total_clusters, image_end;
	char first[256]; /* the first finding, in words */
};
enum q2_repair { Q2_REPAIR_NONE, Q2_REPAIR_LEAKS, Q2_REPAIR_ALL };
/* q2_check_copied() - COPIED flags as the refcounts have them. */
int q2_check_copied(struct qcow2 *q);
int q2_check_run(struct qcow2 *q, enum q2_repair how, struct q2_check *c, struct err *e);

/* qcow2_bitmap_ram.c, qcow2_bitmap_store.c: dirty bitmaps */
void q2_bitmaps_mark_slow(struct qcow2 *q, uint64_t off, uint64_t len);
bool q2_bitmaps_try_mark_slow(struct qcow2 *q, uint64_t off, uint64_t len);
/* q2_bitmaps_mark() - before [off, off+len) changes. */
static inline void q2_bitmaps_mark(struct qcow2 *q, uint64_t off, uint64_t len)
{
	if (atomic_load_explicit(&q->bm_on, memory_order_relaxed))
		q2_bitmaps_mark_slow(q, off, len);
}
static inline bool q2_bitmaps_try_mark(struct qcow2 *q, uint64_t off, uint64_t len)
{
	return !atomic_load_explicit(&q->bm_on, memory_order_relaxed) ||
	       q2_bitmaps_try_mark_slow(q, off, len);
}
int q2_bitmaps_resize(struct qcow2 *q, uint64_t size);
/* q2_track_start() - from now on what is written is marked; the image was written to before. */
int q2_track_start(struct qcow2 *q);
struct blk_bits;
int q2_track_take(struct qcow2 *q, struct blk_bits *b);
void q2_track_stop(struct qcow2 *q);
void q2_bitmaps_init(struct qcow2 *q);
void q2_bitmaps_fini(struct qcow2 *q);
/* q2_bitmaps_own() - before the first change of the image: load them, mark them in use. */
int q2_bitmaps_own(struct qcow2 *q);
int q2_bitmaps_store(struct qcow2 *q); /* at close, after the last request */

/* qcow2_stamp.c */
int q2_stamp_renew(struct qcow2 *q); /* note what the parent looks like now */
/* q2_show_backing() - the file shows what lies below it from now on, stable; the image in RAM must not be
 * used any more but to be closed, with the gate shut and nothing dirty. Its clusters are leaks. */
int q2_show_backing(struct qcow2 *q);
/* q2_stamp_lift() - before a commit changes a layer below: note, stable, that it does. */
int q2_stamp_lift(struct qcow2 *q);
int q2_stamp_check(struct qcow2 *q, const struct blk_spec *spec, struct err *e);

/* qcow2_header.c */
/* q2_header_rewrite() - the first sector with its extensions anew, atomically: the bitmap directory
 * as @q has it, the backing file's name (NULL: none). Needs a commit before where tables moved. */
int q2_header_rewrite(struct qcow2 *q, const char *name, const char *format);

/* qcow2_snapshot.c */
int q2_snapshots_load(struct qcow2 *q, struct q2_snapshot **list, struct err *e);

static inline uint64_t q2_clusters(const struct qcow2 *q, uint64_t bytes)
{
	return (bytes + q->cluster_size - 1) >> q->cluster_bits;
}

#endif
