/* The ranks of one host know each other: which of them has died, which is stopped, and who says so.
 *
 * They share one page of memory, a memfd of the host's lowest rank, which the others open through /proc: a
 * seat for each rank, and the claim to the host's one line. Each holds pidfds of the others and of the
 * launcher. A rank that ends in order, or has said why it ends, leaves its seat first; one whose process is
 * gone with the seat still taken has died. Without such a page (no /proc, another user) the ranks do not see
 * each other, and the launcher's word is all there is.
 *
 * Owner: kin_meet and kin_part belong to the engine's thread, kin_wait to the watchdog's. The rest may be
 * called from anywhere, signal handlers too. */
#pragma once

#include "err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define KIN_RANKS_MAX 512 /* of one host */

/* What each rank tells all others once. */
struct kin_card {
    int32_t rank, home; /* home: the lowest rank of its host */
    int32_t pid;
    int32_t table; /* the memfd, in the process of rank `home`; -1 elsewhere */
};

struct kin {
    int32_t rank;
    int32_t pid;
};

struct kin_card kin_card_make(int32_t rank, int32_t home);
/* cards: of all ranks, any order. False with a reason where the ranks of this host cannot see each other. */
bool kin_meet(const struct kin_card *cards, int32_t count, int32_t rank, struct err *err) MUST_USE;
/* When all ranks are known to end in order: nobody looks any more. */
void kin_part(void);

/* In a job of several hosts a guard (guard.h) ends what is left of this one so long after the first has
 * ended. */
void kin_set_grace(double seconds);

int32_t kin_siblings(void);

/* Sleeps until one of them ended, stop_fd or other_fd is readable (-1: is none), or timeout_ms passed. */
void kin_wait(int stop_fd, int other_fd, int timeout_ms);

/* This process ends, and has said why or was told to by the launcher: no death to speak of. */
void kin_leave(void);

enum kin_end {
    KIN_ALL_ALIVE,
    KIN_LEFT,         /* some ended, all of them in words: who->rank is one */
    KIN_DIED,         /* *who ended without a word */
    KIN_LAUNCHER_DIED /* who->pid; rank is -1 */
};
enum kin_end kin_look(struct kin *who);

/* One line a host: true for the first who asks. kin_spoken: the line is out. kin_await_words: where another
 * thread of this process has claimed it, waits until it is out (at most half a second). */
bool kin_claim(void);
void kin_spoken(void);
void kin_await_words(void);

/* For what is said about a collective without progress. */
void kin_set_place(int64_t sequence, bool inside); /* of this rank */
/* The i-th rank of this host other than this one; false: there is none. stopped: by SIGSTOP or a debugger. */
struct kin_place {
    struct kin who;
    bool inside, stopped;
    int64_t sequence;
};
bool kin_sibling(int32_t i, struct kin_place *place);

/* How a process that has ended did so, as far as the system still tells: -1 unknown, else as wait() has it.
 */
int kin_exit_status(int32_t pid);
