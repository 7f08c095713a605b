/* What this host has for this rank: cores and memory. */
#pragma once

#include "err.h"

#include <stdbool.h>
#include <stdint.h>

/* mpirun binds a rank to one core when there are one or two ranks. Widens this process's affinity to its
 * share of the host's usable cores (all of them where ranks outnumber cores) unless `keep`; returns how many
 * it may use. Which rank of the host this is comes from mpirun's environment. Where the mask changes the
 * program starts over, once, since OpenMP has counted its cores before main and would never spin where it
 * believes in fewer: call it first, before MPI_Init. */
int host_take_cores(bool keep, char **argv);

/* What may still be taken: the smaller of the cgroup's rest and MemAvailable, less 5 %, over the ranks of the
 * host. */
int64_t host_memory_available(int local_ranks);

/* ERR_MEMORY with the bytes asked for and the bytes there. what: "the optimizer state under fp32-master". */
bool host_memory_fits(int64_t bytes, int local_ranks, const char *what, struct err *err) MUST_USE;

int64_t host_resident_bytes(void); /* of this process, now */
