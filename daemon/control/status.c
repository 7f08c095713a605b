/* Answers made from the last published snapshot: never a wait for a step. */
#include "server.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

static char *text_of(const char *text)
{
    return (char *)(uintptr_t)text; /* protobuf-c packs without writing */
}

static bool refuse_without_snapshot(struct session *session, uint64_t id)
{
    if (session->control->snapshot)
        return false;
    struct err err = ERR_INIT;
    err_set(&err, ERR_BUSY, "the daemon is starting");
    err_hint(&err, "try again in a moment; trainctl wait does");
    reply_error(session, id, &err);
    return true;
}

/* The last step's numbers; before there is one they are not known. */
static void fill_last(Trainerd__Status *to, Trainerd__Seconds *seconds, const struct snapshot *from)
{
    const struct step_event none = {
#define TEXT(name)
#define INT(name)
#define REAL(name)    .name = (double)NAN,
#define SECONDS(name) .seconds_##name = (double)NAN,
        STEP_FIELDS(TEXT, INT, REAL, SECONDS)
#undef TEXT
#undef INT
#undef REAL
#undef SECONDS
    };
    const struct step_event *last = from->has_last ? &from->last : &none;
    to->loss = last->loss;
    to->grad_norm = last->grad_norm;
    to->lr = last->lr;
    to->tokens = last->tokens;
    to->labelled_tokens = last->labelled_tokens;
    to->step_seconds = last->step_seconds;
    to->tokens_per_second = last->tokens_per_second;
    to->model_flops_utilization = last->model_flops_utilization;
    to->lost_update_share = last->lost_update_share;
    to->stalled_v_share = last->stalled_v_share;
    to->update_quality = last->update_quality;
    to->weight_version = last->weight_version;
    seconds->data = last->seconds_data;
    seconds->forward = last->seconds_forward;
    seconds->backward = last->seconds_backward;
    seconds->communicate = last->seconds_communicate;
    seconds->optimize = last->seconds_optimize;
    to->seconds = seconds;
}

void fill_settings(Trainerd__OptimizerSettings *to, const struct optimizer_settings *from)
{
    trainerd__optimizer_settings__init(to);
    to->lr = from->lr;
    to->beta1 = from->beta1;
    to->beta2 = from->beta2;
    to->eps = from->eps;
    to->weight_decay = from->weight_decay;
    to->decay = text_of(from->decay_all ? "all" : "matrices");
    to->clip = from->clip;
}

struct policy_texts {
    struct policy_note notes[POLICY_NOTES_MAX];
    char *warnings[POLICY_NOTES_MAX];
};

static void fill_policy(Trainerd__Policy *to, struct policy_texts *texts, const struct snapshot *from)
{
    const struct policy *policy = &from->policy;
    int notes = policy_notes(policy, from->settings.beta2, texts->notes);
    for (int i = 0; i < notes; i++)
        texts->warnings[i] = texts->notes[i].text;
    to->name = text_of(policy->name);
    to->weight = text_of(weight_format_name(policy->weight));
    to->m = text_of(moment_format_name(policy->m));
    to->v = text_of(moment_format_name(policy->v));
    to->accumulate = text_of(dtype_name(policy->accumulate));
    to->reduce = text_of(dtype_name(policy->reduce));
    to->compute = text_of(dtype_name(policy->compute));
    to->bytes_per_parameter = from->bytes_per_parameter;
    to->n_warnings = (size_t)notes;
    to->warnings = texts->warnings;
}

static void fill_place(Trainerd__Status *to, const struct control *control, const struct snapshot *from)
{
    to->layout = text_of(from->layout);
    to->zero = from->zero;
    to->ranks = from->ranks;
    to->threads = from->threads;
    to->device = text_of(from->device);
    to->compute = text_of(from->compute);
    to->recompute = text_of(from->recomputed ? "block" : "none");
    to->model = text_of(from->model);
    to->parameters = from->parameters;
    to->seed = from->seed;
    to->memory_bytes = from->memory_bytes;
    to->state_dir = text_of(from->state_dir[0] ? from->state_dir : control->state_dir);
    to->checkpoint_dir = text_of(from->checkpoint_dir[0] ? from->checkpoint_dir : control->checkpoint_dir);
    to->version = text_of(control->version);
    to->pid = (int32_t)getpid();
    to->clients = control->session_count;
}

/* A job may have thousands: messages and their pointers in two blocks, which the caller frees. */
static bool fill_hosts(Trainerd__Status *to, Trainerd__Host **block, const struct control *control)
{
    size_t count = (size_t)control->host_count;
    *block = calloc(count + 1, sizeof **block);
    to->hosts = calloc(count + 1, sizeof *to->hosts);
    if (!*block || !to->hosts)
        return false;
    for (size_t i = 0; i < count; i++) {
        to->hosts[i] = &(*block)[i];
        trainerd__host__init(to->hosts[i]);
        to->hosts[i]->host = text_of(control->hosts[i].name);
        to->hosts[i]->ranks = control->hosts[i].ranks;
    }
    to->n_hosts = count;
    return true;
}

void answer_status(struct session *session, uint64_t id)
{
    struct err err = ERR_INIT;
    Trainerd__Host *hosts;
    if (refuse_without_snapshot(session, id))
        return;
    const struct snapshot *from = session->control->snapshot;
    Trainerd__Status status = TRAINERD__STATUS__INIT;
    Trainerd__Seconds seconds = TRAINERD__SECONDS__INIT;
    Trainerd__Policy policy = TRAINERD__POLICY__INIT;
    Trainerd__OptimizerSettings settings = TRAINERD__OPTIMIZER_SETTINGS__INIT;
    struct policy_texts texts;
    char *warnings[LIMIT_WARNINGS];

    fill_last(&status, &seconds, from);
    fill_settings(&settings, &from->settings);
    fill_policy(&policy, &texts, from);
    fill_place(&status, session->control, from);
    int count = from->warning_count < LIMIT_WARNINGS ? from->warning_count : LIMIT_WARNINGS;
    for (int i = 0; i < count; i++)
        warnings[i] = text_of(from->warnings[i]);
    status.state = text_of(engine_state_name(from->state));
    status.activity = text_of(from->activity);
    status.failure = text_of(from->failure);
    status.run = text_of(from->run);
    status.step = from->step;
    status.steps = from->run_steps;
    status.micro_batch = from->micro_batch;
    status.micro_batches = from->micro_batches;
    status.waiting = text_of(from->waiting);
    status.total_steps = from->total_steps;
    status.update = from->update;
    status.epoch = from->epoch;
    status.skipped = from->skipped;
    status.policy = &policy;
    status.optimizer = &settings;
    status.n_warnings = (size_t)count;
    status.warnings = warnings;

    Trainerd__Reply reply = TRAINERD__REPLY__INIT;
    reply.id = id;
    reply.result_case = TRAINERD__REPLY__RESULT_STATE;
    reply.state = &status;
    if (fill_hosts(&status, &hosts, session->control)) {
        reply_send(session, &reply);
    } else {
        err_set(&err, ERR_MEMORY, "no memory for the list of hosts");
        reply_error(session, id, &err);
    }
    free(hosts);
    free(status.hosts);
}

/* Rows and their pointers in two blocks: a large model on many ranks has some ten thousand of them. */
static void send_audit(struct session *session, uint64_t id, const struct audit *audit,
                       Trainerd__AuditRow *rows, Trainerd__AuditRow **pointers)
{
    for (int64_t i = 0; i < audit->count; i++) {
        const struct audit_row *from = &audit->rows[i];
        trainerd__audit_row__init(&rows[i]);
        rows[i].rank = from->rank;
        rows[i].tensor = text_of(from->tensor);
        rows[i].kind = text_of(from->kind);
        rows[i].dtype = text_of(from->dtype);
        rows[i].elements = from->elements;
        rows[i].bytes = from->bytes;
        pointers[i] = &rows[i];
    }
    Trainerd__Audit message = TRAINERD__AUDIT__INIT;
    message.n_rows = (size_t)audit->count;
    message.rows = pointers;
    message.bytes_total = audit->bytes_total;
    message.bytes_allocated = audit->bytes_allocated;
    Trainerd__Reply reply = TRAINERD__REPLY__INIT;
    reply.id = id;
    reply.result_case = TRAINERD__REPLY__RESULT_AUDIT;
    reply.audit = &message;
    reply_send(session, &reply);
}

void answer_audit(struct session *session, uint64_t id)
{
    const struct audit none = {0};
    const struct audit *audit = session->control->audit;
    if (refuse_without_snapshot(session, id))
        return;
    if (!audit)
        audit = &none; /* no model: nothing is allocated that an audit would list */
    size_t count = audit->count > 0 ? (size_t)audit->count : 1;
    Trainerd__AuditRow *rows = calloc(count, sizeof *rows);
    Trainerd__AuditRow **pointers = calloc(count, sizeof *pointers);
    struct err err = ERR_INIT;
    if (rows && pointers) {
        send_audit(session, id, audit, rows, pointers);
    } else {
        err_set(&err, ERR_MEMORY, "no memory for an audit of %lld rows", (long long)audit->count);
        reply_error(session, id, &err);
    }
    free(rows);
    free(pointers);
}

void fill_schedule(Trainerd__Schedule *to, const struct schedule *schedule, const char *run, int64_t step)
{
    to->run = text_of(run);
    to->step = step;
    to->kind = text_of(schedule_kind_name(schedule->kind));
    to->steps = schedule->steps;
    to->warmup_steps = schedule->warmup;
    to->decay_steps = schedule->decay_end;
    to->wsd_decay = schedule->wsd_decay;
    to->warmup_init = schedule->warmup_init;
    to->peak_lr = schedule->lr;
    to->min_lr = schedule->min_lr;
}

void answer_schedule(struct session *session, uint64_t id)
{
    if (refuse_without_snapshot(session, id))
        return;
    const struct snapshot *from = session->control->snapshot;
    if (from->schedule.steps <= 0) {
        struct err err = ERR_INIT;
        err_set(&err, ERR_STATE, "there is no run, and so no schedule");
        err_hint(&err, "give a recipe or flags to see one before it runs: trainctl schedule RECIPE.yaml");
        reply_error(session, id, &err);
        return;
    }
    Trainerd__Schedule schedule = TRAINERD__SCHEDULE__INIT;
    fill_schedule(&schedule, &from->schedule, from->run, from->step);
    Trainerd__Reply reply = TRAINERD__REPLY__INIT;
    reply.id = id;
    reply.result_case = TRAINERD__REPLY__RESULT_SCHEDULE;
    reply.schedule = &schedule;
    reply_send(session, &reply);
}
