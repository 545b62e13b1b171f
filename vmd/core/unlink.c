/* unlink.c - files of disks and images that go: after the record is gone for good, and whatever
 * dies meanwhile.
 *
 * What is to be removed is kept with its pool (rt, "unlink") in the very transaction that removes
 * or resets the record, and sent to priv once that is written: a file is never gone while a record
 * still names it, and a daemon that starts finds what its predecessor had no time for. An entry
 * whose record turns out to be there after all (the store refused its removal) is dropped.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "vmd/core/internal.h"

struct unlink {
	struct list node; /* core->unlinks until it is sent */
	struct core *c;
	struct msg_p_volume_unlink m;
	char id[40]; /* of the record; "" the record stays, its file goes */
	void (*done)(void *arg, const struct err *e);
	void *arg;
};

static json_t *unlink_list(struct obj *pool)
{
	json_t *list;

	if (!pool->rt)
		pool->rt = json_object();
	list = json_object_get(pool->rt, "unlink");
	if (!list) {
		list = json_array();
		json_object_set_new(pool->rt, "unlink", list);
	}
	return list;
}

static void unlink_settled(struct core *c, const char *pool_name, const char *file)
{
	struct obj *pool = obj_by_name(c, K_POOL, pool_name);
	json_t *list, *entry;
	size_t i;

	if (!pool)
		return;
	list = unlink_list(pool);
	json_array_foreach(list, i, entry)
	{
		if (strcmp(jstr_or(entry, "file", ""), file))
			continue;
		/* private facts: no revision, nobody is told */
		obj_before(c, pool);
		json_array_remove(unlink_list(pool), i);
		return;
	}
}

static void unlink_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct unlink *u = arg;

	if (ev == CALL_ITEM)
		return;
	if (e && e->num == ENOENT)
		e = NULL;
	/* priv died: the next one is asked again */
	if (!e || strcmp(e->code, "peer-gone"))
		unlink_settled(u->c, u->m.pool, u->m.name);
	if (u->done)
		u->done(u->arg, e);
	free(u);
}

static void unlink_send(struct unlink *u)
{
	list_del(&u->node);
	peer_call(u->c->priv, MSG_p_volume_unlink, &u->m, 0, 30000, unlink_done, u);
}

static struct unlink *unlink_new(struct core *c, const char *pool, const char *file)
{
	struct unlink *u = calloc(1, sizeof(*u));

	if (!u)
		return NULL;
	u->c = c;
	snprintf(u->m.pool, sizeof(u->m.pool), "%.63s", pool);
	snprintf(u->m.name, sizeof(u->m.name), "%.127s", file);
	list_add_tail(&c->unlinks, &u->node);
	return u;
}

void disk_remove_file(struct core *c, struct obj *o, void (*done)(void *arg, const struct err *e),
		      void *arg)
{
	struct obj *pool;
	struct unlink *u;
	char name[64], file[128];

	volume_file(o, name, file);
	u = unlink_new(c, name, file);
	if (!u)
		return;
	u->done = done;
	u->arg = arg;
	snprintf(u->id, sizeof(u->id), "%s", o->id);
	pool = obj_by_name(c, K_POOL, name);
	if (pool) {
		obj_before(c, pool);
		json_array_append_new(unlink_list(pool), json_pack("{s:s}", "file", file));
	}
	round_touch(c);
}

void volume_remove_later(struct core *c, const char *pool_name, const char *file)
{
	struct obj *pool = obj_by_name(c, K_POOL, pool_name);

	if (!unlink_new(c, pool_name, file))
		return;
	if (pool) {
		obj_before(c, pool);
		json_array_append_new(unlink_list(pool), json_pack("{s:s}", "file", file));
	}
	round_touch(c);
}

/* Is there a record for what is to be removed: one whose removal was taken back? */
static bool unlink_taken_back(const struct unlink *u)
{
	struct obj *o = obj_by_id(u->c, K_DISK, u->id);

	o = o ? o : obj_by_id(u->c, K_IMAGE, u->id);
	return o && !strcmp(jstr_or(o->doc, "state", ""), "ready");
}

void unlinks_send(struct core *c)
{
	list_for_each_safe (p, &c->unlinks) {
		struct unlink *u = container_of(p, struct unlink, node);

		if (!unlink_taken_back(u)) {
			unlink_send(u);
			continue;
		}
		unlink_settled(c, u->m.pool, u->m.name);
		list_del(&u->node);
		free(u);
	}
}

/* A record that names @file and has it: it was made again after the removal. */
static bool unlink_named(struct core *c, const char *pool, const char *file)
{
	for (int k = K_DISK; k <= K_IMAGE; k++)
		list_for_each (p, &c->kinds[k].all) {
			struct obj *o = container_of(p, struct obj, node);
			char in[64], has[128];

			volume_file(o, in, has);
			if (!strcmp(in, pool) && !strcmp(has, file) &&
			    !strcmp(jstr_or(o->doc, "state", ""), "ready"))
				return true;
		}
	return false;
}

void unlinks_resume(struct core *c, struct obj *pool)
{
	json_t *list = json_object_get(pool->rt, "unlink");

	for (size_t i = json_array_size(list); i--;) {
		const char *file = jstr_or(json_array_get(list, i), "file", "");
		struct unlink *u = NULL;

		if (!unlink_named(c, pool->name, file))
			u = unlink_new(c, pool->name, file);
		if (u) {
			log_info("pool %s: %s is removed, as was asked before the restart",
				 pool->name, file);
			unlink_send(u);
		} else {
			obj_before(c, pool);
			json_array_remove(json_object_get(pool->rt, "unlink"), i);
		}
	}
}

void unlinks_free(struct core *c)
{
	list_for_each_safe (p, &c->unlinks)
		free(container_of(p, struct unlink, node));
	list_init(&c->unlinks);
}
