/* The four rows of the table, made of the forward and the backward, under the names of the file that includes
 * this. */
#pragma once

#include "attention_backward_avx512.h"
#include "attention_fast.h"

#if ATTENTION_BF16
#define FAST(name) name##_avx512_bf16
#else
#define FAST(name) name##_avx512
#endif

/* This set leaves fp32 tensors to the other. */
INLINE bool is_elsewhere(enum dtype dtype)
{
    return ATTENTION_BF16 && dtype == DTYPE_F32;
}

/* Scratch is for as many threads as OpenMP would use, so a call uses no more, whatever its queue may. */
static int threads_max(void)
{
    return omp_get_max_threads();
}

size_t FAST(attention_forward_scratch)(const struct attention_shape *shape, enum dtype dtype)
{
    if (is_elsewhere(dtype))
        return attention_forward_scratch_avx512(shape, dtype);
    struct forward f = {.shape = shape, .dtype = dtype};
    return forward_layout(&f, 0, threads_max()) + 64;
}

void FAST(attention_forward)(struct queue *q, void *out, float *lse, const void *qs, const void *ks,
                             const void *vs, const int32_t *starts, const struct attention_keys *keys,
                             const struct attention_shape *shape, enum dtype dtype, void *scratch)
{
    if (is_elsewhere(dtype)) {
        attention_forward_avx512(q, out, lse, qs, ks, vs, starts, keys, shape, dtype, scratch);
        return;
    }
    struct forward f = {.shape = shape, .segments = {starts, keys, shape->sequences}, .dtype = dtype};
    f.qs = qs, f.ks = ks, f.vs = vs, f.out = out, f.lse = lse;
    forward_run(&f, scratch, (int)at_most(q->threads, threads_max()));
}

size_t FAST(attention_backward_scratch)(const struct attention_shape *shape, enum dtype dtype)
{
    if (is_elsewhere(dtype))
        return attention_backward_scratch_avx512(shape, dtype);
    struct backward b = {.shape = shape, .dtype = dtype};
    return backward_layout(&b, 0, threads_max()) + 64;
}

void FAST(attention_backward)(struct queue *q, void *dqs, void *dks, void *dvs, const void *dout,
                              const void *out, const float *lse, const void *qs, const void *ks,
                              const void *vs, const int32_t *starts, const struct attention_keys *keys,
                              const struct attention_shape *shape, enum dtype dtype, void *scratch)
{
    if (is_elsewhere(dtype)) {
        attention_backward_avx512(q, dqs, dks, dvs, dout, out, lse, qs, ks, vs, starts, keys, shape, dtype,
                                  scratch);
        return;
    }
    struct backward b = {.shape = shape, .segments = {starts, keys, shape->sequences}};
    b.dqs = dqs, b.dks = dks, b.dvs = dvs, b.dout = dout;
    b.out = out, b.lse = lse, b.qs = qs, b.ks = ks, b.vs = vs, b.dtype = dtype;
    backward_run(&b, scratch, (int)at_most(q->threads, threads_max()));
}
