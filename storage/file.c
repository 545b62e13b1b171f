/* file.c - driver "file": raw bytes in a regular file or a block device.
 *
 * O_DIRECT is set here where the cache mode asks for it; requests that do not meet its alignment go
 * through a bounce buffer, and writes smaller than the device's block are read-modify-write under
 * an exclusive lock. An fsync that failed stays failed: the kernel marks the pages clean, so that a
 * second fsync would lie. Holes are punched on discard; zeroes are written by fallocate where the
 * file system can.
 * The file is locked with the bytes that QEMU uses (open file description locks on bytes 100+n:
 * permission n in use, 200+n: permission n not shared), so that qemu-img refuses a disk we hold,
 * and we one that it holds.
 * Threading: any thread. Trust: the contents are never interpreted here.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/units.h"
#include "storage/lease.h"
#include "storage/node.h"

#define FILE_IOV_MAX	64
#define FILE_BOUNCE_MAX (1024 * 1024)
#define FILE_PAGE	4096u

struct file {
	int fd, flags_at_open;
	bool direct, blkdev, fixed;
	uint64_t stamp_size, stamp_ns; /* size and last change, when it was opened or frozen */
	uint32_t align, mem_align;     /* what O_DIRECT asks for; 1 where buffered */
	_Atomic int sync_error;
	_Atomic bool no_zero_range, no_punch;
	struct lease *lease;  /* NULL: none needed */
	pthread_rwlock_t rmw; /* read: aligned write; write: read-modify-write of a block */
};

/* --- locks that QEMU understands ----------------------------------------------------------- */

enum { LOCK_USED = 100, LOCK_UNSHARED = 200 };
enum { PERM_READ = 0, PERM_WRITE = 1, PERM_RESIZE = 3 };

static int file_lock_byte(int fd, int cmd, short type, off_t byte)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

	if (fcntl(fd, cmd, &l) < 0)
		return -errno;
	return cmd == F_OFD_GETLK && l.l_type != F_UNLCK ? -EBUSY : 0;
}

static void file_unlock(int fd)
{
	struct flock l = {
		.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = LOCK_USED, .l_len = 200
	};

	(void)fcntl(fd, F_OFD_SETLK, &l);
}

/* file_lock() - take the bytes first, then look: two that race both see each other. */
static int file_lock(int fd, bool read_only, bool shared_write)
{
	const int used[] = { PERM_READ, PERM_WRITE, PERM_RESIZE };
	const int unshared[] = { PERM_WRITE, PERM_RESIZE };
	int nused = read_only ? 1 : 3, nunshared = shared_write ? 0 : 2, r = 0;

	for (int i = 0; i < nused && !r; i++)
		r = file_lock_byte(fd, F_OFD_SETLK, F_RDLCK, LOCK_USED + used[i]);
	for (int i = 0; i < nunshared && !r; i++)
		r = file_lock_byte(fd, F_OFD_SETLK, F_RDLCK, LOCK_UNSHARED + unshared[i]);
	for (int i = 0; i < nused && !r; i++)
		r = file_lock_byte(fd, F_OFD_GETLK, F_WRLCK, LOCK_UNSHARED + used[i]);
	for (int i = 0; i < nunshared && !r; i++)
		r = file_lock_byte(fd, F_OFD_GETLK, F_WRLCK, LOCK_USED + unshared[i]);
	if (r == -EACCES || r == -EAGAIN)
		r = -EBUSY;
	if (r == -EINVAL || r == -ENOLCK || r == -EOPNOTSUPP)
		r = 0; /* a file system without locks: the daemon's lease is what remains */
	if (r)
		file_unlock(fd);
	return r;
}

/* --- opening ---------------------------------------------------------------------------------- */

static void file_find_alignment(struct file *f)
{
	struct statx sx;
	int lbs = 0;

	f->align = f->mem_align = 1;
	if (!f->direct)
		return;
	if (f->blkdev && ioctl(f->fd, BLKSSZGET, &lbs) == 0 && lbs >= 512 && lbs <= 65536) {
		f->align = f->mem_align = lbs;
		return;
	}
#ifdef STATX_DIOALIGN
	if (statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 &&
	    (sx.stx_mask & STATX_DIOALIGN) && sx.stx_dio_offset_align) {
		f->align = sx.stx_dio_offset_align;
		f->mem_align = sx.stx_dio_mem_align;
		if (f->align <= 65536 && f->mem_align <= FILE_PAGE)
			return;
	}
#else
	(void)sx;
#endif
	f->align = f->mem_align = FILE_PAGE;
	/* the file's first bytes tell whether 512 will do */
	void *p;

	if (posix_memalign(&p, FILE_PAGE, FILE_PAGE) == 0) {
		if (pread(f->fd, (char *)p + 512, 512, 512) >= 0)
			f->align = f->mem_align = 512;
		free(p);
	}
}

static int file_open_err(struct err *e, const struct blockdev *bd, int r, const char *what)
{
	return err_set(e, -r, "disk-open", "%s: %s: %s", bd->label, what, strerror(-r));
}

static void file_stamp_set(struct file *f, const struct stat *st)
{
	f->stamp_size = st->st_size;
	f->stamp_ns = st->st_mtim.tv_sec * NS_PER_S + st->st_mtim.tv_nsec;
}

static int file_open(struct blockdev *bd, const struct blk_spec *spec, struct err *e)
{
	struct file *f;
	struct stat st;
	uint64_t size;
	int r, flags;

	if (spec->fd < 0 || fstat(spec->fd, &st) < 0)
		return file_open_err(e, bd, -EBADF, "no file was given");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return err_set(e, EINVAL, "disk-not-a-file",
			       "%s: is neither a regular file nor a block device", bd->label);
	flags = fcntl(spec->fd, F_GETFL);
	if (flags < 0)
		return file_open_err(e, bd, -errno, "cannot read the file's flags");
	if (!spec->read_only && (flags & O_ACCMODE) != O_RDWR)
		return file_open_err(e, bd, -EROFS, "was opened for reading only");
	size = st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(spec->fd, BLKGETSIZE64, &size) < 0)
		return file_open_err(e, bd, -errno, "cannot read the device's size");
	if (!spec_opt(spec, "lock") || strcmp(spec_opt(spec, "lock"), "off") != 0) {
		r = file_lock(spec->fd, spec->read_only, false);
		if (r == -EBUSY) {
			err_set(e, EBUSY, "disk-in-use", "%s: another process has this disk open",
				bd->label);
			err_hint(e, "stop the guest or qemu-img that holds it; fuser -v on its "
				    "file tells which");
			return -EBUSY;
		}
		if (r)
			return file_open_err(e, bd, r, "cannot lock the file");
	}
	f = calloc(1, sizeof(*f));
	if (!f) {
		file_unlock(spec->fd);
		return file_open_err(e, bd, -ENOMEM, "out of memory");
	}
	f->fd = spec->fd;
	f->lease = spec->lease;
	f->flags_at_open = flags;
	file_stamp_set(f, &st);
	f->blkdev = S_ISBLK(st.st_mode);
	f->fixed = f->blkdev || spec->size_bytes;
	if (spec->cache == BLK_CACHE_NONE)
		f->direct = (flags & O_DIRECT) || fcntl(f->fd, F_SETFL, flags | O_DIRECT) == 0;
	else if (flags & O_DIRECT)
		(void)fcntl(f->fd, F_SETFL, flags & ~O_DIRECT);
	file_find_alignment(f);
	pthread_rwlock_init(&f->rmw, NULL);
	bd->drv = f;
	atomic_store(&bd->serial_writes, !f->direct && !f->blkdev);
	if (f->blkdev && f->align > 512)
		bd->block_size = f->align;
	if (spec->size_bytes && spec->size_bytes < size)
		size = spec->size_bytes;
	/* a raw file's ragged tail reads as a whole sector, as elsewhere */
	atomic_store(&bd->size_bytes,
		     size > INT64_MAX - 512 ? ALIGN_DOWN(size, 512ULL) : ALIGN_UP(size, 512ULL));
	return 0;
}

static int file_close(struct blockdev *bd, bool keep_fds)
{
	struct file *f = bd->drv;
	int r = 0;

	if (!keep_fds && !bd->read_only && !bd->unsafe)
		r = bd->ops->flush(bd);
	file_unlock(f->fd);
	if (keep_fds)
		(void)fcntl(f->fd, F_SETFL, f->flags_at_open);
	else
		close(f->fd);
	pthread_rwlock_destroy(&f->rmw);
	free(f);
	return r;
}

static void file_info(struct blockdev *bd, struct blk_info *info)
{
	struct file *f = bd->drv;
	struct stat st;

	if (fstat(f->fd, &st) == 0)
		info->allocated_bytes = f->blkdev ? info->size_bytes : (uint64_t)st.st_blocks * 512;
	info->has_discard = !atomic_load(&f->no_punch);
	info->has_write_zeroes = true;
}

/* --- reading and writing --------------------------------------------------------------------- */

/* file_io() - whole transfers; reading past the end of the file gives zeroes. */
static int file_io(struct file *f, bool write, struct iovec *iov, int n, uint64_t off, uint64_t len)
{
	while (len) {
		ssize_t r = write ? pwritev(f->fd, iov, n, off) : preadv(f->fd, iov, n, off);

		if (r < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (r == 0) {
			if (write)
				return -EIO;
			blk_buf_zero((struct blk_buf){ iov, n, 0 }, len);
			return 0;
		}
		off += r;
		len -= r;
		for (; n > 0 && (size_t)r >= iov->iov_len; iov++, n--)
			r -= iov->iov_len;
		if (r && n > 0) {
			iov->iov_base = (char *)iov->iov_base + r;
			iov->iov_len -= r;
			/* O_DIRECT stops at a ragged end of file: the rest is past it */
			if (!write && f->direct &&
			    ((uintptr_t)iov->iov_base & (f->mem_align - 1))) {
				blk_buf_zero((struct blk_buf){ iov, n, 0 }, len);
				return 0;
			}
		}
	}
	return 0;
}

static bool file_is_aligned(const struct file *f, const struct iovec *iov, int n, uint64_t off,
			    uint64_t len)
{
	if (!f->direct)
		return true;
	if ((off | len) & (f->align - 1))
		return false;
	for (int i = 0; i < n; i++)
		if ((((uintptr_t)iov[i].iov_base) & (f->mem_align - 1)) ||
		    (iov[i].iov_len & (f->align - 1)))
			return false;
	return true;
}

static int file_bounce(struct file *f, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	uint64_t step = MAX((uint64_t)f->align, MIN(len + 2 * f->align, (uint64_t)FILE_BOUNCE_MAX));
	_cleanup_free_ void *p = NULL;
	int r = 0;

	step = ALIGN_UP(step, (uint64_t)f->align);
	if (posix_memalign(&p, FILE_PAGE, step))
		return -ENOMEM;
	while (len && !r) {
		uint64_t start = ALIGN_DOWN(off, (uint64_t)f->align);
		uint64_t take = MIN(len, step - (off - start));
		uint64_t span = ALIGN_UP(off - start + take, (uint64_t)f->align);
		struct iovec v = { p, span };
		bool ragged = off != start || take != span;

		if (!write) {
			r = file_io(f, false, &v, 1, start, span);
			if (!r)
				blk_buf_from(b, (char *)p + (off - start), take);
		} else {
			if (ragged)
				pthread_rwlock_wrlock(&f->rmw);
			else
				pthread_rwlock_rdlock(&f->rmw);
			if (ragged)
				r = file_io(f, false, &v, 1, start, span);
			blk_buf_to(b, (char *)p + (off - start), take);
			v = (struct iovec){ p, span };
			if (!r)
				r = file_io(f, true, &v, 1, start, span);
			pthread_rwlock_unlock(&f->rmw);
		}
		b = blk_buf_advance(b, take);
		off += take;
		len -= take;
	}
	return r;
}

/* file_may_write() - -ESTALE: another host may have the disk by now. */
static int file_may_write(const struct file *f)
{
	return f->lease && !lease_valid(f->lease) ? -ESTALE : 0;
}

static int file_rw(struct blockdev *bd, bool write, struct blk_buf b, uint64_t off, uint64_t len)
{
	struct file *f = bd->drv;
	struct iovec iov[FILE_IOV_MAX];
	int r = write ? file_may_write(f) : 0;

	if (off > INT64_MAX || len > INT64_MAX - off)
		return -EFBIG;
	if (write && f->fixed && off + len > atomic_load(&bd->size_bytes))
		return -ENOSPC;
	while (len && !r) {
		uint64_t got;
		int n = blk_buf_iov(b, len, iov, FILE_IOV_MAX, &got);

		if (!file_is_aligned(f, iov, n, off, got)) {
			r = file_bounce(f, write, b, off, got);
		} else if (write && f->align > 512) {
			pthread_rwlock_rdlock(&f->rmw);
			r = file_io(f, true, iov, n, off, got);
			pthread_rwlock_unlock(&f->rmw);
		} else {
			r = file_io(f, write, iov, n, off, got);
		}
		b = blk_buf_advance(b, got);
		off += got;
		len -= got;
	}
	if (write && !r && !f->fixed) {
		uint64_t size = atomic_load(&bd->size_bytes);

		while (off > size && !atomic_compare_exchange_weak(&bd->size_bytes, &size, off))
			;
	}
	return r;
}

static int file_write_zeroes(struct blockdev *bd, uint64_t off, uint64_t len)
{
	const uint64_t step = 256 * KIB;
	_cleanup_free_ void *p = NULL;
	int r = 0;

	if (posix_memalign(&p, FILE_PAGE, step))
		return -ENOMEM;
	memset(p, 0, step);
	while (len && !r) {
		uint64_t take = MIN(len, step - (off % FILE_PAGE));
		struct iovec v = { p, take };

		r = file_rw(bd, true, (struct blk_buf){ &v, 1, 0 }, off, take);
		off += take;
		len -= take;
	}
	return r;
}

static bool file_unsupported(int error)
{
	return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL || error == ENODEV ||
	       error == ENOTTY;
}

static int file_zero(struct blockdev *bd, uint64_t off, uint64_t len, uint32_t flags)
{
	struct file *f = bd->drv;
	int r = file_may_write(f);

	if (r)
		return r;
	if (off > INT64_MAX || len > INT64_MAX - off)
		return -EFBIG;
	if (f->fixed && off + len > atomic_load(&bd->size_bytes))
		return -ENOSPC;
	if ((flags & NODE_UNMAP) && !atomic_load(&f->no_punch)) {
		if (fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len) == 0)
			return 0;
		if (!file_unsupported(errno))
			return -errno;
		atomic_store(&f->no_punch, true);
	}
	if (flags & NODE_DISCARD)
		return 0;
	if (!atomic_load(&f->no_zero_range)) {
		if (fallocate(f->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, off, len) == 0)
			return 0;
		if (!file_unsupported(errno))
			return -errno;
		atomic_store(&f->no_zero_range, true);
	}
	return file_write_zeroes(bd, off, len);
}

static int file_flush(struct blockdev *bd)
{
	struct file *f = bd->drv;
	int latched = atomic_load(&f->sync_error);

	if (latched)
		return latched;
	if (fdatasync(f->fd) < 0) {
		int fresh = -errno, none = 0;

		if (fresh == -EINTR)
			fresh = -EIO;
		atomic_compare_exchange_strong(&f->sync_error, &none, fresh);
	}
	/* a failure seen by another thread meanwhile was taken from us by it */
	return atomic_load(&f->sync_error);
}

static int file_extents(struct blockdev *bd, uint64_t off, struct blk_extent *ext, unsigned max)
{
	struct file *f = bd->drv;
	uint64_t size = atomic_load(&bd->size_bytes);
	unsigned n = 0;

	while (n < max && off < size) {
		off_t data = f->blkdev ? (off_t)off : lseek(f->fd, off, SEEK_DATA);
		off_t end;

		if (data < 0 && errno == ENXIO)
			data = size;
		else if (data < 0)
			data = off;
		data = ALIGN_DOWN((uint64_t)data, 512ULL);
		if ((uint64_t)data > off) {
			data = MIN((uint64_t)data, size);
			ext[n++] = (struct blk_extent){ off, data - off, BLK_EXT_HOLE, 0 };
			off = data;
			continue;
		}
		end = f->blkdev ? (off_t)size : lseek(f->fd, off, SEEK_HOLE);
		if (end < 0 || (uint64_t)end > size || (uint64_t)end <= off)
			end = size;
		end = MIN(ALIGN_UP((uint64_t)end, 512ULL), size);
		ext[n++] = (struct blk_extent){ off, end - off, BLK_EXT_DATA, 0 };
		off = end;
	}
	return n;
}

static int file_resize(struct blockdev *bd, uint64_t size, struct err *e)
{
	struct file *f = bd->drv;

	if (f->blkdev || f->fixed)
		return err_set(e, EOPNOTSUPP, "disk-resize", "%s: its size is fixed", bd->label);
	if (file_may_write(f))
		return err_set(e, ESTALE, "lease-lost", "%s: its lease is lost", bd->label);
	if (size > INT64_MAX || ftruncate(f->fd, size) < 0)
		return err_set(e, size > INT64_MAX ? EFBIG : errno, "disk-resize",
			       "%s: cannot be made %llu bytes: %s", bd->label,
			       (unsigned long long)size, strerror(errno));
	atomic_store(&bd->size_bytes, size);
	return 0;
}

static int64_t file_allocate(struct blockdev *bd, uint64_t off, uint64_t min, uint64_t want)
{
	struct file *f = bd->drv;
	uint64_t size = atomic_load(&bd->size_bytes), spare;
	struct statvfs fs;

	if (f->fixed)
		return -EOPNOTSUPP;
	if (file_may_write(f))
		return -ESTALE;
	if (off > INT64_MAX - want)
		return -EFBIG;
	/* what is made ahead of need never takes more than a sixteenth of what is left */
	if (fstatvfs(f->fd, &fs) == 0) {
		spare = (uint64_t)fs.f_bavail * fs.f_frsize / 16;
		want = MAX(min, MIN(want, ALIGN_DOWN(spare, (uint64_t)MIB)));
	}
	while (fallocate(f->fd, 0, off, want) < 0) {
		if (file_unsupported(errno))
			return -EOPNOTSUPP;
		if (errno == EINTR)
			continue;
		if (want == min || (errno != ENOSPC && errno != EDQUOT && errno != EFBIG))
			return -errno;
		want = min;
	}
	while (off + want > size &&
	       !atomic_compare_exchange_weak(&bd->size_bytes, &size, off + want))
		;
	return want;
}

static int file_map(struct blockdev *bd, bool write, const struct blk_req *r, uint64_t off,
		    struct blk_place *p)
{
	struct file *f = bd->drv;

	/* past the end, over a ragged one, or where a block must be rewritten: the slow way */
	if (off + r->len_bytes > atomic_load(&bd->size_bytes) ||
	    (write && (!f->direct || f->align > 512 || file_may_write(f))) ||
	    !file_is_aligned(f, r->iov, r->niov, off, r->len_bytes))
		return -EAGAIN;
	p->fd = f->fd;
	p->off = off;
	p->direct = f->direct;
	return 0;
}

int file_stamp(struct blockdev *bd, uint64_t *size_bytes, uint64_t *mtime_ns)
{
	struct file *f = bd->drv;

	/* as it was opened or frozen: who asks may be confined by now, and may not ask the kernel */
	if (f->blkdev)
		return -ENOTSUP;
	*size_bytes = f->stamp_size;
	*mtime_ns = f->stamp_ns;
	return 0;
}

/* file_freeze() - what another may now open for reading too: the locks of a writer go. */
static int file_freeze(struct blockdev *bd)
{
	struct file *f = bd->drv;
	struct stat st;
	int r = bd->unsafe ? 0 : file_flush(bd);

	if (r)
		return r;
	if (fstat(f->fd, &st) == 0)
		file_stamp_set(f, &st);
	(void)file_lock_byte(f->fd, F_OFD_SETLK, F_UNLCK, LOCK_USED + PERM_WRITE);
	(void)file_lock_byte(f->fd, F_OFD_SETLK, F_UNLCK, LOCK_USED + PERM_RESIZE);
	bd->read_only = true;
	return 0;
}

/* file_thaw() - @fd takes the old one's number, so that reads under way do not notice. */
static int file_thaw(struct blockdev *bd, int fd, struct err *e)
{
	struct file *f = bd->drv;
	struct stat was, is;
	int flags = fcntl(fd >= 0 ? fd : f->fd, F_GETFL), r;

	if (fd < 0 && flags >= 0 && (flags & O_ACCMODE) == O_RDWR) {
		r = file_lock(f->fd, false, false);
		bd->read_only = r != 0;
		return r ? err_set(e, -r, "disk-in-use", "%s: another process has it open",
				   bd->label)
			 : 0;
	}
	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || fstat(fd, &is) < 0 ||
	    fstat(f->fd, &was) < 0 || is.st_dev != was.st_dev || is.st_ino != was.st_ino)
		return err_set(e, EINVAL, "disk-thaw",
			       "%s: the file given to write it is not the same, or not for writing",
			       bd->label);
	if (f->direct != !!(flags & O_DIRECT))
		(void)fcntl(fd, F_SETFL, f->direct ? flags | O_DIRECT : flags & ~O_DIRECT);
	/* our own old lock does not conflict with a writer's: it shares nothing but "in use" */
	r = file_lock_byte(f->fd, F_OFD_SETLK, F_UNLCK, LOCK_UNSHARED + PERM_WRITE);
	if (!r)
		r = file_lock_byte(f->fd, F_OFD_SETLK, F_UNLCK, LOCK_UNSHARED + PERM_RESIZE);
	if (!r)
		r = file_lock(fd, false, false);
	if (r) {
		(void)file_lock(f->fd, true, false);
		return err_set(e, -r, "disk-in-use", "%s: cannot be written: %s", bd->label,
			       r == -EBUSY ? "another process has it open" : strerror(-r));
	}
	if (dup3(fd, f->fd, O_CLOEXEC) < 0)
		return err_set(e, errno, "disk-thaw", "%s: %s", bd->label, strerror(errno));
	close(fd);
	bd->read_only = false;
	return 0;
}

const struct blockdev_ops file_ops = {
	.name = "file",
	.open = file_open,
	.close = file_close,
	.info = file_info,
	.rw = file_rw,
	.zero = file_zero,
	.flush = file_flush,
	.extents = file_extents,
	.resize = file_resize,
	.allocate = file_allocate,
	.map = file_map,
	.freeze = file_freeze,
	.thaw = file_thaw,
};
