/* The head fused with cross-entropy by chunks of tokens: logits never exist whole.
 *
 * The labelled rows of x are gathered chunk by chunk, R rows at most: logits[R][vocabulary] = x w^T in fp32,
 * softmax and log-probability by row, d logits = softmax - onehot rounded to dtype, dx = d logits w, dw = d
 * logits^T x, added up over chunks in order. R depends on shapes only, so the order of every sum does too. */
#include "exp.h"
#include "head.h"
#include "loops.h"

#include <math.h>
#include <string.h>

#define LOGITS_BYTES (64ll << 20) /* of one chunk … */
enum { ROWS_MIN = 256 };          /* … but not fewer rows: every chunk reads and writes all of dw */

/* A chunk's rows are filled up with zero rows to a multiple of 64: then products come in few shapes, whatever
 * the number of labelled rows turns out to be. */
static int64_t padded(int64_t rows)
{
    return (rows + 63) / 64 * 64;
}

static int64_t chunk_rows(const struct head_shape *shape)
{
    int64_t rows = LOGITS_BYTES / ((int64_t)sizeof(float) * shape->vocabulary) / 64 * 64;
    rows = rows < ROWS_MIN ? ROWS_MIN : rows;
    return rows < shape->tokens ? rows : padded(shape->tokens);
}

/* Where a chunk's parts lie in scratch. */
struct chunk {
    int32_t *tokens; /* [T] the labelled rows' numbers, ascending */
    void *x, *dx;    /* [R][hidden] */
    float *logits;   /* [R][vocabulary]; in fp32 d logits take their place */
    void *dlogits;   /* [R][vocabulary] */
    size_t bytes;    /* of all of them */
};

static void *take(char *scratch, size_t *bytes, size_t want)
{
    size_t at = *bytes;
    *bytes += (want + 63) / 64 * 64;
    return scratch ? scratch + at : NULL;
}

static struct chunk chunk_lay(void *scratch, const struct head_shape *shape, bool gradient, enum dtype dtype)
{
    int64_t R = chunk_rows(shape), V = shape->vocabulary, H = shape->hidden;
    size_t element = dtype_bytes(dtype), rows = (size_t)R;
    struct chunk c = {0};
    c.tokens = take(scratch, &c.bytes, (size_t)shape->tokens * sizeof(int32_t));
    c.x = take(scratch, &c.bytes, rows * (size_t)H * element);
    c.logits = take(scratch, &c.bytes, rows * (size_t)V * sizeof(float));
    if (gradient) {
        c.dx = take(scratch, &c.bytes, rows * (size_t)H * element);
        c.dlogits =
            dtype == DTYPE_F32 ? (void *)c.logits : take(scratch, &c.bytes, rows * (size_t)V * element);
    }
    return c;
}

/* One row: returns the label's log-probability; logits become e^(logit - max), *total their sum. */
LEAF float softmax_row(float *logits, int64_t n, int32_t label, float *total)
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
    float of_label = logits[label] - max;

    for (int j = 0; j < LANES; j++)
        lane[j] = 0.0f;
    for (i = 0; i + LANES <= n; i += LANES)
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
    *total = lanes_fold(lane);
    return of_label - logf(*total);
}

/* d logits = softmax - onehot, of the summed negative log-likelihood; may be logits (in place). */
LEAF void dlogits_row(void *dlogits, const float *logits, int64_t n, int32_t label, float total,
                      const bool bf16)
{
    float scale = 1.0f / total, of_label = logits[label] * scale - 1.0f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        put(dlogits, i, logits[i] * scale, bf16);
    put(dlogits, label, of_label, bf16);
}

static void chunk_softmax(struct queue *q, float *logprob, const struct chunk *c, const int32_t *tokens,
                          int64_t rows, const int32_t *labels, int64_t V, bool gradient, enum dtype dtype)
{
#pragma omp parallel for num_threads(q->threads) if (rows * V > RANGE)
    for (int64_t r = 0; r < rows; r++) {
        float total, *logits = c->logits + r * V;
        int32_t label = labels[tokens[r]];
        logprob[tokens[r]] = softmax_row(logits, V, label, &total);
        if (gradient)
            FOR_DTYPE(dtype, dlogits_row, (char *)c->dlogits + r * V * (int64_t)dtype_bytes(dtype), logits, V,
                      label, total);
    }
}

size_t ROW(head_loss_scratch)(const struct head_shape *shape, bool gradient, enum dtype dtype)
{
    return chunk_lay(NULL, shape, gradient, dtype).bytes;
}

void ROW(head_with)(struct queue *q, head_matmul *matmul, float *logprob, void *dx, float *dw, const void *x,
                    const void *w, const int32_t *labels, const struct head_shape *shape, enum dtype dtype,
                    void *scratch)
{
    int64_t T = shape->tokens, V = shape->vocabulary, H = shape->hidden, R = chunk_rows(shape), labelled = 0;
    size_t row_bytes = (size_t)H * dtype_bytes(dtype);
    bool gradient = dx != NULL;
    struct chunk c = chunk_lay(scratch, shape, gradient, dtype);
    for (int64_t t = 0; t < T; t++) {
        logprob[t] = 0.0f;
        if (labels[t] >= 0)
            c.tokens[labelled++] = (int32_t)t; /* NOLINT: scratch is never NULL here */
        else if (gradient)
            memset((char *)dx + (size_t)t * row_bytes, 0, row_bytes);
    }
    if (gradient && labelled == 0)
        memset(dw, 0, (size_t)(V * H) * sizeof(float));

    for (int64_t first = 0; first < labelled; first += R) {
        int64_t rows = labelled - first < R ? labelled - first : R, whole = padded(rows);
        const int32_t *tokens = c.tokens + first;
        for (int64_t r = 0; r < rows; r++)
            memcpy((char *)c.x + (size_t)r * row_bytes, (const char *)x + (size_t)tokens[r] * row_bytes,
                   row_bytes);
        memset((char *)c.x + (size_t)rows * row_bytes, 0, (size_t)(whole - rows) * row_bytes);
        matmul(q, c.logits, c.x, w, whole, V, H, dtype, DTYPE_F32, MATMUL_B_TRANSPOSED, NULL);
        chunk_softmax(q, logprob, &c, tokens, rows, labels, V, gradient, dtype);
        if (!gradient)
            continue;
        size_t dlogits_row = (size_t)V * dtype_bytes(dtype);
        memset((char *)c.dlogits + (size_t)rows * dlogits_row, 0, (size_t)(whole - rows) * dlogits_row);
        matmul(q, c.dx, c.dlogits, w, whole, H, V, dtype, dtype, 0, NULL);
        matmul(q, dw, c.dlogits, c.x, V, H, whole, dtype, DTYPE_F32,
               first == 0 ? MATMUL_A_TRANSPOSED : MATMUL_A_TRANSPOSED | MATMUL_ADD, NULL);
        for (int64_t r = 0; r < rows; r++)
            memcpy((char *)dx + (size_t)tokens[r] * row_bytes, (const char *)c.dx + (size_t)r * row_bytes,
                   row_bytes);
    }
}

void ROW(head_loss)(struct queue *q, float *logprob, void *dx, float *dw, const void *x, const void *w,
                    const int32_t *labels, const struct head_shape *shape, enum dtype dtype, void *scratch)
{
    ROW(head_with)(q, ROW(matmul), logprob, dx, dw, x, w, labels, shape, dtype, scratch);
}
