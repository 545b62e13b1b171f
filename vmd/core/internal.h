/* internal.h - what the files of core share: the daemon's state, its objects, requests and
 * operations.
 *
 * Objects (guests, disks, images, ...) live in memory as JSON documents of the very shape that a
 * GET shows (obj->doc) plus private facts (obj->rt); each change is written through to the store at
 * the end of the loop round in one transaction (obj.c), and only then are its replies and the api's
 * copies sent. A write that a request asked for and that the store refuses is undone; a fact that
 * merely happened (a guest died) is kept and written later.
 * Threading: everything on core's one loop. Trust: api, guests and image jobs are hostile peers.
 */
#ifndef VMD_CORE_INTERNAL_H
#define VMD_CORE_INTERNAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/list.h"
#include "common/loop.h"
#include "common/schema.h"
#include "common/wire.h"
#include "vmd/core/store.h"
#include "vmd/proto.h"

struct core;
struct obj;
struct req;
struct op;
struct guest;
struct peer;
struct undo;

enum kind {
	K_GUEST,
	K_DISK,
	K_IMAGE,
	K_SNAPSHOT,
	K_POOL,
	K_NETWORK,
	K_FORWARD,
	K_OPERATION,
	K_TOKEN,
	K_COUNT
};

/* ---- json.c: short-hand; absent members read as NULL, the default, false ---- */
const char *jstr(const json_t *o, const char *key);
const char *jstr_or(const json_t *o, const char *key, const char *dflt);
int64_t jint(const json_t *o, const char *key, int64_t dflt);
bool jbool(const json_t *o, const char *key, bool dflt);
int64_t jsize(const json_t *o, const char *key,
	      int64_t dflt); /* integer, or text with a unit; -1 = bad */
int64_t jduration_ms(const json_t *o, const char *key,
		     int64_t dflt); /* integer milliseconds, or text with a unit */
void jset(json_t *o, const char *key, json_t *value);	  /* steals; NULL deletes */
void jset_str(json_t *o, const char *key, const char *s); /* NULL or "" deletes */
char *jtext(const json_t *o);				  /* compact, malloc'ed */
json_t *jparse(const void *p, size_t len);
void time_text(uint64_t real_ms, char out[32]); /* RFC 3339, UTC */
json_t *jnow(void);

/* ---- obj.c ---- */
struct obj {
	struct list node; /* core->kinds[kind].all */
	struct obj *hash_id, *hash_name;
	enum kind kind;
	char id[40];
	char name[192]; /* unique in its kind; "" = none (a guest in the trash) */
	int64_t revision;
	json_t *doc, *rt;
	char
	    *text; /* doc as the store gave it, until it changes or the first api has it; or NULL */
	bool dirty, dead;
	struct undo *undo; /* what it was before this round, where it changed */
	void *mem;	   /* struct guest *, struct op *: facts of this process */
};

enum put_how { PUT_ASKED, PUT_FACT }; /* undone, or kept, when the store refuses */

struct obj *obj_new(struct core *c, enum kind k, const char *id, const char *name, json_t *doc);
void obj_put(struct core *c, struct obj *o, enum put_how how);
int obj_rename(struct core *c, struct obj *o, const char *name, enum put_how how);
void obj_del(struct core *c, struct obj *o, enum put_how how);
struct obj *obj_by_name(struct core *c, enum kind k, const char *name);
struct obj *obj_by_id(struct core *c, enum kind k, const char *id);
/* obj_find() - by name or id; NULL with "KIND-not-found" and a did-you-mean. */
struct obj *obj_find(struct core *c, enum kind k, const char *name, struct err *e);
int obj_load_all(struct core *c, struct err *e);
void obj_free_all(struct core *c);
void obj_show(struct core *c, struct obj *o); /* to api, without a write: volatile facts */
const char *kind_name(enum kind k);
size_t obj_count(struct core *c, enum kind k);
/* round_touch() - a transaction is due at the end of this round. round_after() - then run @fn; not
 * when the round's asked-for writes were refused and @asked. */
void round_touch(struct core *c);
void round_commit(struct core *c);
/* round_drop() - what a dry run changed goes back; nobody hears of it. */
void round_drop(struct core *c);
/* round_part_begin(), _end() - about a request's handler: what it changed, showed and reported goes back
 * unless @keep, but for facts. */
void round_part_begin(struct core *c);
void round_part_end(struct core *c, bool keep);
/* The snapshot kept before the first change of an object in a round. */
void obj_before(struct core *c, struct obj *o);

/* ---- peer.c: a connection with calls and deadlines ---- */
enum call_event { CALL_ITEM, CALL_DONE };
/* @b NULL: failed, @e says how. CALL_ITEM: one of several messages before the result. */
typedef void call_fn(void *arg, enum call_event ev, struct wire_buf *b, const struct err *e);
typedef void peer_event_fn(void *arg, struct peer *p, struct wire_buf *b);
typedef void peer_closed_fn(void *arg, struct peer *p, int why);
struct call;

struct peer *peer_new(struct core *c, int sock, enum proto_role role, const char *label,
		      peer_event_fn *on_event, peer_closed_fn *on_closed,
		      void *arg); /* owns @sock on success */
void peer_free(struct peer *p);	  /* pending calls are forgotten, unanswered */
/* peer_end() - as if the other side had closed: pending calls fail with EPIPE first. @p may be NULL. */
void peer_end(struct peer *p);
void peer_set_state(struct peer *p, enum proto_state s);
int peer_send(struct peer *p, uint16_t type, const void *msg);
/* peer_call() - @timeout_ms 0: none. @final: message type that ends the call besides result (0 none). A failed send
 * reports through @fn too, from the loop. Return: handle for call_forget(), NULL on ENOMEM only. */
struct call *peer_call(struct peer *p, uint16_t type, const void *msg, uint16_t final,
		       unsigned timeout_ms, call_fn *fn, void *arg);
void call_forget(struct call *k); /* its fn is not called any more */
size_t peer_queued(const struct peer *p);

/* ---- req.c, request.c ---- */
struct req {
	struct core *c;
	struct list node; /* core->reqs while unanswered */
	uint32_t id;
	enum route_id route;
	enum role role;
	int64_t uid, if_match;
	char principal[128], name[128], sub[128], idem[128], request_id[40];
	uint64_t wait_ms;
	bool dry_run, wrote, answered, mutates, replayed;
	bool abandonable; /* nobody but its lists knows it: may be freed when its client goes */
	bool gone;
	/* answer with the object and this status once the operation is done, however long */
	unsigned reply_target;
	json_t *body, *query;
	int fd;
	struct loop_timer wait; /* wait_ms of an operation or a state */
	struct op *op;
	struct list op_node;
	struct guest *waiting; /* GUEST_WAIT */
	struct list guest_node;
	uint32_t want_states;
};
typedef int route_fn(struct core *c, struct req *r, struct err *e);

/* req_reply() - @body stolen, may be NULL. The request is gone afterwards. */
void req_reply(struct req *r, unsigned status, json_t *body, int64_t revision,
	       const char *location);
void req_reply_fd(struct req *r, unsigned status, json_t *body, int fd);
void req_fail(struct req *r, const struct err *e, const char *field, const char *op_id);
void req_obj(struct req *r, unsigned status,
	     struct obj *o); /* the object, its revision, its location */
/* req_dry() - was it a dry run? Then it is answered with @o, and the handler returns 0. */
bool req_dry(struct req *r, struct obj *o);
int req_if_match(struct req *r, const struct obj *o, struct err *e);
int req_role(struct req *r, enum role least, const char *what, struct err *e);
void req_gone(struct core *c, uint32_t id); /* its client went away */
void request_handle(struct core *c, struct req *r);
void reqs_drop_all(struct core *c);
unsigned err_status(const struct err *e);

/* ---- op.c ---- */
struct op_ops {
	const char *verb;
	bool rerun; /* after a restart of the daemon: run again; else abort */
	int (*prepare)(struct op *op,
		       struct err *e); /* in the request's transaction: checks, state change */
	void (*run)(struct op *op);    /* after it is written; ends in op_finish(), now or later */
	void (*commit)(struct op *op);
	void (*abort)(struct op *op, const struct err *e);
	void (*cancel)(struct op *op); /* NULL: cannot be cancelled once running */
};
struct op {
	struct core *c;
	const struct op_ops *ops;
	struct obj *o;	    /* its record */
	struct obj *target; /* or NULL; looked up again by id after a restart */
	char target_id[40];
	json_t *args;	     /* of its own, and in o->rt */
	struct list waiters; /* struct req */
	struct list start_node;
	bool running, cancelled, finished;
	void *data; /* the verb's own */
	void (*free_data)(void *);
	void (*on_done)(struct op *op, const struct err *e); /* besides the waiters */
	void *on_done_arg;
};
/* op_new() - prepared and written; runs after this round's commit. @args stolen. NULL with @e. */
struct op *op_new(struct core *c, const struct op_ops *ops, struct obj *target,
		  const char *target_name, json_t *args, const char *principal, struct err *e);
void op_progress(struct op *op, int percent, const char *text);
void op_item(struct op *op, const char *name, const struct err *e);
void op_finish(struct op *op, const struct err *e); /* NULL = done */
int op_answer(struct op *op, struct req *r);	    /* 202, or wait; returns 0 */
int op_cancel(struct op *op, struct err *e);
void op_resume_all(struct core *c);
void op_start_pending(struct core *c);
void op_drop_pending(struct core *c); /* the round's writes were refused */
void op_waiter_gone(struct req *r);

/* ---- guest_state.c ---- */
enum gstate {
	G_STOPPED,
	G_STARTING,
	G_RUNNING,
	G_PAUSING,
	G_PAUSED,
	G_STOPPING,
	G_CRASHED,
	G_FAILED,
	G_SAVED,
	G_DELETED,
	G_STATES
};
enum gverb {
	GV_START = 1 << 0,
	GV_STOP = 1 << 1,
	GV_RESTART = 1 << 2,
	GV_RESET = 1 << 3,
	GV_PAUSE = 1 << 4,
	GV_RESUME = 1 << 5,
	GV_RENAME = 1 << 6,
	GV_DELETE = 1 << 7,
	GV_SET = 1 << 8,
	GV_SET_LIVE = 1 << 9,
	GV_CONSOLE = 1 << 10,
	GV_NMI = 1 << 11,
	GV_UNDELETE = 1 << 12,
	GV_ATTACH = 1 << 13,
	GV_DETACH = 1 << 14,
	GV_FORCE_STOP = 1 << 15,
	GV_SAVE = 1 << 16,
	GV_DISCARD = 1 << 17,
};
const char *gstate_name(enum gstate s);
int gstate_parse(const char *name); /* or -1 */
bool gstate_allows(enum gstate s, enum gverb v);
bool gstate_may_become(enum gstate from, enum gstate to);
bool gstate_has_process(enum gstate s);
const char *gverb_name(enum gverb v);
/* gstate_check() - 0, or -EBUSY naming guest, state and the verb that would help. */
int gstate_check(const char *guest, enum gstate s, enum gverb v, struct err *e);

/* ---- guests ---- */
struct start;
struct guest {
	struct core *c;
	struct obj *o;
	enum gstate state;
	struct peer *link;
	int pidfd;
	struct loop_fd pidfd_w;
	pid_t pid;
	int uid_slot; /* -1 none */
	int kvm_fd;   /* -1: the jail has its own */
	bool quit_sent, killed, power_off, failed;
	char why[256];
	struct op *op;	     /* the one that moves its state now */
	struct start *start; /* under way */
	struct loop_timer stop_timer, restart_timer;
	unsigned restarts;
	uint64_t up_since_ns;
	struct list waiters; /* struct req */
	struct {
		uint64_t at_ns, cpu_ns, cpu_pct_x100, rss, pss, priv, shared, threads, fds;
	} use;
	json_t *counters;
};
struct guest *guest_of(struct obj *o);
struct guest *guest_attach(struct core *c, struct obj *o); /* makes o->mem from o->doc and o->rt */
void guest_detach(struct obj *o);
void guest_set_state(struct guest *g, enum gstate s, const char *reason);
json_t *guest_rt(struct guest *g);
struct obj *guest_find(struct core *c, const char *name, struct err *e);
void guest_gone(struct guest *g, const char *how, bool crashed); /* process is no more */
void guest_cleanup_host(struct guest *g);			 /* taps, cgroup, uid slot */
int guest_linked(struct guest *g, int sock, struct err *e);
int guest_watch_pid(struct guest *g, int pidfd, pid_t pid);
void guest_op_gone(struct guest *g); /* its process ended while g->op waited for that */
void guest_exited(struct core *c, const char *uuid, pid_t pid, int status);
void guest_quit_now(struct guest *g);
void guest_kill(struct guest *g, const char *why);
int64_t guest_trash_hours(const struct core *c); /* setting trash_hours */
void guest_policy_restart(struct guest *g, bool failed);
/* guest_restart_forget() - a start by policy that is due is not any more: somebody decided otherwise */
void guest_restart_forget(struct guest *g);
/* guest_restarts_resume() - those that were due when the daemon before this one ended */
void guest_restarts_resume(struct core *c);
void guest_autostart(struct core *c);
void guest_retry_waiters(struct guest *g);
int guest_start_op(struct guest *g, const char *principal, struct op **op, struct err *e);
void guest_start_begin(struct guest *g, void (*done)(struct guest *g, const struct err *e));
void guest_start_cancel(struct guest *g);
void guest_adopt_all(struct core *c);
void guest_trash_sweep(struct core *c);
int guest_resolve_disks(struct core *c, struct obj *o, json_t *body, const char *name,
			struct err *e);
int guest_resolve_nics(struct core *c, json_t *body, const char *uuid, struct err *e);
void guest_release_addresses(struct core *c, const json_t *doc);
void guest_claim_addresses(struct core *c, const json_t *doc, const char *uuid);
/* ---- guest_save.c: what a stopped guest goes on from ---- */
bool guest_saved(const struct guest *g);
/* its files: 0 state, 1 memory */
void guest_saved_file(const struct obj *o, unsigned which, char pool[64], char file[128]);
/* guest_saved_needs() - 0, or -EBUSY: the saved state of a guest, also of one in the trash, needs @disk as it is */
int guest_saved_needs(struct core *c, const struct obj *disk, struct err *e);
void guest_saved_drop(struct guest *g);
/* guest_saved_consume() - it is used up, and that is written when this returns 0: it may run. */
int guest_saved_consume(struct guest *g, struct err *e);
void guest_save_gone(struct guest *g); /* the process of a guest under g->op = save ended */
/* guest_limits_send() - the limits on record of each disk go to the guest's process; @done once, with the
 * first refusal or NULL. Also where there is nothing to tell. */
void guest_limits_send(struct guest *g, void (*done)(void *arg, const struct err *e), void *arg);
int guest_check_boot(struct core *c, const json_t *doc, struct err *e);
int guest_check_serials(struct core *c, struct req *r, const json_t *body, struct err *e);
/* guest_ports_follow() - ports that lead to guest @old lead to @name from now on */
void guest_ports_follow(struct core *c, const char *old, const char *name);
/* guest_defaults() - members that @doc lacks */
void guest_defaults(json_t *doc);

struct port_spec {
	char kind[16]; /* priv's word: pty file unix-listen ..., or "null", "guest" */
	char target[256];
	unsigned chardev; /* enum chardev_kind */
	bool append;
};
int port_spec_parse(const char *text, struct port_spec *p, struct err *e);
bool port_spec_host_path(const struct port_spec *p);

/* ---- storage ---- */
struct image_job;
typedef void job_fn(void *arg, const struct err *e, json_t *out);
typedef void job_progress_fn(void *arg, uint64_t done, uint64_t total);
/* disk_lease - of a disk on a pool of several hosts: what the process that writes it is given (storage/lease.h) */
struct disk_lease {
	int fd;
	char file[128]; /* the lease's own, beside the disk */
	char owner[64], top[128], host[40];
	uint64_t stale_ms;
};
/* disk_lease_of() - false: @o, a disk or an image, needs none. @who: for people, "guest web". @l->fd is -1 */
bool disk_lease_of(struct core *c, const struct obj *o, const char *who, struct disk_lease *l);
/* disk_lease_top() - the guest's process notes in the lease of its disk @entry, if it has one, that the top layer is @file: a
 * message before one that makes it so, or after. */
void disk_lease_top(struct guest *g, const char *entry, const char *file);
struct job_layer {
	unsigned side, layer;
	const char *driver, *label;
	int fd;
	bool read_only;
	const struct disk_lease *lease; /* NULL: none */
};
/* image_job_run() - spawn a jailed vmd-image, give it the layers (fds and leases borrowed), run @verb. @done is called once, for want of memory
 * before this returns. @slot (or NULL) holds the job until then. */
void image_job_run(struct core *c, const struct job_layer *l, unsigned n, const char *verb,
		   const char *args, job_progress_fn *progress, job_fn *done, void *arg,
		   struct image_job **slot);
void image_job_cancel(struct image_job *j);
const char *disk_driver(const char *format);
/* volume_file() - pool and file name of a disk or image object. */
void volume_file(const struct obj *o, char pool[64], char file[128]);
struct chain_layer {
	struct obj *o;
	bool image;
};
#define DISK_CHAIN_MAX 64
/* disk_chain() - @disk and what it is built on, top first. All must be ready; @for_job: or busy, which
 * is what the job made them. Return: layers, or -errno. */
int disk_chain(struct core *c, struct obj *disk, struct chain_layer *l, unsigned max, bool for_job,
	       struct err *e);
/* disk_child() - a disk that is built on @o, other than @but; NULL: none. */
struct obj *disk_child(struct core *c, const struct obj *o, const struct obj *but);
/* how priv opens a volume (p_volume_open's mode) */
enum volume_mode { VOLUME_READ, VOLUME_WRITE, VOLUME_CREATE };
struct obj *disk_find(struct core *c, const char *name, struct err *e);
/* disk_cache_number() - of a guest's entry of a disk: enum blk_cache */
unsigned disk_cache_number(const json_t *entry);
/* disk_file_taken() - a disk is in the pool's file @file, which is not named after it */
void disk_file_taken(struct core *c, const char *pool, const char *file);
/* disk_no_layer() - -EBUSY where @o is a snapshot's layer, which nothing may change */
int disk_no_layer(const struct obj *o, struct err *e);
/* ---- snapshot.c ---- */
/* snapshots_follow() - @guest is named @name from now on */
void snapshots_follow(struct core *c, const struct obj *guest, const char *name);
/* snapshots_guest_gone() - @guest is removed, its disks were; so are its snapshots, and the layers that
 * nothing is built on, unless @keep_disks */
void snapshots_guest_gone(struct core *c, const struct obj *guest, bool keep_disks);
/* disk_make() - file of @disk (record there already) is created; calls back once. */
void disk_make(struct core *c, struct obj *disk, void (*done)(void *arg, const struct err *e),
	       void *arg);
/* for disk_remove_file(): a failure is logged */
void disk_file_gone(void *arg, const struct err *e);
/* ---- unlink.c ---- */
/* disk_remove_file() - the file of a disk or image goes, once this round is written, over restarts. */
void disk_remove_file(struct core *c, struct obj *o, void (*done)(void *arg, const struct err *e),
		      void *arg);
/* ---- image_foreign.c ---- */
typedef void foreign_done_fn(struct op *op, const struct err *e);
bool image_is_foreign(const struct obj *o);
/* image_foreign_run() - @op's target becomes a qcow2; @done once. Takes op->data. */
void image_foreign_run(struct op *op, foreign_done_fn *done);
void image_foreign_cancel(struct op *op);
/* volume_remove_later() - as disk_remove_file(), of a file that is no disk's or image's. */
void volume_remove_later(struct core *c, const char *pool, const char *file);
void unlinks_send(struct core *c);		       /* the round is written */
void unlinks_resume(struct core *c, struct obj *pool); /* of the daemon before this one */
void unlinks_free(struct core *c);
struct obj *disk_record(struct core *c, const json_t *spec, const char *name, const char *owner,
			struct err *e);
/* ---- pool.c ---- */
void pool_ensure_default(struct core *c);
void pools_up(struct core *c); /* opened, and looked at now and then */
/* pool_usable() - is it there, and, with @room, may something be made in it? */
int pool_usable(struct core *c, const char *name, bool room, struct err *e);
void net_up_all(struct core *c);
/* net_count_guests() - how many interfaces each network has, where that changed */
void net_count_guests(struct core *c);
/* forwards_net_up() - @net is up (again): what leads to its guests is told to priv. */
void forwards_net_up(struct core *c, struct obj *net);
/* forwards_guest() - the guest @o has another name, other addresses, is in the trash or no more. */
void forwards_guest(struct core *c, struct obj *o);
int net_ip_pick(struct core *c, struct obj *net, char ip[16], struct err *e);
bool cidr4_parse(const char *text, uint32_t *addr, unsigned *prefix);
void ip4_text(uint32_t ip, char out[16]);
bool ip4_parse(const char *text, uint32_t *ip);

/* ---- events, tokens, usage ---- */
void event_add(struct core *c, const char *kind, const char *object, const char *name,
	       const char *fmt, ...) __attribute__((format(printf, 5, 6)));
void audit_add(struct core *c, const struct req *r, const char *result);
/* events and audit lines of this round, written with its transaction */
int log_round_write(struct core *c, struct err *e);
bool log_round_pending(struct core *c);
void log_round_done(struct core *c);
void log_round_undo(struct core *c);
/* log_drop_since() - events added after @mark never happened */
void log_drop_since(struct core *c, struct list *mark);
void usage_start(struct core *c);

/* ---- routes ---- */
route_fn route_guest_create, route_guest_patch, route_guest_delete, route_guest_undelete,
    route_guest_start, route_guest_stop, route_guest_restart, route_guest_reset, route_guest_pause,
    route_guest_resume, route_nic_attach, route_nic_detach, route_guest_rename, route_guest_limit,
    route_guest_save, route_guest_discard, route_guest_wait, route_guest_info, route_guest_nmi,
    route_guest_logs, route_guest_console_ticket, route_guest_console;
route_fn route_disk_create, route_disk_delete, route_disk_resize, route_disk_attach,
    route_disk_detach, route_disk_check, route_disk_map, route_disk_convert, route_disk_commit,
    route_disk_rebase, route_disk_compare, route_disk_export, route_disk_unexport, route_disk_clone,
    route_disk_inspect, route_disk_compact, route_disk_bitmap, route_disk_backup,
    route_disk_restore, route_snapshot_create, route_snapshot_restore, route_snapshot_delete,
    route_image_create, route_image_upload, route_image_delete, route_image_export;
route_fn route_pool_create, route_pool_get, route_pool_patch, route_pool_delete, route_net_create,
    route_net_delete, route_net_leases, route_forward_create, route_forward_delete, route_op_cancel,
    route_token_list, route_token_create, route_token_delete, route_host_get, route_top,
    route_doctor, route_metrics, route_version, route_obj_get, route_obj_list;

extern const struct op_ops op_guest_create, op_guest_start, op_guest_stop, op_guest_restart,
    op_guest_reset, op_guest_pause, op_guest_resume, op_guest_delete, op_guest_save, op_disk_create,
    op_disk_adopt, op_disk_rm, op_disk_resize, op_disk_check, op_disk_map, op_disk_convert,
    op_disk_commit, op_disk_commit_live, op_disk_rebase, op_disk_compare, op_disk_export,
    op_disk_clone, op_disk_inspect, op_disk_compact, op_disk_bitmap, op_disk_backup,
    op_disk_backup_nbd, op_disk_restore, op_snapshot_create, op_snapshot_restore, op_snapshot_rm,
    op_image_upload;
extern const struct op_ops *const op_table[];

/* ---- the daemon ---- */
struct kind_index {
	struct list all;
	struct obj **by_id, **by_name;
	size_t buckets, count;
};
struct out_msg {
	struct list node;
	struct wire_buf b;
	bool asked;	 /* answers a request that wrote: becomes 503 if the write is refused */
	uint32_t req_id; /* ... of this id */
};
struct ticket {
	struct list node;
	char text[65];
	char guest[40], port[32], principal[128];
	bool read_only;
	uint64_t expires_ns;
};
struct core {
	struct loop *loop;
	struct peer *priv;
	struct wire_conn *api;
	bool api_up, stopping, posted, adopted;
	/* priv died, and so shall we: what its silence makes calls say is not true of guests, disks and
	 * networks, and is not written. The next core finds how things stand */
	bool priv_lost;
	const struct store_ops *store_ops;
	struct store *store;
	bool read_only; /* the store refuses: reads go on, writes are answered 503 */
	char read_only_why[256];
	struct loop_timer retry, sweep, usage, copy, pools;
	unsigned pool_looks;
	char db_path[512];
	struct kind_index kinds[K_COUNT];
	struct list undo, out, reqs, op_starts, tickets, unlinks;
	struct req *cur; /* being handled: its writes are asked for */
	struct {
		bool open;
		uint64_t seq;
		struct list *undo, *out, *log; /* their ends when it began */
	} part;				       /* of the round: the request being handled */
	bool nets_stale;    /* how many guests are on each network is counted anew */
	json_t *macs, *ips; /* sets: who has it */
	json_t *
	    disk_files; /* set: POOL/FILE of disks that are not named after it; NULL: not known yet */
	uint8_t *uid_used;
	unsigned uid_slots;
	json_t *settings;
	int64_t event_seq;
	json_t *facts; /* last host probe */
	uint64_t started_real_ms, started_ns;
	struct {
		uint64_t requests, errors, starts, stops, crashes, adopted, commits, refused;
	} n;
	struct list jobs, jobs_waiting;
	unsigned jobs_running;
	struct list partials;
	uint32_t replay_id;
	bool undone;	     /* the round that was refused had to be taken back */
	char bad_field[128]; /* of the request that fails */
	struct list log_lines;
	unsigned nlog_lines;
	bool user_mode;
	int status;
};

struct core *core_new(struct loop *l, int priv_sock, int api_sock, const char *db_path,
		      const char *settings, struct err *e);
void core_begin(struct core *c); /* open pools, adopt, resume operations, autostart */
void core_free(struct core *c);
int core_api_attach(struct core *c, int sock);
void api_send_obj(struct core *c, struct obj *o);
void api_send_del(struct core *c, enum kind k, const char *id);
void api_send_reply(struct core *c, struct req *r, const struct msg_a_reply *m, const char *body);
void api_detach(struct core *c);
void req_replay(struct req *r, json_t *kept);
void log_idem_add(struct core *c, const char *key, const char *answer);
struct obj *token_find(struct core *c, const char *sha256, struct err *e);
void api_send_event(struct core *c, int64_t seq, const char *json);
void out_flush(struct core *c, bool refused);
/* out_drop_since() - what waits to be told to api since @mark, but for replies */
void out_drop_since(struct core *c, struct list *mark);
int uid_slot_take(struct core *c);
void uid_slot_put(struct core *c, int slot);

#endif
