/* Changing the layout between two steps: groups, body, and the run's data and memory are made anew beside
 * those in use; the ranks agree; then every stored array moves from its old owners to its new ones, as it is
 * stored, and the old side is freed.
 *
 * What belongs to a layout points into the engine: a shard to its group, its table to the body. So the two
 * sides change places, and only the one that is in the engine's place is made, used, or freed. */
#include "fit.h"
#include "handlers.h"

#include "clock.h"
#include "log.h"
#include "move.h"

#include <stdio.h>
#include <string.h>

/* The side that is not in the engine's place. */
struct relayout {
    struct layout layout;
    int32_t zero;
    struct groups groups;
    struct body body;
    struct run run; /* its data and memory; all else is the engine's */
    struct move move;
    int64_t bytes_before, bytes_after, bytes_peak; /* allocated on this rank */
    double seconds;
};

#define EXCHANGE(a, b)                                                                                       \
    do {                                                                                                     \
        __typeof__(a) kept = (a);                                                                            \
        (a) = (b);                                                                                           \
        (b) = kept;                                                                                          \
    } while (0)

static void change_places(struct engine *engine, struct relayout *other)
{
    EXCHANGE(engine->options.layout, other->layout);
    EXCHANGE(engine->options.zero, other->zero);
    EXCHANGE(engine->groups, other->groups);
    EXCHANGE(engine->body, other->body);
    EXCHANGE(engine->run, other->run);
}

static void free_run_memory(struct run *run)
{
    workspace_done(&run->workspace);
    workspace_done(&run->evaluation_workspace);
    source_free(run->source);
    source_free(run->evaluation);
    run->source = run->evaluation = NULL;
}

/* Of the side in the engine's place. */
static void free_side(struct engine *engine)
{
    body_done(&engine->body);
    free_run_memory(&engine->run);
    groups_done(&engine->groups);
}

/* The new side, in the engine's place. On failure what is there so far is left to free_side. */
static bool make_side(struct engine *engine, const struct relayout *old, struct err *err)
{
    struct body *body = &engine->body;
    struct run *run = &engine->run;
    *run = old->run;
    run->source = run->evaluation = NULL;
    run->workspace = run->evaluation_workspace = (struct workspace){0};
    if (!body_make(engine, body, &old->body.model.config, &old->body.optimizer.policy,
                   old->body.optimizer.seed, err))
        return false;
    if (!engine->has_run)
        return true;
    if (!run_open(engine, run, &body->model, err) ||
        !body_fit_shard(engine, body, run->workspace.groups, err))
        return false;
    err_keeps(model_reserve_positions(&body->model, run->positions, err));
    return comm_agree(engine->comm, err);
}

static void cancel(struct engine *engine, struct relayout *new)
{
    change_places(engine, new);
    free_side(engine);
    change_places(engine, new);
    move_done(&new->move);
}

/* Phase 1. */
static bool reserve(struct engine *engine, struct relayout *new, const struct layout *layout, int32_t zero,
                    struct err *err)
{
    *new =
        (struct relayout){.layout = *layout, .zero = zero, .bytes_before = engine->device->allocated_bytes};
    err_keeps(groups_init(&new->groups, engine->comm, layout, err));
    if (!comm_agree(engine->comm, err)) {
        groups_done(&new->groups);
        return false;
    }
    change_places(engine, new);
    bool made = make_side(engine, new, err);
    change_places(engine, new);
    new->bytes_after = engine->device->allocated_bytes - new->bytes_before; /* everything is made anew */
    if (made) {
        err_keeps(move_reserve(&new->move, engine->comm, &engine->body.optimizer, &new->body.optimizer, err));
        made = comm_agree(engine->comm, err);
    }
    new->bytes_peak = engine->device->allocated_bytes;
    if (made)
        return true;
    cancel(engine, new);
    if (err->code == ERR_MEMORY) {
        char text[64];
        layout_print(layout, text, sizeof text);
        err_advise(err, "save a checkpoint and restart with --layout %s", text);
    }
    return false;
}

/* Phase 2. */
static void commit(struct engine *engine, struct relayout *new)
{
    double start = clock_s();
    move_make(&new->move, engine->comm, &engine->body.optimizer, &new->body.optimizer);
    free_side(engine);
    change_places(engine, new);
    move_done(&new->move);
    shard_weights_changed(&engine->body.shard);
    new->seconds = clock_s() - start;
}

/* Bytes of the fullest rank, so that what fits there fits everywhere; before the sides change places. */
static void describe(struct engine *engine, const struct relayout *new, struct command_result *result)
{
    layout_print(&new->layout, result->layout_after, sizeof result->layout_after);
    result->zero_after = new->zero;
    result->bytes_before = comm_max_int(engine->comm, new->bytes_before);
    result->bytes_after = comm_max_int(engine->comm, new->bytes_after);
    result->bytes_peak = comm_max_int(engine->comm, new->bytes_peak);
    result->bytes_moved = comm_sum_int(engine->comm, new->move.bytes);
}

/* From here on sums are made in another order: t cuts those of products, c those of tokens, and without lanes
 * a global batch is cut for d ranks. */
static void note_order(const struct engine *engine, const struct layout *layout,
                       struct command_result *result)
{
    const struct layout *before = &engine->options.layout;
    bool d_alone = layout->t == before->t && layout->c == before->c;
    if (engine->has_run && (!d_alone || (!engine->options.lanes && layout->d != before->d)))
        snprintf(result->text, sizeof result->text,
                 "%ssums are made in the order of the layout: the coming losses are those of a run that was "
                 "saved and restarted under %s",
                 d_alone ? "without --lanes " : "", result->layout_after);
}

static void announce(struct engine *engine, const struct command_result *result)
{
    engine_note(engine, "the layout was changed: %s, ZeRO %d to %s, ZeRO %d; %lld bytes moved in %.3g s",
                result->layout_before, result->zero_before, result->layout_after, result->zero_after,
                (long long)result->bytes_moved, result->seconds);
    if (engine->has_run && engine->comm->rank == 0)
        runlog_describe(engine, &engine->run, "running");
}

bool handle_set_layout(struct engine *engine, const struct command *command, struct command_result *result,
                       struct err *err)
{
    struct layout layout;
    const struct engine_options *o = &engine->options;
    int32_t asked = command->u.set_layout.zero ? command->u.set_layout.zero : o->zero_asked;
    if (!layout_parse(&layout, command->u.set_layout.layout, engine->comm->ranks, err))
        return engine->comm->ranks > 1 && fit_advise(&engine->body.model.config, engine->comm->ranks, err);
    if (!engine_lanes_fit(o->lanes, &layout, err))
        return err_advise(err, "under --lanes %lld d is a power of two up to it; other lanes need a restart",
                          (long long)o->lanes);
    int32_t zero = asked ? asked : layout_zero(&layout);
    layout_print(&o->layout, result->layout_before, sizeof result->layout_before);
    layout_print(&layout, result->layout_after, sizeof result->layout_after);
    result->zero_before = o->zero;
    result->zero_after = zero;
    if (zero == o->zero && strcmp(result->layout_before, result->layout_after) == 0) {
        result->bytes_before = result->bytes_after = result->bytes_peak =
            comm_max_int(engine->comm, engine->device->allocated_bytes);
        snprintf(result->text, sizeof result->text, "the layout is %s already", result->layout_after);
        return true;
    }
    struct relayout new;
    engine_activity(engine, "moving to %s", result->layout_after);
    bool reserved = reserve(engine, &new, &layout, zero, err);
    if (reserved) {
        describe(engine, &new, result);
        note_order(engine, &layout, result);
        if (command->dry_run)
            cancel(engine, &new);
        else
            commit(engine, &new);
        result->seconds = new.seconds;
    }
    engine_activity(engine, "%s", "");
    if (reserved && !command->dry_run) {
        engine->options.zero_asked = asked;
        announce(engine, result);
    }
    return reserved;
}
