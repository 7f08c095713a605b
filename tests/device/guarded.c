/* The guarded device: not built yet. */
#include "backends.h"

#include <stdio.h>

static int guarded_open(struct device *device, int threads, char *why, size_t why_bytes)
{
    (void)device, (void)threads;
    snprintf(why, why_bytes, "the guarded device is not built yet");
    return -1;
}

const struct device_backend device_backend_guarded = {.name = "guarded", .open = guarded_open};
