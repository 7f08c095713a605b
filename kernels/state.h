/* How a parameter's weight W, first moment m and second moment v are stored, and what one update reads and
 * returns.
 *
 * One arithmetic, many storages: values are read to fp32, updated in fp32, and each stored value is rounded
 * once by its format. The per-element functions are in common/ (shared with nvcc); the formats, in words, in
 * contract order:
 *
 * - weight: fp32 | bf16 (nearest even) | bf16s (stochastic) | kahan (bf16 w + bf16 c, value w + c) | split
 * (bf16 w, ties away, + the low 16 bits, exact) | split8 (bf16 w + int8 code of the rest: FlashOptim)
 * - moment: fp32 | bf16 | bf16s | q8 (8-bit codes in groups of 32 with one bf16 scale; m companded, v as
 * sqrt(v)) */
#pragma once

#include "dtype.h"

#include <stdint.h>

/* X(constant, name, dtype of the main array, dtype of the extra array or DTYPE_COUNT, bytes) */
#define WEIGHT_FORMATS(X)                                                                                    \
    X(WEIGHT_FP32, "fp32", DTYPE_F32, DTYPE_COUNT)                                                           \
    X(WEIGHT_BF16, "bf16", DTYPE_BF16, DTYPE_COUNT)                                                          \
    X(WEIGHT_BF16S, "bf16s", DTYPE_BF16, DTYPE_COUNT)                                                        \
    X(WEIGHT_KAHAN, "kahan", DTYPE_BF16, DTYPE_BF16)                                                         \
    X(WEIGHT_SPLIT, "split", DTYPE_BF16, DTYPE_I16)                                                          \
    X(WEIGHT_SPLIT8, "split8", DTYPE_BF16, DTYPE_I8)

#define MOMENT_FORMATS(X)                                                                                    \
    X(MOMENT_FP32, "fp32", DTYPE_F32, DTYPE_COUNT)                                                           \
    X(MOMENT_BF16, "bf16", DTYPE_BF16, DTYPE_COUNT)                                                          \
    X(MOMENT_BF16S, "bf16s", DTYPE_BF16, DTYPE_COUNT)                                                        \
    X(MOMENT_Q8, "q8", DTYPE_U8,                                                                             \
      DTYPE_BF16) /* m's codes are signed, in the same bytes; extra: scales, one a group */

enum weight_format {
#define X(format, name, main, extra) format,
    WEIGHT_FORMATS(X)
#undef X
        WEIGHT_FORMAT_COUNT
};

enum moment_format {
#define X(format, name, main, extra) format,
    MOMENT_FORMATS(X)
#undef X
        MOMENT_FORMAT_COUNT
};

enum { Q8_GROUP = 32 }; /* elements that share one scale */
enum {
    STATE_ALIGNMENT = 256
}; /* every tensor starts, and every shard ends, at a multiple of this many elements */

enum state_part { STATE_W, STATE_M, STATE_V, STATE_PART_COUNT };

/* Views into device memory, element i of the range at [i]; the range starts at a multiple of STATE_ALIGNMENT
 * of its tensor, so groups of 32 and random-number groups of 8 are whole except at the tensor's end. */
struct state_view {
    enum weight_format w_format;
    enum moment_format m_format, v_format;
    void *w, *w_extra; /* w_extra: c, the low half or the code; NULL where the format has none */
    void *m, *m_extra; /* m_extra: q8's scales, [ceil(n/32)] bf16 */
    void *v, *v_extra;
    void *copy; /* the update writes here what the model computes with (as weight_compute_copy), or NULL */
    enum dtype copy_dtype; /* fp32 or bf16 */
};

/* The global indices of a range's elements, on which random numbers depend. Element 0 has `index`; where run
 * equals stride (0 will do), element i has index + i. Else the range is of a piece of columns of a matrix of
 * `stride` columns: `run` of them side by side, row upon row, and the range begins at the piece's column
 * `column`
 * (< run). So flat element e of a piece whose first global index is `first` has first + e / run * stride + e
 * % run. index_map.h computes it.
 *
 * A group of q8 is of 32 neighbours in a range, and has the bits of the whole tensor's only where it is one
 * there: run, stride and the piece's first column are multiples of Q8_GROUP (the caller sees to it). A cut
 * group would need the largest magnitude over its owners between the new moments and their codes
 * (moment_write_q8). */
struct index_map {
    int64_t index, column, run, stride;
};

/* Formed in double once a step on the host, each rounded to fp32 once. t counts from 1. */
struct update_scalars {
    float gradient_factor; /* clip coefficient over normalizer: g = gradient * factor */
    float one_minus_beta1, beta1;
    float beta2, one_minus_beta2;
    float decay_factor; /* 1 - lr*wd, or 1 for tensors without decay */
    float step_size;    /* lr / bc1 */
    float sqrt_bc2;     /* sqrt(bc2) */
    float eps;
    uint64_t seed;       /* the key of stochastic rounding */
    uint64_t total_step; /* its counter */
};

/* exact = W' - W as read; stored = next value read - W. Counted in the update's own pass; sums run over fixed
 * blocks. */
struct update_measures {
    int64_t changing;    /* elements whose exact change is not zero */
    int64_t lost;        /* of those, whose value read did not change */
    int64_t v_changing;  /* elements whose v' differs from v */
    int64_t v_stalled;   /* of those, whose stored v (q8: its code) did not change */
    double stored_exact; /* <stored change, exact change> */
    double exact_exact;  /* <exact change, exact change> */
};
