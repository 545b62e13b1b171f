/* vmctl.h - what the files of vmctl share. One thread; errors go to standard error as one sentence
 * and a hint. */
#ifndef VMCTL_VMCTL_H
#define VMCTL_VMCTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/schema.h"
#include "common/text.h"

/* the contract's exit codes */
enum exit_code {
	EX_DONE = 0,
	EX_FAILED_ = 1,
	EX_USAGE_ = 2,
	EX_NOT_FOUND = 3,
	EX_CONFLICT = 4,
	EX_DENIED = 5,
	EX_UNREACHABLE = 6,
	EX_TIMED_OUT = 7,
	EX_NO_QUORUM = 8,
};

enum output { OUT_TABLE, OUT_WIDE, OUT_JSON, OUT_YAML, OUT_CSV };

struct client;

struct vmctl {
	const char *socket, *url, *token, *ca, *cert, *key;
	enum output out;
	bool quiet, no_wait, dry_run, color;
	struct client *client;
};

/* ---- client.c ---- */
struct reply {
	unsigned status;
	char location[256], type[64];
	struct text body;
	json_t *json; /* where the body is JSON */
};
typedef int sink_fn(void *arg, const char *data, size_t len); /* non-zero: stop */
typedef void progress_fn(void *arg, uint64_t done, uint64_t total);

int client_open(struct vmctl *v, struct err *e); /* 0 or -errno, the daemon unreachable */
void client_close(struct vmctl *v);
int client_request(struct vmctl *v, const char *method, const char *path, const char *headers,
		   const char *body, size_t len, struct reply *r, struct err *e);
/* the body of a 2xx reply goes to @sink as it comes, others to r->body */
int client_stream(struct vmctl *v, const char *path, const char *headers, sink_fn *sink, void *arg,
		  struct reply *r, struct err *e);
int client_upload(struct vmctl *v, const char *path, int fd, uint64_t size, progress_fn *progress,
		  void *arg, struct reply *r, struct err *e);
/* after the upgrade the connection is raw */
int client_upgrade(struct vmctl *v, const char *path, const char *ws_key, struct reply *r,
		   struct err *e);
int client_fd(struct vmctl *v);
long client_read(struct vmctl *v, void *buf, size_t len); /* bytes, 0 end, -EAGAIN, -errno */
long client_write(struct vmctl *v, const void *buf, size_t len);
bool client_pending(struct vmctl *v);
void reply_free(struct reply *r);

/* ---- out.c ---- */
void out_items(struct vmctl *v, const struct schema_object *o, json_t *items);
void out_value(struct vmctl *v, const struct schema_object *o,
	       json_t *j); /* one object, at length */
void out_json(const json_t *j);
void out_error(struct vmctl *v, const struct err *e);
int out_problem(struct vmctl *v, struct reply *r); /* says it; exit code */
int exit_of_status(unsigned status, const char *code);
const char *out_cell(const struct schema_field *f, const json_t *j, char *buf, size_t len);
void out_progress(struct vmctl *v, const char *what, uint64_t done, uint64_t total, bool bytes);
void out_progress_end(struct vmctl *v);

int out_format(struct vmctl *v, const char *s, struct err *e);

/* ---- args.c ---- */
struct args {
	const struct schema_route *route;
	const char *name;  /* of the path parameter */
	const char *by;	   /* disk resize: +SIZE or -SIZE */
	char joined[256];  /* name made of two words */
	const char **rest; /* positional arguments that fill nothing: what the verb makes of them */
	unsigned rest_count;
	json_t *body;
	struct text query; /* "a=b&c=d", encoded */
	const char *image; /* --image of create and launch */
	bool follow_up;	   /* launch */
	bool silent;	   /* say nothing when it went well */
	bool read_only;	   /* console: watch, do not type */
	bool counters;	   /* info: with the devices' counters */
};
/* flags that are vmctl's own: they stand in no body and no query */
struct args_own {
	enum route_id route;
	const char *flag, *value, *help; /* value "": none */
};
extern const struct args_own args_own[]; /* ends with a NULL flag */
int args_parse(struct vmctl *v, const struct schema_route *r, int argc, char **argv, struct args *a,
	       struct err *e);
void args_free(struct args *a);
bool args_many(const struct schema_route *r); /* does the verb take several names? */
void args_encode(struct text *t, const char *s);

/* ---- verbs.c ---- */
int verb_run(struct vmctl *v, int argc, char **argv);
int verb_call(struct vmctl *v, const struct schema_route *r, struct args *a);
const char *const *verb_names(void); /* NULL-terminated: "create", "image ls", ... */
/* verb_nearest() - what may be meant by two words that are no verb (@second may be empty), or NULL; @said: what of them to
 * call unknown */
const char *verb_nearest(const char *first, const char *second, char said[128]);
const struct schema_route *verb_route(const char *words);
struct verb_extra {
	const char *name, *usage, *help;
};
extern const struct verb_extra verb_extras[]; /* verbs that are no single route */

/* ---- image.c ---- */
int image_import(struct vmctl *v, struct args *a);
int image_export(struct vmctl *v, struct args *a);
/* a path becomes an image named after its content; name into @name */
int image_of_path(struct vmctl *v, const char *path, const char *kind, char name[64],
		  struct err *e);

/* ---- disk.c ---- */
/* says what an operation of check, map or compare found in disk @name; exit code */
int disk_found(struct vmctl *v, const struct schema_route *route, const char *name, json_t *op);

/* disk_relative() - the size that "+1G" or "-1G" stands for goes into the body; exit code */
int disk_relative(struct vmctl *v, struct args *a);

/* ---- qemu.c ---- */
/* qemu_words() - the words of a disk verb with the options of qemu-img as ours. Return: how many, in @words,
 * to be freed also after an error; -EINVAL, -ENOMEM with @e */
int qemu_words(const struct schema_route *r, int argc, char **argv, char ***words, struct err *e);
void qemu_words_free(char **words);

/* ---- stream.c ---- */
int stream_logs(struct vmctl *v, struct args *a);
int stream_events(struct vmctl *v, struct args *a);

/* ---- console.c ---- */
int console_run(struct vmctl *v, struct args *a);

/* ---- doctor.c ---- */
void doctor_say(struct vmctl *v, const json_t *items);

/* ---- top.c ---- */
/* refreshes on a terminal until interrupted; elsewhere once */
int top_run(struct vmctl *v);
extern const struct schema_object top_shape; /* what a guest's process uses */

/* ---- help.c ---- */
int help_run(struct vmctl *v, int argc, char **argv);
int help_completion(struct vmctl *v, int argc, char **argv);
void help_man(void);
int help_usage(const char *verb);
/* the verbs that begin with @group ("disk"); false: there are none */
bool help_group(const char *group);

#endif
