/* A small process on each host of a job of several, which sees to it that all of that host's part ends.
 *
 * Where the network is cut, mpirun and its daemon on the other side each wait for word of the other long
 * after the ranks have ended, and a rank may hang in a write to a file system that is gone. So once a rank of
 * this host has ended, or one has begun to say why it will, the rest has a time of grace; then what is left
 * is killed, the launcher and ranks. After an end in order (dismissed) it just goes. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct guard_orders { /* in memory that the ranks of the host share */
    _Atomic int32_t dismissed, ending;
    _Atomic int32_t grace_ms;
};

/* Whether a process is Open MPI's launcher, by its name: a rank's parent may as well be the user's shell, a
 * batch system's daemon or whoever adopts orphans, and those are not ours to kill. */
bool guard_is_launcher(int32_t pid);

/* ranks: pidfds of all ranks of this host, the caller's too; launcher: its pidfd, or -1. Forks; without the
 * memory for that there is no guard. orders outlive the caller. */
void guard_start(const int *ranks, int32_t count, int launcher, struct guard_orders *orders);
