#include "compare.h"

#include "compare_rows.h"
#include "file.h"
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POLL_MS 100

static void free_reply(Trainerd__Reply *reply)
{
    if (reply != NULL)
        trainerd__reply__free_unpacked(reply, NULL);
}

/* A request whose answer is only that it was done. */
static bool tell(const struct compare *compare, Trainerd__Request *request, struct err *err)
{
    Trainerd__Reply *reply = NULL;
    if (!client_request(compare->client, request, &reply, err))
        return false;
    free_reply(reply);
    return true;
}

/* The daemon's state; reply->state is it. */
static bool ask_status(const struct compare *compare, Trainerd__Reply **reply, struct err *err)
{
    Trainerd__StatusRequest status = TRAINERD__STATUS_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    request.command_case = TRAINERD__REQUEST__COMMAND_STATUS;
    request.status = &status;
    if (!client_request(compare->client, &request, reply, err))
        return false;
    if ((*reply)->result_case == TRAINERD__REPLY__RESULT_STATE)
        return true;
    free_reply(*reply);
    return err_set(err, ERR_INVALID, "the daemon answered something else than its state");
}

static bool save(const struct compare *compare, char *name, struct err *err)
{
    Trainerd__CheckpointSaveRequest save = TRAINERD__CHECKPOINT_SAVE_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    request.command_case = TRAINERD__REQUEST__COMMAND_CHECKPOINT_SAVE;
    request.checkpoint_save = &save;
    save.name = name;
    return tell(compare, &request, err);
}

/* policy "": the checkpoint's own. */
static bool load(const struct compare *compare, char *name, const char *policy, struct err *err)
{
    char converted[LIMIT_NAME_BYTES];
    Trainerd__CheckpointLoadRequest load = TRAINERD__CHECKPOINT_LOAD_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    snprintf(converted, sizeof converted, "%s", policy);
    request.command_case = TRAINERD__REQUEST__COMMAND_CHECKPOINT_LOAD;
    request.checkpoint_load = &load;
    load.name = name;
    load.policy = converted;
    load.yes = true; /* comparing with a fault is what the command is for */
    return tell(compare, &request, err);
}

static bool delete_checkpoint(const struct compare *compare, char *name, struct err *err)
{
    Trainerd__CheckpointDeleteRequest delete = TRAINERD__CHECKPOINT_DELETE_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    request.command_case = TRAINERD__REQUEST__COMMAND_CHECKPOINT_DELETE;
    request.checkpoint_delete = &delete;
    delete.name = name;
    return tell(compare, &request, err);
}

/* The final checkpoints of our runs go: they would be the newest, and a daemon that starts again takes the
 * newest. */
static void delete_those_of(const struct compare *compare, const char *run)
{
    struct err err = ERR_INIT;
    Trainerd__Reply *reply = NULL;
    Trainerd__CheckpointListRequest list = TRAINERD__CHECKPOINT_LIST_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    request.command_case = TRAINERD__REQUEST__COMMAND_CHECKPOINT_LIST;
    request.checkpoint_list = &list;
    if (!client_request(compare->client, &request, &reply, &err))
        return;
    if (reply->result_case == TRAINERD__REPLY__RESULT_CHECKPOINTS)
        for (size_t i = 0; i < reply->checkpoints->n_checkpoints; i++) {
            struct err ignored = ERR_INIT; /* one left behind harms nothing but the disk */
            if (strcmp(reply->checkpoints->checkpoints[i]->run, run) == 0 &&
                !delete_checkpoint(compare, reply->checkpoints->checkpoints[i]->name, &ignored))
                continue;
        }
    free_reply(reply);
}

static bool start_run(const struct compare *compare, const char *policy, char *run, struct err *err)
{
    char named[LIMIT_NAME_BYTES + 32], seldom[] = "checkpoint.every=0";
    char *overrides[] = {named, seldom};
    char *text = strdup(compare->recipe), *name = strdup(compare->recipe_name);
    Trainerd__Reply *reply = NULL;
    Trainerd__TrainRequest train = TRAINERD__TRAIN_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    snprintf(named, sizeof named, "optimizer.policy=%s", policy);
    request.command_case = TRAINERD__REQUEST__COMMAND_TRAIN;
    request.train = &train;
    train.recipe = text;
    train.recipe_name = name;
    train.overrides = overrides;
    train.n_overrides = sizeof overrides / sizeof overrides[0];
    train.yes = true;
    bool fine = text != NULL && name != NULL ? client_request(compare->client, &request, &reply, err)
                                             : err_set(err, ERR_MEMORY, "no memory for the recipe");
    if (fine && reply->result_case == TRAINERD__REPLY__RESULT_TRAINED)
        snprintf(run, LIMIT_NAME_BYTES, "%s", reply->trained->run);
    else if (fine)
        fine = err_set(err, ERR_INVALID, "the daemon answered something else than a run");
    free_reply(reply);
    free(text);
    free(name);
    return fine;
}

static void stop_run(const struct compare *compare)
{
    struct err ignored = ERR_INIT; /* it may have ended by itself */
    Trainerd__StopRequest stop = TRAINERD__STOP_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    request.command_case = TRAINERD__REQUEST__COMMAND_STOP;
    request.stop = &stop;
    if (!tell(compare, &request, &ignored))
        return;
}

static bool is_one_of(const char *state, const char *a, const char *b)
{
    return strcmp(state, a) == 0 || strcmp(state, b) == 0;
}

/* What the run's own record says: *over once it is written as ended, *whole when all its steps are done. */
static bool ask_run(const struct compare *compare, const char *run, bool *over, bool *whole, struct err *err)
{
    Trainerd__RunsRequest runs = TRAINERD__RUNS_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    Trainerd__Reply *reply = NULL;
    request.command_case = TRAINERD__REQUEST__COMMAND_RUNS;
    request.runs = &runs;
    if (!client_request(compare->client, &request, &reply, err))
        return false;
    *over = *whole = false;
    for (size_t i = 0; reply->result_case == TRAINERD__REPLY__RESULT_RUNS && i < reply->runs->n_runs; i++) {
        const Trainerd__Run *one = reply->runs->runs[i];
        if (strcmp(one->run, run) != 0)
            continue;
        *over = !is_one_of(one->state, "running", "paused");
        *whole = strcmp(one->state, "done") == 0;
    }
    free_reply(reply);
    return true;
}

static void tell_progress(const struct compare *compare, const char *policy, const char *run,
                          const Trainerd__Status *status, int64_t *shown)
{
    if (compare->progress == NULL || strcmp(status->run, run) != 0 || status->step / 20 == *shown / 20)
        return;
    *shown = status->step;
    fprintf(compare->progress, "%s: step %lld of %lld, loss %.4f\n", policy, (long long)status->step,
            (long long)status->steps, status->loss);
}

/* Until the run is over and the daemon rests, saying how far it is. Stops it once when the user wants out. */
static bool await_run(const struct compare *compare, const char *policy, const char *run, struct err *err)
{
    bool stopping = false, over = false, whole = false, rests = false;
    int64_t shown = 0;
    while (!over || !rests) {
        Trainerd__Reply *reply = NULL;
        nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000}, NULL);
        if (!ask_run(compare, run, &over, &whole, err) || !ask_status(compare, &reply, err))
            return false;
        rests = is_one_of(reply->state->state, "idle", "failed");
        tell_progress(compare, policy, run, reply->state, &shown);
        free_reply(reply);
        if (!over && !stopping && compare->stopped != NULL && *compare->stopped) {
            stop_run(compare);
            stopping = true;
        }
    }
    if (stopping)
        return err_set(err, ERR_RUN, "compare was stopped during the run under %s", policy);
    return whole || err_set(err, ERR_RUN, "the run under %s ended short of its target", policy);
}

/* The run's step events as a JSON array, from its history. */
static bool read_history(const struct compare *compare, char *run, json_t **steps, struct err *err)
{
    Trainerd__SubscribeRequest subscribe = TRAINERD__SUBSCRIBE_REQUEST__INIT;
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    request.command_case = TRAINERD__REQUEST__COMMAND_SUBSCRIBE;
    request.subscribe = &subscribe;
    subscribe.run = run;
    subscribe.history = true;
    if (!tell(compare, &request, err))
        return false;
    json_t *array = json_array();
    for (bool ended = false; !ended;) {
        Trainerd__Event *event = NULL;
        if (!client_event(compare->client, 60, &event, err)) {
            json_decref(array);
            return false;
        }
        if (event == NULL && (compare->stopped == NULL || !*compare->stopped)) {
            json_decref(array);
            return err_set(err, ERR_TIMEOUT, "the history of run %s did not come", run);
        }
        if (event == NULL)
            continue; /* a signal: the history is short, read it to its end */
        if (event->body_case == TRAINERD__EVENT__BODY_STEP)
            json_array_append_new(array, json_from_message(&event->step->base));
        ended = event->body_case == TRAINERD__EVENT__BODY_END;
        trainerd__event__free_unpacked(event, NULL);
    }
    *steps = array;
    return true;
}

/* One policy: from the checkpoint, through the run, to a row. */
static bool compare_one(const struct compare *compare, char *checkpoint, const char *policy, json_t *rows,
                        struct err *err)
{
    char run[LIMIT_NAME_BYTES];
    Trainerd__Reply *reply = NULL;
    json_t *steps = NULL, *row = NULL;
    if (!load(compare, checkpoint, policy, err) || !ask_status(compare, &reply, err))
        return false;
    double bytes = reply->state->policy == NULL ? 0 : reply->state->policy->bytes_per_parameter;
    free_reply(reply);
    if (!start_run(compare, policy, run, err))
        return false;
    bool fine = await_run(compare, policy, run, err) && read_history(compare, run, &steps, err) &&
                compare_row(&row, policy, run, bytes, steps, err);
    json_decref(steps);
    delete_those_of(compare, run);
    if (fine) {
        if (compare->progress != NULL)
            fprintf(compare->progress, "%s: final loss %.5f\n", policy,
                    json_number_value(json_object_get(row, "final_loss")));
        json_array_append_new(rows, row);
    }
    return fine;
}

/* As it was before, bit for bit. What went wrong until here stays in err; a failure to restore outweighs it.
 */
static bool restore(const struct compare *compare, char *checkpoint, struct err *err)
{
    struct err failure = ERR_INIT;
    if (!load(compare, checkpoint, "", &failure)) {
        char line[3 * ERR_TEXT_BYTES];
        *err = (struct err)ERR_INIT;
        err_set(err, failure.code, "the state before compare could not be restored");
        err_why(err, "%s", err_line(&failure, line, sizeof line));
        return err_hint(err, "it is in checkpoint %s: trainctl checkpoint load %s", checkpoint, checkpoint);
    }
    if (!delete_checkpoint(compare, checkpoint, &failure) && compare->progress != NULL)
        fprintf(compare->progress, "checkpoint %s, made by compare, could not be deleted: %s\n", checkpoint,
                failure.what);
    if (err->code != ERR_OK && compare->progress != NULL)
        fprintf(compare->progress, "the state is again what it was before compare\n");
    return err->code == ERR_OK;
}

bool compare_run(const struct compare *compare, json_t **rows, struct err *err)
{
    char checkpoint[LIMIT_NAME_BYTES];
    Trainerd__Reply *reply = NULL;
    *rows = json_array();
    if (!ask_status(compare, &reply, err))
        return false;
    if (!is_one_of(reply->state->state, "idle", "failed")) {
        err_set(err, ERR_STATE, "compare needs an idle daemon, and it is %s", reply->state->state);
        free_reply(reply);
        return err_hint(err, "wait for the run to end, or stop it: trainctl stop");
    }
    free_reply(reply);
    snprintf(checkpoint, sizeof checkpoint, "compare-%lld-%ld", (long long)time(NULL), (long)getpid());
    if (!save(compare, checkpoint, err))
        return false;
    bool fine = true;
    for (int i = 0; fine && i < compare->policy_count; i++) {
        if (compare->stopped != NULL && *compare->stopped)
            fine = err_set(err, ERR_RUN, "compare was stopped before the run under %s", compare->policies[i]);
        fine = fine && compare_one(compare, checkpoint, compare->policies[i], *rows, err);
    }
    compare_rows_rank(*rows);
    return restore(compare, checkpoint, err) && fine;
}

bool compare_write(const json_t *rows, const char *folder, struct err *err)
{
    char path[4][LIMIT_PATH_BYTES];
    static const char *const names[] = {"table.json", "table.csv", "table.png", "table.svg"};
    const char *pictures[] = {path[2], path[3]};
    char *csv = NULL;
    size_t csv_bytes = 0;
    struct plot plot = {0};
    if (!file_make_folder(folder, 0777, err))
        return false;
    for (int i = 0; i < 4; i++)
        if (!file_join(path[i], sizeof path[i], folder, names[i], err))
            return false;
    char *json = json_dumps(rows, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
    FILE *out = open_memstream(&csv, &csv_bytes);
    if (out != NULL) {
        compare_rows_csv(out, rows);
        fclose(out);
    }
    bool fine = json != NULL && csv != NULL && file_replace(path[0], json, strlen(json), err) &&
                file_replace(path[1], csv, csv_bytes, err) && compare_rows_plot(&plot, rows, err) &&
                plot_write(&plot, pictures, 2, err);
    plot_done(&plot);
    free(json);
    free(csv);
    return fine;
}
