/* Rank 0's view for the control thread: the snapshot after every change and step, the audit when storage
 * changes. */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_warning(struct snapshot *s, const char *text)
{
    if (s->warning_count < LIMIT_WARNINGS)
        snprintf(s->warnings[s->warning_count++], sizeof s->warnings[0], "%.*s",
                 (int)sizeof s->warnings[0] - 1, text);
}

static void describe_model(const struct engine *engine, struct snapshot *s)
{
    const struct model_config *c = &engine->body.model.config;
    s->parameters = engine->body.model.params.whole_elements;
    snprintf(s->model, sizeof s->model, "%.40s, %.4g M parameters, %lld layers, hidden %lld", c->architecture,
             (double)s->parameters * 1e-6, (long long)c->layers, (long long)c->hidden);
    s->policy = engine->body.optimizer.policy;
    snprintf(s->policy_spec, sizeof s->policy_spec, "%s", s->policy.name);
    int64_t bytes =
        optimizer_state_bytes(&engine->body.optimizer) - optimizer_padding_bytes(&engine->body.optimizer);
    int64_t mine = 0;
    for (int32_t u = 0; u < engine->body.optimizer.unit_count; u++)
        for (int32_t i = 0; i < engine->body.optimizer.units[u].segment_count; i++)
            mine += engine->body.optimizer.units[u].segments[i].elements;
    s->bytes_per_parameter = mine ? (double)bytes / (double)mine : policy_bytes_per_parameter(&s->policy);
    s->update = engine->body.optimizer.t;
    s->total_steps = engine->body.optimizer.total_steps;
    struct policy_note notes[POLICY_NOTES_MAX];
    int count = policy_notes(&s->policy, engine->settings.beta2, notes);
    for (int i = 0; i < count; i++)
        add_warning(s, notes[i].text);
}

static void describe_run(const struct engine *engine, struct snapshot *s)
{
    const struct run *run = &engine->run;
    snprintf(s->run, sizeof s->run, "%s", run->id);
    s->run_steps = run->steps;
    s->step = run->k;
    s->skipped = run->skipped;
    s->micro_batch = engine->progress.micro_batch;
    s->micro_batches = engine->progress.micro_batches;
    snprintf(s->waiting, sizeof s->waiting, "%s", engine->progress.waiting);
    s->epoch = order_epoch(&run->source->order, run->cursor);
    s->schedule = run->schedule;
    s->settings = run->settings;
    if (run->alarm.level != ALARM_NONE) {
        char text[ERR_TEXT_BYTES];
        snprintf(
            text, sizeof text,
            "%s: update_quality %.3f over the last ten updates; try `trainctl set-optimizer fp32-master`",
            alarm_level_name((enum alarm_level)run->alarm.level), alarm_mean(&run->alarm));
        add_warning(s, text);
    }
}

void engine_publish(struct engine *engine)
{
    if (!engine->mailbox)
        return;
    struct snapshot *s = calloc(1, sizeof *s);
    if (!s)
        return; /* the one before stands */
    const struct engine_options *o = &engine->options;
    bool busy = engine->activity[0] || engine->starting;
    s->state = busy ? STATE_BUSY : engine->state;
    snprintf(s->activity, sizeof s->activity, "%s",
             busy && !engine->activity[0] ? "starting" : engine->activity);
    snprintf(s->failure, sizeof s->failure, "%s", engine->failure);
    layout_print(&o->layout, s->layout, sizeof s->layout);
    s->ranks = engine->comm->ranks;
    s->threads = o->threads;
    s->zero = engine->options.zero;
    snprintf(s->device, sizeof s->device, "%s; %s", engine->device->description, engine->device->products);
    s->policy = o->policy;
    snprintf(s->policy_spec, sizeof s->policy_spec, "%s", o->policy.name);
    s->bytes_per_parameter = policy_bytes_per_parameter(&o->policy);
    s->seed = o->seed;
    s->settings = engine->settings;
    s->memory_bytes = engine->device->allocated_bytes;
    s->recomputed = o->recompute;
    snprintf(s->state_dir, sizeof s->state_dir, "%s", o->state_dir);
    snprintf(s->checkpoint_dir, sizeof s->checkpoint_dir, "%s", o->checkpoint_dir);
    if (engine->has_body)
        describe_model(engine, s);
    if (engine->has_run)
        describe_run(engine, s);
    snprintf(s->compute, sizeof s->compute, "%s", dtype_name(s->policy.compute));
    s->last = engine->last;
    s->has_last = engine->has_last;
    mailbox_publish(engine->mailbox, s);
}

/* Rows of one rank, growing. */
struct audit_rows {
    struct audit_row *rows;
    int64_t count, capacity;
    int32_t rank;
};

static void add_row(void *context, const char *tensor, const char *kind, enum dtype dtype, int64_t elements,
                    int64_t bytes)
{
    struct audit_rows *all = context;
    if (bytes == 0)
        return;
    if (all->count == all->capacity) {
        all->capacity = all->capacity ? 2 * all->capacity : 256;
        all->rows = realloc(all->rows, (size_t)all->capacity * sizeof *all->rows);
        INVARIANT(all->rows != NULL);
    }
    struct audit_row *row = &all->rows[all->count++];
    *row = (struct audit_row){.rank = all->rank, .elements = elements, .bytes = bytes};
    snprintf(row->tensor, sizeof row->tensor, "%s", tensor);
    snprintf(row->kind, sizeof row->kind, "%s", kind);
    snprintf(row->dtype, sizeof row->dtype, "%s", dtype_name(dtype));
}

static void add_optimizer(const struct engine *engine, shard_row_fn row, void *context)
{
    const struct optimizer *o = &engine->body.optimizer;
    for (int32_t u = 0; u < o->unit_count; u++)
        for (int32_t i = 0; i < o->units[u].segment_count; i++)
            for (int part = 0; part < STATE_PART_COUNT * 2; part++) {
                struct optimizer_slice slice;
                if (optimizer_slice(o, u, i, (enum state_part)(part / 2), part % 2, 0, -1, &slice))
                    row(context, engine->body.model.params.params[o->units[u].segments[i].tensor].name,
                        slice.kind, slice.dtype, slice.elements, slice.bytes);
            }
    row(context, "optimizer", "padding", DTYPE_U8, optimizer_padding_bytes(o), optimizer_padding_bytes(o));
    row(context, "optimizer", "scratch", DTYPE_U8, optimizer_scratch_bytes(o), optimizer_scratch_bytes(o));
}

static void add_workspace(const struct workspace *w, const char *name, shard_row_fn row, void *context)
{
    int64_t arenas = (int64_t)(w->blocks.capacity + w->gradients.capacity), ints = 0;
    for (int64_t i = 0; i < w->flight_count; i++) {
        arenas += (int64_t)w->flights[i].activations.capacity;
        ints += feed_bytes(&w->flights[i].feed) / 4;
    }
    row(context, name, "arena", DTYPE_U8, arenas, arenas);
    row(context, name, "batch", DTYPE_I32, ints, ints * 4);
    row(context, name, "batch", DTYPE_F64, w->device ? w->groups : 0, w->device ? w->groups * 8 : 0);
}

void engine_rows(const struct engine *engine, shard_row_fn row, void *context)
{
    if (engine->has_body) {
        const struct model *m = &engine->body.model;
        add_optimizer(engine, row, context);
        shard_rows(&engine->body.shard, &engine->body.optimizer, row, context);
        row(context, "rope", "table", DTYPE_F32, m->rope_positions * m->config.head_dim,
            m->rope_positions * m->config.head_dim * 4);
    }
    if (engine->has_run) {
        add_workspace(&engine->run.workspace, "run", row, context);
        add_workspace(&engine->run.evaluation_workspace, "evaluation", row, context);
    }
}

void engine_publish_audit(struct engine *engine)
{
    struct audit_rows mine = {.rank = engine->comm->rank};
    engine_rows(engine, add_row, &mine);
    int64_t most = comm_max_int(engine->comm, mine.count);
    int64_t allocated = comm_sum_int(engine->comm, engine->device->allocated_bytes);
    size_t each = (size_t)most * sizeof(struct audit_row) + sizeof(int64_t);
    char *packed = calloc(1, each), *all = calloc((size_t)engine->comm->ranks, each);
    INVARIANT(packed && all);
    memcpy(packed, &mine.count, sizeof mine.count);
    if (mine.count)
        memcpy(packed + sizeof(int64_t), mine.rows, (size_t)mine.count * sizeof *mine.rows);
    comm_all_gather_host(engine->comm, all, packed, each);
    if (engine->mailbox) {
        struct audit *audit =
            calloc(1, sizeof *audit + (size_t)(most * engine->comm->ranks) * sizeof(struct audit_row));
        INVARIANT(audit != NULL);
        audit->bytes_allocated = allocated;
        for (int32_t r = 0; r < engine->comm->ranks; r++) {
            int64_t count;
            memcpy(&count, all + each * (size_t)r, sizeof count);
            memcpy(audit->rows + audit->count, all + each * (size_t)r + sizeof count,
                   (size_t)count * sizeof(struct audit_row));
            audit->count += count;
        }
        for (int64_t i = 0; i < audit->count; i++)
            audit->bytes_total += audit->rows[i].bytes;
        mailbox_publish_audit(engine->mailbox, audit);
    }
    free(packed);
    free(all);
    free(mine.rows);
}
