/* Subscriptions: a run's past and its present, each step once, to clients fast and slow. */
#include "control_rig.h"

#include <stdio.h>
#include <sys/socket.h>
#include <time.h>

static void test_a_run_seen_by_its_subscriber(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    init_model(&client);
    char run[128];
    train(&client, "data: /d\nsteps: 20\n", run);
    atomic_store(&place->engine.steps_wanted, 5);
    Trainerd__Reply *reply = NULL;
    do {
        if (reply)
            trainerd__reply__free_unpacked(reply, NULL);
        reply = status_of(&client);
    } while (reply->state->step < 5);
    assert_string_equal(reply->state->state, "running");
    assert_int_equal(reply->state->steps, 20);
    trainerd__reply__free_unpacked(reply, NULL);

    /* From step 3 on, out of the file; then live, none twice, none missing. */
    REQUEST(subscribe, SUBSCRIBE, SubscribeRequest);
    subscribe_body.history = true;
    subscribe_body.since = 3;
    subscribe_body.follow = true;
    subscribe.subscribe = &subscribe_body;
    reply = ask(&client, &subscribe);
    assert_string_equal(reply->subscribed->run, run);
    trainerd__reply__free_unpacked(reply, NULL);
    atomic_store(&place->engine.steps_wanted, 15);
    int64_t next = 3;
    bool ended = false;
    while (next <= 20 || !ended) {
        Trainerd__Event *event = next_event(&client);
        if (event->body_case == TRAINERD__EVENT__BODY_STEP) {
            assert_int_equal(event->step->step, next);
            check_close(event->step->loss, 2 / (1 + (double)next), 1e-12, 0);
            next++;
        }
        if (event->body_case == TRAINERD__EVENT__BODY_STATE && strcmp(event->state->state, "idle") == 0)
            ended = true;
        trainerd__event__free_unpacked(event, NULL);
    }
    REQUEST(runs, RUNS, RunsRequest);
    runs.runs = &runs_body;
    reply = ask(&client, &runs);
    assert_true(reply->runs->n_runs >= 1);
    assert_string_equal(reply->runs->runs[reply->runs->n_runs - 1]->state, "done");
    trainerd__reply__free_unpacked(reply, NULL);
    client_close(&client);
}

/* History alone ends with an `end` event; a run that is not there is an error. */
static void test_history_without_following(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    init_model(&client);
    char run[128];
    train(&client, "data: /d\nsteps: 3000\n", run);
    atomic_store(&place->engine.steps_wanted, 3000);
    wait_until_idle(&client);
    REQUEST(subscribe, SUBSCRIBE, SubscribeRequest);
    subscribe_body.run = run;
    subscribe_body.history = true;
    subscribe.subscribe = &subscribe_body;
    trainerd__reply__free_unpacked(ask(&client, &subscribe), NULL);
    int64_t seen = 0;
    for (bool ended = false; !ended;) {
        Trainerd__Event *event = next_event(&client);
        if (event->body_case == TRAINERD__EVENT__BODY_STEP)
            assert_int_equal(event->step->step, ++seen);
        ended = event->body_case == TRAINERD__EVENT__BODY_END;
        trainerd__event__free_unpacked(event, NULL);
    }
    assert_int_equal(seen, 3000);
    struct err err;
    subscribe_body.run = (char *)"no-such-run";
    refused(&client, &subscribe, ERR_NOT_FOUND, &err);
    subscribe_body.run = (char *)"../x";
    refused(&client, &subscribe, ERR_INVALID, &err);
    client_close(&client);
}

/* Subscribing again and again while steps end quickly: where the file ends and the live events begin, no step
 * is missing and none is told twice. */
static void test_the_seam_between_history_and_live(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    init_model(&client);
    train(&client, "data: /d\nsteps: 1000000\n", NULL);
    for (int i = 0; i < 60; i++) {
        REQUEST(subscribe, SUBSCRIBE, SubscribeRequest);
        subscribe_body.history = true;
        subscribe_body.follow = true;
        subscribe.subscribe = &subscribe_body;
        struct client follower = connect_to(place);
        atomic_fetch_add(&place->engine.steps_wanted,
                         40); /* at full speed, before, while or after it subscribes */
        nanosleep(&(struct timespec){.tv_nsec = i % 20 * 150000}, NULL);
        trainerd__reply__free_unpacked(ask(&follower, &subscribe), NULL);
        for (int64_t next = 1; next <= 40 * (i + 1);) {
            Trainerd__Event *event = next_event(&follower);
            if (event->body_case == TRAINERD__EVENT__BODY_STEP)
                assert_int_equal(event->step->step, next++);
            trainerd__event__free_unpacked(event, NULL);
        }
        struct err err = ERR_INIT;
        Trainerd__Event *event;
        check_ok(client_event(&follower, 0.01, &event, &err), &err);
        assert_null(event); /* none is told again */
        client_close(&follower);
    }
    client_close(&client);
}

/* The engine writes a step to the file, then posts it: a history that ends in between has told the step
 * already. */
static void test_a_step_written_and_not_yet_posted(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place), follower = connect_to(place);
    init_model(&client);
    train(&client, "data: /d\nsteps: 100\n", NULL);
    REQUEST(subscribe, SUBSCRIBE, SubscribeRequest);
    subscribe_body.history = true;
    subscribe_body.follow = true;
    subscribe.subscribe = &subscribe_body;
    for (int64_t step = 1; step < 20; step += 2) {
        atomic_store(&place->engine.hold_post, true);
        atomic_fetch_add(&place->engine.steps_wanted, 1);
        wait_for_step(&client, step);
        trainerd__reply__free_unpacked(ask(&follower, &subscribe), NULL);
        for (int64_t told = 1; told <= step; told++)
            assert_int_equal(next_step(&follower), told);
        for (int i = 0; i < 5; i++)
            nap(); /* so that the history has most likely ended; where it has not, the test is easier */
        atomic_store(&place->engine.hold_post, false);
        atomic_fetch_add(&place->engine.steps_wanted, 1);
        assert_int_equal(next_step(&follower), step + 1);
    }
    client_close(&follower);
    client_close(&client);
}

/* A subscriber that never reads: the run goes on at full speed, its events are bounded, and when it reads at
 * last it is told how many it lost, and gets the newest. */
static void test_a_subscriber_that_never_reads(void **state)
{
    enum { STEPS = 30000 };
    struct place *place = *state;
    struct client client = connect_to(place), slow = connect_to(place);
    int small = 4096;
    setsockopt(slow.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    init_model(&client);
    REQUEST(subscribe, SUBSCRIBE, SubscribeRequest);
    subscribe_body.follow = true;
    subscribe.subscribe = &subscribe_body;
    trainerd__reply__free_unpacked(ask(&slow, &subscribe), NULL);
    char recipe[64];
    snprintf(recipe, sizeof recipe, "data: /d\nsteps: %d\n", STEPS);
    train(&client, recipe, NULL);
    atomic_store(&place->engine.steps_wanted, STEPS);
    wait_until_idle(&client);
    int64_t told = 0, dropped = 0, last = 0;
    while (last < STEPS) {
        Trainerd__Event *event = next_event(&slow);
        if (event->body_case == TRAINERD__EVENT__BODY_DROPPED)
            dropped += event->dropped;
        if (event->body_case == TRAINERD__EVENT__BODY_STEP) {
            assert_true(event->step->step > last);
            last = event->step->step;
            told++;
        }
        trainerd__event__free_unpacked(event, NULL);
    }
    assert_true(dropped > 0);
    assert_in_range(told + dropped, STEPS, STEPS + 4); /* state events are counted too */
    client_close(&slow);
    client_close(&client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_a_run_seen_by_its_subscriber),      CASE(test_history_without_following),
        CASE(test_the_seam_between_history_and_live), CASE(test_a_step_written_and_not_yet_posted),
        CASE(test_a_subscriber_that_never_reads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
