/* Policies: the presets' table and bytes, the algebra, names that come back, refusals with the right word,
 * notes. */
#include "check.h"

#include "optimizer_settings.h"
#include "policy.h"

#include <stdio.h>

static struct policy parsed(const char *text)
{
    struct policy p;
    struct err err = ERR_INIT;
    check_ok(policy_parse(&p, text, NULL, &err), &err);
    return p;
}

static void test_presets(void **state)
{
    (void)state;
    static const struct {
        const char *name, *weight, *m, *v;
        double bytes;
    } rows[] = {
        {"fp32-master", "fp32", "fp32", "fp32", 12}, {"fp32-lean", "fp32", "bf16", "bf16s", 8},
        {"fp32-q8", "fp32", "q8", "q8", 6.125},      {"fp24-q8", "split8", "q8", "q8", 5.125},
        {"bf16-kahan", "kahan", "bf16", "bf16", 8},  {"bf16-sr", "bf16s", "bf16s", "bf16s", 6},
        {"bf16", "bf16", "bf16", "bf16", 6},         {"fp32-split", "split", "fp32", "fp32", 12},
    };
    assert_int_equal(policy_preset_count, sizeof rows / sizeof *rows);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct policy p = parsed(rows[i].name);
        assert_string_equal(p.name, rows[i].name);
        assert_string_equal(weight_format_name(p.weight), rows[i].weight);
        assert_string_equal(moment_format_name(p.m), rows[i].m);
        assert_string_equal(moment_format_name(p.v), rows[i].v);
        assert_true(policy_bytes_per_parameter(&p) == rows[i].bytes);
        assert_int_equal(p.accumulate, DTYPE_F32);
        assert_int_equal(p.reduce, DTYPE_F32);
        assert_int_equal(p.compute, DTYPE_BF16);
    }
    struct policy p = policy_default();
    assert_string_equal(p.name, "fp32-master");
}

static void test_algebra(void **state)
{
    (void)state;
    struct policy p = parsed("fp32-master+m=bf16+v=bf16s+accumulate=bf16+reduce=bf16+compute=fp32");
    assert_int_equal(p.m, MOMENT_BF16);
    assert_int_equal(p.v, MOMENT_BF16S);
    assert_int_equal(p.accumulate, DTYPE_BF16);
    assert_int_equal(p.reduce, DTYPE_BF16);
    assert_int_equal(p.compute, DTYPE_F32);
    assert_string_equal(p.name, "fp32-lean+accumulate=bf16+reduce=bf16+compute=fp32");
    assert_string_equal(parsed("fp32-master+m=bf16+v=bf16s").name, "fp32-lean");
    assert_string_equal(parsed("fp32-master+v=bf16+m=bf16").name, "fp32-lean+v=bf16");
    assert_string_equal(parsed("bf16+m=fp32+v=fp32").name, "fp32-master+weight=bf16");
    assert_string_equal(parsed("fp32-split+weight=fp32").name, "fp32-master");
    assert_string_equal(parsed("fp32-master+weight=split").name, "fp32-split");
    assert_string_equal(parsed("fp24-q8+weight=split").name, "fp32-q8+weight=split");
}

/* Every point of the algebra prints a name that parses to itself. */
static void test_names_come_back(void **state)
{
    (void)state;
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++)
        for (int m = 0; m < MOMENT_FORMAT_COUNT; m++)
            for (int v = 0; v < MOMENT_FORMAT_COUNT; v++)
                for (int types = 0; types < 8; types++) {
                    struct policy p = {.weight = (enum weight_format)w,
                                       .m = (enum moment_format)m,
                                       .v = (enum moment_format)v,
                                       .accumulate = types & 1 ? DTYPE_BF16 : DTYPE_F32,
                                       .reduce = types & 2 ? DTYPE_BF16 : DTYPE_F32,
                                       .compute = types & 4 ? DTYPE_BF16 : DTYPE_F32};
                    policy_rename(&p);
                    struct policy back = parsed(p.name);
                    assert_true(policy_equal(&p, &back));
                    assert_string_equal(p.name, back.name);
                }
}

static void refused(const char *text, const char *compute, enum err_code code, const char *word)
{
    struct policy p = policy_default(), before = p;
    struct err err = ERR_INIT;
    check_refused(policy_parse(&p, text, compute, &err), &err, code);
    assert_memory_equal(&p, &before, sizeof p);
    char line[4 * ERR_TEXT_BYTES];
    if (!strstr(err_line(&err, line, sizeof line), word))
        fail_msg("'%s' does not name '%s'", line, word);
}

static void test_refusals(void **state)
{
    (void)state;
    refused("fp32-mastre", NULL, ERR_INVALID, "'fp32-master'");
    refused("bf16-kahn", NULL, ERR_INVALID, "'bf16-kahan'");
    refused("", NULL, ERR_INVALID, "fp24-q8");
    refused("fp32-master+", NULL, ERR_INVALID, "policy key");
    refused("fp32-master+wieght=bf16", NULL, ERR_INVALID, "'weight'");
    refused("fp32-master+m", NULL, ERR_INVALID, "no value");
    refused("fp32-master+m=", NULL, ERR_INVALID, "fp32, bf16, bf16s, q8");
    refused("fp32-master+v=fp16", NULL, ERR_INVALID, "bf16");
    refused("fp32-master+weight=q8", NULL, ERR_INVALID, "weight format");
    refused("fp32-master+m=kahan", NULL, ERR_INVALID, "m format");
    refused("fp32-master+reduce=bf16s", NULL, ERR_INVALID, "'bf16'");
    refused("fp32-master+m=bf16+m=bf16", NULL, ERR_INVALID, "twice");
    refused("fp32-master+compute=bf16", "fp32", ERR_INVALID, "twice");
    refused("fp32-master", "fp8", ERR_INVALID, "compute");
    char huge[4096];
    memset(huge, 'a', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    refused(huge, NULL, ERR_INVALID, "policy");
    memcpy(huge, "bf16+", 5);
    refused(huge, NULL, ERR_INVALID, "policy key");
}

static void test_compute_flag(void **state)
{
    (void)state;
    struct policy p;
    struct err err = ERR_INIT;
    check_ok(policy_parse(&p, "bf16-sr", "fp32", &err), &err);
    assert_string_equal(p.name, "bf16-sr+compute=fp32");
    check_ok(policy_parse(&p, "bf16-sr+compute=fp32", "fp32", &err), &err);
    assert_string_equal(p.name, "bf16-sr+compute=fp32");
    check_ok(policy_parse(&p, "bf16-sr", "bf16", &err), &err);
    assert_string_equal(p.name, "bf16-sr");
}

static void test_notes_and_confirmation(void **state)
{
    (void)state;
    struct policy_note notes[POLICY_NOTES_MAX];
    struct policy p = parsed("bf16");
    assert_int_equal(policy_notes(&p, 0.999, notes), 2);
    assert_true(notes[0].warning);
    assert_non_null(strstr(notes[0].text, "rounded away"));
    assert_false(notes[1].warning);
    assert_non_null(strstr(notes[1].text, "0.999"));
    assert_int_equal(policy_notes(&p, 0.95, notes), 1);
    assert_int_equal(policy_notes(&p, 0.996, notes), 1);
    struct err err = ERR_INIT;
    check_refused(policy_confirm(&p, false, &err), &err, ERR_CONFIRM);
    assert_non_null(strstr(err.hint, "--yes"));
    struct err none = ERR_INIT;
    check_ok(policy_confirm(&p, true, &none), &none);
    p = parsed("fp32-master+weight=bf16");
    assert_true(policy_needs_confirmation(&p));
    assert_int_equal(policy_notes(&p, 0.999, notes), 1);
    static const char *const sound[] = {"fp32-master", "fp32-lean", "fp32-q8",
                                        "fp24-q8",     "bf16-sr",   "fp32-split"};
    for (size_t i = 0; i < sizeof sound / sizeof *sound; i++) {
        p = parsed(sound[i]);
        assert_int_equal(policy_notes(&p, 0.999, notes), 0);
        assert_false(policy_needs_confirmation(&p));
    }
    p = parsed("bf16-kahan");
    assert_int_equal(policy_notes(&p, 0.999, notes), 1); /* its v */
    assert_false(policy_needs_confirmation(&p));
}

static void test_conversion_words(void **state)
{
    (void)state;
    char text[512];
    struct policy master = parsed("fp32-master"), bf16 = parsed("bf16"), sr = parsed("bf16-sr"),
                  lean = parsed("fp32-lean");
    assert_true(policy_conversion_exact(&bf16, &master));
    assert_true(policy_conversion_exact(&bf16, &sr));
    assert_true(policy_conversion_exact(&master, &master));
    assert_false(policy_conversion_exact(&master, &bf16));
    assert_false(policy_conversion_exact(&master, &lean));
    assert_non_null(strstr(policy_conversion_text(&bf16, &master, text, sizeof text), "nothing is lost"));
    policy_conversion_text(&master, &lean, text, sizeof text);
    assert_null(strstr(text, "weight"));
    assert_non_null(strstr(text, "m: fp32 -> bf16, rounded"));
    assert_non_null(strstr(text, "v: fp32 -> bf16s, rounded stochastically"));
    assert_non_null(strstr(policy_conversion_text(&master, &master, text, sizeof text), "stays"));
    struct policy split = parsed("fp32-split"), kahan = parsed("bf16-kahan"),
                  wide = parsed("fp32-split+compute=fp32");
    assert_true(policy_conversion_exact(&master, &split) && policy_conversion_exact(&split, &master));
    assert_true(policy_conversion_exact(&bf16, &split) && !policy_conversion_exact(&split, &kahan));
    policy_conversion_text(&master, &split, text, sizeof text);
    assert_non_null(strstr(text, "weight: fp32 -> split, exact"));
    assert_non_null(strstr(text, "nothing is lost"));
    assert_non_null(strstr(text, "ties of the model's bf16 now round away from zero"));
    assert_non_null(strstr(policy_conversion_text(&split, &master, text, sizeof text), "now round to even"));
    assert_null(strstr(policy_conversion_text(&master, &wide, text, sizeof text), "ties"));
    assert_non_null(
        strstr(policy_conversion_text(&split, &bf16, text, sizeof text), "weight: split -> bf16, rounded"));
}

static void test_settings(void **state)
{
    (void)state;
    struct optimizer_settings s = optimizer_settings_default();
    struct err err = ERR_INIT;
    check_ok(optimizer_settings_check(&s, &err), &err);
    assert_true(optimizer_clip_coefficient(&s, 0.5) == 1.0);
    assert_true(optimizer_clip_coefficient(&s, 3.0) == 1.0 / (3.0 + 1e-6));
    s.clip = 0;
    assert_true(optimizer_clip_coefficient(&s, 3e30) == 1.0);
    static const size_t fields[] = {
        offsetof(struct optimizer_settings, lr),           offsetof(struct optimizer_settings, beta1),
        offsetof(struct optimizer_settings, beta2),        offsetof(struct optimizer_settings, eps),
        offsetof(struct optimizer_settings, weight_decay), offsetof(struct optimizer_settings, clip)};
    static const double bad[] = {-1, (double)NAN, (double)INFINITY};
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++)
        for (size_t i = 0; i < 3; i++) {
            s = optimizer_settings_default();
            *(double *)(void *)((char *)&s + fields[f]) = bad[i];
            struct err each = ERR_INIT;
            check_refused(optimizer_settings_check(&s, &each), &each, ERR_INVALID);
        }
    s = optimizer_settings_default();
    s.beta2 = 1;
    struct err one = ERR_INIT;
    check_refused(optimizer_settings_check(&s, &one), &one, ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presets),          cmocka_unit_test(test_algebra),
        cmocka_unit_test(test_names_come_back),  cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_compute_flag),     cmocka_unit_test(test_notes_and_confirmation),
        cmocka_unit_test(test_conversion_words), cmocka_unit_test(test_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
