/* Clients that leave, that never read, that send garbage: the daemon goes on and serves the next. */
#include "control_rig.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_clients_that_leave),
        CASE(test_a_client_that_never_reads),
        CASE(test_garbage),
        CASE(test_mutated_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
