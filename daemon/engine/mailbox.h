/* Where the two threads of rank 0 meet: a bounded queue of commands down, a bounded queue of events up, and
 * nothing else.
 *
 * The control thread (libuv) submits commands and takes replies, events, snapshots; the engine's thread takes
 * commands and posts the rest. Every accepted command has a reply slot reserved, so the engine never waits
 * for the control thread. Step events overwrite the oldest when the control thread is slow, and are counted.
 * Snapshots and audits replace the ones before them; ownership travels with the pointer (malloc, free). */
#pragma once

#include "event.h"

struct mailbox;

/* wake is called from the engine's thread whenever there is something to take; it must not block
 * (uv_async_send). */
struct mailbox *mailbox_new(void (*wake)(void *context), void *context);
void mailbox_free(struct mailbox *box);

/* Control thread. */
bool mailbox_submit(struct mailbox *box, const struct command *command,
                    struct err *err) MUST_USE; /* full: ERR_BUSY */
/* True: the command has not been taken up, and from now on it will not be done: the engine takes it as
 * `expired`. False: it was taken up. */
bool mailbox_expire(struct mailbox *box, uint64_t ticket);
bool mailbox_take_reply(struct mailbox *box, struct reply *reply);
bool mailbox_take_event(struct mailbox *box, struct event *event,
                        int64_t *dropped);                   /* dropped: since the last take */
struct snapshot *mailbox_take_snapshot(struct mailbox *box); /* NULL: nothing new */
struct audit *mailbox_take_audit(struct mailbox *box);

/* Engine's thread. next waits up to wait_s for a command. */
bool mailbox_next(struct mailbox *box, struct command *command, double wait_s);
/* The next command stays where it is unless it is fit to be taken now. *waits: there is one, of that kind. */
bool mailbox_next_fit(struct mailbox *box, bool (*fits)(const struct command *), struct command *command,
                      bool *waits, enum command_kind *kind);
void mailbox_reply(struct mailbox *box, const struct reply *reply);
void mailbox_post(struct mailbox *box, const struct event *event);
void mailbox_publish(struct mailbox *box, struct snapshot *snapshot);
void mailbox_publish_audit(struct mailbox *box, struct audit *audit);
