/* "Any rank's death ends all ranks, non-zero, with one line that names the rank and the cause" (contract 3).
 *
 * A rank that crashes (SIGSEGV, SIGBUS, SIGABRT, …) says so itself, from the signal's handler: the signal,
 * where it was, and for a mapped file that was shortened, which. So one that dies in silence was killed from
 * outside, or by the kernel for memory, and the first of its siblings to notice says that. SIGTERM and SIGINT
 * from the launcher end a rank without a line, unless a sibling's death is what they follow: the launcher
 * sends them within milliseconds. Lines go to stderr and to the log. */
#pragma once

#include "kin.h"

#include <stddef.h>
#include <stdint.h>

#define LAST_WORDS_EXIT 3

/* Before MPI_Init, which then leaves these signals alone. Sanitizers keep the crashes to themselves. */
void last_words_install(void);
void last_words_set_rank(int32_t rank, const char *host);

/* What stands when all ranks end; path is copied. From the engine's thread. */
void last_words_set_checkpoint(const char *path, int64_t step);
const char *last_words_checkpoint(void); /* "PATH step N"; NULL: none yet */

/* Files that are mapped: one that is shortened meanwhile is a SIGBUS. Some more than a fixed number are not
 * remembered. */
void last_words_map(const void *bytes, size_t count, const char *path);
void last_words_unmap(const void *bytes);

/* Of this rank, which ends because of what cannot be mended. */
struct err;
void last_words_because(const struct err *err);

/* Says the host's line about a sibling or the launcher, unless it has been said. */
void last_words_about(enum kin_end end, const struct kin *who);
