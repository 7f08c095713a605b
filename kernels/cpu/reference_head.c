/* The head's rows between its products: which rows are labelled, their softmax, and its gradient.
 *
 * A row of logits may be cut over ranks, each with a range of the vocabulary. So softmax comes in two halves:
 * what a range knows alone (its largest logit, its sum), and, once the ranges' are merged, the probabilities.
 * In between the logits are kept as e^(logit - the range's largest): no exponential is formed twice. */
#include "exp.h"
#include "loops.h"

#include <math.h>
#include <string.h>

void ROW(head_list)(struct queue *q, int32_t *list, float *logprob, void *dx, const int32_t *labels,
                    int64_t T, int64_t n, enum dtype dtype)
{
    (void)q;
    size_t bytes = (size_t)n * dtype_bytes(dtype);
    int64_t count = 0;
    for (int64_t t = 0; t < T; t++) {
        if (labels[t] >= 0) {
            list[count++] = (int32_t)t;
            continue;
        }
        logprob[t] = 0.0f;
        if (dx)
            memset((char *)dx + (size_t)t * bytes, 0, bytes);
    }
}

LEAF float largest(const float *logits, int64_t n)
{
    float lane[LANES], max;
    for (int j = 0; j < LANES; j++)
        lane[j] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] = logits[i + j] > lane[j] ? logits[i + j] : lane[j];
    for (int j = 0; i + j < n; j++)
        lane[j] = logits[i + j] > lane[j] ? logits[i + j] : lane[j];
    max = lane[0];
    for (int j = 1; j < LANES; j++)
        max = lane[j] > max ? lane[j] : max;
    return max;
}

/* One row; label counts from the range's first token. Logits become e^(logit - max). */
LEAF struct head_stats stats_row(float *logits, int64_t n, int64_t label)
{
    struct head_stats stats = {.max = largest(logits, n), .label = -INFINITY};
    if (label >= 0 && label < n)
        stats.label = logits[label];
    float lane[LANES], max = stats.max;
    int64_t i = 0;
    for (int j = 0; j < LANES; j++)
        lane[j] = 0.0f;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float e = exp_float(logits[i + j] - max);
            logits[i + j] = e;
            lane[j] += e;
        }
    for (int j = 0; i + j < n; j++) {
        float e = exp_float(logits[i + j] - max);
        logits[i + j] = e;
        lane[j] += e;
    }
    stats.total = lanes_fold(lane);
    return stats;
}

LEAF float stats_logprob(const struct head_stats *merged)
{
    return merged->label - merged->max - logf(merged->total);
}

/* d logits = softmax - onehot, of the summed negative log-likelihood; may be exps (in place). */
LEAF void dlogits_row(void *dlogits, const float *exps, int64_t n, int64_t label, float scale,
                      const bool bf16)
{
    bool mine = label >= 0 && label < n;
    float of_label = mine ? exps[label] * scale - 1.0f : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        put(dlogits, i, exps[i] * scale, bf16);
    if (mine)
        put(dlogits, label, of_label, bf16);
}

static void zero_rows(void *dlogits, int64_t first, int64_t past, int64_t n, enum dtype dtype)
{
    size_t bytes = (size_t)n * dtype_bytes(dtype);
    memset((char *)dlogits + (size_t)first * bytes, 0, (size_t)(past - first) * bytes);
}

void ROW(head_stats)(struct queue *q, struct head_stats *stats, float *logits, const int32_t *labels,
                     const int32_t *list, int64_t count, int64_t first, int64_t n)
{
#pragma omp parallel for num_threads(q->threads) if (count * n > RANGE)
    for (int64_t r = 0; r < count; r++)
        stats[r] = stats_row(logits + r * n, n, labels[list[r]] - first);
}

void ROW(head_merge)(struct queue *q, struct head_stats *merged, const struct head_stats *parts,
                     int64_t ranges_count, int64_t count)
{
    (void)q;
    for (int64_t r = 0; r < count; r++) {
        struct head_stats all = {-INFINITY, 0.0f, -INFINITY};
        for (int64_t range = 0; range < ranges_count; range++) {
            const struct head_stats *part = &parts[range * count + r];
            all.max = part->max > all.max ? part->max : all.max;
            all.label = part->label > all.label ? part->label : all.label;
        }
        for (int64_t range = 0; range < ranges_count; range++) {
            const struct head_stats *part = &parts[range * count + r];
            all.total += part->total * exp_float(part->max - all.max);
        }
        merged[r] = all;
    }
}

void ROW(head_dlogits)(struct queue *q, float *logprob, void *dlogits, const float *exps,
                       const struct head_stats *own, const struct head_stats *merged, const int32_t *labels,
                       const int32_t *list, int64_t count, int64_t rows, int64_t first, int64_t n,
                       enum dtype dtype)
{
#pragma omp parallel for num_threads(q->threads) if (count * n > RANGE)
    for (int64_t r = 0; r < count; r++) {
        logprob[list[r]] = stats_logprob(&merged[r]);
        float scale = 1.0f / merged[r].total * exp_float(own[r].max - merged[r].max);
        if (dlogits)
            FOR_DTYPE(dtype, dlogits_row, to_row(dlogits, r, n, dtype == DTYPE_BF16), exps + r * n, n,
                      labels[list[r]] - first, scale);
    }
    if (dlogits)
        zero_rows(dlogits, count, rows, n, dtype);
}

void ROW(head_softmax)(struct queue *q, float *logprob, void *dlogits, float *logits, const int32_t *labels,
                       const int32_t *list, int64_t count, int64_t rows, int64_t n, enum dtype dtype)
{
#pragma omp parallel for num_threads(q->threads) if (count * n > RANGE)
    for (int64_t r = 0; r < count; r++) {
        float *row = logits + r * n;
        struct head_stats stats = stats_row(row, n, labels[list[r]]);
        logprob[list[r]] = stats_logprob(&stats);
        if (dlogits)
            FOR_DTYPE(dtype, dlogits_row, to_row(dlogits, r, n, dtype == DTYPE_BF16), row, n, labels[list[r]],
                      1.0f / stats.total);
    }
    if (dlogits)
        zero_rows(dlogits, count, rows, n, dtype);
}
