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
    for (size_t i = 0; i < found->n_runs;
         i++) /* without a daemon nothing runs: it was cut off with its own */
        if (strcmp(found->runs[i]->state, "running") == 0)
            json_object_set_new(json_array_get(json_object_get(*runs, "runs"), i), "state",
                                json_string("interrupted"));
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
    if (json_array_size(json_object_get(runs, "runs")) == 0)
        call_note(call, "There are none yet.");
    json_decref(runs);
    return EXIT_DONE;
}

static bool no_such_run(const json_t *list, const char *named, struct err *err)
{
    enum { NAMES = 256 }; /* the latest so many */
    const char *names[NAMES];
    size_t count = json_array_size(list), first = count > NAMES ? count - NAMES : 0;
    for (size_t i = first; i < count; i++)
        names[i - first] = json_string_value(json_object_get(json_array_get(list, i), "run"));
    if (count == 0) {
        err_set(err, ERR_NOT_FOUND, named ? "there is no run %.60s, nor any other" : "there is no run yet%s",
                named ? named : "");
        return err_hint(err, "trainctl train starts one");
    }
    const char *near = err_nearest(named, names, count - first), *latest = names[count - first - 1];
    err_set(err, ERR_NOT_FOUND, "there is no run %.60s", named);
    if (near && strcmp(near, latest) != 0)
        return err_hint(err, "did you mean %s? The latest is %s; trainctl runs lists them", near, latest);
    return err_hint(err, "the latest is %s; trainctl runs lists them", latest);
}

/* The run that is meant: named, or the latest; and its state by its records. */
static bool choose_run(struct call *call, char run[LIMIT_NAME_BYTES], char state[LIMIT_NAME_BYTES],
                       struct err *err)
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
        snprintf(state, LIMIT_NAME_BYTES, "%s", json_string_value(json_object_get(found, "state")));
    } else {
        no_such_run(list, named, err);
    }
    json_decref(runs);
    return found != NULL;
}

/* Whether the daemon has this run under way: what its records say may be older than the daemon's end. */
static bool is_under_way(struct call *call, const char *run, struct err *err)
{
    REQUEST(request, STATUS, StatusRequest, status);
    json_t *status;
    if (!call->connected || !call_ask_json(call, &request, &status, err))
        return false;
    const char *present = json_string_value(json_object_get(status, "run"));
    bool same = present && strcmp(present, run) == 0;
    json_decref(status);
    return same;
}

/* The lines of a run's file from byte *from on, which moves behind the last whole one; a file that became
 * shorter (its run went back to a checkpoint) is read from its start. */
static bool each_line(const char *path, long *from,
                      void (*take)(void *context, const char *line, size_t bytes), void *context,
                      struct err *err)
{
    FILE *file = fopen(path, "re");
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes;
    if (!file && errno == ENOENT)
        return true;
    if (!file)
        return err_errno(err, "cannot open %s", path);
    if (fseek(file, 0, SEEK_END) != 0 || ftell(file) < *from)
        *from = 0;
    fseek(file, *from, SEEK_SET);
    while ((bytes = getline(&line, &room, file)) > 0 && line[bytes - 1] == '\n') {
        take(context, line, (size_t)bytes);
        *from = ftell(file);
    }
    free(line);
    fclose(file);
    return true;
}

/* Rows of a file, collected for one table or value, or shown as they come. */
struct rows {
    const struct call *call;
    const char *run, *glob;
    const struct column *columns;
    int column_count;
    json_t *collected;   /* NULL: shown as they come */
    int64_t since, last; /* last: the largest step there is; -1: none */
    bool matched;        /* a tensor's name */
};

static void show_row(struct rows *rows, json_t *row)
{
    if (rows->collected) {
        json_array_append_new(rows->collected, row);
        return;
    }
    output_stream_row(rows->call, rows->columns, rows->column_count, row);
    json_decref(row);
}

static void take_step(void *context, const char *line, size_t bytes)
{
    struct rows *rows = context;
    Trainerd__Step *step = records_step(line, bytes);
    if (!step)
        return;
    rows->last = step->step;
    if (step->step >= rows->since)
        show_row(rows, json_from_message(&step->base));
    trainerd__step__free_unpacked(step, NULL);
}

/* A line: {"step": k, "tensors": {name: [lost_update_share, stalled_v_share, update_quality]}}. */
static void take_tensors(void *context, const char *line, size_t bytes)
{
    struct rows *rows = context;
    json_t *value = json_loadb(line, bytes, 0, NULL), *measures;
    json_t *step = json_object_get(value, "step");
    const char *name;
    bool wanted = json_integer_value(step) >= rows->since;
    if (json_is_integer(step))
        rows->last = json_integer_value(step);
    json_object_foreach(json_object_get(value, "tensors"), name, measures)
    {
        if (fnmatch(rows->glob, name, 0) != 0)
            continue;
        rows->matched = true;
        if (wanted)
            show_row(rows,
                     json_pack("{sO, ss, sO*, sO*, sO*}", "step", step, "tensor", name, "update_quality",
                               json_array_get(measures, 2), "lost_update_share", json_array_get(measures, 0),
                               "stalled_v_share", json_array_get(measures, 1)));
    }
    json_decref(value);
}

/* Why there are no rows: nobody should have to guess. false: what was asked for cannot be. */
static bool explain_nothing(const struct rows *rows, struct err *err)
{
    if (rows->last < 0)
        call_note(rows->call, "%s has made no step yet.", rows->run);
    else if (rows->since > rows->last)
        call_note(rows->call, "%s has no step from %lld on: its last is %lld.", rows->run,
                  (long long)rows->since, (long long)rows->last);
    if (!rows->glob || rows->last < 0 || rows->matched)
        return true;
    err_set(err, ERR_NOT_FOUND, "no tensor of %s matches \"%.60s\"", rows->run, rows->glob);
    return err_hint(err, "write a name or a quoted pattern, as '*norm*'; trainctl audit lists the tensors");
}

static const struct column tensor_columns[] = {
    {"step", "step", AS_INTEGER, 6},
    {"tensor", "tensor", AS_TEXT, 40},
    {"update_quality", "quality", AS_REAL, 9},
    {"lost_update_share", "lost", AS_REAL, 9},
    {"stalled_v_share", "stalled_v", AS_REAL, 9},
};
enum { TENSOR_COLUMNS = sizeof tensor_columns / sizeof tensor_columns[0] };

/* The file to its end, and as long as the run is under way again. */
static bool read_rows(struct call *call, const char *folder, struct rows *rows, bool follow, struct err *err)
{
    char path[2 * LIMIT_PATH_BYTES];
    long from = 0;
    bool more = follow;
    if (!records_path(path, sizeof path, folder, rows->run, rows->glob ? "tensors.jsonl" : "events.jsonl",
                      err))
        return false;
    do {
        more = more && is_under_way(call, rows->run, err); /* asked first: then what it wrote last is read */
        struct err failed = *err;
        if (!each_line(path, &from, rows->glob ? take_tensors : take_step, rows, &failed) ||
            failed.code != ERR_OK) {
            *err = failed;
            return false;
        }
        if (rows->last >= 0 && rows->glob && !rows->matched)
            break; /* no later step will have other tensors */
        if (more && !follow_interrupted())
            nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
    } while (more && !follow_interrupted());
    return true;
}

/* follow: the run is under way, and what comes is shown as it comes. */
static int show_rows(struct call *call, const char *folder, struct rows *rows, bool streams, bool follow)
{
    struct err err = ERR_INIT;
    rows->collected = streams ? NULL : json_array();
    if (streams)
        output_stream_header(call, rows->columns, rows->column_count);
    bool read = read_rows(call, folder, rows, follow, &err) && explain_nothing(rows, &err);
    if (read && rows->collected)
        output_rows(call, rows->columns, rows->column_count, rows->collected, rows->collected);
    json_decref(rows->collected);
    if (!read)
        return call_fail(call, &err);
    return follow_interrupted() ? follow_left(call, rows->run) : EXIT_DONE;
}

int cmd_metrics(struct call *call)
{
    struct err err = ERR_INIT, none = ERR_INIT;
    char run[LIMIT_NAME_BYTES], state[LIMIT_NAME_BYTES], folder[LIMIT_PATH_BYTES];
    bool whole = call->output != OUTPUT_TABLE, streams = call_option(call, "follow") != NULL;
    struct rows rows = {.call = call, .run = run, .glob = call_option(call, "tensor"), .last = -1};
    rows.columns = rows.glob ? tensor_columns : whole ? step_columns_whole : step_columns;
    rows.column_count = rows.glob ? TENSOR_COLUMNS : whole ? step_column_whole_count : step_column_count;
    if (streams)
        follow_catch_one_interrupt();
    if (!call_integer(call, "since", 0, INT64_MAX, &rows.since, &err) ||
        !choose_run(call, run, state, &err) || !call_state_folder(call, folder, &err))
        return call_fail(call, &err);
    call->no_daemon = false;
    bool follow = streams && is_under_way(call, run, &none);
    call->no_daemon = false;
    if (streams && !follow)
        call_note(call, "%s is not under way (%s): this is all there is of it.", run, state);
    if (follow && !rows.glob)
        return follow_run(call, run, rows.since, false);
    return show_rows(call, folder, &rows, streams, follow);
}
