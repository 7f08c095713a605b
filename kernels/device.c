/* The registry of devices, and the count of what is allocated on each.
 *
 * A backend that was left out of the build is in the table all the same: its open() says so in a sentence. */
#include "device.h"
#include "backends.h"

#include <stdio.h>
#include <string.h>

static const struct device_backend *const backends[] = {&device_backend_cuda, &device_backend_cpu,
                                                        &device_backend_guarded};
enum { BACKENDS = sizeof backends / sizeof backends[0] };

static int backend_open(struct device *device, const struct device_backend *backend, int threads, char *why,
                        size_t why_bytes)
{
    memset(device, 0, sizeof *device);
    device->name = backend->name;
    device->backend = backend;
    int result = backend->open(device, threads, why, why_bytes);
    if (result != 0)
        memset(device, 0, sizeof *device);
    return result;
}

int device_open(struct device *device, const char *name, int threads, char *why, size_t why_bytes)
{
    if (threads < 0) {
        snprintf(why, why_bytes, "a device cannot have %d threads", threads);
        return -1;
    }
    if (strcmp(name, "auto") == 0) {
        if (backend_open(device, &device_backend_cuda, threads, why, why_bytes) == 0)
            return 0;
        name = "cpu";
    }
    for (int i = 0; i < BACKENDS; i++)
        if (strcmp(backends[i]->name, name) == 0)
            return backend_open(device, backends[i], threads, why, why_bytes);
    snprintf(why, why_bytes, "there is no device named \"%s\": cpu, cuda and auto are", name);
    return -1;
}

void device_close(struct device *device)
{
    if (device->backend)
        device->backend->close(device);
    memset(device, 0, sizeof *device);
}

void *device_allocate(struct device *device, size_t bytes)
{
    void *memory = device->backend->allocate(device, bytes);
    if (memory)
        device->allocated_bytes += (int64_t)bytes;
    return memory;
}

void device_release(struct device *device, void *memory, size_t bytes)
{
    if (!memory)
        return;
    device->backend->release(device, memory, bytes);
    device->allocated_bytes -= (int64_t)bytes;
}
