/* A model with its storage: parameter table, shard, optimizer state; made whole beside the old one, then
 * swapped in. */
#include "engine.h"

#include "fit.h"
#include "host.h"

#include <stdlib.h>

#define BODY_CHUNK_ELEMENTS                                                                                  \
    (1 << 18) /* of the buffer through which initial weights pass; a multiple of 256 */

int64_t engine_lanes(const struct engine *engine)
{
    return engine->options.lanes ? engine->options.lanes : engine->groups.layout.d;
}

bool engine_lanes_fit(int64_t lanes, const struct layout *layout, struct err *err)
{
    if (lanes % layout->d == 0)
        return true;
    err_set(err, ERR_INVALID, "--lanes %lld is not a multiple of d = %d", (long long)lanes, layout->d);
    return err_hint(err, "use a power of two from d up, such as 8");
}

struct shard_options engine_shard_options(struct engine *engine, const struct stage *stage,
                                          const struct policy *policy, int64_t groups)
{
    struct shard_options options = {.tensor = &engine->groups.tensor,
                                    .pipeline = &engine->groups.pipeline,
                                    .stage = *stage,
                                    .compute = policy->compute,
                                    .accumulate = policy->accumulate,
                                    .reduce = policy->reduce,
                                    .zero = engine->options.zero,
                                    .lanes = engine->options.lanes != 0,
                                    .levels = 1};
    while (options.lanes && 1ll << (options.levels - 1) < groups)
        options.levels++;
    return options;
}

/* Of the parameters, those that this stage and tensor piece hold. */
static int64_t elements_held(const struct model *model)
{
    int64_t elements = 0;
    for (int32_t i = 0; i < model->params.count; i++)
        if (stage_holds(&model->stage, model->params.params[i].unit, model->config.tied))
            elements += model->params.params[i].elements;
    return elements;
}

/* This rank's part, in the order of dependence; the caller agrees and frees. */
static bool make_parts(struct engine *engine, struct body *body, const struct model_config *config,
                       const struct policy *policy, uint64_t seed, struct err *err)
{
    const struct layout *layout = &engine->groups.layout;
    const struct layout_place *place = &engine->groups.place;
    if (!fit_layout(layout, config, err) ||
        !model_init_piece(&body->model, config, (struct tensor_place){layout->t, place->t}, policy->compute,
                          engine->options.recompute, engine->device, err))
        return false;
    body->model.context = (struct tape_place){layout->c, place->c};
    body->model.stage = stage_of(config, layout->p, place->p);
    struct shard_options options = engine_shard_options(engine, &body->model.stage, policy, 1);
    struct optimizer_unit_plan *units = calloc((size_t)body->model.params.unit_count, sizeof *units);
    INVARIANT(units != NULL);
    int64_t bytes = shard_bytes(&body->model.params, config->tied, &options, engine->groups.shard.ranks);
    bytes += (int64_t)((double)elements_held(&body->model) * policy_bytes_per_parameter(policy) /
                       engine->groups.shard.ranks);
    if (policy_stores_copy(policy))
        bytes -= shard_lent_bytes(&body->model.params, config->tied, &options, engine->groups.shard.ranks);
    bool made =
        host_memory_fits(bytes, engine->comm->local_ranks, "the model with its optimizer state", err) &&
        shard_init(&body->shard, &engine->groups.shard, engine->device, &body->model.params, config->tied,
                   &options, err);
    if (made) {
        struct optimizer_plan plan = shard_optimizer_plan(&body->shard, units);
        made = optimizer_init(&body->optimizer, engine->device, policy, &plan, seed, err);
    }
    free(units);
    return made;
}

bool body_make(struct engine *engine, struct body *body, const struct model_config *config,
               const struct policy *policy, uint64_t seed, struct err *err)
{
    *body = (struct body){0};
    err_keeps(make_parts(engine, body, config, policy, seed, err)); /* its outcome is in err */
    if (comm_agree(engine->comm, err)) {
        body->shard.params = &body->model.params;
        return true;
    }
    body_done(body);
    return false;
}

bool body_fit_shard(struct engine *engine, struct body *body, int64_t groups, struct err *err)
{
    struct shard_options options =
        engine_shard_options(engine, &body->model.stage, &body->optimizer.policy, groups);
    if (options.levels <= body->shard.options.levels)
        return true;
    int32_t before = body->shard.options.levels;
    err_keeps(shard_deepen(&body->shard, options.levels, err));
    if (comm_agree(engine->comm, err))
        return true;
    shard_flatten(&body->shard, before);
    return false;
}

void body_done(struct body *body)
{
    optimizer_done(&body->optimizer);
    shard_done(&body->shard);
    model_done(&body->model);
    *body = (struct body){0};
}

/* Weights by global element index, so that they do not depend on the layout: normal(0, initializer_range),
 * norms 1. */
bool body_init_weights(struct engine *engine, struct body *body, struct err *err)
{
    struct device *device = engine->device;
    size_t bytes = BODY_CHUNK_ELEMENTS * sizeof(float);
    float *values = device_allocate(device, bytes), *ones = malloc(bytes);
    if (!values || !ones)
        err_set(err, ERR_MEMORY, "no memory for %zu bytes to initialize through", bytes);
    for (size_t i = 0; ones && i < BODY_CHUNK_ELEMENTS; i++)
        ones[i] = 1.0f;
    bool ready = comm_agree(engine->comm, err);
    for (int32_t u = 0; ready && u < body->optimizer.unit_count; u++)
        for (int32_t s = 0; s < body->optimizer.units[u].segment_count; s++) {
            const struct optimizer_segment *segment = &body->optimizer.units[u].segments[s];
            const struct param *p = &body->model.params.params[segment->tensor];
            for (int64_t at = 0; at < segment->elements; at += BODY_CHUNK_ELEMENTS) {
                int64_t n = segment->elements - at < BODY_CHUNK_ELEMENTS ? segment->elements - at
                                                                         : BODY_CHUNK_ELEMENTS;
                struct index_map map = optimizer_segment_map(segment, at);
                if (p->norm)
                    device_copy_in(device, values, ones, (size_t)n * sizeof(float));
                else
                    device->kernels->init_normal(device->queue, values, n, &map, body->optimizer.seed,
                                                 body->model.config.initializer_range);
                optimizer_set(&body->optimizer, u, s, STATE_W, at, n, values);
            }
        }
    device_release(device, values, bytes);
    free(ones);
    return ready;
}

void engine_take_body(struct engine *engine, struct body *body)
{
    if (engine->has_body)
        body_done(&engine->body);
    engine->body = *body;
    engine->body.shard.params = &engine->body.model.params; /* the struct moved */
    engine->has_body = true;
    engine->options.policy = body->optimizer.policy; /* the current one stays for models that bring none */
    engine->weight_version++;
    size_t tensors = (size_t)engine->body.model.params.count;
    free(engine->measures);
    free(engine->measures_ranks);
    engine->measures = calloc(tensors, sizeof *engine->measures);
    engine->measures_ranks = calloc(tensors * (size_t)engine->comm->ranks, sizeof *engine->measures_ranks);
    INVARIANT(engine->measures && engine->measures_ranks);
    if (engine->mailbox) /* rank 0 of a daemon */
        runlog_model(engine);
}
