/* doctor.c - the daemon's checks of its host, a line each, with the way out under what is not well. */
#include "vmctl/vmctl.h"

#include <stdio.h>
#include <string.h>

static const char *doctor_text(const json_t *j, const char *key, char *buf, size_t len)
{
	return out_cell(NULL, json_object_get(j, key), buf, len);
}

void doctor_say(struct vmctl *v, const json_t *items)
{
	char name[64], text[512], hint[256];
	int width = 0;
	size_t i;
	json_t *j;

	json_array_foreach((json_t *)items, i, j)
	{
		int w = (int)strlen(doctor_text(j, "name", name, sizeof(name)));

		width = w > width ? w : width;
	}
	json_array_foreach((json_t *)items, i, j)
	{
		bool ok = json_is_true(json_object_get(j, "ok"));

		printf("%s%-4s%s %-*s  %s\n", v->color ? ok ? "\033[32m" : "\033[33m" : "",
		       ok ? "ok" : "no", v->color ? "\033[0m" : "", width,
		       doctor_text(j, "name", name, sizeof(name)),
		       doctor_text(j, "text", text, sizeof(text)));
		if (!ok && json_string_length(json_object_get(j, "hint")))
			printf("%*s  hint: %s\n", width + 5, "",
			       doctor_text(j, "hint", hint, sizeof(hint)));
	}
}
