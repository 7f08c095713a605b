/* What goes into the mailbox and what comes out of it: tickets, those who wait for them, idempotency keys,
 * deadlines.
 *
 * A client that leaves takes its waiter's meaning with it, and nothing else: the engine's reply is remembered
 * under the key, or dropped. */
#include "server.h"

#include "log.h"

#include <stdlib.h>
#include <string.h>

/* FNV-1a over the packed request without what may differ between two tries of the same. */
static uint64_t fingerprint(const Trainerd__Request *request)
{
    Trainerd__Request bare = *request;
    bare.id = 0;
    bare.deadline_ms = 0;
    size_t bytes = trainerd__request__get_packed_size(&bare);
    uint8_t *packed = malloc(bytes ? bytes : 1);
    uint64_t hash = 0xcbf29ce484222325ull;
    if (!packed)
        return hash;
    trainerd__request__pack(&bare, packed);
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ packed[i]) * 0x100000001b3ull;
    free(packed);
    return hash;
}

static struct remembered *find_key(struct control *control, const char *key)
{
    for (int i = 0; key[0] && i < SERVER_KEYS; i++)
        if (strcmp(control->remembered[i].key, key) == 0)
            return &control->remembered[i];
    return NULL;
}

static void forget(struct remembered *row)
{
    free(row->reply);
    *row = (struct remembered){0};
}

static void remember_key(struct control *control, const char *key, uint64_t print, uint64_t ticket)
{
    if (!key[0])
        return;
    struct remembered *row = &control->remembered[control->remembered_next++ % SERVER_KEYS];
    forget(row);
    strncpy(row->key, key, sizeof row->key - 1);
    row->fingerprint = print;
    row->ticket = ticket;
}

static void send_reply(struct session *session, uint64_t request, const struct reply *reply)
{
    Trainerd__Reply message = TRAINERD__REPLY__INIT;
    struct reply_parts parts;
    message.id = request;
    convert_reply(&message, &parts, reply);
    session_send(session, out_from_reply(&message));
}

static void when_deadline(uv_timer_t *timer);

static void set_timer(struct control *control)
{
    uint64_t first = 0;
    for (struct waiter *w = control->waiters; w; w = w->next)
        if (w->deadline && (!first || w->deadline < first))
            first = w->deadline;
    uint64_t now = uv_now(&control->loop);
    if (first)
        uv_timer_start(&control->deadlines, when_deadline, first > now ? first - now : 1, 0);
    else
        uv_timer_stop(&control->deadlines);
}

static bool is_awaited_longer(const struct control *control, uint64_t ticket, uint64_t now)
{
    for (const struct waiter *w = control->waiters; w; w = w->next)
        if (w->ticket == ticket && (!w->deadline || w->deadline > now))
            return true;
    return false;
}

/* What has not been taken up is withdrawn, unless somebody else (the same key) waits for it longer; what has
 * is finished. */
static void end_by_deadline(struct control *control, uint64_t ticket, uint64_t now, struct err *err)
{
    if (is_awaited_longer(control, ticket, now) || !mailbox_expire(control->mailbox, ticket)) {
        err_set(err, ERR_TIMEOUT, "the deadline passed before the command was done");
        err_why(err, "it was taken up and goes on");
        err_hint(err, "ask again with the same idempotency key, or look at trainctl status");
        return;
    }
    for (int i = 0; i < SERVER_KEYS; i++)
        if (control->remembered[i].key[0] && control->remembered[i].ticket == ticket)
            forget(&control->remembered[i]); /* it was not done; the same key may try again */
    err_set(err, ERR_TIMEOUT, "the deadline passed before the command was taken up, and it was withdrawn");
    err_why(err, "commands are taken up when a step, or the command before, has ended");
    err_hint(err, "nothing was changed: ask again with more time");
}

static void when_deadline(uv_timer_t *timer)
{
    struct control *control = timer->data;
    uint64_t now = uv_now(&control->loop);
    for (struct waiter **at = &control->waiters; *at;) {
        struct waiter *waiter = *at;
        if (!waiter->deadline || waiter->deadline > now) {
            at = &waiter->next;
            continue;
        }
        *at = waiter->next;
        struct err err = ERR_INIT;
        end_by_deadline(control, waiter->ticket, now, &err);
        struct session *session = session_find(control, waiter->session);
        if (session) {
            reply_error(session, waiter->request, &err);
            session_answered(session);
        }
        free(waiter);
    }
    set_timer(control);
}

static bool add_waiter(struct session *session, const Trainerd__Request *request, uint64_t ticket,
                       struct err *err)
{
    struct control *control = session->control;
    struct waiter *waiter = calloc(1, sizeof *waiter);
    if (!waiter)
        return err_set(err, ERR_MEMORY, "no memory to wait for a command");
    *waiter =
        (struct waiter){.next = control->waiters,
                        .ticket = ticket,
                        .session = session->id,
                        .request = request->id,
                        .deadline = request->deadline_ms ? uv_now(&control->loop) + request->deadline_ms : 0};
    control->waiters = waiter;
    session->pending++;
    set_timer(control);
    return true;
}

/* The key was seen before: the same command's reply is given again, or waited for together. */
static bool join(struct session *session, const Trainerd__Request *request, const struct remembered *row,
                 uint64_t print, struct err *err)
{
    if (row->fingerprint != print) {
        err_set(err, ERR_INVALID, "the idempotency key \"%s\" was used for another command", row->key);
        return err_hint(err, "choose a new key for each command");
    }
    if (!row->reply)
        return add_waiter(session, request, row->ticket, err);
    send_reply(session, request->id, row->reply);
    return true;
}

bool engine_side_submit(struct session *session, const Trainerd__Request *request, struct command *command,
                        struct err *err)
{
    struct control *control = session->control;
    const char *key = request->idempotency_key;
    if (strlen(key) >= LIMIT_NAME_BYTES)
        return err_set(err, ERR_INVALID, "an idempotency key has at most %d bytes", LIMIT_NAME_BYTES - 1);
    uint64_t print = key[0] ? fingerprint(request) : 0;
    const struct remembered *row = find_key(control, key);
    if (row)
        return join(session, request, row, print, err);
    command->ticket = ++control->next_ticket;
    if (!add_waiter(session, request, command->ticket, err))
        return false;
    if (mailbox_submit(control->mailbox, command, err)) {
        remember_key(control, key, print, command->ticket);
        return true;
    }
    struct waiter *waiter = control->waiters;
    control->waiters = waiter->next;
    session->pending--;
    free(waiter);
    return false;
}

void engine_side_shutdown(struct control *control)
{
    struct command *command = calloc(1, sizeof *command);
    struct err err = ERR_INIT;
    control->shutdown_owed = true; /* a full mailbox: tried again when a reply has made room */
    if (!command)
        return;
    command->kind = COMMAND_SHUTDOWN;
    command->ticket = ++control->next_ticket;
    if (mailbox_submit(control->mailbox, command, &err)) {
        control->shutdown_owed = false;
        log_info("control", "SIGUSR1: a shutdown is queued; the step under way is finished first");
    }
    free(command);
}

static void route(struct control *control, const struct reply *reply)
{
    for (int i = 0; i < SERVER_KEYS; i++) {
        struct remembered *row = &control->remembered[i];
        if (!row->key[0] || row->ticket != reply->ticket || row->reply)
            continue;
        struct reply *kept = error_is_retryable(reply->err.code) ? NULL : malloc(sizeof *kept);
        if (kept) {
            *kept = *reply;
            row->reply = kept;
        } else {
            forget(row); /* it was not done; the same key may try again */
        }
    }
    for (struct waiter **at = &control->waiters; *at;) {
        struct waiter *waiter = *at;
        if (waiter->ticket != reply->ticket) {
            at = &waiter->next;
            continue;
        }
        *at = waiter->next;
        struct session *session = session_find(control, waiter->session);
        if (session) {
            send_reply(session, waiter->request, reply);
            session_answered(session);
        }
        free(waiter);
    }
    set_timer(control);
}

void engine_side_refresh(struct control *control)
{
    struct snapshot *snapshot = mailbox_take_snapshot(control->mailbox);
    struct audit *audit = mailbox_take_audit(control->mailbox);
    if (snapshot) {
        free(control->snapshot);
        control->snapshot = snapshot;
    }
    if (audit) {
        free(control->audit);
        control->audit = audit;
    }
}

static void fan_out(struct control *control, const struct event *event, int64_t dropped)
{
    struct queued_event queued = {
        .is_step = event->kind == EVENT_STEP, .step = event->step.step, .skipped = event->step.skipped};
    for (struct session *s = control->sessions; s; s = s->next) {
        if (s->closing || !s->subscribed || !s->follow)
            continue;
        s->dropped += dropped;
        if (!queued.out)
            queued.out = convert_event(event, control->snapshot);
        if (!queued.out)
            return; /* no memory: this event is lost */
        session_push(s, &queued);
    }
    out_release(queued.out);
}

void engine_side_take_events(struct control *control)
{
    struct event event;
    int64_t dropped;
    for (int i = 0; i < LIMIT_EVENT_QUEUE && mailbox_take_event(control->mailbox, &event, &dropped); i++)
        fan_out(control, &event, dropped);
}

void engine_side_drain(struct control *control)
{
    struct reply *reply = malloc(sizeof *reply);
    if (!reply)
        return; /* the next wake tries again */
    while (mailbox_take_reply(control->mailbox, reply)) {
        engine_side_refresh(
            control); /* what the engine published before it replied is seen by who has the reply */
        route(control, reply);
    }
    free(reply);
    engine_side_refresh(control);
    engine_side_take_events(control);
    for (struct session *s = control->sessions, *next; s; s = next) {
        next = s->next;
        session_flush(s);
    }
    if (control->shutdown_owed)
        engine_side_shutdown(control);
}

void engine_side_answer_all(struct control *control, const struct err *err)
{
    while (control->waiters) {
        struct waiter *waiter = control->waiters;
        control->waiters = waiter->next;
        struct session *session = session_find(control, waiter->session);
        if (session) {
            session->pending--;
            reply_error(session, waiter->request, err);
        }
        free(waiter);
    }
}

void engine_side_done(struct control *control)
{
    for (int i = 0; control->remembered && i < SERVER_KEYS; i++)
        free(control->remembered[i].reply);
    free(control->remembered);
    free(control->snapshot);
    free(control->audit);
}
