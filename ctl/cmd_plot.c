/* plot: runs as pictures, from what they left in the state folder; needs no daemon. */
#include "commands.h"
#include "output.h"
#include "plot_draw.h"
#include "records.h"

#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The latest run's name. */
static bool latest_run(const char *folder, char run[LIMIT_NAME_BYTES], struct err *err)
{
    Trainerd__Runs *runs = NULL;
    if (!records_runs(&runs, folder, err))
        return false;
    bool found = runs->n_runs > 0;
    if (found)
        snprintf(run, LIMIT_NAME_BYTES, "%s", runs->runs[runs->n_runs - 1]->run);
    trainerd__runs__free_unpacked(runs, NULL);
    if (found)
        return true;
    err_set(err, ERR_NOT_FOUND, "there are no runs in %s", folder);
    return err_hint(err, "start one: trainctl train RECIPE.yaml");
}

/* "run-0003, d4t2p1c1", from the run's own record. */
static void name_run(char name[LIMIT_NAME_BYTES], const char *folder, const char *run)
{
    char path[LIMIT_PATH_BYTES];
    struct err none = ERR_INIT;
    json_t *about = records_path(path, sizeof path, folder, run, "run.json", &none)
                        ? json_load_file(path, 0, NULL)
                        : NULL;
    const char *layout = json_string_value(json_object_get(about, "layout"));
    snprintf(name, LIMIT_NAME_BYTES, "%.40s%s%.24s", run, layout ? ", " : "", layout ? layout : "");
    json_decref(about);
}

/* "bf16, then fp32-master (run-0003, d8t1p1c1)": what the curve of a run is called. */
static void name_curve(char name[LIMIT_NAME_BYTES], const char *run, const json_t *steps)
{
    const json_t *first = json_array_get(steps, 0), *last = json_array_get(steps, json_array_size(steps) - 1);
    const char *began = json_string_value(json_object_get(first, "policy"));
    const char *ended = json_string_value(json_object_get(last, "policy"));
    if (began == NULL || ended == NULL)
        snprintf(name, LIMIT_NAME_BYTES, "%s", run);
    else if (strcmp(began, ended) == 0)
        snprintf(name, LIMIT_NAME_BYTES, "%.60s (%.60s)", began, run);
    else
        snprintf(name, LIMIT_NAME_BYTES, "%.30s, then %.30s (%.56s)", began, ended, run);
}

/* One run into every panel. */
static bool add_run(struct plot *plot, const char *folder, const char *run, struct err *err)
{
    static const char *const fields[] = {"loss", "update_quality", "lr"};
    char path[LIMIT_PATH_BYTES], called[LIMIT_NAME_BYTES], name[LIMIT_NAME_BYTES];
    json_t *steps = NULL;
    if (!records_path(path, sizeof path, folder, run, "events.jsonl", err))
        return false;
    if (access(path, F_OK) != 0) {
        err_set(err, ERR_NOT_FOUND, "there is no run %s in %s", run, folder);
        return err_hint(err, "trainctl runs lists them");
    }
    if (!plot_read_events(path, &steps, err))
        return false;
    name_run(called, folder, run);
    name_curve(name, called, steps);
    bool fine = true;
    const int drawn = sizeof fields / sizeof fields[0];
    for (int p = 0; fine && p < plot->panel_count && p < drawn; p++)
        fine = plot_panel_add(&plot->panels[p], name, steps, fields[p], err);
    if (fine)
        plot_mark_policies(plot, steps);
    json_decref(steps);
    return fine;
}

static bool is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value && value[0];
}

/* The system's viewer, left to itself. The picture is written: where there is no desktop, a note is enough.
 */
static void open_viewer(const struct call *call, const char *path)
{
    extern char **environ;
    char program[] = "xdg-open", file[LIMIT_PATH_BYTES];
    char *arguments[] = {program, file, NULL};
    pid_t child;
    snprintf(file, sizeof file, "%s", path);
    if (!is_set("DISPLAY") && !is_set("WAYLAND_DISPLAY")) {
        call_note(call, "there is no desktop here to show it on: open %s elsewhere", path);
        return;
    }
    int failed = posix_spawnp(&child, program, NULL, NULL, arguments, environ);
    if (failed != 0)
        call_note(call, "no viewer could be started (xdg-open: %s): open %s by hand", strerror(failed), path);
}

/* "A,B,…" or NULL, the latest; *first is the first one's name. */
static bool add_runs(struct plot *plot, const char *folder, const char *named, char first[LIMIT_NAME_BYTES],
                     struct err *err)
{
    char *list, *rest = NULL;
    first[0] = '\0';
    if (named == NULL)
        return latest_run(folder, first, err) && add_run(plot, folder, first, err);
    list = strdup(named);
    bool fine = list != NULL || err_set(err, ERR_MEMORY, "no memory for the names");
    for (char *run = list ? strtok_r(list, ",", &rest) : NULL; fine && run != NULL;
         run = strtok_r(NULL, ",", &rest)) {
        if (first[0] == '\0')
            snprintf(first, LIMIT_NAME_BYTES, "%s", run);
        fine = add_run(plot, folder, run, err);
    }
    free(list);
    return fine;
}

int cmd_plot(struct call *call)
{
    struct err err = ERR_INIT;
    char folder[LIMIT_PATH_BYTES], first[LIMIT_NAME_BYTES], name[LIMIT_NAME_BYTES + 8],
        path[LIMIT_PATH_BYTES];
    const char *paths[] = {path};
    struct plot plot = {.panel_count = 3,
                        .panels = {{.title = "loss", .log_scale = true},
                                   {.title = "quality of the updates", .unit_range = true},
                                   {.title = "learning rate"}}};
    bool fine = call_state_folder(call, folder, &err);
    call->no_daemon = false; /* none is needed */
    fine = fine && add_runs(&plot, folder, call_option(call, "run"), first, &err);
    if (fine) {
        snprintf(name, sizeof name, "%s.png", first);
        snprintf(plot.title, sizeof plot.title, "%s",
                 call_option(call, "title") ? call_option(call, "title") : first);
        fine = call_absolute(path, call_option(call, "out") ? call_option(call, "out") : name, &err) &&
               plot_write(&plot, paths, 1, &err);
    }
    plot_done(&plot);
    if (fine && call->output == OUTPUT_JSON) {
        json_t *done = json_pack("{s:s}", "path", path);
        output_json(done);
        json_decref(done);
    } else if (fine) {
        puts(path);
    }
    if (fine && call_option(call, "open"))
        open_viewer(call, path);
    return fine ? EXIT_DONE : call_fail(call, &err);
}
