/* plan: asks `trainerd --dry-run`, which has the engine's own code to plan with, and prints what it says.
 * What is not said on the command line comes from the daemon, where one answers. */
#include "commands.h"
#include "file.h"
#include "output.h"

#include <errno.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PLAN_ARGUMENTS = 32, PLAN_TEXT_BYTES = 2 * LIMIT_PATH_BYTES };

struct arguments {
    int count;
    char *list[PLAN_ARGUMENTS + 1]; /* into texts, NULL at the end */
    char texts[PLAN_ARGUMENTS][PLAN_TEXT_BYTES + 32];
};

static void add(struct arguments *arguments, const char *name, const char *value)
{
    INVARIANT(arguments->count < PLAN_ARGUMENTS);
    char *text = arguments->texts[arguments->count];
    snprintf(text, sizeof arguments->texts[0], "%s%s%s", name, value ? "=" : "", value ? value : "");
    arguments->list[arguments->count++] = text;
}

static void add_named(struct arguments *arguments, const char *option, const char *value)
{
    char name[64];
    snprintf(name, sizeof name, "--%s", option);
    add(arguments, name, value);
}

/* Beside trainctl where it is installed or built, else where the shell finds it. */
static void find_trainerd(char path[PLAN_TEXT_BYTES])
{
    static const char *const places[] = {"trainerd", "../daemon/trainerd"};
    char self[LIMIT_PATH_BYTES];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    for (size_t i = 0; i < 2 && length > 0; i++) {
        self[length] = '\0';
        snprintf(path, PLAN_TEXT_BYTES, "%.*s/%s", (int)(strrchr(self, '/') - self), self, places[i]);
        if (access(path, X_OK) == 0)
            return;
    }
    snprintf(path, PLAN_TEXT_BYTES, "trainerd");
}

static const char *text_at(const json_t *status, const char *key)
{
    const char *text = json_string_value(json_object_get(status, key));
    return text ? text : "";
}

/* What the daemon's model, run and options say, for all that the command line does not. */
static bool take_from_daemon(struct call *call, struct arguments *arguments, struct err *err)
{
    REQUEST(request, STATUS, StatusRequest, status);
    json_t *status;
    char text[PLAN_TEXT_BYTES];
    if (!call_ask_json(call, &request, &status, err)) {
        if (call->no_daemon) {
            *err = (struct err)ERR_INIT;
            err_set(err, ERR_NOT_FOUND, "there is no trainerd whose model could be planned for");
            err_hint(err, "name one instead: trainctl plan CONFIG --ranks N");
        }
        return false;
    }
    if (!text_at(status, "model")[0]) {
        json_decref(status);
        err_set(err, ERR_STATE, "the daemon has no model to plan for");
        return err_hint(err, "trainctl init or load first, or name one: trainctl plan CONFIG --ranks N");
    }
    snprintf(text, sizeof text, "%s/config.json", text_at(status, "state_dir"));
    add(arguments, "--init", text);
    if (!call_option(call, "ranks") && !call_option(call, "layout")) {
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(json_object_get(status, "ranks")));
        add(arguments, "--ranks", text);
        if (!call_option(call, "machine"))
            add(arguments, "--machine", "cpu");
    }
    if (!call_option(call, "policy")) {
        add(arguments, "--policy", text_at(json_object_get(status, "policy"), "name"));
        add(arguments, "--yes", NULL);
    }
    if (!call_option(call, "recompute"))
        add(arguments, "--recompute", text_at(status, "recompute"));
    if (text_at(status, "run")[0] && !call_option(call, "run") && !call_option(call, "sequence")) {
        snprintf(text, sizeof text, "%s/runs/%s/recipe.yaml", text_at(status, "state_dir"),
                 text_at(status, "run"));
        add(arguments, "--run", text);
    }
    json_decref(status);
    return true;
}

/* One layout for a person's eyes: trainerd's own words, its assumptions included. */
static bool shows_in_full(const struct call *call)
{
    return call->output == OUTPUT_TABLE && call_option(call, "layout");
}

static bool gather_arguments(struct call *call, struct arguments *arguments, struct err *err)
{
    char program[PLAN_TEXT_BYTES], path[LIMIT_PATH_BYTES];
    find_trainerd(program);
    add(arguments, program, NULL);
    add(arguments, "--dry-run", NULL);
    if (!shows_in_full(call))
        add(arguments, "--json", NULL);
    if (call->argument_count > 0 && !call_absolute(path, call->arguments[0], err))
        return false;
    if (call->argument_count > 0)
        add(arguments, "--init", path);
    else if (!take_from_daemon(call, arguments, err))
        return false;
    for (const struct option *o = call->command->options; o->name; o++) {
        const char *said = call_option(call, o->name);
        if (said)
            add_named(arguments, o->name, said);
        if (said && strcmp(o->name, "policy") == 0)
            add(arguments, "--yes", NULL); /* nothing is trained under it */
    }
    if (!call_option(call, "layout"))
        add(arguments, "--layout", ""); /* all of them, whatever TRAINERD_LAYOUT says */
    if (call->argument_count > 0 && !call_option(call, "ranks") && !call_option(call, "layout")) {
        err_set(err, ERR_INVALID, "for how many ranks?");
        return err_hint(err, "say --ranks N, or --layout LAYOUT");
    }
    return true;
}

/* Its one JSON value, or NULL and its exit code; what it says on stderr goes to ours, and under `in_full` on
 * stdout too. */
static json_t *run_trainerd(struct arguments *arguments, bool in_full, int *status, struct err *err)
{
    extern char **environ;
    int pipes[2];
    pid_t child;
    posix_spawn_file_actions_t actions;
    if (pipe(pipes) != 0) {
        err_errno(err, "no pipe to trainerd");
        return NULL;
    }
    posix_spawn_file_actions_init(&actions);
    if (!in_full)
        posix_spawn_file_actions_adddup2(&actions, pipes[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, pipes[0]);
    int failed = posix_spawnp(&child, arguments->list[0], &actions, NULL, arguments->list, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pipes[1]);
    FILE *said = failed == 0 ? fdopen(pipes[0], "r") : NULL;
    json_t *plan = said ? json_loadf(said, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    if (said)
        fclose(said);
    else
        close(pipes[0]);
    if (failed != 0) {
        err_set(err, ERR_NOT_FOUND, "trainerd, which makes plans, could not be started: %s",
                strerror(failed));
        err_hint(err, "install it beside trainctl, or add its folder to PATH");
        return NULL;
    }
    while (waitpid(child, status, 0) < 0 && errno == EINTR)
        ;
    *status = WIFEXITED(*status) ? WEXITSTATUS(*status) : EXIT_REFUSED;
    return plan;
}

static void print_plan(const struct call *call, const json_t *plan)
{
    static const struct column layouts[] = {
        {"layout", "layout", AS_TEXT, 0},
        {"zero", "zero", AS_INTEGER, 0},
        {"memory_bytes", "memory", AS_BYTES, 0},
        {"fits", "fits", AS_TEXT, 0},
        {"wire_bytes", "sends", AS_BYTES, 0},
        {"seconds.step", "step s", AS_REAL, 0},
        {"tokens_per_second", "tokens/s", AS_REAL, 0},
        {"model_flops_utilization", "utilization", AS_REAL, 0},
    };
    const json_t *rows = json_object_get(plan, "plans");
    json_t *one = rows ? NULL : json_pack("[O]", plan);
    output_rows(call, layouts, sizeof layouts / sizeof layouts[0], rows ? rows : one, plan);
    json_decref(one);
}

/* What the table stands on. */
static void note_basis(const struct call *call, const json_t *plan)
{
    const json_t *machine = json_object_get(plan, "machine");
    call_note(call, "%s, policy %s%s, %s", text_at(plan, "architecture"), text_at(plan, "policy"),
              strcmp(text_at(plan, "recompute"), "block") == 0 ? ", blocks recomputed" : "",
              json_is_string(machine)
                  ? json_string_value(machine)
                  : "no times: name a --machine (cpu: this host, once trainctl doctor has measured it)");
    const json_t *first = json_array_get(json_object_get(plan, "plans"), 0);
    if (json_integer_value(json_object_get(first, "micro_batches")) == 0)
        call_note(call, "without --run RECIPE or --sequence N there are no micro-batches: "
                        "activations, traffic and time come on top");
}

int cmd_plan(struct call *call)
{
    struct err err = ERR_INIT;
    static struct arguments arguments;
    int status = EXIT_REFUSED;
    json_t *plan = NULL;
    if (gather_arguments(call, &arguments, &err))
        plan = run_trainerd(&arguments, shows_in_full(call), &status, &err);
    if (plan)
        print_plan(call, plan);
    if (plan && call->output == OUTPUT_TABLE)
        note_basis(call, plan);
    json_decref(plan);
    return err.code == ERR_OK ? status : call_fail(call, &err);
}
