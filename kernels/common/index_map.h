/* From an element's place in a range to its global index: see struct index_map in state.h. */
#pragma once

#include "bf16.h"
#include "state.h"

KERNEL_FN uint64_t index_map_at(const struct index_map *map, int64_t i)
{
    if (map->run == map->stride)
        return (uint64_t)(map->index + i);
    int64_t e = map->column + i;
    return (uint64_t)(map->index - map->column + e / map->run * map->stride + e % map->run);
}

/* The map of the range that begins at this one's element `start`. */
KERNEL_FN struct index_map index_map_from(const struct index_map *map, int64_t start)
{
    struct index_map from = *map;
    from.index = (int64_t)index_map_at(map, start);
    if (map->run > 0)
        from.column = (map->column + start) % map->run;
    return from;
}
