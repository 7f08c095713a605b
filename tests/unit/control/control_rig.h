/* A place of a daemon without MPI: its folder, the real control thread on a real socket, a fake engine behind
 * the mailbox; and what a client of it says all the time. */
#pragma once

#include "check.h"
#include "client.h"
#include "control.h"
#include "fake_engine.h"
#include "statedir.h"

struct place {
    char folder[64];
    struct statedir dir;
    struct control *control;
    struct fake_engine engine;
    char address[LIMIT_SOCKET_PATH_BYTES + 8];
};

/* cmocka's fixtures of one test; *state is the struct place. */
int set_up(void **state);
int tear_down(void **state);
#define CASE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

void nap(void); /* 2 ms */
struct client connect_to(const struct place *place);

/* A request NAME with an empty NAME_body, of the kind that the schema calls KIND. */
#define REQUEST(name, NAME, Type)                                                                            \
    Trainerd__##Type name##_body = TRAINERD__##NAME##_REQUEST__INIT;                                         \
    Trainerd__Request name = TRAINERD__REQUEST__INIT;                                                        \
    name.command_case = TRAINERD__REQUEST__COMMAND_##NAME

/* The reply to a request that must succeed; one that must be refused so. */
Trainerd__Reply *ask(struct client *client, Trainerd__Request *request);
void refused(struct client *client, Trainerd__Request *request, enum err_code code, struct err *err);

void init_model(struct client *client);
void train(struct client *client, const char *recipe, char *run); /* run: its name, or NULL */
Trainerd__Reply *status_of(struct client *client);
void wait_until_idle(struct client *client);
void wait_for_step(struct client *client, int64_t step); /* published, not necessarily posted */

Trainerd__Event *next_event(struct client *client); /* there must be one within 20 s */
int64_t next_step(struct client *client);           /* of the next event that is a step */
void send_raw(struct client *client, const void *bytes, size_t count);
