/* source.c - a file that core opened goes to the client: an image, whole, with its length; a log,
 * perhaps only its last lines, perhaps for as long as it grows (chunked, looked at four times a
 * second). Read in pieces when the socket has room, so that a slow client costs one piece of
 * memory.
 */
#include "api/server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/units.h"

#define SOURCE_PIECE   65536
#define SOURCE_POLL_NS (250 * NS_PER_MS)

struct source {
	struct conn *c;
	int fd;
	uint64_t off, end; /* end: not following */
	bool follow;
	struct loop_timer timer;
};

static void source_done(struct source *s)
{
	struct conn *c = s->c;

	c->state = CONN_WAIT;
	source_free(c);
	conn_done(c);
}

/* fill `out` with the next piece. Return: bytes, 0 none now, -errno */
static long source_piece(struct source *s)
{
	char buf[SOURCE_PIECE];
	uint64_t left = s->follow ? sizeof(buf) : s->end - s->off;
	ssize_t n;

	do
		n = pread(s->fd, buf, left < sizeof(buf) ? left : sizeof(buf), (off_t)s->off);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (n == 0)
		return 0;
	s->off += (uint64_t)n;
	if (s->follow)
		text_printf(&s->c->out, "%zx\r\n", (size_t)n);
	text_addn(&s->c->out, buf, (size_t)n);
	if (s->follow)
		text_add(&s->c->out, "\r\n");
	return n;
}

void source_writable(struct conn *c)
{
	struct source *s = c->source;

	for (unsigned i = 0; i < 16 && !c->dead; i++) {
		long n;

		if (conn_unsent(c))
			return; /* EPOLLOUT brings us back */
		if (!s->follow && s->off >= s->end) {
			source_done(s);
			return;
		}
		n = source_piece(s);
		if (n < 0 || (n == 0 && !s->follow)) {
			conn_close(c); /* shorter than announced: the client must notice */
			return;
		}
		if (n == 0) {
			c->deadline_ns = 0;
			loop_timer_after(&s->timer, SOURCE_POLL_NS);
			return;
		}
		c->deadline_ns = c->api->now_ns + 60 * NS_PER_S;
		conn_flush(c);
	}
	if (!c->dead)
		conn_events(c, EPOLLOUT | EPOLLRDHUP);
}

static void source_poll(void *arg)
{
	struct source *s = arg;
	struct conn *c = s->c;
	struct api *a = c->api;
	struct stat st;

	a->now_ns = clock_mono_ns();
	/* a log that was turned over starts again at its beginning */
	if (fstat(s->fd, &st) == 0 && (uint64_t)st.st_size < s->off)
		s->off = 0;
	source_writable(c);
	conn_reap(a);
}

/* offset of the last @lines lines */
static uint64_t source_tail(int fd, uint64_t size, long lines)
{
	uint64_t off = size;
	char buf[4096];

	while (off) {
		size_t n = off < sizeof(buf) ? (size_t)off : sizeof(buf);

		if (pread(fd, buf, n, (off_t)(off - n)) != (ssize_t)n)
			return 0;
		for (size_t i = n; i--;) {
			if (buf[i] == '\n' && off - n + i + 1 != size && !--lines)
				return off - n + i + 1;
		}
		off -= n;
	}
	return 0;
}

void source_start(struct conn *c, int fd, const char *type, bool follow, long tail_lines)
{
	struct source *s = calloc(1, sizeof(*s));
	struct stat st;

	if (!s || fstat(fd, &st) < 0) {
		free(s);
		close(fd);
		conn_refuse(c, 500, "cannot-read", NULL, "the file cannot be read");
		return;
	}
	*s = (struct source){ .c = c, .fd = fd, .follow = follow, .end = (uint64_t)st.st_size };
	/* what a log has let go of is a hole at its start */
	if (tail_lines >= 0) {
		off_t data = lseek(fd, 0, SEEK_DATA);

		s->off = data > 0 ? (uint64_t)data : 0;
	}
	if (tail_lines > 0)
		s->off = source_tail(fd, s->end, tail_lines);
	loop_timer_init(c->api->loop, &s->timer, source_poll, s);
	c->source = s;
	c->state = CONN_SOURCE;
	if (follow)
		reply_head(c, 200, type, -1, "Transfer-Encoding: chunked\r\n");
	else
		reply_head(c, 200, type, (int64_t)(s->end - s->off), NULL);
	conn_flush(c);
	if (!c->dead)
		conn_events(c, EPOLLRDHUP | EPOLLOUT);
}

void source_free(struct conn *c)
{
	if (!c->source)
		return;
	loop_timer_stop(&c->source->timer);
	close(c->source->fd);
	free(c->source);
	c->source = NULL;
}
