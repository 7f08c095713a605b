/* The state machine: commands one after another, steps in between. */
#include "engine.h"

#include "checkpoint_list.h"
#include "clock.h"
#include "file.h"
#include "handlers.h"
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define ENGINE_WAIT_S    3600.0
#define ENGINE_PUBLISH_S 0.25 /* between snapshots within a step */

static void say(struct engine *engine, enum event_kind kind, const char *text)
{
    if (!engine->mailbox)
        return;
    struct event event = {.kind = kind, .state = engine->state};
    if (engine->has_run) {
        event.step.step = engine->run.k;
        snprintf(event.step.run, sizeof event.step.run, "%s", engine->run.id);
    }
    snprintf(event.text, sizeof event.text, "%.*s", (int)sizeof event.text - 1, text);
    mailbox_post(engine->mailbox, &event);
}

void engine_warn(struct engine *engine, const char *format, ...)
{
    char text[2 * ERR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (engine->comm->rank == 0)
        log_warning("engine", "%s", text);
    say(engine, EVENT_WARNING, text);
}

void engine_note(struct engine *engine, const char *format, ...)
{
    char text[2 * ERR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_info("engine", "%s", text);
    say(engine, EVENT_STATE, text);
}

void engine_say_state(struct engine *engine, const char *why)
{
    engine_publish(engine);
    say(engine, EVENT_STATE, why);
}

void engine_activity(struct engine *engine, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(engine->activity, sizeof engine->activity, format, args);
    va_end(args);
    engine_publish(engine);
}

/* Two daemons that save to one folder would replace and retire each other's checkpoints. Readers lock
 * nothing. */
static bool lock_checkpoints(struct engine *engine, struct err *err)
{
    struct err why = ERR_INIT;
    char line[3 * ERR_TEXT_BYTES + 8];
    if (file_lock(&engine->checkpoint_lock, engine->options.checkpoint_dir, ".lock", "checkpoint folder",
                  &why))
        return true;
    if (why.code == ERR_UNSUPPORTED) {
        log_warning("engine", "%s; let no other daemon save there", err_line(&why, line, sizeof line));
        return true;
    }
    *err = why;
    return err->code == ERR_STATE &&
           err_hint(err, "end it (trainctl shutdown), or give this one --checkpoint-dir DIR");
}

bool engine_init(struct engine *engine, const struct engine_options *options, struct comm *comm,
                 struct device *device, struct mailbox *mailbox, struct err *err)
{
    *engine = (struct engine){.options = *options, .comm = comm, .device = device, .mailbox = mailbox};
    engine->settings = optimizer_settings_default();
    engine->state = STATE_EMPTY;
    if (!groups_init(&engine->groups, comm, &options->layout, err)) /* first: all ranks meet in it */
        return false;
    if (comm->rank == 0) {
        char path[LIMIT_PATH_BYTES];
        if (!file_join(path, sizeof path, options->state_dir, "journal.jsonl", err) ||
            !file_make_folder(options->checkpoint_dir, 0700, err) || !lock_checkpoints(engine, err))
            return false;
        engine->journal = fopen(path, "ae");
        if (!engine->journal)
            return err_errno(err, "cannot open the journal %s", path);
        runlog_settle(options->state_dir);
    }
    engine->starting = true; /* a state that lasts is shown from the loop on, not before */
    engine_publish(engine);
    return true;
}

bool engine_check_folder(struct engine *engine, struct err *err)
{
    const char *folder = engine->options.checkpoint_dir;
    char path[LIMIT_PATH_BYTES], *text = NULL;
    uint64_t token = 0;
    size_t bytes = 0;
    bool named = file_join(path, sizeof path, folder, ".seen", err);
    if (engine->comm->rank == 0 && named && getrandom(&token, sizeof token, 0) == sizeof token)
        err_keeps(file_replace(path, &token, sizeof token, err));
    if (!comm_agree(engine->comm, err))
        return false;
    comm_broadcast(engine->comm, &token, sizeof token);
    struct err unread = ERR_INIT;
    if (!file_slurp(path, sizeof token, &text, &bytes, &unread) || bytes != sizeof token ||
        memcmp(text, &token, sizeof token) != 0) {
        err_set(err, ERR_INVALID, "the checkpoint folder %s of host %s is not rank 0's", folder,
                engine->comm->host);
        err_hint(err, "name one that all hosts share with --checkpoint-dir");
    }
    free(text);
    bool shared = comm_agree(engine->comm, err);
    if (engine->comm->rank == 0)
        unlink(path);
    return shared;
}

void engine_done(struct engine *engine)
{
    if (engine->has_run)
        run_done(&engine->run);
    if (engine->has_body)
        body_done(&engine->body);
    free(engine->measures);
    free(engine->measures_ranks);
    if (engine->journal)
        fclose(engine->journal);
    file_unlock(&engine->checkpoint_lock);
    groups_done(&engine->groups);
    *engine = (struct engine){0};
}

bool engine_execute(struct engine *engine, struct command *command, struct command_result *result,
                    struct err *err)
{
    if (!command_legal(command->kind, engine->state, err))
        return false;
    bool done = handlers[command->kind](engine, command, result, err);
    engine_publish_audit(engine); /* before the answer: who asks next sees what is allocated now */
    return done;
}

/* Who asked is told; the terminal that mpirun runs in hears only of what is worse than a refusal. */
static void log_refusal(const struct command *command, const struct err *err)
{
    char text[3 * ERR_TEXT_BYTES + 8];
    bool only_theirs = err->code <= ERR_MEMORY || err->code == ERR_TIMEOUT;
    log_line(only_theirs ? LOG_INFO : LOG_ERROR, "engine", "%s was refused: %s code=%s",
             command_name(command->kind), err_line(err, text, sizeof text), err_code_name(err->code));
}

/* Applied, agreed, journalled with fsync, then answered. */
static void execute_and_answer(struct engine *engine, struct command *command)
{
    struct reply reply = {.ticket = command->ticket, .kind = command->kind, .err = ERR_INIT};
    struct err journal = ERR_INIT;
    if (engine->comm->rank == 0 && !journal_write(engine, command, NULL, &journal))
        log_err("engine", &journal);
    journal = (struct err)ERR_INIT;
    err_keeps(engine_execute(engine, command, &reply.result, &reply.err));
    engine_publish(engine);
    if (engine->comm->rank != 0)
        return;
    if (!journal_write(engine, command, &reply.err, &journal)) {
        log_err("engine", &journal);
        if (reply.err.code == ERR_OK)
            reply.err = journal;
    }
    if (reply.err.code != ERR_OK)
        log_refusal(command, &reply.err);
    if (engine->mailbox)
        mailbox_reply(engine->mailbox, &reply);
}

/* Nobody waits for it any more, and it was to be done by then or not at all: the journal says that it was
 * not. */
static void answer_expired(struct engine *engine, const struct command *command)
{
    struct reply reply = {.ticket = command->ticket, .kind = command->kind, .err = ERR_INIT};
    struct err journal = ERR_INIT;
    err_set(&reply.err, ERR_TIMEOUT, "expired: %s was not taken up before its deadline, and was not done",
            command_name(command->kind));
    if (!journal_write(engine, command, &reply.err, &journal))
        log_err("engine", &journal);
    log_refusal(command, &reply.err);
    mailbox_reply(engine->mailbox, &reply);
}

static bool take_command(struct engine *engine, struct command *command, double wait_s)
{
    while (mailbox_next(engine->mailbox, command, wait_s)) {
        if (!command->expired)
            return true;
        answer_expired(engine, command);
    }
    return false;
}

/* The next command of rank 0 on every rank; false: none, make a step. At rest every rank sleeps until there
 * is one. */
static bool next_command(struct engine *engine, struct command *command)
{
    bool rests = engine->state != STATE_RUNNING;
    int32_t there = 0;
    if (engine->comm->rank == 0)
        do
            there = take_command(engine, command, rests ? ENGINE_WAIT_S : 0);
        while (rests && !there);
    if (rests)
        comm_broadcast_idle(engine->comm, &there, sizeof there);
    else
        comm_broadcast(engine->comm, &there, sizeof there);
    if (there)
        comm_broadcast(engine->comm, command, sizeof *command);
    return there;
}

static bool fits_amid_step(const struct command *command)
{
    return command->expired || command_when(command->kind) == AMID_STEP;
}

/* With micro-batches in flight over several stages there is no moment in a step at which all ranks are
 * between two. */
static bool fits_never(const struct command *command)
{
    return command->expired;
}

/* What is at the front of the mailbox: done soon if it may be, else shown as waiting for the end of the step.
 */
static bool look_for_command(struct engine *engine)
{
    struct progress *p = &engine->progress;
    bool (*fits)(const struct command *) = engine->groups.layout.p > 1 ? fits_never : fits_amid_step;
    enum command_kind kind;
    bool waits;
    while (mailbox_next_fit(engine->mailbox, fits, &p->taken, &waits, &kind)) {
        if (!p->taken.expired)
            return true;
        answer_expired(engine, &p->taken);
    }
    if (waits && !p->waiting[0]) {
        snprintf(p->waiting, sizeof p->waiting, "%s", command_name(kind));
        log_info("engine", "%s waits for the end of the step, micro-batches=%lld of=%lld", p->waiting,
                 (long long)p->micro_batch, (long long)p->micro_batches);
        engine_publish(engine);
    }
    return false;
}

void engine_before_micro_batch(struct engine *engine, int64_t i, int64_t n)
{
    engine->progress.micro_batch = i;
    engine->progress.micro_batches = n;
    if (engine->mailbox && clock_s() - engine->progress.published_s > ENGINE_PUBLISH_S) {
        engine->progress.published_s = clock_s();
        engine_publish(engine);
    }
    if (i + 1 == n) /* the last one's end is nearly the step's */
        return;
    bool found = engine->mailbox && look_for_command(engine);
    if (engine->groups.layout.p == 1)
        comm_notice_post(engine->comm, found);
}

void engine_after_micro_batch(struct engine *engine, int64_t i, int64_t n)
{
    if (i + 1 >= n || engine->groups.layout.p > 1 || !comm_notice_take(engine->comm))
        return;
    struct command command = engine->progress.taken;
    double communicated = engine->comm->wire->seconds; /* of the step, which the command is not */
    comm_broadcast(engine->comm, &command, sizeof command);
    execute_and_answer(engine, &command);
    engine->comm->wire->seconds = communicated;
}

void engine_ready(struct engine *engine)
{
    engine_publish_audit(engine);
    engine->starting = false;
    engine_say_state(engine, "ready");
}

int engine_loop(struct engine *engine, bool exit_when_idle)
{
    struct command command;
    while (engine->state != STATE_STOPPING) {
        bool going = engine->state == STATE_RUNNING || engine->state == STATE_PAUSED;
        if (exit_when_idle && (!going || engine->unsaved))
            break;
        if (next_command(engine, &command))
            execute_and_answer(engine, &command);
        else {
            run_advance(engine);
            engine->progress = (struct progress){.published_s = clock_s()};
            engine_publish(engine);
        }
    }
    return exit_when_idle && (engine->ended_short || engine->unsaved) ? 5 : 0;
}
