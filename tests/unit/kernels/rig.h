/* What the kernel tests share: random data of either type, and arrays that a test hands to a row. */
#pragma once

#include "bf16.h"
#include "dtype.h"
#include "kernels.h"
#include "queue.h"

#include <stdlib.h>

/* splitmix64: the same data on every machine */
static inline uint64_t rig_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static inline float rig_uniform(uint64_t *state) /* in [-1, 1) */
{
    return (float)(int32_t)(uint32_t)rig_bits(state) * 0x1p-31f;
}

/* Large enough for n of anything, 64-aligned, filled with a pattern that a row must overwrite. */
static inline void *rig_array(int64_t bytes)
{
    size_t size = ((size_t)bytes + 64) / 64 * 64;
    void *array = aligned_alloc(64, size);
    if (!array)
        abort();
    memset(array, 0x5a, size);
    return array;
}

static inline void *rig_random(uint64_t *state, int64_t n, enum dtype dtype, float scale)
{
    void *array = rig_array(n * (int64_t)dtype_bytes(dtype));
    for (int64_t i = 0; i < n; i++) {
        float x = scale * rig_uniform(state);
        if (dtype == DTYPE_BF16)
            ((uint16_t *)array)[i] = bf16_from_float(x);
        else
            ((float *)array)[i] = x;
    }
    return array;
}

static inline float rig_get(const void *array, int64_t i, enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? bf16_to_float(((const uint16_t *)array)[i]) : ((const float *)array)[i];
}

/* A copy as fp32, or as double. */
static inline float *rig_floats(const void *array, int64_t n, enum dtype dtype)
{
    float *copy = rig_array(n * 4);
    for (int64_t i = 0; i < n; i++)
        copy[i] = rig_get(array, i, dtype);
    return copy;
}
