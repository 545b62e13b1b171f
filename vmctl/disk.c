/* disk.c - what the verbs that look into disks found: check, map, compare.
 *
 * The finding is the operation's result; programs get it as it is (with -o json the shapes of qemu-img
 * check, map, as the daemon sends them), people a sentence or a table. Exit status 1: errors are left,
 * or the disks differ.
 */
#include "vmctl/vmctl.h"

#include <stdio.h>

static long long disk_number(const json_t *r, const char *key)
{
	return (long long)json_integer_value(json_object_get(r, key));
}

static int disk_checked(struct vmctl *v, const char *name, const json_t *r)
{
	long long errors = disk_number(r, "errors"), leaks = disk_number(r, "leaks"),
		  fixed = disk_number(r, "errors_fixed"), back = disk_number(r, "leaks_fixed");

	if (v->out == OUT_TABLE || v->out == OUT_WIDE) {
		if (fixed || back)
			printf("disk %s: mended %lld errors and %lld leaked clusters\n", name,
			       fixed, back);
		if (errors)
			printf("disk %s: %lld errors; vmctl disk check %s --repair all mends what "
			       "can be mended\n",
			       name, errors, name);
		if (leaks)
			printf(
			    "disk %s: %lld leaked clusters: space lost, nothing else; vmctl disk "
			    "check %s --repair leaks\n",
			    name, leaks, name);
		if (!errors && !leaks)
			printf(
			    "disk %s: no errors; %lld of %lld clusters in use, %lld compressed\n",
			    name, disk_number(r, "data_clusters"), disk_number(r, "total_clusters"),
			    disk_number(r, "compressed_clusters"));
	}
	return errors ? EX_FAILED_ : EX_DONE;
}

static int disk_compared(struct vmctl *v, const char *name, const json_t *r)
{
	bool equal = json_is_true(json_object_get(r, "equal"));

	if ((v->out == OUT_TABLE || v->out == OUT_WIDE) && !v->quiet) {
		if (equal)
			printf("disk %s: equal\n", name);
		else
			printf("disk %s: differs from byte %lld on\n", name,
			       disk_number(r, "first_difference"));
	}
	return equal ? EX_DONE : EX_FAILED_;
}

int disk_found(struct vmctl *v, const struct schema_route *route, const char *name, json_t *op)
{
	json_t *r = json_object_get(op, "result");
	int status = EX_DONE;

	if (!r)
		return EX_DONE;
	if (route->id == ROUTE_DISK_CHECK)
		status = disk_checked(v, name, r);
	else if (route->id == ROUTE_DISK_COMPARE)
		status = disk_compared(v, name, r);
	else if (route->id == ROUTE_DISK_COMPACT && !v->quiet &&
		 (v->out == OUT_TABLE || v->out == OUT_WIDE))
		printf("disk %s: %lld bytes given back\n", name, disk_number(r, "freed_bytes"));
	if (v->quiet)
		return status;
	if (route->id == ROUTE_DISK_INSPECT)
		out_value(v, NULL, r);
	else if (json_is_array(r))
		out_items(v, NULL, r);
	else if (v->out != OUT_TABLE && v->out != OUT_WIDE)
		out_value(v, NULL, r);
	return status;
}

int disk_relative(struct vmctl *v, struct args *a)
{
	struct text path = { 0 };
	struct reply p = { 0 };
	struct err e = { 0 };
	json_int_t by = json_integer_value(json_object_get(a->body, "size")), size;
	int status = EX_DONE;

	text_add(&path, "/v1/disks/");
	args_encode(&path, a->name);
	if (client_request(v, "GET", path.s, NULL, NULL, 0, &p, &e) < 0) {
		out_error(v, &e);
		status = EX_UNREACHABLE;
	} else if (p.status >= 300) {
		status = out_problem(v, &p);
	} else {
		size = json_integer_value(json_object_get(p.json, "size"));
		size = *a->by == '-' ? size - by : size + by;
		json_object_set_new(a->body, "size", json_integer(size > 0 ? size : 0));
	}
	reply_free(&p);
	text_free(&path);
	return status;
}
