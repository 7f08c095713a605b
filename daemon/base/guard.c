#include "guard.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#define GUARD_NAP_MS 250

/* Whether the process behind a pidfd has ended; there is none behind -1. */
static bool has_ended(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return fd < 0 || poll(&p, 1, 0) == 1;
}

static int32_t count_ended(const int *ranks, int32_t count)
{
    int32_t ended = 0;
    for (int32_t i = 0; i < count; i++)
        ended += has_ended(ranks[i]);
    return ended;
}

/* Until nothing is left to guard, or the time of grace is over: true in the second case. */
static bool time_is_up(const int *ranks, int32_t count, int launcher, const struct guard_orders *orders)
{
    int32_t ending_ms = 0;
    for (;; poll(NULL, 0, GUARD_NAP_MS)) {
        int32_t ended = count_ended(ranks, count);
        if (atomic_load(&orders->dismissed) || (ended == count && has_ended(launcher)))
            return false;
        if (ended > 0 || atomic_load(&orders->ending))
            ending_ms += GUARD_NAP_MS;
        if (ending_ms > atomic_load(&orders->grace_ms))
            return true;
    }
}

static _Noreturn void stand_guard(const int *ranks, int32_t count, int launcher,
                                  const struct guard_orders *orders)
{
    if (!time_is_up(ranks, count, launcher, orders))
        _exit(0);
    if (!has_ended(launcher))
        pidfd_send_signal(launcher, SIGKILL, NULL,
                          0); /* mpirun 4.1 crashes of a SIGTERM while it is aborting */
    for (int32_t i = 0; i < count; i++)
        if (!has_ended(ranks[i]))
            pidfd_send_signal(ranks[i], SIGKILL, NULL, 0);
    _exit(0);
}

static int ascending(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* The launcher waits until nobody holds the ranks' ends of its pipes. sorted: what stays open. */
static void close_others(const int *sorted, int32_t count)
{
    unsigned from = 0;
    for (int32_t i = 0; i < count; i++) {
        if (sorted[i] < 0)
            continue;
        if ((unsigned)sorted[i] > from)
            close_range(from, (unsigned)sorted[i] - 1, 0);
        from = (unsigned)sorted[i] + 1;
    }
    close_range(from, ~0u, 0);
}

bool guard_is_launcher(int32_t pid)
{
    static const char *const names[] = {"mpirun", "mpiexec", "orterun", "orted", "prterun", "prted"};
    char path[32], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    FILE *file = fopen(path, "re");
    bool read = file && fgets(name, sizeof name, file);
    if (file)
        fclose(file);
    name[strcspn(name, ".\n")] = '\0'; /* Debian's mpirun.openmpi too */
    for (size_t i = 0; read && i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

void guard_start(const int *ranks, int32_t count, int launcher, struct guard_orders *orders)
{
    int *kept = malloc(sizeof *kept * ((size_t)count + 1));
    if (!kept)
        return;
    for (int32_t i = 0; i < count; i++)
        kept[i] = ranks[i];
    kept[count] = launcher;
    qsort(kept, (size_t)count + 1, sizeof *kept, ascending);
    if (_Fork() ==
        0) { /* of the threads only this one goes on there, so no library may be asked for anything */
        for (int number = 1; number < NSIG; number++)
            signal(number, SIG_DFL);
        prctl(PR_SET_NAME, "trainerd-guard");
        setsid(); /* the launcher kills the ranks' process groups */
        close_others(kept, count + 1);
        stand_guard(ranks, count, launcher, orders);
    }
    free(kept);
}
