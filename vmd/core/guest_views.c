/* guest_views.c - what looks at a guest and changes nothing of its definition: wait, NMI, logs, console. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "vmd/core/internal.h"

static void wait_over(void *arg)
{
	struct req *r = arg;
	struct err e = { 0 };

	err_set(&e, ETIMEDOUT, "timed-out", "guest \"%s\" is still %s", r->name,
		gstate_name(r->waiting->state));
	err_hint(&e, "vmctl info %s", r->name);
	req_fail(r, &e, NULL, NULL);
}

int route_guest_wait(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	int s = gstate_parse(jstr_or(r->query, "state", "running"));
	int64_t ms = jduration_ms(r->query, "timeout", 60000);

	if (!o)
		return -ENOENT;
	if (s < 0)
		return err_set(e, EINVAL, "bad-state", "\"%s\" is not a state of a guest",
			       jstr(r->query, "state"));
	r->want_states = 1u << s;
	r->waiting = o->mem;
	if (r->waiting->state == (enum gstate)s) {
		req_obj(r, 200, o);
		return 0;
	}
	r->abandonable = true;
	list_add_tail(&r->waiting->waiters, &r->guest_node);
	r->wait.fn = wait_over;
	loop_timer_after(&r->wait, (uint64_t)(ms > 0 ? ms : 1) * NS_PER_MS);
	return 0;
}

static void guest_plain_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct req *r = arg;

	if (ev == CALL_ITEM)
		return;
	if (e)
		req_fail(r, e, NULL, NULL);
	else
		req_reply(r, 204, NULL, 0, NULL);
}

static struct guest *guest_live(struct core *c, struct req *r, enum gverb v, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct guest *g = o ? o->mem : NULL;

	if (!g || gstate_check(o->name, g->state, v, e) < 0)
		return NULL;
	if (!g->link) {
		err_set(e, ECONNRESET, "guest-unreachable",
			"guest \"%s\" runs but cannot be reached", o->name);
		return NULL;
	}
	return g;
}

int route_guest_nmi(struct core *c, struct req *r, struct err *e)
{
	struct guest *g = guest_live(c, r, GV_NMI, e);
	struct msg_g_nmi m;

	if (!g)
		return -e->num;
	if (req_dry(r, g->o))
		return 0;
	memset(&m, 0, sizeof(m));
	peer_call(g->link, MSG_g_nmi, &m, 0, 10000, guest_plain_done, r);
	return 0;
}

static void guest_fd_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct req *r = arg;
	struct msg_result m;

	if (ev == CALL_ITEM)
		return;
	if (e) {
		req_fail(r, e, NULL, NULL);
		return;
	}
	if (msg_result_decode(&m, b) < 0)
		m.fd = m.fd2 = -1;
	req_reply_fd(r, 200, NULL, m.fd);
	msg_result_close(&m);
}

/* which log is meant: a port that keeps one, the first such unless @want says, else the process's own */
static int logs_port(struct obj *o, const char *want, char port[32], struct err *e)
{
	static const char *const keys[] = { "serials", "consoles" }, *const names[] = { "serial",
											"console" };
	const json_t *p;
	size_t i;

	*port = '\0';
	if (want && !strcmp(want, "process"))
		return 0;
	for (unsigned k = 0; k < 2; k++)
		json_array_foreach(json_object_get(o->doc, keys[k]), i, p)
		{
			char name[32];

			snprintf(name, sizeof(name), "%s%zu", names[k], i);
			if (strcmp(json_is_string(p) ? json_string_value(p)
						     : jstr_or(p, "spec", ""),
				   "log") ||
			    (want && strcmp(want, name)))
				continue;
			memcpy(port, name, sizeof(name));
			return 0;
		}
	if (!want)
		return 0;
	err_set(e, ENOENT, "no-such-log", "guest \"%s\" has no port \"%s\" of the kind log",
		o->name, want);
	err_hint(e, "vmctl logs %s --port process", o->name);
	return -ENOENT;
}

int route_guest_logs(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct msg_p_log_open m = { 0 };

	if (!o)
		return -ENOENT;
	snprintf(m.uuid, sizeof(m.uuid), "%.36s", o->id);
	if (logs_port(o, jstr(r->query, "port"), m.port, e) < 0)
		return -e->num;
	peer_call(c->priv, MSG_p_log_open, &m, 0, 10000, guest_fd_done, r);
	return 0;
}

int route_guest_console_ticket(struct core *c, struct req *r, struct err *e)
{
	return err_set(e, EOPNOTSUPP, "not-here", "tickets are made by api");
}

static void console_attached(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct req *r = arg;

	if (ev == CALL_ITEM)
		return;
	if (e)
		req_fail(r, e, "port", NULL);
	else
		req_reply_fd(r, 200, NULL, r->fd);
}

int route_guest_console(struct core *c, struct req *r, struct err *e)
{
	struct guest *g = guest_live(c, r, GV_CONSOLE, e);
	struct msg_g_console m = { .fd = -1 };
	int pair[2];

	if (!g)
		return -e->num;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return err_set(e, errno, "no-socket", "no pair of sockets: %s", strerror(errno));
	close_fd(&r->fd);
	r->fd = pair[0];
	m.fd = pair[1];
	m.read_only = jbool(r->body, "read_only", false);
	snprintf(m.port, sizeof(m.port), "%.31s",
		 jstr_or(r->body, "port", *r->sub ? r->sub : "serial0"));
	peer_call(g->link, MSG_g_console, &m, 0, 10000, console_attached, r);
	close(pair[1]); /* the guest has its own now */
	return 0;
}
