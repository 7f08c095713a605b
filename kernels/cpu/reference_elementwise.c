/* Rows that look at one element at a time: add, SwiGLU, casts, accumulation; and RoPE, which looks at two. */
#include "exp.h"
#include "loops.h"

LEAF void add_range(void *out, const void *a, const void *b, int64_t n, const bool bf16)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        put(out, i, get(a, i, bf16) + get(b, i, bf16), bf16);
}

void ROW(add)(struct queue *q, void *out, const void *a, const void *b, int64_t n, enum dtype dtype)
{
#pragma omp parallel for num_threads(q->threads) if (n > RANGE)
    for (int64_t r = 0; r < ranges(n); r++) {
        int64_t at = r * RANGE * (int64_t)dtype_bytes(dtype);
        FOR_DTYPE(dtype, add_range, (char *)out + at, (const char *)a + at, (const char *)b + at,
                  range_length(r, n));
    }
}

LEAF float sigmoid(float x)
{
    return 1.0f / (1.0f + exp_float(-x));
}

LEAF void swiglu_range(void *out, const void *gate, const void *up, int64_t n, const bool bf16)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float g = get(gate, i, bf16);
        put(out, i, g * sigmoid(g) * get(up, i, bf16), bf16);
    }
}

void ROW(swiglu_forward)(struct queue *q, void *out, const void *gate, const void *up, int64_t n,
                         enum dtype dtype)
{
#pragma omp parallel for num_threads(q->threads) if (n > RANGE)
    for (int64_t r = 0; r < ranges(n); r++) {
        int64_t at = r * RANGE * (int64_t)dtype_bytes(dtype);
        FOR_DTYPE(dtype, swiglu_range, (char *)out + at, (const char *)gate + at, (const char *)up + at,
                  range_length(r, n));
    }
}

/* silu'(g) = s (1 + g (1 - s)), s = sigmoid(g) */
LEAF void swiglu_backward_range(void *dgate, void *dup, const void *dout, const void *gate, const void *up,
                                int64_t n, const bool bf16)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float g = get(gate, i, bf16), u = get(up, i, bf16), d = get(dout, i, bf16);
        float s = sigmoid(g);
        put(dgate, i, d * u * (s * (1.0f + g * (1.0f - s))), bf16);
        put(dup, i, d * (g * s), bf16);
    }
}

void ROW(swiglu_backward)(struct queue *q, void *dgate, void *dup, const void *dout, const void *gate,
                          const void *up, int64_t n, enum dtype dtype)
{
#pragma omp parallel for num_threads(q->threads) if (n > RANGE)
    for (int64_t r = 0; r < ranges(n); r++) {
        int64_t at = r * RANGE * (int64_t)dtype_bytes(dtype);
        FOR_DTYPE(dtype, swiglu_backward_range, (char *)dgate + at, (char *)dup + at, (const char *)dout + at,
                  (const char *)gate + at, (const char *)up + at, range_length(r, n));
    }
}

/* One head: x1' = x1 cos - x2 sin, x2' = x2 cos + x1 sin, x1 and x2 its halves (RoFormer, in the hub's
 * rotate-half). */
LEAF void rope_head(void *x, const float *cosines, const float *sines, int64_t half, float sign,
                    const bool bf16)
{
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float x1 = get(x, i, bf16), x2 = get(x, i + half, bf16);
        float c = cosines[i], s = sign * sines[i];
        put(x, i, x1 * c - x2 * s, bf16);
        put(x, i + half, x2 * c + x1 * s, bf16);
    }
}

void ROW(rope)(struct queue *q, void *x, const float *cosines, const float *sines, const int32_t *positions,
               int64_t T, int64_t heads, int64_t head_dim, bool inverse, enum dtype dtype)
{
    int64_t half = head_dim / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for num_threads(q->threads) if (T * heads * head_dim > RANGE)
    for (int64_t t = 0; t < T; t++) {
        int64_t angle = (int64_t)positions[t] * half;
        for (int64_t h = 0; h < heads; h++) {
            char *head = (char *)x + (t * heads + h) * head_dim * (int64_t)dtype_bytes(dtype);
            FOR_DTYPE(dtype, rope_head, head, cosines + angle, sines + angle, half, sign);
        }
    }
}

LEAF void cast_range(void *to, const void *from, int64_t n, const bool to_bf16, const bool from_bf16)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        put(to, i, get(from, i, from_bf16), to_bf16);
}

LEAF void cast_to_fp32(void *to, const void *from, int64_t n, const bool from_bf16)
{
    cast_range(to, from, n, false, from_bf16);
}

LEAF void cast_to_bf16(void *to, const void *from, int64_t n, const bool from_bf16)
{
    cast_range(to, from, n, true, from_bf16);
}

void ROW(cast)(struct queue *q, void *to, const void *from, int64_t n, enum dtype to_dtype,
               enum dtype from_dtype)
{
#pragma omp parallel for num_threads(q->threads) if (n > RANGE)
    for (int64_t r = 0; r < ranges(n); r++) {
        char *t = (char *)to + r * RANGE * (int64_t)dtype_bytes(to_dtype);
        const char *f = (const char *)from + r * RANGE * (int64_t)dtype_bytes(from_dtype);
        if (to_dtype == DTYPE_BF16)
            FOR_DTYPE(from_dtype, cast_to_bf16, t, f, range_length(r, n));
        else
            FOR_DTYPE(from_dtype, cast_to_fp32, t, f, range_length(r, n));
    }
}

LEAF void accumulate_range(void *total, const float *part, int64_t n, const bool bf16)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        put(total, i, get(total, i, bf16) + part[i], bf16);
}

void ROW(accumulate)(struct queue *q, void *total, const float *part, int64_t n, enum dtype total_dtype)
{
#pragma omp parallel for num_threads(q->threads) if (n > RANGE)
    for (int64_t r = 0; r < ranges(n); r++) {
        char *t = (char *)total + r * RANGE * (int64_t)dtype_bytes(total_dtype);
        FOR_DTYPE(total_dtype, accumulate_range, t, part + r * RANGE, range_length(r, n));
    }
}
