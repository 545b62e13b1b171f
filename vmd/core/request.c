/* request.c - route dispatch: one handler a route, indexed by enum route_id.
 *
 * In order: the route's least role (api checked it; core decides), a repeated Idempotency-Key,
 * read-only mode, then the handler. A handler answers now (0), keeps the request to answer later
 * (0), or fails with struct err.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "vmd/core/internal.h"

static route_fn *const request_routes[ROUTE_COUNT] = {
	[ROUTE_GUEST_LIST] = route_obj_list,
	[ROUTE_GUEST_CREATE] = route_guest_create,
	[ROUTE_GUEST_GET] = route_obj_get,
	[ROUTE_GUEST_PATCH] = route_guest_patch,
	[ROUTE_GUEST_DELETE] = route_guest_delete,
	[ROUTE_GUEST_UNDELETE] = route_guest_undelete,
	[ROUTE_GUEST_START] = route_guest_start,
	[ROUTE_GUEST_STOP] = route_guest_stop,
	[ROUTE_GUEST_RESTART] = route_guest_restart,
	[ROUTE_GUEST_RESET] = route_guest_reset,
	[ROUTE_GUEST_PAUSE] = route_guest_pause,
	[ROUTE_GUEST_RESUME] = route_guest_resume,
	[ROUTE_GUEST_SAVE] = route_guest_save,
	[ROUTE_GUEST_DISCARD] = route_guest_discard,
	[ROUTE_NIC_ATTACH] = route_nic_attach,
	[ROUTE_NIC_DETACH] = route_nic_detach,
	[ROUTE_GUEST_RENAME] = route_guest_rename,
	[ROUTE_GUEST_LIMIT] = route_guest_limit,
	[ROUTE_GUEST_WAIT] = route_guest_wait,
	[ROUTE_GUEST_INFO] = route_guest_info,
	[ROUTE_GUEST_NMI] = route_guest_nmi,
	[ROUTE_GUEST_LOGS] = route_guest_logs,
	[ROUTE_GUEST_CONSOLE_TICKET] = route_guest_console_ticket,
	[ROUTE_GUEST_CONSOLE] = route_guest_console,
	[ROUTE_DISK_LIST] = route_obj_list,
	[ROUTE_DISK_CREATE] = route_disk_create,
	[ROUTE_DISK_GET] = route_obj_get,
	[ROUTE_DISK_DELETE] = route_disk_delete,
	[ROUTE_DISK_RESIZE] = route_disk_resize,
	[ROUTE_DISK_ATTACH] = route_disk_attach,
	[ROUTE_DISK_DETACH] = route_disk_detach,
	[ROUTE_DISK_CHECK] = route_disk_check,
	[ROUTE_DISK_MAP] = route_disk_map,
	[ROUTE_DISK_CONVERT] = route_disk_convert,
	[ROUTE_DISK_CLONE] = route_disk_clone,
	[ROUTE_DISK_COMMIT] = route_disk_commit,
	[ROUTE_DISK_REBASE] = route_disk_rebase,
	[ROUTE_DISK_COMPARE] = route_disk_compare,
	[ROUTE_DISK_INSPECT] = route_disk_inspect,
	[ROUTE_DISK_COMPACT] = route_disk_compact,
	[ROUTE_DISK_BITMAP] = route_disk_bitmap,
	[ROUTE_DISK_BACKUP] = route_disk_backup,
	[ROUTE_DISK_RESTORE] = route_disk_restore,
	[ROUTE_DISK_EXPORT] = route_disk_export,
	[ROUTE_DISK_UNEXPORT] = route_disk_unexport,
	[ROUTE_SNAPSHOT_LIST] = route_obj_list,
	[ROUTE_SNAPSHOT_CREATE] = route_snapshot_create,
	[ROUTE_SNAPSHOT_GET] = route_obj_get,
	[ROUTE_SNAPSHOT_RESTORE] = route_snapshot_restore,
	[ROUTE_SNAPSHOT_DELETE] = route_snapshot_delete,
	[ROUTE_IMAGE_LIST] = route_obj_list,
	[ROUTE_IMAGE_CREATE] = route_image_create,
	[ROUTE_IMAGE_GET] = route_obj_get,
	[ROUTE_IMAGE_UPLOAD] = route_image_upload,
	[ROUTE_IMAGE_DELETE] = route_image_delete,
	[ROUTE_IMAGE_EXPORT] = route_image_export,
	[ROUTE_POOL_LIST] = route_obj_list,
	[ROUTE_POOL_CREATE] = route_pool_create,
	[ROUTE_POOL_GET] = route_pool_get,
	[ROUTE_POOL_PATCH] = route_pool_patch,
	[ROUTE_POOL_DELETE] = route_pool_delete,
	[ROUTE_NET_LIST] = route_obj_list,
	[ROUTE_NET_CREATE] = route_net_create,
	[ROUTE_NET_GET] = route_obj_get,
	[ROUTE_NET_DELETE] = route_net_delete,
	[ROUTE_NET_LEASES] = route_net_leases,
	[ROUTE_FORWARD_LIST] = route_obj_list,
	[ROUTE_FORWARD_CREATE] = route_forward_create,
	[ROUTE_FORWARD_GET] = route_obj_get,
	[ROUTE_FORWARD_DELETE] = route_forward_delete,
	[ROUTE_OP_LIST] = route_obj_list,
	[ROUTE_OP_GET] = route_obj_get,
	[ROUTE_OP_CANCEL] = route_op_cancel,
	[ROUTE_TOKEN_LIST] = route_token_list,
	[ROUTE_TOKEN_CREATE] = route_token_create,
	[ROUTE_TOKEN_DELETE] = route_token_delete,
	[ROUTE_HOST_GET] = route_host_get,
	[ROUTE_TOP] = route_top,
	[ROUTE_DOCTOR] = route_doctor,
	[ROUTE_METRICS] = route_metrics,
	[ROUTE_VERSION] = route_version,
	/* event stream, openapi and healthz end in api */
};

static enum kind request_kind(enum route_id id)
{
	const char *n = schema_routes[id].resource ? schema_routes[id].resource->name : "";

	for (int k = 0; k < K_COUNT; k++)
		if (!strcmp(n, kind_name((enum kind)k)))
			return (enum kind)k;
	return K_COUNT;
}

/* api answers these from its read model; here they serve a caller without one. */
int route_obj_get(struct core *c, struct req *r, struct err *e)
{
	struct obj *o = obj_find(c, request_kind(r->route), r->name, e);

	if (!o)
		return -ENOENT;
	req_obj(r, 200, o);
	return 0;
}

int route_obj_list(struct core *c, struct req *r, struct err *e)
{
	enum kind k = request_kind(r->route);
	json_t *items = json_array();

	list_for_each (p, &c->kinds[k].all)
		json_array_append(items, container_of(p, struct obj, node)->doc);
	req_reply(r, 200, json_pack("{s:o}", "items", items), 0, NULL);
	return 0;
}

static bool request_repeated(struct core *c, struct req *r)
{
	char key[300], *kept = NULL;
	json_t *j;

	if (!*r->idem)
		return false;
	snprintf(key, sizeof(key), "%s\n%s\n%s", r->principal, route_name(r->route), r->idem);
	if (c->store_ops->idem_get(c->store, key, (int64_t)(clock_real_ms() / 1000), &kept) <= 0)
		return false;
	j = jparse(kept, strlen(kept));
	free(kept);
	if (!j)
		return false;
	req_replay(r, j);
	json_decref(j);
	return true;
}

/* If-Match holds for every change of an object that the path names */
static int request_if_match(struct core *c, struct req *r, struct err *e)
{
	enum kind k = request_kind(r->route);
	struct obj *o;

	if (r->if_match <= 0 || !*r->name || k == K_COUNT)
		return 0;
	o = k == K_DISK ? disk_find(c, r->name, NULL) : obj_by_name(c, k, r->name);
	if (!o)
		o = obj_by_id(c, k, r->name);
	return o ? req_if_match(r, o, e) : 0;
}

void request_handle(struct core *c, struct req *r)
{
	const struct schema_route *row;
	struct err e = { 0 };
	bool dry;
	int res;

	c->n.requests++;
	if ((unsigned)r->route >= ROUTE_COUNT || !request_routes[r->route]) {
		err_set(&e, ENOENT, "no-such-route", "core does not serve this route");
		req_fail(r, &e, NULL, NULL);
		return;
	}
	row = &schema_routes[r->route];
	r->mutates = strcmp(row->method, "GET") != 0;
	if (req_role(r, row->role, row->help, &e) < 0) {
		req_fail(r, &e, NULL, NULL);
		return;
	}
	if (r->mutates && request_repeated(c, r))
		return;
	if (r->mutates && c->read_only) {
		err_set(&e, EROFS, "state-read-only",
			"changes are refused while the state cannot be written: %.300s",
			c->read_only_why);
		err_hint(&e, "vmctl doctor");
		req_fail(r, &e, NULL, NULL);
		return;
	}
	/* a dry run has a round to itself: prepared in earnest, then taken back. What cannot be taken
	 * back its handler leaves, by req_dry() */
	dry = r->mutates && r->dry_run;
	if (dry)
		round_commit(c);
	c->cur = r;
	if (r->mutates)
		round_part_begin(c);
	res = r->mutates ? request_if_match(c, r, &e) : 0;
	if (!res)
		res = request_routes[r->route](c, r, &e);
	/* a handler that answered has freed the request and cleared c->cur */
	bool failed = res < 0 && c->cur == r;
	round_part_end(c, !failed);
	if (failed)
		req_fail(r, &e, *c->bad_field ? c->bad_field : NULL, NULL);
	c->bad_field[0] = '\0';
	c->cur = NULL;
	if (dry)
		round_drop(c);
}
