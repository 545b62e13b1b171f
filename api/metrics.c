/* metrics.c - counters in Prometheus text (exposition format 0.0.4): what core tells of itself, the
 * read model's objects, api's own.
 */
#include "api/server.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* core's counters by the names of its reply; what is not here it does not send */
static const struct {
	const char *key, *name, *type, *help;
} metrics_of_core[] = {
	{ "requests", "core_requests_total", "counter", "Requests that reached core." },
	{ "errors", "core_errors_total", "counter", "Requests that core refused or that failed." },
	{ "starts", "guest_starts_total", "counter", "Guests started." },
	{ "stops", "guest_stops_total", "counter", "Guests stopped." },
	{ "crashes", "guest_crashes_total", "counter", "Guests that ended of their own accord." },
	{ "adopted", "guest_adoptions_total", "counter", "Running guests taken over at start." },
	{ "commits", "state_commits_total", "counter", "Transactions of the data base." },
	{ "refused", "state_writes_refused_total", "counter",
	  "Changes refused while the data base takes no writes." },
	{ "read_only", "state_read_only", "gauge", "1 while the data base takes no writes." },
};

static void metrics_one(struct text *t, const char *name, const char *type, const char *help,
			uint64_t v)
{
	text_printf(t, "# HELP vmd_api_%s %s\n# TYPE vmd_api_%s %s\nvmd_api_%s %" PRIu64 "\n", name,
		    help, name, type, name, v);
}

static void metrics_core(struct text *t, const char *body, size_t len)
{
	json_t *j = json_loadb(body, len, 0, NULL);

	for (size_t i = 0; i < sizeof(metrics_of_core) / sizeof(metrics_of_core[0]); i++) {
		const char *name = metrics_of_core[i].name;
		const json_t *v = json_object_get(j, metrics_of_core[i].key);

		if (!json_is_integer(v) && !json_is_boolean(v))
			continue;
		text_printf(t, "# HELP vmd_%s %s\n# TYPE vmd_%s %s\nvmd_%s %lld\n", name,
			    metrics_of_core[i].help, name, metrics_of_core[i].type, name,
			    json_is_integer(v) ? (long long)json_integer_value(v)
					       : (long long)json_is_true(v));
	}
	json_decref(j);
}

static void metrics_objects(struct text *t, const struct model *m)
{
	const struct schema_field *state = schema_field_find(&schema_guest, "state");

	text_add(t, "# HELP vmd_guests Guests by state.\n# TYPE vmd_guests gauge\n");
	for (const char *const *s = state->values; *s; s++)
		text_printf(t, "vmd_guests{state=\"%s\"} %zu\n", *s,
			    model_count_state(m, &schema_guest, *s));
	text_add(t, "# HELP vmd_objects Objects by kind.\n# TYPE vmd_objects gauge\n");
	for (const struct schema_object *const *o = schema_objects; *o; o++)
		if ((*o)->plural && model_count(m, *o))
			text_printf(t, "vmd_objects{kind=\"%s\"} %zu\n", (*o)->plural,
				    model_count(m, *o));
}

void metrics_add(struct api *a, const char *core, size_t core_len, struct text *t)
{
	const struct api_counters *n = &a->n;
	unsigned streams = 0;

	list_for_each (i, &a->sse_list)
		streams++;
	metrics_core(t, core, core_len);
	metrics_objects(t, a->model);
	text_add(t, "# HELP vmd_api_responses_total Responses by class of status.\n# TYPE "
		    "vmd_api_responses_total counter\n");
	for (unsigned i = 1; i < 6; i++)
		text_printf(t, "vmd_api_responses_total{class=\"%uxx\"} %" PRIu64 "\n", i,
			    n->by_class[i]);
	metrics_one(t, "requests_total", "counter", "Request heads taken.", n->requests);
	metrics_one(t, "requests_malformed_total", "counter", "Request heads refused as malformed.",
		    n->refused);
	metrics_one(t, "connections", "gauge", "Connections open.", a->conn_count);
	metrics_one(t, "connections_accepted_total", "counter", "Connections accepted.",
		    n->accepted);
	metrics_one(t, "connections_evicted_total", "counter",
		    "Idle connections closed for new ones.", n->evicted);
	metrics_one(t, "connections_refused_total", "counter", "Connections turned away.",
		    n->turned_away);
	metrics_one(t, "received_bytes_total", "counter", "Bytes from clients.", n->bytes_in);
	metrics_one(t, "sent_bytes_total", "counter", "Bytes to clients.", n->bytes_out);
	metrics_one(t, "events_total", "counter", "Events passed on.", n->events);
	metrics_one(t, "event_streams", "gauge", "Clients that follow events.", streams);
	metrics_one(t, "consoles_total", "counter", "Consoles opened.", n->ws);
	metrics_one(t, "uploads_total", "counter", "Uploads taken whole.", n->uploads);
	text_printf(t,
		    "# HELP vmd_api_response_seconds_total Time from head to answer, summed.\n# "
		    "TYPE vmd_api_response_seconds_total counter\n"
		    "vmd_api_response_seconds_total %.9f\n",
		    (double)n->latency_ns_sum / 1e9);
}
