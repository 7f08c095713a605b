/* Messages as JSON: the protocol's names, every field, NaN as null; and back. */
#include "check.h"
#include "json.h"
#include "trainerd.pb-c.h"

#include <stdlib.h>

static void check_json(const ProtobufCMessage *message, const char *want)
{
    json_t *value = json_from_message(message);
    assert_non_null(value);
    char *text = json_dumps(value, JSON_COMPACT);
    assert_string_equal(text, want);
    free(text);
    json_decref(value);
}

static void test_a_step_has_the_contracts_names(void **state)
{
    (void)state;
    Trainerd__Step step = TRAINERD__STEP__INIT;
    Trainerd__Seconds seconds = TRAINERD__SECONDS__INIT;
    step.run = (char *)"r1";
    step.step = 3;
    step.total_steps = 1ll << 40;
    step.loss = 0.5;
    step.grad_norm = (double)INFINITY;
    step.lr = 1e-4;
    step.model_flops_utilization = (double)NAN;
    step.update_quality = 1;
    step.policy = (char *)"bf16";
    seconds.forward = 0.25;
    step.seconds = &seconds;
    check_json(
        &step.base,
        "{\"run\":\"r1\",\"step\":3,\"total_steps\":1099511627776,\"loss\":0.5,\"grad_norm\":null,"
        "\"lr\":0.0001,\"tokens\":0,\"labelled_tokens\":0,\"step_seconds\":0.0,\"tokens_per_second\":0.0,"
        "\"model_flops_utilization\":null,\"seconds\":{\"data\":0.0,\"forward\":0.25,\"backward\":0.0,"
        "\"communicate\":0.0,\"optimize\":0.0},\"lost_update_share\":0.0,\"stalled_v_share\":0.0,"
        "\"update_quality\":1.0,\"skipped\":0,\"policy\":\"bf16\",\"weight_version\":0,\"memory_bytes\":0}");
}

static void test_lists_absent_messages_and_large_numbers(void **state)
{
    (void)state;
    Trainerd__Audit audit = TRAINERD__AUDIT__INIT;
    check_json(&audit.base, "{\"rows\":[],\"bytes_total\":0,\"bytes_allocated\":0}");
    Trainerd__AuditRow row = TRAINERD__AUDIT_ROW__INIT;
    Trainerd__AuditRow *rows[] = {&row, &row};
    row.rank = -1;
    row.tensor = (char *)"a \"b\"";
    audit.rows = rows;
    audit.n_rows = 2;
    check_json(
        &audit.base,
        "{\"rows\":[{\"rank\":-1,\"tensor\":\"a \\\"b\\\"\",\"kind\":\"\",\"dtype\":\"\",\"elements\":0,"
        "\"bytes\":0},{\"rank\":-1,\"tensor\":\"a \\\"b\\\"\",\"kind\":\"\",\"dtype\":\"\",\"elements\":0,"
        "\"bytes\":0}],\"bytes_total\":0,\"bytes_allocated\":0}");
    Trainerd__Seed seed = TRAINERD__SEED__INIT;
    seed.value = UINT64_MAX;
    check_json(&seed.base, "{\"value\":\"18446744073709551615\"}");
    Trainerd__Policy policy = TRAINERD__POLICY__INIT;
    char *warnings[] = {(char *)"x", (char *)"y"};
    policy.warnings = warnings;
    policy.n_warnings = 2;
    check_json(&policy.base, "{\"name\":\"\",\"weight\":\"\",\"m\":\"\",\"v\":\"\",\"accumulate\":\"\","
                             "\"reduce\":\"\",\"compute\":\"\",\"bytes_per_parameter\":0.0,"
                             "\"warnings\":[\"x\",\"y\"]}");
    Trainerd__InitRequest init = TRAINERD__INIT_REQUEST__INIT;
    check_json(&init.base, "{\"path\":\"\",\"seed\":null}");
}

/* Only the member that is set of a oneof. */
static void test_a_oneof_shows_what_is_set(void **state)
{
    (void)state;
    Trainerd__Event event = TRAINERD__EVENT__INIT;
    event.body_case = TRAINERD__EVENT__BODY_DROPPED;
    event.dropped = 7;
    check_json(&event.base, "{\"dropped\":7}");
    Trainerd__EndEvent end = TRAINERD__END_EVENT__INIT;
    event.body_case = TRAINERD__EVENT__BODY_END;
    event.end = &end;
    check_json(&event.base, "{\"end\":{\"text\":\"\"}}");
}

static void test_text_that_is_no_utf8_stays_json(void **state)
{
    (void)state;
    Trainerd__Done done = TRAINERD__DONE__INIT;
    done.text = (char *)"\xff\xfe";
    check_json(&done.base, "{\"text\":\"(not UTF-8)\"}");
}

static void test_there_and_back(void **state)
{
    (void)state;
    json_t *value = json_loads("{\"step\": 4, \"loss\": 2, \"lr\": null, \"run\": \"r\", \"policy\": 5,"
                               " \"seconds\": {\"forward\": 1.5}, \"unknown\": [1]}",
                               0, NULL);
    Trainerd__Step *step = (Trainerd__Step *)json_to_message(&trainerd__step__descriptor, value);
    json_decref(value);
    assert_non_null(step);
    assert_int_equal(step->step, 4);
    check_close(step->loss, 2.0, 0, 0);
    assert_true(isnan(step->lr) && isnan(step->grad_norm));
    assert_string_equal(step->run, "r");
    assert_string_equal(step->policy, "");
    check_close(step->seconds->forward, 1.5, 0, 0);
    assert_true(isnan(step->seconds->data));
    trainerd__step__free_unpacked(step, NULL);
    assert_null(json_to_message(&trainerd__step__descriptor, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_step_has_the_contracts_names),
        cmocka_unit_test(test_lists_absent_messages_and_large_numbers),
        cmocka_unit_test(test_a_oneof_shows_what_is_set),
        cmocka_unit_test(test_text_that_is_no_utf8_stays_json),
        cmocka_unit_test(test_there_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
