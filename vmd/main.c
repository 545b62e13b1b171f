/* main.c - vmd: options, vmd.conf(5), the listening socket; then priv, or one of the roles that
 * priv starts.
 *
 *	vmd [--user] [--config F] [--state DIR] [--run DIR] [--socket PATH] [--foreground] [--check-config] ...
 * With --role (priv's own doing) this is a role: it gives up its uid, its root directory, its
 * capabilities and the system calls that no role needs, and only then runs a line of the role's
 * code. Descriptor 3 is its link to priv, 4 the directory that becomes its root (core: the data
 * base's; api: an empty one). vmd never forks to the background by itself: systemd, or a shell's &,
 * does that.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/sandbox.h"
#include "common/text.h"
#include "common/tls.h"
#include "vmd/config.h"
#include "vmd/listen.h"
#include "vmd/priv/priv.h"
#include "vmd/restore.h"
#include "vmd/roles.h"

#define VMD_VERSION "0.1"
#define CONFIG_PATH "/etc/vmd/vmd.conf"

/* ---- roles ---- */

static const uint32_t role_clone[] = { CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND |
				       CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
				       CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID };
static const uint32_t role_socket[] = { AF_UNIX };

/* Both roles: descriptors they were given, memory, threads, time. No new network sockets, no
 * processes, no mounts. */
/* clang-format off */
static const struct sandbox_rule role_common[] = {
	SB_ALLOW(read), SB_ALLOW(write), SB_ALLOW(readv), SB_ALLOW(writev), SB_ALLOW(pread64), SB_ALLOW(pwrite64),
	SB_ALLOW(close), SB_ALLOW(fstat), SB_ALLOW(newfstatat), SB_ALLOW(lseek), SB_ALLOW(fcntl), SB_ALLOW(dup), SB_ALLOW(dup2),
	SB_ALLOW(dup3), SB_ALLOW(ioctl), SB_ALLOW(poll), SB_ALLOW(ppoll), SB_ALLOW(select), SB_ALLOW(pselect6),
	SB_ALLOW(epoll_create1), SB_ALLOW(epoll_ctl), SB_ALLOW(epoll_wait), SB_ALLOW(epoll_pwait), SB_ALLOW(eventfd2),
	SB_ALLOW(timerfd_create), SB_ALLOW(timerfd_settime), SB_ALLOW(timerfd_gettime), SB_ALLOW(signalfd4), SB_ALLOW(pipe2),
	SB_ALLOW(accept), SB_ALLOW(accept4), SB_ALLOW(recvmsg), SB_ALLOW(sendmsg), SB_ALLOW(recvfrom), SB_ALLOW(sendto),
	SB_ALLOW(sendmmsg), SB_ALLOW(sendfile), SB_ALLOW(getsockopt), SB_ALLOW(setsockopt), SB_ALLOW(getsockname),
	SB_ALLOW(getpeername), SB_ALLOW(shutdown), SB_ALLOW(listen),
	SB_ARG_IN(socketpair, 0, role_socket, ARRAY_SIZE(role_socket)),
	SB_NO_BITS(mmap, 2, PROT_EXEC), SB_NO_BITS(mprotect, 2, PROT_EXEC), SB_ALLOW(munmap), SB_ALLOW(mremap),
	SB_ALLOW(madvise), SB_ALLOW(brk), SB_ALLOW(memfd_create), SB_ALLOW(futex), SB_ALLOW(sched_yield),
	SB_ALLOW(sched_getaffinity), SB_ALLOW(clock_gettime), SB_ALLOW(clock_getres), SB_ALLOW(clock_nanosleep),
	SB_ALLOW(nanosleep), SB_ALLOW(gettimeofday), SB_ALLOW(getrandom), SB_ALLOW(getpid), SB_ALLOW(gettid), SB_ALLOW(getppid),
	SB_ALLOW(getuid), SB_ALLOW(geteuid), SB_ALLOW(getgid), SB_ALLOW(getegid), SB_ALLOW(uname), SB_ALLOW(sysinfo),
	SB_ALLOW(getrusage), SB_ALLOW(times), SB_ALLOW(prlimit64), SB_ALLOW(rt_sigaction), SB_ALLOW(rt_sigprocmask),
	SB_ALLOW(rt_sigreturn), SB_ALLOW(sigaltstack), SB_ALLOW(restart_syscall), SB_ALLOW(exit), SB_ALLOW(exit_group),
	SB_ALLOW(set_robust_list), SB_ALLOW(rseq), SB_ALLOW(membarrier), SB_ALLOW(prctl), SB_ALLOW(getcwd),
	SB_ALLOW(pidfd_send_signal),
	SB_ARG_IN(clone, 0, role_clone, ARRAY_SIZE(role_clone)), SB_ERRNO(clone3, ENOSYS),
	SB_END,
};
/* clang-format on */

/* core: sqlite's files in its own directory, logs and leases by descriptor */
/* clang-format off */
static const struct sandbox_rule role_core[] = {
	SB_ALLOW(openat), SB_ALLOW(open), SB_ALLOW(access), SB_ALLOW(faccessat), SB_ALLOW(faccessat2), SB_ALLOW(stat),
	SB_ALLOW(lstat), SB_ALLOW(unlink), SB_ALLOW(unlinkat), SB_ALLOW(rename), SB_ALLOW(renameat), SB_ALLOW(renameat2),
	SB_ALLOW(mkdir), SB_ALLOW(mkdirat), SB_ALLOW(rmdir), SB_ALLOW(fsync), SB_ALLOW(fdatasync), SB_ALLOW(ftruncate),
	SB_ALLOW(fallocate), SB_ALLOW(fadvise64), SB_ALLOW(fchmod), SB_ALLOW(fchown), SB_ALLOW(flock), SB_ALLOW(getdents64),
	SB_ALLOW(readlink), SB_ALLOW(fchdir), SB_ALLOW(chdir), SB_ALLOW(statfs), SB_ALLOW(fstatfs), SB_ALLOW(utimensat),
	SB_END,
};
/* clang-format on */

/* api: no path at all */
/* clang-format off */
static const struct sandbox_rule role_api[] = {
	SB_ERRNO(openat, ENOENT), SB_ERRNO(open, ENOENT), SB_ERRNO(access, ENOENT), SB_ERRNO(stat, ENOENT),
	SB_END,
};
/* clang-format on */

static int role_confine(const char *role, uid_t uid, gid_t gid, bool root, struct err *e)
{
	const struct sandbox_rule *const lists[] = { strcmp(role, "core") ? role_api : role_core,
						     role_common, NULL };
	struct rlimit none = { 0, 0 }, nofile;

	if (fchdir(4) < 0)
		return err_set(e, errno, "role-failed", "role %s: cannot enter its directory: %s",
			       role, strerror(errno));
	close(4);
	if (getrlimit(RLIMIT_NOFILE, &nofile) == 0) {
		nofile.rlim_cur = nofile.rlim_max;
		setrlimit(RLIMIT_NOFILE, &nofile);
	}
	setrlimit(RLIMIT_CORE, &none);
	/* what libraries open on first use they open now */
	tzset();
	if (root) {
		if (chroot(".") < 0)
			return err_set(e, errno, "role-failed", "role %s: chroot: %s", role,
				       strerror(errno));
		sandbox_drop_bounding();
		if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 ||
		    setresuid(uid, uid, uid) < 0)
			return err_set(e, errno, "role-failed", "role %s: cannot become uid %u: %s",
				       role, (unsigned)uid, strerror(errno));
	}
	umask(077);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	int ret = sandbox_drop_caps();

	if (ret < 0 && root)
		return err_set(e, -ret, "role-failed", "role %s: cannot drop its capabilities: %s",
			       role, strerror(-ret));
	ret = sandbox_seccomp(lists, true);
	if (ret < 0)
		return err_set(e, -ret, "role-failed", "role %s: cannot give up system calls: %s",
			       role, strerror(-ret));
	return 0;
}

/* @tls: this api speaks TLS: the library is loaded while there are paths and executable mappings */
static int role_run(const char *role, const char *ids, bool root, bool tls)
{
	unsigned uid, gid;
	struct err e = { 0 };
	struct stat st;

	log_open(role, NULL, 2, LOG_INFO_);
	signal(SIGPIPE, SIG_IGN);
	if ((strcmp(role, "core") && strcmp(role, "api")) || !ids ||
	    sscanf(ids, "%u:%u", &uid, &gid) != 2 || fstat(3, &st) < 0 || !S_ISSOCK(st.st_mode)) {
		log_error("--role is for vmd's own use");
		return 2;
	}
	prctl(PR_SET_NAME, strcmp(role, "core") ? "vmd-api" : "vmd-core", 0, 0, 0);
	prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
	if ((tls && tls_load(&e) < 0) || role_confine(role, uid, gid, root, &e) < 0) {
		log_error("%s", e.detail);
		return 1;
	}
	fd_set_cloexec(3);
	return strcmp(role, "core") ? api_main(3) : core_main(3);
}

/* ---- the daemon ---- */

static void main_usage(FILE *f)
{
	fputs(
	    "usage: vmd [OPTION]...\n"
	    "The daemon that runs virtual machines. It stays in the foreground; guests outlive "
	    "it.\n\n"
	    "  --user           rootless: as yourself, below your XDG directories\n"
	    "  --config FILE    instead of " CONFIG_PATH "\n"
	    "  --state DIR      state_dir\n"
	    "  --run DIR        run_dir\n"
	    "  --socket PATH    socket: where the API listens\n"
	    "  --set KEY=VALUE  any key of vmd.conf(5)\n"
	    "  --foreground     accepted for the sake of habit; vmd never leaves the foreground\n"
	    "  --restore        put the last copy of the data base in its place, keep the damaged "
	    "one, and exit\n"
	    "  --restore=FILE   another copy; --restore=empty: begin a new one\n"
	    "  --check-config   read the configuration, print it, and exit\n"
	    "  --version        print the version and exit\n"
	    "  --help           print this and exit\n\n"
	    "vmd.conf holds \"key = value\" lines:\n",
	    f);
	config_help(f);
}

enum {
	OPT_USER = 256,
	OPT_CONFIG,
	OPT_STATE,
	OPT_RUN,
	OPT_SOCKET,
	OPT_SET,
	OPT_FOREGROUND,
	OPT_RESTORE,
	OPT_CHECK,
	OPT_VERSION,
	OPT_HELP,
	OPT_ROLE,
	OPT_ROLE_IDS,
	OPT_ROLE_ROOT,
	OPT_ROLE_USER,
	OPT_ROLE_TLS
};

static const struct option main_options[] = {
	{ "user", no_argument, NULL, OPT_USER },
	{ "config", required_argument, NULL, OPT_CONFIG },
	{ "state", required_argument, NULL, OPT_STATE },
	{ "run", required_argument, NULL, OPT_RUN },
	{ "socket", required_argument, NULL, OPT_SOCKET },
	{ "set", required_argument, NULL, OPT_SET },
	{ "foreground", no_argument, NULL, OPT_FOREGROUND },
	{ "restore", optional_argument, NULL, OPT_RESTORE },
	{ "check-config", no_argument, NULL, OPT_CHECK },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "role", required_argument, NULL, OPT_ROLE },
	{ "role-ids", required_argument, NULL, OPT_ROLE_IDS },
	{ "role-root", no_argument, NULL, OPT_ROLE_ROOT },
	{ "role-user", no_argument, NULL, OPT_ROLE_USER },
	{ "role-tls", no_argument, NULL, OPT_ROLE_TLS },
	{ NULL, 0, NULL, 0 },
};

#define MAIN_SETS_MAX 64

struct main_args {
	const char *config, *role, *role_ids, *restore;
	bool user, check, role_root, role_tls;
	/* "key=value" in order, from --set and the options that are one key */
	char *sets[MAIN_SETS_MAX];
	unsigned nsets;
};

static int main_add_set(struct main_args *a, const char *key, const char *value)
{
	if (a->nsets == MAIN_SETS_MAX || (key ? asprintf(&a->sets[a->nsets], "%s=%s", key, value)
					      : asprintf(&a->sets[a->nsets], "%s", value)) < 0)
		return -ENOMEM;
	a->nsets++;
	return 0;
}

/* main_path() - options take relative paths too; the configuration does not. */
static int main_add_path(struct main_args *a, const char *key, const char *value)
{
	char cwd[256], path[600];

	if (value[0] == '/')
		return main_add_set(a, key, value);
	if (!getcwd(cwd, sizeof(cwd)))
		return -errno;
	snprintf(path, sizeof(path), "%s/%s", cwd, strncmp(value, "./", 2) ? value : value + 2);
	return main_add_set(a, key, path);
}

/* Return: -1 go on, else the exit status. */
static int main_parse(struct main_args *a, int argc, char **argv)
{
	int c, ret = 0;

	while ((c = getopt_long(argc, argv, "", main_options, NULL)) >= 0) {
		const char *arg = optarg ? optarg : "";

		switch (c) {
		case OPT_USER:
			a->user = true;
			break;
		case OPT_CONFIG:
			a->config = arg;
			break;
		case OPT_STATE:
			ret = main_add_path(a, "state_dir", arg);
			break;
		case OPT_RUN:
			ret = main_add_path(a, "run_dir", arg);
			break;
		case OPT_SOCKET:
			ret = main_add_path(a, "socket", arg);
			break;
		case OPT_SET:
			ret = strchr(arg, '=') ? main_add_set(a, NULL, arg) : -EINVAL;
			break;
		case OPT_FOREGROUND:
			break;
		case OPT_RESTORE:
			a->restore = arg;
			break;
		case OPT_CHECK:
			a->check = true;
			break;
		case OPT_VERSION:
			puts("vmd " VMD_VERSION);
			return 0;
		case OPT_HELP:
			main_usage(stdout);
			return 0;
		case OPT_ROLE:
			a->role = optarg;
			break;
		case OPT_ROLE_IDS:
			a->role_ids = optarg;
			break;
		case OPT_ROLE_ROOT:
			a->role_root = true;
			break;
		case OPT_ROLE_USER:
			break;
		case OPT_ROLE_TLS:
			a->role_tls = true;
			break;
		default:
			fputs("vmd --help lists the options\n", stderr);
			return 2;
		}
		if (ret < 0) {
			fprintf(stderr, "vmd: %s: %s\n", optarg, strerror(-ret));
			return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "vmd: unexpected argument \"%s\"; vmd --help lists the options\n",
			argv[optind]);
		return 2;
	}
	return -1;
}

static int main_config(const struct main_args *a, struct vmd_config *c, struct err *e)
{
	char user_path[512];
	const char *home = getenv("HOME"), *xdg = getenv("XDG_CONFIG_HOME");
	const char *path = a->config ? a->config : CONFIG_PATH;

	config_defaults(c, a->user);
	if (!a->config && a->user) {
		snprintf(user_path, sizeof(user_path), "%.240s%s/vmd/vmd.conf",
			 xdg && *xdg ? xdg
			 : home	     ? home
				     : "",
			 xdg && *xdg ? "" : "/.config");
		path = user_path;
	}
	int ret = config_read(c, path, a->config != NULL, e);

	for (unsigned i = 0; !ret && i < a->nsets; i++) {
		char *eq = strchr(a->sets[i], '=');

		*eq = '\0';
		ret = config_set(c, a->sets[i], eq + 1, e);
		if (ret)
			err_prefix(e, "option");
	}
	return ret ? ret : config_finish(c, e);
}

/* mkdir -p for one's own directories */
static void main_make_dirs(const char *path)
{
	char buf[256];

	for (const char *s = strchr(path + 1, '/'); s; s = strchr(s + 1, '/')) {
		snprintf(buf, sizeof(buf), "%.*s", (int)(s - path), path);
		mkdir(buf, 0755);
	}
}

int main(int argc, char **argv)
{
	static struct vmd_config cfg;
	static struct vmd_listen lst;
	struct main_args a = { 0 };
	struct err e = { 0 };
	int ret = main_parse(&a, argc, argv);

	if (ret >= 0)
		return ret;
	if (a.role)
		return role_run(a.role, a.role_ids, a.role_root, a.role_tls);
	log_open("priv", NULL, 2, LOG_INFO_);
	if (!a.user && geteuid() != 0 && !a.check) {
		fputs("vmd: not root: use vmd --user for a daemon of your own\n", stderr);
		return 1;
	}
	if (main_config(&a, &cfg, &e) < 0 || (a.check && listen_check(&cfg, &e) < 0)) {
		fprintf(stderr, "vmd: %s%s%s\n", e.detail, *e.hint ? "; " : "", e.hint);
		return 2;
	}
	if (a.check) {
		char text[8192];

		config_text(&cfg, text, sizeof(text));
		fputs(text, stdout);
		return 0;
	}
	log_set_level(!strcmp(cfg.log_level, "debug")	? LOG_DEBUG_
		      : !strcmp(cfg.log_level, "warn")	? LOG_WARN_
		      : !strcmp(cfg.log_level, "error") ? LOG_ERR_
							: LOG_INFO_);
	if (a.restore)
		return restore_db(&cfg, a.restore);
	main_make_dirs(cfg.state_dir);
	main_make_dirs(cfg.run_dir);
	mkdir(cfg.run_dir, 0755);
	/* 0, 1, 2 must be open: a socket that landed there would be logged into */
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
			return 1;
	if (listen_open(&lst, &cfg, &e) < 0) {
		log_error("%s%s%s", e.detail, *e.hint ? "; " : "", e.hint);
		return 1;
	}
	return priv_main(&cfg, &lst);
}
