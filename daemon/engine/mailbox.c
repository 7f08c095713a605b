/* One mutex, two rings, two slots. Nothing is done under the lock but copying, so neither thread ever waits
 * for the other's work. A command that was accepted holds one of LIMIT_COMMAND_QUEUE places until its reply
 * has been taken: that is the reserved reply slot. */
#include "mailbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct mailbox {
    void (*wake)(void *context);
    void *context;
    pthread_mutex_t lock;
    pthread_cond_t submitted;

    struct command commands[LIMIT_COMMAND_QUEUE];
    unsigned command_first, command_count;
    unsigned accepted; /* submitted, and the reply not yet taken */

    struct reply replies[LIMIT_COMMAND_QUEUE];
    unsigned reply_first, reply_count;

    struct event events[LIMIT_EVENT_QUEUE];
    unsigned event_first, event_count;
    int64_t dropped; /* since the last event was taken */

    struct snapshot *snapshot;
    struct audit *audit;
};

struct mailbox *mailbox_new(void (*wake)(void *context), void *context)
{
    struct mailbox *box = calloc(1, sizeof *box);
    if (!box)
        return NULL;
    box->wake = wake;
    box->context = context;
    pthread_mutex_init(&box->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&box->submitted, &attributes);
    pthread_condattr_destroy(&attributes);
    return box;
}

void mailbox_free(struct mailbox *box)
{
    if (!box)
        return;
    free(box->snapshot);
    free(box->audit);
    pthread_cond_destroy(&box->submitted);
    pthread_mutex_destroy(&box->lock);
    free(box);
}

bool mailbox_submit(struct mailbox *box, const struct command *command, struct err *err)
{
    pthread_mutex_lock(&box->lock);
    bool room = box->accepted < LIMIT_COMMAND_QUEUE;
    if (room) {
        box->commands[(box->command_first + box->command_count++) % LIMIT_COMMAND_QUEUE] = *command;
        box->accepted++;
        pthread_cond_signal(&box->submitted);
    }
    pthread_mutex_unlock(&box->lock);
    if (room)
        return true;
    err_set(err, ERR_BUSY, "%d commands are waiting already", LIMIT_COMMAND_QUEUE);
    return err_hint(err, "try again when some are done");
}

bool mailbox_expire(struct mailbox *box, uint64_t ticket)
{
    bool waits = false;
    pthread_mutex_lock(&box->lock);
    for (unsigned i = 0; i < box->command_count && !waits; i++) {
        struct command *command = &box->commands[(box->command_first + i) % LIMIT_COMMAND_QUEUE];
        waits = command->ticket == ticket;
        command->expired |= waits;
    }
    pthread_mutex_unlock(&box->lock);
    return waits;
}

bool mailbox_take_reply(struct mailbox *box, struct reply *reply)
{
    pthread_mutex_lock(&box->lock);
    bool there = box->reply_count > 0;
    if (there) {
        *reply = box->replies[box->reply_first];
        box->reply_first = (box->reply_first + 1) % LIMIT_COMMAND_QUEUE;
        box->reply_count--;
        box->accepted--;
    }
    pthread_mutex_unlock(&box->lock);
    return there;
}

bool mailbox_take_event(struct mailbox *box, struct event *event, int64_t *dropped)
{
    pthread_mutex_lock(&box->lock);
    bool there = box->event_count > 0;
    if (there) {
        *event = box->events[box->event_first];
        *dropped = box->dropped;
        box->dropped = 0;
        box->event_first = (box->event_first + 1) % LIMIT_EVENT_QUEUE;
        box->event_count--;
    }
    pthread_mutex_unlock(&box->lock);
    return there;
}

struct snapshot *mailbox_take_snapshot(struct mailbox *box)
{
    pthread_mutex_lock(&box->lock);
    struct snapshot *snapshot = box->snapshot;
    box->snapshot = NULL;
    pthread_mutex_unlock(&box->lock);
    return snapshot;
}

struct audit *mailbox_take_audit(struct mailbox *box)
{
    pthread_mutex_lock(&box->lock);
    struct audit *audit = box->audit;
    box->audit = NULL;
    pthread_mutex_unlock(&box->lock);
    return audit;
}

static struct timespec deadline_in(double seconds)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    time_t whole = (time_t)seconds;
    t.tv_sec += whole;
    t.tv_nsec += (long)((seconds - (double)whole) * 1e9);
    if (t.tv_nsec >= 1000000000l) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000l;
    }
    return t;
}

/* Under the lock, with at least one there. */
static void take_first(struct mailbox *box, struct command *command)
{
    *command = box->commands[box->command_first];
    box->command_first = (box->command_first + 1) % LIMIT_COMMAND_QUEUE;
    box->command_count--;
}

bool mailbox_next(struct mailbox *box, struct command *command, double wait_s)
{
    struct timespec deadline = deadline_in(wait_s > 0 ? wait_s : 0);
    pthread_mutex_lock(&box->lock);
    while (box->command_count == 0 && wait_s > 0)
        if (pthread_cond_timedwait(&box->submitted, &box->lock, &deadline) == ETIMEDOUT)
            break;
    bool there = box->command_count > 0;
    if (there)
        take_first(box, command);
    pthread_mutex_unlock(&box->lock);
    return there;
}

bool mailbox_next_fit(struct mailbox *box, bool (*fits)(const struct command *), struct command *command,
                      bool *waits, enum command_kind *kind)
{
    pthread_mutex_lock(&box->lock);
    const struct command *first = &box->commands[box->command_first];
    bool there = box->command_count > 0, fit = there && fits(first);
    if (there)
        *kind = first->kind;
    if (fit)
        take_first(box, command);
    pthread_mutex_unlock(&box->lock);
    *waits = there && !fit;
    return fit;
}

void mailbox_reply(struct mailbox *box, const struct reply *reply)
{
    pthread_mutex_lock(&box->lock);
    /* One reply a command taken: more would be a fault of the engine. */
    INVARIANT(box->reply_count + box->command_count < box->accepted);
    box->replies[(box->reply_first + box->reply_count++) % LIMIT_COMMAND_QUEUE] = *reply;
    pthread_mutex_unlock(&box->lock);
    box->wake(box->context);
}

void mailbox_post(struct mailbox *box, const struct event *event)
{
    pthread_mutex_lock(&box->lock);
    if (box->event_count == LIMIT_EVENT_QUEUE) {
        box->event_first = (box->event_first + 1) % LIMIT_EVENT_QUEUE;
        box->event_count--;
        box->dropped++;
    }
    box->events[(box->event_first + box->event_count++) % LIMIT_EVENT_QUEUE] = *event;
    pthread_mutex_unlock(&box->lock);
    box->wake(box->context);
}

void mailbox_publish(struct mailbox *box, struct snapshot *snapshot)
{
    pthread_mutex_lock(&box->lock);
    struct snapshot *before = box->snapshot;
    box->snapshot = snapshot;
    pthread_mutex_unlock(&box->lock);
    free(before);
    box->wake(box->context);
}

void mailbox_publish_audit(struct mailbox *box, struct audit *audit)
{
    pthread_mutex_lock(&box->lock);
    struct audit *before = box->audit;
    box->audit = audit;
    pthread_mutex_unlock(&box->lock);
    free(before);
    box->wake(box->context);
}
