/* log.c - see log.h. State is set once at start (log_open) and read by every thread after. */
#include "common/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int log_fd = 2;
static char log_role[80] = "vmd";
static bool log_journal;
static _Atomic int log_max = LOG_INFO_;

/* The journal is at the far end where JOURNAL_STREAM names our fd's device and inode
 * (systemd.exec(5)). */
static bool log_is_journal(int fd)
{
	const char *s = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return s && sscanf(s, "%llu:%llu", &dev, &ino) == 2 && fstat(fd, &st) == 0 &&
	       st.st_dev == dev && st.st_ino == ino;
}

void log_open(const char *role, const char *id, int fd, enum log_level max)
{
	if (id && *id)
		snprintf(log_role, sizeof(log_role), "%s[%s]", role, id);
	else
		snprintf(log_role, sizeof(log_role), "%s", role);
	log_fd = fd;
	log_journal = log_is_journal(fd);
	log_max = max;
}

void log_set_level(enum log_level max)
{
	log_max = max;
}

bool log_wants(enum log_level level)
{
	return (int)level <= log_max;
}

static const char *log_level_name(enum log_level level)
{
	switch (level) {
	case LOG_ERR_:
		return "error";
	case LOG_WARN_:
		return "warn ";
	case LOG_INFO_:
		return "info ";
	default:
		return "debug";
	}
}

void log_write(enum log_level level, const char *fmt, ...)
{
	char line[1024];
	int saved = errno, n, body;
	va_list ap;

	if (!log_wants(level))
		return;
	if (log_journal) {
		n = snprintf(line, sizeof(line), "<%d>%s: ", (int)level, log_role);
	} else {
		struct timespec ts;
		struct tm tm;

		clock_gettime(CLOCK_REALTIME, &ts);
		gmtime_r(&ts.tv_sec, &tm);
		n = snprintf(line, sizeof(line), "%02d:%02d:%02d.%03d %s %s: ", tm.tm_hour,
			     tm.tm_min, tm.tm_sec, (int)(ts.tv_nsec / 1000000),
			     log_level_name(level), log_role);
	}
	body = n;
	va_start(ap, fmt);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = (int)sizeof(line) - 2;
	for (int i = body; i < n; i++) {
		unsigned char c = (unsigned char)line[i];

		if (c < 0x20 || c == 0x7f)
			line[i] = '?';
	}
	line[n++] = '\n';
	/* A full or vanished log must never stop the work that it describes. */
	if (write(log_fd, line, (size_t)n) < 0)
		errno = saved;
	errno = saved;
}
