/* A tensor describes memory and never owns it: arenas own, by lifetime. Row-major, device memory. */
#pragma once

#include "bounds.h"
#include "dtype.h"

#include <stdint.h>

struct tensor {
    void *data;
    enum dtype dtype;
    int dims;
    int64_t shape[LIMIT_DIMS];
};

static inline int64_t tensor_elements(struct tensor t)
{
    int64_t count = 1;
    for (int i = 0; i < t.dims; i++)
        count *= t.shape[i];
    return count;
}

static inline struct tensor tensor_2d(void *data, enum dtype dtype, int64_t rows, int64_t columns)
{
    return (struct tensor){data, dtype, 2, {rows, columns}};
}
