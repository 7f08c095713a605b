/* RMSNorm: of the stream, of each head, and fused with the stream's step before it. */
#include "tape_ops.h"

/* dx through r->out's gradient into r->in[0]'s. A value of its own that nothing has written yet takes the
 * same buffer: the kernel works in place and nobody reads the other gradient again. */
static void norm_backward(struct tape *tape, const struct record *r, struct value *x)
{
    const struct kernels *kernels = tape->kernels;
    int64_t rows = x->rows * r->heads, n = x->columns / r->heads;
    const void *dout = tape_gradient_of(tape, r->out);
    bool add;
    if (!x->gradient)
        x->gradient = r->out->gradient;
    void *dx = tape_gradient(tape, x, &add);
    size_t mark;
    void *scratch = tape_scratch(tape, kernels->rmsnorm_backward_scratch(rows, n), &mark);
    kernels->rmsnorm_backward(tape->queue, dx, tape_weight_gradient(tape, r->weight), dout, x->data,
                              tape_weight(tape, r->weight), r->saved, rows, n, add, tape->model->compute,
                              scratch);
    arena_reset(tape->gradients, mark);
}

static void rmsnorm_backward(struct tape *tape, const struct record *r)
{
    norm_backward(tape, r, r->in[0]);
}

struct value *op_rmsnorm(struct tape *tape, struct value *x, int64_t heads, const struct param *w)
{
    int64_t rows = x->rows * heads;
    struct value *out = tape_value(tape, x->rows, x->columns, TAPE_KEPT);
    float *rstd = arena_take(tape->activations, (size_t)rows * sizeof *rstd); /* [rows][heads] */
    tape->kernels->rmsnorm_forward(tape->queue, out->data, rstd, x->data, tape_weight(tape, w), rows,
                                   x->columns / heads, (float)tape->model->config.rms_eps,
                                   tape->model->compute);
    tape_record(
        tape,
        (struct record){
            .backward = rmsnorm_backward, .in = {x}, .out = out, .weight = w, .saved = rstd, .heads = heads});
    return out;
}

/* The norm's part is added to the stream's gradient, which then goes on to both summands as it is. */
static void add_rmsnorm_backward(struct tape *tape, const struct record *r)
{
    struct value *x = r->in[0], *a = r->in[1], *sum = r->in[2];
    INVARIANT(x->gradient == sum->gradient && !a->gradient);
    norm_backward(tape, r, sum);
    tape_gradients_reset(tape);
    a->gradient = sum->gradient;
    a->written = x->written = true;
}

struct value *op_add_rmsnorm(struct tape *tape, struct value **sum, struct value *x, struct value *a,
                             const struct param *w)
{
    int64_t rows = x->rows;
    struct value *stream = tape_stream(tape);
    struct value *out = tape_value(tape, rows, x->columns, TAPE_KEPT);
    float *rstd = arena_take(tape->activations, (size_t)rows * sizeof *rstd); /* [rows] */
    tape->kernels->add_rmsnorm_forward(tape->queue, stream->data, out->data, rstd, x->data, a->data,
                                       tape_weight(tape, w), rows, x->columns,
                                       (float)tape->model->config.rms_eps, tape->model->compute);
    tape_gradients_reset(tape); /* a was passing */
    tape_record(tape, (struct record){.backward = add_rmsnorm_backward,
                                      .in = {x, a, stream},
                                      .out = out,
                                      .weight = w,
                                      .saved = rstd,
                                      .heads = 1});
    *sum = stream;
    return out;
}
