/* The fast attention rows, a set for each instruction set (attention_rows_avx512.h); attention_overlay.c
 * chooses. */
#pragma once

#include "kernels.h"

#define ATTENTION_ROWS(set)                                                                                  \
    size_t attention_forward_scratch_##set(const struct attention_shape *shape, enum dtype dtype);           \
    size_t attention_backward_scratch_##set(const struct attention_shape *shape, enum dtype dtype);          \
    void attention_forward_##set(K_QUEUE, void *out, float *lse, const void *qs, const void *ks,             \
                                 const void *vs, const int32_t *starts, const struct attention_keys *keys,   \
                                 const struct attention_shape *shape, enum dtype dtype, void *scratch);      \
    void attention_backward_##set(K_QUEUE, void *dqs, void *dks, void *dvs, const void *dout,                \
                                  const void *out, const float *lse, const void *qs, const void *ks,         \
                                  const void *vs, const int32_t *starts, const struct attention_keys *keys,  \
                                  const struct attention_shape *shape, enum dtype dtype, void *scratch);
ATTENTION_ROWS(avx512)      /* F, BW, CD, DQ, VL: fp32 and bf16 tensors */
ATTENTION_ROWS(avx512_bf16) /* and BF16: bf16 tensors */
