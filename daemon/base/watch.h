/* The watchdog: a thread without MPI that ends the process when a collective makes no progress, or when
 * another rank of this host has died, or another host does not answer (roll.h).
 *
 * The engine's thread says what it enters and leaves; long kernels and file work tick. When an operation has
 * been under way for stuck_after seconds without a tick, one line a host names operation, sequence number and
 * who is not in it (a rank that is stopped by name), and the process ends with _exit(3). Of a rank that has
 * died the host's one line is said at once (last_words.h). In a job of several hosts each host's first rank
 * speaks for it and names the hosts that are silent. */
#pragma once

#include "err.h"

#include <stdint.h>

bool watch_start(int rank, double stuck_after_s, struct err *err) MUST_USE;
void watch_stop(void);

void watch_enter(const char *operation, const char *axis,
                 int64_t count); /* static strings; numbers the operation */
void watch_leave(void);
void watch_tick(void);
int64_t watch_sequence(void);

struct watch_place {
    const char *operation; /* the present or, where not inside, the last one; NULL: none yet */
    int64_t sequence;
    bool inside;
};
struct watch_place watch_where(void); /* for signal handlers too */

/* "; host node3 (rank 3) has not answered for 8 s", of those silent for a third of stuck_after; their number.
 * For signal handlers too. */
struct words;
int32_t watch_name_silent(struct words *w);
