/* Stands in for the guarded test device (tests/device/guarded.c) in builds without -Dtest_hooks=true. */
#include "backends.h"

#include <stdio.h>

static int left_out_open(struct device *device, int threads, char *why, size_t why_bytes)
{
    (void)device, (void)threads;
    snprintf(why, why_bytes, "the guarded device is for tests: configure the build with -Dtest_hooks=true");
    return -1;
}

const struct device_backend device_backend_guarded = {.name = "guarded", .open = left_out_open};
