/* The whole socket path, without MPI: real sockets, the real control thread, a fake engine behind the
 * mailbox. */
#include "check.h"
#include "client.h"
#include "control.h"
#include "fake_engine.h"
#include "file.h"
#include "statedir.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct place {
    char folder[64];
    struct statedir dir;
    struct control *control;
    struct fake_engine engine;
    char address[LIMIT_SOCKET_PATH_BYTES + 8];
};

static int set_up(void **state)
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

static int tear_down(void **state)
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

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

static struct client connect_to(const struct place *place)
{
    struct client client;
    struct err err = ERR_INIT;
    check_ok(client_open(&client, place->address, 20, &err), &err);
    return client;
}

#define REQUEST(name, NAME, Type)                                                                            \
    Trainerd__##Type name##_body = TRAINERD__##NAME##_REQUEST__INIT;                                         \
    Trainerd__Request name = TRAINERD__REQUEST__INIT;                                                        \
    name.command_case = TRAINERD__REQUEST__COMMAND_##NAME

static Trainerd__Reply *ask(struct client *client, Trainerd__Request *request)
{
    struct err err = ERR_INIT;
    Trainerd__Reply *reply = NULL;
    check_ok(client_request(client, request, &reply, &err), &err);
    return reply;
}

static void refused(struct client *client, Trainerd__Request *request, enum err_code code, struct err *err)
{
    Trainerd__Reply *reply = NULL;
    *err = (struct err)ERR_INIT;
    check_refused(client_request(client, request, &reply, err), err, code);
    assert_true(client->refused);
}

static void init_model(struct client *client)
{
    REQUEST(request, INIT, InitRequest);
    request_body.path = (char *)"/tmp/config.json";
    request.init = &request_body;
    Trainerd__Reply *reply = ask(client, &request);
    assert_int_equal(reply->result_case, TRAINERD__REPLY__RESULT_MODEL_DONE);
    assert_int_equal(reply->model_done->parameters, 1000);
    trainerd__reply__free_unpacked(reply, NULL);
}

static void train(struct client *client, const char *recipe, char *run)
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

static Trainerd__Reply *status_of(struct client *client)
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

static void test_the_socket_is_private(void **state)
{
    struct place *place = *state;
    struct stat info;
    assert_int_equal(stat(place->address + 5, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(stat(place->folder, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
}

static void test_status_and_audit_from_the_snapshot(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    Trainerd__Reply *reply = status_of(&client);
    assert_string_equal(reply->state->state, "empty");
    assert_string_equal(reply->state->policy->name, "fp32-master");
    check_close(reply->state->policy->bytes_per_parameter, 12.0, 0, 0);
    assert_true(isnan(reply->state->loss));
    assert_string_equal(reply->state->version, "test");
    trainerd__reply__free_unpacked(reply, NULL);

    init_model(&client);
    /* While the engine is held by a command, what only looks is answered all the same. */
    atomic_store(&place->engine.hold, true);
    struct client other = connect_to(place);
    REQUEST(audit, AUDIT, AuditRequest);
    audit.audit = &audit_body;
    reply = ask(&other, &audit);
    assert_int_equal(reply->audit->n_rows, 2);
    assert_int_equal(reply->audit->bytes_total, 6000);
    assert_string_equal(reply->audit->rows[1]->kind, "m");
    trainerd__reply__free_unpacked(reply, NULL);
    atomic_store(&place->engine.hold, false);
    client_close(&other);
    client_close(&client);
}

static void test_refusals_say_what_why_and_what_to_do(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    struct err err;
    trainerd__reply__free_unpacked(status_of(&client), NULL);

    REQUEST(pause, PAUSE, PauseRequest);
    pause.pause = &pause_body;
    refused(&client, &pause, ERR_STATE, &err);
    assert_non_null(strstr(err.what, "pause"));
    assert_true(err.why[0] && err.hint[0]);

    REQUEST(evaluate, EVALUATE, EvaluateRequest);
    evaluate_body.data = (char *)"relative/path";
    evaluate.evaluate = &evaluate_body;
    refused(&client, &evaluate, ERR_INVALID, &err);

    REQUEST(swap, SET_OPTIMIZER, SetOptimizerRequest);
    swap_body.policy = (char *)"fp32-mastre";
    swap.set_optimizer = &swap_body;
    refused(&client, &swap, ERR_INVALID, &err);
    char line[4 * ERR_TEXT_BYTES];
    assert_non_null(strstr(err_line(&err, line, sizeof line), "fp32-master"));

    Trainerd__Request none = TRAINERD__REQUEST__INIT;
    refused(&client, &none, ERR_UNSUPPORTED, &err);

    init_model(&client);
    REQUEST(bad, TRAIN, TrainRequest);
    bad_body.recipe = (char *)"data: /d\nglobal_bach: 3\nsteps: 5\n";
    bad_body.recipe_name = (char *)"mine.yaml";
    bad.train = &bad_body;
    refused(&client, &bad, ERR_INVALID, &err);
    err_line(&err, line, sizeof line);
    assert_non_null(strstr(line, "mine.yaml"));
    assert_non_null(strstr(line, "global_batch"));
    client_close(&client);
}

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
        struct err err = ERR_INIT;
        Trainerd__Event *event;
        check_ok(client_event(&client, 20, &event, &err), &err);
        if (!event) {
            fail_msg("no event within 20 s, next is step %lld", (long long)next);
            return;
        }
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
    for (Trainerd__Reply *reply = NULL;;) {
        reply = status_of(&client);
        bool done = strcmp(reply->state->state, "idle") == 0;
        trainerd__reply__free_unpacked(reply, NULL);
        if (done)
            break;
        nap();
    }
    REQUEST(subscribe, SUBSCRIBE, SubscribeRequest);
    subscribe_body.run = run;
    subscribe_body.history = true;
    subscribe.subscribe = &subscribe_body;
    trainerd__reply__free_unpacked(ask(&client, &subscribe), NULL);
    int64_t seen = 0;
    for (bool ended = false; !ended;) {
        struct err err = ERR_INIT;
        Trainerd__Event *event;
        check_ok(client_event(&client, 20, &event, &err), &err);
        assert_non_null(event);
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
            struct err err = ERR_INIT;
            Trainerd__Event *event;
            check_ok(client_event(&follower, 20, &event, &err), &err);
            assert_non_null(event);
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

static void test_an_idempotency_key_does_it_once(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    init_model(&client);
    int before = atomic_load(&place->engine.commands);
    REQUEST(request, EVALUATE, EvaluateRequest);
    request_body.data = (char *)"/data";
    request.evaluate = &request_body;
    request.idempotency_key = (char *)"once";
    for (int i = 0; i < 3; i++) {
        Trainerd__Reply *reply = ask(&client, &request);
        check_close(reply->evaluated->loss, 1.25, 0, 0);
        trainerd__reply__free_unpacked(reply, NULL);
    }
    assert_int_equal(atomic_load(&place->engine.commands), before + 1);
    struct err err;
    request_body.data = (char *)"/other";
    refused(&client, &request, ERR_INVALID, &err);

    /* A refusal that may pass is not remembered: the same key may try again. */
    REQUEST(pause, PAUSE, PauseRequest);
    pause.pause = &pause_body;
    pause.idempotency_key = (char *)"later";
    refused(&client, &pause, ERR_STATE, &err);
    train(&client, "data: /d\nsteps: 5\n", NULL);
    trainerd__reply__free_unpacked(ask(&client, &pause), NULL);
    client_close(&client);
}

static void test_a_deadline(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    init_model(&client);
    atomic_store(&place->engine.hold, true);
    REQUEST(request, EVALUATE, EvaluateRequest);
    request_body.data = (char *)"/data";
    request.evaluate = &request_body;
    request.idempotency_key = (char *)"slow";
    client.timeout_s = 0.05;
    struct err err;
    refused(&client, &request, ERR_TIMEOUT, &err);
    assert_true(err.hint[0]);
    /* It goes on; the same key learns what became of it. */
    atomic_store(&place->engine.hold, false);
    client.timeout_s = 20;
    Trainerd__Reply *reply = ask(&client, &request);
    check_close(reply->evaluated->loss, 1.25, 0, 0);
    trainerd__reply__free_unpacked(reply, NULL);
    client_close(&client);
}

/* What waits behind another command when its deadline passes is never done; its key may try again at once.
 * Somebody who waits longer for the same key keeps it. */
static void test_what_expires_is_not_done(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place), other = connect_to(place);
    init_model(&client);
    int before = atomic_load(&place->engine.commands);
    atomic_store(&place->engine.hold, true);
    REQUEST(slow, EVALUATE, EvaluateRequest);
    slow_body.data = (char *)"/data";
    slow.evaluate = &slow_body;
    client.timeout_s = 0; /* the daemon's word, however slow this machine is */
    slow.deadline_ms = 100;
    struct err err;
    do
        refused(&client, &slow, ERR_TIMEOUT, &err);
    while (!strstr(err.why, "goes on")); /* taken up at last */
    int expired = atomic_load(&place->engine.expired);

    REQUEST(late, EVALUATE, EvaluateRequest);
    late_body.data = (char *)"/data";
    late.evaluate = &late_body;
    late.idempotency_key = (char *)"late";
    late.deadline_ms = 100;
    refused(&client, &late, ERR_TIMEOUT, &err);
    assert_non_null(strstr(err.what, "withdrawn"));
    refused(&client, &late, ERR_TIMEOUT, &err); /* the same key is a new try, which expires as well */
    assert_non_null(strstr(err.what, "withdrawn"));
    assert_int_equal(atomic_load(&place->engine.commands), before + 1);

    atomic_store(&place->engine.hold, false);
    other.timeout_s = 20;
    Trainerd__Reply *reply = ask(&other, &late);
    check_close(reply->evaluated->loss, 1.25, 0, 0);
    trainerd__reply__free_unpacked(reply, NULL);
    assert_int_equal(atomic_load(&place->engine.expired), expired + 2);
    assert_int_equal(atomic_load(&place->engine.commands), before + 2); /* the held one, and the last */
    client_close(&client);
    client_close(&other);
}

/* Clients leave in the middle of commands, of frames and of subscriptions; the next one is served as ever. */
static void test_clients_that_leave(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    init_model(&client);
    atomic_store(&place->engine.hold, true);
    for (int i = 0; i < 20; i++) {
        struct client leaving = connect_to(place);
        REQUEST(request, EVALUATE, EvaluateRequest);
        request_body.data = (char *)"/data";
        request.evaluate = &request_body;
        size_t count;
        unsigned char *bytes = frame_pack(&request.base, &count);
        size_t sent = i % 2 ? count : count / 2;
        assert_int_equal(send(leaving.fd, bytes, sent, MSG_NOSIGNAL), (ssize_t)sent);
        free(bytes);
        client_close(&leaving);
    }
    atomic_store(&place->engine.hold, false);
    train(&client, "data: /d\nsteps: 1000\n", NULL);
    for (int i = 0; i < 5; i++) {
        struct client leaving = connect_to(place);
        REQUEST(request, SUBSCRIBE, SubscribeRequest);
        request_body.follow = true;
        request.subscribe = &request_body;
        trainerd__reply__free_unpacked(ask(&leaving, &request), NULL);
        client_close(&leaving);
    }
    atomic_store(&place->engine.steps_wanted, 1000);
    Trainerd__Reply *reply;
    for (;;) {
        reply = status_of(&client);
        if (strcmp(reply->state->state, "idle") == 0 && reply->state->clients == 1)
            break;
        trainerd__reply__free_unpacked(reply, NULL);
        nap();
    }
    assert_int_equal(reply->state->step, 1000);
    trainerd__reply__free_unpacked(reply, NULL);
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
    for (Trainerd__Reply *reply = NULL;;) {
        reply = status_of(&client);
        bool done = strcmp(reply->state->state, "idle") == 0;
        trainerd__reply__free_unpacked(reply, NULL);
        if (done)
            break;
        nap();
    }
    int64_t told = 0, dropped = 0, last = 0;
    while (last < STEPS) {
        struct err err = ERR_INIT;
        Trainerd__Event *event;
        check_ok(client_event(&slow, 20, &event, &err), &err);
        assert_non_null(event);
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

/* A client that asks and never reads the answers is not read from any more; others are served. */
static void test_a_client_that_never_reads(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place), deaf = connect_to(place);
    trainerd__reply__free_unpacked(status_of(&client), NULL);
    REQUEST(request, STATUS, StatusRequest);
    request.status = &request_body;
    size_t count;
    unsigned char *bytes = frame_pack(&request.base, &count);
    /* 64 MB of answers would be asked for, were all read. */
    enum { WANTED = 100000 };
    int accepted = 0;
    for (; accepted < WANTED; accepted++) {
        struct pollfd writable = {.fd = deaf.fd, .events = POLLOUT};
        if (poll(&writable, 1, 200) <= 0)
            break; /* the daemon stopped reading, as it should */
        if (send(deaf.fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            continue; /* a piece that does not fit now is not missed */
    }
    assert_true(accepted < WANTED);
    free(bytes);
    trainerd__reply__free_unpacked(status_of(&client), NULL);
    client_close(&deaf);
    client_close(&client);
}

static void send_raw(struct client *client, const void *bytes, size_t count)
{
    assert_int_equal(send(client->fd, bytes, count, MSG_NOSIGNAL), (ssize_t)count);
}

/* One reply with id 0 that says so, then the end of the stream. */
static void expect_refusal(struct client *client)
{
    REQUEST(request, STATUS, StatusRequest);
    request.status = &request_body;
    struct err err = ERR_INIT;
    Trainerd__Reply *reply = NULL;
    assert_false(client_request(client, &request, &reply, &err));
    assert_true(err.code == ERR_INVALID || err.code == ERR_NOT_FOUND || err.code == ERR_IO);
}

static void test_garbage(void **state)
{
    struct place *place = *state;
    static const struct {
        const char *bytes;
        size_t count;
    } garbage[] = {
        {"GET / HTTP/1.1\r\n\r\n", 18},
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11},
        {"\xff\xff\xff\xff\x7f", 5},
        {"\x03\xff\xff\xff", 4},
        {"\x02\x52\x7f", 3},
    };
    for (size_t i = 0; i < sizeof garbage / sizeof garbage[0]; i++) {
        struct client client = connect_to(place);
        send_raw(&client, garbage[i].bytes, garbage[i].count);
        if (i != 0) /* 'G' is the length of a frame of 71 bytes that never comes: the client leaves */
            expect_refusal(&client);
        client_close(&client);
    }
    unsigned random = 1;
    for (int i = 0; i < 200; i++) {
        struct client client = connect_to(place);
        unsigned char noise[256];
        for (size_t b = 0; b < sizeof noise; b++)
            noise[b] = (unsigned char)((random = random * 1103515245u + 12345u) >> 16);
        (void)!send(client.fd, noise, sizeof noise, MSG_NOSIGNAL);
        client_close(&client);
    }
    struct client client = connect_to(place);
    trainerd__reply__free_unpacked(status_of(&client), NULL);
    client_close(&client);
}

/* One valid request of every kind, as a frame; which from 0, false past the last. */
static bool pack_any(int which, unsigned char **bytes, size_t *count)
{
    REQUEST(status, STATUS, StatusRequest);
    REQUEST(subscribe, SUBSCRIBE, SubscribeRequest);
    REQUEST(init, INIT, InitRequest);
    REQUEST(export, EXPORT, ExportRequest);
    REQUEST(train, TRAIN, TrainRequest);
    REQUEST(swap, SET_OPTIMIZER, SetOptimizerRequest);
    REQUEST(schedule, SET_SCHEDULE, SetScheduleRequest);
    REQUEST(load, CHECKPOINT_LOAD, CheckpointLoadRequest);
    REQUEST(list, CHECKPOINT_LIST, CheckpointListRequest);
    REQUEST(runs, RUNS, RunsRequest);
    char *settings[] = {(char *)"lr=1e-4", (char *)"beta2=0.99"}, *kinds[] = {(char *)"kind=linear"};
    Trainerd__Seed seed = TRAINERD__SEED__INIT;
    seed.value = 7;
    status.status = &status_body;
    status.idempotency_key = (char *)"key";
    subscribe_body.run = (char *)"run-1";
    subscribe_body.history = subscribe_body.follow = true;
    subscribe.subscribe = &subscribe_body;
    init_body.path = (char *)"/a/config.json";
    init_body.seed = &seed;
    init.init = &init_body;
    export_body.path = (char *)"/a";
    export_body.dtype = (char *)"fp32";
    export.export = &export_body;
    train_body.recipe = (char *)"data: /d\nsteps: 3\noptimizer: {lr: 1e-3, betas: [0.9, 0.99]}\n";
    train_body.overrides = settings;
    train_body.n_overrides = 0;
    train.train = &train_body;
    swap_body.policy = (char *)"fp32-master+m=q8+v=bf16s";
    swap_body.settings = settings;
    swap_body.n_settings = 2;
    swap.set_optimizer = &swap_body;
    schedule_body.settings = kinds;
    schedule_body.n_settings = 1;
    schedule_body.dry_run = true;
    schedule.set_schedule = &schedule_body;
    load_body.name = (char *)"name";
    load_body.policy = (char *)"bf16-sr";
    load.checkpoint_load = &load_body;
    list.checkpoint_list = &list_body;
    runs.runs = &runs_body;
    const Trainerd__Request *const all[] = {&status, &subscribe, &init, &export, &train,
                                            &swap,   &schedule,  &load, &list,   &runs};
    if ((size_t)which >= sizeof all / sizeof all[0])
        return false;
    *bytes = frame_pack(&all[which]->base, count);
    return true;
}

/* Every request with bytes changed at random: answered, refused or closed; the daemon goes on, and says so.
 */
static void test_mutated_requests(void **state)
{
    struct place *place = *state;
    const char *said = getenv("TRAINERD_FUZZ_ROUNDS");
    int rounds = said ? atoi(said) : 60;
    uint64_t random = 88172645463325252u;
    struct client first = connect_to(place);
    init_model(&first);
    client_close(&first);
    for (int round = 0; round < rounds; round++) {
        unsigned char *bytes;
        size_t count;
        for (int which = 0; pack_any(which, &bytes, &count); which++) {
            for (unsigned changes = 0; changes < 1 + (unsigned)round % 4; changes++) {
                random ^= random << 13, random ^= random >> 7, random ^= random << 17;
                bytes[random % count] = (unsigned char)(random >> 32);
            }
            struct client client = connect_to(place);
            (void)!send(client.fd, bytes, count, MSG_NOSIGNAL);
            shutdown(client.fd, SHUT_WR); /* it sends no more, and reads what comes */
            if (round % 2)
                while (recv(client.fd, (unsigned char[4096]){0}, 4096, 0) > 0)
                    continue;
            free(bytes);
            client_close(&client);
        }
    }
    struct client client = connect_to(place);
    trainerd__reply__free_unpacked(status_of(&client), NULL);
    client_close(&client);
}

static void test_requests_in_a_row_are_answered_by_id(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    init_model(&client);
    enum { REQUESTS = 200 }; /* more than a session may have pending: it is read from as they are answered */
    for (uint64_t id = 1000; id < 1000 + REQUESTS; id++) {
        REQUEST(request, EVALUATE, EvaluateRequest);
        request_body.data = (char *)"/data";
        request.evaluate = &request_body;
        request.id = id;
        size_t count;
        unsigned char *bytes = frame_pack(&request.base, &count);
        send_raw(&client, bytes, count);
        free(bytes);
    }
    struct frame_reader reader;
    frame_reader_init(&reader, LIMIT_FRAME_BYTES);
    bool seen[REQUESTS] = {false};
    for (int answered = 0; answered < REQUESTS;) {
        unsigned char bytes[4096];
        ssize_t got = recv(client.fd, bytes, sizeof bytes, 0);
        assert_true(got > 0);
        for (size_t at = 0; at < (size_t)got;) {
            struct err err = ERR_INIT;
            const unsigned char *frame;
            size_t used, frame_bytes;
            check_ok(
                frame_reader_feed(&reader, bytes + at, (size_t)got - at, &used, &frame, &frame_bytes, &err),
                &err);
            at += used;
            if (!frame)
                continue;
            ProtobufCMessage *message = NULL;
            check_ok(frame_unpack(&message, &trainerd__frame__descriptor, frame, frame_bytes, 1 << 20, &err),
                     &err);
            const Trainerd__Reply *reply = ((Trainerd__Frame *)message)->reply;
            assert_in_range(reply->id, 1000, 1000 + REQUESTS - 1);
            assert_false(seen[reply->id - 1000]);
            assert_string_equal(reply->status->code, "ok");
            seen[reply->id - 1000] = true;
            answered++;
            protobuf_c_message_free_unpacked(message, NULL);
        }
    }
    frame_reader_done(&reader);
    client_close(&client);
}

static void test_the_schedule_is_merged(void **state)
{
    struct place *place = *state;
    struct client client = connect_to(place);
    init_model(&client);
    struct err err;
    REQUEST(look, SCHEDULE, ScheduleRequest);
    look.schedule = &look_body;
    refused(&client, &look, ERR_STATE, &err);
    train(&client,
          "data: /d\nsteps: 220\noptimizer: {lr: 1e-4}\nschedule: {kind: cosine, warmup_ratio: 0.1}\n", NULL);
    Trainerd__Reply *reply = ask(&client, &look);
    assert_int_equal(reply->schedule->warmup_steps, 22);
    assert_int_equal(reply->schedule->steps, 220);
    trainerd__reply__free_unpacked(reply, NULL);

    REQUEST(set, SET_SCHEDULE, SetScheduleRequest);
    char *settings[] = {(char *)"kind=wsd", (char *)"wsd_decay=40", (char *)"min_lr=1e-6"};
    set_body.settings = settings;
    set_body.n_settings = 3;
    set_body.dry_run = true;
    set.set_schedule = &set_body;
    reply = ask(&client, &set);
    assert_string_equal(reply->schedule->kind, "wsd");
    assert_int_equal(reply->schedule->warmup_steps, 22);
    assert_int_equal(reply->schedule->wsd_decay, 40);
    trainerd__reply__free_unpacked(reply, NULL);
    settings[0] = (char *)"warmup_ratio=0.2"; /* a ratio replaces the steps that were said before */
    set_body.n_settings = 1;
    reply = ask(&client, &set);
    assert_int_equal(reply->schedule->warmup_steps, 44);
    trainerd__reply__free_unpacked(reply, NULL);
    settings[0] = (char *)"kind=wsd";
    set_body.n_settings = 3;
    reply = ask(&client, &look);
    assert_string_equal(reply->schedule->kind, "cosine"); /* a dry run changes nothing */
    trainerd__reply__free_unpacked(reply, NULL);
    set_body.dry_run = false;
    trainerd__reply__free_unpacked(ask(&client, &set), NULL);
    reply = ask(&client, &look);
    assert_string_equal(reply->schedule->kind, "wsd");
    trainerd__reply__free_unpacked(reply, NULL);
    settings[0] = (char *)"warmup_step=3";
    set_body.n_settings = 1;
    refused(&client, &set, ERR_INVALID, &err);
    char line[4 * ERR_TEXT_BYTES];
    assert_non_null(strstr(err_line(&err, line, sizeof line), "warmup_steps"));
    client_close(&client);
}

static void test_sigusr1_queues_a_shutdown(void **state)
{
    struct place *place = *state;
    kill(getpid(), SIGUSR1);
    for (int i = 0; i < 5000 && atomic_load(&place->engine.shutdowns) == 0; i++)
        nap();
    assert_int_equal(atomic_load(&place->engine.shutdowns), 1);
}

static void test_a_second_daemon_is_refused_with_the_firsts_pid(void **state)
{
    struct place *place = *state;
    struct statedir second = {0};
    struct err err = ERR_INIT;
    check_refused(statedir_open(&second, place->folder, &err), &err, ERR_STATE);
    char pid[32];
    snprintf(pid, sizeof pid, "process %ld", (long)getpid());
    assert_non_null(strstr(err.what, pid));
    statedir_close(&second);
}

static void start_refused(const struct place *place, const char *listen, enum err_code code, const char *says)
{
    struct control *second = NULL;
    struct err err = ERR_INIT;
    struct control_options options = {
        .listen = &listen, .listen_count = 1, .state_dir = place->dir.path, .version = "test"};
    check_refused(control_start(&second, &options, &err), &err, code);
    char line[4 * ERR_TEXT_BYTES];
    err_line(&err, line, sizeof line);
    if (!strstr(line, says))
        fail_msg("\"%s\" does not say \"%s\"", line, says);
}

static void test_addresses_that_cannot_be(void **state)
{
    struct place *place = *state;
    char path[256];
    start_refused(place, "tcp:localhost:7000", ERR_UNSUPPORTED, "not built yet");
    start_refused(place, "nonsense", ERR_INVALID, "unix:");
    start_refused(place, place->address, ERR_STATE, "listens");
    snprintf(path, sizeof path, "unix:%s/%0110d.sock", place->folder, 7);
    start_refused(place, path, ERR_INVALID, "use --listen unix:/");
    snprintf(path, sizeof path, "unix:%s/lock", place->folder);
    start_refused(place, path, ERR_INVALID, "not a socket");
    /* None of it hurt the one that runs. */
    struct client client = connect_to(place);
    trainerd__reply__free_unpacked(status_of(&client), NULL);
    client_close(&client);
}

/* What a killed daemon leaves behind does not stand in the way. */
static void test_a_stale_socket_is_replaced(void **state)
{
    struct place *place = *state;
    char path[100], listen_on[160];
    snprintf(path, sizeof path, "%s/stale.sock", place->folder);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    snprintf(listen_on, sizeof listen_on, "unix:%s", path);
    const char *listen_text = listen_on;
    struct control *second = NULL;
    struct err err = ERR_INIT;
    struct control_options options = {
        .listen = &listen_text, .listen_count = 1, .state_dir = place->dir.path, .version = "test"};
    check_ok(control_start(&second, &options, &err), &err);
    struct client client;
    check_ok(client_open(&client, listen_on, 5, &err), &err);
    client_close(&client);
    control_stop(second);
    assert_int_equal(access(path, F_OK), -1);
}

/* control_stop while clients wait, subscribe and never read: it ends within its second, and says so to those
 * who wait. */
static void test_stopping_with_clients(void **state)
{
    struct place *place = *state;
    struct client waiting = connect_to(place), deaf = connect_to(place);
    trainerd__reply__free_unpacked(status_of(&waiting), NULL);
    atomic_store(&place->engine.hold, true);
    REQUEST(request, INIT, InitRequest);
    request_body.path = (char *)"/tmp/c";
    request.init = &request_body;
    request.id = 5;
    size_t count;
    unsigned char *bytes = frame_pack(&request.base, &count);
    send_raw(&waiting, bytes, count);
    free(bytes);
    while (atomic_load(&place->engine.commands) == 0)
        nap();
    fake_engine_join(&place->engine); /* leaves without an answer, as an engine that failed does */
    control_stop(place->control);
    place->control = NULL;
    unsigned char reply[512];
    assert_true(recv(waiting.fd, reply, sizeof reply, 0) > 0);
    client_close(&waiting);
    client_close(&deaf);
    atomic_store(&place->engine.stop, false);
    struct control_options options = {.state_dir = place->dir.path, .version = "test"};
    struct err err = ERR_INIT;
    check_ok(control_start(&place->control, &options, &err), &err); /* and the place is free again */
    atomic_store(&place->engine.hold, false);
    fake_engine_start(&place->engine, control_mailbox(place->control), place->dir.path);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_the_socket_is_private),
        CASE(test_status_and_audit_from_the_snapshot),
        CASE(test_refusals_say_what_why_and_what_to_do),
        CASE(test_a_run_seen_by_its_subscriber),
        CASE(test_history_without_following),
        CASE(test_the_seam_between_history_and_live),
        CASE(test_an_idempotency_key_does_it_once),
        CASE(test_a_deadline),
        CASE(test_what_expires_is_not_done),
        CASE(test_clients_that_leave),
        CASE(test_a_subscriber_that_never_reads),
        CASE(test_a_client_that_never_reads),
        CASE(test_garbage),
        CASE(test_mutated_requests),
        CASE(test_requests_in_a_row_are_answered_by_id),
        CASE(test_the_schedule_is_merged),
        CASE(test_sigusr1_queues_a_shutdown),
        CASE(test_a_second_daemon_is_refused_with_the_firsts_pid),
        CASE(test_addresses_that_cannot_be),
        CASE(test_a_stale_socket_is_replaced),
        CASE(test_stopping_with_clients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
