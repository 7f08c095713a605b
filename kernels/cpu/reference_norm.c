/* RMSNorm (Zhang & Sennrich 2019), forward and backward, and the residual add that precedes it. */
#include "loops.h"

#include <math.h>
#include <string.h>

LEAF float row_squares(const void *x, int64_t n, const bool bf16)
{
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float v = get(x, i + j, bf16);
            lane[j] += v * v;
        }
    for (int j = 0; i + j < n; j++) {
        float v = get(x, i + j, bf16);
        lane[j] += v * v;
    }
    return lanes_fold(lane);
}

/* out = x * rstd * w; returns rstd */
LEAF float norm_row(void *out, const void *x, const void *w, int64_t n, float eps, const bool bf16)
{
    float rstd = 1.0f / sqrtf(row_squares(x, n, bf16) / (float)n + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        put(out, i, get(x, i, bf16) * rstd * get(w, i, bf16), bf16);
    return rstd;
}

LEAF void norm_rows(void *out, float *rstd, const void *x, const void *w, int64_t first, int64_t end,
                    int64_t n, float eps, const bool bf16)
{
    for (int64_t r = first; r < end; r++)
        rstd[r] = norm_row(to_row(out, r, n, bf16), from_row(x, r, n, bf16), w, n, eps, bf16);
}

void ROW(rmsnorm_forward)(struct queue *q, void *out, float *rstd, const void *x, const void *w, int64_t rows,
                          int64_t n, float eps, enum dtype dtype)
{
    int64_t step = range_rows(n);
#pragma omp parallel for num_threads(q->threads) if (rows > step)
    for (int64_t r = 0; r < rows; r += step)
        FOR_DTYPE(dtype, norm_rows, out, rstd, x, w, r, r + step < rows ? r + step : rows, n, eps);
}

LEAF void add_norm_rows(void *sum, void *out, float *rstd, const void *a, const void *b, const void *w,
                        int64_t first, int64_t end, int64_t n, float eps, const bool bf16)
{
    for (int64_t r = first; r < end; r++) {
        void *s = to_row(sum, r, n, bf16);
        const void *x = from_row(a, r, n, bf16), *y = from_row(b, r, n, bf16);
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            put(s, i, get(x, i, bf16) + get(y, i, bf16), bf16);
        rstd[r] = norm_row(to_row(out, r, n, bf16), s, w, n, eps, bf16);
    }
}

void ROW(add_rmsnorm_forward)(struct queue *q, void *sum, void *out, float *rstd, const void *a,
                              const void *b, const void *w, int64_t rows, int64_t n, float eps,
                              enum dtype dtype)
{
    int64_t step = range_rows(n);
#pragma omp parallel for num_threads(q->threads) if (rows > step)
    for (int64_t r = 0; r < rows; r += step)
        FOR_DTYPE(dtype, add_norm_rows, sum, out, rstd, a, b, w, r, r + step < rows ? r + step : rows, n,
                  eps);
}

/* dw is summed over blocks of rows, then over the blocks in order: at most 64 blocks, of at least 32 rows. */
static int64_t block_rows(int64_t rows)
{
    int64_t block = (rows + 63) / 64;
    return block < 32 ? 32 : block;
}

size_t ROW(rmsnorm_backward_scratch)(int64_t rows, int64_t n)
{
    int64_t block = block_rows(rows);
    return (size_t)((rows + block - 1) / block * n) * sizeof(float);
}

/* With h = dout * w: dx = rstd (h - x rstd^2 mean(h x)); dw += dout x rstd. */
LEAF void norm_backward_row(void *dx, float *dw, const void *dout, const void *x, const void *w, float rstd,
                            int64_t n, bool add, const bool bf16)
{
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float dx_i = get(dout, i + j, bf16) * get(x, i + j, bf16);
            lane[j] += dx_i * get(w, i + j, bf16);
            dw[i + j] += dx_i * rstd;
        }
    for (int j = 0; i + j < n; j++) {
        float dx_i = get(dout, i + j, bf16) * get(x, i + j, bf16);
        lane[j] += dx_i * get(w, i + j, bf16);
        dw[i + j] += dx_i * rstd;
    }
    float pull = lanes_fold(lane) / (float)n * rstd * rstd;
    if (add) {
#pragma omp simd
        for (int64_t c = 0; c < n; c++)
            put(dx, c,
                get(dx, c, bf16) + rstd * (get(dout, c, bf16) * get(w, c, bf16) - get(x, c, bf16) * pull),
                bf16);
    } else {
#pragma omp simd
        for (int64_t c = 0; c < n; c++)
            put(dx, c, rstd * (get(dout, c, bf16) * get(w, c, bf16) - get(x, c, bf16) * pull), bf16);
    }
}

LEAF void norm_backward_rows(void *dx, float *dw, const void *dout, const void *x, const void *w,
                             const float *rstd, int64_t first, int64_t end, int64_t n, bool add,
                             const bool bf16)
{
    for (int64_t r = first; r < end; r++)
        norm_backward_row(to_row(dx, r, n, bf16), dw, from_row(dout, r, n, bf16), from_row(x, r, n, bf16), w,
                          rstd[r], n, add, bf16);
}

void ROW(rmsnorm_backward)(struct queue *q, void *dx, float *dw, const void *dout, const void *x,
                           const void *w, const float *rstd, int64_t rows, int64_t n, bool add,
                           enum dtype dtype, void *scratch)
{
    int64_t block = block_rows(rows), blocks = (rows + block - 1) / block;
    float *parts = scratch; /* [blocks][n] */
#pragma omp parallel for num_threads(q->threads) if (rows * n > RANGE)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t end = (b + 1) * block < rows ? (b + 1) * block : rows;
        memset(parts + b * n, 0, (size_t)n * sizeof(float));
        FOR_DTYPE(dtype, norm_backward_rows, dx, parts + b * n, dout, x, w, rstd, b * block, end, n, add);
    }
    memset(dw, 0, (size_t)n * sizeof(float));
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t i = 0; i < n; i++)
            dw[i] += parts[b * n + i];
}
