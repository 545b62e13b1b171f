/* guest_ports.c - serial and console ports of a guest, as text: "log", "pty", "tcp:HOST:PORT,connect".
 *
 * A port that leads to a path or a port of the host is more than a guest, and wants an admin. Where a
 * path leads is for priv to judge when it is opened.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/overflow.h"
#include "devices/chardev.h"
#include "vmd/core/internal.h"

static const struct {
	const char *word, *listen, *connect;
	unsigned chardev;
} port_kinds[] = {
	{ "null", "null", NULL, CHARDEV_NULL },
	{ "log", "log", NULL, CHARDEV_LOG },
	{ "pty", "pty", NULL, CHARDEV_STREAM },
	{ "file", "file", NULL, CHARDEV_FILE },
	{ "tty", "tty", NULL, CHARDEV_STREAM },
	{ "guest", "guest", NULL, CHARDEV_STREAM },
	{ "unix", "unix-listen", "unix-connect", CHARDEV_LISTEN },
	{ "tcp", "tcp-listen", "tcp-connect", CHARDEV_LISTEN },
};

int port_spec_parse(const char *text, struct port_spec *p, struct err *e)
{
	static const char connect_word[] = ",connect";
	size_t word = strcspn(text, ":"), len = strlen(text);
	bool connect = len > sizeof(connect_word) &&
		       !strcmp(text + len - (sizeof(connect_word) - 1), connect_word);

	*p = (struct port_spec){ 0 };
	for (size_t i = 0; i < ARRAY_SIZE(port_kinds); i++) {
		if (strlen(port_kinds[i].word) != word || strncmp(port_kinds[i].word, text, word))
			continue;
		if (connect && !port_kinds[i].connect)
			break;
		snprintf(p->kind, sizeof(p->kind), "%s",
			 connect ? port_kinds[i].connect : port_kinds[i].listen);
		p->chardev = connect ? CHARDEV_STREAM : port_kinds[i].chardev;
		if (text[word] == ':')
			snprintf(p->target, sizeof(p->target), "%.*s",
				 (int)(len - word - 1 - (connect ? sizeof(connect_word) - 1 : 0)),
				 text + word + 1);
		return 0;
	}
	err_set(e, EINVAL, "bad-port",
		"port \"%s\": not one of log, null, pty, file:PATH, unix:PATH[,connect], "
		"tcp:HOST:PORT[,connect], tty:PATH, guest:NAME:PORT",
		text);
	return -EINVAL;
}

bool port_spec_host_path(const struct port_spec *p)
{
	return !strcmp(p->kind, "file") || !strcmp(p->kind, "tty") ||
	       !strncmp(p->kind, "unix", 4) || !strncmp(p->kind, "tcp", 3);
}

int guest_check_serials(struct core *c, struct req *r, const json_t *body, struct err *e)
{
	static const char *const keys[] = { "serials", "consoles" };
	struct port_spec p;
	size_t i;
	json_t *v;

	for (int k = 0; k < 2; k++)
		json_array_foreach(json_object_get(body, keys[k]), i, v)
		{
			snprintf(c->bad_field, sizeof(c->bad_field), "%s[%zu].spec", keys[k], i);
			if (port_spec_parse(json_is_string(v) ? json_string_value(v)
							      : jstr_or(v, "spec", ""),
					    &p, e) < 0)
				return -EINVAL;
			/* a path or port of the host is more than a guest */
			if (port_spec_host_path(&p) &&
			    req_role(r, ROLE_ADMIN,
				     "a port that leads to a path or port of the host", e) < 0)
				return -EPERM;
		}
	c->bad_field[0] = '\0';
	return 0;
}

void guest_ports_follow(struct core *c, const char *old, const char *name)
{
	static const char *const keys[] = { "serials", "consoles" };
	size_t n = strlen(old), i;
	char spec[256];
	json_t *port;

	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);
		bool changed = false;

		for (int k = 0; k < 2; k++)
			json_array_foreach(json_object_get(o->doc, keys[k]), i, port)
			{
				const char *s = jstr_or(port, "spec", "");

				if (strncmp(s, "guest:", 6) || strncmp(s + 6, old, n) ||
				    s[6 + n] != ':')
					continue;
				if (!changed)
					obj_before(c, o);
				changed = true;
				snprintf(spec, sizeof(spec), "guest:%s%.150s", name, s + 6 + n);
				json_object_set_new(port, "spec", json_string(spec));
			}
		if (changed)
			obj_put(c, o, PUT_ASKED);
	}
}
