#include "records.h"

#include "file.h"
#include "json.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { RUN_JSON_BYTES = 1 << 20 };

bool records_path(char *path, size_t path_bytes, const char *state_dir, const char *run, const char *file,
                  struct err *err)
{
    if (!run[0] || run[0] == '.' || strchr(run, '/'))
        return err_set(err, ERR_INVALID, "\"%.100s\" is no run's name", run);
    int wrote = snprintf(path, path_bytes, "%s/runs/%s/%s", state_dir, run, file);
    if (wrote < 0 || (size_t)wrote >= path_bytes)
        return err_set(err, ERR_INVALID, "the path of run %.100s is too long", run);
    return true;
}

/* A run that did not end by itself wrote run.json when it began: how far it came is in its last event. */
static void read_last_step(Trainerd__Run *run, const char *state_dir, const char *name)
{
    enum { TAIL = 16 << 10 };
    struct err err = ERR_INIT;
    char path[4096], tail[TAIL];
    FILE *file =
        records_path(path, sizeof path, state_dir, name, "events.jsonl", &err) ? fopen(path, "re") : NULL;
    if (!file)
        return;
    long end = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : 0;
    fseek(file, end > TAIL ? end - TAIL : 0, SEEK_SET);
    size_t count = fread(tail, 1, sizeof tail, file);
    fclose(file);
    Trainerd__Step *step = NULL;
    while (count > 0 && !step) { /* from the last line end backwards */
        const char *line_end = memrchr(tail, '\n', count);
        if (!line_end)
            break;
        count = (size_t)(line_end - tail);
        const char *before = memrchr(tail, '\n', count);
        const char *line = before ? before + 1 : tail;
        step = records_step(line, (size_t)(line_end - line));
    }
    if (step && step->step >= run->step) {
        run->step = step->step;
        run->loss = step->loss;
    }
    if (step)
        trainerd__step__free_unpacked(step, NULL);
}

static Trainerd__Run *read_run(const char *state_dir, const char *name)
{
    struct err err = ERR_INIT;
    char path[4096];
    char *text = NULL;
    size_t bytes;
    if (!records_path(path, sizeof path, state_dir, name, "run.json", &err) ||
        !file_slurp(path, RUN_JSON_BYTES, &text, &bytes, &err))
        return NULL;
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    Trainerd__Run *run = (Trainerd__Run *)json_to_message(&trainerd__run__descriptor, value);
    json_decref(value);
    if (run && !run->run[0]) {
        char *copy = strdup(name);
        if (copy)
            run->run = copy;
    }
    if (run && (strcmp(run->state, "running") == 0 || strcmp(run->state, "interrupted") == 0))
        read_last_step(run, state_dir, name);
    return run;
}

static int by_start(const void *a, const void *b)
{
    const Trainerd__Run *x = *(Trainerd__Run *const *)a, *y = *(Trainerd__Run *const *)b;
    int order = strcmp(x->started, y->started);
    return order ? order : strcmp(x->run, y->run);
}

bool records_runs(Trainerd__Runs **runs, const char *state_dir, struct err *err)
{
    char path[4096];
    Trainerd__Runs *found = malloc(sizeof *found);
    Trainerd__Run **rows = calloc(RECORDS_RUNS_MAX, sizeof *rows);
    if (!found || !rows) {
        free(found);
        free(rows);
        return err_set(err, ERR_MEMORY, "no memory to list runs");
    }
    trainerd__runs__init(found);
    found->runs = rows;
    DIR *folder = file_join(path, sizeof path, state_dir, "runs", err) ? opendir(path) : NULL;
    bool done = folder != NULL || (err->code == ERR_OK && errno == ENOENT) ||
                err_errno(err, "cannot read the folder %s", path);
    for (struct dirent *entry; folder && found->n_runs < RECORDS_RUNS_MAX && (entry = readdir(folder));) {
        Trainerd__Run *run = entry->d_name[0] == '.' ? NULL : read_run(state_dir, entry->d_name);
        if (run)
            rows[found->n_runs++] = run;
    }
    if (folder)
        closedir(folder);
    if (!done) {
        trainerd__runs__free_unpacked(found, NULL);
        return false;
    }
    qsort(rows, found->n_runs, sizeof *rows, by_start);
    *runs = found;
    return true;
}

Trainerd__Step *records_step(const char *line, size_t bytes)
{
    json_t *value = json_loadb(line, bytes, 0, NULL);
    const char *event = json_string_value(json_object_get(value, "event"));
    bool is_step = json_is_integer(json_object_get(value, "step")) &&
                   (!event || strcmp(event, "step") == 0) && json_object_get(value, "lr");
    Trainerd__Step *step =
        is_step ? (Trainerd__Step *)json_to_message(&trainerd__step__descriptor, value) : NULL;
    json_decref(value);
    return step;
}
