/* Products with a weight: y = x w^T, alone or added to the residual stream. */
#include "tape_ops.h"

void tape_product(struct tape *tape, void *out, const void *a, const void *b, int64_t m, int64_t n, int64_t k,
                  enum dtype out_dtype, unsigned flags)
{
    enum dtype dtype = tape->model->compute;
    size_t mark;
    void *scratch =
        tape_scratch(tape, tape->kernels->matmul_scratch(m, n, k, dtype, out_dtype, flags), &mark);
    tape->kernels->matmul(tape->queue, out, a, b, m, n, k, dtype, out_dtype, flags, scratch);
    arena_reset(tape->gradients, mark);
}

/* A piece of a weight's columns makes a part of each of its rows' sums. */
static bool sums_over_ranks(const struct param *w)
{
    return w->columns < w->whole_columns;
}

/* out [T][rows] = x [T][columns] w [rows][columns]^T; where the ranks' products add up, this rank's rows of
 * it */
static void linear_forward(struct tape *tape, void *out, struct value *x, const struct param *w)
{
    const void *all = tape_whole(tape, x);
    size_t mark;
    void *part = sums_over_ranks(w) ? tape_part(tape, out, w->rows, &mark) : out;
    tape_product(tape, part, all, tape_weight(tape, w), tape->batch->tokens, w->rows, w->columns,
                 tape->model->compute, MATMUL_B_TRANSPOSED);
    if (sums_over_ranks(w))
        tape_part_sum(tape, out, part, w->rows, mark);
}

/* dw = dout^T x, dx = dout w */
static void linear_backward(struct tape *tape, const struct record *r)
{
    const struct param *w = r->weight;
    struct value *x = r->in[0];
    int64_t T = tape->batch->tokens;
    bool add;
    const void *all = tape_whole(tape, x);
    void *dx = tape_whole_gradient(tape, x, &add);
    size_t mark = arena_mark(tape->gradients);
    const void *dout = tape_gradient_whole(tape, r->out);
    tape_product(tape, tape_weight_gradient(tape, w), dout, all, w->rows, w->columns, T, DTYPE_F32,
                 MATMUL_A_TRANSPOSED);
    tape_product(tape, dx, dout, tape_weight(tape, w), T, w->columns, w->rows, tape->model->compute,
                 add ? MATMUL_ADD : 0);
    arena_reset(tape->gradients, mark);
}

struct value *op_linear(struct tape *tape, struct value *x, const struct param *w, enum tape_life life)
{
    int64_t rows = sums_over_ranks(w) ? tape_rows(tape) : tape->batch->tokens;
    struct value *out = tape_value(tape, rows, w->rows, life);
    linear_forward(tape, out->data, x, w);
    tape_record(tape, (struct record){.backward = linear_backward, .in = {x}, .out = out, .weight = w});
    return out;
}

/* The stream's gradient goes on as it is (out and x share it); the product's is the same buffer. */
static void linear_add_backward(struct tape *tape, const struct record *r)
{
    INVARIANT(r->in[1]->gradient == r->out->gradient);
    r->in[1]->written = true;
    linear_backward(tape, r);
}

void op_linear_add(struct tape *tape, struct value *out, struct value *x, struct value *a,
                   const struct param *w)
{
    if (!tape->replaying) { /* the next block's input was kept */
        void *product = arena_take(tape->gradients, tape_bytes(tape, out->rows, w->rows));
        linear_forward(tape, product, a, w);
        tape->kernels->add(tape->queue, out->data, x->data, product, out->rows * w->rows,
                           tape->model->compute);
        tape_gradients_reset(tape); /* the block's normed input had all its rows here; in a replay the
                                       backward wants them next */
    }
    tape_record(tape,
                (struct record){.backward = linear_add_backward, .in = {a, x}, .out = out, .weight = w});
}
