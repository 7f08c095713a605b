/* Tensor parallelism (Shoeybi et al. 2019) with sequence parallelism (Korthikanti et al. 2022). The t ranks
 * of a group work on the same micro-batch. Between a product that makes sums over ranks and the next one that
 * wants all rows, that is in norms and on the stream, each rank has T/t rows in order; inside attention and
 * feed-forward all rows of its own heads or columns.
 *
 * All rows of a normed input are gathered for the products that read it and let go: the backward gathers them
 * again, so that what is kept falls with t. Their gradient is a part on every rank, summed when it is first
 * read. A value of one rank alone is never split, and all of this is then nothing. */
#include "tape_ops.h"

static bool is_split(const struct tape *tape, const struct value *value)
{
    return value->rows < tape->batch->tokens;
}

static struct tensor_place place_of(const struct tape *tape, enum tape_axis axis)
{
    const struct tape_place *context = &tape->model->context;
    return axis == TAPE_TENSOR ? tape->model->tensor : (struct tensor_place){context->ranks, context->rank};
}

void *tape_gather(struct tape *tape, enum tape_axis axis, const void *mine, size_t each)
{
    struct tensor_place place = place_of(tape, axis);
    char *all = arena_take(tape->gradients, each * (size_t)place.ranks); /* [ranks][each] */
    if (!tape->planning)
        device_copy(tape->model->device, all + each * (size_t)place.rank, mine, each);
    tape->host->all_gather(tape->host->context, axis, all, each);
    return all;
}

void tape_sum(struct tape *tape, enum tape_axis axis, void *sum, const void *parts, int64_t n)
{
    const struct kernels *kernels = tape->kernels;
    enum dtype dtype = tape->model->compute;
    int32_t ranks = place_of(tape, axis).ranks;
    size_t each = (size_t)n * dtype_bytes(dtype), mark = arena_mark(tape->gradients);
    void *received = arena_take(tape->gradients, each * (size_t)ranks); /* [ranks][n] */
    float *wide = dtype == DTYPE_F32 ? sum : arena_take(tape->gradients, (size_t)n * sizeof *wide);
    tape->host->exchange(tape->host->context, axis, received, parts, each);
    kernels->tree_sum(tape->queue, wide, received, n, n, ranks, ~0ull >> (64 - ranks), dtype);
    if (dtype != DTYPE_F32)
        kernels->cast(tape->queue, sum, wide, n, dtype, DTYPE_F32);
    arena_reset(tape->gradients, mark);
}

static void *gather_rows(struct tape *tape, const void *mine, int64_t columns)
{
    return tape_gather(tape, TAPE_TENSOR, mine, tape_bytes(tape, tape_rows(tape), columns));
}

const void *tape_whole(struct tape *tape, struct value *x)
{
    struct tape_whole *whole = &tape->whole;
    if (!is_split(tape, x))
        return x->data;
    if (whole->of != x)
        *whole = (struct tape_whole){.of = x, .data = gather_rows(tape, x->data, x->columns)};
    return whole->data;
}

void *tape_whole_gradient(struct tape *tape, struct value *x, bool *add)
{
    struct tape_whole *whole = &tape->whole;
    if (!is_split(tape, x))
        return tape_gradient(tape, x, add);
    INVARIANT(whole->of == x);
    if (!whole->gradient)
        whole->gradient = arena_take(tape->gradients, tape_bytes(tape, tape->batch->tokens, x->columns));
    *add = whole->written;
    whole->written = true;
    return whole->gradient;
}

const void *tape_gradient_of(struct tape *tape, struct value *value)
{
    struct tape_whole *whole = &tape->whole;
    bool add = false;
    if (whole->of == value && whole->written) {
        void *sum = tape_gradient(tape, value, &add);
        INVARIANT(!add); /* all who read it read the whole */
        tape_sum(tape, TAPE_TENSOR, sum, whole->gradient, value->rows * value->columns);
        whole->written = false;
    }
    INVARIANT(value->written);
    return value->gradient;
}

const void *tape_gradient_whole(struct tape *tape, struct value *value)
{
    const void *mine = tape_gradient_of(tape, value);
    return is_split(tape, value) ? gather_rows(tape, mine, value->columns) : mine;
}

void *tape_part(struct tape *tape, void *sum, int64_t columns, size_t *mark)
{
    *mark = arena_mark(tape->gradients);
    return tape->model->tensor.ranks == 1
               ? sum
               : arena_take(tape->gradients, tape_bytes(tape, tape->batch->tokens, columns));
}

void tape_part_sum(struct tape *tape, void *sum, const void *part, int64_t columns, size_t mark)
{
    if (tape->model->tensor.ranks > 1)
        tape_sum(tape, TAPE_TENSOR, sum, part, tape_rows(tape) * columns);
    arena_reset(tape->gradients, mark);
}
