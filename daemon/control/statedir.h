/* The state folder: socket, journal, runs, log. Locked by rank 0 for as long as the daemon lives. */
#pragma once

#include "bounds.h"
#include "file.h"

struct statedir {
    char path[LIMIT_PATH_BYTES]; /* absolute */
    struct file_lock lock;
};

/* path "" or NULL: the default. Makes the folder (0700) with its runs/. A second daemon is refused with the
 * first's pid. */
bool statedir_open(struct statedir *dir, const char *path, struct err *err) MUST_USE;
void statedir_close(struct statedir *dir); /* zeroed: fine */
