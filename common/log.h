/* log.h - one line a decision, to standard error or the journal.
 *
 * Each line is "<N>role[id]: text" under systemd (the kernel's level prefix), or
 * "HH:MM:SS.mmm LEVEL role[id]: text" on a terminal or file. Control bytes are escaped.
 * Threading: any thread; one write(2) a line. Never blocks for longer than the fd does; a jailed
 * guest logs into a pipe that priv rate-limits.
 */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include <stdbool.h>

enum log_level { LOG_ERR_ = 3, LOG_WARN_ = 4, LOG_INFO_ = 6, LOG_DEBUG_ = 7 };

/* log_open() - @role: "core", "priv", "guest"; @id: guest name or NULL; @fd: usually 2. Copied. */
void log_open(const char *role, const char *id, int fd, enum log_level max);
void log_set_level(enum log_level max);
bool log_wants(enum log_level level);
void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_ERR_, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN_, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO_, __VA_ARGS__)
#define log_debug(...) \
	do { \
		if (log_wants(LOG_DEBUG_)) \
			log_write(LOG_DEBUG_, __VA_ARGS__); \
	} while (0)

#endif
