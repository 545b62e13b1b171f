/* model.h - the read model: objects as core last told them, ready to send. */
#ifndef API_MODEL_H
#define API_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/schema.h"
#include "common/text.h"

struct model;

struct model_obj {
	struct model_obj *hash_next;
	char id[37];
	char state[24];
	int64_t revision;
	uint64_t order; /* when it was first put: sorts operations */
	char *name;
	char *labels; /* "k=v\nk=v\n" or NULL */
	size_t json_len;
	char *json;
};

struct model_query {
	const char *state; /* NULL: all but deleted guests */
	const char *labels[8];
	unsigned label_count;
	const char *fields; /* comma-separated, or NULL */
	const char *cursor; /* or NULL */
	unsigned limit;
};

struct model *model_new(void);
void model_free(struct model *m);

/* model_put() - @json: one JSON object. Return: 0; -EPROTO not a kind or not an object; -ENOMEM. */
int model_put(struct model *m, const char *kind, const char *id, const char *name, int64_t revision,
	      const char *json, size_t len);
void model_del(struct model *m, const char *kind, const char *id);

/* by name or id; disks also by POOL/NAME. NULL: none */
const struct model_obj *model_find(const struct model *m, const struct schema_object *kind,
				   const char *key);
size_t model_count(const struct model *m, const struct schema_object *kind);
uint64_t model_generation(const struct model *m, const struct schema_object *kind);
/* how many objects of the kind are in @state */
size_t model_count_state(const struct model *m, const struct schema_object *kind,
			 const char *state);

/* model_list() - append {"items":[...],"next":"cursor"} to @out. Return: 0; -EINVAL bad cursor;
 * -ENOMEM. */
int model_list(const struct model *m, const struct schema_object *kind, const struct model_query *q,
	       struct text *out);
/* model_project() - only @fields of one object. */
int model_project(const char *json, size_t len, const char *fields, struct text *out);

#endif
