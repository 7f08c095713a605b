/* Schedules against the closed forms, the seed's table, and what must be refused. */
#include "check.h"

#include "schedule.h"

#include <stdio.h>

#define PI_L 3.14159265358979323846264338327950288L

static struct schedule resolved(enum schedule_kind kind, int64_t steps, int64_t warmup, double min_lr)
{
    struct schedule_settings settings = schedule_settings_default();
    settings.kind = kind;
    settings.warmup_steps = warmup;
    if (kind != SCHEDULE_CONSTANT)
        settings.min_lr = min_lr;
    if (kind == SCHEDULE_WSD)
        settings.wsd_decay = (steps - warmup) / 3;
    struct schedule schedule;
    struct err err = ERR_INIT;
    check_ok(schedule_resolve(&schedule, &settings, 1e-4, steps, &err), &err);
    return schedule;
}

static void test_the_seeds_table(void **state)
{
    (void)state;
    struct schedule_settings settings = schedule_settings_default();
    settings.warmup_ratio = 0.1;
    struct schedule s;
    struct err err = ERR_INIT;
    check_ok(schedule_resolve(&s, &settings, 1e-4, 220, &err), &err);
    assert_int_equal(s.warmup, 22);
    static const struct {
        int64_t k;
        double f, apart;
    } rows[] = {{0, 0, 0},
                {1, 1.0 / 22, 1e-15},
                {22, 1, 0},
                {23, 0.9999371, 5e-8},
                {110, 0.5868241, 5e-8},
                {198, 0.0301537, 5e-8},
                {219, 6.2936e-5, 5e-10}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_close(schedule_multiplier(&s, rows[i].k), rows[i].f, 0, rows[i].apart);
    check_close(schedule_lr(&s, 110), 0.5868241e-4, 0, 5e-12);
}

/* transformers: math.ceil(num_training_steps * warmup_ratio) in double. 0.07 * 100 = 7.000000000000001. */
static void test_ratio_as_transformers_forms_it(void **state)
{
    (void)state;
    static const struct {
        double ratio;
        int64_t steps, want;
    } rows[] = {{0.1, 220, 22},  {0.07, 100, 8}, {0.1, 30, 3}, {0.3, 10, 3}, {0.03, 100, 3},
                {0.29, 100, 29}, {0.0, 50, 0},   {1.0, 7, 7},  {0.1, 1, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct schedule_settings settings = schedule_settings_default();
        settings.warmup_ratio = rows[i].ratio;
        struct schedule s;
        struct err err = ERR_INIT;
        check_ok(schedule_resolve(&s, &settings, 1, rows[i].steps, &err), &err);
        assert_int_equal(s.warmup, rows[i].want);
    }
}

/* The formulas once more, in long double, written down independently. */
static long double closed_form(const struct schedule *s, int64_t k)
{
    long double low = (long double)s->min_lr / (long double)s->lr, w = s->warmup, n = s->steps, at = k;
    if (k < s->warmup)
        return (long double)s->warmup_init + (1 - (long double)s->warmup_init) * at / w;
    if (s->kind == SCHEDULE_CONSTANT)
        return 1;
    if (s->kind == SCHEDULE_WSD)
        return k < s->steps - s->wsd_decay ? 1
               : k >= s->steps             ? low
                                           : low + (1 - low) * (n - at) / (long double)s->wsd_decay;
    if (k >= s->decay_end)
        return low;
    long double share = (at - w) / ((long double)s->decay_end - w);
    return low + (1 - low) * (s->kind == SCHEDULE_LINEAR ? 1 - share : (1 + cosl(PI_L * share)) / 2);
}

static void test_closed_forms(void **state)
{
    (void)state;
    static const int64_t lengths[] = {1, 2, 7, 220, 1000, 100000};
    for (int kind = 0; kind < SCHEDULE_KIND_COUNT; kind++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            for (int variant = 0; variant < 3; variant++) {
                struct schedule s = resolved((enum schedule_kind)kind, lengths[i],
                                             variant == 0   ? 0
                                             : variant == 1 ? lengths[i] / 10
                                                            : lengths[i],
                                             variant * 1e-5);
                s.warmup_init = variant * 0.25;
                for (int64_t k = 0; k<lengths[i] + 3; k += lengths[i]> 1000 ? 37 : 1)
                    check_close(schedule_multiplier(&s, k), (double)closed_form(&s, k), 0, 1e-12);
            }
}

/* The seed's second bug: decay steps stated relative to the warm-up, subtracted twice. Stated absolutely,
 * f(198) > 0. */
static void test_decay_steps_are_absolute(void **state)
{
    (void)state;
    struct schedule_settings settings = schedule_settings_default();
    settings.warmup_steps = 22;
    settings.decay_steps = 198;
    struct schedule s;
    struct err err = ERR_INIT;
    check_ok(schedule_resolve(&s, &settings, 1e-4, 220, &err), &err);
    check_close(schedule_multiplier(&s, 110), 0.5, 0, 1e-12);
    check_close(schedule_multiplier(&s, 198), 0, 0, 0);
    check_close(schedule_multiplier(&s, 219), 0, 0, 0);
    char text[256];
    assert_non_null(strstr(schedule_note(&s, text, sizeof text), "198"));
    settings.decay_steps = 300; /* later than the run: cut off, and said */
    check_ok(schedule_resolve(&s, &settings, 1e-4, 220, &err), &err);
    assert_true(schedule_multiplier(&s, 219) > 0.1);
    assert_non_null(strstr(schedule_note(&s, text, sizeof text), "300"));
}

static void refused(struct schedule_settings settings, double lr, int64_t steps, const char *word)
{
    struct schedule s;
    struct err err = ERR_INIT;
    check_refused(schedule_resolve(&s, &settings, lr, steps, &err), &err, ERR_INVALID);
    char line[4 * ERR_TEXT_BYTES];
    if (!strstr(err_line(&err, line, sizeof line), word))
        fail_msg("'%s' does not name '%s'", line, word);
}

static void test_refusals(void **state)
{
    (void)state;
    struct schedule_settings none = schedule_settings_default(), s;
    s = none, s.warmup_steps = 21, s.warmup_ratio = 0.1;
    refused(s, 1e-4, 220, "twice");
    s = none, s.warmup_ratio = 1.5;
    refused(s, 1e-4, 220, "ratio");
    s = none, s.warmup_ratio = (double)NAN;
    refused(s, 1e-4, 220, "ratio");
    s = none, s.warmup_steps = 221;
    refused(s, 1e-4, 220, "longer");
    s = none, s.warmup_steps = 22, s.decay_steps = 21;
    refused(s, 1e-4, 220, "absolute");
    s = none, s.kind = SCHEDULE_CONSTANT, s.decay_steps = 100;
    refused(s, 1e-4, 220, "constant");
    s = none, s.kind = SCHEDULE_WSD;
    refused(s, 1e-4, 220, "wsd_decay");
    s = none, s.kind = SCHEDULE_WSD, s.decay_steps = 100, s.wsd_decay = 10;
    refused(s, 1e-4, 220, "wsd_decay");
    s = none, s.kind = SCHEDULE_WSD, s.warmup_steps = 200, s.wsd_decay = 21;
    refused(s, 1e-4, 220, "overlap");
    s = none, s.wsd_decay = 5;
    refused(s, 1e-4, 220, "wsd_decay");
    s = none, s.min_lr = 2e-4;
    refused(s, 1e-4, 220, "min_lr");
    s = none, s.min_lr = (double)NAN;
    refused(s, 1e-4, 220, "min_lr");
    s = none, s.kind = SCHEDULE_CONSTANT, s.min_lr = 1e-5;
    refused(s, 1e-4, 220, "min_lr");
    s = none, s.warmup_init = 1.1;
    refused(s, 1e-4, 220, "warm-up");
    s = none, s.warmup_init = (double)NAN;
    refused(s, 1e-4, 220, "warm-up");
    refused(none, 0, 220, "learning rate");
    refused(none, (double)INFINITY, 220, "learning rate");
    refused(none, (double)NAN, 220, "learning rate");
    refused(none, 1e-4, 0, "steps");
    enum schedule_kind kind;
    struct err err = ERR_INIT;
    check_refused(schedule_kind_parse(&kind, "cosin", &err), &err, ERR_INVALID);
    assert_non_null(strstr(err.hint, "cosine"));
    for (int i = 0; i < SCHEDULE_KIND_COUNT; i++) {
        struct err none_yet = ERR_INIT;
        check_ok(schedule_kind_parse(&kind, schedule_kind_name((enum schedule_kind)i), &none_yet), &none_yet);
        assert_int_equal(kind, i);
    }
}

static void test_notes(void **state)
{
    (void)state;
    char text[256];
    struct schedule s = resolved(SCHEDULE_COSINE, 220, 22, 0);
    assert_non_null(strstr(schedule_note(&s, text, sizeof text), "learning rate 0"));
    s = resolved(SCHEDULE_COSINE, 220, 0, 0);
    assert_string_equal(schedule_note(&s, text, sizeof text), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_seeds_table), cmocka_unit_test(test_ratio_as_transformers_forms_it),
        cmocka_unit_test(test_closed_forms),    cmocka_unit_test(test_decay_steps_are_absolute),
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_notes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
