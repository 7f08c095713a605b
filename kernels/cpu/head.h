/* The head's loss over any product: the reference and oneDNN share its text and differ in `matmul`. */
#pragma once

#include "kernels.h"

/* The row `matmul`, of an implementation that wants no scratch. */
typedef void head_matmul(struct queue *q, void *out, const void *a, const void *b, int64_t m, int64_t n,
                         int64_t k, enum dtype in_dtype, enum dtype out_dtype, unsigned flags, void *scratch);

/* X(level): one head a level of the plain loops (rows.h). The parameters are those of the row head_loss. */
#define HEAD_LEVELS(X) X(reference) X(v3) X(v4)

#define X(level)                                                                                             \
    void level##_head_with(struct queue *q, head_matmul *matmul, float *logprob, void *dx, float *dw,        \
                           const void *x, const void *w, const int32_t *labels,                              \
                           const struct head_shape *shape, enum dtype dtype, void *scratch);
HEAD_LEVELS(X)
#undef X
