#include "plan.h"

#include "pipeline.h"

#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- a device of addresses only ---- */

static void *reserve(struct device *device, size_t bytes)
{
    (void)device;
    void *memory =
        mmap(NULL, bytes ? bytes : 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void unreserve(struct device *device, void *memory, size_t bytes)
{
    (void)device;
    munmap(memory, bytes ? bytes : 1);
}

static void copy_nothing_in(struct queue *queue, void *to, const void *from, size_t bytes)
{
    (void)queue, (void)to, (void)from, (void)bytes;
}

static void zero_nothing(struct queue *queue, void *to, size_t bytes)
{
    (void)queue, (void)to, (void)bytes;
}

/* ---- traffic ---- */

const struct plan_wire_name plan_wires[WIRES] = {
    [WIRE_GATHER] = {"gather", "weights, to gather"},      [WIRE_REDUCE] = {"reduce", "gradients, to reduce"},
    [WIRE_CONTEXT] = {"context", "keys and values"},       [WIRE_TENSOR] = {"tensor", "tensor parallelism"},
    [WIRE_PIPELINE] = {"pipeline", "from stage to stage"},
};

/* A unit whose buffer still holds it is not sent again. */
static int64_t gather_unit(const struct shard *shard, int32_t unit, int32_t *holds)
{
    int32_t *held = &holds[shard->units[unit].buffer], before = *held;
    *held = unit;
    return before == unit ? 0
                          : shard->units[unit].shard_elements * (int64_t)dtype_bytes(shard->options.compute) *
                                (shard->comm->ranks - 1);
}

/* The order in which a step asks for units (pipeline.c, model.c): forward, on the last stage with the head,
 * or the blocks back. */
static int64_t gather_bytes(const struct shard *shard, int64_t micro_batches)
{
    const struct stage *stage = &shard->options.stage;
    int32_t first = (int32_t)stage->first + 1, past = (int32_t)stage->past + 1;
    int64_t bytes = 0;
    int32_t *holds = malloc((size_t)shard->buffer_count * sizeof *holds);
    INVARIANT(holds != NULL);
    memset(holds, 0xff, (size_t)shard->buffer_count * sizeof *holds); /* -1: an update has changed all */
    for (int64_t i = 0; i < 2 * micro_batches; i++) {
        bool back = pipeline_turn(stage->ranks, stage->rank, micro_batches, i).back;
        if (!back && stage->rank == 0)
            bytes += gather_unit(shard, 0, holds);
        for (int32_t u = first; u < past; u++)
            bytes += gather_unit(shard, back ? first + past - 1 - u : u, holds);
        if (!back && stage_is_last(stage))
            bytes += gather_unit(shard, past, holds);
        if (!back && stage_is_last(stage) && shard->tied)
            bytes += gather_unit(shard, 0, holds);
    }
    free(holds);
    return bytes;
}

/* The stream to the next stage and its gradient to the one before; and the tied embedding's sums between the
 * ends. */
static int64_t pipeline_bytes(const struct body *body, int64_t micro_batches, int64_t rows)
{
    const struct shard *shard = &body->shard;
    const struct stage *stage = &shard->options.stage;
    int64_t stream = rows / body->model.tensor.ranks * body->model.config.hidden *
                     (int64_t)dtype_bytes(body->model.compute);
    int64_t bytes = ((stage->rank > 0) + !stage_is_last(stage)) * stream;
    if (shard->tied && stage->ranks > 1 && micro_batches > 0)
        bytes += shard->units[0].shard_elements * (int64_t)dtype_bytes(shard->options.accumulate);
    return bytes;
}

/* Each layer gathers K and V forward and again back, and exchanges both gradients; recompute gathers once
 * more, but for the model's last layer (ops_attention.c). */
static int64_t context_bytes(const struct model *model, int64_t rows)
{
    const struct model_config *config = &model->config;
    int64_t t = model->tensor.ranks, heads = config->kv_heads > t ? config->kv_heads / t : 1; /* here */
    int64_t layers = model->stage.past - model->stage.first;
    int64_t passes = layers * 6 + (model->recompute ? 2 * (layers - stage_is_last(&model->stage)) : 0);
    return passes * rows * (t > 1 ? heads : config->kv_heads) * config->head_dim *
           (int64_t)dtype_bytes(model->compute) * (model->context.ranks - 1);
}

/* The stream's rows, each time gathered or reduce-scattered. Forward: two of either a layer, one for the
 * embedding, one for the head. Backward: the same the other way round, and the two normed inputs of a layer
 * once more. Recompute: the first three of a layer again, less the second input that the backward finds
 * there; but for the last layer (ops_tensor.c). The head's softmax: three numbers a labelled row. */
static int64_t tensor_bytes(const struct model *model, int64_t rows, int64_t labelled)
{
    const struct stage *stage = &model->stage;
    int64_t t = model->tensor.ranks, layers = stage->past - stage->first, last = stage_is_last(stage);
    int64_t passes = layers * 10 + (model->recompute ? 2 * (layers - last) : 0);
    passes += 2 * (stage->rank == 0) + 2 * last;
    int64_t each = rows / t * model->config.hidden * (int64_t)dtype_bytes(model->compute);
    return (passes * each + last * labelled * (int64_t)sizeof(struct head_stats)) * (t - 1);
}

struct plan_traffic plan_traffic(const struct body *body, int64_t micro_batches, int64_t rows,
                                 int64_t labelled)
{
    const struct shard *shard = &body->shard;
    struct plan_traffic traffic = {
        .bytes = {[WIRE_GATHER] = gather_bytes(shard, micro_batches),
                  [WIRE_CONTEXT] = context_bytes(&body->model, rows),
                  [WIRE_TENSOR] = tensor_bytes(&body->model, rows, labelled) + shard_shared_sent(shard),
                  [WIRE_PIPELINE] = pipeline_bytes(body, micro_batches, rows)}};
    bool at_the_end = shard_sum_parts(&shard->options, shard->comm->ranks) > 1;
    for (int32_t u = 0; u < shard->unit_count && shard->comm->ranks > 1; u++) {
        int uses = (shard->units[u].sums[0].levels[0] != NULL) + (shard->units[u].sums[1].levels[0] != NULL);
        traffic.bytes[WIRE_REDUCE] += shard->units[u].shard_elements *
                                      (int64_t)dtype_bytes(shard->options.reduce) * (shard->comm->ranks - 1) *
                                      uses * (at_the_end ? 1 : micro_batches);
    }
    return traffic;
}

/* ---- the plan ---- */

static void add(void *context, const char *name, const char *kind, enum dtype dtype, int64_t elements,
                int64_t bytes)
{
    struct plan *plan = context;
    int32_t i = 0;
    (void)name, (void)dtype, (void)elements;
    while (i < plan->count && strcmp(plan->rows[i].kind, kind) != 0)
        i++;
    if (bytes == 0)
        return;
    INVARIANT(i < PLAN_KINDS);
    if (i == plan->count)
        snprintf(plan->rows[plan->count++].kind, sizeof plan->rows[0].kind, "%s", kind);
    plan->rows[i].bytes += bytes;
    plan->bytes += bytes;
}

/* Micro-batches of one sequence each, without data. */
static bool make_shape(struct engine *engine, const struct plan_request *request, struct err *err)
{
    struct run *run = &engine->run;
    int64_t lanes = engine_lanes(engine), row = BATCH_ROW_MULTIPLE;
    struct batch_bounds bounds = {.rounds = (request->global_batch + lanes - 1) / lanes,
                                  .rows = (request->sequence + row - 1) / row * row,
                                  .sequences = 1,
                                  .longest = request->sequence};
    run->positions = bounds.longest;
    return workspace_make(engine, &run->workspace, &engine->body.model, &bounds, true, err);
}

static bool make_step(struct engine *engine, const struct plan_request *request, struct err *err)
{
    struct run *run = &engine->run;
    if (request->recipe)
        run->recipe = *request->recipe;
    engine->has_run = true; /* so that a failure frees it */
    bool made =
        request->recipe ? run_open(engine, run, &engine->body.model, err) : make_shape(engine, request, err);
    if (!made || !body_fit_shard(engine, &engine->body, run->workspace.groups, err))
        return false;
    err_keeps(model_reserve_positions(&engine->body.model, run->positions, err));
    return comm_agree(engine->comm, err);
}

/* A step's tokens on average over an epoch, or as asked for. */
static struct batch_load load_of(const struct engine *engine, const struct plan_request *request)
{
    const struct data_source *source = engine->run.source;
    struct batch_load load = {.micro_batches = engine->run.workspace.groups};
    if (!source) {
        load.tokens = (double)request->global_batch * (double)request->sequence;
        load.squared_lengths = load.tokens * (double)request->sequence;
        return load;
    }
    for (int64_t i = 0; i < source->order.rows; i++) {
        int64_t length = dataset_row_length(&source->dataset, source->order.kept[i]);
        double tokens = (double)(length < source->order.cutoff ? length : source->order.cutoff);
        load.tokens += tokens / (double)source->order.steps_per_epoch;
        load.squared_lengths += tokens * tokens / (double)source->order.steps_per_epoch;
    }
    return load;
}

static void describe(struct plan *plan, const struct engine *engine, const struct plan_request *request)
{
    const struct body *body = &engine->body;
    snprintf(plan->model, sizeof plan->model, "%.60s", body->model.config.architecture);
    plan->parameters = body->model.params.whole_elements;
    engine_rows(engine, add, plan);
    if (!engine->has_run)
        return;
    if (engine->run.source) {
        const struct recipe *recipe = &engine->run.recipe;
        plan->steps =
            recipe->steps >= 0 ? recipe->steps : recipe->epochs * engine->run.source->order.steps_per_epoch;
    }
    plan->micro_batches = engine->run.workspace.groups;
    plan->micro_batch_tokens = engine->run.workspace.flights[0].feed.bounds.rows;
    int64_t rows = plan->micro_batches * plan->micro_batch_tokens;
    plan->traffic = plan_traffic(body, plan->micro_batches, rows, rows);
    struct batch_load load = load_of(engine, request);
    if (request->machine && body->model.compute == DTYPE_BF16) /* the rates are those of bf16 products */
        plan->time = estimate_stage(request->machine, body, &plan->layout, &load, &plan->traffic);
}

/* Memory and wire of the fullest, time of the slowest. */
static void join(struct plan *plan, const struct plan *other)
{
    struct plan both = other->bytes > plan->bytes ? *other : *plan;
    both.time = other->time.step > plan->time.step ? other->time : plan->time;
    for (int s = 0; s < PLAN_STAGES; s++)
        both.stage_bytes[s] =
            plan->stage_bytes[s] > other->stage_bytes[s] ? plan->stage_bytes[s] : other->stage_bytes[s];
    *plan = both;
}

static void join_ranks(struct plan *plan, struct comm *comm)
{
    struct plan *all = calloc((size_t)comm->ranks, sizeof *all);
    INVARIANT(all != NULL);
    comm_all_gather_host(comm, all, plan, sizeof *plan);
    *plan = all[0];
    for (int32_t r = 1; r < comm->ranks; r++)
        join(plan, &all[r]);
    free(all);
}

/* The plan of one rank: this one, or of the one that stands at the layout's place. */
static bool make_rank(struct plan *plan, struct engine *engine, const struct plan_request *request,
                      struct err *err)
{
    struct model_config config = {0};
    struct body body;
    err_keeps(model_config_load(&config, request->model, err));
    if (!comm_agree(engine->comm, err) ||
        !body_make(engine, &body, &config, &engine->options.policy, engine->options.seed, err))
        return false;
    engine_take_body(engine, &body);
    if ((request->recipe || request->sequence > 0) && !make_step(engine, request, err))
        return false;
    describe(plan, engine, request);
    if (engine->groups.place.p < PLAN_STAGES)
        plan->stage_bytes[engine->groups.place.p] = plan->bytes;
    return true;
}

/* We are one of them, and make no collective as such. */
static void stand_in(struct groups *groups, const struct layout *layout, int32_t stage)
{
    groups->layout = *layout;
    groups->place = (struct layout_place){.p = stage};
    groups->shard.ranks = layout->d * layout->c;
    groups->tensor.ranks = layout->t;
    groups->context.ranks = layout->c;
    groups->pipeline.ranks = layout->p;
    groups->pipeline.rank = stage;
}

static bool make_stages(struct plan *plan, struct engine *engine, const struct engine_options *options,
                        struct comm *comm, struct device *device, const struct plan_request *request,
                        struct err *err)
{
    const struct layout here = {.d = comm->ranks, .t = 1, .p = 1, .c = 1}, *wanted = &options->layout;
    bool elsewhere = comm->ranks == 1 && wanted->d * wanted->t * wanted->p * wanted->c > 1;
    const struct plan empty = *plan;
    bool made = true;
    for (int32_t stage = 0; made && stage < (elsewhere ? wanted->p : 1); stage++) {
        struct plan of_stage = empty;
        *engine = (struct engine){.options = *options, .comm = comm, .device = device};
        made = groups_init(&engine->groups, comm, elsewhere ? &here : wanted, err);
        if (made && elsewhere)
            stand_in(&engine->groups, wanted, stage);
        made = made && make_rank(&of_stage, engine, request, err);
        engine_done(engine);
        if (stage == 0)
            *plan = of_stage;
        else
            join(plan, &of_stage);
    }
    if (made)
        join_ranks(plan, comm);
    return made;
}

bool plan_make(struct plan *plan, struct engine *engine, const struct engine_options *options,
               struct comm *comm, struct device *device, const struct plan_request *request, struct err *err)
{
    const struct device_backend *backend = device->backend;
    struct device_backend addresses = *backend;
    addresses.allocate = reserve;
    addresses.release = unreserve;
    addresses.copy_in = copy_nothing_in;
    addresses.zero = zero_nothing;
    device->backend = &addresses;
    device->planning = true;
    host_memory_promise_all(true);
    *plan = (struct plan){.layout = options->layout, .zero = options->zero, .there = request->there};
    bool made = make_stages(plan, engine, options, comm, device, request, err);
    host_memory_promise_all(false);
    device->planning = false;
    device->backend = backend;
    return made;
}
