#include <stdbool.h>

#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

static enum fault_kind armed;
static int left;
static bool met;

void faults_arm(enum fault_kind kind, int nth)
{
    armed = kind;
    left = nth;
    met = false;
}

bool faults_met(void)
{
    armed = FAULT_NONE;
    return met;
}

static bool strikes(void)
{
    if (armed == FAULT_NONE || met || --left > 0)
        return false;
    met = true;
    if (armed == FAULT_KILL)
        raise(SIGKILL);
    return true;
}

/* clang-format off */
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    return strikes() ? (errno = EIO, -1) : __real_fsync(fd);
}

#define WRITES(name, parameters, arguments, half)                     \
    ssize_t __real_##name parameters;                                 \
    ssize_t __wrap_##name parameters;                                 \
    ssize_t __wrap_##name parameters                                  \
    {                                                                 \
        if (!strikes())                                               \
            return __real_##name arguments;                           \
        if (armed == FAULT_SHORT && count > 1) {                      \
            met = false;                                              \
            left = 1; /* the rest of it fails */                      \
            armed = FAULT_ERROR;                                      \
            return __real_##name half;                                \
        }                                                             \
        errno = ENOSPC;                                               \
        return -1;                                                    \
    }
WRITES(write, (int fd, const void *bytes, size_t count), (fd, bytes, count), (fd, bytes, count / 2))
WRITES(pwrite, (int fd, const void *bytes, size_t count, off_t at), (fd, bytes, count, at), (fd, bytes, count / 2, at))
WRITES(pwrite64, (int fd, const void *bytes, size_t count, off_t at), (fd, bytes, count, at), (fd, bytes, count / 2, at))

#define CALLS(name, parameters, arguments, error, failed)             \
    int __real_##name parameters;                                     \
    int __wrap_##name parameters;                                     \
    int __wrap_##name parameters                                      \
    {                                                                 \
        if (!strikes())                                               \
            return __real_##name arguments;                           \
        errno = error;                                                \
        return failed;                                                \
    }
CALLS(fallocate, (int fd, int how, off_t at, off_t count), (fd, how, at, count), ENOSPC, -1)
CALLS(fallocate64, (int fd, int how, off_t at, off_t count), (fd, how, at, count), ENOSPC, -1)
CALLS(rename, (const char *from, const char *to), (from, to), EIO, -1)
CALLS(renameat2, (int a, const char *from, int b, const char *to, unsigned how), (a, from, b, to, how), EIO, -1)
CALLS(mkdir, (const char *path, mode_t mode), (path, mode), ENOSPC, -1)
/* clang-format on */
