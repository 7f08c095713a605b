/* One element at a time: the golden vector, Philox's known answers, every format's reading and rounding, and
 * the edge cases that precision bugs are made of. Everything goes through the reference kernels. */
#include "state_arrays.h"

#include "update.h"

#include <float.h>

static struct device device;

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
    kernels_reference.update(device.queue, &measures, &s->view, &g, DTYPE_F32, 1, 0, scalars, scratch);
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
    kernels_reference.state_write(device.queue, &s->view, part, &x, 1, 0, 0, 0);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_vector),
        cmocka_unit_test(test_philox_known_answers),
    };
    char why[256];
    if (device_open(&device, "cpu", 2, why, sizeof why) != 0) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(&device);
    return failed;
}
