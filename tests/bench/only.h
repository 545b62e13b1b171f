/* only.h - which figures a bench program is asked for: $ONLY is a prefix of figure names (make bench
 * ONLY=prefix), unset or empty for all. A program asks before it makes what a figure needs.
 */
#ifndef TESTS_BENCH_ONLY_H
#define TESTS_BENCH_ONLY_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* bench_wanted() - is @figure, or for a group's common beginning any figure below it, asked for? */
static inline bool bench_wanted(const char *figure)
{
	const char *only = getenv("ONLY");
	size_t n = only ? strlen(only) : 0, m = strlen(figure);

	return strncmp(only ? only : "", figure, n < m ? n : m) == 0;
}

#endif
