/* A folder of a test's own, removed at its end. */
#pragma once

#include "file.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct temp_folder {
    char path[64];
};

static inline void temp_folder_make(struct temp_folder *folder)
{
    snprintf(folder->path, sizeof folder->path, "/tmp/trainerd-test-XXXXXX");
    if (!mkdtemp(folder->path))
        abort();
}

static inline void temp_folder_remove(struct temp_folder *folder)
{
    struct err err = ERR_INIT;
    if (!file_remove_tree(folder->path, &err))
        fprintf(stderr, "%s\n", err.what);
}

/* folder/name, in one of four buffers. */
static inline const char *temp_path(const struct temp_folder *folder, const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder->path, name);
    return path;
}
