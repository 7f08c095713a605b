/* What this host has for this rank: cores and memory. */
#pragma once

#include "err.h"

#include <stdbool.h>
#include <stdint.h>

/* mpirun binds a rank to one core when there are one or two ranks. Widens this process's affinity to its
 * share of the host's usable cores (all of them where ranks outnumber cores) unless `keep`; returns how many
 * it may use. Which rank of the host this is comes from mpirun's environment. OpenMP reads mask and settings
 * before main, so the program starts over, once, with a wait that suits cores shared with others
 * (GOMP_SPINCOUNT, unless the user set it or OMP_WAIT_POLICY): call it first, before MPI_Init. */
int host_take_cores(bool keep, char **argv);

/* What may still be taken: the smaller of the cgroup's rest and MemAvailable, less 5 %, over the ranks of the
 * host. */
int64_t host_memory_available(int local_ranks);

/* ERR_MEMORY with the bytes asked for and the bytes there. what: "the optimizer state under fp32-master". */
bool host_memory_fits(int64_t bytes, int local_ranks, const char *what, struct err *err) MUST_USE;

/* While a plan is made nothing is taken, so whatever is asked for "fits". */
void host_memory_promise_all(bool promise);

/* Processes that this host's kernel has ended so far because memory ran out. For signal handlers too. */
int64_t host_out_of_memory_kills(void);

int64_t host_resident_bytes(void); /* of this process, now */
