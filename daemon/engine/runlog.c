/* What a run leaves in the state folder, so that metrics and plots outlive the daemon: runs/ID/ with
 * recipe.yaml, run.json (what `trainctl runs` lists), events.jsonl (a step event a line) and tensors.jsonl
 * (the precision measures of each tensor). Beside them the model's config.json, and the journal: every
 * command that changed something, synced before it is acknowledged. */
#include "engine.h"

#include "checkpoint_list.h"
#include "file.h"
#include "log.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RUNLOG_LINE_BYTES 65536

static void now_text(char text[32])
{
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static bool run_path(const struct engine *engine, const char *run, const char *name,
                     char path[2 * LIMIT_PATH_BYTES], struct err *err)
{
    if (snprintf(path, 2 * LIMIT_PATH_BYTES, "%s/runs/%s%s%s", engine->options.state_dir, run,
                 name[0] ? "/" : "", name) >= 2 * LIMIT_PATH_BYTES)
        return err_set(err, ERR_INVALID, "the state folder's path is too long");
    return true;
}

/* A folder of checkpoints may outlive a state folder, or have been another's: its runs keep their numbers, so
 * that no run replaces or retires the checkpoints of another. */
static int last_saved_run(const struct engine *engine)
{
    struct checkpoint_list list = {0};
    struct err err = ERR_INIT;
    int last = 0;
    if (!checkpoint_list_read(&list, engine->options.checkpoint_dir, &err))
        log_err("runlog", &err);
    for (int64_t i = 0; i < list.count; i++) {
        const struct checkpoint_about *about = &list.items[i];
        int number;
        const char *run = about->run[0] ? about->run : about->name; /* all that an unreadable one says */
        if (sscanf(run, "run-%9d", &number) == 1 && number > last)
            last = number;
    }
    checkpoint_list_done(&list);
    return last;
}

/* config.json: what a plan beside the running daemon is made from. */
void runlog_model(struct engine *engine)
{
    char path[LIMIT_PATH_BYTES];
    struct err err = ERR_INIT;
    char *text = model_config_print(&engine->body.model.config, "float32");
    if (!text || !file_join(path, sizeof path, engine->options.state_dir, "config.json", &err) ||
        !file_replace(path, text, strlen(text), &err))
        log_err("runlog", &err);
    free(text);
}

/* The next free number: run-0001, run-0002, … */
static void choose_id(const struct engine *engine, char id[LIMIT_NAME_BYTES])
{
    char folder[2 * LIMIT_PATH_BYTES];
    int last = last_saved_run(engine);
    struct err err = ERR_INIT;
    DIR *runs = run_path(engine, "", "", folder, &err) ? opendir(folder) : NULL;
    for (const struct dirent *entry; runs && (entry = readdir(runs));) {
        int number;
        if (sscanf(entry->d_name, "run-%9d", &number) == 1 && number > last)
            last = number;
    }
    if (runs)
        closedir(runs);
    snprintf(id, LIMIT_NAME_BYTES, "run-%04d", last + 1);
}

void runlog_describe(struct engine *engine, const struct run *run, const char *state)
{
    char path[2 * LIMIT_PATH_BYTES], layout[64], now[32];
    struct err err = ERR_INIT;
    if (!run_path(engine, run->id, "run.json", path, &err))
        return;
    layout_print(&engine->options.layout, layout, sizeof layout);
    now_text(now);
    json_t *old = json_load_file(path, 0, NULL);
    const char *started = old ? json_string_value(json_object_get(old, "started")) : NULL;
    bool ended = strcmp(state, "running") != 0;
    json_t *json = json_pack(
        "{ss ss ss ss ss sI sI so ss ss ss ss}", "run", run->id, "state", state, "policy",
        engine->body.optimizer.policy.name, "model", engine->body.model.config.architecture, "layout", layout,
        "step", (json_int_t)run->k, "steps", (json_int_t)run->steps, "loss",
        engine->has_last && isfinite(engine->last.loss) ? json_real(engine->last.loss) : json_null(),
        "started", started ? started : now, "ended", ended ? now : "", "trainerd", TRAINERD_VERSION,
        "checkpoint_dir", engine->options.checkpoint_dir);
    char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;
    if (!text || !file_replace(path, text, strlen(text), &err))
        log_warning("runlog", "cannot write %s; the run goes on without it", path);
    free(text);
    json_decref(json);
    json_decref(old);
}

static void settle_run(const char *path)
{
    struct err err = ERR_INIT;
    json_t *json = json_load_file(path, 0, NULL);
    const char *state = json_string_value(json_object_get(json, "state"));
    if (state && strcmp(state, "running") == 0) {
        json_object_set_new(json, "state", json_string("interrupted"));
        char *text = json_dumps(json, JSON_INDENT(1));
        if (!text || !file_replace(path, text, strlen(text), &err))
            log_warning("runlog", "cannot write %s; the run stays called running", path);
        free(text);
    }
    json_decref(json);
}

void runlog_settle(const char *state_dir)
{
    char folder[2 * LIMIT_PATH_BYTES], path[4 * LIMIT_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s/runs", state_dir);
    DIR *runs = opendir(folder);
    for (const struct dirent *entry; runs && (entry = readdir(runs));) {
        snprintf(path, sizeof path, "%s/%s/run.json", folder, entry->d_name);
        if (entry->d_name[0] != '.')
            settle_run(path);
    }
    if (runs)
        closedir(runs);
}

static FILE *open_lines(const struct engine *engine, const struct run *run, const char *name, struct err *err)
{
    char path[2 * LIMIT_PATH_BYTES];
    if (!run_path(engine, run->id, name, path, err))
        return NULL;
    FILE *file = fopen(path, "ae");
    if (!file)
        err_errno(err, "cannot open %s", path);
    else
        setvbuf(file, NULL, _IOLBF, RUNLOG_LINE_BYTES);
    return file;
}

static bool open_files(struct engine *engine, struct run *run, struct err *err)
{
    run->events = open_lines(engine, run, "events.jsonl", err);
    run->tensors = run->events ? open_lines(engine, run, "tensors.jsonl", err) : NULL;
    if (run->tensors)
        return true;
    runlog_close(run);
    return false;
}

bool runlog_create(struct engine *engine, struct run *run, struct err *err)
{
    char path[2 * LIMIT_PATH_BYTES];
    choose_id(engine, run->id);
    if (!run_path(engine, run->id, "", path, err) || !file_make_folder(path, 0700, err) ||
        !run_path(engine, run->id, "recipe.yaml", path, err))
        return false;
    char *text = recipe_print(&run->recipe);
    bool written = text && file_replace(path, text, strlen(text), err);
    free(text);
    return written && open_files(engine, run, err);
}

/* Lines of steps that the checkpoint does not know are dropped: the run will make them again. A skipped
 * attempt repeats its step, so lines are kept up to the first one past k. */
static bool cut_lines(const struct engine *engine, const struct run *run, const char *name, struct err *err)
{
    char path[2 * LIMIT_PATH_BYTES], line[RUNLOG_LINE_BYTES];
    if (!run_path(engine, run->id, name, path, err))
        return false;
    FILE *file = fopen(path, "r+e");
    if (!file)
        return true; /* never written, or the state folder is new: nothing to cut */
    long keep = 0;
    while (fgets(line, sizeof line, file)) {
        const char *at = strstr(line, "\"step\":");
        if (!strchr(line, '\n') || (at && atoll(at + 7) > run->k))
            break;
        keep = ftell(file);
    }
    bool cut = ftruncate(fileno(file), keep) == 0 || err_errno(err, "cannot cut %s", path);
    fclose(file);
    return cut;
}

bool runlog_reopen(struct engine *engine, struct run *run, struct err *err)
{
    char path[2 * LIMIT_PATH_BYTES];
    if (!run_path(engine, run->id, "", path, err) || !file_make_folder(path, 0700, err))
        return false;
    return cut_lines(engine, run, "events.jsonl", err) && cut_lines(engine, run, "tensors.jsonl", err) &&
           open_files(engine, run, err);
}

void runlog_close(struct run *run)
{
    if (run->events)
        fclose(run->events);
    if (run->tensors)
        fclose(run->tensors);
    run->events = run->tensors = NULL;
}

static void print_real(FILE *file, const char *name, double value, const char *before)
{
    if (isfinite(value))
        fprintf(file, "%s\"%s\":%.17g", before, name, value);
    else
        fprintf(file, "%s\"%s\":null", before, name);
}

static void print_step(FILE *file, const struct step_event *e)
{
    fprintf(file, "{\"event\":\"step\"");
#define TEXT(name) fprintf(file, ",\"" #name "\":\"%s\"", e->name);
#define INT(name)  fprintf(file, ",\"" #name "\":%lld", (long long)e->name);
#define REAL(name) print_real(file, #name, e->name, ",");
#define SECONDS(name)
    STEP_FIELDS(TEXT, INT, REAL, SECONDS)
#undef TEXT
#undef INT
#undef REAL
#undef SECONDS
    const char *before = ",\"seconds\":{";
#define TEXT(name)
#define INT(name)
#define REAL(name)
#define SECONDS(name)                                                                                        \
    print_real(file, #name, e->seconds_##name, before);                                                      \
    before = ",";
    STEP_FIELDS(TEXT, INT, REAL, SECONDS)
#undef TEXT
#undef INT
#undef REAL
#undef SECONDS
    fprintf(file, "}}\n");
}

static void print_tensors(FILE *file, const struct engine *engine, int64_t step)
{
    const struct param_table *table = &engine->body.model.params;
    fprintf(file, "{\"step\":%lld,\"tensors\":{", (long long)step);
    for (int32_t t = 0; t < table->count; t++)
        fprintf(file, "%s\"%s\":[%.6g,%.6g,%.6g]", t ? "," : "", table->params[t].name,
                measures_lost_update_share(&engine->measures[t]),
                measures_stalled_v_share(&engine->measures[t]),
                measures_update_quality(&engine->measures[t]));
    fprintf(file, "}}\n");
}

void runlog_step(struct engine *engine, const struct step_event *event)
{
    struct run *run = &engine->run;
    if (!run->events)
        return;
    print_step(run->events, event);
    if (run->skips_in_a_row == 0)
        print_tensors(run->tensors, engine, event->step);
    if (ferror(run->events) || ferror(run->tensors)) {
        clearerr(run->events);
        clearerr(run->tensors);
        log_warning("runlog", "cannot write the events of %s (is the disk full?); training goes on", run->id);
    }
}

void runlog_evaluation(struct engine *engine, int64_t step, double loss, int64_t labelled)
{
    struct run *run = &engine->run;
    if (!run->events)
        return;
    fprintf(run->events, "{\"event\":\"evaluation\",\"run\":\"%s\",\"step\":%lld,\"labelled_tokens\":%lld",
            run->id, (long long)step, (long long)labelled);
    print_real(run->events, "loss", loss, ",");
    fprintf(run->events, "}\n");
}

bool journal_write(struct engine *engine, const struct command *command, const struct err *outcome,
                   struct err *err)
{
    char now[32], text[3 * ERR_TEXT_BYTES + 8];
    now_text(now);
    json_t *json =
        json_pack("{ss ss ss sI ss}", "time", now, "command", command_name(command->kind), "run",
                  engine->has_run ? engine->run.id : "", "total_steps",
                  (json_int_t)(engine->has_body ? engine->body.optimizer.total_steps : 0), "outcome",
                  !outcome                  ? "begun"
                  : outcome->code == ERR_OK ? "done"
                                            : err_line(outcome, text, sizeof text));
    char *line = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    bool written = line && fprintf(engine->journal, "%s\n", line) > 0 && fflush(engine->journal) == 0 &&
                   (!outcome || fsync(fileno(engine->journal)) == 0);
    free(line);
    if (!written) {
        clearerr(engine->journal);
        err_errno(err, "cannot write the journal in %s", engine->options.state_dir);
        return err_hint(err, "make room on its disk; the change was made, but it is not recorded");
    }
    return true;
}
