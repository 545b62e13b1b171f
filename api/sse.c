/* sse.c - GET /v1/events: what happens, as server-sent events, with a Last-Event-ID that survives
 * restarts.
 *
 * The last events are kept here; older ones core replays from its data base. A client that comes
 * late gets what it missed first: while core replays, live events wait in the ring, and the stream
 * then goes on by number, so that none is lost or told twice.
 * A heartbeat each 15 s keeps proxies awake; a client that lets a megabyte pile up is dropped, and
 * may come back with its number.
 */
#include "api/server.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/units.h"

#define SSE_UNSENT_MAX	 (1u << 20)
#define SSE_HEARTBEAT_NS (15 * NS_PER_S)
#define SSE_CHUNK_MAX	 65536

struct sse {
	struct list node; /* of api->sse_list */
	struct conn *c;
	uint64_t last;	/* number of the last event sent or passed over */
	uint64_t until; /* not following: end here */
	uint64_t beat_ns;
	uint64_t replayed; /* events in the current batch of core's */
	bool replaying, follow, ended;
	char kind[64], name[128];
};

static bool sse_wanted(const struct sse *s, const char *json, size_t len)
{
	json_t *j;
	const char *kind, *name;
	bool ok;

	if (!*s->kind && !*s->name)
		return true;
	j = json_loadb(json, len, 0, NULL);
	kind = json_string_value(json_object_get(j, "kind"));
	name = json_string_value(json_object_get(j, "name"));
	ok = (!*s->kind || (kind && !strncmp(kind, s->kind, strlen(s->kind)))) &&
	     (!*s->name || (name && !strcmp(name, s->name)));
	json_decref(j);
	return ok;
}

static void sse_chunk(struct conn *c, const char *text, size_t len)
{
	text_printf(&c->out, "%zx\r\n", len);
	text_addn(&c->out, text, len);
	text_add(&c->out, "\r\n");
}

static void sse_send(struct sse *s, uint64_t seq, const char *json, size_t len)
{
	struct text t = { 0 };

	s->last = seq;
	if (!sse_wanted(s, json, len))
		return;
	text_printf(&t, "id: %" PRIu64 "\ndata: ", seq);
	text_addn(&t, json, len);
	text_add(&t, "\n\n");
	if (!t.error)
		sse_chunk(s->c, t.s, t.len);
	text_free(&t);
	s->beat_ns = s->c->api->now_ns + SSE_HEARTBEAT_NS;
	if (conn_unsent(s->c) > SSE_UNSENT_MAX || s->c->out.error)
		conn_close(s->c);
}

static void sse_end(struct sse *s)
{
	struct conn *c = s->c;

	s->ended = true;
	list_del(&s->node);
	text_add(&c->out, "0\r\n\r\n");
	c->state = CONN_WAIT;
	conn_done(c);
}

/* send what the ring holds after s->last; where it does not reach back so far, ask core */
static void sse_catch_up(struct sse *s)
{
	struct api *a = s->c->api;

	for (;;) {
		uint64_t next = s->last + 1;
		unsigned slot = (unsigned)(next % API_EVENTS_KEPT);

		if (s->last >= a->last_seq || s->c->dead)
			break;
		if (a->event_seq[slot] == next) {
			sse_send(s, next, a->events[slot], strlen(a->events[slot]));
			continue;
		}
		s->replayed = 0;
		s->replaying = core_events_since(s->c, s->last) == 0;
		if (!s->replaying)
			conn_close(s->c);
		return;
	}
	if (!s->c->dead && !s->follow)
		sse_end(s);
}

void sse_start(struct conn *c)
{
	struct api *a = c->api;
	const char *since = http_query(&c->req, "since"), *kind = http_query(&c->req, "kind"),
		   *name = http_query(&c->req, "name");
	const char *follow = http_query(&c->req, "follow"),
		   *last = c->req.header[HTTP_LAST_EVENT_ID];
	struct sse *s = calloc(1, sizeof(*s));

	if (!s) {
		conn_refuse(c, 503, "no-memory", NULL, "the daemon is out of memory");
		return;
	}
	if (last)
		since = last;
	s->c = c;
	s->follow = !follow || (strcmp(follow, "false") && strcmp(follow, "0"));
	s->last = since ? strtoull(since, NULL, 10) : s->follow ? a->last_seq : 0;
	snprintf(s->kind, sizeof(s->kind), "%s", kind ? kind : "");
	snprintf(s->name, sizeof(s->name), "%s", name ? name : "");
	list_add_tail(&a->sse_list, &s->node);
	c->sse = s;
	c->state = CONN_SSE;
	c->deadline_ns = 0;
	s->beat_ns = a->now_ns + SSE_HEARTBEAT_NS;
	reply_head(c, 200, "text/event-stream", -1,
		   "Transfer-Encoding: chunked\r\nX-Accel-Buffering: no\r\n");
	sse_chunk(c, "retry: 1000\n\n", 13);
	/* a daemon that has just started knows no last number yet; core does */
	if (!a->last_seq && (since || !s->follow)) {
		s->replaying = core_events_since(c, s->last) == 0;
		if (!s->replaying)
			conn_close(c);
		return;
	}
	sse_catch_up(s);
}

static void sse_keep(struct api *a, uint64_t seq, const char *json, size_t len)
{
	unsigned slot = (unsigned)(seq % API_EVENTS_KEPT);

	free(a->events[slot]);
	a->events[slot] = strndup(json, len);
	a->event_seq[slot] = a->events[slot] ? seq : 0;
	if (seq > a->last_seq)
		a->last_seq = seq;
}

void sse_event(struct api *a, uint64_t seq, const char *json, size_t len)
{
	/* an event is one line of JSON; anything else would break the framing */
	if (!len || memchr(json, '\n', len) || memchr(json, '\r', len) || memchr(json, 0, len))
		return;
	a->n.events++;
	sse_keep(a, seq, json, len);
	list_for_each_safe (n, &a->sse_list) {
		struct sse *s = container_of(n, struct sse, node);

		if (s->replaying || s->c->dead)
			continue;
		if (seq > s->last)
			sse_send(s, seq, json, len);
		conn_flush(s->c);
	}
}

void sse_replayed(struct conn *c, uint64_t seq, const char *json, size_t len)
{
	struct sse *s = c->sse;

	if (!s || s->ended || c->dead || seq <= s->last || memchr(json, '\n', len) ||
	    memchr(json, '\r', len))
		return;
	s->replayed++;
	if (seq > c->api->last_seq)
		c->api->last_seq = seq;
	sse_send(s, seq, json, len);
	conn_flush(c);
}

void sse_replay_end(struct conn *c)
{
	struct sse *s = c->sse;
	struct api *a = c->api;

	if (!s || s->ended || c->dead)
		return;
	s->replaying = false;
	if (!s->replayed && s->last < a->last_seq) {
		/* core has dropped these: go on with the oldest that is left */
		uint64_t oldest = a->last_seq;

		for (unsigned i = 0; i < API_EVENTS_KEPT; i++)
			if (a->event_seq[i] > s->last && a->event_seq[i] < oldest)
				oldest = a->event_seq[i];
		s->last = oldest - 1;
	}
	s->replayed = 0;
	sse_catch_up(s);
	if (!c->dead)
		conn_flush(c);
}

void sse_tick(struct api *a)
{
	list_for_each_safe (n, &a->sse_list) {
		struct sse *s = container_of(n, struct sse, node);

		if (s->c->dead || a->now_ns < s->beat_ns)
			continue;
		s->beat_ns = a->now_ns + SSE_HEARTBEAT_NS;
		sse_chunk(s->c, ":\n\n", 3);
		conn_flush(s->c);
	}
}

void sse_free(struct conn *c)
{
	if (!c->sse)
		return;
	list_del(&c->sse->node);
	free(c->sse);
	c->sse = NULL;
}
