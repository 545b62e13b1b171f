/* usage.c - what guests and the host use, can and are: info, top, metrics, host, doctor, version.
 *
 * Figures of a process come from priv, counters of devices from the guest itself; both are asked
 * for when somebody asks, with a deadline, so that a wedged guest costs one late line and nobody
 * else anything.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/units.h"
#include "vmd/core/internal.h"

#define ASK_MS		2000
#define PACKAGE_VERSION "0.1"

struct gather {
	struct req *r;
	unsigned left;
	json_t *out; /* top: items; info: the guest's own document */
	bool top;
};
struct gather_one {
	struct gather *g;
	char id[40];
	struct call *call;
};

static void gather_end(struct gather *a)
{
	if (--a->left)
		return;
	if (a->top)
		req_reply(a->r, 200, json_pack("{s:o}", "items", a->out), 0, NULL);
	else
		req_reply(a->r, 200, a->out, 0, NULL);
	free(a);
}

static void gather_usage(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct gather_one *one = arg;
	struct obj *o;
	struct guest *g;
	struct msg_p_usage m;
	uint64_t now = clock_mono_ns();

	if (ev == CALL_ITEM)
		return;
	o = obj_by_id(one->g->r->c, K_GUEST, one->id);
	g = o ? o->mem : NULL;
	if (g && !e && b->type == MSG_p_usage && msg_p_usage_decode(&m, b) == 0) {
		double pct = 0;
		json_t *u;

		if (g->use.at_ns && now > g->use.at_ns && m.cpu_ns >= g->use.cpu_ns)
			pct = 100.0 * (double)(m.cpu_ns - g->use.cpu_ns) /
			      (double)(now - g->use.at_ns);
		g->use.at_ns = now;
		g->use.cpu_ns = m.cpu_ns;
		u = json_pack("{s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "cpu_percent", pct,
			      "cpu_ns", (json_int_t)m.cpu_ns, "rss", (json_int_t)m.rss_bytes, "pss",
			      (json_int_t)m.pss_bytes, "private", (json_int_t)m.private_bytes,
			      "shared", (json_int_t)m.shared_bytes, "threads",
			      (json_int_t)m.threads, "fds", (json_int_t)m.fds);
		if (one->g->top) {
			json_object_set_new(u, "name", json_string(o->name));
			json_object_set_new(u, "state", json_string(gstate_name(g->state)));
			json_array_append_new(one->g->out, u);
		} else {
			json_object_set_new(one->g->out, "usage", u);
		}
	}
	gather_end(one->g);
	free(one);
}

static void gather_counter(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct gather_one *one = arg;
	json_t *all = json_object_get(one->g->out, "counters"), *dev;
	struct msg_g_counter m;
	bool last = ev == CALL_DONE;

	if (b && b->type == MSG_g_counter && msg_g_counter_decode(&m, b) == 0) {
		if (!all) {
			all = json_object();
			json_object_set_new(one->g->out, "counters", all);
		}
		dev = json_object_get(all, m.object);
		if (!dev) {
			dev = json_object();
			json_object_set_new(all, m.object, dev);
		}
		json_object_set_new(dev, m.name, json_integer((json_int_t)m.value));
		if (!m.more && !last) {
			call_forget(one->call); /* its deadline then ends it unheard */
			last = true;
		}
	}
	if (last) {
		gather_end(one->g);
		free(one);
	}
}

static void gather_ask(struct gather *a, struct guest *g, bool counters)
{
	struct gather_one *one = calloc(1, sizeof(*one));

	if (!one)
		return;
	one->g = a;
	memcpy(one->id, g->o->id, sizeof(one->id));
	a->left++;
	if (counters) {
		struct msg_g_stat s;

		memset(&s, 0, sizeof(s));
		one->call = peer_call(g->link, MSG_g_stat, &s, 0, ASK_MS, gather_counter, one);
	} else {
		struct msg_p_guest_usage m = { 0 };

		snprintf(m.uuid, sizeof(m.uuid), "%.36s", g->o->id);
		peer_call(g->c->priv, MSG_p_guest_usage, &m, MSG_p_usage, ASK_MS, gather_usage,
			  one);
	}
}

int route_guest_info(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = guest_find(c, r->name, e);
	struct guest *g = o ? o->mem : NULL;
	struct gather *a = g ? calloc(1, sizeof(*a)) : NULL;

	if (!a)
		return -e->num;
	*a = (struct gather){ .r = r, .left = 1, .out = json_deep_copy(o->doc) };
	if (g->pid)
		gather_ask(a, g, false);
	if (g->link)
		gather_ask(a, g, true);
	gather_end(a);
	return 0;
}

int route_top(struct core *c, struct req *r, struct err *e)
{
	struct gather *a = calloc(1, sizeof(*a));

	if (!a)
		return err_set(e, ENOMEM, "no-memory", "no memory");
	*a = (struct gather){ .r = r, .left = 1, .out = json_array(), .top = true };
	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct guest *g = container_of(p, struct obj, node)->mem;

		if (g && g->pid)
			gather_ask(a, g, false);
	}
	gather_end(a);
	return 0;
}

static unsigned usage_running(struct core *c)
{
	unsigned n = 0;

	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct guest *g = container_of(p, struct obj, node)->mem;

		n += g && g->state == G_RUNNING;
	}
	return n;
}

int route_host_get(struct core *c, struct req *r, struct err *e)
{
	struct sysinfo si = { 0 };
	struct utsname un = { 0 };
	char when[32];

	sysinfo(&si);
	uname(&un);
	time_text(c->started_real_ms, when);
	req_reply(r, 200,
		  json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "name", un.nodename,
			    "version", PACKAGE_VERSION, "cpus",
			    (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "memory",
			    (json_int_t)si.totalram * si.mem_unit, "memory_free",
			    (json_int_t)si.freeram * si.mem_unit, "guests",
			    (json_int_t)obj_count(c, K_GUEST), "running",
			    (json_int_t)usage_running(c), "kernel", un.release, "started", when),
		  0, NULL);
	return 0;
}

int route_version(struct core *c, struct req *r, struct err *e)
{
	req_reply(r, 200, json_pack("{s:s, s:s}", "version", PACKAGE_VERSION, "api", "v1"), 0,
		  NULL);
	return 0;
}

int route_metrics(struct core *c, struct req *r, struct err *e)
{
	req_reply(r, 200,
		  json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "requests",
			    (json_int_t)c->n.requests, "errors", (json_int_t)c->n.errors, "starts",
			    (json_int_t)c->n.starts, "stops", (json_int_t)c->n.stops, "crashes",
			    (json_int_t)c->n.crashes, "adopted", (json_int_t)c->n.adopted,
			    "commits", (json_int_t)c->n.commits, "refused",
			    (json_int_t)c->n.refused, "running", (json_int_t)usage_running(c),
			    "read_only", c->read_only),
		  0, NULL);
	return 0;
}

/* ---- doctor ---- */

struct doctor {
	struct req *r;
	json_t *items;
};

static void doctor_fact(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct doctor *d = arg;
	struct core *c = d->r->c;
	struct msg_p_fact m;

	if (ev == CALL_ITEM) {
		if (b->type == MSG_p_fact && msg_p_fact_decode(&m, b) == 0)
			json_array_append_new(d->items, json_pack("{s:s, s:b, s:s, s:s}", "name",
								  m.name, "ok", m.ok != 0, "text",
								  m.text, "hint", m.hint));
		return;
	}
	json_array_append_new(
	    d->items,
	    json_pack("{s:s, s:b, s:s, s:s}", "name", "state", "ok", !c->read_only, "text",
		      c->read_only ? c->read_only_why : "the database takes writes", "hint",
		      c->read_only ? "free space or mend permissions of the state directory" : ""));
	if (e)
		json_array_append_new(d->items,
				      json_pack("{s:s, s:b, s:s, s:s}", "name", "probe", "ok", 0,
						"text", e->detail, "hint", e->hint));
	req_reply(d->r, 200, json_pack("{s:o}", "items", d->items), 0, NULL);
	free(d);
}

int route_doctor(struct core *c, struct req *r, struct err *e)
{
	struct doctor *d = calloc(1, sizeof(*d));
	struct msg_p_host_probe m = { .measure = 1 };

	if (!d)
		return err_set(e, ENOMEM, "no-memory", "no memory");
	*d = (struct doctor){ r, json_array() };
	peer_call(c->priv, MSG_p_host_probe, &m, 0, 20000, doctor_fact, d);
	return 0;
}
