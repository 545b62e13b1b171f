/* main.c - vmctl: global options, the daemon to talk to, then the verb. Exit codes are in vmctl(1).
 */
#include "vmctl/vmctl.h"

#include <errno.h>
#include <stdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A line of the contexts file: NAME key=value ..., keys socket, url, token, ca, cert, key. */
static int main_context(struct vmctl *v, const char *name, struct err *e)
{
	const char *home = getenv("HOME"), *config = getenv("XDG_CONFIG_HOME");
	static char line[2048];
	char path[512];
	FILE *f;

	if (config)
		snprintf(path, sizeof(path), "%s/vmd/contexts", config);
	else
		snprintf(path, sizeof(path), "%s/.config/vmd/contexts", home ? home : "");
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		char *save = NULL, *word = strtok_r(line, " \t\n", &save);

		if (!word || strcmp(word, name))
			continue;
		while ((word = strtok_r(NULL, " \t\n", &save))) {
			char *eq = strchr(word, '=');

			if (eq)
				*eq++ = '\0';
			if (eq && !strcmp(word, "socket"))
				v->socket = eq;
			else if (eq && !strcmp(word, "url"))
				v->url = eq;
			else if (eq && !strcmp(word, "token"))
				v->token = eq;
			else if (eq && !strcmp(word, "ca"))
				v->ca = eq;
			else if (eq && !strcmp(word, "cert"))
				v->cert = eq;
			else if (eq && !strcmp(word, "key"))
				v->key = eq;
			else {
				fclose(f);
				return err_set(e, EINVAL, "usage",
					       "%s: context %s: \"%s\" is not understood", path,
					       name, word);
			}
		}
		fclose(f);
		return 0;
	}
	if (f)
		fclose(f);
	return err_set(e, ENOENT, "usage", "there is no context \"%s\" in %s", name, path);
}

static const char *main_socket(void)
{
	static char path[256];
	const char *run = getenv("XDG_RUNTIME_DIR");

	/* root's daemon; else one's own, where it runs */
	if (access("/run/vmd/api.sock", F_OK) == 0 || geteuid() == 0)
		return "/run/vmd/api.sock";
	if (run)
		snprintf(path, sizeof(path), "%s/vmd/api.sock", run);
	else
		snprintf(path, sizeof(path), "/tmp/vmd-%u/api.sock", (unsigned)getuid());
	return access(path, F_OK) == 0 ? path : "/run/vmd/api.sock";
}

/* options before the verb. Return: index of the verb; -EINVAL */
static int main_options(struct vmctl *v, int argc, char **argv, const char **context, struct err *e)
{
	static const char *const names[] = { "--socket",  "--url",     "--context", "--output",
					     "--quiet",	  "--no-wait", "--dry-run", "--help",
					     "--version", NULL };
	int i;

	for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		char *eq = argv[i][1] == '-' ? strchr(argv[i], '=') : NULL,
		     *value = eq	     ? eq + 1
			      : i + 1 < argc ? argv[i + 1]
					     : NULL;
		const char **into = NULL;
		size_t n = eq ? (size_t)(eq - argv[i]) : strlen(argv[i]);
		bool format =
		    !strncmp(argv[i], "-o", n) || (n == 8 && !strncmp(argv[i], "--output", n));

		if (!strcmp(argv[i], "-q") || !strcmp(argv[i], "--quiet"))
			v->quiet = true;
		else if (!strcmp(argv[i], "--no-wait"))
			v->no_wait = true;
		else if (!strcmp(argv[i], "--dry-run"))
			v->dry_run = true;
		else if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
			return 0;
		else if (!strcmp(argv[i], "--version"))
			return 0;
		else if (n == 8 && !strncmp(argv[i], "--socket", n))
			into = &v->socket;
		else if (n == 5 && !strncmp(argv[i], "--url", n))
			into = &v->url;
		else if (n == 9 && !strncmp(argv[i], "--context", n))
			into = context;
		else if (!format) {
			const char *near = suggest(argv[i], names);

			err_set(e, EINVAL, "usage", "there is no option %s", argv[i]);
			err_hint(e, near ? "did you mean %s?" : "vmctl help%s", near ? near : "");
			return -EINVAL;
		}
		if (!into && !format)
			continue;
		if (!value)
			return err_set(e, EINVAL, "usage", "%s wants a value", argv[i]);
		if (format && out_format(v, value, e) < 0)
			return -EINVAL;
		if (into)
			*into = value;
		if (into == &v->socket)
			v->url = NULL; /* said here beats VMD_URL */
		i += !eq;
	}
	return i;
}

int main(int argc, char **argv)
{
	struct vmctl v = { .url = getenv("VMD_URL"),
			   .socket = getenv("VMD_SOCKET"),
			   .token = getenv("VMD_TOKEN"),
			   .ca = getenv("VMD_CA"),
			   .cert = getenv("VMD_CERT"),
			   .key = getenv("VMD_KEY") };
	const char *context = getenv("VMD_CONTEXT");
	struct err e = { 0 };
	int at, status;

	signal(SIGPIPE, SIG_DFL);
	v.color = isatty(1) && !(getenv("NO_COLOR") && *getenv("NO_COLOR"));
	at = main_options(&v, argc, argv, &context, &e);
	if (at == 0) {
		for (int i = 1; i < argc; i++)
			if (!strcmp(argv[i], "--version")) {
				printf("vmctl %s\n", VMD_VERSION);
				return EX_DONE;
			}
		return help_run(&v, 0, NULL);
	}
	if (at > 0 && context && *context && !v.url && !v.socket &&
	    main_context(&v, context, &e) < 0)
		at = -1;
	if (at < 0) {
		out_error(&v, &e);
		return EX_USAGE_;
	}
	if (v.url && !*v.url)
		v.url = NULL;
	if (!v.socket || !*v.socket)
		v.socket = main_socket();
	if (at >= argc) {
		help_run(&v, 0, NULL);
		return EX_USAGE_;
	}
	status = verb_run(&v, argc - at, argv + at);
	client_close(&v);
	if (fflush(stdout) || ferror(stdout))
		status = status ? status : EX_FAILED_;
	return status;
}
