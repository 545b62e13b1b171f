/* pool.c - pools: directories that hold disks and images; what they use, may use, and whether they are
 * there.
 *
 * A directory is marked with its pool's UUID when the pool is made: a file system that is not mounted,
 * or a directory that was moved, is then no empty pool but a missing one, and nothing is made in it.
 * Every few seconds each pool is looked at anew: figures go to whoever reads (they are no part of the
 * record's revision), what changes for people becomes an event. A quota bounds what is begun: files
 * that exist may grow beyond it, and the watermark tells.
 * A shared pool is one directory that several hosts reach (NFS, a cluster file system): the first to make it
 * marks it as shared, the others join it. Each host has its own records of the disks in it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/core/internal.h"

#define POOL_LOOK_NS (5 * NS_PER_S)
#define POOL_MANY    2000 /* volumes: more are counted less often */
#define POOL_RARELY  12

struct pool_look {
	struct core *c;
	struct req *r; /* who made it, or NULL */
	char id[40];
	json_t *files; /* name → bytes on the host */
};

void pool_ensure_default(struct core *c)
{
	char id[UUID_TEXT_LEN];
	struct obj *o;

	if (obj_by_name(c, K_POOL, "default"))
		return;
	uuid_make(id);
	o = obj_new(
	    c, K_POOL, id, "default",
	    json_pack("{s:s, s:s, s:o}", "name", "default", "state", "ready", "created", jnow()));
	if (o)
		obj_put(c, o, PUT_FACT);
}

int pool_usable(struct core *c, const char *name, bool room, struct err *e)
{
	struct obj *o = obj_find(c, K_POOL, name, e);
	const char *state = o ? jstr_or(o->doc, "state", "ready") : "";
	int64_t quota = o ? jsize(o->doc, "quota", 0) : 0;

	if (!o)
		return -ENOENT;
	if (!strcmp(state, "missing") || !strcmp(state, "error")) {
		err_set(e, EIO, "pool-missing", "pool \"%s\" is not there: %.300s", name,
			jstr_or(o->doc, "reason", "its directory cannot be opened"));
		err_hint(e, "vmctl pool info %s", name);
		return -EIO;
	}
	if (room && !strcmp(state, "read-only"))
		return err_set(e, EROFS, "pool-read-only",
			       "pool \"%s\": its file system is read-only", name);
	if (room && quota && jint(o->doc, "allocated", 0) >= quota) {
		err_set(e, EDQUOT, "pool-quota",
			"pool \"%s\" uses %lld bytes of the %lld that it may", name,
			(long long)jint(o->doc, "allocated", 0), (long long)quota);
		err_hint(e, "vmctl disk ls; vmctl pool set %s --quota SIZE", name);
		return -EDQUOT;
	}
	return 0;
}

/* ---- figures ---- */

static bool pool_set(struct obj *o, const char *key, int64_t v)
{
	if (json_object_get(o->doc, key) && jint(o->doc, key, -1) == v)
		return false;
	json_object_set_new(o->doc, key, json_integer((json_int_t)v));
	return true;
}

/* the figures of each volume; the pool's sums */
static bool pool_count(struct core *c, struct obj *pool, const json_t *files)
{
	int64_t provisioned = 0, volumes = 0, allocated = 0, limit, used;
	const char *key;
	json_t *v;
	bool changed = false;

	for (int k = K_DISK; k <= K_IMAGE; k++)
		list_for_each (p, &c->kinds[k].all) {
			struct obj *o = container_of(p, struct obj, node);
			char in[64], file[128];

			volume_file(o, in, file);
			if (strcmp(in, pool->name))
				continue;
			volumes++;
			if (!jstr(o->doc, "snapshot"))
				provisioned += jint(o->doc, "size", 0);
			v = files ? json_object_get(files, file) : NULL;
			if (v && pool_set(o, "allocated", json_integer_value(v)))
				obj_show(c, o);
		}
	changed |= pool_set(pool, "volumes", volumes);
	changed |= pool_set(pool, "provisioned", provisioned);
	if (files) {
		json_object_foreach((json_t *)files, key, v) allocated += json_integer_value(v);
		changed |= pool_set(pool, "allocated", allocated);
	}
	limit = jsize(pool->doc, "quota", 0);
	limit = limit ? limit : jint(pool->doc, "size", 0);
	if (limit) {
		used = jsize(pool->doc, "quota", 0)
			   ? jint(pool->doc, "allocated", 0)
			   : jint(pool->doc, "size", 0) - jint(pool->doc, "free", 0);
		changed |= pool_set(pool, "used", used * 100 / limit);
		changed |= pool_set(pool, "overcommit", provisioned * 100 / limit);
	}
	return changed;
}

/* an event where it goes over its mark, and where it is below again */
static void pool_watermark(struct core *c, struct obj *o)
{
	int64_t used = jint(o->doc, "used", 0), mark = jint(o->doc, "watermark", 85);
	bool above = jbool(o->rt, "above", false);

	if (above == (used >= mark))
		return;
	obj_before(c, o);
	if (!o->rt)
		o->rt = json_object();
	json_object_set_new(o->rt, "above", json_boolean(!above));
	obj_put(c, o, PUT_FACT);
	event_add(c, above ? "pool.relieved" : "pool.watermark", "pool", o->name,
		  "%" PRId64 "%% of its %s is used, %s its mark of %" PRId64 "%%", used,
		  jsize(o->doc, "quota", 0) ? "quota" : "file system",
		  above ? "below" : "at or above", mark);
	if (!above)
		log_warn("pool %s: %" PRId64 "%% used", o->name, used);
}

static void pool_state(struct core *c, struct obj *o, const char *state, const char *reason)
{
	if (!strcmp(jstr_or(o->doc, "state", ""), state))
		return;
	obj_before(c, o);
	json_object_set_new(o->doc, "state", json_string(state));
	jset_str(o->doc, "reason", reason);
	obj_put(c, o, PUT_FACT);
	event_add(c, !strcmp(state, "ready") ? "pool.ready" : "pool.missing", "pool", o->name, "%s",
		  reason ? reason : "it is there");
	if (reason)
		log_error("pool %s: %s", o->name, reason);
}

/* ---- looking ---- */

static void pool_look_free(struct pool_look *l)
{
	json_decref(l->files);
	free(l);
}

static void pool_listed(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct pool_look *l = arg;
	struct obj *o = obj_by_id(l->c, K_POOL, l->id);
	struct msg_p_volume m;

	if (ev == CALL_ITEM) {
		if (b->type == MSG_p_volume && msg_p_volume_decode(&m, b) == 0)
			json_object_set_new(l->files, m.name,
					    json_integer((json_int_t)m.allocated_bytes));
		return;
	}
	if (o && !e) {
		if (pool_count(l->c, o, l->files))
			obj_show(l->c, o);
		pool_watermark(l->c, o);
	}
	pool_look_free(l);
}

static void pool_opened(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct pool_look *l = arg;
	struct core *c = l->c;
	struct obj *o = obj_by_id(c, K_POOL, l->id);
	struct msg_p_volume_list list = { 0 };
	struct msg_result m;
	bool read_only, changed;
	char mark[40];

	if (ev == CALL_ITEM)
		return;
	if (!o || (e && !strcmp(e->code, "peer-gone"))) {
		if (l->r)
			req_fail(l->r, e, NULL, NULL);
		pool_look_free(l);
		return;
	}
	if (e && l->r) {
		obj_del(c, o, PUT_FACT);
		req_fail(l->r, e, "path", NULL);
		pool_look_free(l);
		return;
	}
	if (e || msg_result_decode(&m, b) < 0) {
		pool_state(c, o, "missing",
			   e ? e->detail : "priv answered with a malformed result");
		pool_look_free(l);
		return;
	}
	/* "SIZE MARK", "SIZE MARK ro" */
	read_only = strstr(m.text, " ro") != NULL;
	changed = pool_set(o, "free", (int64_t)m.value);
	changed |= pool_set(o, "size", (int64_t)strtoull(m.text, NULL, 10));
	msg_result_close(&m);
	if (!jbool(o->rt, "marked", false)) {
		obj_before(c, o);
		if (!o->rt)
			o->rt = json_object();
		json_object_set_new(o->rt, "marked", json_true());
		if (jbool(o->doc, "shared", false) && sscanf(m.text, "%*s %39s", mark) == 1)
			jset_str(o->rt, "mark", mark); /* another host may have made it */
		obj_put(c, o, PUT_FACT);
	}
	pool_state(c, o, read_only ? "read-only" : "ready",
		   read_only ? "its file system is read-only" : NULL);
	if (l->r) {
		req_obj(l->r, 201, o);
		l->r = NULL;
	} else if (changed) {
		obj_show(c, o);
	}
	snprintf(list.pool, sizeof(list.pool), "%.63s", o->name);
	if (jint(o->doc, "volumes", 0) > POOL_MANY && c->pool_looks % POOL_RARELY) {
		pool_look_free(l);
		return;
	}
	peer_call(c->priv, MSG_p_volume_list, &list, 0, 30000, pool_listed, l);
}

static void pool_open(struct core *c, struct obj *o, struct req *r)
{
	struct pool_look *l = calloc(1, sizeof(*l));
	struct msg_p_pool_open m = { .create = r ? 1 : jbool(o->rt, "marked", false) ? 0 : 2 };

	if (!l)
		return;
	*l = (struct pool_look){ .c = c, .r = r, .files = json_object() };
	memcpy(l->id, o->id, sizeof(l->id));
	snprintf(m.pool, sizeof(m.pool), "%.63s", o->name);
	snprintf(m.path, sizeof(m.path), "%.1023s", jstr_or(o->doc, "path", ""));
	if (strcmp(o->name, "default"))
		snprintf(m.id, sizeof(m.id), "%.36s", jstr_or(o->rt, "mark", o->id));
	m.shared = jbool(o->doc, "shared", false);
	peer_call(c->priv, MSG_p_pool_open, &m, 0, 15000, pool_opened, l);
}

static void pools_look(void *arg)
{
	struct core *c = arg;

	c->pool_looks++;
	list_for_each (p, &c->kinds[K_POOL].all)
		pool_open(c, container_of(p, struct obj, node), NULL);
	loop_timer_after(&c->pools, POOL_LOOK_NS);
}

/* A half of an upload whose sender went with the last daemon; the record waits for another try. */
static void pool_half_uploads(struct core *c, const struct obj *pool)
{
	list_for_each (p, &c->kinds[K_IMAGE].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (!strcmp(jstr_or(o->doc, "state", ""), "uploading") &&
		    !strcmp(jstr_or(o->doc, "pool", "default"), pool->name))
			disk_remove_file(c, o, disk_file_gone, NULL);
	}
}

void pools_up(struct core *c)
{
	list_for_each (p, &c->kinds[K_POOL].all) {
		struct obj *o = container_of(p, struct obj, node);

		pool_open(c, o, NULL);
		/* on the same link, before any request makes a file of that name */
		unlinks_resume(c, o);
		pool_half_uploads(c, o);
	}
	loop_timer_init(c->loop, &c->pools, pools_look, c);
	loop_timer_after(&c->pools, POOL_LOOK_NS);
}

/* ---- routes ---- */

int route_pool_create(struct core *c, struct req *r, struct err *e)
{
	const char *name = jstr_or(r->body, "name", "");
	char id[UUID_TEXT_LEN];
	struct obj *o;
	json_t *doc;

	if (!name_valid(name))
		return err_set(e, EINVAL, "bad-name", "\"%s\" is not a name for a pool", name);
	if (obj_by_name(c, K_POOL, name))
		return err_set(e, EEXIST, "pool-exists", "a pool named \"%s\" exists already",
			       name);
	uuid_make(id);
	doc = json_deep_copy(r->body);
	json_object_set_new(doc, "state", json_string("missing"));
	json_object_set_new(doc, "created", jnow());
	o = obj_new(c, K_POOL, id, name, doc);
	if (!o)
		return err_set(e, ENOMEM, "no-memory", "no memory");
	obj_put(c, o, PUT_ASKED);
	if (req_dry(r, o))
		return 0;
	pool_open(c, o, r);
	return 0;
}

int route_pool_get(struct core *c, struct req *r, struct err *e)
{
	return route_obj_get(c, r, e);
}

int route_pool_patch(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_POOL, r->name, e);
	const char *key;
	json_t *v;

	if (!o)
		return -ENOENT;
	obj_before(c, o);
	json_object_foreach(r->body, key, v)
	{
		if (json_is_null(v))
			json_object_del(o->doc, key);
		else
			json_object_set(o->doc, key, v);
	}
	pool_count(c, o, NULL);
	obj_put(c, o, PUT_ASKED);
	if (req_dry(r, o))
		return 0;
	req_obj(r, 200, o);
	return 0;
}

static void pool_closed(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	if (ev != CALL_ITEM && e)
		log_warn("a removed pool's mark stays: %s", e->detail);
}

int route_pool_delete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_POOL, r->name, e);
	struct msg_p_pool_close m = { 0 };

	if (!o)
		return -ENOENT;
	for (int k = K_DISK; k <= K_IMAGE; k++)
		list_for_each (p, &c->kinds[k].all) {
			struct obj *d = container_of(p, struct obj, node);

			if (!strcmp(jstr_or(d->doc, "pool", "default"), o->name))
				return err_set(e, EBUSY, "pool-in-use",
					       "pool \"%s\" holds %s \"%s\"", o->name,
					       kind_name(d->kind), d->name);
		}
	if (!strcmp(o->name, "default"))
		return err_set(e, EBUSY, "pool-is-default", "the default pool stays");
	if (req_dry(r, o))
		return 0;
	snprintf(m.pool, sizeof(m.pool), "%.63s", o->name);
	if (!jbool(o->doc, "shared", false)) /* a shared one's mark stays for the others */
		snprintf(m.id, sizeof(m.id), "%.36s", o->id);
	peer_call(c->priv, MSG_p_pool_close, &m, 0, 15000, pool_closed, NULL);
	obj_del(c, o, PUT_ASKED);
	req_reply(r, 204, NULL, 0, NULL);
	return 0;
}
