/* Models in and out: init from a config, load from and export to the hub's shape. */
#include "handlers.h"

#include "file.h"
#include "hub.h"

#include <stdlib.h>
#include <string.h>

static void finish_model(struct engine *engine, struct body *body, const char *source,
                         struct command_result *result)
{
    if (engine->has_run)
        run_done(&engine->run);
    engine_take_body(engine, body);
    engine->has_run = engine->has_later = engine->has_last = false;
    engine->state = STATE_IDLE;
    engine->failure[0] = '\0';
    snprintf(engine->model_source, sizeof engine->model_source, "%s", source);
    result->parameters = engine->body.model.params.whole_elements;
    snprintf(result->path, sizeof result->path, "%s", source);
}

bool handle_init(struct engine *engine, const struct command *command, struct command_result *result,
                 struct err *err)
{
    struct model_config config = {0};
    struct body body;
    uint64_t seed = command->u.model.has_seed ? command->u.model.seed : engine->options.seed;
    err_keeps(model_config_load(&config, command->u.model.path, err));
    engine_activity(engine, "making weights for %s", command->u.model.path);
    bool made = comm_agree(engine->comm, err) &&
                body_make(engine, &body, &config, &engine->options.policy, seed, err);
    if (made && !body_init_weights(engine, &body, err)) {
        body_done(&body);
        made = false;
    }
    if (made)
        finish_model(engine, &body, "", result);
    engine_activity(engine, "%s", "");
    if (made)
        snprintf(result->path, sizeof result->path, "%s", command->u.model.path);
    return made;
}

/* Where a piece of a hub tensor goes: the segment that is being filled. */
struct fill {
    struct device *device;
    struct optimizer *optimizer;
    float *values; /* device, [HUB_PIECE_ELEMENTS] */
    int32_t unit, segment;
    int64_t first; /* of the segment, in its band of the tensor */
};

static void fill_piece(void *context, int32_t tensor, int64_t start, const float *values, int64_t count)
{
    (void)tensor;
    struct fill *fill = context;
    device_copy_in(fill->device, fill->values, values, (size_t)count * sizeof *values);
    optimizer_set(fill->optimizer, fill->unit, fill->segment, STATE_W, start - fill->first, count,
                  fill->values);
}

/* This rank's ranges of every tensor. Without a sink they are only read through: what fails, fails then. */
static bool read_ranges(struct hub *hub, struct body *body, hub_sink sink, struct fill *fill, struct err *err)
{
    for (int32_t u = 0; u < body->optimizer.unit_count; u++)
        for (int32_t i = 0; i < body->optimizer.units[u].segment_count; i++) {
            const struct optimizer_segment *segment = &body->optimizer.units[u].segments[i];
            fill->unit = u;
            fill->segment = i;
            struct band_range range =
                band_of_segment(segment, body->model.params.params[segment->tensor].index0);
            fill->first = range.start;
            if (!hub_read(hub, segment->tensor, &range, sink, fill, err))
                return false;
        }
    return true;
}

/* The new body is filled beside the old one, so one reading is enough: a failure frees it and nothing has
 * changed. */
static bool fill_body(struct engine *engine, struct hub *hub, struct body *body, struct err *err)
{
    size_t bytes = HUB_PIECE_ELEMENTS * sizeof(float);
    struct fill fill = {.device = engine->device, .optimizer = &body->optimizer};
    fill.values = device_allocate(engine->device, bytes);
    if (!fill.values)
        err_set(err, ERR_MEMORY, "no memory for %zu bytes to load through", bytes);
    else
        err_keeps(read_ranges(hub, body, fill_piece, &fill, err));
    device_release(engine->device, fill.values, bytes);
    return comm_agree(engine->comm, err);
}

bool handle_load(struct engine *engine, const struct command *command, struct command_result *result,
                 struct err *err)
{
    const char *folder = command->u.model.path;
    struct hub hub = {0};
    struct body body = {0};
    engine_activity(engine, "loading model %s", folder);
    if (hub_open(&hub, folder, err))
        err_keeps(hub_check_tied(&hub, engine->comm->rank, engine->comm->ranks, err));
    bool loaded = comm_agree(engine->comm, err) &&
                  body_make(engine, &body, &hub.config, &engine->options.policy, engine->options.seed, err);
    if (loaded && !fill_body(engine, &hub, &body, err)) {
        body_done(&body);
        loaded = false;
    }
    hub_close(&hub);
    if (loaded)
        finish_model(engine, &body, folder, result);
    engine_activity(engine, "%s", "");
    return loaded;
}

/* bf16: the stored w where it is bf16, which is what the model computes with. fp32: the value read. */
static bool export_segment(struct engine *engine, struct hub_export *export, int32_t unit, int32_t i,
                           void *host, float *values, struct err *err)
{
    const struct optimizer *o = &engine->body.optimizer;
    const struct optimizer_segment *segment = &o->units[unit].segments[i];
    struct band_range range =
        band_of_segment(segment, engine->body.model.params.params[segment->tensor].index0);
    for (int64_t at = 0; at < segment->elements; at += HUB_PIECE_ELEMENTS) {
        int64_t n = segment->elements - at < HUB_PIECE_ELEMENTS ? segment->elements - at : HUB_PIECE_ELEMENTS;
        struct optimizer_slice w;
        enum dtype dtype = DTYPE_F32;
        if (export->dtype == DTYPE_BF16 && optimizer_slice(o, unit, i, STATE_W, false, at, n, &w)) {
            device_copy_out(engine->device, host, w.memory, (size_t)w.bytes);
            dtype = w.dtype;
        } else {
            optimizer_get(o, unit, i, STATE_W, at, n, values);
            device_copy_out(engine->device, host, values, (size_t)n * sizeof *values);
        }
        struct band_range piece = {range.band, range.start + at, n};
        if (!hub_export_put(export, segment->tensor, &piece, dtype, host, err))
            return false;
    }
    return true;
}

static bool export_ranges(struct engine *engine, struct hub_export *export, struct err *err)
{
    size_t bytes = HUB_PIECE_ELEMENTS * sizeof(float);
    float *values = device_allocate(engine->device, bytes);
    void *host = malloc(bytes);
    bool done = values && host;
    if (!done)
        err_set(err, ERR_MEMORY, "no memory for %zu bytes to export through", bytes);
    const struct optimizer *o = &engine->body.optimizer;
    for (int32_t u = 0; u < o->unit_count && done; u++)
        for (int32_t i = 0; i < o->units[u].segment_count && done; i++)
            done = o->units[u].segments[i].copy || export_segment(engine, export, u, i, host, values, err);
    free(host);
    device_release(engine->device, values, bytes);
    return done;
}

static bool write_export(struct engine *engine, const char *folder, const struct hub_export_options *options,
                         int64_t *bytes, struct err *err)
{
    const struct param_table *table = &engine->body.model.params;
    struct hub_export export = {0};
    if (engine->comm->rank == 0)
        err_keeps(hub_export_begin(folder, &engine->body.model.config, table, options, err));
    if (!comm_agree(engine->comm, err))
        return false;
    if (hub_export_join(&export, folder, table, options, err) && export_ranges(engine, &export, err))
        err_keeps(hub_export_finish(&export, err));
    hub_export_done(&export);
    bool written = comm_agree(engine->comm, err);
    if (written && engine->comm->rank == 0)
        err_keeps(hub_export_commit(folder, bytes, err));
    written = comm_agree(engine->comm, err);
    if (!written && engine->comm->rank == 0)
        hub_export_abort(folder);
    return written;
}

bool handle_export(struct engine *engine, const struct command *command, struct command_result *result,
                   struct err *err)
{
    const char *folder = command->u.model.path;
    struct hub_export_options options = {.dtype = (enum dtype)command->u.model.dtype,
                                         .source = engine->model_source[0] ? engine->model_source : NULL};
    if (options.dtype != DTYPE_BF16 && options.dtype != DTYPE_F32)
        return err_set(err, ERR_INVALID, "a model is exported in bf16 or fp32");
    engine_activity(engine, "exporting to %s", folder);
    bool written = write_export(engine, folder, &options, &result->bytes, err);
    engine_activity(engine, "%s", "");
    snprintf(result->path, sizeof result->path, "%s", folder);
    return written;
}
