/* status, wait, pause, resume, stop, shutdown. */
#include "clock.h"
#include "commands.h"
#include "follow.h"
#include "help.h"
#include "output.h"
#include "records.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const char *text_at(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static long long integer_at(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

#define STATUS_HOSTS 8 /* named for people; JSON has all */

static const struct column status_columns[] = {
    {"state", "state", AS_TEXT, 0},
    {"activity", "activity", AS_TEXT, 0},
    {"failure", "failure", AS_TEXT, 0},
    {"run", "run", AS_TEXT, 0},
    {"step", "step", AS_INTEGER, 0},
    {"steps", "steps", AS_INTEGER, 0},
    {"total_steps", "total_steps", AS_INTEGER, 0},
    {"skipped", "skipped", AS_INTEGER, 0},
    {"loss", "loss", AS_REAL, 0},
    {"grad_norm", "grad_norm", AS_REAL, 0},
    {"lr", "lr", AS_RATE, 0},
    {"update_quality", "update_quality", AS_REAL, 0},
    {"lost_update_share", "lost_update_share", AS_REAL, 0},
    {"stalled_v_share", "stalled_v_share", AS_REAL, 0},
    {"step_seconds", "step_seconds", AS_SECONDS, 0},
    {"tokens_per_second", "tokens_per_second", AS_REAL, 0},
    {"model_flops_utilization", "model_flops_utilization", AS_REAL, 0},
    {"policy.name", "policy", AS_TEXT, 0},
    {"policy.bytes_per_parameter", "bytes_per_parameter", AS_REAL, 0},
    {"layout", "layout", AS_TEXT, 0},
    {"ranks", "ranks", AS_INTEGER, 0},
    {"threads", "threads", AS_INTEGER, 0},
    {"device", "device", AS_TEXT, 0},
    {"compute", "compute", AS_TEXT, 0},
    {"model", "model", AS_TEXT, 0},
    {"parameters", "parameters", AS_INTEGER, 0},
    {"memory_bytes", "memory_bytes", AS_BYTES, 0},
};

static void print_cell(const json_t *status, const char *label, const char *field, enum column_kind kind)
{
    char text[64];
    printf("%s%s", label,
           output_cell(text, sizeof text, status, &(struct column){.field = field, .kind = kind}));
}

static void print_run(const json_t *status)
{
    if (!text_at(status, "run")[0])
        return;
    printf("run       %s: step %lld of %lld", text_at(status, "run"), integer_at(status, "step"),
           integer_at(status, "steps"));
    if (integer_at(status, "skipped") > 0)
        printf(", %lld skipped", integer_at(status, "skipped"));
    if (integer_at(status, "micro_batches") > 1)
        printf(", %lld of %lld micro-batches of the next", integer_at(status, "micro_batch"),
               integer_at(status, "micro_batches"));
    if (text_at(status, "waiting")[0])
        printf("\nwaiting   %s, for the end of that step", text_at(status, "waiting"));
    if (json_is_null(json_object_get(status, "loss"))) { /* just restored */
        putchar('\n');
        return;
    }
    print_cell(status, "\nlast      loss ", "loss", AS_REAL);
    print_cell(status, ", gradient norm ", "grad_norm", AS_REAL);
    print_cell(status, ", lr ", "lr", AS_RATE);
    print_cell(status, ", update quality ", "update_quality", AS_REAL);
    print_cell(status, " (lost ", "lost_update_share", AS_REAL);
    print_cell(status, ", stalled v ", "stalled_v_share", AS_REAL);
    print_cell(status, ")\nspeed     ", "step_seconds", AS_SECONDS);
    print_cell(status, " s a step, ", "tokens_per_second", AS_REAL);
    print_cell(status, " tokens/s, model FLOPs utilization ", "model_flops_utilization", AS_REAL);
    putchar('\n');
}

static void print_policy(const json_t *policy)
{
    printf("policy    %s: weight %s, m %s, v %s, accumulate %s, reduce %s, compute %s; ",
           text_at(policy, "name"), text_at(policy, "weight"), text_at(policy, "m"), text_at(policy, "v"),
           text_at(policy, "accumulate"), text_at(policy, "reduce"), text_at(policy, "compute"));
    print_cell(policy, "", "bytes_per_parameter", AS_REAL);
    printf(" bytes a parameter\n");
}

static bool is_in(const json_t *list, const char *text)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (strcmp(json_string_value(json_array_get(list, i)), text) == 0)
            return true;
    return false;
}

/* Those that `said` holds were printed before. */
static void print_warnings(const json_t *list, const char *label, const json_t *said)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (!is_in(said, text))
            printf("%s%s\n", label, text);
    }
}

/* " on node0", " on 12 hosts: node0, node1, … and 4 more"; ends the line. */
static void print_hosts(const json_t *hosts)
{
    size_t count = json_array_size(hosts);
    if (count > 1)
        printf(" on %zu hosts:", count);
    else if (count == 1)
        printf(" on");
    for (size_t i = 0; i < count && i < STATUS_HOSTS; i++)
        printf("%s%s", i ? ", " : " ", text_at(json_array_get(hosts, i), "host"));
    if (count > STATUS_HOSTS)
        printf(" and %zu more", count - STATUS_HOSTS);
    putchar('\n');
}

static void print_status(const json_t *status)
{
    const json_t *policy = json_object_get(status, "policy");
    printf("state     %s", text_at(status, "state"));
    if (text_at(status, "activity")[0])
        printf(": %s", text_at(status, "activity"));
    if (text_at(status, "failure")[0])
        printf(": %s", text_at(status, "failure"));
    putchar('\n');
    print_run(status);
    if (text_at(status, "model")[0])
        printf("model     %s (%lld)\n", text_at(status, "model"), integer_at(status, "parameters"));
    print_policy(policy);
    printf("layout    %s (ZeRO %lld): %lld ranks of %lld threads", text_at(status, "layout"),
           integer_at(status, "zero"), integer_at(status, "ranks"), integer_at(status, "threads"));
    print_hosts(json_object_get(status, "hosts"));
    printf("device    %s\n", text_at(status, "device"));
    print_cell(status, "memory    ", "memory_bytes", AS_BYTES);
    printf("\nfolder    %s\n", text_at(status, "state_dir"));
    print_warnings(json_object_get(status, "warnings"), "warning   ", NULL);
    print_warnings(json_object_get(policy, "warnings"), "note      ", json_object_get(status, "warnings"));
}

int cmd_status(struct call *call)
{
    struct err err = ERR_INIT;
    REQUEST(request, STATUS, StatusRequest, status);
    json_t *status;
    if (!call_ask_json(call, &request, &status, &err))
        return call_fail(call, &err);
    if (call->output == OUTPUT_TABLE)
        print_status(status);
    else
        output_object(call, status_columns, sizeof status_columns / sizeof status_columns[0], status);
    json_decref(status);
    return EXIT_DONE;
}

/* Neither state nor step: until nothing is under way. */
struct goal {
    const char *state;           /* NULL: any */
    int64_t step;                /* -1: none */
    double deadline_s;           /* 0: none */
    char seen[LIMIT_NAME_BYTES]; /* the run that was under way while this waited; "": none */
};

struct run_end {
    char run[LIMIT_NAME_BYTES], state[LIMIT_NAME_BYTES];
    int64_t step, steps;
};

static bool out_of_time(const struct call *call, const struct goal *goal, struct err *err)
{
    if (goal->deadline_s <= 0 || clock_s() < goal->deadline_s)
        return false;
    err_set(err, ERR_TIMEOUT, "%s was not reached within %g s",
            goal->step >= 0   ? "the step"
            : goal->state     ? goal->state
            : call->connected ? "a state in which nothing is under way"
                              : "a daemon",
            call->timeout_s);
    return !err_hint(err, "trainctl status shows what the daemon does");
}

static bool rests(const char *state)
{
    return strcmp(state, "idle") == 0 || strcmp(state, "failed") == 0 || strcmp(state, "empty") == 0;
}

/* At rest status has no run any more: the one of this name (NULL: the latest) as its records tell of it. */
static bool find_run(const json_t *status, const char *name, struct run_end *end)
{
    Trainerd__Runs *runs = NULL;
    struct err none = ERR_INIT;
    *end = (struct run_end){0};
    if (!records_runs(&runs, text_at(status, "state_dir"), &none))
        return false;
    for (size_t i = 0; i < runs->n_runs; i++) {
        const Trainerd__Run *run = runs->runs[i];
        if (name && strcmp(run->run, name) != 0)
            continue;
        snprintf(end->run, sizeof end->run, "%s", run->run);
        snprintf(end->state, sizeof end->state, "%s", run->state);
        end->step = run->step;
        end->steps = run->steps;
    }
    trainerd__runs__free_unpacked(runs, NULL);
    return end->run[0] != '\0';
}

static int judge_ended(const struct goal *goal, const json_t *status, struct err *err)
{
    struct run_end last;
    if (!find_run(status, NULL, &last)) {
        err_set(err, ERR_RUN, "there is no run that could reach step %lld", (long long)goal->step);
        err_hint(err, "trainctl train starts one");
        return EXIT_SHORT;
    }
    if (last.step >= goal->step)
        return EXIT_DONE;
    err_set(err, ERR_RUN, "%s ended at step %lld, before step %lld", last.run, (long long)last.step,
            (long long)goal->step);
    err_why(err, "%s", text_at(status, "failure"));
    return EXIT_SHORT;
}

static int judge_short(const json_t *status, const struct run_end *end, struct err *err)
{
    err_set(err, ERR_RUN, "%s ended at step %lld of %lld (%s)", end->run[0] ? end->run : "the run",
            (long long)end->step, (long long)end->steps, end->run[0] ? end->state : "failed");
    err_why(err, "%s", text_at(status, "failure"));
    return EXIT_SHORT;
}

static int judge_failed(const json_t *status, struct err *err)
{
    struct run_end last;
    (void)find_run(status, NULL, &last);
    return judge_short(status, &last, err);
}

/* Nothing is under way any more: a run that was, while this waited, must have reached its end. */
static int judge_rest(const struct goal *goal, const json_t *status, struct err *err)
{
    struct run_end seen;
    if (strcmp(text_at(status, "state"), "failed") == 0)
        return judge_failed(status, err);
    bool ended = goal->seen[0] && strcmp(text_at(status, "state"), "paused") != 0;
    if (ended && find_run(status, goal->seen, &seen) && strcmp(seen.state, "done") != 0)
        return judge_short(status, &seen, err);
    return EXIT_DONE;
}

/* EXIT_DONE, EXIT_SHORT, or -1: not yet. */
static int judge(struct goal *goal, const json_t *status, struct err *err)
{
    const char *state = text_at(status, "state");
    if (goal->state && strcmp(state, goal->state) == 0)
        return EXIT_DONE;
    if (goal->step >= 0 && integer_at(status, "step") >= goal->step && text_at(status, "run")[0])
        return EXIT_DONE;
    if (strcmp(state, "running") == 0)
        snprintf(goal->seen, sizeof goal->seen, "%s", text_at(status, "run"));
    if (!goal->state && goal->step < 0)
        return rests(state) || strcmp(state, "paused") == 0 ? judge_rest(goal, status, err) : -1;
    if (goal->step >= 0 && rests(state))
        return judge_ended(goal, status, err);
    if (goal->state && strcmp(goal->state, "idle") == 0 && strcmp(state, "failed") == 0)
        return judge_failed(status, err);
    return -1;
}

/* Tries until the daemon is there and has a state to show. */
static bool reach(struct call *call, const struct goal *goal, json_t **status, struct err *err)
{
    for (;;) {
        struct err now = ERR_INIT;
        REQUEST(request, STATUS, StatusRequest, status);
        if (call_ask_json(call, &request, status, &now))
            return true;
        if (!call->no_daemon && now.code != ERR_BUSY && now.code != ERR_TIMEOUT) {
            *err = now;
            return false;
        }
        if (call->no_daemon && call->connected) {
            client_close(&call->client);
            call->connected = false;
        }
        if (out_of_time(call, goal, err) || follow_interrupted())
            return false;
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
}

static bool subscribe(struct call *call, struct err *err)
{
    REQUEST(request, SUBSCRIBE, SubscribeRequest, subscribe);
    Trainerd__Reply *reply;
    request_body.follow = true;
    if (!call_ask(call, &request, &reply, err))
        return false;
    trainerd__reply__free_unpacked(reply, NULL);
    return true;
}

/* Until something happened that may matter: a state, or a step that reaches the goal; or a second has passed.
 */
static bool await_change(struct call *call, const struct goal *goal, struct err *err)
{
    double until = clock_s() + 1;
    while (clock_s() < until && !follow_interrupted()) {
        Trainerd__Event *event;
        if (!client_event(&call->client, until - clock_s(), &event, err)) {
            call->no_daemon = true;
            return false;
        }
        if (!event)
            continue;
        bool matters = event->body_case == TRAINERD__EVENT__BODY_STATE ||
                       (event->body_case == TRAINERD__EVENT__BODY_STEP && event->step->step >= goal->step &&
                        goal->step >= 0);
        trainerd__event__free_unpacked(event, NULL);
        if (matters)
            return true;
    }
    return true;
}

/* "paused, run-0001 at step 12 of 100" */
static void say_reached(const struct call *call, const json_t *status)
{
    const char *run = text_at(status, "run");
    if (call->output == OUTPUT_JSON)
        output_json(status);
    else if (run[0])
        call_note(call, "%s, %s at step %lld of %lld", text_at(status, "state"), run,
                  integer_at(status, "step"), integer_at(status, "steps"));
    else
        call_note(call, "%s", text_at(status, "state"));
}

static int wait_for(struct call *call, struct goal *goal, struct err *err)
{
    bool subscribed = false;
    char run[LIMIT_NAME_BYTES] = "";
    for (;;) {
        json_t *status;
        if (!reach(call, goal, &status, err))
            return err->code == ERR_OK ? follow_left(call, run) : call_fail(call, err);
        snprintf(run, sizeof run, "%s", text_at(status, "run"));
        if (!subscribed) { /* then the status once more: what happened in between is not missed */
            json_decref(status);
            if (!subscribe(call, err))
                return call_fail(call, err);
            subscribed = true;
            continue;
        }
        int code = judge(goal, status, err);
        if (code == EXIT_DONE)
            say_reached(call, status);
        json_decref(status);
        if (code == EXIT_SHORT)
            call_fail(call, err);
        if (code >= 0)
            return code;
        if (follow_interrupted())
            return follow_left(call, run);
        if (out_of_time(call, goal, err) || !await_change(call, goal, err))
            return call_fail(call, err);
    }
}

int cmd_wait(struct call *call)
{
    static const char *const states[] = {"empty", "idle", "running", "paused", "busy", "failed", "stopping"};
    struct err err = ERR_INIT;
    struct goal goal = {.state = call_option(call, "state"), .step = -1};
    bool known = !goal.state;
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++)
        known |= goal.state && strcmp(goal.state, states[i]) == 0;
    if (!known) {
        const char *near = err_nearest(goal.state, states, sizeof states / sizeof states[0]);
        err_set(&err, ERR_INVALID, "there is no state \"%s\"", goal.state);
        err_hint(&err,
                 near ? "did you mean %s?"
                      : "they are empty, idle, running, paused, busy, failed, stopping%s",
                 near ? near : "");
        return call_fail(call, &err);
    }
    if (!call_integer(call, "step", 0, INT64_MAX, &goal.step, &err))
        return call_fail(call, &err);
    if (call->timeout_s > 0)
        goal.deadline_s = clock_s() + call->timeout_s;
    follow_catch_one_interrupt();
    return wait_for(call, &goal, &err);
}

/* A command whose whole result is that it was done. */
static int simple(struct call *call, Trainerd__Request *request, const char *note)
{
    struct err err = ERR_INIT;
    json_t *result;
    if (!call_ask_json(call, request, &result, &err))
        return call_fail(call, &err);
    if (call->output == OUTPUT_JSON)
        output_json(result);
    else
        call_note(call, "%s", text_at(result, "text")[0] ? text_at(result, "text") : note);
    json_decref(result);
    return EXIT_DONE;
}

int cmd_pause(struct call *call)
{
    REQUEST(request, PAUSE, PauseRequest, pause);
    return simple(call, &request, "paused");
}

int cmd_resume(struct call *call)
{
    REQUEST(request, RESUME, ResumeRequest, resume);
    return simple(call, &request, "resumed");
}

int cmd_stop(struct call *call)
{
    REQUEST(request, STOP, StopRequest, stop);
    return simple(call, &request, "stopped");
}

/* Returns when the daemon has gone, so that the next one may be started at once. */
int cmd_shutdown(struct call *call)
{
    REQUEST(request, SHUTDOWN, ShutdownRequest, shutdown);
    struct goal goal = {.step = -1, .deadline_s = call->timeout_s > 0 ? clock_s() + call->timeout_s : 0};
    int code = simple(call, &request, "the daemon ends");
    while (code == EXIT_DONE) {
        struct err err = ERR_INIT;
        Trainerd__Event *event;
        if (!client_event(&call->client, 0.2, &event, &err))
            return EXIT_DONE;
        if (event)
            trainerd__event__free_unpacked(event, NULL);
        if (out_of_time(call, &goal, &err))
            return call_fail(call, &err);
    }
    return code;
}

int cmd_completion(struct call *call)
{
    (void)call;
    help_completion(stdout);
    return EXIT_DONE;
}
