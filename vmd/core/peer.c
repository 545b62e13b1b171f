/* peer.c - a connection to another process: requests with answers, and a deadline for each.
 *
 * Every message is first held against the permit table. A call ends exactly once: by its result (or
 * the message type that stands for it), by its deadline, or by the connection's end. Descriptors
 * that nobody took are closed with the message.
 * A reply whose call is over is dropped. Trust: none in what a guest or image job sends; ids are
 * only looked up.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/units.h"
#include "vmd/core/internal.h"

#define PEER_CALLS 64 /* buckets */

struct call {
	struct list node;
	struct peer *p;
	uint32_t id;
	uint16_t type, final;
	struct loop_timer timer;
	call_fn *fn;
	void *arg;
};

struct peer {
	struct core *c;
	struct wire_conn *conn;
	enum proto_role role;
	enum proto_state state;
	char label[80];
	uint32_t next_id;
	struct list calls[PEER_CALLS];
	peer_event_fn *on_event;
	peer_closed_fn *on_closed;
	void *arg;
	bool busy, dead;
};

static void call_end(struct call *k, struct wire_buf *b, const struct err *e)
{
	call_fn *fn = k->fn;
	void *arg = k->arg;

	list_del(&k->node);
	loop_timer_stop(&k->timer);
	free(k);
	if (fn)
		fn(arg, CALL_DONE, b, e);
}

void call_forget(struct call *k)
{
	if (k)
		k->fn = NULL;
}

static const char *peer_word(uint16_t type)
{
	const struct proto_desc *d = proto_find(type);

	return d ? d->name : "?";
}

static void call_timeout(void *arg)
{
	struct call *k = arg;
	struct err e = { 0 };

	err_set(&e, ETIMEDOUT, "timed-out", "%s did not answer %s in time", k->p->label,
		peer_word(k->type));
	call_end(k, NULL, &e);
}

static struct call *call_find(struct peer *p, uint32_t id)
{
	list_for_each (n, &p->calls[id % PEER_CALLS]) {
		struct call *k = container_of(n, struct call, node);

		if (k->id == id)
			return k;
	}
	return NULL;
}

static void peer_result(struct call *k, struct wire_buf *b)
{
	struct msg_result m;
	struct err e = { 0 };
	struct wire_iter it;
	struct wire_field f;
	uint64_t num = 0;

	/* only an error is decoded here: of a success the caller takes the descriptors itself */
	wire_iter_init(&it, b);
	while (wire_next(&it, &f) > 0)
		if (f.tag == 1 && f.kind == WIRE_U64)
			num = f.u64;
	if (!num) {
		call_end(k, b, NULL);
		return;
	}
	if (msg_result_decode(&m, b) < 0) {
		err_set(&e, EPROTO, "bad-message", "%s answered %s with a malformed result",
			k->p->label, peer_word(k->type));
	} else {
		err_set(&e, num < 4096 ? (int)num : EIO, *m.code ? m.code : "failed", "%s",
			*m.detail ? m.detail : "no reason given");
		err_hint(&e, "%s", m.hint);
		msg_result_close(&m);
	}
	call_end(k, NULL, &e);
}

static void peer_reap(struct peer *p)
{
	if (p->dead && !p->busy) {
		if (p->conn)
			wire_conn_free(p->conn);
		free(p);
	}
}

static void peer_message(void *arg, struct wire_conn *conn, struct wire_buf *b)
{
	struct peer *p = arg;
	int r = proto_permit(b, p->role, PROTO_CORE, p->state);
	struct call *k;

	if (p->c->priv_lost)
		return; /* nothing is recorded any more: the next daemon asks again */
	if (r < 0) {
		log_warn("%s: message 0x%04x refused: %s", p->label, b->type, strerror(-r));
		return;
	}
	p->busy = true;
	k = b->id ? call_find(p, b->id) : NULL;
	if (k && b->type == MSG_result)
		peer_result(k, b);
	else if (k && k->final && b->type == k->final)
		call_end(k, b, NULL);
	else if (k && k->fn)
		k->fn(k->arg, CALL_ITEM, b, NULL);
	else if (!k && !b->id)
		p->on_event(p->arg, p, b);
	p->busy = false;
	peer_reap(p);
}

static void peer_fail_calls(struct peer *p, int why)
{
	for (unsigned i = 0; i < PEER_CALLS; i++)
		while (!p->dead && !list_empty(&p->calls[i])) {
			struct call *k = list_first(&p->calls[i], struct call, node);
			struct err e = { 0 };

			err_set(&e, ECONNRESET, "peer-gone", "%s went away before it answered %s",
				p->label, peer_word(k->type));
			call_end(k, NULL, &e);
		}
}

static void peer_closed(void *arg, struct wire_conn *conn, int why)
{
	struct peer *p = arg;

	p->busy = true;
	if (p->role == PROTO_PRIV)
		p->c->priv_lost = true;
	peer_fail_calls(p, why);
	if (!p->dead)
		p->on_closed(p->arg, p, why);
	p->busy = false;
	peer_reap(p);
}

struct peer *peer_new(struct core *c, int sock, enum proto_role role, const char *label,
		      peer_event_fn *on_event, peer_closed_fn *on_closed, void *arg)
{
	struct peer *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	*p = (struct peer){ .c = c,
			    .role = role,
			    .state = PROTO_UP,
			    .on_event = on_event,
			    .on_closed = on_closed,
			    .arg = arg };
	snprintf(p->label, sizeof(p->label), "%s", label);
	for (unsigned i = 0; i < PEER_CALLS; i++)
		list_init(&p->calls[i]);
	p->conn = wire_conn_new(c->loop, sock, WIRE_FDS_MAX, peer_message, peer_closed, p);
	if (!p->conn) {
		free(p);
		return NULL;
	}
	return p;
}

void peer_free(struct peer *p)
{
	if (!p || p->dead)
		return;
	for (unsigned i = 0; i < PEER_CALLS; i++)
		list_for_each_safe (n, &p->calls[i]) {
			struct call *k = container_of(n, struct call, node);

			list_del(n);
			loop_timer_stop(&k->timer);
			free(k);
		}
	p->dead = true;
	if (p->conn)
		wire_conn_free(p->conn);
	p->conn = NULL;
	peer_reap(p);
}

void peer_end(struct peer *p)
{
	bool busy;

	if (!p || p->dead)
		return;
	busy = p->busy;
	p->busy = true;
	peer_fail_calls(p, -EPIPE);
	p->busy = busy;
	peer_free(p);
}

void peer_set_state(struct peer *p, enum proto_state s)
{
	p->state = s;
}

size_t peer_queued(const struct peer *p)
{
	return p->conn ? wire_conn_queued(p->conn) : 0;
}

/* What could not be recorded must not be followed by a next step. */
static bool peer_mute(const struct peer *p)
{
	return !p->conn || p->c->priv_lost;
}

int peer_send(struct peer *p, uint16_t type, const void *msg)
{
	return p && !peer_mute(p) ? proto_send(p->conn, type, msg, 0) : -EPIPE;
}

static void call_unsent(void *arg)
{
	struct call *k = arg;
	struct err e = { 0 };

	err_set(&e, EPIPE, "peer-gone", "%s cannot be reached for %s", k->p->label,
		peer_word(k->type));
	call_end(k, NULL, &e);
}

struct call *peer_call(struct peer *p, uint16_t type, const void *msg, uint16_t final,
		       unsigned timeout_ms, call_fn *fn, void *arg)
{
	struct call *k = calloc(1, sizeof(*k));
	int r;

	if (!k)
		return NULL;
	*k = (struct call){ .p = p, .type = type, .final = final, .fn = fn, .arg = arg };
	do
		k->id = ++p->next_id;
	while (!k->id || call_find(p, k->id));
	list_add_tail(&p->calls[k->id % PEER_CALLS], &k->node);
	loop_timer_init(p->c->loop, &k->timer, call_timeout, k);
	r = peer_mute(p) ? -EPIPE : proto_send(p->conn, type, msg, k->id);
	if (r < 0) {
		/* told from the loop: the caller is still in the middle of its own step */
		k->timer.fn = call_unsent;
		loop_timer_after(&k->timer, 1);
	} else if (timeout_ms) {
		loop_timer_after(&k->timer, timeout_ms * NS_PER_MS);
	}
	return k;
}
