/* Every level of the update (plain, AVX2, AVX-512 loops, the AVX-512 overlay) against the plain loop, bit for
 * bit in every array and in the measures: 10^7 random elements for each combination of formats with --long,
 * 10^5 otherwise; then odd lengths, cut ranges, offsets of the global index, and 1, 2 and 3 threads. */
#include "device_main.h"
#include "state_arrays.h"

#include "queue.h"
#include "tables.h"

/* ---- inputs with everything in them ---- */

/* Any bits at all, half of the time; else a magnitude that optimizers see, zeros now and then. */
static float any_float(struct test_random *r)
{
    uint64_t bits = test_random_bits(r);
    if (bits % 16 == 0)
        return test_float((uint32_t)(bits >> 32)); /* NaN, infinities, denormals among them */
    if (bits % 16 == 1)
        return test_float((uint32_t)(bits >> 32) & 0x807FFFFFu); /* denormals */
    if (bits % 64 == 2)
        return bits >> 63 ? 0.0f : -0.0f;
    float x = (float)(1 + (double)(uint32_t)(bits >> 32) * 0x1p-32);
    int exponent = (int)(bits >> 8 & 63) - 48;
    return ldexpf(bits & 128 ? -x : x, exponent);
}

static void fill_state(struct state_arrays *s, struct test_random *r, bool wild)
{
    for (int a = 0; a < STATE_ARRAYS; a++)
        for (size_t i = 0; i < s->bytes[a]; i++)
            ((uint8_t *)s->memory[a])[i] = (uint8_t)(test_random_bits(r) >> 24);
    const enum state_part parts[] = {STATE_W, STATE_M, STATE_V};
    float *values = calloc((size_t)s->n + 1, sizeof *values);
    for (int p = 0; p < 3; p++) {
        if (wild && test_random_bits(r) % 4 == 0)
            continue; /* any bits, codes that no writer makes among them */
        bool zero_groups = test_random_bits(r) % 2;
        for (int64_t i = 0; i < s->n; i++) {
            values[i] = wild ? any_float(r) : (float)(0.02 * test_random_gauss(r));
            if (parts[p] == STATE_V)
                values[i] = fabsf(values[i]) * 0.01f;
            if (zero_groups && i / 32 % 5 == 3)
                values[i] = 0.0f;
        }
        kernels_reference.state_write(device.queue, &s->view, parts[p], values, s->n, 0, 3, 4);
    }
    free(values);
}

static void *fill_gradient(struct test_random *r, enum dtype dtype, int64_t n, bool wild)
{
    float *g = calloc((size_t)n + 1, sizeof *g);
    for (int64_t i = 0; i < n; i++) {
        g[i] = wild ? any_float(r) : (float)(0.01 * test_random_gauss(r));
        if (i / 32 % 7 == 2)
            g[i] = 0.0f;
    }
    if (dtype == DTYPE_BF16)
        kernels_reference.cast(device.queue, g, g, n, DTYPE_BF16, DTYPE_F32);
    return g;
}

static struct update_scalars some_scalars(struct test_random *r)
{
    struct optimizer_settings settings = optimizer_settings_default();
    static const double beta1s[] = {0.9, 0.5, 0.3, 0.95, 0.0}, beta2s[] = {0.999, 0.95, 0.99};
    settings.beta1 = beta1s[test_random_bits(r) % 5];
    settings.beta2 = beta2s[test_random_bits(r) % 3];
    settings.weight_decay = test_random_bits(r) % 2 ? 0.01 : 0;
    double lr = test_random_bits(r) % 8 == 0 ? 0 : pow(10, -1 - 5 * test_random_uniform(r));
    int64_t t = 1 + (int64_t)(test_random_bits(r) % 1000);
    return optimizer_scalars(&settings, lr, 0.125 + test_random_uniform(r), t, t + (1ll << 33),
                             test_random_bits(r), true);
}

/* ---- one comparison ---- */

struct candidate {
    const char *name;
    const struct kernels *kernels;
};

static const struct candidate *candidates(size_t *count)
{
    static struct candidate list[3];
    size_t n = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        list[n++] = (struct candidate){"v3", &kernels_v3};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        list[n++] = (struct candidate){"v4", &kernels_v4};
    list[n++] = (struct candidate){"device", device.kernels};
    *count = n;
    return list;
}

struct problem {
    enum weight_format w;
    enum moment_format m, v;
    enum dtype gradient;
    int64_t n, index0;
    bool wild;
};

static void check_measures(const struct update_measures *got, const struct update_measures *want,
                           const char *what)
{
    if (memcmp(got, want, sizeof *got) == 0)
        return;
    fail_msg("%s: measures %lld %lld %lld %lld %.17g %.17g, want %lld %lld %lld %lld %.17g %.17g", what,
             (long long)got->changing, (long long)got->lost, (long long)got->v_changing,
             (long long)got->v_stalled, got->stored_exact, got->exact_exact, (long long)want->changing,
             (long long)want->lost, (long long)want->v_changing, (long long)want->v_stalled,
             want->stored_exact, want->exact_exact);
}

/* What the update wrote for the model is what weight_compute_copy makes of the stored weights. */
static void check_copy(const struct state_arrays *s)
{
    void *copy = calloc(1, s->bytes[STATE_ARRAY_COPY] + 1);
    kernels_reference.weight_compute_copy(device.queue, copy, &s->view, s->n, s->view.copy_dtype);
    assert_memory_equal(s->view.copy, copy, s->bytes[STATE_ARRAY_COPY]);
    free(copy);
}

static void compare(const struct problem *p, uint64_t seed, int threads)
{
    struct test_random r = {seed};
    struct state_arrays start, want, got;
    state_arrays_init(&start, p->w, p->m, p->v, p->n);
    state_arrays_init(&want, p->w, p->m, p->v, p->n);
    state_arrays_init(&got, p->w, p->m, p->v, p->n);
    fill_state(&start, &r, p->wild);
    void *gradient = fill_gradient(&r, p->gradient, p->n, p->wild);
    struct update_scalars scalars = some_scalars(&r);
    void *scratch = calloc(1, kernels_reference.update_scratch(p->n) + 1);
    struct update_measures want_measures, measures;
    state_arrays_copy(&want, &start);
    device.queue->threads = 1;
    kernels_reference.update(device.queue, &want_measures, &want.view, gradient, p->gradient, p->n, p->index0,
                             &scalars, scratch);
    check_copy(&want);
    size_t count;
    const struct candidate *list = candidates(&count);
    for (size_t c = 0; c < count; c++) {
        char what[160];
        snprintf(what, sizeof what, "%s, %s/%s/%s, gradient %s, n %lld, index %lld, %d threads, seed %llu",
                 list[c].name, weight_format_name(p->w), moment_format_name(p->m), moment_format_name(p->v),
                 dtype_name(p->gradient), (long long)p->n, (long long)p->index0, threads,
                 (unsigned long long)seed);
        state_arrays_copy(&got, &start);
        device.queue->threads = threads;
        list[c].kernels->update(device.queue, &measures, &got.view, gradient, p->gradient, p->n, p->index0,
                                &scalars, scratch);
        state_arrays_check_equal(&got, &want, what);
        check_measures(&measures, &want_measures, what);
    }
    free(scratch);
    free(gradient);
    state_arrays_done(&got);
    state_arrays_done(&want);
    state_arrays_done(&start);
}

/* ---- the tests ---- */

static int64_t elements_total(void)
{
    return getenv("TRAINERD_TEST_LONG") ? 10000000 : 100000;
}

/* Every weight format with each pair of equal moment formats, and every pair of moments under fp32: 18 + 12.
 */
static void test_storages(void **state)
{
    (void)state;
    enum { PART = 50000 };
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++)
        for (int m = 0; m < MOMENT_FORMAT_COUNT; m++)
            for (int v = 0; v < MOMENT_FORMAT_COUNT; v++) {
                if (m != v && w != WEIGHT_FP32 && w != WEIGHT_SPLIT8)
                    continue;
                for (int64_t done = 0; done < elements_total(); done += PART) {
                    struct problem p = {(enum weight_format)w,
                                        (enum moment_format)m,
                                        (enum moment_format)v,
                                        done / PART % 4 == 3 ? DTYPE_BF16 : DTYPE_F32,
                                        PART - 13,
                                        256 * (done / PART) + ((1ll << 35) - 512) * (done / PART % 3),
                                        done / PART % 2 == 1};
                    compare(&p, 1000 + (uint64_t)done + (uint64_t)(w * 16 + m * 4 + v),
                            1 + (int)(done / PART % 3));
                }
            }
}

/* Tails 1 … 33 behind nothing, a block and a chunk; indices whose random block number carries into its high
 * word. */
static void test_lengths_and_offsets(void **state)
{
    (void)state;
    static const int64_t bases[] = {0, 96, 4096, 2 * 4096 + 128};
    static const int64_t offsets[] = {0, 256, 8, 3, (1ll << 35) - 64, (1ll << 35) - 256};
    static const struct problem formats[] = {
        {.w = WEIGHT_FP32, .m = MOMENT_FP32, .v = MOMENT_FP32},
        {.w = WEIGHT_BF16S, .m = MOMENT_BF16S, .v = MOMENT_BF16S},
        {.w = WEIGHT_SPLIT8, .m = MOMENT_Q8, .v = MOMENT_Q8},
        {.w = WEIGHT_KAHAN, .m = MOMENT_BF16, .v = MOMENT_Q8},
    };
    for (size_t f = 0; f < 4; f++)
        for (size_t b = 0; b < 4; b++)
            for (int64_t tail = 1; tail <= 33; tail++) {
                struct problem p = formats[f];
                p.n = bases[b] + tail;
                p.index0 = offsets[(size_t)tail % 6];
                p.gradient = tail % 2 ? DTYPE_F32 : DTYPE_BF16;
                p.wild = tail % 3 == 0;
                compare(&p, 77 + (uint64_t)tail, 1 + (int)(tail % 3));
            }
}

/* A range cut in two at a multiple of 256 gives the bits of the whole: what sharding rests on. */
static void test_cut_ranges(void **state)
{
    (void)state;
    enum { N = 9000, CUT = 4096 + 256 };
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++) {
        enum moment_format moment = (enum moment_format)(w % MOMENT_FORMAT_COUNT);
        struct test_random r = {5};
        struct state_arrays whole, cut;
        state_arrays_init(&whole, (enum weight_format)w, moment, moment, N);
        state_arrays_init(&cut, (enum weight_format)w, moment, moment, N);
        fill_state(&whole, &r, false);
        state_arrays_copy(&cut, &whole);
        float *gradient = fill_gradient(&r, DTYPE_F32, N, false);
        struct update_scalars scalars = some_scalars(&r);
        struct update_measures measures;
        void *scratch = calloc(1, kernels_reference.update_scratch(N));
        device.kernels->update(device.queue, &measures, &whole.view, gradient, DTYPE_F32, N, 512, &scalars,
                               scratch);
        struct policy policy = policy_default();
        policy.weight = (enum weight_format)w;
        policy.m = policy.v = moment;
        struct state_view second = cut.view;
        second.w = (char *)second.w + CUT * (int)dtype_bytes(weight_storage[w][0]);
        if (second.w_extra)
            second.w_extra = (char *)second.w_extra + CUT * (int)dtype_bytes(weight_storage[w][1]);
        second.m = (char *)second.m + CUT * (int)dtype_bytes(moment_storage[moment][0]);
        second.v = (char *)second.v + CUT * (int)dtype_bytes(moment_storage[moment][0]);
        second.copy = (char *)second.copy + CUT * (int)dtype_bytes(second.copy_dtype);
        if (second.m_extra) {
            second.m_extra = (char *)second.m_extra + CUT / 32 * 2;
            second.v_extra = (char *)second.v_extra + CUT / 32 * 2;
        }
        device.kernels->update(device.queue, &measures, &second, gradient + CUT, DTYPE_F32, N - CUT,
                               512 + CUT, &scalars, scratch);
        device.kernels->update(device.queue, &measures, &cut.view, gradient, DTYPE_F32, CUT, 512, &scalars,
                               scratch);
        state_arrays_check_equal(&cut, &whole, weight_format_name((enum weight_format)w));
        free(scratch);
        free(gradient);
        state_arrays_done(&whole);
        state_arrays_done(&cut);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_storages),
        cmocka_unit_test(test_lengths_and_offsets),
        cmocka_unit_test(test_cut_ranges),
    };
    return test_device_run(tests, "cpu", 2);
}
