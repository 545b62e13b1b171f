/* stream.c - logs and events as they come. */
#include "vmctl/vmctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int stream_raw(void *arg, const char *data, size_t len)
{
	bool tty = *(bool *)arg;

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)data[i];

		/* a guest's output may not drive the terminal; `console` is for that */
		if (tty && ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)) {
			if (c != '\r')
				putchar('?');
		} else {
			putchar(c);
		}
	}
	return fflush(stdout) ? 1 : 0;
}

static int stream_run(struct vmctl *v, const char *path, sink_fn *sink, void *arg)
{
	struct reply r = { 0 };
	struct err e = { 0 };
	int status = EX_DONE;

	if (client_stream(v, path, NULL, sink, arg, &r, &e) < 0) {
		out_error(v, &e);
		status = EX_UNREACHABLE;
	} else if (r.status >= 300) {
		status = out_problem(v, &r);
	}
	reply_free(&r);
	return status;
}

int stream_logs(struct vmctl *v, struct args *a)
{
	struct text path = { 0 };
	bool tty = isatty(1);
	int status;

	text_add(&path, "/v1/guests/");
	args_encode(&path, a->name);
	text_printf(&path, "/logs%s%s", a->query.len ? "?" : "", a->query.len ? a->query.s : "");
	status = stream_run(v, path.s, stream_raw, &tty);
	text_free(&path);
	return status;
}

struct events {
	struct vmctl *v;
	struct text line;
};

static void event_show(struct events *ev, const char *data)
{
	json_t *j = json_loads(data, 0, NULL);
	char cell[4][512];
	static const char *const names[] = { "time", "kind", "name", "text" };

	if (ev->v->out == OUT_JSON || !j) {
		printf("%s\n", data);
	} else {
		for (unsigned i = 0; i < 4; i++)
			out_cell(NULL, json_object_get(j, names[i]), cell[i], sizeof(cell[i]));
		printf("%-24.24s  %-20s  %-16s  %s\n", cell[0], cell[1], cell[2], cell[3]);
	}
	json_decref(j);
	fflush(stdout);
}

/* lines of an event stream; what is not data is for machines */
static int events_sink(void *arg, const char *data, size_t len)
{
	struct events *ev = arg;

	for (size_t i = 0; i < len; i++) {
		if (data[i] != '\n') {
			text_addn(&ev->line, &data[i], 1);
			continue;
		}
		if (ev->line.len > 6 && !strncmp(ev->line.s, "data: ", 6))
			event_show(ev, ev->line.s + 6);
		text_clear(&ev->line);
	}
	return ev->line.error || ferror(stdout);
}

int stream_events(struct vmctl *v, struct args *a)
{
	struct events ev = { v, { 0 } };
	struct text path = { 0 };
	int status;

	text_printf(&path, "/v1/events%s%s", a->query.len ? "?" : "",
		    a->query.len ? a->query.s : "");
	status = stream_run(v, path.s, events_sink, &ev);
	text_free(&path);
	text_free(&ev.line);
	return status;
}
