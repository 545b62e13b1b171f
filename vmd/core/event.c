/* event.c - what happened (events, durable and numbered) and who asked for what (the audit trail).
 *
 * Both are collected during a round and written in its transaction; events then go to api, so that
 * nobody hears of what was not kept. Where the store refuses, events wait with the facts they tell
 * of. The last 10,000 are kept.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "vmd/core/internal.h"

#define EVENTS_KEEP	   10000
#define EVENTS_WAITING_MAX 20000

struct log_line {
	struct list node;
	int64_t seq; /* 0 = audit, -1 = answer of an idempotency key */
	char *json, *key;
};

static void log_line_free(struct log_line *l)
{
	list_del(&l->node);
	free(l->json);
	free(l->key);
	free(l);
}

static void log_line_add(struct core *c, int64_t seq, char *json, const char *key)
{
	struct log_line *oldest, *l = json ? calloc(1, sizeof(*l)) : NULL;

	if (!l) {
		free(json);
		return;
	}
	l->key = key ? strdup(key) : NULL;
	l->seq = seq;
	l->json = json;
	list_add_tail(&c->log_lines, &l->node);
	oldest = list_first(&c->log_lines, struct log_line, node);
	if (++c->nlog_lines > EVENTS_WAITING_MAX && oldest) {
		if (c->part.log == &oldest->node)
			c->part.log = &c->log_lines;
		log_line_free(oldest);
		c->nlog_lines--;
	}
	round_touch(c);
}

void event_add(struct core *c, const char *kind, const char *object, const char *name,
	       const char *fmt, ...)
{
	char text[512];
	json_t *j;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < 32)
			*p = '?';
	j = json_pack("{s:I, s:o, s:s, s:s, s:s}", "seq", (json_int_t)++c->event_seq, "time",
		      jnow(), "kind", kind, "object", object, "name", name);
	if (!j)
		return;
	json_object_set_new(j, "text", json_string(text));
	log_line_add(c, c->event_seq, jtext(j), NULL);
	json_decref(j);
}

void audit_add(struct core *c, const struct req *r, const char *result)
{
	json_t *j = json_pack("{s:o, s:s, s:i, s:I, s:s, s:s, s:s, s:s, s:s}", "time", jnow(),
			      "principal", r->principal, "role", (int)r->role, "uid",
			      (json_int_t)r->uid, "route", route_name(r->route), "name", r->name,
			      "sub", r->sub, "request", r->request_id, "result", result);

	if (!j)
		return;
	log_line_add(c, 0, jtext(j), NULL);
	json_decref(j);
}

void log_idem_add(struct core *c, const char *key, const char *answer)
{
	log_line_add(c, -1, strdup(answer), key);
}

/* The round was refused: kept answers tell of what was undone. Events and the trail wait. */
void log_round_undo(struct core *c)
{
	list_for_each_safe (p, &c->log_lines) {
		struct log_line *l = container_of(p, struct log_line, node);

		if (l->key) {
			log_line_free(l);
			c->nlog_lines--;
		}
	}
}

void log_drop_since(struct core *c, struct list *mark)
{
	for (struct list *p = mark->next, *next = p->next; p != &c->log_lines;
	     p = next, next = p->next) {
		struct log_line *l = container_of(p, struct log_line, node);

		if (l->seq > 0) {
			log_line_free(l);
			c->nlog_lines--;
		}
	}
}

bool log_round_pending(struct core *c)
{
	return !list_empty(&c->log_lines);
}

int log_round_write(struct core *c, struct err *e)
{
	int r = 0;

	list_for_each (p, &c->log_lines) {
		struct log_line *l = container_of(p, struct log_line, node);

		if (l->seq > 0)
			r = c->store_ops->event_put(c->store, l->seq, l->json, EVENTS_KEEP, e);
		else if (l->key)
			r = c->store_ops->idem_put(c->store, l->key, l->json,
						   (int64_t)(clock_real_ms() / 1000), e);
		else
			r = c->store_ops->audit_put(c->store, l->json, e);
		if (r)
			break;
	}
	return r;
}

void log_round_done(struct core *c)
{
	list_for_each_safe (p, &c->log_lines) {
		struct log_line *l = container_of(p, struct log_line, node);

		if (l->seq > 0)
			api_send_event(c, l->seq, l->json);
		log_line_free(l);
	}
	c->nlog_lines = 0;
}
