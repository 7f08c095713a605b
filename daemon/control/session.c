/* One client: frames in, replies and events out, all bounded. A client that does not read its replies is not
 * read from until it does; one that does not read its events loses the oldest and is told how many. */
#include "server.h"

#include "log.h"

#include <stdlib.h>
#include <string.h>

struct write {
    uv_write_t request;
    struct session *session;
    struct out *out;
};

static struct out *out_new(const ProtobufCMessage *frame)
{
    struct out *out = calloc(1, sizeof *out);
    if (!out)
        return NULL;
    out->references = 1;
    out->data = frame_pack(frame, &out->bytes);
    if (out->data)
        return out;
    free(out);
    return NULL;
}

struct out *out_from_reply(const Trainerd__Reply *reply)
{
    Trainerd__Frame frame = TRAINERD__FRAME__INIT;
    frame.body_case = TRAINERD__FRAME__BODY_REPLY;
    frame.reply = (Trainerd__Reply *)(uintptr_t)reply; /* packing does not write */
    return out_new(&frame.base);
}

struct out *out_from_event(const Trainerd__Event *event)
{
    Trainerd__Frame frame = TRAINERD__FRAME__INIT;
    frame.body_case = TRAINERD__FRAME__BODY_EVENT;
    frame.event = (Trainerd__Event *)(uintptr_t)event;
    return out_new(&frame.base);
}

void out_release(struct out *out)
{
    if (out && --out->references == 0) {
        free(out->data);
        free(out);
    }
}

struct session *session_find(struct control *control, uint64_t id)
{
    for (struct session *s = control->sessions; s; s = s->next)
        if (s->id == id && !s->closing)
            return s;
    return NULL;
}

static void clear_ring(struct session *session)
{
    for (; session->ring_count > 0; session->ring_count--) {
        out_release(session->ring[session->ring_first].out);
        session->ring_first = (session->ring_first + 1) % LIMIT_SUBSCRIBER_QUEUE;
    }
    session->dropped = 0;
}

static void when_closed(uv_handle_t *handle)
{
    struct session *session = handle->data;
    *session->link = session->next;
    if (session->next)
        session->next->link = session->link;
    session->control->session_count--;
    clear_ring(session);
    free(session->ring);
    free(session->held);
    frame_reader_done(&session->reader);
    free(session);
}

void session_close(struct session *session)
{
    if (session->closing)
        return;
    session->closing = true;
    if (session->history)
        history_abandon(session->history);
    session->history = NULL;
    uv_close((uv_handle_t *)&session->pipe, when_closed);
}

static void read_on(struct session *session);

static void when_written(uv_write_t *request, int status)
{
    struct write *write = (struct write *)request;
    struct session *session = write->session;
    session->out_bytes -= write->out->bytes;
    out_release(write->out);
    free(write);
    if (session->closing)
        return;
    if (status != 0 || (session->close_when_sent && session->out_bytes == 0 && session->pending == 0)) {
        session_close(session);
        return;
    }
    if (session->history)
        history_continue(session->history);
    session_flush(session);
    if (!session->closing)
        read_on(session);
}

void session_send(struct session *session, struct out *out)
{
    if (session->closing) {
        out_release(out);
        return;
    }
    struct write *write = out ? calloc(1, sizeof *write) : NULL;
    if (!write) {
        log_warning("control", "no memory for a reply; its client is disconnected session=%llu",
                    (unsigned long long)session->id);
        out_release(out);
        session_close(session);
        return;
    }
    write->session = session;
    write->out = out;
    session->out_bytes += out->bytes;
    uv_buf_t buffer = {.base = (char *)out->data, .len = out->bytes};
    if (uv_write(&write->request, (uv_stream_t *)&session->pipe, &buffer, 1, when_written) != 0) {
        session->out_bytes -= out->bytes;
        out_release(out);
        free(write);
        session_close(session);
    }
}

bool session_subscribe(struct session *session, bool follow, struct err *err)
{
    if (session->history)
        history_abandon(session->history);
    session->history = NULL;
    if (!session->ring)
        session->ring = calloc(LIMIT_SUBSCRIBER_QUEUE, sizeof *session->ring);
    if (!session->ring)
        return err_set(err, ERR_MEMORY, "no memory for a subscription");
    clear_ring(session);
    session->subscribed = true;
    session->follow = follow;
    session->told.next = false;
    return true;
}

bool session_told(const struct queued_event *event, int64_t step, int64_t skipped)
{
    return event->is_step && (event->step < step || (event->step == step && event->skipped <= skipped));
}

void session_push(struct session *session, const struct queued_event *event)
{
    bool told = session->told.next && session_told(event, session->told.step, session->told.skipped);
    session->told.next = false;
    if (told)
        return;
    if (session->ring_count == LIMIT_SUBSCRIBER_QUEUE) {
        out_release(session->ring[session->ring_first].out);
        session->ring_first = (session->ring_first + 1) % LIMIT_SUBSCRIBER_QUEUE;
        session->ring_count--;
        session->dropped++;
    }
    session->ring[(session->ring_first + session->ring_count++) % LIMIT_SUBSCRIBER_QUEUE] = *event;
    event->out->references++;
}

static void tell_dropped(struct session *session)
{
    Trainerd__Event event = TRAINERD__EVENT__INIT;
    event.body_case = TRAINERD__EVENT__BODY_DROPPED;
    event.dropped = session->dropped;
    session->dropped = 0;
    session_send(session, out_from_event(&event));
}

/* While the history is under way, live events wait behind it. */
void session_flush(struct session *session)
{
    while (!session->closing && !session->history && session->ring_count > 0 &&
           session->out_bytes < SERVER_EVENT_BYTES) {
        if (session->dropped > 0) {
            tell_dropped(session);
            continue;
        }
        struct queued_event event = session->ring[session->ring_first];
        session->ring_first = (session->ring_first + 1) % LIMIT_SUBSCRIBER_QUEUE;
        session->ring_count--;
        session_send(session, event.out); /* the ring's reference goes along */
    }
}

/* Nothing more is read and no event sent; what is owed is, and then the session closes. */
static void take_leave(struct session *session)
{
    uv_read_stop((uv_stream_t *)&session->pipe);
    session->reading = false;
    session->close_when_sent = true;
    session->subscribed = false;
    clear_ring(session);
    if (session->history)
        history_abandon(session->history);
    session->history = NULL;
    if (session->out_bytes == 0 && session->pending == 0)
        session_close(session);
}

/* A stream that is not one of frames cannot be resumed: one reply says so, then the end. */
static void refuse_stream(struct session *session, const struct err *err)
{
    reply_error(session, 0, err);
    take_leave(session);
}

static void handle_frame(struct session *session, const unsigned char *frame, size_t bytes)
{
    struct err err = ERR_INIT;
    ProtobufCMessage *message = NULL;
    if (!frame_unpack(&message, &trainerd__request__descriptor, frame, bytes, frame_budget(bytes), &err)) {
        refuse_stream(session, &err);
        return;
    }
    request_handle(session, (Trainerd__Request *)message);
    protobuf_c_message_free_unpacked(message, NULL);
}

static bool may_read(const struct session *session)
{
    return !session->closing && !session->close_when_sent && session->out_bytes < SERVER_OUTPUT_BYTES &&
           session->pending < SERVER_PENDING;
}

/* Handles frames until the bytes, or the session's allowance, are used up; returns how many bytes were used.
 */
static size_t consume(struct session *session, const unsigned char *bytes, size_t count)
{
    size_t used = 0;
    while (used < count && may_read(session)) {
        struct err err = ERR_INIT;
        const unsigned char *frame;
        size_t piece, frame_bytes;
        if (!frame_reader_feed(&session->reader, bytes + used, count - used, &piece, &frame, &frame_bytes,
                               &err)) {
            refuse_stream(session, &err);
            return count;
        }
        used += piece;
        if (frame)
            handle_frame(session, frame, frame_bytes);
    }
    return used;
}

static void hold(struct session *session, const unsigned char *bytes, size_t count)
{
    unsigned char *held = malloc(count);
    if (!held) {
        session_close(session);
        return;
    }
    memcpy(held, bytes, count);
    free(session->held);
    session->held = held;
    session->held_bytes = count;
}

static void lend_input(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    (void)suggested;
    struct session *session = handle->data;
    *buffer = (uv_buf_t){.base = (char *)session->control->input, .len = SERVER_INPUT_BYTES};
}

static void when_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
    struct session *session = stream->data;
    if (count == UV_EOF) {
        take_leave(session); /* it sends no more, but may still read */
        return;
    }
    if (count < 0) {
        session_close(session);
        return;
    }
    size_t used = consume(session, (const unsigned char *)buffer->base, (size_t)count);
    if (session->closing || may_read(session))
        return;
    uv_read_stop(stream);
    session->reading = false;
    if (used < (size_t)count && !session->close_when_sent)
        hold(session, (const unsigned char *)buffer->base + used, (size_t)count - used);
}

static void read_on(struct session *session)
{
    if (session->reading || !may_read(session))
        return;
    if (session->held) {
        unsigned char *held = session->held;
        size_t count = session->held_bytes;
        session->held = NULL;
        size_t used = consume(session, held, count);
        if (used < count && !session->closing && !session->close_when_sent)
            hold(session, held + used, count - used);
        free(held);
        if (session->held || !may_read(session))
            return;
    }
    session->reading = uv_read_start((uv_stream_t *)&session->pipe, lend_input, when_read) == 0;
    if (!session->reading)
        session_close(session);
}

void session_answered(struct session *session)
{
    session->pending--;
    read_on(session);
}

void session_accept(struct control *control, struct listener *listener)
{
    struct session *session = calloc(1, sizeof *session);
    if (!session) {
        log_warning("control", "no memory for another client; it waits");
        return;
    }
    session->control = control;
    session->id = ++control->next_session;
    frame_reader_init(&session->reader, LIMIT_FRAME_BYTES);
    uv_pipe_init(&control->loop, &session->pipe, 0);
    session->pipe.data = session;
    session->next = control->sessions;
    session->link = &control->sessions;
    if (session->next)
        session->next->link = &session->next;
    control->sessions = session;
    control->session_count++;
    if (uv_accept((uv_stream_t *)&listener->pipe, (uv_stream_t *)&session->pipe) != 0) {
        session_close(session);
        return;
    }
    if (control->session_count > control->sessions_max) {
        struct err err = ERR_INIT;
        err_set(&err, ERR_BUSY, "%d clients are connected, which is all that fit", control->sessions_max);
        err_hint(&err, "try again when some have left");
        refuse_stream(session, &err);
        return;
    }
    read_on(session);
}
