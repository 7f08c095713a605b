/* Requests and their answers: what a client is told, when, and how often something is done. */
#include "control_rig.h"

#include <stdlib.h>
#include <sys/socket.h>

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

    REQUEST(move, SET_LAYOUT, SetLayoutRequest);
    move.set_layout = &move_body;
    refused(&client, &move, ERR_INVALID, &err);
    move_body.layout = (char *)"d2";
    move_body.zero = -1;
    refused(&client, &move, ERR_INVALID, &err);

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_status_and_audit_from_the_snapshot),
        CASE(test_refusals_say_what_why_and_what_to_do),
        CASE(test_an_idempotency_key_does_it_once),
        CASE(test_a_deadline),
        CASE(test_what_expires_is_not_done),
        CASE(test_requests_in_a_row_are_answered_by_id),
        CASE(test_the_schedule_is_merged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
