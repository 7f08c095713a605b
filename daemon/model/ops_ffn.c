/* SwiGLU: silu(gate) up. */
#include "tape_ops.h"

/* In place: gate and up are read here for the last time, and their memory becomes their gradients'. */
static void swiglu_backward(struct tape *tape, const struct record *r)
{
    struct value *gate = r->in[0], *up = r->in[1];
    INVARIANT(!gate->gradient && !up->gradient);
    tape->kernels->swiglu_backward(tape->queue, gate->data, up->data, tape_gradient_of(tape, r->out),
                                   gate->data, up->data, gate->rows * gate->columns, tape->model->compute);
    gate->gradient = gate->data;
    up->gradient = up->data;
    gate->written = up->written = true;
}

struct value *op_swiglu(struct tape *tape, struct value *gate, struct value *up)
{
    struct value *out = tape_value(tape, gate->rows, gate->columns, TAPE_KEPT);
    tape->kernels->swiglu_forward(tape->queue, out->data, gate->data, up->data, gate->rows * gate->columns,
                                  tape->model->compute);
    tape_record(tape, (struct record){.backward = swiglu_backward, .in = {gate, up}, .out = out});
    return out;
}
