/* metrics.c - api's own counters in Prometheus text, behind what core tells of guests and host. */
#include "api/server.h"

#include <inttypes.h>
#include <stdio.h>

static void metrics_one(struct text *t, const char *name, const char *type, const char *help,
			uint64_t v)
{
	text_printf(t, "# HELP vmd_api_%s %s\n# TYPE vmd_api_%s %s\nvmd_api_%s %" PRIu64 "\n", name,
		    help, name, type, name, v);
}

void metrics_add(struct api *a, struct text *t)
{
	const struct api_counters *n = &a->n;
	unsigned streams = 0;

	list_for_each (i, &a->sse_list)
		streams++;
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
