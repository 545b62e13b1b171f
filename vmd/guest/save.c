/* save.c - the whole machine into two files, and out of them again (g_save, g_load).
 *
 * state file:	a section "guest" (what it takes to go on: machine, memory, a number that both files
 *		bear), then vm_save()'s sections.
 * memory file:	RAM, region after region, pages of zeroes left out as holes; behind it 32 bytes that
 *		say "complete" and bear the same number.
 * A save pauses the guest and leaves it so; g_start runs on. Parked vCPUs and quiet devices change
 * nothing, so RAM is written by a thread of its own while the main loop goes on serving the daemon.
 * A restore is build + load: g_load comes with the configuration, RAM and state are read after the
 * process has given up its system calls.
 * Threading: main thread; the writer thread touches its own struct and guest RAM, which it reads.
 * Trust: both files are input: a torn, foreign or stale one is refused, the guest is then not built.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/state.h"
#include "common/units.h"
#include "vmd/guest/guest.h"

enum { TAG_GUEST_MACHINE = 1, TAG_GUEST_RAM, TAG_GUEST_PAIR, TAG_GUEST_REGIONS };

#define SAVE_SECTION   "guest"
#define SAVE_VERSION   1u
#define SAVE_OPTIONAL  0x8000u /* vm_load() passes over it */
#define SAVE_STATE_MAX (256 * MIB)
#define SAVE_CHUNK     (256 * KIB)
#define SAVE_MAGIC     "VMDRAM1"

struct save_end {
	char magic[8];
	uint64_t ram_bytes;
	uint8_t pair[16];
};

struct guest_save {
	struct guest *g;
	uint32_t id;
	int state_fd, memory_fd;
	unsigned waiting; /* devices not quiet yet, and one for ourselves */
	struct state_writer w;
	struct save_end end;
	pthread_t thread;
	bool thread_started, told;
	struct err e;
};

static bool save_zero(const uint8_t *p, size_t len)
{
	return !p[0] && !memcmp(p, p + 1, len - 1);
}

static int save_pwrite(int fd, const void *p, size_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pwrite(fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		p = (const uint8_t *)p + n;
		len -= (size_t)n;
		off += (uint64_t)n;
	}
	return 0;
}

/* ---- saving ---- */

/* Runs of pages that hold something; a page that is all zero stays a hole. */
static int save_region(int fd, const struct mem_region *r, uint64_t base)
{
	for (uint64_t at = 0; at < r->size_bytes;) {
		uint64_t from = at;
		int ret;

		while (at < r->size_bytes && at - from < SAVE_CHUNK &&
		       !save_zero(r->hva + at, MEM_PAGE))
			at += MEM_PAGE;
		ret = at > from ? save_pwrite(fd, r->hva + from, at - from, base + from) : 0;
		if (ret)
			return ret;
		while (at < r->size_bytes && at == from && save_zero(r->hva + at, MEM_PAGE))
			from = at += MEM_PAGE;
	}
	return 0;
}

static int save_files(struct guest_save *s)
{
	const struct mem *m = s->g->vm->mem;
	uint64_t base = 0;
	int r = 0;

	if (ftruncate(s->memory_fd, 0) < 0 || ftruncate(s->state_fd, 0) < 0)
		return -errno;
	for (unsigned i = 0; i < mem_region_count(m) && !r; i++) {
		const struct mem_region *reg = mem_region_get(m, i);

		if (reg->flags & MEM_ROM)
			continue;
		r = save_region(s->memory_fd, reg, base);
		base += reg->size_bytes;
	}
	/* what says "complete" comes after all else is stable */
	if (!r && fdatasync(s->memory_fd) < 0)
		r = -errno;
	if (!r)
		r = save_pwrite(s->memory_fd, &s->end, sizeof(s->end), base);
	if (!r)
		r = save_pwrite(s->state_fd, s->w.data, s->w.len, 0);
	if (!r && (fsync(s->memory_fd) < 0 || fsync(s->state_fd) < 0))
		r = -errno;
	return r;
}

static void save_done(void *arg);

static void *save_thread(void *arg)
{
	struct guest_save *s = arg;
	int r = save_files(s);

	if (r < 0)
		err_set(&s->e, -r, "save-failed", "guest %s: its state cannot be written: %s",
			s->g->name, strerror(-r));
	if (loop_post(s->g->loop, save_done, s) < 0)
		abort(); /* the daemon would wait for ever */
	return NULL;
}

static void save_tell(struct guest_save *s)
{
	if (s->thread_started)
		pthread_join(s->thread, NULL);
	s->thread_started = false;
	s->g->save = NULL;
	s->told = true;
	guest_reply(s->g, s->id, &s->e);
}

static void save_done(void *arg)
{
	struct guest_save *s = arg;

	if (!s->told)
		save_tell(s);
	state_writer_fini(&s->w);
	close_fd(&s->state_fd);
	close_fd(&s->memory_fd);
	free(s);
}

static void save_header(struct guest_save *s)
{
	const struct mem *m = s->g->vm->mem;
	uint64_t regions[2 * MEM_REGIONS_MAX];
	unsigned n = 0;

	memcpy(s->end.magic, SAVE_MAGIC, sizeof(s->end.magic));
	s->end.ram_bytes = mem_ram_bytes(m);
	for (unsigned i = 0; i < mem_region_count(m); i++) {
		regions[n++] = mem_region_get(m, i)->gpa;
		regions[n++] = mem_region_get(m, i)->size_bytes;
	}
	state_begin(&s->w, SAVE_SECTION, 0, SAVE_VERSION | SAVE_OPTIONAL);
	state_put_bytes(&s->w, TAG_GUEST_MACHINE, s->g->machine->name, strlen(s->g->machine->name));
	state_put_u64(&s->w, TAG_GUEST_RAM, s->end.ram_bytes);
	state_put_bytes(&s->w, TAG_GUEST_PAIR, s->end.pair, sizeof(s->end.pair));
	state_put_bytes(&s->w, TAG_GUEST_REGIONS, regions, n * sizeof(*regions));
	state_end(&s->w);
}

/* One device more is quiet; the last one starts the writing. */
static void save_quiet(void *arg)
{
	struct guest_save *s = arg;
	int r;

	if (--s->waiting)
		return;
	if (getrandom(s->end.pair, sizeof(s->end.pair), 0) != sizeof(s->end.pair))
		err_set(&s->e, EIO, "save-failed", "guest %s: no random numbers", s->g->name);
	save_header(s);
	if (!s->e.num && vm_save(s->g->vm, &s->w, &s->e) == 0) {
		r = pthread_create(&s->thread, NULL, save_thread, s);
		s->thread_started = !r;
		if (r)
			err_set(&s->e, r, "save-failed", "guest %s: no thread to save it: %s",
				s->g->name, strerror(r));
	}
	if (!s->thread_started)
		save_done(s);
}

static void save_parked(void *arg)
{
	struct guest_save *s = arg;
	struct vm *vm = s->g->vm;

	if (s->g->phase == GUEST_RUNNING)
		s->g->phase = GUEST_PAUSED;
	s->waiting = 1;
	s->g->quiet = true;
	vm_lock(vm);
	list_for_each (n, &vm->devices) {
		struct device *d = container_of(n, struct device, node);

		if (!d->ops->quiesce)
			continue;
		s->waiting++;
		d->ops->quiesce(d, save_quiet, s);
	}
	vm_unlock(vm);
	save_quiet(s);
}

void guest_save(struct guest *g, uint32_t id, struct msg_g_save *m)
{
	struct guest_save *s = NULL;
	struct err e = { 0 };

	if (g->save)
		err_set(&e, EBUSY, "save-under-way", "guest %s is being saved already", g->name);
	else if (g->phase == GUEST_STOPPED || g->quitting)
		err_set(&e, EINVAL, "guest-stopped", "guest %s has stopped", g->name);
	else if (guest_disk_job_runs(g))
		err_set(&e, EBUSY, "disk-job-under-way", "guest %s: its disks are being worked on",
			g->name);
	else if (m->state_fd < 0 || m->memory_fd < 0)
		err_set(&e, EINVAL, "no-descriptor", "guest %s: a save needs two files", g->name);
	else if (!(s = calloc(1, sizeof(*s))))
		err_set(&e, ENOMEM, "no-memory", "guest %s: out of memory", g->name);
	if (!s) {
		guest_reply(g, id, &e);
		return;
	}
	s->g = g;
	s->id = id;
	s->state_fd = take_fd(&m->state_fd);
	s->memory_fd = take_fd(&m->memory_fd);
	state_writer_init(&s->w);
	g->save = s;
	vm_pause(g->vm, save_parked, s);
}

void guest_save_wait(struct guest *g)
{
	if (g->save && g->save->thread_started)
		save_tell(g->save);
}

/* ---- loading ---- */

static int load_bad(struct guest *g, struct err *e, const char *why)
{
	return err_set(e, EBADMSG, "saved-state-bad", "guest %s: its saved state %s", g->name, why);
}

static int load_check(struct guest *g, const void *data, size_t len, struct save_end *end,
		      struct err *e)
{
	const struct mem *m = g->vm->mem;
	struct state_reader r;
	const void *p;
	size_t n;
	uint64_t ram;

	state_reader_init(&r, data, len);
	if (state_next(&r, e) <= 0)
		return err_is_set(e) ? -EBADMSG : load_bad(g, e, "is empty");
	if (strcmp(r.name, SAVE_SECTION))
		return load_bad(g, e, "is not one of this program");
	if (r.version > SAVE_VERSION)
		return err_set(e, ENOTSUP, "state-too-new",
			       "guest %s: saved by a newer program (version %u, this one knows %u)",
			       g->name, r.version, SAVE_VERSION);
	if (state_get_span(&r, TAG_GUEST_MACHINE, &p, &n) < 0 || n != strlen(g->machine->name) ||
	    memcmp(p, g->machine->name, n))
		return load_bad(g, e, "is of another machine");
	if (state_get_u64(&r, TAG_GUEST_RAM, &ram) < 0 ||
	    state_get_bytes(&r, TAG_GUEST_PAIR, end->pair, sizeof(end->pair)) < 0 ||
	    state_get_span(&r, TAG_GUEST_REGIONS, &p, &n) < 0 ||
	    n != mem_region_count(m) * 2 * sizeof(uint64_t) || ram != mem_ram_bytes(m))
		return load_bad(g, e, "is of a guest with other memory");
	for (unsigned i = 0; i < mem_region_count(m); i++) {
		uint64_t at[2];

		memcpy(at, (const uint8_t *)p + i * sizeof(at), sizeof(at));
		if (at[0] != mem_region_get(m, i)->gpa || at[1] != mem_region_get(m, i)->size_bytes)
			return load_bad(g, e, "is of a guest with other memory");
	}
	memcpy(end->magic, SAVE_MAGIC, sizeof(end->magic));
	end->ram_bytes = ram;
	return 0;
}

static int load_pread(int fd, void *p, size_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pread(fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		p = (uint8_t *)p + n;
		len -= (size_t)n;
		off += (uint64_t)n;
	}
	return 0;
}

/* A hole: what the build put there (tables, the kernel) goes, and with it its pages. */
static void load_hole(struct mem *m, const struct mem_region *r, uint64_t at, uint64_t len)
{
	if (madvise(r->hva + at, len, MADV_REMOVE) < 0)
		memset(r->hva + at, 0, len);
	mem_dirty_mark(m, r->gpa + at, len);
}

static int load_region(int fd, struct mem *m, const struct mem_region *r, uint64_t base)
{
	uint64_t at = 0, size = r->size_bytes;

	while (at < size) {
		off_t data = lseek(fd, (off_t)(base + at), SEEK_DATA), hole;
		uint64_t from, to;
		int ret;

		if (data < 0 && errno != ENXIO)
			return -errno;
		from = data < 0 ? size : MIN((uint64_t)data - base, size);
		from = ALIGN_DOWN(from, MEM_PAGE);
		if (from > at)
			load_hole(m, r, at, from - at);
		if (from == size)
			return 0;
		hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		to = MIN(ALIGN_UP((uint64_t)hole - base, MEM_PAGE), size);
		ret = load_pread(fd, r->hva + from, to - from, base + from);
		if (ret)
			return ret;
		mem_dirty_mark(m, r->gpa + from, to - from);
		at = to;
	}
	return 0;
}

static int load_memory(struct guest *g, int fd, const struct save_end *want, struct err *e)
{
	struct mem *m = g->vm->mem;
	struct save_end end;
	uint64_t base = 0;
	int r = load_pread(fd, &end, sizeof(end), want->ram_bytes);

	if (r || memcmp(&end, want, sizeof(end)))
		return load_bad(g, e,
				"and its saved memory do not belong together, or one is torn");
	for (unsigned i = 0; i < mem_region_count(m) && !r; i++) {
		const struct mem_region *reg = mem_region_get(m, i);

		if (reg->flags & MEM_ROM)
			continue;
		r = load_region(fd, m, reg, base);
		base += reg->size_bytes;
	}
	return r ? err_set(e, -r, "load-failed", "guest %s: its saved memory cannot be read: %s",
			   g->name, strerror(-r))
		 : 0;
}

int guest_load(struct guest *g, int state_fd, int memory_fd, struct err *e)
{
	struct save_end end = { 0 };
	struct stat st;
	uint8_t *data;
	int r;

	if (fstat(state_fd, &st) < 0 || st.st_size <= 0 || (uint64_t)st.st_size > SAVE_STATE_MAX)
		return load_bad(g, e, "is empty, or larger than any");
	data = malloc((size_t)st.st_size);
	if (!data)
		return err_set(e, ENOMEM, "no-memory", "guest %s: out of memory", g->name);
	r = load_pread(state_fd, data, (size_t)st.st_size, 0);
	if (r)
		r = load_bad(g, e, strerror(-r));
	if (!r)
		r = load_check(g, data, (size_t)st.st_size, &end, e);
	if (!r)
		r = load_memory(g, memory_fd, &end, e);
	if (!r)
		r = vm_load(g->vm, data, (size_t)st.st_size, e);
	free(data);
	return r;
}
