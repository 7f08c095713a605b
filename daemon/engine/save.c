/* Checkpoints: the engine's part. Every rank writes and reads its own slices; the ranks agree between the
 * phases. */
#include "engine.h"

#include "checkpoint_optimizer.h"
#include "last_words.h"
#include "log.h"
#include "state_json.h"
#include "swap.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every rank's fragment on every rank (only rank 0 uses them): one malloc'ed block, texts[ranks] into it. */
static char *gather_fragments(struct comm *comm, const char *mine, const char **texts)
{
    size_t each = (size_t)comm_max_int(comm, (int64_t)strlen(mine) + 1);
    char *all = calloc((size_t)comm->ranks, each), *padded = calloc(1, each);
    INVARIANT(all && padded);
    memcpy(padded, mine, strlen(mine));
    comm_all_gather_host(comm, all, padded, each);
    free(padded);
    for (int32_t r = 0; r < comm->ranks; r++)
        texts[r] = all + each * (size_t)r;
    return all;
}

static bool commit(struct engine *engine, struct checkpoint_about *about, const char *const *fragments,
                   struct err *err)
{
    struct checkpoint_formats formats = checkpoint_formats_of(&engine->body.optimizer.policy);
    char *config = model_config_print(&engine->body.model.config, dtype_name(engine->body.model.compute));
    json_t *state = state_json_make(engine);
    struct checkpoint_record record = {.about = about,
                                       .table = &engine->body.model.params,
                                       .formats = &formats,
                                       .config = config,
                                       .state = state};
    struct checkpoint_about asked = *about;
    record.about = &asked;
    bool done = config && state ? checkpoint_save_commit(engine->options.checkpoint_dir, &record, fragments,
                                                         engine->comm->ranks, true, about, err)
                                : err_set(err, ERR_MEMORY, "no memory for the checkpoint's manifest");
    free(config);
    json_decref(state);
    return done;
}

/* What was found of it, for lists and the next start. One whose manifest cannot be read is listed as damaged
 * anyway. */
static void mark(struct engine *engine, const char *name, enum checkpoint_health health)
{
    char path[MANIFEST_PATH_BYTES];
    struct manifest manifest = {0};
    struct err unreadable = ERR_INIT, err = ERR_INIT;
    const char *folder = engine->options.checkpoint_dir;
    if (checkpoint_path(path, folder, name, "", CHECKPOINT_MANIFEST, &unreadable) &&
        manifest_load(&manifest, path, &unreadable) &&
        !checkpoint_mark(folder, name, manifest.hash, health, &err))
        log_err("save", &err);
    manifest_close(&manifest);
}

/* Reads back what was written: rank by rank a share of the files. Marks the outcome for `checkpoint list`. */
static bool verify(struct engine *engine, const char *name, struct err *err)
{
    struct checkpoint checkpoint = {0};
    if (checkpoint_open(&checkpoint, engine->options.checkpoint_dir, name, err))
        err_keeps(checkpoint_verify(&checkpoint, engine->comm->rank, engine->comm->ranks, err));
    bool good = comm_agree(engine->comm, err);
    if (engine->comm->rank == 0 && (good || err->code == ERR_CORRUPT))
        mark(engine, name, good ? CHECKPOINT_VERIFIED : CHECKPOINT_CORRUPT);
    checkpoint_close(&checkpoint);
    return good;
}

static bool write_files(struct engine *engine, const char *name, struct checkpoint_about *about,
                        struct err *err)
{
    const char *folder = engine->options.checkpoint_dir;
    if (engine->comm->rank == 0)
        err_keeps(checkpoint_save_begin(folder, name, true, err));
    if (!comm_agree(engine->comm, err))
        return false;
    struct checkpoint_formats formats = checkpoint_formats_of(&engine->body.optimizer.policy);
    const struct param_table *table = &engine->body.model.params;
    struct checkpoint_slice *slices = NULL;
    int64_t count;
    char *fragment = NULL;
    if (checkpoint_optimizer_slices(&engine->body.optimizer, table, &slices, &count, err))
        err_keeps(checkpoint_save_shard(folder, name, engine->comm->rank, table, &formats, slices, count,
                                        engine->device, &fragment, err));
    free(slices);
    bool written = comm_agree(engine->comm, err);
    if (written) {
        const char **texts = calloc((size_t)engine->comm->ranks, sizeof *texts);
        INVARIANT(texts && fragment); /* every rank has written its shard */
        char *all = gather_fragments(engine->comm, fragment, texts);
        if (engine->comm->rank == 0)
            err_keeps(commit(engine, about, texts, err));
        free(all);
        free(texts);
        written = comm_agree(engine->comm, err);
    }
    free(fragment);
    if (!written && engine->comm->rank == 0)
        checkpoint_save_abort(folder, name);
    return written;
}

bool engine_save(struct engine *engine, const char *name, bool automatic, struct command_result *result,
                 struct err *err)
{
    struct checkpoint_about about = {.automatic = automatic,
                                     .step = engine->has_run ? engine->run.k : 0,
                                     .total_steps = engine->body.optimizer.total_steps};
    snprintf(about.name, sizeof about.name, "%s", name);
    snprintf(about.run, sizeof about.run, "%s", engine->has_run ? engine->run.id : "");
    snprintf(about.policy, sizeof about.policy, "%s", engine->body.optimizer.policy.name);
    engine_activity(engine, "saving %s", name);
    bool saved = write_files(engine, name, &about, err) && verify(engine, name, err);
    engine_activity(engine, "%s", "");
    if (!saved)
        return false;
    (void)snprintf(result->path, sizeof result->path, "%.*s/%s", LIMIT_PATH_BYTES - LIMIT_NAME_BYTES - 1,
                   engine->options.checkpoint_dir, name);
    last_words_set_checkpoint(result->path, about.step);
    result->bytes = about.bytes;
    log_info("save", "saved checkpoint=%s bytes=%lld", name, (long long)about.bytes);
    return true;
}

bool engine_verify(struct engine *engine, const char *name, struct err *err)
{
    engine_activity(engine, "verifying %s", name);
    bool good = verify(engine, name, err);
    engine_activity(engine, "%s", "");
    return good;
}

bool engine_retain(struct engine *engine, struct err *err)
{
    struct checkpoint_list list = {0};
    const char *folder = engine->options.checkpoint_dir;
    int64_t keep = engine->run.recipe.checkpoint.keep;
    if (engine->comm->rank == 0 && keep > 0 && checkpoint_list_read(&list, folder, err)) {
        int64_t *surplus = calloc((size_t)list.count + 1, sizeof *surplus);
        INVARIANT(surplus != NULL);
        int64_t count = checkpoint_list_surplus(&list, engine->run.id, keep, surplus);
        for (int64_t i = 0; i < count && err->code == ERR_OK; i++)
            err_keeps(checkpoint_delete(folder, list.items[surplus[i]].name, err));
        free(surplus);
        checkpoint_list_done(&list);
    }
    return comm_agree(engine->comm, err);
}

/* Its run's data and memory, beside the present run's. A run that is over has nothing to go on with; one
 * whose data are gone is left out with a warning, since the weights are there all the same. Where only memory
 * is short the load is refused: whoever makes room can have the run. */
static bool open_run(struct engine *engine, struct run *run, struct body *body, struct err *err)
{
    struct err why = ERR_INIT;
    if (!run->id[0])
        return true;
    bool over = run->k >= run->steps;
    if (!over && run_open(engine, run, &body->model, &why)) {
        err_keeps(model_reserve_positions(&body->model, run->positions, &why));
        if (comm_agree(engine->comm, &why))
            return true;
    }
    char line[3 * ERR_TEXT_BYTES + 8];
    if (!over && why.code == ERR_MEMORY)
        *err = why;
    else if (!over)
        engine_warn(engine, "run %s cannot go on from this checkpoint, its weights can: %s", run->id,
                    err_line(&why, line, sizeof line));
    run_done(run);
    return err->code == ERR_OK;
}

/* Phase 1: verified, read whole into a new body beside the old one. */
static bool read_checkpoint(struct engine *engine, const char *name, struct body *body,
                            struct state_read *state, struct err *err)
{
    struct checkpoint checkpoint = {0};
    struct policy policy = engine->options.policy;
    if (checkpoint_open(&checkpoint, engine->options.checkpoint_dir, name, err) &&
        policy_parse(&policy, checkpoint.about.policy, NULL, err))
        err_keeps(state_json_read(state, checkpoint.state, checkpoint.table.count, err));
    bool good = comm_agree(engine->comm, err);
    if (good) {
        err_keeps(checkpoint_verify(&checkpoint, engine->comm->rank, engine->comm->ranks, err));
        good = comm_agree(engine->comm, err);
    }
    if (good && body_make(engine, body, &checkpoint.config, &policy, state->seed, err)) {
        err_keeps(checkpoint_optimizer_read(&checkpoint, &body->optimizer, &body->model.params, err));
        good = comm_agree(engine->comm, err);
        if (!good)
            body_done(body);
    } else {
        good = false;
    }
    checkpoint_close(&checkpoint);
    if (!good && err->code == ERR_CORRUPT && engine->comm->rank == 0)
        mark(engine, name, CHECKPOINT_CORRUPT);
    if (!good)
        free(state->run.still);
    return good;
}

/* swap_reserve for a body and a run that the engine does not hold yet. */
static bool reserve_conversion(struct engine *engine, struct body *body, struct run *run, struct swap *swap,
                               const struct policy *policy, struct err *err)
{
    struct engine present = *engine;
    engine->body = *body;
    engine->run = *run;
    engine->has_run = run->id[0] != '\0';
    engine->body.shard.params = &engine->body.model.params; /* where it will be */
    bool reserved = swap_reserve(engine, swap, policy, engine->has_run ? run->workspace.groups : 1, err);
    *engine = present;
    return reserved;
}

/* Phase 1 of a load: everything that can fail, beside what is in use. converts: to *policy. */
static bool prepare_load(struct engine *engine, const char *name, const struct policy *policy, bool converts,
                         struct body *body, struct state_read *state, struct swap *swap, struct err *err)
{
    if (!read_checkpoint(engine, name, body, state, err))
        return false;
    body->optimizer.t = state->t;
    body->optimizer.total_steps = state->total_steps;
    if (open_run(engine, &state->run, body, err) &&
        (!state->run.id[0] || body_fit_shard(engine, body, state->run.workspace.groups, err)) &&
        (!converts || reserve_conversion(engine, body, &state->run, swap, policy, err)))
        return true;
    run_done(&state->run);
    body_done(body);
    return false;
}

static void warn_other_bits(struct engine *engine, const struct state_read *state)
{
    if (strcmp(state->device, engine->device->description) != 0)
        engine_warn(
            engine,
            "the checkpoint was saved on another device (%s): the run goes on, but not with the same bits",
            state->device);
    else if (state->lanes != engine->options.lanes && state->run.id[0])
        engine_warn(
            engine,
            "the checkpoint was saved under --lanes %lld: the run goes on, but not with the same bits",
            (long long)state->lanes);
}

static bool load(struct engine *engine, const char *name, const char *policy_text,
                 struct command_result *result, struct err *err)
{
    struct body body = {0};
    struct state_read state = {0};
    struct policy policy;
    struct swap swap = {0};
    bool converts = policy_text[0] != '\0';
    if (converts && !policy_parse(&policy, policy_text, NULL, err))
        return false;
    if (!prepare_load(engine, name, &policy, converts, &body, &state, &swap, err))
        return false;
    warn_other_bits(engine, &state);
    if (engine->has_run)
        run_done(&engine->run);
    engine_take_body(engine, &body);
    engine->settings = state.settings;
    engine->run = state.run;
    engine->has_run = state.run.id[0] != '\0';
    log_set_step(engine->run.k);
    engine->has_later = engine->has_last = false;
    engine->failure[0] = '\0';
    engine->state = engine->has_run ? STATE_PAUSED : STATE_IDLE;
    result->parameters = engine->body.model.params.whole_elements;
    snprintf(result->run, sizeof result->run, "%s", state.run.id);
    (void)snprintf(result->path, sizeof result->path, "%.*s/%s", LIMIT_PATH_BYTES - LIMIT_NAME_BYTES - 1,
                   engine->options.checkpoint_dir, name);
    last_words_set_checkpoint(result->path, state.run.k);
    struct err log = ERR_INIT;
    if (engine->has_run && engine->comm->rank == 0 && !runlog_reopen(engine, &engine->run, &log))
        log_err("save", &log);
    if (converts)
        swap_apply(engine, &swap, result);
    return true;
}

bool engine_load_checkpoint(struct engine *engine, const char *name, const char *policy_text,
                            struct command_result *result, struct err *err)
{
    engine_activity(engine, "loading checkpoint %s", name);
    bool loaded = load(engine, name, policy_text, result, err);
    engine_activity(engine, "%s", ""); /* only now: until then the state before is not what is shown */
    return loaded;
}
