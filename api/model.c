/* model.c - see model.h. A kind is an array sorted by name (operations: by age) beside a hash by
 * id. Objects are kept as the JSON text that a GET shows, so that a read is a search and a copy;
 * core never waits for a reader, nor a reader for core. State and labels are taken out once, when
 * an object is put, for the filters.
 * Threading: api's loop. Trust: core is a peer; text that is not a JSON object is refused.
 */
#include "api/model.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL_KINDS	    8
#define MODEL_LIMIT_DEFAULT 1000

struct model_kind {
	const struct schema_object *object;
	struct model_obj **sorted;
	size_t count, cap;
	struct model_obj **hash;
	size_t buckets;
	uint64_t generation;
};

struct model {
	struct model_kind kinds[MODEL_KINDS];
	uint64_t orders;
};

struct model *model_new(void)
{
	static const struct schema_object *const kinds[MODEL_KINDS] = {
		&schema_guest,	 &schema_disk,	  &schema_image,     &schema_pool,
		&schema_network, &schema_forward, &schema_operation, &schema_snapshot
	};
	struct model *m = calloc(1, sizeof(*m));

	for (unsigned i = 0; m && i < MODEL_KINDS; i++)
		m->kinds[i].object = kinds[i];
	return m;
}

static void model_obj_free(struct model_obj *o)
{
	free(o->name);
	free(o->labels);
	free(o->json);
	free(o);
}

void model_free(struct model *m)
{
	if (!m)
		return;
	for (unsigned i = 0; i < MODEL_KINDS; i++) {
		for (size_t j = 0; j < m->kinds[i].count; j++)
			model_obj_free(m->kinds[i].sorted[j]);
		free(m->kinds[i].sorted);
		free(m->kinds[i].hash);
	}
	free(m);
}

static const struct model_kind *model_kind_of(const struct model *m,
					      const struct schema_object *object)
{
	for (unsigned i = 0; i < MODEL_KINDS; i++)
		if (m->kinds[i].object == object)
			return &m->kinds[i];
	return NULL;
}

static struct model_kind *model_kind_named(struct model *m, const char *name)
{
	for (unsigned i = 0; i < MODEL_KINDS; i++)
		if (!strcmp(m->kinds[i].object->name, name))
			return &m->kinds[i];
	return NULL;
}

/* ---- hash by id ---- */

static size_t model_hash(const char *id)
{
	uint64_t h = 0xcbf29ce484222325u;

	for (; *id; id++)
		h = (h ^ (unsigned char)*id) * 0x100000001b3u;
	return (size_t)(h ^ h >> 32);
}

static struct model_obj *model_by_id(const struct model_kind *k, const char *id)
{
	struct model_obj *o = k->buckets ? k->hash[model_hash(id) & (k->buckets - 1)] : NULL;

	while (o && strcmp(o->id, id))
		o = o->hash_next;
	return o;
}

static int model_hash_grow(struct model_kind *k)
{
	size_t buckets = k->buckets ? k->buckets * 2 : 64;
	struct model_obj **hash = calloc(buckets, sizeof(struct model_obj *));

	if (!hash)
		return -ENOMEM;
	for (size_t i = 0; i < k->count; i++) {
		struct model_obj *o = k->sorted[i];
		size_t b = model_hash(o->id) & (buckets - 1);

		o->hash_next = hash[b];
		hash[b] = o;
	}
	free(k->hash);
	k->hash = hash;
	k->buckets = buckets;
	return 0;
}

static void model_hash_del(struct model_kind *k, struct model_obj *o)
{
	struct model_obj **p = &k->hash[model_hash(o->id) & (k->buckets - 1)];

	while (*p != o)
		p = &(*p)->hash_next;
	*p = o->hash_next;
}

/* ---- order ---- */

static int model_cmp(const struct model_kind *k, const struct model_obj *a,
		     const struct model_obj *b)
{
	int r;

	if (k->object == &schema_operation)
		return a->order < b->order ? -1 : a->order > b->order;
	r = strcmp(a->name, b->name);
	return r ? r : strcmp(a->id, b->id);
}

/* first index whose object is not below @o */
static size_t model_lower(const struct model_kind *k, const struct model_obj *o)
{
	size_t lo = 0, hi = k->count;

	/* most arrive in order: look at the end first */
	if (hi && model_cmp(k, k->sorted[hi - 1], o) < 0)
		return hi;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (model_cmp(k, k->sorted[mid], o) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static void model_unlink(struct model_kind *k, struct model_obj *o)
{
	size_t i = model_lower(k, o);

	memmove(&k->sorted[i], &k->sorted[i + 1], (k->count - i - 1) * sizeof(struct model_obj *));
	k->count--;
	model_hash_del(k, o);
}

static int model_link(struct model_kind *k, struct model_obj *o)
{
	size_t i, b;

	if (k->count == k->cap) {
		size_t cap = k->cap ? k->cap * 2 : 64;
		struct model_obj **s = realloc(k->sorted, cap * sizeof(struct model_obj *));

		if (!s)
			return -ENOMEM;
		k->sorted = s;
		k->cap = cap;
	}
	if (k->count >= k->buckets && model_hash_grow(k) < 0)
		return -ENOMEM;
	i = model_lower(k, o);
	memmove(&k->sorted[i + 1], &k->sorted[i], (k->count - i) * sizeof(struct model_obj *));
	k->sorted[i] = o;
	k->count++;
	b = model_hash(o->id) & (k->buckets - 1);
	o->hash_next = k->hash[b];
	k->hash[b] = o;
	return 0;
}

/* ---- put and del ---- */

static int model_take_out(struct model_obj *o, const json_t *j)
{
	const char *state = json_string_value(json_object_get(j, "state")), *key;
	struct text t = { 0 };
	json_t *v;

	snprintf(o->state, sizeof(o->state), "%s", state ? state : "");
	json_object_foreach(json_object_get(j, "labels"), key, v) if (json_is_string(v))
	    text_printf(&t, "%s=%s\n", key, json_string_value(v));
	o->labels = t.s;
	return t.error;
}

int model_put(struct model *m, const char *kind, const char *id, const char *name, int64_t revision,
	      const char *json, size_t len)
{
	struct model_kind *k = model_kind_named(m, kind);
	struct model_obj *o, *old;
	json_t *j;
	int r;

	if (!k)
		return -EPROTO;
	j = json_loadb(json, len, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(j)) {
		json_decref(j);
		return -EPROTO;
	}
	o = calloc(1, sizeof(*o));
	if (!o) {
		json_decref(j);
		return -ENOMEM;
	}
	snprintf(o->id, sizeof(o->id), "%s", *id ? id : name);
	o->revision = revision;
	o->name = strdup(*name ? name : id);
	o->json = malloc(len + 1);
	r = model_take_out(o, j);
	json_decref(j);
	if (r < 0 || !o->name || !o->json) {
		model_obj_free(o);
		return -ENOMEM;
	}
	memcpy(o->json, json, len);
	o->json[len] = '\0';
	o->json_len = len;
	old = model_by_id(k, o->id);
	o->order = old ? old->order : ++m->orders;
	if (old)
		model_unlink(k, old);
	r = model_link(k, o);
	if (old)
		model_obj_free(old);
	if (r < 0)
		model_obj_free(o);
	k->generation++;
	return r;
}

void model_del(struct model *m, const char *kind, const char *id)
{
	struct model_kind *k = model_kind_named(m, kind);
	struct model_obj *o = k ? model_by_id(k, id) : NULL;

	if (!o)
		return;
	model_unlink(k, o);
	model_obj_free(o);
	k->generation++;
}

/* ---- reads ---- */

static const struct model_obj *model_by_name(const struct model_kind *k, const char *name)
{
	struct model_obj probe = { .name = (char *)name };
	const struct model_obj *deleted = NULL;

	if (k->object == &schema_operation)
		return NULL;
	for (size_t i = model_lower(k, &probe); i < k->count && !strcmp(k->sorted[i]->name, name);
	     i++) {
		if (strcmp(k->sorted[i]->state, "deleted"))
			return k->sorted[i];
		deleted = k->sorted[i];
	}
	return deleted;
}

const struct model_obj *model_find(const struct model *m, const struct schema_object *kind,
				   const char *key)
{
	const struct model_kind *k = model_kind_of(m, kind);
	const struct model_obj *o;
	char other[160];

	if (!k)
		return NULL;
	o = model_by_name(k, key);
	if (!o)
		o = model_by_id(k, key);
	if (o || kind != &schema_disk)
		return o;
	/* a disk of the default pool goes by both its names */
	if (!strncmp(key, "default/", 8))
		return model_by_name(k, key + 8);
	if (strchr(key, '/'))
		return NULL;
	snprintf(other, sizeof(other), "default/%s", key);
	return model_by_name(k, other);
}

size_t model_count(const struct model *m, const struct schema_object *kind)
{
	const struct model_kind *k = model_kind_of(m, kind);

	return k ? k->count : 0;
}

uint64_t model_generation(const struct model *m, const struct schema_object *kind)
{
	const struct model_kind *k = model_kind_of(m, kind);

	return k ? k->generation : 0;
}

size_t model_count_state(const struct model *m, const struct schema_object *kind, const char *state)
{
	const struct model_kind *k = model_kind_of(m, kind);
	size_t n = 0;

	for (size_t i = 0; k && i < k->count; i++)
		n += !strcmp(k->sorted[i]->state, state);
	return n;
}

static bool model_has_label(const struct model_obj *o, const char *label)
{
	size_t n = strlen(label);

	/* "k=v" matches that value, "k" any value of k */
	for (const char *l = o->labels; l && *l; l = strchr(l, '\n') + 1)
		if (!strncmp(l, label, n) && (l[n] == '\n' || (l[n] == '=' && !strchr(label, '='))))
			return true;
	return false;
}

static bool model_wanted(const struct model_obj *o, const struct model_query *q, bool guests)
{
	if (q->state ? strcmp(o->state, q->state) : guests && !strcmp(o->state, "deleted"))
		return false;
	for (unsigned i = 0; i < q->label_count; i++)
		if (!model_has_label(o, q->labels[i]))
			return false;
	return true;
}

int model_project(const char *json, size_t len, const char *fields, struct text *out)
{
	json_t *in = json_loadb(json, len, 0, NULL), *j = json_object();
	char *s;

	for (const char *f = fields; *f;) {
		size_t n = strcspn(f, ",");
		char key[64];

		if (n && n < sizeof(key)) {
			json_t *v;

			memcpy(key, f, n);
			key[n] = '\0';
			v = json_object_get(in, key);
			if (v)
				json_object_set(j, key, v);
		}
		f += n + (f[n] == ',');
	}
	s = json_dumps(j, JSON_COMPACT);
	json_decref(in);
	json_decref(j);
	if (!s)
		return -ENOMEM;
	text_add(out, s);
	free(s);
	return out->error;
}

/* A cursor is where the next page starts: "NAME" or "NAME/ID"; operations: a number. */
static int model_start(const struct model_kind *k, const char *cursor, size_t *start)
{
	struct model_obj probe = { 0 };
	char name[256], *bar;

	*start = 0;
	if (!cursor)
		return 0;
	snprintf(name, sizeof(name), "%s", cursor);
	if (k->object == &schema_operation) {
		char *end;

		probe.order = strtoull(name, &end, 10);
		if (end == name || *end)
			return -EINVAL;
	}
	bar = strrchr(name, '!');
	if (bar) {
		*bar++ = '\0';
		snprintf(probe.id, sizeof(probe.id), "%.36s", bar);
	}
	probe.name = name;
	*start = model_lower(k, &probe);
	return 0;
}

int model_list(const struct model *m, const struct schema_object *kind, const struct model_query *q,
	       struct text *out)
{
	const struct model_kind *k = model_kind_of(m, kind);
	unsigned limit = q->limit ? q->limit : MODEL_LIMIT_DEFAULT, n = 0;
	size_t i;
	int r;

	if (!k)
		return -EINVAL;
	r = model_start(k, q->cursor, &i);
	if (r < 0)
		return r;
	text_add(out, "{\"items\":[");
	for (; i < k->count; i++) {
		const struct model_obj *o = k->sorted[i];

		if (!model_wanted(o, q, kind == &schema_guest))
			continue;
		if (n == limit)
			break;
		if (n++)
			text_addn(out, ",", 1);
		if (q->fields)
			r = model_project(o->json, o->json_len, q->fields, out);
		else
			text_addn(out, o->json, o->json_len);
		if (r < 0)
			return r;
	}
	text_add(out, "]");
	if (i < k->count && kind == &schema_operation)
		text_printf(out, ",\"next\":\"%" PRIu64 "\"", k->sorted[i]->order);
	else if (i < k->count)
		text_printf(out, ",\"next\":\"%s!%s\"", k->sorted[i]->name, k->sorted[i]->id);
	text_add(out, "}");
	return out->error;
}
