/* restore.h - `vmd --restore`: a copy of the data base takes the place of a damaged one. */
#ifndef VMD_RESTORE_H
#define VMD_RESTORE_H

#include "vmd/config.h"

/* restore_db() - @from: "" the newest copy, "empty" none, else a file. Tells what it did. Return:
 * exit status. */
int restore_db(const struct vmd_config *c, const char *from);

#endif
