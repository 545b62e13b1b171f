/* config.c - see config.h: one table row a key; parsing, printing, help and did-you-mean come from
 * it.
 * Grammar: a line is empty, a comment from '#', or "key = value"; the value goes to the end of the
 * line, blanks around it dropped. A key twice is an error: which one holds would be a guess.
 */
#include "vmd/config.h"

#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/overflow.h"
#include "common/text.h"
#include "common/units.h"

enum config_kind { CK_PATH, CK_PATHS, CK_WORD, CK_TEXT, CK_NUMBER, CK_SIZE, CK_MODE };

struct config_key {
	const char *name;
	enum config_kind kind;
	size_t off, size;
	uint64_t min, max;
	const char *dflt;
	const char *help;
	const char *words; /* CK_WORD with a closed set: "a|b|c" */
};

#define KEY(n, kind, min, max, dflt, help, words) \
	{ \
#n, kind, offsetof(struct vmd_config, n), sizeof(((struct vmd_config *)0)->n), \
		    min, max, dflt, help, words \
	}

static const struct config_key config_keys[] = {
	KEY(state_dir, CK_PATH, 0, 0, "/var/lib/vmd", "data base, pools, guests' logs", NULL),
	KEY(run_dir, CK_PATH, 0, 0, "/run/vmd", "sockets and what lives as long as a boot", NULL),
	KEY(socket, CK_PATH, 0, 0, "", "API socket; default RUN_DIR/api.sock", NULL),
	KEY(socket_mode, CK_MODE, 0, 0777, "0666",
	    "its mode; who may do what is decided by group, not by mode", NULL),
	KEY(guest_binary, CK_PATH, 0, 0, "", "vmd-guest; default beside vmd, else /usr/lib/vmd",
	    NULL),
	KEY(image_binary, CK_PATH, 0, 0, "", "vmd-image; likewise", NULL),
	KEY(dnsmasq, CK_PATH, 0, 0, "/usr/sbin/dnsmasq", "DHCP and DNS server of networks", NULL),
	KEY(core_user, CK_TEXT, 0, 0, "vmd-core", "user of the core role", NULL),
	KEY(api_user, CK_TEXT, 0, 0, "vmd-api", "user of the api role", NULL),
	KEY(dnsmasq_user, CK_TEXT, 0, 0, "vmd-dhcp", "user of dnsmasq", NULL),
	KEY(admin_group, CK_TEXT, 0, 0, "vmd-admin",
	    "group that may do everything over the API socket", NULL),
	KEY(operator_group, CK_TEXT, 0, 0, "vmd-operator", "group that may run guests", NULL),
	KEY(viewer_group, CK_TEXT, 0, 0, "vmd-viewer", "group that may look", NULL),
	KEY(pool_roots, CK_PATHS, 0, 0, "",
	    "directories beneath which pools may lie, colon-separated", NULL),
	KEY(serial_roots, CK_PATHS, 0, 0, "",
	    "directories beneath which ports' files, sockets and ttys may lie", NULL),
	KEY(guest_uid_first, CK_NUMBER, 1000, 4000000000u, "2000000",
	    "first uid of the guests' range", NULL),
	KEY(guest_uid_count, CK_NUMBER, 1, 1000000, "65536", "size of that range", NULL),
	KEY(guest_log_bytes, CK_SIZE, 65536, 1ull << 40, "4M",
	    "a guest's log is turned over at this size", NULL),
	KEY(guest_log_rate_bytes, CK_SIZE, 1024, 1ull << 30, "64K",
	    "bytes a second that a guest may log", NULL),
	KEY(cgroup, CK_WORD, 0, 0, "auto", "how guests are limited", "auto|v2|v1|none"),
	KEY(accel, CK_WORD, 0, 0, "auto", "accelerator of guests that name none", "auto|kvm|soft"),
	KEY(log_level, CK_WORD, 0, 0, "info", "what is logged", "error|warn|info|debug"),
	KEY(listen, CK_TEXT, 0, 0, "", "ADDRESS:PORT for TLS; empty: none", NULL),
	KEY(tls_cert, CK_PATH, 0, 0, "", "server certificate, PEM, with its chain behind it", NULL),
	KEY(tls_key, CK_PATH, 0, 0, "", "its key", NULL),
	KEY(tls_ca, CK_PATH, 0, 0, "",
	    "authority of client certificates, PEM; empty: bearer tokens only", NULL),
	KEY(tls_client_role, CK_WORD, 0, 0, "viewer",
	    "role of a client certificate that tls_clients does not name",
	    "none|viewer|operator|admin"),
	KEY(tls_clients, CK_TEXT, 0, 0, "",
	    "COMMONNAME:ROLE of client certificates, comma-separated", NULL),
	KEY(host_allow, CK_TEXT, 0, 0, "", "names accepted in a Host header, comma-separated",
	    NULL),
	KEY(max_upload, CK_SIZE, 1u << 20, 1ull << 50, "1T", "largest image taken over the API",
	    NULL),
	KEY(trash_hours, CK_NUMBER, 0, 87600, "72", "hours that a deleted guest can be undeleted",
	    NULL),
	KEY(guests_max, CK_NUMBER, 1, 1000000, "20000", "guests that may be defined", NULL),
	KEY(spawn_max, CK_NUMBER, 1, 256, "8", "guest processes being started at once", NULL),
};

static const struct config_key *config_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++)
		if (!strcmp(config_keys[i].name, name))
			return &config_keys[i];
	return NULL;
}

static int config_path_ok(const char *v)
{
	return v[0] == '/' && !strstr(v, "/../") && !strstr(v, "//");
}

static int config_set_word(const struct config_key *k, const char *value, struct err *e)
{
	char copy[64], *save = NULL;
	const char *words[8];
	unsigned n = 0;

	snprintf(copy, sizeof(copy), "%s", k->words);
	for (char *w = strtok_r(copy, "|", &save); w && n < 7; w = strtok_r(NULL, "|", &save)) {
		words[n++] = w;
		if (!strcmp(w, value))
			return 0;
	}
	words[n] = NULL;
	err_set(e, EINVAL, "config-bad-value", "%s: \"%.64s\" is not one of %s", k->name, value,
		k->words);
	if (suggest(value, words))
		err_hint(e, "did you mean %s?", suggest(value, words));
	return -EINVAL;
}

static int config_number(const struct config_key *k, const char *value, uint64_t *n)
{
	char *end;

	if (k->kind == CK_SIZE)
		return units_parse_size(value, n);
	if (!isdigit((unsigned char)value[0]))
		return -EINVAL;
	errno = 0;
	*n = strtoull(value, &end, k->kind == CK_MODE ? 8 : 10);
	return errno ? -errno : *end ? -EINVAL : 0;
}

int config_set(struct vmd_config *c, const char *key, const char *value, struct err *e)
{
	const struct config_key *k = config_find(key);
	char *at = (char *)c + (k ? k->off : 0);
	uint64_t n;

	if (!k) {
		const char *names[ARRAY_SIZE(config_keys) + 1] = { NULL };

		for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++)
			names[i] = config_keys[i].name;
		const char *near = suggest(key, names);

		err_set(e, EINVAL, "config-unknown-key", "unknown key \"%.64s\"", key);
		err_hint(e, near ? "did you mean %s?" : "man vmd.conf lists the keys%s",
			 near ? near : "");
		return -EINVAL;
	}
	if (k->kind == CK_NUMBER || k->kind == CK_SIZE || k->kind == CK_MODE) {
		int ret = config_number(k, value, &n);

		if (ret < 0)
			return err_set(e, EINVAL, "config-bad-value", "%s: \"%.64s\" is not a %s",
				       k->name, value,
				       k->kind == CK_SIZE   ? "size, as 512K or 4M"
				       : k->kind == CK_MODE ? "mode, as 0660"
							    : "number");
		if (n < k->min || n > k->max)
			return err_set(e, ERANGE, "config-bad-value",
				       "%s: %s is out of range, %llu to %llu", k->name, value,
				       (unsigned long long)k->min, (unsigned long long)k->max);
		memcpy(at, &n, sizeof(n));
		return 0;
	}
	if (strlen(value) >= k->size)
		return err_set(e, ENAMETOOLONG, "config-bad-value", "%s: longer than %zu bytes",
			       k->name, k->size - 1);
	if (k->kind == CK_WORD && config_set_word(k, value, e) < 0)
		return -EINVAL;
	if ((k->kind == CK_PATH || k->kind == CK_PATHS) && *value && !config_path_ok(value))
		return err_set(e, EINVAL, "config-bad-value",
			       "%s: \"%.200s\" is not an absolute path", k->name, value);
	memcpy(at, value, strlen(value) + 1);
	return 0;
}

void config_defaults(struct vmd_config *c, bool user_mode)
{
	memset(c, 0, sizeof(*c));
	c->user_mode = user_mode;
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++)
		if (config_set(c, config_keys[i].name, config_keys[i].dflt, NULL) < 0)
			abort(); /* our own table */
	if (!user_mode)
		return;
	const char *home = getenv("HOME"), *state = getenv("XDG_STATE_HOME"),
		   *run = getenv("XDG_RUNTIME_DIR");

	if (state && *state == '/')
		snprintf(c->state_dir, sizeof(c->state_dir), "%s/vmd", state);
	else
		snprintf(c->state_dir, sizeof(c->state_dir), "%s/.local/state/vmd",
			 home && *home == '/' ? home : "/tmp");
	if (run && *run == '/')
		snprintf(c->run_dir, sizeof(c->run_dir), "%s/vmd", run);
	else
		snprintf(c->run_dir, sizeof(c->run_dir), "/tmp/vmd-%u", (unsigned)getuid());
	c->socket_mode = 0600;
}

static char *config_trim(char *s)
{
	while (*s == ' ' || *s == '\t')
		s++;
	for (size_t n = strlen(s); n && strchr(" \t\r\n", s[n - 1]); n--)
		s[n - 1] = '\0';
	return s;
}

static int config_line(struct vmd_config *c, char *line, bool seen[], struct err *e)
{
	char *s = config_trim(line), *eq;

	if (!*s || *s == '#')
		return 0;
	eq = strchr(s, '=');
	if (!eq)
		return err_set(e, EINVAL, "config-syntax",
			       "\"%.64s\" is not of the form key = value", s);
	*eq = '\0';
	s = config_trim(s);
	const struct config_key *k = config_find(s);

	if (k && seen[k - config_keys])
		return err_set(e, EINVAL, "config-twice", "%s was set before", s);
	int ret = config_set(c, s, config_trim(eq + 1), e);

	if (!ret && k)
		seen[k - config_keys] = true;
	return ret;
}

int config_read(struct vmd_config *c, const char *path, bool must_exist, struct err *e)
{
	bool seen[ARRAY_SIZE(config_keys)] = { false };
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t cap = 0;
	unsigned n = 0;
	int ret = 0;

	if (!f && errno == ENOENT && !must_exist)
		return 0;
	if (!f)
		return err_set(e, errno, "config-unreadable", "%s: %s", path, strerror(errno));
	while (!ret && getline(&line, &cap, f) >= 0) {
		n++;
		ret = config_line(c, line, seen, e);
	}
	if (ret)
		err_prefix(e, "%s:%u", path, n);
	else if (ferror(f))
		ret = err_set(e, EIO, "config-unreadable", "%s: cannot be read", path);
	free(line);
	fclose(f);
	return ret;
}

/* config_program() - @out empty: the program beside our own, else the installed one. */
static void config_program(char *out, size_t len, const char *name)
{
	char self[240];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (*out)
		return;
	if (n > 0) {
		self[n] = '\0';
		char *slash = strrchr(self, '/');

		if (slash) {
			*slash = '\0';
			snprintf(out, len, "%.200s/%s", self, name);
			if (access(out, X_OK) == 0)
				return;
		}
	}
	snprintf(out, len, "/usr/lib/vmd/%s", name);
}

/* "alice:admin, build host:operator" */
static int config_clients_ok(const char *list, struct err *e)
{
	static const char *const roles[] = { "none", "viewer", "operator", "admin" };

	while (*list) {
		size_t n = strcspn(list, ","), role;
		const char *colon;
		bool ok = false;

		while (n && list[n - 1] == ' ')
			n--;
		colon = memrchr(list, ':', n);
		role = colon ? n - (size_t)(colon - list) - 1 : 0;
		for (size_t i = 0; colon && colon > list && i < ARRAY_SIZE(roles); i++)
			ok |= strlen(roles[i]) == role && !memcmp(roles[i], colon + 1, role);
		if (!ok) {
			err_set(e, EINVAL, "config-bad-value",
				"tls_clients: \"%.*s\" is not of the form COMMONNAME:ROLE",
				(int)(n < 64 ? n : 64), list);
			err_hint(e, "ROLE is one of none, viewer, operator, admin");
			return -EINVAL;
		}
		list += strcspn(list, ",");
		list += strspn(list, ", ");
	}
	return 0;
}

int config_finish(struct vmd_config *c, struct err *e)
{
	if (!*c->socket && strlen(c->run_dir) + sizeof("/api.sock") > sizeof(c->socket))
		return err_set(e, ENAMETOOLONG, "config-bad-value", "run_dir: too long");
	if (!*c->socket) {
		size_t n = strlen(c->run_dir);

		memcpy(c->socket, c->run_dir, n);
		memcpy(c->socket + n, "/api.sock", sizeof("/api.sock"));
	}
	/* sockaddr_un: 107 bytes; a guest's socket is run_dir/guests/UUID.sock */
	if (strlen(c->socket) > 107 || strlen(c->run_dir) > 107 - sizeof("/guests/.sock") - 36)
		return err_set(e, ENAMETOOLONG, "config-bad-value",
			       "run_dir or socket: too long for a unix socket, at most %zu bytes",
			       107 - sizeof("/guests/.sock") - 36);
	if (c->guest_uid_first + c->guest_uid_count > UINT32_MAX - 1)
		return err_set(e, ERANGE, "config-bad-value",
			       "guest_uid_first + guest_uid_count is beyond the last uid");
	if (*c->listen && (!*c->tls_cert || !*c->tls_key))
		return err_set(
		    e, EINVAL, "config-bad-value",
		    "listen needs tls_cert and tls_key: there is no plain HTTP over TCP");
	if (config_clients_ok(c->tls_clients, e) < 0)
		return -EINVAL;
	if (*c->tls_clients && !*c->tls_ca)
		return err_set(e, EINVAL, "config-bad-value",
			       "tls_clients needs tls_ca, which says whose certificates count");
	config_program(c->guest_binary, sizeof(c->guest_binary), "vmd-guest");
	config_program(c->image_binary, sizeof(c->image_binary), "vmd-image");
	return 0;
}

size_t config_text(const struct vmd_config *c, char *buf, size_t len)
{
	size_t n = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++) {
		const struct config_key *k = &config_keys[i];
		const char *at = (const char *)c + k->off;
		uint64_t v;
		int w;

		if (k->kind == CK_NUMBER || k->kind == CK_SIZE || k->kind == CK_MODE) {
			memcpy(&v, at, sizeof(v));
			w = snprintf(buf + n, len - n,
				     k->kind == CK_MODE ? "%s=%04llo\n" : "%s=%llu\n", k->name,
				     (unsigned long long)v);
		} else {
			w = snprintf(buf + n, len - n, "%s=%s\n", k->name, at);
		}
		if (w < 0 || (size_t)w >= len - n) {
			buf[n] = '\0';
			break;
		}
		n += (size_t)w;
	}
	return n;
}

size_t config_settings(const struct vmd_config *c, char *buf, size_t len)
{
	const struct {
		const char *key, *group;
	} rows[] = { { "admin_gid", c->admin_group },
		     { "operator_gid", c->operator_group },
		     { "viewer_gid", c->viewer_group } };
	size_t n = config_text(c, buf, len);

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct group *g = *rows[i].group ? getgrnam(rows[i].group) : NULL;
		int w =
		    g ? snprintf(buf + n, len - n, "%s=%u\n", rows[i].key, (unsigned)g->gr_gid) : 0;

		if (w < 0 || (size_t)w >= len - n) {
			buf[n] = '\0';
			break;
		}
		n += (size_t)w;
	}
	return n;
}

void config_help(FILE *f)
{
	for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++)
		fprintf(f, "  %-22s %s%s%s%s\n", config_keys[i].name, config_keys[i].help,
			*config_keys[i].dflt ? " (" : "", config_keys[i].dflt,
			*config_keys[i].dflt ? ")" : "");
}
