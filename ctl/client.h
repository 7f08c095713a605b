/* libtrainctl: one connection to a trainerd. Blocking, with timeouts; for programs that drive experiments in
 * C.
 *
 *     struct client client;
 *     Trainerd__Request request = TRAINERD__REQUEST__INIT;
 *     request.command_case = TRAINERD__REQUEST__COMMAND_STATUS;
 *     request.status = &(Trainerd__StatusRequest)TRAINERD__STATUS_REQUEST__INIT;
 *     client_open(&client, "unix:/run/user/1000/trainerd.sock", 5, &err);
 *     client_request(&client, &request, &reply, &err);
 *
 * One thread a connection. Events that arrive while a reply is awaited are kept and handed out later, in
 * order. */
#pragma once

#include "bounds.h"
#include "err.h"
#include "frame.h"
#include "trainerd.pb-c.h"

#define CLIENT_EVENTS_KEPT 8192
#define CLIENT_PATIENCE_S  2.0

struct client {
    int fd;
    uint64_t next_id;
    double timeout_s; /* of each request; 0: none */
    /* Called once a request that has had no answer for CLIENT_PATIENCE_S, with what the daemon is at; or
     * NULL. */
    void (*waiting)(const Trainerd__Status *status);
    struct frame_reader reader;
    unsigned char *input;
    size_t input_first, input_count;
    Trainerd__Event **events; /* kept, a ring */
    unsigned event_first, event_count;
    char path[LIMIT_SOCKET_PATH_BYTES + 1];
    bool refused; /* the last failure was the daemon's answer, not the connection's */
};

/* address NULL: $TRAINERD_CONNECT, else the default state folder's socket. ERR_NOT_FOUND: no daemon there. */
bool client_open(struct client *client, const char *address, double timeout_s, struct err *err) MUST_USE;
void client_close(struct client *client); /* zeroed: fine */

/* The socket's path that client_open would take. */
bool client_path(char path[LIMIT_SOCKET_PATH_BYTES + 1], const char *address, struct err *err) MUST_USE;

/* Sends, waits, returns the reply, the caller's (trainerd__reply__free_unpacked). A reply that is a refusal
 * becomes err, with client->refused set; ERR_TIMEOUT after timeout_s; ERR_NOT_FOUND when the daemon went
 * away. Fills in request->id and, with a timeout, request->deadline_ms. */
bool client_request(struct client *client, Trainerd__Request *request, Trainerd__Reply **reply,
                    struct err *err) MUST_USE;

/* The next event, the caller's. wait_s < 0: for ever. *event NULL with true: none came in time (or a signal
 * came). ERR_NOT_FOUND: the daemon went away. */
bool client_event(struct client *client, double wait_s, Trainerd__Event **event, struct err *err) MUST_USE;
