/* A model's life, its memory plan, and the run of one micro-batch through it, forward and back. */
#include "qwen3.h"
#include "rope.h"

#include "clock.h"

#include <inttypes.h>
#include <stdlib.h>

static size_t rope_bytes(const struct model *model, int64_t positions)
{
    return (size_t)(positions * (model->config.head_dim / 2)) * sizeof(float);
}

bool model_init_piece(struct model *model, const struct model_config *config, struct tensor_place place,
                      enum dtype compute, bool recompute, struct device *device, struct err *err)
{
    INVARIANT(compute == DTYPE_F32 || compute == DTYPE_BF16);
    struct model made = {.config = *config,
                         .compute = compute,
                         .recompute = recompute,
                         .context = {.ranks = 1},
                         .tensor = place,
                         .stage = stage_of(config, 1, 0),
                         .device = device};
    if (!param_table_init_piece(&made.params, config, place, err) ||
        !tape_init(&made.tape, config->layers, err)) {
        model_done(&made);
        return false;
    }
    *model = made;
    return true;
}

bool model_init(struct model *model, const struct model_config *config, enum dtype compute, bool recompute,
                struct device *device, struct err *err)
{
    return model_init_piece(model, config, (struct tensor_place){.ranks = 1}, compute, recompute, device,
                            err);
}

void model_done(struct model *model)
{
    if (model->rope_positions > 0) {
        device_release(model->device, model->rope_cosines, rope_bytes(model, model->rope_positions));
        device_release(model->device, model->rope_sines, rope_bytes(model, model->rope_positions));
    }
    tape_done(model->tape);
    param_table_done(&model->params);
    *model = (struct model){0};
}

static bool fill_tables(const struct model *model, float *cosines, float *sines, int64_t positions)
{
    int64_t half = model->config.head_dim / 2;
    size_t bytes = rope_bytes(model, positions);
    float *tables = malloc(2 * bytes);
    bool there = tables != NULL;
    for (int64_t t = 0; there && t < positions; t++)
        rope_row(tables + t * half, tables + (positions + t) * half, model->config.rope_theta, 2 * half, t);
    if (there) {
        device_copy_in(model->device, cosines, tables, bytes);
        device_copy_in(model->device, sines, tables + positions * half, bytes);
    }
    free(tables);
    return there;
}

bool model_reserve_positions(struct model *model, int64_t positions, struct err *err)
{
    struct device *device = model->device;
    if (positions <= model->rope_positions)
        return true;
    if (positions > model->config.positions) {
        err_set(err, ERR_INVALID, "sequences of %" PRId64 " tokens are longer than the model allows",
                positions);
        err_why(err, "max_position_embeddings is %" PRId64, model->config.positions);
        return err_hint(err, "lower the cutoff");
    }
    size_t bytes = rope_bytes(model, positions);
    float *cosines = device_allocate(device, bytes), *sines = device_allocate(device, bytes);
    if (!cosines || !sines || !(device->planning || fill_tables(model, cosines, sines, positions))) {
        device_release(device, cosines, bytes);
        device_release(device, sines, bytes);
        return err_set(err, ERR_MEMORY, "2 x %zu bytes of rotary tables do not fit", bytes);
    }
    if (model->rope_positions > 0) {
        device_release(device, model->rope_cosines, rope_bytes(model, model->rope_positions));
        device_release(device, model->rope_sines, rope_bytes(model, model->rope_positions));
    }
    model->rope_cosines = cosines;
    model->rope_sines = sines;
    model->rope_positions = positions;
    return true;
}

size_t model_stream_bytes(const struct tape *tape)
{
    return tape_bytes(tape, tape_rows(tape), tape->model->config.hidden);
}

static void run_gradients_begin(struct tape *tape)
{
    size_t stream_bytes = model_stream_bytes(tape);
    tape->whole = (struct tape_whole){0};
    arena_reset(tape->gradients, 0);
    tape->stream_gradient = tape->training ? arena_take(tape->gradients, stream_bytes) : NULL;
    if (tape->training && !stage_is_last(&tape->model->stage))
        tape->handed_on = arena_take(tape->gradients, stream_bytes);
    tape->stream_mark = arena_mark(tape->gradients);
}

/* What lies at the bottom of the arenas: log-probabilities, and the stream's gradient or its two buffers. A
 * stage that hands the stream on has it above its gradient. */
static void run_begin(struct tape *tape)
{
    size_t stream_bytes = model_stream_bytes(tape);
    tape->value_count = tape->record_count = tape->open_count = 0;
    tape->recording = tape->replaying = false;
    arena_reset(tape->activations, 0);
    arena_reset(tape->arenas.blocks, 0);
    tape->logprob = NULL;
    if (stage_is_last(&tape->model->stage))
        tape->logprob = arena_take(tape->activations, (size_t)tape->batch->tokens * sizeof(float));
    for (int i = 0; i < 2 && !tape->training; i++)
        tape->turns[i] = arena_take(tape->activations, stream_bytes);
    run_gradients_begin(tape);
}

/* Every block's input is kept for its backward. What a block computed is kept too, unless it will be computed
 * again; on the last stage the last block's backward follows at once, so there recomputing would save
 * nothing.
 */
static bool is_kept(const struct tape *tape, int64_t layer)
{
    const struct stage *stage = &tape->model->stage;
    return !tape->model->recompute || (layer == stage->past - 1 && stage_is_last(stage));
}

/* Around what a block computes. Where it will be computed again it is gone before the next block, so one
 * arena serves all micro-batches in flight. */
static void block_begin(struct tape *tape)
{
    tape->activations = tape->model->recompute ? tape->arenas.blocks : tape->arenas.activations;
}

static void block_end(struct tape *tape)
{
    tape->activations = tape->arenas.activations;
}

static void run_blocks(struct tape *tape)
{
    const struct stage *stage = &tape->model->stage;
    for (int64_t layer = stage->first; layer < stage->past; layer++) {
        bool handed_on = tape->training && layer == stage->past - 1 && !stage_is_last(stage);
        struct value *out = handed_on ? tape_stream_at(tape, tape->handed_on) : tape_block_output(tape);
        bool keep = tape->training && is_kept(tape, layer);
        block_begin(tape);
        struct tape_mark mark = tape_mark(tape);
        tape_unit_open(tape, (int32_t)layer + 1, 0, true, false);
        tape->recording = keep;
        qwen3_block(tape, (int32_t)layer + 1, out, tape->inputs[layer]);
        tape->recording = false;
        tape_unit_close(tape);
        if (!keep)
            tape_forget(tape, mark);
        block_end(tape);
        tape->marks[layer] = mark;
        tape->inputs[layer + 1] = out;
    }
}

/* Forward and, in training, backward of the last unit: the head's two halves are one op. */
static void run_head(struct tape *tape)
{
    int32_t unit = tape->model->params.unit_count - 1;
    struct tape_mark mark = tape_mark(tape);
    tape_unit_open(tape, unit, 0, true, tape->training);
    if (tape->model->config.tied)
        tape_unit_open(tape, 0, 1, true, tape->training);
    tape->recording = tape->training;
    qwen3_head(tape, unit, tape->inputs[tape->model->config.layers]);
    tape->recording = false;
    tape_play(tape, mark.records);
    if (tape->model->config.tied)
        tape_unit_close(tape);
    tape_unit_close(tape);
    tape_forget(tape, mark);
    tape_gradients_reset(tape);
}

static void run_blocks_back(struct tape *tape)
{
    const struct stage *stage = &tape->model->stage;
    for (int64_t layer = stage->past - 1; layer >= stage->first; layer--) {
        struct tape_mark mark = tape->marks[layer];
        block_begin(tape);
        tape_unit_open(tape, (int32_t)layer + 1, 0, true, true);
        if (!is_kept(tape, layer)) {
            tape_forget(tape, mark);
            tape->recording = tape->replaying = true;
            qwen3_block(tape, (int32_t)layer + 1, tape->inputs[layer + 1], tape->inputs[layer]);
            tape->recording = tape->replaying = false;
        }
        tape_play(tape, mark.records);
        tape_unit_close(tape);
        tape_forget(tape, mark);
        block_end(tape);
        tape_gradients_reset(tape);
    }
}

static void run_embed(struct tape *tape)
{
    int64_t first = tape->model->stage.first;
    tape_unit_open(tape, 0, 0, true, false);
    tape->recording = tape->training;
    tape->inputs[first] = qwen3_embed(tape);
    tape->recording = false;
    tape_unit_close(tape);
}

static void *begin(struct tape *tape)
{
    const struct stage *stage = &tape->model->stage;
    run_begin(tape);
    if (stage->rank == 0)
        return NULL;
    struct value *in = tape_block_output(tape);
    tape->inputs[stage->first] = in;
    return in->data;
}

void *model_forward(struct tape *tape, double *logprob_sum)
{
    const struct stage *stage = &tape->model->stage;
    if (stage->rank == 0)
        run_embed(tape);
    run_blocks(tape);
    if (!stage_is_last(stage))
        return tape->inputs[stage->past]->data;
    run_head(tape);
    tape->kernels->sum_double(tape->queue, logprob_sum, tape->logprob, tape->batch->tokens);
    return NULL;
}

void *model_turn(struct tape *tape)
{
    const struct stage *stage = &tape->model->stage;
    INVARIANT(tape->training);
    if (stage_is_last(stage))
        return NULL;
    run_gradients_begin(tape);
    tape->inputs[stage->past]->written = true;
    return tape->stream_gradient;
}

void *model_backward(struct tape *tape)
{
    run_blocks_back(tape);
    if (tape->model->stage.rank > 0)
        return tape->stream_gradient;
    tape_unit_open(tape, 0, 0, false, true);
    tape_play(tape, 0);
    tape_unit_close(tape);
    return NULL;
}

static double now_s(struct tape *tape)
{
    tape->model->device->backend->synchronize(tape->queue);
    return clock_s();
}

static void set_up(struct tape *tape, const struct model *model, const struct batch *batch,
                   const struct tape_host *host, struct tape_arenas arenas, bool training)
{
    tape->model = model;
    tape->batch = batch;
    tape->host = host;
    tape->kernels = model->device->kernels;
    tape->queue = model->device->queue;
    tape->arenas = arenas;
    tape->activations = arenas.activations;
    tape->gradients = arenas.gradients;
    tape->planning = false;
    tape->training = training;
}

/* A host for planning: addresses that nobody reads. */
static char nowhere;
static void *plan_gather(void *context, int32_t unit)
{
    (void)context, (void)unit;
    return &nowhere;
}
static float *plan_gradient(void *context, int32_t unit, int32_t slot)
{
    static float nothing;
    (void)context, (void)unit, (void)slot;
    return &nothing;
}
static void plan_release(void *context, int32_t unit)
{
    (void)context, (void)unit;
}
static void plan_all_gather(void *context, enum tape_axis axis, void *all, size_t each)
{
    (void)context, (void)axis, (void)all, (void)each;
}
static void plan_exchange(void *context, enum tape_axis axis, void *to, const void *from, size_t each)
{
    (void)context, (void)axis, (void)to, (void)from, (void)each;
}
static void plan_reduce(void *context, int32_t unit, int32_t slot)
{
    (void)context, (void)unit, (void)slot;
}

struct tape_plan model_plan(const struct model *model, int64_t tokens, int64_t sequences, int64_t longest,
                            bool training)
{
    struct arena activations, blocks, gradients;
    const struct kernels kernels = kernels_planning(model->device->kernels);
    const struct tape_host host = {.unit_gather = plan_gather,
                                   .unit_release = plan_release,
                                   .unit_gradient = plan_gradient,
                                   .unit_reduce = plan_reduce,
                                   .all_gather = plan_all_gather,
                                   .exchange = plan_exchange};
    const struct batch batch = {.tokens = tokens,
                                .sequences = sequences,
                                .longest = longest,
                                .used_tokens = tokens,
                                .labelled = tokens,
                                .keys = tokens * model->context.ranks};
    arena_init_planning(&activations, "activations");
    arena_init_planning(&blocks, "a block's activations");
    arena_init_planning(&gradients, "activation gradients");
    struct tape *tape = model->tape;
    set_up(tape, model, &batch, &host, (struct tape_arenas){&activations, &blocks, &gradients}, training);
    tape->kernels = &kernels;
    tape->queue = NULL;
    tape->planning = true;
    begin(tape);
    model_forward(tape, NULL);
    if (training) {
        model_turn(tape);
        model_backward(tape);
    }
    return (struct tape_plan){activations.peak, blocks.peak, gradients.peak};
}

bool model_tape_init(struct tape **tape, const struct model *model, struct err *err)
{
    return tape_init(tape, model->config.layers, err);
}

void model_tape_done(struct tape *tape)
{
    tape_done(tape);
}

void *model_begin(const struct model *model, struct tape *tape, const struct batch *batch,
                  const struct tape_host *host, struct tape_arenas arenas, bool training)
{
    INVARIANT(batch->seen || batch->longest <= model->rope_positions); /* where it is cut, padding counts */
    set_up(tape, model, batch, host, arenas, training);
    return begin(tape);
}

void model_run(const struct model *model, const struct batch *batch, const struct tape_host *host,
               struct tape_arenas arenas, double *logprob_sum, bool training, struct model_pass *pass)
{
    struct tape *tape = model->tape;
    INVARIANT(model->stage.ranks == 1);
    model_begin(model, tape, batch, host, arenas, training);
    double start = now_s(tape);
    model_forward(tape, logprob_sum);
    double turn = now_s(tape);
    if (training)
        model_backward(tape);
    *pass = (struct model_pass){turn - start, now_s(tape) - turn, tape->logprob};
}
