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

static inline void temp_write(const char *path, const void *bytes, size_t count)
{
    FILE *out = fopen(path, "wbe");
    if (!out || fwrite(bytes, 1, count, out) != count || fclose(out) != 0)
        abort();
}

/* One folder for all tests of a program, with cmocka's group fixtures. */
static struct temp_folder test_folder __attribute__((unused));

static inline int temp_folder_setup(void **state)
{
    (void)state;
    temp_folder_make(&test_folder);
    return 0;
}

static inline int temp_folder_teardown(void **state)
{
    (void)state;
    temp_folder_remove(&test_folder);
    return 0;
}
