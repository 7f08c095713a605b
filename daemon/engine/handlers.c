/* The command table, and the handlers that are short. */
#include "handlers.h"

#include "checkpoint_list.h"
#include "log.h"

#include <stdio.h>
#include <string.h>

static bool handle_evaluate(struct engine *engine, const struct command *command,
                            struct command_result *result, struct err *err)
{
    struct workspace workspace;
    struct recipe recipe;
    recipe_init(&recipe);
    if (engine->has_run)
        recipe = engine->run.recipe; /* the run's batch shape */
    struct data_source *source =
        source_open(engine, command->u.evaluate.data, &recipe, &engine->body.model, false, err);
    if (!source)
        return false;
    bool ready = workspace_make(engine, &workspace, &engine->body.model, &source->loader.bounds, false, err);
    if (ready) {
        err_keeps(model_reserve_positions(&engine->body.model, source->loader.bounds.longest, err));
        ready = comm_agree(engine->comm, err);
        if (ready) {
            engine_activity(engine, "evaluating %s", command->u.evaluate.data);
            result->loss = engine_evaluate(engine, source, &workspace, &result->labelled_tokens);
            engine_activity(engine, "%s", "");
        }
        workspace_done(&workspace);
    }
    source_free(source);
    return ready;
}

static bool handle_pause(struct engine *engine, const struct command *command, struct command_result *result,
                         struct err *err)
{
    (void)command, (void)err;
    engine->state = STATE_PAUSED;
    snprintf(result->text, sizeof result->text, "%s is paused at step %lld of %lld", engine->run.id,
             (long long)engine->run.k, (long long)engine->run.steps);
    engine_say_state(engine, "paused");
    return true;
}

static bool handle_resume(struct engine *engine, const struct command *command, struct command_result *result,
                          struct err *err)
{
    (void)command, (void)err;
    engine->state = STATE_RUNNING;
    engine->unsaved = false;
    snprintf(result->run, sizeof result->run, "%s", engine->run.id);
    result->steps = engine->run.steps;
    snprintf(result->text, sizeof result->text, "%s goes on from step %lld of %lld", engine->run.id,
             (long long)engine->run.k, (long long)engine->run.steps);
    if (engine->comm->rank == 0)
        runlog_describe(engine, &engine->run, "running");
    engine_say_state(engine, "resumed");
    return true;
}

static bool handle_stop(struct engine *engine, const struct command *command, struct command_result *result,
                        struct err *err)
{
    (void)command;
    snprintf(result->run, sizeof result->run, "%s", engine->run.id);
    result->steps = engine->run.k;
    snprintf(result->text, sizeof result->text, "%s ended at step %lld of %lld", engine->run.id,
             (long long)engine->run.k, (long long)engine->run.steps);
    return run_end(engine, "stopped", false, err);
}

static bool handle_set_schedule(struct engine *engine, const struct command *command,
                                struct command_result *result, struct err *err)
{
    const struct schedule *schedule = &command->u.set_schedule.schedule;
    struct run *run = &engine->run;
    if (schedule->steps <= run->k) {
        err_set(err, ERR_INVALID, "the schedule ends at step %lld, and the run is at %lld",
                (long long)schedule->steps, (long long)run->k);
        return err_hint(err, "steps are absolute: give one beyond the present, or `trainctl stop`");
    }
    if (schedule->steps != run->steps) {
        if (run->recipe.epochs >= 0)
            snprintf(result->text, sizeof result->text,
                     "the run ends after %lld steps now, no longer with its epochs",
                     (long long)schedule->steps);
        run->recipe.epochs = -1;
        run->recipe.steps = schedule->steps;
    }
    run->schedule = *schedule;
    run->settings.lr = schedule->lr;
    run->steps = schedule->steps;
    run->recipe.schedule = schedule_settings_of(schedule); /* the checkpoint's recipe agrees with itself */
    run->recipe.optimizer.lr = schedule->lr;
    if (engine->comm->rank == 0)
        runlog_describe(engine, run, "running");
    if (engine->has_later && engine->later_step >= run->steps)
        engine_warn(engine, "set-optimizer %s waits for step %lld, which the run no longer reaches",
                    engine->later.u.set_optimizer.policy, (long long)engine->later_step);
    engine_note(engine, "the schedule was changed: %s over %lld steps", schedule_kind_name(schedule->kind),
                (long long)run->steps);
    return true;
}

/* "" proposes a name from the run and its step, or from the count of updates. */
static void name_checkpoint(const struct engine *engine, const char *asked, char name[LIMIT_NAME_BYTES])
{
    if (asked[0])
        snprintf(name, LIMIT_NAME_BYTES, "%.*s", LIMIT_NAME_BYTES - 1, asked);
    else if (engine->has_run)
        snprintf(name, LIMIT_NAME_BYTES, "%.80s-step-%06lld", engine->run.id, (long long)engine->run.k);
    else
        snprintf(name, LIMIT_NAME_BYTES, "update-%06lld", (long long)engine->body.optimizer.total_steps);
}

static bool handle_save(struct engine *engine, const struct command *command, struct command_result *result,
                        struct err *err)
{
    char name[LIMIT_NAME_BYTES];
    name_checkpoint(engine, command->u.model.path, name);
    return checkpoint_name_check(name, err) && engine_save(engine, name, false, result, err);
}

/* Rank 0 looks, all ranks hear: candidates from the newest on, skipping what is known to be corrupt. */
static bool choose_newest(struct engine *engine, int64_t *from, char name[LIMIT_NAME_BYTES], struct err *err)
{
    struct checkpoint_list list = {0};
    const char *folder = engine->options.checkpoint_dir;
    int64_t count = 0;
    name[0] = '\0';
    if (engine->comm->rank == 0 && checkpoint_list_read(&list, folder, err)) {
        int64_t at = checkpoint_list_newest(&list, *from);
        if (at >= 0)
            snprintf(name, LIMIT_NAME_BYTES, "%s", list.items[at].name);
        *from = at + 1;
        count = list.count;
        checkpoint_list_done(&list);
    }
    if (!comm_agree(engine->comm, err))
        return false;
    comm_broadcast(engine->comm, name, LIMIT_NAME_BYTES);
    comm_broadcast(engine->comm, from, sizeof *from);
    comm_broadcast(engine->comm, &count, sizeof count);
    if (name[0])
        return true;
    if (count > 0) {
        char line[3 * ERR_TEXT_BYTES + 8];
        err_set(err, ERR_NOT_FOUND, "no checkpoint in %s is whole, of %lld there", folder, (long long)count);
        err_hint(err, "see `trainctl checkpoint list`; mend one from a copy and `trainctl checkpoint verify` "
                      "it, or begin anew with `trainctl init` or `trainctl load`");
        if (engine->starting) /* nobody asked, so nobody is answered */
            engine_warn(engine, "%s", err_line(err, line, sizeof line));
        return false;
    }
    err_set(err, ERR_NOT_FOUND, "no checkpoint in %s", folder);
    return err_hint(err,
                    "save one with `trainctl checkpoint save`, or name another folder with --checkpoint-dir");
}

bool load_newest(struct engine *engine, const char *policy, struct command_result *result, struct err *err)
{
    char name[LIMIT_NAME_BYTES];
    for (int64_t from = 0; choose_newest(engine, &from, name, err);) {
        struct err why = ERR_INIT;
        if (engine_load_checkpoint(engine, name, policy, result, &why))
            return true;
        if (why.code != ERR_CORRUPT) {
            *err = why;
            return false;
        }
        char line[3 * ERR_TEXT_BYTES + 8];
        engine_warn(engine, "checkpoint %s is not whole, trying the one before it: %s", name,
                    err_line(&why, line, sizeof line));
    }
    return false;
}

static bool handle_load_checkpoint(struct engine *engine, const struct command *command,
                                   struct command_result *result, struct err *err)
{
    const char *name = command->u.model.path, *policy = command->u.model.policy;
    struct policy parsed;
    if (policy[0] &&
        (!policy_parse(&parsed, policy, NULL, err) || !policy_confirm(&parsed, command->yes, err)))
        return false;
    if (!name[0])
        return load_newest(engine, policy, result, err);
    return checkpoint_name_check(name, err) && engine_load_checkpoint(engine, name, policy, result, err);
}

static void name_path(const struct engine *engine, const char *name, struct command_result *result)
{
    (void)snprintf(result->path, sizeof result->path, "%.*s/%.*s", LIMIT_PATH_BYTES - LIMIT_NAME_BYTES - 1,
                   engine->options.checkpoint_dir, LIMIT_NAME_BYTES - 1, name);
}

static bool handle_verify(struct engine *engine, const struct command *command, struct command_result *result,
                          struct err *err)
{
    name_path(engine, command->u.model.path, result);
    return checkpoint_name_check(command->u.model.path, err) &&
           engine_verify(engine, command->u.model.path, err);
}

static bool handle_delete(struct engine *engine, const struct command *command, struct command_result *result,
                          struct err *err)
{
    name_path(engine, command->u.model.path, result);
    if (engine->comm->rank == 0 && checkpoint_name_check(command->u.model.path, err))
        err_keeps(checkpoint_delete(engine->options.checkpoint_dir, command->u.model.path, err));
    return comm_agree(engine->comm, err);
}

static bool handle_shutdown(struct engine *engine, const struct command *command,
                            struct command_result *result, struct err *err)
{
    (void)command;
    if (engine->has_run) {
        char name[LIMIT_NAME_BYTES];
        name_checkpoint(engine, "", name);
        if (!engine_save(engine, name, true, result, err)) { /* nothing is lost: it stays, with its run */
            engine->state = STATE_PAUSED;
            engine_say_state(engine, "not shut down: the run could not be saved");
            return err_hint(err, "make room and ask again; SIGTERM ends the daemon without saving");
        }
        if (engine->comm->rank == 0)
            runlog_describe(engine, &engine->run, "interrupted");
    }
    engine->state = STATE_STOPPING;
    engine->ended_short = engine->has_run;
    engine_say_state(engine, "shutting down");
    return true;
}

const command_handler handlers[COMMAND_COUNT] = {
    [COMMAND_INIT] = handle_init,
    [COMMAND_LOAD] = handle_load,
    [COMMAND_EXPORT] = handle_export,
    [COMMAND_TRAIN] = run_start,
    [COMMAND_EVALUATE] = handle_evaluate,
    [COMMAND_PAUSE] = handle_pause,
    [COMMAND_RESUME] = handle_resume,
    [COMMAND_STOP] = handle_stop,
    [COMMAND_SET_OPTIMIZER] = handle_set_optimizer,
    [COMMAND_SET_SCHEDULE] = handle_set_schedule,
    [COMMAND_SET_LAYOUT] = handle_set_layout,
    [COMMAND_CHECKPOINT_SAVE] = handle_save,
    [COMMAND_CHECKPOINT_LOAD] = handle_load_checkpoint,
    [COMMAND_CHECKPOINT_VERIFY] = handle_verify,
    [COMMAND_CHECKPOINT_DELETE] = handle_delete,
    [COMMAND_SHUTDOWN] = handle_shutdown,
};
