/* The two ends of the model: tokens in, log-probabilities out. */
#include "tape_ops.h"

static void embed_backward(struct tape *tape, const struct record *r)
{
    const struct batch *batch = tape->batch;
    tape->kernels->embed_backward(tape->queue, tape_weight_gradient(tape, r->weight),
                                  tape_gradient_of(r->out), batch->token_ids, batch->tokens, r->weight->rows,
                                  r->weight->columns, tape->model->compute);
}

struct value *op_embed(struct tape *tape, const struct param *table)
{
    const struct batch *batch = tape->batch;
    struct value *out = tape_block_output(tape);
    tape->kernels->embed_forward(tape->queue, out->data, tape_weight(tape, table), batch->token_ids,
                                 batch->tokens, table->columns, tape->model->compute);
    tape_record(tape, (struct record){.backward = embed_backward, .out = out, .weight = table});
    return out;
}

/* Here the run turns: logits never exist whole, so the backward is done chunk by chunk with the forward. */
void op_head_loss(struct tape *tape, struct value *x, const struct param *w)
{
    const struct kernels *kernels = tape->kernels;
    enum dtype dtype = tape->model->compute;
    struct head_shape shape = {tape->batch->tokens, w->columns, w->rows};
    bool add = false;
    void *dx = tape->training ? tape_gradient(tape, x, &add) : NULL;
    float *dw = tape->training ? tape_weight_gradient(tape, w) : NULL;
    INVARIANT(!add);
    size_t mark;
    void *scratch = tape_scratch(tape, kernels->head_loss_scratch(&shape, tape->training, dtype), &mark);
    kernels->head_loss(tape->queue, tape->logprob, dx, dw, x->data, tape_weight(tape, w), tape->batch->labels,
                       &shape, dtype, scratch);
    arena_reset(tape->gradients, mark);
}
