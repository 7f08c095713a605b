#include "control_rig.h"

#include "file.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

int set_up(void **state)
{
    struct place *place = calloc(1, sizeof *place);
    struct err err = ERR_INIT;
    snprintf(place->folder, sizeof place->folder, "/tmp/test-control-XXXXXX");
    assert_non_null(mkdtemp(place->folder));
    check_ok(statedir_open(&place->dir, place->folder, &err), &err);
    struct control_options options = {.state_dir = place->dir.path, .version = "test"};
    check_ok(control_start(&place->control, &options, &err), &err);
    snprintf(place->address, sizeof place->address, "unix:%s/trainerd.sock", place->dir.path);
    fake_engine_start(&place->engine, control_mailbox(place->control), place->dir.path);
    *state = place;
    return 0;
}

int tear_down(void **state)
{
    struct place *place = *state;
    struct err err = ERR_INIT;
    atomic_store(&place->engine.hold, false);
    fake_engine_join(&place->engine);
    control_stop(place->control);
    statedir_close(&place->dir);
    check_ok(file_remove_tree(place->folder, &err), &err);
    free(place);
    return 0;
}

void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

struct client connect_to(const struct place *place)
{
    struct client client;
    struct err err = ERR_INIT;
    check_ok(client_open(&client, place->address, 20, &err), &err);
    return client;
}

Trainerd__Reply *ask(struct client *client, Trainerd__Request *request)
{
    struct err err = ERR_INIT;
    Trainerd__Reply *reply = NULL;
    check_ok(client_request(client, request, &reply, &err), &err);
    return reply;
}

void refused(struct client *client, Trainerd__Request *request, enum err_code code, struct err *err)
{
    Trainerd__Reply *reply = NULL;
    *err = (struct err)ERR_INIT;
    check_refused(client_request(client, request, &reply, err), err, code);
    assert_true(client->refused);
}

void init_model(struct client *client)
{
    REQUEST(request, INIT, InitRequest);
    request_body.path = (char *)"/tmp/config.json";
    request.init = &request_body;
    Trainerd__Reply *reply = ask(client, &request);
    assert_int_equal(reply->result_case, TRAINERD__REPLY__RESULT_MODEL_DONE);
    assert_int_equal(reply->model_done->parameters, 1000);
    trainerd__reply__free_unpacked(reply, NULL);
}

void train(struct client *client, const char *recipe, char *run)
{
    REQUEST(request, TRAIN, TrainRequest);
    request_body.recipe = (char *)(uintptr_t)recipe;
    request.train = &request_body;
    Trainerd__Reply *reply = ask(client, &request);
    assert_int_equal(reply->result_case, TRAINERD__REPLY__RESULT_TRAINED);
    if (run)
        strcpy(run, reply->trained->run);
    trainerd__reply__free_unpacked(reply, NULL);
}

Trainerd__Reply *status_of(struct client *client)
{
    REQUEST(request, STATUS, StatusRequest);
    request.status = &request_body;
    for (int i = 0; i < 1000; i++) { /* the first snapshot may be a moment away */
        struct err err = ERR_INIT;
        Trainerd__Reply *reply = NULL;
        if (client_request(client, &request, &reply, &err))
            return reply;
        assert_int_equal(err.code, ERR_BUSY);
        nap();
    }
    fail_msg("no snapshot");
    return NULL;
}

void send_raw(struct client *client, const void *bytes, size_t count)
{
    assert_int_equal(send(client->fd, bytes, count, MSG_NOSIGNAL), (ssize_t)count);
}

void wait_until_idle(struct client *client)
{
    for (bool done = false; !done;) {
        Trainerd__Reply *reply = status_of(client);
        done = strcmp(reply->state->state, "idle") == 0;
        trainerd__reply__free_unpacked(reply, NULL);
        if (!done)
            nap();
    }
}

void wait_for_step(struct client *client, int64_t step)
{
    for (bool done = false; !done;) {
        Trainerd__Reply *reply = status_of(client);
        done = reply->state->step >= step;
        trainerd__reply__free_unpacked(reply, NULL);
        if (!done)
            nap();
    }
}

Trainerd__Event *next_event(struct client *client)
{
    struct err err = ERR_INIT;
    Trainerd__Event *event = NULL;
    check_ok(client_event(client, 20, &event, &err), &err);
    if (!event)
        fail_msg("no event within 20 s");
    return event;
}

int64_t next_step(struct client *client)
{
    for (int64_t step = -1;;) {
        Trainerd__Event *event = next_event(client);
        if (event->body_case == TRAINERD__EVENT__BODY_STEP)
            step = event->step->step;
        trainerd__event__free_unpacked(event, NULL);
        if (step >= 0)
            return step;
    }
}
