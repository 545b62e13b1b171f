/* qemu.c - the options of qemu-img, where our disk verbs do what its do: scripts and fingers know them.
 *
 * A table row is an option of one verb: what it is here, or that it says nothing here (a format that is
 * on record, a progress bar that is there anyway). -o lists are taken apart. What has no meaning here is
 * refused by name, not passed over.
 */
#include "vmctl/vmctl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_row {
	enum route_id route;
	const char *option;
	bool value; /* takes one */
	const char
	    *flag; /* ours; NULL: it says nothing here. One that ends in = has its value in it */
};

/* clang-format off */
static const struct qemu_row qemu_rows[] = {
	{ ROUTE_DISK_CREATE, "-f", true, "--format" },
	{ ROUTE_DISK_CREATE, "-b", true, "--backing" },
	{ ROUTE_DISK_CREATE, "-F", true, NULL },	/* the parent's format is on record */
	{ ROUTE_DISK_CONVERT, "-O", true, "--format" },
	{ ROUTE_DISK_CONVERT, "-f", true, NULL },	/* the source's format is on record */
	{ ROUTE_DISK_CONVERT, "-c", false, "--compress=zlib" },
	{ ROUTE_DISK_CONVERT, "-p", false, NULL },
	{ ROUTE_DISK_CONVERT, "-W", false, NULL },	/* writes are out of order as it is */
	{ ROUTE_DISK_CONVERT, "-m", true, NULL },	/* as many as the host has CPUs */
	{ ROUTE_DISK_CONVERT, "-t", true, NULL },
	{ ROUTE_DISK_CONVERT, "-T", true, NULL },
	{ ROUTE_DISK_REBASE, "-b", true, "--backing" },
	{ ROUTE_DISK_REBASE, "-u", false, "--unsafe" },
	{ ROUTE_DISK_REBASE, "-F", true, NULL },
	{ ROUTE_DISK_REBASE, "-f", true, NULL },
	{ ROUTE_DISK_REBASE, "-p", false, NULL },
	{ ROUTE_DISK_CHECK, "-r", true, "--repair" },
	{ ROUTE_DISK_CHECK, "-f", true, NULL },
	{ ROUTE_DISK_COMMIT, "-f", true, NULL },
	{ ROUTE_DISK_COMMIT, "-p", false, NULL },
	{ ROUTE_DISK_COMPARE, "-f", true, NULL },
	{ ROUTE_DISK_COMPARE, "-F", true, NULL },
	{ ROUTE_DISK_COMPARE, "-p", false, NULL },
	{ ROUTE_DISK_MAP, "-f", true, NULL },
	{ ROUTE_DISK_MAP, "-U", false, NULL },
	{ ROUTE_DISK_INSPECT, "-f", true, NULL },
	{ ROUTE_DISK_INSPECT, "-U", false, NULL },	/* it takes no lock */
	{ ROUTE_DISK_RESIZE, "-f", true, NULL },
	{ ROUTE_DISK_BITMAP, "--add", false, "--do=add" },
	{ ROUTE_DISK_BITMAP, "--remove", false, "--do=remove" },
	{ ROUTE_DISK_BITMAP, "--clear", false, "--do=clear" },
	{ ROUTE_DISK_BITMAP, "--enable", false, "--do=enable" },
	{ ROUTE_DISK_BITMAP, "--disable", false, "--do=disable" },
	{ ROUTE_DISK_BITMAP, "-g", true, "--granularity" },
	{ ROUTE_DISK_BITMAP, "-f", true, NULL },
};

/* members of -o */
static const struct {
	enum route_id route;
	const char *key, *flag; /* flag NULL: only @value is what we do anyway */
	const char *value;
} qemu_options[] = {
	{ ROUTE_DISK_CREATE, "size", "--size", NULL },
	{ ROUTE_DISK_CREATE, "backing_file", "--backing", NULL },
	{ ROUTE_DISK_CREATE, "backing_fmt", NULL, NULL },
	{ ROUTE_DISK_CREATE, "cluster_size", "--cluster-size", NULL },
	{ ROUTE_DISK_CREATE, "preallocation", NULL, "off" },
	{ ROUTE_DISK_CREATE, "compat", NULL, "1.1" },
	{ ROUTE_DISK_CREATE, "lazy_refcounts", NULL, "off" },
	{ ROUTE_DISK_CONVERT, "compression_type", "--compress", NULL },
	{ ROUTE_DISK_CONVERT, "preallocation", NULL, "off" },
	{ ROUTE_DISK_CONVERT, "compat", NULL, "1.1" },
	{ ROUTE_DISK_CONVERT, "lazy_refcounts", NULL, "off" },
};
/* clang-format on */

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

struct qemu_out {
	char **words;
	int n;
	bool compress;	   /* -c */
	const char *codec; /* compression_type */
};

static void qemu_add(struct qemu_out *o, const char *flag, const char *value)
{
	size_t len = strlen(flag) + (value ? strlen(value) : 0) + 2;
	char *word = malloc(len);

	if (!word) {
		fputs("vmctl: out of memory\n", stderr);
		exit(EX_FAILED_);
	}
	snprintf(word, len, "%s%s%s", flag, value ? "=" : "", value ? value : "");
	o->words[o->n++] = word;
}

/* -o key=value,key=value */
static int qemu_list(struct qemu_out *o, const struct schema_route *r, char *list, struct err *e)
{
	char *save = NULL;

	for (char *p = strtok_r(list, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
		char *value = strchr(p, '=');
		size_t i;

		if (value)
			*value++ = '\0';
		for (i = 0; i < COUNT(qemu_options); i++)
			if (qemu_options[i].route == r->id && !strcmp(qemu_options[i].key, p))
				break;
		if (i == COUNT(qemu_options) || !value ||
		    (!qemu_options[i].flag && qemu_options[i].value &&
		     strcmp(qemu_options[i].value, value))) {
			err_set(e, EINVAL, "usage", "%s: -o %s%s%s has no meaning here", r->cli, p,
				value ? "=" : "", value ? value : "");
			err_hint(e, "vmctl help %s", r->cli);
			return -EINVAL;
		}
		if (qemu_options[i].flag && !strcmp(p, "compression_type"))
			o->codec = value;
		else if (qemu_options[i].flag)
			qemu_add(o, qemu_options[i].flag, value);
	}
	return 0;
}

static const struct qemu_row *qemu_find(const struct schema_route *r, const char *word)
{
	for (size_t i = 0; i < COUNT(qemu_rows); i++)
		if (qemu_rows[i].route == r->id && !strcmp(qemu_rows[i].option, word))
			return &qemu_rows[i];
	return NULL;
}

static bool qemu_is_list(const struct schema_route *r, const char *value)
{
	return (r->id == ROUTE_DISK_CREATE || r->id == ROUTE_DISK_CONVERT) && strchr(value, '=');
}

int qemu_words(const struct schema_route *r, int argc, char **argv, char ***words, struct err *e)
{
	/* an option gives at most one word, a list one a member, which is at least two characters */
	size_t room = 8;
	struct qemu_out o = { 0 };
	int ret = 0;

	for (int i = 0; i < argc; i++)
		room += strlen(argv[i]) + 1;
	o.words = calloc(room, sizeof(*o.words));
	if (!o.words)
		return err_set(e, ENOMEM, "no-memory", "no memory for the arguments");
	for (int i = 0; i < argc && !ret; i++) {
		const struct qemu_row *row = qemu_find(r, argv[i]);
		bool has = i + 1 < argc;

		if (!strcmp(argv[i], "--")) {
			while (i < argc)
				qemu_add(&o, argv[i++], NULL);
		} else if (!strcmp(argv[i], "-o") && has && qemu_is_list(r, argv[i + 1])) {
			ret = qemu_list(&o, r, argv[++i], e);
		} else if (r->resource == &schema_disk && !strncmp(argv[i], "--output", 8) &&
			   (argv[i][8] == '=' || (!argv[i][8] && has))) {
			const char *format = argv[i][8] ? argv[i] + 9 : argv[++i];

			qemu_add(&o, "-o", NULL);
			qemu_add(&o, strcmp(format, "human") ? format : "table", NULL);
		} else if (r->id == ROUTE_DISK_BITMAP && !strcmp(argv[i], "--merge") && has) {
			qemu_add(&o, "--do=merge", NULL);
			qemu_add(&o, "--source", argv[++i]);
		} else if (!row) {
			qemu_add(&o, argv[i], NULL);
		} else if (row->value && !has) {
			ret = err_set(e, EINVAL, "usage", "%s wants a value", argv[i]);
		} else if (row->flag && !strcmp(row->flag, "--compress=zlib")) {
			o.compress = true;
		} else if (row->flag) {
			qemu_add(&o, row->flag, row->value ? argv[++i] : NULL);
		} else {
			i += row->value;
		}
	}
	if (o.compress)
		qemu_add(&o, "--compress", o.codec ? o.codec : "zlib");
	*words = o.words; /* the room was cleared: a NULL ends them */
	return ret < 0 ? ret : o.n;
}

void qemu_words_free(char **words)
{
	for (char **w = words; w && *w; w++)
		free(*w);
	free(words);
}
