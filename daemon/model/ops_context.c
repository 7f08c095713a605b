/* Context parallelism (zigzag, as in Llama 3's: Dubey et al. 2024): every rank has the queries of its own
 * chunks and gathers the keys and values of all. They are gathered again for the backward rather than kept,
 * so that a rank's memory does not grow with c; their gradients go back by an exchange, added in rank order.
 */
#include "tape_ops.h"

const void *tape_keys(struct tape *tape, const void *mine, int64_t columns)
{
    const struct batch *batch = tape->batch;
    if (tape->model->context.ranks == 1)
        return mine;
    void *keys = arena_take(tape->gradients, tape_bytes(tape, batch->keys, columns));
    size_t mark = arena_mark(tape->gradients);
    const void *gathered =
        tape_gather(tape, TAPE_CONTEXT, mine, tape_bytes(tape, batch->tokens, columns)); /* [c][T][columns] */
    tape->kernels->rows_gather(tape->queue, keys, gathered, batch->key_from, batch->keys, batch->keys,
                               columns, tape->model->compute);
    arena_reset(tape->gradients, mark);
    return keys;
}

void tape_keys_back(struct tape *tape, void *mine, const void *keys, int64_t columns)
{
    const struct batch *batch = tape->batch;
    int64_t rows = tape->model->context.ranks * batch->tokens;
    size_t mark = arena_mark(tape->gradients);
    void *parts = arena_take(tape->gradients, tape_bytes(tape, rows, columns)); /* [c][T]…; no key: zero */
    tape->kernels->embed_forward(tape->queue, parts, keys, batch->key_to, rows, 0, batch->keys, columns,
                                 tape->model->compute);
    tape_sum(tape, TAPE_CONTEXT, mine, parts, batch->tokens * columns);
    arena_reset(tape->gradients, mark);
}
