/* Causal grouped-query attention over packed segments, row by row of queries, without a T x S matrix: scores
 * of one query exist for a block of keys at a time (online softmax, Milakov & Gimelshein 2018;
 * FlashAttention's backward, Dao et al. 2022). Threads share out (family, key/value head) pairs, so every sum
 * has one owner and one order. */
#include "attention_segments.h"
#include "exp.h"
#include "loops.h"

#include <math.h>
#include <string.h>

enum { KEYS = 64, HEAD_DIM_MAX = 512 };

struct attention {
    const struct attention_shape *shape;
    struct segments segments;
    const void *qs, *ks, *vs, *dout, *out;
    void *to;   /* forward: out */
    float *lse; /* [T][q_heads]; written by the forward, read by the backward */
    void *dqs;
    float *dks, *dvs; /* fp32 sums, [S][kv_heads][head_dim] */
};

LEAF float dot(const void *a, const void *b, int64_t n, const bool bf16)
{
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += get(a, i + j, bf16) * get(b, i + j, bf16);
    for (int j = 0; i + j < n; j++)
        lane[j] += get(a, i + j, bf16) * get(b, i + j, bf16);
    return lanes_fold(lane);
}

/* One query t of head h against the keys first … past-1: out and its log-sum-exp. */
LEAF void attend_query(const struct attention *a, int64_t first, int64_t past, int64_t t, int32_t h,
                       const bool bf16)
{
    const struct attention_shape *s = a->shape;
    int32_t kv = h / (s->q_heads / s->kv_heads);
    int64_t D = s->head_dim;
    const void *query = from_row(a->qs, t * s->q_heads + h, D, bf16);
    float sum[HEAD_DIM_MAX], score[KEYS], max = -INFINITY, total = 0.0f;
    memset(sum, 0, (size_t)D * sizeof(float));
    for (int64_t key = first; key < past; key += KEYS) {
        int64_t count = past - key < KEYS ? past - key : KEYS;
        float block_max = max;
        for (int64_t j = 0; j < count; j++) {
            score[j] = dot(query, from_row(a->ks, (key + j) * s->kv_heads + kv, D, bf16), D, bf16) * s->scale;
            block_max = score[j] > block_max ? score[j] : block_max;
        }
        float shrink = exp_float(max - block_max);
        max = block_max;
        total *= shrink;
        for (int64_t i = 0; i < D; i++)
            sum[i] *= shrink;
        for (int64_t j = 0; j < count; j++) {
            float p = exp_float(score[j] - max);
            const void *value = from_row(a->vs, (key + j) * s->kv_heads + kv, D, bf16);
            total += p;
            for (int64_t i = 0; i < D; i++)
                sum[i] += p * get(value, i, bf16);
        }
    }
    void *out = to_row(a->to, t * s->q_heads + h, D, bf16);
    for (int64_t i = 0; i < D; i++)
        put(out, i, sum[i] / total, bf16);
    a->lse[t * s->q_heads + h] = max + logf(total);
}

/* The backward of one query: ds = p (dp - <dout, out>) scale; dq = ds k; dk += ds q; dv += p dout. */
LEAF void attend_query_backward(const struct attention *a, int64_t first, int64_t past, int64_t t, int32_t h,
                                const bool bf16)
{
    const struct attention_shape *s = a->shape;
    int32_t kv = h / (s->q_heads / s->kv_heads);
    int64_t D = s->head_dim, row = t * s->q_heads + h;
    const void *query = from_row(a->qs, row, D, bf16), *dout = from_row(a->dout, row, D, bf16);
    float dq[HEAD_DIM_MAX];
    memset(dq, 0, (size_t)D * sizeof(float));
    float mean = dot(dout, from_row(a->out, row, D, bf16), D, bf16);
    for (int64_t key = first; key < past; key++) {
        int64_t kv_row = key * s->kv_heads + kv;
        const void *k = from_row(a->ks, kv_row, D, bf16);
        float p = exp_float(dot(query, k, D, bf16) * s->scale - a->lse[row]);
        float ds = p * (dot(dout, from_row(a->vs, kv_row, D, bf16), D, bf16) - mean) * s->scale;
        float *dk = a->dks + kv_row * D, *dv = a->dvs + kv_row * D;
        for (int64_t i = 0; i < D; i++) {
            dq[i] += ds * get(k, i, bf16);
            dk[i] += ds * get(query, i, bf16);
            dv[i] += p * get(dout, i, bf16);
        }
    }
    void *to = to_row(a->dqs, row, D, bf16);
    for (int64_t i = 0; i < D; i++)
        put(to, i, dq[i], bf16);
}

/* The family that segment s begins. */
LEAF void attend_pair(const struct attention *a, int64_t s, int32_t kv, bool backward, const bool bf16)
{
    int32_t group = a->shape->q_heads / a->shape->kv_heads;
    for (int64_t end = segment_family_end(&a->segments, s); s < end; s++) {
        int64_t first = segment_first_key(&a->segments, s);
        int64_t past = first + segment_before(&a->segments, s) + 1; /* of the first query */
        for (int64_t t = a->segments.starts[s]; t < a->segments.starts[s + 1]; t++, past++)
            for (int32_t h = kv * group; h < (kv + 1) * group; h++)
                if (backward)
                    attend_query_backward(a, first, past, t, h, bf16);
                else
                    attend_query(a, first, past, t, h, bf16);
    }
}

static void attend(struct queue *q, const struct attention *a, bool backward, enum dtype dtype)
{
    int64_t pairs = a->segments.count * a->shape->kv_heads;
#pragma omp parallel for num_threads(q->threads) schedule(dynamic) if (a->shape->tokens > KEYS)
    for (int64_t pair = 0; pair < pairs; pair++) {
        int64_t s = pair / a->shape->kv_heads;
        if (segment_begins_family(&a->segments, s))
            FOR_DTYPE(dtype, attend_pair, a, s, (int32_t)(pair % a->shape->kv_heads), backward);
    }
}

/* Rows after the last sequence get zeros. */
static void zero_padding(void *rows, const int32_t *starts, const struct attention_shape *shape,
                         int64_t row_bytes)
{
    int64_t end = starts[shape->sequences];
    memset((char *)rows + end * row_bytes, 0, (size_t)((shape->tokens - end) * row_bytes));
}

size_t ROW(attention_forward_scratch)(const struct attention_shape *shape, enum dtype dtype)
{
    (void)shape, (void)dtype;
    return 0;
}

void ROW(attention_forward)(struct queue *q, void *out, float *lse, const void *qs, const void *ks,
                            const void *vs, const int32_t *starts, const struct attention_keys *keys,
                            const struct attention_shape *shape, enum dtype dtype, void *scratch)
{
    (void)scratch;
    struct attention a = {.shape = shape,
                          .segments = {starts, keys, shape->sequences},
                          .qs = qs,
                          .ks = ks,
                          .vs = vs,
                          .to = out,
                          .lse = lse};
    attend(q, &a, false, dtype);
    int64_t D = shape->head_dim, element = (int64_t)dtype_bytes(dtype);
    zero_padding(out, starts, shape, shape->q_heads * D * element);
    zero_padding(lse, starts, shape, shape->q_heads * (int64_t)sizeof(float));
}

size_t ROW(attention_backward_scratch)(const struct attention_shape *shape, enum dtype dtype)
{
    (void)dtype;
    return 2 * sizeof(float) * (size_t)(shape->key_rows * shape->kv_heads * shape->head_dim);
}

void ROW(attention_backward)(struct queue *q, void *dqs, void *dks, void *dvs, const void *dout,
                             const void *out, const float *lse, const void *qs, const void *ks,
                             const void *vs, const int32_t *starts, const struct attention_keys *keys,
                             const struct attention_shape *shape, enum dtype dtype, void *scratch)
{
    int64_t D = shape->head_dim, n = shape->key_rows * shape->kv_heads * D;
    float *sums = scratch; /* dk, then dv */
    struct attention a = {.shape = shape,
                          .segments = {starts, keys, shape->sequences},
                          .qs = qs,
                          .ks = ks,
                          .vs = vs,
                          .dout = dout,
                          .out = out,
                          .lse = (float *)lse,
                          .dqs = dqs,
                          .dks = sums,
                          .dvs = sums + n};
    memset(sums, 0, 2 * sizeof(float) * (size_t)n);
    attend(q, &a, true, dtype);
    zero_padding(dqs, starts, shape, shape->q_heads * D * (int64_t)dtype_bytes(dtype));
    ROW(cast)(q, dks, a.dks, n, dtype, DTYPE_F32);
    ROW(cast)(q, dvs, a.dvs, n, dtype, DTYPE_F32);
}
