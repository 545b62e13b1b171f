/* accel_words.c - the grammar of --accel: auto, kvm, or soft[,threads=1][,icount].
 *
 * One place for the schema that refuses bad words and for core that acts on good ones. The options
 * are of the software CPU alone: with auto they could be dropped in silence, so they are refused.
 */
#include "common/accel_words.h"

#include <errno.h>
#include <string.h>

static const char *const accel_names[] = { "auto", "kvm", "soft" };

int accel_words(const char *text, struct accel_words *out)
{
	struct accel_words w = { 0 };
	size_t n = strcspn(text, ",");

	for (unsigned i = 0; i < sizeof(accel_names) / sizeof(*accel_names); i++)
		if (strlen(accel_names[i]) == n && !strncmp(text, accel_names[i], n))
			memcpy(w.name, text, n);
	if (!w.name[0] || (text[n] && strcmp(w.name, "soft") != 0))
		return -EINVAL;
	for (text += n; *text; text += n) {
		n = strcspn(++text, ",");
		if (n == strlen("threads=1") && !strncmp(text, "threads=1", n))
			w.threads_one = true;
		else if (n == strlen("icount") && !strncmp(text, "icount", n))
			w.icount = w.threads_one = true;
		else
			return -EINVAL;
	}
	*out = w;
	return 0;
}
