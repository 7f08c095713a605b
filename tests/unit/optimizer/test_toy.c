/* Two experiments on a quadratic that separate where bf16 hurts (orders of magnitude, not digits): 4096
 * weights, seven eighths about N(0, .02) and one eighth about 1.0 like norms, gradients (w - target) + 0.01
 * N(0,1) of the bf16 copy, rounded to bf16, lr 1e-4 cosine to 0 over 4000 steps, decay .01. All policies see
 * the same noise. The first: which axis loses. The second: swapping bf16 to fp32-master while the run goes
 * on. */
#include "device_main.h"
#include "state_arrays.h"

#include "bf16.h"
#include "measures.h"

#include <stdio.h>

enum { COUNT = 4096, STEPS = 4000, RUNS_MAX = 8 };
#define PI 3.14159265358979323846

struct toy {
    const char *policy;
    const char *later; /* NULL, or the policy swapped to after swap_at steps */
    int swap_at;
    struct optimizer optimizer;
    double error; /* mean squared distance of the value read to the target, at the end */
    struct update_measures measures;
};

static struct optimizer_segment segment = {
    .tensor = 0, .offset = 0, .elements = COUNT, .index = 0, .decays = true};
static const struct optimizer_unit_plan unit = {COUNT, 1, &segment};
static const struct optimizer_plan plan = {1, 1, &unit, NULL};

static struct policy parsed(const char *text)
{
    struct policy p;
    struct err err = ERR_INIT;
    check_ok(policy_parse(&p, text, NULL, &err), &err);
    return p;
}

static void swap(struct toy *toy)
{
    struct policy to = parsed(toy->later);
    struct optimizer_conversion c;
    struct optimizer_loss losses[STATE_PART_COUNT];
    struct err err = ERR_INIT;
    check_ok(optimizer_convert_reserve(&toy->optimizer, &to, NULL, &c, &err), &err);
    optimizer_convert_commit(&toy->optimizer, &c, losses);
}

static void one_step(struct toy *toy, int step, const float *target, const float *noise)
{
    static uint16_t copy[COUNT];
    static float gradient[COUNT];
    struct optimizer_settings settings = optimizer_settings_default();
    optimizer_compute_copy(&toy->optimizer, 0, copy, DTYPE_BF16);
    for (int i = 0; i < COUNT; i++)
        gradient[i] = bf16_to_float(bf16_from_float(bf16_to_float(copy[i]) - target[i] + noise[i]));
    double lr = 1e-4 * 0.5 * (1 + cos(PI * step / STEPS));
    const void *gradients[] = {gradient};
    struct update_measures measures;
    optimizer_update(&toy->optimizer, &settings, lr, 1.0, gradients, NULL, &measures);
    measures_merge(&toy->measures, &measures);
}

static void run(struct toy *toys, int count, uint64_t run_offset)
{
    static float start[COUNT], target[COUNT], noise[COUNT];
    struct test_random setup = {88172645463325252ull}, run_random = {88172645463325252ull + run_offset};
    for (int i = 0; i < COUNT; i++) {
        double weight = 0.02 * test_random_gauss(&setup), move = 0.02 * test_random_gauss(&setup);
        start[i] = bf16_to_float(bf16_from_float((float)(i % 8 == 7 ? 1.0 + weight : weight)));
        target[i] = start[i] + (float)move;
    }
    for (int t = 0; t < count; t++) {
        struct policy policy = parsed(toys[t].policy);
        struct err err = ERR_INIT;
        check_ok(optimizer_init(&toys[t].optimizer, &device, &policy, &plan, 0, &err), &err);
        optimizer_set(&toys[t].optimizer, 0, 0, STATE_W, 0, COUNT, start);
    }
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < COUNT; i++)
            noise[i] = (float)(0.01 * test_random_gauss(&run_random));
        for (int t = 0; t < count; t++) {
            if (toys[t].later && step == toys[t].swap_at)
                swap(&toys[t]);
            one_step(&toys[t], step, target, noise);
        }
    }
    for (int t = 0; t < count; t++) {
        static float end[COUNT];
        optimizer_get(&toys[t].optimizer, 0, 0, STATE_W, 0, COUNT, end);
        for (int i = 0; i < COUNT; i++)
            toys[t].error +=
                ((double)end[i] - (double)target[i]) * ((double)end[i] - (double)target[i]) / COUNT;
        print_message("%-28s %s%-12s error %.3g, lost %.3f, quality %.3f\n", toys[t].policy,
                      toys[t].later ? "> " : "", toys[t].later ? toys[t].later : "", toys[t].error,
                      measures_lost_update_share(&toys[t].measures),
                      measures_update_quality(&toys[t].measures));
        optimizer_done(&toys[t].optimizer);
    }
}

static void test_which_axis_hurts(void **state)
{
    (void)state;
    struct toy toys[] = {{.policy = "fp32-master"},
                         {.policy = "fp32-master+m=bf16+v=bf16"},
                         {.policy = "bf16+m=fp32+v=fp32"},
                         {.policy = "bf16"},
                         {.policy = "bf16-kahan"},
                         {.policy = "bf16-sr"},
                         {.policy = "fp24-q8"},
                         {.policy = "fp32-lean"}};
    run(toys, RUNS_MAX, 12345);
    double master = toys[0].error;
    assert_true(fabs(toys[1].error / master - 1) < 0.05);
    assert_true(toys[2].error > 100 * master);
    assert_true(toys[3].error > 100 * master);
    assert_true(toys[4].error < 3 * master);
    assert_true(toys[5].error < 10 * master);
    assert_true(toys[6].error < 3 * master);
    assert_true(fabs(toys[7].error / master - 1) < 0.05);
    assert_true(measures_lost_update_share(&toys[0].measures) == 0 &&
                measures_update_quality(&toys[0].measures) == 1);
    assert_true(measures_lost_update_share(&toys[3].measures) > 0.8);
    assert_true(measures_update_quality(&toys[3].measures) < 0.3);
    assert_true(measures_lost_update_share(&toys[5].measures) > 0.7);    /* a false alarm of the share … */
    check_close(measures_update_quality(&toys[5].measures), 1, 0, 0.05); /* … that the quality sees through */
}

static void test_swapping_rescues_a_run(void **state)
{
    (void)state;
    struct toy toys[] = {{.policy = "fp32-master"},
                         {.policy = "bf16"},
                         {.policy = "bf16", .later = "fp32-master", .swap_at = STEPS / 4},
                         {.policy = "bf16", .later = "fp32-master", .swap_at = STEPS / 2},
                         {.policy = "bf16", .later = "fp32-master", .swap_at = 3 * STEPS / 4},
                         {.policy = "fp32-master", .later = "bf16-sr", .swap_at = STEPS / 2}};
    run(toys, 6, 12345678901ull);
    double master = toys[0].error;
    assert_true(toys[1].error > 100 * master);
    assert_true(toys[2].error < 1.5 * master);
    assert_true(toys[3].error > 2 * master && toys[3].error < toys[1].error / 5);
    assert_true(toys[4].error > toys[3].error && toys[4].error < toys[1].error);
    assert_true(toys[5].error < 10 * master);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_which_axis_hurts),
        cmocka_unit_test(test_swapping_rescues_a_run),
    };
    return test_device_run(tests, "cpu", 1);
}
