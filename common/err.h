/* err.h - an error that a person will read.
 *
 * Functions return 0 or a negative errno. Where the cause must reach a person, the caller also
 * passes a struct err that it owns; the callee fills it with ONE sentence that names the object,
 * the cause and the way out. Errors are logged once, where they are decided, not where they pass.
 * Threading: a struct err belongs to one thread. No allocation, may be used after fork.
 */
#ifndef COMMON_ERR_H
#define COMMON_ERR_H

#include <stdbool.h>

struct err {
	int num;	  /* positive errno; 0 = no error recorded */
	char code[48];	  /* stable, machine-read: "disk-not-found" (REST "code") */
	char detail[400]; /* names object and cause; no trailing full stop, no newline */
	char hint[200];	  /* the next command to try, or "" */
};

/* err_set() - record an error; an earlier one in @e is replaced. @e may be NULL.
 * @num: positive errno. @code: stable kebab-case identifier. Control bytes in the formatted text
 * become '?', so that hostile names cannot forge log lines. Return: -num, to be returned at once.
  */
int err_set(struct err *e, int num, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* err_hint() - add the way out ("vmctl image ls") to an error already set. @e may be NULL. */
void err_hint(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* err_prefix() - put "text: " before the detail (for example the guest's name). */
void err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static inline bool err_is_set(const struct err *e)
{
	return e && e->num != 0;
}

static inline void err_clear(struct err *e)
{
	if (e)
		*e = (struct err){ 0 };
}

#endif
