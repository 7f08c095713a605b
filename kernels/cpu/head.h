/* The head's loss over any product: the reference and oneDNN share its text and differ in `products`. */
#pragma once

#include "kernels.h"

struct head_products {
    void (*matmul)(struct queue *q, void *out, const void *a, const void *b, int64_t m, int64_t n, int64_t k,
                   enum dtype in_dtype, enum dtype out_dtype, unsigned flags, void *scratch);
    /* Pure arithmetic over shapes: also asked for shapes that may come. */
    size_t (*scratch)(int64_t m, int64_t n, int64_t k, enum dtype in_dtype, enum dtype out_dtype,
                      unsigned flags);
};

/* X(level): one head a level of the plain loops (rows.h). The parameters are those of the rows. */
#define HEAD_LEVELS(X) X(reference) X(v3) X(v4)

#define X(level)                                                                                             \
    void level##_head_with(struct queue *q, const struct head_products *products, float *logprob, void *dx,  \
                           float *dw, const void *x, const void *w, const int32_t *labels,                   \
                           const struct head_shape *shape, enum dtype dtype, void *scratch);                 \
    size_t level##_head_with_scratch(const struct head_products *products, const struct head_shape *shape,   \
                                     bool gradient, enum dtype dtype);
HEAD_LEVELS(X)
#undef X
