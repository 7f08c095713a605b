/* A device is: allocate, copy, queue, event, and one table of kernels. Everything that would live on a GPU
 * (parameters, states, gradients, activations, batches) is reached only through it; host code never
 * dereferences device memory unless `host_access` says that it may (MPI then sends straight from it, else it
 * stages through host buffers).
 *
 * Work put on one queue runs in order; the CPU's single queue runs it at once. Copies to and from host memory
 * return when the host buffer may be reused. This folder knows no MPI, no files, no daemon: failures are
 * sentences. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kernels;
struct queue; /* a stream: opaque, made by the backend */
struct event;

struct device {
    const char *name;      /* "cpu", "guarded", "cuda" */
    char description[128]; /* what status shows: the processor, its instruction set, the oneDNN version */
    char products[64];     /* how bf16 matrix products are computed here, said once at start */
    bool host_access;      /* host code may read and write device memory */
    bool planning;         /* its memory is addresses that nobody may touch: a dry run's */
    int threads;
    int64_t allocated_bytes; /* the sum over live allocations, as asked for: audit's total equals it */
    struct queue *queue;     /* the compute queue */
    const struct kernels *kernels;
    const struct device_backend *backend;
};

struct device_backend {
    const char *name;
    /* 0 on success; else fills why (a sentence) and returns -1. */
    int (*open)(struct device *device, int threads, char *why, size_t why_bytes);
    void (*close)(struct device *device);
    /* Zeroed, touched, aligned to 4096 (2 MiB from 2 MiB up), or NULL. */
    void *(*allocate)(struct device *device, size_t bytes);
    void (*release)(struct device *device, void *memory, size_t bytes);
    void (*copy_in)(struct queue *queue, void *device_to, const void *host_from, size_t bytes);
    void (*copy_out)(struct queue *queue, void *host_to, const void *device_from, size_t bytes);
    void (*copy)(struct queue *queue, void *device_to, const void *device_from,
                 size_t bytes); /* no overlap */
    void (*zero)(struct queue *queue, void *device_to, size_t bytes);
    struct event *(*event_record)(struct queue *queue);           /* marks all work queued so far */
    void (*event_wait)(struct queue *queue, struct event *event); /* later work of queue waits for it */
    void (*synchronize)(struct queue *queue); /* the host waits until the queue is empty */
};

/* Backends: "cpu" always; "guarded" in test builds; "cuda" where the build found it. Opening one that was
 * left out fails with a sentence that says so. name "auto" is cuda where there is one, else cpu. threads 0:
 * all usable. */
int device_open(struct device *device, const char *name, int threads, char *why, size_t why_bytes);
void device_close(struct device *device);

void *device_allocate(struct device *device, size_t bytes); /* NULL when it does not fit; counts */
void device_release(struct device *device, void *memory, size_t bytes); /* NULL is allowed */

static inline void device_copy_in(struct device *d, void *to, const void *host_from, size_t bytes)
{
    d->backend->copy_in(d->queue, to, host_from, bytes);
}
static inline void device_copy_out(struct device *d, void *host_to, const void *from, size_t bytes)
{
    d->backend->copy_out(d->queue, host_to, from, bytes);
}
static inline void device_copy(struct device *d, void *to, const void *from, size_t bytes)
{
    d->backend->copy(d->queue, to, from, bytes);
}
static inline void device_zero(struct device *d, void *to, size_t bytes)
{
    d->backend->zero(d->queue, to, bytes);
}
