#include "pipeline.h"

#include "clock.h"
#include "inject.h"
#include "watch.h"

/* ---- the schedule ---- */

struct pipeline_turn pipeline_turn(int32_t stages, int32_t stage, int64_t n, int64_t i)
{
    int64_t ahead = stages - 1 - stage < n ? stages - 1 - stage : n;
    if (i < ahead)
        return (struct pipeline_turn){false, i};
    if (i >= 2 * n - ahead)
        return (struct pipeline_turn){true, i - n};
    return (struct pipeline_turn){(i - ahead) % 2 == 1, (i - ahead) / 2 + ((i - ahead) % 2 ? 0 : ahead)};
}

int64_t pipeline_flights(int32_t stages, int32_t stage, int64_t micro_batches)
{
    return stages - stage < micro_batches ? stages - stage : micro_batches;
}

/* ---- what the tape asks for, answered by the shard and the groups ---- */

static void *gather_unit(void *context, int32_t unit)
{
    struct body *body = &((struct engine *)context)->body;
    return shard_gather(&body->shard, &body->optimizer, unit);
}

static void release_unit(void *context, int32_t unit)
{
    (void)context, (void)unit; /* the shard keeps it until its buffer is needed */
}

static float *unit_gradient(void *context, int32_t unit, int32_t slot)
{
    return shard_leaf(&((struct engine *)context)->body.shard, unit, slot);
}

static void reduce_unit(void *context, int32_t unit, int32_t slot)
{
    shard_reduce(&((struct engine *)context)->body.shard, unit, slot);
}

static struct comm *axis_group(void *context, enum tape_axis axis)
{
    struct groups *groups = &((struct engine *)context)->groups;
    return axis == TAPE_CONTEXT ? &groups->context : &groups->tensor;
}

static void gather_axis(void *context, enum tape_axis axis, void *all, size_t each)
{
    comm_all_gather(axis_group(context, axis), all, each);
}

static void exchange_axis(void *context, enum tape_axis axis, void *to, const void *from, size_t each)
{
    comm_exchange(axis_group(context, axis), to, from, each);
}

/* ---- the pass ---- */

/* Leaf group g holds leaves g*d …: of one round, d lanes at a time. */
struct pass {
    struct engine *engine;
    struct workspace *w;
    struct loader *loader;
    const struct batch_plan *plan;
    struct pass_seconds *seconds;
    struct stage stage;
    struct tape_host host;
    int64_t groups, begun;   /* leaf groups; those that the shard was told of */
    int64_t count;           /* micro-batches: groups in which some rank has a sample; w->live names them */
    struct comm_message out; /* what was computed here and has not yet been sent */
};

static double now_s(struct device *device)
{
    device->backend->synchronize(device->queue);
    return clock_s();
}

static int64_t round_of(const struct pass *pass, int64_t group, int64_t *lane)
{
    int32_t d = pass->engine->groups.layout.d;
    int64_t groups_a_round = pass->plan->lanes / d;
    *lane = group % groups_a_round * d;
    return group / groups_a_round;
}

/* The ranks that have a leaf in the group: the c ranks of a lane each make a part of its leaf. */
static uint64_t present_in(const struct pass *pass, int64_t group)
{
    const struct layout *layout = &pass->engine->groups.layout;
    uint64_t parts = ~0ull >> (SHARD_RANKS_MAX - layout->c), present = 0;
    int64_t lane0, round = round_of(pass, group, &lane0);
    for (int32_t r = 0; r < layout->d; r++)
        if (batch_plan_micro(pass->plan, round, lane0 + r)->count > 0)
            present |= parts << r * layout->c;
    return present;
}

/* The shard is told of every leaf group in order, also of those that nobody has. */
static void begin_leaves(struct pass *pass, int64_t group)
{
    struct shard *shard = &pass->engine->body.shard;
    for (; pass->begun <= group; pass->begun++) {
        int64_t g = pass->begun;
        uint64_t present = present_in(pass, g);
        shard_leaves_begin(shard, inject("leaves-misnumbered") ? g / 2 * 2 + !(g & 1) : g, present);
        if (!present)
            shard_leaves_absent(shard);
    }
}

static bool overlap(const struct comm_message *a, const struct comm_message *b)
{
    uintptr_t from = (uintptr_t)a->at, other = (uintptr_t)b->at;
    return from < other + b->bytes && other < from + a->bytes;
}

/* What the next turn needs comes in while what the last one made goes out: two neighbours that have something
 * for each other meet here, so neither waits for the other in vain. */
static void receive(struct pass *pass, int32_t from, void *to, size_t bytes)
{
    struct comm *pipeline = &pass->engine->groups.pipeline;
    struct comm_message none = {0}, in = {from, to, to ? bytes : 0};
    if (overlap(&pass->out, &in)) { /* it goes to one neighbour, and then the other one's comes */
        comm_transfer(pipeline, &pass->out, &none);
        pass->out = none;
    }
    comm_transfer(pipeline, &pass->out, &in);
    pass->out = none;
}

static void hand_on(struct pass *pass, int32_t to, void *stream, size_t bytes)
{
    pass->out = (struct comm_message){to, stream, stream ? bytes : 0};
}

static void forward(struct pass *pass, int64_t i)
{
    struct engine *engine = pass->engine;
    struct workspace *w = pass->w;
    struct flight *f = &w->flights[i % w->flight_count];
    bool swapped = inject("micro-batches-swapped") && !stage_is_last(&pass->stage) && (i ^ 1) < pass->count;
    int64_t lane0, group = w->live[swapped ? i ^ 1 : i], round = round_of(pass, group, &lane0);
    double start = now_s(w->device);
    f->batch = feed_send(&f->feed, pass->loader, pass->plan, round, lane0 + engine->groups.place.d);
    w->batches_sent++;
    w->rows_sent += f->batch.tokens;
    w->labelled_sent += f->batch.labelled;
    pass->seconds->data += now_s(w->device) - start;
    void *in = model_begin(&engine->body.model, f->tape, &f->batch, &pass->host,
                           (struct tape_arenas){&f->activations, &w->blocks, &w->gradients}, w->training);
    receive(pass, pass->stage.rank - 1, in, model_stream_bytes(f->tape));
    if (w->training && stage_is_last(&pass->stage)) /* the head's leaf is made forward */
        begin_leaves(pass, group);
    start = now_s(w->device);
    double communicated = engine->comm->wire->seconds;
    void *out = model_forward(f->tape, w->device_nll + group);
    hand_on(pass, pass->stage.rank + 1, out, model_stream_bytes(f->tape));
    pass->seconds->forward += now_s(w->device) - start - (engine->comm->wire->seconds - communicated);
    watch_tick();
}

static void backward(struct pass *pass, int64_t i)
{
    struct engine *engine = pass->engine;
    struct workspace *w = pass->w;
    struct flight *f = &w->flights[i % w->flight_count];
    receive(pass, pass->stage.rank + 1, model_turn(f->tape), model_stream_bytes(f->tape));
    begin_leaves(pass, w->live[i]);
    double start = now_s(w->device), communicated = engine->comm->wire->seconds;
    void *out = model_backward(f->tape);
    hand_on(pass, pass->stage.rank - 1, out, model_stream_bytes(f->tape));
    pass->seconds->backward += now_s(w->device) - start - (engine->comm->wire->seconds - communicated);
    watch_tick();
}

static void find_live(struct pass *pass)
{
    for (int64_t g = 0; g < pass->groups; g++)
        if (present_in(pass, g))
            pass->w->live[pass->count++] = g;
}

void pass_over_batch(struct engine *engine, struct workspace *w, struct loader *loader,
                     const struct batch_plan *plan, struct pass_seconds *seconds)
{
    struct pass pass = {.engine = engine,
                        .w = w,
                        .loader = loader,
                        .plan = plan,
                        .seconds = seconds,
                        .stage = engine->body.model.stage,
                        .host = {.context = engine,
                                 .unit_gather = gather_unit,
                                 .unit_release = release_unit,
                                 .unit_gradient = unit_gradient,
                                 .unit_reduce = reduce_unit,
                                 .all_gather = gather_axis,
                                 .exchange = exchange_axis},
                        .groups = plan->rounds * (plan->lanes / engine->groups.layout.d)};
    find_live(&pass);
    engine->comm->wire->seconds = 0;
    device_zero(w->device, w->device_nll, (size_t)w->groups * sizeof(double));
    for (int64_t i = 0; i < (w->training ? 2 : 1) * pass.count; i++) {
        struct pipeline_turn turn = {false, i};
        if (w->training)
            turn = pipeline_turn(pass.stage.ranks, pass.stage.rank, pass.count, i);
        if (w->training && !turn.back)
            engine_before_micro_batch(engine, turn.micro_batch, pass.count);
        if (turn.back)
            backward(&pass, turn.micro_batch);
        else
            forward(&pass, turn.micro_batch);
        if (turn.back)
            engine_after_micro_batch(engine, turn.micro_batch, pass.count);
    }
    receive(&pass, 0, NULL, 0);
    if (w->training)
        begin_leaves(&pass, pass.groups - 1);
}

/* ---- what is known to one stage ---- */

void pipeline_tell(struct engine *engine, void *bytes, size_t count)
{
    struct comm *pipeline = &engine->groups.pipeline;
    comm_broadcast_from(pipeline, pipeline->ranks - 1, bytes, count);
}

/* The sum goes from stage to stage, so that it is added in table order. */
struct shard_squares pipeline_squares(struct engine *engine)
{
    struct comm *pipeline = &engine->groups.pipeline;
    const struct layout *layout = &engine->groups.layout;
    struct shard_squares squares = {.bad_rank = -1, .bad_tensor = -1};
    for (int32_t stage = 0; stage < pipeline->ranks; stage++) {
        bool seen = squares.bad_rank >= 0;
        if (stage == pipeline->rank)
            shard_gradient_squares(&engine->body.shard, &squares);
        if (!seen && squares.bad_rank >= 0 && stage == pipeline->rank)
            squares.bad_rank =
                (squares.bad_rank + stage * layout->d * layout->c) * layout->t + engine->groups.place.t;
        comm_broadcast_from(pipeline, stage, &squares, sizeof squares);
    }
    return squares;
}
