#include "fake_engine.h"

#include "file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fill_step(const struct fake_engine *engine, struct step_event *step)
{
    *step = (struct step_event){
        .step = engine->step,
        .total_steps = engine->total_steps,
        .loss = 2 / (1 + (double)engine->step),
        .grad_norm = 1,
        .lr = engine->schedule.steps ? schedule_lr(&engine->schedule, engine->step - 1) : 0,
        .tokens = 1000,
        .labelled_tokens = 500,
        .step_seconds = 0.01,
        .tokens_per_second = 1e5,
        .model_flops_utilization = (double)NAN,
        .update_quality = 1};
    snprintf(step->run, sizeof step->run, "%s", engine->run);
    snprintf(step->policy, sizeof step->policy, "%s", engine->policy.name);
}

static void publish(struct fake_engine *engine)
{
    struct snapshot *s = calloc(1, sizeof *s);
    s->state = engine->state;
    s->ranks = 1;
    s->threads = 1;
    s->zero = 3;
    s->policy = engine->policy;
    s->bytes_per_parameter = policy_bytes_per_parameter(&engine->policy);
    s->parameters = engine->state == STATE_EMPTY ? 0 : 1000;
    s->step = engine->step;
    s->run_steps = engine->run_steps;
    s->total_steps = engine->total_steps;
    s->settings = engine->settings;
    s->schedule = engine->schedule;
    s->has_last = engine->step > 0;
    fill_step(engine, &s->last);
    snprintf(s->run, sizeof s->run, "%s", engine->run);
    snprintf(s->layout, sizeof s->layout, "d1t1p1c1");
    snprintf(s->device, sizeof s->device, "fake");
    snprintf(s->compute, sizeof s->compute, "bf16");
    snprintf(s->model, sizeof s->model, "%s", engine->state == STATE_EMPTY ? "" : "Fake 1K");
    snprintf(s->state_dir, sizeof s->state_dir, "%s", engine->state_dir);
    mailbox_publish(engine->box, s);
}

static void publish_audit(struct fake_engine *engine)
{
    struct audit *audit = calloc(1, sizeof *audit + 2 * sizeof audit->rows[0]);
    audit->count = 2;
    audit->bytes_total = audit->bytes_allocated = 6000;
    audit->rows[0] =
        (struct audit_row){.tensor = "w", .kind = "weight", .dtype = "fp32", .elements = 1000, .bytes = 4000};
    audit->rows[1] =
        (struct audit_row){.tensor = "w", .kind = "m", .dtype = "bf16", .elements = 1000, .bytes = 2000};
    mailbox_publish_audit(engine->box, audit);
}

static void set_state(struct fake_engine *engine, enum engine_state state, const char *why)
{
    engine->state = state;
    struct event event = {.kind = EVENT_STATE, .state = state};
    snprintf(event.text, sizeof event.text, "%s", why);
    fill_step(engine, &event.step);
    publish(engine);
    mailbox_post(engine->box, &event);
}

static void write_run_json(const struct fake_engine *engine, const char *state)
{
    struct err err = ERR_INIT;
    char path[2 * LIMIT_PATH_BYTES], text[512];
    snprintf(path, sizeof path, "%s/runs/%s/run.json", engine->state_dir, engine->run);
    int bytes = snprintf(
        text, sizeof text,
        "{\"run\":\"%s\",\"state\":\"%s\",\"policy\":\"%s\",\"step\":%lld,\"steps\":%lld,\"loss\":1.5,"
        "\"started\":\"2026-01-01T00:00:00Z\"}",
        engine->run, state, engine->policy.name, (long long)engine->step, (long long)engine->run_steps);
    if (!file_replace(path, text, (size_t)bytes, &err))
        abort();
}

static void begin_run(struct fake_engine *engine, const struct command *command, struct reply *reply)
{
    static int number;
    struct err err = ERR_INIT;
    char path[2 * LIMIT_PATH_BYTES];
    const struct recipe *recipe = &command->u.train.recipe;
    engine->settings = recipe_optimizer_settings(recipe);
    if (recipe->optimizer.policy[0] &&
        !policy_parse(&engine->policy, recipe->optimizer.policy, NULL, &reply->err))
        return;
    engine->run_steps = recipe->steps > 0 ? recipe->steps : 10;
    if (!schedule_resolve(&engine->schedule, &recipe->schedule, recipe->optimizer.lr, engine->run_steps,
                          &reply->err))
        return;
    snprintf(engine->run, sizeof engine->run, "run-%d", ++number);
    engine->step = 0;
    snprintf(path, sizeof path, "%s/runs/%s", engine->state_dir, engine->run);
    if (!file_make_folder(path, 0700, &err))
        abort();
    strcat(path, "/events.jsonl");
    engine->jsonl = fopen(path, "we");
    write_run_json(engine, "running");
    snprintf(reply->result.run, sizeof reply->result.run, "%s", engine->run);
    reply->result.steps = engine->run_steps;
    set_state(engine, STATE_RUNNING, "a run began");
}

static void end_run(struct fake_engine *engine, const char *how)
{
    write_run_json(engine, how);
    if (engine->jsonl)
        fclose(engine->jsonl);
    engine->jsonl = NULL;
    set_state(engine, STATE_IDLE, how);
}

static void make_step(struct fake_engine *engine)
{
    engine->step++;
    engine->total_steps++;
    struct event event = {.kind = EVENT_STEP};
    fill_step(engine, &event.step);
    fprintf(engine->jsonl,
            "{\"run\":\"%s\",\"step\":%lld,\"loss\":%.17g,\"lr\":%.17g,\"skipped\":0,\"policy\":\"%s\","
            "\"update_quality\":1}\n",
            engine->run, (long long)engine->step, event.step.loss, event.step.lr, engine->policy.name);
    fflush(engine->jsonl);
    publish(engine);
    while (atomic_load(&engine->hold_post) && !atomic_load(&engine->stop))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    mailbox_post(engine->box, &event);
    if (engine->step >= engine->run_steps)
        end_run(engine, "done");
}

static void set_optimizer(struct fake_engine *engine, const struct command *command, struct reply *reply)
{
    struct policy policy = engine->policy;
    const char *name = command->u.set_optimizer.policy;
    if (name[0] && !policy_parse(&policy, name, NULL, &reply->err))
        return;
    if (!policy_confirm(&policy, command->yes || command->dry_run, &reply->err))
        return;
    reply->result.bytes_per_parameter_before = policy_bytes_per_parameter(&engine->policy);
    reply->result.bytes_per_parameter_after = policy_bytes_per_parameter(&policy);
    reply->result.bytes_before = (int64_t)(1000 * reply->result.bytes_per_parameter_before);
    reply->result.bytes_after = (int64_t)(1000 * reply->result.bytes_per_parameter_after);
    reply->result.bytes_peak = reply->result.bytes_before + reply->result.bytes_after;
    reply->result.settings_before = engine->settings;
    reply->result.settings_after = command->u.set_optimizer.settings;
    reply->result.converts = !policy_equal(&policy, &engine->policy);
    reply->result.bytes_more = reply->result.converts ? reply->result.bytes_after : 0;
    reply->result.exact = policy_conversion_exact(&engine->policy, &policy);
    policy_conversion_text(&engine->policy, &policy, reply->result.text, sizeof reply->result.text);
    if (command->dry_run)
        return;
    engine->policy = policy;
    engine->settings = command->u.set_optimizer.settings;
    publish(engine);
}

static void set_layout(const struct command *command, struct reply *reply)
{
    struct command_result *result = &reply->result;
    snprintf(result->layout_before, sizeof result->layout_before, "d2t1p1c1");
    snprintf(result->layout_after, sizeof result->layout_after, "%s", command->u.set_layout.layout);
    result->zero_before = 3;
    result->zero_after = command->u.set_layout.zero ? command->u.set_layout.zero : 3;
    result->bytes_moved = 1000000;
    result->seconds = command->dry_run ? 0 : 0.25;
    result->bytes_before = 2000000;
    result->bytes_after = 3000000;
    result->bytes_peak = 5000000;
}

static void obey(struct fake_engine *engine, const struct command *command, struct reply *reply)
{
    if (!command_legal(command->kind, engine->state, &reply->err))
        return;
    switch ((int)command->kind) {
    case COMMAND_INIT:
    case COMMAND_LOAD:
        reply->result.parameters = 1000;
        snprintf(reply->result.path, sizeof reply->result.path, "%s", command->u.model.path);
        publish_audit(engine);
        set_state(engine, STATE_IDLE, "a model is there");
        break;
    case COMMAND_TRAIN:
        begin_run(engine, command, reply);
        break;
    case COMMAND_EVALUATE:
        reply->result.loss = 1.25;
        reply->result.labelled_tokens = 77;
        break;
    case COMMAND_PAUSE:
        set_state(engine, STATE_PAUSED, "paused");
        break;
    case COMMAND_RESUME:
        set_state(engine, STATE_RUNNING, "resumed");
        break;
    case COMMAND_STOP:
        end_run(engine, "stopped");
        break;
    case COMMAND_SET_OPTIMIZER:
        set_optimizer(engine, command, reply);
        break;
    case COMMAND_SET_SCHEDULE:
        engine->schedule = command->u.set_schedule.schedule;
        engine->run_steps = engine->schedule.steps;
        publish(engine);
        break;
    case COMMAND_SET_LAYOUT:
        set_layout(command, reply);
        break;
    case COMMAND_SHUTDOWN:
        atomic_fetch_add(&engine->shutdowns, 1);
        set_state(engine, STATE_STOPPING, "shutdown");
        break;
    default: /* export and the checkpoints: their names come back */
        snprintf(reply->result.path, sizeof reply->result.path, "%s", command->u.model.path);
        reply->result.bytes = 4000;
    }
}

static bool step_is_due(struct fake_engine *engine, double *next_s)
{
    if (engine->state != STATE_RUNNING)
        return false;
    if (atomic_load(&engine->steps_wanted) > 0) {
        atomic_fetch_sub(&engine->steps_wanted, 1);
        return true;
    }
    if (engine->step_s <= 0 || now_s() < *next_s)
        return false;
    *next_s = now_s() + engine->step_s;
    return true;
}

static void *work(void *context)
{
    struct fake_engine *engine = context;
    struct command *command = calloc(1, sizeof *command);
    struct reply *reply = calloc(1, sizeof *reply);
    double next_s = 0;
    publish(engine);
    while (!atomic_load(&engine->stop)) {
        bool stepped = step_is_due(engine, &next_s);
        if (stepped)
            make_step(engine);
        if (!mailbox_next(engine->box, command, stepped ? 0 : 0.002))
            continue;
        if (command->expired) {
            *reply = (struct reply){.ticket = command->ticket, .kind = command->kind, .err = ERR_INIT};
            err_set(&reply->err, ERR_TIMEOUT, "expired");
            mailbox_reply(engine->box, reply);
            atomic_fetch_add(&engine->expired, 1);
            continue;
        }
        atomic_fetch_add(&engine->commands, 1);
        while (atomic_load(&engine->hold) && !atomic_load(&engine->stop))
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        if (atomic_load(&engine->hold))
            break; /* ends without an answer, as an engine that failed does */
        *reply = (struct reply){.ticket = command->ticket, .kind = command->kind, .err = ERR_INIT};
        obey(engine, command, reply);
        mailbox_reply(engine->box, reply);
    }
    if (engine->jsonl)
        fclose(engine->jsonl);
    free(command);
    free(reply);
    return NULL;
}

void fake_engine_start(struct fake_engine *engine, struct mailbox *box, const char *state_dir)
{
    engine->box = box;
    engine->state_dir = state_dir;
    engine->policy = policy_default();
    engine->settings = optimizer_settings_default();
    if (pthread_create(&engine->thread, NULL, work, engine) != 0)
        abort();
}

void fake_engine_join(struct fake_engine *engine)
{
    atomic_store(&engine->stop, true);
    pthread_join(engine->thread, NULL);
}
