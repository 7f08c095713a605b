/* What the attention tests share: cases (packed sequences, segments), a naive attention in double precision
 * and its gradient, and the sets of rows that this processor runs. fp32 agrees to 1e-5 of each tensor's
 * largest element; bf16 to 1.1 times the error that a naive version makes by rounding where bf16 must. */
#pragma once

#include "attention_fast.h"
#include "bf16.h"
#include "check.h"
#include "queue.h"
#include "tables.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { SEQUENCES_MAX = 8 };
enum { OUT, LSE, DQ, DK, DV, RESULTS }; /* what the rows write */
static const char *const result_name[RESULTS] = {"out", "lse", "dq", "dk", "dv"};

/* One implementation of the four rows. */
struct set {
    const char *name;
    struct kernels table;
};

struct packing {
    int32_t q_heads, kv_heads, head_dim, padding, sequences, lengths[SEQUENCES_MAX];
    int32_t key_rows; /* 0: keys lie in the queries' rows */
    struct attention_keys keys[SEQUENCES_MAX];
};

/* Whole sequences. */
#define PACKED(q, kv, dim, pad, count, ...)                                                                  \
    {                                                                                                        \
        .q_heads = q, .kv_heads = kv, .head_dim = dim, .padding = pad, .sequences = count, .lengths = {      \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
    }

/* Inputs of one case as fp32 (of bf16 values where dtype is bf16), and what the rows made of them. */
struct tensors {
    struct attention_shape shape;
    int32_t starts[SEQUENCES_MAX + 1];
    struct attention_keys own_keys[SEQUENCES_MAX];
    const struct attention_keys *keys; /* own_keys, or NULL */
    enum dtype dtype;
    float *qs, *ks, *vs, *dout; /* [T][heads][head_dim] of queries, [S][heads][head_dim] of keys */
    float *result[RESULTS];
    int64_t count[RESULTS];
};

static uint64_t random_state = 1;

static float random_value(void) /* roughly normal */
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        random_state = random_state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(random_state >> 40) / (float)(1 << 24) - 0.5f;
    }
    return 1.7f * sum;
}

static float rounded(float x, enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? bf16_to_float(bf16_from_float(x)) : x;
}

static float *random_tensor(int64_t n, enum dtype dtype)
{
    float *x = calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++)
        x[i] = rounded(random_value(), dtype);
    return x;
}

static void tensors_init(struct tensors *t, const struct packing *p, enum dtype dtype)
{
    *t = (struct tensors){.dtype = dtype};
    int32_t longest = 0;
    for (int32_t s = 0; s < p->sequences; s++) {
        t->starts[s + 1] = t->starts[s] + p->lengths[s];
        t->own_keys[s] = p->key_rows > 0 ? p->keys[s] : (struct attention_keys){t->starts[s], p->lengths[s]};
        longest = t->own_keys[s].count > longest ? t->own_keys[s].count : longest;
    }
    t->keys = p->key_rows > 0 ? t->own_keys : NULL;
    t->shape = (struct attention_shape){.tokens = t->starts[p->sequences] + p->padding,
                                        .key_rows = p->key_rows > 0 ? p->key_rows
                                                                    : t->starts[p->sequences] + p->padding,
                                        .sequences = p->sequences,
                                        .longest = longest,
                                        .q_heads = p->q_heads,
                                        .kv_heads = p->kv_heads,
                                        .head_dim = p->head_dim,
                                        .scale = 1 / sqrtf((float)p->head_dim)};
    int64_t rows = t->shape.tokens, q = rows * p->q_heads * p->head_dim,
            kv = t->shape.key_rows * p->kv_heads * p->head_dim;
    t->qs = random_tensor(q, dtype);
    t->ks = random_tensor(kv, dtype);
    t->vs = random_tensor(kv, dtype);
    t->dout = random_tensor(q, dtype);
    const int64_t count[] = {q, rows * p->q_heads, q, kv, kv};
    for (int i = 0; i < RESULTS; i++) {
        t->count[i] = count[i];
        t->result[i] = calloc((size_t)count[i] + 1, sizeof(float));
        assert_non_null(t->result[i]);
    }
}

static void tensors_done(struct tensors *t)
{
    free(t->qs), free(t->ks), free(t->vs), free(t->dout);
    for (int i = 0; i < RESULTS; i++)
        free(t->result[i]);
}

/* A tensor as the rows see it; what is there beforehand is NaN. */
static void *to_dtype(const float *x, int64_t n, enum dtype dtype)
{
    void *y = malloc((size_t)n * 4 + 4);
    assert_non_null(y);
    for (int64_t i = 0; i < n; i++)
        if (dtype == DTYPE_BF16)
            ((uint16_t *)y)[i] = x ? bf16_from_float(x[i]) : 0x7FC0;
        else
            ((float *)y)[i] = x ? x[i] : NAN;
    return y;
}

static void from_dtype(float *x, const void *y, int64_t n, enum dtype dtype)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = dtype == DTYPE_BF16 ? bf16_to_float(((const uint16_t *)y)[i]) : ((const float *)y)[i];
}

/* Forward and backward of one set; scratch is exactly as large as it says, so that a sanitizer sees its
 * bounds. */
static void run(struct tensors *t, const struct set *set, int threads)
{
    struct queue queue = {.threads = threads, .table = set->table};
    void *inputs[] = {to_dtype(t->qs, t->count[DQ], t->dtype), to_dtype(t->ks, t->count[DK], t->dtype),
                      to_dtype(t->vs, t->count[DV], t->dtype), to_dtype(t->dout, t->count[OUT], t->dtype)};
    void *y[RESULTS];
    for (int i = 0; i < RESULTS; i++)
        y[i] = to_dtype(NULL, t->count[i], i == LSE ? DTYPE_F32 : t->dtype);
    void *scratch = malloc(set->table.attention_forward_scratch(&t->shape, t->dtype) + 1);
    set->table.attention_forward(&queue, y[OUT], y[LSE], inputs[0], inputs[1], inputs[2], t->starts, t->keys,
                                 &t->shape, t->dtype, scratch);
    free(scratch);
    scratch = malloc(set->table.attention_backward_scratch(&t->shape, t->dtype) + 1);
    set->table.attention_backward(&queue, y[DQ], y[DK], y[DV], inputs[3], y[OUT], y[LSE], inputs[0],
                                  inputs[1], inputs[2], t->starts, t->keys, &t->shape, t->dtype, scratch);
    free(scratch);
    for (int i = 0; i < RESULTS; i++) {
        from_dtype(t->result[i], y[i], t->count[i], i == LSE ? DTYPE_F32 : t->dtype);
        free(y[i]);
    }
    for (int i = 0; i < 4; i++)
        free(inputs[i]);
}

/* The oracle: softmax(scale q k' + mask) v of one head and its gradient, with its T x T matrix, in double;
 * where `rounds`, with the roundings that bf16 operands and outputs ask for. Adds into want, [RESULTS]. */
static double rounded_double(double x, bool rounds)
{
    return rounds ? (double)bf16_to_float(bf16_from_float((float)x)) : x;
}

static double dot_rows(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* One query row q of a head, and the keys that it sees: rows first … first+seen-1. */
struct query {
    int64_t row, head, first, seen;
};

/* The softmax of its scores into p[seen]; returns their log-sum-exp. */
static double naive_softmax(double *p, const struct tensors *t, const struct query *query)
{
    const struct attention_shape *s = &t->shape;
    int64_t n = s->head_dim, kv = query->head / (s->q_heads / s->kv_heads);
    double max = (double)-INFINITY, total = 0;
    for (int64_t j = 0; j < query->seen; j++) {
        p[j] = (double)s->scale * dot_rows(t->qs + (query->row * s->q_heads + query->head) * n,
                                           t->ks + ((query->first + j) * s->kv_heads + kv) * n, n);
        max = fmax(max, p[j]);
    }
    for (int64_t j = 0; j < query->seen; j++)
        total += exp(p[j] - max);
    for (int64_t j = 0; j < query->seen; j++)
        p[j] = exp(p[j] - max) / total;
    return max + log(total);
}

static void naive_query(double *const *want, double *p, const struct tensors *t, const struct query *query,
                        bool rounds)
{
    const struct attention_shape *s = &t->shape;
    int64_t n = s->head_dim, q = query->row * s->q_heads + query->head;
    int64_t kv = query->head / (s->q_heads / s->kv_heads);
    want[LSE][q] = naive_softmax(p, t, query);
    double *out = want[OUT] + q * n, mean = 0;
    for (int64_t j = 0; j < query->seen; j++)
        for (int64_t e = 0; e < n; e++)
            out[e] +=
                rounded_double(p[j], rounds) * (double)t->vs[((query->first + j) * s->kv_heads + kv) * n + e];
    for (int64_t e = 0; e < n; e++) {
        out[e] = rounded_double(out[e], rounds);
        mean += out[e] * (double)t->dout[q * n + e];
    }
    for (int64_t j = 0; j < query->seen; j++) {
        int64_t k = (query->first + j) * s->kv_heads + kv;
        double ds = rounded_double(p[j] * (dot_rows(t->dout + q * n, t->vs + k * n, n) - mean), rounds);
        for (int64_t e = 0; e < n; e++) {
            want[DQ][q * n + e] += (double)s->scale * ds * (double)t->ks[k * n + e];
            want[DK][k * n + e] += (double)s->scale * ds * (double)t->qs[q * n + e];
            want[DV][k * n + e] += rounded_double(p[j], rounds) * (double)t->dout[q * n + e];
        }
    }
}

static void naive(double *const *want, const struct tensors *t, bool rounds)
{
    double *p = calloc((size_t)t->shape.longest + 1, sizeof *p);
    assert_non_null(p);
    for (int64_t s = 0; s < t->shape.sequences; s++)
        for (int64_t row = t->starts[s]; row < t->starts[s + 1]; row++)
            for (int64_t head = 0; head < t->shape.q_heads; head++) {
                int64_t after = t->starts[s + 1] - 1 - row; /* the last query sees all keys */
                struct query query = {row, head, t->own_keys[s].first, t->own_keys[s].count - after};
                naive_query(want, p, t, &query, rounds);
            }
    free(p);
    for (int r = 0; rounds && r < RESULTS; r++)
        for (int64_t i = 0; r != LSE && i < t->count[r]; i++)
            want[r][i] = rounded_double(want[r][i], true);
}

static void wants_init(double **want, const struct tensors *t)
{
    for (int r = 0; r < RESULTS; r++) {
        want[r] = calloc((size_t)t->count[r] + 1, sizeof(double));
        assert_non_null(want[r]);
    }
}

static void wants_done(double **want)
{
    for (int r = 0; r < RESULTS; r++)
        free(want[r]);
}

static double root_mean_square(const double *x, const float *minus_f32, const double *minus, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = x[i] - (minus_f32 ? (double)minus_f32[i] : minus ? minus[i] : 0);
        sum += d * d;
    }
    return sqrt(sum / (double)(n > 0 ? n : 1));
}

/* fp32: every element. bf16: the error of a tensor as a whole against the naive one's, and a little (a sixth
 * of what rounding the output alone costs) for small samples and exact zeros. */
static void check_against_naive(const struct tensors *t, const char *set, const struct packing *p)
{
    double *exact[RESULTS], *naive_bf16[RESULTS];
    wants_init(exact, t);
    naive(exact, t, false);
    wants_init(naive_bf16, t);
    if (t->dtype == DTYPE_BF16)
        naive(naive_bf16, t, true);
    for (int r = 0; r < RESULTS; r++) {
        double largest = 0, worst = 0, size = root_mean_square(exact[r], NULL, NULL, t->count[r]);
        for (int64_t i = 0; i < t->count[r]; i++) {
            double apart = fabs((double)t->result[r][i] - exact[r][i]);
            largest = fmax(largest, fabs(exact[r][i]));
            worst = apart <= worst ? worst : apart; /* NaN is worst */
        }
        double limit = 1e-5 * largest + 2e-6;
        if (t->dtype == DTYPE_BF16 && r != LSE) {
            worst = root_mean_square(exact[r], t->result[r], NULL, t->count[r]);
            limit = 1.1 * root_mean_square(exact[r], NULL, naive_bf16[r], t->count[r]) + 2e-4 * size + 1e-5;
            if (t->shape.longest < 64)
                limit += 4e-3 * root_mean_square(exact[OUT], NULL, NULL, t->count[OUT]);
        }
        if (!(worst <= limit))
            fail_msg("%s %s %s: off by %.3g, allowed %.3g; heads %d/%d, head_dim %d, %d sequences, the first "
                     "of %d",
                     set, dtype_name(t->dtype), result_name[r], worst, limit, p->q_heads, p->kv_heads,
                     p->head_dim, p->sequences, p->lengths[0]);
    }
    wants_done(exact);
    wants_done(naive_bf16);
}

/* The sets that this processor runs, and the types each is for. */
static int sets_here(struct set *sets)
{
    int count = 0;
    sets[count++] = (struct set){.name = "reference", .table = kernels_reference};
    struct kernels overlaid = kernels_reference;
    overlay_attention_avx512(&overlaid);
    if (overlaid.attention_forward == kernels_reference.attention_forward)
        return count;
    sets[count] = (struct set){.name = "avx512", .table = kernels_reference};
    sets[count].table.attention_forward = attention_forward_avx512;
    sets[count].table.attention_forward_scratch = attention_forward_scratch_avx512;
    sets[count].table.attention_backward = attention_backward_avx512;
    sets[count++].table.attention_backward_scratch = attention_backward_scratch_avx512;
    if (overlaid.attention_forward != attention_forward_avx512)
        sets[count++] = (struct set){.name = "avx512_bf16", .table = overlaid};
    return count;
}

static void check_packing(const struct packing *p)
{
    struct set sets[3];
    int count = sets_here(sets);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct tensors t;
        tensors_init(&t, p, bf16 ? DTYPE_BF16 : DTYPE_F32);
        for (int i = 0; i < count; i++) {
            run(&t, &sets[i], 1);
            check_against_naive(&t, sets[i].name, p);
        }
        tensors_done(&t);
    }
}

static void keep_results(float **before, const struct tensors *t)
{
    for (int r = 0; r < RESULTS; r++) {
        before[r] = malloc((size_t)t->count[r] * sizeof(float) + 1);
        assert_non_null(before[r]);
        memcpy(before[r], t->result[r], (size_t)t->count[r] * sizeof(float));
    }
}

static void check_same_bits(const struct tensors *t, const float *const *before, const char *set)
{
    for (int r = 0; r < RESULTS; r++)
        if (memcmp(t->result[r], before[r], (size_t)t->count[r] * sizeof(float)) != 0)
            fail_msg("%s %s: other bits in %s", set, dtype_name(t->dtype), result_name[r]);
}

/* Sets and types, with one thread and more: the same bits. */
static void check_threads(const struct packing *p)
{
    struct set sets[3];
    int count = sets_here(sets);
    for (int c = 0; c < 2 * count; c++) {
        const struct set *set = &sets[c / 2];
        struct tensors t;
        tensors_init(&t, p, c % 2 ? DTYPE_BF16 : DTYPE_F32);
        float *before[RESULTS];
        run(&t, set, 1);
        keep_results(before, &t);
        for (int threads = 2; threads <= 4; threads++) {
            run(&t, set, threads);
            check_same_bits(&t, (const float *const *)before, set->name);
        }
        for (int r = 0; r < RESULTS; r++)
            free(before[r]);
        tensors_done(&t);
    }
}
