/* A stack allocator over one block of device memory: taken when a batch shape is set, never during a step.
 *
 * Planning: an arena without memory hands out addresses that nobody may touch and keeps the high-water mark;
 * playing a model once over planning arenas says how large the real ones must be. The same calls in the same
 * order then fit. */
#pragma once

#include "device.h"
#include "err.h"

#include <stddef.h>

struct arena {
    const char *name;
    struct device *device;
    char *memory; /* NULL before the first reserve */
    size_t capacity;
    size_t used, peak;
    bool planning;
};

void arena_init_planning(struct arena *arena, const char *name);
bool arena_init(struct arena *arena, const char *name, struct device *device, size_t bytes,
                struct err *err) MUST_USE;
void arena_done(struct arena *arena);

/* 64-byte aligned; an arena that was planned for these calls cannot run out, so running out is a broken
 * invariant. */
void *arena_take(struct arena *arena, size_t bytes);

static inline size_t arena_mark(const struct arena *arena)
{
    return arena->used;
}
void arena_reset(struct arena *arena, size_t mark); /* frees everything taken since arena_mark gave mark */
