/* image_job.c - work on image files in a jailed vmd-image: one process a job, a few at a time.
 *
 * Layers go as descriptors, the verb as key=value lines; progress and JSON output come back, then
 * the result. The process ends by EOF on its link. Trust: output of a job is a hostile image's
 * word: parsed as JSON, bounded, never believed for a path.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "vmd/core/internal.h"

#define JOBS_MAX       16
#define JOB_OUTPUT_MAX (4u << 20)
#define JOB_TIMEOUT_MS (3600u * 1000)

struct image_job {
	struct list node;
	struct core *c;
	struct peer *link;
	char id[UUID_TEXT_LEN], verb[32], args[1024];
	struct job_layer *layers;
	char (*labels)[160];
	struct disk_lease *leases; /* one a layer; fd -1: none */
	unsigned n;
	struct text out;
	int pidfd;
	bool started, over, cancelled;
	bool service; /* goes on until it is cancelled: no deadline, and nobody waits behind it */
	struct call *spawn;
	job_progress_fn *progress;
	job_fn *done;
	void *arg;
	struct image_job **slot; /* where its owner keeps it; may be NULL */
};

static void job_next(struct core *c);

static void job_free(struct image_job *j)
{
	free(j->layers);
	free(j->labels);
	free(j->leases);
	free(j);
}

static void job_end(struct image_job *j, const struct err *e)
{
	struct core *c = j->c;
	json_t *out = !e && j->out.len ? jparse(j->out.s, j->out.len) : NULL;

	list_del(&j->node);
	if (j->started && !j->service)
		c->jobs_running--;
	call_forget(j->spawn);
	peer_free(j->link);
	close_fd(&j->pidfd);
	for (unsigned i = 0; i < j->n; i++)
		close_fd(&j->layers[i].fd);
	for (unsigned i = 0; i < j->n; i++)
		close_fd(&j->leases[i].fd);
	if (j->slot)
		*j->slot = NULL;
	j->done(j->arg, e, out); /* the slot may go with it */
	json_decref(out);
	text_free(&j->out);
	job_free(j);
	job_next(c);
}

static void job_event(void *arg, struct peer *p, struct wire_buf *b)
{
	struct image_job *j = arg;

	if (b->type == MSG_i_progress) {
		struct msg_i_progress m;

		if (msg_i_progress_decode(&m, b) == 0 && j->progress)
			j->progress(j->arg, m.done, m.total);
	} else if (b->type == MSG_i_output) {
		struct msg_i_output m;

		if (msg_i_output_decode(&m, b) == 0 && j->out.len + m.json.len <= JOB_OUTPUT_MAX)
			text_addn(&j->out, (const char *)m.json.p, m.json.len);
	}
}

static void job_closed(void *arg, struct peer *p, int why)
{
	struct image_job *j = arg;
	struct err e = { 0 };

	if (j->over)
		return;
	j->over = true;
	err_set(&e, EIO, "job-died", "the image job \"%s\" ended before it was done", j->verb);
	job_end(j, &e);
}

static void job_run_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct image_job *j = arg;

	if (ev == CALL_ITEM) {
		job_event(j, j->link, b);
		return;
	}
	if (j->over)
		return;
	j->over = true;
	job_end(j, e);
}

static void job_layer_done(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
}

static void job_spawned(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e)
{
	struct image_job *j = arg;
	struct msg_hello hello = { .version = PROTO_VERSION };
	struct msg_i_run run = { 0 };
	struct msg_result m;
	struct err bad = { 0 };

	if (ev == CALL_ITEM)
		return;
	j->spawn = NULL;
	if (!e && msg_result_decode(&m, b) < 0)
		err_set(&bad, EPROTO, "bad-message",
			"priv answered the image job with a malformed result");
	else if (!e) {
		j->pidfd = m.fd;
		m.fd = -1;
		j->link = m.fd2 >= 0 ? peer_new(j->c, m.fd2, PROTO_IMAGE, "image job", job_event,
						job_closed, j)
				     : NULL;
		if (!j->link)
			err_set(&bad, EIO, "spawn-failed", "no link to the image job");
	}
	if (e || bad.num) {
		job_end(j, e ? e : &bad);
		return;
	}
	snprintf(hello.role, sizeof(hello.role), "core");
	peer_send(j->link, MSG_hello, &hello);
	for (unsigned i = 0; i < j->n; i++) {
		struct msg_i_layer l = { .side = j->layers[i].side,
					 .layer = j->layers[i].layer,
					 .fd = j->layers[i].fd,
					 .read_only = j->layers[i].read_only,
					 .lease_fd = j->leases[i].fd,
					 .lease_ms = j->leases[i].stale_ms };

		memcpy(l.lease_owner, j->leases[i].owner, sizeof(l.lease_owner));
		memcpy(l.lease_file, j->leases[i].top, sizeof(l.lease_file));
		memcpy(l.lease_host, j->leases[i].host, sizeof(l.lease_host));
		snprintf(l.driver, sizeof(l.driver), "%s", j->layers[i].driver);
		memcpy(l.label, j->labels[i], sizeof(l.label));
		peer_call(j->link, MSG_i_layer, &l, 0, 60000, job_layer_done, NULL);
	}
	memcpy(run.verb, j->verb, sizeof(run.verb));
	snprintf(run.args, sizeof(run.args), "%s", j->args);
	peer_call(j->link, MSG_i_run, &run, 0, j->service ? 0 : JOB_TIMEOUT_MS, job_run_done, j);
	if (j->cancelled)
		image_job_cancel(j);
}

static void job_start(struct image_job *j)
{
	struct core *c = j->c;
	struct msg_p_image_spawn m = { 0 };

	list_del(&j->node);
	list_add_tail(&c->jobs, &j->node);
	if (!j->service)
		c->jobs_running++;
	j->started = true;
	memcpy(m.job, j->id, sizeof(j->id));
	j->spawn = peer_call(c->priv, MSG_p_image_spawn, &m, 0, 20000, job_spawned, j);
	if (!j->spawn) {
		struct err e = { 0 };

		err_set(&e, ENOMEM, "no-memory", "no memory for an image job");
		job_end(j, &e);
	}
}

static void job_next(struct core *c)
{
	struct image_job *j;

	while (c->jobs_running < JOBS_MAX &&
	       (j = list_first(&c->jobs_waiting, struct image_job, node)))
		job_start(j);
}

void image_job_run(struct core *c, const struct job_layer *l, unsigned n, const char *verb,
		   const char *args, job_progress_fn *progress, job_fn *done, void *arg,
		   struct image_job **slot)
{
	struct image_job *j = calloc(1, sizeof(*j));
	struct err e = { 0 };

	if (j) {
		j->layers = calloc(n, sizeof(*j->layers));
		j->labels = calloc(n, sizeof(*j->labels));
		j->leases = calloc(n, sizeof(*j->leases));
	}
	if (!j || !j->layers || !j->labels || !j->leases) {
		if (j)
			job_free(j);
		err_set(&e, ENOMEM, "no-memory", "no memory for an image job");
		done(arg, &e, NULL);
		return;
	}
	j->c = c;
	j->slot = slot;
	if (slot)
		*slot = j;
	j->pidfd = -1;
	j->progress = progress;
	j->done = done;
	j->arg = arg;
	uuid_make(j->id);
	snprintf(j->verb, sizeof(j->verb), "%s", verb);
	snprintf(j->args, sizeof(j->args), "%s", args);
	for (unsigned i = 0; i < n; i++) {
		j->layers[i] = l[i];
		j->layers[i].fd = dup(l[i].fd); /* -1: refused there by the layer's name */
		if (l[i].lease)
			j->leases[i] = *l[i].lease;
		j->leases[i].fd = l[i].lease ? dup(l[i].lease->fd) : -1;
		snprintf(j->labels[i], sizeof(j->labels[i]), "%s", l[i].label);
	}
	j->n = n;
	j->service = !strcmp(verb, "export");
	list_add_tail(&c->jobs_waiting, &j->node);
	if (j->service)
		job_start(j);
	else
		job_next(c);
}

void image_job_cancel(struct image_job *j)
{
	struct msg_i_cancel m;

	memset(&m, 0, sizeof(m));
	if (j)
		j->cancelled = true; /* told once it is there to be told */
	if (j && j->link)
		peer_send(j->link, MSG_i_cancel, &m);
}
