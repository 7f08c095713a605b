/* The head put together from its rows as daemon/model/ops_ends.c does, and as a tensor group will: with the
 * vocabulary cut into ranges, each of which knows its own logits only. */
#pragma once

#include "rig.h"

struct head {
    const struct kernels *k;
    struct queue *q;
    enum dtype dtype;
    int64_t T, C, V;
    int64_t ranges; /* 1: the row for all at once; more, or 0 for one: stats, merge, d logits */
    int64_t chunk;  /* rows */
    const void *x, *w;
    const int32_t *labels;
};

struct head_range {
    int64_t first, n;
    float *logits;
    void *dlogits;
    struct head_stats *stats;
};

/* Range i of the vocabulary; of uneven sizes. */
static inline void head_range_of(const struct head *h, int64_t i, int64_t *first, int64_t *n)
{
    int64_t ranges = h->ranges < 1 ? 1 : h->ranges, size = h->V / ranges;
    *first = i * size;
    *n = i + 1 < ranges ? size : h->V - *first;
}

static inline void head_product(const struct head *h, void *out, const void *a, const void *b, int64_t m,
                                int64_t n, int64_t k, enum dtype out_dtype, unsigned flags)
{
    void *scratch = rig_array((int64_t)h->k->matmul_scratch(m, n, k, h->dtype, out_dtype, flags));
    h->k->matmul(h->q, out, a, b, m, n, k, h->dtype, out_dtype, flags, scratch);
    free(scratch);
}

/* dx of a chunk is the sum over ranges in order, in fp32, rounded once; a range's own is fp32. */
static inline void head_gradient(const struct head *h, const struct head_range *ranges, int64_t count,
                                 int64_t rows, bool fresh, void *dx_rows, float *dw, const void *x_rows)
{
    float *sum = rig_array(rows * h->C * 4);
    int64_t element = (int64_t)dtype_bytes(h->dtype);
    for (int64_t i = 0; i < count; i++) {
        const struct head_range *g = &ranges[i];
        const void *w = (const char *)h->w + g->first * h->C * element;
        head_product(h, sum, g->dlogits, w, rows, h->C, g->n, DTYPE_F32, i > 0 ? MATMUL_ADD : 0);
        head_product(h, dw + g->first * h->C, g->dlogits, x_rows, g->n, h->C, rows, DTYPE_F32,
                     MATMUL_A_TRANSPOSED | (fresh ? 0 : MATMUL_ADD));
    }
    h->k->cast(h->q, dx_rows, sum, rows * h->C, h->dtype, DTYPE_F32);
    free(sum);
}

static inline void head_softmax(const struct head *h, struct head_range *ranges, int64_t count,
                                float *logprob, const int32_t *list, int64_t chunk, int64_t rows,
                                bool gradient)
{
    if (h->ranges == 1) {
        h->k->head_softmax(h->q, logprob, gradient ? ranges->dlogits : NULL, ranges->logits, h->labels, list,
                           chunk, rows, h->V, h->dtype);
        return;
    }
    struct head_stats *merged = rig_array(chunk * (int64_t)sizeof *merged);
    struct head_stats *parts = rig_array(count * chunk * (int64_t)sizeof *parts);
    for (int64_t i = 0; i < count; i++) {
        ranges[i].stats = parts + i * chunk;
        h->k->head_stats(h->q, ranges[i].stats, ranges[i].logits, h->labels, list, chunk, ranges[i].first,
                         ranges[i].n);
    }
    h->k->head_merge(h->q, merged, parts, count, chunk);
    for (int64_t i = 0; i < count; i++)
        h->k->head_dlogits(h->q, logprob, gradient ? ranges[i].dlogits : NULL, ranges[i].logits,
                           ranges[i].stats, merged, h->labels, list, chunk, rows, ranges[i].first,
                           ranges[i].n, h->dtype);
    free(merged);
    free(parts);
}

/* logprob[T]; dx[T][C] and dw[V][C], or both NULL. */
static inline void head_run(const struct head *h, float *logprob, void *dx, float *dw)
{
    enum { STEP = 3, RANGES_MAX = 8 }; /* chunks are filled up with zero rows */
    int64_t count = h->ranges < 1 ? 1 : h->ranges, labelled = 0, R = h->chunk + STEP;
    int32_t *list = rig_array(h->T * 4);
    void *x_rows = rig_array(R * h->C * 4), *dx_rows = rig_array(R * h->C * 4);
    struct head_range ranges[RANGES_MAX];
    for (int64_t i = 0; i < count; i++) {
        head_range_of(h, i, &ranges[i].first, &ranges[i].n);
        ranges[i].logits = rig_array(R * ranges[i].n * 4);
        ranges[i].dlogits = h->dtype == DTYPE_F32 ? (void *)ranges[i].logits : rig_array(R * ranges[i].n * 2);
    }
    h->k->head_list(h->q, list, logprob, dx, h->labels, h->T, h->C, h->dtype);
    for (int64_t t = 0; t < h->T; t++)
        labelled += h->labels[t] >= 0;
    if (dw && labelled == 0)
        memset(dw, 0, (size_t)(h->V * h->C) * sizeof *dw);
    for (int64_t first = 0; first < labelled; first += h->chunk) {
        int64_t chunk = labelled - first < h->chunk ? labelled - first : h->chunk, rows = chunk + STEP;
        h->k->rows_gather(h->q, x_rows, h->x, list + first, chunk, rows, h->C, h->dtype);
        for (int64_t i = 0; i < count; i++)
            head_product(h, ranges[i].logits, x_rows,
                         (const char *)h->w + ranges[i].first * h->C * (int64_t)dtype_bytes(h->dtype), rows,
                         ranges[i].n, h->C, DTYPE_F32, MATMUL_B_TRANSPOSED);
        head_softmax(h, ranges, count, logprob, list + first, chunk, rows, dx != NULL);
        if (!dx)
            continue;
        head_gradient(h, ranges, count, rows, first == 0, dx_rows, dw, x_rows);
        h->k->rows_scatter(h->q, dx, dx_rows, list + first, chunk, h->C, h->dtype);
    }
    for (int64_t i = 0; i < count; i++) {
        free(ranges[i].logits);
        if (h->dtype != DTYPE_F32)
            free(ranges[i].dlogits);
    }
    free(x_rows), free(dx_rows), free(list);
}
