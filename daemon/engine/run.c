/* A run's life: `train` opens it, steps advance it, and every end saves a checkpoint. */
#include "engine.h"
#include "swap.h"

#include "log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool run_open(struct engine *engine, struct run *run, const struct model *model, struct err *err)
{
    const struct recipe *recipe = &run->recipe;
    run->source = source_open(engine, recipe->data, recipe, model, true, err);
    if (!run->source)
        return false;
    const char *hash = run->source->dataset.hash;
    if (run->data_hash[0] && strcmp(run->data_hash, hash) != 0) {
        err_set(err, ERR_INVALID, "the dataset %s has changed since the run began", recipe->data);
        return err_hint(err, "put the old one back, or start a new run with `trainctl train`");
    }
    snprintf(run->data_hash, sizeof run->data_hash, "%s", hash);
    run->positions = run->source->loader.bounds.longest;
    if (!workspace_make(engine, &run->workspace, model, &run->source->loader.bounds, true, err))
        return false;
    if (!recipe->evaluate.data[0])
        return true;
    run->evaluation = source_open(engine, recipe->evaluate.data, recipe, model, false, err);
    if (!run->evaluation)
        return false;
    if (run->evaluation->loader.bounds.longest > run->positions)
        run->positions = run->evaluation->loader.bounds.longest;
    return workspace_make(engine, &run->evaluation_workspace, model, &run->evaluation->loader.bounds, false,
                          err);
}

void run_done(struct run *run)
{
    runlog_close(run);
    workspace_done(&run->workspace);
    workspace_done(&run->evaluation_workspace);
    source_free(run->source);
    source_free(run->evaluation);
    free(run->still);
    *run = (struct run){0};
}

/* N, the schedule and the settings, once the data say how long an epoch is. */
static bool resolve(struct engine *engine, struct run *run, struct err *err)
{
    int64_t epoch = run->source->order.steps_per_epoch;
    run->steps = run->recipe.steps >= 0 ? run->recipe.steps : run->recipe.epochs * epoch;
    run->settings = recipe_optimizer_settings(&run->recipe);
    run->still = calloc((size_t)engine->body.model.params.count, 1);
    INVARIANT(run->still != NULL);
    alarm_reset(&run->alarm);
    return optimizer_settings_check(&run->settings, err) &&
           schedule_resolve(&run->schedule, &run->recipe.schedule, run->settings.lr, run->steps, err);
}

/* Phase 1 of train: all that can fail, with everything taken beside what is in use. */
static bool prepare(struct engine *engine, const struct command *command, struct run *run, struct swap *swap,
                    struct err *err)
{
    struct policy policy = engine->body.optimizer.policy;
    run->recipe = command->u.train.recipe;
    const char *named = run->recipe.optimizer.policy;
    if (named[0] && !policy_parse(&policy, named, NULL, err))
        return false;
    if (named[0] && !policy_confirm(&policy, command->yes, err))
        return false;
    struct model model = engine->body.model;
    model.compute = policy.compute;
    if (!run_open(engine, run, &model, err) || !resolve(engine, run, err))
        return false;
    if (!swap_reserve(engine, swap, &policy, run->workspace.groups, err))
        return false;
    err_keeps(model_reserve_positions(&engine->body.model, run->positions, err));
    bool reserved = comm_agree(engine->comm, err);
    if (reserved && engine->comm->rank == 0) /* last: a run that was refused elsewhere leaves no folder */
        err_keeps(runlog_create(engine, run, err));
    if (reserved && comm_agree(engine->comm, err)) {
        comm_broadcast(engine->comm, run->id, sizeof run->id);
        return true;
    }
    swap_cancel(engine, swap);
    return false;
}

/* What a user should know of what has begun: the schedule, rows left out, what the recipe's policy changed.
 */
static void describe_start(const struct run *run, const char *before, const struct policy *after,
                           struct command_result *result)
{
    char converted[sizeof result->text];
    memcpy(converted, result->text, sizeof converted);
    schedule_note(&run->schedule, result->text, sizeof result->text);
    size_t used = strlen(result->text);
    if (run->source->order.dropped > 0)
        snprintf(result->text + used, sizeof result->text - used,
                 "%s%lld rows have no label within the cutoff and are left out", used ? "; " : "",
                 (long long)run->source->order.dropped);
    used = strlen(result->text);
    if (converted[0])
        (void)!snprintf(result->text + used, sizeof result->text - used, "%sconverted from %s to %s: %.600s",
                        used ? "; " : "", before, after->name, converted);
}

bool run_start(struct engine *engine, const struct command *command, struct command_result *result,
               struct err *err)
{
    struct run run = {0};
    struct swap swap;
    struct policy before = engine->body.optimizer.policy;
    if (!prepare(engine, command, &run, &swap, err)) {
        run_done(&run);
        return false;
    }
    if (policy_equal(&before, &swap.policy)) {
        struct optimizer_loss none[STATE_PART_COUNT];
        swap_commit(engine, &swap, none);
    } else {
        swap_apply(engine, &swap, result);
    }
    if (!command->u.train.keep_moments)
        optimizer_zero_moments(&engine->body.optimizer);
    if (engine->has_run)
        run_done(&engine->run);
    engine->run = run;
    engine->has_run = true;
    engine->has_later = false;
    engine->settings = run.settings;
    engine->has_last = false;
    engine->state = STATE_RUNNING;
    engine->failure[0] = '\0';
    snprintf(result->run, sizeof result->run, "%s", run.id);
    result->steps = run.steps;
    describe_start(&run, before.name, &engine->body.optimizer.policy, result);
    if (engine->comm->rank == 0)
        runlog_describe(engine, &engine->run, "running");
    log_set_step(run.k);
    log_info("run", "started run=%s steps=%lld policy=%s data=%s", run.id, (long long)run.steps,
             engine->body.optimizer.policy.name, run.recipe.data);
    return true;
}

static void evaluate_now(struct engine *engine)
{
    struct run *run = &engine->run;
    int64_t labelled;
    double loss = engine_evaluate(engine, run->evaluation, &run->evaluation_workspace, &labelled);
    runlog_evaluation(engine, run->k, loss, labelled);
    if (engine->mailbox) {
        struct event event = {.kind = EVENT_EVALUATION, .state = engine->state};
        event.step.step = run->k;
        event.step.loss = loss;
        event.step.labelled_tokens = labelled;
        snprintf(event.step.run, sizeof event.step.run, "%s", run->id);
        mailbox_post(engine->mailbox, &event);
    }
}

static void checkpoint_name(const struct run *run, char name[LIMIT_NAME_BYTES])
{
    snprintf(name, LIMIT_NAME_BYTES, "%.80s-step-%06lld", run->id, (long long)run->k);
}

static bool save_now(struct engine *engine, struct err *err)
{
    char name[LIMIT_NAME_BYTES];
    struct command_result result = {0};
    checkpoint_name(&engine->run, name);
    return engine_save(engine, name, true, &result, err) && engine_retain(engine, err);
}

/* All that it was to do is done. */
static bool run_is_over(const struct run *run)
{
    return run->recipe.steps >= 0 ? run->k >= run->steps
                                  : order_ended(&run->source->order, run->cursor, run->recipe.epochs);
}

/* Nothing is lost: the run stays as it is until there is room for its checkpoint. */
static bool keep_unsaved(struct engine *engine, struct err *err)
{
    char line[3 * ERR_TEXT_BYTES + 8];
    const struct run *run = &engine->run;
    err_hint(err, "make room, then `trainctl %s` saves it", run_is_over(run) ? "resume" : "stop");
    engine_warn(engine, "%s is paused at step %lld: its final checkpoint was not saved: %s", run->id,
                (long long)run->k, err_line(err, line, sizeof line));
    engine->state = STATE_PAUSED;
    engine->unsaved = true;
    engine_say_state(engine, "the final checkpoint was not saved");
    return false;
}

bool run_end(struct engine *engine, const char *why, bool failed, struct err *err)
{
    struct run *run = &engine->run;
    if (run->evaluation && !failed && run->evaluated_at != run->k) {
        evaluate_now(engine);
        run->evaluated_at = run->k;
    }
    if (!save_now(engine, err)) {
        if (!failed)
            return keep_unsaved(engine, err);
        char line[3 * ERR_TEXT_BYTES + 8];
        engine_warn(engine, "the final checkpoint of %s was not saved: %s", run->id,
                    err_line(err, line, sizeof line));
    }
    bool done = !failed && run_is_over(run);
    engine->state = failed ? STATE_FAILED : STATE_IDLE;
    snprintf(engine->failure, sizeof engine->failure, "%s", failed ? why : "");
    engine->ended_short = !done;
    engine->unsaved = false;
    if (engine->comm->rank == 0)
        runlog_describe(engine, run, failed ? "failed" : done ? "done" : "stopped");
    log_info("run", "ended run=%s step=%lld of=%lld: %s", run->id, (long long)run->k, (long long)run->steps,
             why);
    run_done(run);
    engine->has_run = false;
    engine->has_later = false;
    engine_say_state(engine, why);
    return true;
}

/* A set-optimizer that waited for its step. What it would need was reserved once when it was accepted. */
static void apply_later(struct engine *engine)
{
    struct command_result result = {0};
    struct err err = ERR_INIT;
    engine->has_later = false;
    if (engine_execute(engine, &engine->later, &result, &err))
        engine_note(engine, "set-optimizer %s applied at step %lld: %s", engine->later.u.set_optimizer.policy,
                    (long long)engine->run.k, result.text);
    else {
        char line[3 * ERR_TEXT_BYTES + 8];
        engine_warn(engine, "set-optimizer %s, due at step %lld, was refused: %s",
                    engine->later.u.set_optimizer.policy, (long long)engine->run.k,
                    err_line(&err, line, sizeof line));
    }
}

static bool is_due(int64_t k, int64_t every)
{
    return every > 0 && k > 0 && k % every == 0;
}

/* One line in the log, and the sentence that status shows from now on, when there is no run any more. */
static void describe_failure(const struct engine *engine, char *text, size_t text_bytes)
{
    const struct run *run = &engine->run;
    const struct param_table *params = &engine->body.model.params;
    snprintf(text, text_bytes,
             "%s failed at step %lld of %lld: ten updates in a row were skipped because the gradient was not "
             "finite, at last on rank %d in %s; train anew with a smaller lr or a clip, or from an older "
             "checkpoint (`trainctl checkpoint list`)",
             run->id, (long long)run->k, (long long)run->steps, run->bad_rank,
             run->bad_tensor >= 0 ? params->params[run->bad_tensor].name : "?");
    if (engine->comm->rank == 0)
        log_error("run", "%s", text);
}

void run_advance(struct engine *engine)
{
    struct run *run = &engine->run;
    struct err err = ERR_INIT;
    if (engine->has_later && run->k >= engine->later_step)
        apply_later(engine);
    int64_t before = run->k;
    if (!run_is_over(run) && !engine_step(engine)) { /* over: resumed, since its end could not be saved */
        char why[sizeof engine->failure];
        describe_failure(engine, why, sizeof why);
        (void)!run_end(engine, why, true, &err);
        return;
    }
    if (run->evaluation && run->k > before && is_due(run->k, run->recipe.evaluate.every)) {
        evaluate_now(engine);
        run->evaluated_at = run->k;
    }
    if (run_is_over(run)) {
        (void)!run_end(engine, "all steps are done", false, &err);
        return;
    }
    if (run->k > before && is_due(run->k, run->recipe.checkpoint.every) && !save_now(engine, &err)) {
        char line[3 * ERR_TEXT_BYTES + 8];
        engine_warn(engine, "the checkpoint at step %lld was not saved, training goes on: %s",
                    (long long)run->k, err_line(&err, line, sizeof line));
    }
}
