/* Rotary positions and causal grouped-query attention. */
#include "tape_ops.h"

#include <math.h>

static void rotate(struct tape *tape, void *x, int64_t heads, int64_t head_dim, bool inverse)
{
    tape->kernels->rope(tape->queue, x, tape->model->rope_cosines, tape->model->rope_sines,
                        tape->batch->positions, tape->batch->tokens, heads, head_dim, inverse,
                        tape->model->compute);
}

/* A rotation's transpose is its inverse. */
static void rope_backward(struct tape *tape, const struct record *r)
{
    INVARIANT(r->out->written);
    rotate(tape, r->out->gradient, r->heads, r->out->columns / r->heads, true);
}

struct value *op_rope(struct tape *tape, struct value *x, int64_t heads)
{
    rotate(tape, x->data, heads, x->columns / heads, false);
    tape_record(tape, (struct record){.backward = rope_backward, .out = x, .heads = heads});
    return x;
}

static struct attention_shape shape_of(const struct tape *tape, const struct value *q, const struct value *k)
{
    int64_t D = tape->model->config.head_dim;
    return (struct attention_shape){
        .tokens = tape->batch->tokens,
        .key_rows = tape->batch->keys,
        .sequences = tape->batch->sequences,
        .longest = tape->batch->longest,
        .q_heads = (int32_t)(q->columns / D),
        .kv_heads = (int32_t)(k->columns / D),
        .head_dim = (int32_t)D,
        .scale = (float)(1.0 / sqrt((double)D)),
    };
}

/* The gradients of keys that came from all ranks go back to where they are from. */
static void return_keys(struct tape *tape, void *mine, const void *keys, const struct value *value)
{
    if (mine != keys)
        tape_keys_back(tape, mine, keys, value->columns);
}

static void attention_backward(struct tape *tape, const struct record *r)
{
    const struct kernels *kernels = tape->kernels;
    const struct batch *batch = tape->batch;
    enum dtype dtype = tape->model->compute;
    struct value *q = r->in[0], *k = r->in[1], *v = r->in[2];
    struct attention_shape shape = shape_of(tape, q, k);
    bool added[3];
    void *dq = tape_gradient(tape, q, &added[0]);
    void *dk = tape_gradient(tape, k, &added[1]);
    void *dv = tape_gradient(tape, v, &added[2]);
    INVARIANT(!added[0] && !added[1] && !added[2]); /* the kernel overwrites */
    size_t mark = arena_mark(tape->gradients), inner,
           bytes = (size_t)batch->keys * (size_t)k->columns * dtype_bytes(dtype);
    bool alone = tape->model->context.ranks == 1;
    const void *ks = tape_keys(tape, k->data, k->columns), *vs = tape_keys(tape, v->data, v->columns);
    void *dks = alone ? dk : arena_take(tape->gradients, bytes); /* [S][Hk D] */
    void *dvs = alone ? dv : arena_take(tape->gradients, bytes);
    void *scratch = tape_scratch(tape, kernels->attention_backward_scratch(&shape, dtype), &inner);
    kernels->attention_backward(tape->queue, dq, dks, dvs, tape_gradient_of(tape, r->out), r->out->data,
                                r->saved, q->data, ks, vs, batch->starts, batch->seen, &shape, dtype,
                                scratch);
    arena_reset(tape->gradients, inner);
    return_keys(tape, dk, dks, k);
    return_keys(tape, dv, dvs, v);
    arena_reset(tape->gradients, mark);
}

struct value *op_attention(struct tape *tape, struct value *q, struct value *k, struct value *v)
{
    const struct kernels *kernels = tape->kernels;
    enum dtype dtype = tape->model->compute;
    struct attention_shape shape = shape_of(tape, q, k);
    struct value *out = tape_value(tape, q->rows, q->columns, TAPE_KEPT); /* [T][Hq][D] */
    float *lse =
        arena_take(tape->activations, (size_t)(shape.tokens * shape.q_heads) * sizeof *lse); /* [T][Hq] */
    size_t mark = arena_mark(tape->gradients), inner;
    const void *ks = tape_keys(tape, k->data, k->columns), *vs = tape_keys(tape, v->data, v->columns);
    void *scratch = tape_scratch(tape, kernels->attention_forward_scratch(&shape, dtype), &inner);
    kernels->attention_forward(tape->queue, out->data, lse, q->data, ks, vs, tape->batch->starts,
                               tape->batch->seen, &shape, dtype, scratch);
    arena_reset(tape->gradients, mark);
    tape_record(tape,
                (struct record){.backward = attention_backward, .in = {q, k, v}, .out = out, .saved = lse});
    return out;
}
