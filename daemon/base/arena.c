#include "arena.h"

#define ARENA_ALIGNMENT 64

void arena_init_planning(struct arena *arena, const char *name)
{
    *arena = (struct arena){.name = name, .planning = true};
}

bool arena_init(struct arena *arena, const char *name, struct device *device, size_t bytes, struct err *err)
{
    char *memory = NULL;
    if (bytes > 0 && !(memory = device_allocate(device, bytes))) {
        err_set(err, ERR_MEMORY, "%zu bytes for %s do not fit on the device %s", bytes, name, device->name);
        return err_hint(err, "use a smaller micro-batch, more ranks, or a policy with fewer bytes");
    }
    *arena = (struct arena){.name = name, .device = device, .memory = memory, .capacity = bytes};
    return true;
}

void arena_done(struct arena *arena)
{
    if (arena->memory)
        device_release(arena->device, arena->memory, arena->capacity);
    *arena = (struct arena){0};
}

void *arena_take(struct arena *arena, size_t bytes)
{
    size_t start = arena->used;
    arena->used += (bytes + ARENA_ALIGNMENT - 1) & ~(size_t)(ARENA_ALIGNMENT - 1);
    if (arena->used > arena->peak)
        arena->peak = arena->used;
    if (arena->planning)
        return (void *)(uintptr_t)(ARENA_ALIGNMENT +
                                   start); /* an address in the page nobody maps, or just a number */
    INVARIANT(arena->used <= arena->capacity);
    return arena->memory + start;
}

void arena_reset(struct arena *arena, size_t mark)
{
    INVARIANT(mark <= arena->used);
    arena->used = mark;
}
