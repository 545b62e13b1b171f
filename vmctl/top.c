/* top.c - what running guests use: the busiest first, again every two seconds on a terminal.
 *
 * Percent is of one CPU since the last look (vmctl's or anybody's); pss counts a page that n processes
 * share as 1/n, so that the column adds up.
 */
#include "vmctl/vmctl.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOP_EVERY_MS 2000

static const struct schema_field top_fields[] = {
	{ .name = "name", .type = ST_STRING, .flags = SF_COLUMN },
	{ .name = "state", .type = ST_STRING, .flags = SF_COLUMN },
	{ .name = "cpu_percent", .type = ST_INT, .flags = SF_COLUMN },
	{ .name = "pss", .type = ST_SIZE, .flags = SF_COLUMN },
	{ .name = "private", .type = ST_SIZE, .flags = SF_COLUMN },
	{ .name = "shared", .type = ST_SIZE, .flags = SF_COLUMN },
	{ .name = "rss", .type = ST_SIZE, .flags = SF_WIDE },
	{ .name = "cpu_ns", .type = ST_INT, .flags = SF_WIDE },
	{ .name = "threads", .type = ST_INT, .flags = SF_WIDE },
	{ .name = "fds", .type = ST_INT, .flags = SF_WIDE },
	{ 0 },
};
const struct schema_object top_shape = { .name = "usage", .fields = top_fields };

static volatile sig_atomic_t top_stop;

static void top_on_signal(int sig)
{
	top_stop = 1;
}

static int top_busier(const void *a, const void *b)
{
	double x = json_number_value(json_object_get(*(json_t *const *)a, "cpu_percent")),
	       y = json_number_value(json_object_get(*(json_t *const *)b, "cpu_percent"));

	return x < y ? 1 : x > y ? -1 : 0;
}

static json_t *top_sorted(const json_t *items)
{
	size_t n = json_array_size(items);
	json_t **v = calloc(n + 1, sizeof(json_t *)), *out = json_array();

	for (size_t i = 0; v && i < n; i++)
		v[i] = json_array_get(items, i);
	if (v)
		qsort(v, n, sizeof(json_t *), top_busier);
	for (size_t i = 0; v && i < n; i++)
		json_array_append(out, v[i]);
	free(v);
	return out;
}

static int top_look(struct vmctl *v, bool clear)
{
	struct reply p = { 0 };
	struct err e = { 0 };
	int status = EX_DONE;
	json_t *items;

	if (client_request(v, "GET", "/v1/top", NULL, NULL, 0, &p, &e) < 0) {
		out_error(v, &e);
		status = EX_UNREACHABLE;
	} else if (p.status >= 300) {
		status = out_problem(v, &p);
	} else {
		items = top_sorted(json_object_get(p.json, "items"));
		if (clear)
			printf("\033[H\033[J");
		out_items(v, &top_shape, items);
		fflush(stdout);
		json_decref(items);
	}
	reply_free(&p);
	return status;
}

int top_run(struct vmctl *v)
{
	bool again =
	    isatty(1) && isatty(0) && (v->out == OUT_TABLE || v->out == OUT_WIDE) && !v->quiet;
	struct sigaction sa = { .sa_handler = top_on_signal };
	struct pollfd in = { .fd = 0, .events = POLLIN };
	int status = EX_DONE;

	if (!again)
		return top_look(v, false);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	while (!top_stop && (status = top_look(v, true)) == EX_DONE) {
		printf("\nPercent of one CPU; every %d s. Enter or Ctrl-C leaves.\n",
		       TOP_EVERY_MS / 1000);
		if (poll(&in, 1, TOP_EVERY_MS) > 0)
			break;
	}
	return status;
}
