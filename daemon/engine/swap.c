/* Changing the precision policy between two steps: reserve everything beside what is in use, on every rank;
 * agree; then convert, swap and free, which cannot fail. Used by set-optimizer, train, and checkpoint load
 * --policy. */
#include "swap.h"
#include "handlers.h"

#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Whole, from one update to the next: no policy changes that. */
static bool weights_stay(const struct engine *engine)
{
    return shard_keeps_gathered(&engine->body.shard.options, engine->groups.shard.ranks);
}

static bool reserve_parts(struct engine *engine, struct swap *swap, int64_t groups, struct err *err)
{
    struct body *body = &engine->body;
    const struct policy *policy = &swap->policy;
    struct shard_options options = engine_shard_options(engine, &body->model.stage, policy, groups);
    const struct shard_options *now = &body->shard.options;
    bool tied = body->model.config.tied;
    swap->converts = policy->weight != body->optimizer.policy.weight ||
                     policy->m != body->optimizer.policy.m || policy->v != body->optimizer.policy.v;
    swap->reshards = options.compute != now->compute || options.accumulate != now->accumulate ||
                     options.reduce != now->reduce || options.levels > now->levels;
    swap->replans = engine->has_run && policy->compute != body->model.compute;
    bool lends = policy_stores_copy(policy) && weights_stay(engine);
    int64_t more = optimizer_convert_bytes(&body->optimizer, policy, lends);
    if (swap->reshards)
        more += shard_bytes(&body->model.params, tied, &options, engine->groups.shard.ranks);
    swap->bytes_more = more;
    if (!host_memory_fits(more, engine->comm->local_ranks, "the new optimizer state beside the old one", err))
        return err_advise(err, "save a checkpoint and restart with --policy %s", policy->name);
    if (options.lanes && policy->accumulate != DTYPE_F32) {
        err_set(err, ERR_INVALID, "accumulate=bf16 and --lanes exclude each other");
        return err_hint(err,
                        "leaves are summed in fp32: drop accumulate=bf16, or start trainerd without --lanes");
    }
    struct shard *next = swap->reshards ? &swap->shard : &body->shard;
    return (!swap->reshards || shard_init(next, &engine->groups.shard, engine->device, &body->model.params,
                                          tied, &options, err)) &&
           optimizer_convert_reserve(&body->optimizer, policy, &next->copies, &swap->conversion, err);
}

bool swap_reserve(struct engine *engine, struct swap *swap, const struct policy *policy, int64_t groups,
                  struct err *err)
{
    *swap = (struct swap){.policy = *policy};
    err_keeps(reserve_parts(engine, swap, groups, err));
    if (!comm_agree(engine->comm, err)) {
        swap_cancel(engine, swap);
        return false;
    }
    struct run *run = &engine->run;
    struct model model = engine->body.model;
    model.compute = policy->compute;
    if (swap->replans &&
        (!workspace_make(engine, &swap->workspace, &model, &run->workspace.bounds, true, err) ||
         (run->evaluation && !workspace_make(engine, &swap->evaluation_workspace, &model,
                                             &run->evaluation_workspace.bounds, false, err)))) {
        swap_cancel(engine, swap);
        return false;
    }
    return true;
}

void swap_cancel(struct engine *engine, struct swap *swap)
{
    optimizer_convert_cancel(&engine->body.optimizer, &swap->conversion);
    shard_done(&swap->shard);
    workspace_done(&swap->workspace);
    workspace_done(&swap->evaluation_workspace);
}

/* All ranks' losses, merged in rank order. */
static void merge_losses(struct engine *engine, struct optimizer_loss losses[STATE_PART_COUNT])
{
    size_t each = STATE_PART_COUNT * sizeof *losses;
    struct optimizer_loss(*all)[STATE_PART_COUNT] = malloc((size_t)engine->comm->ranks * each);
    INVARIANT(all != NULL);
    comm_all_gather_host(engine->comm, all, losses, each);
    memcpy(losses, all[0], each);
    for (int32_t r = 1; r < engine->comm->ranks; r++)
        optimizer_loss_merge(losses, all[r]);
    free(all);
}

void swap_commit(struct engine *engine, struct swap *swap, struct optimizer_loss losses[STATE_PART_COUNT])
{
    struct body *body = &engine->body;
    if (swap->converts)
        engine_activity(engine, "converting to %s", swap->policy.name);
    optimizer_convert_commit(&body->optimizer, &swap->conversion, losses);
    merge_losses(engine, losses);
    if (swap->reshards) {
        shard_done(&body->shard);
        body->shard = swap->shard;
    }
    body->model.compute = swap->policy.compute;
    engine->options.policy = swap->policy; /* what the next model starts with */
    shard_weights_changed(&body->shard);
    if (swap->replans) {
        workspace_done(&engine->run.workspace);
        workspace_done(&engine->run.evaluation_workspace);
        engine->run.workspace = swap->workspace;
        engine->run.evaluation_workspace = swap->evaluation_workspace;
    }
    if (swap->converts) {
        engine->weight_version++;
        engine_activity(engine, "%s", "");
    }
    *swap = (struct swap){0};
}

/* What changes for the model. kept: its weights stay gathered, so that stored ones can be its own. */
static void add_model(struct command_result *result, const struct policy *before, const struct policy *after,
                      bool kept)
{
    size_t used = strlen(result->text);
    if (before->compute != after->compute)
        snprintf(result->text + used, sizeof result->text - used, "; computes in %s instead of %s",
                 dtype_name(after->compute), dtype_name(before->compute));
    used = strlen(result->text);
    if (kept && policy_stores_copy(before) != policy_stores_copy(after))
        snprintf(result->text + used, sizeof result->text - used, "; the model computes with %s",
                 policy_stores_copy(after) ? "the stored weights themselves, without a copy of its own"
                                           : "a copy of the stored weights");
}

/* Bytes of the fullest rank, so that what fits there fits everywhere. */
static void describe(struct engine *engine, const struct swap *swap, struct command_result *result)
{
    const struct optimizer *o = &engine->body.optimizer;
    struct optimizer_unit_plan *units = calloc((size_t)o->unit_count, sizeof *units);
    INVARIANT(units != NULL);
    struct optimizer_plan plan = shard_optimizer_plan(&engine->body.shard, units);
    result->bytes_per_parameter_before = policy_bytes_per_parameter(&o->policy);
    result->bytes_per_parameter_after = policy_bytes_per_parameter(&swap->policy);
    result->bytes_before = comm_max_int(engine->comm, optimizer_plan_bytes(&plan, &o->policy));
    result->bytes_after = comm_max_int(engine->comm, optimizer_plan_bytes(&plan, &swap->policy));
    result->bytes_more = comm_max_int(engine->comm, swap->bytes_more);
    result->bytes_peak = comm_max_int(engine->comm, engine->device->allocated_bytes + swap->bytes_more);
    result->converts = swap->converts;
    free(units);
    result->exact = policy_conversion_exact(&o->policy, &swap->policy);
    policy_conversion_text(&o->policy, &swap->policy, result->text, sizeof result->text);
    add_model(result, &o->policy, &swap->policy, weights_stay(engine));
}

static void describe_losses(const struct optimizer_loss losses[STATE_PART_COUNT],
                            struct command_result *result)
{
    int64_t elements = 0, changed = 0;
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        elements += losses[part].elements;
        changed += losses[part].changed;
        if (losses[part].largest_relative > result->largest_relative_change)
            result->largest_relative_change = losses[part].largest_relative;
    }
    result->changed_share = elements ? (double)changed / (double)elements : 0;
    result->exact = changed == 0;
    optimizer_loss_text(losses, result->text, sizeof result->text);
}

static int64_t groups_now(const struct engine *engine)
{
    return engine->has_run ? engine->run.workspace.groups : 1;
}

void swap_apply(struct engine *engine, struct swap *swap, struct command_result *result)
{
    struct optimizer_loss losses[STATE_PART_COUNT];
    struct policy before = engine->body.optimizer.policy, after = swap->policy;
    describe(engine, swap, result);
    swap_commit(engine, swap, losses);
    describe_losses(losses, result);
    add_model(result, &before, &after, weights_stay(engine));
}

static bool swap_policy(struct engine *engine, const struct policy *policy, bool dry_run,
                        struct command_result *result, struct err *err)
{
    struct swap swap;
    if (!swap_reserve(engine, &swap, policy, groups_now(engine), err))
        return false;
    if (dry_run) {
        describe(engine, &swap, result);
        swap_cancel(engine, &swap);
    } else {
        swap_apply(engine, &swap, result);
    }
    return true;
}

/* Bit i of settings_set: row i of optimizer_keys. */
static void merge_settings(struct optimizer_settings *into, const struct optimizer_settings *from,
                           unsigned set)
{
    size_t count;
    const struct key *keys = optimizer_keys(&count);
    for (size_t i = 0; i < count; i++)
        if (set >> i & 1) {
            size_t bytes = keys[i].type == KEY_BOOL ? sizeof(bool) : sizeof(double);
            memcpy((char *)into + keys[i].offset, (const char *)from + keys[i].offset, bytes);
        }
}

/* What set-optimizer asks for, checked; identical on all ranks, so no agreement is needed. */
static bool resolve(const struct engine *engine, const struct command *command, struct policy *policy,
                    struct optimizer_settings *settings, struct schedule *schedule, struct err *err)
{
    *policy = engine->body.optimizer.policy;
    if (command->u.set_optimizer.policy[0] &&
        !policy_parse(policy, command->u.set_optimizer.policy, NULL, err))
        return false;
    if (command->u.set_optimizer.policy[0] && !command->dry_run && !policy_confirm(policy, command->yes, err))
        return false;
    *settings = engine->has_run ? engine->run.settings : engine->settings;
    merge_settings(settings, &command->u.set_optimizer.settings, command->u.set_optimizer.settings_set);
    if (!optimizer_settings_check(settings, err))
        return false;
    if (!(settings->lr > 0)) {
        err_set(err, ERR_INVALID, "a peak learning rate of %g is not possible", settings->lr);
        return err_hint(err, "trainctl pause holds the run; weights move with lr above 0");
    }
    *schedule = engine->run.schedule;
    schedule->lr = settings->lr;
    if (engine->has_run && schedule->min_lr > schedule->lr) {
        err_set(err, ERR_INVALID, "lr %g is below the schedule's min_lr %g", schedule->lr, schedule->min_lr);
        return err_hint(err, "lower min_lr first: trainctl set-schedule --min-lr …");
    }
    return true;
}

bool handle_set_optimizer(struct engine *engine, const struct command *command, struct command_result *result,
                          struct err *err)
{
    struct policy policy;
    struct optimizer_settings settings;
    struct schedule schedule;
    if (!resolve(engine, command, &policy, &settings, &schedule, err))
        return false;
    result->settings_before = engine->has_run ? engine->run.settings : engine->settings;
    result->settings_after = settings;
    int64_t at = command->u.set_optimizer.at_step;
    bool waits = at >= 0 && !command->dry_run;
    if (waits && (!engine->has_run || at < engine->run.k || at >= engine->run.steps)) {
        err_set(err, ERR_INVALID, "--at-step %lld is not a coming step of the run", (long long)at);
        return err_hint(err, engine->has_run ? "the run is at step %lld of %lld" : "there is no run",
                        (long long)engine->run.k, (long long)engine->run.steps);
    }
    if (waits && at > engine->run.k) {
        struct swap swap; /* reserved and given back: what would be refused then is refused now */
        if (!swap_reserve(engine, &swap, &policy, groups_now(engine), err))
            return false;
        describe(engine, &swap, result);
        swap_cancel(engine, &swap);
        engine->later = *command;
        engine->later.yes = true; /* said now */
        engine->later.u.set_optimizer.at_step = -1;
        engine->later_step = at;
        engine->has_later = true;
        return true;
    }
    if (!swap_policy(engine, &policy, command->dry_run, result, err))
        return false;
    if (!command->u.set_optimizer.policy[0])
        result->text[0] = '\0'; /* nothing was converted, and nobody asked for it */
    size_t used = strlen(result->text);
    if (command->u.set_optimizer.settings_set && !engine->has_run)
        snprintf(result->text + used, sizeof result->text - used,
                 "%sthere is no run: the next one's recipe says its own hyperparameters", used ? "; " : "");
    if (command->dry_run)
        return true;
    engine->settings = settings;
    if (engine->has_run) {
        engine->run.settings = settings;
        engine->run.schedule = schedule;
    }
    return true;
}
