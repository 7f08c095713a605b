/* The past steps of a run, from its JSONL to one session, a piece at a time and only as fast as the client
 * reads. Live events wait in the session's ring meanwhile; those that the file already told are left out. */
#include "server.h"

#include "records.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 64 << 10 };

struct history {
    uv_work_t work;
    struct control *control;
    struct session *session; /* NULL: it left, or asked for something else */
    int fd;
    bool busy; /* the worker has it */
    bool ended;
    char *text; /* read and not yet sent: the rest of a line */
    size_t count, capacity;
    size_t fresh; /* bytes that the worker added */
    int64_t since;
    int64_t step, skipped; /* of the last one sent; -1: none */
};

static void history_free(struct history *history)
{
    close(history->fd);
    free(history->text);
    free(history);
}

void history_abandon(struct history *history)
{
    history->session = NULL;
    if (!history->busy)
        history_free(history);
}

static void in_worker(uv_work_t *work)
{
    struct history *history = work->data;
    ssize_t count = read(history->fd, history->text + history->count, PIECE);
    history->fresh = count > 0 ? (size_t)count : 0;
    history->ended = count <= 0;
}

static void send_line(struct history *history, const char *line, size_t bytes)
{
    Trainerd__Step *step = records_step(line, bytes);
    if (!step)
        return;
    if (step->step >= history->since) {
        Trainerd__Event event = TRAINERD__EVENT__INIT;
        event.body_case = TRAINERD__EVENT__BODY_STEP;
        event.step = step;
        session_send(history->session, out_from_event(&event));
    }
    history->step = step->step;
    history->skipped = step->skipped;
    trainerd__step__free_unpacked(step, NULL);
}

static void send_lines(struct history *history)
{
    size_t from = 0;
    for (;;) {
        const char *start = history->text + from;
        const char *end = memchr(start, '\n', history->count - from);
        if (!end || !history->session)
            break;
        send_line(history, start, (size_t)(end - start));
        from += (size_t)(end - start) + 1;
    }
    memmove(history->text, history->text + from, history->count - from);
    history->count -= from;
    if (history->count > RECORDS_LINE_BYTES)
        history->count = 0; /* a line that no run writes */
}

/* Live events that the file told already would be told twice. The engine writes a step to the file and posts
 * it right after: the last one that the file told may be in the ring, still in the mailbox, or posted only
 * later, and is then the next event. */
static void drop_told(struct session *session, const struct history *history)
{
    unsigned kept = 0;
    engine_side_take_events(session->control);
    for (unsigned i = 0; i < session->ring_count; i++) {
        struct queued_event event = session->ring[(session->ring_first + i) % LIMIT_SUBSCRIBER_QUEUE];
        if (session_told(&event, history->step, history->skipped))
            out_release(event.out);
        else
            session->ring[(session->ring_first + kept++) % LIMIT_SUBSCRIBER_QUEUE] = event;
    }
    session->ring_count = kept;
    session->told.next = true;
    session->told.step = history->step;
    session->told.skipped = history->skipped;
}

static void finish(struct history *history)
{
    struct session *session = history->session;
    drop_told(session, history);
    session->history = NULL;
    history_free(history);
    if (!session->follow) {
        Trainerd__Event event = TRAINERD__EVENT__INIT;
        Trainerd__EndEvent end = TRAINERD__END_EVENT__INIT;
        event.body_case = TRAINERD__EVENT__BODY_END;
        event.end = &end;
        session->subscribed = false;
        session_send(session, out_from_event(&event));
    }
    session_flush(session);
}

static void when_read(uv_work_t *work, int status)
{
    struct history *history = work->data;
    history->control->file_work--;
    history->count += history->fresh;
    send_lines(history); /* a failing write closes the session, which abandons this: busy still holds it */
    history->busy = false;
    if (!history->session) {
        history_free(history);
        return;
    }
    if (status != 0 || history->ended)
        finish(history);
    else
        history_continue(history);
}

void history_continue(struct history *history)
{
    if (history->busy || history->session->out_bytes >= SERVER_EVENT_BYTES)
        return; /* when_written comes back here */
    if (history->capacity < history->count + PIECE) {
        size_t capacity = history->count + 2 * PIECE;
        char *text = realloc(history->text, capacity);
        if (!text) {
            finish(history); /* the history ends early; live events go on */
            return;
        }
        history->text = text;
        history->capacity = capacity;
    }
    history->work.data = history;
    if (uv_queue_work(&history->control->loop, &history->work, in_worker, when_read) != 0) {
        finish(history);
        return;
    }
    history->busy = true;
    history->control->file_work++;
}

bool history_start(struct session *session, const char *run, int64_t since, struct err *err)
{
    char path[2 * LIMIT_PATH_BYTES];
    if (!records_path(path, sizeof path, session->control->state_dir, run, "events.jsonl", err))
        return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        err_set(err, ERR_NOT_FOUND, "there is no run %.100s", run);
        err_why(err, "%s cannot be opened", path);
        return err_hint(err, "trainctl runs lists them");
    }
    struct history *history = calloc(1, sizeof *history);
    if (!history) {
        close(fd);
        return err_set(err, ERR_MEMORY, "no memory for a history");
    }
    *history = (struct history){
        .control = session->control, .session = session, .fd = fd, .since = since, .step = -1, .skipped = -1};
    session->history = history;
    history_continue(history);
    return true;
}
