/* daemon.c - the api process that vmctl's tests talk to: the same fixture as api's own tests. */
#include "tests/unit/api/fixture.c"
