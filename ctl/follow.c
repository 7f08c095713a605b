#include "follow.h"

#include "clock.h"
#include "json.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const struct column step_columns[] = {
    {"step", "step", AS_INTEGER, 6},
    {"loss", "loss", AS_REAL, 9},
    {"grad_norm", "grad_norm", AS_REAL, 9},
    {"lr", "lr", AS_RATE, 8},
    {"update_quality", "quality", AS_REAL, 9},
    {"lost_update_share", "lost", AS_REAL, 9},
    {"stalled_v_share", "stalled_v", AS_REAL, 9},
    {"step_seconds", "seconds", AS_SECONDS, 7},
    {"tokens_per_second", "tokens/s", AS_REAL, 9},
    {"skipped", "skipped", AS_INTEGER, 0},
    {"policy", "policy", AS_TEXT, 12},
};
const int step_column_count = sizeof step_columns / sizeof step_columns[0];

#define WHOLE(field, kind)                                                                                   \
    {                                                                                                        \
        field, field, kind, 0                                                                                \
    }
const struct column step_columns_whole[] = {
    WHOLE("run", AS_TEXT),
    WHOLE("step", AS_INTEGER),
    WHOLE("total_steps", AS_INTEGER),
    WHOLE("loss", AS_EXACT),
    WHOLE("grad_norm", AS_EXACT),
    WHOLE("lr", AS_EXACT),
    WHOLE("tokens", AS_INTEGER),
    WHOLE("labelled_tokens", AS_INTEGER),
    WHOLE("step_seconds", AS_EXACT),
    WHOLE("tokens_per_second", AS_EXACT),
    WHOLE("model_flops_utilization", AS_EXACT),
    WHOLE("seconds.data", AS_EXACT),
    WHOLE("seconds.forward", AS_EXACT),
    WHOLE("seconds.backward", AS_EXACT),
    WHOLE("seconds.communicate", AS_EXACT),
    WHOLE("seconds.optimize", AS_EXACT),
    WHOLE("lost_update_share", AS_EXACT),
    WHOLE("stalled_v_share", AS_EXACT),
    WHOLE("update_quality", AS_EXACT),
    WHOLE("skipped", AS_INTEGER),
    WHOLE("policy", AS_TEXT),
    WHOLE("weight_version", AS_INTEGER),
    WHOLE("memory_bytes", AS_INTEGER),
};
const int step_column_whole_count = sizeof step_columns_whole / sizeof step_columns_whole[0];

static volatile sig_atomic_t interrupts, dies_of_second;
static struct timespec first; /* interrupt */

/* timeout(1) sends each signal twice, to the process and to its group: what comes at once is the same one. */
static bool is_another(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - first.tv_sec) + 1e-9 * (double)(now.tv_nsec - first.tv_nsec) > 0.3;
}

static void when_interrupted(int number)
{
    if (interrupts == 0)
        clock_gettime(CLOCK_MONOTONIC, &first);
    else if (dies_of_second && is_another()) {
        signal(number, SIG_DFL);
        raise(number);
    }
    interrupts = interrupts + 1;
}

void follow_catch_interrupt(void)
{
    struct sigaction action = {.sa_handler = when_interrupted}; /* no SA_RESTART: poll is to return */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

void follow_catch_one_interrupt(void)
{
    dies_of_second = true;
    follow_catch_interrupt();
}

int follow_left(const struct call *call, const char *run)
{
    if (run[0])
        call_note(call, "%s goes on. trainctl metrics --follow shows it, trainctl stop ends it.", run);
    else if (call->connected)
        call_note(call, "The daemon goes on; trainctl status shows what it does.");
    else
        call_note(call, "There was no daemon yet.");
    return EXIT_INTERRUPTED;
}

bool follow_interrupted(void)
{
    return interrupts > 0;
}

const volatile sig_atomic_t *follow_interrupt_flag(void)
{
    return &interrupts;
}

struct follow {
    struct call *call;
    const char *run;
    bool bar, terminal, drawn;
    int64_t step, steps;
    double seconds; /* a step, smoothed */
    double printed_s;
    bool ended, changed; /* changed: the run's length may be another now */
};

static void clear_bar(struct follow *f)
{
    if (f->drawn)
        fputs("\r\033[K", stderr);
    f->drawn = false;
}

/* On a terminal one line that moves; elsewhere a line every ten seconds and one at the end. */
static void draw(struct follow *f, const Trainerd__Step *step)
{
    enum { BAR = 24 };
    char bar[BAR + 1], eta[32], loss[32] = "-";
    double now = clock_s();
    bool last = step->step >= f->steps;
    if (f->call->quiet || (!last && now - f->printed_s < (f->terminal ? 0.1 : 10)))
        return;
    f->printed_s = now;
    int64_t filled = f->steps > 0 ? step->step * BAR / f->steps : 0;
    for (int i = 0; i < BAR; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR] = '\0';
    if (isfinite(step->loss))
        snprintf(loss, sizeof loss, "%.4g", step->loss);
    output_duration(eta, sizeof eta, f->seconds * (double)(f->steps - step->step));
    fprintf(stderr, "%s%s [%s] %lld/%lld  loss %s  lr %.3g  quality %.3g  %.3g s/step  ETA %s%s",
            f->terminal ? "\r" : "", f->run, bar, (long long)step->step, (long long)f->steps, loss, step->lr,
            step->update_quality, f->seconds, eta, f->terminal ? "\033[K" : "\n");
    f->drawn = f->terminal;
    fflush(stderr);
}

static void on_step(struct follow *f, const Trainerd__Step *step)
{
    f->step = step->step;
    if (isfinite(step->step_seconds))
        f->seconds = f->seconds > 0 ? 0.9 * f->seconds + 0.1 * step->step_seconds : step->step_seconds;
    if (!f->bar || f->call->output != OUTPUT_TABLE) {
        json_t *row = json_from_message(&step->base);
        bool whole = f->call->output != OUTPUT_TABLE;
        clear_bar(f);
        output_stream_row(f->call, whole ? step_columns_whole : step_columns,
                          whole ? step_column_whole_count : step_column_count, row);
        json_decref(row);
    }
    if (f->bar)
        draw(f, step);
}

static void on_event(struct follow *f, const Trainerd__Event *event)
{
    switch ((int)event->body_case) {
    case TRAINERD__EVENT__BODY_STEP:
        on_step(f, event->step);
        break;
    case TRAINERD__EVENT__BODY_WARNING:
        clear_bar(f);
        call_note(f->call, "step %lld: %s", (long long)event->warning->step, event->warning->text);
        break;
    case TRAINERD__EVENT__BODY_EVALUATION:
        clear_bar(f);
        call_note(f->call, "step %lld: held-out loss %.6g", (long long)event->evaluation->step,
                  event->evaluation->loss);
        break;
    case TRAINERD__EVENT__BODY_STATE:
        f->ended = strcmp(event->state->state, "idle") == 0 || strcmp(event->state->state, "failed") == 0;
        clear_bar(f);
        if (!f->ended && event->state->text[0])
            call_note(f->call, "step %lld: %s", (long long)event->state->step, event->state->text);
        f->changed = !f->ended;
        break;
    case TRAINERD__EVENT__BODY_DROPPED:
        clear_bar(f);
        call_note(f->call, "%lld events were lost: this reads too slowly", (long long)event->dropped);
        break;
    case TRAINERD__EVENT__BODY_END:
        f->ended = true;
        break;
    default:
        break;
    }
}

/* Nothing came for a while: is the run still there? A run may end before anybody subscribed. */
static bool look_again(struct follow *f, struct err *err)
{
    REQUEST(request, STATUS, StatusRequest, status);
    Trainerd__Reply *reply;
    if (!call_ask(f->call, &request, &reply, err))
        return false;
    const char *state = reply->state->state;
    f->changed = false;
    if (strcmp(reply->state->run, f->run) == 0)
        f->steps = reply->state->steps;
    f->ended = strcmp(state, "idle") == 0 || strcmp(state, "failed") == 0 || strcmp(state, "empty") == 0 ||
               strcmp(reply->state->run, f->run) != 0;
    trainerd__reply__free_unpacked(reply, NULL);
    return true;
}

static int verdict(struct follow *f)
{
    struct err err = ERR_INIT;
    REQUEST(request, RUNS, RunsRequest, runs);
    REQUEST(look, STATUS, StatusRequest, status);
    Trainerd__Reply *reply;
    char state[LIMIT_NAME_BYTES] = "", why[3 * ERR_TEXT_BYTES] = "";
    if (!call_ask(f->call, &request, &reply, &err))
        return call_fail(f->call, &err);
    for (size_t i = 0; i < reply->runs->n_runs; i++)
        if (strcmp(reply->runs->runs[i]->run, f->run) == 0)
            snprintf(state, sizeof state, "%s", reply->runs->runs[i]->state);
    trainerd__reply__free_unpacked(reply, NULL);
    if (strcmp(state, "done") == 0) {
        if (f->bar)
            call_note(f->call, "%s is done: %lld steps", f->run, (long long)f->step);
        return EXIT_DONE;
    }
    if (call_ask(f->call, &look, &reply, &err)) {
        snprintf(why, sizeof why, "%s", reply->state->failure);
        trainerd__reply__free_unpacked(reply, NULL);
    }
    err = (struct err)ERR_INIT;
    err_set(&err, ERR_RUN, "%s ended at step %lld of %lld (%s)", f->run, (long long)f->step,
            (long long)f->steps, state[0] ? state : "unknown");
    err_why(&err, "%s", why);
    call_fail(f->call, &err);
    return EXIT_SHORT;
}

static bool begin(struct follow *f, int64_t since, struct err *err)
{
    REQUEST(subscribe, SUBSCRIBE, SubscribeRequest, subscribe);
    REQUEST(runs, STATUS, StatusRequest, status);
    Trainerd__Reply *reply;
    subscribe_body.run = (char *)(uintptr_t)f->run;
    subscribe_body.history = true;
    subscribe_body.since = since;
    subscribe_body.follow = true;
    if (!call_ask(f->call, &runs, &reply, err))
        return false;
    f->steps = reply->state->steps;
    if (strcmp(reply->state->state, "paused") == 0 && strcmp(reply->state->run, f->run) == 0)
        call_note(f->call, "%s is paused at step %lld: trainctl resume goes on.", f->run,
                  (long long)reply->state->step);
    trainerd__reply__free_unpacked(reply, NULL);
    if (!call_ask(f->call, &subscribe, &reply, err))
        return false;
    trainerd__reply__free_unpacked(reply, NULL);
    return true;
}

int follow_run(struct call *call, const char *run, int64_t since, bool bar)
{
    struct follow f = {.call = call, .run = run, .bar = bar, .terminal = isatty(STDERR_FILENO) == 1};
    struct err err = ERR_INIT;
    bool whole = call->output != OUTPUT_TABLE;
    follow_catch_one_interrupt();
    if (!begin(&f, since, &err))
        return call_fail(call, &err);
    if (!bar || whole)
        output_stream_header(call, whole ? step_columns_whole : step_columns,
                             whole ? step_column_whole_count : step_column_count);
    double deadline = call->timeout_s > 0 ? clock_s() + call->timeout_s : (double)INFINITY;
    while (!f.ended && !follow_interrupted()) {
        Trainerd__Event *event;
        bool there = client_event(&call->client, 0.5, &event, &err);
        if (event)
            on_event(&f, event);
        if (event)
            trainerd__event__free_unpacked(event, NULL);
        if (there && (!event || f.changed) && !f.ended && !follow_interrupted())
            there = look_again(&f, &err);
        if (there && clock_s() > deadline)
            there = err_set(&err, ERR_TIMEOUT, "%s goes on after %g s", run, call->timeout_s);
        if (!there) {
            clear_bar(&f);
            call->no_daemon = err.code == ERR_NOT_FOUND;
            return call_fail(call, &err);
        }
    }
    if (f.drawn)
        fputc('\n', stderr);
    return f.ended ? verdict(&f) : follow_left(call, run);
}
