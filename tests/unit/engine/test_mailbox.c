/* The meeting of the two threads: order, bounds, ownership; and the table of states and commands. */
#include "check.h"
#include "mailbox.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_int wakes;

static void count_wake(void *context)
{
    (void)context;
    atomic_fetch_add(&wakes, 1);
}

static struct mailbox *new_box(void)
{
    struct mailbox *box = mailbox_new(count_wake, NULL);
    assert_non_null(box);
    return box;
}

static void test_commands_keep_their_order_and_are_bounded(void **state)
{
    (void)state;
    struct mailbox *box = new_box();
    struct command *command = calloc(1, sizeof *command);
    struct reply *reply = calloc(1, sizeof *reply);
    struct err err = ERR_INIT;
    for (uint64_t i = 0; i < LIMIT_COMMAND_QUEUE; i++) {
        command->ticket = i;
        check_ok(mailbox_submit(box, command, &err), &err);
    }
    check_refused(mailbox_submit(box, command, &err), &err, ERR_BUSY);

    /* Taking the commands up frees nothing: each still has a reply to come. */
    for (uint64_t i = 0; i < LIMIT_COMMAND_QUEUE; i++) {
        assert_true(mailbox_next(box, command, 0));
        assert_int_equal(command->ticket, i);
        reply->ticket = i;
        mailbox_reply(box, reply);
    }
    assert_false(mailbox_next(box, command, 0));
    err = (struct err)ERR_INIT;
    check_refused(mailbox_submit(box, command, &err), &err, ERR_BUSY);
    for (uint64_t i = 0; i < LIMIT_COMMAND_QUEUE; i++) {
        assert_true(mailbox_take_reply(box, reply));
        assert_int_equal(reply->ticket, i);
    }
    assert_false(mailbox_take_reply(box, reply));
    err = (struct err)ERR_INIT;
    check_ok(mailbox_submit(box, command, &err), &err);
    free(command);
    free(reply);
    mailbox_free(box);
}

/* Only what waits can expire; it is taken all the same, in its turn, so that it is journalled and answered.
 */
static void test_a_waiting_command_expires(void **state)
{
    (void)state;
    struct mailbox *box = new_box();
    struct command *command = calloc(1, sizeof *command);
    struct err err = ERR_INIT;
    for (command->ticket = 1; command->ticket <= 3; command->ticket++)
        check_ok(mailbox_submit(box, command, &err), &err);
    assert_true(mailbox_next(box, command, 0));
    assert_false(mailbox_expire(box, 1));
    assert_true(mailbox_expire(box, 2));
    assert_false(mailbox_expire(box, 4));
    assert_true(mailbox_next(box, command, 0));
    assert_true(command->ticket == 2 && command->expired);
    assert_true(mailbox_next(box, command, 0));
    assert_true(command->ticket == 3 && !command->expired);
    free(command);
    mailbox_free(box);
}

static bool is_evaluate(const struct command *command)
{
    return command->expired || command->kind == COMMAND_EVALUATE;
}

/* Within a step the first command is taken only if it is fit; what is behind an unfit one waits its turn. */
static void test_only_a_fit_command_is_taken(void **state)
{
    (void)state;
    struct mailbox *box = new_box();
    struct command *command = calloc(1, sizeof *command);
    struct err err = ERR_INIT;
    enum command_kind kind = COMMAND_COUNT;
    bool waits = true;
    assert_false(mailbox_next_fit(box, is_evaluate, command, &waits, &kind));
    assert_false(waits);
    static const enum command_kind kinds[] = {COMMAND_EVALUATE, COMMAND_PAUSE, COMMAND_EVALUATE};
    for (int i = 0; i < 3; i++) {
        *command = (struct command){.kind = kinds[i], .ticket = (uint64_t)i};
        check_ok(mailbox_submit(box, command, &err), &err);
    }
    assert_true(mailbox_next_fit(box, is_evaluate, command, &waits, &kind));
    assert_true(command->ticket == 0 && !waits);
    assert_false(mailbox_next_fit(box, is_evaluate, command, &waits, &kind));
    assert_true(waits && kind == COMMAND_PAUSE);
    assert_true(mailbox_expire(box, 1)); /* expired ones are answered at once */
    assert_true(mailbox_next_fit(box, is_evaluate, command, &waits, &kind));
    assert_int_equal(command->ticket, 1);
    assert_true(mailbox_next(box, command, 0));
    assert_int_equal(command->ticket, 2);
    free(command);
    mailbox_free(box);
}

static void test_events_drop_the_oldest_and_are_counted(void **state)
{
    (void)state;
    struct mailbox *box = new_box();
    struct event event = {.kind = EVENT_STEP};
    for (int64_t i = 0; i < LIMIT_EVENT_QUEUE + 7; i++) {
        event.step.step = i;
        mailbox_post(box, &event);
    }
    int64_t dropped = -1;
    assert_true(mailbox_take_event(box, &event, &dropped));
    assert_int_equal(dropped, 7);
    assert_int_equal(event.step.step, 7);
    for (int64_t i = 8; i < LIMIT_EVENT_QUEUE + 7; i++) {
        assert_true(mailbox_take_event(box, &event, &dropped));
        assert_int_equal(dropped, 0);
        assert_int_equal(event.step.step, i);
    }
    assert_false(mailbox_take_event(box, &event, &dropped));
    mailbox_free(box);
}

static void test_a_snapshot_replaces_the_one_before(void **state)
{
    (void)state;
    struct mailbox *box = new_box();
    for (int64_t i = 1; i <= 3; i++) {
        struct snapshot *snapshot = calloc(1, sizeof *snapshot);
        snapshot->step = i;
        mailbox_publish(box, snapshot);
        struct audit *audit = calloc(1, sizeof *audit);
        audit->bytes_total = i;
        mailbox_publish_audit(box, audit);
    }
    struct snapshot *snapshot = mailbox_take_snapshot(box);
    struct audit *audit = mailbox_take_audit(box);
    assert_int_equal(snapshot->step, 3);
    assert_int_equal(audit->bytes_total, 3);
    assert_null(mailbox_take_snapshot(box));
    assert_null(mailbox_take_audit(box));
    free(snapshot);
    free(audit);
    mailbox_publish(
        box, calloc(1, sizeof *snapshot)); /* one left inside is freed with the box (AddressSanitizer) */
    mailbox_free(box);
}

enum { COMMANDS_SENT = 2000 };

static void *play_engine(void *context)
{
    struct mailbox *box = context;
    struct command *command = calloc(1, sizeof *command);
    struct reply *reply = calloc(1, sizeof *reply);
    struct event event = {.kind = EVENT_STEP};
    for (int done = 0; done < COMMANDS_SENT;) {
        event.step.step++;
        mailbox_post(box, &event);
        mailbox_publish(box, calloc(1, sizeof(struct snapshot)));
        if (!mailbox_next(box, command, 0.001))
            continue;
        reply->ticket = command->ticket;
        mailbox_reply(box, reply);
        done++;
    }
    free(command);
    free(reply);
    return NULL;
}

/* Both threads at full speed: every command answered once, in order; no event is seen twice or lost
 * uncounted. */
static void test_two_threads(void **state)
{
    (void)state;
    struct mailbox *box = new_box();
    pthread_t engine;
    assert_int_equal(pthread_create(&engine, NULL, play_engine, box), 0);
    struct command *command = calloc(1, sizeof *command);
    struct reply *reply = calloc(1, sizeof *reply);
    struct event event;
    uint64_t sent = 0, answered = 0;
    int64_t seen = 0;
    while (answered < COMMANDS_SENT) {
        struct err err = ERR_INIT;
        command->ticket = sent;
        if (sent < COMMANDS_SENT && mailbox_submit(box, command, &err))
            sent++;
        if (mailbox_take_reply(box, reply)) {
            assert_int_equal(reply->ticket, answered);
            answered++;
        }
        int64_t dropped;
        if (mailbox_take_event(box, &event, &dropped)) {
            assert_int_equal(event.step.step, seen + dropped + 1);
            seen = event.step.step;
        }
        free(mailbox_take_snapshot(box));
    }
    pthread_join(engine, NULL);
    assert_true(atomic_load(&wakes) > COMMANDS_SENT);
    free(command);
    free(reply);
    mailbox_free(box);
}

static void test_every_command_is_legal_somewhere_and_refusals_say_where(void **state)
{
    (void)state;
    for (int kind = 0; kind < COMMAND_COUNT; kind++) {
        int legal = 0;
        for (int s = 0; s < STATE_COUNT; s++) {
            struct err err = ERR_INIT;
            if (command_legal((enum command_kind)kind, (enum engine_state)s, &err)) {
                legal++;
                continue;
            }
            assert_int_equal(err.code, ERR_STATE);
            assert_non_null(strstr(err.what, command_name((enum command_kind)kind)));
            assert_non_null(strstr(err.what, engine_state_name((enum engine_state)s)));
            assert_true(err.why[0] && err.hint[0]);
        }
        assert_true(legal > 0);
    }
    struct err err = ERR_INIT;
    check_refused(command_legal(COMMAND_TRAIN, STATE_RUNNING, &err), &err, ERR_STATE);
    assert_string_equal(err.why, "it is possible while it is idle or failed");
    err = (struct err)ERR_INIT;
    check_refused(command_legal(COMMAND_COUNT, STATE_IDLE, &err), &err, ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commands_keep_their_order_and_are_bounded),
        cmocka_unit_test(test_a_waiting_command_expires),
        cmocka_unit_test(test_only_a_fit_command_is_taken),
        cmocka_unit_test(test_events_drop_the_oldest_and_are_counted),
        cmocka_unit_test(test_a_snapshot_replaces_the_one_before),
        cmocka_unit_test(test_two_threads),
        cmocka_unit_test(test_every_command_is_legal_somewhere_and_refusals_say_where),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
