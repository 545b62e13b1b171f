/* help.c - help, the bash completion script and the reference part of vmctl(1), all from the table.
 */
#include "vmctl/vmctl.h"

#include <stdio.h>
#include <string.h>

static const struct {
	const char *flag, *arg, *help;
} help_globals[] = {
	{ "--socket", "PATH",
	  "the daemon's socket (VMD_SOCKET; default /run/vmd/api.sock, or that of vmd --user)" },
	{ "--url", "URL",
	  "a daemon elsewhere, as https://HOST:PORT (VMD_URL; token in VMD_TOKEN, or client "
	  "certificate in VMD_CERT and VMD_KEY; authority in VMD_CA)" },
	{ "--context", "NAME", "a line of the contexts file (VMD_CONTEXT)" },
	{ "-o", "FORMAT", "table, wide, json, yaml or csv (default table)" },
	{ "-q", "", "names only; no progress" },
	{ "--no-wait", "", "do not wait for slow verbs; print the operation" },
	{ "--dry-run", "", "check everything, change nothing" },
	{ "--help", "", "this" },
	{ "--version", "", "version of vmctl" },
};

static bool help_flag_shown(const struct schema_route *r, const struct schema_field *f)
{
	return f->cli && (f->flags & (strcmp(r->method, "PATCH") ? SF_CREATE : SF_PATCH));
}

static const char *help_value(const struct schema_field *f)
{
	switch (f->type) {
	case ST_BOOL:
		return "";
	case ST_INT:
		return "N";
	case ST_SIZE:
		return "SIZE";
	case ST_DURATION:
		return "TIME";
	case ST_MAP:
		return "KEY=VALUE";
	case ST_ENUM:
		return "WORD";
	default:
		return "VALUE";
	}
}

static void help_synopsis(const struct schema_route *r, const char *verb, char *buf, size_t len)
{
	const char *open = strchr(r->path, '{');
	size_t n = (size_t)snprintf(buf, len, "%s", verb);

	if (open && n < len)
		n += (size_t)snprintf(buf + n, len - n, " %c%.*s%s", open[1] & ~0x20,
				      (int)(strchr(open, '}') - open - 2), open + 2,
				      args_many(r) ? "..." : "");
	for (char *p = buf + strlen(verb); *p; p++)
		if (*p >= 'a' && *p <= 'z')
			*p = (char)(*p & ~0x20);
	if (r->id == ROUTE_IMAGE_CREATE)
		snprintf(buf + n, len - n, " FILE [NAME]");
	else if (r->id == ROUTE_IMAGE_EXPORT)
		snprintf(buf + n, len - n, " [FILE]");
	else if (r->id == ROUTE_GUEST_CONSOLE)
		snprintf(buf + n, len - n, " [PORT]");
	else if (r->id == ROUTE_NET_LEASES)
		snprintf(buf, len, "%s [NETWORK]", verb);
	else
		for (const struct schema_field *f =
			 r->body && strcmp(r->method, "PATCH") ? r->body->fields : NULL;
		     f && f->name && n < len; f++)
			if ((f->flags & SF_REQUIRED) && !f->cli) {
				size_t start = n + 1;

				n += (size_t)snprintf(buf + n, len - n, " %s", f->name);
				for (size_t i = start; i < n && i < len; i++)
					if (buf[i] >= 'a' && buf[i] <= 'z')
						buf[i] = (char)(buf[i] & ~0x20);
			}
	/* what may also be a word of its own */
	if (r->id == ROUTE_SNAPSHOT_LIST)
		snprintf(buf + n, len - n, " [GUEST]");
	else if (r->id == ROUTE_SNAPSHOT_CREATE || r->id == ROUTE_DISK_CLONE)
		snprintf(buf + n, len - n, " [NAME]");
	else if (r->id == ROUTE_DISK_CREATE)
		snprintf(buf + n, len - n, " [SIZE]");
}

typedef void help_flag_fn(const char *flag, const char *value, const char *help);

static void help_flags(const struct schema_route *r, help_flag_fn *fn)
{
	for (const struct schema_field *f = r->body ? r->body->fields : NULL; f && f->name; f++)
		if (help_flag_shown(r, f))
			fn(f->cli, help_value(f), f->help);
	for (const struct args_own *o = args_own; o->flag; o++)
		if (o->route == r->id)
			fn(o->flag, o->value, o->help);
	for (const struct schema_field *f = r->query ? r->query->fields : NULL; f && f->name; f++)
		if (f->cli)
			fn(f->cli, help_value(f), f->help);
}

static void help_print_flag(const char *flag, const char *value, const char *help)
{
	char left[64];

	snprintf(left, sizeof(left), "--%s%s%s", flag, *value ? " " : "", value);
	printf("  %-24s %s\n", left, help);
}

int help_usage(const char *verb)
{
	const struct schema_route *r = verb_route(!strcmp(verb, "launch") ? "create" : verb);
	char line[256];

	if (!r)
		return EX_USAGE_;
	help_synopsis(r, verb, line, sizeof(line));
	printf("vmctl %s [flags]\n  %s\n", line,
	       strcmp(verb, "launch") ? r->help : "define a guest as create does, and start it");
	help_flags(r, help_print_flag);
	return EX_DONE;
}

static void help_all(void)
{
	char line[256];

	printf("vmctl [options] VERB ...: virtual machines on this host\n\noptions:\n");
	for (size_t i = 0; i < sizeof(help_globals) / sizeof(help_globals[0]); i++) {
		snprintf(line, sizeof(line), "%s%s%s", help_globals[i].flag,
			 *help_globals[i].arg ? " " : "", help_globals[i].arg);
		printf("  %-24s %s\n", line, help_globals[i].help);
	}
	printf("\nverbs (vmctl help VERB lists its flags):\n");
	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		if (!schema_routes[i].cli)
			continue;
		help_synopsis(&schema_routes[i], schema_routes[i].cli, line, sizeof(line));
		printf("  %-34s %s\n", line, schema_routes[i].help);
	}
	for (const struct verb_extra *x = verb_extras; x->name; x++) {
		snprintf(line, sizeof(line), "%s %s", x->name, x->usage);
		printf("  %-34s %s\n", line, x->help);
	}
}

bool help_group(const char *group)
{
	size_t n = strlen(group);
	char line[256];
	bool any = false;

	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		const char *cli = schema_routes[i].cli;

		if (!cli || strncmp(cli, group, n) || cli[n] != ' ')
			continue;
		if (!any)
			printf("verbs of %s (vmctl help VERB lists their flags):\n", group);
		any = true;
		help_synopsis(&schema_routes[i], cli, line, sizeof(line));
		printf("  %-34s %s\n", line, schema_routes[i].help);
	}
	return any;
}

int help_run(struct vmctl *v, int argc, char **argv)
{
	char two[128], said[128];
	struct err e = { 0 };
	const char *near;

	if (!argc) {
		help_all();
		return EX_DONE;
	}
	if (argc == 1 && !strcmp(argv[0], "--man")) {
		help_man();
		return EX_DONE;
	}
	snprintf(two, sizeof(two), "%s%s%s", argv[0], argc > 1 ? " " : "", argc > 1 ? argv[1] : "");
	if (help_usage(two) == EX_DONE || (argc == 1 && help_group(argv[0])))
		return EX_DONE;
	for (const struct verb_extra *x = verb_extras; x->name; x++)
		if (!strcmp(x->name, argv[0])) {
			printf("vmctl %s %s\n  %s\n", x->name, x->usage, x->help);
			return EX_DONE;
		}
	near = verb_nearest(argv[0], argc > 1 ? argv[1] : "", said);
	err_set(&e, 2, "usage", "there is no verb \"%s\"", said);
	if (near)
		err_hint(&e, "did you mean \"%s\"?", near);
	out_error(v, &e);
	return EX_USAGE_;
}

/* ---- the manual's reference ---- */

static void help_roff(const char *s)
{
	/* a backslash, and a dot or quote at the start of a line, mean something to roff; so does a
	 * bare hyphen */
	if (*s == '.' || *s == '\'')
		fputs("\\&", stdout);
	for (; *s; s++) {
		if (*s == '\\')
			fputs("\\e", stdout);
		else if (*s == '-')
			fputs("\\-", stdout);
		else
			putchar(*s);
	}
}

static void help_man_flag(const char *flag, const char *value, const char *help)
{
	printf(".TP\n.BR \\-\\-");
	help_roff(flag);
	if (*value)
		printf(" \" \" \\fI%s\\fR", value);
	printf("\n");
	help_roff(help);
	printf("\n");
}

void help_man(void)
{
	char line[256];

	printf(".SH OPTIONS\n");
	for (size_t i = 0; i < sizeof(help_globals) / sizeof(help_globals[0]); i++) {
		printf(".TP\n.B ");
		help_roff(help_globals[i].flag);
		if (*help_globals[i].arg)
			printf(" \\fI%s\\fR", help_globals[i].arg);
		printf("\n");
		help_roff(help_globals[i].help);
		printf("\n");
	}
	printf(".SH VERBS\n");
	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		if (!schema_routes[i].cli)
			continue;
		help_synopsis(&schema_routes[i], schema_routes[i].cli, line, sizeof(line));
		printf(".SS ");
		help_roff(line);
		printf("\n");
		help_roff(schema_routes[i].help);
		printf(".\n");
		help_flags(&schema_routes[i], help_man_flag);
	}
	for (const struct verb_extra *x = verb_extras; x->name; x++) {
		snprintf(line, sizeof(line), "%s %s", x->name, x->usage);
		printf(".SS ");
		help_roff(line);
		printf("\n");
		help_roff(x->help);
		printf(".\n");
	}
}

/* ---- completion ---- */

static void help_complete_flag(const char *flag, const char *value, const char *help)
{
	printf(" --%s", flag);
}

int help_completion(struct vmctl *v, int argc, char **argv)
{
	struct err e = { 0 };
	const char *last = "";

	if (argc != 1 || strcmp(argv[0], "bash")) {
		err_set(&e, 2, "usage", "completion knows the shell bash");
		err_hint(&e, "vmctl completion bash > /etc/bash_completion.d/vmctl");
		out_error(v, &e);
		return EX_USAGE_;
	}
	printf("# bash completion of vmctl; made by: vmctl completion bash\n_vmctl() {\n\tlocal "
	       "cur=${COMP_WORDS[COMP_CWORD]} verb= i w=() g=()\n"
	       "\tfor ((i = 1; i < COMP_CWORD; i++)); do\n\t\tcase ${COMP_WORDS[i]} "
	       "in\n\t\t--socket | --url | --context | -o) "
	       "g+=(\"${COMP_WORDS[i]}\" \"${COMP_WORDS[i+1]}\"); ((i++)) ;;\n\t\t-*) ;;\n\t\t*) "
	       "w+=(\"${COMP_WORDS[i]}\") ;;\n\t\tesac\n\tdone\n"
	       "\tif [ ${#w[@]} -eq 0 ]; then\n\t\tCOMPREPLY=($(compgen -W '");
	for (const char *const *n = verb_names(); *n; n++) {
		char first[64];

		snprintf(first, sizeof(first), "%.*s", (int)strcspn(*n, " "), *n);
		if (strcmp(first, last))
			printf("%s ", first);
		last = *n;
	}
	for (size_t i = 0; i < sizeof(help_globals) / sizeof(help_globals[0]); i++)
		printf("%s ", help_globals[i].flag);
	printf(
	    "' -- \"$cur\"))\n\t\treturn\n\tfi\n\tverb=\"${w[0]} ${w[1]:-}\"\n\tcase $verb in\n");
	for (unsigned i = 0; i < ROUTE_COUNT; i++) {
		const struct schema_route *r = &schema_routes[i];
		bool two = r->cli && strchr(r->cli, ' ');

		if (!r->cli)
			continue;
		printf("\t'%s%s)\n\t\tcase $cur in\n\t\t-*) COMPREPLY=($(compgen -W '", r->cli,
		       two ? "'" : " '*");
		help_flags(r, help_complete_flag);
		printf("' -- \"$cur\")) ;;\n");
		if (strchr(r->path, '{') && r->resource->plural)
			printf("\t\t*) COMPREPLY=($(compgen -W \"$(vmctl \"${g[@]}\" -q %s "
			       "2>/dev/null)\" -- \"$cur\")) ;;\n",
			       !strcmp(r->resource->name, "guest")	 ? "ls"
			       : !strcmp(r->resource->name, "network")	 ? "net ls"
			       : !strcmp(r->resource->name, "operation") ? "ops"
			       : !strcmp(r->resource->name, "disk")	 ? "disk ls"
			       : !strcmp(r->resource->name, "image")	 ? "image ls"
			       : !strcmp(r->resource->name, "pool")	 ? "pool ls"
			       : !strcmp(r->resource->name, "snapshot")	 ? "snapshot ls"
			       : !strcmp(r->resource->name, "forward")	 ? "forward ls"
									 : "token ls");
		else
			printf("\t\t*) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n");
		printf("\t\tesac ;;\n");
	}
	printf("\t*)\n\t\tCOMPREPLY=($(compgen -W \"$(case ${w[0]} in\n");
	for (unsigned i = 0; i < ROUTE_COUNT; i++)
		if (schema_routes[i].cli && strchr(schema_routes[i].cli, ' '))
			printf("\t\t\t%.*s) echo %s ;;&\n", (int)strcspn(schema_routes[i].cli, " "),
			       schema_routes[i].cli, strchr(schema_routes[i].cli, ' ') + 1);
	printf("\t\tesac)\" -- \"$cur\")) ;;\n\tesac\n}\ncomplete -F _vmctl vmctl\n");
	return EX_DONE;
}
