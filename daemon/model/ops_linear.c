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

/* out [T][rows] = x [T][columns] w [rows][columns]^T */
static void linear_forward(struct tape *tape, void *out, const void *x, const struct param *w)
{
    tape_product(tape, out, x, tape_weight(tape, w), tape->batch->tokens, w->rows, w->columns,
                 tape->model->compute, MATMUL_B_TRANSPOSED);
}

/* dw = dout^T x, dx = dout w */
static void linear_backward(struct tape *tape, const struct record *r)
{
    const struct param *w = r->weight;
    struct value *x = r->in[0];
    int64_t T = tape->batch->tokens;
    const void *dout = tape_gradient_of(r->out);
    bool add;
    tape_product(tape, tape_weight_gradient(tape, w), dout, x->data, w->rows, w->columns, T, DTYPE_F32,
                 MATMUL_A_TRANSPOSED);
    void *dx = tape_gradient(tape, x, &add);
    tape_product(tape, dx, dout, tape_weight(tape, w), T, w->columns, w->rows, tape->model->compute,
                 add ? MATMUL_ADD : 0);
}

struct value *op_linear(struct tape *tape, struct value *x, const struct param *w, enum tape_life life)
{
    struct value *out = tape_value(tape, w->rows, life);
    linear_forward(tape, out->data, x->data, w);
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
        size_t mark;
        void *product = tape_scratch(tape, tape_bytes(tape, w->rows), &mark);
        linear_forward(tape, product, a->data, w);
        tape->kernels->add(tape->queue, out->data, x->data, product, tape->batch->tokens * w->rows,
                           tape->model->compute);
        arena_reset(tape->gradients, mark);
    }
    tape_record(tape,
                (struct record){.backward = linear_add_backward, .in = {a, x}, .out = out, .weight = w});
}
