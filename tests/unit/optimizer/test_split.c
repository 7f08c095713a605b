/* Weights in two halves: every fp32 pattern through the rows of every level (a dense sample; all 2^32 with
 * TRAINERD_TEST_LONG), and trajectories. The oracle of a trajectory is fp32-master: the same values, moments
 * and measures, bit for bit, for the same gradients; the model's bf16 differs on exact ties, and only there.
 */
#include "device_main.h"
#include "state_arrays.h"

#include "queue.h"
#include "tables.h"

/* ---- patterns ---- */

enum { SLAB = 1 << 16 };

static bool is_nan(uint32_t bits)
{
    return (bits & 0x7FFFFFFFu) > 0x7F800000u;
}

/* Nearest, ties away from zero, by comparing distances: not by the trick under test. Magnitudes order as
 * bits. */
static uint16_t nearest_away(uint32_t bits)
{
    uint32_t below = bits & 0xFFFF0000u, above = below + 0x10000u;
    return (uint16_t)((above - bits <= bits - below ? above : below) >> 16);
}

static void check_pattern(uint32_t bits, float back, uint16_t w, uint16_t low, const char *level)
{
    if (is_nan(bits) ? test_bits(back) != 0x7FC00000u || w != 0x7FC0u
                     : test_bits(back) != bits || w != nearest_away(bits) || low != (uint16_t)bits)
        fail_msg("%s: %08x is stored as %04x %04x and reads %08x", level, bits, w, low, test_bits(back));
}

static void check_slab(const struct kernels *k, const char *level, uint32_t first, uint32_t step)
{
    static float values[SLAB], back[SLAB];
    static uint16_t w[SLAB], low[SLAB], copy[SLAB];
    struct state_view view = {.w_format = WEIGHT_SPLIT, .w = w, .w_extra = low};
    for (uint32_t i = 0; i < SLAB; i++)
        values[i] = test_float(first + i * step);
    k->state_write(device.queue, &view, STATE_W, values, SLAB, &(struct index_map){0}, 1, 2);
    k->state_read(device.queue, back, &view, STATE_W, SLAB);
    k->weight_compute_copy(device.queue, copy, &view, SLAB, DTYPE_BF16);
    assert_memory_equal(copy, w, sizeof w);
    for (uint32_t i = 0; i < SLAB; i++)
        check_pattern(first + i * step, back[i], w[i], low[i], level);
}

static void test_every_pattern(void **state)
{
    (void)state;
    bool all = getenv("TRAINERD_TEST_LONG") != NULL;
    for (uint64_t slab = 0; slab < 1 << 16; slab += all ? 1 : 211) {
        check_slab(device.kernels, "device", (uint32_t)slab << 16, 1);
        if (!all && slab % 2 == 0) /* every upper half, with another lower half each time */
            check_slab(&kernels_reference, "reference", (uint32_t)slab * 307u & 0xFFFFu, 0x10000u);
    }
    static const uint32_t lows[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
    for (size_t i = 0; i < sizeof lows / sizeof *lows; i++)
        check_slab(&kernels_reference, "reference", lows[i], 0x10000u);
}

/* ---- trajectories ---- */

enum { N = 50000, UPDATES = 40, TIES = 64 };
static const struct optimizer_segment segments[] = {{.elements = N, .decays = true}};
static const struct optimizer_unit_plan units[] = {{(N + 255) / 256 * 256, 1, segments}};
static const struct optimizer_plan plan = {1, 1, units, NULL};

struct twin {
    struct optimizer optimizer;
    float *wide;    /* the fp32 copy, [N] */
    uint16_t *bf16; /* the bf16 one */
    struct update_measures measures;
};

static void twin_init(struct twin *t, const char *policy_text, const float *values)
{
    struct err err = ERR_INIT;
    struct policy policy;
    check_ok(policy_parse(&policy, policy_text, NULL, &err), &err);
    check_ok(optimizer_init(&t->optimizer, &device, &policy, &plan, 7, &err), &err);
    optimizer_set(&t->optimizer, 0, 0, STATE_W, 0, N, values);
    t->wide = calloc((size_t)units[0].elements, sizeof *t->wide);
    t->bf16 = calloc((size_t)units[0].elements, sizeof *t->bf16);
}

static void twin_done(struct twin *t)
{
    optimizer_done(&t->optimizer);
    free(t->wide);
    free(t->bf16);
}

static void check_values(const struct optimizer *a, const struct optimizer *b, int update)
{
    float *one = calloc(N, sizeof *one), *other = calloc(N, sizeof *other);
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        optimizer_get(a, 0, 0, (enum state_part)part, 0, N, one);
        optimizer_get(b, 0, 0, (enum state_part)part, 0, N, other);
        for (int i = 0; i < N; i++)
            if (test_bits(one[i]) != test_bits(other[i]))
                fail_msg("update %d, part %d, element %d: %08x in fp32, %08x in halves", update, part, i,
                         test_bits(one[i]), test_bits(other[i]));
    }
    free(one);
    free(other);
}

/* Where w lies exactly between two bf16 and the upper half is even: fp32 rounds down there, split up. */
static int check_copies(const struct twin *master, const struct twin *split)
{
    int ties = 0;
    assert_memory_equal(master->wide, split->wide, N * sizeof(float));
    for (int i = 0; i < N; i++) {
        uint32_t bits = test_bits(master->wide[i]);
        bool tie = (bits & 0x1FFFFu) == 0x8000u;
        if (split->bf16[i] != (uint16_t)(master->bf16[i] + tie))
            fail_msg("%08x: the model sees %04x under fp32-master, %04x under fp32-split", bits,
                     master->bf16[i], split->bf16[i]);
        ties += tie;
    }
    return ties;
}

static void one_update(struct twin *t, const struct optimizer_settings *settings, double lr, const float *g)
{
    const void *gradients[] = {g};
    void *wide[] = {t->wide}, *bf16[] = {t->bf16};
    struct optimizer_copies copies = {DTYPE_F32, wide};
    optimizer_update(&t->optimizer, settings, lr, 0.5, gradients, &copies, &t->measures);
    optimizer_compute_copy(&t->optimizer, 0, bf16[0], DTYPE_BF16);
}

/* The last elements begin on ties, which the first update keeps: its lr is 0. */
static void test_trajectories_are_those_of_fp32(void **state)
{
    (void)state;
    float *values = calloc(N, sizeof *values), *g = calloc((size_t)units[0].elements, sizeof *g);
    struct test_random r = {12};
    for (int i = 0; i < N; i++)
        values[i] = (float)(0.02 * test_random_gauss(&r));
    for (int i = 0; i < TIES; i++)
        values[N - 1 - i] = test_float((0x3C80u + (uint32_t)i) << 16 | 0x8000u);
    struct twin master, split;
    twin_init(&master, "fp32-master", values);
    twin_init(&split, "fp32-split", values);
    struct optimizer_settings settings = optimizer_settings_default();
    int ties = 0;
    for (int update = 0; update < UPDATES; update++) {
        for (int i = 0; i < N; i++)
            g[i] = (float)test_random_gauss(&r);
        double lr = update == 0 ? 0 : 1e-3 / update; /* the first has lr 0, as after a warm-up from 0 */
        one_update(&master, &settings, lr, g);
        one_update(&split, &settings, lr, g);
        check_values(&master.optimizer, &split.optimizer, update);
        assert_memory_equal(&master.measures, &split.measures, sizeof master.measures);
        assert_int_equal(split.measures.lost, 0);
        assert_true(split.measures.stored_exact == split.measures.exact_exact);
        int found = check_copies(&master, &split);
        if (update == 0)
            assert_true(found >= TIES / 2); /* every other upper half is even */
        ties += found;
    }
    assert_true(ties > TIES / 2); /* and some of the training's own */
    twin_done(&master);
    twin_done(&split);
    free(values);
    free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_pattern),
        cmocka_unit_test(test_trajectories_are_those_of_fp32),
    };
    return test_device_run(tests, "cpu", 2);
}
