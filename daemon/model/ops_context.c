/* Context parallelism (zigzag, as in Llama 3's: Dubey et al. 2024): every rank has the queries of its own
 * chunks and gathers the keys and values of all. They are gathered again for the backward rather than kept,
 * so that a rank's memory does not grow with c; their gradients go back by an exchange, added in rank order.
 */
#include "tape_ops.h"

static size_t row_bytes(const struct tape *tape, int64_t columns)
{
    return (size_t)columns * dtype_bytes(tape->model->compute);
}

const void *tape_keys(struct tape *tape, const void *mine, int64_t columns)
{
    const struct batch *batch = tape->batch;
    const struct tape_place *place = &tape->model->context;
    if (place->ranks == 1)
        return mine;
    size_t each = (size_t)batch->tokens * row_bytes(tape, columns);
    void *keys = arena_take(tape->gradients, (size_t)batch->keys * row_bytes(tape, columns));
    size_t mark = arena_mark(tape->gradients);
    char *gathered = arena_take(tape->gradients, each * (size_t)place->ranks); /* [c][T][columns] */
    if (!tape->planning)
        device_copy(tape->model->device, gathered + each * (size_t)place->rank, mine, each);
    tape->host->all_gather(tape->host->context, TAPE_CONTEXT, gathered, each);
    tape->kernels->rows_gather(tape->queue, keys, gathered, batch->key_from, batch->keys, batch->keys,
                               columns, tape->model->compute);
    arena_reset(tape->gradients, mark);
    return keys;
}

void tape_keys_back(struct tape *tape, void *mine, const void *keys, int64_t columns)
{
    const struct batch *batch = tape->batch;
    const struct kernels *kernels = tape->kernels;
    enum dtype dtype = tape->model->compute;
    int64_t c = tape->model->context.ranks, n = batch->tokens * columns;
    size_t each = (size_t)batch->tokens * row_bytes(tape, columns), mark = arena_mark(tape->gradients);
    void *parts = arena_take(tape->gradients, each * (size_t)c); /* [c][T][columns]; no key: zero */
    void *received = arena_take(tape->gradients, each * (size_t)c);
    float *sum = arena_take(tape->gradients, (size_t)n * sizeof *sum);
    kernels->embed_forward(tape->queue, parts, keys, batch->key_to, c * batch->tokens, 0, batch->keys,
                           columns, dtype);
    tape->host->exchange(tape->host->context, TAPE_CONTEXT, received, parts, each);
    kernels->tree_sum(tape->queue, sum, received, n, n, (int32_t)c, ~0ull >> (64 - c), dtype);
    kernels->cast(tape->queue, mine, sum, n, dtype, DTYPE_F32);
    arena_reset(tape->gradients, mark);
}
