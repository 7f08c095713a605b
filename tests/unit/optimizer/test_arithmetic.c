/* One element at a time: the golden vector, Philox's known answers, every format's reading and rounding, and
 * the edge cases that precision bugs are made of. Everything goes through the reference kernels. */
#include "device_main.h"
#include "state_arrays.h"

#include "update.h"

#include <float.h>

static struct update_scalars scalars_at(int64_t t, double lr, double beta2, double decay)
{
    struct optimizer_settings settings = optimizer_settings_default();
    settings.beta2 = beta2;
    settings.weight_decay = decay;
    return optimizer_scalars(&settings, lr, 1.0, t, t, 0, true);
}

/* One update of the first element of one-element state with gradient g. */
static struct update_measures step(struct state_arrays *s, float g, const struct update_scalars *scalars)
{
    struct update_measures measures, scratch[1];
    kernels_reference.update(device.queue, &measures, &s->view, &g, DTYPE_F32, 1, &(struct index_map){0},
                             scalars, scratch);
    return measures;
}

static float value(const struct state_arrays *s, enum state_part part)
{
    float x[1];
    kernels_reference.state_read(device.queue, x, &s->view, part, 1);
    return x[0];
}

static void set(struct state_arrays *s, enum state_part part, float x)
{
    kernels_reference.state_write(device.queue, &s->view, part, &x, 1, &(struct index_map){0}, 0, 0);
}

/* ---- golden ---- */

static void run_golden(enum weight_format w, enum moment_format m, enum moment_format v,
                       const uint32_t want[2][3])
{
    struct state_arrays s;
    state_arrays_init(&s, w, m, v, 1);
    set(&s, STATE_W, 1.0f);
    for (int t = 1; t <= 10; t++) {
        float raw = 0.01f * (float)((t * 5) % 7 - 3) + 0.0005f;
        float g = bf16_to_float(bf16_from_float(raw));
        struct update_scalars scalars = scalars_at(t, 1e-3, 0.999, 0.01);
        step(&s, g, &scalars);
        for (int part = 0; part < 3 && (t == 1 || t == 10); part++)
            assert_int_equal(test_bits(value(&s, (enum state_part)part)), want[t == 10][part]);
    }
    state_arrays_done(&s);
}

static void test_golden_vector(void **state)
{
    (void)state;
    static const uint32_t fp32[2][3] = {{0x3f7fbdcf, 0x3b066667, 0x34e1cac2},
                                        {0x3f7f417f, 0xba6c5ec2, 0x36712063}};
    static const uint32_t bf16[2][3] = {{0x3f800000, 0x3b060000, 0x34e20000},
                                        {0x3f800000, 0xba6e0000, 0x36700000}};
    run_golden(WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32, fp32);
    run_golden(WEIGHT_SPLIT, MOMENT_FP32, MOMENT_FP32, fp32);
    run_golden(WEIGHT_BF16, MOMENT_BF16, MOMENT_BF16, bf16);
}

static void test_philox_known_answers(void **state)
{
    (void)state;
    static const struct {
        struct philox_block counter;
        uint32_t key[2];
        struct philox_block want;
    } rows[] = {
        {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {{{~0u, ~0u, ~0u, ~0u}}, {~0u, ~0u}, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         {0xa4093822, 0x299f31d0},
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct philox_block got = philox4x32_10(rows[i].counter, rows[i].key[0], rows[i].key[1]);
        assert_memory_equal(&got, &rows[i].want, sizeof got);
    }
    /* Half-words: the element with index & 7 = j takes the j-th, low half first. */
    struct philox_block block = philox_stream_block(7ull << 32 | 5, 0x123456789ull, 42, 2);
    for (unsigned j = 0; j < 8; j++)
        assert_int_equal(philox_halfword(7ull << 32 | 5, 0x123456789ull * 8 + j, 42, 2),
                         block.word[j / 2] >> (j % 2 * 16) & 0xFFFF);
}

/* ---- plain bf16 ---- */

static void check_weight_stays(enum weight_format format, float start, float change, bool stays)
{
    struct state_arrays s;
    state_arrays_init(&s, format, MOMENT_FP32, MOMENT_FP32, 1);
    set(&s, STATE_W, start + change);
    bool same = value(&s, STATE_W) == start;
    if (same != stays)
        fail_msg("%s: %.9g + %.9g reads %.9g", weight_format_name(format), (double)start, (double)change,
                 (double)value(&s, STATE_W));
    state_arrays_done(&s);
}

/* Around 1.0 an update must exceed +2^-8 or fall below -2^-9 (ties stay: 1.0 is even). */
static void test_bf16_thresholds(void **state)
{
    (void)state;
    check_weight_stays(WEIGHT_BF16, 1.0f, 0.00390625f, true);
    check_weight_stays(WEIGHT_BF16, 1.0f, -0.001953125f, true);
    check_weight_stays(WEIGHT_BF16, 1.0f, nextafterf(1.00390625f, 2) - 1.0f, false);
    check_weight_stays(WEIGHT_BF16, 1.0f, nextafterf(0.998046875f, 0) - 1.0f, false);
    static const enum weight_format keeping[] = {WEIGHT_FP32, WEIGHT_KAHAN, WEIGHT_SPLIT, WEIGHT_SPLIT8};
    for (int i = 0; i < 4; i++)
        check_weight_stays(keeping[i], 1.0f, 0.001f, false);
}

static float v_after(enum moment_format format, double beta2, float v, float g, int steps)
{
    struct state_arrays s;
    state_arrays_init(&s, WEIGHT_FP32, MOMENT_FP32, format, 1);
    set(&s, STATE_V, v);
    for (int t = 1; t <= steps; t++) {
        struct update_scalars scalars = scalars_at(t, 1e-4, beta2, 0);
        step(&s, g, &scalars);
    }
    float after = value(&s, STATE_V);
    state_arrays_done(&s);
    return after;
}

static void test_bf16_second_moment(void **state)
{
    (void)state;
    for (int mantissa = 0; mantissa < 128; mantissa++) {
        float v = 1.0f + (float)mantissa / 128.0f;
        assert_true(v_after(MOMENT_BF16, 0.999, v, 0, 1) == v); /* can grow, never decays */
        assert_true(v_after(MOMENT_BF16, 0.996, v, 0, 1) < v);  /* all decay from here down */
        assert_true(v_after(MOMENT_FP32, 0.999, v, 0, 1) < v);
    }
    assert_true(v_after(MOMENT_BF16, 0.999, 0, 1, 2000) == 0.25f); /* the true limit is 1 */
    check_close((double)v_after(MOMENT_BF16, 0.99, 0, 1, 2000), 0.805, 0.01, 0);
    check_close((double)v_after(MOMENT_BF16, 0.95, 0, 1, 2000), 0.961, 0.002, 0);
    check_close((double)v_after(MOMENT_FP32, 0.999, 0, 1, 10000), 1, 1e-3, 0);
    check_close((double)v_after(MOMENT_BF16S, 0.999, 0, 1, 10000), 1, 0.1, 0);
    check_close((double)v_after(MOMENT_Q8, 0.999, 0, 1, 10000), 1, 0.1, 0);
}

/* Decay on a norm's weight, 1.0 * (1 - 1e-6 … 1e-5): lost in bf16, kept elsewhere; betas are never stored
 * narrow. */
static void test_decay_and_betas(void **state)
{
    (void)state;
    static const enum weight_format formats[] = {WEIGHT_FP32, WEIGHT_SPLIT, WEIGHT_BF16, WEIGHT_KAHAN,
                                                 WEIGHT_SPLIT8};
    static const bool kept[] = {true, true, false, true, true};
    for (int i = 0; i < 5; i++) {
        struct state_arrays s;
        state_arrays_init(&s, formats[i], MOMENT_FP32, MOMENT_FP32, 1);
        set(&s, STATE_W, 1.0f);
        struct update_scalars scalars = scalars_at(1, 1e-2, 0.999, 0.01);
        struct update_measures measures = step(&s, 0, &scalars);
        assert_int_equal(value(&s, STATE_W) < 1.0f, kept[i]);
        assert_int_equal(measures.changing, 1);
        assert_int_equal(measures.lost, !kept[i]);
        state_arrays_done(&s);
    }
    struct update_scalars scalars = scalars_at(1, 1e-3, 0.999, 0.01);
    assert_true(scalars.beta2 == 0.999f && scalars.one_minus_beta2 == (float)(1 - 0.999));
    assert_true(scalars.one_minus_beta2 != 1.0f - 0.999f); /* formed in double, not from the rounded beta */
    assert_true(scalars.eps == 1e-8f);
}

/* ---- denormals, infinities, NaN ---- */

static void test_denormal_second_moment(void **state)
{
    (void)state;
    struct state_arrays s;
    state_arrays_init(&s, WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32, 1);
    set(&s, STATE_W, 0.5f);
    struct update_scalars scalars = scalars_at(1, 1e-3, 0.999, 0);
    float g = 1e-20f;
    for (int level = 0; level < 2; level++) { /* the plain loop, and the one that the device chose */
        set(&s, STATE_V, 0);
        struct update_measures measures, scratch[1];
        (level ? device.kernels : &kernels_reference)
            ->update(device.queue, &measures, &s.view, &g, DTYPE_F32, 1, &(struct index_map){0}, &scalars,
                     scratch);
        assert_int_equal(test_bits(value(&s, STATE_V)),
                         71); /* 9.95e-44: subnormal, 0 if anything flushed it */
        assert_true(isfinite(value(&s, STATE_W)));
    }
    state_arrays_done(&s);
}

/* An unclipped 1e21 makes v infinite and freezes the element; the factor of clipping saves it. */
static void test_huge_gradients(void **state)
{
    (void)state;
    for (int clipped = 0; clipped < 2; clipped++) {
        struct state_arrays s;
        state_arrays_init(&s, WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32, 1);
        set(&s, STATE_W, 0.5f);
        struct update_scalars scalars = scalars_at(1, 1e-3, 0.999, 0);
        scalars.gradient_factor = clipped ? 1e-21f : 1.0f;
        step(&s, 1e21f, &scalars);
        assert_int_equal(isinf(value(&s, STATE_V)) != 0, !clipped);
        assert_int_equal(value(&s, STATE_W) == 0.5f, !clipped);
        state_arrays_done(&s);
    }
}

static void test_special_values_are_kept(void **state)
{
    (void)state;
    static const uint32_t specials[] = {0x7f800000, 0xff800000, 0x7fc00000,
                                        0x7f800001, 0xff801234, 0x7fffffff};
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++)
        for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
            struct state_arrays s;
            state_arrays_init(&s, (enum weight_format)w, MOMENT_BF16S, MOMENT_BF16, 1);
            float x = test_float(specials[i]);
            set(&s, STATE_W, x);
            set(&s, STATE_M, x);
            set(&s, STATE_V, x);
            for (int part = 0; part < 3; part++) {
                float back = value(&s, (enum state_part)part);
                if (isnan(x) ? !isnan(back) : back != x)
                    fail_msg("%s, part %d: %08x reads %08x", weight_format_name((enum weight_format)w), part,
                             specials[i], test_bits(back));
            }
            uint16_t copy; /* a NaN must not hide from the model either (the remainder trick's trap) */
            kernels_reference.weight_compute_copy(device.queue, &copy, &s.view, 1, DTYPE_BF16);
            assert_int_equal(isnan(test_float((uint32_t)copy << 16)), isnan(x));
            state_arrays_done(&s);
        }
}

/* ---- formats ---- */

static void check_split(uint32_t bits)
{
    uint16_t w, low;
    weight_write(WEIGHT_SPLIT, &w, &low, 0, test_float(bits), 0);
    float back = weight_read(WEIGHT_SPLIT, &w, &low, 0);
    bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    if (nan ? !isnan(back) || !isnan(bf16_to_float(w)) : test_bits(back) != bits)
        fail_msg("split: %08x reads %08x, w %04x", bits, test_bits(back), w);
}

/* join(split(x)) is x: every upper half with the lower halves where something turns; all 2^32 with
 * TRAINERD_TEST_LONG. */
static void test_split_is_exact(void **state)
{
    (void)state;
    static const uint32_t lows[] = {0, 1, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff, 0x1234, 0xabcd};
    int ties = 0;
    for (uint32_t high = 0; high < 65536; high++) {
        for (size_t i = 0; i < sizeof lows / sizeof *lows; i++)
            check_split(high << 16 | lows[i]);
        uint16_t w, low;
        weight_write(WEIGHT_SPLIT, &w, &low, 0, test_float(high << 16 | 0x8000), 0);
        ties += (high & 0x7F80) != 0x7F80 && w != bf16_from_float(test_float(high << 16 | 0x8000));
    }
    assert_int_equal(ties,
                     32640); /* exact ties with an even upper half: the only difference to nearest even */
    if (getenv("TRAINERD_TEST_LONG"))
        for (uint64_t bits = 0; bits < 1ull << 32; bits++)
            check_split((uint32_t)bits);
}

/* Kahan and split8 keep the weight to about 16 bits, over all exponents, subnormal ones too. */
static void test_remainders(void **state)
{
    (void)state;
    struct test_random r = {99};
    for (int i = 0; i < 400000; i++) {
        float x =
            test_float((uint32_t)test_random_bits(&r) & 0xBFFFFFFFu); /* |x| < 2: not near the overflow */
        uint16_t w, c;
        int8_t code;
        double step = (double)split8_half_step(bf16_from_float(x)); /* half a step of bf16 */
        weight_write(WEIGHT_KAHAN, &w, &c, 0, x, 0);
        double apart = fabs((double)weight_read(WEIGHT_KAHAN, &w, &c, 0) - (double)x);
        if (!(apart <= step * 0x1p-8 + fabs((double)x) * 0x1p-24 + 0x1p-134))
            fail_msg("kahan: %a is off by %a, half a step is %a", (double)x, apart, step);
        weight_write(WEIGHT_SPLIT8, &w, &code, 0, x, 0);
        apart = fabs((double)weight_read(WEIGHT_SPLIT8, &w, &code, 0) - (double)x);
        if (!(apart <= step / 254 * 1.001 + fabs((double)x) * 0x1p-24 + 0x1p-148))
            fail_msg("split8: %a is off by %a, half a step is %a", (double)x, apart, step);
    }
    uint16_t w;
    int8_t code;
    weight_write(WEIGHT_SPLIT8, &w, &code, 0, 1.0f + 0x1p-8f, 0); /* a tie: half a step above */
    assert_int_equal(code, 127);
    assert_true(weight_read(WEIGHT_SPLIT8, &w, &code, 0) == 1.0f + 0x1p-8f);
}

/* Over all 65 536 random half-words 1.2345678f goes up exactly as often as its dropped bits say; so do
 * Philox's draws, within five sigma. */
static void test_stochastic_rounding_is_unbiased(void **state)
{
    (void)state;
    float x = 1.2345678f;
    uint32_t low = test_bits(x) & 0xFFFF, up = 0, drawn = 0;
    for (uint32_t r = 0; r < 65536; r++) {
        up += bf16_stochastic(x, r) != test_bits(x) >> 16;
        drawn += bf16_stochastic(x, philox_halfword(3, r, 17, 0)) != test_bits(x) >> 16;
    }
    assert_int_equal(low, 1617);
    assert_int_equal(up, low);
    double sigma = sqrt(65536 * (low / 65536.0) * (1 - low / 65536.0));
    assert_true(fabs((double)drawn - (double)low) < 5 * sigma);
    assert_int_equal(bf16_stochastic(test_float(0x7f800000), 0xffff), 0x7f80);
    assert_int_equal(bf16_stochastic(test_float(0xff800000), 0xffff), 0xff80);
    assert_int_equal(bf16_stochastic(test_float(0x7f7fffff), 1),
                     0x7f80);                                /* the largest finite may round up */
    assert_int_equal(bf16_stochastic(1.0f, 0xffff), 0x3f80); /* what needs no rounding gets none */
}

static void test_q8(void **state)
{
    (void)state;
    enum { COUNT = 32 * 40 + 7 };
    struct state_arrays s;
    state_arrays_init(&s, WEIGHT_FP32, MOMENT_Q8, MOMENT_Q8, COUNT);
    float values[COUNT], back[COUNT];
    struct test_random r = {4};
    for (int i = 0; i < COUNT; i++)
        values[i] = i / 32 == 3 ? 0 : (float)(test_random_gauss(&r) * exp(3 * test_random_gauss(&r)));
    kernels_reference.state_write(device.queue, &s.view, STATE_M, values, COUNT, &(struct index_map){0}, 0,
                                  0);
    kernels_reference.state_read(device.queue, back, &s.view, STATE_M, COUNT);
    for (int i = 0; i < COUNT; i++) {
        double scale = (double)bf16_to_float(((uint16_t *)s.view.m_extra)[i / 32]),
               x = scale > 0 ? (double)values[i] / scale : 0;
        assert_true(fabs(x) <= 1);
        /* half a code of z, through dx/dz = (1+|x|)^2/2 */
        assert_true(fabs((double)back[i] - (double)values[i]) <=
                    scale * (1 + fabs(x)) * (1 + fabs(x)) / 2 / 254 * 1.02);
        assert_true(i / 32 != 3 || (back[i] == 0 && scale == 0));
    }
    for (int i = 0; i < COUNT; i++)
        values[i] = values[i] * values[i];
    double sum[COUNT] = {0};
    enum { DRAWS = 400 };
    for (uint64_t draw = 0; draw < DRAWS; draw++) {
        kernels_reference.state_write(device.queue, &s.view, STATE_V, values, COUNT, &(struct index_map){0},
                                      1, draw);
        kernels_reference.state_read(device.queue, back, &s.view, STATE_V, COUNT);
        for (int i = 0; i < COUNT; i++) {
            assert_int_equal(back[i] == 0, values[i] == 0); /* never 0 unless v' is */
            sum[i] += sqrt((double)back[i]);
        }
    }
    for (int i = 0; i < COUNT; i++) { /* unbiased in sqrt(v), except where code 1 stands in for 0 */
        double scale = (double)bf16_to_float(((uint16_t *)s.view.v_extra)[i / 32]),
               root = sqrt((double)values[i]);
        if (root > scale / 255)
            assert_true(fabs(sum[i] / DRAWS - root) <= 5 * scale / 255 * 0.5 / sqrt(DRAWS) + 1e-6 * root);
    }
    state_arrays_done(&s);
}

/* ---- initial weights ---- */

static void test_init_normal(void **state)
{
    (void)state;
    enum { COUNT = 100000 };
    float *whole = malloc(COUNT * sizeof *whole), *part = malloc(COUNT * sizeof *part);
    kernels_reference.init_normal(device.queue, whole, COUNT, &(struct index_map){.index = 1ll << 34}, 7,
                                  0.02);
    double sum = 0, squares = 0, fourth = 0, cross = 0;
    for (int i = 0; i < COUNT; i++) {
        double x = (double)whole[i] / 0.02;
        sum += x;
        squares += x * x;
        fourth += x * x * x * x;
        cross += i > 0 ? x * (double)whole[i - 1] / 0.02 : 0;
    }
    check_close(sum / COUNT, 0, 0, 5 / sqrt(COUNT));
    check_close(squares / COUNT, 1, 0, 5 * sqrt(2.0 / COUNT));
    check_close(fourth / COUNT, 3, 0, 5 * sqrt(96.0 / COUNT));
    check_close(cross / COUNT, 0, 0, 5 / sqrt(COUNT));
    for (int64_t start = 1; start < COUNT;
         start = start * 3 + 1) { /* any start, any length: the same values */
        int64_t n = COUNT - start < 1000 ? COUNT - start : 1000;
        device.kernels->init_normal(device.queue, part, n, &(struct index_map){.index = (1ll << 34) + start},
                                    7, 0.02);
        assert_memory_equal(part, whole + start, (size_t)n * sizeof *part);
    }
    kernels_reference.init_normal(device.queue, part, COUNT, &(struct index_map){.index = 1ll << 34}, 8,
                                  0.02);
    assert_memory_not_equal(part, whole, COUNT * sizeof *part);
    free(whole);
    free(part);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_vector),
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_bf16_thresholds),
        cmocka_unit_test(test_bf16_second_moment),
        cmocka_unit_test(test_decay_and_betas),
        cmocka_unit_test(test_denormal_second_moment),
        cmocka_unit_test(test_huge_gradients),
        cmocka_unit_test(test_special_values_are_kept),
        cmocka_unit_test(test_split_is_exact),
        cmocka_unit_test(test_remainders),
        cmocka_unit_test(test_stochastic_rounding_is_unbiased),
        cmocka_unit_test(test_q8),
        cmocka_unit_test(test_init_normal),
    };
    return test_device_run(tests, "cpu", 2);
}
