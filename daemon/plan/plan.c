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

const char *const plan_wire_names[WIRES] = {
    [WIRE_GATHER] = "weights, to gather",    [WIRE_REDUCE] = "gradients, to reduce",
    [WIRE_CONTEXT] = "keys and values",      [WIRE_TENSOR] = "tensor parallelism",
    [WIRE_PIPELINE] = "from stage to stage",
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
    const struct stage *stage = &shard->stage;
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
    const struct stage *stage = &shard->stage;
    int64_t stream = rows * body->model.config.hidden * (int64_t)dtype_bytes(body->model.compute);
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
    int64_t layers = model->stage.past - model->stage.first;
    int64_t passes = layers * 6 + (model->recompute ? 2 * (layers - stage_is_last(&model->stage)) : 0);
    return passes * rows * config->kv_heads * config->head_dim * (int64_t)dtype_bytes(model->compute) *
           (model->context.ranks - 1);
}

struct plan_traffic plan_traffic(const struct body *body, int64_t micro_batches, int64_t rows)
{
    const struct shard *shard = &body->shard;
    struct plan_traffic traffic = {.bytes = {[WIRE_GATHER] = gather_bytes(shard, micro_batches),
                                             [WIRE_CONTEXT] = context_bytes(&body->model, rows),
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

static bool make_run(struct engine *engine, const struct recipe *recipe, struct err *err)
{
    struct run *run = &engine->run;
    run->recipe = *recipe;
    engine->has_run = true; /* so that a failure frees it */
    if (!run_open(engine, run, &engine->body.model, err) ||
        !body_fit_shard(engine, &engine->body, run->workspace.groups, err))
        return false;
    err_keeps(model_reserve_positions(&engine->body.model, run->positions, err));
    return comm_agree(engine->comm, err);
}

static void describe(struct plan *plan, const struct engine *engine)
{
    const struct body *body = &engine->body;
    snprintf(plan->model, sizeof plan->model, "%.60s", body->model.config.architecture);
    plan->parameters = body->model.params.whole_elements;
    engine_rows(engine, add, plan);
    if (!engine->has_run)
        return;
    const struct data_source *source = engine->run.source;
    const struct recipe *recipe = &engine->run.recipe;
    plan->steps = recipe->steps >= 0 ? recipe->steps : recipe->epochs * source->order.steps_per_epoch;
    plan->micro_batches = engine->run.workspace.groups;
    plan->micro_batch_tokens = engine->run.workspace.flights[0].feed.bounds.rows;
    plan->traffic = plan_traffic(body, plan->micro_batches, plan->micro_batches * plan->micro_batch_tokens);
}

/* Every rank's, of which the fullest counts. */
static void take_fullest(struct plan *plan, struct comm *comm)
{
    struct plan *all = calloc((size_t)comm->ranks, sizeof *all);
    INVARIANT(all != NULL);
    comm_all_gather_host(comm, all, plan, sizeof *plan);
    for (int32_t r = 0; r < comm->ranks; r++)
        if (all[r].bytes > plan->bytes)
            *plan = all[r];
    free(all);
}

static bool make_all(struct plan *plan, struct engine *engine, const char *path, const struct recipe *recipe,
                     struct err *err)
{
    struct model_config config = {0};
    struct body body;
    err_keeps(model_config_load(&config, path, err));
    if (!comm_agree(engine->comm, err) ||
        !body_make(engine, &body, &config, &engine->options.policy, engine->options.seed, err))
        return false;
    engine_take_body(engine, &body);
    if (recipe && !make_run(engine, recipe, err))
        return false;
    describe(plan, engine);
    return true;
}

bool plan_make(struct plan *plan, struct engine *engine, const struct engine_options *options,
               struct comm *comm, struct device *device, const char *path, const struct recipe *recipe,
               struct err *err)
{
    const struct device_backend *backend = device->backend;
    struct device_backend addresses = *backend;
    struct layout here = {.d = comm->ranks, .t = 1, .p = 1, .c = 1};
    const struct layout *wanted = &options->layout;
    bool elsewhere = comm->ranks == 1 && wanted->d * wanted->t * wanted->p * wanted->c > 1;
    *plan = (struct plan){.there = elsewhere ? -1 : host_memory_available(comm->local_ranks)};
    *engine = (struct engine){.options = *options, .comm = comm, .device = device};
    if (!groups_init(&engine->groups, comm, elsewhere ? &here : wanted, err))
        return false;
    if (elsewhere) { /* we are rank 0 of them, and make no collective as such */
        engine->groups.layout = *wanted;
        engine->groups.shard.ranks = wanted->d * wanted->c;
        engine->groups.tensor.ranks = wanted->t;
        engine->groups.context.ranks = wanted->c;
        engine->groups.pipeline.ranks = wanted->p;
    }
    addresses.allocate = reserve;
    addresses.release = unreserve;
    addresses.copy_in = copy_nothing_in;
    addresses.zero = zero_nothing;
    device->backend = &addresses;
    host_memory_promise_all(true);
    bool made = make_all(plan, engine, path, recipe, err);
    host_memory_promise_all(false);
    engine_done(engine);
    device->backend = backend;
    if (made)
        take_fullest(plan, comm);
    return made;
}
