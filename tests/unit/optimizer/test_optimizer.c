/* The shard's state: values in and out, the update over segments, raw slices and what they add up to,
 * conversions in two phases, and failing the n-th allocation until none fails. */
#include "device_main.h"
#include "state_arrays.h"

#include "measures.h"

#include <stdio.h>

/* Two units and an empty one. Tensor 0 of 300 elements (1-D), tensor 1 of 1000, tensor 2 in the second unit
 * of 70 000. */
static struct optimizer_segment first[] = {
    {.tensor = 0, .offset = 0, .elements = 300, .index = 0},
    {.tensor = 1, .offset = 512, .elements = 1000, .index = 512, .decays = true}};
static struct optimizer_segment second[] = {
    {.tensor = 2, .offset = 256, .elements = 70000, .index = 1ll << 33, .decays = true}};
static const struct optimizer_unit_plan units[] = {{1536, 2, first}, {70656, 1, second}, {0, 0, NULL}};
static const struct optimizer_plan plan = {3, 4, units, NULL};
enum { TENSORS = 4, LARGEST = 70656 };

static struct policy policy_of(enum weight_format w, enum moment_format m, enum moment_format v)
{
    struct policy p = policy_default();
    p.weight = w;
    p.m = m;
    p.v = v;
    policy_rename(&p);
    return p;
}

static void fill(struct optimizer *o, uint64_t seed)
{
    float *values = device_allocate(&device, LARGEST * sizeof(float));
    struct test_random r = {seed};
    for (int32_t u = 0; u < 2; u++)
        for (int32_t s = 0; s < o->units[u].segment_count; s++)
            for (int part = 0; part < STATE_PART_COUNT; part++) {
                int64_t n = o->units[u].segments[s].elements;
                for (int64_t i = 0; i < n; i++)
                    values[i] = (float)(0.02 * test_random_gauss(&r));
                for (int64_t i = 0; part == STATE_V && i < n; i++)
                    values[i] *= values[i];
                optimizer_set(o, u, s, (enum state_part)part, 0, n, values);
            }
    device_release(&device, values, LARGEST * sizeof(float));
}

static void values_of(const struct optimizer *o, int32_t unit, int32_t segment, enum state_part part,
                      float *values)
{
    optimizer_get(o, unit, segment, part, 0, o->units[unit].segments[segment].elements, values);
}

/* ---- tests ---- */

static void test_sums_add_up(void **state)
{
    (void)state;
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++)
        for (int m = 0; m < MOMENT_FORMAT_COUNT; m++) {
            struct policy p = policy_of((enum weight_format)w, (enum moment_format)m, (enum moment_format)m);
            struct optimizer o;
            struct err err = ERR_INIT;
            int64_t before = device.allocated_bytes;
            check_ok(optimizer_init(&o, &device, &p, &plan, 0, &err), &err);
            assert_int_equal(device.allocated_bytes - before,
                             optimizer_state_bytes(&o) + optimizer_scratch_bytes(&o));
            assert_int_equal(optimizer_state_bytes(&o), optimizer_plan_bytes(&plan, &p));
            assert_true((double)optimizer_state_bytes(&o) == policy_bytes_per_parameter(&p) * (1536 + 70656));
            int64_t slices = 0;
            struct optimizer_slice slice;
            for (int32_t u = 0; u < 3; u++)
                for (int32_t s = 0; s < o.units[u].segment_count; s++)
                    for (int part = 0; part < 3; part++)
                        for (int extra = 0; extra < 2; extra++)
                            if (optimizer_slice(&o, u, s, (enum state_part)part, extra, 0, -1, &slice))
                                slices += slice.bytes;
            assert_int_equal(slices + optimizer_padding_bytes(&o), optimizer_state_bytes(&o));
            assert_true(optimizer_padding_bytes(&o) > 0);
            optimizer_done(&o);
            assert_int_equal(device.allocated_bytes, before);
        }
}

/* The slices of one optimizer, copied into another one of the same policy, are its state; padding stays zero.
 */
static void test_slices_carry_the_bits(void **state)
{
    (void)state;
    struct policy p = policy_of(WEIGHT_SPLIT8, MOMENT_Q8, MOMENT_Q8);
    struct optimizer a, b;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&a, &device, &p, &plan, 9, &err), &err);
    check_ok(optimizer_init(&b, &device, &p, &plan, 9, &err), &err);
    fill(&a, 11);
    for (int32_t u = 0; u < 2; u++)
        for (int32_t s = 0; s < a.units[u].segment_count; s++)
            for (int part = 0; part < 3; part++)
                for (int extra = 0; extra < 2; extra++)
                    for (int64_t start = 0; start < a.units[u].segments[s].elements; start += 768) {
                        struct optimizer_slice from, to;
                        int64_t rest = a.units[u].segments[s].elements - start, n = rest < 768 ? rest : 768;
                        assert_true(optimizer_slice(&a, u, s, (enum state_part)part, extra, start, n, &from));
                        assert_true(optimizer_slice(&b, u, s, (enum state_part)part, extra, start, n, &to));
                        assert_int_equal(from.bytes, to.bytes);
                        device_copy(&device, to.memory, from.memory, (size_t)from.bytes);
                    }
    for (int32_t u = 0; u < 2; u++)
        for (int part = 0; part < 3; part++)
            for (int extra = 0; extra < 2; extra++)
                assert_memory_equal(
                    a.units[u].arrays[part][extra], b.units[u].arrays[part][extra],
                    state_array_bytes(part * 2 + extra, p.weight, MOMENT_Q8, a.units[u].elements));
    optimizer_done(&a);
    optimizer_done(&b);
}

/* One step over segments equals the kernel called on each tensor alone; decay goes to the tensors that take
 * it. */
static void test_update(void **state)
{
    (void)state;
    struct policy p = policy_of(WEIGHT_KAHAN, MOMENT_Q8, MOMENT_BF16S);
    struct optimizer o;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&o, &device, &p, &plan, 5, &err), &err);
    fill(&o, 3);
    o.t = 6;
    o.total_steps = 40;
    float *gradients[3] = {calloc(1536, 4), calloc(LARGEST, 4), NULL};
    struct test_random r = {21};
    for (int u = 0; u < 2; u++)
        for (int64_t i = 0; i < units[u].elements; i++)
            gradients[u][i] = (float)test_random_gauss(&r);
    struct state_arrays alone;
    state_arrays_init(&alone, p.weight, p.m, p.v, 300);
    for (int part = 0; part < 3; part++)
        for (int extra = 0; extra < 2; extra++) {
            struct optimizer_slice slice;
            if (optimizer_slice(&o, 0, 0, (enum state_part)part, extra, 0, -1, &slice))
                memcpy(alone.memory[part * 2 + extra], slice.memory, (size_t)slice.bytes);
        }
    struct optimizer_settings settings = optimizer_settings_default();
    struct update_measures by_tensor[TENSORS], measures, scratch[2];
    optimizer_update(&o, &settings, 2e-4, 0.25, (const void *const *)gradients, NULL, by_tensor);
    assert_int_equal(o.t, 7);
    assert_int_equal(o.total_steps, 41);
    struct update_scalars scalars = optimizer_scalars(&settings, 2e-4, 0.25, 7, 41, 5, false);
    assert_true(scalars.decay_factor == 1.0f);
    kernels_reference.update(device.queue, &measures, &alone.view, gradients[0], DTYPE_F32, 300,
                             &(struct index_map){0}, &scalars, scratch);
    for (int part = 0; part < 3; part++)
        for (int extra = 0; extra < 2; extra++) {
            struct optimizer_slice slice;
            if (optimizer_slice(&o, 0, 0, (enum state_part)part, extra, 0, -1, &slice))
                assert_memory_equal(alone.memory[part * 2 + extra], slice.memory, (size_t)slice.bytes);
        }
    assert_memory_equal(&by_tensor[0], &measures, sizeof measures);
    assert_int_equal(by_tensor[1].changing, 1000);
    assert_int_equal(by_tensor[2].v_changing, 70000);
    assert_int_equal(by_tensor[3].changing, 0);
    scalars = optimizer_scalars(&settings, 2e-4, 0.25, 7, 41, 5, true);
    assert_true(scalars.decay_factor == (float)(1 - 2e-4 * 0.01));
    state_arrays_done(&alone);
    free(gradients[0]);
    free(gradients[1]);
    optimizer_done(&o);
}

/* With no gradient only decay moves a weight: of tensors that take it, or of all. */
static void test_decay_goes_where_it_belongs(void **state)
{
    (void)state;
    struct policy p = policy_default();
    float *gradients[3] = {calloc(1536, 4), calloc(LARGEST, 4), NULL};
    for (int all = 0; all < 2; all++) {
        struct optimizer o;
        struct err err = ERR_INIT;
        check_ok(optimizer_init(&o, &device, &p, &plan, 5, &err), &err);
        fill(&o, 3);
        optimizer_zero_moments(&o);
        struct optimizer_settings settings = optimizer_settings_default();
        settings.decay_all = all;
        struct update_measures by_tensor[TENSORS];
        optimizer_update(&o, &settings, 0.1, 1, (const void *const *)gradients, NULL, by_tensor);
        assert_int_equal(by_tensor[0].changing, all ? 300 : 0);
        assert_int_equal(by_tensor[1].changing, 1000);
        assert_int_equal(by_tensor[2].changing, 70000);
        optimizer_done(&o);
    }
    free(gradients[0]);
    free(gradients[1]);
}

/* Values set in pieces draw the random numbers of their own global indices: the same bits as set at once. */
static void test_set_in_pieces(void **state)
{
    (void)state;
    struct policy p = policy_of(WEIGHT_BF16S, MOMENT_BF16S, MOMENT_Q8);
    struct optimizer a, b;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&a, &device, &p, &plan, 9, &err), &err);
    check_ok(optimizer_init(&b, &device, &p, &plan, 9, &err), &err);
    a.total_steps = b.total_steps = 123;
    float values[1000];
    struct test_random r = {6};
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        for (int i = 0; i < 1000; i++)
            values[i] = (float)fabs(test_random_gauss(&r));
        optimizer_set(&a, 0, 1, (enum state_part)part, 0, 1000, values);
        for (int64_t start = 0; start < 1000; start += 256)
            optimizer_set(&b, 0, 1, (enum state_part)part, start, start + 256 < 1000 ? 256 : 1000 - start,
                          values + start);
        struct optimizer_slice from, to;
        for (int extra = 0; extra < 2; extra++)
            if (optimizer_slice(&a, 0, 1, (enum state_part)part, extra, 0, -1, &from) &&
                optimizer_slice(&b, 0, 1, (enum state_part)part, extra, 0, -1, &to))
                assert_memory_equal(from.memory, to.memory, (size_t)from.bytes);
    }
    optimizer_done(&a);
    optimizer_done(&b);
}

/* Half-way, slices and counters go to another optimizer: both end with the same bits. t may pass 2^24. */
static void test_resuming(void **state)
{
    (void)state;
    struct policy p = policy_of(WEIGHT_BF16S, MOMENT_BF16, MOMENT_Q8);
    struct optimizer a, b;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&a, &device, &p, &plan, 9, &err), &err);
    check_ok(optimizer_init(&b, &device, &p, &plan, 9, &err), &err);
    fill(&a, 3);
    a.t = (1 << 24) - 3; /* torch's fp32 step counter would stick */
    float *gradients[3] = {calloc(1536, 4), calloc(LARGEST, 4), NULL};
    struct optimizer_settings settings = optimizer_settings_default();
    struct update_measures by_tensor[TENSORS];
    for (int step = 0; step < 6; step++) {
        if (step == 3) {
            for (int32_t u = 0; u < 2; u++)
                for (int part = 0; part < STATE_PART_COUNT; part++)
                    for (int extra = 0; extra < 2; extra++)
                        if (a.units[u].arrays[part][extra])
                            memcpy(b.units[u].arrays[part][extra], a.units[u].arrays[part][extra],
                                   state_array_bytes(part * 2 + extra, p.weight, part == STATE_M ? p.m : p.v,
                                                     a.units[u].elements));
            b.t = a.t;
            b.total_steps = a.total_steps;
        }
        struct test_random r = {100 + (uint64_t)step};
        for (int u = 0; u < 2; u++)
            for (int64_t i = 0; i < units[u].elements; i++)
                gradients[u][i] = (float)test_random_gauss(&r);
        optimizer_update(&a, &settings, 1e-3, 1, (const void *const *)gradients, NULL, by_tensor);
        if (step >= 3)
            optimizer_update(&b, &settings, 1e-3, 1, (const void *const *)gradients, NULL, by_tensor);
    }
    assert_int_equal(a.t, (1 << 24) + 3);
    for (int32_t u = 0; u < 2; u++)
        for (int part = 0; part < STATE_PART_COUNT; part++)
            for (int extra = 0; extra < 2; extra++)
                if (a.units[u].arrays[part][extra])
                    assert_memory_equal(b.units[u].arrays[part][extra], a.units[u].arrays[part][extra],
                                        state_array_bytes(part * 2 + extra, p.weight,
                                                          part == STATE_M ? p.m : p.v, a.units[u].elements));
    free(gradients[0]);
    free(gradients[1]);
    optimizer_done(&a);
    optimizer_done(&b);
}

/* A rank without elements of its own counts its updates all the same. */
static void test_an_empty_shard(void **state)
{
    (void)state;
    static const struct optimizer_unit_plan none[] = {{0, 0, NULL}};
    const struct optimizer_plan empty = {1, 2, none, NULL};
    struct policy p = policy_default();
    struct optimizer o;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&o, &device, &p, &empty, 0, &err), &err);
    struct optimizer_settings settings = optimizer_settings_default();
    struct update_measures by_tensor[2] = {{.changing = 9}, {.changing = 9}};
    const void *gradients[] = {NULL};
    optimizer_update(&o, &settings, 1e-3, 1, gradients, NULL, by_tensor);
    assert_int_equal(o.t, 1);
    assert_int_equal(o.total_steps, 1);
    assert_int_equal(by_tensor[1].changing, 0);
    struct policy to = policy_of(WEIGHT_SPLIT8, MOMENT_Q8, MOMENT_Q8);
    struct optimizer_conversion c;
    struct optimizer_loss losses[STATE_PART_COUNT];
    check_ok(optimizer_convert_reserve(&o, &to, NULL, &c, &err), &err);
    optimizer_convert_commit(&o, &c, losses);
    assert_true(policy_equal(&o.policy, &to));
    optimizer_done(&o);
}

/* bf16 compute sees the stored w, or the rounded fp32; padding gathers as zeros. */
static void test_compute_copy(void **state)
{
    (void)state;
    uint16_t *copy = malloc(1536 * 2);
    float *wide = malloc(1536 * 4), *values = malloc(1536 * 4);
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++) {
        struct policy p = policy_of((enum weight_format)w, MOMENT_FP32, MOMENT_FP32);
        struct optimizer o;
        struct err err = ERR_INIT;
        check_ok(optimizer_init(&o, &device, &p, &plan, 5, &err), &err);
        fill(&o, 8);
        optimizer_compute_copy(&o, 0, copy, DTYPE_BF16);
        optimizer_compute_copy(&o, 0, wide, DTYPE_F32);
        values_of(&o, 0, 1, STATE_W, values);
        assert_memory_equal(wide + 512, values, 4000);
        for (int i = 0; i < 1536; i++) {
            bool padding = (i >= 300 && i < 512) || i >= 1512;
            if (padding)
                assert_true(copy[i] == 0 && wide[i] == 0);
            else if (w !=
                     WEIGHT_BF16S) /* nearest in all others: the copy is within half a step of the value */
                assert_true(fabsf(test_float((uint32_t)copy[i] << 16) - wide[i]) <= fabsf(wide[i]) * 0x1p-8f);
        }
        optimizer_done(&o);
    }
    free(copy);
    free(wide);
    free(values);
}

static void test_zero_moments(void **state)
{
    (void)state;
    struct policy p = policy_of(WEIGHT_FP32, MOMENT_Q8, MOMENT_BF16S);
    struct optimizer o;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&o, &device, &p, &plan, 5, &err), &err);
    fill(&o, 8);
    o.t = 9;
    float before[1000], after[1000];
    values_of(&o, 0, 1, STATE_W, before);
    optimizer_zero_moments(&o);
    values_of(&o, 0, 1, STATE_W, after);
    assert_memory_equal(before, after, sizeof before);
    assert_int_equal(o.t, 0);
    for (int part = STATE_M; part <= STATE_V; part++) {
        values_of(&o, 0, 1, (enum state_part)part, after);
        for (int i = 0; i < 1000; i++)
            assert_true(after[i] == 0);
    }
    optimizer_done(&o);
}

/* ---- conversions ---- */

static void convert(struct optimizer *o, struct policy to, struct optimizer_loss losses[3])
{
    struct optimizer_conversion c;
    struct err err = ERR_INIT;
    int64_t before = device.allocated_bytes;
    int64_t more = optimizer_convert_bytes(o, &to, false);
    check_ok(optimizer_convert_reserve(o, &to, NULL, &c, &err), &err);
    assert_int_equal(device.allocated_bytes - before, more);
    optimizer_convert_commit(o, &c, losses);
    assert_true(policy_equal(&o->policy, &to));
}

/* Narrow to wide and back is the same bits; wide to narrow is one rounding, measured. */
static void test_every_conversion(void **state)
{
    (void)state;
    enum { COMBINATIONS = 8 };
    const struct policy list[COMBINATIONS] = {policy_of(WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32),
                                              policy_of(WEIGHT_FP32, MOMENT_BF16, MOMENT_BF16S),
                                              policy_of(WEIGHT_FP32, MOMENT_Q8, MOMENT_Q8),
                                              policy_of(WEIGHT_SPLIT8, MOMENT_Q8, MOMENT_Q8),
                                              policy_of(WEIGHT_KAHAN, MOMENT_BF16, MOMENT_BF16),
                                              policy_of(WEIGHT_BF16S, MOMENT_BF16S, MOMENT_BF16S),
                                              policy_of(WEIGHT_BF16, MOMENT_BF16, MOMENT_BF16),
                                              policy_of(WEIGHT_SPLIT, MOMENT_FP32, MOMENT_FP32)};
    float *before = malloc(70000 * 4), *after = malloc(70000 * 4);
    for (int from = 0; from < COMBINATIONS; from++)
        for (int to = 0; to < COMBINATIONS; to++) {
            struct optimizer o;
            struct err err = ERR_INIT;
            int64_t base = device.allocated_bytes;
            check_ok(optimizer_init(&o, &device, &list[from], &plan, 5, &err), &err);
            fill(&o, 8);
            o.t = 3;
            o.total_steps = 77;
            values_of(&o, 1, 0, STATE_W, before);
            struct optimizer_loss losses[3];
            convert(&o, list[to], losses);
            values_of(&o, 1, 0, STATE_W, after);
            int64_t changed = 0;
            for (int i = 0; i < 70000; i++)
                changed += before[i] != after[i];
            bool exact = policy_conversion_exact(&list[from], &list[to]);
            int64_t all = losses[0].changed + losses[1].changed + losses[2].changed;
            assert_true(losses[0].changed >= changed);
            if (exact)
                assert_int_equal(all, 0);
            else
                assert_true(all > 0);
            for (int part = 0; part < 3; part++)
                assert_true(losses[part].elements == 0 || losses[part].elements == 71300);
            assert_true(losses[0].largest_relative <= 0x1p-7);
            assert_true(losses[0].bits_dropped <= 16);
            assert_int_equal(o.t, 3);
            assert_int_equal(device.allocated_bytes,
                             base + optimizer_state_bytes(&o) + optimizer_scratch_bytes(&o));
            char text[512];
            assert_int_equal(strcmp(optimizer_loss_text(losses, text, sizeof text), "nothing was lost") == 0,
                             all == 0);
            optimizer_done(&o);
            assert_int_equal(device.allocated_bytes, base);
        }
    free(before);
    free(after);
}

static void test_there_and_back(void **state)
{
    (void)state;
    static const enum weight_format narrow[] = {WEIGHT_BF16, WEIGHT_BF16S};
    for (int i = 0; i < 2; i++) {
        struct policy low = policy_of(narrow[i], MOMENT_BF16, MOMENT_BF16), high = policy_default();
        struct optimizer o;
        struct err err = ERR_INIT;
        check_ok(optimizer_init(&o, &device, &low, &plan, 5, &err), &err);
        fill(&o, 4);
        uint16_t copy[3][1000];
        struct optimizer_slice slice;
        for (int part = 0; part < 3; part++) {
            assert_true(optimizer_slice(&o, 0, 1, (enum state_part)part, false, 0, -1, &slice));
            memcpy(copy[part], slice.memory, sizeof copy[part]);
        }
        struct optimizer_loss losses[3];
        convert(&o, high, losses);
        convert(&o, low, losses); /* stochastic rounding of what needs none changes nothing either */
        for (int part = 0; part < 3; part++) {
            assert_int_equal(losses[part].changed, 0);
            assert_true(optimizer_slice(&o, 0, 1, (enum state_part)part, false, 0, -1, &slice));
            assert_memory_equal(copy[part], slice.memory, sizeof copy[part]);
        }
        optimizer_done(&o);
    }
}

/* Converting chunk by chunk gives the bits of setting every value at once in the new policy. */
static void test_conversion_is_setting_the_values(void **state)
{
    (void)state;
    struct policy wide = policy_default(), narrow = policy_of(WEIGHT_BF16S, MOMENT_BF16S, MOMENT_Q8);
    struct optimizer a, b;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&a, &device, &wide, &plan, 9, &err), &err);
    check_ok(optimizer_init(&b, &device, &narrow, &plan, 9, &err), &err);
    fill(&a, 3);
    a.total_steps = b.total_steps = 31;
    float *values = malloc(70000 * sizeof *values);
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        values_of(&a, 1, 0, (enum state_part)part, values);
        optimizer_set(&b, 1, 0, (enum state_part)part, 0, 70000, values);
    }
    struct optimizer_loss losses[STATE_PART_COUNT];
    convert(&a, narrow, losses);
    for (int part = 0; part < STATE_PART_COUNT; part++)
        for (int extra = 0; extra < 2; extra++) {
            struct optimizer_slice from, to;
            if (optimizer_slice(&a, 1, 0, (enum state_part)part, extra, 0, -1, &from) &&
                optimizer_slice(&b, 1, 0, (enum state_part)part, extra, 0, -1, &to))
                assert_memory_equal(from.memory, to.memory, (size_t)from.bytes);
        }
    free(values);
    optimizer_done(&a);
    optimizer_done(&b);
}

static void test_cancel_leaves_the_state(void **state)
{
    (void)state;
    struct policy high = policy_default(), low = policy_of(WEIGHT_SPLIT8, MOMENT_Q8, MOMENT_Q8);
    struct optimizer o;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&o, &device, &high, &plan, 5, &err), &err);
    fill(&o, 4);
    float before[1000], after[1000];
    values_of(&o, 0, 1, STATE_M, before);
    int64_t bytes = device.allocated_bytes;
    struct optimizer_conversion c;
    check_ok(optimizer_convert_reserve(&o, &low, NULL, &c, &err), &err);
    optimizer_convert_cancel(&o, &c);
    optimizer_convert_cancel(&o, &c); /* twice is fine */
    assert_int_equal(device.allocated_bytes, bytes);
    values_of(&o, 0, 1, STATE_M, after);
    assert_memory_equal(before, after, sizeof before);
    assert_true(policy_equal(&o.policy, &high));
    optimizer_done(&o);
}

/* ---- a device that refuses the n-th allocation ---- */

static int allocations_left;
static const struct device_backend *real_backend;

static void *failing_allocate(struct device *d, size_t bytes)
{
    return allocations_left-- <= 0 ? NULL : real_backend->allocate(d, bytes);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    real_backend = device.backend;
    struct device_backend failing = *real_backend;
    failing.allocate = failing_allocate;
    struct policy high = policy_default(), low = policy_of(WEIGHT_SPLIT8, MOMENT_Q8, MOMENT_Q8);
    int64_t bytes = device.allocated_bytes;
    for (int n = 0;; n++) {
        device.backend = &failing;
        allocations_left = n;
        struct optimizer o = {0};
        struct err err = ERR_INIT;
        bool ok = optimizer_init(&o, &device, &high, &plan, 5, &err);
        if (!ok) {
            assert_int_equal(err.code, ERR_MEMORY);
            assert_int_equal(device.allocated_bytes, bytes);
            continue;
        }
        assert_true(n > 3);
        int64_t held = device.allocated_bytes;
        for (int k = 0;; k++) {
            allocations_left = k;
            struct optimizer_conversion c;
            struct err each = ERR_INIT;
            if (optimizer_convert_reserve(&o, &low, NULL, &c, &each)) {
                assert_true(k > 5);
                optimizer_convert_cancel(&o, &c);
                break;
            }
            assert_int_equal(each.code, ERR_MEMORY);
            assert_non_null(strstr(each.hint, "--policy"));
            assert_int_equal(device.allocated_bytes, held);
        }
        optimizer_done(&o);
        break;
    }
    device.backend = real_backend;
    assert_int_equal(device.allocated_bytes, bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_add_up),
        cmocka_unit_test(test_slices_carry_the_bits),
        cmocka_unit_test(test_update),
        cmocka_unit_test(test_compute_copy),
        cmocka_unit_test(test_decay_goes_where_it_belongs),
        cmocka_unit_test(test_set_in_pieces),
        cmocka_unit_test(test_resuming),
        cmocka_unit_test(test_an_empty_shard),
        cmocka_unit_test(test_zero_moments),
        cmocka_unit_test(test_every_conversion),
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_conversion_is_setting_the_values),
        cmocka_unit_test(test_cancel_leaves_the_state),
        cmocka_unit_test(test_failing_allocations),
    };
    return test_device_run(tests, "cpu", 2);
}
