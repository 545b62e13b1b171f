/* obj.c - objects in memory, written through at the end of each loop round.
 *
 * A round collects every object that changed and what it was before. round_commit() writes them in
 * one transaction (so 1,000 creates cost a few syncs, not 1,000), then lets out the queued messages
 * to api. A request is a part of the round: one that fails half-way is taken back by itself. Where the store refuses, changes that requests asked for are undone and their replies
 * become 503; facts (PUT_FACT) stay, dirty, and are written when the store takes writes again. Hash
 * tables by id and by name; a list keeps creation order.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/cleanup.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/core/internal.h"

#define OBJ_SUGGEST_MAX 4000
#define RETRY_NS	(5 * NS_PER_S)

struct undo {
	struct list node;
	struct obj *o;
	struct undo *older; /* of the same object, from before the request being handled */
	uint64_t part;
	bool was_new, fact, put;
	json_t *doc, *rt;
	char name[192];
	int64_t revision;
};

static const char *const kind_names[K_COUNT] = {
	[K_GUEST] = "guest",	 [K_SNAPSHOT] = "snapshot",   [K_DISK] = "disk",
	[K_IMAGE] = "image",	 [K_POOL] = "pool",	      [K_NETWORK] = "network",
	[K_FORWARD] = "forward", [K_OPERATION] = "operation", [K_TOKEN] = "token",
};

const char *kind_name(enum kind k)
{
	return kind_names[k];
}

static size_t obj_hash(const char *s)
{
	uint64_t h = 0xcbf29ce484222325ull;

	for (; *s; s++)
		h = (h ^ (uint8_t)*s) * 0x100000001b3ull;
	return (size_t)(h ^ h >> 29);
}

static void index_add_id(struct kind_index *x, struct obj *o)
{
	struct obj **b = &x->by_id[obj_hash(o->id) % x->buckets];

	o->hash_id = *b;
	*b = o;
}

static void index_add_name(struct kind_index *x, struct obj *o)
{
	struct obj **b = &x->by_name[obj_hash(o->name) % x->buckets];

	if (!*o->name)
		return;
	o->hash_name = *b;
	*b = o;
}

static void index_del_name(struct kind_index *x, struct obj *o)
{
	for (struct obj **p = &x->by_name[obj_hash(o->name) % x->buckets]; *p; p = &(*p)->hash_name)
		if (*p == o) {
			*p = o->hash_name;
			break;
		}
	o->hash_name = NULL;
}

static int index_grow(struct kind_index *x)
{
	size_t n = x->buckets ? x->buckets * 4 : 256;
	struct obj **id = calloc(n, sizeof(*id)), **name = calloc(n, sizeof(*name));

	if (!id || !name) {
		free(id);
		free(name);
		return -ENOMEM;
	}
	free(x->by_id);
	free(x->by_name);
	x->by_id = id;
	x->by_name = name;
	x->buckets = n;
	list_for_each (p, &x->all) {
		struct obj *o = container_of(p, struct obj, node);

		o->hash_id = o->hash_name = NULL;
		index_add_id(x, o);
		index_add_name(x, o);
	}
	return 0;
}

static int index_add(struct kind_index *x, struct obj *o)
{
	if (x->count >= x->buckets && index_grow(x) < 0 && !x->buckets)
		return -ENOMEM;
	list_add_tail(&x->all, &o->node);
	index_add_id(x, o);
	index_add_name(x, o);
	x->count++;
	return 0;
}

static void index_del(struct kind_index *x, struct obj *o)
{
	for (struct obj **p = &x->by_id[obj_hash(o->id) % x->buckets]; *p; p = &(*p)->hash_id)
		if (*p == o) {
			*p = o->hash_id;
			break;
		}
	o->hash_id = NULL;
	index_del_name(x, o);
	list_del(&o->node);
	x->count--;
}

struct obj *obj_by_id(struct core *c, enum kind k, const char *id)
{
	struct kind_index *x = &c->kinds[k];

	if (!x->buckets || !id)
		return NULL;
	for (struct obj *o = x->by_id[obj_hash(id) % x->buckets]; o; o = o->hash_id)
		if (!strcmp(o->id, id))
			return o;
	return NULL;
}

struct obj *obj_by_name(struct core *c, enum kind k, const char *name)
{
	struct kind_index *x = &c->kinds[k];

	if (!x->buckets || !name || !*name)
		return NULL;
	for (struct obj *o = x->by_name[obj_hash(name) % x->buckets]; o; o = o->hash_name)
		if (!strcmp(o->name, name))
			return o;
	return NULL;
}

static void obj_suggest(struct core *c, enum kind k, const char *name, struct err *e)
{
	const char **words = calloc(OBJ_SUGGEST_MAX + 1, sizeof(*words));
	const char *near = NULL;
	size_t n = 0;

	if (words) {
		list_for_each (p, &c->kinds[k].all) {
			struct obj *o = container_of(p, struct obj, node);

			if (*o->name && n < OBJ_SUGGEST_MAX)
				words[n++] = o->name;
		}
		near = suggest(name, words);
	}
	if (near)
		err_hint(e, "did you mean \"%s\"?", near);
	else
		err_hint(e,
			 k == K_GUEST	    ? "vmctl ls"
			 : k == K_NETWORK   ? "vmctl net ls"
			 : k == K_OPERATION ? "vmctl ops"
					    : "vmctl %s ls",
			 kind_names[k]);
	free(words);
}

struct obj *obj_find(struct core *c, enum kind k, const char *name, struct err *e)
{
	struct obj *o = obj_by_name(c, k, name);
	char code[48];

	if (!o)
		o = obj_by_id(c, k, name);
	if (o)
		return o;
	snprintf(code, sizeof(code), "%s-not-found", kind_names[k]);
	err_set(e, ENOENT, code, "no %s is named \"%s\"", kind_names[k], name);
	obj_suggest(c, k, name, e);
	return NULL;
}

size_t obj_count(struct core *c, enum kind k)
{
	return c->kinds[k].count;
}

/* ---- the round ---- */

static void round_run(void *arg)
{
	struct core *c = arg;

	c->posted = false;
	round_commit(c);
}

void round_touch(struct core *c)
{
	if (c->posted)
		return;
	c->posted = loop_post(c->loop, round_run, c) == 0;
}

/* the snapshot that a change made now need not take again */
static struct undo *undo_find(struct core *c, struct obj *o)
{
	return o->undo && (!c->part.open || o->undo->part == c->part.seq) ? o->undo : NULL;
}

static void obj_text_drop(struct obj *o)
{
	free(o->text);
	o->text = NULL;
}

static struct undo *undo_keep(struct core *c, struct obj *o, bool was_new)
{
	struct undo *u = undo_find(c, o);

	obj_text_drop(o);
	if (u)
		return u;
	u = calloc(1, sizeof(*u));
	if (!u)
		return NULL;
	u->o = o;
	u->older = o->undo;
	u->part = c->part.open ? c->part.seq : 0;
	u->was_new = was_new;
	u->fact = true;
	if (!was_new) {
		u->doc = json_deep_copy(o->doc);
		u->rt = o->rt ? json_deep_copy(o->rt) : NULL;
	}
	memcpy(u->name, o->name, sizeof(u->name));
	u->revision = o->revision;
	list_add_tail(&c->undo, &u->node);
	o->undo = u;
	o->dirty = true;
	return u;
}

void obj_before(struct core *c, struct obj *o)
{
	undo_keep(c, o, false);
	round_touch(c);
}

struct obj *obj_new(struct core *c, enum kind k, const char *id, const char *name, json_t *doc)
{
	struct obj *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->kind = k;
	snprintf(o->id, sizeof(o->id), "%s", id);
	snprintf(o->name, sizeof(o->name), "%s", name ? name : "");
	o->doc = doc;
	if (index_add(&c->kinds[k], o) < 0) {
		free(o);
		return NULL;
	}
	undo_keep(c, o, true);
	return o;
}

static void obj_shown(struct obj *o)
{
	json_object_set_new(o->doc, "revision", json_integer(o->revision));
}

void obj_put(struct core *c, struct obj *o, enum put_how how)
{
	struct undo *u = undo_find(c, o);

	if (!u) {
		/* the caller changed the document already: only facts may skip obj_before() */
		u = undo_keep(c, o, false);
	}
	o->revision++;
	obj_shown(o);
	if (u)
		u->put = true;
	if (u && how == PUT_ASKED && c->cur) {
		u->fact = false;
		c->cur->wrote = true;
	}
	round_touch(c);
	api_send_obj(c, o);
}

int obj_rename(struct core *c, struct obj *o, const char *name, enum put_how how)
{
	struct obj *other = obj_by_name(c, o->kind, name);

	if (other && other != o)
		return -EEXIST;
	undo_keep(c, o, false);
	index_del_name(&c->kinds[o->kind], o);
	snprintf(o->name, sizeof(o->name), "%s", name);
	index_add_name(&c->kinds[o->kind], o);
	return 0;
}

void obj_del(struct core *c, struct obj *o, enum put_how how)
{
	struct undo *u = undo_keep(c, o, false);

	if (u)
		u->put = true;
	if (u && how == PUT_ASKED && c->cur) {
		u->fact = false;
		c->cur->wrote = true;
	}
	index_del(&c->kinds[o->kind], o);
	o->dead = true;
	round_touch(c);
	api_send_del(c, o->kind, o->id);
}

void obj_show(struct core *c, struct obj *o)
{
	obj_text_drop(o);
	obj_shown(o);
	api_send_obj(c, o);
}

static void obj_free(struct obj *o)
{
	json_decref(o->doc);
	json_decref(o->rt);
	free(o->text);
	free(o);
}

static int obj_write(struct core *c, struct obj *o, struct err *e)
{
	char *doc, *rt;
	int r;

	if (o->dead)
		return c->store_ops->del(c->store, kind_names[o->kind], o->id, e);
	doc = jtext(o->doc);
	rt = o->rt ? jtext(o->rt) : NULL;
	r = doc ? c->store_ops->put(c->store,
				    &(struct store_row){ kind_names[o->kind], o->id, o->name,
							 o->revision, doc, rt },
				    e)
		: err_set(e, ENOMEM, "no-memory", "database: no memory for a document");
	free(doc);
	free(rt);
	return r;
}

static void undo_free(struct undo *u)
{
	list_del(&u->node);
	json_decref(u->doc);
	json_decref(u->rt);
	free(u);
}

/* undo_restore() - the object is as it was, and what hangs on its document with it. Frees @u. */
static void undo_restore(struct core *c, struct undo *u)
{
	struct obj *o = u->o;
	struct kind_index *x = &c->kinds[o->kind];
	struct guest *g = o->kind == K_GUEST ? o->mem : NULL;

	if (o->kind == K_GUEST)
		guest_release_addresses(c, o->doc);
	if (u->was_new) {
		if (g)
			guest_detach(o);
		if (!o->dead)
			index_del(x, o);
		obj_free(o);
		undo_free(u);
		return;
	}
	json_decref(o->doc);
	json_decref(o->rt);
	o->doc = take_ptr(&u->doc);
	o->rt = take_ptr(&u->rt);
	o->revision = u->revision;
	o->undo = u->older;
	o->dirty = u->older != NULL;
	if (!o->dead && strcmp(o->name, u->name))
		index_del_name(x, o);
	if (o->dead || strcmp(o->name, u->name)) {
		memcpy(o->name, u->name, sizeof(o->name));
		if (o->dead)
			index_add(x, o);
		else
			index_add_name(x, o);
	}
	o->dead = false;
	if (o->kind == K_GUEST)
		guest_claim_addresses(c, o->doc, o->id);
	if (g && gstate_parse(jstr(o->doc, "state")) >= 0)
		g->state = (enum gstate)gstate_parse(jstr(o->doc, "state"));
	undo_free(u);
}

/* Take back what was asked for; what merely happened waits, dirty, for the store. */
static void round_undo(struct core *c)
{
	/* newest first, so that a name freed and taken again goes back in order */
	for (struct list *p = c->undo.prev, *prev = p->prev; p != &c->undo;
	     p = prev, prev = p->prev) {
		struct undo *u = container_of(p, struct undo, node);

		if (u->fact)
			continue;
		c->undone = true;
		undo_restore(c, u);
	}
}

void round_part_begin(struct core *c)
{
	c->part.open = true;
	c->part.seq++;
	c->part.undo = c->undo.prev;
	c->part.out = c->out.prev;
	c->part.log = c->log_lines.prev;
}

void round_part_end(struct core *c, bool keep)
{
	if (!c->part.open)
		return;
	c->part.open = false;
	if (!keep) {
		out_drop_since(c, c->part.out);
		log_drop_since(c, c->part.log);
	}
	for (struct list *p = c->undo.prev, *prev = p->prev; p != c->part.undo;
	     p = prev, prev = p->prev) {
		struct undo *u = container_of(p, struct undo, node);
		struct obj *o = u->o;

		if (!keep && (!u->fact || !u->put)) {
			undo_restore(c, u);
			continue;
		}
		if (!keep)
			api_send_obj(c, o);
		if (!u->older)
			continue;
		/* one snapshot an object is enough: that from before the round */
		u->older->fact = u->older->fact && u->fact;
		u->older->put = u->older->put || u->put;
		o->undo = u->older;
		undo_free(u);
	}
}

static void round_written(struct core *c)
{
	list_for_each_safe (p, &c->undo) {
		struct undo *u = container_of(p, struct undo, node);
		struct obj *o = u->o;

		o->dirty = false;
		o->undo = NULL;
		undo_free(u);
		if (o->dead)
			obj_free(o);
	}
}

static int round_write(struct core *c, struct err *e)
{
	int r = c->store_ops->begin(c->store, e);

	list_for_each (p, &c->undo) {
		if (r)
			break;
		r = obj_write(c, container_of(p, struct undo, node)->o, e);
	}
	if (!r)
		r = log_round_write(c, e);
	if (!r)
		r = c->store_ops->commit(c->store, e);
	else
		c->store_ops->rollback(c->store);
	return r;
}

static void round_read_only(struct core *c, const struct err *e)
{
	if (!c->read_only)
		log_error("%s; read-only from now on: guests go on, changes are refused",
			  e->detail);
	c->read_only = true;
	snprintf(c->read_only_why, sizeof(c->read_only_why), "%.250s", e->detail);
	/* requests that go on being refused do not put it off */
	if (!c->retry.deadline_ns)
		loop_timer_after(&c->retry, RETRY_NS);
}

static void round_run_now(struct core *c)
{
	struct err e = { 0 };
	if (c->priv_lost)
		return;
	bool writes = !list_empty(&c->undo) || log_round_pending(c);
	int r = writes ? round_write(c, &e) : 0;

	if (r) {
		c->n.refused++;
		round_read_only(c, &e);
		round_undo(c);
		log_round_undo(c);
		op_drop_pending(c);
		out_flush(c, true);
		return;
	}
	log_round_done(c);
	c->n.commits++;
	if (c->read_only && writes) {
		log_info("the database takes writes again");
		c->read_only = false;
	}
	/* operations hold objects that this round may have removed: run them before those are freed
	 */
	round_written(c);
	if (c->nets_stale)
		net_count_guests(c);
	out_flush(c, false);
	unlinks_send(c);
	op_start_pending(c);
}

void round_commit(struct core *c)
{
	bool open = c->part.open;

	/* a handler that wants what it has done so far written: that is not taken back any more */
	round_part_end(c, true);
	round_run_now(c);
	if (open)
		round_part_begin(c);
}

void round_drop(struct core *c)
{
	round_undo(c);
	log_round_undo(c);
	log_drop_since(c, &c->log_lines);
	op_drop_pending(c);
	out_drop_since(c, &c->out);
	c->undone = false;
}

/* ---- loading ---- */

struct load_arg {
	struct core *c;
	enum kind kind;
	unsigned bad;
};

static int obj_load_row(void *arg, const struct store_row *row)
{
	struct load_arg *a = arg;
	json_t *doc = jparse(row->doc, strlen(row->doc));
	struct obj *o;

	if (!json_is_object(doc)) {
		json_decref(doc);
		a->bad++;
		return 0;
	}
	o = calloc(1, sizeof(*o));
	if (!o) {
		json_decref(doc);
		return 1;
	}
	o->kind = a->kind;
	snprintf(o->id, sizeof(o->id), "%s", row->id);
	snprintf(o->name, sizeof(o->name), "%s", row->name ? row->name : "");
	o->revision = row->revision;
	o->doc = doc;
	o->text = strdup(row->doc);
	o->rt = row->rt ? jparse(row->rt, strlen(row->rt)) : NULL;
	return index_add(&a->c->kinds[a->kind], o) < 0;
}

int obj_load_all(struct core *c, struct err *e)
{
	for (int k = 0; k < K_COUNT; k++) {
		struct load_arg a = { .c = c, .kind = (enum kind)k };
		int r = c->store_ops->list(c->store, kind_names[k], obj_load_row, &a, e);

		if (r < 0)
			return r;
		if (a.bad)
			return err_set(e, EUCLEAN, "database-damaged",
				       "%u rows of kind %s are not JSON objects", a.bad,
				       kind_names[k]);
	}
	return 0;
}

void obj_free_all(struct core *c)
{
	list_for_each_safe (p, &c->undo) {
		struct undo *u = container_of(p, struct undo, node);

		if (u->o->dead)
			obj_free(u->o);
		undo_free(u);
	}
	for (int k = 0; k < K_COUNT; k++) {
		struct kind_index *x = &c->kinds[k];

		if (!x->all.next)
			continue;
		list_for_each_safe (p, &x->all)
			obj_free(container_of(p, struct obj, node));
		free(x->by_id);
		free(x->by_name);
	}
}
