#include "fuzz.h"

#include "file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIVIDER "\n====\n"

bool fuzz_verbose;
int fuzz_accepted;
static char folder[64];

void fuzz_broken(const char *promise, const char *file, int line)
{
    fprintf(stderr, "%s:%d: the promise does not hold: %s\n", file, line, promise);
    abort();
}

bool fuzz_told(bool accepted, const struct err *err)
{
    char text[4 * ERR_TEXT_BYTES];
    fuzz_accepted += accepted;
    if (accepted)
        return true;
    if (fuzz_verbose)
        fprintf(stderr, "  refused: %s\n", err_line(err, text, sizeof text));
    CHECK(err->code != ERR_OK);
    CHECK(err->what[0] != '\0');
    return false;
}

static void remove_folder(void)
{
    struct err err = ERR_INIT;
    if (!file_remove_tree(folder, &err))
        fprintf(stderr, "%s\n", err.what);
}

const char *fuzz_folder(void)
{
    if (*folder)
        return folder;
    snprintf(folder, sizeof folder, "/dev/shm/trainerd-fuzz-XXXXXX");
    if (!mkdtemp(folder)) {
        snprintf(folder, sizeof folder, "/tmp/trainerd-fuzz-XXXXXX");
        CHECK(mkdtemp(folder));
    }
    atexit(remove_folder);
    return folder;
}

const char *fuzz_path(const char *name)
{
    static char paths[8][512];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", fuzz_folder(), name);
    return path;
}

void fuzz_write(const char *path, const void *bytes, size_t count)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, bytes, count) == (ssize_t)count);
    close(fd);
}

void fuzz_split(struct fuzz_part *parts, int count, const uint8_t *data, size_t size)
{
    memset(parts, 0, (size_t)count * sizeof *parts);
    for (int i = 0; i < count; i++) {
        const uint8_t *end = i + 1 < count && size > 0 ? memmem(data, size, DIVIDER, strlen(DIVIDER)) : NULL;
        size_t part = end ? (size_t)(end - data) : size;
        parts[i] = (struct fuzz_part){data, part};
        if (!end)
            return;
        data += part + strlen(DIVIDER);
        size -= part + strlen(DIVIDER);
    }
}

void fuzz_write_parts(const char *const *names, const struct fuzz_part *parts, int count)
{
    for (int i = 0; i < count; i++)
        if (parts[i].count > 0)
            fuzz_write(fuzz_path(names[i]), parts[i].bytes, parts[i].count);
        else
            unlink(fuzz_path(names[i]));
}
