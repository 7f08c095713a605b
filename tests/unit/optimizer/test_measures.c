/* Shares, quality and the alarm's state machine. */
#include "check.h"

#include "measures.h"

static void test_zero_rules(void **state)
{
    (void)state;
    struct update_measures none = {0};
    assert_true(measures_lost_update_share(&none) == 0);
    assert_true(measures_stalled_v_share(&none) == 0);
    assert_true(measures_update_quality(&none) == 1);
    assert_false(measures_frozen(&none));
    struct update_measures exact = {
        .changing = 10, .v_changing = 10, .stored_exact = 0.1 + 0.2, .exact_exact = 0.1 + 0.2};
    assert_true(measures_lost_update_share(&exact) == 0);
    assert_true(measures_update_quality(&exact) == 1);
    struct update_measures ruined = {.changing = 1, .stored_exact = (double)NAN, .exact_exact = (double)NAN};
    assert_true(measures_update_quality(&ruined) == 0);
}

static void test_shares_and_merge(void **state)
{
    (void)state;
    struct update_measures a = {8, 2, 10, 5, 0.5, 1.0}, b = {2, 2, 0, 0, 0, 0.25};
    assert_true(measures_lost_update_share(&a) == 0.25);
    assert_true(measures_stalled_v_share(&a) == 0.5);
    assert_true(measures_update_quality(&a) == 0.5);
    assert_false(measures_frozen(&a));
    assert_true(measures_frozen(&b));
    measures_merge(&a, &b);
    assert_int_equal(a.changing, 10);
    assert_int_equal(a.lost, 4);
    assert_true(measures_update_quality(&a) == 0.4);
}

/* Observes the same quality n times at the peak; returns how often the level changed. */
static int observe(struct alarm *alarm, double quality, int n)
{
    int changes = 0;
    for (int i = 0; i < n; i++)
        changes += alarm_observe(alarm, quality, 1e-4, 1e-4);
    return changes;
}

static void test_alarm_rises_and_clears(void **state)
{
    (void)state;
    struct alarm alarm;
    alarm_reset(&alarm);
    assert_int_equal(observe(&alarm, 0.06, 9), 0);
    assert_int_equal(alarm.level, ALARM_NONE); /* nine are not ten */
    assert_int_equal(observe(&alarm, 0.06, 1), 1);
    assert_int_equal(alarm.level, ALARM_CRITICAL_LEVEL);
    /* The fault is cured: 0.06 leaves the window one by one. */
    assert_int_equal(observe(&alarm, 1.0, 4), 0);
    assert_int_equal(observe(&alarm, 1.0, 1), 1); /* (5*0.06 + 5)/10 = .53 */
    assert_int_equal(alarm.level, ALARM_WARNING_LEVEL);
    assert_int_equal(observe(&alarm, 1.0, 4), 0);
    assert_int_equal(alarm.level, ALARM_WARNING_LEVEL); /* .906 */
    assert_int_equal(observe(&alarm, 1.0, 1), 1);
    assert_int_equal(alarm.level, ALARM_NONE);
    check_close(alarm_mean(&alarm), 1, 0, 0);
}

static void test_alarm_thresholds(void **state)
{
    (void)state;
    struct alarm alarm;
    alarm_reset(&alarm);
    observe(&alarm, 0.9990, 10);
    assert_int_equal(alarm.level, ALARM_NONE);
    alarm_reset(&alarm);
    observe(&alarm, 0.9375, 10);
    assert_int_equal(alarm.level, ALARM_WARNING_LEVEL);
    alarm_reset(&alarm);
    observe(&alarm, 0.5, 10); /* not under .5 */
    assert_int_equal(alarm.level, ALARM_WARNING_LEVEL);
    alarm_reset(&alarm);
    observe(&alarm, (double)NAN, 10);
    assert_int_equal(alarm.level, ALARM_CRITICAL_LEVEL);
    alarm_reset(&alarm);
    assert_true(alarm_mean(&alarm) == 1);
}

/* Where the rate is nearly zero even fp32 loses updates: such updates do not count, nor does one at lr 0. */
static void test_alarm_counts_by_rate(void **state)
{
    (void)state;
    struct alarm alarm, before;
    alarm_reset(&alarm);
    observe(&alarm, 1, 10);
    before = alarm;
    for (int i = 0; i < 20; i++) {
        assert_false(alarm_observe(&alarm, 0.0, 0.99e-6, 1e-4));
        assert_false(alarm_observe(&alarm, 0.0, 0.0, 1e-4));
        assert_false(alarm_observe(&alarm, 0.0, 0.0, 0.0));
    }
    assert_memory_equal(&alarm, &before, sizeof alarm);
    assert_true(alarm_counts(1e-6, 1e-4));
    assert_false(alarm_observe(&alarm, 0.9, 1e-6, 1e-4));
    assert_memory_not_equal(&alarm, &before, sizeof alarm);
}

/* The state is its bytes: a copy made half-way goes on the same way. */
static void test_alarm_is_plain_data(void **state)
{
    (void)state;
    struct alarm a, b;
    alarm_reset(&a);
    for (int i = 0; i < 40; i++) {
        if (i == 17)
            memcpy(&b, &a, sizeof a);
        bool changed = alarm_observe(&a, i % 7 / 7.0, 1, 1);
        if (i >= 17)
            assert_int_equal(alarm_observe(&b, i % 7 / 7.0, 1, 1), changed);
    }
    assert_memory_equal(&a, &b, sizeof a);
}

static void test_still_tensors(void **state)
{
    (void)state;
    uint8_t still[3] = {0};
    struct update_measures tensors[3] = {{.changing = 4, .lost = 4}, {.changing = 4, .lost = 3}, {0}};
    for (int i = 0; i < 9; i++)
        alarm_observe_tensors(still, tensors, 3);
    assert_false(alarm_names_tensor(still[0]));
    for (int i = 0; i < 300; i++)
        alarm_observe_tensors(still, tensors, 3);
    assert_true(alarm_names_tensor(still[0]));
    assert_false(alarm_names_tensor(still[1]));
    assert_false(alarm_names_tensor(still[2]));
    tensors[0].lost = 3;
    alarm_observe_tensors(still, tensors, 3);
    assert_false(alarm_names_tensor(still[0]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_rules),
        cmocka_unit_test(test_shares_and_merge),
        cmocka_unit_test(test_alarm_rises_and_clears),
        cmocka_unit_test(test_alarm_thresholds),
        cmocka_unit_test(test_alarm_counts_by_rate),
        cmocka_unit_test(test_alarm_is_plain_data),
        cmocka_unit_test(test_still_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
