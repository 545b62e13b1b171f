/* token.c - bearer tokens: 32 random bytes shown once, only their SHA-256 kept; role and expiry. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/hash.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/core/internal.h"

static int token_role(const char *s)
{
	return !strcmp(s, "admin")	? ROLE_ADMIN
	       : !strcmp(s, "operator") ? ROLE_OPERATOR
					: ROLE_VIEWER;
}

struct obj *token_find(struct core *c, const char *sha256, struct err *e)
{
	int64_t now = (int64_t)clock_real_ms();

	list_for_each (p, &c->kinds[K_TOKEN].all) {
		struct obj *o = container_of(p, struct obj, node);

		/* both are hashes of a secret: the time of the comparison tells nothing of it */
		if (strcmp(jstr_or(o->rt, "sha256", ""), sha256))
			continue;
		if (jint(o->rt, "expires_ms", 0) <= now)
			break;
		return o;
	}
	err_set(e, EACCES, "bad-token", "the token is unknown or has expired");
	err_hint(e, "ask an admin for a new one (vmctl token create NAME)");
	return NULL;
}

int route_token_list(struct core *c, struct req *r, struct err *e)
{
	return route_obj_list(c, r, e);
}

int route_token_create(struct core *c, struct req *r, struct err *e)
{
	const char *name = jstr_or(r->body, "name", ""), *role = jstr_or(r->body, "role", "viewer");
	int64_t ms = jduration_ms(r->body, "expires_in", 30ll * 24 * 3600 * 1000);
	char id[UUID_TEXT_LEN], secret[65], hex[SHA256_HEX_LEN], when[32];
	struct sha256 h;
	uint8_t raw[32];
	struct obj *o;
	json_t *shown;

	if (!name_valid(name))
		return err_set(e, EINVAL, "bad-name", "\"%s\" is not a name for a token", name);
	if (obj_by_name(c, K_TOKEN, name))
		return err_set(e, EEXIST, "token-exists", "a token named \"%s\" exists already",
			       name);
	if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
		return err_set(e, EIO, "no-random", "no random bytes");
	for (size_t i = 0; i < sizeof(raw); i++)
		snprintf(secret + 2 * i, 3, "%02x", raw[i]);
	sha256_init(&h);
	sha256_add(&h, secret, 64);
	sha256_hex(&h, hex);
	uuid_make(id);
	time_text(clock_real_ms() + (uint64_t)ms, when);
	o = obj_new(c, K_TOKEN, id, name,
		    json_pack("{s:s, s:s, s:s, s:o}", "name", name, "role", role, "expires", when,
			      "created", jnow()));
	if (!o)
		return err_set(e, ENOMEM, "no-memory", "no memory");
	o->rt = json_pack("{s:s, s:i, s:I}", "sha256", hex, "role", token_role(role), "expires_ms",
			  (json_int_t)((int64_t)clock_real_ms() + ms));
	obj_put(c, o, PUT_ASKED);
	shown = json_deep_copy(o->doc);
	json_object_set_new(shown, "token", json_string(secret));
	/* shown once: a kept answer would keep the secret */
	r->idem[0] = '\0';
	req_reply(r, 201, shown, o->revision, NULL);
	return 0;
}

int route_token_delete(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, K_TOKEN, r->name, e);

	if (!o)
		return -ENOENT;
	obj_del(c, o, PUT_ASKED);
	req_reply(r, 204, NULL, 0, NULL);
	return 0;
}
