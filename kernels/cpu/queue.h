/* The CPU's queue runs work at once, on the calling thread and its OpenMP helpers. */
#pragma once

#include "kernels.h"

struct queue {
    int threads;          /* at most so many work on one kernel; results do not depend on it */
    struct kernels table; /* the rows that this processor runs best */
};
