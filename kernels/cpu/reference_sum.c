/* Sums whose order is part of the promise: of losses, of squares for the norm, of leaves in a fixed binary
 * tree. */
#include "loops.h"

#include <string.h>

void ROW(sum_double)(struct queue *q, double *sum, const float *x, int64_t n)
{
    (void)q;
    double total = 0.0;
    for (int64_t i = 0; i < n; i++)
        total += (double)x[i];
    *sum = total;
}

enum { SQUARES_BLOCK = 256 };

LEAF void squares_block(double *square, const void *x, int64_t n, const bool bf16)
{
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            double v = (double)get(x, i + j, bf16);
            lane[j] += v * v;
        }
    for (int j = 0; i + j < n; j++) {
        double v = (double)get(x, i + j, bf16);
        lane[j] += v * v;
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    *square = lane[0];
}

void ROW(block_squares)(struct queue *q, double *squares, const void *x, int64_t n, enum dtype dtype)
{
    int64_t blocks = (n + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
#pragma omp parallel for num_threads(q->threads) if (n > RANGE)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t rest = n - b * SQUARES_BLOCK;
        FOR_DTYPE(dtype, squares_block, squares + b,
                  (const char *)x + b * SQUARES_BLOCK * (int64_t)dtype_bytes(dtype),
                  rest < SQUARES_BLOCK ? rest : SQUARES_BLOCK);
    }
}

enum { TREE_BLOCK = 256, TREE_LEVELS = 7 };

/* node[level] holds the finished left half of the subtree of that height, waiting for its right half. A
 * finished right half is added to it and climbs; where one of the two is absent the other climbs unchanged.
 */
LEAF void tree_block(float *sum, const char *parts, int64_t n, int64_t stride_bytes, int32_t count,
                     uint64_t present, const bool bf16)
{
    float node[TREE_LEVELS][TREE_BLOCK], rising[TREE_BLOCK];
    bool full[TREE_LEVELS] = {false};
    int32_t whole = 1;
    while (whole < count)
        whole *= 2;
    for (int32_t part = 0; part < whole; part++) {
        bool there = part < count && (present >> part & 1) != 0;
        for (int64_t i = 0; there && i < n; i++)
            rising[i] = get(parts + part * stride_bytes, i, bf16);
        int level = 0;
        for (; (part >> level & 1) != 0; level++) {
            if (full[level] && there) {
                for (int64_t i = 0; i < n; i++)
                    rising[i] = node[level][i] + rising[i];
            } else if (full[level]) {
                memcpy(rising, node[level], (size_t)n * sizeof(float));
                there = true;
            }
        }
        full[level] = there;
        if (there)
            memcpy(node[level], rising, (size_t)n * sizeof(float));
        if (part == whole - 1)
            memcpy(sum, rising, (size_t)n * sizeof(float));
    }
}

void ROW(tree_sum)(struct queue *q, float *sum, const void *parts, int64_t n, int64_t stride, int32_t count,
                   uint64_t present, enum dtype dtype)
{
    int64_t blocks = (n + TREE_BLOCK - 1) / TREE_BLOCK, bytes = (int64_t)dtype_bytes(dtype);
#pragma omp parallel for num_threads(q->threads) if (n * count > RANGE)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t rest = n - b * TREE_BLOCK;
        FOR_DTYPE(dtype, tree_block, sum + b * TREE_BLOCK, (const char *)parts + b * TREE_BLOCK * bytes,
                  rest < TREE_BLOCK ? rest : TREE_BLOCK, stride * bytes, count, present);
    }
}
