/* nearest.c - the verb that someone may have meant: what other tools call it, the group it belongs to, or
 * a slip of the keys.
 */
#include <stdio.h>
#include <string.h>

#include "common/overflow.h"
#include "common/text.h"
#include "vmctl/vmctl.h"

/* words of other tools (virsh, docker, multipass, qm) for what is called otherwise here */
static const struct {
	const char *theirs, *ours;
} words[] = {
	{ "list", "ls" },	    { "ps", "ls" },
	{ "remove", "rm" },	    { "delete", "rm" },
	{ "rm", "delete" },	    { "show", "info" },
	{ "get", "info" },	    { "describe", "info" },
	{ "dominfo", "info" },	    { "status", "info" },
	{ "stat", "top" },	    { "stats", "top" },
	{ "shutdown", "stop" },	    { "poweroff", "stop" },
	{ "kill", "stop" },	    { "reboot", "restart" },
	{ "suspend", "pause" },	    { "unpause", "resume" },
	{ "continue", "resume" },   { "run", "launch" },
	{ "define", "create" },	    { "new", "create" },
	{ "add", "create" },	    { "undefine", "delete" },
	{ "managedsave", "save" },  { "edit", "set" },
	{ "update", "set" },	    { "attach", "console" },
	{ "log", "logs" },	    { "revert", "restore" },
	{ "copy", "convert" },	    { "mv", "rename" },
	{ "watch", "events" },	    { "autostart", "set" },
	{ "net-list", "net ls" },   { "vol-list", "disk ls" },
	{ "pool-list", "pool ls" }, { "snapshot-list", "snapshot ls" },
	{ "nmi", "debug nmi" },	    { "inject-nmi", "debug nmi" },
};

static const char *verb_named(const char *name)
{
	for (const char *const *p = verb_names(); *p; p++)
		if (!strcmp(*p, name))
			return *p;
	return NULL;
}

static bool verb_is_group(const char *word)
{
	size_t n = strlen(word);

	for (const char *const *p = verb_names(); *p; p++)
		if (!strncmp(*p, word, n) && (*p)[n] == ' ')
			return true;
	return false;
}

/* the verb of @group (which may be empty) that @word means elsewhere */
static const char *verb_translated(const char *group, const char *word)
{
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		char name[128];
		const char *found;

		snprintf(name, sizeof(name), "%s%s%s", group, *group ? " " : "", words[i].ours);
		found = strcmp(words[i].theirs, word) ? NULL : verb_named(name);
		if (found)
			return found;
	}
	return NULL;
}

/* "attach" of "disk attach" */
static const char *verb_ending(const char *word)
{
	for (const char *const *p = verb_names(); *p; p++) {
		const char *last = strrchr(*p, ' ');

		if (last && !strcmp(last + 1, word))
			return *p;
	}
	return NULL;
}

/* a slip in the second word: the first is right, and must not make all its verbs look near */
static const char *verb_of_group(const char *group, const char *word)
{
	const char *ends[128], *const *verbs = verb_names();
	size_t n = 0, len = strlen(group);
	char name[128];

	for (; *verbs && n + 1 < ARRAY_SIZE(ends); verbs++)
		if (!strncmp(*verbs, group, len) && (*verbs)[len] == ' ')
			ends[n++] = *verbs + len + 1;
	ends[n] = NULL;
	word = suggest(word, ends);
	snprintf(name, sizeof(name), "%s %s", group, word ? word : "");
	return word ? verb_named(name) : NULL;
}

const char *verb_nearest(const char *first, const char *second, char said[128])
{
	bool group = verb_is_group(first);
	const char *near;

	snprintf(said, 128, "%s%s%s", first, group && *second ? " " : "", group ? second : "");
	if (group) {
		near = verb_translated(first, second);
		return near ? near : verb_of_group(first, second);
	}
	near = verb_ending(first);
	if (!near)
		near = verb_translated("", first);
	return near ? near : suggest(first, verb_names());
}
