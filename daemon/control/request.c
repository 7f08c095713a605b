/* The table of requests: what each is called, and whether it is answered here or by the engine. */
#include "server.h"

#include "log.h"

#include <stdlib.h>
#include <string.h>

static void answer_subscribe(struct session *session, const Trainerd__Request *request);

static void on_status(struct session *session, const Trainerd__Request *request)
{
    answer_status(session, request->id);
}

static void on_audit(struct session *session, const Trainerd__Request *request)
{
    answer_audit(session, request->id);
}

static void on_schedule(struct session *session, const Trainerd__Request *request)
{
    answer_schedule(session, request->id);
}

static void on_runs(struct session *session, const Trainerd__Request *request)
{
    answer_runs(session, request->id);
}

static void on_checkpoints(struct session *session, const Trainerd__Request *request)
{
    answer_checkpoints(session, request->id);
}

static const struct request_row {
    Trainerd__Request__CommandCase which;
    void (*answer)(struct session *session, const Trainerd__Request *request); /* NULL: the engine's */
} rows[] = {
    {TRAINERD__REQUEST__COMMAND_STATUS, on_status},
    {TRAINERD__REQUEST__COMMAND_AUDIT, on_audit},
    {TRAINERD__REQUEST__COMMAND_SCHEDULE, on_schedule},
    {TRAINERD__REQUEST__COMMAND_RUNS, on_runs},
    {TRAINERD__REQUEST__COMMAND_CHECKPOINT_LIST, on_checkpoints},
    {TRAINERD__REQUEST__COMMAND_SUBSCRIBE, answer_subscribe},
    {TRAINERD__REQUEST__COMMAND_INIT, NULL},
    {TRAINERD__REQUEST__COMMAND_LOAD, NULL},
    {TRAINERD__REQUEST__COMMAND_EXPORT, NULL},
    {TRAINERD__REQUEST__COMMAND_TRAIN, NULL},
    {TRAINERD__REQUEST__COMMAND_EVALUATE, NULL},
    {TRAINERD__REQUEST__COMMAND_PAUSE, NULL},
    {TRAINERD__REQUEST__COMMAND_RESUME, NULL},
    {TRAINERD__REQUEST__COMMAND_STOP, NULL},
    {TRAINERD__REQUEST__COMMAND_SET_OPTIMIZER, NULL},
    {TRAINERD__REQUEST__COMMAND_SET_SCHEDULE, NULL},
    {TRAINERD__REQUEST__COMMAND_SET_LAYOUT, NULL},
    {TRAINERD__REQUEST__COMMAND_CHECKPOINT_SAVE, NULL},
    {TRAINERD__REQUEST__COMMAND_CHECKPOINT_LOAD, NULL},
    {TRAINERD__REQUEST__COMMAND_CHECKPOINT_VERIFY, NULL},
    {TRAINERD__REQUEST__COMMAND_CHECKPOINT_DELETE, NULL},
    {TRAINERD__REQUEST__COMMAND_SHUTDOWN, NULL},
};

bool error_is_retryable(enum err_code code)
{
    return code == ERR_BUSY || code == ERR_STATE || code == ERR_TIMEOUT;
}

void reply_send(struct session *session, Trainerd__Reply *reply)
{
    Trainerd__Error ok = TRAINERD__ERROR__INIT;
    struct err none = ERR_INIT;
    convert_error(&ok, &none);
    reply->status = &ok;
    session_send(session, out_from_reply(reply));
}

void reply_error(struct session *session, uint64_t id, const struct err *err)
{
    Trainerd__Reply reply = TRAINERD__REPLY__INIT;
    Trainerd__Error status = TRAINERD__ERROR__INIT;
    convert_error(&status, err);
    reply.id = id;
    reply.status = &status;
    session_send(session, out_from_reply(&reply));
}

static void send_end(struct session *session, const char *text)
{
    Trainerd__Event event = TRAINERD__EVENT__INIT;
    Trainerd__EndEvent end = TRAINERD__END_EVENT__INIT;
    end.text = (char *)(uintptr_t)text;
    event.body_case = TRAINERD__EVENT__BODY_END;
    event.end = &end;
    session_send(session, out_from_event(&event));
}

static void answer_subscribe(struct session *session, const Trainerd__Request *request)
{
    const Trainerd__SubscribeRequest *wanted = request->subscribe;
    const struct snapshot *snapshot = session->control->snapshot;
    const char *present = snapshot ? snapshot->run : "";
    const char *run = wanted->run[0] ? wanted->run : present;
    bool follow = wanted->follow && (!wanted->run[0] || strcmp(run, present) == 0);

    struct err err = ERR_INIT;
    bool subscribed = session_subscribe(session, follow, &err);
    if (subscribed && wanted->history && run[0] && !history_start(session, run, wanted->since, &err))
        subscribed = err.code == ERR_NOT_FOUND && follow; /* a run that has only just begun has no past */
    if (!subscribed) {
        session->subscribed = false;
        reply_error(session, request->id, &err);
        return;
    }
    Trainerd__Reply reply = TRAINERD__REPLY__INIT;
    Trainerd__Subscribed to = TRAINERD__SUBSCRIBED__INIT;
    to.run = (char *)(uintptr_t)run;
    reply.id = request->id;
    reply.result_case = TRAINERD__REPLY__RESULT_SUBSCRIBED;
    reply.subscribed = &to;
    reply_send(session, &reply);
    if (!session->history && !follow) {
        session->subscribed = false;
        send_end(session, "nothing to show");
    }
}

static const struct request_row *find_row(Trainerd__Request__CommandCase which)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].which == which)
            return &rows[i];
    return NULL;
}

/* set-schedule --dry-run: the merged schedule is the answer. */
static void answer_merged(struct session *session, uint64_t id, const struct command *command)
{
    const struct snapshot *snapshot = session->control->snapshot;
    Trainerd__Schedule schedule = TRAINERD__SCHEDULE__INIT;
    fill_schedule(&schedule, &command->u.set_schedule.schedule, snapshot->run, snapshot->step);
    Trainerd__Reply reply = TRAINERD__REPLY__INIT;
    reply.id = id;
    reply.result_case = TRAINERD__REPLY__RESULT_SCHEDULE;
    reply.schedule = &schedule;
    reply_send(session, &reply);
}

static void hand_to_engine(struct session *session, const Trainerd__Request *request)
{
    struct control *control = session->control;
    struct err err = ERR_INIT;
    struct command *command = calloc(1, sizeof *command);
    if (!command)
        err_set(&err, ERR_MEMORY, "no memory for a command");
    else if (convert_command(command, request, control->snapshot, &err)) {
        if (command->kind == COMMAND_SET_SCHEDULE && command->dry_run)
            answer_merged(session, request->id, command);
        else
            (void)!engine_side_submit(session, request, command, &err);
    }
    free(command);
    if (err.code != ERR_OK)
        reply_error(session, request->id, &err);
}

void request_handle(struct session *session, const Trainerd__Request *request)
{
    const struct request_row *row = find_row(request->command_case);
    engine_side_refresh(session->control); /* what the engine has published by now is what is answered from */
    if (!row) {
        struct err err = ERR_INIT;
        err_set(&err, ERR_UNSUPPORTED, "this daemon does not know that command");
        err_why(&err, "the client is newer, or the request has none");
        err_hint(&err, "compare trainctl --version with the daemon's %s", session->control->version);
        reply_error(session, request->id, &err);
    } else if (row->answer) {
        row->answer(session, request);
    } else if (session->control->stopping) {
        struct err err = ERR_INIT;
        err_set(&err, ERR_STATE, "the daemon is ending");
        reply_error(session, request->id, &err);
    } else {
        hand_to_engine(session, request);
    }
}
