/* text.h - growing strings, names, UUIDs, did-you-mean. */
#ifndef COMMON_TEXT_H
#define COMMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A growing string; zero-initialise. @s is always NUL-terminated once non-NULL. */
struct text {
	char *s;
	size_t len, cap;
	int error; /* sticky -ENOMEM */
};
void text_free(struct text *t);
void text_clear(struct text *t);
void text_add(struct text *t, const char *s);
void text_addn(struct text *t, const char *s, size_t len);
void text_printf(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* name_valid() - object names: 1 to 63 of [A-Za-z0-9._-], the first a letter or digit; no "..". */
bool name_valid(const char *name);

#define UUID_TEXT_LEN 37
void uuid_make(char text[UUID_TEXT_LEN]); /* version 4, getrandom(2) */
bool uuid_valid(const char *text);
int uuid_parse(const char *text, uint8_t out[16]);

/* suggest() - nearest of @words (NULL-terminated) to @typed by edit distance, or NULL if none is
 * near. */
const char *suggest(const char *typed, const char *const *words);

bool utf8_valid(const char *s, size_t len);

/* io_read_full(), io_write_full() - whole transfers over short ones and EINTR; bytes or -errno
 * (read: fewer bytes = EOF). */
long io_read_full(int fd, void *buf, size_t len);
long io_write_full(int fd, const void *buf, size_t len);
int fd_set_nonblock(int fd);
int fd_set_cloexec(int fd);

#endif
