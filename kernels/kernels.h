/* The kernel table: every operation that runs on a device, one row each, one table of functions a backend.
 *
 * Conventions, for all rows unless a row says otherwise:
 *  - the queue comes first, then outputs, then inputs, then sizes; pointers are device memory; nothing is
 * allocated;
 *  - `dtype` is the compute type of activations and weights, DTYPE_F32 or DTYPE_BF16; products accumulate in
 * fp32; inside an op all is fp32, rounded to nearest even once when an output is stored;
 *  - outputs do not overlap inputs unless the row says "in place";
 *  - activations are row-major, T rows (tokens of a packed micro-batch); weights are [out][in] as on the hub;
 *  - an output named *_add accumulates (out += result, one rounding); every other output is overwritten;
 *  - weight gradients are fp32 and are written, never accumulated: one leaf a micro-batch;
 *  - the bits of a result depend on shapes and inputs, never on the number of threads: reductions over tokens
 * run in fixed blocks, summed in order;
 *  - `scratch` has the bytes that the matching scratch row returns for the same shape; it may be NULL if that
 * is 0. A scratch row never returns less for more tokens, sequences or a longer one: plans for the largest
 * batch count on it (tests/unit/model checks the sum). It is asked before every call of a run, so it must be
 * quick.
 *
 * The plain C backend (cpu/reference_*.c) is complete and is the oracle; fast versions overlay its rows. */
#pragma once

#include "dtype.h"
#include "state.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct queue;

enum matmul_flags {
    MATMUL_A_TRANSPOSED = 1, /* a is stored [k][m] */
    MATMUL_B_TRANSPOSED = 2, /* b is stored [n][k]: a weight used forward */
    MATMUL_ADD = 4,          /* out += a b, else out = a b */
};

/* The keys of one segment of queries: rows first … first+count-1 of ks and vs. */
struct attention_keys {
    int32_t first, count;
};

/* Causal attention over packed segments. Segment s holds queries starts[s] … starts[s+1]-1, n of them, and
 * has the keys keys[s], count >= n of them. The last query sees all of them, each before it one less: query i
 * sees the first count - n + 1 + i. keys NULL: a segment's keys are its own rows, which makes it a whole
 * sequence.
 *
 * Segments that see keys of one sequence (a context group cuts it into chunks; a rank holds two) have the
 * same first key and follow one upon the other; all others have no key in common. The gradient of a key is
 * summed over its segments in ascending order, in fp32, and rounded once.
 *
 * Query rows from starts[segments] on are padding and get zeros, as do the gradients of keys that nobody
 * sees. Query head h reads key/value head h / (q_heads / kv_heads). */
struct attention_shape {
    int64_t tokens;    /* T, query rows, padding included */
    int64_t key_rows;  /* S, rows of ks and vs; T where keys is NULL */
    int64_t sequences; /* segments */
    int64_t longest;   /* the most keys of a segment; bounds scratch and work, never the result */
    int32_t q_heads, kv_heads, head_dim;
    float scale; /* positive; 1/sqrt(head_dim), usually */
};

/* What is known of one row of logits over a range of the vocabulary: the head's softmax is of all ranges. */
struct head_stats {
    float max;   /* the largest logit; -inf of an empty range */
    float total; /* the sum of e^(logit - max) */
    float label; /* the label's logit; -inf where the label lies in another range */
};

#define K_QUEUE struct queue *q

/* X(name, (parameters), (arguments)) */
// clang-format off
#define KERNELS(X)                                                                                            \
    /* out[m][n] (out_dtype) = a[m][k] b[k][n] (in_dtype). bf16 in gives bf16 or fp32 out; fp32 in gives      \
     * fp32. */                                                                                               \
    X(matmul,                                                                                                 \
      (K_QUEUE, void *out, const void *a, const void *b, int64_t m, int64_t n, int64_t k,                     \
       enum dtype in_dtype, enum dtype out_dtype, unsigned flags, void *scratch),                             \
      (q, out, a, b, m, n, k, in_dtype, out_dtype, flags, scratch))                                           \
    /* table[rows][hidden] holds tokens first … first+rows-1 of the vocabulary: out[t] = table[token[t] -     \
     * first], zero where the token is not in it. Tokens are checked by the loader. */                        \
    X(embed_forward,                                                                                          \
      (K_QUEUE, void *out, const void *table, const int32_t *tokens, int64_t T, int64_t first, int64_t rows,  \
       int64_t hidden, enum dtype dtype),                                                                     \
      (q, out, table, tokens, T, first, rows, hidden, dtype))                                                 \
    /* dtable[rows][hidden] fp32: zero, then the sum over t in ascending order of dout[t] at token[t] -       \
     * first; tokens outside are skipped. */                                                                  \
    X(embed_backward,                                                                                         \
      (K_QUEUE, float *dtable, const void *dout, const int32_t *tokens, int64_t T, int64_t first,             \
       int64_t rows, int64_t hidden, enum dtype dtype),                                                       \
      (q, dtable, dout, tokens, T, first, rows, hidden, dtype))                                               \
    /* RMSNorm (Zhang & Sennrich 2019) of rows: out = x * rstd * w, rstd = 1/sqrt(mean(x^2) + eps), kept for  \
     * the backward. Per head: rows = T * heads, n = head_dim. out may be x (in place) only where no backward \
     * follows. */                                                                                            \
    X(rmsnorm_forward,                                                                                        \
      (K_QUEUE, void *out, float *rstd, const void *x, const void *w, int64_t rows, int64_t n, float eps,     \
       enum dtype dtype),                                                                                     \
      (q, out, rstd, x, w, rows, n, eps, dtype))                                                              \
    /* add: dx += …, else dx = …; dx may be dout (in place) without add. dw[n] fp32. */                       \
    X(rmsnorm_backward,                                                                                       \
      (K_QUEUE, void *dx, float *dw, const void *dout, const void *x, const void *w, const float *rstd,       \
       int64_t rows, int64_t n, bool add, enum dtype dtype, void *scratch),                                   \
      (q, dx, dw, dout, x, w, rstd, rows, n, add, dtype, scratch))                                            \
    /* sum[T][n] = a + b (one rounding), then RMSNorm of the rounded sum: the residual stream's step. */      \
    X(add_rmsnorm_forward,                                                                                    \
      (K_QUEUE, void *sum, void *out, float *rstd, const void *a, const void *b, const void *w,               \
       int64_t rows, int64_t n, float eps, enum dtype dtype),                                                 \
      (q, sum, out, rstd, a, b, w, rows, n, eps, dtype))                                                      \
    /* Rotate-half RoPE of x[T][heads][head_dim], in place. cosines, sines: [positions][head_dim/2] fp32,     \
     * indexed by position[t]. The backward is the inverse rotation (inverse = true). */                      \
    X(rope,                                                                                                   \
      (K_QUEUE, void *x, const float *cosines, const float *sines, const int32_t *positions, int64_t T,       \
       int64_t heads, int64_t head_dim, bool inverse, enum dtype dtype),                                      \
      (q, x, cosines, sines, positions, T, heads, head_dim, inverse, dtype))                                  \
    /* Causal grouped-query attention, online softmax in fp32, no T x S matrix: see struct attention_shape.   \
     * out, qs: [T][q_heads][head_dim]; ks, vs: [S][kv_heads][head_dim]; lse[T][q_heads] fp32: log-sum-exp of \
     * scores. */                                                                                             \
    X(attention_forward,                                                                                      \
      (K_QUEUE, void *out, float *lse, const void *qs, const void *ks, const void *vs,                        \
       const int32_t *starts, const struct attention_keys *keys, const struct attention_shape *shape,         \
       enum dtype dtype, void *scratch),                                                                      \
      (q, out, lse, qs, ks, vs, starts, keys, shape, dtype, scratch))                                         \
    X(attention_backward,                                                                                     \
      (K_QUEUE, void *dqs, void *dks, void *dvs, const void *dout, const void *out, const float *lse,         \
       const void *qs, const void *ks, const void *vs, const int32_t *starts,                                 \
       const struct attention_keys *keys, const struct attention_shape *shape, enum dtype dtype,              \
       void *scratch),                                                                                        \
      (q, dqs, dks, dvs, dout, out, lse, qs, ks, vs, starts, keys, shape, dtype, scratch))                    \
    /* out = silu(gate) * up, elementwise over n (Shazeer 2020). */                                           \
    X(swiglu_forward, (K_QUEUE, void *out, const void *gate, const void *up, int64_t n, enum dtype dtype),    \
      (q, out, gate, up, n, dtype))                                                                           \
    /* dgate may be gate, dup may be up (in place). */                                                        \
    X(swiglu_backward,                                                                                        \
      (K_QUEUE, void *dgate, void *dup, const void *dout, const void *gate, const void *up, int64_t n,        \
       enum dtype dtype),                                                                                     \
      (q, dgate, dup, dout, gate, up, n, dtype))                                                              \
    X(add, (K_QUEUE, void *out, const void *a, const void *b, int64_t n, enum dtype dtype),                   \
      (q, out, a, b, n, dtype))                                                                               \
    /* The head, made of these rows and products (daemon/model/ops_ends.c): labelled rows of x are gathered   \
     * chunk by chunk, logits = x w^T fp32, log-probability of the label, and the gradient of the *summed*    \
     * negative log-likelihood, d logits = softmax - onehot. list[count]: the rows t with labels[t] >= 0,     \
     * ascending; list has room for T. In all other rows logprob[T] and dx[T][n] (NULL: none) become zero. */ \
    X(head_list,                                                                                              \
      (K_QUEUE, int32_t * list, float *logprob, void *dx, const int32_t *labels, int64_t T, int64_t n,        \
       enum dtype dtype),                                                                                     \
      (q, list, logprob, dx, labels, T, n, dtype))                                                            \
    /* out[rows][n]: out[r] = x[list[r]], r < count; zero from there on. */                                   \
    X(rows_gather,                                                                                            \
      (K_QUEUE, void *out, const void *x, const int32_t *list, int64_t count, int64_t rows, int64_t n,        \
       enum dtype dtype),                                                                                     \
      (q, out, x, list, count, rows, n, dtype))                                                               \
    /* out[list[r]] = x[r], r < count; list has no row twice. */                                              \
    X(rows_scatter,                                                                                           \
      (K_QUEUE, void *out, const void *x, const int32_t *list, int64_t count, int64_t n, enum dtype dtype),   \
      (q, out, x, list, count, n, dtype))                                                                     \
    /* Over tokens first … first+n-1 of the vocabulary: stats[count]; logits[count][n] become e^(logit - max) \
     * in place. Sums in 16 lanes, folded in halves. labels is indexed by list[r], r < count. */              \
    X(head_stats,                                                                                             \
      (K_QUEUE, struct head_stats * stats, float *logits, const int32_t *labels, const int32_t *list,         \
       int64_t count, int64_t first, int64_t n),                                                              \
      (q, stats, logits, labels, list, count, first, n))                                                      \
    /* merged[r] = the stats of all ranges together, parts[range][count], added in ascending order. Of one    \
     * range: the same bits. */                                                                               \
    X(head_merge,                                                                                             \
      (K_QUEUE, struct head_stats * merged, const struct head_stats *parts, int64_t ranges, int64_t count),   \
      (q, merged, parts, ranges, count))                                                                      \
    /* logprob[list[r]] = of the label; dlogits[rows][n] (dtype, or NULL: none; exps in place in fp32), zero  \
     * from row count on. exps and own are what head_stats left of this range. */                             \
    X(head_dlogits,                                                                                           \
      (K_QUEUE, float *logprob, void *dlogits, const float *exps, const struct head_stats *own,               \
       const struct head_stats *merged, const int32_t *labels, const int32_t *list, int64_t count,            \
       int64_t rows, int64_t first, int64_t n, enum dtype dtype),                                             \
      (q, logprob, dlogits, exps, own, merged, labels, list, count, rows, first, n, dtype))                   \
    /* head_stats and head_dlogits of the whole vocabulary at once, the same bits: a row stays in cache. */   \
    X(head_softmax,                                                                                           \
      (K_QUEUE, float *logprob, void *dlogits, float *logits, const int32_t *labels, const int32_t *list,     \
       int64_t count, int64_t rows, int64_t n, enum dtype dtype),                                             \
      (q, logprob, dlogits, logits, labels, list, count, rows, n, dtype))                                     \
    /* *sum (double, device) = the sum of x[0..n) in ascending order, in double. */                           \
    X(sum_double, (K_QUEUE, double *sum, const float *x, int64_t n), (q, sum, x, n))                          \
    /* squares[b] = sum of x^2 over the b-th block of 256 elements, in double; the last block may be short. */\
    X(block_squares, (K_QUEUE, double *squares, const void *x, int64_t n, enum dtype dtype),                  \
      (q, squares, x, n, dtype))                                                                              \
    /* to = from, rounded to nearest even where narrower; fp32 and bf16. */                                   \
    X(cast, (K_QUEUE, void *to, const void *from, int64_t n, enum dtype to_dtype, enum dtype from_dtype),     \
      (q, to, from, n, to_dtype, from_dtype))                                                                 \
    /* sum[n] = parts[0] + … in the order of the fixed binary tree over part numbers 0 … count-1 (count <=    \
     * 64): an absent part (present bit clear) is skipped, not added as zero; parts are stride elements       \
     * apart, fp32 or bf16. At least one is present. sum may be parts (in place). */                          \
    X(tree_sum,                                                                                               \
      (K_QUEUE, float *sum, const void *parts, int64_t n, int64_t stride, int32_t count, uint64_t present,    \
       enum dtype dtype),                                                                                     \
      (q, sum, parts, n, stride, count, present, dtype))                                                      \
    /* total (fp32 or bf16, one rounding) += part. */                                                         \
    X(accumulate, (K_QUEUE, void *total, const float *part, int64_t n, enum dtype total_dtype),               \
      (q, total, part, n, total_dtype))                                                                       \
    /* Optimizer state: see state.h. */                                                                       \
    X(update,                                                                                                 \
      (K_QUEUE, struct update_measures * measures, const struct state_view *state, const void *gradient,      \
       enum dtype gradient_dtype, int64_t n, const struct index_map *map,                                     \
       const struct update_scalars *scalars, void *scratch),                                                  \
      (q, measures, state, gradient, gradient_dtype, n, map, scalars, scratch))                               \
    X(state_read, (K_QUEUE, float *values, const struct state_view *state, enum state_part part, int64_t n),  \
      (q, values, state, part, n))                                                                            \
    X(state_write,                                                                                            \
      (K_QUEUE, const struct state_view *state, enum state_part part, const float *values, int64_t n,         \
       const struct index_map *map, uint64_t seed, uint64_t total_step),                                      \
      (q, state, part, values, n, map, seed, total_step))                                                     \
    X(weight_compute_copy,                                                                                    \
      (K_QUEUE, void *to, const struct state_view *state, int64_t n, enum dtype to_dtype),                    \
      (q, to, state, n, to_dtype))                                                                            \
    X(init_normal,                                                                                            \
      (K_QUEUE, float *values, int64_t n, const struct index_map *map, uint64_t seed, double deviation),      \
      (q, values, n, map, seed, deviation))

/* Bytes of scratch a row wants for a shape; pure host arithmetic (it may make and keep a library's
 * primitive). */
#define KERNEL_SCRATCHES(X)                                                                                   \
    X(matmul_scratch,                                                                                         \
      (int64_t m, int64_t n, int64_t k, enum dtype in_dtype, enum dtype out_dtype, unsigned flags))           \
    X(rmsnorm_backward_scratch, (int64_t rows, int64_t n))                                                    \
    X(attention_forward_scratch, (const struct attention_shape *shape, enum dtype dtype))                     \
    X(attention_backward_scratch, (const struct attention_shape *shape, enum dtype dtype))                    \
    X(update_scratch, (int64_t n))
// clang-format on

struct kernels {
#define X(name, parameters, arguments) void(*name) parameters;
    KERNELS(X)
#undef X
#define X(name, parameters) size_t(*name) parameters;
    KERNEL_SCRATCHES(X)
#undef X
};

extern const struct kernels kernels_reference; /* the plain C oracle, one thread or many, same bits */

/* A table whose rows do nothing, with the scratch rows of `real`: playing a model with it plans its memory.
 */
struct kernels kernels_planning(const struct kernels *real);
