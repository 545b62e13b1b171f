/* cleanup.h - release at the end of scope, and ownership written down.
 *
 *	_cleanup_close_ int fd = open(...);
 *	_cleanup_free_ char *s = strdup(...);
 *	return take_fd(&fd);			// ownership leaves the scope
 */
#ifndef COMMON_CLEANUP_H
#define COMMON_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_close(int *fd)
{
	if (*fd >= 0) {
		int saved = errno;

		close(*fd);
		errno = saved;
	}
}

static inline void cleanup_free(void *p)
{
	free(*(void **)p);
}

#define _cleanup_close_ __attribute__((cleanup(cleanup_close)))
#define _cleanup_free_	__attribute__((cleanup(cleanup_free)))
#define _cleanup_(fn)	__attribute__((cleanup(fn)))

static inline int take_fd(int *fd)
{
	int r = *fd;

	*fd = -1;
	return r;
}

#define take_ptr(p) \
	({ \
		__typeof__(*(p)) _r = *(p); \
		*(p) = NULL; \
		_r; \
	})

/* close_fd() - close and forget; -1 is fine. */
static inline void close_fd(int *fd)
{
	cleanup_close(fd);
	*fd = -1;
}

#endif
