/* runs and metrics: from the daemon where one answers, else from what runs left in the state folder. */
#include "commands.h"
#include "follow.h"
#include "json.h"
#include "records.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static bool runs_of(struct call *call, json_t **runs, struct err *err)
{
    REQUEST(request, RUNS, RunsRequest, runs);
    char folder[LIMIT_PATH_BYTES];
    Trainerd__Runs *found;
    struct err none = ERR_INIT;
    if (call_ask_json(call, &request, runs, &none))
        return true;
    if (!call->no_daemon) {
        *err = none;
        return false;
    }
    if (!call_state_folder(call, folder, err) || !records_runs(&found, folder, err))
        return false;
    call->no_daemon = false;
    *runs = json_from_message(&found->base);
    trainerd__runs__free_unpacked(found, NULL);
    return *runs || err_set(err, ERR_MEMORY, "no memory to list runs");
}

int cmd_runs(struct call *call)
{
    static const struct column columns[] = {
        {"run", "run", AS_TEXT, 0},       {"state", "state", AS_TEXT, 0},
        {"step", "step", AS_INTEGER, 0},  {"steps", "steps", AS_INTEGER, 0},
        {"loss", "loss", AS_REAL, 0},     {"policy", "policy", AS_TEXT, 0},
        {"layout", "layout", AS_TEXT, 0}, {"started", "started", AS_TEXT, 0},
        {"ended", "ended", AS_TEXT, 0},
    };
    struct err err = ERR_INIT;
    json_t *runs;
    if (!runs_of(call, &runs, &err))
        return call_fail(call, &err);
    output_rows(call, columns, sizeof columns / sizeof columns[0], json_object_get(runs, "runs"), runs);
    json_decref(runs);
    return EXIT_DONE;
}

/* The run that is meant: named, or the latest. *running: whether it is under way. */
static bool choose_run(struct call *call, char run[LIMIT_NAME_BYTES], bool *running, struct err *err)
{
    json_t *runs;
    const char *named = call_option(call, "run");
    if (!runs_of(call, &runs, err))
        return false;
    const json_t *list = json_object_get(runs, "runs"), *found = NULL;
    size_t count = json_array_size(list);
    for (size_t i = 0; named && i < count; i++) {
        const json_t *row = json_array_get(list, i);
        if (strcmp(json_string_value(json_object_get(row, "run")), named) == 0)
            found = row;
    }
    if (!named && count > 0)
        found = json_array_get(list, count - 1);
    if (found) {
        snprintf(run, LIMIT_NAME_BYTES, "%s", json_string_value(json_object_get(found, "run")));
        *running = strcmp(json_string_value(json_object_get(found, "state")), "running") == 0;
    }
    json_decref(runs);
    if (found)
        return true;
    err_set(err, ERR_NOT_FOUND, named ? "there is no run %s" : "there is no run yet%s", named ? named : "");
    return err_hint(err, "trainctl runs lists them");
}

/* Takes each line of a run's file. false from take ends the reading. */
static bool each_line(const char *path, bool (*take)(void *context, const char *line, size_t bytes),
                      void *context, struct err *err)
{
    FILE *file = fopen(path, "re");
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes;
    if (!file && errno == ENOENT)
        return true;
    if (!file)
        return err_errno(err, "cannot open %s", path);
    while ((bytes = getline(&line, &room, file)) > 0 && line[bytes - 1] == '\n')
        if (!take(context, line, (size_t)bytes))
            break;
    free(line);
    fclose(file);
    return true;
}

struct steps {
    json_t *rows;
    int64_t since;
};

static bool take_step(void *context, const char *line, size_t bytes)
{
    struct steps *steps = context;
    Trainerd__Step *step = records_step(line, bytes);
    if (step && step->step >= steps->since)
        json_array_append_new(steps->rows, json_from_message(&step->base));
    if (step)
        trainerd__step__free_unpacked(step, NULL);
    return true;
}

static int show_steps(struct call *call, const char *folder, const char *run, int64_t since)
{
    struct err err = ERR_INIT;
    struct steps steps = {.rows = json_array(), .since = since};
    char path[2 * LIMIT_PATH_BYTES];
    bool csv = call->output == OUTPUT_CSV;
    bool read = records_path(path, sizeof path, folder, run, "events.jsonl", &err) &&
                each_line(path, take_step, &steps, &err);
    if (read)
        output_rows(call, csv ? step_columns_whole : step_columns,
                    csv ? step_column_whole_count : step_column_count, steps.rows, steps.rows);
    json_decref(steps.rows);
    return read ? EXIT_DONE : call_fail(call, &err);
}

static const struct column tensor_columns[] = {
    {"step", "step", AS_INTEGER, 6},
    {"tensor", "tensor", AS_TEXT, 40},
    {"update_quality", "quality", AS_REAL, 9},
    {"lost_update_share", "lost", AS_REAL, 9},
    {"stalled_v_share", "stalled_v", AS_REAL, 9},
};
enum { TENSOR_COLUMNS = sizeof tensor_columns / sizeof tensor_columns[0] };

struct tensors {
    const struct call *call;
    const char *glob;
    json_t *rows; /* NULL: printed as they come */
    int64_t since;
};

/* A line: {"step": k, "tensors": {name: [lost_update_share, stalled_v_share, update_quality]}}. */
static bool take_tensors(void *context, const char *line, size_t bytes)
{
    struct tensors *tensors = context;
    json_t *value = json_loadb(line, bytes, 0, NULL), *measures;
    json_t *step = json_object_get(value, "step");
    const char *name;
    if (json_integer_value(step) >= tensors->since)
        json_object_foreach(json_object_get(value, "tensors"), name, measures)
        {
            if (fnmatch(tensors->glob, name, 0) != 0)
                continue;
            json_t *row =
                json_pack("{sO, ss, sO*, sO*, sO*}", "step", step, "tensor", name, "update_quality",
                          json_array_get(measures, 2), "lost_update_share", json_array_get(measures, 0),
                          "stalled_v_share", json_array_get(measures, 1));
            if (tensors->rows) {
                json_array_append_new(tensors->rows, row);
            } else {
                output_stream_row(tensors->call, tensor_columns, TENSOR_COLUMNS, row);
                json_decref(row);
            }
        }
    if (!tensors->rows && json_is_integer(step))
        tensors->since = json_integer_value(step) + 1;
    json_decref(value);
    return true;
}

static int show_tensors(struct call *call, const char *folder, const char *run, int64_t since, bool follow)
{
    struct err err = ERR_INIT;
    struct tensors tensors = {.call = call,
                              .glob = call_option(call, "tensor"),
                              .rows = follow ? NULL : json_array(),
                              .since = since};
    char path[2 * LIMIT_PATH_BYTES], chosen[LIMIT_NAME_BYTES];
    bool running = follow, read = records_path(path, sizeof path, folder, run, "tensors.jsonl", &err);
    if (follow) {
        follow_catch_interrupt();
        output_stream_header(call, tensor_columns, TENSOR_COLUMNS);
    }
    /* The file is read again from its start: names repeat, steps are few, and only new ones are shown. */
    do {
        read = read && (!follow || choose_run(call, chosen, &running, &err)) &&
               each_line(path, take_tensors, &tensors, &err);
        running = running && (!follow || strcmp(chosen, run) == 0 || call_option(call, "run"));
        if (read && running)
            nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
    } while (read && running && !follow_interrupted());
    if (read && tensors.rows)
        output_rows(call, tensor_columns, TENSOR_COLUMNS, tensors.rows, tensors.rows);
    json_decref(tensors.rows);
    return read ? EXIT_DONE : call_fail(call, &err);
}

int cmd_metrics(struct call *call)
{
    struct err err = ERR_INIT;
    char run[LIMIT_NAME_BYTES], folder[LIMIT_PATH_BYTES];
    int64_t since = 0;
    bool running = false, follow = call_option(call, "follow") != NULL;
    if (!call_integer(call, "since", 0, INT64_MAX, &since, &err) || !choose_run(call, run, &running, &err) ||
        !call_state_folder(call, folder, &err))
        return call_fail(call, &err);
    call->no_daemon = false;
    if (call_option(call, "tensor"))
        return show_tensors(call, folder, run, since, follow && running);
    if (follow && running && call->connected)
        return follow_run(call, run, since, false);
    return show_steps(call, folder, run, since);
}
