/* Memory for micro-batches, taken when a run or an evaluation starts, and the data they come from. */
#include "pipeline.h"

#include "host.h"

#include <stdlib.h>
#include <string.h>

static bool take_flights(struct engine *engine, struct workspace *w, const struct model *model,
                         struct err *err)
{
    w->flights = calloc((size_t)w->flight_count, sizeof *w->flights);
    INVARIANT(w->flights != NULL);
    for (int64_t i = 0; i < w->flight_count; i++)
        if (!model_tape_init(&w->flights[i].tape, model, err) ||
            !feed_init(&w->flights[i].feed, engine->device, &w->bounds, &engine->groups, err))
            return false;
    return true;
}

static bool take_parts(struct engine *engine, struct workspace *w, const struct model *model, struct err *err)
{
    if (!take_flights(engine, w, model, err))
        return false;
    const struct feed *feed = &w->flights[0].feed;
    struct tape_plan plan =
        model_plan(model, feed->bounds.rows, feed->bounds.segments, feed->longest, w->training);
    int64_t bytes =
        w->flight_count * (int64_t)plan.activation_bytes + (int64_t)(plan.block_bytes + plan.gradient_bytes);
    if (!host_memory_fits(bytes + w->groups * 8, engine->comm->local_ranks, "a micro-batch of this size",
                          err))
        return false;
    for (int64_t i = 0; i < w->flight_count; i++)
        if (!arena_init(&w->flights[i].activations, "activations", engine->device, plan.activation_bytes,
                        err))
            return false;
    if (!arena_init(&w->blocks, "a block's activations", engine->device, plan.block_bytes, err) ||
        !arena_init(&w->gradients, "activation gradients", engine->device, plan.gradient_bytes, err))
        return false;
    w->device_nll = device_allocate(engine->device, (size_t)w->groups * sizeof(double));
    w->nll = calloc((size_t)(w->groups * engine->groups.layout.d), sizeof(double));
    w->live = calloc((size_t)w->groups, sizeof *w->live);
    return (w->device_nll && w->nll && w->live) ||
           err_set(err, ERR_MEMORY, "no memory for the losses of %lld micro-batches", (long long)w->groups);
}

bool workspace_make(struct engine *engine, struct workspace *workspace, const struct model *model,
                    const struct batch_bounds *bounds, bool training, struct err *err)
{
    *workspace =
        (struct workspace){.device = engine->device,
                           .bounds = *bounds,
                           .training = training,
                           .groups = bounds->rounds * engine_lanes(engine) / engine->groups.layout.d};
    workspace->flight_count =
        training ? pipeline_flights(model->stage.ranks, model->stage.rank, workspace->groups) : 1;
    err_keeps(take_parts(engine, workspace, model, err));
    if (comm_agree(engine->comm, err))
        return true;
    workspace_done(workspace);
    return false;
}

void workspace_done(struct workspace *w)
{
    if (!w->device)
        return;
    for (int64_t i = 0; w->flights && i < w->flight_count; i++) {
        model_tape_done(w->flights[i].tape);
        arena_done(&w->flights[i].activations);
        feed_done(&w->flights[i].feed);
    }
    free(w->flights);
    free(w->live);
    arena_done(&w->blocks);
    arena_done(&w->gradients);
    device_release(w->device, w->device_nll, (size_t)w->groups * sizeof(double));
    free(w->nll);
    *w = (struct workspace){0};
}

/* A dataset that this model cannot be trained on. */
static bool check_fit(const struct data_source *source, const struct model_config *config, const char *folder,
                      struct err *err)
{
    if (source->dataset.vocabulary > config->vocabulary) {
        err_set(err, ERR_INVALID, "the dataset %s has a vocabulary of %lld, and the model's is %lld", folder,
                (long long)source->dataset.vocabulary, (long long)config->vocabulary);
        return err_hint(
            err, "prepare the data with the model's tokenizer, or take a model with a larger vocabulary");
    }
    if (source->order.longest > config->positions) {
        err_set(err, ERR_INVALID, "the dataset %s has rows of %lld tokens, and the model has %lld positions",
                folder, (long long)source->order.longest, (long long)config->positions);
        return err_hint(
            err,
            "cut the rows (cutoff: %lld in the recipe, or --cutoff %lld), or prepare the data again "
            "with trainctl data prepare --cutoff %lld, which cuts a text into more rows",
            (long long)config->positions, (long long)config->positions, (long long)config->positions);
    }
    return true;
}

/* Every rank plans batches from the rows that it maps itself: they must be the same rows. Collective. */
static bool check_same(struct engine *engine, const struct dataset *dataset, const char *folder,
                       struct err *err)
{
    char hash[DATASET_HASH_BYTES];
    memcpy(hash, dataset->hash, sizeof hash); /* "" where it was not opened */
    comm_broadcast(engine->comm, hash, sizeof hash);
    if (err->code != ERR_OK || strcmp(hash, dataset->hash) == 0)
        return err->code == ERR_OK;
    err_set(err, ERR_INVALID, "the dataset %s is not the same on rank 0 and rank %d", folder,
            engine->comm->rank);
    return err_hint(err, "use a folder that all hosts share, or copy it whole to each");
}

#define EVALUATION_BATCH  256  /* sequences, and … */
#define EVALUATION_TOKENS 4096 /* … tokens a micro-batch: evaluation packs, whatever the recipe does */

struct data_source *source_open(struct engine *engine, const char *folder, const struct recipe *recipe,
                                const struct model *model, bool training, struct err *err)
{
    struct data_source *source = calloc(1, sizeof *source);
    INVARIANT(source != NULL);
    struct order_options order = {.cutoff = recipe->cutoff, .global_batch = EVALUATION_BATCH};
    struct loader_options loader = {
        .lanes = engine_lanes(engine), .micro_batch = -1, .max_tokens = EVALUATION_TOKENS};
    if (training) {
        order.global_batch = recipe->global_batch;
        order.drop_last = recipe->drop_last;
        order.shuffled = recipe_is_shuffled(recipe, &order.seed);
        loader.micro_batch = recipe->micro_batch;
        loader.max_tokens = recipe->max_tokens;
    }
    err_keeps(dataset_open(&source->dataset, folder, err));
    if (check_same(engine, &source->dataset, folder, err) &&
        order_init(&source->order, &source->dataset, &order, err) &&
        check_fit(source, &model->config, folder, err)) {
        if (!training && source->order.longest > loader.max_tokens)
            loader.max_tokens = source->order.longest;
        err_keeps(loader_init(&source->loader, &source->dataset, &source->order, &loader, err));
    }
    if (comm_agree(engine->comm, err))
        return source;
    source_free(source);
    return NULL;
}

void source_free(struct data_source *source)
{
    if (!source)
        return;
    loader_done(&source->loader);
    order_done(&source->order);
    dataset_close(&source->dataset);
    free(source);
}
