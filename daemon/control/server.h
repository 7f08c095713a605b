/* The inside of control/: one struct control, owned by the control thread; nothing here is touched by
 * another. */
#pragma once

#include "control.h"
#include "frame.h"
#include "trainerd.pb-c.h"

#include <stdatomic.h>
#include <uv.h>

#define SERVER_LISTENERS    8
#define SERVER_INPUT_BYTES  (64 << 10)
#define SERVER_OUTPUT_BYTES (1 << 20)   /* waiting to be sent: above it a session's requests are not read */
#define SERVER_EVENT_BYTES  (256 << 10) /* …its events stay in its ring */
#define SERVER_PENDING      64          /* requests of one session that wait for the engine or a file */
#define SERVER_KEYS         256         /* idempotency keys remembered */
#define SERVER_STOP_MS      1000        /* clients have so long to take their last replies */

/* One packed frame, shared by all sessions that it goes to. */
struct out {
    int references;
    size_t bytes;
    unsigned char *data;
};

struct queued_event {
    struct out *out;
    bool is_step;
    int64_t step, skipped; /* of a step: what the history has already sent is not sent again */
};

struct history; /* a run's past steps, on their way from its file to one session (history.c) */

struct session {
    struct control *control;
    struct session *next, **link;
    uint64_t id;
    uv_pipe_t pipe;
    struct frame_reader reader;
    unsigned char *held; /* input that came with a request after which reading stopped */
    size_t held_bytes;
    size_t out_bytes; /* handed to libuv and not yet written */
    int pending;
    bool reading, closing, close_when_sent;

    bool subscribed, follow;
    struct queued_event *ring; /* [LIMIT_SUBSCRIBER_QUEUE] */
    unsigned ring_first, ring_count;
    int64_t dropped; /* not yet told */
    struct history *history;
    struct {
        bool next; /* the history has just ended: the next live event may be the last step that it told */
        int64_t step, skipped;
    } told;
};

/* Somebody who waits for the engine's reply to a ticket. */
struct waiter {
    struct waiter *next;
    uint64_t ticket, session, request;
    uint64_t deadline; /* loop time in ms; 0: none */
};

struct remembered {
    char key[LIMIT_NAME_BYTES];
    uint64_t fingerprint; /* of the command: the same key for another one is a mistake */
    uint64_t ticket;
    struct reply *reply; /* NULL: not answered yet */
};

struct listener {
    uv_pipe_t pipe;
    char path[LIMIT_SOCKET_PATH_BYTES + 1];
    bool open;
};

struct control {
    uv_loop_t loop;
    uv_thread_t thread;
    uv_async_t woken; /* by the engine's thread, through the mailbox, and by control_stop */
    uv_signal_t shutdown_signal;
    uv_timer_t deadlines, farewell;
    atomic_bool stop;
    bool stopping, shutdown_owed;
    struct mailbox *mailbox;
    struct listener listeners[SERVER_LISTENERS];
    int listener_count;
    struct session *sessions;
    int session_count, sessions_max;
    uint64_t next_session, next_ticket;
    struct waiter *waiters;
    struct remembered *remembered; /* [SERVER_KEYS], a ring */
    unsigned remembered_next;
    struct snapshot *snapshot; /* NULL until the engine has published */
    struct audit *audit;
    uint64_t farewell_until; /* loop time in ms */
    int file_work;           /* requests in libuv's thread pool */
    unsigned char input[SERVER_INPUT_BYTES];
    char state_dir[LIMIT_PATH_BYTES], checkpoint_dir[LIMIT_PATH_BYTES], version[32];
    struct control_host *hosts; /* [host_count] */
    int32_t host_count;
};

/* session.c: bytes in and out. Sessions are named by id wherever something may happen before the answer. */
void session_accept(struct control *control, struct listener *listener);
struct session *session_find(struct control *control, uint64_t id); /* NULL: it left */
void session_close(struct session *session);
void session_send(struct session *session,
                  struct out *out); /* takes one reference; NULL (no memory): closes */
void session_push(struct session *session, const struct queued_event *event); /* retains the frame */
void session_flush(struct session *session);    /* events, as far as the client reads */
void session_answered(struct session *session); /* one pending request less; reads on */
bool session_subscribe(struct session *session, bool follow, struct err *err) MUST_USE;
/* A step that a history whose last one is (step, skipped) has told. */
bool session_told(const struct queued_event *event, int64_t step, int64_t skipped);

struct out *out_from_reply(const Trainerd__Reply *reply); /* NULL: no memory */
struct out *out_from_event(const Trainerd__Event *event);
void out_release(struct out *out);

/* request.c: the table of requests. */
void request_handle(struct session *session, const Trainerd__Request *request);
void reply_error(struct session *session, uint64_t id, const struct err *err);
void reply_send(struct session *session, Trainerd__Reply *reply); /* fills in the status "ok" */
bool error_is_retryable(enum err_code code);

/* engine_side.c: what came through the mailbox, and who waits for it. */
void engine_side_drain(struct control *control);
void engine_side_refresh(
    struct control *control); /* the newest snapshot and audit, before an answer from them */
void engine_side_take_events(struct control *control); /* into the rings, and no further */
bool engine_side_submit(struct session *session, const Trainerd__Request *request, struct command *command,
                        struct err *err) MUST_USE;
void engine_side_shutdown(struct control *control); /* SIGUSR1 */
void engine_side_answer_all(struct control *control, const struct err *err);
void engine_side_done(struct control *control);

/* convert.c: protobuf to command.h and back. Strings in the results point into the sources. */
struct reply_parts { /* what a Trainerd__Reply built on the stack points to */
    Trainerd__Error status;
    Trainerd__Done done;
    Trainerd__Trained trained;
    Trainerd__Evaluated evaluated;
    Trainerd__Conversion conversion;
    Trainerd__OptimizerSettings settings_before, settings_after;
    Trainerd__ModelDone model_done;
    Trainerd__Relayout relayout;
    Trainerd__FilesDone files_done;
};
void convert_error(Trainerd__Error *to, const struct err *err);
void convert_reply(Trainerd__Reply *to, struct reply_parts *parts, const struct reply *reply);
struct out *convert_event(const struct event *event, const struct snapshot *snapshot);
bool convert_command(struct command *to, const Trainerd__Request *request, const struct snapshot *snapshot,
                     struct err *err) MUST_USE;

/* status.c: answers made from the last snapshot. */
void answer_status(struct session *session, uint64_t id);
void answer_audit(struct session *session, uint64_t id);
void answer_schedule(struct session *session, uint64_t id);
void fill_settings(Trainerd__OptimizerSettings *to, const struct optimizer_settings *from);
void fill_schedule(Trainerd__Schedule *to, const struct schedule *schedule, const char *run, int64_t step);

/* files.c: answers made from files, on libuv's thread pool. */
void answer_runs(struct session *session, uint64_t id);
void answer_checkpoints(struct session *session, uint64_t id);

/* history.c */
bool history_start(struct session *session, const char *run, int64_t since, struct err *err) MUST_USE;
void history_continue(struct history *history); /* the client has read: go on if there is room */
void history_abandon(struct history *history);
