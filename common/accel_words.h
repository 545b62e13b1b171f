/* accel_words.h - what a person asks for with --accel: a name, and for the software CPU how it runs. */
#ifndef COMMON_ACCEL_WORDS_H
#define COMMON_ACCEL_WORDS_H

#include <stdbool.h>

struct accel_words {
	char name[8];	  /* auto, kvm, soft */
	bool threads_one; /* soft: one host thread runs all virtual CPUs */
	bool icount;	  /* soft: virtual time, counted in instructions; implies threads_one */
};

/* accel_words() - take @text apart: NAME[,threads=1][,icount]. 0 or -EINVAL (nothing is set then). */
int accel_words(const char *text, struct accel_words *out);

#endif
