/* The embedding: rows of a table by token, and their gradient. */
#include "loops.h"

#include <string.h>

void ROW(embed_forward)(struct queue *q, void *out, const void *table, const int32_t *tokens, int64_t T,
                        int64_t hidden, enum dtype dtype)
{
    size_t bytes = (size_t)hidden * dtype_bytes(dtype);
#pragma omp parallel for num_threads(q->threads) if (T * hidden > RANGE)
    for (int64_t t = 0; t < T; t++)
        memcpy((char *)out + (size_t)t * bytes, (const char *)table + (size_t)tokens[t] * bytes, bytes);
}

LEAF void embed_add(float *drow, const void *dout, int64_t n, const bool bf16)
{
    for (int64_t i = 0; i < n; i++)
        drow[i] += get(dout, i, bf16);
}

/* Threads share out the columns, not the tokens: every element is summed by one thread, in the tokens' order.
 */
void ROW(embed_backward)(struct queue *q, float *dtable, const void *dout, const int32_t *tokens, int64_t T,
                         int64_t vocabulary, int64_t hidden, enum dtype dtype)
{
    enum { SLAB = 64 };
    int64_t slabs = (hidden + SLAB - 1) / SLAB;
#pragma omp parallel num_threads(q->threads) if (vocabulary * hidden > RANGE)
    {
#pragma omp for
        for (int64_t v = 0; v < vocabulary; v++)
            memset(dtable + v * hidden, 0, (size_t)hidden * sizeof(float));
#pragma omp for
        for (int64_t slab = 0; slab < slabs; slab++) {
            int64_t column = slab * SLAB, n = hidden - column < SLAB ? hidden - column : SLAB;
            for (int64_t t = 0; t < T; t++) {
                const char *from = (const char *)dout + (t * hidden + column) * (int64_t)dtype_bytes(dtype);
                FOR_DTYPE(dtype, embed_add, dtable + tokens[t] * hidden + column, from, n);
            }
        }
    }
}
