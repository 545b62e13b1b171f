/* chardev.c - where a serial or console port leads (chardev.h).
 *
 * One ring of bytes a port, written by the guest, with an absolute position. Every reader of it
 * (the far side and each attached console) is a position of its own behind the writer's: the same
 * ring is output buffer and scrollback, and a reader that falls more than a ring behind loses the
 * oldest bytes, counted.
 * Only files hold the guest instead. The ring grows as it is used, so that an idle port costs
 * nothing.
 *
 * A vCPU thread only appends, and posts one flush to the main loop; what a boot log writes byte by
 * byte thus leaves in few large writes. All descriptors are non-blocking and watched
 * edge-triggered, in both directions, from the start: a pty whose other side is closed would
 * otherwise report hang-up for ever.
 *
 * Locking: the machine lock covers everything here; loop callbacks take it.
 */
#include "devices/chardev.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "hypervisor-core/vm.h"

#define RING_MIN     1024u
#define RING_DEFAULT 4096u
#define RING_MAX     (1u << 20)
#define READ_CHUNK   512u
#define CONSOLES_MAX 64u
#define LOG_TRIM     (1u << 20)

enum sink_kind { SINK_STREAM, SINK_FILE, SINK_LISTEN };

struct chardev_sink {
	struct list node;
	struct chardev *c;
	struct loop_fd watch;
	enum sink_kind kind;
	int fd;
	uint64_t pos;		     /* next byte of the ring to write */
	bool main;		     /* the configured far side, not a console */
	bool read_only, input_waits; /* bytes are there, the guest had no room */
	bool is_socket;
	bool bounded;	   /* a log: only its end is kept */
	uint64_t file_end; /* of a log: where it ends, and up to where it is a hole */
	uint64_t hole_end;
};

struct chardev {
	struct vm *vm;
	char id[64];
	struct list node; /* vm->chardevs */
	const struct chardev_owner_ops *ops;
	void *owner;
	enum chardev_kind kind;
	struct list sinks;
	unsigned nconsoles;
	uint8_t *ring;
	uint32_t size, limit; /* size: power of two, or 0 while nothing was written */
	uint64_t wpos;	      /* bytes ever written */
	uint64_t in_bytes, dropped;
	bool posted, dead, was_connected, held;
};

static void chardev_work(void *arg);

/* One post at a time. Any thread with the machine lock. */
static void chardev_post(struct chardev *c)
{
	if (c->posted || c->dead)
		return;
	if (loop_post(c->vm->loop, chardev_work, c) == 0)
		c->posted = true;
}

static bool chardev_connected(const struct chardev *c)
{
	bool main = false;

	list_for_each (p, (struct list *)&c->sinks) {
		const struct chardev_sink *s = container_of(p, struct chardev_sink, node);

		if (!s->main)
			return true;
		main = s->kind != SINK_LISTEN;
	}
	return main || c->kind == CHARDEV_NULL;
}

static void chardev_carrier(struct chardev *c)
{
	bool on = chardev_connected(c);

	if (on == c->was_connected)
		return;
	c->was_connected = on;
	if (c->ops && c->ops->connected)
		c->ops->connected(c->owner, on);
}

static void chardev_sink_free(struct chardev_sink *s)
{
	struct chardev *c = s->c;

	if (!s->main)
		c->nconsoles--;
	loop_fd_del(&s->watch);
	close(s->fd);
	list_del(&s->node);
	free(s);
}

/* ---- output ---- */

/* Oldest byte still in the ring. */
static uint64_t chardev_oldest(const struct chardev *c)
{
	return c->wpos > c->size ? c->wpos - c->size : 0;
}

/* chardev_grow() - make room for @len bytes without losing any, up to the limit. */
static void chardev_grow(struct chardev *c, size_t len)
{
	uint64_t have = c->wpos - chardev_oldest(c), want = MIN(have + len, (uint64_t)c->limit);
	uint32_t size = MAX(c->size, RING_MIN);
	uint8_t *ring;

	while (size < want)
		size *= 2;
	size = MIN(size, c->limit);
	if (size == c->size)
		return;
	ring = malloc(size);
	if (!ring)
		return; /* what does not fit is dropped */
	for (uint64_t p = chardev_oldest(c); p < c->wpos; p++)
		ring[p & (size - 1)] = c->ring[p & (c->size - 1)];
	free(c->ring);
	c->ring = ring;
	c->size = size;
}

/* @len bytes more are in the log. Let go of what is too old, a good piece at a time; where the file
 * system makes no holes, start anew instead. */
static void chardev_log_trim(struct chardev_sink *s, uint64_t len)
{
	uint64_t keep_from;

	s->file_end += len;
	if (s->file_end - s->hole_end < CHARDEV_LOG_KEEP + LOG_TRIM)
		return;
	keep_from = ALIGN_DOWN(s->file_end - CHARDEV_LOG_KEEP, 4096u);
	if (fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)keep_from) == 0)
		s->hole_end = keep_from;
	else if (ftruncate(s->fd, 0) == 0)
		s->file_end = s->hole_end = 0;
}

/* Write what @s has not seen. False: the sink is gone. */
static bool chardev_sink_flush(struct chardev_sink *s)
{
	struct chardev *c = s->c;

	if (s->kind == SINK_LISTEN)
		return true;
	if (s->pos < chardev_oldest(c))
		s->pos = chardev_oldest(c);
	while (s->pos < c->wpos) {
		uint32_t at = (uint32_t)s->pos & (c->size - 1);
		size_t len = (size_t)MIN(c->wpos - s->pos, (uint64_t)(c->size - at));
		ssize_t n;

		if (s->is_socket)
			n = send(s->fd, c->ring + at, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		else
			n = write(s->fd, c->ring + at, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n < 0) {
			if (s->kind == SINK_FILE || (s->main && errno == EIO)) {
				/* Disk full, or a pty nobody has open: these bytes are lost, later
				 * ones may not be. */
				c->dropped += c->wpos - s->pos;
				s->pos = c->wpos;
				return true;
			}
			return false;
		}
		s->pos += (uint64_t)n;
		if (s->bounded)
			chardev_log_trim(s, (uint64_t)n);
	}
	return true;
}

static uint64_t chardev_file_room(const struct chardev *c)
{
	list_for_each (p, (struct list *)&c->sinks) {
		const struct chardev_sink *s = container_of(p, struct chardev_sink, node);

		if (s->kind == SINK_FILE)
			return c->limit - MIN(c->wpos - s->pos, (uint64_t)c->limit);
	}
	return UINT64_MAX;
}

size_t chardev_write(struct chardev *c, const uint8_t *p, size_t len)
{
	uint64_t room = chardev_file_room(c);
	size_t taken = (size_t)MIN((uint64_t)len, room), keep, skip;

	if (taken < len)
		c->held = true;
	if (!taken)
		return 0;
	if (c->size < c->limit)
		chardev_grow(c, taken);
	if (!c->size) {
		c->wpos += taken;
		if (c->kind != CHARDEV_NULL)
			c->dropped += taken;
		return taken;
	}
	/* Readers that this overruns lose their oldest bytes. */
	list_for_each (q, &c->sinks) {
		struct chardev_sink *s = container_of(q, struct chardev_sink, node);

		if (s->kind != SINK_LISTEN && c->wpos + taken - s->pos > c->size) {
			uint64_t from = c->wpos + taken - c->size;

			c->dropped += from - s->pos;
			s->pos = from;
		}
	}
	keep = MIN(taken, (size_t)c->size);
	skip = taken - keep;
	c->wpos += skip;
	p += skip;
	while (keep) {
		uint32_t at = (uint32_t)c->wpos & (c->size - 1);
		size_t n = MIN(keep, (size_t)(c->size - at));

		memcpy(c->ring + at, p, n);
		c->wpos += n;
		p += n;
		keep -= n;
	}
	if (!list_empty(&c->sinks))
		chardev_post(c);
	return taken;
}

/* ---- input ---- */

/* Read what is there and the guest has room for. False: end of file. */
static bool chardev_sink_read(struct chardev_sink *s)
{
	struct chardev *c = s->c;

	for (;;) {
		uint8_t buf[READ_CHUNK];
		size_t room =
		    c->ops && c->ops->room && !s->read_only ? c->ops->room(c->owner) : sizeof(buf);
		ssize_t n;

		s->input_waits = room == 0;
		if (!room) {
			/* A console that hangs up must go even if the guest never reads: look
			 * without taking. */
			char peek;

			return !s->is_socket || recv(s->fd, &peek, 1, MSG_PEEK | MSG_DONTWAIT) != 0;
		}
		n = read(s->fd, buf, MIN(room, sizeof(buf)));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) /* a pty whose other side is closed says EIO: it may be opened again */
			return errno == EAGAIN || (errno == EIO && s->main);
		if (n == 0)
			return s->main && !s->is_socket;
		if (s->read_only)
			continue;
		c->in_bytes += (uint64_t)n;
		if (c->ops && c->ops->receive)
			c->ops->receive(c->owner, buf, (size_t)n);
	}
}

static int chardev_sink_add(struct chardev *c, int fd, enum sink_kind kind, bool main,
			    bool read_only, struct chardev_sink **out);

static void chardev_accept(struct chardev_sink *s)
{
	for (;;) {
		struct chardev *c = s->c;
		int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0)
			return;
		if (c->nconsoles >= CONSOLES_MAX ||
		    chardev_sink_add(c, fd, SINK_STREAM, false, false, NULL))
			close(fd);
		else
			chardev_post(c);
	}
}

static void chardev_event(void *arg, int fd, uint32_t events)
{
	struct chardev_sink *s = arg;
	struct chardev *c = s->c;
	bool alive = true;

	vm_lock(c->vm);
	if (s->kind == SINK_LISTEN) {
		chardev_accept(s);
	} else {
		if (events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR))
			alive = chardev_sink_read(s);
		if (alive && (events & EPOLLOUT))
			alive = chardev_sink_flush(s);
		if (!alive)
			chardev_sink_free(s);
	}
	chardev_carrier(c);
	vm_unlock(c->vm);
}

/* On the main loop: flush every sink, and take up input that waited for room. */
static void chardev_work(void *arg)
{
	struct chardev *c = arg;
	struct vm *vm = c->vm;

	if (c->dead) {
		free(c);
		return;
	}
	vm_lock(vm);
	c->posted = false;
	list_for_each_safe (p, &c->sinks) {
		struct chardev_sink *s = container_of(p, struct chardev_sink, node);

		if (!chardev_sink_flush(s) || (s->input_waits && !chardev_sink_read(s)))
			chardev_sink_free(s);
	}
	chardev_carrier(c);
	if (c->held && chardev_file_room(c)) {
		c->held = false;
		if (c->ops && c->ops->writable)
			c->ops->writable(c->owner);
	}
	vm_unlock(vm);
}

void chardev_room(struct chardev *c)
{
	list_for_each (p, &c->sinks) {
		if (container_of(p, struct chardev_sink, node)->input_waits) {
			chardev_post(c);
			return;
		}
	}
}

/* ---- making and unmaking ---- */

/* @fd is taken on success. Machine lock held, main loop's thread. */
static int chardev_sink_add(struct chardev *c, int fd, enum sink_kind kind, bool main,
			    bool read_only, struct chardev_sink **out)
{
	struct chardev_sink *s = calloc(1, sizeof(*s));
	int type, ret = 0;
	socklen_t len = sizeof(type);

	if (!s)
		return -ENOMEM;
	s->c = c;
	s->fd = fd;
	s->kind = kind;
	s->main = main;
	s->read_only = read_only;
	s->is_socket = getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0;
	s->pos = chardev_oldest(c);
	s->watch.fd = -1;
	if (kind != SINK_FILE) {
		ret = fd_set_nonblock(fd);
		if (!ret)
			ret = loop_fd_add(c->vm->loop, &s->watch, fd,
					  kind == SINK_LISTEN
					      ? EPOLLIN
					      : EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
					  chardev_event, s);
		/* A regular file given as a stream cannot be polled; it is written like a file. */
		if (ret == -EPERM && kind == SINK_STREAM) {
			s->kind = SINK_FILE;
			ret = 0;
		}
	}
	if (ret) {
		free(s);
		return ret;
	}
	list_add_tail(&c->sinks, &s->node);
	if (!main)
		c->nconsoles++;
	if (out)
		*out = s;
	return 0;
}

static int chardev_far_side(struct chardev *c, const struct chardev_config *cfg, struct err *e)
{
	static const enum sink_kind kinds[] = { [CHARDEV_STREAM] = SINK_STREAM,
						[CHARDEV_LISTEN] = SINK_LISTEN,
						[CHARDEV_FILE] = SINK_FILE,
						[CHARDEV_LOG] = SINK_FILE };
	struct chardev_sink *s;
	struct stat st;
	int ret;

	if (cfg->kind == CHARDEV_NULL)
		return 0;
	ret = chardev_sink_add(c, cfg->fd, kinds[cfg->kind], true, false, &s);
	if (ret)
		return err_set(e, -ret, "port-failed", "port %s: its far side cannot be used: %s",
			       c->id, strerror(-ret));
	if (cfg->kind == CHARDEV_LOG && fstat(s->fd, &st) == 0) {
		s->bounded = true;
		s->file_end = (uint64_t)st.st_size;
		/* the last boot's holes: what is allocated is what is kept */
		s->hole_end = s->file_end - MIN(s->file_end, (uint64_t)st.st_blocks * 512);
	}
	return 0;
}

struct chardev *chardev_new(struct vm *vm, const char *id, const struct chardev_config *cfg,
			    const struct chardev_owner_ops *ops, void *owner, struct err *e)
{
	struct chardev *c = calloc(1, sizeof(*c));
	size_t want = cfg->scrollback_bytes;

	if (!c) {
		err_set(e, ENOMEM, "no-memory", "port %s: out of memory", id);
		return NULL;
	}
	c->vm = vm;
	snprintf(c->id, sizeof(c->id), "%s", id);
	c->ops = ops;
	c->owner = owner;
	c->kind = cfg->kind;
	list_init(&c->sinks);
	/* A port that leads nowhere and keeps nothing still serves consoles that attach. */
	want = MIN(MAX(want, (size_t)RING_DEFAULT), (size_t)RING_MAX);
	c->limit = RING_DEFAULT;
	while (c->limit < want)
		c->limit *= 2;
	if (chardev_far_side(c, cfg, e)) {
		free(c);
		return NULL;
	}
	c->was_connected = chardev_connected(c);
	if (!vm->chardevs.next)
		list_init(&vm->chardevs);
	list_add_tail(&vm->chardevs, &c->node);
	if (c->was_connected && ops && ops->connected)
		ops->connected(owner, true);
	return c;
}

/* Main thread. A last flush gives far sides what the guest wrote before it went. */
void chardev_free(struct chardev *c)
{
	if (!c)
		return;
	list_for_each_safe (p, &c->sinks) {
		struct chardev_sink *s = container_of(p, struct chardev_sink, node);

		chardev_sink_flush(s);
		chardev_sink_free(s);
	}
	list_del(&c->node);
	free(c->ring);
	c->ring = NULL;
	c->size = 0;
	c->ops = NULL;
	c->dead = true;
	if (!c->posted)
		free(c);
}

int chardev_attach(struct chardev *c, int fd, bool read_only, struct err *e)
{
	int ret;

	if (c->nconsoles >= CONSOLES_MAX)
		return err_set(e, EMFILE, "too-many-consoles",
			       "port %s: %u consoles are attached already", c->id, c->nconsoles);
	ret = chardev_sink_add(c, fd, SINK_STREAM, false, read_only, NULL);
	if (ret)
		return err_set(e, -ret, "console-failed", "port %s: cannot attach a console: %s",
			       c->id, strerror(-ret));
	chardev_carrier(c);
	chardev_post(c);
	return 0;
}

int chardev_replace(struct chardev *c, const struct chardev_config *cfg, struct err *e)
{
	struct list *last = c->sinks.prev;
	int ret = chardev_far_side(c, cfg, e);

	if (ret)
		return ret;
	list_for_each_safe (p, &c->sinks) {
		struct chardev_sink *s = container_of(p, struct chardev_sink, node);

		if (s->main && (cfg->kind == CHARDEV_NULL || p != c->sinks.prev || p == last))
			chardev_sink_free(s);
	}
	c->kind = cfg->kind;
	chardev_carrier(c);
	chardev_post(c);
	return 0;
}

void chardev_stats(const struct chardev *c, uint64_t *in, uint64_t *out, uint64_t *dropped)
{
	*in = c->in_bytes;
	*out = c->wpos;
	*dropped = c->dropped;
}

struct chardev *chardev_find(struct vm *vm, const char *id)
{
	if (!vm->chardevs.next)
		return NULL;
	list_for_each (p, &vm->chardevs) {
		struct chardev *c = container_of(p, struct chardev, node);

		if (strcmp(c->id, id) == 0)
			return c;
	}
	return NULL;
}
