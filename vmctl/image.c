/* image.c - files into images and back. A kernel or disk given by path is uploaded once: its image
 * is named after its content. */
#include "vmctl/vmctl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/hash.h"

struct image_progress {
	struct vmctl *v;
	const char *what;
};

static void image_show(void *arg, uint64_t done, uint64_t total)
{
	struct image_progress *p = arg;

	out_progress(p->v, p->what, done, total, true);
}

static int image_open(const char *path, struct stat *st, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		err_set(e, errno, errno == ENOENT ? "file-not-found" : "unreadable", "%s: %s", path,
			strerror(errno));
		return -1;
	}
	if (fstat(fd, st) < 0 || !S_ISREG(st->st_mode)) {
		err_set(e, EINVAL, "not-a-file", "%s is not a regular file", path);
		close(fd);
		return -1;
	}
	return fd;
}

static int image_err(struct reply *r, struct err *e)
{
	const char *d = json_string_value(json_object_get(r->json, "detail")),
		   *h = json_string_value(json_object_get(r->json, "hint"));
	const char *c = json_string_value(json_object_get(r->json, "code"));

	err_set(e, (int)r->status, c ? c : "failed", "%s", d ? d : "the daemon refused the image");
	if (h)
		err_hint(e, "%s", h);
	return -1;
}

/* make the image @j describes and send @fd. Where it half exists from before, only send */
static int image_send(struct vmctl *v, json_t *j, int fd, uint64_t size, bool made, struct err *e)
{
	struct image_progress p = { v, json_string_value(json_object_get(j, "name")) };
	char *body = json_dumps(j, JSON_COMPACT), path[200];
	struct reply r = { 0 };
	int n = 0;

	if (!made) {
		n = client_request(v, "POST", v->dry_run ? "/v1/images?dry_run=true" : "/v1/images",
				   NULL, body, strlen(body), &r, e);
		if (!n && r.status >= 300)
			n = image_err(&r, e);
		reply_free(&r);
	}
	free(body);
	if (n < 0 || v->dry_run)
		return n;
	snprintf(path, sizeof(path), "/v1/images/%s/content", p.what);
	n = client_upload(v, path, fd, size, image_show, &p, &r, e);
	out_progress_end(v);
	if (n < 0 || r.status >= 300) {
		struct reply del = { 0 };
		struct err waste = { 0 };

		if (!n)
			n = image_err(&r, e);
		/* nothing half-made stays behind */
		client_close(v);
		snprintf(path, sizeof(path), "/v1/images/%s", p.what);
		if (!made && !client_request(v, "DELETE", path, NULL, NULL, 0, &del, &waste))
			reply_free(&del);
	}
	reply_free(&r);
	return n;
}

static void image_guess(json_t *j, const char *path)
{
	static const char *const ends[][2] = { { ".qcow2", "qcow2" }, { ".vmdk", "vmdk" },
					       { ".vdi", "vdi" },     { ".vhdx", "vhdx" },
					       { ".vhd", "vpc" },     { ".vpc", "vpc" } };
	const char *dot = strrchr(path, '.'), *format = "raw";

	/* by name only: content is never guessed */
	for (size_t i = 0; dot && i < sizeof(ends) / sizeof(ends[0]); i++)
		if (!strcasecmp(dot, ends[i][0]))
			format = ends[i][1];
	if (!json_object_get(j, "format"))
		json_object_set_new(j, "format", json_string(format));
	if (!json_object_get(j, "kind") && dot && !strcmp(dot, ".iso"))
		json_object_set_new(j, "kind", json_string("iso"));
}

int image_import(struct vmctl *v, struct args *a)
{
	/* image import FILE [NAME]: the first positional went to the required member `name` */
	const char *path = json_string_value(json_object_get(a->body, "name")),
		   *name = a->rest_count ? a->rest[0] : NULL;
	char made[64], *copy;
	struct err e = { 0 };
	struct stat st;
	int fd, r;

	if (!path) {
		err_set(&e, EINVAL, "usage", "image import wants a file");
		err_hint(&e, "vmctl image import FILE [NAME]");
		out_error(v, &e);
		return EX_USAGE_;
	}
	copy = strdup(path);
	fd = image_open(path, &st, &e);
	if (fd < 0) {
		out_error(v, &e);
		free(copy);
		return e.num == ENOENT ? EX_NOT_FOUND : EX_FAILED_;
	}
	if (!name) {
		const char *base = strrchr(copy, '/') ? strrchr(copy, '/') + 1 : copy;

		snprintf(made, sizeof(made), "%s", base);
		if (strrchr(made, '.') && strrchr(made, '.') != made)
			*strrchr(made, '.') = '\0';
		name = made;
	}
	image_guess(a->body, copy);
	json_object_set_new(a->body, "name", json_string(name));
	json_object_set_new(a->body, "size", json_integer(st.st_size));
	r = image_send(v, a->body, fd, (uint64_t)st.st_size, false, &e);
	close(fd);
	free(copy);
	if (r < 0) {
		out_error(v, &e);
		return !strcmp(e.code, "unreachable") ? EX_UNREACHABLE
						      : exit_of_status((unsigned)e.num, e.code);
	}
	if (v->quiet)
		printf("%s\n", name);
	else if (v->out == OUT_TABLE || v->out == OUT_WIDE)
		printf("image %s: %s\n", name, v->dry_run ? "would be imported" : "imported");
	else
		out_value(v, a->route->resource, a->body);
	return EX_DONE;
}

static int image_export_sink(void *arg, const char *data, size_t len)
{
	return fwrite(data, 1, len, arg) != len;
}

int image_export(struct vmctl *v, struct args *a)
{
	const char *to = a->rest_count && a->rest[0] ? a->rest[0] : "-";
	struct reply r = { 0 };
	struct err e = { 0 };
	char path[200], part[4096];
	FILE *f = stdout;
	int status = EX_DONE;

	if (!strcmp(to, "-") && isatty(1)) {
		err_set(&e, EINVAL, "usage",
			"an image is not for a terminal; name a file or redirect");
		out_error(v, &e);
		return EX_USAGE_;
	}
	snprintf(part, sizeof(part), "%s.part", to);
	if (strcmp(to, "-") && !(f = fopen(part, "wxe"))) {
		err_set(&e, errno, "unwritable", "%s: %s", part, strerror(errno));
		out_error(v, &e);
		return EX_FAILED_;
	}
	snprintf(path, sizeof(path), "/v1/images/%.100s/content", a->name);
	if (client_stream(v, path, NULL, image_export_sink, f, &r, &e) < 0) {
		out_error(v, &e);
		status = EX_UNREACHABLE;
	} else if (r.status >= 300) {
		status = out_problem(v, &r);
	} else if (fflush(f) || ferror(f)) {
		err_set(&e, EIO, "unwritable", "%s cannot be written", to);
		out_error(v, &e);
		status = EX_FAILED_;
	}
	if (f != stdout) {
		/* under its name only when it is whole */
		if (fclose(f) || status || rename(part, to) < 0) {
			unlink(part);
			status = status ? status : EX_FAILED_;
		}
	}
	reply_free(&r);
	return status;
}

int image_of_path(struct vmctl *v, const char *path, const char *kind, char name[64], struct err *e)
{
	static char buf[256 << 10];
	char hex[SHA256_HEX_LEN], url[128];
	struct sha256 h;
	struct reply r = { 0 };
	struct stat st;
	int fd = image_open(path, &st, e), n;
	bool made, ready;
	long got;
	json_t *j;

	if (fd < 0) {
		e->num = e->num == ENOENT ? 404 : 400;
		return -1;
	}
	sha256_init(&h);
	while ((got = io_read_full(fd, buf, sizeof(buf))) > 0)
		sha256_add(&h, buf, (size_t)got);
	sha256_hex(&h, hex);
	snprintf(name, 64, "%s-%.16s", kind, hex);
	snprintf(url, sizeof(url), "/v1/images/%s", name);
	n = client_request(v, "GET", url, NULL, NULL, 0, &r, e);
	made = !n && r.status == 200;
	ready = made && !strcmp(json_string_value(json_object_get(r.json, "state"))
				    ? json_string_value(json_object_get(r.json, "state"))
				    : "",
				"ready");
	reply_free(&r);
	if (n < 0 || ready) {
		close(fd);
		return n;
	}
	lseek(fd, 0, SEEK_SET);
	j = json_pack("{s:s,s:s,s:I,s:s}", "name", name, "kind", kind, "size",
		      (json_int_t)st.st_size, "sha256", hex);
	image_guess(j, path);
	n = image_send(v, j, fd, (uint64_t)st.st_size, made, e);
	json_decref(j);
	close(fd);
	return n;
}
