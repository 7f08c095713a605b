#include "estimate.h"

#include "plan.h"

/* One rank's work on one micro-batch: floating-point operations, and bytes that elementwise kernels move. */
struct work {
    double products, attention_forward, attention_backward, bytes;
};

/* A product with a weight of e elements takes 2 e operations a token, its backward twice as many. */
static double matrix_elements(const struct body *body, int32_t unit)
{
    const struct param_unit *u = &body->model.params.units[unit];
    double elements = 0;
    for (const struct param *p = body->model.params.params + u->first;
         p < body->model.params.params + u->first + u->count; p++)
        elements += (double)(p->rows * p->columns);
    return elements;
}

static bool is_held(const struct body *body, int32_t unit)
{
    return body->shard.units[unit].shard_elements > 0;
}

/* A block, forward `forwards` times and once back. tokens: of the tensor group's micro-batch on this rank;
 * squares: of the lengths of its sequences, over c. */
static void add_block(struct work *work, const struct body *body, int32_t unit, const struct layout *layout,
                      double tokens, double squares, double forwards)
{
    const struct model_config *m = &body->model.config;
    double t = layout->t, element = (double)dtype_bytes(body->model.compute);
    double heads = (double)(m->q_heads * m->head_dim) / t;
    double keys = (double)((m->kv_heads > layout->t ? m->kv_heads : layout->t) * m->head_dim) / t;
    work->products += (forwards + 2) * 2 * tokens * matrix_elements(body, unit);
    work->attention_forward += forwards * 2 * squares * heads; /* two products, half of the square each */
    work->attention_backward += 2.5 * 2 * squares * heads;     /* five: the scores are formed again */
    /* Elements a token, read and written: two norms and two sums of the stream; norms and rotations of
     * queries and keys; SwiGLU. Back, each reads one operand more. */
    double C = (double)m->hidden / t, F = (double)m->ffn / t;
    double forward = 9 * C + 4 * (heads + keys) + 3 * F, backward = 8 * C + 5 * (heads + keys) + 5 * F;
    work->bytes += tokens * element * (forwards * forward + backward);
}

/* Logits are written and read in fp32, their gradients written and read twice. */
static void add_head(struct work *work, const struct body *body, double tokens)
{
    const struct param_table *params = &body->model.params;
    int32_t unit = body->model.config.tied ? 0 : params->unit_count - 1;
    double elements = matrix_elements(body, unit), logits = elements / (double)body->model.config.hidden;
    work->products += 3 * 2 * tokens * elements;
    work->bytes += tokens * logits * (2 * 4 + 3 * (double)dtype_bytes(body->model.compute));
}

static struct work work_of(const struct body *body, const struct layout *layout, double tokens,
                           double squares)
{
    struct work work = {0};
    int32_t units = body->model.params.unit_count;
    double gradients = 0;
    for (int32_t u = 0; u < units; u++) {
        if (!is_held(body, u))
            continue;
        bool last = u == units - 2; /* whose backward follows at once */
        if (u > 0 && u < units - 1)
            add_block(&work, body, u, layout, tokens, squares, body->model.recompute && !last ? 2 : 1);
        gradients += matrix_elements(body, u);
    }
    if (is_held(body, units - 1))
        add_head(&work, body, tokens);
    work.bytes += gradients * 16; /* fp32: written, read, and added to what is there */
    return work;
}

/* What the update of this rank's shard moves: the state read and written, the gradient, the copy. */
static double update_bytes(const struct body *body)
{
    double elements = 0;
    const struct policy *policy = &body->optimizer.policy;
    for (int32_t u = 0; u < body->shard.unit_count; u++)
        elements += (double)body->shard.units[u].shard_elements;
    return elements * (2 * policy_bytes_per_parameter(policy) + (double)dtype_bytes(policy->accumulate) +
                       (double)dtype_bytes(policy->compute));
}

/* stride: how far apart neighbours of the group are, in ranks. */
static double rate_of(const struct machine *machine, int32_t stride, int32_t ranks)
{
    bool spans = (int64_t)stride * ranks > machine->ranks_a_host;
    return machine->links *
           (spans && machine->network_rate < machine->link_rate ? machine->network_rate : machine->link_rate);
}

struct estimate estimate_stage(const struct machine *machine, const struct body *body,
                               const struct layout *layout, const struct batch_load *load,
                               const struct plan_traffic *traffic)
{
    double m = (double)load->micro_batches, share = 1 / (m * layout->d * layout->c);
    struct work work = work_of(body, layout, load->tokens * share, load->squared_lengths * share);
    double peak = machine->product_flops, memory = machine->streaming * machine->memory_rate;
    int32_t t = layout->t, c = layout->c, d = layout->d, p = layout->p;
    struct estimate e = {.products = m * work.products / (machine->products * peak),
                         .attention = m * work.attention_forward / (machine->attention_forward * peak) +
                                      m * work.attention_backward / (machine->attention_backward * peak),
                         .streaming = m * work.bytes / memory,
                         .update = update_bytes(body) / memory};
    e.exchange = (double)traffic->bytes[WIRE_TENSOR] / rate_of(machine, 1, t) +
                 (double)traffic->bytes[WIRE_CONTEXT] / rate_of(machine, t, c) +
                 (double)traffic->bytes[WIRE_PIPELINE] / rate_of(machine, t * c * d, p);
    double stage = e.products + e.attention + e.streaming + e.exchange;
    e.exposed =
        (double)(traffic->bytes[WIRE_GATHER] + traffic->bytes[WIRE_REDUCE]) / rate_of(machine, t, c * d);
    if (machine->overlaps)
        e.exposed = e.exposed > stage ? e.exposed - stage : 0;
    e.bubble = stage * (p - 1) / m;
    e.step = stage + e.exposed + e.bubble + e.update;
    double operations = model_config_flops(&body->model.config, (int64_t)load->tokens, load->squared_lengths);
    e.tokens_per_second = load->tokens / e.step;
    e.utilization = operations / e.step / (peak * t * c * d * p);
    return e;
}
