/* The inside of the tape: values, records, and the ops that models are written in. Private to this folder.
 *
 * A value is a tensor [rows][columns] of the compute dtype with its gradient. Each op computes forward at
 * once and, while the tape records, leaves a record with which its backward can be played. Rows are the T
 * tokens of the batch, of which, in a tensor group of t ranks, each has T/t outside of attention and the
 * feed-forward ("split": ops_tensor.c). Rules:
 *
 *  - The residual stream is a chain of values that share one gradient buffer at the bottom of the gradient
 * arena: adding b to the stream passes the gradient on unchanged to both, so the add's backward is nothing,
 * and the norm that branched off adds into it later. b's producer is played before that norm (the branch
 * starts with it), so it reads the gradient in time.
 *  - Where the stream is added to, nothing else has a gradient: the gradient arena is reset to the stream's
 * mark there.
 *  - Any other value gets its gradient where it is first needed. The first writer writes, later ones add
 *    (tape_gradient says which).
 *  - A passing value is read by the next op only and lies on the gradient arena; a kept one lies on the
 * activation arena until its block is played back. No backward reads a passing value's data.
 *  - Weights are found through their unit at every use, forward and backward: the buffer may have moved. */
#pragma once

#include "tape.h"

enum tape_life { TAPE_KEPT, TAPE_PASSING };

struct value {
    void *data;     /* [rows][columns] */
    void *gradient; /* the same shape; NULL: none yet */
    int64_t rows;   /* T, or T/t: split */
    int64_t columns;
    bool written; /* the gradient holds a first contribution */
    bool stream;
};

struct record {
    void (*backward)(struct tape *tape, const struct record *record);
    struct value *in[3], *out;
    const struct param *weight;
    float *saved; /* rstd or log-sum-exp */
    int64_t heads;
};

struct tape_unit {
    int32_t unit, slot;
    char *weights;   /* NULL: not gathered */
    float *gradient; /* NULL: none wanted */
};

/* What a block leaves behind, so that it can be taken away again. */
struct tape_mark {
    size_t activations;
    int32_t values, records;
};

/* The one split value whose rows are all here at present, on the gradient arena. */
struct tape_whole {
    const struct value *of; /* NULL: none */
    void *data, *gradient;  /* [T][columns]; NULL: not taken */
    bool written;           /* the gradient holds a first contribution */
};

#define TAPE_UNITS_OPEN 2

struct tape {
    /* host memory, taken once for the model */
    struct value *values;
    struct record *records;
    struct tape_mark *marks; /* [layers] */
    struct value **inputs;   /* [layers + 1] the stream before each block, and after the last */
    int32_t value_limit, record_limit;

    /* of the run under way */
    const struct model *model;
    const struct batch *batch;
    const struct tape_host *host;
    const struct kernels *kernels;
    struct queue *queue;
    struct tape_arenas arenas;
    struct arena *activations,
        *gradients; /* where values are taken from at present: while a block is computed
                       that will be computed again, activations are arenas.blocks */
    bool planning, training;
    bool recording; /* ops leave records */
    bool replaying; /* a block is computed again; its last op's result is not wanted */
    int32_t value_count, record_count;
    struct tape_whole whole;
    void *stream_gradient; /* [T/t][C] */
    void *handed_on;       /* [T/t][C] in training, but on the last stage: the stream after its last block */
    size_t stream_mark;    /* of the gradient arena, above it */
    void *turns[2];        /* [T/t][C] without training: the stream lies in them by turns */
    int32_t turn;
    float *logprob; /* [T] */
    struct tape_unit open[TAPE_UNITS_OPEN];
    int32_t open_count;
};

bool tape_init(struct tape **tape, int64_t layers, struct err *err) MUST_USE;
void tape_done(struct tape *tape); /* NULL: fine */

/* gather: its weights will be read; slot >= 0 with `gradient`: its weight gradients will be written. Closing
 * hands the gradient over and lets the weights go. Units close in the reverse order of opening. */
void tape_unit_open(struct tape *tape, int32_t unit, int32_t slot, bool gather, bool gradient);
void tape_unit_close(struct tape *tape);

const void *tape_weight(const struct tape *tape, const struct param *param);
float *tape_weight_gradient(const struct tape *tape, const struct param *param);

struct value *tape_value(struct tape *tape, int64_t rows, int64_t columns, enum tape_life life);
struct value *tape_stream(struct tape *tape); /* a kept value [T/t][C] of the residual stream */
struct value *tape_stream_at(struct tape *tape, void *data); /* the same, in this memory */
struct value *tape_block_output(struct tape *tape); /* the same; without training the buffers take turns */

/* The gradient's buffer; *add says whether to add to what is there. Marks it written. */
void *tape_gradient(struct tape *tape, struct value *value, bool *add);
/* For reading: it must have been written. Of a split value the ranks' parts are summed first. */
const void *tape_gradient_of(struct tape *tape, struct value *value);
void tape_gradients_reset(struct tape *tape); /* the gradient arena, down to the stream's gradient */

void tape_record(struct tape *tape, struct record record); /* nothing, unless recording */
struct tape_mark tape_mark(const struct tape *tape);
void tape_forget(struct tape *tape, struct tape_mark mark); /* records, values and activations since */
void tape_play(struct tape *tape, int32_t first);           /* the records from the last down to first */

/* Memory for one kernel call, above everything on the gradient arena; given back with arena_reset(…, mark).
 */
void *tape_scratch(struct tape *tape, size_t bytes, size_t *mark);

/* out[m][n] (out_dtype) = a b, of the compute type, with the row's scratch. Flags: enum matmul_flags. */
void tape_product(struct tape *tape, void *out, const void *a, const void *b, int64_t m, int64_t n, int64_t k,
                  enum dtype out_dtype, unsigned flags);

/* Keys or values in their sequences' order, [batch->keys][columns], from every rank's own [T][columns]: on
 * the gradient arena until the caller resets it, or `mine` itself where there is one rank. */
const void *tape_keys(struct tape *tape, const void *mine, int64_t columns);
/* mine [T][columns] = the sum over ranks of their gradients of these keys. Only where there are several. */
void tape_keys_back(struct tape *tape, void *mine, const void *keys, int64_t columns);

/* ---- a tensor group (ops_tensor.c); for one rank alone all of it is the plain thing ---- */

/* The stream's rows here: T/t. */
static inline int64_t tape_rows(const struct tape *tape)
{
    return tape->batch->tokens / tape->model->tensor.ranks;
}

/* All rows of x, [T][columns], and their gradient on this rank: partial, until tape_gradient_of reads x's.
 * Both until tape_gradients_reset. */
const void *tape_whole(struct tape *tape, struct value *x);
void *tape_whole_gradient(struct tape *tape, struct value *x, bool *add);
/* All rows of a gradient, for the caller to reset. */
const void *tape_gradient_whole(struct tape *tape, struct value *value);
/* Where a result [T][columns] that is a part of a sum over the ranks is written; and the sum's own rows
 * [T/t][columns], added in rank order in fp32 and rounded once. For one rank alone the place is `sum` itself.
 */
void *tape_part(struct tape *tape, void *sum, int64_t columns, size_t *mark);
void tape_part_sum(struct tape *tape, void *sum, const void *part, int64_t columns, size_t mark);

/* Among the ranks of an axis: all parts of `each` bytes, on the gradient arena; sum[n] (compute dtype) = over
 * the ranks of their parts [rank][n] for this one, as above. */
void *tape_gather(struct tape *tape, enum tape_axis axis, const void *mine, size_t each);
void tape_sum(struct tape *tape, enum tape_axis axis, void *sum, const void *parts, int64_t n);

/* Ops. T tokens, R = T/t of them here, C hidden; [out][in] weights. */

/* [R][C] = table[token] */
struct value *op_embed(struct tape *tape, const struct param *table);
/* [T][out] = x w^T; [R][out] where w is a piece of the columns */
struct value *op_linear(struct tape *tape, struct value *x, const struct param *w, enum tape_life life);
/* out [R][C] = x + a w^T: the end of a block. x is the stream. */
void op_linear_add(struct tape *tape, struct value *out, struct value *x, struct value *a,
                   const struct param *w);
/* RMSNorm of every row; heads > 1: of every head's part of a row, all with the same weight */
struct value *op_rmsnorm(struct tape *tape, struct value *x, int64_t heads, const struct param *w);
/* sum [R][C] = x + a, one step of the stream; returns RMSNorm(sum) */
struct value *op_add_rmsnorm(struct tape *tape, struct value **sum, struct value *x, struct value *a,
                             const struct param *w);
/* rotates x's heads by their positions, in place; returns x */
struct value *op_rope(struct tape *tape, struct value *x, int64_t heads);
/* [T][Hq D], causal within each sequence */
struct value *op_attention(struct tape *tape, struct value *q, struct value *k, struct value *v);
/* [T][F] = silu(gate) up */
struct value *op_swiglu(struct tape *tape, struct value *gate, struct value *up);
/* The labels' log-probabilities into tape->logprob; training: x's gradient and w's at once. */
void op_head_loss(struct tape *tape, struct value *x, const struct param *w);

static inline size_t tape_bytes(const struct tape *tape, int64_t rows, int64_t columns)
{
    return (size_t)(rows * columns) * dtype_bytes(tape->model->compute);
}
