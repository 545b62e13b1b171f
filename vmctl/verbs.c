/* verbs.c - from words to requests. Most verbs are one route of the table; those that are more have
 * a function here or beside it.
 * A slow verb waits for its operation, unless --no-wait, and shows how far it is.
 */
#include "vmctl/vmctl.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/units.h"

#define VERB_WAIT_NS (600 * NS_PER_S)

const struct verb_extra verb_extras[] = {
	{ "launch", "NAME [FLAG...]", "define a guest as create does, and start it" },
	{ "query", "METHOD PATH [JSON]", "send any request to the daemon and print the reply" },
	{ "completion", "bash", "print the completion script of a shell" },
	{ "help", "[VERB]", "say what a verb does and which flags it has" },
	{ "version", "", "versions of vmctl and of the daemon" },
	{ NULL, NULL, NULL },
};

const char *const *verb_names(void)
{
	static const char *names[ROUTE_COUNT + 8];
	unsigned n = 0;

	for (unsigned i = 0; i < ROUTE_COUNT; i++)
		if (schema_routes[i].cli)
			names[n++] = schema_routes[i].cli;
	for (unsigned i = 0; verb_extras[i].name; i++)
		names[n++] = verb_extras[i].name;
	names[n] = NULL;
	return names;
}

const struct schema_route *verb_route(const char *words)
{
	for (unsigned i = 0; i < ROUTE_COUNT; i++)
		if (schema_routes[i].cli && !strcmp(schema_routes[i].cli, words))
			return &schema_routes[i];
	return NULL;
}

static void verb_path(const struct schema_route *r, const struct args *a, bool dry, struct text *t)
{
	const char *open = strchr(r->path, '{');

	if (open) {
		text_addn(t, r->path, (size_t)(open - r->path));
		args_encode(t, a->name);
		text_add(t, strchr(open, '}') + 1);
	} else {
		text_add(t, r->path);
	}
	if (a->query.len)
		text_printf(t, "?%s", a->query.s);
	if (dry && strcmp(r->method, "GET"))
		text_add(t, a->query.len ? "&dry_run=true" : "?dry_run=true");
}

/* ---- operations ---- */

static bool op_over(const char *state)
{
	return !state || !strcmp(state, "succeeded") || !strcmp(state, "failed") ||
	       !strcmp(state, "cancelled");
}

/* wait for the operation at r->location; its last shape in @r */
static int op_wait(struct vmctl *v, const char *what, struct reply *r, struct err *e)
{
	char path[256];
	uint64_t end = clock_mono_ns() + VERB_WAIT_NS;

	snprintf(path, sizeof(path), "%s", r->location);
	for (;;) {
		const char *state = json_string_value(json_object_get(r->json, "state"));
		int n;

		if (r->status == 200 && op_over(state))
			break;
		if (r->status >= 400)
			break;
		if (clock_mono_ns() > end)
			return EX_TIMED_OUT;
		out_progress(v, what,
			     (uint64_t)json_integer_value(json_object_get(r->json, "progress")),
			     100, false);
		poll(NULL, 0, 200);
		reply_free(r);
		n = client_request(v, "GET", path, NULL, NULL, 0, r, e);
		if (n < 0)
			return EX_UNREACHABLE;
	}
	out_progress_end(v);
	if (r->status < 300 && strcmp(json_string_value(json_object_get(r->json, "state"))
					  ? json_string_value(json_object_get(r->json, "state"))
					  : "",
				      "succeeded")) {
		json_t *problem = json_object_get(r->json, "error");

		r->status = (unsigned)json_integer_value(json_object_get(problem, "status"));
		r->status = r->status < 400 ? 500 : r->status;
		problem = json_incref(json_is_object(problem) ? problem : r->json);
		json_decref(r->json);
		r->json = problem;
	}
	return EX_DONE;
}

/* ---- what to say when all went well ---- */

static void verb_say(struct vmctl *v, const struct schema_route *r, const struct args *a,
		     struct reply *p)
{
	const char *name = json_string_value(json_object_get(p->json, "name"));
	const struct schema_object *shape = r->resource;
	json_t *items = json_object_get(p->json, "items");

	if (!name)
		name = a->name ? a->name : json_string_value(json_object_get(a->body, "name"));
	/* counters are many; most who ask want to know what the guest is */
	if (!name || !*name) /* made without one: the operation says which it got */
		name =
		    json_string_value(json_object_get(json_object_get(p->json, "result"), "name"));
	if (r->id == ROUTE_GUEST_INFO && v->out == OUT_TABLE && !a->counters)
		json_object_del(p->json, "counters");
	if (r->id == ROUTE_DOCTOR || r->id == ROUTE_NET_LEASES)
		shape = NULL;
	if (r->id == ROUTE_DOCTOR && v->out == OUT_TABLE && !v->quiet) {
		doctor_say(v, items);
		return;
	}
	if (!strcmp(r->method, "GET") && json_is_array(items)) {
		out_items(v, shape, items);
		return;
	}
	if (r->id == ROUTE_DISK_EXPORT && !v->dry_run &&
	    (v->quiet || v->out == OUT_TABLE || v->out == OUT_WIDE)) {
		printf("%s\n", json_string_value(json_object_get(p->json, "export")));
		return;
	}
	if (v->quiet) {
		if (r->id == ROUTE_TOKEN_CREATE)
			printf("%s\n", json_string_value(json_object_get(p->json, "token"))
					   ? json_string_value(json_object_get(p->json, "token"))
					   : "");
		else if (strcmp(r->method, "GET") && name)
			printf("%s\n", name);
		return;
	}
	if (v->out != OUT_TABLE && v->out != OUT_WIDE) {
		if (p->json)
			out_value(v, shape, p->json);
		return;
	}
	if (!strcmp(r->method, "GET") || r->id == ROUTE_TOKEN_CREATE) {
		if (p->json)
			out_value(v, shape, p->json);
		return;
	}
	if (v->dry_run)
		printf("%s %s: would be done\n", r->cli, name ? name : "");
	else if (p->status == 202)
		printf("%s %s: under way (vmctl ops info %s)\n", r->cli, name ? name : "",
		       strrchr(p->location, '/') ? strrchr(p->location, '/') + 1 : "");
	else
		printf("%s %s: done\n", r->cli, name ? name : "");
}

/* @guest: only what belongs to it; NULL: all */
static void verb_list_add(json_t *all, const json_t *items, const char *guest)
{
	size_t i;
	json_t *v;

	json_array_foreach(items, i, v)
	{
		const char *of = json_string_value(json_object_get(v, "guest"));

		if (!guest || (of && !strcmp(of, guest)))
			json_array_append(all, v);
	}
}

/* all pages of a list */
static int verb_list(struct vmctl *v, const struct schema_route *r, struct args *a)
{
	json_t *all = json_array();
	struct text path = { 0 };
	bool limited = a->query.s && strstr(a->query.s, "limit=");
	struct err e = { 0 };
	struct reply p = { 0 };
	int status = EX_DONE;

	verb_path(r, a, false, &path);
	for (;;) {
		const char *next;

		if (client_request(v, "GET", path.s, NULL, NULL, 0, &p, &e) < 0) {
			out_error(v, &e);
			status = EX_UNREACHABLE;
			break;
		}
		if (p.status >= 300) {
			status = out_problem(v, &p);
			break;
		}
		verb_list_add(all, json_object_get(p.json, "items"),
			      r->id == ROUTE_SNAPSHOT_LIST && a->rest_count ? a->rest[0] : NULL);
		next = json_string_value(json_object_get(p.json, "next"));
		if (!next || limited) {
			out_items(v, r->resource, all);
			break;
		}
		text_clear(&path);
		verb_path(r, a, false, &path);
		text_add(&path, a->query.len ? "&cursor=" : "?cursor=");
		args_encode(&path, next);
		reply_free(&p);
	}
	reply_free(&p);
	text_free(&path);
	json_decref(all);
	return status;
}

int verb_call(struct vmctl *v, const struct schema_route *r, struct args *a)
{
	bool slow = (r->flags & RF_SLOW) && !v->no_wait;
	char *body = r->body ? json_dumps(a->body, JSON_COMPACT) : NULL;
	struct text path = { 0 };
	struct reply p = { 0 };
	struct err e = { 0 };
	int status;

	verb_path(r, a, v->dry_run, &path);
	if (client_request(v, r->method, path.s, slow ? "Prefer: wait=2\r\n" : NULL,
			   body ? body : "", body ? strlen(body) : 0, &p, &e) < 0) {
		out_error(v, &e);
		status = EX_UNREACHABLE;
		goto out;
	}
	status = EX_DONE;
	if (p.status == 202 && slow && *p.location) {
		status = op_wait(v, r->cli, &p, &e);
		if (status == EX_TIMED_OUT)
			err_set(&e, 1, "timed-out", "%s takes longer than 10 minutes; it goes on",
				r->cli);
		if (status)
			out_error(v, &e);
	}
	if (!status && p.status >= 300)
		status = out_problem(v, &p);
	else if (!status && !v->dry_run && p.status == 200 &&
		 (r->id == ROUTE_DISK_CHECK || r->id == ROUTE_DISK_MAP ||
		  r->id == ROUTE_DISK_COMPARE || r->id == ROUTE_DISK_INSPECT ||
		  r->id == ROUTE_DISK_COMPACT))
		status = disk_found(v, r, a->name, p.json);
	else if (!status && !a->silent)
		verb_say(v, r, a, &p);
out:
	reply_free(&p);
	text_free(&path);
	free(body);
	return status;
}

/* ---- guests ---- */

static int guest_images(struct vmctl *v, struct args *a, struct err *e)
{
	static const char *const kinds[] = { "kernel", "initrd", NULL };

	for (unsigned i = 0; kinds[i]; i++) {
		const char *path = json_string_value(json_object_get(a->body, kinds[i]));
		char name[64];

		if (!path || !strchr(path, '/'))
			continue;
		if (image_of_path(v, path, kinds[i], name, e) < 0)
			return -1;
		json_object_set_new(a->body, kinds[i], json_string(name));
	}
	if (a->image) {
		json_t *disks = json_object_get(a->body, "disks"), *disk;
		char name[64];

		if (strchr(a->image, '/') && image_of_path(v, a->image, "disk", name, e) < 0)
			return -1;
		disk = json_pack("{s:s}", "image", strchr(a->image, '/') ? name : a->image);
		if (!disks) {
			disks = json_array();
			json_object_set_new(a->body, "disks", disks);
		}
		json_array_insert_new(disks, 0, disk); /* the one to boot from */
	}
	return 0;
}

static int guest_create(struct vmctl *v, struct args *a)
{
	struct err e = { 0 };
	const char *name = json_string_value(json_object_get(a->body, "name"));
	struct args start = { .route = &schema_routes[ROUTE_GUEST_START], .name = name };
	int status;

	if (!v->dry_run && guest_images(v, a, &e) < 0) {
		out_error(v, &e);
		return exit_of_status((unsigned)e.num, e.code) == EX_DONE
			   ? EX_FAILED_
			   : exit_of_status((unsigned)e.num, e.code);
	}
	if (!a->follow_up || v->dry_run)
		return verb_call(v, a->route, a);
	/* one verb, one answer: that of the start */
	a->silent = true;
	status = verb_call(v, a->route, a);
	if (status)
		return status;
	start.silent = v->out == OUT_TABLE || v->out == OUT_WIDE;
	return verb_call(v, start.route, &start);
}

static int query_run(struct vmctl *v, int argc, char **argv)
{
	struct reply p = { 0 };
	struct err e = { 0 };
	int status;

	if (argc < 2) {
		err_set(&e, EINVAL, "usage", "query wants a method and a path");
		err_hint(&e, "vmctl query GET /v1/guests");
		out_error(v, &e);
		return EX_USAGE_;
	}
	if (client_request(v, argv[0], argv[1], NULL, argc > 2 ? argv[2] : "",
			   argc > 2 ? strlen(argv[2]) : 0, &p, &e) < 0) {
		out_error(v, &e);
		return EX_UNREACHABLE;
	}
	if (p.body.len) {
		fwrite(p.body.s, 1, p.body.len, stdout);
		if (p.body.s[p.body.len - 1] != '\n')
			putchar('\n');
	}
	status = exit_of_status(p.status, json_string_value(json_object_get(p.json, "code")));
	reply_free(&p);
	return status;
}

static int version_run(struct vmctl *v)
{
	struct reply p = { 0 };
	struct err e = { 0 };

	printf("vmctl %s\n", VMD_VERSION);
	if (client_request(v, "GET", "/v1/version", NULL, NULL, 0, &p, &e) < 0 || p.status != 200)
		printf("vmd unreachable\n");
	else
		printf("vmd %s (API %s)\n", json_string_value(json_object_get(p.json, "version")),
		       json_string_value(json_object_get(p.json, "api")));
	reply_free(&p);
	return EX_DONE;
}

/* ---- finding the verb ---- */

static int verb_unknown(struct vmctl *v, int argc, char **argv)
{
	struct err e = { 0 };
	char said[128];
	const char *near;

	if (!strcmp(argv[0], "destroy")) {
		err_set(&e, EINVAL, "usage",
			"there is no verb destroy, because it means different things in different "
			"tools");
		err_hint(
		    &e,
		    "vmctl stop --force NAME pulls the plug; vmctl delete NAME removes the guest");
		out_error(v, &e);
		return EX_USAGE_;
	}
	near = verb_nearest(argv[0], argc > 1 && argv[1][0] != '-' ? argv[1] : "", said);
	err_set(&e, EINVAL, "usage", "there is no verb \"%s\"", said);
	if (near)
		err_hint(&e, "did you mean \"%s\"?", near);
	else if (strchr(said, ' '))
		err_hint(&e, "vmctl %s lists its verbs", argv[0]);
	else
		err_hint(&e, "vmctl help");
	out_error(v, &e);
	return EX_USAGE_;
}

static int metrics_sink(void *arg, const char *data, size_t len)
{
	return fwrite(data, 1, len, stdout) != len;
}

static int metrics_run(struct vmctl *v)
{
	struct reply p = { 0 };
	struct err e = { 0 };
	int status = EX_DONE;

	if (client_stream(v, "/metrics", NULL, metrics_sink, NULL, &p, &e) < 0) {
		out_error(v, &e);
		status = EX_UNREACHABLE;
	} else if (p.status >= 300) {
		status = out_problem(v, &p);
	}
	reply_free(&p);
	return status;
}

/* the leases of every network, with its name before them */
static int leases_all(struct vmctl *v)
{
	struct reply nets = { 0 }, p = { 0 };
	json_t *all = json_array(), *net, *lease;
	struct text path = { 0 };
	struct err e = { 0 };
	int status = EX_DONE;
	size_t i, k;

	if (client_request(v, "GET", "/v1/networks", NULL, NULL, 0, &nets, &e) < 0)
		status = EX_UNREACHABLE;
	else if (nets.status >= 300)
		status = out_problem(v, &nets);
	json_array_foreach(json_object_get(nets.json, "items"), i, net)
	{
		const char *name = json_string_value(json_object_get(net, "name"));

		text_clear(&path);
		text_add(&path, "/v1/networks/");
		args_encode(&path, name);
		text_add(&path, "/leases");
		reply_free(&p);
		if (client_request(v, "GET", path.s, NULL, NULL, 0, &p, &e) < 0) {
			status = EX_UNREACHABLE;
			break;
		}
		if (p.status == 404) /* removed meanwhile */
			continue;
		if (p.status >= 300) {
			status = out_problem(v, &p);
			break;
		}
		json_array_foreach(json_object_get(p.json, "items"), k, lease)
		{
			json_t *row = json_pack("{s:s}", "network", name);

			json_object_update(row, lease);
			json_array_append_new(all, row);
		}
	}
	if (status == EX_UNREACHABLE)
		out_error(v, &e);
	if (status == EX_DONE)
		out_items(v, NULL, all);
	reply_free(&nets);
	reply_free(&p);
	text_free(&path);
	json_decref(all);
	return status;
}

static int verb_dispatch(struct vmctl *v, struct args *a)
{
	const struct schema_route *r = a->route;

	switch (r->id) {
	case ROUTE_GUEST_CREATE:
		return guest_create(v, a);
	case ROUTE_IMAGE_CREATE:
		return image_import(v, a);
	case ROUTE_IMAGE_EXPORT:
		return image_export(v, a);
	case ROUTE_GUEST_LOGS:
		return stream_logs(v, a);
	case ROUTE_EVENT_STREAM:
		return stream_events(v, a);
	case ROUTE_GUEST_CONSOLE:
		return console_run(v, a);
	case ROUTE_METRICS:
		return metrics_run(v);
	case ROUTE_TOP:
		return top_run(v);
	case ROUTE_NET_LEASES:
		return a->name ? verb_call(v, r, a) : leases_all(v);
	case ROUTE_DISK_RESIZE:
		if (a->by) {
			int status = disk_relative(v, a);

			if (status)
				return status;
		}
		return verb_call(v, r, a);
	default:
		if (!strcmp(r->method, "GET") && (r->flags & RF_CACHED) && !strchr(r->path, '{'))
			return verb_list(v, r, a);
		return verb_call(v, r, a);
	}
}

/* the verb on every name, whatever becomes of the others. Return: the first failure's exit code */
static int verb_each(struct vmctl *v, struct args *a)
{
	int status = verb_dispatch(v, a);

	for (unsigned i = 0; i < a->rest_count; i++) {
		int one;

		a->name = a->rest[i];
		one = verb_dispatch(v, a);
		if (!status)
			status = one;
	}
	return status;
}

static int verb_words(struct vmctl *v, const struct schema_route *r, bool launch, int argc,
		      char **argv)
{
	struct args a = { 0 };
	struct err e = { 0 };
	int status;

	if (args_parse(v, r, argc, argv, &a, &e) < 0) {
		out_error(v, &e);
		args_free(&a);
		return EX_USAGE_;
	}
	a.follow_up = launch;
	status = args_many(r) ? verb_each(v, &a) : verb_dispatch(v, &a);
	if (launch && !status && !v->dry_run && v->out == OUT_TABLE && !v->quiet) {
		const char *name = json_string_value(json_object_get(a.body, "name"));

		printf("guest %s runs; next:\n  vmctl console %s\n  vmctl info %s\n  vmctl logs "
		       "%s\n  vmctl stop %s\n",
		       name, name, name, name, name);
	}
	args_free(&a);
	return status;
}

int verb_run(struct vmctl *v, int argc, char **argv)
{
	const struct schema_route *r = NULL;
	bool launch = !strcmp(argv[0], "launch");
	struct err e = { 0 };
	char **ours = NULL, two[128];
	int used = 2, status;

	if (!strcmp(argv[0], "help"))
		return help_run(v, argc - 1, argv + 1);
	if (!strcmp(argv[0], "completion"))
		return help_completion(v, argc - 1, argv + 1);
	if (!strcmp(argv[0], "query"))
		return query_run(v, argc - 1, argv + 1);
	if (!strcmp(argv[0], "version"))
		return version_run(v);
	if (argc > 1) {
		snprintf(two, sizeof(two), "%s %s", argv[0], argv[1]);
		r = verb_route(two);
	}
	if (!r) {
		r = launch ? verb_route("create") : verb_route(argv[0]);
		used = 1;
	}
	if (!r && (argc == 1 || argv[1][0] == '-') && help_group(argv[0]))
		return argc == 1 ? EX_USAGE_ : EX_DONE;
	if (!r)
		return verb_unknown(v, argc, argv);
	for (int i = used; i < argc && strcmp(argv[i], "--"); i++)
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
			return help_usage(launch ? "launch" : r->cli);
	argc -= used;
	argv += used;
	if (r->resource != &schema_disk)
		return verb_words(v, r, launch, argc, argv);
	argc = qemu_words(r, argc, argv, &ours, &e);
	if (argc < 0)
		out_error(v, &e);
	status = argc < 0 ? EX_USAGE_ : verb_words(v, r, launch, argc, ours);
	qemu_words_free(ours);
	return status;
}
