/* guest_state.c - the states of a guest, as one table: which verbs each allows, what may follow it.
 *
 * A refused verb says the state and the verb that would help. No other file decides by comparing
 * states in its own way; they ask gstate_allows().
 */
#include <errno.h>
#include <string.h>

#include "common/overflow.h"
#include "vmd/core/internal.h"

#define TO(s)	(1u << (s))
#define GV_ANY	(GV_RENAME | GV_SET_LIVE)
#define GV_DOWN (GV_ANY | GV_START | GV_DELETE | GV_SET | GV_ATTACH | GV_DETACH)
#define GV_UP \
	(GV_ANY | GV_STOP | GV_FORCE_STOP | GV_RESTART | GV_RESET | GV_CONSOLE | GV_NMI | GV_SAVE)

static const struct gstate_row {
	const char *name;
	bool process;
	uint32_t verbs, next;
	const char *help; /* the command that leads out */
} gstate_rows[G_STATES] = {
	[G_STOPPED] = { "stopped", false, GV_DOWN, TO(G_STARTING) | TO(G_DELETED) | TO(G_FAILED),
			"vmctl start %s" },
	[G_STARTING] = { "starting", true, GV_ANY | GV_STOP | GV_FORCE_STOP,
			 TO(G_RUNNING) | TO(G_FAILED) | TO(G_STOPPED) | TO(G_CRASHED) |
			     TO(G_STOPPING) | TO(G_SAVED),
			 "vmctl wait %s --state running" },
	[G_RUNNING] = { "running", true, GV_UP | GV_PAUSE,
			TO(G_PAUSING) | TO(G_PAUSED) | TO(G_STOPPING) | TO(G_STOPPED) |
			    TO(G_CRASHED) | TO(G_RUNNING) | TO(G_SAVED),
			"vmctl stop %s" },
	[G_PAUSING] = { "pausing", true, GV_ANY | GV_FORCE_STOP,
			TO(G_PAUSED) | TO(G_RUNNING) | TO(G_CRASHED) | TO(G_STOPPED) |
			    TO(G_STOPPING),
			"vmctl wait %s --state paused" },
	[G_PAUSED] = { "paused", true, GV_UP | GV_RESUME,
		       TO(G_RUNNING) | TO(G_STOPPING) | TO(G_STOPPED) | TO(G_CRASHED) | TO(G_SAVED),
		       "vmctl resume %s" },
	[G_STOPPING] = { "stopping", true, GV_ANY | GV_FORCE_STOP,
			 TO(G_STOPPED) | TO(G_CRASHED) | TO(G_RUNNING) | TO(G_PAUSED) | TO(G_SAVED),
			 "vmctl stop %s --force" },
	[G_CRASHED] = { "crashed", false, GV_DOWN, TO(G_STARTING) | TO(G_DELETED) | TO(G_STOPPED),
			"vmctl start %s" },
	[G_FAILED] = { "failed", false, GV_DOWN, TO(G_STARTING) | TO(G_DELETED) | TO(G_STOPPED),
		       "vmctl start %s" },
	/* what it goes on from fits this definition and these disks only */
	[G_SAVED] = { "saved", false, GV_ANY | GV_START | GV_DELETE | GV_DISCARD,
		      TO(G_STARTING) | TO(G_DELETED) | TO(G_STOPPED), "vmctl start %s" },
	[G_DELETED] = { "deleted", false, GV_UNDELETE | GV_DELETE, TO(G_STOPPED) | TO(G_SAVED),
			"vmctl undelete %s" },
};

static const struct {
	enum gverb v;
	const char *name;
} gverb_names[] = {
	{ GV_START, "start" },
	{ GV_STOP, "stop" },
	{ GV_RESTART, "restart" },
	{ GV_RESET, "reset" },
	{ GV_PAUSE, "pause" },
	{ GV_RESUME, "resume" },
	{ GV_RENAME, "rename" },
	{ GV_DELETE, "delete" },
	{ GV_SET, "set of this member" },
	{ GV_SET_LIVE, "set" },
	{ GV_CONSOLE, "console" },
	{ GV_NMI, "nmi" },
	{ GV_UNDELETE, "undelete" },
	{ GV_ATTACH, "attach" },
	{ GV_DETACH, "detach" },
	{ GV_FORCE_STOP, "stop --force" },
	{ GV_SAVE, "save" },
	{ GV_DISCARD, "discard" },
};

const char *gstate_name(enum gstate s)
{
	return gstate_rows[s].name;
}

int gstate_parse(const char *name)
{
	for (int i = 0; name && i < G_STATES; i++)
		if (!strcmp(gstate_rows[i].name, name))
			return i;
	return -1;
}

bool gstate_allows(enum gstate s, enum gverb v)
{
	return (gstate_rows[s].verbs & v) != 0;
}

bool gstate_may_become(enum gstate from, enum gstate to)
{
	return from == to || (gstate_rows[from].next & TO(to)) != 0;
}

bool gstate_has_process(enum gstate s)
{
	return gstate_rows[s].process;
}

const char *gverb_name(enum gverb v)
{
	for (size_t i = 0; i < ARRAY_SIZE(gverb_names); i++)
		if (gverb_names[i].v == v)
			return gverb_names[i].name;
	return "?";
}

int gstate_check(const char *guest, enum gstate s, enum gverb v, struct err *e)
{
	if (gstate_allows(s, v))
		return 0;
	err_set(e, EBUSY, "guest-state-conflict", "guest \"%s\" is %s, which does not allow %s",
		guest, gstate_rows[s].name, gverb_name(v));
	if (v == GV_START && s == G_RUNNING)
		err_hint(e, "it runs already; vmctl restart %s", guest);
	else if (v == GV_START && s == G_PAUSED)
		err_hint(e, "vmctl resume %s", guest);
	else if (v == GV_DELETE && gstate_rows[s].process)
		err_hint(e, "vmctl stop %s, or delete it with --force", guest);
	else if (s == G_SAVED)
		err_hint(e, "vmctl start %s goes on from there, vmctl discard %s gives that up",
			 guest, guest);
	else if (strstr(gstate_rows[s].help, "start"))
		err_hint(e, "vmctl start %s", guest);
	else if (s == G_RUNNING)
		err_hint(e, "vmctl stop %s", guest);
	else if (s == G_PAUSED)
		err_hint(e, "vmctl resume %s", guest);
	else if (s == G_STOPPING)
		err_hint(e, "vmctl stop %s --force", guest);
	else if (s == G_DELETED)
		err_hint(e, "vmctl undelete %s", guest);
	else
		err_hint(e, "vmctl wait %s --state %s", guest,
			 s == G_PAUSING ? "paused" : "running");
	return -EBUSY;
}
