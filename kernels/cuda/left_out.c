/* Stands in for the CUDA backend in builds without it. */
#include "backends.h"

#include <stdio.h>

static int left_out_open(struct device *device, int threads, char *why, size_t why_bytes)
{
    (void)device, (void)threads;
    snprintf(why, why_bytes, "this build has no CUDA device");
    return -1;
}

const struct device_backend device_backend_cuda = {.name = "cuda", .open = left_out_open};
