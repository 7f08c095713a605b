/* The product as its definition says: each element the sum over k in ascending order, in fp32. The oracle of
 * matmul_dnnl.c; nobody trains with it. */
#include "loops.h"

enum { COLUMNS = 64 };

struct product {
    void *out; /* [m][n] */
    const void *a, *b;
    int64_t m, n, k;
    unsigned flags;
};

/* out[i][j … j+count) */
LEAF void product_strip(const struct product *p, int64_t i, int64_t j, int64_t count, enum dtype out_dtype,
                        const bool bf16)
{
    bool a_transposed = p->flags & MATMUL_A_TRANSPOSED, b_transposed = p->flags & MATMUL_B_TRANSPOSED;
    float sum[COLUMNS] = {0};
    for (int64_t k = 0; k < p->k; k++) {
        float a = get(p->a, a_transposed ? k * p->m + i : i * p->k + k, bf16);
        if (b_transposed)
            for (int64_t c = 0; c < count; c++)
                sum[c] += a * get(p->b, (j + c) * p->k + k, bf16);
        else
            for (int64_t c = 0; c < count; c++)
                sum[c] += a * get(p->b, k * p->n + j + c, bf16);
    }
    bool out_bf16 = out_dtype == DTYPE_BF16;
    for (int64_t c = 0; c < count; c++) {
        int64_t at = i * p->n + j + c;
        put(p->out, at, p->flags & MATMUL_ADD ? get(p->out, at, out_bf16) + sum[c] : sum[c], out_bf16);
    }
}

size_t ROW(matmul_scratch)(int64_t m, int64_t n, int64_t k, enum dtype in_dtype, enum dtype out_dtype,
                           unsigned flags)
{
    (void)m, (void)n, (void)k, (void)in_dtype, (void)out_dtype, (void)flags;
    return 0;
}

void ROW(matmul)(struct queue *q, void *out, const void *a, const void *b, int64_t m, int64_t n, int64_t k,
                 enum dtype in_dtype, enum dtype out_dtype, unsigned flags, void *scratch)
{
    (void)scratch;
    struct product p = {out, a, b, m, n, k, flags};
    int64_t strips = (n + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for num_threads(q->threads) if (m * n * k > RANGE)
    for (int64_t s = 0; s < m * strips; s++) {
        int64_t j = s % strips * COLUMNS, count = n - j < COLUMNS ? n - j : COLUMNS;
        FOR_DTYPE(in_dtype, product_strip, &p, s / strips, j, count, out_dtype);
    }
}
