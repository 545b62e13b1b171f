/* core.c - the core role: set-up, the loop, the end.
 *
 * Order of a start: settings, database, objects, the priv link, then api at once (reads are
 * answered while guests are being adopted), pools and networks, adoption, unfinished operations,
 * autostart. Neither the end of this process nor of api touches a guest.
 */
#include "vmd/core/core.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"
#include "vmd/core/internal.h"

#define UID_SLOTS    65536 /* the most guests with a process at once */
#define SWEEP_NS     (60 * NS_PER_S)
#define COPY_EVERY_S (24 * 3600)

static void core_priv_event(void *arg, struct peer *p, struct wire_buf *b)
{
	struct core *c = arg;

	if (b->type == MSG_p_exited) {
		struct msg_p_exited m;

		if (msg_p_exited_decode(&m, b) == 0)
			guest_exited(c, m.uuid, (pid_t)m.pid, (int)m.status);
	} else if (b->type == MSG_s_setup) {
		struct msg_s_setup m;

		if (msg_s_setup_decode(&m, b) == 0) {
			if (m.peer >= 0 && core_api_attach(c, m.peer) == 0)
				m.peer = -1;
			msg_s_setup_close(&m);
		}
	}
}

static void core_priv_closed(void *arg, struct peer *p, int why)
{
	struct core *c = arg;

	log_info("priv is gone: ending; guests go on");
	c->stopping = true;
	loop_stop(c->loop);
}

static void core_retry(void *arg)
{
	struct core *c = arg;

	if (!c->read_only)
		return;
	if (!c->store_ops->writable(c->store)) {
		/* opened read-only: only a new core opens it otherwise, and priv starts one */
		if (!strchr(c->db_path, '/') && access(".", W_OK) == 0 &&
		    access(c->db_path, W_OK) == 0) {
			log_info("the state can be written again: core starts anew");
			c->stopping = true;
			loop_stop(c->loop);
		}
		loop_timer_after(&c->retry, 5 * NS_PER_S);
		return;
	}
	event_add(c, "state.retry", "host", "local", "trying to write the state again");
	round_commit(c);
}

static void core_sweep(void *arg)
{
	struct core *c = arg;

	guest_trash_sweep(c);
	loop_timer_after(&c->sweep, SWEEP_NS);
}

/* core_copy_due() - ns until the database wants a copy again: a day after the last. */
static uint64_t core_copy_due(struct core *c)
{
	struct stat st;
	char path[540];
	int64_t age;

	snprintf(path, sizeof(path), "%s.copy", c->db_path);
	age = stat(path, &st) == 0 ? (int64_t)(clock_real_ms() / 1000) - (int64_t)st.st_mtime
				   : COPY_EVERY_S;
	/* a clock that was set back makes none wait for years */
	if (age < 0 || age > COPY_EVERY_S)
		age = COPY_EVERY_S;
	return MAX((uint64_t)(COPY_EVERY_S - age) * NS_PER_S, 2 * NS_PER_S);
}

static void core_copy(void *arg)
{
	struct core *c = arg;
	struct err e = { 0 };
	int r;

	/* its pages are read outside of transactions */
	round_commit(c);
	r = c->read_only ? -EROFS : c->store_ops->copy(c->store, &e);
	if (r > 0) {
		loop_timer_after(&c->copy, 2 * NS_PER_MS);
		return;
	}
	if (r < 0 && r != -EROFS) {
		log_error("%s", e.detail);
		event_add(c, r == -EUCLEAN ? "state.damaged" : "state.copy-failed", "host", "local",
			  "%s", e.detail);
	}
	loop_timer_after(&c->copy, r < 0 ? 600 * NS_PER_S : core_copy_due(c));
}

/* core_damaged() - the whole story for the person who has to mend it. */
static void core_damaged(struct core *c, struct err *e)
{
	static const char *const ends[] = { ".copy", ".copy.1" };
	char path[540], when[32], what[200];
	const char *is = strstr(e->detail, " is damaged: ");
	struct stat st;

	snprintf(what, sizeof(what), "%s%.190s", is ? "" : ": ", is ? is : e->detail);
	err_set(e, EUCLEAN, "database-damaged",
		"database %.120s/db/%.60s%s; it is left as it is, and guests run on",
		jstr_or(c->settings, "state_dir", "."), c->db_path, what);
	for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
		snprintf(path, sizeof(path), "%s%s", c->db_path, ends[i]);
		if (stat(path, &st) < 0)
			continue;
		time_text((uint64_t)st.st_mtime * 1000, when);
		err_hint(e, "vmd --restore puts its copy of %s in its place", when);
		return;
	}
	err_hint(e,
		 "there is no copy of it yet; vmd --restore=empty begins a new one and keeps the "
		 "damaged one beside it");
}

static void core_settings(struct core *c, const char *text)
{
	c->settings = json_object();
	while (text && *text) {
		size_t n = strcspn(text, "\n");
		const char *eq = memchr(text, '=', n);

		if (eq) {
			char key[64];

			snprintf(key, sizeof(key), "%.*s", (int)(eq - text), text);
			json_object_set_new(c->settings, key,
					    json_stringn(eq + 1, (size_t)(text + n - eq - 1)));
		}
		text += n + (text[n] == '\n');
	}
	c->uid_slots = (unsigned)strtoul(jstr_or(c->settings, "guest_uid_count", "0"), NULL, 10);
	if (!c->uid_slots || c->uid_slots > UID_SLOTS)
		c->uid_slots = UID_SLOTS;
}

void core_free(struct core *c)
{
	if (!c)
		return;
	round_commit(c);
	c->stopping = true;
	api_detach(c);
	for (int k = 0; k < K_COUNT; k++)
		list_for_each (p, &c->kinds[k].all) {
			struct obj *o = container_of(p, struct obj, node);

			if (o->kind == K_GUEST)
				guest_detach(o);
		}
	peer_free(c->priv);
	loop_timer_stop(&c->retry);
	loop_timer_stop(&c->sweep);
	loop_timer_stop(&c->pools);
	loop_timer_stop(&c->copy);
	unlinks_free(c);
	obj_free_all(c);
	if (c->store)
		c->store_ops->close(c->store);
	json_decref(c->settings);
	json_decref(c->macs);
	json_decref(c->ips);
	json_decref(c->disk_files);
	free(c->uid_used);
	free(c);
}

struct core *core_new(struct loop *l, int priv_sock, int api_sock, const char *db_path,
		      const char *settings, struct err *e)
{
	struct core *c = calloc(1, sizeof(*c));

	if (!c) {
		err_set(e, ENOMEM, "no-memory", "no memory");
		return NULL;
	}
	c->loop = l;
	c->started_real_ms = clock_real_ms();
	c->started_ns = clock_mono_ns();
	for (int k = 0; k < K_COUNT; k++)
		list_init(&c->kinds[k].all);
	list_init(&c->undo);
	list_init(&c->out);
	list_init(&c->reqs);
	list_init(&c->op_starts);
	list_init(&c->tickets);
	list_init(&c->unlinks);
	list_init(&c->partials);
	list_init(&c->log_lines);
	list_init(&c->jobs);
	list_init(&c->jobs_waiting);
	loop_timer_init(l, &c->retry, core_retry, c);
	loop_timer_init(l, &c->sweep, core_sweep, c);
	loop_timer_init(l, &c->pools, NULL, NULL);
	loop_timer_init(l, &c->copy, core_copy, c);
	c->macs = json_object();
	c->ips = json_object();
	core_settings(c, settings);
	c->uid_used = calloc(1, c->uid_slots);
	c->store_ops = &store_sqlite;
	snprintf(c->db_path, sizeof(c->db_path), "%s", db_path);
	c->store = c->store_ops->open(db_path, e);
	if (!c->store || !c->uid_used || obj_load_all(c, e) < 0) {
		if (e->num == EUCLEAN)
			core_damaged(c, e);
		goto fail;
	}
	if (!c->store_ops->writable(c->store)) {
		log_error("the database cannot be written: read-only; guests go on");
		c->read_only = true;
		snprintf(c->read_only_why, sizeof(c->read_only_why),
			 "the database file cannot be written");
		loop_timer_after(&c->retry, 5 * NS_PER_S);
	}
	c->event_seq = c->store_ops->event_last(c->store);
	list_for_each (p, &c->kinds[K_GUEST].all) {
		struct obj *o = container_of(p, struct obj, node);

		if (guest_attach(c, o))
			guest_claim_addresses(c, o->doc, o->id);
	}
	pool_ensure_default(c);
	c->priv = peer_new(c, priv_sock, PROTO_PRIV, "priv", core_priv_event, core_priv_closed, c);
	if (!c->priv)
		goto fail;
	peer_set_state(c->priv, PROTO_UP | PROTO_NEW);
	if (api_sock >= 0 && core_api_attach(c, api_sock) < 0)
		goto fail;
	log_info("%zu guests on record, up in %llu ms", obj_count(c, K_GUEST),
		 (unsigned long long)((clock_mono_ns() - c->started_ns) / NS_PER_MS));
	return c;
fail:
	if (e && !e->num)
		err_set(e, ENOMEM, "no-memory", "no memory");
	core_free(c);
	return NULL;
}

void core_begin(struct core *c)
{
	struct msg_hello h = { .version = PROTO_VERSION,
			       .role = "core",
			       .pid = (uint64_t)getpid() };

	c->nets_stale = true;
	/* priv takes nothing else before it */
	peer_send(c->priv, MSG_hello, &h);
	pools_up(c);
	net_up_all(c);
	guest_adopt_all(c);
	loop_timer_after(&c->sweep, SWEEP_NS);
	loop_timer_after(&c->copy, core_copy_due(c));
}

static void core_signal(void *arg, int signo)
{
	struct core *c = arg;

	c->stopping = true;
	loop_stop(c->loop);
}

int core_main(int setup_fd)
{
	struct wire_buf b = { 0 };
	struct msg_s_setup m;
	struct err e = { 0 };
	struct loop *l;
	struct core *c;
	int r = wire_recv(setup_fd, &b, 4);

	if (r <= 0 || b.type != MSG_s_setup || msg_s_setup_decode(&m, &b) < 0) {
		log_error("no set-up from priv: %s", r < 0 ? strerror(-r) : "unexpected message");
		return 1;
	}
	if (m.db_dir >= 0 && fchdir(m.db_dir) < 0)
		log_warn("database directory: %s", strerror(errno));
	fd_set_nonblock(setup_fd);
	if (m.peer >= 0)
		fd_set_nonblock(m.peer);
	/* thousands of small documents are parsed and freed: fast bins cost more than they save, as
	 * each larger free sweeps them all together */
	mallopt(M_MXFAST, 0);
	l = loop_new();
	c = l ? core_new(l, setup_fd, m.peer, "vmd.db", m.settings, &e) : NULL;
	if (!c) {
		log_error("cannot start: %s%s%s", e.detail, *e.hint ? "; " : "", e.hint);
		/* what another try does not mend */
		return e.num == EUCLEAN || e.num == EPROTO ? 78 /* EX_CONFIG */ : 1;
	}
	m.peer = -1;
	c->user_mode = m.user_mode != 0;
	msg_s_setup_close(&m);
	wire_buf_clear(&b);
	loop_signal(l, SIGTERM, core_signal, c);
	loop_signal(l, SIGINT, core_signal, c);
	core_begin(c);
	r = loop_run(l);
	core_free(c);
	loop_free(l);
	return r < 0 ? 1 : 0;
}
