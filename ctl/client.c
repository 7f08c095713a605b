#include "client.h"

#include "address.h"
#include "clock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { INPUT_BYTES = 64 << 10 };

bool client_path(char path[LIMIT_SOCKET_PATH_BYTES + 1], const char *address, struct err *err)
{
    const char *said = address && address[0] ? address : getenv("TRAINERD_CONNECT");
    char folder[LIMIT_PATH_BYTES];
    if (said && said[0])
        return address_parse(path, said, err);
    return address_state_folder(folder, err) && address_socket_in(path, folder, err);
}

static bool no_daemon(const char *path, int code, struct err *err)
{
    err_set(err, ERR_NOT_FOUND, "there is no trainerd at %s", path);
    err_why(err, "%s", code == ENOENT ? "there is no such socket" : strerror(code));
    return err_hint(err, "start one (mpirun -n 2 trainerd), or name its socket with --connect unix:PATH");
}

bool client_open(struct client *client, const char *address, double timeout_s, struct err *err)
{
    struct client opened = {.fd = -1, .timeout_s = timeout_s};
    if (!client_path(opened.path, address, err))
        return false;
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, opened.path, sizeof to.sun_path - 1);
    opened.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (opened.fd < 0)
        return err_errno(err, "cannot make a socket");
    if (connect(opened.fd, (struct sockaddr *)&to, sizeof to) != 0) {
        no_daemon(opened.path, errno, err);
        close(opened.fd);
        return false;
    }
    opened.input = malloc(INPUT_BYTES);
    opened.events = calloc(CLIENT_EVENTS_KEPT, sizeof(Trainerd__Event *));
    if (!opened.input || !opened.events) {
        client_close(&opened);
        return err_set(err, ERR_MEMORY, "no memory for a connection");
    }
    frame_reader_init(&opened.reader, LIMIT_FRAME_BYTES);
    *client = opened;
    return true;
}

void client_close(struct client *client)
{
    if (!client->input && !client->events)
        return;
    close(client->fd);
    for (unsigned i = 0; client->events && i < client->event_count; i++)
        trainerd__event__free_unpacked(client->events[(client->event_first + i) % CLIENT_EVENTS_KEPT], NULL);
    free(client->events);
    free(client->input);
    frame_reader_done(&client->reader);
    *client = (struct client){.fd = -1};
}

static bool went_away(struct client *client, struct err *err)
{
    err_set(err, ERR_NOT_FOUND, "the trainerd at %s went away", client->path);
    return err_hint(err, "its log is in the state folder; trainctl wait connects again");
}

/* Waits until the socket is ready for `events`; false without err set: the time is over or a signal came. */
static bool wait_ready(struct client *client, short events, double deadline, struct err *err)
{
    double left = deadline < 0 ? -1 : deadline - clock_s();
    int wait_ms = deadline < 0 ? -1 : left <= 0 ? 0 : left > 1e6 ? 1000000000 : (int)(left * 1e3) + 1;
    struct pollfd poll_for = {.fd = client->fd, .events = events};
    int ready = poll(&poll_for, 1, wait_ms);
    if (ready < 0 && errno != EINTR)
        return err_errno(err, "cannot wait for the trainerd at %s", client->path);
    return ready > 0;
}

static bool send_frame(struct client *client, const unsigned char *bytes, size_t count, double deadline,
                       struct err *err)
{
    while (count > 0) {
        ssize_t sent = send(client->fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            bytes += sent;
            count -= (size_t)sent;
        } else if (errno == EAGAIN) {
            if (!wait_ready(client, POLLOUT, deadline, err) && err->code == ERR_OK && deadline >= 0 &&
                clock_s() >= deadline)
                return err_set(err, ERR_TIMEOUT, "the trainerd at %s does not read", client->path);
            if (err->code != ERR_OK)
                return false;
        } else if (errno != EINTR) {
            return errno == EPIPE || errno == ECONNRESET ? went_away(client, err)
                                                         : err_errno(err, "cannot send to %s", client->path);
        }
    }
    return true;
}

/* One frame from what has been read; NULL: more must come. */
static bool take_frame(struct client *client, Trainerd__Frame **frame, struct err *err)
{
    *frame = NULL;
    while (client->input_count > 0) {
        const unsigned char *bytes;
        size_t used, count;
        if (!frame_reader_feed(&client->reader, client->input + client->input_first, client->input_count,
                               &used, &bytes, &count, err))
            return false;
        client->input_first += used;
        client->input_count -= used;
        if (bytes)
            return frame_unpack((ProtobufCMessage **)frame, &trainerd__frame__descriptor, bytes, count,
                                frame_budget(count), err);
    }
    return true;
}

/* The next frame; *frame NULL with true: the deadline passed or a signal came. */
static bool next_frame(struct client *client, double deadline, Trainerd__Frame **frame, struct err *err)
{
    for (;;) {
        if (!take_frame(client, frame, err))
            return false;
        if (*frame)
            return true;
        if (!wait_ready(client, POLLIN, deadline, err))
            return err->code == ERR_OK;
        ssize_t count = recv(client->fd, client->input, INPUT_BYTES, MSG_DONTWAIT);
        if (count == 0 || (count < 0 && errno == ECONNRESET))
            return went_away(client, err);
        if (count < 0 && errno != EAGAIN && errno != EINTR)
            return err_errno(err, "cannot read from %s", client->path);
        client->input_first = 0;
        client->input_count = count > 0 ? (size_t)count : 0;
    }
}

/* The oldest go first when a program asks for replies only and never for its events. */
static void keep_event(struct client *client, Trainerd__Frame *frame)
{
    if (client->event_count == CLIENT_EVENTS_KEPT) {
        trainerd__event__free_unpacked(client->events[client->event_first], NULL);
        client->event_first = (client->event_first + 1) % CLIENT_EVENTS_KEPT;
        client->event_count--;
    }
    client->events[(client->event_first + client->event_count++) % CLIENT_EVENTS_KEPT] = frame->event;
    frame->event = NULL;
    frame->body_case = TRAINERD__FRAME__BODY__NOT_SET;
}

static void err_from_reply(struct err *err, const Trainerd__Reply *reply)
{
    const Trainerd__Error *status = reply->status;
    enum err_code code = status ? err_code_from_name(status->code) : ERR_INVALID;
    err_set(err, code == ERR_OK ? ERR_INVALID : code, "%s",
            status ? status->what : "the reply has no status");
    if (status && status->why[0])
        err_why(err, "%s", status->why);
    if (status && status->hint[0])
        err_hint(err, "%s", status->hint);
    err->rank = status ? status->rank : -1;
}

static bool is_answer(const Trainerd__Frame *frame, uint64_t id)
{
    /* Reply 0 says that the stream itself was refused: it answers whatever was asked. */
    return frame->body_case == TRAINERD__FRAME__BODY_REPLY &&
           (frame->reply->id == id || frame->reply->id == 0);
}

static bool send_request(struct client *client, Trainerd__Request *request, double deadline, struct err *err)
{
    size_t count;
    request->id = ++client->next_id;
    unsigned char *bytes = frame_pack(&request->base, &count);
    if (!bytes)
        return err_set(err, ERR_MEMORY, "no memory for a request");
    bool sent = send_frame(client, bytes, count, deadline, err);
    free(bytes);
    return sent;
}

static uint64_t ask_status(struct client *client, double deadline, struct err *err)
{
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    Trainerd__StatusRequest status = TRAINERD__STATUS_REQUEST__INIT;
    request.command_case = TRAINERD__REQUEST__COMMAND_STATUS;
    request.status = &status;
    return send_request(client, &request, deadline, err) ? request.id : 0;
}

static bool await_reply(struct client *client, uint64_t id, double deadline, Trainerd__Reply **reply,
                        struct err *err)
{
    double patience = client->waiting ? clock_s() + CLIENT_PATIENCE_S : -1;
    uint64_t status_id = 0; /* of the question what takes so long */
    for (;;) {
        Trainerd__Frame *frame;
        bool until_patience = patience >= 0 && (deadline < 0 || patience < deadline);
        if (!next_frame(client, until_patience ? patience : deadline, &frame, err))
            return false;
        if (!frame && until_patience && clock_s() >= patience) {
            patience = -1;
            if (!(status_id = ask_status(client, deadline, err)))
                return false;
        } else if (!frame && deadline >= 0 && clock_s() >= deadline) {
            err_set(err, ERR_TIMEOUT, "no answer within %g s", client->timeout_s);
            return err_hint(
                err, "a command that was taken up goes on; trainctl status shows what the daemon does");
        }
        if (!frame)
            continue; /* a signal; what it means is the caller's, after the reply */
        if (is_answer(frame, id)) {
            *reply = frame->reply;
            frame->reply = NULL;
            frame->body_case = TRAINERD__FRAME__BODY__NOT_SET;
            trainerd__frame__free_unpacked(frame, NULL);
            return true;
        }
        if (status_id && is_answer(frame, status_id) &&
            frame->reply->result_case == TRAINERD__REPLY__RESULT_STATE)
            client->waiting(frame->reply->state);
        if (frame->body_case == TRAINERD__FRAME__BODY_EVENT)
            keep_event(client, frame);
        trainerd__frame__free_unpacked(frame, NULL);
    }
}

bool client_request(struct client *client, Trainerd__Request *request, Trainerd__Reply **reply,
                    struct err *err)
{
    client->refused = false;
    double deadline = client->timeout_s > 0 ? clock_s() + client->timeout_s : -1;
    if (client->timeout_s > 0 && client->timeout_s < 4e6)
        request->deadline_ms = (uint32_t)(client->timeout_s * 1e3) + 1;
    bool sent = send_request(client, request, deadline, err);
    Trainerd__Reply *got = NULL;
    /* The daemon's own word on the deadline is better than ours: it gets a moment more to give it. */
    bool answered =
        sent && await_reply(client, request->id, deadline < 0 ? deadline : deadline + 0.25, &got, err);
    if (!answered || !got)
        return false;
    if (got->status && strcmp(got->status->code, "ok") == 0) {
        *reply = got;
        return true;
    }
    err_from_reply(err, got);
    client->refused = true;
    trainerd__reply__free_unpacked(got, NULL);
    return false;
}

bool client_event(struct client *client, double wait_s, Trainerd__Event **event, struct err *err)
{
    double deadline = wait_s < 0 ? -1 : clock_s() + wait_s;
    *event = NULL;
    if (client->event_count > 0) {
        *event = client->events[client->event_first];
        client->event_first = (client->event_first + 1) % CLIENT_EVENTS_KEPT;
        client->event_count--;
        return true;
    }
    for (;;) {
        Trainerd__Frame *frame;
        if (!next_frame(client, deadline, &frame, err))
            return false;
        if (!frame)
            return true;
        if (frame->body_case == TRAINERD__FRAME__BODY_EVENT) {
            *event = frame->event;
            frame->event = NULL;
            frame->body_case = TRAINERD__FRAME__BODY__NOT_SET;
        }
        trainerd__frame__free_unpacked(frame, NULL);
        if (*event)
            return true;
    }
}
