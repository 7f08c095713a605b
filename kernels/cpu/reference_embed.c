/* Rows by number: the embedding of a range of the vocabulary and its gradient, rows gathered and scattered.
 */
#include "loops.h"

#include <string.h>

void ROW(embed_forward)(struct queue *q, void *out, const void *table, const int32_t *tokens, int64_t T,
                        int64_t first, int64_t rows, int64_t hidden, enum dtype dtype)
{
    size_t bytes = (size_t)hidden * dtype_bytes(dtype);
#pragma omp parallel for num_threads(q->threads) if (T * hidden > RANGE)
    for (int64_t t = 0; t < T; t++) {
        int64_t row = tokens[t] - first;
        char *to = (char *)out + (size_t)t * bytes;
        if (row >= 0 && row < rows)
            memcpy(to, (const char *)table + (size_t)row * bytes, bytes);
        else
            memset(to, 0, bytes);
    }
}

LEAF void embed_add(float *drow, const void *dout, int64_t n, const bool bf16)
{
    for (int64_t i = 0; i < n; i++)
        drow[i] += get(dout, i, bf16);
}

/* Threads share out the columns, not the tokens: every element is summed by one thread, in the tokens' order.
 */
void ROW(embed_backward)(struct queue *q, float *dtable, const void *dout, const int32_t *tokens, int64_t T,
                         int64_t first, int64_t rows, int64_t hidden, enum dtype dtype)
{
    enum { SLAB = 64 };
    int64_t slabs = (hidden + SLAB - 1) / SLAB;
#pragma omp parallel num_threads(q->threads) if (rows * hidden > RANGE)
    {
#pragma omp for
        for (int64_t v = 0; v < rows; v++)
            memset(dtable + v * hidden, 0, (size_t)hidden * sizeof(float));
#pragma omp for
        for (int64_t slab = 0; slab < slabs; slab++) {
            int64_t column = slab * SLAB, n = hidden - column < SLAB ? hidden - column : SLAB;
            for (int64_t t = 0; t < T; t++) {
                int64_t row = tokens[t] - first;
                const char *from = (const char *)dout + (t * hidden + column) * (int64_t)dtype_bytes(dtype);
                if (row >= 0 && row < rows)
                    FOR_DTYPE(dtype, embed_add, dtable + row * hidden + column, from, n);
            }
        }
    }
}

void ROW(rows_gather)(struct queue *q, void *out, const void *x, const int32_t *list, int64_t count,
                      int64_t rows, int64_t n, enum dtype dtype)
{
    size_t bytes = (size_t)n * dtype_bytes(dtype);
#pragma omp parallel for num_threads(q->threads) if (rows * n > RANGE)
    for (int64_t r = 0; r < rows; r++) {
        char *to = (char *)out + (size_t)r * bytes;
        if (r < count)
            memcpy(to, (const char *)x + (size_t)list[r] * bytes, bytes);
        else
            memset(to, 0, bytes);
    }
}

void ROW(rows_scatter)(struct queue *q, void *out, const void *x, const int32_t *list, int64_t count,
                       int64_t n, enum dtype dtype)
{
    size_t bytes = (size_t)n * dtype_bytes(dtype);
#pragma omp parallel for num_threads(q->threads) if (count * n > RANGE)
    for (int64_t r = 0; r < count; r++)
        memcpy((char *)out + (size_t)list[r] * bytes, (const char *)x + (size_t)r * bytes, bytes);
}
