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

static struct attention_shape shape_of(const struct tape *tape)
{
    const struct model_config *config = &tape->model->config;
    return (struct attention_shape){
        .tokens = tape->batch->tokens,
        .key_rows = tape->batch->tokens,
        .sequences = tape->batch->sequences,
        .longest = tape->batch->longest,
        .q_heads = (int32_t)config->q_heads,
        .kv_heads = (int32_t)config->kv_heads,
        .head_dim = (int32_t)config->head_dim,
        .scale = (float)(1.0 / sqrt((double)config->head_dim)),
    };
}

static void attention_backward(struct tape *tape, const struct record *r)
{
    const struct kernels *kernels = tape->kernels;
    enum dtype dtype = tape->model->compute;
    struct attention_shape shape = shape_of(tape);
    struct value *q = r->in[0], *k = r->in[1], *v = r->in[2];
    bool added[3];
    void *dq = tape_gradient(tape, q, &added[0]);
    void *dk = tape_gradient(tape, k, &added[1]);
    void *dv = tape_gradient(tape, v, &added[2]);
    INVARIANT(!added[0] && !added[1] && !added[2]); /* the kernel overwrites */
    size_t mark;
    void *scratch = tape_scratch(tape, kernels->attention_backward_scratch(&shape, dtype), &mark);
    kernels->attention_backward(tape->queue, dq, dk, dv, tape_gradient_of(r->out), r->out->data, r->saved,
                                q->data, k->data, v->data, tape->batch->starts, NULL, &shape, dtype, scratch);
    arena_reset(tape->gradients, mark);
}

struct value *op_attention(struct tape *tape, struct value *q, struct value *k, struct value *v)
{
    const struct kernels *kernels = tape->kernels;
    enum dtype dtype = tape->model->compute;
    struct attention_shape shape = shape_of(tape);
    struct value *out = tape_value(tape, q->columns, TAPE_KEPT); /* [T][Hq][D] */
    float *lse =
        arena_take(tape->activations, (size_t)(shape.tokens * shape.q_heads) * sizeof *lse); /* [T][Hq] */
    size_t mark;
    void *scratch = tape_scratch(tape, kernels->attention_forward_scratch(&shape, dtype), &mark);
    kernels->attention_forward(tape->queue, out->data, lse, q->data, k->data, v->data, tape->batch->starts,
                               NULL, &shape, dtype, scratch);
    arena_reset(tape->gradients, mark);
    tape_record(tape,
                (struct record){.backward = attention_backward, .in = {q, k, v}, .out = out, .saved = lse});
    return out;
}
